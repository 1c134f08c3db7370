//! The error type of the detector. Every message names the problem, the value and the remedy.

use std::path::PathBuf;

use crate::ExecutionProvider;

/// Why a detector could not be opened, or a frame not be searched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectorError {
    /// No usable ONNX Runtime library was found; `tried` lists the places and what was wrong there.
    #[error(
        "no usable ONNX Runtime library (1.{minimum} or newer): {tried}. Run `facepipe models fetch` to get one, or set ORT_DYLIB_PATH to the full path of libonnxruntime.so",
        minimum = ort::MINOR_VERSION
    )]
    RuntimeMissing {
        /// What was tried, in order.
        tried: String,
    },

    /// The library was loaded but did not start.
    #[error("ONNX Runtime {path} did not start: {reason}", path = path.display())]
    RuntimeFailed {
        /// The library.
        path: PathBuf,
        /// Its error.
        reason: String,
    },

    /// The library lacks the requested execution provider, or the machine lacks what that provider needs.
    #[error(
        "execution provider {provider} cannot be had: {reason}. Install an ONNX Runtime that has it (ORT_DYLIB_PATH names the library) or choose cpu"
    )]
    ProviderUnavailable {
        /// The requested provider.
        provider: ExecutionProvider,
        /// What is missing.
        reason: String,
    },

    /// The name is neither `auto`, nor a detector of the manifest, nor a path.
    #[error("model {name:?} is unknown: expected {known}, or the path of an .onnx or .pt file")]
    UnknownModel {
        /// The name as given.
        name: String,
        /// The known names.
        known: String,
    },

    /// The model's file is not installed.
    #[error(
        "model {name} is not installed: no {file} in {searched}. Run `facepipe models fetch`, or set FACEPIPE_MODELS to the folder that has it"
    )]
    ModelMissing {
        /// The model's name, or the path that was given.
        name: String,
        /// The missing file.
        file: String,
        /// The folders that were searched, in order.
        searched: String,
    },

    /// The model's file is there but could not be read.
    #[error("model {path} cannot be read: {source}", path = path.display())]
    ModelUnreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// The file is not a complete ONNX model.
    #[error(
        "model {path} is damaged: {reason}. Run `facepipe models verify`, then `facepipe models fetch`",
        path = path.display()
    )]
    ModelCorrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },

    /// The file is a model, but not an Ultra-Light face detector.
    #[error("model {path} is not an Ultra-Light face detector: {reason}", path = path.display())]
    ModelUnsupported {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },

    /// A value of the configuration is out of range.
    #[error("{field} is {value}: {limit}")]
    InvalidConfig {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        limit: &'static str,
    },

    /// The planes of a frame do not match its description.
    #[error("frame: {field} is {value}, expected {limit}")]
    InvalidFrame {
        /// The field.
        field: String,
        /// Its value.
        value: usize,
        /// What is allowed.
        limit: String,
    },

    /// ONNX Runtime failed while it ran the model.
    #[error("the model failed on a frame: {0}")]
    Inference(String),
}
