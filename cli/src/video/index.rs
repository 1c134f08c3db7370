//! The folder of an extraction: pictures of faces, and `index.jsonl` with a line for each. A picture is there whole or not
//! at all, and every line of the index is about a picture that is there.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// The name of the index in its folder.
pub const INDEX: &str = "index.jsonl";

/// A line of the index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The picture, in the same folder.
    pub file: String,
    /// When, from the beginning of the source.
    pub seconds: f64,
    /// The same as a date, where a live source tells it: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captured_at: Option<String>,
    /// Number of the track: pictures of one face that was followed have the same.
    pub track: Option<i32>,
    /// How sure the detector is, 0 to 1.
    pub score: f64,
    /// The face in the frame.
    #[serde(rename = "box")]
    pub face: Edges,
    /// Width and height of the frame, pixels.
    pub frame: [u32; 2],
    /// Size of the picture's file.
    pub bytes: u64,
    /// Why there is a picture: `best` of its track, or `every` face.
    pub policy: String,
}

/// A rectangle in pixels, from the left and upper side of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edges {
    /// Left side.
    pub left: u32,
    /// Upper side.
    pub top: u32,
    /// Right side.
    pub right: u32,
    /// Lower side.
    pub bottom: u32,
}

impl Edges {
    /// Of a face in a frame.
    pub fn of(face: &gstfacepipe::roi::FaceRegion) -> Self {
        Self {
            left: face.left,
            top: face.top,
            right: face.left.saturating_add(face.width),
            bottom: face.top.saturating_add(face.height),
        }
    }
}

impl Entry {
    /// A name that sorts by time, and says the rest: `00012.480_t0007_s0.93.jpg`.
    pub fn name(seconds: f64, track: Option<i32>, score: f64, extension: &str) -> String {
        format!("{seconds:09.3}_t{:04}_s{score:.2}.{extension}", track.unwrap_or(0))
    }
}

/// What is done with what is in the folder already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// It must be empty.
    Refuse,
    /// It is added to.
    Resume,
    /// The pictures that its index names are removed, and the index with them.
    Overwrite,
}

/// The folder, open for writing.
pub struct Folder {
    path: PathBuf,
    index: File,
    /// Bytes of the index that are whole lines.
    length: u64,
    names: HashSet<String>,
    /// Where an earlier run has ended, seconds.
    pub ended_at: Option<f64>,
    /// The highest track number of an earlier run.
    pub last_track: i32,
}

impl Folder {
    /// Opens the folder; makes it where there is none.
    ///
    /// # Errors
    /// It is not empty and `earlier` refuses that, its index is none, or it cannot be written.
    pub fn open(path: &Path, earlier: Earlier) -> Result<Self, Failure> {
        let wrong = |error: io::Error| Failure::output(path.display(), error);
        if path.exists() && !path.is_dir() {
            return Err(Failure::output(path.display(), "is not a folder"));
        }
        fs::create_dir_all(path).map_err(wrong)?;
        let is_empty = fs::read_dir(path).map_err(wrong)?.next().is_none();
        if !is_empty && earlier == Earlier::Refuse {
            return Err(Failure::Usage(format!(
                "{}: is not empty; --resume goes on where an earlier run ended, --overwrite begins anew",
                path.display()
            )));
        }
        let file = path.join(INDEX);
        let (entries, length) = read_index(&file)?;
        if earlier == Earlier::Overwrite {
            for entry in &entries {
                // Only what the index names as a file of this very folder is removed.
                if Path::new(&entry.file).components().count() == 1 {
                    let _ = fs::remove_file(path.join(&entry.file));
                }
            }
            let _ = fs::remove_file(&file);
            return Self::open_index(path, &file, &[], 0).map_err(wrong);
        }
        Self::open_index(path, &file, &entries, length).map_err(wrong)
    }

    fn open_index(path: &Path, file: &Path, entries: &[Entry], length: u64) -> io::Result<Self> {
        let mut index = OpenOptions::new().create(true).truncate(false).write(true).open(file)?;
        // What a run that was killed has left of a line goes.
        index.set_len(length)?;
        index.seek(SeekFrom::End(0))?;
        Ok(Self {
            path: path.to_owned(),
            index,
            length,
            names: entries.iter().map(|entry| entry.file.clone()).collect(),
            ended_at: entries.iter().map(|entry| entry.seconds).max_by(f64::total_cmp),
            last_track: entries.iter().filter_map(|entry| entry.track).max().unwrap_or(0),
        })
    }

    /// Whether there is a picture of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Adds a picture and its line.
    ///
    /// # Errors
    /// The disk is full, or cannot be written. The folder is then as it was.
    pub fn add(&mut self, entry: &Entry, picture: &[u8]) -> Result<(), Failure> {
        let target = self.path.join(&entry.file);
        let written = self.write(entry, picture, &target);
        written.map_err(|error| {
            let _ = fs::remove_file(&target);
            let _ = self.index.set_len(self.length).and_then(|()| self.index.seek(SeekFrom::End(0)));
            Failure::output(
                target.display(),
                format_args!("{error}; {INDEX} is right up to the picture before"),
            )
        })?;
        self.names.insert(entry.file.clone());
        Ok(())
    }

    fn write(&mut self, entry: &Entry, picture: &[u8], target: &Path) -> io::Result<()> {
        let mut temporary = tempfile::Builder::new().prefix(".face-").tempfile_in(&self.path)?;
        temporary.write_all(picture)?;
        let file = temporary.persist(target).map_err(|error| error.error)?;
        // Temporary files are made for their owner alone; these are as any other of the user's.
        readable_as_others(&file)?;
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.index.write_all(&line)?;
        self.length += u64::try_from(line.len()).unwrap_or(0);
        Ok(())
    }
}

/// Faces are biometric data: readable by user and group, as the folder lets them, and by nobody else.
fn readable_as_others(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(fs::Permissions::from_mode(0o640))
}

/// The entries of an index, and the length of its whole lines. An index that is not there has none.
fn read_index(file: &Path) -> Result<(Vec<Entry>, u64), Failure> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(Failure::input(file.display(), error)),
    };
    let mut entries = Vec::new();
    let mut length = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if !line.ends_with('\n') {
            break;
        }
        let entry = serde_json::from_str(line)
            .map_err(|error| Failure::input(file.display(), format_args!("line {}: {error}", number + 1)))?;
        entries.push(entry);
        length += u64::try_from(line.len()).unwrap_or(0);
    }
    Ok((entries, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seconds: f64, track: i32) -> Entry {
        Entry {
            file: Entry::name(seconds, Some(track), 0.934, "jpg"),
            seconds,
            captured_at: None,
            track: Some(track),
            score: 0.934,
            face: Edges { left: 1, top: 2, right: 30, bottom: 40 },
            frame: [640, 480],
            bytes: 3,
            policy: "best".into(),
        }
    }

    #[test]
    fn names_sort_by_time_and_say_track_and_score() {
        assert_eq!(Entry::name(12.48, Some(7), 0.934, "jpg"), "00012.480_t0007_s0.93.jpg");
        let names = [0.0, 9.9, 10.0, 99_999.0].map(|seconds| Entry::name(seconds, None, 1.0, "webp"));
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn a_second_run_goes_on_and_a_torn_line_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("faces");
        let mut first = Folder::open(&path, Earlier::Refuse).expect("opened");
        first.add(&entry(1.5, 3), b"abc").expect("added");
        first.add(&entry(0.5, 2), b"def").expect("added");
        drop(first);
        let torn = fs::read_to_string(path.join(INDEX)).expect("an index") + "{\"file\":\"0000";
        fs::write(path.join(INDEX), torn).expect("written");

        let refused = Folder::open(&path, Earlier::Refuse).err().expect("refused").to_string();
        assert!(refused.contains("--resume") && refused.contains("--overwrite"), "{refused}");
        let mut second = Folder::open(&path, Earlier::Resume).expect("opened");
        assert_eq!((second.ended_at, second.last_track), (Some(1.5), 3));
        assert!(second.has(&entry(1.5, 3).file) && !second.has(&entry(2.0, 3).file));
        second.add(&entry(2.0, 4), b"ghi").expect("added");
        let (entries, _) = read_index(&path.join(INDEX)).expect("read");
        assert_eq!(entries, [entry(1.5, 3), entry(0.5, 2), entry(2.0, 4)]);

        fs::write(path.join("notes.txt"), "mine").expect("written");
        let third = Folder::open(&path, Earlier::Overwrite).expect("opened");
        assert_eq!((third.ended_at, third.last_track), (None, 0));
        let mut left: Vec<_> =
            fs::read_dir(&path).expect("a folder").flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, [INDEX, "notes.txt"], "other people's files stay");
    }

    #[test]
    fn an_index_that_is_none_is_named_with_its_line() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(INDEX), "{}\n").expect("written");
        let error = Folder::open(folder.path(), Earlier::Resume).err().expect("refused").to_string();
        assert!(error.contains("index.jsonl") && error.contains("line 1"), "{error}");
    }
}
