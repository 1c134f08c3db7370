//! Follows faces from frame to frame: boxes in, ids out. No GStreamer in it.
//!
//! As in SORT (Bewley et al. 2016), each track foretells its box by a Kalman filter, and boxes are assigned to
//! tracks so that the sum of their overlaps is largest. As in ByteTrack (Zhang et al. 2022), faces of which the
//! detector is sure come first, and boxes of which it isn't may only continue a track.
//!
//! A small face that walks fast has left its own box by the next frame at 6 frames per second, and plain overlap
//! would lose it. So what finds no partner by plain overlap is compared once more with both boxes widened by the
//! uncertainty of the prediction: much for a new face at few frames per second, hardly at all for one that has
//! been followed for a while.

mod assignment;
mod kalman;

use std::time::Duration;

use assignment::assign;
use kalman::Motion;

/// Widening for the second comparison: so many standard deviations of the prediction…
const WIDEN_DEVIATIONS: f64 = 1.5;
/// … but not more than this part of the box's width and height, on each side.
const WIDEN_MOST: f64 = 0.6;
/// Of two boxes that are compared widened, the larger has at most this many times the other's area.
const MOST_GROWTH: f64 = 2.5;

/// A box in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Right edge.
    pub right: f64,
    /// Lower edge.
    pub bottom: f64,
}

impl Bounds {
    /// Width in pixels, 0 for a box that is none.
    pub fn width(&self) -> f64 {
        (self.right - self.left).max(0.0)
    }

    /// Height in pixels, 0 for a box that is none.
    pub fn height(&self) -> f64 {
        (self.bottom - self.top).max(0.0)
    }

    /// The middle: x, y.
    pub fn centre(&self) -> (f64, f64) {
        (f64::midpoint(self.left, self.right), f64::midpoint(self.top, self.bottom))
    }

    /// Intersection over union, 0 to 1.
    pub fn iou(&self, other: &Self) -> f64 {
        let width = (self.right.min(other.right) - self.left.max(other.left)).max(0.0);
        let height = (self.bottom.min(other.bottom) - self.top.max(other.top)).max(0.0);
        let shared = width * height;
        let union = self.area() + other.area() - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }

    fn area(&self) -> f64 {
        self.width() * self.height()
    }

    /// Grown by so many pixels on each side.
    fn widened(&self, (x, y): (f64, f64)) -> Self {
        Self { left: self.left - x, top: self.top - y, right: self.right + x, bottom: self.bottom + y }
    }
}

/// A face that a detector found in a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Where.
    pub bounds: Bounds,
    /// The detector's score, 0 to 1. It is only handed on.
    pub score: f64,
    /// Whether the detector isn't sure: such a box may continue a track and never begins one.
    pub weak: bool,
}

/// A face where the tracker believes it to be, in a frame that nobody searched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// The track.
    pub id: i32,
    /// Where, maybe beyond the frame's edges.
    pub bounds: Bounds,
    /// Score of the last observation.
    pub score: f64,
}

/// What a searched frame did to the tracks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Update {
    /// For each observation the id of its track, `None` where it has none or not yet.
    pub ids: Vec<Option<i32>>,
    /// Tracks that ended, in the order of their ids.
    pub ended: Vec<i32>,
}

/// How tracks are made and ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrackerConfig {
    /// A track that has not been seen for longer ends.
    pub max_age: Duration,
    /// A track gets its id when it has been seen in so many searched frames in a row; 0 is as 1.
    pub min_hits: u32,
    /// A box belongs to a track if its overlap with the predicted box (intersection over union) is at least this,
    /// above 0 and up to 1.
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
    /// Searched frames in which it was seen.
    hits: u32,
    /// As of the last searched frame.
    motion: Motion,
    first_seen: Duration,
    last_seen: Duration,
    /// The searched frame in which it was last seen.
    seen_in: u64,
    score: f64,
}

/// Follows the faces of one camera.
#[derive(Debug, Default)]
pub struct Tracker {
    tracks: Vec<Track>,
    /// Ids given so far. They are never given again.
    ids: i32,
    last_frame: Option<Duration>,
    /// The last searched frame.
    last_search: Option<Duration>,
    /// Searched frames so far. Frames may follow each other in no time, so they are told apart by number.
    searches: u64,
}

impl Tracker {
    /// A frame in which a detector has looked for faces, `time` after any fixed moment. Time does not go backwards; a frame
    /// that comes before the last one is taken to come with it.
    ///
    /// After a pause longer than `max_age` without any frame, all tracks end first.
    pub fn searched(
        &mut self,
        time: Duration,
        observations: &[Observation],
        config: &TrackerConfig,
    ) -> Update {
        let (time, mut ended) = self.frame(time, config);
        let seconds = self.last_search.map_or(0.0, |last| time.saturating_sub(last).as_secs_f64());
        let searches = self.searches;
        self.end(&mut ended, |track| {
            track.seen_in < searches && time.saturating_sub(track.last_seen) > config.max_age
        });
        for track in &mut self.tracks {
            track.motion = track.motion.predicted(seconds);
        }

        let search = searches.saturating_add(1);
        let mut owners: Vec<Option<usize>> = vec![None; observations.len()];
        let mut taken = vec![false; self.tracks.len()];
        for (weak, widened) in [(false, false), (false, true), (true, false)] {
            self.pair(observations, (weak, widened), config, &mut owners, &mut taken);
        }
        for (observation, owner) in observations.iter().zip(&owners) {
            if let Some(track) = owner.and_then(|owner| self.tracks.get_mut(owner)) {
                track.motion.correct(&observation.bounds);
                track.hits = track.hits.saturating_add(1);
                track.last_seen = time;
                track.seen_in = search;
                track.score = observation.score;
            }
        }
        for (observation, owner) in observations.iter().zip(&mut owners) {
            if owner.is_none() && !observation.weak && observation.bounds.area() > 0.0 {
                *owner = Some(self.tracks.len());
                self.tracks.push(Track {
                    id: None,
                    hits: 1,
                    motion: Motion::new(&observation.bounds),
                    first_seen: time,
                    last_seen: time,
                    seen_in: search,
                    score: observation.score,
                });
            }
        }
        for track in &mut self.tracks {
            if track.id.is_none() && track.seen_in == search && track.hits >= config.min_hits {
                self.ids = self.ids.saturating_add(1);
                track.id = Some(self.ids);
            }
        }
        let id =
            |owner: &Option<usize>| owner.and_then(|owner| self.tracks.get(owner)).and_then(|track| track.id);
        let ids = owners.iter().map(id).collect();
        self.end(&mut ended, |track| {
            // Seen too seldom to be called a track, and now not at all.
            let unconfirmed = track.id.is_none() && track.seen_in < search;
            unconfirmed || time.saturating_sub(track.last_seen) > config.max_age
        });
        self.last_search = Some(time);
        self.searches = search;
        ended.sort_unstable();
        Update { ids, ended }
    }

    /// A frame in which nobody has looked for faces: where those of the last searched frame should be by now, and
    /// the tracks that ended.
    ///
    /// Time alone ends no track before `max_age` has passed without any frame: only where somebody looked, a face
    /// can be missing.
    pub fn passed(&mut self, time: Duration, config: &TrackerConfig) -> (Vec<Prediction>, Vec<i32>) {
        let (time, ended) = self.frame(time, config);
        let Some(searched) = self.last_search else { return (Vec::new(), ended) };
        let seconds = time.saturating_sub(searched).as_secs_f64();
        let predictions = self.tracks.iter().filter_map(|track| {
            let seen = track.seen_in == self.searches && time.saturating_sub(searched) <= config.max_age;
            let id = track.id.filter(|_| seen)?;
            Some(Prediction { id, bounds: track.motion.predicted(seconds).bounds(), score: track.score })
        });
        (predictions.collect(), ended)
    }

    /// The time of the frame in which a track began, as long as it lives.
    pub fn first_seen(&self, id: i32) -> Option<Duration> {
        self.tracks.iter().find(|track| track.id == Some(id)).map(|track| track.first_seen)
    }

    /// Ends all tracks, and returns their ids. New ones get ids that were never used.
    pub fn reset(&mut self) -> Vec<i32> {
        (self.last_frame, self.last_search) = (None, None);
        let mut ended: Vec<i32> = self.tracks.drain(..).filter_map(|track| track.id).collect();
        ended.sort_unstable();
        ended
    }

    /// Notes that a frame is here. Returns its time and the tracks that ended in a pause before it.
    fn frame(&mut self, time: Duration, config: &TrackerConfig) -> (Duration, Vec<i32>) {
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

    /// Gives free observations to free tracks, by plain overlap or by that of widened boxes.
    fn pair(
        &self,
        observations: &[Observation],
        (weak, widened): (bool, bool),
        config: &TrackerConfig,
        owners: &mut [Option<usize>],
        taken: &mut [bool],
    ) {
        let wanted = |(index, observation): (usize, &Observation)| {
            let free = observation.weak == weak && owners.get(index).is_some_and(Option::is_none);
            free.then_some((index, observation.bounds))
        };
        let boxes: Vec<(usize, Bounds)> = observations.iter().enumerate().filter_map(wanted).collect();
        let free = |(index, track): (usize, &Track)| {
            let lost = track.seen_in < self.searches;
            // A weak box in the place of a face that has been missing for a while is most likely nothing.
            let free = taken.get(index) == Some(&false) && !(weak && lost);
            let (x, y) = track.motion.uncertainty();
            free.then_some((index, track.motion.bounds(), (WIDEN_DEVIATIONS * x, WIDEN_DEVIATIONS * y)))
        };
        let tracks: Vec<(usize, Bounds, (f64, f64))> =
            self.tracks.iter().enumerate().filter_map(free).collect();
        let overlap = |row: usize, column: usize| {
            let (Some((_, predicted, margin)), Some((_, found))) = (tracks.get(row), boxes.get(column))
            else {
                return 0.0;
            };
            if widened { widened_overlap(predicted, found, *margin) } else { predicted.iou(found) }
        };
        for (row, column) in assign(tracks.len(), boxes.len(), config.iou_threshold, overlap) {
            let (Some((track, ..)), Some((found, _))) = (tracks.get(row), boxes.get(column)) else {
                continue;
            };
            if let (Some(owner), Some(taken)) = (owners.get_mut(*found), taken.get_mut(*track)) {
                *owner = Some(*track);
                *taken = true;
            }
        }
    }
}

/// Overlap of the boxes grown by `margin` on each side; 0 for boxes whose sizes differ too much to be one face's.
fn widened_overlap(predicted: &Bounds, found: &Bounds, (x, y): (f64, f64)) -> f64 {
    let (small, large) = (predicted.area().min(found.area()), predicted.area().max(found.area()));
    if large > MOST_GROWTH * small {
        return 0.0;
    }
    let (width, height) = (predicted.width().min(found.width()), predicted.height().min(found.height()));
    let margin = (x.min(WIDEN_MOST * width), y.min(WIDEN_MOST * height));
    predicted.widened(margin).iou(&found.widened(margin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(left: f64, top: f64) -> Bounds {
        Bounds { left, top, right: left + 80.0, bottom: top + 100.0 }
    }

    fn seen(bounds: Bounds) -> Observation {
        Observation { bounds, score: 0.9, weak: false }
    }

    fn weak(bounds: Bounds) -> Observation {
        Observation { weak: true, score: 0.4, ..seen(bounds) }
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

        fn searched(&mut self, milliseconds: u64, observations: &[Observation]) -> Update {
            self.0.searched(ms(milliseconds), observations, &self.1)
        }

        fn ids(&mut self, milliseconds: u64, observations: &[Observation]) -> Vec<Option<i32>> {
            self.searched(milliseconds, observations).ids
        }
    }

    #[test]
    fn overlap_is_that_of_the_areas() {
        let a = face(0.0, 0.0);
        assert_eq!(a.iou(&a), 1.0);
        assert!((a.iou(&face(40.0, 0.0)) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(a.iou(&face(80.0, 0.0)), 0.0);
        let none = Bounds { left: 5.0, top: 5.0, right: 5.0, bottom: 5.0 };
        assert_eq!((a.iou(&none), none.iou(&none)), (0.0, 0.0));
    }

    #[test]
    fn faces_at_any_frame_rate_are_followed_by_the_same_settings() {
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
    fn frames_may_come_at_any_time() {
        let mut run = Run::new(TrackerConfig::default());
        let mut milliseconds = 0;
        for step in [33, 33, 500, 33, 120, 33, 700, 33, 33, 1000, 250] {
            milliseconds += step;
            let at = face(0.2 * Duration::from_millis(milliseconds).as_secs_f64() * 1000.0, 50.0);
            assert_eq!(run.ids(milliseconds, &[seen(at)]), [Some(1)], "after {milliseconds} ms");
        }
    }

    #[test]
    fn neighbours_that_stand_close_do_not_take_over_each_other() {
        let mut run = Run::new(TrackerConfig::default());
        let (left, right) = (face(100.0, 100.0), face(185.0, 100.0));
        assert_eq!(run.ids(0, &[seen(left), seen(right)]), [Some(1), Some(2)]);
        for frame in 1..20 {
            // One of them is missed at times.
            let expected = if frame % 3 == 0 { vec![(right, 2)] } else { vec![(right, 2), (left, 1)] };
            let boxes: Vec<_> = expected.iter().map(|(bounds, _)| seen(*bounds)).collect();
            let ids: Vec<_> = expected.iter().map(|(_, id)| Some(*id)).collect();
            assert_eq!(run.ids(frame * 166, &boxes), ids, "frame {frame}");
        }
    }

    #[test]
    fn a_face_of_quite_another_size_is_another() {
        let mut run = Run::new(TrackerConfig::default());
        run.searched(0, &[seen(face(100.0, 100.0))]);
        let small = Bounds { left: 150.0, top: 180.0, right: 175.0, bottom: 210.0 };
        assert_eq!(run.ids(40, &[seen(small)]), [Some(2)]);
    }

    #[test]
    fn the_threshold_decides_how_far_a_face_may_be_from_where_it_should_be() {
        for (iou_threshold, expected) in [(0.2, Some(1)), (0.6, Some(2))] {
            let mut run = Run::new(TrackerConfig { iou_threshold, ..TrackerConfig::default() });
            // It has stood still for so long that its uncertainty is small.
            for frame in 0..50 {
                run.searched(frame * 40, &[seen(face(100.0, 100.0))]);
            }
            // 40 of 120 pixels overlap.
            assert_eq!(run.ids(2000, &[seen(face(140.0, 100.0))]), [expected], "{iou_threshold}");
        }
    }

    #[test]
    fn sure_boxes_come_before_weak_ones() {
        let mut run = Run::new(TrackerConfig::default());
        run.searched(0, &[seen(face(100.0, 100.0))]);
        // The weak one fits better.
        let boxes = [weak(face(100.0, 100.0)), seen(face(130.0, 100.0))];
        assert_eq!(run.ids(40, &boxes), [None, Some(1)]);
        assert_eq!(run.ids(80, &[weak(face(135.0, 100.0))]), [Some(1)], "alone it will do");
        assert_eq!(run.ids(120, &[weak(face(600.0, 100.0))]), [None], "but not begin anything");
    }

    #[test]
    fn ids_are_never_given_again_and_ends_are_told_once() {
        let mut run = Run::new(TrackerConfig { max_age: ms(100), ..TrackerConfig::default() });
        let mut given = Vec::new();
        let mut ended = Vec::new();
        for round in 0..20 {
            let begin = 1000 * round;
            let update = run.searched(begin, &[seen(face(100.0, 100.0)), seen(face(600.0, 100.0))]);
            given.extend(update.ids.into_iter().flatten());
            ended.extend(update.ended);
            // Reset, faded away or cut off by a pause without frames, in turn.
            match round % 3 {
                0 => ended.extend(run.0.reset()),
                1 => ended.extend((1..5).flat_map(|i| run.searched(begin + 50 * i, &[]).ended)),
                _ => {}
            }
        }
        ended.extend(run.0.reset());
        let all: Vec<i32> = (1..=40).collect();
        assert_eq!((given, ended), (all.clone(), all));
    }

    #[test]
    fn predictions_go_on_from_the_last_search() {
        let config = TrackerConfig::default();
        let mut run = Run::new(config);
        for frame in 0..20_u32 {
            run.searched(u64::from(frame) * 100, &[seen(face(100.0 + 10.0 * f64::from(frame), 100.0))]);
        }
        for (milliseconds, left) in [(1950, 295.0), (2000, 300.0), (2100, 310.0)] {
            let (predictions, ended) = run.0.passed(ms(milliseconds), &config);
            assert!(ended.is_empty());
            let [only] = &predictions[..] else { panic!("{predictions:?}") };
            assert_eq!((only.id, only.score), (1, 0.9));
            assert!((only.bounds.left - left).abs() < 1.0, "{milliseconds}: {:?}", only.bounds);
        }
        assert_eq!(run.ids(2200, &[seen(face(320.0, 100.0)), seen(face(900.0, 100.0))]), [Some(1), Some(2)]);
        assert_eq!([1, 2, 3].map(|id| run.0.first_seen(id)), [Some(ms(0)), Some(ms(2200)), None]);
    }
}
