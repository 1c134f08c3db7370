//! Keeps whoever follows detections by their ids from missing one. Server engines give out ids before the rows can be
//! seen: a row may appear behind a greater one that was read already. So whoever adds detections shares a lock until
//! they can be seen, and whoever follows waits for it before asking how far the ids go.

#[cfg(feature = "database-servers")]
use diesel::{connection::SimpleConnection as _, sql_types::BigInt};
use diesel::{dsl::max, prelude::*};

use super::{AnyConnection, Database, schema::detections};
#[cfg(feature = "database-servers")]
use crate::domain::Micros;
use crate::store::StoreError;

#[cfg(feature = "database-servers")]
/// Names the lock on Postgres; any number that nobody else takes for an advisory lock.
const POSTGRES_LOCK: i64 = 0x6661_6365_7069_7066;
#[cfg(feature = "database-servers")]
/// What holds back whoever follows also holds back who comes after: not for long.
const POSTGRES_LOCK_TIMEOUT: &str = "1s";
#[cfg(feature = "database-servers")]
/// Locks the row of MySQL's that stands for it; MariaDB does not know FOR SHARE.
const MYSQL_SHARE: &str = "SELECT expires_at FROM leases WHERE name = 'arrivals' LOCK IN SHARE MODE";
#[cfg(feature = "database-servers")]
const MYSQL_WAIT: &str = "SELECT expires_at FROM leases WHERE name = 'arrivals' FOR UPDATE";

#[cfg(feature = "database-servers")]
/// What a locking SELECT must read for the row to be locked.
#[derive(QueryableByName)]
struct Locked {
    #[diesel(sql_type = BigInt)]
    #[expect(dead_code, reason = "the row is all that matters")]
    expires_at: Micros,
}

/// For transactions that are about to add detections: until they end, [`Database::last_visible_detection`] waits.
pub(super) fn hold_insert_lock(connection: &mut AnyConnection) -> Result<(), StoreError> {
    match connection {
        // Has one writer: rows appear in the order of their ids.
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
    /// An id up to which all detections can be seen that will ever be.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where some take too long to be added.
    pub(super) async fn last_visible_detection(&self) -> Result<i64, StoreError> {
        if self.one_writer {
            return Ok(i64::MAX);
        }
        self.write(|connection| {
            match connection {
                AnyConnection::Sqlite(_) => (),
                #[cfg(feature = "database-servers")]
                AnyConnection::Postgres(postgres) => postgres.batch_execute(&format!(
                    "SET LOCAL lock_timeout = '{POSTGRES_LOCK_TIMEOUT}'; SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"
                ))?,
                #[cfg(feature = "database-servers")]
                AnyConnection::Mysql(mysql) => drop(diesel::sql_query(MYSQL_WAIT).load::<Locked>(mysql)?),
            }
            // Sees what was added before the lock was there: on Postgres each statement looks anew, on MySQL the first
            // that locks nothing does.
            let greatest: Option<i64> = detections::table.select(max(detections::id)).first(connection)?;
            Ok(greatest.unwrap_or(0))
        })
        .await
    }
}
