//! Pictures of unknown faces, where they are kept: cut out of the images as they are stored, and deleted when they are too old.

use std::{io::Cursor, time::Duration};

use bytes::Bytes;
use facepipe_vision::{DecodeLimits, decode_image};
use image::{ImageFormat, RgbImage, imageops::crop_imm};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::{IdentifiedFace, MIN_UNKNOWN_SIZE, now},
    store::{Blobs, Database, StoreError, sql::NewPicture},
};

/// The margin around a box, as a share of its longer side: enough to find the face again.
const MARGIN: f32 = 0.4;
/// The interval between deletions of old pictures.
const INTERVAL: Duration = Duration::from_secs(600);
/// Pictures that are deleted in one transaction.
const BATCH: i64 = 500;

/// Limits the images that are decoded at the same time: each takes up to three bytes per pixel.
static DECODING: Semaphore = Semaphore::const_new(2);

/// Stores the pictures of an image's unknown faces. Returns one for each face; `None` for a known or small one, and if the picture
/// cannot be stored, which must not fail the detection.
pub async fn keep(
    blobs: &Blobs,
    image: Bytes,
    faces: &[IdentifiedFace],
    limits: DecodeLimits,
) -> Vec<Option<NewPicture>> {
    // Without an embedding, a detection has no picture.
    let may_keep = |face: &IdentifiedFace| !face.known && face.quality.size >= MIN_UNKNOWN_SIZE;
    let boxes: Vec<Option<[f32; 4]>> =
        faces.iter().map(|face| may_keep(face).then_some(face.bounding_box)).collect();
    if boxes.iter().all(Option::is_none) {
        return Vec::new();
    }
    let cut = move || {
        let image = decode_image(&image, &limits).ok();
        let cut = |corners: Option<[f32; 4]>| cut(image.as_ref()?, corners?);
        boxes.into_iter().map(cut).collect::<Vec<_>>()
    };
    let permit = DECODING.acquire().await;
    let pictures = tokio::task::spawn_blocking(move || {
        // The permit is held until the work ends, also if the caller is dropped meanwhile.
        let _permit = permit;
        cut()
    });
    let pictures = pictures.await.unwrap_or_default();
    let mut kept = Vec::with_capacity(pictures.len());
    for picture in pictures {
        kept.push(match picture {
            Some(bytes) => store(blobs, bytes).await,
            None => None,
        });
    }
    kept
}

async fn store(blobs: &Blobs, bytes: Vec<u8>) -> Option<NewPicture> {
    let blob_key = Blobs::unknown_picture_key(&Uuid::now_v7().to_string());
    let size = i64::try_from(bytes.len()).ok()?;
    match blobs.put(&blob_key, Bytes::from(bytes)).await {
        Ok(()) => Some(NewPicture { blob_key, bytes: size }),
        Err(error) => {
            tracing::warn!(%error, "cannot keep the picture of an unknown face");
            None
        }
    }
}

/// Cuts a box with a margin out of an image. Returns it as JPEG; `None` where the box is not in the image.
fn cut(image: &RgbImage, [left, top, right, bottom]: [f32; 4]) -> Option<Vec<u8>> {
    let margin = (right - left).max(bottom - top) * MARGIN;
    let pixel = |value: f32, max: u32| {
        // The cast saturates; NaN becomes 0.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pixels of the image")]
        let value = value as u32;
        value.min(max)
    };
    let (left, right) = (pixel(left - margin, image.width()), pixel((right + margin).ceil(), image.width()));
    let (top, bottom) =
        (pixel(top - margin, image.height()), pixel((bottom + margin).ceil(), image.height()));
    let (width, height) = (right.checked_sub(left)?, bottom.checked_sub(top)?);
    if width == 0 || height == 0 {
        return None;
    }
    let mut bytes = Cursor::new(Vec::new());
    crop_imm(image, left, top, width, height).to_image().write_to(&mut bytes, ImageFormat::Jpeg).ok()?;
    Some(bytes.into_inner())
}

/// Deletes pictures that are older than `max_age`, or all where none are kept any more, now and at every interval, until `stop`
/// is set.
pub async fn run_picture_retention(
    database: Database,
    blobs: Blobs,
    max_age: Option<Duration>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        match delete_old(&database, &blobs, max_age).await {
            Ok(0) => (),
            Ok(pictures) => tracing::info!(pictures, "deleted old pictures of unknown faces"),
            Err(error) => tracing::warn!(%error, "cannot delete old pictures of unknown faces"),
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => (),
            () = stop.cancelled() => (),
        }
    }
}

/// Deletes the rows before the blobs: a sweep removes blobs that are left.
async fn delete_old(
    database: &Database,
    blobs: &Blobs,
    max_age: Option<Duration>,
) -> Result<usize, StoreError> {
    let age = max_age.map_or(0, |age| i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
    let cutoff = now().saturating_sub(age);
    let mut deleted = 0;
    loop {
        let keys = database.delete_unknown_pictures_before(cutoff, BATCH).await?;
        if keys.is_empty() {
            return Ok(deleted);
        }
        deleted += keys.len();
        delete_blobs(blobs, &keys).await;
    }
}

/// Deletes the blobs of pictures whose rows are gone. A sweep removes those that it cannot delete.
pub async fn delete_blobs(blobs: &Blobs, keys: &[String]) {
    for key in keys {
        if let Err(error) = blobs.delete(key).await {
            tracing::warn!(%error, "cannot delete the picture of an unknown face yet");
        }
    }
}
