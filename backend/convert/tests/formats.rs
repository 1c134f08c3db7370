//! Reading of published weights in all formats, and their conversion; damaged and hostile files are rejected with the reason,
//! quickly and within bounds.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and knows its own numbers"
)]

mod torch_file;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use facepipe_convert::{Conversion, ConvertError, convert, convert_folder, is_converted};
use facepipe_test_support::require;
use facepipe_vision::{ModelError, weights::Weights};
use torch_file::{Entry, Pickle};

fn from_bytes(bytes: &[u8], origin: &str) -> Result<Weights, ConvertError> {
    Ok(Weights::from_tensors(facepipe_convert::from_bytes(bytes, origin)?, origin).unwrap())
}

fn read(path: &Path) -> Result<Weights, ConvertError> {
    Ok(Weights::from_tensors(facepipe_convert::read(path)?, "a file").unwrap())
}

/// Returns the safetensors beside a published file, if they are of this file.
fn converted(published: &Path) -> Option<PathBuf> {
    Some(published.with_extension("safetensors")).filter(|safetensors| is_converted(published, safetensors))
}

fn reason(bytes: &[u8]) -> String {
    match from_bytes(bytes, "test.pt") {
        Err(ConvertError::Malformed { origin, reason }) => {
            assert_eq!(origin, "test.pt");
            reason
        }
        other => panic!("{other:?}"),
    }
}

fn sample() -> Vec<(String, Tensor)> {
    let tensor = |shape: &[usize], first: f32| {
        let count = shape.iter().product::<usize>();
        Tensor::from_vec((0..count).map(|i| first + i as f32).collect::<Vec<_>>(), shape, &Device::Cpu)
            .unwrap()
    };
    vec![("a.weight".to_owned(), tensor(&[2, 3, 1, 2], 0.5)), ("a.bias".to_owned(), tensor(&[2], -3.0))]
}

fn assert_sample(weights: &Weights) {
    for (name, tensor) in sample() {
        let read = weights.get(&name, tensor.dims()).unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&read), flat(&tensor), "{name}");
    }
}

#[test]
fn published_legacy_pytorch_files_are_read() {
    for (file, tensors, name, shape) in [
        ("models/pnet.pt", 13, "conv2.weight", vec![16, 10, 3, 3]),
        ("models/rnet.pt", 16, "dense4.weight", vec![128, 576]),
        ("models/onet.pt", 21, "dense6_3.weight", vec![10, 256]),
    ] {
        let weights = read(&require!(file)).unwrap();
        assert_eq!(weights.names().len(), tensors, "{file}");
        let tensor = weights.get(name, &shape).unwrap();
        let mean = tensor.abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(mean > 1e-3 && mean < 1.0, "{file}: {mean}");
    }
}

#[test]
fn both_pytorch_formats_and_safetensors_give_the_same_tensors() {
    assert_sample(&from_bytes(&torch_file::legacy(&sample()), "legacy").unwrap());
    assert_sample(&from_bytes(&torch_file::zip(&sample()), "zip").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.safetensors");
    candle_core::safetensors::save(&sample().into_iter().collect(), &file).unwrap();
    assert_sample(&Weights::read(&file).unwrap());
}

#[test]
fn other_float_types_become_f32_and_counters_are_skipped() {
    let entries = [
        Entry::contiguous("half", "HalfStorage", 0, &[2]),
        Entry::contiguous("bn.num_batches_tracked", "LongStorage", 1, &[]),
        Entry::contiguous("double", "DoubleStorage", 2, &[2]),
    ];
    let half = [0x00, 0x3c, 0x00, 0xc0].to_vec();
    let double = [1.5f64, -8.0].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let zip = torch_file::archive(
        &torch_file::state_dict(&entries, false),
        &[("0".into(), half.clone()), ("1".into(), vec![7; 8]), ("2".into(), double.clone())],
    );
    let tail = [("2".into(), 2, double), ("1".into(), 1, vec![7; 8]), ("0".into(), 2, half)];
    let legacy =
        [torch_file::legacy_head(), torch_file::state_dict(&entries, true), torch_file::legacy_tail(&tail)];
    for bytes in [zip, legacy.concat()] {
        let weights = from_bytes(&bytes, "test.pt").unwrap();
        assert_eq!(weights.names().len(), 2);
        let values = |name| weights.get(name, &[2]).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((values("half"), values("double")), (vec![1.0, -2.0], vec![1.5, -8.0]));
        assert_eq!(weights.get("half", &[2]).unwrap().dtype(), DType::F32);
    }
}

#[test]
fn a_tensor_is_read_from_its_storage_offset() {
    let entry = Entry { elements: 6, offset: 2, ..Entry::contiguous("part", "FloatStorage", 0, &[3]) };
    let content = (0..6u8).flat_map(|v| f32::from(v).to_le_bytes()).collect::<Vec<_>>();
    let bytes = torch_file::archive(&torch_file::state_dict(&[entry], false), &[("0".into(), content)]);
    let weights = from_bytes(&bytes, "test.pt").unwrap();
    assert_eq!(weights.get("part", &[3]).unwrap().to_vec1::<f32>().unwrap(), [2.0, 3.0, 4.0]);
}

#[test]
fn other_files_are_rejected() {
    for bytes in [&b""[..], b"P", b"PK\x03\x04", b"not weights at all", b"\x80\x02", b"{}", &[0xff; 64]] {
        reason(bytes);
    }
    assert!(reason(b"hello, I am a text file").contains("neither"));
}

#[test]
fn truncated_files_are_rejected_at_any_length() {
    for whole in [torch_file::legacy(&sample()), torch_file::zip(&sample())] {
        for end in 0..whole.len() {
            reason(&whole[..end]);
        }
    }
}

#[test]
fn no_corrupt_byte_makes_the_reader_panic() {
    for whole in [torch_file::legacy(&sample()), torch_file::zip(&sample())] {
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff, whole[at] ^ 0x20, b'.', b'(', b't', b'R', 0x8a] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = from_bytes(&damaged, "test.pt");
            }
        }
    }
}

fn zip_of(entry: Entry<'_>, content: &[u8]) -> Vec<u8> {
    torch_file::archive(&torch_file::state_dict(&[entry], false), &[("0".into(), content.to_vec())])
}

#[test]
fn sizes_beyond_the_file_are_rejected_before_allocation() {
    let entry = || Entry::contiguous("w", "FloatStorage", 0, &[2]);
    let huge = usize::try_from(i32::MAX).unwrap();
    // Said to be stored, but not there
    let large = Entry { elements: huge, shape: vec![huge], ..entry() };
    assert!(reason(&zip_of(large, &[0; 8])).contains("instead of"));
    // One element repeated
    let repeated = Entry { elements: 1, shape: vec![huge], strides: vec![0], ..entry() };
    assert!(reason(&zip_of(repeated, &[0; 4])).contains("more than"));
    let overflowing = Entry { elements: 1, shape: vec![huge; 9], strides: vec![0; 9], ..entry() };
    assert!(reason(&zip_of(overflowing, &[0; 4])).contains("more than"));
    let empty = Entry { elements: 1, shape: vec![0, huge, huge, huge], strides: vec![0; 4], ..entry() };
    assert!(reason(&zip_of(empty, &[0; 4])).contains("shape"));
    // Beyond the storage
    let beyond = Entry { offset: 1, ..entry() };
    assert!(reason(&zip_of(beyond, &[0; 8])).contains("beyond"));
    let far = Entry { offset: huge, ..entry() };
    assert!(reason(&zip_of(far, &[0; 8])).contains("beyond"));
    // The same storage taken again and again
    let content = vec![0u8; 4 << 20];
    let names: Vec<_> = (0..300).map(|i| i.to_string()).collect();
    let many: Vec<_> = names.iter().map(|n| Entry::contiguous(n, "FloatStorage", 0, &[1 << 20])).collect();
    let bytes = torch_file::archive(&torch_file::state_dict(&many, false), &[("0".into(), content)]);
    assert!(reason(&bytes).contains("more than"));
}

#[test]
fn strided_tensors_are_made_contiguous() {
    // [[0, 1, 2], [3, 4, 5]], stored column after column
    let turned = Entry { strides: vec![1, 2], ..Entry::contiguous("w", "FloatStorage", 0, &[2, 3]) };
    let content = [0u8, 3, 1, 4, 2, 5].iter().flat_map(|&v| f32::from(v).to_le_bytes()).collect::<Vec<_>>();
    let weights = from_bytes(&zip_of(turned, &content), "test.pt").unwrap();
    let rows = weights.get("w", &[2, 3]).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(rows, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    let beyond = Entry { strides: vec![1, 3], ..Entry::contiguous("w", "FloatStorage", 0, &[2, 3]) };
    assert!(reason(&zip_of(beyond, &content)).contains("beyond"));
    let overflowing =
        Entry { strides: vec![1 << 30, 1 << 30], ..Entry::contiguous("w", "FloatStorage", 0, &[2, 3]) };
    assert!(reason(&zip_of(overflowing, &content)).contains("beyond"));
    let unequal = Entry { strides: vec![1], ..Entry::contiguous("w", "FloatStorage", 0, &[2, 3]) };
    assert!(reason(&zip_of(unequal, &content)).contains("beyond"));
}

#[test]
fn big_endian_files_are_rejected() {
    let mut legacy = torch_file::legacy(&sample());
    let flag = legacy.windows(13).position(|w| w == b"little_endian").unwrap() + 13;
    assert_eq!(legacy[flag], 0x88);
    legacy[flag] = 0x89;
    assert!(reason(&legacy).contains("big-endian"));
}

#[test]
fn a_pickle_that_would_run_code_or_exhaust_memory_is_rejected() {
    let zip = |pickle: &Pickle| torch_file::archive(&pickle.0, &[]);
    // A call that Python would execute is a value like any other here, and no state dict.
    let mut system = Pickle::new();
    system.global("os", "system").text("exit 1").op(0x85).op(b'R').op(b'.');
    assert!(reason(&zip(&system)).contains("an object instead of a state dict"));
    // A text of four gigabytes
    let mut text = Pickle::new();
    text.op(b'X');
    text.0.extend([0xff; 4]);
    assert!(reason(&zip(&text)).contains("ends early"));
    // Lists of lists of lists, each ten of the last: ten to the thirtieth values where they were copied
    let mut nested = Pickle::new();
    nested.op(b']').op(b'q').op(0);
    for _ in 0..30 {
        nested.op(b']').op(b'(');
        (0..10).for_each(|_| {
            nested.op(b'h').op(0);
        });
        nested.op(b'e').op(b'q').op(0);
    }
    nested.op(b'.');
    assert!(reason(&zip(&nested)).contains("a list instead of a state dict"));
    // A tuple in a tuple in a tuple, deeper than any stack
    let mut deep = Pickle::new();
    deep.op(b')');
    deep.0.extend(std::iter::repeat_n(0x85, 1 << 20));
    deep.op(b'.');
    assert!(reason(&zip(&deep)).contains("a list instead of a state dict"));
    // More values than any state dict has
    let mut many = Pickle::new();
    many.0.extend(std::iter::repeat_n(b'N', 5 << 20));
    many.op(b'.');
    assert!(reason(&zip(&many)).contains("values"));
    // An operation that state dicts do not need
    let mut foreign = Pickle::new();
    foreign.op(b'}').op(b'0').op(b'.');
    assert!(reason(&zip(&foreign)).contains("operation 0x30"));
}

#[test]
fn a_converted_pytorch_file_is_mapped_into_memory() {
    let onet = require!("models/onet.pt");
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("onet.safetensors");
    convert(&onet, &to).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left there");
    let (given, mapped) = (read(&onet).unwrap(), Weights::read(&to).unwrap());
    assert_eq!(mapped.names().into_iter().collect::<BTreeSet<_>>(), given.names().into_iter().collect());
    let shape = [128, 64, 2, 2];
    let values = |weights: &Weights| {
        weights.get("conv4.weight", &shape).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(values(&mapped), values(&given));
    assert!(
        matches!(mapped.get("conv4.weight", &[128]), Err(ModelError::TensorShape { found, .. }) if found == shape)
    );
    assert!(matches!(mapped.get("conv9.weight", &shape), Err(ModelError::NoTensor { .. })));

    // Damaged files are refused when they are opened: the header says how long they are.
    let whole = fs::read(&to).unwrap();
    let cut = folder.path().join("cut.safetensors");
    for length in [9, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&cut, &whole[..length]).unwrap();
        assert!(matches!(Weights::read(&cut), Err(ModelError::Malformed { .. })), "{length} bytes");
    }
    let nowhere = folder.path().join("missing/onet.safetensors");
    let error = convert(&onet, &nowhere).unwrap_err();
    assert!(matches!(error, ConvertError::Unwritable { .. }), "{error}");
}

#[test]
fn converted_weights_count_while_whole_and_made_of_the_published_file() {
    let folder = tempfile::tempdir().unwrap();
    let published = folder.path().join("onet.pt");
    fs::copy(require!("models/onet.pt"), &published).unwrap();
    // Readable for everybody, as a server with a user of its own needs it.
    fs::set_permissions(&published, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(converted(&published), None);
    let to = published.with_extension("safetensors");
    convert(&published, &to).unwrap();
    assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(converted(&published).as_ref(), Some(&to));

    // Replaced by a file that is older, as copies that keep times make it.
    let time = published.metadata().unwrap().modified().unwrap();
    let earlier = time - std::time::Duration::from_secs(3600);
    let set_time =
        |file: &Path, time| fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
    set_time(&published, earlier);
    assert_eq!(converted(&published), None);
    set_time(&published, time);
    assert_eq!(converted(&published).as_ref(), Some(&to));

    let whole = fs::read(&to).unwrap();
    fs::write(&to, &whole[..whole.len() / 2]).unwrap();
    set_time(&to, time);
    assert_eq!(converted(&published), None, "cut off");
    convert(&published, &to).unwrap();
    assert_eq!(converted(&published), Some(to));
}

#[test]
fn missing_and_unreadable_files_are_different_errors() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Weights::read(&folder.path().join("none.pt")), Err(ModelError::Missing { .. })));
    assert!(matches!(Weights::read(folder.path()), Err(ModelError::Unreadable { .. })));
    assert!(matches!(read(folder.path()), Err(ConvertError::Unreadable { .. })));
}

#[test]
fn convolutions_of_an_onnx_file_are_found_by_name_and_checked() {
    let file = require!("models/mobilefacenet.onnx");
    let weights = read(&file).unwrap();
    let (weight, bias) =
        (weights.get("conv3.weight", &[128, 512, 1, 1]).unwrap(), weights.get("conv3.bias", &[128]).unwrap());
    assert_eq!((weight.dims(), bias.dims()), (&[128, 512, 1, 1][..], &[128][..]));
    match weights.get("conv4.weight", &[1, 1, 1, 1]) {
        Err(ModelError::NoTensor { name, .. }) => assert_eq!(name, "conv4.weight"),
        other => panic!("{other:?}"),
    }
    match weights.get("conv3.weight", &[512, 128, 1, 1]) {
        Err(ModelError::TensorShape { found, .. }) => assert_eq!(found, [128, 512, 1, 1]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_format_is_recognised_by_content_whatever_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let onnx = fs::read(require!("models/mobilefacenet.onnx")).unwrap();
    let (renamed, shape) = (folder.path().join("mobilefacenet.weights"), [128, 512, 1, 1]);
    fs::write(&renamed, onnx).unwrap();
    assert!(read(&renamed).unwrap().get("conv3.weight", &shape).is_ok());
    for name in ["sample.onnx", "sample.bin", "sample.safetensors"] {
        let file = folder.path().join(name);
        for bytes in [torch_file::legacy(&sample()), torch_file::zip(&sample())] {
            fs::write(&file, bytes).unwrap();
            assert_sample(&read(&file).unwrap());
        }
    }
}

#[test]
fn an_onnx_file_may_have_its_fields_in_any_order() {
    let file = require!("models/mobilefacenet.onnx");
    let mut bytes = fs::read(&file).unwrap();
    // The version of the format, a tag and one byte, comes last.
    bytes.rotate_left(2);
    let folder = tempfile::tempdir().unwrap();
    let turned = folder.path().join("turned.onnx");
    fs::write(&turned, bytes).unwrap();
    read(&turned).unwrap();
    let nameless = folder.path().join("turned");
    fs::rename(&turned, &nameless).unwrap();
    assert!(matches!(read(&nameless), Err(ConvertError::Malformed { .. })));
}

#[test]
fn a_damaged_onnx_file_is_rejected_without_a_panic() {
    let file = require!("models/mobilefacenet.onnx");
    let whole = std::fs::read(file).unwrap();
    assert!(matches!(from_bytes(b"no", "a.onnx"), Err(ConvertError::Malformed { .. })));
    assert!(matches!(from_bytes(b"", "a.onnx"), Err(ConvertError::Malformed { .. })));
    for end in (0..whole.len()).step_by(whole.len() / 50) {
        let _ = from_bytes(&whole[..end], "a.onnx");
    }
    assert!(from_bytes(&whole[..whole.len() / 2], "a.onnx").is_err());
}

#[test]
fn networks_read_no_published_file_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let onnx = fs::read(require!("models/mobilefacenet.onnx")).unwrap();
    let published = [torch_file::legacy(&sample()), torch_file::zip(&sample()), onnx, b"no weights".to_vec()];
    for bytes in published {
        for name in ["pnet.safetensors", "pnet.pt", "mobilefacenet.onnx"] {
            let file = folder.path().join(name);
            fs::write(&file, &bytes).unwrap();
            let error = Weights::read(&file).unwrap_err();
            assert!(matches!(error, ModelError::Malformed { .. }), "{error:?}");
            let text = error.to_string();
            for said in [name, "it is not a safetensors file", "`facepipe models fetch`"] {
                assert!(text.contains(said), "{text}");
            }
        }
    }
}

#[test]
fn a_folder_is_converted_once_into_any_folder() {
    let from = tempfile::tempdir().unwrap();
    assert_eq!(convert_folder(from.path(), from.path()).unwrap().len(), 0);
    assert_eq!(fs::read_dir(&from).unwrap().count(), 0, "nothing is written where there is nothing to do");
    for name in ["pnet.pt", "rnet.pt"] {
        fs::write(from.path().join(name), torch_file::zip(&sample())).unwrap();
    }
    fs::write(from.path().join("onet.pt"), b"damaged").unwrap();
    fs::write(from.path().join("other.pt"), torch_file::zip(&sample())).unwrap();
    let target = tempfile::tempdir().unwrap();
    let to = target.path().join("made");
    let outcomes = || -> Vec<(String, Option<Conversion>)> {
        let files = convert_folder(from.path(), &to).unwrap().into_iter();
        let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
        files.map(|file| (name(&file.safetensors), file.outcome.ok())).collect()
    };
    let expected = |conversion| {
        let file = |name: &str, outcome| (format!("{name}.safetensors"), outcome);
        vec![file("pnet", Some(conversion)), file("rnet", Some(conversion)), file("onet", None)]
    };
    assert_eq!(outcomes(), expected(Conversion::Converted));
    assert_sample(&Weights::read(&to.join("pnet.safetensors")).unwrap());
    assert_eq!(outcomes(), expected(Conversion::AlreadyThere));

    // A folder that needs nothing is not written to.
    fs::remove_file(from.path().join("onet.pt")).unwrap();
    fs::remove_file(to.join(".fetch.lock")).unwrap();
    assert_eq!(outcomes(), expected(Conversion::AlreadyThere)[..2]);
    assert!(!to.join(".fetch.lock").exists());
}

#[test]
fn processes_that_convert_one_folder_at_once_leave_whole_files() {
    let from = tempfile::tempdir().unwrap();
    for name in ["pnet.pt", "rnet.pt", "onet.pt"] {
        fs::write(from.path().join(name), torch_file::zip(&sample())).unwrap();
    }
    let to = tempfile::tempdir().unwrap();
    let converted: usize = std::thread::scope(|scope| {
        let convert = || {
            let files = convert_folder(from.path(), to.path()).unwrap().into_iter();
            files.filter(|file| file.outcome.as_ref().unwrap() == &Conversion::Converted).count()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(convert)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(converted, 3, "each file is converted by one of them");
    assert_sample(&Weights::read(&to.path().join("onet.safetensors")).unwrap());
}
