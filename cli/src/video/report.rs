//! What a recognition found: a line for each face, who was there from when to when, and the files of it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use gstfacepipe::results::Verdict;
use serde::Serialize;

use super::index::Edges;
use crate::{exit::Failure, output};

/// A face that was sent to the server, and the answer.
#[derive(Debug, Clone, Serialize)]
pub struct Face {
    /// When, from the beginning of the source.
    pub seconds: f64,
    /// The same as a date, where it is known: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captured_at: Option<String>,
    /// Number of the track: faces that are one that was followed have the same.
    pub track: Option<i32>,
    /// The face in the frame.
    #[serde(rename = "box")]
    pub face: Edges,
    /// How sure the detector at this end is that it is a face, 0 to 1.
    pub score: f64,
    /// What the server says.
    pub decision: Decision,
    /// Who it is, where the server knows.
    pub name: Option<String>,
    /// How sure the server is of the name, 0 to 1.
    pub confidence: Option<f64>,
}

/// What the server says of a face.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Somebody who is enrolled.
    Known,
    /// Nobody who is enrolled.
    Unknown,
    /// No face.
    NoFace,
    /// It refused the picture.
    Refused,
}

impl Face {
    /// What is drawn for it; nothing where the server said nothing.
    pub fn verdict(&self) -> Option<Verdict> {
        match (self.decision, &self.name) {
            (Decision::Known, Some(name)) => {
                Some(Verdict::Known { label: name.clone(), confidence: self.confidence.unwrap_or(0.0) })
            }
            (Decision::Known | Decision::Unknown, _) => Some(Verdict::Unknown),
            (Decision::NoFace, _) => Some(Verdict::NoFace),
            (Decision::Refused, _) => None,
        }
    }
}

/// Somebody who was recognised.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Person {
    /// Who.
    pub name: String,
    /// Faces of them that were sent, and tracks that they belong to.
    pub faces: u64,
    /// Tracks.
    pub tracks: usize,
    /// Seconds from the beginning of the source.
    pub first_seconds: f64,
    /// The same.
    pub last_seconds: f64,
}

/// The sums.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// What was played.
    pub source: String,
    /// Frames of the source, and those of them that were searched.
    pub frames: u64,
    /// Searched.
    pub searched: u64,
    /// Frames that a live source sent faster than they could be searched.
    pub late: u64,
    /// Faces that were answered.
    pub faces: usize,
    /// By decision.
    pub known: usize,
    /// By decision.
    pub unknown: usize,
    /// By decision.
    pub no_face: usize,
    /// Faces that the server refused.
    pub refused: usize,
    /// Faces that were not answered: of a live source while the server was slow, or on their way at the end.
    pub unanswered: u64,
    /// Length of what was played, and how long it took.
    pub seconds: f64,
    /// How long it took.
    pub elapsed_seconds: f64,
    /// It was ended by Ctrl-C.
    pub interrupted: bool,
    /// Who was there, by name.
    pub people: Vec<Person>,
}

/// The faces, in the order of the answers.
#[derive(Debug, Default)]
pub struct Faces {
    all: Vec<Face>,
    by_track: HashMap<i32, Verdict>,
}

impl Faces {
    /// Adds a face. The verdict of its track, where it is another one now.
    pub fn add(&mut self, face: Face) -> Option<(i32, &Verdict)> {
        let news = face.track.zip(face.verdict());
        self.all.push(face);
        let (track, verdict) = news?;
        let earlier = self.by_track.get(&track);
        if earlier.is_some_and(|earlier| *earlier == verdict || !verdict.outweighs(earlier)) {
            return None;
        }
        self.by_track.insert(track, verdict);
        self.by_track.get(&track).map(|verdict| (track, verdict))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// How many the server says this of.
    pub fn count(&self, decision: Decision) -> usize {
        self.all.iter().filter(|face| face.decision == decision).count()
    }

    /// The best that is known of each track.
    pub fn verdicts(&self) -> &HashMap<i32, Verdict> {
        &self.by_track
    }

    /// Who was there, by name.
    pub fn people(&self) -> Vec<Person> {
        let mut people: BTreeMap<&str, (Person, std::collections::HashSet<i32>)> = BTreeMap::new();
        for face in &self.all {
            let Some(name) = &face.name else { continue };
            let (person, tracks) = people.entry(name).or_insert_with(|| {
                let person = Person {
                    name: name.clone(),
                    faces: 0,
                    tracks: 0,
                    first_seconds: face.seconds,
                    last_seconds: face.seconds,
                };
                (person, [].into())
            });
            person.faces += 1;
            person.first_seconds = person.first_seconds.min(face.seconds);
            person.last_seconds = person.last_seconds.max(face.seconds);
            tracks.extend(face.track);
        }
        people.into_values().map(|(person, tracks)| Person { tracks: tracks.len(), ..person }).collect()
    }

    fn in_order(&self) -> Vec<&Face> {
        let mut faces: Vec<&Face> = self.all.iter().collect();
        faces.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.track.cmp(&b.track)));
        faces
    }
}

/// The form of a report's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Csv,
}

/// The file of a report.
#[derive(Debug, Clone)]
pub struct ReportFile {
    path: PathBuf,
    form: Form,
}

impl std::str::FromStr for ReportFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let form = match extension.to_ascii_lowercase().as_str() {
            "json" => Form::Json,
            "csv" => Form::Csv,
            _ => return Err("must end in .json or .csv".into()),
        };
        Ok(Self { path, form })
    }
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    detections: Vec<&'a Face>,
}

impl ReportFile {
    /// Makes sure that the file can be written, before the work is done.
    ///
    /// # Errors
    /// Its folder is missing or cannot be written.
    pub fn check(&self) -> Result<(), Failure> {
        tempfile::NamedTempFile::new_in(folder_of(&self.path))
            .map(drop)
            .map_err(|error| Failure::output(self.path.display(), error))
    }

    /// Writes the file; it is there whole or not at all.
    ///
    /// # Errors
    /// The disk is full or cannot be written.
    pub fn write(&self, summary: &Summary, faces: &Faces) -> Result<()> {
        let content = match self.form {
            Form::Json => {
                let mut json =
                    serde_json::to_vec_pretty(&Document { summary, detections: faces.in_order() })?;
                json.push(b'\n');
                json
            }
            Form::Csv => csv(&faces.in_order())?,
        };
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder_of(&self.path))?;
            file.write_all(&content)?;
            file.as_file().set_permissions(fs::Permissions::from_mode(0o640))?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().map_err(|error| Failure::output(self.path.display(), error))?;
        Ok(())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The folder that a file lies in, or is to lie in.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn csv(faces: &[&Face]) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Row<'a> {
        seconds: f64,
        captured_at: Option<&'a str>,
        track: Option<i32>,
        left: u32,
        top: u32,
        right: u32,
        bottom: u32,
        score: f64,
        decision: Decision,
        name: Option<&'a str>,
        confidence: Option<f64>,
    }
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    // Written by hand, so that a report without faces has its headings, too.
    writer.write_record([
        "seconds",
        "captured_at",
        "track",
        "left",
        "top",
        "right",
        "bottom",
        "score",
        "decision",
        "name",
        "confidence",
    ])?;
    for face in faces {
        let Edges { left, top, right, bottom } = face.face;
        writer.serialize(Row {
            seconds: face.seconds,
            captured_at: face.captured_at.as_deref(),
            track: face.track,
            left,
            top,
            right,
            bottom,
            score: face.score,
            decision: face.decision,
            name: face.name.as_deref(),
            confidence: face.confidence,
        })?;
    }
    Ok(writer.into_inner()?)
}

impl Summary {
    /// Writes it for people.
    pub fn print(&self) {
        let speed = if self.elapsed_seconds > 0.0 { self.seconds / self.elapsed_seconds } else { 0.0 };
        let some =
            |count: u64, words: &str| if count > 0 { format!(", {count} {words}") } else { String::new() };
        output::line(format!(
            "Frames    {} ({} searched{})",
            self.frames,
            self.searched,
            some(self.late, "came too fast")
        ));
        output::line(format!(
            "Faces     {}: {} known, {} unknown, {} no face{}{}",
            self.faces,
            self.known,
            self.unknown,
            self.no_face,
            some(u64::try_from(self.refused).unwrap_or(0), "refused"),
            some(self.unanswered, "unanswered"),
        ));
        output::line(format!(
            "Time      {:.1} s of video in {:.1} s, {speed:.1} times as fast",
            self.seconds, self.elapsed_seconds
        ));
        if !self.people.is_empty() {
            output::line("");
            let time = |seconds: f64| format!("{seconds:.1} s");
            output::table(
                ["NAME", "FACES", "TRACKS", "FIRST", "LAST"],
                self.people.iter().map(|person| {
                    [
                        person.name.clone(),
                        person.faces.to_string(),
                        person.tracks.to_string(),
                        time(person.first_seconds),
                        time(person.last_seconds),
                    ]
                }),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(seconds: f64, track: i32, decision: Decision, name: Option<&str>) -> Face {
        Face {
            seconds,
            captured_at: None,
            track: Some(track),
            face: Edges { left: 1, top: 2, right: 3, bottom: 4 },
            score: 0.75,
            decision,
            name: name.map(str::to_owned),
            confidence: name.map(|_| 0.5),
        }
    }

    #[test]
    fn the_best_of_a_track_counts_and_only_news_are_told() {
        let mut faces = Faces::default();
        assert_eq!(faces.add(face(1.0, 7, Decision::NoFace, None)), Some((7, &Verdict::NoFace)));
        assert!(faces.add(face(2.0, 7, Decision::Known, Some("Ada"))).is_some());
        assert_eq!(faces.add(face(3.0, 7, Decision::Known, Some("Ada"))), None, "said already");
        assert_eq!(faces.add(face(4.0, 7, Decision::Unknown, None)), None, "less than a name");
        assert_eq!(faces.add(face(5.0, 8, Decision::Refused, None)), None);
        assert!(matches!(faces.verdicts().get(&7), Some(Verdict::Known { label, .. }) if label == "Ada"));
        assert_eq!((faces.len(), faces.count(Decision::Known)), (5, 2));
    }

    #[test]
    fn people_have_their_first_and_last_time_whatever_the_order_of_answers() {
        let mut faces = Faces::default();
        for (seconds, track, name) in [(3.0, 1, "Ada"), (1.0, 1, "Ada"), (9.0, 4, "Ada"), (2.0, 2, "Bob")] {
            faces.add(face(seconds, track, Decision::Known, Some(name)));
        }
        faces.add(face(0.5, 5, Decision::Unknown, None));
        let ada = Person { name: "Ada".into(), faces: 3, tracks: 2, first_seconds: 1.0, last_seconds: 9.0 };
        let bob = Person { name: "Bob".into(), faces: 1, tracks: 1, first_seconds: 2.0, last_seconds: 2.0 };
        assert_eq!(faces.people(), [ada, bob]);
    }

    #[test]
    fn a_report_is_sorted_by_time_and_its_csv_always_has_headings() {
        let mut faces = Faces::default();
        let headings = "seconds,captured_at,track,left,top,right,bottom,score,decision,name,confidence\n";
        let text = |faces: &Faces| String::from_utf8(csv(&faces.in_order()).expect("csv")).expect("text");
        assert_eq!(text(&faces), headings);
        faces.add(face(2.5, 1, Decision::Known, Some("Ada, Countess")));
        faces.add(face(1.25, 2, Decision::NoFace, None));
        let rows = "1.25,,2,1,2,3,4,0.75,no_face,,\n2.5,,1,1,2,3,4,0.75,known,\"Ada, Countess\",0.5\n";
        assert_eq!(text(&faces), format!("{headings}{rows}"));
        assert!("out.txt".parse::<ReportFile>().is_err());
        let missing: ReportFile = "/nonexistent/out.csv".parse().expect("a file");
        assert!(missing.check().expect_err("refused").to_string().contains("/nonexistent/out.csv"));
    }
}
