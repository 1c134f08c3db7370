//! Outages of the backend and killed pipelines lose no crops. Real elements, real backend.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types};
use facepipe_test_support::{require, require_onnx_runtime, wait_until_within};
use facepipe_tests::{Backend, build_dir, require_backend_weights};
use gst::prelude::*;
use time::{Duration as Span, OffsetDateTime, macros::datetime};
use uuid::Uuid;

const PORTRAIT: &str = "lfw10/Ariel_Sharon/Ariel_Sharon_0001.jpg";
const DETECTOR: &str = "models/version-RFB-320.onnx";

/// Time limit for what takes long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Frames per second of the replays; each shows one face.
const RATE: usize = 5;

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = sql_types::Text)]
    camera_id: String,
    #[diesel(sql_type = sql_types::Text)]
    location: String,
    #[diesel(sql_type = sql_types::BigInt)]
    captured_at: i64,
    #[diesel(sql_type = sql_types::Text)]
    upload_key: String,
}

/// Returns all detections.
fn stored(backend: &Backend) -> Vec<Stored> {
    let path = backend.data_dir().join("facepipe.db");
    let mut database = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    sql_query("SELECT camera_id, location, captured_at, upload_key FROM detections ORDER BY captured_at")
        .load(&mut database)
        .unwrap()
}

/// Returns the resident memory of this process in bytes (proc(5), `statm`, in pages of 4 KiB).
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Returns the source of a replay in real time: so many frames with one face.
fn replay(portrait: &Path, detector: &Path, frames: usize) -> String {
    format!(
        "filesrc location={} ! jpegdec ! imagefreeze num-buffers={frames} ! video/x-raw,framerate={RATE}/1 \
         ! facepipe-facedetect model={} ! facepipe-facecrop policy=every",
        portrait.display(),
        detector.display()
    )
}

#[test]
fn a_backend_outage_costs_no_frames_memory_or_crops() {
    let (portrait, detector, weights) = (require!(PORTRAIT), require!(DETECTOR), require_backend_weights!());
    let _ = require_onnx_runtime!();
    // FACEPIPE_TEST_OUTAGE_S=60 is what the project promises; less is enough for everyday tests.
    let outage = env::var("FACEPIPE_TEST_OUTAGE_S").map_or(15, |seconds| seconds.parse().unwrap());
    let frames = RATE * (outage + 10);
    gst::init().unwrap();
    gstfacepipe::register_static().unwrap();
    let mut backend = Backend::start(&weights);
    let folder = tempfile::tempdir().unwrap();

    // Two cameras in one pipeline, one with a spool, one without.
    let cameras = [
        ("gate", "Lobby", datetime!(2024-05-06 07:08:09 UTC)),
        ("yard", "Outside", datetime!(2024-05-07 07:08:09 UTC)),
    ];
    let sink = |(id, place, start): (&str, &str, OffsetDateTime), more: &str| {
        let start = start.format(&time::format_description::well_known::Rfc3339).unwrap();
        format!(
            "t. ! queue ! facepipe-facesink-http name={id} backend-url={} camera-id={id} camera-location={place} \
             capture-start={start} eos-timeout=300 {more}",
            backend.url()
        )
    };
    let spool = format!("spool-dir={}", folder.path().join("spool").display());
    let line = format!(
        "{} ! tee name=t {} {}",
        replay(&portrait, &detector, frames),
        sink(cameras[0], &spool),
        sink(cameras[1], &format!("max-queue={frames}"))
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let arrivals: Vec<Arc<Mutex<Vec<Instant>>>> = cameras
        .iter()
        .map(|(id, ..)| {
            let arrivals = Arc::new(Mutex::new(Vec::new()));
            let pad = pipeline.by_name(id).unwrap().static_pad("sink").unwrap();
            let seen = Arc::clone(&arrivals);
            pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
                seen.lock().unwrap().push(Instant::now());
                gst::PadProbeReturn::Ok
            });
            arrivals
        })
        .collect();
    let count = |id: &str, name: &str| -> u64 {
        pipeline.by_name(id).unwrap().property::<gst::Structure>("stats").get(name).unwrap()
    };

    pipeline.set_state(gst::State::Playing).unwrap();
    wait_until_within(PATIENCE, "crops of both cameras before the outage", || {
        count("gate", "sent") > 0 && count("yard", "sent") > 0
    });
    backend.stop();
    let before = resident();
    let mut most = 0;
    let mut most_spooled = 0;
    // The outage ends when both sinks have got its frames: a sink that blocked its stream would never get them.
    let seen = || arrivals.iter().map(|arrivals| arrivals.lock().unwrap().len()).min().unwrap();
    let until = frames.min(seen() + RATE * outage);
    let limit = Duration::from_secs(3 * u64::try_from(outage).unwrap() + 30);
    wait_until_within(limit, "frames during the outage", || {
        most = most.max(resident());
        most_spooled = most_spooled.max(count("gate", "spool-files"));
        seen() >= until && most_spooled > 0
    });
    backend.start_again();

    let bus = pipeline.bus().unwrap();
    let mut warnings = Vec::new();
    let limit = Instant::now() + PATIENCE;
    loop {
        let message = bus.timed_pop(gst::ClockTime::from_seconds(1));
        assert!(Instant::now() < limit, "the stream doesn't end");
        match message.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Eos(_)) => break,
            Some(gst::MessageView::Error(error)) => panic!("{error:?}"),
            Some(gst::MessageView::Warning(warning)) => warnings.push(warning.error().to_string()),
            _ => (),
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();

    let grown = most.saturating_sub(before);
    eprintln!("{outage} s away: {} KiB more memory, {most_spooled} crops on the spool at most", grown / 1024);
    assert!(grown < 16 << 20, "{} MiB more memory", grown >> 20);
    assert!(most_spooled > 0, "the spool was used");
    assert_eq!(warnings.len(), 2, "one for each sink: {warnings:?}");
    for arrivals in &arrivals {
        let arrivals = arrivals.lock().unwrap();
        assert_eq!(arrivals.len(), frames);
        let worst = arrivals.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        eprintln!("longest time between frames: {worst:?}");
    }

    let stored = stored(&backend);
    for (id, place, start) in cameras {
        assert_eq!((count(id, "sent"), count(id, "dropped")), (frames as u64, 0), "{id}");
        let of_camera: Vec<&Stored> = stored.iter().filter(|stored| stored.camera_id == id).collect();
        assert!(of_camera.iter().all(|stored| stored.location == place));
        let times: Vec<i64> = of_camera.iter().map(|stored| stored.captured_at).collect();
        let expected: Vec<i64> = (0..frames)
            .map(|frame| start + Span::milliseconds(i64::try_from(frame * 1000 / RATE).unwrap()))
            .map(|time| i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap())
            .collect();
        assert_eq!(times, expected, "{id}: each crop once, with its own time");
    }
}

/// Runs `gst-launch-1.0` with the plugin that was built.
struct Launcher {
    folder: tempfile::TempDir,
    runtime: PathBuf,
}

impl Launcher {
    fn new(runtime: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        fs::copy(build_dir().join("libgstfacepipe.so"), plugins.join("libgstfacepipe.so")).unwrap();
        Self { folder, runtime }
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    /// Starts `source` into a sink with a spool of `max_bytes`.
    fn start(&self, source: &str, url: &str, max_bytes: u64) -> Child {
        let sink = format!(
            "facepipe-facesink-http backend-url={url} camera-id=gate camera-location=Lobby eos-timeout=120 \
             batch-size=2 spool-dir={} spool-max-bytes={max_bytes}",
            self.spool().display()
        );
        Command::new("gst-launch-1.0")
            .args(format!("{source} ! {sink}").split_whitespace())
            .env("GST_PLUGIN_PATH", self.folder.path().join("plugins"))
            .env("GST_REGISTRY", self.folder.path().join("registry.bin"))
            .env("ORT_DYLIB_PATH", &self.runtime)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Returns key and time of capture (microseconds since 1970) of each crop on the spool, from the files' names.
    fn spooled(&self) -> BTreeMap<String, i64> {
        let Ok(entries) = fs::read_dir(self.spool()) else { return BTreeMap::new() };
        entries
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let (captured_at, key) = name.strip_suffix(".crop")?.split_once('-')?;
                let key = gstfacepipe::upload::encode_uuid(Uuid::parse_str(key).unwrap());
                Some((key, captured_at.parse().unwrap()))
            })
            .collect()
    }
}

/// Starts a proxy that forwards so many bytes of requests to a backend, and the responses to them. Returns its URL.
fn limited_proxy(url: &str, bytes: u64) -> String {
    let backend = url.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let left = Arc::new(Mutex::new(bytes));
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(&backend).unwrap());
            let (mut responses, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            // A connection that the killed process leaves is no error.
            thread::spawn(move || drop(io::copy(&mut responses, &mut to_client)));
            let left = Arc::clone(&left);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = client.read(&mut buffer) {
                    let mut left = left.lock().unwrap();
                    let forwarded = read.min(usize::try_from(*left).unwrap());
                    *left -= forwarded as u64;
                    drop(left);
                    if server.write_all(&buffer[..forwarded]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("http://{address}")
}

#[test]
fn a_killed_pipeline_loses_and_duplicates_nothing_on_its_spool() {
    let (portrait, detector, weights) = (require!(PORTRAIT), require!(DETECTOR), require_backend_weights!());
    let launcher = Launcher::new(require_onnx_runtime!());
    let mut backend = Backend::start(&weights);
    let url = backend.url().to_owned();
    backend.stop();

    // As fast as possible, so that the spool is full and the oldest crops are dropped when the process is killed.
    let max_bytes = 400_000;
    let source =
        replay(&portrait, &detector, 100_000).replace("framerate=5/1", "framerate=500/1") + " encoding=webp";
    let mut child = launcher.start(&source, &url, max_bytes);
    let size = || -> u64 {
        let entries = fs::read_dir(launcher.spool()).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
    };
    wait_until_within(PATIENCE, "a full spool", || size() > max_bytes * 95 / 100);
    let first = launcher.spooled();
    wait_until_within(PATIENCE, "a full spool's files to come and go", || {
        let spooled = launcher.spooled();
        // Crops that were claimed for sending stay.
        first.keys().filter(|key| !spooled.contains_key(*key)).count() > first.len() / 2
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let left = launcher.spooled();
    assert!(left.len() > 40, "{} crops on the spool", left.len());
    assert!(size() <= max_bytes + 20_000, "{} bytes", size());

    // Killed again, in the middle of sending: a proxy lets about half of the bytes through. The third run sends the others.
    // Neither has faces of its own.
    backend.start_again();
    let proxy = limited_proxy(&url, size() / 2);
    let idle = "videotestsrc num-buffers=LENGTH ! video/x-raw,format=NV12,width=64,height=64,framerate=10/1";
    let mut child = launcher.start(&idle.replace("LENGTH", "10000"), &proxy, max_bytes);
    wait_until_within(PATIENCE, "some of them at the backend, and off the spool", || {
        stored(&backend).len() >= 4 && launcher.spooled().len() + 4 <= left.len()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let after_second = launcher.spooled();
    assert!(!after_second.is_empty() && after_second.len() < left.len(), "{} crops", after_second.len());
    assert!(after_second.iter().all(|(key, time)| left.get(key) == Some(time)));

    let status = launcher.start(&idle.replace("LENGTH", "5"), &url, max_bytes).wait().unwrap();
    assert!(status.success());
    assert!(launcher.spooled().is_empty());
    let stored = stored(&backend);
    assert_eq!(stored.len(), left.len(), "each once");
    let found: BTreeMap<String, i64> =
        stored.into_iter().map(|stored| (stored.upload_key, stored.captured_at)).collect();
    // The file's name has microseconds, the request milliseconds.
    let sent = left.into_iter().map(|(key, time)| (key, time / 1000 * 1000)).collect();
    assert_eq!(found, sent);
}
