//! The mark that says whether a detector has searched a frame. Without it, a frame without faces would look like one that
//! was not searched.
//!
//! It is a custom meta without tags, so that elements that copy or convert frames pass it on.

use std::{ffi::CStr, sync::OnceLock};

use gst::{glib, glib::translate::IntoGlib};

use crate::custom_meta::{self, Content, Registration, Transform};

/// Marks a frame as searched, or as not searched.
pub fn mark(buffer: &mut gst::BufferRef, searched: bool) {
    custom_meta::attach(buffer, DetectionMark { searched: searched.into_glib() });
}

/// Returns whether a frame was searched; `None` where it has no mark.
pub fn was_searched(buffer: &gst::BufferRef) -> Option<bool> {
    custom_meta::contents::<DetectionMark>(buffer).next().map(|mark| mark.searched != glib::ffi::GFALSE)
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct DetectionMark {
    searched: glib::ffi::gboolean,
}

// SAFETY: the names are this type's alone, and the layout has never changed.
unsafe impl Content for DetectionMark {
    const API: &'static CStr = c"GstFacepipeSearchedMetaAPI";
    const IMPLEMENTATION: &'static CStr = c"GstFacepipeSearchedMeta";
    const TAGS: &'static [&'static CStr] = &[];
    const UNIQUE: bool = true;
    const INITIAL: Self = Self { searched: glib::ffi::GFALSE };

    fn registration() -> &'static OnceLock<Option<Registration>> {
        static REGISTRATION: OnceLock<Option<Registration>> = OnceLock::new();
        &REGISTRATION
    }

    /// Keeps the mark: a frame that is copied, scaled or converted was searched if the first was.
    fn transformed(self, _transform: Transform) -> Option<Self> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_meta::CustomMeta;

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
        assert_eq!(buffer.iter_meta::<CustomMeta<DetectionMark>>().count(), 1);
    }
}
