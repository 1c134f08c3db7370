//! What can go wrong when a model is loaded ([`ModelError`]) and when it runs ([`VisionError`]).

use std::path::PathBuf;

use crate::DeviceKind;

/// Why a network could not be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file of weights is not there.
    #[error("no {}: run `facepipe models fetch`", path.display())]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not of a known form, or is damaged, or goes beyond a limit.
    #[error("{origin} is not a usable file of weights: {reason}")]
    Malformed {
        /// The file, or what the bytes were called.
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
    /// A setting lies outside what it may be.
    #[error("{field} is {value}, it must be {limit}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        limit: &'static str,
    },
    /// The networks cannot run where they should.
    #[error("the networks cannot run on {device}: {reason}")]
    Device {
        /// The device that was asked for.
        device: DeviceKind,
        /// Why not.
        reason: String,
    },
    /// candle refused to make a tensor of the weights.
    #[error("the weights cannot be laid out for the network: {0}")]
    Layout(#[from] candle_core::Error),
}

/// Why a network gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VisionError {
    /// A crop is not of the size that the network takes.
    #[error("crop {index} is {width}x{height} pixels, {embedder} takes {expected}x{expected}")]
    CropSize {
        /// Which of the crops.
        index: usize,
        /// Its width, pixels.
        width: u32,
        /// Its height, pixels.
        height: u32,
        /// The embedder that was asked.
        embedder: &'static str,
        /// The side that the embedder takes, pixels.
        expected: u32,
    },
    /// The embedding has an infinite or undefined component: the weights are damaged.
    #[error("the embedding of crop {index} by {embedder} is not finite: its weights are damaged")]
    NotFinite {
        /// Which of the crops.
        index: usize,
        /// The embedder that was asked.
        embedder: &'static str,
    },
    /// candle could not run the network.
    #[error("the network could not be run: {0}")]
    Compute(#[from] candle_core::Error),
}
