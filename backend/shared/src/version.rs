//! The output of `--version`. Release builds name their commit in `FACEPIPE_COMMIT` (`make packages` does). Git is not asked, or
//! each commit would recompile all dependents.

use std::sync::LazyLock;

/// The version, and in brackets the commit.
pub static VERSION: LazyLock<String> = LazyLock::new(|| text(option_env!("FACEPIPE_COMMIT")));

fn text(commit: Option<&str>) -> String {
    let commit = commit.filter(|commit| !commit.is_empty()).unwrap_or("development build");
    format!("{} ({commit})", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_a_commit_is_called_a_development_build() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(text(Some("0123456789ab")), format!("{version} (0123456789ab)"));
        for unsaid in [None, Some("")] {
            assert_eq!(text(unsaid), format!("{version} (development build)"));
        }
    }
}
