//! Paints a crowd frame by frame: heads cut from photographs with soft edges in front of the backdrop.

use anyhow::Result;
use facepipe_vision::BoundingBox;
use image::{
    Rgb, RgbImage,
    imageops::{self, FilterType},
};

use super::{
    cast::{Cast, Photograph},
    plan::{HEAD_SIZE, Placement, Walker},
};
use crate::{exit::Failure, networks, trial::Appearance};

/// Share of a head's radius within which it is opaque; beyond, it fades out towards the full radius.
const OPAQUE_RADIUS: f64 = 0.75;

/// Paints the frames of a crowd in order. Only the heads of visible walkers are kept in memory.
pub struct Painter<'a> {
    backdrop: RgbImage,
    cast: &'a Cast,
    /// Walkers who have not entered yet, in order of entry.
    upcoming: &'a [Walker],
    /// Walkers in view, farthest (latest) first.
    visible: Vec<VisibleWalker<'a>>,
    frame: u32,
}

struct VisibleWalker<'a> {
    walker: &'a Walker,
    head: Option<Head>,
}

/// The part of a photograph that is pasted into frames.
struct Head {
    /// Index of the walker's photograph.
    pose: usize,
    pixels: RgbImage,
    /// Width of the face as a share of its height.
    aspect: f64,
}

impl<'a> Painter<'a> {
    /// Creates a painter for `walkers` in order of entry.
    pub fn new(backdrop: RgbImage, cast: &'a Cast, walkers: &'a [Walker]) -> Self {
        Self { backdrop, cast, upcoming: walkers, visible: Vec::new(), frame: 0 }
    }

    /// Paints the next frame and returns it with the faces in it.
    ///
    /// # Errors
    /// A photograph can no longer be read.
    pub fn next_frame(&mut self) -> Result<(RgbImage, Vec<Appearance>)> {
        let number = self.frame;
        self.frame += 1;
        self.visible.retain(|visible| !visible.walker.has_left(number));
        while let Some((walker, rest)) = self.upcoming.split_first()
            && walker.has_entered(number)
        {
            self.upcoming = rest;
            if !walker.has_left(number) {
                self.visible.insert(0, VisibleWalker { walker, head: None });
            }
        }
        let mut frame = self.backdrop.clone();
        let mut faces = Vec::new();
        for visible in &mut self.visible {
            let Some(place) = visible.walker.placement(number, frame.height()) else { continue };
            let Some(person) = self.cast.people.get(visible.walker.person) else { continue };
            let pose = place.pose % person.photographs.len().max(1);
            if visible.head.as_ref().is_none_or(|head| head.pose != pose) {
                let Some(photograph) = person.photographs.get(pose) else { continue };
                visible.head = Some(Head::cut(photograph, pose)?);
            }
            if let Some(head) = &visible.head {
                faces.push(Appearance {
                    id: u64::try_from(visible.walker.id)?,
                    bounding_box: head.paste(&mut frame, &place),
                });
            }
        }
        Ok((frame, faces))
    }
}

impl Head {
    /// Cuts the head out of its photograph; beyond the photograph's edges its border pixels are repeated.
    fn cut(photograph: &Photograph, pose: usize) -> Result<Self, Failure> {
        let picture = networks::read_image(&photograph.file)
            .map_err(|passed_over| Failure::input(passed_over.file, passed_over.reason))?;
        let [face_width, face_height] = photograph.size;
        let [width, height] = HEAD_SIZE.map(|times| round_to_u32(times * face_height).max(1));
        let [left, top] = [0, 1].map(|axis: usize| {
            let (middle, times) = if axis == 0 {
                (photograph.middle[0], HEAD_SIZE[0])
            } else {
                (photograph.middle[1], HEAD_SIZE[1])
            };
            round_to_i64(middle - times * face_height / 2.0)
        });
        let within = |offset: u32, from: i64, size: u32| {
            let last = i64::from(size) - 1;
            u32::try_from((from + i64::from(offset)).clamp(0, last.max(0))).unwrap_or_default()
        };
        let pixels = RgbImage::from_fn(width, height, |x, y| {
            let (x, y) = (within(x, left, picture.width()), within(y, top, picture.height()));
            picture.get_pixel_checked(x, y).copied().unwrap_or(Rgb([0; 3]))
        });
        Ok(Self { pose, pixels, aspect: face_width / face_height })
    }

    /// Pastes the head and returns the bounds of its face.
    fn paste(&self, frame: &mut RgbImage, place: &Placement) -> BoundingBox {
        let [width, height] = HEAD_SIZE.map(|times| round_to_u32(times * place.size).max(2));
        let head = imageops::resize(&self.pixels, width, height, FilterType::CatmullRom);
        let [left, top] = [
            round_to_i64(place.middle[0] - f64::from(width) / 2.0),
            round_to_i64(place.middle[1] - f64::from(height) / 2.0),
        ];
        for (x, y, color) in head.enumerate_pixels() {
            let at = |offset: u32, from: i64| u32::try_from(from + i64::from(offset)).ok();
            let (Some(to_x), Some(to_y)) = (at(x, left), at(y, top)) else { continue };
            let Some(under) = frame.get_pixel_mut_checked(to_x, to_y) else { continue };
            let opacity = opacity([normalized(x, width), normalized(y, height)]);
            for (under, over) in under.0.iter_mut().zip(color.0) {
                let mixed = (u32::from(over) * opacity + u32::from(*under) * (255 - opacity) + 127) / 255;
                *under = u8::try_from(mixed).unwrap_or(u8::MAX);
            }
        }
        let (across, down) = (place.size * self.aspect / 2.0, place.size / 2.0);
        // The rounded position at which it was pasted.
        let [x, y] = [center(left, width), center(top, height)];
        let [left, top, right, bottom] = [x - across, y - down, x + across, y + down].map(to_tenths);
        BoundingBox { left, top, right, bottom }
    }
}

/// Maps a pixel of `size` to -1 to 1.
fn normalized(at: u32, size: u32) -> f64 {
    (f64::from(at) + 0.5) * 2.0 / f64::from(size) - 1.0
}

#[expect(clippy::cast_precision_loss, reason = "within a frame and some heads beside it")]
fn center(from: i64, size: u32) -> f64 {
    from as f64 + f64::from(size) / 2.0
}

/// Rounds to a tenth of a pixel.
#[expect(clippy::cast_possible_truncation, reason = "pixels of a frame, rounded anyway")]
fn to_tenths(edge: f64) -> f32 {
    ((edge * 10.0).round() / 10.0) as f32
}

/// Returns the opacity of a head, 0 to 255, at a position as [`normalized`] returns it.
fn opacity([x, y]: [f64; 2]) -> u32 {
    let radius = (x * x + y * y).sqrt();
    let part = ((1.0 - radius) / (1.0 - OPAQUE_RADIUS)).clamp(0.0, 1.0);
    // Smoothstep.
    round_to_u32(255.0 * part * part * (3.0 - 2.0 * part))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts from float saturate")]
fn round_to_u32(value: f64) -> u32 {
    value.round() as u32
}

#[expect(clippy::cast_possible_truncation, reason = "casts from float saturate")]
fn round_to_i64(value: f64) -> i64 {
    value.round() as i64
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{
        bench::crowd::{backdrop, cast::Person, plan},
        seeded_rng::SeededRng,
    };

    const SIZE: [u32; 2] = [320, 180];

    /// Returns two people with two synthetic photographs each: pink with a dark centre.
    fn cast(folder: &std::path::Path) -> Cast {
        let person = |name: &str, red: u8| {
            let photographs = [40_u8, 90]
                .into_iter()
                .map(|dark| {
                    let file = folder.join(format!("{name}-{dark}.png"));
                    let picture = RgbImage::from_fn(80, 90, |x, y| {
                        let middle = x.abs_diff(40) < 15 && y.abs_diff(45) < 20;
                        Rgb(if middle { [dark, 10, 10] } else { [red, 150, 140] })
                    });
                    picture.save(&file).unwrap();
                    Photograph { file, middle: [40.0, 45.0], size: [30.0, 40.0] }
                })
                .collect();
            Person { name: Some(name.into()), photographs }
        };
        Cast { people: vec![person("a", 250), person("b", 200)], passed_over: Vec::new() }
    }

    fn frames(seed: u64, cast: &Cast) -> Vec<(RgbImage, Vec<Appearance>)> {
        let backdrop = backdrop::paint(SIZE, &mut SeededRng::new(seed, 1));
        let walkers = plan::walkers(865.0, 30, SIZE, cast.people.len(), &mut SeededRng::new(seed, 0));
        let mut painter = Painter::new(backdrop, cast, &walkers);
        (0..30).map(|_| painter.next_frame().unwrap()).collect()
    }

    fn hash(frames: &[(RgbImage, Vec<Appearance>)]) -> String {
        let mut hasher = Sha256::new();
        for (frame, faces) in frames {
            hasher.update(frame.as_raw());
            hasher.update(serde_json::to_vec(faces).unwrap());
        }
        format!("{:x?}", hasher.finalize())
    }

    #[test]
    fn the_same_seed_and_pictures_give_the_same_frames_and_truth_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let cast = cast(folder.path());
        let first = hash(&frames(1, &cast));
        assert_eq!(first, hash(&frames(1, &cast)));
        assert_ne!(first, hash(&frames(2, &cast)));
    }

    #[test]
    fn the_nearest_face_is_where_the_ground_truth_says() {
        let folder = tempfile::tempdir().unwrap();
        let cast = cast(folder.path());
        let mut checked = 0;
        for (frame, faces) in frames(1, &cast) {
            // Pasted last, so not covered.
            let Some(nearest) = faces.last() else { continue };
            let BoundingBox { left, top, right, bottom } = nearest.bounding_box;
            let [left, top, right, bottom] =
                [left, top, right, bottom].map(|edge| round_to_u32(f64::from(edge)));
            let [x, y] = [u32::midpoint(left, right), u32::midpoint(top, bottom)];
            let dark = |x: u32, y: u32| frame.get_pixel(x, y).0[1] < 60;
            assert!(dark(x, y), "{nearest:?}");
            assert!(
                dark(left + 2, y) && dark(right - 3, y) && dark(x, top + 2) && dark(x, bottom - 3),
                "{nearest:?}"
            );
            assert!(!dark(left.saturating_sub(2), y) && !dark(right + 2, y), "{nearest:?}");
            checked += 1;
        }
        assert!(checked > 20, "{checked}");
    }

    #[test]
    fn a_head_is_opaque_in_the_centre_and_fades_out() {
        assert_eq!(opacity([0.0, 0.0]), 255);
        assert_eq!(opacity([0.7, 0.0]), 255);
        assert_eq!(opacity([0.0, 1.0]), 0);
        assert_eq!(opacity([0.8, 0.8]), 0);
        let across: Vec<u32> = (0..=100).map(|i| opacity([f64::from(i) / 100.0, 0.0])).collect();
        assert!(
            across.is_sorted_by(|a, b| a >= b) && across.windows(2).all(|w| w[0] - w[1] <= 16),
            "{across:?}"
        );
    }

    #[test]
    fn a_deleted_photograph_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cast = cast(folder.path());
        drop(folder);
        let walkers = plan::walkers(865.0, 30, SIZE, 2, &mut SeededRng::new(1, 0));
        let mut painter = Painter::new(RgbImage::new(320, 180), &cast, &walkers);
        let error = (0..30).find_map(|_| painter.next_frame().err()).unwrap().to_string();
        assert!(error.contains(".png"), "{error}");
    }
}
