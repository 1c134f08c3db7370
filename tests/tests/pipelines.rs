//! The pipelines of the README, of docs/first-steps.md and of the elements' pages, as they are written there, by `gst-launch-1.0`, against the
//! real backend.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types};
use facepipe_test_support::{models_dir, require, workspace_root};
use facepipe_tests::{Backend, build_dir, program, require_backend_weights};

/// The `gst-launch-1.0` commands of a page's shell blocks, continued lines joined.
fn pipelines_of(page: &str) -> Vec<String> {
    let text = fs::read_to_string(workspace_root().join(page)).unwrap().replace("\\\n", " ");
    text.lines().filter(|line| line.starts_with("gst-launch-1.0")).map(str::to_owned).collect()
}

/// Returns the commands of the first steps, which include the README's.
fn first_pipelines() -> Vec<String> {
    let (readme, pipelines) = (pipelines_of("README.md"), pipelines_of("docs/first-steps.md"));
    assert_eq!((readme.len(), pipelines.len()), (2, 5), "README.md and docs/first-steps.md");
    let other = readme.iter().find(|pipeline| !pipelines.contains(pipeline));
    assert_eq!(other, None, "docs/first-steps.md lacks a pipeline of README.md");
    pipelines
}

/// Runs a command line in `folder`, with only the plugin on the path, and returns its output.
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

/// Counts the detections of the pages' camera and location, and the distinct crops that they came from.
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

/// Returns a file with the first frames of an MP4 file of H.264, so that the test is short.
fn beginning(video: &Path, frames: u32, folder: &Path) -> PathBuf {
    let short = folder.join("beginning.mp4");
    let line = format!(
        "gst-launch-1.0 -q filesrc location={} ! qtdemux ! h264parse ! identity eos-after={frames} ! mp4mux ! \
         filesink location={}",
        video.display(),
        short.display()
    );
    shell(folder, &line);
    short
}

/// The `gst-launch-1.0` commands of the elements' SECTION comments.
fn pipelines_of_the_pages() -> Vec<String> {
    let sources = workspace_root().join("gst-plugins/src");
    let elements = fs::read_dir(sources).unwrap().map(|entry| entry.unwrap().path().join("mod.rs"));
    let pages = elements
        .filter_map(|page| fs::read_to_string(page).ok())
        .filter(|page| page.contains("SECTION:element-"));
    let lines: Vec<String> = pages
        .flat_map(|page| {
            page.lines().map(|line| line.trim_start_matches([' ', '*']).to_owned()).collect::<Vec<_>>()
        })
        .filter(|line| line.starts_with("gst-launch-1.0"))
        .collect();
    assert!(lines.len() >= 12, "{lines:?}");
    lines
}

#[test]
fn the_pipelines_of_the_elements_pages_run_as_written() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let backend = Backend::start(&weights);
    let folder = tempfile::tempdir().unwrap();
    let video = format!("filesrc location={}", beginning(&video, 8, folder.path()).display());
    // Files that an administrator provides.
    let place = folder.path().display();
    fs::write(folder.path().join("token"), "a-token").unwrap();
    fs::copy("/etc/ssl/certs/ca-certificates.crt", folder.path().join("ca.pem")).unwrap();
    for pipeline in pipelines_of_the_pages() {
        let command = pipeline
            .replace("filesrc location=street-1080p.mp4", &video)
            .replace("v4l2src", &video)
            .replace("autovideosink", "fakesink sync=true")
            .replace("http://127.0.0.1:8080", backend.url())
            .replace("https://faces.example", backend.url())
            .replace("/var/spool/facepipe", &format!("{place}/spool"))
            .replace("/etc/facepipe", &place.to_string());
        let elsewhere = format!("facesink-http backend-url={}", backend.url());
        let command = if command.contains("backend-url") {
            command
        } else {
            command.replace("facesink-http", &elsewhere)
        };
        shell(folder.path(), &command);
    }
    assert!(take_pictures(folder.path()) > 8);
    assert!(stored(&backend).detections > 0);
}

#[test]
fn the_pipelines_of_the_first_steps_run_as_written() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let backend = Backend::start(&weights);
    let folder = tempfile::tempdir().unwrap();
    let video = format!("filesrc location={}", beginning(&video, 40, folder.path()).display());
    // Every face of every frame, and the best pictures of each track.
    let (mut every, mut best) = (0, 0);
    let mut already = 0;
    for pipeline in first_pipelines() {
        let command = ["filesrc location=street.mp4", "rtspsrc location=rtsp://camera/stream", "v4l2src"]
            .iter()
            .fold(pipeline.clone(), |command, source| command.replace(source, &video))
            .replace("autovideosink", "fakesink sync=true")
            .replace("http://127.0.0.1:8080", backend.url());
        assert!(command.contains(&video), "{pipeline} begins with a source that this test does not know");
        shell(folder.path(), &command);
        let expected = if pipeline.contains("facetrack") { &mut best } else { &mut every };
        if pipeline.contains("multifilesink") {
            *expected = take_pictures(folder.path());
            continue;
        }
        let (expected, now) = (*expected, stored(&backend));
        let new = usize::try_from(now.keys - already).unwrap();
        // The backend does not store crops in which its own detector finds no face.
        assert!(new * 10 >= expected * 6, "{pipeline}: {new} of {expected} crops hold stored faces");
        assert!(new <= expected, "{pipeline}: {new} crops stored, {expected} cut");
        assert!(now.detections >= now.keys);
        already = now.keys;
    }
    assert!(every > 100, "{every} faces of a busy street");
    assert!(best > 0 && best * 4 < every, "{best} of {every} pictures are the best of their tracks");
}

/// Counts the pictures that multifilesink has written, and removes them.
fn take_pictures(folder: &Path) -> usize {
    let is_crop = |name: &str| name.starts_with("face-") && name.ends_with(".jpg");
    let pictures: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| is_crop(&entry.file_name().to_string_lossy()))
        .collect();
    for picture in &pictures {
        fs::remove_file(picture.path()).unwrap();
    }
    pictures.len()
}

#[test]
fn a_camera_s_token_authorises_its_uploads() {
    let video = require!("videos/street-1080p.mp4");
    let weights = require_backend_weights!();
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "camera gate-1-0123456789abcdef\nadmin ops-0123456789abcdef\n").unwrap();
    let backend = Backend::start_with(&weights, &["--token-file", tokens.to_str().unwrap()]);
    fs::write(folder.path().join("token"), "gate-1-0123456789abcdef\n").unwrap();
    let video = beginning(&video, 8, folder.path());
    let crops =
        format!("filesrc location={} ! decodebin ! facedetect ! facecrop policy=every", video.display());
    let sink = format!("facesink-http backend-url={} camera-id=gate-1 camera-location=Lobby", backend.url());
    shell(folder.path(), &format!("gst-launch-1.0 -q {crops} ! {sink} token-file=token"));
    assert!(stored(&backend).detections > 0);
}

/// Runs the guide's script in a checkout; returns its message if it fails.
fn guide(checkout: &Path, arguments: &[&str]) -> Result<String, String> {
    python(&checkout.join("scripts/guide.py"), arguments)
}

fn python(script: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("python3").arg(script).args(arguments).output().unwrap();
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

#[test]
fn the_guide_finds_dead_links_and_unlisted_pages() {
    guide(&workspace_root(), &["check"]).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    fs::create_dir(folder.path().join("scripts")).unwrap();
    fs::copy(workspace_root().join("scripts/guide.py"), folder.path().join("scripts/guide.py")).unwrap();
    write("docs/guide/SUMMARY.md", "# Summary\n\n[R](../../README.md)\n\n- [A](../a.md)\n");
    write("docs/a.md", "# A\n\n## Two `words`\n\n```\n[code](none.md)\n```\n\n[up](../README.md#r)\n");
    write("docs/p.svg", "<svg/>");
    write(
        "README.md",
        "# R\n\n[a](docs/a.md#two-words), ![p](docs/p.svg), `[code](none.md)`, [web](https://x.example/y)\n",
    );
    guide(folder.path(), &["check"]).unwrap();

    write("docs/b.md", "# B\n\n[a](a.md#three)\n[b](none.md)\n![c](none.png)\n");
    let said = guide(folder.path(), &["check"]).unwrap_err();
    for problem in [
        "SUMMARY.md lacks docs/b.md",
        "docs/b.md:3: a dead link: docs/a.md has no heading #three",
        "docs/b.md:4: a dead link: there is no none.md",
        "docs/b.md:5: a dead link: there is no none.png",
    ] {
        assert!(said.contains(problem), "{problem}: {said}");
    }
}

#[test]
fn the_vocabulary_check_finds_missing_names_and_replaced_words() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    for script in ["guide.py", "vocabulary.py"] {
        write(
            &format!("scripts/{script}"),
            &fs::read_to_string(workspace_root().join("scripts").join(script)).unwrap(),
        );
    }
    let glossary = "# Glossary\n\n## Types\n\n| term | type | where |\n|---|---|---|\n| box | `BoundingBox`, `best_of` | `src/core` |\n\n\
                    ## Words that are not used\n\n| instead of | write |\n|---|---|\n| anew, is told | again |\n";
    write("docs/glossary.md", glossary);
    write(
        "src/core/lib.rs",
        "// Two are told apart.\nstruct BoundingBox; // `anew`\nfn best_of() -> &'static str { \"anew\" }\n",
    );
    write("README.md", "# R\n\nWe begin again.\n\n```\nanew\n```\n");
    let check = || python(&folder.path().join("scripts/vocabulary.py"), &[]);
    check().unwrap();

    write("src/core/lib.rs", "/// Is told of it.\nstruct Rectangle;\nfn best_of() {} // Computes it anew.\n");
    write("README.md", "# R\n\nWe begin Anew.\n");
    write("docs/glossary.md", &glossary.replace("`src/core` |", "`src/core`, `src/none.rs` |"));
    let said = check().unwrap_err();
    for problem in [
        "docs/glossary.md:7: there is no src/none.rs",
        "docs/glossary.md:7: BoundingBox is not defined in src/core",
        "src/core/lib.rs:1: “Is told”: again",
        "src/core/lib.rs:3: “anew”: again",
        "README.md:3: “Anew”: again",
    ] {
        assert!(said.contains(problem), "{problem}: {said}");
    }
}

#[test]
fn the_guide_has_every_element_command_and_call() {
    let folder = tempfile::tempdir().unwrap();
    let sources = folder.path().join("sources");
    // The programs must be built.
    let _ = (program("facepipe"), program("facepipe-backend"));
    guide(&workspace_root(), &["sources", build_dir().to_str().unwrap(), sources.to_str().unwrap()]).unwrap();
    let page = |name: &str| fs::read_to_string(sources.join("src").join(name)).unwrap();

    let detector = page("elements/facedetect.md");
    for part in [
        "# facedetect\n",
        "### `score-threshold`",
        "default `0.6`",
        "| `tensorrt` |",
        "```sh\ngst-launch-1.0",
    ] {
        assert!(detector.contains(part), "{part}: {detector}");
    }
    let summary = page("SUMMARY.md");
    for element in ["facedetect", "facetrack", "facecrop", "facesink-http", "faceoverlay"] {
        assert!(summary.contains(&format!("    - [{element}](elements/{element}.md)")), "{summary}");
    }
    assert!(page("programs/facepipe.md").contains("## `facepipe enroll folder`"));
    assert!(page("programs/facepipe-backend.md").contains("## `facepipe-backend restore`"));
    let dataset = page("api/dataset.md");
    assert!(dataset.contains("## POST `/dataset/{id}/image`") && dataset.contains("`duplicate_image`"));
    // Links lead to the places of pages and files in the guide.
    assert!(
        page("index.md").contains("](deploy.md)")
            && page("pipelines/index.md").contains("](../operating.md#")
    );
    assert!(page("openapi.json").starts_with('{'));
}
