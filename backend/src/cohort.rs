//! Fills the cohort from unknown faces of the cameras, and removes people from it who are enrolled.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use facepipe_identify::{
    cohort::{beyond_doubt, enrolled_from, top_scores},
    open_set::MAX_PRODUCTS,
};
use facepipe_vision::Embedder;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::{CohortSource, Task, cosine, now},
    metrics::Metrics,
    store::{
        Database, StoreError,
        sql::{CandidateTrack, CohortCandidate, CohortCount, CohortMember, Lease, TrainingImage},
    },
};

/// The interval between passes.
const INTERVAL: Duration = Duration::from_secs(600);
/// How long after a crash in the middle of a pass another process may start one.
const LEASE: Duration = Duration::from_secs(60);
/// Detections that are considered together.
const BATCH: i64 = 1000;
/// The pause between batches, which gives way to other writers on SQLite.
const PAUSE: Duration = Duration::from_millis(10);
/// Minimum probability of a face: hair and fabric that are taken for faces have less.
const MIN_CONFIDENCE: f32 = 0.95;
/// Minimum length of the shorter side of a face, pixels. The embedders scale faces to 112 and more: a smaller one is mostly
/// blur, and its embedding resembles those of other blurred faces.
const MIN_SIDE: f32 = 40.0;

/// The sources of the cohort besides uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillOptions {
    /// Whether unknown faces of the cameras fill it.
    pub from_cameras: bool,
    /// Maximum number of embeddings from cameras.
    pub max: u32,
}

/// The embedder whose part of the cohort is filled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CohortEmbedder {
    /// Its name.
    pub name: &'static str,
    /// Its threshold of verification, a cosine.
    pub same_person: f32,
}

impl CohortEmbedder {
    /// Returns the name and the threshold of a server's embedder.
    pub fn of(embedder: &dyn Embedder) -> Self {
        Self { name: embedder.name(), same_person: embedder.verification_threshold() }
    }
}

/// The changes of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CohortChanges {
    /// Embeddings that were added.
    pub added: usize,
    /// Embeddings that were removed, since they match somebody who is enrolled.
    pub removed: usize,
    /// The oldest embeddings from cameras that were erased, since there were more than [`FillOptions::max`].
    pub evicted: usize,
}

/// Runs a pass now and at every interval, until `stop` is set.
pub async fn run_filling(
    database: Database,
    embedder: CohortEmbedder,
    options: FillOptions,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let mut pause = INTERVAL;
        match fill(&database, embedder, options, &stop).await {
            Ok(Some(CohortChanges { added: 0, removed: 0, evicted: 0 })) => (),
            Ok(Some(CohortChanges { added, removed, evicted })) => {
                tracing::info!(
                    added,
                    removed,
                    evicted,
                    "added unknown faces to the cohort, removed people who are enrolled"
                );
            }
            // The process with the lease may have crashed.
            Ok(None) => pause = LEASE,
            Err(error) => {
                metrics.task_failed(Task::Cohort);
                tracing::warn!(%error, "cannot fill the cohort");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => (),
            () = stop.cancelled() => (),
        }
    }
}

/// Runs one pass, or a part of one if `stop` is set; the next pass continues from there. Returns `None` if another
/// process is running one.
///
/// # Errors
/// The database fails; what was added until then stays.
pub async fn fill(
    database: &Database,
    embedder: CohortEmbedder,
    options: FillOptions,
    stop: &CancellationToken,
) -> Result<Option<CohortChanges>, StoreError> {
    let holder = Uuid::new_v4().to_string();
    if !database.acquire_lease(Lease::Cohort, &holder, LEASE).await? {
        return Ok(None);
    }
    let pass = pass(database, embedder, options, &holder, stop);
    let outcome = database.renewing_lease(Lease::Cohort, &holder, LEASE, pass).await;
    // A pass that ended early may have erased some, too.
    let may_have_evicted = outcome.as_ref().map_or(true, |changes| changes.evicted > 0);
    let scrubbed = if may_have_evicted { database.scrub_journal().await } else { Ok(()) };
    let released = database.release_lease(Lease::Cohort, &holder).await;
    match outcome {
        // Another process continues.
        Err(StoreError::LeaseLost) => scrubbed.map(|()| None),
        Err(error) => Err(error),
        Ok(changes) => {
            scrubbed?;
            released?;
            database.task_finished(Task::Cohort, now()).await?;
            Ok(Some(changes))
        }
    }
}

async fn pass(
    database: &Database,
    embedder: CohortEmbedder,
    options: FillOptions,
    holder: &str,
    stop: &CancellationToken,
) -> Result<CohortChanges, StoreError> {
    let mut changes = CohortChanges::default();
    let counts = counts_of(database, embedder).await?;
    if options.from_cameras || has_some_from_cameras(&counts) {
        let images = database.training_set(embedder.name).await?.images;
        let references = Arc::new(blocking(move || mean_embeddings(&images)).await?);
        let (removed, scores) = remove_matching(database, embedder, Arc::clone(&references)).await?;
        changes.removed = removed;
        if options.from_cameras {
            (changes.added, changes.evicted) =
                add_from_cameras(database, embedder, options, references, scores, holder, stop).await?;
        }
    }
    Ok(changes)
}

/// Removes the embeddings from cameras that match somebody who is enrolled with these images, and returns their number.
/// Leaves a large cohort of a large gallery to the next pass: calibrations leave out people who are enrolled.
///
/// # Errors
/// The database fails.
pub async fn remove_enrolled(
    database: &Database,
    embedder: CohortEmbedder,
    images: Arc<Vec<TrainingImage>>,
) -> Result<usize, StoreError> {
    let counts = counts_of(database, embedder).await?;
    if !has_some_from_cameras(&counts) {
        return Ok(0);
    }
    let members: i64 = counts.iter().map(|count| count.embeddings).sum();
    let members = usize::try_from(members).unwrap_or(usize::MAX);
    let references = blocking(move || {
        let dimensions = images.first().map_or(0, |image| image.embedding.len());
        let people = images.iter().map(|image| image.person).collect::<HashSet<_>>().len();
        let products = members.saturating_mul(people).saturating_mul(dimensions);
        (products <= MAX_PRODUCTS).then(|| mean_embeddings(&images))
    });
    let Some(references) = references.await?.map(Arc::new) else { return Ok(0) };
    let (removed, _) = remove_matching(database, embedder, references).await?;
    if removed > 0 {
        tracing::info!(removed, "removed people from the cohort who are enrolled");
    }
    Ok(removed)
}

async fn counts_of(database: &Database, embedder: CohortEmbedder) -> Result<Vec<CohortCount>, StoreError> {
    let mut counts = database.cohort_counts().await?;
    counts.retain(|count| count.embedder == embedder.name);
    Ok(counts)
}

fn has_some_from_cameras(counts: &[CohortCount]) -> bool {
    counts.iter().any(|count| count.source == CohortSource::Camera)
}

/// Removes the embeddings from cameras that match a reference. Uploaded embeddings stay: each calibration leaves them
/// out, and the erasure of the person erases them. Returns how many it removed, and the highest cosine of each of the
/// others to any of the references, by id.
async fn remove_matching(
    database: &Database,
    embedder: CohortEmbedder,
    references: Arc<Vec<Vec<f32>>>,
) -> Result<(usize, HashMap<String, f32>), StoreError> {
    let members = database.cohort_members(embedder.name).await?;
    let split = blocking(move || {
        let (members, embeddings): (Vec<(String, CohortSource)>, Vec<Vec<f32>>) = members
            .into_iter()
            .map(|CohortMember { id, source, embedding }| ((id, source), embedding))
            .unzip();
        let scores = top_scores(&embeddings, &references);
        let border = enrolled_from(&scores, embedder.same_person);
        let mut matching = Vec::new();
        let mut others = HashMap::new();
        for ((id, source), score) in members.into_iter().zip(scores) {
            if source == CohortSource::Camera && score >= border {
                matching.push(id);
            } else {
                others.insert(id, score);
            }
        }
        (matching, others)
    });
    let (matching, others) = split.await?;
    let removed = database.erase_cohort_members(matching).await?;
    if removed > 0 {
        // The journal is scrubbed at once, not at the end of a pass, since later steps may fail.
        database.scrub_journal().await?;
    }
    Ok((removed, others))
}

/// Adds embeddings from cameras. `scores` are the [`top_scores`] of members, by id, so that each is compared with
/// everybody who is enrolled only once in a pass. Returns how many it added, and how many it erased for them.
async fn add_from_cameras(
    database: &Database,
    embedder: CohortEmbedder,
    options: FillOptions,
    references: Arc<Vec<Vec<f32>>>,
    mut scores: HashMap<String, f32>,
    holder: &str,
    stop: &CancellationToken,
) -> Result<(usize, usize), StoreError> {
    let (mut added, mut evicted) = (0, 0);
    while !stop.is_cancelled() {
        let batch = database.cohort_candidates(embedder.name, BATCH).await?;
        let Some(through) = batch.through else { break };
        let members = database.cohort_members(embedder.name).await?;
        let (candidates, references) = (batch.candidates, Arc::clone(&references));
        let choice = blocking(move || {
            let scores = scores_of(&members, scores, &references);
            let of_members: Vec<f32> = scores.values().copied().collect();
            let members: Vec<Vec<f32>> = members.into_iter().map(|member| member.embedding).collect();
            (choose(candidates, &members, &of_members, &references, embedder.same_person), scores)
        });
        let chosen;
        (chosen, scores) = choice.await?;
        let (more, erased) = database
            .add_to_cohort_from_cameras(embedder.name, chosen, options.max, through, holder, LEASE)
            .await?;
        added += more;
        evicted += erased;
        tokio::time::sleep(PAUSE).await;
    }
    Ok((added, evicted))
}

/// Returns the highest cosine of each member to any of the references, by its id; `known` has those that were computed
/// before.
fn scores_of(
    members: &[CohortMember],
    mut known: HashMap<String, f32>,
    references: &[Vec<f32>],
) -> HashMap<String, f32> {
    let ids: HashSet<&str> = members.iter().map(|member| member.id.as_str()).collect();
    known.retain(|id, _| ids.contains(id.as_str()));
    let new = members.iter().filter(|member| !known.contains_key(&member.id));
    let (ids, embeddings): (Vec<String>, Vec<Vec<f32>>) =
        new.map(|member| (member.id.clone(), member.embedding.clone())).unzip();
    known.extend(ids.into_iter().zip(top_scores(&embeddings, references)));
    known
}

/// Chooses the candidates that become members: of each track the largest face that is good enough, without people who
/// are enrolled and, as far as can be determined, without people who are members already. `scores_of_members` are the
/// [`top_scores`] of the members, in any order.
fn choose(
    candidates: Vec<CohortCandidate>,
    members: &[Vec<f32>],
    scores_of_members: &[f32],
    references: &[Vec<f32>],
    same_person: f32,
) -> Vec<CohortCandidate> {
    let is_good =
        |face: &CohortCandidate| face.detection_confidence >= MIN_CONFIDENCE && face.shorter_side >= MIN_SIDE;
    let mut of_tracks: HashMap<CandidateTrack, CohortCandidate> = HashMap::new();
    let mut best = Vec::new();
    for face in candidates.into_iter().filter(is_good) {
        match face.track.clone().map(|track| of_tracks.entry(track)) {
            None => best.push(face),
            Some(Entry::Vacant(entry)) => drop(entry.insert(face)),
            Some(Entry::Occupied(mut entry)) => {
                if face.shorter_side > entry.get().shorter_side {
                    entry.insert(face);
                }
            }
        }
    }
    best.extend(of_tracks.into_values());
    best.sort_by_key(|face| face.detection);

    let embeddings: Vec<Vec<f32>> = best.iter().map(|face| face.embedding.clone()).collect();
    let scores = top_scores(&embeddings, references);
    let border = enrolled_from(&[scores.as_slice(), scores_of_members].concat(), same_person);
    let near = top_scores(&embeddings, members);
    let same = beyond_doubt(same_person);
    let mut chosen: Vec<CohortCandidate> = Vec::new();
    for ((face, score), near) in best.into_iter().zip(scores).zip(near) {
        let is_chosen = |other: &CohortCandidate| cosine(&other.embedding, &face.embedding) >= same;
        if score < border && near < same && !chosen.iter().any(is_chosen) {
            chosen.push(face);
        }
    }
    chosen
}

/// Returns the L2-normalised mean embedding of each person.
fn mean_embeddings(images: &[TrainingImage]) -> Vec<Vec<f32>> {
    let mut sums: HashMap<i64, Vec<f32>> = HashMap::new();
    for TrainingImage { person, embedding, .. } in images {
        let sum = sums.entry(*person).or_insert_with(|| vec![0.0; embedding.len()]);
        sum.iter_mut().zip(embedding).for_each(|(sum, value)| *sum += value);
    }
    let mut means: Vec<Vec<f32>> = sums.into_values().collect();
    for mean in &mut means {
        let length = cosine(mean, mean).sqrt();
        if length > 0.0 {
            mean.iter_mut().for_each(|value| *value /= length);
        }
    }
    means
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(call).await.map_err(|_| StoreError::Interrupted)
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;
    use facepipe_shared::hex;

    use super::*;
    use crate::store::{sql::DatabaseOptions, vector_to_bytes};

    /// Returns a direction in 512 dimensions, pseudo-random for each number.
    fn face(number: u64) -> Vec<f32> {
        let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut vector: Vec<f32> = (0..512)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
            })
            .collect();
        let length = cosine(&vector, &vector).sqrt();
        vector.iter_mut().for_each(|value| *value /= length);
        vector
    }

    fn candidate(detection: i64, track: Option<i64>, embedding: Vec<f32>) -> CohortCandidate {
        CohortCandidate {
            detection,
            track: track.map(|track| CandidateTrack::Numbered("gate-1".to_owned(), track)),
            captured_at: 0,
            detection_confidence: 0.99,
            shorter_side: 80.0,
            embedding,
        }
    }

    fn chosen(candidates: Vec<CohortCandidate>, members: &[Vec<f32>], references: &[Vec<f32>]) -> Vec<i64> {
        let scores = top_scores(members, references);
        choose(candidates, members, &scores, references, 0.35).iter().map(|face| face.detection).collect()
    }

    #[test]
    fn a_track_gives_its_largest_face_only() {
        let large = CohortCandidate { shorter_side: 90.0, ..candidate(2, Some(7), face(2)) };
        let all = vec![
            candidate(1, Some(7), face(1)),
            large,
            candidate(3, Some(7), face(3)),
            candidate(4, Some(8), face(4)),
            candidate(5, None, face(5)),
            candidate(6, None, face(6)),
            // The same number in two runs of the camera.
            CohortCandidate { track: Some(CandidateTrack::Stored(1)), ..candidate(7, None, face(7)) },
            CohortCandidate { track: Some(CandidateTrack::Stored(2)), ..candidate(8, None, face(8)) },
            CohortCandidate { track: Some(CandidateTrack::Stored(2)), ..candidate(9, None, face(9)) },
        ];
        assert_eq!(chosen(all, &[], &[]), [2, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn small_and_doubtful_faces_are_left_out() {
        let small = CohortCandidate { shorter_side: 39.0, ..candidate(1, None, face(1)) };
        let doubtful = CohortCandidate { detection_confidence: 0.9, ..candidate(2, None, face(2)) };
        assert_eq!(chosen(vec![small, doubtful, candidate(3, None, face(3))], &[], &[]), [3]);
    }

    #[test]
    fn enrolled_people_and_members_are_left_out() {
        let all = vec![
            candidate(1, None, face(1)),
            candidate(2, None, face(2)),
            candidate(3, None, face(3)),
            candidate(4, None, face(3)),
        ];
        assert_eq!(chosen(all, &[face(2)], &[face(9), face(1)]), [3]);
    }

    #[test]
    fn a_mean_embedding_has_length_1() {
        let image = |person, embedding| TrainingImage { id: String::new(), person, embedding };
        let images = [image(1, vec![1.0, 0.0]), image(1, vec![0.0, 1.0]), image(2, vec![0.0, 1.0])];
        let mut means = mean_embeddings(&images);
        means.sort_by(|one, other| one[0].total_cmp(&other[0]));
        assert_eq!(means[0], [0.0, 1.0]);
        assert!((means[1][0] - 0.5_f32.sqrt()).abs() < 1e-6 && (means[1][1] - 0.5_f32.sqrt()).abs() < 1e-6);
    }

    #[tokio::test]
    async fn what_a_failed_pass_erased_is_not_in_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&DatabaseOptions {
            url: folder.path().join("x.db").display().to_string(),
            connections: 2,
            migrate_at_start: true,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
            start_timeout: Duration::ZERO,
            allow_newer_schema: false,
        })
        .unwrap();
        let (enrolled, seen) =
            (vector_to_bytes(&[1.0, 0.0, 0.0, 0.0]), vector_to_bytes(&[0.8, 0.6, 0.0, 0.0]));
        // The last statement makes the search for new members fail.
        let rows = format!(
            "INSERT INTO people (id, face_id, created_at, face_key, public_id)
                 VALUES (1, 'Ada', 0, 'ada', '7f1c5f0e-53a4-4a0e-9a5b-0d9c41f5a001');
             INSERT INTO images (id, person_id, blob_key, bytes, created_at) VALUES ('a', 1, 'a', 1, 0);
             INSERT INTO embeddings (image_id, embedder, vector, created_at)
                 VALUES ('a', 'mobilefacenet', X'{}', 0);
             INSERT INTO cohort (id, embedder, source, vector, created_at)
                 VALUES ('b', 'mobilefacenet', 'camera', X'{}', 0);
             ALTER TABLE cohort_cursor RENAME TO elsewhere;",
            hex(&enrolled),
            hex(&seen),
        );
        database.write(move |connection| Ok(connection.batch_execute(&rows)?)).await.unwrap();
        let is_in_files = || {
            let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
            files
                .map(|file| std::fs::read(file).unwrap())
                .any(|bytes| bytes.windows(16).any(|part| part == seen))
        };
        assert!(is_in_files());
        let embedder = CohortEmbedder { name: "mobilefacenet", same_person: 0.35 };
        let options = FillOptions { from_cameras: true, max: 10 };
        assert!(fill(&database, embedder, options, &CancellationToken::new()).await.is_err());
        assert!(database.cohort_members(embedder.name).await.unwrap().is_empty());
        assert!(!is_in_files());
    }
}
