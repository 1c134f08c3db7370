//! Annotated videos with boxes and names. A recording is played twice, once to recognise and once to draw the final results,
//! since results arrive later than frames. For a live source, the results known at each frame are drawn.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result};
use gst::prelude::*;
use gstfacepipe::{
    results::RecognitionResult,
    roi::{self, FaceRegion},
};
use tempfile::TempPath;

use crate::{
    exit::Failure,
    files::folder_of,
    video::{Shared, lock, panel, player::Player, source::Source},
};

/// Polling interval of the pipeline.
const WAIT: Duration = Duration::from_millis(100);

/// Faces by the timestamp of their frame, nanoseconds.
pub type FacesByTime = HashMap<u64, Vec<FaceRegion>>;

/// Path of an MP4 file to write.
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

/// A file being written beside its target. Dropping it removes it.
pub struct Draft {
    temporary: TempPath,
    target: PathBuf,
}

impl VideoFile {
    /// Creates a draft of the file.
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
    /// Returns the temporary path.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Returns the target path.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Renames the draft to its target.
    ///
    /// # Errors
    /// The target cannot be written.
    pub fn publish(self) -> Result<(), Failure> {
        let Self { temporary, target } = self;
        temporary.persist(&target).map_err(|error| Failure::output(target.display(), error.error))
    }
}

/// Returns the part of a pipeline that encodes raw video into the file of the element `output`.
pub fn writer(live: bool) -> String {
    // Look-ahead needs more frames than the queues of a camera hold.
    let tune = if live { "tune=zerolatency " } else { "" };
    format!(
        "videoconvert ! x264enc {tune}speed-preset=veryfast key-int-max=60 ! h264parse ! mp4mux ! \
         filesink name=output"
    )
}

/// Records the faces of each frame at the source pad of an element.
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

/// Plays the source again up to `until` and writes the annotated video. Returns whether it was interrupted; the file is
/// complete in either case.
///
/// # Errors
/// The source cannot be played again, or the file cannot be written.
pub fn draw_boxes(
    source: &Source,
    until: Option<gst::ClockTime>,
    draft: &Draft,
    drawn: FacesByTime,
    track_results: &HashMap<i32, RecognitionResult>,
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
