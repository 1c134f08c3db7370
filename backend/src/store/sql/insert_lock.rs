//! A lock that keeps clients that follow detections by id from missing one. Database servers assign ids before rows are
//! visible: a row may appear after one with a greater id was read. So transactions that insert detections share a lock
//! until they commit, and a reader takes it exclusively before it asks for the greatest id.

#[cfg(feature = "database-servers")]
use diesel::{connection::SimpleConnection as _, sql_types::BigInt};
use diesel::{dsl::max, prelude::*};

use super::{
    AnyConnection, Database,
    schema::{detection_revisions, detections},
};
#[cfg(feature = "database-servers")]
use crate::domain::Micros;
use crate::store::StoreError;

#[cfg(feature = "database-servers")]
/// The key of the advisory lock on Postgres; any number that no other lock uses.
const POSTGRES_LOCK: i64 = 0x6661_6365_7069_7066;
#[cfg(feature = "database-servers")]
/// A reader that waits for the lock also blocks later writers, so it does not wait long.
const POSTGRES_LOCK_TIMEOUT: &str = "1s";
#[cfg(feature = "database-servers")]
/// Locks a row on MySQL that stands for the lock; MariaDB does not know FOR SHARE.
const MYSQL_SHARE: &str = "SELECT expires_at FROM leases WHERE name = 'arrivals' LOCK IN SHARE MODE";
#[cfg(feature = "database-servers")]
const MYSQL_WAIT: &str = "SELECT expires_at FROM leases WHERE name = 'arrivals' FOR UPDATE";

#[cfg(feature = "database-servers")]
/// The row of a locking SELECT.
#[derive(QueryableByName)]
struct Locked {
    #[diesel(sql_type = BigInt)]
    #[expect(dead_code, reason = "only the lock matters")]
    expires_at: Micros,
}

/// Shares the lock until the transaction ends; for transactions that insert or revise detections, as their first statement.
pub(super) fn hold_insert_lock(connection: &mut AnyConnection) -> Result<(), StoreError> {
    match connection {
        // SQLite has one writer: rows appear in the order of their ids.
        AnyConnection::Sqlite(_) => (),
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(postgres) => {
            postgres.batch_execute(&format!("SELECT pg_advisory_xact_lock_shared({POSTGRES_LOCK})"))?;
        }
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(mysql) => drop(diesel::sql_query(MYSQL_SHARE).load::<Locked>(mysql)?),
    }
    Ok(())
}

impl Database {
    /// Returns the greatest id for which all detections up to it are visible.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where transactions hold the lock for too long.
    pub(super) async fn last_visible_detection(&self) -> Result<i64, StoreError> {
        if self.one_writer {
            return Ok(i64::MAX);
        }
        self.write(|connection| {
            wait_for_writers(connection)?;
            let greatest: Option<i64> = detections::table.select(max(detections::id)).first(connection)?;
            Ok(greatest.unwrap_or(0))
        })
        .await
    }

    /// Returns the greatest id for which all revisions up to it are visible: transactions that revise detections insert
    /// others.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where transactions hold the lock for too long.
    pub(super) async fn last_visible_revision(&self) -> Result<i64, StoreError> {
        if self.one_writer {
            return Ok(i64::MAX);
        }
        self.write(|connection| {
            wait_for_writers(connection)?;
            let ids = detection_revisions::table.select(max(detection_revisions::id));
            let greatest: Option<i64> = ids.first(connection)?;
            Ok(greatest.unwrap_or(0))
        })
        .await
    }
}

/// Acquires the lock exclusively. The next statement sees everything committed before: on Postgres each statement has its own
/// snapshot, on MySQL the snapshot is taken by the first statement without a lock.
pub(super) fn wait_for_writers(connection: &mut AnyConnection) -> Result<(), StoreError> {
    match connection {
        AnyConnection::Sqlite(_) => (),
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(postgres) => postgres.batch_execute(&format!(
            "SET LOCAL lock_timeout = '{POSTGRES_LOCK_TIMEOUT}'; SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"
        ))?,
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(mysql) => drop(diesel::sql_query(MYSQL_WAIT).load::<Locked>(mysql)?),
    }
    Ok(())
}
