//! The rectangle of the edge: boxes of detections and tracks, crops, and what an overlay draws.

use std::ops::Sub;

/// An axis-aligned rectangle. `x` grows to the right and `y` downwards; pixel `n` covers `n` to `n + 1`, so that whole pixels
/// have their first pixel in `left` and `top`, and `right` and `bottom` are one past the last.
///
/// `T` is a number of pixels, unless stated otherwise: whole (`u32`) for what is on a frame, real for what a network or a
/// tracker estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BoundingBox<T> {
    /// Left edge.
    pub left: T,
    /// Upper edge.
    pub top: T,
    /// Right edge.
    pub right: T,
    /// Lower edge.
    pub bottom: T,
}

impl<T: Copy> BoundingBox<T> {
    /// Makes a box of its edges.
    pub const fn new(left: T, top: T, right: T, bottom: T) -> Self {
        Self { left, top, right, bottom }
    }

    /// Returns left, top, right and bottom.
    pub const fn edges(&self) -> [T; 4] {
        [self.left, self.top, self.right, self.bottom]
    }

    /// Converts each edge.
    pub fn map<U>(self, mut convert: impl FnMut(T) -> U) -> BoundingBox<U> {
        let Self { left, top, right, bottom } = self;
        BoundingBox { left: convert(left), top: convert(top), right: convert(right), bottom: convert(bottom) }
    }
}

impl<T: Copy + PartialOrd + Sub<Output = T> + Default> BoundingBox<T> {
    /// Returns the width, 0 where `right` is not beyond `left`.
    pub fn width(&self) -> T {
        length(self.left, self.right)
    }

    /// Returns the height, 0 where `bottom` is not below `top`.
    pub fn height(&self) -> T {
        length(self.top, self.bottom)
    }

    /// Returns whether it covers nothing; true where an edge is not a number.
    pub fn is_empty(&self) -> bool {
        !(self.left < self.right && self.top < self.bottom)
    }

    /// Returns the part that both boxes cover, which may be empty.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let max = |a: T, b: T| if a < b { b } else { a };
        let min = |a: T, b: T| if b < a { b } else { a };
        Self {
            left: max(self.left, other.left),
            top: max(self.top, other.top),
            right: min(self.right, other.right),
            bottom: min(self.bottom, other.bottom),
        }
    }

    /// Returns the part within a frame of `width` x `height`; `None` where that is empty.
    #[must_use]
    pub fn clipped(&self, width: T, height: T) -> Option<Self> {
        let frame = Self { left: T::default(), top: T::default(), right: width, bottom: height };
        Some(self.intersection(&frame)).filter(|inside| !inside.is_empty())
    }
}

impl<T: Copy + PartialOrd + Sub<Output = T> + Default + Into<f64>> BoundingBox<T> {
    /// Returns the area, 0 for an empty box.
    pub fn area(&self) -> f64 {
        self.width().into() * self.height().into()
    }

    /// Returns `x` and `y` of the middle.
    pub fn centre(&self) -> (f64, f64) {
        let [left, top, right, bottom] = self.edges().map(Into::into);
        (f64::midpoint(left, right), f64::midpoint(top, bottom))
    }

    /// Returns the intersection over union, 0 to 1; 0 where both are empty.
    pub fn iou(&self, other: &Self) -> f64 {
        let shared = self.intersection(other).area();
        ratio(shared, self.area() + other.area() - shared)
    }

    /// Returns the intersection over the smaller area, 0 to 1; 0 where one is empty.
    pub fn overlap_of_smaller(&self, other: &Self) -> f64 {
        ratio(self.intersection(other).area(), self.area().min(other.area()))
    }
}

impl<T> From<[T; 4]> for BoundingBox<T> {
    /// Makes a box of left, top, right and bottom.
    fn from([left, top, right, bottom]: [T; 4]) -> Self {
        Self { left, top, right, bottom }
    }
}

impl BoundingBox<u32> {
    /// Makes a box of its upper left corner and its size. One that would reach beyond the range of `u32` ends there, with at
    /// least one pixel, since it is not empty.
    pub const fn from_size(left: u32, top: u32, width: u32, height: u32) -> Self {
        const fn edges(start: u32, length: u32) -> (u32, u32) {
            let end = start.saturating_add(length);
            if length > 0 && start == end { (end - 1, end) } else { (start, end) }
        }
        let ((left, right), (top, bottom)) = (edges(left, width), edges(top, height));
        Self { left, top, right, bottom }
    }

    /// Returns the box in fractions of the width and height of `outer`, from its upper left corner. What lies to the left of it
    /// or above counts as 0.
    pub fn relative_to(&self, outer: &Self) -> BoundingBox<f64> {
        let fraction =
            |at: u32, start: u32, length: u32| f64::from(at.saturating_sub(start)) / f64::from(length.max(1));
        let (across, down) = (outer.width(), outer.height());
        BoundingBox {
            left: fraction(self.left, outer.left, across),
            top: fraction(self.top, outer.top, down),
            right: fraction(self.right, outer.left, across),
            bottom: fraction(self.bottom, outer.top, down),
        }
    }
}

impl BoundingBox<f64> {
    /// Returns the box grown by `x` on the left and on the right, and by `y` above and below.
    #[must_use]
    pub fn expanded(&self, (x, y): (f64, f64)) -> Self {
        Self { left: self.left - x, top: self.top - y, right: self.right + x, bottom: self.bottom + y }
    }
}

fn length<T: PartialOrd + Sub<Output = T> + Default>(start: T, end: T) -> T {
    if start < end { end - start } else { T::default() }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iou_is_the_ratio_of_the_areas() {
        let square = BoundingBox::new(0.0, 0.0, 80.0, 100.0);
        let shifted = |x: f64| BoundingBox::new(x, 0.0, x + 80.0, 100.0);
        assert_eq!(square.iou(&square), 1.0);
        assert!((square.iou(&shifted(40.0)) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(square.iou(&shifted(80.0)), 0.0);
        let inner = BoundingBox::new(10.0, 10.0, 50.0, 60.0);
        assert_eq!((square.iou(&inner), square.overlap_of_smaller(&inner)), (0.25, 1.0));
        let whole = BoundingBox::from_size(2, 3, 4, 5);
        assert_eq!((whole.edges(), whole.area(), whole.iou(&whole)), ([2, 3, 6, 8], 20.0, 1.0));
    }

    #[test]
    fn empty_and_inverted_boxes_cover_nothing() {
        let square = BoundingBox::new(0_u32, 0, 10, 10);
        for empty in [BoundingBox::new(5, 5, 5, 5), BoundingBox::new(8, 2, 3, 9)] {
            assert!(empty.is_empty());
            assert_eq!(
                (square.iou(&empty), empty.iou(&empty), empty.overlap_of_smaller(&square)),
                (0.0, 0.0, 0.0)
            );
        }
        assert!(BoundingBox::new(0.0, f32::NAN, 1.0, 1.0).is_empty());
    }

    #[test]
    fn relative_edges_are_fractions_of_the_outer_box() {
        let outer = BoundingBox::from_size(100, 50, 200, 80);
        let face = BoundingBox::from_size(150, 60, 100, 40);
        assert_eq!(face.relative_to(&outer), BoundingBox::new(0.25, 0.125, 0.75, 0.625));
    }

    #[test]
    fn a_box_beyond_the_range_ends_there_and_is_not_empty() {
        const MAX: u32 = u32::MAX;
        let edges = |left, width| BoundingBox::from_size(left, 0, width, 1).edges();
        assert_eq!(edges(MAX - 5, 10), [MAX - 5, 0, MAX, 1]);
        assert_eq!(edges(MAX, MAX), [MAX - 1, 0, MAX, 1]);
        assert_eq!(edges(MAX, 0), [MAX, 0, MAX, 1]);
        assert_eq!(edges(0, MAX), [0, 0, MAX, 1]);
    }

    #[test]
    fn clipping_keeps_the_part_inside_the_frame() {
        let face = BoundingBox::new(-5.0, 10.0, 20.0, 40.0);
        assert_eq!(face.clipped(15.0, 30.0), Some(BoundingBox::new(0.0, 10.0, 15.0, 30.0)));
        assert_eq!(face.clipped(15.0, 10.0), None);
    }
}
