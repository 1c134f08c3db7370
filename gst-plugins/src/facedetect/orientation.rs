//! Which way up video is: by its tags, and by the elements that may have turned it.

use gst::{glib, prelude::*};

/// Elements before this one that are looked at. No pipeline is longer.
const FAR: usize = 64;

/// Whether faces are upright in video of this `image-orientation`. What is mirrored is.
pub fn is_upright(orientation: &str) -> bool {
    matches!(orientation, "rotate-0" | "flip-rotate-0")
}

/// Whether an element before this one turns video, as tags or its own settings say. Not all of these write into the tags
/// that they have done so.
pub fn is_turned_before(element: &gst::Element) -> bool {
    let before = std::iter::successors(before(element), before);
    before.take(FAR).any(|element| turns(&element))
}

fn before(element: &gst::Element) -> Option<gst::Element> {
    let pad = element.static_pad("sink").or_else(|| element.sink_pads().into_iter().next())?;
    let peer = pad.peer()?;
    // The pad of a bin stands for one within.
    let peer = match peer.downcast::<gst::GhostPad>() {
        Ok(ghost) => ghost.target()?,
        Err(peer) => peer,
    };
    peer.parent_element()
}

/// videoflip and its kin have `video-direction`, NVIDIA's converters `flip-method`; 0 of each is “as it is”.
fn turns(element: &gst::Element) -> bool {
    ["video-direction", "flip-method"].into_iter().any(|name| {
        let is_enum =
            element.find_property(name).is_some_and(|spec| spec.value_type().is_a(glib::Type::ENUM));
        is_enum
            && glib::EnumValue::from_value(&element.property_value(name))
                .is_some_and(|(_, value)| value.value() != 0)
    })
}
