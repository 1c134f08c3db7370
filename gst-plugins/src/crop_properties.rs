//! The properties of the crop pipeline (`margin`, `min-size`, `policy` and so on), which `facecrop` and `facesink-http` share.

use std::time::Duration;

use gst::{glib, prelude::*};

use crate::crop_pipeline::{ClockLimit, CropPipelineSettings};

/// `max-clock-offset` without a limit.
const ALWAYS: i32 = -1;

/// Returns the specifications of the properties.
pub fn param_specs() -> Vec<glib::ParamSpec> {
    let CropPipelineSettings { crop: defaults, policy, limits, clock, .. } = CropPipelineSettings::default();
    vec![
        glib::ParamSpecDouble::builder("margin")
            .nick("Margin")
            .blurb(
                "Margin around the face on each side, as a fraction of its width and height, clipped to the frame",
            )
            .minimum(0.0)
            .maximum(10.0)
            .default_value(defaults.margin)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("min-size")
            .nick("Minimum size")
            .blurb(
                "Leave out faces whose shorter side, without margin, is less than this (pixels; 0 = none). If unset, a 64th \
                 of the frame's longer side, from 20 to 30, see min-size of stats",
            )
            .default_value(defaults.min_size)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("max-size")
            .nick("Maximum size")
            .blurb(
                "Shrink crops whose longer side, with margin, is more than this (pixels); smaller ones are not enlarged",
            )
            .minimum(1)
            .maximum(u16::MAX.into())
            .default_value(defaults.max_size.into())
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("quality")
            .nick("Quality")
            .blurb("Encoding quality, on the scale of libjpeg or libwebp")
            .minimum(1)
            .maximum(100)
            .default_value(defaults.quality.into())
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("encoding", defaults.encoding)
            .nick("Encoding")
            .blurb("Image format of the crops; WebP takes a third fewer bytes and more CPU time")
            .mutable_ready()
            .build(),
        glib::ParamSpecEnum::builder_with_default("policy", policy)
            .nick("Policy")
            .blurb("Which faces become pictures; best needs track ids (facetrack): every face without one becomes a picture")
            .mutable_playing()
            .build(),
        glib::ParamSpecDouble::builder("improvement")
            .nick("Improvement")
            .blurb("With policy=best: the quality of a further picture of a track must be higher by this fraction")
            .minimum(0.0)
            .maximum(100.0)
            .default_value(limits.improvement)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("max-per-track")
            .nick("Maximum per track")
            .blurb("With policy=best: maximum number of pictures of one track, the last of them at its end")
            .minimum(1)
            .default_value(limits.max_per_track)
            .mutable_playing()
            .build(),
        glib::ParamSpecDouble::builder("min-quality")
            .nick("Minimum quality")
            .blurb(
                "Leave out pictures of a lower quality: 0.4 for size (full from 160 pixels), 0.3 for sharpness, 0.3 for the \
                 detector's score; halved if the face touches the frame's edge",
            )
            .minimum(0.0)
            .maximum(1.0)
            .default_value(limits.min_quality)
            .mutable_playing()
            .build(),
        glib::ParamSpecInt::builder("max-clock-offset")
            .nick("Maximum clock offset")
            .blurb(
                "Use the camera's clock for the time of capture while it is within this many seconds of this machine's, \
                 else this machine's (0 = never the camera's, -1 = always)",
            )
            .minimum(ALWAYS)
            .default_value(clock_seconds(clock))
            .mutable_playing()
            .build(),
        glib::ParamSpecDouble::builder("certainty")
            .nick("Certainty")
            .blurb(
                "With policy=best: a track sends nothing before two of its detections have this score, or one has 0.97; a \
                 track that ends before sends its best picture only if one had 0.9. Suppresses ears, necks and hair (0 = off)",
            )
            .minimum(0.0)
            .maximum(1.0)
            .default_value(limits.certainty)
            .mutable_playing()
            .build(),
    ]
}

/// Sets a property, whose type and range GObject has checked. Returns false for a property of another name.
pub fn set(settings: &mut CropPipelineSettings, value: &glib::Value, name: &str) -> bool {
    let CropPipelineSettings { crop, min_size, policy, limits, clock } = settings;
    match name {
        "margin" => crate::set(&mut crop.margin, value),
        "min-size" => *min_size = value.get().ok(),
        "max-size" => narrow(&mut crop.max_size, value),
        "quality" => narrow(&mut crop.quality, value),
        "encoding" => crate::set(&mut crop.encoding, value),
        "policy" => crate::set(policy, value),
        "improvement" => crate::set(&mut limits.improvement, value),
        "max-per-track" => crate::set(&mut limits.max_per_track, value),
        "min-quality" => crate::set(&mut limits.min_quality, value),
        "max-clock-offset" => {
            if let Ok(seconds) = value.get::<i32>() {
                *clock = match u64::try_from(seconds) {
                    Err(_) => ClockLimit::Always,
                    Ok(0) => ClockLimit::Never,
                    Ok(seconds) => ClockLimit::Within(Duration::from_secs(seconds)),
                };
            }
        }
        "certainty" => crate::set(&mut limits.certainty, value),
        _ => return false,
    }
    true
}

/// Sets a number of a type that GObject lacks.
fn narrow<T: TryFrom<u32>>(setting: &mut T, value: &glib::Value) {
    if let Some(value) = value.get::<u32>().ok().and_then(|value| value.try_into().ok()) {
        *setting = value;
    }
}

/// Returns a property; `None` for one of another name.
pub fn get(settings: &CropPipelineSettings, name: &str) -> Option<glib::Value> {
    let CropPipelineSettings { crop, min_size, policy, limits, clock } = settings;
    Some(match name {
        "margin" => crop.margin.to_value(),
        "min-size" => min_size.unwrap_or(crop.min_size).to_value(),
        "max-size" => u32::from(crop.max_size).to_value(),
        "quality" => u32::from(crop.quality).to_value(),
        "encoding" => crop.encoding.to_value(),
        "policy" => policy.to_value(),
        "improvement" => limits.improvement.to_value(),
        "max-per-track" => limits.max_per_track.to_value(),
        "min-quality" => limits.min_quality.to_value(),
        "max-clock-offset" => clock_seconds(*clock).to_value(),
        "certainty" => limits.certainty.to_value(),
        _ => return None,
    })
}

fn clock_seconds(limit: ClockLimit) -> i32 {
    match limit {
        ClockLimit::Never => 0,
        ClockLimit::Always => ALWAYS,
        ClockLimit::Within(limit) => i32::try_from(limit.as_secs()).unwrap_or(i32::MAX),
    }
}
