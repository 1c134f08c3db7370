//! The SQL database: connections, migrations, and one file of statements per table.
//!
//! Statements are written against [`AnyConnection`], which stands for every engine at once. They use what all engines
//! have: no `RETURNING`, no upsert.

mod answers;
mod detections;
mod jobs;
mod models;
mod people;
mod schema;

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use diesel::{
    connection::SimpleConnection,
    r2d2::{self, ConnectionManager, CustomizeConnection},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::StoreError;

pub use answers::{NewUploads, Upload};
pub use detections::{DetectionFilter, DetectionOrder, DetectionPosition, DetectionRow};
pub use jobs::{Job, JobStatus};
pub use models::NewModel;
pub use people::NewImage;

const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// How long a call waits for a connection before the database counts as unavailable.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read side by side.
const READERS: u32 = 4;

/// A connection to whichever engine the deployment uses.
#[derive(diesel::MultiConnection)]
pub enum AnyConnection {
    /// The embedded engine.
    Sqlite(diesel::SqliteConnection),
}

type Pool = r2d2::Pool<ConnectionManager<AnyConnection>>;

/// The database; clones share its connections.
#[derive(Clone)]
pub struct Database {
    readers: Pool,
    /// SQLite has one writer at a time. A pool of one connection makes writers queue for it here, in order, instead
    /// of failing on each other's locks.
    writer: Pool,
}

impl Database {
    /// Opens the database and brings its schema up to date. Blocks.
    ///
    /// `url`: `sqlite://<path>`, `sqlite:<path>` or a plain path.
    ///
    /// # Errors
    /// The database cannot be opened, or a migration fails.
    pub fn open(url: &str) -> anyhow::Result<Self> {
        let path = sqlite_path(url)?;
        if let Some(folder) = Path::new(path).parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the database's folder {}", folder.display()))?;
        }
        let pool = |size| {
            Pool::builder()
                .max_size(size)
                .min_idle(Some(1))
                .connection_timeout(CONNECTION_TIMEOUT)
                .connection_customizer(Box::new(Customizer))
                .build(ConnectionManager::<AnyConnection>::new(path))
        };
        let writer = pool(1).with_context(|| format!("cannot open the database {path}"))?;
        let mut connection = writer.get()?;
        migrate(&mut connection).with_context(|| format!("cannot bring the database {path} up to date"))?;
        drop(connection);
        let readers = pool(READERS).with_context(|| format!("cannot open the database {path}"))?;
        Ok(Self { readers, writer })
    }

    /// Runs `statements` on a thread that may block; everything they read belongs to one moment.
    ///
    /// # Errors
    /// Those of `statements`, and [`StoreError::Unavailable`].
    pub async fn read<T, F>(&self, statements: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    {
        on_blocking_thread(self.readers.clone(), statements).await
    }

    /// Runs `statements` on a thread that may block: all of them hold, or none.
    ///
    /// # Errors
    /// Those of `statements`, and [`StoreError::Unavailable`].
    pub async fn write<T, F>(&self, statements: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    {
        on_blocking_thread(self.writer.clone(), statements).await
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where it doesn't.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read(|connection| Ok(connection.batch_execute("SELECT 1")?)).await
    }

    /// Removes what erased rows leave behind in the engine's journal.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn forget_erased(&self) -> Result<(), StoreError> {
        let pool = self.writer.clone();
        blocking(move || {
            let mut connection = pool.get().map_err(|e| StoreError::Unavailable(e.to_string()))?;
            match &mut *connection {
                // Pages that held the rows are zeroed by `secure_delete`, but older copies lie in the write-ahead
                // log until it is folded into the database.
                AnyConnection::Sqlite(sqlite) => Ok(sqlite.batch_execute("PRAGMA wal_checkpoint(TRUNCATE)")?),
            }
        })
        .await
    }
}

async fn on_blocking_thread<T, F>(pool: Pool, statements: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
{
    blocking(move || {
        let mut connection = pool.get().map_err(|e| StoreError::Unavailable(e.to_string()))?;
        diesel::Connection::transaction(&mut *connection, statements)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(call).await.map_err(|_| StoreError::Interrupted)?
}

fn sqlite_path(url: &str) -> anyhow::Result<&str> {
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or(url);
    if let Some((scheme, _)) = path.split_once("://") {
        anyhow::bail!("database_url begins with {scheme}://, only sqlite://<path> is supported");
    }
    anyhow::ensure!(!path.is_empty(), "database_url names no file, expected sqlite://<path>");
    Ok(path)
}

fn migrate(connection: &mut AnyConnection) -> anyhow::Result<()> {
    let done = match connection {
        AnyConnection::Sqlite(sqlite) => sqlite.run_pending_migrations(SQLITE_MIGRATIONS),
    };
    for version in done.map_err(|e| anyhow::anyhow!(e))? {
        tracing::info!(%version, "migrated the database");
    }
    Ok(())
}

#[derive(Debug)]
struct Customizer;

impl CustomizeConnection<AnyConnection, r2d2::Error> for Customizer {
    fn on_acquire(&self, connection: &mut AnyConnection) -> Result<(), r2d2::Error> {
        let settings = match connection {
            // busy_timeout comes first: switching to WAL takes a lock. synchronous = FULL: what was answered with
            // 201 is on the disk. secure_delete: erased rows are overwritten.
            AnyConnection::Sqlite(_) => {
                "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                 PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON;"
            }
        };
        connection.batch_execute(settings).map_err(r2d2::Error::QueryError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_paths_name_the_file() {
        for url in ["sqlite:///tmp/x.db", "sqlite:/tmp/x.db", "/tmp/x.db"] {
            assert_eq!(sqlite_path(url).unwrap(), "/tmp/x.db");
        }
    }

    #[test]
    fn another_engine_is_refused_by_name() {
        let error = sqlite_path("postgres://u:secret@host/db").unwrap_err().to_string();
        assert!(error.contains("postgres://") && !error.contains("secret"), "{error}");
    }
}
