//! The people and the strangers as unknown tracks of one photograph each: the groups are their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use facepipe_identify::{Clusters, Unit, link};
use facepipe_vision::{EmbedderKind, load_embedder};

use crate::pictures::{LfwOpen, lfw_open};

/// Whose face it is, and its embedding.
type Track<'a> = (usize, &'a [f32]);

/// How well groups are those of the people.
#[derive(Debug)]
struct Agreement {
    f_measure: f64,
    groups: usize,
    /// Groups with several faces.
    several: usize,
    /// Groups with faces of two people.
    mixed: usize,
}

fn tracks(lfw: &LfwOpen) -> Vec<Track<'_>> {
    let of_people = lfw.people.iter().enumerate();
    let people =
        of_people.flat_map(|(person, of)| of.embeddings().into_iter().map(move |face| (person, face)));
    let strangers = lfw.strangers.iter().enumerate();
    let strangers = strangers.filter_map(|(at, of)| Some((lfw.people.len() + at, of.embedding()?)));
    people.chain(strangers).collect()
}

fn pairs(number: usize) -> f64 {
    (number * number.saturating_sub(1) / 2) as f64
}

fn agreement(tracks: &[Track<'_>], labels: &[i64]) -> Agreement {
    assert_eq!(tracks.len(), labels.len());
    let mut groups: BTreeMap<i64, BTreeMap<usize, usize>> = BTreeMap::new();
    let mut people: BTreeMap<usize, usize> = BTreeMap::new();
    for ((person, _), label) in tracks.iter().zip(labels) {
        *groups.entry(*label).or_default().entry(*person).or_default() += 1;
        *people.entry(*person).or_default() += 1;
    }
    let right: f64 = groups.values().flat_map(BTreeMap::values).map(|number| pairs(*number)).sum();
    let grouped: f64 = groups.values().map(|of| pairs(of.values().sum())).sum();
    let own: f64 = people.values().map(|number| pairs(*number)).sum();
    Agreement {
        f_measure: 2.0 * right / (grouped + own),
        groups: groups.len(),
        several: groups.values().filter(|of| of.values().sum::<usize>() > 1).count(),
        mixed: groups.values().filter(|of| of.len() > 1).count(),
    }
}

#[test]
fn unknown_faces_are_grouped_by_person() {
    let lfw = lfw_open!();
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let embedder = load_embedder(EmbedderKind::MobileFaceNet, &models).unwrap();
    let distance = embedder.cluster_distance();
    let tracks = tracks(lfw);
    assert!(tracks.len() > 1400, "{}", tracks.len());
    for order in 0..3_u64 {
        // Once as they lie, person by person, then mixed up.
        let mut places: Vec<usize> = (0..tracks.len()).collect();
        places.sort_by_key(|place| {
            (*place as u64).wrapping_mul(order.wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(29)
        });
        let shuffled: Vec<Track<'_>> = places.into_iter().map(|place| tracks[place]).collect();
        let mut clusters = Clusters::new(tracks[0].1.len(), distance).unwrap();
        let mut last = 0;
        let faces: Vec<&[f32]> = shuffled.iter().map(|(_, face)| *face).collect();
        let mut labels: Vec<i64> = Vec::new();
        for chunk in faces.chunks(100) {
            let changes = clusters
                .assign(chunk, || {
                    last += 1;
                    last
                })
                .unwrap();
            labels.extend(changes.assigned);
            for label in &mut labels {
                if let Some(into) = changes.merged.get(label) {
                    *label = *into;
                }
            }
        }
        let found = agreement(&shuffled, &labels);
        println!("one after the other, order {order}: {found:?}");
        assert!(
            found.f_measure >= 0.95 && found.mixed * 100 <= found.groups && found.several > 100,
            "{found:?}"
        );
        assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), clusters.len());
    }
    let units: Vec<Unit> = tracks.iter().map(|(_, face)| Unit { members: 1, mean: face.to_vec() }).collect();
    let labels = link(&units, distance, &[], &|_| ControlFlow::Continue(())).unwrap();
    let labels: Vec<i64> = labels.into_iter().map(|label| i64::try_from(label).unwrap()).collect();
    let found = agreement(&tracks, &labels);
    println!("all together: {found:?}");
    assert!(found.f_measure >= 0.95 && found.mixed * 100 <= found.groups && found.several > 100, "{found:?}");
}
