//! From a frame with faces to the pictures that are to be sent, now or when a track ends: what `facecrop` and
//! `facesink-http` have in common.

use std::time::Duration;

use gst::glib;
use gst_video::{VideoFrameRef, VideoInfo};

use crate::{
    best_shot::{BestShots, Limits, Look, Merits},
    capture_time::{capture_time, running_time},
    crop::{CropError, CropRegion, CropSettings, Cropper, Encoding, Picture},
    frame,
    roi::{self, CropFacts, FaceRegion},
};

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
    /// The cut and the encoding.
    pub crop: CropSettings,
    /// Which faces.
    pub policy: Policy,
    /// How many of one track.
    pub limits: Limits,
}

impl Default for CutterSettings {
    fn default() -> Self {
        Self {
            crop: CropSettings::default(),
            policy: Policy::default(),
            limits: Limits { improvement: 0.2, max_per_track: 4, min_quality: 0.0 },
        }
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
        let time = running_time(input.segment, input.buffer).map(Duration::from);
        let mut cuts = self.shots.end_idle(time.unwrap_or_default());
        let (width, height) = (input.info.width(), input.info.height());
        let mut wanted = Vec::new();
        for face in roi::faces(input.buffer) {
            let Some(region) = settings.crop.region(&face, width, height) else { continue };
            let merits = Merits {
                size: face.width.min(face.height),
                sharpness: 0.0,
                score: face.confidence,
                cut: face.is_cut(width, height),
            };
            let at_best = merits.at_best();
            let wants = match track(&face, settings) {
                Some(id) => {
                    self.shots.wants(id, look(&face), at_best, time.unwrap_or_default(), &settings.limits)
                }
                None => at_best >= settings.limits.min_quality,
            };
            if wants {
                wanted.push((face, region, merits));
            }
        }
        if !wanted.is_empty() {
            self.cut(input, time, settings, wanted, &mut cuts)?;
        }
        encode(cuts, settings)
    }

    fn cut(
        &mut self,
        input: &Input<'_>,
        running_time: Option<Duration>,
        settings: &CutterSettings,
        wanted: Vec<(FaceRegion, CropRegion, Merits)>,
        cuts: &mut Vec<Cut>,
    ) -> Result<(), gst::ErrorMessage> {
        let mapped = VideoFrameRef::from_buffer_ref_readable(input.buffer, input.info).map_err(|_| {
            gst::error_msg!(gst::ResourceError::Read, ("a frame cannot be mapped for reading"))
        })?;
        let described = frame::describe(&mapped)
            .map_err(|error| gst::error_msg!(gst::StreamError::Format, ("{error}")))?;
        let captured_at = capture_time(input.element, input.segment, input.buffer);
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
            let facts = CropFacts {
                face,
                frame_width: input.info.width(),
                frame_height: input.info.height(),
                captured_at,
                running_time,
            };
            let cut = Cut { picture, facts, references: references.clone() };
            match track {
                Some(id) => cuts.extend(self.shots.offer(id, &merits, cut, &settings.limits)),
                None if settings.limits.min_quality == 0.0
                    || merits.quality() >= settings.limits.min_quality =>
                {
                    cuts.push(cut);
                }
                None => {}
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
        encode(tracks.iter().filter_map(|&id| self.shots.end(id)).collect(), settings)
    }

    /// The best pictures of all tracks, which end here.
    ///
    /// # Errors
    ///
    /// A picture cannot be encoded.
    pub fn end_all(&mut self, settings: &CutterSettings) -> Result<Vec<Shot>, gst::ErrorMessage> {
        encode(self.shots.end_all(), settings)
    }

    /// Forgets what waits, as a flush asks for.
    pub fn clear(&mut self) {
        self.shots.clear();
    }
}

/// The track that a face is judged within.
fn track(face: &FaceRegion, settings: &CutterSettings) -> Option<i32> {
    face.track_id.filter(|_| settings.policy == Policy::Best)
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
