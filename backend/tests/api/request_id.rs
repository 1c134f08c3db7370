//! Request ids: the client's or a new one, in every response.

use reqwest::StatusCode;

use crate::helpers::{ApiResponse, start};

#[tokio::test]
async fn responses_have_the_request_id() {
    let server = start!();
    let ask = async |path: &str, id: &str| {
        let request = server.client.get(format!("{}{path}", server.url)).header("X-Request-Id", id);
        ApiResponse::read(request.send().await.unwrap()).await
    };
    let answer = ask("/livez", "edge-7.2024_05").await;
    assert_eq!(
        (answer.status, &answer.headers["x-request-id"]),
        (StatusCode::OK, &"edge-7.2024_05".parse().unwrap())
    );

    // Bodies of errors have it, too, also of errors before or after the handler.
    for (path, status) in
        [("/dataset/Ada", 404), ("/nowhere", 404), ("/jobs?limit=0", 400), ("/dataset/.a", 400)]
    {
        let answer = ask(path, "edge-8").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["x-request-id"]),
            (status, &"edge-8".parse().unwrap())
        );
        assert_eq!(answer.body["error"]["request_id"], "edge-8", "{path}");
    }

    // An id that is not safe in a log line is replaced.
    for unsafe_id in ["", "two words", &"x".repeat(129)] {
        let answer = ask("/dataset/Ada", unsafe_id).await;
        let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
        assert!(id.len() == 36 && answer.body["error"]["request_id"] == *id, "{id}: {}", answer.body);
    }
    let (one, other) = (server.get("/livez").await, server.get("/livez").await);
    assert_ne!(one.headers["x-request-id"], other.headers["x-request-id"]);
}

#[tokio::test]
async fn unauthorised_requests_have_an_id_too() {
    let tokens = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(tokens.path(), "admin unspeakable-0123456789\n").unwrap();
    let server = start!(
        |config: &mut facepipe_backend::Config| config.listener.token_file = Some(tokens.path().into())
    );
    let answer = server.get("/dataset").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.body["error"]["request_id"], answer.headers["x-request-id"].to_str().unwrap());
}
