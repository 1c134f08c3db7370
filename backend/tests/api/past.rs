//! Unknown people who become enrolled ones, and unknown faces of the past that are proposed for people who were enrolled
//! later.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::{
    helpers::{Engine, Server, photograph, start, until},
    unknowns,
};

const MIGRATION: &str = "2025-01-20-000000_unknown_pictures";
const NOBODY: &str = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c";

/// Stores the faces of a person's photographs. Returns the ids of their detections.
async fn see(server: &Server, person: &str, numbers: &[u32]) -> Vec<i64> {
    let photographs: Vec<(&str, u32)> = numbers.iter().map(|number| (person, *number)).collect();
    unknowns::see(server, "gate-1", &photographs).await
}

/// The group of a detection, once so many faces are in it.
async fn group_of(server: &Server, detection: i64, faces: i64) -> String {
    let begun = Instant::now();
    loop {
        let row = detection_of(server, detection).await;
        if let Some(id) = row["unknown_id"].as_str() {
            let unknown = server.get(&format!("/unknowns/{id}")).await.expect(StatusCode::OK);
            if unknown["unknown"]["faces"] == faces {
                return id.to_owned();
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{row}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn detection_of(server: &Server, id: i64) -> Value {
    server.get(&format!("/database/detections/{id}")).await.expect(StatusCode::OK)
}

async fn job(server: &Server, id: &str) -> Value {
    let begun = Instant::now();
    loop {
        let job = server.get(&format!("/jobs/{id}")).await.expect(StatusCode::OK);
        if ["done", "failed", "cancelled"].contains(&job["status"].as_str().unwrap()) {
            return job;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until no job is queued or running.
async fn all_jobs(server: &Server) {
    until(|| server.lines("SELECT id AS line FROM jobs WHERE status IN ('queued', 'running')").is_empty())
        .await;
}

async fn proposed(server: &Server, query: &str) -> Vec<Value> {
    let page = server.get(&format!("/proposals?{query}")).await.expect(StatusCode::OK);
    page["proposals"].as_array().unwrap().clone()
}

#[tokio::test]
async fn an_unknown_person_is_named_enrolled_and_trained_at_once() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "Hugo_Chavez", &[1, 2, 3]).await;
    let unknown = group_of(&server, blue[0], 3).await;
    let path = format!("/unknowns/{unknown}/name");
    server.post_json(&path, &json!({ "face_id": "a/b" })).await.expect_error(400, "invalid_face_id");
    for wrong in [json!(null), json!("yes")] {
        let body = json!({ "face_id": "Hugo", "add_to_existing": wrong });
        let refused = server.post_json(&path, &body).await.expect(StatusCode::BAD_REQUEST);
        assert!(refused["error"]["message"].as_str().unwrap().contains("boolean"), "{refused}");
    }
    let nobody = format!("/unknowns/{NOBODY}/name");
    server.post_json(&nobody, &json!({ "face_id": "Hugo" })).await.expect_error(404, "unknown_not_found");

    let named = server.post_json(&path, &json!({ "face_id": "Hugo" })).await.expect(StatusCode::OK);
    assert_eq!(
        (&named["new_person"], &named["images"], &named["images_with_picture"], &named["detections"]),
        (&true.into(), &3.into(), &0.into(), &3.into()),
        "{named}"
    );
    for id in &blue {
        let row = detection_of(&server, *id).await;
        assert_eq!((&row["face_id"], &row["person_id"]), (&"Hugo".into(), &named["person_id"]), "{row}");
        assert!(row["unknown_id"].is_null() && row["score"].is_null() && row["model_version"].is_null());
        // Clients that follow corrections see it.
        assert!(row["revised_at"].is_string() && row["revision"].is_i64(), "{row}");
    }
    let kept = "SELECT CONCAT('', COUNT(*)) AS line FROM detections WHERE embedding IS NOT NULL";
    assert_eq!(server.lines(kept), ["0"]);
    server.get(&format!("/unknowns/{unknown}")).await.expect_error(404, "unknown_not_found");
    // The same again changes nothing; another name finds no group.
    let again = server.post_json(&path, &json!({ "face_id": "Hugo" })).await.expect(StatusCode::OK);
    assert_eq!((&again["person_id"], &again["images"]), (&named["person_id"], &0.into()));
    assert!(again["job_id"].is_null(), "{again}");
    server.post_json(&path, &json!({ "face_id": "Ada" })).await.expect_error(404, "unknown_not_found");

    // Recognised from now on.
    let training = job(&server, named["job_id"].as_str().unwrap()).await;
    assert_eq!((&training["status"], &training["result"]["images"]), (&"done".into(), &3.into()));
    let known = see(&server, "Hugo_Chavez", &[4]).await;
    assert_eq!(detection_of(&server, known[0]).await["face_id"], "Hugo");

    // A name that is enrolled is taken only where that is meant.
    let more = see(&server, "Tony_Blair", &[1]).await;
    let other = group_of(&server, more[0], 1).await;
    let path = format!("/unknowns/{other}/name");
    server.post_json(&path, &json!({ "face_id": "Hugo" })).await.expect_error(409, "person_exists");
    assert_eq!(group_of(&server, more[0], 1).await, other);
    let add = json!({ "face_id": "Hugo", "add_to_existing": true });
    let added = server.post_json(&path, &add).await.expect(StatusCode::OK);
    assert_eq!((&added["new_person"], &added["images"]), (&false.into(), &1.into()));
    assert_eq!(added["person_id"], named["person_id"]);
    all_jobs(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn images_without_pictures_are_told_apart_trained_on_and_erased() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "Hugo_Chavez", &[1, 2]).await;
    let unknown = group_of(&server, blue[0], 2).await;
    let path = format!("/unknowns/{unknown}/name");
    let named = server.post_json(&path, &json!({ "face_id": "Hugo" })).await.expect(StatusCode::OK);
    let person = named["person_id"].as_str().unwrap();
    all_jobs(&server).await;
    let images = server.get(&format!("/people/{person}")).await.expect(StatusCode::OK);
    let image = images["images"][0]["image_id"].as_str().unwrap().to_owned();
    assert_eq!((&images["meta"]["total"], &images["images"][0]["bytes"]), (&2.into(), &0.into()));
    let content = format!("/images/{image}/content");
    server.get(&content).await.expect_error(404, "no_picture");
    server.get(&format!("/dataset/Hugo/image/{image}")).await.expect_error(404, "no_picture");
    let shown = server.get(&format!("/images/{image}")).await.expect(StatusCode::OK);
    assert_eq!(shown["embeddings"].as_array().unwrap().len(), 1);

    // Both stay where all embeddings are computed again, and are trained on.
    let computed = server.post("/model/generate-emb?wait=true").await.expect(StatusCode::OK);
    assert_eq!(
        (&computed["result"]["images"], &computed["result"]["images_left_out"]),
        (&2.into(), &0.into()),
        "{computed}"
    );
    let trained = server.post("/model/train?wait=true").await.expect(StatusCode::OK);
    assert_eq!(
        (&trained["result"]["images"], &trained["result"]["images_left_out"]),
        (&2.into(), &0.into()),
        "{trained}"
    );
    // Those of another embedder are left out.
    server.execute("UPDATE embeddings SET embedder = 'another'");
    let computed = server.post("/model/generate-emb?wait=true").await.expect(StatusCode::OK);
    assert_eq!(
        (&computed["result"]["images"], &computed["result"]["images_left_out"]),
        (&0.into(), &2.into()),
        "{computed}"
    );
    server.delete(&format!("/images/{image}")).await.expect(StatusCode::NO_CONTENT);
    server.delete(&format!("/people/{person}")).await.expect(StatusCode::NO_CONTENT);
    assert!(server.lines("SELECT public_id AS line FROM named_unknowns").is_empty());
    assert!(server.lines("SELECT id AS line FROM images").is_empty());
    server.stop().await;
}

#[tokio::test]
async fn faces_of_the_past_are_proposed_accepted_and_refused() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "Hugo_Chavez", &[4, 5, 6]).await;
    let red = see(&server, "Tony_Blair", &[1]).await;
    group_of(&server, red[0], 1).await;
    server.enrol("Hugo_Chavez", &[1, 2, 3]).await;
    server.enrol("Ariel_Sharon", &[1, 2]).await;
    let people = server.get("/people").await.expect(StatusCode::OK);
    let id = |name: &str| {
        let all = people["people"].as_array().unwrap();
        let person = all.iter().find(|person| person["face_id"] == name).unwrap();
        person["person_id"].as_str().unwrap().to_owned()
    };
    let (hugo, ariel) = (id("Hugo_Chavez"), id("Ariel_Sharon"));
    let search = format!("/people/{hugo}/search-past");
    server.post(&search).await.expect_error(409, "person_not_in_model");
    server.post(&format!("/people/{NOBODY}/search-past")).await.expect_error(404, "person_not_found");

    // A training searches for those who are new in the model.
    server.train().await;
    all_jobs(&server).await;
    let found = proposed(&server, &format!("person_id={hugo}")).await;
    let faces: BTreeSet<i64> = found.iter().map(|row| row["detection"]["id"].as_i64().unwrap()).collect();
    assert_eq!(faces, blue.iter().copied().collect(), "{found:?}");
    assert!(found.iter().all(|row| row["decided"] == "proposed" && row["face_id"] == "Hugo_Chavez"));
    assert!(found.iter().all(|row| row["score"].as_f64().unwrap() > 0.3), "{found:?}");
    assert!(proposed(&server, &format!("person_id={ariel}")).await.is_empty());
    // No detection gets a name by itself.
    assert!(detection_of(&server, blue[0]).await["face_id"].is_null());
    let page = server.get("/proposals?limit=2").await.expect(StatusCode::OK);
    let cursor = page["meta"]["next_cursor"].as_str().unwrap();
    assert_eq!(proposed(&server, &format!("limit=2&cursor={cursor}")).await.len(), 1);
    server.get("/proposals?decided=x").await.expect_error(400, "invalid_query");
    server
        .get(&format!("/proposals?limit=1&person_id={hugo}&cursor={cursor}"))
        .await
        .expect_error(400, "invalid_cursor");

    // A refused one is not made again; an accepted one names its detection.
    let proposal = |detection: i64| {
        let row = found.iter().find(|row| row["detection"]["id"] == detection).unwrap();
        row["proposal_id"].as_i64().unwrap()
    };
    let refused = json!({ "proposals": [proposal(blue[0])] });
    let judged = server.post_json("/proposals/refuse", &refused).await.expect(StatusCode::OK);
    assert_eq!(judged, json!({ "proposals": 1, "not_found": 0 }));
    let again = server.post(&format!("{search}?wait=true")).await.expect(StatusCode::OK);
    assert_eq!(
        (&again["kind"], &again["result"]["proposals"]),
        (&"search-past".into(), &0.into()),
        "{again}"
    );
    assert_eq!((&again["result"]["people"], &again["result"]["faces"]), (&1.into(), &4.into()), "{again}");
    let accepted = json!({ "proposals": [proposal(blue[1]), proposal(blue[0]), 999_999] });
    let judged = server.post_json("/proposals/accept", &accepted).await.expect(StatusCode::OK);
    assert_eq!(judged, json!({ "proposals": 1, "not_found": 2 }));
    let row = detection_of(&server, blue[1]).await;
    assert_eq!((&row["face_id"], &row["person_id"]), (&"Hugo_Chavez".into(), &hugo.as_str().into()), "{row}");
    assert!(row["unknown_id"].is_null());
    group_of(&server, blue[0], 2).await;
    assert_eq!(proposed(&server, "").await.len(), 1);
    assert_eq!(proposed(&server, "decided=refused").await[0]["detection"]["id"], blue[0]);
    // All of a person, by score.
    for (body, field) in [
        (json!({}), "proposals"),
        (json!({ "proposals": [] }), "proposals"),
        (json!({ "proposals": [1], "person_id": hugo }), "proposals"),
        (json!({ "proposals": [1], "min_score": 0.5 }), "min_score"),
        (json!({ "person_id": hugo, "min_score": 2.0 }), "min_score"),
    ] {
        let message = server.post_json("/proposals/accept", &body).await.expect_error(400, "invalid_field");
        assert!(message.contains(field), "{message}");
    }
    let best = json!({ "person_id": hugo, "min_score": 0.9999 });
    let judged = server.post_json("/proposals/accept", &best).await.expect(StatusCode::OK);
    assert_eq!(judged["proposals"], 0);
    let all = json!({ "person_id": hugo });
    let judged = server.post_json("/proposals/accept", &all).await.expect(StatusCode::OK);
    assert_eq!(judged["proposals"], 1);
    assert_eq!(detection_of(&server, blue[2]).await["face_id"], "Hugo_Chavez");
    assert!(detection_of(&server, blue[0]).await["face_id"].is_null());
    // Erasing the face or the person erases what was proposed.
    server.delete(&format!("/database/detections/{}", blue[0])).await.expect(StatusCode::NO_CONTENT);
    assert!(server.lines("SELECT CONCAT('', id) AS line FROM proposals").is_empty());
    server.stop().await;
}

#[tokio::test]
async fn proposals_go_with_their_person_and_with_the_embeddings_of_a_group() {
    let server = start!(|config| {
        config.unknowns.group_unknowns = true;
        config.unknowns.search_past = false;
    });
    let blue = see(&server, "Hugo_Chavez", &[4, 5]).await;
    let unknown = group_of(&server, blue[0], 2).await;
    server.enrol("Hugo_Chavez", &[1, 2, 3]).await;
    server.train().await;
    let people = server.get("/people").await.expect(StatusCode::OK);
    let hugo = people["people"][0]["person_id"].as_str().unwrap().to_owned();
    assert!(proposed(&server, "").await.is_empty());
    server.post(&format!("/people/{hugo}/search-past?wait=true")).await.expect(StatusCode::OK);
    assert_eq!(proposed(&server, "").await.len(), 2);
    server.delete(&format!("/unknowns/{unknown}")).await.expect(StatusCode::NO_CONTENT);
    assert!(proposed(&server, "").await.is_empty());
    see(&server, "Tony_Blair", &[1]).await;
    let propose = format!(
        "INSERT INTO proposals (person_id, detection_id, score, model_version, refused, created_at) \
         SELECT MIN(people.id), MAX(detections.id), 0.5, 1, {}, 0 FROM people, detections",
        if Engine::of_this_run().is_some() { "FALSE" } else { "0" }
    );
    server.execute(&propose);
    assert_eq!(proposed(&server, "").await.len(), 1);
    // For a face that has become known meanwhile it is not accepted any more.
    server.execute("UPDATE detections SET person_id = (SELECT MIN(id) FROM people)");
    let judged =
        server.post_json("/proposals/accept", &json!({ "person_id": hugo })).await.expect(StatusCode::OK);
    assert_eq!(judged["proposals"], 0);
    assert!(proposed(&server, "").await.is_empty());
    server.execute(&propose);
    server.delete(&format!("/people/{hugo}")).await.expect(StatusCode::NO_CONTENT);
    assert!(server.lines("SELECT CONCAT('', id) AS line FROM proposals").is_empty());
    server.stop().await;
}

/// The files of kept pictures.
fn picture_files(server: &Server) -> usize {
    let folder = server.data.path().join("blobs/people/unknown");
    fs::read_dir(folder).map_or(0, |files| files.flatten().count())
}

#[tokio::test]
async fn naming_an_unknown_person_takes_copies_of_the_faces_out_of_the_cohort() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "Hugo_Chavez", &[1, 2, 3]).await;
    let red = see(&server, "Ariel_Sharon", &[1]).await;
    let unknown = group_of(&server, blue[0], 3).await;
    // A training removes the person who is enrolled: none runs here.
    server.execute("UPDATE leases SET holder = 'test', expires_at = 9000000000000000 WHERE name = 'trainer'");
    for (id, source, detection) in
        [("a", "camera", blue[0]), ("b", "camera", blue[2]), ("c", "camera", red[0])]
            .into_iter()
            .chain([("d", "uploaded", blue[1])])
    {
        server.execute(&format!(
            "INSERT INTO cohort (id, embedder, source, vector, created_at) SELECT '{id}', embedder, '{source}', embedding, \
             received_at FROM detections WHERE id = {detection}"
        ));
    }
    let left = "SELECT id AS line FROM cohort ORDER BY id";
    assert_eq!(server.lines(left), ["a", "b", "c", "d"]);
    let path = format!("/unknowns/{unknown}/name");
    server.post_json(&path, &json!({ "face_id": "Hugo" })).await.expect(StatusCode::OK);
    // Uploaded embeddings are no copies of detections.
    assert_eq!(server.lines(left), ["c", "d"]);
}

#[tokio::test]
async fn pictures_of_unknown_faces_are_kept_only_where_asked_for_and_enrolled_with_the_name() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    see(&server, "Hugo_Chavez", &[1]).await;
    assert_eq!(picture_files(&server), 0);
    let (mut config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    config.unknowns.unknown_pictures = true;
    let server = Server::run(config.clone(), data.clone()).await;
    let blue = see(&server, "Hugo_Chavez", &[2, 3]).await;
    let red = see(&server, "Ariel_Sharon", &[1, 2]).await;
    let unknown = group_of(&server, blue[0], 3).await;
    let other = group_of(&server, red[0], 2).await;
    assert_eq!(picture_files(&server), 4);
    let page = server.get(&format!("/unknowns/{unknown}")).await.expect(StatusCode::OK);
    let pictures: Vec<i64> = page["pictures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|picture| picture["detection_id"].as_i64().unwrap())
        .collect();
    assert_eq!(pictures, [blue[1], blue[0]], "{page}");
    let path = format!("/unknowns/{unknown}/pictures/{}", blue[0]);
    let response = server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
    assert_eq!(response.headers()["cache-control"], "no-store");
    let bytes = response.bytes().await.unwrap();
    assert_eq!(bytes.len() as u64, page["pictures"][1]["bytes"]);
    // A face, cut out.
    let picture = image::load_from_memory(&bytes).unwrap();
    assert!((40..250).contains(&picture.width()), "{}", picture.width());
    server.get(&format!("/unknowns/{other}/pictures/{}", blue[0])).await.expect_error(404, "no_picture");

    // Erased with the detection and with the group.
    server.delete(&format!("/database/detections/{}", red[1])).await.expect(StatusCode::NO_CONTENT);
    assert_eq!(picture_files(&server), 3);
    server.delete(&format!("/unknowns/{other}")).await.expect(StatusCode::NO_CONTENT);
    assert_eq!(picture_files(&server), 2);

    // Enrolled with the name: embeddings can be computed from them again.
    let name = format!("/unknowns/{unknown}/name");
    let named = server.post_json(&name, &json!({ "face_id": "Hugo" })).await.expect(StatusCode::OK);
    assert_eq!((&named["images"], &named["images_with_picture"]), (&3.into(), &2.into()), "{named}");
    all_jobs(&server).await;
    assert!(server.lines("SELECT blob_key AS line FROM unknown_pictures").is_empty());
    let images = server.get("/dataset/Hugo").await.expect(StatusCode::OK);
    let with_picture = images["images"].as_array().unwrap().iter().find(|image| image["bytes"] != 0).unwrap();
    let content = format!("/images/{}/content", with_picture["image_id"].as_str().unwrap());
    let content = server.client.get(format!("{}{content}", server.url)).send().await.unwrap();
    assert_eq!(content.status(), StatusCode::OK);
    server.execute("DELETE FROM embeddings");
    let computed = server.post("/model/generate-emb?wait=true").await.expect(StatusCode::OK);
    assert_eq!(computed["result"]["images"], 2, "{computed}");
    server.delete("/dataset/Hugo").await.expect(StatusCode::NO_CONTENT);
    assert_eq!(picture_files(&server), 0);

    // Too old at the next start; the detection stays.
    let old = see(&server, "Tony_Blair", &[1]).await;
    let new = see(&server, "Tony_Blair", &[2]).await;
    server.execute(&format!(
        "UPDATE unknown_pictures SET created_at = created_at - 262800000000 WHERE detection_id = {}",
        old[0]
    ));
    let data = server.data.clone();
    server.stop().await;
    let server = Server::run(config.clone(), data.clone()).await;
    until(|| picture_files(&server) == 1).await;
    let kept = server.lines("SELECT CONCAT('', detection_id) AS line FROM unknown_pictures");
    assert_eq!(kept, [new[0].to_string()]);
    detection_of(&server, old[0]).await;
    server.stop().await;
    // None stays where none are kept any more.
    config.unknowns.unknown_pictures = false;
    let server = Server::run(config, data).await;
    until(|| picture_files(&server) == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn pictures_of_a_track_go_as_soon_as_it_is_known() {
    let server = start!(|config| config.unknowns.unknown_pictures = true);
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let crops = |person: &str, photographs: &[u32]| {
        let mut form =
            Form::new().text("camera_id", "gate-1").text("location", "Lobby").text("run_id", "r-1");
        for number in photographs {
            form = form
                .text("track_id", "7")
                .text("key", format!("{person}-{number}"))
                .part("image", photograph(person, *number));
        }
        form
    };
    let store = "/face-recognition/store-results";
    // The tracker takes two people for one: the second one's crops come to outweigh the first.
    let first = server.send(store, crops("Ariel_Sharon", &[1])).await.expect(StatusCode::CREATED);
    assert_eq!((&first["stored"], &first["faces"][0]["decision"]), (&1.into(), &"unknown".into()));
    assert_eq!(picture_files(&server), 1);
    let later = server.send(store, crops("Hugo_Chavez", &[3, 4, 5])).await.expect(StatusCode::CREATED);
    assert_eq!((&later["stored"], &later["faces"][0]["decision"]), (&3.into(), &"known".into()), "{later}");
    assert!(server.lines("SELECT blob_key AS line FROM unknown_pictures").is_empty());
    assert_eq!(picture_files(&server), 0);
    server.stop().await;
}

#[tokio::test]
async fn an_upgrade_keeps_unknown_people_who_can_be_named_then() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "Hugo_Chavez", &[1, 2]).await;
    let unknown = group_of(&server, blue[0], 2).await;
    let rows = "SELECT CONCAT(id, ' ', camera_id, ' ', captured_at, ' ', LENGTH(embedding)) AS line FROM detections \
                ORDER BY id";
    let before = server.lines(rows);
    server.revert(MIGRATION);
    let (config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    let server = Server::run(config, data).await;
    assert_eq!(server.lines(rows), before);
    let path = format!("/unknowns/{unknown}/name");
    let named = server.post_json(&path, &json!({ "face_id": "Hugo" })).await.expect(StatusCode::OK);
    assert_eq!(named["detections"], 2);
    all_jobs(&server).await;
    server.stop().await;
}
