//! Overload, and clients that leave.

use std::{fs, io::Write as _, net::TcpStream, time::Duration};

use facepipe_backend::Config;
use reqwest::{StatusCode, multipart::Form};

use crate::{
    helpers::{ApiResponse, photograph, photograph_path, start},
    metrics::{Scrape, with_metrics},
};

#[tokio::test]
async fn a_full_queue_rejects_requests_and_recovers() {
    let server = start!(|config| config.recognition.queue_images = 2);
    let calls = (0..24).map(|_| {
        let form = Form::new().part("image", photograph("Tony_Blair", 1));
        let request =
            server.client.post(format!("{}/face-recognition/get-results", server.url)).multipart(form);
        tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await })
    });
    let (mut served, mut refused) = (0, 0);
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.unwrap();
        if answer.status == StatusCode::OK {
            served += 1;
        } else {
            let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=30).contains(&wait));
            let message = answer.expect_error(429, "too_busy");
            assert!(message.contains("at most 2"), "{message}");
            refused += 1;
        }
    }
    assert!(served >= 2 && refused >= 1, "{served} served, {refused} refused");
    // A request that is larger than the queue is accepted when the queue is empty.
    let form = (0..3).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 1)));
    let answer = server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    assert_eq!(answer["faces"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_slow_queue_rejects_requests() {
    let server = start!(|config| config.recognition.queue_budget_ms = 1);
    let call = || {
        let form = Form::new().part("image", photograph("Tony_Blair", 1));
        let url = format!("{}/face-recognition/get-results", server.url);
        let request = server.client.post(url).multipart(form);
        tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await })
    };
    // A single request is accepted however long it takes; it also sets the estimate.
    call().await.unwrap().expect(StatusCode::OK);
    // One request with many images and several with one: those that find another in the queue are rejected. On a busy
    // machine they may miss each other, so they are sent again.
    let crowd = || {
        let form = (0..32).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 1)));
        let request =
            server.client.post(format!("{}/face-recognition/get-results", server.url)).multipart(form);
        tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await })
    };
    let (mut served, mut refused) = (0, Vec::new());
    for _ in 0..20 {
        let mut sent = vec![crowd()];
        sent.extend((0..8).map(|_| call()));
        for answer in sent {
            let answer = answer.await.unwrap();
            if answer.status == StatusCode::OK { served += 1 } else { refused.push(answer) }
        }
        if !refused.is_empty() {
            break;
        }
    }
    assert!(served >= 1 && !refused.is_empty(), "{served} served, {} refused", refused.len());
    for answer in refused {
        assert!(answer.headers.contains_key("retry-after"));
        let text = answer.expect_error(429, "too_busy");
        assert!(text.contains("for at most 1 ms"), "{text}");
    }
    call().await.unwrap().expect(StatusCode::OK);
}

#[tokio::test]
async fn requests_of_clients_that_left_free_the_queue() {
    let server = start!(|config| config.recognition.queue_images = 64);
    // 64 images take far longer than the client waits.
    let form = (0..64).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 1)));
    let request = server.client.post(format!("{}/face-recognition/get-results", server.url)).multipart(form);
    let gone = request.timeout(Duration::from_millis(60)).send().await;
    assert!(gone.is_err_and(|error| error.is_timeout()));
    let begun = std::time::Instant::now();
    loop {
        let form = Form::new().part("image", photograph("Tony_Blair", 1));
        let answer = server.send("/face-recognition/get-results", form).await;
        if answer.status == StatusCode::OK {
            break;
        }
        answer.expect_error(429, "too_busy");
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn requests_of_clients_that_left_are_not_processed() {
    const KEPT: usize = 24;
    const LEFT: usize = 20;
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        config.recognition.queue_images = 128;
        config.recognition.queue_budget_ms = 600_000;
    });
    // Keeps the workers busy while other clients connect and leave.
    let form = (0..KEPT).fold(Form::new(), |form, _| form.part("image", photograph("Tony_Blair", 1)));
    let request = server.client.post(format!("{}/face-recognition/get-results", server.url)).multipart(form);
    let kept = tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await });
    while Scrape::of(&server).await.value("facepipe_queue_images") < KEPT as f64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let picture = fs::read(photograph_path("Tony_Blair", 2)).unwrap();
    let head = "--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n";
    let body = [head.as_bytes(), &picture, b"\r\n--b--\r\n"].concat();
    let address = server.url.strip_prefix("http://").unwrap();
    let connections: Vec<TcpStream> = (0..LEFT)
        .map(|_| {
            let mut connection = TcpStream::connect(address).unwrap();
            let head = format!(
                "POST /face-recognition/get-results HTTP/1.1\r\nHost: {address}\r\n\
                 Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            connection.write_all(&[head.as_bytes(), &body].concat()).unwrap();
            connection
        })
        .collect();
    // All of them are queued.
    while Scrape::of(&server).await.value("facepipe_queue_images") < (KEPT + LEFT) as f64 {
        assert!(!kept.is_finished(), "nobody had to wait");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(connections);

    let answer = kept.await.unwrap().expect(StatusCode::OK);
    assert_eq!(answer["faces"].as_array().unwrap().len(), KEPT);
    let form = Form::new().part("image", photograph("Tony_Blair", 3));
    server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    let scrape = Scrape::of(&server).await;
    for stage in ["decode", "detect", "classify"] {
        let computed = scrape.value(&format!("facepipe_stage_seconds_count{{stage=\"{stage}\"}}"));
        let wanted = if stage == "classify" { 2 } else { KEPT + 1 };
        // A worker may have started one before the server noticed that its client left.
        let most = wanted + LEFT / 4;
        assert!((wanted as f64..=most as f64).contains(&computed), "{stage}: {computed} of {wanted}");
    }
    assert_eq!(scrape.value("facepipe_queue_images"), 0.0);
    assert_eq!(scrape.value("facepipe_requests_abandoned_total"), LEFT as f64);
}
