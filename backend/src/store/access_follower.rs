//! Keeps what a server knows of principals and tokens the same as the database, and stores when tokens were used.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{Database, StoreError};
use crate::access::{AccessControl, TokenUse};

/// The interval between reads of the revision: every server refuses a revoked token within twice that time.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time of a read, so that a database that does not respond is noticed.
const PATIENCE: Duration = Duration::from_secs(5);
/// The minimum time between two writes of one token's last use.
const USE_INTERVAL: Duration = Duration::from_secs(60);

/// Reads the principals and tokens again if they have changed.
///
/// # Errors
/// The database fails; what was known stays.
pub async fn refresh(database: &Database, access: &AccessControl) -> Result<(), StoreError> {
    let _reading = access.begin_reading().await;
    if Some(database.access_revision().await?) == access.revision() {
        access.note_read();
        return Ok(());
    }
    let stored = database.stored_access().await?;
    access.replace(stored.revision, stored.has_principals, &stored.principals, &stored.tokens);
    access.note_read();
    // Afterwards: a reader of this line may rely on the change at once.
    let (principals, tokens) = (stored.principals.len(), stored.tokens.len());
    tracing::debug!(revision = stored.revision, principals, tokens, "read who has access");
    Ok(())
}

/// Follows the database until `stop` is set. While it cannot be read, what was known last stays valid.
pub async fn follow_access(database: Database, access: Arc<AccessControl>, stop: CancellationToken) {
    let mut is_away = false;
    let mut written: HashMap<i64, Instant> = HashMap::new();
    while !stop.is_cancelled() {
        let problem = match tokio::time::timeout(PATIENCE, refresh(&database, &access)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no response within {} s", PATIENCE.as_secs())),
        };
        match &problem {
            Some(problem) if !is_away => tracing::warn!(
                problem,
                "cannot read who has access: the tokens that were known last stay valid, and revocations come late"
            ),
            None if is_away => tracing::info!("who has access can be read again"),
            _ => (),
        }
        is_away = problem.is_some();
        if !is_away {
            written.retain(|_, at| at.elapsed() < USE_INTERVAL);
            let uses = access.take_uses(|token| !written.contains_key(&token));
            written.extend(uses.iter().map(|(token, _)| (*token, Instant::now())));
            write_uses(&database, uses).await;
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => (),
            () = stop.cancelled() => (),
        }
    }
    write_uses(&database, access.take_uses(|_| true)).await;
}

/// Writes last uses; they are lost if the database fails or does not respond.
async fn write_uses(database: &Database, uses: Vec<(i64, TokenUse)>) {
    if uses.is_empty() {
        return;
    }
    match tokio::time::timeout(PATIENCE, database.store_token_uses(uses)).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => tracing::debug!(%error, "last uses of tokens are not stored"),
        Err(_) => tracing::debug!("last uses of tokens are not stored: the database does not respond"),
    }
}
