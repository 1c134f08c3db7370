//! The main job end to end, as `make demo` runs it: real programs, elements, weights and photographs, and crowds with ground
//! truth.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use facepipe_test_support::{models_dir, require, workspace_root};
use facepipe_tests::{
    program,
    programs::{ProgramOutput, facepipe, interrupt},
};
use quick_xml::{Reader, events::Event};
use serde_json::Value;

/// Replays run in real time: concurrent ones would starve each other on a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs the demo and returns its report and output.
fn demo(video: &Path, faces: Option<&Path>, out: &Path, environment: &[(&str, &Path)]) -> (Value, String) {
    let _exclusive = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(program("facepipe"));
    command.current_dir(workspace_root()).args(["demo", "--video"]).arg(video).arg("--out").arg(out);
    command.env("FACEPIPE_MODELS", models_dir());
    if let Some(faces) = faces {
        command.arg("--faces").arg(faces);
    }
    command.env_remove("FACEPIPE_EMBEDDER");
    if faces.is_none() {
        command.env_remove("FACEPIPE_MIRROR");
    }
    for (name, value) in environment {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let report = fs::read_to_string(out.join("report.json")).unwrap();
    (serde_json::from_str(&report).unwrap(), printed)
}

fn number(report: &Value, field: &str) -> f64 {
    report[field].as_f64().unwrap_or_else(|| panic!("{field} is no number in {report}"))
}

#[test]
fn the_people_of_a_crowd_are_recognised_within_the_promised_uplink() {
    let faces = require!("lfw10");
    for (name, limit_mbps) in [("crowd-medium", 0.25), ("crowd-very-high", 1.1)] {
        let video = require!(&format!("videos/{name}-1080p6.mp4"));
        let out = tempfile::tempdir().unwrap();
        let (report, printed) = demo(&video, Some(&faces), out.path(), &[]);
        assert!(number(&report, "identification_accuracy") >= 0.95, "{name}: {report}");
        let seen = number(&report, "walkers_seen") / number(&report, "walkers");
        assert!(seen >= 0.9, "{name}: {report}");
        assert_eq!(number(&report, "walkers_enrolled"), number(&report, "walkers"), "{name}: {report}");
        assert!(number(&report, "uplink_mbps") <= limit_mbps, "{name}: {report}");
        assert_eq!(number(&report, "seconds"), 30.0, "{name}: {report}");
        // A crop can hold a neighbour's face beside its own, and is then two detections.
        let with_face = number(&report, "faces_uploaded") - number(&report, "crops_without_face");
        assert!(number(&report, "detections_stored") >= with_face, "{name}: {report}");
        let bits = number(&report, "uplink_bytes") * 8.0;
        assert!((number(&report, "uplink_mbps") - bits / 30.0 / 1e6).abs() < 1e-9, "{name}: {report}");
        assert!((number(&report, "reduction_factor") - 4.0 / number(&report, "uplink_mbps")).abs() < 1e-6);
        for person in report["identified"].as_object().unwrap().keys() {
            assert!(printed.contains(person.as_str()), "{name}: {person} is not in the table:\n{printed}");
        }
        assert!(printed.contains("Lobby"), "{printed}");
    }
}

#[test]
fn without_a_folder_of_faces_nobody_is_enrolled_and_detections_are_still_shown() {
    let video = require!("videos/street-1080p.mp4");
    for model in ["models/pnet.pt", "models/mobilefacenet.onnx", "models/version-RFB-640.onnx"] {
        let _ = require!(model);
    }
    // A models folder without downloaded photographs.
    let models = models_without(|_| false);
    let out = tempfile::tempdir().unwrap();
    let (report, printed) = demo(&video, None, out.path(), &[("FACEPIPE_MODELS", models.path())]);
    assert!(printed.contains("Nobody is enrolled"), "{printed}");
    assert!(number(&report, "detections_stored") > 0.0, "{report}");
    assert_eq!(number(&report, "unknown"), number(&report, "detections_stored"), "{report}");
    assert_eq!(report["identified"].as_object().unwrap().len(), 0, "{report}");
    assert!(report.get("identification_accuracy").is_none(), "the street has no ground truth: {report}");
}

#[test]
fn an_interrupted_demo_leaves_no_server_behind_and_errors_have_their_exit_codes() {
    let (video, faces) = (require!("videos/street-1080p.mp4"), require!("lfw10"));
    let _exclusive = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut command = facepipe(&["demo", "--video"]);
    command.arg(&video).arg("--faces").arg(&faces).args(["--shots", "1", "--out"]).arg(&out);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("Enrolled")));
    interrupt(&running);
    assert_eq!(lines.find(|line| line.contains("Report")), None);
    assert_eq!(running.wait().unwrap().code(), Some(130));
    let log = fs::read_to_string(out.join("backend.log")).unwrap();
    assert!(log.contains("stopping"), "{log}");

    let junk = folder.path().join("junk.mp4");
    fs::write(&junk, b"no video").unwrap();
    let run = |arguments: &[&str], video: &Path, out: &Path| {
        let mut command = facepipe(arguments);
        command.arg(video).args(["--faces", "/nonexistent", "--out"]).arg(out);
        ProgramOutput::new(command.output().unwrap())
    };
    for program in [&["demo", "--video"][..], &["bench", "bandwidth"]] {
        run(program, &folder.path().join("none.mp4"), &out).expect(6, &["none.mp4", "no such file"]);
        run(program, &junk, &out).expect(6, &["/nonexistent"]);
    }
    let one = folder.path().join("one/Tony_Blair");
    fs::create_dir_all(&one).unwrap();
    fs::copy(faces.join("Tony_Blair/Tony_Blair_0001.jpg"), one.join("1.jpg")).unwrap();
    let none = folder.path().join("one/Nobody");
    fs::create_dir_all(&none).unwrap();
    fs::write(none.join("notes.txt"), "no picture").unwrap();
    let run = |arguments: &[&str], out: &Path| {
        let mut command = facepipe(arguments);
        command.arg(&junk).arg("--faces").arg(one.parent().unwrap()).arg("--out").arg(out);
        ProgramOutput::new(command.output().unwrap())
    };
    for program in [&["demo", "--video"][..], &["bench", "bandwidth", "--fast"]] {
        let said = ["junk.mp4", "Enrolled  1 people with 1 photographs", "so not enrolled: Nobody"];
        run(program, &out).expect(6, &said);
        run(program, &junk).expect(7, &["junk.mp4"]);
    }
}

/// A folder with the models for which `left_out` is false, without other downloads.
fn models_without(left_out: impl Fn(&str) -> bool) -> tempfile::TempDir {
    let models = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(models_dir()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_file() && !left_out(name) {
            std::os::unix::fs::symlink(path.canonicalize().unwrap(), models.path().join(name)).unwrap();
        }
    }
    models
}

fn is_embedder(name: &str) -> bool {
    name.contains("facenet") || name.contains("vggface2") || name.starts_with("face_recognition")
}

/// A folder of people under other names than in `faces`, with their first photographs.
fn gallery(faces: &Path, people: &[(&str, &str)], photographs: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (person, called) in people {
        let own = folder.path().join(called);
        fs::create_dir(&own).unwrap();
        let mut files: Vec<PathBuf> =
            fs::read_dir(faces.join(person)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in files.iter().take(photographs) {
            fs::copy(file, own.join(file.file_name().unwrap())).unwrap();
        }
    }
    folder
}

/// The suggested commands.
fn suggested(lines: &[String]) -> Vec<&str> {
    let next = lines.iter().position(|line| line == "Try next:").unwrap_or_else(|| panic!("{lines:?}"));
    let after = lines[next + 1..].iter().map(|line| line.trim());
    after.filter(|line| line.contains("facepipe") && !line.starts_with('#')).take(3).collect()
}

/// Checks that a page is well-formed, self-contained and accessible; returns its pictures.
fn pictures_of(page: &str) -> Vec<image::RgbImage> {
    let mut reader = Reader::from_str(page);
    reader.config_mut().check_end_names = true;
    let (mut pictures, mut open) = (Vec::new(), 0);
    loop {
        let event =
            reader.read_event().unwrap_or_else(|error| panic!("{error} at {}", reader.buffer_position()));
        let element = match event {
            Event::Eof => break,
            Event::End(_) => {
                open -= 1;
                continue;
            }
            Event::Start(element) => {
                open += 1;
                element
            }
            Event::Empty(element) => element,
            _ => continue,
        };
        let name = String::from_utf8(element.name().as_ref().to_vec()).unwrap();
        let attributes: std::collections::BTreeMap<String, String> = element
            .attributes()
            .map(|attribute| {
                let attribute = attribute.unwrap();
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                (text(attribute.key.as_ref()), text(&attribute.value))
            })
            .collect();
        assert!(!["script", "link", "iframe", "object", "base"].contains(&name.as_str()), "{name}");
        assert!(!attributes.keys().any(|key| key.starts_with("on") || key == "href"), "{attributes:?}");
        match name.as_str() {
            "img" => {
                assert!(!attributes["alt"].is_empty(), "{attributes:?}");
                let data = attributes["src"].split_once(";base64,").unwrap().1;
                pictures
                    .push(image::load_from_memory(&BASE64_STANDARD.decode(data).unwrap()).unwrap().to_rgb8());
            }
            "th" => assert!(["col", "row"].contains(&attributes["scope"].as_str())),
            "svg" => assert!(!attributes["aria-label"].is_empty()),
            "html" => assert_eq!(attributes["lang"], "en"),
            _ => {}
        }
    }
    assert_eq!(open, 0, "elements that are not closed");
    for outside in ["http://", "https://", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    pictures
}

/// Returns whether a picture consists of squares of one colour with this side.
fn is_of_blocks(picture: &image::RgbImage, side: u32) -> bool {
    picture.enumerate_pixels().all(|(x, y, colour)| colour == picture.get_pixel(x - x % side, y - y % side))
}

#[test]
fn a_small_gallery_gets_a_crowd_with_strangers_and_the_backend_is_kept_for_the_suggested_commands() {
    let (faces, strangers) = (require!("lfw10"), require!("lfw-open/strangers"));
    let _exclusive = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // File systems accept names with markup, the backend does not.
    let hostile = "O'Hara & \"$(id)\"";
    let people = gallery(&faces, &[("Tony_Blair", hostile), ("Colin_Powell", "Colin Powell")], 3);
    // No gallery but the given one: strangers come from the mirror.
    let models = models_without(|_| false);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("<img src=x onerror='alert(1)'>");
    let demo = |options: &[&str]| {
        let mut command = facepipe(&["demo", "--faces"]);
        command.arg(people.path()).arg("--out").arg(&out).args(options);
        command
            .env("FACEPIPE_MODELS", models.path())
            .env("FACEPIPE_MIRROR", strangers.ancestors().nth(2).unwrap());
        command
    };
    let mut kept = demo(&["--keep"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = BufReader::new(kept.stdout.take().unwrap()).lines().map(Result::unwrap);
    let lines: Vec<String> = output.by_ref().take_while(|line| !line.contains("Ctrl-C")).collect();
    let printed = lines.join("\n");

    let report: Value = serde_json::from_str(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap();
    assert_eq!((number(&report, "people_enrolled"), number(&report, "walkers")), (2.0, 8.0), "{report}");
    assert!(number(&report, "walkers_enrolled") < number(&report, "walkers"), "{report}");
    assert!(number(&report, "detections_rightly_unknown") >= 1.0, "{report}");
    assert_eq!(number(&report, "walkers_seen"), number(&report, "walkers_enrolled"), "{report}");
    assert!(report["identified"].get(hostile).is_some(), "{report}");
    assert!(
        ["Crowd ", "who are not enrolled", "Now ", "Times "].iter().all(|said| printed.contains(said)),
        "{printed}"
    );

    let page = fs::read_to_string(out.join("report.html")).unwrap();
    let pictures = pictures_of(&page);
    assert!(pictures.len() >= 4, "{}", pictures.len());
    assert!(pictures.iter().all(|picture| is_of_blocks(picture, 14)), "a face is not pixelated");
    assert!(page.contains("O&#39;Hara &amp; &quot;$(id)&quot;"), "{page}");
    assert!(page.contains("&lt;img src=x onerror=&#39;alert(1)&#39;&gt;/crowd.mp4"), "{page}");
    assert!(page.contains("UTC") && page.contains("Apache-2.0") && page.contains("Lobby"), "{page}");
    let said = [&page, &printed, &report.to_string()];
    for stranger in fs::read_dir(&strangers).unwrap() {
        let file = stranger.unwrap().path();
        let (name, _) = file.file_stem().unwrap().to_str().unwrap().rsplit_once('_').unwrap();
        assert!(said.iter().all(|said| !said.contains(name)), "{name}");
    }

    let commands = suggested(&lines);
    assert_eq!(commands.len(), 3, "{printed}");
    for command in commands {
        let mut shell = Command::new("bash");
        shell.args(["-c", command]).env("FACEPIPE_MODELS", models_dir());
        let said = ProgramOutput::new(shell.output().unwrap()).expect(0, &[]);
        assert!(!said.stdout.is_empty(), "{command}");
    }
    ProgramOutput::new(demo(&[]).output().unwrap())
        .expect(7, &["another facepipe works in this folder", "--out"]);
    let address = fs::read_to_string(out.join("backend.address")).unwrap();
    let port = address.trim().rsplit_once(':').unwrap().1;
    let elsewhere = tempfile::tempdir().unwrap();
    let mut second = facepipe(&["demo", "--port", port, "--faces"]);
    second.arg(people.path()).arg("--out").arg(elsewhere.path());
    ProgramOutput::new(second.output().unwrap())
        .expect(2, &[&format!("--port {port}"), "another program listens"]);

    interrupt(&kept);
    assert!(output.any(|line| line.contains("The backend has ended")));
    assert_eq!(kept.wait().unwrap().code(), Some(0));
    assert!(std::net::TcpStream::connect(address.trim()).is_err(), "the backend still listens");
}

#[test]
fn missing_components_are_named_and_the_rest_runs_without_them() {
    let (faces, video) = (require!("lfw10"), require!("videos/street-1080p.mp4"));
    let _exclusive = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let people = gallery(&faces, &[("Tony_Blair", "Tony Blair"), ("Colin_Powell", "Colin Powell")], 4);
    let out = tempfile::tempdir().unwrap();
    let demo = |models: &Path, options: &[&str]| {
        let mut command = facepipe(&["demo", "--out"]);
        command.arg(out.path()).args(options).env("FACEPIPE_MODELS", models).env_remove("FACEPIPE_MIRROR");
        command
    };
    let (all, no_embedder) = (models_without(|_| false), models_without(is_embedder));
    let (people, video) = (people.path().to_str().unwrap(), video.to_str().unwrap());
    let no_edge = |mut command: Command| {
        command.env("ORT_DYLIB_PATH", "/nonexistent/libonnxruntime.so");
        ProgramOutput::new(command.output().unwrap())
    };

    // Without people and without a video.
    let nobody = ProgramOutput::new(demo(all.path(), &[]).output().unwrap());
    nobody.expect(6, &["there is nobody to enrol", "--faces", "models fetch"]);

    let edge = ProgramOutput::new(
        demo(no_embedder.path(), &["--faces", people, "--video", video]).output().unwrap(),
    );
    let edge = edge.expect(3, &["Missing   an embedder", "mobilefacenet.onnx", "Ran       the edge alone"]);
    let lines: Vec<String> = edge.stdout.lines().map(str::to_owned).collect();
    assert_eq!(suggested(&lines).len(), 3, "{lines:?}");
    let page = fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(!pictures_of(&page).is_empty() && page.contains("What is missing"), "{page}");
    assert!(!page.contains("Blair"), "{page}");

    let backend = no_edge(demo(all.path(), &["--faces", people, "--shots", "2"]));
    let photos = [
        "Missing   the edge's face detector",
        "2 of 2 were given the right name",
        "Ran       the backend alone",
    ];
    // One of two people is held out as a stranger.
    backend.expect(3, &["Enrolled  1 people"]).expect(3, &photos);
    no_edge(demo(no_embedder.path(), &["--faces", people]))
        .expect(6, &["nothing of the demo can run", "an embedder", "the edge's face detector"]);
    fs::create_dir(out.path().join("report.json.d")).unwrap();
    fs::remove_file(out.path().join("report.json")).ok();
    fs::rename(out.path().join("report.json.d"), out.path().join("report.json")).unwrap();
    ProgramOutput::new(demo(all.path(), &["--faces", people]).output().unwrap())
        .expect(7, &["report.json", "is a folder"]);
}
