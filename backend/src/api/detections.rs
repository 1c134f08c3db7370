//! `/database/detections` and `/database/{id}/track`: who was seen where and when, page by page.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, Accept, Header as _},
    web,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    State, face_id,
    recognition::{BoundingBox, moment},
    rfc3339,
};
use crate::{
    error::ApiError,
    face_id::FaceId,
    store::{
        Micros,
        sql::{DetectionFilter, DetectionOrder, DetectionPosition, DetectionRow},
    },
};

/// Entries of a page at most.
const MAX_LIMIT: u32 = 1000;
/// Entries of a page of detections, unless asked otherwise.
const LIST_LIMIT: u32 = 100;

/// Query of the list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    person: Option<String>,
    camera: Option<String>,
    location: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// Query of a track.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackQuery {
    from: Option<String>,
    to: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Detections {
    detections: Vec<Detection>,
    meta: Meta,
}

#[derive(Serialize)]
struct Track {
    face_id: String,
    detections: Vec<Detection>,
    meta: Meta,
}

#[derive(Serialize)]
struct Meta {
    /// What gets the next page; null on the last one.
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct Detection {
    id: i64,
    captured_at: String,
    received_at: String,
    camera_id: String,
    location: String,
    /// Null for an unknown face and for an erased person.
    face_id: Option<String>,
    confidence: Option<f32>,
    score: Option<f32>,
    threshold: f32,
    detection_confidence: f32,
    model_version: Option<i64>,
    track_id: Option<i64>,
    bounding_box: BoundingBox,
}

/// A line of the CSV form: the same fields, where nothing is null and nothing is nested.
#[derive(Serialize)]
struct Line {
    id: i64,
    captured_at: String,
    received_at: String,
    camera_id: String,
    location: String,
    face_id: Option<String>,
    confidence: Option<f32>,
    score: Option<f32>,
    threshold: f32,
    detection_confidence: f32,
    model_version: Option<i64>,
    track_id: Option<i64>,
    left: f32,
    top: f32,
    right: f32,
    bottom: f32,
}

/// The detections to which the query applies, the newest first; as CSV where `Accept` prefers `text/csv`.
pub async fn list(
    state: web::Data<State>,
    request: HttpRequest,
    query: web::Query<ListQuery>,
) -> Result<HttpResponse, ApiError> {
    let ListQuery { person, camera, location, from, to, limit, cursor } = query.into_inner();
    let (from, to) = time_range(from, to)?;
    let person = person.map(FaceId::try_from).transpose()?;
    let filter = DetectionFilter { person, camera_id: camera, location, from, to };
    let page = Page::read(filter, DetectionOrder::NewestFirst, limit, LIST_LIMIT, cursor)?;
    let (rows, next_cursor) = page.load(&state).await?;

    let mut answer = HttpResponse::Ok();
    answer.insert_header((header::VARY, "accept"));
    if let Some(cursor) = &next_cursor {
        // CSV has no place for it.
        answer.insert_header(("x-next-cursor", cursor.as_str()));
    }
    if prefers_csv(&request) {
        return Ok(answer.content_type("text/csv; charset=utf-8; header=present").body(csv(rows)?));
    }
    let detections = rows.into_iter().map(Detection::try_from).collect::<Result<_, _>>()?;
    Ok(answer.json(Detections { detections, meta: Meta { next_cursor } }))
}

/// Where a person was, in the order of time.
pub async fn track(
    state: web::Data<State>,
    path: web::Path<String>,
    query: web::Query<TrackQuery>,
) -> Result<HttpResponse, ApiError> {
    let id = face_id(path)?;
    let TrackQuery { from, to, limit, cursor } = query.into_inner();
    let (from, to) = time_range(from, to)?;
    let filter = DetectionFilter { person: Some(id.clone()), from, to, ..DetectionFilter::default() };
    let page = Page::read(filter, DetectionOrder::OldestFirst, limit, MAX_LIMIT, cursor)?;
    let (rows, next_cursor) = page.load(&state).await?;
    let detections = rows.into_iter().map(Detection::try_from).collect::<Result<_, _>>()?;
    Ok(HttpResponse::Ok().json(Track { face_id: id.to_string(), detections, meta: Meta { next_cursor } }))
}

/// One page of a query.
struct Page {
    filter: DetectionFilter,
    order: DetectionOrder,
    limit: u32,
    after: Option<DetectionPosition>,
    /// What a cursor belongs to.
    scope: String,
}

impl Page {
    fn read(
        filter: DetectionFilter,
        order: DetectionOrder,
        limit: Option<String>,
        default: u32,
        cursor: Option<String>,
    ) -> Result<Self, ApiError> {
        let limit = match limit {
            None => default,
            Some(text) => limit_of(text)?,
        };
        let scope = format!("{order:?} {filter:?}");
        let position = |text: String| position_of(&text, &scope).ok_or(ApiError::InvalidCursor);
        let after = cursor.map(position).transpose()?;
        Ok(Self { filter, order, limit, after, scope })
    }

    /// The page's rows, and the cursor of the next one.
    async fn load(self, state: &State) -> Result<(Vec<DetectionRow>, Option<String>), ApiError> {
        let Self { filter, order, limit, after, scope } = self;
        // One more than asked for tells whether there is a next page.
        let mut rows = state.database.detections(filter, order, after, i64::from(limit) + 1).await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| more);
        let next =
            last.map(|row| cursor_of(DetectionPosition { captured_at: row.captured_at, id: row.id }, &scope));
        Ok((rows, next))
    }
}

fn limit_of(text: String) -> Result<u32, ApiError> {
    // A whole number beyond the type is out of range, not unreadable.
    let digits = text.strip_prefix('-').unwrap_or(&text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ApiError::InvalidQuery(format!("limit is {text:?}, it must be a whole number")));
    }
    match text.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(ApiError::LimitOutOfRange { limit: text, max: MAX_LIMIT }),
    }
}

fn time_range(
    from: Option<String>,
    to: Option<String>,
) -> Result<(Option<Micros>, Option<Micros>), ApiError> {
    let read = |name: &str, text: &Option<String>| {
        let wrong = |text: &str, reason: String| {
            ApiError::InvalidQuery(format!("{name} is {text:?}, which {reason} (a + is sent as %2B)"))
        };
        text.as_deref().map(|text| moment(text).map_err(|reason| wrong(text, reason))).transpose()
    };
    let (begin, end) = (read("from", &from)?, read("to", &to)?);
    if let (Some(begin), Some(end)) = (begin, end)
        && begin >= end
    {
        return Err(ApiError::InvalidTimeRange {
            from: from.unwrap_or_default(),
            to: to.unwrap_or_default(),
        });
    }
    Ok((begin, end))
}

/// A position as clients hand it back: 16 hexadecimal digits each of the time, the row, and a check over them and the
/// query, so that a cursor of another query is refused instead of giving a page of neither.
fn cursor_of(position: DetectionPosition, scope: &str) -> String {
    let DetectionPosition { captured_at, id } = position;
    let digest: [u8; 32] = Sha256::digest(format!("{captured_at} {id} {scope}")).into();
    let check = digest.first_chunk().copied().map_or(0, u64::from_be_bytes);
    format!("{:016x}{:016x}{check:016x}", captured_at.cast_unsigned(), id.cast_unsigned())
}

fn position_of(cursor: &str, scope: &str) -> Option<DetectionPosition> {
    let number = |digits: Option<&str>| Some(u64::from_str_radix(digits?, 16).ok()?.cast_signed());
    let position =
        DetectionPosition { captured_at: number(cursor.get(..16))?, id: number(cursor.get(16..32))? };
    (cursor_of(position, scope) == cursor).then_some(position)
}

fn prefers_csv(request: &HttpRequest) -> bool {
    let ranked = Accept::parse(request).map(|accept| accept.ranked()).unwrap_or_default();
    let preferred = ranked.iter().find_map(|mime| match mime.essence_str() {
        "text/csv" | "text/*" => Some(true),
        "application/json" | "application/*" | "*/*" => Some(false),
        _ => None,
    });
    preferred.unwrap_or(false)
}

fn csv(rows: Vec<DetectionRow>) -> Result<Vec<u8>, ApiError> {
    let internal = |error: csv::Error| ApiError::Internal(error.into());
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    // Also where no line follows.
    writer
        .write_record([
            "id",
            "captured_at",
            "received_at",
            "camera_id",
            "location",
            "face_id",
            "confidence",
            "score",
            "threshold",
            "detection_confidence",
            "model_version",
            "track_id",
            "left",
            "top",
            "right",
            "bottom",
        ])
        .map_err(internal)?;
    for row in rows {
        writer.serialize(Line::try_from(row)?).map_err(internal)?;
    }
    writer.into_inner().map_err(|error| ApiError::Internal(error.into_error().into()))
}

impl TryFrom<DetectionRow> for Detection {
    type Error = ApiError;

    fn try_from(row: DetectionRow) -> Result<Self, ApiError> {
        let (left, top, right, bottom) = row.bounding_box;
        Ok(Self {
            id: row.id,
            captured_at: rfc3339(row.captured_at)?,
            received_at: rfc3339(row.received_at)?,
            camera_id: row.camera_id,
            location: row.location,
            face_id: row.face_id,
            confidence: row.confidence,
            score: row.score,
            threshold: row.threshold,
            detection_confidence: row.detection_confidence,
            model_version: row.model_version,
            track_id: row.track_id,
            bounding_box: [left, top, right, bottom].into(),
        })
    }
}

impl TryFrom<DetectionRow> for Line {
    type Error = ApiError;

    fn try_from(row: DetectionRow) -> Result<Self, ApiError> {
        let (left, top, right, bottom) = row.bounding_box;
        Ok(Self {
            id: row.id,
            captured_at: rfc3339(row.captured_at)?,
            received_at: rfc3339(row.received_at)?,
            camera_id: row.camera_id,
            location: row.location,
            face_id: row.face_id,
            confidence: row.confidence,
            score: row.score,
            threshold: row.threshold,
            detection_confidence: row.detection_confidence,
            model_version: row.model_version,
            track_id: row.track_id,
            left,
            top,
            right,
            bottom,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_back_to_its_position_in_its_query_only() {
        for (captured_at, id) in [(0, 1), (-1, i64::MAX), (1_714_979_289_250_000, 77)] {
            let position = DetectionPosition { captured_at, id };
            let cursor = cursor_of(position, "a");
            assert_eq!(position_of(&cursor, "a"), Some(position));
            assert_eq!(position_of(&cursor, "b"), None);
        }
        for wrong in ["", "x", "\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}", &"0".repeat(48)] {
            assert_eq!(position_of(wrong, "a"), None, "{wrong}");
        }
    }
}
