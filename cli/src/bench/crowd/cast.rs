//! Selects the people of a crowd video and the photographs that show their faces.

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

/// Faces with a lower detection confidence are not used.
const MIN_CONFIDENCE: f32 = 0.99;

/// Width to which the visible part of a photograph is scaled before it is searched for further faces, pixels.
const SEARCH_WIDTH: u32 = 240;

/// The selected people.
#[derive(Debug, Default)]
pub struct Cast {
    /// Each with at least one photograph.
    pub people: Vec<Person>,
    /// Photographs that cannot be read or show no usable face.
    pub passed_over: Vec<PassedOver>,
}

#[derive(Debug)]
pub struct Person {
    /// Name of the folder; none for a stranger.
    pub name: Option<String>,
    /// At least one, in the given order.
    pub photographs: Vec<Photograph>,
}

/// A person whose photographs have not been searched for faces yet.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// As [`Person::name`].
    pub name: Option<String>,
    pub photographs: Vec<PathBuf>,
}

/// A photograph with a face.
#[derive(Debug)]
pub struct Photograph {
    pub file: PathBuf,
    /// Centre of the face, `[x, y]` in pixels.
    pub middle: [f64; 2],
    /// Width and height of the face in pixels.
    pub size: [f64; 2],
}

impl Photograph {
    /// Describes a photograph by the face found in it.
    pub fn new(file: PathBuf, face: &Face) -> Self {
        let bounds = face.bounding_box;
        Self {
            file,
            middle: bounds.center().map(f64::from),
            size: [bounds.width(), bounds.height()].map(f64::from),
        }
    }
}

/// Selects up to `wanted` people from `folder` in random order; only their photographs are decoded. Returns none if
/// interrupted.
///
/// # Errors
/// The folder cannot be read, no photograph in it shows a face, or the detector fails.
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

/// Selects up to `wanted` candidates with a usable photograph in random order; only their photographs are decoded. With
/// `single_face`, photographs that show a second face are skipped. Returns none if interrupted.
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

/// Finds the face nearest to the centre of the photograph.
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
        // The pasted part is searched once more: a partial face at its edge would be detected in the video.
        Some(face) if single_face && !is_only_face(detector, &picture, face)? => {
            Err(PassedOver::new(file, "another face close by"))
        }
        Some(face) => Ok(Photograph::new(file.to_owned(), face)),
        None => Err(PassedOver::new(file, format!("no face in it whose score is above {MIN_CONFIDENCE}"))),
    })
}

/// Returns whether the visible part of the photograph contains no other face.
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

/// Rounds down; negative values become 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts from float saturate")]
fn pixel(at: f64) -> u32 {
    at as u32
}

fn distance_to_middle(picture: &RgbImage, face: &Face) -> f64 {
    let [x, y] = face.bounding_box.center().map(f64::from);
    let (across, down) = (x - f64::from(picture.width()) / 2.0, y - f64::from(picture.height()) / 2.0);
    across * across + down * down
}
