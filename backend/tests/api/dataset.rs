//! Adding and erasing people and images.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::helpers::{
    ApiResponse, file, files_below, found_below, landscape, photograph, photograph_path, start,
};

#[tokio::test]
async fn people_are_added_listed_and_erased() {
    let server = start!();
    assert_eq!(
        server.get("/dataset").await.expect(StatusCode::OK),
        json!({ "people": [], "conflicts": [], "meta": { "total": 0, "next_cursor": null } })
    );

    let added = server.post("/dataset/Tony%20Blair-2.x").await.expect(StatusCode::CREATED);
    assert_eq!(added["face_id"], "Tony Blair-2.x");
    server.enrol("Hugo_Chavez", &[1]).await;
    let hugo = server.get("/dataset/Hugo_Chavez").await.expect(StatusCode::OK)["person_id"].clone();
    let entry = |person_id: &Value, face_id: &str, images: i64| {
        json!({
            "person_id": person_id,
            "face_id": face_id,
            "images": images,
            "usable_images": images,
            "same_name_as": null,
        })
    };
    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    assert_eq!(
        listed,
        json!({
            "people": [
                entry(&hugo, "Hugo_Chavez", 1),
                entry(&added["person_id"], "Tony Blair-2.x", 0),
            ],
            "conflicts": [],
            "meta": { "total": 2, "next_cursor": null },
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
    assert_eq!(left["people"], json!([entry(&added["person_id"], "Tony Blair-2.x", 0)]));
}

#[tokio::test]
async fn an_enrolled_image_is_described_and_stored_as_sent() {
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
async fn images_with_no_face_or_several_are_rejected_and_not_stored() {
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
async fn concurrent_enrolments_are_all_stored() {
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
    let people = listed["people"].as_array().unwrap().iter();
    let people: Vec<_> =
        people.map(|p| (p["face_id"].as_str().unwrap(), p["images"].as_i64().unwrap())).collect();
    assert_eq!(people, [("Hugo_Chavez", 4), ("Somebody", 0), ("Tony_Blair", 4)]);
}

#[tokio::test]
async fn erasing_a_person_leaves_no_trace() {
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
    assert!(!server.traces_of(b"Tony_Blair").is_empty());
    assert!(!server.traces_of(&sent).is_empty());

    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);

    assert_eq!(server.traces_of(b"Tony_Blair"), Vec::<std::path::PathBuf>::new());
    assert_eq!(server.traces_of(&sent), Vec::<std::path::PathBuf>::new());
    assert!(!server.traces_of(b"Hugo_Chavez").is_empty());
}

#[tokio::test]
async fn blobs_without_a_row_are_swept_once_old_enough() {
    let server = start!(|config| (config.storage.sweep_interval_s, config.storage.sweep_min_age_s) = (1, 60));
    server.enrol("Tony_Blair", &[1]).await;
    server.train().await;
    let blobs = server.data.path().join("blobs");
    let orphan = |name: &str, age_s: u64| {
        let file = blobs.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, b"a face").unwrap();
        let written = std::time::SystemTime::now() - Duration::from_secs(age_s);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(written).unwrap();
        file
    };
    let old = [orphan("people/77/left-behind", 120), orphan("models/left-behind", 120)];
    let young = orphan("people/77/being-enrolled", 0);
    let strangers = orphan("lost+found/x", 120);

    let begun = Instant::now();
    while old.iter().any(|file| file.exists()) {
        assert!(begun.elapsed() < Duration::from_secs(20), "not swept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(young.exists() && strangers.exists());
    assert_eq!(server.recognise("Tony_Blair", 2).await["decision"], "known");
    let sent = std::fs::read(photograph_path("Tony_Blair", 1)).unwrap();
    assert_eq!(found_below(&blobs, &sent).len(), 1);
}

#[tokio::test]
async fn enrolled_images_can_be_listed_fetched_and_erased() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.post("/dataset/Hugo_Chavez").await.expect(StatusCode::CREATED);

    let listed = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    assert_eq!((&listed["face_id"], &listed["meta"]["total"]), (&"Tony_Blair".into(), &2.into()));
    for (image, number) in listed["images"].as_array().unwrap().iter().zip([1, 2]) {
        let sent = std::fs::read(photograph_path("Tony_Blair", number)).unwrap();
        assert_eq!(image["bytes"], sent.len());
        assert!(image["created_at"].as_str().unwrap().ends_with('Z'), "{image}");
        let url = format!("{}/dataset/Tony_Blair/image/{}", server.url, image["image_id"].as_str().unwrap());
        let answer = server.client.get(url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "image/jpeg");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        assert_eq!(answer.bytes().await.unwrap(), sent);
    }

    let first = listed["images"][0]["image_id"].as_str().unwrap();
    // An image belongs to its person only.
    let elsewhere = format!("/dataset/Hugo_Chavez/image/{first}");
    server.get(&elsewhere).await.expect_error(404, "image_not_found");
    server.delete(&elsewhere).await.expect_error(404, "image_not_found");

    let path = format!("/dataset/Tony_Blair/image/{first}");
    server.delete(&path).await.expect(StatusCode::NO_CONTENT);
    server.get(&path).await.expect_error(404, "image_not_found");
    server.delete(&path).await.expect_error(404, "image_not_found");
    let sent = std::fs::read(photograph_path("Tony_Blair", 1)).unwrap();
    assert_eq!(server.traces_of(&sent), Vec::<std::path::PathBuf>::new());
    let left = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    assert_eq!(left["images"], json!([listed["images"][1]]));
    // The embedding went along: the next training has one image.
    assert_eq!(server.train().await["images"], 1);

    server.get("/dataset/Nobody").await.expect_error(404, "person_not_found");
    server.get("/dataset/Nobody/image/x").await.expect_error(404, "person_not_found");
    server.delete("/dataset/Nobody/image/x").await.expect_error(404, "person_not_found");
}

#[tokio::test]
async fn an_image_is_served_with_the_content_type_of_its_format() {
    let server = start!();
    server.post("/dataset/Tony_Blair").await.expect(StatusCode::CREATED);
    let mut png = std::io::Cursor::new(Vec::new());
    let picture = image::open(photograph_path("Tony_Blair", 1)).unwrap();
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    // Whatever the sender calls it.
    let form = Form::new().part("image", file(png.into_inner()));
    let added = server.send("/dataset/Tony_Blair/image", form).await.expect(StatusCode::CREATED);
    let url = format!("{}/dataset/Tony_Blair/image/{}", server.url, added["image_id"].as_str().unwrap());
    let answer = server.client.get(url).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "image/png");
}

#[tokio::test]
async fn a_renamed_person_keeps_images_model_and_detections() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1]).await;
    server.train().await;
    let form = || {
        Form::new()
            .text("camera_id", "gate-1")
            .text("location", "Lobby")
            .text("key", "k")
            .part("image", photograph("Tony_Blair", 3))
    };
    server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);

    let renamed = server.patch("/dataset/Tony_Blair", &json!({ "face_id": "Visitor 7" })).await;
    let renamed = renamed.expect(StatusCode::OK);
    let shown = server.get("/dataset/Visitor%207").await.expect(StatusCode::OK);
    assert_eq!((&renamed["face_id"], &renamed["person_id"]), (&"Visitor 7".into(), &shown["person_id"]));

    // The model that answers needs no training for it, and an answer that was kept has the new name too.
    let face = server.recognise("Tony_Blair", 3).await;
    assert_eq!((&face["decision"], &face["top_prediction"]["label"]), (&"known".into(), &"Visitor 7".into()));
    let kept = server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    assert_eq!(
        (&kept["repeated"], &kept["faces"][0]["top_prediction"]["label"]),
        (&1.into(), &"Visitor 7".into())
    );
    let last = server.get("/database/Visitor%207/last-known-location").await.expect(StatusCode::OK);
    assert_eq!(last["location"], "Lobby");
    assert_eq!(server.get("/dataset/Visitor%207").await.expect(StatusCode::OK)["meta"]["total"], 2);
    server.get("/dataset/Tony_Blair").await.expect_error(404, "person_not_found");
    // The old name is written nowhere any more.
    assert_eq!(server.traces_of(b"Tony_Blair"), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn an_invalid_rename_changes_nothing() {
    let server = start!();
    for person in ["Ada", "Bob"] {
        server.post(&format!("/dataset/{person}")).await.expect(StatusCode::CREATED);
    }
    let path = "/dataset/Ada";
    server.patch("/dataset/Nobody", &json!({ "face_id": "Eve" })).await.expect_error(404, "person_not_found");
    server.patch(path, &json!({ "face_id": "Bob" })).await.expect_error(409, "person_exists");
    server.patch(path, &json!({ "face_id": "../x" })).await.expect_error(400, "invalid_face_id");
    server.patch("/dataset/.x", &json!({ "face_id": "Eve" })).await.expect_error(400, "invalid_face_id");
    let message = server.patch(path, &json!({ "name": "Eve" })).await.expect_error(400, "malformed_json");
    assert!(message.contains("face_id"), "{message}");
    server.patch(path, &json!({ "face_id": 7 })).await.expect_error(400, "malformed_json");
    let long = json!({ "face_id": "x".repeat(20_000) });
    server.patch(path, &long).await.expect_error(413, "request_too_large");
    let plain = server.client.patch(format!("{}{path}", server.url)).body("face_id=Eve");
    ApiResponse::read(plain.send().await.unwrap()).await.expect_error(415, "unsupported_media_type");
    // To keep one's name is no conflict with oneself.
    server.patch(path, &json!({ "face_id": "Ada" })).await.expect(StatusCode::OK);

    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    let names: Vec<_> = listed["people"].as_array().unwrap().iter().map(|p| p["face_id"].clone()).collect();
    assert_eq!(names, ["Ada", "Bob"]);
}

/// The `sha256sum` of lfw10's Tony_Blair_0001.jpg.
const DIGEST: &str = "78ecc405bdf19352df9087a42f3fe3a813f4e34b65bd1ce2c49086b22fafd36a";

#[tokio::test]
async fn a_duplicate_image_of_the_same_person_is_rejected_and_not_stored() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    let listed = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    assert_eq!(listed["images"][0]["sha256"], DIGEST);
    let blobs = files_below(&server.data.path().join("blobs")).len();

    let again = || Form::new().part("image", photograph("Tony_Blair", 1));
    let answer = server.send("/dataset/Tony_Blair/image", again()).await;
    assert_eq!(answer.body["error"]["details"]["image_id"], listed["images"][0]["image_id"]);
    answer.expect_error(409, "duplicate_image");
    assert_eq!(server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK), listed);
    assert_eq!(files_below(&server.data.path().join("blobs")).len(), blobs);

    // Whatever the person is called by now.
    let renaming = json!({ "face_id": "Visitor 7" });
    server.patch("/dataset/Tony_Blair", &renaming).await.expect(StatusCode::OK);
    server.send("/dataset/Visitor%207/image", again()).await.expect_error(409, "duplicate_image");

    // An erased image can come again, and so can those of an erased person.
    let first = listed["images"][0]["image_id"].as_str().unwrap();
    server.delete(&format!("/dataset/Visitor%207/image/{first}")).await.expect(StatusCode::NO_CONTENT);
    server.send("/dataset/Visitor%207/image", again()).await.expect(StatusCode::CREATED);
    assert!(!server.traces_of(DIGEST.as_bytes()).is_empty());
    server.delete("/dataset/Visitor%207").await.expect(StatusCode::NO_CONTENT);
    assert_eq!(server.traces_of(DIGEST.as_bytes()), Vec::<std::path::PathBuf>::new());
    server.enrol("Tony_Blair", &[1]).await;
}

#[tokio::test]
async fn of_identical_concurrent_uploads_one_is_enrolled() {
    let server = start!();
    server.post("/dataset/Tony_Blair").await.expect(StatusCode::CREATED);
    let calls = (0..8).map(|_| {
        let form = Form::new().part("image", photograph("Tony_Blair", 1));
        let request = server.client.post(format!("{}/dataset/Tony_Blair/image", server.url)).multipart(form);
        tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await })
    });
    let (mut enrolled, mut refused) = (Vec::new(), Vec::new());
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.unwrap();
        match answer.status {
            StatusCode::CREATED => enrolled.push(answer.body["image_id"].clone()),
            _ => {
                refused.push(answer.body["error"]["details"]["image_id"].clone());
                answer.expect_error(409, "duplicate_image");
            }
        }
    }
    assert_eq!(enrolled.len(), 1);
    assert_eq!(refused, vec![enrolled[0].clone(); 7]);
    let listed = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    assert_eq!((&listed["meta"]["total"], &listed["images"][0]["image_id"]), (&1.into(), &enrolled[0]));
    assert_eq!(files_below(&server.data.path().join("blobs")).len(), 1);
}

#[tokio::test]
async fn a_duplicate_image_is_rejected_before_recognition() {
    let server = start!(|config| config.recognition.queue_images = 1);
    server.enrol("Tony_Blair", &[1]).await;
    let enrol = async |number| {
        let form = Form::new().part("image", photograph("Tony_Blair", number));
        server.send("/dataset/Tony_Blair/image", form).await
    };
    let mut fresh = 2..10;
    let long = loop {
        // Fills the queue for a while, unless another one is in it.
        let form = (0..64).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 2)));
        let url = format!("{}/face-recognition/get-results", server.url);
        let request = server.client.post(url).multipart(form);
        let long = tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let answer = enrol(fresh.next().unwrap()).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            break long;
        }
        answer.expect(StatusCode::CREATED);
        long.await.unwrap();
    };
    enrol(1).await.expect_error(409, "duplicate_image");
    enrol(10).await.expect_error(429, "too_busy");
    long.await.unwrap().expect(StatusCode::OK);
}

#[tokio::test]
async fn images_enrolled_before_digests_stay_without_one() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    let before = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    server.revert("2025-01-10-000000_duplicates");
    server.revert("2025-01-04-000000_image_digests");
    let server = server.restart().await;

    let mut expected = before.clone();
    for image in expected["images"].as_array_mut().unwrap() {
        image["sha256"] = json!(null);
    }
    assert_eq!(server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK), expected);
    assert_eq!(server.train().await["images"], 2);
    // What they are is not known, so the same picture is taken once more, and then no more.
    let form = || Form::new().part("image", photograph("Tony_Blair", 1));
    let added = server.send("/dataset/Tony_Blair/image", form()).await.expect(StatusCode::CREATED);
    let answer = server.send("/dataset/Tony_Blair/image", form()).await;
    assert_eq!(answer.body["error"]["details"]["image_id"], added["image_id"]);
    answer.expect_error(409, "duplicate_image");
}

#[tokio::test]
async fn people_come_in_pages_in_the_order_of_their_enrolment() {
    let server = start!();
    for person in ["Zoe", "Ada", "Mia", "Bob", "Eve"] {
        server.post(&format!("/dataset/{person}")).await.expect(StatusCode::CREATED);
    }
    server.enrol("Tony_Blair", &[1, 2]).await;
    for list in ["/dataset", "/people"] {
        let (mut names, mut images, mut query) = (Vec::new(), Vec::new(), "?limit=2".to_owned());
        let mut pages = 0;
        loop {
            let page = server.get(&format!("{list}{query}")).await.expect(StatusCode::OK);
            pages += 1;
            assert_eq!(page["meta"]["total"], 6);
            for person in page["people"].as_array().unwrap() {
                names.push(person["face_id"].as_str().unwrap().to_owned());
                images.push(person["images"].as_i64().unwrap());
                assert_eq!(person["images"], person["usable_images"]);
            }
            if pages == 1 {
                server.get("/dataset?limit=1&cursor=0").await.expect_error(400, "invalid_cursor");
            }
            let Some(cursor) = page["meta"]["next_cursor"].as_str() else { break };
            query = format!("?limit=2&cursor={cursor}");
        }
        assert_eq!(names, ["Zoe", "Ada", "Mia", "Bob", "Eve", "Tony_Blair"]);
        assert_eq!((images, pages), (vec![0, 0, 0, 0, 0, 2], 3));
        for limit in ["0", "1001", "x"] {
            assert_eq!(server.get(&format!("{list}?limit={limit}")).await.status, StatusCode::BAD_REQUEST);
        }
    }
    let all = server.get("/dataset").await.expect(StatusCode::OK);
    assert_eq!((&all["people"][0]["face_id"], &all["meta"]["next_cursor"]), (&"Ada".into(), &json!(null)));
}
