//! Windows on the screen, by GStreamer's own sinks. Each is a pipeline of its own: a window that is closed, or cannot be
//! opened, disturbs nothing else.

use std::{env, sync::Arc};

use anyhow::{Context, Result};
use gst::prelude::*;
use gst_app::AppSrc;

use super::{Shared, lock};

/// A window is at most so large, pixels; the picture is shrunk to it.
const MAX_WIDTH: i32 = 1280;
const MAX_HEIGHT: i32 = 960;

/// Whether windows are to be shown. Where there is no screen they are not, which is said once.
pub fn wanted(no_window: bool) -> bool {
    let screen =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| env::var_os(name).is_some_and(|v| !v.is_empty()));
    if !no_window && !screen {
        eprintln!("No window is shown: there is no screen (neither DISPLAY nor WAYLAND_DISPLAY is set).");
    }
    screen && !no_window
}

/// A window that shows pictures as they come. Clones show in the same one.
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
    /// By whoever looks at it.
    Closed,
    /// There is no such screen, or it has gone.
    Failed,
}

impl Window {
    /// Opens a window. `filter`: elements between the pictures and the screen, empty for none.
    ///
    /// # Errors
    /// An element is missing.
    pub fn open(filter: &str) -> Result<Self> {
        super::start()?;
        // ximagesink shows on every X server, and the size of its window is that of the picture.
        let x11 = env::var_os("DISPLAY").is_some() && gst::ElementFactory::find("ximagesink").is_some();
        let sink = if x11 { "ximagesink sync=false" } else { "autovideosink sync=false" };
        let filter = if filter.is_empty() { String::new() } else { format!("{filter} ! ") };
        // Pictures have the time of their video, which says nothing here: a sink's reports on quality of service (qos)
        // would have them dropped as late.
        let pipeline = super::pipeline(&format!(
            "appsrc name=pictures format=time ! {filter}videoconvert qos=false ! videoscale qos=false ! \
             video/x-raw,pixel-aspect-ratio=1/1,width=[1,{MAX_WIDTH}],height=[1,{MAX_HEIGHT}] ! {sink}"
        ))
        .context("a window cannot be made (Debian: gstreamer1.0-x)")?;
        let source = super::element(&pipeline, "pictures")?.downcast::<AppSrc>().ok().context("no appsrc")?;
        let bus = pipeline.bus().context("a pipeline without a bus")?;
        let inner = Arc::new(Inner { pipeline, bus, source, state: Arc::new(State::Open.into()) });
        if inner.pipeline.set_state(gst::State::Playing).is_err() {
            eprintln!("The window cannot be opened; it goes on without.");
            *lock(&inner.state) = State::Failed;
        }
        Ok(Self { inner })
    }

    /// Shows a picture, unless the screen is still busy with another.
    pub fn show(&self, sample: &gst::Sample) {
        if *lock(&self.inner.state) != State::Open || self.inner.source.current_level_bytes() > 0 {
            return;
        }
        // It only fails where the window is gone, which `closed` finds on the bus.
        let _ = self.inner.source.push_sample(sample);
    }

    /// Shows a picture after those that wait; for pictures that come seldom.
    pub fn show_in_turn(&self, sample: &gst::Sample) {
        if *lock(&self.inner.state) == State::Open {
            let _ = self.inner.source.push_sample(sample);
        }
    }

    /// An element of the filter.
    pub fn element(&self, name: &str) -> Option<gst::Element> {
        self.inner.pipeline.by_name(name)
    }

    /// Whether whoever looks at it has closed it. A window that failed is none that was closed.
    pub fn is_closed(&self) -> bool {
        let mut state = lock(&self.inner.state);
        while let Some(message) = self.inner.bus.pop() {
            if let gst::MessageView::Error(error) = message.view()
                && *state == State::Open
            {
                // That is how the sinks say it; its words are in the language of the system.
                let closed = error.error().matches(gst::ResourceError::NotFound);
                *state = if closed { State::Closed } else { State::Failed };
                if !closed {
                    eprintln!("The window is gone, it goes on without: {}", error.error().message());
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
