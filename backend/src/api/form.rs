//! Multipart forms: read within limits of bytes and number, every failure an [`ApiError`].
//!
//! Clients are careless about the headers of forms, and nothing here depends on what they get wrong: media types and
//! parameters count in any case, a boundary may have characters that RFC 2045 wants in quotes (`----=_Part_0_1.2`, as
//! Java's mail library writes them), and of a part's `Content-Disposition` the name alone is read, so that its file name
//! may be missing, or of any encoding.

use std::{future::Future, pin::Pin};

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::{
    Error, FromRequest, HttpRequest,
    dev::Payload,
    error::PayloadError,
    http::header::{self, HeaderMap, HeaderValue},
    web::{self, Bytes, BytesMut},
};
use facepipe_vision::DecodeError;
use futures_util::TryStreamExt as _;

use super::{State, body};
use crate::error::ApiError;

/// Bytes of a text field at most.
const MAX_TEXT_BYTES: usize = 1024;

/// A form of the fields of `T`.
pub struct Form<T>(pub T);

/// A file part. One that is too large is not kept; the other parts still are.
pub struct ImagePart(pub Result<Bytes, DecodeError>);

/// A text part.
pub struct TextPart(pub String);

/// What a form is read into. Parts of other names are read and dropped.
pub trait FormFields: Default {
    /// Where the parts of a name go, if the form has that name.
    fn field(&mut self, name: &str) -> Option<FormField<'_>>;
}

/// Where the parts of a name go.
pub enum FormField<'f> {
    /// Any number of files.
    Images(&'f mut Vec<ImagePart>),
    /// A text, once at most.
    Text(&'f mut Option<TextPart>),
    /// Any number of texts.
    Texts(&'f mut Vec<TextPart>),
}

impl<T: FormFields + 'static> FromRequest for Form<T> {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (max_bytes, max_image_bytes) = request
            .app_data::<web::Data<State>>()
            .map_or((0, 0), |state| (state.config.max_request_bytes, state.config.max_image_bytes));
        let parts = parts(request.headers(), payload);
        Box::pin(async move { Ok(Self(read(parts?, max_bytes, max_image_bytes).await?)) })
    }
}

/// The parts of a form.
fn parts(headers: &HeaderMap, payload: &mut Payload) -> Result<Multipart, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    if !media_type.trim_ascii().eq_ignore_ascii_case(b"multipart/form-data") {
        return Err(ApiError::UnsupportedMediaType);
    }
    let boundary = parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty());
    let boundary = boundary
        .ok_or_else(|| ApiError::MalformedForm("its Content-Type has no parameter `boundary`".into()))?;
    if !boundary.iter().all(|&byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
        return Err(ApiError::MalformedForm(
            "the `boundary` of its Content-Type has characters that no boundary may have (RFC 2046, section 5.1.1)"
                .into(),
        ));
    }
    // As another kind of multipart body, since of a form the library itself would read what is to be read here.
    let content_type = [b"multipart/mixed; boundary=\"", boundary.as_slice(), b"\""].concat();
    let content_type = HeaderValue::from_bytes(&content_type)
        .map_err(|_| ApiError::MalformedForm("its Content-Type cannot be read".into()))?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, content_type);
    Ok(Multipart::new(&headers, payload.take()))
}

async fn read<T: FormFields>(mut parts: Multipart, max: usize, max_image: usize) -> Result<T, ApiError> {
    let mut form = T::default();
    let mut room = Room { left: max, max };
    while let Some(mut part) = parts.try_next().await.map_err(malformed)? {
        let disposition = part.headers().get(header::CONTENT_DISPOSITION).map(HeaderValue::as_bytes);
        let name = disposition.and_then(|disposition| parameter(disposition, "name")).ok_or_else(|| {
            ApiError::MalformedForm("a part has no Content-Disposition with a parameter `name`".into())
        })?;
        let name = String::from_utf8_lossy(&name);
        match form.field(&name) {
            Some(FormField::Images(images)) => {
                images.push(read_image(&mut part, &mut room, max_image).await?);
            }
            Some(FormField::Texts(texts)) => texts.push(read_text(&name, &mut part, &mut room).await?),
            Some(FormField::Text(text)) => {
                let first = text.replace(read_text(&name, &mut part, &mut room).await?);
                if first.is_some() {
                    return Err(invalid(&name, "stands in the form more than once".into()));
                }
            }
            None => while room.next_chunk(&mut part).await?.is_some() {},
        }
    }
    Ok(form)
}

/// The bytes that a form may still have.
struct Room {
    left: usize,
    max: usize,
}

impl Room {
    async fn next_chunk(&mut self, part: &mut Field) -> Result<Option<Bytes>, ApiError> {
        let chunk = part.try_next().await.map_err(malformed)?;
        if let Some(chunk) = &chunk {
            self.left =
                self.left.checked_sub(chunk.len()).ok_or(ApiError::RequestTooLarge { max: self.max })?;
        }
        Ok(chunk)
    }
}

async fn read_image(part: &mut Field, room: &mut Room, max: usize) -> Result<ImagePart, ApiError> {
    let mut kept = BytesMut::new();
    let mut bytes = 0_usize;
    while let Some(chunk) = room.next_chunk(part).await? {
        bytes = bytes.saturating_add(chunk.len());
        if bytes <= max {
            kept.extend_from_slice(&chunk);
        } else {
            kept = BytesMut::new();
        }
    }
    let too_many = DecodeError::TooManyBytes { bytes, max };
    Ok(ImagePart(if bytes > max { Err(too_many) } else { Ok(kept.freeze()) }))
}

async fn read_text(name: &str, part: &mut Field, room: &mut Room) -> Result<TextPart, ApiError> {
    let mut text = Vec::new();
    while let Some(chunk) = room.next_chunk(part).await? {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_TEXT_BYTES {
            return Err(invalid(name, format!("is longer than {MAX_TEXT_BYTES} bytes")));
        }
    }
    String::from_utf8(text).map(TextPart).map_err(|_| invalid(name, "is not UTF-8".into()))
}

fn invalid(field: &str, reason: String) -> ApiError {
    ApiError::InvalidField { field: field.to_owned(), reason }
}

fn malformed(error: MultipartError) -> ApiError {
    match error {
        // The library's own buffer: a form's bytes are counted above.
        MultipartError::Payload(PayloadError::Overflow) => {
            ApiError::MalformedForm("the headers of a part, or a line before the first, are too long".into())
        }
        MultipartError::Payload(error) => {
            body::late(&error).unwrap_or_else(|| ApiError::MalformedForm(error.to_string()))
        }
        other => ApiError::MalformedForm(other.to_string()),
    }
}

/// A parameter of a header's value, `…; name=value; name="value"`, whatever the bytes of the others.
///
/// What stands before the first `=` of a parameter is its name, in any case; an unquoted value goes on to the next `;`.
/// In quotes a backslash stands for itself unless a quote or another backslash follows: some clients send the paths of
/// files as they are.
fn parameter(header: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut rest = header;
    loop {
        let start = rest.iter().position(|&byte| byte == b';')?;
        rest = rest.get(start + 1..)?;
        let end = rest.iter().position(|&byte| matches!(byte, b'=' | b';'))?;
        let found = rest.get(..end)?.trim_ascii();
        rest = rest.get(end..)?;
        let Some(value) = rest.strip_prefix(b"=") else { continue };
        rest = value.trim_ascii_start();
        let value = match rest.strip_prefix(b"\"") {
            Some(quoted) => {
                let (value, after) = unquote(quoted);
                rest = after;
                value
            }
            None => {
                let end = rest.iter().position(|&byte| byte == b';').unwrap_or(rest.len());
                let (value, after) = rest.split_at_checked(end)?;
                rest = after;
                value.trim_ascii().to_vec()
            }
        };
        if found.eq_ignore_ascii_case(name.as_bytes()) {
            return Some(value);
        }
    }
}

/// What stands before the closing quote, and what after it.
fn unquote(quoted: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut value = Vec::new();
    let mut rest = quoted;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after.split_first()) {
            (b'"', _) => break,
            (b'\\', Some((&escaped @ (b'"' | b'\\'), after))) => {
                value.push(escaped);
                rest = after;
            }
            _ => value.push(byte),
        }
    }
    (value, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_whatever_stands_beside_them() {
        let found =
            |header: &[u8], name| parameter(header, name).map(|value| String::from_utf8(value).unwrap());
        for (header, boundary) in [
            (&b"multipart/form-data; boundary=x"[..], Some("x")),
            (b"Multipart/Form-Data;charset=UTF-8;BOUNDARY=x ;more=y", Some("x")),
            (b"multipart/form-data; boundary=----=_Part_0_1.2", Some("----=_Part_0_1.2")),
            (b"multipart/form-data; boundary=a:b/c?(d),'e'", Some("a:b/c?(d),'e'")),
            (b"multipart/form-data; boundary=\"a b=c;d\"; charset=utf-8", Some("a b=c;d")),
            (b"multipart/form-data; a=\"boundary=y\"; boundary = x", Some("x")),
            (b"multipart/form-data; a; boundary=x", Some("x")),
            (b"multipart/form-data; boundary", None),
            (b"multipart/form-data; xboundary=x", None),
            (b"multipart/form-data", None),
            (b"boundary=x", None),
            (b"", None),
        ] {
            assert_eq!(found(header, "boundary").as_deref(), boundary, "{}", header.escape_ascii());
        }
        for disposition in [
            &b"form-data; filename=\"\xe4\xff.jpg\"; name=\"image\""[..],
            b"form-data; name=\"image\"; filename=\"\xe4.jpg\"",
            b"form-data; filename=; name=image",
            b"form-data; filename=\xff;name=image",
            b"form-data; filename=\"a \\\"name=\\\" b\"; name=image",
            b"form-data; filename=\"C:\\name=x\"; name=image",
            b"form-data; filename*=nonsense; name=image",
            b"form-data; filename=\"name=x; name=y\"; Name=image",
            b"FORM-DATA;name=\"image\";filename=\"unfinished",
        ] {
            assert_eq!(
                found(disposition, "name").as_deref(),
                Some("image"),
                "{}",
                disposition.escape_ascii()
            );
        }
        assert_eq!(found(b"form-data; name=\"a\\\"b\\\\c\\d\"", "name").as_deref(), Some("a\"b\\c\\d"));
    }
}
