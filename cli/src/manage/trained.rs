//! The subcommands of `facepipe models` for the server's trained models.

use anyhow::Result;
use clap::Subcommand;

use super::confirmed;
use crate::{
    calibration::{self, percent},
    client::{ErrorRate, Model, ModelCalibration},
    connection::Target,
    exit::Outcome,
    output, runtime,
};

/// Subcommands for trained models.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List the server's trained models and which one is active.
    Trained(Target),
    /// Show a trained model: its threshold, the error rates to expect, and what would improve them.
    Show {
        /// Version, as listed by `trained`.
        #[arg(value_name = "VERSION")]
        model: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Activate an earlier model of the server.
    Activate {
        /// Version, as listed by `trained`.
        #[arg(value_name = "VERSION")]
        model: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Delete an inactive model from the server; its version is not reused.
    Delete {
        /// Version, as listed by `trained`.
        #[arg(value_name = "VERSION")]
        model: u64,
        /// Do not ask for confirmation.
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// Runs the subcommand.
///
/// # Errors
/// The server cannot be reached or refuses it.
pub fn run(action: &Action) -> Result<Outcome> {
    runtime()?.block_on(async {
        match action {
            Action::Trained(target) => {
                let models = target.client()?.models().await?;
                if target.json {
                    output::json(&models)?;
                } else if models.models.is_empty() {
                    output::line("Nothing was trained yet: facepipe train --wait");
                } else {
                    let rows = models.models.into_iter().map(|model| {
                        [
                            model.version.to_string(),
                            if model.active { "answers".into() } else { String::new() },
                            model.people.to_string(),
                            model.images.to_string(),
                            model
                                .calibration
                                .as_ref()
                                .map_or_else(unknown, |c| format!("{:.4}", c.threshold)),
                            expected(&model, |calibration| calibration.fpir.as_ref()),
                            expected(&model, |calibration| calibration.fnir.as_ref()),
                            model.embedder,
                            model.created_at,
                        ]
                    });
                    output::table(
                        [
                            "Model",
                            "",
                            "People",
                            "Pictures",
                            "Threshold",
                            "FPIR",
                            "FNIR",
                            "Embedder",
                            "Trained",
                        ],
                        rows,
                    );
                }
            }
            Action::Show { model, target } => {
                let model = target.client()?.model(*model).await?;
                if target.json {
                    output::json(&model)?;
                } else {
                    let answers = if model.active { ", answers" } else { "" };
                    output::line(format!(
                        "Model     {}{answers}: {} people, {} pictures, {}, trained {}",
                        model.version, model.people, model.images, model.embedder, model.created_at
                    ));
                    match &model.calibration {
                        Some(calibration) => calibration::lines(calibration).iter().for_each(output::line),
                        None => output::line("Threshold the embedder's own; train again to calibrate it"),
                    }
                }
            }
            Action::Activate { model, target } => {
                let model = target.client()?.activate_model(*model).await?;
                if target.json {
                    output::json(&model)?;
                } else {
                    output::line(format!("Model {} answers now", model.version));
                }
            }
            Action::Delete { model, yes, target } => {
                let client = target.client()?;
                if !confirmed(&format!("Model {model} will be removed for good."), *yes)? {
                    output::line("Nothing was removed.");
                    return Ok(Outcome::Done);
                }
                client.delete_model(*model).await?;
                output::line(format!("Model {model} is removed"));
            }
        }
        Ok(Outcome::Done)
    })
}

fn unknown() -> String {
    "-".into()
}

/// Formats an expected error rate of a model, in percent.
fn expected(model: &Model, rate: impl Fn(&ModelCalibration) -> Option<&ErrorRate>) -> String {
    model.calibration.as_ref().and_then(rate).map_or_else(unknown, |rate| percent(rate.rate))
}
