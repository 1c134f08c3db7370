//! Recognition requests for the crops of a video, several in flight, with results in order of arrival.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use tokio::runtime::Runtime;

use crate::{
    client::{Client, ClientError, Face, Recognition, Settings},
    runtime,
};

/// Interval between attempts to reach an unavailable server.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A face crop with its origin.
#[derive(Debug)]
pub struct Crop {
    /// Time since the start of the source, seconds.
    pub seconds: f64,
    /// Capture time, RFC 3339; only for live sources.
    pub captured_at: Option<String>,
    /// Id of the track.
    pub track: Option<i32>,
    /// `[left, top, right, bottom]` in pixels of the frame.
    pub bounding_box: [u32; 4],
    /// Detection confidence, 0 to 1.
    pub score: f64,
    /// The encoded crop.
    pub picture: Bytes,
}

/// A crop with the faces that the server found in it.
pub type CropResult = (Crop, Result<Vec<Face>, ClientError>);

/// A pool of requests in flight.
pub struct RequestPool {
    runtime: Runtime,
    client: Client,
    /// Time during which requests to an unreachable server are repeated.
    retry_limit: Duration,
    sender: Sender<CropResult>,
    receiver: Receiver<CropResult>,
    in_flight: usize,
}

impl RequestPool {
    /// Checks server and token, then creates the pool. For a live source requests are not repeated, since newer faces have
    /// arrived by then.
    ///
    /// # Errors
    /// The server cannot be reached or refuses the token.
    pub fn new(settings: Settings, live: bool) -> Result<Self> {
        let runtime = runtime()?;
        runtime.block_on(Client::new(&settings)?.dry_run(Bytes::from_static(b"-")))?;
        let (retry_limit, settings) = if live {
            (Duration::ZERO, Settings { retry_limit: Duration::ZERO, ..settings })
        } else {
            (settings.request_timeout, settings)
        };
        let (sender, receiver) = channel();
        Ok(Self { client: Client::new(&settings)?, runtime, retry_limit, sender, receiver, in_flight: 0 })
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns whether no request is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Submits a crop for recognition.
    pub fn submit(&mut self, crop: Crop) {
        self.in_flight += 1;
        let (client, sender, retry_limit) = (self.client.clone(), self.sender.clone(), self.retry_limit);
        self.runtime.spawn(async move {
            let started = Instant::now();
            let answer = loop {
                match client.recognize(Recognition::GetResults, crop.picture.clone(), None, Some(1)).await {
                    Err(ClientError::Unreachable { .. })
                        if started.elapsed() + RETRY_INTERVAL < retry_limit =>
                    {
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                    answer => break answer.map(|results| results.faces),
                }
            };
            // The receiver is gone when the program ends.
            let _ = sender.send((crop, answer));
        });
    }

    /// Returns the next result, if one arrives within `wait`.
    pub fn next_result(&mut self, wait: Duration) -> Option<CropResult> {
        let answer = self.receiver.recv_timeout(wait).ok()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(answer)
    }
}
