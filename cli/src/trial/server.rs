//! The private backend of a trial: the real `facepipe-backend` program on a free port with a fresh database, and the API
//! calls that a trial needs.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

use crate::{
    client::{Client, Decision, Face, FaceChoice, LastKnownLocation, Recognition, Settings},
    exit::Failure,
    interrupt, pictures, train,
};

/// Time limit for the backend to become ready. A debug build on a slow disk needs several seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Time limit for a training.
const TRAINING_TIMEOUT: Duration = Duration::from_secs(600);

/// Time limit for an orderly end after SIGTERM before the backend is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A running backend. Dropping it ends its process.
pub struct Server {
    process: Process,
    runtime: Runtime,
    client: Client,
}

impl Server {
    /// Starts `program` on a local port (0: any free port) with an empty data folder below `workspace`, and waits until it
    /// is ready.
    ///
    /// # Errors
    /// The program cannot be started, ends by itself, or is not ready within a minute; the error quotes its log.
    pub fn start(program: &Path, workspace: &Path, models: &Path, embedder: &str, port: u16) -> Result<Self> {
        let data = workspace.join("data");
        if data.exists() {
            fs::remove_dir_all(&data).map_err(|error| Failure::output(data.display(), error))?;
        }
        fs::create_dir_all(&data).map_err(|error| Failure::output(data.display(), error))?;
        let address_file = workspace.join("backend.address");
        let _ = fs::remove_file(&address_file);
        let log = workspace.join("backend.log");
        let log_file = fs::File::create(&log).map_err(|error| Failure::output(log.display(), error))?;
        let child = Command::new(program)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .arg("--address-file")
            .arg(&address_file)
            .arg("--data-dir")
            .arg(&data)
            .arg("--models-dir")
            .arg(models)
            .args(["--embedder", embedder])
            .env_remove("DATABASE_URL")
            // Certificates of this machine name others than the local address.
            .env_remove("FACEPIPE_TLS_CERTIFICATE")
            .env_remove("FACEPIPE_TLS_KEY")
            .env_remove("FACEPIPE_TLS_CLIENT_CA")
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut process = Process(child);
        let address = process.wait_until_ready(&address_file, &log)?;
        let client = Client::new(&Settings {
            request_timeout: TRAINING_TIMEOUT,
            ..Settings::new(format!("http://{address}"))
        })?;
        Ok(Self { process, runtime: crate::runtime()?, client })
    }

    /// Returns the base address, `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        self.client.address()
    }

    /// Waits for an interrupt.
    ///
    /// # Errors
    /// The backend ended by itself.
    pub fn wait_until_interrupted(&mut self) -> Result<()> {
        loop {
            let ended = self.process.0.try_wait()?;
            // Ctrl-C reaches both processes, in any order.
            thread::sleep(Duration::from_millis(200));
            if interrupt::requested() {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("the backend ended by itself ({status})");
            }
        }
    }

    /// Identifies the largest face of a photograph without storing it. Returns none without a face, and an inner none if
    /// unknown.
    ///
    /// # Errors
    /// The API fails, or refuses the photograph.
    pub fn identify(&self, photograph: &Path) -> Result<Option<Option<String>>> {
        let bytes = pictures::read(photograph).map_err(|why| Failure::input(photograph.display(), why))?;
        let asked = self.client.recognize(Recognition::GetResults, bytes.into(), None, Some(1));
        let results = self.runtime.block_on(asked)?;
        Ok(Face::largest(&results.faces).map(|face| match (&face.decision, &face.top_prediction) {
            (Decision::Known, Some(prediction)) => Some(prediction.label.clone()),
            _ => None,
        }))
    }

    /// Adds a person.
    ///
    /// # Errors
    /// The API fails.
    pub fn add_person(&self, id: &str) -> Result<()> {
        self.runtime.block_on(self.client.add_person(id))?;
        Ok(())
    }

    /// Adds a photograph of a person. The inner error means that the backend cannot use the photograph.
    ///
    /// # Errors
    /// The API fails.
    pub fn add_image(&self, id: &str, photograph: &Path) -> Result<Result<(), String>> {
        let bytes = match pictures::read(photograph) {
            Ok(bytes) => bytes,
            Err(why) => return Ok(Err(why)),
        };
        match self.runtime.block_on(self.client.add_image(id, bytes.into(), FaceChoice::Main)) {
            Ok(_) => Ok(Ok(())),
            Err(refusal) if refusal.is_request_error() => Ok(Err(refusal.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Trains on the stored embeddings and waits for the new model. Returns false if interrupted.
    ///
    /// # Errors
    /// The training fails.
    pub fn train(&self) -> Result<bool> {
        Ok(self.runtime.block_on(train::begin_and_wait(&self.client, false))?.is_some())
    }

    /// Returns where each of `people` was seen last; omits those never seen.
    ///
    /// # Errors
    /// A call fails.
    pub fn last_seen<'a>(
        &self,
        people: impl Iterator<Item = &'a str>,
    ) -> Result<BTreeMap<String, LastKnownLocation>> {
        let mut seen = BTreeMap::new();
        for id in people {
            if let Some(last) = self.runtime.block_on(self.client.last_known_location(id))? {
                seen.insert(id.to_owned(), last);
            }
        }
        Ok(seen)
    }
}

/// The backend's process. Dropping it ends the process.
struct Process(Child);

impl Process {
    /// Waits for the address file that the program writes when ready, and returns the address.
    fn wait_until_ready(&mut self, address_file: &Path, log: &Path) -> Result<String> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                bail!("the backend ended at its start ({status}):\n{}", tail(log));
            }
            if let Ok(address) = fs::read_to_string(address_file) {
                return Ok(address.trim().to_owned());
            }
            if started.elapsed() > START_TIMEOUT {
                bail!("the backend is not ready after {START_TIMEOUT:?}:\n{}", tail(log));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // On SIGTERM the program finishes accepted requests. `kill` sends it without `unsafe` code.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let asked = Instant::now();
        while asked.elapsed() < STOP_TIMEOUT {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the last lines of a log and its path.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
    format!("{tail}\n(the whole log: {})", log.display())
}
