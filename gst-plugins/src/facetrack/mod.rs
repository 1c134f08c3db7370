//! The element `facetrack`: gives each face an id that stays the same from frame to frame.

/**
 * SECTION:element-facetrack
 * @title: facetrack
 * @short_description: Gives each face an id that stays the same from frame to frame
 * @see_also: facedetect, facecrop
 *
 * `facetrack` tracks the faces that a detector before it has attached to the frames (`GstVideoRegionOfInterestMeta` of
 * `roi_type` `face`), and writes a track id, from 1 on, into the `id` of each. Ids are not reused between start and stop of
 * the element. The pixels are never read, so video of any format and in any memory passes.
 *
 * Any detector that marks faces in this form will do, such as `facedetect` of the OpenCV plugin and `gvadetect` of
 * DL Streamer. With this plugin's `facedetect` it does more:
 *
 * - Frames that were not searched (`interval` above 1, or late frames) get the faces of the last searched one where they
 *   should be by now. Such a region carries the parameter structure `facepipe-track` with `predicted` true (false on
 *   detected faces). Predicted boxes are for following and drawing: `facecrop` and `facesink-http` crop only detected faces.
 * - Detections that score too low for a face (`low-score-threshold`) may continue a track, and then become faces; the others
 *   are removed from the frame.
 *
 * A track begins with a face that continues no other. It has its id from its first frame on, so that a person who passes
 * quickly is not missed; with `min-hits` above 1, the faces before that many have id 0. A track ends when its face has not
 * been found for longer than `max-age`, by the timestamps of the frames. Lost frames (buffer flag DISCONT, a leaky queue,
 * lost packets) therefore end no track by themselves, and neither do timestamps that step back by less, repeat or are
 * missing: a frame whose timestamp does not rise counts as one frame later than the one before it. All tracks end at a pause
 * longer than `max-age` without frames, when timestamps step back by more than `max-age` (and more than 500 ms), at a flush,
 * at different caps, at a new stream, at a segment in which timestamps mean other times than before, and at the end of the
 * stream.
 * Before the first frame without them, a serialized event `facepipe-tracks-ended` with their `ids` (array of int) tells the
 * elements downstream, which can then free what they keep for each track.
 *
 * Ids begin again at 1 with each start. So that the backend never mistakes two tracks for one, a sticky event
 * `facepipe-track-run` with a UUID per start in `id` (string) precedes the first frame; `facesink-http` sends it with each
 * crop.
 *
 * The element is also registered as `facepipe-facetrack`.
 *
 * ## A few good pictures of each person in a file
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facetrack ! facecrop ! multifilesink location=face-%05d.jpg
 * ]|
 *
 * ## Slow hardware: every third frame is searched
 *
 * |[
 * gst-launch-1.0 v4l2src ! decodebin ! facedetect interval=3 ! facetrack ! facecrop ! multifilesink location=face-%05d.jpg
 * ]|
 *
 * ## Without a camera or file
 *
 * |[
 * gst-launch-1.0 videotestsrc num-buffers=30 ! facedetect model=rfb-320 ! facetrack max-age=500 ! fakesink
 * ]|
 */
mod imp;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `facetrack`.
    pub struct FaceTrack(ObjectSubclass<imp::FaceTrack>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "facetrack", FaceTrack::static_type())
}
