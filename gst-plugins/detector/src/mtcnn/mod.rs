//! MTCNN (Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", 2016): three
//! small networks that each look closer at what the one before let through. The cascade and its constants follow
//! facenet-pytorch's `detect_face`, whose weights it runs.
//!
//! The reference looks at the frame in full resolution. Here the frame is sampled once, so coarsely that the smallest face
//! has 24 pixels, which is what the second network sees of it; whatever else is needed is cut out of that picture.

mod graphs;
mod picture;
mod weights;

use std::{cmp::Ordering, fs, path::Path};

use ort::{
    session::{Session, SessionOutputs},
    value::TensorRef,
};

use crate::{
    Detection, DetectorConfig, DetectorError, Frame, Sampler, engine::build_session, runtime::Runtime,
};
use picture::{Pictures, float};

/// The files of the three networks, in their order, which lie in one folder.
pub(crate) const FILES: [&str; 3] = ["pnet.pt", "rnet.pt", "onet.pt"];

/// The receptive field of the first network, pixels.
const CELL: f32 = 12.0;
/// Pixels from one of its outputs to the next.
const STRIDE: f32 = 2.0;
/// From one level of the pyramid to the next: half the area.
const FACTOR: f64 = 0.709;
/// Pixels that the smallest face has in the picture that is sampled of the frame: the side of what the second network sees.
const SAMPLED: f32 = 24.0;
/// The least scores that pass the first and the second network.
const THRESHOLDS: [f32; 2] = [0.6, 0.7];
/// Proposals of one level and of all levels that go on, and those that pass the second network, the likeliest first: frames
/// of noise must not take seconds.
const MOST: [usize; 3] = [2_000, 600, 200];
/// Crops that a network takes at once.
const BATCH: usize = 32;
/// The smallest face that is looked for unless the configuration says so, as a part of the frame's shorter side, and in
/// pixels at least: 40 pixels of 1080.
const SMALLEST_SHARE: f32 = 27.0;
const SMALLEST_PIXELS: f32 = 20.0;
/// Less cannot be asked for: the first network's receptive field.
const SMALLEST_ASKED: f32 = CELL;

/// Whether a file's name says that it is the first network of MTCNN.
pub(crate) fn is_first_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == FILES[0])
}

/// Reads the weights beside (and in) `config.model` into the three networks as ONNX models.
///
/// # Errors
///
/// [`DetectorError::ModelMissing`], [`DetectorError::ModelUnreadable`], [`DetectorError::ModelCorrupt`], each with the file.
pub(crate) fn read_models(config: &DetectorConfig) -> Result<[Vec<u8>; 3], DetectorError> {
    let folder = config.model.parent().unwrap_or(Path::new(""));
    let read = |file: &str, build: fn(&weights::StateDict) -> Result<Vec<u8>, String>| {
        let path = folder.join(file);
        let bytes = fs::metadata(&path).and_then(|facts| {
            let limit = if facts.len() > MOST_BYTES { Some(facts.len()) } else { None };
            limit.map_or_else(|| fs::read(&path).map(Ok), |bytes| Ok(Err(bytes)))
        });
        let bytes = match bytes {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(bytes)) => {
                let reason = format!("it has {bytes} bytes, at most {MOST_BYTES} are read");
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

/// Far above the largest of the files (1.6 MB).
const MOST_BYTES: u64 = 64 << 20;

/// The three networks, with what they need for one frame at a time.
#[derive(Debug)]
pub(crate) struct Cascade {
    proposal: Session,
    refine: CropNet,
    output: CropNet,
    pictures: Pictures,
    level: Vec<f32>,
}

/// The second or third network.
#[derive(Debug)]
struct CropNet {
    session: Session,
    /// Side of the crops that it takes, pixels.
    side: usize,
    crops: Vec<f32>,
}

/// A square that may hold a face: left, top, right and bottom, square pixels of the frame.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    edges: [f32; 4],
    score: f32,
    /// Corrections of the edges, in widths and heights.
    regression: [f32; 4],
}

/// What is looked for in a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search {
    /// The smallest face that is looked for, square pixels; 0 for what suits the frame.
    pub(crate) min_face_size: u32,
    /// Faces must score higher than this.
    pub(crate) score_threshold: f32,
}

impl Cascade {
    /// Builds the networks from what [`read_models`] made.
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
            pictures: Pictures::default(),
            level: Vec::new(),
        })
    }

    /// Fills `found` with the faces of a frame, in its pixels, in no order. `sampler` is the stream's own, and becomes one of
    /// the size that is needed.
    ///
    /// # Errors
    ///
    /// [`DetectorError::Inference`] where ONNX Runtime fails.
    pub(crate) fn find(
        &mut self,
        frame: &Frame<'_>,
        sampler: &mut Sampler,
        search: Search,
        found: &mut Vec<Detection>,
    ) -> Result<(), DetectorError> {
        found.clear();
        let view = View::of(frame, search.min_face_size);
        let (width, height) = view.sampled;
        if sampler.size() != view.sampled {
            *sampler = Sampler::new(width, height);
        }
        self.pictures.make(width, height, |values| sampler.sample(frame, values));

        let mut proposals = Vec::new();
        for level in view.levels() {
            let mut cells = self.propose(&view, level)?;
            likeliest(&mut cells, MOST[0]);
            proposals.extend(suppress(cells, 0.5, Overlap::Union));
        }
        let mut proposals = suppress(proposals, 0.7, Overlap::Union);
        likeliest(&mut proposals, MOST[1]);
        let squares = proposals.iter().map(|c| squared(corrected(c, 0.0)));

        let refined = self.refine.examine(&mut self.pictures, &view, squares, THRESHOLDS[1])?;
        let mut refined = suppress(refined, 0.7, Overlap::Union);
        likeliest(&mut refined, MOST[2]);
        let squares = refined.iter().map(|c| squared(corrected(c, 1.0)));

        let faces = self.output.examine(&mut self.pictures, &view, squares, search.score_threshold)?;
        let faces = faces.iter().map(|c| Candidate { edges: corrected(c, 1.0), ..*c }).collect();
        let faces = suppress(faces, 0.7, Overlap::Smaller);
        let [across, down] = view.stretch;
        found.extend(faces.iter().map(|&Candidate { edges: [left, top, right, bottom], score, .. }| {
            Detection {
                left: left / across,
                top: top / down,
                right: right / across,
                bottom: bottom / down,
                score,
            }
        }));
        found.retain(|face| face.left < face.right && face.top < face.bottom);
        Ok(())
    }

    /// Runs the first network over one level of the pyramid.
    fn propose(&mut self, view: &View, level: Level) -> Result<Vec<Candidate>, DetectorError> {
        let Level { scale, width, height } = level;
        self.level.resize(3 * width * height, 0.0);
        let [w, h] = view.frame;
        let whole = view.to_sampled([0.0, 0.0, w, h]);
        self.pictures.cut(whole, width, height, &mut self.level);
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
            let edges = [at(x, 1.0), at(y, 1.0), at(x, CELL), at(y, CELL)];
            found.push(Candidate { edges, score, regression });
        }
        Ok(found)
    }
}

impl CropNet {
    /// Those of the squares that score more than `threshold`. Squares that miss the frame are dropped.
    fn examine(
        &mut self,
        pictures: &mut Pictures,
        view: &View,
        squares: impl Iterator<Item = [f32; 4]>,
        threshold: f32,
    ) -> Result<Vec<Candidate>, DetectorError> {
        let [width, height] = view.frame;
        let visible: Vec<_> =
            squares.filter_map(|edges| Some((edges, inside(edges, width, height)?))).collect();
        let (side, size) = (self.side, 3 * self.side * self.side);
        let mut found = Vec::new();
        for batch in visible.chunks(BATCH) {
            self.crops.resize(batch.len() * size, 0.0);
            for ((_, seen), crop) in batch.iter().zip(self.crops.chunks_exact_mut(size)) {
                pictures.cut(view.to_sampled(*seen), side, side, crop);
            }
            let shape = [batch.len(), 3, side, side];
            let input = TensorRef::from_array_view((shape, &*self.crops)).map_err(|e| failed(&e))?;
            let outputs = self.session.run(ort::inputs![input]).map_err(|e| failed(&e))?;
            let (_, scores) = values(&outputs, graphs::SCORES)?;
            let (_, boxes) = values(&outputs, graphs::BOXES)?;
            let outputs = scores.as_chunks().0.iter().zip(boxes.as_chunks().0);
            found.extend(batch.iter().zip(outputs).filter_map(|((edges, _), (&[_, score], &regression))| {
                (score > threshold).then_some(Candidate { edges: *edges, score, regression })
            }));
        }
        Ok(found)
    }
}

fn failed(error: &ort::Error) -> DetectorError {
    DetectorError::Inference(error.to_string())
}

/// An output's shape and values.
fn values<'a>(outputs: &'a SessionOutputs<'_>, name: &str) -> Result<(&'a [i64], &'a [f32]), DetectorError> {
    let output = outputs.get(name).ok_or_else(|| DetectorError::Inference(format!("no output {name}")))?;
    let (shape, values) = output.try_extract_tensor::<f32>().map_err(|e| failed(&e))?;
    Ok((shape, values))
}

/// How a frame is looked at.
#[derive(Debug)]
struct View {
    /// Width and height in square pixels.
    frame: [f32; 2],
    /// Square pixels per pixel, across and down.
    stretch: [f32; 2],
    /// Width and height of the picture that is sampled of the frame.
    sampled: (usize, usize),
    smallest: f32,
}

/// One level of the pyramid: the whole frame in `width` x `height` pixels.
#[derive(Debug, Clone, Copy)]
struct Level {
    /// Pixels of the level per square pixel of the frame.
    scale: f32,
    width: usize,
    height: usize,
}

impl View {
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
            0 => (width.min(height) / SMALLEST_SHARE).max(SMALLEST_PIXELS),
            asked => (asked as f32).max(SMALLEST_ASKED),
        };
        let shrink = (SAMPLED / smallest).min(1.0);
        let side = |pixels: f32| ((pixels * shrink).round() as usize).max(3);
        Self { frame: [width, height], stretch, sampled: (side(width), side(height)), smallest }
    }

    /// From the one in which the smallest face fills a cell to the one in which the frame does.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a level is never larger than the frame"
    )]
    fn levels(&self) -> Vec<Level> {
        let [width, height] = self.frame.map(f64::from);
        let mut scale = f64::from(CELL) / f64::from(self.smallest);
        let mut levels = Vec::new();
        while width.min(height) * scale >= f64::from(CELL) {
            let [width, height] = [width, height].map(|pixels| (pixels * scale + 1.0) as usize);
            levels.push(Level { scale: scale as f32, width, height });
            scale *= FACTOR;
        }
        levels
    }

    /// From square pixels of the frame to those of the sampled picture.
    fn to_sampled(&self, [left, top, right, bottom]: [f32; 4]) -> [f32; 4] {
        let [width, height] = self.frame;
        let (across, down) = (float(self.sampled.0) / width, float(self.sampled.1) / height);
        [left * across, top * down, right * across, bottom * down]
    }
}

/// The part of a square that lies in the frame, from the edge of its first pixel to that of its last. The networks' boxes
/// count pixels from 1 and include both ends.
fn inside([left, top, right, bottom]: [f32; 4], width: f32, height: f32) -> Option<[f32; 4]> {
    let first = |edge: f32| edge.trunc().max(1.0) - 1.0;
    let seen = [first(left), first(top), right.trunc().min(width), bottom.trunc().min(height)];
    let [left, top, right, bottom] = seen;
    (left < right && top < bottom).then_some(seen)
}

/// The edges after the network's corrections, which count `inclusive` more than the difference of the coordinates as width
/// and height.
fn corrected(candidate: &Candidate, inclusive: f32) -> [f32; 4] {
    let [left, top, right, bottom] = candidate.edges;
    let (width, height) = (right - left + inclusive, bottom - top + inclusive);
    let [l, t, r, b] = candidate.regression;
    [left + l * width, top + t * height, right + r * width, bottom + b * height]
}

/// The square with the same middle whose side is the longer one.
fn squared([left, top, right, bottom]: [f32; 4]) -> [f32; 4] {
    let (width, height) = (right - left, bottom - top);
    let side = width.max(height);
    let (left, top) = (left + (width - side) / 2.0, top + (height - side) / 2.0);
    [left, top, left + side, top + side]
}

fn by_score(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score)
}

/// Keeps `most` of them, those with the highest scores.
fn likeliest(candidates: &mut Vec<Candidate>, most: usize) {
    if candidates.len() > most {
        candidates.sort_by(by_score);
        candidates.truncate(most);
    }
}

/// What the part that two boxes share is compared with.
#[derive(Clone, Copy)]
enum Overlap {
    /// What either of them covers.
    Union,
    /// The smaller of them.
    Smaller,
}

/// Of boxes that overlap by more than `threshold`, the one with the highest score.
fn suppress(mut candidates: Vec<Candidate>, threshold: f32, overlap: Overlap) -> Vec<Candidate> {
    candidates.sort_by(by_score);
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if kept.iter().all(|better| overlap.of(&better.edges, &candidate.edges) <= threshold) {
            kept.push(candidate);
        }
    }
    kept
}

impl Overlap {
    /// With both ends included, as the networks' boxes are.
    fn of(self, a: &[f32; 4], b: &[f32; 4]) -> f32 {
        let area = |&[left, top, right, bottom]: &[f32; 4]| {
            (right - left + 1.0).max(0.0) * (bottom - top + 1.0).max(0.0)
        };
        let shared = area(&[a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
        let whole = match self {
            Self::Union => area(a) + area(b) - shared,
            Self::Smaller => area(a).min(area(b)),
        };
        shared / whole.max(f32::MIN_POSITIVE)
    }
}
