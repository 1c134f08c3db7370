//! `/`, where whoever only has the server's address comes first.

use actix_web::{
    HttpRequest, HttpResponse, Responder,
    body::BoxBody,
    http::header::{self, Accept, Header as _},
};
use paperclip::{
    actix::{Apiv2Schema, OperationModifier, api_v2_operation, web},
    v2::models::DefaultOperationRaw,
};
use serde::Serialize;

use super::{
    State,
    answer::{Answer, OneOf, describe},
};

/// What answers here, and where it is described. Addresses are relative to the one of this answer.
#[derive(Serialize, Apiv2Schema)]
pub struct Entrance {
    /// Always `facepipe-backend`.
    #[openapi(example = "facepipe-backend")]
    name: &'static str,
    /// The server's version.
    #[openapi(example = "0.1.0")]
    version: &'static str,
    /// The API's document, OpenAPI 3.0.
    #[openapi(example = "openapi.json")]
    openapi: String,
    /// The page that shows the document and tries its calls out.
    #[openapi(example = "docs/")]
    docs: String,
}

/// Sends a browser to the page at `/docs`.
pub struct ToDocs {
    location: String,
}

impl Responder for ToDocs {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        HttpResponse::TemporaryRedirect()
            .insert_header((header::LOCATION, self.location))
            .insert_header((header::VARY, "accept"))
            .finish()
    }
}

impl paperclip::v2::schema::Apiv2Schema for ToDocs {}

impl OperationModifier for ToDocs {
    fn update_response(operation: &mut DefaultOperationRaw) {
        describe(operation, 307, None);
    }
}

/// What this server is
///
/// And where its calls are described. A browser, or whoever else prefers `text/html`, is sent to `/docs`.
#[api_v2_operation]
pub async fn enter(request: HttpRequest, state: web::Data<State>) -> OneOf<Answer<Entrance>, ToDocs> {
    // Relative, for whoever has the server below a path of another one; that path may come without its last `/`.
    let at = |path: &str| {
        state.public_url.as_deref().map_or_else(|| path.to_owned(), |url| format!("{url}/{path}"))
    };
    if prefers_html(&request) {
        return OneOf::Second(ToDocs { location: at("docs/") });
    }
    let entrance = Entrance {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        openapi: at("openapi.json"),
        docs: at("docs/"),
    };
    OneOf::First(Answer::new(entrance).header(header::VARY, "accept"))
}

/// Whether `Accept` names HTML before JSON and before everything.
fn prefers_html(request: &HttpRequest) -> bool {
    let ranked = Accept::parse(request).map(|accept| accept.ranked()).unwrap_or_default();
    let preferred = ranked.iter().find_map(|media| match media.essence_str() {
        "text/html" | "text/*" => Some(true),
        "application/json" | "application/*" | "*/*" => Some(false),
        _ => None,
    });
    preferred.unwrap_or(false)
}
