//! Server address and credentials from options, environment and a configuration file with profiles.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use etcetera::BaseStrategy;
use figment::{
    Figment, Profile,
    providers::{Format, Toml},
};
use serde::Deserialize;

use crate::{
    client::{Client, REQUEST_TIMEOUT, RETRY_LIMIT, Settings},
    exit::Failure,
};

/// Default address of a backend.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// Options of the server connection; they may come before or after an action (`people show Ada`).
#[derive(Debug, Default, Args)]
#[group(id = "connection")]
#[command(next_help_heading = "Server")]
pub struct Connection {
    /// The backend's address [default: the profile's, else http://127.0.0.1:8080]
    #[arg(long, global = true, env = "FACEPIPE_SERVER", value_name = "URL")]
    server: Option<String>,
    /// Bearer token; better in a file, since others on this machine can read command lines
    #[arg(
        long,
        global = true,
        env = "FACEPIPE_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// File with the bearer token in it
    #[arg(long, global = true, env = "FACEPIPE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust in addition to the system's
    #[arg(long, global = true, env = "FACEPIPE_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Digest of the server's public key, sha256//BASE64; only a server with this key is trusted. Separate several by
    /// semicolons
    #[arg(long, global = true, env = "FACEPIPE_PINNED_SHA256", value_name = "PIN")]
    pinned_sha256: Option<String>,
    /// File with this client's certificate (PEM), by which it proves itself
    #[arg(long, global = true, env = "FACEPIPE_CLIENT_CERT", value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// File with the private key of --client-cert (PEM) [default: it is in --client-cert]
    #[arg(long, global = true, env = "FACEPIPE_CLIENT_KEY", value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// Send the token even over http to another machine, where everybody on the way can read it
    #[arg(long, global = true, env = "FACEPIPE_INSECURE_TOKEN")]
    insecure_token: bool,
    /// Timeout of a request, seconds [default: 60]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: Option<u64>,
    /// Profile of the configuration file: a table with any of server, token_file, token, ca_file, pinned_sha256, client_cert,
    /// client_key, insecure_token, timeout
    #[arg(long, global = true, env = "FACEPIPE_PROFILE", value_name = "NAME")]
    profile: Option<String>,
    /// Configuration file, TOML [default: ~/.config/facepipe/config.toml, where it exists]
    #[arg(long, global = true, env = "FACEPIPE_CLI_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A server and the output format.
#[derive(Debug, Args)]
#[group(id = "target")]
pub struct Target {
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Target {
    /// Creates a client, see [`Connection::client`].
    ///
    /// # Errors
    /// As [`Connection::client`].
    pub fn client(&self) -> Result<Client, Failure> {
        self.connection.client()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileSettings {
    server: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    pinned_sha256: Option<String>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    insecure_token: Option<bool>,
    timeout: Option<u64>,
}

impl Connection {
    /// Creates a client; nothing is sent yet.
    ///
    /// # Errors
    /// The configuration, the address, the token's file or the certificates are wrong or missing.
    pub fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.settings()?)
    }

    /// Merges the settings: options override the environment, the environment the profile, the profile the defaults.
    ///
    /// # Errors
    /// The configuration, the token's file or the certificates are wrong or missing.
    pub fn settings(&self) -> Result<Settings, Failure> {
        let profile = self.profile()?;
        let ProfileSettings { server, token, token_file, timeout, .. } = profile;
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(checked_token(token, "--token")?),
            (None, Some(file)) => Some(read_token(file)?),
            (None, None) => match (token, token_file) {
                (Some(token), _) => Some(checked_token(&token, "token in the profile")?),
                (None, Some(file)) => Some(read_token(&file)?),
                (None, None) => None,
            },
        };
        let server = self.server.clone().or(server).unwrap_or_else(|| DEFAULT_SERVER.into());
        let request_timeout = self.timeout.or(timeout).map_or(REQUEST_TIMEOUT, Duration::from_secs);
        Ok(Settings {
            server,
            token,
            ca_file: self.ca_file.clone().or(profile.ca_file),
            pinned_sha256: self.pinned_sha256.clone().or(profile.pinned_sha256),
            client_cert: self.client_cert.clone().or(profile.client_cert),
            client_key: self.client_key.clone().or(profile.client_key),
            insecure_token: self.insecure_token || profile.insecure_token.unwrap_or_default(),
            request_timeout,
            retry_limit: RETRY_LIMIT,
        })
    }

    fn profile(&self) -> Result<ProfileSettings, Failure> {
        let file = match &self.config {
            Some(file) if !file.is_file() => {
                return Err(Failure::Usage(format!("--config {}: no such file", file.display())));
            }
            Some(file) => Some(file.clone()),
            None => default_file().filter(|file| file.is_file()),
        };
        let Some(file) = file else {
            return match &self.profile {
                None => Ok(ProfileSettings::default()),
                Some(name) => Err(Failure::Usage(format!(
                    "--profile {name}: there is no configuration file{}",
                    default_file().map(|file| format!(" at {}", file.display())).unwrap_or_default()
                ))),
            };
        };
        read_profile(&file, self.profile.as_deref())
    }
}

/// Reads a profile; the table `default` applies to all profiles.
fn read_profile(file: &Path, name: Option<&str>) -> Result<ProfileSettings, Failure> {
    let wrong = |error: figment::Error| Failure::Usage(format!("{}: {error}", file.display()));
    let figment = Figment::from(Toml::file(file).nested());
    // Report invalid TOML before a missing profile.
    figment.clone().extract::<figment::value::Value>().map_err(wrong)?;
    let name = name.unwrap_or("default");
    if name != "default" && !figment.profiles().any(|profile| *profile == name) {
        let known: Vec<String> =
            figment.profiles().map(ToString::to_string).filter(|p| p != "default").collect();
        return Err(Failure::Usage(format!(
            "--profile {name}: {} has no such table (it has: {})",
            file.display(),
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        )));
    }
    figment.select(Profile::new(name)).extract().map_err(wrong)
}

fn default_file() -> Option<PathBuf> {
    let base = etcetera::choose_base_strategy().ok()?;
    Some(base.config_dir().join("facepipe/config.toml"))
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(file).map_err(|error| {
        Failure::Usage(format!("--token-file {}: cannot be read: {error}", file.display()))
    })?;
    checked_token(text.trim(), &format!("--token-file {}", file.display()))
}

/// Refuses tokens that are no valid header value, without repeating them.
fn checked_token(token: &str, place: &str) -> Result<String, Failure> {
    let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.is_empty() || !visible {
        let what =
            if token.is_empty() { "is empty" } else { "contains a character that is not allowed in a token" };
        return Err(Failure::Usage(format!("{place}: {what}")));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(text: &str, profile: Option<&str>) -> Result<Settings, Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.toml");
        fs::write(&file, text).expect("written");
        let profile = profile.map(str::to_owned);
        Connection { config: Some(file), profile, ..Connection::default() }.settings()
    }

    const FILE: &str = r#"
        [default]
        timeout = 5
        [office]
        server = "https://faces.example.org"
        token = "0123456789abcdef"
    "#;

    #[test]
    fn a_profile_provides_what_options_omit() {
        let office = configured(FILE, Some("office")).expect("settings");
        assert_eq!(office.server, "https://faces.example.org");
        assert_eq!(office.token.as_deref(), Some("0123456789abcdef"));
        assert_eq!(office.request_timeout, Duration::from_secs(5), "the table `default` applies to all");
        let none = configured(FILE, None).expect("settings");
        assert_eq!((none.server.as_str(), none.token), (DEFAULT_SERVER, None));
    }

    #[test]
    fn configuration_errors_are_named() {
        let unknown = configured(FILE, Some("home")).expect_err("refused").to_string();
        assert!(unknown.contains("home") && unknown.contains("office"), "{unknown}");
        let field = configured("[default]\nsrever = 'x'", None).expect_err("refused").to_string();
        assert!(field.contains("srever"), "{field}");
        let toml = configured("[default", None).expect_err("refused").to_string();
        assert!(toml.contains("config.toml"), "{toml}");
        let token = configured("[default]\ntoken = 'two words'", None).expect_err("refused").to_string();
        assert!(!token.contains("two words"), "a token is never repeated: {token}");
    }
}
