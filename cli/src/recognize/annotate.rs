//! The video with boxes and names. Of a recording the answers come later than its frames, so it is played twice: once to
//! recognise, once to draw what is known in the end. Of a live source is drawn what is known when a frame comes.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result};
use gst::prelude::*;
use gstfacepipe::{
    results::Verdict,
    roi::{self, FaceRegion},
};
use tempfile::TempPath;

use super::report::folder_of;
use crate::{
    exit::Failure,
    video::{Shared, lock, panel, player::Player, source::Source},
};

/// How often the pipeline is looked at.
const WAIT: Duration = Duration::from_millis(100);

/// The faces of each frame, by its timestamp in nanoseconds.
pub type FacesByTime = HashMap<u64, Vec<FaceRegion>>;

/// An MP4 file to be written.
#[derive(Debug, Clone)]
pub struct VideoFile(PathBuf);

impl FromStr for VideoFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let is_mp4 = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mp4"));
        if is_mp4 { Ok(Self(path)) } else { Err("must end in .mp4".into()) }
    }
}

/// The file while it is written: beside its place, to which it goes when it is whole. Dropping it removes it.
pub struct Draft {
    temporary: TempPath,
    target: PathBuf,
}

impl VideoFile {
    /// Begins the file.
    ///
    /// # Errors
    /// Its folder is missing or cannot be written.
    pub fn begin(&self) -> Result<Draft, Failure> {
        let Self(target) = self;
        let file = tempfile::Builder::new()
            .prefix(".facepipe-")
            .suffix(".mp4.part")
            .tempfile_in(folder_of(target))
            .map_err(|error| Failure::output(target.display(), error))?;
        Ok(Draft { temporary: file.into_temp_path(), target: target.clone() })
    }
}

impl Draft {
    /// Where it is written meanwhile.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Where it goes.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Puts it to its place.
    ///
    /// # Errors
    /// That cannot be written.
    pub fn publish(self) -> Result<(), Failure> {
        let Self { temporary, target } = self;
        temporary.persist(&target).map_err(|error| Failure::output(target.display(), error.error))
    }
}

/// The part of a pipeline that writes raw video into the file of the element `output`.
pub fn writer(live: bool) -> String {
    // Look-ahead would hold more frames of a camera than its queues do.
    let tune = if live { "tune=zerolatency " } else { "" };
    format!(
        "videoconvert ! x264enc {tune}speed-preset=veryfast key-int-max=60 ! h264parse ! mp4mux ! \
         filesink name=output"
    )
}

/// Keeps the faces of each frame that passes behind the element.
///
/// # Errors
/// The element has no source pad.
pub fn record_faces(element: &gst::Element, drawn: &Shared<FacesByTime>) -> Result<()> {
    let pad = element.static_pad("src").context("an element without a source pad")?;
    let drawn = drawn.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer()
            && let Some(time) = buffer.pts()
        {
            let faces = roi::faces_and_predictions(buffer);
            if !faces.is_empty() {
                lock(&drawn).insert(time.nseconds(), faces);
            }
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

/// Plays the source again, up to `until`, and draws into the file. True: it was ended by Ctrl-C; the file is whole then, too.
///
/// # Errors
/// The source cannot be played any more, or the file cannot be written.
pub fn draw_boxes(
    source: &Source,
    until: Option<gst::ClockTime>,
    draft: &Draft,
    drawn: FacesByTime,
    track_results: &HashMap<i32, Verdict>,
    was_interrupted: bool,
) -> Result<bool> {
    let tail = format!("facepipe-faceoverlay name=overlay unanswered=red ! {}", writer(false));
    let mut player = Player::new(source, until, "Drawing", &tail)?;
    if was_interrupted {
        player.ignore_interrupts();
    }
    let overlay = player.element("overlay")?;
    for (track, result) in track_results {
        panel::set_result(&overlay, *track, result);
    }
    player.write(draft.path(), draft.target())?;
    let pad = overlay.static_pad("sink").context("an overlay without a pad")?;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer_mut()
            && let Some(faces) = buffer.pts().and_then(|time| drawn.get(&time.nseconds()))
        {
            let buffer = buffer.make_mut();
            for face in faces {
                roi::attach_face(buffer, face);
            }
        }
        gst::PadProbeReturn::Ok
    });
    player.start()?;
    while !player.step(WAIT) {}
    player.finish()
}
