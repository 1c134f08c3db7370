//! Leases for work that one process of the deployment does at a time. The holder renews its lease while it works, so that
//! the lease of a crashed process expires.

use std::time::Duration;

use diesel::prelude::*;
#[cfg(feature = "database-servers")]
use diesel::{
    dsl::sql,
    sql_types::{BigInt, Text},
};

use super::{AnyConnection, Database, schema::leases};
use crate::{
    domain::{Micros, now},
    store::StoreError,
};

/// The leases; the migrations create a row for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Doing jobs.
    Trainer,
    /// Locking the dataset.
    Dataset,
    /// Sending messages of the outbox.
    Outbox,
    /// Removing blobs that no row refers to.
    Sweep,
    /// Deleting detections that are too old.
    Retain,
    /// Filling and cleaning the cohort.
    Cohort,
    /// Clustering unknown faces.
    Unknowns,
}

impl Lease {
    pub const ALL: [Self; 7] =
        [Self::Trainer, Self::Dataset, Self::Outbox, Self::Sweep, Self::Retain, Self::Cohort, Self::Unknowns];

    /// Returns the name in rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trainer => "trainer",
            Self::Dataset => "dataset",
            Self::Outbox => "outbox",
            Self::Sweep => "sweep",
            Self::Retain => "retain",
            Self::Cohort => "cohort",
            Self::Unknowns => "unknowns",
        }
    }
}

impl Database {
    /// Acquires a free lease, or renews one that `holder` has. Returns whether `holder` has it.
    ///
    /// # Errors
    /// The database fails.
    pub async fn acquire_lease(&self, lease: Lease, holder: &str, ttl: Duration) -> Result<bool, StoreError> {
        let holder = holder.to_owned();
        self.write(move |connection| {
            let now = database_now(connection)?;
            let free = leases::table
                .filter(leases::name.eq(lease.name()))
                .filter(leases::holder.eq(&holder).or(leases::expires_at.le(now)));
            let taken = diesel::update(free)
                .set((leases::holder.eq(&holder), leases::expires_at.eq(now + micros(ttl))))
                .execute(connection)?;
            Ok(taken == 1)
        })
        .await
    }

    /// Renews a lease. Returns whether `holder` still had it; an expired one is not acquired again.
    ///
    /// # Errors
    /// The database fails.
    pub async fn renew_lease(&self, lease: Lease, holder: &str, ttl: Duration) -> Result<bool, StoreError> {
        let holder = holder.to_owned();
        self.write(move |connection| renew(connection, lease, &holder, ttl)).await
    }

    /// Does `work`, and renews the lease that `holder` has until it is done.
    ///
    /// # Errors
    /// Those of `work`; [`StoreError::LeaseLost`] where the lease has expired, since another process may then do the same.
    pub async fn renewing_lease<T>(
        &self,
        lease: Lease,
        holder: &str,
        ttl: Duration,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(ttl / 3) => {
                    // A failure of the database is no loss yet: the next renewal may succeed in time.
                    if let Ok(false) = self.renew_lease(lease, holder, ttl).await {
                        return Err(StoreError::LeaseLost);
                    }
                }
            }
        }
    }

    /// Releases a lease, if `holder` has it.
    ///
    /// # Errors
    /// The database fails.
    pub async fn release_lease(&self, lease: Lease, holder: &str) -> Result<(), StoreError> {
        let holder = holder.to_owned();
        self.write(move |connection| {
            let own = leases::table.filter(leases::name.eq(lease.name())).filter(leases::holder.eq(&holder));
            diesel::update(own).set((leases::holder.eq(""), leases::expires_at.eq(0))).execute(connection)?;
            Ok(())
        })
        .await
    }

    /// Releases a lease regardless of its holder. Returns whether it was held.
    ///
    /// # Errors
    /// The database fails.
    pub async fn break_lease(&self, lease: Lease) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let now = database_now(connection)?;
            let held = leases::table.filter(leases::name.eq(lease.name())).filter(leases::expires_at.gt(now));
            let ended = diesel::update(held)
                .set((leases::holder.eq(""), leases::expires_at.eq(0)))
                .execute(connection)?;
            Ok(ended == 1)
        })
        .await
    }

    /// Checks that the dataset may change. A change checks it again, in its own transaction.
    ///
    /// # Errors
    /// [`StoreError::DatasetLocked`].
    pub async fn dataset_unlocked(&self) -> Result<(), StoreError> {
        self.read(|connection| {
            let expires_at = leases::table
                .find(Lease::Dataset.name())
                .select(leases::expires_at)
                .first::<Micros>(connection)?;
            unlocked(connection, expires_at)
        })
        .await
    }
}

/// Renews a lease that `holder` has; for transactions that must have no effect without it.
pub(super) fn renew(
    connection: &mut AnyConnection,
    lease: Lease,
    holder: &str,
    ttl: Duration,
) -> Result<bool, StoreError> {
    let now = database_now(connection)?;
    let own = leases::table
        .filter(leases::name.eq(lease.name()))
        .filter(leases::holder.eq(holder))
        .filter(leases::expires_at.gt(now));
    let renewed = diesel::update(own).set(leases::expires_at.eq(now + micros(ttl))).execute(connection)?;
    Ok(renewed == 1)
}

/// The end of a lease.
#[cfg(feature = "database-servers")]
#[derive(QueryableByName)]
struct Expiry {
    #[diesel(sql_type = BigInt)]
    expires_at: Micros,
}

/// Ensures that the dataset is not locked, and does not become so before the transaction ends.
pub(super) fn ensure_unlocked(connection: &mut AnyConnection) -> Result<(), StoreError> {
    let row = leases::table.find(Lease::Dataset.name()).select(leases::expires_at);
    let expires_at = match connection {
        // SQLite has one writer.
        AnyConnection::Sqlite(sqlite) => row.first::<Micros>(sqlite)?,
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(postgres) => row.for_share().first(postgres)?,
        // MariaDB does not know FOR SHARE.
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(mysql) => {
            diesel::sql_query("SELECT expires_at FROM leases WHERE name = ? LOCK IN SHARE MODE")
                .bind::<Text, _>(Lease::Dataset.name())
                .get_result::<Expiry>(mysql)?
                .expires_at
        }
    };
    unlocked(connection, expires_at)
}

fn unlocked(connection: &mut AnyConnection, expires_at: Micros) -> Result<(), StoreError> {
    match u64::try_from(expires_at - database_now(connection)?) {
        Ok(left) if left > 0 => Err(StoreError::DatasetLocked { retry_after: Duration::from_micros(left) }),
        _ => Ok(()),
    }
}

/// Returns the clock of the database server: the clocks of replicas differ.
fn database_now(connection: &mut AnyConnection) -> QueryResult<Micros> {
    match connection {
        AnyConnection::Sqlite(_) => Ok(now()),
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(postgres) => {
            let micros = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)";
            diesel::select(sql::<BigInt>(micros)).get_result(postgres)
        }
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(mysql) => {
            let micros = "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)";
            diesel::select(sql::<BigInt>(micros)).get_result(mysql)
        }
    }
}

fn micros(duration: Duration) -> Micros {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::DatabaseOptions;

    fn database(folder: &std::path::Path) -> Database {
        Database::open(&DatabaseOptions {
            url: folder.join("x.db").display().to_string(),
            connections: 2,
            migrate_at_start: true,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
            start_timeout: Duration::ZERO,
            allow_newer_schema: false,
        })
        .unwrap()
    }

    #[tokio::test]
    async fn a_lease_is_renewed_while_the_work_lasts() {
        let folder = tempfile::tempdir().unwrap();
        let database = database(folder.path());
        let ttl = Duration::from_secs(3);
        assert!(database.acquire_lease(Lease::Sweep, "a", ttl).await.unwrap());
        let expiry = async || {
            let row = leases::table.find(Lease::Sweep.name()).select(leases::expires_at);
            database.read(move |connection| Ok(row.first::<Micros>(connection)?)).await.unwrap()
        };
        let first = expiry().await;
        let work = async {
            while expiry().await == first {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            database.acquire_lease(Lease::Sweep, "b", ttl).await
        };
        let was_free = database.renewing_lease(Lease::Sweep, "a", ttl, work).await.unwrap();
        assert!(!was_free && expiry().await > first);
    }

    #[tokio::test]
    async fn work_ends_when_its_lease_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let database = database(folder.path());
        let ttl = Duration::from_millis(300);
        assert!(database.acquire_lease(Lease::Sweep, "a", ttl).await.unwrap());
        let work = async {
            assert!(database.break_lease(Lease::Sweep).await.unwrap());
            std::future::pending::<Result<(), StoreError>>().await
        };
        let ended = database.renewing_lease(Lease::Sweep, "a", ttl, work).await;
        assert!(matches!(ended, Err(StoreError::LeaseLost)), "{ended:?}");
    }
}
