//! The benchmarks as a user runs them: `facepipe eval` on real pictures, `facepipe bench load` against the real backend.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Barrier},
    thread,
};

use facepipe_test_support::{models_dir, require, wait_until};
use facepipe_tests::{
    Backend,
    programs::{ADMIN_TOKEN, ProgramOutput, copy_photographs, facepipe, interrupt},
};
use serde_json::Value;

/// Returns the program with its output captured.
fn command(arguments: &[&str]) -> Command {
    let mut command = facepipe(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Fails the test unless a program ended with `code` and printed `texts`; returns its standard output.
#[track_caller]
fn expect_output(output: &Output, code: i32, texts: &[&str]) -> String {
    ProgramOutput::new(output.clone()).expect(code, texts).stdout
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn number(of: &Value, pointer: &str) -> f64 {
    of.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {pointer} in {of}"))
}

/// Waits until the program handles Ctrl-C, which it does when its work starts.
fn wait_for_interrupt_handler(child: &Child) {
    const INTERRUPT: u64 = 1 << (2 - 1);
    wait_until("a handler for Ctrl-C", || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        u64::from_str_radix(caught, 16).unwrap() & INTERRUPT != 0
    });
}

#[test]
fn an_evaluation_distinguishes_people_and_lists_unusable_pictures() {
    let lfw = require!("lfw10");
    for file in ["models/pnet.pt", "models/mobilefacenet.onnx"] {
        let _ = require!(file);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let eval = |arguments: &[&str]| {
        command(&[&["eval", "--embedder", "mobilefacenet"], arguments].concat()).output().unwrap()
    };
    let [gallery, probe] = ["set/gallery", "set/probe"].map(|name| folder.path().join(name));
    for person in ["Tony_Blair", "Hugo_Chavez", "Jacques_Chirac"] {
        copy_photographs(&lfw, &gallery, person, &[1, 2, 3]);
        copy_photographs(&lfw, &probe, person, &[4, 5]);
    }
    copy_photographs(&lfw, &probe, "Colin_Powell", &[1, 2]);

    let said = expect_output(&eval(&[&path("set"), "--json", "--plot", &path("roc.svg")]), 0, &[]);
    let figures = json(&said);
    assert_eq!((number(&figures, "/gallery/people"), number(&figures, "/gallery/images")), (3.0, 9.0));
    assert_eq!((number(&figures, "/probes/mated"), number(&figures, "/probes/non_mated")), (6.0, 2.0));
    // People this different are told apart without any error.
    assert_eq!(number(&figures, "/identification/rank1"), 1.0, "{figures}");
    assert_eq!(number(&figures, "/identification/fpir"), 0.0, "{figures}");
    assert_eq!(number(&figures, "/identification/fnir"), 0.0, "{figures}");
    // 3 people with 5 pictures each and one with 2: 3 x 10 + 1 pairs of one person.
    assert_eq!(number(&figures, "/verification/same_pairs"), 31.0, "{figures}");
    assert_eq!(number(&figures, "/verification/different_pairs"), f64::from(17 * 16 / 2 - 31), "{figures}");
    assert!(number(&figures, "/verification/accuracy") > 0.98, "{figures}");
    assert!(number(&figures, "/verification/equal_error_rate") < 0.02, "{figures}");
    let told = figures["verification"]["tar_at_far"].as_array().unwrap();
    assert_eq!(told.len(), 2, "105 pairs do not bear a rate of 1 in 1000: {figures}");
    assert!(
        number(&figures, "/time/detection/p50_ms") > 0.0 && number(&figures, "/time/embedding/p50_ms") > 0.0
    );
    assert!(fs::read_to_string(path("roc.svg")).unwrap().starts_with("<svg"));

    // A file that is no picture, and a truncated one.
    fs::write(gallery.join("Hugo_Chavez/Hugo_Chavez_0002.jpg"), b"no picture").unwrap();
    let whole = fs::read(lfw.join("Tony_Blair/Tony_Blair_0001.jpg")).unwrap();
    fs::write(probe.join("Tony_Blair/cut.jpg"), &whole[..2000]).unwrap();
    expect_output(
        &eval(&[&path("set")]),
        3,
        &["Hugo_Chavez_0002.jpg: text, no picture", "cut.jpg", "Passed over: 2 of 18", "rank-1", "100.00"],
    );

    // A folder per person: the first pictures are the gallery, and strangers are left out.
    let said =
        expect_output(&eval(&[&path("set/probe"), "--shots", "1", "--strangers", "2", "--json"]), 3, &[]);
    let figures = json(&said);
    assert_eq!((number(&figures, "/gallery/people"), number(&figures, "/gallery/images")), (2.0, 2.0));
    assert_eq!(number(&figures, "/probes/mated"), 2.0, "{figures}");
    assert_eq!(number(&figures, "/probes/strangers"), 2.0, "{figures}");

    expect_output(&eval(&[&path("set/probe"), "--strangers", "4"]), 2, &["--strangers 4", "at most 3"]);
    expect_output(&eval(&[&path("nowhere")]), 6, &["nowhere"]);
    fs::create_dir_all(folder.path().join("empty")).unwrap();
    expect_output(&eval(&[&path("empty")]), 6, &["empty"]);
    expect_output(
        &eval(&[&path("set"), "--models", &path("empty")]),
        6,
        &["mobilefacenet.onnx", "facepipe models fetch"],
    );
    expect_output(&eval(&[&path("set"), "--plot", "/dev/full"]), 7, &["/dev/full"]);

    let child = command(&["eval", "--embedder", "mobilefacenet", lfw.to_str().unwrap()]).spawn().unwrap();
    wait_for_interrupt_handler(&child);
    interrupt(&child);
    expect_output(&child.wait_with_output().unwrap(), 130, &[]);
}

/// A backend with a token and a queue of two pictures, and the data to send to it.
struct LoadTarget {
    backend: Backend,
    metrics: SocketAddr,
    folder: tempfile::TempDir,
    photograph: PathBuf,
}

impl LoadTarget {
    fn new(lfw: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        fs::write(&tokens, format!("admin {ADMIN_TOKEN}\n")).unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listen = metrics.to_string();
        let settings = ["--token-file", tokens.to_str().unwrap(), "--queue-images", "2"];
        let settings = [&settings[..], &["--metrics-listen", &listen]].concat();
        let backend = Backend::start_with(&models_dir(), &settings);
        Self { backend, metrics, folder, photograph: lfw.join("Tony_Blair/Tony_Blair_0001.jpg") }
    }

    /// Returns the number of recognition requests served, from the backend's metrics.
    fn recognitions_served(&self) -> f64 {
        let mut connection = TcpStream::connect(self.metrics).unwrap();
        connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut told = String::new();
        connection.read_to_string(&mut told).unwrap();
        let lines = told.lines().filter(|line| line.starts_with("facepipe_requests_total{"));
        let of_recognition =
            lines.filter(|line| line.contains("/face-recognition/") && line.contains("status=\"20"));
        of_recognition.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    fn load(&self, arguments: &[&str]) -> Command {
        let mut command = command(&[&["bench", "load"], arguments].concat());
        command.env("FACEPIPE_SERVER", self.backend.url()).env("FACEPIPE_TOKEN", ADMIN_TOKEN);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.load(arguments).output().unwrap()
    }

    /// Returns the rows of a run that ended with `code`.
    #[track_caller]
    fn rows(&self, arguments: &[&str], code: i32) -> Vec<Value> {
        let said = expect_output(&self.run(&[arguments, &["--json"]].concat()), code, &[]);
        json(&said)["rows"].as_array().unwrap().clone()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn a_load_test_counts_served_rejected_and_unreachable_requests() {
    let lfw = require!("lfw10");
    for file in ["models/pnet.pt", "models/mobilefacenet.onnx"] {
        let _ = require!(file);
    }
    let target = LoadTarget::new(&lfw);
    let photograph = target.photograph.to_str().unwrap();

    let plot = target.path("load.svg");
    let rows = target.rows(&[photograph, "--requests", "6", "--concurrency", "1,2", "--plot", &plot], 0);
    assert_eq!(rows.len(), 2);
    let bytes = fs::metadata(&target.photograph).unwrap().len();
    for (row, concurrency) in rows.iter().zip([1, 2]) {
        assert_eq!(row["concurrency"], concurrency);
        assert_eq!(
            (&row["requests"], &row["served"], &row["faces"]),
            (&6.into(), &6.into(), &6.into()),
            "{row}"
        );
        assert_eq!(row["bytes"], 6 * bytes, "{row}");
        let (seconds, rate) = (number(row, "/seconds"), number(row, "/requests_per_second"));
        assert!((rate * seconds - 6.0).abs() < 1e-6, "{row}");
        let percentile = |name: &str| number(row, &format!("/latency/{name}_ms"));
        assert!(0.0 < percentile("p50") && percentile("p50") <= percentile("p99"), "{row}");
        assert!(percentile("max") <= seconds * 1001.0, "{row}");
    }
    assert!(fs::read_to_string(&plot).unwrap().starts_with("<svg"));

    // Sixteen concurrent requests exceed a queue of two; rejections are counted and are no failure.
    let rows = target.rows(&[photograph, "--requests", "40", "--concurrency", "16"], 0);
    assert!(number(&rows[0], "/too_busy") > 0.0 && number(&rows[0], "/served") > 0.0, "{}", rows[0]);
    assert_eq!(number(&rows[0], "/too_busy") + number(&rows[0], "/served"), 40.0, "{}", rows[0]);

    // The same picture twice is the same person; unreadable pictures are counted by their code.
    assert_eq!(target.rows(&[photograph, "--call", "verify", "--requests", "2"], 0)[0]["served"], 2);
    let mixed = target.folder.path().join("mixed");
    copy_photographs(&lfw, &mixed, "Tony_Blair", &[1, 3]);
    let whole = fs::read(&target.photograph).unwrap();
    fs::write(mixed.join("Tony_Blair/Tony_Blair_0002.jpg"), &whole[..whole.len() / 2]).unwrap();
    let rows = target.rows(&[&target.path("mixed"), "--call", "store-results", "--requests", "6"], 3);
    assert_eq!(
        (&rows[0]["served"], &rows[0]["errors"]["422 image_unreadable"]),
        (&4.into(), &2.into()),
        "{}",
        rows[0]
    );
    let said = target.run(&[&target.path("mixed"), "--requests", "3"]);
    expect_output(&said, 3, &["served/s", "p99", "1 x 422 image_unreadable"]);

    let mut stranger = target.load(&[photograph]);
    expect_output(&stranger.env("FACEPIPE_TOKEN", "somebody-else-s-token").output().unwrap(), 5, &["token"]);
    expect_output(&target.run(&[photograph, "--server", "http://127.0.0.1:1"]), 4, &["cannot be reached"]);
    expect_output(&target.run(&[&target.path("nowhere")]), 6, &["nowhere"]);
    fs::create_dir_all(target.folder.path().join("empty")).unwrap();
    expect_output(&target.run(&[&target.path("empty")]), 6, &["empty"]);
    expect_output(&target.run(&[photograph, "--requests", "1", "--plot", "/dev/full"]), 7, &["/dev/full"]);
    expect_output(&target.run(&[photograph, "--concurrency", "0"]), 2, &["--concurrency"]);

    // An interrupted run prints its results.
    let before = target.recognitions_served();
    let child = target.load(&[photograph, "--duration", "600", "--json"]).spawn().unwrap();
    wait_for_interrupt_handler(&child);
    // The first requests are warm-up.
    wait_until("measured requests", || target.recognitions_served() > before + 3.0);
    interrupt(&child);
    let report = json(&expect_output(&child.wait_with_output().unwrap(), 130, &[]));
    assert!(number(&report, "/rows/0/served") >= 1.0, "{report}");
}

/// A server that responds to no request until it has received all of them.
fn stalled_server(requests: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let received = Arc::new(Barrier::new(requests));
        for stream in listener.incoming() {
            let (mut stream, received) = (stream.unwrap(), Arc::clone(&received));
            thread::spawn(move || {
                let mut request = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                for line in request.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                std::io::copy(&mut request.take(length), &mut std::io::sink()).unwrap();
                received.wait();
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                stream.write_all(head.as_bytes()).unwrap();
            });
        }
    });
    url
}

#[test]
fn at_a_fixed_rate_a_stall_of_the_server_shows_in_all_requests_scheduled_during_it() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("picture.jpg");
    fs::write(&picture, b"\xff\xd8\xff\xe0").unwrap();
    let server = stalled_server(100);
    let load =
        ["bench", "load", picture.to_str().unwrap(), "--server", &server, "--call", "dry-run", "--json"];
    let steady = ["--rate", "100", "--requests", "100", "--warm-up", "0"];
    let output = command(&[&load[..], &steady].concat()).output().unwrap();
    let report = json(&expect_output(&output, 0, &[]));
    // The last request starts 990 ms after the first, and only then are they answered: none can have taken less than the time
    // from its start until then, however fast or slow the machine is.
    assert_eq!(number(&report, "/rows/0/served"), 100.0, "{report}");
    assert!(number(&report, "/rows/0/latency/p95_ms") > 600.0, "{report}");
    assert!(number(&report, "/rows/0/latency/max_ms") > 800.0, "{report}");
    assert!(number(&report, "/rows/0/latency/mean_ms") > 150.0, "{report}");
}
