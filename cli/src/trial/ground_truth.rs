//! The ground truth of a rendered crowd video: the walkers of every frame.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use facepipe_vision::BoundingBox;
use serde::{Deserialize, Serialize};

/// Minimum IoU of a detection with a walker's box. Detected and rendered boxes differ in size by up to a third, so 0.5 would
/// miss correct matches.
const MATCH_IOU: f32 = 0.3;

/// Ground truth read from `<video>.json` beside `<video>.mp4`.
#[derive(Debug, Deserialize)]
pub struct GroundTruth {
    fps: f64,
    walkers: BTreeMap<u64, Walker>,
    frames: Vec<Vec<Appearance>>,
}

/// A person who walks by.
#[derive(Debug, Serialize, Deserialize)]
pub struct Walker {
    /// The name; none for a stranger.
    #[serde(default)]
    pub person: Option<String>,
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

/// A walker's face in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Appearance {
    /// Number of the walker.
    pub id: u64,
    /// Bounds of the face in pixels of the frame.
    #[serde(rename = "box", with = "edges")]
    pub bounding_box: BoundingBox,
}

/// The JSON form of a box, `[left, top, right, bottom]`.
mod edges {
    use facepipe_vision::BoundingBox;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(bounding_box: &BoundingBox, serializer: S) -> Result<S::Ok, S::Error> {
        let BoundingBox { left, top, right, bottom } = *bounding_box;
        [left, top, right, bottom].serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BoundingBox, D::Error> {
        let [left, top, right, bottom] = Deserialize::deserialize(deserializer)?;
        Ok(BoundingBox { left, top, right, bottom })
    }
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
        bounding_box: &BoundingBox,
        identity: Option<&str>,
    ) {
        score.total += 1;
        match self.assess(enrolled, seconds, bounding_box, identity) {
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
        bounding_box: &BoundingBox,
        identity: Option<&str>,
    ) -> IdentificationOutcome {
        let Some((id, walker)) = self.walker_at(seconds, bounding_box) else {
            return IdentificationOutcome::Unmatched;
        };
        match identity {
            Some(name) if walker.person.as_deref() == Some(name) => IdentificationOutcome::Correct(id),
            Some(_) => IdentificationOutcome::Misidentified,
            None if walker.is_among(enrolled) => IdentificationOutcome::Missed,
            None => IdentificationOutcome::CorrectlyUnknown,
        }
    }

    /// Returns the number of the walker at this time and position, if there is one.
    pub fn walker(&self, seconds: f64, bounding_box: &BoundingBox) -> Option<u64> {
        self.walker_at(seconds, bounding_box).map(|(id, _)| id)
    }

    /// Returns each walker's number, name (none unless among `enrolled`) and the times of the first and last frame, seconds.
    pub fn walks<'a>(
        &'a self,
        enrolled: &'a BTreeSet<&str>,
    ) -> impl Iterator<Item = (u64, Option<&'a str>, [f64; 2])> {
        self.walkers.iter().map(move |(&id, walker)| {
            let is_in = |frame: &[Appearance]| frame.iter().any(|appearance| appearance.id == id);
            let first = self.frames.iter().position(|frame| is_in(frame)).unwrap_or_default();
            let last = self.frames.iter().rposition(|frame| is_in(frame)).unwrap_or_default();
            let name = walker.person.as_deref().filter(|person| enrolled.contains(person));
            (id, name, [self.time(first), self.time(last)])
        })
    }

    fn walker_at(&self, seconds: f64, bounding_box: &BoundingBox) -> Option<(u64, &Walker)> {
        let distance = |frame: usize| (self.time(frame) - seconds).abs();
        let (_, frame) =
            self.frames.iter().enumerate().min_by(|(a, _), (b, _)| distance(*a).total_cmp(&distance(*b)))?;
        let (_, id) = frame
            .iter()
            .map(|appearance| (appearance.bounding_box.iou(bounding_box), appearance.id))
            .filter(|(overlap, _)| *overlap >= MATCH_IOU)
            .max_by(|a, b| a.0.total_cmp(&b.0))?;
        self.walkers.get(&id).map(|walker| (id, walker))
    }

    /// Returns the time of a frame, seconds.
    #[expect(clippy::cast_precision_loss, reason = "frame numbers are far below 2^52")]
    fn time(&self, frame: usize) -> f64 {
        frame as f64 / self.fps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed([left, top, right, bottom]: [f32; 4]) -> BoundingBox {
        BoundingBox { left, top, right, bottom }
    }

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
        truth().score(&mut score, &enrolled, 1.0 / 6.0, &boxed([505.0, 5.0, 595.0, 95.0]), Some("B"));
        assert_eq!((score.correct, score.total), (1, 1));
        assert_eq!(score.recognized_walkers, BTreeSet::from([3]));
    }

    #[test]
    fn wrong_unknown_and_unexplained_detections_count_against_accuracy() {
        let mut score = Score::default();
        let (truth, enrolled) = (truth(), BTreeSet::from(["A", "B"]));
        truth.score(&mut score, &enrolled, 0.0, &boxed([0.0, 0.0, 100.0, 100.0]), Some("B"));
        truth.score(&mut score, &enrolled, 0.0, &boxed([0.0, 0.0, 100.0, 100.0]), None);
        truth.score(&mut score, &enrolled, 0.0, &boxed([800.0, 800.0, 900.0, 900.0]), Some("A"));
        assert_eq!((score.correct, score.total, score.missed, score.unmatched), (0, 3, 1, 1));
        assert_eq!((score.misidentified, score.correctly_unknown), (1, 0));
        assert!(score.recognized_walkers.is_empty());
    }

    #[test]
    fn unknown_is_right_for_a_walker_who_is_not_enrolled_and_a_name_is_wrong() {
        let mut score = Score::default();
        let (truth, enrolled) = (truth(), BTreeSet::from(["B"]));
        truth.score(&mut score, &enrolled, 0.0, &boxed([0.0, 0.0, 100.0, 100.0]), None);
        truth.score(&mut score, &enrolled, 0.0, &boxed([0.0, 0.0, 100.0, 100.0]), Some("B"));
        assert_eq!((score.correct, score.correctly_unknown, score.misidentified, score.missed), (1, 1, 1, 0));
        assert!(score.recognized_walkers.is_empty(), "nobody who is not enrolled is recognised");
        assert_eq!((truth.walkers(), truth.enrolled_walkers(&enrolled)), (2, 1));
    }

    #[test]
    fn walks_have_the_times_of_their_frames_and_names_of_the_enrolled_only() {
        let (truth, enrolled) = (truth(), BTreeSet::from(["B"]));
        let walks: Vec<_> = truth.walks(&enrolled).collect();
        assert_eq!(walks, [(0, None, [0.0, 1.0 / 6.0]), (3, Some("B"), [1.0 / 6.0, 1.0 / 6.0])]);
        assert_eq!(truth.walker(0.2, &boxed([500.0, 0.0, 600.0, 100.0])), Some(3));
        assert_eq!(truth.walker(0.2, &boxed([800.0, 0.0, 900.0, 100.0])), None);
    }
}
