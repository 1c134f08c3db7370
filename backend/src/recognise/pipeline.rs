//! From the bytes of an image to embedded faces: decode, detect, align, embed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use facepipe_vision::{
    Backend, Compute, DecodeError, DecodeLimits, DecodeNote, Decoded, DeviceKind, Embedder, EmbedderKind,
    Face, FaceQuality, ModelError, Mtcnn, MtcnnConfig, VisionError, decode_with_notes, face_at,
    installed_embedder, load_embedder_on, main_or_largest,
};
use image::{RgbImage, imageops};

use crate::domain::EnrolledFace;

/// An image as the client sent it.
#[derive(Debug, Clone)]
pub struct UploadedImage {
    /// The file.
    pub bytes: Bytes,
    /// Whether it is a crop around a face: much smaller faces are not looked for.
    pub is_crop: bool,
    /// Whether to try the other orientations where it shows no face, so that the error can name the right one.
    pub must_show_face: bool,
    /// Whether a camera sent it: the limits of those count.
    pub is_from_camera: bool,
}

impl From<Bytes> for UploadedImage {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, is_crop: false, must_show_face: false, is_from_camera: false }
    }
}

impl UploadedImage {
    /// Creates the input of an image that is useless without a face.
    pub fn with_required_face(bytes: Bytes) -> Self {
        Self { must_show_face: true, ..bytes.into() }
    }
}

/// Faces of an image that are embedded, the largest ones. A photograph of a crowd has fewer; a mosaic of faces, made to keep the
/// embedder busy, has thousands.
const MAX_FACES: usize = 256;
/// Minimum probability of a face on a rotated image.
const MIN_ROTATED_CONFIDENCE: f32 = 0.99;

/// Minimum intersection over union of an enrolled image's box and the face that is found again. The detector's boxes differ by
/// some pixels between implementations.
const SAME_FACE_OVERLAP: f32 = 0.5;

/// The networks, loaded.
pub struct Pipeline {
    mtcnn: Mtcnn,
    embedder: Box<dyn Embedder>,
    device: DeviceKind,
    limits: DecodeLimits,
}

/// The clockwise rotation under which an image shows a face.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// 90 degrees.
    Right,
    /// 180 degrees.
    UpsideDown,
    /// 270 degrees.
    Left,
}

impl Rotation {
    const ALL: [Self; 3] = [Self::Right, Self::UpsideDown, Self::Left];

    /// Returns the angle in degrees, clockwise.
    pub fn degrees(self) -> u16 {
        match self {
            Self::Right => 90,
            Self::UpsideDown => 180,
            Self::Left => 270,
        }
    }

    fn apply(self, image: &RgbImage) -> RgbImage {
        match self {
            Self::Right => imageops::rotate90(image),
            Self::UpsideDown => imageops::rotate180(image),
            Self::Left => imageops::rotate270(image),
        }
    }
}

/// The faces of one image and the embedder's input for each, in the same order.
pub struct FoundFaces {
    /// The detected faces.
    pub faces: Vec<Face>,
    /// The embedder's inputs.
    pub crops: Vec<RgbImage>,
    /// How well each face can be recognised.
    pub qualities: Vec<FaceQuality>,
    /// Width and height of the image, upright.
    pub size: [u32; 2],
    /// Remarks on the image's file.
    pub notes: Vec<DecodeNote>,
    /// The rotation under which the image shows a face, where it shows none as it is and
    /// [`UploadedImage::must_show_face`] is set.
    pub turned: Option<Rotation>,
    /// How long the steps took.
    pub timings: Timings,
}

pub struct EmbeddedFace {
    /// Its box and quality.
    pub face: EnrolledFace,
    /// The L2-normalised embedding.
    pub embedding: Vec<f32>,
}

/// How long the steps from bytes to faces took.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// When decoding started.
    pub started: Instant,
    /// Duration of decoding.
    pub decoded: Duration,
    /// Detection and alignment.
    pub detected: Duration,
}

/// Why an image has no result.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The client's fault: the file cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The server's fault: a network failed.
    #[error(transparent)]
    Vision(#[from] VisionError),
}

impl Pipeline {
    /// Loads the face detector and the embedder; without `embedder`, the best one that is installed; without `compute`, the
    /// device's default.
    ///
    /// # Errors
    /// Weights are missing or damaged, there is no such device, or `compute` does not run on it.
    pub fn load(
        models_dir: &Path,
        embedder: Option<EmbedderKind>,
        compute: Option<Compute>,
        device: DeviceKind,
        min_face_size: f32,
        limits: DecodeLimits,
    ) -> Result<Self, ModelError> {
        let backend = Backend::open(compute, device)?;
        let config = MtcnnConfig { min_face_size, ..MtcnnConfig::default() };
        let mtcnn = Mtcnn::load_on(models_dir, config, &backend)?;
        // Where none is installed, the error asks for the one that is both small and accurate.
        let kind = embedder.or_else(|| installed_embedder(models_dir)).unwrap_or(EmbedderKind::MobileFaceNet);
        let embedder = load_embedder_on(kind, models_dir, &backend)?;
        Ok(Self { mtcnn, embedder, device, limits })
    }

    /// Returns whether the networks run on the CPU, so that its threads can share a batch.
    pub fn runs_on_cpu(&self) -> bool {
        self.device == DeviceKind::Cpu
    }

    /// Returns the number of workers that keep the device busy.
    pub fn workers(&self) -> usize {
        match self.device {
            DeviceKind::Cpu => rayon::current_num_threads(),
            // One decodes while the other runs the device; more would only make batches smaller.
            DeviceKind::Cuda(_) => 2,
        }
    }

    /// Returns the network that embeds faces.
    pub fn embedder(&self) -> &dyn Embedder {
        &*self.embedder
    }

    /// Finds the faces of an image and crops them for the embedder.
    ///
    /// # Errors
    /// The bytes are no image within the limits, or a network fails.
    pub fn find_faces(&self, image: &UploadedImage) -> Result<FoundFaces, ImageError> {
        let is_crop = image.is_crop;
        let started = Instant::now();
        let must_show_face = image.must_show_face;
        let Decoded { image, mut notes } = decode_with_notes(&image.bytes, &self.limits)?;
        let decoded = started.elapsed();
        let mut faces = self.mtcnn.detect_inside(&image, is_crop)?;
        if keep_largest(&mut faces, MAX_FACES) {
            notes.push(DecodeNote::TooManyFaces { max: MAX_FACES });
        }
        // Only the crops leave this function: a batch of whole images could fill the memory.
        let crops: Vec<RgbImage> = faces.iter().map(|face| self.embedder.crop(&image, face)).collect();
        let qualities =
            faces.iter().zip(&crops).map(|(face, crop)| FaceQuality::measure(face, crop)).collect();
        let size = [image.width(), image.height()];
        let turned = if faces.is_empty() && must_show_face { self.find_rotation(&image)? } else { None };
        let timings = Timings { started, decoded, detected: started.elapsed().saturating_sub(decoded) };
        Ok(FoundFaces { faces, crops, qualities, size, notes, turned, timings })
    }

    /// Finds the rotation under which an image shows a face; of several, the one with the most probable face.
    fn find_rotation(&self, image: &RgbImage) -> Result<Option<Rotation>, VisionError> {
        let mut best = None;
        for rotation in Rotation::ALL {
            let faces = self.mtcnn.detect(&rotation.apply(image))?;
            let highest = faces.iter().map(|face| face.confidence).max_by(f32::total_cmp);
            if let Some(confidence) = highest.filter(|&confidence| confidence >= MIN_ROTATED_CONFIDENCE)
                && best.is_none_or(|(best, _)| confidence > best)
            {
                best = Some((confidence, rotation));
            }
        }
        Ok(best.map(|(_, rotation)| rotation))
    }

    /// Embeds the face of an enrolled image: the one at `enrolled`, left, top, right and bottom in pixels of the upright image.
    /// Without it, of an image from before boxes were stored, the main face, or else the largest.
    ///
    /// `None` where there is no such face.
    ///
    /// # Errors
    /// The bytes are no image within the limits, or a network fails.
    pub fn embed_enrolled_face(
        &self,
        bytes: Bytes,
        enrolled: Option<[f32; 4]>,
    ) -> Result<Option<EmbeddedFace>, ImageError> {
        let FoundFaces { faces, mut crops, qualities, size, .. } = self.find_faces(&bytes.into())?;
        let position = match enrolled {
            Some(enrolled) => {
                face_at(faces.iter().map(|face| face.bounding_box), enrolled.into(), SAME_FACE_OVERLAP)
            }
            None => {
                let candidates: Vec<_> =
                    faces.iter().map(|face| (face.bounding_box, face.confidence)).collect();
                main_or_largest(&candidates, size)
            }
        };
        let Some(position) = position else { return Ok(None) };
        let (Some(face), Some(quality)) = (faces.get(position), qualities.get(position)) else {
            return Ok(None);
        };
        let embedding = self.embedder.embed(&[crops.swap_remove(position)])?.pop();
        let face = EnrolledFace { bounding_box: face.bounding_box.into(), quality: *quality };
        Ok(embedding.map(|embedding| EmbeddedFace { face, embedding }))
    }
}

/// Keeps the `max` largest faces, in their order. Returns whether there were more.
fn keep_largest(faces: &mut Vec<Face>, max: usize) -> bool {
    if faces.len() <= max {
        return false;
    }
    let mut ranked: Vec<(usize, Face)> = std::mem::take(faces).into_iter().enumerate().collect();
    ranked.sort_by(|(_, a), (_, b)| b.bounding_box.area().total_cmp(&a.bounding_box.area()));
    ranked.truncate(max);
    ranked.sort_by_key(|(position, _)| *position);
    faces.extend(ranked.into_iter().map(|(_, face)| face));
    true
}

#[cfg(test)]
mod tests {
    use facepipe_vision::BoundingBox;

    use super::*;

    #[test]
    fn of_many_faces_the_largest_are_kept_in_their_order() {
        let face = |side: f32| Face {
            bounding_box: BoundingBox { left: 0.0, top: 0.0, right: side, bottom: side },
            confidence: 1.0,
            landmarks: [[0.0; 2]; 5],
        };
        let mut faces: Vec<Face> = [40.0, 20.0, 90.0, 30.0, 60.0].map(face).into();
        assert!(!keep_largest(&mut faces, 5));
        assert_eq!(faces.len(), 5);
        assert!(keep_largest(&mut faces, 3));
        let sides: Vec<f32> = faces.iter().map(|face| face.bounding_box.right).collect();
        assert_eq!(sides, [40.0, 90.0, 60.0]);
    }
}
