//! `facepipe bench crowd`: renders a crowd video with ground truth, from any photographs and at any density.

mod backdrop;
pub mod cast;
mod encode;
mod paint;
mod plan;
mod truth;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use self::{cast::Cast, encode::Encoder, paint::Painter, plan::FPS, truth::GroundTruthWriter};
pub use self::{plan::walkers_needed, truth::Counts};
use crate::{
    exit::{self, Failure, Outcome},
    files, interrupt,
    networks::Weights,
    output,
    pictures::PassedOver,
    progress,
    seeded_rng::SeededRng,
};

/// Named densities, from the thesis, faces per minute.
const NAMED_DENSITIES: [(&str, f64); 3] = [("medium", 305.0), ("high", 865.0), ("very-high", 1479.0)];

/// Maximum density, faces per minute; more do not fit into a frame.
const MAX_DENSITY: f64 = 20_000.0;

/// Streams of the seeded generator.
const CAST_STREAM: u64 = 0;
const WALKS_STREAM: u64 = 1;
const BACKDROP_STREAM: u64 = 2;

/// Renders a video of people walking by, with a ground truth file beside it.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe bench crowd staff/ crowd.mp4 --density medium --seconds 30
  facepipe bench crowd lfw/ dense.mp4 --density 2000 --seed 7 --size 1280x720
  facepipe bench bandwidth crowd.mp4 --faces staff/

FACES_DIR has one folder of photographs per person. People walk towards the
camera and switch to their next photograph every 1.5 s; the face nearest to the
centre of the photograph is used. The video has 6 frames per second. OUT.json
lists the walkers of each frame. An existing video is replaced only when the new
one is complete. The same seed and photographs give the same frames.

{}", exit::HELP))]
#[group(id = "crowd")]
pub struct Options {
    /// Folder with one folder of photographs per person
    #[arg(value_name = "FACES_DIR")]
    faces: PathBuf,
    /// Output video; must end in .mp4
    #[arg(value_name = "OUT.mp4")]
    out: PathBuf,
    /// Faces per minute, counted per frame: a number up to 20000, or medium (305), high (865), very-high (1479)
    #[arg(long, default_value = "medium", value_name = "FACES")]
    density: Density,
    /// Length of the video, seconds
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Random seed: selects people, paths and backdrop
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Width and height, 128x96 to 7680x4320 pixels: the width a multiple of 4, the height of 2
    #[arg(long, default_value = "1920x1080", value_name = "WxH")]
    size: Size,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: Weights,
}

/// Faces per minute.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Density(f64);

impl FromStr for Density {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, density)) = NAMED_DENSITIES.iter().find(|(name, _)| *name == text) {
            return Ok(Self(*density));
        }
        match text.parse() {
            Ok(density) if density > 0.0 && density <= MAX_DENSITY => Ok(Self(density)),
            _ => Err(format!("expected medium, high, very-high or a number above 0 and up to {MAX_DENSITY}")),
        }
    }
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size([u32; 2]);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed =
            text.split_once('x').and_then(|(w, h)| Some((w.parse::<u32>().ok()?, h.parse::<u32>().ok()?)));
        match parsed {
            // GStreamer pads RGB rows to 4 bytes; 4:2:0 chroma needs an even height.
            Some((w, h)) if (128..=7680).contains(&w) && w % 4 == 0 && (96..=4320).contains(&h) && h % 2 == 0 => {
                Ok(Self([w, h]))
            }
            _ => Err("expected WIDTHxHEIGHT, the width a multiple of 4 from 128 to 7680, the height a multiple of 2 \
                      from 96 to 4320"
                .into()),
        }
    }
}

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    video: String,
    truth: String,
    size: [u32; 2],
    fps: u32,
    seconds: u32,
    /// Size of the video file.
    bytes: u64,
    faces: u64,
    faces_per_minute: f64,
    /// The requested density.
    density: f64,
    walkers: usize,
    people: usize,
    passed_over: Vec<PassedOver>,
}

/// Runs the command.
///
/// # Errors
/// The photographs cannot be read or show no face, or the video cannot be written.
pub fn run(options: &Options) -> Result<Outcome> {
    let truth = truth_beside(&options.out)?;
    let Size(size) = options.size;
    let Density(density) = options.density;
    let frames = options.seconds * FPS;
    let needed = plan::walkers_needed(density, frames);
    let detector = options.weights.detector()?;
    let cast = cast::choose_from_folder(
        &options.faces,
        &detector,
        needed,
        &mut SeededRng::new(options.seed, CAST_STREAM),
    )?;
    let Some(cast) = cast else { return Ok(Outcome::Interrupted) };
    drop(detector);

    let crowd =
        Crowd { cast: &cast, always_visible: 0..0, density, frames, fast: false, seed: options.seed, size };
    let Some(counts) = crowd.render(&options.out)? else { return Ok(Outcome::Interrupted) };
    let report = Report {
        video: options.out.display().to_string(),
        truth: truth.display().to_string(),
        size,
        fps: FPS,
        seconds: options.seconds,
        bytes: fs::metadata(&options.out)
            .map_err(|error| Failure::output(options.out.display(), error))?
            .len(),
        faces: counts.faces,
        faces_per_minute: faces_per_minute(counts),
        density,
        walkers: counts.walkers,
        people: cast.people.len(),
        passed_over: cast.passed_over,
    };
    let outcome = if report.passed_over.is_empty() { Outcome::Done } else { Outcome::Partial };
    if options.json {
        output::json(&report)?;
    } else {
        report.print();
    }
    Ok(outcome)
}

/// Everything needed to render a crowd video.
#[derive(Debug)]
pub struct Crowd<'a> {
    /// The people who walk by.
    pub cast: &'a Cast,
    /// Indices into the cast of those who get the longest walks.
    pub always_visible: Range<usize>,
    /// Faces per minute, counted per frame.
    pub density: f64,
    /// Number of frames, at [`FPS`] frames per second.
    pub frames: u32,
    /// Whether to encode fast rather than small.
    pub fast: bool,
    /// Random seed of paths and backdrop.
    pub seed: u64,
    /// Width and height, as [`Size`] allows them.
    pub size: [u32; 2],
}

impl Crowd<'_> {
    /// Returns the number of frames of a video of this length.
    pub const fn frames_of(seconds: u32) -> u32 {
        seconds * FPS
    }

    /// Renders into a temporary folder beside the video and renames video and ground truth when both are complete.
    /// Returns none if interrupted.
    ///
    /// # Errors
    /// The files cannot be written, a photograph can no longer be read, or the encoder fails.
    pub fn render(&self, out: &Path) -> Result<Option<Counts>> {
        let Self { cast, density, frames, fast, seed, size, .. } = *self;
        let truth_path = &truth_beside(out)?;
        let backdrop = backdrop::paint(size, &mut SeededRng::new(seed, BACKDROP_STREAM));
        let mut walkers =
            plan::walkers(density, frames, size, cast.people.len(), &mut SeededRng::new(seed, WALKS_STREAM));
        plan::give_longest_walks(&mut walkers, self.always_visible.clone(), frames);
        let name = |walker: u64| {
            let walker = usize::try_from(walker).ok().and_then(|walker| walkers.get(walker));
            let person = walker.and_then(|walker| cast.people.get(walker.person));
            person.and_then(|person| person.name.as_deref())
        };

        let unfinished = tempfile::Builder::new()
            .prefix(".facepipe-crowd-")
            .tempdir_in(files::folder_of(out))
            .map_err(|error| Failure::output(out.display(), error))?;
        let unfinished_video = unfinished.path().join("video.mp4");
        let unfinished_truth = unfinished.path().join("truth.json");
        let truth_failed = |error| Failure::output(truth_path.display(), error);

        let mut truth = GroundTruthWriter::create(&unfinished_truth, size).map_err(truth_failed)?;
        let mut painter = Painter::new(backdrop, cast, &walkers);
        let mut encoder = Encoder::start(&unfinished_video, unfinished.path(), out, size, fast)?;
        let bar = progress::bar(frames.try_into().unwrap_or_default(), "Rendering");
        for _ in 0..frames {
            if interrupt::requested() {
                bar.finish_and_clear();
                return Ok(None);
            }
            let (frame, faces) = painter.next_frame()?;
            encoder.add(frame)?;
            truth.add(&faces, name).map_err(truth_failed)?;
            bar.inc(1);
        }
        encoder.finish()?;
        bar.finish_and_clear();
        let counts = truth.finish().map_err(truth_failed)?;
        fs::rename(&unfinished_truth, truth_path).map_err(truth_failed)?;
        fs::rename(&unfinished_video, out).map_err(|error| Failure::output(out.display(), error))?;
        Ok(Some(counts))
    }
}

/// Returns the path of the ground truth file.
fn truth_beside(video: &Path) -> Result<PathBuf, Failure> {
    if video.extension().is_none_or(|extension| extension != "mp4") {
        return Err(Failure::Usage(format!(
            "{}: the video's name must end in .mp4 (the ground truth goes beside it, with .json)",
            video.display()
        )));
    }
    Ok(video.with_extension("json"))
}

#[expect(clippy::cast_precision_loss, reason = "faces of a video are far below 2^52")]
fn faces_per_minute(counts: Counts) -> f64 {
    counts.faces as f64 * 60.0 * f64::from(FPS) / counts.frames.max(1) as f64
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "bytes of a file are far below 2^52")]
    fn print(&self) {
        let [width, height] = self.size;
        output::line(format!(
            "Video     {} ({} s, {width}x{height}, {} frames per second, {:.1} MB)",
            self.video,
            self.seconds,
            self.fps,
            self.bytes as f64 / 1e6
        ));
        output::line(format!("Truth     {}", self.truth));
        output::line(format!(
            "Faces     {}, {:.0} per minute (asked for: {:.0})",
            self.faces, self.faces_per_minute, self.density
        ));
        output::line(format!("Walkers   {} ({} people)", self.walkers, self.people));
        for PassedOver { file, reason, .. } in &self.passed_over {
            output::line(format!("          passed over {file}: {reason}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn densities_have_names_and_limits() {
        assert_eq!("very-high".parse(), Ok(Density(1479.0)));
        assert_eq!("12.5".parse(), Ok(Density(12.5)));
        for wrong in ["0", "-3", "20001", "NaN", "dense", ""] {
            assert!(wrong.parse::<Density>().unwrap_err().contains("20000"), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_those_that_an_encoder_takes() {
        assert_eq!("1280x720".parse(), Ok(Size([1280, 720])));
        for wrong in ["1280", "1366x768", "1280x721", "64x64", "8000x4000", "1280x-720", "x"] {
            assert!(wrong.parse::<Size>().unwrap_err().contains("multiple"), "{wrong}");
        }
    }

    #[test]
    fn the_truth_goes_beside_the_video() {
        assert_eq!(truth_beside(Path::new("a/b.mp4")).unwrap(), Path::new("a/b.json"));
        assert!(truth_beside(Path::new("a/b.json")).unwrap_err().to_string().contains(".mp4"));
    }
}
