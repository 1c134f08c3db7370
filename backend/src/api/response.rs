//! Responses with their status and body in the type, so that the API's document follows from the handlers.

use actix_web::{
    HttpRequest, HttpResponse, Responder,
    body::BoxBody,
    http::{
        StatusCode,
        header::{self, Accept, Header as _, HeaderName},
    },
};
use bytes::Bytes;
use facepipe_shared::spreadsheet_cell;
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

use crate::error::ApiError;

/// A JSON response of a status, with headers.
pub struct JsonResponse<T, const STATUS: u16 = 200> {
    body: T,
    headers: Vec<(HeaderName, String)>,
}

impl<T, const STATUS: u16> JsonResponse<T, STATUS> {
    /// Creates a response without further headers.
    pub fn new(body: T) -> Self {
        Self { body, headers: Vec::new() }
    }

    /// Adds a header.
    pub fn header(self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers([(name, value.into())])
    }

    /// Adds headers.
    pub fn headers(mut self, headers: impl IntoIterator<Item = (HeaderName, String)>) -> Self {
        self.headers.extend(headers);
        self
    }
}

impl<T: Serialize, const STATUS: u16> Responder for JsonResponse<T, STATUS> {
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

impl<T: Apiv2Schema, const STATUS: u16> Apiv2Schema for JsonResponse<T, STATUS> {
    fn name() -> Option<String> {
        T::name()
    }

    fn raw_schema() -> DefaultSchemaRaw {
        T::raw_schema()
    }
}

impl<T: Apiv2Schema, const STATUS: u16> OperationModifier for JsonResponse<T, STATUS> {
    fn update_response(operation: &mut DefaultOperationRaw) {
        let mut schema = T::schema_with_ref();
        schema.retain_ref();
        describe(operation, STATUS, Some(schema));
    }
}

/// 204, with headers.
pub struct NoContent {
    headers: Vec<(HeaderName, String)>,
}

impl NoContent {
    /// Creates a response without further headers.
    pub fn new() -> Self {
        Self { headers: Vec::new() }
    }

    /// Adds a header.
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

/// The bytes of an image as they were uploaded, not to be cached.
pub struct ImageContent {
    /// The file.
    pub bytes: Bytes,
    /// Its format.
    pub format: ImageFormat,
}

impl Responder for ImageContent {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        HttpResponse::Ok()
            .content_type(self.format.to_mime_type())
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .body(self.bytes)
    }
}

impl Apiv2Schema for ImageContent {}

impl OperationModifier for ImageContent {
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

/// A table as CSV, with headers.
pub struct Csv {
    /// The table; the first line has the names of the columns.
    pub text: Vec<u8>,
    /// The headers.
    pub headers: Vec<(HeaderName, String)>,
}

/// Writes a table as CSV: the names of the columns, then a line for each row, which serialises as their values. Texts that
/// a spreadsheet would calculate begin with an apostrophe.
///
/// # Errors
/// A row cannot be written.
pub fn csv_of(fields: &[&str], rows: impl IntoIterator<Item = impl Serialize>) -> Result<Vec<u8>, ApiError> {
    let internal = |error: csv::Error| ApiError::Internal(error.into());
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    // Writes the names of the columns by hand, so that an empty table has them, too.
    writer.write_record(fields).map_err(internal)?;
    let mut line = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    for row in rows {
        line.serialize(row).map_err(internal)?;
    }
    let lines = line.into_inner().map_err(|error| ApiError::Internal(error.into_error().into()))?;
    for row in csv::ReaderBuilder::new().has_headers(false).from_reader(&lines[..]).records() {
        let row = row.map_err(internal)?;
        writer.write_record(row.iter().map(|cell| spreadsheet_cell(cell).into_owned())).map_err(internal)?;
    }
    writer.into_inner().map_err(|error| ApiError::Internal(error.into_error().into()))
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

// The second form of a JSON response, which Swagger 2 cannot express: the table of routes has it.
impl OperationModifier for Csv {}

/// One of two responses.
pub enum OneOf<A, B> {
    /// The first.
    First(A),
    /// The second.
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

/// Returns a temporary redirect. A relative `location` works behind a proxy that strips a prefix of the path.
pub fn redirect(location: &str) -> HttpResponse {
    HttpResponse::TemporaryRedirect().insert_header((header::LOCATION, location)).finish()
}

/// Returns whether `Accept` ranks a text type, such as `text/html`, above JSON and above `*/*`.
pub fn prefers(request: &HttpRequest, text_type: &str) -> bool {
    let ranked = Accept::parse(request).map(|accept| accept.ranked()).unwrap_or_default();
    let preferred = ranked.iter().find_map(|media| match media.essence_str() {
        "text/*" => Some(true),
        "application/json" | "application/*" | "*/*" => Some(false),
        other => (other == text_type).then_some(true),
    });
    preferred.unwrap_or(false)
}

/// Adds a response to an operation of the document.
pub fn describe(operation: &mut DefaultOperationRaw, status: u16, schema: Option<DefaultSchemaRaw>) {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let response = Response { description: reason.map(str::to_owned), schema, ..Response::default() };
    operation.responses.insert(status.to_string(), Either::Right(response));
}
