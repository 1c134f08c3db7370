//! Tracks faces from frame to frame: detections in, track ids out. Independent of GStreamer.
//!
//! As in SORT (Bewley et al. 2016), a Kalman filter predicts the box of each track, and detections are assigned to tracks so
//! that the sum of their overlaps is largest. As in ByteTrack (Zhang et al. 2022), faces (above the score threshold) are
//! assigned first, and candidates (below it) may only continue a track. By hand: it counts time rather than frames, since
//! cameras drop frames and the detector skips some.
//!
//! A small face that walks fast has left its own box by the next frame at 6 frames per second, and would be lost by plain
//! overlap. So what is still unassigned is compared once more with both boxes expanded by the uncertainty of the prediction:
//! a lot for a new face at a low frame rate, hardly at all for one that has been tracked for a while.

mod assignment;
mod kalman;

use std::time::Duration;

use assignment::assign;
use facepipe_detector::{BoundingBox, Detection};
use kalman::KalmanFilter;

/// Expansion for the second comparison, in standard deviations of the prediction…
const EXPANSION_DEVIATIONS: f64 = 1.5;
/// … but at most this fraction of the box's width and height, on each side.
const MAX_EXPANSION: f64 = 0.6;
/// Of two boxes that are compared after expansion, the larger has at most this many times the area of the other.
const MAX_AREA_RATIO: f64 = 2.5;

/// Where a track's face should be in a frame that was not searched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// The track's id.
    pub track_id: i32,
    /// The predicted box, which may reach beyond the frame, and the score of the last detection.
    pub detection: Detection,
}

/// The tracks after a searched frame.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Update {
    /// For each face the id of its track, `None` while it has none.
    pub faces: Vec<Option<i32>>,
    /// For each candidate the id of its track, `None` where it continues none.
    pub candidates: Vec<Option<i32>>,
    /// Ids of the tracks that ended, in ascending order.
    pub ended: Vec<i32>,
}

/// When tracks begin, continue and end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrackerConfig {
    /// A track ends when its face has not been detected for longer.
    pub max_age: Duration,
    /// A track gets its id after detections in this many searched frames in a row; 0 counts as 1.
    pub min_hits: u32,
    /// A detection continues a track if its box and the predicted one have at least this intersection over union, above 0 and
    /// up to 1.
    pub iou_threshold: f64,
}

impl Default for TrackerConfig {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(2), min_hits: 1, iou_threshold: 0.2 }
    }
}

#[derive(Debug)]
struct Track {
    id: Option<i32>,
    /// Searched frames with a detection of it.
    hits: u32,
    /// As of the last searched frame.
    filter: KalmanFilter,
    first_seen: Duration,
    last_seen: Duration,
    /// Number of the searched frame of its last detection.
    seen_in: u64,
    score: f64,
}

impl Track {
    fn new(detection: &Detection, time: Duration, search: u64) -> Self {
        Self {
            id: None,
            hits: 1,
            filter: KalmanFilter::new(&detection.bounding_box),
            first_seen: time,
            last_seen: time,
            seen_in: search,
            score: detection.score,
        }
    }

    fn correct(&mut self, detection: &Detection, time: Duration, search: u64) {
        self.filter.correct(&detection.bounding_box);
        self.hits = self.hits.saturating_add(1);
        self.last_seen = time;
        self.seen_in = search;
        self.score = detection.score;
    }
}

/// The rounds in which detections are assigned to tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Faces that overlap the prediction.
    Faces,
    /// Faces that overlap it once both boxes are expanded by its uncertainty.
    ExpandedFaces,
    /// Candidates that overlap the prediction.
    Candidates,
}

/// Tracks the faces of one camera.
#[derive(Debug, Default)]
pub struct Tracker {
    tracks: Vec<Track>,
    /// The last id. Ids are never reused.
    last_id: i32,
    last_frame: Option<Duration>,
    /// The last searched frame.
    last_search: Option<Duration>,
    /// Number of the last searched frame. Frames may have the same time, so they are identified by number.
    searches: u64,
}

impl Tracker {
    /// Updates the tracks with the detections of a searched frame. `time` is measured from any fixed moment and does not fall; a
    /// frame that seems earlier than the one before counts as simultaneous.
    ///
    /// After a pause longer than `max_age` without any frame, all tracks end first.
    pub fn update(
        &mut self,
        time: Duration,
        faces: &[Detection],
        candidates: &[Detection],
        config: &TrackerConfig,
    ) -> Update {
        let (time, mut ended) = self.begin_frame(time, config);
        let seconds = self.last_search.map_or(0.0, |last| time.saturating_sub(last).as_secs_f64());
        let searches = self.searches;
        self.end(&mut ended, |track| {
            track.seen_in < searches && time.saturating_sub(track.last_seen) > config.max_age
        });
        for track in &mut self.tracks {
            track.filter = track.filter.predicted(seconds);
        }

        let search = searches.saturating_add(1);
        let mut is_taken = vec![false; self.tracks.len()];
        let mut face_tracks: Vec<Option<usize>> = vec![None; faces.len()];
        let mut candidate_tracks: Vec<Option<usize>> = vec![None; candidates.len()];
        self.associate(Round::Faces, faces, config, &mut face_tracks, &mut is_taken);
        self.associate(Round::ExpandedFaces, faces, config, &mut face_tracks, &mut is_taken);
        self.associate(Round::Candidates, candidates, config, &mut candidate_tracks, &mut is_taken);
        for (detections, tracks) in [(faces, &face_tracks), (candidates, &candidate_tracks)] {
            for (detection, &track) in detections.iter().zip(tracks) {
                if let Some(track) = track.and_then(|track| self.tracks.get_mut(track)) {
                    track.correct(detection, time, search);
                }
            }
        }
        for (face, track) in faces.iter().zip(&mut face_tracks) {
            if track.is_none() && !face.bounding_box.is_empty() {
                *track = Some(self.tracks.len());
                self.tracks.push(Track::new(face, time, search));
            }
        }
        for track in &mut self.tracks {
            if track.id.is_none() && track.seen_in == search && track.hits >= config.min_hits {
                self.last_id = self.last_id.saturating_add(1);
                track.id = Some(self.last_id);
            }
        }
        let id =
            |track: Option<usize>| track.and_then(|track| self.tracks.get(track)).and_then(|track| track.id);
        let [faces, candidates] =
            [face_tracks, candidate_tracks].map(|tracks| tracks.into_iter().map(id).collect());
        self.end(&mut ended, |track| {
            // Not confirmed yet, and not detected now.
            let unconfirmed = track.id.is_none() && track.seen_in < search;
            unconfirmed || time.saturating_sub(track.last_seen) > config.max_age
        });
        self.last_search = Some(time);
        self.searches = search;
        ended.sort_unstable();
        Update { faces, candidates, ended }
    }

    /// Predicts the faces of the last searched frame for a frame that was not searched. Returns them and the tracks that ended.
    ///
    /// No track ends for want of a detection here, unless `max_age` has passed without any frame.
    pub fn predict(&mut self, time: Duration, config: &TrackerConfig) -> (Vec<Prediction>, Vec<i32>) {
        let (time, ended) = self.begin_frame(time, config);
        let Some(searched) = self.last_search else { return (Vec::new(), ended) };
        let seconds = time.saturating_sub(searched).as_secs_f64();
        let predictions = self.tracks.iter().filter_map(|track| {
            let seen = track.seen_in == self.searches && time.saturating_sub(searched) <= config.max_age;
            let track_id = track.id.filter(|_| seen)?;
            let bounding_box = track.filter.predicted(seconds).bounding_box();
            Some(Prediction { track_id, detection: Detection { bounding_box, score: track.score } })
        });
        (predictions.collect(), ended)
    }

    /// Returns the time of the frame in which a live track began.
    pub fn first_seen(&self, id: i32) -> Option<Duration> {
        self.tracks.iter().find(|track| track.id == Some(id)).map(|track| track.first_seen)
    }

    /// Ends all tracks and returns their ids, which are never reused.
    pub fn reset(&mut self) -> Vec<i32> {
        (self.last_frame, self.last_search) = (None, None);
        let mut ended: Vec<i32> = self.tracks.drain(..).filter_map(|track| track.id).collect();
        ended.sort_unstable();
        ended
    }

    /// Returns the frame's time, and the tracks that ended in a pause before it.
    fn begin_frame(&mut self, time: Duration, config: &TrackerConfig) -> (Duration, Vec<i32>) {
        let time = self.last_frame.map_or(time, |last| time.max(last));
        let paused = self.last_frame.is_some_and(|last| time.saturating_sub(last) > config.max_age);
        let ended = if paused { self.reset() } else { Vec::new() };
        self.last_frame = Some(time);
        (time, ended)
    }

    fn end(&mut self, ended: &mut Vec<i32>, is_over: impl Fn(&Track) -> bool) {
        self.tracks.retain(|track| {
            let over = is_over(track);
            if over {
                ended.extend(track.id);
            }
            !over
        });
    }

    /// Assigns detections that have no track yet to tracks that are not taken yet.
    fn associate(
        &self,
        round: Round,
        detections: &[Detection],
        config: &TrackerConfig,
        assigned: &mut [Option<usize>],
        is_taken: &mut [bool],
    ) {
        let free_boxes: Vec<(usize, BoundingBox<f64>)> = detections
            .iter()
            .zip(&*assigned)
            .enumerate()
            .filter_map(|(index, (detection, track))| {
                track.is_none().then_some((index, detection.bounding_box))
            })
            .collect();
        let free_tracks: Vec<(usize, BoundingBox<f64>, (f64, f64))> = self
            .tracks
            .iter()
            .zip(&*is_taken)
            .enumerate()
            // A candidate in the place of a face that was not detected last time is most likely noise.
            .filter(|(_, (track, taken))| {
                !**taken && (round != Round::Candidates || track.seen_in >= self.searches)
            })
            .map(|(index, (track, _))| {
                let (x, y) = track.filter.uncertainty();
                let margin = (EXPANSION_DEVIATIONS * x, EXPANSION_DEVIATIONS * y);
                (index, track.filter.bounding_box(), margin)
            })
            .collect();
        let overlap = |row: usize, column: usize| {
            let (Some((_, predicted, margin)), Some((_, detected))) =
                (free_tracks.get(row), free_boxes.get(column))
            else {
                return 0.0;
            };
            match round {
                Round::ExpandedFaces => expanded_overlap(predicted, detected, *margin),
                Round::Faces | Round::Candidates => predicted.iou(detected),
            }
        };
        for (row, column) in assign(free_tracks.len(), free_boxes.len(), config.iou_threshold, overlap) {
            let (Some((track, ..)), Some((detection, _))) = (free_tracks.get(row), free_boxes.get(column))
            else {
                continue;
            };
            if let (Some(assigned), Some(taken)) = (assigned.get_mut(*detection), is_taken.get_mut(*track)) {
                *assigned = Some(*track);
                *taken = true;
            }
        }
    }
}

/// Returns the overlap of the boxes expanded by `margin` on each side; 0 where their sizes differ too much for one face.
fn expanded_overlap(predicted: &BoundingBox<f64>, detected: &BoundingBox<f64>, (x, y): (f64, f64)) -> f64 {
    let (predicted_area, detected_area) = (predicted.area(), detected.area());
    if predicted_area.max(detected_area) > MAX_AREA_RATIO * predicted_area.min(detected_area) {
        return 0.0;
    }
    let (width, height) =
        (predicted.width().min(detected.width()), predicted.height().min(detected.height()));
    let margin = (x.min(MAX_EXPANSION * width), y.min(MAX_EXPANSION * height));
    predicted.expanded(margin).iou(&detected.expanded(margin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(left: f64, top: f64) -> BoundingBox<f64> {
        BoundingBox::new(left, top, left + 80.0, top + 100.0)
    }

    /// A detection, and whether it is a candidate.
    type Observed = (Detection, bool);

    fn seen(bounding_box: BoundingBox<f64>) -> Observed {
        (Detection { bounding_box, score: 0.9 }, false)
    }

    fn weak(bounding_box: BoundingBox<f64>) -> Observed {
        (Detection { bounding_box, score: 0.4 }, true)
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// The tracker and its configuration.
    struct Run(Tracker, TrackerConfig);

    impl Run {
        fn new(config: TrackerConfig) -> Self {
            Self(Tracker::default(), config)
        }

        fn update(&mut self, milliseconds: u64, observed: &[Observed]) -> Update {
            let of_kind = |wanted: bool| -> Vec<Detection> {
                let kind = observed.iter().filter(|(_, is_candidate)| *is_candidate == wanted);
                kind.map(|(detection, _)| *detection).collect()
            };
            self.0.update(ms(milliseconds), &of_kind(false), &of_kind(true), &self.1)
        }

        /// Returns the ids in the order of the detections.
        fn ids(&mut self, milliseconds: u64, observed: &[Observed]) -> Vec<Option<i32>> {
            let Update { faces, candidates, .. } = self.update(milliseconds, observed);
            let (mut faces, mut candidates) = (faces.into_iter(), candidates.into_iter());
            let next = |(_, is_candidate): &Observed| {
                if *is_candidate { candidates.next() } else { faces.next() }.unwrap()
            };
            observed.iter().map(next).collect()
        }
    }

    #[test]
    fn the_same_settings_track_faces_at_any_frame_rate() {
        for rate in [6, 10, 15, 30, 60] {
            let mut run = Run::new(TrackerConfig::default());
            // Four of its heights per second to the right, down by half a height per second.
            for frame in 0..3 * rate {
                let milliseconds = frame * 1000 / rate;
                let seconds = Duration::from_millis(milliseconds).as_secs_f64();
                let at = face(100.0 + 400.0 * seconds, 100.0 + 50.0 * seconds);
                assert_eq!(run.ids(milliseconds, &[seen(at)]), [Some(1)], "{rate} per second, frame {frame}");
            }
        }
    }

    #[test]
    fn irregular_frame_intervals_keep_the_track() {
        let mut run = Run::new(TrackerConfig::default());
        let mut milliseconds = 0;
        for step in [33, 33, 500, 33, 120, 33, 700, 33, 33, 1000, 250] {
            milliseconds += step;
            let at = face(0.2 * Duration::from_millis(milliseconds).as_secs_f64() * 1000.0, 50.0);
            assert_eq!(run.ids(milliseconds, &[seen(at)]), [Some(1)], "after {milliseconds} ms");
        }
    }

    #[test]
    fn close_neighbours_keep_their_own_tracks() {
        let mut run = Run::new(TrackerConfig::default());
        let (left, right) = (face(100.0, 100.0), face(185.0, 100.0));
        assert_eq!(run.ids(0, &[seen(left), seen(right)]), [Some(1), Some(2)]);
        for frame in 1..20 {
            // One of them is missed at times.
            let expected = if frame % 3 == 0 { vec![(right, 2)] } else { vec![(right, 2), (left, 1)] };
            let boxes: Vec<_> = expected.iter().map(|(bounding_box, _)| seen(*bounding_box)).collect();
            let ids: Vec<_> = expected.iter().map(|(_, id)| Some(*id)).collect();
            assert_eq!(run.ids(frame * 166, &boxes), ids, "frame {frame}");
        }
    }

    #[test]
    fn a_face_of_a_very_different_size_begins_a_new_track() {
        let mut run = Run::new(TrackerConfig::default());
        run.update(0, &[seen(face(100.0, 100.0))]);
        let small = BoundingBox::new(150.0, 180.0, 175.0, 210.0);
        assert_eq!(run.ids(40, &[seen(small)]), [Some(2)]);
    }

    #[test]
    fn the_iou_threshold_limits_the_distance_from_the_prediction() {
        for (iou_threshold, expected) in [(0.2, Some(1)), (0.6, Some(2))] {
            let mut run = Run::new(TrackerConfig { iou_threshold, ..TrackerConfig::default() });
            // It has stood still for so long that its uncertainty is small.
            for frame in 0..50 {
                run.update(frame * 40, &[seen(face(100.0, 100.0))]);
            }
            // 40 of 120 pixels overlap.
            assert_eq!(run.ids(2000, &[seen(face(140.0, 100.0))]), [expected], "{iou_threshold}");
        }
    }

    #[test]
    fn faces_are_assigned_before_candidates() {
        let mut run = Run::new(TrackerConfig::default());
        run.update(0, &[seen(face(100.0, 100.0))]);
        // The weak one fits better.
        let boxes = [weak(face(100.0, 100.0)), seen(face(130.0, 100.0))];
        assert_eq!(run.ids(40, &boxes), [None, Some(1)]);
        assert_eq!(run.ids(80, &[weak(face(135.0, 100.0))]), [Some(1)], "alone it will do");
        assert_eq!(run.ids(120, &[weak(face(600.0, 100.0))]), [None], "but not begin anything");
    }

    #[test]
    fn ids_are_never_reused_and_each_end_is_reported_once() {
        let mut run = Run::new(TrackerConfig { max_age: ms(100), ..TrackerConfig::default() });
        let mut given = Vec::new();
        let mut ended = Vec::new();
        for round in 0..20 {
            let begin = 1000 * round;
            let update = run.update(begin, &[seen(face(100.0, 100.0)), seen(face(600.0, 100.0))]);
            given.extend(update.faces.into_iter().flatten());
            ended.extend(update.ended);
            // Reset, faded away or cut off by a pause without frames, in turn.
            match round % 3 {
                0 => ended.extend(run.0.reset()),
                1 => ended.extend((1..5).flat_map(|i| run.update(begin + 50 * i, &[]).ended)),
                _ => {}
            }
        }
        ended.extend(run.0.reset());
        let all: Vec<i32> = (1..=40).collect();
        assert_eq!((given, ended), (all.clone(), all));
    }

    #[test]
    fn predictions_continue_from_the_last_search() {
        let config = TrackerConfig::default();
        let mut run = Run::new(config);
        for frame in 0..20_u32 {
            run.update(u64::from(frame) * 100, &[seen(face(100.0 + 10.0 * f64::from(frame), 100.0))]);
        }
        for (milliseconds, left) in [(1950, 295.0), (2000, 300.0), (2100, 310.0)] {
            let (predictions, ended) = run.0.predict(ms(milliseconds), &config);
            assert!(ended.is_empty());
            let [only] = &predictions[..] else { panic!("{predictions:?}") };
            assert_eq!((only.track_id, only.detection.score), (1, 0.9));
            let predicted = only.detection.bounding_box;
            assert!((predicted.left - left).abs() < 1.0, "{milliseconds}: {predicted:?}");
        }
        assert_eq!(run.ids(2200, &[seen(face(320.0, 100.0)), seen(face(900.0, 100.0))]), [Some(1), Some(2)]);
        assert_eq!([1, 2, 3].map(|id| run.0.first_seen(id)), [Some(ms(0)), Some(ms(2200)), None]);
    }
}
