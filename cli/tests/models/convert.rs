//! `facepipe models convert`, and the conversion by `fetch`.

use std::{fs, path::Path};

use facepipe_test_support::require;

use super::Sandbox;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_folder_that_was_filled_by_hand_is_converted_once() {
    let sandbox = Sandbox::new();
    let by_hand = sandbox.path("by hand");
    fs::create_dir(&by_hand).expect("a folder");
    let published = ["pnet.pt", "rnet.pt", "onet.pt", "mobilefacenet.onnx"];
    for name in published {
        fs::copy(require!(&format!("models/{name}")), by_hand.join(name)).expect("a copy");
    }
    let said = sandbox.run(&["convert", text(&by_hand)]);
    for name in published {
        let safetensors = by_hand.join(name).with_extension("safetensors");
        assert!(safetensors.is_file(), "{name}");
        said.exits_with(0).prints(name).prints(&format!("converted to {}", safetensors.display()));
    }
    sandbox
        .run(&["convert", text(&by_hand)])
        .exits_with(0)
        .prints("mobilefacenet.onnx")
        .prints("already converted");

    // Into another folder, since the first may be read-only.
    let to = sandbox.path("elsewhere");
    sandbox.run(&["convert", text(&by_hand), "--to", text(&to)]).exits_with(0);
    assert!(to.join("onet.safetensors").is_file() && !to.join("onet.pt").exists());
    for name in published {
        fs::remove_file(by_hand.join(name)).expect("removed");
    }
    sandbox.run(&["convert", text(&by_hand)]).exits_with(0).prints("nothing to convert");
}

#[test]
fn nothing_to_convert_and_damaged_weights_are_errors() {
    let sandbox = Sandbox::new();
    // The folder of --dir where none is named.
    let said = sandbox.run(&["convert"]);
    said.exits_with(1)
        .prints(text(&sandbox.path("models")))
        .prints("pnet.pt")
        .prints("facepipe models fetch");
    assert!(!sandbox.path("models").exists());
    fs::create_dir(sandbox.path("models")).expect("a folder");
    fs::write(sandbox.path("models/pnet.pt"), b"no weights").expect("a file");
    sandbox
        .run(&["convert"])
        .exits_with(1)
        .prints("pnet.pt is not converted")
        .prints("neither a PyTorch state dict");
    assert_eq!(sandbox.files(), ["pnet.pt"]);
}

#[test]
fn a_fetch_converts_whatever_weights_are_in_the_folder_and_fails_if_it_cannot() {
    let content = b"no weights at all";
    let mut sandbox = Sandbox::new().file("detector", content, "");
    let hash = format!("sha256 = \"{}\"\nbytes = {}\n", super::sha256(content), content.len());
    sandbox.entry("embedder", "embedder", &hash, "");
    for folder in ["mirror/models", "models"] {
        fs::create_dir_all(sandbox.path(folder)).expect("a folder");
    }
    for name in ["detector", "embedder"] {
        fs::write(sandbox.path(&format!("mirror/models/{name}.bin")), content).expect("a file");
    }
    // Of an earlier version, which did not convert.
    fs::copy(require!("models/pnet.pt"), sandbox.path("models/pnet.pt")).expect("a copy");
    let mirror = sandbox.path("mirror");
    let fetch = |name: &str| sandbox.run(&["fetch", name, "--mirror", text(&mirror)]);
    fetch("detector").exits_with(0);
    assert_eq!(sandbox.files(), ["detector.bin", "pnet.pt"]);
    fetch("embedder").exits_with(0).prints("pnet.safetensors");
    assert_eq!(sandbox.files(), ["detector.bin", "embedder.bin", "pnet.pt", "pnet.safetensors"]);
    fs::write(sandbox.path("models/rnet.pt"), content).expect("a file");
    fetch("embedder").exits_with(1).prints("rnet.pt is not converted");
}
