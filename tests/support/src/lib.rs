//! Locates golden values (`tests/fixtures`, committed) and test data (weights, photographs, videos: never committed), reports
//! tests without their data as skipped, and has helpers that all crates' tests share.
//!
//! A test that needs data starts with [`require!`]:
//!
//! ```
//! # fn street_is_read() {
//! let video = facepipe_test_support::require!("videos/street-1080p.mp4");
//! # let _ = video;
//! # }
//! ```
//!
//! If the file is missing, the test ends there, and a line with its name and the reason goes to standard error and to the file
//! `FACEPIPE_SKIP_LOG`, from which `make test` counts. With `CI=true` it fails.

#![allow(
    clippy::panic,
    clippy::expect_used,
    reason = "this crate is linked into tests only: a panic is how a test fails"
)]

pub mod tracking;

use std::{
    env, fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Returns the root of the workspace.
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("tests/support lies two levels below the root").to_path_buf()
}

/// Returns the folder of downloaded models, `FACEPIPE_MODELS` or `models/` of the workspace.
pub fn models_dir() -> PathBuf {
    env::var_os("FACEPIPE_MODELS").map_or_else(|| workspace_root().join("models"), PathBuf::from)
}

/// Reads golden values of a reference implementation, `tests/fixtures/<name>`.
pub fn fixture(name: &str) -> serde_json::Value {
    let path = workspace_root().join("tests/fixtures").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Finds a file or folder of test data by its path as in the mirror, for example `models/pnet.pt`, `lfw10/Tony_Blair`,
/// `scenes/multiface.jpg`. Looks first in the models folder, which `facepipe models fetch` fills, then in
/// `FACEPIPE_MIRROR`.
pub fn find(relative: &str) -> Option<PathBuf> {
    let models = models_dir();
    let fetched = match relative.strip_prefix("models/") {
        Some(file) => models.join(file),
        None => models.join("assets").join(relative),
    };
    let mirrored = env::var_os("FACEPIPE_MIRROR").map(|m| PathBuf::from(m).join(relative));
    [Some(fetched), mirrored].into_iter().flatten().find(|p| p.exists())
}

/// The published files of MTCNN's weights.
const MTCNN: [&str; 3] = ["pnet.pt", "rnet.pt", "onet.pt"];

/// Returns a folder, `target/test-weights` of the workspace, with the safetensors of MTCNN's weights and of the published files
/// `others`, which are found as [`find`] does. `convert` is called with a published file and its safetensors where these were not
/// made of this very file before; concurrent tests take turns.
///
/// # Errors
/// A published file is missing.
pub fn converted_weights(
    others: &[&str],
    convert: impl Fn(&Path, &Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let folder = workspace_root().join("target/test-weights");
    fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let lock = fs::File::options().create(true).append(true).open(folder.join(".lock"));
    let lock = lock.expect("a lock file can be made");
    // Released when it is dropped.
    lock.lock().expect("the lock can be taken");
    for name in MTCNN.iter().chain(others) {
        let published = find(&format!("models/{name}")).ok_or_else(|| missing(&format!("models/{name}")))?;
        let safetensors = folder.join(name).with_extension("safetensors");
        let modified = |file: &Path| file.metadata().and_then(|file| file.modified()).ok();
        if modified(&published) != modified(&safetensors) {
            convert(&published, &safetensors).unwrap_or_else(|e| panic!("{}: {e}", published.display()));
        }
    }
    Ok(folder)
}

/// Returns why a test without the file `relative` is skipped.
pub fn missing(relative: &str) -> String {
    format!("no {relative}: run `facepipe models fetch`, or set FACEPIPE_MIRROR to a folder that has it")
}

/// Waits until a condition holds, for a minute at most.
#[track_caller]
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_until_within(Duration::from_secs(60), what, holds);
}

/// Waits as [`wait_until`] does, for at most `limit`.
#[track_caller]
pub fn wait_until_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "{what}: not after {limit:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns a TCP port of the loopback address on which nothing listened a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a listener has an address").port()
}

/// Reports the current test as skipped, with the reason; fails it with `CI=true`.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("unnamed test");
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(log) = env::var_os("FACEPIPE_SKIP_LOG") {
        let line = format!("{test}: {reason}\n");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log);
        file.and_then(|mut f| f.write_all(line.as_bytes())).expect("the skip log can be written");
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "skipped in CI: {reason}");
}

/// Returns the path of test data, or ends the test, reported as skipped, if it is missing.
#[macro_export]
macro_rules! require {
    ($relative:expr) => {
        match $crate::find($relative) {
            Some(path) => path,
            None => {
                $crate::skip(&$crate::missing($relative));
                return;
            }
        }
    };
}

/// Returns a folder with the converted weights of MTCNN and of the given published files, or ends the test, reported as skipped, if
/// one is missing. For tests of crates that use `facepipe-convert`.
#[macro_export]
macro_rules! require_weights {
    ($($published:expr),*) => {
        match $crate::converted_weights(&[$($published),*], |from, to| {
            facepipe_convert::convert(from, to).map_err(|error| error.to_string())
        }) {
            Ok(folder) => folder,
            Err(reason) => {
                $crate::skip(&reason);
                return;
            }
        }
    };
}

/// Loads ONNX Runtime from the checkout and returns the path of its library, or ends the test, reported as skipped. For tests
/// of crates that use `facepipe-detector`.
#[macro_export]
macro_rules! require_onnx_runtime {
    () => {
        match facepipe_detector::runtime::load(&[$crate::workspace_root()]) {
            Ok(runtime) => runtime.path().to_path_buf(),
            Err(error) => {
                $crate::skip(&error.to_string());
                return;
            }
        }
    };
}
