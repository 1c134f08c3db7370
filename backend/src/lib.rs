//! Face recognition over HTTP: datasets, training, recognition and detections. The binary `facepipe-backend` is a
//! thin shell around [`Application`].

mod api;
mod application;
mod backup;
pub mod commands;
mod config;
mod connection;
mod disk;
mod domain;
mod error;
mod exposition;
pub mod logging;
mod metrics;
pub mod mistakes;
mod model_loader;
pub mod notify;
mod optional;
mod outbox;
mod recognise;
mod request_id;
mod store;
mod tls;
mod tokens;
#[cfg(feature = "traces")]
pub mod traces;
#[cfg(not(feature = "traces"))]
#[path = "no_traces.rs"]
pub mod traces;
mod train;

pub use api::document as openapi_document;
pub use application::{Application, StopHandle};
pub use config::{Args, Command, Config, ErasedDetections, LogFormat, ServerRole, Settings};

/// What benchmarks measure by itself. No part of the interface.
#[doc(hidden)]
pub mod parts {
    pub use crate::{
        domain::{CaptureTime, IdentifiedFace, now},
        store::{
            Database,
            sql::{IdempotentCall, NewUploads, Upload},
        },
    };
}
