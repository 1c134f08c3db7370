//! How long a training takes and how much memory: `cargo bench -p facepipe-identify --bench training -- DATA SOLVER`.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]
use std::time::Instant;
use facepipe_identify::{Model, Sample, Solver, TrainOptions};

fn read(path: &str, dims: usize, per: usize) -> Vec<Sample> {
    let bytes = std::fs::read(path).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
    values.chunks(dims).enumerate().map(|(i, v)| Sample { label: format!("{:05}", i / per), embedding: v.to_vec() }).collect()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let dims: usize = args[1].parse().unwrap();
    let photos: usize = args[2].parse().unwrap();
    let held: usize = args[3].parse().unwrap();
    let samples = read(&format!("{}.train", args[0]), dims, photos);
    let test = read(&format!("{}.test", args[0]), dims, held);
    let solver = if args.get(4).is_some_and(|a| a == "smo") { Solver::Smo } else { Solver::DualCoordinateDescent };
    let options = TrainOptions { solver, ..TrainOptions::default() };
    let start = Instant::now();
    let model = Model::train("e", &samples, &options).unwrap();
    let took = start.elapsed();
    let mut right = 0; let mut loss = 0.0; let mut conf = 0.0;
    for s in &test {
        let a = model.identify(&s.embedding, 0.3).unwrap();
        right += usize::from(a.top.as_ref().unwrap().label == s.label);
        conf += a.all[0].confidence;
        loss -= f64::from(a.all.iter().find(|p| p.label == s.label).unwrap().confidence.max(1e-9)).ln();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{took:?} accuracy {} log loss {} conf {} bytes {} {}", right as f64 / test.len() as f64, loss / test.len() as f64, conf / test.len() as f32, model.to_bytes().len(),
        status.lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
