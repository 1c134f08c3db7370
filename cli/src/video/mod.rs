//! Playing video, through our own elements, which are linked into this program: what the programs with video have in
//! common, and the extraction of faces.

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

/// Makes GStreamer and our elements ready; further calls change nothing.
///
/// # Errors
/// GStreamer cannot be started.
pub fn start() -> Result<()> {
    gst::init().context("GStreamer cannot be started")?;
    gstfacepipe::register_static().context("the elements cannot be registered")
}

/// Makes a pipeline of a description as `gst-launch-1.0` takes it, with our elements under their long names.
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

/// How long a pipeline may take to stop before it is left to itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Stops a pipeline. One of whose elements does not come to an end is left behind, and ends with the program.
///
/// # Errors
/// It failed at stopping.
pub fn stop(pipeline: &gst::Pipeline) -> Result<()> {
    let (sender, stopped) = mpsc::channel();
    let pipeline = pipeline.clone();
    thread::spawn(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(pipeline.set_state(gst::State::Null));
    });
    match stopped.recv_timeout(STOP_TIMEOUT) {
        Ok(stopped) => stopped.map(drop).map_err(Into::into),
        Err(_) => Ok(()),
    }
}

/// An element of a pipeline by its name.
///
/// # Errors
/// The pipeline has none of that name.
pub fn element(pipeline: &gst::Pipeline, name: &str) -> Result<gst::Element> {
    pipeline.by_name(name).with_context(|| format!("no element {name}"))
}

/// The element that hands a pipeline's buffers to the program.
///
/// # Errors
/// The element is another one.
pub fn appsink(element: gst::Element) -> Result<AppSink> {
    element.downcast::<AppSink>().map_err(|element| anyhow!("{} is no appsink", element.name()))
}

/// Hands each sample to `take` as it comes, in the pipeline's thread.
pub fn each_sample(sink: &AppSink, take: impl Fn(&gst::Sample) + Send + 'static) {
    let new_sample = move |sink: &AppSink| {
        take(&sink.pull_sample().map_err(|_| gst::FlowError::Eos)?);
        Ok(gst::FlowSuccess::Ok)
    };
    sink.set_callbacks(AppSinkCallbacks::builder().new_sample(new_sample).build());
}

/// Something that a pipeline's threads and the program share.
pub type Shared<T> = Arc<Mutex<T>>;

/// Locks it; a thread that panicked meanwhile leaves it as it was.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
