//! Windows on the screen, by GStreamer's sinks. Each has its own pipeline, so that closing a window or failing to open one does
//! not disturb anything else.

use std::{env, sync::Arc};

use anyhow::{Context, Result};
use gst::prelude::*;
use gst_app::AppSrc;

use super::{Shared, lock};

/// Maximum size of a window, pixels; larger pictures are shrunk.
const MAX_WIDTH: i32 = 1280;
const MAX_HEIGHT: i32 = 960;

/// Returns whether to show windows; prints a message if there is no screen.
pub fn wanted(no_window: bool) -> bool {
    let screen =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| env::var_os(name).is_some_and(|v| !v.is_empty()));
    if !no_window && !screen {
        eprintln!("No window is shown: there is no screen (neither DISPLAY nor WAYLAND_DISPLAY is set).");
    }
    screen && !no_window
}

/// A window that shows pictures as they arrive. Clones share the window.
#[derive(Clone)]
pub struct Window {
    inner: Arc<Inner>,
}

struct Inner {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    source: AppSrc,
    state: Shared<State>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    /// Closed by the user.
    Closed,
    /// The screen is unavailable.
    Failed,
}

impl Window {
    /// Opens a window. `filter` are elements between the pictures and the screen, empty for none.
    ///
    /// # Errors
    /// An element is missing.
    pub fn open(filter: &str) -> Result<Self> {
        super::start()?;
        // ximagesink works on every X server, and its window has the size of the picture.
        let x11 = env::var_os("DISPLAY").is_some() && gst::ElementFactory::find("ximagesink").is_some();
        let sink = if x11 { "ximagesink sync=false" } else { "autovideosink sync=false" };
        let filter = if filter.is_empty() { String::new() } else { format!("{filter} ! ") };
        // Timestamps are those of the video and meaningless here: with QoS the pictures would be dropped as late.
        let pipeline = super::pipeline(&format!(
            "appsrc name=pictures format=time ! {filter}videoconvert qos=false ! videoscale qos=false ! \
             video/x-raw,pixel-aspect-ratio=1/1,width=[1,{MAX_WIDTH}],height=[1,{MAX_HEIGHT}] ! {sink}"
        ))
        .context("a window cannot be made (Debian: gstreamer1.0-x)")?;
        let source = super::element(&pipeline, "pictures")?.downcast::<AppSrc>().ok().context("no appsrc")?;
        let bus = pipeline.bus().context("a pipeline without a bus")?;
        let inner = Arc::new(Inner { pipeline, bus, source, state: Arc::new(State::Open.into()) });
        if inner.pipeline.set_state(gst::State::Playing).is_err() {
            eprintln!("The window cannot be opened; continuing without it.");
            *lock(&inner.state) = State::Failed;
        }
        Ok(Self { inner })
    }

    /// Shows a picture unless a previous one is still pending.
    pub fn show(&self, sample: &gst::Sample) {
        if *lock(&self.inner.state) != State::Open || self.inner.source.current_level_bytes() > 0 {
            return;
        }
        // Fails only if the window is gone, which `is_closed` detects.
        let _ = self.inner.source.push_sample(sample);
    }

    /// Queues a picture, for infrequent pictures.
    pub fn show_in_turn(&self, sample: &gst::Sample) {
        if *lock(&self.inner.state) == State::Open {
            let _ = self.inner.source.push_sample(sample);
        }
    }

    /// Returns an element of the filter.
    pub fn element(&self, name: &str) -> Option<gst::Element> {
        self.inner.pipeline.by_name(name)
    }

    /// Returns whether the user has closed the window; false for a window that failed.
    pub fn is_closed(&self) -> bool {
        let mut state = lock(&self.inner.state);
        while let Some(message) = self.inner.bus.pop() {
            if let gst::MessageView::Error(error) = message.view()
                && *state == State::Open
            {
                // The sinks report closing by this code; the message is localised.
                let closed = error.error().matches(gst::ResourceError::NotFound);
                *state = if closed { State::Closed } else { State::Failed };
                if !closed {
                    eprintln!("The window is gone, continuing without it: {}", error.error().message());
                }
            }
        }
        *state == State::Closed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}
