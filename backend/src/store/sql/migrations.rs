//! Migrates the schema, one process of a deployment at a time.

use std::{collections::HashSet, time::Duration};

#[cfg(feature = "database-servers")]
use diesel::{MysqlConnection, PgConnection, mysql::Mysql, pg::Pg};
use diesel::{
    QueryableByName, RunQueryDsl as _, SqliteConnection,
    backend::Backend,
    connection::SimpleConnection as _,
    migration::{MigrationName, MigrationSource},
    sql_types::{BigInt, Text},
    sqlite::Sqlite,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connection::{self, AnyConnection, Engine};

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
#[cfg(feature = "database-servers")]
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
#[cfg(feature = "database-servers")]
const MYSQL: EmbeddedMigrations = embed_migrations!("migrations/mysql");

/// The key of the advisory lock on Postgres; any number that no other lock uses.
#[cfg(feature = "database-servers")]
const POSTGRES_LOCK: i64 = 0x6661_6365_7069_7065;
/// The name of the lock on MySQL, where locks belong to the whole server: it contains the name of the database.
#[cfg(feature = "database-servers")]
const MYSQL_LOCK: &str = "CONCAT('facepipe-migrations-', DATABASE())";

/// Runs the pending migrations under a lock, so that replicas may start at the same time. The caller must close the
/// connection afterwards, which releases the lock. On SQLite, waits up to `timeout` for other writers. Returns the
/// versions that were pending.
pub(super) fn migrate(connection: &mut AnyConnection, timeout: Duration) -> anyhow::Result<Vec<String>> {
    // Without pending migrations, no writer has to wait.
    if missing(connection).is_ok_and(|missing| missing.is_empty()) {
        return Ok(Vec::new());
    }
    let versions = match connection {
        AnyConnection::Sqlite(sqlite) => migrate_sqlite(sqlite, timeout)?,
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(postgres) => migrate_postgres(postgres)?,
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(mysql) => migrate_mysql(mysql)?,
    };
    for version in &versions {
        tracing::info!(version, "migrated the database");
    }
    Ok(versions)
}

/// A row of the table of migrations.
#[derive(QueryableByName)]
struct Applied {
    #[diesel(sql_type = Text)]
    version: String,
}

#[derive(QueryableByName)]
struct Tables {
    #[diesel(sql_type = BigInt)]
    tables: i64,
}

/// Returns the names of the migrations that the database lacks. Only reads: a server may lack the right to create tables.
///
/// # Errors
/// The table of migrations cannot be read or does not exist.
pub(super) fn missing(connection: &mut AnyConnection) -> anyhow::Result<Vec<String>> {
    let applied: HashSet<String> = applied(connection)?.into_iter().collect();
    let lacking = known(connection)?.into_iter().filter(|(version, _)| !applied.contains(version));
    Ok(lacking.map(|(_, name)| name).collect())
}

/// Returns the versions of the migrations that the database has and this program does not know, in order. Only reads.
///
/// # Errors
/// The table of migrations cannot be read.
pub(super) fn unknown(connection: &mut AnyConnection) -> anyhow::Result<Vec<String>> {
    if !is_there(connection)? {
        return Ok(Vec::new());
    }
    let known: HashSet<String> = known(connection)?.into_iter().map(|(version, _)| version).collect();
    let mut unknown = applied(connection)?;
    unknown.retain(|version| !known.contains(version));
    Ok(unknown)
}

/// Returns whether the table of migrations exists.
///
/// # Errors
/// The engine fails.
pub(super) fn is_there(connection: &mut AnyConnection) -> anyhow::Result<bool> {
    let query = match connection {
        AnyConnection::Sqlite(_) => {
            "SELECT COUNT(*) AS tables FROM sqlite_master WHERE name = '__diesel_schema_migrations'"
        }
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(_) => {
            "SELECT CAST(to_regclass('__diesel_schema_migrations') IS NOT NULL AS INTEGER)::BIGINT AS tables"
        }
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(_) => {
            "SELECT COUNT(*) AS tables FROM information_schema.tables \
             WHERE table_schema = DATABASE() AND table_name = '__diesel_schema_migrations'"
        }
    };
    let Tables { tables } = diesel::sql_query(query).get_result(connection)?;
    Ok(tables > 0)
}

/// Returns the versions of the migrations that the database has, in order. Only reads.
///
/// # Errors
/// The table of migrations cannot be read or does not exist.
pub(super) fn applied(connection: &mut AnyConnection) -> anyhow::Result<Vec<String>> {
    let query = match connection {
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(_) => "SELECT CAST(version AS CHAR) AS version FROM __diesel_schema_migrations",
        _ => "SELECT version FROM __diesel_schema_migrations",
    };
    let applied: Vec<Applied> = diesel::sql_query(query).load(connection)?;
    let mut versions: Vec<String> = applied.into_iter().map(|row| row.version).collect();
    versions.sort_unstable();
    Ok(versions)
}

/// Returns versions and full names of the migrations that this program has for an engine.
fn known(connection: &AnyConnection) -> anyhow::Result<Vec<(String, String)>> {
    match connection {
        AnyConnection::Sqlite(_) => names::<Sqlite>(&SQLITE),
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(_) => names::<Pg>(&POSTGRES),
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(_) => names::<Mysql>(&MYSQL),
    }
}

/// Returns the versions of all migrations that this program has for an engine, in order.
///
/// # Errors
/// A migration has an invalid name.
pub(super) fn known_to(engine: &Engine) -> anyhow::Result<Vec<String>> {
    let known = match engine {
        Engine::Sqlite { .. } => names::<Sqlite>(&SQLITE),
        #[cfg(feature = "database-servers")]
        Engine::Postgres { .. } => names::<Pg>(&POSTGRES),
        #[cfg(feature = "database-servers")]
        Engine::Mysql { .. } => names::<Mysql>(&MYSQL),
        #[cfg(not(feature = "database-servers"))]
        Engine::Postgres { .. } | Engine::Mysql { .. } => Ok(Vec::new()),
    };
    let mut versions: Vec<String> = known?.into_iter().map(|(version, _)| version).collect();
    versions.sort_unstable();
    Ok(versions)
}

/// Returns versions as rows have them, and full names.
fn names<D: Backend>(migrations: &EmbeddedMigrations) -> anyhow::Result<Vec<(String, String)>> {
    let migrations = MigrationSource::<D>::migrations(migrations).map_err(|error| anyhow::anyhow!(error))?;
    let both = |name: &dyn MigrationName| (name.version().to_string(), name.to_string());
    Ok(migrations.iter().map(|migration| both(migration.name())).collect())
}

fn migrate_sqlite(connection: &mut SqliteConnection, timeout: Duration) -> anyhow::Result<Vec<String>> {
    connection.batch_execute("PRAGMA busy_timeout = 0")?;
    connection::begin(connection, "BEGIN EXCLUSIVE", timeout)?;
    let outcome = run(connection, SQLITE);
    connection::end(connection, outcome)
}

#[cfg(feature = "database-servers")]
fn migrate_postgres(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    connection.batch_execute(&format!("SELECT pg_advisory_lock({POSTGRES_LOCK})"))?;
    run(connection, POSTGRES)
}

#[cfg(feature = "database-servers")]
#[derive(QueryableByName)]
struct Taken {
    #[diesel(sql_type = BigInt)]
    taken: i64,
}

#[cfg(feature = "database-servers")]
fn migrate_mysql(connection: &mut MysqlConnection) -> anyhow::Result<Vec<String>> {
    let lock = diesel::sql_query(format!("SELECT COALESCE(GET_LOCK({MYSQL_LOCK}, 600), 0) AS taken"));
    let Taken { taken } = lock.get_result(connection)?;
    anyhow::ensure!(taken == 1, "another process has been migrating the database for ten minutes");
    run(connection, MYSQL)
}

fn run<C, D>(connection: &mut C, migrations: EmbeddedMigrations) -> anyhow::Result<Vec<String>>
where
    C: MigrationHarness<D>,
    D: Backend,
{
    let done = connection.run_pending_migrations(migrations).map_err(|error| anyhow::anyhow!(error))?;
    Ok(done.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// The first migration to check: earlier ones were written for servers that stop while the schema changes.
    const FIRST: &str = "2025-01-07";

    #[test]
    fn migrations_only_expand_the_schema_unless_marked_as_contractions() {
        let mut looked_at = 0;
        for engine in ["sqlite", "postgres", "mysql"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(engine);
            for entry in fs::read_dir(folder).unwrap() {
                let folder = entry.unwrap().path();
                let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
                if name.as_str() < FIRST {
                    continue;
                }
                let text = fs::read_to_string(folder.join("up.sql")).unwrap();
                if let Err(word) = expands(&text) {
                    panic!("{engine}/{name}: {word} is for a contraction, see docs/upgrades.md");
                }
                looked_at += 1;
            }
        }
        assert!(looked_at >= 3, "{looked_at}");
    }

    /// Checks that a migration only adds, or names the version from which on nothing uses the columns and tables that it
    /// removes. Fails with the first word that removes something.
    fn expands(text: &str) -> Result<(), &'static str> {
        if text.starts_with("-- Contracts: ") {
            return Ok(());
        }
        let statements: Vec<&str> =
            text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
        // A key's action on later deletions removes nothing now.
        let statements = statements.join("\n").to_uppercase().replace("ON DELETE ", "");
        let taking_away =
            ["DROP ", "RENAME ", "TRUNCATE ", "DELETE ", " MODIFY ", " CHANGE ", "ALTER COLUMN"];
        taking_away.into_iter().find(|word| statements.contains(word)).map_or(Ok(()), Err)
    }

    #[test]
    fn contracting_statements_are_recognised() {
        assert_eq!(expands("-- DROP nothing\nALTER TABLE a ADD COLUMN b BIGINT;"), Ok(()));
        assert_eq!(expands("CREATE TABLE a (b REFERENCES c ON DELETE CASCADE);"), Ok(()));
        assert_eq!(expands("DELETE FROM a;"), Err("DELETE "));
        assert_eq!(expands("ALTER TABLE a\n  drop column b;"), Err("DROP "));
        assert_eq!(expands("ALTER TABLE a RENAME TO b;"), Err("RENAME "));
        assert_eq!(expands("-- Contracts: b, unused since 0.3\nALTER TABLE a DROP COLUMN b;"), Ok(()));
    }
}
