//! The outbox: results that wait to be sent to the external API.

use std::time::Duration;

use diesel::{dsl::exists, prelude::*};

use super::{
    AnyConnection, Database,
    schema::{outbox, people},
};
use crate::{
    domain::{Micros, now},
    store::StoreError,
};

/// A message to add.
pub struct NewMessage<'a> {
    /// The key by which the receiver recognises repetitions.
    pub key: String,
    /// Row id of the person; `None` for an unknown face.
    pub person_id: Option<i64>,
    /// Probability of the most probable person, 0 to 1.
    pub confidence: Option<f32>,
    pub camera_id: &'a str,
    /// The camera's location.
    pub location: &'a str,
    /// The time of capture.
    pub captured_at: Micros,
    /// `X-Request-Id` of the request with the image.
    pub request_id: Option<&'a str>,
}

#[derive(Queryable)]
pub struct Message {
    /// Row id.
    pub id: i64,
    /// The key by which the receiver recognises repetitions.
    pub key: String,
    /// The present Face ID of the person; `None` for an unknown face.
    pub face_id: Option<String>,
    /// Probability of the most probable person, 0 to 1.
    pub confidence: Option<f32>,
    pub camera_id: String,
    /// The camera's location at that time.
    pub location: String,
    /// The time of capture.
    pub captured_at: Micros,
    /// The number of failed attempts.
    pub attempts: i32,
    /// `X-Request-Id` of the request with the image.
    pub request_id: Option<String>,
}

impl Database {
    /// Returns whether the outbox has any message, due or not.
    ///
    /// # Errors
    /// The database fails.
    pub async fn has_messages(&self) -> Result<bool, StoreError> {
        self.read(|connection| {
            let any = diesel::select(exists(outbox::table.select(outbox::id))).get_result(connection)?;
            Ok(any)
        })
        .await
    }

    /// Returns at most `limit` messages whose next attempt is due, the longest overdue first, except those of the rows
    /// `except`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn due_messages(&self, except: Vec<i64>, limit: i64) -> Result<Vec<Message>, StoreError> {
        self.read(move |connection| {
            let rows = outbox::table
                .left_join(people::table)
                .filter(outbox::next_attempt_at.le(now()))
                .filter(outbox::id.ne_all(&except))
                .order((outbox::next_attempt_at, outbox::id))
                .limit(limit)
                .select((
                    outbox::id,
                    outbox::message_key,
                    people::face_id.nullable(),
                    outbox::confidence,
                    outbox::camera_id,
                    outbox::location,
                    outbox::captured_at,
                    outbox::attempts,
                    outbox::request_id,
                ))
                .load::<Message>(connection)?;
            Ok(rows)
        })
        .await
    }

    /// Removes the messages `delivered`, and postpones those in `failed` to the given moments.
    ///
    /// # Errors
    /// The database fails; no message is changed.
    pub async fn record_deliveries(
        &self,
        delivered: Vec<i64>,
        failed: Vec<(i64, Micros)>,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            if !delivered.is_empty() {
                diesel::delete(outbox::table.filter(outbox::id.eq_any(&delivered))).execute(connection)?;
            }
            for (id, next_attempt_at) in &failed {
                diesel::update(outbox::table.find(id))
                    .set((
                        outbox::attempts.eq(outbox::attempts + 1),
                        outbox::next_attempt_at.eq(next_attempt_at),
                    ))
                    .execute(connection)?;
            }
            Ok(())
        })
        .await
    }

    /// Removes messages that are older than `age`, without those of the rows `except`. Returns how many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn drop_messages_older_than(
        &self,
        age: Duration,
        except: Vec<i64>,
    ) -> Result<usize, StoreError> {
        let oldest = now().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
        self.write(move |connection| {
            let old = outbox::table.filter(outbox::created_at.lt(oldest)).filter(outbox::id.ne_all(&except));
            Ok(diesel::delete(old).execute(connection)?)
        })
        .await
    }
}

pub(super) fn insert(connection: &mut AnyConnection, message: &NewMessage<'_>) -> Result<(), StoreError> {
    let now = now();
    diesel::insert_into(outbox::table)
        .values((
            outbox::message_key.eq(&message.key),
            outbox::person_id.eq(message.person_id),
            outbox::confidence.eq(message.confidence),
            outbox::camera_id.eq(message.camera_id),
            outbox::location.eq(message.location),
            outbox::captured_at.eq(message.captured_at),
            outbox::created_at.eq(now),
            outbox::next_attempt_at.eq(now),
            outbox::request_id.eq(message.request_id),
        ))
        .execute(connection)?;
    Ok(())
}
