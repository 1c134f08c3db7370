//! `/openapi.json`, and the page at `/docs` that shows it and tries out what it describes: Swagger UI, whose files are
//! in this program.

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

use super::super::{State, answer::describe, method_not_allowed};
use crate::error::ApiError;

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
    Document(state.document.clone())
}

/// What Swagger UI begins with here: our document, and no server of its makers', which by default looks at it.
const BEGINNING: &str = r##"window.onload = () => {
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

/// The files of the page, as Swagger UI's release has them, but for the one that says what to begin with.
static FILES: LazyLock<Result<HashMap<String, Bytes>, String>> = LazyLock::new(|| {
    let mut files =
        unpack(SWAGGER_UI_VENDORED).map_err(|error| format!("Swagger UI cannot be unpacked: {error}"))?;
    files.insert("swagger-initializer.js".into(), Bytes::from_static(BEGINNING.as_bytes()));
    Ok(files)
});

/// The files directly in a release's folder `dist`, by their names.
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

/// The page gets nothing but what this server gives.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Puts the page at `/docs`.
pub fn page(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/docs")
                // Relative, for whoever has the server below a path of another one.
                .route(web::get().to(|| async {
                    HttpResponse::TemporaryRedirect().insert_header((header::LOCATION, "docs/")).finish()
                }))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/docs/{file:.*}")
                .route(web::get().to(file))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        );
}

async fn file(path: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let files = FILES.as_ref().map_err(|error| ApiError::Internal(anyhow::anyhow!("{error}")))?;
    let name = if path.is_empty() { "index.html" } else { path.as_str() };
    let file = files.get(name).ok_or(ApiError::NotFound)?;
    Ok(HttpResponse::Ok()
        .content_type(content_type(name))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(file.clone()))
}
