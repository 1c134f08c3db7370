//! Proposals: unknown faces of the past that may be of a person who was enrolled later.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use diesel::{Connection, dsl::exists, prelude::*, select};

use super::{
    AnyConnection, Database, MAX_VARIABLES,
    detections::{self as detection_rows, number_or},
    insert_lock, jobs, names, naming,
    people::person,
    schema::{active_model, detections, model_people, past_searches, people, proposals},
    signals::Topic,
    unknowns,
};
use crate::{
    domain::{Job, JobKind, Micros, PersonRef, Proposal, now},
    store::{StoreError, vector_from_bytes},
};

/// Proposals that are judged in one transaction: few, so that other writers do not wait long.
const JUDGED: usize = 500;

/// A proposal to store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewProposal {
    /// Row id of the person.
    pub person: i64,
    /// Row id of the unknown detection.
    pub detection: i64,
    /// Cosine to the person's mean embedding.
    pub score: f32,
    /// The model that found it.
    pub model_version: i64,
}

/// Selects proposals.
#[derive(Debug, Clone, Default)]
pub struct ProposalFilter {
    /// Only those of this person.
    pub person: Option<PersonRef>,
    /// Refused ones instead of open ones.
    pub refused: bool,
}

/// Proposals to accept or refuse.
#[derive(Debug, Clone)]
pub enum SelectedProposals {
    /// By row id.
    Ids(Vec<i64>),
    /// All open ones of a person with at least this score.
    Of(PersonRef, f32),
}

/// The numbers of proposals that were accepted or refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judged {
    /// Accepted or refused.
    pub proposals: usize,
    /// Ids that are no open proposals: judged before, or their face or person is gone.
    pub missing: usize,
    /// Blobs of pictures of accepted faces; the caller deletes them.
    pub blobs: Vec<String>,
}

impl Database {
    /// Requests a search of unknown faces for a person, and queues the job that does it. Returns the job.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`]; [`StoreError::PersonNotInModel`] where the active model does not know the person.
    pub async fn search_past(&self, who: &PersonRef) -> Result<Job, StoreError> {
        let sought = self.sought(who);
        let job = self
            .write(move |connection| {
                let person = person(connection, &sought)?.row;
                let active: Option<i64> =
                    active_model::table.select(active_model::version).first(connection).optional()?;
                let known = model_people::table
                    .filter(model_people::version.eq(active.unwrap_or(0)))
                    .filter(model_people::person_id.eq(person));
                if !select(exists(known)).get_result::<bool>(connection)? {
                    return Err(StoreError::PersonNotInModel);
                }
                request(connection, &[person])?;
                let job = jobs::insert(connection, JobKind::SearchPast)?;
                jobs::find(connection, &job)?.ok_or(StoreError::Interrupted)
            })
            .await?;
        self.signals.notify(Topic::Jobs);
        Ok(job)
    }

    /// Requests a search for all of `people` who still exist, and queues the job, if there are unknown faces with embeddings
    /// by `embedder`. Returns whether a job was queued.
    ///
    /// # Errors
    /// The database fails.
    pub async fn search_past_of(&self, new: Vec<i64>, embedder: &'static str) -> Result<bool, StoreError> {
        let queued = self
            .write(move |connection| {
                let unknown = detections::table
                    .filter(detections::person_id.is_null())
                    .filter(detections::embedding.is_not_null())
                    .filter(detections::embedder.eq(embedder));
                if !select(exists(unknown)).get_result::<bool>(connection)? {
                    return Ok(false);
                }
                let mut there = Vec::with_capacity(new.len());
                for new in new.chunks(MAX_VARIABLES) {
                    let rows = people::table.filter(people::id.eq_any(new)).select(people::id);
                    there.extend(rows.load::<i64>(connection)?);
                }
                if there.is_empty() {
                    return Ok(false);
                }
                request(connection, &there)?;
                jobs::insert(connection, JobKind::SearchPast)?;
                Ok(true)
            })
            .await?;
        if queued {
            self.signals.notify(Topic::Jobs);
        }
        Ok(queued)
    }

    /// Returns the people in the active model, by row id.
    ///
    /// # Errors
    /// The database fails.
    pub async fn people_of_active_model(&self) -> Result<HashSet<i64>, StoreError> {
        self.read(|connection| {
            let active: Option<i64> =
                active_model::table.select(active_model::version).first(connection).optional()?;
            let rows = model_people::table
                .filter(model_people::version.eq(active.unwrap_or(0)))
                .select(model_people::person_id);
            Ok(rows.load::<i64>(connection)?.into_iter().collect())
        })
        .await
    }

    /// Returns the people for whom a search is requested, by row id, with the times of the requests.
    ///
    /// # Errors
    /// The database fails.
    pub async fn requested_searches(&self) -> Result<BTreeMap<i64, Micros>, StoreError> {
        self.read(|connection| {
            let rows = past_searches::table.select((past_searches::person_id, past_searches::requested_at));
            Ok(rows.load::<(i64, Micros)>(connection)?.into_iter().collect())
        })
        .await
    }

    /// Removes requests of searches that are done, unless they were made again meanwhile.
    ///
    /// # Errors
    /// The database fails.
    pub async fn finish_searches(&self, done: BTreeMap<i64, Micros>) -> Result<(), StoreError> {
        self.write(move |connection| {
            for (person, requested_at) in &done {
                let request =
                    past_searches::table.find(person).filter(past_searches::requested_at.le(requested_at));
                diesel::delete(request).execute(connection)?;
            }
            Ok(())
        })
        .await
    }

    /// Returns the number of unknown faces with an embedding by `embedder`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn count_unknown_embeddings(&self, embedder: &'static str) -> Result<i64, StoreError> {
        self.read(move |connection| {
            Ok(detections::table
                .filter(detections::person_id.is_null())
                .filter(detections::embedding.is_not_null())
                .filter(detections::embedder.eq(embedder))
                .count()
                .get_result(connection)?)
        })
        .await
    }

    /// Returns at most `limit` embeddings of unknown faces by `embedder`, with the row ids of their detections, after
    /// the row `after`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn unknown_embeddings(
        &self,
        after: i64,
        limit: i64,
        embedder: &'static str,
    ) -> Result<Vec<(i64, Vec<f32>)>, StoreError> {
        self.read(move |connection| {
            // The person is hidden from the indexes: with their order, all unknown faces would be read for each page.
            let rows = detections::table
                .filter(detections::id.gt(after))
                .filter(number_or(detections::person_id, 0).eq(0))
                .filter(detections::embedding.is_not_null())
                .filter(detections::embedder.eq(embedder))
                .order(detections::id.asc())
                .limit(limit)
                .select((detections::id, detections::embedding))
                .load::<(i64, Option<Vec<u8>>)>(connection)?;
            let embedding =
                |(id, bytes): (i64, Option<Vec<u8>>)| bytes.map(|bytes| Ok((id, vector_from_bytes(&bytes)?)));
            rows.into_iter().filter_map(embedding).collect()
        })
        .await
    }

    /// Stores proposals, except for those that are there already, open or refused, and those whose person or unknown face is
    /// gone. Returns how many it stored.
    ///
    /// # Errors
    /// The database fails.
    pub async fn add_proposals(&self, new: Vec<NewProposal>) -> Result<usize, StoreError> {
        if new.is_empty() {
            return Ok(0);
        }
        self.write(move |connection| {
            let mut added = 0;
            // The lock prevents faces from being erased or named between the query and the insertion.
            unknowns::hold(connection)?;
            for new in new.chunks(MAX_VARIABLES) {
                let faces: Vec<i64> = new.iter().map(|proposal| proposal.detection).collect();
                let persons: Vec<i64> = new.iter().map(|proposal| proposal.person).collect();
                let there: HashSet<(i64, i64)> = proposals::table
                    .filter(proposals::detection_id.eq_any(&faces))
                    .select((proposals::detection_id, proposals::person_id))
                    .load::<(i64, i64)>(connection)?
                    .into_iter()
                    .collect();
                let unknown: HashSet<i64> = detections::table
                    .filter(detections::id.eq_any(&faces))
                    .filter(detections::person_id.is_null())
                    .filter(detections::embedding.is_not_null())
                    .select(detections::id)
                    .load::<i64>(connection)?
                    .into_iter()
                    .collect();
                let enrolled: HashSet<i64> = people::table
                    .filter(people::id.eq_any(&persons))
                    .select(people::id)
                    .load::<i64>(connection)?
                    .into_iter()
                    .collect();
                for proposal in new {
                    if there.contains(&(proposal.detection, proposal.person))
                        || !unknown.contains(&proposal.detection)
                        || !enrolled.contains(&proposal.person)
                    {
                        continue;
                    }
                    added += diesel::insert_into(proposals::table)
                        .values((
                            proposals::person_id.eq(proposal.person),
                            proposals::detection_id.eq(proposal.detection),
                            proposals::score.eq(proposal.score),
                            proposals::model_version.eq(proposal.model_version),
                            proposals::refused.eq(false),
                            proposals::created_at.eq(now()),
                        ))
                        .execute(connection)?;
                }
            }
            Ok(added)
        })
        .await
    }

    /// Returns at most `limit` proposals by row id, after the row `after`.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`] where the person of the filter does not exist.
    pub async fn proposals(
        &self,
        filter: ProposalFilter,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Proposal>, StoreError> {
        let sought = filter.person.as_ref().map(|who| self.sought(who));
        self.read(move |connection| {
            let mut query = proposals::table
                .inner_join(people::table)
                .filter(proposals::id.gt(after))
                .filter(proposals::refused.eq(filter.refused))
                .order(proposals::id.asc())
                .limit(limit)
                .select((
                    proposals::id,
                    proposals::detection_id,
                    proposals::score,
                    proposals::model_version,
                    proposals::refused,
                    proposals::created_at,
                    (people::id, people::face_id, people::created_at, people::public_id),
                ))
                .into_boxed::<<AnyConnection as Connection>::Backend>();
            if let Some(sought) = &sought {
                query = query.filter(proposals::person_id.eq(person(connection, sought)?.row));
            }
            let rows = query.load::<(i64, i64, f32, i64, bool, Micros, names::PersonColumns)>(connection)?;
            let mut faces = HashMap::with_capacity(rows.len());
            for rows in rows.chunks(MAX_VARIABLES) {
                let ids: Vec<i64> = rows.iter().map(|(_, detection, ..)| *detection).collect();
                faces.extend(detection_rows::of_ids(connection, &ids)?);
            }
            let proposal = |(id, detection, score, model_version, refused, created_at, columns)| {
                Some(Proposal {
                    id,
                    person: names::person_of(columns),
                    detection: faces.remove(&detection)?,
                    score,
                    model_version,
                    refused,
                    created_at,
                })
            };
            Ok(rows.into_iter().filter_map(proposal).collect())
        })
        .await
    }

    /// Accepts proposals, which puts the name to their detections, or refuses them, so that they are not made again.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`] where the person of the selection does not exist. Proposals that were judged before an
    /// error stay judged.
    pub async fn judge_proposals(
        &self,
        selected: SelectedProposals,
        accept: bool,
    ) -> Result<Judged, StoreError> {
        let mut judged = Judged::default();
        match selected {
            SelectedProposals::Ids(ids) => {
                let ids: Vec<i64> = ids.into_iter().collect::<HashSet<_>>().into_iter().collect();
                for ids in ids.chunks(JUDGED) {
                    let (ids, asked) = (ids.to_vec(), ids.len());
                    let (done, _, blobs) = self
                        .write(move |connection| {
                            begin_judging(connection, accept)?;
                            let open = proposals::table
                                .filter(proposals::id.eq_any(&ids))
                                .filter(proposals::refused.eq(false))
                                .order(proposals::score.desc())
                                .select((proposals::id, proposals::person_id, proposals::detection_id))
                                .load::<(i64, i64, i64)>(connection)?;
                            judge(connection, &open, accept)
                        })
                        .await?;
                    judged.proposals += done;
                    judged.blobs.extend(blobs);
                    judged.missing += asked - done;
                }
            }
            SelectedProposals::Of(who, min_score) => {
                let sought = self.sought(&who);
                loop {
                    let sought = sought.clone();
                    let (done, outdated, blobs) = self
                        .write(move |connection| {
                            begin_judging(connection, accept)?;
                            let person = person(connection, &sought)?.row;
                            let open = proposals::table
                                .filter(proposals::person_id.eq(person))
                                .filter(proposals::refused.eq(false))
                                .filter(proposals::score.ge(min_score))
                                .order(proposals::id.asc())
                                .limit(i64::try_from(JUDGED).unwrap_or(i64::MAX))
                                .select((proposals::id, proposals::person_id, proposals::detection_id))
                                .load::<(i64, i64, i64)>(connection)?;
                            judge(connection, &open, accept)
                        })
                        .await?;
                    if done + outdated == 0 {
                        break;
                    }
                    judged.blobs.extend(blobs);
                    judged.proposals += done;
                }
            }
        }
        Ok(judged)
    }
}

/// Locks the rows that accepting or refusing proposals changes. Must be called before anything else in a transaction.
fn begin_judging(connection: &mut AnyConnection, accept: bool) -> Result<(), StoreError> {
    if accept {
        insert_lock::hold_insert_lock(connection)?;
        unknowns::lock(connection)
    } else {
        unknowns::hold(connection)
    }
}

/// Requests a search for people, or requests it again.
fn request(connection: &mut AnyConnection, persons: &[i64]) -> Result<(), StoreError> {
    // Another process may be requesting the same.
    let conflict = "ON CONFLICT (person_id) DO UPDATE SET";
    #[cfg(feature = "database-servers")]
    let conflict =
        if matches!(connection, AnyConnection::Mysql(_)) { "ON DUPLICATE KEY UPDATE" } else { conflict };
    // Sorted, so that two requests do not wait for each other.
    let persons: Vec<i64> = persons.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    for persons in persons.chunks(MAX_VARIABLES) {
        // Many rows a statement: other writers wait meanwhile.
        let requested_at = now();
        let rows: Vec<String> = persons.iter().map(|person| format!("({person},{requested_at})")).collect();
        let insert = format!(
            "INSERT INTO past_searches (person_id, requested_at) VALUES {} {conflict} requested_at = {requested_at}",
            rows.join(",")
        );
        diesel::sql_query(insert).execute(connection)?;
    }
    Ok(())
}

/// Accepts or refuses open proposals (id, person, detection), at most as many as one statement takes. A face that several people
/// are accepted for gets the first one's name. Removes proposals to accept whose face has become known. Returns how many were
/// judged, how many were removed, and the blobs to delete.
fn judge(
    connection: &mut AnyConnection,
    open: &[(i64, i64, i64)],
    accept: bool,
) -> Result<(usize, usize, Vec<String>), StoreError> {
    if !accept {
        let ids: Vec<i64> = open.iter().map(|(id, ..)| *id).collect();
        let refused = diesel::update(proposals::table.filter(proposals::id.eq_any(&ids)))
            .set(proposals::refused.eq(true))
            .execute(connection)?;
        return Ok((refused, 0, Vec::new()));
    }
    let proposed: Vec<i64> = open.iter().map(|(.., detection)| *detection).collect();
    let known: HashSet<i64> = detections::table
        .filter(detections::id.eq_any(&proposed))
        .filter(detections::person_id.is_not_null())
        .select(detections::id)
        .load::<i64>(connection)?
        .into_iter()
        .collect();
    let outdated: Vec<i64> =
        open.iter().filter(|(.., detection)| known.contains(detection)).map(|(id, ..)| *id).collect();
    let outdated = proposals::table.filter(proposals::id.eq_any(outdated));
    let removed = diesel::delete(outdated).execute(connection)?;
    let mut named = HashSet::new();
    let mut faces: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (_, person, detection) in open.iter().filter(|(.., detection)| !known.contains(detection)) {
        if named.insert(*detection) {
            faces.entry(*person).or_default().push(*detection);
        }
    }
    let mut blobs = Vec::new();
    for (person, faces) in &faces {
        blobs.extend(naming::put_name(connection, faces, *person)?);
    }
    Ok((named.len(), removed, blobs))
}
