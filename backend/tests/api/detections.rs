//! store-results, and queries of what it stored.

use std::time::{Duration, Instant};

use diesel::{Connection as _, MysqlConnection, PgConnection, connection::SimpleConnection as _};
use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::helpers::{ApiResponse, Engine, Server, file, photograph, start};

fn upload(camera: &str, location: &str) -> Form {
    Form::new().text("camera_id", camera.to_owned()).text("location", location.to_owned())
}

#[tokio::test]
async fn stored_detections_can_be_queried() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    server.get("/database/Tony_Blair/last-known-location").await.expect_error(404, "never_seen");

    let form = upload("gate-1", "Lobby")
        .text("captured_at", "2024-05-06T09:08:09.25+02:00")
        .text("track_id", "12")
        .text("box", "100,200,180.5,300")
        .part("image", photograph("Tony_Blair", 3));
    let answer = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["model_version"], &answer["stored"]), (&1.into(), &1.into()));
    assert_eq!(answer["faces"][0]["top_prediction"]["label"], "Tony_Blair");

    let last = server.get("/database/Tony_Blair/last-known-location").await.expect(StatusCode::OK);
    assert_eq!(
        (&last["face_id"], &last["location"], &last["camera_id"], &last["captured_at"]),
        (&"Tony_Blair".into(), &"Lobby".into(), &"gate-1".into(), &"2024-05-06T07:08:09.25Z".into())
    );
    assert_eq!(last["confidence"], answer["faces"][0]["top_prediction"]["confidence"]);

    // Newest by capture, not by arrival: draining a spool late changes nothing.
    for (camera, captured_at) in [("gate-2", "2024-05-06T08:00:00Z"), ("gate-3", "2024-05-06T06:00:00Z")] {
        let form = upload(camera, "Yard")
            .text("captured_at", captured_at)
            .part("image", photograph("Tony_Blair", 3));
        server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    }
    let last = server.get("/database/Tony_Blair/last-known-location").await.expect(StatusCode::OK);
    assert_eq!(last["camera_id"], "gate-2");

    let stored = server.lines(
        "SELECT CONCAT(camera_id, ' ', track_id, ' ', CAST(box_left AS DECIMAL(6, 1)), ' ', \
         CAST(box_bottom AS DECIMAL(6, 1)), ' ', COALESCE(LENGTH(embedding), 0), ' ', embedder) AS line \
         FROM detections WHERE track_id IS NOT NULL",
    );
    assert!(
        ["gate-1 12 100.0 300.0 0 mobilefacenet", "gate-1 12 100 300 0 mobilefacenet"]
            .contains(&stored.join("; ").as_str())
    );
    server.get("/database/Nobody/last-known-location").await.expect_error(404, "person_not_found");
}

#[tokio::test]
async fn unknown_faces_are_stored_with_their_embedding() {
    let server = start!();
    let form = upload("gate-1", "").part("image", photograph("Vladimir_Putin", 1));
    let answer = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["model_version"], &answer["stored"]), (&Value::Null, &1.into()));
    let stored = server
        .lines("SELECT CONCAT(CASE WHEN person_id IS NULL THEN 'nobody' END, ' ', LENGTH(embedding)) AS line FROM detections");
    // 128 components of four bytes.
    assert_eq!(stored, ["nobody 512"]);
}

#[tokio::test]
async fn embeddings_of_unknown_faces_can_be_omitted() {
    let server = start!(|config| config.recognition.keep_unknown_embeddings = false);
    let form = upload("gate-1", "Lobby").part("image", photograph("Vladimir_Putin", 1));
    let answer = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!(answer["stored"], 1);
    let stored =
        server.lines("SELECT CONCAT(camera_id, ' ', COALESCE(LENGTH(embedding), 0)) AS line FROM detections");
    assert_eq!(stored, ["gate-1 0"]);
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_response_and_stores_nothing() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let form = || {
        upload("gate-1", "Lobby")
            .part("image", photograph("Tony_Blair", 3))
            .text("key", "k-1")
            .part("image", photograph("Vladimir_Putin", 1))
            .text("key", "k-2")
    };
    let first = server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    assert_eq!((&first["stored"], &first["repeated"]), (&2.into(), &0.into()));

    // After a restart and with a new model, too.
    let server = server.restart().await;
    server.enrol("Vladimir_Putin", &[2, 3]).await;
    server.train().await;
    let mut second = server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    assert_eq!(second["repeated"], 2);
    second["repeated"] = 0.into();
    assert_eq!(second, first);
    assert_eq!(server.lines("SELECT upload_key AS line FROM detections ORDER BY 1"), ["k-1", "k-2"]);

    // A new image beside a repeated one is recognised with the current model.
    let form = upload("gate-1", "Lobby")
        .part("image", photograph("Tony_Blair", 3))
        .text("key", "k-1")
        .part("image", photograph("Vladimir_Putin", 1))
        .text("key", "k-3");
    let third = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&third["repeated"], &third["model_version"]), (&1.into(), &2.into()));
    assert_eq!(third["faces"][1]["top_prediction"]["label"], "Vladimir_Putin");
}

#[tokio::test]
async fn concurrent_uploads_with_one_key_are_stored_once() {
    let server = start!();
    let calls = (0..6).map(|_| {
        let form = upload("gate-1", "Lobby").part("image", photograph("Tony_Blair", 1)).text("key", "k");
        let request =
            server.client.post(format!("{}/face-recognition/store-results", server.url)).multipart(form);
        tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() })
    });
    let mut repeated = 0;
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.unwrap();
        assert_eq!(answer["stored"], 1, "{answer}");
        repeated += answer["repeated"].as_u64().unwrap();
    }
    assert_eq!(repeated, 5);
    assert_eq!(server.lines("SELECT CONCAT(COUNT(*), '') AS line FROM detections"), ["1"]);
}

#[tokio::test]
async fn detections_of_an_erased_person_are_anonymised() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let form = || upload("gate-1", "Lobby").part("image", photograph("Tony_Blair", 3)).text("key", "k");
    server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);

    let stored = server.lines(
        "SELECT CONCAT(COALESCE(person_id, 0), ' ', COALESCE(LENGTH(embedding), 0)) AS line FROM detections",
    );
    assert_eq!(stored, ["0 0"]);
    server.get("/database/Tony_Blair/last-known-location").await.expect_error(404, "person_not_found");
    // The stored response has no name either.
    let answer = server.send("/face-recognition/store-results", form()).await.expect(StatusCode::CREATED);
    assert_eq!(answer["faces"][0]["decision"], "unknown");
    assert_eq!(answer["faces"][0]["all_predictions"], json!([]));
}

#[tokio::test]
async fn an_unreadable_image_is_reported_and_the_others_are_stored() {
    let server = start!();
    let form = upload("gate-1", "Lobby")
        .part("image", file(b"text".to_vec()))
        .text("key", "bad")
        .part("image", photograph("Tony_Blair", 1))
        .text("key", "good");
    let answer = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&answer["stored"], &answer["faces"][0]["image"]), (&1.into(), &1.into()));
    assert_eq!(answer["errors"][0]["image"], 0);
    assert_eq!(server.lines("SELECT upload_key AS line FROM answers"), ["good"]);
}

/// Ten detections of Tony Blair, a minute apart from 07:00 on, by two cameras in turn; the last two in the same moment.
async fn history(server: &Server) {
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    // Not in chronological order: a spool may be drained late.
    for minute in [3, 0, 9, 1, 2, 5, 4, 7, 6, 9] {
        let (camera, location) =
            if minute % 2 == 0 { ("gate-0", "Lobby") } else { ("gate-1", "Yard, \"east\"") };
        let form = upload(camera, location)
            .text("captured_at", format!("2024-05-06T07:0{minute}:00Z"))
            .part("image", photograph("Tony_Blair", 3));
        server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    }
    let form = upload("gate-2", "Roof")
        .text("captured_at", "2024-05-06T06:00:00Z")
        .part("image", photograph("Vladimir_Putin", 1));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
}

/// The minute of each detection of a page.
fn minutes(page: &Value) -> Vec<u32> {
    let minute = |detection: &Value| detection["captured_at"].as_str().unwrap()[14..16].parse().unwrap();
    page["detections"].as_array().unwrap().iter().map(minute).collect()
}

/// All pages of a query, from page to page by the cursor.
async fn pages(server: &Server, path: &str) -> Vec<Value> {
    let mut pages = vec![server.get(path).await.expect(StatusCode::OK)];
    while let Some(cursor) = pages.last().unwrap()["meta"]["next_cursor"].as_str().map(ToOwned::to_owned) {
        assert!(pages.len() < 20, "the pages have no end");
        pages.push(server.get(&format!("{path}&cursor={cursor}")).await.expect(StatusCode::OK));
    }
    pages
}

#[tokio::test]
async fn detections_come_newest_first_page_by_page() {
    let server = start!();
    history(&server).await;
    let all = server.get("/database/detections").await.expect(StatusCode::OK);
    assert_eq!(minutes(&all), [9, 9, 7, 6, 5, 4, 3, 2, 1, 0, 0]);
    assert!(all["meta"]["next_cursor"].is_null());
    let (newest, oldest) = (&all["detections"][0], &all["detections"][10]);
    assert_eq!((&newest["face_id"], &newest["camera_id"]), (&"Tony_Blair".into(), &"gate-1".into()));
    assert_eq!(
        (&newest["model_version"], &newest["captured_at"]),
        (&1.into(), &"2024-05-06T07:09:00Z".into())
    );
    assert!(newest["score"].as_f64().unwrap() >= newest["threshold"].as_f64().unwrap());
    assert!(newest["bounding_box"]["right"].as_f64() > newest["bounding_box"]["left"].as_f64());
    assert_eq!((&oldest["face_id"], &oldest["location"]), (&Value::Null, &"Roof".into()));

    // Pages of any size give the same complete list without duplicates, even between two of the same time.
    for limit in [1, 3, 11] {
        let pages = pages(&server, &format!("/database/detections?limit={limit}")).await;
        let joined: Vec<Value> =
            pages.iter().flat_map(|page| page["detections"].as_array().unwrap().clone()).collect();
        assert_eq!(Value::Array(joined), all["detections"], "limit {limit}");
        assert_eq!(pages.len(), 11_usize.div_ceil(limit), "limit {limit}");
    }

    // Detections that arrive meanwhile do not shift pages.
    let first = server.get("/database/detections?limit=3").await.expect(StatusCode::OK);
    let form = upload("gate-0", "Lobby")
        .text("captured_at", "2024-05-06T07:30:00Z")
        .part("image", photograph("Tony_Blair", 3));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    let cursor = first["meta"]["next_cursor"].as_str().unwrap();
    let second = server.get(&format!("/database/detections?limit=3&cursor={cursor}")).await;
    assert_eq!(minutes(&second.expect(StatusCode::OK)), [6, 5, 4]);
}

#[tokio::test]
async fn new_detections_are_followed_in_order_of_arrival() {
    let server = start!();
    history(&server).await;
    let after = async |id: i64, more: &str| {
        server.get(&format!("/database/detections?after={id}{more}")).await.expect(StatusCode::OK)
    };
    let all = after(0, "").await;
    assert_eq!(minutes(&all), [3, 0, 9, 1, 2, 5, 4, 7, 6, 9, 0]);
    let fourth = all["detections"][3]["id"].as_i64().unwrap();
    let page = after(fourth, "&limit=2").await;
    assert_eq!((minutes(&page), &page["meta"]["next_cursor"]), (vec![2, 5], &Value::Null));
    assert_eq!(minutes(&after(fourth, "&camera=gate-1").await), [5, 7, 9]);
    let last = all["detections"][10]["id"].as_i64().unwrap();
    assert!(minutes(&after(last, "").await).is_empty());
    for wrong in ["after=-1", "after=one", "after="] {
        let message =
            server.get(&format!("/database/detections?{wrong}")).await.expect_error(400, "invalid_query");
        assert!(message.contains("after"), "{message}");
    }
    assert_eq!(minutes(&after(0, "&person=Tony_Blair&location=Lobby").await), [0, 2, 4, 6]);
    server.get("/database/detections?after=0&person=Nobody").await.expect_error(404, "person_not_found");
    server.get("/database/detections?after=0&limit=0").await.expect_error(400, "limit_out_of_range");
    // Parameters that use the time of capture.
    let (from, to) = ("from=2024-05-06T00:00:00Z", "to=2024-05-07T00:00:00Z");
    for (with, named) in
        [(from, "from"), (to, "to"), ("cursor=0", "cursor"), (&format!("{from}&{to}"), "from and to")]
    {
        let answer = server.get(&format!("/database/detections?after=1&{with}")).await;
        let message = answer.expect_error(400, "invalid_query");
        assert!(message.contains("after goes") && message.contains(&format!(", {named} by")), "{message}");
    }
    // As CSV, too.
    let url = format!("{}/database/detections?after={fourth}&limit=2", server.url);
    let csv = server.client.get(url).header("accept", "text/csv").send().await.unwrap();
    assert!(!csv.headers().contains_key("x-next-cursor"));
    assert_eq!(csv.text().await.unwrap().lines().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_wait_for_uncommitted_detections_with_smaller_ids() {
    // SQLite has one writer: such a detection does not exist there.
    let Some(engine) = Engine::of_this_run() else { return };
    let server = start!();
    let url = server.config.database.database_url.clone().unwrap();
    let form = |key: &str| {
        upload("gate-1", "Lobby").text("key", key.to_owned()).part("image", photograph("Tony_Blair", 1))
    };
    let follow = |server: &Server| {
        let request = server.client.get(format!("{}/database/detections?after=0", server.url));
        tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await })
    };

    // Another process has an uncommitted insert with the same key: the server's insert waits for its outcome.
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        let insert = match engine {
            Engine::Postgres => {
                "INSERT INTO answers (call, upload_key, faces, created_at) \
                                 VALUES ('store-results', 'slow', '[]', 0)"
            }
            Engine::Mysql => {
                "INSERT INTO answers (`call`, upload_key, faces, created_at) \
                              VALUES ('store-results', 'slow', '[]', 0)"
            }
        };
        let wait = |run: &mut dyn FnMut(&str)| {
            run("BEGIN");
            run(insert);
            begun.send(()).unwrap();
            ended.recv().unwrap();
            run("ROLLBACK");
        };
        match engine {
            Engine::Postgres => {
                let mut connection = PgConnection::establish(&url).unwrap();
                wait(&mut |statement| connection.batch_execute(statement).unwrap());
            }
            Engine::Mysql => {
                let mut connection = MysqlConnection::establish(&url).unwrap();
                wait(&mut |statement| connection.batch_execute(statement).unwrap());
            }
        }
    });
    has_begun.await.unwrap();
    let request = server.client.post(format!("{}/face-recognition/store-results", server.url));
    let request = request.multipart(form("slow"));
    let slow = tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await });
    let waiting = match engine {
        Engine::Postgres => {
            "SELECT CAST(COUNT(*) AS TEXT) AS line FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE NOT granted AND datname = CURRENT_DATABASE()"
        }
        Engine::Mysql => {
            "SELECT CAST(COUNT(*) AS CHAR) AS line FROM information_schema.processlist \
             JOIN information_schema.innodb_trx ON id = trx_mysql_thread_id \
             WHERE trx_state = 'LOCK WAIT' AND db = DATABASE()"
        }
    };
    let until_waiting = async |transactions: usize| {
        let begun = Instant::now();
        while server.lines(waiting)[0].parse::<usize>().unwrap() < transactions {
            assert!(begun.elapsed() < Duration::from_secs(20), "{transactions} transactions do not wait");
            // MySQL does not refresh this view while it is read more often than every tenth of a second.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    // The server's insert waits for the other process, then the follower for that insert.
    until_waiting(1).await;
    assert!(!slow.is_finished());
    server.send("/face-recognition/store-results", form("quick")).await.expect(StatusCode::CREATED);

    let followed = follow(&server);
    until_waiting(2).await;
    assert!(!followed.is_finished(), "a detection was passed over");
    end.send(()).unwrap();
    other.join().unwrap();
    slow.await.unwrap().expect(StatusCode::CREATED);
    let page = followed.await.unwrap().expect(StatusCode::OK);
    let ids: Vec<i64> =
        page["detections"].as_array().unwrap().iter().map(|d| d["id"].as_i64().unwrap()).collect();
    assert!(ids.len() == 2 && ids[0] < ids[1], "{ids:?}");
}

#[tokio::test]
async fn a_detection_can_be_read_and_erased_by_its_id() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    // The second is unknown, so its embedding is kept.
    server.train().await;
    let store = async |person: &str, key: &str| {
        let form = upload("gate-1", "Unspeakable lobby").text("key", key.to_owned());
        let form = form.part("image", photograph(person, 3));
        server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED)
    };
    store("Tony_Blair", "a").await;
    store("Vladimir_Putin", "b").await;
    let listed = server.get("/database/detections").await.expect(StatusCode::OK);
    let paths = [0, 1].map(|n| format!("/database/detections/{}", listed["detections"][n]["id"]));
    for (n, path) in paths.iter().enumerate() {
        assert_eq!(server.get(path).await.expect(StatusCode::OK), listed["detections"][n]);
    }

    assert!(server.delete(&paths[0]).await.expect(StatusCode::NO_CONTENT).is_null());
    server.get(&paths[0]).await.expect_error(404, "detection_not_found");
    server.delete(&paths[0]).await.expect_error(404, "detection_not_found");
    let left = server.get("/database/detections").await.expect(StatusCode::OK);
    assert_eq!(left["detections"], json!([listed["detections"][1]]));
    // Sending the image again does not restore it.
    assert_eq!(store("Vladimir_Putin", "b").await["repeated"], 1);
    assert_eq!(server.get("/database/detections").await.expect(StatusCode::OK), left);
    server.delete(&paths[1]).await.expect(StatusCode::NO_CONTENT);
    assert_eq!(server.traces_of(b"Unspeakable lobby"), Vec::<std::path::PathBuf>::new());

    for wrong in ["0", "-1", "99999", "x", "1.5", "99999999999999999999", "%31x"] {
        let path = format!("/database/detections/{wrong}");
        server.get(&path).await.expect_error(404, "detection_not_found");
        server.delete(&path).await.expect_error(404, "detection_not_found");
    }
    server.post("/database/detections/1").await.expect_error(405, "method_not_allowed");
    // A person may have this name. The document cannot express which of the two patterns matches such a path.
    server.post("/dataset/detections").await.expect(StatusCode::CREATED);
    let of_person = async |what: &str| {
        let url = format!("{}/database/detections/{what}", server.url);
        ApiResponse::read(server.client.get(url).send().await.unwrap()).await
    };
    assert_eq!(of_person("track").await.expect(StatusCode::OK)["face_id"], "detections");
    of_person("last-known-location").await.expect_error(404, "never_seen");
}

#[tokio::test]
async fn detections_match_all_filters() {
    let server = start!();
    history(&server).await;
    for (query, expected) in [
        ("person=Tony_Blair", vec![9, 9, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("camera=gate-1", vec![9, 9, 7, 5, 3, 1]),
        ("location=Lobby", vec![6, 4, 2, 0]),
        ("location=Yard%2C+%22east%22&to=2024-05-06T07:05:00Z", vec![3, 1]),
        // A range includes its beginning and excludes its end.
        ("from=2024-05-06T07:03:00Z&to=2024-05-06T07:06:00Z", vec![5, 4, 3]),
        ("from=2024-05-06T09:06:00%2B02:00&camera=gate-0", vec![6]),
        ("camera=gate-0&location=Roof", vec![]),
        ("camera=", vec![]),
    ] {
        let page = server.get(&format!("/database/detections?{query}")).await.expect(StatusCode::OK);
        assert_eq!(minutes(&page), expected, "{query}");
        let pages = pages(&server, &format!("/database/detections?{query}&limit=2")).await;
        assert_eq!(pages.iter().flat_map(minutes).collect::<Vec<_>>(), expected, "{query}, two by two");
    }
    server.get("/database/detections?person=Nobody").await.expect_error(404, "person_not_found");
}

#[tokio::test]
async fn detections_are_served_as_csv_on_request() {
    let server = start!();
    history(&server).await;
    let url = format!("{}/database/detections?limit=2", server.url);
    let ask = |accept: &'static str| server.client.get(&url).header("accept", accept).send();
    let answer = ask("text/csv").await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/csv"));
    let cursor = answer.headers()["x-next-cursor"].to_str().unwrap().to_owned();
    let text = answer.text().await.unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns = reader.headers().unwrap().clone();
    assert_eq!(
        columns.iter().take(6).collect::<Vec<_>>(),
        ["id", "captured_at", "received_at", "camera_id", "location", "face_id"]
    );
    let json = server.get("/database/detections?limit=2").await.expect(StatusCode::OK);
    assert_eq!(json["meta"]["next_cursor"], cursor);
    let lines: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(lines.len(), 2);
    for (line, detection) in lines.iter().zip(json["detections"].as_array().unwrap()) {
        for (column, value) in columns.iter().zip(line) {
            let expected = detection.get(column).unwrap_or(&detection["bounding_box"][column]);
            match expected {
                Value::Null => assert_eq!(value, "", "{column}"),
                Value::String(text) => assert_eq!(value, text, "{column}"),
                // The shortest decimal of an f32 may differ from that of the f64 it was read into.
                number => {
                    assert_eq!(
                        value.parse::<f32>().unwrap(),
                        number.to_string().parse::<f32>().unwrap(),
                        "{column}"
                    )
                }
            }
        }
    }
    // Unknown faces have an empty field, and an empty result still has its header.
    let empty = server.client.get(format!("{}/database/detections?camera=none", server.url));
    let text = empty.header("accept", "text/csv").send().await.unwrap().text().await.unwrap();
    assert_eq!(text.lines().count(), 1);

    for accept in ["*/*", "application/json, text/csv;q=0.5", "text/html"] {
        let answer = ask(accept).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json", "{accept}");
    }
}

#[tokio::test]
async fn a_track_is_in_chronological_order() {
    let server = start!();
    history(&server).await;
    let track = server.get("/database/Tony_Blair/track").await.expect(StatusCode::OK);
    assert_eq!(track["face_id"], "Tony_Blair");
    assert_eq!(minutes(&track), [0, 1, 2, 3, 4, 5, 6, 7, 9, 9]);
    assert_eq!(track["detections"][1]["location"], "Yard, \"east\"");

    let range = "from=2024-05-06T07:02:00Z&to=2024-05-06T07:09:00Z";
    let track = server.get(&format!("/database/Tony_Blair/track?{range}")).await.expect(StatusCode::OK);
    assert_eq!(minutes(&track), [2, 3, 4, 5, 6, 7]);
    let pages = pages(&server, "/database/Tony_Blair/track?limit=3").await;
    assert_eq!(
        pages.iter().map(minutes).collect::<Vec<_>>(),
        [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7, 9], vec![9]]
    );
    server.get("/database/Nobody/track").await.expect_error(404, "person_not_found");
    server.get("/database/Tony_Blair/track?camera=gate-0").await.expect_error(400, "invalid_query");
}

#[tokio::test]
async fn cameras_are_listed_with_their_locations() {
    let server = start!();
    history(&server).await;
    let form = upload("gate-0", "Roof")
        .text("captured_at", "2024-05-06T08:00:00Z")
        .part("image", photograph("Tony_Blair", 3));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    let (roof, lobby) = ("2024-05-06T08:00:00Z", "2024-05-06T07:06:00Z");
    assert_eq!(
        server.get("/cameras").await.expect(StatusCode::OK),
        json!({
            "cameras": [
                {
                    "camera_id": "gate-0",
                    "last_seen": roof,
                    "locations": [
                        { "location": "Roof", "last_seen": roof },
                        { "location": "Lobby", "last_seen": lobby },
                    ],
                },
                {
                    "camera_id": "gate-1",
                    "last_seen": "2024-05-06T07:09:00Z",
                    "locations": [{ "location": "Yard, \"east\"", "last_seen": "2024-05-06T07:09:00Z" }],
                },
                {
                    "camera_id": "gate-2",
                    "last_seen": "2024-05-06T06:00:00Z",
                    "locations": [{ "location": "Roof", "last_seen": "2024-05-06T06:00:00Z" }],
                },
            ],
            "meta": { "total": 3 },
        })
    );
}

#[tokio::test]
async fn invalid_queries_name_the_parameter() {
    let server = start!();
    history(&server).await;
    let cursor = server.get("/database/detections?limit=1").await.body["meta"]["next_cursor"].clone();
    let cursor = cursor.as_str().unwrap();
    let of_another_query = format!("cursor={cursor}&camera=gate-0");
    let altered =
        format!("cursor={}", cursor.replace(&cursor[15..16], if &cursor[15..16] == "0" { "1" } else { "0" }));
    for path in ["/database/detections", "/database/Tony_Blair/track"] {
        for (query, code, named) in [
            ("from=yesterday", "invalid_query", "from"),
            ("to=2024-05-06", "invalid_query", "to"),
            ("from=2024-13-06T07:00:00Z", "invalid_query", "from"),
            ("to=9999-12-31T23:59:59-01:00", "invalid_query", "0 to 9999"),
            ("from=2024-05-06T07:00:00Z&to=2024-05-06T07:00:00Z", "invalid_time_range", "from"),
            ("from=2024-05-06T07:00:00Z&to=2023-05-06T07:00:00Z", "invalid_time_range", "2023"),
            ("limit=0", "limit_out_of_range", "1000"),
            ("limit=1001", "limit_out_of_range", "1001"),
            ("limit=-1", "limit_out_of_range", "-1"),
            ("limit=99999999999999999999", "limit_out_of_range", "limit"),
            ("limit=many", "invalid_query", "many"),
            ("limit=", "invalid_query", "limit"),
            ("cursor=", "invalid_cursor", "cursor"),
            ("cursor=abc", "invalid_cursor", "cursor"),
            (altered.as_str(), "invalid_cursor", "cursor"),
            ("kamera=gate-0", "invalid_query", "kamera"),
            ("limit=1&limit=2", "invalid_query", "limit"),
        ] {
            let message = server.get(&format!("{path}?{query}")).await.expect_error(400, code);
            assert!(message.contains(named), "{query}: {message}");
        }
    }
    let other = format!("/database/Tony_Blair/track?cursor={cursor}");
    server.get(&other).await.expect_error(400, "invalid_cursor");
    let other = format!("/database/detections?{of_another_query}");
    server.get(&other).await.expect_error(400, "invalid_cursor");
    server.get("/database/detections?person=..%2Fx").await.expect_error(400, "invalid_face_id");
}

#[tokio::test]
async fn a_spreadsheet_calculates_no_cell_of_the_csv() {
    let server = start!();
    let form = upload("=1+1", "@SUM(A1)").part("image", photograph("Tony_Blair", 1));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    for path in ["/database/detections", "/database/sightings"] {
        let url = format!("{}{path}", server.url);
        let table =
            server.client.get(url).header("accept", "text/csv").send().await.unwrap().text().await.unwrap();
        assert!(table.contains(",'=1+1,'@SUM(A1),"), "{table}");
        let json = server.get(path).await.expect(StatusCode::OK);
        assert!(json.to_string().contains("\"=1+1\""), "{json}");
    }
}
