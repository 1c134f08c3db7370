//! How long an identification takes in a large gallery on one core, how much memory it needs, and how long one more
//! person takes.
//!
//! `cargo bench -p facepipe-identify --bench gallery -- PEOPLE DIMENSIONS [PHOTOGRAPHS]` prints one line of JSON. People are
//! random directions, with a cosine of 0.6 between two photographs of somebody on average; half of the searches are for people
//! who are enrolled, half for others. All searches give the five best.
//!
//! * `identify_ms`: median of the searches;
//! * `memory`: what the model holds in memory, in units of the mean embeddings' size in singles;
//! * `train_seconds`, `newcomer_seconds`: of all people, and of one more in the trained model, from samples in memory to a
//!   model in memory;
//! * `to_bytes_seconds`, `from_bytes_seconds`: of the stored form;
//! * `thousand_nearest_seconds`: the nearest people of 1,000 embeddings in one pass, on all cores.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run says why and ends")]

use std::{
    fs,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use facepipe_identify::{Method, Model, Sample, TrainOptions};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

const SEARCHES: usize = 200;

/// Length of the difference between two photographs of a person, relative to the person's vector.
const NOISE: f32 = 0.8;

struct People {
    random: ChaCha8Rng,
    dimensions: usize,
}

impl People {
    /// Returns a random vector; each component is a sum of uniform numbers, approximately normal.
    fn direction(&mut self) -> Vec<f32> {
        (0..self.dimensions).map(|_| (0..4).map(|_| self.random.random::<f32>() - 0.5).sum()).collect()
    }

    fn photograph(&mut self, of: &[f32]) -> Vec<f32> {
        of.iter().zip(self.direction()).map(|(person, noise)| person + NOISE * noise).collect()
    }
}

fn label(person: usize) -> String {
    format!("{person:07}")
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (count, dimensions, photographs) = match *numbers.as_slice() {
        [people, dimensions, photographs] => (people, dimensions, photographs),
        [people, dimensions] => (people, dimensions, 1),
        _ => (10_000, 512, 1),
    };
    let mut people = People { random: ChaCha8Rng::seed_from_u64(7), dimensions };
    let (mut samples, mut probes) = (Vec::with_capacity(count * photographs + 1), Vec::new());
    for person in 0..count {
        let direction = people.direction();
        for _ in 0..photographs {
            samples.push(Sample { label: label(person), embedding: people.photograph(&direction) });
        }
        if person % (count / (SEARCHES / 2)).max(1) == 0 {
            probes.push((Some(label(person)), people.photograph(&direction)));
            let stranger = people.direction();
            probes.push((None, stranger));
        }
    }
    let options = TrainOptions { method: Method::NearestMean, ..TrainOptions::default() };
    let seconds = |begun: Instant| begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let model = Model::train("benchmark", &samples, &options).expect("it can be trained on");
    let train_seconds = seconds(begun);
    let newcomer = people.direction();
    samples.push(Sample { label: label(count), embedding: newcomer });
    let begun = Instant::now();
    let model = model
        .retrain("benchmark", &samples, &options, &|_| ControlFlow::Continue(()))
        .expect("it can be trained on");
    let newcomer_seconds = seconds(begun);
    drop(samples);
    let begun = Instant::now();
    let bytes = model.to_bytes();
    let to_bytes_seconds = seconds(begun);
    drop(model);

    let before = resident_bytes();
    let begun = Instant::now();
    let model = Model::from_bytes(&bytes).expect("it is a model");
    let from_bytes_seconds = seconds(begun);
    let memory = before.zip(resident_bytes()).map(|(before, after)| {
        after.saturating_sub(before) as f64 / (model.labels().len() * dimensions * size_of::<f32>()) as f64
    });

    let (mut times, mut right, mut enrolled) = (Vec::new(), 0, 0);
    for (person, probe) in &probes {
        let begun = Instant::now();
        let answer = model.identify(probe, 0.3, 5).expect("an answer");
        times.push(begun.elapsed());
        assert_eq!(answer.all.len(), 5.min(model.labels().len()), "the five best are listed");
        if let Some(person) = person {
            enrolled += 1;
            right += u32::from(answer.top.is_some_and(|top| top.label == *person));
        }
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or(Duration::MAX);

    let thousand: Vec<Vec<f32>> = (0..1000).map(|_| people.direction()).collect();
    let thousand: Vec<&[f32]> = thousand.iter().map(Vec::as_slice).collect();
    let begun = Instant::now();
    assert_eq!(model.nearest(&thousand, &[]).expect("right embeddings").len(), 1000, "each has an answer");
    let line = serde_json::json!({
        "people": model.labels().len(),
        "dimensions": dimensions,
        "photographs": photographs,
        "classifier": format!("{:?}", model.classifier()),
        "identify_ms": median.as_secs_f64() * 1e3,
        "identify_shortest_ms": times.first().map(|time| time.as_secs_f64() * 1e3),
        "rank1": f64::from(right) / f64::from(enrolled),
        "memory": memory,
        "train_seconds": train_seconds,
        "newcomer_seconds": newcomer_seconds,
        "model_bytes": bytes.len(),
        "to_bytes_seconds": to_bytes_seconds,
        "from_bytes_seconds": from_bytes_seconds,
        "thousand_nearest_seconds": seconds(begun),
    });
    println!("{line}");
}

/// Returns this process' resident memory, bytes; none where the system does not report it.
fn resident_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}
