//! What `--version` says: whoever builds for others names the commit in `FACEPIPE_COMMIT` (`make packages` does). Git is not
//! asked, or each commit would compile everything above this again.

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
    fn a_build_whose_commit_was_not_said_is_called_one_of_a_developer() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(text(Some("0123456789ab")), format!("{version} (0123456789ab)"));
        for unsaid in [None, Some("")] {
            assert_eq!(text(unsaid), format!("{version} (development build)"));
        }
    }
}
