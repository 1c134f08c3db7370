//! The calibrated threshold on people of Labeled Faces in the Wild: as many strangers are named as it promises.

use facepipe_identify::{
    Decision, Model, Sample, TrainOptions,
    open_set::{
        Calibration, CalibrationMethod, CalibrationOptions, CalibrationWarning, ErrorRate, ImpostorTable,
        MeasuredTable, calibrate, measure_table,
    },
};

use facepipe_test_support::{require, require_weights};
use facepipe_vision::EmbedderKind;

use crate::pictures::{Folders, LfwOpen, Person, embeddings, lfw_open};

/// The embedder's fixed threshold.
const DEFAULT: f32 = 0.355;

/// Photographs that are enrolled of each person: every other one, from the first.
pub const ENROLLED: usize = 3;

/// A gallery, its model, and pictures of its people that are not enrolled.
pub struct Gallery {
    samples: Vec<Sample>,
    model: Model,
    probes: Vec<(String, Vec<f32>)>,
}

impl Gallery {
    /// The people at these positions with this number of photographs, at most.
    pub fn of(people: &[&Person], photographs: usize) -> Self {
        let (mut samples, mut probes) = (Vec::new(), Vec::new());
        for person in people {
            let embeddings = person.embeddings();
            let enrolled = enrolled(person, photographs);
            for (index, embedding) in embeddings.into_iter().enumerate() {
                let embedding = embedding.to_vec();
                if enrolled.contains(&index) {
                    samples.push(Sample { label: person.name.clone(), embedding });
                } else {
                    probes.push((person.name.clone(), embedding));
                }
            }
        }
        let model = Model::train("mobilefacenet", &samples, &TrainOptions::default()).unwrap();
        Self { samples, model, probes }
    }

    pub fn calibrated(&self, target_fpir: f64, cohort: &[Vec<f32>]) -> Calibration {
        let table = ImpostorTable::of("mobilefacenet");
        let options = CalibrationOptions { target_fpir, default_threshold: DEFAULT, table, cohort };
        calibrate(&self.model, &self.samples, &options).unwrap().unwrap()
    }

    /// The share of strangers who are named.
    pub fn fpir(&self, strangers: &[Vec<f32>], threshold: f32) -> f64 {
        let named = strangers.iter().filter(|face| self.identified(face, threshold).is_some()).count();
        named as f64 / strangers.len() as f64
    }

    /// The share of the probes that are not rightly named.
    fn fnir(&self, threshold: f32) -> f64 {
        let missed = self
            .probes
            .iter()
            .filter(|(person, face)| self.identified(face, threshold).is_none_or(|label| label != *person));
        missed.count() as f64 / self.probes.len() as f64
    }

    pub fn identified(&self, face: &[f32], threshold: f32) -> Option<String> {
        let answer = self.model.identify(face, threshold, 1).unwrap();
        answer.top.filter(|_| answer.decision == Decision::Known).map(|top| top.label)
    }
}

/// The positions of the photographs that a gallery has of a person, at most so many.
pub fn enrolled(person: &Person, photographs: usize) -> Vec<usize> {
    (0..person.embeddings().len()).step_by(2).take(photographs).collect()
}

fn percent(rate: ErrorRate) -> String {
    let ErrorRate { rate, lower, upper, .. } = rate;
    format!("{:.2} ({:.2} to {:.2}) %", rate * 100.0, lower * 100.0, upper * 100.0)
}

/// Calibrates, measures and prints: the calibration, FPIR and FNIR.
fn measured(
    name: &str,
    gallery: &Gallery,
    target: f64,
    cohort: &[Vec<f32>],
    strangers: &[Vec<f32>],
) -> (Calibration, f64, f64) {
    let calibration = gallery.calibrated(target, cohort);
    let (fpir, fnir) = (gallery.fpir(strangers, calibration.threshold), gallery.fnir(calibration.threshold));
    println!(
        "{name}, target {} %, {:?} {}: threshold {:.4}, FPIR {:.2} %, expected {}; FNIR {:.2} %, expected {}; fixed threshold: \
         FPIR {:.2} %, FNIR {:.2} %",
        target * 100.0,
        calibration.method,
        calibration.cohort,
        calibration.threshold,
        fpir * 100.0,
        calibration.fpir.map_or_else(String::new, percent),
        fnir * 100.0,
        calibration.fnir.map_or_else(String::new, percent),
        gallery.fpir(strangers, DEFAULT) * 100.0,
        gallery.fnir(DEFAULT) * 100.0,
    );
    (calibration, fpir, fnir)
}

#[test]
fn with_a_cohort_strangers_are_named_as_rarely_as_the_target_says() {
    let lfw = lfw_open!();
    let (cohort, strangers) = (embeddings(&lfw.cohort), embeddings(&lfw.strangers));
    let gallery = Gallery::of(&lfw.people.iter().collect::<Vec<_>>(), ENROLLED);
    assert_eq!(gallery.model.labels().len(), 150);
    let (calibration, fpir, fnir) = measured("150 people", &gallery, 0.01, &cohort, &strangers);
    assert_eq!(calibration.method, CalibrationMethod::CohortTail);
    assert!(fpir <= 0.015, "{fpir}");
    assert!(fnir <= 0.015, "{fnir}");
    let expected = calibration.fpir.unwrap();
    assert!((expected.lower..=expected.upper).contains(&fpir), "{fpir} {expected:?}");
    let expected = calibration.fnir.unwrap();
    assert!((expected.lower..=expected.upper).contains(&fnir), "{fnir} {expected:?}");

    let (calibration, fpir, _) = measured("150 people", &gallery, 0.001, &cohort, &strangers);
    let expected = calibration.fpir.unwrap();
    assert!(fpir <= 0.003 && fpir <= expected.upper, "{fpir} {expected:?}");
    assert!(calibration.warnings.contains(&CalibrationWarning::SmallCohort(3000)));
}

#[test]
fn galleries_of_any_size_stay_within_their_stated_interval() {
    let lfw = lfw_open!();
    let (cohort, strangers) = (embeddings(&lfw.cohort), embeddings(&lfw.strangers));
    for (size, photographs) in
        [(10, 1), (10, ENROLLED), (50, ENROLLED), (100, ENROLLED), (150, 1), (150, ENROLLED)]
    {
        for cohort in [&cohort[..], &[]] {
            // As many galleries as there are people for: 800 strangers alone meet a gallery of ten too rarely.
            let galleries = lfw.people.len() / size;
            let mut means = [0.0; 3];
            for first in 0..galleries {
                let people: Vec<&Person> =
                    lfw.people.iter().skip(first).step_by(galleries).take(size).collect();
                let gallery = Gallery::of(&people, photographs);
                let name = format!("{size} people with {photographs}");
                let (calibration, fpir, _) = measured(&name, &gallery, 0.01, cohort, &strangers);
                let expected = calibration.fpir.unwrap();
                assert_eq!(calibration.warnings.contains(&CalibrationWarning::NoCohort), cohort.is_empty());
                for (mean, rate) in means.iter_mut().zip([expected.lower, fpir, expected.upper]) {
                    *mean += rate / galleries as f64;
                }
            }
            let [lower, fpir, upper] = means;
            println!(
                "{size} people with {photographs}, cohort of {}: {lower:.4} <= {fpir:.4} <= {upper:.4}",
                cohort.len()
            );
            assert!((lower..=upper).contains(&fpir));
            // Not bought with a threshold that nobody reaches.
            assert!(fpir > 0.001);
        }
    }
}

#[test]
fn a_small_cohort_does_no_harm() {
    let lfw = lfw_open!();
    let (cohort, strangers) = (embeddings(&lfw.cohort), embeddings(&lfw.strangers));
    let gallery = Gallery::of(&lfw.people.iter().collect::<Vec<_>>(), ENROLLED);
    for cohort in cohort.chunks(100).step_by(2) {
        let (_, fpir, fnir) = measured("150 people", &gallery, 0.01, cohort, &strangers);
        assert!(fpir < 0.03 && fnir < 0.02, "{fpir} {fnir}");
    }
}

/// What the pictures say about an embedder.
fn table_of(lfw: &LfwOpen) -> MeasuredTable {
    let strangers: Vec<Vec<f32>> = [embeddings(&lfw.strangers), embeddings(&lfw.cohort)].concat();
    let photographs = |person: &Person| person.embeddings().into_iter().map(<[f32]>::to_vec).collect();
    let people: Vec<Vec<Vec<f32>>> = lfw.people.iter().map(photographs).collect();
    let measured = measure_table(&strangers, &people).unwrap();
    println!("{measured:?}");
    measured
}

#[test]
fn the_stored_table_is_what_strangers_measure() {
    // That of another embedder where the variable names one; what is measured is the output.
    let named = std::env::var("FACEPIPE_EMBEDDER").ok();
    let measured = match &named {
        None => table_of(lfw_open!()),
        Some(name) => {
            let embedder: EmbedderKind = name.parse().unwrap();
            let folders = Folders {
                people: require!("lfw-open/people"),
                strangers: require!("lfw-open/strangers"),
                cohort: require!("lfw-open/cohort"),
                models: require_weights!(embedder.published_file()),
            };
            table_of(&LfwOpen::embed(&folders, embedder))
        }
    };
    let table = ImpostorTable::of(named.as_deref().unwrap_or("mobilefacenet")).expect("a stored table");
    for (stored, measured) in [
        (table.one_photograph, measured.one_photograph),
        (table.several_photographs, measured.several_photographs),
    ] {
        assert_eq!(stored.len(), measured.len());
        for ((rate, stored), (measured_rate, measured)) in stored.iter().zip(measured) {
            assert_eq!(*rate, measured_rate);
            // Processors round differently.
            assert!((stored - measured).abs() < 2e-3, "{rate}: {stored}, measured {measured}");
        }
    }
}
