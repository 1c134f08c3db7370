//! Numbers of queued jobs and messages, for metrics.

use diesel::{
    dsl::{count_star, max, min},
    prelude::*,
};

use super::{
    Database,
    schema::{detections, jobs, outbox, task_runs, unknown_clustering, unknowns},
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
    /// Clusters of unknown faces that are not ignored, and that are.
    pub unknowns: [i64; 2],
    /// Detections that clustering has not read yet, at most.
    pub ungrouped_detections: i64,
    /// When each task last completed, in the order of [`Task::ALL`].
    pub task_runs: [Option<Micros>; Task::ALL.len()],
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
            let clusters = unknowns::table
                .group_by(unknowns::ignored)
                .select((unknowns::ignored, count_star()))
                .load::<(bool, i64)>(connection)?;
            let clusters = |ignored: bool| {
                clusters.iter().find(|(of, _)| *of == ignored).map_or(0, |(_, clusters)| *clusters)
            };
            let read_up_to: i64 =
                unknown_clustering::table.select(unknown_clustering::read_up_to).first(connection)?;
            let newest: Option<i64> = detections::table.select(max(detections::id)).first(connection)?;
            let unread = newest.map_or(0, |newest| (newest - read_up_to).max(0));
            let runs =
                task_runs::table
                    .select((task_runs::task, task_runs::finished_at))
                    .load::<(String, Option<Micros>)>(connection)?;
            let last = |task: Task| runs.iter().find(|(of, _)| of == task.name()).and_then(|(_, at)| *at);
            Ok(Backlog {
                jobs: JobStatus::ALL.map(of),
                messages,
                oldest_message,
                unknowns: [clusters(false), clusters(true)],
                ungrouped_detections: unread,
                task_runs: Task::ALL.map(last),
            })
        })
        .await
    }
}
