//! Where `/metrics` is served: a port of its own, so that what is open to clients does not have it.

use std::net::TcpListener;

use actix_web::{App, HttpResponse, HttpServer, dev::Server, error::InternalError, http::StatusCode, web};
use prometheus::TEXT_FORMAT;

use super::Exposition;
use crate::mistakes;

/// Where metrics are served unless the configuration says otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:9464";

/// Binds the port that the setting `metrics_listen` asks for; `off` asks for none. Without a setting, a port that is
/// taken is warned of: another server of this machine has it.
///
/// # Errors
/// The port that was asked for is taken or cannot be had.
pub fn bind(setting: Option<&str>) -> anyhow::Result<Option<TcpListener>> {
    match setting {
        Some("off") => Ok(None),
        Some(address) => TcpListener::bind(address)
            .map(Some)
            .map_err(|error| mistakes::cannot_listen(error, "metrics_listen", address)),
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

/// Serves `/metrics`, and nothing else.
///
/// # Errors
/// The port cannot be listened on.
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
        tracing::error!(%error, "the metrics cannot be written");
        InternalError::new(error, StatusCode::INTERNAL_SERVER_ERROR)
    })?;
    Ok(HttpResponse::Ok().content_type(TEXT_FORMAT).body(text))
}
