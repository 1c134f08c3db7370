//! Principals and their tokens: who may do what, as which camera, until when; and servers without tokens.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use facepipe_backend::{Application, Config, config_errors};
use reqwest::{
    Method, StatusCode,
    header::{HOST, ORIGIN},
    multipart::Form,
};
use serde_json::{Value, json};

use crate::{
    auth::{use_token, write_tokens},
    command_line::{Running, program},
    contract::DOCUMENT,
    helpers::{ApiResponse, Server, photograph, start},
};

const MIGRATION: &str = "2025-01-21-000000_access";
const ROOT: &str = "root-0123456789abcdef";

/// Starts a server with an admin's token in a token file, which the client uses.
macro_rules! start_with_root {
    ($folder:expr) => {
        start_with_root!($folder, |_| ())
    };
    ($folder:expr, $configure:expr) => {{
        write_tokens($folder, &format!("admin {ROOT}\n"));
        let configure: fn(&mut Config) = $configure;
        let mut server = start!(|config| {
            config.listener.token_file = Some($folder.join("tokens"));
            configure(config);
        });
        use_token(&mut server, Some(ROOT));
        server
    }};
}

/// Adds a principal with a token. Returns the response's principal and token.
async fn add(server: &Server, body: Value) -> (Value, Value) {
    let mut body = body;
    body["token"] = json!({});
    let added = server.post_json("/access/principals", &body).await.expect(StatusCode::CREATED);
    (added["principal"].clone(), added["token"].clone())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// The response to `GET /dataset` with a token.
async fn with(server: &Server, token: &str) -> ApiResponse {
    let request = server.client.get(format!("{}/dataset", server.url)).bearer_auth(token);
    ApiResponse::read(request.send().await.unwrap()).await
}

/// Why a token is not accepted; nothing where it is.
async fn refusal(server: &Server, token: &str) -> Option<String> {
    let answer = with(server, token).await;
    (answer.status == 401).then(|| text(&answer.body["error"]["details"]["reason"]))
}

/// Waits until a token is refused, or accepted again, as servers do that poll.
async fn until_refused(server: &Server, token: &str, reason: Option<&str>) {
    let begun = Instant::now();
    while refusal(server, token).await.as_deref() != reason {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not come to {reason:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Changes rows of tokens as another server does.
fn elsewhere(server: &Server, statements: &str) {
    server.execute(&format!("{statements}; UPDATE access_state SET revision = revision + 1"));
}

#[tokio::test]
async fn from_the_first_principal_on_every_request_needs_a_token() {
    let mut server = start!();
    server.get("/dataset").await.expect(StatusCode::OK);
    let admin = json!({ "kind": "person", "name": "Ada", "scopes": ["admin"] });
    for body in [
        json!({ "kind": "camera", "name": "gate-1", "token": {} }),
        json!({ "kind": "person", "name": "Ada", "scopes": ["read", "operate"], "token": {} }),
        json!({ "kind": "person", "name": "Ada", "scopes": ["admin"], "token": { "scopes": ["read"] } }),
        admin.clone(),
    ] {
        server.post_json("/access/principals", &body).await.expect_error(409, "first_principal");
    }
    server.get("/dataset").await.expect(StatusCode::OK);

    let (principal, token) = add(&server, admin.clone()).await;
    assert_eq!(principal["scopes"], json!(["admin"]));
    assert_eq!((&principal["camera_id"], &principal["may_see_names"]), (&Value::Null, &json!(true)));
    let message = server.get("/dataset").await.expect_error(401, "unauthorized");
    assert!(message.contains("Authorization: Bearer"), "{message}");
    use_token(&mut server, Some(&text(&token["token"])));
    server.get("/dataset").await.expect(StatusCode::OK);
    let listed = server.get("/access/principals").await.expect(StatusCode::OK);
    assert_eq!((&listed["meta"]["total"], &listed["principals"][0]["name"]), (&json!(1), &json!("Ada")));
    server.post_json("/access/principals", &admin).await.expect_error(409, "principal_exists");

    // The digest alone is stored.
    assert!(server.traces_of(text(&token["token"]).as_bytes()).is_empty());
    // Without the last one, this server does not become open.
    let path = format!("/access/principals/{}", principal["principal_id"]);
    server.delete(&path).await.expect(StatusCode::NO_CONTENT);
    use_token(&mut server, None);
    server.get("/dataset").await.expect_error(401, "unauthorized");
}

#[tokio::test]
async fn each_call_needs_the_scope_that_the_document_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start_with_root!(folder.path());
    for scope in ["upload", "recognise", "read", "enrol", "operate"] {
        let body = json!({ "kind": "person", "name": scope, "scopes": [scope] });
        let (_, token) = add(&server, body).await;
        use_token(&mut server, Some(&text(&token["token"])));
        let (mut allowed, mut refused) = (0, 0);
        for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
            let called: Vec<&str> =
                path.split('/').map(|s| if s.starts_with('{') { "7" } else { s }).collect();
            for (method, operation) in item.as_object().unwrap() {
                if operation["security"] == json!([]) {
                    continue;
                }
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                let told = operation["description"].as_str().unwrap();
                let needed = told.rsplit("Scope: `").next().unwrap().trim_end_matches("`.");
                let answer = server.call(method.clone(), &called.join("/")).await;
                if needed == scope {
                    assert!(
                        ![401, 403].contains(&answer.status.as_u16()),
                        "{method} {path}: {}",
                        answer.body
                    );
                    allowed += 1;
                } else {
                    let details = answer.body["error"]["details"].clone();
                    answer.expect_error(403, "forbidden");
                    assert_eq!(
                        details,
                        json!({ "needs_any_of": [needed], "has": [scope] }),
                        "{method} {path}"
                    );
                    refused += 1;
                }
            }
        }
        assert!(allowed >= 3 && refused > 30, "{scope}: {allowed} and {refused}");
        use_token(&mut server, Some(ROOT));
    }
    // Another spelling of a path reaches its route, and needs its scope.
    let (_, token) = add(&server, json!({ "kind": "person", "name": "reader" })).await;
    let request = server.client.post(format!("{}/unknowns/%72ecluster", server.url));
    let request = request.bearer_auth(text(&token["token"]));
    ApiResponse::read(request.send().await.unwrap()).await.expect_error(403, "forbidden");
}

#[tokio::test]
async fn a_camera_uploads_as_itself_with_keys_of_its_own_and_sees_no_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start_with_root!(folder.path());
    for person in ["Tony_Blair", "Ariel_Sharon"] {
        server.enrol(person, &[1, 2]).await;
    }
    server.train().await;
    let mut tokens = Vec::new();
    for body in [
        json!({ "kind": "camera", "name": "gate-1" }),
        json!({ "kind": "camera", "name": "gate-2 in the yard", "camera_id": "gate-2", "may_see_names": true }),
        json!({ "kind": "camera", "name": "box", "any_camera": true }),
    ] {
        tokens.push(text(&add(&server, body).await.1["token"]));
    }
    let [first, second, any] = tokens.try_into().unwrap();
    let form = |camera: Option<&'static str>| {
        let form = Form::new().text("location", "Lobby").text("key", "the same key");
        let form = camera.into_iter().fold(form, |form, camera| form.text("camera_id", camera));
        form.part("image", photograph("Tony_Blair", 3))
    };
    let path = "/face-recognition/store-results";

    use_token(&mut server, Some(&first));
    let message = server.send(path, form(Some("gate-2"))).await.expect_error(403, "other_camera");
    assert!(message.contains("gate-1") && message.contains("gate-2"), "{message}");
    for (sent, repeated) in [(None, 0), (Some("gate-1"), 1), (Some(""), 1)] {
        let answer = server.send(path, form(sent)).await.expect(StatusCode::CREATED);
        assert_eq!((&answer["stored"], &answer["repeated"]), (&json!(1), &json!(repeated)));
        assert_eq!(answer["names_withheld"], true);
        let face = &answer["faces"][0];
        assert_eq!((&face["decision"], &face["all_predictions"]), (&json!("known"), &json!([])), "{answer}");
        assert_eq!((&face["top_prediction"], &face["score"]), (&Value::Null, &Value::Null));
        assert!(!answer.to_string().contains("Tony"), "{answer}");
    }

    use_token(&mut server, Some(&second));
    let answer = server.send(path, form(None)).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["repeated"], &answer["names_withheld"]), (&json!(0), &Value::Null));
    assert_eq!(answer["faces"][0]["top_prediction"]["label"], "Tony_Blair");

    use_token(&mut server, Some(&any));
    server.send(path, form(None)).await.expect_error(400, "field_missing");
    let answer = server.send(path, form(Some("gate-9"))).await.expect(StatusCode::CREATED);
    assert_eq!(answer["repeated"], 0);

    // Keys of the token file are those of before.
    use_token(&mut server, Some(ROOT));
    let answer = server.send(path, form(Some("gate-1"))).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["repeated"], &answer["names_withheld"]), (&json!(0), &Value::Null));
    assert_eq!(answer["faces"][0]["top_prediction"]["label"], "Tony_Blair");
    let listed = server.get("/database/detections").await.expect(StatusCode::OK);
    let mut cameras: Vec<String> =
        listed["detections"].as_array().unwrap().iter().map(|row| text(&row["camera_id"])).collect();
    cameras.sort();
    assert_eq!(cameras, ["gate-1", "gate-1", "gate-2", "gate-9"]);
    assert_eq!(listed["detections"][0]["face_id"], "Tony_Blair");
}

#[tokio::test]
async fn two_cameras_send_results_with_the_same_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start_with_root!(folder.path(), |config| {
        config.results.results_url = Some("http://127.0.0.1:9/".into());
    });
    for (name, repeated) in [("gate-1", [0, 1]), ("gate-2", [0, 1])] {
        let (_, token) = add(&server, json!({ "kind": "camera", "name": name })).await;
        use_token(&mut server, Some(&text(&token["token"])));
        for repeated in repeated {
            let form = Form::new().text("location", "Lobby").text("key", "the same key");
            let form = form.part("image", photograph("Tony_Blair", 3));
            let answer =
                server.send("/face-recognition/send-results", form).await.expect(StatusCode::ACCEPTED);
            assert_eq!((&answer["sent"], &answer["repeated"]), (&json!(1), &json!(repeated)));
        }
        use_token(&mut server, Some(ROOT));
    }
    let keys = server.lines("SELECT message_key AS line FROM outbox ORDER BY id");
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(keys.iter().all(|key| key.ends_with("/0") && !key.chars().any(char::is_control)), "{keys:?}");
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_token_lives_until_it_expires_is_replaced_or_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_root!(folder.path());
    let (principal, issued) =
        add(&server, json!({ "kind": "camera", "name": "gate-1", "scopes": ["read"] })).await;
    let path = format!("/access/principals/{}", principal["principal_id"]);
    let (token, id) = (text(&issued["token"]), issued["token_id"].as_i64().unwrap());
    assert_eq!(refusal(&server, &token).await, None);

    // A typo is found without the database.
    let mut mistyped = token.clone();
    mistyped.replace_range(10..11, if &token[10..11] == "0" { "1" } else { "0" });
    for wrong in [&mistyped, &token[..40], "fp_"] {
        assert_eq!(refusal(&server, wrong).await.as_deref(), Some("malformed"), "{wrong}");
    }

    // One of fewer scopes than its principal, and one of more.
    let body = json!({ "scopes": ["operate"] });
    let message = server.post_json(&format!("{path}/tokens"), &body).await.expect_error(400, "invalid_field");
    assert!(message.contains("operate"), "{message}");
    server.patch(&path, &json!({ "scopes": ["read", "operate"] })).await.expect(StatusCode::OK);
    let fewer = server.post_json(&format!("{path}/tokens"), &body).await.expect(StatusCode::CREATED);
    let fewer = text(&fewer["token"]);
    with(&server, &fewer).await.expect_error(403, "forbidden");

    // Replaced: both are valid during the overlap.
    let rotate = format!("/access/tokens/{id}/rotate");
    let rotated = server.post_json(&rotate, &json!({ "overlap_s": 3600 })).await.expect(StatusCode::CREATED);
    let second = text(&rotated["new"]["token"]);
    assert_eq!((refusal(&server, &token).await, refusal(&server, &second).await), (None, None));
    assert!(text(&rotated["old"]["expires_at"]) < text(&issued["expires_at"]));
    assert!(text(&rotated["new"]["expires_at"]) > text(&issued["expires_at"]));
    assert_eq!(rotated["new"]["scopes"], json!(["read", "operate"]));
    // Once more, since the new one was lost: it lives no shorter.
    let again = server.post_json(&rotate, &json!({ "overlap_s": 3600 })).await.expect(StatusCode::CREATED);
    assert!(text(&again["new"]["expires_at"]) > text(&issued["expires_at"]), "{again}");
    let id = rotated["new"]["token_id"].as_i64().unwrap();
    let rotate = format!("/access/tokens/{id}/rotate");
    let rotated = server.post_json(&rotate, &json!({ "overlap_s": 0 })).await.expect(StatusCode::CREATED);
    let third = text(&rotated["new"]["token"]);
    assert_eq!(refusal(&server, &second).await.as_deref(), Some("expired"));

    // Disabled for a while.
    server.patch(&path, &json!({ "disabled": true })).await.expect(StatusCode::OK);
    assert_eq!(refusal(&server, &third).await.as_deref(), Some("disabled"));
    server.patch(&path, &json!({ "disabled": false })).await.expect(StatusCode::OK);
    assert_eq!(refusal(&server, &third).await, None);

    // Revoked here, and by other servers.
    let id = rotated["new"]["token_id"].as_i64().unwrap();
    server.delete(&format!("/access/tokens/{id}")).await.expect(StatusCode::NO_CONTENT);
    assert_eq!(refusal(&server, &third).await.as_deref(), Some("unknown"));
    server.delete(&format!("/access/tokens/{id}")).await.expect_error(404, "token_not_found");
    elsewhere(&server, "UPDATE access_tokens SET expires_at = 1");
    until_refused(&server, &token, Some("expired")).await;
    elsewhere(&server, "DELETE FROM access_tokens");
    until_refused(&server, &token, Some("unknown")).await;
    server.delete(&path).await.expect(StatusCode::NO_CONTENT);
    server.get(&path).await.expect_error(404, "principal_not_found");
    server.get(&format!("{path}/tokens")).await.expect_error(404, "principal_not_found");
    // Its id is not given again: keys are bound to it.
    let (next, _) = add(&server, json!({ "kind": "camera", "name": "gate-1" })).await;
    assert!(next["principal_id"].as_i64() > principal["principal_id"].as_i64());
}

#[tokio::test]
async fn tokens_that_expired_long_ago_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start_with_root!(folder.path());
    let (principal, issued) = add(&server, json!({ "kind": "person", "name": "Ada" })).await;
    let path = format!("/access/principals/{}/tokens", principal["principal_id"]);
    let kept = server.post_json(&path, &json!({})).await.expect(StatusCode::CREATED);
    elsewhere(&server, &format!("UPDATE access_tokens SET expires_at = 1 WHERE id = {}", issued["token_id"]));
    let (config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    server = Server::run(config, data).await;
    use_token(&mut server, Some(ROOT));
    let begun = Instant::now();
    let left = loop {
        let listed = server.get(&path).await.expect(StatusCode::OK);
        if listed["meta"]["total"] != 2 {
            break listed;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{listed}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(left["tokens"][0]["token_id"], kept["token_id"], "{left}");
}

#[tokio::test]
async fn rows_of_a_newer_version_never_grant_more() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_root!(folder.path());
    let (principal, issued) = add(&server, json!({ "kind": "person", "name": "Ada" })).await;
    let (id, token) = (&principal["principal_id"], text(&issued["token"]));
    let path = format!("/access/principals/{id}");
    elsewhere(&server, &format!("UPDATE principals SET scopes = 'read,teleport' WHERE id = {id}"));
    let shown = server.get(&path).await.expect(StatusCode::OK);
    assert_eq!(shown["scopes"], json!(["read"]));
    elsewhere(&server, &format!("UPDATE access_tokens SET scopes = 'teleport' WHERE principal_id = {id}"));
    let begun = Instant::now();
    while with(&server, &token).await.status != 403 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the token keeps its scopes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Changes of other values keep them.
    server.patch(&path, &json!({ "name": "Grace" })).await.expect(StatusCode::OK);
    let rotate = format!("/access/tokens/{}/rotate", issued["token_id"]);
    server.post_json(&rotate, &json!({ "overlap_s": 600 })).await.expect(StatusCode::CREATED);
    let stored = |table: &str| server.lines(&format!("SELECT COALESCE(scopes, '') AS line FROM {table}"));
    assert!(stored("principals").contains(&"read,teleport".to_owned()));
    assert_eq!(stored("access_tokens").iter().filter(|scopes| *scopes == "teleport").count(), 2);
    elsewhere(&server, &format!("UPDATE principals SET kind = 'robot' WHERE id = {id}"));
    until_refused(&server, &token, Some("unknown")).await;
    let listed = server.get("/access/principals").await.expect(StatusCode::OK);
    assert_eq!(listed["meta"]["total"], 0, "{listed}");
}

#[tokio::test]
async fn responses_in_json_are_not_cached() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_root!(folder.path());
    for (path, status) in [
        ("/dataset", 200),
        ("/access/principals", 200),
        ("/database/detections", 200),
        ("/openapi.json", 200),
        ("/access/principals/x", 404),
        ("/nowhere", 404),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
    }
    let answer = with(&server, "wrong-0123456789abcdef").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["cache-control"]),
        (401, &"no-store".parse().unwrap())
    );
}

#[tokio::test]
async fn wrong_values_of_principals_and_tokens_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_root!(folder.path());
    let (principal, issued) = add(&server, json!({ "kind": "camera", "name": "gate-1" })).await;
    let path = format!("/access/principals/{}", principal["principal_id"]);
    let long = "x".repeat(201);
    for (body, field) in [
        (json!({ "kind": "robot", "name": "x" }), "kind"),
        (json!({ "kind": "camera", "name": "" }), "name"),
        (json!({ "kind": "camera", "name": long }), "name"),
        (json!({ "kind": "camera", "name": " x" }), "name"),
        (json!({ "kind": "camera", "name": "a\nb" }), "name"),
        (json!({ "kind": "camera", "name": "a\u{0}b" }), "name"),
        (json!({ "kind": "camera", "name": "\u{202e}1-etag" }), "name"),
        (json!({ "kind": "camera", "name": "x", "camera_id": "gate\u{2066}" }), "camera_id"),
        (json!({ "kind": "camera", "name": "x", "token": { "name": "a\u{200b}" } }), "name"),
        (json!({ "kind": "camera", "name": "x", "scopes": [] }), "scopes"),
        (json!({ "kind": "camera", "name": "x", "scopes": ["write"] }), "scopes"),
        (json!({ "kind": "camera", "name": "x", "camera_id": "" }), "camera_id"),
        (json!({ "kind": "camera", "name": "x", "camera_id": "y", "any_camera": true }), "camera_id"),
        (json!({ "kind": "camera", "name": "x", "token": { "scopes": ["admin"] } }), "scopes"),
        (
            json!({ "kind": "camera", "name": "x", "token": { "expires_at": "2020-01-01T00:00:00Z" } }),
            "expires_at",
        ),
        (json!({ "kind": "camera", "name": "x", "token": { "expires_at": "tomorrow" } }), "expires_at"),
        (
            json!({ "kind": "camera", "name": "x", "token": { "expires_at": "2999-01-01T00:00:00Z" } }),
            "expires_at",
        ),
    ] {
        let answer = server.post_json("/access/principals", &body).await;
        assert_eq!(answer.body["error"]["details"]["field"], field, "{body}: {}", answer.body);
        answer.expect_error(400, "invalid_field");
    }
    let unknown = json!({ "kind": "camera", "name": "x", "role": "admin" });
    let message = server.post_json("/access/principals", &unknown).await.expect_error(400, "malformed_json");
    assert!(message.contains("role"), "{message}");
    let rotate = format!("/access/tokens/{}/rotate", issued["token_id"]);
    let message = server.post_json(&rotate, &json!({ "overlap_s": 9_999_999 })).await;
    assert!(message.expect_error(400, "invalid_field").contains("2592000"));
    add(&server, json!({ "kind": "person", "name": "Ada" })).await;
    server.patch(&path, &json!({ "name": "Ada" })).await.expect_error(409, "principal_exists");
    server.patch("/access/principals/x", &json!({})).await.expect_error(404, "principal_not_found");
    server.delete("/access/tokens/x").await.expect_error(404, "token_not_found");
    let listed = server.get("/access/principals").await.expect(StatusCode::OK);
    assert_eq!(listed["meta"]["total"], 2);
}

#[tokio::test]
async fn the_last_use_of_a_token_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_root!(folder.path());
    let (principal, issued) = add(&server, json!({ "kind": "person", "name": "Ada" })).await;
    let path = format!("/access/principals/{}", principal["principal_id"]);
    assert_eq!(principal["last_used_at"], Value::Null);
    with(&server, &text(&issued["token"])).await.expect(StatusCode::OK);
    let begun = Instant::now();
    let used = loop {
        let listed = server.get(&format!("{path}/tokens")).await.expect(StatusCode::OK);
        if !listed["tokens"][0]["last_used_at"].is_null() {
            break listed["tokens"][0].clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{listed}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(text(&used["last_used_at"]).ends_with(":00Z"), "{used}");
    assert_eq!(used["last_used_address"], "127.0.0.1");
    let shown = server.get(&path).await.expect(StatusCode::OK);
    assert_eq!(shown["last_used_at"], used["last_used_at"]);
}

#[tokio::test]
async fn tokens_stay_valid_while_the_database_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with_root!(folder.path(), |config| {
        config.listener.metrics_listen = Some("127.0.0.1:0".into());
    });
    let (_, issued) = add(&server, json!({ "kind": "person", "name": "Ada" })).await;
    let token = text(&issued["token"]);
    let metric = async |name: &str| {
        let metrics = server.client.get(server.metrics.as_ref().unwrap()).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap().rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    server.execute("ALTER TABLE access_state RENAME TO access_state_away");
    let errors = metric("facepipe_database_errors_total").await;
    let begun = Instant::now();
    // Two reads of the revision have failed.
    while metric("facepipe_database_errors_total").await < errors + 2.0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the revision is not read");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(refusal(&server, &token).await, None);
    assert!(metric("facepipe_access_age_seconds").await > 0.5);
    server.execute("ALTER TABLE access_state_away RENAME TO access_state");
    elsewhere(&server, "DELETE FROM access_tokens");
    until_refused(&server, &token, Some("unknown")).await;
    assert_eq!(metric("facepipe_token_file_unusable").await, 0.0);
    fs::remove_file(folder.path().join("tokens")).unwrap();
    while metric("facepipe_token_file_unusable").await == 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the missing file is not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.get("/dataset").await.expect(StatusCode::OK);
}

#[tokio::test]
async fn a_server_without_tokens_takes_requests_of_its_own_machine_only() {
    let server = start!(|config| config.browsers.cors_origins = vec!["https://dashboard.example".into()]);
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let own = format!("localhost:{port}");
    for (host, origin, code) in [
        (own.as_str(), None, None),
        (&own, Some(format!("http://{own}")), None),
        (&own, Some("https://dashboard.example".into()), None),
        (&own, Some("https://evil.example".into()), Some("foreign_origin")),
        (&own, Some("null".into()), Some("foreign_origin")),
        ("evil.example", None, Some("foreign_host")),
        ("evil.example", Some("http://evil.example".into()), Some("foreign_host")),
    ] {
        let mut request = server.client.post(format!("{}/dataset/Ada", server.url)).header(HOST, host);
        if let Some(origin) = &origin {
            request = request.header(ORIGIN, origin);
        }
        let answer = ApiResponse::read(request.send().await.unwrap()).await;
        match code {
            None => {
                assert!([201, 409].contains(&answer.status.as_u16()), "{host} {origin:?}: {}", answer.body)
            }
            Some(code) => drop(answer.expect_error(403, code)),
        }
    }
    let probe = server.client.get(format!("{}/livez", server.url)).header(HOST, "10.0.0.1:8080");
    assert_eq!(probe.send().await.unwrap().status(), StatusCode::OK);
    // A proxy on this machine passes on everybody's requests, under a name of this machine if it wants.
    for name in ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via", "forwarded"]
    {
        let request = server.client.get(format!("{}/dataset", server.url)).header(name, "203.0.113.7");
        let answer = ApiResponse::read(request.send().await.unwrap()).await;
        let message = answer.expect_error(403, "foreign_host");
        assert!(message.contains("proxy"), "{name}: {message}");
    }

    let insecure = start!(|config| config.listener.insecure = true);
    let request = insecure.client.get(format!("{}/dataset", insecure.url)).header(HOST, "faces.example");
    let request = request.header(ORIGIN, "https://x.example").header("x-forwarded-for", "203.0.113.7");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_server_without_tokens_does_not_start_where_other_machines_reach_it() {
    let server = start!();
    let (config, data) = (server.config.clone(), server.data.clone());
    let listening = |insecure| {
        config.clone().with(|config| {
            config.listener.listen = "0.0.0.0:0".into();
            config.listener.insecure = insecure;
        })
    };
    server.stop().await;
    let error = Application::build(listening(false)).await.map(|_| ()).unwrap_err();
    let told = format!("{error:#}");
    assert!(config_errors::is_config_error(&error) && told.contains("0.0.0.0:"), "{told}");
    assert!(["add-admin", "token_file", "--insecure"].iter().all(|way| told.contains(way)), "{told}");
    Server::run(listening(true), data.clone()).await.stop().await;

    // With a principal it starts.
    let server = Server::run(config.clone(), data).await;
    add(&server, json!({ "kind": "person", "name": "Ada", "scopes": ["admin"] })).await;
    let data = server.data.clone();
    server.stop().await;
    Server::run(listening(false), data).await.stop().await;
}

#[tokio::test]
async fn an_older_database_keeps_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start_with_root!(folder.path());
    let store = || {
        let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby").text("key", "k");
        form.part("image", photograph("Tony_Blair", 3))
    };
    let path = "/face-recognition/store-results";
    server.send(path, store()).await.expect(StatusCode::CREATED);
    add(&server, json!({ "kind": "camera", "name": "gate-1" })).await;
    server.revert(MIGRATION);
    let (config, data) = (server.config.clone(), server.data.clone());
    server.stop().await;
    server = Server::run(config, data).await;
    use_token(&mut server, Some(ROOT));
    let answer = server.send(path, store()).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["stored"], &answer["repeated"]), (&json!(1), &json!(1)));
    let listed = server.get("/access/principals").await.expect(StatusCode::OK);
    assert_eq!(listed["meta"]["total"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_add_admin_gives_the_first_token() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let command = |arguments: &[&str]| -> Output {
        let mut command = program();
        command
            .args(["access", "add-admin"])
            .args(arguments)
            .arg("--data-dir")
            .arg(folder.path().join("data"));
        command.stdin(Stdio::null()).output().unwrap()
    };
    let token = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let absent = command(&["Ada"]);
    let told = String::from_utf8_lossy(&absent.stderr).into_owned();
    assert_eq!(absent.status.code(), Some(2), "{told}");
    assert!(["facepipe.db", "--data-dir", "DATABASE_URL"].iter().all(|part| told.contains(part)), "{told}");
    assert!(!folder.path().join("data").exists());
    let migrated =
        program().arg("migrate").arg("--data-dir").arg(folder.path().join("data")).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let made = command(&["Ada"]);
    let told = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(told.contains("facepipe.db"), "{told}");
    let first = token(made);
    let wrong = command(&[""]);
    assert_eq!(wrong.status.code(), Some(2), "{}", String::from_utf8_lossy(&wrong.stderr));

    let settings = ["--listen", "0.0.0.0:0", "--metrics-listen", "off"];
    let (running, url) = Running::start_in(folder.path(), &models, &settings, &[]);
    let client = crate::helpers::client();
    let url = url.replace("0.0.0.0", "127.0.0.1");
    let status = async |token: &str| {
        client
            .get(format!("{url}/access/principals"))
            .bearer_auth(token)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(status(&first).await, 200);
    // Beside the running server, which polls for it.
    let second = token(command(&["Ada", "--days", "1"]));
    let begun = Instant::now();
    while status(&second).await != 200 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the second token is not accepted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status(&first).await, 200);
    let audit: Value = client
        .get(format!("{url}/audit?action=access"))
        .bearer_auth(&first)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let by_command: Vec<&Value> = audit["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["route"] == "facepipe-backend access add-admin")
        .collect();
    assert_eq!(by_command.len(), 4, "{audit}");
    assert_eq!((&by_command[0]["outcome"], &by_command[1]["outcome"]), (&json!("done"), &json!("begun")));
    assert_eq!(by_command[0]["object"]["kind"], "principal");
    let log = tokio::task::spawn_blocking(move || running.log()).await.unwrap();
    assert!(!log.contains("Ada") && !log.contains(&first) && !log.contains(&second), "{log}");
}

#[test]
fn a_token_file_that_others_can_read_is_warned_of_at_every_start() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, format!("admin {ROOT}\n")).unwrap();
    let settings =
        ["--listen", "127.0.0.1:0", "--metrics-listen", "off", "--token-file", tokens.to_str().unwrap()];
    for (mode, warned) in [(0o644, true), (0o644, true), (0o640, false)] {
        fs::set_permissions(&tokens, fs::Permissions::from_mode(mode)).unwrap();
        let (running, _) = Running::start_with(folder.path(), &models, &settings);
        let log = running.log();
        assert_eq!(log.contains("every user of this machine can read token_file"), warned, "{mode:o}: {log}");
    }
}
