//! The second window: the latest crops, with the colour and name of their faces.

use anyhow::{Context, Result};
use facepipe_detector::BoundingBox;
use gst::prelude::*;
use gst_video::{VideoFormat, VideoInfo};
use gstfacepipe::{
    results::RecognitionResult,
    roi::{self, FaceRegion},
};
use image::{RgbImage, imageops, imageops::FilterType};

use super::window::Window;

const COLUMNS: u32 = 2;
const ROWS: u32 = 3;

/// Side of a tile, pixels.
const TILE: u32 = 192;

/// Gap between tiles, and height of the label above each, pixels.
const GAP: u32 = 12;
const LABEL_HEIGHT: u32 = 36;

/// A multiple of four, since GStreamer pads RGB rows to four bytes.
const WIDTH: u32 = GAP + COLUMNS * (TILE + GAP);
const _: () = assert!(WIDTH.is_multiple_of(4));
const HEIGHT: u32 = ROWS * (LABEL_HEIGHT + TILE) + GAP;

/// Dark grey, which contrasts with all colours.
const BACKGROUND: image::Rgb<u8> = image::Rgb([40, 40, 40]);

/// Sets the result of a track on an overlay.
pub fn set_result(overlay: &gst::Element, track: i32, result: &RecognitionResult) {
    let (decision, name, confidence) = match result {
        RecognitionResult::NoFace => ("none", "", 0.0),
        RecognitionResult::Unknown => ("unknown", "", 0.0),
        RecognitionResult::Known { label, confidence } => ("known", label.as_str(), *confidence),
    };
    // Returns false only for other decisions.
    overlay.emit_by_name::<bool>("set-result", &[&track, &decision, &name, &confidence]);
}

/// A window with the latest crops.
pub struct Panel {
    window: Window,
    /// Tiles with their tracks, oldest first.
    tiles: Vec<(Option<i32>, RgbImage)>,
}

impl Panel {
    /// Creates a window that opens with the first crop. `unanswered` is the style of crops without a result.
    ///
    /// # Errors
    /// An element is missing.
    pub fn open(unanswered: &str) -> Result<Self> {
        let window = Window::open(&format!(
            "facepipe-faceoverlay name=overlay qos=false font-size=24 unanswered={unanswered}"
        ))?;
        Ok(Self { window, tiles: Vec::new() })
    }

    /// Processes the window's events, such as closing.
    pub fn poll(&self) {
        self.window.is_closed();
    }

    /// Adds a crop, replacing the oldest. Undecodable crops are ignored.
    ///
    /// # Errors
    /// The image cannot be passed to GStreamer.
    pub fn add(&mut self, track: Option<i32>, picture: &[u8]) -> Result<()> {
        let Ok(picture) = image::load_from_memory(picture) else { return Ok(()) };
        let tile = picture.resize(TILE, TILE, FilterType::Triangle).to_rgb8();
        self.tiles.push((track, tile));
        if self.tiles.len() > usize::try_from(COLUMNS * ROWS)? {
            self.tiles.remove(0);
        }
        self.draw()
    }

    /// Sets the result of a track.
    ///
    /// # Errors
    /// The image cannot be passed to GStreamer.
    pub fn set_result(&self, track: i32, result: &RecognitionResult) -> Result<()> {
        if let Some(overlay) = self.window.element("overlay") {
            set_result(&overlay, track, result);
        }
        self.draw()
    }

    fn draw(&self) -> Result<()> {
        let mut canvas = RgbImage::from_pixel(WIDTH, HEIGHT, BACKGROUND);
        let mut faces = Vec::new();
        for (place, (track, tile)) in (0..).zip(&self.tiles) {
            let (left, top) = position(place);
            let (left, top) = (left + (TILE - tile.width()) / 2, top + (TILE - tile.height()) / 2);
            imageops::replace(&mut canvas, tile, left.into(), top.into());
            faces.push(FaceRegion {
                bounding_box: BoundingBox::from_size(left, top, tile.width(), tile.height()),
                confidence: 0.0,
                track_id: *track,
                predicted: false,
            });
        }
        let info = VideoInfo::builder(VideoFormat::Rgb, WIDTH, HEIGHT).build()?;
        let mut buffer = gst::Buffer::from_mut_slice(canvas.into_raw());
        let writable = buffer.get_mut().context("a new buffer is shared")?;
        writable.set_pts(gst::ClockTime::ZERO);
        for face in &faces {
            roi::attach_face(writable, face);
        }
        let sample = gst::Sample::builder().buffer(&buffer).caps(&info.to_caps()?).build();
        self.window.show_in_turn(&sample);
        Ok(())
    }
}

/// Returns the top left corner of a tile.
fn position(place: u32) -> (u32, u32) {
    let (row, column) = (place / COLUMNS, place % COLUMNS);
    (GAP + column * (TILE + GAP), LABEL_HEIGHT + row * (LABEL_HEIGHT + TILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_do_not_overlap_and_leave_room_for_labels() {
        let tiles: Vec<(u32, u32)> = (0..COLUMNS * ROWS).map(position).collect();
        for (index, &(left, top)) in tiles.iter().enumerate() {
            assert!(left + TILE < WIDTH && top + TILE < HEIGHT && top >= LABEL_HEIGHT, "{left}, {top}");
            for &(other_left, other_top) in &tiles[..index] {
                let apart =
                    left.abs_diff(other_left) >= TILE + GAP || top.abs_diff(other_top) >= TILE + LABEL_HEIGHT;
                assert!(apart, "{left}, {top} and {other_left}, {other_top}");
            }
        }
    }
}
