//! Optional Cargo features that this build lacks, and the error that names them.

/// Formats the error for `part` (for example "manual pages"), which the Cargo feature `feature` provides.
pub fn message(part: &str, feature: &str) -> String {
    format!(
        "this facepipe was built without {part}: build it with the feature `{feature}` of facepipe-cli, which it has by \
         default (`cargo build --workspace`)"
    )
}

/// Parses the file of a `--plot`; fails at once in a build without plots.
///
/// # Errors
/// This program was built without plots.
pub fn plot_file(path: &str) -> Result<std::path::PathBuf, String> {
    if cfg!(feature = "plots") { Ok(path.into()) } else { Err(message("plots", "plots")) }
}

/// Stands in for the plotting modules.
#[cfg(not(feature = "plots"))]
pub mod plot {
    use anyhow::Result;

    use crate::exit::Failure;

    fn refused() -> Result<String> {
        Err(Failure::Usage(super::message("plots", "plots")).into())
    }

    pub fn bars<T>(_: &T) -> Result<String> {
        refused()
    }

    pub fn rows<T>(_: &T) -> Result<String> {
        refused()
    }

    pub fn roc<E, V, R>(_: E, _: V, _: R) -> Result<String> {
        refused()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_missing_feature_is_named_with_its_cargo_feature() {
        let message = super::message("manual pages", "shells");
        assert!(
            message.contains("without manual pages") && message.contains("`shells` of facepipe-cli"),
            "{message}"
        );
    }

    #[test]
    fn plots_need_the_plots_feature() {
        let file = super::plot_file("roc.svg");
        assert_eq!(file.is_ok(), cfg!(feature = "plots"), "{file:?}");
    }
}
