//! The report of a recognition: every face, and who was seen from when to when.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
};

use anyhow::Result;
use facepipe_shared::spreadsheet_cell;
use gstfacepipe::results::RecognitionResult;
use serde::Serialize;

use super::requests::Crop;
use crate::{
    exit::Failure,
    files, output,
    video::{faces::LeftOut, player::Player, source::Source},
};

/// A face that was sent to the server, with the result.
#[derive(Debug, Clone, Serialize)]
pub struct FaceRecord {
    /// Time since the start of the source.
    seconds: f64,
    /// Capture time, RFC 3339, UTC; only for live sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    captured_at: Option<String>,
    /// Id of the track.
    track: Option<i32>,
    /// `[left, top, right, bottom]` in pixels of the frame.
    #[serde(rename = "box")]
    bounding_box: [u32; 4],
    /// Confidence of the local detector, 0 to 1.
    score: f64,
    /// Decision of the server.
    decision: Decision,
    /// The name, if known.
    name: Option<String>,
    /// Confidence of the name, 0 to 1.
    confidence: Option<f64>,
}

/// Decision of the server on a face.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Known,
    /// Nobody enrolled.
    Unknown,
    /// No face found.
    NoFace,
    /// The server refused the picture.
    Refused,
}

impl FaceRecord {
    /// Combines a crop with the server's decision, the name and its confidence.
    pub fn new(crop: Crop, decision: Decision, known: Option<(String, f32)>) -> Self {
        let Crop { seconds, captured_at, track, bounding_box, score, .. } = crop;
        let (name, confidence) = known.unzip();
        let confidence = confidence.map(|confidence| (f64::from(confidence) * 10_000.0).round() / 10_000.0);
        Self { seconds, captured_at, track, bounding_box, score, decision, name, confidence }
    }

    /// Returns the result to draw; none if the server refused the picture.
    fn recognition_result(&self) -> Option<RecognitionResult> {
        match (self.decision, &self.name) {
            (Decision::Known, Some(name)) => Some(RecognitionResult::Known {
                label: name.clone(),
                confidence: self.confidence.unwrap_or(0.0),
            }),
            (Decision::Known | Decision::Unknown, _) => Some(RecognitionResult::Unknown),
            (Decision::NoFace, _) => Some(RecognitionResult::NoFace),
            (Decision::Refused, _) => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Person {
    name: String,
    /// Number of faces and of their tracks.
    faces: usize,
    tracks: usize,
    /// Seconds since the start of the source.
    first_seconds: f64,
    last_seconds: f64,
}

/// The result of a recognition.
#[derive(Debug, Serialize)]
pub struct Report {
    source: String,
    /// Frames of the source, and frames searched.
    frames: u64,
    searched: u64,
    /// Frames of a live source that arrived too fast to be searched.
    late: u64,
    /// Detected faces that were left out.
    left_out: LeftOut,
    /// Faces with a result, in total and by decision.
    faces: usize,
    known: usize,
    unknown: usize,
    no_face: usize,
    /// Faces that the server refused.
    pub refused: usize,
    /// Faces without a result: dropped while the server was slow or unavailable, or in flight at the end.
    unanswered: usize,
    /// Duration of the video played, and time taken.
    seconds: f64,
    elapsed_seconds: f64,
    /// Whether it was ended by Ctrl-C.
    interrupted: bool,
    people: Vec<Person>,
    /// In order of time.
    detections: Vec<FaceRecord>,
}

/// The faces, in order of their results.
#[derive(Debug, Default)]
pub struct Faces {
    all: Vec<FaceRecord>,
    by_track: HashMap<i32, RecognitionResult>,
}

/// A better result for a track.
#[derive(Debug)]
pub struct TrackUpdate<'a> {
    /// Id of the track.
    pub track: i32,
    /// The best result so far.
    pub result: &'a RecognitionResult,
    /// Whether the identity changed, and not only the confidence.
    pub identity_changed: bool,
}

impl Faces {
    /// Adds a face. Returns an update if the result of its track improved.
    pub fn add(&mut self, face: FaceRecord) -> Option<TrackUpdate<'_>> {
        let update = face.track.zip(face.recognition_result());
        self.all.push(face);
        let (track, result) = update?;
        let earlier = self.by_track.get(&track);
        if earlier.is_some_and(|earlier| *earlier == result || !result.supersedes(earlier)) {
            return None;
        }
        let identity_changed = match (&result, earlier) {
            (
                RecognitionResult::Known { label, .. },
                Some(RecognitionResult::Known { label: earlier, .. }),
            ) => label != earlier,
            _ => true,
        };
        let result = self.by_track.entry(track).insert_entry(result).into_mut();
        Some(TrackUpdate { track, result, identity_changed })
    }

    /// Returns the number of faces.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the number of faces with this decision.
    fn count(&self, decision: Decision) -> usize {
        self.all.iter().filter(|face| face.decision == decision).count()
    }

    /// Returns the best result of each track.
    pub fn track_results(&self) -> &HashMap<i32, RecognitionResult> {
        &self.by_track
    }

    /// Returns the recognised people by name.
    fn people(&self) -> Vec<Person> {
        let mut people: BTreeMap<&str, Vec<&FaceRecord>> = BTreeMap::new();
        for face in &self.all {
            if let Some(name) = &face.name {
                people.entry(name).or_default().push(face);
            }
        }
        let person = |(name, faces): (&str, Vec<&FaceRecord>)| Person {
            name: name.to_owned(),
            faces: faces.len(),
            tracks: faces.iter().filter_map(|face| face.track).collect::<HashSet<i32>>().len(),
            first_seconds: faces.iter().map(|face| face.seconds).fold(f64::INFINITY, f64::min),
            last_seconds: faces.iter().map(|face| face.seconds).fold(0.0, f64::max),
        };
        people.into_iter().map(person).collect()
    }

    fn into_order(mut self) -> Vec<FaceRecord> {
        self.all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.track.cmp(&b.track)));
        self.all
    }
}

/// Format of a report file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
}

#[derive(Debug, Clone)]
pub struct ReportFile {
    path: PathBuf,
    format: Format,
}

impl std::str::FromStr for ReportFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match extension.to_ascii_lowercase().as_str() {
            "json" => Format::Json,
            "csv" => Format::Csv,
            _ => return Err("must end in .json or .csv".into()),
        };
        Ok(Self { path, format })
    }
}

impl ReportFile {
    /// Checks that the file can be written, before the work is done.
    ///
    /// # Errors
    /// Its folder is missing or cannot be written.
    pub fn check(&self) -> Result<(), Failure> {
        tempfile::NamedTempFile::new_in(files::folder_of(&self.path))
            .map(drop)
            .map_err(|error| Failure::output(self.path.display(), error))
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// The disk is full or cannot be written.
    pub fn write(&self, report: &Report) -> Result<()> {
        let content = match self.format {
            Format::Json => {
                let mut json = serde_json::to_vec_pretty(report)?;
                json.push(b'\n');
                json
            }
            Format::Csv => csv(&report.detections)?,
        };
        files::replace(&self.path, &content, files::PRIVATE)?;
        Ok(())
    }
}

fn csv(faces: &[FaceRecord]) -> Result<Vec<u8>> {
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
        name: Option<Cow<'a, str>>,
        confidence: Option<f64>,
    }
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    // Explicit, so that a report without faces has headings too.
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
        let [left, top, right, bottom] = face.bounding_box;
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
            name: face.name.as_deref().map(spreadsheet_cell),
            confidence: face.confidence,
        })?;
    }
    Ok(writer.into_inner()?)
}

impl Report {
    /// Summarises a recognition.
    pub fn new(source: &Source, player: &Player, faces: Faces, unanswered: usize, interrupted: bool) -> Self {
        let counts = player.counts();
        Self {
            source: source.to_string(),
            frames: counts.frames,
            searched: counts.searched,
            late: counts.late,
            left_out: counts.left_out,
            faces: faces.len(),
            known: faces.count(Decision::Known),
            unknown: faces.count(Decision::Unknown),
            no_face: faces.count(Decision::NoFace),
            refused: faces.count(Decision::Refused),
            unanswered,
            seconds: player.seconds(),
            elapsed_seconds: player.elapsed().as_secs_f64(),
            interrupted,
            people: faces.people(),
            detections: faces.into_order(),
        }
    }

    /// Prints the summary.
    pub fn print(&self) {
        let speed = if self.elapsed_seconds > 0.0 { self.seconds / self.elapsed_seconds } else { 0.0 };
        let some = |count: &dyn std::fmt::Display, words: &str| match count.to_string().as_str() {
            "0" => String::new(),
            count => format!(", {count} {words}"),
        };
        output::line(format!(
            "Frames    {} ({} searched{})",
            self.frames,
            self.searched,
            some(&self.late, "came too fast")
        ));
        output::line(format!(
            "Faces     {}: {} known, {} unknown, {} no face{}{}",
            self.faces,
            self.known,
            self.unknown,
            self.no_face,
            some(&self.refused, "refused"),
            some(&self.unanswered, "unanswered"),
        ));
        output::line(format!(
            "Time      {:.1} s of video in {:.1} s, {speed:.1} times as fast",
            self.seconds, self.elapsed_seconds
        ));
        self.left_out.summary("--min-size").iter().for_each(output::line);
        if !self.people.is_empty() {
            output::line("");
            let time = |seconds: f64| format!("{seconds:.1} s");
            output::table(
                ["Name", "Faces", "Tracks", "First", "Last"],
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

    fn face(seconds: f64, track: i32, decision: Decision, name: Option<&str>) -> FaceRecord {
        FaceRecord {
            seconds,
            captured_at: None,
            track: Some(track),
            bounding_box: [1, 2, 3, 4],
            score: 0.75,
            decision,
            name: name.map(str::to_owned),
            confidence: name.map(|_| 0.5),
        }
    }

    #[test]
    fn the_best_result_of_a_track_counts_and_only_updates_are_returned() {
        let mut faces = Faces::default();
        let mut add = |track, decision, name: Option<(&str, f64)>| {
            let mut face = face(1.0, track, decision, name.map(|(name, _)| name));
            face.confidence = name.map(|(_, confidence)| confidence);
            faces.add(face).map(|update| update.identity_changed)
        };
        assert_eq!(add(7, Decision::NoFace, None), Some(true));
        assert_eq!(add(7, Decision::Known, Some(("Ada", 0.5))), Some(true));
        assert_eq!(add(7, Decision::Known, Some(("Ada", 0.5))), None, "said already");
        assert_eq!(add(7, Decision::Known, Some(("Ada", 0.6))), Some(false), "surer");
        assert_eq!(add(7, Decision::Known, Some(("Bob", 0.55))), None, "less sure");
        assert_eq!(add(7, Decision::Unknown, None), None, "less than a name");
        assert_eq!(add(8, Decision::Refused, None), None);
        assert!(
            matches!(faces.track_results().get(&7), Some(RecognitionResult::Known { label, .. }) if label == "Ada")
        );
        assert_eq!((faces.len(), faces.count(Decision::Known)), (7, 4));
    }

    #[test]
    fn people_have_first_and_last_times_regardless_of_result_order() {
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
        let text = |faces: Faces| String::from_utf8(csv(&faces.into_order()).expect("csv")).expect("text");
        assert_eq!(text(Faces::default()), headings);
        faces.add(face(2.5, 1, Decision::Known, Some("Ada, Countess")));
        faces.add(face(1.25, 2, Decision::NoFace, None));
        faces.add(face(3.5, 1, Decision::Known, Some("-1+1")));
        let rows = "1.25,,2,1,2,3,4,0.75,no_face,,\n2.5,,1,1,2,3,4,0.75,known,\"Ada, Countess\",0.5\n3.5,,1,1,2,3,4,0.75,known,'-1+1,0.5\n";
        assert_eq!(text(faces), format!("{headings}{rows}"));
        assert!("out.txt".parse::<ReportFile>().is_err());
        let missing: ReportFile = "/nonexistent/out.csv".parse().expect("a file");
        assert!(missing.check().expect_err("refused").to_string().contains("/nonexistent/out.csv"));
    }
}
