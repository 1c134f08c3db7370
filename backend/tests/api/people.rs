//! The calls with a person's id in the URL instead of a name.

use reqwest::{StatusCode, multipart::Form};
use serde_json::json;

use crate::helpers::{photograph, start};

const NAME: &str = "Tony_Blair";

#[tokio::test]
async fn every_person_call_works_by_id_without_a_name_in_the_url() {
    let server = start!();
    let added = server.post_json("/people", &json!({ "face_id": NAME })).await.expect(StatusCode::CREATED);
    let id = added["person_id"].as_str().unwrap();
    assert_eq!((id.len(), &added["face_id"]), (36, &NAME.into()));
    let again = server.post_json("/people", &json!({ "face_id": "tony_blair" })).await;
    assert_eq!(again.body["error"]["details"]["person_id"], *id);
    again.expect_error(409, "person_exists");
    let found = server.post_json("/people/search", &json!({ "face_id": NAME })).await;
    assert_eq!(found.expect(StatusCode::OK), added);
    server
        .post_json("/people/search", &json!({ "face_id": "X" }))
        .await
        .expect_error(404, "person_not_found");

    let person = format!("/people/{id}");
    let mut images = Vec::new();
    for number in [1, 2] {
        let form = Form::new().part("image", photograph(NAME, number));
        let image = server.send(&format!("{person}/images"), form).await.expect(StatusCode::CREATED);
        assert_eq!((&image["person_id"], &image["face_id"]), (&id.into(), &NAME.into()));
        images.push(image["image_id"].clone());
    }
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby");
    let form = form.part("image", photograph(NAME, 3));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);

    // The same as under the name.
    let shown = server.get(&person).await.expect(StatusCode::OK);
    assert_eq!(shown, server.get(&format!("/dataset/{NAME}")).await.expect(StatusCode::OK));
    assert_eq!(shown["meta"]["total"], 2);
    assert_eq!(
        server.get("/people").await.expect(StatusCode::OK),
        server.get("/dataset").await.expect(StatusCode::OK)
    );
    for call in ["track", "last-known-location"] {
        assert_eq!(
            server.get(&format!("{person}/{call}")).await.expect(StatusCode::OK),
            server.get(&format!("/database/{NAME}/{call}")).await.expect(StatusCode::OK),
            "{call}"
        );
    }
    let seen = server.get(&format!("/database/detections?person_id={id}")).await.expect(StatusCode::OK);
    assert_eq!(seen["detections"].as_array().unwrap().len(), 1);
    assert_eq!(seen["detections"][0]["person_id"], *id);
    let followed = server.get(&format!("/database/detections?person_id={id}&after=0")).await;
    assert_eq!(followed.expect(StatusCode::OK)["detections"], seen["detections"]);
    let both = format!("/database/detections?person_id={id}&person={NAME}");
    server.get(&both).await.expect_error(400, "invalid_query");

    // A new name, the same id, also after a restart.
    let renamed = server.patch(&person, &json!({ "face_id": "Visitor 7" })).await.expect(StatusCode::OK);
    assert_eq!(renamed, json!({ "person_id": id, "face_id": "Visitor 7" }));
    let server = server.restart().await;
    assert_eq!(server.get(&person).await.expect(StatusCode::OK)["face_id"], "Visitor 7");
    let last = server.get(&format!("{person}/last-known-location")).await.expect(StatusCode::OK);
    assert_eq!((&last["face_id"], &last["person_id"]), (&"Visitor 7".into(), &id.into()));

    // An image and its person.
    let image = format!("/images/{}", images[0].as_str().unwrap());
    let details = server.get(&image).await.expect(StatusCode::OK);
    assert_eq!((&details["person_id"], &details["face_id"]), (&id.into(), &"Visitor 7".into()));
    server.delete(&image).await.expect(StatusCode::NO_CONTENT);
    assert_eq!(server.get(&person).await.expect(StatusCode::OK)["meta"]["total"], 1);

    assert!(server.delete(&person).await.expect(StatusCode::NO_CONTENT).is_null());
    for call in ["", "/track", "/last-known-location"] {
        server.get(&format!("{person}{call}")).await.expect_error(404, "person_not_found");
    }
    server.delete(&person).await.expect_error(404, "person_not_found");
    let form = Form::new().part("image", photograph(NAME, 1));
    server.send(&format!("{person}/images"), form).await.expect_error(404, "person_not_found");
    // A person who is enrolled again is another person.
    let next = server.post_json("/people", &json!({ "face_id": NAME })).await.expect(StatusCode::CREATED);
    assert_ne!(next["person_id"], *id);
    assert!(server.traces_of(id.as_bytes()).is_empty());
}

#[tokio::test]
async fn a_malformed_or_unknown_person_id_is_not_found() {
    let server = start!();
    server.enrol(NAME, &[]).await;
    for id in ["1", NAME, "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c", "%ff%fe"] {
        server.get(&format!("/people/{id}")).await.expect_error(404, "person_not_found");
    }
    server.get("/database/detections?person_id=1").await.expect_error(404, "person_not_found");
    server.get("/people/search").await.expect_error(405, "method_not_allowed");
    server.post_json("/people", &json!({ "face_id": 7 })).await.expect_error(400, "malformed_json");
    server.post_json("/people", &json!({})).await.expect_error(400, "malformed_json");
}

#[tokio::test]
async fn people_enrolled_before_ids_get_the_same_id_at_every_start() {
    let server = start!();
    server.enrol(NAME, &[1]).await;
    server.revert("2025-01-13-000000_person_ids");
    let server = server.restart().await;
    let first = server.get(&format!("/dataset/{NAME}")).await.expect(StatusCode::OK);
    // As after a backup was restored from before there were ids.
    server.revert("2025-01-13-000000_person_ids");
    let server = server.restart().await;
    let second = server.get(&format!("/dataset/{NAME}")).await.expect(StatusCode::OK);
    assert_eq!(first, second);
    let id = first["person_id"].as_str().unwrap();
    // A server of the version before that runs beside this one gives nobody an id.
    server.execute("UPDATE people SET public_id = NULL");
    assert_eq!(server.get(&format!("/people/{id}")).await.expect(StatusCode::OK), first);
}
