//! Video sources: files, local cameras and streams.

use std::{
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use gst::prelude::*;
use gst_app::AppSrc;
use url::Url;

use super::animation;
use crate::{
    exit::Failure,
    pictures::{self, Kind, Remedy},
};

/// Time without data after which a live source counts as failed, milliseconds.
const STALL_TIMEOUT: u32 = 10_000;

/// Jitter buffer of network cameras, milliseconds.
const JITTER_BUFFER: u32 = 200;

/// A source of video.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    /// A V4L2 device.
    Camera(PathBuf),
    /// A network camera (`rtsp://`), or a recording or stream over HTTP.
    Stream(Url),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty; expected a file, /dev/videoN or an address".into());
        }
        if !text.contains("://") {
            return Ok(Self::from_path(text.into()));
        }
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        match url.scheme() {
            "file" => match url.to_file_path() {
                Ok(path) => Ok(Self::from_path(path)),
                Err(()) => {
                    Err("file:// must name a file of this machine, as file:///home/ada/entrance.mp4".into())
                }
            },
            "rtsp" | "rtsps" | "http" | "https" if url.has_host() => Ok(Self::Stream(url)),
            scheme => Err(format!(
                "{scheme}:// is not known; expected a file, /dev/videoN, rtsp://HOST/…, http://HOST/… or https://HOST/…"
            )),
        }
    }
}

/// Masks user and password of an address.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Camera(path) => path.display().fmt(f),
            Self::Stream(url) => {
                let mut url = url.clone();
                if !url.username().is_empty() || url.password().is_some() {
                    // Cannot fail: these URLs have a host.
                    let _ = url.set_username("***");
                    let _ = url.set_password(None);
                }
                f.write_str(url.as_str())
            }
        }
    }
}

impl Source {
    fn from_path(path: PathBuf) -> Self {
        if path.starts_with("/dev") { Self::Camera(path) } else { Self::File(path) }
    }

    /// Returns whether it is live: frames that are not consumed in time are lost.
    pub fn is_live(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Camera(_) => true,
            Self::Stream(url) => matches!(url.scheme(), "rtsp" | "rtsps"),
        }
    }

    /// Checks that a file or a camera exists before anything is started. Streams are checked only when played.
    ///
    /// # Errors
    /// It is missing, empty, or cannot be read; the message has advice.
    pub fn check(&self) -> Result<(), Failure> {
        let (path, is_camera) = match self {
            Self::File(path) => (path, false),
            Self::Camera(path) => (path, true),
            Self::Stream(_) => return Ok(()),
        };
        let why = match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && is_camera => {
                format!("no such camera; {}", describe_cameras(&cameras(Path::new("/dev"))))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => "no such file".into(),
            Err(error) => error.to_string(),
            Ok(metadata) if metadata.is_dir() => "is a folder; expected a video".into(),
            Ok(metadata) if metadata.is_file() && metadata.len() == 0 => "is empty".into(),
            // A pipe can only be read once.
            Ok(metadata) if !is_camera && !metadata.is_file() => return Ok(()),
            Ok(metadata) if is_camera && metadata.is_file() => "is a file, and no camera".into(),
            Ok(_) => match fs::File::open(path) {
                Ok(_) if is_camera => return Ok(()),
                Ok(_) => match still_picture(path) {
                    Some(what) => what,
                    None => return Ok(()),
                },
                Err(error) if error.kind() == ErrorKind::PermissionDenied && is_camera => {
                    "this user may not open it; add them to the group `video` and log in again".into()
                }
                Err(error) => format!("cannot be read: {error}"),
            },
        };
        Err(Failure::input(self, why))
    }

    /// Returns the first part of a `gst-launch-1.0` description; [`configure`](Self::configure) sets the rest.
    pub fn description(&self) -> String {
        // Detects a stalled live source.
        let watchdog = if gst::ElementFactory::find("watchdog").is_some() {
            format!("! watchdog name=source-stall timeout={STALL_TIMEOUT} ")
        } else {
            String::new()
        };
        match self {
            Self::File(path) if animation::is_animation(path) => "appsrc name=source".into(),
            Self::File(_) => "filesrc name=source ! decodebin name=source-decoder".into(),
            Self::Camera(_) => format!("v4l2src name=source {watchdog}! decodebin name=source-decoder"),
            // Without audio.
            Self::Stream(_) if self.is_live() => format!(
                "rtspsrc name=source ! application/x-rtp,media=video {watchdog}! decodebin name=source-decoder"
            ),
            // Motion JPEG has no timestamps: use the arrival time.
            Self::Stream(url) if sends_motion_jpeg(url) => format!(
                "souphttpsrc name=source is-live=true do-timestamp=true {watchdog}! decodebin name=source-decoder"
            ),
            Self::Stream(_) => "uridecodebin name=source".into(),
        }
    }

    /// Returns the elements that convert decoded frames to a supported format and rotate them upright according to tags, which
    /// cameras do not have.
    pub fn upright(&self) -> &'static str {
        match self.is_live() {
            true => "videoconvert name=source-converter",
            false => {
                "videoconvert name=source-converter ! videoflip name=source-upright video-direction=auto"
            }
        }
    }

    /// Sets the properties of the element `source` that a description could only hold quoted, such as paths and addresses.
    pub fn configure(&self, source: &gst::Element) {
        match self {
            Self::File(path) => match source.downcast_ref::<AppSrc>() {
                Some(source) => animation::play(source, path),
                None => source.set_property("location", path),
            },
            Self::Camera(path) => source.set_property("device", path.display().to_string()),
            Self::Stream(url) if self.is_live() => {
                source.set_property("location", url.as_str());
                source.set_property("latency", JITTER_BUFFER);
                // TCP loses nothing and passes firewalls.
                source.set_property_from_str("protocols", "tcp");
                source.set_property("tcp-timeout", u64::from(STALL_TIMEOUT) * 1000);
                source.set_property("timeout", 0_u64);
                // Use the camera's clock as capture time (GStreamer 1.22 or later).
                if source.find_property("add-reference-timestamp-meta").is_some() {
                    source.set_property("add-reference-timestamp-meta", true);
                }
            }
            Self::Stream(url) => {
                let name = if source.find_property("uri").is_some() { "uri" } else { "location" };
                source.set_property(name, url.as_str());
            }
        }
    }

    /// Converts an error of an element of this source.
    pub fn failure(&self, error: &gst::glib::Error, details: &str) -> Failure {
        // Only video is linked to the detector.
        let why = if error.matches(gst::StreamError::Failed) && details.contains("not-linked") {
            "has no video in it that GStreamer can read".into()
        } else if details.contains("reason not-negotiated") {
            "its frames cannot be searched for faces: they are not raw video in system memory that GStreamer's \
             videoconvert supports"
                .into()
        } else if error.matches(gst::ResourceError::Busy) {
            "is in use by another program".into()
        } else if error.matches(gst::ResourceError::NotAuthorized) {
            "asks for a user and a password: rtsp://USER:PASSWORD@HOST/…".into()
        } else if error.matches(gst::StreamError::TypeNotFound) || error.matches(gst::StreamError::WrongType)
        {
            "is no video that GStreamer can read".into()
        } else if error.matches(gst::StreamError::CodecNotFound)
            || error.matches(gst::CoreError::MissingPlugin)
        {
            format!(
                "GStreamer has no decoder for it ({}); `facepipe doctor` says what to install",
                error.message()
            )
        } else {
            self.masked(error.message())
        };
        Failure::input(self, why)
    }

    /// Creates the error for a recording without a frame within `limit`.
    pub fn no_frame_failure(&self, limit: Duration) -> Failure {
        let why = format!(
            "no frame of it came within {} s: is it a video, and whole? (--first-frame SECONDS waits longer)",
            limit.as_secs_f64()
        );
        Failure::input(self, why)
    }

    /// Masks the password in a message of GStreamer.
    fn masked(&self, text: &str) -> String {
        match self {
            Self::Stream(url) => text.replace(url.as_str(), &self.to_string()),
            _ => text.into(),
        }
    }
}

/// Returns whether the address serves motion JPEG; false if it cannot be reached.
fn sends_motion_jpeg(url: &Url) -> bool {
    let client =
        reqwest::blocking::Client::builder().timeout(Duration::from_millis(STALL_TIMEOUT.into())).build();
    let answer = client.and_then(|client| client.get(url.clone()).send());
    answer.is_ok_and(|answer| {
        let kind = answer.headers().get(reqwest::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/"))
    })
}

/// Returns why a still picture cannot be played, with advice; none for other files.
fn still_picture(path: &Path) -> Option<String> {
    let what = match pictures::kind_of(path).ok()? {
        Kind::Picture if animation::is_animation(path) => return None,
        // Raw motion JPEG starts like a JPEG file.
        Kind::Picture if is_named_for_motion_jpeg(path) => return None,
        Kind::Picture => "a picture",
        Kind::Heic => "HEIC",
        Kind::Other { what, remedy: Some(Remedy::Convert) } => what,
        Kind::Other { .. } => return None,
    };
    Some(format!(
        "is {what}, and no video; `facepipe recognize folder DIR` says who is on the pictures of a folder, `facepipe \
         enroll folder DIR` enrols them"
    ))
}

fn is_named_for_motion_jpeg(path: &Path) -> bool {
    path.extension()
        .is_some_and(|name| name.eq_ignore_ascii_case("mjpeg") || name.eq_ignore_ascii_case("mjpg"))
}

/// Returns the V4L2 devices, ordered by number.
fn cameras(devices: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(devices)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("video")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn describe_cameras(cameras: &[PathBuf]) -> String {
    if cameras.is_empty() {
        return "this machine has none (/dev/video*): plug one in, or name a file or rtsp:// address".into();
    }
    let names: Vec<String> = cameras.iter().map(|path| path.display().to_string()).collect();
    format!("there are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().expect("a source")
    }

    #[test]
    fn files_cameras_and_addresses_are_distinguished() {
        assert_eq!(source("a b.mp4"), Source::File("a b.mp4".into()));
        assert_eq!(source("file:///x/a%20b.mp4"), Source::File("/x/a b.mp4".into()));
        assert_eq!(source("/dev/video2"), Source::Camera("/dev/video2".into()));
        assert!(source("/dev/video2").is_live() && source("rtsp://gate/1").is_live());
        assert!(!source("https://example.org/a.mp4").is_live() && !source("a.mp4").is_live());
        for (wrong, named) in
            [("", "empty"), ("ftp://x/y", "ftp://"), ("file://host/x", "file://"), ("rtsp://", "")]
        {
            let error = wrong.parse::<Source>().expect_err("refused");
            assert!(error.contains(named), "{wrong}: {error}");
        }
    }

    #[test]
    fn passwords_are_masked() {
        let camera = source("rtsp://viewer:s3cret@gate.example/1");
        assert_eq!(camera.to_string(), "rtsp://***@gate.example/1");
        let error = gst::glib::Error::new(
            gst::ResourceError::OpenRead,
            "Could not open rtsp://viewer:s3cret@gate.example/1.",
        );
        let failure = camera.failure(&error, "").to_string();
        assert!(failure.contains("***") && !failure.contains("s3cret"), "{failure}");
    }

    #[test]
    fn unsupported_formats_are_reported() {
        let error = gst::glib::Error::new(gst::StreamError::Failed, "Internal data stream error.");
        let details =
            "gstbasesrc.c(3132): gst_base_src_loop (): streaming stopped, reason not-negotiated (-4)";
        let failure = source("/dev/video2").failure(&error, details).to_string();
        assert!(failure.contains("/dev/video2") && failure.contains("videoconvert"), "{failure}");
        assert!(!failure.contains("Internal data stream error"), "{failure}");
    }

    #[test]
    fn missing_sources_are_reported_with_alternatives() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["video10", "video2", "video", "videox", "media0"] {
            fs::write(folder.path().join(name), b"x").expect("a file");
        }
        let found = cameras(folder.path());
        assert_eq!(found, ["video2", "video10"].map(|name| folder.path().join(name)));
        assert!(describe_cameras(&found).contains("video2, "), "{}", describe_cameras(&found));
        assert!(describe_cameras(&[]).contains("has none"));
        let text = |path: PathBuf| Source::File(path).check().expect_err("refused").to_string();
        assert!(text(folder.path().join("nothing.mp4")).contains("no such file"));
        assert!(text(folder.path().into()).contains("is a folder"));
        fs::write(folder.path().join("empty.mp4"), b"").expect("a file");
        assert!(text(folder.path().join("empty.mp4")).contains("is empty"));
        fs::write(folder.path().join("picture.mp4"), b"\xff\xd8\xff\xe0").expect("a file");
        assert!(text(folder.path().join("picture.mp4")).contains("recognize folder"));
        fs::write(folder.path().join("recording.mjpeg"), b"\xff\xd8\xff\xe0").expect("a file");
        assert!(Source::File(folder.path().join("recording.mjpeg")).check().is_ok());
        let camera = Source::Camera("/dev/video-of-nobody".into()).check().expect_err("refused");
        assert!(camera.to_string().contains("no such camera"), "{camera}");
    }
}
