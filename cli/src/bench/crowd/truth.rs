//! Writes the ground truth while frames are painted, in the format that `trial::GroundTruth` reads.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use super::plan::FPS;
use crate::trial::{Appearance, Walker};

/// Writes a ground truth file. Memory does not grow with the number of frames.
pub struct GroundTruthWriter {
    file: BufWriter<File>,
    walkers: BTreeMap<u64, Walker>,
    frames: u64,
    faces: u64,
}

/// Totals of a complete file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub walkers: usize,
    /// Faces in all frames together.
    pub faces: u64,
    pub frames: u64,
}

impl GroundTruthWriter {
    /// Creates a file for frames of this width and height.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path, [width, height]: [u32; 2]) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        write!(file, "{{\"fps\":{FPS},\"size\":[{width},{height}],\"frames\":[")?;
        Ok(Self { file, walkers: BTreeMap::new(), frames: 0, faces: 0 })
    }

    /// Adds a frame; `name` returns the name of a walker, none for a stranger.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add<'a>(&mut self, faces: &[Appearance], name: impl Fn(u64) -> Option<&'a str>) -> io::Result<()> {
        if self.frames > 0 {
            self.file.write_all(b",")?;
        }
        serde_json::to_writer(&mut self.file, faces)?;
        for face in faces {
            self.walkers
                .entry(face.id)
                .or_insert_with(|| Walker { person: name(face.id).map(str::to_owned) });
        }
        self.frames += 1;
        self.faces += u64::try_from(faces.len()).unwrap_or_default();
        Ok(())
    }

    /// Finishes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> io::Result<Counts> {
        self.file.write_all(b"],\"walkers\":")?;
        serde_json::to_writer(&mut self.file, &self.walkers)?;
        self.file.write_all(b"}\n")?;
        self.file.flush()?;
        Ok(Counts { walkers: self.walkers.len(), faces: self.faces, frames: self.frames })
    }
}

#[cfg(test)]
mod tests {
    use facepipe_vision::BoundingBox;

    use super::*;
    use crate::trial::{GroundTruth, Score};

    fn boxed([left, top, right, bottom]: [f32; 4]) -> BoundingBox {
        BoundingBox { left, top, right, bottom }
    }

    #[test]
    fn written_ground_truth_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let video = folder.path().join("crowd.mp4");
        let mut truth = GroundTruthWriter::create(&video.with_extension("json"), [1920, 1080]).unwrap();
        truth.add(&[], |_| Some("nobody")).unwrap();
        truth
            .add(&[Appearance { id: 3, bounding_box: boxed([10.5, 20.0, 110.5, 140.0]) }], |_| {
                Some("Ada \"L\"")
            })
            .unwrap();
        truth
            .add(&[Appearance { id: 4, bounding_box: boxed([500.0, 20.0, 600.0, 140.0]) }], |_| None)
            .unwrap();
        let counts = truth.finish().unwrap();
        assert_eq!(counts, Counts { walkers: 2, faces: 2, frames: 3 });
        let truth = GroundTruth::beside(&video).unwrap().unwrap();
        assert_eq!(truth.walkers(), 2);
        let mut score = Score::default();
        let enrolled = std::collections::BTreeSet::from(["Ada \"L\""]);
        truth.score(
            &mut score,
            &enrolled,
            1.0 / f64::from(FPS),
            &boxed([10.0, 20.0, 110.0, 140.0]),
            Some("Ada \"L\""),
        );
        assert_eq!(score.correct, 1);
        truth.score(&mut score, &enrolled, 2.0 / f64::from(FPS), &boxed([500.0, 20.0, 600.0, 140.0]), None);
        assert_eq!((score.correct, score.correctly_unknown), (2, 1), "unknown is right for a stranger");
    }
}
