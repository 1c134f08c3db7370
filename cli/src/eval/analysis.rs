//! What the networks say of each picture, and how long they take.

use std::time::{Duration, Instant};

use anyhow::Result;
use facepipe_vision::{Embedder, Face as VisionFace, Mtcnn};
use serde::Serialize;

use super::layout::Picture;
use crate::{
    latency::{Latencies, Percentiles},
    networks,
    pictures::PassedOver,
    progress,
};

/// The largest face of a picture.
#[derive(Debug)]
pub struct EmbeddedFace {
    /// How many faces the picture shows.
    pub in_picture: usize,
    /// Of length 1.
    pub embedding: Vec<f32>,
}

/// A picture's face, or why it has none.
pub type AnalysisResult = Result<EmbeddedFace, PassedOver>;

/// How long pictures took, each on one processor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Time {
    /// For all, from the first to the last.
    pub seconds: f64,
    /// Pictures per second, on all processors.
    pub images_per_second: f64,
    /// To read, decode and find the faces of a picture; none where no picture could be read.
    pub detection: Option<Percentiles>,
    /// To embed a face; none where there was none.
    pub embedding: Option<Percentiles>,
}

struct Analysis {
    result: AnalysisResult,
    detection: Option<Duration>,
    embedding: Option<Duration>,
}

/// Puts all pictures through the networks; what is seen comes in their order. None where the program was asked to end.
///
/// # Errors
/// A network fails.
#[expect(clippy::cast_precision_loss, reason = "counts of pictures are far below 2^52")]
pub fn analyze(
    pictures: &[Picture],
    detector: &Mtcnn,
    embedder: &dyn Embedder,
) -> Result<Option<(Vec<AnalysisResult>, Time)>> {
    let bar = progress::bar(pictures.len(), "Looking");
    let begun = Instant::now();
    let analyses =
        networks::in_parallel(pictures, &bar, |picture| analyze_picture(picture, detector, embedder));
    let seconds = begun.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let Some(analyses) = analyses? else { return Ok(None) };
    let percentiles = |time: &dyn Fn(&Analysis) -> Option<Duration>| {
        let mut latencies = Latencies::new();
        analyses.iter().filter_map(time).for_each(|time| latencies.record(time));
        latencies.percentiles()
    };
    let time = Time {
        seconds,
        images_per_second: if seconds > 0.0 { pictures.len() as f64 / seconds } else { 0.0 },
        detection: percentiles(&|analysis| analysis.detection),
        embedding: percentiles(&|analysis| analysis.embedding),
    };
    Ok(Some((analyses.into_iter().map(|analysis| analysis.result).collect(), time)))
}

fn analyze_picture(picture: &Picture, detector: &Mtcnn, embedder: &dyn Embedder) -> Result<Analysis> {
    let begun = Instant::now();
    let image = match networks::read_image(&picture.file) {
        Ok(image) => image,
        Err(passed_over) => {
            return Ok(Analysis { result: Err(passed_over), detection: None, embedding: None });
        }
    };
    let faces = detector.detect_inside(&image, false)?;
    let detection = Some(begun.elapsed());
    let area = |face: &VisionFace| face.bounding_box.width() * face.bounding_box.height();
    // As the backend does where one face must do.
    let Some(largest) = faces.iter().max_by(|a, b| area(a).total_cmp(&area(b))) else {
        let result = Err(PassedOver::new(&picture.file, "no face in it"));
        return Ok(Analysis { result, detection, embedding: None });
    };
    let begun = Instant::now();
    let embedding = embedder.embed(&[embedder.crop(&image, largest)])?.pop().unwrap_or_default();
    let took = Some(begun.elapsed());
    Ok(Analysis {
        result: Ok(EmbeddedFace { in_picture: faces.len(), embedding }),
        detection,
        embedding: took,
    })
}
