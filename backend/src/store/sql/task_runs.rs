//! When each recurring task last completed in any process of the deployment.

use diesel::prelude::*;

use super::{Database, schema::task_runs};
use crate::{
    domain::{Micros, Task},
    store::StoreError,
};

impl Database {
    /// Records that `task` completed at `moment`.
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

    /// Returns when `task` last completed; `None` if never.
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
