//! Agreement of tracks with the ground truth of a rendered crowd video: IDF1 (Ristani et al., Performance Measures
//! and a Data Set for Multi-Target, Multi-Camera Tracking, 2016).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use pathfinding::{kuhn_munkres::kuhn_munkres, matrix::Matrix};
use serde::Deserialize;

/// `[left, top, right, bottom]` in pixels of the full frame.
pub type Bounds = [f64; 4];

/// Ground truth read from `<video>.json` beside `<video>.mp4`.
#[derive(Debug, Deserialize)]
pub struct GroundTruth {
    /// Frames per second.
    pub fps: f64,
    walkers: BTreeMap<u64, serde_json::Value>,
    frames: Vec<Vec<Appearance>>,
}

#[derive(Debug, Deserialize)]
struct Appearance {
    id: u64,
    #[serde(rename = "box")]
    bounds: Bounds,
}

/// The faces of one frame, each with the id of its track.
pub type Frame = Vec<(i32, Bounds)>;

/// Agreement of tracks with walkers, in boxes: one walker in one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    /// Boxes of walkers that the walker's own track covers.
    pub correct: usize,
    /// Boxes of walkers.
    pub boxes: usize,
    /// Boxes of tracks.
    pub tracked: usize,
    /// The number of distinct tracks.
    pub tracks: usize,
    /// The number of distinct walkers.
    pub walkers: usize,
    /// Walkers covered by any track in any frame.
    pub seen: BTreeSet<u64>,
}

impl Agreement {
    /// Returns `2 right / (boxes + tracked)`: 1 where every walker has one track in all frames, and there is no other.
    pub fn idf1(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "numbers of boxes are far below 2^52")]
        let ratio = (2 * self.correct) as f64 / (self.boxes + self.tracked).max(1) as f64;
        ratio
    }
}

impl GroundTruth {
    /// Reads the ground truth beside `video`.
    ///
    /// # Panics
    ///
    /// There is none.
    pub fn beside(video: &Path) -> Self {
        let path = video.with_extension("json");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Returns the numbers of all walkers.
    pub fn walkers(&self) -> BTreeSet<u64> {
        self.walkers.keys().copied().collect()
    }

    /// Returns the number of frames.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Compares tracks with walkers. In each frame, boxes are paired one to one so that their overlaps sum up to
    /// the most, from `min_iou` on; then each walker gets the one track, and each track the one walker, so that
    /// most pairs are right.
    ///
    /// # Panics
    ///
    /// The number of frames differs from the ground truth's.
    pub fn compare(&self, frames: &[Frame], min_iou: f64) -> Agreement {
        assert_eq!(frames.len(), self.frames.len(), "frames of the video and of its truth");
        let mut together: BTreeMap<(u64, i32), i64> = BTreeMap::new();
        let mut tracks = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for (truth, found) in self.frames.iter().zip(frames) {
            tracks.extend(found.iter().map(|(id, _)| *id));
            let overlap = |walker: usize, track: usize| match (truth.get(walker), found.get(track)) {
                (Some(walker), Some((_, bounds))) => iou(walker.bounds, *bounds),
                _ => 0.0,
            };
            #[expect(clippy::cast_possible_truncation, reason = "an overlap is 0 to 1")]
            let weight = |walker, track| {
                let overlap = overlap(walker, track);
                if overlap >= min_iou { (overlap * 1e6) as i64 } else { 0 }
            };
            for (walker, track) in assign(truth.len(), found.len(), weight) {
                if let (Some(walker), Some((track, _))) = (truth.get(walker), found.get(track)) {
                    *together.entry((walker.id, *track)).or_default() += 1;
                    seen.insert(walker.id);
                }
            }
        }
        let walkers: Vec<u64> = self.walkers.keys().copied().collect();
        let ids: Vec<i32> = tracks.iter().copied().collect();
        let frames_together = |walker: usize, track: usize| {
            let pair = walkers.get(walker).copied().zip(ids.get(track).copied());
            pair.and_then(|pair| together.get(&pair)).copied().unwrap_or(0)
        };
        let own = assign(walkers.len(), ids.len(), frames_together);
        let correct: i64 = own.into_iter().map(|(walker, track)| frames_together(walker, track)).sum();
        Agreement {
            correct: usize::try_from(correct).unwrap_or(0),
            boxes: self.frames.iter().map(Vec::len).sum(),
            tracked: frames.iter().map(Vec::len).sum(),
            tracks: tracks.len(),
            walkers: walkers.len(),
            seen,
        }
    }
}

/// Returns the pairs (row, column) with the largest sum of weights, without those of weight 0.
fn assign(rows: usize, columns: usize, weight: impl Fn(usize, usize) -> i64) -> Vec<(usize, usize)> {
    if rows == 0 || columns == 0 {
        return Vec::new();
    }
    let pairs: Vec<(usize, usize)> = if rows <= columns {
        let (_, assigned) = kuhn_munkres(&Matrix::from_fn(rows, columns, |(r, c)| weight(r, c)));
        assigned.into_iter().enumerate().collect()
    } else {
        let (_, assigned) = kuhn_munkres(&Matrix::from_fn(columns, rows, |(c, r)| weight(r, c)));
        assigned.into_iter().enumerate().map(|(c, r)| (r, c)).collect()
    };
    pairs.into_iter().filter(|&(row, column)| weight(row, column) > 0).collect()
}

/// Returns the intersection over union. Does not use the elements' function, since it measures their boxes.
fn iou(a: Bounds, b: Bounds) -> f64 {
    let [al, at, ar, ab] = a;
    let [bl, bt, br, bb] = b;
    let shared = (ar.min(br) - al.max(bl)).max(0.0) * (ab.min(bb) - at.max(bt)).max(0.0);
    let union = (ar - al) * (ab - at) + (br - bl) * (bb - bt) - shared;
    if union > 0.0 { shared / union } else { 0.0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Returns a truth in which walker 3 stands still for four frames, walker 8 for the last two.
    fn truth() -> GroundTruth {
        let three = r#"{"id":3,"box":[0,0,10,10]}"#;
        let both = format!(r#"{three},{{"id":8,"box":[50,0,60,10]}}"#);
        let text = format!(
            r#"{{"fps":6,"size":[100,100],"walkers":{{"3":{{"person":"A"}},"8":{{"person":"B"}}}},
                "frames":[[{three}],[{three}],[{both}],[{both}]]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    const AT_THREE: Bounds = [0.0, 0.0, 10.0, 9.0];
    const AT_EIGHT: Bounds = [51.0, 0.0, 60.0, 10.0];

    #[test]
    fn one_track_for_each_walker_is_perfect() {
        let both = vec![(1, AT_THREE), (2, AT_EIGHT)];
        let found = [vec![(1, AT_THREE)], vec![(1, AT_THREE)], both.clone(), both];
        let agreement = truth().compare(&found, 0.5);
        assert_eq!((agreement.correct, agreement.boxes, agreement.tracked), (6, 6, 6));
        assert_eq!((agreement.tracks, agreement.walkers), (2, 2));
        assert!((agreement.idf1() - 1.0).abs() < 1e-12);
        assert_eq!(agreement.seen, BTreeSet::from([3, 8]));
    }

    #[test]
    fn a_split_track_an_exchange_and_a_false_box_cost() {
        // Track 1 covers walker 3 in two frames, then walker 8; track 2 continues walker 3; track 9 covers no walker.
        let found = [
            vec![(1, AT_THREE)],
            vec![(1, AT_THREE)],
            vec![(2, AT_THREE), (1, AT_EIGHT)],
            vec![(2, AT_THREE), (1, AT_EIGHT), (9, [80.0, 80.0, 90.0, 90.0])],
        ];
        let agreement = truth().compare(&found, 0.5);
        // Best: 8 - 1 and 3 - 2, two boxes each, as good as 3 - 1 alone with two; one box in seven covers no walker.
        assert_eq!((agreement.correct, agreement.tracked, agreement.tracks), (4, 7, 3));
        assert!((agreement.idf1() - 8.0 / 13.0).abs() < 1e-12);
    }

    #[test]
    fn boxes_that_overlap_too_little_are_not_the_walker() {
        let far = [4.0, 0.0, 14.0, 10.0];
        let found = [vec![(1, far)], vec![], vec![], vec![]];
        let agreement = truth().compare(&found, 0.5);
        assert_eq!((agreement.correct, agreement.seen.len()), (0, 0), "6/14 shared");
        assert_eq!(truth().compare(&found, 0.4).correct, 1);
        assert_eq!(truth().compare(&[vec![], vec![], vec![], vec![]], 0.5).idf1(), 0.0);
    }
}
