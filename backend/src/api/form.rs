//! Multipart forms, read within limits of size and number; every failure is an [`ApiError`].
//!
//! Tolerates common mistakes in the headers of forms: media types and names of parameters are case-insensitive, a boundary
//! may have unquoted characters that RFC 2045 wants quoted (`----=_Part_0_1.2`, as Java's mail library writes them), and
//! only the name of a part's `Content-Disposition` is read, so that its file name may be missing or in any encoding.

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

/// Maximum size of a text field, bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// Extracts a form with the fields of `T`.
pub struct Form<T>(pub T);

/// A file part; an error where it is too large, which leaves the other parts usable.
pub struct ImagePart(pub Result<Bytes, DecodeError>);

/// A text part.
pub struct TextPart(pub String);

/// The fields of a form. Parts with other names are ignored.
pub trait FormFields: Default {
    /// Returns the field of a name.
    fn field(&mut self, name: &str) -> Option<FormField<'_>>;
}

/// Where the parts of a name are stored.
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
        let (max_bytes, max_image_bytes) = request.app_data::<web::Data<State>>().map_or((0, 0), |state| {
            (state.config.listener.max_request_bytes, state.config.recognition.max_image_bytes)
        });
        let parts = parts(request.headers(), payload);
        Box::pin(async move { Ok(Self(read(parts?, max_bytes, max_image_bytes).await?)) })
    }
}

/// Opens the parts of a form.
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
    // Announces another kind of multipart body: for forms, actix-multipart parses the headers of parts itself, and
    // strictly.
    let content_type = [b"multipart/mixed; boundary=\"", boundary.as_slice(), b"\""].concat();
    let content_type = HeaderValue::from_bytes(&content_type)
        .map_err(|_| ApiError::MalformedForm("its Content-Type cannot be read".into()))?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, content_type);
    Ok(Multipart::new(&headers, payload.take()))
}

async fn read<T: FormFields>(mut parts: Multipart, max: usize, max_image: usize) -> Result<T, ApiError> {
    let mut form = T::default();
    let mut budget = ByteBudget { left: max, max };
    while let Some(mut part) = parts.try_next().await.map_err(malformed)? {
        let disposition = part.headers().get(header::CONTENT_DISPOSITION).map(HeaderValue::as_bytes);
        let name = disposition.and_then(|disposition| parameter(disposition, "name")).ok_or_else(|| {
            ApiError::MalformedForm("a part has no Content-Disposition with a parameter `name`".into())
        })?;
        let name = String::from_utf8_lossy(&name);
        match form.field(&name) {
            Some(FormField::Images(images)) => {
                images.push(read_image(&mut part, &mut budget, max_image).await?);
            }
            Some(FormField::Texts(texts)) => texts.push(read_text(&name, &mut part, &mut budget).await?),
            Some(FormField::Text(text)) => {
                let first = text.replace(read_text(&name, &mut part, &mut budget).await?);
                if first.is_some() {
                    return Err(invalid(&name, "stands in the form more than once".into()));
                }
            }
            None => while budget.next_chunk(&mut part).await?.is_some() {},
        }
    }
    Ok(form)
}

/// The remaining size of a form, bytes.
struct ByteBudget {
    left: usize,
    max: usize,
}

impl ByteBudget {
    async fn next_chunk(&mut self, part: &mut Field) -> Result<Option<Bytes>, ApiError> {
        let chunk = part.try_next().await.map_err(malformed)?;
        if let Some(chunk) = &chunk {
            self.left =
                self.left.checked_sub(chunk.len()).ok_or(ApiError::RequestTooLarge { max: self.max })?;
        }
        Ok(chunk)
    }
}

async fn read_image(part: &mut Field, budget: &mut ByteBudget, max: usize) -> Result<ImagePart, ApiError> {
    let mut kept = BytesMut::new();
    let mut bytes = 0_usize;
    while let Some(chunk) = budget.next_chunk(part).await? {
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

async fn read_text(name: &str, part: &mut Field, budget: &mut ByteBudget) -> Result<TextPart, ApiError> {
    let mut text = Vec::new();
    while let Some(chunk) = budget.next_chunk(part).await? {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_TEXT_BYTES {
            return Err(invalid(name, format!("is longer than {MAX_TEXT_BYTES} bytes")));
        }
    }
    if text.contains(&0) {
        return Err(invalid(name, "has the character U+0000".into()));
    }
    String::from_utf8(text).map(TextPart).map_err(|_| invalid(name, "is not UTF-8".into()))
}

fn invalid(field: &str, reason: String) -> ApiError {
    ApiError::InvalidField { field: field.to_owned(), reason }
}

fn malformed(error: MultipartError) -> ApiError {
    match error {
        // This is the library's own buffer; `ByteBudget` counts the form's bytes.
        MultipartError::Payload(PayloadError::Overflow) => {
            ApiError::MalformedForm("the headers of a part, or a line before the first, are too long".into())
        }
        MultipartError::Payload(error) => {
            body::refused(&error).unwrap_or_else(|| ApiError::MalformedForm(error.to_string()))
        }
        other => ApiError::MalformedForm(other.to_string()),
    }
}

/// Finds a parameter of a header's value, `…; name=value; name="value"`. Other parameters may have any bytes.
///
/// Names are case-insensitive and end at the first `=`; an unquoted value ends at the next `;`. In quotes, a backslash
/// escapes only a quote or another backslash: some clients send paths of files unescaped.
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

/// Returns the text before the closing quote, and the rest after it.
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
    fn parameters_are_found_among_any_others() {
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

    mod properties {
        use actix_web::dev::Payload;
        use futures_util::{StreamExt as _, stream};
        use proptest::{collection::vec, prelude::*, sample::Index};

        use super::*;

        /// A boundary that no generated content has.
        const BOUNDARY: &str = "=_a7d1f0c35b9e42d8_=";
        const MAX_BYTES: usize = 16 * 1024;
        const MAX_IMAGE_BYTES: usize = 300;

        #[derive(Default)]
        struct TestForm {
            images: Vec<ImagePart>,
            camera: Option<TextPart>,
            keys: Vec<TextPart>,
        }

        impl FormFields for TestForm {
            fn field(&mut self, name: &str) -> Option<FormField<'_>> {
                Some(match name {
                    "image" => FormField::Images(&mut self.images),
                    "camera_id" => FormField::Text(&mut self.camera),
                    "key" => FormField::Texts(&mut self.keys),
                    _ => return None,
                })
            }
        }

        /// Reads a body that arrives in chunks, split at these places.
        fn read_chunks(body: &[u8], splits: &[Index]) -> Result<TestForm, ApiError> {
            let mut ends: Vec<usize> = splits.iter().map(|split| split.index(body.len() + 1)).collect();
            ends.push(body.len());
            ends.sort_unstable();
            let mut start = 0;
            let chunks: Vec<Result<Bytes, PayloadError>> = ends
                .into_iter()
                .map(|end| Ok(Bytes::copy_from_slice(&body[std::mem::replace(&mut start, end)..end])))
                .collect();
            let mut payload = Payload::Stream { payload: stream::iter(chunks).boxed_local() };
            let content_type = format!("multipart/form-data; boundary=\"{BOUNDARY}\"");
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::try_from(content_type).unwrap())]);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async { read(parts(&headers, &mut payload)?, MAX_BYTES, MAX_IMAGE_BYTES).await })
        }

        fn part(name: &str, content: &[u8]) -> Vec<u8> {
            let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
            [head.as_bytes(), content, b"\r\n"].concat()
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(64))]

            #[test]
            fn forms_are_read_as_they_were_written(
                images in vec(vec(any::<u8>(), 0..400), 0..4),
                camera in proptest::option::of("\\PC{0,80}"),
                keys in vec("\\PC{0,80}", 0..4),
                other in vec(any::<u8>(), 0..100),
                splits in vec(any::<Index>(), 0..12),
            ) {
                let mut body: Vec<u8> = images.iter().flat_map(|image| part("image", image)).collect();
                body.extend(part("other", &other));
                body.extend(camera.iter().flat_map(|text| part("camera_id", text.as_bytes())));
                body.extend(keys.iter().flat_map(|text| part("key", text.as_bytes())));
                body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
                let form = read_chunks(&body, &splits).unwrap();
                prop_assert_eq!(form.images.len(), images.len());
                for (ImagePart(read), sent) in form.images.iter().zip(&images) {
                    let bytes = sent.len();
                    match read {
                        Ok(read) => prop_assert_eq!(&read[..], &sent[..]),
                        Err(error) => {
                            let max = MAX_IMAGE_BYTES;
                            prop_assert!(bytes > max);
                            prop_assert_eq!(error, &DecodeError::TooManyBytes { bytes, max });
                        }
                    }
                    prop_assert_eq!(read.is_ok(), bytes <= MAX_IMAGE_BYTES);
                }
                prop_assert_eq!(form.camera.map(|text| text.0), camera);
                prop_assert_eq!(form.keys.into_iter().map(|text| text.0).collect::<Vec<_>>(), keys);
            }

            #[test]
            fn truncated_forms_are_errors(
                image in vec(any::<u8>(), 0..200),
                cut in any::<Index>(),
                splits in vec(any::<Index>(), 0..4),
            ) {
                let mut body = part("image", &image);
                body.extend(format!("--{BOUNDARY}--").into_bytes());
                let whole = body.len();
                body.truncate(cut.index(whole));
                prop_assert!(read_chunks(&body, &splits).is_err());
            }

            #[test]
            fn any_bytes_are_a_form_or_an_error_of_the_client(
                body in vec(any::<u8>(), 0..600),
                splits in vec(any::<Index>(), 0..4),
            ) {
                let body = [format!("--{BOUNDARY}\r\n").as_bytes(), &body].concat();
                if let Err(error) = read_chunks(&body, &splits) {
                    prop_assert!(error.row().status.is_client_error(), "{error}");
                }
            }

            #[test]
            fn quoted_parameters_are_unquoted(value in "[^\\x00-\\x1f\\x7f]{0,60}", before in "[a-z]{1,8}") {
                let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
                let header = format!("form-data; x{before}=\"{quoted}\"; name=\"{quoted}\"");
                prop_assert_eq!(parameter(header.as_bytes(), "name"), Some(value.into_bytes()));
            }
        }
    }
}
