//! Brings the schema up to date, one process of a deployment at a time.

use diesel::{
    MysqlConnection, PgConnection, QueryableByName, RunQueryDsl as _, SqliteConnection,
    connection::SimpleConnection as _, sql_types::BigInt,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connection::AnyConnection;

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
const MYSQL: EmbeddedMigrations = embed_migrations!("migrations/mysql");

/// Names the lock on Postgres; any number that nobody else takes for an advisory lock.
const POSTGRES_LOCK: i64 = 0x6661_6365_7069_7065;
/// Names the lock on MySQL, where locks are the whole server's: the database's name belongs to it.
const MYSQL_LOCK: &str = "CONCAT('facepipe-migrations-', DATABASE())";

/// Runs what is pending under a lock that every process takes, so that replicas may start at the same time. The lock
/// goes with the connection, which is to be closed then.
pub(super) fn migrate(connection: &mut AnyConnection) -> anyhow::Result<()> {
    let versions = match connection {
        AnyConnection::Sqlite(sqlite) => migrate_sqlite(sqlite)?,
        AnyConnection::Postgres(postgres) => migrate_postgres(postgres)?,
        AnyConnection::Mysql(mysql) => migrate_mysql(mysql)?,
    };
    for version in versions {
        tracing::info!(version, "migrated the database");
    }
    Ok(())
}

fn migrate_sqlite(connection: &mut SqliteConnection) -> anyhow::Result<Vec<String>> {
    connection.exclusive_transaction(|connection| run(connection, SQLITE))
}

fn migrate_postgres(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    connection.batch_execute(&format!("SELECT pg_advisory_lock({POSTGRES_LOCK})"))?;
    run(connection, POSTGRES)
}

#[derive(QueryableByName)]
struct Taken {
    #[diesel(sql_type = BigInt)]
    taken: i64,
}

fn migrate_mysql(connection: &mut MysqlConnection) -> anyhow::Result<Vec<String>> {
    let lock = diesel::sql_query(format!("SELECT COALESCE(GET_LOCK({MYSQL_LOCK}, 600), 0) AS taken"));
    let Taken { taken } = lock.get_result(connection)?;
    anyhow::ensure!(taken == 1, "another process has been migrating the database for ten minutes");
    run(connection, MYSQL)
}

fn run<C, D>(connection: &mut C, migrations: EmbeddedMigrations) -> anyhow::Result<Vec<String>>
where
    C: MigrationHarness<D>,
    D: diesel::backend::Backend,
{
    let done = connection.run_pending_migrations(migrations).map_err(|error| anyhow::anyhow!(error))?;
    Ok(done.iter().map(ToString::to_string).collect())
}
