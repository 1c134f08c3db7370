//! The cohort: embeddings of strangers, from uploads and from the cameras.

use std::{io::Cursor, sync::Arc};

use facepipe_shared::hex;
use reqwest::{
    StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    deployment::{beside, said},
    helpers::{Engine, Server, file, found_below, landscape, photograph, photograph_path, start, until},
};

const MIGRATION: &str = "2025-01-16-000000_cohort";
const HOUR: i64 = 3_600_000_000;

fn form(parts: impl IntoIterator<Item = Part>) -> Form {
    parts.into_iter().fold(Form::new(), |form, part| form.part("image", part))
}

async fn add(server: &Server, parts: impl IntoIterator<Item = Part>) -> Value {
    server.put("/cohort", form(parts)).await.expect(StatusCode::OK)
}

async fn cohort(server: &Server) -> Value {
    server.get("/cohort").await.expect(StatusCode::OK)
}

/// Counts of added, known, without a face, unreadable pictures, and of all embeddings.
fn counts(answer: &Value) -> [i64; 5] {
    ["added", "already_there", "no_face", "unreadable", "total"].map(|name| answer[name].as_i64().unwrap())
}

/// A photograph in another size and quality.
fn copy_of(person: &str, number: u32) -> Part {
    let picture = image::open(photograph_path(person, number)).unwrap();
    let (width, height) = (picture.width() * 4 / 5, picture.height() * 4 / 5);
    let smaller = picture.resize_exact(width, height, image::imageops::FilterType::Triangle);
    let mut jpeg = Cursor::new(Vec::new());
    smaller.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
    file(jpeg.into_inner())
}

/// The sources of all embeddings, in the order of their times.
fn sources(server: &Server) -> Vec<String> {
    text(server, "source", "cohort ORDER BY created_at, id")
}

/// The embeddings of the cohort, hexadecimal.
fn vectors(server: &Server) -> Vec<String> {
    server.lines(match Engine::of_this_run() {
        Some(Engine::Postgres) => "SELECT encode(vector, 'hex') AS line FROM cohort ORDER BY created_at, id",
        _ => "SELECT LOWER(hex(vector)) AS line FROM cohort ORDER BY created_at, id",
    })
}

/// A column of a table as text.
fn text(server: &Server, column: &str, table: &str) -> Vec<String> {
    server.lines(&format!("SELECT CONCAT({column}, '') AS line FROM {table}"))
}

#[tokio::test]
async fn pictures_of_strangers_leave_embeddings_and_nothing_else() {
    let server = start!();
    let empty = cohort(&server).await;
    assert_eq!((&empty["total"], &empty["groups"]), (&json!(0), &json!([])));
    assert_eq!(empty["measurable_fpir"], Value::Null);
    assert_eq!((&empty["from_cameras"], &empty["max_from_cameras"]), (&json!(false), &json!(5000)));

    let unreadable = file(b"no picture".to_vec());
    let parts = [
        photograph("Tony_Blair", 1),
        landscape(),
        photograph("Hugo_Chavez", 1),
        unreadable,
        copy_of("Tony_Blair", 1),
    ];
    let answer = add(&server, parts).await;
    assert_eq!(counts(&answer), [2, 1, 1, 1, 2], "{answer}");
    assert_eq!(answer["results"], json!(["added", "refused", "added", "refused", "already_there"]));
    let errors = answer["errors"].as_array().unwrap();
    let told: Vec<_> = errors.iter().map(|error| (&error["image"], &error["error"]["code"])).collect();
    assert_eq!(told, [(&json!(1), &json!("no_face")), (&json!(3), &json!("image_unreadable"))]);
    // The same again, and a copy in another size, count once.
    let answer = add(&server, [photograph("Hugo_Chavez", 1), copy_of("Hugo_Chavez", 1)]).await;
    assert_eq!(counts(&answer), [0, 2, 0, 0, 2], "{answer}");
    assert_eq!(answer["embedder"], "mobilefacenet");

    let shown = cohort(&server).await;
    assert_eq!(shown["total"], 2);
    let group = &shown["groups"][0];
    assert_eq!(
        (&group["source"], &group["embeddings"], &group["used"]),
        (&json!("uploaded"), &json!(2), &json!(true))
    );
    // No picture, no digest of one, and an id that nothing else has.
    let picture = std::fs::read(photograph_path("Tony_Blair", 1)).unwrap();
    let digest = Sha256::digest(&picture);
    assert!(found_below(server.data.path(), &picture[1000..1100]).is_empty());
    assert!(server.traces_of(hex(&digest).as_bytes()).is_empty() && server.traces_of(&digest).is_empty());
    assert_eq!(server.get("/dataset").await.expect(StatusCode::OK)["meta"]["total"], 0);
    let ids = text(&server, "id", "cohort");
    assert!(ids.iter().all(|id| uuid::Uuid::parse_str(id).unwrap().get_version_num() == 4), "{ids:?}");
}

#[tokio::test]
async fn the_same_picture_sent_concurrently_counts_once() {
    let server = start!();
    let sent =
        futures_util::future::join_all((0..4).map(|_| add(&server, [photograph("Tony_Blair", 1)]))).await;
    let added: i64 = sent.iter().map(|answer| answer["added"].as_i64().unwrap()).sum();
    assert_eq!((added, vectors(&server).len()), (1, 1));
}

#[tokio::test]
async fn wrong_forms_and_queries_are_named() {
    let server = start!(|config| config.recognition.max_images = 2);
    server.put("/cohort", Form::new().text("other", "x")).await.expect_error(400, "image_missing");
    let message =
        server.put("/cohort", form((0..3).map(|_| landscape()))).await.expect_error(400, "too_many_images");
    assert!(message.contains('3') && message.contains('2'), "{message}");
    for (query, named) in [
        ("source=internet", "\"uploaded\" or \"camera\""),
        ("before=yesterday", "RFC 3339"),
        ("sources=camera", "sources"),
    ] {
        let message = server.delete(&format!("/cohort?{query}")).await.expect_error(400, "invalid_query");
        assert!(message.contains(named), "{message}");
    }
    server.post("/cohort").await.expect_error(405, "method_not_allowed");
}

#[tokio::test]
async fn the_cohort_is_erased_as_a_whole_or_by_source_embedder_and_time() {
    let server = start!();
    add(
        &server,
        ["Tony_Blair", "Hugo_Chavez", "Colin_Powell", "Ariel_Sharon"].map(|name| photograph(name, 1)),
    )
    .await;
    let ids = text(&server, "id", "cohort ORDER BY id");
    let set =
        |id: &str, change: &str| server.execute(&format!("UPDATE cohort SET {change} WHERE id = '{id}'"));
    set(&ids[0], "source = 'camera'");
    set(&ids[1], "embedder = 'dlib-resnet'");
    set(&ids[2], "created_at = 1714979289000000");

    // Another embedder's embeddings are kept, reported and not used.
    let shown = cohort(&server).await;
    assert_eq!((&shown["total"], &shown["measurable_fpir"]), (&json!(3), &json!(1.0)));
    assert_eq!((&shown["target_fpir"], &shown["large_enough"]), (&json!(0.01), &json!(false)));
    let groups: Vec<_> = shown["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            (
                group["embedder"].as_str().unwrap(),
                group["source"].as_str().unwrap(),
                group["used"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        groups,
        [
            ("dlib-resnet", "uploaded", false),
            ("mobilefacenet", "uploaded", true),
            ("mobilefacenet", "camera", true)
        ]
    );
    assert_eq!(shown["groups"][1]["oldest_at"], "2024-05-06T07:08:09Z");

    let vector = vectors(&server)[0].clone();
    for (query, left) in [
        ("?source=camera&before=2024-01-01T00:00:00Z", 4),
        ("?before=2024-05-06T07:08:10Z", 3),
        ("?source=camera", 2),
        ("?embedder=dlib-resnet", 1),
        ("", 0),
    ] {
        let before = vectors(&server).len();
        let answer = server.delete(&format!("/cohort{query}")).await.expect(StatusCode::OK);
        assert_eq!(answer, json!({ "erased": before - left, "left": left }), "{query}");
        assert_eq!(vectors(&server).len(), left);
    }
    let bytes = vector
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
    assert!(server.traces_of(&bytes.collect::<Vec<u8>>()).is_empty());
}

#[tokio::test]
async fn erasing_a_person_erases_embeddings_that_may_be_theirs() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    let parts = [photograph("Tony_Blair", 3), photograph("Hugo_Chavez", 1), photograph("Colin_Powell", 1)];
    assert_eq!(counts(&add(&server, parts).await), [3, 0, 0, 0, 3]);
    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);
    assert_eq!(cohort(&server).await["total"], 2);
    // Somebody with a similar face is not affected.
    assert_eq!(counts(&add(&server, [photograph("Hugo_Chavez", 1)]).await)[1], 1);
}

/// Stores photographs as detections of one camera, each with a number of its track.
async fn store(server: &Server, faces: &[(&str, u32, Option<i64>)]) {
    for (person, number, track) in faces {
        let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby");
        let form = match track {
            Some(track) => form.text("track_id", track.to_string()),
            None => form,
        };
        let form = form.part("image", photograph(person, *number));
        server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    }
}

/// Has all detections arrive an hour earlier, so that their tracks are over.
fn end_tracks(server: &Server) {
    server.execute(&format!(
        "UPDATE detections SET received_at = received_at - {HOUR}, captured_at = captured_at - {HOUR}"
    ));
}

/// Starts another server on the same data, and waits until its first pass is over.
async fn next_pass(server: Server) -> Server {
    server.execute("UPDATE task_runs SET finished_at = NULL WHERE task = 'cohort'");
    let server = server.restart().await;
    passed(&server).await;
    server
}

async fn passed(server: &Server) {
    let done = "SELECT task AS line FROM task_runs WHERE task = 'cohort' AND finished_at IS NOT NULL";
    until(|| server.lines(done).len() == 1).await;
}

#[tokio::test]
async fn unknown_faces_of_the_cameras_fill_the_cohort_where_that_is_switched_on() {
    let server = start!(|config| config.retention.detections_max_age_days = Some(30));
    store(&server, &[("Tony_Blair", 1, Some(1)), ("Tony_Blair", 2, Some(1)), ("Hugo_Chavez", 1, Some(2))])
        .await;
    end_tracks(&server);
    let server = next_pass(server).await;
    assert_eq!(cohort(&server).await["total"], 0, "switched off");

    let config = server.config.clone().with(|config| config.cohort.cohort_from_cameras = true);
    let data = Arc::clone(&server.data);
    server.execute("UPDATE task_runs SET finished_at = NULL WHERE task = 'cohort'");
    server.stop().await;
    let server = Server::run(config, data).await;
    passed(&server).await;
    let shown = cohort(&server).await;
    assert_eq!((&shown["total"], &shown["from_cameras"]), (&json!(2), &json!(true)), "one of each track");
    assert_eq!(shown["camera_max_age_days"], 30);
    assert_eq!(sources(&server), ["camera", "camera"]);

    // The next pass: more of a track that was considered, one that may go on, somebody who is in the cohort, and a stranger.
    store(&server, &[("Ariel_Sharon", 1, Some(2)), ("Hugo_Chavez", 1, Some(3)), ("Colin_Powell", 1, None)])
        .await;
    server.execute(&format!(
        "UPDATE detections SET received_at = received_at - {HOUR}, captured_at = captured_at - {HOUR} + 60000000 \
         WHERE id > 3"
    ));
    store(&server, &[("Gerhard_Schroeder", 1, Some(4))]).await;
    let server = next_pass(server).await;
    assert_eq!(cohort(&server).await["total"], 3, "{:?}", sources(&server));

    // Erasing a detection erases the copy of its embedding.
    let colin = text(&server, "id", "detections WHERE track_id IS NULL");
    let before = vectors(&server);
    server.delete(&format!("/database/detections/{}", colin[0])).await.expect(StatusCode::NO_CONTENT);
    let after = vectors(&server);
    assert!(after.len() == 2 && after.iter().all(|vector| before.contains(vector)));

    // Who is enrolled leaves the cohort with the training.
    server.enrol("Tony_Blair", &[1, 2, 4]).await;
    server.train().await;
    assert_eq!(cohort(&server).await["total"], 1);

    // Retention reaches embeddings from cameras alone.
    add(&server, [photograph("Donald_Rumsfeld", 1)]).await;
    server.execute("UPDATE cohort SET created_at = 0");
    let told = said(&beside(&server, &["retain", "--detections-max-age-days", "30"]).await);
    assert!(told.contains("Deleted 1 embeddings of the cohort"), "{told}");
    assert_eq!(sources(&server), ["uploaded"]);
}

#[tokio::test]
async fn people_who_are_enrolled_are_not_added_and_the_oldest_are_replaced() {
    let server = start!(|config| {
        config.cohort.cohort_from_cameras = true;
        config.cohort.cohort_max = 2;
    });
    // No model: everybody is unknown, and yet nobody who is enrolled is a stranger.
    server.enrol("Tony_Blair", &[1, 2]).await;
    let faces = ["Hugo_Chavez", "Colin_Powell", "Ariel_Sharon", "Tony_Blair"].map(|person| (person, 1, None));
    store(&server, &faces).await;
    end_tracks(&server);
    let server = next_pass(server).await;
    assert_eq!(cohort(&server).await["total"], 2);
    let detected = server.lines(match Engine::of_this_run() {
        Some(Engine::Postgres) => "SELECT encode(embedding, 'hex') AS line FROM detections ORDER BY id",
        _ => "SELECT LOWER(hex(embedding)) AS line FROM detections ORDER BY id",
    });
    assert_eq!(vectors(&server), detected[1..3], "the two newest strangers");
}

#[tokio::test]
async fn an_upgrade_keeps_everything_and_adds_an_empty_cohort() {
    // The groups of unknown faces came later: going back takes them away.
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    store(&server, &[("Hugo_Chavez", 1, Some(1))]).await;
    let before = (server.get("/dataset").await.body, server.get("/database/detections").await.body);
    server.revert(MIGRATION);
    let server = server.restart().await;
    assert_eq!((server.get("/dataset").await.body, server.get("/database/detections").await.body), before);
    assert_eq!(cohort(&server).await["total"], 0);
    assert_eq!(counts(&add(&server, [photograph("Hugo_Chavez", 1)]).await), [1, 0, 0, 0, 1]);
}
