//! The second window: the latest crops, each with the colour and the name that its face has in the video.

use anyhow::{Context, Result};
use gst::prelude::*;
use gst_video::{VideoFormat, VideoInfo};
use gstfacepipe::{
    results::Verdict,
    roi::{self, FaceRegion},
};
use image::{RgbImage, imageops, imageops::FilterType};

use super::window::Window;

const COLUMNS: u32 = 2;
const ROWS: u32 = 3;

/// Side of a crop in the window, pixels.
const TILE: u32 = 192;

/// Between crops, pixels; above each there is room for its name.
const GAP: u32 = 12;
const LABEL_HEIGHT: u32 = 36;

/// A multiple of four: to that GStreamer pads rows of RGB pixels.
const WIDTH: u32 = GAP + COLUMNS * (TILE + GAP);
const _: () = assert!(WIDTH.is_multiple_of(4));
const HEIGHT: u32 = ROWS * (LABEL_HEIGHT + TILE) + GAP;

/// Dark grey, on which all colours show.
const BACKGROUND: image::Rgb<u8> = image::Rgb([40, 40, 40]);

/// Tells an overlay what is known of a track.
pub fn set_result(overlay: &gst::Element, track: i32, result: &Verdict) {
    let (decision, name, confidence) = match result {
        Verdict::NoFace => ("none", "", 0.0),
        Verdict::Unknown => ("unknown", "", 0.0),
        Verdict::Known { label, confidence } => ("known", label.as_str(), *confidence),
    };
    // It returns false for other words only.
    overlay.emit_by_name::<bool>("set-result", &[&track, &decision, &name, &confidence]);
}

/// The window.
pub struct Panel {
    window: Window,
    /// The oldest first, with their tracks.
    tiles: Vec<(Option<i32>, RgbImage)>,
}

impl Panel {
    /// A window that opens with the first crop; `unanswered`: how `faceoverlay` is to draw crops of which nothing is known.
    ///
    /// # Errors
    /// An element is missing.
    pub fn open(unanswered: &str) -> Result<Self> {
        let window = Window::open(&format!(
            "facepipe-faceoverlay name=overlay qos=false font-size=24 unanswered={unanswered}"
        ))?;
        Ok(Self { window, tiles: Vec::new() })
    }

    /// Notices that it was closed; then it shows nothing more.
    pub fn poll(&self) {
        self.window.is_closed();
    }

    /// Adds a crop; the oldest gives way. A picture that cannot be decoded is left out.
    ///
    /// # Errors
    /// The picture cannot be handed over.
    pub fn add(&mut self, track: Option<i32>, picture: &[u8]) -> Result<()> {
        let Ok(picture) = image::load_from_memory(picture) else { return Ok(()) };
        let tile = picture.resize(TILE, TILE, FilterType::Triangle).to_rgb8();
        self.tiles.push((track, tile));
        if self.tiles.len() > usize::try_from(COLUMNS * ROWS)? {
            self.tiles.remove(0);
        }
        self.draw()
    }

    /// Says what is known of a track.
    ///
    /// # Errors
    /// The picture cannot be handed over.
    pub fn set_result(&self, track: i32, result: &Verdict) -> Result<()> {
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
                left,
                top,
                width: tile.width(),
                height: tile.height(),
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

/// Left upper corner of a tile.
fn position(place: u32) -> (u32, u32) {
    let (row, column) = (place / COLUMNS, place % COLUMNS);
    (GAP + column * (TILE + GAP), LABEL_HEIGHT + row * (LABEL_HEIGHT + TILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_lie_apart_inside_the_window_with_room_for_names() {
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
