//! The sampler matches the definition: bilinear interpolation as OpenCV's INTER_LINEAR, colours by ITU-R BT.601 and BT.709, for
//! every format, size and stride.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the lints exempt test functions, but not the functions that these call"
)]

mod common;

use common::{Planes, luma_weights};
use facepipe_detector::{ChromaSite, ColorMatrix, ColorRange, Frame, PixelFormat, Sampler};
use image::{Rgb, RgbImage};

const COLORIMETRIES: [(ColorMatrix, ColorRange); 4] = [
    (ColorMatrix::Bt601, ColorRange::Full),
    (ColorMatrix::Bt601, ColorRange::Limited),
    (ColorMatrix::Bt709, ColorRange::Full),
    (ColorMatrix::Bt709, ColorRange::Limited),
];

/// Odd, even, tiny, smaller and larger than the input on either side.
const SIZES: [(u32, u32); 9] =
    [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (5, 4), (33, 47), (64, 48), (201, 113)];

/// Returns a different colour for every pixel, without a pattern that would hide a shift.
fn noise(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let mut hash = (x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca6b)).wrapping_add(0x1234_5678);
        hash = (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d);
        let [r, g, b, _] = (hash ^ (hash >> 13)).to_le_bytes();
        Rgb([r, g, b])
    })
}

/// Returns slow changes in all three channels, which survive subsampled chroma.
fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        Rgb([40.0 + 160.0 * u, 200.0 - 150.0 * v, 60.0 + 100.0 * (u + v) / 2.0].map(|c: f64| c.round() as u8))
    })
}

fn sample(frame: &Frame<'_>, width: usize, height: usize) -> Vec<f32> {
    let mut input = vec![f32::NAN; 3 * width * height];
    Sampler::new(width, height).sample(frame, &mut input);
    input
}

/// Returns the same by the definition, in f64, one pixel at a time: `[3, height, width]`.
fn reference(planes: &Planes, width: usize, height: usize) -> Vec<f64> {
    let planes = planes.eight_bit.as_deref().unwrap_or(planes);
    // One component at a position in samples, edges repeated.
    let bilinear = |plane: usize, size: (usize, usize), pixel: usize, offset: usize, x: f64, y: f64| {
        let at = |x: f64, y: f64| {
            let x = x.clamp(0.0, (size.0 - 1) as f64) as usize;
            let y = y.clamp(0.0, (size.1 - 1) as f64) as usize;
            f64::from(planes.planes[plane][y * planes.strides[plane] + x * pixel + offset])
        };
        let (left, top) = (x.floor(), y.floor());
        let upper = at(left, top) * (1.0 - (x - left)) + at(left + 1.0, top) * (x - left);
        let lower = at(left, top + 1.0) * (1.0 - (x - left)) + at(left + 1.0, top + 1.0) * (x - left);
        upper * (1.0 - (y - top)) + lower * (y - top)
    };
    let size = (planes.width as usize, planes.height as usize);
    let (across, down) = planes.format.subsampling();
    let samples = (size.0.div_ceil(across), size.1.div_ceil(down));
    let mut input = vec![0.0; 3 * width * height];
    for row in 0..height {
        for column in 0..width {
            let x = (column as f64 + 0.5) * size.0 as f64 / width as f64 - 0.5;
            let y = (row as f64 + 0.5) * size.1 as f64 / height as f64 - 0.5;
            // The middle of two pixels is half a pixel beyond that of the first.
            let middle =
                |cosited: bool, pixels: usize| if cosited { 0.0 } else { (pixels as f64 - 1.0) / 2.0 };
            let chroma_x = (x - middle(planes.site.cosited_across, across)) / across as f64;
            let chroma_y = (y - middle(planes.site.cosited_down, down)) / down as f64;
            // Each component by its plane, the bytes from one sample to the next, and those before the first.
            let ycbcr = |luma: [usize; 3], [cb, cr]: [[usize; 3]; 2]| {
                let chroma = |[plane, pixel, offset]: [usize; 3]| {
                    bilinear(plane, samples, pixel, offset, chroma_x, chroma_y)
                };
                to_rgb(planes, bilinear(luma[0], size, luma[1], luma[2], x, y), chroma(cb), chroma(cr))
            };
            let rgb = match planes.format {
                PixelFormat::Nv12 => ycbcr([0, 1, 0], [[1, 2, 0], [1, 2, 1]]),
                PixelFormat::Nv21 => ycbcr([0, 1, 0], [[1, 2, 1], [1, 2, 0]]),
                PixelFormat::I420 | PixelFormat::Y42b | PixelFormat::Y444 => {
                    ycbcr([0, 1, 0], [[1, 1, 0], [2, 1, 0]])
                }
                PixelFormat::Yv12 => ycbcr([0, 1, 0], [[2, 1, 0], [1, 1, 0]]),
                PixelFormat::Yuy2 => ycbcr([0, 2, 0], [[0, 4, 1], [0, 4, 3]]),
                PixelFormat::Uyvy => ycbcr([0, 2, 1], [[0, 4, 0], [0, 4, 2]]),
                PixelFormat::Gray8 => to_rgb(planes, bilinear(0, size, 1, 0, x, y), 128.0, 128.0),
                PixelFormat::Rgb => [0, 1, 2].map(|channel| bilinear(0, size, 3, channel, x, y)),
                PixelFormat::Bgr => [2, 1, 0].map(|channel| bilinear(0, size, 3, channel, x, y)),
                PixelFormat::Rgbx | PixelFormat::Rgba => {
                    [0, 1, 2].map(|channel| bilinear(0, size, 4, channel, x, y))
                }
                PixelFormat::Bgrx | PixelFormat::Bgra => {
                    [2, 1, 0].map(|channel| bilinear(0, size, 4, channel, x, y))
                }
                other => panic!("{other:?} has 10 bits"),
            };
            for (channel, value) in rgb.into_iter().enumerate() {
                input[(channel * height + row) * width + column] = (value - 127.0) / 128.0;
            }
        }
    }
    input
}

/// Inverts the definition of Y'CbCr.
fn to_rgb(planes: &Planes, y: f64, cb: f64, cr: f64) -> [f64; 3] {
    let (kr, kb) = luma_weights(planes.matrix);
    let (y, cb, cr) = match planes.range {
        ColorRange::Full => (y / 255.0, (cb - 128.0) / 255.0, (cr - 128.0) / 255.0),
        ColorRange::Limited => ((y - 16.0) / 219.0, (cb - 128.0) / 224.0, (cr - 128.0) / 224.0),
    };
    let r = y + 2.0 * (1.0 - kr) * cr;
    let b = y + 2.0 * (1.0 - kb) * cb;
    let g = (y - kr * r - kb * b) / (1.0 - kr - kb);
    [r, g, b].map(|v| (255.0 * v).clamp(0.0, 255.0))
}

#[test]
fn sampling_matches_the_definition_for_every_format_size_stride_and_colorimetry() {
    for (width, height) in SIZES {
        let picture = noise(width, height);
        for format in PixelFormat::ALL {
            for (matrix, range) in COLORIMETRIES {
                for padding in [0, 13] {
                    let planes = Planes::of(&picture, format, matrix, range, padding);
                    let got = sample(&planes.frame(), 64, 48);
                    for (at, (got, expected)) in got.iter().zip(reference(&planes, 64, 48)).enumerate() {
                        assert!(
                            (f64::from(*got) - expected).abs() < 1e-4,
                            "{format:?} {width}x{height} {matrix:?} {range:?} padding {padding}: value {at} is {got}, expected {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn chroma_is_sampled_at_its_siting() {
    for (width, height) in [(1, 1), (9, 1), (33, 47), (201, 113)] {
        let picture = noise(width, height);
        for format in PixelFormat::ALL {
            for (cosited_across, cosited_down) in [(true, false), (false, true), (true, true)] {
                let mut planes = Planes::of(&picture, format, ColorMatrix::Bt709, ColorRange::Limited, 3);
                let site = ChromaSite { cosited_across, cosited_down };
                planes.site = site;
                if let Some(eight_bit) = &mut planes.eight_bit {
                    eight_bit.site = site;
                }
                let got = sample(&planes.frame(), 64, 48);
                for (at, (got, expected)) in got.iter().zip(reference(&planes, 64, 48)).enumerate() {
                    assert!(
                        (f64::from(*got) - expected).abs() < 1e-4,
                        "{format:?} {width}x{height} {site:?}: value {at} is {got}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_sampler_follows_a_change_of_chroma_siting() {
    let picture = noise(64, 48);
    let mut planes = Planes::of(&picture, PixelFormat::Nv12, ColorMatrix::Bt709, ColorRange::Limited, 0);
    let mut sampler = Sampler::new(32, 24);
    let mut input = vec![0.0; 3 * 32 * 24];
    sampler.sample(&planes.frame(), &mut input);
    let centred = input.clone();
    planes.site.cosited_across = true;
    sampler.sample(&planes.frame(), &mut input);
    assert_ne!(input, centred);
    assert_eq!(input, sample(&planes.frame(), 32, 24));
}

#[test]
fn pixels_are_made_square_by_stretching_their_shorter_side() {
    use facepipe_detector::square_pixels;
    assert_eq!(square_pixels(1, 1), [1.0, 1.0]);
    assert_eq!(square_pixels(2, 1), [2.0, 1.0]);
    assert_eq!(square_pixels(8, 9), [1.0, 1.125]);
    assert_eq!(square_pixels(0, 1), [1.0, 1.0]);
    assert_eq!(square_pixels(u32::MAX, 1), [8.0, 1.0], "clamped");
}

#[test]
fn all_formats_show_the_same_picture() {
    for (width, height) in [(320, 240), (161, 121)] {
        let picture = gradient(width, height);
        let expected = sample(&common::rgb_frame(&picture), 80, 60);
        for format in PixelFormat::ALL.into_iter().filter(|&format| format != PixelFormat::Gray8) {
            for (matrix, range) in COLORIMETRIES {
                let planes = Planes::of(&picture, format, matrix, range, 5);
                // Y'CbCr loses up to two levels of 255 to rounding, and 4:2:0 a little chroma.
                let packed = matches!(format, PixelFormat::Yuy2 | PixelFormat::Uyvy);
                let levels = if format.planes() == 1 && !packed { 0.0 } else { 3.0 };
                for (got, expected) in sample(&planes.frame(), 80, 60).iter().zip(&expected) {
                    assert!(
                        (got - expected).abs() <= levels / 128.0 + 1e-6,
                        "{format:?} {width}x{height} {matrix:?} {range:?}: {got}, expected {expected}"
                    );
                }
            }
        }
    }
}

/// Codes of pure red, green, blue and white as colour-bar tables print them.
#[test]
fn standard_codes_of_the_primary_colours_become_pure_colours() {
    type Case = (ColorMatrix, ColorRange, [([u8; 3], [f32; 3]); 4]);
    const RED: [f32; 3] = [255.0, 0.0, 0.0];
    const GREEN: [f32; 3] = [0.0, 255.0, 0.0];
    const BLUE: [f32; 3] = [0.0, 0.0, 255.0];
    const WHITE: [f32; 3] = [255.0; 3];
    #[rustfmt::skip]
    let cases: [Case; 3] = [
        (ColorMatrix::Bt601, ColorRange::Full,
            [([76, 85, 255], RED), ([150, 44, 21], GREEN), ([29, 255, 107], BLUE), ([255, 128, 128], WHITE)]),
        (ColorMatrix::Bt601, ColorRange::Limited,
            [([81, 90, 240], RED), ([145, 54, 34], GREEN), ([41, 240, 110], BLUE), ([235, 128, 128], WHITE)]),
        (ColorMatrix::Bt709, ColorRange::Limited,
            [([63, 102, 240], RED), ([173, 42, 26], GREEN), ([32, 240, 118], BLUE), ([235, 128, 128], WHITE)]),
    ];
    for (matrix, range, colours) in cases {
        for ([y, cb, cr], rgb) in colours {
            let (luma, chroma) = ([y; 4], [cb, cr]);
            let frame =
                Frame::new(PixelFormat::Nv12, 2, 2, &[&luma, &chroma], &[2, 2], matrix, range).unwrap();
            let got = sample(&frame, 1, 1);
            for (got, expected) in got.iter().map(|v| v * 128.0 + 127.0).zip(rgb) {
                assert!(
                    (got - expected).abs() < 2.0,
                    "{matrix:?} {range:?} {y} {cb} {cr}: {got}, not {expected}"
                );
            }
        }
    }
}

/// What `cv2.resize` with INTER_LINEAR makes of these rows (half-pixel centres, no antialiasing).
#[test]
fn sampling_positions_are_those_of_opencv() {
    let cases: [(&[u8], &[f32]); 3] = [
        (&[0, 100], &[0.0, 25.0, 75.0, 100.0]),
        (&[10, 20, 30, 40], &[15.0, 35.0]),
        (&[0, 10, 20, 30, 40, 250], &[10.0, 40.0]),
    ];
    for (row, expected) in cases {
        let pixels: Vec<u8> = row.iter().flat_map(|&v| [v; 3]).collect();
        let frame = Frame::rgb(&pixels, row.len() as u32, 1).unwrap();
        let got: Vec<f32> =
            sample(&frame, expected.len(), 1)[..expected.len()].iter().map(|v| v * 128.0 + 127.0).collect();
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3), "{got:?}, not {expected:?}");
    }
}

#[test]
fn one_sampler_serves_frames_that_change_size_and_format() {
    let mut sampler = Sampler::new(32, 24);
    let mut input = vec![0.0; 3 * 32 * 24];
    for (width, height) in [(64, 48), (33, 47), (64, 48)] {
        let picture = noise(width, height);
        for format in PixelFormat::ALL {
            let planes = Planes::of(&picture, format, ColorMatrix::Bt709, ColorRange::Limited, 0);
            sampler.sample(&planes.frame(), &mut input);
            assert_eq!(input, sample(&planes.frame(), 32, 24), "{format:?} {width}x{height}");
        }
    }
}

#[test]
fn a_frame_with_unsuitable_planes_is_an_error_that_names_field_and_limit() {
    let plane: &[u8] = &[0; 64];
    let new = |format, width, height, planes: &[&[u8]], strides: &[usize]| {
        Frame::new(format, width, height, planes, strides, ColorMatrix::Bt709, ColorRange::Full)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    let refused = |format, width, height, planes: &[&[u8]], strides: &[usize]| {
        new(format, width, height, planes, strides).unwrap_err()
    };
    use PixelFormat::{Bgrx, I420, Nv12, Rgb, Y42b, Y444, Yuy2};
    assert_eq!(refused(Rgb, 0, 4, &[plane], &[16]), "frame: width is 0, expected 1 to 32768 pixels");
    assert_eq!(
        refused(Rgb, 4, 40_000, &[plane], &[16]),
        "frame: height is 40000, expected 1 to 32768 pixels"
    );
    assert_eq!(refused(Nv12, 4, 4, &[plane], &[4, 4]), "frame: planes is 1, expected 2 for Nv12");
    assert_eq!(refused(I420, 4, 4, &[plane; 3], &[4, 2]), "frame: strides is 2, expected 3 for I420");
    assert_eq!(
        refused(Bgrx, 5, 3, &[plane], &[19]),
        "frame: stride of plane 0 is 19, expected at least 20 bytes for 5 pixels of Bgrx"
    );
    assert_eq!(
        refused(Rgb, 5, 4, &[plane], &[17]),
        "frame: length of plane 0 is 64, expected 4 rows of 15 bytes, 17 bytes apart"
    );
    assert_eq!(
        refused(Nv12, 5, 5, &[plane, &plane[..17]], &[5, 6]),
        "frame: length of plane 1 is 17, expected 3 rows of 6 bytes, 6 bytes apart"
    );
    assert_eq!(
        refused(Yuy2, 5, 4, &[plane], &[10]),
        "frame: stride of plane 0 is 10, expected at least 12 bytes for 5 pixels of Yuy2"
    );
    assert_eq!(
        refused(Y42b, 5, 5, &[&plane[..25], &plane[..15], &plane[..14]], &[5, 3, 3]),
        "frame: length of plane 2 is 14, expected 5 rows of 3 bytes, 3 bytes apart"
    );
    assert_eq!(
        refused(Y444, 5, 5, &[plane; 3], &[5, 5, 4]),
        "frame: stride of plane 2 is 4, expected at least 5 bytes for 5 pixels of Y444"
    );
    assert!(refused(Rgb, 5, 4, &[plane], &[usize::MAX / 2]).contains("length of plane 0"));
    // 3 * 16 + 15 bytes: the last row goes without padding.
    assert_eq!(new(Rgb, 5, 4, &[&plane[..63]], &[16]), Ok(()));
    assert_eq!(new(Nv12, 5, 5, &[&plane[..25], &plane[..18]], &[5, 6]), Ok(()));
}
