//! Notifies waiting tasks of changes, also those by other processes where the engine supports it (Postgres' NOTIFY).

use std::sync::Arc;
#[cfg(feature = "database-servers")]
use std::{sync::Weak, thread, time::Duration};

use diesel::QueryResult;
#[cfg(feature = "database-servers")]
use diesel::{
    Connection as _, PgConnection, RunQueryDsl as _, connection::SimpleConnection as _, sql_types::Text,
};
use tokio::sync::watch;

use super::{AnyConnection, connection::Engine};

#[cfg(feature = "database-servers")]
/// The channel of Postgres; the payload is the topic.
const CHANNEL: &str = "facepipe";

#[cfg(feature = "database-servers")]
/// How often the listening connection looks for notifications, which costs no round trip.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(feature = "database-servers")]
/// The pause before connecting again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// The subjects of notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// The active model.
    Model,
    /// Jobs that were added or have ended.
    Jobs,
    /// New messages in the outbox.
    Outbox,
}

impl Topic {
    const ALL: [Self; 3] = [Self::Model, Self::Jobs, Self::Outbox];

    fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Jobs => "jobs",
            Self::Outbox => "outbox",
        }
    }
}

/// One signal for each topic.
pub(super) struct ChangeSignals {
    model: watch::Sender<()>,
    jobs: watch::Sender<()>,
    outbox: watch::Sender<()>,
}

impl ChangeSignals {
    /// Creates the signals; on Postgres, starts a thread that listens until they are dropped.
    pub(super) fn start(engine: Engine) -> std::io::Result<Arc<Self>> {
        let signals = Arc::new(Self {
            model: watch::Sender::new(()),
            jobs: watch::Sender::new(()),
            outbox: watch::Sender::new(()),
        });
        #[cfg(feature = "database-servers")]
        if let Engine::Postgres { url } = engine {
            let listener = Arc::downgrade(&signals);
            thread::Builder::new().name("listen".into()).spawn(move || listen(&url, &listener))?;
        }
        Ok(signals)
    }

    pub(super) fn subscribe(&self, topic: Topic) -> watch::Receiver<()> {
        self.sender(topic).subscribe()
    }

    /// Notifies this process.
    pub(super) fn notify(&self, topic: Topic) {
        self.sender(topic).send_replace(());
    }

    fn sender(&self, topic: Topic) -> &watch::Sender<()> {
        match topic {
            Topic::Model => &self.model,
            Topic::Jobs => &self.jobs,
            Topic::Outbox => &self.outbox,
        }
    }
}

/// Notifies other processes when the transaction commits, where the engine supports it.
pub(super) fn notify_other_processes(connection: &mut AnyConnection, topic: Topic) -> QueryResult<()> {
    #[cfg(feature = "database-servers")]
    if let AnyConnection::Postgres(postgres) = connection {
        diesel::sql_query("SELECT pg_notify($1, $2)")
            .bind::<Text, _>(CHANNEL)
            .bind::<Text, _>(topic.as_str())
            .execute(postgres)?;
    }
    Ok(())
}

#[cfg(feature = "database-servers")]
fn listen(url: &str, signals: &Weak<ChangeSignals>) {
    while signals.strong_count() > 0 {
        if let Err(error) = listen_once(url, signals) {
            tracing::warn!(%error, "cannot listen for notifications of the database; changes are polled for");
        }
        thread::sleep(RECONNECT_DELAY);
    }
}

#[cfg(feature = "database-servers")]
fn listen_once(url: &str, signals: &Weak<ChangeSignals>) -> anyhow::Result<()> {
    let mut connection = PgConnection::establish(url)?;
    connection.batch_execute(&format!("LISTEN {CHANNEL}"))?;
    // There may have been notifications before this connection listened.
    if let Some(signals) = signals.upgrade() {
        Topic::ALL.into_iter().for_each(|topic| signals.notify(topic));
    }
    loop {
        let heard: Vec<_> = connection.notifications_iter().collect::<QueryResult<_>>()?;
        let Some(signals) = signals.upgrade() else { return Ok(()) };
        for topic in Topic::ALL {
            if heard.iter().any(|notification| notification.payload == topic.as_str()) {
                signals.notify(topic);
            }
        }
        drop(signals);
        thread::sleep(POLL_INTERVAL);
    }
}
