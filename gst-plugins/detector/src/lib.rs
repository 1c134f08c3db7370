//! Face detection in video frames with the Ultra-Light networks, fast enough for one core of a small edge box, or with MTCNN.
//!
//! A [`Frame`] borrows the planes as a decoder made them (4:2:0, 4:2:2 and 4:4:4 Y'CbCr of 8 or 10 bits, the RGB formats,
//! grey); a [`Detector`] samples the network's input straight from them, in one pass, and runs the network in ONNX Runtime.
//!
//! ```no_run
//! use facepipe_detector::{Detector, DetectorConfig, Frame, models};
//!
//! # fn main() -> Result<(), facepipe_detector::DetectorError> {
//! let model = models::resolve("auto", Some(1920), &[])?;
//! let mut detector = Detector::open(&DetectorConfig { model, ..DetectorConfig::default() })?;
//! let pixels = vec![0; 1920 * 1080 * 3];
//! for face in detector.detect(&Frame::rgb(&pixels, 1920, 1080)?)? {
//!     println!("{:.0} x {:.0} pixels", face.bounding_box.width(), face.bounding_box.height());
//! }
//! # Ok(())
//! # }
//! ```

mod bounding_box;
mod detector;
mod engine;
mod error;
mod frame;
mod gather;
pub mod models;
mod motion;
mod mtcnn;
mod nms;
pub mod onnx_strip;
pub mod runtime;
mod sample;
mod search_paths;

pub use bounding_box::BoundingBox;
pub use detector::{Detector, DetectorConfig, ExecutionProvider};
pub use error::DetectorError;
pub use frame::{ChromaSite, ColorMatrix, ColorRange, Frame, PixelFormat, square_pixels};
pub use models::Family;
pub use motion::MotionDetector;
pub use nms::Detection;
pub use sample::Sampler;
