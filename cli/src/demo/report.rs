//! The demo's result, printed on the terminal and written as `report.json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::Result;
use serde::Serialize;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::{
    client::LastKnownLocation,
    files, output,
    trial::{
        CAMERA_ID, CAMERA_LOCATION, Detection, GroundTruth, IdentificationOutcome, Policy, Replay, Trial,
        VIDEO_MBPS,
    },
    video::faces::LeftOut,
};

/// The demo's result. All rates are averages over the length of the video.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: String,
    pub video: String,
    /// Length of the video.
    pub seconds: f64,
    /// Bit rate of the video file, Mbit/s.
    pub video_mbps: f64,
    /// When the replay began, RFC 3339 in UTC.
    pub started_at: String,
    pub camera_id: &'static str,
    pub camera_location: &'static str,
    /// None without a backend.
    pub embedder: Option<String>,
    pub policy: &'static str,
    pub faces_uploaded: u64,
    pub detections_stored: usize,
    /// Request bytes at the sockets, including HTTP headers; without a backend, bytes of the crops.
    pub uplink_bytes: u64,
    pub uplink_mbps: f64,
    /// Factor by which this is less than 4 Mbit/s of video.
    pub reduction_factor: f64,
    /// Stored detections per recognised person.
    pub identified: BTreeMap<String, usize>,
    /// Stored detections of unknown faces.
    pub unknown: usize,
    /// People who were enrolled.
    pub people_enrolled: usize,
    /// People without a usable photograph.
    pub people_without_photograph: Vec<String>,
    /// Uploaded crops in which the backend found no face.
    pub crops_without_face: usize,
    /// Faces that were found and left out.
    pub left_out: LeftOut,
    /// Times of the detections by name, seconds since the start of the video; none: unknown.
    #[serde(skip)]
    pub taken: BTreeMap<Option<String>, Vec<f64>>,
    /// Tracks, in order of appearance.
    pub tracks: Vec<Track>,
    /// The walkers of the page, in order of appearance.
    #[serde(skip)]
    pub tiles: Vec<Tile>,
    /// Missing components.
    pub missing: Vec<String>,
    /// Steps with their durations.
    pub steps: Vec<Step>,
    /// Networks and data used.
    pub models: Vec<Model>,
    #[serde(flatten)]
    pub accuracy: Option<Accuracy>,
}

#[derive(Debug, Serialize)]
pub struct Track {
    /// Id of the track.
    pub track: i32,
    /// The name; none if unknown or without a backend.
    pub identity: Option<String>,
    /// Confidence of the name, 0 to 1.
    pub confidence: f64,
    /// Number of detections.
    pub detections: usize,
    /// Times of the first and last crop, seconds since the start of the video.
    pub seconds: [f64; 2],
    /// Whether the name is right; none without ground truth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    /// The same, for the page.
    #[serde(skip)]
    pub outcome: Option<IdentificationOutcome>,
    /// The walker of the ground truth.
    #[serde(skip)]
    walker: Option<u64>,
}

/// A walker on the page.
#[derive(Debug)]
pub struct Tile {
    /// Track whose crop is shown, if any.
    pub track: Option<i32>,
    /// The name; none if unknown. For a walker who was not detected, the name in the ground truth if enrolled.
    pub identity: Option<String>,
    /// Times of the first and last crop, or of the first and last frame with the walker, seconds since the start of the video.
    pub seconds: [f64; 2],
    /// Whether the name is right; none without ground truth or detection.
    pub outcome: Option<IdentificationOutcome>,
    /// False for a walker who was not detected.
    pub is_detected: bool,
}

/// A step of the demo.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub name: &'static str,
    pub seconds: f64,
}

impl Step {
    /// Creates a finished step.
    pub fn new(name: &'static str, took: Duration) -> Self {
        Self { name, seconds: took.as_secs_f64() }
    }
}

/// A network or data set used.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    pub role: &'static str,
    pub name: String,
    pub licence: String,
}

/// Accuracy against the ground truth.
#[derive(Debug, Serialize)]
pub struct Accuracy {
    /// Share of correct detections; unknown is correct for strangers.
    pub identification_accuracy: f64,
    /// Walkers in the video.
    pub walkers: usize,
    /// Walkers who are enrolled.
    pub walkers_enrolled: usize,
    /// Enrolled walkers with at least one correct identification.
    pub walkers_seen: usize,
    pub detections_right: usize,
    /// Correct detections of strangers.
    pub detections_rightly_unknown: usize,
    /// Enrolled, but called unknown.
    pub detections_unknown: usize,
    /// Called by a wrong name.
    pub detections_misnamed: usize,
    /// Without a matching walker.
    pub detections_unexplained: usize,
}

impl Report {
    /// Summarises a replay, without a `trial` that of the edge alone; with `truth`, computes the accuracy.
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^52")]
    pub fn new(
        video: &Path,
        trial: Option<&Trial>,
        policy: Policy,
        replay: &Replay,
        truth: Option<&GroundTruth>,
    ) -> Self {
        let mut identified = BTreeMap::new();
        let mut unknown = 0;
        let mut taken: BTreeMap<Option<String>, Vec<f64>> = BTreeMap::new();
        for detection in &replay.detections {
            taken.entry(detection.identity.clone()).or_default().push(detection.seconds);
            match &detection.identity {
                Some(name) => *identified.entry(name.clone()).or_insert(0) += 1,
                None => unknown += 1,
            }
        }
        let enrolled = trial.map(Trial::enrolled).unwrap_or_default();
        let truth = truth.filter(|_| trial.is_some()).map(|truth| (truth, &enrolled));
        let tracks = tracks(replay, truth);
        let accuracy = truth.map(|(truth, enrolled)| {
            let score = replay.score(truth, enrolled);
            Accuracy {
                identification_accuracy: score.correct as f64 / score.total.max(1) as f64,
                walkers: truth.walkers(),
                walkers_enrolled: truth.enrolled_walkers(enrolled),
                walkers_seen: score.recognized_walkers.len(),
                detections_right: score.correct,
                detections_rightly_unknown: score.correctly_unknown,
                detections_misnamed: score.misidentified,
                detections_unknown: score.missed,
                detections_unexplained: score.unmatched,
            }
        });
        let per_second = 8.0 / 1e6 / replay.seconds;
        let uplink_bytes = if trial.is_some() { replay.uplink_bytes } else { replay.image_bytes };
        let mbps = uplink_bytes as f64 * per_second;
        let file_bytes = fs::metadata(video).map_or(0, |file| file.len());
        Self {
            version: crate::version(),
            video: video.display().to_string(),
            seconds: replay.seconds,
            video_mbps: file_bytes as f64 * per_second,
            started_at: rfc3339(replay.started),
            camera_id: CAMERA_ID,
            camera_location: CAMERA_LOCATION,
            embedder: trial.map(|trial| trial.embedder.clone()),
            policy: policy.nick(),
            faces_uploaded: replay.sent,
            detections_stored: replay.detections.len(),
            uplink_bytes,
            uplink_mbps: mbps,
            reduction_factor: VIDEO_MBPS / mbps,
            identified,
            unknown,
            people_enrolled: enrolled.len(),
            people_without_photograph: trial.map(Trial::without_photograph).unwrap_or_default(),
            crops_without_face: replay.crops_without_face,
            left_out: replay.left_out,
            taken,
            tiles: tiles(&tracks, replay, truth),
            tracks,
            missing: Vec::new(),
            steps: Vec::new(),
            models: Vec::new(),
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
                    format!("{} at {}", format_time(&seen.captured_at), seen.camera_id),
                ),
                None => ("", String::new()),
            };
            output::line(format!("{person:<28} {times:>6}  {place:<12} {time}"));
        }
        if self.embedder.is_none() {
            output::line(format!("{:<28} {:>6}", "(nobody was asked)", self.tracks.len()));
            output::line(format!("\n{} people were followed", self.tracks.len()));
            self.print_uplink("Pictures ");
            return;
        }
        output::line(format!("{:<28} {:>6}", "(unknown)", self.unknown));
        output::line(format!(
            "\n{} crops uploaded, {} detections stored ({} crops held no face for the backend)",
            self.faces_uploaded, self.detections_stored, self.crops_without_face
        ));
        self.print_uplink("Uplink   ");
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

    fn print_uplink(&self, label: &str) {
        output::line(format!(
            "{label} {} bytes in {:.1} s = {:.3} Mbit/s, {:.0} times less than {VIDEO_MBPS} Mbit/s of video",
            self.uplink_bytes, self.seconds, self.uplink_mbps, self.reduction_factor
        ));
        self.left_out.summary("min-size of facecrop").iter().for_each(output::line);
    }

    /// Writes the report as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        Ok(files::replace(path, text.as_bytes(), files::SHARED)?)
    }
}

/// Sums up the detections by track.
fn tracks(replay: &Replay, truth: Option<(&GroundTruth, &BTreeSet<&str>)>) -> Vec<Track> {
    let mut tracks: BTreeMap<i32, Track> = BTreeMap::new();
    let new = |id: i32, seconds: [f64; 2]| Track {
        track: id,
        identity: None,
        confidence: 0.0,
        detections: 0,
        seconds,
        verdict: None,
        outcome: None,
        walker: None,
    };
    if replay.detections.is_empty() && replay.sent == 0 {
        // Without a backend.
        let seen = replay.crops.by_track.iter().map(|(id, crop)| (*id, new(*id, crop.seconds)));
        tracks.extend(seen);
    }
    for detection in replay.detections.iter().filter(|detection| detection.largest) {
        let Detection { seconds, bounding_box, identity, confidence, track, .. } = detection;
        let entry = tracks.entry(*track).or_insert_with(|| new(*track, [*seconds; 2]));
        entry.seconds = [entry.seconds[0].min(*seconds), entry.seconds[1].max(*seconds)];
        entry.detections += 1;
        if entry.detections == 1 || is_better(detection, entry.confidence) {
            entry.identity.clone_from(identity);
            entry.confidence = *confidence;
            entry.outcome = truth
                .map(|(truth, enrolled)| truth.assess(enrolled, *seconds, bounding_box, identity.as_deref()));
            entry.verdict = entry.outcome.map(outcome_code);
            entry.walker = truth.and_then(|(truth, _)| truth.walker(*seconds, bounding_box));
        }
    }
    let mut tracks: Vec<Track> = tracks.into_values().collect();
    tracks.sort_by(|a, b| a.seconds[0].total_cmp(&b.seconds[0]));
    tracks
}

/// Returns whether a detection outweighs one with this confidence: a name outweighs unknown, a higher confidence a lower one.
fn is_better(detection: &Detection, confidence: f64) -> bool {
    detection.identity.is_some() && detection.confidence > confidence
}

/// Returns a tile for each track and, with ground truth, for each walker without a track of their own.
fn tiles(tracks: &[Track], replay: &Replay, truth: Option<(&GroundTruth, &BTreeSet<&str>)>) -> Vec<Tile> {
    let of_track = |track: &Track| Tile {
        track: Some(track.track),
        identity: track.identity.clone(),
        seconds: track.seconds,
        outcome: track.outcome,
        is_detected: true,
    };
    let mut tiles: Vec<Tile> = tracks.iter().map(of_track).collect();
    let Some((truth, enrolled)) = truth else { return tiles };
    let covered: BTreeSet<u64> = tracks.iter().filter_map(|track| track.walker).collect();
    let shown: BTreeSet<_> = tracks.iter().map(|track| track.track).collect();
    // Detected beside others only, or not at all. The crop of a track without a tile may still show them.
    let mut crops = BTreeMap::new();
    for (id, crop) in replay.crops.by_track.iter().filter(|(id, _)| !shown.contains(*id)) {
        if let Some(walker) = truth.walker(crop.taken, &crop.bounding_box) {
            crops.entry(walker).or_insert(*id);
        }
    }
    let walkers: Vec<Option<u64>> = replay
        .detections
        .iter()
        .map(|detection| truth.walker(detection.seconds, &detection.bounding_box))
        .collect();
    for (walker, name, seconds) in truth.walks(enrolled).filter(|(walker, ..)| !covered.contains(walker)) {
        let mut tile = Tile {
            track: crops.get(&walker).copied(),
            identity: name.map(str::to_owned),
            seconds,
            outcome: None,
            is_detected: false,
        };
        let mut confidence = 0.0;
        for (detection, seen) in replay.detections.iter().zip(&walkers) {
            let Detection { seconds, bounding_box, identity, .. } = detection;
            if *seen == Some(walker) && (!tile.is_detected || is_better(detection, confidence)) {
                confidence = detection.confidence;
                tile.is_detected = true;
                tile.identity.clone_from(identity);
                tile.outcome = Some(truth.assess(enrolled, *seconds, bounding_box, identity.as_deref()));
            }
        }
        tiles.push(tile);
    }
    tiles.sort_by(|a, b| a.seconds[0].total_cmp(&b.seconds[0]));
    tiles
}

/// Returns the code of an outcome in report.json.
fn outcome_code(outcome: IdentificationOutcome) -> &'static str {
    match outcome {
        IdentificationOutcome::Correct(_) => "right",
        IdentificationOutcome::CorrectlyUnknown => "rightly-unknown",
        IdentificationOutcome::Missed => "unknown-though-enrolled",
        IdentificationOutcome::Misidentified => "wrong-name",
        IdentificationOutcome::Unmatched => "nobody-there",
    }
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

/// Formats an RFC 3339 time as `2026-03-04 05:06:07 UTC`; returns other text unchanged.
pub fn format_time(time: &str) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    OffsetDateTime::parse(time, &Rfc3339)
        .ok()
        .and_then(|time| time.to_offset(UtcOffset::UTC).format(&format).ok())
        .unwrap_or_else(|| time.to_owned())
}

#[cfg(test)]
mod tests {
    use facepipe_vision::BoundingBox;

    use super::*;
    use crate::trial::{Crops, TrackCrop};

    fn at(left: f32) -> BoundingBox {
        BoundingBox { left, top: 0.0, right: left + 100.0, bottom: 100.0 }
    }

    fn detection(left: f32, identity: Option<&str>, track: i32, largest: bool) -> Detection {
        Detection {
            seconds: 0.0,
            bounding_box: at(left),
            identity: identity.map(str::to_owned),
            confidence: if identity.is_some() { 0.9 } else { 0.0 },
            track,
            largest,
        }
    }

    #[test]
    fn every_walker_has_a_tile_whether_tracked_or_not() {
        let truth: GroundTruth = serde_json::from_str(
            r#"{"fps":6,"walkers":{"0":{"person":"Ada"},"1":{},"2":{"person":"Bob"},"3":{}},"frames":[[
                {"id":0,"box":[0,0,100,100]},{"id":1,"box":[200,0,300,100]},
                {"id":2,"box":[400,0,500,100]},{"id":3,"box":[600,0,700,100]}]]}"#,
        )
        .unwrap();
        // Ada has a track, stranger 1 is seen in the margin of her crop, the backend finds no face of Bob in his crop, and
        // stranger 3 is not seen at all.
        let crop =
            |left| TrackCrop { seconds: [0.0; 2], taken: 0.0, bounding_box: at(left), jpeg: Vec::new() };
        let by_track = BTreeMap::from([(7, crop(0.0)), (8, crop(400.0))]);
        let replay = Replay {
            seconds: 1.0,
            sent: 2,
            failed: 0,
            uplink_bytes: 0,
            image_bytes: 0,
            crops_without_face: 1,
            left_out: LeftOut::default(),
            detections: vec![detection(0.0, Some("Ada"), 7, true), detection(200.0, None, 7, false)],
            crops: Crops { count: 2, bytes: 0, by_track },
            started: OffsetDateTime::UNIX_EPOCH,
        };
        let enrolled = BTreeSet::from(["Ada", "Bob"]);
        let truth = Some((&truth, &enrolled));
        let tracks = tracks(&replay, truth);
        assert_eq!(tracks.len(), 1);
        let tiles = tiles(&tracks, &replay, truth);
        let shown: Vec<_> = tiles
            .iter()
            .map(|tile| (tile.track, tile.identity.as_deref(), tile.outcome, tile.is_detected))
            .collect();
        assert_eq!(
            shown,
            [
                (Some(7), Some("Ada"), Some(IdentificationOutcome::Correct(0)), true),
                (None, None, Some(IdentificationOutcome::CorrectlyUnknown), true),
                (Some(8), Some("Bob"), None, false),
                (None, None, None, false),
            ]
        );
    }
}
