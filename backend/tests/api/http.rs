//! HTTP: HEAD, forms of various clients, keep-alive and half-closed connections, browsers of other origins, and proxies
//! that strip a prefix of the path.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use facepipe_backend::Config;
use reqwest::{Method, StatusCode, header, multipart::Form};
use serde_json::json;

use crate::{
    contract::DOCUMENT,
    helpers::{ApiResponse, Server, file, photograph, photograph_path, start},
    metrics::{Scrape, with_metrics},
    proxies::Nginx,
};

pub fn address(server: &Server) -> String {
    server.url.split_once("://").unwrap().1.to_owned()
}

/// A response as it came over the wire.
pub struct Raw {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Raw {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Reads until the server closes the connection.
    fn read_to_end(connection: &mut TcpStream) -> Self {
        connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut bytes = Vec::new();
        connection.read_to_end(&mut bytes).unwrap();
        Self::parse(&bytes)
    }

    /// Reads one response with a length, on a connection that stays open.
    fn read_one(connection: &mut TcpStream) -> Self {
        connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte).unwrap();
            bytes.push(byte[0]);
        }
        let mut answer = Self::parse(&bytes);
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        answer.body = vec![0; length];
        connection.read_exact(&mut answer.body).unwrap();
        answer
    }

    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {}", bytes.escape_ascii()));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("{head}"))[..3].parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }
}

/// Sends these bytes on a new connection and returns the response; the server must then close it.
async fn raw(server: &Server, request: Vec<u8>) -> Raw {
    let address = address(server);
    let sending = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(&request).unwrap();
        Raw::read_to_end(&mut connection)
    });
    sending.await.unwrap()
}

/// The response to GET of a path, spelled exactly so.
pub async fn raw_get(server: &Server, path: &str) -> Raw {
    raw(server, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes())
        .await
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    let person = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    let id = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let (person, image) = (id(&person["person_id"]), id(&person["images"][0]["image_id"]));
    let mut paths: Vec<String> = DOCUMENT["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, item)| item["get"].is_object())
        .map(|(path, _)| {
            path.replace("{id}", "Tony_Blair")
                .replace("{person_id}", &person)
                .replace("{image_id}", &image)
                .replace("{detection_id}", "1")
                .replace("{job_id}", "none")
        })
        .collect();
    assert!(paths.len() >= 15, "{paths:?}");
    paths.extend(["/docs".into(), "/docs/".into(), "/docs/swagger-ui.css".into()]);
    for path in paths {
        let request = |method: &str| {
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes()
        };
        let (get, head) = (raw(&server, request("GET")).await, raw(&server, request("HEAD")).await);
        assert_eq!(head.status, get.status, "{path}");
        assert!(head.body.is_empty() && (get.status == 307 || !get.body.is_empty()), "{path}");
        // Reading the audit log adds an entry to it.
        if path != "/audit" {
            assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        }
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert!(get.header("content-length").is_some(), "{path}");
    }
    // The connection can be used again: no body was sent.
    let mut connection = TcpStream::connect(address(&server)).unwrap();
    let kept = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            connection.write_all(b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                connection.read_exact(&mut byte).unwrap();
                bytes.push(byte[0]);
            }
            assert!(bytes.starts_with(b"HTTP/1.1 200"), "{}", bytes.escape_ascii());
        }
    });
    kept.await.unwrap();

    let answer = server.client.head(format!("{}/model/train", server.url)).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["allow"].to_str().unwrap()), (405, "POST"));
    let answer = server.client.put(format!("{}/dataset/x", server.url)).send().await.unwrap();
    assert_eq!(answer.headers()["allow"], "GET, HEAD, POST, PATCH, DELETE");
}

#[tokio::test]
async fn head_needs_the_same_token_as_get() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "admin admin-0123456789\ncamera camera-0123456789\n").unwrap();
    let server = start!(|config| config.listener.token_file = Some(tokens));
    for (token, path, status) in [
        ("", "/dataset", 401),
        ("camera-0123456789", "/dataset", 403),
        ("admin-0123456789", "/dataset", 200),
        ("", "/readyz", 200),
    ] {
        let request = server.client.head(format!("{}{path}", server.url)).bearer_auth(token);
        assert_eq!(request.send().await.unwrap().status().as_u16(), status, "{path} {token:?}");
    }
}

/// A form of one photograph: the headers of its part, and the line ends before boundaries.
fn form(boundary: &str, part_head: &[u8], picture: &[u8]) -> Vec<u8> {
    let delimiter = |end: &str| format!("--{boundary}{end}\r\n").into_bytes();
    [&delimiter("")[..], part_head, b"\r\n\r\n", picture, b"\r\n", &delimiter("--")].concat()
}

fn post(path: &str, content_type: &[u8], body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\nContent-Type: ",
        body.len()
    );
    [head.as_bytes(), content_type, b"\r\n\r\n", body].concat()
}

#[tokio::test]
async fn forms_with_common_mistakes_are_read() {
    let server = start!();
    let plain = &b"Content-Disposition: form-data; name=\"image\"; filename=\"a.jpg\""[..];
    for (content_type, boundary, part_head) in [
        // Unquoted boundaries of Java's mail library, and others with characters that should be quoted.
        (&b"multipart/form-data; boundary=----=_Part_0_1.2"[..], "----=_Part_0_1.2", plain),
        (b"multipart/form-data; boundary=a:b/c?(d),'e'", "a:b/c?(d),'e'", plain),
        (b"multipart/form-data; boundary=\"----=_Part 0_1.2\"", "----=_Part 0_1.2", plain),
        (b"Multipart/Form-Data; Boundary=b; charset=UTF-8", "b", plain),
        (b"MULTIPART/FORM-DATA ;charset=UTF-8;BOUNDARY=b", "b", plain),
        // File names in other encodings, in none, and malformed ones.
        (
            b"multipart/form-data; boundary=b",
            "b",
            b"Content-Disposition: form-data; name=\"image\"; filename=\"\xe4\xff.jpg\"",
        ),
        (
            b"multipart/form-data; boundary=b",
            "b",
            b"Content-Disposition: form-data; filename=\"\xe4.jpg\"; name=\"image\"",
        ),
        (b"multipart/form-data; boundary=b", "b", b"Content-Disposition: form-data; name=\"image\""),
        (b"multipart/form-data; boundary=b", "b", b"Content-Disposition: form-data; name=image; filename="),
        (
            b"multipart/form-data; boundary=b",
            "b",
            b"content-disposition: Form-Data; NAME=\"image\"; filename=\"C:\\x\\a.jpg\"",
        ),
        (
            b"multipart/form-data; boundary=b",
            "b",
            b"Content-Disposition: form-data; name=\"image\"; filename*=x",
        ),
        (
            b"multipart/form-data; boundary=b",
            "b",
            b"Content-Type: nonsense\r\nContent-Disposition: form-data; name=\"image\"",
        ),
    ] {
        for path in ["/face-recognition/dry-run", "/dataset/x/image"] {
            let answer = raw(&server, post(path, content_type, &form(boundary, part_head, b"picture"))).await;
            // Enrolment looks up the person only after it has read the form.
            let wanted = if path.starts_with("/face") { 204 } else { 404 };
            let told = String::from_utf8_lossy(&answer.body);
            assert_eq!(
                answer.status,
                wanted,
                "{path} {} {}: {told}",
                content_type.escape_ascii(),
                part_head.escape_ascii()
            );
        }
    }
    for (content_type, part_head, status, named) in [
        (&b"multipart/form-data"[..], plain, 400, "boundary"),
        (b"multipart/form-data; boundary=", plain, 400, "boundary"),
        (b"multipart/form-data; boundary=\"\xe4\"", plain, 400, "boundary"),
        (b"multipart/mixed; boundary=b", plain, 415, "multipart/form-data"),
        (b"application/x-www-form-urlencoded", plain, 415, "multipart/form-data"),
        (b"multipart/form-data; boundary=b", b"Content-Disposition: form-data; filename=\"a\"", 400, "name"),
        (b"multipart/form-data; boundary=b", b"Content-Type: image/jpeg", 400, "name"),
        (b"multipart/form-data; boundary=c", plain, 400, "form"),
    ] {
        let answer =
            raw(&server, post("/face-recognition/dry-run", content_type, &form("b", part_head, b"x"))).await;
        let told = String::from_utf8_lossy(&answer.body);
        assert!(answer.status == status && told.contains(named), "{}: {told}", content_type.escape_ascii());
    }
}

#[tokio::test]
async fn media_types_are_compared_without_case() {
    let server = start!();
    server.post("/dataset/Ada").await.expect(StatusCode::CREATED);
    for (name, content_type) in [("Eve", "APPLICATION/Json"), ("Ada", "Application/JSON; Charset=UTF-8")] {
        let from = if name == "Eve" { "Ada" } else { "Eve" };
        let request = server.client.patch(format!("{}/dataset/{from}", server.url));
        let request =
            request.header("content-type", content_type).body(json!({ "face_id": name }).to_string());
        ApiResponse::read(request.send().await.unwrap()).await.expect(StatusCode::OK);
    }
    for accept in ["text/csv", "TEXT/CSV", "Text/Csv; Q=1, application/json;q=0.5"] {
        let request =
            server.client.get(format!("{}/database/detections", server.url)).header("accept", accept);
        let answer = request.send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/csv"), "{accept}");
    }
}

#[tokio::test]
async fn connections_outlive_their_announced_timeout() {
    assert!(Config::default().listener.keep_alive_s > 60, "nginx keeps its connections for 60 s");
    let server = start!(|config| config.listener.keep_alive_s = 1);
    let mut connection = TcpStream::connect(address(&server)).unwrap();
    let kept = tokio::task::spawn_blocking(move || {
        for path in ["/livez", "/nothing", "/livez"] {
            write!(connection, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let answer = Raw::read_one(&mut connection);
            assert_eq!(answer.header("keep-alive"), Some("timeout=1"), "{}", answer.head);
            assert_eq!(answer.header("connection"), None);
        }
        let idle = Instant::now();
        assert_eq!(connection.read(&mut [0]).unwrap(), 0);
        idle.elapsed()
    });
    let kept = kept.await.unwrap();
    assert!(kept > Duration::from_secs(1), "the connection was closed after {kept:?}");

    // A connection that is closed is announced.
    let closing =
        raw(&server, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec()).await;
    assert_eq!((closing.header("keep-alive"), closing.header("connection")), (None, Some("close")));
    let offering =
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n";
    let closing = raw(&server, offering.to_vec()).await;
    assert_eq!((closing.header("keep-alive"), closing.header("connection")), (None, Some("close")));
    let mut old = TcpStream::connect(address(&server)).unwrap();
    old.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    old.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") && !answer.contains("keep-alive"), "{answer}");
}

#[tokio::test]
async fn pooled_clients_lose_no_post() {
    let server = start!();
    let client = reqwest::Client::builder().pool_max_idle_per_host(4).build().unwrap();
    // Longer than a former timeout of connections.
    for pause in [0, 0, 5500] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let calls = (0..8).map(|_| {
            let request = client.post(format!("{}/face-recognition/dry-run", server.url));
            let request = request.multipart(Form::new().part("image", file(vec![1])));
            tokio::spawn(async move { request.send().await.unwrap().status() })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap(), StatusCode::NO_CONTENT);
        }
    }
}

#[tokio::test]
async fn a_stopping_server_closes_connections_after_each_response() {
    let server = start!(|config| config.listener.drain_delay_s = 1);
    let mut kept = TcpStream::connect(address(&server)).unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut kept = tokio::task::spawn_blocking(move || {
        assert!(Raw::read_one(&mut kept).header("keep-alive").is_some());
        kept
    })
    .await
    .unwrap();
    server.begin_to_stop();
    kept.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let answer = tokio::task::spawn_blocking(move || Raw::read_to_end(&mut kept)).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("connection"), answer.header("keep-alive")),
        (200, Some("close"), None)
    );
    server.stopped().await;
}

/// A recognition request for a photograph, as it goes over the wire.
pub fn question(pictures: usize) -> Vec<u8> {
    let picture = fs::read(photograph_path("Tony_Blair", 2)).unwrap();
    let head = b"--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n";
    let mut body = Vec::new();
    for _ in 0..pictures {
        body.extend([&head[..], &picture, b"\r\n"].concat());
    }
    body.extend(b"--b--\r\n");
    let head = format!(
        "POST /face-recognition/get-results HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

#[tokio::test]
async fn a_half_closed_client_gets_its_response() {
    let server = start!();
    for request in [
        question(1),
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"GET /dataset HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        // More than fits into any buffer in between.
        post(
            "/face-recognition/dry-run",
            b"multipart/form-data; boundary=b",
            &form("b", b"Content-Disposition: form-data; name=\"image\"", &vec![7; 9_000_000]),
        ),
    ] {
        let address = address(&server);
        let answer = tokio::task::spawn_blocking(move || {
            let mut connection = TcpStream::connect(address).unwrap();
            connection.write_all(&request).unwrap();
            connection.shutdown(Shutdown::Write).unwrap();
            let answer = Raw::read_to_end(&mut connection);
            (answer, String::from_utf8_lossy(&request[..30]).into_owned())
        });
        let (answer, request) = answer.await.unwrap();
        assert!(matches!(answer.status, 200 | 204), "{request}: {}", answer.head);
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        assert_eq!(answer.body.len(), length, "{request}");
        if request.starts_with("POST /face-recognition/get") {
            let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(body["faces"].as_array().unwrap().len(), 1);
        }
    }
    // Half a request is not a request.
    let half = question(1)[..2000].to_vec();
    let address = address(&server);
    let ended = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(&half).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        connection.read_to_end(&mut answer).unwrap();
        answer
    });
    let answer = ended.await.unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", answer.escape_ascii());
}

#[tokio::test]
async fn half_closed_clients_are_distinguished_from_those_that_left() {
    const KEPT: usize = 24;
    const EACH: usize = 8;
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        config.recognition.queue_images = 128;
        config.recognition.queue_budget_ms = 600_000;
    });
    // Keeps the workers busy while other clients connect and leave.
    let pictures = (0..KEPT).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 1)));
    let request =
        server.client.post(format!("{}/face-recognition/get-results", server.url)).multipart(pictures);
    let kept = tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await });
    while Scrape::of(&server).await.value("facepipe_queue_images") < KEPT as f64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ask = || {
        let mut connection = TcpStream::connect(address(&server)).unwrap();
        connection.write_all(&question(1)).unwrap();
        connection
    };
    let waiting: Vec<TcpStream> = (0..EACH).map(|_| ask()).collect();
    let gone: Vec<TcpStream> = (0..EACH).map(|_| ask()).collect();
    while Scrape::of(&server).await.value("facepipe_queue_images") < (KEPT + 2 * EACH) as f64 {
        assert!(!kept.is_finished(), "nobody had to wait");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    waiting.iter().for_each(|connection| connection.shutdown(Shutdown::Write).unwrap());
    drop(gone);
    for mut connection in waiting {
        let answer = tokio::task::spawn_blocking(move || Raw::read_to_end(&mut connection)).await.unwrap();
        assert_eq!(answer.status, 200);
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["faces"].as_array().unwrap().len(), 1);
    }
    kept.await.unwrap().expect(StatusCode::OK);
    assert_eq!(Scrape::of(&server).await.value("facepipe_requests_abandoned_total"), EACH as f64);
}

#[tokio::test]
async fn pages_of_configured_origins_may_use_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "admin admin-0123456789\n").unwrap();
    let server = start!(|config| {
        config.listener.token_file = Some(tokens);
        config.browsers.cors_origins =
            vec!["https://dashboard.example".into(), "http://localhost:3000/".into()];
    });
    let ask = |origin: &'static str, method: &'static str| {
        let request = server.client.request(Method::OPTIONS, format!("{}/dataset/Ada", server.url));
        let request = request.header(header::ORIGIN, origin);
        let request = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, method);
        request.header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type").send()
    };
    for origin in ["https://dashboard.example", "http://localhost:3000"] {
        for method in ["GET", "POST", "PATCH", "DELETE"] {
            // Without a token: browsers send none in a preflight.
            let answer = ask(origin, method).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "{origin} {method}");
            let told = |name: &str| answer.headers()[name].to_str().unwrap().to_lowercase();
            assert_eq!(told("access-control-allow-origin"), origin);
            assert!(told("access-control-allow-methods").contains(&method.to_lowercase()));
            let headers = told("access-control-allow-headers");
            assert!(headers.contains("authorization") && headers.contains("content-type"), "{headers}");
            assert!(!answer.headers().contains_key("access-control-allow-credentials"));
        }
        for (token, status) in [("admin-0123456789", 200), ("wrong-0123456789", 401)] {
            let request = server.client.get(format!("{}/dataset", server.url)).header(header::ORIGIN, origin);
            let answer = request.bearer_auth(token).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status);
            assert_eq!(answer.headers()["access-control-allow-origin"], origin);
            let exposed = answer.headers()["access-control-expose-headers"].to_str().unwrap().to_lowercase();
            assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"), "{exposed}");
            let varies: Vec<_> =
                answer.headers().get_all("vary").iter().map(|v| v.to_str().unwrap().to_lowercase()).collect();
            assert!(varies.join(",").contains("origin"), "{varies:?}");
        }
    }
    let refused = ask("https://dashboard.example.evil.example", "GET").await.unwrap();
    assert!(!refused.headers().contains_key("access-control-allow-origin"));
    let request =
        server.client.get(format!("{}/livez", server.url)).header(header::ORIGIN, "https://evil.example");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn without_cors_origins_no_page_may_use_the_server() {
    let server = start!();
    for method in [Method::OPTIONS, Method::GET] {
        let request = server.client.request(method, format!("{}/dataset", server.url));
        let request = request.header(header::ORIGIN, "https://dashboard.example");
        let answer = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET").send().await.unwrap();
        assert!(!answer.headers().keys().any(|name| name.as_str().starts_with("access-control")));
        ApiResponse::read(answer).await.expect_error(403, "foreign_origin");
    }
}

#[tokio::test]
async fn links_work_behind_a_proxy_that_strips_a_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let port = facepipe_test_support::free_port();
    let public = format!("http://127.0.0.1:{port}/some/faces");
    let server = start!(|config| config.browsers.public_url = Some(format!("{public}/")));
    let site = format!(
        "server {{ listen 127.0.0.1:{port}; location /some/faces/ {{ proxy_pass {}/; proxy_http_version 1.1; }} }}",
        server.url
    );
    let _nginx = Nginx::start(folder.path(), &site, port);

    // The page, its document, and the server that it calls.
    let page = server.client.get(format!("{public}/docs")).send().await.unwrap();
    assert_eq!((page.status(), page.url().as_str()), (StatusCode::OK, format!("{public}/docs/").as_str()));
    let document = page.url().join("../openapi.json").unwrap();
    let begin = server.client.get(page.url().join("swagger-initializer.js").unwrap()).send().await.unwrap();
    assert!(begin.text().await.unwrap().contains("../openapi.json"));
    let document: serde_json::Value =
        serde_json::from_str(&server.client.get(document).send().await.unwrap().text().await.unwrap())
            .unwrap();
    let base = document["servers"][0]["url"].as_str().unwrap();
    assert_eq!(base, public);
    let answer = server.client.get(format!("{base}/dataset")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);

    let answer = server.client.post(format!("{public}/model/optimized-train")).send().await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap();
    assert!(location.starts_with(&format!("{public}/jobs/")), "{location}");
    assert_eq!(server.client.get(location).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn no_header_sets_the_prefix() {
    // Without tokens, requests with headers of proxies are refused.
    let server = start!(|config| config.listener.insecure = true);
    let plain = server.get("/openapi.json").await.expect(StatusCode::OK);
    assert_eq!(plain["servers"][0]["url"], "/");
    let request = |path: &str, method: Method| {
        let request = server.client.request(method, format!("{}{path}", server.url));
        request.header("x-forwarded-prefix", "/evil").header("x-forwarded-host", "evil.example").send()
    };
    let document = ApiResponse::read(request("/openapi.json", Method::GET).await.unwrap()).await;
    assert_eq!(document.body, plain);
    let answer = request("/model/optimized-train", Method::POST).await.unwrap();
    assert!(answer.headers()["location"].to_str().unwrap().starts_with("/jobs/"));
}

#[tokio::test]
async fn a_jpeg_without_its_end_marker_is_accepted_with_a_note() {
    let server = start!();
    let jpeg = fs::read(photograph_path("Tony_Blair", 1)).unwrap();
    assert!(jpeg.ends_with(&[0xff, 0xd9]));
    let without = || file(jpeg[..jpeg.len() - 2].to_vec());
    let notes = json!([{
        "image": 0,
        "code": "jpeg_end_missing",
        "message": "the JPEG has no end marker; its pixels are complete",
    }]);
    server.post("/dataset/Tony_Blair").await.expect(StatusCode::CREATED);
    let answer = server.send("/dataset/Tony_Blair/image", Form::new().part("image", without())).await;
    assert_eq!(answer.expect(StatusCode::CREATED)["notes"], notes);
    let both = Form::new().part("image", without()).part("image", photograph("Tony_Blair", 1));
    let answer = server.send("/face-recognition/verify", both).await.expect(StatusCode::OK);
    assert_eq!(answer["notes"], notes);
    // The same pixels.
    assert!(answer["similarity"].as_f64().unwrap() > 0.999, "{answer}");
    let both = || Form::new().text("camera_id", "c").text("location", "l").part("image", without());
    let both = || both().part("image", photograph("Tony_Blair", 1));
    for (path, status) in [("get-results", StatusCode::OK), ("store-results", StatusCode::CREATED)] {
        let answer = server.send(&format!("/face-recognition/{path}"), both()).await.expect(status);
        assert_eq!((&answer["notes"], answer["faces"].as_array().unwrap().len()), (&notes, 2));
        assert_eq!(answer["faces"][0]["bounding_box"], answer["faces"][1]["bounding_box"]);
    }
    let answer = server.recognise("Tony_Blair", 1).await;
    assert_eq!(answer.get("notes"), None);
    // Every call rejects one that lacks more.
    let cut = || file(jpeg[..jpeg.len() - 40].to_vec());
    for path in ["/dataset/Tony_Blair/image", "/face-recognition/get-results"] {
        let answer = server.send(path, Form::new().part("image", cut())).await;
        assert!(answer.expect_error(422, "image_unreadable").contains("ends before its last pixel"));
    }
}

#[tokio::test]
async fn an_image_without_exactly_one_face_is_rejected_with_details() {
    let server = start!();
    server.post("/dataset/x").await.expect(StatusCode::CREATED);
    let group = fs::read(facepipe_test_support::require!("scenes/multiface.jpg")).unwrap();
    let seen = Form::new().part("image", file(group.clone()));
    let seen = server.send("/face-recognition/get-results", seen).await.expect(StatusCode::OK);
    let seen = seen["faces"].as_array().unwrap();
    let boxes: Vec<_> = seen
        .iter()
        .map(|face| {
            json!({ "bounding_box": face["bounding_box"], "detection_confidence": face["detection_confidence"] })
        })
        .collect();
    assert!(boxes.len() > 1);
    let enrolled = Form::new().part("image", file(group.clone()));
    let enrolled = server.send("/dataset/x/image", enrolled).await;
    let compared = Form::new().part("image", photograph("Tony_Blair", 1)).part("image", file(group));
    let compared = server.send("/face-recognition/verify", compared).await;
    for (answer, image) in [(enrolled, 0), (compared, 1)] {
        assert_eq!(
            answer.body["error"]["details"],
            json!({ "image": image, "faces": boxes.len(), "boxes": boxes })
        );
        let left = seen[0]["bounding_box"]["left"].as_f64().unwrap();
        let message = answer.expect_error(422, "several_faces");
        assert!(message.contains(&format!("at {left:.0},")), "{message}");
    }
}

#[tokio::test]
async fn the_rotation_of_a_sideways_image_is_reported() {
    let server = start!();
    server.post("/dataset/x").await.expect(StatusCode::CREATED);
    let png = |image: &image::RgbImage| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        file(bytes.into_inner())
    };
    // The detector finds the face on some as they are; for all others the error has the rotation.
    let mut told = [0; 3];
    for person in ["Tony_Blair", "Hugo_Chavez", "Colin_Powell", "Jacques_Chirac"] {
        let upright = image::open(photograph_path(person, 1)).unwrap().into_rgb8();
        for (lying, (turn_back, picture)) in [
            (270, image::imageops::rotate90(&upright)),
            (180, image::imageops::rotate180(&upright)),
            (90, image::imageops::rotate270(&upright)),
        ]
        .into_iter()
        .enumerate()
        {
            let both = Form::new().part("image", photograph("Tony_Blair", 1)).part("image", png(&picture));
            let answer = server.send("/face-recognition/verify", both).await;
            if answer.status == StatusCode::OK {
                continue;
            }
            let details = json!({ "image": 1, "faces": 0, "turned": turn_back });
            assert_eq!(answer.body["error"]["details"], details, "{person}");
            let message = answer.expect_error(422, "no_face");
            assert!(message.contains(&format!("clockwise by {turn_back} degrees")), "{message}");
            told[lying] += 1;
            if told[lying] == 1 {
                let answer = server.send("/dataset/x/image", Form::new().part("image", png(&picture))).await;
                assert_eq!(answer.body["error"]["details"]["turned"], turn_back);
                answer.expect_error(422, "no_face");
            }
        }
    }
    assert!(told.iter().all(|&told| told >= 1) && told.iter().sum::<usize>() >= 5, "{told:?}");
    let answer =
        server.send("/dataset/x/image", Form::new().part("image", crate::helpers::landscape())).await;
    assert_eq!(answer.body["error"]["details"], json!({ "image": 0, "faces": 0, "turned": null }));
    assert!(!answer.expect_error(422, "no_face").contains("turned"));
}
