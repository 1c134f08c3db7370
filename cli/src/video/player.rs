//! Plays a source to its end: builds the pipeline, shows how far it is, takes failures off the bus, and ends in good order
//! on Ctrl-C, so that what is written meanwhile is whole.

use std::{
    sync::{
        Arc,
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
const END_LIMIT: Duration = Duration::from_secs(30);

/// Which part of the source is played, in its own time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Part {
    /// Frames up to this one, it included, were processed by an earlier run.
    pub after: Option<gst::ClockTime>,
    /// Frames from this one on are not wanted.
    pub until: Option<gst::ClockTime>,
}

impl Part {
    /// The first seconds.
    pub fn first(seconds: Option<f64>) -> Self {
        let until = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Self { after: None, until: until.and_then(|until| gst::ClockTime::try_from(until).ok()) }
    }
}

/// What the pipeline's thread says about the frames that pass.
#[derive(Default)]
struct Passing {
    frames: AtomicU64,
    /// Nanoseconds of the source's own time.
    position: AtomicU64,
    beyond: AtomicBool,
}

/// A pipeline that plays a source. Dropping it stops it.
pub struct Player {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    source: Source,
    bar: ProgressBar,
    has_length: bool,
    passing: Arc<Passing>,
    begun: Instant,
    is_ending: bool,
    /// Until when what is on its way may take.
    deadline: Option<Instant>,
    obeys_interrupts: bool,
    interrupted: bool,
    failure: Option<anyhow::Error>,
}

/// Makes GStreamer and the project's elements ready.
///
/// # Errors
/// GStreamer is not whole.
pub fn prepare() -> Result<()> {
    gst::init().context("GStreamer cannot be initialised")?;
    gst::glib::set_application_name("facepipe");
    gstfacepipe::register_static().context("the elements cannot be registered")
}

impl Player {
    /// A pipeline from the source through the search for faces to `tail`, written as for `gst-launch-1.0`.
    ///
    /// # Errors
    /// An element is missing.
    pub fn of_faces(
        source: &Source,
        options: &FaceOptions,
        part: Part,
        label: &'static str,
        tail: &str,
    ) -> Result<Self> {
        let player = Self::new(source, part, label, &format!("{} ! {tail}", FaceOptions::DESCRIPTION))?;
        options.configure(&player.pipeline, source)?;
        Ok(player)
    }

    /// A pipeline from the source to `tail`.
    ///
    /// # Errors
    /// An element is missing.
    pub fn new(source: &Source, part: Part, label: &'static str, tail: &str) -> Result<Self> {
        let description = format!(
            "{} ! queue name=entry max-size-buffers=4 max-size-bytes=0 max-size-time=0 ! {tail}",
            source.description()
        );
        let pipeline = gst::parse::launch(&description)
            .context("GStreamer lacks something (`facepipe doctor` says what to install)")?
            .downcast::<gst::Pipeline>()
            .map_err(|_| anyhow!("the description gave no pipeline"))?;
        source.configure(&pipeline)?;
        let passing = Arc::new(Passing::default());
        let entry =
            pipeline.by_name("entry").and_then(|queue| queue.static_pad("sink")).context("no entry")?;
        watch(&entry, &passing, part);
        let bar = if source.is_live() { progress::spinner(label) } else { progress::bar(0, label) };
        Ok(Self {
            bus: pipeline.bus().context("a pipeline without a bus")?,
            pipeline,
            source: source.clone(),
            bar,
            has_length: false,
            passing,
            begun: Instant::now(),
            is_ending: false,
            deadline: None,
            obeys_interrupts: true,
            interrupted: false,
            failure: None,
        })
    }

    /// An element of the description.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn element(&self, name: &str) -> Result<gst::Element> {
        self.pipeline.by_name(name).with_context(|| format!("no element {name}"))
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
            while let Some(message) = self.bus.pop() {
                if let gst::MessageView::Error(error) = message.view() {
                    return Err(self.failure_of(error));
                }
            }
            return Err(anyhow!("the pipeline cannot be started"));
        }
        Ok(())
    }

    /// Waits at most so long for something to happen, and hands the elements' own messages to `told`. True: it has ended.
    pub fn step(&mut self, wait: Duration, mut told: impl FnMut(&gst::StructureRef)) -> bool {
        self.show_progress();
        if self.obeys_interrupts && interrupt::requested() && !self.interrupted {
            self.interrupted = true;
            self.end_soon();
        }
        if self.passing.beyond.load(Ordering::Relaxed) {
            self.end();
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
                    if !at_source {
                        return true;
                    }
                    self.end_soon();
                }
                gst::MessageView::Warning(warning) => {
                    self.print(&format!("Warning: {}", warning.error().message()))
                }
                gst::MessageView::Info(info) => self.print(info.error().message()),
                gst::MessageView::Latency(_) => {
                    let _ = self.pipeline.recalculate_latency();
                }
                gst::MessageView::Element(element) => {
                    if let Some(structure) = element.structure() {
                        told(structure);
                    }
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
        // It waits for its turn behind the frames, maybe for long.
        self.pipeline.call_async(|pipeline| {
            if let Some(pad) = pipeline.by_name("entry").and_then(|queue| queue.static_pad("sink")) {
                pad.send_event(gst::event::Eos::new());
            }
        });
    }

    fn end_soon(&mut self) {
        self.deadline.get_or_insert_with(|| Instant::now() + END_LIMIT);
        self.end();
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
        self.passing.frames.load(Ordering::Relaxed)
    }

    /// How much of the source was played, seconds.
    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.passing.position.load(Ordering::Relaxed)).as_secs_f64()
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
        let stopped = self.pipeline.set_state(gst::State::Null);
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
        self.bar.set_position(self.passing.position.load(Ordering::Relaxed) / 1_000_000_000);
    }

    fn failure_of(&self, error: &gst::message::Error) -> anyhow::Error {
        let what = error.error();
        if is_at_source(error.src()) {
            return self.source.failure(&what).into();
        }
        if named(error.src()).any(|name| name == "output") {
            // GStreamer's words end with a full stop, and name the file.
            return Failure::Output(format!("{} (is the disk full?)", what.message().trim_end_matches('.')))
                .into();
        }
        anyhow!("{}", what.message())
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// The names of an object and of what it is in, from the inside.
fn named(object: Option<&gst::Object>) -> impl Iterator<Item = String> {
    std::iter::successors(object.cloned(), |object| object.parent()).map(|object| object.name().to_string())
}

fn is_at_source(object: Option<&gst::Object>) -> bool {
    named(object).any(|name| name.starts_with("source"))
}

/// Counts the frames that enter, and keeps out those that are not wanted.
fn watch(entry: &gst::Pad, passing: &Arc<Passing>, part: Part) {
    let passing = Arc::clone(passing);
    entry.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let Some(buffer) = info.buffer() else { return gst::PadProbeReturn::Ok };
        let time = pad.sticky_event::<gst::event::Segment>(0).and_then(|event| {
            event.segment().downcast_ref::<gst::ClockTime>()?.to_running_time(buffer.pts()?)
        });
        if let Some(time) = time {
            if part.until.is_some_and(|until| time >= until) {
                passing.beyond.store(true, Ordering::Relaxed);
                return gst::PadProbeReturn::Drop;
            }
            passing.position.store(time.nseconds(), Ordering::Relaxed);
            if part.after.is_some_and(|after| time <= after) {
                return gst::PadProbeReturn::Drop;
            }
        }
        passing.frames.fetch_add(1, Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
}
