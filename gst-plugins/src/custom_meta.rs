//! Custom metas: plain Rust values on buffers, as a `GstMeta` each. GStreamer's own custom metas came with 1.20.

use std::{
    ffi::{CStr, c_char},
    fmt, iter, mem,
    ops::ControlFlow,
    ptr,
    sync::OnceLock,
};

use gst::{
    buffer::BufferMetaForeachAction,
    glib,
    glib::translate::*,
    meta::{MetaTransform as _, MetaTransformCopy},
    prelude::*,
};

/// What a custom meta holds.
///
/// # Safety
///
/// The names belong to this type alone, and are never used with another memory layout: a process may have the plugin and
/// the linked library, and the second uses what the first registered.
pub unsafe trait Content: Copy + fmt::Debug + Send + Sync + 'static {
    /// Name of the meta's API.
    const API: &'static CStr;
    /// Name of the implementation.
    const IMPLEMENTATION: &'static CStr;
    /// The properties that the meta depends on, such as `video` or `size`: elements that change one drop the meta or transform it.
    const TAGS: &'static [&'static CStr];
    /// Whether a buffer has at most one.
    const UNIQUE: bool;
    /// What a new meta holds until it is set.
    const INITIAL: Self;

    /// Returns the place of the registration, a static of the type's own.
    fn registration() -> &'static OnceLock<Option<Registration>>;

    /// Returns what a buffer gets that was made from the one with this content; `None`: nothing.
    fn transformed(self, transform: Transform) -> Option<Self>;
}

/// How one buffer was made from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// It is a copy.
    Copy,
    /// The frame was scaled.
    Scale {
        /// Width and height before, pixels.
        from: [i32; 2],
        /// Width and height after, pixels.
        to: [i32; 2],
    },
    /// In another way, such as a rotation.
    Other,
}

/// A registered meta.
#[derive(Debug, Clone, Copy)]
pub struct Registration(*const gst::ffi::GstMetaInfo);

// SAFETY: GStreamer writes the information once, before anybody has the pointer, and never frees it.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

/// The memory of a meta.
#[repr(C)]
pub struct Raw<T> {
    parent: gst::ffi::GstMeta,
    content: T,
}

/// A custom meta on a buffer.
#[repr(transparent)]
pub struct CustomMeta<T>(Raw<T>);

impl<T: Content> CustomMeta<T> {
    /// Returns what it holds.
    pub fn content(&self) -> T {
        self.0.content
    }
}

// SAFETY: content that is `Send` and `Sync`, and only written through `&mut`.
unsafe impl<T: Content> Send for CustomMeta<T> {}
// SAFETY: as above.
unsafe impl<T: Content> Sync for CustomMeta<T> {}

// SAFETY: the type is a transparent wrapper of what is registered under this API.
unsafe impl<T: Content> MetaAPI for CustomMeta<T> {
    type GstType = Raw<T>;

    fn meta_api() -> glib::Type {
        // SAFETY: the information of a registered meta is never freed.
        registration::<T>()
            .map_or(glib::Type::INVALID, |registered| unsafe { from_glib((*registered.0).api) })
    }
}

impl<T: Content> fmt::Debug for CustomMeta<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.content().fmt(f)
    }
}

/// Adds a meta to a buffer, or replaces the content of the one that it has where there can be only one.
pub fn attach<T: Content>(buffer: &mut gst::BufferRef, content: T) {
    if T::UNIQUE
        && let Some(mut meta) = buffer.meta_mut::<CustomMeta<T>>()
    {
        meta.0.content = content;
        return;
    }
    let Some(Registration(info)) = registration::<T>() else { return };
    // SAFETY: `info` is registered with the size of `Raw<T>`, so what is returned, unless null, points to a `Raw<T>` within
    // the buffer, which is writable and outlives this borrow. `init` has set its content.
    let raw = unsafe {
        gst::ffi::gst_buffer_add_meta(buffer.as_mut_ptr(), info, ptr::null_mut()).cast::<Raw<T>>().as_mut()
    };
    if let Some(raw) = raw {
        raw.content = content;
    }
}

/// Returns the contents of a buffer's metas, in the order in which they were attached.
pub fn contents<T: Content>(buffer: &gst::BufferRef) -> impl Iterator<Item = T> {
    buffer.iter_meta::<CustomMeta<T>>().map(|meta| meta.content())
}

/// Removes metas of any kind from a buffer.
pub fn remove<M: MetaAPI + 'static>(buffer: &mut gst::BufferRef, should_go: impl Fn(&M) -> bool) {
    buffer.foreach_meta_mut(|mut meta| {
        let goes = meta.downcast_ref::<M>().is_some_and(|meta| should_go(meta));
        ControlFlow::Continue(if goes {
            BufferMetaForeachAction::Remove
        } else {
            BufferMetaForeachAction::Keep
        })
    });
}

/// Registers the meta once per process. `None` only if GStreamer refuses, in which case it logs a warning.
fn registration<T: Content>() -> Option<Registration> {
    *T::registration().get_or_init(|| {
        let mut tags: Vec<*const c_char> =
            T::TAGS.iter().map(|tag| tag.as_ptr()).chain(iter::once(ptr::null())).collect();
        // SAFETY: names and list of tags are terminated; size and functions are those of `Raw<T>`, which begins with a
        // `GstMeta`.
        let info = unsafe {
            let present = gst::ffi::gst_meta_get_info(T::IMPLEMENTATION.as_ptr());
            if present.is_null() {
                let api = gst::ffi::gst_meta_api_type_register(T::API.as_ptr(), tags.as_mut_ptr());
                gst::ffi::gst_meta_register(
                    api,
                    T::IMPLEMENTATION.as_ptr(),
                    mem::size_of::<Raw<T>>(),
                    Some(init::<T>),
                    None,
                    Some(transform::<T>),
                )
            } else {
                present
            }
        };
        (!info.is_null()).then_some(Registration(info))
    })
}

unsafe extern "C" fn init<T: Content>(
    meta: *mut gst::ffi::GstMeta,
    _params: glib::ffi::gpointer,
    _buffer: *mut gst::ffi::GstBuffer,
) -> glib::ffi::gboolean {
    // SAFETY: GStreamer calls this with new memory of the registered size.
    unsafe { (&raw mut (*meta.cast::<Raw<T>>()).content).write(T::INITIAL) };
    glib::ffi::GTRUE
}

unsafe extern "C" fn transform<T: Content>(
    to: *mut gst::ffi::GstBuffer,
    meta: *mut gst::ffi::GstMeta,
    _from: *mut gst::ffi::GstBuffer,
    kind: glib::ffi::GQuark,
    data: glib::ffi::gpointer,
) -> glib::ffi::gboolean {
    // SAFETY: GStreamer calls this with a meta of the registered size and a writable buffer; for a scaling, `data` is a
    // `GstVideoMetaTransform` with both infos.
    unsafe {
        let transform = if kind == gst_video::ffi::gst_video_meta_transform_scale_get_quark() {
            let scaling = &*data.cast::<gst_video::ffi::GstVideoMetaTransform>();
            let size = |info: &gst_video::ffi::GstVideoInfo| [info.width, info.height];
            Transform::Scale { from: size(&*scaling.in_info), to: size(&*scaling.out_info) }
        } else if kind == MetaTransformCopy::quark().into_glib() {
            Transform::Copy
        } else {
            Transform::Other
        };
        match (*meta.cast::<Raw<T>>()).content.transformed(transform) {
            Some(content) => {
                attach(gst::BufferRef::from_mut_ptr(to), content);
                glib::ffi::GTRUE
            }
            None => glib::ffi::GFALSE,
        }
    }
}
