//! What is known of a face beside its box, in a form that converters keep: `GstVideoRegionOfInterestMeta` loses its
//! parameter structures in GStreamer 1.20 and 1.22 wherever frames are converted or scaled.
//!
//! One `GstMeta` of our own for each region of a frame, found again by the region's rectangle. It has the tags of
//! `GstVideoRegionOfInterestMeta` and is scaled by the same arithmetic, so that both are kept, moved and dropped
//! together.

use std::{ffi::c_char, fmt, mem, ops::ControlFlow, ptr, sync::OnceLock};

use gst::{buffer::BufferMetaForeachAction, glib, glib::translate::*, prelude::*};

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
    let Some(info) = registered() else { return };
    // SAFETY: `info` is registered with the size of `Raw`, so what is returned, unless null, points to a `Raw`
    // within the buffer, which is writable and outlives this borrow. `init` has set every field.
    unsafe {
        let meta = gst::ffi::gst_buffer_add_meta(buffer.as_mut_ptr(), info.0, ptr::null_mut()).cast::<Raw>();
        if let Some(meta) = meta.as_mut() {
            meta.rectangle = facts.rectangle;
            meta.confidence = facts.confidence;
            meta.predicted = facts.predicted.into_glib();
            meta.candidate = facts.candidate.into_glib();
        }
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
        // SAFETY: a registered information is never freed.
        registered().map_or(glib::Type::INVALID, |info| unsafe { from_glib((*info.0).api) })
    }
}

impl fmt::Debug for FactsMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts().fmt(f)
    }
}

#[derive(Clone, Copy)]
struct Info(*const gst::ffi::GstMetaInfo);

// SAFETY: it is written once, by GStreamer, before anybody has the pointer.
unsafe impl Send for Info {}
// SAFETY: as above.
unsafe impl Sync for Info {}

/// Registers the meta once per process. `None` only if GStreamer refuses, of which it then warns.
fn registered() -> Option<Info> {
    static INFO: OnceLock<Option<Info>> = OnceLock::new();
    *INFO.get_or_init(|| {
        // SAFETY: names and list of tags are terminated, the size is that of what the functions below expect. The
        // linked library and the plugin may both be in a process: the second takes what the first registered.
        unsafe {
            let present = gst::ffi::gst_meta_get_info(IMPLEMENTATION.as_ptr());
            if !present.is_null() {
                return Some(Info(present));
            }
            let mut tags: [*const c_char; 4] =
                [c"video".as_ptr(), c"orientation".as_ptr(), c"size".as_ptr(), ptr::null()];
            let api = gst::ffi::gst_meta_api_type_register(API.as_ptr(), tags.as_mut_ptr());
            let info = gst::ffi::gst_meta_register(
                api,
                IMPLEMENTATION.as_ptr(),
                mem::size_of::<Raw>(),
                Some(init),
                None,
                Some(transform),
            );
            (!info.is_null()).then_some(Info(info))
        }
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
