//! From the bytes of pictures to embedded faces: decode, find, align, embed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use facepipe_vision::{
    DecodeError, DecodeLimits, DecodeNote, Decoded, DeviceKind, Embedder, EmbedderKind, Face, ModelError,
    Mtcnn, MtcnnConfig, VisionError, decode_with_notes, installed_embedder, largest_face, load_embedder_on,
};
use image::{RgbImage, imageops};

/// A picture as it was sent.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The file.
    pub bytes: Bytes,
    /// Whether it was cut out of a larger one around a face: smaller faces beside that are not looked for.
    pub cut_out: bool,
    /// Whether it is looked at turned as well where it shows no face, to tell its sender.
    pub must_show_face: bool,
}

impl From<Bytes> for Picture {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, cut_out: false, must_show_face: false }
    }
}

impl Picture {
    /// One that is of no use without a face.
    pub fn of_a_face(bytes: Bytes) -> Self {
        Self { bytes, cut_out: false, must_show_face: true }
    }
}

/// Probability from which a face on a turned picture counts.
const SURE: f32 = 0.99;

/// The networks, loaded.
pub struct Pipeline {
    mtcnn: Mtcnn,
    embedder: Box<dyn Embedder>,
    device: DeviceKind,
    limits: DecodeLimits,
}

/// How a picture that shows no face must be turned to show one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// By 90 degrees clockwise.
    Right,
    /// By 180 degrees.
    UpsideDown,
    /// By 270 degrees clockwise.
    Left,
}

impl Rotation {
    const ALL: [Self; 3] = [Self::Right, Self::UpsideDown, Self::Left];

    /// Clockwise, in degrees.
    pub fn degrees(self) -> u16 {
        match self {
            Self::Right => 90,
            Self::UpsideDown => 180,
            Self::Left => 270,
        }
    }

    fn of(self, picture: &RgbImage) -> RgbImage {
        match self {
            Self::Right => imageops::rotate90(picture),
            Self::UpsideDown => imageops::rotate180(picture),
            Self::Left => imageops::rotate270(picture),
        }
    }
}

/// The faces of one picture, and what the embedder takes of each, in the same order.
pub struct FoundFaces {
    /// Where they are.
    pub faces: Vec<Face>,
    /// The network's input.
    pub crops: Vec<RgbImage>,
    /// What is to be said of the picture's file.
    pub notes: Vec<DecodeNote>,
    /// How it must be turned to show a face, where it shows none as it is and that was asked.
    pub turned: Option<Rotation>,
    /// When its bytes were taken up, how long they took to decode, and how long finding the faces took.
    pub took: (Instant, Duration, Duration),
}

/// Why a picture has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The sender's mistake.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Ours.
    #[error(transparent)]
    Vision(#[from] VisionError),
}

impl Pipeline {
    /// Loads the face detector and the embedder; without `embedder`, the best one whose weights are installed.
    ///
    /// # Errors
    /// Weights are missing or damaged, or there is no such device.
    pub fn load(
        models_dir: &Path,
        embedder: Option<EmbedderKind>,
        device: DeviceKind,
        min_face_size: f32,
        limits: DecodeLimits,
    ) -> Result<Self, ModelError> {
        let opened = device.open()?;
        let config = MtcnnConfig { min_face_size, ..MtcnnConfig::default() };
        let mtcnn = Mtcnn::load_on(models_dir, config, opened.as_ref())?;
        // Where none is installed, the small and accurate one is what the error asks for.
        let kind = embedder.or_else(|| installed_embedder(models_dir)).unwrap_or(EmbedderKind::MobileFaceNet);
        let embedder = load_embedder_on(kind, models_dir, opened.as_ref())?;
        Ok(Self { mtcnn, embedder, device, limits })
    }

    /// Whether the networks run on the processor, so that its threads can share them.
    pub fn on_processor(&self) -> bool {
        self.device == DeviceKind::Cpu
    }

    /// How many should take pictures at a time.
    pub fn workers(&self) -> usize {
        match self.device {
            DeviceKind::Cpu => rayon::current_num_threads(),
            // One has the device compute, another decodes meanwhile; more would only make batches smaller.
            DeviceKind::Cuda(_) => 2,
        }
    }

    /// The embedder.
    pub fn embedder(&self) -> &dyn Embedder {
        &*self.embedder
    }

    /// The faces of a picture, ready to be embedded.
    ///
    /// # Errors
    /// The bytes are no picture within the limits, or the network fails.
    pub fn find_faces(&self, picture: &Picture) -> Result<FoundFaces, PictureError> {
        let cut_out = picture.cut_out;
        let begun = Instant::now();
        let must_show_face = picture.must_show_face;
        let Decoded { image: picture, notes } = decode_with_notes(&picture.bytes, &self.limits)?;
        let decoded = begun.elapsed();
        let faces = self.mtcnn.detect_inside(&picture, cut_out)?;
        // Only the crops leave this function: a batch of whole pictures could fill the memory.
        let crops = faces.iter().map(|face| self.embedder.crop(&picture, face)).collect();
        let turned = if faces.is_empty() && must_show_face { self.turn_of(&picture)? } else { None };
        let took = (begun, decoded, begun.elapsed().saturating_sub(decoded));
        Ok(FoundFaces { faces, crops, notes, turned, took })
    }

    /// How a picture without a face must be turned to show one; of several ways the one with the surest face.
    fn turn_of(&self, picture: &RgbImage) -> Result<Option<Rotation>, VisionError> {
        let mut best = None;
        for turn in Rotation::ALL {
            let faces = self.mtcnn.detect(&turn.of(picture))?;
            let surest = faces.iter().map(|face| face.confidence).max_by(f32::total_cmp);
            if let Some(confidence) = surest.filter(|&confidence| confidence >= SURE)
                && best.is_none_or(|(best, _)| confidence > best)
            {
                best = Some((confidence, turn));
            }
        }
        Ok(best.map(|(_, turn)| turn))
    }

    /// The embedding of a picture's largest face; `None` where it has no face.
    ///
    /// # Errors
    /// The bytes are no picture within the limits, or the network fails.
    pub fn embed_largest_face(&self, bytes: Bytes) -> Result<Option<Vec<f32>>, PictureError> {
        let FoundFaces { faces, mut crops, .. } = self.find_faces(&bytes.into())?;
        let Some(position) = largest_face(faces.iter().map(|face| face.bounding_box)) else {
            return Ok(None);
        };
        Ok(self.embedder.embed(&[crops.swap_remove(position)])?.pop())
    }
}
