//! Shared code of the tests that cross crates: the built programs, and a backend per test.

#![allow(
    clippy::panic,
    clippy::expect_used,
    reason = "this crate is linked into tests only: a panic is how a test fails"
)]

pub mod camera;
pub mod programs;
pub mod proxy;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

/// Returns the folder of built programs: that of the running test, without `deps`.
pub fn build_dir() -> PathBuf {
    let test = env::current_exe().expect("the test's own path is known");
    test.ancestors().nth(2).expect("tests run from <build>/deps").to_path_buf()
}

/// Returns a program of the workspace, for example `facepipe-backend`. Cargo builds programs only for tests of their own
/// package; `make test` builds all first.
pub fn program(name: &str) -> PathBuf {
    let path = build_dir().join(name);
    assert!(path.is_file(), "{} is not built: run `cargo build --workspace`", path.display());
    path
}

/// Converts the folder of a published file of weights to that of its safetensors, by the program.
///
/// # Errors
/// What the program writes to standard error.
pub fn convert_weights(published: &Path, safetensors: &Path) -> Result<(), String> {
    let folder = |file: &Path| file.parent().expect("a file in a folder").to_owned();
    let mut command = Command::new(program("facepipe"));
    command.args(["models", "convert"]).arg(folder(published)).arg("--to").arg(folder(safetensors));
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Returns a folder with the converted weights of MTCNN and MobileFaceNet for a [`Backend`], or ends the test, reported as
/// skipped, if they are missing.
#[macro_export]
macro_rules! require_backend_weights {
    () => {
        match facepipe_test_support::converted_weights(&["mobilefacenet.onnx"], $crate::convert_weights) {
            Ok(folder) => folder,
            Err(reason) => {
                facepipe_test_support::skip(&reason);
                return;
            }
        }
    };
}

/// The real backend program on a free port, with a fresh database. Dropping it ends the process.
pub struct Backend {
    child: Child,
    data: tempfile::TempDir,
    models: PathBuf,
    settings: Vec<String>,
    address: String,
    url: String,
}

impl Backend {
    /// Starts it with MobileFaceNet from `models`, and waits until it is ready.
    pub fn start(models: &Path) -> Self {
        Self::start_with(models, &[])
    }

    /// Starts it with further settings, flags of the program.
    pub fn start_with(models: &Path, settings: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let settings: Vec<String> = settings.iter().map(|&setting| setting.into()).collect();
        let (child, address) = run_backend(data.path(), models, &settings, "127.0.0.1:0");
        let url = format!("http://{address}");
        Self { child, data, models: models.into(), settings, address, url }
    }

    /// Kills the process; the data is kept.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after [`stop`](Self::stop), with its data and at its address.
    pub fn start_again(&mut self) {
        (self.child, _) = run_backend(self.data.path(), &self.models, &self.settings, &self.address);
    }

    /// Returns the process id.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the folder of its database and blobs.
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the program, and waits until it is ready; returns its address.
fn run_backend(data: &Path, models: &Path, settings: &[String], listen: &str) -> (Child, String) {
    let address = data.join("address");
    let _ = fs::remove_file(&address);
    let mut child = Command::new(program("facepipe-backend"))
        .args(["--listen", listen, "--embedder", "mobilefacenet", "--log", "warn", "--data-dir"])
        .arg(data)
        .arg("--address-file")
        .arg(&address)
        .arg("--models-dir")
        .arg(models)
        .args(settings)
        // Recordings of tests are of any year.
        .env("FACEPIPE_CAPTURED_AT_MAX_BEHIND_DAYS", "36500")
        .env_remove("DATABASE_URL")
        .spawn()
        .expect("the backend starts");
    let started = Instant::now();
    // The file appears when the server is ready.
    loop {
        if let Ok(address) = fs::read_to_string(&address) {
            return (child, address.trim().to_owned());
        }
        if let Some(status) = child.try_wait().expect("the backend can be asked") {
            panic!("the backend ended at its start: {status}");
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the backend is not ready after a minute");
        thread::sleep(Duration::from_millis(50));
    }
}
