//! Large galleries: answers, records and queries do not grow with the number of enrolled people.

use std::{fmt::Write as _, ops::Range, sync::Mutex};

use diesel::connection::{Instrumentation, InstrumentationEvent, set_default_instrumentation};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::helpers::{Engine, Server, photograph, start};

const GET: &str = "/face-recognition/get-results";
const STORE: &str = "/face-recognition/store-results";

/// The row id of the first synthetic person.
const FIRST_ROW: usize = 1_000_000;

/// Enrols people with an embedding each, of no picture.
fn add_people(server: &Server, numbers: Range<usize>) {
    let (mut people, mut images, mut embeddings) = (Vec::new(), Vec::new(), Vec::new());
    for number in numbers {
        let mut random = StdRng::seed_from_u64(number.try_into().unwrap());
        let vector: Vec<f32> = (0..128).map(|_| random.random_range(-1.0..1.0)).collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut hex = String::new();
        vector
            .iter()
            .flat_map(|x| (x / length).to_le_bytes())
            .for_each(|byte| write!(hex, "{byte:02x}").unwrap());
        let vector = match Engine::of_this_run() {
            Some(Engine::Postgres) => format!("decode('{hex}', 'hex')"),
            _ => format!("X'{hex}'"),
        };
        let (row, id) = (FIRST_ROW + number, uuid::Uuid::new_v4());
        people.push(format!("({row}, 'Person {number:05}', 1, 'person {number:05}', '{id}')"));
        images.push(format!("('image-{number}', {row}, 'people/{row}/image-{number}', 1000, 1)"));
        embeddings.push(format!("('image-{number}', 'mobilefacenet', {vector}, 1)"));
    }
    server.execute(&format!(
        "INSERT INTO people (id, face_id, created_at, face_key, public_id) VALUES {};
         INSERT INTO images (id, person_id, blob_key, bytes, created_at) VALUES {};
         INSERT INTO embeddings (image_id, embedder, vector, created_at) VALUES {};",
        people.join(","),
        images.join(","),
        embeddings.join(",")
    ));
}

/// The name of the database whose queries are recorded; empty for none.
static WATCHED: Mutex<String> = Mutex::new(String::new());

/// Queries of the table of people in that database.
static QUERIES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Records a connection's queries of the table of people.
#[derive(Default)]
struct QueryLog {
    database: String,
}

impl Instrumentation for QueryLog {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartEstablishConnection { url, .. } => url.clone_into(&mut self.database),
            InstrumentationEvent::StartQuery { query, .. } => {
                // Tests that run in parallel have their own databases: texts of their queries are not needed.
                let watched = WATCHED.lock().unwrap();
                if watched.is_empty() || !self.database.contains(&*watched) {
                    return;
                }
                let query = query.to_string().replace(['`', '"'], "");
                if ["FROM people", "JOIN people"].iter().any(|part| query.contains(part)) {
                    QUERIES.lock().unwrap().push(query);
                }
            }
            _ => (),
        }
    }
}

/// Has all connections from now on record their queries.
fn record_queries() {
    set_default_instrumentation(|| Some(Box::new(QueryLog::default()))).unwrap();
}

/// Records the queries of this server's database.
fn watch(server: &Server) {
    let address = server.config.database_url();
    let name = address.rsplit_once("//").unwrap().1;
    let name = if Engine::of_this_run().is_some() { name.rsplit_once('/').unwrap().1 } else { name };
    name.clone_into(&mut WATCHED.lock().unwrap());
}

/// The queries of the table of people in the watched database since the last call.
fn take_queries() -> Vec<String> {
    QUERIES.lock().unwrap().drain(..).collect()
}

fn upload(key: &str) -> Form {
    let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby").text("key", key.to_owned());
    form.part("image", photograph("Tony_Blair", 3))
}

fn picture() -> Form {
    Form::new().part("image", photograph("Tony_Blair", 3))
}

fn predictions(face: &Value) -> Vec<(String, f64)> {
    let all = face["all_predictions"].as_array().unwrap().iter();
    all.map(|one| (one["label"].as_str().unwrap().to_owned(), one["confidence"].as_f64().unwrap())).collect()
}

#[tokio::test]
async fn an_answer_has_the_top_k_alone_and_reads_no_other_names() {
    record_queries();
    let server = start!(|config| config.recognition.top_k = 7);
    watch(&server);
    server.enrol("Tony_Blair", &[1, 2]).await;
    let mut measured = Vec::new();
    for more in [0..9, 9..300] {
        add_people(&server, more);
        server.train().await;
        take_queries();
        let answer = server.send(GET, picture().text("top_k", "5")).await.expect(StatusCode::OK);
        let got = take_queries();
        let stored = server.send(STORE, upload(&format!("key-{}", measured.len()))).await;
        stored.expect(StatusCode::CREATED);
        let queries = [got, take_queries()];

        let face = &answer["faces"][0];
        let named = predictions(face);
        assert_eq!((named.len(), &*named[0].0), (5, "Tony_Blair"), "{face}");
        assert!(named.is_sorted_by(|one, other| one.1 >= other.1), "{face}");
        assert_eq!(
            (&face["decision"], &face["top_prediction"]),
            (&"known".into(), &face["all_predictions"][0])
        );
        for (queries, people) in queries.iter().zip([5, 7]) {
            // One, of as many people as the answer names.
            assert_eq!(queries.len(), 1, "{queries:?}");
            let binds = queries[0].split_once("binds").unwrap().1;
            assert_eq!(binds.matches(',').count(), people - 1, "{queries:?}");
        }
        measured.push(answer.to_string().len());
    }
    let [small, large] = measured[..] else { panic!("two galleries") };
    assert!(large < 2048 && large.abs_diff(small) < 100, "{measured:?} bytes");

    for (top_k, listed) in [("1", 1), ("100", 100), ("", 7)] {
        let answer = server.send(GET, picture().text("top_k", top_k)).await.expect(StatusCode::OK);
        assert_eq!(predictions(&answer["faces"][0]).len(), listed);
    }
    let images = || picture().part("image", photograph("Hugo_Chavez", 1));
    let both = server.send(GET, images().text("top_k", "3")).await.expect(StatusCode::OK);
    let listed: Vec<usize> = (0..2).map(|face| predictions(&both["faces"][face]).len()).collect();
    assert_eq!(listed, [3, 3]);
    // Probabilities are those among everybody: a stranger's are not made to sum to 1.
    let listed: f64 = predictions(&both["faces"][1]).iter().map(|(_, probability)| probability).sum();
    assert!(listed < 0.9, "{both}");

    for (wrong, told) in [("0", "is 0"), ("101", "is 101"), ("-5", "is -5"), ("1.5", "is not a whole number")]
    {
        for call in [GET, STORE, "/face-recognition/dry-run"] {
            let answer = server.send(call, upload("wrong").text("top_k", wrong)).await;
            let message = answer.expect_error(400, "invalid_field");
            assert!(
                message.contains("top_k") && message.contains(told) && message.contains("1 to 100"),
                "{message}"
            );
        }
    }
}

#[tokio::test]
async fn records_of_answers_are_small_and_name_nobody_who_was_erased() {
    let server = start!(|config| config.results.results_url = Some("http://127.0.0.1:1/".into()));
    server.enrol("Tony_Blair", &[1, 2]).await;
    add_people(&server, 0..300);
    server.train().await;
    for call in ["store-results", "send-results"] {
        let answer = server.send(&format!("/face-recognition/{call}"), upload("key")).await;
        assert_eq!(predictions(&answer.body["faces"][0]).len(), 5, "{}", answer.body);
    }
    let rows = server.lines("SELECT faces AS line FROM answers");
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert!(row.len() + "store-results".len() + "key".len() + 16 <= 1024, "{} bytes: {row}", row.len());
        assert!(!row.contains("embedding"), "{row}");
    }
    assert_eq!(server.lines("SELECT CONCAT(COUNT(*), '') AS line FROM model_people"), ["301"]);

    let first = server.send(STORE, upload("key")).await.expect(StatusCode::CREATED);
    let named = predictions(&first["faces"][0]);
    let erased = &named[1].0;
    server.delete(&format!("/dataset/{}", erased.replace(' ', "%20"))).await.expect(StatusCode::NO_CONTENT);
    let repeated = server.send(STORE, upload("key")).await.expect(StatusCode::CREATED);
    let again = server.send(GET, picture()).await.expect(StatusCode::OK);
    for face in [&repeated["faces"][0], &again["faces"][0]] {
        let left = predictions(face);
        let labels: Vec<&String> = left.iter().map(|(label, _)| label).collect();
        assert_eq!(labels, [&named[0].0, &named[2].0, &named[3].0, &named[4].0]);
        // Among those who are enrolled, hence a little more than before.
        let expected = named[0].1 / (1.0 - named[1].1);
        assert!((left[0].1 - expected).abs() < 1e-5 && left[0].1 > named[0].1, "{left:?} after {named:?}");
        assert_eq!(face["decision"], "known");
    }

    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);
    let again = server.send(STORE, upload("key")).await.expect(StatusCode::CREATED);
    let face = &again["faces"][0];
    assert_eq!((&face["decision"], &face["score"]), (&"unknown".into(), &Value::Null));
    assert_eq!(predictions(face).len(), 3);
}

#[tokio::test]
async fn records_of_earlier_versions_are_answered_with_the_top_k() {
    let server = start!();
    add_people(&server, 0..300);
    let predictions: Vec<(usize, f32)> =
        (0..300).map(|number| (FIRST_ROW + number, if number == 0 { 0.7 } else { 0.3 / 299.0 })).collect();
    let faces = json!([{
        "bounding_box": [10.5, 20.25, 110.0, 120.0], "detection_confidence": 0.99, "known": true, "score": 0.75,
        "threshold": 0.355, "predictions": predictions,
    }]);
    let call = if Engine::of_this_run() == Some(Engine::Mysql) { "`call`" } else { "call" };
    server.execute(&format!(
        "INSERT INTO answers ({call}, upload_key, model_version, faces, created_at)
         VALUES ('store-results', 'old', NULL, '{faces}', 1)"
    ));
    let answer = server.send(STORE, upload("old").text("top_k", "3")).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["stored"], &answer["repeated"]), (&1.into(), &1.into()));
    let face = &answer["faces"][0];
    assert_eq!(
        (&face["decision"], &face["score"], &face["bounding_box"]["left"]),
        (&"known".into(), &0.75.into(), &10.5.into())
    );
    let named: Vec<(String, f64)> = self::predictions(face);
    let labels: Vec<&str> = named.iter().map(|(label, _)| label.as_str()).collect();
    assert_eq!(labels, ["Person 00000", "Person 00001", "Person 00002"]);
    assert!((named[0].1 - 0.7).abs() < 1e-6, "{named:?}");
}
