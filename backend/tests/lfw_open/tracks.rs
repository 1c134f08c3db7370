//! Crops of one track are decided together: from two crops, fewer people are missed than from one, and no more strangers named.

use facepipe_backend::parts::{EmbeddingSum, IdentifiedFace};

use crate::{
    calibration::{ENROLLED, Gallery, enrolled},
    pictures::{Picture, embeddings, lfw_open},
};

/// The face in the middle of a picture, as the server has it.
fn central_face(picture: &Picture) -> Option<IdentifiedFace> {
    let found = &picture.faces[picture.central?];
    Some(IdentifiedFace {
        bounding_box: found.face.bounding_box.into(),
        detection_confidence: found.face.confidence,
        known: false,
        score: None,
        threshold: 0.0,
        predictions: Vec::new(),
        embedding: found.embedding.clone(),
        crops: 1,
        quality: found.quality,
    })
}

/// The mean embedding of crops, weighted as the server does.
fn mean(crops: &[&IdentifiedFace]) -> Vec<f32> {
    let mut sum = EmbeddingSum::default();
    crops.iter().for_each(|crop| sum.add(crop));
    sum.mean()
}

#[test]
fn two_crops_miss_at_most_half_a_percent() {
    let lfw = lfw_open!();
    let (cohort, strangers) = (embeddings(&lfw.cohort), embeddings(&lfw.strangers));
    let gallery = Gallery::of(&lfw.people.iter().collect::<Vec<_>>(), ENROLLED);
    let threshold = gallery.calibrated(0.01, &cohort).threshold;
    let (mut searches, mut missed) = ([0_u32; 2], [0_u32; 2]);
    for person in &lfw.people {
        let enrolled = enrolled(person, ENROLLED);
        let faces: Vec<IdentifiedFace> = person.pictures.iter().filter_map(central_face).collect();
        let probes: Vec<&IdentifiedFace> = faces
            .iter()
            .enumerate()
            .filter(|(index, _)| !enrolled.contains(index))
            .map(|(_, face)| face)
            .collect();
        let mut search = |crops: &[&IdentifiedFace]| {
            searches[crops.len() - 1] += 1;
            let label = gallery.identified(&mean(crops), threshold);
            missed[crops.len() - 1] += u32::from(label.as_deref() != Some(person.name.as_str()));
        };
        for (index, first) in probes.iter().enumerate() {
            search(&[first]);
            for second in &probes[index + 1..] {
                search(&[first, second]);
            }
        }
    }
    // A track of two strangers' photographs is none: each is one crop, as in the calibration.
    let fpir = gallery.fpir(&strangers, threshold);
    let rates = [0, 1].map(|crops| f64::from(missed[crops]) / f64::from(searches[crops]));
    println!(
        "150 people, threshold {threshold:.4}, FPIR {:.2} %: FNIR {:.2} % of {} single crops, {:.2} % of {} pairs",
        fpir * 100.0,
        rates[0] * 100.0,
        searches[0],
        rates[1] * 100.0,
        searches[1],
    );
    assert!(searches[1] > 200, "{searches:?}");
    assert!(rates[1] <= 0.005 && rates[1] <= rates[0], "{rates:?}");
    assert!(fpir <= 0.015, "{fpir}");
}
