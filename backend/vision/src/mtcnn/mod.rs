//! MTCNN (Zhang et al. 2016): detects faces and five landmarks by a cascade of three small networks. Follows
//! facenet-pytorch's `detect_face`.

mod cut_faces;
pub(crate) mod networks;

use std::{ops::Range, path::Path};

use image::RgbImage;

use crate::{
    Backend, BoundingBox, Face, ModelError, VisionError,
    geometry::{Overlap, suppress},
    native::{Size, Workspaces, parallel},
    resample::{PixelRect, area_average},
    weights::Weights,
};
use networks::{Cell, CropNet, OutputNet, ProposalNet, RefineNet, Refined};

/// MTCNN's parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MtcnnConfig {
    /// The smallest face to detect, side in pixels, 8 to 4096. 20 by default; run time grows with the inverse square.
    pub min_face_size: f32,
    /// The minimum probability to pass each of the three networks, 0 to 1. 0.6, 0.7, 0.7 by default.
    pub thresholds: [f32; 3],
    /// Scale factor between levels of the image pyramid, 0.1 to 0.95. 0.709 by default: half the area.
    pub factor: f32,
}

impl Default for MtcnnConfig {
    fn default() -> Self {
        Self { min_face_size: 20.0, thresholds: [0.6, 0.7, 0.7], factor: 0.709 }
    }
}

impl MtcnnConfig {
    fn check(&self) -> Result<(), ModelError> {
        let range = |field, value: f32, range: std::ops::RangeInclusive<f32>, limit| {
            if range.contains(&value) { Ok(()) } else { Err(ModelError::Setting { field, value, limit }) }
        };
        range("min_face_size", self.min_face_size, 8.0..=4096.0, "8 to 4096 pixels")?;
        range("factor", self.factor, 0.1..=0.95, "0.1 to 0.95")?;
        self.thresholds.iter().try_for_each(|&t| range("thresholds", t, 0.0..=1.0, "0 to 1"))
    }
}

/// The receptive field of the first network, pixels.
const CELL: usize = 12;
/// Pixels of the image pyramid from one of its outputs to the next.
const STRIDE: usize = 2;
/// Pyramid pixels that the first network takes at once. Pictures are cut into strips of about that size, so that
/// memory does not grow with the picture and strips can go to several threads.
const STRIP_PIXELS: usize = 64 * 1024;
/// Crops per batch of the second and third network.
const BATCH: usize = 32;
/// Maximum number of proposals kept per pyramid level, the most probable first. Crowds have some thousands; the limit keeps
/// the cost of suppression bounded for hostile pictures.
const MAX_PROPOSALS: usize = 10_000;

/// The smallest face that [`Mtcnn::detect_in_crop`] detects, as a share of the crop's shorter side. At 0.2, a more confident,
/// smaller face would be missed in one of five hundred crops of the test pictures.
const MIN_SHARE_OF_CROP: f64 = 0.15;

/// The detector. Detects in one image at a time, from any number of threads.
#[derive(Debug)]
pub struct Mtcnn {
    config: MtcnnConfig,
    proposal: ProposalNet,
    refine: RefineNet,
    output: OutputNet,
    workspaces: Workspaces,
}

/// A square that may hold a face.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    bounding_box: BoundingBox,
    score: f32,
    /// Corrections of left, top, right and bottom, in widths and heights.
    regression: [f32; 4],
}

impl Candidate {
    fn box_and_score(&self) -> (BoundingBox, f32) {
        (self.bounding_box, self.score)
    }

    /// Returns the box after the network's corrections, which count `edge` more than the difference of the coordinates as
    /// its width and height.
    fn corrected(&self, edge: f32) -> BoundingBox {
        let b = self.bounding_box;
        let (width, height) = (b.width() + edge, b.height() + edge);
        let [left, top, right, bottom] = self.regression;
        BoundingBox {
            left: b.left + left * width,
            top: b.top + top * height,
            right: b.right + right * width,
            bottom: b.bottom + bottom * height,
        }
    }
}

/// One level of the image pyramid.
#[derive(Debug, Clone, Copy)]
struct PyramidLevel {
    scale: f64,
    width: usize,
    height: usize,
}

impl Mtcnn {
    /// The published files of its three networks' weights, facenet-pytorch's.
    pub const PUBLISHED_FILES: [&str; 3] = ["pnet.pt", "rnet.pt", "onet.pt"];

    /// Reads the safetensors that `pnet.pt`, `rnet.pt` and `onet.pt` of facenet-pytorch were converted to from `models_dir`, to run
    /// by the native kernels.
    ///
    /// # Errors
    ///
    /// [`ModelError`], of the configuration or of the files.
    pub fn load(models_dir: &Path, config: MtcnnConfig) -> Result<Self, ModelError> {
        Self::load_on(models_dir, config, &Backend::Cpu)
    }

    /// Loads as [`Self::load`] does, for a backend.
    ///
    /// # Errors
    ///
    /// As [`Self::load`]; [`ModelError::Layout`] where the weights cannot be moved to the device.
    pub fn load_on(models_dir: &Path, config: MtcnnConfig, backend: &Backend) -> Result<Self, ModelError> {
        config.check()?;
        let [pnet, rnet, onet] = Self::PUBLISHED_FILES;
        let weights = |published| Weights::installed(models_dir, published);
        Ok(Self {
            config,
            proposal: ProposalNet::new(&weights(pnet)?, backend)?,
            refine: RefineNet::new(&weights(rnet)?, backend)?,
            output: OutputNet::new(&weights(onet)?, backend)?,
            workspaces: Workspaces::default(),
        })
    }

    /// Detects the faces of `image`, the most confident first.
    ///
    /// # Errors
    ///
    /// [`VisionError::Compute`].
    pub fn detect(&self, image: &RgbImage) -> Result<Vec<Face>, VisionError> {
        self.detect_at_levels(image, self.pyramid(image))
    }

    /// Detects as [`Self::detect`] does, in a crop around a face, as `facecrop` makes them: only faces whose side is at least
    /// about 0.15 of the crop's shorter side. The most confident face is the same as [`Self::detect`]'s; large crops take much
    /// less time.
    ///
    /// # Errors
    ///
    /// [`VisionError::Compute`].
    pub fn detect_in_crop(&self, image: &RgbImage) -> Result<Vec<Face>, VisionError> {
        let least = f64::from(image.width().min(image.height())) * MIN_SHARE_OF_CROP;
        self.detect_at_levels(image, levels_for_faces_from(self.pyramid(image), least))
    }

    fn detect_at_levels(
        &self,
        image: &RgbImage,
        levels: Vec<PyramidLevel>,
    ) -> Result<Vec<Face>, VisionError> {
        let [_, refine_threshold, output_threshold] = self.config.thresholds;
        let proposals = self.propose(image, &levels)?;

        let refined = self.run_on_crops(image, proposals, &self.refine)?;
        let refined = refined
            .into_iter()
            .filter_map(|(candidate, net)| candidate_above(candidate, &net, refine_threshold));
        let refined = suppress(refined.collect(), 0.7, Overlap::Union, Candidate::box_and_score);
        let squares = refined.iter().map(|c| c.corrected(1.0).squared()).collect();

        let outputs = self.run_on_crops(image, squares, &self.output)?;
        let faces = outputs.into_iter().filter_map(|(square, (net, points))| {
            let candidate = candidate_above(square, &net, output_threshold)?;
            let (width, height) = (square.width() + 1.0, square.height() + 1.0);
            let landmarks =
                points.map(|[x, y]| [width * x + square.left - 1.0, height * y + square.top - 1.0]);
            Some(Face { bounding_box: candidate.corrected(1.0), confidence: candidate.score, landmarks })
        });
        Ok(suppress(faces.collect(), 0.7, Overlap::SmallerInclusive, |f| (f.bounding_box, f.confidence)))
    }

    /// Returns the levels from the one where the smallest face fills a cell to the one where the whole image does.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a pyramid level is never larger than 1.5 times the image"
    )]
    fn pyramid(&self, image: &RgbImage) -> Vec<PyramidLevel> {
        let (width, height) = (f64::from(image.width()), f64::from(image.height()));
        let factor = shortest_f64(self.config.factor);
        let mut scale = CELL as f64 / f64::from(self.config.min_face_size);
        let mut shorter = width.min(height) * scale;
        let mut levels = Vec::new();
        while shorter >= CELL as f64 {
            let (width, height) = ((width * scale + 1.0) as usize, (height * scale + 1.0) as usize);
            levels.push(PyramidLevel { scale, width, height });
            scale *= factor;
            shorter *= factor;
        }
        levels
    }

    /// Runs the first stage: squares from levels of the pyramid.
    fn propose(&self, image: &RgbImage, levels: &[PyramidLevel]) -> Result<Vec<BoundingBox>, VisionError> {
        let strips = |level: PyramidLevel| {
            let outputs = ProposalNet::outputs(level.height);
            let rows = (STRIP_PIXELS / level.width).max(4 * CELL) / STRIDE;
            (0..outputs).step_by(rows).map(move |row| (level, row..(row + rows).min(outputs)))
        };
        let strips = levels.iter().flat_map(|&level| strips(level)).collect::<Vec<_>>();
        let cells = parallel::parallel_map(strips, |(level, rows)| {
            Ok::<_, VisionError>((level.scale, self.propose_in_strip(image, level, rows)?))
        })?;

        let mut proposals = Vec::new();
        for strips in cells.chunk_by(|(a, _), (b, _)| a == b) {
            let mut level = strips.iter().flat_map(|(_, found)| found).copied().collect::<Vec<Candidate>>();
            if level.len() > MAX_PROPOSALS {
                level.sort_by(|a, b| b.score.total_cmp(&a.score));
                level.truncate(MAX_PROPOSALS);
            }
            proposals.extend(suppress(level, 0.5, Overlap::Union, Candidate::box_and_score));
        }
        let proposals = suppress(proposals, 0.7, Overlap::Union, Candidate::box_and_score);
        Ok(proposals.iter().map(|c| c.corrected(0.0).squared()).collect())
    }

    /// Runs P-Net on the part of a level that the output rows `rows` need.
    fn propose_in_strip(
        &self,
        image: &RgbImage,
        level: PyramidLevel,
        rows: Range<usize>,
    ) -> Result<Vec<Candidate>, VisionError> {
        let input_rows = rows.start * STRIDE..((rows.end - 1) * STRIDE + CELL).min(level.height);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "PyTorch takes the scale as single precision as well"
        )]
        let scale = level.scale as f32;
        self.workspaces.with(|workspace| {
            let size = Size { n: 1, h: input_rows.len(), w: level.width };
            let mut pixels = workspace.map(size, 3);
            area_average(
                image,
                PixelRect::all(image),
                (level.width, level.height),
                input_rows,
                pixels.values_mut(),
            );
            let mut found = Vec::new();
            self.proposal.run(workspace, pixels, self.config.thresholds[0], |cell| {
                found.push(candidate(&cell, rows.start, scale));
            })?;
            Ok(found)
        })
    }

    /// Runs one of the later networks on the crop of each square; squares outside of the image are dropped.
    fn run_on_crops<N: CropNet>(
        &self,
        image: &RgbImage,
        squares: Vec<BoundingBox>,
        network: &N,
    ) -> Result<Vec<(BoundingBox, N::Output)>, VisionError> {
        let visible = |square: BoundingBox| Some((square, clipped_pixels(image, &square)?));
        let visible = squares.into_iter().filter_map(visible).collect::<Vec<_>>();
        let batches: Result<Vec<Vec<_>>, VisionError> =
            parallel::parallel_map(visible.chunks(BATCH).collect(), |batch| {
                self.workspaces.with(|workspace| {
                    let [h, w, channels] = N::FEATURES;
                    let size = h * w * channels;
                    // With room for the pixel of zeros of the flattened map, so that flattening copies nothing.
                    let mut features = workspace.map(Size { n: batch.len(), h: 1, w: 1 }, size);
                    for (features, few) in
                        features.values_mut().chunks_mut(N::AT_ONCE * size).zip(batch.chunks(N::AT_ONCE))
                    {
                        let mut crops = workspace.map(Size { n: few.len(), h: N::SIDE, w: N::SIDE }, 3);
                        let pixels = crops.values_mut().chunks_exact_mut(N::SIDE * N::SIDE * 3);
                        for (crop, (_, rect)) in pixels.zip(few) {
                            area_average(image, *rect, (N::SIDE, N::SIDE), 0..N::SIDE, crop);
                        }
                        let maps = network.extract_features(workspace, crops)?;
                        features.copy_from_slice(maps.values());
                        workspace.recycle(maps);
                    }
                    let features = workspace.reshape(features, Size { n: batch.len(), h, w }, channels)?;
                    let squares = batch.iter().map(|(square, _)| *square);
                    Ok(squares.zip(network.classify(workspace, features)?).collect::<Vec<_>>())
                })
            });
        Ok(batches?.into_iter().flatten().collect())
    }
}

/// Drops the levels whose cells are less than `least` pixels of the picture wide.
fn levels_for_faces_from(mut levels: Vec<PyramidLevel>, least: f64) -> Vec<PyramidLevel> {
    levels.retain(|level| CELL as f64 / level.scale >= least);
    levels
}

fn candidate_above(bounding_box: BoundingBox, net: &Refined, threshold: f32) -> Option<Candidate> {
    (net.score > threshold).then_some(Candidate {
        bounding_box,
        score: net.score,
        regression: net.regression,
    })
}

/// Returns the square of the image that an output cell of P-Net covers.
#[expect(clippy::cast_precision_loss, reason = "single precision is what the reference computes in")]
fn candidate(cell: &Cell, first_row: usize, scale: f32) -> Candidate {
    let (x, y) = (cell.column * STRIDE, (cell.row + first_row) * STRIDE);
    let at = |position: usize, offset: usize| ((position + offset) as f32 / scale).floor();
    let bounding_box = BoundingBox { left: at(x, 1), top: at(y, 1), right: at(x, CELL), bottom: at(y, CELL) };
    Candidate { bounding_box, score: cell.score, regression: cell.regression }
}

/// Returns the pixels of `square` inside the image. MTCNN's boxes count pixels from 1 and include both ends.
fn clipped_pixels(image: &RgbImage, square: &BoundingBox) -> Option<PixelRect> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "casts from float saturate, and fractions are to be cut off"
    )]
    let whole = |v: f32| i64::from(v as i32);
    let first = |v: f32| u32::try_from(whole(v).max(1) - 1).ok();
    let last = |v: f32, size: u32| u32::try_from(whole(v).min(size.into())).ok();
    let rect = PixelRect {
        left: first(square.left)?,
        top: first(square.top)?,
        right: last(square.right, image.width())?,
        bottom: last(square.bottom, image.height())?,
    };
    (rect.width() > 0 && rect.height() > 0).then_some(rect)
}

/// Converts by the shortest decimal: 0.709, not 0.708999991. The number of pyramid levels may depend on it.
fn shortest_f64(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| value.into())
}
