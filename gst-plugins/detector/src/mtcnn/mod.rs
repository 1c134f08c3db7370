//! MTCNN (Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", 2016): three
//! small networks, each of which refines the candidates of the one before. The cascade and its constants follow
//! facenet-pytorch's `detect_face`, whose weights it runs.
//!
//! The reference works on the frame at full resolution. Here the frame is sampled once, at the resolution at which the smallest
//! face has 24 pixels, the input of the second network; all inputs are resampled from that.

mod graphs;
mod mipmap;
mod weights;

use std::{cmp::Ordering, fs, path::Path};

use ort::{
    session::{Session, SessionOutputs},
    value::TensorRef,
};

use crate::{
    BoundingBox, Detection, DetectorConfig, DetectorError, Frame, Sampler, engine::build_session,
    runtime::Runtime,
};
use mipmap::{Mipmap, float};

/// The files of the three networks, in order, which are in one folder.
pub(crate) const FILES: [&str; 3] = ["pnet.pt", "rnet.pt", "onet.pt"];

/// The receptive field of the first network, pixels.
const CELL: f32 = 12.0;
/// The stride of its outputs, pixels.
const STRIDE: f32 = 2.0;
/// The scale from one level of the pyramid to the next: half the area.
const FACTOR: f64 = 0.709;
/// Side of the smallest face in the sampled frame, pixels: the input of the second network.
const MIN_FACE_SAMPLED: f32 = 24.0;
/// Minimum scores after the first and the second network.
const THRESHOLDS: [f32; 2] = [0.6, 0.7];
/// Maximum numbers of proposals of one level, of proposals of all levels, and of candidates after the second network, by score:
/// frames of noise must not take seconds.
const MAX_CANDIDATES: [usize; 3] = [2_000, 600, 200];
/// Batch size of the second and third network.
const BATCH: usize = 32;
/// The default minimum face size is the frame's shorter side divided by the first of these, and at least the second in
/// pixels: 40 pixels at 1080p.
const MIN_FACE_DIVISOR: f32 = 27.0;
const MIN_FACE_PIXELS: f32 = 20.0;
/// The lower limit of the minimum face size: the first network's receptive field.
const MIN_FACE_LIMIT: f32 = CELL;

/// Returns whether a file is the first network of MTCNN, by its name.
pub(crate) fn is_first_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == FILES[0])
}

/// Reads the weights of `config.model` and of the files next to it, and builds the three networks as ONNX models.
///
/// # Errors
///
/// [`DetectorError::ModelMissing`], [`DetectorError::ModelUnreadable`], [`DetectorError::ModelCorrupt`], each with the file.
pub(crate) fn read_models(config: &DetectorConfig) -> Result<[Vec<u8>; 3], DetectorError> {
    let folder = config.model.parent().unwrap_or(Path::new(""));
    let read = |file: &str, build: fn(&weights::StateDict) -> Result<Vec<u8>, String>| {
        let path = folder.join(file);
        let bytes = fs::metadata(&path).and_then(|metadata| {
            let limit = if metadata.len() > MAX_BYTES { Some(metadata.len()) } else { None };
            limit.map_or_else(|| fs::read(&path).map(Ok), |bytes| Ok(Err(bytes)))
        });
        let bytes = match bytes {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(bytes)) => {
                let reason = format!("it has {bytes} bytes, at most {MAX_BYTES} are read");
                return Err(DetectorError::ModelCorrupt { path, reason });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(DetectorError::ModelMissing {
                    name: "mtcnn".to_owned(),
                    file: file.to_owned(),
                    searched: folder.display().to_string(),
                });
            }
            Err(source) => return Err(DetectorError::ModelUnreadable { path, source }),
        };
        let built = weights::read(&bytes).and_then(|weights| build(&weights));
        built.map_err(|reason| DetectorError::ModelCorrupt { path, reason })
    };
    let [first, second, third] = FILES;
    Ok([read(first, graphs::proposal)?, read(second, graphs::refine)?, read(third, graphs::output)?])
}

/// Limit to the size of a file, far above the largest (1.6 MB).
const MAX_BYTES: u64 = 64 << 20;

/// The three networks, with buffers for one frame.
#[derive(Debug)]
pub(crate) struct Cascade {
    proposal: Session,
    refine: CropNet,
    output: CropNet,
    mipmap: Mipmap,
    level: Vec<f32>,
}

/// The second or third network.
#[derive(Debug)]
struct CropNet {
    session: Session,
    /// Side of its input, pixels.
    side: usize,
    crops: Vec<f32>,
}

/// A square that may hold a face.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Square pixels of the frame; the networks count the last row and column in.
    square: BoundingBox<f32>,
    score: f32,
    /// Corrections of left, top, right and bottom, in widths and heights.
    regression: [f32; 4],
}

/// The parameters of a search.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SearchParams {
    /// Minimum face size, square pixels; 0 for the default for the frame.
    pub(crate) min_face_size: u32,
    /// Faces must score higher than this.
    pub(crate) score_threshold: f32,
}

impl Cascade {
    /// Builds the networks from the models of [`read_models`].
    ///
    /// # Errors
    ///
    /// [`DetectorError::RuntimeFailed`], [`DetectorError::ModelCorrupt`].
    pub(crate) fn build(
        runtime: &Runtime,
        config: &DetectorConfig,
        [proposal, refine, output]: &[Vec<u8>; 3],
    ) -> Result<Self, DetectorError> {
        let crop_net = |model: &[u8], side| {
            let session = build_session(runtime, config, model)?;
            Ok(CropNet { session, side, crops: Vec::new() })
        };
        Ok(Self {
            proposal: build_session(runtime, config, proposal)?,
            refine: crop_net(refine, 24)?,
            output: crop_net(output, 48)?,
            mipmap: Mipmap::default(),
            level: Vec::new(),
        })
    }

    /// Fills `found` with the faces of a frame, in its pixels, in no particular order. `sampler` belongs to the stream, and is
    /// replaced if it has another size than needed.
    ///
    /// # Errors
    ///
    /// [`DetectorError::Inference`] where ONNX Runtime fails.
    pub(crate) fn find(
        &mut self,
        frame: &Frame<'_>,
        sampler: &mut Sampler,
        search: SearchParams,
        found: &mut Vec<Detection>,
    ) -> Result<(), DetectorError> {
        found.clear();
        let geometry = FrameGeometry::of(frame, search.min_face_size);
        let (width, height) = geometry.sampled;
        if sampler.size() != geometry.sampled {
            *sampler = Sampler::new(width, height);
        }
        self.mipmap.build(width, height, |values| sampler.sample(frame, values));

        let mut proposals = Vec::new();
        for level in geometry.levels() {
            let mut cells = self.propose(&geometry, level)?;
            keep_best(&mut cells, MAX_CANDIDATES[0]);
            proposals.extend(suppress(cells, 0.5, Overlap::Union));
        }
        let mut proposals = suppress(proposals, 0.7, Overlap::Union);
        keep_best(&mut proposals, MAX_CANDIDATES[1]);
        let squares = proposals.iter().map(|c| squared(corrected(c, 0.0)));

        let refined = self.refine.examine(&mut self.mipmap, &geometry, squares, THRESHOLDS[1])?;
        let mut refined = suppress(refined, 0.7, Overlap::Union);
        keep_best(&mut refined, MAX_CANDIDATES[2]);
        let squares = refined.iter().map(|c| squared(corrected(c, 1.0)));

        let faces = self.output.examine(&mut self.mipmap, &geometry, squares, search.score_threshold)?;
        let faces = faces.iter().map(|c| Candidate { square: corrected(c, 1.0), ..*c }).collect();
        let faces = suppress(faces, 0.7, Overlap::Smaller);
        let [across, down] = geometry.stretch;
        found.extend(faces.iter().map(|face| {
            let BoundingBox { left, top, right, bottom } = face.square;
            let in_pixels = BoundingBox::new(left / across, top / down, right / across, bottom / down);
            Detection { bounding_box: in_pixels.map(f64::from), score: face.score.into() }
        }));
        found.retain(|face| !face.bounding_box.is_empty());
        Ok(())
    }

    /// Runs the first network over one level of the pyramid.
    fn propose(
        &mut self,
        geometry: &FrameGeometry,
        level: PyramidLevel,
    ) -> Result<Vec<Candidate>, DetectorError> {
        let PyramidLevel { scale, width, height } = level;
        self.level.resize(3 * width * height, 0.0);
        let [w, h] = geometry.frame;
        let whole = geometry.to_sampled(&BoundingBox::new(0.0, 0.0, w, h));
        self.mipmap.resample(whole, width, height, &mut self.level);
        let input =
            TensorRef::from_array_view(([1, 3, height, width], &*self.level)).map_err(|e| failed(&e))?;
        let outputs = self.proposal.run(ort::inputs![input]).map_err(|e| failed(&e))?;
        let (shape, scores) = values(&outputs, graphs::SCORES)?;
        let (_, boxes) = values(&outputs, graphs::BOXES)?;
        let columns = shape.last().and_then(|&columns| usize::try_from(columns).ok()).unwrap_or(0);
        let cells = scores.len() / 2;
        let mut found = Vec::new();
        for (cell, &score) in scores.iter().skip(cells).enumerate() {
            if score <= THRESHOLDS[0] || columns == 0 {
                continue;
            }
            let regression =
                [0, 1, 2, 3].map(|edge| boxes.get(edge * cells + cell).copied().unwrap_or_default());
            let (x, y) = (STRIDE * float(cell % columns), STRIDE * float(cell / columns));
            let at = |position: f32, offset: f32| ((position + offset) / scale).floor();
            let square = BoundingBox::new(at(x, 1.0), at(y, 1.0), at(x, CELL), at(y, CELL));
            found.push(Candidate { square, score, regression });
        }
        Ok(found)
    }
}

impl CropNet {
    /// Returns the squares that score more than `threshold`. Squares outside the frame are dropped.
    fn examine(
        &mut self,
        mipmap: &mut Mipmap,
        geometry: &FrameGeometry,
        squares: impl Iterator<Item = BoundingBox<f32>>,
        threshold: f32,
    ) -> Result<Vec<Candidate>, DetectorError> {
        let [width, height] = geometry.frame;
        let visible: Vec<_> =
            squares.filter_map(|square| Some((square, visible_part(&square, width, height)?))).collect();
        let (side, size) = (self.side, 3 * self.side * self.side);
        let mut found = Vec::new();
        for batch in visible.chunks(BATCH) {
            self.crops.resize(batch.len() * size, 0.0);
            for ((_, part), crop) in batch.iter().zip(self.crops.chunks_exact_mut(size)) {
                mipmap.resample(geometry.to_sampled(part), side, side, crop);
            }
            let shape = [batch.len(), 3, side, side];
            let input = TensorRef::from_array_view((shape, &*self.crops)).map_err(|e| failed(&e))?;
            let outputs = self.session.run(ort::inputs![input]).map_err(|e| failed(&e))?;
            let (_, scores) = values(&outputs, graphs::SCORES)?;
            let (_, boxes) = values(&outputs, graphs::BOXES)?;
            let outputs = scores.as_chunks().0.iter().zip(boxes.as_chunks().0);
            found.extend(batch.iter().zip(outputs).filter_map(
                |((square, _), (&[_, score], &regression))| {
                    (score > threshold).then_some(Candidate { square: *square, score, regression })
                },
            ));
        }
        Ok(found)
    }
}

fn failed(error: &ort::Error) -> DetectorError {
    DetectorError::Inference(error.to_string())
}

/// Returns shape and values of an output.
fn values<'a>(outputs: &'a SessionOutputs<'_>, name: &str) -> Result<(&'a [i64], &'a [f32]), DetectorError> {
    let output = outputs.get(name).ok_or_else(|| DetectorError::Inference(format!("no output {name}")))?;
    let (shape, values) = output.try_extract_tensor::<f32>().map_err(|e| failed(&e))?;
    Ok((shape, values))
}

/// The sizes of a frame, of its sampled version, and of the smallest face.
#[derive(Debug)]
struct FrameGeometry {
    /// Width and height in square pixels.
    frame: [f32; 2],
    /// Square pixels per pixel, across and down.
    stretch: [f32; 2],
    /// Width and height of the sampled frame.
    sampled: (usize, usize),
    smallest: f32,
}

/// One level of the pyramid: the whole frame in `width` x `height` pixels.
#[derive(Debug, Clone, Copy)]
struct PyramidLevel {
    /// Pixels of the level per square pixel of the frame.
    scale: f32,
    width: usize,
    height: usize,
}

impl FrameGeometry {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "sides are at most 32,768 pixels, stretched by a few"
    )]
    fn of(frame: &Frame<'_>, min_face_size: u32) -> Self {
        let stretch = frame.stretch().map(|by| by as f32);
        let [across, down] = stretch;
        let (width, height) = (float(frame.width()) * across, float(frame.height()) * down);
        let smallest = match min_face_size {
            0 => (width.min(height) / MIN_FACE_DIVISOR).max(MIN_FACE_PIXELS),
            asked => (asked as f32).max(MIN_FACE_LIMIT),
        };
        let shrink = (MIN_FACE_SAMPLED / smallest).min(1.0);
        let side = |pixels: f32| ((pixels * shrink).round() as usize).max(3);
        Self { frame: [width, height], stretch, sampled: (side(width), side(height)), smallest }
    }

    /// Returns the levels from the one in which the smallest face fills a cell to the one in which the frame does.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a level is never larger than the frame"
    )]
    fn levels(&self) -> Vec<PyramidLevel> {
        let [width, height] = self.frame.map(f64::from);
        let mut scale = f64::from(CELL) / f64::from(self.smallest);
        let mut levels = Vec::new();
        while width.min(height) * scale >= f64::from(CELL) {
            let [width, height] = [width, height].map(|pixels| (pixels * scale + 1.0) as usize);
            levels.push(PyramidLevel { scale: scale as f32, width, height });
            scale *= FACTOR;
        }
        levels
    }

    /// Converts square pixels of the frame to pixels of the sampled frame.
    fn to_sampled(&self, area: &BoundingBox<f32>) -> BoundingBox<f32> {
        let [width, height] = self.frame;
        let (across, down) = (float(self.sampled.0) / width, float(self.sampled.1) / height);
        BoundingBox::new(area.left * across, area.top * down, area.right * across, area.bottom * down)
    }
}

/// Returns the part of a square that lies in the frame, from the edge of its first pixel to that of its last. The networks'
/// boxes count pixels from 1 and include both ends.
fn visible_part(square: &BoundingBox<f32>, width: f32, height: f32) -> Option<BoundingBox<f32>> {
    let first = |edge: f32| edge.trunc().max(1.0) - 1.0;
    let (right, bottom) = (square.right.trunc().min(width), square.bottom.trunc().min(height));
    let part = BoundingBox::new(first(square.left), first(square.top), right, bottom);
    (!part.is_empty()).then_some(part)
}

/// Applies the network's corrections, whose unit is the difference of the coordinates plus `inclusive`.
fn corrected(candidate: &Candidate, inclusive: f32) -> BoundingBox<f32> {
    let BoundingBox { left, top, right, bottom } = candidate.square;
    let (width, height) = (right - left + inclusive, bottom - top + inclusive);
    let [l, t, r, b] = candidate.regression;
    BoundingBox::new(left + l * width, top + t * height, right + r * width, bottom + b * height)
}

/// Returns the square with the same middle whose side is the longer one.
fn squared(area: BoundingBox<f32>) -> BoundingBox<f32> {
    let BoundingBox { left, top, right, bottom } = area;
    let (width, height) = (right - left, bottom - top);
    let side = width.max(height);
    let (left, top) = (left + (width - side) / 2.0, top + (height - side) / 2.0);
    BoundingBox::new(left, top, left + side, top + side)
}

fn by_score(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score)
}

/// Keeps the `most` candidates with the highest scores.
fn keep_best(candidates: &mut Vec<Candidate>, most: usize) {
    if candidates.len() > most {
        candidates.sort_by(by_score);
        candidates.truncate(most);
    }
}

/// What the intersection of two boxes is divided by.
#[derive(Clone, Copy)]
enum Overlap {
    /// The area of their union.
    Union,
    /// The area of the smaller box.
    Smaller,
}

/// Keeps, of boxes that overlap by more than `threshold` (non-maximum suppression), the one with the highest score.
fn suppress(mut candidates: Vec<Candidate>, threshold: f32, overlap: Overlap) -> Vec<Candidate> {
    candidates.sort_by(by_score);
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if kept.iter().all(|better| overlap.of(&better.square, &candidate.square) <= f64::from(threshold)) {
            kept.push(candidate);
        }
    }
    kept
}

impl Overlap {
    /// Returns the overlap, with the last row and column included, as the networks' boxes count them.
    fn of(self, a: &BoundingBox<f32>, b: &BoundingBox<f32>) -> f64 {
        let inclusive = |area: &BoundingBox<f32>| BoundingBox {
            right: area.right + 1.0,
            bottom: area.bottom + 1.0,
            ..*area
        };
        let (a, b) = (inclusive(a), inclusive(b));
        match self {
            Self::Union => a.iou(&b),
            Self::Smaller => a.overlap_of_smaller(&b),
        }
    }
}
