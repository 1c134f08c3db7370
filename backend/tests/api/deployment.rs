//! A server within a deployment: role, probes, shutdown, and the commands that run beside servers.

use std::{
    fs,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use facepipe_backend::{Application, Config, ServerRole};
use reqwest::{Method, StatusCode, multipart::Form};

use crate::{
    command_line::{Running, program},
    helpers::{Engine, Server, client, files_below, photograph, start},
};

/// The newest migration; it has this name on every engine.
pub const NEWEST: &str = "2025-01-07-000000_erasures";

/// Runs a command with the settings of a running server.
pub async fn beside(server: &Server, arguments: &[&str]) -> Output {
    with(&server.config, arguments).await
}

/// Runs a command with the data of a configuration.
pub async fn with(config: &Config, arguments: &[&str]) -> Output {
    let mut command: Command = program();
    command.args(arguments).arg("--data-dir").arg(&config.storage.data_dir).args(["--log", "warn"]);
    if let Some(url) = &config.database.database_url {
        command.env("DATABASE_URL", url);
    }
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[track_caller]
pub fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn each_role_serves_its_calls_and_names_the_other_role() {
    let manage = start!(|config| config.deployment.role = ServerRole::Manage);
    let config = manage.config.clone().with(|config| config.deployment.role = ServerRole::Recognize);
    let recognize = if Engine::of_this_run().is_some() {
        let recognize = Server::run(config, Arc::clone(&manage.data)).await;
        manage.enrol("Tony_Blair", &[1, 2]).await;
        manage.enrol("Hugo_Chavez", &[1, 2]).await;
        manage.train().await;
        let begun = Instant::now();
        while recognize.recognise("Tony_Blair", 5).await["top_prediction"]["label"] != "Tony_Blair" {
            assert!(begun.elapsed() < Duration::from_secs(10), "the new model does not answer");
        }
        recognize
    } else {
        // SQLite has one server: each has its own data.
        let data = Arc::new(tempfile::tempdir().unwrap());
        Server::run(config.with(|config| config.storage.data_dir = data.path().to_owned()), data).await
    };
    let message = recognize.get("/dataset").await.expect_error(404, "other_role");
    assert!(message.contains("recognize") && message.contains("manage"), "{message}");
    for (method, path) in [
        (Method::POST, "/dataset/Ada"),
        (Method::POST, "/model/train"),
        (Method::GET, "/jobs"),
        (Method::GET, "/database/detections"),
        (Method::GET, "/cameras"),
    ] {
        recognize.call(method, path).await.expect_error(404, "other_role");
    }
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    let answer = manage.send("/face-recognition/get-results", form).await;
    assert_eq!(
        answer.body["error"]["details"],
        serde_json::json!({ "role": "manage", "served_by": "recognize" })
    );
    answer.expect_error(404, "other_role");
    for server in [&manage, &recognize] {
        server.post("/face-recognition/nothing").await.expect_error(404, "not_found");
        for path in ["/startupz", "/livez", "/readyz", "/openapi.json", "/debug/IP"] {
            server.get(path).await.expect(StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn a_recognizing_server_does_no_jobs() {
    let recognize = start!(|config| config.deployment.role = ServerRole::Recognize);
    recognize.execute(
        "INSERT INTO jobs (id, kind, status, created_at) VALUES ('j', 'optimized-train', 'queued', 1)",
    );
    // A server that does jobs takes those that are queued at its start, and its stop waits for them.
    let recognize = recognize.restart().await;
    recognize.get("/livez").await.expect(StatusCode::OK);
    let recognize = recognize.restart().await;
    let status = |server: &Server| server.lines("SELECT status AS line FROM jobs")[0].clone();
    assert_eq!(status(&recognize), "queued");
    let config = recognize.config.clone().with(|config| config.deployment.role = ServerRole::Manage);
    let data = Arc::clone(&recognize.data);
    recognize.stop().await;
    let manage = Server::run(config, data).await;
    let begun = Instant::now();
    while status(&manage) != "done" {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", status(&manage));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_draining_server_is_not_ready_and_still_serves() {
    let server = start!(|config| config.listener.drain_delay_s = 2);
    server.get("/readyz").await.expect(StatusCode::OK);
    server.begin_to_stop();
    let begun = Instant::now();
    let answer = server.get("/readyz").await;
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(answer.headers["connection"], "close");
    answer.expect_error(503, "draining");
    server.get("/livez").await.expect(StatusCode::OK);
    server.post("/dataset/Ada").await.expect(StatusCode::CREATED);
    let (client, url) = (server.client.clone(), server.url.clone());
    server.stopped().await;
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(client.get(format!("{url}/livez")).send().await.is_err());
}

#[tokio::test]
async fn old_detections_are_deleted_by_a_command_and_regularly() {
    let server = start!();
    for (key, captured_at) in
        [("a", Some("2024-05-06T07:08:09Z")), ("b", Some("2024-05-06T07:08:09Z")), ("c", None)]
    {
        let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby").text("key", key);
        let form = match captured_at {
            Some(moment) => form.text("captured_at", moment),
            None => form,
        };
        let form = form.part("image", photograph("Tony_Blair", 1));
        server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    }
    let left = |server: &Server| {
        let detections = server.lines("SELECT upload_key AS line FROM detections ORDER BY upload_key");
        (detections, server.lines("SELECT upload_key AS line FROM answers ORDER BY upload_key"))
    };
    let output = beside(&server, &["retain"]).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("detections_max_age_days is not set"), "{told}");
    assert_eq!(left(&server).0, ["a", "b", "c"]);

    server.execute("UPDATE answers SET created_at = 0 WHERE upload_key IN ('a', 'b')");
    let told = said(&beside(&server, &["retain", "--detections-max-age-days", "30"]).await);
    assert!(told.contains("2 detections, 0 tracks and 2 answers"), "{told}");
    assert_eq!(left(&server), (vec!["c".into()], vec!["c".into()]));

    server.execute("UPDATE detections SET captured_at = 0");
    let config = server.config.clone().with(|config| config.retention.detections_max_age_days = Some(30));
    let data = Arc::clone(&server.data);
    server.stop().await;
    let other = Server::run(config, data).await;
    let begun = Instant::now();
    while left(&other).0 != Vec::<String>::new() {
        assert!(begun.elapsed() < Duration::from_secs(10), "old detections stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(left(&other).1, ["c"], "its answer is young");
}

#[tokio::test]
async fn a_server_waits_for_the_migrate_command() {
    let server = start!();
    server.revert(NEWEST);
    let config = server.config.clone().with(|config| {
        config.database.migrate_at_start = false;
        config.database.database_start_timeout_s = 1;
    });
    let data = Arc::clone(&server.data);
    server.stop().await;
    let Err(error) = Application::build(config.clone()).await else { panic!("started on an old schema") };
    let told = format!("{error:#}");
    assert!(told.contains(NEWEST) && told.contains("facepipe-backend migrate"), "{told}");

    // A waiting server starts once the schema is there.
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "off", "--log-format", "json"]);
    command.args(["--migrate-at-start", "false", "--embedder", "mobilefacenet"]);
    command.arg("--data-dir").arg(&config.storage.data_dir);
    command.arg("--models-dir").arg(&config.recognition.models_dir);
    if let Some(url) = &config.database.database_url {
        command.env("DATABASE_URL", url);
    }
    let waiting = Running::spawn(command);
    waiting.logs("waiting for the database's schema");
    let told = said(&with(&config, &["migrate"]).await);
    assert!(told.contains("20250107000000"), "{told}");
    let url = waiting.url();
    assert_eq!(client().get(format!("{url}/startupz")).send().await.unwrap().status(), StatusCode::OK);
    waiting.log();
    let started = Server::run(config, data).await;
    let told = said(&beside(&started, &["migrate"]).await);
    assert_eq!(told.trim(), "The schema is up to date.");
}

#[tokio::test]
async fn a_newer_schema_is_rejected_unless_allowed() {
    let server = start!();
    server.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('20991231000000')");
    let (config, data) = (server.config.clone(), Arc::clone(&server.data));
    server.stop().await;
    for migrate_at_start in [true, false] {
        let Err(error) = Application::build(
            config.clone().with(|config| config.database.migrate_at_start = migrate_at_start),
        )
        .await
        else {
            panic!("started on a newer schema")
        };
        let told = format!("{error:#}");
        for word in ["newer than facepipe-backend", "20991231000000", "allow_newer_schema"] {
            assert!(told.contains(word), "no {word} in {told}");
        }
        assert!(facepipe_backend::config_errors::is_config_error(&error), "trying again does not help");
    }
    for command in ["migrate", "sweep"] {
        let output = with(&config, &[command]).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("20991231000000"), "{command}: {told}");
        assert_eq!(output.status.code(), Some(2), "{command}: {told}");
    }
    let server = Server::run(config.with(|config| config.database.allow_newer_schema = true), data).await;
    server.get("/dataset").await.expect(StatusCode::OK);
}

#[tokio::test]
async fn an_empty_database_lacks_its_schema() {
    let Some(engine) = Engine::of_this_run() else { return };
    let output = program()
        .args(["sweep", "--migrate-at-start", "false", "--database-start-timeout-s", "1", "--data-dir"])
        .arg(tempfile::tempdir().unwrap().path())
        .env("DATABASE_URL", engine.new_database())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("facepipe-backend migrate"), "{told}");
}

#[tokio::test]
async fn the_sweep_command_removes_blobs_without_a_row() {
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    let blobs = server.data.path().join("blobs");
    fs::write(blobs.join("people/orphan"), "left by a crash").unwrap();
    // Young ones stay: their row may be about to be written.
    let told = said(&beside(&server, &["sweep"]).await);
    assert!(told.contains("Removed 0"), "{told}");
    assert_eq!(files_below(&blobs).len(), 2);
    let told = said(&beside(&server, &["sweep", "--sweep-min-age-s", "0"]).await);
    assert!(told.contains("Removed 1"), "{told}");
    assert_eq!(files_below(&blobs).len(), 1);
}

#[tokio::test]
async fn the_health_command_queries_the_server() {
    let server = start!();
    let told = said(&beside(&server, &["health", "--url", &server.url]).await);
    assert_eq!(told.trim(), "ok");
    let listen = server.url.strip_prefix("http://").unwrap().to_owned();
    said(&beside(&server, &["--listen", &listen, "health"]).await);
    // The address that the server wrote down comes before the one that was asked for.
    let file = server.data.path().join("address");
    fs::write(&file, &listen).unwrap();
    let by_file = ["health", "--listen", "127.0.0.1:0", "--address-file", file.to_str().unwrap()];
    said(&beside(&server, &by_file).await);

    let (client, url) = (server.client.clone(), server.url.clone());
    server.stop().await;
    drop(client);
    let output = program().args(["health", "--url", &url]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not answer"));
}
