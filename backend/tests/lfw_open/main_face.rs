//! The main face of photographs of Labeled Faces in the Wild is the one in the middle, also with others beside it.

use facepipe_backend::parts::similarity_to_own;
use facepipe_vision::{EmbedderKind, load_embedder, main_face};

use crate::pictures::{Picture, PictureFace, lfw_open};

/// Width and height of the photographs.
const SIZE: [u32; 2] = [250, 250];

/// The position of a picture's main face.
fn chosen(picture: &Picture) -> Option<usize> {
    let faces: Vec<_> =
        picture.faces.iter().map(|face| (face.face.bounding_box, face.face.confidence)).collect();
    main_face(&faces, SIZE)
}

/// Whether a face of a picture is the one in the middle: it lies there, and no other one is nearer.
fn is_central(picture: &Picture, face: usize) -> bool {
    let distance = |face: &PictureFace| {
        let [x, y] = face.face.bounding_box.center();
        (x - SIZE[0] as f32 / 2.0).hypot(y - SIZE[1] as f32 / 2.0)
    };
    let own = distance(&picture.faces[face]);
    picture.central == Some(face) && picture.faces.iter().all(|other| distance(other) >= own)
}

#[test]
fn fewer_than_three_in_a_hundred_pictures_are_refused_and_no_wrong_face_is_taken() {
    let lfw = lfw_open!();
    let people: Vec<&Picture> = lfw.people.iter().flat_map(|person| &person.pictures).collect();
    let (strangers, cohort) = (lfw.strangers.iter().collect(), lfw.cohort.iter().collect());
    for (group, pictures) in [("people", people), ("strangers", strangers), ("cohort", cohort)] {
        let several = pictures.iter().filter(|picture| picture.faces.len() > 1).count();
        let refused = pictures.iter().filter(|picture| chosen(picture).is_none()).count();
        let is_wrong = |picture: &&&Picture| chosen(picture).is_some_and(|face| !is_central(picture, face));
        let wrong: Vec<_> = pictures.iter().filter(is_wrong).map(|picture| &picture.file).collect();
        println!("{group}: {} pictures, {several} with several faces, {refused} refused", pictures.len());
        assert!(several * 10 > pictures.len(), "the rule has something to decide");
        assert!(refused * 100 < 3 * pictures.len(), "{group}: {refused} of {}", pictures.len());
        assert!(wrong.is_empty(), "{group}: {wrong:?}");
    }
}

#[test]
fn own_pictures_are_seldom_warned_of_and_those_of_others_nearly_always() {
    let lfw = lfw_open!();
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let embedder = load_embedder(EmbedderKind::MobileFaceNet, &models).unwrap();
    let threshold = embedder.verification_threshold();
    let people: Vec<Vec<&[f32]>> = lfw.people.iter().map(|person| person.embeddings()).collect();
    for (enrolled, false_warnings) in [(1, 0.015), (3, 0.005)] {
        let (mut own, mut others) = ([0, 0], [0, 0]);
        for (position, embeddings) in people.iter().enumerate() {
            let before: Vec<Vec<f32>> = embeddings[..enrolled].iter().map(|face| face.to_vec()).collect();
            let is_warned_of = |face: &[f32]| {
                let similarity = similarity_to_own(face, &before, threshold).unwrap();
                usize::from(similarity.similarity < similarity.threshold)
            };
            for face in &embeddings[enrolled..] {
                own = [own[0] + is_warned_of(face), own[1] + 1];
            }
            // One photograph of each of ten others.
            for other in (1..=10).map(|step| &people[(position + 13 * step) % people.len()]) {
                others = [others[0] + is_warned_of(other[0]), others[1] + 1];
            }
        }
        let share = |[warned, of]: [usize; 2]| warned as f64 / of as f64;
        println!("{enrolled} enrolled: own {own:?}, others {others:?}");
        assert!(share(own) <= false_warnings, "{own:?}");
        assert!(share(others) >= 0.98, "{others:?}");
    }
}
