//! Which faces count and which frames are searched: the options that all programs with video share, and what they set.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use gst::prelude::*;
use gst_video::VideoInfo;
use serde::Serialize;

use super::source::Source;

/// How long a track lives without its face being found, milliseconds: `facetrack`'s own value.
const MAX_AGE: f64 = 2000.0;

/// A track survives so many searches that do not find it.
const MAX_MISSES: f64 = 3.0;

/// Threads of the detector at most; more do not make so small a network faster.
const MAX_THREADS: usize = 4;

/// Which faces count, and which frames are looked at.
#[derive(Debug, Clone, Args)]
#[group(id = "faces")]
#[command(next_help_heading = "Faces and frames")]
pub struct FaceOptions {
    /// Leave out faces whose shorter side is less, pixels [default: a 64th of the frame's longer side, from 20 to 30]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(0..=32_768))]
    min_size: Option<u32>,
    /// Leave out faces whose longer side is more, pixels
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=32_768))]
    max_size: Option<u32>,
    /// Leave out faces of which the detector is less sure, 0 to 1 [default: the detector's own threshold]
    #[arg(long, value_name = "SCORE", value_parser = share)]
    min_confidence: Option<f32>,
    /// Frames to leave out after each one that is searched
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    skip_frames: u32,
    /// Frames of a second of video that are searched, at most
    #[arg(long, value_name = "F", value_parser = rate)]
    target_fps: Option<f64>,
    /// How long a recording may take to its first frame, seconds; a camera counts as gone after 10 s without one
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", value_parser = positive)]
    first_frame: f64,
    /// End after so many seconds of the video
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

pub fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if number > 0.0 && number <= 1e9 {
        Ok(number)
    } else {
        Err("must be more than 0 and at most 1000000000".into())
    }
}

impl FaceOptions {
    /// The part of a pipeline that finds and follows faces.
    pub(super) const DESCRIPTION: &str = "facepipe-facedetect name=detect ! facepipe-facetrack name=track";

    /// The time of the first frame that is not wanted.
    pub fn until(&self) -> Option<gst::ClockTime> {
        gst::ClockTime::try_from(Duration::try_from_secs_f64(self.seconds?).ok()?).ok()
    }

    /// How long a recording may take to its first frame.
    pub fn first_frame_limit(&self) -> Duration {
        Duration::from_secs_f64(self.first_frame)
    }

    /// Sets that part.
    ///
    /// # Errors
    /// An element is missing.
    pub(super) fn configure(&self, pipeline: &gst::Pipeline, source: &Source) -> Result<()> {
        let (detect, track) = (super::element(pipeline, "detect")?, super::element(pipeline, "track")?);
        if let Some(score) = self.min_confidence {
            detect.set_property("score-threshold", score);
            // Otherwise a face that is followed may be less sure.
            detect.set_property("low-score-threshold", score);
        }
        detect.set_property("min-face-size", self.min_size.unwrap_or(0));
        detect.set_property("max-face-size", self.max_size.unwrap_or(0));
        detect.set_property("interval", self.skip_frames.saturating_add(1));
        detect.set_property("max-fps", self.target_fps.unwrap_or(0.0));
        // A recording is searched whole, however long that takes; of a live source, late frames pass.
        detect.set_property("qos", source.is_live());
        let threads = (thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, MAX_THREADS);
        detect.set_property("threads", u32::try_from(threads).unwrap_or(1));
        self.fit_to_video(&detect, &track)
    }

    /// What goes with the video: the smallest face that counts, unless it is set, and how long tracks live. Where seconds lie
    /// between two searches, they must outlive them.
    fn fit_to_video(&self, detect: &gst::Element, track: &gst::Element) -> Result<()> {
        let pad = detect.static_pad("sink").context("a detector without a pad")?;
        let (options, track, detect) = (self.clone(), track.clone(), detect.downgrade());
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view())
                && let Ok(video) = VideoInfo::from_caps(caps.caps())
            {
                if let (None, Some(detect)) = (options.min_size, detect.upgrade()) {
                    detect.set_property("min-face-size", gstfacepipe::cutter::min_size_in(&video));
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

    /// `max-age` in milliseconds for video of this rate (0: it varies).
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

/// What `facedetect` has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that came.
    pub frames: u64,
    /// Frames that were searched.
    pub searched: u64,
    /// Frames that a live source sent faster than they could be searched.
    pub late: u64,
    /// What was found and does not count.
    pub left_out: LeftOut,
}

/// Faces that were found and left out, each in each searched frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Faces that are smaller than the least size.
    pub too_small: u64,
    /// Faces that are larger than the greatest size.
    pub too_large: u64,
    /// Faces beyond the greatest number in a frame.
    pub too_many: u64,
    /// The least size, pixels of a face's shorter side.
    pub min_size: u32,
}

impl LeftOut {
    /// The same with what `facecrop` has left out beside, from its `stats`.
    #[must_use]
    pub fn with_crop_stats(self, crop: &gst::Structure) -> Self {
        let count = |name| crop.get::<u64>(name).unwrap_or_default();
        let min_size = u32::try_from(count("min-size")).unwrap_or(u32::MAX);
        Self { too_small: self.too_small + count("below-min-size"), min_size, ..self }
    }

    /// A line for people, with the option or property that decides about small faces; none where nothing was left out.
    pub fn summary(&self, min_size: &str) -> Option<String> {
        let some = |count: u64, why: String| (count > 0).then(|| format!("{count} {why}"));
        let parts: Vec<String> = [
            some(self.too_small, format!("faces smaller than {} px ({min_size})", self.min_size)),
            some(self.too_large, "faces larger than --max-size".into()),
            some(self.too_many, "faces beyond the greatest number in a frame".into()),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!parts.is_empty()).then(|| format!("Left out  {}", parts.join(", ")))
    }
}

impl Counts {
    /// Asks the detector of a pipeline.
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
    fn tracks_outlive_the_time_between_two_searches() {
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
    fn what_was_left_out_is_said_with_the_option_that_decides() {
        assert_eq!(LeftOut { min_size: 30, ..LeftOut::default() }.summary("--min-size"), None);
        let left_out = LeftOut { too_small: 12, too_large: 0, too_many: 3, min_size: 30 };
        let said = "Left out  12 faces smaller than 30 px (--min-size), 3 faces beyond the greatest number in a frame";
        assert_eq!(left_out.summary("--min-size").as_deref(), Some(said));
    }

    #[test]
    fn numbers_out_of_their_range_are_refused() {
        assert!(share("1.01").is_err() && share("x").is_err() && share("nan").is_err());
        assert!(rate("0").is_err() && rate("-1").is_err() && rate("nan").is_err() && rate("inf").is_err());
        assert!(positive("0").is_err() && positive("nan").is_err());
    }
}
