//! How fast unknown faces are clustered one after the other, and with how much memory.
//!
//! `cargo bench -p facepipe-identify --bench clusters -- [FACES [PEOPLE [DIMENSIONS]]]` clusters that many faces of that many
//! people, 100,000 of 100,000 with 128 components by default, on one thread, and prints one line of JSON: the seconds, faces per
//! second in all and over the last tenth, clusters, and how much the process' peak of memory grew.
//!
//! The embeddings are as in the benchmark `training`: a direction per person, and one for each face that is as long.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot run says why and ends"
)]

use std::time::Instant;

use facepipe_identify::Clusters;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// Faces that a server reads together.
const CHUNK: usize = 256;
/// Length of the difference between two faces of a person, relative to the person's vector: a cosine of about 0.65
/// between them.
const NOISE: f32 = 0.73;

fn direction(random: &mut ChaCha8Rng, dimensions: usize) -> Vec<f32> {
    let raw: Vec<f32> =
        (0..dimensions).map(|_| (0..4).map(|_| random.random_range(-1.0_f32..1.0)).sum()).collect();
    let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
    raw.into_iter().map(|value| value / length).collect()
}

/// Returns the peak of this process' resident memory, bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

fn main() {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let get = |at: usize, default: usize| given.get(at).copied().unwrap_or(default);
    let (faces, dimensions) = (get(0, 100_000), get(2, 128));
    let people = get(1, faces);
    let mut random = ChaCha8Rng::seed_from_u64(37);
    let centres: Vec<Vec<f32>> = (0..people).map(|_| direction(&mut random, dimensions)).collect();
    let before = peak();
    let mut clusters = Clusters::new(dimensions, 0.5).expect("a distance within its limits");
    let (mut last, mut done, mut spent, mut last_tenth) = (0, 0, 0.0, (0, 0.0));
    while done < faces {
        let chunk: Vec<Vec<f32>> = (done..faces.min(done + CHUNK))
            .map(|face| {
                // Everybody comes once before anybody comes again.
                let noise = direction(&mut random, dimensions);
                centres[face % people].iter().zip(noise).map(|(own, other)| own + NOISE * other).collect()
            })
            .collect();
        let begun = Instant::now();
        clusters
            .assign(&chunk, || {
                last += 1;
                last
            })
            .expect("embeddings");
        let took = begun.elapsed().as_secs_f64();
        done += chunk.len();
        spent += took;
        if done > faces / 10 * 9 {
            last_tenth = (last_tenth.0 + chunk.len(), last_tenth.1 + took);
        }
    }
    println!(
        "{{\"faces\": {faces}, \"people\": {people}, \"dimensions\": {dimensions}, \"clusters\": {}, \"seconds\": \
         {spent:.2}, \"faces_per_second\": {:.0}, \"faces_per_second_at_the_end\": {:.0}, \"memory_bytes\": {}}}",
        clusters.len(),
        faces as f64 / spent,
        last_tenth.0 as f64 / last_tenth.1,
        peak().saturating_sub(before)
    );
}
