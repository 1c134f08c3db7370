//! The face metadata: the only place that writes it to buffers or reads it from them.
//!
//! A **frame** carries one `GstVideoRegionOfInterestMeta` per face:
//!
//! | part | content |
//! |---|---|
//! | `roi_type` | `face` |
//! | rectangle | bounding box in pixels of the frame, rounded outwards, inside the frame |
//! | `id` | track id, from 1 on; 0 while nothing tracks the faces |
//! | parameter structure `detection` | `confidence` (double, 0 to 1), `label_name` (string, `face`) |
//!
//! These are the names that DL Streamer uses, so that its elements and ours understand each other.
//!
//! What a tracker has given an id carries a further structure `facepipe-track` with `predicted` (boolean): whether
//! the box is only where the tracker believes the face to be, in a frame that was not searched. Predicted boxes
//! are for following and drawing; what is cut out of a frame must have been found in it.
//!
//! Converters of GStreamer 1.20 and 1.22 move the regions but lose their parameter structures. So the score and whether a
//! box is predicted also stand in a meta of our own, [`facts`](crate::facts), which they keep; of a region that has neither,
//! the frame's mark ([`searched`]) says whether it can have been found.
//!
//! With the cargo feature `v1_24`, faces that were found and their tracks are also written as
//! `GstAnalyticsRelationMeta`, which nothing here reads.
//!
//! Boxes of which the detector is not sure have the `roi_type` `face-candidate`, in the same form. Only a tracker
//! reads them: those that continue a track become faces, the others go.
//!
//! A **crop** (`image/jpeg`) carries one `GstVideoRegionOfInterestMeta` of `roi_type` `face-crop`. Its
//! rectangle is the bounding box in the *full frame* that the crop was taken from, `id` and `detection` are
//! those of the face, and a parameter structure `facepipe-crop` adds `frame-width` and `frame-height` (uint,
//! pixels) and, where they are known, `captured-at` (uint64, nanoseconds since 1970-01-01 UTC) and `running-time`
//! (uint64, nanoseconds: that of the frame, which may lie before the buffer's own), and `clock-refused` (boolean, true)
//! where the camera's clock was not taken for `captured-at`. To other
//! elements these buffers are plain pictures. A decoder may hand the metadata on to the picture it makes;
//! since the rectangle is not one of that picture's own pixels, its type differs from that of a frame's
//! faces.

use std::{ops::ControlFlow, ptr, time::Duration};

use gst::{buffer::BufferMetaForeachAction, glib, glib::translate::IntoGlib};
use gst_video::VideoRegionOfInterestMeta;

use crate::{
    facts::{self, Facts},
    searched,
};

const FACE: &str = "face";
const FACE_CANDIDATE: &str = "face-candidate";
const FACE_CROP: &str = "face-crop";
const DETECTION: &str = "detection";
const CROP: &str = "facepipe-crop";
const TRACK: &str = "facepipe-track";

/// One face of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaceRegion {
    /// Left edge, pixels of the full frame.
    pub left: u32,
    /// Top edge, pixels of the full frame.
    pub top: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The detector's score, 0 to 1; 0 where another element wrote a region without one.
    pub confidence: f64,
    /// Track id, where a tracker gave one.
    pub track_id: Option<i32>,
    /// Whether nobody has found the face in this frame: it is where a tracker believes it to be.
    pub predicted: bool,
}

impl FaceRegion {
    /// Left, top, right and bottom edge, pixels of the full frame.
    pub const fn corners(&self) -> [u32; 4] {
        let Self { left, top, width, height, .. } = *self;
        [left, top, left.saturating_add(width), top.saturating_add(height)]
    }

    /// As region metadata has it: left, top, width, height.
    const fn rectangle(&self) -> [u32; 4] {
        let Self { left, top, width, height, .. } = *self;
        [left, top, width, height]
    }

    const fn facts(&self, candidate: bool) -> Facts {
        let Self { confidence, predicted, .. } = *self;
        Facts { rectangle: self.rectangle(), confidence, predicted, candidate }
    }

    /// Whether it touches an edge of its frame: a part of the face is probably missing.
    pub const fn is_cut(&self, frame_width: u32, frame_height: u32) -> bool {
        let [left, top, right, bottom] = self.corners();
        left == 0 || top == 0 || right >= frame_width || bottom >= frame_height
    }
}

/// What is known about the face on a crop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropFacts {
    /// The face, in pixels of the full frame.
    pub face: FaceRegion,
    /// Width of the full frame in pixels.
    pub frame_width: u32,
    /// Height of the full frame in pixels.
    pub frame_height: u32,
    /// When the frame was captured, since 1970-01-01 UTC.
    pub captured_at: Option<Duration>,
    /// Running time of the frame, which goes on where timestamps fall or are missing. A best shot is sent later than it was
    /// taken, under a later timestamp.
    pub running_time: Option<Duration>,
    /// The camera's clock was not taken for `captured_at`, since it is too far from this machine's.
    pub clock_refused: bool,
}

/// Adds a face to a frame.
pub fn attach_face(buffer: &mut gst::BufferRef, face: &FaceRegion) {
    attach(buffer, FACE, face, face.track_id.map(|_| track(face.predicted)));
    facts::attach(buffer, &face.facts(false));
    #[cfg(feature = "v1_24")]
    if !face.predicted {
        crate::analytics::add_face(buffer, face);
    }
}

/// Adds a box of which the detector is not sure.
pub fn attach_candidate(buffer: &mut gst::BufferRef, face: &FaceRegion) {
    attach(buffer, FACE_CANDIDATE, face, None);
    facts::attach(buffer, &face.facts(true));
}

/// Whether a frame carries regions of interest, of faces or of anything else.
pub fn has_regions(buffer: &gst::BufferRef) -> bool {
    buffer.iter_meta::<VideoRegionOfInterestMeta>().next().is_some()
}

/// The candidates of a frame, in the order in which they were attached.
pub fn candidates(buffer: &gst::BufferRef) -> Vec<FaceRegion> {
    regions(buffer, FACE_CANDIDATE).map(|meta| read_face(buffer, &meta)).collect()
}

/// Writes track ids to a frame: one for each of its [`faces`], whoever attached them, and one for each of its
/// [`candidates`], in their order. Candidates with an id become faces, the others go.
pub fn assign_tracks(buffer: &mut gst::BufferRef, faces: &[Option<i32>], candidates: &[Option<i32>]) {
    let predicted: Vec<bool> = faces_and_predictions(buffer).iter().map(|face| face.predicted).collect();
    let regions = buffer.iter_meta_mut::<VideoRegionOfInterestMeta>();
    let regions = regions.filter(|meta| is_of_type(meta, FACE)).zip(predicted);
    let found = regions.filter_map(|(meta, predicted)| (!predicted).then_some(meta));
    for (mut meta, id) in found.zip(faces) {
        meta.set_id(id.unwrap_or(0));
        if id.is_some() && meta.param(TRACK).is_none() {
            meta.add_param(track(false));
        }
    }
    let confirmed: Vec<FaceRegion> = self::candidates(buffer)
        .into_iter()
        .zip(candidates)
        .filter_map(|(face, &id)| id.map(|id| FaceRegion { track_id: Some(id), ..face }))
        .collect();
    buffer.foreach_meta_mut(|mut meta| {
        let region = meta.downcast_ref::<VideoRegionOfInterestMeta>();
        let action = match region.is_some_and(|region| is_of_type(region, FACE_CANDIDATE)) {
            true => BufferMetaForeachAction::Remove,
            false => BufferMetaForeachAction::Keep,
        };
        ControlFlow::Continue(action)
    });
    facts::remove_candidates(buffer);
    for face in &confirmed {
        attach_face(buffer, face);
    }
}

/// Writes the tracks of a frame's faces to its `GstAnalyticsRelationMeta`, and those faces that are not in it yet.
/// `first_seen` knows the running time at which a track began.
#[cfg(feature = "v1_24")]
pub fn relate_tracks(buffer: &mut gst::BufferRef, first_seen: impl Fn(i32) -> Option<Duration>) {
    for face in faces(buffer) {
        let began = face.track_id.and_then(|id| Some((id, gst::ClockTime::try_from(first_seen(id)?).ok()?)));
        match began {
            Some((id, began)) => crate::analytics::add_track(buffer, &face, id, began),
            None => crate::analytics::add_face(buffer, &face),
        }
    }
}

/// The faces that were found in a frame, in the order in which they were attached.
pub fn faces(buffer: &gst::BufferRef) -> Vec<FaceRegion> {
    faces_and_predictions(buffer).into_iter().filter(|face| !face.predicted).collect()
}

/// The faces of a frame as [`faces`], and those that a tracker believes to be in it: for following and drawing.
pub fn faces_and_predictions(buffer: &gst::BufferRef) -> Vec<FaceRegion> {
    regions(buffer, FACE).map(|meta| read_face(buffer, &meta)).collect()
}

/// Adds the facts about the face to a crop.
pub fn attach_crop(buffer: &mut gst::BufferRef, facts: &CropFacts) {
    let mut structure = gst::Structure::builder(CROP)
        .field("frame-width", facts.frame_width)
        .field("frame-height", facts.frame_height);
    for (name, time) in [("captured-at", facts.captured_at), ("running-time", facts.running_time)] {
        if let Some(nanoseconds) = time.and_then(|t| u64::try_from(t.as_nanos()).ok()) {
            structure = structure.field(name, nanoseconds);
        }
    }
    if facts.clock_refused {
        structure = structure.field("clock-refused", true);
    }
    attach(buffer, FACE_CROP, &facts.face, Some(structure.build()));
}

/// The facts about the face on a crop; `None` on a picture that [`attach_crop`] has not seen.
pub fn crop_facts(buffer: &gst::BufferRef) -> Option<CropFacts> {
    regions(buffer, FACE_CROP).find_map(|meta| {
        let crop = meta.param(CROP)?;
        Some(CropFacts {
            face: read_face(buffer, &meta),
            frame_width: crop.get("frame-width").ok()?,
            frame_height: crop.get("frame-height").ok()?,
            captured_at: crop.get("captured-at").ok().map(Duration::from_nanos),
            running_time: crop.get("running-time").ok().map(Duration::from_nanos),
            clock_refused: crop.get("clock-refused").unwrap_or(false),
        })
    })
}

fn attach(buffer: &mut gst::BufferRef, roi_type: &str, face: &FaceRegion, extra: Option<gst::Structure>) {
    let rectangle = (face.left, face.top, face.width, face.height);
    let mut meta = VideoRegionOfInterestMeta::add(buffer, roi_type, rectangle);
    meta.set_id(face.track_id.unwrap_or(0));
    meta.add_param(
        gst::Structure::builder(DETECTION)
            .field("confidence", face.confidence)
            .field("label_name", FACE)
            .build(),
    );
    if let Some(extra) = extra {
        meta.add_param(extra);
    }
}

fn regions<'a>(
    buffer: &'a gst::BufferRef,
    roi_type: &'static str,
) -> impl Iterator<Item = gst::MetaRef<'a, VideoRegionOfInterestMeta>> {
    buffer.iter_meta::<VideoRegionOfInterestMeta>().filter(move |meta| is_of_type(meta, roi_type))
}

/// Whether a region has this type. DL Streamer attaches regions of no type at all where a model has no labels, and
/// `roi_type` of the bindings would read a null pointer there.
fn is_of_type(meta: &VideoRegionOfInterestMeta, roi_type: &'static str) -> bool {
    // SAFETY: the bindings' type is a transparent wrapper of this structure.
    let raw = unsafe { &*ptr::from_ref(meta).cast::<gst_video::ffi::GstVideoRegionOfInterestMeta>() };
    raw.roi_type == glib::Quark::from_str(roi_type).into_glib()
}

fn read_face(buffer: &gst::BufferRef, meta: &VideoRegionOfInterestMeta) -> FaceRegion {
    let (left, top, width, height) = meta.rect();
    let track_id = Some(meta.id()).filter(|&id| id > 0);
    let confidence: Option<f64> = meta.param(DETECTION).and_then(|d| d.get("confidence").ok());
    let predicted: Option<bool> = meta.param(TRACK).and_then(|t| t.get("predicted").ok());
    // What a converter has lost.
    let facts = match (confidence, predicted) {
        (Some(_), Some(_)) => None,
        _ => facts::of(buffer, [left, top, width, height], is_of_type(meta, FACE_CANDIDATE)),
    };
    let unfound = || track_id.is_some() && searched::was_searched(buffer) == Some(false);
    FaceRegion {
        left,
        top,
        width,
        height,
        confidence: confidence.or(facts.map(|facts| facts.confidence)).unwrap_or(0.0),
        track_id,
        predicted: predicted.or(facts.map(|facts| facts.predicted)).unwrap_or_else(unfound),
    }
}

fn track(predicted: bool) -> gst::Structure {
    gst::Structure::builder(TRACK).field("predicted", predicted).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACE_1: FaceRegion = FaceRegion {
        left: 3,
        top: 5,
        width: 40,
        height: 50,
        confidence: 0.875,
        track_id: None,
        predicted: false,
    };
    const FACE_2: FaceRegion = FaceRegion {
        left: 100,
        top: 0,
        width: 7,
        height: 9,
        confidence: 0.5,
        track_id: Some(12),
        predicted: false,
    };

    #[test]
    fn a_face_at_the_edge_is_cut() {
        const FACE: FaceRegion = FaceRegion { left: 20, top: 20, width: 60, height: 60, ..FACE_1 };
        let is_cut = |face: &FaceRegion, width, height| face.is_cut(width, height);
        assert!(!is_cut(&FACE, 81, 81));
        assert!(is_cut(&FACE, 80, 100) && is_cut(&FACE, 100, 80));
        assert!(is_cut(&FaceRegion { left: 0, ..FACE }, 200, 200));
        assert!(is_cut(&FaceRegion { top: 0, ..FACE }, 200, 200));
        assert_eq!(FACE.corners(), [20, 20, 80, 80]);
    }

    #[test]
    fn faces_come_back_as_attached_and_other_regions_are_ignored() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        let frame = buffer.make_mut();
        attach_face(frame, &FACE_1);
        VideoRegionOfInterestMeta::add(frame, "vehicle", (0, 0, 9, 9));
        attach_face(frame, &FACE_2);
        assert_eq!(faces(&buffer), [FACE_1, FACE_2]);
        assert_eq!(crop_facts(&buffer), None);
    }

    #[test]
    fn the_written_form_is_that_of_dl_streamer() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        attach_face(buffer.make_mut(), &FACE_2);
        let meta = buffer.meta::<VideoRegionOfInterestMeta>().unwrap();
        assert_eq!((meta.roi_type(), meta.id(), meta.rect()), ("face", 12, (100, 0, 7, 9)));
        let detection = meta.param("detection").unwrap();
        assert_eq!(detection.get::<f64>("confidence"), Ok(0.5));
        assert_eq!(detection.get::<&str>("label_name"), Ok("face"));
    }

    #[test]
    fn a_region_without_a_score_is_read_with_score_zero() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        VideoRegionOfInterestMeta::add(buffer.make_mut(), "face", (1, 2, 3, 4));
        assert_eq!(
            faces(&buffer),
            [FaceRegion {
                left: 1,
                top: 2,
                width: 3,
                height: 4,
                confidence: 0.0,
                track_id: None,
                predicted: false
            }]
        );
    }

    #[test]
    fn a_region_of_no_type_is_no_face() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        attach_face(buffer.make_mut(), &FACE_2);
        // SAFETY: the buffer is writable, and GStreamer takes a null pointer for no type.
        unsafe {
            let buffer = buffer.make_mut().as_mut_ptr();
            gst_video::ffi::gst_buffer_add_video_region_of_interest_meta(buffer, ptr::null(), 1, 2, 3, 4);
        }
        assert_eq!(faces(&buffer), [FACE_2]);
        assign_tracks(buffer.make_mut(), &[Some(5)], &[]);
        assert_eq!(faces(&buffer), [FaceRegion { track_id: Some(5), ..FACE_2 }]);
    }

    #[test]
    fn candidates_with_an_id_become_faces_and_the_others_go() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        let frame = buffer.make_mut();
        let predicted = FaceRegion { predicted: true, ..FACE_2 };
        attach_face(frame, &predicted);
        attach_face(frame, &FACE_1);
        attach_candidate(frame, &FACE_1);
        attach_candidate(frame, &FACE_2);
        assert_eq!((faces(frame), candidates(frame)), (vec![FACE_1], vec![FACE_1, FACE_2]));
        assign_tracks(frame, &[Some(3)], &[None, Some(8)]);
        let found = [FaceRegion { track_id: Some(3), ..FACE_1 }, FaceRegion { track_id: Some(8), ..FACE_2 }];
        assert_eq!((&faces(frame)[..], candidates(frame)), (&found[..], vec![]));
        assert_eq!(faces_and_predictions(frame), [&[predicted][..], &found[..]].concat());
    }

    #[test]
    fn the_facts_of_a_crop_survive_a_copy_of_the_buffer() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        let with_time = CropFacts {
            face: FACE_2,
            frame_width: 1920,
            frame_height: 1080,
            captured_at: Some(Duration::new(1_700_000_000, 123_456_789)),
            running_time: Some(Duration::from_millis(40)),
            clock_refused: true,
        };
        attach_crop(buffer.make_mut(), &with_time);
        assert_eq!(crop_facts(&buffer.copy()), Some(with_time));
        assert!(faces(&buffer).is_empty(), "the rectangle is no region of the crop's own pixels");

        let mut buffer = gst::Buffer::new();
        let without_time =
            CropFacts { captured_at: None, running_time: None, clock_refused: false, ..with_time };
        attach_crop(buffer.make_mut(), &without_time);
        assert_eq!(crop_facts(&buffer), Some(without_time));
    }
}
