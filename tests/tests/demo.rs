//! The main job from one end to the other, as `make demo` runs it: real programs, real elements, real weights, real
//! photographs, and crowds whose walkers are known.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use facepipe_test_support::{models_dir, require, workspace_root};
use facepipe_tests::{
    program,
    programs::{Said, bare, interrupt},
};
use serde_json::Value;

/// Replays run in real time: two at once would starve each other on a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs the demo and returns its report and what it printed.
fn demo(video: &Path, faces: Option<&Path>, out: &Path, environment: &[(&str, &Path)]) -> (Value, String) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
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
fn the_people_of_a_crowd_are_recognised_within_the_uplink_that_was_promised() {
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
    // A models folder with the models alone: no downloaded photographs beside them.
    let models = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(models_dir()).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_file() {
            let path = path.canonicalize().unwrap();
            std::os::unix::fs::symlink(&path, models.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let out = tempfile::tempdir().unwrap();
    let (report, printed) = demo(&video, None, out.path(), &[("FACEPIPE_MODELS", models.path())]);
    assert!(printed.contains("Nobody is enrolled"), "{printed}");
    assert!(number(&report, "detections_stored") > 0.0, "{report}");
    assert_eq!(number(&report, "unknown"), number(&report, "detections_stored"), "{report}");
    assert_eq!(report["identified"].as_object().unwrap().len(), 0, "{report}");
    assert!(report.get("identification_accuracy").is_none(), "the street has no ground truth: {report}");
}

#[test]
fn a_demo_that_is_interrupted_leaves_no_server_behind_and_what_is_wrong_has_its_code() {
    let (video, faces) = (require!("videos/street-1080p.mp4"), require!("lfw10"));
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut command = bare(&["demo", "--video"]);
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
        let mut command = bare(arguments);
        command.arg(video).args(["--faces", "/nonexistent", "--out"]).arg(out);
        Said::of(command.output().unwrap())
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
        let mut command = bare(arguments);
        command.arg(&junk).arg("--faces").arg(one.parent().unwrap()).arg("--out").arg(out);
        Said::of(command.output().unwrap())
    };
    for program in [&["demo", "--video"][..], &["bench", "bandwidth", "--fast"]] {
        let said = ["junk.mp4", "Enrolled  1 people with 1 photographs", "so not enrolled: Nobody"];
        run(program, &out).expect(6, &said);
        run(program, &junk).expect(7, &["junk.mp4"]);
    }
}
