//! `facepipe eval`: measures recognition accuracy on a test set with the backend's networks on this machine.

mod analysis;
mod layout;
mod measure;
#[cfg(feature = "plots")]
mod plot;

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Result;
use clap::Args;
use facepipe_identify::evaluate::RocPoint;
use facepipe_vision::{EmbedderKind, installed_embedder};

use self::{layout::Layout, measure::Figures};
#[cfg(not(feature = "plots"))]
use crate::missing_feature::plot;
use crate::{
    exit::{self, Failure, Outcome},
    networks::Weights,
    output,
};

/// Measures identification and verification accuracy on your own pictures.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe eval test-set/            (test-set/gallery/<name>/*.jpg, test-set/probe/<name>/*.jpg)
  facepipe eval staff/ --shots 3 --strangers 5           (staff/<name>/*.jpg)
  facepipe eval staff/ --shots 3 --json --plot roc.svg

Runs entirely on this machine; no server is needed. People of the probes who are
not in the gallery are strangers: naming one is an error. As on the server, a
picture is enrolled only if it has a main face: one that is nearest to the centre,
and clearly the largest; of a probe without one the largest counts. Only pictures
with a main face are compared in pairs.

{}", exit::HELP))]
#[group(id = "eval")]
pub struct Options {
    /// Folder with the subfolders `gallery` and `probe`, each with a folder of pictures per person; or with a folder per
    /// person
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// With a folder per person: gallery pictures per person, the first by name that have a main face; all others
    /// are probes [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shots: Option<u16>,
    /// With a folder per person: number of people left out of the gallery [default: 0]
    #[arg(long, value_name = "K")]
    strangers: Option<u16>,
    /// Random seed: selects who is left out, and which pairs are compared if there are more than two million of a kind
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Embedder: inception-resnet-v1, mobilefacenet or dlib-resnet [default: the first whose weights are installed]
    #[arg(long, env = "FACEPIPE_EMBEDDER", value_name = "NAME", value_parser = EmbedderKind::from_str)]
    embedder: Option<EmbedderKind>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Plot the receiver operating characteristic of the verification to this file
    #[arg(long, value_name = "FILE.svg", value_parser = crate::missing_feature::plot_file)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    weights: Weights,
}

/// Runs the program.
///
/// # Errors
/// The folder has the wrong layout, nobody can be enrolled, the weights are missing, or the plot cannot be written.
pub fn run(options: &Options) -> Result<Outcome> {
    let layout = Layout::read(&options.folder, options.shots, options.strangers, options.seed)?;
    let models = &options.weights.folder.models;
    let kind = options.embedder.or_else(|| installed_embedder(models)).unwrap_or(EmbedderKind::MobileFaceNet);
    let embedder = options.weights.embedder(kind)?;
    let detector = options.weights.detector()?;
    let Some((seen, time)) = analysis::analyze(layout.pictures(), &detector, &*embedder)? else {
        return Ok(Outcome::Interrupted);
    };
    let (figures, roc) = Figures::compute(layout.assign(seen), time, &*embedder, options.seed)?;
    if options.json {
        output::json(&figures)?;
    } else {
        figures.print();
    }
    if let Some(path) = &options.plot {
        write_plot(path, &figures, &roc)?;
        if !options.json {
            output::line(format!("\nPlot      {}", path.display()));
        }
    }
    Ok(if figures.passed_over.is_empty() { Outcome::Done } else { Outcome::Partial })
}

fn write_plot(path: &Path, figures: &Figures, roc: &[RocPoint]) -> Result<()> {
    let Some(verification) = figures.verification.as_ref() else {
        let why = "there is nothing to draw without pairs of one person and pairs of two";
        return Err(Failure::Usage(format!("--plot {}: {why}", path.display())).into());
    };
    let svg = plot::roc(figures.embedder, verification, roc)?;
    fs::write(path, svg).map_err(|error| Failure::output(path.display(), error))?;
    Ok(())
}
