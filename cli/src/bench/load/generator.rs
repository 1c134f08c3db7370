//! Generates load: clients that send after each response (closed loop), or requests at a fixed rate (open loop).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    Call, is_fatal,
    tally::{Row, Tally},
};
use crate::{
    client::{Client, ClientError, Recognition},
    interrupt, progress,
};

/// Camera and location of stored detections.
const CAMERA_ID: &str = "bench-load";
const LOCATION: &str = "bench";

/// Consecutive unreachable requests, beyond those in flight, after which the server is given up.
const MAX_UNREACHABLE: u64 = 20;
/// The same during warm-up.
const MAX_UNREACHABLE_WARM_UP: u64 = 1;

/// Sends requests of one kind to one server.
#[derive(Debug, Clone)]
pub struct LoadGenerator(Arc<Workload>);

#[derive(Debug)]
struct Workload {
    client: Client,
    call: Call,
    /// At least one.
    pictures: Vec<Bytes>,
}

/// Concurrency, rate and limits of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct LoadProfile {
    /// Maximum number of requests in flight.
    pub concurrency: u16,
    /// Requests started per second; none for a closed loop.
    pub rate: Option<f64>,
    /// Total number of requests; none for as many as fit into the duration.
    pub requests: Option<u64>,
    /// Time after which no request is started.
    pub duration: Option<Duration>,
}

/// Why the run ended.
#[derive(Debug)]
pub enum StopReason {
    /// All requests were sent and answered.
    AllSent,
    /// The user interrupted the run.
    Interrupted,
    /// The server cannot be reached or refuses the token.
    Failed(ClientError),
}

/// A request that was answered or failed.
pub struct CompletedRequest {
    /// Time from the (scheduled) start until the response was read.
    pub took: Duration,
    /// Bytes of its pictures.
    pub bytes: u64,
    /// Number of faces found; none for calls that detect no faces.
    pub outcome: Result<Option<usize>, ClientError>,
}

/// Hands out request numbers until the limits are reached.
#[derive(Debug)]
struct RequestBudget {
    next: AtomicU64,
    requests: Option<u64>,
    until: Option<Instant>,
}

impl RequestBudget {
    fn new(profile: &LoadProfile, started: Instant) -> Self {
        let until = profile.duration.and_then(|duration| started.checked_add(duration));
        Self { next: AtomicU64::new(0), requests: profile.requests, until }
    }

    /// Returns the number of a request that starts at `at`; none when a limit is reached.
    fn next_number(&self, at: Instant) -> Option<u64> {
        if self.until.is_some_and(|until| at >= until) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.requests.is_none_or(|requests| number < requests).then_some(number)
    }
}

impl LoadGenerator {
    /// Creates a generator that sends `pictures` in turn.
    pub fn new(client: Client, call: Call, pictures: Vec<Bytes>) -> Self {
        Self(Arc::new(Workload { client, call, pictures }))
    }

    /// Sends requests that are not measured.
    pub async fn warm_up(&self, concurrency: u16, requests: u64) -> StopReason {
        let profile = LoadProfile { concurrency, rate: None, requests: Some(requests), duration: None };
        let bar = progress::bar(requests.try_into().unwrap_or_default(), "Warming");
        let (_, ended) = self.send_all(&profile, MAX_UNREACHABLE_WARM_UP, &bar).await;
        bar.finish_and_clear();
        ended
    }

    /// Sends requests and counts the responses.
    pub async fn measure(&self, profile: &LoadProfile) -> (Row, StopReason) {
        let total =
            profile.requests.unwrap_or_else(|| profile.duration.map_or(0, |duration| duration.as_secs()));
        let bar = progress::bar(total.try_into().unwrap_or_default(), "Sending");
        let started = Instant::now();
        let max_unreachable = MAX_UNREACHABLE + u64::from(profile.concurrency);
        let (tally, ended) = self.send_all(profile, max_unreachable, &bar).await;
        bar.finish_and_clear();
        (tally.into_row(profile, started.elapsed()), ended)
    }

    /// Sends requests until a limit is reached, the user interrupts, or `max_unreachable` consecutive requests do not reach
    /// the server.
    async fn send_all(
        &self,
        profile: &LoadProfile,
        max_unreachable: u64,
        bar: &ProgressBar,
    ) -> (Tally, StopReason) {
        let started = Instant::now();
        let budget = Arc::new(RequestBudget::new(profile, started));
        let (sender, mut completed) = mpsc::unbounded_channel();
        // Dropping the set aborts its tasks.
        let mut senders = JoinSet::new();
        match profile.rate {
            Some(rate) => {
                let concurrency = profile.concurrency.into();
                senders.spawn(self.clone().open_loop(rate, concurrency, started, budget, sender));
            }
            None => {
                for _ in 0..profile.concurrency {
                    senders.spawn(self.clone().closed_loop(Arc::clone(&budget), sender.clone()));
                }
                drop(sender);
            }
        }
        let mut tally = Tally::new();
        let mut unreachable = 0;
        loop {
            let request = tokio::select! {
                request = completed.recv() => request,
                () = interrupt::wait() => return (tally, StopReason::Interrupted),
            };
            let Some(CompletedRequest { took, bytes, outcome }) = request else {
                return (tally, StopReason::AllSent);
            };
            unreachable =
                if matches!(outcome, Err(ClientError::Unreachable { .. })) { unreachable + 1 } else { 0 };
            let gone = unreachable >= max_unreachable;
            match outcome {
                Err(error) if gone || is_fatal(&error) => return (tally, StopReason::Failed(error)),
                outcome => tally.count(&CompletedRequest { took, bytes, outcome }),
            }
            match profile.requests {
                Some(_) => bar.inc(1),
                None => bar.set_position(started.elapsed().as_secs()),
            }
        }
    }

    async fn closed_loop(
        self,
        budget: Arc<RequestBudget>,
        completed: mpsc::UnboundedSender<CompletedRequest>,
    ) {
        loop {
            let started = Instant::now();
            let Some(number) = budget.next_number(started) else { return };
            if completed.send(self.send_one(number, started).await).is_err() {
                return;
            }
        }
    }

    async fn open_loop(
        self,
        rate: f64,
        concurrency: usize,
        started: Instant,
        budget: Arc<RequestBudget>,
        completed: mpsc::UnboundedSender<CompletedRequest>,
    ) {
        let permits = Arc::new(Semaphore::new(concurrency));
        let mut in_flight = JoinSet::new();
        let mut after = Duration::ZERO;
        let gap = Duration::from_secs_f64(1.0 / rate);
        loop {
            // Scheduled start, however slow the server is.
            let due = started + after;
            after += gap;
            let Some(number) = budget.next_number(due) else { break };
            tokio::time::sleep_until(due.into()).await;
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { break };
            let (generator, completed) = (self.clone(), completed.clone());
            in_flight.spawn(async move {
                // The receiver is gone when the run has ended.
                let _ = completed.send(generator.send_one(number, due).await);
                drop(permit);
            });
            while in_flight.try_join_next().is_some() {}
        }
        in_flight.join_all().await;
    }

    /// Sends request `number`, timed from `started`.
    async fn send_one(&self, number: u64, started: Instant) -> CompletedRequest {
        let Workload { client, call, .. } = &*self.0;
        let picture = self.picture(number);
        let next = self.picture(number + 1);
        let mut bytes = picture.len();
        let outcome = match call {
            Call::GetResults => faces(client.recognize(Recognition::GetResults, picture, None, None).await),
            Call::StoreResults => {
                let call = Recognition::StoreResults { camera_id: CAMERA_ID, location: LOCATION };
                faces(client.recognize(call, picture, None, None).await)
            }
            Call::Verify => {
                bytes += next.len();
                client.verify(picture, next).await.map(|verification| Some(verification.faces.len()))
            }
            Call::DryRun => client.dry_run(picture).await.map(|()| None),
        };
        CompletedRequest { took: started.elapsed(), bytes: bytes.try_into().unwrap_or(u64::MAX), outcome }
    }

    fn picture(&self, number: u64) -> Bytes {
        let pictures = &self.0.pictures;
        let count = u64::try_from(pictures.len()).unwrap_or(u64::MAX).max(1);
        let index = usize::try_from(number % count).unwrap_or_default();
        pictures.get(index).cloned().unwrap_or_default()
    }
}

fn faces(results: Result<crate::client::Results, ClientError>) -> Result<Option<usize>, ClientError> {
    results.map(|results| Some(results.faces.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_ends_with_the_requests_or_the_time() {
        let started = Instant::now();
        let profile = |requests, seconds: Option<u64>| LoadProfile {
            concurrency: 1,
            rate: None,
            requests,
            duration: seconds.map(Duration::from_secs),
        };
        let budget = RequestBudget::new(&profile(Some(2), None), started);
        assert_eq!([(); 3].map(|()| budget.next_number(started)), [Some(0), Some(1), None]);
        let budget = RequestBudget::new(&profile(None, Some(5)), started);
        let at = |seconds| budget.next_number(started + Duration::from_secs(seconds));
        assert_eq!((at(0), at(4), at(5), at(4)), (Some(0), Some(1), None, Some(2)));
        let budget = RequestBudget::new(&profile(Some(1), Some(5)), started);
        assert_eq!(budget.next_number(started + Duration::from_secs(6)), None);
    }
}
