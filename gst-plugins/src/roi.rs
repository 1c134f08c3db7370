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
//! A face with a track id carries a further structure `facepipe-track` with `predicted` (boolean): whether the box is the
//! tracker's prediction, in a frame that was not searched. Predicted boxes are for following and drawing; only faces that
//! were detected in a frame are cropped from it.
//!
//! Converters of GStreamer 1.20 and 1.22 move the regions but lose their parameter structures. Score and `predicted` therefore
//! also stand in a custom meta, [`detection_meta`], which they keep; where a region has neither, the mark of the frame
//! ([`detection_mark`]) says whether it can have been detected.
//!
//! With the cargo feature `v1_24`, detected faces and their tracks are also written as `GstAnalyticsRelationMeta`, which
//! these elements do not read.
//!
//! Detections below the score threshold have the `roi_type` `face-candidate`, in the same form. Only the tracker reads them:
//! those that continue a track become faces, the others are removed.
//!
//! A **crop** (`image/jpeg` or `image/webp`) carries one `GstVideoRegionOfInterestMeta` of `roi_type` `face-crop`. Its
//! rectangle is the face's bounding box in the *full frame*, `id` and `detection` are those of the face. A parameter structure
//! `facepipe-crop` adds, in pixels (uint):
//!
//! | field | content |
//! |---|---|
//! | `frame-width`, `frame-height` | size of the full frame |
//! | `crop-left`, `crop-top`, `crop-right`, `crop-bottom` | the part of the full frame that the crop shows |
//! | `picture-width`, `picture-height` | size of the crop itself, which may be shrunk |
//!
//! and, where they are known, `captured-at` (uint64, nanoseconds since 1970-01-01 UTC), `running-time` (uint64, nanoseconds:
//! the frame's, which may be earlier than the buffer's own) and `clock-refused` (boolean, true) where `captured-at` is not the
//! camera's own time, since its clock was too far off.
//!
//! To other elements these buffers are plain pictures. A decoder may pass the metadata on to the frame that it decodes;
//! since the rectangle does not refer to that frame's pixels, its type differs from that of a frame's faces.

use std::{ptr, time::Duration};

use facepipe_detector::BoundingBox;
use gst::{glib, glib::translate::IntoGlib};
use gst_video::VideoRegionOfInterestMeta;

use crate::{custom_meta, detection_mark, detection_meta};

const FACE: &str = "face";
const FACE_CANDIDATE: &str = "face-candidate";
const FACE_CROP: &str = "face-crop";
const DETECTION: &str = "detection";
const CROP: &str = "facepipe-crop";
const TRACK: &str = "facepipe-track";

/// A face on a frame: a detection or, between searches, a tracker's prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaceRegion {
    /// Its place in pixels of the full frame.
    pub bounding_box: BoundingBox<u32>,
    /// The detector's score, 0 to 1; 0 where another element attached a region without one.
    pub confidence: f64,
    /// The track id, if the face is tracked.
    pub track_id: Option<i32>,
    /// Whether the box is a prediction of the tracker, in a frame that was not searched.
    pub predicted: bool,
}

impl FaceRegion {
    /// Returns left, top, width and height, as region metadata has them.
    pub(crate) fn rectangle(&self) -> (u32, u32, u32, u32) {
        let BoundingBox { left, top, .. } = self.bounding_box;
        (left, top, self.bounding_box.width(), self.bounding_box.height())
    }

    /// Returns whether the box touches an edge of its frame: a part of the face is probably missing.
    pub const fn is_cut(&self, frame_width: u32, frame_height: u32) -> bool {
        let BoundingBox { left, top, right, bottom } = self.bounding_box;
        left == 0 || top == 0 || right >= frame_width || bottom >= frame_height
    }
}

/// The part of a frame that a crop shows, and the size at which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropArea {
    /// Pixels of the full frame.
    pub bounding_box: BoundingBox<u32>,
    /// Width of the crop in its own pixels, at least 1.
    pub picture_width: u32,
    /// Height of the crop in its own pixels, at least 1.
    pub picture_height: u32,
}

impl CropArea {
    /// Converts a box in pixels of the crop to pixels of the full frame.
    pub fn to_frame(&self, on_crop: &BoundingBox<f64>) -> BoundingBox<f64> {
        let area = self.bounding_box;
        let across = f64::from(area.width()) / f64::from(self.picture_width.max(1));
        let down = f64::from(area.height()) / f64::from(self.picture_height.max(1));
        let (x, y) =
            (|at: f64| f64::from(area.left) + at * across, |at: f64| f64::from(area.top) + at * down);
        BoundingBox::new(x(on_crop.left), y(on_crop.top), x(on_crop.right), y(on_crop.bottom))
    }

    /// Adds its fields to a structure, see the [module](self).
    pub(crate) fn add_to(&self, structure: gst::structure::Builder) -> gst::structure::Builder {
        let BoundingBox { left, top, right, bottom } = self.bounding_box;
        structure
            .field("crop-left", left)
            .field("crop-top", top)
            .field("crop-right", right)
            .field("crop-bottom", bottom)
            .field("picture-width", self.picture_width)
            .field("picture-height", self.picture_height)
    }

    /// Reads it from a structure with the fields of the [module](self), as `facepipe-crop` or the bus message
    /// `facepipe-result`.
    pub fn from_structure(structure: &gst::StructureRef) -> Option<Self> {
        let pixels = |name: &str| structure.get::<u32>(name).ok();
        let (left, top) = (pixels("crop-left")?, pixels("crop-top")?);
        let (right, bottom) = (pixels("crop-right")?, pixels("crop-bottom")?);
        Some(Self {
            bounding_box: BoundingBox::new(left, top, right, bottom),
            picture_width: pixels("picture-width")?,
            picture_height: pixels("picture-height")?,
        })
    }
}

/// The metadata of a crop: its face, its frame and its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropMetadata {
    /// The face, in pixels of the full frame.
    pub face: FaceRegion,
    /// Width of the full frame in pixels.
    pub frame_width: u32,
    /// Height of the full frame in pixels.
    pub frame_height: u32,
    /// The part of the frame that the crop shows, where that is known.
    pub area: Option<CropArea>,
    /// When the frame was captured, since 1970-01-01 UTC.
    pub captured_at: Option<Duration>,
    /// Running time of the frame, which continues to rise where timestamps fall or are missing. A best shot may be sent later
    /// than it was taken, with a later timestamp.
    pub running_time: Option<Duration>,
    /// `captured_at` is not the camera's own time, since its clock is too far from this machine's.
    pub clock_refused: bool,
}

/// Adds a face to a frame.
pub fn attach_face(buffer: &mut gst::BufferRef, face: &FaceRegion) {
    attach(buffer, FACE, face, face.track_id.map(|_| track(face.predicted)));
    detection_meta::attach(buffer, face, false);
    #[cfg(feature = "v1_24")]
    if !face.predicted {
        crate::analytics::add_face(buffer, face);
    }
}

/// Adds a detection below the score threshold to a frame.
pub fn attach_candidate(buffer: &mut gst::BufferRef, face: &FaceRegion) {
    attach(buffer, FACE_CANDIDATE, face, None);
    detection_meta::attach(buffer, face, true);
}

/// Returns whether a frame carries regions of interest, of faces or of anything else.
pub fn has_regions(buffer: &gst::BufferRef) -> bool {
    buffer.iter_meta::<VideoRegionOfInterestMeta>().next().is_some()
}

/// Returns the candidates of a frame, in the order in which they were attached.
pub fn candidates(buffer: &gst::BufferRef) -> Vec<FaceRegion> {
    regions(buffer, FACE_CANDIDATE).map(|meta| read_face(buffer, &meta)).collect()
}

/// Writes track ids to a frame: one for each of its [`faces`], whichever element attached them, and one for each of its
/// [`candidates`], in their order. Candidates with an id become faces, the others are removed.
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
    custom_meta::remove(buffer, |region: &VideoRegionOfInterestMeta| is_of_type(region, FACE_CANDIDATE));
    detection_meta::remove_candidates(buffer);
    for face in &confirmed {
        attach_face(buffer, face);
    }
}

/// Writes the tracks of a frame's faces to its `GstAnalyticsRelationMeta`, and those faces that are not in it yet.
/// `first_seen` returns the running time at which a track began.
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

/// Returns the faces that were detected in a frame, in the order in which they were attached.
pub fn faces(buffer: &gst::BufferRef) -> Vec<FaceRegion> {
    faces_and_predictions(buffer).into_iter().filter(|face| !face.predicted).collect()
}

/// Returns the faces of a frame as [`faces`], and those that a tracker predicts: for following and drawing.
pub fn faces_and_predictions(buffer: &gst::BufferRef) -> Vec<FaceRegion> {
    regions(buffer, FACE).map(|meta| read_face(buffer, &meta)).collect()
}

/// Adds the metadata to a crop.
pub fn attach_crop(buffer: &mut gst::BufferRef, metadata: &CropMetadata) {
    let mut structure = gst::Structure::builder(CROP)
        .field("frame-width", metadata.frame_width)
        .field("frame-height", metadata.frame_height);
    if let Some(area) = &metadata.area {
        structure = area.add_to(structure);
    }
    for (name, time) in [("captured-at", metadata.captured_at), ("running-time", metadata.running_time)] {
        if let Some(nanoseconds) = time.and_then(|t| u64::try_from(t.as_nanos()).ok()) {
            structure = structure.field(name, nanoseconds);
        }
    }
    if metadata.clock_refused {
        structure = structure.field("clock-refused", true);
    }
    attach(buffer, FACE_CROP, &metadata.face, Some(structure.build()));
}

/// Returns the metadata of a crop; `None` for a picture without.
pub fn crop_metadata(buffer: &gst::BufferRef) -> Option<CropMetadata> {
    regions(buffer, FACE_CROP).find_map(|meta| {
        let crop = meta.param(CROP)?;
        Some(CropMetadata {
            face: read_face(buffer, &meta),
            frame_width: crop.get("frame-width").ok()?,
            frame_height: crop.get("frame-height").ok()?,
            area: CropArea::from_structure(crop),
            captured_at: crop.get("captured-at").ok().map(Duration::from_nanos),
            running_time: crop.get("running-time").ok().map(Duration::from_nanos),
            clock_refused: crop.get("clock-refused").unwrap_or(false),
        })
    })
}

fn attach(buffer: &mut gst::BufferRef, roi_type: &str, face: &FaceRegion, extra: Option<gst::Structure>) {
    let mut meta = VideoRegionOfInterestMeta::add(buffer, roi_type, face.rectangle());
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

/// Returns whether a region has this type. DL Streamer attaches regions of no type at all where a model has no labels, and
/// `roi_type` of the bindings would read a null pointer there.
fn is_of_type(meta: &VideoRegionOfInterestMeta, roi_type: &'static str) -> bool {
    // SAFETY: the bindings' type is a transparent wrapper of this structure.
    let raw = unsafe { &*ptr::from_ref(meta).cast::<gst_video::ffi::GstVideoRegionOfInterestMeta>() };
    raw.roi_type == glib::Quark::from_str(roi_type).into_glib()
}

fn read_face(buffer: &gst::BufferRef, meta: &VideoRegionOfInterestMeta) -> FaceRegion {
    let rectangle = meta.rect();
    let track_id = Some(meta.id()).filter(|&id| id > 0);
    let confidence: Option<f64> = meta.param(DETECTION).and_then(|d| d.get("confidence").ok());
    let predicted: Option<bool> = meta.param(TRACK).and_then(|t| t.get("predicted").ok());
    // A converter may have lost the structures.
    let details = match (confidence, predicted) {
        (Some(_), Some(_)) => None,
        _ => detection_meta::find(buffer, rectangle, is_of_type(meta, FACE_CANDIDATE)),
    };
    let not_searched = || track_id.is_some() && detection_mark::was_searched(buffer) == Some(false);
    FaceRegion {
        bounding_box: bounding_box(rectangle),
        confidence: confidence.or(details.map(|details| details.confidence)).unwrap_or(0.0),
        track_id,
        predicted: predicted.or(details.map(|details| details.is_predicted())).unwrap_or_else(not_searched),
    }
}

/// Returns the box of a region. Its corner is unsigned; elements that put it to the left of a frame or above write negative
/// numbers, which wrap around. Such a box begins at the frame's edge, and what is outside is no part of it.
fn bounding_box((left, top, width, height): (u32, u32, u32, u32)) -> BoundingBox<u32> {
    let inside = |start: u32, length: u32| {
        let outside = start.wrapping_neg();
        let is_negative = start.cast_signed() < 0 && length.cast_signed() > 0;
        if is_negative && outside < length { (0, length - outside) } else { (start, length) }
    };
    let ((left, width), (top, height)) = (inside(left, width), inside(top, height));
    BoundingBox::from_size(left, top, width, height)
}

fn track(predicted: bool) -> gst::Structure {
    gst::Structure::builder(TRACK).field("predicted", predicted).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACE_1: FaceRegion = FaceRegion {
        bounding_box: BoundingBox::from_size(3, 5, 40, 50),
        confidence: 0.875,
        track_id: None,
        predicted: false,
    };
    const FACE_2: FaceRegion = FaceRegion {
        bounding_box: BoundingBox::from_size(100, 0, 7, 9),
        confidence: 0.5,
        track_id: Some(12),
        predicted: false,
    };

    #[test]
    fn a_face_at_the_edge_is_cut() {
        let face = |left, top| FaceRegion { bounding_box: BoundingBox::new(left, top, 80, 80), ..FACE_1 };
        assert!(!face(20, 20).is_cut(81, 81));
        assert!(face(20, 20).is_cut(80, 100) && face(20, 20).is_cut(100, 80));
        assert!(face(0, 20).is_cut(200, 200));
        assert!(face(20, 0).is_cut(200, 200));
        assert_eq!(face(20, 20).rectangle(), (20, 20, 60, 60));
    }

    #[test]
    fn a_box_on_a_shrunk_crop_is_found_in_its_frame() {
        let area = CropArea {
            bounding_box: BoundingBox::new(100, 50, 400, 250),
            picture_width: 150,
            picture_height: 50,
        };
        let face = area.to_frame(&BoundingBox::new(0.0, 10.0, 75.0, 50.0));
        assert_eq!(face, BoundingBox::new(100.0, 90.0, 250.0, 250.0));
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
        assert_eq!(crop_metadata(&buffer), None);
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
                bounding_box: BoundingBox::from_size(1, 2, 3, 4),
                confidence: 0.0,
                track_id: None,
                predicted: false
            }]
        );
    }

    #[test]
    fn a_region_with_a_negative_corner_keeps_the_part_inside_the_frame() {
        gst::init().unwrap();
        let boxes = |rectangles: &[(i32, i32, u32, u32)]| -> Vec<BoundingBox<u32>> {
            let mut buffer = gst::Buffer::new();
            for &(left, top, width, height) in rectangles {
                let rectangle = (left.cast_unsigned(), top.cast_unsigned(), width, height);
                VideoRegionOfInterestMeta::add(buffer.make_mut(), "face", rectangle);
            }
            faces(&buffer).iter().map(|face| face.bounding_box).collect()
        };
        let inside = [(-5, 10, 40, 50), (10, -5, 40, 50), (-5, -49, 40, 50)];
        assert_eq!(
            boxes(&inside),
            [BoundingBox::new(0, 10, 35, 60), BoundingBox::new(10, 0, 50, 45), BoundingBox::new(0, 0, 35, 1)]
        );
        let outside = boxes(&[(-40, 10, 40, 50), (-1, 10, u32::MAX, 50)]);
        assert!(outside.iter().all(|face| face.clipped(1920, 1080).is_none()), "{outside:?}");
    }

    #[test]
    fn a_region_without_a_type_is_ignored() {
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
    fn candidates_with_an_id_become_faces_and_the_others_are_removed() {
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
    fn the_metadata_of_a_crop_survive_a_copy_of_the_buffer() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        let with_time = CropMetadata {
            face: FACE_2,
            frame_width: 1920,
            frame_height: 1080,
            area: Some(CropArea {
                bounding_box: BoundingBox::new(95, 0, 112, 12),
                picture_width: 17,
                picture_height: 12,
            }),
            captured_at: Some(Duration::new(1_700_000_000, 123_456_789)),
            running_time: Some(Duration::from_millis(40)),
            clock_refused: true,
        };
        attach_crop(buffer.make_mut(), &with_time);
        assert_eq!(crop_metadata(&buffer.copy()), Some(with_time));
        assert!(faces(&buffer).is_empty(), "the rectangle is no region of the crop's own pixels");

        let mut buffer = gst::Buffer::new();
        let without_time = CropMetadata {
            area: None,
            captured_at: None,
            running_time: None,
            clock_refused: false,
            ..with_time
        };
        attach_crop(buffer.make_mut(), &without_time);
        assert_eq!(crop_metadata(&buffer), Some(without_time));
    }
}
