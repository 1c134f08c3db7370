//! `facesink-http` against a server in the test's own process.

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

use std::time::{Duration, Instant};

use common::{
    bytes, decode, face, info, packed_frame,
    server::{Answer, Server, dead_address},
    with_faces,
};
use gst::prelude::*;
use gst_check::Harness;
use gst_video::VideoFormat;
use gstfacepipe::roi::{self, CropFacts, FaceRegion};

/// The element in a harness, with a bus.
struct Sink {
    harness: Harness,
    element: gst::Element,
    bus: gst::Bus,
}

impl Sink {
    /// Starts the element; its clock is not waited for.
    fn start(url: &str, properties: &str) -> Self {
        common::init();
        let line = format!("facepipe-facesink-http sync=false async=false backend-url={url} {properties}");
        let element = gst::parse::launch(&line).unwrap();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let harness = Harness::with_element(&element, Some("sink"), None);
        Self { harness, element, bus }
    }

    /// Starts it for the crops of facecrop.
    fn for_jpeg(url: &str, properties: &str) -> Self {
        let mut sink = Self::start(url, properties);
        sink.harness.set_src_caps_str("image/jpeg,framerate=25/1");
        sink.harness.play();
        sink
    }

    fn eos(&mut self) {
        assert!(self.harness.push_event(gst::event::Eos::new()));
    }

    fn count(&self, name: &str) -> u64 {
        self.element.property::<gst::Structure>("stats").get(name).unwrap()
    }

    /// The messages of a type that are on the bus now.
    fn messages(&self, wanted: gst::MessageType) -> Vec<gst::Message> {
        std::iter::from_fn(|| self.bus.pop_filtered(&[wanted])).collect()
    }

    /// Waits for a message of a type.
    fn wait_for(&self, wanted: gst::MessageType) -> gst::Message {
        let timeout = gst::ClockTime::from_seconds(10);
        self.bus.timed_pop_filtered(timeout, &[wanted]).expect("a message within 10 s")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.element.set_bus(None::<&gst::Bus>);
    }
}

/// A crop as facecrop makes them; the picture is `content`.
fn crop(content: &[u8], face: FaceRegion, captured_at: Option<Duration>) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_slice(content.to_vec());
    let writable = buffer.make_mut();
    writable.set_pts(gst::ClockTime::ZERO);
    roi::attach_crop(
        writable,
        &CropFacts { face, frame_width: 1920, frame_height: 1080, captured_at, running_time: None },
    );
    buffer
}

fn structure(message: &gst::Message) -> gst::Structure {
    message.structure().unwrap().to_owned()
}

fn warning_text(message: &gst::Message) -> String {
    let gst::MessageView::Warning(warning) = message.view() else { panic!("{message:?}") };
    warning.error().to_string()
}

#[test]
fn a_crop_is_posted_as_it_is_with_its_facts() {
    for (endpoint, path) in [
        ("store-results", "/face-recognition/store-results"),
        ("send-results", "/face-recognition/send-results"),
        ("get-results", "/face-recognition/get-results"),
        ("dry-run", "/face-recognition/dry-run"),
    ] {
        let server = Server::answering([Answer::status(204)]);
        let properties = format!("camera-id=gate-1 camera-location=Lobby endpoint={endpoint}");
        let mut sink = Sink::for_jpeg(&server.url(), &properties);
        let tracked = FaceRegion { track_id: Some(3), ..face(10, 20, 30, 40) };
        sink.harness.push(crop(b"a picture", tracked, Some(Duration::from_secs(1_714_979_289)))).unwrap();
        sink.eos();
        let [request] = &server.received()[..] else { panic!("not one request") };
        assert_eq!(request.line, format!("POST {path} HTTP/1.1"));
        assert_eq!(request.images(), [b"a picture"]);
        let picture = request.parts.iter().find(|part| part.name == "image").unwrap();
        assert_eq!(picture.content_type.as_deref(), Some("image/jpeg"));
        assert_eq!(request.field("camera_id"), "gate-1");
        assert_eq!(request.field("location"), "Lobby");
        assert_eq!(request.field("captured_at"), "2024-05-06T07:08:09Z");
        assert_eq!(request.field("box"), "10,20,40,60");
        assert_eq!(request.field("track_id"), "3");
        let key = request.field("key");
        assert_eq!((key.len(), key.as_bytes()[14]), (36, b'7'), "a UUID of version 7: {key}");
    }
}

#[test]
fn any_jpeg_picture_is_taken_and_without_a_name_the_camera_is_this_machine() {
    let server = Server::answering([Answer::status(204)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    let mut picture = gst::Buffer::from_slice(b"from elsewhere");
    picture.make_mut().set_pts(gst::ClockTime::ZERO);
    sink.harness.push(picture).unwrap();
    sink.eos();
    let [request] = &server.received()[..] else { panic!("not one request") };
    assert!(request.all("box").is_empty() && request.all("track_id").is_empty());
    assert_eq!(request.field("camera_id"), gst::glib::host_name().as_str());
    let now = time::OffsetDateTime::now_utc();
    let format = &time::format_description::well_known::Rfc3339;
    let captured_at = time::OffsetDateTime::parse(&request.field("captured_at"), format).unwrap();
    assert!((now - captured_at).abs() < time::Duration::seconds(10), "{captured_at}");
}

#[test]
fn the_capture_time_is_never_in_the_future_and_that_of_a_recording_counts_from_its_start() {
    let far_future = Duration::from_secs(4_000_000_000);
    let server = Server::answering([Answer::status(204)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), Some(far_future))).unwrap();
    sink.eos();
    let captured_at = server.received()[0].field("captured_at");
    let now = time::OffsetDateTime::now_utc();
    assert!(captured_at.starts_with(&now.year().to_string()), "{captured_at}");

    let server = Server::answering([Answer::status(204)]);
    let mut sink = Sink::for_jpeg(&server.url(), "capture-start=2024-05-06T07:08:09+02:00");
    let mut late = crop(b"x", face(0, 0, 9, 9), Some(far_future));
    late.make_mut().set_pts(gst::ClockTime::from_mseconds(61_500));
    sink.harness.push(late).unwrap();
    sink.eos();
    assert_eq!(server.received()[0].field("captured_at"), "2024-05-06T07:09:10.5+02:00");
}

#[test]
fn raw_video_is_cropped_as_facecrop_does() {
    common::init();
    let server = Server::answering([Answer::status(201)]);
    let info = info(VideoFormat::Rgb, 320, 240);
    let faces = [
        FaceRegion { track_id: Some(1), ..face(10, 10, 40, 50) },
        FaceRegion { track_id: Some(2), ..face(200, 100, 100, 100) },
        FaceRegion { track_id: Some(3), ..face(0, 0, 20, 20) },
    ];
    let frame = || {
        let slopes = |x: u32, y: u32| [(x / 2) as u8, y as u8, 200];
        with_faces(packed_frame(&info, slopes), 0, &faces)
    };
    let caps = info.to_caps().unwrap();
    let mut cropper = Harness::new_parse("facepipe-facecrop policy=every");
    cropper.set_src_caps(caps.clone());
    cropper.push(frame()).unwrap();
    let expected: Vec<Vec<u8>> = std::iter::from_fn(|| cropper.try_pull()).map(|crop| bytes(&crop)).collect();
    assert_eq!(expected.len(), 2, "the third face is too small");

    let mut sink = Sink::start(&server.url(), "policy=every");
    sink.harness.set_src_caps(caps);
    sink.harness.play();
    sink.harness.push(with_faces(packed_frame(&info, |_, _| [0; 3]), 0, &[])).unwrap();
    sink.harness.push(frame()).unwrap();
    sink.eos();
    let mut found: Vec<(Vec<u8>, String)> = server
        .received()
        .iter()
        .flat_map(|request| request.images().into_iter().zip(request.all("box")))
        .collect();
    found.sort_by(|a, b| a.1.cmp(&b.1));
    let boxes = ["10,10,50,60", "200,100,300,200"].map(String::from);
    assert!(found == expected.into_iter().zip(boxes).collect::<Vec<_>>(), "other pictures or boxes");
    assert_eq!(sink.count("sent"), 2);
}

#[test]
fn the_crop_properties_hold_for_raw_video() {
    let server = Server::answering([Answer::status(201)]);
    let mut sink = Sink::start(&server.url(), "margin=0 min-size=60 max-size=40 quality=50");
    let info = info(VideoFormat::Rgb, 320, 240);
    sink.harness.set_src_caps(info.to_caps().unwrap());
    sink.harness.play();
    let faces = [face(10, 10, 59, 59), face(100, 100, 80, 60)];
    sink.harness.push(with_faces(packed_frame(&info, |_, _| [99; 3]), 0, &faces)).unwrap();
    sink.eos();
    let [request] = &server.received()[..] else { panic!("not one request") };
    let [picture] = &request.images()[..] else { panic!("not one picture") };
    assert_eq!(decode(picture).dimensions(), (40, 30));
}

#[test]
fn the_answer_becomes_an_element_message() {
    let answer = r#"{"model_version":"2024-05-06-1","stored":1,"faces":[{"image":0,
        "bounding_box":{"left":4.5,"top":5,"right":60.25,"bottom":70},"detection_confidence":0.99,
        "top_prediction":{"label":"Ada Lovelace","confidence":0.875},"decision":"known","threshold":0.355,
        "all_predictions":[{"label":"Ada Lovelace","confidence":0.875}]}]}"#;
    let server = Server::answering([Answer::json(201, answer)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    sink.harness.push(crop(b"x", face(10, 20, 30, 40), Some(Duration::from_secs(1_714_979_289)))).unwrap();
    sink.eos();
    let result = structure(&sink.wait_for(gst::MessageType::Element));
    assert_eq!(result.name(), "facepipe-result");
    assert_eq!(result.get::<&str>("key").unwrap(), server.received()[0].field("key"));
    assert_eq!(result.get::<u32>("status"), Ok(201));
    assert_eq!(result.get::<&str>("captured-at"), Ok("2024-05-06T07:08:09Z"));
    assert_eq!(result.get::<&str>("model-version"), Ok("2024-05-06-1"));
    assert_eq!(result.get::<i32>("track-id"), Ok(0));
    let sides = ["left", "top", "right", "bottom"].map(|side| result.get::<u32>(side).unwrap());
    assert_eq!(sides, [10, 20, 40, 60]);
    let faces = result.get::<gst::Array>("faces").unwrap();
    let [face] = faces.as_slice() else { panic!("{} faces", faces.len()) };
    let face = face.get::<gst::Structure>().unwrap();
    assert_eq!(face.get::<&str>("decision"), Ok("known"));
    assert_eq!(face.get::<&str>("label"), Ok("Ada Lovelace"));
    assert_eq!(face.get::<f64>("confidence"), Ok(0.875));
    assert_eq!(face.get::<f64>("threshold"), Ok(0.355));
    assert_eq!(face.get::<f64>("detection-confidence"), Ok(0.99));
    let sides = ["box-left", "box-top", "box-right", "box-bottom"].map(|side| face.get::<f64>(side).unwrap());
    assert_eq!(sides, [4.5, 5.0, 60.25, 70.0]);
}

#[test]
fn a_busy_backend_is_asked_again_with_the_same_key_and_without_a_warning() {
    let server = Server::answering([Answer::status(429).header("Retry-After", "1"), Answer::status(201)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    sink.eos();
    let [first, second] = &server.received()[..] else { panic!("not two requests") };
    assert_eq!(first.field("key"), second.field("key"));
    assert!(second.at - first.at >= Duration::from_secs(1));
    assert!(sink.messages(gst::MessageType::Warning).is_empty());
    assert_eq!((sink.count("sent"), sink.count("retries")), (1, 1));
}

#[test]
fn a_backend_that_is_down_is_one_warning_and_its_return_one_message() {
    let address = dead_address();
    let mut sink = Sink::for_jpeg(&format!("http://{address}"), "");
    for _ in 0..20 {
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    }
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains(&address.to_string()) && warning.contains("cannot be reached"), "{warning}");
    // Long enough for several further attempts.
    std::thread::sleep(Duration::from_secs(2));
    assert!(sink.messages(gst::MessageType::Warning).is_empty(), "one outage, one warning");
    assert!(sink.messages(gst::MessageType::Error).is_empty());
    assert!(sink.count("retries") >= 2);

    let server = Server::start_at(address, |_| Answer::status(201));
    sink.eos();
    assert_eq!(sink.messages(gst::MessageType::Info).len(), 1);
    assert_eq!((sink.count("sent"), sink.count("failed"), sink.count("dropped")), (20, 0, 0));
    let pictures: usize = server.received().iter().map(|request| request.images().len()).sum();
    assert_eq!(pictures, 20);
}

#[test]
fn a_refused_crop_is_reported_and_the_pipeline_goes_on() {
    let refusal = r#"{"error":{"code":"invalid_camera_id","message":"camera_id is empty","details":{}}}"#;
    let server = Server::answering([Answer::json(400, refusal)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    for requests in 1..=2 {
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
        server.wait_for(requests);
    }
    sink.eos();
    let messages: Vec<gst::Message> = std::iter::from_fn(|| sink.bus.pop()).collect();
    let of_type = |wanted| messages.iter().filter(move |m| m.type_() == wanted).collect::<Vec<_>>();
    let rejected = of_type(gst::MessageType::Element);
    assert_eq!(rejected.len(), 2);
    let rejected = structure(rejected[0]);
    assert_eq!(rejected.name(), "facepipe-rejected");
    assert_eq!(rejected.get::<u32>("status"), Ok(400));
    assert_eq!(rejected.get::<&str>("message"), Ok("camera_id is empty"));
    let warnings = of_type(gst::MessageType::Warning);
    assert_eq!(warnings.len(), 1, "the first of a row only");
    let warning = warning_text(warnings[0]);
    assert!(warning.contains("400") && warning.contains("camera_id is empty"), "{warning}");
    assert_eq!(sink.count("failed"), 2);
}

#[test]
fn the_end_of_the_stream_waits_for_what_is_queued() {
    let server = Server::answering([Answer::status(201).after(Duration::from_millis(700))]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    let begin = Instant::now();
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    assert!(begin.elapsed() < Duration::from_millis(500), "rendering doesn't wait");
    sink.eos();
    assert!(begin.elapsed() >= Duration::from_millis(700), "the end does");
    assert_eq!((sink.count("sent"), sink.count("queued")), (1, 0));
    assert!(sink.messages(gst::MessageType::Warning).is_empty());
}

#[test]
fn the_end_of_the_stream_waits_no_longer_than_its_limit() {
    let server = Server::answering([Answer::status(201).after(Duration::from_secs(30))]);
    let mut sink = Sink::for_jpeg(&server.url(), "eos-timeout=1");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    let begin = Instant::now();
    sink.eos();
    let waited = begin.elapsed().as_secs_f64();
    assert!((0.9..3.0).contains(&waited), "{waited} s");
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains("1 crops") && warning.contains("eos-timeout"), "{warning}");
    sink.element.set_state(gst::State::Null).unwrap();
    assert_eq!(
        (sink.count("dropped"), sink.count("queued")),
        (1, 0),
        "and gives up what is left when stopped"
    );
}

#[test]
fn stopping_interrupts_the_end_of_the_stream() {
    let mut sink = Sink::for_jpeg(&format!("http://{}", dead_address()), "eos-timeout=60");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    let element = sink.element.clone();
    let begin = Instant::now();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        element.set_state(gst::State::Null).unwrap();
    });
    sink.harness.push_event(gst::event::Eos::new());
    stopper.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn what_a_full_queue_loses_is_counted() {
    let server = Server::answering([Answer::status(201).after(Duration::from_millis(800))]);
    let mut sink = Sink::for_jpeg(&server.url(), "max-queue=4");
    for _ in 0..2 {
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    server.wait_for(2);
    for _ in 0..10 {
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    }
    assert_eq!((sink.count("dropped"), sink.count("queued")), (6, 6), "two under way, four waiting");
    sink.eos();
    assert_eq!((sink.count("sent"), sink.count("dropped"), sink.count("queued")), (6, 6, 0));
}

#[test]
fn the_statistics_count_the_bytes_on_the_wire_and_outlive_the_run() {
    let server = Server::answering([Answer::json(201, r#"{"faces":[]}"#)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    for _ in 0..5 {
        sink.harness.push(crop(&[7; 3000], face(0, 0, 9, 9), None)).unwrap();
    }
    sink.eos();
    sink.element.set_state(gst::State::Null).unwrap();
    let arrived: usize = server.received().iter().map(|request| request.bytes).sum();
    assert_eq!(sink.count("bytes"), arrived as u64);
    assert!(sink.count("bytes") > 15_000 && sink.count("bytes-received") > 0);
    assert_eq!((sink.count("sent"), sink.count("failed"), sink.count("queued")), (5, 0, 0));
    assert_eq!(sink.count("requests"), server.received().len() as u64);
}

/// The error message on the bus of an element that doesn't start.
fn error_of(properties: &str) -> String {
    common::init();
    let bus = gst::Bus::new();
    let element = gst::parse::launch(&format!("facepipe-facesink-http {properties}")).unwrap();
    element.set_bus(Some(&bus));
    let started = element.set_state(gst::State::Paused);
    let message = bus.pop_filtered(&[gst::MessageType::Error]);
    element.set_bus(None::<&gst::Bus>);
    element.set_state(gst::State::Null).unwrap();
    assert!(started.is_err(), "{properties}: it started");
    let message = message.expect("an error message on the bus");
    let gst::MessageView::Error(error) = message.view() else { unreachable!() };
    error.error().to_string()
}

#[test]
fn settings_of_no_use_are_errors_that_name_the_property_and_the_value() {
    let url = error_of("backend-url=backend:8080");
    assert!(url.contains("backend-url `backend:8080`") && url.contains("http://"), "{url}");
    let start = error_of("capture-start=yesterday");
    assert!(start.contains("capture-start is `yesterday`") && start.contains("RFC 3339"), "{start}");
}

#[test]
fn gaps_let_the_pipeline_start_and_end_without_any_face() {
    common::init();
    let server = Server::answering([Answer::status(201)]);
    let line = format!(
        "videotestsrc num-buffers=10 ! video/x-raw,format=NV12,width=320,height=240,framerate=50/1 \
         ! facepipe-facecrop ! facepipe-facesink-http backend-url={}",
        server.url()
    );
    let pipeline = gst::parse::launch(&line).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let wanted = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(10), &wanted);
    let position = pipeline.query_position::<gst::ClockTime>();
    pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(message.map(|m| m.type_()), Some(gst::MessageType::Eos));
    assert!(position.is_some_and(|p| p >= gst::ClockTime::from_mseconds(150)), "{position:?}");
    assert!(server.received().is_empty());
}
