//! The files of `jetson/`, as far as they can be tested without a Jetson: pipelines with stand-ins for NVIDIA's elements
//! (`tests/mock-nv`) against the real backend, the service's watchdog with a socket in systemd's place, the installer on a
//! simulated Jetson.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types};
use facepipe_test_support::{models_dir, require, skip, workspace_root};
use facepipe_tests::{Backend, build_dir, program, require_backend_weights};
use tempfile::TempDir;

/// Time limit for a pipeline on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two detectors at once would starve each other on a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A machine with the plugin and the stand-ins, without any settings.
struct Machine {
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Machine {
    fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        for library in ["libgstfacepipe.so", "libgstmocknv.so"] {
            fs::copy(build_dir().join(library), plugins.join(library)).unwrap();
        }
        Self { folder, _turn: turn }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a program that finds the plugins, the models and ONNX Runtime, and programs in the folder `bin` first.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path());
        for (name, _) in
            env::vars().filter(|(name, _)| name.starts_with("FACEPIPE_") || name.starts_with("GST_"))
        {
            command.env_remove(name);
        }
        let runtime = facepipe_detector::runtime::load(&[workspace_root()]).unwrap();
        let path = format!("{}:{}", self.path("bin").display(), env::var("PATH").unwrap());
        command
            .env("PATH", path)
            .env("GST_PLUGIN_PATH", self.path("plugins"))
            .env("GST_REGISTRY", self.path("registry.bin"))
            .env("FACEPIPE_MODELS", models_dir())
            .env("ORT_DYLIB_PATH", runtime.path())
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC");
        command
    }

    fn script(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(&jetson().join(name));
        command.args(arguments);
        command
    }

    /// Adds a program that takes precedence over those of the system.
    fn provide(&self, name: &str, script: &str) {
        let file = self.path("bin").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Simulates a Jetson with this release, with stand-ins for the programs by which the installer changes the system.
    fn pretend_to_be(&self, release: &str) {
        let etc = self.path("root/etc");
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("nv_tegra_release"), format!("# {release}, GCID: 1, BOARD: generic\n")).unwrap();
        self.provide("uname", "echo aarch64");
        // All packages but one are installed.
        self.provide(
            "dpkg-query",
            r#"[[ ${@: -1} == nvidia-l4t-gstreamer && ! -e l4t ]] && exit 1; echo "ii ""#,
        );
        self.provide("apt-get", r#"echo "apt-get $*" >>changes; [[ $1 != install ]] || touch l4t"#);
        for name in ["useradd", "usermod", "systemctl", "chgrp"] {
            self.provide(name, &format!(r#"echo "{name} $*" >>changes"#));
        }
    }

    /// Runs the installer below the folder `root`.
    fn install(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let root = self.path("root");
        let mut command = self.script("install.sh", &["--root", root.to_str().unwrap()]);
        let output = command.args(arguments).output().unwrap();
        (output.status.code(), printed(&output))
    }

    /// Returns every file below `root` with its modification time.
    fn installed(&self) -> BTreeMap<PathBuf, SystemTime> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.path("root")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    found.insert(entry.path(), entry.path().symlink_metadata().unwrap().modified().unwrap());
                }
            }
        }
        found
    }
}

fn jetson() -> PathBuf {
    workspace_root().join("jetson")
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Counts the stored detections of a camera and location.
fn stored(backend: &Backend, camera: &str, place: &str) -> i64 {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = sql_types::BigInt)]
        detections: i64,
    }
    let path = backend.data_dir().join("facepipe.db");
    let mut database = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    sql_query("PRAGMA busy_timeout = 5000").execute(&mut database).unwrap();
    sql_query("SELECT count(*) AS detections FROM detections WHERE camera_id = ? AND location = ?")
        .bind::<sql_types::Text, _>(camera)
        .bind::<sql_types::Text, _>(place)
        .get_result::<Count>(&mut database)
        .unwrap()
        .detections
}

/// The installer's arguments for this workspace's build output, which passes for arm64 because `uname` is a stand-in.
struct Built {
    plugin: String,
    program: String,
    models: String,
    runtime: String,
}

impl Built {
    /// Returns `None` if a model is missing.
    fn find() -> Option<Self> {
        let model = facepipe_test_support::find("models/version-RFB-640.onnx")?;
        let runtime = facepipe_detector::runtime::load(&[workspace_root()]).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Some(Self {
            plugin: text(&build_dir().join("libgstfacepipe.so")),
            program: text(&program("facepipe")),
            models: text(model.parent().unwrap()),
            runtime: text(runtime.path()),
        })
    }

    fn arguments(&self) -> [&str; 8] {
        [
            "--plugin",
            &self.plugin,
            "--program",
            &self.program,
            "--models",
            &self.models,
            "--onnxruntime",
            &self.runtime,
        ]
    }
}

macro_rules! built {
    () => {
        match Built::find() {
            Some(built) => built,
            None => {
                skip("the detector's models are missing: run `facepipe models fetch`");
                return;
            }
        }
    };
}

#[test]
fn shellcheck_finds_nothing() {
    let mut scripts: Vec<PathBuf> = Vec::new();
    for folder in [jetson(), jetson().join("pipelines")] {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        scripts.extend(entries.filter(|path| path.extension().is_some_and(|e| e == "sh")));
    }
    scripts.push(workspace_root().join("scripts/cross.sh"));
    assert!(scripts.len() > 8, "{scripts:?}");
    let checked = Command::new("shellcheck")
        .arg("--external-sources")
        .args(&scripts)
        .current_dir(workspace_root())
        .output();
    match checked {
        Ok(output) => assert!(output.status.success(), "{}", printed(&output)),
        Err(_) => skip("shellcheck is missing: run scripts/packages.sh test"),
    }
}

#[test]
fn systemd_accepts_the_unit() {
    let machine = Machine::new();
    let unit = fs::read_to_string(jetson().join("facepipe@.service")).unwrap();
    // Nothing is installed at the unit's paths.
    let opt = machine.path("opt");
    std::os::unix::fs::symlink(workspace_root(), &opt).unwrap();
    let unit = unit.replace("/opt/facepipe", opt.to_str().unwrap());
    let verify = |name: &str, text: &str| {
        let file = machine.path(name);
        fs::write(&file, text).unwrap();
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(file).output()
    };
    let Ok(output) = verify("facepipe@.service", &unit) else {
        skip("systemd-analyze is missing: run scripts/packages.sh test");
        return;
    };
    assert!(output.status.success() && printed(&output).is_empty(), "{}", printed(&output));
    let wrong =
        unit.replace("WatchdogSec=60", "WatchdogSec=soon").replace("MemoryMax=1536M", "MemoryMax=lots");
    let said = printed(&verify("wrong@.service", &wrong).unwrap());
    assert!(said.contains("soon") && said.contains("lots"), "{said}");
}

#[test]
fn a_file_is_decoded_in_hardware_and_its_faces_are_stored() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    let arguments = [
        video.to_str().unwrap(),
        "--fast",
        "--backend",
        backend.url(),
        "--camera-id",
        "gate-1",
        "--location",
        "Lobby",
    ];
    let mut command = machine.script("pipelines/play.sh", &arguments);
    let output = command.env("GST_DEBUG", "GST_ELEMENT_FACTORY:4").output().unwrap();
    let said = printed(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("decoding by nvv4l2decoder"), "{said}");
    assert!(said.contains(r#"creating element "nvv4l2decoder""#), "decodebin took another decoder");
    assert!(stored(&backend, "gate-1", "Lobby") > 10, "{said}");
}

/// GStreamer 1.16 doesn't read the variable for ranks, so the scripts must check the rank.
#[test]
fn with_gstreamer_1_16_the_rank_of_the_decoder_is_checked() {
    let video = require!("videos/street-1080p.mp4");
    let machine = Machine::new();
    let tool = Command::new("sh").args(["-c", "command -v gst-launch-1.0"]).output().unwrap();
    let tool = String::from_utf8(tool.stdout).unwrap();
    // Like the tool of 1.16, it ignores the variable.
    machine.provide(
        "gst-launch-1.0",
        &format!(
            "[[ $1 != --version ]] || {{ echo 'gst-launch-1.0 version 1.16.3'; echo 'GStreamer 1.16.3'; exit; }}\n\
             [[ -z ${{GST_PLUGIN_FEATURE_RANK-}} ]] || exit 3\nexec {} \"$@\"",
            tool.trim()
        ),
    );
    // Nothing listens there, and this is the only error that the script may report.
    let backend = "http://127.0.0.1:9";
    let arguments = [video.to_str().unwrap(), "--fast", "--backend", backend, "--upload", "eos-timeout=1"];
    let output = machine.script("pipelines/file.sh", &arguments).output().unwrap();
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in ["decoding by nvv4l2decoder", "not all faces are with the backend"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    assert!(!said.contains("would not take"), "{said}");
    // gst-inspect of the newer GStreamer on this machine shows a rank below that of software.
    let mut command = machine.script("pipelines/file.sh", &arguments);
    let output = command.env("GST_PLUGIN_FEATURE_RANK", "nvv4l2decoder:64").output().unwrap();
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("would not take nvv4l2decoder (rank 64)"), "{said}");
}

#[test]
fn unplayable_sources_are_refused() {
    let machine = Machine::new();
    for (arguments, code, expected) in [
        (&["pipelines/play.sh"] as &[&str], 2, "Usage: play.sh"),
        (&["pipelines/csi.sh", "csi:front"], 2, "is no camera such as csi:0"),
        (&["pipelines/csi.sh", "--fps", "many"], 2, "--fps is 'many'"),
        (
            &["pipelines/rtsp.sh", "rtsp://127.0.0.1:9/x", "--decoder", "avdec_h264"],
            2,
            "it must be auto or software",
        ),
        (
            &["pipelines/multi-camera.sh", "csi:0", "--camera-id", "a"],
            2,
            "a CSI camera has a process of its own",
        ),
        (&["pipelines/file.sh", "nowhere.mp4"], 1, "no such file"),
    ] {
        let output = machine.script(arguments[0], &arguments[1..]).output().unwrap();
        let said = printed(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let missing = machine.path("plugins/libgstmocknv.so");
    fs::remove_file(missing).unwrap();
    let output = machine.script("pipelines/csi.sh", &[]).output().unwrap();
    assert!(printed(&output).contains("install nvidia-l4t-gstreamer"), "{}", printed(&output));
}

#[test]
fn the_pipelines_of_a_jetson_decode_in_hardware_and_report_frames_to_the_watchdog() {
    let machine = Machine::new();
    let described = |name: &str, source: &str| {
        let mut command = machine.script(name, &[source, "--print"]);
        let output = command.env("WATCHDOG_USEC", "60000000").output().unwrap();
        let said = printed(&output);
        assert!(output.status.success(), "{said}");
        said
    };
    let file = machine.path("clip.mkv");
    fs::write(&file, "no video").unwrap();
    let played = described("pipelines/file.sh", file.to_str().unwrap());
    for part in ["decodebin", "nvvidconv", "video/x-raw,format=NV12 !", "videoflip", "update-freq=20 !"] {
        assert!(played.contains(part), "{part} is not in {played}");
    }
    let camera = described("pipelines/csi.sh", "csi:1");
    assert!(camera.contains("nvarguscamerasrc name=camera sensor-id=1 !"), "{camera}");
    assert!(!camera.contains("decodebin") && !camera.contains("videoflip"), "{camera}");
}

/// The service's program, with a socket in systemd's place.
struct Service {
    /// `None` after it was stopped.
    child: Option<Child>,
    socket: UnixDatagram,
    messages: Vec<String>,
}

impl Service {
    fn start(
        machine: &Machine,
        script: &Path,
        arguments: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let address = machine.path("notify");
        let _ = fs::remove_file(&address);
        let socket = UnixDatagram::bind(&address).unwrap();
        let mut command = machine.command(&jetson().join("watch.py"));
        command.arg(script).args(arguments).env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "3000000");
        change(&mut command);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        Self { child: Some(child), socket, messages: Vec::new() }
    }

    /// Adds the messages of this period to `messages`.
    fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            if let Ok(length) = self.socket.recv(&mut buffer) {
                self.messages.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        }
    }

    fn count(&self, what: &str) -> usize {
        self.messages.iter().filter(|message| message.contains(what)).count()
    }

    fn wait_for(&mut self, what: &str, times: usize) {
        let begun = Instant::now();
        while self.count(what) < times {
            assert!(begun.elapsed() < PATIENCE, "{what:?} {times} times is not in {:?}", self.messages);
            self.listen(Duration::from_millis(100));
        }
    }

    /// SIGTERM, as systemd sends it: to this process alone. Returns the exit status and what it printed.
    fn stop(mut self) -> (Option<i32>, String) {
        terminate(self.child.as_ref().unwrap());
        self.wait_for("STOPPING=1", 1);
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        (output.status.code(), printed(&output))
    }
}

fn terminate(child: &Child) {
    let _ = Command::new("kill").arg(child.id().to_string()).status();
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test failed. The second signal ends it immediately.
        if let Some(child) = &mut self.child {
            for _ in 0..2 {
                terminate(child);
                thread::sleep(Duration::from_secs(1));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_csi_camera_runs_as_a_service_that_reports_frames_to_the_watchdog() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let machine = Machine::new();
    let backend = Backend::start(&weights);
    let arguments = ["csi:0", "--backend", backend.url(), "--camera-id", "gate-2", "--location", "Hall"];
    let script = jetson().join("pipelines/play.sh");
    let mut service = Service::start(&machine, &script, &arguments, |command| {
        command.env("MOCK_NV_CAMERA", &video);
    });
    service.wait_for("WATCHDOG=1\nSTATUS=Frames pass", 3);
    assert_eq!(service.messages[0], "READY=1\nSTATUS=Starting");
    let (status, said) = service.stop();
    assert_eq!(status, Some(0), "{said}");
    assert!(!said.contains("frames ("), "lines that are only signs of life are kept back:\n{said}");
    assert!(stored(&backend, "gate-2", "Hall") > 0, "what was queued is uploaded at the end:\n{said}");
}

#[test]
fn silence_is_no_sign_of_life_but_engines_and_reconnections_are() {
    let machine = Machine::new();
    machine.provide(
        "pipeline",
        "echo 'Progress: (tensorrt-engine) TensorRT is still working on x.onnx after 5 s; this is no hang'
         echo \"rtsp.sh: the stream failed at 'camera'; next attempt in 2 s\"
         trap 'exit 7' TERM
         while :; do sleep 0.1; done",
    );
    let mut service = Service::start(&machine, &machine.path("bin/pipeline"), &[], |_| ());
    service.wait_for("WATCHDOG=1", 2);
    assert_eq!(
        service.count("STATUS=TensorRT is still working on x.onnx after 5 s"),
        1,
        "{:?}",
        service.messages
    );
    assert_eq!(service.count("STATUS=Waiting for the camera"), 1, "{:?}", service.messages);
    service.listen(Duration::from_secs(2));
    assert_eq!(
        service.count("WATCHDOG=1"),
        2,
        "a script that prints nothing does not live: {:?}",
        service.messages
    );
    let (status, said) = service.stop();
    assert_eq!(status, Some(7), "the script's own status is passed on: {said}");
}

#[test]
fn the_installer_changes_nothing_when_repeated() {
    let built = built!();
    let machine = Machine::new();
    machine.pretend_to_be("R35 (release), REVISION: 4.1");
    let (status, said) = machine.install(&built.arguments());
    assert_eq!(status, Some(0), "{said}");
    for part in
        ["JetPack 5 (Jetson Linux 35.4.1)", "packages: nvidia-l4t-gstreamer", "GStreamer loads it", "done."]
    {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    let changes = fs::read_to_string(machine.path("changes")).unwrap();
    assert!(changes.contains("install") && changes.contains("nvidia-l4t-gstreamer"), "{changes}");
    let opt = machine.path("root/opt/facepipe");
    for file in [
        "lib/gstreamer-1.0/libgstfacepipe.so",
        "lib/libonnxruntime.so",
        "bin/facepipe",
        "models/version-RFB-640.onnx",
        "pipelines/common.sh",
        "pipelines/lib/run.sh",
        "jetson/pipelines/rtsp.sh",
        "jetson/watch.py",
        "../../etc/systemd/system/facepipe@.service",
        "../../etc/facepipe/camera.env.example",
    ] {
        assert!(opt.join(file).exists(), "{file} is not there:\n{said}");
    }
    // The installed scripts find the installed plugin.
    let mut help = machine.command(&opt.join("jetson/pipelines/rtsp.sh"));
    let output = help
        .args(["rtsp://127.0.0.1:9/x", "--decoder", "none"])
        .env_remove("GST_PLUGIN_PATH")
        .output()
        .unwrap();
    assert!(printed(&output).contains("--decoder is 'none'"), "{}", printed(&output));

    let before = machine.installed();
    let (status, said) = machine.install(&built.arguments());
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("packages: all there") && !said.contains("writing"), "{said}");
    assert_eq!(machine.installed(), before);
}

#[test]
fn a_dry_run_changes_nothing() {
    let built = built!();
    let machine = Machine::new();
    machine.pretend_to_be("R36 (release), REVISION: 4.3");
    let before = machine.installed();
    let mut arguments = built.arguments().to_vec();
    arguments.push("--dry-run");
    let (status, said) = machine.install(&arguments);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("JetPack 6 (Jetson Linux 36.4.3)"), "{said}");
    assert!(said.contains("would run: apt-get update"), "{said}");
    assert_eq!(machine.installed(), before);
    assert!(!machine.path("changes").exists());
}

#[test]
fn the_installer_uses_mtcnn_if_the_detectors_are_missing() {
    let built = built!();
    let machine = Machine::new();
    machine.pretend_to_be("R36 (release), REVISION: 4.3");
    let folder = machine.path("weights");
    fs::create_dir_all(&folder).unwrap();
    let mut arguments = built.arguments().to_vec();
    let models = arguments.iter().position(|argument| *argument == "--models").unwrap() + 1;
    arguments[models] = folder.to_str().unwrap();
    arguments.push("--dry-run");
    for file in ["pnet.pt", "rnet.pt"] {
        fs::write(folder.join(file), "").unwrap();
    }
    let (status, said) = machine.install(&arguments);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("has no version-RFB-320.onnx") && said.contains("and no onet.pt"), "{said}");
    fs::write(folder.join("onet.pt"), "").unwrap();
    let (status, said) = machine.install(&arguments);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("MTCNN runs, and on the processor alone"), "{said}");
    assert!(said.contains("opt/facepipe/models/onet.pt") && !said.contains("models/version-RFB"), "{said}");
}

#[test]
fn the_installer_refuses_unsupported_systems_and_files() {
    let built = built!();
    let machine = Machine::new();
    let refused = |arguments: &[&str], code, expected: &str| {
        let (status, said) = machine.install(arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: no {expected:?} in\n{said}");
    };
    machine.pretend_to_be("R32 (release), REVISION: 7.1");
    refused(&[], 1, "JetPack 4, whose GStreamer (1.14) is too old");
    machine.pretend_to_be("R99 (release), REVISION: 1.0");
    refused(&[], 1, "only 35 (JetPack 5) and 36 (JetPack 6) are known");
    machine.pretend_to_be("R36 (release), REVISION: 4.3");
    refused(&["--plug", "x"], 2, "unknown argument '--plug'");
    refused(&["--plugin", "nowhere.so"], 2, "nowhere.so: no such file");
    let broken = machine.path("libgstfacepipe.so");
    fs::write(&broken, "not a library").unwrap();
    refused(&["--plugin", broken.to_str().unwrap()], 1, "GStreamer cannot load");

    // A runtime that is too old, and a wheel with only the Python module.
    let old = machine.path("libonnxruntime.so.1.16.3");
    fs::copy(&built.runtime, &old).unwrap();
    let mut arguments = built.arguments();
    arguments[7] = old.to_str().unwrap();
    refused(&arguments, 1, "libonnxruntime.so.1.16.3 is too old: 1.17 or later is needed");
    let wheel = machine.path("wheel.tgz");
    fs::create_dir_all(machine.path("wheel/onnxruntime/capi")).unwrap();
    fs::write(machine.path("wheel/onnxruntime/capi/onnxruntime_pybind11_state.so"), "").unwrap();
    let packed =
        Command::new("tar").arg("-czf").arg(&wheel).arg("-C").arg(machine.path("wheel")).arg(".").status();
    assert!(packed.unwrap().success());
    arguments[7] = wheel.to_str().unwrap();
    refused(&arguments, 1, "has no libonnxruntime.so");

    fs::remove_file(machine.path("bin/uname")).unwrap();
    machine.provide("uname", "echo x86_64");
    refused(&[], 1, "this is x86_64, and a Jetson is aarch64");
}
