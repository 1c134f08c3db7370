//! Progress messages while TensorRT builds an engine for the model and the device, which takes minutes the first time and would
//! look like a hang.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gst::{glib, prelude::*};

/// Time between two messages.
pub const PERIOD: Duration = Duration::from_secs(5);

const CODE: &str = "tensorrt-engine";

/// Returns the default folder for engines, in the user's cache.
pub fn default_cache() -> PathBuf {
    glib::user_cache_dir().join("facepipe").join("tensorrt")
}

/// Posts progress messages (code `tensorrt-engine`) until it is dropped.
pub struct BuildProgress {
    element: gst::Element,
    model: String,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl BuildProgress {
    /// Posts the first message and starts a thread for the others. Without a thread, only the first and the last are posted.
    pub fn begin(element: &gst::Element, model: &Path, cache: &Path, period: Duration) -> Self {
        let model = model.file_name().unwrap_or_default().display().to_string();
        let text = format!(
            "TensorRT opens {model}. If {} has no engine for this device yet, it builds one, which takes minutes, once",
            cache.display()
        );
        post(element, gst::ProgressType::Start, &text);
        let (stop, stopped) = mpsc::channel();
        let weak = element.downgrade();
        let name = model.clone();
        let begun = Instant::now();
        let report = move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                let Some(element) = weak.upgrade() else { return };
                let seconds = begun.elapsed().as_secs();
                let text = format!("TensorRT is still working on {name} after {seconds} s; this is no hang");
                post(&element, gst::ProgressType::Continue, &text);
            }
        };
        let thread = thread::Builder::new().name("facepipe-engine".into()).spawn(report).ok();
        Self { element: element.clone(), model, stop: Some(stop), thread }
    }
}

impl Drop for BuildProgress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends when the channel is closed; a panic in it was already printed.
            let _ = thread.join();
        }
        post(&self.element, gst::ProgressType::Complete, &format!("TensorRT is done with {}", self.model));
    }
}

fn post(element: &gst::Element, kind: gst::ProgressType, text: &str) {
    // Fails only without a bus.
    let _ = element.post_message(gst::message::Progress::builder(kind, CODE, text).src(element).build());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_build_is_reported_from_start_to_end() {
        gst::init().unwrap();
        let element = gst::ElementFactory::make("identity").build().unwrap();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let (model, cache) = (Path::new("/models/version-RFB-640.onnx"), Path::new("/var/cache/engines"));
        let notice = BuildProgress::begin(&element, model, cache, Duration::from_millis(5));
        let mut messages = Vec::new();
        let mut next = |expected: gst::ProgressType| {
            let message =
                bus.timed_pop_filtered(gst::ClockTime::from_seconds(10), &[gst::MessageType::Progress]);
            let message = message.unwrap();
            let gst::MessageView::Progress(progress) = message.view() else { unreachable!() };
            let (kind, code, text) = progress.get();
            assert_eq!((kind, code), (expected, CODE), "{text}");
            messages.push(text.to_string());
        };
        next(gst::ProgressType::Start);
        next(gst::ProgressType::Continue);
        next(gst::ProgressType::Continue);
        drop(notice);
        let last = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Progress])).last().unwrap();
        let gst::MessageView::Progress(last) = last.view() else { unreachable!() };
        assert_eq!(last.get().0, gst::ProgressType::Complete);
        assert!(
            messages[0].contains("version-RFB-640.onnx") && messages[0].contains("/var/cache/engines"),
            "{messages:?}"
        );
        assert!(messages[1].contains("no hang"), "{messages:?}");
    }
}
