//! One workload of ours in a process of its own, for `benches/compare`, which runs it in turn with the peer's.
//!
//! `worker inception BATCH THREADS | mobilefacenet BATCH THREADS | dlib BATCH THREADS | mtcnn photo|scenes|crop|filling THREADS FILE...`
//!
//! Says `ready`, then for each line that it reads, does the work once and answers with the milliseconds.

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

use std::{
    env,
    hint::black_box,
    io::{BufRead, Write, stdin, stdout},
    path::PathBuf,
    time::Instant,
};

use common::{formula_input, formula_weights, picture};
use facepipe_test_support::{fixture, models_dir};
use facepipe_vision::{
    Backend, DlibResnet, Embedder, EmbedderKind, InceptionResnetV1, MobileFaceNet, Mtcnn, MtcnnConfig,
    weights::Weights, with_intra_op_parallelism,
};
use image::{RgbImage, imageops};

/// Returns the work, and how many units it is.
fn workload(arguments: &[String]) -> (Box<dyn Fn() + Send + Sync>, f64) {
    let batch = || arguments[1].parse::<usize>().unwrap();
    match arguments[0].as_str() {
        "inception" => {
            let weights = formula_weights(&fixture("inception_resnet_v1.json")["state_dict"]);
            let network =
                InceptionResnetV1::new(&Weights::from_tensors(weights, "formula").unwrap(), &Backend::Cpu)
                    .unwrap();
            let input = formula_input("input", &[batch(), 3, 160, 160]);
            (Box::new(move || drop(black_box(network.forward(&input).unwrap()))), 1.0)
        }
        "mobilefacenet" => {
            let network =
                MobileFaceNet::load(&EmbedderKind::MobileFaceNet.weights_file(&models_dir())).unwrap();
            let input = formula_input("input", &[batch(), 3, 112, 112]);
            (Box::new(move || drop(black_box(network.forward(&input).unwrap()))), 1.0)
        }
        "dlib" => {
            let network = DlibResnet::load(&EmbedderKind::DlibResnet.weights_file(&models_dir())).unwrap();
            let crops = vec![RgbImage::new(DlibResnet::SIDE, DlibResnet::SIDE); batch()];
            (Box::new(move || drop(black_box(network.embed(&crops).unwrap()))), 1.0)
        }
        "mtcnn" => {
            let mtcnn = Mtcnn::load(&models_dir(), MtcnnConfig::default()).unwrap();
            let middle = |side: u32| (side - 150) / 2;
            let pictures = arguments[3..].iter().map(|file| {
                let whole = picture(&PathBuf::from(file));
                if !matches!(arguments[1].as_str(), "crop" | "filling") {
                    return whole;
                }
                let (width, height) = whole.dimensions();
                imageops::crop_imm(&whole, middle(width), middle(height), 150, 150).to_image()
            });
            let pictures = pictures.collect::<Vec<_>>();
            let units = pictures.len() as f64;
            let filling = arguments[1] == "filling";
            let detect = move |p: &RgbImage| {
                if filling { mtcnn.detect_in_crop(p).unwrap() } else { mtcnn.detect(p).unwrap() }
            };
            (Box::new(move || pictures.iter().for_each(|p| drop(black_box(detect(p))))), units)
        }
        other => panic!("there is no workload {other}"),
    }
}

fn main() {
    // Cargo itself says `--bench`.
    let arguments = env::args().skip(1).filter(|a| a != "--bench").collect::<Vec<_>>();
    if arguments.is_empty() {
        println!("This is run by benches/compare.");
        return;
    }
    rayon::ThreadPoolBuilder::new().num_threads(arguments[2].parse().unwrap()).build_global().unwrap();
    let (run, units) = workload(&arguments);
    // As a server does for a picture that comes alone.
    let run = || with_intra_op_parallelism(&run);
    run();
    println!("ready");
    for _ in stdin().lock().lines() {
        let start = Instant::now();
        run();
        println!("{}", start.elapsed().as_secs_f64() * 1e3 / units);
        stdout().flush().unwrap();
    }
}
