//! A backend of the trial's own: the real `facepipe-backend` program on a free port with a fresh database, and the
//! few calls of its API that a trial makes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use reqwest::blocking::{Client, Response, multipart};
use serde::Deserialize;

/// How long the backend may take to load its networks and answer `/readyz`. A debug build on a slow disk needs
/// several seconds; half a minute means that something is wrong.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long the backend may take to finish its requests after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running backend. Dropping it stops the process.
pub struct Server {
    child: Child,
    client: Client,
    url: String,
    log: PathBuf,
}

/// Why one photograph was not enrolled: the API's stable code and its sentence.
#[derive(Debug)]
pub struct Refusal {
    /// For example `no_face` or `several_faces`.
    pub code: String,
    /// The sentence for people.
    pub message: String,
}

/// Where and when somebody was seen last.
#[derive(Debug, Clone, Deserialize)]
pub struct LastSeen {
    /// The camera's place.
    pub location: Option<String>,
    /// The camera.
    pub camera_id: String,
    /// RFC 3339, UTC.
    pub captured_at: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    code: String,
    message: String,
}

impl Server {
    /// Starts `program` with an empty data folder under `workspace` and waits until it is ready.
    ///
    /// # Errors
    /// The program cannot be started, ends by itself, or is not ready within a minute; the error quotes its log.
    pub fn start(program: &Path, workspace: &Path, models: &Path, embedder: &str) -> Result<Self> {
        let data = workspace.join("data");
        if data.exists() {
            fs::remove_dir_all(&data).with_context(|| format!("cannot clear {}", data.display()))?;
        }
        fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        let address_file = workspace.join("backend.address");
        let _ = fs::remove_file(&address_file);
        let log = workspace.join("backend.log");
        let log_file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(program)
            .args(["--listen", "127.0.0.1:0"])
            .arg("--address-file")
            .arg(&address_file)
            .arg("--data-dir")
            .arg(&data)
            .arg("--models-dir")
            .arg(models)
            .args(["--embedder", embedder])
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let client = Client::builder().timeout(Duration::from_secs(120)).build()?;
        let mut server = Self { child, client, url: String::new(), log };
        server.url = server.wait_until_ready(&address_file)?;
        Ok(server)
    }

    fn wait_until_ready(&mut self, address_file: &Path) -> Result<String> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the backend ended at its start ({status}):\n{}", self.log_tail());
            }
            if let Ok(address) = fs::read_to_string(address_file) {
                let url = format!("http://{}", address.trim());
                let ready = self.client.get(format!("{url}/readyz")).send();
                if ready.is_ok_and(|r| r.status().is_success()) {
                    return Ok(url);
                }
            }
            if started.elapsed() > START_LIMIT {
                bail!("the backend is not ready after {START_LIMIT:?}:\n{}", self.log_tail());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
        format!("{tail}\n(the whole log: {})", self.log.display())
    }

    /// The address to which pipelines post, `http://127.0.0.1:<port>`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Adds a person.
    ///
    /// # Errors
    /// Whatever the API refuses.
    pub fn add_person(&self, id: &str) -> Result<()> {
        accepted(self.client.post(self.path(&["dataset", id])?).send()?)?;
        Ok(())
    }

    /// Adds a photograph of a person; the inner error is a photograph that the backend cannot use.
    ///
    /// # Errors
    /// The file cannot be read, or the API fails otherwise.
    pub fn add_image(&self, id: &str, photograph: &Path) -> Result<Result<(), Refusal>> {
        let bytes = fs::read(photograph).with_context(|| format!("cannot read {}", photograph.display()))?;
        let name = photograph.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let form = multipart::Form::new().part("image", multipart::Part::bytes(bytes).file_name(name));
        let answer = self.client.post(self.path(&["dataset", id, "image"])?).multipart(form).send()?;
        if answer.status().is_client_error() {
            let body: ErrorBody = answer.json().context("the error answer has no error object")?;
            return Ok(Err(Refusal { code: body.error.code, message: body.error.message }));
        }
        accepted(answer)?;
        Ok(Ok(()))
    }

    /// Trains on the stored embeddings and waits for the new model.
    ///
    /// # Errors
    /// The training fails.
    pub fn train(&self) -> Result<()> {
        let url = format!("{}/model/optimized-train?wait=true", self.url);
        accepted(self.client.post(url).timeout(Duration::from_secs(600)).send()?)?;
        Ok(())
    }

    /// Where each of `people` was seen last; who was not seen is missing.
    ///
    /// # Errors
    /// A call fails otherwise than with 404.
    pub fn last_seen<'a>(&self, people: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, LastSeen>> {
        let mut seen = BTreeMap::new();
        for id in people {
            let answer = self.client.get(self.path(&["database", id, "last-known-location"])?).send()?;
            if answer.status() == reqwest::StatusCode::NOT_FOUND {
                continue;
            }
            seen.insert(id.to_owned(), accepted(answer)?.json()?);
        }
        Ok(seen)
    }

    fn path(&self, segments: &[&str]) -> Result<reqwest::Url> {
        let mut url = reqwest::Url::parse(&self.url)?;
        url.path_segments_mut().map_err(|()| anyhow!("{} is no base address", self.url))?.extend(segments);
        Ok(url)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The program finishes what it has accepted on SIGTERM; `kill` is the one way to send it without `unsafe`.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let asked = Instant::now();
        while asked.elapsed() < STOP_LIMIT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer, if its status says success; otherwise the API's own words.
fn accepted(answer: Response) -> Result<Response> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let path = answer.url().path().to_owned();
    let body = answer.text().unwrap_or_default();
    bail!("{path} answered {status}: {body}")
}
