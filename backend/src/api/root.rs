//! `/`: leads a client that only has the server's address to the API.

use actix_web::{HttpRequest, HttpResponse, Responder, body::BoxBody, http::header};
use paperclip::{
    actix::{Apiv2Schema, OperationModifier, api_v2_operation, web},
    v2::models::DefaultOperationRaw,
};
use serde::Serialize;

use super::{
    State,
    response::{JsonResponse, OneOf, describe, prefers},
};

/// The server and its documentation. Addresses are relative to this one.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "Entrance")]
pub struct ServiceDescription {
    /// Always `facepipe-backend`.
    #[openapi(example = "facepipe-backend")]
    name: &'static str,
    /// The server's version.
    #[openapi(example = "0.1.0")]
    version: &'static str,
    /// The API's document, OpenAPI 3.0.
    #[openapi(example = "openapi.json")]
    openapi: String,
    /// The page that shows the document and runs its calls.
    #[openapi(example = "docs/")]
    docs: String,
}

/// Redirects a browser to `/docs`.
pub struct DocsRedirect {
    location: String,
}

impl Responder for DocsRedirect {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        HttpResponse::TemporaryRedirect()
            .insert_header((header::LOCATION, self.location))
            .insert_header((header::VARY, "accept"))
            .finish()
    }
}

impl paperclip::v2::schema::Apiv2Schema for DocsRedirect {}

impl OperationModifier for DocsRedirect {
    fn update_response(operation: &mut DefaultOperationRaw) {
        describe(operation, 307, None);
    }
}

/// The server and its documentation
///
/// A browser, or another client that prefers `text/html`, is redirected to `/docs`.
#[api_v2_operation]
pub async fn describe_service(
    request: HttpRequest,
    state: web::Data<State>,
) -> OneOf<JsonResponse<ServiceDescription>, DocsRedirect> {
    // Addresses are relative to this path without a `public_url`, so that links work behind a proxy that strips a
    // prefix.
    let at = |path: &str| {
        state.public_url.as_deref().map_or_else(|| path.to_owned(), |url| format!("{url}/{path}"))
    };
    if prefers(&request, "text/html") {
        return OneOf::Second(DocsRedirect { location: at("docs/") });
    }
    let description = ServiceDescription {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        openapi: at("openapi.json"),
        docs: at("docs/"),
    };
    OneOf::First(JsonResponse::new(description).header(header::VARY, "accept"))
}
