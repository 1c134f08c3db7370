//! The embeddings of the ten people of the fixture, ten photographs each, made by the reference implementation.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;

use facepipe_identify::{Model, Sample, TrainOptions};

/// MobileFaceNet's threshold, as the fixture's verification has it.
pub const THRESHOLD: f32 = 0.355;

/// Returns embeddings `[photographs][128]` by person, photographs by name.
pub fn people() -> BTreeMap<String, Vec<Vec<f32>>> {
    let fixture = facepipe_test_support::fixture("mobilefacenet.json");
    let mut people: BTreeMap<String, Vec<Vec<f32>>> = BTreeMap::new();
    // serde_json's map iterates in the order of its keys, which is that of the file names.
    for (path, embedding) in fixture["embeddings"].as_object().expect("embeddings is an object") {
        let person = path.split('/').nth(1).expect("lfw10/<person>/<file>");
        let embedding: Vec<f32> = serde_json::from_value(embedding.clone()).expect("numbers");
        people.entry(person.to_owned()).or_default().push(embedding);
    }
    assert_eq!(people.len(), 10);
    assert!(people.values().all(|photos| photos.len() == 10));
    people
}

pub fn sample(label: &str, embedding: &[f32]) -> Sample {
    Sample { label: label.into(), embedding: embedding.to_vec() }
}

/// Returns the first `shots` photographs of each of these people.
pub fn first_photos<'a>(
    people: impl IntoIterator<Item = (&'a String, &'a Vec<Vec<f32>>)>,
    shots: usize,
) -> Vec<Sample> {
    people
        .into_iter()
        .flat_map(|(person, photos)| photos.iter().take(shots).map(|p| sample(person, p)))
        .collect()
}

pub fn train(samples: &[Sample]) -> Model {
    Model::train("mobilefacenet", samples, &TrainOptions::default()).expect("training works")
}

/// A deterministic pseudo-random sequence in -1..1 (Knuth's MMIX generator), for synthetic people.
pub struct Noise(pub u64);

impl Iterator for Noise {
    type Item = f32;
    fn next(&mut self) -> Option<f32> {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = u16::try_from(self.0 >> 48).expect("16 bits");
        Some(f32::from(bits) / 32_768.0 - 1.0)
    }
}

/// Returns `people` × `photos` embeddings of `dimensions`: one direction per person plus noise, cosine within a person
/// ≈ 0.7.
pub fn synthetic(people: usize, photos: usize, dimensions: usize) -> Vec<Sample> {
    let mut noise = Noise(7);
    let mut samples = Vec::new();
    for person in 0..people {
        let centre: Vec<f32> = noise.by_ref().take(dimensions).collect();
        for _ in 0..photos {
            let photo: Vec<f32> = centre.iter().zip(noise.by_ref()).map(|(c, n)| c + 0.65 * n).collect();
            samples.push(sample(&format!("person {person:04}"), &photo));
        }
    }
    samples
}
