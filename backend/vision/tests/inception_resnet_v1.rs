//! Inception-ResNet v1 against the reference, with synthetic weights from memory and from files; its crops against
//! facenet-pytorch's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and knows its own numbers"
)]

mod common;
#[path = "../../convert/tests/torch_file/mod.rs"]
mod torch_file;

use std::sync::LazyLock;

use candle_core::Tensor;
use common::{formula_input, formula_weights, numbers};
use facepipe_test_support::fixture;
use facepipe_vision::{
    Backend, BoundingBox, Embedder, Face, InceptionResnetV1, ModelError, weights::Weights,
};
use image::RgbImage;
use serde_json::Value;

static FIXTURE: LazyLock<Value> = LazyLock::new(|| fixture("inception_resnet_v1.json"));
static WEIGHTS: LazyLock<Vec<(String, Tensor)>> = LazyLock::new(|| formula_weights(&FIXTURE["state_dict"]));

fn load(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<InceptionResnetV1, ModelError> {
    InceptionResnetV1::new(&Weights::from_tensors(tensors, "formula").unwrap(), &Backend::Cpu)
}

fn network() -> InceptionResnetV1 {
    load(WEIGHTS.clone()).unwrap()
}

fn input() -> Tensor {
    formula_input("input", &[2, 3, 160, 160])
}

fn assert_embeddings(embeddings: &[Vec<f32>]) {
    let expected = FIXTURE["embedding"].as_array().unwrap();
    assert_eq!(embeddings.len(), expected.len());
    for (embedding, expected) in embeddings.iter().zip(expected) {
        let expected = numbers(expected);
        assert_eq!(embedding.len(), expected.len());
        let worst =
            embedding.iter().zip(&expected).map(|(o, t)| (f64::from(*o) - t).abs()).fold(0.0, f64::max);
        println!("worst error {worst:.2e}");
        assert!(worst <= 1e-4, "{worst}");
    }
}

#[test]
fn embeddings_and_stages_match_the_reference() {
    let mut seen = Vec::new();
    let embeddings = network()
        .forward_observed(&input(), &mut |name, x| {
            let x = if x.rank() == 4 { x.permute((0, 3, 1, 2)).unwrap() } else { x.clone() };
            let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            seen.push((name.to_owned(), x.dims().to_vec(), values));
        })
        .unwrap();
    assert_embeddings(&embeddings);
    let stages = FIXTURE["stages"].as_object().unwrap();
    assert_eq!(seen.len(), stages.len());
    for (name, mut shape, values) in seen {
        let expected = &stages[&name];
        if name == "avgpool_1a" {
            shape.extend([1, 1]);
        }
        assert_eq!(
            shape,
            numbers(&expected["shape"]).iter().map(|d| *d as usize).collect::<Vec<_>>(),
            "{name}"
        );
        let count = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
        let deviation = (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count).sqrt();
        let tolerance = 1e-4 * expected["std"].as_f64().unwrap().max(1.0);
        for (what, got, want) in [("mean", mean, &expected["mean"]), ("std", deviation, &expected["std"])] {
            assert!(
                (got - want.as_f64().unwrap()).abs() <= tolerance,
                "{name}: {what} {got} instead of {want}"
            );
        }
        for (got, want) in values.iter().zip(numbers(&expected["first"])) {
            assert!((f64::from(*got) - want).abs() <= tolerance, "{name}: {got} instead of {want}");
        }
    }
}

#[test]
fn a_safetensors_file_gives_the_same_embeddings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    candle_core::safetensors::save(&WEIGHTS.iter().cloned().collect(), &file).unwrap();
    assert_embeddings(&InceptionResnetV1::load(&file).unwrap().forward(&input()).unwrap());
}

#[test]
fn both_pytorch_formats_give_the_same_embeddings_and_the_classifier_is_ignored() {
    let mut tensors = WEIGHTS.clone();
    tensors.push(("logits.weight".to_owned(), formula_input("logits.weight", &[10, 512])));
    tensors.push(("logits.bias".to_owned(), formula_input("logits.bias", &[10])));
    for bytes in [torch_file::legacy(&tensors), torch_file::zip(&tensors)] {
        let folder = tempfile::tempdir().unwrap();
        let published = folder.path().join("20180402-114759-vggface2.pt");
        std::fs::write(&published, bytes).unwrap();
        let file = published.with_extension("safetensors");
        facepipe_convert::convert(&published, &file).unwrap();
        assert_embeddings(&InceptionResnetV1::load(&file).unwrap().forward(&input()).unwrap());
    }
}

#[test]
fn candle_gives_the_same_embeddings_and_stages() {
    let weights = Weights::from_tensors(WEIGHTS.clone(), "formula").unwrap();
    let network = InceptionResnetV1::new(&weights, &Backend::Candle(candle_core::Device::Cpu)).unwrap();
    let mut stages = 0;
    assert_embeddings(&network.forward_observed(&input(), &mut |_, _| stages += 1).unwrap());
    assert_eq!(stages, FIXTURE["stages"].as_object().unwrap().len());
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let without = WEIGHTS.iter().filter(|(name, _)| name != "repeat_2.3.branch1.1.bn.running_var").cloned();
    match load(without) {
        Err(ModelError::NoTensor { name, .. }) => assert_eq!(name, "repeat_2.3.branch1.1.bn.running_var"),
        other => panic!("{other:?}"),
    }
    let turned = WEIGHTS.iter().map(|(name, tensor)| match name.as_str() {
        "last_linear.weight" => (name.clone(), tensor.t().unwrap()),
        _ => (name.clone(), tensor.clone()),
    });
    match load(turned) {
        Err(ModelError::TensorShape { name, expected, found, .. }) => {
            assert_eq!(
                (name.as_str(), expected, found),
                ("last_linear.weight", vec![512, 1792], vec![1792, 512])
            );
        }
        other => panic!("{other:?}"),
    }
}

fn face(left: f32, top: f32, right: f32, bottom: f32) -> Face {
    Face { bounding_box: BoundingBox { left, top, right, bottom }, confidence: 1.0, landmarks: [[0.0; 2]; 5] }
}

#[test]
fn crops_are_normalised_as_in_facenet() {
    let network = network();
    let crop = RgbImage::from_fn(160, 160, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let values = crop.pixels().flat_map(|p| p.0).map(|v| (f32::from(v) - 127.5) / 128.0).collect::<Vec<_>>();
    let input = Tensor::from_vec(values, (1, 160, 160, 3), &candle_core::Device::Cpu).unwrap();
    let expected = network.forward(&input.permute((0, 3, 1, 2)).unwrap()).unwrap();
    let got = network.embed(std::slice::from_ref(&crop)).unwrap();
    let worst = got[0].iter().zip(&expected[0]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn a_face_beyond_the_image_or_without_area_still_gives_a_crop() {
    let network = network();
    let image = RgbImage::from_pixel(40, 30, image::Rgb([9, 8, 7]));
    for face in [
        face(-10.0, -10.0, 20.0, 20.0),
        face(30.0, 20.0, 80.0, 90.0),
        face(10.0, 10.0, 10.0, 10.0),
        face(500.0, 500.0, 600.0, 600.0),
        face(f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 5.0),
    ] {
        let crop = network.crop(&image, &face);
        assert_eq!(crop.dimensions(), (160, 160));
        assert!(crop.pixels().all(|p| p.0 == [9, 8, 7]), "{face:?}");
    }
}

/// Returns a picture of which every pixel differs from its neighbours: `[7x + 3y, x² + y, x xor y]` of its place in a 97x71
/// tile.
fn pattern(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x % 97, y % 71);
        image::Rgb([(x * 7 + y * 3) as u8, (x * x + y) as u8, (x ^ y) as u8])
    })
}

#[test]
fn crops_match_facenet_pytorch() {
    // Pillow 13: Image.crop(box).resize((160, 160), BILINEAR) of the same pictures, at seven places.
    let places = [(0, 0), (159, 0), (80, 17), (80, 80), (43, 111), (0, 159), (159, 159)];
    let network = network();
    for (image, bounding_box, expected) in [
        (
            pattern(97, 71),
            face(3.9, 5.2, 90.7, 66.1),
            [
                [36, 14, 6],
                [126, 246, 92],
                [102, 104, 36],
                [174, 128, 12],
                [68, 180, 53],
                [216, 74, 66],
                [50, 50, 24],
            ],
        ),
        (
            pattern(97, 71),
            face(10.0, 8.0, 31.9, 40.9),
            [
                [94, 108, 2],
                [234, 140, 22],
                [173, 158, 31],
                [211, 171, 8],
                [195, 208, 16],
                [187, 139, 45],
                [71, 171, 57],
            ],
        ),
        (
            pattern(582, 426),
            face(3.0, 5.0, 560.0, 400.0),
            [
                [50, 28, 2],
                [29, 138, 75],
                [160, 117, 110],
                [37, 130, 102],
                [87, 153, 121],
                [161, 65, 44],
                [124, 175, 101],
            ],
        ),
    ] {
        let crop = network.crop(&image, &bounding_box);
        for ((x, y), expected) in places.into_iter().zip(expected) {
            let found = crop.get_pixel(x, y).0;
            let worst = found.iter().zip(expected).map(|(f, e)| f.abs_diff(e)).max().unwrap();
            assert!(worst <= 1, "{found:?} at {x}, {y} instead of {expected:?}");
        }
    }
}
