//! The programs that play video, from a user's side: the real `facepipe` against the real backend, with recordings, a
//! network camera and a screen. There is no V4L2 camera here; what is asked of one is asked of an RTSP stream.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use facepipe_test_support::{models_dir, require, skip};
use facepipe_tests::{
    Backend,
    camera::Camera,
    programs::{Said, bare, interrupt},
};
use gst::prelude::*;
use serde_json::Value;

const TOKEN: &str = "a-token-of-this-test";

/// What something may take on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(60);

/// The crowd walks these people in its first seconds, from 0 s and from 4.5 s on.
const VIDEO: &str = "videos/crowd-medium-1080p6.mp4";
const WALKERS: [&str; 2] = ["Tony_Blair", "Vladimir_Putin"];

/// Cameras and windows run in real time: two tests at once would starve each other on a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A folder for a test's own files.
struct Place {
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Self { folder: tempfile::tempdir().unwrap(), _turn: turn }
    }

    fn text(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// A backend that wants a token and knows these people from two photographs each.
    fn backend(&self, faces: &Path, people: &[&str]) -> Backend {
        let tokens = self.text("tokens");
        fs::write(&tokens, format!("admin {TOKEN}\n")).unwrap();
        let backend = Backend::start_with(&models_dir(), &["--token-file", &tokens]);
        if !people.is_empty() {
            for person in people {
                let target = self.folder.path().join("people").join(person);
                fs::create_dir_all(&target).unwrap();
                for photograph in photographs(faces, person).iter().take(2) {
                    fs::copy(photograph, target.join(photograph.file_name().unwrap())).unwrap();
                }
            }
            run(&backend, &["enroll", "tree", &self.text("people"), "--train"]).expect(0, &["Trained"]);
        }
        backend
    }
}

fn photographs(faces: &Path, person: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(faces.join(person)).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// The program with the server and the token in its environment, and without a screen.
fn command(backend: &Backend, arguments: &[&str]) -> Command {
    let mut command = bare(arguments);
    command.env("FACEPIPE_SERVER", backend.url()).env("FACEPIPE_TOKEN", TOKEN);
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    command
}

fn run(backend: &Backend, arguments: &[&str]) -> Said {
    Said::of(command(backend, arguments).output().unwrap())
}

/// Lets a program write files of at most so many KiB: for it, the disk is full then.
fn on_a_small_disk(limited: &Command, kib: u32) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\""), "bash"]);
    command.arg(limited.get_program()).args(limited.get_args());
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Waits until something holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Starts a program and interrupts it as soon as something holds.
fn interrupted(command: &mut Command, what: &str, holds: impl FnMut() -> bool) -> Said {
    // Tests may run where SIGINT is ignored (`nohup … &`), which children inherit.
    let mut unignored = Command::new("env");
    unignored.arg("--default-signal=INT").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => unignored.env(name, value),
            None => unignored.env_remove(name),
        };
    }
    let child = unignored.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually(what, holds);
    interrupt(&child);
    Said::of(child.wait_with_output().unwrap())
}

/// The lines of an index; each names a picture that is there, whole, and no picture is without its line.
fn index(folder: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(folder).join("index.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named: BTreeSet<String> =
        lines.iter().map(|line| line["file"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named.len(), lines.len(), "a picture is indexed twice");
    let there: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "index.jsonl")
        .collect();
    assert_eq!(there, named);
    for line in &lines {
        let picture = fs::read(Path::new(folder).join(line["file"].as_str().unwrap())).unwrap();
        assert_eq!(line["bytes"].as_u64().unwrap(), u64::try_from(picture.len()).unwrap());
        assert!(picture.starts_with(&[0xff, 0xd8]) && picture.ends_with(&[0xff, 0xd9]), "whole JPEG: {line}");
    }
    lines
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn faces_are_extracted_with_time_track_and_score_and_an_interrupted_run_goes_on() {
    let video = require!(VIDEO);
    require!("models/version-RFB-640.onnx");
    let place = Place::new();
    let source = video.to_str().unwrap();
    let extract = |arguments: &[&str]| bare(&[&["extract", source], arguments].concat());
    let said = |arguments: &[&str]| Said::of(extract(arguments).output().unwrap());

    let whole = place.text("whole");
    let options = ["--seconds", "6", "--policy", "every"];
    let summary = said(&[&[whole.as_str(), "--json"], &options[..]].concat()).expect(0, &[]);
    let summary: Value = serde_json::from_str(&summary.stdout).unwrap();
    let lines = index(&whole);
    assert_eq!((&summary["frames"], &summary["searched"]), (&36.into(), &36.into()), "{summary}");
    assert_eq!(summary["faces"], lines.len());
    assert!(lines.len() > 15, "{} faces", lines.len());
    let first = &lines[0];
    assert_eq!(first["frame"], serde_json::json!([1920, 1080]));
    // The first walker, as the ground truth has it.
    assert!((number(&first["box"]["left"]) - 954.8).abs() < 15.0, "{first}");
    assert!(first["file"].as_str().unwrap().starts_with("00000.000_t0001_s"), "{first}");
    assert!(first.get("captured_at").is_none(), "a recording does not tell its date: {first}");

    // Every third frame, no more than three a second, and the small faces left out.
    let skipped = place.text("skipped");
    let summary = said(&[&skipped, "--seconds", "3", "--skip-frames", "2", "--json"]).expect(0, &[]);
    assert_eq!(serde_json::from_str::<Value>(&summary.stdout).unwrap()["searched"], 6);
    let slow = place.text("slow");
    let summary = said(&[&slow, "--seconds", "3", "--target-fps", "3", "--json"]).expect(0, &[]);
    assert_eq!(serde_json::from_str::<Value>(&summary.stdout).unwrap()["searched"], 9);
    let large = place.text("large");
    said(&[&large, "--seconds", "3", "--policy", "every", "--min-size", "75"]).expect(0, &[]);
    let sizes: Vec<f64> = index(&large)
        .iter()
        .map(|line| {
            let side = |end: &str, start: &str| number(&line["box"][end]) - number(&line["box"][start]);
            side("right", "left").min(side("bottom", "top"))
        })
        .collect();
    assert!(!sizes.is_empty() && sizes.iter().all(|&size| size >= 75.0), "{sizes:?}");

    // Begun, ended by Ctrl-C, and gone on with: together what one run gives.
    let resumed = place.text("resumed");
    said(&[&[resumed.as_str(), "--seconds", "2"], &options[2..]].concat()).expect(0, &[]);
    said(&[&resumed, "--policy", "every"]).expect(2, &["not empty", "--resume", "--overwrite"]);
    let before = index(&resumed).len();
    let mut again = extract(&[&[resumed.as_str(), "--resume"], &options[2..]].concat());
    let jsonl = Path::new(&resumed).join("index.jsonl");
    interrupted(&mut again, "more faces", || {
        fs::read_to_string(&jsonl).unwrap().lines().count() > before + 3
    })
    .expect(130, &["--resume"]);
    let middle = index(&resumed).len();
    assert!(middle > before);
    said(&[&[resumed.as_str(), "--resume"], &options[..]].concat()).expect(0, &[]);
    let places = |lines: &[Value]| -> BTreeSet<String> {
        lines
            .iter()
            .filter(|line| number(&line["seconds"]) < 6.0)
            .map(|line| format!("{} {}", line["seconds"], line["box"]))
            .collect()
    };
    assert_eq!(places(&index(&resumed)), places(&lines));
    said(&[&[resumed.as_str(), "--overwrite"], &options[..2]].concat()).expect(0, &["Faces"]);
    assert!(index(&resumed).len() < lines.len(), "a few good ones of each");
}

#[test]
fn what_cannot_be_extracted_is_said_with_what_to_do() {
    let video = require!(VIDEO);
    require!("models/version-RFB-640.onnx");
    let place = Place::new();
    let out = place.text("out");
    let said = |source: &str| Said::of(bare(&["extract", source, &out]).output().unwrap());
    said("/dev/video987").expect(6, &["/dev/video987", "no such camera"]);
    said(&place.text("nothing.mp4")).expect(6, &["nothing.mp4", "no such file"]);
    said(place.folder.path().to_str().unwrap()).expect(6, &["is a folder"]);
    fs::write(place.text("empty.mp4"), b"").unwrap();
    said(&place.text("empty.mp4")).expect(6, &["is empty"]);
    fs::write(place.text("text.mp4"), "this is no video\n".repeat(100)).unwrap();
    said(&place.text("text.mp4")).expect(6, &["text.mp4", "no video"]);
    said("rtsp://viewer:s3cret@127.0.0.1:1/x").expect(6, &["rtsp://***@127.0.0.1:1/x"]);
    said("http://127.0.0.1:1/x.mp4").expect(6, &["http://127.0.0.1:1/x.mp4"]);
    said("ftp://127.0.0.1/x.mp4").expect(2, &["ftp://"]);
    assert!(!Path::new(&out).join("index.jsonl").exists() || index(&out).is_empty());

    let source = video.to_str().unwrap();
    Said::of(bare(&["extract", source, "/proc/nowhere"]).output().unwrap()).expect(7, &["/proc/nowhere"]);
    // The index outgrows the disk, in the middle.
    let full = place.text("full");
    let limited =
        bare(&["extract", source, &full, "--policy", "every", "--shrink-to", "40", "--quality", "50"]);
    Said::of(on_a_small_disk(&limited, 4).output().unwrap())
        .expect(7, &["cannot be written", "index.jsonl is right"]);
    let kept = index(&full);
    assert!(kept.len() > 3, "{} pictures", kept.len());
    assert!(fs::metadata(Path::new(&full).join("index.jsonl")).unwrap().len() <= 4096);
}

/// The pictures of a video file, as RGB: time in seconds, width, pixels.
fn frames(video: &str) -> Vec<(f64, usize, Vec<u8>)> {
    gst::init().unwrap();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={video} ! decodebin ! videoconvert ! videoscale method=nearest-neighbour ! \
         video/x-raw,format=RGB,width=960,height=540 ! appsink name=frames sync=false max-buffers=2"
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let sink = pipeline.by_name("frames").unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut frames = Vec::new();
    while let Some(sample) = sink.emit_by_name::<Option<gst::Sample>>("pull-sample", &[]) {
        let buffer = sample.buffer().unwrap();
        let pixels = buffer.map_readable().unwrap().to_vec();
        let seconds = Duration::from(buffer.pts().unwrap()).as_secs_f64();
        frames.push((seconds, 960, pixels));
    }
    pipeline.set_state(gst::State::Null).unwrap();
    frames
}

const GREEN: [u8; 3] = [30, 200, 60];
const BLUE: [u8; 3] = [40, 110, 255];
const PURPLE: [u8; 3] = [160, 50, 220];

/// How many pixels have a colour, within what an encoder makes of it.
fn count<'a>(pixels: impl Iterator<Item = &'a [u8]>, color: [u8; 3]) -> usize {
    pixels.filter(|pixel| pixel.iter().zip(color).all(|(value, of)| value.abs_diff(of) < 40)).count()
}

#[test]
fn a_recording_is_recognised_reported_and_annotated_whatever_happens() {
    let (video, faces) = (require!(VIDEO), require!("lfw10"));
    require!("models/version-RFB-640.onnx");
    require!("models/mobilefacenet.onnx");
    let place = Place::new();
    let mut backend = place.backend(&faces, &[WALKERS[0], "Ariel_Sharon"]);
    let source = video.to_str().unwrap();
    let (report, csv, annotated) = (place.text("out.json"), place.text("out.csv"), place.text("out.mp4"));

    // Two walkers: one who is enrolled, one who is not, each with one colour from the first frame on.
    let recognise = ["recognize", "video", source, "--seconds", "6"];
    run(&backend, &[&recognise[..], &["--report", &report, "--output", &annotated]].concat())
        .expect(0, &["No window is shown", "Tony_Blair", "Report"]);
    let document: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!((&document["frames"], &document["searched"]), (&36.into(), &36.into()));
    assert_eq!((&document["refused"], &document["unanswered"]), (&0.into(), &0.into()));
    let detections = document["detections"].as_array().unwrap();
    assert_eq!(document["faces"], detections.len());
    let first = &detections[0];
    assert!((number(&first["box"]["left"]) - 954.8).abs() < 80.0, "{first}");
    assert!((0.6..=1.0).contains(&number(&first["score"])), "{first}");
    let known = detections.iter().filter(|face| face["decision"] == "known");
    let names: BTreeSet<&str> = known.map(|face| face["name"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from([WALKERS[0]]), "{detections:?}");
    assert_eq!(document["people"][0]["name"], WALKERS[0]);

    let drawn = frames(&annotated);
    assert_eq!(drawn.len(), 36, "every frame is there");
    let colors = |(_, _, pixels): &(f64, usize, Vec<u8>)| {
        (count(pixels.chunks(3), GREEN), count(pixels.chunks(3), BLUE))
    };
    let plain = frames(source);
    for (frame, original) in drawn.iter().zip(&plain) {
        // The first walker is seen for 2.4 s, then nobody for 2 s.
        if frame.0 < 2.0 {
            assert!(
                colors(frame).0 > colors(original).0 + 100,
                "green at {} s: {:?}",
                frame.0,
                colors(frame)
            );
        }
        if (2.6..4.4).contains(&frame.0) {
            assert!(colors(frame).0 < colors(original).0 + 50, "no box at {} s", frame.0);
        }
    }

    // The same as a table, of each face of each frame, by two requests at a time.
    let every = ["--policy", "every", "--parallel", "2", "--report", &csv, "--json", "--no-window"];
    let said = run(&backend, &[&recognise[..4], &["3"], &every[..]].concat()).expect(0, &[]);
    let summary: Value = serde_json::from_str(&said.stdout).unwrap();
    let rows = fs::read_to_string(&csv).unwrap();
    assert!(rows.starts_with("seconds,captured_at,track,left,"), "{rows}");
    assert_eq!(summary["faces"], rows.lines().count() - 1);
    assert!(rows.lines().filter(|row| row.contains("known,Tony_Blair,0.")).count() >= 8, "{rows}");

    // Stored, with the date of the recording.
    let date = "2024-05-06T07:08:09Z";
    let store = ["--store", "--camera-id", "gate-1", "--location", "Lobby", "--capture-start", date];
    run(&backend, &[&recognise[..4], &["2"], &store[..]].concat()).expect(0, &[]);
    let stored = run(&backend, &["detections", "--json"]).expect(0, &["gate-1", "Lobby"]);
    assert!(stored.stdout.contains("2024-05-06T07:08:"), "{}", stored.stdout);

    // What goes wrong, and what is there then.
    let bad = |arguments: &[&str]| run(&backend, &[&recognise[..], arguments].concat());
    bad(&["--server", "http://127.0.0.1:1"]).expect(4, &["127.0.0.1:1 cannot be reached"]);
    bad(&["--token", "not-the-token-of-this-test"]).expect(5, &["refused the token"]);
    bad(&["--output", "out.avi"]).expect(2, &[".mp4"]);
    bad(&["--report", "out.txt"]).expect(2, &[".json or .csv"]);
    bad(&["--report", "/nonexistent/out.csv"]).expect(7, &["/nonexistent/out.csv"]);
    bad(&["--output", "/nonexistent/out.mp4"]).expect(7, &["/nonexistent/out.mp4"]);
    run(&backend, &["recognize", "camera", "/dev/video987"]).expect(6, &["no such camera"]);
    let full = place.text("full.mp4");
    let limited = command(&backend, &[&recognise[..], &["--output", &full]].concat());
    Said::of(on_a_small_disk(&limited, 100).output().unwrap()).expect(7, &["full.mp4", "cannot be written"]);
    let left: Vec<_> = fs::read_dir(place.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains("part")), "{left:?}");
    assert!(!Path::new(&full).exists());

    // Ctrl-C: what was played until then is reported and drawn.
    let (cut_report, cut) = (place.text("cut.json"), place.text("cut.mp4"));
    let begun = Instant::now();
    let mut long =
        command(&backend, &["recognize", "video", source, "--report", &cut_report, "--output", &cut]);
    interrupted(&mut long, "it has begun", || begun.elapsed() > Duration::from_secs(3))
        .expect(130, &["Frames"]);
    let document: Value = serde_json::from_str(&fs::read_to_string(&cut_report).unwrap()).unwrap();
    assert_eq!(document["interrupted"], true);
    let played = document["frames"].as_u64().unwrap();
    assert!(played > 0 && played < 180, "{played} frames");
    let drawn = u64::try_from(frames(&cut).len()).unwrap();
    assert!(drawn.abs_diff(played) <= 1, "{drawn} frames are drawn, {played} were played");
    backend.stop();
    run(&backend, &recognise).expect(4, &["cannot be reached"]);
}

#[test]
fn a_network_camera_is_recognised_as_it_comes() {
    let (video, faces) = (require!(VIDEO), require!("lfw10"));
    require!("models/version-RFB-640.onnx");
    require!("models/mobilefacenet.onnx");
    let place = Place::new();
    let backend = place.backend(&faces, &[WALKERS[0], "Ariel_Sharon"]);
    let Some(camera) = Camera::start(0, &[&format!("gate={}", video.display())]) else {
        skip("no RTSP server: install gir1.2-gst-rtsp-server-1.0 and python3-gi");
        return;
    };
    let (report, seen) = (place.text("live.json"), place.text("live.mp4"));
    let gate = camera.url("gate");
    run(&backend, &["recognize", "camera", &gate, "--seconds", "3", "--report", &report, "--output", &seen])
        .expect(0, &["No window is shown", "Tony_Blair"]);
    let document: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    let first = &document["detections"][0];
    let age = first["captured_at"].as_str().unwrap();
    let captured = time::OffsetDateTime::parse(age, &time::format_description::well_known::Rfc3339).unwrap();
    assert!((time::OffsetDateTime::now_utc() - captured).whole_seconds().abs() < 60, "{age}");
    assert!(frames(&seen).len() > 5, "a video that can be played");

    let folder = place.text("faces");
    Said::of(bare(&["extract", &gate, &folder, "--seconds", "2", "--policy", "every"]).output().unwrap())
        .expect(0, &["Faces"]);
    let lines = index(&folder);
    assert!(!lines.is_empty() && lines.iter().all(|line| line["captured_at"].is_string()), "{lines:?}");

    // The camera vanishes while it is watched; what was seen is kept.
    let mut watching = command(&backend, &["recognize", "camera", &gate, "--report", &report]);
    let child = watching.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fs::remove_file(&report).unwrap();
    thread::sleep(Duration::from_secs(2));
    drop(camera);
    let said = Said::of(child.wait_with_output().unwrap());
    assert!(matches!(said.code, Some(0 | 6)), "{:?}\n{}\n{}", said.code, said.stdout, said.stderr);
    assert!(Path::new(&report).exists());
    run(&backend, &["recognize", "camera", &gate]).expect(6, &[&gate]);
}

/// A screen without a monitor, and what is on it.
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

    /// How many pixels of the columns have this colour. The file is an XWD dump (X11/XWDFile.h): a header of big-endian
    /// words, colours of 12 bytes each, and here pixels of four bytes: blue, green, red, nothing.
    fn count(&self, columns: std::ops::Range<usize>, color: [u8; 3]) -> usize {
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
            .take(height)
            .flat_map(|line| line.as_chunks::<4>().0[columns.clone()].iter())
            .filter(|&&[b, g, r, _]| [r, g, b].iter().zip(color).all(|(value, of)| value.abs_diff(of) < 24))
            .count()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The second window lies over the left part of the first: nobody arranges them here.
const SECOND_WINDOW: std::ops::Range<usize> = 0..420;
const FIRST_WINDOW: std::ops::Range<usize> = 430..1280;

#[test]
fn windows_show_who_is_known_and_who_is_not() {
    let (video, faces) = (require!(VIDEO), require!("lfw10"));
    require!("models/version-RFB-640.onnx");
    require!("models/mobilefacenet.onnx");
    let place = Place::new();
    let Some(screen) = Screen::start() else {
        skip("no screen: install xvfb");
        return;
    };
    // Tony Blair walks from the middle to the right, Vladimir Putin later.
    for (known, color) in [(true, GREEN), (false, BLUE)] {
        let people = if known { [WALKERS[0], "Ariel_Sharon"] } else { ["Hugo_Chavez", "Ariel_Sharon"] };
        let backend = place.backend(&faces, &people);
        fs::remove_dir_all(place.text("people")).unwrap();
        let mut watching = command(&backend, &["recognize", "video", video.to_str().unwrap()]);
        watching.env("DISPLAY", &screen.display);
        let (mut first, mut second) = (0, 0);
        interrupted(&mut watching, "coloured boxes in both windows", || {
            first = first.max(screen.count(FIRST_WINDOW, color));
            second = second.max(screen.count(SECOND_WINDOW, color));
            first > 150 && second > 500
        })
        .expect(130, &["Frames"]);
    }
}

/// A video of photographs, half a second each.
fn film(pictures: &[PathBuf], folder: &Path, video: &str) {
    gst::init().unwrap();
    fs::create_dir_all(folder).unwrap();
    for (number, picture) in pictures.iter().enumerate() {
        fs::copy(picture, folder.join(format!("{number:03}.jpg"))).unwrap();
    }
    let pipeline = gst::parse::launch(&format!(
        "multifilesrc location={}/%03d.jpg caps=image/jpeg,framerate=2/1 ! jpegdec ! videoconvert ! \
         video/x-raw,format=I420 ! x264enc quantizer=15 pass=quant ! h264parse ! mp4mux ! filesink location={video}",
        folder.display()
    ))
    .unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let ended = pipeline
        .bus()
        .unwrap()
        .timed_pop_filtered(
            gst::ClockTime::from_seconds(60),
            &[gst::MessageType::Eos, gst::MessageType::Error],
        )
        .unwrap();
    assert_eq!(ended.type_(), gst::MessageType::Eos, "{ended:?}");
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_person_is_enrolled_from_a_video_by_shots_that_differ() {
    let (crowd, faces) = (require!("videos/crowd-very-high-1080p6.mp4"), require!("lfw10"));
    require!("models/version-RFB-640.onnx");
    require!("models/mobilefacenet.onnx");
    let place = Place::new();
    let backend = place.backend(&faces, &[]);
    let video = place.text("ada.mp4");
    let shots = photographs(&faces, "Tony_Blair");
    // Every photograph twice in a row: the second is like the first.
    let twice: Vec<PathBuf> = shots.iter().flat_map(|shot| [shot.clone(), shot.clone()]).collect();
    film(&twice, &place.folder.path().join("frames"), &video);

    let enrol = |arguments: &[&str]| {
        run(&backend, &[&["enroll", "camera", &video, "--id", "Ada", "--apart", "0.1"], arguments].concat())
    };
    enrol(&["--count", "3"]).expect(2, &["Ada", "--create"]);
    run(&backend, &["enroll", "camera", "/dev/video987", "--id", "Ada"]).expect(6, &["no such camera"]);
    enrol(&["--server", "http://127.0.0.1:1"]).expect(4, &["cannot be reached"]);
    enrol(&["--token", "not-the-token-of-this-test"]).expect(5, &["refused the token"]);
    enrol(&["--create", "--count", "3", "--train"]).expect(0, &["Added     Ada", "3 of 3"]);
    let said = enrol(&["--count", "50", "--json"]);
    let summary: Value = serde_json::from_str(&said.stdout).unwrap();
    let said = said.expect(3, &[]);
    // What was enrolled by the first run is refused as a duplicate, and others are taken.
    assert_eq!(summary["refused"]["duplicate_image"], 3, "{summary} {}", said.stderr);
    let enrolled = number(&summary["enrolled"]);
    assert!((4.0..=7.0).contains(&enrolled), "{summary}");
    assert!(number(&summary["frames_alike"]) >= 8.0, "{summary}");
    let people = run(&backend, &["people", "--json"]).expect(0, &["Ada"]);
    let people: Value = serde_json::from_str(&people.stdout).unwrap();
    assert_eq!(number(&people["people"][0]["images"]), enrolled + 3.0, "{people}");

    // A crowd is no person.
    let several = ["enroll", "camera", crowd.to_str().unwrap(), "--id", "Ada", "--seconds", "3"];
    run(&backend, &several).expect(3, &["Several faces", "with several faces"]);

    // On a screen: the purple box, and the crop that is sent.
    let Some(screen) = Screen::start() else {
        skip("no screen: install xvfb");
        return;
    };
    let mut watched =
        command(&backend, &["enroll", "camera", &video, "--id", "Eve", "--create", "--count", "10"]);
    watched.env("DISPLAY", &screen.display);
    let (mut both, mut second) = (0, 0);
    interrupted(&mut watched, "purple boxes", || {
        both = both.max(screen.count(0..1280, PURPLE));
        second = second.max(screen.count(250..420, PURPLE));
        both > 800 && second > 300
    })
    .expect(130, &["Enrolled"]);
}
