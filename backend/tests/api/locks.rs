//! Transactions of several processes that change detections, tracks and groups of unknown faces: in which order they lock rows,
//! and that none overlooks what another one changes meanwhile. Only database servers have several writers.

use std::time::{Duration, Instant};

use diesel::{Connection as _, MysqlConnection, PgConnection, connection::SimpleConnection as _};
use facepipe_backend::parts::{Database, FaceId, NewProposal, SelectedProposals, UnknownId, now};
use tokio::sync::Mutex;

use crate::{
    helpers::{Engine, execute, lines, try_lines, until},
    tracks::{Rows, of_nobody, one_crop},
};

const GROUP: &str = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c";

/// A transaction of another process that stays open.
enum Transaction {
    Postgres(PgConnection),
    Mysql(MysqlConnection),
}

impl Transaction {
    /// Begins one with these statements; `None` on SQLite.
    fn begin(url: &str, statements: &str) -> Option<Self> {
        let begin = format!("BEGIN; {statements}");
        Some(match Engine::of_this_run()? {
            Engine::Postgres => {
                let mut connection = PgConnection::establish(url).unwrap();
                connection.batch_execute(&begin).unwrap();
                Self::Postgres(connection)
            }
            Engine::Mysql => {
                let mut connection = MysqlConnection::establish(url).unwrap();
                connection.batch_execute(&begin).unwrap();
                Self::Mysql(connection)
            }
        })
    }

    fn commit(self) {
        match self {
            Self::Postgres(mut connection) => connection.batch_execute("COMMIT"),
            Self::Mysql(mut connection) => connection.batch_execute("COMMIT"),
        }
        .unwrap();
    }
}

/// Waits until a transaction of the database waits for another one.
async fn until_one_waits(url: &str) {
    if Engine::of_this_run() == Some(Engine::Postgres) {
        let waiting = "SELECT CONCAT('', COUNT(*)) AS line FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        until(|| lines(url, waiting) == ["1"]).await;
        return;
    }
    // InnoDB's list of transactions stays as it is while anybody reads it more often than every 100 ms: one test at a time does.
    static READING: Mutex<()> = Mutex::const_new(());
    let _reading = READING.lock().await;
    let waiting = "SELECT CONCAT('', COUNT(*)) AS line FROM information_schema.innodb_trx AS waiting \
                   INNER JOIN information_schema.processlist AS process ON process.id = waiting.trx_mysql_thread_id \
                   WHERE process.db = DATABASE() AND waiting.trx_state = 'LOCK WAIT'";
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(150)).await;
        if lines(url, waiting) == ["1"] {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing waits");
    }
}

/// Whether no transaction has locked the rows of a query.
fn is_free(url: &str, query: &str) -> bool {
    try_lines(url, &format!("{query} FOR UPDATE NOWAIT")).is_ok()
}

/// Stores detections of one track of nobody, in a group whose row is to be computed again. Returns their ids.
async fn group(rows: &Rows, faces: usize) -> Vec<i64> {
    let at = now();
    for key in 0..faces {
        let new = of_nobody(one_crop(0, Some("r"), &key.to_string(), at, at));
        rows.database.store_uploads(new).await.unwrap();
    }
    execute(
        &rows.url,
        &format!(
            "INSERT INTO unknowns (id, public_id, embedder, mean, faces, tracks, first_seen, last_seen, representative, \
             ignored, pinned, changed, created_at) SELECT 1, '{GROUP}', embedder, embedding, {faces}, 1, captured_at, \
             captured_at, id, FALSE, FALSE, TRUE, 0 FROM detections ORDER BY id LIMIT 1; \
             UPDATE detections SET unknown_id = 1; UPDATE unknown_clustering SET last_unknown = 1"
        ),
    );
    let ids = rows.lines("SELECT CONCAT('', id) AS line FROM detections ORDER BY id");
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

/// Proposes the person for a detection. Returns the proposal's row id.
fn propose(rows: &Rows, person: i64, detection: i64) -> i64 {
    execute(
        &rows.url,
        &format!(
            "INSERT INTO proposals (person_id, detection_id, score, model_version, refused, created_at) \
             VALUES ({person}, {detection}, 0.5, 1, FALSE, 0)"
        ),
    );
    rows.lines("SELECT CONCAT('', MAX(id)) AS line FROM proposals")[0].parse().unwrap()
}

/// What an administrator does.
#[derive(Debug, Clone, Copy)]
enum Action {
    Name,
    Accept(i64),
    EraseGroup,
    EraseDetection(i64),
}

impl Action {
    async fn run(self, database: Database) {
        let group = UnknownId::parse(GROUP).unwrap();
        match self {
            Self::Name => {
                let name = FaceId::try_from("Grace".to_owned()).unwrap();
                database.name_unknown(group, &name, false).await.map(drop)
            }
            Self::Accept(proposal) => {
                database.judge_proposals(SelectedProposals::Ids(vec![proposal]), true).await.map(drop)
            }
            Self::EraseGroup => database.erase_unknown(group, false).await.map(drop),
            Self::EraseDetection(id) => database.erase_detection(id).await.map(drop),
        }
        .unwrap();
    }
}

#[tokio::test]
async fn a_name_waits_for_followers_before_it_locks_groups() {
    for accepts in [false, true] {
        let rows = Rows::new();
        let person = rows.person("Ada").await;
        let faces = group(&rows, 2).await;
        let action = if accepts { Action::Accept(propose(&rows, person, faces[0])) } else { Action::Name };
        let follower = match Engine::of_this_run() {
            // The number of insert_lock.rs.
            Some(Engine::Postgres) => "SELECT pg_advisory_xact_lock(7377286951938388070)",
            _ => "SELECT expires_at FROM leases WHERE name = 'arrivals' FOR UPDATE",
        };
        let Some(follower) = Transaction::begin(&rows.url, follower) else { return };
        let acting = tokio::spawn(action.run(rows.database.clone()));
        until_one_waits(&rows.url).await;
        assert!(
            is_free(&rows.url, "SELECT CONCAT('', revision) AS line FROM unknown_clustering"),
            "{action:?}"
        );
        follower.commit();
        acting.await.unwrap();
    }
}

#[tokio::test]
async fn naming_and_erasing_wait_for_a_crop_of_the_track_before_they_lock_the_group() {
    for number in 0..4 {
        let rows = Rows::new();
        let person = rows.person("Ada").await;
        let faces = group(&rows, 2).await;
        let action = match number {
            0 => Action::Name,
            1 => Action::Accept(propose(&rows, person, faces[0])),
            2 => Action::EraseGroup,
            _ => Action::EraseDetection(faces[0]),
        };
        let crop = Transaction::begin(&rows.url, "UPDATE tracks SET weight = weight");
        let Some(crop) = crop else { return };
        let acting = tokio::spawn(action.run(rows.database.clone()));
        until_one_waits(&rows.url).await;
        for of_requests in [
            "SELECT CONCAT('', id) AS line FROM unknowns",
            "SELECT CONCAT('', expires_at) AS line FROM leases WHERE name = 'cohort'",
            "SELECT CONCAT('', id) AS line FROM detections",
        ] {
            assert!(is_free(&rows.url, of_requests), "{action:?} {of_requests}");
        }
        crop.commit();
        acting.await.unwrap();
    }
}

#[tokio::test]
async fn a_group_forgets_a_face_that_is_deleted_while_its_row_is_computed() {
    let faces_of_group = "SELECT CONCAT('', faces) AS line FROM unknowns";
    for erases in [false, true] {
        let rows = Rows::new();
        let faces = group(&rows, 3).await;
        let delete =
            format!("UPDATE unknowns SET changed = TRUE; DELETE FROM detections WHERE id = {}", faces[0]);
        let Some(retention) = Transaction::begin(&rows.url, &delete) else { return };
        let database = rows.database.clone();
        let erased = faces[1];
        let computing = tokio::spawn(async move {
            if erases {
                database.erase_detection(erased).await.unwrap();
            } else {
                database.summarise_changed_clusters(10).await.unwrap();
            }
        });
        until_one_waits(&rows.url).await;
        retention.commit();
        computing.await.unwrap();
        if erases {
            // At the latest by the task that clusters.
            rows.database.summarise_changed_clusters(10).await.unwrap();
        }
        assert_eq!(rows.lines(faces_of_group), [if erases { "1" } else { "2" }]);
    }
}

#[tokio::test]
async fn two_processes_request_the_search_for_one_person() {
    let rows = Rows::new();
    let person = rows.person("Ada").await;
    group(&rows, 1).await;
    let other = format!("INSERT INTO past_searches (person_id, requested_at) VALUES ({person}, 1)");
    if let Some(other) = Transaction::begin(&rows.url, &other) {
        let database = rows.database.clone();
        let requesting =
            tokio::spawn(
                async move { database.search_past_of(vec![person], "mobilefacenet").await.unwrap() },
            );
        until_one_waits(&rows.url).await;
        other.commit();
        assert!(requesting.await.unwrap());
    } else {
        execute(&rows.url, &other);
    }
    // The later request counts.
    execute(&rows.url, "UPDATE past_searches SET requested_at = 1");
    assert!(rows.database.search_past_of(vec![person, person], "mobilefacenet").await.unwrap());
    let requested = rows.lines("SELECT CONCAT('', requested_at) AS line FROM past_searches");
    assert!(requested.len() == 1 && requested != ["1"], "{requested:?}");
}

#[tokio::test]
async fn only_what_changes_groups_has_them_read_again() {
    let rows = Rows::new();
    let person = rows.person("Ada").await;
    let faces = group(&rows, 2).await;
    let revision = || rows.lines("SELECT CONCAT('', revision) AS line FROM unknown_clustering")[0].clone();
    let before = revision();
    let (refused, accepted) = (propose(&rows, person, faces[0]), propose(&rows, person, faces[1]));
    let judge = async |proposal: i64, accept: bool| {
        let selected = SelectedProposals::Ids(vec![proposal]);
        rows.database.judge_proposals(selected, accept).await.unwrap().proposals
    };
    assert_eq!(judge(refused, false).await, 1);
    assert_eq!(revision(), before);
    let proposal = NewProposal { person, detection: faces[0], score: 0.5, model_version: 1 };
    assert_eq!(rows.database.add_proposals(vec![proposal]).await.unwrap(), 0);
    assert_eq!(revision(), before);
    assert_eq!(judge(accepted, true).await, 1);
    assert_ne!(revision(), before);
}
