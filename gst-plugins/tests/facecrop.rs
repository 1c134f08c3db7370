//! `facecrop`: frames with face metadata in, JPEG pictures of the faces out.

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

use common::{YUV_FORMATS, bytes, decode, face, info, init, packed_frame, with_faces, yuv_frame, yuv_halves};
use facepipe_detector::BoundingBox;
use gst::prelude::*;
use gst_check::Harness;
use gst_video::{VideoFormat, VideoInfo};
use gstfacepipe::{
    roi::{self, CropArea, FaceRegion},
    track_events,
};
use image::RgbImage;
use uuid::Uuid;

fn harness(info: &VideoInfo, properties: &str) -> Harness {
    init();
    // The faces of these tests score below the default certainty.
    let mut harness = Harness::new_parse(&format!("facepipe-facecrop name=crop certainty=0 {properties}"));
    harness.set_src_caps(info.to_caps().unwrap());
    harness
}

/// Returns the pictures of one frame's faces.
fn crops(info: &VideoInfo, properties: &str, frame: gst::Buffer, faces: &[FaceRegion]) -> Vec<RgbImage> {
    let mut harness = harness(info, properties);
    harness.push(with_faces(frame, 0, faces)).unwrap();
    std::iter::from_fn(|| harness.try_pull()).map(|crop| decode(&bytes(&crop))).collect()
}

fn sizes(crops: &[RgbImage]) -> Vec<(u32, u32)> {
    crops.iter().map(RgbImage::dimensions).collect()
}

fn gray(_: u32, _: u32) -> [u8; 3] {
    [128; 3]
}

/// Takes the events of a type that the element forwarded.
fn events(harness: &mut Harness, wanted: gst::EventType) -> Vec<gst::Event> {
    std::iter::from_fn(|| harness.try_pull_event()).filter(|event| event.type_() == wanted).collect()
}

#[test]
fn the_margin_surrounds_the_face_and_ends_at_the_frame() {
    let info = info(VideoFormat::Rgb, 400, 300);
    let frame = || packed_frame(&info, gray);
    for (region, size) in [
        (face(100, 100, 40, 80), (60, 120)),
        (face(0, 0, 40, 40), (50, 50)),
        (face(360, 0, 40, 40), (50, 50)),
        (face(0, 260, 40, 40), (50, 50)),
        (face(360, 260, 40, 40), (50, 50)),
        (face(4, 100, 40, 40), (54, 60)),
    ] {
        assert_eq!(sizes(&crops(&info, "", frame(), &[region])), [size], "{region:?}");
    }
    assert_eq!(sizes(&crops(&info, "margin=0", frame(), &[face(9, 9, 40, 50)])), [(40, 50)]);
    assert_eq!(
        sizes(&crops(&info, "margin=0.5 max-size=400", frame(), &[face(90, 90, 40, 50)])),
        [(80, 100)]
    );
    assert_eq!(sizes(&crops(&info, "max-size=1000", frame(), &[face(0, 0, 400, 300)])), [(400, 300)]);
}

#[test]
fn a_face_beyond_the_frame_counts_with_its_inner_part() {
    let info = info(VideoFormat::Rgb, 200, 200);
    let frame = || packed_frame(&info, gray);
    // 60 of 100 pixels are inside, with a margin of a quarter of 60 on the one side that has room.
    assert_eq!(sizes(&crops(&info, "", frame(), &[face(140, 0, 100, 40)])), [(75, 50)]);
    let inner = [face(180, 0, 100, 100)];
    assert_eq!(sizes(&crops(&info, "min-size=21", frame(), &inner)), [], "20 pixels are too few");
    assert_eq!(
        sizes(&crops(&info, "min-size=0", frame(), &[face(200, 50, 50, 50), face(50, 300, 50, 50)])),
        []
    );
    assert_eq!(sizes(&crops(&info, "min-size=0", frame(), &[face(50, 50, 0, 50)])), []);
    let huge = face(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
    assert_eq!(sizes(&crops(&info, "min-size=0", frame(), &[huge])), []);
    assert_eq!(sizes(&crops(&info, "", frame(), &[face(0, 0, u32::MAX, u32::MAX)])), [(150, 150)]);
}

#[test]
fn small_faces_are_left_out_and_large_ones_shrunk_but_none_enlarged() {
    let info = info(VideoFormat::Rgb, 1000, 800);
    let frame = || packed_frame(&info, gray);
    let faces = [face(0, 0, 29, 100), face(0, 0, 100, 29), face(300, 300, 30, 30), face(300, 300, 100, 200)];
    assert_eq!(sizes(&crops(&info, "min-size=30", frame(), &faces)), [(46, 46), (75, 150)]);
    assert_eq!(sizes(&crops(&info, "min-size=101", frame(), &faces)), []);
    assert_eq!(sizes(&crops(&info, "max-size=60", frame(), &faces[3..])), [(30, 60)]);
    let sliver = face(0, 0, 1000, 2);
    assert_eq!(sizes(&crops(&info, "min-size=1 margin=0 max-size=16", frame(), &[sliver])), [(16, 1)]);
}

#[test]
fn each_face_becomes_a_buffer_with_the_time_of_its_frame() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    let faces = [face(10, 10, 40, 40), face(100, 100, 50, 50), face(200, 10, 60, 60)];
    harness.push(with_faces(packed_frame(&info, gray), 1000, &faces)).unwrap();
    harness.push(with_faces(packed_frame(&info, gray), 1040, &faces[1..2])).unwrap();
    let times: Vec<(u64, u64)> = std::iter::from_fn(|| harness.try_pull())
        .map(|crop| (crop.pts().unwrap().mseconds(), crop.duration().unwrap().mseconds()))
        .collect();
    assert_eq!(times, [(1000, 40), (1000, 40), (1000, 40), (1040, 40)]);
}

#[test]
fn each_picture_carries_the_metadata_of_its_face() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "policy=every max-clock-offset=-1");
    let tracked = FaceRegion { track_id: Some(17), confidence: 0.875, ..face(10, 20, 40, 50) };
    let mut frame = with_faces(packed_frame(&info, gray), 0, &[tracked]);
    // 2024-05-06 07:08:09 UTC in NTP time, as cameras send it by RTCP.
    let unix = 1_714_979_289;
    let ntp = gst::Caps::builder("timestamp/x-ntp").build();
    let time = gst::ClockTime::from_seconds(unix + 2_208_988_800);
    gst::ReferenceTimestampMeta::add(frame.make_mut(), &ntp, time, None);
    harness.push(frame).unwrap();
    let crop = harness.pull().unwrap();
    let metadata = roi::crop_metadata(&crop).unwrap();
    assert_eq!(metadata.face, tracked);
    assert_eq!((metadata.frame_width, metadata.frame_height), (320, 240));
    // 40 x 50 pixels and a quarter on each side, clipped on the left.
    let area =
        CropArea { bounding_box: BoundingBox::new(0, 7, 60, 83), picture_width: 60, picture_height: 76 };
    assert_eq!(metadata.area, Some(area));
    assert_eq!(metadata.captured_at.unwrap().as_secs(), unix);
    assert_eq!(crop.meta::<gst::ReferenceTimestampMeta>().unwrap().timestamp(), time);
}

/// Runs 20 frames of a camera whose clock is ahead; every third frame, from the fourth on, has a reference timestamp. Returns for
/// each crop how many seconds its capture time is ahead of this machine's, and whether the camera's clock was refused.
fn captured(properties: &str, ahead: i64) -> (Vec<(i64, bool)>, Vec<String>) {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, &format!("policy=every {properties}"));
    let bus = gst::Bus::new();
    let element = harness.element().unwrap();
    element.set_bus(Some(&bus));
    let unix = gst::Caps::builder("timestamp/x-unix").build();
    let mut found = Vec::new();
    for n in 0..20 {
        let mut frame = with_faces(packed_frame(&info, gray), 10 * n, &[face(10, 20, 40, 50)]);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        if n % 3 == 0 && n > 0 {
            let said = now.as_nanos() as i64 + ahead * 1_000_000_000;
            let said = gst::ClockTime::from_nseconds(said as u64);
            gst::ReferenceTimestampMeta::add(frame.make_mut(), &unix, said, None);
        }
        harness.push(frame).unwrap();
        let metadata = roi::crop_metadata(&harness.pull().unwrap()).unwrap();
        let after = metadata.captured_at.unwrap().as_secs_f64() - now.as_secs_f64();
        found.push((after.round() as i64, metadata.clock_refused));
    }
    let warnings = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Warning]));
    let text = |message: &gst::Message| match message.view() {
        gst::MessageView::Warning(warning) => warning.error().to_string(),
        _ => unreachable!(),
    };
    let warnings = warnings.map(|message| text(&message)).collect();
    element.set_bus(None::<&gst::Bus>);
    (found, warnings)
}

#[test]
fn a_plausible_camera_clock_is_trusted_for_all_frames_and_another_for_none() {
    let year = 31_557_600;
    for ahead in [-300, 300, -26 * year] {
        let (times, warnings) = captured("", ahead);
        assert!(
            times[..3].iter().all(|t| *t == (0, false)) && times[3..].iter().all(|t| *t == (0, true)),
            "{times:?}"
        );
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let expected = if ahead > 0 {
            "300 s ahead of"
        } else if ahead == -300 {
            "300 s behind"
        } else {
            "26 years behind"
        };
        assert!(
            warnings[0].contains(expected) && warnings[0].contains("max-clock-offset is 60 s"),
            "{warnings:?}"
        );
    }
    for (properties, ahead) in
        [("", -20), ("max-clock-offset=600", -300), ("max-clock-offset=-1", -26 * year)]
    {
        let (times, warnings) = captured(properties, ahead);
        assert!(times[..3].iter().all(|t| *t == (0, false)), "{times:?}");
        assert!(times[3..].iter().all(|t| *t == (ahead, false)), "{properties}: {times:?}");
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    let (times, warnings) = captured("max-clock-offset=0", -2);
    assert!(times.iter().all(|t| *t == (0, false)) && warnings.is_empty(), "never: {times:?}");
}

#[test]
fn without_a_reference_timestamp_the_capture_time_is_that_of_the_clock() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    harness.use_systemclock();
    harness.play();
    // A frame that was due ten seconds ago.
    let element = harness.element().unwrap().downcast::<gst::Bin>().unwrap().by_name("crop").unwrap();
    let clock_time = element.clock().unwrap().time();
    element.set_base_time(clock_time - gst::ClockTime::from_seconds(15));
    harness.push(with_faces(packed_frame(&info, gray), 5000, &[face(10, 10, 40, 40)])).unwrap();
    let captured_at = roi::crop_metadata(&harness.pull().unwrap()).unwrap().captured_at.unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let age = (now - captured_at).as_secs_f64();
    assert!((9.9..12.0).contains(&age), "{age} s old");
}

#[test]
fn a_frame_without_faces_becomes_a_gap() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    harness.push(with_faces(packed_frame(&info, gray), 80, &[])).unwrap();
    harness.push(with_faces(packed_frame(&info, gray), 120, &[face(0, 0, 10, 10)])).unwrap();
    assert_eq!(harness.buffers_in_queue(), 0);
    let gaps: Vec<(u64, Option<u64>)> = events(&mut harness, gst::EventType::Gap)
        .iter()
        .map(|event| {
            let gst::EventView::Gap(gap) = event.view() else { unreachable!() };
            let (time, duration) = gap.get();
            (time.mseconds(), duration.map(|d| d.mseconds()))
        })
        .collect();
    assert_eq!(gaps, [(80, Some(40)), (120, Some(40))]);
}

#[test]
fn the_caps_are_jpeg_at_the_frame_rate_of_the_input_and_follow_its_changes() {
    let first = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&first, "max-size=1000");
    let whole = face(0, 0, 10_000, 10_000);
    harness.push(with_faces(packed_frame(&first, gray), 0, &[whole])).unwrap();
    let second =
        VideoInfo::builder(VideoFormat::Bgrx, 201, 99).fps(gst::Fraction::new(5, 1)).build().unwrap();
    harness.set_src_caps(second.to_caps().unwrap());
    harness.push(with_faces(packed_frame(&second, gray), 40, &[whole])).unwrap();
    let pictures: Vec<_> =
        std::iter::from_fn(|| harness.try_pull()).map(|crop| decode(&bytes(&crop)).dimensions()).collect();
    assert_eq!(pictures, [(320, 240), (201, 99)]);
    let caps: Vec<String> = events(&mut harness, gst::EventType::Caps)
        .iter()
        .map(|event| {
            let gst::EventView::Caps(caps) = event.view() else { unreachable!() };
            caps.caps().to_string()
        })
        .collect();
    assert_eq!(caps, ["image/jpeg, framerate=(fraction)25/1", "image/jpeg, framerate=(fraction)5/1"]);
}

#[test]
fn segments_flushes_and_eos_are_forwarded() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    harness.push(with_faces(packed_frame(&info, gray), 0, &[])).unwrap();
    assert_eq!(events(&mut harness, gst::EventType::Segment).len(), 1);
    assert!(harness.push_event(gst::event::FlushStart::new()));
    assert!(harness.push_event(gst::event::FlushStop::new(true)));
    assert_eq!(events(&mut harness, gst::EventType::FlushStop).len(), 1);
    assert!(harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new())));
    harness.push(with_faces(packed_frame(&info, gray), 0, &[face(9, 9, 50, 50)])).unwrap();
    assert_eq!(harness.buffers_in_queue(), 1);
    assert!(harness.push_event(gst::event::Eos::new()));
    assert_eq!(events(&mut harness, gst::EventType::Eos).len(), 1);
}

#[test]
fn a_frame_before_its_caps_is_refused() {
    init();
    let mut harness = Harness::new("facepipe-facecrop");
    harness.play();
    let pad = harness.element().unwrap().static_pad("sink").unwrap();
    pad.send_event(gst::event::StreamStart::new("no caps"));
    pad.send_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    assert_eq!(pad.chain(gst::Buffer::new()), Err(gst::FlowError::NotNegotiated));
}

/// Returns the pattern of the next test: a gentle slope in each channel.
fn slopes(x: u32, y: u32) -> [u8; 3] {
    [(x / 2) as u8, y as u8, (255 - x / 4 - y / 4) as u8]
}

#[test]
fn packed_pixels_keep_place_and_colour() {
    // JPEG halves the chroma, so up to 6 of 255 are lost on these slopes.
    let formats = [
        VideoFormat::Rgb,
        VideoFormat::Bgr,
        VideoFormat::Rgbx,
        VideoFormat::Bgrx,
        VideoFormat::Rgba,
        VideoFormat::Bgra,
    ];
    for format in formats {
        // An odd width, so that rows of RGB are padded.
        let info = info(format, 401, 203);
        let faces = [face(101, 51, 100, 60)];
        let [picture] = &crops(&info, "margin=0 quality=100", packed_frame(&info, slopes), &faces)[..] else {
            panic!("{format}: not one picture");
        };
        assert_eq!(picture.dimensions(), (100, 60));
        for (x, y, pixel) in picture.enumerate_pixels() {
            let expected = slopes(x + 101, y + 51);
            let worst = (0..3).map(|c| pixel.0[c].abs_diff(expected[c])).max().unwrap();
            assert!(worst <= 6, "{format} at {x}, {y}: {:?}, expected {expected:?}", pixel.0);
        }
    }
}

#[test]
fn shrinking_averages_over_the_area_of_each_pixel() {
    // Columns black, white, black, white: any sampling of single pixels gives stripes, the average is even
    // grey.
    let info = info(VideoFormat::Rgb, 600, 600);
    let stripes = |x: u32, _| [if x.is_multiple_of(2) { 0 } else { 255 }; 3];
    let faces = [face(0, 0, 600, 600)];
    let [even] = &crops(&info, "max-size=150", packed_frame(&info, stripes), &faces)[..] else {
        panic!("not one picture");
    };
    assert!(even.pixels().all(|p| p.0.iter().all(|c| (125..=130).contains(c))), "stripes in the average");

    // A factor that is not an integer: each output pixel covers 2.5 source pixels.
    let ramp = |x: u32, _| [(x * 255 / 599) as u8; 3];
    let [ramped] = &crops(&info, "max-size=240 quality=100", packed_frame(&info, ramp), &faces)[..] else {
        panic!("not one picture");
    };
    for (x, y, pixel) in ramped.enumerate_pixels() {
        let expected = ((f64::from(x) + 0.5) * 2.5 - 0.5) * 255.0 / 599.0;
        let found = f64::from(pixel.0[0]);
        assert!((found - expected).abs() <= 3.0, "{x}, {y}: {found}, expected {expected:.1}");
    }
}

#[test]
fn yuv_is_converted_by_the_matrix_and_range_of_its_caps() {
    // The primaries as the standards code them in 8 bits (BT.709 and BT.601 limited, JPEG full range).
    let cases: [(&str, [u8; 3], [u8; 3]); 9] = [
        ("bt709", [63, 102, 240], [255, 0, 0]),
        ("bt709", [173, 42, 26], [0, 255, 0]),
        ("bt709", [32, 240, 118], [0, 0, 255]),
        ("bt601", [81, 90, 240], [255, 0, 0]),
        ("bt601", [145, 54, 34], [0, 255, 0]),
        ("bt601", [41, 240, 110], [0, 0, 255]),
        ("1:4:0:0", [76, 85, 255], [255, 0, 0]),
        ("1:4:0:0", [150, 44, 21], [0, 255, 0]),
        ("bt709", [235, 128, 128], [255, 255, 255]),
    ];
    for format in YUV_FORMATS {
        for (colorimetry, code, rgb) in cases {
            let colorimetry = colorimetry.parse().unwrap();
            let info = VideoInfo::builder(format, 321, 241).colorimetry(&colorimetry).build().unwrap();
            let faces = [face(101, 51, 80, 60)];
            let [picture] = &crops(&info, "quality=100", yuv_frame(&info, code), &faces)[..] else {
                panic!("{format}: not one picture");
            };
            for pixel in picture.pixels() {
                let worst = (0..3).map(|c| pixel.0[c].abs_diff(rgb[c])).max().unwrap();
                assert!(worst <= 4, "{format} {colorimetry} {code:?}: {:?}, expected {rgb:?}", pixel.0);
            }
        }
    }
}

#[test]
fn luma_and_chroma_of_a_crop_are_aligned() {
    // Left half bright and reddish, right half dark and bluish, and the edge at an even column; cut at odd ones.
    for format in YUV_FORMATS {
        let info = info(format, 320, 240);
        let buffer = yuv_halves(&info, [100, 110, 150], [60, 150, 110]);
        let faces = [face(131, 101, 59, 59)];
        let [picture] = &crops(&info, "margin=0 quality=100", buffer, &faces)[..] else {
            panic!("{format}: not one picture");
        };
        // The edge at column 160 is at 29 of the crop; JPEG's own chroma is halved too, so two columns may
        // blend.
        for (x, y, pixel) in picture.enumerate_pixels().filter(|(x, ..)| !(27..=30).contains(x)) {
            let [r, g, b] = pixel.0.map(f64::from);
            assert_eq!(r > b, x < 29, "{format} at {x}, {y}: {:?}", pixel.0);
            // BT.601, limited range: 98 and 51 of 255.
            let luma = 0.299 * r + 0.587 * g + 0.114 * b;
            assert_eq!(luma > 75.0, x < 29, "{format} at {x}, {y}: {:?}", pixel.0);
        }
    }
}

#[test]
fn rows_are_read_with_the_strides_of_the_buffer() {
    let info = info(VideoFormat::Nv12, 320, 240);
    let mut harness = harness(&info, "quality=100");
    // The frame layout of hardware decoders: rows of 512 bytes, and the chroma 256 rows below.
    let (stride, rows) = (512_usize, 256_usize);
    let mut data = vec![0; stride * rows * 3 / 2];
    for (index, row) in data.chunks_mut(stride).enumerate() {
        if index < rows {
            row[..320].fill(63);
        } else {
            row[..320].chunks_exact_mut(2).for_each(|c| c.copy_from_slice(&[102, 240]));
        }
    }
    let mut buffer = gst::Buffer::from_mut_slice(data);
    gst_video::VideoMeta::add_full(
        buffer.make_mut(),
        gst_video::VideoFrameFlags::empty(),
        VideoFormat::Nv12,
        320,
        240,
        &[0, stride * rows],
        &[512, 512],
    )
    .unwrap();
    harness.set_src_caps_str("video/x-raw,format=NV12,width=320,height=240,framerate=25/1,colorimetry=bt709");
    harness.push(with_faces(buffer, 0, &[face(250, 180, 70, 60)])).unwrap();
    let picture = decode(&bytes(&harness.pull().unwrap()));
    for pixel in picture.pixels() {
        let [r, g, b] = pixel.0;
        assert!(r > 250 && g < 5 && b < 5, "{:?}", pixel.0);
    }
}

#[test]
fn lower_encoding_quality_makes_smaller_files() {
    let info = info(VideoFormat::Rgb, 320, 240);
    // Coarse noise, the same in every run.
    let noise = |x: u32, y: u32| [((x * 7919 + y * 104_729) % 251) as u8, (x * y % 256) as u8, (x ^ y) as u8];
    let length = |quality: u32| {
        let mut harness = harness(&info, &format!("quality={quality}"));
        harness.push(with_faces(packed_frame(&info, noise), 0, &[face(50, 50, 90, 90)])).unwrap();
        harness.pull().unwrap().size()
    };
    let lengths = [length(20), length(60), length(90), length(100)];
    assert!(lengths.is_sorted_by(|a, b| a < b), "{lengths:?}");
}

#[test]
fn multifilesink_and_jpegdec_accept_the_pictures() {
    let info = info(VideoFormat::Rgb, 320, 240);
    init();
    let folder = tempfile::tempdir().unwrap();
    let mut harness = Harness::new_parse("facepipe-facecrop ! tee name=t ! queue ! jpegdec");
    harness.set_src_caps(info.to_caps().unwrap());
    harness.push(with_faces(packed_frame(&info, gray), 0, &[face(50, 50, 40, 40)])).unwrap();
    let decoded = harness.pull().unwrap();
    assert!(roi::faces(&decoded).is_empty(), "the face's place in the frame is no region of the crop");

    let pattern = folder.path().join("face-%05d.jpg");
    let mut files = Harness::new_parse("facepipe-facecrop ! multifilesink name=files");
    let bin = files.element().unwrap().downcast::<gst::Bin>().unwrap();
    bin.by_name("files").unwrap().set_property("location", pattern.to_str().unwrap());
    files.set_src_caps(info.to_caps().unwrap());
    files.play();
    let faces = [face(50, 50, 40, 40), face(90, 50, 40, 40)];
    files.push(with_faces(packed_frame(&info, gray), 0, &faces)).unwrap();
    files.push_event(gst::event::Eos::new());
    let written = |index: u32| image::open(folder.path().join(format!("face-{index:05}.jpg"))).unwrap();
    assert_eq!((written(0).width(), written(1).width()), (60, 60));
}

/// Returns coarse noise: a sharp face.
fn noise(x: u32, y: u32) -> [u8; 3] {
    [((x / 2 * 7919 + y / 2 * 104_729) % 251) as u8; 3]
}

/// Returns a face of a track with this width and height in pixels.
fn tracked(track_id: i32, size: u32) -> FaceRegion {
    FaceRegion { track_id: Some(track_id), ..face(20, 20, size, size) }
}

/// Pushes a frame with these faces, and returns track id and width of the resulting pictures.
fn shots(
    harness: &mut Harness,
    info: &VideoInfo,
    milliseconds: u64,
    faces: &[FaceRegion],
) -> Vec<(i32, u32)> {
    harness.push(with_faces(packed_frame(info, noise), milliseconds, faces)).unwrap();
    pictures(harness)
}

fn pictures(harness: &mut Harness) -> Vec<(i32, u32)> {
    std::iter::from_fn(|| harness.try_pull())
        .map(|crop| {
            let face = roi::crop_metadata(&crop).unwrap().face;
            (face.track_id.unwrap(), face.bounding_box.width())
        })
        .collect()
}

#[test]
fn a_track_sends_a_first_picture_then_better_ones_and_the_best_at_its_end() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    assert_eq!(shots(&mut harness, &info, 0, &[tracked(1, 60)]), [(1, 60)]);
    assert_eq!(shots(&mut harness, &info, 40, &[tracked(1, 62)]), [], "hardly better");
    assert_eq!(shots(&mut harness, &info, 80, &[tracked(1, 140), tracked(2, 60)]), [(1, 140), (2, 60)]);
    assert_eq!(shots(&mut harness, &info, 120, &[tracked(1, 150), tracked(2, 64)]), []);
    assert_eq!(shots(&mut harness, &info, 160, &[tracked(1, 80), tracked(2, 30)]), [], "worse");
    // The tracker ends the first track; the event is forwarded as well.
    assert!(harness.push_event(track_events::tracks_ended(&[1])));
    let best = harness.pull().unwrap();
    let metadata = roi::crop_metadata(&best).unwrap();
    assert_eq!((metadata.face.track_id, metadata.face.bounding_box.width()), (Some(1), 150));
    assert_eq!(metadata.running_time.unwrap().as_millis(), 120, "when the face looked so");
    assert_eq!(best.pts().unwrap().mseconds(), 160, "timestamps never go back");
    assert_eq!(events(&mut harness, gst::EventType::CustomDownstream).len(), 1);
    // The end of the stream ends the second.
    assert!(harness.push_event(gst::event::Eos::new()));
    assert_eq!(pictures(&mut harness), [(2, 64)]);
}

#[test]
fn another_run_of_the_tracker_ends_the_tracks_of_the_one_before() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    let [first, second] = [7, 8].map(|id| track_events::track_run(Uuid::from_u128(id)));
    assert!(harness.push_event(first.clone()));
    assert_eq!(shots(&mut harness, &info, 0, &[tracked(1, 60)]), [(1, 60)]);
    assert_eq!(shots(&mut harness, &info, 40, &[tracked(1, 64)]), [], "waits for the end of the track");
    assert!(harness.push_event(first));
    assert_eq!(pictures(&mut harness), [], "the same run goes on");
    // Another segment, as after a start of the elements upstream.
    assert!(harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new())));
    events(&mut harness, gst::EventType::CustomDownstreamSticky);
    assert!(harness.push_event(second));
    let best = harness.try_pull().expect("the best picture of the first run");
    let face = roi::crop_metadata(&best).unwrap().face;
    assert_eq!((face.track_id, face.bounding_box.width()), (Some(1), 64));
    assert_eq!(best.pts(), None, "no frame of this segment came yet");
    assert_eq!(events(&mut harness, gst::EventType::CustomDownstreamSticky).len(), 1, "is forwarded");
    // The same number is another track: its first picture is sent though it is worse than those before.
    assert_eq!(shots(&mut harness, &info, 80, &[tracked(1, 60)]), [(1, 60)]);
}

#[test]
fn the_limits_of_a_track_are_obeyed_and_can_be_changed_while_playing() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "max-per-track=2");
    assert_eq!(shots(&mut harness, &info, 0, &[tracked(1, 40)]), [(1, 40)]);
    assert_eq!(shots(&mut harness, &info, 40, &[tracked(1, 150)]), [], "the second one is for the end");
    let element = harness.element().unwrap().downcast::<gst::Bin>().unwrap().by_name("crop").unwrap();
    element.set_property("max-per-track", 5_u32);
    element.set_property("improvement", 0.05_f64);
    assert_eq!(shots(&mut harness, &info, 80, &[tracked(1, 160)]), [(1, 160)]);
    element.set_property("policy", policy(&element, "every"));
    assert_eq!(shots(&mut harness, &info, 120, &[tracked(1, 40)]), [(1, 40)]);
}

fn policy(element: &gst::Element, nick: &str) -> gst::glib::Value {
    let class = gst::glib::EnumClass::with_type(element.property_type("policy").unwrap()).unwrap();
    class.to_value_by_nick(nick).unwrap()
}

#[test]
fn a_flush_drops_pending_crops_and_untracked_faces_all_become_pictures() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    assert_eq!(shots(&mut harness, &info, 0, &[tracked(1, 60)]), [(1, 60)]);
    assert_eq!(shots(&mut harness, &info, 40, &[tracked(1, 66)]), []);
    assert!(harness.push_event(gst::event::FlushStart::new()));
    assert!(harness.push_event(gst::event::FlushStop::new(true)));
    assert!(harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new())));
    assert!(harness.push_event(gst::event::Eos::new()));
    assert_eq!(pictures(&mut harness), []);

    let untracked = [face(20, 20, 60, 60), face(100, 100, 50, 50)];
    for _ in 0..3 {
        assert_eq!(crops(&info, "", packed_frame(&info, noise), &untracked).len(), 2);
    }
}

#[test]
fn a_face_at_the_frames_edge_waits_for_a_whole_one() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    let cut = FaceRegion { bounding_box: BoundingBox::from_size(0, 20, 100, 100), ..tracked(1, 100) };
    assert_eq!(shots(&mut harness, &info, 0, &[cut]), []);
    assert_eq!(shots(&mut harness, &info, 40, &[tracked(1, 100)]), [(1, 100)]);
    assert!(harness.push_event(gst::event::Eos::new()));
    assert_eq!(pictures(&mut harness), []);
}

#[test]
fn blurred_small_and_doubtful_faces_are_left_out_by_min_quality() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let count = |pixel: fn(u32, u32) -> [u8; 3], face| {
        crops(&info, "min-quality=0.5", packed_frame(&info, pixel), &[face]).len()
    };
    let sure = FaceRegion { confidence: 0.95, ..face(20, 20, 100, 100) };
    assert_eq!(count(noise, sure), 1);
    assert_eq!(count(gray, FaceRegion { confidence: 0.6, ..sure }), 0, "no edges at all");
    assert_eq!(
        count(
            noise,
            FaceRegion { bounding_box: BoundingBox::from_size(20, 20, 30, 30), confidence: 0.6, ..sure }
        ),
        0
    );
}

#[test]
fn webp_is_smaller_and_shows_the_same() {
    let info = info(VideoFormat::Nv12, 320, 240);
    let mut sizes = Vec::new();
    for encoding in ["jpeg", "webp"] {
        let mut harness = harness(&info, &format!("margin=0 quality=80 encoding={encoding}"));
        harness
            .push(with_faces(
                yuv_halves(&info, [100, 110, 150], [60, 150, 110]),
                0,
                &[face(130, 100, 60, 60)],
            ))
            .unwrap();
        let crop = bytes(&harness.pull().unwrap());
        let format = image::ImageFormat::from_extension(encoding).unwrap();
        let picture = image::load_from_memory_with_format(&crop, format).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (60, 60));
        for (x, expected) in [(5, [129, 84, 62]), (55, [26, 51, 96])] {
            let pixel = picture.get_pixel(x, 30).0;
            let worst = (0..3).map(|c| pixel[c].abs_diff(expected[c])).max().unwrap();
            assert!(worst <= 8, "{encoding} at {x}: {pixel:?}, expected {expected:?}");
        }
        let caps = events(&mut harness, gst::EventType::Caps);
        let gst::EventView::Caps(caps) = caps[0].view() else { unreachable!() };
        assert_eq!(caps.caps().structure(0).unwrap().name(), format!("image/{encoding}").as_str());
        sizes.push(crop.len());
    }
    assert!(sizes[1] < sizes[0], "{sizes:?}");
}

#[test]
fn a_crop_too_large_for_webp_is_an_error_that_names_its_size() {
    let info = info(VideoFormat::Rgb, 20_000, 40);
    let mut harness = harness(&info, "margin=0 min-size=1 max-size=20000 encoding=webp");
    let bus = gst::Bus::new();
    harness.element().unwrap().set_bus(Some(&bus));
    let whole = face(0, 0, 20_000, 40);
    assert!(harness.push(with_faces(packed_frame(&info, gray), 0, &[whole])).is_err());
    let message = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(error) = message.view() else { unreachable!() };
    assert!(error.error().message().contains("20000x40"), "{}", error.error());
    // Pending messages hold the element, which holds the bus.
    bus.set_flushing(true);
}

#[test]
fn sixteen_faces_of_one_frame_become_sixteen_pictures() {
    let info = info(VideoFormat::Nv12, 1280, 720);
    let faces: Vec<FaceRegion> = (0..16)
        .map(|n| FaceRegion {
            track_id: Some(n + 1),
            ..face(20 + n as u32 % 8 * 150, 40 + n as u32 / 8 * 300, 100, 120)
        })
        .collect();
    let mut harness = harness(&info, "policy=every");
    harness.push(with_faces(yuv_frame(&info, [90, 100, 110]), 0, &faces)).unwrap();
    let ids: Vec<i32> = pictures(&mut harness).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, (1..=16).collect::<Vec<_>>());
}

#[test]
fn after_an_hour_without_faces_the_next_one_is_cropped_at_once() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut harness = harness(&info, "");
    assert_eq!(shots(&mut harness, &info, 0, &[tracked(1, 100)]), [(1, 100)]);
    assert_eq!(shots(&mut harness, &info, 40, &[tracked(1, 110)]), []);
    let empty = packed_frame(&info, gray);
    assert_eq!(events(&mut harness, gst::EventType::Gap).len(), 1);
    for second in 1..=3600 {
        harness.push(with_faces(empty.copy(), second * 1000, &[])).unwrap();
        let gaps = events(&mut harness, gst::EventType::Gap).len();
        let pictures = pictures(&mut harness);
        // Without an event, the track ends after five seconds.
        assert_eq!(pictures, if second == 6 { vec![(1, 110)] } else { vec![] }, "second {second}");
        assert_eq!(gaps, usize::from(second != 6), "second {second}");
    }
    assert_eq!(shots(&mut harness, &info, 3_601_000, &[tracked(2, 100)]), [(2, 100)]);
}

/// Returns the statistics of the element.
fn stats(harness: &Harness) -> gst::Structure {
    let bin = harness.element().unwrap().downcast::<gst::Bin>().unwrap();
    bin.by_name("crop").unwrap().property("stats")
}

fn counted(harness: &Harness, names: &[&str]) -> Vec<u64> {
    let stats = stats(harness);
    names.iter().map(|name| stats.get(*name).unwrap()).collect()
}

#[test]
fn the_default_minimum_size_depends_on_the_frame_size() {
    for (width, height, least) in [
        (1920, 1080, 30),
        (1080, 1920, 30),
        (3840, 2160, 30),
        (1280, 720, 20),
        (1440, 900, 23),
        (640, 360, 20),
        (320, 240, 20),
    ] {
        let info = info(VideoFormat::Gray8, width, height);
        let frame = || yuv_frame(&info, [90; 3]);
        let faces = [face(10, 10, least - 1, 60), face(10, 100, 60, least)];
        let mut harness = harness(&info, "policy=every");
        harness.push(with_faces(frame(), 0, &faces)).unwrap();
        assert_eq!(harness.buffers_in_queue(), 1, "{width}x{height}");
        assert_eq!(counted(&harness, &["min-size"]), [u64::from(least)], "{width}x{height}");
        assert_eq!(sizes(&crops(&info, "margin=0 min-size=5", frame(), &[face(0, 0, 5, 5)])), [(5, 5)]);
    }
}

#[test]
fn faces_that_are_left_out_are_counted_also_after_the_end() {
    let info = info(VideoFormat::Rgb, 640, 360);
    let mut harness = harness(&info, "policy=every min-size=40 min-quality=0.3");
    let faces = [face(0, 50, 30, 90), face(50, 50, 39, 60), face(100, 50, 40, 40), face(200, 50, 160, 160)];
    harness.push(with_faces(packed_frame(&info, gray), 0, &faces)).unwrap();
    let names = ["faces", "pictures", "below-min-size", "below-min-quality", "min-size"];
    assert_eq!(counted(&harness, &names), [4, 1, 2, 1, 40]);
    let element = harness.element().unwrap().downcast::<gst::Bin>().unwrap().by_name("crop").unwrap();
    element.set_state(gst::State::Ready).unwrap();
    assert_eq!(counted(&harness, &names), [4, 1, 2, 1, 40], "until it starts again");
    element.set_state(gst::State::Paused).unwrap();
    assert_eq!(counted(&harness, &names), [0; 5]);
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn tracks_that_end_without_a_picture_are_counted() {
    let info = info(VideoFormat::Rgb, 640, 360);
    let mut harness = harness(&info, "min-size=40 min-quality=0.3");
    let tracked = |id: i32, region: FaceRegion| FaceRegion { track_id: Some(id), ..region };
    let far = |milliseconds: u64| {
        let faces = [
            tracked(1, face(300, 50, 39, 60)),
            tracked(2, face(100, 50, 30, 30)),
            tracked(3, face(10, 200, 41, 41)),
        ];
        with_faces(packed_frame(&info, gray), milliseconds, &faces)
    };
    harness.push(far(0)).unwrap();
    harness.push(far(40)).unwrap();
    let near = [tracked(2, face(100, 50, 160, 160))];
    harness.push(with_faces(packed_frame(&info, gray), 80, &near)).unwrap();
    harness.push_event(track_events::tracks_ended(&[1, 2, 3]));
    let names = ["tracks-below-min-size", "tracks-below-min-quality", "below-min-size", "pictures"];
    assert_eq!(counted(&harness, &names), [1, 1, 4, 1], "the second came near");
}

/// Returns a frame that was not searched, with a predicted face.
fn predicted(frame: gst::Buffer, milliseconds: u64, region: FaceRegion) -> gst::Buffer {
    let believed = FaceRegion { track_id: Some(3), predicted: true, ..region };
    let mut frame = with_faces(frame, milliseconds, &[believed]);
    gstfacepipe::detection_mark::mark(frame.make_mut(), false);
    frame
}

#[test]
fn converters_do_not_change_which_faces_are_cropped() {
    let nv12 = info(VideoFormat::Nv12, 640, 360);
    for between in [
        "identity",
        "videoconvert ! capsfilter caps=video/x-raw,format=BGRx",
        "videoscale ! capsfilter caps=video/x-raw,width=1280,height=720",
        "videoconvert ! videoscale ! capsfilter caps=video/x-raw,format=I420,width=320,height=180",
    ] {
        init();
        let mut harness =
            Harness::new_parse(&format!("{between} ! facepipe-facecrop name=crop policy=every min-size=1"));
        harness.set_src_caps(nv12.to_caps().unwrap());
        let found = FaceRegion { track_id: Some(3), confidence: 0.875, ..face(40, 80, 120, 160) };
        let other = FaceRegion { track_id: Some(4), confidence: 0.625, ..face(400, 80, 80, 80) };
        let frame = || yuv_frame(&nv12, [90, 100, 150]);
        harness.push(predicted(frame(), 0, found)).unwrap();
        harness.push(with_faces(frame(), 40, &[found, other])).unwrap();
        harness.push(predicted(frame(), 80, found)).unwrap();
        let cut: Vec<_> = std::iter::from_fn(|| harness.try_pull())
            .map(|crop| roi::crop_metadata(&crop).unwrap())
            .collect();
        assert_eq!(cut.len(), 2, "{between}: only what was found is cut out");
        let scale = |pixels: u32| pixels * cut[0].frame_width / 640;
        for (metadata, face) in cut.iter().zip([found, other]) {
            // GStreamer scales a region's corner and its size.
            let [left, top, ..] = face.bounding_box.edges();
            let size = [face.bounding_box.width(), face.bounding_box.height()];
            let ([left, top], [width, height]) = ([left, top].map(scale), size.map(scale));
            let scaled = BoundingBox::from_size(left, top, width, height);
            assert_eq!(metadata.face, FaceRegion { bounding_box: scaled, ..face }, "{between}");
        }
    }
}

/// For a region that has lost everything but rectangle and id, the frame's mark decides whether it was detected.
#[test]
fn a_bare_region_of_a_frame_that_was_not_searched_is_not_cropped() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let cut = |searched: Option<bool>| {
        let mut harness = harness(&info, "policy=every");
        let mut frame = with_faces(packed_frame(&info, gray), 0, &[]);
        let writable = frame.make_mut();
        gst_video::VideoRegionOfInterestMeta::add(writable, "face", (10, 10, 60, 60)).set_id(7);
        if let Some(searched) = searched {
            gstfacepipe::detection_mark::mark(writable, searched);
        }
        harness.push(frame).unwrap();
        harness.buffers_in_queue()
    };
    assert_eq!((cut(None), cut(Some(true)), cut(Some(false))), (1, 1, 0));
}

#[test]
fn pixels_that_are_not_square_become_square_ones() {
    for (aspect, size) in [((1, 1), (60, 90)), ((2, 1), (120, 90)), ((1, 2), (60, 180)), ((4, 3), (80, 90))] {
        for format in [VideoFormat::Rgb, VideoFormat::Nv12, VideoFormat::Gray8] {
            let info = VideoInfo::builder(format, 400, 300)
                .par(gst::Fraction::new(aspect.0, aspect.1))
                .fps(gst::Fraction::new(25, 1))
                .build()
                .unwrap();
            let frame = || {
                if info.is_rgb() { packed_frame(&info, gray) } else { yuv_halves(&info, [90; 3], [200; 3]) }
            };
            let region = face(100, 100, 60, 90);
            let pictures = crops(&info, "margin=0 max-size=1000", frame(), &[region]);
            assert_eq!(sizes(&pictures), [size], "{format} {aspect:?}");
            // Size limits are in square pixels, boxes in pixels of the frame.
            let mut harness = harness(&info, "margin=0 max-size=100");
            harness.push(with_faces(frame(), 0, &[region])).unwrap();
            let crop = harness.pull().unwrap();
            assert_eq!(roi::crop_metadata(&crop).unwrap().face, region);
            let (width, height) = decode(&bytes(&crop)).dimensions();
            assert_eq!(width.max(height), if size == (60, 90) { 90 } else { size.0.max(size.1).min(100) });
            let near = |a: f64, b: f64| (a - b).abs() < 0.02;
            let shape = f64::from(width) / f64::from(height);
            assert!(near(shape, f64::from(size.0) / f64::from(size.1)), "{width}x{height} of {size:?}");
        }
    }
    // 20 pixels across are 40 square ones.
    let info = VideoInfo::builder(VideoFormat::Rgb, 960, 1080).par(gst::Fraction::new(2, 1)).build().unwrap();
    let frame = packed_frame(&info, gray);
    let faces = [face(100, 100, 20, 40), face(200, 100, 14, 40)];
    assert_eq!(sizes(&crops(&info, "margin=0", frame, &faces)), [(40, 40)]);
}

/// A stretched ramp: pixels are interpolated, not doubled.
#[test]
fn stretched_crops_are_interpolated() {
    let info = VideoInfo::builder(VideoFormat::Rgb, 64, 64)
        .par(gst::Fraction::new(2, 1))
        .fps(gst::Fraction::new(25, 1))
        .build()
        .unwrap();
    let ramp = packed_frame(&info, |x, _| [(x * 4) as u8; 3]);
    let pictures = crops(&info, "margin=0 quality=100 min-size=1", ramp, &[face(0, 0, 64, 64)]);
    assert_eq!(sizes(&pictures), [(128, 64)]);
    let row: Vec<i32> = (0..128).map(|x| i32::from(pictures[0].get_pixel(x, 32).0[1])).collect();
    let steps: Vec<i32> = row.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(steps[2..125].iter().all(|step| (1..=3).contains(step)), "{row:?}");
}

#[test]
fn grey_frames_become_grey_pictures() {
    let info = info(VideoFormat::Gray8, 161, 121);
    let pictures =
        crops(&info, "margin=0 quality=100", yuv_halves(&info, [60; 3], [180; 3]), &[face(40, 20, 81, 60)]);
    let picture = &pictures[0];
    for (x, expected) in [(5, 60), (75, 180)] {
        let pixel = picture.get_pixel(x, 30).0;
        assert!(pixel.iter().all(|&value| value.abs_diff(expected) <= 2), "{pixel:?} at {x}");
    }
}

#[test]
fn unsupported_formats_are_refused_with_the_list_of_supported_ones() {
    let info = info(VideoFormat::I420, 64, 48);
    let mut harness = harness(&info, "");
    let bus = gst::Bus::new();
    let element = harness.element().unwrap().downcast::<gst::Bin>().unwrap().by_name("crop").unwrap();
    element.set_bus(Some(&bus));
    let caps = "video/x-raw,format=GRAY16_LE,width=64,height=48,framerate=25/1";
    harness.push_event(gst::event::Caps::new(&caps.parse::<gst::Caps>().unwrap()));
    element.set_bus(None::<&gst::Bus>);
    let message = bus.pop_filtered(&[gst::MessageType::Error]).expect("an error on the bus");
    let gst::MessageView::Error(error) = message.view() else { unreachable!() };
    let sentence = error.error().to_string();
    assert!(sentence.contains("facecrop") && sentence.contains("GRAY16_LE"), "{sentence}");
    assert!(sentence.contains("videoconvert") && sentence.contains("P010_10LE"), "{sentence}");
}

#[test]
fn a_track_sends_nothing_before_the_detector_is_sure_of_its_face() {
    let info = info(VideoFormat::Rgb, 640, 360);
    let mut harness = harness(&info, "certainty=0.8");
    let look = |harness: &mut Harness, milliseconds: u64, faces: &[(i32, f64)]| {
        let regions: Vec<_> = faces
            .iter()
            .map(|&(id, confidence)| {
                let left = 150 * id as u32 - 140 + milliseconds as u32 / 40;
                FaceRegion { track_id: Some(id), confidence, ..face(left, 50, 120, 120) }
            })
            .collect();
        harness.push(with_faces(packed_frame(&info, gray), milliseconds, &regions)).unwrap();
        std::iter::from_fn(|| harness.try_pull())
            .map(|crop| roi::crop_metadata(&crop).unwrap().face.track_id.unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(look(&mut harness, 0, &[(1, 0.98), (2, 0.82), (3, 0.7)]), [1]);
    assert_eq!(look(&mut harness, 40, &[(1, 0.98), (2, 0.62), (3, 0.83)]), [] as [i32; 0]);
    assert_eq!(look(&mut harness, 80, &[(2, 0.81), (3, 0.64)]), [2], "the second time");
    harness.push_event(track_events::tracks_ended(&[1, 2, 3]));
    let rest = std::iter::from_fn(|| harness.try_pull());
    assert!(rest.map(|crop| roi::crop_metadata(&crop).unwrap().face.track_id).all(|id| id != Some(3)));
    assert_eq!(counted(&harness, &["tracks-below-certainty"]), [1]);
}
