//! Detects and embeds the face of each picture, and measures how long that takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use facepipe_vision::{Embedder, Mtcnn, largest_face, main_face};
use serde::Serialize;

use super::layout::Picture;
use crate::{
    latency::{Latencies, Percentiles},
    networks,
    pictures::PassedOver,
    progress,
};

/// The main face of a picture, or else the largest.
#[derive(Debug)]
pub struct EmbeddedFace {
    /// Number of faces that may be meant: 1 where there is a main face, else all of the picture.
    pub in_picture: usize,
    /// Unit-length embedding.
    pub embedding: Vec<f32>,
}

/// A picture's face, or why it has none.
pub type AnalysisResult = Result<EmbeddedFace, PassedOver>;

/// Durations, each picture on one processor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Time {
    /// Total time.
    pub seconds: f64,
    /// Pictures per second, on all processors.
    pub images_per_second: f64,
    /// Time to read, decode and detect per picture; none if no picture could be read.
    pub detection: Option<Percentiles>,
    /// Time to embed a face; none if there was none.
    pub embedding: Option<Percentiles>,
}

struct Analysis {
    result: AnalysisResult,
    detection: Option<Duration>,
    embedding: Option<Duration>,
}

/// Analyses all pictures; results are in their order. Returns none if interrupted.
///
/// # Errors
/// A network fails.
#[expect(clippy::cast_precision_loss, reason = "counts of pictures are far below 2^52")]
pub fn analyze(
    pictures: &[Picture],
    detector: &Mtcnn,
    embedder: &dyn Embedder,
) -> Result<Option<(Vec<AnalysisResult>, Time)>> {
    let bar = progress::bar(pictures.len(), "Analysing");
    let started = Instant::now();
    let analyses =
        networks::in_parallel(pictures, &bar, |picture| analyze_picture(picture, detector, embedder));
    let seconds = started.elapsed().as_secs_f64();
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
    let started = Instant::now();
    let image = match networks::read_image(&picture.file) {
        Ok(image) => image,
        Err(passed_over) => {
            return Ok(Analysis { result: Err(passed_over), detection: None, embedding: None });
        }
    };
    let faces = detector.detect_inside(&image, false)?;
    let detection = Some(started.elapsed());
    // As the backend does where one face is needed.
    let candidates: Vec<_> = faces.iter().map(|face| (face.bounding_box, face.confidence)).collect();
    let main = main_face(&candidates, [image.width(), image.height()]);
    let chosen = main.or_else(|| largest_face(faces.iter().map(|face| face.bounding_box)));
    let Some(chosen) = chosen.and_then(|position| faces.get(position)) else {
        let result = Err(PassedOver::new(&picture.file, "no face in it"));
        return Ok(Analysis { result, detection, embedding: None });
    };
    let started = Instant::now();
    let embedding = embedder.embed(&[embedder.crop(&image, chosen)])?.pop().unwrap_or_default();
    let took = Some(started.elapsed());
    Ok(Analysis {
        result: Ok(EmbeddedFace { in_picture: if main.is_some() { 1 } else { faces.len() }, embedding }),
        detection,
        embedding: took,
    })
}
