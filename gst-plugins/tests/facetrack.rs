//! `facetrack`: frames with face metadata in, the same with track ids out.

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

use std::sync::{Arc, Mutex};

use common::{face, init, with_faces};
use facepipe_detector::BoundingBox;
use gst::prelude::*;
use gst_check::Harness;
use gst_video::VideoRegionOfInterestMeta;
use gstfacepipe::{
    detection_mark,
    roi::{self, FaceRegion, attach_candidate, candidates, faces, faces_and_predictions},
    track_events,
};

const CAPS: &str = "video/x-raw,format=NV12,width=1920,height=1080,framerate=6/1";

/// What leaves the element, in order.
#[derive(Debug, Clone, PartialEq)]
enum Sent {
    Frame(u64),
    Ended(Vec<i32>),
    Caps,
    Eos,
    FlushStop,
}

/// The element and its output.
struct Track {
    harness: Harness,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Track {
    fn new(properties: &str) -> Self {
        init();
        let mut harness = Harness::new_parse(&format!("facepipe-facetrack name=track {properties}"));
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = sent.clone();
        let kinds =
            gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM | gst::PadProbeType::EVENT_FLUSH;
        element(&harness).static_pad("src").unwrap().add_probe(kinds, move |_, info| {
            let sent = match &info.data {
                Some(gst::PadProbeData::Buffer(frame)) => {
                    Some(Sent::Frame(frame.pts().map_or(0, |t| t.mseconds())))
                }
                Some(gst::PadProbeData::Event(event)) => match event.type_() {
                    gst::EventType::CustomDownstream => track_events::ended_tracks(event).map(Sent::Ended),
                    gst::EventType::Caps => Some(Sent::Caps),
                    gst::EventType::Eos => Some(Sent::Eos),
                    gst::EventType::FlushStop => Some(Sent::FlushStop),
                    _ => None,
                },
                _ => None,
            };
            log.lock().unwrap().extend(sent);
            gst::PadProbeReturn::Ok
        });
        harness.set_src_caps_str(CAPS);
        sent.lock().unwrap().clear();
        Self { harness, sent }
    }

    /// Pushes a frame with this timestamp in milliseconds, modified by `edit`.
    fn push(
        &mut self,
        milliseconds: u64,
        faces: &[FaceRegion],
        edit: impl FnOnce(&mut gst::BufferRef),
    ) -> gst::Buffer {
        let mut frame = with_faces(gst::Buffer::new(), milliseconds, faces);
        edit(frame.make_mut());
        self.harness.push_and_pull(frame).unwrap()
    }

    /// Returns the ids of the faces of a frame, 0 for none.
    fn ids(&mut self, milliseconds: u64, boxes: &[FaceRegion]) -> Vec<i32> {
        ids(&faces(&self.push(milliseconds, boxes, |_| {})))
    }

    /// Takes the output since the last call.
    fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

fn element(harness: &Harness) -> gst::Element {
    harness.element().unwrap().downcast::<gst::Bin>().unwrap().by_name("track").unwrap()
}

fn ids(faces: &[FaceRegion]) -> Vec<i32> {
    faces.iter().map(|face| face.track_id.unwrap_or(0)).collect()
}

/// Returns a face that walks 8 pixels to the right per 40 ms, from x = 100 on.
fn walker(milliseconds: u64) -> FaceRegion {
    face(100 + (milliseconds / 5) as u32, 400, 60, 80)
}

#[test]
fn a_walking_face_keeps_its_id_and_its_box() {
    let mut track = Track::new("");
    for frame in 0..100 {
        let expected = FaceRegion { track_id: Some(1), ..walker(40 * frame) };
        assert_eq!(faces(&track.push(40 * frame, &[walker(40 * frame)], |_| {})), [expected]);
    }
    assert!(!track.sent().iter().any(|sent| matches!(sent, Sent::Ended(_))));
}

#[test]
fn faces_that_cross_keep_their_ids_at_6_and_at_30_frames_per_second() {
    for rate in [6, 30] {
        let mut track = Track::new("");
        // One walks right, one left, 300 pixels per second each; they meet in the middle, one above the other.
        for frame in 0..4 * rate {
            let ms = frame * 1000 / rate;
            let way = (ms * 3 / 10) as u32;
            let boxes = [face(300 + way, 400, 60, 80), face(1500 - way, 425, 60, 80)];
            let swapped = [boxes[1], boxes[0]];
            let (order, expected) = if frame % 2 == 0 { (boxes, [1, 2]) } else { (swapped, [2, 1]) };
            assert_eq!(track.ids(ms, &order), expected, "{rate} per second, after {ms} ms");
        }
    }
}

#[test]
fn a_face_that_moves_its_own_height_per_frame_is_tracked() {
    let mut track = Track::new("");
    for frame in 0..12 {
        let right = face(100 + 80 * frame, 400, 64, 80);
        assert_eq!(track.ids(u64::from(frame) * 1000 / 6, &[right]), [1], "frame {frame}");
    }
}

#[test]
fn a_short_absence_is_bridged_and_a_long_one_ends_the_track() {
    let mut track = Track::new("max-age=500");
    assert_eq!(track.ids(0, &[walker(0)]), [1]);
    assert_eq!(track.ids(40, &[walker(40)]), [1]);
    for ms in (80..=520).step_by(40) {
        assert!(track.ids(ms, &[]).is_empty());
    }
    assert!(!track.sent().contains(&Sent::Ended(vec![1])), "480 ms are not too long");
    assert_eq!(track.ids(560, &[walker(560)]), [2], "520 ms are");
    assert_eq!(track.sent(), [Sent::Ended(vec![1]), Sent::Frame(560)], "announced before the frame");

    // Once the speed is estimated.
    for ms in (600..=1000).step_by(40) {
        assert_eq!(track.ids(ms, &[walker(ms)]), [2]);
    }
    for ms in (1040..=1440).step_by(40) {
        assert!(track.ids(ms, &[]).is_empty());
    }
    assert_eq!(track.ids(1480, &[walker(1480)]), [2], "it came back in time, where it was to be expected");
}

#[test]
fn max_age_can_be_changed_while_playing() {
    let mut track = Track::new("max-age=500");
    track.ids(0, &[walker(0)]);
    element(&track.harness).set_property("max-age", 50_u32);
    track.ids(40, &[]);
    assert_eq!(track.sent(), [Sent::Frame(0), Sent::Frame(40)]);
    track.ids(80, &[]);
    assert_eq!(track.sent(), [Sent::Ended(vec![1]), Sent::Frame(80)]);
}

#[test]
fn lost_frames_end_no_track() {
    let mut track = Track::new("");
    let beside = |ms| {
        let BoundingBox { left, right, .. } = walker(ms).bounding_box;
        let bounding_box = BoundingBox { left: left + 800, right: right + 800, ..walker(ms).bounding_box };
        FaceRegion { bounding_box, ..walker(ms) }
    };
    assert_eq!(track.ids(0, &[walker(0), beside(0)]), [1, 2]);
    // A leaky queue before a slow element, or lost packets: a discontinuity at each frame.
    for ms in (150..3000).step_by(150) {
        let frame = track.push(ms, &[walker(ms), beside(ms)], |f| f.set_flags(gst::BufferFlags::DISCONT));
        assert_eq!(ids(&faces(&frame)), [1, 2], "after {ms} ms");
    }
    assert!(!track.sent().iter().any(|sent| matches!(sent, Sent::Ended(_))));
}

#[test]
fn timestamps_out_of_order_repeated_or_missing_end_no_track() {
    let early = |n: u64| Some(40 * n - if n % 5 == 4 { 60 } else { 0 });
    let swapped = |n: u64| Some(40 * (n ^ 1));
    let shaking = |n: u64| Some(if n.is_multiple_of(2) { 40 * n } else { 40 * n + 70 });
    let same = |_| Some(1000);
    let none = |_| None;
    let timestamps: [&dyn Fn(u64) -> Option<u64>; 5] = [&early, &swapped, &shaking, &same, &none];
    for (kind, timestamp) in timestamps.into_iter().enumerate() {
        let mut track = Track::new("max-age=300");
        for n in 0..200 {
            // Faces as at frames in order.
            let boxes = [walker(40 * n), face(900, 100, 50, 50)];
            let frame = track.push(0, &boxes, |frame| {
                frame.set_pts(timestamp(n).map(gst::ClockTime::from_mseconds));
            });
            assert_eq!(ids(&faces(&frame)), [1, 2], "kind {kind}, frame {n}");
        }
        // Tracks still end: 300 ms are eight frames.
        let missing: Vec<_> = (200..220)
            .flat_map(|n| {
                track.sent();
                track.push(0, &[], |f| f.set_pts(timestamp(n).map(gst::ClockTime::from_mseconds)));
                track.sent()
            })
            .filter(|sent| matches!(sent, Sent::Ended(_)))
            .collect();
        assert_eq!(missing, [Sent::Ended(vec![1, 2])], "kind {kind}");
    }
}

#[test]
fn timestamps_out_of_order_do_not_disturb_predictions() {
    let mut track = Track::new("");
    for n in 0..90_u64 {
        let searched = n % 3 == 0;
        let boxes = if searched { vec![walker(40 * n)] } else { vec![] };
        let out = track.push(40 * n - if n % 5 == 4 { 60 } else { 0 }, &boxes, |frame| {
            detection_mark::mark(frame, searched);
        });
        let [seen] = faces_and_predictions(&out)[..] else { panic!("one face in frame {n}") };
        assert_eq!(seen.track_id, Some(1));
        let apart = seen.bounding_box.left.abs_diff(walker(40 * n).bounding_box.left);
        assert!(n < 20 || apart <= 3, "frame {n}: {seen:?}, is at {:?}", walker(40 * n));
    }
}

fn segment(edit: impl FnOnce(&mut gst::FormattedSegment<gst::ClockTime>)) -> gst::Event {
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    edit(&mut segment);
    gst::event::Segment::new(&segment)
}

#[test]
fn a_new_segment_ends_all_tracks_and_a_repeated_one_does_not() {
    let seconds = gst::ClockTime::from_seconds;
    let mut track = Track::new("");
    assert_eq!(track.ids(0, &[walker(0)]), [1]);
    track.harness.push_event(segment(|_| {}));
    assert_eq!(track.ids(40, &[walker(40)]), [1], "the same");
    track.harness.push_event(segment(|s| s.set_stop(seconds(60))));
    assert_eq!(track.ids(80, &[walker(80)]), [1], "it is known by now when it ends");
    // As from demuxers of fragments: each segment begins at its position, and timestamps keep their meaning.
    track.harness.push_event(segment(|s| {
        s.set_start(gst::ClockTime::from_mseconds(100));
        s.set_time(gst::ClockTime::from_mseconds(100));
        s.set_base(gst::ClockTime::from_mseconds(100));
    }));
    assert_eq!(track.ids(120, &[walker(120)]), [1], "a fragment");
    track.sent();
    // A loop without a flush: running time continues, and the recording restarts.
    track.harness.push_event(segment(|s| s.set_base(gst::ClockTime::from_mseconds(160))));
    assert_eq!(track.ids(0, &[walker(160)]), [2], "a loop");
    assert_eq!(track.sent(), [Sent::Ended(vec![1]), Sent::Frame(0)]);
}

#[test]
fn a_new_stream_ends_all_tracks_and_a_repeated_one_does_not() {
    let mut track = Track::new("");
    let start = |id: &str| gst::event::StreamStart::new(id);
    track.harness.push_event(start("camera-1"));
    track.sent();
    assert_eq!(track.ids(0, &[walker(0)]), [1]);
    track.harness.push_event(start("camera-1"));
    assert_eq!(track.ids(40, &[walker(40)]), [1]);
    track.harness.push_event(start("camera-2"));
    assert_eq!(track.ids(80, &[walker(80)]), [2]);
}

#[test]
fn a_flush_ends_all_tracks() {
    let mut track = Track::new("");
    assert_eq!(track.ids(0, &[walker(0)]), [1]);
    track.sent();
    track.harness.push_event(gst::event::FlushStart::new());
    track.harness.push_event(gst::event::FlushStop::new(true));
    assert_eq!(track.sent(), [Sent::FlushStop, Sent::Ended(vec![1])], "sent after the flush");
    track.harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    assert_eq!(track.ids(0, &[walker(0)]), [2]);
}

/// Returns the runs that an element announces while `act` runs.
fn announced_runs(element: &gst::Element, act: impl FnOnce()) -> Vec<uuid::Uuid> {
    let runs = Arc::new(Mutex::new(Vec::new()));
    let log = runs.clone();
    let pad = element.static_pad("src").unwrap();
    let probe = pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &info.data {
            log.lock().unwrap().extend(track_events::announced_run(event));
        }
        gst::PadProbeReturn::Ok
    });
    act();
    pad.remove_probe(probe.unwrap());
    runs.lock().unwrap().clone()
}

#[test]
fn each_start_announces_a_run_of_its_own_before_its_first_frame() {
    init();
    let mut harness = Harness::new_parse("facepipe-facetrack name=track");
    let track = element(&harness);
    harness.play();
    let first = announced_runs(&track, || harness.set_src_caps_str(CAPS));
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(first[0].get_version_num(), 4);
    // An element that is linked later receives it, too.
    let sticky = track.static_pad("src").unwrap();
    let kept = sticky.sticky_event::<gst::event::CustomDownstreamSticky>(0).unwrap();
    assert_eq!(track_events::announced_run(&kept), Some(first[0]));

    let mut second = Harness::new_parse("facepipe-facetrack name=track");
    let other = element(&second);
    second.play();
    let other_run = announced_runs(&other, || second.set_src_caps_str(CAPS));
    assert!(other_run.len() == 1 && other_run != first, "{other_run:?}");
}

#[test]
fn different_caps_end_all_tracks_and_repeated_ones_do_not() {
    let mut track = Track::new("");
    assert_eq!(track.ids(0, &[walker(0)]), [1]);
    track.harness.push_event(gst::event::Caps::new(&CAPS.parse().unwrap()));
    assert_eq!(track.ids(40, &[walker(40)]), [1]);
    track.sent();
    let smaller = CAPS.replace("1920", "1280").replace("1080", "720");
    track.harness.push_event(gst::event::Caps::new(&smaller.parse().unwrap()));
    assert_eq!(track.sent()[..2], [Sent::Ended(vec![1]), Sent::Caps]);
    assert_eq!(track.ids(80, &[walker(80)]), [2]);
}

#[test]
fn the_end_of_the_stream_ends_all_tracks() {
    let mut track = Track::new("");
    track.ids(0, &[walker(0), face(900, 100, 50, 50)]);
    track.sent();
    track.harness.push_event(gst::event::Eos::new());
    assert_eq!(track.sent(), [Sent::Ended(vec![1, 2]), Sent::Eos]);
}

#[test]
fn a_pause_without_frames_or_a_restart_of_timestamps_ends_all_tracks() {
    let mut track = Track::new("max-age=1000");
    assert_eq!(track.ids(5000, &[walker(0)]), [1]);
    assert_eq!(track.ids(6001, &[walker(0)]), [2]);
    assert_eq!(track.ids(5001, &[walker(0)]), [2], "as long as max-age");
    assert_eq!(track.ids(4000, &[walker(0)]), [3]);
    assert_eq!(track.ids(4040, &[walker(0)]), [3], "and from there it goes on");
    assert_eq!(track.ids(1_000_000_000, &[walker(0)]), [4]);
    assert_eq!(track.ids(4080, &[walker(0)]), [5]);
    let ended: Vec<Sent> = track.sent().into_iter().filter(|sent| matches!(sent, Sent::Ended(_))).collect();
    assert_eq!(ended, (1..=4).map(|id| Sent::Ended(vec![id])).collect::<Vec<_>>());
}

#[test]
fn sixteen_faces_in_a_frame_keep_their_ids_in_any_order() {
    let mut track = Track::new("");
    let all: Vec<i32> = (1..=16).collect();
    for frame in 0..30 {
        let mut boxes: Vec<FaceRegion> = (0..16)
            .map(|i| face(100 + 400 * (i % 4) + 5 * frame, 50 + 250 * (i / 4), 60 + frame, 80 + frame))
            .collect();
        let mut expected = all.clone();
        boxes.rotate_left(frame as usize % 16);
        expected.rotate_left(frame as usize % 16);
        assert_eq!(track.ids(u64::from(frame) * 166, &boxes), expected, "frame {frame}");
    }
}

#[test]
fn two_elements_in_a_process_have_their_own_ids() {
    let (mut first, mut second) = (Track::new(""), Track::new(""));
    assert_eq!(first.ids(0, &[walker(0), face(900, 100, 50, 50)]), [1, 2]);
    assert_eq!(second.ids(0, &[face(900, 100, 50, 50)]), [1]);
    assert_eq!(first.ids(40, &[face(900, 100, 50, 50)]), [2]);
    assert_eq!(second.ids(40, &[walker(40)]), [2]);
    second.harness.push_event(gst::event::Eos::new());
    assert!(!first.sent().iter().any(|sent| matches!(sent, Sent::Ended(_))));
}

#[test]
fn frames_that_were_not_searched_carry_predicted_faces() {
    let mut track = Track::new("");
    for frame in 0..60 {
        let ms = 40 * frame;
        let searched = frame % 3 == 0;
        let boxes = if searched { vec![walker(ms)] } else { vec![] };
        let out = track.push(ms, &boxes, |frame| detection_mark::mark(frame, searched));
        let [seen] = faces_and_predictions(&out)[..] else { panic!("one face in frame {frame}") };
        assert_eq!((seen.track_id, seen.predicted), (Some(1), !searched), "frame {frame}");
        assert_eq!(faces(&out).len(), usize::from(searched), "predicted ones are not found ones");
        // The speed is estimated after a while.
        if frame > 20 {
            let BoundingBox { left, top, .. } = seen.bounding_box;
            let apart = left.abs_diff(walker(ms).bounding_box.left) + top.abs_diff(400);
            assert!(apart <= 2, "frame {frame}: {seen:?}, is at {:?}", walker(ms));
        }
        let meta = out.meta::<VideoRegionOfInterestMeta>().unwrap();
        assert_eq!(meta.param("facepipe-track").unwrap().get("predicted"), Ok(!searched));
        assert!((meta.param("detection").unwrap().get::<f64>("confidence").unwrap() - 0.75).abs() < 1e-9);
    }
    // A searched frame without the face is different.
    let out = track.push(2400, &[], |frame| detection_mark::mark(frame, true));
    assert_eq!(faces_and_predictions(&out), []);
    let out = track.push(2440, &[], |frame| detection_mark::mark(frame, false));
    assert_eq!(faces_and_predictions(&out), [], "what was missing at the last search is not believed in");
}

#[test]
fn predicted_faces_are_clipped_to_the_frame_and_dropped_outside() {
    let mut track = Track::new("");
    // To the right with 1000 pixels per second, leaving at x = 1920.
    for frame in 0..6 {
        let ms = 40 * frame;
        let at = face(1600 + ms as u32, 400, 60, 80);
        track.push(ms, &[at], |frame| detection_mark::mark(frame, true));
    }
    let mut seen = Vec::new();
    for frame in 6..14 {
        let out = track.push(40 * frame, &[], |frame| detection_mark::mark(frame, false));
        seen.push(
            faces_and_predictions(&out).first().map(|face| (face.bounding_box.left, face.bounding_box.right)),
        );
    }
    assert!(seen.iter().flatten().all(|&(left, right)| left < right && right <= 1920), "{seen:?}");
    assert!(seen[0].is_some() && seen.last().unwrap().is_none(), "{seen:?}");
}

#[test]
fn a_long_pause_of_the_detector_ends_no_track_and_limits_predictions() {
    let mut track = Track::new("max-age=500");
    let still = face(500, 500, 60, 80);
    track.push(0, &[still], |frame| detection_mark::mark(frame, true));
    let mut predicted = Vec::new();
    for frame in 1..50 {
        let out = track.push(40 * frame, &[], |frame| detection_mark::mark(frame, false));
        predicted.push(faces_and_predictions(&out).len());
    }
    assert_eq!(predicted.iter().sum::<usize>(), 12, "up to 480 ms");
    let out = track.push(2000, &[still], |frame| detection_mark::mark(frame, true));
    assert_eq!(ids(&faces(&out)), [1]);
}

#[test]
fn candidates_continue_tracks_and_begin_none() {
    let mut track = Track::new("");
    let weak = |milliseconds| FaceRegion { confidence: 0.4, ..walker(milliseconds) };
    let noise = FaceRegion { confidence: 0.4, ..face(1200, 700, 50, 60) };
    track.push(0, &[walker(0)], |_| {});
    for ms in (40..800).step_by(40) {
        let out = track.push(ms, &[], |frame| {
            attach_candidate(frame, &noise);
            attach_candidate(frame, &weak(ms));
        });
        let expected = FaceRegion { track_id: Some(1), ..weak(ms) };
        assert_eq!(faces_and_predictions(&out), [expected], "after {ms} ms");
        assert_eq!(candidates(&out), [], "the tracker removes them");
    }
    // After an absence, a candidate does not continue the track.
    track.push(800, &[], |_| {});
    let out = track.push(840, &[], |frame| attach_candidate(frame, &weak(840)));
    assert_eq!(faces(&out), []);
    // If both overlap the prediction, the face is preferred to the candidate.
    let out = track.push(880, &[walker(880)], |frame| attach_candidate(frame, &weak(880)));
    assert_eq!(faces(&out), [FaceRegion { track_id: Some(1), ..walker(880) }]);
}

#[test]
fn min_hits_delays_the_id_of_a_face() {
    let mut track = Track::new("min-hits=3");
    assert_eq!(track.ids(0, &[walker(0)]), [0]);
    assert_eq!(track.ids(40, &[walker(40)]), [0]);
    assert_eq!(track.ids(80, &[walker(80)]), [1]);
    // Found twice, missed once: never confirmed.
    let twice = face(900, 100, 50, 50);
    assert_eq!(track.ids(120, &[walker(120), twice]), [1, 0]);
    assert_eq!(track.ids(160, &[walker(160), twice]), [1, 0]);
    assert_eq!(track.ids(200, &[walker(200)]), [1]);
    assert_eq!(track.ids(240, &[walker(240), twice]), [1, 0]);
    assert_eq!(track.ids(280, &[walker(280), twice]), [1, 0]);
    assert_eq!(track.ids(320, &[walker(320), twice]), [1, 2]);
    track.harness.push_event(gst::event::Eos::new());
    let ended: Vec<Sent> = track.sent().into_iter().filter(|sent| matches!(sent, Sent::Ended(_))).collect();
    assert_eq!(ended, [Sent::Ended(vec![1, 2])], "who never had an id doesn't end");
}

/// A region of GStreamer 1.22's opencv plugin: only a rectangle.
#[test]
fn faces_of_the_opencv_plugin_are_tracked() {
    let mut track = Track::new("");
    for ms in (0..400).step_by(40) {
        let out = track.push(ms, &[], |frame| {
            let at = walker(ms).bounding_box;
            let rectangle = (at.left, at.top, at.width(), at.height());
            VideoRegionOfInterestMeta::add(frame, "face", rectangle);
        });
        assert_eq!(faces(&out), [FaceRegion { track_id: Some(1), confidence: 0.0, ..walker(ms) }]);
    }
}

/// A region of DL Streamer's `gvadetect`, with the parameters of its later elements.
#[test]
fn faces_of_dl_streamer_are_tracked_and_keep_their_parameters() {
    let mut track = Track::new("");
    for ms in (0..400).step_by(40) {
        let face = walker(ms);
        let at = face.bounding_box;
        let out = track.push(ms, &[], |frame| {
            VideoRegionOfInterestMeta::add(frame, "person", (at.left, at.top, 200, 600));
            let mut meta =
                VideoRegionOfInterestMeta::add(frame, "face", (at.left, at.top, at.width(), at.height()));
            meta.set_id(4711);
            let detection = gst::Structure::builder("detection")
                .field("confidence", 0.9)
                .field("label_id", 1_i32)
                .field("x_min", f64::from(at.left) / 1920.0)
                .field("x_max", f64::from(at.right) / 1920.0)
                .field("y_min", f64::from(at.top) / 1080.0)
                .field("y_max", f64::from(at.bottom) / 1080.0)
                .field("model_name", "face-detection")
                .field("layer_name", "detection_out")
                .build();
            meta.add_param(detection);
            meta.add_param(gst::Structure::builder("emotion").field("label", "neutral").build());
        });
        assert_eq!(faces(&out), [FaceRegion { track_id: Some(1), confidence: 0.9, ..face }]);
        let metas: Vec<_> = out.iter_meta::<VideoRegionOfInterestMeta>().collect();
        assert_eq!((metas[0].roi_type(), metas[0].id()), ("person", 0), "no face, no id");
        assert!(metas[1].param("emotion").is_some());
        assert_eq!(metas[1].param("detection").unwrap().get("label_id"), Ok(1));
    }
}

#[test]
fn boxes_without_area_are_ignored() {
    let mut track = Track::new("");
    assert_eq!(track.ids(0, &[face(10, 10, 0, 50), face(10, 10, 50, 0), walker(0)]), [0, 0, 1]);
    let huge = face(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
    assert_eq!(track.ids(40, &[huge, walker(40)]), [2, 1]);
}

#[test]
fn frames_without_timestamps_are_tracked_by_the_frame_rate() {
    let mut track = Track::new("max-age=1000");
    let mut push = |boxes: &[FaceRegion]| {
        let mut frame = gst::Buffer::new();
        boxes.iter().for_each(|face| roi::attach_face(frame.make_mut(), face));
        ids(&faces(&track.harness.push_and_pull(frame).unwrap()))
    };
    assert_eq!(push(&[walker(0)]), [1]);
    // Six frames per second.
    (0..5).for_each(|_| assert!(push(&[]).is_empty()));
    assert_eq!(push(&[walker(0)]), [1], "after one second");
    (0..6).for_each(|_| assert!(push(&[]).is_empty()));
    assert_eq!(push(&[walker(0)]), [2], "after more");
}

#[test]
fn an_hour_without_faces_leaves_no_state_behind() {
    let mut track = Track::new("");
    track.ids(0, &[walker(0)]);
    for frame in 1..6 * 3600 {
        assert!(track.ids(frame * 1000 / 6, &[]).is_empty());
    }
    let ended: Vec<Sent> = track.sent().into_iter().filter(|sent| matches!(sent, Sent::Ended(_))).collect();
    assert_eq!(ended, [Sent::Ended(vec![1])]);
    assert_eq!(track.ids(3_600_000, &[walker(0)]), [2]);
}

#[test]
fn video_of_any_format_in_any_memory_passes() {
    init();
    let factory = gst::ElementFactory::find("facepipe-facetrack").unwrap();
    for caps in [
        "video/x-raw,format=NV12",
        "video/x-raw,format=P010_10LE",
        "video/x-raw(memory:NVMM),format=NV12",
        "video/x-raw(memory:DMABuf),format=NV12",
    ] {
        let caps: gst::Caps = format!("{caps},width=64,height=64,framerate=25/1").parse().unwrap();
        assert!(factory.can_sink_all_caps(&caps) && factory.can_src_all_caps(&caps), "{caps}");
    }
    assert!(!factory.can_sink_any_caps(&"image/jpeg".parse::<gst::Caps>().unwrap()));

    let mut harness = Harness::new("facepipe-facetrack");
    harness.set_src_caps_str("video/x-raw(memory:NVMM),format=NV12,width=1920,height=1080,framerate=30/1");
    let out = harness.push_and_pull(with_faces(gst::Buffer::new(), 0, &[walker(0)])).unwrap();
    assert_eq!(ids(&faces(&out)), [1]);
}
