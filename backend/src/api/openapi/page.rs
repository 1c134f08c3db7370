//! `/openapi.json`, and the page at `/docs` that shows it and tries out what it describes: Swagger UI, whose files are
//! in this program.

use std::sync::{Arc, LazyLock};

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
use utoipa_swagger_ui::Config;

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

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
    let config = Config::from("../openapi.json")
        .use_base_layout()
        .try_it_out_enabled(true)
        .display_request_duration(true)
        // By default, the page has a server of Swagger UI's makers look at the document.
        .validator_url("none");
    Arc::new(config)
});

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
    let file = utoipa_swagger_ui::serve(&path, CONFIG.clone())
        .map_err(|error| ApiError::Internal(anyhow::anyhow!("{error}")))?
        .ok_or(ApiError::NotFound)?;
    Ok(HttpResponse::Ok()
        .content_type(file.content_type)
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(file.bytes.into_owned()))
}
