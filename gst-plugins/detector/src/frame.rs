//! A borrowed video frame: pixel format, colorimetry and planes exactly as a decoder left them.

use crate::DetectorError;

/// Longest side of a frame in pixels. Four times 8K; keeps every offset far from overflow.
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
}

/// Memory layout of a frame, 8 bits per component. Names as in GStreamer's video formats.
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
    /// Four bytes for two neighbouring pixels: luma, Cb, luma, Cr. What most webcams deliver as raw video.
    Yuy2,
    /// Four bytes for two neighbouring pixels: Cb, luma, Cr, luma.
    Uyvy,
    /// Plane of luma, plane of Cb, plane of Cr, the last two halved in width only (rounded up). What most JPEG
    /// pictures of webcams decode to.
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
}

impl PixelFormat {
    /// All formats, in the order in which an element should offer them: fewest bytes per pixel first, and of those
    /// the common ones first.
    pub const ALL: [Self; 14] = [
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
    ];

    /// Number of planes: 1 for the packed formats, 2 for NV12 and NV21, else 3.
    pub const fn planes(self) -> usize {
        match self {
            Self::Nv12 | Self::Nv21 => 2,
            Self::I420 | Self::Yv12 | Self::Y42b | Self::Y444 => 3,
            Self::Yuy2 | Self::Uyvy => 1,
            Self::Rgb | Self::Bgr | Self::Rgbx | Self::Bgrx | Self::Rgba | Self::Bgra => 1,
        }
    }

    /// For how many pixels across and down one sample of chroma stands: 2 and 2 for the 4:2:0 formats, 2 and 1 for
    /// 4:2:2, 1 and 1 for 4:4:4 and RGB.
    pub const fn subsampling(self) -> (usize, usize) {
        match self {
            Self::Nv12 | Self::I420 | Self::Nv21 | Self::Yv12 => (2, 2),
            Self::Yuy2 | Self::Uyvy | Self::Y42b => (2, 1),
            Self::Y444 => (1, 1),
            Self::Rgb | Self::Bgr | Self::Rgbx | Self::Bgrx | Self::Rgba | Self::Bgra => (1, 1),
        }
    }

    /// Bytes of pixels in one row of `plane`, and the plane's number of rows, for a frame of this size in pixels.
    pub const fn plane_size(self, plane: usize, width: usize, height: usize) -> (usize, usize) {
        let (across, down) = self.subsampling();
        let chroma = (width.div_ceil(across), height.div_ceil(down));
        match (self, plane) {
            (Self::Yuy2 | Self::Uyvy, _) => (4 * chroma.0, height),
            (Self::Nv12 | Self::Nv21, 1) => (2 * chroma.0, chroma.1),
            (Self::I420 | Self::Yv12 | Self::Y42b | Self::Y444, 1 | 2) => chroma,
            (Self::Nv12 | Self::Nv21 | Self::I420 | Self::Yv12 | Self::Y42b | Self::Y444, _) => {
                (width, height)
            }
            (Self::Rgb | Self::Bgr, _) => (3 * width, height),
            (Self::Rgbx | Self::Bgrx | Self::Rgba | Self::Bgra, _) => (4 * width, height),
        }
    }
}

/// How Y'CbCr becomes R'G'B'. Ignored for the RGB formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColorMatrix {
    /// ITU-R BT.601: Kr = 0.299, Kb = 0.114. Standard definition and JPEG.
    Bt601,
    /// ITU-R BT.709: Kr = 0.2126, Kb = 0.0722. High definition.
    #[default]
    Bt709,
}

/// Which code values stand for black and white. Ignored for the RGB formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColorRange {
    /// Luma and chroma use 0 to 255, as in JPEG.
    Full,
    /// Luma uses 16 to 235, chroma 16 to 240, as in broadcast video.
    #[default]
    Limited,
}

impl<'a> Frame<'a> {
    /// Describes a frame of `width` x `height` pixels.
    ///
    /// `planes` and `strides` (bytes from one row to the next) have as many entries as the format has planes.
    /// Bytes of a row beyond the pixels, and of a plane beyond the last row, are ignored; the last row need not be
    /// padded to the stride.
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
        let mut frame = Self { format, width, height, planes: [&[]; 3], strides: [0; 3], matrix, range };
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

    /// A tightly packed RGB picture, three bytes per pixel.
    ///
    /// # Errors
    ///
    /// As [`Frame::new`].
    pub fn rgb(pixels: &'a [u8], width: u32, height: u32) -> Result<Self, DetectorError> {
        let stride = usize::try_from(width).unwrap_or(usize::MAX).saturating_mul(3);
        let (matrix, range) = (ColorMatrix::default(), ColorRange::Full);
        Self::new(PixelFormat::Rgb, width, height, &[pixels], &[stride], matrix, range)
    }

    /// Layout of the planes.
    pub const fn format(&self) -> PixelFormat {
        self.format
    }

    /// Width in pixels, at least 1.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels, at least 1.
    pub const fn height(&self) -> usize {
        self.height
    }

    /// The matrix of the Y'CbCr formats.
    pub const fn matrix(&self) -> ColorMatrix {
        self.matrix
    }

    /// The range of the Y'CbCr formats.
    pub const fn range(&self) -> ColorRange {
        self.range
    }

    /// The bytes of row `y` of a plane, without padding.
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
