//! Faces cut by the edge of the picture.
//!
//! MTCNN was trained on faces with their surroundings. On a crop that is tighter than the face it still detects one, but places
//! box and landmarks as if there were more around it: the box reaches out of the picture, and the aligned face resembles nobody.
//! With black padding around the picture, the same face is detected in its place. So detection is repeated with padding for boxes
//! that reach out of the picture, and faces that reach out even then (half visible, mostly) are dropped. The limits are measured:
//! `docs/decisions/0011-faces-that-the-edge-cuts.md`.

use image::{RgbImage, imageops};

use super::{Mtcnn, levels_for_faces_from};
use crate::{BoundingBox, Face, VisionError};

/// Detection is repeated for boxes that overhang the picture by more than this share of their side: from there on embeddings
/// get worse (a cosine to the whole photograph's of 0.95 below it, 0.89 above, less further on).
const RETRY_OVERHANG: f32 = 0.05;

/// Maximum overhang of a box that the repeated detection did not confirm. Beyond, every other embedding resembles nobody.
const MAX_OVERHANG: f32 = 0.2;

/// Maximum overhang of a box that it confirmed: faces with half the width and height visible have up to 0.27.
const MAX_OVERHANG_CONFIRMED: f32 = 0.3;

/// Maximum distance of a landmark outside of the picture, as a share of the box's side. Corners of the mouth of half visible
/// faces lie outside.
const LANDMARK_OVERHANG: f32 = 0.06;

/// Minimum confidence of the repeated detection. Nine of ten tight crops of faces have 0.92 and more.
const MIN_CONFIDENCE: f32 = 0.85;

/// Maximum side of the padded picture, pixels.
const MAX_SIDE: u32 = 448;

/// Minimum side of a face in the padded picture, as a share of half of its side.
const MIN_SHARE: f64 = 0.4;

/// The same where no face was detected at all: only crops too tight for detection count.
const MIN_SHARE_WITHOUT_FACE: f64 = 0.7;

/// Number of boxes, the most confident ones, for which detection is repeated; a picture has four edges.
const MAX_RETRIES: usize = 8;

/// A square that may reach out of the picture: centre and side in the picture's pixels.
#[derive(Debug, Clone, Copy)]
struct PaddedSquare {
    centre: [f32; 2],
    side: f32,
}

impl Mtcnn {
    /// Detects the faces that lie within `image`, the most confident first, by [`detect_in_crop`](Self::detect_in_crop) where it
    /// `is_crop` around a face, else by [`detect`](Self::detect). Where a box reaches out of the picture, or no face is detected,
    /// detection is repeated with black padding; faces that still reach out are dropped. Boxes and landmarks are in pixels of
    /// `image`.
    ///
    /// # Errors
    ///
    /// [`VisionError::Compute`].
    pub fn detect_inside(&self, image: &RgbImage, is_crop: bool) -> Result<Vec<Face>, VisionError> {
        let detected = if is_crop { self.detect_in_crop(image) } else { self.detect(image) }?;
        let [width, height] = size(image);
        let shorter = width.min(height);
        if detected.is_empty() {
            let square = PaddedSquare { centre: [width / 2.0, height / 2.0], side: 2.0 * shorter };
            return Ok(self
                .detect_padded(image, square, MIN_SHARE_WITHOUT_FACE)?
                .into_iter()
                .take(1)
                .collect());
        }
        let (mut faces, cut): (Vec<Face>, Vec<Face>) =
            detected.into_iter().partition(|face| overhang(&face.bounding_box, image) <= RETRY_OVERHANG);
        for (index, face) in cut.into_iter().enumerate() {
            let confirmed = if index < MAX_RETRIES {
                let visible = visible(&face.bounding_box, image);
                let side = face.bounding_box.width().max(face.bounding_box.height()).min(shorter);
                let square = PaddedSquare { centre: visible.center(), side: 2.0 * side };
                let confirmed = self.detect_padded(image, square, MIN_SHARE)?.into_iter();
                confirmed.filter(|again| face.bounding_box.contains(again.bounding_box.center())).find(
                    |again| {
                        // Not a face that was detected already.
                        faces.iter().all(|other| !same_face(&other.bounding_box, &again.bounding_box))
                    },
                )
            } else {
                None
            };
            let face = confirmed.or_else(|| fits(&face, image, MAX_OVERHANG).then_some(face));
            faces.extend(face.filter(|face| {
                faces.iter().all(|other| !same_face(&other.bounding_box, &face.bounding_box))
            }));
        }
        faces.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
        Ok(faces)
    }

    /// Detects the faces in a square of the picture, black beyond its edges, whose side is at least `min_share` of half of the
    /// square's.
    fn detect_padded(
        &self,
        image: &RgbImage,
        square: PaddedSquare,
        min_share: f64,
    ) -> Result<Vec<Face>, VisionError> {
        let Some((part, scale, [left, top])) = square.cut(image) else { return Ok(Vec::new()) };
        let least = f64::from(part.width()) / 2.0 * min_share;
        let faces = self.detect_at_levels(&part, levels_for_faces_from(self.pyramid(&part), least))?;
        let back = |[x, y]: [f32; 2]| [x * scale + left, y * scale + top];
        let faces = faces.into_iter().map(|face| {
            let b = face.bounding_box;
            let ([left, top], [right, bottom]) = (back([b.left, b.top]), back([b.right, b.bottom]));
            Face {
                bounding_box: BoundingBox { left, top, right, bottom },
                confidence: face.confidence,
                landmarks: face.landmarks.map(back),
            }
        });
        Ok(faces
            .filter(|face| face.confidence >= MIN_CONFIDENCE && fits(face, image, MAX_OVERHANG_CONFIRMED))
            .collect())
    }
}

impl PaddedSquare {
    /// Cuts the square out, scaled down to at most [`MAX_SIDE`] pixels. Returns it with the scale (pixels of the picture per pixel)
    /// and its top left corner in the picture.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "casts from float saturate, a part outside of the picture is nothing, and no picture has 2^24 columns"
    )]
    fn cut(&self, image: &RgbImage) -> Option<(RgbImage, f32, [f32; 2])> {
        let [left, top] = self.centre.map(|centre| (centre - self.side / 2.0).round());
        let side = self.side.round();
        let first = |from: f32| from.max(0.0) as u32;
        let last = |from: f32, size: u32| ((from + side).max(0.0) as u32).min(size);
        let (x, y) = (first(left), first(top));
        let width = last(left, image.width()).checked_sub(x).filter(|width| *width > 0)?;
        let height = last(top, image.height()).checked_sub(y).filter(|height| *height > 0)?;
        let scale = (side / MAX_SIDE as f32).max(1.0);
        let part_side = (side / scale).round() as u32;
        let scaled = |pixels: u32| ((pixels as f32 / scale).round() as u32).max(1);
        let seen = imageops::crop_imm(image, x, y, width, height);
        let seen = if scale > 1.0 {
            imageops::resize(&*seen, scaled(width), scaled(height), imageops::FilterType::Triangle)
        } else {
            seen.to_image()
        };
        let mut part = RgbImage::new(part_side, part_side);
        let place = |inside: u32, corner: f32| ((inside as f32 - corner) / scale).round() as i64;
        imageops::replace(&mut part, &seen, place(x, left), place(y, top));
        Some((part, scale, [left, top]))
    }
}

/// Returns width and height.
#[expect(clippy::cast_precision_loss, reason = "no picture has 2^24 columns")]
fn size(image: &RgbImage) -> [f32; 2] {
    [image.width() as f32, image.height() as f32]
}

/// Returns the largest distance by which a box reaches out of the picture, as a share of its longer side; negative inside.
fn overhang(b: &BoundingBox, image: &RgbImage) -> f32 {
    let [width, height] = size(image);
    (-b.left).max(-b.top).max(b.right - width).max(b.bottom - height) / b.width().max(b.height())
}

/// Returns whether box and landmarks of a face lie in the picture, up to an overhang of `most`.
fn fits(face: &Face, image: &RgbImage, most: f32) -> bool {
    let b = face.bounding_box;
    let beyond = LANDMARK_OVERHANG * b.width().max(b.height());
    let [width, height] = size(image);
    let inside = |value: f32, size: f32| (-beyond..=size + beyond).contains(&value);
    overhang(&b, image) <= most && face.landmarks.iter().all(|[x, y]| inside(*x, width) && inside(*y, height))
}

/// Clips a box to the picture.
fn visible(b: &BoundingBox, image: &RgbImage) -> BoundingBox {
    let [width, height] = size(image);
    BoundingBox {
        left: b.left.clamp(0.0, width),
        top: b.top.clamp(0.0, height),
        right: b.right.clamp(0.0, width),
        bottom: b.bottom.clamp(0.0, height),
    }
}

/// Returns whether two boxes contain each other's centre.
fn same_face(a: &BoundingBox, b: &BoundingBox) -> bool {
    a.contains(b.center()) && b.contains(a.center())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(left: f32, top: f32, right: f32, bottom: f32) -> BoundingBox {
        BoundingBox { left, top, right, bottom }
    }

    #[test]
    fn overhang_is_measured_at_the_farthest_edge() {
        let image = RgbImage::new(200, 100);
        assert_eq!(overhang(&at(-10.0, 0.0, 30.0, 50.0), &image), 0.2);
        assert_eq!(overhang(&at(150.0, 60.0, 230.0, 110.0), &image), 30.0 / 80.0);
        assert!(overhang(&at(20.0, 20.0, 60.0, 60.0), &image) < 0.0);
    }

    #[test]
    fn a_padded_square_shows_the_picture_in_place_and_black_beyond() {
        let image = RgbImage::from_fn(60, 40, |x, y| {
            image::Rgb([100 + u8::try_from(x).unwrap(), u8::try_from(y).unwrap(), 9])
        });
        let (part, scale, corner) = PaddedSquare { centre: [30.0, 20.0], side: 80.0 }.cut(&image).unwrap();
        assert_eq!((part.dimensions(), scale, corner), ((80, 80), 1.0, [-10.0, -20.0]));
        for (x, y, pixel) in part.enumerate_pixels() {
            let expected = if (10..70).contains(&x) && (20..60).contains(&y) {
                *image.get_pixel(x - 10, y - 20)
            } else {
                image::Rgb([0; 3])
            };
            assert_eq!(*pixel, expected, "{x}, {y}");
        }
        let large = RgbImage::from_pixel(3000, 2000, image::Rgb([7; 3]));
        let (part, scale, corner) =
            PaddedSquare { centre: [3000.0, 1000.0], side: 1792.0 }.cut(&large).unwrap();
        assert_eq!((part.dimensions(), scale, corner), ((448, 448), 4.0, [2104.0, 104.0]));
        assert_eq!((part.get_pixel(223, 0).0, part.get_pixel(225, 447).0), ([7; 3], [0; 3]));
        assert!(PaddedSquare { centre: [-500.0, 20.0], side: 80.0 }.cut(&image).is_none());
        assert!(PaddedSquare { centre: [f32::NAN, 20.0], side: 80.0 }.cut(&image).is_none());
    }
}
