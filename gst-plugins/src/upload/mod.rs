//! The uploader: takes face crops from the streaming thread without blocking it, and posts them to the backend from worker
//! tasks. Plain Rust, without GStreamer; the sink element only feeds it.
//!
//! A crop's way: [`Uploader::push`] (`uploader.rs`) queues it as a pending upload in the state machine (`state.rs`). A
//! worker (`worker.rs`) takes up to [`RuntimeSettings::batch_size`] crops of one camera as a batch (`batch.rs`), builds a
//! request (`request.rs`, `multipart.rs`, `token.rs`) and sends it (`service.rs`, over `connection.rs` and `tls.rs`). The
//! response is classified (`retry.rs`), the crops are settled or retried, and the observer gets an [`Event`] (`event.rs`).
//!
//! The queue in memory is bounded; [`DropPolicy`] says which crop is dropped when it is full. Requests to an unavailable or
//! busy backend are retried with the same idempotency key per crop, so that no face is stored twice. While the backend is
//! unhealthy, at most one probe request is in flight (`circuit_breaker.rs`).
//!
//! With a [spool](SpoolConfig) (`spool.rs`), crops are written to disk during an outage, when the queue is half full, and
//! when the uploader stops. A thread does that (`spool_thread.rs`): neither the streaming thread nor the workers wait for
//! the disk. Live crops are sent first, spooled ones in order of capture when no live ones wait.

mod batch;
mod circuit_breaker;
mod config;
mod connection;
mod crop;
mod error;
mod event;
mod file_version;
mod multipart;
mod request;
mod retry;
mod service;
mod spool;
mod spool_thread;
mod state;
mod tls;
mod token;
mod traces;
mod uploader;
mod worker;

pub use config::{
    DropPolicy, Endpoint, RuntimeSettings, UploadConfig, exposes_tokens, is_loopback, without_user,
};
pub use connection::{proxy, tls};
pub use crop::{Camera, CameraError, Crop};
pub use error::UploadError;
pub use event::{BackendStatus, Event, Observer, Stats};
pub use multipart::{encode_uuid, format_captured_at};
pub use retry::{Backoff, parse_retry_after};
pub use spool::{Spool, SpoolConfig, SpoolCounts, SpoolEntry, SpoolError, SpoolId, StoreError};
pub use tls::{KeyPin, TlsOptions};
pub use token::{Token, TokenError};
pub use uploader::{DrainOutcome, PushOutcome, Uploader};
