//! Writes faces as `GstAnalyticsRelationMeta` (GStreamer 1.24) as well: an object detection of type `face` for each detected
//! face and, if it is tracked, a tracking record related to it (`RELATE_TO`).
//!
//! Candidates and predicted boxes are omitted, since the meta cannot express them.

use std::sync::LazyLock;

use gst::glib;
use gst_analytics::{
    AnalyticsMetaRefExt, AnalyticsODMtd, AnalyticsRelationMeta, AnalyticsRelationMetaODExt,
    AnalyticsRelationMetaTrackingExt, RelTypes,
};

use crate::roi::FaceRegion;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-analytics", gst::DebugColorFlags::empty(), Some("Analytics metadata"))
});

/// Adds a detected face, unless it is there already.
pub(crate) fn add_face(buffer: &mut gst::BufferRef, face: &FaceRegion) {
    log(face_record(buffer, face));
}

/// Adds the track of a face, and the face itself where another detector attached only a region. `first_seen` is the
/// running time at which the track began.
pub(crate) fn add_track(buffer: &mut gst::BufferRef, face: &FaceRegion, id: i32, first_seen: gst::ClockTime) {
    log(track_record(buffer, face, id, first_seen));
}

fn track_record(
    buffer: &mut gst::BufferRef,
    face: &FaceRegion,
    id: i32,
    first_seen: gst::ClockTime,
) -> Result<(), glib::BoolError> {
    let face = face_record(buffer, face)?;
    let id = u64::try_from(id).map_err(|_| glib::bool_error!("a track id below 0"))?;
    let mut meta = buffer
        .meta_mut::<AnalyticsRelationMeta>()
        .ok_or_else(|| glib::bool_error!("the record of a face is gone"))?;
    let track = meta.add_tracking_mtd(id, first_seen)?.id();
    meta.set_relation(RelTypes::RELATE_TO, face, track)
}

/// Returns the id of a face's record, which it adds where there is none.
fn face_record(buffer: &mut gst::BufferRef, face: &FaceRegion) -> Result<u32, glib::BoolError> {
    let side = |pixels: u32| i32::try_from(pixels).map_err(|_| glib::bool_error!("a box beyond 2^31 pixels"));
    let (left, top, width, height) = face.rectangle();
    let place = [side(left)?, side(top)?, side(width)?, side(height)?];
    let kind = glib::Quark::from_str("face");
    if let Some(meta) = buffer.meta::<AnalyticsRelationMeta>() {
        let same = meta.iter::<AnalyticsODMtd>().find(|record| {
            let here = record.location().is_ok_and(|at| [at.x, at.y, at.w, at.h] == place);
            here && record.obj_type() == Some(kind)
        });
        if let Some(record) = same {
            return Ok(record.id());
        }
    } else {
        AnalyticsRelationMeta::add(buffer);
    }
    let mut meta = buffer
        .meta_mut::<AnalyticsRelationMeta>()
        .ok_or_else(|| glib::bool_error!("no analytics metadata can be added"))?;
    let [x, y, width, height] = place;
    #[expect(clippy::cast_possible_truncation, reason = "a score of 0 to 1, rounded to f32")]
    let confidence = face.confidence as f32;
    Ok(meta.add_od_mtd(kind, x, y, width, height, confidence)?.id())
}

fn log<T>(result: Result<T, glib::BoolError>) {
    if let Err(error) = result {
        gst::warning!(CAT, "no analytics metadata for a face: {error}");
    }
}

#[cfg(test)]
mod tests {
    use facepipe_detector::BoundingBox;
    use gst_analytics::AnalyticsTrackingMtd;

    use super::*;

    #[test]
    fn a_face_and_its_track_are_related_and_written_once() {
        gst::init().unwrap();
        let face = FaceRegion {
            bounding_box: BoundingBox::from_size(3, 5, 40, 50),
            confidence: 0.875,
            track_id: Some(12),
            predicted: false,
        };
        let mut buffer = gst::Buffer::new();
        add_face(buffer.make_mut(), &face);
        add_face(buffer.make_mut(), &face);
        add_track(buffer.make_mut(), &face, 12, gst::ClockTime::from_seconds(7));
        let meta = buffer.meta::<AnalyticsRelationMeta>().unwrap();
        let faces: Vec<_> = meta.iter::<AnalyticsODMtd>().collect();
        assert_eq!(faces.len(), 1);
        assert_eq!(faces[0].obj_type(), Some(glib::Quark::from_str("face")));
        let at = faces[0].location().unwrap();
        assert_eq!((at.x, at.y, at.w, at.h, at.loc_conf_lvl), (3, 5, 40, 50, 0.875));
        let tracks: Vec<_> = meta.iter::<AnalyticsTrackingMtd>().collect();
        assert_eq!(tracks.len(), 1);
        let (id, first_seen, _, lost) = tracks[0].info();
        assert_eq!((id, first_seen, lost), (12, gst::ClockTime::from_seconds(7), false));
        assert_eq!(meta.relation(faces[0].id(), tracks[0].id()), RelTypes::RELATE_TO);
    }
}
