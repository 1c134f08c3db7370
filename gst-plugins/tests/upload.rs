//! The uploader on its own, against a server in the test's own process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod common;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::server::{Answer, Hold, Received, Server, dead_address};
use facepipe_detector::BoundingBox;
use facepipe_test_support::wait_until;
use gstfacepipe::crop::Encoding;
use gstfacepipe::upload::{
    self, BackendStatus, Backoff, Camera, Crop, DrainOutcome, DropPolicy, Endpoint, Event, PushOutcome,
    RuntimeSettings, Stats, Token, UploadConfig, UploadError, Uploader,
};
use time::macros::datetime;
use uuid::Uuid;

/// Limit for what is certain to happen.
const LONG: Duration = Duration::from_secs(60);

/// An error in the backend's own format.
const UNREADABLE: &str = r#"{"error":{"code":"image_unreadable","message":"the picture cannot be read"}}"#;

/// Returns a configuration that sends at once and retries soon.
fn config(url: String) -> UploadConfig {
    UploadConfig {
        backend_url: url,
        backoff: Backoff { initial: Duration::from_millis(20), maximum: Duration::from_millis(100) },
        settings: RuntimeSettings { batch_delay: Duration::ZERO, ..RuntimeSettings::default() },
        ..UploadConfig::default()
    }
}

fn with_settings(url: String, change: impl FnOnce(&mut RuntimeSettings)) -> UploadConfig {
    let mut config = config(url);
    change(&mut config.settings);
    config
}

fn camera(id: &str, location: &str) -> Arc<Camera> {
    Arc::new(Camera { id: id.into(), location: location.into() })
}

fn crop(number: u8) -> Crop {
    Crop {
        image: Bytes::from(vec![number; 100]),
        encoding: Encoding::Jpeg,
        camera: camera("gate-1", "Lobby"),
        captured_at: datetime!(2024-05-06 07:08:09 UTC),
        track_id: None,
        run_id: None,
        bounding_box: Some(BoundingBox::new(1, 2, 3, 4)),
        area: None,
        key: Uuid::now_v7(),
    }
}

type Events = Arc<Mutex<Vec<Event>>>;

fn start(config: UploadConfig) -> (Uploader, Events) {
    let events = Events::default();
    let observed = Arc::clone(&events);
    let uploader =
        Uploader::start(config, Arc::new(move |event| observed.lock().unwrap().push(event))).unwrap();
    (uploader, events)
}

fn unhealthy(events: &Events, wanted: BackendStatus) -> usize {
    let events = events.lock().unwrap();
    events.iter().filter(|e| matches!(e, Event::BackendUnhealthy { status, .. } if *status == wanted)).count()
}

fn outages(events: &Events) -> usize {
    unhealthy(events, BackendStatus::Unavailable)
}

fn recoveries(events: &Events) -> usize {
    events.lock().unwrap().iter().filter(|e| matches!(e, Event::BackendRecovered { .. })).count()
}

/// Keeps the only worker busy with a first crop until the hold is released, so that crops pushed meanwhile are queued
/// together.
fn occupied(mut config: UploadConfig, answer: Answer) -> (Server, Uploader, Events, Hold) {
    // However long a loaded machine takes, the held request is not repeated.
    config.settings.timeout = Duration::ZERO;
    let hold = Hold::default();
    let server = Server::answering([Answer::status(204).held(&hold), answer]);
    let (uploader, events) = start(UploadConfig { backend_url: server.url(), workers: 1, ..config });
    uploader.push(crop(0));
    server.wait_for(1);
    (server, uploader, events, hold)
}

#[test]
fn a_crop_is_posted_with_its_metadata_to_the_endpoint() {
    for (endpoint, path) in [
        (Endpoint::StoreResults, "/face-recognition/store-results"),
        (Endpoint::SendResults, "/face-recognition/send-results"),
        (Endpoint::GetResults, "/face-recognition/get-results"),
        (Endpoint::DryRun, "/face-recognition/dry-run"),
    ] {
        let server = Server::answering([Answer::status(204)]);
        let (uploader, _) = start(UploadConfig { endpoint, ..config(server.url()) });
        let crop = Crop { track_id: Some(9), run_id: Some(Uuid::from_u128(1)), ..crop(7) };
        uploader.push(crop.clone());
        assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
        let [request] = &server.received()[..] else { panic!("not one request") };
        assert_eq!(request.line, format!("POST {path} HTTP/1.1"));
        assert_eq!(request.images(), [vec![7; 100]]);
        let names: Vec<&str> = request.parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(
            names,
            ["camera_id", "location", "run_id", "image", "captured_at", "key", "box", "track_id"]
        );
        assert_eq!(request.field("camera_id"), "gate-1");
        assert_eq!(request.field("location"), "Lobby");
        assert_eq!(request.field("captured_at"), "2024-05-06T07:08:09Z");
        assert_eq!(request.field("key"), upload::encode_uuid(crop.key));
        assert_eq!(request.field("box"), "1,2,3,4");
        assert_eq!(request.field("track_id"), "9");
        assert_eq!(request.field("run_id"), upload::encode_uuid(Uuid::from_u128(1)));
    }
}

#[test]
fn a_path_in_the_backend_url_is_a_prefix() {
    let server = Server::answering([Answer::status(204)]);
    let (uploader, _) = start(config(format!("{}/faces/v1/", server.url())));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!(server.received()[0].line, "POST /faces/v1/face-recognition/store-results HTTP/1.1");
}

#[test]
fn invalid_urls_are_rejected_with_the_url_and_the_reason() {
    for (url, reason) in [
        ("127.0.0.1:8080", "begins with neither http:// nor https://"),
        ("ftp://backend", "begins with neither"),
        ("http://", "is not a URL"),
        ("http://me:secret@backend", "contains a user name"),
        ("http://backend/?x=1", "contains a query"),
        ("", "is not a URL"),
    ] {
        let error = Uploader::start(config(url.into()), Arc::new(|_| ())).err().unwrap();
        assert!(matches!(error, UploadError::Url { .. }), "{url}: {error}");
        let text = error.to_string();
        // Users and passwords are never printed.
        let printed = url.replace("me:secret@", "");
        assert!(text.contains(&format!("`{printed}`")) && text.contains(reason), "{url}: {text}");
    }
}

#[test]
fn queued_crops_share_one_request_and_one_connection() {
    let config = with_settings(String::new(), |settings| settings.batch_size = 4);
    let (server, uploader, _, hold) = occupied(config, Answer::status(204));
    for number in 1..=6 {
        uploader.push(crop(number));
    }
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let numbers: Vec<Vec<u8>> =
        server.received().iter().map(|r| r.images().iter().map(|image| image[0]).collect()).collect();
    assert_eq!(numbers, [vec![0], vec![1, 2, 3, 4], vec![5, 6]]);
    assert_eq!(server.connections(), 1, "the connection is kept");
}

#[test]
fn crops_of_one_request_have_the_same_fields() {
    let (server, uploader, _, hold) = occupied(config(String::new()), Answer::status(204));
    uploader.push(crop(1));
    uploader.push(Crop { track_id: Some(1), ..crop(2) });
    uploader.push(Crop { track_id: Some(2), ..crop(3) });
    uploader.push(Crop { bounding_box: None, track_id: Some(2), ..crop(4) });
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let received = server.received();
    assert_eq!(received.len(), 4);
    for request in received {
        let images = request.images().len();
        for field in ["captured_at", "key", "box", "track_id"] {
            assert!([0, images].contains(&request.all(field).len()), "{field} of {images}");
        }
    }
}

#[test]
fn each_crop_gets_the_faces_that_were_found_on_it() {
    let body = r#"{"model_version":"7","faces":[
        {"image":1,"decision":"known","top_prediction":{"label":"Ada","confidence":0.9}},
        {"image":0,"decision":"unknown"},
        {"image":1,"decision":"unknown"}]}"#;
    let (_server, uploader, events, hold) = occupied(config(String::new()), Answer::json(201, body));
    let crops = [crop(1), crop(2), crop(3)];
    for crop in &crops {
        uploader.push(crop.clone());
    }
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let decisions: Vec<(Uuid, u16, Option<String>, Vec<String>)> = events
        .lock()
        .unwrap()
        .iter()
        .skip(1)
        .map(|event| match event {
            Event::Accepted { crop, status, model_version, faces, .. } => {
                let decisions = faces.iter().map(|f| f["decision"].as_str().unwrap().to_owned()).collect();
                (crop.key, *status, model_version.clone(), decisions)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = |crop: &Crop, decisions: &[&str]| {
        (crop.key, 201, Some("7".to_owned()), decisions.iter().map(|&d| d.to_owned()).collect())
    };
    assert_eq!(
        decisions,
        [
            expected(&crops[0], &["unknown"]),
            expected(&crops[1], &["known", "unknown"]),
            expected(&crops[2], &[])
        ]
    );
}

#[test]
fn requests_to_a_failing_backend_are_retried_with_the_same_key_and_reported_once() {
    let server = Server::answering([
        Answer::status(503),
        Answer::status(502),
        Answer::status(503),
        Answer::status(201),
    ]);
    let (uploader, events) = start(config(server.url()));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let keys: HashSet<String> = server.received().iter().map(|r| r.field("key")).collect();
    assert_eq!((server.received().len(), keys.len()), (4, 1), "one key for all attempts");
    assert_eq!((outages(&events), recoveries(&events)), (1, 1));
    let stats = uploader.stats();
    assert_eq!((stats.sent, stats.failed, stats.dropped, stats.queued), (1, 0, 0, 0));
    assert_eq!((stats.requests, stats.retries), (4, 3));
}

#[test]
fn retry_after_is_respected_and_a_busy_backend_is_no_outage() {
    for status in [429, 503] {
        let server =
            Server::answering([Answer::status(status).header("Retry-After", "1"), Answer::status(201)]);
        let (uploader, events) = start(config(server.url()));
        uploader.push(crop(1));
        assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
        let [first, second] = &server.received()[..] else { panic!("not two requests") };
        let pause = second.at - first.at;
        assert!(pause >= Duration::from_secs(1), "{status}: {pause:?}");
        let no_longer = |event: &Event| matches!(event, Event::BackendUnhealthy { retry_in, .. } if *retry_in == Duration::from_secs(1));
        assert!(events.lock().unwrap().iter().any(no_longer), "{status}: {events:?}");
        assert_eq!(first.field("key"), second.field("key"));
        assert_eq!(outages(&events), usize::from(status == 503), "{status}");
        assert_eq!(unhealthy(&events, BackendStatus::Busy), usize::from(status == 429), "{status}");
        assert_eq!(recoveries(&events), 1, "{status}");
    }
}

#[test]
fn crops_wait_for_a_backend_that_starts_late() {
    let address = dead_address();
    let (uploader, events) = start(config(format!("http://{address}")));
    uploader.push(crop(1));
    uploader.push(crop(2));
    wait_until("the outage", || outages(&events) == 1);
    assert_eq!(uploader.drain(Duration::from_millis(300)), DrainOutcome::TimedOut { left: 2, spooled: 0 });
    assert_eq!(outages(&events), 1, "one outage, one report");

    let server = Server::start_at(address, |_| Answer::status(201));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!(uploader.stats().sent, 2);
    assert_eq!(recoveries(&events), 1);
    assert_eq!(server.received().iter().map(|r| r.images().len()).sum::<usize>(), 2);
}

#[test]
fn a_request_timeout_is_an_outage_and_is_retried() {
    let server = Server::answering([Answer::status(201).after(Duration::from_secs(3)), Answer::status(201)]);
    let (uploader, events) =
        start(with_settings(server.url(), |settings| settings.timeout = Duration::from_millis(300)));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!((outages(&events), recoveries(&events)), (1, 1));
    assert_eq!(uploader.stats().sent, 1);
}

#[test]
fn a_rejected_crop_is_not_retried_and_the_reason_is_reported() {
    let refusal =
        r#"{"error":{"code":"invalid_field","message":"camera_id is 90 characters long, at most 64"}}"#;
    let server = Server::answering([Answer::json(400, refusal)]);
    let (uploader, events) = start(config(server.url()));
    for number in 1..=2 {
        uploader.push(crop(number));
        assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    }
    assert_eq!(server.received().len(), 2);
    assert_eq!((uploader.stats().sent, uploader.stats().failed), (0, 2));
    let reported: Vec<_> = events
        .lock()
        .unwrap()
        .iter()
        .map(|event| match event {
            Event::Rejected { status, message, first, .. } => (*status, message.clone(), *first),
            other => panic!("{other:?}"),
        })
        .collect();
    let message = "camera_id is 90 characters long, at most 64".to_owned();
    assert_eq!(reported, [(400, message.clone(), true), (400, message, false)]);
}

#[test]
fn a_rejected_image_does_not_affect_others_in_its_request() {
    let hold = Hold::default();
    let held = hold.clone();
    let server = Server::start(move |request: &Received| {
        let images = request.images();
        let bad = images.iter().any(|image| image[0] == 2);
        let answer = if bad { Answer::json(422, UNREADABLE) } else { Answer::status(201) };
        if images[0][0] == 0 { answer.held(&held) } else { answer }
    });
    let (uploader, events) = start(UploadConfig { workers: 1, ..config(server.url()) });
    for number in 0..=3 {
        uploader.push(crop(number));
        server.wait_for(1);
    }
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!((uploader.stats().sent, uploader.stats().failed), (3, 1));
    let rejected: Vec<u8> = events
        .lock()
        .unwrap()
        .iter()
        .filter_map(|e| if let Event::Rejected { crop, .. } = e { Some(crop.image[0]) } else { None })
        .collect();
    assert_eq!(rejected, [2]);
}

#[test]
fn a_crop_that_repeatedly_causes_500_is_given_up() {
    let server = Server::start(|request: &Received| {
        Answer::status(if request.images()[0][0] == 1 { 500 } else { 201 })
    });
    let (uploader, _) = start(with_settings(server.url(), |settings| settings.batch_size = 1));
    uploader.push(crop(1));
    uploader.push(crop(2));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!((uploader.stats().failed, uploader.stats().sent), (1, 1));
    assert_eq!(server.received().len(), 6, "five attempts for the one, one for the other");
}

#[test]
fn a_full_queue_drops_and_counts_its_oldest_crops() {
    let config = with_settings(String::new(), |settings| settings.max_queue = 3);
    let (server, uploader, _, hold) = occupied(config, Answer::status(204));
    let full: Vec<bool> =
        (1..=5).map(|number| matches!(uploader.push(crop(number)), PushOutcome::Dropped)).collect();
    assert_eq!(full, [false, false, false, true, true]);
    assert_eq!((uploader.stats().dropped, uploader.stats().queued), (2, 4));
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let numbers: Vec<u8> =
        server.received().iter().flat_map(Received::images).map(|image| image[0]).collect();
    assert_eq!(numbers, [0, 3, 4, 5]);
}

#[test]
fn push_never_blocks() {
    // If it waited for the backend, this would never end.
    let server = Server::answering([Answer::status(201).held(&Hold::default())]);
    let (uploader, _) = start(with_settings(server.url(), |settings| settings.timeout = Duration::ZERO));
    for number in 0..10_000_u32 {
        uploader.push(crop((number % 251) as u8));
    }
    let stats = uploader.stats();
    assert_eq!((stats.dropped + stats.queued, stats.sent), (10_000, 0), "{stats:?}");
}

#[test]
fn counted_bytes_are_those_on_the_wire() {
    let server = Server::answering([Answer::json(201, r#"{"faces":[]}"#)]);
    let (uploader, _) = start(config(server.url()));
    for number in 0..20 {
        uploader.push(crop(number));
    }
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!(uploader.stats().image_bytes, 2000);
    let arrived: usize = server.received().iter().map(|request| request.bytes).sum();
    let stats = uploader.stats();
    assert_eq!(stats.bytes, arrived as u64);
    let answer =
        "HTTP/1.1 201 Told\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n".len() + 12;
    assert_eq!(stats.bytes_received, stats.requests * answer as u64);
}

#[test]
fn draining_can_be_interrupted() {
    let server = Server::answering([Answer::status(201).held(&Hold::default())]);
    // An incomplete batch is sent when draining begins, and not before.
    let (uploader, _) = start(with_settings(server.url(), |settings| settings.batch_delay = 10 * LONG));
    uploader.push(crop(1));
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| send.send(uploader.drain(LONG)).unwrap());
        server.wait_for(1);
        assert!(receive.try_recv().is_err(), "it waits");
        uploader.interrupt();
        assert_eq!(receive.recv_timeout(LONG), Ok(DrainOutcome::Interrupted));
    });
    uploader.resume();
    assert_eq!(uploader.drain(Duration::from_millis(50)), DrainOutcome::TimedOut { left: 1, spooled: 0 });
}

#[test]
fn stop_is_prompt_and_counts_unsent_crops() {
    // If it waited for the answer, this would never end.
    let server = Server::answering([Answer::status(201).held(&Hold::default())]);
    let (uploader, events) = start(with_settings(server.url(), |settings| settings.timeout = Duration::ZERO));
    for number in 0..10 {
        uploader.push(crop(number));
    }
    server.wait_for(1);
    let stats = uploader.stop();
    assert_eq!((stats.dropped, stats.queued, stats.sent), (10, 0, 0));
    uploader.push(crop(11));
    assert_eq!(uploader.stats().dropped, 11, "what comes too late is dropped");
    assert!(events.lock().unwrap().is_empty());
}

#[test]
fn an_incomplete_batch_waits_no_longer_than_batch_delay() {
    let start_with = |server: &Server, delay| {
        start(with_settings(server.url(), |settings| {
            (settings.batch_size, settings.batch_delay) = (3, delay);
        }))
        .0
    };
    let delay = Duration::from_millis(400);
    let server = Server::answering([Answer::status(204)]);
    let uploader = start_with(&server, delay);
    let begin = Instant::now();
    uploader.push(crop(0));
    uploader.push(crop(1));
    let [request] = &server.wait_for(1)[..] else { panic!("not one request") };
    assert!(request.at - begin >= delay, "{:?}", request.at - begin);
    assert_eq!(request.images().len(), 2);

    // With this delay, an incomplete batch would never come.
    let server = Server::answering([Answer::status(204)]);
    let uploader = start_with(&server, 10 * LONG);
    (2..5).for_each(|number| drop(uploader.push(crop(number))));
    let full = &server.wait_for(1)[0];
    assert_eq!(full.images().len(), 3, "a full request waits for nothing");
    uploader.push(crop(5));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty, "nor does the end of the stream");
}

#[test]
fn each_request_has_crops_of_one_camera() {
    let (server, uploader, _, hold) = occupied(config(String::new()), Answer::status(204));
    for number in 1..=9 {
        let camera = if number % 3 == 0 { camera("gate-2", "Yard") } else { camera("gate-1", "Lobby") };
        uploader.push(Crop { camera, ..crop(number) });
    }
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let mut seen = 0;
    for request in server.received().iter().skip(1) {
        let expected = match request.field("camera_id").as_str() {
            "gate-2" => "Yard",
            _ => "Lobby",
        };
        assert_eq!(request.field("location"), expected);
        for image in request.images() {
            assert_eq!(image[0] % 3 == 0, expected == "Yard", "crop {}", image[0]);
            seen += 1;
        }
    }
    assert_eq!(seen, 9);
}

#[test]
fn webp_is_sent_with_its_own_file_name_and_type() {
    let server = Server::answering([Answer::status(204)]);
    let (uploader, _) = start(config(server.url()));
    uploader.push(Crop { encoding: Encoding::Webp, ..crop(1) });
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let received = server.received();
    let image = received[0].parts.iter().find(|part| part.name == "image").unwrap();
    assert_eq!(image.content_type.as_deref(), Some("image/webp"));
    assert_eq!(image.file_name.as_deref(), Some("f.webp"));
}

#[test]
fn unreadable_images_are_rejected_and_readable_ones_not_resent() {
    let body = r#"{"model_version":7,"stored":1,"faces":[{"image":0,"decision":"unknown"}],
        "errors":[{"image":1,"error":{"code":"image_unreadable","message":"it is not a picture"}}]}"#;
    let (server, uploader, events, hold) = occupied(config(String::new()), Answer::json(201, body));
    let crops = [crop(1), crop(2), crop(3)];
    for crop in &crops {
        uploader.push(crop.clone());
    }
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!(server.received().len(), 2, "nothing is sent again");
    let stats = uploader.stats();
    assert_eq!((stats.sent, stats.failed, stats.image_bytes), (3, 1, 300));
    let rejected: Vec<_> = events
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            Event::Rejected { crop, status, code, message, .. } => {
                Some((crop.key, *status, code.clone().unwrap(), message.clone()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(rejected, [(crops[1].key, 201, "image_unreadable".into(), "it is not a picture".into())]);
}

#[test]
fn a_crop_that_causes_500_does_not_block_others() {
    let server = Server::start(|request: &Received| {
        let poisonous = request.images().iter().any(|image| image[0] == 2);
        Answer::status(if poisonous { 500 } else { 201 })
    });
    let (uploader, _) = start(with_settings(server.url(), |settings| {
        (settings.batch_size, settings.batch_delay) = (4, 10 * LONG);
    }));
    (0..4).for_each(|number| drop(uploader.push(crop(number))));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!((uploader.stats().sent, uploader.stats().failed), (3, 1));
    let alone = server.received().iter().filter(|r| r.images()[0][0] == 2 && r.images().len() == 1).count();
    assert_eq!(alone, 2, "three times in company, twice by itself");
}

#[test]
fn a_response_cut_off_is_reported_and_the_request_retried() {
    for bytes in [60, 100] {
        let taken = Answer::json(201, r#"{"model_version":null,"stored":0,"faces":[]}"#);
        let server = Server::answering([taken.clone().cut_after(bytes), taken]);
        let (uploader, events) = start(config(server.url()));
        uploader.push(crop(1));
        assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
        let keys: HashSet<String> = server.received().iter().map(|r| r.field("key")).collect();
        assert_eq!((server.received().len(), keys.len()), (2, 1), "after {bytes} bytes");
        assert_eq!((uploader.stats().sent, uploader.stats().retries), (1, 1));
        // A response without a complete head may mean that an idle connection was just closed.
        assert_eq!(outages(&events), usize::from(bytes == 100), "after {bytes} bytes");
    }
}

#[test]
fn responses_from_another_server_lose_no_crops() {
    let page = |status| Answer::html(status, "<html><body>Go away</body></html>");
    let moved = Answer::status(302).header("Location", "http://login.example/");
    let text = Answer::json(200, "welcome");
    let api = Answer::json(422, r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#);
    let pages = [200, 400, 403, 404, 407, 413, 415, 422, 502].map(page);
    let others = [moved, text, api, Answer::status(404), Answer::status(400)];
    for wrong in pages.into_iter().chain(others) {
        let response = format!("{wrong:?}");
        let server = Server::answering([wrong, Answer::status(201)]);
        let (uploader, events) = start(config(server.url()));
        uploader.push(crop(1));
        assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
        assert_eq!((uploader.stats().sent, uploader.stats().failed), (1, 0), "{response}");
        assert_eq!((outages(&events), recoveries(&events)), (1, 1), "{response}");
    }
}

#[test]
fn a_proxys_error_is_reported_as_not_the_backends() {
    let server = Server::answering([
        Answer::html(400, "<html>Request Header Or Cookie Too Large"),
        Answer::status(201),
    ]);
    let (uploader, events) = start(config(server.url()));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let events = events.lock().unwrap();
    let reason = events.iter().find_map(|event| match event {
        Event::BackendUnhealthy {
            status: BackendStatus::Unavailable,
            http_status: Some(400),
            reason,
            ..
        } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reason.unwrap(), "answers 400: Bad Request, a web page, which is not the backend's");
}

#[test]
fn crops_are_sent_one_by_one_after_a_proxys_413() {
    let hold = Hold::default();
    let held = hold.clone();
    let server = Server::start(move |request: &Received| {
        let images = request.images();
        let large = images.len() > 1;
        let answer = if large { Answer::html(413, "<html>Too large") } else { Answer::status(201) };
        if images[0][0] == 0 { answer.held(&held) } else { answer }
    });
    let (uploader, _) = start(UploadConfig { workers: 1, ..config(server.url()) });
    uploader.push(crop(0));
    server.wait_for(1);
    (1..=3).for_each(|number| drop(uploader.push(crop(number))));
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!((uploader.stats().sent, uploader.stats().failed), (4, 0));
    assert_eq!(server.received().iter().filter(|request| request.images().len() > 1).count(), 1);
}

#[test]
fn while_the_backend_is_unhealthy_at_most_one_probe_is_in_flight() {
    let well = Arc::new(Mutex::new(false));
    let is_well = Arc::clone(&well);
    let server = Server::start(move |_| Answer::status(if *is_well.lock().unwrap() { 201 } else { 503 }));
    let mut config = with_settings(server.url(), |settings| settings.batch_size = 1);
    config.workers = 8;
    config.backoff = Backoff { initial: Duration::from_millis(100), maximum: Duration::from_millis(100) };
    let (uploader, _) = start(config);
    let begun = Instant::now();
    (0..20).for_each(|number| drop(uploader.push(crop(number))));
    server.wait_for(8 + 10);
    let (asked, passed) = (server.received().len(), begun.elapsed());
    let most = 8 + 1 + usize::try_from(passed.as_millis() / 50).unwrap();
    assert!(asked <= most, "{asked} requests by 8 workers in {passed:?}, one each 50 to 100 ms");
    *well.lock().unwrap() = true;
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!(uploader.stats().sent, 20);
}

#[test]
fn without_a_spool_a_crop_is_given_up_after_its_retries() {
    let server = Server::answering([Answer::status(503)]);
    let (uploader, events) = start(with_settings(server.url(), |settings| settings.retries = Some(2)));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!((server.received().len(), uploader.stats().failed), (3, 1));
    let events = events.lock().unwrap();
    let given_up = events.iter().any(|e| matches!(e, Event::Rejected { status: 503, first: true, .. }));
    assert!(given_up, "{events:?}");
}

#[test]
fn a_changed_token_is_used_for_later_requests() {
    let server = Server::answering([Answer::status(201)]);
    let (uploader, _) =
        start(with_settings(server.url(), |settings| settings.token = Some(Token::new("first").unwrap())));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let mut changed = config(server.url()).settings;
    changed.token = Some(Token::new("second").unwrap());
    uploader.update_settings(changed.clone());
    uploader.push(crop(2));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    changed.token = None;
    uploader.update_settings(changed);
    uploader.push(crop(3));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let received = server.received();
    let sent: Vec<_> = received.iter().map(|request| request.header("authorization")).collect();
    assert_eq!(sent, [Some("Bearer first"), Some("Bearer second"), None]);
}

#[test]
fn crops_wait_while_the_token_is_rejected_until_its_file_is_renewed() {
    for status in [401, 403] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "old\n").unwrap();
        let server = Server::start(move |request: &Received| {
            let taken = request.header("authorization") == Some("Bearer new");
            Answer::status(if taken { 201 } else { status })
        });
        let (uploader, events) = start(with_settings(server.url(), |settings| {
            (settings.token_file, settings.retries) = (Some(file.clone()), Some(1));
        }));
        (0..3).for_each(|number| drop(uploader.push(crop(number))));
        server.wait_for(4);
        let stats = uploader.stats();
        assert_eq!((stats.queued, stats.failed, stats.dropped), (3, 0, 0), "{status}");
        assert_eq!(unhealthy(&events, BackendStatus::Unauthorized), 1, "{status}");
        std::fs::write(&file, "new").unwrap();
        assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
        assert_eq!((uploader.stats().sent, recoveries(&events)), (3, 1), "{status}");
        let reported = format!("{:?}", events.lock().unwrap());
        assert!(!reported.contains("old") && !reported.contains("new"), "{reported}");
    }
}

#[test]
fn a_missing_token_file_is_named_and_its_last_token_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let missing =
        with_settings("http://127.0.0.1:1".into(), |settings| settings.token_file = Some(file.clone()));
    let error = Uploader::start(missing, Arc::new(|_| ())).err().unwrap().to_string();
    assert!(error.contains(file.to_str().unwrap()) && error.contains("cannot be read"), "{error}");

    std::fs::write(&file, "secret").unwrap();
    let server = Server::answering([
        Answer::status(201),
        Answer::status(401),
        Answer::status(401),
        Answer::status(201),
    ]);
    let (uploader, events) =
        start(with_settings(server.url(), |settings| settings.token_file = Some(file.clone())));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    std::fs::remove_file(&file).unwrap();
    uploader.push(crop(2));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert!(server.received().iter().all(|r| r.header("authorization") == Some("Bearer secret")));
    assert_eq!(unhealthy(&events, BackendStatus::Unauthorized), 1);
}

#[test]
fn drop_policy_newest_drops_the_newest_crop() {
    let config = with_settings(String::new(), |settings| {
        (settings.max_queue, settings.drop_policy) = (3, DropPolicy::Newest);
    });
    let (server, uploader, _, hold) = occupied(config, Answer::status(204));
    (1..=5).for_each(|number| drop(uploader.push(crop(number))));
    assert_eq!((uploader.stats().dropped, uploader.stats().queued), (2, 4));
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let numbers: Vec<u8> =
        server.received().iter().flat_map(Received::images).map(|image| image[0]).collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
}

#[test]
fn drop_policy_block_blocks_and_can_be_interrupted() {
    let server = Server::answering([Answer::status(201).after(Duration::from_millis(100))]);
    let (uploader, _) = start(with_settings(server.url(), |settings| {
        (settings.max_queue, settings.batch_size, settings.drop_policy) = (2, 1, DropPolicy::Block);
    }));
    (0..12).for_each(|number| assert!(matches!(uploader.push(crop(number)), PushOutcome::Queued)));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!((uploader.stats().sent, uploader.stats().dropped), (12, 0));

    let (_server, uploader, ..) = occupied(
        with_settings(String::new(), |settings| {
            (settings.max_queue, settings.drop_policy) = (1, DropPolicy::Block);
        }),
        Answer::status(201),
    );
    thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        let uploader = &uploader;
        scope.spawn(move || {
            for number in 1.. {
                if let PushOutcome::Interrupted(back) = uploader.push(crop(number)) {
                    send.send(back.image[0]).unwrap();
                    return;
                }
            }
        });
        wait_until("a full queue", || uploader.stats().queued == 2);
        assert!(receive.try_recv().is_err(), "it waits");
        uploader.interrupt();
        assert_eq!(receive.recv_timeout(LONG), Ok(2), "and gets its crop back");
    });
}

#[test]
fn statistics_are_reported_at_the_configured_interval() {
    let server = Server::answering([Answer::status(201)]);
    let (uploader, events) = start(config(server.url()));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let reported = || -> Vec<Stats> {
        let events = events.lock().unwrap();
        events.iter().filter_map(|e| if let Event::Stats(stats) = e { Some(*stats) } else { None }).collect()
    };
    assert!(reported().is_empty(), "never, by default");
    let mut settings = config(server.url()).settings;
    settings.stats_interval = Duration::from_millis(50);
    uploader.update_settings(settings);
    wait_until("three statistics", || reported().len() >= 3);
    assert!(reported().iter().all(|stats| stats.sent == 1 && *stats == uploader.stats()));
}

/// Returns the overhead on the wire of crops of `bytes` bytes, as a share of their size.
fn overhead(bytes: usize, batch_size: usize) -> f64 {
    let server = Server::answering([Answer::json(201, r#"{"model_version":1,"stored":1,"faces":[]}"#)]);
    let (uploader, _) = start(with_settings(server.url(), |settings| {
        (settings.batch_size, settings.batch_delay) = (batch_size, Duration::from_secs(5));
    }));
    for number in 0..64 {
        uploader.push(Crop {
            image: Bytes::from(vec![number; bytes]),
            captured_at: datetime!(2024-05-06 07:08:09.123 UTC),
            track_id: Some(1000),
            run_id: Some(Uuid::from_u128(1)),
            bounding_box: Some(BoundingBox::new(1024, 512, 1134, 622)),
            area: None,
            ..crop(number)
        });
    }
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let stats = uploader.stats();
    assert_eq!(stats.image_bytes, 64 * bytes as u64);
    stats.bytes as f64 / stats.image_bytes as f64 - 1.0
}

#[test]
fn transport_overhead_is_small() {
    let batch_size = RuntimeSettings::default().batch_size;
    for (bytes, limit, single) in [(3000, 0.145, 0.28), (4000, 0.12, 0.21), (5000, 0.09, 0.17)] {
        let (together, alone) = (overhead(bytes, batch_size), overhead(bytes, 1));
        eprintln!(
            "{bytes} bytes: {:.1} % in batches of {batch_size}, {:.1} % alone",
            100.0 * together,
            100.0 * alone
        );
        assert!(together <= limit, "{bytes} bytes: {together}");
        assert!(alone <= single, "{bytes} bytes: {alone}");
    }
}

#[test]
fn each_request_has_a_trace_and_a_request_id() {
    let server = Server::answering([Answer::status(503), Answer::status(204)]);
    let (uploader, _) = start(config(server.url()));
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let received = server.received();
    let [first, second] = &received[..] else { panic!("not two requests") };
    let trace = |request: &Received| {
        let parts: Vec<String> =
            request.header("traceparent").unwrap().split('-').map(str::to_owned).collect();
        assert_eq!(parts.iter().map(String::len).collect::<Vec<_>>(), [2, 32, 16, 2], "{parts:?}");
        assert!(parts.iter().flat_map(|part| part.chars()).all(|c| c.is_ascii_hexdigit()), "{parts:?}");
        assert_eq!((parts[0].as_str(), parts[3].as_str()), ("00", "01"));
        (parts[1].clone(), parts[2].clone())
    };
    // A retry is another span of the same trace.
    let ((trace, span), (again, other)) = (trace(first), trace(second));
    assert!(trace == again && span != other, "{trace} {again} {span} {other}");
    assert_eq!(first.header("x-request-id"), Some(span.as_str()));
    assert_eq!(second.header("x-request-id"), Some(other.as_str()));
}

#[test]
fn an_unreachable_collector_loses_only_spans_and_is_reported_once() {
    let server = Server::answering([Answer::status(204)]);
    let collector = Some(format!("http://{}", dead_address()));
    let (uploader, events) = start(UploadConfig { otlp_endpoint: collector, ..config(server.url()) });
    uploader.push(crop(1));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    // Spans that are left are sent at the end.
    assert_eq!(uploader.stop().sent, 1);
    let lost = |event: &&Event| matches!(event, Event::SpansLost { .. });
    wait_until("the warning", || events.lock().unwrap().iter().filter(lost).count() == 1);
    assert_eq!(outages(&events), 0);
}

#[test]
fn an_invalid_collector_url_is_rejected() {
    for endpoint in ["127.0.0.1:4318", "grpc://collector:4317", "http://"] {
        let config = UploadConfig { otlp_endpoint: Some(endpoint.into()), ..config("http://backend".into()) };
        let error = Uploader::start(config, Arc::new(|_| ())).err().unwrap();
        assert!(matches!(error, UploadError::Collector { .. }), "{endpoint}: {error}");
        assert!(error.to_string().contains(&format!("otlp-endpoint `{endpoint}`")), "{error}");
    }
}
