//! The programs that play video, each through our own elements, which are linked into this program.

pub mod extract;
mod frames;
mod source;

use anyhow::{Context, Result, anyhow};
use gst::prelude::*;

/// Makes a pipeline of a description as `gst-launch-1.0` takes it, with our elements under their long names.
///
/// # Errors
/// GStreamer cannot be started, or an element is missing: the message names it.
fn pipeline(description: &str) -> Result<gst::Pipeline> {
    gst::init().context("GStreamer cannot be started")?;
    gstfacepipe::register_static().context("the elements cannot be registered")?;
    gst::parse::launch(description)?
        .downcast::<gst::Pipeline>()
        .map_err(|_| anyhow!("the description gave no pipeline"))
}

/// An element of a pipeline by its name.
fn element(pipeline: &gst::Pipeline, name: &str) -> Result<gst::Element> {
    pipeline.by_name(name).with_context(|| format!("no element {name}"))
}
