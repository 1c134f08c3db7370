//! Closed-set and open-set identification and verification, in the terms of ISO/IEC 19795-1.

use std::collections::BTreeSet;

use anyhow::Result;
use facepipe_identify::{
    IdentifyError, Model, Sample, TrainOptions,
    evaluate::{self, Pair, RocPoint, Search},
};
use facepipe_vision::Embedder;
use serde::Serialize;

use super::{
    analysis::Time,
    layout::{Assignment, LabelledFace},
};
use crate::{exit::Failure, output, pictures::PassedOver, seeded_rng::SeededRng};

/// Maximum number of pairs of each kind; larger sets are sampled.
const MAX_PAIRS: usize = 2_000_000;

/// False accept rates for which the true accept rate is reported, given enough pairs.
const FALSE_ACCEPT_RATES: [f64; 3] = [1e-1, 1e-2, 1e-3];

/// Results of an evaluation.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Name of the embedder.
    pub embedder: &'static str,
    /// Number of files considered.
    images: usize,
    gallery: Group,
    probes: Probes,
    identification: Identification,
    /// None without pairs of both kinds.
    pub verification: Option<Verification>,
    time: Time,
    /// Probes with several faces; the largest was used.
    several_faces: Vec<String>,
    /// Unusable files.
    pub passed_over: Vec<PassedOver>,
}

#[derive(Debug, Serialize)]
struct Group {
    people: usize,
    images: usize,
}

#[derive(Debug, Serialize)]
struct Probes {
    /// Pictures of people in the gallery.
    mated: usize,
    /// Pictures of strangers.
    non_mated: usize,
    strangers: usize,
}

#[derive(Debug, Serialize)]
struct Identification {
    /// Share of mated probes whose top candidate is right, regardless of the score.
    rank1: Option<f64>,
    /// Identification threshold (cosine), the embedder's default.
    threshold: f32,
    /// False positive identification rate: share of non-mated probes that were named.
    fpir: Option<f64>,
    /// False negative identification rate: share of mated probes that were not named correctly.
    fnir: Option<f64>,
}

/// Verification results.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// Number of same-person pairs.
    pub same_pairs: usize,
    /// Number of different-person pairs.
    pub different_pairs: usize,
    /// Verification threshold (cosine), the embedder's default.
    pub threshold: f32,
    /// Share of pairs classified correctly.
    accuracy: f64,
    /// False accept rate.
    pub far: f64,
    /// True accept rate.
    pub tar: f64,
    /// Threshold of highest accuracy, and that accuracy.
    best_threshold: f32,
    best_accuracy: f64,
    equal_error_rate: f64,
    equal_error_threshold: f32,
    tar_at_far: Vec<TarAtFar>,
}

#[derive(Debug, Serialize)]
struct TarAtFar {
    far: f64,
    tar: f64,
}

impl Figures {
    /// Trains on the gallery, identifies the probes and compares pairs. Also returns the receiver operating characteristic.
    ///
    /// # Errors
    /// Nobody can be enrolled, or the gallery cannot be trained.
    pub fn compute(
        assignment: Assignment,
        time: Time,
        embedder: &dyn Embedder,
        seed: u64,
    ) -> Result<(Self, Vec<RocPoint>)> {
        let Assignment { gallery, probes, passed_over, pictures } = assignment;
        if gallery.is_empty() {
            let why = "no picture of the gallery has a main face";
            let first =
                passed_over.first().map(|p| format!(" ({}: {})", p.file, p.reason)).unwrap_or_default();
            return Err(Failure::Input(format!("nobody can be enrolled: {why}{first}")).into());
        }
        let model = train(embedder.name(), &gallery)?;
        let threshold = embedder.default_threshold();
        let mut answers = Vec::with_capacity(probes.len());
        for probe in &probes {
            let mated = model.labels().position(&probe.person).is_some();
            let answer = model.identify(&probe.face.embedding, threshold, 1)?;
            answers.push((mated.then_some(probe.person.as_str()), answer));
        }
        let rates =
            evaluate::open_set_rates(answers.iter().map(|(truth, answer)| Search { truth: *truth, answer }));
        let rank1 = evaluate::top1_accuracy(
            answers
                .iter()
                .filter_map(|(truth, a)| Some(((*truth)?, a.top.as_ref().map(|top| top.label.as_str())))),
        );
        let mated = answers.iter().filter(|(truth, _)| truth.is_some()).count();
        let strangers: BTreeSet<&str> = probes
            .iter()
            .zip(&answers)
            .filter(|(_, (truth, _))| truth.is_none())
            .map(|(probe, _)| probe.person.as_str())
            .collect();

        let alone: Vec<&LabelledFace> =
            gallery.iter().chain(&probes).filter(|labelled| labelled.face.in_picture == 1).collect();
        let pairs = pairs(&alone, MAX_PAIRS, &mut SeededRng::new(seed, 1));
        let roc = evaluate::roc(&pairs);
        let several = probes.iter().filter(|probe| probe.face.in_picture > 1);
        let figures = Self {
            embedder: embedder.name(),
            images: pictures,
            gallery: Group { people: model.labels().len(), images: gallery.len() },
            probes: Probes { mated, non_mated: answers.len() - mated, strangers: strangers.len() },
            identification: Identification { rank1, threshold, fpir: rates.fpir, fnir: rates.fnir },
            verification: Verification::of(&pairs, embedder.verification_threshold()),
            time,
            several_faces: several.map(|probe| probe.file.display().to_string()).collect(),
            passed_over,
        };
        Ok((figures, roc))
    }

    /// Prints them as tables.
    pub fn print(&self) {
        let row = |name: &str, value: String| output::line(format!("  {name:<38}{value}"));
        let Self { gallery, probes, identification, .. } = self;
        output::line(format!("Embedder  {}", self.embedder));
        output::line(format!("Gallery   {} people, {} pictures", gallery.people, gallery.images));
        output::line(format!(
            "Probes    {} of people of the gallery, {} of {} strangers",
            probes.mated, probes.non_mated, probes.strangers
        ));
        output::line(format!("\nIdentification (threshold {:.3})", identification.threshold));
        row("rank-1, closed set, %", percent(identification.rank1));
        row("FNIR (known, not rightly named), %", percent(identification.fnir));
        row("FPIR (strangers named), %", percent(identification.fpir));
        match &self.verification {
            None => output::line("\nVerification: no pairs of one person and of two to compare"),
            Some(verification) => verification.print(&row),
        }
        output::line(format!("\nTime      {:.1} s", self.time.seconds));
        row("pictures per second", format!("{:.1}", self.time.images_per_second));
        for (name, time) in [
            ("read and find faces, p50/p95, ms", self.time.detection),
            ("embed a face, p50/p95, ms", self.time.embedding),
        ] {
            if let Some(time) = time {
                row(name, format!("{:.1} / {:.1}", time.p50_ms, time.p95_ms));
            }
        }
        if !self.several_faces.is_empty() {
            output::line(format!(
                "\nProbes with several faces and no main one, of which the largest counted: {}",
                self.several_faces.len()
            ));
            self.several_faces.iter().for_each(|file| output::line(format!("  {file}")));
        }
        if !self.passed_over.is_empty() {
            output::line(format!("\nPassed over: {} of {} files", self.passed_over.len(), self.images));
            for PassedOver { file, reason, .. } in &self.passed_over {
                output::line(format!("  {file}: {reason}"));
            }
        }
    }
}

impl Verification {
    #[expect(clippy::cast_precision_loss, reason = "at most some millions of pairs")]
    fn of(pairs: &[Pair], threshold: f32) -> Option<Self> {
        let best = evaluate::best_verification(pairs)?;
        let equal = evaluate::equal_error_rate(pairs)?;
        let same_pairs = pairs.iter().filter(|pair| pair.same).count();
        let different_pairs = pairs.len() - same_pairs;
        let accepted =
            |same: bool| pairs.iter().filter(|p| p.same == same && p.score >= threshold).count() as f64;
        // Below one expected false accept, a rate is not significant.
        let countable = FALSE_ACCEPT_RATES.into_iter().filter(|far| different_pairs as f64 * far >= 1.0);
        let tar_at_far = countable
            .filter_map(|far| Some(TarAtFar { far, tar: evaluate::tar_at_far(pairs, far)? }))
            .collect();
        Some(Self {
            same_pairs,
            different_pairs,
            threshold,
            accuracy: evaluate::verification_accuracy(pairs, threshold)?,
            far: accepted(false) / different_pairs as f64,
            tar: accepted(true) / same_pairs as f64,
            best_threshold: best.threshold,
            best_accuracy: best.accuracy,
            equal_error_rate: equal.rate,
            equal_error_threshold: equal.threshold,
            tar_at_far,
        })
    }

    fn print(&self, row: &dyn Fn(&str, String)) {
        output::line(format!(
            "\nVerification ({} pairs of one person, {} of two)",
            self.same_pairs, self.different_pairs
        ));
        row(&format!("accuracy at {:.3}, %", self.threshold), percent(Some(self.accuracy)));
        row(&format!("best accuracy, at {:.3}, %", self.best_threshold), percent(Some(self.best_accuracy)));
        row(
            &format!("equal error rate, at {:.3}, %", self.equal_error_threshold),
            percent(Some(self.equal_error_rate)),
        );
        for TarAtFar { far, tar } in &self.tar_at_far {
            row(&format!("TAR at FAR {far}, %"), percent(Some(*tar)));
        }
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.2}", share * 100.0))
}

/// Trains a model of the gallery.
fn train(embedder: &str, gallery: &[LabelledFace]) -> Result<Model> {
    let samples: Vec<Sample> = gallery
        .iter()
        .map(|labelled| Sample { label: labelled.person.clone(), embedding: labelled.face.embedding.clone() })
        .collect();
    // The library identifies samples by index; errors name files.
    let file = |sample: usize| gallery.get(sample).map(|g| g.file.display().to_string()).unwrap_or_default();
    Model::train(embedder, &samples, &TrainOptions::default()).map_err(|error| match error {
        IdentifyError::Label { sample, problem } => {
            Failure::input(file(sample), format!("the name of the person's folder: {problem}")).into()
        }
        IdentifyError::Conflict { first, second } => {
            Failure::input(file(first), format!("the same picture as {}, under another name", file(second)))
                .into()
        }
        other => anyhow::Error::from(other).context("the gallery cannot be trained"),
    })
}

/// Compares all pictures pairwise, at most about `most` pairs of each kind.
#[expect(clippy::cast_precision_loss, reason = "counts of pictures are far below 2^26")]
fn pairs(pictures: &[&LabelledFace], most: usize, rng: &mut SeededRng) -> Vec<Pair> {
    let each = || {
        pictures.iter().enumerate().flat_map(|(index, a)| {
            pictures.iter().skip(index + 1).map(move |b| (*a, *b, a.person == b.person))
        })
    };
    let same = each().filter(|(_, _, same)| *same).count();
    let all = pictures.len() * pictures.len().saturating_sub(1) / 2;
    let share = |of: usize| most as f64 / of.max(1) as f64;
    let (share_same, share_different) = (share(same), share(all - same));
    each()
        .filter(|(_, _, same)| {
            let share = if *same { share_same } else { share_different };
            share >= 1.0 || rng.unit() < share
        })
        .map(|(a, b, same)| {
            let products = a.face.embedding.iter().zip(&b.face.embedding).map(|(a, b)| a * b);
            Pair { score: products.sum::<f32>().clamp(-1.0, 1.0), same }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::analysis::EmbeddedFace;

    fn labelled(person: &str, angle: f32) -> LabelledFace {
        let embedding = vec![angle.cos(), angle.sin()];
        LabelledFace {
            file: format!("{person}-{angle}.jpg").into(),
            person: person.into(),
            face: EmbeddedFace { in_picture: 1, embedding },
        }
    }

    #[test]
    fn every_picture_is_compared_with_every_other_once() {
        let people = [
            labelled("a", 0.0),
            labelled("a", 0.1),
            labelled("b", 1.0),
            labelled("b", 1.2),
            labelled("c", 3.0),
        ];
        let all = pairs(&people.iter().collect::<Vec<_>>(), 100, &mut SeededRng::new(1, 1));
        assert_eq!(all.len(), 10);
        let same: Vec<f32> = all.iter().filter(|pair| pair.same).map(|pair| pair.score).collect();
        assert_eq!(same.len(), 2);
        assert!((same[0] - 0.1_f32.cos()).abs() < 1e-6 && (same[1] - 0.2_f32.cos()).abs() < 1e-6, "{same:?}");
    }

    #[test]
    fn large_sets_of_pairs_are_sampled_by_kind() {
        let people: Vec<LabelledFace> =
            (0..200_u8).map(|i| labelled(if i % 2 == 0 { "a" } else { "b" }, f32::from(i))).collect();
        let some = pairs(&people.iter().collect::<Vec<_>>(), 1000, &mut SeededRng::new(1, 1));
        let same = some.iter().filter(|pair| pair.same).count();
        assert!(
            (850..1150).contains(&same) && (850..1150).contains(&(some.len() - same)),
            "{same} of {}",
            some.len()
        );
    }

    #[test]
    fn rates_are_reported_only_with_enough_pairs() {
        let pair = |score, same| Pair { score, same };
        let mut pairs: Vec<Pair> = (0..50_u8).map(|i| pair(f32::from(i) / 100.0, false)).collect();
        pairs.extend([pair(0.9, true), pair(0.3, true)]);
        let verification = Verification::of(&pairs, 0.4).unwrap();
        let reported: Vec<(f64, f64)> = verification.tar_at_far.iter().map(|t| (t.far, t.tar)).collect();
        assert_eq!(reported, [(0.1, 0.5)]);
        assert_eq!((verification.far, verification.tar), (0.2, 0.5));
        assert!(Verification::of(&pairs[..50], 0.4).is_none(), "no pair of one person");
    }

    #[test]
    fn one_picture_under_two_names_is_named() {
        let gallery = [labelled("a", 0.5), labelled("b", 0.5), labelled("b", 1.5)];
        let error = train("example", &gallery).unwrap_err().to_string();
        assert!(error.contains("a-0.5.jpg") && error.contains("b-0.5.jpg"), "{error}");
    }
}
