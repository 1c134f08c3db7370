//! Metas of our own on buffers: what registering one takes, whatever it holds. GStreamer's custom metas, which would do
//! without, came with 1.20.

use std::{
    ffi::{CStr, c_char},
    iter,
    marker::PhantomData,
    mem, ptr,
};

use gst::{glib, glib::translate::*};

/// A registered meta, whose memory is a `T`.
pub struct Registered<T> {
    info: *const gst::ffi::GstMetaInfo,
    memory: PhantomData<fn() -> T>,
}

// Not derived: what is copied is a pointer, whatever `T` is.
impl<T> Clone for Registered<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Registered<T> {}

// SAFETY: the information is written once, by GStreamer, before anybody has the pointer, and never freed.
unsafe impl<T> Send for Registered<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Registered<T> {}

impl<T> Registered<T> {
    /// Registers a meta of these names with the tags of what it depends on, once per process. `None` only if GStreamer
    /// refuses, of which it then warns.
    ///
    /// # Safety
    /// `T` is `repr(C)` and begins with a `GstMeta`. `init` sets all of its other fields, in memory that is new and of `T`'s
    /// size; `transform` takes the meta that it is given for a `T`. The names are this type's alone.
    pub unsafe fn new(
        api: &CStr,
        implementation: &CStr,
        tags: &[&CStr],
        init: gst::ffi::GstMetaInitFunction,
        transform: gst::ffi::GstMetaTransformFunction,
    ) -> Option<Self> {
        let mut tags: Vec<*const c_char> =
            tags.iter().map(|tag| tag.as_ptr()).chain(iter::once(ptr::null())).collect();
        // SAFETY: names and list of tags are terminated; size and functions are those of `T`, as the caller says. The
        // linked library and the plugin may both be in a process: the second takes what the first registered.
        let info = unsafe {
            let present = gst::ffi::gst_meta_get_info(implementation.as_ptr());
            if present.is_null() {
                let api = gst::ffi::gst_meta_api_type_register(api.as_ptr(), tags.as_mut_ptr());
                gst::ffi::gst_meta_register(
                    api,
                    implementation.as_ptr(),
                    mem::size_of::<T>(),
                    init,
                    None,
                    transform,
                )
            } else {
                present
            }
        };
        (!info.is_null()).then_some(Self { info, memory: PhantomData })
    }

    /// The type by which the meta is found on a buffer.
    pub fn api(self) -> glib::Type {
        // SAFETY: a registered information is never freed.
        unsafe { from_glib((*self.info).api) }
    }

    /// Adds one to a buffer, as `init` leaves it.
    pub fn add(self, buffer: &mut gst::BufferRef) -> Option<&mut T> {
        // SAFETY: `info` is registered with the size of `T`, so what is returned, unless null, points to a `T` within the
        // buffer, which is writable and outlives this borrow. `init` has set every field.
        unsafe {
            gst::ffi::gst_buffer_add_meta(buffer.as_mut_ptr(), self.info, ptr::null_mut())
                .cast::<T>()
                .as_mut()
        }
    }
}
