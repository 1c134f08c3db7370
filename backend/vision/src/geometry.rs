//! Bounding boxes and faces in pixels, and non-maximum suppression.

use serde::{Deserialize, Serialize};

/// A rectangle in pixels of the image it was found in; not clipped, so it may reach past the edges.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BoundingBox {
    /// x of the left edge.
    pub left: f32,
    /// y of the top edge.
    pub top: f32,
    /// x of the right edge.
    pub right: f32,
    /// y of the bottom edge.
    pub bottom: f32,
}

impl BoundingBox {
    /// Returns the width in pixels.
    pub fn width(&self) -> f32 {
        self.right - self.left
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> f32 {
        self.bottom - self.top
    }

    /// Returns the area in square pixels.
    pub fn area(&self) -> f32 {
        self.width() * self.height()
    }

    /// Returns whether the point `[x, y]` lies in it, edges included.
    pub fn contains(&self, [x, y]: [f32; 2]) -> bool {
        (self.left..=self.right).contains(&x) && (self.top..=self.bottom).contains(&y)
    }

    /// Returns the point in the middle, `[x, y]`.
    pub fn center(&self) -> [f32; 2] {
        [(self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0]
    }

    /// Returns the intersection over union with `other`, 0 to 1.
    pub fn iou(&self, other: &Self) -> f32 {
        overlap(self, other, Overlap::Union)
    }

    /// Returns the smallest square around the centre that holds the box: MTCNN's nets want squares.
    pub(crate) fn squared(&self) -> Self {
        let side = self.width().max(self.height());
        let left = self.left + self.width() * 0.5 - side * 0.5;
        let top = self.top + self.height() * 0.5 - side * 0.5;
        Self { left, top, right: left + side, bottom: top + side }
    }
}

impl From<[f32; 4]> for BoundingBox {
    /// From left, top, right and bottom.
    fn from([left, top, right, bottom]: [f32; 4]) -> Self {
        Self { left, top, right, bottom }
    }
}

impl From<BoundingBox> for [f32; 4] {
    /// Left, top, right and bottom.
    fn from(BoundingBox { left, top, right, bottom }: BoundingBox) -> Self {
        [left, top, right, bottom]
    }
}

/// Returns the position of the face whose box overlaps `wanted` most; `None` where the intersection over union of all is less
/// than `min_overlap`.
pub fn face_at(
    boxes: impl IntoIterator<Item = BoundingBox>,
    wanted: BoundingBox,
    min_overlap: f32,
) -> Option<usize> {
    let overlaps = boxes.into_iter().map(|found| found.iou(&wanted)).enumerate();
    let (position, overlap) = overlaps.max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    (overlap >= min_overlap).then_some(position)
}

/// Returns the position of the largest of several faces' boxes; `None` without faces. Where one face must do, this one counts:
/// the person who is photographed stands closest.
pub fn largest_face(boxes: impl IntoIterator<Item = BoundingBox>) -> Option<usize> {
    let areas = boxes.into_iter().map(|bounding_box| bounding_box.area()).enumerate();
    areas.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(position, _)| position)
}

/// A face in an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Face {
    /// Its bounding box.
    pub bounding_box: BoundingBox,
    /// Probability that it is a face, 0 to 1.
    pub confidence: f32,
    /// `[x, y]` in pixels: the eye, then the eye further right in the image, the nose, the corner of the mouth,
    /// and the corner further right in the image.
    pub landmarks: [[f32; 2]; 5],
}

/// How the overlap of two boxes is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlap {
    /// Intersection over union.
    Union,
    /// Intersection over the smaller of the two, with edges counted as whole pixels (`right - left + 1`), as MTCNN's
    /// last stage does.
    SmallerInclusive,
}

fn overlap(a: &BoundingBox, b: &BoundingBox, measure: Overlap) -> f32 {
    let edge = if measure == Overlap::SmallerInclusive { 1.0 } else { 0.0 };
    let area = |r: &BoundingBox| (r.width() + edge) * (r.height() + edge);
    let width = (a.right.min(b.right) - a.left.max(b.left) + edge).max(0.0);
    let height = (a.bottom.min(b.bottom) - a.top.max(b.top) + edge).max(0.0);
    let shared = width * height;
    match measure {
        Overlap::Union => shared / (area(a) + area(b) - shared),
        Overlap::SmallerInclusive => shared / area(a).min(area(b)),
    }
}

/// Keeps, from the highest score down, each item that overlaps no kept one by more than `threshold`.
///
/// The result is in descending order of score; equal scores keep the order they came in. By hand, since MTCNN's three measures
/// of overlap and that order must be the reference's.
pub(crate) fn suppress<T>(
    mut items: Vec<T>,
    threshold: f32,
    measure: Overlap,
    key: impl Fn(&T) -> (BoundingBox, f32),
) -> Vec<T> {
    items.sort_by(|a, b| key(b).1.total_cmp(&key(a).1));
    let mut kept: Vec<T> = Vec::new();
    let mut boxes: Vec<BoundingBox> = Vec::new();
    for item in items {
        let candidate = key(&item).0;
        if boxes.iter().all(|k| overlap(k, &candidate, measure) <= threshold) {
            boxes.push(candidate);
            kept.push(item);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(left: f32, top: f32, side: f32) -> BoundingBox {
        BoundingBox { left, top, right: left + side, bottom: top + side }
    }

    #[test]
    fn the_highest_scoring_of_overlapping_boxes_is_kept() {
        let items = vec![
            (square(0.0, 0.0, 10.0), 0.7),
            (square(1.0, 0.0, 10.0), 0.9),
            (square(50.0, 0.0, 10.0), 0.8),
        ];
        let kept = suppress(items, 0.5, Overlap::Union, |i| *i);
        assert_eq!(kept.iter().map(|k| k.1).collect::<Vec<_>>(), [0.9, 0.8]);
    }

    #[test]
    fn a_small_box_inside_a_large_one_is_suppressed_only_by_the_smaller_area() {
        let items = vec![(square(0.0, 0.0, 100.0), 0.9), (square(10.0, 10.0, 20.0), 0.8)];
        assert_eq!(suppress(items.clone(), 0.7, Overlap::Union, |i| *i).len(), 2);
        assert_eq!(suppress(items, 0.7, Overlap::SmallerInclusive, |i| *i).len(), 1);
    }

    #[test]
    fn the_largest_face_is_the_one_with_the_largest_area() {
        let tall = BoundingBox { left: 0.0, top: 0.0, right: 5.0, bottom: 40.0 };
        assert_eq!(largest_face([square(0.0, 0.0, 10.0), tall, square(9.0, 9.0, 14.0)]), Some(1));
        assert_eq!(largest_face([]), None);
    }

    #[test]
    fn the_face_at_a_place_is_the_one_that_overlaps_it_most() {
        let boxes = [square(0.0, 0.0, 10.0), square(4.0, 0.0, 10.0), square(50.0, 0.0, 10.0)];
        assert_eq!(face_at(boxes, square(5.0, 0.0, 10.0), 0.8), Some(1));
        assert_eq!(face_at(boxes, square(5.0, 0.0, 10.0), 0.9), None, "9 of 11");
        assert_eq!(face_at(boxes, square(30.0, 0.0, 10.0), 0.1), None);
        assert_eq!(face_at([], square(0.0, 0.0, 10.0), 0.0), None);
    }

    #[test]
    fn a_box_becomes_the_square_around_its_centre() {
        let tall = BoundingBox { left: 10.0, top: 0.0, right: 20.0, bottom: 40.0 };
        assert_eq!(tall.squared(), BoundingBox { left: -5.0, top: 0.0, right: 35.0, bottom: 40.0 });
    }
}
