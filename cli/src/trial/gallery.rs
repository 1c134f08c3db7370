//! The gallery of a trial: a folder with one subfolder of photographs per person.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Server;
use crate::{interrupt, pictures, progress};

#[derive(Debug, Clone)]
pub struct Person {
    /// Their Face ID.
    pub id: String,
    /// Photographs ordered by file name.
    pub photographs: Vec<PathBuf>,
    /// Photographs that the backend accepted.
    pub enrolled: Vec<PathBuf>,
}

impl Person {
    /// Returns whether the backend has a photograph of them.
    pub fn is_enrolled(&self) -> bool {
        !self.enrolled.is_empty()
    }
}

/// Enrols everybody with up to `shots` photographs, and trains. Returns false if interrupted.
///
/// # Errors
/// The backend fails. Refused photographs are reported and replaced by the next.
pub fn enroll(server: &Server, gallery: &mut [Person], shots: usize, say: &dyn Fn(&str)) -> Result<bool> {
    let wanted = gallery.iter().map(|person| person.photographs.len().min(shots)).sum::<usize>();
    let bar = progress::bar(wanted, "Enrolling");
    let mut refused = Vec::new();
    for person in gallery.iter_mut() {
        if !person.photographs.is_empty() {
            server.add_person(&person.id)?;
        }
        for photograph in &person.photographs {
            if person.enrolled.len() == shots {
                break;
            }
            if interrupt::requested() {
                bar.finish_and_clear();
                return Ok(false);
            }
            match server.add_image(&person.id, photograph)? {
                Ok(()) => {
                    person.enrolled.push(photograph.clone());
                    bar.inc(1);
                }
                Err(refusal) => {
                    refused.push(format!("{}: {refusal}", photograph.display()));
                }
            }
        }
    }
    bar.finish_and_clear();
    let (enrolled, without): (Vec<&Person>, Vec<&Person>) = gallery.iter().partition(|p| p.is_enrolled());
    let photographs: usize = enrolled.iter().map(|person| person.enrolled.len()).sum();
    say(&format!("Enrolled  {} people with {photographs} photographs", enrolled.len()));
    for line in refused {
        say(&format!("          passed over {line}"));
    }
    if !without.is_empty() {
        let names: Vec<&str> = without.iter().map(|person| person.id.as_str()).collect();
        say(&format!("          without a usable photograph, so not enrolled: {}", names.join(", ")));
    }
    if enrolled.is_empty() {
        return Ok(true);
    }
    let trained = progress::spinner("Training");
    let done = server.train()?;
    trained.finish_and_clear();
    Ok(done)
}

/// Reads `<folder>/<name>/**/*`, ordered by name. A person may have no photograph.
///
/// # Errors
/// The folder cannot be read, or has nobody in it.
pub fn read(folder: &Path) -> Result<Vec<Person>> {
    let people = pictures::in_person_folders(folder)?.report_skipped(folder)?.pictures;
    let person = |(id, photographs)| Person { id, photographs, enrolled: Vec::new() };
    Ok(people.into_iter().map(person).collect())
}
