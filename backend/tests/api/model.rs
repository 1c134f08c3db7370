//! Training, and the effect of a new model.

use std::time::{Duration, Instant};

use reqwest::{StatusCode, multipart::Form};
use serde_json::Value;

use crate::helpers::{files_below, photograph, start};

#[tokio::test]
async fn enrolled_people_are_recognised_and_strangers_are_not() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2, 3]).await;
    server.enrol("Hugo_Chavez", &[1, 2, 3]).await;
    server.post("/dataset/Without_Images").await.expect(StatusCode::CREATED);

    let result = server.train().await;
    assert_eq!(
        (
            &result["model_version"],
            &result["people"],
            &result["images"],
            &result["people_without_embeddings"]
        ),
        (&1.into(), &2.into(), &6.into(), &1.into())
    );
    assert_eq!(result["embedder"], "mobilefacenet");

    for person in ["Tony_Blair", "Hugo_Chavez"] {
        for number in [7, 8] {
            let face = server.recognise(person, number).await;
            assert_eq!(face["decision"], "known", "{face}");
            assert_eq!(face["top_prediction"]["label"], *person, "{face}");
            assert!(face["score"].as_f64().unwrap() >= face["threshold"].as_f64().unwrap(), "{face}");
            let sum: f64 = probabilities(&face).iter().sum();
            assert!((sum - 1.0).abs() < 1e-4, "{face}");
            assert_eq!(face["all_predictions"][0], face["top_prediction"], "{face}");
        }
    }
    for number in [1, 2, 3] {
        let face = server.recognise("Vladimir_Putin", number).await;
        assert_eq!(face["decision"], "unknown", "{face}");
        assert!(face["score"].as_f64().unwrap() < face["threshold"].as_f64().unwrap(), "{face}");
        // Who is nearest stays in the answer.
        assert_eq!(probabilities(&face).len(), 2, "{face}");
    }
}

fn probabilities(face: &Value) -> Vec<f64> {
    let all = face["all_predictions"].as_array().unwrap();
    all.iter().map(|prediction| prediction["confidence"].as_f64().unwrap()).collect()
}

#[tokio::test]
async fn without_a_model_faces_are_detected_and_unknown() {
    let server = start!();
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    let answer = server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    assert!(answer["model_version"].is_null());
    let face = &answer["faces"][0];
    assert_eq!(face["decision"], "unknown");
    assert!(face["top_prediction"].is_null() && face["score"].is_null());
    assert_eq!(face["all_predictions"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn without_a_model_responses_say_how_to_train_one() {
    // Nobody listens there, so nothing is sent.
    let server = start!(|config| config.results.results_url = Some("http://127.0.0.1:1/".into()));
    let ask = async |call: &str, key: &str| {
        let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby");
        let form = form.text("key", key.to_owned()).part("image", photograph("Tony_Blair", 1));
        server.send(&format!("/face-recognition/{call}"), form).await.body
    };
    let calls = ["get-results", "store-results", "send-results"];
    for call in calls {
        let answer = ask(call, "first").await;
        assert_eq!(answer["notice"], "no model trained yet: POST /model/optimized-train", "{answer}");
    }
    server.train().await;
    for call in calls {
        let answer = ask(call, "second").await;
        assert_eq!((&answer["model_version"], &answer["notice"]), (&1.into(), &Value::Null), "{answer}");
    }
}

#[tokio::test]
async fn a_model_of_no_person_or_one_can_be_trained() {
    let server = start!();
    let result = server.train().await;
    assert_eq!((&result["model_version"], &result["people"]), (&1.into(), &0.into()));
    assert_eq!(server.recognise("Tony_Blair", 1).await["decision"], "unknown");

    server.enrol("Tony_Blair", &[1, 2]).await;
    let result = server.train().await;
    assert_eq!((&result["model_version"], &result["people"]), (&2.into(), &1.into()));
    let face = server.recognise("Tony_Blair", 3).await;
    assert_eq!(
        (&face["decision"], &face["top_prediction"]["label"]),
        (&"known".into(), &"Tony_Blair".into())
    );
    assert_eq!(server.recognise("Hugo_Chavez", 1).await["decision"], "unknown");
}

#[tokio::test]
async fn a_training_can_be_followed_by_its_job() {
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    let answer = server.post("/model/optimized-train").await;
    let location = answer.headers["location"].to_str().unwrap().to_owned();
    let job = answer.expect(StatusCode::ACCEPTED);
    assert_eq!(location, format!("/jobs/{}", job["job_id"].as_str().unwrap()));
    assert_eq!(job["kind"], "optimized-train");

    let asked = Instant::now();
    let job = loop {
        let job = server.get(&location).await.expect(StatusCode::OK);
        if job["status"] == "done" {
            break job;
        }
        assert!(["queued", "running"].contains(&job["status"].as_str().unwrap()), "{job}");
        assert!(asked.elapsed() < Duration::from_secs(20), "{job}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(job["result"]["people"], 1);
    assert!(job["finished_at"].as_str().unwrap() >= job["started_at"].as_str().unwrap());
    server.get("/jobs/none-of-this-id").await.expect_error(404, "job_not_found");
}

#[tokio::test]
async fn an_erased_person_is_never_named_again_even_when_reenrolled() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    assert_eq!(server.recognise("Tony_Blair", 3).await["decision"], "known");

    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);
    let face = server.recognise("Tony_Blair", 3).await;
    assert_eq!(face["decision"], "unknown", "{face}");
    assert!(!face.to_string().contains("Tony_Blair"), "{face}");
    assert_eq!(server.recognise("Hugo_Chavez", 3).await["decision"], "known");

    // The old model must not take a new person of the same name for the erased one.
    server.post("/dataset/Tony_Blair").await.expect(StatusCode::CREATED);
    assert_eq!(server.recognise("Tony_Blair", 3).await["decision"], "unknown");
}

#[tokio::test]
async fn dataset_model_and_answers_survive_a_restart() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let before = server.recognise("Tony_Blair", 3).await;
    let people = server.get("/database/people").await.expect(StatusCode::OK);

    let server = server.restart().await;

    assert_eq!(server.recognise("Tony_Blair", 3).await, before);
    assert_eq!(server.get("/database/people").await.expect(StatusCode::OK), people);
    assert_eq!(server.get("/dataset").await.expect(StatusCode::OK)["people"][0]["images"], 2);
    // Versions go on counting, and embeddings are still there to be trained on.
    let result = server.train().await;
    assert_eq!((&result["model_version"], &result["images"]), (&2.into(), &2.into()));
}

#[tokio::test]
async fn a_damaged_model_does_not_prevent_a_start_and_training_repairs_it() {
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    server.train().await;
    let models = server.data.path().join("blobs/models");
    for entry in std::fs::read_dir(models).unwrap() {
        std::fs::write(entry.unwrap().path(), b"not a model").unwrap();
    }
    let server = server.restart().await;
    assert_eq!(server.recognise("Tony_Blair", 2).await["decision"], "unknown");
    server.train().await;
    assert_eq!(server.recognise("Tony_Blair", 2).await["decision"], "known");
}

#[tokio::test]
async fn the_threshold_is_configurable() {
    let server = start!(|config| config.recognition.match_threshold = Some(0.999));
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let face = server.recognise("Tony_Blair", 3).await;
    assert_eq!(face["decision"], "unknown", "{face}");
    assert!((face["threshold"].as_f64().unwrap() - 0.999).abs() < 1e-6, "{face}");
    assert_eq!(face["top_prediction"]["label"], "Tony_Blair", "{face}");
}

#[tokio::test]
async fn an_inactive_model_can_be_removed_for_good() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.delete("/model/1").await.expect_error(404, "model_not_found");
    for _ in 0..3 {
        server.train().await;
    }
    let blobs = || files_below(&server.data.path().join("blobs/models")).len();
    let versions = async || -> Vec<i64> {
        let listed = server.get("/model").await.expect(StatusCode::OK);
        listed["models"].as_array().unwrap().iter().map(|model| model["version"].as_i64().unwrap()).collect()
    };
    assert_eq!((versions().await, blobs()), (vec![3, 2, 1], 3));

    server.delete("/model/3").await.expect_error(409, "model_active");
    assert_eq!((versions().await, blobs()), (vec![3, 2, 1], 3));
    assert!(server.delete("/model/2").await.expect(StatusCode::NO_CONTENT).is_null());
    assert_eq!((versions().await, blobs()), (vec![3, 1], 2));
    server.delete("/model/2").await.expect_error(404, "model_not_found");
    server.post("/model/2/activate").await.expect_error(404, "model_not_found");

    // The newest as well, once another one answers; no other model gets its version.
    server.post("/model/1/activate").await.expect(StatusCode::OK);
    server.delete("/model/3").await.expect(StatusCode::NO_CONTENT);
    assert_eq!((versions().await, blobs()), (vec![1], 1));
    let face = server.recognise("Tony_Blair", 3).await;
    assert_eq!(face["decision"], "known", "{face}");
    assert_eq!(server.train().await["model_version"], 4);
    assert_eq!(versions().await, [4, 1]);

    for wrong in ["0", "-1", "x", "99999999999999999999"] {
        server.delete(&format!("/model/{wrong}")).await.expect_error(404, "model_not_found");
    }
    for wrong in ["0", "-1", "x", "99999999999999999999", "2"] {
        server.get(&format!("/model/{wrong}")).await.expect_error(404, "model_not_found");
    }
    let answer = server.post("/model/4").await;
    assert_eq!(answer.headers["allow"], "GET, HEAD, DELETE");
    answer.expect_error(405, "method_not_allowed");
    server.delete("/model/train").await.expect_error(405, "method_not_allowed");
}

#[tokio::test]
async fn the_version_of_a_model_removed_by_an_erasure_is_not_reused() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    // The first, which never knew the person, answers; the next training removes the second.
    server.post("/model/1/activate").await.expect(StatusCode::OK);
    server.delete("/dataset/Hugo_Chavez").await.expect(StatusCode::NO_CONTENT);
    assert_eq!(server.train().await["model_version"], 3);
    server.post("/model/1/activate").await.expect(StatusCode::OK);
    server.post("/model/2/activate").await.expect_error(404, "model_not_found");
    server.delete("/model/3").await.expect(StatusCode::NO_CONTENT);
    assert_eq!(server.train().await["model_version"], 4);
}

#[tokio::test]
async fn every_training_calibrates_the_threshold_and_says_what_to_expect_of_it() {
    let server = start!();
    assert!(server.train().await["calibration"].is_null(), "nobody is enrolled");
    server.enrol("Tony_Blair", &[1, 2, 3]).await;
    server.enrol("Hugo_Chavez", &[1]).await;
    let result = server.train().await;
    let calibration = &result["calibration"];
    assert_eq!((&calibration["method"], &calibration["cohort"]), (&"table".into(), &0.into()));
    assert_eq!(calibration["target_fpir"], 0.01);
    let threshold = calibration["threshold"].as_f64().unwrap();
    assert!((0.3549..0.5).contains(&threshold), "{calibration}");
    let (fpir, fnir) = (&calibration["fpir"], &calibration["fnir"]);
    for rate in [fpir, fnir] {
        let of = |name: &str| rate[name].as_f64().unwrap();
        assert!(of("lower") <= of("rate") && of("rate") <= of("upper"), "{rate}");
    }
    assert_eq!(fnir["searches"], 3, "the images of those who have several");
    let warnings = calibration["warnings"].as_array().unwrap();
    let codes: Vec<&Value> = warnings.iter().map(|warning| &warning["code"]).collect();
    assert_eq!(codes, ["one_image", "no_cohort"]);
    assert_eq!(
        (&warnings[0]["count"], &warnings[0]["people"][0]["face_id"]),
        (&1.into(), &"Hugo_Chavez".into())
    );

    let model = server.get("/model/2").await.expect(StatusCode::OK);
    assert_eq!((&model["active"], &model["people"]), (&true.into(), &2.into()));
    assert_eq!(&model["calibration"], calibration);
    let listed = server.get("/model").await.expect(StatusCode::OK);
    assert_eq!(listed["models"][0], model);
    assert!(listed["models"][1]["calibration"].is_null());
    assert!(server.get("/model/1").await.expect(StatusCode::OK)["calibration"].is_null());
    // What decides, and what is stored with a detection.
    let face = server.recognise("Tony_Blair", 4).await;
    assert_eq!((&face["decision"], face["threshold"].as_f64()), (&"known".into(), Some(threshold)));
}

#[tokio::test]
async fn a_stricter_target_gives_a_higher_threshold_and_a_fixed_one_takes_precedence() {
    let mut thresholds = Vec::new();
    for target in [0.01, 0.00001] {
        let server = start!(|config| config.recognition.target_fpir = target);
        server.enrol("Tony_Blair", &[1, 2]).await;
        server.enrol("Hugo_Chavez", &[1, 2]).await;
        let calibration = server.train().await["calibration"].clone();
        assert_eq!(calibration["target_fpir"], target);
        thresholds.push(calibration["threshold"].as_f64().unwrap());
    }
    assert!(thresholds[1] > thresholds[0] + 0.1, "{thresholds:?}");

    let server = start!(|config| config.recognition.match_threshold = Some(0.25));
    server.enrol("Tony_Blair", &[1, 2]).await;
    assert!(server.train().await["calibration"]["threshold"].as_f64().unwrap() > 0.3);
    assert_eq!(server.recognise("Tony_Blair", 3).await["threshold"], 0.25);
}

#[tokio::test]
async fn warnings_about_a_model_name_people_as_they_are_called_now_and_nobody_who_was_erased() {
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    server.enrol("Hugo_Chavez", &[1]).await;
    let result = server.train().await;
    let job =
        server.get("/jobs").await.expect(StatusCode::OK)["jobs"][0]["job_id"].as_str().unwrap().to_owned();
    let named = |answer: &Value| -> Vec<String> {
        let people = answer["warnings"][0]["people"].as_array().unwrap();
        let mut names: Vec<String> =
            people.iter().map(|person| person["face_id"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(named(&result["calibration"]), ["Hugo_Chavez", "Tony_Blair"]);
    assert!(!server.lines("SELECT calibration AS line FROM models").concat().contains("Blair"));

    server
        .patch("/dataset/Hugo_Chavez", &serde_json::json!({ "face_id": "Hugo" }))
        .await
        .expect(StatusCode::OK);
    let model = server.get("/model/1").await.expect(StatusCode::OK);
    assert_eq!(named(&model["calibration"]), ["Hugo", "Tony_Blair"]);
    let people = model["calibration"]["warnings"][0]["people"].as_array().unwrap();
    let hugo = people.iter().find(|person| person["face_id"] == "Hugo").unwrap();
    let id = hugo["person_id"].as_str().unwrap().to_owned();

    server.delete("/dataset/Hugo").await.expect(StatusCode::NO_CONTENT);
    for path in ["/model/1", "/model", &format!("/jobs/{job}")] {
        let answer = server.get(path).await.expect(StatusCode::OK);
        let text = answer.to_string();
        assert!(
            text.contains("Tony_Blair") && text.contains("1 person has a single image"),
            "{path}: {text}"
        );
        assert!(!text.contains("Hugo") && !text.contains(&id), "{path}: {text}");
    }
    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);
    let model = server.get("/model/1").await.expect(StatusCode::OK);
    assert_eq!(model["calibration"]["warnings"].as_array().unwrap().len(), 1, "{model}");
}

#[tokio::test]
async fn people_who_are_the_same_are_warned_of() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.post("/dataset/Anthony").await.expect(StatusCode::CREATED);
    for number in [3, 4] {
        let form = Form::new().part("image", photograph("Tony_Blair", number));
        server.send("/dataset/Anthony/image", form).await.expect(StatusCode::CREATED);
    }
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    let calibration = &server.train().await["calibration"];
    let warning = &calibration["warnings"][0];
    assert_eq!((&warning["code"], &warning["count"]), (&"people_alike".into(), &1.into()), "{calibration}");
    let names = |person: &Value| person["face_id"].as_str().unwrap().to_owned();
    let pair = &warning["pairs"][0];
    let mut people: Vec<String> = pair["people"].as_array().unwrap().iter().map(names).collect();
    people.sort();
    assert_eq!(people, ["Anthony", "Tony_Blair"]);
    assert!(pair["score"].as_f64() > calibration["threshold"].as_f64());
    // They move no threshold.
    assert!(calibration["threshold"].as_f64().unwrap() < 0.45, "{calibration}");
}

#[tokio::test]
async fn a_model_from_before_there_was_a_calibration_answers_with_the_threshold_of_its_embedder() {
    let server = start!(|config| config.recognition.target_fpir = 0.0001);
    server.enrol("Tony_Blair", &[1, 2]).await;
    let calibrated = server.train().await["calibration"]["threshold"].as_f64().unwrap();
    let rows = "SELECT CONCAT(version, ' ', embedder, ' ', blob_key, ' ', sha256, ' ', people, ' ', images, ' ', \
                duration_ms, ' ', created_at) AS line FROM models";
    let before = server.lines(rows);
    server.revert("2025-01-15-000000_model_reports");
    let server = server.restart().await;
    assert_eq!(server.lines(rows), before);
    let face = server.recognise("Tony_Blair", 3).await;
    assert_eq!(face["decision"], "known");
    assert!((face["threshold"].as_f64().unwrap() - 0.355).abs() < 1e-6, "{face}");
    assert!(server.get("/model/1").await.expect(StatusCode::OK)["calibration"].is_null());
    server.train().await;
    assert_eq!(server.recognise("Tony_Blair", 3).await["threshold"].as_f64(), Some(calibrated));
    // One that cannot be read is as none, and costs no answer.
    server.execute("UPDATE models SET calibration = 'damaged'");
    let server = server.restart().await;
    assert_eq!(server.recognise("Tony_Blair", 3).await["decision"], "known");
}
