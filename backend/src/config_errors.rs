//! Errors of the configuration: those that no restart resolves, and unknown names.

use std::fmt;

/// The exit code of configuration errors, the same as of a wrong command line: a service manager does not restart the
/// program (`RestartPreventExitStatus`). Every other error exits with 1, since it may pass.
pub const EXIT_CODE: u8 = 2;

/// Minimum similarity of a suggested name, 0 to 1 (normalised Damerau-Levenshtein).
const MIN_SIMILARITY: f64 = 0.6;
/// The prefix of this project's environment variables.
const PREFIX: &str = "FACEPIPE_";

/// Variables of other programs, scripts, builds and tests of this project, without the prefix: they may be set in the
/// same environment.
const OTHER_VARIABLES: [&str; 31] = [
    "CAMERA_ID",
    "CA_FILE",
    "CHECKED_PLUGIN",
    "CLI_CONFIG",
    "CLIENT_CERT",
    "CLIENT_KEY",
    "COMMIT",
    "DECODER",
    "INSECURE_TOKEN",
    "LOCATION",
    "MIRROR",
    "OPTIONS",
    "PACKAGE_VERSION",
    "PHOTOGRAPHS",
    "PINNED_SHA256",
    "POLICY",
    "PROFILE",
    "PROGRESS_SECONDS",
    "PROVING",
    "PUBLISH",
    "RELEASE_CARGO",
    "RELEASE_SOURCE",
    "RELEASE_SYSROOT",
    "RELEASE_TARGET",
    "RELEASE_TRIPLE",
    "RUNTIME",
    "SERVER",
    "SKIP_LOG",
    "SOURCE",
    "SPOOL_DIR",
    "TOKEN",
];
/// The prefix of tests' variables, after the project's.
const TEST_PREFIX: &str = "TEST_";

/// Marks an error that persists until somebody changes the configuration.
#[derive(Debug)]
struct ConfigError(anyhow::Error);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Marks an error as one of the configuration.
pub fn config_error(error: impl Into<anyhow::Error>) -> anyhow::Error {
    anyhow::Error::new(ConfigError(error.into()))
}

/// Returns the error of an address that cannot be bound; one of the configuration if a restart cannot help.
pub fn cannot_listen(error: std::io::Error, setting: &str, address: &str) -> anyhow::Error {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied};
    let permanent = matches!(error.kind(), InvalidInput | PermissionDenied);
    let error =
        anyhow::Error::new(error).context(format!("cannot listen on {address} (setting `{setting}`)"));
    if permanent { config_error(error) } else { error }
}

/// Returns whether an error is one of the configuration.
pub fn is_config_error(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<ConfigError>())
}

/// A name that is no setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownName {
    /// The name.
    pub name: String,
    /// The most similar setting.
    pub nearest: Option<String>,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.nearest.as_ref().map_or(Ok(()), |nearest| write!(f, " (did you mean {nearest}?)"))
    }
}

/// Returns the names that have the project's prefix and are not among the `known` variables: no program reads them.
pub fn unknown_variables(names: impl IntoIterator<Item = String>, known: &[String]) -> Vec<UnknownName> {
    let is_known = |name: &str| {
        known.iter().any(|known| known == name)
            || name.strip_prefix(PREFIX).is_none_or(|rest| {
                OTHER_VARIABLES.contains(&rest) || rest.starts_with(TEST_PREFIX) || is_service_link(name)
            })
    };
    let mut unknown: Vec<UnknownName> = names
        .into_iter()
        .filter(|name| !is_known(name))
        .map(|name| UnknownName { nearest: nearest(&name, known.iter().map(String::as_str)), name })
        .collect();
    unknown.sort_by(|one, other| one.name.cmp(&other.name));
    unknown
}

/// Returns the keys of a configuration file that are not among the `known` settings.
pub fn unknown_keys(table: &toml::Table, known: &[String]) -> Vec<UnknownName> {
    let unknown = table.keys().filter(|key| !known.contains(key));
    unknown
        .map(|key| UnknownName { name: key.clone(), nearest: nearest(key, known.iter().map(String::as_str)) })
        .collect()
}

/// Returns whether Kubernetes or Docker set the variable for a service whose name begins with the prefix:
/// `FACEPIPE_SERVICE_HOST`, `FACEPIPE_MANAGE_PORT_8080_TCP_ADDR`.
fn is_service_link(name: &str) -> bool {
    let after_port = name.split_once("_PORT").map(|(_, rest)| rest);
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || after_port.is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix('_').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let bare = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_ascii_lowercase();
    let wanted = bare(name);
    let scored = known.map(|known| (strsim::normalized_damerau_levenshtein(&wanted, &bare(known)), known));
    let best = scored
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.map(|(_, known)| known.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::{Args, Config};

    fn unknown(names: &[&str]) -> Vec<String> {
        let names = names.iter().map(|name| (*name).to_owned());
        unknown_variables(names, &Args::variables()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_misspelt_variable_is_reported_with_a_suggestion() {
        assert_eq!(
            unknown(&["FACEPIPE_DETECTION_MAX_AGE_DAYS", "FACEPIPE_DATABASE_URL", "FACEPIPE_QQQ", "HOME"]),
            [
                "FACEPIPE_DATABASE_URL (did you mean DATABASE_URL?)",
                "FACEPIPE_DETECTION_MAX_AGE_DAYS (did you mean FACEPIPE_DETECTIONS_MAX_AGE_DAYS?)",
                "FACEPIPE_QQQ",
            ]
        );
    }

    #[test]
    fn service_links_of_kubernetes_are_ignored() {
        let told = [
            "FACEPIPE_SERVICE_HOST",
            "FACEPIPE_SERVICE_PORT",
            "FACEPIPE_MANAGE_SERVICE_PORT_HTTP",
            "FACEPIPE_PORT",
            "FACEPIPE_RECOGNISE_PORT_8080_TCP",
            "FACEPIPE_RECOGNISE_PORT_8080_TCP_ADDR",
        ];
        assert_eq!(unknown(&told), Vec::<String>::new());
        assert_eq!(unknown(&["FACEPIPE_PORTS", "FACEPIPE_LISTEN_PORT_X"]).len(), 2);
    }

    #[test]
    fn a_misspelt_key_is_reported_with_a_suggestion() {
        let table = "max_images = 3\nmax_imagse = 3\nzzz = true".parse().unwrap();
        let told: Vec<String> =
            unknown_keys(&table, &Config::keys()).iter().map(ToString::to_string).collect();
        assert_eq!(told, ["max_imagse (did you mean max_images?)", "zzz"]);
    }

    #[test]
    fn every_variable_that_this_project_names_is_known() {
        // Wrong on purpose, here and in tests that use them; and bare prefixes in prose.
        let wrong = [
            "FACEPIPE_DETECTION_MAX_AGE_DAYS",
            "FACEPIPE_DATABASE_URL",
            "FACEPIPE_QQQ",
            "FACEPIPE_PORTS",
            "FACEPIPE_LISTEN_PORT_X",
            "FACEPIPE_",
            "FACEPIPE_TEST",
        ];
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut names = Vec::new();
        let folders = [
            "backend/src",
            "backend/tests",
            "benches",
            "cli",
            "deploy",
            "docs",
            "gst-plugins",
            "jetson",
            "packaging",
            "pipelines",
            "scripts",
            "tests",
        ];
        let mut waiting: Vec<_> = folders.iter().map(|folder| root.join(folder)).collect();
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    waiting.push(entry.path());
                } else if let Ok(text) = fs::read_to_string(entry.path()) {
                    let found = text.match_indices(PREFIX).map(|(at, _)| &text[at..]);
                    names.extend(found.map(|rest| {
                        let end =
                            rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
                        rest[..end.unwrap_or(rest.len())].to_owned()
                    }));
                }
            }
        }
        assert!(names.len() > 100, "{}", names.len());
        names.retain(|name| !wrong.contains(&name.as_str()));
        let mut unknown: Vec<String> =
            unknown_variables(names, &Args::variables()).iter().map(ToString::to_string).collect();
        unknown.dedup();
        assert_eq!(unknown, Vec::<String>::new());
    }

    #[test]
    fn a_config_error_is_recognised_below_its_context() {
        let error =
            config_error(anyhow::anyhow!("max_images is 0").context("the file x")).context("cannot start");
        assert!(is_config_error(&error));
        assert_eq!(format!("{error:#}"), "cannot start: the file x: max_images is 0");
        assert!(!is_config_error(&anyhow::anyhow!("the database is away").context("cannot start")));
    }
}
