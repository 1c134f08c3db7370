//! One connection type for all engines, and the pools that hold them.

use std::{
    fmt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use diesel::{
    Connection, QueryResult, QueryableByName, RunQueryDsl as _, SqliteConnection,
    connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _},
    r2d2::{self, ManageConnection as _, R2D2Connection as _},
    result::Error,
    sql_types::Integer,
};
#[cfg(feature = "database-servers")]
use diesel::{MysqlConnection, PgConnection, sql_types::Text};

#[cfg(feature = "database-servers")]
use super::mysql_tls;
use crate::{config_errors::config_error, optional};

/// Concurrent readers of SQLite.
const SQLITE_READERS: u32 = 4;

/// The pause between attempts to lock SQLite while another process writes. SQLite's own pauses grow to a tenth of a
/// second, which starves this process where another one writes continuously.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// A connection to any of the engines.
#[derive(diesel::MultiConnection)]
pub enum AnyConnection {
    /// The embedded engine.
    Sqlite(SqliteConnection),
    #[cfg(feature = "database-servers")]
    Postgres(PgConnection),
    /// MySQL or MariaDB.
    #[cfg(feature = "database-servers")]
    Mysql(MysqlConnection),
}

/// How to reach the database, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct DatabaseOptions {
    /// `sqlite://<path>`, `sqlite:<path>`, a plain path, `postgres://…` or `mysql://…`.
    pub url: String,
    /// Connections to a database server at most; for SQLite the number is fixed.
    pub connections: u32,
    /// Whether the start migrates the schema; otherwise it waits until another process has.
    pub migrate_at_start: bool,
    /// How long a call waits for a connection before the database counts as unavailable.
    pub connect_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
    /// How long the start waits for a database server that cannot be reached, or for a migrated schema.
    pub start_timeout: Duration,
    /// Whether to accept a schema with migrations that this program does not know.
    pub allow_newer_schema: bool,
}

impl DatabaseOptions {
    /// Returns the file of an embedded database; `None` of a server.
    ///
    /// # Errors
    /// The URL names no supported engine.
    pub fn sqlite_file(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(match Engine::of(self)? {
            Engine::Sqlite { path } => Some(path.into()),
            Engine::Postgres { .. } | Engine::Mysql { .. } => None,
        })
    }
}

/// The engines, each with the address for its client library.
#[derive(Clone)]
pub(super) enum Engine {
    Sqlite { path: String },
    Postgres { url: String },
    Mysql { url: String },
}

/// The name in log lines and errors; never the address, which may hold a password.
impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite { .. } => "SQLite",
            Self::Postgres { .. } => "PostgreSQL",
            Self::Mysql { .. } => "MySQL",
        })
    }
}

/// Phrases in errors of client libraries that cannot parse a URL. They quote the part that they cannot parse, which may
/// belong to a password, so their messages are not shown.
const UNREADABLE: [&str; 9] = [
    "invalid URI",
    "invalid port number",
    "invalid integer value",
    "invalid percent-encoded token",
    "forbidden value %00",
    "missing \"=\" after",
    "missing key/value separator",
    "extra key/value separator",
    "end of string reached when looking for matching",
];

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// The URL cannot be parsed; retrying cannot help.
    UnreadableUrl,
    /// The message of the client library or the server, in one line and without the password.
    Refused(String),
}

impl Engine {
    pub(super) fn connect(&self, manager: &Manager) -> Result<AnyConnection, ConnectError> {
        use diesel::ConnectionError::InvalidConnectionUrl;
        manager.connect().map_err(|error| {
            if let r2d2::Error::ConnectionError(InvalidConnectionUrl(_)) = &error {
                return ConnectError::UnreadableUrl;
            }
            let said = error.to_string();
            match self {
                Self::Postgres { .. } if UNREADABLE.iter().any(|phrase| said.contains(phrase)) => {
                    ConnectError::UnreadableUrl
                }
                Self::Postgres { url } | Self::Mysql { url } => ConnectError::Refused(redact(&said, url)),
                Self::Sqlite { .. } => ConnectError::Refused(said),
            }
        })
    }

    pub(super) fn of(options: &DatabaseOptions) -> anyhow::Result<Self> {
        let url = options.url.as_str();
        let engine = match url.split_once("://") {
            Some(("postgres" | "postgresql", _)) => {
                Ok(Self::Postgres { url: with_timeouts(url, options.connect_timeout) })
            }
            Some(("mysql" | "mariadb", rest)) => Ok(Self::Mysql { url: format!("mysql://{rest}") }),
            Some(("sqlite", path)) => Self::sqlite(path),
            Some((scheme, _)) => Err(config_error(anyhow::anyhow!(
                "database_url begins with {scheme}://, it must be sqlite://<path>, postgres://… or mysql://…"
            ))),
            None => Self::sqlite(url.strip_prefix("sqlite:").unwrap_or(url)),
        }?;
        if let Self::Postgres { .. } | Self::Mysql { .. } = engine {
            optional::DATABASE_SERVERS.needed_by("database_url", &engine.to_string())?;
        }
        #[cfg(feature = "database-servers")]
        if let Self::Mysql { url } = &engine {
            mysql_tls::check_url(url)?;
        }
        Ok(engine)
    }

    /// Returns the name in OpenTelemetry's conventions.
    pub(super) fn system(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgresql",
            Self::Mysql { .. } => "mysql",
        }
    }

    fn sqlite(path: &str) -> anyhow::Result<Self> {
        if path.is_empty() {
            return Err(config_error(anyhow::anyhow!(
                "database_url names no file, expected sqlite://<path>"
            )));
        }
        Ok(Self::Sqlite { path: path.to_owned() })
    }

    /// Creates the folder of an embedded database where it is missing.
    pub(super) fn make_folder(&self) -> anyhow::Result<()> {
        if let Self::Sqlite { path } = self
            && let Some(folder) = Path::new(path).parent()
        {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create the database's folder {}", folder.display()))?;
        }
        Ok(())
    }

    /// Creates the pools for reading and for writing. SQLite has one writer at a time: with a pool of one connection,
    /// writers queue here, in order, instead of failing on each other's locks.
    pub(super) fn pools(&self, options: &DatabaseOptions) -> Result<(Pool, Pool), r2d2::PoolError> {
        let pool = |size, purpose| {
            Pool::builder()
                .max_size(size)
                .min_idle(Some(1))
                .connection_timeout(options.connect_timeout)
                .build(Manager { purpose, ..Manager::new(self.clone(), options.statement_timeout) })
        };
        match self {
            Self::Sqlite { .. } => {
                let writer = pool(1, Purpose::Write)?;
                Ok((pool(SQLITE_READERS, Purpose::Read)?, writer))
            }
            Self::Postgres { .. } | Self::Mysql { .. } => {
                let both = pool(options.connections, Purpose::Any)?;
                Ok((both.clone(), both))
            }
        }
    }
}

/// Puts a message into one line and removes the password of the URL from it, percent-encoded or not.
fn redact(message: &str, url: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let login = url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).map(|(login, _)| login);
    let in_query = url.split(['?', '&']).find_map(|pair| pair.strip_prefix("password="));
    let passwords = [login.and_then(|login| login.split_once(':')).map(|(_, password)| password), in_query];
    passwords.into_iter().flatten().filter(|password| !password.is_empty()).fold(
        message,
        |message, password| {
            let decoded = percent_encoding::percent_decode_str(password).decode_utf8_lossy();
            message.replace(password, "***").replace(&*decoded, "***")
        },
    )
}

/// Adds timeouts to a URL: without them, a call to a server that vanished from the network hangs for many minutes.
fn with_timeouts(url: &str, connect_timeout: Duration) -> String {
    let seconds = connect_timeout.as_secs().max(2);
    let mut url = url.to_owned();
    for (name, value) in [
        ("connect_timeout", seconds.to_string()),
        ("tcp_user_timeout", (seconds * 1000).to_string()),
        ("keepalives_idle", "30".to_owned()),
        ("application_name", "facepipe".to_owned()),
    ] {
        if !url.contains(&format!("{name}=")) {
            url = format!("{url}{}{name}={value}", if url.contains('?') { '&' } else { '?' });
        }
    }
    url
}

pub(super) type Pool = r2d2::Pool<Manager>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Any,
    /// On SQLite, statements that write are refused: they belong in transactions that begin as writers.
    Read,
    /// On SQLite, [`begin_writing`] waits for other processes instead of the engine.
    Write,
}

/// Creates and tests the connections of a pool.
pub(super) struct Manager {
    engine: Engine,
    statement_timeout: Duration,
    purpose: Purpose,
}

impl Manager {
    pub(super) fn new(engine: Engine, statement_timeout: Duration) -> Self {
        Self { engine, statement_timeout, purpose: Purpose::Any }
    }

    fn set_up(&self, connection: &mut AnyConnection) -> QueryResult<()> {
        #[cfg(feature = "database-servers")]
        let ms = self.statement_timeout.as_millis();
        match connection {
            // busy_timeout comes first: switching to WAL takes a lock. synchronous = FULL: what a 201 confirmed is on
            // the disk. secure_delete: erased rows are overwritten.
            AnyConnection::Sqlite(sqlite) => {
                sqlite.batch_execute(
                    "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                     PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON;",
                )?;
                match self.purpose {
                    Purpose::Any => Ok(()),
                    Purpose::Read => sqlite.batch_execute("PRAGMA query_only = ON"),
                    Purpose::Write => sqlite.batch_execute("PRAGMA busy_timeout = 0"),
                }
            }
            #[cfg(feature = "database-servers")]
            AnyConnection::Postgres(postgres) => postgres.batch_execute(&format!(
                "SET statement_timeout = {ms}; SET idle_in_transaction_session_timeout = {ms};"
            )),
            #[cfg(feature = "database-servers")]
            AnyConnection::Mysql(mysql) => {
                let version: String =
                    diesel::select(diesel::dsl::sql::<Text>("VERSION()")).get_result(mysql)?;
                // The two engines measure in different units, under different names.
                mysql.batch_execute(&if version.contains("MariaDB") {
                    format!("SET SESSION max_statement_time = {}", self.statement_timeout.as_secs_f64())
                } else {
                    format!("SET SESSION max_execution_time = {ms}")
                })
            }
        }
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = AnyConnection;
    type Error = r2d2::Error;

    fn connect(&self) -> Result<AnyConnection, r2d2::Error> {
        let mut connection = match &self.engine {
            Engine::Sqlite { path } => SqliteConnection::establish(path).map(AnyConnection::Sqlite),
            #[cfg(feature = "database-servers")]
            Engine::Postgres { url } => PgConnection::establish(url).map(AnyConnection::Postgres),
            #[cfg(feature = "database-servers")]
            Engine::Mysql { url } => MysqlConnection::establish(url).and_then(|mut connection| {
                mysql_tls::ensure(&mut connection, url)?;
                Ok(AnyConnection::Mysql(connection))
            }),
            #[cfg(not(feature = "database-servers"))]
            Engine::Postgres { .. } | Engine::Mysql { .. } => Err(diesel::ConnectionError::BadConnection(
                "no client of database servers is built in".into(),
            )),
        }
        .map_err(r2d2::Error::ConnectionError)?;
        self.set_up(&mut connection).map_err(r2d2::Error::QueryError)?;
        Ok(connection)
    }

    fn is_valid(&self, connection: &mut AnyConnection) -> Result<(), r2d2::Error> {
        connection.ping().map_err(r2d2::Error::QueryError)
    }

    fn has_broken(&self, connection: &mut AnyConnection) -> bool {
        std::thread::panicking() || connection.is_broken()
    }
}

/// Begins a transaction that may write. On SQLite it takes the write lock at once, waiting for other processes to release
/// it: a transaction that asks for the lock only after it has read fails without waiting where another process has
/// written in between.
///
/// # Errors
/// Another process still holds the lock after `timeout`, or the connection is broken.
pub(super) fn begin_writing(connection: &mut AnyConnection, timeout: Duration) -> QueryResult<()> {
    match connection {
        AnyConnection::Sqlite(sqlite) => begin(sqlite, "BEGIN IMMEDIATE", timeout),
        #[cfg(feature = "database-servers")]
        other => <AnyConnection as Connection>::TransactionManager::begin_transaction(other),
    }
}

/// Begins a transaction with `statement` as soon as no other process holds the write lock.
///
/// # Errors
/// As [`begin_writing`].
pub(super) fn begin(
    connection: &mut SqliteConnection,
    statement: &str,
    timeout: Duration,
) -> QueryResult<()> {
    let begun = Instant::now();
    loop {
        match AnsiTransactionManager::begin_transaction_sql(connection, statement) {
            Err(error) if is_locked(&error) && begun.elapsed() < timeout => thread::sleep(RETRY_INTERVAL),
            outcome => return outcome,
        }
    }
}

/// Ends a transaction of [`begin_writing`] or [`begin`]: commits where `outcome` is a success, else rolls back.
pub(super) fn end<C, T, E>(connection: &mut C, outcome: Result<T, E>) -> Result<T, E>
where
    C: Connection,
    E: From<Error>,
{
    match outcome {
        Ok(value) => {
            C::TransactionManager::commit_transaction(connection)?;
            Ok(value)
        }
        Err(error) => match C::TransactionManager::rollback_transaction(connection) {
            Ok(()) | Err(Error::BrokenTransactionManager) => Err(error),
            Err(broken) => Err(broken.into()),
        },
    }
}

fn is_locked(error: &Error) -> bool {
    // SQLite has a code for it, which diesel does not expose.
    matches!(error, Error::DatabaseError(_, information) if information.message().contains("database is locked"))
}

/// The result of a checkpoint.
#[derive(QueryableByName)]
struct Checkpoint {
    #[diesel(sql_type = Integer)]
    busy: i32,
}

/// Moves the whole write-ahead log of SQLite into the database and truncates it. Returns whether it could: not while a
/// reader uses an older snapshot.
///
/// # Errors
/// The disk fails.
pub(super) fn truncate_wal(connection: &mut SqliteConnection, timeout: Duration) -> QueryResult<bool> {
    let begun = Instant::now();
    loop {
        let done = diesel::sql_query("PRAGMA wal_checkpoint(TRUNCATE)").get_result::<Checkpoint>(connection);
        match done {
            Ok(Checkpoint { busy: 0 }) => return Ok(true),
            Err(error) if !is_locked(&error) => return Err(error),
            _ if begun.elapsed() >= timeout => return Ok(false),
            _ => thread::sleep(RETRY_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(url: &str) -> anyhow::Result<Engine> {
        Engine::of(&DatabaseOptions {
            url: url.into(),
            connections: 1,
            migrate_at_start: true,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            start_timeout: Duration::ZERO,
            allow_newer_schema: false,
        })
    }

    #[test]
    fn urls_and_paths_name_the_file() {
        for url in ["sqlite:///tmp/x.db", "sqlite:/tmp/x.db", "/tmp/x.db"] {
            assert!(matches!(engine(url).unwrap(), Engine::Sqlite { path } if path == "/tmp/x.db"), "{url}");
        }
    }

    #[cfg(feature = "database-servers")]
    #[test]
    fn the_scheme_names_the_engine() {
        assert!(
            matches!(engine("mariadb://u@h/db").unwrap(), Engine::Mysql { url } if url == "mysql://u@h/db")
        );
        let Engine::Postgres { url } = engine("postgres://u@h/db?connect_timeout=7").unwrap() else {
            panic!("another engine")
        };
        assert!(url.contains("connect_timeout=7&tcp_user_timeout=5000&"), "{url}");
    }

    #[test]
    fn passwords_are_redacted_from_messages() {
        let said = "connection to server at \"h\" failed:\n\tFATAL: no login as u with p@ss or p%40ss";
        assert_eq!(
            redact(said, "postgres://u:p%40ss@h/db"),
            "connection to server at \"h\" failed: FATAL: no login as u with *** or ***"
        );
        assert_eq!(redact("no s3cret", "postgres://h/db?user=u&password=s3cret"), "no ***");
        assert_eq!(redact("a  b", "postgres://u@h/db"), "a b");
    }

    #[test]
    fn an_unsupported_engine_is_refused_by_name() {
        let error = engine("oracle://u:secret@host/db").map(|_| ()).unwrap_err();
        assert!(crate::config_errors::is_config_error(&error));
        let error = error.to_string();
        assert!(error.contains("oracle://") && !error.contains("secret"), "{error}");
    }
}
