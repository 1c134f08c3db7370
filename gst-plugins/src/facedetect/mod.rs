//! The element `facedetect`: finds faces in raw video and attaches them to the frames as metadata.

/**
 * SECTION:element-facedetect
 * @title: facedetect
 * @short_description: Finds faces and attaches them to the frames as metadata
 *
 * `facedetect` runs an Ultra-Light face detector in ONNX Runtime on each frame and attaches one
 * `GstVideoRegionOfInterestMeta` per face: `roi_type` `face`, the bounding box in pixels, and a parameter
 * structure `detection` with `confidence` (double, 0 to 1) and `label_name` (`face`). The pixels are never
 * touched, and no colour conversion is needed before the element: it reads what decoders and webcams deliver,
 * NV12, NV21, I420, YV12, YUY2, UYVY, Y42B, Y444 and the RGB formats, by the matrix and range of their caps.
 *
 * The same element is also registered as `facepipe-facedetect`, since the OpenCV plugin has a `facedetect`
 * too.
 *
 * ## A file
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facecrop ! multifilesink location=face-%05d.jpg
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
mod imp;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `facedetect`.
    pub struct FaceDetect(ObjectSubclass<imp::FaceDetect>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "facedetect", FaceDetect::static_type())
}
