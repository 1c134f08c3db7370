//! Several processes on one database server and one folder of blobs, and an unreachable database.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use diesel::{
    Connection as _, MysqlConnection, PgConnection, RunQueryDsl as _, connection::SimpleConnection as _,
};
use facepipe_test_support::free_port;
use reqwest::{Client, StatusCode, multipart::Form};
use serde_json::Value;
use tokio::{io::copy_bidirectional, net::TcpStream, sync::watch, task::JoinHandle};

use crate::{
    command_line::program,
    deployment::NEWEST,
    helpers::{ApiResponse, Engine, client, execute, photograph, revert, start, until},
};

/// The folder of the weights; skips the test where there are none.
macro_rules! models {
    () => {{
        let _ = facepipe_test_support::require!("lfw10");
        facepipe_test_support::require_weights!("mobilefacenet.onnx")
    }};
}

pub(crate) use models;

/// A process, killed when dropped.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server in a process of its own.
pub struct Replica {
    pub process: Process,
    address_file: PathBuf,
    pub url: String,
}

impl Replica {
    /// Spawns a replica with shared blobs; [`ready`](Self::ready) waits until it serves.
    fn spawn(name: &str, folder: &Path, models: &Path, database: &str) -> Self {
        Self::spawn_with(&[], name, folder, models, database)
    }

    /// As [`spawn`](Self::spawn), with further environment variables.
    fn spawn_with(
        settings: &[(&str, &str)],
        name: &str,
        folder: &Path,
        models: &Path,
        database: &str,
    ) -> Self {
        let mut command = program();
        command.envs(settings.iter().copied());
        command.arg("--blobs-url").arg(format!("file://{}", folder.join("blobs").display()));
        Self::spawn_as(command, name, folder, models, database)
    }

    /// As [`spawn`](Self::spawn), with a command that has arguments and environment already.
    pub fn spawn_as(mut command: Command, name: &str, folder: &Path, models: &Path, database: &str) -> Self {
        let address_file = folder.join(format!("{name}.address"));
        // A replica that was killed leaves it.
        let _ = std::fs::remove_file(&address_file);
        // Behind a proxy, without tokens.
        let defaults =
            [("FACEPIPE_LISTEN", "127.0.0.1:0"), ("FACEPIPE_LOG", "warn"), ("FACEPIPE_INSECURE", "true")];
        for (setting, default) in defaults {
            if !command.get_envs().any(|(name, value)| name == setting && value.is_some()) {
                command.env(setting, default);
            }
        }
        let child = command
            .args(["--embedder", "mobilefacenet", "--lease-s", "2"])
            .arg("--address-file")
            .arg(&address_file)
            .arg("--models-dir")
            .arg(models)
            .arg("--data-dir")
            .arg(folder.join(name))
            .env("DATABASE_URL", database)
            .spawn()
            .unwrap();
        Self { process: Process(child), address_file, url: String::new() }
    }

    /// Waits until the process has exited with success, after a signal.
    pub async fn ended(mut self) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "the program does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ready(mut self) -> Self {
        let begun = Instant::now();
        loop {
            if let Ok(address) = std::fs::read_to_string(&self.address_file) {
                self.url = format!("http://{}", address.trim());
                return self;
            }
            assert!(self.process.0.try_wait().unwrap().is_none(), "the program ended at its start");
            assert!(begun.elapsed() < Duration::from_secs(60), "the program is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// nginx in front of the replicas; ended when dropped.
struct LoadBalancer {
    nginx: Child,
    folder: PathBuf,
    port: u16,
    /// nginx's `proxy_next_upstream`: when it passes a request to another replica.
    next_upstream: &'static str,
}

impl LoadBalancer {
    fn start(folder: &Path, replicas: &[&Replica], next_upstream: &'static str) -> Self {
        let urls: Vec<&str> = replicas.iter().map(|replica| replica.url.as_str()).collect();
        Self::configure(folder, free_port(), next_upstream, &urls)
    }

    fn configure(folder: &Path, port: u16, next_upstream: &'static str, urls: &[&str]) -> Self {
        write_configuration(folder, port, next_upstream, urls);
        let nginx = Command::new("/usr/sbin/nginx")
            .arg("-e")
            .arg(folder.join("nginx.log"))
            .arg("-c")
            .arg(folder.join("nginx.conf"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nginx does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { nginx, folder: folder.to_owned(), port, next_upstream }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Routes new requests to these replicas; requests in progress are not moved.
    fn send_to(&self, urls: &[&str]) {
        write_configuration(&self.folder, self.port, self.next_upstream, urls);
        signal(&self.nginx, "HUP");
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        // Its workers go with it, as they would not were it killed.
        signal(&self.nginx, "TERM");
        let _ = self.nginx.wait();
    }
}

fn write_configuration(folder: &Path, port: u16, next_upstream: &str, urls: &[&str]) {
    let servers: String =
        urls.iter().map(|url| format!("server {};", url.strip_prefix("http://").unwrap())).collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()))
        .collect();
    // Workers of another user could not write below the test's folder.
    let text = format!(
        "daemon off; user root root; worker_processes 1; pid {folder}/nginx.pid; events {{}} http {{ access_log off; \
         {temporary} client_max_body_size 64m; upstream replicas {{ {servers} }} server {{ listen 127.0.0.1:{port}; \
         location / {{ proxy_pass http://replicas; proxy_http_version 1.1; proxy_read_timeout 120s; \
         proxy_next_upstream {next_upstream}; }} }} }}",
        folder = folder.display()
    );
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
}

pub fn signal(process: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name]).arg(process.id().to_string()).status().unwrap();
    assert!(status.success());
}

pub async fn post(client: &Client, url: &str) -> ApiResponse {
    ApiResponse::read(client.post(url).send().await.unwrap()).await
}

pub async fn enrol(client: &Client, url: &str, person: &str, photographs: &[u32]) {
    post(client, &format!("{url}/dataset/{person}")).await.expect(StatusCode::CREATED);
    for number in photographs {
        let form = Form::new().part("image", photograph(person, *number));
        let request = client.post(format!("{url}/dataset/{person}/image")).multipart(form);
        ApiResponse::read(request.send().await.unwrap()).await.expect(StatusCode::CREATED);
    }
}

pub async fn recognise(client: &Client, url: &str) -> ApiResponse {
    let form =
        Form::new().part("image", photograph("Tony_Blair", 5)).part("image", photograph("Hugo_Chavez", 5));
    let request = client.post(format!("{url}/face-recognition/get-results")).multipart(form);
    ApiResponse::read(request.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_swap_models_while_requests_go_on() {
    if Engine::of_this_run() != Some(Engine::Postgres) {
        return;
    }
    let models = models!();
    let folder = tempfile::tempdir().unwrap();
    let database = Engine::Postgres.new_database();
    // Both migrate the empty database at the same time.
    let started = ["a", "b"].map(|name| Replica::spawn(name, folder.path(), &models, &database));
    let [a, b] = started.map(Replica::ready);
    let (a, b) = (a.await, b.await);
    let balancer = LoadBalancer::start(folder.path(), &[&a, &b], "off");
    let (url, client) = (balancer.url(), client());
    enrol(&client, &url, "Tony_Blair", &[1, 2]).await;
    enrol(&client, &url, "Hugo_Chavez", &[1, 2]).await;
    post(&client, &format!("{url}/model/optimized-train?wait=true")).await.expect(StatusCode::OK);
    agree_on(1, &client, &[&a, &b]).await;

    let done = Arc::new(AtomicBool::new(false));
    let load = [(); 3].map(|()| {
        let (client, url, done) = (client.clone(), url.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut versions = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let answer = recognise(&client, &url).await.expect(StatusCode::OK);
                let known: Vec<&Value> = answer["faces"].as_array().unwrap().iter().collect();
                assert!(known.iter().all(|face| face["decision"] == "known"), "{answer}");
                versions.push(answer["model_version"].as_i64().unwrap());
            }
            versions
        })
    });
    for version in 2..=6 {
        let trained =
            post(&client, &format!("{url}/model/optimized-train?wait=true")).await.expect(StatusCode::OK);
        assert_eq!(trained["result"]["model_version"], version);
        // Once it answers everywhere, no answer is older.
        agree_on(version, &client, &[&a, &b]).await;
        for replica in [&a, &b] {
            let answer = recognise(&client, &replica.url).await.expect(StatusCode::OK);
            assert_eq!(answer["model_version"], version);
        }
    }
    done.store(true, Ordering::Relaxed);
    let mut seen = BTreeSet::new();
    for client in load {
        let versions = client.await.unwrap();
        assert!(versions.len() >= 5, "{versions:?}");
        seen.extend(versions);
    }
    assert_eq!(seen.last(), Some(&6), "{seen:?}");
    assert!(seen.len() >= 5, "requests were answered during the trainings: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_of_a_killed_replica_is_resumed_by_another() {
    let Some(engine) = Engine::of_this_run() else { return };
    let models = models!();
    let folder = tempfile::tempdir().unwrap();
    let database = engine.new_database();
    let mut killed = Replica::spawn("a", folder.path(), &models, &database).ready().await;
    let client = client();
    let photographs: Vec<u32> = (1..=10).collect();
    for person in ["Tony_Blair", "Hugo_Chavez"] {
        enrol(&client, &killed.url, person, &photographs).await;
    }
    // The job cannot end before this is released.
    let lock = TableLock::take(&database, "similar_images");
    let job = post(&client, &format!("{}/model/train", killed.url)).await.expect(StatusCode::ACCEPTED);
    let job_of = |url: &str| {
        let request = client.get(format!("{url}/jobs/{}", job["job_id"].as_str().unwrap()));
        async move { ApiResponse::read(request.send().await.unwrap()).await.expect(StatusCode::OK) }
    };
    while job_of(&killed.url).await["status"] == "queued" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    killed.process.0.kill().unwrap();
    // Dead before the lock is released, else it could still end the job.
    killed.process.0.wait().unwrap();
    drop(lock);

    let other = Replica::spawn("b", folder.path(), &models, &database).ready().await;
    let begun = Instant::now();
    loop {
        let job = job_of(&other.url).await;
        if job["status"] == "done" {
            assert_eq!(job["result"]["images"], 20);
            break;
        }
        assert_ne!(job["status"], "failed", "{job}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = recognise(&client, &other.url).await.expect(StatusCode::OK);
    assert_eq!(answer["faces"][0]["top_prediction"]["label"], "Tony_Blair");
}

/// An exclusive lock on a table.
enum TableLock {
    #[expect(dead_code, reason = "holds the lock")]
    Postgres(PgConnection),
    #[expect(dead_code, reason = "holds the lock")]
    Mysql(MysqlConnection),
}

impl TableLock {
    fn take(database: &str, table: &str) -> Self {
        if database.starts_with("postgres") {
            let mut connection = PgConnection::establish(database).unwrap();
            connection.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).unwrap();
            Self::Postgres(connection)
        } else {
            let mut connection = MysqlConnection::establish(database).unwrap();
            connection.batch_execute(&format!("LOCK TABLES {table} WRITE")).unwrap();
            Self::Mysql(connection)
        }
    }
}

/// Forwards connections to a database server, and cuts them while `cut` is set.
async fn proxy(upstream: String, cut: watch::Receiver<bool>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (upstream, mut cut) = (upstream.clone(), cut.clone());
            tokio::spawn(async move {
                if *cut.borrow() {
                    return;
                }
                let mut far = TcpStream::connect(upstream).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => (),
                    _ = cut.wait_for(|cut| *cut) => (),
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_database_is_503_until_it_is_reachable_again() {
    let Some(engine) = Engine::of_this_run() else { return };
    let _ = models!();
    let (cut, is_cut) = watch::channel(false);
    let database = engine.new_database();
    let (login, rest) = database.split_once('@').unwrap();
    let (address, name) = rest.split_once('/').unwrap();
    let port = proxy(address.to_owned(), is_cut).await;
    let url = format!("{login}@127.0.0.1:{port}/{name}");
    let server =
        start!(|config| (config.database.database_url, config.database.database_timeout_s) = (Some(url), 1));
    server.post("/dataset/Ada").await.expect(StatusCode::CREATED);

    cut.send_replace(true);
    for _ in 0..3 {
        let answer = server.get("/dataset").await;
        assert!(answer.headers.contains_key("retry-after"), "{}", answer.body);
        answer.expect_error(503, "database_unavailable");
    }
    server.get("/readyz").await.expect_error(503, "database_unavailable");
    server.get("/livez").await.expect(StatusCode::OK);

    cut.send_replace(false);
    let begun = Instant::now();
    while server.get("/readyz").await.status != StatusCode::OK {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the database is back, and the server does not see it"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    assert_eq!(listed["people"][0]["face_id"], "Ada");
    server.train().await;
}

/// Cameras that upload images, one after the other, each with a key and retried until it is accepted.
struct Load {
    done: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    cameras: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Images are retried after the statuses that `may_fail` allows, where `None` is a failed connection; any other status
    /// than 201 fails the test.
    fn start(url: &str, may_fail: fn(Option<StatusCode>) -> bool) -> Self {
        let (done, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let cameras = (0..3)
            .map(|camera| {
                let (done, accepted) = (Arc::clone(&done), Arc::clone(&accepted));
                let url = format!("{url}/face-recognition/store-results");
                tokio::spawn(async move {
                    // nginx closes kept connections when it is reconfigured.
                    let client = Client::builder().pool_max_idle_per_host(0).build().unwrap();
                    let mut keys = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        let key = format!("{camera}-{}", keys.len());
                        while !upload(&client, &url, &key, may_fail).await {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                        accepted.fetch_add(1, Ordering::Relaxed);
                        keys.push(key);
                    }
                    keys
                })
            })
            .collect();
        Self { done, accepted, cameras }
    }

    /// Waits until so many further images are accepted.
    async fn goes_on(&self, pictures: usize) {
        let (before, begun) = (self.accepted.load(Ordering::Relaxed), Instant::now());
        while self.accepted.load(Ordering::Relaxed) < before + pictures {
            if self.cameras.iter().any(JoinHandle::is_finished) {
                panic!("a camera gave up");
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no pictures are taken");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops the cameras and asserts that the database has each accepted face once.
    async fn check(self, database: &str) {
        #[derive(diesel::QueryableByName)]
        struct Stored {
            #[diesel(sql_type = diesel::sql_types::Text)]
            upload_key: String,
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            faces: i64,
        }
        self.done.store(true, Ordering::Relaxed);
        let mut accepted = BTreeMap::new();
        for camera in self.cameras {
            accepted.extend(camera.await.unwrap().into_iter().map(|key| (key, 1)));
        }
        let stored: Vec<Stored> =
            diesel::sql_query("SELECT upload_key, COUNT(*) AS faces FROM detections GROUP BY upload_key")
                .load(&mut PgConnection::establish(database).unwrap())
                .unwrap();
        let stored: BTreeMap<String, i64> =
            stored.into_iter().map(|row| (row.upload_key, row.faces)).collect();
        assert_eq!(stored, accepted);
    }
}

/// Whether an image was accepted.
async fn upload(client: &Client, url: &str, key: &str, may_fail: fn(Option<StatusCode>) -> bool) -> bool {
    let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby").text("key", key.to_owned());
    let form = form.part("image", photograph("Tony_Blair", 5));
    match client.post(url).multipart(form).send().await {
        Ok(answer) if answer.status() == StatusCode::CREATED => {
            // An answer that breaks off is none.
            answer.bytes().await.is_ok() || {
                assert!(may_fail(None), "{key}: an answer broke off");
                false
            }
        }
        Ok(answer) => {
            let status = answer.status();
            let text = answer.text().await.unwrap_or_default();
            assert!(may_fail(Some(status)), "{key}: {status} {text}");
            false
        }
        Err(error) => {
            assert!(may_fail(None), "{key}: {error:?}");
            false
        }
    }
}

/// The statuses after which clients retry.
fn retriable(status: Option<StatusCode>) -> bool {
    status.is_none_or(|status| matches!(status.as_u16(), 429 | 502..=504))
}

/// Waits until this model is active on every replica.
async fn agree_on(version: i64, client: &Client, replicas: &[&Replica]) {
    for replica in replicas {
        let begun = Instant::now();
        loop {
            let answer = recognise(client, &replica.url).await.expect(StatusCode::OK);
            if answer["model_version"] == version {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn enrol_and_train(client: &Client, url: &str) {
    enrol(client, url, "Tony_Blair", &[1, 2]).await;
    enrol(client, url, "Hugo_Chavez", &[1, 2]).await;
    post(client, &format!("{url}/model/optimized-train?wait=true")).await.expect(StatusCode::OK);
}

/// A PostgreSQL server for one test, which restarts it.
struct Postgres {
    folder: String,
    url: String,
}

impl Postgres {
    fn start() -> Self {
        let output = databases(&["start", "postgres"], None);
        let value = |name: &str| {
            let line = output.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
            line.unwrap_or_else(|| panic!("no {name} in {output}")).to_owned()
        };
        let url = format!("{}/postgres", value("FACEPIPE_TEST_POSTGRES"));
        Self { folder: value("FACEPIPE_TEST_DATABASES"), url }
    }

    fn restart(&self) {
        databases(&["restart-postgres"], Some(&self.folder));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        databases(&["stop"], Some(&self.folder));
    }
}

fn databases(arguments: &[&str], folder: Option<&str>) -> String {
    let mut command = Command::new(facepipe_test_support::workspace_root().join("scripts/databases.sh"));
    command.args(arguments).stdin(Stdio::null());
    if let Some(folder) = folder {
        command.env("FACEPIPE_TEST_DATABASES", folder);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_accepted_result_is_lost_or_duplicated_when_replicas_and_the_database_restart() {
    if Engine::of_this_run() != Some(Engine::Postgres) {
        return;
    }
    let models = models!();
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start();
    let ports = [(); 3].map(|()| format!("127.0.0.1:{}", free_port()));
    let spawn = |number: usize| {
        let settings = [("FACEPIPE_LISTEN", ports[number].as_str()), ("FACEPIPE_DRAIN_DELAY_S", "1")];
        let name = ["a", "b", "c"][number];
        Replica::spawn_with(&settings, name, folder.path(), &models, &postgres.url)
    };
    let [a, b, c] = [0, 1, 2].map(spawn).map(Replica::ready);
    let (mut a, b, c) = (a.await, b.await, c.await);
    let balancer = LoadBalancer::start(folder.path(), &[&a, &b, &c], "error timeout");
    let (url, client) = (balancer.url(), client());
    enrol_and_train(&client, &url).await;

    let load = Load::start(&url, retriable);
    load.goes_on(10).await;
    a.process.0.kill().unwrap();
    load.goes_on(10).await;
    signal(&b.process.0, "TERM");
    b.ended().await;
    load.goes_on(5).await;
    tokio::task::block_in_place(|| postgres.restart());
    load.goes_on(10).await;
    let trained = post(&client, &format!("{}/model/optimized-train?wait=true", c.url)).await;
    assert_eq!(trained.expect(StatusCode::OK)["result"]["model_version"], 2);
    drop(a);
    let [a, b] = [0, 1].map(spawn).map(Replica::ready);
    let (a, b) = (a.await, b.await);
    load.goes_on(10).await;
    load.check(&postgres.url).await;
    agree_on(2, &client, &[&a, &b, &c]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_upgrade_with_a_migration_causes_no_errors_under_load() {
    if Engine::of_this_run() != Some(Engine::Postgres) {
        return;
    }
    let models = models!();
    let folder = tempfile::tempdir().unwrap();
    let database = Engine::Postgres.new_database();
    let spawn = |name: &str, migrate: &str| {
        let settings = [("FACEPIPE_MIGRATE_AT_START", migrate), ("FACEPIPE_DRAIN_DELAY_S", "3")];
        Replica::spawn_with(&settings, name, folder.path(), &models, &database)
    };
    let [a, b, c] = ["a", "b", "c"].map(|name| spawn(name, "true")).map(Replica::ready);
    let mut serving = VecDeque::from([a.await, b.await, c.await]);
    let balancer = LoadBalancer::start(folder.path(), &serving.iter().collect::<Vec<_>>(), "off");
    let (url, client) = (balancer.url(), client());
    enrol_and_train(&client, &url).await;
    // The schema of the version before, which those replicas serve from now on. It has a column that the version before
    // that one used.
    revert(&database, "postgres", NEWEST);
    execute(&database, "ALTER TABLE detections ADD COLUMN zone BIGINT DEFAULT 0");

    let load = Load::start(&url, |_| false);
    load.goes_on(5).await;
    // The first of the new version waits for its schema.
    let log = folder.path().join("new-1.log");
    let mut command = program();
    command.env("FACEPIPE_MIGRATE_AT_START", "false").env("FACEPIPE_DRAIN_DELAY_S", "3");
    command.env("FACEPIPE_LOG", "info").stderr(std::fs::File::create(&log).unwrap());
    command.arg("--blobs-url").arg(format!("file://{}", folder.path().join("blobs").display()));
    let waiting = Replica::spawn_as(command, "new-1", folder.path(), &models, &database);
    until(|| std::fs::read_to_string(&log).unwrap().contains("waiting for the database's schema")).await;
    assert!(!waiting.address_file.exists());
    let mut next = Some(waiting);
    let migrated = program().arg("migrate").env("DATABASE_URL", &database).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    load.goes_on(5).await;
    let mut replaced = 0;
    while let Some(ready) = next.take() {
        serving.push_back(ready.ready().await);
        replaced += 1;
        let old = serving.pop_front().unwrap();
        let addresses = |serving: &VecDeque<Replica>| -> Vec<String> {
            serving.iter().map(|replica| replica.url.clone()).collect()
        };
        signal(&old.process.0, "TERM");
        // Whatever routes the traffic sees it before the replica accepts no more connections.
        loop {
            let answer = client.get(format!("{}/readyz", old.url)).send().await;
            match answer.expect("a replica says that it is not ready before it stops").status() {
                StatusCode::OK => tokio::time::sleep(Duration::from_millis(20)).await,
                status => break assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE),
            }
        }
        let urls = addresses(&serving);
        balancer.send_to(&urls.iter().map(String::as_str).collect::<Vec<_>>());
        if replaced < 3 {
            next = Some(spawn(&format!("new-{}", replaced + 1), "false"));
        }
        old.ended().await;
        load.goes_on(5).await;
    }
    // The contraction takes away what no server uses any more.
    execute(&database, "ALTER TABLE detections DROP COLUMN zone");
    load.goes_on(5).await;
    load.check(&database).await;
    let serving: Vec<&Replica> = serving.iter().collect();
    agree_on(1, &client, &serving).await;
    // nginx hands nothing on here, so a call that it loses is made again; it may have been carried out.
    let mut erased = Vec::new();
    while erased.len() < 3
        && !matches!(erased.last(), Some(&(StatusCode::NO_CONTENT | StatusCode::NOT_FOUND)))
    {
        erased.push(client.delete(format!("{url}/dataset/Hugo_Chavez")).send().await.unwrap().status());
    }
    let log = std::fs::read_to_string(folder.path().join("nginx.log")).unwrap_or_default();
    let first_or_again = match erased[..] {
        [status] => status == StatusCode::NO_CONTENT,
        [.., status] => matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_FOUND),
        [] => false,
    };
    assert!(first_or_again, "the new schema is used: {erased:?}, {log}");
}
