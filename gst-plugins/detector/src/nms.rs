//! From the network's scores and boxes to detections: threshold, then greedy non-maximum suppression.

use std::cmp::Ordering;

/// One face in a frame.
///
/// The box is in pixels of the frame, from the top left corner of its first pixel. It is not clipped: a face that
/// the frame cuts off has a box that reaches beyond it. [`Detection::clipped`] clips.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Left edge, pixels.
    pub left: f32,
    /// Upper edge, pixels.
    pub top: f32,
    /// Right edge, pixels; greater than `left`.
    pub right: f32,
    /// Lower edge, pixels; greater than `top`.
    pub bottom: f32,
    /// The network's probability that this is a face, above the score threshold, at most 1.
    pub score: f32,
}

impl Detection {
    /// The part within a frame of `width` x `height` pixels; nothing where that is empty.
    #[must_use]
    pub fn clipped(&self, width: f32, height: f32) -> Option<Self> {
        let clipped = Self {
            left: self.left.max(0.0),
            top: self.top.max(0.0),
            right: self.right.min(width),
            bottom: self.bottom.min(height),
            score: self.score,
        };
        (clipped.left < clipped.right && clipped.top < clipped.bottom).then_some(clipped)
    }

    /// Intersection over union of the two boxes, 0 to 1.
    #[must_use]
    pub fn iou(&self, other: &Self) -> f32 {
        let width = (self.right.min(other.right) - self.left.max(other.left)).max(0.0);
        let height = (self.bottom.min(other.bottom) - self.top.max(other.top)).max(0.0);
        let intersection = width * height;
        intersection / (self.area() + other.area() - intersection).max(f32::MIN_POSITIVE)
    }

    fn area(&self) -> f32 {
        (self.right - self.left) * (self.bottom - self.top)
    }
}

/// What becomes of the network's candidates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    /// Candidates must score higher than this.
    pub(crate) score_threshold: f32,
    /// Of two boxes that overlap by more than this IoU, the one with the lower score goes.
    pub(crate) nms_threshold: f32,
    /// At most this many are kept, those with the highest scores; 0 for all.
    pub(crate) max_faces: usize,
}

impl Selection {
    /// Fills `kept`, highest score first.
    ///
    /// `scores` has two values per candidate (background, face), `boxes` four (left, top, right, bottom, as parts of
    /// the frame's `width` and `height`).
    pub(crate) fn select(
        &self,
        scores: &[f32],
        boxes: &[f32],
        (width, height): (f32, f32),
        candidates: &mut Vec<Detection>,
        kept: &mut Vec<Detection>,
    ) {
        candidates.clear();
        candidates.extend(scores.as_chunks().0.iter().zip(boxes.as_chunks().0).filter_map(
            |(&[_, score], &[left, top, right, bottom])| {
                let [left, right] = [left * width, right * width];
                let [top, bottom] = [top * height, bottom * height];
                // A box without an area, or with a NaN in it, is nobody's face.
                (score > self.score_threshold && left < right && top < bottom).then_some(Detection {
                    left,
                    top,
                    right,
                    bottom,
                    score,
                })
            },
        ));
        self.keep(candidates, kept);
    }

    /// Fills `kept` with those of the candidates that stay, highest score first.
    pub(crate) fn keep(&self, candidates: &mut [Detection], kept: &mut Vec<Detection>) {
        candidates.sort_unstable_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));

        kept.clear();
        let limit = if self.max_faces == 0 { usize::MAX } else { self.max_faces };
        for candidate in candidates.iter() {
            if kept.len() >= limit {
                break;
            }
            if kept.iter().all(|better| better.iou(candidate) <= self.nms_threshold) {
                kept.push(*candidate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 12] = [0.1, 0.9, 0.05, 0.95, 0.2, 0.8, 0.4, 0.6, f32::NAN, f32::NAN, 0.0, 1.0];
    #[rustfmt::skip]
    const BOXES: [f32; 24] = [
        0.0, 0.0, 0.5, 0.5, // overlaps the next one by 9/11
        0.0, 0.0, 0.5, 0.55,
        0.5, 0.5, 1.1, 1.0, // alone, beyond the right edge
        0.0, 0.6, 0.1, 0.7, // alone, weak
        0.0, 0.0, 1.0, 1.0, // score is not a number
        0.3, 0.3, 0.2, 0.4, // right of itself
    ];

    fn select(selection: Selection) -> Vec<f32> {
        let mut kept = Vec::new();
        selection.select(&SCORES, &BOXES, (200.0, 100.0), &mut Vec::new(), &mut kept);
        kept.iter().map(|d| d.score).collect()
    }

    #[test]
    fn the_best_of_overlapping_boxes_stays_and_weak_or_broken_ones_go() {
        let selection = Selection { score_threshold: 0.7, nms_threshold: 0.5, max_faces: 0 };
        assert_eq!(select(selection), [0.95, 0.8]);
        assert_eq!(select(Selection { score_threshold: 0.8, ..selection }), [0.95], "strictly greater");
        assert_eq!(select(Selection { nms_threshold: 0.95, ..selection }), [0.95, 0.9, 0.8]);
        assert_eq!(select(Selection { score_threshold: 0.0, ..selection }), [0.95, 0.8, 0.6]);
        assert_eq!(select(Selection { max_faces: 1, ..selection }), [0.95]);
    }

    #[test]
    fn boxes_are_in_pixels_and_clip_to_the_frame() {
        let mut kept = Vec::new();
        let selection = Selection { score_threshold: 0.7, nms_threshold: 0.5, max_faces: 0 };
        selection.select(&SCORES, &BOXES, (200.0, 100.0), &mut Vec::new(), &mut kept);
        let cut_off = kept[1];
        assert_eq!([cut_off.left, cut_off.top, cut_off.bottom], [100.0, 50.0, 100.0]);
        assert!((cut_off.right - 220.0).abs() < 1e-3);
        assert_eq!(cut_off.clipped(200.0, 100.0).unwrap().right, 200.0);
        assert!(cut_off.clipped(90.0, 100.0).is_none());
    }
}
