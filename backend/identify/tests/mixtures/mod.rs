//! Galleries of people with different numbers of photographs, of the ones that the networks embed here and now: who can be
//! told by the person's own photograph is named, however many photographs the others have.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex},
    thread,
};

use facepipe_identify::{Decision, Model, Sample, TrainOptions};
use facepipe_vision::{
    DecodeLimits, EmbedderKind, Face, Mtcnn, MtcnnConfig, decode_image, load_embedder,
    without_intra_op_parallelism,
};
use rand::seq::SliceRandom;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::common::{THRESHOLD, sample};

/// From this cosine between two photographs on, `verify` takes them for one person's.
const VERIFICATION_THRESHOLD: f32 = 0.35;

/// Strangers that are asked for; the others of them are enrolled, with one photograph each.
const IMPOSTORS: usize = 300;

type Photographs = Vec<Vec<f32>>;

/// Embeddings of the face in the middle of each photograph.
struct Faces {
    /// Everybody with several photographs.
    people: Vec<Photographs>,
    /// Everybody with one.
    strangers: Photographs,
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Computes the embeddings of the faces in the middle of pictures, in their order.
fn embed(pictures: &[PathBuf], models: &Path) -> Vec<Option<Vec<f32>>> {
    let mtcnn = Mtcnn::load(models, MtcnnConfig::default()).expect("the detector loads");
    let embedder = load_embedder(EmbedderKind::MobileFaceNet, models).expect("the embedder loads");
    let one = |picture: &Path| {
        let image =
            decode_image(&fs::read(picture).expect("a file"), &DecodeLimits::default()).expect("a picture");
        // The person that a photograph of Labeled Faces in the Wild is named for is in its middle.
        let off = |face: &Face| {
            let b = face.bounding_box;
            (b.left + b.right - image.width() as f32).hypot(b.top + b.bottom - image.height() as f32)
        };
        let faces = mtcnn.detect_in_crop(&image).expect("faces");
        let face = faces.iter().min_by(|a, b| off(a).total_cmp(&off(b)))?;
        embedder.embed(&[embedder.crop(&image, face)]).expect("an embedding").pop()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(8);
    let (waiting, done) = (Mutex::new(pictures.iter().enumerate()), Mutex::new(vec![None; pictures.len()]));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                without_intra_op_parallelism(|| {
                    loop {
                        let next = waiting.lock().expect("nobody panicked").next();
                        let Some((index, picture)) = next else { break };
                        let embedding = one(picture);
                        done.lock().expect("nobody panicked")[index] = embedding;
                    }
                });
            });
        }
    });
    done.into_inner().expect("nobody panicked")
}

fn faces(people: &Path, ten: &Path, strangers: &Path, models: &Path) -> Faces {
    let mut pictures: Vec<(Option<usize>, PathBuf)> = Vec::new();
    for (person, folder) in files(people).into_iter().chain(files(ten)).enumerate() {
        pictures.extend(files(&folder).into_iter().map(|file| (Some(person), file)));
    }
    pictures.extend(files(strangers).into_iter().map(|file| (None, file)));
    let (owners, paths): (Vec<Option<usize>>, Vec<PathBuf>) = pictures.into_iter().unzip();
    let mut grouped: BTreeMap<usize, Photographs> = BTreeMap::new();
    let mut strangers = Vec::new();
    for (owner, embedding) in owners.into_iter().zip(embed(&paths, models)) {
        let Some(embedding) = embedding else { continue };
        match owner {
            Some(person) => grouped.entry(person).or_default().push(embedding),
            None => strangers.push(embedding),
        }
    }
    Faces { people: grouped.into_values().collect(), strangers }
}

/// Made once for all tests of this file.
static FACES: LazyLock<Option<Faces>> = LazyLock::new(|| {
    let [people, ten, strangers, weights] =
        ["lfw-open/people", "lfw10", "lfw-open/strangers", "models/mobilefacenet.onnx"]
            .map(facepipe_test_support::find);
    Some(faces(&people?, &ten?, &strangers?, weights?.parent()?))
});

struct Probe {
    embedding: Vec<f32>,
    person: usize,
    /// With how many photographs the person is enrolled.
    photographs: usize,
    /// The highest cosine to one of them.
    verified: f32,
}

struct Gallery {
    samples: Vec<Sample>,
    probes: Vec<Probe>,
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns `photographs`, and as many more as are missing from `count`: each moved by the difference of two photographs
/// of somebody else.
fn enlarged(mut photographs: Photographs, count: usize, others: &[Photographs]) -> Photographs {
    let differences = others.iter().flat_map(|person| person.iter().zip(person.iter().skip(1)));
    let missing = count.saturating_sub(photographs.len());
    let original = photographs.clone();
    for ((from, to), base) in differences.zip(original.iter().cycle()).take(missing) {
        let moved: Vec<f32> = base.iter().zip(from).zip(to).map(|((b, f), t)| b + t - f).collect();
        let length = cosine(&moved, &moved).sqrt();
        photographs.push(moved.into_iter().map(|v| v / length).collect());
    }
    photographs
}

/// Returns a gallery of `size` people with `counts` photographs in turn; their further photographs are probes. People with
/// one photograph follow if those with several do not suffice.
fn gallery(faces: &Faces, size: usize, counts: &[usize], seed: u64) -> Gallery {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut people = faces.people.clone();
    people.shuffle(&mut random);
    let donors = people.clone();
    let mut gallery = Gallery { samples: Vec::new(), probes: Vec::new() };
    let others = faces.strangers.iter().skip(IMPOSTORS).map(|face| vec![face.clone()]);
    for (person, (mut photographs, &count)) in
        people.into_iter().chain(others).zip(counts.iter().cycle()).take(size).enumerate()
    {
        photographs.shuffle(&mut random);
        // Two to ask for, where the person has more than one.
        let kept = count.min(photographs.len().saturating_sub(2)).max(1);
        let asked = photographs.split_off(kept);
        let from = (person * 7 + 1) % donors.len();
        let enrolled = enlarged(photographs, count, &donors[from..]);
        for embedding in asked {
            let verified = enrolled.iter().map(|own| cosine(own, &embedding)).fold(-1.0, f32::max);
            gallery.probes.push(Probe { embedding, person, photographs: count, verified });
        }
        gallery.samples.extend(enrolled.iter().map(|embedding| sample(&format!("{person:04}"), embedding)));
    }
    gallery
}

/// Counts of one gallery, or of several.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    probes: usize,
    /// Probes for which somebody else was most probable, and probes that were not named rightly.
    misplaced: usize,
    missed: usize,
    /// The probes that `verify` accepts, and those that were missed; then the same for people with one photograph.
    verified: usize,
    verified_missed: usize,
    single: usize,
    single_missed: usize,
    impostors: usize,
    named: usize,
    /// Impostors that reach the threshold of the most probable person, although somebody else is nearer.
    contradicted: usize,
    /// Sum of the negative logarithms of the right person's probability.
    loss: f64,
    confidence: f64,
}

impl Counts {
    fn of(faces: &Faces, gallery: &Gallery) -> Self {
        let model = Model::train("mobilefacenet", &gallery.samples, &TrainOptions::default())
            .expect("training works");
        let mut counts = Self::default();
        for probe in &gallery.probes {
            let label = format!("{:04}", probe.person);
            let answer = model.identify(&probe.embedding, THRESHOLD, usize::MAX).expect("an answer");
            let top = answer.top.as_ref().expect("somebody");
            let right = top.label == label;
            let missed = usize::from(!(right && answer.decision == Decision::Known));
            counts.probes += 1;
            counts.misplaced += usize::from(!right);
            counts.missed += missed;
            let own = answer.all.iter().find(|p| p.label == label).expect("everybody is listed");
            counts.loss -= f64::from(own.confidence.max(1e-9)).ln();
            counts.confidence += f64::from(top.confidence);
            if probe.verified >= VERIFICATION_THRESHOLD {
                counts.verified += 1;
                counts.verified_missed += missed;
                if probe.photographs == 1 {
                    counts.single += 1;
                    counts.single_missed += missed;
                }
            }
        }
        for stranger in faces.strangers.iter().take(IMPOSTORS) {
            counts.impostors += 1;
            let answer = model.identify(stranger, THRESHOLD, usize::MAX).expect("an answer");
            let known = answer.decision == Decision::Known;
            counts.named += usize::from(known);
            let (top, score) = (answer.top.expect("somebody"), answer.score.expect("a score"));
            let mean = |label: &str| cosine(model.mean_embedding(label).expect("a mean"), stranger);
            let nearest = model.labels().iter().map(mean).fold(-1.0, f32::max);
            assert!((mean(&top.label) - score).abs() < 1e-5);
            if score >= THRESHOLD && nearest > score + 1e-5 && top.confidence < 0.5 {
                counts.contradicted += 1;
                assert!(!known, "{top:?} with {score}, somebody else has {nearest}");
            } else if score >= THRESHOLD && nearest < score + 1e-5 {
                assert!(known, "{top:?} with {score} is the nearest");
            }
        }
        counts
    }

    fn add(&mut self, other: &Self) {
        self.probes += other.probes;
        self.misplaced += other.misplaced;
        self.missed += other.missed;
        self.verified += other.verified;
        self.verified_missed += other.verified_missed;
        self.single += other.single;
        self.single_missed += other.single_missed;
        self.impostors += other.impostors;
        self.named += other.named;
        self.contradicted += other.contradicted;
        self.loss += other.loss;
        self.confidence += other.confidence;
    }

    fn print(&self, name: &str) {
        let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
        println!(
            "{name}: rank-1 error {:.2} %, FNIR {:.2} %, FPIR {:.2} %, missed of {} verified {:.2} %, of {} with one \
             photograph {:.2} %, loss {:.3}, confidence {:.3}",
            percent(self.misplaced, self.probes),
            percent(self.missed, self.probes),
            percent(self.named, self.impostors),
            self.verified,
            percent(self.verified_missed, self.verified),
            self.single,
            percent(self.single_missed, self.single),
            self.loss / self.probes as f64,
            self.confidence / self.probes as f64,
        );
    }
}

/// Returns whether `count` is less than 3 of 100, or at most one where there are few.
fn few(missed: usize, of: usize) -> bool {
    missed as f64 <= (0.03 * of as f64).max(1.0)
}

const SIZES: [usize; 6] = [25, 50, 100, 150, 400, 600];

#[test]
fn verified_people_are_identified_for_any_mixture_of_photograph_counts() {
    facepipe_test_support::require!("lfw-open/people");
    facepipe_test_support::require!("models/mobilefacenet.onnx");
    let faces = FACES.as_ref().expect("the pictures are there");
    for counts in
        [&[1, 2, 2, 2][..], &[1, 5], &[1, 5, 5, 5, 5], &[5, 1, 1, 1, 1], &[1, 2, 5, 10], &[1, 10], &[2, 10]]
    {
        let mut all = Counts::default();
        for (seed, size) in SIZES.into_iter().enumerate() {
            let one = Counts::of(faces, &gallery(faces, size, counts, seed as u64));
            one.print(&format!("{counts:?} photographs, {size} people"));
            assert!(few(one.verified_missed, one.verified), "{counts:?}, {size} people: {one:?}");
            assert!(few(one.single_missed, one.single), "{counts:?}, {size} people: {one:?}");
            all.add(&one);
        }
        all.print(&format!("{counts:?} photographs"));
        assert!(all.contradicted > 0, "{all:?}");
        assert!(all.verified > 500 && (all.single > 50 || counts[0] != 1), "{all:?}");
    }
}

#[test]
fn equal_photograph_counts_lose_no_accuracy() {
    facepipe_test_support::require!("lfw-open/people");
    facepipe_test_support::require!("models/mobilefacenet.onnx");
    let faces = FACES.as_ref().expect("the pictures are there");
    // With people calibrated one by one with Platt's method, on the same galleries: rank-1 error, FNIR and FPIR.
    for (photographs, before) in [
        (1, [0.0084, 0.0143, 0.0772]),
        (2, [0.0010, 0.0027, 0.0800]),
        (5, [0.0000, 0.0014, 0.1000]),
        (10, [0.0000, 0.0008, 0.0994]),
    ] {
        let mut all = Counts::default();
        for (seed, size) in SIZES.into_iter().enumerate() {
            let one = Counts::of(faces, &gallery(faces, size, &[photographs], seed as u64));
            one.print(&format!("{photographs} photographs, {size} people"));
            all.add(&one);
        }
        all.print(&format!("{photographs} photographs"));
        let share = |part: usize, whole: usize| part as f64 / whole as f64;
        let after = [
            share(all.misplaced, all.probes),
            share(all.missed, all.probes),
            share(all.named, all.impostors),
        ];
        // The difference that a few probes and strangers make.
        for ((after, before), noise) in after.into_iter().zip(before).zip([0.001, 0.001, 0.005]) {
            assert!(after <= before + noise, "{photographs} photographs: {all:?}");
        }
        assert!(all.loss / all.probes as f64 <= 0.1 && all.confidence / all.probes as f64 >= 0.9, "{all:?}");
    }
}
