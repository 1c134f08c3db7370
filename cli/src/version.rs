//! The version that `--version` prints. Release builds (`make packages`) set the commit in `FACEPIPE_COMMIT`; asking Git would
//! recompile dependents at every commit.

use std::sync::LazyLock;

/// The version, with the commit in parentheses.
pub static VERSION: LazyLock<String> = LazyLock::new(|| text(option_env!("FACEPIPE_COMMIT")));

fn text(commit: Option<&str>) -> String {
    let commit = commit.filter(|commit| !commit.is_empty()).unwrap_or("development build");
    format!("{} ({commit})", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edge_and_server_use_the_same_system_models_folders() {
        assert_eq!(facepipe_detector::models::SYSTEM_MODELS, facepipe_vision::SYSTEM_MODELS);
    }

    #[test]
    fn a_build_without_a_commit_is_a_development_build() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(text(Some("0123456789ab")), format!("{version} (0123456789ab)"));
        for unsaid in [None, Some("")] {
            assert_eq!(text(unsaid), format!("{version} (development build)"));
        }
    }
}
