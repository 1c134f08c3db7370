//! `facepipe demo`: the main job end to end. Starts a backend with an empty database, enrols and trains people, renders a
//! crowd of them and of strangers, replays it through the real elements, and reports the stored detections: who was seen
//! where, when and how often, and the uplink needed.

mod page;
mod parts;
mod report;
pub mod suggestions;
mod thumbnail;
mod walkers;

use std::{
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Result, bail};
use clap::Args;
use facepipe_vision::Mtcnn;

use self::{
    parts::Parts,
    report::{Model, Report, Step},
    suggestions::Suggestion,
    thumbnail::Thumbnails,
    walkers::Strangers,
};
use crate::{
    exit::{self, Failure, Outcome},
    files, interrupt,
    models::manifest::{Kind, Manifest},
    output, progress,
    trial::{self, GroundTruth, Person, Policy, Replay, Trial, Workspace},
    video::source::Source,
};

/// Runs the main job end to end: enrol, train, replay a video, report who was seen.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe demo
  facepipe demo --keep                                  (keeps the backend running)
  facepipe demo --video entrance.mp4 --faces staff/     (staff/<name>/*.jpg)
  facepipe demo --policy every                          (each face of each frame)

Without --video, a crowd of the people of --faces and of strangers is rendered.
If a component is missing, the demo names it and runs the rest; the exit code is
then 3.

Writes report.html, report.json, the crowd video, the backend's log and its
database to --out. If there is a ground truth file <video>.json beside the video,
the report also says how many identities were right.

{}", exit::HELP))]
pub struct Options {
    /// Video file to replay in real time [default: a crowd rendered from --faces, with ground truth]
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// Which faces are uploaded: the best crops of each person, or every face of every frame
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,
    /// How faces are shown in report.html
    #[arg(long, value_enum, default_value_t)]
    thumbnails: Thumbnails,
    /// Keep the backend running after the report, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Port of the backend on this machine; 0: any free port
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    port: u16,
    /// Folder for the reports, the crowd, the log and the database
    #[arg(long, default_value = "target/demo", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    trial: trial::Options,
}

/// The steps of the demo with their durations.
#[derive(Default)]
struct Steps {
    done: Vec<Step>,
    started: Option<(&'static str, Instant)>,
}

impl Steps {
    /// Ends the current step and starts another; prints `what` unless a progress bar is shown.
    fn begin(&mut self, name: &'static str, what: &str) {
        self.end();
        if !io::stderr().is_terminal() {
            output::line(format!("Now       {what}"));
        }
        self.started = Some((name, Instant::now()));
    }

    fn end(&mut self) {
        if let Some((name, started)) = self.started.take() {
            self.done.push(Step::new(name, started.elapsed()));
        }
    }

    fn summary(&self) -> String {
        let parts: Vec<String> =
            self.done.iter().map(|step| format!("{} {:.1} s", step.name, step.seconds)).collect();
        let all: f64 = self.done.iter().map(|step| step.seconds).sum();
        format!("Times     {}; {all:.1} s in all", parts.join(", "))
    }
}

/// Runs the demo and writes its reports.
///
/// # Errors
/// Something is missing (the message says how to get it), or a step fails.
pub fn run(options: &Options) -> Result<Outcome> {
    if let Some(video) = &options.video {
        Source::File(video.clone()).check()?;
        GroundTruth::beside(video)?;
    }
    let mut gallery = options.trial.gallery()?;
    let workspace = Workspace::lock(&options.out)?;
    let reports = Reports::prepare(&options.out)?;
    let parts = Parts::find(&options.trial);
    let missing = parts.missing();
    missing.iter().for_each(output::line);
    let mut steps = Steps::default();
    if !parts.has_backend() {
        return without_backend(options, &parts, missing, &mut steps, &reports);
    }
    let Ok(detector) = &parts.detector else { bail!("the backend's face detector is missing") };
    if options.video.is_none() && gallery.is_empty() {
        return Err(Failure::Input(NO_GALLERY.into()).into());
    }

    let strangers = match &options.video {
        None => Some(Strangers::select(&mut gallery, &options.trial)),
        Some(_) => None,
    };
    let held_out = strangers.as_ref().map_or(0, |strangers| strangers.held_out);
    steps.begin("backend and enrolment", "starting the backend, enrolling, training");
    let say = |line: &str| output::line(line);
    let trial = Trial::with(&options.trial, gallery, workspace, options.port, &say)?;
    let Some(mut trial) = trial else { return Ok(Outcome::Interrupted) };
    if held_out > 0 {
        output::line(format!(
            "          {held_out} of the folder left out, so that somebody walks by who is not enrolled"
        ));
    }
    if parts.edge.is_err() {
        return without_edge(&trial, steps);
    }
    let video = match (&options.video, strangers) {
        (None, Some(strangers)) => {
            steps.begin("crowd", "rendering the crowd");
            match render(&trial.gallery, strangers, detector, &options.out)? {
                Some(video) => video,
                None => return Ok(Outcome::Interrupted),
            }
        }
        (video, _) => video.clone().unwrap_or_default(),
    };
    output::line(format!("Video     {}", video.display()));
    let truth = GroundTruth::beside(&video)?;
    steps.begin("replay", "replaying the video, in real time");
    let url = trial.server.url();
    let limit = options.trial.first_frame_limit();
    let Some(replay) = Replay::run(&video, Some(&url), limit, options.policy, true)? else {
        return Ok(Outcome::Interrupted);
    };
    steps.end();
    let last_seen = trial.server.last_seen(trial.enrolled().into_iter())?;
    let mut report = Report::new(&video, Some(&trial), options.policy, &replay, truth.as_ref());
    report.steps.clone_from(&steps.done);
    report.models = models(options, Some(&trial), &parts);
    report.print(&last_seen);
    output::line(steps.summary());
    reports.write(&report, &replay, options.thumbnails)?;
    if replay.failed > 0 {
        bail!(
            "{} crops could not be delivered; see {}",
            replay.failed,
            options.out.join("backend.log").display()
        );
    }
    if !options.keep {
        drop(trial);
        suggest(&suggestions::after_demo(
            &options.to_arguments(),
            &options.trial.as_arguments(),
            &video,
            &options.out,
        ));
        return Ok(Outcome::Done);
    }
    let person = report.identified.keys().next();
    let photographs = person.and_then(|person| trial.gallery.iter().find(|other| other.id == *person));
    let photographs =
        photographs.and_then(|person| person.photographs.first()).and_then(|file| file.parent());
    suggest(&suggestions::with_running_backend(&url, person.map(String::as_str), photographs));
    output::line(format!(
        "\nThe backend runs at {url} (its calls, to be tried in a browser: {url}/docs). Ctrl-C ends it."
    ));
    trial.server.wait_until_interrupted()?;
    drop(trial);
    output::line("The backend has ended.");
    Ok(Outcome::Done)
}

/// Error without a gallery: no face could be recognised.
const NO_GALLERY: &str = "there is nobody to enrol: no gallery was downloaded. Name a folder with one folder of photographs \
    per person with --faces (make demo FACES=folder), run `facepipe models fetch` for one that is free to use, or set \
    FACEPIPE_MIRROR. With --video, a video is replayed in which everybody is unknown";

/// Paths of the reports.
struct Reports {
    page: PathBuf,
    json: PathBuf,
}

impl Reports {
    /// Removes old reports and checks that new ones can be written, before the work is done.
    ///
    /// # Errors
    /// They cannot be written.
    fn prepare(out: &Path) -> Result<Self, Failure> {
        let reports = Self { page: out.join("report.html"), json: out.join("report.json") };
        for file in [&reports.page, &reports.json] {
            if file.is_dir() {
                return Err(Failure::output(file.display(), "is a folder"));
            }
            // An old report must not be mistaken for this run's.
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::output(file.display(), error));
                }
                _ => {}
            }
        }
        Ok(reports)
    }

    fn write(&self, report: &Report, replay: &Replay, thumbnails: Thumbnails) -> Result<()> {
        let page = page::render(report, &replay.crops, thumbnails);
        report.write(&self.json)?;
        files::replace(&self.page, page.as_bytes(), files::SHARED)?;
        output::line(format!("\nReport    {} (for a browser), {}", self.page.display(), self.json.display()));
        Ok(())
    }
}

/// Renders the crowd and prints who is in it.
fn render(gallery: &[Person], strangers: Strangers, detector: &Mtcnn, out: &Path) -> Result<Option<PathBuf>> {
    let video = out.join("crowd.mp4");
    let Some(rendered) = walkers::render(gallery, strangers, detector, &video)? else { return Ok(None) };
    let others = match rendered.strangers {
        0 => "nobody else, since no picture of anybody else could be had".to_owned(),
        strangers => format!("{strangers} who are not enrolled"),
    };
    output::line(format!(
        "Crowd     {} walk by: {} of the folder, and {others}",
        rendered.walkers, rendered.people
    ));
    Ok(Some(video))
}

/// Runs the edge alone: faces are detected, tracked and cropped, but not recognised.
fn without_backend(
    options: &Options,
    parts: &Parts,
    missing: Vec<String>,
    steps: &mut Steps,
    reports: &Reports,
) -> Result<Outcome> {
    let nothing = |what: &str| {
        let names: Vec<&str> = missing.iter().filter_map(|line| line.lines().next()).collect();
        let names: Vec<&str> = names.iter().map(|line| line.trim_start_matches("Missing").trim()).collect();
        Failure::Input(format!("nothing of the demo can run: {}{what}", names.join("; ")))
    };
    if parts.edge.is_err() {
        return Err(nothing("").into());
    }
    let video = match (&options.video, &parts.detector) {
        (Some(video), _) => video.clone(),
        (None, Ok(detector)) => {
            let mut gallery = options.trial.gallery()?;
            let strangers = Strangers::select(&mut gallery, &options.trial);
            if gallery.is_empty() {
                return Err(Failure::Input(NO_GALLERY.into()).into());
            }
            steps.begin("crowd", "rendering the crowd");
            let Some(video) = render(&gallery, strangers, detector, &options.out)? else {
                return Ok(Outcome::Interrupted);
            };
            video
        }
        (None, Err(_)) => trial::downloaded_crowd()
            .ok_or_else(|| nothing("; and there is no video for the edge alone (--video names one)"))?,
    };
    output::line(format!("Video     {}", video.display()));
    steps.begin("replay", "replaying the video through the edge alone, in real time");
    let limit = options.trial.first_frame_limit();
    let Some(replay) = Replay::run(&video, None, limit, options.policy, true)? else {
        return Ok(Outcome::Interrupted);
    };
    steps.end();
    let mut report = Report::new(&video, None, options.policy, &replay, None);
    report.missing = missing;
    report.steps.clone_from(&steps.done);
    report.models = models(options, None, parts);
    report.print(&std::collections::BTreeMap::new());
    output::line(steps.summary());
    reports.write(&report, &replay, options.thumbnails)?;
    output::line(
        "Ran       the edge alone: faces were found, followed and cut out of the video; nobody was recognised",
    );
    suggest(&suggestions::without_backend_suggestions(&options.to_arguments(), &video, &options.out));
    Ok(Outcome::Partial)
}

/// Runs the backend alone: recognises photographs that were not enrolled instead of a video.
fn without_edge(trial: &Trial, mut steps: Steps) -> Result<Outcome> {
    steps.begin("recognition", "asking the backend who is on photographs");
    let (mut right, mut asked, mut without_face) = (0, 0, 0);
    let enrolled = || trial.gallery.iter().filter(|person| person.is_enrolled());
    let bar = progress::bar(enrolled().count(), "Asking");
    for person in enrolled() {
        let candidate = walkers::photographs_to_show(person);
        for photograph in &candidate.photographs {
            if interrupt::requested() {
                bar.finish_and_clear();
                return Ok(Outcome::Interrupted);
            }
            match trial.server.identify(photograph)? {
                Some(who) => {
                    asked += 1;
                    right += usize::from(who.as_deref() == Some(person.id.as_str()));
                }
                None => without_face += 1,
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    steps.end();
    let without = match without_face {
        0 => String::new(),
        count => format!("; on {count} the backend found no face"),
    };
    output::line(format!("\nPhotos    {right} of {asked} were given the right name{without}"));
    output::line(steps.summary());
    output::line(
        "Ran       the backend alone: people were enrolled and recognised on photographs; no video was searched",
    );
    Ok(Outcome::Partial)
}

fn suggest(suggestions: &[Suggestion]) {
    output::line("\nTry next:");
    for Suggestion { command, description } in suggestions {
        output::line(format!("  # {description}\n  {command}"));
    }
}

/// Lists the networks and data used, with their licences.
fn models(options: &Options, trial: Option<&Trial>, parts: &Parts) -> Vec<Model> {
    let Ok(manifest) = Manifest::embedded() else { return Vec::new() };
    let licence = |name: &str| {
        let entry = manifest.entries.iter().find(|entry| entry.is_named(name));
        entry.map(|entry| entry.licence.clone())
    };
    let unknown = || "its owner's".to_owned();
    let mut models = Vec::new();
    if let Ok(file) = &parts.edge {
        let licence = licence(file).unwrap_or_else(unknown);
        models.push(Model { role: "Face detector at the edge", name: file.clone(), licence });
    }
    if let Some(trial) = trial {
        let mtcnn = manifest.entries.iter().find(|entry| entry.kind == Kind::Mtcnn);
        let licence_of_mtcnn = mtcnn.map_or_else(unknown, |entry| entry.licence.clone());
        models.push(Model {
            role: "Face detector of the backend",
            name: "MTCNN".into(),
            licence: licence_of_mtcnn,
        });
        let licence = licence(&trial.embedder).unwrap_or_else(unknown);
        models.push(Model { role: "Embedder", name: trial.embedder.clone(), licence });
    }
    if let Some(folder) = options.trial.faces_folder() {
        let name = folder.file_name().unwrap_or_default().display().to_string();
        let licence = if options.trial.faces_are_named() { None } else { licence(&name) };
        models.push(Model { role: "Gallery", name, licence: licence.unwrap_or_else(unknown) });
    }
    models
}

impl Options {
    /// Returns the options as command line arguments.
    fn to_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(video) = &self.video {
            arguments.extend(["--video".to_owned(), video.display().to_string()]);
        }
        if self.policy != Policy::default() {
            arguments.extend(["--policy".to_owned(), self.policy.nick().to_owned()]);
        }
        if self.thumbnails == Thumbnails::Clear {
            arguments.extend(["--thumbnails".to_owned(), "clear".to_owned()]);
        }
        if self.out != Path::new("target/demo") {
            arguments.extend(["--out".to_owned(), self.out.display().to_string()]);
        }
        arguments.extend(self.trial.as_arguments());
        arguments
    }
}
