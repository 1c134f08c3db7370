//! Best-shot selection: rates the crops of a tracked face and decides which of them to send. Generic over the crop.

use std::{collections::HashMap, time::Duration};

use facepipe_detector::BoundingBox;

/// Shorter side of a face, pixels, beyond which more pixels do not help: the largest input of the backend's embedders.
const FULL_SIZE: f64 = 160.0;

/// Variance of the Laplacian (8-bit luma) at which a crop counts as half sharp. Faces of LFW photographs, cut to 150
/// pixels, have 50 (smooth, evenly lit) to 1,000.
const HALF_SHARP: f64 = 150.0;

/// The first crop of a track is sent at once if its quality is at least this.
const GOOD: f64 = 0.35;

/// A single detection with this score confirms a face. On a street where people are seen from all sides, the backend found a face
/// on every crop with such a score.
const SURE_AT_ONCE: f64 = 0.97;

/// Detections with at least the requested certainty that confirm a face.
const SURE_SIGHTINGS: u32 = 2;

/// A track that ends unconfirmed still sends its best picture if one detection scored at least this.
const LIKELY: f64 = 0.9;

/// A track without a face for so long has ended, even if no tracker reports its end.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// The inputs of a crop's quality.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QualityInputs {
    /// Shorter side of the face in the frame, pixels.
    pub size: u32,
    /// Variance of the Laplacian over the face, in squares of 8-bit luma.
    pub sharpness: f64,
    /// The detector's score, 0 to 1.
    pub score: f64,
    /// Whether the face touches an edge of the frame: a part of it is probably missing.
    pub cut: bool,
}

impl QualityInputs {
    /// Returns the quality, 0 to 1: 0.4 for the size (full from 160 pixels on), 0.3 for the sharpness (`v / (v + 150)` of the
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

    /// Returns the quality that the crop has at most, whatever its sharpness. It is known before any pixel is read.
    pub fn upper_bound(&self) -> f64 {
        Self { sharpness: 1e9, ..*self }.quality()
    }
}

/// Limits to the crops of one track.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The quality of a further crop must exceed that of the best one sent by this fraction of it.
    pub improvement: f64,
    /// Maximum number of crops of one track, at least 1. The last of them is kept for the end of the track.
    pub max_per_track: u32,
    /// Crops of a lower quality are never sent, 0 to 1.
    pub min_quality: f64,
    /// Nothing of a track is sent before two of its detections have this score, or one has 0.97; a track that ends before sends
    /// its best crop only if one detection had 0.9. Faces soon reach such scores; ears, necks and hair do not. 0: off.
    pub certainty: f64,
}

/// Why a face was not cropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// It is smaller than the limit.
    TooSmall,
    /// Its quality is below the limit.
    TooPoor,
}

/// Counts of tracks that ended without a crop, by the last reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnsentTracks {
    /// Their faces were smaller than the limit.
    pub too_small: u64,
    /// The quality of their faces was below the limit.
    pub too_poor: u64,
    /// The detector's scores never reached the certainty.
    pub uncertain: u64,
}

/// Place and score of a face in a frame. An unchanged snapshot means that the frame was not searched, since nothing moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaceSnapshot {
    /// Pixels of the frame.
    pub bounding_box: BoundingBox<u32>,
    /// The detector's score, 0 to 1.
    pub score: f64,
}

/// Chooses among the crops of each track. `T` is a crop.
#[derive(Debug)]
pub struct BestShots<T> {
    tracks: HashMap<i32, Track<T>>,
    unsent: UnsentTracks,
}

#[derive(Debug)]
struct Track<T> {
    sent: u32,
    best_sent: f64,
    /// The best crop, if it is better than those that were sent.
    pending: Option<PendingShot<T>>,
    /// The face in the last frame.
    snapshot: Option<FaceSnapshot>,
    last_seen: Duration,
    /// Why the last face that was not cropped was not.
    rejected: Option<RejectReason>,
    /// Detections with at least the requested certainty.
    sure_sightings: u32,
    /// Whether its crops may be sent.
    is_sure: bool,
    /// Whether its best crop may be sent when it ends.
    is_likely: bool,
}

/// A crop that may still be sent.
#[derive(Debug)]
struct PendingShot<T> {
    quality: f64,
    is_good: bool,
    shot: T,
}

impl<T> Default for BestShots<T> {
    fn default() -> Self {
        Self { tracks: HashMap::new(), unsent: UnsentTracks::default() }
    }
}

impl<T> Track<T> {
    fn new(now: Duration) -> Self {
        Self {
            sent: 0,
            best_sent: 0.0,
            pending: None,
            snapshot: None,
            last_seen: now,
            rejected: None,
            sure_sightings: 0,
            is_sure: false,
            is_likely: false,
        }
    }

    fn note_score(&mut self, score: f64, certainty: f64) {
        self.sure_sightings = self.sure_sightings.saturating_add(u32::from(score >= certainty));
        let at_once = score >= SURE_AT_ONCE.max(certainty);
        self.is_sure |= certainty <= 0.0 || at_once || self.sure_sightings >= SURE_SIGHTINGS;
        self.is_likely |= self.is_sure || score >= LIKELY;
    }

    fn best(&self) -> f64 {
        self.pending.as_ref().map_or(self.best_sent, |pending| pending.quality)
    }
}

impl<T> BestShots<T> {
    /// Records a face of a track at `now` (of any monotonic clock). Returns whether a crop of at most this quality could be of
    /// use; false for a face that has not changed.
    pub fn observe(
        &mut self,
        track_id: i32,
        snapshot: FaceSnapshot,
        upper_bound: f64,
        now: Duration,
        limits: &Limits,
    ) -> bool {
        let track = self.tracks.entry(track_id).or_insert_with(|| Track::new(now));
        track.last_seen = now;
        let has_changed = track.snapshot.replace(snapshot) != Some(snapshot);
        if has_changed {
            track.note_score(snapshot.score, limits.certainty);
        }
        has_changed
            && upper_bound >= limits.min_quality
            && upper_bound > track.best()
            && track.sent < limits.max_per_track.max(1)
    }

    /// Takes the first good crop of a track, once the track is sure.
    pub fn take_due(&mut self, track_id: i32) -> Option<T> {
        let track = self.tracks.get_mut(&track_id)?;
        let is_due = track.is_sure && track.sent == 0;
        let pending = track.pending.take_if(|pending| is_due && pending.is_good)?;
        track.sent = 1;
        track.best_sent = pending.quality;
        Some(pending.shot)
    }

    /// Records a face of a track at `now` that is not cropped.
    pub fn reject(&mut self, track_id: i32, why: RejectReason, now: Duration) {
        let track = self.tracks.entry(track_id).or_insert_with(|| Track::new(now));
        track.last_seen = now;
        track.rejected = Some(why);
    }

    /// Returns the tracks that have ended without a crop.
    pub fn unsent(&self) -> UnsentTracks {
        self.unsent
    }

    /// Offers a crop. Returns it if it is to be sent at once: the first of a track that is sure (see [`Limits`]) and good
    /// (whole, and of a quality of at least 0.35), and later ones that are better by `improvement`, as long as one of
    /// `max_per_track` is left for the end.
    pub fn offer(&mut self, track_id: i32, inputs: &QualityInputs, shot: T, limits: &Limits) -> Option<T> {
        let quality = inputs.quality();
        let track = self.tracks.get_mut(&track_id)?;
        if quality < limits.min_quality || quality <= track.best() {
            return None;
        }
        let is_good = !inputs.cut && quality >= GOOD;
        let now = match track.sent {
            0 => is_good && track.is_sure,
            sent => {
                sent + 1 < limits.max_per_track && quality >= track.best_sent * (1.0 + limits.improvement)
            }
        };
        if now {
            track.sent += 1;
            track.best_sent = quality;
            track.pending = None;
            return Some(shot);
        }
        if track.sent < limits.max_per_track.max(1) {
            track.pending = Some(PendingShot { quality, is_good, shot });
        }
        None
    }

    /// Ends a track. Returns its best crop, unless that was sent or the detector was never sure of a face.
    pub fn end(&mut self, track_id: i32) -> Option<T> {
        let track = self.tracks.remove(&track_id)?;
        match (track.sent, track.pending, track.rejected) {
            (0, Some(_), _) if !track.is_likely => {
                self.unsent.uncertain += 1;
                None
            }
            (_, Some(pending), _) => Some(pending.shot),
            (0, None, Some(RejectReason::TooSmall)) => {
                self.unsent.too_small += 1;
                None
            }
            (0, None, Some(RejectReason::TooPoor)) => {
                self.unsent.too_poor += 1;
                None
            }
            _ => None,
        }
    }

    /// Ends the tracks without a face in the five seconds before `now`.
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

    /// Ends tracks, the oldest first: ids grow with time.
    fn end_each(&mut self, mut ids: Vec<i32>) -> Vec<T> {
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| self.end(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { improvement: 0.2, max_per_track: 3, min_quality: 0.2, certainty: 0.0 };
    const SNAPSHOT: FaceSnapshot = snapshot(10, 0.8);
    const FAIR: QualityInputs = QualityInputs { size: 80, sharpness: 150.0, score: 0.8, cut: false };

    const fn snapshot(left: u32, score: f64) -> FaceSnapshot {
        FaceSnapshot { bounding_box: BoundingBox::from_size(left, 10, 80, 80), score }
    }

    /// Offers a crop whose quality depends on the size alone.
    fn offer(shots: &mut BestShots<u32>, track: i32, size: u32) -> Option<u32> {
        let inputs = QualityInputs { size, ..FAIR };
        let wanted = shots.observe(track, snapshot(size, 0.8), inputs.upper_bound(), Duration::ZERO, &LIMITS);
        if wanted { shots.offer(track, &inputs, size, &LIMITS) } else { None }
    }

    #[test]
    fn quality_follows_the_documented_formula() {
        assert!((FAIR.quality() - (0.4 * 0.5 + 0.3 * 0.5 + 0.3 * 0.6)).abs() < 1e-12);
        assert!((QualityInputs { cut: true, ..FAIR }.quality() - FAIR.quality() / 2.0).abs() < 1e-12);
        let best = QualityInputs { size: 4000, sharpness: 1e12, score: 1.0, cut: false };
        assert!((best.quality() - 1.0).abs() < 1e-6);
        let worst = QualityInputs { size: 0, sharpness: 0.0, score: 0.0, cut: false };
        assert!(worst.quality().abs() < 1e-12);
        assert!(FAIR.upper_bound() > FAIR.quality());
    }

    #[test]
    fn the_first_crop_is_sent_at_once_then_clearly_better_ones_and_the_best_at_the_end() {
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
    fn a_crop_that_was_sent_is_not_sent_again_at_the_end() {
        let mut shots = BestShots::default();
        assert_eq!(offer(&mut shots, 1, 100), Some(100));
        assert_eq!(offer(&mut shots, 1, 90), None);
        assert_eq!(shots.end(1), None);
    }

    #[test]
    fn a_cut_face_waits_for_a_whole_one() {
        let mut shots = BestShots::default();
        let cut = QualityInputs { size: 160, cut: true, ..FAIR };
        assert!(shots.observe(1, SNAPSHOT, cut.upper_bound(), Duration::ZERO, &LIMITS));
        assert_eq!(shots.offer(1, &cut, 1, &LIMITS), None);
        assert_eq!(shots.end(1), Some(1), "it is all there was");

        assert!(shots.observe(2, SNAPSHOT, cut.upper_bound(), Duration::ZERO, &LIMITS));
        assert_eq!(shots.offer(2, &cut, 1, &LIMITS), None);
        assert_eq!(offer(&mut shots, 2, 80), Some(80));
        assert_eq!(shots.end(2), None);
    }

    #[test]
    fn crops_below_the_minimum_quality_are_never_sent() {
        let mut shots = BestShots::default();
        let bad = QualityInputs { size: 10, sharpness: 1.0, score: 0.6, cut: false };
        assert!(bad.quality() < LIMITS.min_quality);
        assert!(
            shots.observe(1, SNAPSHOT, bad.upper_bound(), Duration::ZERO, &LIMITS),
            "it might have been sharp"
        );
        assert_eq!(shots.offer(1, &bad, 1, &LIMITS), None);
        assert_eq!(shots.end(1), None);
    }

    #[test]
    fn a_track_limited_to_one_crop_wants_no_more() {
        let limits = Limits { max_per_track: 1, ..LIMITS };
        let mut shots = BestShots::default();
        assert!(shots.observe(1, SNAPSHOT, FAIR.upper_bound(), Duration::ZERO, &limits));
        assert_eq!(shots.offer(1, &FAIR, 1, &limits), Some(1));
        assert!(!shots.observe(1, snapshot(1, 1.0), 1.0, Duration::ZERO, &limits));
        assert_eq!(shots.end(1), None);
    }

    #[test]
    fn an_unchanged_face_is_not_cropped_again_but_keeps_its_track_alive() {
        let mut shots = BestShots::default();
        assert!(shots.observe(1, SNAPSHOT, 1.0, Duration::ZERO, &LIMITS));
        let dull = QualityInputs { sharpness: 0.0, cut: true, ..FAIR };
        assert_eq!(shots.offer(1, &dull, 1, &LIMITS), None);
        for seconds in 1..20 {
            assert!(!shots.observe(1, SNAPSHOT, 1.0, Duration::from_secs(seconds), &LIMITS), "as it was");
            assert!(shots.end_idle(Duration::from_secs(seconds)).is_empty());
        }
        let moved = snapshot(11, 0.8);
        assert!(shots.observe(1, moved, 1.0, Duration::from_secs(20), &LIMITS));
    }

    #[test]
    fn tracks_that_end_without_a_crop_are_counted_by_reason() {
        let mut shots = BestShots::default();
        let now = Duration::ZERO;
        shots.reject(1, RejectReason::TooSmall, now);
        shots.reject(2, RejectReason::TooSmall, now);
        shots.reject(2, RejectReason::TooPoor, now);
        shots.reject(3, RejectReason::TooSmall, now);
        assert_eq!(offer(&mut shots, 3, 100), Some(100), "it has come nearer");
        shots.reject(4, RejectReason::TooSmall, now);
        let cut = QualityInputs { cut: true, ..FAIR };
        assert!(shots.observe(4, SNAPSHOT, cut.upper_bound(), now, &LIMITS));
        assert_eq!(shots.offer(4, &cut, 4, &LIMITS), None);
        assert_eq!(shots.unsent(), UnsentTracks::default(), "none has ended");
        assert_eq!(shots.end_all(), [4]);
        assert_eq!(shots.unsent(), UnsentTracks { too_small: 1, too_poor: 1, uncertain: 0 });
    }

    /// Offers crops with these scores, each slightly larger than the one before, and returns which are sent.
    fn by_scores(shots: &mut BestShots<u32>, track: i32, scores: &[f64]) -> Vec<u32> {
        let limits = Limits { certainty: 0.8, ..LIMITS };
        let mut sent = Vec::new();
        for (number, &score) in (0..).zip(scores) {
            let inputs = QualityInputs { size: 80 + number, score, ..FAIR };
            let face = snapshot(number, score);
            let wanted = shots.observe(track, face, inputs.upper_bound(), Duration::ZERO, &limits);
            sent.extend(shots.take_due(track));
            if wanted {
                sent.extend(shots.offer(track, &inputs, number, &limits));
            }
        }
        sent
    }

    #[test]
    fn a_crop_is_sent_once_the_detector_is_sure_of_the_face() {
        let mut shots = BestShots::default();
        assert_eq!(by_scores(&mut shots, 1, &[0.97]), [0], "at once");
        assert_eq!(
            by_scores(&mut shots, 2, &[0.62, 0.7, 0.82, 0.65, 0.81]),
            [2],
            "the best of those until then"
        );
        assert_eq!(by_scores(&mut shots, 3, &[0.62, 0.95, 0.7]), [] as [u32; 0]);
        assert_eq!(shots.end(3), Some(1), "at the end, since it was likely once");
        assert_eq!(shots.unsent(), UnsentTracks::default());
    }

    #[test]
    fn tracks_below_the_certainty_send_nothing() {
        let mut shots = BestShots::default();
        assert_eq!(by_scores(&mut shots, 1, &[0.62, 0.83, 0.7, 0.69]), [] as [u32; 0]);
        assert_eq!(shots.end(1), None);
        assert_eq!(shots.unsent(), UnsentTracks { uncertain: 1, ..UnsentTracks::default() });
        // Frames of a still scene count once.
        let limits = Limits { certainty: 0.8, ..LIMITS };
        for seconds in 0..3 {
            let wanted =
                shots.observe(2, SNAPSHOT, FAIR.upper_bound(), Duration::from_secs(seconds), &limits);
            assert_eq!(wanted, seconds == 0);
            assert_eq!(shots.take_due(2), None);
            if wanted {
                assert_eq!(shots.offer(2, &FAIR, 9, &limits), None);
            }
        }
        assert_eq!(shots.end(2), None);
    }

    #[test]
    fn idle_tracks_end() {
        let mut shots = BestShots::default();
        for (track, seconds) in [(7, 0), (8, 4)] {
            assert!(shots.observe(track, SNAPSHOT, 1.0, Duration::from_secs(seconds), &LIMITS));
            let cut = QualityInputs { cut: true, size: 160, ..FAIR };
            assert_eq!(shots.offer(track, &cut, track, &LIMITS), None);
        }
        assert!(shots.end_idle(Duration::from_secs(5)).is_empty());
        assert_eq!(shots.end_idle(Duration::from_secs(6)), [7]);
        assert_eq!(shots.end_all(), [8]);
        assert!(shots.end_all().is_empty());
    }
}
