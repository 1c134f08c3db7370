//! When recurring work of the deployment was done last, whichever process did it.

use diesel::prelude::*;

use super::{Database, schema::task_runs};
use crate::store::{Micros, StoreError};

/// Recurring work; the migrations make a row for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Deleting detections that are too old.
    Retain,
    /// Removing blobs that nothing refers to.
    Sweep,
    /// Copying database and blobs for a bad day.
    Backup,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Retain, Self::Sweep, Self::Backup];

    /// As rows and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retain => "retain",
            Self::Sweep => "sweep",
            Self::Backup => "backup",
        }
    }
}

impl Database {
    /// Writes down that `task` was done to its end at `moment`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn task_finished(&self, task: Task, moment: Micros) -> Result<(), StoreError> {
        self.write(move |connection| {
            diesel::update(task_runs::table.find(task.name()))
                .set(task_runs::finished_at.eq(moment))
                .execute(connection)?;
            Ok(())
        })
        .await
    }

    /// When `task` was done to its end last; `None` where never.
    ///
    /// # Errors
    /// The database fails.
    pub async fn last_run(&self, task: Task) -> Result<Option<Micros>, StoreError> {
        self.read(move |connection| {
            let row = task_runs::table.find(task.name()).select(task_runs::finished_at);
            Ok(row.first::<Option<Micros>>(connection)?)
        })
        .await
    }
}
