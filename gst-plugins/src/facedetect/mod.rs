//! The element `facedetect`: finds faces in raw video and attaches them to the frames as metadata.

/**
 * SECTION:element-facedetect
 * @title: facedetect
 * @short_description: Finds faces and attaches them to the frames as metadata
 *
 * `facedetect` runs an Ultra-Light face detector (or MTCNN) in ONNX Runtime on each frame and attaches one
 * `GstVideoRegionOfInterestMeta` per face: `roi_type` `face`, the bounding box in pixels, and a parameter
 * structure `detection` with `confidence` (double, 0 to 1) and `label_name` (`face`). The pixels are never
 * touched, and no colour conversion is needed before the element: it reads what decoders and cameras deliver, NV12,
 * NV21, I420, YV12, YUY2, UYVY, Y42B, Y444, the RGB formats, 10-bit P010_10LE, I420_10LE and I422_10LE, and GRAY8, by
 * the matrix, the range and the chroma siting of their caps. They may change in the middle of a stream, as where a
 * camera switches to night. For whatever else there may be, put `videoconvert` before it, which passes all of these
 * on as they are. Frames in system memory only.
 *
 * Where pixels are not square (`pixel-aspect-ratio`), boxes are in pixels of the frame, and limits to sizes in square
 * ones.
 *
 * The detector finds upright faces. Of video whose tags say that it lies on its side, as of phones, it warns once,
 * unless an element before it turns it, such as `videoflip video-direction=auto`.
 *
 * Boxes that score between `low-score-threshold` and `score-threshold` are attached with the `roi_type`
 * `face-candidate`. They are for `facetrack`, which turns those that continue a track into faces.
 *
 * ## Models
 *
 * `model=auto` takes the first that is installed of `rfb-640`, `mtcnn`, `rfb-320`, `slim-320` for frames whose longer side has
 * at least 1280 pixels, and of `rfb-320`, `slim-320`, `rfb-640`, `mtcnn` for smaller ones. Where that is not the first, an info
 * message and the log say which it is and what that costs. The Ultra-Light models are a file each, and look at the whole
 * frame, stretched to their input. `mtcnn` runs the three networks of the backend's detector (`pnet.pt`, `rnet.pt`, `onet.pt`),
 * which come from PyPI as well: it takes several times the work of `rfb-640`, finds about as many faces, and takes less for a
 * face that is none. It runs on the CPU only. What it takes goes with `min-face-size`: twice the size is a quarter of the work.
 *
 * Scores of different models are not the same: unless they are set, `score-threshold` and `low-score-threshold` are 0.6 and
 * 0.3 for the Ultra-Light models, 0.9 and 0.5 for `mtcnn`.
 *
 * ## Not every frame is searched
 *
 * - `interval=3` searches every third frame. The others carry a mark, so that `facetrack` knows them from frames
 *   without faces and predicts where the faces are.
 * - `max-fps=5` searches at most five frames in a second of the stream, whatever its rate. It goes by running time; where
 *   timestamps begin again or leap, it goes on from there, and where they are missing or stand still, by the rate of the caps.
 * - `motion-threshold=3` lets the detector rest while nothing moves: the frame is compared with the one that was
 *   searched last, cell by cell, on a small picture of luma that is sampled straight from the planes. While no
 *   cell has changed by more than so many grey levels (of 255), the faces of then are attached again.
 * - With `qos` (the default), frames that come late pass without being searched, so that a detector that is too
 *   slow for the camera costs faces and not an ever longer delay. What is late is said by sinks that send QoS
 *   events (`qos=true sync=true`); where the source is live, frames that come more than 200 ms after the time that
 *   the pipeline's latency allows are late, too. Recordings that run as fast as they can have no late frames.
 *
 * Whatever happens, every `max-gap`-th frame is searched, so long as it is one of `interval` and `max-fps`; where all frames
 * come late, every 30th. `stats` counts, also the faces that were found and that `min-face-size`, `max-face-size` and
 * `max-faces` left out: `below-min-face-size`, `above-max-face-size` and `above-max-faces`, each in each searched frame.
 * At the end of the stream an info message says so, where any were left out.
 *
 * ## Accelerators
 *
 * `execution-provider` runs the network on CUDA, TensorRT or OpenVINO, where the ONNX Runtime library has it; what
 * cannot be had is an error. TensorRT builds an engine for the model and the device, which takes minutes and is kept in
 * `engine-cache`; meanwhile the element posts progress messages with the code `tensorrt-engine`.
 *
 * The same element is also registered as `facepipe-facedetect`, since the OpenCV plugin has a `facedetect`
 * too.
 *
 * ## A file
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! videoconvert ! videoflip video-direction=auto ! facedetect ! facecrop ! multifilesink location=face-%05d.jpg
 * ]|
 *
 * ## A webcam
 *
 * Raw video and motion JPEG alike.
 *
 * |[
 * gst-launch-1.0 v4l2src ! decodebin ! facedetect interval=2 ! facecrop ! multifilesink location=face-%05d.jpg
 * ]|
 *
 * ## Without any camera or file
 *
 * |[
 * gst-launch-1.0 videotestsrc num-buffers=30 ! facedetect model=rfb-320 ! fakesink
 * ]|
 */
mod engine;
mod imp;
mod lateness;
mod orientation;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `facedetect`.
    pub struct FaceDetect(ObjectSubclass<imp::FaceDetect>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "facedetect", FaceDetect::static_type())
}
