//! Pairs of images of different people that are nearly the same picture.

use std::collections::{HashMap, HashSet};

use diesel::prelude::*;

use super::{
    AnyConnection, Database,
    names::{PersonColumns, person_of},
    schema::{embeddings, images, people, similar_images},
};
use crate::{
    domain::{Person, cosine},
    store::{StoreError, vector_from_bytes},
};

/// An image that is nearly the same picture as another one.
#[derive(Debug, Clone, PartialEq)]
pub struct SimilarImage {
    pub image_id: String,
    /// The person it is enrolled under.
    pub person: Person,
    /// Cosine between the embeddings of both.
    pub similarity: f32,
}

/// Two images of different people that are nearly the same picture.
#[derive(Debug, Clone, PartialEq)]
pub struct SimilarPair {
    /// Id and person of each.
    pub images: [(String, Person); 2],
    /// Cosine between their embeddings.
    pub similarity: f32,
}

impl Database {
    /// Returns at most `limit` images of people other than `person` with at least this cosine between their embedding
    /// and `embedding`, of length 1; the nearest come first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn similar_images(
        &self,
        person: i64,
        embedder: &'static str,
        embedding: Vec<f32>,
        threshold: f32,
        limit: usize,
    ) -> Result<Vec<SimilarImage>, StoreError> {
        self.read(move |connection| {
            let others = embeddings::table
                .inner_join(images::table)
                .filter(embeddings::embedder.eq(embedder))
                .filter(images::person_id.ne(person))
                .select((images::id, images::person_id, embeddings::vector))
                .load::<(String, i64, Vec<u8>)>(connection)?;
            let mut near = Vec::new();
            for (image, person, vector) in others {
                let vector = vector_from_bytes(&vector)?;
                let similarity = cosine(&embedding, &vector);
                if similarity >= threshold {
                    near.push((image, person, similarity.clamp(-1.0, 1.0)));
                }
            }
            near.sort_by(|(.., one), (.., other)| other.total_cmp(one));
            near.truncate(limit);
            let people = people_of(connection, near.iter().map(|(_, person, _)| *person).collect())?;
            let named = near.into_iter().filter_map(|(image_id, person, similarity)| {
                Some(SimilarImage { image_id, person: people.get(&person)?.clone(), similarity })
            });
            Ok(named.collect())
        })
        .await
    }

    /// Records pairs of similar images; those with an erased image are skipped.
    ///
    /// # Errors
    /// The database fails.
    pub async fn record_similar(&self, pairs: Vec<(String, String, f32)>) -> Result<(), StoreError> {
        self.write(move |connection| add(connection, &pairs)).await
    }

    /// Replaces all pairs of similar images by those that a training found.
    ///
    /// # Errors
    /// The database fails.
    pub async fn replace_similar(&self, pairs: Vec<(String, String, f32)>) -> Result<(), StoreError> {
        self.write(move |connection| {
            diesel::delete(similar_images::table).execute(connection)?;
            add(connection, &pairs)
        })
        .await
    }

    /// Returns at most `limit` pairs of similar images, the most similar first, and the number of all pairs.
    ///
    /// # Errors
    /// The database fails.
    pub async fn similar_pairs(&self, limit: i64) -> Result<(Vec<SimilarPair>, i64), StoreError> {
        self.read(move |connection| {
            let total = similar_images::table.count().get_result(connection)?;
            let rows: Vec<(String, String, f32)> = similar_images::table
                .order((similar_images::similarity.desc(), similar_images::image_id))
                .limit(limit)
                .load(connection)?;
            Ok((pairs_of(connection, rows)?, total))
        })
        .await
    }
}

/// Returns the images that are nearly the same picture as one, the most similar first.
pub(super) fn similar_to(
    connection: &mut AnyConnection,
    image: &str,
) -> Result<Vec<SimilarImage>, StoreError> {
    let rows: Vec<(String, String, f32)> = similar_images::table
        .filter(similar_images::image_id.eq(image).or(similar_images::other_image_id.eq(image)))
        .order(similar_images::similarity.desc())
        .load(connection)?;
    let pairs = pairs_of(connection, rows)?;
    let other = |SimilarPair { images, similarity }: SimilarPair| {
        images.into_iter().find(|(id, _)| id != image).map(|(image_id, person)| SimilarImage {
            image_id,
            person,
            similarity,
        })
    };
    Ok(pairs.into_iter().filter_map(other).collect())
}

fn pairs_of(
    connection: &mut AnyConnection,
    rows: Vec<(String, String, f32)>,
) -> Result<Vec<SimilarPair>, StoreError> {
    let ids: HashSet<&str> = rows.iter().flat_map(|(one, other, _)| [one.as_str(), other]).collect();
    let owners: HashMap<String, i64> = images::table
        .filter(images::id.eq_any(ids))
        .select((images::id, images::person_id))
        .load::<(String, i64)>(connection)?
        .into_iter()
        .collect();
    let people = people_of(connection, owners.values().copied().collect())?;
    let side = |image: String| {
        let person = people.get(owners.get(&image)?)?.clone();
        Some((image, person))
    };
    let pair = |(one, other, similarity): (String, String, f32)| {
        Some(SimilarPair { images: [side(one)?, side(other)?], similarity })
    };
    Ok(rows.into_iter().filter_map(pair).collect())
}

fn people_of(connection: &mut AnyConnection, rows: HashSet<i64>) -> Result<HashMap<i64, Person>, StoreError> {
    let found = people::table
        .filter(people::id.eq_any(rows))
        .select((people::id, people::face_id, people::created_at, people::public_id))
        .load::<PersonColumns>(connection)?;
    Ok(found.into_iter().map(|columns| (columns.0, person_of(columns))).collect())
}

fn add(connection: &mut AnyConnection, pairs: &[(String, String, f32)]) -> Result<(), StoreError> {
    for (one, other, similarity) in pairs {
        let (first, second) = if one < other { (one, other) } else { (other, one) };
        diesel::delete(similar_images::table.find((first, second))).execute(connection)?;
        let there: i64 =
            images::table.filter(images::id.eq_any([first, second])).count().get_result(connection)?;
        if there == 2 {
            diesel::insert_into(similar_images::table)
                .values((
                    similar_images::image_id.eq(first),
                    similar_images::other_image_id.eq(second),
                    similar_images::similarity.eq(similarity),
                ))
                .execute(connection)?;
        }
    }
    Ok(())
}
