//! `facepipe enroll folder` and `facepipe enroll tree`: enrols pictures from disk. A second run sends the missing
//! pictures.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{
    print_training, unknown_person,
    upload::{ImageResult, UploadOutcome, Uploader, quality_summary},
};
use crate::{
    client::{Client, ClientError, FaceChoice},
    connection::Connection,
    exit::{self, Failure, Outcome},
    interrupt, output,
    pictures::{self, FolderContents, PassedOver, PersonFolders},
    progress, runtime, train,
};

/// Enrols one person with all pictures of a folder.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe enroll folder photos/ada --id \"Ada Lovelace\" --create --train
  facepipe enroll folder photos/ada --id \"Ada Lovelace\" --dry-run

Includes subfolders, except hidden and system ones (@eaDir, .thumbnails,
__MACOSX). Pictures are JPEG, PNG, WebP, BMP, GIF and HEIC files, recognised by
content, not by name; all other files are listed, and the exit code is then 3.
Pictures that the server already has are not sent again, so an interrupted run
can be continued by running it again. Of several faces on a picture, the main one
is enrolled: the nearest to the centre, and clearly the largest. Pictures without
one are listed; `facepipe enroll picture` enrols them.

{}", exit::HELP))]
pub struct FolderOptions {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Face ID of the person: 1 to 64 letters, digits, `_`, `-`, `.` and spaces
    #[arg(long, value_name = "NAME")]
    id: String,
    /// Add the person if the server does not know them yet
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    common: Common,
}

/// Enrols one person with one picture.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe enroll picture ada.jpg --id \"Ada Lovelace\" --create --train
  facepipe enroll picture party.jpg --id ada --face 2
  facepipe enroll picture party.jpg --id ada --box 112,64,208,186

Without --face and --box the main face is enrolled: the nearest to the centre of
the picture, and clearly the largest. If there is none, the server's message has
all faces that it found, with their boxes. A picture that is there already is not
sent again: to enrol another face of it, delete the image first.

{}", exit::HELP))]
pub struct PictureOptions {
    /// The picture: JPEG, PNG, WebP, BMP, GIF or HEIC
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Face ID of the person: 1 to 64 letters, digits, `_`, `-`, `.` and spaces
    #[arg(long, value_name = "NAME")]
    id: String,
    /// Add the person if the server does not know them yet
    #[arg(long)]
    create: bool,
    /// Which face to enrol: its position in the server's message, from 0
    #[arg(long, value_name = "N", conflicts_with = "corners")]
    face: Option<u32>,
    /// Which face to enrol: its place, left, top, right and bottom in pixels of the upright picture
    #[arg(long = "box", value_name = "L,T,R,B", value_parser = corners)]
    corners: Option<[f32; 4]>,
    #[command(flatten)]
    common: Common,
}

/// Enrols several people: one folder of pictures per person, named after them.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe enroll tree staff/ --train               (staff/<name>/…/picture)
  facepipe enroll tree staff/ --dry-run
  facepipe enroll tree staff/ --json | jq .summary

People whom the server does not know yet are added. Pictures are JPEG, PNG, WebP,
BMP, GIF and HEIC files, recognised by content, not by name; all other files and
all people without a picture are listed, and the exit code is then 3. Hidden and
system folders (@eaDir, .thumbnails, __MACOSX) are skipped. Pictures that the
server already has are not sent again, so an interrupted run can be continued by
running it again. Of several faces on a picture, the main one is enrolled: the
nearest to the centre, and clearly the largest. Pictures without one are listed;
`facepipe enroll picture` enrols them.

{}", exit::HELP))]
pub struct TreeOptions {
    /// The folder with one subfolder per person
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Only people whom the server knows already; others are skipped
    #[arg(long)]
    existing_only: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
#[group(id = "enroll_common")]
struct Common {
    /// Train after all pictures are sent, and wait for the new model
    #[arg(long)]
    train: bool,
    /// Show what would be sent, without sending anything
    #[arg(long, conflicts_with = "train")]
    dry_run: bool,
    /// Number of concurrent uploads
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Print JSON: each picture with its result, and totals
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// A person with their pictures.
struct Person {
    id: String,
    is_named_by_folder: bool,
    pictures: Vec<PathBuf>,
}

#[derive(Serialize)]
struct PersonReport {
    face_id: String,
    /// Whether this run added the person.
    created: bool,
    /// Why no picture was sent, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    images: Vec<ImageResult>,
    /// Number of pictures that the server already had.
    #[serde(skip)]
    existing_images: usize,
}

impl PersonReport {
    /// Returns whether the server has no picture of them.
    fn is_without_picture(&self) -> bool {
        let has_one = |sent: &ImageResult| !sent.result.is_refusal();
        self.existing_images == 0 && !self.images.iter().any(has_one)
    }
}

#[derive(Serialize)]
struct Report {
    people: Vec<PersonReport>,
    summary: BTreeMap<UploadOutcome, usize>,
    /// Files that are no pictures, are unreadable, or are in nobody's folder.
    passed_over: Vec<PassedOver>,
    /// Number of hidden and system files and folders that were skipped.
    hidden: usize,
    /// People without a picture on the server, who cannot be recognised.
    without_picture: Vec<String>,
    /// Pictures not processed because the run was interrupted or failed.
    left: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_version: Option<u64>,
}

/// Runs `enroll folder`.
///
/// # Errors
/// The folder cannot be read, there is no such person, or the server cannot be reached or refuses the token.
pub fn folder(options: &FolderOptions) -> Result<Outcome> {
    let FolderContents { pictures, passed_over, hidden } =
        pictures::in_folder(&options.folder)?.report_skipped(&options.folder)?;
    let people = vec![Person { id: options.id.clone(), is_named_by_folder: false, pictures }];
    let missing_person = if options.create { MissingPersonPolicy::Create } else { MissingPersonPolicy::Fail };
    let input = Input { people, passed_over, hidden, face: FaceChoice::Main };
    runtime()?.block_on(enroll(&options.common, input, missing_person))
}

/// Runs `enroll picture`.
///
/// # Errors
/// The file cannot be read, there is no such person, or the server cannot be reached or refuses the token.
pub fn picture(options: &PictureOptions) -> Result<Outcome> {
    let file = &options.file;
    std::fs::metadata(file).map_err(|error| Failure::input(file.display(), error))?;
    let face = match (options.corners, options.face) {
        (Some(corners), _) => FaceChoice::Box(corners),
        (None, Some(number)) => FaceChoice::Number(number),
        (None, None) => FaceChoice::Main,
    };
    let person = Person { id: options.id.clone(), is_named_by_folder: false, pictures: vec![file.clone()] };
    let input = Input { people: vec![person], passed_over: Vec::new(), hidden: 0, face };
    let missing_person = if options.create { MissingPersonPolicy::Create } else { MissingPersonPolicy::Fail };
    runtime()?.block_on(enroll(&options.common, input, missing_person))
}

/// Parses `L,T,R,B`.
fn corners(text: &str) -> Result<[f32; 4], String> {
    let numbers: Vec<f32> = text
        .split(',')
        .filter_map(|number| number.trim().parse().ok())
        .filter(|n: &f32| n.is_finite())
        .collect();
    match <[f32; 4]>::try_from(numbers) {
        Ok([left, top, right, bottom]) if left < right && top < bottom && text.split(',').count() == 4 => {
            Ok([left, top, right, bottom])
        }
        _ => Err("it must be left,top,right,bottom in pixels, with left < right and top < bottom".into()),
    }
}

/// Runs `enroll tree`.
///
/// # Errors
/// The folder cannot be read, or the server cannot be reached or refuses the token.
pub fn tree(options: &TreeOptions) -> Result<Outcome> {
    let PersonFolders { pictures, passed_over, hidden } =
        pictures::in_person_folders(&options.folder)?.report_skipped(&options.folder)?;
    let person = |(id, pictures)| Person { id, is_named_by_folder: true, pictures };
    let people = pictures.into_iter().map(person).collect();
    let missing_person =
        if options.existing_only { MissingPersonPolicy::PassOver } else { MissingPersonPolicy::Create };
    let input = Input { people, passed_over, hidden, face: FaceChoice::Main };
    runtime()?.block_on(enroll(&options.common, input, missing_person))
}

/// The pictures to enrol.
struct Input {
    people: Vec<Person>,
    passed_over: Vec<PassedOver>,
    hidden: usize,
    face: FaceChoice,
}

/// How to treat people that the server does not know.
#[derive(Clone, Copy, PartialEq)]
enum MissingPersonPolicy {
    Create,
    PassOver,
    Fail,
}

async fn enroll(options: &Common, work: Input, missing_person: MissingPersonPolicy) -> Result<Outcome> {
    let Input { people, passed_over, hidden, face } = work;
    let client = options.connection.client()?;
    let total = people.iter().map(|person| person.pictures.len()).sum();
    let bar = progress::bar(total, if options.dry_run { "Comparing" } else { "Enrolling" });
    let upload = Uploader {
        client: &client,
        parallel: options.parallel.into(),
        face,
        dry_run: options.dry_run,
        bar: &bar,
    };
    let mut reports = Vec::new();
    let mut failure = None;
    for person in &people {
        if interrupt::requested() {
            break;
        }
        match enroll_person(&client, &upload, person, missing_person).await {
            Ok((report, None)) => reports.push(report),
            Ok((report, Some(error))) => {
                reports.push(report);
                failure = Some(error.into());
                break;
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    bar.finish_and_clear();

    let mut report = Report {
        people: reports,
        summary: BTreeMap::new(),
        passed_over,
        hidden,
        without_picture: Vec::new(),
        left: 0,
        model_version: None,
    };
    for sent in report.people.iter().flat_map(|person| &person.images) {
        *report.summary.entry(sent.result).or_default() += 1;
    }
    let someone_passed_over = report.people.iter().any(|person| person.message.is_some());
    let of_passed_over: usize = report
        .people
        .iter()
        .zip(&people)
        .filter(|(report, _)| report.message.is_some())
        .map(|(_, person)| person.pictures.len())
        .sum();
    report.left = total - of_passed_over - report.summary.values().sum::<usize>();

    let undisturbed = failure.is_none() && !interrupt::requested();
    if undisturbed {
        // People who were skipped with pictures are reported separately.
        let without = report.people.iter().zip(&people).filter(|(report, person)| {
            (report.message.is_none() || person.pictures.is_empty()) && report.is_without_picture()
        });
        report.without_picture = without.map(|(report, _)| report.face_id.clone()).collect();
    }
    if options.train && undisturbed {
        let trained = train::begin_and_wait(&client, false).await;
        match trained {
            Ok(Some(job)) => report.model_version = train::model_version(&job),
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
    }
    if options.json {
        output::json(&report)?;
    } else {
        print(&report, options.dry_run);
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    if interrupt::requested() {
        eprintln!("Interrupted; run it again to go on.");
        return Ok(Outcome::Interrupted);
    }
    let refused = report.summary.keys().any(|outcome| outcome.is_refusal());
    let incomplete = refused
        || report.summary.keys().any(|outcome| upload.may_be_another_face(*outcome))
        || someone_passed_over
        || !report.passed_over.is_empty()
        || !report.without_picture.is_empty();
    Ok(if incomplete { Outcome::Partial } else { Outcome::Done })
}

/// Sends one person's pictures. An inner error ended the upload early; the report lists the pictures sent before it.
async fn enroll_person(
    client: &Client,
    upload: &Uploader<'_>,
    person: &Person,
    missing_person: MissingPersonPolicy,
) -> Result<(PersonReport, Option<ClientError>)> {
    let mut report = PersonReport {
        face_id: person.id.clone(),
        created: false,
        message: None,
        images: Vec::new(),
        existing_images: 0,
    };
    let known: HashSet<String> = match client.person_images(&person.id).await {
        Ok(Some(images)) => {
            report.existing_images = images.images.len();
            images.images.into_iter().filter_map(|image| image.sha256).collect()
        }
        Ok(None) => match missing_person {
            MissingPersonPolicy::Fail => return Err(unknown_person(&person.id).into()),
            MissingPersonPolicy::PassOver => {
                report.message = Some("the server does not know them".into());
                upload.bar.suspend(|| eprintln!("{}: passed over, the server does not know them", person.id));
                upload.bar.inc(person.pictures.len().try_into()?);
                return Ok((report, None));
            }
            // People without a picture are not added.
            MissingPersonPolicy::Create if person.pictures.is_empty() => HashSet::new(),
            MissingPersonPolicy::Create => {
                report.created = !upload.dry_run && client.add_person(&person.id).await?;
                HashSet::new()
            }
        },
        // In a tree, an invalid folder name concerns that folder alone.
        Err(error) if error.code() == Some("invalid_face_id") && person.is_named_by_folder => {
            upload.bar.suspend(|| eprintln!("{}: passed over: {error}", person.id));
            upload.bar.inc(person.pictures.len().try_into()?);
            report.message = Some(error.to_string());
            return Ok((report, None));
        }
        Err(error) => return Err(error.into()),
    };
    if person.pictures.is_empty() {
        report.message = Some("no picture in their folder".into());
        upload.bar.suspend(|| eprintln!("{}: no picture in their folder", person.id));
        return Ok((report, None));
    }
    let (images, failure) = upload.send(&person.id, &person.pictures, &known).await;
    report.images = images;
    Ok((report, failure))
}

fn print(report: &Report, dry_run: bool) {
    let created = report.people.iter().filter(|person| person.created).count();
    if created > 0 {
        output::line(format!("People    {created} added"));
    }
    for (outcome, count) in &report.summary {
        output::line(format!("{count:>7}   {}", outcome.description()));
    }
    if let Some(summary) = quality_summary(report.people.iter().flat_map(|person| &person.images)) {
        output::line(summary);
    }
    if !report.passed_over.is_empty() {
        output::line(format!("{:>7}   passed over, no pictures", report.passed_over.len()));
    }
    if report.left > 0 {
        output::line(format!("{:>7}   not sent", report.left));
    }
    if !report.without_picture.is_empty() {
        let names = report.without_picture.join(", ");
        output::line(format!("Without   a usable picture, so that nobody will recognise them: {names}"));
    }
    print_training(report.model_version, !dry_run && report.summary.contains_key(&UploadOutcome::Added));
}
