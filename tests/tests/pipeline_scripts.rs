//! The scripts of `pipelines/`, each as a user runs it, with the plugin alone in its folder, against the real backend; network
//! cameras are Debian's RTSP server with recordings. Test machines have no V4L2 camera and no screen: `webcam_…` and `preview_…`
//! document what this leaves untested.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types};
use facepipe_test_support::{models_dir, require, skip, wait_until, workspace_root};
use facepipe_tests::{Backend, build_dir, camera::Camera, program, require_backend_weights};
use tempfile::TempDir;

const SCRIPTS: [&str; 7] = [
    "extract.sh",
    "file.sh",
    "multi-camera.sh",
    "preview.sh",
    "record-and-detect.sh",
    "rtsp.sh",
    "webcam.sh",
];

/// Time limit for a camera or a backend on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cameras run in real time: two tests at once would starve each other on a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A machine on which the plugin is installed, without any settings.
struct Machine {
    folder: TempDir,
    runtime: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Machine {
    fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        fs::copy(build_dir().join("libgstfacepipe.so"), plugins.join("libgstfacepipe.so")).unwrap();
        let runtime = facepipe_detector::runtime::load(&[workspace_root()]).unwrap().path().to_path_buf();
        Self { folder, runtime, _turn: turn }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Returns a program that runs in the machine's folder and environment.
    fn program(&self, program: &Path) -> Command {
        // Tests may run where SIGINT is ignored (`nohup … &`), and a shell cannot change that for itself.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,QUIT,HUP").arg(program).current_dir(self.folder.path());
        for (name, _) in
            env::vars().filter(|(name, _)| name.starts_with("FACEPIPE_") || name.starts_with("GST_"))
        {
            command.env_remove(name);
        }
        command
            .env("GST_PLUGIN_PATH", self.path("plugins"))
            .env("GST_REGISTRY", self.path("registry.bin"))
            .env("FACEPIPE_MODELS", models_dir())
            .env("ORT_DYLIB_PATH", &self.runtime);
        command
    }

    fn script(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.program(&workspace_root().join("pipelines").join(name));
        command.args(arguments);
        command
    }

    /// Runs a script that must succeed within a minute.
    fn run(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = self.program(Path::new("timeout"));
        command.arg("60").arg(workspace_root().join("pipelines").join(name)).args(arguments);
        let output = command.output().unwrap();
        let printed = printed(&output);
        assert!(output.status.success(), "{name} {arguments:?}\n{printed}");
        printed
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Running {
        Running::start(&mut self.script(name, arguments))
    }

    /// Returns the number of frames of a video file; fails if it cannot be decoded.
    fn frames_of(&self, file: &Path) -> usize {
        let mut command = self.program(Path::new("gst-launch-1.0"));
        let location = format!("location={}", file.display());
        command.args(["-v", "filesrc", &location, "!", "decodebin", "!", "identity", "name=frame"]);
        command.args(["silent=false", "!", "fakesink"]);
        let output = command.output().unwrap();
        let printed = printed(&output);
        assert!(output.status.success(), "{}: {printed}", file.display());
        printed.matches("last-message = chain").count()
    }
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A script that runs until it is stopped; collects its output.
struct Running {
    child: Child,
    printed: std::sync::Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let printed = std::sync::Arc::new(Mutex::new(String::new()));
        let pipes: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let readers = pipes
            .into_iter()
            .map(|pipe| {
                let printed = printed.clone();
                thread::spawn(move || {
                    for line in BufReader::new(pipe).lines() {
                        *printed.lock().unwrap() += &(line.unwrap() + "\n");
                    }
                })
            })
            .collect();
        Self { child, printed, readers }
    }

    fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    fn says(&self, what: &str) {
        let begun = Instant::now();
        while !self.printed().contains(what) {
            assert!(begun.elapsed() < PATIENCE, "{what:?} is not in\n{}", self.printed());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    /// Stops it as systemd or a user would, waits for all its processes, and returns its output.
    fn end(mut self, signal: &str) -> (ExitStatus, String) {
        self.signal(signal);
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.printed());
            thread::sleep(Duration::from_millis(20));
        };
        // The pipes close when the script's last process has ended.
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (status, self.printed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test failed, or the script ended already. The second signal ends it immediately.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal("TERM");
            thread::sleep(Duration::from_secs(1));
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Starts a [`Camera`], or skips the test if Debian's RTSP server is missing.
macro_rules! camera {
    ($port:expr, $($argument:expr),+) => {
        match Camera::start($port, &[$(&$argument),+]) {
            Some(camera) => camera,
            None => {
                skip("no RTSP server: install gir1.2-gst-rtsp-server-1.0 and python3-gi");
                return;
            }
        }
    };
}

#[derive(QueryableByName)]
struct Detection {
    #[diesel(sql_type = sql_types::Text)]
    location: String,
    /// Microseconds since 1970.
    #[diesel(sql_type = sql_types::BigInt)]
    captured_at: i64,
    #[diesel(sql_type = sql_types::BigInt)]
    received_at: i64,
    #[diesel(sql_type = sql_types::Text)]
    upload_key: String,
}

/// Returns the stored detections of one camera.
fn stored(backend: &Backend, camera: &str) -> Vec<Detection> {
    let path = backend.data_dir().join("facepipe.db");
    let mut database = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    sql_query("PRAGMA busy_timeout = 5000").execute(&mut database).unwrap();
    sql_query("SELECT location, captured_at, received_at, upload_key FROM detections WHERE camera_id = ?")
        .bind::<sql_types::Text, _>(camera)
        .load(&mut database)
        .unwrap()
}

fn cameras(backend: &Backend) -> Vec<String> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = sql_types::Text)]
        camera_id: String,
    }
    let path = backend.data_dir().join("facepipe.db");
    let mut database = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let rows: Vec<Row> = sql_query("SELECT DISTINCT camera_id FROM detections ORDER BY camera_id")
        .load(&mut database)
        .unwrap();
    rows.into_iter().map(|row| row.camera_id).collect()
}

/// Returns the names of a folder's pictures, sorted; all must be JPEG.
fn pictures(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            assert_eq!(fs::read(&path).unwrap()[..2], [0xff, 0xd8], "{} is JPEG", path.display());
            path.file_name().unwrap().to_str().unwrap().to_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn every_script_has_help_and_explains_wrong_arguments() {
    let machine = Machine::new();
    for name in SCRIPTS {
        let help = machine.run(name, &["--help"]);
        for part in [
            "Usage:",
            "--backend",
            "--camera-id",
            "--location",
            "--spool-dir",
            "FACEPIPE_SERVER",
            "Examples:",
        ] {
            assert!(help.contains(part), "{name} --help has no {part}:\n{help}");
        }
        let output = machine.script(name, &["--nonsense", "x"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {}", printed(&output));
        assert!(printed(&output).contains("unknown option --nonsense"), "{}", printed(&output));
    }
    let video = machine.text("video.mp4");
    fs::write(&video, "no video").unwrap();
    let picture = machine.text("picture.mp4");
    fs::write(&picture, b"GIF89a\x01\0\x01\0\0\0\0;").unwrap();
    let refused: [(&str, &[&str], i32, &str); 16] = [
        ("file.sh", &["nowhere.mp4"], 1, "nowhere.mp4: no such file"),
        ("file.sh", &[&video, "--policy", "nice"], 2, "--policy is 'nice'; it must be best or every"),
        ("file.sh", &[&video, "--backend", "faces.example.com"], 2, "it must begin with http"),
        ("file.sh", &[&video, "--token-file", "none.txt"], 1, "none.txt"),
        ("file.sh", &[&video, "--decoder", "nosuchdec"], 1, "no element nosuchdec"),
        ("file.sh", &[&video, "--location"], 2, "--location needs a value"),
        ("file.sh", &[&video], 1, "failed at 'decode'"),
        ("file.sh", &[&picture], 1, "picture.mp4 is a picture, and no video: 'facepipe recognize folder'"),
        ("file.sh", &["http://camera/video"], 2, "rtsp.sh plays network cameras (rtsp://, http://)"),
        (
            "file.sh",
            &[&video, "--capture-start", "2024-05-06T07:08:09"],
            2,
            "without a time zone; write 2024-05-06T07:08:09Z for UTC",
        ),
        ("file.sh", &[&video, "--capture-start", "yesterday"], 2, "it must be like 2024-05-06T07:08:09Z"),
        ("rtsp.sh", &[&video], 2, "is no rtsp://, http:// or https:// address; file.sh plays files"),
        (
            "rtsp.sh",
            &["rtsp://camera", "--stall", "0"],
            2,
            "--stall is '0'; it must be a whole number from 1",
        ),
        ("webcam.sh", &["/dev/video99"], 1, "/dev/video99: no such camera"),
        (
            "multi-camera.sh",
            &["rtsp://a/b", "--camera-id", "a", "rtsp://c/d", "--camera-id", "a"],
            2,
            "two sources",
        ),
        ("record-and-detect.sh", &[&video], 2, "--record-dir is needed"),
    ];
    for (name, arguments, code, message) in refused {
        let output = machine.script(name, arguments).output().unwrap();
        let printed = printed(&output);
        assert_eq!(output.status.code(), Some(code), "{name} {arguments:?}: {printed}");
        assert!(printed.contains(message), "{name} {arguments:?}: {message:?} is not in {printed}");
    }
    // A checkout without build output.
    let copy = machine.path("pipelines");
    let copied = Command::new("cp").arg("-r").arg(workspace_root().join("pipelines")).arg(&copy).status();
    assert!(copied.unwrap().success());
    let mut command = machine.program(&copy.join("file.sh"));
    command.arg(&video).env_remove("GST_PLUGIN_PATH").env("GST_REGISTRY", machine.path("empty.bin"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    for part in ["plugin facepipe", "make setup", "GST_PLUGIN_PATH", "facepipe doctor"] {
        assert!(printed(&output).contains(part), "{part} is not in {}", printed(&output));
    }
}

#[test]
fn file_replays_without_pacing_at_the_time_of_the_recording() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    // Characters that are special to a shell or to gst-launch-1.0.
    let (id, place) = (r#"gate "1" \ west"#, r#"Lobby, 2nd floor! a=b 'c' "d" $HOME"#);
    let spool = machine.text("spool");
    // An earlier version let cameras share this folder. Its crop is damaged, which the element that opens it marks.
    let left = machine.path("spool/gate__1____west/000000000000000001-0123456789abcdef0123456789abcdef.crop");
    std::fs::create_dir_all(left.parent().unwrap()).unwrap();
    std::fs::write(&left, "torn").unwrap();
    let video = video.to_str().unwrap();
    let arguments = [
        video,
        "--camera-id",
        id,
        "--location",
        place,
        "--fast",
        "--capture-start",
        "2024-05-06T07:08:09Z",
        "--detect",
        "interval=3",
    ];
    let mut command = machine.script("file.sh", &arguments);
    command.env("FACEPIPE_SERVER", backend.url()).env("FACEPIPE_SPOOL_DIR", &spool);
    let output = command.env("FACEPIPE_POLICY", "every").output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let found = stored(&backend, id);
    assert!(found.len() > 25, "{} detections of a busy street", found.len());
    assert!(found.iter().all(|detection| detection.location == place), "{}", found[0].location);
    let start = 1_714_979_289_000_000;
    assert!(
        found.iter().all(|d| (start..start + 4_200_000).contains(&d.captured_at)),
        "{}",
        found[0].captured_at
    );
    assert!(found.iter().any(|d| d.captured_at > start + 3_000_000), "the end of the recording is there");
    assert_eq!(cameras(&backend), [id]);
    let own = machine.path("spool/gate%20%221%22%20%5C%20west");
    assert!(own.is_dir(), "each camera has a spool folder of its own");
    assert!(!left.exists() && own.join(left.file_name().unwrap()).with_added_extension("damaged").exists());
}

#[test]
fn file_in_real_time_uploads_queued_faces_when_stopped() {
    let video = require!("videos/crowd-medium-1080p6.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    for signal in ["INT", "TERM"] {
        let camera = format!("gate-{signal}");
        let mut script = machine.script(
            "file.sh",
            &[
                video.to_str().unwrap(),
                "--camera-id",
                &camera,
                "--backend",
                backend.url(),
                "--upload",
                "batch-delay=20000",
                "--upload",
                "batch-size=64",
            ],
        );
        // A long batch delay keeps all faces in the queue.
        let running = Running::start(
            script.env("GST_DEBUG", "facepipe-facesink-http:6").env("GST_DEBUG_NO_COLOR", "1"),
        );
        running.says("a crop is queued");
        assert!(stored(&backend, &camera).is_empty(), "nothing is sent before the end");
        let (status, printed) = running.end(signal);
        assert!(status.success(), "{status}\n{printed}");
        assert!(printed.contains("what is queued is uploaded first"), "{printed}");
        assert!(!printed.contains("were not uploaded"), "{printed}");
        let found = stored(&backend, &camera);
        assert!(!found.is_empty(), "{printed}");
        assert!(
            found.iter().all(|d| d.received_at - d.captured_at < 20_000_000),
            "nothing waited for the batch to fill"
        );
    }
}

#[test]
fn a_replay_fails_if_its_faces_do_not_reach_the_backend() {
    let video = require!("videos/street-1080p.mp4");
    let machine = Machine::new();
    // Nothing listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = format!("http://127.0.0.1:{port}");
    let replay = |more: &[&str]| {
        let fixed = [video.to_str().unwrap(), "--fast", "--detect", "interval=12", "--backend", &dead];
        let limits = ["--upload", "eos-timeout=1", "--camera-id", "gate"];
        let output = machine.script("file.sh", &[&fixed[..], &limits, more].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
        printed(&output)
    };
    let lost = replay(&[]);
    assert!(lost.contains("file.sh: not all faces are with the backend: "), "{lost}");
    assert!(lost.contains("crops were not uploaded within eos-timeout (1 s); with --spool-dir"), "{lost}");
    let kept = replay(&["--spool-dir", &machine.text("spool")]);
    assert!(kept.contains("not all faces are with the backend yet: "), "{kept}");
    assert!(kept.contains("is sent when this runs again"), "{kept}");
}

/// Starts a camera that sends motion JPEG over HTTP: to every client, the picture `times` times, ten times a second.
fn http_camera(picture: Vec<u8>, times: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/video.mjpg", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let mut send = || -> std::io::Result<()> {
                let boundary = "multipart/x-mixed-replace; boundary=frame";
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: {boundary}\r\nConnection: close\r\n\r\n")?;
                for _ in 0..times {
                    let length = picture.len();
                    write!(
                        stream,
                        "--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"
                    )?;
                    stream.write_all(&picture)?;
                    stream.write_all(b"\r\n")?;
                    thread::sleep(Duration::from_millis(100));
                }
                write!(stream, "--frame--\r\n")
            };
            // Clients may disconnect at any time.
            let _ = send();
        }
    });
    url
}

#[test]
fn motion_jpeg_over_http_plays_with_arrival_times() {
    let picture = fs::read(require!("scenes/multiface.jpg")).unwrap();
    let machine = Machine::new();
    let camera = http_camera(picture, 15);
    machine.run("extract.sh", &[&camera, "faces", "--camera-id", "gate-1", "--policy", "every"]);
    // Late frames skip the detector, so the number of faces varies.
    assert!(!pictures(&machine.path("faces")).is_empty());

    // The script reconnects by itself.
    let running = machine.start("rtsp.sh", &[&camera, "--upload", "endpoint=dry-run"]);
    running.says("next attempt in 1 s");
    running.end("INT");

    // The program has the faces of the last frame after a good second, not all at the beginning.
    let mut command = machine.program(&program("facepipe"));
    let output = command.args(["extract", &camera, "more", "--policy", "every", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let seconds = report["seconds"].as_f64().unwrap();
    assert!(seconds > 0.9, "{report}");
    let index = fs::read_to_string(machine.path("more/index.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(index.lines().last().unwrap()).unwrap();
    assert!(last["seconds"].as_f64().unwrap() > 0.5, "{last}");
}

/// Starts a proxy that forwards requests for any host to `backend`, refuses tunnels, and records the heads of requests.
fn http_proxy(backend: &str) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let backend = backend.trim_start_matches("http://").to_owned();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&heads);
    let serve = move |mut client: TcpStream| -> std::io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut head = String::new();
        while reader.read_line(&mut head)? > 2 {}
        recorded.lock().unwrap().push(head.clone());
        if head.starts_with("CONNECT ") {
            return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        }
        let (line, rest) = head.split_once("\r\n").unwrap();
        let (method, target) = line.split_once(' ').unwrap();
        let path = target.strip_prefix("http://faces.example:8080").expect("the whole address");
        let mut server = TcpStream::connect(&backend)?;
        write!(server, "{method} {path}\r\nConnection: close\r\n{rest}")?;
        let mut answers = server.try_clone()?;
        thread::spawn(move || {
            std::io::copy(&mut answers, &mut client).and_then(|_| client.shutdown(Shutdown::Both))
        });
        std::io::copy(&mut reader, &mut server).map(drop)
    };
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (serve, client) = (Arc::clone(&serve), client.unwrap());
            // Broken connections are ignored.
            thread::spawn(move || serve(client));
        }
    });
    (port, heads)
}

#[test]
fn the_sink_and_the_doctor_use_the_same_proxy_settings() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    // It has no tokens, and the requests name another host than this machine.
    let backend = Backend::start_with(&weights, &["--insecure"]);
    let (port, heads) = http_proxy(backend.url());
    let proxy = format!("http://edge:s3cret@127.0.0.1:{port}");
    let ask = |server: &str, no_proxy: &str| {
        let fixed =
            [video.to_str().unwrap(), "--fast", "--detect", "interval=12", "--upload", "eos-timeout=2"];
        let mut sink = machine.script("file.sh", &[&fixed[..], &["--backend", server]].concat());
        let mut doctor = machine.program(&program("facepipe"));
        doctor.args(["doctor", "--json", "--server", server]);
        let [sink, doctor] = [&mut sink, &mut doctor].map(|command| {
            command.env("http_proxy", &proxy).env("https_proxy", &proxy).env("NO_PROXY", no_proxy);
            heads.lock().unwrap().clear();
            let output = command.output().unwrap();
            assert!(!printed(&output).contains("s3cret"), "{}", printed(&output));
            (output.status.code(), printed(&output), std::mem::take(&mut *heads.lock().unwrap()))
        });
        (sink, doctor)
    };

    let ((code, said, sent), (_, findings, asked)) = ask("http://faces.example:8080", "other.example");
    assert_eq!(code, Some(0), "{said}");
    assert!(
        sent[0].starts_with("POST http://faces.example:8080/face-recognition/store-results "),
        "{sent:?}"
    );
    assert!(asked[0].starts_with("GET http://faces.example:8080/readyz "), "{asked:?}");
    for head in [&sent[0], &asked[0]] {
        let head = head.to_lowercase();
        assert!(head.contains("proxy-authorization: basic zwrnztpzm2nyzxq="), "{head}");
    }
    let through = format!("answers through the proxy http://127.0.0.1:{port}");
    assert!(findings.contains(&through), "{findings}");

    let ((code, said, sent), (_, findings, asked)) = ask("https://faces.example", "");
    assert_eq!(code, Some(1), "{said}");
    for (head, said) in [(&sent[0], &said), (&asked[0], &findings)] {
        assert!(head.starts_with("CONNECT faces.example:443 "), "{head}");
        assert!(said.contains(&format!("proxy http://127.0.0.1:{port}")), "{said}");
    }

    for (server, no_proxy) in [("http://faces.example:8080", ".example"), ("http://127.0.0.1:9", "")] {
        let ((code, said, sent), (_, findings, asked)) = ask(server, no_proxy);
        assert_eq!((code, sent.len(), asked.len()), (Some(1), 0, 0), "{server}: {said}");
        assert!(findings.contains("cannot be reached"), "{findings}");
    }
}

#[test]
fn extract_continues_the_numbers_of_an_earlier_run() {
    let video = require!("videos/street-1080p.mp4");
    let machine = Machine::new();
    let video = video.to_str().unwrap();
    let arguments = [video, "faces 100%", "--camera-id", "gate-1"];
    machine.run("extract.sh", &arguments);
    let first = pictures(&machine.path("faces 100%"));
    assert!((5..100).contains(&first.len()), "{} pictures: few good ones of each person", first.len());
    assert_eq!(first[0], "gate-1-00000.jpg");
    machine.run("extract.sh", &arguments);
    let both = pictures(&machine.path("faces 100%"));
    assert_eq!(both.len(), 2 * first.len(), "nothing is overwritten");
    assert_eq!(both[..first.len()], first[..]);
    let said =
        machine.run("extract.sh", &[video, "none", "--detect", "interval=12", "--crop", "min-size=900"]);
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("extract.sh: ") && last.contains(" faces smaller than 900 pixels were left out"),
        "{last}"
    );
    assert!(pictures(&machine.path("none")).is_empty());
}

#[test]
fn rtsp_reconnects_after_a_camera_stalls_or_vanishes() {
    let video = require!("videos/crowd-medium-1080p6.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    let stream = format!("gate={}", video.display());
    // The camera's clock is an hour slow: capture times show that the camera's clock is used.
    let camera = camera!(0, "--clock-ahead=-3600", "--stall-after=30", stream);
    let port = camera.port();
    let url = camera.url("gate").replace("rtsp://", "rtsp://viewer:secret-word@");
    let running = machine.start(
        "rtsp.sh",
        &[
            &url,
            "--camera-id",
            "gate-1",
            "--location",
            "Lobby",
            "--backend",
            backend.url(),
            "--stall",
            "3",
            "--retry-max",
            "1",
            "--upload",
            "max-clock-offset=7200",
        ],
    );
    running.says("the stream failed at 'stall'; next attempt in 1 s");
    drop(camera);
    let before = stored(&backend, "gate-1").len();
    assert!(before > 0, "{}", running.printed());
    running.says("the stream failed at 'camera'; next attempt in 1 s");
    let camera = camera!(port, "--clock-ahead=-3600", stream);
    wait_until("the camera is back", || stored(&backend, "gate-1").len() > before);
    let (status, printed) = running.end("TERM");
    assert!(status.success(), "{status}\n{printed}");
    assert!(!printed.contains("secret-word"), "a password in the log:\n{printed}");
    let found = stored(&backend, "gate-1");
    assert!(found.iter().all(|detection| detection.location == "Lobby"));
    let by_camera = |d: &Detection| (3500..3700).contains(&((d.received_at - d.captured_at) / 1_000_000));
    assert!(found.iter().any(by_camera), "no capture time is of the camera's own clock");
    drop(camera);
}

#[test]
fn rtsp_plays_h265_over_udp() {
    let video = require!("videos/crowd-medium-1080p6.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    // The first three seconds, as H.265.
    let recording = machine.path("h265.mkv");
    let mut encode = machine.program(Path::new("sh"));
    encode.arg("-c").arg(format!(
        "gst-launch-1.0 -q filesrc location={} ! decodebin ! identity eos-after=18 ! videoconvert ! \
         x265enc speed-preset=ultrafast tune=zerolatency key-int-max=6 ! h265parse ! matroskamux ! filesink location={}",
        video.display(),
        recording.display()
    ));
    let encoded = encode.output().unwrap();
    assert!(encoded.status.success(), "{}", printed(&encoded));
    let backend = Backend::start(&weights);
    let camera = camera!(0, format!("gate={}", recording.display()));
    let arguments = [
        &camera.url("gate"),
        "--camera-id",
        "gate-1",
        "--backend",
        backend.url(),
        "--transport",
        "udp",
        "--stall",
        "3",
    ];
    let running = machine.start("rtsp.sh", &arguments);
    wait_until("faces are stored", || !stored(&backend, "gate-1").is_empty());
    // After three seconds the camera announces the end in a packet that UDP may lose; then it counts as stalled.
    running.says("; next attempt in 1 s");
    let before = stored(&backend, "gate-1").len();
    wait_until("the next attempt finds more", || stored(&backend, "gate-1").len() > before);
    let (status, printed) = running.end("INT");
    assert!(status.success(), "{status}\n{printed}");
}

#[test]
fn multi_camera_separates_cameras_and_continues_without_a_vanished_one() {
    let medium = require!("videos/crowd-medium-1080p6.mp4");
    let high = require!("videos/crowd-high-1080p6.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    let (one, two) = (format!("one={}", medium.display()), format!("two={}", high.display()));
    let first = camera!(0, one);
    let second = camera!(0, two);
    let port = second.port();
    let running = machine.start(
        "multi-camera.sh",
        &[
            &first.url("one"),
            "--camera-id",
            "gate-1",
            "--location",
            "Lobby",
            &second.url("two"),
            "--camera-id",
            "gate-2",
            "--location",
            "Hall",
            "--backend",
            backend.url(),
            "--stall",
            "3",
            "--retry-max",
            "1",
        ],
    );
    let count = |camera: &str| stored(&backend, camera).len();
    wait_until("both cameras are stored", || count("gate-1") > 0 && count("gate-2") > 0);
    drop(second);
    running.says("the camera gate-2 is tried again in a process of its own");
    let (before_1, before_2) = (count("gate-1"), count("gate-2"));
    wait_until("the other camera goes on", || count("gate-1") > before_1);
    let second = camera!(port, two);
    wait_until("the camera is back", || count("gate-2") > before_2);
    let (status, printed) = running.end("TERM");
    assert!(status.success(), "{status}\n{printed}");
    drop((first, second));
    assert_eq!(cameras(&backend), ["gate-1", "gate-2"]);
    assert!(stored(&backend, "gate-1").iter().all(|detection| detection.location == "Lobby"));
    assert!(stored(&backend, "gate-2").iter().all(|detection| detection.location == "Hall"));
}

/// A V4L2 camera needs a kernel module that a test cannot load. So a wrapper of `gst-launch-1.0` replaces `v4l2src device=…` by a
/// recording in the requested format: this tests everything but `v4l2src` itself.
#[test]
fn webcam_plays_jpeg_and_raw_video() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    let tools = machine.path("tools");
    fs::create_dir(&tools).unwrap();
    let launcher = tools.join("gst-launch-1.0");
    let real = String::from_utf8(
        Command::new("sh").args(["-c", "command -v gst-launch-1.0"]).output().unwrap().stdout,
    );
    let script = format!(
        r#"#!/usr/bin/env bash
arguments=()
encode=
[[ "$*" != *image/jpeg* ]] || encode='! jpegenc'
for argument in "$@"; do
    case $argument in
        v4l2src) arguments+=(filesrc location={video} ! decodebin ! videoconvert ! videoscale ! videorate ! \
            video/x-raw,format=YUY2,width=1280,height=720,framerate=10/1 $encode ! identity) ;;
        device=*) [[ $argument == 'device="/dev/null"' ]] || exit 3 ;;
        *) arguments+=("$argument") ;;
    esac
done
exec {real} "${{arguments[@]}}"
"#,
        video = video.display(),
        real = real.unwrap().trim()
    );
    fs::write(&launcher, script).unwrap();
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", tools.display(), env::var("PATH").unwrap());
    for format in ["mjpeg", "raw"] {
        let camera = format!("gate-{format}");
        let mut command = machine.script(
            "webcam.sh",
            // A character device that is there on every machine.
            &["/dev/null", "--format", format, "--size", "1280x720", "--fps", "10", "--camera-id", &camera],
        );
        let running = Running::start(command.env("PATH", &path).env("FACEPIPE_SERVER", backend.url()));
        running.says("the stream ended; next attempt in 1 s");
        let (status, printed) = running.end("INT");
        assert!(status.success(), "{status}\n{printed}");
        assert!(!stored(&backend, &camera).is_empty(), "{printed}");
    }
}

/// On a screen it is the same pipeline with `autovideosink` at its end, which needs a screen and is not tested.
#[test]
fn preview_writes_boxes_to_a_file_and_stores_nothing_with_ask_only() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    let arguments =
        [video.to_str().unwrap(), "--output", "preview.mp4", "--backend", backend.url(), "--ask-only"];
    let begun = Instant::now();
    machine.run("preview.sh", &arguments);
    assert!(begun.elapsed() > Duration::from_secs(4), "in real time, so that answers come in time");
    assert_eq!(machine.frames_of(&machine.path("preview.mp4")), 105, "every frame of the recording");
    assert!(cameras(&backend).is_empty(), "get-results stores nothing");
    assert!(with_boxes(&machine, &machine.path("preview.mp4")) > 0, "boxes are drawn");
    assert_eq!(with_boxes(&machine, &video), 0, "and were not there before");
}

/// Counts the frames, of about eight, with a line of at least 80 pixels in the blue of faceoverlay's boxes and labels.
fn with_boxes(machine: &Machine, video: &Path) -> usize {
    let (width, height) = (1920, 1080);
    let raw = machine.path("frames.rgb");
    let mut command = machine.program(Path::new("sh"));
    command.arg("-c").arg(format!(
        "gst-launch-1.0 -q filesrc location={} ! decodebin ! videorate ! video/x-raw,framerate=2/1 ! videoconvert ! \
         video/x-raw,format=RGB ! filesink location={}",
        video.display(),
        raw.display()
    ));
    assert!(command.status().unwrap().success());
    let bytes = fs::read(&raw).unwrap();
    // The encoder changes colours a little.
    let blue =
        |pixel: &[u8]| pixel.iter().zip([40_u8, 110, 255]).all(|(&is, wanted)| is.abs_diff(wanted) < 30);
    bytes
        .chunks_exact(width * height * 3)
        .filter(|frame| {
            frame.chunks_exact(width * 3).any(|row| {
                let mut run = 0;
                row.chunks_exact(3).any(|pixel| {
                    run = if blue(pixel) { run + 1 } else { 0 };
                    run >= 80
                })
            })
        })
        .count()
}

#[test]
fn record_and_detect_keeps_the_newest_segments_as_the_camera_encoded_them() {
    let video = require!("videos/crowd-medium-1080p6.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    // Its key frames come every two seconds.
    let camera = camera!(0, format!("gate={}", video.display()));
    let arguments = [
        &camera.url("gate"),
        "--camera-id",
        "gate-1",
        "--backend",
        backend.url(),
        "--record-dir",
        "video",
        "--segment",
        "2",
        "--keep",
        "2",
    ];
    let folder = machine.path("video");
    let segments = || -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(&folder)
            .map(|entries| entries.map(|e| e.unwrap().path()).collect())
            .unwrap_or_default();
        found.sort();
        found
    };
    let running = machine.start("record-and-detect.sh", &arguments);
    wait_until("a third segment has begun and the first is gone", || {
        segments().last().is_some_and(|last| last.to_str().unwrap().ends_with("-00002.mkv"))
            && segments().len() == 2
    });
    wait_until("faces are stored", || !stored(&backend, "gate-1").is_empty());
    let (status, printed) = running.end("TERM");
    assert!(status.success(), "{status}\n{printed}");
    let kept = segments();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for segment in &kept {
        assert!(segment.file_name().unwrap().to_str().unwrap().starts_with("gate-1-20"), "{segment:?}");
        assert!(machine.frames_of(segment) > 0, "{segment:?} can be played");
    }
    let keys: std::collections::HashSet<String> =
        stored(&backend, "gate-1").into_iter().map(|detection| detection.upload_key).collect();
    assert!(!keys.is_empty());
}

/// Runs a function of `pipelines/lib` in a shell that sources the named libraries, and returns its standard output.
fn library(names: &[&str], call: &str, arguments: &[&str]) -> String {
    let folder = workspace_root().join("pipelines/lib");
    let sources: String =
        names.iter().map(|name| format!("source {}/{name}.sh; ", folder.display())).collect();
    let output =
        Command::new("bash").args(["-euc", &(sources + call), "test"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{call} {arguments:?}: {}", printed(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn camera_ids_become_distinct_names_of_files() {
    let long = "é".repeat(200);
    let other = format!("{long}!");
    let ids: [&str; 11] =
        ["gate-1", "gate 1", "gate_1", "gate%201", ".hidden", "..", "a/b", "a.b", "Tür", &long, &other];
    let names: Vec<String> = ids.iter().map(|id| library(&["spool"], "file_name \"$1\"", &[id])).collect();
    assert_eq!(
        names[..9],
        ["gate-1", "gate%201", "gate_1", "gate%25201", "%2Ehidden", "%2E.", "a%2Fb", "a.b", "T%C3%BCr"]
    );
    assert!(names.iter().all(|name| name.len() <= 200), "{names:?}");
    let distinct: std::collections::HashSet<&String> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{names:?}");
}

#[test]
fn sources_are_told_apart_and_passwords_are_masked() {
    let kind = |source: &str| {
        library(&["sources"], "csi_cameras=no; kind_of \"$1\"", &[source]).trim_end().to_owned()
    };
    let kinds =
        ["rtsp://a/b", "rtsps://a", "https://a", "/dev/video0", "clip.mp4", "rtsp://", "csi:0"].map(kind);
    assert_eq!(kinds, ["rtsp", "rtsp", "http", "camera", "file", "file", "file"]);
    let masked = |line: &str| library(&["messages"], "mask \"$1\"", &[line]);
    assert_eq!(masked("ERROR: rtsp://me:secret@camera/1 is gone"), "ERROR: rtsp://***@camera/1 is gone");
    assert_eq!(masked("rtsp://camera/1 is gone"), "rtsp://camera/1 is gone");
}

#[test]
fn the_element_that_failed_is_read_from_the_first_error() {
    let folder = tempfile::tempdir().unwrap();
    let failed = |log: &str| {
        let file = folder.path().join("errors");
        fs::write(&file, log).unwrap();
        library(&["run"], "failed_element \"$1\"", &[file.to_str().unwrap()]).trim_end().to_owned()
    };
    let camera = "ERROR: from element /GstPipeline:pipeline0/GstRTSPSrc:camera-2: Could not connect.\n";
    let inner =
        "ERROR: from element /GstPipeline:pipeline0/GstDecodeBin:decode/GstH264Parse:h264parse0: No.\n";
    assert_eq!(failed(&format!("{camera}{inner}")), "camera-2");
    assert_eq!(failed(inner), "decode");
    assert_eq!(failed("WARNING: erroneous pipeline: no element \"x\"\n"), "pipeline");
}

#[test]
fn print_shows_the_command_that_the_script_runs() {
    let machine = Machine::new();
    let video = machine.text("it's.mkv");
    fs::write(&video, "no video").unwrap();
    // Keeps its arguments in place of playing.
    let tools = machine.path("tools");
    fs::create_dir(&tools).unwrap();
    let launcher = tools.join("gst-launch-1.0");
    fs::write(&launcher, "#!/bin/sh\nprintf '%s\\n' \"$@\" >arguments\n").unwrap();
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", tools.display(), env::var("PATH").unwrap());
    // gst-launch-1.0 takes a plain value with and without quotes.
    let arguments = || fs::read_to_string(machine.path("arguments")).unwrap().replace('"', "");
    let options = [
        &*video,
        "--fast",
        "--camera-id",
        r#"gate "1" \ $HOME"#,
        "--detect",
        "interval=3",
        "--spool-dir",
        "spool",
        "--decoder",
        "software",
    ];

    let mut run = machine.script("file.sh", &options);
    let output = run.env("PATH", &path).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let run = arguments();
    assert!(run.contains("\nname=detect\ninterval=3\n"), "{run}");
    fs::remove_file(machine.path("arguments")).unwrap();

    let mut print = machine.script("file.sh", &options);
    let output = print.arg("--print").env("PATH", &path).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    assert!(!machine.path("arguments").exists(), "nothing is played");
    let command = String::from_utf8(output.stdout).unwrap();
    let mut shell = machine.program(Path::new("sh"));
    assert!(shell.args(["-c", &command]).env("PATH", &path).status().unwrap().success(), "{command}");
    assert_eq!(arguments(), run, "{command}");

    let source = "http://me:secret@camera/video";
    let mut print = machine.script("rtsp.sh", &[source, "--upload", "token=secret-of-a-camera", "--print"]);
    let printed = printed(&print.env("PATH", &path).output().unwrap());
    assert!(printed.contains("location=http://camera/video !"), "{printed}");
    assert!(!printed.contains("secret"), "{printed}");
    for element in ["souphttpsrc", "watchdog", "decodebin", "facepipe-facedetect", "facepipe-facesink-http"] {
        assert!(printed.contains(&format!("    {element} ")), "{element} is not in {printed}");
    }
}
