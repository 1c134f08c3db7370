//! Where video comes from: a file, a camera of this machine, or an address.

use std::{fmt, fs, path::PathBuf};

use gst::prelude::*;

use crate::exit::Failure;

/// A place from which video is played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A recording.
    File(PathBuf),
    /// A camera of this machine, `/dev/video0`.
    Device(PathBuf),
    /// `rtsp://…`, `http://…` and whatever else GStreamer plays.
    Address(String),
}

impl Source {
    /// Reads what a user names.
    ///
    /// # Errors
    /// There is no such file or camera.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if text.contains("://") {
            return Ok(Self::Address(text.to_owned()));
        }
        let path = PathBuf::from(text);
        if path.starts_with("/dev") {
            return if path.exists() {
                Ok(Self::Device(path))
            } else {
                Err(Failure::input(text, format_args!("no such camera ({})", cameras())))
            };
        }
        match fs::metadata(&path) {
            Ok(found) if found.is_file() => Ok(Self::File(path)),
            Ok(_) => Err(Failure::input(text, "is not a file")),
            Err(error) => Err(Failure::input(text, error)),
        }
    }

    /// Whether it goes on by itself: then frames for which there is no time are lost, not waited for.
    pub fn is_live(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Device(_) => true,
            Self::Address(address) => !address.starts_with("http") && !address.starts_with("file:"),
        }
    }

    /// The beginning of a pipeline's description: raw video comes out.
    pub fn description(&self) -> &'static str {
        match self {
            Self::File(_) => "filesrc name=source ! decodebin",
            Self::Device(_) => "v4l2src name=source ! decodebin",
            Self::Address(_) => "uridecodebin name=source",
        }
    }

    /// Tells the element `source` of such a pipeline what to play.
    pub fn configure(&self, source: &gst::Element) {
        match self {
            Self::File(path) => source.set_property("location", path),
            Self::Device(path) => source.set_property("device", path.to_string_lossy().as_ref()),
            Self::Address(address) => source.set_property("uri", address),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Device(path) => path.display().fmt(f),
            Self::Address(address) => without_password(address).fmt(f),
        }
    }
}

/// An address as it may be shown: cameras have their passwords in it.
fn without_password(address: &str) -> String {
    let Ok(mut url) = url::Url::parse(address) else { return address.to_owned() };
    if url.password().is_some() {
        let _ = url.set_password(Some("…"));
    }
    url.into()
}

/// Which cameras there are, in words.
fn cameras() -> String {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("video")))
        .map(|path| path.display().to_string())
        .collect();
    found.sort();
    if found.is_empty() { "this machine has none".into() } else { format!("there are: {}", found.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_told_apart_and_what_is_missing_is_said() {
        assert!(matches!(Source::parse("rtsp://camera/1"), Ok(Source::Address(_))));
        let missing = Source::parse("/dev/video999").expect_err("missing").to_string();
        assert!(missing.contains("no such camera"), "{missing}");
        let missing = Source::parse("nowhere.mp4").expect_err("missing").to_string();
        assert!(missing.starts_with("nowhere.mp4: "), "{missing}");
        assert!(Source::parse("/").expect_err("a folder").to_string().contains("not a file"));
    }

    #[test]
    fn a_cameras_password_is_not_shown() {
        let shown = Source::Address("rtsp://admin:secret@camera/1".into()).to_string();
        assert!(shown.contains("camera") && !shown.contains("secret"), "{shown}");
    }
}
