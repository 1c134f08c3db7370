//! Who was taken for whom, where the folders of pictures say who is on them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::output;

/// Counts of answers for each person whom the folders name.
#[derive(Debug, Default, Serialize)]
pub struct Confusion {
    people: BTreeMap<String, Row>,
}

/// The answers to one person's pictures.
#[derive(Debug, Default, Serialize)]
struct Row {
    /// Whether the server knows a person of that name: nobody else can be answered rightly by name.
    enrolled: bool,
    /// Pictures by the name that was answered.
    named: BTreeMap<String, usize>,
    /// Pictures whose face the server knows nobody for.
    unknown: usize,
    /// Pictures without a face.
    no_face: usize,
}

/// What the server said of a picture.
pub enum PredictedIdentity<'a> {
    /// Somebody who is enrolled.
    Named(&'a str),
    /// Nobody who is enrolled.
    Unknown,
    /// No face at all.
    NoFace,
}

impl Confusion {
    /// Counts a picture of `truth`.
    pub fn count(&mut self, truth: &str, enrolled: bool, predicted: &PredictedIdentity<'_>) {
        let row = self.people.entry(truth.to_owned()).or_default();
        row.enrolled = enrolled;
        match predicted {
            PredictedIdentity::Named(name) => *row.named.entry((*name).to_owned()).or_default() += 1,
            PredictedIdentity::Unknown => row.unknown += 1,
            PredictedIdentity::NoFace => row.no_face += 1,
        }
    }

    /// Whether any folder is named for a person whom the server knows: otherwise there is nothing to compare.
    pub fn is_meaningful(&self) -> bool {
        self.people.values().any(|row| row.enrolled)
    }

    /// Pictures with a face that were answered rightly, and all pictures with a face. Right is the name for somebody
    /// who is enrolled, `unknown` for everybody else.
    pub fn correct(&self) -> (usize, usize) {
        self.people.iter().fold((0, 0), |(right, all), (truth, row)| {
            let named: usize = row.named.values().sum();
            (right + row.correct(truth), all + named + row.unknown)
        })
    }

    /// Writes it as a table: a row per person.
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
