//! Searches stored unknown faces for people who were enrolled later.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use facepipe_identify::{Decision, IdentifyError};
use rayon::prelude::*;

use super::{
    executor::{JobError, JobExecutor, RunningJob, blocking, count, milliseconds},
    results::PastSearchResult,
};
use crate::{domain::Micros, recognise::VersionedModel, store::sql::NewProposal};

/// Faces that are read, compared and written together: memory does not grow with their number, and a search stops soon when it
/// must.
const CHUNK: i64 = 1000;

impl JobExecutor {
    /// Compares all stored unknown faces with the active model and proposes those that it knows as one of the people for
    /// whom a search is requested. One pass serves all requests. A search that is resumed starts again, and proposes nothing
    /// twice.
    pub(super) async fn search_past(&self, running: &RunningJob<'_>) -> Result<PastSearchResult, JobError> {
        let requested = self.database.requested_searches().await?;
        self.loader.refresh().await?;
        let model = self.loader.active().ok_or(JobError::NoModel)?;
        let model_version = model.version;
        let threshold = self.threshold.of(Some(&model));
        let embedder = self.embedder();
        let mut result = PastSearchResult {
            people: count(requested.len())?,
            faces: 0,
            proposals: 0,
            model_version,
            duration_ms: 0,
        };
        let people: Arc<BTreeMap<i64, Micros>> = Arc::new(requested);
        let total =
            if people.is_empty() { 0 } else { self.database.count_unknown_embeddings(embedder).await? };
        running.progress.set_total(usize::try_from(total).unwrap_or(usize::MAX));
        let mut after = 0;
        while !people.is_empty() {
            running.progress.ensure_not_aborted()?;
            let faces = self.database.unknown_embeddings(after, CHUNK, embedder).await?;
            let Some((last, _)) = faces.last() else { break };
            after = *last;
            let read = faces.len();
            let (model, searched) = (Arc::clone(&model), Arc::clone(&people));
            let found = blocking(move || compare(&model, &searched, faces, threshold)).await??;
            result.proposals += count(self.database.add_proposals(found).await?)?;
            result.faces += count(read)?;
            running.progress.advance(read);
        }
        self.database.finish_searches(people.as_ref().clone()).await?;
        result.duration_ms = milliseconds(running.started.elapsed());
        tracing::info!(
            job = running.job.id,
            people = result.people,
            faces = result.faces,
            proposals = result.proposals,
            duration_ms = result.duration_ms,
            "searched stored unknown faces"
        );
        Ok(result)
    }
}

/// Returns the proposals for faces: those that the model knows as one of `people`.
fn compare(
    versioned: &VersionedModel,
    people: &BTreeMap<i64, Micros>,
    faces: Vec<(i64, Vec<f32>)>,
    threshold: f32,
) -> Result<Vec<NewProposal>, IdentifyError> {
    let VersionedModel { version, model, .. } = versioned;
    if model.labels().is_empty() {
        return Ok(Vec::new());
    }
    let labels: HashMap<String, i64> = people.keys().map(|person| (person.to_string(), *person)).collect();
    let propose = |(detection, embedding): (i64, Vec<f32>)| {
        let identification = model.identify(&embedding, threshold, 1)?;
        let person = identification.top.and_then(|top| labels.get(&top.label).copied());
        Ok::<_, IdentifyError>(match (identification.decision, person, identification.score) {
            (Decision::Known, Some(person), Some(score)) => {
                Some(NewProposal { person, detection, score, model_version: *version })
            }
            _ => None,
        })
    };
    faces
        .into_par_iter()
        .filter(|(_, embedding)| embedding.len() == model.dimensions())
        .filter_map(|face| propose(face).transpose())
        .collect()
}
