//! Unknown people: clusters of unknown faces, the tracks in them, and how clusters are selected and ordered.

use std::{cmp::Ordering, collections::HashMap, fmt};

use uuid::Uuid;

use super::Micros;

/// Crops of one camera with the same track id are of one track while each follows the one before within this time:
/// cameras count their tracks from the start again when they restart.
const TRACK_GAP: Micros = 600_000_000;

/// The id of a cluster of unknown faces: a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnknownId(Uuid);

impl UnknownId {
    /// Generates the id of a new cluster.
    #[expect(clippy::new_without_default, reason = "no id is a default: each is another one")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Parses the hyphenated form, in lower or upper case. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let hyphenated = text.len() == 36;
        Uuid::try_parse(text).ok().filter(|_| hyphenated).map(Self)
    }
}

impl fmt::Display for UnknownId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// A cluster of unknown faces, which is probably one person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// Row id, by which detections refer to it.
    pub row: i64,
    /// The public id.
    pub id: UnknownId,
    /// The network that computed its embeddings.
    pub embedder: String,
    /// Detections in it.
    pub faces: i64,
    /// Tracks that they are of; a detection without a track is one of its own.
    pub tracks: i64,
    /// When the first of them was captured.
    pub first_seen: Micros,
    /// When the last of them was captured.
    pub last_seen: Micros,
    /// The detection that is most like all of them: a row id.
    pub representative: i64,
    /// Whether lists leave it out unless asked for.
    pub ignored: bool,
    /// Whether it was merged or divided by hand.
    pub pinned: bool,
    /// When it was created.
    pub created_at: Micros,
    /// The cameras that have seen it, the latest first.
    pub cameras: Vec<UnknownCamera>,
}

/// A camera that has seen an unknown person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownCamera {
    pub camera_id: String,
    pub faces: i64,
    /// When it captured the last of them.
    pub last_seen: Micros,
}

/// Selects clusters: those that match everything that is given.
#[derive(Debug, Clone, Default)]
pub struct UnknownFilter {
    /// Seen by this camera.
    pub camera_id: Option<String>,
    /// Seen at this moment or later.
    pub from: Option<Micros>,
    /// Seen before this moment.
    pub to: Option<Micros>,
    /// Ignored, or not.
    pub ignored: Option<bool>,
    /// With so many detections or more.
    pub min_faces: i64,
}

/// The order of a list of clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownOrder {
    /// Last seen first.
    LastSeen,
    /// The most detections first.
    Faces,
}

/// The position of a cluster in either order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownPosition {
    /// When it was last seen, or the number of its detections.
    pub value: i64,
    /// Row id.
    pub row: i64,
}

impl UnknownOrder {
    /// Returns the cluster's position in lists.
    pub fn position(self, unknown: &Unknown) -> UnknownPosition {
        let value = match self {
            Self::LastSeen => unknown.last_seen,
            Self::Faces => unknown.faces,
        };
        UnknownPosition { value, row: unknown.row }
    }
}

/// The detection of an unknown face with its embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct UnknownFace {
    /// Row id.
    pub id: i64,
    /// The time of capture that counts.
    pub captured_at: Micros,
    pub camera_id: String,
    /// The edge's track.
    pub track_id: Option<i64>,
    /// The row of the track; `None` without one, and for faces from before tracks had rows.
    pub track_row: Option<i64>,
    pub embedding: Vec<f32>,
}

/// Unknown faces of one track.
#[derive(Debug, Clone, PartialEq)]
pub struct UnknownTrack {
    /// The mean of the embeddings, L2-normalised.
    pub mean: Vec<f32>,
    /// Row ids of the detections, ascending.
    pub faces: Vec<i64>,
    /// The detection that is nearest to the mean.
    pub best: i64,
    /// When the first was captured.
    pub first_seen: Micros,
    /// When the last was captured.
    pub last_seen: Micros,
}

/// The summary of a cluster's tracks in its row.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSummary {
    /// The mean of the tracks' means, not normalised.
    pub mean: Vec<f32>,
    /// The number of detections.
    pub faces: i64,
    /// The number of tracks.
    pub tracks: i64,
    /// When the first was captured.
    pub first_seen: Micros,
    /// When the last was captured.
    pub last_seen: Micros,
    /// The best detection of the track that is nearest to the mean.
    pub representative: i64,
}

impl UnknownFace {
    /// Returns whether two faces, the earlier one first, belong to the same track.
    pub fn is_followed_by(&self, later: &Self) -> bool {
        match (self.track_row, later.track_row) {
            (Some(one), Some(other)) => one == other,
            (None, None) => {
                self.track_id.is_some()
                    && self.track_id == later.track_id
                    && self.camera_id == later.camera_id
                    && later.captured_at.saturating_sub(self.captured_at) <= TRACK_GAP
            }
            _ => false,
        }
    }

    /// Returns the times between which faces of the same track may follow or precede this one.
    pub fn track_range(&self) -> (Micros, Micros) {
        (self.captured_at.saturating_sub(TRACK_GAP), self.captured_at.saturating_add(TRACK_GAP))
    }
}

impl UnknownTrack {
    /// Puts faces together by their tracks, in the order of the tracks' first rows. Leaves out faces whose embedding has no
    /// direction.
    pub fn of(faces: Vec<UnknownFace>) -> Vec<Self> {
        Self::runs(faces).iter().filter_map(|run| Self::new(run)).collect()
    }

    /// Returns the faces of each track in the order of time, grouped as in [`of`](Self::of).
    pub fn runs(mut faces: Vec<UnknownFace>) -> Vec<Vec<UnknownFace>> {
        faces.retain(|face| normalised(&face.embedding).is_some());
        Self::separate_faces_of_one_picture(&mut faces);
        faces.sort_by(|a, b| {
            let key = |face: &UnknownFace| (face.track_row, face.track_id, face.captured_at, face.id);
            a.camera_id.cmp(&b.camera_id).then(key(a).cmp(&key(b)))
        });
        let mut runs: Vec<Vec<UnknownFace>> =
            faces.chunk_by(UnknownFace::is_followed_by).map(<[UnknownFace]>::to_vec).collect();
        runs.sort_by_key(|run| run.iter().map(|face| face.id).min());
        runs
    }

    /// Removes the track id from faces without a row of a track if several were captured at the same time under the same track
    /// id: they are of one picture, and it is unknown which of them belongs to the track. Detections of older versions have no
    /// rows.
    fn separate_faces_of_one_picture(faces: &mut [UnknownFace]) {
        let picture = |face: &UnknownFace| {
            let track_id = face.track_id.filter(|_| face.track_row.is_none())?;
            Some((face.camera_id.clone(), track_id, face.captured_at))
        };
        let mut pictures: HashMap<_, usize> = HashMap::new();
        for picture in faces.iter().filter_map(picture) {
            *pictures.entry(picture).or_default() += 1;
        }
        for face in faces {
            if picture(face).is_some_and(|picture| pictures.get(&picture).is_some_and(|faces| *faces > 1)) {
                face.track_id = None;
            }
        }
    }

    /// Creates the track of some faces; `None` without faces, or if their mean has no direction.
    pub fn new(faces: &[UnknownFace]) -> Option<Self> {
        let first = faces.first()?;
        let unit: Vec<Vec<f32>> = faces.iter().filter_map(|face| normalised(&face.embedding)).collect();
        let mean = normalised(&mean_of(&unit, first.embedding.len())).or_else(|| unit.first().cloned())?;
        let best = nearest(&unit, &mean).and_then(|at| faces.get(at)).unwrap_or(first).id;
        let mut ids: Vec<i64> = faces.iter().map(|face| face.id).collect();
        ids.sort_unstable();
        let times = faces.iter().map(|face| face.captured_at);
        Some(Self { mean, faces: ids, best, first_seen: times.clone().min()?, last_seen: times.max()? })
    }
}

impl ClusterSummary {
    /// Returns the summary of a cluster's tracks; `None` without tracks.
    pub fn of(tracks: &[&UnknownTrack]) -> Option<Self> {
        let means: Vec<&[f32]> = tracks.iter().map(|track| track.mean.as_slice()).collect();
        let mean = mean_of(&means, tracks.first()?.mean.len());
        let nearest = nearest(&means, &mean).and_then(|at| tracks.get(at))?;
        Some(Self {
            faces: tracks.iter().map(|track| length(&track.faces)).sum(),
            tracks: length(tracks),
            first_seen: tracks.iter().map(|track| track.first_seen).min()?,
            last_seen: tracks.iter().map(|track| track.last_seen).max()?,
            representative: nearest.best,
            mean,
        })
    }
}

fn length<T>(list: &[T]) -> i64 {
    i64::try_from(list.len()).unwrap_or(i64::MAX)
}

/// Returns the mean of vectors with so many components.
#[expect(clippy::cast_possible_truncation, reason = "embeddings have single precision")]
fn mean_of<V: AsRef<[f32]>>(vectors: &[V], components: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; components];
    for vector in vectors {
        sums.iter_mut().zip(vector.as_ref()).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let number = vectors.len().max(1) as f64;
    sums.into_iter().map(|sum| (sum / number) as f32).collect()
}

/// Returns the vector scaled to length 1; `None` if it has no direction.
#[expect(clippy::cast_possible_truncation, reason = "embeddings have single precision")]
fn normalised(vector: &[f32]) -> Option<Vec<f32>> {
    let length = product(vector, vector).sqrt();
    (length.is_finite() && length > 0.0)
        .then(|| vector.iter().map(|value| (f64::from(*value) / length) as f32).collect())
}

fn product(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Returns the position of the vector that is nearest to `mean`, or the first of equally near ones.
fn nearest<V: AsRef<[f32]>>(vectors: &[V], mean: &[f32]) -> Option<usize> {
    let products = vectors.iter().map(|vector| product(vector.as_ref(), mean)).enumerate();
    let best = products.max_by(|(a, one), (b, other)| match one.total_cmp(other) {
        Ordering::Equal => b.cmp(a),
        order => order,
    });
    best.map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(id: i64, seconds: i64, camera: &str, track_id: Option<i64>, embedding: [f32; 2]) -> UnknownFace {
        let captured_at = seconds * 1_000_000;
        let (camera_id, embedding) = (camera.into(), embedding.into());
        UnknownFace { id, captured_at, camera_id, track_id, track_row: None, embedding }
    }

    #[test]
    fn faces_are_put_together_by_camera_track_and_time() {
        let tracks = UnknownTrack::of(vec![
            face(1, 0, "a", Some(7), [1.0, 0.0]),
            face(2, 1, "b", Some(7), [1.0, 0.0]),
            face(3, 600, "a", Some(7), [0.0, 2.0]),
            face(4, 1201, "a", Some(7), [1.0, 0.0]),
            face(5, 2, "a", None, [1.0, 0.0]),
            face(6, 3, "a", None, [1.0, 0.0]),
            face(7, 3, "a", None, [0.0, 0.0]),
        ]);
        let ids: Vec<&[i64]> = tracks.iter().map(|track| track.faces.as_slice()).collect();
        assert_eq!(ids, [&[1, 3][..], &[2], &[4], &[5], &[6]]);
        let half = 0.5_f32.sqrt();
        assert!(tracks[0].mean.iter().all(|value| (value - half).abs() < 1e-6), "{:?}", tracks[0].mean);
        assert_eq!((tracks[0].first_seen, tracks[0].last_seen), (0, 600_000_000));
    }

    #[test]
    fn faces_of_one_picture_are_never_of_one_track() {
        let tracks = UnknownTrack::of(vec![
            face(1, 0, "a", Some(7), [1.0, 0.0]),
            face(2, 1, "a", Some(7), [1.0, 0.0]),
            face(3, 1, "a", Some(7), [0.0, 1.0]),
            face(4, 2, "a", Some(7), [1.0, 0.0]),
        ]);
        let ids: Vec<&[i64]> = tracks.iter().map(|track| track.faces.as_slice()).collect();
        assert_eq!(ids, [&[1, 4][..], &[2], &[3]]);
    }

    #[test]
    fn the_row_of_a_track_tells_runs_of_a_camera_apart() {
        let of_run = |id: i64, seconds: i64, row: i64| UnknownFace {
            track_row: Some(row),
            ..face(id, seconds, "a", Some(7), [1.0, 0.0])
        };
        let faces =
            vec![of_run(1, 0, 5), of_run(2, 1, 6), of_run(3, 5000, 5), face(4, 2, "a", Some(7), [1.0, 0.0])];
        let tracks = UnknownTrack::of(faces);
        let ids: Vec<&[i64]> = tracks.iter().map(|track| track.faces.as_slice()).collect();
        assert_eq!(ids, [&[1, 3][..], &[2], &[4]]);
    }

    #[test]
    fn a_summary_weighs_tracks_alike_and_represents_them_by_the_nearest() {
        let tracks = UnknownTrack::of(vec![
            face(1, 5, "a", Some(1), [1.0, 0.0]),
            face(2, 6, "a", Some(1), [1.0, 0.0]),
            face(3, 7, "a", None, [0.8, 0.6]),
            face(4, 8, "a", None, [0.0, 1.0]),
        ]);
        let summary = ClusterSummary::of(&tracks.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!((summary.faces, summary.tracks, summary.representative), (4, 3, 3));
        assert!((summary.mean[0] - 0.6).abs() < 1e-6 && (summary.mean[1] - 1.6 / 3.0).abs() < 1e-6);
        assert_eq!((summary.first_seen, summary.last_seen), (5_000_000, 8_000_000));
        assert_eq!(ClusterSummary::of(&[]), None);
    }

    #[test]
    fn an_id_round_trips_through_text() {
        let id = UnknownId::new();
        assert_eq!(UnknownId::parse(&id.to_string()), Some(id));
        assert_eq!(UnknownId::parse("018f4c9a7b1e7c3d9a2f5d6e7f8a9b0c"), None);
    }
}
