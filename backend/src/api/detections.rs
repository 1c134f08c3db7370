//! `/database/detections` and `/database/{id}/track`: detections in pages.

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderName},
    web,
};
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};

use super::{
    State, face_id,
    page::{self, LIST_LIMIT, MAX_LIMIT, PageMeta, limit_of},
    parse_time,
    recognition::BoundingBox,
    response::{Csv, JsonResponse, NoContent, OneOf, csv_of, prefers},
    rfc3339, trail,
};
use crate::{
    domain::{
        DetectionFilter, DetectionOrder, DetectionPosition, FaceId, Micros, PersonId, PersonRef,
        StoredDetection,
    },
    error::ApiError,
    unknowns,
};

/// Query of the list.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Only of the person with this Face ID.
    person: Option<String>,
    /// Only of the person with this id: instead of `person`, so that no name stands in an address.
    person_id: Option<String>,
    /// Only by the camera with this id.
    camera: Option<String>,
    /// Only at this location.
    location: Option<String>,
    /// Only those captured at this time or later, RFC 3339. A `+` is sent as `%2B`.
    from: Option<String>,
    /// Only those captured before this time, RFC 3339.
    to: Option<String>,
    /// Only those that arrived after the one with this `id`, in the order of their arrival, 0 for all: for following new
    /// detections. `next_cursor` is null then: the `id` of the last one gets the next page. Not with `from`, `to` and
    /// `cursor`.
    after: Option<String>,
    /// Only those whose person was decided again after the one with this `revision`, in the order of their revisions, 0 for
    /// all: for following corrections. `next_cursor` is null then: the `revision` of the last one gets the next page. Not with
    /// `after`, `from`, `to` and `cursor`.
    revised_after: Option<String>,
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
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: String,
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// In the order of time.
    detections: Vec<Detection>,
    meta: PageMeta,
}

/// A face that a camera detected at some time and place.
#[derive(Serialize, Apiv2Schema)]
pub struct Detection {
    /// Grows with each detection.
    #[openapi(example = "42")]
    id: i64,
    /// When the image was taken: the time that lists, filters and retention use.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    captured_at: String,
    /// The sender's `captured_at`, where it is too far from the arrival to be plausible. Null where it is plausible, and
    /// where the sender gave none.
    #[openapi(example = "2036-01-01T00:00:00Z")]
    claimed_at: Option<String>,
    time_basis: TimeBasis,
    /// When the server received it.
    #[openapi(example = "2024-05-06T07:08:10.5Z")]
    received_at: String,
    /// Which camera took it.
    #[openapi(example = "gate-1")]
    camera_id: String,
    /// Where the camera stood.
    #[openapi(example = "Lobby")]
    location: String,
    /// The Face ID of the person. Null for an unknown face and for an erased person.
    #[openapi(example = "Ada Lovelace")]
    face_id: Option<String>,
    /// The same person as `/people/{person_id}` takes it. Null where `face_id` is.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: Option<String>,
    /// The unknown person, as `/unknowns/{unknown_id}` takes it. Null for a known face, and for one that is not grouped (yet).
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    unknown_id: Option<String>,
    /// Probability of the first name among all that were enrolled. Null where the model gave none.
    #[openapi(minimum = 0, maximum = 1, example = "0.875")]
    confidence: Option<f32>,
    /// Cosine to the mean embedding of the most probable person. Null where no model measured it.
    #[openapi(minimum = -1, maximum = 1, example = "0.8125")]
    score: Option<f32>,
    /// The minimum score of a known face at that time.
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
    /// The run of the edge that `track_id` belongs to. Null where the sender gave none.
    #[openapi(example = "fJ2bYb3bRk-GvJ0bC1m3nA")]
    run_id: Option<String>,
    /// The `id` of its sighting: that of the track whose crops were decided together, or one of its own.
    #[openapi(example = "t4503599627370497")]
    sighting_id: String,
    /// From how many crops the person was decided; also those that arrived later.
    #[openapi(minimum = 1, example = "1")]
    crops: i64,
    /// When later crops of the track changed its person last. Null where they never did.
    #[openapi(example = "2024-05-06T07:08:14Z")]
    revised_at: Option<String>,
    /// Number of that change, which grows with each: `revised_after` takes it. Null where there was none.
    #[openapi(minimum = 1, example = "7")]
    revision: Option<i64>,
    /// In the camera's frame where the sender gave `box`, otherwise in the picture that was sent.
    bounding_box: BoundingBox,
}

/// Where the `captured_at` of a detection comes from: `claim`, from its sender; `arrival`, from the server's clock, since the
/// sender gave none, or an implausible one, which is `claimed_at` then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Apiv2Schema)]
#[serde(rename_all = "lowercase")]
pub enum TimeBasis {
    Arrival,
    Claim,
}

impl TimeBasis {
    /// Returns the basis of a detection's times.
    pub fn of(captured_at: Micros, claimed_at: Option<Micros>, received_at: Micros) -> Self {
        if claimed_at.is_some() || captured_at == received_at { Self::Arrival } else { Self::Claim }
    }
}

/// A line of the CSV form: the same fields, without null and without nesting.
#[derive(Serialize)]
struct CsvLine {
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
    person_id: Option<String>,
    claimed_at: Option<String>,
    time_basis: TimeBasis,
    unknown_id: Option<String>,
    run_id: Option<String>,
    sighting_id: String,
    crops: i64,
    revised_at: Option<String>,
    revision: Option<i64>,
}

/// The fields of [`CsvLine`].
const CSV_FIELDS: [&str; 25] = [
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
    "person_id",
    "claimed_at",
    "time_basis",
    "unknown_id",
    "run_id",
    "sighting_id",
    "crops",
    "revised_at",
    "revision",
];

/// The detections to which the query applies, the newest first
///
/// As CSV where `Accept` prefers `text/csv`: a header line, then a line for each detection with the fields of the JSON
/// form, `bounding_box` as `left`, `top`, `right`, `bottom`, and nothing where JSON has null. A page ends with
/// `next_cursor`, which CSV has no place for; the header `X-Next-Cursor` has it in both forms.
///
/// With `after` they come in the order of their arrival instead, the earliest first: a detection that a camera kept while
/// offline comes when it arrives, however long ago it was captured, and none is missing or comes twice. A later crop of a track
/// may change the person of its earlier detections: `revised_after` follows those.
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    request: HttpRequest,
    query: web::Query<ListQuery>,
) -> Result<OneOf<JsonResponse<Detections>, Csv>, ApiError> {
    let mut query = query.into_inner();
    let (rows, next_cursor) = match (query.after.take(), query.revised_after.take()) {
        (Some(_), Some(_)) => {
            return Err(ApiError::InvalidQuery(
                "after goes by arrival, revised_after by correction: leave out one or the other".into(),
            ));
        }
        (Some(after), None) => (followed(&state, Following::Arrivals, after, query).await?, None),
        (None, Some(after)) => (followed(&state, Following::Revisions, after, query).await?, None),
        (None, None) => {
            let ListQuery { person, person_id, camera, location, from, to, limit, cursor, .. } = query;
            let (from, to) = time_range(from, to)?;
            let person = person_of(person, person_id)?;
            let filter = DetectionFilter {
                person,
                camera_id: camera,
                location,
                from,
                to,
                ..DetectionFilter::default()
            };
            let page = Page::read(filter, DetectionOrder::NewestFirst, limit, LIST_LIMIT, cursor)?;
            page.load(&state).await?
        }
    };

    let mut headers = vec![(header::VARY, "accept".to_owned())];
    if let Some(cursor) = &next_cursor {
        headers.push((HeaderName::from_static("x-next-cursor"), cursor.clone()));
    }
    let detections: Vec<Detection> = rows.into_iter().map(Detection::try_from).collect::<Result<_, _>>()?;
    if prefers(&request, "text/csv") {
        return Ok(OneOf::Second(Csv {
            text: csv_of(&CSV_FIELDS, detections.into_iter().map(CsvLine::from))?,
            headers,
        }));
    }
    let page = Detections { detections, meta: PageMeta { next_cursor } };
    Ok(OneOf::First(JsonResponse::new(page).headers(headers)))
}

/// One detection
#[api_v2_operation]
pub async fn get(state: web::Data<State>, id: web::Path<String>) -> Result<web::Json<Detection>, ApiError> {
    let row = state.database.detection(detection_id(&id)?).await?;
    if let Some(person) = row.person_id {
        trail::belongs_to(person);
    }
    Ok(web::Json(Detection::try_from(row)?))
}

/// Erases one detection
///
/// With the embedding that was kept of an unknown face. Sending the image again with the same `key` does not restore it.
#[api_v2_operation]
pub async fn erase(state: web::Data<State>, id: web::Path<String>) -> Result<NoContent, ApiError> {
    let pictures = state.database.erase_detection(detection_id(&id)?).await?;
    unknowns::delete_blobs(&state.blobs, &pictures).await;
    state.database.scrub_journal_of_detections().await?;
    Ok(NoContent::new())
}

/// Reads a detection's id; no detection has an id that is no number.
fn detection_id(text: &str) -> Result<i64, ApiError> {
    text.parse().map_err(|_| ApiError::DetectionNotFound)
}

/// Where a person was, in the order of time
#[api_v2_operation]
pub async fn track(
    state: web::Data<State>,
    path: web::Path<String>,
    query: web::Query<TrackQuery>,
) -> Result<web::Json<Track>, ApiError> {
    track_of(&state, PersonRef::FaceId(face_id(path)?), query.into_inner()).await
}

/// Returns the track of a person.
pub async fn track_of(
    state: &State,
    who: PersonRef,
    query: TrackQuery,
) -> Result<web::Json<Track>, ApiError> {
    let TrackQuery { from, to, limit, cursor } = query;
    let (from, to) = time_range(from, to)?;
    let person = state.database.person(&who).await?;
    let filter = DetectionFilter { person: Some(who), from, to, ..DetectionFilter::default() };
    let page = Page::read(filter, DetectionOrder::OldestFirst, limit, MAX_LIMIT, cursor)?;
    let (rows, next_cursor) = page.load(state).await?;
    let detections = rows.into_iter().map(Detection::try_from).collect::<Result<_, _>>()?;
    let meta = PageMeta { next_cursor };
    Ok(web::Json(Track { person_id: person.id.to_string(), face_id: person.face_id, detections, meta }))
}

/// Returns a page of an unknown person's detections, the newest first, and the cursor of the next page.
pub async fn of_unknown(
    state: &State,
    row: i64,
    limit: Option<String>,
    cursor: Option<String>,
) -> Result<(Vec<Detection>, Option<String>), ApiError> {
    let filter = DetectionFilter { unknown: Some(row), ..DetectionFilter::default() };
    let page = Page::read(filter, DetectionOrder::NewestFirst, limit, LIST_LIMIT, cursor)?;
    let (rows, next_cursor) = page.load(state).await?;
    Ok((rows.into_iter().map(Detection::try_from).collect::<Result<_, _>>()?, next_cursor))
}

/// One page of a query.
struct Page {
    filter: DetectionFilter,
    order: DetectionOrder,
    limit: u32,
    after: Option<DetectionPosition>,
    /// The query that a cursor belongs to.
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
        let position = |text: String| {
            let position = page::position_of(&text, &scope).ok_or(ApiError::InvalidCursor)?;
            let (captured_at, id) = page::halves(position);
            Ok::<_, ApiError>(DetectionPosition { captured_at, id })
        };
        let after = cursor.map(position).transpose()?;
        Ok(Self { filter, order, limit, after, scope })
    }

    /// Returns the page's rows, and the cursor of the next page.
    async fn load(self, state: &State) -> Result<(Vec<StoredDetection>, Option<String>), ApiError> {
        let Self { filter, order, limit, after, scope } = self;
        // One row more shows whether there is a next page.
        let rows = state.database.detections(filter, order, after, i64::from(limit) + 1).await?;
        let (rows, more) = page::cut(rows, limit);
        let last = rows.last().filter(|_| more);
        let next = last.map(|row| page::cursor_of(page::joined(row.captured_at, row.id), &scope));
        Ok((rows, next))
    }
}

/// The changes that a client follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Following {
    /// New detections, by id.
    Arrivals,
    /// Corrected ones, by revision.
    Revisions,
}

/// Returns the detections after the id or the revision `after`, in that order.
async fn followed(
    state: &State,
    following: Following,
    after: String,
    query: ListQuery,
) -> Result<Vec<StoredDetection>, ApiError> {
    let ListQuery { person, person_id, camera, location, from, to, limit, cursor, .. } = query;
    let (name, number, order) = match following {
        Following::Arrivals => ("after", "a detection's id", "arrival"),
        Following::Revisions => ("revised_after", "a revision", "correction"),
    };
    let id = after.parse().ok().filter(|id| *id >= 0).ok_or_else(|| {
        ApiError::InvalidQuery(format!("{name} is {after:?}, it must be {number}, or 0 for all"))
    })?;
    let by_time = [("from", from), ("to", to), ("cursor", cursor)];
    let by_time: Vec<&str> =
        by_time.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name).collect();
    if !by_time.is_empty() {
        return Err(ApiError::InvalidQuery(format!(
            "{name} goes by {order}, {} by the time of capture: leave out one or the other",
            by_time.join(" and ")
        )));
    }
    let limit = i64::from(limit.map_or(Ok(LIST_LIMIT), limit_of)?);
    let person = person_of(person, person_id)?;
    let filter = DetectionFilter { person, camera_id: camera, location, ..DetectionFilter::default() };
    let rows = match following {
        Following::Arrivals => state.database.detections_after(filter, id, limit).await?,
        Following::Revisions => state.database.detections_revised_after(filter, id, limit).await?,
    };
    if rows.is_empty() {
        trail::shows_nobody();
    }
    Ok(rows)
}

/// Returns the person of a query, by name or by id.
pub fn person_of(face_id: Option<String>, person_id: Option<String>) -> Result<Option<PersonRef>, ApiError> {
    match (face_id, person_id) {
        (None, None) => Ok(None),
        (Some(face_id), None) => Ok(Some(PersonRef::FaceId(FaceId::try_from(face_id)?))),
        (None, Some(id)) => Ok(Some(PersonRef::Id(PersonId::parse(&id).ok_or(ApiError::PersonNotFound)?))),
        (Some(_), Some(_)) => Err(ApiError::InvalidQuery(
            "person and person_id each name a person: leave out one of them".into(),
        )),
    }
}

/// Reads a range of times of a query.
pub fn time_range(
    from: Option<String>,
    to: Option<String>,
) -> Result<(Option<Micros>, Option<Micros>), ApiError> {
    let read = |name: &str, text: &Option<String>| {
        let wrong = |text: &str, reason: String| {
            ApiError::InvalidQuery(format!("{name} is {text:?}, which {reason} (a + is sent as %2B)"))
        };
        text.as_deref().map(|text| parse_time(text).map_err(|reason| wrong(text, reason))).transpose()
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

impl TryFrom<StoredDetection> for Detection {
    type Error = ApiError;

    fn try_from(row: StoredDetection) -> Result<Self, ApiError> {
        let person_id = row.person_id.map(|id| id.to_string());
        Ok(Self {
            id: row.id,
            captured_at: rfc3339(row.captured_at)?,
            claimed_at: row.claimed_at.map(rfc3339).transpose()?,
            time_basis: TimeBasis::of(row.captured_at, row.claimed_at, row.received_at),
            received_at: rfc3339(row.received_at)?,
            camera_id: row.camera_id,
            location: row.location,
            face_id: row.face_id,
            person_id,
            unknown_id: row.unknown_id.map(|id| id.to_string()),
            confidence: row.confidence,
            score: row.score,
            threshold: row.threshold,
            detection_confidence: row.detection_confidence,
            model_version: row.model_version,
            track_id: row.track_id,
            run_id: row.run_id,
            sighting_id: row.sighting.to_string(),
            crops: row.crops,
            revised_at: row.revision.map(|revision| rfc3339(revision.revised_at)).transpose()?,
            revision: row.revision.map(|revision| revision.id),
            bounding_box: row.bounding_box.into(),
        })
    }
}

impl From<Detection> for CsvLine {
    fn from(detection: Detection) -> Self {
        let BoundingBox { left, top, right, bottom } = detection.bounding_box;
        Self {
            id: detection.id,
            captured_at: detection.captured_at,
            received_at: detection.received_at,
            camera_id: detection.camera_id,
            location: detection.location,
            face_id: detection.face_id,
            confidence: detection.confidence,
            score: detection.score,
            threshold: detection.threshold,
            detection_confidence: detection.detection_confidence,
            model_version: detection.model_version,
            track_id: detection.track_id,
            left,
            top,
            right,
            bottom,
            person_id: detection.person_id,
            claimed_at: detection.claimed_at,
            time_basis: detection.time_basis,
            unknown_id: detection.unknown_id,
            run_id: detection.run_id,
            sighting_id: detection.sighting_id,
            crops: detection.crops,
            revised_at: detection.revised_at,
            revision: detection.revision,
        }
    }
}
