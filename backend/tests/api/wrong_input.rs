//! Every wrong request has its status, its code and a message that says what to change.

use std::time::{Duration, Instant};

use reqwest::{
    Method, StatusCode,
    multipart::{Form, Part},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::helpers::{file, photograph, start};

#[tokio::test]
async fn wrong_paths_and_methods_are_told_in_json() {
    let server = start!();
    server.get("/").await.expect_error(404, "not_found");
    server.post("/face-recognition/nothing").await.expect_error(404, "not_found");
    for (method, path, allowed) in [
        (Method::POST, "/dataset", "GET"),
        (Method::PUT, "/dataset/x", "GET, POST, PATCH, DELETE"),
        (Method::POST, "/dataset/x/image/y", "GET, DELETE"),
        (Method::GET, "/dataset/x/image", "POST"),
        (Method::GET, "/model/optimized-train", "POST"),
        (Method::DELETE, "/face-recognition/get-results", "GET, POST"),
        (Method::GET, "/face-recognition/store-results", "POST"),
        (Method::GET, "/face-recognition/dry-run", "POST"),
        (Method::POST, "/database/people", "GET"),
        (Method::POST, "/database/x/last-known-location", "GET"),
        (Method::POST, "/database/detections", "GET"),
        (Method::POST, "/database/x/track", "GET"),
        (Method::POST, "/cameras", "GET"),
        (Method::POST, "/livez", "GET"),
    ] {
        let answer = server.call(method.clone(), path).await;
        assert_eq!(answer.headers["allow"], allowed, "{path}");
        let message = answer.expect_error(405, "method_not_allowed");
        assert!(message.contains(method.as_str()) && message.contains(allowed), "{message}");
    }
    server.get("/livez").await.expect(StatusCode::OK);
    server.get("/readyz").await.expect(StatusCode::OK);
}

#[tokio::test]
async fn face_ids_are_checked_wherever_they_stand() {
    let server = start!();
    let long = "x".repeat(65);
    for id in ["%2e%2e%2fx", "..%2Fx", ".hidden", "", "a%00b", "a%0Ab", "%ff", "a%3Cb", &long] {
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
}

#[tokio::test]
async fn pictures_that_cannot_be_used_are_told_apart() {
    let server = start!(|config| {
        config.max_image_bytes = 300_000;
        config.max_image_pixels = 1_000_000;
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

#[tokio::test]
async fn forms_that_lack_or_repeat_something_are_told_by_field() {
    let server = start!(|config| config.max_images = 2);
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
async fn fields_that_nobody_knows_are_passed_over() {
    let server = start!();
    for name in ["", "camera-id", "image[]"] {
        let form = Form::new().text(name, "x").part("image", photograph("Tony_Blair", 1));
        server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    }
}

#[tokio::test]
async fn a_form_that_breaks_off_or_is_none_is_told() {
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
        let answer = crate::helpers::Answer::read(request.send().await.unwrap()).await;
        answer.expect_error(status, code);
    }
}

#[tokio::test]
async fn a_request_beyond_its_limit_is_refused() {
    let server = start!(|config| config.max_request_bytes = 100_000);
    let form = Form::new().part("image", file(vec![0; 150_000]));
    let answer = server.send("/face-recognition/get-results", form).await;
    assert_eq!(answer.body["error"]["details"]["max_bytes"], 100_000);
    answer.expect_error(413, "request_too_large");
}

#[tokio::test]
async fn a_client_that_stops_sending_is_told_and_let_go() {
    let server = start!(|config| config.request_timeout_s = 1);
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    stream
        .write_all(
            b"POST /face-recognition/get-results HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\
              Content-Type: multipart/form-data; boundary=B\r\n\r\n--B\r\n",
        )
        .await
        .unwrap();
    let begun = Instant::now();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
}
