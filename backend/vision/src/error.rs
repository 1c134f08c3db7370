//! What can go wrong when a model is loaded ([`ModelError`]) and when it runs ([`VisionError`]).

use std::path::PathBuf;

use crate::{Compute, DeviceKind};

/// Why a network could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file of weights does not exist.
    #[error("no {}{}: run `facepipe models fetch`", path.display(), made_of(published.as_deref()))]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
        /// The published file that it is converted from, where that is known.
        published: Option<String>,
    },
    /// Only the published file is there, which is not read.
    #[error(
        "{} is not converted to {} yet, and networks read nothing else: run `facepipe models convert {}` once",
        published.display(), path.file_name().unwrap_or_default().display(), models_dir.display()
    )]
    Unconverted {
        /// The published file.
        published: PathBuf,
        /// The safetensors that were looked for.
        path: PathBuf,
        /// The folder of both.
        models_dir: PathBuf,
    },
    /// The file exists and cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not safetensors, is damaged, or exceeds a limit.
    #[error("{origin} is not a usable file of weights: {reason}; run `facepipe models fetch`")]
    Malformed {
        /// The file.
        origin: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// A tensor of the network is not in the file.
    #[error("{origin} has no tensor `{name}`")]
    NoTensor {
        /// The file.
        origin: String,
        /// The tensor, as the network names it.
        name: String,
    },
    /// A tensor of the network has another shape in the file.
    #[error("tensor `{name}` of {origin} has the shape {found:?}, the network wants {expected:?}")]
    TensorShape {
        /// The file.
        origin: String,
        /// The tensor, as the network names it.
        name: String,
        /// The shape the network wants.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A setting is out of range.
    #[error("{field} is {value}, it must be {limit}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: f32,
        /// Its range.
        limit: &'static str,
    },
    /// The requested device cannot be used.
    #[error("the networks cannot run on {device}: {reason}")]
    Device {
        /// The device that was asked for.
        device: DeviceKind,
        /// Why not.
        reason: String,
    },
    /// The requested implementation does not run on the requested device.
    #[error(
        "compute {compute} runs on the processor only, not on {device}: leave compute unset or set it to candle"
    )]
    Compute {
        /// The implementation.
        compute: Compute,
        /// The device.
        device: DeviceKind,
    },
    /// candle could not create a tensor from the weights.
    #[error("the weights cannot be laid out for the network: {0}")]
    Layout(#[from] candle_core::Error),
}

/// Returns the addition about the published file in [`ModelError::Missing`].
fn made_of(published: Option<&str>) -> String {
    published.map(|published| format!(" (made of {published})")).unwrap_or_default()
}

/// Why a network could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VisionError {
    /// A crop is not of the size that the network takes.
    #[error("crop {index} is {width}x{height} pixels, {embedder} takes {expected}x{expected}")]
    CropSize {
        /// Index of the crop.
        index: usize,
        /// Its width, pixels.
        width: u32,
        /// Its height, pixels.
        height: u32,
        /// The embedder.
        embedder: &'static str,
        /// The side that the embedder takes, pixels.
        expected: u32,
    },
    /// The embedding has an infinite or undefined component: the weights are damaged.
    #[error("the embedding of crop {index} by {embedder} is not finite: its weights are damaged")]
    NotFinite {
        /// Index of the crop.
        index: usize,
        /// The embedder.
        embedder: &'static str,
    },
    /// candle could not run the network.
    #[error("the network could not be run: {0}")]
    Compute(#[from] candle_core::Error),
}
