//! A missing, damaged or wrong library, model or provider is an error that says what to do, never a panic or a silent fallback.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the lints exempt test functions, but not the functions that these call"
)]

mod common;

use std::{env, fs, path::Path, process::Command};

use common::{picture, rgb_frame};
use facepipe_detector::{
    BoundingBox, Detector, DetectorConfig, DetectorError, ExecutionProvider, models, runtime,
};
use facepipe_test_support::require;

/// Returns the configuration of a detector with this model and the library of the checkout.
fn with_model(model: &Path) -> DetectorConfig {
    DetectorConfig {
        model: model.to_path_buf(),
        library_hints: vec![facepipe_test_support::workspace_root()],
        ..DetectorConfig::default()
    }
}

fn refused(config: &DetectorConfig) -> DetectorError {
    match Detector::open(config) {
        Ok(_) => panic!("{} was opened", config.model.display()),
        Err(error) => error,
    }
}

/// Runs one of the ignored tests below in a separate process, since the library is loaded once per process and environment
/// variables belong to the process. Returns its outcome and its output.
fn in_own_process(test: &str, variables: &[(&str, &Path)]) -> (bool, String) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command.env_remove("ORT_DYLIB_PATH").env_remove("FACEPIPE_MODELS").env_remove("FACEPIPE_SKIP_LOG");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
#[ignore = "run in a process of its own by the tests of the library's search"]
fn load_the_runtime() {
    // The hint has a usable library, so an error proves that only ORT_DYLIB_PATH is used.
    match runtime::load(&[facepipe_test_support::workspace_root()]) {
        Ok(runtime) => println!("loaded {}", runtime.path().display()),
        Err(error) => println!("refused: {error}"),
    }
}

/// Asserts that this file as ORT_DYLIB_PATH is refused for `reason`, without a panic.
fn assert_library_refused(library: &Path, reason: &str) {
    let (passed, output) = in_own_process("load_the_runtime", &[("ORT_DYLIB_PATH", library)]);
    assert!(passed, "{output}");
    assert!(output.contains("refused: no usable ONNX Runtime library (1.17 or newer)"), "{output}");
    assert!(output.contains(reason) && output.contains(library.to_str().unwrap()), "{output}");
    assert!(output.contains("Run `facepipe models fetch`") && output.contains("ORT_DYLIB_PATH"), "{output}");
}

#[test]
fn a_missing_or_invalid_library_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    assert_library_refused(&folder.path().join("libonnxruntime.so"), "does not load");
    let text = folder.path().join("text.so");
    fs::write(&text, "not a library").unwrap();
    assert_library_refused(&text, "does not load");
}

/// A library with nothing but ONNX Runtime's version function.
const OLD_RUNTIME: &str = r#"
#[repr(C)]
pub struct Base {
    api: extern "C" fn(u32) -> *const u8,
    version: extern "C" fn() -> *const u8,
}
extern "C" fn api(_: u32) -> *const u8 {
    std::ptr::null()
}
extern "C" fn version() -> *const u8 {
    b"1.9.0\0".as_ptr()
}
static BASE: Base = Base { api, version };
#[unsafe(no_mangle)]
pub extern "C" fn NAME() -> *const Base {
    &BASE
}
"#;

#[test]
fn an_outdated_or_foreign_library_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for (name, reason) in [
        ("OrtGetApiBase", "is version 1.9.0, which is too old"),
        ("SomethingElse", "is not an ONNX Runtime library"),
    ] {
        let (source, library) =
            (folder.path().join(format!("{name}.rs")), folder.path().join(format!("{name}.so")));
        fs::write(&source, OLD_RUNTIME.replace("NAME", name)).unwrap();
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let compiled = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "cdylib", "-A", "nonstandard-style", "-o"])
            .args([&library, &source])
            .status()
            .unwrap();
        assert!(compiled.success());
        assert_library_refused(&library, reason);
    }
}

#[test]
fn the_library_is_found_below_a_hint_without_environment_variables() {
    let installed = facepipe_test_support::workspace_root().join(".runtime");
    if !installed.is_dir() {
        facepipe_test_support::skip("no .runtime: run `facepipe models fetch`");
        return;
    }
    let (passed, output) = in_own_process("load_the_runtime", &[]);
    assert!(passed, "{output}");
    let expected = format!("loaded {}", installed.join("libonnxruntime.so").display());
    assert!(output.contains(&expected), "{expected} in {output}");
}

#[test]
fn a_provider_that_the_library_lacks_is_refused() {
    let model = require!("models/version-slim-320.onnx");
    if !common::runtime_or_skip() {
        return;
    }
    let runtime = runtime::load(&[]).unwrap();
    assert!(runtime.has(ExecutionProvider::Cpu));
    let lacking: Vec<_> = ExecutionProvider::ALL.into_iter().filter(|&p| !runtime.has(p)).collect();
    if lacking.is_empty() {
        facepipe_test_support::skip("this ONNX Runtime has every provider");
        return;
    }
    for execution_provider in lacking {
        let error = refused(&DetectorConfig { execution_provider, ..with_model(&model) });
        assert!(matches!(error, DetectorError::ProviderUnavailable { .. }), "{error}");
        let message = error.to_string();
        assert!(
            message.contains(&format!("execution provider {execution_provider} cannot be had")),
            "{message}"
        );
        assert!(message.contains("was built without it") && message.contains("choose cpu"), "{message}");
    }
}

#[test]
fn providers_have_their_configuration_names() {
    for provider in ExecutionProvider::ALL {
        assert_eq!(provider.to_string().parse::<ExecutionProvider>().unwrap(), provider);
    }
    let error = "gpu".parse::<ExecutionProvider>().unwrap_err().to_string();
    assert_eq!(error, "execution-provider is gpu: expected cpu, cuda, tensorrt or openvino");
}

#[test]
fn values_out_of_range_are_errors_that_name_field_and_limit() {
    let config = || with_model(Path::new("unread.onnx"));
    let cases = [
        (DetectorConfig { score_threshold: 1.5, ..config() }, "score-threshold is 1.5: expected 0 to 1"),
        (DetectorConfig { score_threshold: f32::NAN, ..config() }, "score-threshold is NaN: expected 0 to 1"),
        (DetectorConfig { nms_threshold: -0.1, ..config() }, "nms-threshold is -0.1: expected 0 to 1"),
        (DetectorConfig { threads: 0, ..config() }, "threads is 0: expected 1 to 1024"),
    ];
    for (config, message) in cases {
        assert_eq!(refused(&config).to_string(), message);
    }
}

#[test]
fn the_error_for_a_missing_model_says_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("version-RFB-320.onnx");
    let by_path = models::resolve(path.to_str().unwrap(), None, &[]).unwrap_err();
    for error in [by_path, refused(&with_model(&path))] {
        assert!(matches!(error, DetectorError::ModelMissing { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("Run `facepipe models fetch`"), "{message}");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
    }
    let unknown = models::resolve("rfb-1280", None, &[]).unwrap_err().to_string();
    assert_eq!(
        unknown,
        "model \"rfb-1280\" is unknown: expected auto, rfb-320, rfb-640, slim-320, mtcnn, or the path of an .onnx or .pt file"
    );
}

#[test]
fn errors_for_missing_truncated_or_swapped_files_of_mtcnn_name_file_and_remedy() {
    let files = ["pnet.pt", "rnet.pt", "onet.pt"];
    let [first, second, third] =
        [require!("models/pnet.pt"), require!("models/rnet.pt"), require!("models/onet.pt")];
    if !common::runtime_or_skip() {
        return;
    }
    let whole = [first, second, third].map(|path| fs::read(path).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("pnet.pt");
    let install = || {
        files.iter().zip(&whole).for_each(|(file, bytes)| fs::write(folder.path().join(file), bytes).unwrap())
    };
    install();
    assert!(common::open(with_model(&model)).is_some());

    let says = |parts: &[&str]| {
        let message = refused(&with_model(&model)).to_string();
        for part in parts {
            assert!(message.contains(part), "{part} in {message}");
        }
    };
    for (file, bytes) in files.iter().zip(&whole) {
        let path = folder.path().join(file);
        for kept in [0, 1, 40, 300, 1_000, 2_000, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..kept]).unwrap();
            says(&[
                path.to_str().unwrap(),
                "is damaged: ",
                "Run `facepipe models verify`, then `facepipe models fetch`",
            ]);
        }
        fs::write(&path, "<html>not found</html>").unwrap();
        says(&[path.to_str().unwrap(), "is damaged: "]);
        fs::remove_file(&path).unwrap();
        says(&[file, folder.path().to_str().unwrap(), "is not installed", "Run `facepipe models fetch`"]);
        install();
    }
    fs::copy(folder.path().join("rnet.pt"), &model).unwrap();
    says(&[
        "pnet.pt is damaged: its tensor conv1.weight has the shape [28, 3, 3, 3], expected [10, 3, 3, 3]",
    ]);
    install();
    let cuda = DetectorConfig { execution_provider: ExecutionProvider::Cuda, ..with_model(&model) };
    let message = refused(&cuda).to_string();
    assert!(
        message.contains("execution-provider is cuda: expected cpu, since the model is mtcnn"),
        "{message}"
    );
}

#[test]
#[ignore = "run in a process of its own by the test of FACEPIPE_MODELS"]
fn resolve_slim_320() {
    match models::resolve("slim-320", None, &[]) {
        Ok(path) => println!("found {}", path.display()),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn models_are_found_near_a_hint_and_first_in_facepipe_models() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = folder.path().join("target/debug/deps");
    let models = folder.path().join("models");
    fs::create_dir_all(&plugins).unwrap();
    fs::create_dir(&models).unwrap();
    for file in ["version-RFB-320.onnx", "version-RFB-640.onnx", "version-slim-320.onnx"] {
        fs::write(models.join(file), "").unwrap();
    }
    let hints = [plugins];
    for (name, width, file) in [
        ("auto", None, "version-RFB-320.onnx"),
        ("auto", Some(1279), "version-RFB-320.onnx"),
        ("auto", Some(1280), "version-RFB-640.onnx"),
        ("rfb-320", Some(1920), "version-RFB-320.onnx"),
        ("slim-320", None, "version-slim-320.onnx"),
    ] {
        // FACEPIPE_MODELS may be set, and then takes precedence.
        let found = models::resolve(name, width, &hints).unwrap();
        assert_eq!(found.file_name().unwrap(), file);
        if env::var_os("FACEPIPE_MODELS").is_none() {
            assert_eq!(found, models.join(file));
        }
    }
    let (passed, output) = in_own_process("resolve_slim_320", &[("FACEPIPE_MODELS", &models)]);
    assert!(passed, "{output}");
    let expected = format!("found {}", models.join("version-slim-320.onnx").display());
    assert!(output.contains(&expected), "{output}");
}

#[test]
fn a_truncated_model_is_an_error() {
    let model = fs::read(require!("models/version-slim-320.onnx")).unwrap();
    if !common::runtime_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.onnx");
    let evenly = (0..40).map(|i| i * model.len() / 40);
    for length in evenly.chain(model.len() - 12..model.len()) {
        fs::write(&path, &model[..length]).unwrap();
        let error = refused(&with_model(&path));
        assert!(matches!(error, DetectorError::ModelCorrupt { .. }), "cut at {length}: {error}");
        let message = error.to_string();
        assert!(message.contains("cut.onnx") && message.contains("facepipe models verify"), "{message}");
    }
}

#[test]
fn the_error_for_a_model_that_is_not_a_detector_says_what_differs() {
    let model = require!("models/mobilefacenet.onnx");
    if !common::runtime_or_skip() {
        return;
    }
    let error = refused(&with_model(&model));
    assert!(matches!(error, DetectorError::ModelUnsupported { .. }), "{error}");
}

#[test]
fn rfb_640_finds_the_faces_of_a_crowd_that_mtcnn_finds() {
    let model = require!("models/version-RFB-640.onnx");
    let fixture = facepipe_test_support::fixture("mtcnn.json");
    let mut detector = open_or_skip!(with_model(&model));
    assert_eq!(detector.input_size(), Some((640, 480)));
    let (mut seen, mut all) = (0, 0);
    for name in ["scenes/crowd-01.jpg", "scenes/crowd-06.jpg", "scenes/multiface.jpg"] {
        let picture = picture(&require!(name));
        let found = detector.detect(&rgb_frame(&picture)).unwrap();
        for face in fixture["images"][name].as_array().unwrap() {
            let edge = |i: usize| face["box"][i].as_f64().unwrap();
            if face["prob"].as_f64().unwrap() < 0.95 {
                continue;
            }
            let face = BoundingBox::new(edge(0), edge(1), edge(2), edge(3));
            all += 1;
            // The two networks were trained on differently drawn boxes.
            seen += usize::from(found.iter().any(|d| d.bounding_box.iou(&face) > 0.4));
        }
    }
    println!("RFB-640 sees {seen} of {all}");
    assert!(all > 60 && seen * 10 >= all * 9, "{seen} of {all}");
}

#[test]
fn thresholds_and_max_faces_can_be_changed_between_frames() {
    let model = require!("models/version-RFB-320.onnx");
    let picture = picture(&require!("scenes/multiface.jpg"));
    let mut detector = open_or_skip!(with_model(&model));
    let frame = rgb_frame(&picture);
    let all = detector.detect(&frame).unwrap();
    assert!(all.len() >= 6, "{all:?}");
    assert!(all.windows(2).all(|pair| pair[0].score >= pair[1].score), "highest score first: {all:?}");

    detector.set_max_faces(2);
    assert_eq!(detector.detect(&frame).unwrap(), all[..2]);
    detector.set_max_faces(0);
    detector.set_nms_threshold(1.0).unwrap();
    assert!(detector.detect(&frame).unwrap().len() > all.len());
    detector.set_nms_threshold(0.3).unwrap();
    detector.set_score_threshold(all[2].score as f32).unwrap();
    assert_eq!(detector.detect(&frame).unwrap(), all[..2]);
    assert!(detector.set_score_threshold(2.0).is_err());
    assert!(detector.set_nms_threshold(f32::NAN).is_err());
    assert_eq!(detector.detect(&frame).unwrap(), all[..2], "a refused value changes nothing");
}

#[test]
fn two_threads_find_what_one_finds() {
    let model = require!("models/version-RFB-320.onnx");
    let picture = picture(&require!("scenes/multiface.jpg"));
    let mut one = open_or_skip!(with_model(&model));
    let mut two = open_or_skip!(DetectorConfig { threads: 2, ..with_model(&model) });
    let expected = one.detect(&rgb_frame(&picture)).unwrap();
    let found = std::thread::spawn(move || two.detect(&rgb_frame(&picture)).unwrap()).join().unwrap();
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(&expected) {
        assert!(
            a.bounding_box.iou(&b.bounding_box) > 0.99 && (a.score - b.score).abs() < 1e-3,
            "{a:?}, {b:?}"
        );
    }
}
