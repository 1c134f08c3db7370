//! How far a download is: a bar on a terminal, elsewhere a line when it starts, every few seconds, and at its end.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Where no bar can be shown, downloads from this many bytes on have lines of their own; smaller ones are over at once.
const MIN_LINE_BYTES: u64 = 1 << 20;
/// The time between two lines.
const INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one download.
pub struct Progress {
    label: String,
    bar: ProgressBar,
    /// In bytes; none where nobody says.
    total: Option<u64>,
    done: u64,
    /// When the last line was written; none before the first.
    said: Option<Instant>,
}

impl Progress {
    /// `total` in bytes, where it is known.
    pub fn new(label: String, total: Option<u64>) -> Self {
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_message(label.clone());
        let template = if total.is_some() {
            "{msg:<32} {wide_bar} {bytes}/{total_bytes} {eta:>4}"
        } else {
            "{msg:<32} {spinner} {bytes}"
        };
        // The template is a constant; where it could not be parsed, indicatif's own look does as well.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let mut progress = Self { label, bar, total, done: 0, said: None };
        if progress.bar.is_hidden() && total.is_some_and(|bytes| bytes >= MIN_LINE_BYTES) {
            progress.say("downloading");
        }
        progress
    }

    /// `done` bytes are there.
    pub fn set(&mut self, done: u64) {
        // What is watched from outside may be counted twice for a moment, while it is moved.
        self.done = self.total.map_or(done, |total| done.min(total));
        self.bar.set_position(self.done);
        if !self.bar.is_hidden() {
            return;
        }
        match self.said {
            Some(said) if said.elapsed() >= INTERVAL => self.say("downloading"),
            None if self.done >= MIN_LINE_BYTES => self.say("downloading"),
            _ => {}
        }
    }

    /// Nothing more comes; what was announced is said to be there, or how far it came.
    pub fn end(mut self, whole: bool) {
        self.bar.finish_and_clear();
        if self.said.is_some() {
            self.say(if whole { "downloaded" } else { "broke off" });
        }
    }

    fn say(&mut self, what: &str) {
        self.said = Some(Instant::now());
        let done = HumanBytes(self.done);
        match self.total {
            Some(total) => eprintln!("{what} {}: {done} of {}", self.label, HumanBytes(total)),
            None => eprintln!("{what} {}: {done}", self.label),
        }
    }
}
