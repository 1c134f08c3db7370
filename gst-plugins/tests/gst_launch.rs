//! The installed plugin: `libgstfacepipe.so` in a folder on `GST_PLUGIN_PATH`, run by GStreamer's own tools.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod common;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    decode,
    server::{Answer, Server},
};
use facepipe_test_support::{models_dir, require, require_onnx_runtime, skip};
use image::RgbImage;
use tempfile::TempDir;

/// A folder with only the plugin, and an environment in which it is the only addition.
struct Installed {
    folder: TempDir,
}

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(plugin(), folder.path().join("libgstfacepipe.so")).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns a tool with the plugin, a registry of its own and no colours.
    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command
            .current_dir(self.path())
            .env("GST_PLUGIN_PATH", self.path())
            .env("GST_REGISTRY", self.path().join("registry.bin"))
            .env("GST_DEBUG_NO_COLOR", "1")
            .env("FACEPIPE_MODELS", models_dir())
            .env_remove("GST_DEBUG");
        command
    }

    /// Runs a pipeline; returns whether it succeeded, and its output.
    fn launch(&self, variables: &[(&str, &Path)], pipeline: &str) -> (bool, String) {
        let mut command = self.tool("gst-launch-1.0");
        command.envs(variables.iter().copied()).args(["-m", "-e"]);
        run(command.args(pipeline.split_whitespace()))
    }
}

fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// Returns the library that cargo built next to this test.
fn plugin() -> PathBuf {
    let test = env::current_exe().unwrap();
    let plugin = test.parent().unwrap().join("libgstfacepipe.so");
    assert!(plugin.is_file(), "cargo builds {} before the tests of its crate", plugin.display());
    plugin
}

/// Returns the section of one property in the output of `gst-inspect-1.0`.
fn property(page: &str, name: &str) -> String {
    let is_heading = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    // A long name is followed by its colon at once.
    let is_of_name = |line: &&str| {
        line.strip_prefix("  ")
            .and_then(|line| line.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with([' ', ':']))
    };
    let mut lines = page.lines().skip_while(|line| !is_of_name(line));
    let heading = lines.next().unwrap_or_else(|| panic!("no property {name} in {page}"));
    let rest: Vec<&str> = lines.take_while(|line| !is_heading(line)).collect();
    format!("{heading}\n{}", rest.join("\n"))
}

/// Name, long name, and properties each with a part of its description.
type Page = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

#[test]
fn gst_inspect_describes_every_element_under_each_of_its_names() {
    let installed = Installed::new();
    let elements: [Page; 5] = [
        (
            "faceoverlay",
            "Face overlay",
            &[
                ("camera-id", "Default: null"),
                ("labels", "Default: true"),
                ("line-width", "Default: 0"),
                ("font-size", "Default: 0"),
            ],
        ),
        (
            "facedetect",
            "Face detector",
            &[
                ("model", "Default: \"auto\""),
                ("score-threshold", "Default:             0.6"),
                ("nms-threshold", "Default:             0.3"),
                ("interval", "Default: 1"),
                ("threads", "Default: 1"),
                ("execution-provider", "openvino"),
                ("max-faces", "Default: 0"),
                ("low-score-threshold", "Default:             0.3"),
                ("motion-threshold", "Default:               0"),
                ("max-gap", "Default: 60"),
                ("qos", "Default: true"),
                ("stats", "GstStructure"),
            ],
        ),
        (
            "facetrack",
            "Face tracker",
            &[
                ("max-age", "Default: 2000"),
                ("min-hits", "Default: 1"),
                ("iou-threshold", "Default:             0.2"),
            ],
        ),
        (
            "facecrop",
            "Face cropper",
            &[
                ("margin", "Default:            0.25"),
                ("min-size", "Default: 30"),
                ("max-size", "Default: 150"),
                ("quality", "Default: 90"),
            ],
        ),
        (
            "facesink-http",
            "Face uploader",
            &[
                ("backend-url", "Default: \"http://127.0.0.1:8080\""),
                ("camera-id", "String"),
                ("camera-location", "String"),
                ("endpoint", "Default: 0, \"store-results\""),
                ("timeout", "seconds"),
                ("max-queue", "Default: 512"),
                ("drop-policy", "Default: 0, \"oldest\""),
                ("batch-size", "Default: 8"),
                ("batch-delay", "milliseconds"),
                ("workers", "Default: 2"),
                ("retries", "Default: -1"),
                ("token", "writable"),
                ("token-file", "String"),
                ("ca-file", "PEM"),
                ("pinned-sha256", "base64"),
                ("client-cert", "PEM"),
                ("client-key", "private key"),
                ("allow-insecure-token", "Default: false"),
                ("max-clock-offset", "Default: 60"),
                ("spool-dir", "0700"),
                ("spool-max-bytes", "Default: 268435456"),
                ("eos-timeout", "seconds"),
                ("stats-interval", "Default: 60"),
                ("capture-start", "RFC 3339"),
                ("stats", "GstStructure"),
                ("margin", "Default:            0.25"),
                ("quality", "Default: 90"),
            ],
        ),
    ];
    for (element, long_name, properties) in elements {
        // GStreamer has a faceoverlay of its own, and either may be registered first.
        let short = (element != "faceoverlay").then(|| element.to_owned());
        for name in short.into_iter().chain([format!("facepipe-{element}")]) {
            let (found, page) = run(installed.tool("gst-inspect-1.0").args(["--no-colors", &name]));
            assert!(found, "{name}: {page}");
            assert!(page.contains(&format!("Long-name                {long_name}")), "{page}");
            assert!(page.contains("License                  MIT/X11"), "{page}");
            assert!(page.contains("GstFacepipe"), "{page}");
            for (property_name, expected) in properties {
                let section = property(&page, property_name);
                assert!(section.contains(expected), "{name} {property_name}: {section}");
                assert!(section.contains("changeable") || *property_name == "stats", "{section}");
            }
        }
    }
}

/// Asserts that these are the faces of the street: many, of plausible sizes.
fn assert_street(pictures: &[Vec<u8>]) {
    assert!(pictures.len() > 300, "{} pictures", pictures.len());
    for picture in pictures {
        let (width, height) = decode(picture).dimensions();
        assert!(width.max(height) <= 150 && width.min(height) >= 30, "{width} x {height}");
    }
}

#[test]
fn a_recording_becomes_one_file_per_face() {
    let runtime = require_onnx_runtime!();
    let _ = require!("models/version-RFB-640.onnx");
    let video = require!("videos/street-1080p.mp4");
    let installed = Installed::new();
    let line = format!(
        "filesrc location={} ! decodebin ! facedetect ! facecrop ! multifilesink location=face-%05d.jpg",
        video.display()
    );
    let (ended, output) = installed.launch(&[("ORT_DYLIB_PATH", &runtime)], &line);
    assert!(ended, "{output}");
    let files = fs::read_dir(installed.path()).unwrap().map(|entry| entry.unwrap().path());
    let pictures: Vec<Vec<u8>> =
        files.filter(|f| f.extension().is_some_and(|e| e == "jpg")).map(|f| fs::read(f).unwrap()).collect();
    assert_street(&pictures);
}

#[test]
fn a_recording_is_uploaded_equally_whether_facecrop_or_the_sink_crops() {
    let runtime = require_onnx_runtime!();
    let _ = require!("models/version-RFB-640.onnx");
    let video = require!("videos/street-1080p.mp4");
    let installed = Installed::new();
    let mut uploads = Vec::new();
    for cropper in ["facecrop !", ""] {
        let server =
            Server::answering([Answer::json(201, r#"{"model_version":null,"stored":0,"faces":[]}"#)]);
        let line = format!(
            "filesrc location={} ! decodebin ! facedetect ! {cropper} facesink-http backend-url={} \
             camera-id=gate-1 camera-location=Lobby sync=false max-queue=100000",
            video.display(),
            server.url()
        );
        let (ended, output) = installed.launch(&[("ORT_DYLIB_PATH", &runtime)], &line);
        assert!(ended, "{output}");
        let received = server.received();
        assert!(received.iter().all(|r| r.field("camera_id") == "gate-1" && r.field("location") == "Lobby"));
        let mut pictures: Vec<Vec<u8>> = received.iter().flat_map(|r| r.images()).collect();
        assert_eq!(output.matches("facepipe-result").count(), pictures.len(), "one message per crop");
        assert_street(&pictures);
        pictures.sort();
        uploads.push(pictures);
    }
    assert!(uploads[0] == uploads[1], "{} and {} pictures", uploads[0].len(), uploads[1].len());
}

/// Returns the faces that the pipeline after `source` writes to files whose names begin with `name`.
fn faces_from(installed: &Installed, runtime: &Path, source: &str, name: &str) -> Vec<RgbImage> {
    let line =
        format!("{source} ! facedetect model=rfb-640 ! facecrop ! multifilesink location={name}-%05d.jpg");
    let (ended, output) = installed.launch(&[("ORT_DYLIB_PATH", runtime)], &line);
    assert!(ended, "{line}: {output}");
    let files = (0..).map(|index| installed.path().join(format!("{name}-{index:05}.jpg")));
    files.map_while(|file| fs::read(file).ok()).map(|picture| decode(&picture)).collect()
}

/// Returns mean and standard deviation of the red, green and blue of all pixels.
fn colours(pictures: &[RgbImage]) -> [(f64, f64); 3] {
    let pixels = pictures.iter().map(|p| f64::from(p.width() * p.height())).sum::<f64>();
    [0, 1, 2].map(|channel| {
        let values = || pictures.iter().flat_map(|p| p.pixels()).map(|pixel| f64::from(pixel.0[channel]));
        let mean = values().sum::<f64>() / pixels;
        let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / pixels;
        (mean, variance.sqrt())
    })
}

/// Asserts that this many frames of the group give the faces of one frame, in its colours.
fn assert_group(found: &[RgbImage], frames: usize, expected: &[RgbImage], what: &str) {
    assert_eq!(found.len(), frames * expected.len(), "{what}");
    let (got, wanted) = (colours(found), colours(expected));
    for ((mean, deviation), (wanted_mean, wanted_deviation)) in got.into_iter().zip(wanted) {
        // GStreamer's converter rounds; a wrong range would change the contrast by a seventh.
        let same = (mean - wanted_mean).abs() < 3.0 && (deviation / wanted_deviation - 1.0).abs() < 0.05;
        assert!(same, "{what}: {got:?}, expected {wanted:?}");
    }
}

#[test]
fn raw_video_of_webcams_needs_no_conversion() {
    let runtime = require_onnx_runtime!();
    let _ = require!("models/version-RFB-640.onnx");
    let group = require!("scenes/multiface.jpg");
    let installed = Installed::new();
    let still = format!("filesrc location={} ! decodebin", group.display());
    let expected = faces_from(&installed, &runtime, &still, "still");
    assert!(expected.len() >= 6, "{} faces", expected.len());
    for (name, caps) in [
        ("limited", "format=YUY2,colorimetry=bt601"),
        ("full", "format=YUY2,colorimetry=1:4:7:1"),
        ("uyvy", "format=UYVY,colorimetry=bt709"),
    ] {
        // Via RGB, since GStreamer's converter from I420 to YUY2 copies the codes whatever their ranges.
        let source =
            format!("{still} ! videoconvert ! video/x-raw,format=RGB ! videoconvert ! video/x-raw,{caps}");
        let found = faces_from(&installed, &runtime, &source, name);
        assert_group(&found, 1, &expected, caps);
    }
}

#[test]
fn facedetect_accepts_decoded_motion_jpeg_of_any_chroma() {
    let runtime = require_onnx_runtime!();
    let _ = require!("models/version-RFB-640.onnx");
    let group = require!("scenes/multiface.jpg");
    let installed = Installed::new();
    let still = format!("filesrc location={} ! decodebin", group.display());
    let expected = faces_from(&installed, &runtime, &still, "still");
    assert!(expected.len() >= 6, "{} faces", expected.len());
    let (libav, _) = run(installed.tool("gst-inspect-1.0").args(["--exists", "avdec_mjpeg"]));
    if !libav {
        skip("without GStreamer's libav plugin, the decoders of 4:2:2 and 4:4:4 are left out");
    }
    for format in ["I420", "Y42B", "Y444"] {
        let (written, output) = installed.launch(
            &[],
            &format!(
                "{still} ! videoconvert ! video/x-raw,format={format},colorimetry=1:4:0:0 ! imagefreeze num-buffers=2 \
                 ! video/x-raw,framerate=5/1 ! jpegenc quality=95 ! avimux ! filesink location={format}.avi"
            ),
        );
        assert!(written, "{format}: {output}");
        let any = format!("filesrc location={format}.avi ! decodebin");
        let found = faces_from(&installed, &runtime, &any, &format!("any-{format}"));
        assert_group(&found, 2, &expected, &any);
        if libav {
            // This decoder keeps the coded chroma format, like hardware decoders.
            let exact = format!(
                "filesrc location={format}.avi ! avidemux ! avdec_mjpeg ! video/x-raw,format={format}"
            );
            let found = faces_from(&installed, &runtime, &exact, &format!("exact-{format}"));
            assert_group(&found, 2, &expected, &exact);
        }
    }
}

#[test]
fn auto_takes_the_larger_model_for_frames_of_1280_pixels_and_more() {
    let runtime = require_onnx_runtime!();
    let _ = require!("models/version-RFB-320.onnx");
    let _ = require!("models/version-RFB-640.onnx");
    let installed = Installed::new();
    for (width, file) in [(1279, "version-RFB-320.onnx"), (1280, "version-RFB-640.onnx")] {
        let line = format!(
            "videotestsrc num-buffers=2 ! video/x-raw,width={width},height=720 ! facedetect ! fakesink"
        );
        let variables = [("ORT_DYLIB_PATH", &*runtime), ("GST_DEBUG", Path::new("facepipe-facedetect:4"))];
        let (ended, output) = installed.launch(&variables, &line);
        assert!(ended && output.contains(file), "{width}: {output}");
    }
}

/// Returns a folder with only the weights of MTCNN.
fn mtcnn_alone() -> Option<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    for file in ["pnet.pt", "rnet.pt", "onet.pt"] {
        let Some(path) = facepipe_test_support::find(&format!("models/{file}")) else {
            skip(&format!("no models/{file}: run `facepipe models fetch`"));
            return None;
        };
        fs::copy(path, folder.path().join(file)).unwrap();
    }
    Some(folder)
}

#[test]
fn without_an_ultra_light_model_auto_uses_mtcnn_and_says_so() {
    let runtime = require_onnx_runtime!();
    let video = require!("videos/street-1080p.mp4");
    let Some(models) = mtcnn_alone() else { return };
    let installed = Installed::new();
    let line = format!(
        "filesrc location={} ! decodebin ! facedetect name=detect interval=8 ! facetrack ! facecrop ! \
         multifilesink location=face-%05d.jpg",
        video.display()
    );
    let variables = [("ORT_DYLIB_PATH", &*runtime), ("FACEPIPE_MODELS", models.path())];
    let (ended, output) = installed.launch(&variables, &line);
    assert!(ended, "{output}");
    assert!(output.contains("model rfb-640 is not installed, so mtcnn is used: "), "{output}");
    assert_eq!(output.matches("so mtcnn is used").count(), 1, "once: {output}");
    let pictures = fs::read_dir(installed.path()).unwrap().map(|entry| entry.unwrap().path());
    let pictures = pictures.filter(|f| f.extension().is_some_and(|e| e == "jpg")).count();
    println!("{pictures} pictures");
    assert!((8..40).contains(&pictures), "{pictures} pictures of about nine people");
}

#[test]
fn damaged_weights_of_mtcnn_are_an_error_with_file_and_remedy() {
    let runtime = require_onnx_runtime!();
    let Some(models) = mtcnn_alone() else { return };
    let installed = Installed::new();
    let file = models.path().join("rnet.pt");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let variables = [("ORT_DYLIB_PATH", &*runtime), ("FACEPIPE_MODELS", models.path())];
    let line = "videotestsrc num-buffers=2 ! facedetect model=mtcnn ! fakesink";
    let (ended, output) = installed.launch(&variables, line);
    assert!(!ended && !output.contains("panicked"), "{output}");
    assert!(
        output.contains(file.to_str().unwrap()) && output.contains("Run `facepipe models verify`"),
        "{output}"
    );
}

#[test]
fn a_missing_runtime_library_is_an_error_with_a_remedy() {
    let _ = require!("models/version-RFB-320.onnx");
    let installed = Installed::new();
    let nowhere = installed.path().join("libonnxruntime.so");
    let (ended, output) = installed
        .launch(&[("ORT_DYLIB_PATH", &nowhere)], "videotestsrc num-buffers=2 ! facedetect ! fakesink");
    assert!(!ended, "{output}");
    assert!(output.contains("ONNX Runtime") && output.contains("ORT_DYLIB_PATH"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
}

#[test]
fn no_output_shows_the_token() {
    let installed = Installed::new();
    fs::write(installed.path().join("token"), "s3cret-of-the-backend\n").unwrap();
    fs::write(installed.path().join("face.jpg"), b"any picture").unwrap();
    let server = Server::answering([Answer::status(401), Answer::status(201)]);
    let line = format!(
        "multifilesrc location=face.jpg num-buffers=2 caps=image/jpeg,framerate=25/1 ! facesink-http \
         backend-url={} token-file=token",
        server.url()
    );
    let (ended, output) = installed.launch(&[("GST_DEBUG", Path::new("*:6"))], &line);
    assert!(ended && output.contains("doesn't take the token"), "{output}");
    let received = server.received();
    assert!(received.iter().all(|r| r.header("authorization") == Some("Bearer s3cret-of-the-backend")));
    assert!(output.len() > 100_000, "{} bytes of GStreamer's log", output.len());
    assert!(!output.contains("s3cret"));
}
