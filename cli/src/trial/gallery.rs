//! The people who are enrolled: a folder with one folder of photographs for each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::Server;
use crate::progress;

/// One person of the gallery with the photographs that there are.
pub struct Person {
    /// Their Face ID.
    pub id: String,
    photographs: Vec<PathBuf>,
}

/// Enrols everybody with so many photographs each, and trains.
///
/// # Errors
/// The backend fails. A photograph that it refuses is said, and the next one is taken.
pub fn enrol(server: &Server, gallery: &[Person], shots: usize, say: &dyn Fn(&str)) -> Result<()> {
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
            match server.add_image(&person.id, photograph)? {
                Ok(()) => {
                    accepted += 1;
                    bar.inc(1);
                }
                Err(refusal) => {
                    refused.push(format!("{}: {} ({})", photograph.display(), refusal.message, refusal.code));
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
    server.train()?;
    trained.finish_and_clear();
    Ok(())
}

/// Reads `<folder>/<name>/*`, in the order of the names.
///
/// # Errors
/// The folder cannot be read, or has nobody in it.
pub fn read(folder: &Path) -> Result<Vec<Person>> {
    let mut gallery = Vec::new();
    for directory in sorted_entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let Some(id) = directory.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
            bail!("{}: the name of a person's folder must be valid UTF-8", directory.display());
        };
        let photographs: Vec<PathBuf> =
            sorted_entries(&directory)?.into_iter().filter(|path| is_picture(path)).collect();
        if !photographs.is_empty() {
            gallery.push(Person { id, photographs });
        }
    }
    if gallery.is_empty() {
        bail!("{}: no folder in it has a picture (expected <name>/*.jpg)", folder.display());
    }
    Ok(gallery)
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    matches!(extension.as_str(), "jpg" | "jpeg" | "png" | "webp" | "bmp" | "gif")
}
