//! What waits in the database, for whoever watches the deployment.

use diesel::{
    dsl::{count_star, min},
    prelude::*,
};

use super::{
    Database,
    schema::{jobs, outbox, task_runs},
};
use crate::{
    domain::{JobStatus, Micros, Task},
    store::StoreError,
};

/// Jobs and results of the whole deployment at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs by their status, in the order of [`JobStatus::ALL`].
    pub jobs: [i64; 5],
    /// Results that wait to be sent.
    pub messages: i64,
    /// Since when the oldest of them waits.
    pub oldest_message: Option<Micros>,
    /// When each task was done to its end last, in the order of [`Task::ALL`].
    pub task_runs: [Option<Micros>; 3],
}

impl Database {
    /// Counts what waits.
    ///
    /// # Errors
    /// The database fails.
    pub async fn backlog(&self) -> Result<Backlog, StoreError> {
        self.read(|connection| {
            let counts =
                jobs::table
                    .group_by(jobs::status)
                    .select((jobs::status, count_star()))
                    .load::<(String, i64)>(connection)?;
            let of = |status: JobStatus| {
                counts.iter().find(|(of, _)| of == status.as_str()).map_or(0, |(_, jobs)| *jobs)
            };
            let (messages, oldest_message) =
                outbox::table.select((count_star(), min(outbox::created_at))).first(connection)?;
            let runs =
                task_runs::table
                    .select((task_runs::task, task_runs::finished_at))
                    .load::<(String, Option<Micros>)>(connection)?;
            let last = |task: Task| runs.iter().find(|(of, _)| of == task.name()).and_then(|(_, at)| *at);
            Ok(Backlog {
                jobs: JobStatus::ALL.map(of),
                messages,
                oldest_message,
                task_runs: Task::ALL.map(last),
            })
        })
        .await
    }
}
