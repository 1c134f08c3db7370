//! The pipelines of the README, as they are written there, by `gst-launch-1.0`, against the real backend.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types};
use facepipe_test_support::{models_dir, require, workspace_root};
use facepipe_tests::{Backend, build_dir};

/// The `gst-launch-1.0` commands of the README's shell blocks, continued lines joined.
fn readme_pipelines() -> Vec<String> {
    let readme = fs::read_to_string(workspace_root().join("README.md")).unwrap().replace("\\\n", " ");
    let pipelines: Vec<String> =
        readme.lines().filter(|line| line.starts_with("gst-launch-1.0")).map(str::to_owned).collect();
    assert_eq!(pipelines.len(), 3, "the README shows three pipelines");
    pipelines
}

/// Runs a command line in `folder`, where the plugin alone is on the path, and returns what it printed.
fn shell(folder: &Path, command: &str) -> String {
    let plugins = folder.join("plugins");
    fs::create_dir_all(&plugins).unwrap();
    fs::copy(build_dir().join("libgstfacepipe.so"), plugins.join("libgstfacepipe.so")).unwrap();
    let runtime = facepipe_detector::runtime::load(&[workspace_root()]).unwrap();
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(folder)
        .env("GST_PLUGIN_PATH", &plugins)
        .env("GST_REGISTRY", folder.join("registry.bin"))
        .env("FACEPIPE_MODELS", models_dir())
        .env("ORT_DYLIB_PATH", runtime.path())
        .output()
        .unwrap();
    let printed =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}\n{printed}");
    assert!(!printed.contains("WARNING"), "{command}\n{printed}");
    printed
}

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = sql_types::BigInt)]
    detections: i64,
    #[diesel(sql_type = sql_types::BigInt)]
    keys: i64,
}

/// Detections of the camera and place that the README names, and how many different crops they came from.
fn stored(backend: &Backend) -> Stored {
    let path = backend.data_dir().join("facepipe.db");
    let mut database = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    sql_query(
        "SELECT count(*) AS detections, count(DISTINCT upload_key) AS keys FROM detections
         WHERE camera_id = 'gate-1' AND location = 'Lobby'",
    )
    .get_result(&mut database)
    .unwrap()
}

#[test]
fn the_pipelines_of_the_readme_run_as_written() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require!("models/mobilefacenet.onnx");
    let video = format!("filesrc location={}", video.display());
    let backend = Backend::start(weights.parent().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut crops_on_disk = 0;
    let mut already = 0;
    for pipeline in readme_pipelines() {
        let command = ["filesrc location=street.mp4", "rtspsrc location=rtsp://camera/stream", "v4l2src"]
            .iter()
            .fold(pipeline.clone(), |command, source| command.replace(source, &video))
            .replace("http://127.0.0.1:8080", backend.url());
        assert!(command.contains(&video), "{pipeline} begins with a source that this test does not know");
        shell(folder.path(), &command);
        if pipeline.contains("multifilesink") {
            let is_crop = |name: &str| name.starts_with("face-") && name.ends_with(".jpg");
            crops_on_disk = fs::read_dir(folder.path())
                .unwrap()
                .filter(|entry| is_crop(&entry.as_ref().unwrap().file_name().to_string_lossy()))
                .count();
            assert!(crops_on_disk > 100, "{crops_on_disk} faces of a busy street");
        } else {
            let now = stored(&backend);
            let new = usize::try_from(now.keys - already).unwrap();
            // Crops that the backend's own detector takes for no face are not stored.
            assert!(
                new * 10 >= crops_on_disk * 6,
                "{pipeline}: {new} of {crops_on_disk} crops hold stored faces"
            );
            assert!(new <= crops_on_disk, "{pipeline}: {new} crops stored, {crops_on_disk} cut");
            assert!(now.detections >= now.keys);
            already = now.keys;
        }
    }
}
