//! `/debug`: for whoever looks into a deployment.

use std::{env, fs};

use actix_web::{HttpRequest, Responder, http::header, web};
use serde::Serialize;

use super::State;
use crate::{error::ApiError, store::sql::Lease};

#[derive(Serialize)]
struct Unblocked {
    /// Whether anything held the dataset's lease.
    was_blocked: bool,
}

/// Ends the dataset's lease at once. The job that held it fails, and the dataset may change.
pub async fn unblock_dataset(state: web::Data<State>) -> Result<impl Responder, ApiError> {
    let was_blocked = state.database.break_lease(Lease::Dataset).await?;
    if was_blocked {
        tracing::warn!("the dataset was unblocked on request");
    }
    Ok(web::Json(Unblocked { was_blocked }))
}

#[derive(Serialize)]
struct ClientAddress {
    /// Of the connection: the client's, or the last proxy's.
    ip: Option<String>,
    /// What proxies say of whom they forward for. Anybody can write that.
    #[serde(skip_serializing_if = "Option::is_none")]
    forwarded_for: Option<String>,
}

/// From where the request comes.
pub async fn ip(request: HttpRequest) -> impl Responder {
    let forwarded_for = request.headers().get(header::X_FORWARDED_FOR);
    web::Json(ClientAddress {
        ip: request.peer_addr().map(|address| address.ip().to_string()),
        forwarded_for: forwarded_for.and_then(|value| value.to_str().ok()).map(ToOwned::to_owned),
    })
}

#[derive(Serialize)]
struct Node {
    /// Null where the machine does not say.
    node_name: Option<String>,
}

/// Which machine answers: the name in `NODE_NAME`, as Kubernetes can set it, else the host's.
pub async fn node_name() -> impl Responder {
    let named = env::var("NODE_NAME").ok();
    let host =
        || fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
    let node_name = named
        .filter(|name| !name.is_empty())
        .or_else(|| host().ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
    web::Json(Node { node_name })
}
