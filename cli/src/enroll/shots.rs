//! Which frames of a person are worth a picture: sharp ones of a whole face that clearly differ from those that were taken.

use gstfacepipe::{
    crop::{CropSettings, Picture},
    roi::FaceRegion,
};

/// Side of the small grey picture by which faces are compared, pixels.
const SIDE: usize = 24;

/// A face that is larger or smaller by this factor is another picture, whatever it looks like: another distance.
const OTHER_SIZE: f64 = 1.4;

/// What a picture must be like.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Variance of the Laplacian over the face, in squares of 8-bit luma, at least. Measured on a crop of at most 150
    /// pixels, where faces of photographs have 50 (smooth, evenly lit) to 1,000.
    pub sharpness: f64,
    /// Correlation with each picture that was taken, at most, 0 to 1.
    pub likeness: f64,
    /// Time since the last one, seconds.
    pub apart: f64,
}

/// The cut on which a face is measured: that of `facecrop`, so that sharpness means the same.
pub fn measure() -> CropSettings {
    CropSettings { min_size: 1, ..CropSettings::default() }
}

/// A face in a frame.
#[derive(Debug, Clone)]
pub struct Shot {
    seconds: f64,
    /// Shorter side, pixels.
    size: f64,
    sharpness: f64,
    /// `[SIDE, SIDE]`, of mean 0 and length 1: the product of two is their correlation.
    look: Vec<f64>,
}

/// Why a frame is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A part of the face is outside the frame.
    Cut,
    /// Too little time has passed since the last one.
    Soon,
    /// It is not sharp.
    Blurred,
    /// It is like one that was taken.
    Alike,
}

impl Shot {
    /// A face that was found at this time; `picture` is the cut by [`measure`].
    pub fn new(seconds: f64, face: &FaceRegion, picture: &Picture, inside: [f64; 4]) -> Self {
        Self {
            seconds,
            size: f64::from(face.width.min(face.height)),
            sharpness: picture.sharpness(inside),
            look: look(picture, inside),
        }
    }

    fn likeness(&self, other: &Self) -> f64 {
        self.look.iter().zip(&other.look).map(|(a, b)| a * b).sum()
    }
}

/// Chooses among shots.
#[derive(Debug)]
pub struct Chooser {
    rules: Rules,
    tried: Vec<Shot>,
}

impl Chooser {
    /// Nothing is taken yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, tried: Vec::new() }
    }

    /// Whether it is too early for another shot: known before any pixel is read.
    pub fn is_too_soon(&self, seconds: f64) -> bool {
        self.tried.last().is_some_and(|last| (seconds - last.seconds).abs() < self.rules.apart)
    }

    /// Takes a shot, unless it has a fault. Whether the server takes it as well, it is not tried again.
    ///
    /// # Errors
    /// The fault.
    pub fn take(&mut self, shot: Shot) -> Result<(), Fault> {
        if self.is_too_soon(shot.seconds) {
            return Err(Fault::Soon);
        }
        if shot.sharpness < self.rules.sharpness {
            return Err(Fault::Blurred);
        }
        let alike = |other: &Shot| {
            let other_size = (shot.size / other.size).max(other.size / shot.size) >= OTHER_SIZE;
            !other_size && shot.likeness(other) > self.rules.likeness
        };
        if self.tried.iter().any(alike) {
            return Err(Fault::Alike);
        }
        self.tried.push(shot);
        Ok(())
    }
}

/// The face as a small grey picture, without its brightness and contrast.
fn look(picture: &Picture, [left, top, right, bottom]: [f64; 4]) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); SIDE * SIDE];
    let (width, height) = (usize::from(picture.width()), usize::from(picture.height()));
    for (row, pixels) in picture.rgb().chunks_exact(width.max(1) * 3).enumerate() {
        let Some(y) = cell(row, height, top, bottom) else { continue };
        for (column, &[r, g, b]) in pixels.as_chunks::<3>().0.iter().enumerate() {
            let Some(x) = cell(column, width, left, right) else { continue };
            if let Some((sum, count)) = sums.get_mut(y * SIDE + x) {
                *sum += 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
                *count += 1.0;
            }
        }
    }
    // Of a face that is smaller than the grid, some cells have no pixel: they take the one before.
    let mut last = 0.0;
    let mut look: Vec<f64> = sums
        .into_iter()
        .map(|(sum, count)| {
            last = if count > 0.0 { sum / count } else { last };
            last
        })
        .collect();
    let mean = look.iter().sum::<f64>() / (SIDE * SIDE) as f64;
    look.iter_mut().for_each(|value| *value -= mean);
    let length = look.iter().map(|value| value * value).sum::<f64>().sqrt().max(f64::EPSILON);
    look.iter_mut().for_each(|value| *value /= length);
    look
}

/// Which cell of the grid a pixel belongs to; none outside the face.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sides of pictures are small, and the share is from 0 to 1"
)]
fn cell(at: usize, side: usize, start: f64, end: f64) -> Option<usize> {
    let share = ((at as f64 + 0.5) / side.max(1) as f64 - start) / (end - start).max(f64::EPSILON);
    (0.0..1.0).contains(&share).then_some((share * SIDE as f64) as usize)
}

#[cfg(test)]
mod tests {
    use facepipe_detector::{ColorMatrix, ColorRange, Frame, PixelFormat};
    use gstfacepipe::crop::{CropRegion, Cropper};

    use super::*;

    const RULES: Rules = Rules { sharpness: 20.0, likeness: 0.9, apart: 0.5 };
    const FACE: FaceRegion = FaceRegion {
        left: 20,
        top: 20,
        width: 60,
        height: 60,
        confidence: 0.9,
        track_id: None,
        predicted: false,
    };

    /// A shot of a face with this pattern of grey.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of u8")]
    fn shot(seconds: f64, face: FaceRegion, gray: impl Fn(f64, f64) -> f64) -> Shot {
        let mut pixels = Vec::new();
        for y in 0..100_u32 {
            for x in 0..100_u32 {
                let value = gray(f64::from(x) / 100.0, f64::from(y) / 100.0).clamp(0.0, 255.0);
                pixels.extend([value as u8; 3]);
            }
        }
        let frame = Frame::new(
            PixelFormat::Rgb,
            100,
            100,
            [&pixels[..]].as_slice(),
            &[300],
            ColorMatrix::Bt601,
            ColorRange::Full,
        )
        .expect("a frame");
        let region = CropRegion { left: 0, top: 0, width: 100, height: 100 };
        let picture = Cropper::default().cut(&frame, &region, &measure()).expect("a picture");
        Shot::new(seconds, &face, &picture, [0.2, 0.2, 0.8, 0.8])
    }

    fn stripes(x: f64, _: f64) -> f64 {
        128.0 + 60.0 * (x * 40.0).sin()
    }

    fn rows(_: f64, y: f64) -> f64 {
        128.0 + 60.0 * (y * 40.0).sin()
    }

    #[test]
    fn a_shot_must_be_sharp_apart_and_unlike_the_others() {
        let mut chooser = Chooser::new(RULES);
        assert_eq!(chooser.take(shot(0.0, FACE, |x, _| 100.0 + 50.0 * x)), Err(Fault::Blurred));
        assert_eq!(chooser.take(shot(0.1, FACE, stripes)), Ok(()));
        assert!(chooser.is_too_soon(0.5) && !chooser.is_too_soon(0.7));
        assert_eq!(chooser.take(shot(0.5, FACE, rows)), Err(Fault::Soon));
        assert_eq!(chooser.take(shot(1.0, FACE, stripes)), Err(Fault::Alike));
        let brighter = |x, y| 0.7 * stripes(x, y) + 40.0;
        assert_eq!(
            chooser.take(shot(1.0, FACE, brighter)),
            Err(Fault::Alike),
            "light alone is no difference"
        );
        assert_eq!(chooser.take(shot(1.0, FACE, rows)), Ok(()));
        let nearer = FaceRegion { width: 90, height: 90, ..FACE };
        assert_eq!(chooser.take(shot(2.0, nearer, stripes)), Ok(()), "another distance");
        assert_eq!(chooser.take(shot(3.0, FACE, stripes)), Err(Fault::Alike), "each that was taken counts");
    }
}
