//! Pictures of unknown faces, where they are kept.

use diesel::{QueryableByName, prelude::*, sql_types::BigInt};

use super::{
    AnyConnection, Database, MAX_VARIABLES,
    schema::{detections, unknown_pictures},
};
use crate::{
    domain::{Micros, now},
    store::StoreError,
};

/// A picture whose blob is stored already.
#[derive(Debug, Clone)]
pub struct NewPicture {
    /// The key of its blob.
    pub blob_key: String,
    /// Size in bytes.
    pub bytes: i64,
}

/// A kept picture.
#[derive(Debug, Clone, Queryable)]
pub struct UnknownPicture {
    /// Row id of the detection.
    pub detection: i64,
    /// Size in bytes.
    pub bytes: i64,
    /// When it was stored.
    pub created_at: Micros,
}

#[derive(QueryableByName)]
struct LastId {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

impl Database {
    /// Returns the newest pictures of a cluster, at most `limit`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn unknown_pictures(
        &self,
        cluster: i64,
        limit: i64,
    ) -> Result<Vec<UnknownPicture>, StoreError> {
        self.read(move |connection| {
            Ok(unknown_pictures::table
                .inner_join(detections::table)
                .filter(detections::unknown_id.eq(cluster))
                .order(unknown_pictures::detection_id.desc())
                .limit(limit)
                .select((
                    unknown_pictures::detection_id,
                    unknown_pictures::bytes,
                    unknown_pictures::created_at,
                ))
                .load(connection)?)
        })
        .await
    }

    /// Returns the key of the picture of a detection that is in a cluster.
    ///
    /// # Errors
    /// The database fails.
    pub async fn unknown_picture_key(
        &self,
        cluster: i64,
        detection: i64,
    ) -> Result<Option<String>, StoreError> {
        self.read(move |connection| {
            Ok(unknown_pictures::table
                .inner_join(detections::table)
                .filter(detections::id.eq(detection))
                .filter(detections::unknown_id.eq(cluster))
                .select(unknown_pictures::blob_key)
                .first(connection)
                .optional()?)
        })
        .await
    }

    /// Returns the keys of all blobs that pictures refer to.
    ///
    /// # Errors
    /// The database fails.
    pub async fn unknown_picture_keys(&self) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            Ok(unknown_pictures::table.select(unknown_pictures::blob_key).load(connection)?)
        })
        .await
    }

    /// Deletes at most `limit` pictures that were stored before `cutoff`. Returns the keys of their blobs.
    ///
    /// # Errors
    /// The database fails.
    pub async fn delete_unknown_pictures_before(
        &self,
        cutoff: Micros,
        limit: i64,
    ) -> Result<Vec<String>, StoreError> {
        self.write(move |connection| {
            let old: Vec<i64> = unknown_pictures::table
                .filter(unknown_pictures::created_at.lt(cutoff))
                .order(unknown_pictures::created_at)
                .limit(limit)
                .select(unknown_pictures::detection_id)
                .load(connection)?;
            take(connection, &old)
        })
        .await
    }
}

/// Inserts the picture of the detection that this connection inserted last; part of a transaction.
pub(super) fn insert(connection: &mut AnyConnection, picture: &NewPicture) -> Result<(), StoreError> {
    let LastId { id } = match connection {
        AnyConnection::Sqlite(sqlite) => {
            diesel::sql_query("SELECT last_insert_rowid() AS id").get_result(sqlite)?
        }
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(postgres) => {
            diesel::sql_query("SELECT lastval() AS id").get_result(postgres)?
        }
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(mysql) => {
            diesel::sql_query("SELECT CAST(LAST_INSERT_ID() AS SIGNED) AS id").get_result(mysql)?
        }
    };
    diesel::insert_into(unknown_pictures::table)
        .values((
            unknown_pictures::detection_id.eq(id),
            unknown_pictures::blob_key.eq(&picture.blob_key),
            unknown_pictures::bytes.eq(picture.bytes),
            unknown_pictures::created_at.eq(now()),
        ))
        .execute(connection)?;
    Ok(())
}

/// Deletes the pictures of detections; part of a transaction. Returns the keys of their blobs, which the caller deletes after
/// it, without those that another transaction took meanwhile, as that one may have enrolled them.
pub(super) fn take(connection: &mut AnyConnection, faces: &[i64]) -> Result<Vec<String>, StoreError> {
    let mut keys = Vec::new();
    for faces in faces.chunks(MAX_VARIABLES) {
        let own = unknown_pictures::table
            .filter(unknown_pictures::detection_id.eq_any(faces))
            .select((unknown_pictures::detection_id, unknown_pictures::blob_key))
            .load::<(i64, String)>(connection)?;
        for (face, key) in own {
            if diesel::delete(unknown_pictures::table.find(face)).execute(connection)? == 1 {
                keys.push(key);
            }
        }
    }
    Ok(keys)
}
