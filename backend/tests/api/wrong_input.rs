//! Invalid requests: each has its status, code and a message that says what to change.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use flate2::{Compression, Crc, write::ZlibEncoder};
use reqwest::{
    Method, StatusCode,
    multipart::{Form, Part},
};
use serde_json::json;

use crate::{
    auth::raw,
    helpers::{file, photograph, start},
};

#[tokio::test]
async fn unknown_paths_and_methods_have_json_errors() {
    let server = start!();
    server.get("/nothing").await.expect_error(404, "not_found");
    server.get("//").await.expect_error(404, "not_found");
    server.post("/face-recognition/nothing").await.expect_error(404, "not_found");
    for (method, path, allowed) in [
        (Method::POST, "/dataset", "GET, HEAD"),
        (Method::PUT, "/dataset/x", "GET, HEAD, POST, PATCH, DELETE"),
        (Method::POST, "/dataset/x/image/y", "GET, HEAD, DELETE"),
        (Method::GET, "/dataset/x/image", "POST"),
        (Method::GET, "/model/optimized-train", "POST"),
        (Method::DELETE, "/face-recognition/get-results", "GET, HEAD, POST"),
        (Method::GET, "/face-recognition/store-results", "POST"),
        (Method::GET, "/face-recognition/send-results", "POST"),
        (Method::GET, "/face-recognition/verify", "POST"),
        (Method::GET, "/face-recognition/dry-run", "POST"),
        (Method::POST, "/database/people", "GET, HEAD"),
        (Method::POST, "/database/x/last-known-location", "GET, HEAD"),
        (Method::POST, "/database/detections", "GET, HEAD"),
        (Method::POST, "/database/x/track", "GET, HEAD"),
        (Method::POST, "/cameras", "GET, HEAD"),
        (Method::POST, "/debug/IP", "GET, HEAD"),
        (Method::POST, "/debug/node-name", "GET, HEAD"),
        (Method::POST, "/startupz", "GET, HEAD"),
        (Method::POST, "/livez", "GET, HEAD"),
    ] {
        let answer = server.call(method.clone(), path).await;
        assert_eq!(answer.headers["allow"], allowed, "{path}");
        let message = answer.expect_error(405, "method_not_allowed");
        assert!(message.contains(method.as_str()) && message.contains(allowed), "{message}");
    }
    server.get("/startupz").await.expect(StatusCode::OK);
    server.get("/livez").await.expect(StatusCode::OK);
    server.get("/readyz").await.expect(StatusCode::OK);
}

#[tokio::test]
async fn face_ids_are_validated_everywhere() {
    let server = start!();
    let (long, long_in_bytes) = ("x".repeat(65), "%C3%BC".repeat(65));
    for id in [
        "%2e%2e%2f",
        "%2e%2e%2fx",
        "..%2Fx",
        "a%5Cb",
        ".hidden",
        "",
        "a%00b",
        "a%0Ab",
        "a%1Bb",
        "a%7Fb",
        "a%C2%85b",
        "%ff",
        "a%3Cb",
        &long,
        &long_in_bytes,
    ] {
        for (method, path) in [
            (Method::POST, format!("/dataset/{id}")),
            (Method::DELETE, format!("/dataset/{id}")),
            (Method::GET, format!("/dataset/{id}")),
            (Method::GET, format!("/dataset/{id}/image/x")),
            (Method::DELETE, format!("/dataset/{id}/image/x")),
            (Method::GET, format!("/database/{id}/last-known-location")),
            (Method::GET, format!("/database/{id}/track")),
        ] {
            let answer = server.call(method.clone(), &path).await;
            assert_eq!(answer.status, 400, "{method} {path}");
            answer.expect_error(400, "invalid_face_id");
        }
        let form = Form::new().part("image", photograph("Tony_Blair", 1));
        server.send(&format!("/dataset/{id}/image"), form).await.expect_error(400, "invalid_face_id");
    }
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    server.send("/dataset/Nobody/image", form).await.expect_error(404, "person_not_found");
    server.post(&format!("/dataset/{}", "x".repeat(64))).await.expect(StatusCode::CREATED);
    server.post(&format!("/dataset/{}", "%C3%BC".repeat(64))).await.expect(StatusCode::CREATED);
}

#[tokio::test]
async fn path_traversal_finds_nothing() {
    let server = start!();
    // No well-behaved client sends these.
    for (target, status, code) in [
        ("/dataset/../x", 404, "not_found"),
        ("/dataset/x/../../etc/passwd", 404, "not_found"),
        ("/dataset/..", 400, "invalid_face_id"),
        ("/dataset/%2e%2e", 400, "invalid_face_id"),
        ("/dataset/%2e%2e/image", 405, "method_not_allowed"),
        ("//dataset/x", 404, "not_found"),
    ] {
        let method = if status == 405 { "PUT" } else { "POST" };
        let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = raw(&server.url, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {answer}");
        assert!(answer.contains(code), "{target}: {answer}");
    }
    assert_eq!(server.get("/dataset").await.expect(StatusCode::OK)["meta"]["total"], 0);
}

#[tokio::test]
async fn unknown_people_are_reported_by_every_call() {
    let server = start!();
    for (method, path) in [
        (Method::GET, "/dataset/Nobody"),
        (Method::DELETE, "/dataset/Nobody"),
        (Method::GET, "/dataset/Nobody/image/x"),
        (Method::DELETE, "/dataset/Nobody/image/x"),
        (Method::GET, "/database/Nobody/last-known-location"),
        (Method::GET, "/database/Nobody/track"),
        (Method::GET, "/database/detections?person=Nobody"),
    ] {
        server.call(method, path).await.expect_error(404, "person_not_found");
    }
    let renaming = json!({ "face_id": "Somebody" });
    server.patch("/dataset/Nobody", &renaming).await.expect_error(404, "person_not_found");
    server.post("/dataset/Somebody").await.expect(StatusCode::CREATED);
    server.post("/dataset/Somebody").await.expect_error(409, "person_exists");
}

#[tokio::test]
async fn errors_of_images_are_distinguished() {
    let server = start!(|config| {
        config.recognition.max_image_bytes = 300_000;
        config.recognition.max_image_pixels = 1_000_000;
    });
    server.post("/dataset/x").await.expect(StatusCode::CREATED);
    let jpeg = std::fs::read(crate::helpers::photograph_path("Tony_Blair", 1)).unwrap();
    let half = jpeg[..jpeg.len() / 2].to_vec();
    let bomb = {
        let mut png = std::io::Cursor::new(Vec::new());
        image::GrayImage::new(2000, 2000).write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner()
    };
    for (bytes, status, code) in [
        (Vec::new(), 400, "image_empty"),
        (b"I am not a picture".to_vec(), 422, "image_unreadable"),
        (half, 422, "image_unreadable"),
        (bomb, 413, "image_too_large"),
        (vec![0; 300_001], 413, "image_too_large"),
    ] {
        for path in ["/dataset/x/image", "/face-recognition/get-results", "/face-recognition/store-results"] {
            let form =
                Form::new().text("camera_id", "c").text("location", "l").part("image", file(bytes.clone()));
            server.send(path, form).await.expect_error(status, code);
        }
    }
    let form = Form::new().part("image", file(vec![0; 300_001]));
    let answer = server.send("/dataset/x/image", form).await;
    assert_eq!(answer.body["error"]["details"]["max_bytes"], 300_000);
    assert!(answer.expect_error(413, "image_too_large").contains("300001"));
}

/// A PNG of `side` times `side` white pixels, one bit each, which is a thousandth of its pixels in bytes.
fn bomb(side: u32) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(data);
        let length = u32::try_from(data.len()).unwrap();
        [&length.to_be_bytes()[..], kind, data, &crc.sum().to_be_bytes()].concat()
    };
    let (depth, colour) = (1, 0);
    let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[depth, colour, 0, 0, 0]].concat();
    let row = [vec![0], vec![0xff; usize::try_from(side.div_ceil(8)).unwrap()]].concat();
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::best());
    (0..side).for_each(|_| rows.write_all(&row).unwrap());
    let parts = [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", &rows.finish().unwrap()),
        chunk(b"IEND", &[]),
    ];
    parts.concat()
}

#[tokio::test]
async fn images_beyond_the_default_limits_are_rejected_by_every_call() {
    let server = start!();
    server.post("/dataset/x").await.expect(StatusCode::CREATED);
    // A small one is a valid image; the large one is a small file.
    let form = Form::new().part("image", file(bomb(64)));
    server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    let bomb = bomb(20_000);
    assert!(bomb.len() < 100_000, "{}", bomb.len());
    let bytes = 10 * 1024 * 1024;
    for path in ["/dataset/x/image", "/face-recognition/get-results", "/face-recognition/store-results"] {
        let form = || Form::new().text("camera_id", "c").text("location", "l");
        let answer = server.send(path, form().part("image", file(bomb.clone()))).await;
        let max_pixels = if path.ends_with("store-results") { 13_000_000 } else { 50_000_000 };
        assert_eq!(
            answer.body["error"]["details"],
            json!({ "width": 20_000, "height": 20_000, "max_pixels": max_pixels })
        );
        assert!(answer.expect_error(413, "image_too_large").contains("20000x20000"));

        let answer = server.send(path, form().part("image", file(vec![0; bytes + 1]))).await;
        assert_eq!(answer.body["error"]["details"], json!({ "bytes": bytes + 1, "max_bytes": bytes }));
        answer.expect_error(413, "image_too_large");
        // One byte less is rejected for its format instead.
        let answer = server.send(path, form().part("image", file(vec![0; bytes]))).await;
        answer.expect_error(422, "image_unreadable");
    }

    let form = (0..65).fold(Form::new(), |form, _| form.part("image", file(b"text".to_vec())));
    let answer = server.send("/face-recognition/get-results", form).await;
    assert_eq!(answer.body["error"]["details"], json!({ "images": 65, "max_images": 64 }));
    answer.expect_error(400, "too_many_images");
}

#[tokio::test]
async fn forms_without_an_image_are_rejected_by_every_call() {
    let server = start!(|config| config.results.results_url = Some("http://127.0.0.1:1/".into()));
    server.post("/dataset/x").await.expect(StatusCode::CREATED);
    for path in [
        "/dataset/x/image",
        "/face-recognition/get-results",
        "/face-recognition/store-results",
        "/face-recognition/send-results",
        "/face-recognition/dry-run",
    ] {
        let form = Form::new().text("camera_id", "c").text("location", "l");
        // A part of another name is no image.
        let form = form.part("picture", photograph("Tony_Blair", 1));
        server.send(path, form).await.expect_error(400, "image_missing");
    }
}

#[tokio::test]
async fn missing_and_repeated_fields_are_named() {
    let server = start!(|config| config.recognition.max_images = 2);
    let picture = || photograph("Tony_Blair", 1);
    let store = "/face-recognition/store-results";
    let complete = || Form::new().text("camera_id", "gate-1").text("location", "Lobby");

    server.post(store).await.expect_error(415, "unsupported_media_type");
    server.send(store, complete()).await.expect_error(400, "image_missing");
    let form = Form::new().text("location", "Lobby").part("image", picture());
    assert!(server.send(store, form).await.expect_error(400, "field_missing").contains("camera_id"));
    let form = Form::new().text("camera_id", "gate-1").part("image", picture());
    assert!(server.send(store, form).await.expect_error(400, "field_missing").contains("location"));
    let form = complete().part("image", picture()).part("image", picture()).part("image", picture());
    let message = server.send(store, form).await.expect_error(400, "too_many_images");
    assert!(message.contains('3') && message.contains('2'), "{message}");

    for (field, value) in [
        ("camera_id", "again".to_owned()),
        ("captured_at", "yesterday".into()),
        ("track_id", "1.5".into()),
        ("box", "1,2,3".into()),
        ("key", "x".repeat(201)),
        ("key", "x".repeat(1025)),
        ("key", "a\tb".into()),
    ] {
        let form = complete().part("image", picture()).text(field, value);
        let answer = server.send(store, form).await;
        assert_eq!(answer.body["error"]["details"]["field"], field, "{}", answer.body);
        answer.expect_error(400, "invalid_field");
    }
    let form = complete().part("image", picture()).part("image", picture()).text("track_id", "1");
    assert!(server.send(store, form).await.expect_error(400, "invalid_field").contains("track_id"));
    let form = complete().part("image", picture()).text("key", "k").part("image", picture()).text("key", "k");
    assert!(server.send(store, form).await.expect_error(400, "invalid_field").contains("key"));
    let form = Form::new()
        .part("camera_id", Part::bytes(vec![0xff, 0xfe]))
        .text("location", "Lobby")
        .part("image", picture());
    assert!(server.send(store, form).await.expect_error(400, "invalid_field").contains("UTF-8"));

    let message = server.post("/model/optimized-train?wait=perhaps").await.expect_error(400, "invalid_query");
    assert!(message.contains("wait") && message.contains("perhaps"), "{message}");
    server.post("/dataset/x").await.expect(StatusCode::CREATED);
    let form = Form::new().part("image", picture()).part("image", picture());
    server.send("/dataset/x/image", form).await.expect_error(400, "too_many_images");
}

#[tokio::test]
async fn unknown_fields_are_ignored() {
    let server = start!();
    for name in ["", "camera-id", "image[]"] {
        let form = Form::new().text(name, "x").part("image", photograph("Tony_Blair", 1));
        server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    }
}

#[tokio::test]
async fn truncated_and_malformed_forms_are_rejected() {
    let server = start!();
    let part = "--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"x\"\r\n\r\nabc";
    for (content_type, body, status, code) in [
        ("multipart/form-data; boundary=B", part, 400, "malformed_form"),
        ("multipart/form-data", part, 400, "malformed_form"),
        ("multipart/form-data; boundary=B", "", 400, "malformed_form"),
        ("multipart/form-data; boundary=B", "--B\r\nX: y\r\n\r\nabc\r\n--B--\r\n", 400, "malformed_form"),
        ("multipart/mixed; boundary=B", part, 415, "unsupported_media_type"),
        ("image/jpeg", "abc", 415, "unsupported_media_type"),
    ] {
        let url = format!("{}/face-recognition/get-results", server.url);
        let request = server.client.post(url).header("content-type", content_type).body(body);
        let answer = crate::helpers::ApiResponse::read(request.send().await.unwrap()).await;
        answer.expect_error(status, code);
    }
}

#[tokio::test]
async fn a_request_beyond_its_limit_is_rejected() {
    let server = start!(|config| config.listener.max_request_bytes = 100_000);
    let form = Form::new().part("image", file(vec![0; 150_000]));
    let answer = server.send("/face-recognition/get-results", form).await;
    assert_eq!(answer.body["error"]["details"]["max_bytes"], 100_000);
    answer.expect_error(413, "request_too_large");
}

#[tokio::test]
async fn a_stalled_client_gets_408_and_is_disconnected() {
    let server = start!(|config| config.listener.request_timeout_s = 1);
    let head = |method: &str, path: &str, content_type: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nContent-Type: {content_type}\r\n\r\n"
        )
    };
    let form = "multipart/form-data; boundary=B";
    let cases = [
        (head("POST", "/face-recognition/get-results", form) + "--B\r\n", "request_timeout"),
        (head("POST", "/face-recognition/get-results", form), "request_timeout"),
        (
            head("POST", "/face-recognition/get-results", form)
                + "--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"x\"\r\n\r\nabc",
            "request_timeout",
        ),
        (
            head("POST", "/face-recognition/get-results", form)
                + "--B\r\nContent-Disposition: form-data; name=\"camera_id\"\r\n\r\nabc",
            "request_timeout",
        ),
        (head("PATCH", "/dataset/x", "application/json") + "{\"face_id\":", "request_timeout"),
        // Before the request's head is complete.
        ("POST /face-recognition/get-results HTTP/1.1\r\nHost: localhost\r\nContent-".to_owned(), ""),
    ];
    let begun = Instant::now();
    let answers = cases.map(|(request, code)| {
        let url = server.url.clone();
        tokio::spawn(async move { (raw(&url, &request).await, request, code) })
    });
    // A call that ignores its body responds at once; the connection is closed nevertheless.
    let answer = raw(&server.url, &head("POST", "/dataset/x", "text/plain")).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    for answer in answers {
        let (answer, request, code) = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{request}: {answer}");
        assert!(answer.contains(code), "{request}: {answer}");
    }
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nul_is_refused_wherever_text_is_taken() {
    let server = start!();
    for path in [
        "/dataset/a%00b",
        "/jobs/%00",
        "/model/%00",
        "/people/%00",
        "/unknowns/%00",
        "/database/detections/%00",
        "/database/%00/track",
        "/access/principals/%00",
    ] {
        server.get(path).await.expect_error(400, "invalid_face_id");
    }
    for query in [
        "/database/detections?camera=%00",
        "/database/detections?person=a%00",
        "/database/sightings?location=%00b",
        "/jobs?cursor=%00",
        "/audit?principal=%00",
    ] {
        let message = server.get(query).await.expect_error(400, "invalid_query");
        assert!(message.contains("U+0000"), "{message}");
    }
    for field in ["camera_id", "location", "key"] {
        let form = ["camera_id", "location", "key"]
            .iter()
            .fold(Form::new(), |form, name| form.text(*name, if *name == field { "a\0b" } else { "x" }));
        let form = form.part("image", photograph("Tony_Blair", 1));
        let answer = server.send("/face-recognition/store-results", form).await;
        assert_eq!(answer.body["error"]["details"]["field"], field, "{}", answer.body);
        answer.expect_error(400, "invalid_field");
    }
    server.patch("/dataset/x", &json!({ "face_id": "a\0" })).await.expect_error(400, "invalid_face_id");
    // What is not NUL.
    server.get("/database/detections?camera=%2500").await.expect(StatusCode::OK);
}

#[tokio::test]
async fn texts_that_reverse_the_direction_of_writing_are_refused() {
    let server = start!();
    for (field, camera, location) in
        [("camera_id", "gate\u{202e}", "Lobby"), ("location", "gate", "a\u{2068}b")]
    {
        let form = Form::new().text("camera_id", camera).text("location", location);
        let form = form.part("image", photograph("Tony_Blair", 1));
        let answer = server.send("/face-recognition/store-results", form).await;
        assert_eq!(answer.body["error"]["details"]["field"], field);
        let message = answer.expect_error(400, "invalid_field");
        assert!(message.contains("U+20"), "{message}");
    }
}
