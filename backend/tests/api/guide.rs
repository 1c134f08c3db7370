//! The documentation at `/docs` and the guide below it.

use std::{fs, os::unix::fs::symlink};

use reqwest::{Method, Response, StatusCode, header::ACCEPT, redirect::Policy};

use crate::{
    contract::{self, DOCUMENT},
    helpers::{ApiResponse, Server, client, start},
};

/// What Chromium sends for a page.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

/// GET without following redirects.
async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> Response {
    client(); // Chooses the provider of TLS.
    let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let request = client.get(format!("{}{path}", server.url));
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn the_root_redirects_browsers_and_describes_the_server_to_programs() {
    let server = start!();
    for accept in [BROWSER, "text/html", "application/json;q=0.5, text/html"] {
        let answer = get(&server, "/", &[(ACCEPT.as_str(), accept)]).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "location")), (307, "docs/"), "{accept}");
        assert_eq!(header(&answer, "vary"), "accept");
        contract::check(&Method::GET, "/", &ApiResponse::read(answer).await);
    }
    let page = server.client.get(&server.url).header(ACCEPT, BROWSER).send().await.unwrap();
    assert_eq!((page.status(), page.url().path()), (StatusCode::OK, "/docs/"));

    for accept in ["*/*", "application/json", "application/json, text/html;q=0.9", "text/html;q=0, */*"] {
        let answer = get(&server, "/", &[(ACCEPT.as_str(), accept)]).await;
        assert_eq!((answer.status(), header(&answer, "vary")), (StatusCode::OK, "accept"), "{accept}");
    }
    let entrance = server.get("/").await.expect(StatusCode::OK);
    assert_eq!(entrance["name"], "facepipe-backend");
    let document = format!("/{}", entrance["openapi"].as_str().unwrap());
    assert_eq!(server.get(&document).await.expect(StatusCode::OK), *DOCUMENT);
    server.post("/").await.expect_error(405, "method_not_allowed");
}

#[tokio::test]
async fn the_root_uses_the_public_url() {
    let server = start!(|config| config.browsers.public_url = Some("https://example.org/faces/".into()));
    let answer = get(&server, "/", &[(ACCEPT.as_str(), BROWSER)]).await;
    assert_eq!(header(&answer, "location"), "https://example.org/faces/docs/");
    let entrance = server.get("/").await.expect(StatusCode::OK);
    assert_eq!(entrance["openapi"], "https://example.org/faces/openapi.json");
}

#[tokio::test]
async fn the_guide_is_served_with_media_types_and_etags() {
    let folder = tempfile::tempdir().unwrap();
    let guide = folder.path().join("guide");
    fs::create_dir_all(guide.join("edge")).unwrap();
    for (file, text) in [
        ("index.html", "<h1>Guide</h1>"),
        ("edge/index.html", "<h1>Edge</h1>"),
        ("edge/facedetect.html", "<h1>facedetect</h1>"),
        ("book.js", "1"),
        ("book.css", "p {}"),
        ("way.svg", "<svg/>"),
        ("compose.yaml", "services: {}"),
    ] {
        fs::write(guide.join(file), text).unwrap();
    }
    fs::write(guide.join("font.woff2"), [0xff, 0xfe]).unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "admin a-token-that-nobody-sends\n").unwrap();
    let server = start!(|config| {
        config.browsers.guide_dir = Some(guide.clone());
        config.listener.token_file = Some(tokens);
    });

    let answer = get(&server, "/docs/guide", &[]).await;
    assert_eq!((answer.status().as_u16(), header(&answer, "location")), (307, "guide/"));
    let answer = get(&server, "/docs/guide/edge", &[]).await;
    assert_eq!((answer.status().as_u16(), header(&answer, "location")), (307, "edge/"));
    for (path, content_type, text) in [
        ("/docs/guide/", "text/html; charset=utf-8", "<h1>Guide</h1>"),
        ("/docs/guide/index.html", "text/html; charset=utf-8", "<h1>Guide</h1>"),
        ("/docs/guide/edge/", "text/html; charset=utf-8", "<h1>Edge</h1>"),
        ("/docs/guide/edge/facedetect.html", "text/html; charset=utf-8", "<h1>facedetect</h1>"),
        ("/docs/guide/book.js", "text/javascript; charset=utf-8", "1"),
        ("/docs/guide/book.css", "text/css; charset=utf-8", "p {}"),
        ("/docs/guide/way.svg", "image/svg+xml", "<svg/>"),
        ("/docs/guide/compose.yaml", "text/plain; charset=utf-8", "services: {}"),
    ] {
        let answer = get(&server, path, &[]).await;
        assert_eq!(
            (answer.status(), header(&answer, "content-type")),
            (StatusCode::OK, content_type),
            "{path}"
        );
        let policy = header(&answer, "content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{path}: {policy}");
        assert!(policy.contains("font-src 'self'"), "{path}: {policy}");
        assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
        let tag = header(&answer, "etag").to_owned();
        let caching = if content_type.starts_with("text/html") { "no-cache" } else { "max-age=3600" };
        assert_eq!(header(&answer, "cache-control"), caching, "{path}");
        assert_eq!(answer.text().await.unwrap(), text, "{path}");

        let again = get(&server, path, &[("if-none-match", &tag)]).await;
        assert_eq!((again.status(), header(&again, "etag")), (StatusCode::NOT_MODIFIED, tag.as_str()));
        assert!(again.bytes().await.unwrap().is_empty());
    }
    assert_eq!(header(&get(&server, "/docs/guide/font.woff2", &[]).await, "content-type"), "font/woff2");

    let before = header(&get(&server, "/docs/guide/", &[]).await, "etag").to_owned();
    fs::write(guide.join("index.html"), "<h1>Other</h1>").unwrap();
    let after = get(&server, "/docs/guide/", &[("if-none-match", &before)]).await;
    assert_eq!(after.status(), StatusCode::OK);
    assert_eq!(after.text().await.unwrap(), "<h1>Other</h1>");

    // The page of the API is still served, and its document links to the guide.
    assert_eq!(get(&server, "/docs/", &[]).await.status(), StatusCode::OK);
    let document: serde_json::Value = get(&server, "/openapi.json", &[]).await.json().await.unwrap();
    assert_eq!(document["externalDocs"]["url"], "/docs/guide/");
    assert!(document["info"]["description"].as_str().unwrap().contains("](/docs/guide/)"));
}

#[tokio::test]
async fn only_files_of_the_guide_are_served_below_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let guide = folder.path().join("guide");
    fs::create_dir_all(guide.join("edge")).unwrap();
    fs::create_dir_all(folder.path().join("guide-of-others")).unwrap();
    fs::write(guide.join("index.html"), "guide").unwrap();
    fs::write(guide.join(".secret"), "secret").unwrap();
    for file in ["secret", "index.html", "guide-of-others/index.html"] {
        fs::write(folder.path().join(file), "secret").unwrap();
    }
    symlink(folder.path().join("secret"), guide.join("link.txt")).unwrap();
    symlink(folder.path(), guide.join("linked")).unwrap();
    let server = start!(|config| config.browsers.guide_dir = Some(guide.clone()));
    let outside = folder.path().join("secret").display().to_string();
    for path in [
        "..%2fsecret",
        "%2e%2e/secret",
        "edge/..%2f..%2fsecret",
        "edge/../../secret",
        "..%5csecret",
        "%2e%2e%2fguide-of-others/",
        "edge",
        "edge/",
        "link.txt",
        "linked/",
        "linked/secret",
        ".secret",
        "index.html/",
        "index.html/x",
        "index.html%00",
        "none.html",
        &outside.replace('/', "%2f"),
        &outside,
    ] {
        // Sent literally: a client would remove `..`.
        let answer = crate::http::raw_get(&server, &format!("/docs/guide/{path}")).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.head);
        assert!(!answer.body.windows(6).any(|six| six == b"secret"), "{path}");
        assert!(answer.body.windows(9).any(|nine| nine == b"not_found"), "{path}");
    }
}

#[tokio::test]
async fn a_missing_guide_is_reported() {
    let server = start!();
    for path in ["/docs/guide/", "/docs/guide/index.html", "/docs/guide/x/y.html"] {
        let message = server.get(path).await.expect_error(404, "not_found");
        assert!(message.contains("guide_dir") && message.contains("facepipe-backend"), "{message}");
    }
    let document = server.get("/openapi.json").await.expect(StatusCode::OK);
    assert!(document["externalDocs"].is_null());
    server.post("/docs/guide/").await.expect_error(405, "method_not_allowed");
}
