//! The effective time of a detection: the sender's claim, or the time of arrival.

use std::time::{Duration, Instant};

use facepipe_backend::Config;
use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    deployment::{beside, said},
    helpers::{Server, photograph, start, until},
};

/// The migration that added these times.
const MIGRATION: &str = "2025-01-11-000000_time_that_counts";
const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// 2036-01-01T00:00:00Z.
const YEAR_2036: i64 = 2_082_758_400 * SECOND;

fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap()
}

fn text(micros: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap().format(&Rfc3339).unwrap()
}

fn moment(value: &Value) -> i64 {
    let moment = OffsetDateTime::parse(value.as_str().unwrap(), &Rfc3339).unwrap();
    i64::try_from(moment.unix_timestamp_nanos() / 1000).unwrap()
}

/// The defaults of these settings.
fn defaults(config: &mut Config) {
    config.retention.captured_at_max_behind_days = Config::default().retention.captured_at_max_behind_days;
}

async fn store(server: &Server, camera: &str, captured_at: Option<i64>) {
    let mut form = Form::new().text("camera_id", camera.to_owned()).text("location", "Lobby");
    if let Some(moment) = captured_at {
        form = form.text("captured_at", text(moment));
    }
    let form = form.text("key", camera.to_owned()).part("image", photograph("Tony_Blair", 3));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
}

async fn detections(server: &Server, query: &str) -> Vec<Value> {
    let page = server.get(&format!("/database/detections{query}")).await.expect(StatusCode::OK);
    page["detections"].as_array().unwrap().clone()
}

fn cameras(detections: &[Value]) -> Vec<&str> {
    detections.iter().map(|detection| detection["camera_id"].as_str().unwrap()).collect()
}

/// Rows as text: camera, the three times, and all other columns.
fn rows(server: &Server) -> Vec<String> {
    server.lines(
        "SELECT CONCAT(camera_id, ' ', captured_at, ' ', received_at, ' ', COALESCE(claimed_at, -1)) AS line \
         FROM detections ORDER BY id",
    )
}

fn last_retention(server: &Server) -> String {
    let query = "SELECT CONCAT('', COALESCE(finished_at, -1)) AS line FROM task_runs WHERE task = 'retain'";
    server.lines(query)[0].clone()
}

#[tokio::test]
async fn an_implausible_capture_time_is_replaced() {
    let server = start!(|config| {
        defaults(config);
        config.listener.metrics_listen = Some("127.0.0.1:0".into());
    });
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    let begun = now();
    // By clocks of the year 2036, of 1970, of 2000, by one that is 5 minutes late, and from a spool of 29 days.
    store(&server, "ahead", Some(YEAR_2036)).await;
    store(&server, "reset", Some(7 * SECOND)).await;
    store(&server, "battery", Some(946_684_800 * SECOND)).await;
    store(&server, "late", Some(begun - 300 * SECOND)).await;
    store(&server, "spool", Some(begun - 29 * DAY)).await;
    store(&server, "silent", None).await;

    let all = detections(&server, "").await;
    assert_eq!(cameras(&all), ["silent", "battery", "reset", "ahead", "late", "spool"]);
    for (index, claimed) in [
        (1, json!("2000-01-01T00:00:00Z")),
        (2, json!("1970-01-01T00:00:07Z")),
        (3, json!("2036-01-01T00:00:00Z")),
    ] {
        let detection = &all[index];
        assert_eq!((&detection["claimed_at"], &detection["time_basis"]), (&claimed, &json!("arrival")));
        assert_eq!(detection["captured_at"], detection["received_at"]);
        assert!((begun..=now()).contains(&moment(&detection["captured_at"])));
    }
    assert_eq!((&all[0]["claimed_at"], &all[0]["time_basis"]), (&Value::Null, &json!("arrival")));
    for (index, captured_at) in [(4, begun - 300 * SECOND), (5, begun - 29 * DAY)] {
        assert_eq!((&all[index]["claimed_at"], &all[index]["time_basis"]), (&Value::Null, &json!("claim")));
        assert_eq!(moment(&all[index]["captured_at"]), captured_at);
        assert!(moment(&all[index]["received_at"]) >= begun);
    }

    // Everything that uses the time.
    let last = server.get("/database/Tony_Blair/last-known-location").await.expect(StatusCode::OK);
    assert_eq!(last["camera_id"], "silent");
    let range = format!("from={}&to={}", text(begun - 3600 * SECOND), text(begun + 3600 * SECOND));
    let found = detections(&server, &format!("?{range}")).await;
    assert_eq!(cameras(&found), ["silent", "battery", "reset", "ahead", "late"]);
    let track = server.get("/database/Tony_Blair/track").await.expect(StatusCode::OK);
    let track = track["detections"].as_array().unwrap().clone();
    assert_eq!(cameras(&track), ["spool", "late", "ahead", "reset", "battery", "silent"]);
    let followed = detections(&server, "?after=0").await;
    assert_eq!(cameras(&followed), ["ahead", "reset", "battery", "late", "spool", "silent"]);
    let known = server.get("/cameras").await.expect(StatusCode::OK);
    for camera in known["cameras"].as_array().unwrap() {
        assert!(moment(&camera["last_seen"]) <= now(), "{camera}");
    }
    store(&server, "newest", Some(YEAR_2036)).await;
    let last = server.get("/database/Tony_Blair/last-known-location").await.expect(StatusCode::OK);
    assert_eq!((&last["camera_id"], &last["time_basis"]), (&json!("newest"), &json!("arrival")));
    assert_eq!(
        (&last["claimed_at"], &last["captured_at"]),
        (&json!("2036-01-01T00:00:00Z"), &last["received_at"])
    );

    let answer = server.client.get(server.metrics.as_ref().unwrap()).send().await.unwrap();
    let metrics = answer.text().await.unwrap();
    assert!(metrics.lines().any(|line| line == "facepipe_capture_times_replaced_total 4"), "{metrics}");
}

#[tokio::test]
async fn retention_uses_the_effective_time() {
    let server = start!(|config| {
        defaults(config);
        config.retention.detections_max_age_days = Some(7);
    });
    until(|| last_retention(&server) != "-1").await;
    let begun = now();
    store(&server, "reset", Some(7 * SECOND)).await;
    store(&server, "ahead", Some(YEAR_2036)).await;
    store(&server, "spool", Some(begun - 8 * DAY)).await;
    let told = said(&beside(&server, &["retain", "--detections-max-age-days", "7"]).await);
    assert!(told.contains("Deleted 1 detections"), "{told}");
    assert_eq!(cameras(&detections(&server, "").await), ["ahead", "reset"]);
    // As if a week later, the one of 2036 is deleted, too.
    server.execute(&format!(
        "UPDATE detections SET captured_at = captured_at - {0}, received_at = received_at - {0}",
        8 * DAY
    ));
    said(&beside(&server, &["retain", "--detections-max-age-days", "7"]).await);
    assert!(detections(&server, "").await.is_empty());
}

#[tokio::test]
async fn old_recordings_keep_their_time_when_configured() {
    let server = start!(|config| config.retention.captured_at_max_behind_days = 36_500);
    store(&server, "replay", Some(946_684_800 * SECOND)).await;
    store(&server, "ahead", Some(YEAR_2036)).await;
    let all = detections(&server, "").await;
    assert_eq!(cameras(&all), ["ahead", "replay"]);
    assert_eq!(
        (&all[1]["captured_at"], &all[1]["claimed_at"]),
        (&json!("2000-01-01T00:00:00Z"), &Value::Null)
    );
    assert_eq!(all[0]["time_basis"], "arrival");
}

#[tokio::test]
async fn messages_to_the_external_api_have_the_effective_time() {
    // Nothing listens there: messages stay queued.
    let server = start!(|config| {
        defaults(config);
        config.results.results_url = Some("http://127.0.0.1:9/".into());
    });
    let begun = now();
    for (key, captured_at) in [("a", YEAR_2036), ("b", begun - 60 * SECOND)] {
        let form = Form::new().text("camera_id", "gate-1").text("location", "").text("key", key);
        let form = form.text("captured_at", text(captured_at)).part("image", photograph("Tony_Blair", 1));
        server.send("/face-recognition/send-results", form).await.expect(StatusCode::ACCEPTED);
    }
    let times = server.lines("SELECT CONCAT('', captured_at) AS line FROM outbox ORDER BY id");
    let times: Vec<i64> = times.iter().map(|time| time.parse().unwrap()).collect();
    assert!((begun..=now()).contains(&times[0]), "{times:?}");
    assert_eq!(times[1], begun - 60 * SECOND);
}

#[tokio::test]
async fn an_upgrade_sets_effective_times_and_loses_nothing() {
    let server = start!(defaults);
    server.enrol("Tony_Blair", &[1]).await;
    for camera in ["2036", "1970", "ahead", "behind", "spool", "unset"] {
        store(&server, camera, None).await;
    }
    let arrived = now() - 2 * DAY;
    server.revert(MIGRATION);
    let times = [
        ("2036", YEAR_2036, arrived),
        ("1970", 7 * SECOND, arrived),
        ("ahead", arrived + 299 * SECOND, arrived),
        ("behind", arrived - 31 * DAY, arrived),
        ("spool", arrived - 29 * DAY, arrived),
        // Stored by a server with an unset clock; the camera's was set.
        ("unset", arrived, 9 * SECOND),
    ];
    for (camera, captured_at, received_at) in times {
        server.execute(&format!(
            "UPDATE detections SET captured_at = {captured_at}, received_at = {received_at} WHERE camera_id = '{camera}'"
        ));
    }
    // Results that are older than a day are dropped.
    let queued = now() - 3600 * SECOND;
    for (key, captured_at) in [("a", YEAR_2036), ("b", queued - DAY)] {
        server.execute(&format!(
            "INSERT INTO outbox (message_key, camera_id, location, captured_at, created_at, next_attempt_at) \
             VALUES ('{key}', 'gate-1', '', {captured_at}, {queued}, {YEAR_2036})"
        ));
    }
    let others = "SELECT CONCAT(id, ' ', camera_id, ' ', location, ' ', COALESCE(person_id, 0), ' ', upload_key, ' ', \
                  face, ' ', embedder, ' ', COALESCE(LENGTH(embedding), 0), ' ', received_at) AS line \
                  FROM detections ORDER BY id";
    let before = server.lines(others);
    let server = server.restart().await;
    assert_eq!(server.lines(others), before);
    let messages = server.lines("SELECT CONCAT('', captured_at) AS line FROM outbox ORDER BY message_key");
    assert_eq!(messages, [queued.to_string(), (queued - DAY).to_string()]);
    assert_eq!(
        rows(&server),
        [
            format!("2036 {arrived} {arrived} {YEAR_2036}"),
            format!("1970 {arrived} {arrived} {}", 7 * SECOND),
            format!("ahead {} {arrived} -1", arrived + 299 * SECOND),
            format!("behind {arrived} {arrived} {}", arrived - 31 * DAY),
            format!("spool {} {arrived} -1", arrived - 29 * DAY),
            format!("unset {arrived} {} -1", 9 * SECOND),
        ]
    );
}

#[tokio::test]
async fn a_doubtful_clock_deletes_nothing_until_confirmed() {
    let server = start!(|config| {
        config.retention.detections_max_age_days = Some(30);
        config.listener.metrics_listen = Some("127.0.0.1:0".into());
    });
    until(|| last_retention(&server) != "-1").await;
    store(&server, "old", Some(now() - 40 * DAY)).await;
    store(&server, "young", None).await;
    // As if the clock were 16 days ahead of the last pass.
    let last = now() - 16 * DAY;
    server.execute(&format!("UPDATE task_runs SET finished_at = {last} WHERE task = 'retain'"));
    let output = beside(&server, &["retain", "--detections-max-age-days", "30"]).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && told.contains("jumped ahead") && told.contains("--trust-clock"),
        "{told}"
    );

    // The server's own pass deletes nothing either, and counts a failure.
    let server = server.restart().await;
    let (client, url) = (server.client.clone(), server.metrics.clone().unwrap());
    let begun = Instant::now();
    loop {
        let metrics = client.get(&url).send().await.unwrap().text().await.unwrap();
        if metrics.lines().any(|line| line == "facepipe_task_failures_total{task=\"retain\"} 1") {
            let told =
                format!("facepipe_task_last_success_timestamp_seconds{{task=\"retain\"}} {}", last / SECOND);
            assert!(metrics.contains(&told), "{metrics}");
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cameras(&detections(&server, "").await), ["young", "old"]);
    assert_eq!(last_retention(&server), last.to_string());

    let told = said(&beside(&server, &["retain", "--detections-max-age-days", "30", "--trust-clock"]).await);
    assert!(told.contains("Deleted 1 detections"), "{told}");
    assert!(last_retention(&server).parse::<i64>().unwrap() > last + 15 * DAY);
}

#[tokio::test]
async fn rows_of_servers_with_wrong_clocks_are_corrected() {
    let server = start!(defaults);
    let begun = now();
    for camera in ["believed", "jumped", "lost", "unset", "replay"] {
        store(&server, camera, None).await;
    }
    let earlier = begun - DAY;
    let (ahead, old) = (YEAR_2036 + DAY, 1_262_304_000 * SECOND);
    for (camera, captured_at, received_at, claimed_at) in [
        // Stored by a version that accepted every claim.
        ("believed", YEAR_2036, earlier, "NULL".to_owned()),
        // Arrived while the server's clock said 2036, which made the camera's implausible.
        ("jumped", ahead, ahead, earlier.to_string()),
        ("lost", ahead, ahead, "NULL".to_owned()),
        // Arrived before the server's clock was set.
        ("unset", 9 * SECOND, 9 * SECOND, "NULL".to_owned()),
        // A recording of 2010 that keeps its time.
        ("replay", old, earlier, "NULL".to_owned()),
    ] {
        server.execute(&format!(
            "UPDATE detections SET captured_at = {captured_at}, received_at = {received_at}, claimed_at = {claimed_at} \
             WHERE camera_id = '{camera}'"
        ));
    }
    let started = now();
    let server = server.restart().await;
    let row = |camera: &str| -> Vec<i64> {
        let rows = rows(&server);
        let row = rows.iter().find(|row| row.starts_with(camera)).unwrap();
        row.split(' ').skip(1).map(|field| field.parse().unwrap()).collect()
    };
    until(|| row("unset")[0] > 9 * SECOND).await;
    assert_eq!(row("believed"), [earlier, earlier, YEAR_2036]);
    assert_eq!(row("jumped"), [earlier, ahead, -1]);
    assert_eq!(row("replay"), [old, earlier, -1]);
    for (camera, claimed_at) in [("lost", ahead), ("unset", 9 * SECOND)] {
        let times = row(camera);
        assert!((started..=now()).contains(&times[0]), "{camera}: {times:?}");
        assert_eq!(times[2], claimed_at, "{camera}");
    }
}
