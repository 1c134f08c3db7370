//! The properties `margin`, `min-size`, `max-size` and `quality`, which `facecrop` and `facesink-http` share.

use gst::{glib, prelude::*};

use crate::crop::CropSettings;

/// The specifications; all may be changed while playing.
pub fn param_specs() -> Vec<glib::ParamSpec> {
    let defaults = CropSettings::default();
    vec![
        glib::ParamSpecDouble::builder("margin")
            .nick("Margin")
            .blurb(
                "Added around the face on each side, as a share of its width and height; ends at the frame",
            )
            .minimum(0.0)
            .maximum(10.0)
            .default_value(defaults.margin)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("min-size")
            .nick("Minimum size")
            .blurb("Leave out faces whose shorter side, without margin, is less than this (pixels)")
            .default_value(defaults.min_size)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("max-size")
            .nick("Maximum size")
            .blurb(
                "Shrink crops whose longer side, with margin, is more than this (pixels); none is enlarged",
            )
            .minimum(1)
            .maximum(u16::MAX.into())
            .default_value(defaults.max_size.into())
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("quality")
            .nick("Quality")
            .blurb("JPEG quality")
            .minimum(1)
            .maximum(100)
            .default_value(defaults.quality.into())
            .mutable_playing()
            .build(),
    ]
}

/// Takes a property's value, whose type and range GObject has checked; false for a property of another name.
pub fn set(settings: &mut CropSettings, value: &glib::Value, name: &str) -> bool {
    let pixels = || value.get::<u32>().ok();
    match name {
        "margin" => settings.margin = value.get().unwrap_or(settings.margin),
        "min-size" => settings.min_size = pixels().unwrap_or(settings.min_size),
        "max-size" => {
            settings.max_size = pixels().and_then(|p| p.try_into().ok()).unwrap_or(settings.max_size);
        }
        "quality" => settings.quality = pixels().and_then(|q| q.try_into().ok()).unwrap_or(settings.quality),
        _ => return false,
    }
    true
}

/// A property's value; `None` for a property of another name.
pub fn get(settings: &CropSettings, name: &str) -> Option<glib::Value> {
    Some(match name {
        "margin" => settings.margin.to_value(),
        "min-size" => settings.min_size.to_value(),
        "max-size" => u32::from(settings.max_size).to_value(),
        "quality" => u32::from(settings.quality).to_value(),
        _ => return None,
    })
}
