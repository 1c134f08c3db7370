//! TLS: real clients over HTTP/1.1 and HTTP/2, certificates that are replaced while requests run, clients that leave.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use facepipe_backend::Config;
use reqwest::{Client, StatusCode, Version, multipart::Form};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    command_line::program,
    helpers::{ApiResponse, Engine, Server, client, photograph, photograph_path, start},
    http::{Raw, address, question},
    metrics::{Scrape, documented, with_metrics},
    shares::until_value,
};

/// A certificate of this machine and its key, made by the program.
struct Certificate {
    folder: TempDir,
    told: String,
}

impl Certificate {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut make = program();
        make.args(["tls", "self-signed", "--host", "localhost", "--host", "127.0.0.1", "--out"]);
        let output = make.arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { told: String::from_utf8(output.stdout).unwrap(), folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// The digest of the key, as curl and facesink-http take it.
    fn pin(&self) -> &str {
        self.told.split_whitespace().find(|word| word.starts_with("sha256//")).unwrap()
    }

    fn configure(&self, config: &mut Config) {
        config.tls.tls_certificate = Some(self.file());
        config.tls.tls_key = Some(self.key());
    }

    /// Puts this certificate and its key where another one's are, as tools for certificates do: by renaming.
    fn replace(&self, other: &Self) {
        for (new, old) in [(self.file(), other.file()), (self.key(), other.key())] {
            let beside = old.with_extension("new");
            fs::copy(new, &beside).unwrap();
            fs::rename(beside, old).unwrap();
        }
    }
}

/// A client configuration that trusts certificates of these files.
fn trusting(certificates: &[&Certificate]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(CertificateDer::from_pem_file(certificate.file()).unwrap()).unwrap();
    }
    client();
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

/// An HTTP client that trusts certificates of these files, with HTTP/2 where the server has it.
fn http_client(certificates: &[&Certificate], pooled: usize) -> Client {
    let mut config = trusting(certificates);
    config.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
    Client::builder().tls_backend_preconfigured(config).pool_max_idle_per_host(pooled).build().unwrap()
}

async fn connect(server: &Server, certificate: &Certificate) -> TlsStream<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(address(server)).await.unwrap();
    let connector = TlsConnector::from(Arc::new(trusting(&[certificate])));
    connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

async fn curl(arguments: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60"]).args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[tokio::test]
async fn curl_speaks_both_versions_of_http_and_trusts_only_the_right_certificate() {
    let (certificate, other) = (Certificate::new(), Certificate::new());
    let server = start!(|config: &mut Config| certificate.configure(config));
    let url = |path: &str| format!("{}{path}", server.url);
    let (file, wrong) = (certificate.file(), other.file());
    let (file, wrong) = (file.to_str().unwrap(), wrong.to_str().unwrap());
    assert!(server.url.starts_with("https://"), "{}", server.url);
    for (version, wanted) in [("--http2", "2"), ("--http1.1", "1.1")] {
        for limit in ["--tlsv1.3", "--tls-max=1.2"] {
            let (limit, value) =
                limit.split_once('=').map_or((limit, None), |(flag, value)| (flag, Some(value)));
            let mut arguments = vec!["--cacert", file, version, limit];
            arguments.extend(value);
            let livez = url("/livez");
            arguments.extend(["--include", "--write-out", "\n%{http_version} %{response_code}", &livez]);
            let told = text(&curl(&arguments).await);
            assert!(told.ends_with(&format!("\n{wanted} 200")), "{version} {limit}: {told}");
            assert!(told.to_lowercase().contains("strict-transport-security: max-age=31536000"), "{told}");
        }
        let picture = format!("image=@{}", photograph_path("Tony_Blair", 1).display());
        let asked = url("/face-recognition/get-results");
        let told = text(&curl(&["--cacert", file, version, "--form", &picture, &asked]).await);
        let answer: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("{told}"));
        assert_eq!(answer["faces"].as_array().unwrap().len(), 1);
        // More than any window, and a response of several frames.
        let large = certificate.folder.path().join("large");
        fs::write(&large, vec![7; 9_000_000]).unwrap();
        let (form, dry_run) = (format!("image=@{}", large.display()), url("/face-recognition/dry-run"));
        let told =
            curl(&["--cacert", file, version, "--form", &form, "-w", "%{response_code}", &dry_run]).await;
        assert_eq!(text(&told), "204");
        let document = curl(&["--cacert", file, version, &url("/openapi.json")]).await;
        let document: serde_json::Value = serde_json::from_slice(&document.stdout).unwrap();
        assert_eq!(document["openapi"].as_str().unwrap().get(..2), Some("3."));
        let head = curl(&["--cacert", file, version, "--head", &url("/openapi.json")]).await;
        assert!(text(&head).to_lowercase().contains("content-length: "), "{}", text(&head));
        let missing = curl(&["--cacert", file, version, "-X", "PATCH", &url("/nowhere")]).await;
        assert!(text(&missing).contains("\"not_found\""), "{}", text(&missing));
    }
    let pinned = curl(&["--insecure", "--pinnedpubkey", certificate.pin(), &url("/livez")]).await;
    assert!(pinned.status.success(), "{}", text(&pinned));
    for wrong in [vec!["--cacert", wrong], vec!["--insecure", "--pinnedpubkey", other.pin()]] {
        let livez = url("/livez");
        let refused = curl(&[wrong, vec![livez.as_str()]].concat()).await;
        assert!(matches!(refused.status.code(), Some(60 | 90)), "{}", text(&refused));
    }
    // A request in clear gets an answer that says what to do, and nothing of it is served.
    let clear = curl(&["--include", &url("/livez").replace("https:", "http:")]).await;
    assert!(text(&clear).starts_with("HTTP/1.1 400"), "{}", text(&clear));
    assert!(text(&clear).contains("\"https_expected\""), "{}", text(&clear));
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_is_replaced_without_a_failed_request() {
    let (old, new) = (Certificate::new(), Certificate::new());
    let server = start!(|config: &mut Config| {
        old.configure(config);
        with_metrics(config);
    });
    let expiry = |certificate: &Certificate| {
        let mut read = Command::new("openssl");
        read.args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"]);
        let output = read.arg(certificate.file()).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let told = told.trim().strip_prefix("notAfter=").unwrap().replace(' ', "T");
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(&told, format).unwrap().unix_timestamp() as f64
    };
    let metric = "facepipe_tls_certificate_expires_timestamp_seconds";
    let scrape = Scrape::of(&server).await;
    assert_eq!(scrape.value(metric), expiry(&old));
    let of_tls = |shapes: BTreeSet<(String, String, String)>| {
        shapes.into_iter().filter(|(name, ..)| name.starts_with("facepipe_tls_")).collect::<Vec<_>>()
    };
    assert_eq!(of_tls(scrape.shapes()), of_tls(documented()));

    // Half of the clients keep their connections.
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let client = http_client(&[&old, &new], number % 2);
            let (url, stop, done) = (format!("{}/livez", server.url), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.get(&url).send().await.unwrap();
                    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
                    answer.bytes().await.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let (old_only, new_only) = (http_client(&[&old], 1), http_client(&[&new], 0));
    let livez = format!("{}/livez", server.url);
    let accepted = async |client: &Client| client.get(&livez).send().await.is_ok();
    assert!(accepted(&old_only).await && !accepted(&new_only).await);

    // A broken one changes nothing.
    let copy = Certificate::new();
    old.replace(&copy);
    fs::write(old.file(), "broken").unwrap();
    let so_far = done.load(Ordering::Relaxed);
    while done.load(Ordering::Relaxed) < so_far + 100 {
        assert!(accepted(&http_client(&[&copy], 0)).await);
    }
    new.replace(&old);
    while !accepted(&new_only).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Its connection is that of before.
    assert!(accepted(&old_only).await);
    assert_eq!(Scrape::of(&server).await.value(metric), expiry(&new));
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(done.load(Ordering::Relaxed) > 100);
}

#[tokio::test]
async fn clients_that_wait_are_distinguished_from_those_that_left_over_tls() {
    const KEPT: usize = 48;
    const EACH: usize = 4;
    let certificate = Certificate::new();
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        certificate.configure(config);
        config.recognition.queue_images = 128;
        config.recognition.queue_budget_ms = 600_000;
    });
    let http = http_client(&[&certificate], 4);
    let asked = format!("{}/face-recognition/get-results", server.url);
    let queued = async |images: usize| {
        while Scrape::of(&server).await.value("facepipe_queue_images") < images as f64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    // Handshakes take longer than the workers are kept busy.
    let (mut waiting, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..EACH {
        for into in [&mut waiting, &mut gone] {
            into.push(connect(&server, &certificate).await);
        }
    }
    // Keeps the workers busy while other clients ask and leave.
    let pictures = (0..KEPT).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 1)));
    let request = http.post(&asked).multipart(pictures);
    let kept = tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await });
    queued(KEPT).await;
    for connection in waiting.iter_mut().chain(&mut gone) {
        connection.write_all(&question(1)).await.unwrap();
        connection.flush().await.unwrap();
    }
    // Over HTTP/2, leaving is the reset of a stream: the connection goes on.
    let reset: Vec<_> = (0..EACH)
        .map(|_| {
            let form = Form::new().part("image", photograph("Tony_Blair", 2));
            let request = http.post(&asked).multipart(form);
            tokio::spawn(async move { request.send().await.map(|_| ()) })
        })
        .collect();
    tokio::select! {
        biased;
        () = queued(KEPT + 3 * EACH) => (),
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("nobody had to wait"),
    }
    for connection in &mut waiting {
        // Sends the alert that closes this side, and closes it in TCP.
        connection.shutdown().await.unwrap();
    }
    for connection in gone {
        let (mut tcp, mut tls) = connection.into_inner();
        // Half of those that leave say so.
        tls.send_close_notify();
        let mut alert = Vec::new();
        tls.write_tls(&mut alert).unwrap();
        tcp.write_all(&alert).await.unwrap();
    }
    reset.iter().for_each(|call| call.abort());
    for mut connection in waiting {
        let mut bytes = Vec::new();
        connection.read_to_end(&mut bytes).await.unwrap();
        let answer = Raw::parse(&bytes);
        assert_eq!(answer.status, 200);
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["faces"].as_array().unwrap().len(), 1);
    }
    kept.await.unwrap().expect(StatusCode::OK);
    assert_eq!(Scrape::of(&server).await.value("facepipe_requests_abandoned_total"), 2.0 * EACH as f64);
}

#[tokio::test]
async fn a_stopping_server_answers_requests_of_http2_and_closes_its_connections() {
    let certificate = Certificate::new();
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        certificate.configure(config);
        // An open connection would keep the server that long.
        config.listener.shutdown_timeout_s = 3600;
    });
    let (idle, busy) = (http_client(&[&certificate], 1), http_client(&[&certificate], 1));
    assert!(idle.get(format!("{}/livez", server.url)).send().await.unwrap().status().is_success());
    let pictures = (0..8).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 1)));
    let request = busy.post(format!("{}/face-recognition/get-results", server.url)).multipart(pictures);
    let call = tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await });
    while Scrape::of(&server).await.value("facepipe_queue_images") < 8.0 {
        assert!(!call.is_finished(), "the server is faster than the test");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.begin_to_stop();
    let answer = call.await.unwrap().expect(StatusCode::OK);
    assert_eq!(answer["faces"].as_array().unwrap().len(), 8);
    tokio::time::timeout(Duration::from_secs(60), server.stopped()).await.expect("it stops");
    drop(idle);
}

#[tokio::test]
async fn a_client_that_does_not_shake_hands_is_disconnected_and_delays_nobody() {
    let certificate = Certificate::new();
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        certificate.configure(config);
        config.listener.request_timeout_s = 1;
        config.listener.http_workers = 1;
    });
    let mut silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address(&server)).unwrap()).collect();
    let http = http_client(&[&certificate], 0);
    for _ in 0..5 {
        let answer = http.get(format!("{}/livez", server.url)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    // Garbage is closed as well, without an answer.
    let mut garbage = TcpStream::connect(address(&server)).unwrap();
    garbage.write_all(&[0xff; 64]).unwrap();
    silent.push(garbage);
    let ended = tokio::task::spawn_blocking(move || {
        for mut connection in silent {
            connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            assert_eq!(connection.read(&mut [0]).unwrap_or(0), 0);
        }
    });
    ended.await.unwrap();
    until_value(&server, "facepipe_tls_handshakes_failed_total", |failed| failed == 21.0).await;
}

#[tokio::test]
async fn the_health_check_asks_by_https() {
    let certificate = Certificate::new();
    let server = start!(|config: &mut Config| certificate.configure(config));
    let (listen, folder) = (address(&server), certificate.folder.path().to_owned());
    let check = |certificate: Option<&Path>| {
        let mut command = program();
        command.args(["health", "--listen", &listen]);
        if let Some(certificate) = certificate {
            command.arg("--tls-certificate").arg(certificate).arg("--tls-key").arg(folder.join("key.pem"));
        }
        command
    };
    let commands = [check(Some(&certificate.file())), check(None)];
    let outcomes = tokio::task::spawn_blocking(move || commands.map(|mut command| command.output().unwrap()));
    let [with, without] = outcomes.await.unwrap();
    assert!(with.status.success(), "{}", text(&with));
    assert!(!without.status.success() && text(&without).contains("400"), "{}", text(&without));
    server.stop().await;
}

/// Makes an authority and a client's certificate by it that names a camera, in `folder`; returns the authority's file and that
/// of certificate and key together.
fn client_certificate(folder: &Path, camera: &str) -> (PathBuf, PathBuf) {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let uri = format!("urn:facepipe:camera:{camera}");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let signed = params.signed_by(&key, &issuer).unwrap();
    let (authority, client) = (folder.join(format!("{camera}-ca.pem")), folder.join(format!("{camera}.pem")));
    fs::write(&authority, issuer.pem()).unwrap();
    fs::write(&client, format!("{}{}", signed.pem(), key.serialize_pem())).unwrap();
    (authority, client)
}

#[tokio::test]
async fn client_certificates_are_optional_and_name_a_camera() {
    let certificate = Certificate::new();
    let folder = certificate.folder.path().to_owned();
    let (authority, known) = client_certificate(&folder, "gate-1");
    let (_, foreign) = client_certificate(&folder, "gate-2");
    let tokens = folder.join("tokens");
    fs::write(&tokens, "admin admin-0123456789\n").unwrap();
    let server = start!(|config: &mut Config| {
        certificate.configure(config);
        config.tls.tls_client_ca = Some(authority);
        config.listener.token_file = Some(tokens);
    });
    let (file, url) = (certificate.file(), format!("{}/dataset", server.url));
    let ask = async |version: &str, more: &[&str]| {
        let all = [&["-w", " %{response_code}", "--cacert", file.to_str().unwrap(), version, &url][..], more]
            .concat();
        let output = curl(&all).await;
        (output.status.code(), text(&output))
    };
    let token = ["-H", "Authorization: Bearer admin-0123456789"];
    let known = ["--cert", known.to_str().unwrap()];
    for version in ["--http2", "--http1.1"] {
        let (_, told) = ask(version, &[]).await;
        assert!(told.contains("needs a token"), "{told}");
        let (_, told) = ask(version, &known).await;
        assert!(told.contains("certificate names no camera of this server"), "{told}");
        for with in [&token[..], &[token, known].concat()] {
            let (code, told) = ask(version, with).await;
            assert!(code == Some(0) && told.ends_with(" 200"), "{told}");
        }
        let (code, told) = ask(version, &["--cert", foreign.to_str().unwrap()]).await;
        assert!(code != Some(0), "{told}");
    }
    server.stop().await;
}

#[test]
fn a_database_server_without_tls_is_refused_if_the_url_demands_it() {
    let (engine, query, reason) = match Engine::of_this_run() {
        // The embedded database has no connections.
        None => return,
        Some(engine @ Engine::Postgres) => (engine, "sslmode=require", "does not support SSL"),
        Some(engine @ Engine::Mysql) => (engine, "ssl_mode=required", "is not encrypted"),
    };
    let url = engine.new_database();
    let migrate = |url: String| {
        let mut command = program();
        command.arg("migrate").env("DATABASE_URL", url).args(["--database-start-timeout-s", "1"]);
        command.output().unwrap()
    };
    let refused = migrate(format!("{url}?{query}"));
    assert!(!refused.status.success() && text(&refused).contains(reason), "{}", text(&refused));
    let accepted = migrate(url);
    assert!(accepted.status.success(), "{}", text(&accepted));
}

#[test]
fn certificates_that_cannot_be_used_fail_the_start() {
    let (one, other) = (Certificate::new(), Certificate::new());
    let start = |certificate: &Path, key: Option<&Path>| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "off"]);
        command.arg("--data-dir").arg(folder.path()).arg("--models-dir").arg(folder.path());
        command.arg("--tls-certificate").arg(certificate);
        command.args(key.map(|key| format!("--tls-key={}", key.display())));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        text(&output)
    };
    let told = start(&one.file(), Some(&other.key()));
    assert!(told.contains("tls_key") && told.contains("is not the key of the certificate"), "{told}");
    let told = start(&one.file(), None);
    assert!(told.contains("tls_key is not: https needs both"), "{told}");
    let told = start(Path::new("/none/such.pem"), Some(&one.key()));
    assert!(told.contains("tls_certificate /none/such.pem cannot be read"), "{told}");
}
