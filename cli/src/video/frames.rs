//! Which frames of a video are looked at.

use std::num::NonZeroU32;

use anyhow::{Context, Result};
use clap::Args;
use gst::prelude::*;

/// Which frames are looked at.
#[derive(Debug, Default, Args)]
#[group(id = "frames")]
pub struct Frames {
    /// Frames to leave out after each one that is looked at
    #[arg(long, default_value_t = 0, value_name = "N")]
    skip_frames: u32,
    /// Frames of a second of video that are looked at, at most
    #[arg(long, value_name = "F")]
    target_fps: Option<NonZeroU32>,
}

impl Frames {
    /// The part of a pipeline between decoder and detector. `live` leaves out what comes while there is no time.
    pub fn description(&self, live: bool) -> String {
        let queue = if live {
            "queue name=frames leaky=downstream max-size-buffers=2 max-size-bytes=0 max-size-time=0"
        } else {
            "queue name=frames max-size-buffers=4 max-size-bytes=0 max-size-time=0"
        };
        match self.target_fps {
            Some(fps) => format!("videorate drop-only=true max-rate={fps} ! {queue}"),
            None => queue.to_owned(),
        }
    }

    /// Has the queue of such a pipeline leave frames out.
    ///
    /// # Errors
    /// The pipeline has no such queue.
    pub fn configure(&self, pipeline: &gst::Pipeline) -> Result<()> {
        let queue = super::element(pipeline, "frames")?;
        let pad = queue.static_pad("src").context("a queue without a source pad")?;
        let period = u64::from(self.skip_frames) + 1;
        let mut count = 0_u64;
        let counter = std::sync::Mutex::new(move || {
            let looked_at = count.is_multiple_of(period);
            count += 1;
            looked_at
        });
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let looked_at = counter.lock().map_or(true, |mut counter| counter());
            if !looked_at {
                return gst::PadProbeReturn::Drop;
            }
            // The queue marks the frame after a lost one as a break, at which tracks would end. It is none: the same
            // people are still there.
            if let Some(buffer) = info.buffer_mut()
                && buffer.flags().contains(gst::BufferFlags::DISCONT)
                && buffer.pts() != Some(gst::ClockTime::ZERO)
            {
                buffer.make_mut().unset_flags(gst::BufferFlags::DISCONT);
            }
            gst::PadProbeReturn::Ok
        });
        Ok(())
    }
}
