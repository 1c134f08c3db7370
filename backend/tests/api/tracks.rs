//! Tracks: their crops are decided together, and listed as sightings.

use std::{path::Path, sync::Arc};

use facepipe_backend::{
    Config,
    parts::{
        CaptureTime, Database, FaceDecision, FaceId, FaceQuality, Fusion, IdempotentCall, IdentifiedFace,
        NewPicture, NewUploads, TrackRef, TrackedFace, Upload, now,
    },
};
use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{Engine, Server, execute, lines, photograph, start, until};

const STORE: &str = "/face-recognition/store-results";
const SECOND: i64 = 1_000_000;
const WINDOW: i64 = 600 * SECOND;

/// A crop of the track 7 of run r-1.
fn crop(person: &str, number: u32, key: &str, second: u32) -> Form {
    Form::new()
        .text("camera_id", "gate-1")
        .text("location", "Lobby")
        .text("captured_at", format!("2024-05-06T07:00:{second:02}Z"))
        .text("track_id", "7")
        .text("run_id", "r-1")
        .text("key", key.to_owned())
        .part("image", photograph(person, number))
}

async fn detections(server: &Server, query: &str) -> Vec<Value> {
    let page = server.get(&format!("/database/detections{query}")).await.expect(StatusCode::OK);
    page["detections"].as_array().unwrap().clone()
}

async fn sightings(server: &Server, query: &str) -> Vec<Value> {
    let page = server.get(&format!("/database/sightings{query}")).await.expect(StatusCode::OK);
    page["sightings"].as_array().unwrap().clone()
}

fn scores(answer: &Value) -> Vec<f64> {
    answer["faces"].as_array().unwrap().iter().map(|face| face["score"].as_f64().unwrap()).collect()
}

/// Two crops of one person whose mean is nearer to the person than each of them; the threshold is between.
#[tokio::test]
async fn crops_of_a_track_are_decided_together_and_earlier_detections_follow() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    let images = |tracks: &[&str]| {
        let mut form = Form::new();
        for (number, track) in [3, 4].into_iter().zip(tracks) {
            form = form.part("image", photograph("Tony_Blair", number)).text("track_id", (*track).to_owned());
        }
        form
    };
    // get-results decides the tracks of a request together, and stores nothing.
    let alone =
        server.send("/face-recognition/get-results", images(&["1", "2"])).await.expect(StatusCode::OK);
    let together =
        server.send("/face-recognition/get-results", images(&["1", "1"])).await.expect(StatusCode::OK);
    let crops = |answer: &Value| -> Vec<Value> {
        answer["faces"].as_array().unwrap().iter().map(|face| face["crops"].clone()).collect()
    };
    assert_eq!((crops(&alone), crops(&together)), (vec![1.into(); 2], vec![2.into(); 2]));
    let (alone, together) = (scores(&alone), scores(&together));
    assert_eq!(together[0], together[1]);
    let best_alone = alone.iter().copied().fold(f64::MIN, f64::max);
    assert!(together[0] > best_alone, "{together:?} {alone:?}");
    assert_eq!(server.lines("SELECT CONCAT(COUNT(*), '') AS line FROM tracks"), ["0"]);

    let mut config = server.config.clone();
    let data = Arc::clone(&server.data);
    server.stop().await;
    #[expect(clippy::cast_possible_truncation, reason = "a score")]
    let threshold = f64::midpoint(best_alone, together[0]) as f32;
    config.recognition.match_threshold = Some(threshold);
    let server = Server::run(config, data).await;
    let first = server.send(STORE, crop("Tony_Blair", 3, "k-1", 1)).await.expect(StatusCode::CREATED);
    assert_eq!((&first["faces"][0]["decision"], &first["faces"][0]["crops"]), (&"unknown".into(), &1.into()));
    let stored = detections(&server, "").await;
    assert_eq!((&stored[0]["face_id"], &stored[0]["crops"]), (&Value::Null, &1.into()));
    assert_eq!((&stored[0]["revised_at"], &stored[0]["revision"]), (&Value::Null, &Value::Null));
    assert_eq!(detections(&server, "?revised_after=0").await, Vec::<Value>::new());
    let kept = "SELECT CONCAT(COUNT(*), '') AS line FROM detections WHERE embedding IS NOT NULL";
    assert_eq!(server.lines(kept), ["1"], "an unknown face keeps its embedding");

    let second = server.send(STORE, crop("Tony_Blair", 4, "k-2", 5)).await.expect(StatusCode::CREATED);
    let face = &second["faces"][0];
    assert_eq!((&face["decision"], &face["crops"]), (&"known".into(), &2.into()));
    assert_eq!(face["top_prediction"]["label"], "Tony_Blair");
    let stored = detections(&server, "").await;
    for detection in &stored {
        assert_eq!((&detection["face_id"], &detection["crops"]), (&"Tony_Blair".into(), &2.into()));
        assert_eq!((&detection["score"], &detection["run_id"]), (&face["score"], &"r-1".into()));
    }
    // The newest first: that one was decided so from the beginning.
    assert_eq!(stored[0]["revision"], Value::Null);
    assert!(stored[1]["revised_at"].is_string(), "{}", stored[1]);
    assert_eq!(server.lines(kept), ["0"], "a known face keeps none");
    // A client that follows learns of it, and of it only.
    let revised = detections(&server, "?revised_after=0&camera=gate-1").await;
    assert_eq!(revised, [stored[1].clone()]);
    let after = revised[0]["revision"].as_i64().unwrap();
    assert_eq!(detections(&server, &format!("?revised_after={after}")).await, Vec::<Value>::new());
    let last = server.get("/database/Tony_Blair/last-known-location").await.expect(StatusCode::OK);
    assert_eq!(
        (&last["captured_at"], &last["confidence"]),
        (&"2024-05-06T07:00:05Z".into(), &face["top_prediction"]["confidence"])
    );

    // A repeated key changes nothing.
    let repeated = server.send(STORE, crop("Tony_Blair", 4, "k-2", 5)).await.expect(StatusCode::CREATED);
    assert_eq!((&repeated["faces"], &repeated["repeated"]), (&second["faces"], &1.into()));

    let seen = sightings(&server, "").await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    let best = detections(&server, "").await.iter().map(|d| d["id"].clone()).collect::<Vec<_>>();
    assert!(best.contains(&seen[0]["best_detection"]), "{seen:?}");
    let expected = json!({
        "id": stored[0]["sighting_id"], "camera_id": "gate-1", "location": "Lobby", "run_id": "r-1", "track_id": 7,
        "first_captured_at": "2024-05-06T07:00:01Z", "last_captured_at": "2024-05-06T07:00:05Z",
        "face_id": "Tony_Blair", "person_id": stored[0]["person_id"], "decision": "known",
        "confidence": stored[0]["confidence"], "score": face["score"], "threshold": face["threshold"],
        "model_version": 1, "crops": 2, "best_detection": seen[0]["best_detection"], "open": true,
        "updated_at": seen[0]["updated_at"],
    });
    assert_eq!(seen[0], expected);
}

/// The tracker has swapped two people: the crops of the other come to outweigh the first.
#[tokio::test]
async fn a_decision_may_change_to_another_person_and_to_nobody() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    let label = |answer: &Value| answer["faces"][0]["top_prediction"]["label"].clone();
    let first = server.send(STORE, crop("Tony_Blair", 3, "a", 1)).await.expect(StatusCode::CREATED);
    assert_eq!((&first["faces"][0]["decision"], label(&first)), (&"known".into(), "Tony_Blair".into()));
    let several = |person: &str, photographs: &[u32]| {
        // The run once for all, as edges send it.
        let mut form =
            Form::new().text("camera_id", "gate-1").text("location", "Lobby").text("run_id", "r-1");
        for number in photographs {
            form = form
                .text("captured_at", format!("2024-05-06T07:00:{:02}Z", 10 + number))
                .text("track_id", "7")
                .text("key", format!("{person}-{number}"))
                .part("image", photograph(person, *number));
        }
        form
    };
    // All crops of a request are decided together at once.
    let changed = server.send(STORE, several("Hugo_Chavez", &[3, 4, 5])).await.expect(StatusCode::CREATED);
    for face in changed["faces"].as_array().unwrap() {
        assert_eq!((&face["decision"], &face["crops"]), (&"known".into(), &4.into()), "{face}");
        assert_eq!(face["top_prediction"]["label"], "Hugo_Chavez");
    }
    let names = |list: &[Value]| list.iter().map(|d| d["face_id"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&detections(&server, "").await), vec![Value::from("Hugo_Chavez"); 4]);
    let revised = detections(&server, "?revised_after=0").await;
    assert_eq!(names(&revised), ["Hugo_Chavez"]);
    assert!(sightings(&server, "?person=Tony_Blair").await.is_empty());

    let strangers: Vec<u32> = (1..=10).collect();
    let nobody = server.send(STORE, several("Vladimir_Putin", &strangers)).await.expect(StatusCode::CREATED);
    assert_eq!(
        (&nobody["faces"][0]["decision"], &nobody["faces"][0]["crops"]),
        (&"unknown".into(), &14.into())
    );
    // Some of the photographs show others, too.
    let sighting = revised[0]["sighting_id"].clone();
    let mut of_track = detections(&server, "").await;
    of_track.retain(|detection| detection["sighting_id"] == sighting);
    assert_eq!(names(&of_track), vec![Value::Null; 14]);
    // Each detection once, with its latest revision; what was followed before comes again.
    let after = revised[0]["revision"].as_i64().unwrap();
    let again = detections(&server, &format!("?revised_after={after}")).await;
    assert_eq!((names(&again), again[0]["id"].clone()), (vec![Value::Null; 4], revised[0]["id"].clone()));
    let two = detections(&server, &format!("?revised_after={after}&limit=2")).await;
    let rest = two[1]["revision"].as_i64().unwrap();
    let rest = detections(&server, &format!("?revised_after={rest}")).await;
    assert_eq!([two, rest].concat(), again);
    let before = sightings(&server, "?decision=unknown").await;
    let seen: Vec<&Value> = before.iter().filter(|seen| seen["id"] == sighting).collect();
    assert_eq!((seen.len(), &seen[0]["crops"]), (1, &14.into()));
    assert!(sightings(&server, "?decision=known").await.is_empty());

    // send-results: the message has the decision of all crops, and no sighting remains.
    let mut config = server.config.clone();
    config.results.results_url = Some("http://127.0.0.1:9/".into());
    let data = Arc::clone(&server.data);
    server.stop().await;
    let server = Server::run(config, data).await;
    let send = "/face-recognition/send-results";
    server.send(send, several("Hugo_Chavez", &[3, 4])).await.expect(StatusCode::ACCEPTED);
    let sent = server.send(send, crop("Tony_Blair", 3, "a", 30)).await.expect(StatusCode::ACCEPTED);
    assert_eq!((label(&sent), &sent["faces"][0]["crops"]), ("Hugo_Chavez".into(), &3.into()));
    let messages =
        server.lines("SELECT face_id AS line FROM outbox INNER JOIN people ON people.id = outbox.person_id");
    assert_eq!(messages, ["Hugo_Chavez"; 3]);
    assert_eq!(sightings(&server, "").await, before);
}

#[tokio::test]
async fn sightings_come_in_pages_and_as_csv() {
    let server = start!();
    let untracked = |camera: &str, second: u32| {
        Form::new()
            .text("camera_id", camera.to_owned())
            .text("location", "Yard")
            .text("captured_at", format!("2024-05-06T07:00:{second:02}Z"))
            .part("image", photograph("Tony_Blair", 3))
    };
    server.send(STORE, untracked("gate-2", 0)).await.expect(StatusCode::CREATED);
    for (key, second) in [("a", 1), ("b", 9)] {
        server.send(STORE, crop("Tony_Blair", 3, key, second)).await.expect(StatusCode::CREATED);
    }
    // Of the same moment as the track's first crop.
    server.send(STORE, untracked("gate-2", 1)).await.expect(StatusCode::CREATED);
    server.send(STORE, untracked("gate-3", 5)).await.expect(StatusCode::CREATED);

    let all = sightings(&server, "").await;
    let row =
        |s: &Value| format!("{} {} {}", s["camera_id"], s["crops"], s["first_captured_at"]).replace('"', "");
    let rows: Vec<String> = all.iter().map(row).collect();
    assert_eq!(
        rows,
        [
            "gate-3 1 2024-05-06T07:00:05Z",
            "gate-1 2 2024-05-06T07:00:01Z",
            "gate-2 1 2024-05-06T07:00:01Z",
            "gate-2 1 2024-05-06T07:00:00Z",
        ]
    );
    assert_eq!(
        (&all[0]["track_id"], &all[0]["open"], &all[0]["decision"]),
        (&Value::Null, &false.into(), &"unknown".into())
    );
    assert_eq!(all[0]["id"], format!("d{}", all[0]["best_detection"]));
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/database/sightings?limit=1{cursor}")).await.expect(StatusCode::OK);
        paged.extend(page["sightings"].as_array().unwrap().clone());
        let Some(next) = page["meta"]["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, all);
    server
        .get(&format!("/database/sightings?camera=gate-1{cursor}"))
        .await
        .expect_error(400, "invalid_cursor");
    let cameras = |list: Vec<Value>| {
        list.iter().map(|s| s["camera_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(cameras(sightings(&server, "?camera=gate-2").await), ["gate-2"; 2]);
    assert_eq!(cameras(sightings(&server, "?location=Lobby").await), ["gate-1"]);
    // The track lasts from second 1 to 9.
    assert_eq!(cameras(sightings(&server, "?from=2024-05-06T07:00:06Z").await), ["gate-1"]);
    assert_eq!(
        cameras(sightings(&server, "?from=2024-05-06T07:00:02Z&to=2024-05-06T07:00:05Z").await),
        ["gate-1"]
    );

    let request =
        server.client.get(format!("{}/database/sightings?limit=2", server.url)).header("accept", "text/csv");
    let answer = request.send().await.unwrap();
    assert!(answer.headers().contains_key("x-next-cursor"));
    let text = answer.text().await.unwrap();
    let head = "id,camera_id,location,run_id,track_id,first_captured_at,last_captured_at,face_id,person_id,decision,\
                confidence,score,threshold,model_version,crops,best_detection,open,updated_at\n";
    assert!(text.starts_with(head), "{text}");
    assert!(
        text.contains(",gate-1,Lobby,r-1,7,2024-05-06T07:00:01Z,2024-05-06T07:00:09Z,,,unknown,,,"),
        "{text}"
    );

    for (query, code, told) in [
        ("sightings?decision=maybe", "invalid_query", "known or unknown"),
        ("sightings?from=yesterday", "invalid_query", "RFC 3339"),
        ("detections?revised_after=-1", "invalid_query", "a revision"),
        ("detections?revised_after=0&after=0", "invalid_query", "leave out one"),
        ("detections?revised_after=0&from=2024-05-06T07:00:06Z", "invalid_query", "leave out one"),
    ] {
        let message = server.get(&format!("/database/{query}")).await.expect_error(400, code);
        assert!(message.contains(told), "{message}");
    }
    let long = crop("Tony_Blair", 3, "c", 1).text("run_id", "x".repeat(65));
    let message = server.send(STORE, long).await.expect_error(400, "invalid_field");
    assert!(message.contains("run_id"), "{message}");
    let long = Form::new()
        .text("camera_id", "gate-1")
        .text("location", "")
        .text("run_id", "x".repeat(65))
        .part("image", photograph("Tony_Blair", 3));
    let message = server.send(STORE, long).await.expect_error(400, "invalid_field");
    assert!(message.contains("run_id") && message.contains("1 to 64"), "{message}");
}

/// A database without a server, and its URL.
pub struct Rows {
    pub database: Database,
    pub url: String,
    _folder: Arc<TempDir>,
}

impl Rows {
    pub fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let file = |folder: &Path| format!("sqlite://{}", folder.join("x.db").display());
        let url = Engine::of_this_run().map_or_else(|| file(folder.path()), Engine::new_database);
        Self { database: open(&url), url, _folder: folder }
    }

    pub fn lines(&self, query: &str) -> Vec<String> {
        lines(&self.url, query)
    }

    /// Crops, whether the embedding is there, whether it is open, and the person of each track, by first capture.
    fn tracks(&self) -> Vec<String> {
        self.lines(
            "SELECT CONCAT(crops, CASE WHEN embedding IS NULL THEN ' forgotten' ELSE ' kept' END, \
             CASE WHEN open_key IS NULL THEN ' closed' ELSE ' open' END, \
             CASE WHEN person_id IS NULL THEN ' nobody' ELSE ' person' END) AS line \
             FROM tracks ORDER BY first_captured_at, id",
        )
    }

    pub async fn person(&self, name: &str) -> i64 {
        self.database.add_person(&FaceId::try_from(name.to_owned()).unwrap()).await.unwrap().row
    }
}

fn open(url: &str) -> Database {
    let config = Config::default().with(|config| config.database.database_url = Some(url.to_owned()));
    Database::open(&config.database_options()).unwrap()
}

/// A face that counts as much as one can: with the weight 1.
const BEST: FaceQuality = FaceQuality {
    size: 120.0,
    sharpness: 1e9,
    yaw: 0.0,
    pitch: 0.0,
    roll: 0.0,
    brightness: 0.5,
    detection_confidence: 1.0,
};

fn face(embedding: [f32; 2]) -> IdentifiedFace {
    IdentifiedFace {
        bounding_box: [0.0, 0.0, 120.0, 120.0],
        detection_confidence: 1.0,
        known: false,
        score: Some(0.1),
        threshold: 0.5,
        predictions: Vec::new(),
        embedding: embedding.to_vec(),
        crops: 1,
        quality: BEST,
    }
}

/// One crop. A mean embedding that leans to the first axis is of `person`.
pub fn one_crop(
    person: i64,
    run_id: Option<&str>,
    key: &str,
    captured_at: i64,
    received_at: i64,
) -> NewUploads {
    let decide = move |mean: &[f32]| {
        Ok(FaceDecision {
            known: mean[0] > 0.5,
            score: Some(mean[0]),
            threshold: 0.5,
            predictions: vec![(person, 1.0)],
        })
    };
    let mut face = face([1.0, 0.0]);
    (face.known, face.predictions) = (true, vec![(person, 1.0)]);
    NewUploads {
        call: IdempotentCall::StoreResults,
        top_k: 5,
        fusion: Some(Fusion { window: WINDOW, decide: Arc::new(decide) }),
        keep_unknown_embeddings: true,
        camera_id: "gate-1".into(),
        location: "Lobby".into(),
        received_at,
        request_id: None,
        embedder: "mobilefacenet",
        model_version: None,
        uploads: vec![Upload {
            key: Some(key.to_owned()),
            time: CaptureTime { captured_at, claimed_at: None },
            track_id: Some(7),
            tracked: Some(TrackedFace {
                track: TrackRef { run_id: run_id.map(str::to_owned), track_id: 7 },
                face: 0,
            }),
            frame_box: None,
            pictures: Vec::new(),
            faces: vec![face],
        }],
    }
}

/// Has every face of a request be of nobody.
pub fn of_nobody(mut new: NewUploads) -> NewUploads {
    for face in new.uploads.iter_mut().flat_map(|upload| &mut upload.faces) {
        (face.known, face.embedding) = (false, vec![0.0, 1.0]);
    }
    new
}

#[tokio::test]
async fn small_faces_of_nobody_keep_no_embedding() {
    let rows = Rows::new();
    let (person, at) = (rows.person("Ada").await, now());
    for (key, size) in [("1", 16.0), ("2", 23.9), ("3", 24.0)] {
        let mut new = of_nobody(one_crop(person, Some(key), key, at, at));
        new.uploads[0].faces[0].quality.size = size;
        rows.database.store_uploads(new).await.unwrap();
    }
    assert_eq!(rows.lines("SELECT CONCAT(COUNT(*), '') AS line FROM detections"), ["3"]);
    assert_eq!(rows.lines("SELECT upload_key AS line FROM detections WHERE embedding IS NOT NULL"), ["3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_crop_is_lost_between_processes_that_store_crops_of_one_track() {
    const CROPS: usize = 12;
    let rows = Rows::new();
    let person = rows.person("Ada").await;
    let at = now();
    let mut storing = Vec::new();
    for process in 0..2 {
        let database = open(&rows.url);
        for crop in 0..CROPS {
            let database = database.clone();
            storing.push(tokio::spawn(async move {
                let new = one_crop(person, Some("r"), &format!("{process}-{crop}"), at, at);
                database.store_uploads(new).await.unwrap();
                // The same once more: it changes nothing.
                let new = one_crop(person, Some("r"), &format!("{process}-{crop}"), at, at);
                assert!(database.store_uploads(new).await.unwrap().uploads[0].repeated);
            }));
        }
    }
    for one in storing {
        one.await.unwrap();
    }
    assert_eq!(rows.tracks(), ["24 kept open person"]);
    // The sum of 24 embeddings (1, 0), each with the weight 1.
    let sum = rows.lines("SELECT CONCAT(ROUND(weight), '') AS line FROM tracks");
    assert!(["24", "24.0"].contains(&sum[0].as_str()), "{sum:?}");
    assert_eq!(
        rows.lines("SELECT CONCAT(COUNT(DISTINCT track_row), ' ', COUNT(*)) AS line FROM detections"),
        ["1 24"]
    );
}

#[tokio::test]
async fn runs_are_kept_apart_and_without_one_time_does_it() {
    let rows = Rows::new();
    let person = rows.person("Ada").await;
    let (database, at) = (&rows.database, now());
    let store = async |run: Option<&str>, key: &str, captured_at: i64, received_at: i64| {
        database.store_uploads(one_crop(person, run, key, captured_at, received_at)).await.unwrap()
    };
    store(Some("a"), "1", at, at).await;
    store(Some("b"), "2", at + 1, at).await;
    assert_eq!(rows.tracks(), ["1 kept open person", "1 kept open person"], "the numbers of another run");
    // Within a run, the times of capture do not matter: a spool may bring the crops much later, and in any order.
    store(Some("a"), "3", at - 5 * WINDOW, at + 1).await;
    assert_eq!(rows.tracks(), ["2 kept open person", "1 kept open person"]);

    // Without a run, a crop joins what was captured within ten minutes of it.
    let rows = Rows::new();
    let person = rows.person("Ada").await;
    let database = &rows.database;
    let store = async |key: &str, captured_at: i64, received_at: i64| {
        database.store_uploads(one_crop(person, None, key, captured_at, received_at)).await.unwrap()
    };
    store("1", at, at).await;
    store("2", at + WINDOW, at + WINDOW).await;
    assert_eq!(rows.tracks(), ["2 kept open person"]);
    store("3", at + 2 * WINDOW + 1, at + WINDOW + 1).await;
    assert_eq!(rows.tracks(), ["2 forgotten closed person", "1 kept open person"]);
    // In one request as well.
    let mut new = one_crop(person, None, "4", at + 10 * WINDOW, at + WINDOW + 2);
    new.uploads.extend(one_crop(person, None, "5", at + 10 * WINDOW + 1, at).uploads);
    new.uploads.extend(one_crop(person, None, "6", at + 12 * WINDOW, at).uploads);
    let stored = database.store_uploads(new).await.unwrap();
    let crops: Vec<i64> = stored.uploads.iter().map(|upload| upload.record.faces[0].crops).collect();
    assert_eq!(crops, [2, 2, 1]);
    let expected = [
        "2 forgotten closed person",
        "1 forgotten closed person",
        "2 forgotten closed person",
        "1 kept open person",
    ];
    assert_eq!(rows.tracks(), expected);
    assert_eq!(rows.lines("SELECT CONCAT(COUNT(DISTINCT open_key), '') AS line FROM tracks"), ["1"]);
}

#[tokio::test]
async fn embeddings_go_once_a_track_takes_no_more_crops() {
    let rows = Rows::new();
    let person = rows.person("Ada").await;
    let (database, at) = (&rows.database, now());
    database.store_uploads(one_crop(person, Some("known"), "1", at, at)).await.unwrap();
    database.store_uploads(of_nobody(one_crop(person, Some("unknown"), "2", at + 1, at))).await.unwrap();
    let sent =
        NewUploads { call: IdempotentCall::SendResults, ..one_crop(person, Some("sent"), "3", at + 2, at) };
    database.store_uploads(sent).await.unwrap();
    // A later crop keeps its track open.
    database.store_uploads(one_crop(person, Some("later"), "4", at + 3, at)).await.unwrap();
    database.store_uploads(one_crop(person, Some("later"), "5", at + 3, at + SECOND)).await.unwrap();
    assert_eq!(database.close_tracks(at + WINDOW, 10).await.unwrap(), 0);
    assert_eq!(database.close_tracks(at + WINDOW + 1, 10).await.unwrap(), 3);
    let closed = ["1 forgotten closed person", "1 forgotten closed nobody", "2 kept open person"];
    assert_eq!(rows.tracks(), closed, "and the track without detections is gone");
    // Nor without the embeddings of unknown faces.
    let new = NewUploads {
        keep_unknown_embeddings: false,
        ..of_nobody(one_crop(person, Some("private"), "6", at + 4, at))
    };
    database.store_uploads(new).await.unwrap();
    assert_eq!(database.close_tracks(at + 3 * WINDOW, 10).await.unwrap(), 2);
    let closed = [
        "1 forgotten closed person",
        "1 forgotten closed nobody",
        "2 forgotten closed person",
        "1 forgotten closed nobody",
    ];
    assert_eq!(rows.tracks(), closed);
    // A crop that comes too late begins another sighting.
    database.store_uploads(one_crop(person, Some("known"), "7", at + 5, at + 3 * WINDOW)).await.unwrap();
    assert_eq!(rows.tracks().last().unwrap(), "1 kept open person");

    // Retention deletes tracks with their last crop.
    assert_eq!(database.delete_tracks_before(at + 4, 10).await.unwrap(), 3);
    assert_eq!(rows.tracks().len(), 2);
}

#[tokio::test]
async fn pictures_are_unused_once_no_unknown_face_has_them() {
    let rows = Rows::new();
    let (person, at) = (rows.person("Ada").await, now());
    // Of two faces, of which the track's is the first.
    let store = async |of: fn(NewUploads) -> NewUploads, key: &str| {
        let mut new = of(one_crop(person, Some("r"), key, at, at));
        new.uploads[0].faces.push(face([0.6, 0.8]));
        let picture = |face: &str| Some(NewPicture { blob_key: format!("{key}{face}"), bytes: 1 });
        new.uploads[0].pictures = vec![picture("a"), picture("b")];
        let mut unused = rows.database.store_uploads(new).await.unwrap().unused_pictures;
        unused.sort();
        unused
    };
    assert_eq!(store(of_nobody, "1").await, [""; 0]);
    assert_eq!(store(of_nobody, "1").await, ["1a", "1b"], "those of a repeated image");
    // Together with the first crop, of nobody.
    let kept = "SELECT blob_key AS line FROM unknown_pictures ORDER BY blob_key";
    assert_eq!(rows.lines(kept), ["1a", "1b"]);
    assert_eq!(store(|new| new, "2").await, ["1a", "2a"], "those of faces that are known now");
    assert_eq!(rows.lines(kept), ["1b", "2b"]);
}

#[tokio::test]
async fn an_erased_person_is_never_named_by_a_running_track() {
    for with_detections in [false, true] {
        let rows = Rows::new();
        let (person, at) = (rows.person("Ada").await, now());
        let database = &rows.database;
        let store = async |key: &str| {
            let captured_at = at + key.parse::<i64>().unwrap();
            let stored =
                database.store_uploads(one_crop(person, Some("r"), key, captured_at, at)).await.unwrap();
            stored.face_ids.get(&person).cloned()
        };
        assert_eq!(store("1").await.as_deref(), Some("Ada"));
        store("2").await;
        assert_eq!(rows.tracks(), ["2 kept open person"]);
        // Also as the ledger does after a restore.
        database.erase_person_row(person, with_detections).await.unwrap().unwrap();
        let left: &[&str] = if with_detections { &[] } else { &["2 forgotten closed nobody"] };
        assert_eq!(rows.tracks(), left);
        // The model still knows the person.
        assert_eq!(store("3").await, None);
        store("4").await;
        let mut expected = left.to_vec();
        expected.push("2 kept open nobody");
        assert_eq!(rows.tracks(), expected);
        let named = "SELECT CONCAT(COUNT(*), '') AS line FROM detections WHERE person_id IS NOT NULL";
        assert_eq!(rows.lines(named), ["0"]);
    }
}

#[tokio::test]
async fn other_faces_of_a_crop_are_of_no_track() {
    let rows = Rows::new();
    let (person, at) = (rows.person("Ada").await, now());
    for (key, fused) in [("1", true), ("2", false)] {
        let mut new = of_nobody(one_crop(person, Some("r"), key, at, at));
        new.uploads[0].faces.push(face([0.6, 0.8]));
        new.fusion = new.fusion.filter(|_| fused);
        rows.database.store_uploads(new).await.unwrap();
    }
    let query = "SELECT CONCAT(upload_key, ' ', face, CASE WHEN track_id IS NULL THEN ' none' ELSE ' tracked' END) \
                 AS line FROM detections ORDER BY id";
    assert_eq!(rows.lines(query), ["1 0 tracked", "1 1 none", "2 0 tracked", "2 1 none"]);
}

#[tokio::test]
async fn a_name_put_by_hand_is_shown_without_the_decision_of_the_track() {
    let rows = Rows::new();
    let (ada, at) = (rows.person("Ada").await, now());
    for key in ["1", "2"] {
        let new = of_nobody(one_crop(ada, Some("r"), key, at, at));
        rows.database.store_uploads(new).await.unwrap();
    }
    let ids = rows.lines("SELECT CONCAT(id, '') AS line FROM detections ORDER BY id");
    let ids: Vec<i64> = ids.iter().map(|id| id.parse().unwrap()).collect();
    // As a name that is put by hand.
    execute(
        &rows.url,
        &format!(
            "UPDATE detections SET person_id = {ada}, score = NULL, confidence = NULL WHERE id = {}",
            ids[0]
        ),
    );
    let (named, other) =
        (rows.database.detection(ids[0]).await.unwrap(), rows.database.detection(ids[1]).await.unwrap());
    assert_eq!((named.face_id.as_deref(), named.score, named.crops), (Some("Ada"), None, 2));
    assert_eq!((other.face_id, other.score, other.crops), (None, Some(0.0), 2));
}

#[tokio::test]
async fn an_erased_detection_takes_its_embedding_out_of_the_track() {
    let rows = Rows::new();
    let (person, at) = (rows.person("Ada").await, now());
    for key in ["1", "2"] {
        rows.database.store_uploads(one_crop(person, Some("r"), key, at, at)).await.unwrap();
    }
    let ids = || rows.lines("SELECT CONCAT(id, '') AS line FROM detections ORDER BY id");
    let both = ids();
    rows.database.erase_detection(both[0].parse().unwrap()).await.unwrap();
    assert_eq!(rows.tracks(), ["2 forgotten closed person"]);
    rows.database.erase_detection(both[1].parse().unwrap()).await.unwrap();
    assert!(rows.tracks().is_empty() && ids().is_empty());
}

#[tokio::test]
async fn a_server_removes_embeddings_of_ended_tracks_and_an_upgrade_keeps_all_detections() {
    let server = start!(|config| config.recognition.track_window_s = 1);
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    server.send(STORE, crop("Tony_Blair", 3, "k-1", 1)).await.expect(StatusCode::CREATED);
    let open =
        "SELECT CONCAT(COUNT(*), '') AS line FROM tracks WHERE embedding IS NOT NULL OR open_key IS NOT NULL";
    until(|| server.lines(open) == ["0"]).await;
    let seen = sightings(&server, "").await;
    assert_eq!((&seen[0]["open"], &seen[0]["face_id"]), (&false.into(), &"Tony_Blair".into()));
    // A rename is seen at once.
    server.patch("/dataset/Tony_Blair", &json!({ "face_id": "Anthony" })).await.expect(StatusCode::OK);
    assert_eq!(sightings(&server, "?person=Anthony").await[0]["face_id"], "Anthony");

    let before = detections(&server, "").await;
    server.revert("2025-01-17-000000_tracks");
    let server = server.restart().await;
    let mut after = detections(&server, "").await;
    assert_eq!((after.len(), &after[0]["face_id"]), (1, &"Anthony".into()));
    assert_eq!(sightings(&server, "").await[0]["best_detection"], after[0]["id"]);
    // Its track is not known any more.
    after[0]["run_id"] = before[0]["run_id"].clone();
    after[0]["sighting_id"] = before[0]["sighting_id"].clone();
    assert_eq!(after, before);

    let mut config = server.config.clone();
    let data = Arc::clone(&server.data);
    server.stop().await;
    config.recognition.track_window_s = 0;
    let server = Server::run(config, data).await;
    for key in ["k-2", "k-3"] {
        let answer = server.send(STORE, crop("Tony_Blair", 3, key, 1)).await.expect(StatusCode::CREATED);
        assert_eq!(answer["faces"][0]["crops"], 1, "each crop is decided by itself");
    }
    assert_eq!(server.lines("SELECT CONCAT(COUNT(*), '') AS line FROM tracks"), ["0"]);
}
