//! From the network's scores and boxes to detections: threshold, then greedy non-maximum suppression. By hand: it is shorter
//! than the conversion to another library's boxes, and the order of equal scores must be the reference's.

use std::cmp::Ordering;

use crate::BoundingBox;

/// A face that a detector found in a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Its place in pixels of the frame. Not clipped: the box of a face that the frame cuts off reaches beyond the frame.
    pub bounding_box: BoundingBox<f64>,
    /// The network's probability that this is a face, 0 to 1.
    pub score: f64,
}

/// Which of the network's candidates are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    /// Candidates must score higher than this.
    pub(crate) score_threshold: f32,
    /// Of two boxes that overlap by more than this IoU, the one with the lower score is dropped.
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
                let edges = BoundingBox::new(left * width, top * height, right * width, bottom * height);
                // Empty boxes, and those with a NaN, hold no face.
                (score > self.score_threshold && !edges.is_empty())
                    .then(|| Detection { bounding_box: edges.map(f64::from), score: score.into() })
            },
        ));
        self.keep(candidates, kept);
    }

    /// Fills `kept` with the candidates that survive non-maximum suppression, highest score first.
    pub(crate) fn keep(&self, candidates: &mut [Detection], kept: &mut Vec<Detection>) {
        candidates.sort_unstable_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));

        kept.clear();
        let limit = if self.max_faces == 0 { usize::MAX } else { self.max_faces };
        for candidate in candidates.iter() {
            if kept.len() >= limit {
                break;
            }
            let overlap = |better: &Detection| better.bounding_box.iou(&candidate.bounding_box);
            if kept.iter().all(|better| overlap(better) <= f64::from(self.nms_threshold)) {
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

    #[expect(clippy::cast_possible_truncation, reason = "the network's scores are f32")]
    fn select(selection: Selection) -> Vec<f32> {
        let mut kept = Vec::new();
        selection.select(&SCORES, &BOXES, (200.0, 100.0), &mut Vec::new(), &mut kept);
        kept.iter().map(|d| d.score as f32).collect()
    }

    #[test]
    fn nms_keeps_the_best_of_overlapping_boxes_and_drops_weak_and_invalid_ones() {
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
        let cut_off = kept[1].bounding_box;
        assert_eq!([cut_off.left, cut_off.top, cut_off.bottom], [100.0, 50.0, 100.0]);
        assert!((cut_off.right - 220.0).abs() < 1e-3);
        assert_eq!(cut_off.clipped(200.0, 100.0).unwrap().right, 200.0);
        assert!(cut_off.clipped(90.0, 100.0).is_none());
    }
}
