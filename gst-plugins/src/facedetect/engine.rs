//! TensorRT builds an engine for the model and the device, which takes minutes the first time and looks like a hang: while
//! it lasts, progress messages say that it is none.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gst::{glib, prelude::*};

/// Between two messages.
pub const PERIOD: Duration = Duration::from_secs(5);

const CODE: &str = "tensorrt-engine";

/// Where engines are kept unless a folder is named: in the user's cache.
pub fn default_cache() -> PathBuf {
    glib::user_cache_dir().join("facepipe").join("tensorrt")
}

/// Posts progress messages (code `tensorrt-engine`) from its beginning until it is dropped.
pub struct BuildNotice {
    element: gst::Element,
    model: String,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl BuildNotice {
    /// Begins. Where no thread can be had, the first and the last message come all the same.
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
        let tell = move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                let Some(element) = weak.upgrade() else { return };
                let seconds = begun.elapsed().as_secs();
                let text = format!("TensorRT is still working on {name} after {seconds} s; this is no hang");
                post(&element, gst::ProgressType::Continue, &text);
            }
        };
        let thread = thread::Builder::new().name("facepipe-engine".into()).spawn(tell).ok();
        Self { element: element.clone(), model, stop: Some(stop), thread }
    }
}

impl Drop for BuildNotice {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends as soon as the channel is closed; a panic in it has been printed.
            let _ = thread.join();
        }
        post(&self.element, gst::ProgressType::Complete, &format!("TensorRT is done with {}", self.model));
    }
}

fn post(element: &gst::Element, kind: gst::ProgressType, text: &str) {
    // Without a bus nobody listens, and that is fine.
    let _ = element.post_message(gst::message::Progress::builder(kind, CODE, text).src(element).build());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_build_is_told_from_beginning_to_end() {
        gst::init().unwrap();
        let element = gst::ElementFactory::make("identity").build().unwrap();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let (model, cache) = (Path::new("/models/version-RFB-640.onnx"), Path::new("/var/cache/engines"));
        let notice = BuildNotice::begin(&element, model, cache, Duration::from_millis(5));
        let mut told = Vec::new();
        let mut next = |expected: gst::ProgressType| {
            let message =
                bus.timed_pop_filtered(gst::ClockTime::from_seconds(10), &[gst::MessageType::Progress]);
            let message = message.unwrap();
            let gst::MessageView::Progress(progress) = message.view() else { unreachable!() };
            let (kind, code, text) = progress.get();
            assert_eq!((kind, code), (expected, CODE), "{text}");
            told.push(text.to_string());
        };
        next(gst::ProgressType::Start);
        next(gst::ProgressType::Continue);
        next(gst::ProgressType::Continue);
        drop(notice);
        let last = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Progress])).last().unwrap();
        let gst::MessageView::Progress(last) = last.view() else { unreachable!() };
        assert_eq!(last.get().0, gst::ProgressType::Complete);
        assert!(
            told[0].contains("version-RFB-640.onnx") && told[0].contains("/var/cache/engines"),
            "{told:?}"
        );
        assert!(told[1].contains("no hang"), "{told:?}");
    }
}
