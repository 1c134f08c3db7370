//! The element `faceoverlay`: draws boxes and names of faces.

/**
 * SECTION:element-faceoverlay
 * @title: faceoverlay
 * @short_description: Draws boxes and names of faces
 * @see_also: facedetect, facetrack, facesink-http
 *
 * Draws a box around each face that `facedetect` attached to a frame, straight into the frame's planes:
 *
 * | colour | the face | label |
 * |---|---|---|
 * | white | has no result yet (`unanswered` chooses another colour, or no box) | its track id |
 * | red | the backend found no face | `no face` |
 * | blue | is unknown to the backend | `unknown` |
 * | green | is recognised | its Face ID and the confidence; `known` where the camera's token may not see names |
 *
 * Results come from the `facesink-http` elements of the same pipeline; with several cameras in one pipeline, `camera-id`
 * selects one. An application passes results from elsewhere by the action signal `set-result`. Results belong to tracks, so
 * put `facetrack` before the element. Faces without track ids get the result of a crop from about the same place, for a
 * second.
 *
 * Of several results of one track the best is shown: a name replaces none, a higher confidence a lower one.
 *
 * The element is also registered as `facepipe-faceoverlay`. GStreamer has another `faceoverlay` (it puts pictures on faces),
 * and it is undefined which of the two the short name refers to: use the long one.
 *
 * ## Action signals
 *
 * - `set-result` (`track-id` int, `decision` string, `label` string, `confidence` double), returns boolean: sets the result of
 *   a track; `decision` is `known`, `unknown` or `none` (no face), `label` and `confidence` (0 to 1) are used for `known`
 *   only. Returns false for another decision.
 * - `clear-results`: removes all results.
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
