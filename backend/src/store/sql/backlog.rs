//! Numbers of queued jobs and messages, for metrics.

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

/// The backlog of the whole deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs by status, in the order of [`JobStatus::ALL`].
    pub jobs: [i64; 5],
    /// Messages in the outbox.
    pub messages: i64,
    /// When the oldest of them was created.
    pub oldest_message: Option<Micros>,
    /// When each task last completed, in the order of [`Task::ALL`].
    pub task_runs: [Option<Micros>; 4],
}

impl Database {
    /// Counts jobs and messages.
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
