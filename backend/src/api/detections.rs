//! `/database/detections` and `/database/{id}/track`: who was seen where and when, page by page.

use actix_web::{
    HttpRequest,
    http::header::{self, Accept, Header as _, HeaderName},
    web,
};
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    State,
    answer::{Answer, Csv, OneOf},
    face_id,
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
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Only of the person with this Face ID.
    person: Option<String>,
    /// Only by the camera with this id.
    camera: Option<String>,
    /// Only at this location.
    location: Option<String>,
    /// Only those captured at this time or later, RFC 3339. A `+` is sent as `%2B`.
    from: Option<String>,
    /// Only those captured before this time, RFC 3339.
    to: Option<String>,
    /// Only those that arrived after the one with this `id`, in the order of their arrival: how to follow what comes
    /// in, 0 for all. There is no `next_cursor` then: the `id` of the last one gets the next page.
    after: Option<String>,
    /// Entries of a page, 100 by default.
    limit: Option<String>,
    /// `next_cursor` of the page before, with otherwise the same query.
    cursor: Option<String>,
}

/// Query of a track.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct TrackQuery {
    /// Only what was captured at this time or later, RFC 3339. A `+` is sent as `%2B`.
    from: Option<String>,
    /// Only what was captured before this time, RFC 3339.
    to: Option<String>,
    /// Entries of a page, 1000 by default.
    limit: Option<String>,
    /// `next_cursor` of the page before, with otherwise the same query.
    cursor: Option<String>,
}

/// A page of detections.
#[derive(Serialize, Apiv2Schema)]
pub struct Detections {
    /// The newest first.
    detections: Vec<Detection>,
    meta: PageMeta,
}

/// A page of a person's detections.
#[derive(Serialize, Apiv2Schema)]
pub struct Track {
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// In the order of time.
    detections: Vec<Detection>,
    meta: PageMeta,
}

/// What belongs to a page beside its entries.
#[derive(Serialize, Apiv2Schema)]
pub struct PageMeta {
    /// What gets the next page, as `cursor`. Null on the last one.
    #[openapi(example = "000617c5a5b3a6d0000000000000002ac3d9f0a1b2c4d5e6")]
    next_cursor: Option<String>,
}

/// A face that was seen somewhere at some time.
#[derive(Serialize, Apiv2Schema)]
struct Detection {
    /// Grows with each detection.
    #[openapi(example = "42")]
    id: i64,
    /// When the picture was taken.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    captured_at: String,
    /// When the server got it.
    #[openapi(example = "2024-05-06T07:08:10.5Z")]
    received_at: String,
    /// Which camera took it.
    #[openapi(example = "gate-1")]
    camera_id: String,
    /// Where the camera stood.
    #[openapi(example = "Lobby")]
    location: String,
    /// Whom it shows. Null for an unknown face and for an erased person.
    #[openapi(example = "Ada Lovelace")]
    face_id: Option<String>,
    /// Probability of the first name among all that were enrolled. Null where the model gave none.
    #[openapi(minimum = 0, maximum = 1, example = "0.875")]
    confidence: Option<f32>,
    /// Cosine to the nearest person's mean embedding. Null where no model measured it.
    #[openapi(minimum = -1, maximum = 1, example = "0.8125")]
    score: Option<f32>,
    /// What the score had to reach for a known face.
    #[openapi(minimum = -1, maximum = 1, example = "0.355")]
    threshold: f32,
    /// Probability that it is a face.
    #[openapi(minimum = 0, maximum = 1, example = "0.996")]
    detection_confidence: f32,
    /// The model that identified it. Null where there was none.
    #[openapi(minimum = 1, example = "7")]
    model_version: Option<i64>,
    /// The same face's number in the camera's video. Null where the sender gave none.
    #[openapi(example = "12")]
    track_id: Option<i64>,
    /// In the camera's frame where the sender gave `box`, otherwise in the picture that was sent.
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

/// The detections to which the query applies, the newest first
///
/// As CSV where `Accept` prefers `text/csv`: a header line, then a line for each detection with the fields of the JSON
/// form, `bounding_box` as `left`, `top`, `right`, `bottom`, and nothing where JSON has null. A page ends with
/// `next_cursor`, which CSV has no place for; the header `X-Next-Cursor` has it in both forms.
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    request: HttpRequest,
    query: web::Query<ListQuery>,
) -> Result<OneOf<Answer<Detections>, Csv>, ApiError> {
    let ListQuery { person, camera, location, from, to, after, limit, cursor } = query.into_inner();
    let (from, to) = time_range(from, to)?;
    let person = person.map(FaceId::try_from).transpose()?;
    let filter = DetectionFilter { person, camera_id: camera, location, from, to };
    let page = match after {
        None => Page::read(filter, DetectionOrder::NewestFirst, limit, LIST_LIMIT, cursor)?,
        Some(after) => Page::arrivals(filter, &after, limit, cursor)?,
    };
    let (rows, next_cursor) = page.load(&state).await?;

    let mut headers = vec![(header::VARY, "accept".to_owned())];
    if let Some(cursor) = &next_cursor {
        headers.push((HeaderName::from_static("x-next-cursor"), cursor.clone()));
    }
    if prefers_csv(&request) {
        return Ok(OneOf::Second(Csv { text: csv(rows)?, headers }));
    }
    let detections = rows.into_iter().map(Detection::try_from).collect::<Result<_, _>>()?;
    let page = Detections { detections, meta: PageMeta { next_cursor } };
    Ok(OneOf::First(Answer::new(page).headers(headers)))
}

/// Where a person was, in the order of time
#[api_v2_operation]
pub async fn track(
    state: web::Data<State>,
    path: web::Path<String>,
    query: web::Query<TrackQuery>,
) -> Result<web::Json<Track>, ApiError> {
    let id = face_id(path)?;
    let TrackQuery { from, to, limit, cursor } = query.into_inner();
    let (from, to) = time_range(from, to)?;
    let filter = DetectionFilter { person: Some(id.clone()), from, to, ..DetectionFilter::default() };
    let page = Page::read(filter, DetectionOrder::OldestFirst, limit, MAX_LIMIT, cursor)?;
    let (rows, next_cursor) = page.load(&state).await?;
    let detections = rows.into_iter().map(Detection::try_from).collect::<Result<_, _>>()?;
    Ok(web::Json(Track { face_id: id.to_string(), detections, meta: PageMeta { next_cursor } }))
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

    /// What arrived after a detection. Pages of it have no cursors: rows have numbers.
    fn arrivals(
        filter: DetectionFilter,
        after: &str,
        limit: Option<String>,
        cursor: Option<String>,
    ) -> Result<Self, ApiError> {
        let id = after.parse().ok().filter(|id| *id >= 0).ok_or_else(|| {
            ApiError::InvalidQuery(format!("after is {after:?}, it must be a detection's id, or 0 for all"))
        })?;
        if cursor.is_some() {
            return Err(ApiError::InvalidCursor);
        }
        let page = Self::read(filter, DetectionOrder::Arrival, limit, LIST_LIMIT, None)?;
        Ok(Self { after: Some(DetectionPosition { captured_at: 0, id }), ..page })
    }

    /// The page's rows, and the cursor of the next one.
    async fn load(self, state: &State) -> Result<(Vec<DetectionRow>, Option<String>), ApiError> {
        let Self { filter, order, limit, after, scope } = self;
        // One more than asked for tells whether there is a next page.
        let mut rows = state.database.detections(filter, order, after, i64::from(limit) + 1).await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| more && order != DetectionOrder::Arrival);
        let next =
            last.map(|row| cursor_of(DetectionPosition { captured_at: row.captured_at, id: row.id }, &scope));
        Ok((rows, next))
    }
}

pub(super) fn limit_of(text: String) -> Result<u32, ApiError> {
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
