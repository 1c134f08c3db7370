//! The SQL database: connections, migrations, and one file of statements per table.
//!
//! Statements are written against [`AnyConnection`], which stands for every engine at once. They use what all engines
//! have: no `RETURNING`, no upsert.

mod answers;
mod arrivals;
mod backlog;
mod connection;
mod detections;
mod erasures;
mod jobs;
mod leases;
mod migrations;
mod models;
mod outbox;
mod people;
mod schema;
mod signals;

use std::{
    any::type_name,
    sync::{
        Arc,
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
use crate::traces;
use connection::{Engine, Manager, Pool};
use signals::Signals;

pub use answers::{KeyedCall, NewUploads, Upload};
pub use backlog::Backlog;
pub use connection::{AnyConnection, DatabaseOptions};
pub use detections::{DetectionFilter, DetectionOrder, DetectionPosition, DetectionRow};
pub use erasures::{Erasure, Identity};
pub use jobs::{Cancelled, Job, JobKind, JobOutcome, JobStatus, Order};
pub use leases::Lease;
pub use models::{ModelRow, NewModel};
pub use outbox::Message;
pub use people::{EnrolledImage, Erased, NewImage};
pub use signals::Topic;

/// How often a transaction is tried that another one got in the way of.
const ATTEMPTS: u32 = 4;

/// The database; clones share its connections.
#[derive(Clone)]
pub struct Database {
    readers: Pool,
    writer: Pool,
    signals: Arc<Signals>,
    /// Whether this process alone writes, one transaction after the other.
    one_writer: bool,
    /// Calls that failed for the database's sake.
    errors: Arc<AtomicU64>,
    /// The engine, as traces name it.
    system: &'static str,
}

/// Connections to the database at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Those that nobody uses.
    pub idle: u32,
    /// Those that somebody uses.
    pub used: u32,
    /// Both together at most.
    pub limit: u32,
}

impl Database {
    /// Opens the database and brings its schema up to date, or waits until that was done. Blocks, on a server that is
    /// not there yet and on a schema that is too old for as long as the options say.
    ///
    /// # Errors
    /// The database cannot be opened, a migration fails, or the schema stays too old.
    pub fn open(options: &DatabaseOptions) -> anyhow::Result<Self> {
        let engine = Engine::of(options)?;
        if options.migrate_at_start {
            Self::migrate(options)?;
        } else {
            wait_for_schema(&engine, options.start_timeout)?;
        }
        let (readers, writer) =
            engine.pools(options).with_context(|| format!("cannot open the {engine} database"))?;
        let one_writer = matches!(engine, Engine::Sqlite { .. });
        let system = engine.system();
        Ok(Self {
            readers,
            writer,
            signals: Signals::start(engine)?,
            one_writer,
            errors: Arc::default(),
            system,
        })
    }

    /// Brings the schema of a database up to date. Blocks as [`open`](Self::open) does. Returns the versions that were
    /// missing.
    ///
    /// # Errors
    /// The database cannot be opened, or a migration fails.
    pub fn migrate(options: &DatabaseOptions) -> anyhow::Result<Vec<String>> {
        let engine = Engine::of(options)?;
        // Its own connection, without a limit to what a statement may take, closed with whatever locks it has.
        let mut connection =
            wait_for(&engine, options.start_timeout).with_context(|| cannot_open(&engine))?;
        migrations::migrate(&mut connection)
            .with_context(|| format!("cannot bring the {engine} database up to date"))
    }

    /// Runs `statements` on a thread that may block; everything they read belongs to one moment.
    ///
    /// # Errors
    /// Those of `statements`, and [`StoreError::Unavailable`].
    pub async fn read<T, F>(&self, statements: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    {
        self.in_transaction(self.readers.clone(), type_name::<F>(), move |connection| {
            // Elsewhere a transaction sees one moment by itself.
            if let AnyConnection::Postgres(postgres) = connection {
                postgres.batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
            }
            statements(connection)
        })
        .await
    }

    /// Runs `statements` on a thread that may block: all of them hold, or none. They run again where the engine ended
    /// the transaction in favour of another one.
    ///
    /// # Errors
    /// Those of `statements`, and [`StoreError::Unavailable`].
    pub async fn write<T, F>(&self, statements: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    {
        self.in_transaction(self.writer.clone(), type_name::<F>(), statements).await
    }

    /// Calls since the start that failed because the database could not be reached in time or refused a statement.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// The connections of this moment.
    pub fn connections(&self) -> Connections {
        // A database server's one pool serves readers and writers.
        let pools = if self.one_writer { vec![&self.readers, &self.writer] } else { vec![&self.writer] };
        pools.into_iter().fold(Connections { idle: 0, used: 0, limit: 0 }, |sum, pool| {
            let state = pool.state();
            Connections {
                idle: sum.idle + state.idle_connections,
                used: sum.used + state.connections.saturating_sub(state.idle_connections),
                limit: sum.limit + pool.max_size(),
            }
        })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where it doesn't.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read(|connection| Ok(connection.batch_execute("SELECT 1")?)).await
    }

    /// Is told when something of `topic` has changed: at once where this process or, on Postgres, any process changed
    /// it. Elsewhere what other processes do is seen by looking.
    pub fn changes(&self, topic: Topic) -> watch::Receiver<()> {
        self.signals.subscribe(topic)
    }

    /// Removes what erased people and images leave behind in the engine's journal and pages.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn forget_erased(&self) -> Result<(), StoreError> {
        // Takes the erased rows out of their pages. Logs and backups are the server's administrator's.
        self.forget(Some("VACUUM people, images, embeddings")).await
    }

    /// Removes what an erased detection leaves behind in the engine's journal. PostgreSQL's pages have it until the
    /// next of its own vacuums: there may be too many detections to wait for one.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn forget_erased_detection(&self) -> Result<(), StoreError> {
        self.forget(None).await
    }

    async fn forget(&self, postgres_vacuum: Option<&'static str>) -> Result<(), StoreError> {
        let pool = self.writer.clone();
        self.blocking("forget", move || {
            let mut connection = pool.get().map_err(|e| StoreError::Unavailable(e.to_string()))?;
            match &mut *connection {
                // Pages that held the rows are zeroed by `secure_delete`, but older copies lie in the write-ahead
                // log until it is folded into the database.
                AnyConnection::Sqlite(sqlite) => Ok(sqlite.batch_execute("PRAGMA wal_checkpoint(TRUNCATE)")?),
                AnyConnection::Postgres(postgres) => {
                    Ok(postgres_vacuum.map_or(Ok(()), |vacuum| postgres.batch_execute(vacuum))?)
                }
                // InnoDB purges erased rows by itself.
                AnyConnection::Mysql(_) => Ok(()),
            }
        })
        .await
    }

    /// `name` is that of the statements' type.
    async fn in_transaction<T, F>(
        &self,
        pool: Pool,
        name: &'static str,
        statements: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    {
        self.blocking(name, move || {
            for attempt in 1.. {
                let mut connection = pool.get().map_err(|e| StoreError::Unavailable(e.to_string()))?;
                match diesel::Connection::transaction(&mut *connection, &statements) {
                    Err(error) if attempt < ATTEMPTS && gave_way(&error) => (),
                    outcome => return outcome,
                }
            }
            Err(StoreError::Interrupted)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let errors = Arc::clone(&self.errors);
        let (span, trace, system) = (tracing::Span::current(), traces::current(), self.system);
        // Counted by the thread itself: whoever waits for it may be gone by then.
        let counted = move || {
            let _span = span.entered();
            traces::database_call(trace.as_ref(), system, name, call).inspect_err(|error| {
                if error.is_the_databases() {
                    errors.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        tokio::task::spawn_blocking(counted).await.map_err(|_| StoreError::Interrupted)?
    }
}

/// How often the start looks for a database that is not there yet, or not as it must be.
const PAUSE: Duration = Duration::from_millis(500);

fn cannot_open(engine: &Engine) -> String {
    format!("cannot open the {engine} database (setting database_url)")
}

/// Returns once somebody has brought the schema up to date. A newer one will do: what a later version adds does not
/// disturb this one.
fn wait_for_schema(engine: &Engine, patience: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        let mut connection = wait_for(engine, left).with_context(|| cannot_open(engine))?;
        let problem = match migrations::missing(&mut connection) {
            Ok(missing) if missing.is_empty() => return Ok(()),
            Ok(missing) => format!("it lacks {}", missing.join(", ")),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() >= patience {
            anyhow::bail!(
                "the {engine} database's schema is too old: {problem}; run `facepipe-backend migrate`, or start with \
                 migrate_at_start = true"
            );
        }
        if !told {
            tracing::info!(problem, "waiting for the database's schema to be brought up to date");
            told = true;
        }
        std::thread::sleep(PAUSE);
    }
}

/// A connection as soon as the server takes one.
fn wait_for(engine: &Engine, patience: Duration) -> anyhow::Result<AnyConnection> {
    let manager = Manager::new(engine.clone(), Duration::ZERO);
    let begun = Instant::now();
    loop {
        match manager.connect() {
            Ok(connection) => return Ok(connection),
            Err(_) if !matches!(engine, Engine::Sqlite { .. }) && begun.elapsed() < patience => {
                tracing::info!(%engine, "waiting for the database");
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the engine ended this transaction because it and another one waited for each other.
fn gave_way(error: &StoreError) -> bool {
    match error {
        StoreError::Database(Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _)) => true,
        StoreError::Database(Error::DatabaseError(_, information)) => {
            information.message().contains("deadlock detected")
        }
        _ => false,
    }
}
