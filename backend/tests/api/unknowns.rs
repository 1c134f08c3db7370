//! Unknown people: their faces are grouped as they come, and the groups can be corrected, ignored and erased.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::helpers::{ApiResponse, Engine, Server, photograph, start, until};

const MIGRATION: &str = "2025-01-19-000000_unknowns";

/// Stores the faces of photographs, one upload each, in this order. Returns the ids of their detections.
pub async fn see(server: &Server, camera: &str, photographs: &[(&str, u32)]) -> Vec<i64> {
    let mut ids = Vec::new();
    for (person, number) in photographs {
        see_in_track(server, camera, (person, *number), None, None).await;
        ids.push(newest(server).await);
    }
    ids
}

async fn see_in_track(
    server: &Server,
    camera: &str,
    (person, number): (&str, u32),
    track: Option<i64>,
    captured_at: Option<&str>,
) {
    let mut form = Form::new().text("camera_id", camera.to_owned()).text("location", "Lobby");
    if let Some(track) = track {
        form = form.text("track_id", track.to_string());
    }
    if let Some(time) = captured_at {
        form = form.text("captured_at", time.to_owned());
    }
    let form = form.part("image", photograph(person, number));
    let answer = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!(answer["stored"], 1, "{answer}");
}

/// The detection that arrived last.
async fn newest(server: &Server) -> i64 {
    let lines = server.lines("SELECT CAST(MAX(id) AS CHAR(20)) AS line FROM detections");
    lines[0].trim().parse().unwrap()
}

/// The groups, once so many faces are in groups, whichever they are.
async fn groups(server: &Server, faces: i64) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let list = server.get("/unknowns?ignored=all&min_faces=1").await.expect(StatusCode::OK);
        let unknowns = list["unknowns"].as_array().unwrap().clone();
        let grouped: i64 = unknowns.iter().map(|unknown| unknown["faces"].as_i64().unwrap()).sum();
        if grouped == faces {
            return unknowns;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{list}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The id of the group of a detection.
async fn group_of(server: &Server, detection: i64) -> Option<String> {
    let row = server.get(&format!("/database/detections/{detection}")).await.expect(StatusCode::OK);
    row["unknown_id"].as_str().map(str::to_owned)
}

async fn members(server: &Server, unknown: &str) -> BTreeSet<i64> {
    let page = server.get(&format!("/unknowns/{unknown}")).await.expect(StatusCode::OK);
    page["detections"].as_array().unwrap().iter().map(|row| row["id"].as_i64().unwrap()).collect()
}

/// The vectors of a query, whose text has the name of the column in braces.
fn vectors(server: &Server, query: &str, column: &str) -> Vec<Vec<f32>> {
    let hex = match Engine::of_this_run() {
        Some(Engine::Postgres) => format!("encode({column}, 'hex')"),
        _ => format!("hex({column})"),
    };
    let lines = server.lines(&query.replace(&format!("{{{column}}}"), &hex));
    let byte = |two: &[u8]| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap();
    let vector = |line: &String| {
        let bytes: Vec<u8> = line.as_bytes().chunks(2).map(byte).collect();
        bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    };
    lines.iter().map(vector).collect()
}

async fn put_back(server: &Server, unknown: &str) -> ApiResponse {
    server.call(Method::DELETE, &format!("/unknowns/{unknown}/ignore")).await
}

async fn regroup(server: &Server) -> Value {
    let job = server.post("/unknowns/recluster?wait=true").await.expect(StatusCode::OK);
    assert_eq!((&job["kind"], &job["status"]), (&"recluster-unknowns".into(), &"done".into()), "{job}");
    job["result"].clone()
}

#[tokio::test]
async fn unknown_faces_are_grouped_as_they_come_and_listed() {
    let server = start!(|config| {
        config.unknowns.group_unknowns = true;
        config.listener.metrics_listen = Some("127.0.0.1:0".into());
    });
    // Somebody who is enrolled is in no group.
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let known = see(&server, "gate-1", &[("Tony_Blair", 3)]).await;
    let blue = see(&server, "gate-1", &[("Hugo_Chavez", 1), ("Hugo_Chavez", 2), ("Hugo_Chavez", 3)]).await;
    let red = see(&server, "gate-2", &[("Ariel_Sharon", 1), ("Ariel_Sharon", 2)]).await;
    let unknowns = groups(&server, 5).await;
    assert_eq!(unknowns.len(), 2, "{unknowns:?}");
    assert_eq!(group_of(&server, known[0]).await, None);
    let (first, second) =
        (group_of(&server, blue[0]).await.unwrap(), group_of(&server, red[0]).await.unwrap());
    assert_eq!(members(&server, &first).await, blue.iter().copied().collect());
    assert_eq!(members(&server, &second).await, red.iter().copied().collect());
    // The most recent first.
    assert_eq!(unknowns[0]["unknown_id"], second);
    let of_first = &unknowns[1];
    assert_eq!(
        (&of_first["faces"], &of_first["tracks"], &of_first["ignored"], &of_first["pinned"]),
        (&3.into(), &3.into(), &false.into(), &false.into())
    );
    assert_eq!(of_first["cameras"][0]["camera_id"], "gate-1");
    assert_eq!(of_first["cameras"][0]["faces"], 3);
    assert!(blue.contains(&of_first["representative"].as_i64().unwrap()));

    let listed = async |query: &str| -> Vec<String> {
        let list = server.get(&format!("/unknowns?{query}")).await.expect(StatusCode::OK);
        let ids = list["unknowns"].as_array().unwrap().iter();
        ids.map(|unknown| unknown["unknown_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed("sort=faces").await, [first.clone(), second.clone()]);
    assert_eq!(listed("min_faces=3").await, std::slice::from_ref(&first));
    assert_eq!(listed("camera=gate-2").await, std::slice::from_ref(&second));
    assert_eq!(listed("camera=gate-3").await, [""; 0]);
    assert_eq!(listed("from=2999-01-01T00:00:00Z").await, [""; 0]);
    assert_eq!(listed("to=2999-01-01T00:00:00Z").await.len(), 2);
    let page = server.get("/unknowns?sort=faces&limit=1").await.expect(StatusCode::OK);
    let cursor = page["meta"]["next_cursor"].as_str().unwrap();
    assert_eq!(listed(&format!("sort=faces&limit=1&cursor={cursor}")).await, std::slice::from_ref(&second));
    server.get(&format!("/unknowns?limit=1&cursor={cursor}")).await.expect_error(400, "invalid_cursor");
    for (query, named) in [
        ("sort=name", "sort is \"name\""),
        ("ignored=perhaps", "ignored is \"perhaps\""),
        ("min_faces=0", "min_faces is \"0\""),
        ("min_faces=x", "min_faces is \"x\""),
    ] {
        let message = server.get(&format!("/unknowns?{query}")).await.expect_error(400, "invalid_query");
        assert!(message.contains(named), "{message}");
    }
    let page = server.get(&format!("/unknowns/{first}?limit=2")).await.expect(StatusCode::OK);
    assert_eq!(page["detections"].as_array().unwrap().len(), 2);
    let cursor = page["meta"]["next_cursor"].as_str().unwrap();
    let rest = server.get(&format!("/unknowns/{first}?limit=2&cursor={cursor}")).await.expect(StatusCode::OK);
    assert_eq!(rest["detections"].as_array().unwrap().len(), 1);
    for wrong in ["7", "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c"] {
        server.get(&format!("/unknowns/{wrong}")).await.expect_error(404, "unknown_not_found");
        server.delete(&format!("/unknowns/{wrong}")).await.expect_error(404, "unknown_not_found");
    }

    let url = server.metrics.clone().unwrap();
    let metrics = server.client.get(url).send().await.unwrap().text().await.unwrap();
    for line in [
        "facepipe_unknowns{ignored=\"false\"} 2",
        "facepipe_unknowns{ignored=\"true\"} 0",
        "facepipe_ungrouped_detections 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_track_counts_once_and_takes_its_later_faces() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let time = |second: u32| format!("2024-05-06T07:08:{second:02}Z");
    for (number, second) in [(1, 10), (2, 12)] {
        see_in_track(&server, "gate-1", ("Hugo_Chavez", number), Some(7), Some(&time(second))).await;
    }
    let first = groups(&server, 2).await;
    assert_eq!((first.len(), &first[0]["tracks"]), (1, &1.into()), "{first:?}");
    // Grouped, then continued.
    see_in_track(&server, "gate-1", ("Hugo_Chavez", 3), Some(7), Some(&time(20))).await;
    let grown = groups(&server, 3).await;
    assert_eq!((grown.len(), &grown[0]["tracks"]), (1, &1.into()), "{grown:?}");
    assert_eq!(grown[0]["unknown_id"], first[0]["unknown_id"]);
    assert_eq!((&grown[0]["first_seen"], &grown[0]["last_seen"]), (&time(10).into(), &time(20).into()));
    // The same number on another camera, and on this one an hour later, is another track.
    see_in_track(&server, "gate-2", ("Hugo_Chavez", 4), Some(7), Some(&time(21))).await;
    see_in_track(&server, "gate-1", ("Hugo_Chavez", 5), Some(7), Some("2024-05-06T08:08:10Z")).await;
    let grown = groups(&server, 5).await;
    assert_eq!((grown.len(), &grown[0]["tracks"]), (1, &3.into()), "{grown:?}");
    // What is computed from all of it at once is the same.
    let mean = "SELECT {mean} AS line FROM unknowns";
    let before = vectors(&server, mean, "mean");
    server.execute("UPDATE unknowns SET changed = TRUE");
    let changed = "SELECT CONCAT('', COUNT(*)) AS line FROM unknowns WHERE changed";
    until(|| server.lines(changed) == ["0"]).await;
    let after = vectors(&server, mean, "mean");
    assert!(before[0].len() == 128 && before[0].iter().zip(&after[0]).all(|(a, b)| (a - b).abs() < 1e-5));
    server.stop().await;
}

#[tokio::test]
async fn groups_are_merged_split_and_ignored_for_good() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "gate-1", &[("Hugo_Chavez", 1), ("Hugo_Chavez", 2)]).await;
    // The same picture each time.
    let red = see(&server, "gate-1", &[("Tony_Blair", 1), ("Tony_Blair", 1)]).await;
    groups(&server, 4).await;
    let (first, second) =
        (group_of(&server, blue[0]).await.unwrap(), group_of(&server, red[0]).await.unwrap());
    assert_ne!(first, second);

    // Merged: the id of the other one leads to it.
    let merge = format!("/unknowns/{first}/merge");
    let merged = server.post_json(&merge, &json!({ "unknown_ids": [second] })).await.expect(StatusCode::OK);
    assert_eq!((&merged["faces"], &merged["pinned"]), (&4.into(), &true.into()));
    let led = server.get(&format!("/unknowns/{second}")).await.expect(StatusCode::OK);
    assert_eq!(led["unknown"]["unknown_id"], first);
    assert_eq!(groups(&server, 4).await.len(), 1);
    for (ids, named) in [
        (json!([]), "has 0 entries"),
        (json!(["x"]), "\"x\", which is no id"),
        (json!(["018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c"]), "no group's id"),
        (json!([second]), "this very group"),
    ] {
        let answer = server.post_json(&merge, &json!({ "unknown_ids": ids })).await;
        let message = answer.expect_error(400, "invalid_field");
        assert!(message.contains(named) && message.contains("unknown_ids"), "{message}");
    }
    // What was merged by hand stays together, though the faces do not resemble each other.
    let result = regroup(&server).await;
    assert_eq!((&result["unknowns"], &result["detections_moved"]), (&1.into(), &0.into()), "{result}");

    // Split: the two stay apart.
    let split = format!("/unknowns/{first}/split");
    for (detections, named) in [
        (json!([]), "has 0 entries"),
        (json!([999_999]), "999999, which is no detection"),
        (json!([blue[0], blue[1], red[0], red[1]]), "all detections"),
    ] {
        let answer = server.post_json(&split, &json!({ "detections": detections })).await;
        let message = answer.expect_error(400, "invalid_field");
        assert!(message.contains(named) && message.contains("detections"), "{message}");
    }
    let parts = server
        .post_json(&split, &json!({ "detections": [red[0], red[1]] }))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!((&parts["remaining"]["unknown_id"], &parts["new"]["faces"]), (&first.into(), &2.into()));
    let third = parts["new"]["unknown_id"].as_str().unwrap().to_owned();
    // Even two copies of one picture.
    let split = format!("/unknowns/{third}/split");
    let parts =
        server.post_json(&split, &json!({ "detections": [red[1]] })).await.expect(StatusCode::CREATED);
    let fourth = parts["new"]["unknown_id"].as_str().unwrap().to_owned();
    regroup(&server).await;
    let more = see(&server, "gate-1", &[("Tony_Blair", 1)]).await;
    let unknowns = groups(&server, 5).await;
    assert_eq!(unknowns.len(), 3, "{unknowns:?}");
    let seen_again = group_of(&server, more[0]).await.unwrap();
    assert!([&third, &fourth].contains(&&seen_again));

    // Ignored: also when seen again.
    let ignored = server.post(&format!("/unknowns/{seen_again}/ignore")).await.expect(StatusCode::OK);
    assert_eq!(ignored["ignored"], true);
    let listed = async |query: &str| -> usize {
        let list = server.get(&format!("/unknowns{query}")).await.expect(StatusCode::OK);
        list["unknowns"].as_array().unwrap().len()
    };
    assert_eq!((listed("").await, listed("?ignored=true").await, listed("?ignored=all").await), (2, 1, 3));
    let again = see(&server, "gate-1", &[("Tony_Blair", 1), ("Tony_Blair", 1)]).await;
    groups(&server, 7).await;
    regroup(&server).await;
    let of_again: BTreeSet<String> =
        [group_of(&server, again[0]).await.unwrap(), group_of(&server, again[1]).await.unwrap()].into();
    let flags = groups(&server, 7).await;
    let flag =
        |id: &String| flags.iter().find(|unknown| unknown["unknown_id"] == **id).unwrap()["ignored"].clone();
    assert_eq!(flag(&seen_again), true);
    assert!(of_again.iter().all(|id| [&third, &fourth].contains(&id)), "{of_again:?}");
    assert_eq!(put_back(&server, &seen_again).await.expect(StatusCode::OK)["ignored"], false);
    assert_eq!(listed("?ignored=true").await, 0);
    server.stop().await;
}

#[tokio::test]
async fn an_erased_group_leaves_nothing_and_an_older_backup_does_not_bring_it_back() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "gate-1", &[("Hugo_Chavez", 1), ("Hugo_Chavez", 2)]).await;
    see(&server, "gate-1", &[("Ariel_Sharon", 1)]).await;
    groups(&server, 3).await;
    let unknown = group_of(&server, blue[0]).await.unwrap();
    let embeddings = vectors(&server, "SELECT {embedding} AS line FROM detections ORDER BY id", "embedding");
    let bytes = |vector: &[f32]| -> Vec<u8> { vector.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let (erased, kept) = (bytes(&embeddings[0]), bytes(&embeddings[2]));
    assert!(!server.traces_of(&erased).is_empty());

    let (config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    let (file, backup) = (data.path().join("facepipe.db"), data.path().join("older.db"));
    let embedded = Engine::of_this_run().is_none();
    if embedded {
        fs::copy(&file, &backup).unwrap();
    }
    let server = Server::run(config.clone(), data.clone()).await;
    assert_eq!(server.delete(&format!("/unknowns/{unknown}")).await.status, StatusCode::NO_CONTENT);
    server.get(&format!("/unknowns/{unknown}")).await.expect_error(404, "unknown_not_found");
    let row = server.get(&format!("/database/detections/{}", blue[0])).await.expect(StatusCode::OK);
    assert!(row["unknown_id"].is_null(), "{row}");
    let left: Vec<_> = server.traces_of(&erased).into_iter().filter(|path| *path != backup).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!server.traces_of(&kept).is_empty());
    // Seen again, the person is a new one.
    let again = see(&server, "gate-1", &[("Hugo_Chavez", 3)]).await;
    groups(&server, 2).await;
    assert_ne!(group_of(&server, again[0]).await.unwrap(), unknown);
    server.stop().await;
    if embedded {
        fs::rename(&backup, &file).unwrap();
        let server = Server::run(config, data).await;
        server.get(&format!("/unknowns/{unknown}")).await.expect_error(404, "unknown_not_found");
        assert!(server.traces_of(&erased).is_empty());
        assert_eq!(groups(&server, 1).await.len(), 1);
        server.stop().await;
    }
}

#[tokio::test]
async fn an_older_backup_does_not_bring_back_the_group_that_became_an_erased_person() {
    if Engine::of_this_run().is_some() {
        return;
    }
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "gate-1", &[("Hugo_Chavez", 1)]).await;
    groups(&server, 1).await;
    let unknown = group_of(&server, blue[0]).await.unwrap();
    let (config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    let (file, backup) = (data.path().join("facepipe.db"), data.path().join("older.db"));
    fs::copy(&file, &backup).unwrap();
    let server = Server::run(config.clone(), data.clone()).await;
    let path = format!("/unknowns/{unknown}/name");
    server.post_json(&path, &json!({ "face_id": "Hugo" })).await.expect(StatusCode::OK);
    // The training locks the dataset.
    until(|| server.lines("SELECT status AS line FROM jobs").iter().all(|status| status == "done")).await;
    assert_eq!(server.delete("/dataset/Hugo").await.status, StatusCode::NO_CONTENT);
    server.stop().await;
    fs::rename(&backup, &file).unwrap();
    let server = Server::run(config, data).await;
    server.get(&format!("/unknowns/{unknown}")).await.expect_error(404, "unknown_not_found");
    let kept = "SELECT CONCAT(COUNT(*), '') AS line FROM detections WHERE embedding IS NOT NULL";
    assert_eq!(server.lines(kept), ["0"]);
    server.stop().await;
}

#[tokio::test]
async fn groups_follow_detections_that_are_erased_or_too_old() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "gate-1", &[("Hugo_Chavez", 1), ("Hugo_Chavez", 2)]).await;
    let red = see(&server, "gate-1", &[("Ariel_Sharon", 1)]).await;
    groups(&server, 3).await;
    let (first, second) =
        (group_of(&server, blue[0]).await.unwrap(), group_of(&server, red[0]).await.unwrap());
    server.delete(&format!("/database/detections/{}", blue[0])).await.expect(StatusCode::NO_CONTENT);
    let left = server.get(&format!("/unknowns/{first}")).await.expect(StatusCode::OK);
    assert_eq!((&left["unknown"]["faces"], &left["unknown"]["representative"]), (&1.into(), &blue[1].into()));
    // The group's mean is the face that is left, whatever was there before.
    let mean =
        &vectors(&server, "SELECT {mean} AS line FROM unknowns WHERE faces = 1 ORDER BY id", "mean")[0];
    let face = &vectors(
        &server,
        &format!("SELECT {{embedding}} AS line FROM detections WHERE id = {}", blue[1]),
        "embedding",
    )[0];
    assert!(mean.iter().zip(face).all(|(a, b)| (a - b).abs() < 1e-5));
    server.delete(&format!("/database/detections/{}", red[0])).await.expect(StatusCode::NO_CONTENT);
    server.get(&format!("/unknowns/{second}")).await.expect_error(404, "unknown_not_found");
    // By age, at the start of a server that keeps detections for a day.
    server.execute("UPDATE detections SET captured_at = captured_at - 172800000000");
    let (mut config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    config.retention.detections_max_age_days = Some(1);
    let server = Server::run(config, data).await;
    groups(&server, 0).await;
    server.get(&format!("/unknowns/{first}")).await.expect_error(404, "unknown_not_found");
    server.stop().await;
}

#[tokio::test]
async fn deleted_faces_leave_their_groups_also_where_grouping_is_switched_off() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let blue = see(&server, "gate-1", &[("Hugo_Chavez", 1), ("Hugo_Chavez", 2)]).await;
    let red = see(&server, "gate-1", &[("Ariel_Sharon", 1)]).await;
    groups(&server, 3).await;
    server.execute(&format!(
        "UPDATE detections SET captured_at = captured_at - 172800000000 WHERE id IN ({}, {})",
        blue[0], red[0]
    ));
    let (mut config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    config.unknowns.group_unknowns = false;
    config.retention.detections_max_age_days = Some(1);
    let server = Server::run(config.clone(), data.clone()).await;
    let left = "SELECT CONCAT(faces, ' ', representative) AS line FROM unknowns";
    until(|| server.lines(left) == [format!("1 {}", blue[1])]).await;
    let mean = vectors(&server, "SELECT {mean} AS line FROM unknowns", "mean");
    let face = vectors(&server, "SELECT {embedding} AS line FROM detections", "embedding");
    assert!(mean[0].iter().zip(&face[0]).all(|(a, b)| (a - b).abs() < 1e-5));
    // Without a maximum age as well: a detection may have been erased.
    server.execute("UPDATE unknowns SET faces = 7, changed = TRUE");
    server.stop().await;
    config.retention.detections_max_age_days = None;
    let server = Server::run(config, data).await;
    until(|| server.lines(left) == [format!("1 {}", blue[1])]).await;
    server.stop().await;
}

#[tokio::test]
async fn an_upgrade_keeps_all_detections_and_groups_those_that_are_there() {
    let server = start!();
    let ids = see(&server, "gate-1", &[("Hugo_Chavez", 1), ("Ariel_Sharon", 1), ("Hugo_Chavez", 2)]).await;
    let rows = "SELECT CONCAT(id, ' ', camera_id, ' ', captured_at, ' ', LENGTH(embedding)) AS line FROM detections \
                ORDER BY id";
    let before = server.lines(rows);
    assert!(server.get("/unknowns").await.expect(StatusCode::OK)["unknowns"].as_array().unwrap().is_empty());
    server.revert(MIGRATION);
    let (mut config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    config.unknowns.group_unknowns = true;
    let server = Server::run(config, data).await;
    let unknowns = groups(&server, 3).await;
    assert_eq!(unknowns.len(), 2, "{unknowns:?}");
    assert_eq!(server.lines(rows), before);
    assert_eq!(group_of(&server, ids[0]).await, group_of(&server, ids[2]).await);
    server.stop().await;
}

#[tokio::test]
async fn replicas_group_each_face_once() {
    if Engine::of_this_run().is_none() {
        // SQLite has one server.
        return;
    }
    let server = start!(|config| config.unknowns.group_unknowns = true);
    let replica = server.replica().await;
    for number in 1..=5 {
        see(&server, "gate-1", &[("Hugo_Chavez", number)]).await;
        see(&replica, "gate-2", &[("Tony_Blair", number)]).await;
    }
    let unknowns = groups(&server, 10).await;
    let faces: BTreeMap<String, i64> = unknowns
        .iter()
        .map(|unknown| (unknown["unknown_id"].to_string(), unknown["faces"].as_i64().unwrap()))
        .collect();
    assert_eq!(faces.values().sum::<i64>(), 10, "{faces:?}");
    let held = server.lines(
        "SELECT CONCAT(COUNT(*), ' ', COUNT(DISTINCT unknown_id)) AS line FROM detections WHERE unknown_id IS NOT NULL",
    );
    assert_eq!(held, [format!("10 {}", faces.len())]);
    regroup(&replica).await;
    replica.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn all_faces_are_grouped_again_once_a_day() {
    let server = start!(|config| config.unknowns.group_unknowns = true);
    see(&server, "gate-1", &[("Hugo_Chavez", 1), ("Hugo_Chavez", 2)]).await;
    groups(&server, 2).await;
    let jobs = async |server: &Server| -> Vec<Value> {
        let list = server.get("/jobs").await.expect(StatusCode::OK);
        let jobs = list["jobs"].as_array().unwrap().iter();
        jobs.filter(|job| job["kind"] == "recluster-unknowns").cloned().collect()
    };
    assert!(jobs(&server).await.is_empty());
    // The last time was long ago.
    server.execute("UPDATE task_runs SET finished_at = 1 WHERE task = 'recluster'");
    let server = server.restart().await;
    let begun = Instant::now();
    while !jobs(&server).await.iter().any(|job| job["status"] == "done") {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Not again today.
    let server = server.restart().await;
    see(&server, "gate-1", &[("Hugo_Chavez", 3)]).await;
    groups(&server, 3).await;
    let jobs = jobs(&server).await;
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    assert_eq!(jobs[0]["result"]["unknowns"], 1);
    server.stop().await;
}
