//! Sends the messages of the outbox to the external API. One process of the deployment sends at a time; each message is
//! retried until the API accepts it or it expires.
//!
//! Delivery is at least once: where the process cannot record that a message was accepted (a crash, an unavailable
//! database), it sends the message again, and the receiver recognises the key.

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
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
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

/// Maximum number of concurrent requests.
const MAX_IN_FLIGHT: usize = 4;
/// The shortest backoff after a failure. It doubles with each further one.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// The longest backoff after a failure.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is honoured.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How often expired messages are dropped.
const DROP_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of a response that are read, so that its connection can be reused.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The external API and how to send to it.
#[derive(Debug, Clone)]
pub struct OutboxOptions {
    /// The address of the API.
    pub url: Url,
    /// How long a message is kept that the API does not accept.
    pub max_age: Duration,
    /// How long the API may take to respond.
    pub timeout: Duration,
    /// How often to look for messages in case the signal is missed.
    pub poll: Duration,
    /// How long after a crash of the sending process another one takes over, in addition to `timeout`.
    pub lease: Duration,
}

/// Starts the task that sends messages until `stop` is set; it ends when all requests in flight have ended.
///
/// # Errors
/// The HTTP client cannot be created.
pub fn start(
    database: Database,
    options: OutboxOptions,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    tls::use_ring();
    let client = Client::builder()
        .user_agent(concat!("facepipe/", env!("CARGO_PKG_VERSION")))
        .timeout(options.timeout)
        // Results go to the configured address only.
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
    /// The end of the lease, where this process holds it.
    lease_ends: Option<Instant>,
    /// When another process was last found to hold the lease.
    declined_at: Option<Instant>,
    /// When expired messages were last dropped.
    dropped_at: Option<Instant>,
    sending: JoinSet<Result<(), DeliveryError>>,
    tasks: HashMap<Id, InFlight>,
    outcomes: UnrecordedOutcomes,
    health: ApiHealth,
    metrics: Arc<Metrics>,
}

/// A message in flight.
struct InFlight {
    /// The row id of the message.
    id: i64,
    /// The number of earlier attempts.
    attempts: i32,
    /// The request with the image.
    request_id: Option<String>,
}

/// Outcomes that are not recorded in the database yet, by row id.
#[derive(Default)]
struct UnrecordedOutcomes {
    delivered: Vec<i64>,
    /// With the time of the next attempt.
    failed: Vec<(i64, Micros)>,
}

impl Sender {
    async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.database.changes(Topic::Outbox);
        let mut failing = false;
        while !stop.is_cancelled() {
            let step = self.step().await;
            match &step {
                // Logs a failure once, not at every attempt.
                Err(error) if !failing => tracing::error!(%error, "the outbox cannot be read or written"),
                _ => (),
            }
            failing = step.is_err();
            tokio::select! {
                Some(ended) = self.sending.join_next_with_id() => self.ended(ended),
                _ = changes.changed(), if !failing => (),
                () = tokio::time::sleep(self.options.poll) => (),
                () = stop.cancelled() => (),
            }
            while let Some(ended) = self.sending.try_join_next_with_id() {
                self.ended(ended);
            }
        }
        while let Some(ended) = self.sending.join_next_with_id().await {
            self.ended(ended);
        }
        if let Err(error) = self.record_outcomes().await {
            tracing::error!(%error, "cannot record the last deliveries; these messages will be sent again");
        }
        if let Err(error) = self.release_lease().await {
            tracing::warn!(%error, "cannot release the lease of the outbox");
        }
    }

    /// Records the outcomes so far, and sends messages that are due.
    async fn step(&mut self) -> Result<(), StoreError> {
        self.record_outcomes().await?;
        // A look costs less than acquiring the lease.
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
        // The database may have been slow.
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
        let UnrecordedOutcomes { delivered, failed } = &self.outcomes;
        if !delivered.is_empty() || !failed.is_empty() {
            self.database.record_deliveries(delivered.clone(), failed.clone()).await?;
            self.outcomes = UnrecordedOutcomes::default();
        }
        Ok(())
    }

    /// Acquires or renews the lease if it does not cover the timeout of a request. Returns whether this process holds
    /// it.
    async fn ensure_lease(&mut self) -> Result<bool, StoreError> {
        let OutboxOptions { timeout, lease, poll, .. } = self.options;
        let asked = Instant::now();
        let left = self.lease_ends.map(|end| end.saturating_duration_since(asked)).unwrap_or_default();
        if left > timeout + lease / 2 {
            return Ok(true);
        }
        // Signals come more often than it is worth asking.
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

    /// Returns the row ids of the messages that are being sent.
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
                self.outcomes.delivered.push(id);
                if self.health.succeeded() {
                    tracing::info!("the external API takes results again");
                }
            }
            Err(DeliveryError { reason, status, retry_after }) => {
                let status = status.map(|status| status.as_u16());
                let wait = backoff(attempts).max(retry_after.unwrap_or_default());
                self.outcomes.failed.push((id, now().saturating_add(micros(wait))));
                if attempts == 0 {
                    tracing::warn!(
                        reason,
                        status,
                        request_id,
                        "the external API did not take a result; it is tried again"
                    );
                }
                if let Some(pause) = self.health.failed(id, retry_after, Instant::now()) {
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

/// The state of the external API as recent attempts suggest it.
#[derive(Default)]
struct ApiHealth {
    /// Messages that failed since the last success or the start of the last pause.
    failed: HashSet<i64>,
    /// The number of pauses since the last success.
    pauses: i32,
    paused_until: Option<Instant>,
}

impl ApiHealth {
    /// Records that a message was accepted. Returns whether that ends a pause.
    fn succeeded(&mut self) -> bool {
        let was_paused = self.paused_until.is_some();
        *self = Self::default();
        was_paused
    }

    /// Records that a message failed. Returns the pause that starts: a growing one once as many messages have failed as may
    /// be in flight, or the one that the API asked for. Fewer rejected messages do not block others.
    fn failed(&mut self, id: i64, retry_after: Option<Duration>, now: Instant) -> Option<Duration> {
        self.failed.insert(id);
        let mut pause = retry_after;
        if self.failed.len() >= MAX_IN_FLIGHT {
            pause = Some(backoff(self.pauses).max(retry_after.unwrap_or_default()));
            self.pauses = self.pauses.saturating_add(1);
            self.failed.clear();
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

/// Returns the wait after a failure that follows `earlier` others: doubles each time, less a jitter of up to a half, so
/// that messages that failed together are not retried together.
fn backoff(earlier: i32) -> Duration {
    let doublings = u32::try_from(earlier).unwrap_or_default().min(16);
    let longest = MIN_BACKOFF.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    longest.mul_f64(rand::random_range(0.5..=1.0)).max(MIN_BACKOFF)
}

/// The body of a request.
#[derive(Serialize)]
struct ResultMessage {
    face_id: Option<String>,
    confidence: Option<f32>,
    camera_id: String,
    location: String,
    timestamp: String,
    key: String,
}

/// Why a message was not delivered; contains nothing of the message.
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

/// Returns the `Retry-After` of a busy API, in seconds or as a date.
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
            assert_eq!(health.failed(7, None, now), None);
        }
        assert_eq!(health.failed(8, None, now), None);
        assert_eq!(health.failed(9, None, now), None);
        assert!(!health.is_paused(now));
        assert_eq!(health.failed(10, None, now), Some(MIN_BACKOFF));
        assert!(health.is_paused(now) && !health.is_paused(now + MIN_BACKOFF));

        // Each further window that fails as a whole is followed by a longer pause, up to the longest.
        let mut later = now;
        let pauses: Vec<Duration> = (0..10)
            .map(|_| {
                later += MAX_BACKOFF;
                (0..MAX_IN_FLIGHT)
                    .filter_map(|id| health.failed(i64::try_from(id).unwrap(), None, later))
                    .sum()
            })
            .collect();
        assert!(pauses[9] >= MAX_BACKOFF / 2 && pauses[9] <= MAX_BACKOFF, "{pauses:?}");

        assert!(health.succeeded());
        assert!(!health.is_paused(later) && !health.succeeded());
        assert_eq!(health.failed(7, None, later), None);
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
        assert_eq!(health.failed(1, Some(Duration::from_secs(7)), now), Some(Duration::from_secs(7)));
        assert!(
            health.is_paused(now + Duration::from_secs(6)) && !health.is_paused(now + Duration::from_secs(7))
        );
        // The end of a pause is not brought forward.
        assert_eq!(health.failed(2, Some(Duration::from_secs(3)), now), None);
        assert!(health.is_paused(now + Duration::from_secs(6)));
    }
}
