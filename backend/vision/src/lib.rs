//! Face detection and face embedding in candle: from the bytes of an uploaded picture to L2-normalised vectors.
//!
//! ```no_run
//! use facepipe_vision::{DecodeLimits, EmbedderKind, Mtcnn, MtcnnConfig, decode_image, load_embedder};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let models = std::path::Path::new("models");
//! let mtcnn = Mtcnn::load(models, MtcnnConfig::default())?;
//! let embedder = load_embedder(EmbedderKind::MobileFaceNet, models)?;
//!
//! let image = decode_image(&std::fs::read("group.jpg")?, &DecodeLimits::default())?;
//! let faces = mtcnn.detect(&image)?;
//! let crops: Vec<_> = faces.iter().map(|face| embedder.crop(&image, face)).collect();
//! let embeddings = embedder.embed(&crops)?;
//! # let _ = embeddings;
//! # Ok(())
//! # }
//! ```
//!
//! [`Mtcnn`] and every [`Embedder`] are `Send + Sync` and have no mutable state: one instance of each serves
//! any number of threads.

pub mod align;
pub mod compute;
pub mod decode;
pub mod device;
pub mod dlib_resnet;
pub mod inception_resnet_v1;
pub mod main_face;
pub mod mobilefacenet;
pub mod mtcnn;
pub mod quality;
pub mod resample;
pub mod weights;

mod embedder;
mod error;
mod geometry;
mod models_dir;
mod native;
mod network;
mod nn;

pub use compute::{Backend, Compute};
pub use decode::{
    DecodeError, DecodeLimits, DecodeNote, Decoded, decode_image, decode_with_notes, pixels_to_decode,
};
pub use device::DeviceKind;
pub use dlib_resnet::DlibResnet;
pub use embedder::{
    Embedder, EmbedderKind, UnknownEmbedder, installed_embedder, load_embedder, load_embedder_on,
};
pub use error::{ModelError, VisionError};
pub use geometry::{BoundingBox, Face, face_at, largest_face};
pub use inception_resnet_v1::InceptionResnetV1;
pub use main_face::{main_face, main_or_largest};
pub use mobilefacenet::MobileFaceNet;
pub use models_dir::{SYSTEM_MODELS, default_models_dir};
pub use mtcnn::{Mtcnn, MtcnnConfig};
pub use native::{with_intra_op_parallelism, without_intra_op_parallelism};
pub use quality::{FaceQuality, QualityComponent};
