//! Face recognition over HTTP: datasets, training, recognition and detections. The binary `facepipe-backend` is a
//! thin shell around [`Application`].

mod access;
mod api;
mod application;
mod audit;
mod backup;
mod cohort;
pub mod commands;
mod config;
pub mod config_errors;
mod connection;
mod disk;
mod domain;
mod error;
mod exposition;
pub mod logging;
mod metrics;
mod model_loader;
pub mod notify;
mod optional;
mod outbox;
pub mod private_files;
mod recognise;
mod request_id;
mod shares;
mod store;
mod tls;
#[cfg(feature = "traces")]
pub mod traces;
#[cfg(not(feature = "traces"))]
#[path = "no_traces.rs"]
pub mod traces;
mod train;
mod unknowns;
mod watched_file;

pub use api::document as openapi_document;
pub use application::{Application, StopHandle};
pub use config::{
    Args, AuditConfig, AuditSwitch, BrowserConfig, CohortConfig, Command, Config, DatabaseConfig,
    DatasetConfig, DeploymentConfig, ErasedDetections, ListenerConfig, LogFormat, LoggingConfig,
    RecognitionConfig, ResultsConfig, RetentionConfig, ServerRole, Settings, SharesConfig, StorageConfig,
    TlsConfig, UnknownsConfig,
};

/// Parts that benchmarks measure by themselves. Not part of the interface.
#[doc(hidden)]
pub mod parts {
    pub use crate::{
        domain::{
            CaptureTime, EmbeddingSum, EnrolledFace, FaceDecision, FaceId, FaceQuality, IdentifiedFace,
            TrackRef, UnknownId, now, similarity_to_own,
        },
        store::{
            Database,
            sql::{
                Fusion, IdempotentCall, NewImage, NewPicture, NewProposal, NewUploads, SelectedProposals,
                TrackedFace, Upload,
            },
        },
    };
}
