//! The element `facecrop`: makes a small JPEG picture of each face in a frame.

/**
 * SECTION:element-facecrop
 * @title: facecrop
 * @short_description: Makes a small JPEG picture of each face in a frame
 * @see_also: facedetect, facesink-http
 *
 * For each face that `facedetect` attached to a frame, `facecrop` pushes one `image/jpeg` buffer: the face
 * with a margin around it, shrunk to at most `max-size` pixels. A frame with three faces becomes three
 * buffers, a frame without any becomes a gap event. Only the pixels of the faces are read and converted.
 *
 * Each buffer has the timestamps of its frame and carries a `GstVideoRegionOfInterestMeta` of `roi_type`
 * `face-crop` with the face's box in the full frame, its track id and score, the frame's size and the time of
 * capture (Unix time).
 *
 * The same element is also registered as `facepipe-facecrop`.
 *
 * ## One file per face
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facecrop ! multifilesink location=face-%05d.jpg
 * ]|
 *
 * ## Larger and better pictures of near faces only
 *
 * |[
 * gst-launch-1.0 v4l2src ! decodebin ! facedetect ! facecrop min-size=80 max-size=400 quality=95 ! multifilesink location=face-%05d.jpg
 * ]|
 */
mod imp;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `facecrop`.
    pub struct FaceCrop(ObjectSubclass<imp::FaceCrop>) @extends gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "facecrop", FaceCrop::static_type())
}
