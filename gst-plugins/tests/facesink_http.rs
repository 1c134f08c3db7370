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

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    bytes, decode, face, info, packed_frame,
    server::{Answer, Hold, Server, dead_address},
    with_faces,
};
use facepipe_detector::BoundingBox;
use facepipe_test_support::wait_until;
use gst::prelude::*;
use gst_check::Harness;
use gst_video::VideoFormat;
use gstfacepipe::{
    roi::{self, CropArea, CropMetadata, FaceRegion},
    track_events, upload,
};
use rustls::pki_types::pem::PemObject;
use uuid::Uuid;

/// Limit for what is certain to happen.
const LONG: gst::ClockTime = gst::ClockTime::from_seconds(60);

/// Properties with which an incomplete batch is sent at the end of the stream, and not before.
const AT_EOS: &str = "batch-delay=4000000000";

/// Returns a count of the element.
fn count(element: &gst::Element, name: &str) -> u64 {
    element.property::<gst::Structure>("stats").get(name).unwrap()
}

/// The element in a harness, with a bus.
struct Sink {
    harness: Harness,
    element: gst::Element,
    bus: gst::Bus,
}

impl Sink {
    /// Starts the element without synchronisation to a clock.
    fn start(url: &str, properties: &str) -> Self {
        common::init();
        let line = format!(
            "facepipe-facesink-http sync=false async=false batch-delay=0 certainty=0 backend-url={url} {properties}"
        );
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
        count(&self.element, name)
    }

    /// Returns the messages of a type that are on the bus now; removes all others.
    fn messages(&self, wanted: gst::MessageType) -> Vec<gst::Message> {
        std::iter::from_fn(|| self.bus.pop_filtered(&[wanted])).collect()
    }

    /// Returns all messages that are on the bus now.
    fn all(&self) -> Vec<gst::Message> {
        std::iter::from_fn(|| self.bus.pop()).collect()
    }

    /// Returns the element messages of a name that are on the bus now; removes all others.
    fn structures(&self, name: &str) -> Vec<gst::Structure> {
        named(&self.all(), name)
    }

    /// Waits for an element message of a name.
    fn wait_for_structure(&self, name: &str) -> gst::Structure {
        loop {
            let found = structure(&self.wait_for(gst::MessageType::Element));
            if found.name() == name {
                return found;
            }
        }
    }

    /// Waits for a message of a type.
    fn wait_for(&self, wanted: gst::MessageType) -> gst::Message {
        self.bus.timed_pop_filtered(LONG, &[wanted]).expect("a message within a minute")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.element.set_bus(None::<&gst::Bus>);
    }
}

/// The area of the crops of these tests.
const AREA: CropArea =
    CropArea { bounding_box: BoundingBox::new(5, 10, 45, 70), picture_width: 40, picture_height: 60 };

/// Returns a crop as facecrop makes them; the image is `content`.
fn crop(content: &[u8], face: FaceRegion, captured_at: Option<Duration>) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_slice(content.to_vec());
    let writable = buffer.make_mut();
    writable.set_pts(gst::ClockTime::ZERO);
    roi::attach_crop(
        writable,
        &CropMetadata {
            face,
            frame_width: 1920,
            frame_height: 1080,
            area: Some(AREA),
            captured_at,
            running_time: None,
            clock_refused: false,
        },
    );
    buffer
}

/// Returns the structures of this name.
fn named(messages: &[gst::Message], name: &str) -> Vec<gst::Structure> {
    let elements = messages.iter().filter(|message| message.type_() == gst::MessageType::Element);
    elements.map(structure).filter(|structure| structure.name() == name).collect()
}

fn structure(message: &gst::Message) -> gst::Structure {
    message.structure().unwrap().to_owned()
}

fn warning_text(message: &gst::Message) -> String {
    let gst::MessageView::Warning(warning) = message.view() else { panic!("{message:?}") };
    warning.error().to_string()
}

#[test]
fn a_crop_is_posted_unchanged_with_its_metadata() {
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
        let image = request.parts.iter().find(|part| part.name == "image").unwrap();
        assert_eq!(image.content_type.as_deref(), Some("image/jpeg"));
        assert_eq!(request.field("camera_id"), "gate-1");
        assert_eq!(request.field("location"), "Lobby");
        assert_eq!(request.field("captured_at"), "2024-05-06T07:08:09Z");
        assert_eq!(request.field("box"), "10,20,40,60");
        assert_eq!(request.field("track_id"), "3");
        assert_eq!(request.field("run_id").len(), 22, "the sink's own run, where the tracker announces none");
        let key = request.field("key");
        let short = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        assert!(key.len() == 22 && key.chars().all(short), "128 bits in base64url: {key}");
    }
}

#[test]
fn track_ids_belong_to_the_run_of_the_tracker() {
    let server = Server::answering([Answer::status(204)]);
    let mut sink = Sink::for_jpeg(&server.url(), "batch-size=1");
    let tracked = FaceRegion { track_id: Some(1), ..face(10, 20, 30, 40) };
    let runs = [7, 8].map(Uuid::from_u128);
    for run in runs {
        sink.harness.push_event(track_events::track_run(run));
        sink.harness.push(crop(b"a picture", tracked, None)).unwrap();
    }
    sink.eos();
    let mut received: Vec<String> = server.received().iter().map(|request| request.field("run_id")).collect();
    received.sort();
    assert_eq!(received, runs.map(upload::encode_uuid));
}

#[test]
fn any_jpeg_is_accepted_and_camera_id_defaults_to_the_host_name() {
    let server = Server::answering([Answer::status(204)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    let mut picture = gst::Buffer::from_slice(b"from elsewhere");
    picture.make_mut().set_pts(gst::ClockTime::ZERO);
    sink.harness.push(picture).unwrap();
    sink.eos();
    let [request] = &server.received()[..] else { panic!("not one request") };
    assert!(
        request.all("box").is_empty()
            && request.all("track_id").is_empty()
            && request.all("run_id").is_empty()
    );
    assert_eq!(request.field("camera_id"), gst::glib::host_name().as_str());
    let now = time::OffsetDateTime::now_utc();
    let format = &time::format_description::well_known::Rfc3339;
    let captured_at = time::OffsetDateTime::parse(&request.field("captured_at"), format).unwrap();
    assert!((now - captured_at).abs() < time::Duration::seconds(10), "{captured_at}");
}

#[test]
fn capture_time_is_never_in_the_future_and_counts_from_capture_start_for_recordings() {
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
fn crops_with_a_refused_camera_clock_are_counted() {
    let server = Server::answering([Answer::status(204)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    for clock_refused in [true, false, true] {
        let mut buffer = gst::Buffer::from_slice(b"x");
        let now = std::time::UNIX_EPOCH.elapsed().ok();
        let facts = CropMetadata {
            face: face(0, 0, 9, 9),
            frame_width: 1920,
            frame_height: 1080,
            area: None,
            captured_at: now,
            running_time: None,
            clock_refused,
        };
        roi::attach_crop(buffer.make_mut(), &facts);
        sink.harness.push(buffer).unwrap();
    }
    assert_eq!(sink.count("clock-refused"), 2);
    // An image that is not from facecrop, of a camera whose clock says 2000.
    let mut picture = gst::Buffer::from_slice(b"from elsewhere");
    let unix = gst::Caps::builder("timestamp/x-unix").build();
    let said = gst::ClockTime::from_seconds(946_684_800);
    gst::ReferenceTimestampMeta::add(picture.make_mut(), &unix, said, None);
    sink.harness.push(picture).unwrap();
    sink.eos();
    assert_eq!(sink.count("clock-refused"), 3);
    let received = server.received();
    assert!(received.iter().flat_map(|r| r.all("captured_at")).all(|time| !time.starts_with("2000")));
    assert_eq!(sink.messages(gst::MessageType::Warning).len(), 1, "about its clock");
}

#[test]
fn a_recording_with_decreasing_timestamps_continues_from_its_start() {
    let server = Server::answering([Answer::status(204)]);
    let info = info(VideoFormat::Rgb, 320, 240);
    let start = "capture-start=2024-05-06T07:08:09Z policy=every batch-size=1 workers=1";
    let mut sink = Sink::start(&server.url(), start);
    sink.harness.set_src_caps(info.to_caps().unwrap());
    sink.harness.play();
    for ms in [0, 1000, 2000, 40, 1040] {
        let frame = with_faces(packed_frame(&info, |_, _| [90; 3]), ms, &[face(50, 50, 60, 60)]);
        sink.harness.push(frame).unwrap();
    }
    sink.eos();
    let times: Vec<String> = server.received().iter().flat_map(|r| r.all("captured_at")).collect();
    let seconds = ["09Z", "10Z", "11Z", "11.04Z", "12.04Z"].map(|s| format!("2024-05-06T07:08:{s}"));
    assert_eq!(times, seconds);
}

/// Returns the warnings of an element about frames without a detector, the last of them as `edit` leaves it.
fn unsearched(sink: &mut Sink, frames: u64, edit: impl Fn(&mut gst::BufferRef)) -> Vec<String> {
    let info = info(VideoFormat::Rgb, 32, 32);
    sink.harness.set_src_caps(info.to_caps().unwrap());
    sink.harness.play();
    for frame in 0..frames {
        let mut buffer = with_faces(packed_frame(&info, |_, _| [90; 3]), 40 * frame, &[]);
        if frame == frames - 1 {
            edit(buffer.make_mut());
        }
        sink.harness.push(buffer).unwrap();
    }
    sink.eos();
    sink.messages(gst::MessageType::Warning).iter().map(warning_text).collect()
}

#[test]
fn frames_without_a_detector_are_reported_once() {
    let server = Server::answering([Answer::status(204)]);
    for frames in [5, 300, 700] {
        let warnings = unsearched(&mut Sink::start(&server.url(), ""), frames, |_| {});
        assert_eq!(warnings.len(), 1, "{frames}: {warnings:?}");
        assert!(warnings[0].contains("put facedetect before"), "{warnings:?}");
    }
    // A face of another detector, and a frame in which ours found none.
    let other = |frame: &mut gst::BufferRef| {
        gst_video::VideoRegionOfInterestMeta::add(frame, "face", (1, 1, 9, 9));
    };
    let ours = |frame: &mut gst::BufferRef| gstfacepipe::detection_mark::mark(frame, true);
    assert!(unsearched(&mut Sink::start(&server.url(), ""), 299, other).is_empty());
    assert!(unsearched(&mut Sink::start(&server.url(), ""), 299, ours).is_empty());
}

#[test]
fn a_pipeline_without_a_detector_warns_once() {
    common::init();
    let server = Server::answering([Answer::status(204)]);
    let elements = [
        "facepipe-facetrack".to_owned(),
        "facepipe-facetrack ! facepipe-facecrop".to_owned(),
        "facepipe-facecrop".to_owned(),
        "facepipe-faceoverlay".to_owned(),
        format!(
            "facepipe-facetrack ! queue ! facepipe-faceoverlay ! facepipe-facesink-http backend-url={}",
            server.url()
        ),
    ];
    for elements in elements {
        let sink = if elements.contains("sink") { "" } else { " ! fakesink" };
        let line = format!(
            "videotestsrc num-buffers=320 ! video/x-raw,format=I420,width=32,height=32,framerate=1000/1 ! {elements}{sink}"
        );
        let pipeline = gst::parse::launch(&line).unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        let bus = pipeline.bus().unwrap();
        let wanted = [gst::MessageType::Eos, gst::MessageType::Error, gst::MessageType::Warning];
        let mut warnings = Vec::new();
        loop {
            let message = bus.timed_pop_filtered(LONG, &wanted).expect("an end");
            match message.type_() {
                gst::MessageType::Warning => warnings.push(warning_text(&message)),
                kind => break assert_eq!(kind, gst::MessageType::Eos, "{elements}: {message:?}"),
            }
        }
        pipeline.set_state(gst::State::Null).unwrap();
        assert_eq!(warnings.len(), 1, "{elements}: {warnings:?}");
    }
}

#[test]
fn raw_video_is_cropped_as_facecrop_does() {
    common::init();
    let server = Server::answering([Answer::status(201)]);
    let info = info(VideoFormat::Rgb, 320, 240);
    let faces = [
        FaceRegion { track_id: Some(1), ..face(10, 10, 40, 50) },
        FaceRegion { track_id: Some(2), ..face(200, 100, 100, 100) },
        FaceRegion { track_id: Some(3), ..face(0, 0, 19, 19) },
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
    assert!(found == expected.into_iter().zip(boxes).collect::<Vec<_>>(), "other images or boxes");
    assert_eq!(sink.count("sent"), 2);
}

#[test]
fn best_shots_of_a_run_are_sent_with_its_id_when_another_run_begins() {
    let server = Server::answering([Answer::status(201)]);
    let mut sink = Sink::start(&server.url(), "batch-size=1");
    let info = info(VideoFormat::Rgb, 320, 240);
    sink.harness.set_src_caps(info.to_caps().unwrap());
    sink.harness.play();
    let runs = [7, 8].map(Uuid::from_u128);
    let noise = |x: u32, y: u32| [((x / 2 * 7919 + y / 2 * 104_729) % 251) as u8; 3];
    for (run, milliseconds, size) in [(runs[0], 0, 60), (runs[0], 40, 64), (runs[1], 80, 60)] {
        sink.harness.push_event(track_events::track_run(run));
        let tracked = FaceRegion { track_id: Some(1), ..face(20, 20, size, size) };
        sink.harness.push(with_faces(packed_frame(&info, noise), milliseconds, &[tracked])).unwrap();
    }
    sink.eos();
    let mut received: Vec<(String, String)> =
        server.received().iter().map(|request| (request.field("run_id"), request.field("box"))).collect();
    received.sort();
    let [first, second] = runs.map(upload::encode_uuid);
    let expected = [(first.clone(), "20,20,80,80"), (first, "20,20,84,84"), (second, "20,20,80,80")];
    assert_eq!(received, expected.map(|(run, bounds)| (run, bounds.to_owned())));
}

#[test]
fn crop_properties_apply_to_raw_video() {
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
fn a_response_becomes_an_element_message() {
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
    assert_eq!(CropArea::from_structure(&result), Some(AREA));
    assert_eq!(result.get::<u32>("crop-right"), Ok(45));
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
fn requests_to_a_busy_backend_are_retried_with_the_same_key_and_no_warning() {
    let server = Server::answering([Answer::status(429).header("Retry-After", "1"), Answer::status(201)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    sink.eos();
    let [first, second] = &server.received()[..] else { panic!("not two requests") };
    assert_eq!(first.field("key"), second.field("key"));
    assert!(second.at - first.at >= Duration::from_secs(1));
    assert_eq!((sink.count("sent"), sink.count("retries")), (1, 1));
    let messages = sink.all();
    assert!(messages.iter().all(|message| message.type_() != gst::MessageType::Warning));
    let [busy, ok] = &named(&messages, "facepipe-backend")[..] else { panic!("not two messages") };
    assert_eq!((busy.get("state"), busy.get("status")), (Ok("busy"), Ok(429_u32)));
    assert_eq!((busy.get("retry-in"), ok.get("state")), (Ok(1000_u64), Ok("ok")));
}

#[test]
fn an_outage_is_one_warning_and_the_recovery_one_message() {
    let address = dead_address();
    let mut sink = Sink::for_jpeg(&format!("http://{address}"), "");
    for _ in 0..20 {
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    }
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains(&address.to_string()) && warning.contains("cannot be reached"), "{warning}");
    wait_until("several further attempts", || sink.count("retries") >= 2);
    assert!(sink.messages(gst::MessageType::Warning).is_empty(), "one outage, one warning");
    assert!(sink.messages(gst::MessageType::Error).is_empty());

    let server = Server::start_at(address, |_| Answer::status(201));
    sink.eos();
    assert_eq!(sink.messages(gst::MessageType::Info).len(), 1);
    assert_eq!((sink.count("sent"), sink.count("failed"), sink.count("dropped")), (20, 0, 0));
    let pictures: usize = server.received().iter().map(|request| request.images().len()).sum();
    assert_eq!(pictures, 20);
}

#[test]
fn a_rejected_crop_is_reported_and_the_pipeline_continues() {
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
    let elements = of_type(gst::MessageType::Element);
    let mut rejected =
        elements.iter().map(|m| structure(m)).filter(|s| s.name() == "facepipe-rejected").collect::<Vec<_>>();
    assert_eq!(rejected.len(), 2);
    let rejected = rejected.remove(0);
    assert_eq!(rejected.get::<&str>("code"), Ok("invalid_camera_id"));
    assert_eq!(rejected.get::<u32>("status"), Ok(400));
    assert_eq!(rejected.get::<&str>("message"), Ok("camera_id is empty"));
    let warnings = of_type(gst::MessageType::Warning);
    assert_eq!(warnings.len(), 2, "the first of a row only, and at the end how many there were");
    let (warning, end) = (warning_text(warnings[0]), warning_text(warnings[1]));
    assert!(end.contains("2 crops were lost: 2 were refused or given up, 0 gave way"), "{end}");
    assert!(warning.contains("400") && warning.contains("camera_id is empty"), "{warning}");
    assert_eq!(sink.count("failed"), 2);
}

#[test]
fn eos_waits_for_queued_crops() {
    let hold = Hold::default();
    let server = Server::answering([Answer::status(201).held(&hold)]);
    let mut sink = Sink::for_jpeg(&server.url(), AT_EOS);
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    assert_eq!((sink.count("sent"), sink.count("queued")), (0, 1), "rendering doesn't wait");
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            server.wait_for(1);
            assert!(!ended.load(Ordering::SeqCst), "the end does");
            hold.release();
        });
        sink.eos();
        ended.store(true, Ordering::SeqCst);
    });
    assert_eq!((sink.count("sent"), sink.count("queued")), (1, 0));
    assert!(sink.messages(gst::MessageType::Warning).is_empty());
}

#[test]
fn eos_waits_at_most_eos_timeout() {
    // If it waited for the answer, this would never end.
    let server = Server::answering([Answer::status(201).held(&Hold::default())]);
    let mut sink = Sink::for_jpeg(&server.url(), "eos-timeout=1");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    let begin = Instant::now();
    sink.eos();
    let waited = begin.elapsed();
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
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
fn stopping_interrupts_the_wait_at_eos() {
    let server = Server::answering([Answer::status(201).held(&Hold::default())]);
    let mut sink = Sink::for_jpeg(&server.url(), &format!("eos-timeout=600 {AT_EOS}"));
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    let element = sink.element.clone();
    let stopper = thread::spawn(move || {
        server.wait_for(1);
        element.set_state(gst::State::Null).unwrap();
    });
    // If it waited for the answer or the limit, the test would be stopped.
    sink.harness.push_event(gst::event::Eos::new());
    stopper.join().unwrap();
    let warnings: Vec<String> = sink.messages(gst::MessageType::Warning).iter().map(warning_text).collect();
    assert!(!warnings.iter().any(|warning| warning.contains("eos-timeout")), "{warnings:?}");
}

#[test]
fn crops_dropped_by_a_full_queue_are_counted() {
    let hold = Hold::default();
    let server = Server::answering([Answer::status(201).held(&hold)]);
    let mut sink = Sink::for_jpeg(&server.url(), "max-queue=4");
    for requests in 1..=2 {
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
        server.wait_for(requests);
    }
    for _ in 0..10 {
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    }
    assert_eq!((sink.count("dropped"), sink.count("queued")), (6, 6), "two under way, four waiting");
    hold.release();
    sink.eos();
    assert_eq!((sink.count("sent"), sink.count("dropped"), sink.count("queued")), (6, 6, 0));
}

#[test]
fn statistics_count_bytes_on_the_wire_and_survive_stop() {
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

fn error_of(properties: &str) -> String {
    common::start_error(&format!("facepipe-facesink-http {properties}"))
}

#[test]
fn invalid_settings_are_errors_that_name_the_property_and_the_value() {
    let url = error_of("backend-url=backend:8080");
    assert!(url.contains("backend-url `backend:8080`") && url.contains("http://"), "{url}");
    let start = error_of("capture-start=yesterday");
    assert!(start.contains("capture-start is `yesterday`") && start.contains("RFC 3339"), "{start}");
    let zone = error_of("capture-start=2024-05-06T07:08:09");
    assert!(zone.contains("no time zone") && zone.contains("2024-05-06T07:08:09Z for UTC"), "{zone}");
    let token = error_of("token=two\\ words");
    assert!(token.contains("token contains a space") && !token.contains("two"), "{token}");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let file = error_of(&format!("token-file={}", path("none")));
    assert!(file.contains(&path("none")) && file.contains("cannot be read"), "{file}");
    std::fs::write(path("ca.pem"), "no certificate").unwrap();
    let ca = error_of(&format!("ca-file={}", path("ca.pem")));
    assert!(ca.contains(&path("ca.pem")) && ca.contains("no certificate in PEM"), "{ca}");
    let spool = error_of(&format!("spool-dir={}", path("ca.pem/spool")));
    assert!(spool.contains("spool-dir") && spool.contains(&path("ca.pem/spool")), "{spool}");
    std::fs::create_dir(path("open")).unwrap();
    std::fs::set_permissions(path("open"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let open = error_of(&format!("spool-dir={}", path("open")));
    assert!(open.contains(&path("open")) && open.contains("0755") && open.contains("chmod 700"), "{open}");
    let _holder = Sink::start("http://127.0.0.1:1", &format!("spool-dir={}", path("held")));
    let held = error_of(&format!("spool-dir={}", path("held")));
    assert!(held.contains(&path("held")) && held.contains("in use by another"), "{held}");
}

#[test]
fn every_unhealthy_state_is_reported_on_the_bus() {
    let taken = Answer::json(201, r#"{"model_version":null,"stored":0,"faces":[]}"#);
    for (answer, state, status, warning) in [
        (Answer::status(429), "busy", Some(429), None),
        (Answer::status(500), "away", Some(500), Some("answers 500")),
        (Answer::status(503), "away", Some(503), Some("answers 503")),
        (Answer::status(404), "away", Some(404), Some("answers 404")),
        (Answer::status(201).held(&Hold::default()), "away", None, Some("gave no answer within 1s")),
        (taken.clone().cut_after(100), "away", None, Some("broke off its answer")),
        (Answer::status(401), "unauthorized", Some(401), Some("doesn't take the token (status 401)")),
        (Answer::status(403), "unauthorized", Some(403), Some("renew token-file")),
    ] {
        let server = Server::answering([answer, taken.clone()]);
        // Only the response that never comes has a limit.
        let timeout = if warning.is_some_and(|text| text.contains("within")) { "timeout=1" } else { "" };
        let mut sink = Sink::for_jpeg(&server.url(), timeout);
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
        sink.eos();
        assert_eq!((sink.count("sent"), sink.count("failed")), (1, 0), "{state} {status:?}");
        let messages = sink.all();
        let [unhealthy, ok] = &named(&messages, "facepipe-backend")[..] else { panic!("{messages:?}") };
        assert_eq!((unhealthy.get("state"), ok.get("state")), (Ok(state), Ok("ok")));
        assert_eq!(unhealthy.get::<u32>("status").ok(), status, "{state}");
        assert!(!unhealthy.get::<&str>("reason").unwrap().is_empty() && unhealthy.has_field("retry-in"));
        let of_type = |wanted| messages.iter().filter(move |m| m.type_() == wanted).collect::<Vec<_>>();
        let warnings: Vec<String> =
            of_type(gst::MessageType::Warning).into_iter().map(warning_text).collect();
        match warning {
            None => assert!(warnings.is_empty(), "{warnings:?}"),
            Some(text) => {
                assert_eq!(warnings.len(), 1, "{warnings:?}");
                assert!(warnings[0].contains(text) && warnings[0].contains(&server.url()), "{warnings:?}");
            }
        }
        assert_eq!(of_type(gst::MessageType::Info).len(), usize::from(warning.is_some()), "{state}");
    }
}

#[test]
fn a_timeout_of_zero_is_no_limit() {
    let server = Server::answering([Answer::status(201).after(Duration::from_millis(1500))]);
    let mut sink = Sink::for_jpeg(&server.url(), "timeout=0");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    sink.eos();
    assert_eq!((sink.count("sent"), sink.count("requests"), server.received().len()), (1, 1, 1));
}

#[test]
fn the_token_can_be_changed_but_not_read() {
    let server = Server::answering([Answer::status(201)]);
    let mut sink = Sink::for_jpeg(&server.url(), "token=first-secret");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    server.wait_for(1);
    sink.element.set_property("token", "second-secret");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    sink.eos();
    let received = server.received();
    let sent: Vec<_> = received.iter().map(|request| request.header("authorization").unwrap()).collect();
    assert_eq!(sent, ["Bearer first-secret", "Bearer second-secret"]);
    let flags = sink.element.find_property("token").unwrap().flags();
    assert!(!flags.contains(gst::glib::ParamFlags::READABLE));
}

#[test]
fn a_changed_location_applies_to_later_crops() {
    let server = Server::answering([Answer::status(201).after(Duration::from_millis(100))]);
    let mut sink = Sink::for_jpeg(&server.url(), "camera-id=gate-1 camera-location=Lobby batch-delay=500");
    sink.harness.push(crop(b"before", face(0, 0, 9, 9), None)).unwrap();
    sink.element.set_property("camera-location", "Yard");
    sink.harness.push(crop(b"after", face(0, 0, 9, 9), None)).unwrap();
    sink.eos();
    let mut found: Vec<_> =
        server.received().iter().map(|r| (r.images()[0].clone(), r.field("location"))).collect();
    found.sort();
    assert_eq!(found, [(b"after".to_vec(), "Yard".into()), (b"before".to_vec(), "Lobby".into())]);
}

#[test]
fn webp_crops_are_sent_as_webp() {
    let server = Server::answering([Answer::status(201)]);
    let mut sink = Sink::start(&server.url(), "");
    sink.harness.set_src_caps_str("image/webp,framerate=25/1");
    sink.harness.play();
    sink.harness.push(crop(b"RIFF....WEBP", face(0, 0, 9, 9), None)).unwrap();
    sink.eos();
    let received = server.received();
    let image = received[0].parts.iter().find(|part| part.name == "image").unwrap();
    assert_eq!(image.content_type.as_deref(), Some("image/webp"));
    assert_eq!(image.file_name.as_deref(), Some("f.webp"));
    assert_eq!(image.body, b"RIFF....WEBP");
}

#[test]
fn crops_of_two_cameras_in_one_process_are_never_mixed() {
    let server = Server::answering([Answer::status(201).after(Duration::from_millis(5))]);
    let url = server.url();
    let cameras = ["gate", "yard"];
    thread::scope(|scope| {
        for name in cameras {
            let url = &url;
            scope.spawn(move || {
                let mut sink = Sink::for_jpeg(url, &format!("camera-id={name} camera-location={name}-place"));
                for number in 0..200 {
                    let picture = format!("{name} {number}");
                    sink.harness.push(crop(picture.as_bytes(), face(0, 0, 9, 9), None)).unwrap();
                }
                sink.eos();
                assert_eq!(sink.count("sent"), 200);
            });
        }
    });
    let mut pictures = Vec::new();
    for request in server.received() {
        let camera = request.field("camera_id");
        assert_eq!(request.field("location"), format!("{camera}-place"));
        for image in request.images() {
            let picture = String::from_utf8(image).unwrap();
            assert!(picture.starts_with(&format!("{camera} ")), "{picture} went under {camera}");
            pictures.push(picture);
        }
    }
    pictures.sort();
    pictures.dedup();
    assert_eq!(pictures.len(), 400);
}

#[test]
fn statistics_are_posted_periodically_and_at_eos() {
    let server = Server::answering([Answer::status(201)]);
    let mut sink = Sink::for_jpeg(&server.url(), "stats-interval=1");
    sink.harness.push(crop(&[7; 3000], face(0, 0, 9, 9), None)).unwrap();
    let stats = loop {
        let stats = sink.wait_for_structure("facepipe-stats");
        if stats.get("sent") == Ok(1_u64) {
            break stats;
        }
    };
    for field in [
        "queued",
        "sent",
        "failed",
        "dropped",
        "spooled",
        "spool-files",
        "spool-bytes",
        "spool-dropped",
        "spool-damaged",
        "spool-errors",
        "requests",
        "retries",
        "bytes",
        "bytes-received",
        "image-bytes",
    ] {
        let value = stats.get::<u64>(field).unwrap_or_else(|e| panic!("{field}: {e}"));
        assert_eq!(value, sink.count(field), "{field}");
    }
    assert_eq!((stats.get("sent"), stats.get("image-bytes")), (Ok(1_u64), Ok(3000_u64)));
    sink.element.set_property("stats-interval", 0_u32);
    sink.structures("facepipe-stats");
    // Another element that starts now shows that two intervals have passed.
    let other = Sink::for_jpeg(&server.url(), "stats-interval=1");
    (0..2).for_each(|_| drop(other.wait_for_structure("facepipe-stats")));
    assert!(sink.structures("facepipe-stats").is_empty(), "0 is never");
    sink.eos();
    assert_eq!(sink.structures("facepipe-stats").len(), 1, "but at the end");
}

/// Ends an element when a thread panics, so that a blocked push returns and the test fails instead of hanging.
struct Unblock(gst::Element);

impl Drop for Unblock {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.set_state(gst::State::Null);
        }
    }
}

/// Returns a sink that blocks its stream at the third crop: one is in a request that is never answered, one in the queue.
fn blocking() -> (Server, Sink) {
    let server = Server::answering([Answer::status(201).held(&Hold::default())]);
    let sink =
        Sink::for_jpeg(&server.url(), "max-queue=1 batch-size=1 workers=1 drop-policy=block timeout=0");
    (server, sink)
}

#[test]
fn a_blocked_stream_is_released_by_flush_and_stop() {
    for flush in [true, false] {
        let (server, mut sink) = blocking();
        let server = Arc::new(server);
        let (element, pad) = (sink.element.clone(), sink.element.static_pad("sink").unwrap());
        let begun = Arc::new(AtomicUsize::new(0));
        let (pushes, requests) = (Arc::clone(&begun), Arc::clone(&server));
        let releaser = thread::spawn(move || {
            let _unblock = Unblock(element.clone());
            // The third blocks; the stop must not come before the request of the first.
            requests.wait_for(1);
            wait_until("a full queue", || {
                pushes.load(Ordering::SeqCst) >= 3 && count(&element, "queued") == 2
            });
            if flush {
                pad.send_event(gst::event::FlushStart::new());
            } else {
                element.set_state(gst::State::Null).unwrap();
            }
        });
        let mut pushed = 0;
        let end = loop {
            begun.fetch_add(1, Ordering::SeqCst);
            match sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)) {
                Ok(_) => pushed += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(end, gst::FlowError::Flushing);
        assert!(pushed < 30, "{pushed}: it waited for room");
        releaser.join().unwrap();
        assert_eq!((sink.count("sent"), server.received().len()), (0, 1));
    }
}

#[test]
fn a_blocked_stream_stays_blocked_while_paused_and_continues_when_playing() {
    let hold = Hold::default();
    let server = Server::answering([Answer::status(201).held(&hold)]);
    let mut sink =
        Sink::for_jpeg(&server.url(), "max-queue=1 batch-size=1 workers=1 drop-policy=block timeout=0");
    let element = sink.element.clone();
    let begun = Arc::new(AtomicUsize::new(0));
    let pushes = Arc::clone(&begun);
    let director = thread::spawn(move || {
        let _unblock = Unblock(element.clone());
        wait_until("a full queue", || pushes.load(Ordering::SeqCst) == 3 && count(&element, "queued") == 2);
        element.set_state(gst::State::Paused).unwrap();
        // The queue has space now, but the stream is still paused.
        hold.release();
        wait_until("an empty queue", || count(&element, "sent") == 2 && count(&element, "queued") == 0);
        assert_eq!(pushes.load(Ordering::SeqCst), 3);
        element.set_state(gst::State::Playing).unwrap();
    });
    for number in 0..30_u8 {
        begun.fetch_add(1, Ordering::SeqCst);
        sink.harness.push(crop(&[number], face(0, 0, 9, 9), None)).unwrap();
    }
    director.join().unwrap();
    sink.eos();
    assert_eq!((sink.count("sent"), sink.count("dropped")), (30, 0));
    let mut numbers: Vec<u8> = server.received().iter().flat_map(|r| r.images()).map(|i| i[0]).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..30).collect::<Vec<u8>>());
}

#[test]
fn crops_spooled_at_eos_are_sent_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let properties = format!("spool-dir={} eos-timeout=1", spool.display());
    let mut sink = Sink::for_jpeg(&format!("http://{}", dead_address()), &properties);
    for number in 0..5_u8 {
        sink.harness
            .push(crop(&[number], face(0, 0, 9, 9), Some(Duration::from_secs(1_714_979_289))))
            .unwrap();
    }
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains("crops wait until it answers on the spool"), "{warning}");
    sink.eos();
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(
        warning.contains("0 crops were not uploaded") && warning.contains("5 more are on the spool"),
        "{warning}"
    );
    sink.element.set_state(gst::State::Null).unwrap();
    assert_eq!((sink.count("dropped"), sink.count("spool-files")), (0, 5));

    let server = Server::answering([Answer::status(201)]);
    let mut sink = Sink::for_jpeg(&server.url(), &properties);
    sink.eos();
    let mut numbers: Vec<u8> = server.received().iter().flat_map(|r| r.images()).map(|i| i[0]).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    assert!(server.received().iter().flat_map(|r| r.all("captured_at")).all(|t| t == "2024-05-06T07:08:09Z"));
    assert_eq!((sink.count("sent"), sink.count("spool-files")), (5, 0));
}

/// Returns a certification authority in PEM, and the configuration of a server with a certificate for 127.0.0.1 from it.
fn authority() -> (String, rustls::ServerConfig) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(leaf.der().to_vec())],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (issuer.pem(), config)
}

#[test]
fn https_trusts_only_known_authorities() {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    let (pem, config) = authority();
    std::fs::write(&ca_file, pem).unwrap();
    let server = Server::start_tls(config, |_| Answer::json(201, r#"{"faces":[]}"#));
    let url = format!("https://{}", server.address);
    let mut sink = Sink::for_jpeg(&url, &format!("ca-file={} token=secret", ca_file.display()));
    for _ in 0..3 {
        sink.harness.push(crop(&[7; 3000], face(0, 0, 9, 9), None)).unwrap();
    }
    sink.eos();
    assert_eq!((sink.count("sent"), sink.count("failed")), (3, 0));
    assert!(sink.messages(gst::MessageType::Warning).is_empty());
    let received = server.received();
    assert!(received.iter().all(|request| request.header("authorization") == Some("Bearer secret")));
    let plain: usize = received.iter().map(|request| request.bytes).sum();
    assert!(sink.count("bytes") > plain as u64, "with what TLS adds");

    // A different authority.
    std::fs::write(&ca_file, authority().0).unwrap();
    let mut sink = Sink::for_jpeg(&url, &format!("ca-file={} eos-timeout=0", ca_file.display()));
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains("cannot be reached") && warning.contains("certificate"), "{warning}");
    sink.eos();
    assert_eq!(server.received().len(), received.len());
}

/// Writes a certificate by this authority and its key.
fn write_client(
    issuer: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>,
    cert: &std::path::Path,
    key: &std::path::Path,
) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["camera-gate".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    std::fs::write(cert, params.signed_by(&pair, issuer).unwrap().pem()).unwrap();
    std::fs::write(key, pair.serialize_pem()).unwrap();
}

#[test]
fn a_client_certificate_proves_the_sink_and_is_read_again_when_it_changes() {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    write_client(&issuer, &file("cert.pem"), &file("key.pem"));
    let both = [std::fs::read(file("cert.pem")).unwrap(), std::fs::read(file("key.pem")).unwrap()].concat();
    std::fs::write(file("both.pem"), both).unwrap();
    write_client(&issuer, &file("other.pem"), &file("other-key.pem"));

    // The backend's own certificate, and the requirement that clients have one by this authority.
    let server_key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let server = server.signed_by(&server_key, &issuer).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(issuer.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(
            vec![server.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
        )
        .unwrap();
    std::fs::write(file("ca.pem"), issuer.pem()).unwrap();
    let named = |name: &str| file(name).display().to_string();
    let ca = format!("ca-file={}", named("ca.pem"));
    assert!(upload_over_tls(config.clone(), &ca).is_err());
    for client in [
        format!("client-cert={} client-key={}", named("cert.pem"), named("key.pem")),
        format!("client-cert={}", named("both.pem")),
    ] {
        assert_eq!(upload_over_tls(config.clone(), &format!("{ca} {client}")), Ok(()), "{client}");
    }
    // Renewed while it runs: each connection of this server takes one request.
    let server =
        Server::start_tls(config, |_| Answer::json(201, r#"{"faces":[]}"#).header("Connection", "close"));
    let url = format!("https://{}", server.address);
    let client = format!("client-cert={} client-key={}", named("cert.pem"), named("key.pem"));
    let certificate = |name: &str| {
        let read = <rustls::pki_types::CertificateDer<'_> as PemObject>::from_pem_file(file(name));
        read.unwrap().to_vec()
    };
    let expected = [certificate("cert.pem"), certificate("other.pem")];
    let mut sink = Sink::for_jpeg(&url, &format!("{ca} {client} batch-size=1"));
    for renewed in ["other", "none"] {
        sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
        sink.wait_for(gst::MessageType::Element);
        if renewed == "other" {
            std::fs::rename(file("other.pem"), file("cert.pem")).unwrap();
            std::fs::rename(file("other-key.pem"), file("key.pem")).unwrap();
        }
    }
    sink.eos();
    assert_eq!((sink.count("sent"), sink.count("failed")), (2, 0));
    assert!(server.peers() == expected, "not the old certificate, then the new one");

    for (properties, named) in [
        (format!("{client} backend-url=http://127.0.0.1:1"), "is not https"),
        (format!("client-key={} backend-url=https://127.0.0.1:1", named("key.pem")), "client-cert is not"),
        (format!("client-cert={} backend-url=https://127.0.0.1:1", named("ca.pem")), "no private key"),
        (
            format!(
                "client-cert={} client-key={} backend-url=https://127.0.0.1:1",
                named("ca.pem"),
                named("key.pem")
            ),
            "is not the key of the certificate",
        ),
    ] {
        let error = error_of(&format!("{ca} {properties}"));
        assert!(error.contains(named), "{properties}: {error}");
    }
}

#[test]
fn crops_wait_on_the_spool_while_the_backend_has_another_key() {
    let (_, _, config) = self_signed(|_| ());
    let (_, expected, _) = self_signed(|_| ());
    let spool = tempfile::tempdir().unwrap();
    let server = Server::start_tls(config, |_| Answer::json(201, r#"{"faces":[]}"#));
    let url = format!("https://{}", server.address);
    let pinned =
        format!("pinned-sha256={expected} spool-dir={} eos-timeout=1", spool.path().join("crops").display());
    let mut sink = Sink::for_jpeg(&url, &pinned);
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains("which pinned-sha256 does not name"), "{warning}");
    sink.eos();
    assert_eq!((sink.count("sent"), sink.count("failed"), sink.count("spool-files")), (0, 0, 1));
    assert!(server.received().is_empty());
}

/// Returns a self-signed certificate, the pin of its key, and the configuration of a server with it.
fn self_signed(edit: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String, rustls::ServerConfig) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    // As `openssl req -x509` makes them: an authority's, with a common name.
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "faces.example");
    edit(&mut params);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let der = CertificateDer::from(certificate.der().to_vec());
    let parsed = rustls::server::ParsedCertificate::try_from(&der).unwrap();
    let digest = <sha2::Sha256 as sha2::Digest>::digest(parsed.subject_public_key_info());
    let pin = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, digest);
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    (certificate.pem(), pin, config)
}

/// Uploads a crop over TLS; returns the warning if that fails.
fn upload_over_tls(config: rustls::ServerConfig, properties: &str) -> Result<(), String> {
    let server = Server::start_tls(config, |_| Answer::json(201, r#"{"faces":[]}"#));
    let url = format!("https://{}", server.address);
    let mut sink = Sink::for_jpeg(&url, &format!("eos-timeout=0 {properties}"));
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    let wanted = [gst::MessageType::Warning, gst::MessageType::Element];
    let message = sink.bus.timed_pop_filtered(LONG, &wanted).unwrap();
    let result = match message.type_() {
        gst::MessageType::Warning => Err(warning_text(&message)),
        _ => {
            assert_eq!(structure(&message).name(), "facepipe-result");
            Ok(())
        }
    };
    sink.eos();
    result
}

#[test]
fn a_self_signed_certificate_named_in_ca_file_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("backend.pem");
    let named = format!("ca-file={}", ca_file.display());
    let host = |host: &str| rcgen::SanType::IpAddress(host.parse().unwrap());
    let not_authority = |params: &mut rcgen::CertificateParams| params.is_ca = rcgen::IsCa::NoCa;

    for (what, edit) in [
        ("as openssl makes it", &(|_: &mut _| ()) as &dyn Fn(&mut rcgen::CertificateParams)),
        ("with a name", &|params| params.subject_alt_names.push(host("127.0.0.1"))),
        ("of no authority", &not_authority),
    ] {
        let (pem, _, config) = self_signed(|params| edit(params));
        std::fs::write(&ca_file, pem).unwrap();
        assert_eq!(upload_over_tls(config, &named), Ok(()), "{what}");
    }

    // Other errors still count.
    let (pem, _, config) = self_signed(|params| params.subject_alt_names.push(host("192.0.2.1")));
    std::fs::write(&ca_file, pem).unwrap();
    let warning = upload_over_tls(config, &named).unwrap_err();
    assert!(warning.contains("certificate") && warning.contains("192.0.2.1"), "another host: {warning}");
    let (pem, _, config) = self_signed(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    std::fs::write(&ca_file, pem).unwrap();
    let warning = upload_over_tls(config, &named).unwrap_err();
    assert!(warning.contains("expired"), "{warning}");
    // A different certificate with the same names.
    let (_, _, config) = self_signed(|_| ());
    std::fs::write(&ca_file, self_signed(|_| ()).0).unwrap();
    let warning = upload_over_tls(config, &named).unwrap_err();
    assert!(warning.contains("name this certificate in ca-file, or its key in pinned-sha256"), "{warning}");
}

#[test]
fn a_pinned_key_is_trusted_whatever_the_certificate_says() {
    let folder = tempfile::tempdir().unwrap();
    let old = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let (_, pin, config) = self_signed(old);
    assert_eq!(upload_over_tls(config.clone(), &format!("pinned-sha256={pin}")), Ok(()));
    // With the next key, so that the backend can change to it at any time.
    let (_, next, next_config) = self_signed(|_| ());
    for config in [config.clone(), next_config.clone()] {
        assert_eq!(
            upload_over_tls(config, &format!("pinned-sha256=\"sha256//{next};sha256//{pin}\"")),
            Ok(())
        );
    }
    let warning = upload_over_tls(next_config, &format!("pinned-sha256={pin}")).unwrap_err();
    assert!(warning.contains(&format!("the key of its certificate is sha256//{next}")), "{warning}");
    // With ca-file, both must match.
    let (pem, authority) = authority();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let both = format!("ca-file={} pinned-sha256={pin}", ca_file.display());
    assert!(upload_over_tls(authority, &both).unwrap_err().contains("pinned-sha256 does not name"));
    assert!(upload_over_tls(config, &both).unwrap_err().contains("certificate"));
}

#[test]
fn an_invalid_camera_is_an_error_at_start() {
    let long = "x".repeat(201);
    for (property, value, expected) in [
        ("camera-id", long.as_str(), "has 201 characters, it must have 1 to 200"),
        ("camera-id", "gate\n1", "camera-id `gate\\n1` has the control character '\\n'"),
        ("camera-location", long.as_str(), "has 201 characters, it must have 0 to 200"),
        ("camera-location", "Lobby\u{7}", "has the control character"),
    ] {
        common::init();
        let element =
            gst::ElementFactory::make("facepipe-facesink-http").property(property, value).build().unwrap();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Paused).is_err(), "{property}");
        let message = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
        let gst::MessageView::Error(error) = message.view() else { unreachable!() };
        let text = error.error().to_string();
        assert!(text.contains(property) && text.contains(expected), "{text}");
        element.set_state(gst::State::Null).unwrap();
        element.set_bus(None::<&gst::Bus>);
    }
    // The limit is in characters, not bytes.
    let server = Server::answering([Answer::status(204)]);
    let mut sink = Sink::for_jpeg(&server.url(), "");
    let wide = "入".repeat(200);
    sink.element.set_property("camera-id", &wide);
    sink.element.set_property("camera-location", "no\tplace");
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains("camera-location `no\\tplace`") && warning.contains("former"), "{warning}");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    sink.eos();
    let received = server.received();
    assert_eq!(received[0].field("camera_id"), wide);
    assert_eq!(received[0].all("location").concat(), "");
}

#[test]
fn a_token_is_sent_over_plain_http_to_another_machine_only_if_that_is_allowed() {
    let error = error_of("backend-url=http://192.0.2.1 token=s3cret");
    assert!(error.contains("use https") && error.contains("allow-insecure-token"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
    let sink = Sink::for_jpeg("http://192.0.2.1", "token=s3cret allow-insecure-token=true");
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains("allow-insecure-token") && !warning.contains("s3cret"), "{warning}");
    // One that is set later waits, and so do the crops.
    let mut sink = Sink::for_jpeg("http://192.0.2.1", "eos-timeout=0");
    sink.element.set_property("token", "s3cret");
    sink.harness.push(crop(b"x", face(0, 0, 9, 9), None)).unwrap();
    let warning = warning_text(&sink.wait_for(gst::MessageType::Warning));
    assert!(warning.contains("gets no request by http") && !warning.contains("s3cret"), "{warning}");
    let sink = Sink::for_jpeg(&format!("http://{}", dead_address()), "token=s3cret");
    assert!(sink.messages(gst::MessageType::Warning).is_empty());
}

#[test]
fn a_pipeline_without_faces_starts_and_ends() {
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
    let message = pipeline.bus().unwrap().timed_pop_filtered(LONG, &wanted);
    let position = pipeline.query_position::<gst::ClockTime>();
    pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(message.map(|m| m.type_()), Some(gst::MessageType::Eos));
    assert!(position.is_some_and(|p| p >= gst::ClockTime::from_mseconds(150)), "{position:?}");
    assert!(server.received().is_empty());
}
