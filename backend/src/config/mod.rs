//! The configuration, by concern: built-in defaults, overridden by a file, the environment, and flags, in this order.

#[macro_use]
mod settings;

mod args;
mod audit;
mod browsers;
mod cohort;
mod database;
mod dataset;
mod deployment;
mod listener;
mod logging;
mod recognition;
mod results;
mod retention;
mod shares;
mod storage;
mod tls;
mod unknowns;

pub use args::{AccessCommand, Args, Command, TlsCommand};
pub use audit::{AuditConfig, AuditSwitch};
pub use browsers::BrowserConfig;
pub use cohort::CohortConfig;
pub use database::DatabaseConfig;
pub use dataset::DatasetConfig;
pub use deployment::{DeploymentConfig, ServerRole};
pub use listener::ListenerConfig;
pub use logging::{LogFormat, LoggingConfig};
pub(crate) use recognition::MAX_TOP_K;
pub use recognition::RecognitionConfig;
pub use results::ResultsConfig;
pub use retention::{ErasedDetections, RetentionConfig};
pub use shares::SharesConfig;
pub use storage::StorageConfig;
pub use tls::TlsConfig;
pub use unknowns::UnknownsConfig;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use figment::{
    Figment,
    providers::{Format as _, Serialized, Toml},
};
use reqwest::Url;
use serde::Serialize;

use self::{
    audit::AuditFlags, browsers::BrowserFlags, cohort::CohortFlags, database::DatabaseFlags,
    dataset::DatasetFlags, deployment::DeploymentFlags, listener::ListenerFlags, logging::LoggingFlags,
    recognition::RecognitionFlags, results::ResultsFlags, retention::RetentionFlags, shares::SharesFlags,
    storage::StorageFlags, tls::TlsFlags, unknowns::UnknownsFlags,
};
use crate::{
    config_errors::{self, config_error},
    store::sql::DatabaseOptions,
};

/// Defines the configuration of all concerns.
macro_rules! concerns {
    ($($(#[doc = $doc:literal])+ $concern:ident: $config:ident, $flags:ident;)+) => {
        /// The configuration of a server, by concern. Each setting is also a key of the configuration file, which has no
        /// concerns, an environment variable, and a flag of `facepipe-backend`; `--help` explains them.
        #[derive(Debug, Clone, PartialEq, Default, Serialize)]
        pub struct Config {
            $($(#[doc = $doc])+ #[serde(flatten)] pub $concern: $config,)+
        }

        /// The settings of the command line and the environment; flags override variables.
        #[derive(Debug, Default, clap::Args, Serialize)]
        pub struct Settings {
            $(#[command(flatten)] #[serde(flatten)] $concern: $flags,)+
        }

        impl Config {
            // Extracts each concern by itself: serde loses the key of a wrong value where it flattens.
            fn extract(merged: &Figment) -> anyhow::Result<Self> {
                Ok(Self { $($concern: merged.extract()?,)+ })
            }

            fn check_limits(&self) -> anyhow::Result<()> {
                $(self.$concern.check_limits()?;)+
                Ok(())
            }
        }
    };
}

concerns! {
    /// This process within the deployment.
    deployment: DeploymentConfig, DeploymentFlags;
    /// Listeners, access, limits of connections and requests.
    listener: ListenerConfig, ListenerFlags;
    /// TLS of the API's listener.
    tls: TlsConfig, TlsFlags;
    /// How much one client may use at a time.
    shares: SharesConfig, SharesFlags;
    /// Browsers and proxies.
    browsers: BrowserConfig, BrowserFlags;
    /// The data folder and the blob store.
    storage: StorageConfig, StorageFlags;
    /// The database.
    database: DatabaseConfig, DatabaseFlags;
    /// Names and images that count as the same.
    dataset: DatasetConfig, DatasetFlags;
    /// What fills the cohort.
    cohort: CohortConfig, CohortFlags;
    /// Detections: how long they are kept, and plausible times.
    retention: RetentionConfig, RetentionFlags;
    /// The audit log.
    audit: AuditConfig, AuditFlags;
    /// Networks, thresholds, the queue, limits of images.
    recognition: RecognitionConfig, RecognitionFlags;
    /// Unknown people.
    unknowns: UnknownsConfig, UnknownsFlags;
    /// The external API.
    results: ResultsConfig, ResultsFlags;
    /// The log and traces.
    logging: LoggingConfig, LoggingFlags;
}

impl Config {
    /// Returns the configuration with `change` applied.
    ///
    /// ```
    /// use facepipe_backend::Config;
    ///
    /// let config = Config::default().with(|config| config.listener.listen = "127.0.0.1:0".into());
    /// ```
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Merges defaults, file, environment and flags, each overriding the ones before, and checks the result.
    ///
    /// # Errors
    /// The file cannot be read or has an unknown key; a value is outside its limits (the error names the setting, the
    /// value and the limit). All of them are [`config_errors`].
    pub fn load(args: &Args) -> anyhow::Result<Self> {
        Self::merge(args).map_err(config_error)
    }

    fn merge(args: &Args) -> anyhow::Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = &args.config {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the configuration file {}", file.display()))?;
            // figment reports invalid TOML.
            let unknown = text
                .parse()
                .map(|table| config_errors::unknown_keys(&table, &Self::keys()))
                .unwrap_or_default();
            if let Some(key) = unknown.first() {
                anyhow::bail!("the configuration file {} has {key}, which is no setting", file.display());
            }
            figment = figment.merge(Toml::string(&text));
        }
        let config = Self::extract(&figment.merge(Serialized::defaults(&args.settings)))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        self.recognition.check()?;
        self.cohort.check(self.recognition.keep_unknown_embeddings)?;
        self.unknowns.check(self.recognition.keep_unknown_embeddings)?;
        self.results.results_url()?;
        self.logging.check()?;
        self.browsers.check()?;
        self.tls.check()?;
        self.shares.trusted_proxies()?;
        self.check_limits()
    }

    /// Returns the names of all settings, as keys of the configuration file.
    pub(crate) fn keys() -> Vec<String> {
        let settings = serde_json::to_value(Self::default()).unwrap_or_default();
        settings.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
    }

    /// Returns the database's URL.
    pub fn database_url(&self) -> String {
        match &self.database.database_url {
            Some(url) => url.clone(),
            None => format!("sqlite://{}", self.storage.data_dir.join("facepipe.db").display()),
        }
    }

    /// Returns how to connect to the database.
    pub fn database_options(&self) -> DatabaseOptions {
        let database = &self.database;
        DatabaseOptions {
            url: self.database_url(),
            connections: database.database_connections,
            migrate_at_start: database.migrate_at_start,
            connect_timeout: Duration::from_secs(database.database_timeout_s),
            statement_timeout: Duration::from_secs(database.statement_timeout_s),
            start_timeout: Duration::from_secs(database.database_start_timeout_s),
            allow_newer_schema: database.allow_newer_schema,
        }
    }

    /// Returns the files and folders of pictures, embeddings and models that only this process's user may read.
    ///
    /// # Errors
    /// A URL is none.
    pub(crate) fn private_paths(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = self.storage.blobs_folder()?.into_iter().collect();
        if let Some(file) = self.database_options().sqlite_file()? {
            // SQLite gives its other files the mode of the first.
            paths.extend(["", "-wal", "-shm", "-journal"].map(|suffix| {
                let mut path = file.clone().into_os_string();
                path.push(suffix);
                path.into()
            }));
        }
        Ok(paths)
    }

    /// Returns the configuration as a configuration file, without users and passwords in URLs.
    ///
    /// # Errors
    /// A path is not Unicode, or `results_url` is no URL.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let mut shown = self.clone();
        shown.database.database_url = Some(database::without_login(&self.database_url()));
        shown.results.results_url = self.results.shown_url()?;
        Ok(toml::to_string(&shown)?)
    }
}

/// Parses the URL of a setting.
fn http_url(setting: &'static str, text: Option<&str>) -> anyhow::Result<Option<Url>> {
    let Some(text) = text else { return Ok(None) };
    let url = Url::parse(text).with_context(|| format!("{setting} is no URL"))?;
    anyhow::ensure!(
        matches!(url.scheme(), "http" | "https"),
        "{setting} begins with {}:, it must begin with http:// or https://",
        url.scheme()
    );
    Ok(Some(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_key_a_variable_and_a_flag() {
        let keys = serde_json::to_value(Config::default()).unwrap();
        let command = Args::command_with_global_settings();
        command.clone().debug_assert();
        for key in keys.as_object().unwrap().keys() {
            let argument = command.get_arguments().find(|a| a.get_id() == key.as_str());
            let argument = argument.unwrap_or_else(|| panic!("no flag for {key}"));
            assert_eq!(argument.get_long().map(|l| l.replace('-', "_")).as_deref(), Some(key.as_str()));
            assert!(argument.get_env().is_some(), "no environment variable for {key}");
        }
    }

    #[test]
    fn a_value_outside_its_limits_is_rejected_by_name() {
        let config = Config::default().with(|config| config.recognition.match_threshold = Some(1.5));
        let error = config.check().unwrap_err().to_string();
        assert!(
            error.contains("match_threshold") && error.contains("1.5") && error.contains("-1 to 1"),
            "{error}"
        );
        let config = Config::default().with(|config| config.recognition.max_images = 0);
        assert!(config.check().unwrap_err().to_string().contains("max_images is 0"));
        let config = Config::default().with(|config| config.recognition.verify_threshold = Some(f32::NAN));
        assert!(config.check().unwrap_err().to_string().contains("verify_threshold is NaN"));
        let config = Config::default().with(|config| config.recognition.target_fpir = 1.0);
        let error = config.check().unwrap_err().to_string();
        assert!(
            error.contains("target_fpir is 1, it must be from 0.00001 to 0.5 (a share of strangers)"),
            "{error}"
        );
        let config = Config::default().with(|config| config.results.results_timeout_s = 0);
        assert!(config.check().unwrap_err().to_string().contains("results_timeout_s is 0"));
        let config = Config::default().with(|config| config.retention.detections_max_age_days = Some(0));
        assert!(config.check().unwrap_err().to_string().contains("detections_max_age_days is 0"));
        let config = Config::default().with(|config| config.listener.drain_delay_s = 3601);
        assert!(config.check().unwrap_err().to_string().contains("drain_delay_s is 3601"));
        let config = Config::default()
            .with(|config| config.logging.otlp_endpoint = Some("grpc://127.0.0.1:4317".into()));
        assert!(config.check().unwrap_err().to_string().contains("otlp_endpoint begins with grpc:"));
        let config = Config::default().with(|config| config.cohort.cohort_max = 0);
        assert!(config.check().unwrap_err().to_string().contains("cohort_max is 0"));
        let config = Config::default().with(|config| {
            config.cohort.cohort_from_cameras = true;
            config.recognition.keep_unknown_embeddings = false;
        });
        assert!(config.check().unwrap_err().to_string().contains("cohort_from_cameras"));
        let mut config = Config::default().with(|config| config.unknowns.unknown_pictures = true);
        assert!(config.check().is_ok());
        config.recognition.keep_unknown_embeddings = false;
        let error = config.check().unwrap_err().to_string();
        assert!(
            error.contains("unknown_pictures") && error.contains("needs keep_unknown_embeddings"),
            "{error}"
        );
        let config = Config::default().with(|config| config.recognition.embedder = Some("arcface".into()));
        assert!(format!("{:#}", config.check().unwrap_err()).contains("arcface"));
    }

    #[test]
    fn passwords_are_not_shown() {
        let mut config = Config::default();
        config.results.results_url = Some("https://u:secret@h/r@s".into());
        assert!(config.to_toml().unwrap().contains("\"https://h/r@s\""));
    }
}
