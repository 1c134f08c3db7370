//! `facepipe bench bandwidth` on the crowds: best shots take a tenth of the bytes of all faces, and identify everybody.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::process::Command;

use facepipe_test_support::{models_dir, require, workspace_root};
use facepipe_tests::program;
use serde_json::Value;

#[test]
fn best_shots_of_the_crowds_identify_everybody_within_the_promised_uplink() {
    let faces = require!("lfw10");
    for model in ["pnet.pt", "mobilefacenet.onnx", "version-RFB-640.onnx"] {
        let _ = require!(&format!("models/{model}"));
    }
    // Video, most bits per second with policy=best (Mbit/s).
    let limits = [("crowd-medium", 0.02), ("crowd-high", 0.06), ("crowd-very-high", 0.1)];
    let out = tempfile::tempdir().unwrap();
    let plot = out.path().join("plot.svg");
    let mut command = Command::new(program("facepipe"));
    command
        .current_dir(workspace_root())
        .args(["bench", "bandwidth", "--fast", "--json", "--faces"])
        .arg(faces);
    command.args(["--embedder", "mobilefacenet", "--out"]).arg(out.path()).arg("--plot").arg(&plot);
    command.env("FACEPIPE_MODELS", models_dir());
    for (name, _) in limits {
        command.arg(require!(&format!("videos/{name}-1080p6.mp4")));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let measured = results["videos"].as_array().unwrap();
    assert_eq!(measured.len(), 6);
    for (name, limit) in limits {
        let of = |policy: &str| {
            let found = measured
                .iter()
                .find(|m| m["policy"] == policy && m["video"].as_str().unwrap().starts_with(name));
            found.unwrap_or_else(|| panic!("{name}, {policy} in {results}")).clone()
        };
        // "crowd-high" is not a prefix of "crowd-very-high".
        let (every, best) = (of("every"), of("best"));
        let number =
            |of: &Value, field: &str| of[field].as_f64().unwrap_or_else(|| panic!("{field} in {of}"));
        assert!(number(&best, "mbps") <= limit, "{best}");
        assert!(number(&best, "overhead") <= 0.12 && number(&every, "overhead") <= 0.12, "{every} {best}");
        assert!(
            number(&best, "walkers_recognized") >= number(&every, "walkers_recognized"),
            "{every} {best}"
        );
        assert!(number(&best, "walkers_recognized") >= 0.9 * number(&best, "walkers"), "{best}");
        let bits = number(&best, "bytes_on_wire") * 8.0 / 1e6;
        assert!((number(&best, "mbps") - bits / number(&best, "seconds")).abs() < 1e-9, "{best}");
        assert!((number(&best, "reduction_factor") * number(&best, "mbps") - 4.0).abs() < 1e-9, "{best}");
    }
    let drawn = std::fs::read_to_string(&plot).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("crowd-very-high-1080p6"), "{drawn}");
}
