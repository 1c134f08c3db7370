//! The ground truth of a rendered crowd video: the walkers of every frame.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde::Deserialize;

/// Minimum IoU of a detection with a walker's box. Detected and rendered boxes differ in size by up to a third, so 0.5 would
/// miss correct matches.
const MATCH_IOU: f64 = 0.3;

/// `[left, top, right, bottom]` in pixels of the full frame.
pub type Bounds = [f64; 4];

/// Ground truth read from `<video>.json` beside `<video>.mp4`.
#[derive(Debug, Deserialize)]
pub struct GroundTruth {
    fps: f64,
    walkers: BTreeMap<u64, Walker>,
    frames: Vec<Vec<Appearance>>,
}

#[derive(Debug, Deserialize)]
struct Walker {
    /// None for a stranger.
    #[serde(default)]
    person: Option<String>,
}

impl Walker {
    fn is_among(&self, enrolled: &BTreeSet<&str>) -> bool {
        self.person.as_deref().is_some_and(|person| enrolled.contains(person))
    }
}

/// Correctness of an identification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentificationOutcome {
    /// The correct name, of the walker with this number.
    Correct(u64),
    /// Unknown, and not enrolled.
    CorrectlyUnknown,
    /// Unknown, though enrolled.
    Missed,
    /// A wrong name.
    Misidentified,
    /// No walker at this position.
    Unmatched,
}

#[derive(Debug, Deserialize)]
struct Appearance {
    id: u64,
    #[serde(rename = "box")]
    bounds: Bounds,
}

/// Counts of detections by correctness.
#[derive(Debug, Default)]
pub struct Score {
    /// Detections with the correct identity: the name of the enrolled, unknown for everybody else.
    pub correct: usize,
    /// Correct detections that are unknown.
    pub correctly_unknown: usize,
    /// All detections.
    pub total: usize,
    /// Detections without a matching walker (wrong).
    pub unmatched: usize,
    /// Unknown detections of enrolled walkers (wrong).
    pub missed: usize,
    /// Detections with a wrong name (wrong).
    pub misidentified: usize,
    /// Walkers with at least one correct name.
    pub recognized_walkers: BTreeSet<u64>,
}

impl GroundTruth {
    /// Reads the ground truth beside `video`, if there is one.
    ///
    /// # Errors
    /// The file is not valid ground truth.
    pub fn beside(video: &Path) -> Result<Option<Self>> {
        let path = video.with_extension("json");
        let Ok(text) = fs::read_to_string(&path) else { return Ok(None) };
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not valid ground truth", path.display()))
            .map(Some)
    }

    /// Returns the number of walkers.
    pub fn walkers(&self) -> usize {
        self.walkers.len()
    }

    /// Returns the number of walkers who are among `enrolled`.
    pub fn enrolled_walkers(&self, enrolled: &BTreeSet<&str>) -> usize {
        self.walkers.values().filter(|walker| walker.is_among(enrolled)).count()
    }

    /// Assesses a detection and counts it in `score`; see [`Self::assess`].
    pub fn score(
        &self,
        score: &mut Score,
        enrolled: &BTreeSet<&str>,
        seconds: f64,
        bounds: Bounds,
        identity: Option<&str>,
    ) {
        score.total += 1;
        match self.assess(enrolled, seconds, bounds, identity) {
            IdentificationOutcome::Correct(walker) => {
                score.correct += 1;
                score.recognized_walkers.insert(walker);
            }
            IdentificationOutcome::CorrectlyUnknown => {
                score.correct += 1;
                score.correctly_unknown += 1;
            }
            IdentificationOutcome::Missed => score.missed += 1,
            IdentificationOutcome::Misidentified => score.misidentified += 1,
            IdentificationOutcome::Unmatched => score.unmatched += 1,
        }
    }

    /// Assesses a detection at `seconds` since the start of the video, with its box and identity (`None`: unknown).
    pub fn assess(
        &self,
        enrolled: &BTreeSet<&str>,
        seconds: f64,
        bounds: Bounds,
        identity: Option<&str>,
    ) -> IdentificationOutcome {
        let Some((id, walker)) = self.walker_at(seconds, bounds) else {
            return IdentificationOutcome::Unmatched;
        };
        match identity {
            Some(name) if walker.person.as_deref() == Some(name) => IdentificationOutcome::Correct(id),
            Some(_) => IdentificationOutcome::Misidentified,
            None if walker.is_among(enrolled) => IdentificationOutcome::Missed,
            None => IdentificationOutcome::CorrectlyUnknown,
        }
    }

    fn walker_at(&self, seconds: f64, bounds: Bounds) -> Option<(u64, &Walker)> {
        let frame = self
            .frames
            .iter()
            .enumerate()
            .min_by(|(a, _), (b, _)| self.distance(*a, seconds).total_cmp(&self.distance(*b, seconds)))?;
        let (overlap, nearest) = frame
            .1
            .iter()
            .map(|appearance| (iou(appearance.bounds, bounds), appearance.id))
            .max_by(|a, b| a.0.total_cmp(&b.0))?;
        if overlap < MATCH_IOU {
            return None;
        }
        self.walkers.get(&nearest).map(|walker| (nearest, walker))
    }

    #[expect(clippy::cast_precision_loss, reason = "frame numbers are far below 2^52")]
    fn distance(&self, frame: usize, seconds: f64) -> f64 {
        (frame as f64 / self.fps - seconds).abs()
    }
}

fn iou(a: Bounds, b: Bounds) -> f64 {
    let [al, at, ar, ab] = a;
    let [bl, bt, br, bb] = b;
    let shared = (ar.min(br) - al.max(bl)).max(0.0) * (ab.min(bb) - at.max(bt)).max(0.0);
    let union = (ar - al) * (ab - at) + (br - bl) * (bb - bt) - shared;
    if union > 0.0 { shared / union } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth() -> GroundTruth {
        serde_json::from_str(
            r#"{"fps":6,"size":[1920,1080],"walkers":{"0":{"person":"A"},"3":{"person":"B"}},
                "frames":[[{"id":0,"box":[0,0,100,100]}],[{"id":0,"box":[10,0,110,100]},{"id":3,"box":[500,0,600,100]}]]}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_detection_counts_for_the_walker_it_overlaps() {
        let mut score = Score::default();
        let enrolled = BTreeSet::from(["A", "B"]);
        truth().score(&mut score, &enrolled, 1.0 / 6.0, [505.0, 5.0, 595.0, 95.0], Some("B"));
        assert_eq!((score.correct, score.total), (1, 1));
        assert_eq!(score.recognized_walkers, BTreeSet::from([3]));
    }

    #[test]
    fn wrong_unknown_and_unexplained_detections_count_against_accuracy() {
        let mut score = Score::default();
        let (truth, enrolled) = (truth(), BTreeSet::from(["A", "B"]));
        truth.score(&mut score, &enrolled, 0.0, [0.0, 0.0, 100.0, 100.0], Some("B"));
        truth.score(&mut score, &enrolled, 0.0, [0.0, 0.0, 100.0, 100.0], None);
        truth.score(&mut score, &enrolled, 0.0, [800.0, 800.0, 900.0, 900.0], Some("A"));
        assert_eq!((score.correct, score.total, score.missed, score.unmatched), (0, 3, 1, 1));
        assert_eq!((score.misidentified, score.correctly_unknown), (1, 0));
        assert!(score.recognized_walkers.is_empty());
    }

    #[test]
    fn unknown_is_right_for_a_walker_who_is_not_enrolled_and_a_name_is_wrong() {
        let mut score = Score::default();
        let (truth, enrolled) = (truth(), BTreeSet::from(["B"]));
        truth.score(&mut score, &enrolled, 0.0, [0.0, 0.0, 100.0, 100.0], None);
        truth.score(&mut score, &enrolled, 0.0, [0.0, 0.0, 100.0, 100.0], Some("B"));
        assert_eq!((score.correct, score.correctly_unknown, score.misidentified, score.missed), (1, 1, 1, 0));
        assert!(score.recognized_walkers.is_empty(), "nobody who is not enrolled is recognised");
        assert_eq!((truth.walkers(), truth.enrolled_walkers(&enrolled)), (2, 1));
    }
}
