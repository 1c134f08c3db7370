//! Authorisation: no token, a camera's, an admin's, and changes of the tokens while the server runs.

use std::{fs, path::Path, time::Duration};

use facepipe_backend::{Application, Config};
use reqwest::{
    Method, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
    multipart::Form,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    command_line::Running,
    contract::DOCUMENT,
    helpers::{Server, client, file, photograph, start},
};

const CAMERA: &str = "camera-0123456789abcdef";
const ADMIN: &str = "admin-0123456789abcdef";
const STRANGER: &str = "stranger-0123456789abcdef";

/// Writes the file atomically, as secrets are replaced.
pub fn write_tokens(folder: &Path, content: &str) {
    fs::write(folder.join("new"), content).unwrap();
    fs::rename(folder.join("new"), folder.join("tokens")).unwrap();
}

/// Starts a server with a camera's token and an admin's in a file of the folder, or ends the test as skipped.
macro_rules! start_with_tokens {
    ($folder:expr) => {{
        write_tokens($folder, &format!("# for a test\n\ncamera {CAMERA}\nadmin {ADMIN} # ours\n"));
        start!(|config| config.listener.token_file = Some($folder.join("tokens")))
    }};
}

/// Uses a token for all further calls.
pub fn use_token(server: &mut Server, token: Option<&str>) {
    client(); // Chooses the provider of TLS.
    let header = |token| HeaderValue::try_from(format!("Bearer {token}")).unwrap();
    let headers: HeaderMap = token.map(|token| (AUTHORIZATION, header(token))).into_iter().collect();
    server.client = reqwest::Client::builder().default_headers(headers).build().unwrap();
}

/// Every call of the document: method, path, and whether the document says that it needs no token.
fn calls() -> Vec<(Method, String, bool)> {
    let mut calls = Vec::new();
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let path: Vec<&str> =
                path.split('/').map(|segment| if segment.starts_with('{') { "7" } else { segment }).collect();
            calls.push((method, path.join("/"), operation["security"] == json!([])));
        }
    }
    assert!(calls.len() > 30, "{calls:?}");
    calls
}

#[tokio::test]
async fn each_call_accepts_the_documented_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start_with_tokens!(folder.path());
    let open = ["/", "/livez", "/openapi.json", "/readyz", "/startupz"];
    for token in [None, Some(STRANGER), Some(CAMERA), Some(ADMIN)] {
        use_token(&mut server, token);
        for (method, path, is_open) in calls() {
            assert_eq!(is_open, open.contains(&path.as_str()), "{method} {path}");
            let cameras = path.starts_with("/face-recognition/");
            let answer = server.call(method.clone(), &path).await;
            let (status, code) = (answer.status.as_u16(), answer.body["error"]["code"].as_str());
            match token {
                _ if is_open => assert_eq!(status, 200, "{method} {path}"),
                Some(ADMIN) => assert!(status != 401 && status != 403, "{method} {path}: {status}"),
                Some(CAMERA) if cameras => assert_eq!(status, 415, "{method} {path}"),
                Some(CAMERA) => {
                    assert_eq!((status, code), (403, Some("forbidden")), "{method} {path}");
                    let details = &answer.body["error"]["details"];
                    assert_eq!(details["has"], json!(["upload", "recognise"]), "{method} {path}");
                }
                _ => {
                    assert_eq!((status, code), (401, Some("unauthorized")), "{method} {path}");
                    assert_eq!(answer.headers["www-authenticate"], "Bearer");
                }
            }
        }
        let page = server.client.get(format!("{}/docs", server.url)).send().await.unwrap();
        assert_eq!((page.url().path(), page.status()), ("/docs/", StatusCode::OK));
    }
}

#[tokio::test]
async fn unknown_paths_need_a_token_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start_with_tokens!(folder.path());
    // No way of writing an open path opens another one.
    for path in
        ["/nothing", "/docs/../dataset", "/docsx", "/livez/x", "/%6civez", "//livez", "/dataset?/livez"]
    {
        let text =
            raw(&server.url, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        let expected = if path.starts_with("/docs/") { "HTTP/1.1 404" } else { "HTTP/1.1 401" };
        assert!(text.starts_with(expected), "{path}: {text}");
    }
    server.get("/nothing").await.expect_error(401, "unauthorized");
    server.call(Method::PUT, "/dataset").await.expect_error(401, "unauthorized");
    use_token(&mut server, Some(CAMERA));
    server.get("/nothing").await.expect_error(403, "forbidden");
    server.call(Method::PUT, "/dataset").await.expect_error(403, "forbidden");
    use_token(&mut server, Some(ADMIN));
    server.get("/nothing").await.expect_error(404, "not_found");
    server.call(Method::PUT, "/dataset").await.expect_error(405, "method_not_allowed");
}

#[tokio::test]
async fn only_bearer_tokens_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_tokens!(folder.path());
    for (header, status) in [
        (format!("Bearer {ADMIN}"), 200),
        (format!("bearer   {ADMIN}"), 200),
        (format!("Basic {ADMIN}"), 401),
        (ADMIN.to_owned(), 401),
        (format!("Bearer {ADMIN}x"), 401),
        (format!("Bearer {}", &ADMIN[..ADMIN.len() - 1]), 401),
        ("Bearer".to_owned(), 401),
        ("Bearer ".to_owned(), 401),
        ("Bearer ß".to_owned(), 401),
    ] {
        let request = server.client.get(format!("{}/dataset", server.url)).header("authorization", &header);
        assert_eq!(request.send().await.unwrap().status().as_u16(), status, "{header}");
    }
    let query = server.get(&format!("/database/detections?access_token={ADMIN}")).await;
    query.expect_error(401, "unauthorized");
}

#[tokio::test]
async fn a_request_without_a_token_is_rejected_before_its_body_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_tokens!(folder.path());
    // The body never comes.
    let head = "POST /face-recognition/get-results HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\
                Content-Type: multipart/form-data; boundary=B\r\n\r\n";
    let text = raw(&server.url, head).await;
    assert!(text.starts_with("HTTP/1.1 401") && text.contains("unauthorized"), "{text}");
    // One that does come, all at once, does not keep the answer from arriving.
    for _ in 0..3 {
        let form = Form::new().part("image", file(vec![7; 8 << 20]));
        server.send("/face-recognition/get-results", form).await.expect_error(401, "unauthorized");
    }
}

/// Sends these bytes and nothing more; returns the response up to the end of the connection.
pub async fn raw(url: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await;
    assert!(closed.is_ok(), "the connection stays open after {answer:?}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_change_while_the_server_runs() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    write_tokens(folder.path(), &format!("camera {CAMERA}\nadmin {ADMIN}\n"));
    let tokens = folder.path().join("tokens");
    let settings =
        ["--listen", "127.0.0.1:0", "--metrics-listen", "off", "--token-file", tokens.to_str().unwrap()];
    let (running, url) = Running::start_in(folder.path(), &models, &settings, &[]);
    let client = client();
    let status = async |token: &str| {
        client.get(format!("{url}/dataset")).bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    assert_eq!((status(ADMIN).await, status(STRANGER).await), (200, 401));

    // The new one beside the old one, then alone: no request in between is rejected.
    write_tokens(folder.path(), &format!("admin {ADMIN}\nadmin {STRANGER}\n"));
    running.logs_times("read the changed token_file", 1);
    assert_eq!((status(STRANGER).await, status(ADMIN).await, status(CAMERA).await), (200, 200, 401));
    write_tokens(folder.path(), &format!("admin {STRANGER}\n"));
    running.logs_times("read the changed token_file", 2);
    assert_eq!((status(STRANGER).await, status(ADMIN).await), (200, 401));

    // An invalid or missing file changes nothing; a valid one does.
    write_tokens(folder.path(), &format!("admin {ADMIN}\ncamera short\n"));
    running.logs_times("token_file is not used", 1);
    assert_eq!((status(STRANGER).await, status(ADMIN).await), (200, 401));
    fs::remove_file(&tokens).unwrap();
    running.logs_times("token_file is not used", 2);
    assert_eq!((status(STRANGER).await, status(ADMIN).await), (200, 401));
    // An empty one revokes all.
    write_tokens(folder.path(), "# nobody\n");
    running.logs_times("all of its tokens are revoked", 1);
    assert_eq!((status(STRANGER).await, status(ADMIN).await), (401, 401));
    // Written in place, too.
    fs::write(&tokens, format!("admin {ADMIN}\n")).unwrap();
    running.logs_times("read the changed token_file", 4);
    assert_eq!((status(ADMIN).await, status(STRANGER).await), (200, 401));
}

#[tokio::test]
async fn an_invalid_token_file_fails_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    for (content, told) in [
        (Some("admin 0123456789abcdef\n\ncamera sh0rt\n"), "line 3 has a token of 5 characters, at least 16"),
        (Some("root 0123456789abcdef\n"), "line 1 does not begin with a role"),
        (Some("# nobody\n"), "has no token"),
        (None, "cannot be read"),
    ] {
        match content {
            Some(content) => fs::write(&tokens, content).unwrap(),
            None => fs::remove_file(&tokens).unwrap(),
        }
        let config = Config::default().with(|config| {
            config.listener.listen = "127.0.0.1:0".into();
            config.storage.data_dir = folder.path().join("data");
            config.listener.token_file = Some(tokens.clone());
        });
        let error = Application::build(config).await.map(|_| ()).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("token_file") && error.contains(told), "{error}");
        assert!(!error.contains("0123456789abcdef") && !error.contains("sh0rt"), "{error}");
    }
}

#[tokio::test]
async fn a_camera_stores_faces_and_an_admin_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start_with_tokens!(folder.path());
    use_token(&mut server, Some(CAMERA));
    let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby");
    let form = form.part("image", photograph("Tony_Blair", 1));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    server.get("/database/detections").await.expect_error(403, "forbidden");
    use_token(&mut server, Some(ADMIN));
    let listed = server.get("/database/detections").await.expect(StatusCode::OK);
    assert_eq!(listed["detections"].as_array().unwrap().len(), 1);
}

#[test]
fn the_document_describes_tokens() {
    let scheme = &DOCUMENT["components"]["securitySchemes"]["token"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));
    assert_eq!(DOCUMENT["security"], json!([{ "token": [] }]));
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let told = ["401", "403"].map(|status| operation["responses"][status].is_object());
            let is_open = operation["security"] == json!([]);
            assert_eq!(told, [!is_open; 2], "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_head_request_needs_a_token_too() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_tokens!(folder.path());
    let answer = server.client.head(format!("{}/dataset", server.url)).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["www-authenticate"]),
        (401, &"Bearer".parse().unwrap())
    );
}
