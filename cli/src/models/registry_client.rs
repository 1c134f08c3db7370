//! Runs the client of a package registry (pip, npm) and watches its download folder for progress and stalls.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use walkdir::WalkDir;

use super::progress::Progress;

/// Time without any download progress after which a client is stopped.
const STALL_TIMEOUT: Duration = Duration::from_secs(45);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Interval at which the folder is measured.
const MEASURE_INTERVAL: Duration = Duration::from_millis(300);

/// Result of a client's run.
pub struct ClientOutput {
    /// Whether it succeeded.
    pub success: bool,
    /// Standard error.
    pub err: String,
}

/// A running client; dropping it ends the process.
struct Running(Child);

impl Running {
    fn wait(&mut self, folder: &Path, mut progress: Option<&mut Progress>) -> Result<ExitStatus, String> {
        let mut size = 0;
        let mut grown = Instant::now();
        let mut measured = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().map_err(|e| e.to_string())? {
                return Ok(status);
            }
            if measured.elapsed() >= MEASURE_INTERVAL {
                measured = Instant::now();
                let now = size_of(folder);
                if now != size {
                    (size, grown) = (now, Instant::now());
                }
                if let Some(progress) = progress.as_deref_mut() {
                    progress.set(now);
                }
            }
            if grown.elapsed() >= STALL_TIMEOUT {
                return Err(format!("nothing arrived for {} s", STALL_TIMEOUT.as_secs()));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Usually it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the command to its end. `folder` is its download folder and gets its log.
///
/// # Errors
/// It cannot be started, or nothing arrived for too long.
pub fn run(
    mut command: Command,
    folder: &Path,
    progress: Option<&mut Progress>,
) -> Result<ClientOutput, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let log = folder.join(".log");
    let file = File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    let mut running = Running(command.spawn().map_err(|e| format!("{name} cannot be started: {e}"))?);
    let success = running.wait(folder, progress)?.success();
    let err = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    // The folder must contain nothing but the download.
    let _ = fs::remove_file(&log);
    Ok(ClientOutput { success, err })
}

/// Returns the total size of the files below a folder.
fn size_of(folder: &Path) -> u64 {
    let files = WalkDir::new(folder).into_iter().filter_map(Result::ok);
    files.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file).map(|file| file.len()).sum()
}
