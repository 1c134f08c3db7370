//! The video commands as a user runs them: the real `facepipe` against the real backend, with recordings, a network camera
//! and a screen. Without a V4L2 camera, an RTSP stream takes its place.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    ops::Range,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use facepipe_test_support::{require, skip, wait_until};
use facepipe_tests::{
    camera::Camera,
    programs::{ProgramOutput, TestEnvironment, facepipe, interrupt, read_until, with_file_size_limit},
    require_backend_weights,
};
use gst::prelude::*;
use serde_json::Value;

/// Cameras and windows run in real time: concurrent tests would starve each other on a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn exclusive() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An environment with a recording of four seconds: Tony Blair, enrolled, walks on the left, and Hugo Chavez, not enrolled, in
/// the middle; both from the first frame on.
fn environment(models: &Path, faces: PathBuf) -> (TestEnvironment, String) {
    let environment = TestEnvironment::new(models, faces);
    for known in ["Tony_Blair", "Ariel_Sharon"] {
        environment.photographs("people", known, &[1, 2]);
    }
    environment.run(&["enroll", "tree", &environment.path("people"), "--train"]).expect(0, &["Trained"]);
    for walker in ["Tony_Blair", "Hugo_Chavez"] {
        environment.photographs("walkers", walker, &[3, 4, 5]);
    }
    let video = environment.path("crowd.mp4");
    let crowd =
        ["bench", "crowd", &environment.path("walkers"), &video, "--seconds", "4", "--size", "1280x720"];
    environment.run(&[&crowd[..], &["--density", "700", "--seed", "3"]].concat()).expect(0, &[]);
    (environment, video)
}

/// Starts a program, and waits until it has printed `text` to standard output.
fn start_and_wait_for(mut command: Command, text: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    read_until(&mut stdout, text);
    (child, stdout)
}

/// Waits for the end of a program.
fn wait_for_end((child, mut stdout): (Child, BufReader<ChildStdout>)) -> ProgramOutput {
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let said = ProgramOutput::new(child.wait_with_output().unwrap());
    ProgramOutput { stdout: rest, ..said }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn read(report: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap()
}

/// Decodes the frames of a video file to RGB pixels.
fn frames(video: &str) -> Vec<Vec<u8>> {
    gst::init().unwrap();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={video} ! decodebin ! videoconvert ! video/x-raw,format=RGB ! \
         appsink name=frames sync=false max-buffers=2"
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let sink = pipeline.by_name("frames").unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut frames = Vec::new();
    while let Some(sample) = sink.emit_by_name::<Option<gst::Sample>>("pull-sample", &[]) {
        let buffer = sample.buffer().unwrap();
        frames.push(buffer.map_readable().unwrap().to_vec());
    }
    pipeline.set_state(gst::State::Null).unwrap();
    frames
}

const RED: [u8; 3] = [230, 30, 30];
const GREEN: [u8; 3] = [30, 200, 60];
const BLUE: [u8; 3] = [40, 110, 255];
const PURPLE: [u8; 3] = [160, 50, 220];

/// Counts the pixels of a colour, with a tolerance for encoding.
fn count_pixels(pixels: &[u8], color: [u8; 3]) -> usize {
    pixels.as_chunks::<3>().0.iter().filter(|pixel| is_near(**pixel, color, 40)).count()
}

fn is_near(pixel: [u8; 3], color: [u8; 3], most: u8) -> bool {
    pixel.iter().zip(color).all(|(value, of)| value.abs_diff(of) < most)
}

#[test]
fn a_recording_is_recognised_reported_and_annotated() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    for needed in ["models/pnet.pt", "models/version-RFB-640.onnx"] {
        require!(needed);
    }
    let _exclusive = exclusive();
    let (mut environment, video) = environment(&models, faces);
    let (report, csv, annotated) =
        (environment.path("out.json"), environment.path("out.csv"), environment.path("out.mp4"));

    // An enrolled walker and a stranger, each in one colour from the first frame on.
    let recognize = ["recognize", "video", &video];
    environment
        .run(&[&recognize[..], &["--report", &report, "--output", &annotated]].concat())
        .expect(0, &["No window is shown", "Tony_Blair (", "Frames    24 (24 searched)"]);
    let document = read(&report);
    assert_eq!((&document["frames"], &document["searched"]), (&24.into(), &24.into()));
    assert_eq!((&document["refused"], &document["unanswered"]), (&0.into(), &0.into()));
    let detections = document["detections"].as_array().unwrap();
    assert_eq!(document["faces"], detections.len());
    let named: BTreeSet<&str> = detections.iter().filter_map(|face| face["name"].as_str()).collect();
    assert_eq!(named, BTreeSet::from(["Tony_Blair"]), "{detections:?}");
    assert!(detections.iter().any(|face| face["decision"] == "unknown"), "{detections:?}");
    assert_eq!(document["people"][0]["name"], "Tony_Blair");
    let (drawn, plain) = (frames(&annotated), frames(&video));
    assert_eq!(drawn.len(), 24, "every frame is there");
    for (number, (drawn, plain)) in drawn.iter().zip(&plain).take(8).enumerate() {
        for color in [GREEN, BLUE] {
            let (with, without) = (count_pixels(drawn, color), count_pixels(plain, color));
            assert!(with > without + 150, "{color:?} in frame {number}: {with}, {without} without boxes");
        }
    }

    // The same as CSV, with every face of every frame and concurrent requests.
    let every = ["--policy", "every", "--parallel", "3", "--report", &csv];
    let summary = environment.json(&[&recognize[..], &every].concat());
    let rows = fs::read_to_string(&csv).unwrap();
    assert!(rows.starts_with("seconds,captured_at,track,left,"), "{rows}");
    assert_eq!(summary["faces"], rows.lines().count() - 1);
    assert!(number(&summary["faces"]) > 30.0, "{summary}");
    let confident = |row: &&str| {
        let confidence = row.split_once("known,Tony_Blair,").and_then(|(_, rest)| rest.parse::<f64>().ok());
        confidence.is_some_and(|confidence| (0.5..=1.0).contains(&confidence))
    };
    assert!(rows.lines().filter(confident).count() >= 8, "{rows}");

    // Fewer frames, fewer faces.
    let searched = |options: &[&str]| {
        let summary = environment.json(&[&recognize[..], options].concat());
        (summary["frames"].as_u64().unwrap(), summary["searched"].as_u64().unwrap(), summary["faces"].clone())
    };
    assert_eq!(searched(&["--skip-frames", "2"]).1, 8);
    assert_eq!(searched(&["--target-fps", "2"]).1, 8);
    assert_eq!(searched(&["--seconds", "2"]).0, 12);
    assert_eq!(searched(&["--min-size", "400"]).2, 0);
    assert_eq!(searched(&["--max-size", "20"]).2, 0);
    assert_eq!(searched(&["--min-confidence", "1"]).2, 0);

    // Errors, and what is written then.
    let wrong = |arguments: &[&str]| environment.run(&[&recognize[..], arguments].concat());
    wrong(&["--server", "http://127.0.0.1:1"]).expect(4, &["127.0.0.1:1 cannot be reached"]);
    wrong(&["--token", "not-the-token-of-this-test"]).expect(5, &["refused the token"]);
    wrong(&["--output", "out.avi"]).expect(2, &[".mp4"]);
    wrong(&["--report", "out.txt"]).expect(2, &[".json or .csv"]);
    wrong(&["--report", "/nonexistent/out.csv"]).expect(7, &["/nonexistent/out.csv"]);
    wrong(&["--output", "/nonexistent/out.mp4"]).expect(7, &["/nonexistent/out.mp4"]);
    wrong(&["--help"]).expect(0, &["Examples", "--report who.csv", "130"]);
    environment.run(&["recognize", "camera", "/dev/video999"]).expect(6, &["no such camera"]);
    environment.run(&["recognize", "camera", "--help"]).expect(0, &["Examples", "no box", "/dev/video0"]);
    let (full, full_report) = (environment.path("full.mp4"), environment.path("full.json"));
    for (option, file, kib) in [("--output", &full, 60), ("--report", &full_report, 1)] {
        let limited = environment.command(&[&recognize[..], &[option, file]].concat());
        ProgramOutput::new(with_file_size_limit(&limited, kib).output().unwrap())
            .expect(7, &[file, "cannot be written"]);
        assert!(!Path::new(file).exists(), "{file} is not whole");
    }

    // Ctrl-C: what was played is reported and drawn.
    let long = environment.path("long.mp4");
    repeat(&video, &long, 40);
    let options = ["--policy", "every", "--report", &report, "--output", &annotated];
    let started = start_and_wait_for(
        environment.command(&[&["recognize", "video", &long], &options[..]].concat()),
        "Tony_Blair",
    );
    interrupt(&started.0);
    wait_for_end(started).expect(130, &["Frames"]);
    let document = read(&report);
    assert_eq!(document["interrupted"], true);
    let played = document["frames"].as_u64().unwrap();
    assert!(played > 0 && played < 24 * 40, "{played} frames");
    let drawn = u64::try_from(frames(&annotated).len()).unwrap();
    assert!(drawn.abs_diff(played) <= 1, "{drawn} frames are drawn, {played} were played");
    let left: Vec<_> =
        fs::read_dir(environment.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().starts_with('.')), "{left:?}");

    // The server restarts meanwhile: a recording waits for it, up to the timeout.
    let options = ["--policy", "every", "--parallel", "1", "--report", &report];
    let started = start_and_wait_for(environment.command(&[&recognize[..], &options].concat()), "Tony_Blair");
    environment.backend.stop();
    environment.backend.start_again();
    wait_for_end(started).expect(0, &["Frames    24 (24 searched)"]);
    assert_eq!((&read(&report)["faces"], &read(&report)["unanswered"]), (&summary["faces"], &0.into()));
    let arguments = [&["recognize", "video", &long], &options[..], &["--timeout", "1"]].concat();
    let started = start_and_wait_for(environment.command(&arguments), "Tony_Blair");
    environment.backend.stop();
    wait_for_end(started).expect(4, &["cannot be reached", "Frames"]);
    let document = read(&report);
    assert!(number(&document["faces"]) > 0.0 && number(&document["unanswered"]) > 0.0, "{document}");
}

/// Writes a video that repeats another one.
fn repeat(video: &str, out: &str, times: usize) {
    gst::init().unwrap();
    let sources = format!("filesrc location={video} ! qtdemux ! h264parse ! all. ").repeat(times);
    play(&format!("concat name=all ! h264parse ! mp4mux ! filesink location={out} {sources}"));
}

/// Plays a pipeline to its end.
fn play(description: &str) {
    let pipeline = gst::parse::launch(description).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let messages = [gst::MessageType::Eos, gst::MessageType::Error];
    let ended =
        pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(60), &messages).unwrap();
    assert_eq!(ended.type_(), gst::MessageType::Eos, "{ended:?}");
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_network_camera_is_recognised_live() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    for needed in ["models/pnet.pt", "models/version-RFB-640.onnx"] {
        require!(needed);
    }
    let _exclusive = exclusive();
    let (mut environment, video) = environment(&models, faces);
    let long = environment.path("long.mp4");
    repeat(&video, &long, 20);
    let Some(camera) = Camera::start(0, &[&format!("gate={long}")]) else {
        skip("no RTSP server: install gir1.2-gst-rtsp-server-1.0 and python3-gi");
        return;
    };
    let gate = camera.url("gate");
    let (report, seen) = (environment.path("live.json"), environment.path("live.mp4"));
    let said = environment
        .run(&["recognize", "camera", &gate, "--seconds", "4", "--report", &report, "--output", &seen])
        .expect(0, &["No window is shown", "Tony_Blair ("]);
    assert!(!said.stderr.contains("Going on"), "{}", said.stderr);
    let document = read(&report);
    let captured = document["detections"][0]["captured_at"].as_str().unwrap();
    let captured =
        time::OffsetDateTime::parse(captured, &time::format_description::well_known::Rfc3339).unwrap();
    assert!((time::OffsetDateTime::now_utc() - captured).whole_seconds().abs() < 60, "{captured}");
    let seen = frames(&seen);
    assert!(seen.len() > 2, "a video that can be played: {} frames", seen.len());
    assert!(
        seen.iter().any(|frame| count_pixels(frame, GREEN) > 150)
            && seen.iter().any(|f| count_pixels(f, BLUE) > 150)
    );

    // File names of extracted faces have the time of day.
    let folder = environment.path("faces");
    ProgramOutput::new(
        facepipe(&["extract", &gate, &folder, "--seconds", "1", "--policy", "every"]).output().unwrap(),
    )
    .expect(0, &["Faces"]);
    let index = fs::read_to_string(Path::new(&folder).join("index.jsonl")).unwrap();
    let year = time::OffsetDateTime::now_utc().year().to_string();
    for line in index.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(
            line["captured_at"].is_string() && line["file"].as_str().unwrap().starts_with(&year),
            "{line}"
        );
    }
    assert!(!index.is_empty());

    // The server restarts: a camera continues. Then the camera fails: what was seen is kept.
    let options = ["--policy", "every", "--report", &report];
    let mut started = start_and_wait_for(
        environment.command(&[&["recognize", "camera", &gate], &options[..]].concat()),
        "Tony",
    );
    let mut stderr = BufReader::new(started.0.stderr.take().unwrap()).lines();
    let mut said =
        |text: &str| assert!(stderr.any(|line| line.unwrap().contains(text)), "{text:?} is not said");
    environment.backend.stop();
    said("Going on without answers");
    environment.backend.start_again();
    said("The server answers again");
    drop(camera);
    let code = started.0.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 6)), "an end of the stream or a failure of the camera: {code:?}");
    let document = read(&report);
    assert!(number(&document["faces"]) > 0.0 && number(&document["unanswered"]) > 0.0, "{document}");
    environment.run(&["recognize", "camera", &gate]).expect(6, &[&gate]);
}

/// A virtual screen whose pixels can be read.
struct Screen {
    server: Child,
    display: String,
    memory: tempfile::TempDir,
}

impl Screen {
    fn start() -> Option<Self> {
        let memory = tempfile::tempdir().unwrap();
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "1600x1000x24", "-nolisten", "tcp", "-fbdir"])
            .arg(memory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(server.stdout.take()?).read_line(&mut line).ok()?;
        let display = format!(":{}", line.trim());
        Some(Self { server, display, memory })
    }

    /// Counts the pixels of a colour in these columns and the rows above `bottom`. The file is an XWD dump (X11/XWDFile.h): a
    /// header of big-endian words, colours of 12 bytes each, and pixels of four bytes: blue, green, red, unused.
    fn count_pixels(&self, columns: Range<usize>, bottom: usize, color: [u8; 3]) -> usize {
        let dump = fs::read(self.memory.path().join("Xvfb_screen0")).unwrap();
        let word = |at: usize| {
            usize::try_from(u32::from_be_bytes(dump[at * 4..at * 4 + 4].try_into().unwrap())).unwrap()
        };
        let (header, width, height) = (word(0), word(4), word(5));
        let (least_first, bits, row, colors) = (word(7) == 0, word(11), word(12), word(19));
        assert!(least_first && bits == 32 && width == 1600, "{bits} bits, {width} pixels");
        let pixels = &dump[header + colors * 12..];
        pixels
            .chunks(row)
            .take(height.min(bottom))
            .flat_map(|line| line.as_chunks::<4>().0[columns.clone()].iter())
            .filter(|&&[b, g, r, _]| is_near([r, g, b], color, 24))
            .count()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The second window covers the left part of the first, since there is no window manager.
const SECOND_WINDOW: Range<usize> = 0..420;
const FIRST_WINDOW: Range<usize> = 430..1280;

/// Bottom of the first row of crops; in the first window, nobody walks above.
const FIRST_ROW_BOTTOM: usize = 230;

#[test]
fn windows_show_who_is_known_and_who_is_not() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    for needed in ["models/pnet.pt", "models/version-RFB-640.onnx"] {
        require!(needed);
    }
    let _exclusive = exclusive();
    let (environment, video) = environment(&models, faces);
    let Some(screen) = Screen::start() else {
        skip("no screen: install xvfb");
        return;
    };
    let watch = || {
        let mut watching = environment.command(&["recognize", "camera", &video, "--parallel", "1"]);
        watching.env("DISPLAY", &screen.display).stdout(Stdio::piped()).stderr(Stdio::piped());
        watching.spawn().unwrap()
    };
    let mut child = watch();
    // Hugo Chavez is in the middle, at first without a result, which a slow machine may miss: replay until everything was
    // seen. Of Tony Blair, on the left, the crop is visible.
    let mut most = [0; 4];
    wait_until("coloured boxes in both windows", || {
        if child.try_wait().unwrap().is_some() {
            child = watch();
        }
        let now = [
            screen.count_pixels(FIRST_WINDOW, 720, RED),
            screen.count_pixels(FIRST_WINDOW, 720, BLUE),
            screen.count_pixels(SECOND_WINDOW, FIRST_ROW_BOTTOM, BLUE),
            screen.count_pixels(SECOND_WINDOW, FIRST_ROW_BOTTOM, GREEN),
        ];
        most = std::array::from_fn(|window| most[window].max(now[window]));
        most.iter().all(|&pixels| pixels > 150)
    });
    interrupt(&child);
    let said = ProgramOutput::new(child.wait_with_output().unwrap());
    // The recording may just have ended.
    assert!(matches!(said.code, Some(0 | 130)), "{:?}: {}", said.code, said.stderr);

    // Without a screen it continues without windows.
    let mut blind = environment.command(&["recognize", "camera", &video, "--seconds", "1"]);
    let said = ProgramOutput::new(blind.env("DISPLAY", ":987").output().unwrap());
    said.expect(0, &["The window cannot be opened", "Tony_Blair"]);
    let mut hidden = environment.command(&["recognize", "camera", &video, "--seconds", "1", "--no-window"]);
    let said = ProgramOutput::new(hidden.env("DISPLAY", &screen.display).output().unwrap())
        .expect(0, &["Tony_Blair"]);
    assert!(!said.stderr.contains("indow"), "{}", said.stderr);
}

#[test]
fn sources_without_video_are_reported_and_an_animation_is_played_once() {
    let (scene, faces) = (require!("scenes/multiface.jpg"), require!("lfw10"));
    require!("models/version-RFB-640.onnx");
    let _exclusive = exclusive();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let extract = |source: &str, more: &[&str]| {
        let fixed = ["extract", source, &path("faces"), "--policy", "every", "--resume"];
        ProgramOutput::new(facepipe(&[&fixed[..], more].concat()).output().unwrap())
    };

    // An animation of two seconds, and a still picture.
    let group = image::open(scene).unwrap().into_rgba8();
    let gif = |name: &str, frames: u32| {
        let mut encoder =
            image::codecs::gif::GifEncoder::new_with_speed(fs::File::create(path(name)).unwrap(), 30);
        let delay = image::Delay::from_numer_denom_ms(500, 1);
        let frame = |_| image::Frame::from_parts(group.clone(), 0, 0, delay);
        encoder.encode_frames((0..frames).map(frame)).unwrap();
        path(name)
    };
    let said = extract(&gif("group.gif", 4), &[]).expect(0, &["Video     1.5 s"]);
    assert!(said.stdout.contains("Faces     "), "{}", said.stdout);
    let written: Vec<String> =
        fs::read_dir(path("faces")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for second in ["00000.000", "00000.500", "00001.000", "00001.500"] {
        assert!(written.iter().any(|name| name.starts_with(second)), "{second}: {written:?}");
    }
    // Faces left out are reported last.
    let said = extract(&gif("group.gif", 2), &["--min-size", "2000"]).expect(0, &["Faces     0 files"]);
    let last = said.stdout.lines().last().unwrap();
    assert!(
        last.starts_with("Left out  ") && last.ends_with(" faces smaller than 2000 px (--min-size)"),
        "{last}"
    );
    let photograph = faces.join("Tony_Blair/Tony_Blair_0001.jpg");
    for (picture, what) in
        [(photograph.to_str().unwrap(), "is a picture"), (&gif("still.gif", 1), "is a picture")]
    {
        extract(picture, &[]).expect(6, &[what, "facepipe recognize folder"]);
        ProgramOutput::new(facepipe(&["recognize", "video", picture]).output().unwrap()).expect(6, &[what]);
    }

    // A pipe without data.
    let pipe = path("silent.mp4");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let _silent = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    extract(&pipe, &["--first-frame", "1"])
        .expect(6, &["silent.mp4", "no frame of it came within 1 s", "--first-frame"]);

    // Audio only.
    gst::init().unwrap();
    let sound = path("sound.ogg");
    play(&format!("audiotestsrc num-buffers=50 ! vorbisenc ! oggmux ! filesink location={sound}"));
    extract(&sound, &[]).expect(6, &["sound.ogg", "has no video in it"]);
}

/// A video of photographs, half a second each.
fn write_slideshow(pictures: &[PathBuf], folder: &Path, video: &str) {
    gst::init().unwrap();
    fs::create_dir_all(folder).unwrap();
    for (number, picture) in pictures.iter().enumerate() {
        fs::copy(picture, folder.join(format!("{number:03}.jpg"))).unwrap();
    }
    play(&format!(
        "multifilesrc location={}/%03d.jpg caps=image/jpeg,framerate=2/1 ! jpegdec ! videoconvert ! \
         video/x-raw,format=I420 ! x264enc quantizer=15 pass=quant ! h264parse ! mp4mux ! filesink location={video}",
        folder.display()
    ));
}

#[test]
fn a_person_is_enrolled_from_a_video_with_distinct_pictures() {
    let (group, faces) = (require!("scenes/crowd-01.jpg"), require!("lfw10"));
    let models = require_backend_weights!();
    require!("models/version-RFB-640.onnx");
    let _exclusive = exclusive();
    let environment = TestEnvironment::new(&models, faces);
    let video = environment.path("ada.mp4");
    let numbers: Vec<usize> = (1..=10).collect();
    let folder = environment.photographs("shots", "Tony_Blair", &numbers);
    let mut shots: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    shots.sort();
    // Every photograph twice: the second is too similar.
    let twice: Vec<PathBuf> = shots.iter().flat_map(|shot| [shot.clone(), shot.clone()]).collect();
    write_slideshow(&twice, &environment.folder.path().join("frames"), &video);

    let enroll = ["enroll", "camera", &video, "--id", "Ada", "--apart", "0.1"];
    let run = |arguments: &[&str]| environment.run(&[&enroll[..], arguments].concat());
    run(&["--count", "3"]).expect(2, &["Ada", "--create"]);
    environment.run(&["enroll", "camera", "/dev/video999", "--id", "Ada"]).expect(6, &["no such camera"]);
    run(&["--server", "http://127.0.0.1:1"]).expect(4, &["cannot be reached"]);
    run(&["--token", "not-the-token-of-this-test"]).expect(5, &["refused the token"]);
    run(&["--help"]).expect(0, &["Examples", "--create --count 20 --train", "130"]);
    run(&["--create", "--count", "3", "--train"])
        .expect(0, &["Added     Ada", "3 of 3", "Trained   model 1"]);
    // A second run counts existing pictures and adds the rest.
    let said = run(&["--count", "50", "--json"]).expect(3, &[]);
    let summary: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(summary["already_there"], 3, "{summary} {}", said.stderr);
    let enrolled = number(&summary["enrolled"]);
    assert!((4.0..=7.0).contains(&enrolled), "{summary}");
    assert!(number(&summary["frames_alike"]) >= 8.0, "the second of each: {summary}");
    assert_eq!(number(&environment.json(&["people"])["people"][0]["images"]), enrolled + 3.0);

    // A group without a main face is refused, and nobody is added.
    let still = environment.path("group.mp4");
    write_slideshow(&vec![group; 6], &environment.folder.path().join("group"), &still);
    let several = ["enroll", "camera", &still, "--id", "Eve", "--create", "--seconds", "2"];
    environment.run(&several).expect(3, &["Several faces", "with several faces", "0 of 20"]);
    environment.run(&["people", "show", "Eve"]).expect(6, &["nobody of that name"]);

    // On a screen: the purple box and the uploaded crop. Interrupted and continued.
    let Some(screen) = Screen::start() else {
        skip("no screen: install xvfb");
        return;
    };
    // A picture belongs to one person: erase Ada's before enrolling Eve.
    environment.run(&["people", "delete", "Ada", "--yes"]).expect(0, &[]);
    let eve = ["enroll", "camera", &video, "--id", "Eve", "--create", "--count", "6"];
    let mut watched = environment.command(&eve);
    let child = watched
        .env("DISPLAY", &screen.display)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut both, mut second) = (0, 0);
    wait_until("purple boxes", || {
        both = both.max(screen.count_pixels(0..1280, 1000, PURPLE));
        second = second.max(screen.count_pixels(250..420, 1000, PURPLE));
        both > 800 && second > 300
    });
    interrupt(&child);
    ProgramOutput::new(child.wait_with_output().unwrap()).expect(130, &["Enrolled"]);
    environment.run(&eve).expect(0, &["already there", "6 of 6"]);
    assert_eq!(number(&environment.json(&["people", "show", "Eve"])["meta"]["total"]), 6.0);
}
