//! People, their enrolled images and embeddings.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use diesel::{
    dsl::count_star,
    prelude::*,
    result::{DatabaseErrorKind, Error},
};

use super::{
    AnyConnection, Database, MAX_ATTEMPTS, MAX_VARIABLES, audit, cohort,
    erasures::{Erasure, RowIdentity, record_erasure},
    leases::{Lease, ensure_unlocked, renew},
    names::{self, Name, PersonKey},
    schema::{detections, embeddings, images, named_unknowns, people, similar_images},
    similar::{SimilarImage, similar_to},
    tracks,
};
use crate::{
    domain::{EnrolledFace, EnrolledPerson, FaceId, FaceQuality, Micros, Person, PersonId, PersonRef, now},
    store::{StoreError, vector_from_bytes, vector_to_bytes},
};

/// Begins `blob_key` of an image that has no picture, only an embedding; its id follows.
pub(super) const IMAGES_WITHOUT_PICTURES: &str = "none/";

pub struct PersonRow {
    pub person: Person,
    /// The time of enrolment.
    pub created_at: Micros,
    /// Enrolled images.
    pub images: i64,
    /// The images that a training uses: with an embedding, and without a conflicting image of another person.
    pub usable_images: i64,
    /// The older person who has the same name by the rule of names, where both were enrolled before the rule.
    pub same_name_as: Option<PersonId>,
}

/// An enrolled image.
pub struct ImageRow {
    /// The image's id, UUID.
    pub id: String,
    /// Size in bytes.
    pub bytes: i64,
    /// SHA-256 of its bytes, hexadecimal; `None` for an image from before digests were stored.
    pub sha256: Option<String>,
    /// The time of enrolment.
    pub created_at: Micros,
    /// The enrolled face; `None` for an image from before boxes were stored, until its embedding is recomputed.
    pub face: Option<EnrolledFace>,
}

type ImageColumns = (String, i64, Option<String>, Micros);

/// The box and the components of the quality, in the order of [`face_columns!`].
type FaceColumns = (
    Option<f32>,
    Option<f32>,
    Option<f32>,
    Option<f32>,
    Option<f32>,
    Option<f32>,
    Option<f32>,
    Option<f32>,
    Option<f32>,
    Option<f32>,
    Option<f32>,
);

macro_rules! face_columns {
    () => {
        (
            images::face_left,
            images::face_top,
            images::face_right,
            images::face_bottom,
            images::face_size,
            images::face_sharpness,
            images::face_yaw,
            images::face_pitch,
            images::face_roll,
            images::face_brightness,
            images::face_confidence,
        )
    };
}

impl ImageRow {
    fn new((id, bytes, sha256, created_at): ImageColumns, face: FaceColumns) -> Self {
        Self { id, bytes, sha256, created_at, face: enrolled_face(face) }
    }
}

/// Returns the face of an image's row; `None` if it has none.
fn enrolled_face(
    (left, top, right, bottom, size, sharpness, yaw, pitch, roll, brightness, confidence): FaceColumns,
) -> Option<EnrolledFace> {
    Some(EnrolledFace {
        bounding_box: [left?, top?, right?, bottom?],
        quality: FaceQuality {
            size: size?,
            sharpness: sharpness?,
            yaw: yaw?,
            pitch: pitch?,
            roll: roll?,
            brightness: brightness?,
            detection_confidence: confidence?,
        },
    })
}

/// The values of a face's columns.
#[derive(AsChangeset, Insertable)]
#[diesel(table_name = images)]
struct FaceValues {
    face_left: f32,
    face_top: f32,
    face_right: f32,
    face_bottom: f32,
    face_size: f32,
    face_sharpness: f32,
    face_yaw: f32,
    face_pitch: f32,
    face_roll: f32,
    face_brightness: f32,
    face_confidence: f32,
}

impl From<&EnrolledFace> for FaceValues {
    fn from(face: &EnrolledFace) -> Self {
        let [face_left, face_top, face_right, face_bottom] = face.bounding_box;
        let quality = face.quality;
        Self {
            face_left,
            face_top,
            face_right,
            face_bottom,
            face_size: quality.size,
            face_sharpness: quality.sharpness,
            face_yaw: quality.yaw,
            face_pitch: quality.pitch,
            face_roll: quality.roll,
            face_brightness: quality.brightness,
            face_confidence: quality.detection_confidence,
        }
    }
}

/// An image to enrol; its blob is stored already.
pub struct NewImage {
    /// The image's id, UUID.
    pub id: String,
    /// The key of its blob.
    pub blob_key: String,
    /// Size in bytes.
    pub bytes: i64,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// The network that computed the embedding.
    pub embedder: &'static str,
    /// Its enrolled face.
    pub face: EnrolledFace,
    /// The embedding of that face.
    pub embedding: Vec<f32>,
}

/// A new embedding of an enrolled image.
pub struct NewEmbedding {
    /// The image's id.
    pub image: String,
    /// The face and its embedding; `None` where the image does not show it.
    pub face: Option<(EnrolledFace, Vec<f32>)>,
}

/// A reference to an enrolled image and its blob.
#[derive(Debug, Clone)]
pub struct EnrolledImage {
    pub id: String,
    /// Row id of the person.
    pub person: i64,
    pub blob_key: String,
    /// The box of the enrolled face: left, top, right, bottom in pixels of the upright image; `None` for an image from before
    /// boxes were stored.
    pub face_box: Option<[f32; 4]>,
}

impl EnrolledImage {
    /// Returns whether the image has a picture, rather than an embedding alone.
    pub fn has_picture(&self) -> bool {
        has_picture(&self.blob_key)
    }
}

/// Returns whether the key of an image is that of a picture.
pub fn has_picture(blob_key: &str) -> bool {
    !blob_key.starts_with(IMAGES_WITHOUT_PICTURES)
}

/// An image with its person, embeddings and similar images.
pub struct ImageDetails {
    pub row: ImageRow,
    pub blob_key: String,
    /// The person it is enrolled under.
    pub person: Person,
    /// Embedders that computed an embedding of it, and when.
    pub embeddings: Vec<(String, Micros)>,
    /// Images of other people that are nearly the same picture.
    pub similar: Vec<SimilarImage>,
}

/// An erasure that is done in the database and pending in the blob store.
pub struct PendingErasure {
    /// The keys of the blobs to delete.
    pub blobs: Vec<String>,
    /// The entries for the ledger in the blob store.
    pub erasures: Vec<Erasure>,
}

/// An image with its embedding, for a training.
#[derive(Clone)]
pub struct TrainingImage {
    pub id: String,
    /// Row id of the person.
    pub person: i64,
    pub embedding: Vec<f32>,
}

/// The input of a training on stored embeddings.
pub struct TrainingSet {
    /// The images with an embedding by the embedder.
    pub images: Vec<TrainingImage>,
    /// Everybody in the dataset.
    pub people: Vec<EnrolledPerson>,
}

impl Database {
    /// Adds a person without images.
    ///
    /// # Errors
    /// [`StoreError::PersonExists`].
    pub async fn add_person(&self, id: &FaceId) -> Result<Person, StoreError> {
        let name = self.name(id);
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            ensure_name_is_free(connection, &name, None)?;
            add(connection, &name)
        })
        .await
    }

    /// Finds a person.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`].
    pub async fn person(&self, who: &PersonRef) -> Result<Person, StoreError> {
        let sought = self.sought(who);
        self.read(move |connection| person(connection, &sought)).await
    }

    /// Returns all people by Face ID, with the numbers of their images and of those that a training on embeddings of
    /// `embedder` uses.
    ///
    /// # Errors
    /// The database fails.
    pub async fn people(&self, embedder: &'static str) -> Result<Vec<PersonRow>, StoreError> {
        self.read(move |connection| {
            let rows = people::table
                .select(PERSON_ROW)
                .order(people::face_id)
                .load::<(names::PersonColumns, Option<String>)>(connection)?;
            with_counts(connection, rows, embedder)
        })
        .await
    }

    /// Returns at most `limit` people as [`people`](Self::people) does, but in the order of enrolment, with their rows, starting
    /// after the row `after`; and how many people there are in all.
    ///
    /// # Errors
    /// The database fails.
    pub async fn people_after(
        &self,
        embedder: &'static str,
        after: i64,
        limit: i64,
    ) -> Result<(Vec<(i64, PersonRow)>, i64), StoreError> {
        self.read(move |connection| {
            let rows = people::table
                .select(PERSON_ROW)
                .filter(people::id.gt(after))
                .order(people::id)
                .limit(limit)
                .load::<(names::PersonColumns, Option<String>)>(connection)?;
            let ids: Vec<i64> = rows.iter().map(|(columns, _)| columns.0).collect();
            let total = people::table.count().get_result(connection)?;
            Ok((ids.into_iter().zip(with_counts(connection, rows, embedder)?).collect(), total))
        })
        .await
    }

    /// Returns the Face IDs of `people`, row ids, by row id, without those who are not enrolled. Is read for every
    /// response, so that an erased person is never named.
    ///
    /// # Errors
    /// The database fails.
    pub async fn face_ids(&self, people: HashSet<i64>) -> Result<HashMap<i64, String>, StoreError> {
        if people.is_empty() {
            return Ok(HashMap::new());
        }
        self.read(move |connection| face_ids(connection, &people)).await
    }

    /// Checks that no person has an image of the same bytes.
    ///
    /// # Errors
    /// [`StoreError::DuplicateImage`], [`StoreError::ImageOfAnother`].
    pub async fn ensure_image_is_new(&self, person_id: i64, sha256: &str) -> Result<(), StoreError> {
        let sha256 = sha256.to_owned();
        self.read(move |connection| ensure_image_is_new(connection, person_id, &sha256)).await
    }

    /// Adds an image and its embedding to a person.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`] where the person was erased meanwhile, [`StoreError::DuplicateImage`],
    /// [`StoreError::ImageOfAnother`].
    pub async fn add_image(&self, person_id: i64, image: NewImage) -> Result<(), StoreError> {
        let image = Arc::new(image);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let added = Arc::clone(&image);
            match self.write(move |connection| add_image(connection, person_id, &added)).await {
                // A concurrent call added the same bytes: the next attempt sees them.
                Err(StoreError::Database(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)))
                    if attempt < MAX_ATTEMPTS => {}
                outcome => return outcome,
            }
        }
    }

    /// Returns an image with its person, embeddings and similar images.
    ///
    /// # Errors
    /// [`StoreError::ImageNotFound`].
    pub async fn image(&self, image: &str) -> Result<ImageDetails, StoreError> {
        let image = image.to_owned();
        self.read(move |connection| {
            let (row, face, blob_key, person) = images::table
                .inner_join(people::table)
                .filter(images::id.eq(&image))
                .select((
                    (images::id, images::bytes, images::sha256, images::created_at),
                    face_columns!(),
                    images::blob_key,
                    (people::id, people::face_id, people::created_at, people::public_id),
                ))
                .first::<(ImageColumns, FaceColumns, String, names::PersonColumns)>(connection)
                .optional()?
                .ok_or(StoreError::ImageNotFound)?;
            let embeddings = embeddings::table
                .filter(embeddings::image_id.eq(&image))
                .order(embeddings::embedder)
                .select((embeddings::embedder, embeddings::created_at))
                .load::<(String, Micros)>(connection)?;
            let similar = similar_to(connection, &image)?;
            let row = ImageRow::new(row, face);
            Ok(ImageDetails { row, blob_key, person: names::person_of(person), embeddings, similar })
        })
        .await
    }

    /// Returns a person and the person's images, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`].
    pub async fn images(&self, who: &PersonRef) -> Result<(Person, Vec<ImageRow>), StoreError> {
        let sought = self.sought(who);
        self.read(move |connection| {
            let person = person(connection, &sought)?;
            let rows = images::table
                .filter(images::person_id.eq(person.row))
                .order((images::created_at, images::id))
                .select(((images::id, images::bytes, images::sha256, images::created_at), face_columns!()))
                .load::<(ImageColumns, FaceColumns)>(connection)?;
            Ok((person, rows.into_iter().map(|(row, face)| ImageRow::new(row, face)).collect()))
        })
        .await
    }

    /// Returns the key of the blob of a person's image.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`], [`StoreError::ImageNotFound`].
    pub async fn image_blob_key(&self, who: &PersonRef, image: &str) -> Result<String, StoreError> {
        let (sought, image) = (self.sought(who), image.to_owned());
        self.read(move |connection| image_blob_key(connection, &sought, &image)).await
    }

    /// Returns the Face IDs of the people with these ids, by id.
    ///
    /// # Errors
    /// The database fails.
    pub async fn face_ids_of(&self, ids: HashSet<String>) -> Result<HashMap<String, String>, StoreError> {
        self.read(move |connection| {
            let columns = (people::id, people::face_id, people::created_at, people::public_id);
            // A server of the previous version enrols people without an id.
            let mut found = people::table
                .filter(people::public_id.is_null())
                .select(columns)
                .load::<names::PersonColumns>(connection)?;
            let sought: Vec<&String> = ids.iter().collect();
            for some in sought.chunks(MAX_VARIABLES) {
                let people = people::table.filter(people::public_id.eq_any(some.iter().copied()));
                found.extend(people.select(columns).load::<names::PersonColumns>(connection)?);
            }
            let people = found.into_iter().map(names::person_of);
            let named = people.map(|person| (person.id.to_string(), person.face_id));
            Ok(named.filter(|(id, _)| ids.contains(id)).collect())
        })
        .await
    }

    /// Erases an image of a person and its embeddings.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`], [`StoreError::ImageNotFound`].
    pub async fn erase_image(&self, who: &PersonRef, image: &str) -> Result<PendingErasure, StoreError> {
        let (sought, image) = (self.sought(who), image.to_owned());
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let blob_key = image_blob_key(connection, &sought, &image)?;
            erase_image(connection, &image, blob_key)
        })
        .await
    }

    /// Erases an image of any person, as [`erase_image`](Self::erase_image) does. `None` where it does not exist.
    ///
    /// # Errors
    /// [`StoreError::DatasetLocked`].
    pub async fn erase_image_row(&self, image: &str) -> Result<Option<PendingErasure>, StoreError> {
        let image = image.to_owned();
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let blob_key: Option<String> =
                images::table.find(&image).select(images::blob_key).first(connection).optional()?;
            blob_key.map(|blob_key| erase_image(connection, &image, blob_key)).transpose()
        })
        .await
    }

    /// Renames a person. Everything else refers to the person's row.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`]; [`StoreError::PersonExists`] where another person has the new Face ID.
    pub async fn rename_person(&self, from: &PersonRef, to: &FaceId) -> Result<Person, StoreError> {
        let (from, to) = (self.sought(from), self.name(to));
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let person = person(connection, &from)?;
            if person.face_id == to.face_id {
                return Ok(person);
            }
            ensure_name_is_free(connection, &to, Some(person.row))?;
            let row = people::table.find(person.row);
            let key: Option<String> = row.select(people::face_key).first(connection)?;
            let renamed = (people::face_id.eq(&to.face_id), people::face_key.eq(Some(&to.key)));
            diesel::update(row).set(renamed).execute(connection).map_err(name_taken)?;
            names::promote_next_holder(connection, key.as_deref())?;
            Ok(Person { face_id: to.face_id.clone(), ..person })
        })
        .await
    }

    /// Erases a person with images and embeddings, the embeddings of the cohort that may show the person, and with
    /// `with_detections` also the detections, which otherwise stay without a name.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`].
    pub async fn erase_person(
        &self,
        who: &PersonRef,
        with_detections: bool,
    ) -> Result<PendingErasure, StoreError> {
        let sought = self.sought(who);
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let person = person(connection, &sought)?;
            erase_person(connection, person.row, with_detections)?.ok_or(StoreError::PersonNotFound)
        })
        .await
    }

    /// Erases a person as [`erase_person`](Self::erase_person) does. `None` where the row does not exist.
    ///
    /// # Errors
    /// [`StoreError::DatasetLocked`].
    pub async fn erase_person_row(
        &self,
        person_id: i64,
        with_detections: bool,
    ) -> Result<Option<PendingErasure>, StoreError> {
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            erase_person(connection, person_id, with_detections)
        })
        .await
    }

    /// Returns the identities of all people, with their row ids.
    ///
    /// # Errors
    /// The database fails.
    pub async fn identities(&self) -> Result<Vec<(i64, RowIdentity)>, StoreError> {
        self.read(|connection| {
            let rows = people::table.select((people::id, people::created_at)).load(connection)?;
            Ok(rows
                .into_iter()
                .map(|(id, created_at)| (id, RowIdentity::Person { id, created_at }))
                .collect())
        })
        .await
    }

    /// Returns the ids of all images.
    ///
    /// # Errors
    /// The database fails.
    pub async fn image_ids(&self) -> Result<Vec<String>, StoreError> {
        self.read(|connection| Ok(images::table.select(images::id).load(connection)?)).await
    }

    /// Returns the keys of all blobs that images refer to.
    ///
    /// # Errors
    /// The database fails.
    pub async fn image_blob_keys(&self) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            let mut keys: Vec<String> = images::table.select(images::blob_key).load(connection)?;
            keys.retain(|key| has_picture(key));
            Ok(keys)
        })
        .await
    }

    /// Returns the person of a row; `None` if the person was erased.
    ///
    /// # Errors
    /// The database fails.
    pub async fn person_of_row(&self, row: i64) -> Result<Option<Person>, StoreError> {
        self.read(move |connection| {
            let columns = people::table
                .find(row)
                .select((people::id, people::face_id, people::created_at, people::public_id))
                .first::<names::PersonColumns>(connection)
                .optional()?;
            Ok(columns.map(names::person_of))
        })
        .await
    }

    /// Returns the embeddings of a person's images by an embedder.
    ///
    /// # Errors
    /// The database fails.
    pub async fn embeddings_of(
        &self,
        person: i64,
        embedder: &'static str,
    ) -> Result<Vec<Vec<f32>>, StoreError> {
        self.read(move |connection| {
            let vectors = embeddings::table
                .inner_join(images::table)
                .filter(embeddings::embedder.eq(embedder))
                .filter(images::person_id.eq(person))
                .select(embeddings::vector)
                .load::<Vec<u8>>(connection)?;
            vectors.iter().map(|vector| vector_from_bytes(vector)).collect()
        })
        .await
    }

    /// Returns all embeddings by an embedder, in one consistent read.
    ///
    /// # Errors
    /// The database fails.
    pub async fn training_set(&self, embedder: &'static str) -> Result<TrainingSet, StoreError> {
        self.read(move |connection| {
            let rows = embeddings::table
                .inner_join(images::table)
                .filter(embeddings::embedder.eq(embedder))
                .order((images::person_id, images::created_at, images::id))
                .select((images::id, images::person_id, embeddings::vector))
                .load::<(String, i64, Vec<u8>)>(connection)?;
            let images = rows
                .into_iter()
                .map(|(id, person, vector)| {
                    Ok(TrainingImage { id, person, embedding: vector_from_bytes(&vector)? })
                })
                .collect::<Result<_, StoreError>>()?;
            Ok(TrainingSet { images, people: enrolled(connection)? })
        })
        .await
    }

    /// Returns all images and all people, in one consistent read.
    ///
    /// # Errors
    /// The database fails.
    pub async fn enrolled_images(&self) -> Result<(Vec<EnrolledImage>, Vec<EnrolledPerson>), StoreError> {
        self.read(|connection| {
            let images = images::table
                .order((images::person_id, images::created_at, images::id))
                .select((images::id, images::person_id, images::blob_key, face_columns!()))
                .load::<(String, i64, String, FaceColumns)>(connection)?;
            let image = |(id, person, blob_key, face)| {
                let face_box = enrolled_face(face).map(|face| face.bounding_box);
                EnrolledImage { id, person, blob_key, face_box }
            };
            Ok((images.into_iter().map(image).collect(), enrolled(connection)?))
        })
        .await
    }

    /// Replaces the embeddings of images by `embedder`, where `holder` still has the dataset's lease; an image that does not
    /// show its face loses its embedding, and keeps the box and the quality of the face.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn replace_embeddings(
        &self,
        embedder: &'static str,
        new: Vec<NewEmbedding>,
        holder: &str,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let holder = holder.to_owned();
        self.write(move |connection| {
            if !renew(connection, Lease::Dataset, &holder, ttl)? {
                return Err(StoreError::LeaseLost);
            }
            let created_at = now();
            for NewEmbedding { image, face } in &new {
                diesel::delete(embeddings::table.find((image, embedder))).execute(connection)?;
                if let Some((face, vector)) = face {
                    insert_embedding(connection, image, embedder, vector, created_at)?;
                    let row = images::table.find(image);
                    diesel::update(row).set(FaceValues::from(face)).execute(connection)?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// Adds a person whose name is free; part of a transaction.
pub(super) fn add(connection: &mut AnyConnection, name: &Name) -> Result<Person, StoreError> {
    let id = PersonId::new();
    let row = (
        people::face_id.eq(&name.face_id),
        people::created_at.eq(now()),
        people::face_key.eq(Some(&name.key)),
        people::public_id.eq(Some(id.to_string())),
    );
    match diesel::insert_into(people::table).values(row).execute(connection) {
        Ok(_) => {
            let row = people::table.filter(people::public_id.eq(id.to_string()));
            let row = row.select(people::id).first(connection)?;
            Ok(Person { row, id, face_id: name.face_id.clone() })
        }
        Err(error) => Err(name_taken(error)),
    }
}

/// Returns the number of images of each person with images, by row id.
/// The columns of a person and the key of the name.
const PERSON_ROW: ((people::id, people::face_id, people::created_at, people::public_id), people::face_key) =
    ((people::id, people::face_id, people::created_at, people::public_id), people::face_key);

/// Adds the numbers of their images to people, who are all or a page in the order of their rows.
fn with_counts(
    connection: &mut AnyConnection,
    rows: Vec<(names::PersonColumns, Option<String>)>,
    embedder: &'static str,
) -> Result<Vec<PersonRow>, StoreError> {
    let row_ids = || rows.iter().map(|(columns, _)| columns.0);
    let (Some(first), Some(last)) = (row_ids().min(), row_ids().max()) else { return Ok(Vec::new()) };
    // Not `ne_all`, for which PostgreSQL reads the whole table for each image.
    let in_conflict = images::id
        .eq_any(similar_images::table.select(similar_images::image_id))
        .or(images::id.eq_any(similar_images::table.select(similar_images::other_image_id)));
    let usable: HashMap<i64, i64> = embeddings::table
        .inner_join(images::table)
        .filter(embeddings::embedder.eq(embedder))
        .filter(images::person_id.between(first, last))
        .filter(diesel::dsl::not(in_conflict))
        .group_by(images::person_id)
        .select((images::person_id, count_star()))
        .load::<(i64, i64)>(connection)?
        .into_iter()
        .collect();
    let counts: HashMap<i64, i64> = images::table
        .filter(images::person_id.between(first, last))
        .group_by(images::person_id)
        .select((images::person_id, count_star()))
        .load::<(i64, i64)>(connection)?
        .into_iter()
        .collect();
    // Few people share a key: only those from before there was the rule of names.
    let shared: Vec<&str> = rows.iter().filter_map(|(_, key)| names::shared_key(key.as_deref()?)).collect();
    let mut holders: HashMap<String, PersonId> = HashMap::new();
    for keys in shared.chunks(500) {
        let found = people::table
            .filter(people::face_key.eq_any(keys.iter().copied()))
            .select(PERSON_ROW)
            .load::<(names::PersonColumns, Option<String>)>(connection)?;
        holders.extend(found.into_iter().filter_map(|((row, _, created_at, id), key)| {
            Some((key?, names::person_id(row, created_at, id.as_deref())))
        }));
    }
    let row = |(columns, key): (names::PersonColumns, Option<String>)| PersonRow {
        created_at: columns.2,
        images: counts.get(&columns.0).copied().unwrap_or(0),
        usable_images: usable.get(&columns.0).copied().unwrap_or(0),
        same_name_as: key
            .as_deref()
            .and_then(names::shared_key)
            .and_then(|shared| holders.get(shared).copied()),
        person: names::person_of(columns),
    };
    Ok(rows.into_iter().map(row).collect())
}

fn images_by_person(connection: &mut AnyConnection) -> Result<HashMap<i64, i64>, StoreError> {
    let counted = images::table.group_by(images::person_id).select((images::person_id, count_star()));
    Ok(counted.load::<(i64, i64)>(connection)?.into_iter().collect())
}

fn enrolled(connection: &mut AnyConnection) -> Result<Vec<EnrolledPerson>, StoreError> {
    let images = images_by_person(connection)?;
    let rows = people::table
        .order(people::face_id)
        .select((people::id, people::created_at, people::public_id))
        .load::<(i64, Micros, Option<String>)>(connection)?;
    let person = |(row, created_at, id): (i64, Micros, Option<String>)| EnrolledPerson {
        row,
        id: names::person_id(row, created_at, id.as_deref()),
        images: images.get(&row).copied().unwrap_or(0),
    };
    Ok(rows.into_iter().map(person).collect())
}

pub(super) fn insert_embedding(
    connection: &mut AnyConnection,
    image: &str,
    embedder: &str,
    vector: &[f32],
    created_at: Micros,
) -> Result<(), StoreError> {
    diesel::insert_into(embeddings::table)
        .values((
            embeddings::image_id.eq(image),
            embeddings::embedder.eq(embedder),
            embeddings::vector.eq(vector_to_bytes(vector)),
            embeddings::created_at.eq(created_at),
        ))
        .execute(connection)?;
    Ok(())
}

/// Erases an image's row and records that in the ledger.
fn erase_image(
    connection: &mut AnyConnection,
    image: &str,
    blob_key: String,
) -> Result<PendingErasure, StoreError> {
    // Foreign keys delete the embeddings.
    diesel::delete(images::table.find(image)).execute(connection)?;
    let erasures = vec![record_erasure(connection, &RowIdentity::Image { id: image.to_owned() })?];
    audit::forget_image(connection, image)?;
    Ok(PendingErasure {
        blobs: vec![blob_key].into_iter().filter(|key| has_picture(key)).collect(),
        erasures,
    })
}

/// Erases a person's row with everything that belongs to it and records that in the ledger, also under the ids of the groups
/// of unknown faces that became the person: an older backup may still have those.
fn erase_person(
    connection: &mut AnyConnection,
    person_id: i64,
    with_detections: bool,
) -> Result<Option<PendingErasure>, StoreError> {
    // A concurrent insertion of an image either has committed or will fail.
    lock_person(connection, person_id)?;
    // Locks tracks before the cohort, as requests that add crops do.
    tracks::erase_person(connection, person_id, with_detections)?;
    // A pass that is copying a face of the person either has committed or sees that the detection is gone.
    cohort::lock_cohort(connection)?;
    let row: Option<(Micros, Option<String>, Option<String>)> = people::table
        .find(person_id)
        .select((people::created_at, people::face_key, people::public_id))
        .first(connection)
        .optional()?;
    let Some((created_at, key, public_id)) = row else { return Ok(None) };
    if with_detections {
        diesel::delete(detections::table.filter(detections::person_id.eq(person_id))).execute(connection)?;
    }
    cohort::erase_of_person(connection, person_id)?;
    let images = images::table
        .filter(images::person_id.eq(person_id))
        .select((images::id, images::blob_key))
        .load::<(String, String)>(connection)?;
    let (image_ids, mut blobs): (Vec<String>, Vec<String>) = images.into_iter().unzip();
    blobs.retain(|key| has_picture(key));
    let unknowns: Vec<String> = named_unknowns::table
        .filter(named_unknowns::person_id.eq(person_id))
        .select(named_unknowns::public_id)
        .load(connection)?;
    // Foreign keys delete images and embeddings and clear the person of detections.
    diesel::delete(people::table.find(person_id)).execute(connection)?;
    names::promote_next_holder(connection, key.as_deref())?;
    let mut erasures = vec![record_erasure(connection, &RowIdentity::Person { id: person_id, created_at })?];
    for id in &unknowns {
        erasures.push(record_erasure(connection, &RowIdentity::Unknown { id: id.clone() })?);
    }
    let public_id = names::person_id(person_id, created_at, public_id.as_deref());
    audit::forget_person(connection, public_id, &image_ids, &unknowns)?;
    Ok(Some(PendingErasure { blobs, erasures }))
}

/// Keeps other transactions from adding rows that refer to a person until this one ends.
pub(super) fn lock_person(connection: &mut AnyConnection, person_id: i64) -> Result<(), StoreError> {
    let row = people::table.find(person_id).select(people::id);
    match connection {
        // SQLite has one writer.
        AnyConnection::Sqlite(_) => (),
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(postgres) => drop(row.for_update().load::<i64>(postgres)?),
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(mysql) => drop(row.for_update().load::<i64>(mysql)?),
    }
    Ok(())
}

pub(super) fn person(connection: &mut AnyConnection, sought: &PersonKey) -> Result<Person, StoreError> {
    names::find(connection, sought)?.ok_or(StoreError::PersonNotFound)
}

/// Checks that no person except `except` has a name. Also finds people who were added by a server of the previous version,
/// without a key.
fn ensure_name_is_free(
    connection: &mut AnyConnection,
    name: &Name,
    except: Option<i64>,
) -> Result<(), StoreError> {
    match names::find(connection, &PersonKey::Name(name.clone()))? {
        Some(person) if Some(person.row) != except => {
            Err(StoreError::PersonExists { person_id: Some(person.id) })
        }
        _ => Ok(()),
    }
}

/// Maps the violation of the unique index of names: another person got the name in the meantime.
fn name_taken(error: Error) -> StoreError {
    match error {
        Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _) => {
            StoreError::PersonExists { person_id: None }
        }
        error => error.into(),
    }
}

/// Checks that no image has the same bytes. An image of the same person takes precedence in the error.
fn ensure_image_is_new(
    connection: &mut AnyConnection,
    person_id: i64,
    sha256: &str,
) -> Result<(), StoreError> {
    let same = images::table
        .inner_join(people::table)
        .filter(images::sha256.eq(sha256))
        .order(images::id)
        .select((images::id, (people::id, people::face_id, people::created_at, people::public_id)))
        .load::<(String, names::PersonColumns)>(connection)?;
    let same: Vec<(String, Person)> =
        same.into_iter().map(|(image, columns)| (image, names::person_of(columns))).collect();
    let own = same.iter().position(|(_, person)| person.row == person_id);
    match same.into_iter().nth(own.unwrap_or(0)) {
        None => Ok(()),
        Some((image_id, person)) if own.is_some() => {
            Err(StoreError::DuplicateImage { image_id, person_id: person.id })
        }
        Some((image_id, person)) => Err(StoreError::ImageOfAnother { image_id, person_id: person.id }),
    }
}

fn add_image(connection: &mut AnyConnection, person_id: i64, image: &NewImage) -> Result<(), StoreError> {
    ensure_unlocked(connection)?;
    lock_person(connection, person_id)?;
    ensure_image_is_new(connection, person_id, &image.sha256)?;
    let created_at = now();
    let row = (
        images::id.eq(&image.id),
        images::person_id.eq(person_id),
        images::blob_key.eq(&image.blob_key),
        images::bytes.eq(image.bytes),
        images::created_at.eq(created_at),
        images::sha256.eq(&image.sha256),
        images::unique_sha256.eq(&image.sha256),
    );
    let row = (row, FaceValues::from(&image.face));
    match diesel::insert_into(images::table).values(row).execute(connection) {
        Ok(_) => insert_embedding(connection, &image.id, image.embedder, &image.embedding, created_at),
        Err(Error::DatabaseError(DatabaseErrorKind::ForeignKeyViolation, _)) => {
            Err(StoreError::PersonNotFound)
        }
        Err(error) => Err(error.into()),
    }
}

fn image_blob_key(
    connection: &mut AnyConnection,
    sought: &PersonKey,
    image: &str,
) -> Result<String, StoreError> {
    let person_id = person(connection, sought)?.row;
    images::table
        .find(image)
        .filter(images::person_id.eq(person_id))
        .select(images::blob_key)
        .first(connection)
        .optional()?
        .ok_or(StoreError::ImageNotFound)
}

/// Returns the Face IDs of people by row id, without those who are not enrolled.
pub(super) fn face_ids(
    connection: &mut AnyConnection,
    rows: &HashSet<i64>,
) -> Result<HashMap<i64, String>, StoreError> {
    let rows: Vec<i64> = rows.iter().copied().collect();
    let mut found = HashMap::with_capacity(rows.len());
    for rows in rows.chunks(MAX_VARIABLES) {
        let people = people::table.filter(people::id.eq_any(rows));
        found.extend(people.select((people::id, people::face_id)).load::<(i64, String)>(connection)?);
    }
    Ok(found)
}
