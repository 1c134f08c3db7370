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
const PAUSE: Duration = Duration::from_millis(500);

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
pub type Answer = (Crop, Result<Vec<Face>, ClientError>);

/// The questions that are under way.
pub struct Questions {
    runtime: Runtime,
    client: Client,
    /// How long a server that is away is asked again.
    patience: Duration,
    sender: Sender<Answer>,
    receiver: Receiver<Answer>,
    open: usize,
}

impl Questions {
    /// Makes sure of server and token: better now than after the first minutes. Of a live source, no question is asked
    /// twice: meanwhile the next face has come.
    ///
    /// # Errors
    /// The server cannot be reached or refuses the token.
    pub fn new(settings: Settings, live: bool) -> Result<Self> {
        let runtime = runtime()?;
        runtime.block_on(Client::new(&settings)?.receive_only(Bytes::from_static(b"-")))?;
        let (patience, settings) = if live {
            (Duration::ZERO, Settings { patience: Duration::ZERO, ..settings })
        } else {
            (settings.answer_limit, settings)
        };
        let (sender, receiver) = channel();
        Ok(Self { client: Client::new(&settings)?, runtime, patience, sender, receiver, open: 0 })
    }

    /// Questions without an answer.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Whether every question is answered.
    pub fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// Asks who is on a crop.
    pub fn ask(&mut self, crop: Crop) {
        self.open += 1;
        let (client, sender, patience) = (self.client.clone(), self.sender.clone(), self.patience);
        self.runtime.spawn(async move {
            let begun = Instant::now();
            let answer = loop {
                match client.recognize(Recognition::GetResults, crop.picture.clone(), None).await {
                    Err(ClientError::Unreachable { .. }) if begun.elapsed() + PAUSE < patience => {
                        tokio::time::sleep(PAUSE).await;
                    }
                    answer => break answer.map(|results| results.faces),
                }
            };
            // Nobody listens any more where the program ends.
            let _ = sender.send((crop, answer));
        });
    }

    /// The next answer, if there is one within this time.
    pub fn answer(&mut self, wait: Duration) -> Option<Answer> {
        let answer = self.receiver.recv_timeout(wait).ok()?;
        self.open = self.open.saturating_sub(1);
        Some(answer)
    }
}
