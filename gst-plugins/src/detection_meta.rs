//! The details of a detection that converters keep: `GstVideoRegionOfInterestMeta` loses its parameter structures in
//! GStreamer 1.20 and 1.22 wherever frames are converted or scaled.
//!
//! There is one custom meta for each region of a frame, found by the region's rectangle. It has the tags of
//! `GstVideoRegionOfInterestMeta` and is scaled by the same arithmetic, so that both are kept, moved and dropped
//! together.

use std::{ffi::CStr, sync::OnceLock};

use gst::{glib, glib::translate::IntoGlib};

use crate::{
    custom_meta::{self, Content, CustomMeta, Registration, Transform},
    roi::FaceRegion,
};

/// What a region's parameter structures say.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct DetectionDetails {
    /// Left, top, width and height of the region, pixels of the frame.
    rectangle: [u32; 4],
    /// The detector's score, 0 to 1.
    pub confidence: f64,
    predicted: glib::ffi::gboolean,
    candidate: glib::ffi::gboolean,
}

impl DetectionDetails {
    /// Returns whether the box is a tracker's prediction rather than a detection in this frame.
    pub fn is_predicted(&self) -> bool {
        self.predicted != glib::ffi::GFALSE
    }

    fn is_candidate(&self) -> bool {
        self.candidate != glib::ffi::GFALSE
    }
}

/// Adds the details of a face, or of a candidate, to its frame.
pub fn attach(buffer: &mut gst::BufferRef, face: &FaceRegion, candidate: bool) {
    let details = DetectionDetails {
        rectangle: face.rectangle().into(),
        confidence: face.confidence,
        predicted: face.predicted.into_glib(),
        candidate: candidate.into_glib(),
    };
    custom_meta::attach(buffer, details);
}

/// Finds the details of the face, or of the candidate, with this rectangle: left, top, width, height.
pub fn find(
    buffer: &gst::BufferRef,
    rectangle: (u32, u32, u32, u32),
    candidate: bool,
) -> Option<DetectionDetails> {
    custom_meta::contents::<DetectionDetails>(buffer).find(|details| {
        details.rectangle == <[u32; 4]>::from(rectangle) && details.is_candidate() == candidate
    })
}

/// Removes the details of all candidates.
pub fn remove_candidates(buffer: &mut gst::BufferRef) {
    custom_meta::remove(buffer, |meta: &CustomMeta<DetectionDetails>| meta.content().is_candidate());
}

// SAFETY: the names are this type's alone, and the layout has never changed.
unsafe impl Content for DetectionDetails {
    const API: &'static CStr = c"GstFacepipeFaceFactsMetaAPI";
    const IMPLEMENTATION: &'static CStr = c"GstFacepipeFaceFactsMeta";
    const TAGS: &'static [&'static CStr] = &[c"video", c"orientation", c"size"];
    const UNIQUE: bool = false;
    const INITIAL: Self = Self {
        rectangle: [0; 4],
        confidence: 0.0,
        predicted: glib::ffi::GFALSE,
        candidate: glib::ffi::GFALSE,
    };

    fn registration() -> &'static OnceLock<Option<Registration>> {
        static REGISTRATION: OnceLock<Option<Registration>> = OnceLock::new();
        &REGISTRATION
    }

    fn transformed(self, transform: Transform) -> Option<Self> {
        match transform {
            Transform::Copy => Some(self),
            Transform::Scale { from: [old_width, old_height], to: [new_width, new_height] } => {
                let [left, top, width, height] = self.rectangle;
                let across = |pixels| scale(pixels, old_width, new_width);
                let down = |pixels| scale(pixels, old_height, new_height);
                Some(Self { rectangle: [across(left)?, down(top)?, across(width)?, down(height)?], ..self })
            }
            Transform::Other => None,
        }
    }
}

/// Scales as `GstVideoRegionOfInterestMeta` does: multiplied first, rounded down.
fn scale(pixels: u32, from: i32, to: i32) -> Option<u32> {
    let (from, to) = (u64::try_from(from).ok()?, u64::try_from(to).ok()?);
    u32::try_from((u64::from(pixels) * to).checked_div(from)?).ok()
}

#[cfg(test)]
mod tests {
    use facepipe_detector::BoundingBox;

    use super::*;

    const FACE: FaceRegion = FaceRegion {
        bounding_box: BoundingBox::from_size(3, 5, 40, 50),
        confidence: 0.875,
        track_id: None,
        predicted: true,
    };

    #[test]
    fn details_are_read_back_copied_and_removed() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::with_size(4).unwrap();
        attach(buffer.make_mut(), &FACE, false);
        attach(buffer.make_mut(), &FaceRegion { confidence: 0.5, predicted: false, ..FACE }, true);
        let mut copy = buffer.copy_deep().unwrap();
        let found = |buffer: &gst::BufferRef, candidate| {
            find(buffer, FACE.rectangle(), candidate).map(|found| (found.confidence, found.is_predicted()))
        };
        assert_eq!(found(&copy, false), Some((0.875, true)));
        assert_eq!(found(&copy, true), Some((0.5, false)), "at the same place");
        assert_eq!(find(&copy, (3, 5, 40, 51), false), None);
        remove_candidates(copy.make_mut());
        assert_eq!(found(&copy, false), Some((0.875, true)));
        assert_eq!(found(&copy, true), None);
    }

    #[test]
    fn details_follow_a_scaled_frame_and_not_a_rotated_one() {
        let details = DetectionDetails { rectangle: [3, 5, 40, 50], ..DetectionDetails::INITIAL };
        let scaled = details.transformed(Transform::Scale { from: [640, 480], to: [320, 120] });
        assert_eq!(scaled.map(|details| details.rectangle), Some([1, 1, 20, 12]));
        assert_eq!(details.transformed(Transform::Other), None);
    }
}
