//! Plays animated pictures (GIF, WebP, PNG) as video. GStreamer's GIF demuxer loops forever or hangs without a frame, so the
//! `image` crate decodes them.

use std::{fs::File, io::BufReader, path::Path, thread, time::Duration};

use gst_app::{AppSrc, AppSrcCallbacks};
use gst_video::{VideoFormat, VideoInfo};
use image::{
    AnimationDecoder, Frames, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits,
    codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder},
};

/// Frame duration if the file has none, as in browsers.
const DEFAULT_DELAY: Duration = Duration::from_millis(100);

/// Returns whether the file is a picture with more than one frame.
pub fn is_animation(path: &Path) -> bool {
    // Reading a pipe would consume its data.
    path.is_file()
        && frames(path).is_ok_and(|frames| frames.is_some_and(|mut frames| frames.nth(1).is_some()))
}

/// Returns the frames of an animation; none for other files.
fn frames(path: &Path) -> ImageResult<Option<Frames<'static>>> {
    let reader = ImageReader::new(BufReader::new(File::open(path)?)).with_guessed_format()?;
    let format = reader.format();
    let file = reader.into_inner();
    Ok(match format {
        Some(ImageFormat::Gif) => {
            let mut decoder = GifDecoder::new(file)?;
            decoder.set_limits(Limits::default())?;
            Some(decoder.into_frames())
        }
        Some(ImageFormat::WebP) => {
            let mut decoder = WebPDecoder::new(file)?;
            decoder.set_limits(Limits::default())?;
            decoder.has_animation().then(|| decoder.into_frames())
        }
        Some(ImageFormat::Png) => {
            let decoder = PngDecoder::with_limits(file, Limits::default())?;
            if decoder.is_apng()? { Some(decoder.apng()?.into_frames()) } else { None }
        }
        _ => None,
    })
}

/// Makes `source` push the frames of the animation once.
pub fn play(source: &AppSrc, path: &Path) {
    source.set_format(gst::Format::Time);
    source.set_block(true);
    let mut path = Some(path.to_owned());
    let begin = move |source: &AppSrc, _| {
        if let Some(path) = path.take() {
            let source = source.clone();
            // Ends with the pipeline, which then refuses frames.
            thread::spawn(move || push_frames(&source, &path));
        }
    };
    source.set_callbacks(AppSrcCallbacks::builder().need_data(begin).build());
}

fn push_frames(source: &AppSrc, path: &Path) {
    let failed = |error: &dyn std::fmt::Display| {
        gst::element_error!(source, gst::StreamError::Decode, ("the animation cannot be decoded: {error}"));
    };
    let frames = match frames(path) {
        Ok(Some(frames)) => frames,
        Ok(None) => return failed(&"it has no frames"),
        Err(error) => return failed(&error),
    };
    let mut time = Duration::ZERO;
    for frame in frames {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return failed(&error),
        };
        let delay =
            Some(Duration::from(frame.delay())).filter(|delay| !delay.is_zero()).unwrap_or(DEFAULT_DELAY);
        let picture = frame.into_buffer();
        if source.caps().is_none() {
            let info = VideoInfo::builder(VideoFormat::Rgba, picture.width(), picture.height()).build();
            match info.and_then(|info| info.to_caps()) {
                Ok(caps) => source.set_caps(Some(&caps)),
                Err(error) => return failed(&error),
            }
        }
        let mut buffer = gst::Buffer::from_mut_slice(picture.into_raw());
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(gst::ClockTime::try_from(time).ok());
            buffer.set_duration(gst::ClockTime::try_from(delay).ok());
        }
        time += delay;
        if source.push_buffer(buffer).is_err() {
            return;
        }
    }
    // Fails only if the pipeline has stopped.
    let _ = source.end_of_stream();
}

#[cfg(test)]
mod tests {
    use image::{Delay, Frame, RgbaImage, codecs::gif::GifEncoder};

    use super::*;

    #[test]
    fn an_animation_has_more_than_one_frame() {
        let folder = tempfile::tempdir().expect("a folder");
        let gif = |name: &str, frames: u32| {
            let path = folder.path().join(name);
            let mut encoder = GifEncoder::new(File::create(&path).expect("a file"));
            let delay = Delay::from_saturating_duration(Duration::from_millis(200));
            encoder
                .encode_frames((0..frames).map(|_| Frame::from_parts(RgbaImage::new(8, 8), 0, 0, delay)))
                .expect("written");
            path
        };
        assert!(is_animation(&gif("moving.gif", 3)));
        assert!(!is_animation(&gif("still.gif", 1)));
        let text = folder.path().join("text.gif");
        std::fs::write(&text, "no picture").expect("a file");
        assert!(!is_animation(&text) && !is_animation(&folder.path().join("nothing.gif")));
    }
}
