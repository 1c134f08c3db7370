//! What the demo found, for people on the terminal and for programs as `report.json`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use serde::Serialize;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::{
    client::LastKnownLocation,
    exit::Failure,
    output,
    trial::{GroundTruth, Policy, Replay, Trial},
    video::faces::LeftOut,
};

/// What sending the camera's video itself would cost, in Mbit/s: 1080p H.264 as cameras send it.
const VIDEO_MBPS: f64 = 4.0;

/// The demo's result. All rates are taken over the video's own length.
#[derive(Debug, Serialize)]
pub struct Report {
    video: String,
    /// Length of the video.
    seconds: f64,
    embedder: String,
    policy: &'static str,
    faces_uploaded: u64,
    detections_stored: usize,
    /// Request bytes as they went into the sockets, HTTP headers included.
    uplink_bytes: u64,
    uplink_mbps: f64,
    /// How many times less than a 4 Mbit/s video.
    reduction_factor: f64,
    /// Stored detections per recognised person.
    identified: BTreeMap<String, usize>,
    /// Stored detections of faces that are nobody enrolled.
    unknown: usize,
    /// People who were enrolled.
    people_enrolled: usize,
    /// People of whom no photograph could be used.
    people_without_photograph: Vec<String>,
    /// Uploaded crops in which the backend found no face.
    crops_without_face: usize,
    /// Faces that were found and left out.
    left_out: LeftOut,
    #[serde(flatten)]
    accuracy: Option<Accuracy>,
}

/// How right it was, where the video has ground truth.
#[derive(Debug, Serialize)]
struct Accuracy {
    /// Share of stored detections whose identity is right; unknown is right for who is not enrolled.
    identification_accuracy: f64,
    /// People (appearances) who walked through the video.
    walkers: usize,
    /// Those of them who are enrolled.
    walkers_enrolled: usize,
    /// Those of these with at least one right identification.
    walkers_seen: usize,
    detections_right: usize,
    /// Those of them that were called unknown, and are of people who are not enrolled.
    detections_rightly_unknown: usize,
    /// Wrong since called unknown.
    detections_unknown: usize,
    /// Wrong since called by somebody else's name.
    detections_misnamed: usize,
    /// Wrong since no walker was there.
    detections_unexplained: usize,
}

impl Report {
    /// Sums up a replay; with `truth`, judges it too.
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^52")]
    pub fn new(
        video: &Path,
        trial: &Trial,
        policy: Policy,
        replay: &Replay,
        truth: Option<&GroundTruth>,
    ) -> Self {
        let mut identified = BTreeMap::new();
        let mut unknown = 0;
        for detection in &replay.detections {
            match &detection.identity {
                Some(name) => *identified.entry(name.clone()).or_insert(0) += 1,
                None => unknown += 1,
            }
        }
        let accuracy = truth.map(|truth| {
            let enrolled = trial.enrolled();
            let score = replay.judge(truth, &enrolled);
            Accuracy {
                identification_accuracy: score.right as f64 / score.judged.max(1) as f64,
                walkers: truth.walkers(),
                walkers_enrolled: truth.enrolled_walkers(&enrolled),
                walkers_seen: score.seen.len(),
                detections_right: score.right,
                detections_rightly_unknown: score.rightly_unknown,
                detections_misnamed: score.misnamed,
                detections_unknown: score.unknown,
                detections_unexplained: score.unexplained,
            }
        });
        let mbps = replay.uplink_bytes as f64 * 8.0 / 1e6 / replay.seconds;
        Self {
            video: video.display().to_string(),
            seconds: replay.seconds,
            embedder: trial.embedder.clone(),
            policy: policy.nick(),
            faces_uploaded: replay.sent,
            detections_stored: replay.detections.len(),
            uplink_bytes: replay.uplink_bytes,
            uplink_mbps: mbps,
            reduction_factor: VIDEO_MBPS / mbps,
            identified,
            unknown,
            people_enrolled: trial.enrolled().len(),
            people_without_photograph: trial.without_photograph(),
            crops_without_face: replay.crops_without_face,
            left_out: replay.left_out,
            accuracy,
        }
    }

    /// Prints the table of people and the cost in uplink.
    pub fn print(&self, last_seen: &BTreeMap<String, LastKnownLocation>) {
        output::line(format!("\n{:<28} {:>6}  {:<12} last seen", "who", "times", "where"));
        for (person, times) in &self.identified {
            let (place, time) = match last_seen.get(person) {
                Some(seen) => (
                    seen.location.as_str(),
                    format!("{} at {}", to_the_second(&seen.captured_at), seen.camera_id),
                ),
                None => ("", String::new()),
            };
            output::line(format!("{person:<28} {times:>6}  {place:<12} {time}"));
        }
        output::line(format!("{:<28} {:>6}", "(unknown)", self.unknown));
        output::line(format!(
            "\n{} crops uploaded, {} detections stored ({} crops held no face for the backend)",
            self.faces_uploaded, self.detections_stored, self.crops_without_face
        ));
        output::line(format!(
            "Uplink    {} bytes in {:.1} s = {:.3} Mbit/s, {:.0} times less than {VIDEO_MBPS} Mbit/s of video",
            self.uplink_bytes, self.seconds, self.uplink_mbps, self.reduction_factor
        ));
        self.left_out.words("min-size of facecrop").iter().for_each(output::line);
        if let Some(accuracy) = &self.accuracy {
            let strangers = match accuracy.walkers - accuracy.walkers_enrolled {
                0 => String::new(),
                strangers => format!("; {strangers} are not enrolled, unknown is right for them"),
            };
            output::line(format!(
                "Accuracy  {:.1} % of the identities are right; {} of {} walkers recognised{strangers}",
                accuracy.identification_accuracy * 100.0,
                accuracy.walkers_seen,
                accuracy.walkers_enrolled
            ));
        }
    }

    /// Writes the report as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").map_err(|error| Failure::output(path.display(), error).into())
    }
}

/// `2026-03-04 05:06:07 UTC` of an RFC 3339 time in UTC; what is none stays as it is.
fn to_the_second(time: &str) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    OffsetDateTime::parse(time, &Rfc3339)
        .ok()
        .and_then(|time| time.to_offset(UtcOffset::UTC).format(&format).ok())
        .unwrap_or_else(|| time.to_owned())
}
