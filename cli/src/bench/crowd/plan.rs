//! Plans the walks of a crowd before the first frame is painted.

use std::collections::VecDeque;

use crate::seeded_rng::SeededRng;

/// Frames per second, as in the thesis.
pub const FPS: u32 = 6;

/// Duration of a walk from entering in the distance to leaving, seconds.
pub const WALK_SECONDS: f64 = 5.0;

/// Time until the next photograph is shown, seconds.
const POSE_SECONDS: f64 = 1.5;

/// Frame size for which the lengths below are given, pixels.
const DESIGN_SIZE: [f64; 2] = [1920.0, 1080.0];

/// Range of the face height at the start of a walk, pixels.
const FAR_HEIGHT: [f64; 2] = [36.0, 70.0];
/// Range of the face height at the end of a walk, pixels.
const NEAR_HEIGHT: [f64; 2] = [90.0, 210.0];
/// Maximum sideways speed, pixels per second.
const MAX_DRIFT: f64 = 90.0;
/// y of the centre of a face at the start of a walk, and how far it moves down, pixels.
const HORIZON: f64 = 330.0;
const DESCENT: f64 = 260.0;
/// Steps per second, and the vertical bob of a head, pixels.
const STEPS_PER_SECOND: f64 = 1.4;
const STEP_HEIGHT: f64 = 12.0;

/// Size of the pasted part of a photograph, in face heights: width, height.
pub const HEAD_SIZE: [f64; 2] = [1.6, 1.7];

/// Candidate paths per walker; the one with the greatest clearance is used.
const PATH_CANDIDATES: usize = 8;

/// Maximum number of plans, and the relative deviation from the density at which one is accepted at once.
const MAX_PLANS: usize = 50;
const DENSITY_TOLERANCE: f64 = 0.01;

/// A walk of one person.
#[derive(Debug, Clone, PartialEq)]
pub struct Walker {
    /// Number in the ground truth.
    pub id: usize,
    pub person: usize,
    /// Index of the first photograph, modulo their number.
    first_pose: usize,
    /// Entry time in frames; may be negative and fractional.
    start_frame: f64,
    /// x of the face centre at the start and at the end, pixels.
    x: [f64; 2],
    /// Height of the face at the start and at the end, pixels.
    size: [f64; 2],
}

/// Position and size of a walker's face in one frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// Centre of the face, `[x, y]` in pixels.
    pub middle: [f64; 2],
    /// Height of the face, pixels.
    pub size: f64,
    /// Index of the photograph shown, modulo their number.
    pub pose: usize,
}

/// Returns the length of a walk in frames.
fn walk_frames() -> f64 {
    WALK_SECONDS * f64::from(FPS)
}

/// Returns the mean number of frames between walkers at this density, faces per minute.
fn interval(density: f64) -> f64 {
    let faces_per_frame = density / 60.0 / f64::from(FPS);
    walk_frames() / faces_per_frame
}

/// Returns the number of walkers in `frames` frames at `density` faces per minute.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and casts from float saturate"
)]
pub fn walkers_needed(density: f64, frames: u32) -> usize {
    // Walkers who enter up to one walk before the first frame are still visible in it.
    ((f64::from(frames) + walk_frames()) / interval(density)).ceil() as usize
}

/// Plans the walkers of `frames` frames of this width and height, in order of entry. `people` is the number of people;
/// nobody walks twice before everybody has walked once.
///
/// In a short video a few walkers matter, so several plans are made until one is close to the density.
pub fn walkers(density: f64, frames: u32, size: [u32; 2], people: usize, rng: &mut SeededRng) -> Vec<Walker> {
    let wanted = density / 60.0 / f64::from(FPS) * f64::from(frames);
    let mut best: Option<(f64, Vec<Walker>)> = None;
    for _ in 0..MAX_PLANS {
        let plan = one_plan(density, frames, size, people, rng);
        let faces: f64 = plan.iter().map(|walker| walker.frames_seen(frames)).sum();
        let off = (faces - wanted).abs();
        if best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, plan));
        }
        if off <= wanted * DENSITY_TOLERANCE {
            break;
        }
    }
    best.map(|(_, plan)| plan).unwrap_or_default()
}

/// Assigns the longest walks to `people`, swapping them with the people who had those walks.
pub fn give_longest_walks(walkers: &mut [Walker], people: impl IntoIterator<Item = usize>, frames: u32) {
    let mut longest: Vec<usize> = (0..walkers.len()).collect();
    let seen = |walk: &usize| walkers.get(*walk).map_or(0.0, |walker| walker.frames_seen(frames));
    longest.sort_by(|a, b| seen(b).total_cmp(&seen(a)));
    let mut given = Vec::new();
    for (person, walk) in people.into_iter().zip(longest) {
        let own = walkers.iter().position(|walker| walker.person == person && !given.contains(&walker.id));
        let other = walkers.get(walk).map(|walker| walker.person);
        if let (Some(own), Some(other)) = (own.and_then(|own| walkers.get_mut(own)), other) {
            own.person = other;
        }
        if let Some(walker) = walkers.get_mut(walk) {
            walker.person = person;
            given.push(walker.id);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of walkers are far below 2^52")]
fn one_plan(
    density: f64,
    frames: u32,
    [width, height]: [u32; 2],
    people: usize,
    rng: &mut SeededRng,
) -> Vec<Walker> {
    let [width, height] = [f64::from(width), f64::from(height)];
    let [across, down] = [width / DESIGN_SIZE[0], height / DESIGN_SIZE[1]];
    let scale = across.min(down);
    let interval = interval(density);
    let mut order: Vec<usize> = (0..people).collect();
    let mut recent: VecDeque<Walker> = VecDeque::new();
    let mut walkers = Vec::new();
    for id in 0..walkers_needed(density, frames) {
        let position = id % people.max(1);
        if position == 0 {
            rng.shuffle(&mut order);
        }
        // One per interval: irregular arrivals at the requested density.
        let start_frame = (id as f64 + rng.unit()) * interval - walk_frames();
        let size = [
            rng.uniform(FAR_HEIGHT[0], FAR_HEIGHT[1]) * scale,
            rng.uniform(NEAR_HEIGHT[0], NEAR_HEIGHT[1]) * scale,
        ];
        // The whole head stays within the frame, so that every face of the ground truth is visible.
        let [from, to] = size.map(|size| size * HEAD_SIZE[0] / 2.0);
        while recent.front().is_some_and(|other| other.start_frame + walk_frames() <= start_frame) {
            recent.pop_front();
        }
        let first_pose = rng.below(1 << 20);
        let mut best: Option<(f64, Walker)> = None;
        for _ in 0..PATH_CANDIDATES {
            let start = rng.uniform(from, width - from);
            let drift = rng.uniform(-MAX_DRIFT, MAX_DRIFT) * across * WALK_SECONDS;
            let end = (start + drift).clamp(to, width - to);
            let person = order.get(position).copied().unwrap_or_default();
            let path = Walker { id, person, first_pose, start_frame, x: [start, end], size };
            let clearance = recent.iter().map(|other| path.clearance_to(other)).fold(f64::INFINITY, f64::min);
            if best.as_ref().is_none_or(|(most, _)| clearance > *most) {
                best = Some((clearance, path));
            }
        }
        if let Some((_, walker)) = best {
            recent.push_back(walker.clone());
            walkers.push(walker);
        }
    }
    walkers
}

impl Walker {
    /// Returns the position in a frame of this height; none before entering and after leaving.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a walk has a handful of poses"
    )]
    pub fn placement(&self, frame: u32, frame_height: u32) -> Option<Placement> {
        let part = (f64::from(frame) - self.start_frame) / walk_frames();
        if !(0.0..1.0).contains(&part) {
            return None;
        }
        let down = f64::from(frame_height) / DESIGN_SIZE[1];
        let seconds = part * WALK_SECONDS;
        // A parabola per step: the last digit of a sine may differ between machines.
        let step = (seconds * STEPS_PER_SECOND).fract();
        let bob = STEP_HEIGHT * (4.0 * step * (1.0 - step) - 0.5);
        let y = (HORIZON + DESCENT * part - bob) * down;
        let pose = self.first_pose + (seconds / POSE_SECONDS) as usize;
        Some(Placement { middle: [interpolate(self.x, part), y], size: interpolate(self.size, part), pose })
    }

    /// Returns whether the walk ended before this frame.
    pub fn has_left(&self, frame: u32) -> bool {
        f64::from(frame) - self.start_frame >= walk_frames()
    }

    /// Returns whether the walk has started by this frame.
    pub fn has_entered(&self, frame: u32) -> bool {
        f64::from(frame) >= self.start_frame
    }

    /// Returns in how many of the first `frames` frames the walker is visible.
    fn frames_seen(&self, frames: u32) -> f64 {
        let last = (self.start_frame + walk_frames()).ceil().min(f64::from(frames));
        (last - self.start_frame.ceil().max(0.0)).max(0.0)
    }

    /// Returns the minimum horizontal distance between two heads while both are visible, relative to the sum of their half
    /// widths, minus 1; negative values mean that one occludes the other.
    fn clearance_to(&self, other: &Self) -> f64 {
        let overlap_begins = self.start_frame.max(other.start_frame);
        let overlap_ends = self.start_frame.min(other.start_frame) + walk_frames();
        let at = |share: f64| {
            let frame = overlap_begins + (overlap_ends - overlap_begins) * share;
            let [a, b] = [self, other].map(|walker| {
                let part = (frame - walker.start_frame) / walk_frames();
                (interpolate(walker.x, part), interpolate(walker.size, part) * HEAD_SIZE[0] / 2.0)
            });
            (a.0 - b.0).abs() / (a.1 + b.1) - 1.0
        };
        [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().map(at).fold(f64::INFINITY, f64::min)
    }
}

fn interpolate([from, to]: [f64; 2], part: f64) -> f64 {
    from + (to - from) * part
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const FRAME: [u32; 2] = [1920, 1080];

    fn plan(density: f64, seconds: u32, seed: u64) -> Vec<Walker> {
        walkers(density, seconds * FPS, FRAME, 10, &mut SeededRng::new(seed, 0))
    }

    #[test]
    fn the_requested_density_is_reached() {
        for (density, seconds) in [(305.0, 12), (865.0, 5), (1479.0, 60)] {
            for seed in 0..5 {
                let walkers = plan(density, seconds, seed);
                let places = (0..seconds * FPS)
                    .flat_map(|k| walkers.iter().filter_map(move |w| w.placement(k, FRAME[1])));
                let faces = f64::from(u32::try_from(places.count()).unwrap());
                let reached = faces * 60.0 / f64::from(seconds);
                assert!((reached / density - 1.0).abs() < 0.05, "seed {seed}: {reached} of {density}");
                assert_eq!(walkers.iter().map(|w| w.frames_seen(seconds * FPS)).sum::<f64>(), faces);
            }
        }
    }

    #[test]
    fn heads_stay_within_the_frame_and_grow() {
        for walker in plan(865.0, 60, 1) {
            let places: Vec<Placement> =
                (0..60 * FPS).filter_map(|k| walker.placement(k, FRAME[1])).collect();
            assert!(places.is_sorted_by(|a, b| a.size < b.size));
            for Placement { middle: [x, y], size, .. } in places {
                let [across, down] = HEAD_SIZE.map(|times| times * size / 2.0);
                assert!(x - across >= -1e-9 && x + across <= 1920.0 + 1e-9, "{x} {size}");
                assert!(y - down >= 0.0 && y + down <= 1080.0, "{y} {size}");
            }
        }
    }

    #[test]
    fn a_photograph_is_shown_for_one_and_a_half_seconds() {
        let walkers = plan(305.0, 60, 3);
        let walker = walkers.iter().find(|w| w.start_frame > 0.0).unwrap();
        let poses: Vec<usize> =
            (0..360).filter_map(|k| walker.placement(k, 1080)).map(|place| place.pose).collect();
        assert_eq!(poses.len(), 30);
        let shown: Vec<usize> = poses.chunk_by(|a, b| a == b).map(<[usize]>::len).collect();
        assert_eq!(shown.len(), 4);
        assert!(shown[..3].iter().all(|frames| (8..=10).contains(frames)), "{shown:?}");
    }

    #[test]
    fn nobody_walks_twice_before_everybody_has_walked() {
        let walkers = plan(1479.0, 60, 2);
        for round in walkers.chunks(10) {
            let people: BTreeSet<usize> = round.iter().map(|w| w.person).collect();
            assert_eq!(people.len(), round.len());
        }
    }

    #[test]
    fn chosen_people_get_the_longest_walks_and_nobody_is_lost() {
        let people = |walkers: &[Walker]| {
            let mut people: Vec<usize> = walkers.iter().map(|walker| walker.person).collect();
            people.sort_unstable();
            people
        };
        for seed in 0..20 {
            let mut walkers = plan(305.0, 20, seed);
            let before = people(&walkers);
            let chosen = [walkers[0].person, walkers.last().unwrap().person];
            give_longest_walks(&mut walkers, chosen, 20 * FPS);
            assert_eq!(people(&walkers), before);
            for person in chosen {
                let longest = walkers.iter().filter(|walker| walker.person == person);
                let longest = longest.map(|walker| walker.frames_seen(20 * FPS)).fold(0.0, f64::max);
                assert!(longest >= walk_frames() - 1.0, "{longest} of {walkers:?}");
            }
        }
    }

    #[test]
    fn the_seed_determines_the_plan() {
        assert_eq!(plan(865.0, 10, 4), plan(865.0, 10, 4));
        assert_ne!(plan(865.0, 10, 4), plan(865.0, 10, 5));
    }
}
