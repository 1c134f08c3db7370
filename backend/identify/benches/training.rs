//! How long a training takes, how good it is on samples that it has not seen, and how much memory it needs.
//!
//! `cargo bench -p facepipe-identify --bench training -- PEOPLE PHOTOGRAPHS [OPTION...]` prints one line of JSON.
//!
//! * `--method automatic|nearest-mean`: what ranks, `linear-svm` if not told;
//! * `--solver smo|dual-coordinate-descent`: of the SVM, else whichever a training would take;
//! * `--runs N`: trains so many times and gives the shortest, 1 if not told;
//! * `--newcomer`: then adds one person with 12 photographs to the model;
//! * `--write FOLDER`: writes the samples for others to train on, `train.f32` and `test.f32`, `[people, photographs,
//!   512]`, and trains nothing;
//! * `--search SECONDS`: searches among so many people with one photograph each for so long, ranked by the nearest mean, and
//!   prints the searches per second;
//! * `--worker`: says `ready`, then trains once for each line that it reads, and answers with the seconds.
//!
//! The embeddings are clusters on the unit sphere of 512 dimensions with a cosine of 0.5 within a person on average.
//! As those of faces, they do not fill all dimensions alike: the variance of component i falls as i^-1.5, so that
//! people come near enough to each other for some to be mistaken.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run says why and ends")]

use std::{
    fs, io,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use facepipe_identify::{Method, Model, Sample, Solver, TrainOptions};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

const DIMENSIONS: usize = 512;
const HELD_OUT: usize = 2;
const NEWCOMERS_PHOTOGRAPHS: usize = 12;
const THRESHOLD: f32 = 0.3;

/// Length of the difference between two photographs of a person, relative to the person's vector.
const NOISE: f32 = 1.0;

struct Arguments {
    people: usize,
    photographs: usize,
    method: Method,
    solver: Solver,
    runs: usize,
    newcomer: bool,
    worker: bool,
    write: Option<String>,
    search: Option<f64>,
}

fn arguments() -> Arguments {
    let mut given = Arguments {
        people: 100,
        photographs: 10,
        method: Method::LinearSvm,
        solver: Solver::Automatic,
        runs: 1,
        newcomer: false,
        worker: false,
        write: None,
        search: None,
    };
    let mut numbers = Vec::new();
    let mut rest = std::env::args().skip(1);
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().expect("the option needs a value");
        match argument.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--worker" => given.worker = true,
            "--newcomer" => given.newcomer = true,
            "--write" => given.write = Some(value()),
            "--search" => given.search = Some(value().parse().expect("--search takes seconds")),
            "--runs" => given.runs = value().parse().expect("--runs takes a number"),
            "--method" => {
                given.method =
                    serde_json::from_value(value().into()).expect("--method takes the name of a method");
            }
            "--solver" => {
                given.solver =
                    serde_json::from_value(value().into()).expect("--solver takes the name of a solver");
            }
            number => numbers.push(number.parse().expect("PEOPLE and PHOTOGRAPHS are numbers")),
        }
    }
    if let [people, photographs] = numbers.as_slice() {
        (given.people, given.photographs) = (*people, *photographs);
    }
    given
}

/// Clusters of samples, one a person, from a seed.
struct People {
    random: ChaCha8Rng,
    deviations: Vec<f32>,
}

impl People {
    fn new() -> Self {
        let variances = (1..=DIMENSIONS).map(|i| (i as f32).powf(-1.5));
        let all: f32 = variances.clone().sum();
        Self {
            random: ChaCha8Rng::seed_from_u64(7),
            deviations: variances.map(|variance| (variance / all).sqrt()).collect(),
        }
    }

    /// Returns one normal number for each component (Box and Muller, 1958).
    fn vector(&mut self) -> Vec<f32> {
        let random = &mut self.random;
        self.deviations
            .iter()
            .map(|deviation| {
                let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
                deviation * radius * (std::f32::consts::TAU * random.random::<f32>()).cos()
            })
            .collect()
    }

    /// Returns the embeddings of one person, L2-normalised, `[photographs][512]`.
    fn person(&mut self, photographs: usize) -> Vec<Vec<f32>> {
        let centre = self.vector();
        let mut photograph = || {
            let sum: Vec<f32> = centre.iter().zip(self.vector()).map(|(c, n)| c + NOISE * n).collect();
            let length = sum.iter().map(|v| v * v).sum::<f32>().sqrt();
            sum.into_iter().map(|v| v / length).collect()
        };
        (0..photographs).map(|_| photograph()).collect()
    }
}

fn label(person: usize, embeddings: Vec<Vec<f32>>) -> impl Iterator<Item = Sample> {
    embeddings.into_iter().map(move |embedding| Sample { label: format!("{person:06}"), embedding })
}

fn main() {
    let arguments = arguments();
    if let Some(seconds) = arguments.search {
        search(arguments.people, Duration::from_secs_f64(seconds));
        return;
    }
    let mut people = People::new();
    let (mut samples, mut unseen) = (Vec::new(), Vec::new());
    for person in 0..arguments.people {
        let mut embeddings = people.person(arguments.photographs + HELD_OUT);
        unseen.extend(label(person, embeddings.split_off(arguments.photographs)));
        samples.extend(label(person, embeddings));
    }
    if let Some(folder) = &arguments.write {
        for (file, samples) in [("train.f32", &samples), ("test.f32", &unseen)] {
            let bytes: Vec<u8> =
                samples.iter().flat_map(|s| &s.embedding).flat_map(|v| v.to_le_bytes()).collect();
            fs::write(Path::new(folder).join(file), bytes).expect("the folder can be written");
        }
        return;
    }

    let options =
        TrainOptions { method: arguments.method, solver: arguments.solver, ..TrainOptions::default() };
    if arguments.worker {
        println!("ready");
        for _ in io::stdin().lines() {
            let started = Instant::now();
            Model::train("benchmark", &samples, &options).expect("it can be trained on");
            println!("{}", started.elapsed().as_secs_f64());
        }
        return;
    }
    let mut shortest = Duration::MAX;
    let mut trained = None;
    for _ in 0..arguments.runs {
        let started = Instant::now();
        trained = Some(Model::train("benchmark", &samples, &options).expect("it can be trained on"));
        shortest = shortest.min(started.elapsed());
    }
    let model = trained.expect("there is a run");
    let peak = peak_rss_mb();

    let newcomer = arguments.newcomer.then(|| {
        samples.extend(label(arguments.people, people.person(NEWCOMERS_PHOTOGRAPHS)));
        let mut shortest = Duration::MAX;
        for _ in 0..arguments.runs {
            let started = Instant::now();
            model
                .retrain("benchmark", &samples, &options, &|_| ControlFlow::Continue(()))
                .expect("it can be trained on");
            shortest = shortest.min(started.elapsed());
        }
        shortest.as_secs_f64()
    });

    let (mut right, mut loss) = (0.0, 0.0);
    for Sample { label, embedding } in &unseen {
        let answer = model.identify(embedding, THRESHOLD, usize::MAX).expect("an answer");
        right += f64::from(u8::from(answer.top.is_some_and(|top| top.label == *label)));
        let confidence = answer.all.iter().find(|p| p.label == *label).map_or(0.0, |p| p.confidence);
        loss -= f64::from(confidence.max(1e-9)).ln();
    }
    let line = serde_json::json!({
        "people": arguments.people,
        "photographs": arguments.photographs,
        "classifier": format!("{:?}", model.classifier()),
        "seconds": shortest.as_secs_f64(),
        "newcomer_seconds": newcomer,
        "accuracy": right / unseen.len() as f64,
        "log_loss": loss / unseen.len() as f64,
        "model_bytes": model.to_bytes().len(),
        "peak_rss_mb": peak,
    });
    println!("{line}");
}

/// Searches for one person after the other for so long.
fn search(count: usize, long: Duration) {
    let mut people = People::new();
    let samples: Vec<Sample> = (0..count).flat_map(|person| label(person, people.person(1))).collect();
    let options = TrainOptions { method: Method::NearestMean, ..TrainOptions::default() };
    let model = Model::train("benchmark", &samples, &options).expect("it can be trained on");
    let begun = Instant::now();
    let (mut searches, mut found) = (0_u32, 0_u32);
    for Sample { label, embedding } in samples.iter().cycle() {
        let answer = model.identify(embedding, THRESHOLD, 5).expect("an answer");
        found += u32::from(answer.top.is_some_and(|top| top.label == *label));
        searches += 1;
        if begun.elapsed() >= long {
            break;
        }
    }
    assert_eq!(found, searches, "everybody is found by their own mean");
    let line = serde_json::json!({
        "people": count,
        "searches_per_second": f64::from(searches) / begun.elapsed().as_secs_f64(),
        "peak_rss_mb": peak_rss_mb(),
    });
    println!("{line}");
}

/// Returns the peak of this process' resident memory, megabytes; none where the system does not report it.
fn peak_rss_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0 / 1e6)
}
