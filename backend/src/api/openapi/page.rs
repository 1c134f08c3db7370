//! `/openapi.json`, and Swagger UI at `/docs`, whose files are part of the program.

use std::{
    collections::HashMap,
    io::{Cursor, Read as _},
    sync::LazyLock,
};

use actix_web::{
    HttpRequest, HttpResponse, Responder,
    body::BoxBody,
    http::header::{self, ContentType},
    web,
};
use bytes::Bytes;
use paperclip::{
    actix::{OperationModifier, api_v2_operation},
    v2::{
        models::{DataType, DefaultOperationRaw, DefaultSchemaRaw},
        schema::Apiv2Schema,
    },
};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

use super::{
    super::{
        State,
        response::{describe, redirect},
    },
    document_at,
};
use crate::{config::BrowserConfig, error::ApiError};

/// The API's document.
pub struct Document(Bytes);

impl Responder for Document {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        HttpResponse::Ok().content_type(ContentType::json()).body(self.0)
    }
}

impl Apiv2Schema for Document {}

impl OperationModifier for Document {
    fn update_response(operation: &mut DefaultOperationRaw) {
        let schema = DefaultSchemaRaw {
            data_type: Some(DataType::Object),
            description: Some("A document as OpenAPI 3.0 has it.".into()),
            example: Some(serde_json::json!({ "openapi": "3.0.3" })),
            ..DefaultSchemaRaw::default()
        };
        describe(operation, 200, Some(schema));
    }
}

/// This document
///
/// `/docs` shows it in a browser and tries its calls out.
#[api_v2_operation]
pub async fn serve(state: web::Data<State>) -> Document {
    let make = || {
        let has_guide = state.config.browsers.guide().join(BrowserConfig::GUIDE_PAGE).is_file();
        document_at(state.public_url.as_deref(), has_guide).into()
    };
    Document(state.document.get_or_init(make).clone())
}

/// The configuration of Swagger UI: the document of this server, and no validation by its makers' server.
const INITIALIZER: &str = r##"window.onload = () => {
  window.ui = SwaggerUIBundle({
    url: "../openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    layout: "BaseLayout",
    tryItOutEnabled: true,
    displayRequestDuration: true,
    validatorUrl: "none",
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    plugins: [SwaggerUIBundle.plugins.DownloadUrl],
  });
};
"##;

/// The files of Swagger UI's release by name, with an initializer for this server.
static FILES: LazyLock<Result<HashMap<String, Bytes>, String>> = LazyLock::new(|| {
    let mut files =
        unpack(SWAGGER_UI_VENDORED).map_err(|error| format!("Swagger UI cannot be unpacked: {error}"))?;
    files.insert("swagger-initializer.js".into(), Bytes::from_static(INITIALIZER.as_bytes()));
    Ok(files)
});

/// Unpacks the files directly in a release's folder `dist`, by name.
fn unpack(release: &[u8]) -> zip::result::ZipResult<HashMap<String, Bytes>> {
    let mut archive = ZipArchive::new(Cursor::new(release))?;
    let mut files = HashMap::new();
    for number in 0..archive.len() {
        let mut file = archive.by_index(number)?;
        let path = file.name()?.into_owned();
        // `swagger-ui-5.32.6/dist/index.html`
        let Some(name) = path.split_once('/').and_then(|(_, path)| path.strip_prefix("dist/")) else {
            continue;
        };
        if !name.is_empty() && !name.contains('/') {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            files.insert(name.to_owned(), bytes.into());
        }
    }
    Ok(files)
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html",
        "css" => "text/css",
        "js" => "text/javascript",
        "png" => "image/png",
        _ => "application/octet-stream",
    }
}

/// Pages load from this server only and run no inline scripts.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `/docs`, without the `/` that its links need.
pub async fn page_root() -> HttpResponse {
    redirect("docs/")
}

/// A file of Swagger UI.
///
/// # Errors
/// There is no such file, or Swagger UI cannot be unpacked.
pub async fn page_file(path: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let files = FILES.as_ref().map_err(|error| ApiError::Internal(anyhow::anyhow!("{error}")))?;
    let name = if path.is_empty() { "index.html" } else { path.as_str() };
    let file = files.get(name).ok_or(ApiError::NotFound)?;
    Ok(HttpResponse::Ok()
        .content_type(content_type(name))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(file.clone()))
}
