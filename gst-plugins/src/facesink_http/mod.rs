//! The element `facesink-http`: uploads face crops to the backend.

/**
 * SECTION:element-facesink-http
 * @title: facesink-http
 * @short_description: Uploads face crops to the backend
 * @see_also: facedetect, facecrop
 *
 * Takes the crops of `facecrop`, or raw video with face metadata, from which it then cuts the crops itself
 * (with the same properties `policy`, `margin`, `min-size` and so on), and posts them to
 * `<backend-url>/face-recognition/<endpoint>` as `multipart/form-data`.
 *
 * The streaming thread never waits for the network. Crops wait in a queue of `max-queue`; when it is full the
 * oldest give way. Requests that meet a dead, failing or busy backend are repeated with growing pauses, or
 * after the time that the backend asks for in `Retry-After`, under the same `key`, so that no face is stored
 * twice. At the end of the stream the element waits for what is queued, at most `eos-timeout` seconds.
 *
 * As any sink, it takes frames at the speed of the pipeline's clock; `sync=false` lets a recording run as
 * fast as it can, which may fill the queue faster than the backend empties it.
 *
 * The same element is also registered as `facepipe-facesink-http`.
 *
 * ## Capture time
 *
 * Each crop is sent with `captured_at`: the camera's own time, where the source knows it (`rtspsrc
 * add-reference-timestamp-meta=true`), else the time at which the frame was due on the pipeline's clock. For
 * a recording, `capture-start` (RFC 3339) says when it began.
 *
 * ## Messages
 *
 * - Element message `facepipe-result`, once for each crop that the backend took: `key` (string), `status`
 *   (uint, of the HTTP answer), `captured-at` (string, RFC 3339), `track-id` (int, 0 where the faces are not
 *   tracked), `left`, `top`, `right`, `bottom` (uint, pixels of the full frame; absent for a picture that is
 *   not from facecrop), `model-version` (string, absent where no model is trained), and `faces` (array of
 *   structures `face`, empty if there is none on the crop or the endpoint doesn't tell): `decision` (string
 *   `known` or `unknown`), `label` (string) and `confidence` (double) of the top prediction, `threshold`
 *   (double), `detection-confidence` (double), `box-left`, `box-top`, `box-right`, `box-bottom` (double,
 *   pixels of the crop); what the backend left out is absent.
 * - Element message `facepipe-rejected`, for each crop that the backend refused for good: `key`, `status`,
 *   `captured-at`, `track-id`, `left`, `top`, `right`, `bottom` as above, and `message` (string). The first
 *   of a row also comes with a warning.
 * - One warning when the backend cannot be reached or fails, one info message when it answers again.
 *
 * ## Examples
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facecrop ! facesink-http backend-url=http://127.0.0.1:8080 camera-id=gate-1 camera-location=Lobby
 * ]|
 * The same, cut by the sink:
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facesink-http backend-url=http://127.0.0.1:8080 camera-id=gate-1 camera-location=Lobby
 * ]|
 * Recognise only, and print the answers:
 * |[
 * gst-launch-1.0 -m v4l2src ! decodebin ! facedetect ! facesink-http endpoint=get-results
 * ]|
 */
mod imp;
mod messages;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `facesink-http`.
    pub struct FaceSinkHttp(ObjectSubclass<imp::FaceSinkHttp>)
        @extends gst_base::BaseSink, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "facesink-http", FaceSinkHttp::static_type())
}
