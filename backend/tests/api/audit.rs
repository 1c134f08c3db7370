//! The audit log: what leaves an entry, that the chain holds, and what happens where it cannot be written.

use std::{fs, path::Path};

use facepipe_backend::AuditSwitch;
use reqwest::{Method, StatusCode, header::ACCEPT, multipart::Form};
use serde_json::{Value, json};

use crate::{
    auth::use_token,
    helpers::{ApiResponse, Engine, Server, photograph, start, until},
};

const MIGRATION: &str = "2025-01-22-000000_audit_log";
const CAMERA: &str = "camera-0123456789abcdef";
const ADMIN: &str = "admin-0123456789abcdef";

fn write_tokens(folder: &Path) -> std::path::PathBuf {
    let file = folder.join("tokens");
    fs::write(&file, format!("camera {CAMERA}\nadmin {ADMIN}\n")).unwrap();
    file
}

/// The entries that a query selects, the oldest first.
async fn entries(server: &Server, query: &str) -> Vec<Value> {
    let answer = server.get(&format!("/audit?order=oldest&limit=1000&{query}")).await.expect(StatusCode::OK);
    answer["entries"].as_array().unwrap().clone()
}

/// Action, route, outcome and status of entries.
fn shown(entries: &[Value]) -> Vec<(String, String, String, Option<u64>)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap().to_owned();
    entries
        .iter()
        .map(|entry| {
            let status = entry["status"].as_u64();
            (text(entry, "action"), text(entry, "route"), text(entry, "outcome"), status)
        })
        .collect()
}

async fn verification(server: &Server) -> Value {
    server.get("/audit/verify").await.expect(StatusCode::OK)
}

#[tokio::test]
async fn every_look_and_act_leaves_an_entry_that_names_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = write_tokens(folder.path());
    let mut server = start!(|config| config.listener.token_file = Some(tokens));
    use_token(&mut server, Some(ADMIN));
    let added = server.post_json("/people", &json!({ "face_id": "Tony_Blair" })).await;
    let person = added.expect(StatusCode::CREATED)["person_id"].as_str().unwrap().to_owned();
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    let image = server.send(&format!("/people/{person}/images"), form).await.expect(StatusCode::CREATED);
    let image = image["image_id"].as_str().unwrap().to_owned();
    server.get("/people").await.expect(StatusCode::OK);
    server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    server.get(&format!("/images/{image}")).await.expect(StatusCode::OK);
    server.get(&format!("/database/detections?person_id={person}")).await.expect(StatusCode::OK);
    // Nothing is new, so nobody is shown.
    server.get("/database/detections?after=0").await.expect(StatusCode::OK);
    let csv = server.client.get(format!("{}/database/detections", server.url)).header(ACCEPT, "text/csv");
    assert_eq!(csv.send().await.unwrap().status(), StatusCode::OK);
    server.patch(&format!("/people/{person}"), &json!({ "face_id": "Anthony Blair" })).await;
    let form = || Form::new().part("image", photograph("Tony_Blair", 1));
    server.send("/face-recognition/get-results", form()).await.expect(StatusCode::OK);
    server.post("/model/generate-emb").await.expect(StatusCode::ACCEPTED);
    server.post("/model/99/activate").await.expect_error(404, "model_not_found");
    server.get("/unknowns/018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c").await.expect_error(404, "unknown_not_found");
    use_token(&mut server, Some(CAMERA));
    server.send("/face-recognition/get-results", form()).await.expect(StatusCode::OK);
    server.get("/people").await.expect_error(403, "forbidden");
    server.get("/people").await.expect_error(403, "forbidden");
    use_token(&mut server, None);
    server.delete(&format!("/people/{person}")).await.expect_error(401, "unauthorized");
    // The column takes no such method, whose row must not keep others from being written.
    let long = Method::from_bytes("X".repeat(300).as_bytes()).unwrap();
    let refused = server.client.request(long, format!("{}/people", server.url)).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    use_token(&mut server, Some(ADMIN));
    // The dataset may be locked until the embeddings are computed.
    while server.delete(&format!("/people/{person}")).await.status == StatusCode::LOCKED {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    let all = entries(&server, "").await;
    let found = shown(&all);
    let entry = |action: &str, route: &str, outcome: &str, status: Option<u64>| {
        (action.to_owned(), route.to_owned(), outcome.to_owned(), status)
    };
    let number =
        |wanted: &(String, String, String, Option<u64>)| found.iter().filter(|e| *e == wanted).count();
    for (action, route, outcome, status) in [
        ("enrol", "POST /people", "begun", None),
        ("enrol", "POST /people", "done", Some(201)),
        ("enrol", "POST /people/{person_id}/images", "done", Some(201)),
        ("look", "GET /people", "done", Some(200)),
        ("look", "GET /dataset/{id}", "done", Some(200)),
        ("look", "GET /images/{image_id}", "done", Some(200)),
        ("look", "GET /database/detections", "done", Some(200)),
        ("export", "GET /database/detections", "done", Some(200)),
        ("change", "PATCH /people/{person_id}", "done", Some(200)),
        ("recognise", "POST /face-recognition/get-results", "done", Some(200)),
        ("train", "POST /model/generate-emb", "done", Some(202)),
        ("activate", "POST /model/{version}/activate", "begun", None),
        ("activate", "POST /model/{version}/activate", "failed", Some(404)),
        ("look", "GET /unknowns/{unknown_id}", "failed", Some(404)),
        ("refuse", "GET /people", "refused", Some(403)),
        ("refuse", "DELETE /people/{person_id}", "refused", Some(401)),
        ("refuse", "OTHER /people", "refused", Some(401)),
        ("erase", "DELETE /people/{person_id}", "done", Some(204)),
    ] {
        assert_eq!(number(&entry(action, route, outcome, status)), 1, "{action} {route}: {found:#?}");
    }
    // The person is gone; the keyed hash tells which entries were about the person.
    let text = serde_json::to_string(&all).unwrap();
    for secret in [person.as_str(), image.as_str(), "Blair", ADMIN, CAMERA] {
        assert!(!text.contains(secret), "{secret}: {text}");
        let rows = server.lines("SELECT COALESCE(object_id, '') AS line FROM audit_log");
        assert!(!rows.iter().any(|row| row.contains(secret)), "{rows:?}");
    }
    let about = entries(&server, &format!("object={person}")).await;
    assert!(about.len() >= 7, "{about:#?}");
    assert!(about.iter().any(|entry| entry["action"] == "erase" && entry["object"]["id"].is_null()));
    let refused = entries(&server, "action=refuse&principal=file").await;
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert!(refused[0]["principal"]["name"].as_str().unwrap().starts_with("camera of the token file"));
    assert_eq!(
        (&refused[0]["address"], verification(&server).await["intact"].as_bool()),
        (&json!("127.0.0.1"), Some(true))
    );
    // The second refusal of the same kind is counted, and stored at the end at the latest.
    let server = server.restart().await;
    let counted =
        server.lines("SELECT CAST(SUM(calls) AS CHAR(9)) AS line FROM audit_log WHERE status = 403");
    assert_eq!(counted[0].trim(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_make_one_chain_and_tampering_is_found() {
    let server = start!();
    let replica = match Engine::of_this_run() {
        None => None,
        Some(_) => Some(server.replica().await),
    };
    server.post("/dataset/Ada").await.expect(StatusCode::CREATED);
    let url = format!("{}/dataset/Ada", server.url);
    let other = replica.as_ref().map_or(url.clone(), |replica| format!("{}/dataset/Ada", replica.url));
    let calls = (0..120).map(|number| {
        let request = server.client.get(if number % 2 == 0 { &url } else { &other });
        tokio::spawn(async move { request.send().await.unwrap().status() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
    let verified = verification(&server).await;
    assert_eq!((&verified["intact"], &verified["entries"]), (&json!(true), &json!(122)), "{verified}");
    assert_eq!((&verified["last_id"], &verified["trimmed_up_to"]), (&json!(122), &Value::Null));
    let broken = async |statement: &str| {
        server.execute(statement);
        let verified = verification(&server).await;
        assert_eq!(verified["intact"], verified["broken"].is_null());
        (verified["broken"]["id"].as_i64(), verified["broken"]["fault"].as_str().map(str::to_owned))
    };
    let found = |id, fault: &str| (Some(id), Some(fault.to_owned()));
    let is = broken("UPDATE audit_log SET address = '192.0.2.7' WHERE id = 17").await;
    assert_eq!(is, found(17, "content"));
    let is = broken("UPDATE audit_log SET address = '127.0.0.1' WHERE id = 17").await;
    assert_eq!(is, (None, None));
    let is = broken("UPDATE audit_log SET object_id = 'somebody' WHERE id = 30").await;
    assert_eq!(is, found(30, "object"));
    assert_eq!(broken("UPDATE audit_log SET object_id = NULL WHERE id = 30").await, (None, None));
    assert_eq!(broken("DELETE FROM audit_log WHERE id = 122").await, found(122, "missing"));
    assert_eq!(broken("DELETE FROM audit_log WHERE id = 40").await, found(40, "missing"));
    assert_eq!(broken("DELETE FROM audit_log WHERE id < 20").await, found(1, "missing"));
}

#[tokio::test]
async fn what_cannot_be_recorded_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = write_tokens(folder.path());
    let mut server = start!(|config| config.listener.token_file = Some(tokens));
    use_token(&mut server, Some(ADMIN));
    server.post("/dataset/Ada").await.expect(StatusCode::CREATED);
    server.execute("ALTER TABLE audit_log RENAME TO audit_log_elsewhere");
    for path in ["/people", "/dataset/Ada", "/model", "/database/sightings", "/unknowns"] {
        let answer = server.get(path).await;
        assert!(answer.headers.contains_key("retry-after"), "{path}");
        let message = answer.expect_error(503, "audit_unavailable");
        assert!(message.contains("audit log"), "{message}");
    }
    server.delete("/dataset/Ada").await.expect_error(503, "audit_unavailable");
    server.post("/dataset/Grace").await.expect_error(503, "audit_unavailable");
    server.post("/model/train").await.expect_error(503, "audit_unavailable");
    // What is no look stays possible, and what fails says why.
    server.get("/jobs").await.expect(StatusCode::OK);
    server.get("/livez").await.expect(StatusCode::OK);
    server.get("/dataset/Nobody").await.expect_error(404, "person_not_found");
    use_token(&mut server, Some(CAMERA));
    let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby");
    let form = form.part("image", photograph("Tony_Blair", 1));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    use_token(&mut server, Some(ADMIN));
    server.execute("ALTER TABLE audit_log_elsewhere RENAME TO audit_log");
    let people = server.get("/people").await.expect(StatusCode::OK);
    let names: Vec<&str> =
        people["people"].as_array().unwrap().iter().map(|one| one["face_id"].as_str().unwrap()).collect();
    assert_eq!((names, server.get("/jobs").await.body["jobs"].clone()), (vec!["Ada"], json!([])));
    assert_eq!(verification(&server).await["intact"], true);
}

#[tokio::test]
async fn entries_are_found_by_filters_and_read_in_pages() {
    let server = start!();
    let person = server.post("/dataset/Ada").await.expect(StatusCode::CREATED)["person_id"].clone();
    let person = person.as_str().unwrap();
    for _ in 0..5 {
        server.get(&format!("/people/{person}")).await.expect(StatusCode::OK);
        server.get("/people").await.expect(StatusCode::OK);
    }
    let ids =
        |entries: &[Value]| entries.iter().map(|entry| entry["id"].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!(ids(&entries(&server, "action=enrol").await), [1, 2]);
    // By the id, in any spelling, and by the hash; the reading of the log itself is about a query.
    let about = entries(&server, &format!("object={}", person.to_uppercase())).await;
    assert_eq!(ids(&about), [2, 3, 5, 7, 9, 11]);
    assert_eq!(
        (&about[0]["object"]["id"], &about[0]["principal"]["kind"]),
        (&json!(person), &json!("local"))
    );
    let hash = about[0]["object"]["hash"].as_str().unwrap();
    assert_eq!(ids(&entries(&server, &format!("object={hash}")).await), ids(&about));
    let since = about[3]["at"].as_str().unwrap();
    assert_eq!(ids(&entries(&server, &format!("object={hash}&since={since}")).await), [7, 9, 11]);
    assert_eq!(ids(&entries(&server, &format!("object={hash}&until={since}")).await), [2, 3, 5]);
    assert_eq!(entries(&server, "principal=7").await, Vec::<Value>::new());
    let looks = entries(&server, "principal=local&action=look").await.len();
    // Page by page, the newest first, while the reading itself adds entries.
    let (mut cursor, mut found) = (String::new(), Vec::new());
    loop {
        let page = server.get(&format!("/audit?action=look&limit=4{cursor}")).await.expect(StatusCode::OK);
        found.extend(ids(page["entries"].as_array().unwrap()));
        let Some(next) = page["meta"]["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert!(found.is_sorted_by(|one, two| one > two) && found.len() == looks, "{found:?}");
    for (query, told) in [
        ("action=stare", "it must be one of look"),
        ("since=yesterday", "since is"),
        ("order=up", "order is"),
        ("limit=0", "limit is 0"),
        ("cursor=00", "cursor"),
        ("person=Ada", "unknown field"),
    ] {
        let answer = server.get(&format!("/audit?{query}")).await;
        let message = answer.body["error"]["message"].as_str().unwrap();
        assert!(answer.status == StatusCode::BAD_REQUEST && message.contains(told), "{query}: {message}");
    }
}

#[tokio::test]
async fn old_entries_are_removed_and_the_rest_can_be_verified() {
    let server = start!(|config| config.audit.audit_max_age_days = 30);
    for _ in 0..8 {
        server.get("/people").await.expect(StatusCode::OK);
    }
    server.execute("UPDATE audit_log SET at = 1700000000000000 WHERE id <= 5");
    // A row of a server whose clock was decades ahead.
    server.execute("UPDATE audit_log SET at = 4000000000000000 WHERE id = 2");
    let server = server.restart().await;
    until(|| server.lines("SELECT route AS line FROM audit_log WHERE action = 'trim'").len() == 1).await;
    let verified = verification(&server).await;
    assert_eq!(
        (&verified["intact"], &verified["trimmed_up_to"], &verified["entries"]),
        (&json!(true), &json!(5), &json!(4)),
        "{verified}"
    );
    let trimmed = entries(&server, "action=trim").await;
    assert_eq!(
        (trimmed.len(), &trimmed[0]["calls"], &trimmed[0]["object"]["id"]),
        (1, &json!(5), &json!("5"))
    );
    // Another beginning is found out.
    server.execute("DELETE FROM audit_log WHERE id = 6");
    server.execute(
        "UPDATE audit_chain SET trimmed_id = 6, \
         trimmed_hash = (SELECT previous_hash FROM audit_log WHERE id = 7)",
    );
    assert_eq!(verification(&server).await["broken"]["fault"], "beginning");
}

#[tokio::test]
async fn a_clock_that_may_have_jumped_removes_no_entry_after_a_restart_either() {
    let server = start!(|config| config.audit.audit_max_age_days = 30);
    for _ in 0..3 {
        server.get("/people").await.expect(StatusCode::OK);
    }
    server.execute("UPDATE audit_log SET at = 1700000000000000");
    server.execute("DELETE FROM task_runs WHERE task = 'audit'");
    let looked = "SELECT CONCAT('', finished_at) AS line FROM task_runs WHERE task = 'audit'";
    let mut server = server.restart().await;
    until(|| server.lines(looked) == ["1700000000000000"]).await;
    for _ in 0..2 {
        // The newest entry now has the time of the clock in question.
        server.get("/people").await.expect(StatusCode::OK);
        server = server.restart().await;
    }
    let server = server.restart().await;
    assert_eq!(server.lines(looked), ["1700000000000000"]);
    assert_eq!(server.lines("SELECT route AS line FROM audit_log").len(), 5);
}

#[tokio::test]
async fn an_erased_person_leaves_no_id_of_an_image_that_others_failed_to_erase() {
    let server = start!();
    server.post("/dataset/Ada").await.expect(StatusCode::CREATED);
    let added = server.post_json("/people", &json!({ "face_id": "Tony_Blair" })).await;
    let person = added.expect(StatusCode::CREATED)["person_id"].as_str().unwrap().to_owned();
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    let image = server.send(&format!("/people/{person}/images"), form).await.expect(StatusCode::CREATED);
    let image = image["image_id"].as_str().unwrap().to_owned();
    let wrong = server.delete(&format!("/dataset/Ada/image/{image}")).await;
    assert_eq!(wrong.status, StatusCode::NOT_FOUND);
    server.get("/database/detections/7").await.expect_error(404, "detection_not_found");
    let ids = || server.lines("SELECT COALESCE(object_id, '') AS line FROM audit_log");
    assert!(ids().contains(&image) && !ids().contains(&"7".to_owned()), "{:?}", ids());
    server.delete(&format!("/people/{person}")).await.expect(StatusCode::NO_CONTENT);
    assert!(!ids().contains(&image) && !ids().contains(&person), "{:?}", ids());
    assert_eq!(verification(&server).await["intact"], true);
}

#[tokio::test]
async fn an_upgrade_keeps_everything_and_begins_the_log() {
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    let before = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    server.revert(MIGRATION);
    let server = server.restart().await;
    assert_eq!(server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK), before);
    let verified = verification(&server).await;
    assert_eq!((&verified["intact"], &verified["entries"]), (&json!(true), &json!(1)), "{verified}");
}

#[tokio::test]
async fn without_the_log_nothing_is_recorded() {
    let server = start!(|config| config.audit.audit = AuditSwitch::Off);
    server.post("/dataset/Ada").await.expect(StatusCode::CREATED);
    server.execute("ALTER TABLE audit_log RENAME TO audit_log_elsewhere");
    server.get("/people").await.expect(StatusCode::OK);
    server.execute("ALTER TABLE audit_log_elsewhere RENAME TO audit_log");
    let head = server.client.request(Method::HEAD, format!("{}/people", server.url));
    assert!(ApiResponse::read(head.send().await.unwrap()).await.status.is_success());
    assert!(entries(&server, "").await.is_empty());
}
