//! How long the networks and their parts take: convolutions as Inception-ResNet v1 has them, whole networks, and MTCNN
//! on pictures of several sizes.
//!
//! `cargo bench -p facepipe-vision --bench networks`. Weights come from `facepipe models fetch`; those of
//! Inception-ResNet v1 are made by formula, which makes no difference to the time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark fails by panicking, and knows its own numbers"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::{formula_input, formula_weights, picture};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use facepipe_test_support::{find, fixture, models_dir};
use facepipe_vision::{
    Backend, DlibResnet, Embedder, EmbedderKind, InceptionResnetV1, MobileFaceNet, Mtcnn, MtcnnConfig,
    weights::Weights,
};
use image::{Rgb, RgbImage, imageops};

fn embedders(criterion: &mut Criterion) {
    let weights = formula_weights(&fixture("inception_resnet_v1.json")["state_dict"]);
    let network =
        InceptionResnetV1::new(&Weights::from_tensors(weights, "formula").unwrap(), &Backend::Cpu).unwrap();
    let mut group = criterion.benchmark_group("inception-resnet-v1");
    group.sample_size(20);
    for batch in [1, 8] {
        let input = formula_input("input", &[batch, 3, 160, 160]);
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter(|| black_box(network.forward(black_box(&input)).unwrap()));
        });
    }
    group.finish();

    let file = EmbedderKind::MobileFaceNet.weights_file(&models_dir());
    let Ok(network) = MobileFaceNet::load(&file) else {
        println!("no {}", file.display());
        return;
    };
    let mut group = criterion.benchmark_group("mobilefacenet");
    for batch in [1, 8] {
        let input = formula_input("input", &[batch, 3, 112, 112]);
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter(|| black_box(network.forward(black_box(&input)).unwrap()));
        });
    }
    group.finish();

    let file = EmbedderKind::DlibResnet.weights_file(&models_dir());
    let Ok(network) = DlibResnet::load(&file) else {
        println!("no {}", file.display());
        return;
    };
    let mut group = criterion.benchmark_group("dlib-resnet");
    for batch in [1, 8] {
        let crops = vec![RgbImage::from_fn(150, 150, |x, y| Rgb([x, y, x ^ y].map(|v| v as u8))); batch];
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter(|| black_box(network.embed(black_box(&crops)).unwrap()));
        });
    }
}

fn detector(criterion: &mut Criterion) {
    let (Ok(mtcnn), Some(file)) =
        (Mtcnn::load(&models_dir(), MtcnnConfig::default()), find("scenes/multiface.jpg"))
    else {
        println!("no weights of MTCNN, or no scenes/multiface.jpg");
        return;
    };
    let scene = picture(&file);
    let mut group = criterion.benchmark_group("mtcnn");
    group.sample_size(20);
    for side in [150, 250, 500] {
        let part = imageops::resize(&scene, side, side, imageops::FilterType::Triangle);
        group.bench_function(BenchmarkId::from_parameter(side), |bencher| {
            bencher.iter(|| black_box(mtcnn.detect(black_box(&part)).unwrap()));
        });
    }
    group.bench_function("scene", |bencher| {
        bencher.iter(|| black_box(mtcnn.detect(black_box(&scene)).unwrap()));
    });
}

criterion_group!(benches, embedders, detector);
criterion_main!(benches);
