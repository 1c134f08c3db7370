//! Valid names, and which names count as the same.

use std::sync::Arc;

use reqwest::{Method, StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::helpers::{Engine, Server, photograph, start};

const NAMES: &str = "2025-01-09-000000_names";
const PERSON_IDS: &str = "2025-01-13-000000_person_ids";

/// Encodes a name as a segment of a path.
fn segment(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn path(name: &str) -> String {
    format!("/dataset/{}", segment(name))
}

async fn listed(server: &Server) -> Vec<(String, i64)> {
    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    let people = listed["people"].as_array().unwrap().iter();
    people.map(|p| (p["face_id"].as_str().unwrap().to_owned(), p["images"].as_i64().unwrap())).collect()
}

#[tokio::test]
async fn names_in_every_script_are_found_in_every_unicode_form() {
    let server = start!();
    for (typed, kept, other) in [
        ("Jose\u{301}", "Jos\u{e9}", "JOS\u{c9}"),
        // Hangul, composed and in its letters.
        ("\u{ae40}", "\u{ae40}", "\u{1100}\u{1175}\u{11b7}"),
        // Devanagari.
        (
            "\u{92a}\u{94d}\u{930}\u{93f}\u{92f}\u{93e}",
            "\u{92a}\u{94d}\u{930}\u{93f}\u{92f}\u{93e}",
            " \u{92a}\u{94d}\u{930}\u{93f}\u{92f}\u{93e}",
        ),
        // Thai.
        ("\u{e19}\u{e49}\u{e33}", "\u{e19}\u{e49}\u{e33}", "\u{e19}\u{e49}\u{e33} "),
        // Vietnamese.
        ("Nguye\u{302}\u{303}n", "Nguy\u{1ec5}n", "NGUY\u{1ec4}N"),
        // Persian, with and without its joiner.
        (
            "\u{639}\u{644}\u{6cc}\u{200c}\u{631}",
            "\u{639}\u{644}\u{6cc}\u{200c}\u{631}",
            "\u{639}\u{644}\u{6cc}\u{631}",
        ),
        ("O'Brien", "O'Brien", "O\u{2019}BRIEN"),
        // Katakana with its middle dot, in wide and narrow letters.
        ("\u{30a2}\u{30fb}\u{30e9}", "\u{30a2}\u{30fb}\u{30e9}", "\u{ff71}\u{ff65}\u{ff97}"),
        (" ann ", "ann", "Ann"),
    ] {
        let added = server.post(&path(typed)).await.expect(StatusCode::CREATED);
        assert_eq!(added["face_id"], kept, "{typed:?}");
        for form in [typed, kept, other] {
            let answer = server.post(&path(form)).await;
            assert_eq!(answer.body["error"]["details"]["person_id"], added["person_id"], "{form:?}");
            let message = answer.expect_error(409, "person_exists");
            assert!(!message.contains(kept), "{message}");
            let found = server.get(&path(form)).await.expect(StatusCode::OK);
            assert_eq!(
                (&found["face_id"], &found["person_id"]),
                (&kept.into(), &added["person_id"]),
                "{form:?}"
            );
        }
    }
    let total = listed(&server).await.len();
    assert_eq!(total, 9);
    // Another form of the person's own name is no conflict; a form of another person's name is.
    let renamed = server.patch(&path("ann"), &json!({ "face_id": "ANN" })).await.expect(StatusCode::OK);
    assert_eq!(renamed["face_id"], "ANN");
    server.patch(&path("ann"), &json!({ "face_id": "jos\u{e9}" })).await.expect_error(409, "person_exists");
    let seen = server.get(&format!("/database/{}/track", segment("ann"))).await.expect(StatusCode::OK);
    assert_eq!(seen["face_id"], "ANN");
    let filtered = format!("/database/detections?person={}", segment("ann"));
    server.get(&filtered).await.expect(StatusCode::OK);
    server.delete(&path("aNN")).await.expect(StatusCode::NO_CONTENT);
    server.get(&path("ANN")).await.expect_error(404, "person_not_found");
    server.post(&path("ann")).await.expect(StatusCode::CREATED);
}

#[tokio::test]
async fn a_rejected_name_is_reported_with_its_reason() {
    let server = start!();
    for (name, told) in [
        ("   ", "nothing that can be seen"),
        ("\u{3164}", "nothing that can be seen"),
        ("Ann\u{202e}a", "U+202E"),
        ("Ann\u{200b}a", "U+200B"),
        ("Ann\n", "U+000A"),
        ("a/b", "'/'"),
        ("a\\b", "'\\\\'"),
        ("100%", "'%'"),
        ("<b>", "'<'"),
        (".x", "dot"),
        ("=1+1", "spreadsheets"),
        ("a\u{378}", "U+0378"),
    ] {
        let message = server.post(&path(name)).await.expect_error(400, "invalid_face_id");
        assert!(message.contains(told), "{name:?}: {message}");
        let message = server.post_json("/people", &json!({ "face_id": name })).await;
        let message = message.expect_error(400, "invalid_face_id");
        assert!(message.contains(told), "{name:?}: {message}");
    }
    assert_eq!(listed(&server).await, []);
}

/// Adds a person as the version before the rule of names did, with the images of `of`.
fn add_old(server: &Server, row: i64, name: &str, of: Option<&str>) {
    let created_at = 1_714_555_800_000_000 + row;
    server.execute(&format!(
        "INSERT INTO people (id, face_id, created_at) VALUES ({row}, '{name}', {created_at})"
    ));
    if let Some(of) = of {
        server.execute(&format!(
            "UPDATE images SET person_id = {row} WHERE person_id = (SELECT id FROM people WHERE face_id = '{of}')"
        ));
    }
}

/// Reverts the database to the version before the rule of names.
fn before_the_rule(server: &Server) {
    server.revert(PERSON_IDS);
    server.revert(NAMES);
}

#[tokio::test]
async fn names_from_before_the_uniqueness_rule_are_kept_and_found() {
    let server = start!();
    for (person, numbers) in [("Tony_Blair", &[1, 2][..]), ("Hugo_Chavez", &[1]), ("Colin_Powell", &[1])] {
        server.enrol(person, numbers).await;
    }
    server.train().await;
    before_the_rule(&server);
    let hangul = "\u{1100}\u{1175}\u{11b7}";
    add_old(&server, 1001, hangul, Some("Tony_Blair"));
    add_old(&server, 1002, "Ann", Some("Hugo_Chavez"));
    add_old(&server, 1003, "\u{ae40}", Some("Colin_Powell"));
    add_old(&server, 1004, "ann", None);
    add_old(&server, 1005, "ann ", None);
    add_old(&server, 1006, "   ", None);
    add_old(&server, 1007, "Jose\u{301}", None);
    let server = server.restart().await;

    let expected: Vec<(String, i64)> = [
        ("Ann", 1),
        ("Colin_Powell", 0),
        ("Hugo_Chavez", 0),
        ("Jos\u{e9}", 0),
        ("Tony_Blair", 0),
        ("ann", 0),
        ("ann (2)", 0),
        ("unnamed 1006", 0),
        ("\u{ae40}", 1),
        ("\u{ae40} (2)", 2),
    ]
    .map(|(name, images)| (name.to_owned(), images))
    .into();
    assert_eq!(listed(&server).await, expected);
    let all = server.get("/dataset").await.expect(StatusCode::OK);
    let person = |name: &str| {
        let people = all["people"].as_array().unwrap();
        people.iter().find(|person| person["face_id"] == name).unwrap().clone()
    };
    // The two names that differ only in case are reported, and each is found by its exact text; any other form finds the
    // older person.
    assert_eq!(person("ann")["same_name_as"], person("Ann")["person_id"]);
    assert_eq!(person("Ann")["same_name_as"], Value::Null);
    for (typed, found) in [
        ("Ann", "Ann"),
        ("ann", "ann"),
        ("ANN", "Ann"),
        (hangul, "\u{ae40}"),
        ("\u{ae40} (2)", "\u{ae40} (2)"),
        ("jose\u{301}", "Jos\u{e9}"),
    ] {
        let answer = server.get(&path(typed)).await.expect(StatusCode::OK);
        assert_eq!((&answer["face_id"], &answer["person_id"]), (&found.into(), &person(found)["person_id"]));
    }
    // Pictures and embeddings went nowhere: the next training has all of them.
    assert_eq!(server.train().await["images"], 4);

    // Nothing more is done at the next start, and ids stay.
    let server = server.restart().await;
    assert_eq!(server.get("/dataset").await.expect(StatusCode::OK)["people"], all["people"]);

    // Who shares a name is found by all forms of it once the other one has gone.
    server.delete(&path("ANN")).await.expect(StatusCode::NO_CONTENT);
    let left = server.get(&path("ANN")).await.expect(StatusCode::OK);
    assert_eq!((&left["face_id"], &left["person_id"]), (&"ann".into(), &person("ann")["person_id"]));
    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    assert!(listed["people"].as_array().unwrap().iter().all(|p| p["same_name_as"].is_null()), "{listed}");
}

#[tokio::test]
async fn a_person_erased_under_another_form_of_the_name_stays_erased() {
    let server = start!();
    server.enrol("Hugo_Chavez", &[1]).await;
    before_the_rule(&server);
    let old = "Jose\u{301}";
    add_old(&server, 1001, old, None);
    let server = server.restart().await;
    server.delete(&path(old)).await.expect(StatusCode::NO_CONTENT);
    // An older backup of the database, with the ledger of the blobs.
    before_the_rule(&server);
    add_old(&server, 1001, old, None);
    add_old(&server, 1002, "Jos\u{e9}", None);
    let server = server.restart().await;
    // Names of erased people cause no numbering.
    assert_eq!(listed(&server).await, [("Hugo_Chavez".to_owned(), 1), ("Jos\u{e9}".to_owned(), 0)]);
    assert!(server.traces_of(old.as_bytes()).is_empty(), "{:?}", server.traces_of(old.as_bytes()));
}

#[tokio::test]
async fn servers_starting_together_migrate_names_once() {
    let server = start!();
    before_the_rule(&server);
    for row in 0..40 {
        add_old(&server, 1001 + row, &format!("Jose\u{301} {row}"), None);
        add_old(&server, 2001 + row, &format!("Jos\u{e9} {row}"), None);
    }
    let (config, data) = (server.config.clone(), Arc::clone(&server.data));
    server.stop().await;
    // On SQLite, one server has a data folder.
    let servers = if Engine::of_this_run().is_some() { 3 } else { 1 };
    let starts = (0..servers)
        .map(|_| tokio::spawn(Server::run(config.clone(), Arc::clone(&data))))
        .collect::<Vec<_>>();
    let mut running = Vec::new();
    for start in starts {
        running.push(start.await.unwrap());
    }
    let names: Vec<String> = listed(&running[0]).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 80);
    for row in 0..40 {
        for name in [format!("Jos\u{e9} {row}"), format!("Jos\u{e9} {row} (2)")] {
            assert!(names.contains(&name), "{name} of {names:?}");
        }
    }
    for server in running {
        server.stop().await;
    }
}

#[tokio::test]
async fn names_differ_by_case_where_configured() {
    let server = start!(|config| config.dataset.face_ids_ignore_case = false);
    let ann = server.post("/dataset/Ann").await.expect(StatusCode::CREATED);
    let small = server.post("/dataset/ann").await.expect(StatusCode::CREATED);
    server.post("/dataset/Ann%20").await.expect_error(409, "person_exists");
    server.get("/dataset/ANN").await.expect_error(404, "person_not_found");
    let (mut config, data) = (server.config.clone(), Arc::clone(&server.data));
    server.stop().await;

    config.dataset.face_ids_ignore_case = true;
    let server = Server::run(config, data).await;
    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    assert_eq!(listed["people"][1]["same_name_as"], ann["person_id"], "{listed}");
    for (typed, id) in [("Ann", &ann), ("ann", &small), ("ANN", &ann)] {
        let found = server.get(&path(typed)).await.expect(StatusCode::OK);
        assert_eq!(found["person_id"], id["person_id"], "{typed}");
    }
    server.post("/dataset/aNN").await.expect_error(409, "person_exists");
    // Renaming either ends it.
    server.patch("/dataset/Ann", &json!({ "face_id": "Anna" })).await.expect(StatusCode::OK);
    assert_eq!(server.get("/dataset/ANN").await.expect(StatusCode::OK)["person_id"], small["person_id"]);
}

#[tokio::test]
async fn concurrent_enrolments_of_one_name_in_many_forms_make_one_person() {
    let server = start!();
    let forms = [
        "Jos\u{e9}",
        "Jose\u{301}",
        "JOS\u{c9}",
        " jos\u{e9}",
        "jose\u{301} ",
        "JOSE\u{301}",
        "jos\u{e9}",
        "JoS\u{c9}",
    ];
    let calls = forms.map(|form| {
        let request = server.client.request(Method::POST, format!("{}{}", server.url, path(form)));
        tokio::spawn(async move { request.send().await.unwrap().status().as_u16() })
    });
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(listed(&server).await.len(), 1);
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    server.send(&format!("{}/image", path("jose\u{301}")), form).await.expect(StatusCode::CREATED);
}
