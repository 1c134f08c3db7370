//! The people who are enrolled: a folder with one folder of photographs for each.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Server;
use crate::{interrupt, pictures, progress};

/// One person of the gallery with the photographs that there are.
pub struct Person {
    /// Their Face ID.
    pub id: String,
    photographs: Vec<PathBuf>,
}

/// Enrols everybody with so many photographs each, and trains. False where the program was asked to end before that was
/// done.
///
/// # Errors
/// The backend fails. A photograph that it refuses is said, and the next one is taken.
pub fn enrol(server: &Server, gallery: &[Person], shots: usize, say: &dyn Fn(&str)) -> Result<bool> {
    let wanted = gallery.iter().map(|person| person.photographs.len().min(shots)).sum::<usize>();
    let bar = progress::bar(wanted, "Enrolling");
    let mut refused = Vec::new();
    let mut enrolled = 0;
    for person in gallery {
        server.add_person(&person.id)?;
        let mut accepted = 0;
        for photograph in &person.photographs {
            if accepted == shots {
                break;
            }
            if interrupt::requested() {
                bar.finish_and_clear();
                return Ok(false);
            }
            match server.add_image(&person.id, photograph)? {
                Ok(()) => {
                    accepted += 1;
                    bar.inc(1);
                }
                Err(refusal) => {
                    refused.push(format!("{}: {refusal}", photograph.display()));
                }
            }
        }
        enrolled += accepted;
    }
    bar.finish_and_clear();
    say(&format!("Enrolled  {} people with {enrolled} photographs", gallery.len()));
    for line in refused {
        say(&format!("          passed over {line}"));
    }
    let trained = progress::spinner("Training");
    let done = server.train()?;
    trained.finish_and_clear();
    Ok(done)
}

/// Reads `<folder>/<name>/**/*`, in the order of the names.
///
/// # Errors
/// The folder cannot be read, or has nobody in it.
pub fn read(folder: &Path) -> Result<Vec<Person>> {
    let people = pictures::by_person(folder)?;
    Ok(people.into_iter().map(|(id, photographs)| Person { id, photographs }).collect())
}
