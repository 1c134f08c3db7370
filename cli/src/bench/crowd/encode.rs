//! Encodes frames to an MP4 file (H.264) with GStreamer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use gst::prelude::*;
use image::RgbImage;

use super::plan::FPS;
use crate::exit::Failure;

/// Constant rate factor of x264, typical of good cameras.
const QUALITY: u32 = 24;

/// Key frame interval in frames: 2 seconds.
const KEY_FRAME_INTERVAL: u32 = 2 * FPS;

/// Maximum number of frames queued for the encoder.
const MAX_QUEUED_FRAMES: u64 = 4;

/// Interval at which the bus is polled for errors.
const POLL_INTERVAL: gst::ClockTime = gst::ClockTime::from_mseconds(10);

/// Writes an MP4 file.
pub struct Encoder {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    bus: gst::Bus,
    /// The file as the user named it, for messages.
    display_path: PathBuf,
    frames: u64,
}

impl Encoder {
    /// Starts writing `file` with frames of this width and height. `scratch` is a folder for temporary data of the muxer;
    /// errors name `display_path`. `fast` halves the encoding time at the cost of a somewhat larger file.
    ///
    /// # Errors
    /// An element of GStreamer is missing, or the file cannot be written.
    pub fn start(
        file: &Path,
        scratch: &Path,
        display_path: &Path,
        [width, height]: [u32; 2],
        fast: bool,
    ) -> Result<Self> {
        gst::init().context("GStreamer cannot be initialised")?;
        let pipeline = gst::parse::launch(
            "appsrc name=source format=time ! videoconvert ! video/x-raw,format=I420 ! \
             x264enc name=encoder pass=qual bframes=0 ! video/x-h264,profile=high ! \
             mp4mux name=mux faststart=true ! filesink name=sink",
        )
        .context("x264enc is in Debian's gstreamer1.0-plugins-ugly, mp4mux in gstreamer1.0-plugins-good")?
        .downcast::<gst::Pipeline>()
        .map_err(|_| anyhow!("the description gave no pipeline"))?;
        let element = |name: &str| pipeline.by_name(name).with_context(|| format!("no element {name}"));
        let encoder = element("encoder")?;
        encoder.set_property_from_str("speed-preset", if fast { "veryfast" } else { "medium" });
        encoder.set_property("quantizer", QUALITY);
        encoder.set_property("key-int-max", KEY_FRAME_INTERVAL);
        element("mux")?.set_property("faststart-file", scratch.join("faststart"));
        element("sink")?.set_property("location", file);
        let source = element("source")?
            .downcast::<gst_app::AppSrc>()
            .map_err(|_| anyhow!("the source is no appsrc"))?;
        let [columns, lines] = [width, height].map(i32::try_from);
        source.set_caps(Some(
            &gst::Caps::builder("video/x-raw")
                .field("format", "RGB")
                .field("width", columns?)
                .field("height", lines?)
                .field("framerate", gst::Fraction::new(i32::try_from(FPS)?, 1))
                .field("pixel-aspect-ratio", gst::Fraction::new(1, 1))
                .build(),
        ));
        source.set_max_bytes(MAX_QUEUED_FRAMES * u64::from(width) * u64::from(height) * 3);
        let bus = pipeline.bus().context("a pipeline without a bus")?;
        let encoder = Self { pipeline, source, bus, display_path: display_path.to_owned(), frames: 0 };
        if encoder.pipeline.set_state(gst::State::Playing).is_err() {
            encoder.check(gst::ClockTime::ZERO)?;
            bail!(Failure::output(display_path.display(), "the pipeline does not start"));
        }
        Ok(encoder)
    }

    /// Adds a frame; blocks while the encoder's queue is full.
    ///
    /// # Errors
    /// The file cannot be written, or the encoder fails.
    pub fn add(&mut self, frame: RgbImage) -> Result<()> {
        self.check(gst::ClockTime::ZERO)?;
        while self.source.current_level_bytes() >= self.source.max_bytes() {
            self.check(POLL_INTERVAL)?;
        }
        let at = |frame: u64| gst::ClockTime::SECOND.mul_div_floor(frame, FPS.into());
        let mut buffer = gst::Buffer::from_mut_slice(frame.into_raw());
        let (begins, ends) = (at(self.frames), at(self.frames + 1));
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(begins);
            buffer.set_duration(ends.zip(begins).map(|(ends, begins)| ends - begins));
        }
        self.frames += 1;
        if let Err(error) = self.source.push_buffer(buffer) {
            self.check(POLL_INTERVAL)?;
            bail!("{}: the encoder takes no more frames: {error}", self.display_path.display());
        }
        Ok(())
    }

    /// Finishes the file.
    ///
    /// # Errors
    /// The file cannot be written, or the encoder fails.
    pub fn finish(self) -> Result<()> {
        // Fails only if the pipeline has failed, and then the bus has the reason.
        let _ = self.source.end_of_stream();
        while !self.check(POLL_INTERVAL)? {}
        self.pipeline.set_state(gst::State::Null)?;
        Ok(())
    }

    /// Waits up to `wait` for the end of the stream or an error. Returns true at the end of the stream.
    fn check(&self, wait: gst::ClockTime) -> Result<bool> {
        let message = self.bus.timed_pop_filtered(wait, &[gst::MessageType::Error, gst::MessageType::Eos]);
        match message.as_ref().map(|message| message.view()) {
            None => Ok(false),
            Some(gst::MessageView::Error(error)) => {
                // The element's message, followed by the operating system's.
                let detail = error.debug().unwrap_or_default();
                let detail = detail.lines().last().unwrap_or_default().trim().to_owned();
                Err(Failure::output(self.display_path.display(), format!("{} ({detail})", error.error()))
                    .into())
            }
            Some(_) => Ok(true),
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}
