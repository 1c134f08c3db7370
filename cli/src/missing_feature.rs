//! What this program was built without: it says so where it is asked for.

/// Why something cannot be had, for people: `part` as in "manual pages", and the feature of Cargo's that has it.
pub fn message(part: &str, feature: &str) -> String {
    format!(
        "this facepipe was built without {part}: build it with the feature `{feature}` of facepipe-cli, which it has by \
         default (`cargo build --workspace`)"
    )
}

/// The file of a `--plot`, refused at once where nothing here can draw.
///
/// # Errors
/// This program was built without plots.
pub fn plot_file(path: &str) -> Result<std::path::PathBuf, String> {
    if cfg!(feature = "plots") { Ok(path.into()) } else { Err(message("plots", "plots")) }
}

/// In the place of the modules that draw.
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
    fn what_is_absent_is_named_with_the_feature_that_has_it() {
        let message = super::message("manual pages", "shells");
        assert!(
            message.contains("without manual pages") && message.contains("`shells` of facepipe-cli"),
            "{message}"
        );
    }

    #[test]
    fn plots_are_drawn_by_programs_that_have_them() {
        let file = super::plot_file("roc.svg");
        assert_eq!(file.is_ok(), cfg!(feature = "plots"), "{file:?}");
    }
}
