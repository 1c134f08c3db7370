//! The element `facecrop`: makes small pictures of the faces in frames.

/**
 * SECTION:element-facecrop
 * @title: facecrop
 * @short_description: Makes small pictures of the faces in frames
 * @see_also: facedetect, facetrack, facesink-http
 *
 * For faces that `facedetect` attached to a frame, `facecrop` pushes one `image/jpeg` (or `image/webp`) buffer
 * each: the face with a margin around it, shrunk to at most `max-size` pixels. A frame that gives nothing
 * becomes a gap event. Only the pixels of the faces are read and converted.
 *
 * ## Which faces
 *
 * With `policy=every`, each face of each frame. With `policy=best`, few good pictures of each face that
 * `facetrack` follows:
 *
 * - a first one as soon as it is good: the whole face inside the frame, and a quality of at least 0.35, and the
 *   detector is sure that there is a face: a score of at least `certainty` in two of the frames, or 0.97 in one;
 * - further ones that are better than the best so far by the share `improvement`;
 * - when the track ends, the best one that was not sent yet, if it is better than those that were.
 *
 * That is `max-per-track` at most. Of a track of which the detector was never sure, nothing is sent unless one score was
 * at least 0.9: people who are seen from behind have ears and necks that look like faces for a moment. Faces without a track id all become pictures, so that the element does its
 * work without `facetrack` too.
 *
 * The quality is 0.4 for the size (the shorter side, full from 160 pixels on), 0.3 for the sharpness (`v / (v +
 * 150)` of the variance `v` of the Laplacian over the face) and 0.3 for the detector's score (from 0.5 to 1);
 * half of all that where the face touches the frame's edge. `min-quality` leaves out what is worse, with
 * either policy.
 *
 * Faces whose shorter side is less than `min-size` are left out. Unless it is set, a 64th of the frame's longer side
 * counts, from 20 to 30 pixels: 30 in 1080p, 20 in 720p and below, since cameras of a low resolution show faces smaller.
 *
 * `stats` counts faces and pictures, and what was left out: `below-min-size` and `below-min-quality` are faces, each in
 * each frame; `tracks-below-min-size`, `tracks-below-min-quality` and `tracks-below-certainty` are tracks that ended
 * without a picture for that reason, with `policy=best`; `min-size` is the limit that counts.
 * At the end of the stream an info message says so, where anything was left out.
 *
 * Where the frame's pixels are not square (`pixel-aspect-ratio`), those of the pictures are: a frame is stretched
 * along its coarser side, never squeezed. Limits to sizes are in square pixels, boxes in those of the frame.
 *
 * ## What the buffers carry
 *
 * Each buffer has the timestamps of the frame with which it is sent, and a `GstVideoRegionOfInterestMeta` of
 * `roi_type` `face-crop` with the face's box in the full frame, its track id and score, the frame's size, its
 * running time and the time of capture (Unix time). The latter two are those of the frame that the face was
 * cut from, also where a picture is sent later. The time of capture is the camera's own (reference timestamps of `rtspsrc
 * add-reference-timestamp-meta=true`) while its clock is within `max-clock-offset` seconds of this machine's, for all frames of
 * the stream or for none; see `facesink-http`, which counts the pictures whose camera's clock was not taken.
 *
 * Where no detector has looked at the frames (`facedetect`, or another that marks faces), one warning says so.
 *
 * The same element is also registered as `facepipe-facecrop`.
 *
 * ## One file per face
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facecrop ! multifilesink location=face-%05d.jpg
 * ]|
 *
 * ## Few good pictures of each person who walks by
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facetrack ! facecrop ! multifilesink location=face-%05d.jpg
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
