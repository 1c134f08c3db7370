//! The SQL database: connections, migrations, and one file of statements per table.
//!
//! Statements are written against [`AnyConnection`], which stands for every engine at once. They use what all engines
//! have: no `RETURNING`, and an upsert only where its text is chosen by engine.

#![cfg_attr(
    not(feature = "database-servers"),
    allow(
        dead_code,
        irrefutable_let_patterns,
        unused_variables,
        reason = "without servers, every connection is one to SQLite"
    )
)]

mod access;
mod audit;
mod backlog;
mod backup;
mod cohort;
mod connection;
mod detections;
mod erasures;
mod idempotency_records;
mod insert_lock;
mod jobs;
mod leases;
mod migrations;
mod models;
#[cfg(feature = "database-servers")]
mod mysql_tls;
mod names;
mod naming;
mod outbox;
mod people;
mod proposals;
mod schema;
mod sightings;
mod signals;
mod similar;
mod task_runs;
mod tracks;
mod unknown_clustering;
mod unknown_pictures;
mod unknowns;

use std::{
    any::type_name,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use diesel::{
    connection::SimpleConnection as _,
    r2d2::ManageConnection as _,
    result::{DatabaseErrorKind, Error},
};
use tokio::sync::watch;

use super::StoreError;
use crate::{config_errors::config_error, domain::SameName, traces};
use connection::{ConnectError, Engine, Manager, Pool};
use signals::ChangeSignals;

pub use access::{NewPrincipal, NewToken, PrincipalChange, StoredAccess};
pub use backlog::Backlog;
pub use backup::{BackupSource, engine_of, is_empty, known_schema};
pub use cohort::{CandidateTrack, CohortCandidate, CohortCount, CohortFilter, CohortMember, NewCohortMember};
pub use connection::{AnyConnection, DatabaseOptions};
pub use erasures::{Erasure, RowIdentity};
pub use idempotency_records::{IdempotentCall, NewUploads, Upload};
pub use jobs::{CancelOutcome, JobDirective};
pub use leases::Lease;
pub use models::{ModelRow, NewModel};
pub use names::NameChanges;
pub use outbox::Message;
pub use people::{EnrolledImage, NewEmbedding, NewImage, PendingErasure, TrainingImage, has_picture};
pub use proposals::{Judged, NewProposal, ProposalFilter, SelectedProposals};
pub use signals::Topic;
pub use similar::SimilarImage;
pub use tracks::{Fusion, TrackedFace};
pub use unknown_clustering::{
    Assignment, ClusterUpdate, RevisedCluster, Revision, StoredClusters, Successor,
};
pub use unknown_pictures::{NewPicture, UnknownPicture};
pub use unknowns::ClusterConflict;

/// How often a transaction is tried that conflicts with others.
const MAX_ATTEMPTS: u32 = 4;

/// Values in one statement at most: all engines take more.
const MAX_VARIABLES: usize = 1000;

/// The pause between checks whether all calls have ended.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The database; clones share its connections.
#[derive(Clone)]
pub struct Database {
    /// `None` once the database is closed.
    pools: Arc<RwLock<Option<Arc<Pools>>>>,
    engine: Engine,
    /// How long a call waits for a connection, and on SQLite a writer for the writers of other processes.
    timeout: Duration,
    signals: Arc<ChangeSignals>,
    /// Whether this process is the only writer, one transaction after the other.
    one_writer: bool,
    /// Calls that failed through a fault of the database.
    errors: Arc<AtomicU64>,
    /// The name of the engine in traces.
    system: &'static str,
    /// Which Face IDs count as the same.
    same_name: SameName,
}

/// The connection pools: on SQLite, readers have their own; on servers, both are the same.
struct Pools {
    readers: Pool,
    writer: Pool,
}

/// Whether a transaction writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// The numbers of connections at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Not in use.
    pub idle: u32,
    /// In use.
    pub used: u32,
    /// The maximum of both together.
    pub limit: u32,
}

impl Database {
    /// Opens the database and brings its schema up to date, or waits until that was done. Blocks, on a server that is
    /// not there yet and on a schema that is too old for as long as the options say.
    ///
    /// # Errors
    /// The database cannot be opened, a migration fails, the schema stays too old, or it is newer than this program
    /// knows.
    pub fn open(options: &DatabaseOptions) -> anyhow::Result<Self> {
        let engine = Engine::of(options)?;
        engine.make_folder()?;
        if options.migrate_at_start {
            Self::migrate(options)?;
        } else {
            wait_for_schema(&engine, options)?;
        }
        let (readers, writer) =
            engine.pools(options).with_context(|| format!("cannot open the {engine} database"))?;
        let one_writer = matches!(engine, Engine::Sqlite { .. });
        let system = engine.system();
        Ok(Self {
            pools: Arc::new(RwLock::new(Some(Arc::new(Pools { readers, writer })))),
            engine: engine.clone(),
            timeout: options.connect_timeout,
            signals: ChangeSignals::start(engine)?,
            one_writer,
            errors: Arc::default(),
            system,
            same_name: SameName::IgnoringCase,
        })
    }

    /// Sets which Face IDs count as the same. All processes of a deployment must have the same rule.
    pub fn with_name_rule(self, same_name: SameName) -> Self {
        Self { same_name, ..self }
    }

    /// Brings the schema of a database up to date. Blocks as [`open`](Self::open) does. Returns the versions that were
    /// applied.
    ///
    /// # Errors
    /// The database cannot be opened, its schema is newer than this program knows, or a migration fails.
    pub fn migrate(options: &DatabaseOptions) -> anyhow::Result<Vec<String>> {
        let engine = Engine::of(options)?;
        engine.make_folder()?;
        // A connection without a statement timeout, closed afterwards together with its locks.
        let mut connection =
            wait_for(&engine, options.start_timeout).with_context(|| cannot_open(&engine))?;
        refuse_newer_schema(&engine, &mut connection, options)?;
        migrations::migrate(&mut connection, options.start_timeout)
            .with_context(|| format!("cannot bring the {engine} database up to date"))
    }

    /// Closes all connections once the calls in progress have ended, or after `timeout`; later calls fail. On SQLite, the
    /// file alone is complete afterwards, as after [`checkpoint_wal`].
    ///
    /// # Errors
    /// Calls are still in progress, or SQLite's write-ahead log cannot be emptied.
    pub async fn close(&self, timeout: Duration) -> anyhow::Result<()> {
        let taken = self.pools.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut pools) = taken else { return Ok(()) };
        let begun = Instant::now();
        let pools = loop {
            match Arc::try_unwrap(pools) {
                Ok(pools) => break Some(pools),
                Err(_) if begun.elapsed() >= timeout => break None,
                Err(shared) => pools = shared,
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        };
        let (engine, ended) = (self.engine.clone(), pools.is_some());
        let closed = tokio::task::spawn_blocking(move || {
            drop(pools);
            match engine {
                Engine::Sqlite { path } => checkpoint_wal(Path::new(&path), timeout),
                Engine::Postgres { .. } | Engine::Mysql { .. } => Ok(()),
            }
        });
        closed.await.context("the database was not closed")??;
        anyhow::ensure!(ended, "calls to the database are still in progress after {} s", timeout.as_secs());
        Ok(())
    }

    /// Runs `statements` in a transaction that only reads, on a thread that may block.
    ///
    /// # Errors
    /// Those of `statements`, and [`StoreError::Unavailable`].
    pub async fn read<T, F>(&self, statements: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    {
        self.in_transaction(Access::Read, type_name::<F>(), move |connection| {
            // On the other engines, a transaction reads one snapshot by default.
            #[cfg(feature = "database-servers")]
            if let AnyConnection::Postgres(postgres) = connection {
                postgres.batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
            }
            statements(connection)
        })
        .await
    }

    /// Runs `statements` in a transaction, on a thread that may block. They run again where the engine aborted the
    /// transaction because of another one.
    ///
    /// # Errors
    /// Those of `statements`, and [`StoreError::Unavailable`].
    pub async fn write<T, F>(&self, statements: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    {
        self.in_transaction(Access::Write, type_name::<F>(), statements).await
    }

    /// Returns the number of calls since the start that failed because the database could not be reached in time or refused
    /// a statement.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Counts the connections.
    pub fn connections(&self) -> Connections {
        // A database server's one pool serves readers and writers.
        let none = Connections { idle: 0, used: 0, limit: 0 };
        let Ok(pools) = self.pools() else { return none };
        let pools = if self.one_writer { vec![&pools.readers, &pools.writer] } else { vec![&pools.writer] };
        pools.into_iter().fold(none, |sum, pool| {
            let state = pool.state();
            Connections {
                idle: sum.idle + state.idle_connections,
                used: sum.used + state.connections.saturating_sub(state.idle_connections),
                limit: sum.limit + pool.max_size(),
            }
        })
    }

    /// Checks that the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read(|connection| Ok(connection.batch_execute("SELECT 1")?)).await
    }

    /// Subscribes to changes of `topic`: notifies at once of those by this process and, on Postgres, by any process. On
    /// other engines, the caller has to poll for changes by other processes.
    pub fn changes(&self, topic: Topic) -> watch::Receiver<()> {
        self.signals.subscribe(topic)
    }

    /// Removes the remains of erased people and images from the engine's journal and pages.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn scrub_journal(&self) -> Result<(), StoreError> {
        // Takes the erased rows out of their pages. Logs and backups are the administrator's responsibility.
        self.forget(Some("VACUUM people, images, embeddings, cohort, audit_log")).await
    }

    /// Removes the remains of an erased unknown person from the engine's journal, and the group from its pages; those of
    /// detections as [`scrub_journal_of_detections`](Self::scrub_journal_of_detections).
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn scrub_journal_of_unknowns(&self) -> Result<(), StoreError> {
        self.forget(Some("VACUUM unknowns")).await
    }

    /// Removes the remains of erased detections from the engine's journal. PostgreSQL's pages keep it until the next
    /// autovacuum: there may be too many detections to wait for a vacuum.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn scrub_journal_of_detections(&self) -> Result<(), StoreError> {
        self.forget(None).await
    }

    async fn forget(&self, postgres_vacuum: Option<&'static str>) -> Result<(), StoreError> {
        let (pools, timeout) = (self.pools()?, self.timeout);
        self.blocking("forget", move || {
            let mut connection = pools.writer.get().map_err(|e| StoreError::Unavailable(e.to_string()))?;
            match &mut *connection {
                // Pages that held the rows are zeroed by `secure_delete`, but older copies lie in the write-ahead
                // log until it is folded into the database.
                AnyConnection::Sqlite(sqlite) => {
                    if !connection::truncate_wal(sqlite, timeout)? {
                        tracing::warn!(
                            "erased rows stay in the write-ahead log while another process reads the database, for \
                             example to back it up; the end of a backup or of this server empties it"
                        );
                    }
                    Ok(())
                }
                #[cfg(feature = "database-servers")]
                AnyConnection::Postgres(postgres) => {
                    Ok(postgres_vacuum.map_or(Ok(()), |vacuum| postgres.batch_execute(vacuum))?)
                }
                // InnoDB purges erased rows by itself.
                #[cfg(feature = "database-servers")]
                AnyConnection::Mysql(_) => Ok(()),
            }
        })
        .await
    }

    /// Runs `statements` in a transaction; `name` is their type name.
    async fn in_transaction<T, F>(
        &self,
        access: Access,
        name: &'static str,
        statements: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    {
        let (pools, timeout) = (self.pools()?, self.timeout);
        self.blocking(name, move || {
            let pool = match access {
                Access::Read => &pools.readers,
                Access::Write => &pools.writer,
            };
            for attempt in 1.. {
                let mut connection = pool.get().map_err(|e| StoreError::Unavailable(e.to_string()))?;
                let outcome = match access {
                    Access::Read => diesel::Connection::transaction(&mut *connection, &statements),
                    Access::Write => write_in(&mut connection, timeout, &statements),
                };
                match outcome {
                    Err(error) if attempt < MAX_ATTEMPTS && is_deadlock(&error) => (),
                    outcome => return outcome,
                }
            }
            Err(StoreError::Interrupted)
        })
        .await
    }

    /// Returns the pools, which stay open as long as a caller holds them.
    fn pools(&self) -> Result<Arc<Pools>, StoreError> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.clone().ok_or_else(|| StoreError::Unavailable("it is closed".into()))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let errors = Arc::clone(&self.errors);
        let (span, trace, system) = (tracing::Span::current(), traces::current(), self.system);
        // Counted on the thread: the caller may have been dropped by then.
        let counted = move || {
            let _span = span.entered();
            traces::database_call(trace.as_ref(), system, name, StoreError::is_database_fault, call)
                .inspect_err(|error| {
                    if error.is_database_fault() {
                        errors.fetch_add(1, Ordering::Relaxed);
                    }
                })
        };
        tokio::task::spawn_blocking(counted).await.map_err(|_| StoreError::Interrupted)?
    }
}

/// The pause between attempts of the start to reach the database or to find its schema up to date.
const START_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often the log repeats that the start is waiting, unless the reason has changed.
const WAITING_LOG_INTERVAL: Duration = Duration::from_secs(10);

fn write_in<T>(
    connection: &mut AnyConnection,
    timeout: Duration,
    statements: impl Fn(&mut AnyConnection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection::begin_writing(connection, timeout)?;
    let outcome = statements(connection);
    connection::end(connection, outcome)
}

/// Moves the write-ahead log of an embedded database into its file, so that a copy of the file alone is complete. Does
/// nothing where there is no such file.
///
/// # Errors
/// The file cannot be opened, or another process reads it for longer than `timeout`.
pub fn checkpoint_wal(file: &Path, timeout: Duration) -> anyhow::Result<()> {
    if !file.exists() {
        return Ok(());
    }
    let Some(path) = file.to_str() else { anyhow::bail!("{} is no Unicode", file.display()) };
    let manager = Manager::new(Engine::Sqlite { path: path.to_owned() }, Duration::ZERO);
    if let AnyConnection::Sqlite(sqlite) = &mut manager.connect()? {
        anyhow::ensure!(
            connection::truncate_wal(sqlite, timeout)?,
            "another process reads the database: {path}-wal belongs to {path} until it has ended"
        );
    }
    Ok(())
}

fn cannot_open(engine: &Engine) -> String {
    format!("cannot open the {engine} database (setting database_url)")
}

/// Refuses a schema with migrations that this version does not know: the data may have changed in ways that it cannot
/// handle.
fn refuse_newer_schema(
    engine: &Engine,
    connection: &mut AnyConnection,
    options: &DatabaseOptions,
) -> anyhow::Result<()> {
    let unknown = migrations::unknown(connection)?;
    let Some(newest) = unknown.last() else { return Ok(()) };
    if options.allow_newer_schema {
        tracing::warn!(
            newest,
            "the schema is newer than this program; allow_newer_schema says that it will do"
        );
        return Ok(());
    }
    Err(config_error(anyhow::anyhow!(
        "the {engine} database's schema is newer than facepipe-backend {} knows: migration {newest} is none of its own. \
         Run the version that made it or a later one, or restore a backup from before the upgrade. Where the notes of \
         that version say that this one still works beside it: --allow-newer-schema true \
         (FACEPIPE_ALLOW_NEWER_SCHEMA, allow_newer_schema)",
        env!("CARGO_PKG_VERSION")
    )))
}

/// Waits until another process has brought the schema up to date.
fn wait_for_schema(engine: &Engine, options: &DatabaseOptions) -> anyhow::Result<()> {
    let timeout = options.start_timeout;
    let begun = Instant::now();
    let mut told = false;
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        let mut connection = wait_for(engine, left).with_context(|| cannot_open(engine))?;
        refuse_newer_schema(engine, &mut connection, options)?;
        let problem = match migrations::missing(&mut connection) {
            Ok(missing) if missing.is_empty() => return Ok(()),
            Ok(missing) => format!("it lacks {}", missing.join(", ")),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() >= timeout {
            anyhow::bail!(
                "the {engine} database's schema is too old: {problem}; run `facepipe-backend migrate`, or start with \
                 migrate_at_start = true"
            );
        }
        if !told {
            tracing::info!(problem, "waiting for the database's schema to be brought up to date");
            told = true;
        }
        std::thread::sleep(START_RETRY_INTERVAL);
    }
}

/// Connects as soon as the server accepts connections.
fn wait_for(engine: &Engine, timeout: Duration) -> anyhow::Result<AnyConnection> {
    let manager = Manager::new(engine.clone(), Duration::ZERO);
    let begun = Instant::now();
    let mut told: Option<(Instant, String)> = None;
    loop {
        let reason = match engine.connect(&manager) {
            Ok(connection) => return Ok(connection),
            Err(ConnectError::UnreadableUrl) => {
                return Err(config_error(anyhow::anyhow!(
                    "database_url cannot be read as a URL; in user and password, characters such as @ : / ? # % are \
                     written as %40 %3A %2F %3F %23 %25"
                )));
            }
            Err(ConnectError::Refused(reason)) => reason,
        };
        if matches!(engine, Engine::Sqlite { .. }) || begun.elapsed() >= timeout {
            anyhow::bail!("{reason}");
        }
        let news =
            told.as_ref().is_none_or(|(at, last)| *last != reason || at.elapsed() >= WAITING_LOG_INTERVAL);
        if news {
            let left_s = timeout.saturating_sub(begun.elapsed()).as_secs();
            tracing::warn!(%engine, reason, left_s, "waiting for the database");
            told = Some((Instant::now(), reason));
        }
        std::thread::sleep(START_RETRY_INTERVAL);
    }
}

/// Returns whether the engine aborted this transaction because it and another one waited for each other.
fn is_deadlock(error: &StoreError) -> bool {
    match error {
        StoreError::Database(Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _)) => true,
        StoreError::Database(Error::DatabaseError(_, information)) => {
            information.message().contains("deadlock detected")
        }
        _ => false,
    }
}
