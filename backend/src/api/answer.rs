//! Answers whose types say their status and body, so that the API's document follows from the handlers.

use actix_web::{
    HttpRequest, HttpResponse, Responder,
    body::BoxBody,
    http::{
        StatusCode,
        header::{self, HeaderName},
    },
};
use bytes::Bytes;
use image::ImageFormat;
use paperclip::{
    actix::OperationModifier,
    v2::{
        models::{
            DataType, DataTypeFormat, DefaultOperationRaw, DefaultSchemaRaw, Either, MediaRange, Response,
        },
        schema::Apiv2Schema,
    },
};
use serde::Serialize;

/// A JSON answer of a status, with its headers.
pub struct Answer<T, const STATUS: u16 = 200> {
    body: T,
    headers: Vec<(HeaderName, String)>,
}

impl<T, const STATUS: u16> Answer<T, STATUS> {
    /// An answer without headers of its own.
    pub fn new(body: T) -> Self {
        Self { body, headers: Vec::new() }
    }

    /// The same with one header more.
    pub fn header(self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers([(name, value.into())])
    }

    /// The same with more headers.
    pub fn headers(mut self, headers: impl IntoIterator<Item = (HeaderName, String)>) -> Self {
        self.headers.extend(headers);
        self
    }
}

impl<T: Serialize, const STATUS: u16> Responder for Answer<T, STATUS> {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        let mut response =
            HttpResponse::build(StatusCode::from_u16(STATUS).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
        for header in self.headers {
            response.insert_header(header);
        }
        response.json(self.body)
    }
}

impl<T: Apiv2Schema, const STATUS: u16> Apiv2Schema for Answer<T, STATUS> {
    fn name() -> Option<String> {
        T::name()
    }

    fn raw_schema() -> DefaultSchemaRaw {
        T::raw_schema()
    }
}

impl<T: Apiv2Schema, const STATUS: u16> OperationModifier for Answer<T, STATUS> {
    fn update_response(operation: &mut DefaultOperationRaw) {
        let mut schema = T::schema_with_ref();
        schema.retain_ref();
        describe(operation, STATUS, Some(schema));
    }
}

/// 204, with its headers.
pub struct NoContent {
    headers: Vec<(HeaderName, String)>,
}

impl NoContent {
    /// An answer without headers of its own.
    pub fn new() -> Self {
        Self { headers: Vec::new() }
    }

    /// The same with one header more.
    pub fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Responder for NoContent {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        let mut response = HttpResponse::NoContent();
        for header in self.headers {
            response.insert_header(header);
        }
        response.finish()
    }
}

impl Apiv2Schema for NoContent {}

impl OperationModifier for NoContent {
    fn update_response(operation: &mut DefaultOperationRaw) {
        describe(operation, 204, None);
    }
}

/// A picture, byte by byte as it was sent. It is nobody's to cache.
pub struct Picture {
    /// The file.
    pub bytes: Bytes,
    /// What it is.
    pub format: ImageFormat,
}

impl Responder for Picture {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        HttpResponse::Ok()
            .content_type(self.format.to_mime_type())
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .body(self.bytes)
    }
}

impl Apiv2Schema for Picture {}

impl OperationModifier for Picture {
    fn update_response(operation: &mut DefaultOperationRaw) {
        let formats =
            [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif];
        let media = formats.iter().filter_map(|format| format.to_mime_type().parse().ok());
        operation.produces = Some(media.map(MediaRange).collect());
        let file = DefaultSchemaRaw {
            data_type: Some(DataType::File),
            format: Some(DataTypeFormat::Binary),
            description: Some("The picture.".into()),
            ..DefaultSchemaRaw::default()
        };
        describe(operation, 200, Some(file));
    }
}

/// A table as CSV, with the answer's headers.
pub struct Csv {
    /// The table; its first line names the columns.
    pub text: Vec<u8>,
    /// The headers.
    pub headers: Vec<(HeaderName, String)>,
}

impl Responder for Csv {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        let mut response = HttpResponse::Ok();
        for header in self.headers {
            response.insert_header(header);
        }
        response.content_type("text/csv; charset=utf-8; header=present").body(self.text)
    }
}

impl Apiv2Schema for Csv {}

// A second form of an answer that is JSON otherwise, for which Swagger 2 has no place: the table of calls has it.
impl OperationModifier for Csv {}

/// One answer or another.
pub enum OneOf<A, B> {
    /// The one.
    First(A),
    /// The other.
    Second(B),
}

impl<A, B> Responder for OneOf<A, B>
where
    A: Responder<Body = BoxBody>,
    B: Responder<Body = BoxBody>,
{
    type Body = BoxBody;

    fn respond_to(self, request: &HttpRequest) -> HttpResponse {
        match self {
            Self::First(answer) => answer.respond_to(request),
            Self::Second(answer) => answer.respond_to(request),
        }
    }
}

impl<A, B> Apiv2Schema for OneOf<A, B> {}

impl<A: OperationModifier, B: OperationModifier> OperationModifier for OneOf<A, B> {
    fn update_response(operation: &mut DefaultOperationRaw) {
        A::update_response(operation);
        B::update_response(operation);
    }

    fn update_definitions(definitions: &mut std::collections::BTreeMap<String, DefaultSchemaRaw>) {
        A::update_definitions(definitions);
        B::update_definitions(definitions);
    }
}

/// Adds what an answer is to its call.
pub fn describe(operation: &mut DefaultOperationRaw, status: u16, schema: Option<DefaultSchemaRaw>) {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let response = Response { description: reason.map(str::to_owned), schema, ..Response::default() };
    operation.responses.insert(status.to_string(), Either::Right(response));
}
