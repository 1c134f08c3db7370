//! A borrowed video frame: pixel format, colorimetry and planes as a decoder made them.

use std::ops::Range;

use crate::DetectorError;

/// Pixel aspect ratios beyond this (or its inverse) are an error in the caps.
const MAX_STRETCH: f64 = 8.0;

/// Maximum side of a frame in pixels: four times 8K, and far from overflow in offsets.
const MAX_SIDE: u32 = 32_768;

/// One video frame, borrowed; its planes are checked against its size once, in [`Frame::new`].
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    format: PixelFormat,
    width: usize,
    height: usize,
    planes: [&'a [u8]; 3],
    strides: [usize; 3],
    matrix: ColorMatrix,
    range: ColorRange,
    chroma_site: ChromaSite,
    stretch: [f64; 2],
}

/// Memory layout of a frame: 8 bits per component, or 10 bits in two bytes, the lower one first. Names as in GStreamer's
/// video formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Plane of luma, then plane of Cb and Cr interleaved, each halved in both directions (rounded up).
    Nv12,
    /// Plane of luma, plane of Cb, plane of Cr, the last two halved in both directions (rounded up).
    I420,
    /// As NV12, with Cr before Cb.
    Nv21,
    /// As I420, with the plane of Cr before that of Cb.
    Yv12,
    /// Four bytes for two neighbouring pixels: luma, Cb, luma, Cr. The raw video of most webcams.
    Yuy2,
    /// Four bytes for two neighbouring pixels: Cb, luma, Cr, luma.
    Uyvy,
    /// Plane of luma, plane of Cb, plane of Cr, the last two halved in width only (rounded up). The decoded motion JPEG of most
    /// webcams.
    Y42b,
    /// Plane of luma, plane of Cb, plane of Cr, all of the frame's size.
    Y444,
    /// Three bytes per pixel, red first.
    Rgb,
    /// Three bytes per pixel, blue first.
    Bgr,
    /// Four bytes per pixel: red, green, blue, unused.
    Rgbx,
    /// Four bytes per pixel: blue, green, red, unused.
    Bgrx,
    /// Four bytes per pixel: red, green, blue, alpha. Alpha is ignored.
    Rgba,
    /// Four bytes per pixel: blue, green, red, alpha. Alpha is ignored.
    Bgra,
    /// As NV12, 10 bits in the upper part of two bytes (P010_10LE). The output of hardware decoders for 10-bit video.
    P010,
    /// As I420, 10 bits in the lower part of two bytes (I420_10LE). The output of software decoders for 10-bit video.
    I420Ten,
    /// As Y42B, 10 bits in the lower part of two bytes (I422_10LE).
    I422Ten,
    /// Plane of luma only (GRAY8). The night mode of cameras.
    Gray8,
}

impl PixelFormat {
    /// All formats, in the order in which an element should offer them: fewest bytes per pixel first, then the most common.
    pub const ALL: [Self; 18] = [
        Self::Nv12,
        Self::I420,
        Self::Nv21,
        Self::Yv12,
        Self::Yuy2,
        Self::Uyvy,
        Self::Y42b,
        Self::Y444,
        Self::Rgb,
        Self::Bgr,
        Self::Rgbx,
        Self::Bgrx,
        Self::Rgba,
        Self::Bgra,
        Self::P010,
        Self::I420Ten,
        Self::I422Ten,
        // Last, since colour is preferred.
        Self::Gray8,
    ];

    /// Returns the format with the same planes and 8 bits per component: itself, unless it has 10 bits.
    pub const fn eight_bit(self) -> Self {
        match self {
            Self::P010 => Self::Nv12,
            Self::I420Ten => Self::I420,
            Self::I422Ten => Self::Y42b,
            other => other,
        }
    }

    /// Returns by how many bits a 10-bit sample is shifted right to keep its upper 8; `None` for 8-bit formats.
    pub const fn excess_bits(self) -> Option<u32> {
        match self {
            Self::P010 => Some(8),
            Self::I420Ten | Self::I422Ten => Some(2),
            _ => None,
        }
    }

    /// Returns the number of planes: 1 for the packed formats, 2 for NV12 and NV21, else 3.
    pub const fn planes(self) -> usize {
        match self.eight_bit() {
            Self::Nv12 | Self::Nv21 => 2,
            Self::I420 | Self::Yv12 | Self::Y42b | Self::Y444 => 3,
            _ => 1,
        }
    }

    /// Returns the number of pixels across and down per chroma sample: 2 and 2 for the 4:2:0 formats, 2 and 1 for 4:2:2, 1 and 1
    /// for 4:4:4, RGB and grey.
    pub const fn subsampling(self) -> (usize, usize) {
        match self.eight_bit() {
            Self::Nv12 | Self::I420 | Self::Nv21 | Self::Yv12 => (2, 2),
            Self::Yuy2 | Self::Uyvy | Self::Y42b => (2, 1),
            _ => (1, 1),
        }
    }

    /// Returns the bytes of pixels in one row of `plane` and the plane's number of rows, for a frame of this size in pixels.
    pub const fn plane_size(self, plane: usize, width: usize, height: usize) -> (usize, usize) {
        let (across, down) = self.subsampling();
        let chroma = (width.div_ceil(across), height.div_ceil(down));
        if self.excess_bits().is_some() {
            let (bytes, rows) = self.eight_bit().plane_size(plane, width, height);
            return (2 * bytes, rows);
        }
        match (self, plane) {
            (Self::Yuy2 | Self::Uyvy, _) => (4 * chroma.0, height),
            (Self::Nv12 | Self::Nv21, 1) => (2 * chroma.0, chroma.1),
            (Self::I420 | Self::Yv12 | Self::Y42b | Self::Y444, 1 | 2) => chroma,
            (Self::Rgb | Self::Bgr, _) => (3 * width, height),
            (Self::Rgbx | Self::Bgrx | Self::Rgba | Self::Bgra, _) => (4 * width, height),
            _ => (width, height),
        }
    }
}

/// The matrix from Y'CbCr to R'G'B'. Ignored for the RGB formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColorMatrix {
    /// ITU-R BT.601: Kr = 0.299, Kb = 0.114. Standard definition and JPEG.
    Bt601,
    /// ITU-R BT.709: Kr = 0.2126, Kb = 0.0722. High definition.
    #[default]
    Bt709,
}

/// The code values of black and white. Ignored for the RGB formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColorRange {
    /// Luma and chroma use 0 to 255, as in JPEG.
    Full,
    /// Luma uses 16 to 235, chroma 16 to 240, as in broadcast video.
    #[default]
    Limited,
}

/// The siting of subsampled chroma. Ignored for formats without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChromaSite {
    /// Whether a sample is on the left one of its pixels, as in MPEG-2, H.264 and H.265; else it is in their middle, as in JPEG.
    pub cosited_across: bool,
    /// Whether a sample is on the upper one of its pixels; else it is in their middle.
    pub cosited_down: bool,
}

impl<'a> Frame<'a> {
    /// Describes a frame of `width` x `height` pixels.
    ///
    /// `planes` and `strides` (bytes from one row to the next) have as many entries as the format has planes.
    /// Bytes of a row beyond the pixels, and of a plane beyond the last row, are ignored; the last row need not be
    /// padded to the stride. Chroma is sited in the middle of its pixels and these are square, unless changed by
    /// [`with_chroma_site`](Self::with_chroma_site) and [`with_pixel_aspect`](Self::with_pixel_aspect).
    ///
    /// # Errors
    ///
    /// [`DetectorError::InvalidFrame`] where a side is 0 or over 32,768 pixels, the number of planes or strides
    /// differs from the format's, a stride is shorter than a row, or a plane is shorter than its rows need.
    pub fn new(
        format: PixelFormat,
        width: u32,
        height: u32,
        planes: &[&'a [u8]],
        strides: &[usize],
        matrix: ColorMatrix,
        range: ColorRange,
    ) -> Result<Self, DetectorError> {
        let width = side("width", width)?;
        let height = side("height", height)?;
        let count = format.planes();
        for (field, len) in [("planes", planes.len()), ("strides", strides.len())] {
            if len != count {
                return Err(invalid(field, len, format!("{count} for {format:?}")));
            }
        }
        let mut frame = Self {
            format,
            width,
            height,
            planes: [&[]; 3],
            strides: [0; 3],
            matrix,
            range,
            chroma_site: ChromaSite::default(),
            stretch: [1.0; 2],
        };
        let slots = frame.planes.iter_mut().zip(&mut frame.strides);
        for (index, ((slot, slot_stride), (&plane, &stride))) in
            slots.zip(planes.iter().zip(strides)).enumerate()
        {
            let (row, rows) = format.plane_size(index, width, height);
            if stride < row {
                return Err(invalid(
                    format!("stride of plane {index}"),
                    stride,
                    format!("at least {row} bytes for {width} pixels of {format:?}"),
                ));
            }
            let needed = stride.checked_mul(rows - 1).and_then(|n| n.checked_add(row));
            if needed.is_none_or(|needed| plane.len() < needed) {
                return Err(invalid(
                    format!("length of plane {index}"),
                    plane.len(),
                    format!("{rows} rows of {row} bytes, {stride} bytes apart"),
                ));
            }
            *slot = plane;
            *slot_stride = stride;
        }
        Ok(frame)
    }

    /// Describes a tightly packed RGB frame, three bytes per pixel.
    ///
    /// # Errors
    ///
    /// As [`Frame::new`].
    pub fn rgb(pixels: &'a [u8], width: u32, height: u32) -> Result<Self, DetectorError> {
        let stride = usize::try_from(width).unwrap_or(usize::MAX).saturating_mul(3);
        let (matrix, range) = (ColorMatrix::default(), ColorRange::Full);
        Self::new(PixelFormat::Rgb, width, height, &[pixels], &[stride], matrix, range)
    }

    /// Returns the frame with another siting of chroma.
    #[must_use]
    pub const fn with_chroma_site(mut self, site: ChromaSite) -> Self {
        self.chroma_site = site;
        self
    }

    /// Returns the frame with the pixel aspect ratio `width` / `height`; with square pixels if either is 0.
    #[must_use]
    pub fn with_pixel_aspect(mut self, width: u32, height: u32) -> Self {
        self.stretch = square_pixels(width, height);
        self
    }

    /// Returns the layout of the planes.
    pub const fn format(&self) -> PixelFormat {
        self.format
    }

    /// Returns the width in pixels, at least 1.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Returns the height in pixels, at least 1.
    pub const fn height(&self) -> usize {
        self.height
    }

    /// Returns the matrix of the Y'CbCr formats.
    pub const fn matrix(&self) -> ColorMatrix {
        self.matrix
    }

    /// Returns the range of the Y'CbCr formats.
    pub const fn range(&self) -> ColorRange {
        self.range
    }

    /// Returns the siting of chroma.
    pub const fn chroma_site(&self) -> ChromaSite {
        self.chroma_site
    }

    /// Returns the factors across and down that make the frame's pixels square, see [`square_pixels`].
    pub const fn stretch(&self) -> [f64; 2] {
        self.stretch
    }

    /// Returns the `samples` of row `y` of a plane with 8 bits each: borrowed from the frame or, if it has 10 bits, rounded into
    /// `scratch`.
    ///
    /// # Panics
    ///
    /// As [`row`](Self::row), and where the row has no such samples.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "documented to panic")]
    pub fn samples<'s>(
        &self,
        plane: usize,
        y: usize,
        samples: Range<usize>,
        scratch: &'s mut Vec<u8>,
    ) -> &'s [u8]
    where
        'a: 's,
    {
        let row = self.row(plane, y);
        let Some(excess) = self.format.excess_bits() else { return &row[samples] };
        scratch.clear();
        let wide = &row.as_chunks::<2>().0[samples];
        scratch.extend(wide.iter().map(|&bytes| narrow(u16::from_le_bytes(bytes), excess)));
        scratch
    }

    /// Returns the bytes of row `y` of a plane, without padding.
    ///
    /// # Panics
    ///
    /// Where the format has no such plane, or the plane no such row.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "`new` has checked every row of every plane")]
    pub fn row(&self, plane: usize, y: usize) -> &'a [u8] {
        let (bytes, rows) = self.format.plane_size(plane, self.width, self.height);
        assert!(y < rows, "row {y} of a plane of {rows} rows");
        let start = y * self.strides[plane];
        &self.planes[plane][start..start + bytes]
    }
}

/// Returns the factors across and down, each 1 to 8, by which a frame with the pixel aspect ratio `width` / `height` is stretched
/// to make its pixels square. The longer side of a pixel is kept. 1 and 1 if either is 0.
pub fn square_pixels(width: u32, height: u32) -> [f64; 2] {
    if width == 0 || height == 0 {
        return [1.0; 2];
    }
    let ratio = f64::from(width) / f64::from(height);
    [ratio.clamp(1.0, MAX_STRETCH), ratio.recip().clamp(1.0, MAX_STRETCH)]
}

/// Returns the upper 8 bits, rounded.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "at most 255")]
const fn narrow(sample: u16, excess: u32) -> u8 {
    let rounded = sample.saturating_add(1 << (excess - 1)) >> excess;
    (if rounded < 255 { rounded } else { 255 }) as u8
}

fn side(field: &'static str, pixels: u32) -> Result<usize, DetectorError> {
    let value = usize::try_from(pixels).unwrap_or(usize::MAX);
    if (1..=MAX_SIDE).contains(&pixels) {
        Ok(value)
    } else {
        Err(invalid(field, value, format!("1 to {MAX_SIDE} pixels")))
    }
}

fn invalid(field: impl Into<String>, value: usize, limit: String) -> DetectorError {
    DetectorError::InvalidFrame { field: field.into(), value, limit }
}
