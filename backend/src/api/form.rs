//! Multipart forms: read within limits of bytes and number, every failure an [`ApiError`].

use std::{future::Future, pin::Pin, rc::Rc};

use actix_multipart::{
    Field, MultipartError,
    form::{FieldReader, Limits, MultipartCollect, MultipartForm, MultipartFormConfig},
};
use actix_web::{
    Error, FromRequest, HttpMessage as _, HttpRequest,
    dev::Payload,
    error::PayloadError,
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

type LocalFuture<'t, T> = Pin<Box<dyn Future<Output = T> + 't>>;

impl<T: MultipartCollect + 'static> FromRequest for Form<T> {
    type Error = Error;
    type Future = LocalFuture<'static, Result<Self, Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        if request.content_type() != "multipart/form-data" {
            return Box::pin(async { Err(ApiError::UnsupportedMediaType.into()) });
        }
        let form = MultipartForm::<T>::from_request(request, payload);
        Box::pin(async move {
            match form.await {
                Ok(form) => Ok(Self(form.into_inner())),
                // A form without a boundary is refused before the configured handler is asked.
                Err(error) => Err(match error.as_error::<MultipartError>() {
                    Some(malformed) => ApiError::MalformedForm(malformed.to_string()).into(),
                    None => error,
                }),
            }
        })
    }
}

/// The limits of a form and what its failures become.
pub fn form_config(max_request_bytes: usize) -> MultipartFormConfig {
    MultipartFormConfig::default()
        .total_limit(max_request_bytes)
        .memory_limit(max_request_bytes)
        .error_handler(move |error, _| form_error(error, max_request_bytes))
}

fn form_error(error: MultipartError, max: usize) -> Error {
    match error {
        MultipartError::Payload(PayloadError::Overflow) => ApiError::RequestTooLarge { max }.into(),
        MultipartError::Payload(error) => {
            body::late(&error).unwrap_or_else(|| ApiError::MalformedForm(error.to_string())).into()
        }
        // What the readers below say.
        MultipartError::Field { source, .. } => source,
        MultipartError::DuplicateField(field) => {
            ApiError::InvalidField { field, reason: "stands in the form more than once".into() }.into()
        }
        other => ApiError::MalformedForm(other.to_string()).into(),
    }
}

impl<'t> FieldReader<'t> for ImagePart {
    type Future = LocalFuture<'t, Result<Self, MultipartError>>;

    fn read_field(request: &'t HttpRequest, mut field: Field, limits: &'t mut Limits) -> Self::Future {
        Box::pin(async move {
            let max = request.app_data::<web::Data<State>>().map_or(0, |s| s.config.max_image_bytes);
            let mut kept = BytesMut::new();
            let mut bytes = 0_usize;
            while let Some(chunk) = field.try_next().await? {
                limits.try_consume_limits(chunk.len(), true)?;
                bytes = bytes.saturating_add(chunk.len());
                if bytes <= max {
                    kept.extend_from_slice(&chunk);
                } else {
                    kept = BytesMut::new();
                }
            }
            Ok(Self(if bytes > max {
                Err(DecodeError::TooManyBytes { bytes, max })
            } else {
                Ok(kept.freeze())
            }))
        })
    }
}

impl<'t> FieldReader<'t> for TextPart {
    type Future = LocalFuture<'t, Result<Self, MultipartError>>;

    fn read_field(_: &'t HttpRequest, mut field: Field, limits: &'t mut Limits) -> Self::Future {
        Box::pin(async move {
            let name: Rc<str> = field.name().unwrap_or_default().into();
            let refuse = |reason: String| MultipartError::Field {
                name: name.to_string(),
                source: ApiError::InvalidField { field: name.to_string(), reason }.into(),
            };
            let mut text = Vec::new();
            while let Some(chunk) = field.try_next().await? {
                limits.try_consume_limits(chunk.len(), true)?;
                text.extend_from_slice(&chunk);
                if text.len() > MAX_TEXT_BYTES {
                    return Err(refuse(format!("is longer than {MAX_TEXT_BYTES} bytes")));
                }
            }
            String::from_utf8(text).map(Self).map_err(|_| refuse("is not UTF-8".into()))
        })
    }
}
