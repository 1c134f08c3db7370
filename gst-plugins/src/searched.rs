//! The mark by which a frame says whether somebody has looked for faces in it: without it, a frame in which
//! nobody was found is like one that nobody searched.
//!
//! It is a `GstMeta` of our own. It has no tags, so elements that
//! copy or convert frames hand it on.

use std::{fmt, sync::OnceLock};

use gst::{glib, glib::translate::*, prelude::*};

use crate::meta::Registered;

const API: &std::ffi::CStr = c"GstFacepipeSearchedMetaAPI";
const IMPLEMENTATION: &std::ffi::CStr = c"GstFacepipeSearchedMeta";

/// Marks a frame: whether it has been searched for faces.
pub fn mark(buffer: &mut gst::BufferRef, searched: bool) {
    if let Some(mut meta) = buffer.meta_mut::<SearchedMeta>() {
        meta.0.searched = searched.into_glib();
        return;
    }
    if let Some(meta) = registered().and_then(|registered| registered.add(buffer)) {
        meta.searched = searched.into_glib();
    }
}

/// Whether a frame has been searched; `None` where whoever made it doesn't say.
pub fn was_searched(buffer: &gst::BufferRef) -> Option<bool> {
    buffer.meta::<SearchedMeta>().map(|meta| meta.0.searched != glib::ffi::GFALSE)
}

#[repr(C)]
struct Raw {
    parent: gst::ffi::GstMeta,
    searched: glib::ffi::gboolean,
}

#[repr(transparent)]
struct SearchedMeta(Raw);

// SAFETY: a number that is only written through `&mut`.
unsafe impl Send for SearchedMeta {}
// SAFETY: as above.
unsafe impl Sync for SearchedMeta {}

// SAFETY: the type is a transparent wrapper of what is registered under this API.
unsafe impl MetaAPI for SearchedMeta {
    type GstType = Raw;

    fn meta_api() -> glib::Type {
        registered().map_or(glib::Type::INVALID, Registered::api)
    }
}

impl fmt::Debug for SearchedMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SearchedMeta").field(&self.0.searched).finish()
    }
}

/// Registers the meta once per process.
fn registered() -> Option<Registered<Raw>> {
    static REGISTERED: OnceLock<Option<Registered<Raw>>> = OnceLock::new();
    // SAFETY: `Raw` begins with a `GstMeta`, and the functions are its own.
    *REGISTERED
        .get_or_init(|| unsafe { Registered::new(API, IMPLEMENTATION, &[], Some(init), Some(transform)) })
}

unsafe extern "C" fn init(
    meta: *mut gst::ffi::GstMeta,
    _params: glib::ffi::gpointer,
    _buffer: *mut gst::ffi::GstBuffer,
) -> glib::ffi::gboolean {
    // SAFETY: GStreamer calls this with new memory of the registered size.
    unsafe { (*meta.cast::<Raw>()).searched = glib::ffi::GFALSE };
    glib::ffi::GTRUE
}

/// The mark stays true of a frame that is copied, scaled or converted.
unsafe extern "C" fn transform(
    to: *mut gst::ffi::GstBuffer,
    meta: *mut gst::ffi::GstMeta,
    _from: *mut gst::ffi::GstBuffer,
    _kind: glib::ffi::GQuark,
    _data: glib::ffi::gpointer,
) -> glib::ffi::gboolean {
    // SAFETY: GStreamer calls this with a meta of the registered size and a writable buffer.
    unsafe {
        let searched = (*meta.cast::<Raw>()).searched != glib::ffi::GFALSE;
        mark(gst::BufferRef::from_mut_ptr(to), searched);
    }
    glib::ffi::GTRUE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_read_back_changed_and_copied() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::with_size(4).unwrap();
        assert_eq!(was_searched(&buffer), None);
        mark(buffer.make_mut(), true);
        assert_eq!(was_searched(&buffer), Some(true));
        assert_eq!(was_searched(&buffer.copy_deep().unwrap()), Some(true));
        mark(buffer.make_mut(), false);
        assert_eq!(was_searched(&buffer), Some(false));
        assert_eq!(buffer.iter_meta::<SearchedMeta>().count(), 1);
    }
}
