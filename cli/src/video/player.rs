//! Plays a source to its end: builds the pipeline, shows progress, handles bus messages, and ends the stream on Ctrl-C so that
//! written files are complete.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use gst::prelude::*;
use indicatif::ProgressBar;

use super::{
    faces::{Counts, FaceOptions},
    source::Source,
};
use crate::{exit::Failure, interrupt, output, progress};

/// Time limit for draining the pipeline after an interrupt or failure.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Default timeout for the first frame of a recording.
const FIRST_FRAME_LIMIT: Duration = Duration::from_secs(20);

/// Frame rate of recordings without timestamps and rate (for example raw motion JPEG).
const DEFAULT_RATE: gst::Fraction = gst::Fraction::new_raw(25, 1);

/// Frame counters updated by the streaming thread.
#[derive(Default)]
struct FrameCounters {
    frames: AtomicU64,
    /// Running time of the last frame, nanoseconds.
    position: AtomicU64,
    past_end: AtomicBool,
}

/// A pipeline that plays a source. Dropping it stops it.
pub struct Player {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    source: Source,
    /// Target of the element `output`, for messages.
    target: Option<PathBuf>,
    bar: ProgressBar,
    has_length: bool,
    counters: Arc<FrameCounters>,
    started: Instant,
    first_frame_limit: Duration,
    is_ending: bool,
    /// Deadline for draining the pipeline.
    deadline: Option<Instant>,
    obeys_interrupts: bool,
    interrupted: bool,
    is_stopped: bool,
    failure: Option<anyhow::Error>,
}

impl Player {
    /// Creates a pipeline from the source through face detection to `tail`, a `gst-launch-1.0` description.
    ///
    /// # Errors
    /// An element is missing.
    pub fn of_faces(source: &Source, options: &FaceOptions, label: &'static str, tail: &str) -> Result<Self> {
        let tail = format!("{} ! {tail}", FaceOptions::DESCRIPTION);
        let mut player = Self::new(source, options.until(), label, &tail)?;
        player.first_frame_limit = options.first_frame_limit();
        options.configure(&player.pipeline, source)?;
        Ok(player)
    }

    /// Creates a pipeline from the source to `tail`. Frames from `until` on are dropped.
    ///
    /// # Errors
    /// An element is missing.
    pub fn new(
        source: &Source,
        until: Option<gst::ClockTime>,
        label: &'static str,
        tail: &str,
    ) -> Result<Self> {
        super::start()?;
        let pipeline = super::pipeline(&format!(
            "{} ! queue name=entry max-size-buffers=4 max-size-bytes=0 max-size-time=0 ! {} ! {tail}",
            source.description(),
            source.upright()
        ))?;
        source.configure(&super::element(&pipeline, "source")?);
        let counters = Arc::new(FrameCounters::default());
        let entry =
            super::element(&pipeline, "entry")?.static_pad("sink").context("a queue without a pad")?;
        count_frames(&entry, &counters, until, matches!(source, Source::File(_)));
        let bar = if source.is_live() { progress::spinner(label) } else { progress::bar(0, label) };
        Ok(Self {
            bus: pipeline.bus().context("a pipeline without a bus")?,
            pipeline,
            source: source.clone(),
            target: None,
            bar,
            has_length: false,
            counters,
            started: Instant::now(),
            first_frame_limit: FIRST_FRAME_LIMIT,
            is_ending: false,
            deadline: None,
            obeys_interrupts: true,
            interrupted: false,
            is_stopped: false,
            failure: None,
        })
    }

    /// Returns an element of the pipeline.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn element(&self, name: &str) -> Result<gst::Element> {
        super::element(&self.pipeline, name)
    }

    /// Makes the element `output` write `file`, which will be renamed to `target`.
    ///
    /// # Errors
    /// The description has no such element.
    pub fn write(&mut self, file: &Path, target: &Path) -> Result<()> {
        self.element("output")?.set_property("location", file);
        self.target = Some(target.to_owned());
        Ok(())
    }

    /// Ignores Ctrl-C, for work after an interrupt.
    pub fn ignore_interrupts(&mut self) {
        self.obeys_interrupts = false;
    }

    /// Starts playing.
    ///
    /// # Errors
    /// The source, or something behind it, cannot be opened.
    pub fn start(&mut self) -> Result<()> {
        self.started = Instant::now();
        if self.pipeline.set_state(gst::State::Playing).is_err() {
            // The bus has a better message than the state change.
            while let Some(message) = self.bus.pop() {
                if let gst::MessageView::Error(error) = message.view() {
                    return Err(self.failure_of(error));
                }
            }
            return Err(anyhow!("{}: cannot be played", self.source));
        }
        Ok(())
    }

    /// Processes bus messages, waiting at most `wait`. Returns whether playback has ended.
    pub fn step(&mut self, wait: Duration) -> bool {
        self.show_progress();
        if self.obeys_interrupts && interrupt::requested() && !self.interrupted {
            self.interrupted = true;
            if self.frames() == 0 {
                // Nothing to drain.
                return true;
            }
            self.end_soon();
        }
        if self.counters.past_end.load(Ordering::Relaxed) {
            self.end();
        }
        if self.frames() == 0
            && !self.source.is_live()
            && !self.is_ending
            && self.started.elapsed() > self.first_frame_limit
        {
            self.failure = Some(self.source.no_frame_failure(self.first_frame_limit).into());
            return true;
        }
        let mut message = self.bus.timed_pop(gst::ClockTime::try_from(wait).unwrap_or(gst::ClockTime::ZERO));
        while let Some(next) = message {
            match next.view() {
                gst::MessageView::Eos(_) => return true,
                gst::MessageView::Error(error) => {
                    let at_source = is_at_source(error.src());
                    if self.failure.is_none() && !(at_source && self.is_ending) {
                        self.failure = Some(self.failure_of(error));
                    }
                    // Drain the frames before the source failed.
                    if !at_source || self.frames() == 0 {
                        return true;
                    }
                    self.end_soon();
                }
                // The detector is not the preferred one. Faces left out are reported separately.
                gst::MessageView::Info(info) if info.error().matches(gst::LibraryError::Settings) => {
                    eprintln!("{}", info.error().message());
                }
                gst::MessageView::Latency(_) => {
                    let _ = self.pipeline.recalculate_latency();
                }
                _ => {}
            }
            message = self.bus.pop();
        }
        self.deadline.is_some_and(|deadline| Instant::now() > deadline)
    }

    /// Ends the stream: no further frame enters, and the pipeline is drained.
    pub fn end(&mut self) {
        if std::mem::replace(&mut self.is_ending, true) {
            return;
        }
        // Do not wait for the window's playback speed.
        if let Some(view) = self.pipeline.by_name("view") {
            view.set_property("sync", false);
        }
        // Sending may block behind queued frames.
        self.pipeline.call_async(|pipeline| {
            if let Some(pad) = pipeline.by_name("entry").and_then(|queue| queue.static_pad("sink")) {
                pad.send_event(gst::event::Eos::new());
            }
        });
    }

    fn end_soon(&mut self) {
        self.deadline.get_or_insert_with(|| Instant::now() + END_TIMEOUT);
        self.end();
    }

    /// Returns whether something failed.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Returns whether playback was interrupted or failed.
    pub fn is_urgent(&self) -> bool {
        self.deadline.is_some()
    }

    /// Ends playback because of a failure outside the pipeline.
    pub fn fail(&mut self, failure: impl Into<anyhow::Error>) {
        self.failure.get_or_insert(failure.into());
        self.end_soon();
    }

    /// Prints a line to standard error above the progress bar.
    pub fn print(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Prints a line to standard output above the progress bar.
    pub fn line(&self, text: impl AsRef<str>) {
        self.bar.suspend(|| output::line(text));
    }

    /// Shows the state of a live source.
    pub fn say(&self, text: impl Into<std::borrow::Cow<'static, str>>) {
        if self.source.is_live() {
            self.bar.set_message(text);
        }
    }

    /// Returns the detector's counters.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.pipeline)
    }

    /// Returns the number of frames played.
    pub fn frames(&self) -> u64 {
        self.counters.frames.load(Ordering::Relaxed)
    }

    /// Returns the running time of the last frame.
    pub fn position(&self) -> gst::ClockTime {
        gst::ClockTime::from_nseconds(self.counters.position.load(Ordering::Relaxed))
    }

    /// Returns the duration played, seconds.
    pub fn seconds(&self) -> f64 {
        Duration::from(self.position()).as_secs_f64()
    }

    /// Returns the time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Stops the pipeline. Returns whether it was interrupted.
    ///
    /// # Errors
    /// The first failure.
    pub fn finish(&mut self) -> Result<bool> {
        self.bar.finish_and_clear();
        let stopped = super::stop(&self.pipeline);
        self.is_stopped = true;
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        stopped?;
        Ok(self.interrupted)
    }

    fn show_progress(&mut self) {
        if self.source.is_live() {
            return;
        }
        if !self.has_length
            && let Some(length) = self.pipeline.query_duration::<gst::ClockTime>()
        {
            self.has_length = true;
            self.bar.set_length(length.seconds());
        }
        self.bar.set_position(self.position().seconds());
    }

    fn failure_of(&self, error: &gst::message::Error) -> anyhow::Error {
        let what = error.error();
        if is_at_source(error.src()) {
            return self.source.failure(&what, &error.debug().unwrap_or_default()).into();
        }
        let mut names = name_chain(error.src());
        if let Some(target) = &self.target
            && names.any(|name| name == "output")
        {
            // The operating system's message, if any, is the last line of the details.
            let details = error.debug().unwrap_or_default();
            let details = details.lines().last().unwrap_or_default().trim().to_owned();
            return Failure::output(
                target.display(),
                format_args!("{} ({details})", write_error_text(&what)),
            )
            .into();
        }
        match error.src() {
            // At startup the detector fails because of its model.
            Some(element) if element.name() == "detect" => Failure::Input(what.message().to_owned()).into(),
            _ => anyhow!("{}", what.message()),
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if !self.is_stopped {
            // Failures no longer matter.
            let _ = super::stop(&self.pipeline);
        }
    }
}

/// Computes the timestamp of a frame from its number and the frame rate of the caps.
fn time_by_rate(pad: &gst::Pad, number: u64) -> Option<gst::ClockTime> {
    let caps = pad.current_caps();
    let rate = caps.as_ref().and_then(|caps| caps.structure(0)?.get::<gst::Fraction>("framerate").ok());
    let rate = rate.filter(|rate| rate.numer() > 0 && rate.denom() > 0).unwrap_or(DEFAULT_RATE);
    let second = u64::try_from(rate.denom()).ok()? * gst::ClockTime::SECOND.nseconds();
    number.mul_div_round(second, u64::try_from(rate.numer()).ok()?).map(gst::ClockTime::from_nseconds)
}

/// Describes a write error without the name of the temporary file.
fn write_error_text(error: &gst::glib::Error) -> &'static str {
    if error.matches(gst::ResourceError::NoSpaceLeft) { "no space left" } else { "writing failed" }
}

/// Returns the names of an object and its ancestors, innermost first.
fn name_chain(object: Option<&gst::Object>) -> impl Iterator<Item = String> {
    std::iter::successors(object.cloned(), |object| object.parent()).map(|object| object.name().to_string())
}

fn is_at_source(object: Option<&gst::Object>) -> bool {
    name_chain(object).any(|name| name.starts_with("source"))
}

/// Counts entering frames, adds missing timestamps, and drops frames from `until` on.
fn count_frames(
    entry: &gst::Pad,
    counters: &Arc<FrameCounters>,
    until: Option<gst::ClockTime>,
    is_file: bool,
) {
    let counters = Arc::clone(counters);
    let first = OnceLock::new();
    entry.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let Some(buffer) = info.buffer_mut() else { return gst::PadProbeReturn::Ok };
        if buffer.pts().is_none() {
            let time = if is_file {
                time_by_rate(pad, counters.frames.load(Ordering::Relaxed))
            } else {
                // Arrival time, as for every camera without timestamps.
                gst::ClockTime::try_from(first.get_or_init(Instant::now).elapsed()).ok()
            };
            buffer.make_mut().set_pts(time);
        }
        let time = pad.sticky_event::<gst::event::Segment>(0).and_then(|event| {
            event.segment().downcast_ref::<gst::ClockTime>()?.to_running_time(buffer.pts()?)
        });
        if let Some(time) = time {
            if until.is_some_and(|until| time >= until) {
                counters.past_end.store(true, Ordering::Relaxed);
                // With `Drop`, GStreamer complains that the bindings have freed the buffer.
                return gst::PadProbeReturn::Handled;
            }
            counters.position.store(time.nseconds(), Ordering::Relaxed);
        }
        counters.frames.fetch_add(1, Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
}
