//! The element `facedetect`: finds faces in raw video and attaches them to the frames as metadata.

/**
 * SECTION:element-facedetect
 * @title: facedetect
 * @short_description: Finds faces and attaches them to the frames as metadata
 *
 * `facedetect` runs an Ultra-Light face detector (or MTCNN) in ONNX Runtime on each frame and attaches one
 * `GstVideoRegionOfInterestMeta` per face: `roi_type` `face`, the bounding box in pixels, and a parameter
 * structure `detection` with `confidence` (double, 0 to 1) and `label_name` (`face`). The pixels are never
 * touched, and no colour conversion is needed before the element: it reads the formats of decoders and cameras (NV12,
 * NV21, I420, YV12, YUY2, UYVY, Y42B, Y444, the RGB formats, 10-bit P010_10LE, I420_10LE and I422_10LE, and GRAY8) with
 * the matrix, the range and the chroma siting of their caps. They may change during a stream, as when a camera switches
 * to night mode. For other formats, put `videoconvert` before it, which passes all of these through unchanged. Frames
 * must be in system memory.
 *
 * If pixels are not square (`pixel-aspect-ratio`), boxes are in pixels of the frame, and size limits in square pixels.
 *
 * The detector finds upright faces. It warns once if the tags say that the video is rotated, as that of phones often is,
 * unless an element before it rotates the video, such as `videoflip video-direction=auto`.
 *
 * Boxes that score between `low-score-threshold` and `score-threshold` are attached with the `roi_type`
 * `face-candidate`. They are for `facetrack`, which turns those that continue a track into faces.
 *
 * ## Models
 *
 * `model=auto` takes the first that is installed of `rfb-640`, `mtcnn`, `rfb-320`, `slim-320` for frames whose longer side has
 * at least 1280 pixels, and of `rfb-320`, `slim-320`, `rfb-640`, `mtcnn` for smaller ones. If that is not the first of the
 * list, an info message and the log name the model and its drawbacks. The Ultra-Light models are one file each; they see the
 * whole frame, stretched to their input. `mtcnn` runs the three networks of the backend's detector (`pnet.pt`, `rnet.pt`,
 * `onet.pt`), which are also available from PyPI: it takes several times the work of `rfb-640`, finds about as many faces, and
 * has fewer false detections. It runs on the CPU only. Its work depends on `min-face-size`: twice the size is a quarter of
 * the work.
 *
 * Scores of different models are not comparable: by default, `score-threshold` and `low-score-threshold` are 0.6 and 0.3 for
 * the Ultra-Light models, 0.9 and 0.5 for `mtcnn`.
 *
 * ## Frames that are not searched
 *
 * - `interval=3` searches every third frame. The others carry a mark, so that `facetrack` can tell them from frames
 *   without faces and predict where the faces are.
 * - `max-fps=5` searches at most five frames per second of stream time, whatever the frame rate. It uses the running time;
 *   it continues from there if timestamps restart or jump, and uses the frame rate of the caps where they are missing or
 *   repeat.
 * - `motion-threshold=3` does not run the detector while nothing moves: the frame is compared with the last searched one,
 *   cell by cell, on a small picture of luma that is sampled straight from the planes. While no cell has changed by more
 *   than this many grey levels (of 255), the faces of the searched frame are attached again.
 * - With `qos` (the default), late frames pass without being searched, so that a detector that is too slow for the camera
 *   misses faces rather than adding an ever longer delay. Frames are late if a sink reports that by QoS events (`qos=true
 *   sync=true`) and, if the source is live, if they come more than 200 ms later than the pipeline's latency allows.
 *   Recordings that are not played in real time have no late frames.
 *
 * In any case every `max-gap`-th frame is searched, as far as `interval` and `max-fps` allow it; if all frames are late, every
 * 30th. `stats` counts frames and faces, also the faces that `min-face-size`, `max-face-size` and `max-faces` left out:
 * `below-min-face-size`, `above-max-face-size` and `above-max-faces`, each in each searched frame. If any were left out, an
 * info message at the end of the stream says so.
 *
 * ## Accelerators
 *
 * `execution-provider` runs the network on CUDA, TensorRT or OpenVINO, if the ONNX Runtime library has it; an unavailable
 * one is an error. TensorRT builds an engine for the model and the device, which takes minutes and is kept in
 * `engine-cache`; meanwhile the element posts progress messages with the code `tensorrt-engine`.
 *
 * The element is also registered as `facepipe-facedetect`, since the OpenCV plugin has a `facedetect` as well.
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
 * ## Without a camera or file
 *
 * |[
 * gst-launch-1.0 videotestsrc num-buffers=30 ! facedetect model=rfb-320 ! fakesink
 * ]|
 */
mod engine;
mod imp;
mod lateness;
mod orientation;
mod selection;
mod settings;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `facedetect`.
    pub struct FaceDetect(ObjectSubclass<imp::FaceDetect>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "facedetect", FaceDetect::static_type())
}
