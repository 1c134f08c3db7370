//! The element `faceoverlay`: draws boxes around faces, and who they are.

/**
 * SECTION:element-faceoverlay
 * @title: faceoverlay
 * @short_description: Draws boxes around faces, and who they are
 * @see_also: facedetect, facetrack, facesink-http
 *
 * Draws a box around each face that `facedetect` attached to a frame, straight into the frame's planes:
 *
 * | colour | the face | label |
 * |---|---|---|
 * | white | is detected, nothing more is known (`unanswered` chooses another colour, or no box) | its track id |
 * | red | the backend found no face there | `no face` |
 * | blue | the backend knows nobody with that face | `unknown` |
 * | green | is recognised | its Face ID and how sure the backend is |
 *
 * What the backend says comes from a `facesink-http` of the same pipeline by itself; with several cameras in one
 * pipeline, `camera-id` says whose results are meant. From elsewhere an application passes it on by the action
 * signal `set-result`. Results belong to tracks, so put `facetrack` before the element. Faces without track ids get
 * the result of a crop from about the same place, for a second.
 *
 * Of several results of one track the best is shown: a name wins over none, the surer name over the other.
 *
 * The same element is also registered as `facepipe-faceoverlay`. GStreamer's own plugins have a `faceoverlay` of
 * their own (it puts pictures on faces), and which of the two the short name means is a matter of luck: use the long
 * one.
 *
 * ## Action signals
 *
 * - `set-result` (`track-id` int, `decision` string, `label` string, `confidence` double), returns boolean: what is known
 *   of a track; `decision` is `known`, `unknown` or `none` (no face), `label` and `confidence` (0 to 1) count for `known`
 *   only. False for another decision.
 * - `clear-results`: forgets everything.
 *
 * ## Preview
 *
 * Detection only:
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facetrack ! facepipe-faceoverlay ! videoconvert ! autovideosink
 * ]|
 * With names, from a backend on this machine:
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facetrack ! tee name=t t. ! queue ! facepipe-faceoverlay ! videoconvert ! autovideosink t. ! queue ! facecrop ! facesink-http
 * ]|
 */
mod draw;
mod imp;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `faceoverlay`.
    pub struct FaceOverlay(ObjectSubclass<imp::FaceOverlay>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "faceoverlay", FaceOverlay::static_type())
}
