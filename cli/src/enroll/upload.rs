//! Uploads pictures of one person concurrently and reports the outcome of each.

use std::{collections::HashSet, path::Path};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::{
    client::{AddedImage, Client, ClientError, EnrolmentWarning, FaceChoice, FaceQuality},
    digest, interrupt, output, pictures,
};

/// Outcome of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadOutcome {
    Added,
    /// The server already has it, for this person or another.
    AlreadyThere,
    /// Another file of this run has the same bytes.
    Duplicate,
    /// It would be sent (dry run).
    WouldAdd,
    /// The server found no face.
    NoFace,
    /// The server found several faces, but no clear main one.
    SeveralFaces,
    /// The quality of the face is below the server's minimum.
    LowQuality,
    /// The file or the picture cannot be read.
    Unreadable,
    /// The server refused it for another reason.
    Refused,
}

impl UploadOutcome {
    /// Returns a short description.
    pub fn description(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::AlreadyThere => "already there",
            Self::Duplicate => "duplicate",
            Self::WouldAdd => "would be added",
            Self::NoFace => "no face",
            Self::SeveralFaces => "several faces",
            Self::LowQuality => "too low a quality",
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
        }
    }

    /// Returns whether the picture is not enrolled and a repetition would not help.
    pub fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::NoFace | Self::SeveralFaces | Self::LowQuality | Self::Unreadable | Self::Refused
        )
    }
}

/// A picture and its outcome.
#[derive(Debug, Clone, Serialize)]
pub struct ImageResult {
    pub file: String,
    pub result: UploadOutcome,
    /// Details, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Quality of the enrolled face.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<FaceQuality>,
    /// Reasons to doubt that an enrolled picture shows its person.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<EnrolmentWarning>,
}

impl ImageResult {
    /// Describes a picture that was enrolled.
    pub fn added(file: String, added: &AddedImage) -> Self {
        let warnings: Vec<EnrolmentWarning> = added.warnings().into_iter().cloned().collect();
        let texts: Vec<String> = warnings.iter().map(warning_text).collect();
        let message = (!texts.is_empty()).then(|| texts.join("; "));
        Self { file, result: UploadOutcome::Added, message, quality: added.quality, warnings }
    }
}

/// Formats the qualities of enrolled pictures; none without any.
pub fn quality_summary<'a>(images: impl Iterator<Item = &'a ImageResult>) -> Option<String> {
    let mut scores: Vec<(u32, &str)> =
        images.filter_map(|image| Some((image.quality?.score, image.file.as_str()))).collect();
    scores.sort_unstable();
    let (lowest, file) = *scores.first()?;
    let (median, _) = *scores.get(scores.len() / 2)?;
    Some(format!("Quality   {median} of 100 (median), lowest {lowest}: {file}"))
}

/// Uploads pictures.
pub struct Uploader<'a> {
    /// Client of the server.
    pub client: &'a Client,
    /// Number of concurrent requests.
    pub parallel: usize,
    /// Which face of each picture is enrolled.
    pub face: FaceChoice,
    /// Whether to send nothing.
    pub dry_run: bool,
    /// Progress in pictures.
    pub bar: &'a ProgressBar,
}

impl Uploader<'_> {
    /// Uploads the `pictures` of `person` whose digests are not in `known`. On Ctrl-C, finishes the requests in flight and
    /// stops.
    ///
    /// # Errors
    /// The server cannot be reached, refuses the token, or cannot serve. The list has the pictures sent until then.
    pub async fn send(
        &self,
        person: &str,
        pictures: &[impl AsRef<Path>],
        known: &HashSet<String>,
    ) -> (Vec<ImageResult>, Option<ClientError>) {
        let mut read_digests = HashSet::new();
        let mut done = Vec::new();
        let mut failure = None;
        let mut running = stream::iter(pictures)
            .map(|picture| {
                let picture = picture.as_ref();
                // Read in order, so that the second of two equal files is the duplicate.
                let read = pictures::read(picture).map(|bytes| {
                    let digest = digest::sha256(&bytes);
                    let known = if known.contains(&digest) {
                        Some(UploadOutcome::AlreadyThere)
                    } else if read_digests.insert(digest) {
                        None
                    } else {
                        Some(UploadOutcome::Duplicate)
                    };
                    (Bytes::from(bytes), known)
                });
                self.upload_one(person, picture, read)
            })
            .buffered(self.parallel.max(1));
        loop {
            let next = running.next().await;
            match next {
                None => break,
                Some(Ok(Some(sent))) => {
                    let is_warned = sent.result == UploadOutcome::Added && sent.message.is_some();
                    if sent.result.is_refusal() || is_warned || self.may_be_another_face(sent.result) {
                        let why = sent.message.as_deref().unwrap_or_default();
                        self.bar.suspend(|| eprintln!("{}: {}: {why}", sent.file, sent.result.description()));
                    }
                    done.push(sent);
                }
                // Interrupted before it was sent.
                Some(Ok(None)) => {}
                Some(Err(error)) => {
                    failure = Some(error);
                    break;
                }
            }
            self.bar.inc(1);
        }
        (done, failure)
    }

    /// Returns whether a face was chosen that may not be enrolled, because its picture was there.
    pub fn may_be_another_face(&self, outcome: UploadOutcome) -> bool {
        outcome == UploadOutcome::AlreadyThere && self.face != FaceChoice::Main
    }

    /// Uploads a picture. Returns none if interrupted before.
    async fn upload_one(
        &self,
        person: &str,
        picture: &Path,
        read: Result<(Bytes, Option<UploadOutcome>), String>,
    ) -> Result<Option<ImageResult>, ClientError> {
        let sent = |result, message: Option<String>| {
            let file = picture.display().to_string();
            Ok(Some(ImageResult { file, result, message, quality: None, warnings: Vec::new() }))
        };
        let advice = |outcome| {
            self.may_be_another_face(outcome).then(|| {
                format!(
                    "the picture is enrolled already, perhaps with another face; to choose again: facepipe people show \
                     -- {}, facepipe images delete ID, and the same command",
                    output::quoted(person)
                )
            })
        };
        let bytes = match read {
            Err(why) => return sent(UploadOutcome::Unreadable, Some(why)),
            Ok((_, Some(outcome))) => return sent(outcome, advice(outcome)),
            Ok((_, None)) if self.dry_run => return sent(UploadOutcome::WouldAdd, None),
            Ok((bytes, None)) => bytes,
        };
        if interrupt::requested() {
            return Ok(None);
        }
        match self.client.add_image(person, bytes, self.face).await {
            Ok(added) => Ok(Some(ImageResult::added(picture.display().to_string(), &added))),
            Err(error) => match classify(&error) {
                Some(outcome) => sent(outcome, advice(outcome).or_else(|| Some(error.to_string()))),
                None => Err(error),
            },
        }
    }
}

/// Formats a warning about an enrolled picture.
pub fn warning_text(warning: &EnrolmentWarning) -> String {
    let images = warning.images.iter().map(|image| format!("{} ({})", image.face_id, image.image_id));
    let person = warning.person.iter().map(|person| person.face_id.clone());
    let others: Vec<String> = images.chain(person).collect();
    let similarity = warning.similarity.map(|similarity| format!(" (similarity {similarity:.2})"));
    let similarity = similarity.unwrap_or_default();
    if others.is_empty() {
        format!("{}{similarity}", warning.message)
    } else {
        format!("{}: {}{similarity}", warning.message, others.join(", "))
    }
}

/// Returns the outcome of a refused picture; none if the error does not concern the picture.
pub fn classify(error: &ClientError) -> Option<UploadOutcome> {
    Some(match error.code()? {
        "no_face" => UploadOutcome::NoFace,
        "several_faces" => UploadOutcome::SeveralFaces,
        "quality_too_low" => UploadOutcome::LowQuality,
        "duplicate_image" => UploadOutcome::AlreadyThere,
        "image_unreadable" | "image_empty" => UploadOutcome::Unreadable,
        // These concern the person or the dataset: the next picture would fare the same.
        "person_not_found" | "invalid_face_id" | "dataset_locked" => return None,
        _ if error.is_request_error() => UploadOutcome::Refused,
        _ => return None,
    })
}
