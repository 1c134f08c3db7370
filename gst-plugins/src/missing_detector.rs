//! Warns once where no detector searches the frames before an element, which then has nothing to do.

use gst::prelude::*;

use crate::{detection_mark, roi};

/// Frames without a sign of a detector, from the first on, after which to warn: ten seconds of most cameras.
const FRAMES: u32 = 300;

const ALREADY_WARNED: &str = "facepipe-unsearched";

/// Looks for the signs of a detector on the frames of one element.
#[derive(Debug, Default)]
pub struct MissingDetectorWarning {
    frames: u32,
    /// There is a detector, or the warning was given.
    done: bool,
}

impl MissingDetectorWarning {
    /// Inspects a frame. Returns the warning, once, when too many frames have come without a sign of a detector.
    ///
    /// `facedetect` marks each frame. Other detectors only attach regions of interest, of any type: one is enough.
    pub fn inspect_frame(&mut self, frame: &gst::BufferRef) -> Option<String> {
        if self.done {
            return None;
        }
        if detection_mark::was_searched(frame).is_some() || roi::has_regions(frame) {
            self.done = true;
            return None;
        }
        self.frames = self.frames.saturating_add(1);
        if self.frames < FRAMES { None } else { self.warn_once() }
    }

    /// Returns the warning, once, at the end of a stream without a sign of a detector.
    pub fn end_of_stream(&mut self) -> Option<String> {
        if self.done || self.frames == 0 { None } else { self.warn_once() }
    }

    /// Handles an event: an element upstream may have warned already.
    pub fn handle_event(&mut self, event: &gst::EventRef) {
        if let gst::EventView::CustomDownstream(_) = event.view() {
            self.done |= event.structure().is_some_and(|structure| structure.name() == ALREADY_WARNED);
        }
    }

    fn warn_once(&mut self) -> Option<String> {
        self.done = true;
        Some(format!(
            "no detector has searched the {} frames so far, so this element has nothing to do: put facedetect before it, or \
             another detector that marks faces as regions of interest of the type face (and ignore this if there is one \
             that has found no face yet)",
            self.frames
        ))
    }
}

/// Posts a warning, if there is one, and keeps the elements downstream from repeating it. No lock may be held.
pub fn post(element: &impl IsA<gst::Element>, src_pad: &gst::Pad, warning: Option<String>) {
    let Some(warning) = warning else { return };
    gst::element_warning!(element, gst::StreamError::Failed, ("{warning}"));
    src_pad.push_event(already_warned());
}

/// Makes the event by which the elements downstream learn of the warning.
fn already_warned() -> gst::Event {
    gst::event::CustomDownstream::new(gst::Structure::new_empty(ALREADY_WARNED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_a_detector_is_enough_and_its_absence_is_reported_once() {
        gst::init().unwrap();
        let plain = gst::Buffer::new();
        let count = |watch: &mut MissingDetectorWarning, frame: &gst::Buffer| {
            (0..1000).filter(|_| watch.inspect_frame(frame).is_some()).count()
        };
        let mut watch = MissingDetectorWarning::default();
        assert_eq!((count(&mut watch, &plain), watch.end_of_stream()), (1, None));

        let mut searched_by_us = gst::Buffer::new();
        detection_mark::mark(searched_by_us.make_mut(), false);
        let mut searched_by_others = gst::Buffer::new();
        gst_video::VideoRegionOfInterestMeta::add(searched_by_others.make_mut(), "vehicle", (0, 0, 9, 9));
        for sign in [searched_by_us, searched_by_others] {
            let mut watch = MissingDetectorWarning::default();
            assert!((1..FRAMES).all(|_| watch.inspect_frame(&plain).is_none()));
            assert_eq!(watch.inspect_frame(&sign), None);
            assert_eq!((count(&mut watch, &plain), watch.end_of_stream()), (0, None));
        }

        let mut watch = MissingDetectorWarning::default();
        assert_eq!(watch.end_of_stream(), None, "there was nothing to search");
        watch.inspect_frame(&plain);
        assert!(watch.end_of_stream().is_some() && watch.end_of_stream().is_none());

        let mut watch = MissingDetectorWarning::default();
        watch.inspect_frame(&plain);
        watch.handle_event(&gst::event::Eos::new());
        watch.handle_event(&already_warned());
        assert_eq!((count(&mut watch, &plain), watch.end_of_stream()), (0, None));
    }
}
