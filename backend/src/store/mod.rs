//! Persistent state: rows in a SQL database, bytes in a blob store.

pub mod access_follower;
pub mod blobs;
pub mod ledger;
pub mod lock;
pub mod retention;
pub mod sql;
pub mod sweep;
pub mod track_expiry;

pub use blobs::Blobs;
pub use lock::ServerLock;
pub use sql::Database;

use std::{io::ErrorKind, time::Duration};

use time::OffsetDateTime;

use crate::domain::{Micros, PersonId};

/// Why a call of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A person with this Face ID, or with one that counts as the same, exists.
    #[error("the person exists")]
    PersonExists {
        /// The existing person; `None` where that one was added at the same moment.
        person_id: Option<PersonId>,
    },
    /// No person matches.
    #[error("no such person")]
    PersonNotFound,
    /// The active model does not know the person.
    #[error("the active model does not know the person")]
    PersonNotInModel,
    /// No model has this version.
    #[error("no such model")]
    ModelNotFound,
    /// The model of this version is active.
    #[error("the model is active")]
    ModelActive,
    /// No detection has this id.
    #[error("no such detection")]
    DetectionNotFound,
    /// No cluster of unknown faces has this id.
    #[error("no such cluster")]
    UnknownNotFound,
    /// A principal with this name exists.
    #[error("the principal exists")]
    PrincipalExists,
    /// No principal has this id.
    #[error("no such principal")]
    PrincipalNotFound,
    /// No token has this id.
    #[error("no such token")]
    TokenNotFound,
    /// Clusters cannot be merged or divided as asked.
    #[error("{0}")]
    ClusterConflict(#[from] sql::ClusterConflict),
    /// Clusters have changed since the write's basis was read.
    #[error("clusters have changed meanwhile")]
    ClustersChanged,
    /// The lease that the write needs has expired.
    #[error("the lease has ended")]
    LeaseLost,
    /// The person has no image of this id.
    #[error("no such image")]
    ImageNotFound,
    /// The person has an image of the same bytes.
    #[error("the person has this image")]
    DuplicateImage {
        /// The id of the image that is enrolled already.
        image_id: String,
        /// The id of the person.
        person_id: PersonId,
    },
    /// Another person has an image of the same bytes.
    #[error("another person has this image")]
    ImageOfAnother {
        /// The id of the image that is enrolled already.
        image_id: String,
        /// The id of the other person.
        person_id: PersonId,
    },
    /// The database did not answer in time, or could not be reached.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// A job holds the lease of the dataset, which must not change meanwhile.
    #[error("the dataset is locked")]
    DatasetLocked {
        /// Time until the lease ends unless it is renewed.
        retry_after: Duration,
    },
    /// The model cannot decide about a track.
    #[error("a track cannot be decided: {0}")]
    Undecided(String),
    /// The disk is full.
    #[error("no room is left: {0}")]
    Full(String),
    /// The database refused a statement.
    #[error("the database refused a statement: {0}")]
    Database(diesel::result::Error),
    /// The blob store failed.
    #[error("the blob store failed: {0}")]
    Blob(object_store::Error),
    /// A row holds a value that this program never writes.
    #[error("damaged row: {0}")]
    Damaged(String),
    /// The thread of a database call ended.
    #[error("a database call was cut off")]
    Interrupted,
}

/// Phrases in errors of engines whose connection or server is gone, or too slow.
const UNAVAILABLE_PHRASES: [&str; 18] = [
    // PostgreSQL
    "server closed the connection",
    "terminating connection",
    "no connection to the server",
    "could not receive data from server",
    "could not send data to server",
    "connection has been closed",
    "the database system is",
    "canceling statement due to",
    "read-only transaction",
    // MySQL, MariaDB
    "server has gone away",
    "Lost connection to",
    "shutdown in progress",
    "Connection was killed",
    "max_statement_time exceeded",
    "maximum statement execution time exceeded",
    "Lock wait timeout exceeded",
    // SQLite
    "database is locked",
    "disk I/O error",
];

/// Phrases in errors of engines whose disk is full.
const DISK_FULL_PHRASES: [&str; 3] = ["database or disk is full", "No space left on device", "is full"];

impl StoreError {
    /// Returns whether the database is at fault, rather than the call.
    pub fn is_database_fault(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_) | Self::Database(_) | Self::Interrupted)
    }
}

impl From<diesel::result::Error> for StoreError {
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::{DatabaseErrorKind, Error};
        let message = error.to_string();
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| message.contains(phrase));
        match error {
            Error::DatabaseError(DatabaseErrorKind::ClosedConnection, _)
            | Error::BrokenTransactionManager => Self::Unavailable(message),
            _ if says(&UNAVAILABLE_PHRASES) => Self::Unavailable(message),
            _ if says(&DISK_FULL_PHRASES) => Self::Full(message),
            other => Self::Database(other),
        }
    }
}

impl From<object_store::Error> for StoreError {
    fn from(error: object_store::Error) -> Self {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(current) = cause {
            let kind = current.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if matches!(
                kind,
                Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
            ) {
                return Self::Full(error.to_string());
            }
            cause = current.source();
        }
        Self::Blob(error)
    }
}

/// Converts the moment of a row.
///
/// # Errors
/// [`StoreError::Damaged`] beyond the year 9999.
pub fn from_micros(micros: Micros) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000)
        .map_err(|_| StoreError::Damaged(format!("a time of {micros} microseconds")))
}

/// Encodes an embedding as rows hold it: little-endian f32.
pub fn vector_to_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Decodes the embedding of a row.
///
/// # Errors
/// [`StoreError::Damaged`] unless the bytes are whole f32.
pub fn vector_from_bytes(bytes: &[u8]) -> Result<Vec<f32>, StoreError> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(StoreError::Damaged(format!("an embedding of {} bytes", bytes.len())));
    }
    Ok(chunks.iter().map(|c| f32::from_le_bytes(*c)).collect())
}
