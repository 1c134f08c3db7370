//! Progress of a download: a bar on a terminal, otherwise lines at the start, every few seconds and at the end.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Minimum size of downloads that are reported by lines, bytes.
const MIN_LINE_BYTES: u64 = 1 << 20;
/// Interval between lines.
const INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one download.
pub struct Progress {
    label: String,
    bar: ProgressBar,
    /// Total in bytes; none if unknown.
    total: Option<u64>,
    done: u64,
    /// Time of the last line; none before the first.
    said: Option<Instant>,
}

impl Progress {
    /// Starts reporting; `total` in bytes, if known.
    pub fn new(label: String, total: Option<u64>) -> Self {
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_message(label.clone());
        let template = if total.is_some() {
            "{msg:<32} {wide_bar} {bytes}/{total_bytes} {eta:>4}"
        } else {
            "{msg:<32} {spinner} {bytes}"
        };
        // The template is a constant; indicatif's default style would do.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let mut progress = Self { label, bar, total, done: 0, said: None };
        if progress.bar.is_hidden() && total.is_some_and(|bytes| bytes >= MIN_LINE_BYTES) {
            progress.say("downloading");
        }
        progress
    }

    /// Reports that `done` bytes have arrived.
    pub fn set(&mut self, done: u64) {
        // A file may be counted twice for a moment while a client moves it.
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

    /// Ends the report, successfully or not.
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
