//! From a frame with faces to the pictures that are to be sent, now or when a track ends: what `facecrop` and
//! `facesink-http` have in common.

use std::time::Duration;

use gst::glib;
use gst_video::{VideoFrameRef, VideoInfo};

use crate::{
    best_shot::{BestShots, Limits, Look, Merits, Refusal},
    capture_time::{CaptureClock, Captured, running_time},
    crop::{CropError, CropRegion, CropSettings, Cropper, Encoding, Picture, default_min_size},
    frame,
    roi::{self, CropFacts, FaceRegion},
    timeline::{Timeline, frame_length},
};

pub use crate::capture_time::ClockLimit;

/// The shorter side of the smallest faces that count in such video, unless a limit is set: see [`default_min_size`].
pub fn min_size_in(video: &VideoInfo) -> u32 {
    let [across, down] = frame::stretch(video);
    default_min_size(f64::from(video.width()) * across, f64::from(video.height()) * down)
}

/// Which of the faces are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeCropPolicy")]
#[repr(i32)]
pub enum Policy {
    /// Few good pictures of each tracked face; each face of each frame where nothing tracks them.
    #[default]
    #[enum_value(
        name = "A first good picture of each track, clearly better ones, the best at its end",
        nick = "best"
    )]
    Best,
    /// Each face of each frame.
    #[enum_value(name = "Each face of each frame", nick = "every")]
    Every,
}

/// What becomes a picture, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutterSettings {
    /// The cut and the encoding; its `min_size` counts no more than [`min_size`](Self::min_size) says.
    pub crop: CropSettings,
    /// Faces whose shorter side is less than this are left out, pixels; where none is set, by the frame's size, see
    /// [`default_min_size`].
    pub min_size: Option<u32>,
    /// Which faces.
    pub policy: Policy,
    /// How many of one track.
    pub limits: Limits,
    /// When the camera's clock is taken.
    pub clock: ClockLimit,
}

impl Default for CutterSettings {
    fn default() -> Self {
        Self {
            crop: CropSettings::default(),
            min_size: None,
            policy: Policy::default(),
            limits: Limits { improvement: 0.2, max_per_track: 4, min_quality: 0.0, certainty: 0.8 },
            clock: ClockLimit::default(),
        }
    }
}

/// What became of the faces since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faces that were found in frames, each of each frame.
    pub faces: u64,
    /// Pictures that were made of them.
    pub pictures: u64,
    /// Of the faces, those smaller than the limit.
    pub below_min_size: u64,
    /// Of the faces, those whose picture would have been, or was, below the quality that is asked for.
    pub below_min_quality: u64,
    /// Tracks that ended without a picture since their faces were too small.
    pub tracks_below_min_size: u64,
    /// Tracks that ended without a picture since these would have been too poor.
    pub tracks_below_min_quality: u64,
    /// Tracks that ended without a picture since the detector was never sure of a face.
    pub tracks_below_certainty: u64,
    /// The smallest face that counts in frames as the last one: its shorter side, pixels; 0 before the first frame.
    pub min_size: u32,
}

impl Counts {
    /// What was left out, as a sentence for people; none where nothing was.
    pub fn left_out(&self) -> Option<String> {
        let some = |count: u64, why: String| (count > 0).then(|| format!("{count} {why}"));
        let parts: Vec<String> = [
            some(
                self.below_min_size,
                format!("faces smaller than {} pixels were left out (min-size)", self.min_size),
            ),
            some(self.below_min_quality, "faces of too poor a picture were left out (min-quality)".into()),
            some(
                self.tracks_below_min_size.saturating_add(self.tracks_below_min_quality),
                "tracks ended without any picture for that".into(),
            ),
            some(
                self.tracks_below_certainty,
                "tracks were left out (certainty), since the detector was never sure of a face".into(),
            ),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// Adds what was left out, and the limit, to the fields of a structure for `stats`; each uint64.
    pub fn add_to(&self, structure: gst::structure::Builder) -> gst::structure::Builder {
        structure
            .field("below-min-size", self.below_min_size)
            .field("below-min-quality", self.below_min_quality)
            .field("tracks-below-min-size", self.tracks_below_min_size)
            .field("tracks-below-min-quality", self.tracks_below_min_quality)
            .field("tracks-below-certainty", self.tracks_below_certainty)
            .field("min-size", u64::from(self.min_size))
    }
}

/// An encoded picture of a face.
#[derive(Debug)]
pub struct Shot {
    /// The bytes.
    pub encoded: Vec<u8>,
    /// Their form.
    pub encoding: Encoding,
    /// The face, its frame and its time.
    pub facts: CropFacts,
    /// Reference timestamps of the frame: their kind, time and duration.
    pub references: Vec<(gst::Caps, gst::ClockTime, Option<gst::ClockTime>)>,
}

/// A frame and where it is.
pub struct Input<'a> {
    /// The element that cuts: its clock tells the time of capture.
    pub element: &'a gst::Element,
    /// The segment of the frame.
    pub segment: Option<&'a gst::Segment>,
    /// Size and format.
    pub info: &'a VideoInfo,
    /// Pixels and metadata.
    pub buffer: &'a gst::BufferRef,
}

/// A picture that is not sent yet.
#[derive(Debug)]
struct Cut {
    picture: Picture,
    facts: CropFacts,
    references: Vec<(gst::Caps, gst::ClockTime, Option<gst::ClockTime>)>,
}

/// Cuts the faces out of frames and chooses among them.
#[derive(Debug, Default)]
pub struct FaceCutter {
    cropper: Cropper,
    shots: BestShots<Cut>,
    counts: Counts,
    timeline: Timeline,
    clock: CaptureClock,
}

impl FaceCutter {
    /// The pictures to send now that this frame is here.
    ///
    /// # Errors
    ///
    /// The frame cannot be read, or a picture not be encoded: messages for the bus.
    pub fn frame(
        &mut self,
        input: &Input<'_>,
        settings: &CutterSettings,
    ) -> Result<Vec<Shot>, gst::ErrorMessage> {
        let running_time = running_time(input.segment, input.buffer).map(Duration::from);
        let length = frame_length(input.buffer, Some(input.info.fps()));
        let time = self.timeline.frame(running_time, length).time;
        // Of every frame, so that the camera's clock is known when the first face comes.
        let captured =
            self.clock.captured(input.element, running_time.map(|_| time), input.buffer, settings.clock);
        let mut cuts = self.shots.end_idle(time);
        let (width, height) = (input.info.width(), input.info.height());
        let stretch = frame::stretch(input.info);
        let min_size = settings.min_size.unwrap_or_else(|| min_size_in(input.info));
        self.counts.min_size = min_size;
        let crop = CropSettings { min_size: 0, ..settings.crop };
        let mut wanted = Vec::new();
        for face in roi::faces(input.buffer) {
            self.counts.faces += 1;
            // Outside the frame there is nothing to cut out.
            let Some(region) = crop.region(&face, width, height) else { continue };
            if inner_size(&face, width, height, stretch) < min_size {
                self.counts.below_min_size += 1;
                if let Some(id) = track(&face, settings) {
                    self.shots.refuse(id, Refusal::TooSmall, time);
                }
                continue;
            }
            let merits = Merits {
                size: square_size(face.width, face.height, stretch),
                sharpness: 0.0,
                score: face.confidence,
                cut: face.is_cut(width, height),
            };
            let at_best = merits.at_best();
            let good_enough = at_best >= settings.limits.min_quality;
            let wants = match track(&face, settings) {
                Some(id) => self.shots.wants(id, look(&face), at_best, time, &settings.limits),
                None => good_enough,
            };
            cuts.extend(track(&face, settings).and_then(|id| self.shots.due(id)));
            if !good_enough {
                self.too_poor(track(&face, settings), time);
            }
            if wants {
                wanted.push((face, region, merits));
            }
        }
        if !wanted.is_empty() {
            self.cut(input, (time, captured), settings, wanted, &mut cuts)?;
        }
        self.encode(cuts, settings)
    }

    fn too_poor(&mut self, track: Option<i32>, now: Duration) {
        self.counts.below_min_quality += 1;
        if let Some(id) = track {
            self.shots.refuse(id, Refusal::TooPoor, now);
        }
    }

    /// What became of the faces until now.
    pub fn counts(&self) -> Counts {
        let unseen = self.shots.unseen();
        Counts {
            tracks_below_min_size: unseen.too_small,
            tracks_below_min_quality: unseen.too_poor,
            tracks_below_certainty: unseen.uncertain,
            ..self.counts
        }
    }

    fn encode(&mut self, cuts: Vec<Cut>, settings: &CutterSettings) -> Result<Vec<Shot>, gst::ErrorMessage> {
        let shots = encode(cuts, settings)?;
        self.counts.pictures += u64::try_from(shots.len()).unwrap_or(0);
        Ok(shots)
    }

    fn cut(
        &mut self,
        input: &Input<'_>,
        (time, captured): (Duration, Captured),
        settings: &CutterSettings,
        wanted: Vec<(FaceRegion, CropRegion, Merits)>,
        cuts: &mut Vec<Cut>,
    ) -> Result<(), gst::ErrorMessage> {
        let mapped = VideoFrameRef::from_buffer_ref_readable(input.buffer, input.info).map_err(|_| {
            gst::error_msg!(gst::ResourceError::Read, ("a frame cannot be mapped for reading"))
        })?;
        let described = frame::describe(&mapped)
            .map_err(|error| gst::error_msg!(gst::StreamError::Format, ("{error}")))?;
        let references: Vec<_> = input
            .buffer
            .iter_meta::<gst::ReferenceTimestampMeta>()
            .map(|meta| (meta.reference_owned(), meta.timestamp(), meta.duration()))
            .collect();
        for (face, region, merits) in wanted {
            let picture =
                self.cropper.cut(&described, &region, &settings.crop).map_err(|error| refused(&error))?;
            let track = track(&face, settings);
            let sharpness = if track.is_some() || settings.limits.min_quality > 0.0 {
                picture.sharpness(region.shares(&face))
            } else {
                0.0
            };
            let merits = Merits { sharpness, ..merits };
            if settings.limits.min_quality > 0.0 && merits.quality() < settings.limits.min_quality {
                self.too_poor(track, time);
                continue;
            }
            let facts = CropFacts {
                face,
                frame_width: input.info.width(),
                frame_height: input.info.height(),
                captured_at: Some(captured.at),
                running_time: Some(time),
                clock_refused: captured.clock_refused,
            };
            let cut = Cut { picture, facts, references: references.clone() };
            match track {
                Some(id) => cuts.extend(self.shots.offer(id, &merits, cut, &settings.limits)),
                None => cuts.push(cut),
            }
        }
        Ok(())
    }

    /// The best pictures of tracks that ended.
    ///
    /// # Errors
    ///
    /// A picture cannot be encoded.
    pub fn end(&mut self, tracks: &[i32], settings: &CutterSettings) -> Result<Vec<Shot>, gst::ErrorMessage> {
        let ended = tracks.iter().filter_map(|&id| self.shots.end(id)).collect();
        self.encode(ended, settings)
    }

    /// The best pictures of all tracks, which end here.
    ///
    /// # Errors
    ///
    /// A picture cannot be encoded.
    pub fn end_all(&mut self, settings: &CutterSettings) -> Result<Vec<Shot>, gst::ErrorMessage> {
        let ended = self.shots.end_all();
        self.encode(ended, settings)
    }

    /// Forgets what waits, as a flush asks for.
    pub fn clear(&mut self) {
        self.shots.clear();
        self.timeline = Timeline::default();
    }

    /// A sentence for the bus, once, when the camera's clock is not taken.
    pub fn take_notice(&mut self) -> Option<String> {
        self.clock.take_notice()
    }
}

/// The track that a face is judged within.
fn track(face: &FaceRegion, settings: &CutterSettings) -> Option<i32> {
    face.track_id.filter(|_| settings.policy == Policy::Best)
}

/// The shorter side of the part of a face that lies in its frame, in square pixels.
fn inner_size(face: &FaceRegion, frame_width: u32, frame_height: u32, stretch: [f64; 2]) -> u32 {
    let [left, top, right, bottom] = face.corners();
    let width = right.min(frame_width).saturating_sub(left);
    let height = bottom.min(frame_height).saturating_sub(top);
    square_size(width, height, stretch)
}

/// The shorter side of a box, in square pixels, rounded.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates at the range of u32"
)]
fn square_size(width: u32, height: u32, [across, down]: [f64; 2]) -> u32 {
    (f64::from(width) * across).min(f64::from(height) * down).round() as u32
}

fn look(face: &FaceRegion) -> Look {
    let place = [face.left, face.top, face.width, face.height].map(f64::from);
    let [left, top, width, height] = place;
    [left, top, width, height, face.confidence]
}

fn encode(cuts: Vec<Cut>, settings: &CutterSettings) -> Result<Vec<Shot>, gst::ErrorMessage> {
    cuts.into_iter()
        .map(|cut| {
            let encoded = cut.picture.encode(&settings.crop).map_err(|error| refused(&error))?;
            let encoding = settings.crop.encoding;
            Ok(Shot { encoded, encoding, facts: cut.facts, references: cut.references })
        })
        .collect()
}

fn refused(error: &CropError) -> gst::ErrorMessage {
    gst::error_msg!(gst::StreamError::Encode, ("{error}"))
}
