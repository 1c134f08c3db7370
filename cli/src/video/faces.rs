//! Options for face detection that all video commands share, and their application to a pipeline.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use gst::prelude::*;
use gst_video::VideoInfo;
use serde::Serialize;

use super::source::Source;

/// Default `max-age` of `facetrack`, milliseconds.
const MAX_AGE: f64 = 2000.0;

/// Consecutive searches without the face that a track survives.
const MAX_MISSES: f64 = 3.0;

/// Maximum number of detector threads; more do not speed up so small a network.
const MAX_THREADS: usize = 4;

/// Options for detection.
#[derive(Debug, Clone, Args)]
#[group(id = "faces")]
#[command(next_help_heading = "Faces and frames")]
pub struct FaceOptions {
    /// Ignore faces with a shorter side below this, pixels [default: 1/64 of the frame's longer side, 20 to 30]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(0..=32_768))]
    min_size: Option<u32>,
    /// Ignore faces with a longer side above this, pixels
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=32_768))]
    max_size: Option<u32>,
    /// Ignore faces with a lower detection score, 0 to 1 [default: the detector's threshold]
    #[arg(long, value_name = "SCORE", value_parser = share)]
    min_confidence: Option<f32>,
    /// Frames to skip after each searched frame
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    skip_frames: u32,
    /// Maximum number of frames searched per second of video
    #[arg(long, value_name = "F", value_parser = rate)]
    target_fps: Option<f64>,
    /// Timeout for the first frame of a recording, seconds; cameras time out after 10 s without a frame
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", value_parser = positive)]
    first_frame: f64,
    /// End after this many seconds of video
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    seconds: Option<f64>,
}

fn share(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|_| "expected a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("must be from 0 to 1".into()) }
}

fn rate(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number of frames per second".to_owned())?;
    if number > 0.0 && number <= 1000.0 {
        Ok(number)
    } else {
        Err("must be more than 0 and at most 1000".into())
    }
}

/// Parses a positive number of seconds.
pub fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if number > 0.0 && number <= 1e9 {
        Ok(number)
    } else {
        Err("must be more than 0 and at most 1000000000".into())
    }
}

impl FaceOptions {
    /// Part of a pipeline that detects and tracks faces.
    pub(super) const DESCRIPTION: &str = "facepipe-facedetect name=detect ! facepipe-facetrack name=track";

    /// Returns the time from which on frames are ignored.
    pub fn until(&self) -> Option<gst::ClockTime> {
        gst::ClockTime::try_from(Duration::try_from_secs_f64(self.seconds?).ok()?).ok()
    }

    /// Returns the timeout for the first frame of a recording.
    pub fn first_frame_limit(&self) -> Duration {
        Duration::from_secs_f64(self.first_frame)
    }

    /// Configures the elements of [`Self::DESCRIPTION`].
    ///
    /// # Errors
    /// An element is missing.
    pub(super) fn configure(&self, pipeline: &gst::Pipeline, source: &Source) -> Result<()> {
        let (detect, track) = (super::element(pipeline, "detect")?, super::element(pipeline, "track")?);
        if let Some(score) = self.min_confidence {
            detect.set_property("score-threshold", score);
            // Tracked faces have a lower threshold by default.
            detect.set_property("low-score-threshold", score);
        }
        detect.set_property("min-face-size", self.min_size.unwrap_or(0));
        detect.set_property("max-face-size", self.max_size.unwrap_or(0));
        detect.set_property("interval", self.skip_frames.saturating_add(1));
        detect.set_property("max-fps", self.target_fps.unwrap_or(0.0));
        // A recording is searched completely; late frames of a live source are skipped.
        detect.set_property("qos", source.is_live());
        let threads = (thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, MAX_THREADS);
        detect.set_property("threads", u32::try_from(threads).unwrap_or(1));
        self.fit_to_video(&detect, &track)
    }

    /// Sets the properties that depend on the video: the minimum face size, unless given, and the lifetime of tracks, which
    /// must exceed the time between searches.
    fn fit_to_video(&self, detect: &gst::Element, track: &gst::Element) -> Result<()> {
        let pad = detect.static_pad("sink").context("a detector without a pad")?;
        let (options, track, detect) = (self.clone(), track.clone(), detect.downgrade());
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view())
                && let Ok(video) = VideoInfo::from_caps(caps.caps())
            {
                if let (None, Some(detect)) = (options.min_size, detect.upgrade()) {
                    detect.set_property("min-face-size", gstfacepipe::crop_pipeline::min_size_in(&video));
                }
                track.set_property(
                    "max-age",
                    options.max_age(f64::from(video.fps().numer()) / f64::from(video.fps().denom())),
                );
            }
            gst::PadProbeReturn::Ok
        });
        Ok(())
    }

    /// Returns `max-age` in milliseconds for this frame rate (0: variable).
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the property's range"
    )]
    fn max_age(&self, fps: f64) -> u32 {
        let by_frames = if fps > 0.0 { f64::from(self.skip_frames.saturating_add(1)) / fps } else { 0.0 };
        let by_rate = self.target_fps.map_or(0.0, |rate| 1.0 / rate);
        (by_frames.max(by_rate) * MAX_MISSES * 1000.0).clamp(MAX_AGE, 3_600_000.0) as u32
    }
}

/// Counters of `facedetect`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames received.
    pub frames: u64,
    /// Frames searched.
    pub searched: u64,
    /// Frames of a live source that arrived too fast to be searched.
    pub late: u64,
    /// Detected faces that were left out.
    pub left_out: LeftOut,
}

/// Detected faces that were left out, counted per frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Faces below the minimum size.
    pub too_small: u64,
    /// Faces above the maximum size.
    pub too_large: u64,
    /// Faces beyond the maximum number per frame.
    pub too_many: u64,
    /// Minimum size of a face's shorter side, pixels.
    pub min_size: u32,
}

impl LeftOut {
    /// Adds the faces that `facecrop` left out, from its `stats`.
    #[must_use]
    pub fn with_crop_stats(self, crop: &gst::Structure) -> Self {
        let count = |name| crop.get::<u64>(name).unwrap_or_default();
        let min_size = u32::try_from(count("min-size")).unwrap_or(u32::MAX);
        Self { too_small: self.too_small + count("below-min-size"), min_size, ..self }
    }

    /// Returns a line of text that names the option or property for small faces; none if nothing was left out.
    pub fn summary(&self, min_size: &str) -> Option<String> {
        let counts = gstfacepipe::counts_summary([
            (self.too_small, format!("faces smaller than {} px ({min_size})", self.min_size)),
            (self.too_large, "faces larger than --max-size".into()),
            (self.too_many, "faces beyond the maximum number per frame".into()),
        ]);
        counts.map(|counts| format!("Left out  {counts}"))
    }
}

impl Counts {
    /// Reads the counters of a pipeline's detector.
    pub fn of(pipeline: &gst::Pipeline) -> Self {
        let Some(detect) = pipeline.by_name("detect") else { return Self::default() };
        let stats: gst::Structure = detect.property("stats");
        let count = |name| stats.get::<u64>(name).unwrap_or_default();
        let left_out = LeftOut {
            too_small: count("below-min-face-size"),
            too_large: count("above-max-face-size"),
            too_many: count("above-max-faces"),
            min_size: detect.property("min-face-size"),
        };
        Self { frames: count("frames"), searched: count("detected"), late: count("skipped-late"), left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracks_outlive_the_interval_between_searches() {
        let options = FaceOptions {
            min_size: None,
            max_size: None,
            min_confidence: None,
            skip_frames: 0,
            target_fps: None,
            first_frame: 20.0,
            seconds: None,
        };
        assert_eq!(options.max_age(25.0), 2000);
        assert_eq!(FaceOptions { skip_frames: 24, ..options.clone() }.max_age(25.0), 3000);
        assert_eq!(FaceOptions { target_fps: Some(0.5), ..options.clone() }.max_age(25.0), 6000);
        assert_eq!(FaceOptions { skip_frames: 9, ..options }.max_age(0.0), 2000, "of an unknown rate");
    }

    #[test]
    fn faces_left_out_are_reported_with_the_option() {
        assert_eq!(LeftOut { min_size: 30, ..LeftOut::default() }.summary("--min-size"), None);
        let left_out = LeftOut { too_small: 12, too_large: 0, too_many: 3, min_size: 30 };
        let said =
            "Left out  12 faces smaller than 30 px (--min-size), 3 faces beyond the maximum number per frame";
        assert_eq!(left_out.summary("--min-size").as_deref(), Some(said));
    }

    #[test]
    fn numbers_out_of_their_range_are_refused() {
        assert!(share("1.01").is_err() && share("x").is_err() && share("nan").is_err());
        assert!(rate("0").is_err() && rate("-1").is_err() && rate("nan").is_err() && rate("inf").is_err());
        assert!(positive("0").is_err() && positive("nan").is_err());
    }
}
