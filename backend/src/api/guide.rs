//! The guide at `/docs/guide`: the site that `make docs` builds, from the folder where a package has installed it.

use std::path::{Component, Path, PathBuf};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, ETag, EntityTag, Header as _, IfNoneMatch},
    web,
};
use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};

use super::{State, method_not_allowed};
use crate::{config::Config, error::ApiError};

/// Seconds for which a browser takes a file without asking whether it has changed: pages, which name the version of
/// everything else, are asked for each time.
const ASSETS_MAX_AGE_S: u32 = 3600;

/// A page gets nothing but what this server gives, and runs no script that is not a file of its own.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     font-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// Puts the guide at `/docs/guide`.
pub fn pages(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/docs/guide")
                // Relative, for whoever has the server below a path of another one.
                .route(web::get().to(|| async { redirect("guide/") }))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/docs/guide/{file:.*}")
                .route(web::get().to(file))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        );
}

async fn file(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let Ok(root) = tokio::fs::canonicalize(state.config.guide()).await else {
        return Err(ApiError::GuideNotInstalled);
    };
    let Some(found) = find(&root, &path).await else {
        let installed = tokio::fs::try_exists(root.join(Config::GUIDE_PAGE)).await.unwrap_or_default();
        return Err(if installed { ApiError::NotFound } else { ApiError::GuideNotInstalled });
    };
    let file = match found {
        Found::File(file) => file,
        Found::Folder(name) => return Ok(redirect(&format!("{name}/"))),
    };
    let bytes = tokio::fs::read(&file).await.map_err(|error| ApiError::Internal(error.into()))?;
    let tag = EntityTag::new_strong(hex(Sha256::digest(&bytes).get(..16).unwrap_or_default()));
    let content_type = content_type(&file, &bytes);
    let caching = if content_type.starts_with("text/html") {
        "no-cache".to_owned()
    } else {
        format!("max-age={ASSETS_MAX_AGE_S}")
    };
    let known = IfNoneMatch::parse(&request).is_ok_and(|known| match known {
        IfNoneMatch::Any => true,
        IfNoneMatch::Items(tags) => tags.iter().any(|known| known.weak_eq(&tag)),
    });
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header(ETag(tag))
        .insert_header((header::CACHE_CONTROL, caching))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    Ok(if known { response.finish() } else { response.content_type(content_type).body(bytes) })
}

/// What lies at a path of the guide.
enum Found {
    File(PathBuf),
    /// A folder with a page, which was asked for without the `/` that its links need; its name.
    Folder(String),
}

/// What lies at a path below a folder, which is canonical; nothing outside of it, whatever the path and links say.
async fn find(root: &Path, path: &str) -> Option<Found> {
    let relative = Path::new(path);
    // `\` parts nothing here; it is in no name of the guide.
    let is_plain = !path.contains(['\\', '\0'])
        && relative.components().all(|component| match component {
            Component::Normal(name) => !name.as_encoded_bytes().starts_with(b"."),
            _ => false,
        });
    if !is_plain {
        return None;
    }
    let asked = tokio::fs::canonicalize(root.join(relative)).await.ok()?;
    let is_folder = tokio::fs::metadata(&asked).await.ok()?.is_dir();
    // Nothing is below a file.
    let file = if is_folder { asked.join(Config::GUIDE_PAGE) } else { asked };
    let file = tokio::fs::canonicalize(file).await.ok().filter(|file| file.starts_with(root))?;
    if !tokio::fs::metadata(&file).await.ok()?.is_file() || (!is_folder && path.ends_with('/')) {
        return None;
    }
    let name = relative.file_name().and_then(|name| name.to_str());
    match name {
        Some(name) if is_folder && !path.ends_with('/') => Some(Found::Folder(name.to_owned())),
        _ => Some(Found::File(file)),
    }
}

fn redirect(location: &str) -> HttpResponse {
    HttpResponse::TemporaryRedirect().insert_header((header::LOCATION, location)).finish()
}

/// The media type of a file of the guide. Whatever else is text, such as scripts that pages link to, is shown as such.
fn content_type(file: &Path, bytes: &[u8]) -> &'static str {
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "woff2" => "font/woff2",
        _ if std::str::from_utf8(bytes).is_ok() => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
