//! GStreamer elements that find, crop and upload faces at the edge.
//!
//! | element | does |
//! |---|---|
//! | `facedetect` | finds faces in raw video and attaches them to the frames as metadata |
//! | `facetrack` | gives each face an id that stays the same from frame to frame |
//! | `facecrop` | crops faces as small JPEG or WebP pictures |
//! | `facesink-http` | uploads the pictures to the backend |
//! | `faceoverlay` | draws boxes and names of the faces |
//!
//! Each is also registered with the prefix `facepipe-`, under which no other plugin can hide it. The crate is
//! built as the plugin `libgstfacepipe.so`, and as a Rust library for programs that bring the elements with
//! them:
//!
//! ```
//! # fn main() -> Result<(), gst::glib::BoolError> {
//! gst::init().map_err(|e| gst::glib::bool_error!("{e}"))?;
//! gstfacepipe::register_static()?;
//! assert!(gst::ElementFactory::find("facepipe-facedetect").is_some());
//! # Ok(())
//! # }
//! ```

use std::sync::OnceLock;

use gst::glib;

#[cfg(feature = "v1_24")]
mod analytics;
pub mod best_shot;
mod capture_time;
pub mod crop;
pub mod crop_pipeline;
mod crop_properties;
mod custom_meta;
pub mod detection_mark;
mod detection_meta;
pub mod facecrop;
pub mod facedetect;
pub mod faceoverlay;
pub mod facesink_http;
pub mod facetrack;
pub mod frame;
mod missing_detector;
pub mod results;
pub mod roi;
pub mod timeline;
pub mod track;
pub mod track_events;
pub mod upload;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    facedetect::register(plugin)?;
    facetrack::register(plugin)?;
    facecrop::register(plugin)?;
    faceoverlay::register(plugin)?;
    facesink_http::register(plugin)
}

/// Registers an element's type under its name and under `facepipe-<name>`.
fn register_both(plugin: &gst::Plugin, name: &str, element: glib::Type) -> Result<(), glib::BoolError> {
    for name in [name, &format!("facepipe-{name}")] {
        gst::Element::register(Some(plugin), name, gst::Rank::NONE, element)?;
    }
    Ok(())
}

/// Sets a property; GObject has checked type and range.
fn set<'a, T: glib::value::FromValue<'a>>(field: &mut T, value: &'a glib::Value) {
    if let Ok(value) = value.get() {
        *field = value;
    }
}

/// Lists the counts that are not zero, each with its description, in a sentence; `None` where all are zero.
pub fn counts_summary<const N: usize>(counts: [(u64, String); N]) -> Option<String> {
    let listed: Vec<String> = counts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, description)| format!("{count} {description}"))
        .collect();
    (!listed.is_empty()).then(|| listed.join(", "))
}

/// Registers the elements in this process without a plugin file; further calls change nothing. [`gst::init`] must
/// have been called.
///
/// # Errors
///
/// GStreamer refused the registration.
pub fn register_static() -> Result<(), glib::BoolError> {
    // A second registration would replace the factories under elements that exist.
    static REGISTERED: OnceLock<Result<(), glib::BoolError>> = OnceLock::new();
    REGISTERED.get_or_init(plugin::plugin_register_static).clone()
}

mod plugin {
    use super::plugin_init;

    gst::plugin_define!(
        facepipe,
        env!("CARGO_PKG_DESCRIPTION"),
        plugin_init,
        concat!(env!("CARGO_PKG_VERSION"), "-", env!("FACEPIPE_COMMIT")),
        "MIT/X11",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_REPOSITORY")
    );
}

#[cfg(test)]
mod tests {
    use gst::prelude::*;

    #[test]
    fn a_second_registration_leaves_elements_their_factories() {
        gst::init().unwrap();
        super::register_static().unwrap();
        let element = gst::ElementFactory::make("facepipe-facedetect").build().unwrap();
        super::register_static().unwrap();
        let another = gst::ElementFactory::make("facepipe-facedetect").build().unwrap();
        for element in [element, another] {
            assert_eq!(element.factory().unwrap().plugin().unwrap().plugin_name(), "facepipe");
        }
    }
}
