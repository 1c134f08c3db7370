//! `/debug`: diagnosing a deployment.

use std::{env, fs};

use actix_web::{HttpRequest, http::header, web};
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::State;
use crate::{error::ApiError, store::sql::Lease};

/// The former state of the dataset's lock.
#[derive(Serialize, Apiv2Schema)]
pub struct Unblocked {
    /// Whether a job held it.
    #[openapi(example = "true")]
    was_blocked: bool,
}

/// Ends the lock of the dataset at once
///
/// The job that held it fails, and the dataset may change.
#[api_v2_operation]
pub async fn unblock_dataset(state: web::Data<State>) -> Result<web::Json<Unblocked>, ApiError> {
    let was_blocked = state.database.break_lease(Lease::Dataset).await?;
    if was_blocked {
        tracing::warn!("the dataset was unblocked on request");
    }
    Ok(web::Json(Unblocked { was_blocked }))
}

/// The client's address.
#[derive(Serialize, Apiv2Schema)]
pub struct ClientAddress {
    /// The connection's peer: the client, or the last proxy.
    #[openapi(example = "203.0.113.7")]
    ip: Option<String>,
    /// The request's `X-Forwarded-For`, as proxies set it. Anybody can forge it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "203.0.113.7, 10.0.0.1")]
    forwarded_for: Option<String>,
}

/// The client's address
#[api_v2_operation]
pub async fn ip(request: HttpRequest) -> web::Json<ClientAddress> {
    let forwarded_for = request.headers().get(header::X_FORWARDED_FOR);
    web::Json(ClientAddress {
        ip: request.peer_addr().map(|address| address.ip().to_string()),
        forwarded_for: forwarded_for.and_then(|value| value.to_str().ok()).map(ToOwned::to_owned),
    })
}

/// The server's machine.
#[derive(Serialize, Apiv2Schema)]
pub struct Node {
    /// The environment variable `NODE_NAME`, as Kubernetes can set it, else the host's name. Null where neither is known.
    #[openapi(example = "node-1")]
    node_name: Option<String>,
}

/// The server's machine
#[api_v2_operation]
pub async fn node_name() -> web::Json<Node> {
    let named = env::var("NODE_NAME").ok();
    let host =
        || fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
    let node_name = named
        .filter(|name| !name.is_empty())
        .or_else(|| host().ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
    web::Json(Node { node_name })
}
