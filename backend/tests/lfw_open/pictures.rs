//! All pictures of `lfw-open`, detected and embedded once for the tests of this program.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Instant,
};

use facepipe_vision::{
    BoundingBox, DecodeLimits, Embedder, EmbedderKind, Face, FaceQuality, Mtcnn, MtcnnConfig, decode_image,
    load_embedder, without_intra_op_parallelism,
};
use rayon::prelude::*;

/// Everything that the tests know about `lfw-open`.
pub struct LfwOpen {
    /// 150 people with five to seven photographs each, by name.
    pub people: Vec<Person>,
    /// 800 others, one photograph each.
    pub strangers: Vec<Picture>,
    /// 1,000 others again, one photograph each.
    pub cohort: Vec<Picture>,
}

/// Somebody with several photographs, in the order of their files.
pub struct Person {
    pub name: String,
    pub pictures: Vec<Picture>,
}

/// A photograph of 250 by 250 pixels, with the face that it is of in its middle.
pub struct Picture {
    pub file: PathBuf,
    /// What the detector found, the most confident first.
    pub faces: Vec<PictureFace>,
    /// The index of the face in the middle; none where that is not on any face.
    pub central: Option<usize>,
}

/// A face on a picture.
pub struct PictureFace {
    pub face: Face,
    pub quality: FaceQuality,
    /// L2-normalised.
    pub embedding: Vec<f32>,
}

impl Picture {
    /// The embedding of the face in the middle.
    pub fn embedding(&self) -> Option<&[f32]> {
        Some(&self.faces[self.central?].embedding)
    }
}

impl Person {
    /// The embeddings of the faces in the middle of the photographs that have one.
    pub fn embeddings(&self) -> Vec<&[f32]> {
        self.pictures.iter().filter_map(Picture::embedding).collect()
    }
}

/// The embeddings of pictures whose middle shows a face.
pub fn embeddings(pictures: &[Picture]) -> Vec<Vec<f32>> {
    pictures.iter().filter_map(Picture::embedding).map(<[f32]>::to_vec).collect()
}

/// Ends the test as skipped where pictures or weights are missing.
macro_rules! lfw_open {
    () => {{
        let people = facepipe_test_support::require!("lfw-open/people");
        let strangers = facepipe_test_support::require!("lfw-open/strangers");
        let cohort = facepipe_test_support::require!("lfw-open/cohort");
        let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
        $crate::pictures::load(&$crate::pictures::Folders { people, strangers, cohort, models })
    }};
}
pub(crate) use lfw_open;

/// Where pictures and weights are.
#[derive(Debug)]
pub struct Folders {
    pub people: PathBuf,
    pub strangers: PathBuf,
    pub cohort: PathBuf,
    pub models: PathBuf,
}

/// All pictures, detected and embedded by the first test that asks.
pub fn load(folders: &Folders) -> &'static LfwOpen {
    static ALL: OnceLock<LfwOpen> = OnceLock::new();
    ALL.get_or_init(|| LfwOpen::embed(folders, EmbedderKind::MobileFaceNet))
}

impl LfwOpen {
    /// Detects and embeds all pictures.
    pub fn embed(Folders { people, strangers, cohort, models }: &Folders, embedder: EmbedderKind) -> Self {
        let networks = Networks::load(models, embedder);
        let started = Instant::now();
        let folders: Vec<PathBuf> = files(people);
        let of_people: Vec<(usize, PathBuf)> = folders
            .iter()
            .enumerate()
            .flat_map(|(person, folder)| files(folder).into_iter().map(move |file| (person, file)))
            .collect();
        let mut people: Vec<Person> = folders
            .iter()
            .map(|folder| {
                let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
                Person { name, pictures: Vec::new() }
            })
            .collect();
        let pictures: Vec<(usize, Picture)> =
            of_people.into_par_iter().map(|(person, file)| (person, networks.picture(file))).collect();
        for (person, picture) in pictures {
            people[person].pictures.push(picture);
        }
        let all = |folder: &Path| files(folder).into_par_iter().map(|file| networks.picture(file)).collect();
        let lfw = Self { people, strangers: all(strangers), cohort: all(cohort) };
        let pictures = lfw.people.iter().map(|person| person.pictures.len()).sum::<usize>()
            + lfw.strangers.len()
            + lfw.cohort.len();
        println!("{pictures} pictures in {:.1} s", started.elapsed().as_secs_f64());
        lfw
    }
}

/// The files or folders of a folder, by name; without those that file servers leave in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with(['.', '@']))
        .collect();
    files.sort();
    files
}

/// The networks of the server with its default settings.
struct Networks {
    mtcnn: Mtcnn,
    embedder: Box<dyn Embedder>,
}

impl Networks {
    fn load(models: &Path, embedder: EmbedderKind) -> Self {
        let mtcnn = Mtcnn::load(models, MtcnnConfig::default()).unwrap();
        Self { mtcnn, embedder: load_embedder(embedder, models).unwrap() }
    }

    fn picture(&self, file: PathBuf) -> Picture {
        // Pictures are what runs in parallel.
        without_intra_op_parallelism(|| {
            let image = decode_image(&fs::read(&file).unwrap(), &DecodeLimits::default()).unwrap();
            let found = self.mtcnn.detect_inside(&image, false).unwrap();
            let crops: Vec<_> = found.iter().map(|face| self.embedder.crop(&image, face)).collect();
            let embeddings = if crops.is_empty() { Vec::new() } else { self.embedder.embed(&crops).unwrap() };
            let middle = [image.width() as f32 / 2.0, image.height() as f32 / 2.0];
            let central = central(found.iter().map(|face| face.bounding_box), middle);
            let faces = found.into_iter().zip(&crops).zip(embeddings);
            let faces = faces
                .map(|((face, crop), embedding)| {
                    let quality = FaceQuality::measure(&face, crop);
                    PictureFace { face, quality, embedding }
                })
                .collect();
            Picture { file, faces, central }
        })
    }
}

/// The index of the box whose centre is nearest to the middle, among those that contain it.
fn central(boxes: impl Iterator<Item = BoundingBox>, middle: [f32; 2]) -> Option<usize> {
    let distance = |b: &BoundingBox| {
        let [x, y] = b.center();
        (x - middle[0]).hypot(y - middle[1])
    };
    let containing = boxes.enumerate().filter(|(_, b)| b.contains(middle));
    containing.min_by(|(_, a), (_, b)| distance(a).total_cmp(&distance(b))).map(|(index, _)| index)
}

#[test]
fn nearly_every_picture_has_a_face_in_its_middle() {
    let lfw = lfw_open!();
    assert_eq!((lfw.people.len(), lfw.strangers.len(), lfw.cohort.len()), (150, 800, 1000));
    assert!(lfw.people.iter().all(|person| person.pictures.len() >= 5));
    let people = lfw.people.iter().flat_map(|person| &person.pictures);
    let pictures: Vec<&Picture> = people.chain(&lfw.strangers).chain(&lfw.cohort).collect();
    let without: Vec<&Path> =
        pictures.iter().filter(|picture| picture.central.is_none()).map(|p| p.file.as_path()).collect();
    assert!(without.len() * 200 < pictures.len(), "{without:?}");
    let several = pictures.iter().filter(|picture| picture.faces.len() > 1).count();
    println!("{several} of {} pictures have several faces", pictures.len());
    // And it is the one that the photograph is of: everybody's are alike.
    for person in &lfw.people {
        let embeddings = person.embeddings();
        for one in &embeddings {
            let alike = embeddings.iter().filter(|other| dot(one, other) > 0.2).count();
            assert!(alike * 2 > embeddings.len(), "{}: {alike} of {}", person.name, embeddings.len());
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
