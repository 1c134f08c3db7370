//! Which pictures of a tracked face are worth sending: how good each is, and which of a track's to keep. Plain Rust: what a
//! picture is made of is the caller's business.

use std::{collections::HashMap, mem, time::Duration};

/// Shorter side of a face, pixels, from which on more pixels don't help: the largest input of the backend's embedders.
const FULL_SIZE: f64 = 160.0;

/// Variance of the Laplacian (8-bit luma) at which a picture counts as half sharp. Faces of LFW photographs, cut to 150
/// pixels, have 50 (smooth, evenly lit) to 1,000.
const HALF_SHARP: f64 = 150.0;

/// The first picture of a track is sent at once if it is at least this good.
const GOOD: f64 = 0.35;

/// A single look of this score makes sure of a face. On a street where people are seen from all sides, every crop of such a
/// score had a face for the backend too.
const SURE_AT_ONCE: f64 = 0.97;

/// Looks that reach the certainty asked for, that make sure of a face.
const SURE_LOOKS: u32 = 2;

/// A track that ends before it is sure sends its best picture if one look scored as much as this.
const LIKELY: f64 = 0.9;

/// A track that is not seen for so long has ended, also where no tracker says so.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// What makes a picture of a face good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Merits {
    /// Shorter side of the face in the frame, pixels.
    pub size: u32,
    /// Variance of the Laplacian over the face, in squares of 8-bit luma.
    pub sharpness: f64,
    /// The detector's score, 0 to 1.
    pub score: f64,
    /// The face touches an edge of the frame: a part of it is probably missing.
    pub cut: bool,
}

impl Merits {
    /// The quality, 0 to 1: 0.4 for the size (full from 160 pixels on), 0.3 for the sharpness (`v / (v + 150)` of the
    /// variance `v`), 0.3 for the score (nothing up to 0.5, full at 1); half of all that for a face that is cut.
    ///
    /// The size weighs most since it decides how much an embedder sees at all. The variance of the Laplacian as a measure
    /// of focus: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    pub fn quality(&self) -> f64 {
        let size = (f64::from(self.size) / FULL_SIZE).min(1.0);
        let sharpness = self.sharpness / (self.sharpness + HALF_SHARP);
        let score = ((self.score - 0.5) * 2.0).clamp(0.0, 1.0);
        let whole = 0.4 * size + 0.3 * sharpness + 0.3 * score;
        if self.cut { whole / 2.0 } else { whole }
    }

    /// The quality that the picture has at most, whatever its sharpness: worth knowing before any pixel is read.
    pub fn at_best(&self) -> f64 {
        Self { sharpness: 1e9, ..*self }.quality()
    }
}

/// How many pictures of one track are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// A further picture must be better than the best one sent by this share of its quality.
    pub improvement: f64,
    /// Pictures of one track at most, at least 1. The last of them is kept for the end of the track.
    pub max_per_track: u32,
    /// Pictures of a lower quality are never sent, 0 to 1.
    pub min_quality: f64,
    /// Nothing of a track is sent before two of its looks have this score, or one has 0.97; where it ends without, only if one
    /// had 0.9. The detector is never that sure for long of ears, necks and hair, and soon is of a face. 0: off.
    pub certainty: f64,
}

/// Why no picture of a face was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It was smaller than the limit.
    TooSmall,
    /// Its quality was below the limit.
    TooPoor,
}

/// Tracks that ended without a picture, by what kept their faces out last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Their faces were smaller than the limit.
    pub too_small: u64,
    /// The quality of their faces was below the limit.
    pub too_poor: u64,
    /// The detector was never sure enough of their faces.
    pub uncertain: u64,
}

/// Where a face is and how sure that is: left, top, width, height and score. The same to the bit twice means that nobody
/// searched the frame between, since nothing moved.
pub type Look = [f64; 5];

/// Follows the pictures of each track. `T` is whatever it takes to send one later.
#[derive(Debug)]
pub struct BestShots<T> {
    tracks: HashMap<i32, Track<T>>,
    unseen: Unseen,
}

#[derive(Debug)]
struct Track<T> {
    sent: u32,
    best_sent: f64,
    /// The best that is better than what was sent.
    waiting: Option<Waiting<T>>,
    /// The face as it was last seen.
    look: Look,
    last_seen: Duration,
    /// Why its last face that was of no use was of none.
    refused: Option<Refusal>,
    /// Looks that reached the certainty asked for.
    sure_looks: u32,
    /// Whether it is sure enough to be sent, and whether it is at its end.
    is_sure: bool,
    is_likely: bool,
}

/// A picture that may still be sent.
#[derive(Debug)]
struct Waiting<T> {
    quality: f64,
    is_good: bool,
    shot: T,
}

impl<T> Default for BestShots<T> {
    fn default() -> Self {
        Self { tracks: HashMap::new(), unseen: Unseen::default() }
    }
}

impl<T> Track<T> {
    fn new(now: Duration) -> Self {
        Self {
            sent: 0,
            best_sent: 0.0,
            waiting: None,
            look: [f64::NAN; 5],
            last_seen: now,
            refused: None,
            sure_looks: 0,
            is_sure: false,
            is_likely: false,
        }
    }

    fn note_score(&mut self, score: f64, certainty: f64) {
        self.sure_looks = self.sure_looks.saturating_add(u32::from(score >= certainty));
        let at_once = score >= SURE_AT_ONCE.max(certainty);
        self.is_sure |= certainty <= 0.0 || at_once || self.sure_looks >= SURE_LOOKS;
        self.is_likely |= self.is_sure || score >= LIKELY;
    }

    fn best(&self) -> f64 {
        self.waiting.as_ref().map_or(self.best_sent, |waiting| waiting.quality)
    }
}

impl<T> BestShots<T> {
    /// Notes that a track is seen at `now` (any clock that goes on), and says whether a picture of at most this quality
    /// could be of use: not one more of what was judged already.
    pub fn wants(&mut self, track_id: i32, look: Look, at_best: f64, now: Duration, limits: &Limits) -> bool {
        let track = self.tracks.entry(track_id).or_insert_with(|| Track::new(now));
        track.last_seen = now;
        let before = mem::replace(&mut track.look, look);
        if before != look {
            let [.., score] = look;
            track.note_score(score, limits.certainty);
        }
        before != look
            && at_best >= limits.min_quality
            && at_best > track.best()
            && track.sent < limits.max_per_track.max(1)
    }

    /// Takes out the first picture of a track that has waited for the detector to be sure, and is good.
    pub fn due(&mut self, track_id: i32) -> Option<T> {
        let track = self.tracks.get_mut(&track_id)?;
        let is_due = track.is_sure && track.sent == 0;
        let waiting = track.waiting.take_if(|waiting| is_due && waiting.is_good)?;
        track.sent = 1;
        track.best_sent = waiting.quality;
        Some(waiting.shot)
    }

    /// Notes that a track is seen at `now`, but not as the limits want it.
    pub fn refuse(&mut self, track_id: i32, why: Refusal, now: Duration) {
        let track = self.tracks.entry(track_id).or_insert_with(|| Track::new(now));
        track.last_seen = now;
        track.refused = Some(why);
    }

    /// The tracks until now that ended without a picture.
    pub fn unseen(&self) -> Unseen {
        self.unseen
    }

    /// Takes a picture, and gives it back if it is to be sent at once: the first of a track that is sure (see [`Limits`]) and
    /// good (whole, and of a quality of 0.35 at least), and later ones that are better by `improvement`, as long as one of `max_per_track` is left
    /// for the end.
    pub fn offer(&mut self, track_id: i32, merits: &Merits, shot: T, limits: &Limits) -> Option<T> {
        let quality = merits.quality();
        let track = self.tracks.get_mut(&track_id)?;
        if quality < limits.min_quality || quality <= track.best() {
            return None;
        }
        let is_good = !merits.cut && quality >= GOOD;
        let now = match track.sent {
            0 => is_good && track.is_sure,
            sent => {
                sent + 1 < limits.max_per_track && quality >= track.best_sent * (1.0 + limits.improvement)
            }
        };
        if now {
            track.sent += 1;
            track.best_sent = quality;
            track.waiting = None;
            return Some(shot);
        }
        if track.sent < limits.max_per_track.max(1) {
            track.waiting = Some(Waiting { quality, is_good, shot });
        }
        None
    }

    /// Ends a track. Returns its best picture, unless that was sent, or the detector was never sure of a face.
    pub fn end(&mut self, track_id: i32) -> Option<T> {
        let track = self.tracks.remove(&track_id)?;
        match (track.sent, track.waiting, track.refused) {
            (0, Some(_), _) if !track.is_likely => {
                self.unseen.uncertain += 1;
                None
            }
            (_, Some(waiting), _) => Some(waiting.shot),
            (0, None, Some(Refusal::TooSmall)) => {
                self.unseen.too_small += 1;
                None
            }
            (0, None, Some(Refusal::TooPoor)) => {
                self.unseen.too_poor += 1;
                None
            }
            _ => None,
        }
    }

    /// Ends the tracks that nobody has seen for five seconds before `now`.
    pub fn end_idle(&mut self, now: Duration) -> Vec<T> {
        let idle: Vec<i32> = self
            .tracks
            .iter()
            .filter(|(_, track)| now.saturating_sub(track.last_seen) > IDLE_LIMIT)
            .map(|(&id, _)| id)
            .collect();
        self.end_each(idle)
    }

    /// Ends all tracks, the oldest first.
    pub fn end_all(&mut self) -> Vec<T> {
        let all = self.tracks.keys().copied().collect();
        self.end_each(all)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.tracks.clear();
    }

    /// Track ids grow with time.
    fn end_each(&mut self, mut ids: Vec<i32>) -> Vec<T> {
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| self.end(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { improvement: 0.2, max_per_track: 3, min_quality: 0.2, certainty: 0.0 };
    const LOOK: Look = [10.0, 10.0, 80.0, 80.0, 0.8];
    const FAIR: Merits = Merits { size: 80, sharpness: 150.0, score: 0.8, cut: false };

    /// Offers pictures of these qualities, made by the size alone.
    fn offer(shots: &mut BestShots<u32>, track: i32, size: u32) -> Option<u32> {
        let merits = Merits { size, ..FAIR };
        let wanted = shots.wants(track, [f64::from(size); 5], merits.at_best(), Duration::ZERO, &LIMITS);
        if wanted { shots.offer(track, &merits, size, &LIMITS) } else { None }
    }

    #[test]
    fn quality_is_what_is_documented() {
        assert!((FAIR.quality() - (0.4 * 0.5 + 0.3 * 0.5 + 0.3 * 0.6)).abs() < 1e-12);
        assert!((Merits { cut: true, ..FAIR }.quality() - FAIR.quality() / 2.0).abs() < 1e-12);
        let best = Merits { size: 4000, sharpness: 1e12, score: 1.0, cut: false };
        assert!((best.quality() - 1.0).abs() < 1e-6);
        let worst = Merits { size: 0, sharpness: 0.0, score: 0.0, cut: false };
        assert!(worst.quality().abs() < 1e-12);
        assert!(FAIR.at_best() > FAIR.quality());
    }

    #[test]
    fn the_first_is_sent_at_once_then_clearly_better_ones_and_the_best_at_the_end() {
        let mut shots = BestShots::default();
        assert_eq!(offer(&mut shots, 1, 60), Some(60));
        assert_eq!(offer(&mut shots, 1, 70), None, "better, but not clearly");
        assert_eq!(offer(&mut shots, 1, 65), None, "worse than what waits");
        assert_eq!(offer(&mut shots, 1, 130), Some(130));
        assert_eq!(offer(&mut shots, 1, 160), None, "the last one is for the end");
        assert_eq!(shots.end(1), Some(160));
        assert_eq!(shots.end(1), None);
    }

    #[test]
    fn what_was_sent_is_not_sent_again_at_the_end() {
        let mut shots = BestShots::default();
        assert_eq!(offer(&mut shots, 1, 100), Some(100));
        assert_eq!(offer(&mut shots, 1, 90), None);
        assert_eq!(shots.end(1), None);
    }

    #[test]
    fn a_cut_face_waits_for_a_whole_one() {
        let mut shots = BestShots::default();
        let cut = Merits { size: 160, cut: true, ..FAIR };
        assert!(shots.wants(1, LOOK, cut.at_best(), Duration::ZERO, &LIMITS));
        assert_eq!(shots.offer(1, &cut, 1, &LIMITS), None);
        assert_eq!(shots.end(1), Some(1), "it is all there was");

        assert!(shots.wants(2, LOOK, cut.at_best(), Duration::ZERO, &LIMITS));
        assert_eq!(shots.offer(2, &cut, 1, &LIMITS), None);
        assert_eq!(offer(&mut shots, 2, 80), Some(80));
        assert_eq!(shots.end(2), None);
    }

    #[test]
    fn what_is_too_bad_is_never_sent() {
        let mut shots = BestShots::default();
        let bad = Merits { size: 10, sharpness: 1.0, score: 0.6, cut: false };
        assert!(bad.quality() < LIMITS.min_quality);
        assert!(shots.wants(1, LOOK, bad.at_best(), Duration::ZERO, &LIMITS), "it might have been sharp");
        assert_eq!(shots.offer(1, &bad, 1, &LIMITS), None);
        assert_eq!(shots.end(1), None);
    }

    #[test]
    fn a_track_that_only_ever_sends_one_wants_no_more() {
        let limits = Limits { max_per_track: 1, ..LIMITS };
        let mut shots = BestShots::default();
        assert!(shots.wants(1, LOOK, FAIR.at_best(), Duration::ZERO, &limits));
        assert_eq!(shots.offer(1, &FAIR, 1, &limits), Some(1));
        assert!(!shots.wants(1, [1.0; 5], 1.0, Duration::ZERO, &limits));
        assert_eq!(shots.end(1), None);
    }

    #[test]
    fn what_was_judged_is_not_judged_again_but_does_not_end() {
        let mut shots = BestShots::default();
        assert!(shots.wants(1, LOOK, 1.0, Duration::ZERO, &LIMITS));
        let dull = Merits { sharpness: 0.0, cut: true, ..FAIR };
        assert_eq!(shots.offer(1, &dull, 1, &LIMITS), None);
        for seconds in 1..20 {
            assert!(!shots.wants(1, LOOK, 1.0, Duration::from_secs(seconds), &LIMITS), "as it was");
            assert!(shots.end_idle(Duration::from_secs(seconds)).is_empty());
        }
        let moved = [11.0, 10.0, 80.0, 80.0, 0.8];
        assert!(shots.wants(1, moved, 1.0, Duration::from_secs(20), &LIMITS));
    }

    #[test]
    fn tracks_that_end_without_a_picture_are_counted_by_the_reason() {
        let mut shots = BestShots::default();
        let now = Duration::ZERO;
        shots.refuse(1, Refusal::TooSmall, now);
        shots.refuse(2, Refusal::TooSmall, now);
        shots.refuse(2, Refusal::TooPoor, now);
        shots.refuse(3, Refusal::TooSmall, now);
        assert_eq!(offer(&mut shots, 3, 100), Some(100), "it has come nearer");
        shots.refuse(4, Refusal::TooSmall, now);
        let cut = Merits { cut: true, ..FAIR };
        assert!(shots.wants(4, LOOK, cut.at_best(), now, &LIMITS));
        assert_eq!(shots.offer(4, &cut, 4, &LIMITS), None);
        assert_eq!(shots.unseen(), Unseen::default(), "none has ended");
        assert_eq!(shots.end_all(), [4]);
        assert_eq!(shots.unseen(), Unseen { too_small: 1, too_poor: 1, uncertain: 0 });
    }

    /// Offers pictures of these scores, each a bit larger than the one before, and says which are sent.
    fn by_scores(shots: &mut BestShots<u32>, track: i32, scores: &[f64]) -> Vec<u32> {
        let limits = Limits { certainty: 0.8, ..LIMITS };
        let mut sent = Vec::new();
        for (number, &score) in (0..).zip(scores) {
            let merits = Merits { size: 80 + number, score, ..FAIR };
            let look = [f64::from(number), 0.0, 80.0, 80.0, score];
            let wanted = shots.wants(track, look, merits.at_best(), Duration::ZERO, &limits);
            sent.extend(shots.due(track));
            if wanted {
                sent.extend(shots.offer(track, &merits, number, &limits));
            }
        }
        sent
    }

    #[test]
    fn a_face_is_sent_once_the_detector_is_sure_of_it() {
        let mut shots = BestShots::default();
        assert_eq!(by_scores(&mut shots, 1, &[0.97]), [0], "at once");
        assert_eq!(
            by_scores(&mut shots, 2, &[0.62, 0.7, 0.82, 0.65, 0.81]),
            [2],
            "the best of those until then"
        );
        assert_eq!(by_scores(&mut shots, 3, &[0.62, 0.95, 0.7]), [] as [u32; 0]);
        assert_eq!(shots.end(3), Some(1), "at the end, since it was likely once");
        assert_eq!(shots.unseen(), Unseen::default());
    }

    #[test]
    fn what_the_detector_is_never_sure_of_is_not_sent() {
        let mut shots = BestShots::default();
        assert_eq!(by_scores(&mut shots, 1, &[0.62, 0.83, 0.7, 0.69]), [] as [u32; 0]);
        assert_eq!(shots.end(1), None);
        assert_eq!(shots.unseen(), Unseen { uncertain: 1, ..Unseen::default() });
        // A scene that stands still is one look.
        let limits = Limits { certainty: 0.8, ..LIMITS };
        for seconds in 0..3 {
            let wanted = shots.wants(2, LOOK, FAIR.at_best(), Duration::from_secs(seconds), &limits);
            assert_eq!(wanted, seconds == 0);
            assert_eq!(shots.due(2), None);
            if wanted {
                assert_eq!(shots.offer(2, &FAIR, 9, &limits), None);
            }
        }
        assert_eq!(shots.end(2), None);
    }

    #[test]
    fn tracks_that_are_gone_end_by_themselves() {
        let mut shots = BestShots::default();
        for (track, seconds) in [(7, 0), (8, 4)] {
            assert!(shots.wants(track, LOOK, 1.0, Duration::from_secs(seconds), &LIMITS));
            let cut = Merits { cut: true, size: 160, ..FAIR };
            assert_eq!(shots.offer(track, &cut, track, &LIMITS), None);
        }
        assert!(shots.end_idle(Duration::from_secs(5)).is_empty());
        assert_eq!(shots.end_idle(Duration::from_secs(6)), [7]);
        assert_eq!(shots.end_all(), [8]);
        assert!(shots.end_all().is_empty());
    }
}
