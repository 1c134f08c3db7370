//! Faces that the edge of a picture cuts.
//!
//! MTCNN has seen faces with their surroundings. On a crop that is tighter than the face it still finds one, but puts the box
//! and the landmarks where they would be if there were more around it: the box leaves the picture, and what is aligned
//! by the landmarks is like nobody. With black around the picture it finds the same face where it is. So what leaves the
//! picture is looked for again that way, and what still does not fit into it is no face: somebody of whom half is visible,
//! most often. The limits are measured: `docs/decisions/0011-faces-that-the-edge-cuts.md`.

use image::{RgbImage, imageops};

use super::{Mtcnn, tall_enough};
use crate::{BoundingBox, Face, VisionError};

/// A box that leaves the picture by more than this share of its side is looked for again: from there on embeddings get worse
/// (a cosine of 0.95 to the whole photograph's below it, 0.89 above, less and less further on).
const LOOK_AGAIN: f32 = 0.05;

/// Where it is not found again, a box may leave the picture by this share of its side. Beyond, every other embedding is nobody's.
const LEAVES: f32 = 0.2;

/// One that is found again may: faces of which the picture shows half the width and height do by up to 0.27.
const LEAVES_AGAIN: f32 = 0.3;

/// By this share of the side a landmark may lie outside. A mouth's corner does where the picture shows half a face.
const LANDMARK_LEAVES: f32 = 0.06;

/// The least confidence of a face that is found again. Tight crops of faces have 0.92 and more nine times in ten.
const CONFIDENT: f32 = 0.85;

/// Side of the picture in which is looked again, at most, pixels.
const SIDE: u32 = 448;

/// The share of half of that which a face must take to be found there.
const FILLS: f64 = 0.4;

/// The same where nothing was found at all: only a crop too tight to be seen as a face is looked for.
const FILLS_ALL: f64 = 0.7;

/// So many boxes that leave a picture are looked for again, the most confident ones; a picture has four edges.
const AT_MOST: usize = 8;

/// A square part of a picture that may reach out of it: centre and side in its pixels.
#[derive(Debug, Clone, Copy)]
struct Around {
    centre: [f32; 2],
    side: f32,
}

impl Mtcnn {
    /// The faces of `image` that are in it, the most confident first: those of [`detect`](Self::detect), or, of a picture
    /// that was `cut_out` around a face, of [`detect_filling`](Self::detect_filling). A face whose box leaves the picture is
    /// looked for again with black around the picture, and is left out where it leaves it all the same; so is one where none was
    /// found, as large as the picture. Boxes and landmarks are in pixels of `image`.
    ///
    /// # Errors
    ///
    /// [`VisionError::Compute`].
    pub fn detect_inside(&self, image: &RgbImage, cut_out: bool) -> Result<Vec<Face>, VisionError> {
        let found = if cut_out { self.detect_filling(image) } else { self.detect(image) }?;
        let [width, height] = size(image);
        let shorter = width.min(height);
        if found.is_empty() {
            let around = Around { centre: [width / 2.0, height / 2.0], side: 2.0 * shorter };
            return Ok(self.look_again(image, around, FILLS_ALL)?.into_iter().take(1).collect());
        }
        let (mut faces, cut): (Vec<Face>, Vec<Face>) =
            found.into_iter().partition(|face| leaves(&face.bounding_box, image) <= LOOK_AGAIN);
        for (place, face) in cut.into_iter().enumerate() {
            let again = if place < AT_MOST {
                let visible = visible(&face.bounding_box, image);
                let side = face.bounding_box.width().max(face.bounding_box.height()).min(shorter);
                let around = Around { centre: visible.center(), side: 2.0 * side };
                let again = self.look_again(image, around, FILLS)?.into_iter();
                again.filter(|again| holds(&face.bounding_box, again.bounding_box.center())).find(|again| {
                    // Not one of those that are there already.
                    faces.iter().all(|other| !same(&other.bounding_box, &again.bounding_box))
                })
            } else {
                None
            };
            let face = again.or_else(|| fits(&face, image, LEAVES).then_some(face));
            faces.extend(
                face.filter(|face| faces.iter().all(|other| !same(&other.bounding_box, &face.bounding_box))),
            );
        }
        faces.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
        Ok(faces)
    }

    /// The faces in a part of the picture, with black beyond its edges, that take at least `fills` of half of the part's side.
    fn look_again(&self, image: &RgbImage, around: Around, fills: f64) -> Result<Vec<Face>, VisionError> {
        let Some((part, scale, [left, top])) = around.cut(image) else { return Ok(Vec::new()) };
        let least = f64::from(part.width()) / 2.0 * fills;
        let faces = self.detect_on(&part, tall_enough(self.pyramid(&part), least))?;
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
        Ok(faces.filter(|face| face.confidence >= CONFIDENT && fits(face, image, LEAVES_AGAIN)).collect())
    }
}

impl Around {
    /// The part, at most [`SIDE`] pixels wide, with the width of its pixels in those of the picture and where its corner lies.
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
        let scale = (side / SIDE as f32).max(1.0);
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

/// Width and height.
#[expect(clippy::cast_precision_loss, reason = "no picture has 2^24 columns")]
fn size(image: &RgbImage) -> [f32; 2] {
    [image.width() as f32, image.height() as f32]
}

/// By what share of its longer side a box leaves the picture, at the edge where it does most; negative inside.
fn leaves(b: &BoundingBox, image: &RgbImage) -> f32 {
    let [width, height] = size(image);
    (-b.left).max(-b.top).max(b.right - width).max(b.bottom - height) / b.width().max(b.height())
}

/// Whether box and landmarks of a face are in the picture, but for `most` of its side.
fn fits(face: &Face, image: &RgbImage, most: f32) -> bool {
    let b = face.bounding_box;
    let beyond = LANDMARK_LEAVES * b.width().max(b.height());
    let [width, height] = size(image);
    let inside = |value: f32, size: f32| (-beyond..=size + beyond).contains(&value);
    leaves(&b, image) <= most && face.landmarks.iter().all(|[x, y]| inside(*x, width) && inside(*y, height))
}

/// The part of a box that is in the picture.
fn visible(b: &BoundingBox, image: &RgbImage) -> BoundingBox {
    let [width, height] = size(image);
    BoundingBox {
        left: b.left.clamp(0.0, width),
        top: b.top.clamp(0.0, height),
        right: b.right.clamp(0.0, width),
        bottom: b.bottom.clamp(0.0, height),
    }
}

fn holds(b: &BoundingBox, [x, y]: [f32; 2]) -> bool {
    (b.left..=b.right).contains(&x) && (b.top..=b.bottom).contains(&y)
}

/// Whether two boxes are of one face: one's centre in the other, both ways.
fn same(a: &BoundingBox, b: &BoundingBox) -> bool {
    holds(a, b.center()) && holds(b, a.center())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(left: f32, top: f32, right: f32, bottom: f32) -> BoundingBox {
        BoundingBox { left, top, right, bottom }
    }

    #[test]
    fn a_box_leaves_by_its_share_beyond_the_farthest_edge() {
        let image = RgbImage::new(200, 100);
        assert_eq!(leaves(&at(-10.0, 0.0, 30.0, 50.0), &image), 0.2);
        assert_eq!(leaves(&at(150.0, 60.0, 230.0, 110.0), &image), 30.0 / 80.0);
        assert!(leaves(&at(20.0, 20.0, 60.0, 60.0), &image) < 0.0);
    }

    #[test]
    fn a_part_shows_the_picture_in_its_place_and_black_beyond() {
        let image = RgbImage::from_fn(60, 40, |x, y| {
            image::Rgb([100 + u8::try_from(x).unwrap(), u8::try_from(y).unwrap(), 9])
        });
        let (part, scale, corner) = Around { centre: [30.0, 20.0], side: 80.0 }.cut(&image).unwrap();
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
        let (part, scale, corner) = Around { centre: [3000.0, 1000.0], side: 1792.0 }.cut(&large).unwrap();
        assert_eq!((part.dimensions(), scale, corner), ((448, 448), 4.0, [2104.0, 104.0]));
        assert_eq!((part.get_pixel(223, 0).0, part.get_pixel(225, 447).0), ([7; 3], [0; 3]));
        assert!(Around { centre: [-500.0, 20.0], side: 80.0 }.cut(&image).is_none());
        assert!(Around { centre: [f32::NAN, 20.0], side: 80.0 }.cut(&image).is_none());
    }
}
