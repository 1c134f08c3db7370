//! Plays a source to its end: builds the pipeline, shows how far it is, takes failures off the bus, and ends in good order
//! on Ctrl-C, so that what is written meanwhile is whole.

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

/// How long what is on its way may take after the end was asked for.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a recording may take to its first frame, if nothing else is said.
const FIRST_FRAME_LIMIT: Duration = Duration::from_secs(20);

/// Frames of a second of a recording that says nothing of times and rates (bare motion JPEG, for example).
const DEFAULT_RATE: gst::Fraction = gst::Fraction::new_raw(25, 1);

/// What the pipeline's thread says about the frames that pass.
#[derive(Default)]
struct FrameCounters {
    frames: AtomicU64,
    /// Nanoseconds of the source's own time.
    position: AtomicU64,
    past_end: AtomicBool,
}

/// A pipeline that plays a source. Dropping it stops it.
pub struct Player {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    source: Source,
    /// The file that the element `output` is to become, for messages.
    target: Option<PathBuf>,
    bar: ProgressBar,
    has_length: bool,
    counters: Arc<FrameCounters>,
    begun: Instant,
    first_frame_limit: Duration,
    is_ending: bool,
    /// Until when what is on its way may take.
    deadline: Option<Instant>,
    obeys_interrupts: bool,
    interrupted: bool,
    is_stopped: bool,
    failure: Option<anyhow::Error>,
}

impl Player {
    /// A pipeline from the source through the search for faces to `tail`, written as for `gst-launch-1.0`.
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

    /// A pipeline from the source to `tail`. Frames from the time `until` on are left out.
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
            begun: Instant::now(),
            first_frame_limit: FIRST_FRAME_LIMIT,
            is_ending: false,
            deadline: None,
            obeys_interrupts: true,
            interrupted: false,
            is_stopped: false,
            failure: None,
        })
    }

    /// An element of the description.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn element(&self, name: &str) -> Result<gst::Element> {
        super::element(&self.pipeline, name)
    }

    /// Has the element `output` write a file that will go to `target`.
    ///
    /// # Errors
    /// The description has no such element.
    pub fn write(&mut self, file: &Path, target: &Path) -> Result<()> {
        self.element("output")?.set_property("location", file);
        self.target = Some(target.to_owned());
        Ok(())
    }

    /// Plays on whatever the user says; for what remains to be done after Ctrl-C.
    pub fn ignore_interrupts(&mut self) {
        self.obeys_interrupts = false;
    }

    /// Begins.
    ///
    /// # Errors
    /// The source, or something behind it, cannot be opened.
    pub fn start(&mut self) -> Result<()> {
        self.begun = Instant::now();
        if self.pipeline.set_state(gst::State::Playing).is_err() {
            // The bus has it in better words than the change of state.
            while let Some(message) = self.bus.pop() {
                if let gst::MessageView::Error(error) = message.view() {
                    return Err(self.failure_of(error));
                }
            }
            return Err(anyhow!("{}: cannot be played", self.source));
        }
        Ok(())
    }

    /// Waits at most so long for something to happen. True: it has ended.
    pub fn step(&mut self, wait: Duration) -> bool {
        self.show_progress();
        if self.obeys_interrupts && interrupt::requested() && !self.interrupted {
            self.interrupted = true;
            if self.frames() == 0 {
                // Nothing is on its way.
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
            && self.begun.elapsed() > self.first_frame_limit
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
                    // What came before the source failed is brought to a good end.
                    if !at_source || self.frames() == 0 {
                        return true;
                    }
                    self.end_soon();
                }
                // That the detector is not the one that was wanted. Faces that it left out are counted otherwise.
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

    /// Asks for the end: no further frame enters, what is inside is finished.
    pub fn end(&mut self) {
        if std::mem::replace(&mut self.is_ending, true) {
            return;
        }
        // What is shown at its own speed meanwhile is not waited for.
        if let Some(view) = self.pipeline.by_name("view") {
            view.set_property("sync", false);
        }
        // The event waits for its turn behind the frames, maybe for long.
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

    /// Whether something failed.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether somebody waits for the end: it was interrupted, or something failed.
    pub fn is_urgent(&self) -> bool {
        self.deadline.is_some()
    }

    /// Ends it for a reason that the pipeline doesn't know.
    pub fn fail(&mut self, failure: impl Into<anyhow::Error>) {
        self.failure.get_or_insert(failure.into());
        self.end_soon();
    }

    /// Writes a line for people beside the progress bar.
    pub fn print(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Writes a line to the standard output.
    pub fn line(&self, text: impl AsRef<str>) {
        self.bar.suspend(|| output::line(text));
    }

    /// Says what was found until now, where nobody knows how long it will take.
    pub fn say(&self, text: impl Into<std::borrow::Cow<'static, str>>) {
        if self.source.is_live() {
            self.bar.set_message(text);
        }
    }

    /// What the detector has counted.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.pipeline)
    }

    /// Frames that have passed.
    pub fn frames(&self) -> u64 {
        self.counters.frames.load(Ordering::Relaxed)
    }

    /// The time of the last frame from the beginning of the source.
    pub fn position(&self) -> gst::ClockTime {
        gst::ClockTime::from_nseconds(self.counters.position.load(Ordering::Relaxed))
    }

    /// How much of the source was played, seconds.
    pub fn seconds(&self) -> f64 {
        Duration::from(self.position()).as_secs_f64()
    }

    /// How long that took.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Stops. True: it was ended by Ctrl-C.
    ///
    /// # Errors
    /// What failed meanwhile.
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
            // The operating system's own words stand at the end of the details, if anywhere.
            let details = error.debug().unwrap_or_default();
            let details = details.lines().last().unwrap_or_default().trim().to_owned();
            return Failure::output(
                target.display(),
                format_args!("{} ({details})", write_error_text(&what)),
            )
            .into();
        }
        match error.src() {
            // What it complains of at its start is its model.
            Some(element) if element.name() == "detect" => Failure::Input(what.message().to_owned()).into(),
            _ => anyhow!("{}", what.message()),
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if !self.is_stopped {
            // What fails now is of no interest any more.
            let _ = super::stop(&self.pipeline);
        }
    }
}

/// The time of a frame of a recording, by its number and the rate that the caps tell.
fn time_by_rate(pad: &gst::Pad, number: u64) -> Option<gst::ClockTime> {
    let caps = pad.current_caps();
    let rate = caps.as_ref().and_then(|caps| caps.structure(0)?.get::<gst::Fraction>("framerate").ok());
    let rate = rate.filter(|rate| rate.numer() > 0 && rate.denom() > 0).unwrap_or(DEFAULT_RATE);
    let second = u64::try_from(rate.denom()).ok()? * gst::ClockTime::SECOND.nseconds();
    number.mul_div_round(second, u64::try_from(rate.numer()).ok()?).map(gst::ClockTime::from_nseconds)
}

/// GStreamer's sentence without the name of the file, which is a temporary one.
fn write_error_text(error: &gst::glib::Error) -> &'static str {
    if error.matches(gst::ResourceError::NoSpaceLeft) { "no space left" } else { "writing failed" }
}

/// The names of an object and of what it is in, from the inside.
fn name_chain(object: Option<&gst::Object>) -> impl Iterator<Item = String> {
    std::iter::successors(object.cloned(), |object| object.parent()).map(|object| object.name().to_string())
}

fn is_at_source(object: Option<&gst::Object>) -> bool {
    name_chain(object).any(|name| name.starts_with("source"))
}

/// Counts the frames that enter, gives those a time that have none, and keeps out those that are not wanted.
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
                // When it came, as with every camera that doesn't tell.
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
                // `Drop` has GStreamer complain that the bindings have freed the buffer.
                return gst::PadProbeReturn::Handled;
            }
            counters.position.store(time.nseconds(), Ordering::Relaxed);
        }
        counters.frames.fetch_add(1, Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
}
