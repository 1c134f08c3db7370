//! Video playback through our elements, linked into this program: shared code of the video commands, and `extract`.

mod animation;
pub mod extract;
pub mod faces;
pub mod panel;
pub mod player;
pub mod source;
pub mod window;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use gst::prelude::*;
use gst_app::{AppSink, AppSinkCallbacks};

/// Initialises GStreamer and registers our elements; idempotent.
///
/// # Errors
/// GStreamer cannot be started.
pub fn start() -> Result<()> {
    gst::init().context("GStreamer cannot be started")?;
    gstfacepipe::register_static().context("the elements cannot be registered")
}

/// Creates a pipeline from a description as for `gst-launch-1.0`, with the long names of our elements.
///
/// # Errors
/// GStreamer cannot be started, or an element is missing: the message names it.
pub fn pipeline(description: &str) -> Result<gst::Pipeline> {
    start()?;
    gst::parse::launch(description)
        .context("GStreamer lacks something (`facepipe doctor` says what to install)")?
        .downcast::<gst::Pipeline>()
        .map_err(|_| anyhow!("the description gave no pipeline"))
}

/// Time limit for stopping a pipeline.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Stops a pipeline. If it hangs, it is abandoned until the program ends.
///
/// # Errors
/// Stopping failed.
pub fn stop(pipeline: &gst::Pipeline) -> Result<()> {
    let (sender, stopped) = mpsc::channel();
    let pipeline = pipeline.clone();
    thread::spawn(move || {
        // The receiver may have timed out.
        let _ = sender.send(pipeline.set_state(gst::State::Null));
    });
    match stopped.recv_timeout(STOP_TIMEOUT) {
        Ok(stopped) => stopped.map(drop).map_err(Into::into),
        Err(_) => Ok(()),
    }
}

/// Returns an element of a pipeline by name.
///
/// # Errors
/// There is none of this name.
pub fn element(pipeline: &gst::Pipeline, name: &str) -> Result<gst::Element> {
    pipeline.by_name(name).with_context(|| format!("no element {name}"))
}

/// Casts an element to an appsink.
///
/// # Errors
/// It is a different element.
pub fn appsink(element: gst::Element) -> Result<AppSink> {
    element.downcast::<AppSink>().map_err(|element| anyhow!("{} is no appsink", element.name()))
}

/// Passes each sample to `take` on the streaming thread.
pub fn each_sample(sink: &AppSink, take: impl Fn(&gst::Sample) + Send + 'static) {
    let new_sample = move |sink: &AppSink| {
        take(&sink.pull_sample().map_err(|_| gst::FlowError::Eos)?);
        Ok(gst::FlowSuccess::Ok)
    };
    sink.set_callbacks(AppSinkCallbacks::builder().new_sample(new_sample).build());
}

/// Data shared with a pipeline's threads.
pub type Shared<T> = Arc<Mutex<T>>;

/// Locks shared data, ignoring poisoning.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
