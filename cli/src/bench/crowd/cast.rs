//! Who can walk through a crowd: people with the photographs that show their face.

use std::path::{Path, PathBuf};

use anyhow::Result;
use facepipe_vision::{Face, Mtcnn};
use image::{
    RgbImage,
    imageops::{self, FilterType},
};

use super::plan::HEAD_SIZE;
use crate::{
    exit::Failure,
    networks,
    pictures::{self, PassedOver},
    progress,
    seeded_rng::SeededRng,
};

/// A face that the detector is less sure of is not shown.
const MIN_CONFIDENCE: f32 = 0.99;

/// Width at which what is shown of a photograph is searched for further faces, pixels.
const SEARCH_WIDTH: u32 = 240;

/// People who can be shown.
#[derive(Debug, Default)]
pub struct Cast {
    /// Each with at least one photograph.
    pub people: Vec<Person>,
    /// Photographs that cannot be read or show no face.
    pub passed_over: Vec<PassedOver>,
}

/// Somebody who can be shown.
#[derive(Debug)]
pub struct Person {
    /// The folder's name; none for a stranger whose name nobody knows.
    pub name: Option<String>,
    /// At least one, in the order in which they were given.
    pub photographs: Vec<Photograph>,
}

/// Somebody who may be shown: nobody has looked yet whether the photographs show a face.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// As [`Person::name`].
    pub name: Option<String>,
    /// Their photographs.
    pub photographs: Vec<PathBuf>,
}

/// A photograph with a face.
#[derive(Debug)]
pub struct Photograph {
    /// The file.
    pub file: PathBuf,
    /// The middle of the face, pixels from the left and from the top.
    pub middle: [f64; 2],
    /// Width and height of the face, pixels.
    pub size: [f64; 2],
}

impl Photograph {
    /// A photograph whose face is there.
    pub fn new(file: PathBuf, face: &Face) -> Self {
        let bounds = face.bounding_box;
        Self {
            file,
            middle: bounds.center().map(f64::from),
            size: [bounds.width(), bounds.height()].map(f64::from),
        }
    }
}

/// Finds `wanted` people below `folder` (all, if there are fewer), in a random order. Only their photographs are
/// looked at. None where the program was asked to end.
///
/// # Errors
/// The folder cannot be read, nobody in it has a photograph with a face, or the detector fails.
pub fn choose_from_folder(
    folder: &Path,
    detector: &Mtcnn,
    wanted: usize,
    rng: &mut SeededRng,
) -> Result<Option<Cast>> {
    let (found, _) = pictures::people(folder)?;
    let candidate = |(name, photographs)| Candidate { name: Some(name), photographs };
    let candidates = found.pictures.into_iter().map(candidate).collect();
    let Some(mut cast) = choose_among(candidates, false, detector, wanted, rng)? else { return Ok(None) };
    cast.passed_over.splice(0..0, found.passed_over);
    if cast.people.is_empty() {
        let why = format!("none of its {} pictures shows a face", cast.passed_over.len());
        return Err(Failure::input(folder.display(), why).into());
    }
    Ok(Some(cast))
}

/// Finds `wanted` people among the candidates (fewer, if not so many have a photograph with a face), in a random order.
/// Only their photographs are looked at; `single_face`: those that show another face as well, which would walk along, are passed
/// over. None where the program was asked to end.
///
/// # Errors
/// The detector fails.
pub fn choose_among(
    mut candidates: Vec<Candidate>,
    single_face: bool,
    detector: &Mtcnn,
    wanted: usize,
    rng: &mut SeededRng,
) -> Result<Option<Cast>> {
    rng.shuffle(&mut candidates);
    let mut candidates = candidates.into_iter();
    let mut cast = Cast::default();
    let bar = progress::bar(0, "Faces");
    loop {
        let round: Vec<Candidate> =
            candidates.by_ref().take(wanted.saturating_sub(cast.people.len())).collect();
        if round.is_empty() {
            break;
        }
        let files: Vec<(usize, PathBuf)> = round
            .iter()
            .enumerate()
            .flat_map(|(person, candidate)| {
                candidate.photographs.iter().map(move |file| (person, file.clone()))
            })
            .collect();
        bar.inc_length(files.len().try_into().unwrap_or_default());
        let results = networks::in_parallel(&files, &bar, |(person, file)| {
            Ok((*person, find_face(detector, file, single_face)?))
        })?;
        let Some(results) = results else {
            bar.finish_and_clear();
            return Ok(None);
        };
        let mut photographs: Vec<Vec<Photograph>> = round.iter().map(|_| Vec::new()).collect();
        for (person, outcome) in results {
            match (outcome, photographs.get_mut(person)) {
                (Ok(photograph), Some(photographs)) => photographs.push(photograph),
                (Ok(_), None) => {}
                (Err(passed_over), _) => cast.passed_over.push(passed_over),
            }
        }
        for (Candidate { name, .. }, photographs) in round.into_iter().zip(photographs) {
            if !photographs.is_empty() {
                cast.people.push(Person { name, photographs });
            }
        }
    }
    bar.finish_and_clear();
    Ok(Some(cast))
}

/// The photograph's face that is nearest to its middle.
fn find_face(detector: &Mtcnn, file: &Path, single_face: bool) -> Result<Result<Photograph, PassedOver>> {
    let picture = match networks::read_image(file) {
        Ok(picture) => picture,
        Err(passed_over) => return Ok(Err(passed_over)),
    };
    let faces = detector.detect(&picture)?;
    if single_face && faces.len() > 1 {
        return Ok(Err(PassedOver::new(file, format!("{} faces in it", faces.len()))));
    }
    let nearest = faces
        .iter()
        .filter(|face| face.confidence > MIN_CONFIDENCE)
        .min_by(|a, b| distance_to_middle(&picture, a).total_cmp(&distance_to_middle(&picture, b)));
    Ok(match nearest {
        // What is pasted is searched once more: the half of a face at its edge counts there.
        Some(face) if single_face && !is_only_face(detector, &picture, face)? => {
            Err(PassedOver::new(file, "another face close by"))
        }
        Some(face) => Ok(Photograph::new(file.to_owned(), face)),
        None => Err(PassedOver::new(file, format!("no face in it whose score is above {MIN_CONFIDENCE}"))),
    })
}

/// Whether nothing else in the part of the picture that is shown is taken for a face.
fn is_only_face(detector: &Mtcnn, picture: &RgbImage, face: &Face) -> Result<bool> {
    let bounds = face.bounding_box;
    let [x, y] = bounds.center().map(f64::from);
    let [across, down] = HEAD_SIZE.map(|times| times * f64::from(bounds.height()) / 2.0);
    let [left, top] = [x - across, y - down].map(pixel);
    let (width, height) = (pixel(x + across) - left, pixel(y + down) - top);
    let shown = imageops::crop_imm(picture, left, top, width, height).to_image();
    let larger = imageops::resize(
        &shown,
        SEARCH_WIDTH,
        (SEARCH_WIDTH * height).div_ceil(width.max(1)).max(1),
        FilterType::Triangle,
    );
    Ok(detector.detect(&larger)?.len() == 1)
}

/// The whole number below; 0 for less than that.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts from float saturate")]
fn pixel(at: f64) -> u32 {
    at as u32
}

fn distance_to_middle(picture: &RgbImage, face: &Face) -> f64 {
    let [x, y] = face.bounding_box.center().map(f64::from);
    let (across, down) = (x - f64::from(picture.width()) / 2.0, y - f64::from(picture.height()) / 2.0);
    across * across + down * down
}
