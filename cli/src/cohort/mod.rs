//! `facepipe cohort`: embeddings of strangers, against which a gallery is calibrated.

mod add;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    calibration::percent,
    client::Cohort,
    connection::Target,
    exit::{self, Outcome},
    manage::confirmed,
    output, runtime,
};

/// Manages the cohort: strangers against whom the server calibrates its decisions.
///
/// The server stores an embedding of each face, and neither pictures nor names.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe cohort add lfw/            (pictures of people who are not enrolled)
  facepipe cohort                     (or: facepipe cohort show)
  facepipe cohort clear --source camera --yes

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    Add(add::Options),
    /// Show how many embeddings the cohort has, from where, and what fills it
    Show,
    /// Erase the cohort, or a part of it, irrevocably
    Clear {
        /// Only embeddings from this source
        #[arg(long, value_name = "SOURCE")]
        source: Option<Source>,
        /// Only embeddings by this embedder
        #[arg(long, value_name = "NAME")]
        embedder: Option<String>,
        /// Only embeddings that were uploaded or captured before this time (RFC 3339)
        #[arg(long, value_name = "TIME")]
        before: Option<String>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

/// Where embeddings come from.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Source {
    /// Pictures, by `facepipe cohort add`
    Uploaded,
    /// Unknown faces of the cameras
    Camera,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::Camera => "camera",
        }
    }
}

/// Runs the program.
///
/// # Errors
/// The pictures cannot be read, or the server cannot be reached or refuses the token.
pub fn run(options: &Options) -> Result<Outcome> {
    let Options { action, target } = options;
    match action {
        Some(Action::Add(options)) => add::run(options, target),
        None | Some(Action::Show) => runtime()?.block_on(async {
            let cohort = target.client()?.cohort().await?;
            if target.json {
                output::json(&cohort)?
            } else {
                print(cohort)
            }
            Ok(Outcome::Done)
        }),
        Some(Action::Clear { source, embedder, before, yes }) => {
            let query: Vec<(&str, String)> = [
                ("source", source.map(|source| source.name().to_owned())),
                ("embedder", embedder.clone()),
                ("before", before.clone()),
            ]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
            runtime()?.block_on(clear(target, &query, *yes))
        }
    }
}

async fn clear(target: &Target, query: &[(&str, String)], yes: bool) -> Result<Outcome> {
    let client = target.client()?;
    let which = if query.is_empty() { "The whole cohort" } else { "This part of the cohort" };
    if !confirmed(&format!("{which} will be erased for good."), yes)? {
        output::line("Nothing was erased.");
        return Ok(Outcome::Done);
    }
    let erased = client.erase_cohort(query).await?;
    if target.json {
        output::json(&erased)?;
    } else {
        output::line(format!("Erased {} embeddings, {} are left", erased.erased, erased.left));
    }
    Ok(Outcome::Done)
}

fn print(cohort: Cohort) {
    let Cohort {
        embedder,
        total,
        measurable_fpir,
        target_fpir,
        large_enough,
        groups,
        from_cameras,
        max_from_cameras,
        camera_max_age_days,
    } = cohort;
    if groups.is_empty() {
        output::line(
            "The cohort is empty: facepipe cohort add DIR, with pictures of people who are not enrolled",
        );
    } else {
        output::line(format!("{total} embeddings of strangers by the server's embedder, {embedder}"));
        let rows = groups.into_iter().map(|group| {
            let use_ = if group.used { "" } else { "not used: another embedder's" };
            [
                group.embedder,
                group.source,
                group.embeddings.to_string(),
                group.oldest_at,
                group.newest_at,
                use_.into(),
            ]
        });
        if let Some(rate) = measurable_fpir {
            output::line(format!(
                "Enough to calibrate for a share of {} of strangers who get a name, or more",
                percent(rate)
            ));
        }
        output::line(format!(
            "{} for the server's target of {} (FACEPIPE_TARGET_FPIR)",
            if large_enough { "Large enough" } else { "Too small" },
            percent(target_fpir)
        ));
        output::table(["Embedder", "Source", "Embeddings", "Oldest", "Newest", ""], rows);
    }
    let kept = camera_max_age_days.map_or_else(String::new, |days| format!(", for {days} days"));
    output::line(if from_cameras {
        format!("Unknown faces of the cameras are added, at most {max_from_cameras}{kept}")
    } else {
        "Unknown faces of the cameras are not added (the server's FACEPIPE_COHORT_FROM_CAMERAS)".to_owned()
    });
}
