//! Adding people and pictures, and erasing them.

use std::collections::HashSet;

use reqwest::{StatusCode, multipart::Form};
use serde_json::json;

use crate::helpers::{file, files_below, found_below, landscape, photograph, photograph_path, start};

#[tokio::test]
async fn people_come_and_go() {
    let server = start!();
    assert_eq!(
        server.get("/dataset").await.expect(StatusCode::OK),
        json!({ "people": [], "meta": { "total": 0 } })
    );

    let added = server.post("/dataset/Tony%20Blair-2.x").await.expect(StatusCode::CREATED);
    assert_eq!(added, json!({ "face_id": "Tony Blair-2.x" }));
    server.enrol("Hugo_Chavez", &[1]).await;
    assert_eq!(
        server.get("/dataset").await.expect(StatusCode::OK),
        json!({
            "people": [
                { "face_id": "Hugo_Chavez", "images": 1 },
                { "face_id": "Tony Blair-2.x", "images": 0 },
            ],
            "meta": { "total": 2 },
        })
    );
    let table = server.get("/database/people").await.expect(StatusCode::OK);
    assert_eq!(table["meta"]["total"], 2);
    assert_eq!(table["people"][0]["face_id"], "Hugo_Chavez");
    let created_at = table["people"][0]["created_at"].as_str().unwrap();
    assert!(created_at.starts_with("20") && created_at.ends_with('Z'), "{created_at}");

    server.post("/dataset/Hugo_Chavez").await.expect_error(409, "person_exists");
    assert!(server.delete("/dataset/Hugo_Chavez").await.expect(StatusCode::NO_CONTENT).is_null());
    server.delete("/dataset/Hugo_Chavez").await.expect_error(404, "person_not_found");
    let left = server.get("/dataset").await.expect(StatusCode::OK);
    assert_eq!(left["people"], json!([{ "face_id": "Tony Blair-2.x", "images": 0 }]));
}

#[tokio::test]
async fn an_enrolled_picture_is_described_and_stored_as_it_was_sent() {
    let server = start!();
    server.post("/dataset/Tony_Blair").await.expect(StatusCode::CREATED);
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    let answer = server.send("/dataset/Tony_Blair/image", form).await.expect(StatusCode::CREATED);

    assert_eq!(answer["face_id"], "Tony_Blair");
    assert_eq!(answer["embedder"], "mobilefacenet");
    assert!(answer["detection_confidence"].as_f64().unwrap() > 0.9, "{answer}");
    let corner = |name: &str| answer["bounding_box"][name].as_f64().unwrap();
    assert!(corner("left") < corner("right") && corner("top") < corner("bottom"), "{answer}");

    let sent = std::fs::read(photograph_path("Tony_Blair", 1)).unwrap();
    let stored = found_below(&server.data.path().join("blobs"), &sent);
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].file_name().unwrap().to_str(), answer["image_id"].as_str());
    assert_eq!(std::fs::read(&stored[0]).unwrap(), sent);
}

#[tokio::test]
async fn pictures_that_show_nobody_or_several_are_refused_and_leave_nothing() {
    let server = start!();
    server.post("/dataset/Nobody").await.expect(StatusCode::CREATED);

    let form = Form::new().part("image", landscape());
    server.send("/dataset/Nobody/image", form).await.expect_error(422, "no_face");

    let group = std::fs::read(facepipe_test_support::require!("scenes/multiface.jpg")).unwrap();
    let form = Form::new().part("image", file(group));
    let answer = server.send("/dataset/Nobody/image", form).await;
    let faces = answer.body["error"]["details"]["faces"].as_u64().unwrap();
    let message = answer.expect_error(422, "several_faces");
    assert!(faces > 1 && message.contains(&faces.to_string()), "{message}");

    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    assert_eq!(listed["people"][0]["images"], 0);
    assert_eq!(files_below(&server.data.path().join("blobs")), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn enrolments_beside_each_other_all_hold() {
    let server = start!();
    let people = ["Tony_Blair", "Hugo_Chavez"];
    for person in people {
        server.post(&format!("/dataset/{person}")).await.expect(StatusCode::CREATED);
    }
    let calls = (1..=4).flat_map(|number| people.map(|person| (person, number))).map(|(person, number)| {
        let form = Form::new().part("image", photograph(person, number));
        let request = server.client.post(format!("{}/dataset/{person}/image", server.url)).multipart(form);
        tokio::spawn(async move { request.send().await.unwrap().status() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), StatusCode::CREATED);
    }
    // The same person added many times at once exists once.
    let adds = (0..8).map(|_| {
        let request = server.client.post(format!("{}/dataset/Somebody", server.url));
        tokio::spawn(async move { request.send().await.unwrap().status().as_u16() })
    });
    let mut statuses = Vec::new();
    for add in adds.collect::<Vec<_>>() {
        statuses.push(add.await.unwrap());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().copied().collect::<HashSet<_>>(), HashSet::from([201, 409]));

    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    assert_eq!(
        listed["people"],
        json!([
            { "face_id": "Hugo_Chavez", "images": 4 },
            { "face_id": "Somebody", "images": 0 },
            { "face_id": "Tony_Blair", "images": 4 },
        ])
    );
}

#[tokio::test]
async fn erasing_a_person_leaves_no_trace_on_the_disk() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    let face = server.recognise("Tony_Blair", 3).await;
    assert_eq!(face["top_prediction"]["label"], "Tony_Blair");
    for key in ["a", "b"] {
        let form = Form::new()
            .text("camera_id", "gate-1")
            .text("location", "Lobby")
            .text("key", key)
            .part("image", photograph("Tony_Blair", 3));
        server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    }
    let sent = std::fs::read(photograph_path("Tony_Blair", 1)).unwrap();
    assert!(!found_below(server.data.path(), b"Tony_Blair").is_empty());
    assert!(!found_below(server.data.path(), &sent).is_empty());

    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);

    assert_eq!(found_below(server.data.path(), b"Tony_Blair"), Vec::<std::path::PathBuf>::new());
    assert_eq!(found_below(server.data.path(), &sent), Vec::<std::path::PathBuf>::new());
    assert!(!found_below(server.data.path(), b"Hugo_Chavez").is_empty());
}

#[tokio::test]
async fn a_picture_without_a_row_is_removed_at_the_next_start() {
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    let orphan = server.data.path().join("blobs/people/77/left-behind");
    std::fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    std::fs::write(&orphan, b"a face").unwrap();

    let server = server.restart().await;

    assert!(!orphan.exists());
    let sent = std::fs::read(photograph_path("Tony_Blair", 1)).unwrap();
    assert_eq!(found_below(&server.data.path().join("blobs"), &sent).len(), 1);
}
