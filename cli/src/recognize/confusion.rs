//! Confusion matrix of a folder of pictures whose subfolders name the people.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::output;

/// Counts of results per person.
#[derive(Debug, Default, Serialize)]
pub struct Confusion {
    people: BTreeMap<String, Row>,
}

/// Results of one person's pictures.
#[derive(Debug, Default, Serialize)]
struct Row {
    /// Whether the person is enrolled; only then can a name be correct.
    enrolled: bool,
    /// Pictures by recognised name.
    named: BTreeMap<String, usize>,
    /// Pictures with an unknown face.
    unknown: usize,
    /// Pictures without a face.
    no_face: usize,
}

/// Result of a picture.
pub enum PredictedIdentity<'a> {
    Named(&'a str),
    /// An unknown face.
    Unknown,
    NoFace,
}

impl Confusion {
    /// Counts a picture of the person `truth`.
    pub fn count(&mut self, truth: &str, enrolled: bool, predicted: &PredictedIdentity<'_>) {
        let row = self.people.entry(truth.to_owned()).or_default();
        row.enrolled = enrolled;
        match predicted {
            PredictedIdentity::Named(name) => *row.named.entry((*name).to_owned()).or_default() += 1,
            PredictedIdentity::Unknown => row.unknown += 1,
            PredictedIdentity::NoFace => row.no_face += 1,
        }
    }

    /// Returns whether any folder is named after an enrolled person.
    pub fn is_meaningful(&self) -> bool {
        self.people.values().any(|row| row.enrolled)
    }

    /// Returns the number of correct results and of pictures with a face. The name is correct for the enrolled, unknown for
    /// everybody else.
    pub fn correct(&self) -> (usize, usize) {
        self.people.iter().fold((0, 0), |(right, all), (truth, row)| {
            let named: usize = row.named.values().sum();
            (right + row.correct(truth), all + named + row.unknown)
        })
    }

    /// Prints a table with a row per person.
    pub fn print(&self) {
        let rows = self.people.iter().map(|(truth, row)| {
            let misidentified: Vec<String> = row
                .named
                .iter()
                .filter(|(name, _)| *name != truth)
                .map(|(name, count)| format!("{name} ({count})"))
                .collect();
            [
                if row.enrolled { truth.clone() } else { format!("{truth} (not enrolled)") },
                row.correct(truth).to_string(),
                row.unknown.to_string(),
                row.no_face.to_string(),
                misidentified.join(", "),
            ]
        });
        output::table(["Folder", "Right", "Unknown", "No face", "Taken for"], rows);
    }
}

impl Row {
    fn correct(&self, truth: &str) -> usize {
        if self.enrolled { self.named.get(truth).copied().unwrap_or(0) } else { self.unknown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_right_for_the_enrolled_and_unknown_for_everybody_else() {
        let mut confusion = Confusion::default();
        confusion.count("Ada", true, &PredictedIdentity::Named("Ada"));
        confusion.count("Ada", true, &PredictedIdentity::Named("Grace"));
        confusion.count("Ada", true, &PredictedIdentity::Unknown);
        confusion.count("Ada", true, &PredictedIdentity::NoFace);
        assert!(confusion.is_meaningful());
        confusion.count("Stranger", false, &PredictedIdentity::Unknown);
        confusion.count("Stranger", false, &PredictedIdentity::Named("Ada"));
        assert_eq!(confusion.correct(), (2, 5));
    }
}
