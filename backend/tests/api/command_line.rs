//! The program: help, configuration, start and stop.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use reqwest::{StatusCode, multipart::Form};

use crate::helpers::{ApiResponse, client, photograph};

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_facepipe-backend"));
    let inherited = std::env::vars_os().map(|(name, _)| name);
    for name in inherited.filter(|name| name.to_string_lossy().starts_with("FACEPIPE_")) {
        command.env_remove(name);
    }
    command.env_remove("DATABASE_URL").stdin(Stdio::null());
    command
}

fn setting(output: &Output, key: &str) -> toml::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table: toml::Table = toml::from_str(&String::from_utf8_lossy(&output.stdout)).unwrap();
    table[key].clone()
}

#[test]
fn an_unknown_or_missing_device_fails_the_start() {
    let start = |device: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "off", "--device", device]);
        command.arg("--data-dir").arg(folder.path()).arg("--models-dir").arg(folder.path());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let told = start("gpu");
    assert!(told.contains("device must be cpu, cuda or cuda:<number>") && told.contains("`gpu`"), "{told}");
    if cfg!(not(feature = "cuda")) {
        let told = start("cuda:1");
        assert!(told.contains("cannot run on cuda:1") && told.contains("feature `cuda`"), "{told}");
    }
}

#[test]
fn the_version_has_the_commit() {
    let said = String::from_utf8(program().arg("--version").output().unwrap().stdout).unwrap();
    let commit = option_env!("FACEPIPE_COMMIT").filter(|commit| !commit.is_empty());
    let expected = commit.unwrap_or("development build");
    assert_eq!(said, format!("facepipe-backend {} ({expected})\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn flags_override_the_environment_the_file_and_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("facepipe.toml");
    fs::write(&file, "max_images = 3\nhttp_workers = 3\nlog = \"debug\"\n").unwrap();
    let output = program()
        .env("FACEPIPE_CONFIG", &file)
        .env("FACEPIPE_HTTP_WORKERS", "4")
        .env("FACEPIPE_LOG", "warn")
        .env("DATABASE_URL", "sqlite:///srv/faces.db")
        .env("FACEPIPE_RESULTS_URL", "https://user:secret@api.example/faces")
        .args(["--log", "error", "--keep-unknown-embeddings", "false", "--verify-threshold", "-0.5"])
        .arg("--print-config")
        .output()
        .unwrap();
    assert_eq!(setting(&output, "max_images"), 3.into());
    assert_eq!(setting(&output, "http_workers"), 4.into());
    assert_eq!(setting(&output, "log"), "error".into());
    assert_eq!(setting(&output, "database_url"), "sqlite:///srv/faces.db".into());
    assert_eq!(setting(&output, "queue_images"), 256.into());
    assert_eq!(setting(&output, "listen"), "127.0.0.1:8080".into());
    assert_eq!(setting(&output, "keep_unknown_embeddings"), false.into());
    assert_eq!(setting(&output, "verify_threshold"), (-0.5).into());
    assert_eq!(setting(&output, "results_url"), "https://api.example/faces".into());

    // The output is a valid configuration file.
    let printed = folder.path().join("printed.toml");
    fs::write(&printed, &output.stdout).unwrap();
    let again = program().arg("--config").arg(&printed).arg("--print-config").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&output.stdout));
}

#[test]
fn configuration_errors_name_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("facepipe.toml");
    for (text, named) in [
        ("max_imagse = 3", "max_imagse"),
        ("max_images = \"many\"", "max_images"),
        ("max_images = 0", "max_images is 0"),
        ("top_k = 101", "top_k is 101, it must be from 1 to 100"),
    ] {
        fs::write(&file, text).unwrap();
        let output = program().arg("--config").arg(&file).arg("--print-config").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(named), "{text}: {told}");
    }
    let output = program().args(["--config", "/none/such.toml"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("/none/such.toml"));
    let output = program().args(["--embedder", "arcface"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("arcface"));
    let output = program().args(["--guide-dir", "/none/such", "--print-config"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("guide_dir is /none/such"));
    let output = program().args(["--results-url", "ftp://api.example", "--print-config"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("results_url"));
}

#[test]
fn missing_weights_fail_the_start_with_instructions() {
    let folder = tempfile::tempdir().unwrap();
    let output = program()
        .args(["--listen", "127.0.0.1:0", "--models-dir"])
        .arg(folder.path())
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("facepipe models fetch"), "{told}");
}

#[test]
fn the_help_covers_the_first_steps() {
    let output = program().arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in [
        "FACEPIPE_LISTEN",
        "DATABASE_URL",
        "--address-file",
        "curl",
        "SIGTERM",
        "127.0.0.1:8080",
        "--print-openapi",
        "FACEPIPE_TOKEN_FILE",
        "FACEPIPE_ROLE",
        "FACEPIPE_MIGRATE_AT_START",
        "FACEPIPE_DETECTIONS_MAX_AGE_DAYS",
        "FACEPIPE_DRAIN_DELAY_S",
        "migrate",
        "retain",
        "backup",
        "restore",
        "health",
        "/startupz",
        "Authorization: Bearer",
    ] {
        assert!(help.contains(word), "no {word} in\n{help}");
    }
}

#[test]
fn commands_take_all_settings() {
    for command in ["migrate", "sweep", "retain", "backup", "restore", "health"] {
        let output = program().args([command, "--help"]).output().unwrap();
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(help.contains("--data-dir") && help.contains("DATABASE_URL"), "{help}");
        assert!(!help.contains("--print-config"), "{help}");
    }
    let output = program().args(["sweep", "--max-images", "0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("max_images is 0"));
    let output = program().arg("serve").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// The log of a program, as far as it was read.
#[derive(Default)]
struct Log {
    /// The text, and whether the program has closed its standard error.
    state: Mutex<(String, bool)>,
    changed: Condvar,
}

impl Log {
    fn append(&self, line: &str) {
        self.state.lock().unwrap().0 += line;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn text(&self) -> String {
        self.state.lock().unwrap().0.clone()
    }

    /// Waits until a condition holds. Fails the test where the program ends or takes a minute.
    fn wait(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let unfinished = |(text, ended): &mut (String, bool)| !*ended && !holds(text);
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, Duration::from_secs(60), unfinished).unwrap();
        assert!(holds(&state.0), "the log does not have {what}:\n{}", state.0);
        state.0.clone()
    }
}

/// The program, killed if the test ends early.
pub struct Running {
    process: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    fn start(folder: &Path, models: &Path) -> (Self, String) {
        Self::start_with(folder, models, &["--listen", "127.0.0.1:0"])
    }

    pub fn start_with(folder: &Path, models: &Path, settings: &[&str]) -> (Self, String) {
        Self::start_in(folder, models, settings, &[])
    }

    /// With additional environment variables.
    pub fn start_in(
        folder: &Path,
        models: &Path,
        settings: &[&str],
        environment: &[(&str, &str)],
    ) -> (Self, String) {
        let mut command = program();
        command.env("NODE_NAME", "node-7").envs(environment.iter().copied());
        // Nothing listens there.
        command.env("FACEPIPE_RESULTS_URL", "http://user:unspeakable-secret@127.0.0.1:1/unspeakable-path");
        if !settings.contains(&"--embedder") {
            command.args(["--embedder", "mobilefacenet"]);
        }
        command.args(["--log-format", "json"]).args(settings);
        command.arg("--address-file").arg(folder.join("address")).arg("--models-dir").arg(models);
        command.arg("--data-dir").arg(folder.join("data"));
        let running = Self::spawn(command);
        let url = running.url();
        (running, url)
    }

    /// Starts a command and collects its log.
    pub fn spawn(mut command: Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let log = Arc::<Log>::default();
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in lines {
                    log.append(&format!("{}\n", line.unwrap()));
                }
                log.end();
            }
        });
        Self { process, log, reader: Some(reader) }
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the log has a text. Returns the log.
    pub fn logs(&self, text: &str) -> String {
        self.logs_times(text, 1)
    }

    /// Waits until the log has a text this many times. Returns the log.
    pub fn logs_times(&self, text: &str, times: usize) -> String {
        self.log.wait(&format!("{times} times {text}"), |log| log.matches(text).count() >= times)
    }

    /// Waits until the log has a text after another one.
    fn logs_after(&self, first: &str, then: &str) {
        let follows = |log: &str| log.split_once(first).is_some_and(|(_, rest)| rest.contains(then));
        self.log.wait(&format!("{then} after {first}"), follows);
    }

    /// Waits until the server is ready. Returns an address of its log line.
    fn ready(&self, address: &str) -> String {
        let log = self.logs("\"ready\"");
        let line = log.lines().find(|line| line.contains("\"ready\"")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line[address].as_str().unwrap().to_owned()
    }

    /// Waits until the server is ready. Returns its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.ready("address"))
    }

    /// Waits until the server is ready. Returns the URL of its metrics.
    pub fn metrics(&self) -> String {
        format!("http://{}/metrics", self.ready("metrics"))
    }

    /// Stops it and returns its log.
    pub fn log(self) -> String {
        self.signal("INT");
        self.ended()
    }

    /// Waits for its end and returns its log.
    fn ended(mut self) -> String {
        self.reader.take().unwrap().join().unwrap();
        self.log.text()
    }

    pub fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args(["-s", name]).arg(id).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_completes_accepted_requests() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let _ = facepipe_test_support::require!("lfw10");
    let folder = tempfile::tempdir().unwrap();
    let settings = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let (mut running, url) = Running::start_with(folder.path(), &models, &settings);
    let (client, metrics) = (client(), running.metrics());

    // Enough pictures to be at work for a while after the signal.
    let form = (0..24).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 1)));
    let request = client.post(format!("{url}/face-recognition/get-results")).header("X-Request-Id", "edge-7");
    let request = request.multipart(form);
    let answer = tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await });
    // Accepted once its pictures are in the queue.
    let begun = Instant::now();
    loop {
        let told = client.get(&metrics).send().await.unwrap().text().await.unwrap();
        let waiting = told.lines().find_map(|line| line.strip_prefix("facepipe_queue_images "));
        if waiting.unwrap().parse::<f64>().unwrap() > 0.0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the request is not accepted");
    }
    assert!(!answer.is_finished(), "the request ended before the signal");
    running.signal("TERM");

    let body = answer.await.unwrap().expect(StatusCode::OK);
    assert_eq!(body["faces"].as_array().unwrap().len(), 24);
    let status = tokio::task::spawn_blocking(move || (running.process.wait().unwrap(), running.ended()));
    let (status, log) = tokio::time::timeout(Duration::from_secs(20), status).await.unwrap().unwrap();
    assert!(status.success(), "{status}\n{log}");
    assert!(client.get(format!("{url}/livez")).send().await.is_err());
    assert!(!folder.path().join("address").exists());

    // Structured: each line is an object; a request's line has the path's pattern.
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered = lines.iter().find(|line| line["message"] == "answered").unwrap();
    assert_eq!(answered["route"], "/face-recognition/get-results");
    assert_eq!(answered["status"], 200);
    assert_eq!(answered["span"], serde_json::json!({ "name": "request", "request_id": "edge-7" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_people_stay_out_of_the_log() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let _ = facepipe_test_support::require!("lfw10");
    let folder = tempfile::tempdir().unwrap();
    let (running, url) = Running::start(folder.path(), &models);
    let client = client();
    for path in ["/dataset/Tony_Blair", "/dataset/Tony_Blair", "/model/optimized-train?wait=true"] {
        client.post(format!("{url}{path}")).send().await.unwrap();
    }
    client.get(format!("{url}/database/Tony_Blair/last-known-location")).send().await.unwrap();
    let node = client.get(format!("{url}/debug/node-name")).send().await.unwrap();
    assert_eq!(ApiResponse::read(node).await.body["node_name"], "node-7");
    let form = || {
        let form = Form::new().text("camera_id", "unspeakable-gate").text("location", "unspeakable-lobby");
        form.text("key", "unspeakable-key").part("image", photograph("Tony_Blair", 1))
    };
    for call in ["store-results", "send-results"] {
        let sent = client.post(format!("{url}/face-recognition/{call}")).multipart(form()).send().await;
        assert!(sent.unwrap().status().is_success());
    }
    let running = tokio::task::spawn_blocking(move || {
        running.logs("did not take a result");
        running
    });
    let running = running.await.unwrap();
    client.delete(format!("{url}/dataset/Tony_Blair")).send().await.unwrap();
    let log = tokio::task::spawn_blocking(move || running.log()).await.unwrap();
    assert!(log.contains("/dataset/{id") && log.contains("trained a model"), "{log}");
    assert!(log.contains("did not take a result"), "{log}");
    assert!(!log.contains("Tony") && !log.contains("unspeakable"), "{log}");
}

#[test]
fn a_public_address_without_tokens_is_warned_of() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "admin unspeakable-0123456789\n").unwrap();
    let tokens = tokens.to_str().unwrap();
    for (settings, warned) in [
        (vec!["--listen", "0.0.0.0:0", "--insecure"], true),
        (vec!["--listen", "127.0.0.1:0"], false),
        (vec!["--listen", "0.0.0.0:0", "--token-file", tokens], false),
    ] {
        let (running, _) = Running::start_with(folder.path(), &models, &settings);
        let log = running.log();
        assert!(log.contains("\"ready\""), "{log}");
        assert_eq!(log.contains("and insecure is set"), warned, "{settings:?}: {log}");
        assert!(!log.contains("unspeakable-0123456789"), "{log}");
    }
}

#[test]
fn an_invalid_token_file_is_warned_of_once_without_tokens() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "admin unspeakable-0123456789\n").unwrap();
    let log = ["--log", "info,facepipe_backend::access=trace"];
    let settings =
        [&["--listen", "127.0.0.1:0", "--token-file", tokens.to_str().unwrap()][..], &log].concat();
    let (running, _) = Running::start_with(folder.path(), &models, &settings);
    fs::write(&tokens, "admin unspeakable-0123456789\ncamera unspeakable\n").unwrap();
    // Once, although the file is checked every second.
    running.logs_after("token_file is not used", "token_file is unchanged");
    fs::write(&tokens, "admin unspeakable-0123456789\ncamera unspeakable-9876543210\n").unwrap();
    running.logs("read the changed token_file");
    let log = running.log();
    assert_eq!(log.matches("token_file is not used").count(), 1, "{log}");
    assert!(log.contains("line 2 has a token of 11 characters"), "{log}");
    assert!(log.contains("read the changed token_file") && log.contains("\"tokens\":2"), "{log}");
    assert!(!log.contains("unspeakable"), "{log}");
}

#[test]
fn a_server_that_waits_for_its_database_can_be_stopped() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "off", "--log-format", "json"]);
    command.args(["--database-url", "postgres://nobody@127.0.0.1:1/none"]).arg("--models-dir");
    command.arg(&models).arg("--data-dir").arg(folder.path());
    let mut running = Running::spawn(command);
    running.logs("waiting for the database");
    running.signal("TERM");
    running.logs("stopped before it was ready");
    assert!(running.process.wait().unwrap().success());
}

#[test]
fn a_second_server_warns_that_it_serves_no_metrics() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    // If somebody else has it, all the better.
    let _taken = std::net::TcpListener::bind("127.0.0.1:9464");
    for (settings, warned) in [(vec![], true), (vec!["--metrics-listen", "off"], false)] {
        let settings = [vec!["--listen", "127.0.0.1:0"], settings].concat();
        let (running, _) = Running::start_with(folder.path(), &models, &settings);
        let log = running.log();
        assert!(log.contains("\"ready\""), "{log}");
        assert_eq!(log.contains("metrics are not served"), warned, "{log}");
    }
}
