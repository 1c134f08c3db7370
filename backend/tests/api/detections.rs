//! store-results, and what can be asked afterwards.

use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::helpers::{Server, file, photograph, start};

fn upload(camera: &str, location: &str) -> Form {
    Form::new().text("camera_id", camera.to_owned()).text("location", location.to_owned())
}

/// Rows of a query on the server's database.
fn rows(server: &Server, query: &str) -> Vec<String> {
    use diesel::{Connection as _, RunQueryDsl as _, sql_query, sql_types::Text};
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        row: String,
    }
    let file = server.data.path().join("facepipe.db");
    let mut connection = diesel::SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    sql_query(query).load::<Row>(&mut connection).unwrap().into_iter().map(|row| row.row).collect()
}

#[tokio::test]
async fn who_was_seen_where_and_when_can_be_asked() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    server.get("/database/Tony_Blair/last-known-location").await.expect_error(404, "never_seen");

    let form = upload("gate-1", "Lobby")
        .text("captured_at", "2024-05-06T09:08:09.25+02:00")
        .text("track_id", "12")
        .text("box", "100,200,180.5,300")
        .part("image", photograph("Tony_Blair", 3));
    let answer = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["model_version"], &answer["stored"]), (&1.into(), &1.into()));
    assert_eq!(answer["faces"][0]["top_prediction"]["label"], "Tony_Blair");

    let last = server.get("/database/Tony_Blair/last-known-location").await.expect(StatusCode::OK);
    assert_eq!(
        (&last["face_id"], &last["location"], &last["camera_id"], &last["captured_at"]),
        (&"Tony_Blair".into(), &"Lobby".into(), &"gate-1".into(), &"2024-05-06T07:08:09.25Z".into())
    );
    assert_eq!(last["confidence"], answer["faces"][0]["top_prediction"]["confidence"]);

    // Newest by capture, not by arrival: a spool that is drained late changes nothing.
    for (camera, captured_at) in [("gate-2", "2024-05-06T08:00:00Z"), ("gate-3", "2024-05-06T06:00:00Z")] {
        let form = upload(camera, "Yard")
            .text("captured_at", captured_at)
            .part("image", photograph("Tony_Blair", 3));
        server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    }
    let last = server.get("/database/Tony_Blair/last-known-location").await.expect(StatusCode::OK);
    assert_eq!(last["camera_id"], "gate-2");

    let stored = rows(
        &server,
        "SELECT camera_id || ' ' || track_id || ' ' || box_left || ' ' || box_bottom || ' ' || \
         (embedding IS NULL) || ' ' || embedder AS row FROM detections WHERE track_id IS NOT NULL",
    );
    assert_eq!(stored, ["gate-1 12 100.0 300.0 1 mobilefacenet"]);
    server.get("/database/Nobody/last-known-location").await.expect_error(404, "person_not_found");
}

#[tokio::test]
async fn unknown_faces_are_detections_with_their_embedding() {
    let server = start!();
    let form = upload("gate-1", "").part("image", photograph("Vladimir_Putin", 1));
    let answer = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["model_version"], &answer["stored"]), (&Value::Null, &1.into()));
    let stored = rows(
        &server,
        "SELECT coalesce(person_id, 'nobody') || ' ' || length(embedding) AS row FROM detections",
    );
    // 128 components of four bytes.
    assert_eq!(stored, ["nobody 512"]);
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_answer_and_stores_nothing_twice() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let form = || {
        upload("gate-1", "Lobby")
            .part("image", photograph("Tony_Blair", 3))
            .text("key", "k-1")
            .part("image", photograph("Vladimir_Putin", 1))
            .text("key", "k-2")
    };
    let first = server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    assert_eq!((&first["stored"], &first["repeated"]), (&2.into(), &0.into()));

    // Also across a restart and a new model.
    let server = server.restart().await;
    server.enrol("Vladimir_Putin", &[2, 3]).await;
    server.train().await;
    let mut second = server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    assert_eq!(second["repeated"], 2);
    second["repeated"] = 0.into();
    assert_eq!(second, first);
    assert_eq!(rows(&server, "SELECT upload_key AS row FROM detections ORDER BY 1"), ["k-1", "k-2"]);

    // A new image beside a repeated one is recognised by the model of now.
    let form = upload("gate-1", "Lobby")
        .part("image", photograph("Tony_Blair", 3))
        .text("key", "k-1")
        .part("image", photograph("Vladimir_Putin", 1))
        .text("key", "k-3");
    let third = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&third["repeated"], &third["model_version"]), (&1.into(), &2.into()));
    assert_eq!(third["faces"][1]["top_prediction"]["label"], "Vladimir_Putin");
}

#[tokio::test]
async fn the_same_key_many_times_at_once_is_stored_once() {
    let server = start!();
    let calls = (0..6).map(|_| {
        let form = upload("gate-1", "Lobby").part("image", photograph("Tony_Blair", 1)).text("key", "k");
        let request =
            server.client.post(format!("{}/face-recognition/store-results", server.url)).multipart(form);
        tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() })
    });
    let mut repeated = 0;
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.unwrap();
        assert_eq!(answer["stored"], 1, "{answer}");
        repeated += answer["repeated"].as_u64().unwrap();
    }
    assert_eq!(repeated, 5);
    assert_eq!(rows(&server, "SELECT '' || count(*) AS row FROM detections"), ["1"]);
}

#[tokio::test]
async fn detections_of_an_erased_person_lose_the_name() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let form = || upload("gate-1", "Lobby").part("image", photograph("Tony_Blair", 3)).text("key", "k");
    server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);

    let stored =
        rows(&server, "SELECT (person_id IS NULL) || ' ' || (embedding IS NULL) AS row FROM detections");
    assert_eq!(stored, ["1 1"]);
    server.get("/database/Tony_Blair/last-known-location").await.expect_error(404, "person_not_found");
    // The kept answer names nobody either.
    let answer = server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    assert_eq!(answer["faces"][0]["decision"], "unknown");
    assert_eq!(answer["faces"][0]["all_predictions"], json!([]));
}

#[tokio::test]
async fn an_unreadable_image_is_told_and_the_others_are_stored() {
    let server = start!();
    let form = upload("gate-1", "Lobby")
        .part("image", file(b"text".to_vec()))
        .text("key", "bad")
        .part("image", photograph("Tony_Blair", 1))
        .text("key", "good");
    let answer = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["stored"], &answer["faces"][0]["image"]), (&1.into(), &1.into()));
    assert_eq!(answer["errors"][0]["image"], 0);
    assert_eq!(rows(&server, "SELECT upload_key AS row FROM answers"), ["good"]);
}
