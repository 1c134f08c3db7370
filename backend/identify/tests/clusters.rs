//! Clusters of unknown faces are those of average linkage by its definition, whether faces come one by one or all together.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a panic is how a test fails"
)]

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
};

use facepipe_identify::{Clusters, IdentifyError, Unit, link};
use proptest::prelude::*;
use rand::Rng as _;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn normalised(face: &[f32]) -> Vec<f32> {
    let length = face.iter().map(|v| v * v).sum::<f32>().sqrt();
    face.iter().map(|v| v / length).collect()
}

const DIMENSIONS: usize = 24;

/// Returns faces of `people` people, one after the other at random: the person, and a vector near the person's own.
fn faces(seed: u64, people: usize, number: usize, noise: f32) -> Vec<(usize, Vec<f32>)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut vector = || -> Vec<f32> { (0..DIMENSIONS).map(|_| random.random_range(-1.0..1.0)).collect() };
    let centres: Vec<Vec<f32>> = (0..people).map(|_| vector()).collect();
    let mut noises = (0..number).map(|_| vector()).collect::<Vec<_>>().into_iter();
    let mut random = ChaCha8Rng::seed_from_u64(seed + 1);
    let face = |_| {
        let person = random.random_range(0..people);
        let noisy = centres[person].iter().zip(noises.next().unwrap()).map(|(c, n)| c + noise * n);
        (person, noisy.collect())
    };
    (0..number).map(face).collect()
}

fn ids() -> impl FnMut() -> i64 {
    let mut last = 0;
    move || {
        last += 1;
        last
    }
}

/// Clusters by the definition of average linkage: all members are kept, all pairs of clusters are compared each time.
fn one_by_one(faces: &[Vec<f32>], least: f64) -> Vec<usize> {
    let unit: Vec<Vec<f32>> = faces.iter().map(|face| normalised(face)).collect();
    let cosine = |a: usize, b: usize| dot(&unit[a], &unit[b]);
    let mean = |a: &[usize], b: &[usize]| {
        let sum: f64 =
            a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b))).map(|(a, b)| cosine(a, b)).sum();
        sum / (a.len() * b.len()) as f64
    };
    let mut clusters: Vec<Vec<usize>> = Vec::new();
    for face in 0..faces.len() {
        let nearest = |own: &[usize], clusters: &[Vec<usize>], except: Option<usize>| {
            let others = clusters.iter().enumerate().filter(|(at, _)| Some(*at) != except);
            let near = others.map(|(at, other)| (at, mean(own, other))).filter(|(_, mean)| *mean >= least);
            near.max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(at, _)| at)
        };
        let Some(mut at) = nearest(&[face], &clusters, None) else {
            clusters.push(vec![face]);
            continue;
        };
        clusters[at].push(face);
        while let Some(other) = nearest(&clusters[at].clone(), &clusters, Some(at)) {
            let (first, second) = (at.min(other), at.max(other));
            let gone = clusters.remove(second);
            clusters[first].extend(gone);
            at = first;
        }
    }
    let mut labels = vec![0; faces.len()];
    for (label, cluster) in clusters.iter().enumerate() {
        cluster.iter().for_each(|face| labels[*face] = label);
    }
    labels
}

/// Returns whether two lists of labels group alike.
fn alike<A: PartialEq, B: PartialEq>(one: &[A], other: &[B]) -> bool {
    let pairs = |n: usize| (0..n).flat_map(move |a| (0..a).map(move |b| (a, b)));
    one.len() == other.len() && pairs(one.len()).all(|(a, b)| (one[a] == one[b]) == (other[a] == other[b]))
}

#[test]
fn clusters_are_those_of_average_linkage_by_its_definition() {
    for seed in 0..20 {
        let faces: Vec<Vec<f32>> = faces(seed, 12, 90, 0.9).into_iter().map(|(_, face)| face).collect();
        let mut clusters = Clusters::new(DIMENSIONS, 0.5).unwrap();
        let changes = clusters.assign(&faces, ids()).unwrap();
        assert!(alike(&changes.assigned, &one_by_one(&faces, 0.5)), "{seed}");
    }
}

#[test]
fn faces_assigned_together_go_where_they_go_one_by_one() {
    let faces: Vec<Vec<f32>> = faces(7, 40, 500, 0.8).into_iter().map(|(_, face)| face).collect();
    let mut together = Clusters::new(DIMENSIONS, 0.5).unwrap();
    let all = together.assign(&faces, ids()).unwrap();
    let (mut single, mut next) = (Clusters::new(DIMENSIONS, 0.5).unwrap(), ids());
    let mut assigned: Vec<i64> = Vec::new();
    for face in &faces {
        let changes = single.assign(&[face], &mut next).unwrap();
        for id in &mut assigned {
            *id = *changes.merged.get(id).unwrap_or(id);
        }
        assigned.extend(changes.assigned);
    }
    assert_eq!(assigned, all.assigned);
    assert_eq!(together.len(), single.len());
    assert!(all.merged.is_empty(), "all were created in this call: {:?}", all.merged);
}

#[test]
fn members_and_means_are_those_of_the_assigned_faces() {
    let faces: Vec<Vec<f32>> = faces(3, 10, 200, 0.7).into_iter().map(|(_, face)| face).collect();
    let mut clusters = Clusters::new(DIMENSIONS, 0.5).unwrap();
    let changes = clusters.assign(&faces, ids()).unwrap();
    for id in &changes.created {
        let own = faces.iter().zip(&changes.assigned).filter(|(_, of)| *of == id).map(|(face, _)| face);
        let own: Vec<Vec<f32>> = own.map(|face| normalised(face)).collect();
        assert_eq!(clusters.members(*id), own.len() as u64);
        for (component, value) in clusters.mean(*id).unwrap().iter().enumerate() {
            let mean = own.iter().map(|face| face[component]).sum::<f32>() / own.len() as f32;
            assert!((value - mean).abs() < 1e-5, "{value} {mean}");
        }
    }
    assert_eq!(changes.created.iter().map(|id| clusters.members(*id)).sum::<u64>(), 200);
}

#[test]
fn clusters_that_are_kept_apart_do_not_merge_whatever_joins_them() {
    let mut clusters = Clusters::new(2, 0.5).unwrap();
    clusters.set(1, 1, &[1.0, 0.0]).unwrap();
    clusters.set(2, 1, &[0.8, 0.6]).unwrap();
    clusters.separate(1, 2);
    let changes = clusters.assign(&[[0.95, 0.3], [0.9, 0.4]], ids()).unwrap();
    assert!(changes.merged.is_empty() && clusters.len() == 2, "{changes:?}");
    // A third one that merges with one of them stays apart from the other, too.
    clusters.set(3, 5, &[0.9, -0.2]).unwrap();
    clusters.assign(&[[1.0, -0.1]], ids()).unwrap();
    assert_eq!((clusters.len(), clusters.members(3), clusters.members(2)), (2, 8, 2));
}

#[test]
fn the_larger_cluster_keeps_its_id_and_of_equal_ones_the_older() {
    for (members, kept) in [(1, 1), (2, 1), (3, 2)] {
        let mut clusters = Clusters::new(2, 0.1).unwrap();
        clusters.set(1, 1, &[0.96, 0.28]).unwrap();
        clusters.set(2, members, &[0.96, -0.28]).unwrap();
        clusters.set(3, 9, &[-1.0, 0.0]).unwrap();
        let changes = clusters.assign(&[[1.0, 0.0]], || 9).unwrap();
        assert_eq!(changes.assigned, [kept]);
        assert_eq!(changes.merged.into_iter().collect::<Vec<_>>(), [(3 - kept, kept)]);
        assert_eq!((clusters.len(), clusters.members(kept)), (2, 2 + members));
    }
}

#[test]
fn a_track_that_grows_moves_the_mean_of_its_cluster() {
    let mut clusters = Clusters::new(2, 0.5).unwrap();
    clusters.assign(&[[1.0, 0.0], [0.8, 0.6]], ids()).unwrap();
    clusters.replace(1, &[0.8, 0.6], &[0.6, 0.8]).unwrap();
    let mean = clusters.mean(1).unwrap();
    assert!((mean[0] - 0.8).abs() < 1e-6 && (mean[1] - 0.4).abs() < 1e-6, "{mean:?}");
    assert_eq!(clusters.members(1), 2);
}

#[test]
fn what_is_no_embedding_is_refused_and_assigns_nothing() {
    let mut clusters = Clusters::new(2, 0.5).unwrap();
    assert!(matches!(clusters.assign(&[vec![1.0]], || 1), Err(IdentifyError::Dimensions { found: 1, .. })));
    let wrong = [vec![1.0, 0.0], vec![f32::NAN, 0.0]];
    assert!(matches!(clusters.assign(&wrong, || 1), Err(IdentifyError::NotFinite { .. })));
    assert!(matches!(clusters.assign(&[[0.0, 0.0]], || 1), Err(IdentifyError::NoDirection { .. })));
    assert!(clusters.is_empty());
    for distance in [0.0, 1.0, -0.5, f32::NAN] {
        assert!(matches!(Clusters::new(2, distance), Err(IdentifyError::Option { .. })), "{distance}");
    }
    assert!(matches!(Clusters::new(0, 0.5), Err(IdentifyError::Empty { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_two_clusters_stay_nearer_than_the_distance(seed in 0_u64..1000, noise in 0.2_f32..1.5) {
        let faces: Vec<Vec<f32>> = faces(seed, 8, 80, noise).into_iter().map(|(_, face)| face).collect();
        let mut clusters = Clusters::new(DIMENSIONS, 0.5).unwrap();
        let ids = clusters.assign(&faces, ids()).unwrap().created;
        for (at, a) in ids.iter().enumerate() {
            for b in ids.iter().take(at) {
                // The bound itself is within the rounding of the means.
                prop_assert!(dot(clusters.mean(*a).unwrap(), clusters.mean(*b).unwrap()) < 0.5 + 1e-5);
            }
        }
    }
}

fn units(seed: u64, people: usize, number: usize, noise: f32) -> Vec<Unit> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let centres: Vec<Vec<f32>> =
        (0..people).map(|_| (0..16).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
    let unit = |at: usize| {
        let face: Vec<f32> =
            centres[at % people].iter().map(|c| c + noise * random.random_range(-1.0_f32..1.0)).collect();
        Unit { members: 1, mean: normalised(&face) }
    };
    (0..number).map(unit).collect()
}

/// Merges the two nearest clusters again and again, with all pairs compared each time.
fn by_definition(units: &[Unit], least: f64, apart: &[(usize, usize)]) -> Vec<usize> {
    let mut clusters: Vec<Vec<usize>> = (0..units.len()).map(|unit| vec![unit]).collect();
    let mean = |a: &[usize], b: &[usize]| {
        let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b)));
        let (sum, weight) = pairs.fold((0.0, 0.0), |(sum, weight), (a, b)| {
            let members = (units[a].members * units[b].members) as f64;
            (sum + members * dot(&units[a].mean, &units[b].mean), weight + members)
        });
        sum / weight
    };
    let forbidden = |a: &[usize], b: &[usize]| {
        apart.iter().any(|(x, y)| (a.contains(x) && b.contains(y)) || (a.contains(y) && b.contains(x)))
    };
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for b in 0..clusters.len() {
            for a in 0..b {
                let mean = mean(&clusters[a], &clusters[b]);
                if mean >= least
                    && !forbidden(&clusters[a], &clusters[b])
                    && best.is_none_or(|(highest, ..)| mean > highest)
                {
                    best = Some((mean, a, b));
                }
            }
        }
        let Some((_, a, b)) = best else { break };
        let gone = clusters.remove(b);
        clusters[a].extend(gone);
        clusters[a].sort_unstable();
    }
    clusters.sort_unstable();
    let mut labels = vec![0; units.len()];
    for (number, cluster) in clusters.iter().enumerate() {
        cluster.iter().for_each(|unit| labels[*unit] = number);
    }
    labels
}

fn linked(units: &[Unit], apart: &[(usize, usize)]) -> Vec<usize> {
    link(units, 0.5, apart, &|_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn chains_find_the_clusters_of_the_definition() {
    for seed in 0..20 {
        let mut units = units(seed, 9, 60, 0.8);
        assert_eq!(linked(&units, &[]), by_definition(&units, 0.5, &[]), "{seed}");
        for (at, unit) in units.iter_mut().enumerate() {
            unit.members = 1 + u64::try_from(at % 4).unwrap();
        }
        assert_eq!(linked(&units, &[]), by_definition(&units, 0.5, &[]), "{seed}");
    }
}

#[test]
fn units_that_must_stay_apart_do() {
    for seed in 0..20 {
        let units = units(seed, 4, 40, 0.6);
        let apart = [(0, 4), (1, 5), (2, 6)];
        let labels = linked(&units, &apart);
        assert!(apart.iter().all(|(a, b)| labels[*a] != labels[*b]), "{labels:?}");
        let free = linked(&units, &[]);
        assert!(apart.iter().any(|(a, b)| free[*a] == free[*b]), "{free:?}");
    }
}

#[test]
fn the_order_of_the_units_does_not_matter() {
    let units = units(5, 10, 80, 0.9);
    let labels = linked(&units, &[]);
    let reversed: Vec<Unit> = units.iter().rev().cloned().collect();
    let mut backwards = linked(&reversed, &[]);
    backwards.reverse();
    for a in 0..labels.len() {
        for b in 0..a {
            assert_eq!(labels[a] == labels[b], backwards[a] == backwards[b]);
        }
    }
}

#[test]
fn equal_units_are_one_cluster_and_none_is_none() {
    let same = vec![Unit { members: 1, mean: vec![0.0, 1.0] }; 100];
    assert_eq!(linked(&same, &[]), vec![0; 100]);
    assert_eq!(linked(&[], &[]), Vec::<usize>::new());
}

#[test]
fn a_link_can_be_cancelled_and_checks_its_input() {
    let some = units(1, 3, 200, 0.5);
    let cancelled = link(&some, 0.5, &[], &|done| match done {
        ..100 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert_eq!(cancelled, Err(IdentifyError::Cancelled));
    // While they are merged too.
    let asked = AtomicUsize::new(0);
    let cancelled = link(&some, 0.5, &[], &|_| match asked.fetch_add(1, Ordering::Relaxed) {
        ..200 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert_eq!((cancelled, asked.into_inner()), (Err(IdentifyError::Cancelled), 201));
    let other = Unit { members: 1, mean: vec![1.0] };
    let mixed = [some[0].clone(), other];
    let refused = link(&mixed, 0.5, &[], &|_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(IdentifyError::Dimensions { found: 1, .. })));
}
