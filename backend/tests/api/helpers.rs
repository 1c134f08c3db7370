//! A server for one test, and the calls that tests make.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Once},
    time::{Duration, Instant},
};

use diesel::{
    Connection as _, MysqlConnection, PgConnection, QueryResult, RunQueryDsl as _, SqliteConnection,
    connection::SimpleConnection as _,
};
use facepipe_backend::{Application, Config, StopHandle};
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    multipart::{Form, Part},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::contract;

/// Starts a server, or ends the test as skipped where the weights cannot be had. Takes what the test configures
/// otherwise.
macro_rules! start {
    () => {
        start!(|_| ())
    };
    ($configure:expr) => {{
        let _ = facepipe_test_support::require!("lfw10");
        let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
        $crate::helpers::Server::start(&models, $configure).await
    }};
}
pub(crate) use start;

/// A running server with its own data folder.
pub struct Server {
    pub url: String,
    /// Where its metrics are, if the test asked for them.
    pub metrics: Option<String>,
    pub client: Client,
    pub config: Config,
    pub data: Arc<TempDir>,
    stop: StopHandle,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    pub async fn start(models: &Path, configure: impl FnOnce(&mut Config)) -> Self {
        let data = Arc::new(tempfile::tempdir().unwrap());
        let config = Config::default().with(|config| {
            config.listener.listen = "127.0.0.1:0".into();
            config.listener.metrics_listen = Some("off".into());
            // Otherwise detections would change between two reads.
            config.unknowns.group_unknowns = false;
            config.storage.data_dir = data.path().to_owned();
            // Not one that a package may have installed on this machine.
            config.browsers.guide_dir = Some(data.path().join("no-guide"));
            config.database.database_url = Engine::of_this_run().map(Engine::new_database);
            config.deployment.poll_interval_ms = 100;
            config.recognition.models_dir = models.to_owned();
            config.recognition.embedder = Some("mobilefacenet".into());
            // Tests use capture times of any year.
            config.retention.captured_at_max_behind_days = 36_500;
            configure(config);
        });
        Self::run(config, data).await
    }

    /// Starts a server of this configuration on data that are there already.
    pub async fn run(config: Config, data: Arc<TempDir>) -> Self {
        let application = Application::build(config.clone()).await.unwrap();
        let url = application.url();
        let metrics = application.metrics_address().map(|address| format!("http://{address}/metrics"));
        let stop = application.stop_handle();
        let task = tokio::spawn(application.run());
        Self { url, metrics, client: client(), config, data, stop, task }
    }

    /// Stops the server and starts another one on the same data.
    pub async fn restart(self) -> Self {
        let (config, data) = (self.config.clone(), Arc::clone(&self.data));
        self.stop().await;
        Self::run(config, data).await
    }

    /// Has the server begin to stop, as the first signal does.
    pub fn begin_to_stop(&self) {
        self.stop.stop(true);
    }

    /// Waits until the server has stopped.
    pub async fn stopped(self) {
        self.task.await.unwrap().unwrap();
    }

    /// Stops the server; its data stay as long as another one has them.
    pub async fn stop(self) {
        drop(self.client);
        self.stop.stop(true);
        self.task.await.unwrap().unwrap();
    }

    /// Another server on the same data.
    pub async fn replica(&self) -> Self {
        Self::run(self.config.clone(), Arc::clone(&self.data)).await
    }

    pub async fn call(&self, method: Method, path: &str) -> ApiResponse {
        self.call_with(method, path, |request| request).await
    }

    /// Calls with what `build` adds to the request, and checks the response against the document.
    async fn call_with(
        &self,
        method: Method,
        path: &str,
        build: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> ApiResponse {
        let request = build(self.client.request(method.clone(), format!("{}{path}", self.url)));
        let answer = ApiResponse::read(request.send().await.unwrap()).await;
        contract::check(&method, path, &answer);
        answer
    }

    pub async fn get(&self, path: &str) -> ApiResponse {
        self.call(Method::GET, path).await
    }

    pub async fn post(&self, path: &str) -> ApiResponse {
        self.call(Method::POST, path).await
    }

    pub async fn delete(&self, path: &str) -> ApiResponse {
        self.call(Method::DELETE, path).await
    }

    /// POST with a form.
    pub async fn send(&self, path: &str, form: Form) -> ApiResponse {
        self.call_with(Method::POST, path, |request| request.multipart(form)).await
    }

    /// PUT with a form.
    pub async fn put(&self, path: &str, form: Form) -> ApiResponse {
        self.call_with(Method::PUT, path, |request| request.multipart(form)).await
    }

    /// PATCH with a JSON body.
    pub async fn patch(&self, path: &str, body: &Value) -> ApiResponse {
        self.call_with(Method::PATCH, path, |request| request.json(body)).await
    }

    /// POST with a JSON body.
    pub async fn post_json(&self, path: &str, body: &Value) -> ApiResponse {
        self.call_with(Method::POST, path, |request| request.json(body)).await
    }

    /// Adds a person with the photographs of these numbers.
    pub async fn enrol(&self, person: &str, photographs: &[u32]) {
        self.post(&format!("/dataset/{person}")).await.expect(StatusCode::CREATED);
        for number in photographs {
            let form = Form::new().part("image", photograph(person, *number));
            self.send(&format!("/dataset/{person}/image"), form).await.expect(StatusCode::CREATED);
        }
    }

    /// Trains and returns the training's result.
    pub async fn train(&self) -> Value {
        let answer = self.post("/model/optimized-train?wait=true").await.expect(StatusCode::OK);
        assert_eq!(answer["status"], "done", "{answer}");
        answer["result"].clone()
    }

    /// The embedding that was stored last, as its row has it.
    pub fn newest_embedding(&self) -> Vec<u8> {
        let hex = self.lines(match Engine::of_this_run() {
            Some(Engine::Postgres) => {
                "SELECT encode(vector, 'hex') AS line FROM embeddings ORDER BY created_at DESC LIMIT 1"
            }
            _ => "SELECT hex(vector) AS line FROM embeddings ORDER BY created_at DESC LIMIT 1",
        });
        let digits = hex[0].as_bytes().chunks(2);
        digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// What a query on the server's database gives in its one column `line`, a text.
    pub fn lines(&self, query: &str) -> Vec<String> {
        lines(&self.config.database_url(), query)
    }

    /// Runs statements on the server's database.
    pub fn execute(&self, statements: &str) {
        execute(&self.config.database_url(), statements);
    }

    /// Takes a migration back, as though the server were one from before it; the next start runs it again.
    pub fn revert(&self, migration: &str) {
        let engine = match Engine::of_this_run() {
            None => "sqlite",
            Some(Engine::Postgres) => "postgres",
            Some(Engine::Mysql) => "mysql",
        };
        revert(&self.config.database_url(), engine, migration);
    }

    /// Where the server keeps something of `needle`: files of its data folder, and its database.
    pub fn traces_of(&self, needle: &[u8]) -> Vec<PathBuf> {
        let mut traces = found_below(self.data.path(), needle);
        if let Some(url) = &self.config.database.database_url {
            let rows = output_of(rows_of(url)).to_ascii_lowercase();
            let hex: String = needle.iter().map(|byte| format!("{byte:02x}")).collect();
            if contains(&rows, &needle.to_ascii_lowercase()) || contains(&rows, hex.as_bytes()) {
                traces.push("the database".into());
            }
        }
        traces
    }

    /// The one face of a photograph, as get-results answers it.
    pub async fn recognise(&self, person: &str, number: u32) -> Value {
        let form = Form::new().part("image", photograph(person, number));
        let answer = self.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
        let faces = answer["faces"].as_array().unwrap();
        assert_eq!(faces.len(), 1, "{answer}");
        faces[0].clone()
    }
}

/// Takes a migration of a database back; `engine` is the folder of its migrations.
pub fn revert(database: &str, engine: &str, migration: &str) {
    let backend = facepipe_test_support::workspace_root().join("backend");
    let folder = backend.join("migrations").join(engine).join(migration);
    execute(database, &fs::read_to_string(folder.join("down.sql")).unwrap());
    let version: String = migration.chars().take(17).filter(char::is_ascii_digit).collect();
    execute(database, &format!("DELETE FROM __diesel_schema_migrations WHERE version = '{version}'"));
}

/// What a query on a database gives in its one column `line`, a text.
pub fn lines(database: &str, query: &str) -> Vec<String> {
    try_lines(database, query).unwrap()
}

/// The column `line` of the rows of a query, unless the engine refuses it.
pub fn try_lines(database: &str, query: &str) -> QueryResult<Vec<String>> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Text)]
        line: String,
    }
    let query = diesel::sql_query(query);
    let rows: QueryResult<Vec<Row>> = match database.split_once("://").unwrap() {
        ("sqlite", file) => query.load(&mut SqliteConnection::establish(file).unwrap()),
        ("postgres", _) => query.load(&mut PgConnection::establish(database).unwrap()),
        _ => query.load(&mut MysqlConnection::establish(database).unwrap()),
    };
    Ok(rows?.into_iter().map(|row| row.line).collect())
}

/// Runs statements on a database.
pub fn execute(database: &str, statements: &str) {
    match database.split_once("://").unwrap() {
        ("sqlite", file) => {
            let mut connection = SqliteConnection::establish(file).unwrap();
            connection.batch_execute("PRAGMA busy_timeout = 60000").unwrap();
            connection.batch_execute(statements)
        }
        ("postgres", _) => PgConnection::establish(database).unwrap().batch_execute(statements),
        _ => MysqlConnection::establish(database).unwrap().batch_execute(statements),
    }
    .unwrap();
}

/// A database server that tests run on instead of the embedded database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    Mysql,
}

impl Engine {
    /// What `FACEPIPE_TEST_DATABASE` says: `postgres`, `mysql`, or nothing for SQLite.
    pub fn of_this_run() -> Option<Self> {
        match std::env::var("FACEPIPE_TEST_DATABASE").as_deref() {
            Ok("postgres") => Some(Self::Postgres),
            Ok("mysql") => Some(Self::Mysql),
            Ok("sqlite") | Err(_) => None,
            Ok(other) => panic!("FACEPIPE_TEST_DATABASE is {other:?}"),
        }
    }

    /// The URL of the server, where `scripts/databases.sh` has started it.
    pub fn server(self) -> String {
        let variable = match self {
            Self::Postgres => "FACEPIPE_TEST_POSTGRES",
            Self::Mysql => "FACEPIPE_TEST_MYSQL",
        };
        std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: see scripts/databases.sh"))
    }

    /// The URL of a new, empty database.
    pub fn new_database(self) -> String {
        let (server, name) = (self.server(), format!("test_{}", uuid::Uuid::new_v4().simple()));
        let create = diesel::sql_query(format!("CREATE DATABASE {name}"));
        match self {
            Self::Postgres => {
                create.execute(&mut PgConnection::establish(&format!("{server}/postgres")).unwrap()).unwrap()
            }
            Self::Mysql => create.execute(&mut MysqlConnection::establish(&server).unwrap()).unwrap(),
        };
        format!("{server}/{name}")
    }
}

/// Waits until something holds that must come to hold.
pub async fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come to that");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What writes out everything that a database server holds of one database: the engine's own tool.
pub fn dump(url: &str) -> Command {
    let mut command = if url.starts_with("postgres") {
        Command::new("pg_dump")
    } else {
        let mut command = Command::new("mariadb-dump");
        command.args(["--no-defaults", "--hex-blob", "--single-transaction"]);
        command
    };
    command.args(address_of(url));
    command
}

/// What runs the statements of a dump on a database: the engine's own tool. They come from standard input.
pub fn restore(url: &str) -> Command {
    let mut command = if url.starts_with("postgres") {
        let mut command = Command::new("psql");
        command.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"]);
        command
    } else {
        let mut command = Command::new("mariadb");
        command.arg("--no-defaults");
        command
    };
    command.args(address_of(url));
    command
}

/// The rows alone, bytes in hexadecimal.
fn rows_of(url: &str) -> Command {
    let mut command = dump(url);
    if url.starts_with("postgres") {
        command.args(["--data-only", "--inserts"]);
    } else {
        command.arg("--no-create-info");
    }
    command
}

/// The arguments that name a database to the engines' own tools.
fn address_of(url: &str) -> Vec<String> {
    if url.starts_with("postgres") {
        return vec![format!("--dbname={url}")];
    }
    let (server, database) = url.rsplit_once('/').unwrap();
    let (user, address) = server.strip_prefix("mysql://").unwrap().split_once('@').unwrap();
    let (host, port) = address.split_once(':').unwrap();
    ["-h", host, "-P", port, "-u", user, database].map(str::to_owned).to_vec()
}

/// What a command writes, where it succeeds.
pub fn output_of(mut command: Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What a server answered.
pub struct ApiResponse {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl ApiResponse {
    pub async fn read(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Self { status, headers, body }
    }

    /// The body, where the status is as it must be.
    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// The error's message, where status and code are as they must be.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> String {
        let error = &self.body["error"];
        assert_eq!((self.status.as_u16(), error["code"].as_str()), (status, Some(code)), "{}", self.body);
        error["message"].as_str().unwrap().to_owned()
    }
}

pub fn client() -> Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // The server may have installed the same before.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    // Reading the system's certificates takes a tenth of a test, and no server of these tests has one from them.
    Client::builder().tls_certs_only([]).build().unwrap()
}

pub fn photograph_path(person: &str, number: u32) -> PathBuf {
    facepipe_test_support::find(&format!("lfw10/{person}/{person}_{number:04}.jpg")).unwrap()
}

pub fn photograph(person: &str, number: u32) -> Part {
    file(fs::read(photograph_path(person, number)).unwrap())
}

pub fn file(bytes: Vec<u8>) -> Part {
    Part::bytes(bytes).file_name("picture.jpg")
}

/// A picture without a face: a grey ramp.
pub fn landscape() -> Part {
    let ramp = image::GrayImage::from_fn(160, 120, |x, y| image::Luma([u8::try_from((x + y) / 2).unwrap()]));
    let mut png = std::io::Cursor::new(Vec::new());
    ramp.write_to(&mut png, image::ImageFormat::Png).unwrap();
    file(png.into_inner())
}

/// All files under `folder`. Folders below it that go away meanwhile, as the blob store's do when they become empty, have
/// none.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(inside) = folders.pop() {
        let entries = match fs::read_dir(&inside) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && inside != folder => continue,
            outcome => outcome.unwrap(),
        };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// The files under `folder` that have `needle` in them.
pub fn found_below(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let has_needle = |file: &PathBuf| match fs::read(file) {
        Ok(bytes) => contains(&bytes, needle),
        // Gone since it was listed: written under another name, or removed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => panic!("{}: {error}", file.display()),
    };
    files_below(folder).into_iter().filter(has_needle).collect()
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
