//! Sends pictures of one person, several at a time, and says of each what became of it.

use std::{collections::HashSet, path::Path};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::{
    client::{Client, ClientError, EnrolmentWarning},
    digest, interrupt, pictures,
};

/// What became of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadOutcome {
    /// Enrolled.
    Added,
    /// The server has it already, from an earlier run or from somebody else.
    AlreadyThere,
    /// The same bytes stand in another file of this run.
    Duplicate,
    /// It would be sent: a dry run.
    WouldAdd,
    /// The server finds no face on it.
    NoFace,
    /// The server finds more than one face on it.
    SeveralFaces,
    /// It is no picture that the server can read, or the file cannot be read.
    Unreadable,
    /// The server refuses it for another reason.
    Refused,
}

impl UploadOutcome {
    /// The words for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::AlreadyThere => "already there",
            Self::Duplicate => "duplicate",
            Self::WouldAdd => "would be added",
            Self::NoFace => "no face",
            Self::SeveralFaces => "several faces",
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
        }
    }

    /// Whether the picture is not enrolled and will not be by running again.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::NoFace | Self::SeveralFaces | Self::Unreadable | Self::Refused)
    }
}

/// A picture and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct ImageResult {
    /// The file.
    pub file: String,
    /// What became of it.
    pub result: UploadOutcome,
    /// The sentence for people, where there is more to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How pictures are sent.
pub struct Uploader<'a> {
    /// Whither.
    pub client: &'a Client,
    /// Requests at a time.
    pub parallel: usize,
    /// Sends nothing.
    pub dry_run: bool,
    /// Counts the pictures.
    pub bar: &'a ProgressBar,
}

impl Uploader<'_> {
    /// Sends what of `pictures` the server lacks for `person`; `known` are the digests of what it has. Stops early on
    /// Ctrl-C, with the requests that are under way finished.
    ///
    /// # Errors
    /// The server cannot be reached, lets nobody in, or cannot serve. The pictures that were sent until then are in
    /// the list.
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
                // Read in the order of the files, so that of two equal ones the first is the original.
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
                    if sent.result.is_refusal() || is_warned {
                        let why = sent.message.as_deref().unwrap_or_default();
                        self.bar.suspend(|| eprintln!("{}: {}: {why}", sent.file, sent.result.description()));
                    }
                    done.push(sent);
                }
                // Asked to end: what is not under way is not begun.
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

    /// None where the program is asked to end before the picture is sent.
    async fn upload_one(
        &self,
        person: &str,
        picture: &Path,
        read: Result<(Bytes, Option<UploadOutcome>), String>,
    ) -> Result<Option<ImageResult>, ClientError> {
        let sent = |result, message: Option<String>| {
            Ok(Some(ImageResult { file: picture.display().to_string(), result, message }))
        };
        let bytes = match read {
            Err(why) => return sent(UploadOutcome::Unreadable, Some(why)),
            Ok((_, Some(outcome))) => return sent(outcome, None),
            Ok((_, None)) if self.dry_run => return sent(UploadOutcome::WouldAdd, None),
            Ok((bytes, None)) => bytes,
        };
        if interrupt::requested() {
            return Ok(None);
        }
        match self.client.add_image(person, bytes).await {
            Ok(added) => sent(UploadOutcome::Added, added.warning.as_ref().map(warning_text)),
            Err(error) => match classify(&error) {
                Some(outcome) => sent(outcome, Some(error.to_string())),
                None => Err(error),
            },
        }
    }
}

/// What the server says of a picture that it took all the same, with whom it may show.
fn warning_text(warning: &EnrolmentWarning) -> String {
    let others: Vec<String> =
        warning.images.iter().map(|image| format!("{} ({})", image.face_id, image.image_id)).collect();
    format!("{}: {}", warning.message, others.join(", "))
}

/// What a refusal means for the picture; none where it is not the picture's fault.
pub fn classify(error: &ClientError) -> Option<UploadOutcome> {
    Some(match error.code()? {
        "no_face" => UploadOutcome::NoFace,
        "several_faces" => UploadOutcome::SeveralFaces,
        "duplicate_image" => UploadOutcome::AlreadyThere,
        "image_unreadable" | "image_empty" => UploadOutcome::Unreadable,
        // The person or the dataset is the matter: the next picture will fare the same.
        "person_not_found" | "invalid_face_id" | "dataset_locked" => return None,
        _ if error.is_request_error() => UploadOutcome::Refused,
        _ => return None,
    })
}
