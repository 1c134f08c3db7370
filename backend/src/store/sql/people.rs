//! People, their enrolled images and embeddings.

use std::{collections::HashMap, time::Duration};

use diesel::{
    dsl::{count, count_star},
    prelude::*,
    result::{DatabaseErrorKind, Error},
};

use super::{
    AnyConnection, Database,
    erasures::{Erasure, Identity, note},
    leases::{Lease, ensure_unlocked, renew},
    schema::{detections, embeddings, images, people},
};
use crate::{
    face_id::FaceId,
    store::{Micros, StoreError, now, vector_from_bytes, vector_to_bytes},
};

/// One person.
pub struct PersonRow {
    /// The Face ID.
    pub face_id: String,
    /// When the person was added.
    pub created_at: Micros,
    /// Enrolled images.
    pub images: i64,
}

/// An enrolled image.
#[derive(Queryable)]
pub struct ImageRow {
    /// The image's id, UUID.
    pub id: String,
    /// Size in bytes.
    pub bytes: i64,
    /// SHA-256 of its bytes, hexadecimal; `None` for an image from before digests were kept.
    pub sha256: Option<String>,
    /// When it was enrolled.
    pub created_at: Micros,
}

/// An image to be enrolled, whose bytes are in the blob store already.
pub struct NewImage {
    /// The image's id, UUID.
    pub id: String,
    /// Where its bytes are.
    pub blob_key: String,
    /// Size in bytes.
    pub bytes: i64,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// Which network made the embedding.
    pub embedder: &'static str,
    /// The embedding of the image's one face.
    pub embedding: Vec<f32>,
}

/// An image as rows tell of it, to be read from the blob store.
#[derive(Debug, Clone, Queryable)]
pub struct EnrolledImage {
    /// The image's id.
    pub id: String,
    /// Whom it shows.
    pub person: i64,
    /// Where its bytes are.
    pub blob_key: String,
}

/// What was erased from the database, and is to be erased elsewhere.
pub struct Erased {
    /// The keys of the blobs that must go too.
    pub blobs: Vec<String>,
    /// What the ledger in the blob store is to have as well.
    pub erasure: Erasure,
}

/// One embedding and whom it shows.
pub struct TrainingImage {
    /// The image's id.
    pub id: String,
    /// The person.
    pub person: i64,
    /// The embedding.
    pub embedding: Vec<f32>,
}

/// Everything that a training reads.
pub struct TrainingSet {
    /// The embeddings by the one embedder.
    pub images: Vec<TrainingImage>,
    /// People in the dataset.
    pub people: i64,
}

impl Database {
    /// Adds a person without images.
    ///
    /// # Errors
    /// [`StoreError::PersonExists`].
    pub async fn add_person(&self, id: &FaceId) -> Result<(), StoreError> {
        let face_id = id.to_string();
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let row = (people::face_id.eq(&face_id), people::created_at.eq(now()));
            match diesel::insert_into(people::table).values(row).execute(connection) {
                Ok(_) => Ok(()),
                Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {
                    Err(StoreError::PersonExists)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// The row id of a person.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`].
    pub async fn person(&self, id: &FaceId) -> Result<i64, StoreError> {
        let face_id = id.to_string();
        self.read(move |connection| person(connection, &face_id)).await
    }

    /// All people by Face ID, with the number of their images.
    ///
    /// # Errors
    /// The database fails.
    pub async fn people(&self) -> Result<Vec<PersonRow>, StoreError> {
        self.read(|connection| {
            let counts: HashMap<i64, i64> = images::table
                .group_by(images::person_id)
                .select((images::person_id, count_star()))
                .load::<(i64, i64)>(connection)?
                .into_iter()
                .collect();
            let rows = people::table
                .select((people::id, people::face_id, people::created_at))
                .order(people::face_id)
                .load::<(i64, String, Micros)>(connection)?;
            let with_count = |(id, face_id, created_at)| PersonRow {
                face_id,
                created_at,
                images: counts.get(&id).copied().unwrap_or(0),
            };
            Ok(rows.into_iter().map(with_count).collect())
        })
        .await
    }

    /// The Face IDs of all people by row id: what turns a model's answer into names. Read for every answer, so that
    /// a person who was erased a moment ago is named no more.
    ///
    /// # Errors
    /// The database fails.
    pub async fn face_ids(&self) -> Result<HashMap<i64, String>, StoreError> {
        self.read(face_ids).await
    }

    /// The id of a person's image with these bytes.
    ///
    /// # Errors
    /// The database fails.
    pub async fn image_with_digest(
        &self,
        person_id: i64,
        sha256: &str,
    ) -> Result<Option<String>, StoreError> {
        let sha256 = sha256.to_owned();
        self.read(move |connection| image_with_digest(connection, person_id, &sha256)).await
    }

    /// Adds an image and its embedding to a person.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`] where the person was erased meanwhile, [`StoreError::DuplicateImage`].
    pub async fn add_image(&self, person_id: i64, image: NewImage) -> Result<(), StoreError> {
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            // One that adds the same bytes either is there already, or will find these.
            lock_person(connection, person_id)?;
            if let Some(image_id) = image_with_digest(connection, person_id, &image.sha256)? {
                return Err(StoreError::DuplicateImage { image_id });
            }
            let created_at = now();
            let row = (
                images::id.eq(&image.id),
                images::person_id.eq(person_id),
                images::blob_key.eq(&image.blob_key),
                images::bytes.eq(image.bytes),
                images::created_at.eq(created_at),
                images::sha256.eq(&image.sha256),
            );
            match diesel::insert_into(images::table).values(row).execute(connection) {
                Ok(_) => {
                    insert_embedding(connection, &image.id, image.embedder, &image.embedding, created_at)
                }
                Err(Error::DatabaseError(DatabaseErrorKind::ForeignKeyViolation, _)) => {
                    Err(StoreError::PersonNotFound)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// The images of a person, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`].
    pub async fn images(&self, id: &FaceId) -> Result<Vec<ImageRow>, StoreError> {
        let face_id = id.to_string();
        self.read(move |connection| {
            let person_id = person(connection, &face_id)?;
            Ok(images::table
                .filter(images::person_id.eq(person_id))
                .order((images::created_at, images::id))
                .select((images::id, images::bytes, images::sha256, images::created_at))
                .load::<ImageRow>(connection)?)
        })
        .await
    }

    /// Where the bytes of a person's image are.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`], [`StoreError::ImageNotFound`].
    pub async fn image_blob_key(&self, id: &FaceId, image: &str) -> Result<String, StoreError> {
        let (face_id, image) = (id.to_string(), image.to_owned());
        self.read(move |connection| image_blob_key(connection, &face_id, &image)).await
    }

    /// Erases an image of a person and its embeddings.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`], [`StoreError::ImageNotFound`].
    pub async fn erase_image(&self, id: &FaceId, image: &str) -> Result<Erased, StoreError> {
        let (face_id, image) = (id.to_string(), image.to_owned());
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let blob_key = image_blob_key(connection, &face_id, &image)?;
            erase_image(connection, &image, blob_key)
        })
        .await
    }

    /// Erases an image whosever it is, as [`erase_image`](Self::erase_image) does. `None` where it is not there.
    ///
    /// # Errors
    /// [`StoreError::DatasetLocked`].
    pub async fn erase_image_row(&self, image: &str) -> Result<Option<Erased>, StoreError> {
        let image = image.to_owned();
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let blob_key: Option<String> =
                images::table.find(&image).select(images::blob_key).first(connection).optional()?;
            blob_key.map(|blob_key| erase_image(connection, &image, blob_key)).transpose()
        })
        .await
    }

    /// Gives a person another Face ID. Everything else refers to the person's row, so it follows.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`]; [`StoreError::PersonExists`] where somebody else has the new Face ID.
    pub async fn rename_person(&self, from: &FaceId, to: &FaceId) -> Result<(), StoreError> {
        let (from, to) = (from.to_string(), to.to_string());
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let person_id = person(connection, &from)?;
            let row = people::table.find(person_id);
            match diesel::update(row).set(people::face_id.eq(&to)).execute(connection) {
                Ok(_) => Ok(()),
                Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {
                    Err(StoreError::PersonExists)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Erases a person with images and embeddings, and with `with_detections` also where the person was seen;
    /// otherwise the detections stay without a name.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`].
    pub async fn erase_person(&self, id: &FaceId, with_detections: bool) -> Result<Erased, StoreError> {
        let face_id = id.to_string();
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            let person_id = person(connection, &face_id)?;
            erase_person(connection, person_id, with_detections)?.ok_or(StoreError::PersonNotFound)
        })
        .await
    }

    /// Erases a person as [`erase_person`](Self::erase_person) does. `None` where nobody has the row.
    ///
    /// # Errors
    /// [`StoreError::DatasetLocked`].
    pub async fn erase_person_row(
        &self,
        person_id: i64,
        with_detections: bool,
    ) -> Result<Option<Erased>, StoreError> {
        self.write(move |connection| {
            ensure_unlocked(connection)?;
            erase_person(connection, person_id, with_detections)
        })
        .await
    }

    /// What tells the people from each other that the database holds, by their rows.
    ///
    /// # Errors
    /// The database fails.
    pub async fn identities(&self) -> Result<Vec<(i64, Identity)>, StoreError> {
        self.read(|connection| {
            let rows = people::table.select((people::id, people::created_at)).load(connection)?;
            Ok(rows.into_iter().map(|(id, created_at)| (id, Identity::Person { id, created_at })).collect())
        })
        .await
    }

    /// The ids of all images.
    ///
    /// # Errors
    /// The database fails.
    pub async fn image_ids(&self) -> Result<Vec<String>, StoreError> {
        self.read(|connection| Ok(images::table.select(images::id).load(connection)?)).await
    }

    /// The keys of all blobs that images refer to.
    ///
    /// # Errors
    /// The database fails.
    pub async fn image_blob_keys(&self) -> Result<Vec<String>, StoreError> {
        self.read(|connection| Ok(images::table.select(images::blob_key).load(connection)?)).await
    }

    /// All embeddings by one embedder, as of one moment.
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
            let people = people::table.select(count(people::id)).first(connection)?;
            Ok(TrainingSet { images, people })
        })
        .await
    }

    /// All images, as of one moment, and the number of people in the dataset.
    ///
    /// # Errors
    /// The database fails.
    pub async fn enrolled_images(&self) -> Result<(Vec<EnrolledImage>, i64), StoreError> {
        self.read(|connection| {
            let images = images::table
                .order((images::person_id, images::created_at, images::id))
                .select((images::id, images::person_id, images::blob_key))
                .load::<EnrolledImage>(connection)?;
            Ok((images, people::table.select(count(people::id)).first(connection)?))
        })
        .await
    }

    /// Puts embeddings in the place of those that `embedder` made of the same images before, where `holder` still has
    /// the dataset's lease; `None` leaves an image without one.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn replace_embeddings(
        &self,
        embedder: &'static str,
        new: Vec<(String, Option<Vec<f32>>)>,
        holder: &str,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let holder = holder.to_owned();
        self.write(move |connection| {
            if !renew(connection, Lease::Dataset, &holder, ttl)? {
                return Err(StoreError::LeaseLost);
            }
            let created_at = now();
            for (image, vector) in &new {
                diesel::delete(embeddings::table.find((image, embedder))).execute(connection)?;
                if let Some(vector) = vector {
                    insert_embedding(connection, image, embedder, vector, created_at)?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn insert_embedding(
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

/// Erases an image's row and writes that into the ledger.
fn erase_image(connection: &mut AnyConnection, image: &str, blob_key: String) -> Result<Erased, StoreError> {
    // Foreign keys take the embeddings along.
    diesel::delete(images::table.find(image)).execute(connection)?;
    let erasure = note(connection, &Identity::Image { id: image.to_owned() })?;
    Ok(Erased { blobs: vec![blob_key], erasure })
}

/// Erases a person's row with all that belongs to it and writes that into the ledger.
fn erase_person(
    connection: &mut AnyConnection,
    person_id: i64,
    with_detections: bool,
) -> Result<Option<Erased>, StoreError> {
    // An image that is being added either is there already, or will find the person gone.
    lock_person(connection, person_id)?;
    let created_at: Option<Micros> =
        people::table.find(person_id).select(people::created_at).first(connection).optional()?;
    let Some(created_at) = created_at else { return Ok(None) };
    if with_detections {
        diesel::delete(detections::table.filter(detections::person_id.eq(person_id))).execute(connection)?;
    }
    let blobs = images::table
        .filter(images::person_id.eq(person_id))
        .select(images::blob_key)
        .load::<String>(connection)?;
    // Foreign keys take images, embeddings and the names of detections along.
    diesel::delete(people::table.find(person_id)).execute(connection)?;
    let erasure = note(connection, &Identity::Person { id: person_id, created_at })?;
    Ok(Some(Erased { blobs, erasure }))
}

/// Until the transaction ends, no row that refers to this person is added by another one.
fn lock_person(connection: &mut AnyConnection, person_id: i64) -> Result<(), StoreError> {
    let row = people::table.find(person_id).select(people::id);
    match connection {
        // Has one writer.
        AnyConnection::Sqlite(_) => (),
        AnyConnection::Postgres(postgres) => drop(row.for_update().load::<i64>(postgres)?),
        AnyConnection::Mysql(mysql) => drop(row.for_update().load::<i64>(mysql)?),
    }
    Ok(())
}

pub(super) fn person(connection: &mut AnyConnection, face_id: &str) -> Result<i64, StoreError> {
    people::table
        .filter(people::face_id.eq(face_id))
        .select(people::id)
        .first(connection)
        .optional()?
        .ok_or(StoreError::PersonNotFound)
}

fn image_with_digest(
    connection: &mut AnyConnection,
    person_id: i64,
    sha256: &str,
) -> Result<Option<String>, StoreError> {
    Ok(images::table
        .filter(images::person_id.eq(person_id))
        .filter(images::sha256.eq(sha256))
        .select(images::id)
        .first(connection)
        .optional()?)
}

fn image_blob_key(connection: &mut AnyConnection, face_id: &str, image: &str) -> Result<String, StoreError> {
    let person_id = person(connection, face_id)?;
    images::table
        .find(image)
        .filter(images::person_id.eq(person_id))
        .select(images::blob_key)
        .first(connection)
        .optional()?
        .ok_or(StoreError::ImageNotFound)
}

pub(super) fn face_ids(connection: &mut AnyConnection) -> Result<HashMap<i64, String>, StoreError> {
    Ok(people::table.select((people::id, people::face_id)).load(connection)?.into_iter().collect())
}
