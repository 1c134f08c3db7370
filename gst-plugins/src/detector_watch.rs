//! Notices that nobody looks for faces before an element, which then has nothing to do and would never say so.

use crate::{roi, searched};

/// So many frames without a sign of a detector, from the first on, are worth a word: ten seconds of most cameras.
const FRAMES: u32 = 300;

const TOLD: &str = "facepipe-unsearched";

/// Looks for the signs of a detector on the frames of one element.
#[derive(Debug, Default)]
pub struct DetectorWatch {
    frames: u32,
    /// There is a detector, or it was told that there is none.
    done: bool,
}

impl DetectorWatch {
    /// Looks at a frame. What to tell, once: that no detector has looked at the frames so far.
    ///
    /// `facedetect` marks each frame. Other detectors mark only what they found, with regions of interest, of whatever kind:
    /// one is enough.
    pub fn frame(&mut self, frame: &gst::BufferRef) -> Option<String> {
        if self.done {
            return None;
        }
        if searched::was_searched(frame).is_some() || roi::has_regions(frame) {
            self.done = true;
            return None;
        }
        self.frames = self.frames.saturating_add(1);
        if self.frames < FRAMES { None } else { self.tell() }
    }

    /// The stream has ended. What to tell, once, as for a [frame](Self::frame).
    pub fn end(&mut self) -> Option<String> {
        if self.done || self.frames == 0 { None } else { self.tell() }
    }

    /// Takes an event: an element before this one may have told it already.
    pub fn event(&mut self, event: &gst::EventRef) {
        if let gst::EventView::CustomDownstream(_) = event.view() {
            self.done |= event.structure().is_some_and(|structure| structure.name() == TOLD);
        }
    }

    fn tell(&mut self) -> Option<String> {
        self.done = true;
        Some(format!(
            "nobody has looked for faces in the {} frames so far, so there is nothing to do here: put facedetect before \
             this element, or another detector that marks them as regions of interest of the type face (and ignore this if \
             there is one that has found nobody yet)",
            self.frames
        ))
    }
}

/// Lets the elements behind know that it was told.
pub fn told() -> gst::Event {
    gst::event::CustomDownstream::new(gst::Structure::new_empty(TOLD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_a_detector_is_enough_and_silence_is_told_once() {
        gst::init().unwrap();
        let plain = gst::Buffer::new();
        let count = |watch: &mut DetectorWatch, frame: &gst::Buffer| {
            (0..1000).filter(|_| watch.frame(frame).is_some()).count()
        };
        let mut watch = DetectorWatch::default();
        assert_eq!((count(&mut watch, &plain), watch.end()), (1, None));

        let mut searched_by_us = gst::Buffer::new();
        searched::mark(searched_by_us.make_mut(), false);
        let mut searched_by_others = gst::Buffer::new();
        gst_video::VideoRegionOfInterestMeta::add(searched_by_others.make_mut(), "vehicle", (0, 0, 9, 9));
        for sign in [searched_by_us, searched_by_others] {
            let mut watch = DetectorWatch::default();
            assert!((1..FRAMES).all(|_| watch.frame(&plain).is_none()));
            assert_eq!(watch.frame(&sign), None);
            assert_eq!((count(&mut watch, &plain), watch.end()), (0, None));
        }

        let mut watch = DetectorWatch::default();
        assert_eq!(watch.end(), None, "there was nothing to search");
        watch.frame(&plain);
        assert!(watch.end().is_some() && watch.end().is_none());

        let mut watch = DetectorWatch::default();
        watch.frame(&plain);
        watch.event(&gst::event::Eos::new());
        watch.event(&told());
        assert_eq!((count(&mut watch, &plain), watch.end()), (0, None));
    }
}
