//! The calls for diagnosing a deployment.

use reqwest::StatusCode;
use serde_json::json;

use crate::helpers::{ApiResponse, start};

#[tokio::test]
async fn the_client_address_is_reported() {
    // Without tokens, requests with headers of proxies are refused.
    let server = start!(|config| config.listener.insecure = true);
    assert_eq!(server.get("/debug/IP").await.expect(StatusCode::OK), json!({ "ip": "127.0.0.1" }));
    let request = server.client.get(format!("{}/debug/IP", server.url));
    let answer = request.header("x-forwarded-for", "203.0.113.7, 10.0.0.1").send().await.unwrap();
    assert_eq!(
        ApiResponse::read(answer).await.expect(StatusCode::OK),
        json!({ "ip": "127.0.0.1", "forwarded_for": "203.0.113.7, 10.0.0.1" })
    );
    server.get("/debug/ip").await.expect_error(404, "not_found");
}

#[tokio::test]
async fn the_node_name_is_reported() {
    let server = start!();
    let expected = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| {
        let output = std::process::Command::new("uname").arg("-n").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    });
    let answer = server.get("/debug/node-name").await.expect(StatusCode::OK);
    assert_eq!(answer, json!({ "node_name": expected }));
}
