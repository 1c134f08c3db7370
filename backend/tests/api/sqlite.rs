//! The embedded database: commands run beside a server, a second server is refused, and a stopped server leaves one
//! complete file.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use diesel::{Connection as _, RunQueryDsl as _, SqliteConnection};
use reqwest::{Client, StatusCode};
use tokio::task::JoinHandle;

use crate::{
    command_line::program,
    helpers::{Engine, client, execute},
    replicas::{Replica, enrol, models, post, signal},
};

/// Inserts 3000 detections.
const OLD_DETECTIONS: &str = "
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 3000)
    INSERT INTO detections (captured_at, received_at, camera_id, location, threshold, detection_confidence, embedder,
        face, box_left, box_top, box_right, box_bottom)
    SELECT n, n, 'gate-1', 'Lobby', 0.4, 0.9, 'mobilefacenet', 0, 1, 1, 2, 2 FROM numbers";

/// A folder with the data folder of a server.
struct Place {
    folder: tempfile::TempDir,
    models: PathBuf,
}

impl Place {
    fn new(models: PathBuf) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), models }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn database(&self) -> PathBuf {
        self.data().join("facepipe.db")
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.database().display())
    }

    fn spawn(&self) -> Replica {
        let mut command = program();
        command.args(["--metrics-listen", "off"]);
        Replica::spawn_as(command, "data", self.folder.path(), &self.models, &self.url())
    }

    /// Runs a command of the program beside the server.
    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = program();
        command.args(arguments).arg("--data-dir").arg(self.data()).args(["--log", "warn"]);
        command.output().unwrap()
    }
}

#[track_caller]
fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Clients that add people, each one after the other.
struct Load {
    end: Arc<AtomicBool>,
    statuses: Arc<Mutex<HashMap<u16, usize>>>,
    added: Arc<Mutex<BTreeSet<String>>>,
    clients: Vec<JoinHandle<()>>,
}

/// The timeout of a call; later responses count as missing.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// No two people have the same name.
static NEXT: AtomicUsize = AtomicUsize::new(0);

impl Load {
    /// Runs until it is stopped or a call fails.
    fn start(client: &Client, url: &str, clients: usize) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let statuses = Arc::new(Mutex::new(HashMap::new()));
        let added = Arc::new(Mutex::new(BTreeSet::new()));
        let adds = |_| {
            let (client, url, end) = (client.clone(), url.to_owned(), Arc::clone(&end));
            let (statuses, added) = (Arc::clone(&statuses), Arc::clone(&added));
            tokio::spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    let person = format!("P{}", NEXT.fetch_add(1, Ordering::Relaxed));
                    // A client may not notice that its connection ended between two calls.
                    let call = client.post(format!("{url}/dataset/{person}")).timeout(ANSWER_LIMIT);
                    let Ok(answer) = call.send().await else { return };
                    *statuses.lock().unwrap().entry(answer.status().as_u16()).or_default() += 1;
                    if answer.status() == StatusCode::CREATED {
                        added.lock().unwrap().insert(person);
                    }
                }
            })
        };
        let clients = (0..clients).map(adds).collect();
        Self { end, statuses, added, clients }
    }

    fn answers(&self) -> usize {
        self.statuses.lock().unwrap().values().sum()
    }

    async fn until(&self, answers: usize) {
        let begun = Instant::now();
        while self.answers() < answers {
            assert!(begun.elapsed() < Duration::from_secs(30), "{} answers", self.answers());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The number of responses by status, and the people who were added.
    async fn end(self) -> (HashMap<u16, usize>, BTreeSet<String>) {
        self.end.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        let statuses = self.statuses.lock().unwrap().clone();
        let added = self.added.lock().unwrap().clone();
        (statuses, added)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_beside_a_busy_server_without_failed_requests_and_a_second_server_is_refused() {
    if Engine::of_this_run().is_some() {
        return;
    }
    let place = Arc::new(Place::new(models!()));
    let server = place.spawn().ready().await;
    let client = client();

    let load = Load::start(&client, &server.url, 3);
    load.until(20).await;
    for round in 0..6 {
        // Several transactions of them for `retain`.
        execute(&place.url(), OLD_DETECTIONS);
        let beside = Arc::clone(&place);
        let outputs = tokio::task::spawn_blocking(move || {
            [vec!["retain", "--detections-max-age-days", "1"], vec!["sweep"], vec!["migrate"]]
                .map(|command| beside.command(&command))
        });
        for output in outputs.await.unwrap() {
            assert!(output.status.success(), "{}", told(&output));
        }
        // Calls and commands take turns: neither is only there before or after the other.
        load.until(20 * (round + 2)).await;
    }
    let (statuses, added) = load.end().await;
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [201], "{statuses:?}");
    assert!(added.len() > 100, "{}", added.len());

    // A second server is refused with the details of the first, whatever its other settings.
    for more in [vec![], vec!["--role", "recognize"]] {
        let settings = [vec!["--listen", "127.0.0.1:0", "--metrics-listen", "off"], more].concat();
        let refused = place.command(&settings);
        let told = told(&refused);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        for word in [
            format!("process id {} on ", server.process.0.id()),
            format!("at {},", server.url),
            place.data().display().to_string(),
        ] {
            assert!(told.contains(&word), "no {word} in {told}");
        }
    }

    // The lock of a server that was killed is nobody's.
    drop(server);
    let server = place.spawn().ready().await;
    signal(&server.process.0, "TERM");
    server.ended().await;
}

/// The number of servers that are stopped under load.
const STOPS: usize = 50;
/// Servers that run concurrently: each spends most of its time starting.
const AT_A_TIME: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn the_database_file_of_a_stopped_server_is_complete() {
    if Engine::of_this_run().is_some() {
        return;
    }
    let models = models!();
    let stops = (0..AT_A_TIME).map(|_| tokio::spawn(stop_again_and_again(models.clone(), STOPS / AT_A_TIME)));
    for stopped in stops.collect::<Vec<_>>() {
        stopped.await.unwrap();
    }
}

async fn stop_again_and_again(models: PathBuf, times: usize) {
    let (place, client) = (Place::new(models), client());
    let mut accepted = BTreeSet::new();
    for time in 1..=times {
        let server = place.spawn().ready().await;
        if time == 1 {
            for person in ["Tony_Blair", "Hugo_Chavez"] {
                enrol(&client, &server.url, person, &[1]).await;
                accepted.insert(person.to_owned());
            }
        }
        let load = Load::start(&client, &server.url, 2);
        load.until(10).await;
        post(&client, &format!("{}/model/optimized-train", server.url)).await.expect(StatusCode::ACCEPTED);
        signal(&server.process.0, "TERM");
        server.ended().await;
        let (statuses, added) = load.end().await;
        assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [201], "{statuses:?}");
        accepted.extend(added);
        for left in ["facepipe.db-wal", "facepipe.db-shm"] {
            assert!(!place.data().join(left).exists(), "stop {time} left {left}");
        }
        let copy = Copied::of(&place.database());
        let missing: Vec<_> = accepted.difference(&copy.people).collect();
        assert!(missing.is_empty(), "stop {time} lost {missing:?}");
        assert_eq!(copy.jobs.len(), time, "a training was accepted each time");
        assert_eq!(copy.jobs.iter().filter(|status| *status == "done").count(), copy.models, "stop {time}");
    }
    assert!(Copied::of(&place.database()).models > 0);
}

/// The people in a copy of the database file alone.
struct Copied {
    people: BTreeSet<String>,
    jobs: Vec<String>,
    models: usize,
}

impl Copied {
    fn of(database: &Path) -> Self {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Text)]
            line: String,
        }
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.db");
        fs::copy(database, &copy).unwrap();
        let mut connection = SqliteConnection::establish(copy.to_str().unwrap()).unwrap();
        let mut lines = |query: &str| -> Vec<String> {
            let rows: Vec<Row> = diesel::sql_query(query).load(&mut connection).unwrap();
            rows.into_iter().map(|row| row.line).collect()
        };
        assert_eq!(lines("SELECT integrity_check AS line FROM pragma_integrity_check"), ["ok"]);
        Self {
            people: lines("SELECT face_id AS line FROM people").into_iter().collect(),
            jobs: lines("SELECT status AS line FROM jobs"),
            models: lines("SELECT CAST(version AS TEXT) AS line FROM models").len(),
        }
    }
}
