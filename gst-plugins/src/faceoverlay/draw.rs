//! Draws rectangles and text directly into the planes of a frame, in the frame's own colour space. Only the pixels that change
//! are touched.

use facepipe_detector::BoundingBox;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoFrameRef, VideoInfo, prelude::*};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width};

/// Red, green, blue.
pub type Color = [u8; 3];

/// Heights of the fonts, pixels. Larger text is scaled by whole numbers.
const FONTS: [(u32, RasterHeight); 4] = [
    (32, RasterHeight::Size32),
    (24, RasterHeight::Size24),
    (20, RasterHeight::Size20),
    (16, RasterHeight::Size16),
];

/// A font size.
#[derive(Debug, Clone, Copy)]
pub struct Font {
    raster: RasterHeight,
    scale: i32,
}

impl Font {
    /// Returns the largest font whose lines are at most this high, pixels; the smallest has 16.
    pub fn fitting(height: u32) -> Self {
        let scale = (height / 32).max(1);
        let each = height / scale;
        let raster =
            FONTS.iter().find(|(size, _)| *size <= each).map_or(RasterHeight::Size16, |(_, raster)| *raster);
        Self { raster, scale: scale.try_into().unwrap_or(1) }
    }

    /// Returns the height of a line, pixels.
    pub fn height(self) -> i32 {
        i32::try_from(self.raster.val()).unwrap_or(16) * self.scale
    }

    /// Returns the width of a text, pixels.
    pub fn width(self, text: &str) -> i32 {
        let each = i32::try_from(get_raster_width(FontWeight::Bold, self.raster)).unwrap_or(8) * self.scale;
        i32::try_from(text.chars().count()).unwrap_or(0).saturating_mul(each)
    }
}

enum Shape {
    Fill { area: BoundingBox<i32>, color: Color, opacity: u8 },
    Glyph { left: i32, top: i32, scale: i32, raster: RasterizedChar, color: Color },
}

/// Shapes in drawing order. Parts outside the frame are skipped.
#[derive(Default)]
pub struct Drawing {
    shapes: Vec<Shape>,
}

impl Drawing {
    /// Fills an area, in pixels, with an opacity of 0 to 255.
    pub fn fill(&mut self, area: BoundingBox<i32>, color: Color, opacity: u8) {
        self.shapes.push(Shape::Fill { area, color, opacity });
    }

    /// Draws the border of an area, inside it, `width` pixels wide.
    pub fn border(&mut self, area: BoundingBox<i32>, width: i32, color: Color) {
        let BoundingBox { left, top, right, bottom } = area;
        let (inner_top, inner_bottom) = (top + width, (bottom - width).max(top + width));
        self.fill(BoundingBox::new(left, top, right, inner_top), color, 255);
        self.fill(BoundingBox::new(left, inner_bottom, right, bottom), color, 255);
        self.fill(BoundingBox::new(left, inner_top, left + width, inner_bottom), color, 255);
        self.fill(BoundingBox::new(right - width, inner_top, right, inner_bottom), color, 255);
    }

    /// Draws a line of text. Characters that the font lacks become question marks.
    pub fn text(&mut self, mut left: i32, top: i32, text: &str, font: Font, color: Color) {
        for character in text.chars() {
            let glyph = |c| get_raster(c, FontWeight::Bold, font.raster);
            if let Some(raster) = glyph(character).or_else(|| glyph('?')) {
                self.shapes.push(Shape::Glyph { left, top, scale: font.scale, raster, color });
            }
            left += font.width("x");
        }
    }

    /// Draws all shapes into a frame.
    pub fn paint(&self, frame: &mut VideoFrameRef<&mut gst::BufferRef>) {
        let info = frame.info().clone();
        let components = usize::try_from(info.n_components()).unwrap_or(0).min(3);
        for component in 0..components {
            if let Some(mut plane) = Plane::of(frame, &info, component) {
                self.shapes.iter().for_each(|shape| plane.draw(shape, &info));
            }
        }
    }
}

/// The samples of one colour component.
struct Plane<'a> {
    component: usize,
    data: &'a mut [u8],
    stride: usize,
    /// Bytes before the first sample of a row, and from one sample to the next.
    offset: usize,
    step: usize,
    width: i32,
    height: i32,
    /// Pixels per sample are 2 to the power of these.
    shift: (u32, u32),
    /// The layout of samples of more than 8 bits, which have two bytes.
    wide: Option<Wide>,
}

/// The position of a sample of more than 8 bits within its two bytes, the lower one first.
#[derive(Clone, Copy)]
struct Wide {
    /// Bits beyond the 8 of a value.
    excess: u32,
    /// Those of them below the sample, which stay 0.
    unused: u32,
}

impl Wide {
    fn of(depth: u32, shift: u32) -> Option<Self> {
        let excess = depth.checked_sub(8)?.checked_add(shift)?;
        (depth > 8 && excess <= 8).then_some(Self { excess, unused: shift })
    }
}

impl<'a> Plane<'a> {
    fn of(
        frame: &'a mut VideoFrameRef<&mut gst::BufferRef>,
        info: &VideoInfo,
        component: usize,
    ) -> Option<Self> {
        let format = info.format_info();
        let plane = *format.plane().get(component)?;
        let stride = usize::try_from(*frame.plane_stride().get(usize::try_from(plane).ok()?)?).ok()?;
        let index = u8::try_from(component).ok()?;
        let wide = Wide::of(*format.depth().get(component)?, *format.shift().get(component)?);
        let offset = usize::try_from(*format.poffset().get(component)?).ok()?;
        Some(Self {
            component,
            stride,
            // For P010, GStreamer 1.22 gives the offset of Cr in samples and not in bytes.
            offset: if wide.is_some() { offset.next_multiple_of(2) } else { offset },
            step: usize::try_from(*format.pixel_stride().get(component)?).ok()?,
            width: format.scale_width(index, info.width()).try_into().ok()?,
            height: format.scale_height(index, info.height()).try_into().ok()?,
            shift: (*format.w_sub().get(component)?, *format.h_sub().get(component)?),
            wide,
            data: frame.plane_data_mut(plane).ok()?,
        })
    }

    fn draw(&mut self, shape: &Shape, info: &VideoInfo) {
        match shape {
            Shape::Fill { area, color, opacity } => {
                let value = self.value(*color, info);
                self.blend_area(*area, value, |_, _| *opacity);
            }
            Shape::Glyph { left, top, scale, raster, color } => {
                let value = self.value(*color, info);
                let side = |pixels: usize| i32::try_from(pixels).unwrap_or(0).saturating_mul(*scale);
                let area =
                    BoundingBox::new(*left, *top, left + side(raster.width()), top + side(raster.height()));
                self.blend_area(area, value, |x, y| {
                    let at = |pixel: i32, start: i32| usize::try_from((pixel - start) / scale).ok();
                    let ink = at(x, *left).zip(at(y, *top)).and_then(|(x, y)| raster.pixel(x, y));
                    ink.unwrap_or(0)
                });
            }
        }
    }

    fn value(&self, color: Color, info: &VideoInfo) -> u8 {
        let components = if info.is_rgb() { color } else { to_yuv(color, info) };
        components.get(self.component).copied().unwrap_or(0)
    }

    /// Blends a value into the samples of an area (pixels) with the opacity of each sample's first pixel.
    fn blend_area(&mut self, area: BoundingBox<i32>, value: u8, opacity: impl Fn(i32, i32) -> u8) {
        let BoundingBox { left, top, right, bottom } = area;
        let (across, down) = self.shift;
        let round_up = |value: i32, shift: u32| (value + (1 << shift) - 1) >> shift;
        let columns = (left >> across).max(0)..round_up(right, across).min(self.width);
        for row in (top >> down).max(0)..round_up(bottom, down).min(self.height) {
            let Ok(start) = usize::try_from(row).map(|row| row * self.stride + self.offset) else { continue };
            for column in columns.clone() {
                let Ok(at) = usize::try_from(column).map(|column| start + column * self.step) else {
                    continue;
                };
                let sample = self.data.get_mut(at..).unwrap_or_default();
                // For a sample at the edge of the area, the first pixel inside the area.
                let opacity = opacity((column << across).max(left), (row << down).max(top));
                match (self.wide, sample) {
                    (None, [sample, ..]) => *sample = blend(*sample, value, opacity),
                    (Some(wide), [low, high, ..]) => {
                        let sample = u16::from_le_bytes([*low, *high]);
                        [*low, *high] = blend_wide(sample, value, opacity, wide).to_le_bytes();
                    }
                    _ => {}
                }
            }
        }
    }
}

fn blend(sample: u8, value: u8, opacity: u8) -> u8 {
    u8::try_from(mix(sample.into(), value.into(), opacity)).unwrap_or(u8::MAX)
}

fn blend_wide(sample: u16, value: u8, opacity: u8, wide: Wide) -> u16 {
    let mixed = mix(sample.into(), u32::from(value) << wide.excess, opacity);
    u16::try_from(mixed >> wide.unused << wide.unused).unwrap_or(u16::MAX)
}

fn mix(old: u32, new: u32, opacity: u8) -> u32 {
    let opacity = u32::from(opacity);
    (old * (255 - opacity) + new * opacity + 127) / 255
}

/// Converts R'G'B' to Y'CbCr (ITU-R BT.601 and BT.709, section "signal format").
fn to_yuv(color: Color, info: &VideoInfo) -> [u8; 3] {
    let colorimetry = info.colorimetry();
    let (kr, kb) = match colorimetry.matrix() {
        VideoColorMatrix::Bt601 | VideoColorMatrix::Fcc | VideoColorMatrix::Smpte240m => (0.299, 0.114),
        _ => (0.2126, 0.0722),
    };
    let [r, g, b] = color.map(|value| f64::from(value) / 255.0);
    let luma = kr * r + (1.0 - kr - kb) * g + kb * b;
    let (cb, cr) = ((b - luma) / (2.0 * (1.0 - kb)), (r - luma) / (2.0 * (1.0 - kr)));
    let (offset, luma_scale, chroma_scale) = match colorimetry.range() {
        VideoColorRange::Range0_255 => (0.0, 255.0, 255.0),
        _ => (16.0, 219.0, 224.0),
    };
    [offset + luma * luma_scale, 128.0 + cb * chroma_scale, 128.0 + cr * chroma_scale].map(to_byte)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of u8")]
fn to_byte(value: f64) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}
