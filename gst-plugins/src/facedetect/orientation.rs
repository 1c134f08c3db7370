//! The orientation of video: by its tags, and by the elements that may have rotated it.

use gst::{glib, prelude::*};

/// Maximum number of upstream elements that are inspected.
const MAX_UPSTREAM: usize = 64;

/// Returns whether faces are upright in video of this `image-orientation`; mirrored ones are.
pub fn is_upright(orientation: &str) -> bool {
    matches!(orientation, "rotate-0" | "flip-rotate-0")
}

/// Returns whether an upstream element rotates the video, by the tags or by its own settings. Not all of them update the tags.
pub fn is_rotated_upstream(element: &gst::Element) -> bool {
    let elements = std::iter::successors(upstream(element), upstream);
    elements.take(MAX_UPSTREAM).any(|element| rotates(&element))
}

fn upstream(element: &gst::Element) -> Option<gst::Element> {
    let pad = element.static_pad("sink").or_else(|| element.sink_pads().into_iter().next())?;
    let peer = pad.peer()?;
    // A ghost pad of a bin has its target inside.
    let peer = match peer.downcast::<gst::GhostPad>() {
        Ok(ghost) => ghost.target()?,
        Err(peer) => peer,
    };
    peer.parent_element()
}

/// Returns whether the element rotates: elements such as videoflip have `video-direction`, NVIDIA's converters `flip-method`; 0
/// means unchanged in both.
fn rotates(element: &gst::Element) -> bool {
    ["video-direction", "flip-method"].into_iter().any(|name| {
        let is_enum =
            element.find_property(name).is_some_and(|spec| spec.value_type().is_a(glib::Type::ENUM));
        is_enum
            && glib::EnumValue::from_value(&element.property_value(name))
                .is_some_and(|(_, value)| value.value() != 0)
    })
}
