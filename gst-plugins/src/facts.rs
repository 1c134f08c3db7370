//! What is known of a face beside its box, in a form that converters keep: `GstVideoRegionOfInterestMeta` loses its
//! parameter structures in GStreamer 1.20 and 1.22 wherever frames are converted or scaled.
//!
//! One `GstMeta` of our own for each region of a frame, found again by the region's rectangle. It has the tags of
//! `GstVideoRegionOfInterestMeta` and is scaled by the same arithmetic, so that both are kept, moved and dropped
//! together.

use std::{fmt, ops::ControlFlow, sync::OnceLock};

use gst::{buffer::BufferMetaForeachAction, glib, glib::translate::*, prelude::*};

use crate::meta::Registered;

const API: &std::ffi::CStr = c"GstFacepipeFaceFactsMetaAPI";
const IMPLEMENTATION: &std::ffi::CStr = c"GstFacepipeFaceFactsMeta";

/// What a region's parameters say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// Left, top, width and height of the region, pixels of the frame.
    pub rectangle: [u32; 4],
    /// The detector's score, 0 to 1.
    pub confidence: f64,
    /// Whether the face was not found in this frame, but is where a tracker believes it to be.
    pub predicted: bool,
    /// Whether the detector is not sure of it.
    pub candidate: bool,
}

/// Adds the facts about a region of a frame.
pub fn attach(buffer: &mut gst::BufferRef, facts: &Facts) {
    if let Some(meta) = registered().and_then(|registered| registered.add(buffer)) {
        meta.rectangle = facts.rectangle;
        meta.confidence = facts.confidence;
        meta.predicted = facts.predicted.into_glib();
        meta.candidate = facts.candidate.into_glib();
    }
}

/// The facts about the face, or the candidate, that has this rectangle.
pub fn of(buffer: &gst::BufferRef, rectangle: [u32; 4], candidate: bool) -> Option<Facts> {
    buffer
        .iter_meta::<FactsMeta>()
        .map(|meta| meta.facts())
        .find(|facts| facts.rectangle == rectangle && facts.candidate == candidate)
}

/// Removes the facts about all candidates.
pub fn remove_candidates(buffer: &mut gst::BufferRef) {
    buffer.foreach_meta_mut(|mut meta| {
        let facts = meta.downcast_ref::<FactsMeta>().map(|meta| meta.facts());
        let action = match facts.is_some_and(|facts| facts.candidate) {
            true => BufferMetaForeachAction::Remove,
            false => BufferMetaForeachAction::Keep,
        };
        ControlFlow::Continue(action)
    });
}

#[repr(C)]
struct Raw {
    parent: gst::ffi::GstMeta,
    rectangle: [u32; 4],
    confidence: f64,
    predicted: glib::ffi::gboolean,
    candidate: glib::ffi::gboolean,
}

#[repr(transparent)]
struct FactsMeta(Raw);

impl FactsMeta {
    fn facts(&self) -> Facts {
        let Raw { rectangle, confidence, predicted, candidate, .. } = self.0;
        let [predicted, candidate] = [predicted, candidate].map(|flag| flag != glib::ffi::GFALSE);
        Facts { rectangle, confidence, predicted, candidate }
    }
}

// SAFETY: numbers that are only written before anybody else sees the meta.
unsafe impl Send for FactsMeta {}
// SAFETY: as above.
unsafe impl Sync for FactsMeta {}

// SAFETY: the type is a transparent wrapper of what is registered under this API.
unsafe impl MetaAPI for FactsMeta {
    type GstType = Raw;

    fn meta_api() -> glib::Type {
        registered().map_or(glib::Type::INVALID, Registered::api)
    }
}

impl fmt::Debug for FactsMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts().fmt(f)
    }
}

/// Registers the meta once per process.
fn registered() -> Option<Registered<Raw>> {
    static REGISTERED: OnceLock<Option<Registered<Raw>>> = OnceLock::new();
    // SAFETY: `Raw` begins with a `GstMeta`, and the functions are its own.
    *REGISTERED.get_or_init(|| unsafe {
        Registered::new(
            API,
            IMPLEMENTATION,
            &[c"video", c"orientation", c"size"],
            Some(init),
            Some(transform),
        )
    })
}

unsafe extern "C" fn init(
    meta: *mut gst::ffi::GstMeta,
    _params: glib::ffi::gpointer,
    _buffer: *mut gst::ffi::GstBuffer,
) -> glib::ffi::gboolean {
    // SAFETY: GStreamer calls this with new memory of the registered size.
    unsafe {
        let raw = meta.cast::<Raw>();
        (*raw).rectangle = [0; 4];
        (*raw).confidence = 0.0;
        (*raw).predicted = glib::ffi::GFALSE;
        (*raw).candidate = glib::ffi::GFALSE;
    }
    glib::ffi::GTRUE
}

/// Follows copies of the frame, and its scaling; any other change, such as a rotation, ends what is known.
unsafe extern "C" fn transform(
    to: *mut gst::ffi::GstBuffer,
    meta: *mut gst::ffi::GstMeta,
    _from: *mut gst::ffi::GstBuffer,
    kind: glib::ffi::GQuark,
    data: glib::ffi::gpointer,
) -> glib::ffi::gboolean {
    // SAFETY: GStreamer calls this with a meta of the registered size and a writable buffer; for a scaling, `data`
    // is a `GstVideoMetaTransform` with both infos.
    unsafe {
        let mut facts = (*meta.cast::<FactsMeta>()).facts();
        if kind == gst_video::ffi::gst_video_meta_transform_scale_get_quark() {
            let scaling = &*data.cast::<gst_video::ffi::GstVideoMetaTransform>();
            let (before, after) = (&*scaling.in_info, &*scaling.out_info);
            let across = (before.width, after.width);
            let down = (before.height, after.height);
            let [left, top, width, height] = facts.rectangle;
            let moved = [(left, across), (top, down), (width, across), (height, down)].map(scale);
            let [Some(left), Some(top), Some(width), Some(height)] = moved else {
                return glib::ffi::GFALSE;
            };
            facts.rectangle = [left, top, width, height];
        } else if kind != glib::Quark::from_str("gst-copy").into_glib() {
            return glib::ffi::GFALSE;
        }
        attach(gst::BufferRef::from_mut_ptr(to), &facts);
    }
    glib::ffi::GTRUE
}

/// As `GstVideoRegionOfInterestMeta` does it: multiplied first, rounded down.
fn scale((pixels, (before, after)): (u32, (i32, i32))) -> Option<u32> {
    let (before, after) = (u64::try_from(before).ok()?, u64::try_from(after).ok()?);
    u32::try_from((u64::from(pixels) * after).checked_div(before)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts =
        Facts { rectangle: [3, 5, 40, 50], confidence: 0.875, predicted: true, candidate: false };

    #[test]
    fn facts_are_read_back_copied_and_removed() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::with_size(4).unwrap();
        let other = Facts { confidence: 0.5, predicted: false, candidate: true, ..FACTS };
        attach(buffer.make_mut(), &FACTS);
        attach(buffer.make_mut(), &other);
        let mut copy = buffer.copy_deep().unwrap();
        assert_eq!(of(&copy, FACTS.rectangle, false), Some(FACTS));
        assert_eq!(of(&copy, FACTS.rectangle, true), Some(other), "at the same place");
        assert_eq!(of(&copy, [3, 5, 40, 51], false), None);
        remove_candidates(copy.make_mut());
        assert_eq!(of(&copy, FACTS.rectangle, false), Some(FACTS));
        assert_eq!(of(&copy, FACTS.rectangle, true), None);
    }
}
