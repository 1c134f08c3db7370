//! Reads a database for a backup, without migrating it: servers of an older version may be using it.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::Context as _;
use diesel::{
    Connection as _, QueryableByName, RunQueryDsl as _, SqliteConnection,
    connection::SimpleConnection as _,
    sql_types::{BigInt, Text},
};

use super::{
    AnyConnection, DatabaseOptions, cannot_open, connection,
    connection::{Engine, Manager},
    migrations,
    people::has_picture,
    refuse_newer_schema, wait_for,
};

/// How long the end of a backup waits for readers of the embedded database.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(2);

/// A database that is backed up.
pub struct BackupSource {
    engine: Engine,
    /// The versions of its migrations, in order.
    pub schema: Vec<String>,
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

impl BackupSource {
    /// Opens a database. Blocks.
    ///
    /// # Errors
    /// The database does not exist, is not of facepipe, cannot be reached, or has a schema that is newer than this program
    /// knows.
    pub fn open(options: &DatabaseOptions) -> anyhow::Result<Self> {
        let engine = Engine::of(options)?;
        if let Engine::Sqlite { path } = &engine {
            anyhow::ensure!(Path::new(path).is_file(), "there is no database at {path}");
        }
        let mut connection =
            wait_for(&engine, options.start_timeout).with_context(|| cannot_open(&engine))?;
        anyhow::ensure!(
            migrations::is_there(&mut connection)?,
            "the {engine} database has none of facepipe's tables: no server has ever started on it"
        );
        refuse_newer_schema(&engine, &mut connection, options)?;
        Ok(Self { engine, schema: migrations::applied(&mut connection)? })
    }

    /// Returns the keys of all blobs that rows refer to. Blocks.
    ///
    /// # Errors
    /// The database fails.
    pub fn blob_keys(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut connection = self.connect()?;
        blob_keys(&mut connection)
    }

    /// Copies a consistent snapshot of an embedded database into a new file, while other processes write. Returns the keys
    /// of all blobs that its rows refer to. Blocks for as long as it takes to read all of it.
    ///
    /// # Errors
    /// The database is damaged or not of SQLite, or the disk is full.
    pub fn copy_embedded(&self, to: &Path) -> anyhow::Result<BTreeSet<String>> {
        let to = to.to_str().with_context(|| format!("{} is no Unicode", to.display()))?;
        if let AnyConnection::Sqlite(sqlite) = &mut self.connect()? {
            diesel::sql_query("VACUUM INTO ?").bind::<Text, _>(to).execute(sqlite)?;
            // The write-ahead log may have grown meanwhile: erasures could not truncate it during the copy.
            connection::truncate_wal(sqlite, CHECKPOINT_TIMEOUT)?;
        }
        // Opened without a server's settings, which would create a write-ahead log.
        let mut copy = SqliteConnection::establish(to)?;
        copy.batch_execute("PRAGMA query_only = ON")?;
        let checked: Line =
            diesel::sql_query("SELECT quick_check AS line FROM pragma_quick_check").get_result(&mut copy)?;
        anyhow::ensure!(checked.line == "ok", "the database is damaged: {}", checked.line);
        blob_keys(&mut AnyConnection::Sqlite(copy))
    }

    fn connect(&self) -> anyhow::Result<AnyConnection> {
        wait_for(&self.engine, Duration::ZERO).with_context(|| cannot_open(&self.engine))
    }

    /// Returns whether the database is a file.
    pub fn is_embedded(&self) -> bool {
        matches!(self.engine, Engine::Sqlite { .. })
    }

    /// Returns the name of the engine in traces and manifests.
    pub fn engine(&self) -> &'static str {
        self.engine.system()
    }
}

/// Returns the keys of all blobs. Uses raw SQL, since the schema may be older than this program.
fn blob_keys(connection: &mut AnyConnection) -> anyhow::Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for table in ["images", "models"] {
        let rows: Vec<Line> =
            diesel::sql_query(format!("SELECT blob_key AS line FROM {table}")).load(connection)?;
        keys.extend(rows.into_iter().map(|row| row.line).filter(|key| has_picture(key)));
    }
    Ok(keys)
}

/// Returns whether a database has no tables, so that a backup can be restored into it. Blocks.
///
/// # Errors
/// The database cannot be reached.
pub fn is_empty(options: &DatabaseOptions) -> anyhow::Result<bool> {
    let engine = Engine::of(options)?;
    let query = match &engine {
        Engine::Sqlite { path } => return Ok(!Path::new(path).exists()),
        Engine::Postgres { .. } => {
            "SELECT COUNT(*) AS count FROM information_schema.tables WHERE table_schema = CURRENT_SCHEMA()"
        }
        Engine::Mysql { .. } => {
            "SELECT COUNT(*) AS count FROM information_schema.tables WHERE table_schema = DATABASE()"
        }
    };
    let manager = Manager::new(engine.clone(), Duration::ZERO);
    let mut connection =
        diesel::r2d2::ManageConnection::connect(&manager).with_context(|| cannot_open(&engine))?;
    let Count { count } = diesel::sql_query(query).get_result(&mut connection)?;
    Ok(count == 0)
}

/// Returns the versions of all migrations that this program has for the engine, in order.
///
/// # Errors
/// The URL names no supported engine.
pub fn known_schema(options: &DatabaseOptions) -> anyhow::Result<Vec<String>> {
    migrations::known_to(&Engine::of(options)?)
}

/// Returns the engine of a database, as [`BackupSource::engine`] names it.
///
/// # Errors
/// The URL names no supported engine.
pub fn engine_of(options: &DatabaseOptions) -> anyhow::Result<&'static str> {
    Ok(Engine::of(options)?.system())
}
