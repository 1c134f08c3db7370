//! The API's document: checked in, served, and shown by a page that needs no other server.

use std::{fs, process::Command};

use reqwest::{StatusCode, header::LOCATION, redirect::Policy};

use crate::helpers::{client, start};

#[test]
fn the_checked_in_document_is_current() {
    let printed =
        Command::new(env!("CARGO_BIN_EXE_facepipe-backend")).arg("--print-openapi").output().unwrap();
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(printed, facepipe_backend::openapi_document());
    let file = facepipe_test_support::workspace_root().join("docs/openapi.json");
    let checked_in = fs::read_to_string(&file).unwrap_or_default();
    let differ = checked_in.lines().zip(printed.lines()).position(|(old, new)| old != new);
    assert!(
        checked_in == printed,
        "docs/openapi.json is not the API's document any more (first difference near line {}). Look at what changed \
         for clients, then: target/debug/facepipe-backend --print-openapi > docs/openapi.json",
        differ.unwrap_or_else(|| checked_in.lines().count().min(printed.lines().count())) + 1,
    );
}

#[tokio::test]
async fn the_document_is_served() {
    let server = start!();
    let answer = server.get("/openapi.json").await.expect(StatusCode::OK);
    assert_eq!(answer, *crate::contract::DOCUMENT);
    assert!(answer["openapi"].as_str().unwrap().starts_with("3.0"));
}

#[tokio::test]
async fn swagger_ui_is_complete_and_loads_nothing_from_elsewhere() {
    let server = start!();
    client(); // Chooses the provider of TLS.
    let unfollowing = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let answer = unfollowing.get(format!("{}/docs", server.url)).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()[LOCATION].to_str().unwrap()), (307, "docs/"));

    let page = server.client.get(format!("{}/docs", server.url)).send().await.unwrap();
    assert_eq!(page.url().path(), "/docs/");
    assert_eq!(page.headers()["content-type"], "text/html");
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    let page = page.text().await.unwrap();
    assert!(!page.contains("//"), "the page refers to another server:\n{page}");

    let files: Vec<&str> = page
        .split(['"', '\''])
        .filter(|text| [".js", ".css", ".png"].iter().any(|end| text.ends_with(end)))
        .collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in &files {
        let url = format!("{}/docs/{}", server.url, file.trim_start_matches("./"));
        let answer = server.client.get(&url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{url}");
        assert!(answer.bytes().await.unwrap().len() > 100, "{url}");
    }
    let begin =
        server.client.get(format!("{}/docs/swagger-initializer.js", server.url)).send().await.unwrap();
    assert!(begin.text().await.unwrap().contains("../openapi.json"));

    server.get("/docs/guidelines.html").await.expect_error(404, "not_found");
    server.get("/docs/none-such.js").await.expect_error(404, "not_found");
    server.get("/docs/..%2f..%2fetc%2fpasswd").await.expect_error(404, "not_found");
    let answer = server.post("/docs").await;
    assert_eq!(answer.headers["allow"], "GET, HEAD");
    answer.expect_error(405, "method_not_allowed");
}
