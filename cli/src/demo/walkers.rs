//! Selects who walks through the demo's video: enrolled people, and strangers if at all possible.

use std::path::{Path, PathBuf};

use anyhow::Result;
use facepipe_vision::Mtcnn;

use crate::{
    bench::crowd::{
        self, Crowd,
        cast::{self, Candidate, Cast},
    },
    pictures,
    seeded_rng::SeededRng,
    trial::{self, Person},
};

/// Length of the video in seconds, and its density in faces per minute: eight walkers.
const SECONDS: u32 = 20;
const DENSITY: f64 = 570.0;
const SIZE: [u32; 2] = [1920, 1080];

/// One in this many walkers is a stranger.
const WALKERS_PER_STRANGER: usize = 4;

/// Photographs shown during a walk.
const MAX_PHOTOGRAPHS: usize = 4;

/// Fixed seed and streams: the demo is the same every time.
const SEED: u64 = 1;
const KNOWN_STREAM: u64 = 10;
const STRANGERS_STREAM: u64 = 11;
const HELD_OUT_STREAM: u64 = 12;

/// Candidates who are not enrolled.
pub struct Strangers {
    candidates: Vec<Candidate>,
    /// Number of people held out of the gallery for lack of other strangers.
    pub held_out: usize,
}

impl Strangers {
    /// Selects strangers: downloaded photographs of strangers; else people of another gallery, if one was named; else
    /// people held out of the gallery, unless it has only one.
    pub fn select(gallery: &mut Vec<Person>, options: &trial::Options) -> Self {
        let mut candidates: Vec<Candidate> = trial::strangers()
            .into_iter()
            .map(|photograph| Candidate { name: None, photographs: vec![photograph] })
            .collect();
        if candidates.is_empty() && options.faces_are_named() {
            candidates = from_other_galleries(gallery, options.faces_folder().as_deref());
        }
        if !candidates.is_empty() {
            return Self { candidates, held_out: 0 };
        }
        let held_out = match gallery.len() {
            0 | 1 => 0,
            2..8 => 1,
            _ => 2,
        };
        let mut order: Vec<usize> = (0..gallery.len()).collect();
        SeededRng::new(SEED, HELD_OUT_STREAM).shuffle(&mut order);
        order.truncate(held_out);
        let mut place = 0;
        let taken = gallery.extract_if(.., |_| {
            place += 1;
            order.contains(&(place - 1))
        });
        let candidates = taken
            .map(|Person { id, photographs, .. }| Candidate {
                name: Some(id),
                photographs: first_photographs(&photographs),
            })
            .collect();
        Self { candidates, held_out }
    }
}

/// Returns people of other galleries who are not in this one.
fn from_other_galleries(gallery: &[Person], named: Option<&Path>) -> Vec<Candidate> {
    let same =
        |folder: &PathBuf| named.is_some_and(|named| named.canonicalize().ok() == folder.canonicalize().ok());
    let mut candidates = Vec::new();
    for folder in trial::galleries().filter(|folder| !same(folder)) {
        let Ok(people) = pictures::in_person_folders(&folder) else { continue };
        for (name, photographs) in people.pictures {
            let is_enrolled = gallery.iter().any(|person| person.id.eq_ignore_ascii_case(&name));
            if !is_enrolled && !photographs.is_empty() {
                candidates.push(Candidate { name: None, photographs: first_photographs(&photographs) });
            }
        }
        if !candidates.is_empty() {
            break;
        }
    }
    candidates
}

fn first_photographs(photographs: &[PathBuf]) -> Vec<PathBuf> {
    photographs.iter().take(MAX_PHOTOGRAPHS).cloned().collect()
}

/// Selects photographs to show: those that were not enrolled, if there are any.
pub fn photographs_to_show(person: &Person) -> Candidate {
    let mut fresh = person.photographs.iter().filter(|photograph| !person.enrolled.contains(photograph));
    let mut photographs: Vec<PathBuf> = fresh.by_ref().take(MAX_PHOTOGRAPHS).cloned().collect();
    if photographs.is_empty() {
        photographs = first_photographs(&person.photographs);
    }
    Candidate { name: Some(person.id.clone()), photographs }
}

/// Numbers of a rendered crowd.
pub struct Rendered {
    pub walkers: usize,
    /// People of the gallery.
    pub people: usize,
    /// People who are not enrolled.
    pub strangers: usize,
}

/// Renders the video with its ground truth. Returns none if interrupted.
///
/// # Errors
/// No photograph shows a face, or the video cannot be written.
pub fn render(
    gallery: &[Person],
    strangers: Strangers,
    detector: &Mtcnn,
    out: &Path,
) -> Result<Option<Rendered>> {
    let frames = Crowd::frames_of(SECONDS);
    let walkers = crowd::walkers_needed(DENSITY, frames);
    let share = (walkers / WALKERS_PER_STRANGER).max(1);
    let other = cast::choose_among(
        strangers.candidates,
        true,
        detector,
        share,
        &mut SeededRng::new(SEED, STRANGERS_STREAM),
    )?;
    let Some(mut other) = other else { return Ok(None) };
    let wanted = walkers - other.people.len().min(walkers);
    let candidates = gallery.iter().map(photographs_to_show).collect();
    let known =
        cast::choose_among(candidates, true, detector, wanted, &mut SeededRng::new(SEED, KNOWN_STREAM))?;
    let Some(mut known) = known else { return Ok(None) };
    let (people, strangers) = (known.people.len(), other.people.len());
    known.people.append(&mut other.people);
    let cast = Cast { people: known.people, passed_over: Vec::new() };
    let crowd = Crowd {
        cast: &cast,
        always_visible: people..people + strangers,
        density: DENSITY,
        frames,
        fast: true,
        seed: SEED,
        size: SIZE,
    };
    let counts = crowd.render(out)?;
    Ok(counts.map(|counts| Rendered { walkers: counts.walkers, people, strangers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(id: &str, photographs: usize, enrolled: usize) -> Person {
        let photographs: Vec<PathBuf> =
            (0..photographs).map(|n| PathBuf::from(format!("{id}/{n}.jpg"))).collect();
        Person { id: id.into(), enrolled: photographs.iter().take(enrolled).cloned().collect(), photographs }
    }

    #[test]
    fn photographs_that_were_not_enrolled_are_preferred() {
        assert_eq!(
            photographs_to_show(&person("a", 7, 5)).photographs,
            ["a/5.jpg", "a/6.jpg"].map(PathBuf::from)
        );
        assert_eq!(
            photographs_to_show(&person("a", 2, 2)).photographs,
            ["a/0.jpg", "a/1.jpg"].map(PathBuf::from)
        );
        assert_eq!(photographs_to_show(&person("a", 20, 5)).photographs.len(), MAX_PHOTOGRAPHS);
    }
}
