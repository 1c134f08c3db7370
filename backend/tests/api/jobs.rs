//! Jobs: their work, progress and cancellation; and the activation of models.

use std::time::{Duration, Instant};

use diesel::{Connection as _, SqliteConnection, connection::SimpleConnection as _};
use facepipe_identify::Model;
use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::{
    command_line::Running,
    helpers::{Engine, Server, client, execute, files_below, lines, photograph, start, until},
    replicas::{models, post},
};

const ALL: [u32; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

/// Waits until `wanted` holds for the job. Returns the job.
async fn job_when(server: &Server, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let job = server.get(&format!("/jobs/{id}")).await.expect(StatusCode::OK);
        if wanted(&job) {
            return job;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{job}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn id_of(job: &Value) -> &str {
    job["job_id"].as_str().unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn has_ended(job: &Value) -> bool {
    job["status"] != "queued" && job["status"] != "running"
}

#[tokio::test]
async fn training_from_images_neither_needs_nor_stores_embeddings() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    let trained = server.post("/model/train?wait=true").await.expect(StatusCode::OK);
    assert_eq!(trained["kind"], "train");
    assert_eq!(trained["progress"], json!({ "images_done": 4, "images_total": 4, "percent": 100 }));
    let result = &trained["result"];
    assert_eq!(
        (&result["people"], &result["images"], &result["images_left_out"]),
        (&2.into(), &4.into(), &0.into())
    );
    let from_images = server.recognise("Tony_Blair", 3).await;
    assert_eq!(from_images["top_prediction"]["label"], "Tony_Blair");

    // It gives the same model as the stored embeddings do: they were made of the same images.
    server.train().await;
    let from_embeddings = server.recognise("Tony_Blair", 3).await;
    for field in ["score", "decision"] {
        assert_eq!(from_images[field], from_embeddings[field]);
    }

    // A damaged image is left out and counted.
    let image = files_below(&server.data.path().join("blobs/people")).remove(0);
    std::fs::write(image, b"damaged").unwrap();
    let trained = server.post("/model/train?wait=true").await.expect(StatusCode::OK);
    assert_eq!((&trained["result"]["images"], &trained["result"]["images_left_out"]), (&3.into(), &1.into()));
}

#[tokio::test]
async fn recomputing_embeddings_locks_the_dataset_until_it_is_done() {
    let server = start!();
    server.enrol("Tony_Blair", &ALL).await;
    server.enrol("Hugo_Chavez", &ALL).await;
    server.train().await;
    let before = server.recognise("Tony_Blair", 3).await;

    let accepted = server.post("/model/generate-emb").await;
    let location = accepted.headers["location"].to_str().unwrap().to_owned();
    let job = accepted.expect(StatusCode::ACCEPTED);
    assert_eq!(location, format!("/jobs/{}", id_of(&job)));
    job_when(&server, id_of(&job), |job| !job["progress"]["images_total"].is_null()).await;
    let answer = server.post("/dataset/Somebody").await;
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=15).contains(&wait), "{wait}");
    let message = answer.expect_error(423, "dataset_locked");
    assert!(message.contains("unblock-dataset"), "{message}");
    // One that nobody has yet.
    let form = Form::new().part("image", photograph("Colin_Powell", 1));
    server.send("/dataset/Tony_Blair/image", form).await.expect_error(423, "dataset_locked");
    server.delete("/dataset/Tony_Blair").await.expect_error(423, "dataset_locked");
    server.patch("/dataset/Tony_Blair", &json!({ "face_id": "T" })).await.expect_error(423, "dataset_locked");
    // Recognition goes on.
    assert_eq!(server.recognise("Tony_Blair", 3).await, before);

    let job = job_when(&server, id_of(&job), has_ended).await;
    assert_eq!((&job["status"], &job["progress"]["percent"]), (&"done".into(), &100.into()));
    assert_eq!((&job["result"]["images"], &job["result"]["images_left_out"]), (&20.into(), &0.into()));
    server.post("/dataset/Somebody").await.expect(StatusCode::CREATED);
    server.train().await;
    assert_eq!(server.recognise("Tony_Blair", 3).await, before);
}

#[tokio::test]
async fn unblocking_releases_the_lock_and_fails_the_job_that_held_it() {
    let server = start!();
    server.enrol("Tony_Blair", &ALL).await;
    server.enrol("Hugo_Chavez", &ALL).await;
    let unblocked = server.post("/debug/unblock-dataset").await.expect(StatusCode::OK);
    assert_eq!(unblocked, json!({ "was_blocked": false }));

    let job = server.post("/model/generate-emb").await.expect(StatusCode::ACCEPTED);
    job_when(&server, id_of(&job), |job| !job["progress"]["images_total"].is_null()).await;
    let unblocked = server.post("/debug/unblock-dataset").await.expect(StatusCode::OK);
    assert_eq!(unblocked, json!({ "was_blocked": true }));
    server.post("/dataset/Somebody").await.expect(StatusCode::CREATED);
    let job = job_when(&server, id_of(&job), has_ended).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&"failed".into(), &"job_failed".into()));
    assert!(job["error"]["message"].as_str().unwrap().contains("unblocked"), "{job}");
    // Every image still has an embedding, recomputed or not.
    assert_eq!(server.train().await["images"], 20);
}

#[tokio::test]
async fn jobs_can_be_cancelled() {
    let server = start!();
    server.enrol("Tony_Blair", &ALL).await;
    server.enrol("Hugo_Chavez", &ALL).await;
    let running = server.post("/model/train").await.expect(StatusCode::ACCEPTED);
    let waiting = server.post("/model/optimized-train").await.expect(StatusCode::ACCEPTED);
    job_when(&server, id_of(&running), |job| job["status"] == "running").await;

    let cancelled = server.delete(&format!("/jobs/{}", id_of(&waiting))).await.expect(StatusCode::OK);
    assert_eq!(cancelled["status"], "cancelled");
    server.delete(&format!("/jobs/{}", id_of(&running))).await.expect(StatusCode::ACCEPTED);
    let job = job_when(&server, id_of(&running), has_ended).await;
    assert_eq!(job["status"], "cancelled", "{job}");
    assert!(job["progress"]["images_done"].as_i64().unwrap() < 20, "{job}");
    // No model came of either.
    assert_eq!(server.get("/model").await.expect(StatusCode::OK)["meta"]["total"], 0);
    server.delete(&format!("/jobs/{}", id_of(&running))).await.expect_error(409, "job_ended");
    server.delete("/jobs/none-of-this-id").await.expect_error(404, "job_not_found");
    // The next job is done as ever.
    server.train().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_of_an_abandoned_job_is_released_as_soon_as_the_database_answers() {
    // A test can keep everybody else from writing to SQLite.
    if Engine::of_this_run().is_some() {
        return;
    }
    let models = models!();
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "--listen=127.0.0.1:0",
        "--metrics-listen=off",
        "--lease-s=3600",
        "--database-timeout-s=1",
        "--poll-interval-ms=100",
    ];
    let (running, url) = Running::start_with(folder.path(), &models, &settings);
    let database = format!("sqlite://{}", folder.path().join("data/facepipe.db").display());
    let held = |lease: &str| {
        let query = format!("SELECT holder AS line FROM leases WHERE name = '{lease}'");
        lines(&database, &query) != [""]
    };
    // The job waits for the dataset, and asks for it again and again.
    execute(
        &database,
        "UPDATE leases SET holder = 'test', expires_at = 9000000000000000 WHERE name = 'dataset'",
    );
    let client = client();
    let job = post(&client, &format!("{url}/model/generate-emb")).await.expect(StatusCode::ACCEPTED);
    until(|| lines(&database, "SELECT status AS line FROM jobs") == ["running"]).await;
    assert!(held("trainer"));

    let mut lock = SqliteConnection::establish(database.strip_prefix("sqlite://").unwrap()).unwrap();
    lock.batch_execute("PRAGMA busy_timeout = 60000; BEGIN IMMEDIATE").unwrap();
    tokio::task::block_in_place(|| running.logs("abandoned a job"));
    // With nothing left to do, the process takes the lease for no other job.
    lock.batch_execute("UPDATE jobs SET status = 'cancelled'; COMMIT").unwrap();
    until(|| !held("trainer")).await;

    let trained = post(&client, &format!("{url}/model/optimized-train?wait=true")).await;
    assert_ne!(trained.expect(StatusCode::OK)["job_id"], job["job_id"]);
}

#[tokio::test]
async fn models_are_listed_and_an_earlier_one_can_be_activated() {
    let server = start!();
    assert_eq!(
        server.get("/model").await.expect(StatusCode::OK),
        json!({ "models": [], "meta": { "total": 0 } })
    );
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    let listed = server.get("/model").await.expect(StatusCode::OK);
    let brief = |model: &Value| (model["version"].clone(), model["active"].clone(), model["people"].clone());
    let models: Vec<_> = listed["models"].as_array().unwrap().iter().map(brief).collect();
    assert_eq!(models, [(2.into(), true.into(), 2.into()), (1.into(), false.into(), 1.into())]);
    assert_eq!(listed["models"][0]["embedder"], "mobilefacenet");
    assert_eq!(server.recognise("Hugo_Chavez", 3).await["decision"], "known");

    let activated = server.post("/model/1/activate").await.expect(StatusCode::OK);
    assert_eq!(brief(&activated), (1.into(), true.into(), 1.into()));
    assert_eq!(server.recognise("Hugo_Chavez", 3).await["decision"], "unknown");
    let server = server.restart().await;
    assert_eq!(server.recognise("Hugo_Chavez", 3).await["decision"], "unknown");
    server.post("/model/2/activate").await.expect(StatusCode::OK);
    assert_eq!(server.recognise("Hugo_Chavez", 3).await["decision"], "known");

    for wrong in ["/model/3/activate", "/model/0/activate", "/model/-1/activate", "/model/x/activate"] {
        server.post(wrong).await.expect_error(404, "model_not_found");
    }
    // One that could not answer is refused, and the other goes on answering.
    let models = server.data.path().join("blobs/models");
    let oldest = files_below(&models).into_iter().min().unwrap();
    std::fs::write(&oldest, b"not a model").unwrap();
    server.post("/model/1/activate").await.expect_error(409, "model_unusable");
    std::fs::remove_file(&oldest).unwrap();
    server.post("/model/1/activate").await.expect_error(409, "model_unusable");
    assert_eq!(server.recognise("Hugo_Chavez", 3).await["decision"], "known");
}

#[tokio::test]
async fn a_training_after_an_erasure_removes_models_that_know_the_erased_person() {
    let server =
        start!(|config| config.retention.erase_detections = facepipe_backend::ErasedDetections::Delete);
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    server.enrol("Hugo_Chavez", &[1]).await;
    server.train().await;
    let store = |key: &'static str, person: &'static str| {
        let form = Form::new()
            .text("camera_id", "gate-1")
            .text("location", "Lobby")
            .text("key", key)
            .part("image", photograph(person, 3));
        server.send("/face-recognition/store-results", form)
    };
    store("k", "Hugo_Chavez").await.expect(StatusCode::CREATED);
    store("l", "Tony_Blair").await.expect(StatusCode::CREATED);
    // The vector of one's only image is in its row and, but for rounding, as the person's mean in the model.
    let models = server.data.path().join("blobs/models");
    let vector = server.newest_embedding();
    let components = floats(&vector);
    let model =
        Model::from_bytes(&std::fs::read(files_below(&models).iter().max().unwrap()).unwrap()).unwrap();
    let means = model.labels().iter().map(|label| model.mean_embedding(label).unwrap());
    let cosine = |mean: &[f32]| -> f32 { mean.iter().zip(&components).map(|(a, b)| a * b).sum() };
    let mean = means.max_by(|a, b| cosine(a).total_cmp(&cosine(b))).unwrap();
    assert!(cosine(mean) > 0.9999);
    let in_model: Vec<u8> = mean.iter().flat_map(|component| component.to_le_bytes()).collect();
    assert!(!server.traces_of(&vector).is_empty() && !server.traces_of(&in_model).is_empty());

    server.delete("/dataset/Hugo_Chavez").await.expect(StatusCode::NO_CONTENT);
    let left = server.get("/database/detections").await.expect(StatusCode::OK);
    let seen: Vec<_> = left["detections"].as_array().unwrap().iter().map(|d| d["face_id"].clone()).collect();
    assert_eq!(seen, ["Tony_Blair"]);
    server.train().await;

    let listed = server.get("/model").await.expect(StatusCode::OK);
    let versions: Vec<_> =
        listed["models"].as_array().unwrap().iter().map(|m| m["version"].clone()).collect();
    assert_eq!(versions, [3, 1]);
    assert_eq!(files_below(&models).len(), 2);
    assert_eq!(server.traces_of(b"Hugo_Chavez"), Vec::<std::path::PathBuf>::new());
    assert_eq!(server.traces_of(&vector), Vec::<std::path::PathBuf>::new());
    assert_eq!(server.traces_of(&in_model), Vec::<std::path::PathBuf>::new());
    server.post("/model/2/activate").await.expect_error(404, "model_not_found");
    assert_eq!(server.recognise("Tony_Blair", 3).await["decision"], "known");
}

#[tokio::test]
async fn jobs_are_listed_newest_first() {
    let server = start!();
    let nothing = json!({ "jobs": [], "meta": { "next_cursor": null } });
    assert_eq!(server.get("/jobs").await.expect(StatusCode::OK), nothing);
    server.enrol("Tony_Blair", &[1]).await;
    let first = server.post("/model/train?wait=true").await.expect(StatusCode::OK);
    let second = server.post("/model/optimized-train?wait=true").await.expect(StatusCode::OK);
    let third = server.post("/model/train?wait=true").await.expect(StatusCode::OK);
    let all = json!({ "jobs": [third, second, first], "meta": { "next_cursor": null } });
    assert_eq!(server.get("/jobs").await.expect(StatusCode::OK), all);

    // Page by page, while another one is asked for.
    let newest = server.get("/jobs?limit=2").await.expect(StatusCode::OK);
    assert_eq!(newest["jobs"], json!([third, second]));
    let cursor = newest["meta"]["next_cursor"].as_str().unwrap().to_owned();
    let fourth = server.post("/model/train?wait=true").await.expect(StatusCode::OK);
    let rest = server.get(&format!("/jobs?limit=2&cursor={cursor}")).await.expect(StatusCode::OK);
    assert_eq!(rest, json!({ "jobs": [first], "meta": { "next_cursor": null } }));
    assert_eq!(server.get("/jobs?limit=1").await.expect(StatusCode::OK)["jobs"], json!([fourth]));

    // By how far they are.
    let done = server.get("/jobs?status=done&limit=1").await.expect(StatusCode::OK);
    assert_eq!(done["jobs"], json!([fourth]));
    assert_eq!(server.get("/jobs?status=failed").await.expect(StatusCode::OK), nothing);

    let of_done = done["meta"]["next_cursor"].as_str().unwrap();
    for (wrong, code) in [
        ("limit=0", "limit_out_of_range"),
        ("limit=1001", "limit_out_of_range"),
        ("limit=many", "invalid_query"),
        ("status=Done", "invalid_query"),
        ("order=oldest", "invalid_query"),
        ("cursor=x", "invalid_cursor"),
        // Of another query.
        (&format!("cursor={of_done}"), "invalid_cursor"),
    ] {
        server.get(&format!("/jobs?{wrong}")).await.expect_error(400, code);
    }
    let message = server.get("/jobs?status=over").await.expect_error(400, "invalid_query");
    assert!(message.contains("\"over\"") && message.contains("queued, running, done"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_that_waits_already_is_not_queued_again() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    // Nobody takes jobs.
    server.execute("UPDATE leases SET holder = 'test', expires_at = 9000000000000000 WHERE name = 'trainer'");
    let ask = || async { server.post("/model/optimized-train").await.expect(StatusCode::ACCEPTED) };
    let (one, two, three, four) = tokio::join!(ask(), ask(), ask(), ask());
    for other in [&two, &three, &four] {
        assert_eq!(id_of(other), id_of(&one));
    }
    let from_images = server.post("/model/train").await.expect(StatusCode::ACCEPTED);
    assert_ne!(id_of(&from_images), id_of(&one));
    let listed = server.get("/jobs?status=queued").await.expect(StatusCode::OK);
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 2, "{listed}");
    // One that ended is no reason not to train again.
    server.execute("UPDATE leases SET expires_at = 0 WHERE name = 'trainer'");
    let job = job_when(&server, id_of(&one), has_ended).await;
    assert_eq!(job["status"], "done");
    assert_ne!(id_of(&ask().await), id_of(&one));
}
