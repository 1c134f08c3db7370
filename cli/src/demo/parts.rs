//! The components that the demo needs, and messages about missing ones.

use facepipe_detector::{models as edge_models, runtime};
use facepipe_vision::{EmbedderKind, ModelError, Mtcnn, MtcnnConfig, weights};

use crate::trial;

/// Frame width, which determines the edge's detector.
const WIDTH: u32 = 1920;

/// The components that need files: each is available, or the error names the missing file.
pub struct Parts {
    /// Face detector of the backend, also used to render the crowd.
    pub detector: Result<Mtcnn, String>,
    /// The backend's embedder.
    pub embedder: Result<EmbedderKind, String>,
    /// File name of the edge's detector.
    pub edge: Result<String, String>,
}

impl Parts {
    /// Looks for all components.
    pub fn find(options: &trial::Options) -> Self {
        let detector =
            Mtcnn::load(options.models(), MtcnnConfig::default()).map_err(|error| error.to_string());
        Self { detector, embedder: embedder(options), edge: edge_detector() }
    }

    /// Returns whether people can be enrolled and recognised.
    pub fn has_backend(&self) -> bool {
        self.detector.is_ok() && self.embedder.is_ok()
    }

    /// Describes each missing component and its consequence.
    pub fn missing(&self) -> Vec<String> {
        let line = |part: &str, what: &str, loss: &str| format!("Missing   {part}: {what}\n          {loss}");
        let mut missing = Vec::new();
        if let Err(what) = &self.detector {
            let loss = "without it nobody is enrolled or recognised, and no crowd is rendered";
            missing.push(line("the backend's face detector", what, loss));
        }
        if let Err(what) = &self.embedder {
            missing.push(line("an embedder", what, "without one nobody is enrolled or recognised"));
        }
        if let Err(what) = &self.edge {
            let loss = "without it no face is found in video";
            missing.push(line("the edge's face detector", what, loss));
        }
        missing
    }
}

fn embedder(options: &trial::Options) -> Result<EmbedderKind, String> {
    let models = options.models();
    if let Some(kind) = options.embedder() {
        match weights::find(models, kind.published_file()) {
            Ok(_) => return Ok(kind),
            Err(error @ ModelError::Unconverted { .. }) => return Err(error.to_string()),
            Err(_) => {}
        }
    }
    let files = EmbedderKind::ALL.map(|kind| format!("{} ({kind})", kind.published_file()));
    Err(format!(
        "none of {} in {}; `facepipe models fetch` gets one or says where to put it",
        files.join(", "),
        models.display()
    ))
}

fn edge_detector() -> Result<String, String> {
    let model = edge_models::resolve("auto", Some(WIDTH), &[]).map_err(|error| error.to_string())?;
    runtime::load(&[]).map_err(|error| error.to_string())?;
    Ok(model.file_name().unwrap_or_default().display().to_string())
}
