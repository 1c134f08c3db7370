//! The element `facecrop`: crops faces from frames as small pictures.

/**
 * SECTION:element-facecrop
 * @title: facecrop
 * @short_description: Crops faces from frames as small pictures
 * @see_also: facedetect, facetrack, facesink-http
 *
 * For faces that `facedetect` attached to a frame, `facecrop` pushes one `image/jpeg` (or `image/webp`) buffer each: the face
 * with a margin around it, shrunk to at most `max-size` pixels. A frame without crops becomes a gap event. Only the pixels of
 * the crops are read and converted.
 *
 * ## Which faces
 *
 * With `policy=every`, each face of each frame. With `policy=best`, a few good pictures of each face that `facetrack` tracks:
 *
 * - the first as soon as it is good: the whole face is inside the frame, its quality is at least 0.35, and the detector is
 *   sure of it: a score of at least `certainty` in two of the frames, or of 0.97 in one;
 * - further ones whose quality is higher than that of the best one sent by the fraction `improvement`;
 * - when the track ends, the best one that was not sent yet, if it is better than those that were.
 *
 * These are `max-per-track` at most. For a track whose face the detector was never sure of, nothing is sent unless one score was
 * at least 0.9: ears and necks of people seen from behind look like faces for a moment. Every face without a track id becomes
 * a picture, so that the element works without `facetrack` as well.
 *
 * The quality is 0.4 for the size (the shorter side, full from 160 pixels on), 0.3 for the sharpness (`v / (v +
 * 150)` of the variance `v` of the Laplacian over the face) and 0.3 for the detector's score (from 0.5 to 1);
 * halved if the face touches the frame's edge. `min-quality` leaves out pictures of a lower quality, with either policy.
 *
 * Faces whose shorter side is less than `min-size` are left out. The default is a 64th of the frame's longer side, from 20 to
 * 30 pixels: 30 in 1080p, 20 in 720p and below, since faces have fewer pixels at a low resolution.
 *
 * `stats` counts faces and pictures, and what was left out: `below-min-size` and `below-min-quality` are faces, each in each
 * frame; `tracks-below-min-size`, `tracks-below-min-quality` and `tracks-below-certainty` are tracks that ended without a
 * picture for that reason, with `policy=best`; `min-size` is the limit in use. If anything was left out, an info message at the
 * end of the stream says so.
 *
 * If the frame's pixels are not square (`pixel-aspect-ratio`), those of the pictures are: a frame is stretched along its
 * coarser side, never shrunk. Size limits are in square pixels, boxes in pixels of the frame.
 *
 * ## What the buffers carry
 *
 * Each buffer has the timestamps of the frame with which it is sent, and a `GstVideoRegionOfInterestMeta` of `roi_type`
 * `face-crop` with the face's box in the full frame, its track id and score. A parameter structure `facepipe-crop` has:
 *
 * | field | type | content |
 * |---|---|---|
 * | `frame-width`, `frame-height` | uint | size of the full frame, pixels |
 * | `crop-left`, `crop-top`, `crop-right`, `crop-bottom` | uint | the part of the full frame that the picture shows, pixels |
 * | `picture-width`, `picture-height` | uint | size of the picture, pixels |
 * | `captured-at` | uint64 | time of capture, nanoseconds of Unix time |
 * | `running-time` | uint64 | running time of the frame, nanoseconds |
 * | `clock-refused` | boolean | present and true if the camera's clock was not trusted |
 *
 * Times are those of the frame that the face was cropped from, also when a picture is sent later. The time of capture is the
 * camera's own (reference timestamps of `rtspsrc add-reference-timestamp-meta=true`) while its clock is within
 * `max-clock-offset` seconds of this machine's, for all frames of the stream or for none; see `facesink-http`, which counts
 * the pictures whose camera's clock was not trusted.
 *
 * If no detector searches the frames (`facedetect`, or another that marks faces), one warning says so.
 *
 * The element is also registered as `facepipe-facecrop`.
 *
 * ## One file per face
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facecrop ! multifilesink location=face-%05d.jpg
 * ]|
 *
 * ## A few good pictures of each passer-by
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facetrack ! facecrop ! multifilesink location=face-%05d.jpg
 * ]|
 *
 * ## Larger and better pictures of close faces only
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
