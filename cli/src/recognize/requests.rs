//! Asks the server about crops of a video, several at a time, and hands out the answers as they come.

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

/// From one attempt to reach a server that is away to the next.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A picture of a face, and where it is from.
#[derive(Debug)]
pub struct Crop {
    /// When, from the beginning of the source.
    pub seconds: f64,
    /// The same as a date, RFC 3339; of live sources only.
    pub captured_at: Option<String>,
    /// Number of the track.
    pub track: Option<i32>,
    /// Left, top, right, bottom in pixels of the frame.
    pub bounding_box: [u32; 4],
    /// How sure the detector is, 0 to 1.
    pub score: f64,
    /// The encoded picture.
    pub picture: Bytes,
}

/// The faces that the server finds on a crop.
pub type CropResult = (Crop, Result<Vec<Face>, ClientError>);

/// The questions that are under way.
pub struct RequestPool {
    runtime: Runtime,
    client: Client,
    /// How long a server that is away is asked again.
    retry_limit: Duration,
    sender: Sender<CropResult>,
    receiver: Receiver<CropResult>,
    in_flight: usize,
}

impl RequestPool {
    /// Makes sure of server and token: better now than after the first minutes. Of a live source, no question is asked
    /// twice: meanwhile the next face has come.
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

    /// Questions without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether every question is answered.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Asks who is on a crop.
    pub fn submit(&mut self, crop: Crop) {
        self.in_flight += 1;
        let (client, sender, retry_limit) = (self.client.clone(), self.sender.clone(), self.retry_limit);
        self.runtime.spawn(async move {
            let begun = Instant::now();
            let answer = loop {
                match client.recognize(Recognition::GetResults, crop.picture.clone(), None).await {
                    Err(ClientError::Unreachable { .. })
                        if begun.elapsed() + RETRY_INTERVAL < retry_limit =>
                    {
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                    answer => break answer.map(|results| results.faces),
                }
            };
            // Nobody listens any more where the program ends.
            let _ = sender.send((crop, answer));
        });
    }

    /// The next answer, if there is one within this time.
    pub fn next_result(&mut self, wait: Duration) -> Option<CropResult> {
        let answer = self.receiver.recv_timeout(wait).ok()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(answer)
    }
}
