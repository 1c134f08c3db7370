//! The guide at `/docs/guide`: the site that `make docs` builds, from the folder where a package installs it.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::SystemTime,
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, ETag, EntityTag, Header as _, IfNoneMatch},
    web,
};
use bytes::Bytes;
use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};

use super::{State, response::redirect};
use crate::{config::BrowserConfig, error::ApiError};

/// `max-age` of files other than pages, seconds. Pages name the version of everything else and are revalidated each time.
const ASSETS_MAX_AGE_S: u32 = 3600;

/// Pages load from this server only and run no inline scripts.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     font-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// `/docs/guide`, without the `/` that its links need.
pub async fn root() -> HttpResponse {
    redirect("guide/")
}

/// A file of the guide.
///
/// # Errors
/// There is no such file, or no guide.
pub async fn file(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<State>,
) -> Result<HttpResponse, ApiError> {
    let Ok(root) = tokio::fs::canonicalize(state.config.browsers.guide()).await else {
        return Err(ApiError::GuideNotInstalled);
    };
    let Some(found) = find(&root, &path).await else {
        let installed = tokio::fs::try_exists(root.join(BrowserConfig::GUIDE_PAGE)).await.unwrap_or_default();
        return Err(if installed { ApiError::NotFound } else { ApiError::GuideNotInstalled });
    };
    let file = match found {
        Found::File(file) => file,
        Found::Folder(name) => return Ok(redirect(&format!("{name}/"))),
    };
    let CachedFile { bytes, tag, .. } =
        read(&file).await.map_err(|error| ApiError::Internal(error.into()))?;
    let tag = EntityTag::new_strong(tag);
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

/// A file in memory: all of its readers share the bytes.
#[derive(Clone)]
struct CachedFile {
    version: (Option<SystemTime>, u64),
    bytes: Bytes,
    tag: String,
}

/// Maximum number of bytes of files in memory. The guide has a few million.
const MAX_CACHED_BYTES: usize = 64 * 1024 * 1024;

/// The files that were read, by their canonical paths.
static CACHE: LazyLock<Mutex<HashMap<PathBuf, CachedFile>>> = LazyLock::new(Mutex::default);

/// Reads a file, unless it is in memory and has not changed.
async fn read(file: &Path) -> std::io::Result<CachedFile> {
    let metadata = tokio::fs::metadata(file).await?;
    let version = (metadata.modified().ok(), metadata.len());
    let cache = || CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    let cached = cache().get(file).filter(|cached| cached.version == version).cloned();
    if let Some(cached) = cached {
        return Ok(cached);
    }
    let bytes = Bytes::from(tokio::fs::read(file).await?);
    let tag = hex(Sha256::digest(&bytes).get(..16).unwrap_or_default());
    let read = CachedFile { version, bytes, tag };
    let mut cache = cache();
    let others = cache.iter().filter(|(path, _)| *path != file).map(|(_, other)| other.bytes.len());
    if others.sum::<usize>().saturating_add(read.bytes.len()) <= MAX_CACHED_BYTES {
        cache.insert(file.to_owned(), read.clone());
    }
    Ok(read)
}

/// The entry at a path of the guide.
enum Found {
    File(PathBuf),
    /// A folder with a page, requested without the `/` that its links need; its name.
    Folder(String),
}

/// Finds a path below the canonical folder `root`. Never leaves the folder, regardless of the path and of symbolic
/// links.
async fn find(root: &Path, path: &str) -> Option<Found> {
    let relative = Path::new(path);
    // `\` is no separator here, and no name of the guide has one.
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
    // A file has nothing below it.
    let file = if is_folder { asked.join(BrowserConfig::GUIDE_PAGE) } else { asked };
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

/// Returns the media type of a file of the guide. Other text, such as scripts that pages link to, is plain text.
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
