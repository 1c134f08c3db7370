//! Several processes on one database server and one folder of blobs, and a database that goes away.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Client, StatusCode, multipart::Form};
use serde_json::Value;
use tokio::{io::copy_bidirectional, net::TcpStream, sync::watch};

use crate::{
    command_line::program,
    helpers::{Answer, Engine, client, photograph, start},
};

/// The folder of the weights, or the end of the test where there are none.
macro_rules! models {
    () => {{
        let _ = facepipe_test_support::require!("lfw10");
        let _ = facepipe_test_support::require!("models/mobilefacenet.onnx");
        facepipe_test_support::require!("models/pnet.pt").parent().unwrap().to_owned()
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

/// The server as a program of its own.
pub struct Replica {
    pub process: Process,
    address_file: PathBuf,
    pub url: String,
}

impl Replica {
    /// Begins to start, with the blobs in a folder that is shared; [`ready`](Self::ready) waits for it.
    fn spawn(name: &str, folder: &Path, models: &Path, database: &str) -> Self {
        let mut command = program();
        command.arg("--blobs-url").arg(format!("file://{}", folder.join("blobs").display()));
        Self::spawn_as(command, name, folder, models, database)
    }

    /// As [`spawn`](Self::spawn), with a command that brings arguments and environment of its own.
    pub fn spawn_as(mut command: Command, name: &str, folder: &Path, models: &Path, database: &str) -> Self {
        let address_file = folder.join(format!("{name}.address"));
        let child = command
            .args([
                "--listen",
                "127.0.0.1:0",
                "--embedder",
                "mobilefacenet",
                "--log",
                "warn",
                "--lease-s",
                "2",
            ])
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

/// nginx in front of the replicas. Returns it and its URL.
fn load_balancer(folder: &Path, replicas: &[&Replica]) -> (Process, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let servers: String = replicas
        .iter()
        .map(|replica| format!("server {};", replica.url.strip_prefix("http://").unwrap()))
        .collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()))
        .collect();
    let configuration = folder.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; events {{}} http {{ access_log off; {temporary} \
         client_max_body_size 64m; upstream replicas {{ {servers} }} server {{ listen 127.0.0.1:{port}; location / \
         {{ proxy_pass http://replicas; proxy_http_version 1.1; proxy_read_timeout 120s; proxy_next_upstream off; }} }} }}",
        folder = folder.display()
    );
    std::fs::write(&configuration, text).unwrap();
    let nginx = Command::new("/usr/sbin/nginx")
        .arg("-e")
        .arg(folder.join("nginx.log"))
        .arg("-c")
        .arg(&configuration)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nginx does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    (Process(nginx), format!("http://127.0.0.1:{port}"))
}

pub async fn post(client: &Client, url: &str) -> Answer {
    Answer::read(client.post(url).send().await.unwrap()).await
}

pub async fn enrol(client: &Client, url: &str, person: &str, photographs: &[u32]) {
    post(client, &format!("{url}/dataset/{person}")).await.expect(StatusCode::CREATED);
    for number in photographs {
        let form = Form::new().part("image", photograph(person, *number));
        let request = client.post(format!("{url}/dataset/{person}/image")).multipart(form);
        Answer::read(request.send().await.unwrap()).await.expect(StatusCode::CREATED);
    }
}

pub async fn recognise(client: &Client, url: &str) -> Answer {
    let form =
        Form::new().part("image", photograph("Tony_Blair", 5)).part("image", photograph("Hugo_Chavez", 5));
    let request = client.post(format!("{url}/face-recognition/get-results")).multipart(form);
    Answer::read(request.send().await.unwrap()).await
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
    let (_nginx, url) = load_balancer(folder.path(), &[&a, &b]);
    let client = client();
    enrol(&client, &url, "Tony_Blair", &[1, 2]).await;
    enrol(&client, &url, "Hugo_Chavez", &[1, 2]).await;
    post(&client, &format!("{url}/model/optimized-train?wait=true")).await.expect(StatusCode::OK);
    tokio::time::sleep(Duration::from_secs(2)).await;

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
        // Active everywhere within two seconds: as long as that is waited, and no answer is older then.
        tokio::time::sleep(Duration::from_secs(2)).await;
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
async fn the_job_of_a_killed_replica_is_taken_up_by_another() {
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
    let job = post(&client, &format!("{}/model/train", killed.url)).await.expect(StatusCode::ACCEPTED);
    let job_of = |url: &str| {
        let request = client.get(format!("{url}/jobs/{}", job["job_id"].as_str().unwrap()));
        async move { Answer::read(request.send().await.unwrap()).await.expect(StatusCode::OK) }
    };
    while job_of(&killed.url).await["status"] == "queued" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    killed.process.0.kill().unwrap();

    let other = Replica::spawn("b", folder.path(), &models, &database).ready().await;
    assert_ne!(job_of(&other.url).await["status"], "done", "the job was done before its replica was killed");
    let begun = Instant::now();
    loop {
        let job = job_of(&other.url).await;
        if job["status"] == "done" {
            assert_eq!(job["result"]["images"], 20);
            break;
        }
        assert_ne!(job["status"], "failed", "{job}");
        assert!(begun.elapsed() < Duration::from_secs(40), "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = recognise(&client, &other.url).await.expect(StatusCode::OK);
    assert_eq!(answer["faces"][0]["top_prediction"]["label"], "Tony_Blair");
}

/// Passes connections on to a database server, and cuts them while told to.
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
async fn a_database_that_goes_away_is_503_and_comes_back_by_itself() {
    let Some(engine) = Engine::of_this_run() else { return };
    let _ = models!();
    let (cut, is_cut) = watch::channel(false);
    let database = engine.new_database();
    let (login, rest) = database.split_once('@').unwrap();
    let (address, name) = rest.split_once('/').unwrap();
    let port = proxy(address.to_owned(), is_cut).await;
    let url = format!("{login}@127.0.0.1:{port}/{name}");
    let server = start!(|config| (config.database_url, config.database_timeout_s) = (Some(url), 1));
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
            begun.elapsed() < Duration::from_secs(20),
            "the database is back, and the server does not see it"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    assert_eq!(listed["people"][0]["face_id"], "Ada");
    server.train().await;
}
