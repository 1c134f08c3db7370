//! Results on their way to the external API. One process of the deployment sends at a time; each result is tried again
//! until the API takes it or it is too old.
//!
//! Whatever keeps the process from writing down that a result was taken (a crash, a database that is away) has it sent
//! again: its receiver tells by the key.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use actix_web::http::header::HttpDate;
use reqwest::{
    Client, StatusCode, Url,
    header::{HeaderMap, RETRY_AFTER},
    redirect,
};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinHandle, JoinSet},
};
use uuid::Uuid;

use crate::{
    domain::{Micros, now},
    metrics::Metrics,
    request_id,
    store::{
        Database, StoreError, from_micros,
        sql::{Lease, Message, Topic},
    },
    tls,
};

/// Results that are on their way at a time.
const MAX_IN_FLIGHT: usize = 4;
/// The shortest wait after a failure. It doubles with each further one.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait after a failure.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// The longest wait that the API may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How often results that are too old are looked for.
const DROP_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of an answer that are read, so that its connection can be used again.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Where results go, and how.
#[derive(Debug, Clone)]
pub struct OutboxOptions {
    /// What takes them.
    pub url: Url,
    /// How long a result is kept that is not taken.
    pub max_age: Duration,
    /// How long the API may take to answer.
    pub timeout: Duration,
    /// How often is looked for results, should the signal be missed.
    pub poll: Duration,
    /// How long after the end of a process that sent another one goes on, beside the time that an answer may take.
    pub lease: Duration,
}

/// Starts the task that sends what is in the outbox, until `stop` says so; it ends when what is on its way has arrived
/// or failed.
///
/// # Errors
/// The HTTP client cannot be made.
pub fn start(
    database: Database,
    options: OutboxOptions,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<()>> {
    tls::use_ring();
    let client = Client::builder()
        .user_agent(concat!("facepipe/", env!("CARGO_PKG_VERSION")))
        .timeout(options.timeout)
        // A result goes where it was configured to go, nowhere else.
        .redirect(redirect::Policy::none())
        .build()?;
    let sender = Sender {
        database,
        client,
        options,
        holder: Uuid::new_v4().to_string(),
        lease_ends: None,
        declined_at: None,
        dropped_at: None,
        sending: JoinSet::new(),
        tasks: HashMap::new(),
        outcomes: UnrecordedOutcomes::default(),
        health: ApiHealth::default(),
        metrics,
    };
    Ok(tokio::spawn(sender.run(stop)))
}

struct Sender {
    database: Database,
    client: Client,
    options: OutboxOptions,
    /// Names this process in leases.
    holder: String,
    /// Until when nobody else sends, where this process holds the lease.
    lease_ends: Option<Instant>,
    /// When somebody else had it last.
    declined_at: Option<Instant>,
    /// When results that were too old were dropped last.
    dropped_at: Option<Instant>,
    sending: JoinSet<Result<(), DeliveryError>>,
    tasks: HashMap<Id, InFlight>,
    outcomes: UnrecordedOutcomes,
    health: ApiHealth,
    metrics: Arc<Metrics>,
}

/// What a task sends.
struct InFlight {
    /// The message's row.
    id: i64,
    /// Its attempts before this one.
    attempts: i32,
    /// The request that it is from.
    request_id: Option<String>,
}

/// What is still to be written down, by the messages' rows.
#[derive(Default)]
struct UnrecordedOutcomes {
    taken: Vec<i64>,
    /// With the moment of the next attempt.
    refused: Vec<(i64, Micros)>,
}

impl Sender {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut changes = self.database.changes(Topic::Outbox);
        let mut failing = false;
        while !*stop.borrow() {
            let step = self.step().await;
            match &step {
                // Once, not at every look.
                Err(error) if !failing => tracing::error!(%error, "the outbox cannot be read or written"),
                _ => (),
            }
            failing = step.is_err();
            tokio::select! {
                Some(ended) = self.sending.join_next_with_id() => self.ended(ended),
                _ = changes.changed(), if !failing => (),
                () = tokio::time::sleep(self.options.poll) => (),
                _ = stop.changed() => (),
            }
            while let Some(ended) = self.sending.try_join_next_with_id() {
                self.ended(ended);
            }
        }
        while let Some(ended) = self.sending.join_next_with_id().await {
            self.ended(ended);
        }
        if let Err(error) = self.record_outcomes().await {
            tracing::error!(%error, "what was sent last cannot be written down and will be sent again");
        }
        if let Err(error) = self.release_lease().await {
            tracing::warn!(%error, "cannot give the outbox's lease back");
        }
    }

    /// Writes down what has happened, and sends what is due.
    async fn step(&mut self) -> Result<(), StoreError> {
        self.record_outcomes().await?;
        // Looking costs less than taking the lease.
        if self.lease_ends.is_none() && !self.database.has_messages().await? {
            return Ok(());
        }
        if !self.ensure_lease().await? {
            return Ok(());
        }
        self.drop_expired().await?;
        let free = MAX_IN_FLIGHT.saturating_sub(self.tasks.len());
        if free == 0 || self.health.is_paused(Instant::now()) {
            return Ok(());
        }
        let limit = i64::try_from(free).unwrap_or(i64::MAX);
        let due = self.database.due_messages(self.in_flight(), limit).await?;
        // The database may have taken its time.
        if self.lease_ends.is_none_or(|end| end < Instant::now() + self.options.timeout) {
            return Ok(());
        }
        let idle = due.is_empty() && self.tasks.is_empty();
        for message in due {
            self.send(message);
        }
        if idle && !self.database.has_messages().await? {
            self.release_lease().await?;
        }
        Ok(())
    }

    async fn record_outcomes(&mut self) -> Result<(), StoreError> {
        let UnrecordedOutcomes { taken, refused } = &self.outcomes;
        if !taken.is_empty() || !refused.is_empty() {
            self.database.record_deliveries(taken.clone(), refused.clone()).await?;
            self.outcomes = UnrecordedOutcomes::default();
        }
        Ok(())
    }

    /// Whether nobody else sends for at least as long as an answer may take.
    async fn ensure_lease(&mut self) -> Result<bool, StoreError> {
        let OutboxOptions { timeout, lease, poll, .. } = self.options;
        let asked = Instant::now();
        let left = self.lease_ends.map(|end| end.saturating_duration_since(asked)).unwrap_or_default();
        if left > timeout + lease / 2 {
            return Ok(true);
        }
        // Signals come more often than it is worth to ask.
        if self.declined_at.is_some_and(|last| last.elapsed() < poll / 2) {
            return Ok(false);
        }
        let held = self.database.acquire_lease(Lease::Outbox, &self.holder, timeout + lease).await?;
        self.lease_ends = held.then_some(asked + timeout + lease);
        self.declined_at = (!held).then_some(asked);
        Ok(held)
    }

    async fn release_lease(&mut self) -> Result<(), StoreError> {
        if self.lease_ends.is_some() {
            self.database.release_lease(Lease::Outbox, &self.holder).await?;
            self.lease_ends = None;
        }
        Ok(())
    }

    async fn drop_expired(&mut self) -> Result<(), StoreError> {
        if self.dropped_at.is_some_and(|last| last.elapsed() < DROP_INTERVAL) {
            return Ok(());
        }
        let max_age = self.options.max_age;
        let results = self.database.drop_messages_older_than(max_age, self.in_flight()).await?;
        if results > 0 {
            self.metrics.outbox_dropped(results);
            tracing::error!(results, ?max_age, "dropped results that the external API did not take in time");
        }
        self.dropped_at = Some(Instant::now());
        Ok(())
    }

    /// The rows of the messages that are being sent.
    fn in_flight(&self) -> Vec<i64> {
        self.tasks.values().map(|task| task.id).collect()
    }

    fn send(&mut self, message: Message) {
        let (id, attempts, request_id) = (message.id, message.attempts, message.request_id.clone());
        let task = self.sending.spawn(send(self.client.clone(), self.options.url.clone(), message));
        self.tasks.insert(task.id(), InFlight { id, attempts, request_id });
    }

    fn ended(&mut self, ended: Result<(Id, Result<(), DeliveryError>), JoinError>) {
        let (task, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => (error.id(), Err(DeliveryError::because("sending it ended unexpectedly"))),
        };
        let Some(InFlight { id, attempts, request_id }) = self.tasks.remove(&task) else { return };
        match outcome {
            Ok(()) => {
                self.outcomes.taken.push(id);
                if self.health.taken() {
                    tracing::info!("the external API takes results again");
                }
            }
            Err(DeliveryError { reason, status, retry_after }) => {
                let status = status.map(|status| status.as_u16());
                let wait = backoff(attempts).max(retry_after.unwrap_or_default());
                self.outcomes.refused.push((id, now().saturating_add(micros(wait))));
                if attempts == 0 {
                    tracing::warn!(
                        reason,
                        status,
                        request_id,
                        "the external API did not take a result; it is tried again"
                    );
                }
                if let Some(pause) = self.health.refused(id, retry_after, Instant::now()) {
                    let pause_s = pause.as_secs();
                    tracing::warn!(
                        reason,
                        status,
                        pause_s,
                        "the external API takes no results; sending pauses"
                    );
                }
            }
        }
    }
}

/// Whether the external API seems to be there.
#[derive(Default)]
struct ApiHealth {
    /// Messages that it did not take since it took one last or since the last pause began.
    refused: HashSet<i64>,
    /// Pauses since it took a message last.
    pauses: i32,
    paused_until: Option<Instant>,
}

impl ApiHealth {
    /// It took a message. Returns whether that ends a pause.
    fn taken(&mut self) -> bool {
        let ailing = self.paused_until.is_some();
        *self = Self::default();
        ailing
    }

    /// It did not take a message. Returns the pause that begins: a long one where all that could be sent at a time
    /// failed, or the one that the API asked for. A few messages that it does not like hold up nothing.
    fn refused(&mut self, id: i64, retry_after: Option<Duration>, now: Instant) -> Option<Duration> {
        self.refused.insert(id);
        let mut pause = retry_after;
        if self.refused.len() >= MAX_IN_FLIGHT {
            pause = Some(backoff(self.pauses).max(retry_after.unwrap_or_default()));
            self.pauses = self.pauses.saturating_add(1);
            self.refused.clear();
        }
        let until = now + pause?;
        if self.paused_until.is_some_and(|later| later >= until) {
            return None;
        }
        self.paused_until = Some(until);
        pause
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }
}

/// How long to wait after a failure that `earlier` others came before: twice as long each time, and up to half of that
/// less, so that those who failed together do not come again together.
fn backoff(earlier: i32) -> Duration {
    let doublings = u32::try_from(earlier).unwrap_or_default().min(16);
    let longest = MIN_BACKOFF.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    longest.mul_f64(rand::random_range(0.5..=1.0)).max(MIN_BACKOFF)
}

/// What the external API gets.
#[derive(Serialize)]
struct ResultMessage {
    face_id: Option<String>,
    confidence: Option<f32>,
    camera_id: String,
    location: String,
    timestamp: String,
    key: String,
}

/// Why a message was not taken. Has nothing of the message.
struct DeliveryError {
    reason: &'static str,
    status: Option<StatusCode>,
    retry_after: Option<Duration>,
}

impl DeliveryError {
    fn because(reason: &'static str) -> Self {
        Self { reason, status: None, retry_after: None }
    }
}

async fn send(client: Client, url: Url, message: Message) -> Result<(), DeliveryError> {
    let timestamp = from_micros(message.captured_at)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .ok_or(DeliveryError::because("its row is damaged"))?;
    let body = ResultMessage {
        face_id: message.face_id,
        confidence: message.confidence,
        camera_id: message.camera_id,
        location: message.location,
        timestamp,
        key: message.key,
    };
    let mut request = client.post(url).json(&body);
    if let Some(id) = message.request_id {
        request = request.header(request_id::HEADER.as_str(), id);
    }
    let mut answer = request.send().await.map_err(|error| {
        DeliveryError::because(match &error {
            error if error.is_timeout() => "no answer in time",
            error if error.is_connect() => "no connection",
            _ => "the connection broke",
        })
    })?;
    let (status, retry_after) = (answer.status(), retry_after(answer.status(), answer.headers()));
    let mut read = 0;
    while read < MAX_ANSWER_BYTES
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        read += chunk.len();
    }
    if status.is_success() {
        return Ok(());
    }
    Err(DeliveryError { reason: "its answer says so", status: Some(status), retry_after })
}

/// How long an API that is busy asks to wait: in seconds, or until a date.
fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date: SystemTime = text.parse::<HttpDate>().ok()?.into();
            date.duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

fn micros(duration: Duration) -> Micros {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_a_minute_with_jitter() {
        for (earlier, longest) in [(0, 1), (1, 2), (3, 8), (5, 32), (6, 60), (1000, 60), (i32::MAX, 60)] {
            let longest = Duration::from_secs(longest);
            let waits: Vec<Duration> = (0..50).map(|_| backoff(earlier)).collect();
            assert!(
                waits.iter().all(|wait| (MIN_BACKOFF.max(longest / 2)..=longest).contains(wait)),
                "{waits:?}"
            );
            assert_eq!(waits.iter().collect::<HashSet<_>>().len() > 1, earlier > 0, "{waits:?}");
        }
    }

    #[test]
    fn one_rejected_message_blocks_nothing_and_a_dead_api_is_paused() {
        let (mut health, now) = (ApiHealth::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(health.refused(7, None, now), None);
        }
        assert_eq!(health.refused(8, None, now), None);
        assert_eq!(health.refused(9, None, now), None);
        assert!(!health.is_paused(now));
        assert_eq!(health.refused(10, None, now), Some(MIN_BACKOFF));
        assert!(health.is_paused(now) && !health.is_paused(now + MIN_BACKOFF));

        // Each further window that fails as a whole is followed by a longer pause, up to the longest.
        let mut later = now;
        let pauses: Vec<Duration> = (0..10)
            .map(|_| {
                later += MAX_BACKOFF;
                (0..MAX_IN_FLIGHT)
                    .filter_map(|id| health.refused(i64::try_from(id).unwrap(), None, later))
                    .sum()
            })
            .collect();
        assert!(pauses[9] >= MAX_BACKOFF / 2 && pauses[9] <= MAX_BACKOFF, "{pauses:?}");

        assert!(health.taken());
        assert!(!health.is_paused(later) && !health.taken());
        assert_eq!(health.refused(7, None, later), None);
    }

    #[test]
    fn retry_after_is_honoured() {
        let wait = |status, value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            retry_after(StatusCode::from_u16(status).unwrap(), &headers)
        };
        assert_eq!(wait(429, "7"), Some(Duration::from_secs(7)));
        assert_eq!(wait(503, " 0 "), Some(Duration::ZERO));
        assert_eq!(wait(503, "99999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(wait(503, "Fri, 01 Jan 1999 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait(429, "Fri, 01 Jan 2100 00:00:00 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(wait(429, "soon"), None);
        assert_eq!(wait(500, "7"), None);

        let (mut health, now) = (ApiHealth::default(), Instant::now());
        assert_eq!(health.refused(1, Some(Duration::from_secs(7)), now), Some(Duration::from_secs(7)));
        assert!(
            health.is_paused(now + Duration::from_secs(6)) && !health.is_paused(now + Duration::from_secs(7))
        );
        // The end of a pause is not brought forward.
        assert_eq!(health.refused(2, Some(Duration::from_secs(3)), now), None);
        assert!(health.is_paused(now + Duration::from_secs(6)));
    }
}
