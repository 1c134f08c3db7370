//! The listener of `/metrics`: a port of its own, so that clients of the API do not see it.

use std::net::TcpListener;

use actix_web::{App, HttpResponse, HttpServer, dev::Server, error::InternalError, http::StatusCode, web};
use prometheus::TEXT_FORMAT;

use super::Exposition;
use crate::config_errors;

/// The default of the setting `metrics_listen`.
const DEFAULT_ADDRESS: &str = "127.0.0.1:9464";

/// Binds the address of the setting `metrics_listen`; `off` binds none. Without the setting, a default port that is in
/// use is only logged: another server of this machine has it.
///
/// # Errors
/// The configured address cannot be bound.
pub fn bind(setting: Option<&str>) -> anyhow::Result<Option<TcpListener>> {
    match setting {
        Some("off") => Ok(None),
        Some(address) => TcpListener::bind(address)
            .map(Some)
            .map_err(|error| config_errors::cannot_listen(error, "metrics_listen", address)),
        None => Ok(TcpListener::bind(DEFAULT_ADDRESS)
            .inspect_err(|error| {
                tracing::warn!(
                    address = DEFAULT_ADDRESS,
                    %error,
                    "metrics are not served (--metrics-listen, FACEPIPE_METRICS_LISTEN)"
                );
            })
            .ok()),
    }
}

/// Serves `/metrics` and nothing else.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(listener: TcpListener, exposition: Exposition) -> std::io::Result<Server> {
    let exposition = web::Data::new(exposition);
    let app = move || {
        App::new()
            .app_data(exposition.clone())
            .route("/metrics", web::get().to(scrape))
            .route("/metrics", web::head().to(scrape))
    };
    Ok(HttpServer::new(app).workers(1).disable_signals().listen(listener)?.run())
}

async fn scrape(exposition: web::Data<Exposition>) -> actix_web::Result<HttpResponse> {
    let text = exposition.text().await.map_err(|error| {
        tracing::error!(%error, "cannot render the metrics");
        InternalError::new(error, StatusCode::INTERNAL_SERVER_ERROR)
    })?;
    Ok(HttpResponse::Ok().content_type(TEXT_FORMAT).body(text))
}
