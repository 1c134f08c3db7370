//! The main face of a picture: the one that it was taken of. `docs/decisions/0036-the-main-face.md` has the measurements that
//! the constants come from.

use crate::{BoundingBox, largest_face};

/// Minimum confidence of a face beside another one: hair, fabric and shadows are mostly detected with less.
pub const MIN_CONFIDENCE_BESIDE_OTHERS: f32 = 0.9;

/// How many times the area of every other face the main face has, at least.
pub const MIN_AREA_RATIO: f32 = 1.25;

/// How far the main face is from the centre of the picture, at most, in distances of every other face.
pub const MAX_DISTANCE_RATIO: f32 = 0.5;

/// The area from which on it suffices that the main face is not farther from the centre than the other one, in areas of that.
pub const MUCH_LARGER: f32 = 3.0;

/// A detected face: its box and the detector's confidence, 0 to 1.
pub type Candidate = (BoundingBox, f32);

/// Returns the position of the main face among all faces that a detector found in a picture of this width and height; `None`
/// where there is no face, or no main one.
///
/// A single face is the main one. Of several, those count whose confidence is at least [`MIN_CONFIDENCE_BESIDE_OTHERS`] (all,
/// where none has it). The main face is the largest of them, by the area inside the picture, and clearly so: compared with
/// every other one it has at least [`MIN_AREA_RATIO`] times the area and at most [`MAX_DISTANCE_RATIO`] times the distance from
/// the centre; or it has at least [`MUCH_LARGER`] times the area and is not farther from the centre.
pub fn main_face(faces: &[Candidate], size: [u32; 2]) -> Option<usize> {
    if faces.len() < 2 {
        return faces.first().map(|_| 0);
    }
    let is_sure = |(_, confidence): &Candidate| *confidence >= MIN_CONFIDENCE_BESIDE_OTHERS;
    let any_sure = faces.iter().any(is_sure);
    let counted: Vec<(usize, Prominence)> = faces
        .iter()
        .enumerate()
        .filter(|(_, face)| !any_sure || is_sure(face))
        .map(|(position, (bounds, _))| (position, Prominence::of(bounds, size)))
        .collect();
    let (position, largest) = counted.iter().max_by(|(_, a), (_, b)| a.area.total_cmp(&b.area))?;
    let others = counted.iter().filter(|(other, _)| other != position);
    others.map(|(_, other)| other).all(|other| largest.is_clear_beside(other)).then_some(*position)
}

/// Returns the position of the [main face](main_face), or else of the [largest](largest_face); `None` where there is no face.
pub fn main_or_largest(faces: &[Candidate], size: [u32; 2]) -> Option<usize> {
    main_face(faces, size).or_else(|| largest_face(faces.iter().map(|(bounds, _)| *bounds)))
}

/// How much a face stands out in its picture.
#[derive(Debug, Clone, Copy)]
struct Prominence {
    /// Area inside the picture, square pixels.
    area: f32,
    /// Distance of the box's centre from the picture's, pixels.
    distance: f32,
}

impl Prominence {
    #[expect(clippy::cast_precision_loss, reason = "sides of pictures are small")]
    fn of(bounds: &BoundingBox, [width, height]: [u32; 2]) -> Self {
        let [width, height] = [width as f32, height as f32];
        let visible = BoundingBox {
            left: bounds.left.clamp(0.0, width),
            top: bounds.top.clamp(0.0, height),
            right: bounds.right.clamp(0.0, width),
            bottom: bounds.bottom.clamp(0.0, height),
        };
        let [x, y] = bounds.center();
        Self { area: visible.area(), distance: (x - width / 2.0).hypot(y - height / 2.0) }
    }

    fn is_clear_beside(&self, other: &Self) -> bool {
        (self.area >= MIN_AREA_RATIO * other.area && self.distance <= MAX_DISTANCE_RATIO * other.distance)
            || (self.area >= MUCH_LARGER * other.area && self.distance <= other.distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: [u32; 2] = [400, 300];

    /// Returns a square face around this point.
    fn face(x: f32, y: f32, side: f32, confidence: f32) -> Candidate {
        let half = side / 2.0;
        (BoundingBox { left: x - half, top: y - half, right: x + half, bottom: y + half }, confidence)
    }

    #[test]
    fn a_single_face_is_the_main_one_wherever_it_is() {
        assert_eq!(main_face(&[face(20.0, 20.0, 30.0, 0.71)], SIZE), Some(0));
        assert_eq!(main_face(&[], SIZE), None);
        assert_eq!(main_or_largest(&[], SIZE), None);
    }

    #[test]
    fn the_main_face_is_larger_and_nearer_to_the_centre_than_every_other() {
        let main = face(205.0, 150.0, 100.0, 0.99);
        let beside = |side| face(330.0, 150.0, side, 0.99);
        assert_eq!(main_face(&[beside(85.0), main], SIZE), Some(1), "1.38 times the area");
        assert_eq!(main_face(&[beside(92.0), main], SIZE), None, "1.18 times the area");
        assert_eq!(main_face(&[beside(85.0), main, face(60.0, 150.0, 95.0, 0.99)], SIZE), None);
        let pair = [face(120.0, 150.0, 110.0, 0.99), face(290.0, 150.0, 90.0, 0.99)];
        assert_eq!(main_face(&pair, SIZE), None, "two people, both as far from the centre");
        assert_eq!(main_or_largest(&pair, SIZE), Some(0));
        let portrait = [face(140.0, 150.0, 160.0, 0.99), face(270.0, 80.0, 60.0, 0.99)];
        assert_eq!(main_face(&portrait, SIZE), Some(0), "off the centre, and much larger");
        assert_eq!(main_or_largest(&portrait, SIZE), Some(0));
        let behind = [face(60.0, 150.0, 110.0, 0.99), face(205.0, 150.0, 50.0, 0.99)];
        assert_eq!(main_face(&behind, SIZE), None, "the smaller one is in the centre");
    }

    #[test]
    fn candidates_that_the_detector_is_not_sure_of_do_not_count_beside_others() {
        let main = face(200.0, 150.0, 80.0, 0.95);
        assert_eq!(main_face(&[face(300.0, 200.0, 120.0, 0.82), main], SIZE), Some(1), "a dress");
        assert_eq!(main_face(&[face(300.0, 200.0, 120.0, 0.92), main], SIZE), None);
        assert_eq!(main_face(&[face(300.0, 200.0, 85.0, 0.8), face(200.0, 150.0, 80.0, 0.8)], SIZE), None);
    }

    #[test]
    fn only_the_area_inside_the_picture_counts() {
        let main = face(200.0, 150.0, 80.0, 0.99);
        let cut = face(390.0, 150.0, 100.0, 0.99);
        assert_eq!(main_face(&[cut, main], SIZE), None, "60 of 100 pixels are visible: 6000 against 6400");
        assert_eq!(main_face(&[face(398.0, 150.0, 90.0, 0.99), main], SIZE), Some(1), "47 of 90: 4230");
    }
}
