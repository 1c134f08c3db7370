//! Helpers for the tests of the detector: an open detector, pictures, and a converter to planes.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;

use facepipe_detector::{
    ChromaSite, ColorMatrix, ColorRange, Detector, DetectorConfig, DetectorError, Frame, PixelFormat, runtime,
};
use image::RgbImage;

/// Opens the detector with this model; skips the test without ONNX Runtime.
#[macro_export]
macro_rules! open_or_skip {
    ($config:expr) => {
        match $crate::common::open($config) {
            Some(detector) => detector,
            None => return,
        }
    };
}

pub fn open(config: DetectorConfig) -> Option<Detector> {
    let library_hints = vec![facepipe_test_support::workspace_root()];
    match Detector::open(&DetectorConfig { library_hints, ..config }) {
        Ok(detector) => Some(detector),
        Err(error @ DetectorError::RuntimeMissing { .. }) => {
            facepipe_test_support::skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Returns whether ONNX Runtime is available; reports the test as skipped if not.
pub fn runtime_or_skip() -> bool {
    let found = runtime::load(&[facepipe_test_support::workspace_root()]);
    if let Err(error) = &found {
        facepipe_test_support::skip(&error.to_string());
    }
    found.is_ok()
}

pub fn picture(path: &Path) -> RgbImage {
    image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8()
}

pub fn rgb_frame(picture: &RgbImage) -> Frame<'_> {
    Frame::rgb(picture, picture.width(), picture.height()).unwrap()
}

/// Returns Kr and Kb of ITU-R BT.601 and BT.709.
pub fn luma_weights(matrix: ColorMatrix) -> (f64, f64) {
    match matrix {
        ColorMatrix::Bt601 => (0.299, 0.114),
        ColorMatrix::Bt709 => (0.2126, 0.0722),
    }
}

/// Returns Y'CbCr of one pixel by the definition in ITU-R BT.601 and BT.709, not yet rounded.
pub fn to_ycbcr(rgb: [f64; 3], matrix: ColorMatrix, range: ColorRange) -> [f64; 3] {
    let (kr, kb) = luma_weights(matrix);
    let [r, g, b] = rgb.map(|v| v / 255.0);
    let y = kr * r + (1.0 - kr - kb) * g + kb * b;
    let (cb, cr) = ((b - y) / (2.0 * (1.0 - kb)), (r - y) / (2.0 * (1.0 - kr)));
    match range {
        ColorRange::Full => [255.0 * y, 255.0 * cb + 128.0, 255.0 * cr + 128.0],
        ColorRange::Limited => [219.0 * y + 16.0, 224.0 * cb + 128.0, 224.0 * cr + 128.0],
    }
}

/// A picture in planes, with padding after each row.
pub struct Planes {
    pub format: PixelFormat,
    pub width: u32,
    pub height: u32,
    pub planes: Vec<Vec<u8>>,
    pub strides: Vec<usize>,
    pub matrix: ColorMatrix,
    pub range: ColorRange,
    pub site: ChromaSite,
    /// For 10-bit formats: the same picture with 8 bits.
    pub eight_bit: Option<Box<Planes>>,
}

impl Planes {
    /// Converts an RGB picture; chroma is the mean of the (up to) four pixels it stands for. Padding, and what packed
    /// formats have beyond the last pixel of an odd width, is filled with values that would show in the result.
    pub fn of(
        picture: &RgbImage,
        format: PixelFormat,
        matrix: ColorMatrix,
        range: ColorRange,
        padding: usize,
    ) -> Self {
        if format.excess_bits().is_some() {
            return Self::of(picture, format.eight_bit(), matrix, range, padding).widened(format, padding);
        }
        let (width, height) = picture.dimensions();
        let pixel = |x: u32, y: u32| picture.get_pixel(x, y).0.map(f64::from);
        let round = |v: f64| v.round().clamp(0.0, 255.0) as u8;
        let (across, down) = format.subsampling();
        let chroma = |x: u32, y: u32, index: usize| {
            let (across, down) = (across as u32, down as u32);
            let xs = across * x..width.min(across * (x + 1));
            let ys = down * y..height.min(down * (y + 1));
            let block: Vec<f64> = ys
                .flat_map(|y| xs.clone().map(move |x| (x, y)))
                .map(|(x, y)| to_ycbcr(pixel(x, y), matrix, range)[index])
                .collect();
            round(block.iter().sum::<f64>() / block.len() as f64)
        };
        let luma =
            |x: u32, y: u32| if x < width { round(to_ycbcr(pixel(x, y), matrix, range)[0]) } else { 0x5a };
        let mut planes = Vec::new();
        let mut strides = Vec::new();
        for plane in 0..format.planes() {
            let (bytes, rows) = format.plane_size(plane, width as usize, height as usize);
            let stride = bytes + padding;
            let mut data = vec![0xa5; stride * rows];
            for (y, row) in data.chunks_exact_mut(stride).enumerate() {
                let y = y as u32;
                for (at, value) in row[..bytes].iter_mut().enumerate() {
                    let at = at as u32;
                    let rgb = |x: u32, order: [usize; 4], size: u32| {
                        picture.get_pixel(x, y).0.get(order[(at % size) as usize]).copied().unwrap_or(7)
                    };
                    *value = match (format, plane) {
                        (PixelFormat::Yuy2, _) => match at % 4 {
                            1 => chroma(at / 4, y, 1),
                            3 => chroma(at / 4, y, 2),
                            _ => luma(at / 2, y),
                        },
                        (PixelFormat::Uyvy, _) => match at % 4 {
                            0 => chroma(at / 4, y, 1),
                            2 => chroma(at / 4, y, 2),
                            _ => luma(at / 2, y),
                        },
                        (
                            PixelFormat::Nv12
                            | PixelFormat::Nv21
                            | PixelFormat::I420
                            | PixelFormat::Yv12
                            | PixelFormat::Y42b
                            | PixelFormat::Y444
                            | PixelFormat::Gray8,
                            0,
                        ) => luma(at, y),
                        (PixelFormat::Nv12, _) => chroma(at / 2, y, 1 + at as usize % 2),
                        (PixelFormat::Nv21, _) => chroma(at / 2, y, 2 - at as usize % 2),
                        (PixelFormat::I420 | PixelFormat::Y42b | PixelFormat::Y444, _) => {
                            chroma(at, y, plane)
                        }
                        (PixelFormat::Yv12, _) => chroma(at, y, 3 - plane),
                        (PixelFormat::Rgb, _) => rgb(at / 3, [0, 1, 2, 0], 3),
                        (PixelFormat::Bgr, _) => rgb(at / 3, [2, 1, 0, 0], 3),
                        (PixelFormat::Rgbx | PixelFormat::Rgba, _) => rgb(at / 4, [0, 1, 2, 3], 4),
                        (PixelFormat::Bgrx | PixelFormat::Bgra, _) => rgb(at / 4, [2, 1, 0, 3], 4),
                        (other, plane) => panic!("{other:?} has no plane {plane}"),
                    };
                }
            }
            // The last row need not be padded.
            data.truncate(stride * (rows - 1) + bytes);
            planes.push(data);
            strides.push(stride);
        }
        let site = ChromaSite::default();
        Self { format, width, height, planes, strides, matrix, range, site, eight_bit: None }
    }

    /// Returns the same with 10 bits per sample; the lowest bit is noise that rounding removes.
    fn widened(self, format: PixelFormat, padding: usize) -> Self {
        let (width, height) = (self.width as usize, self.height as usize);
        let mut planes = Vec::new();
        let mut strides = Vec::new();
        for (plane, (data, stride)) in self.planes.iter().zip(&self.strides).enumerate() {
            let (bytes, rows) = format.plane_size(plane, width, height);
            let mut wide = Vec::new();
            for row in data.chunks(*stride) {
                let samples = row[..bytes / 2].iter().map(|&sample| u16::from(sample) * 4 + 1);
                let samples = samples.map(|s| if format == PixelFormat::P010 { s << 6 } else { s });
                wide.extend(samples.flat_map(u16::to_le_bytes));
                wide.extend(vec![0xa5; padding]);
            }
            wide.truncate((bytes + padding) * (rows - 1) + bytes);
            planes.push(wide);
            strides.push(bytes + padding);
        }
        let Self { width, height, matrix, range, site, .. } = self;
        let eight_bit = Some(Box::new(self));
        Self { format, width, height, planes, strides, matrix, range, site, eight_bit }
    }

    pub fn frame(&self) -> Frame<'_> {
        let planes: Vec<&[u8]> = self.planes.iter().map(Vec::as_slice).collect();
        Frame::new(self.format, self.width, self.height, &planes, &self.strides, self.matrix, self.range)
            .unwrap()
            .with_chroma_site(self.site)
    }
}
