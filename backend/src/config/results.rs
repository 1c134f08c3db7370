//! The external API that takes the results of send-results.

use std::time::Duration;

use reqwest::Url;

use super::http_url;

settings! {
    /// The external API that takes the results of send-results.
    ResultsConfig, ResultsFlags {
        /// External API that takes the results of send-results, http:// or https://; user and password in it are sent as
        /// basic authentication
        results_url: String, "FACEPIPE_RESULTS_URL", "URL", unset "none", arg [hide_env_values = true];
        /// Seconds for which a result that the external API does not take is sent again
        results_max_age_s: u64 = 86_400, "FACEPIPE_RESULTS_MAX_AGE_S", "SECONDS", in 1..=31_536_000;
        /// Seconds that the external API may take to respond
        results_timeout_s: u64 = 10, "FACEPIPE_RESULTS_TIMEOUT_S", "SECONDS", in 1..=300;
    }
}

impl ResultsConfig {
    /// Returns the external API's URL.
    ///
    /// # Errors
    /// It is no URL, or of a scheme other than http and https. The message has no password.
    pub fn results_url(&self) -> anyhow::Result<Option<Url>> {
        http_url("results_url", self.results_url.as_deref())
    }

    /// Returns for how long a result is sent again.
    pub(crate) fn max_age(&self) -> Duration {
        Duration::from_secs(self.results_max_age_s)
    }

    /// Returns how long the external API may take to respond.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.results_timeout_s)
    }

    /// Returns the URL without user and password.
    pub(super) fn shown_url(&self) -> anyhow::Result<Option<String>> {
        let has_login = |url: &Url| !url.username().is_empty() || url.password().is_some();
        let Some(mut url) = self.results_url()?.filter(has_login) else {
            return Ok(self.results_url.clone());
        };
        // Fail for URLs without a host only, which have neither.
        let _ = url.set_password(None);
        let _ = url.set_username("");
        Ok(Some(url.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_go_to_http_urls_only() {
        let check = |url: &str| {
            let config = ResultsConfig { results_url: Some(url.into()), ..ResultsConfig::default() };
            config.results_url().map(drop).map_err(|error| format!("{error:#}"))
        };
        for url in ["http://127.0.0.1:9000/results", "https://user:secret@api.example/faces?a=b"] {
            assert_eq!(check(url), Ok(()));
        }
        for (url, named) in [
            ("ftp://user:secret@api.example/", "ftp:"),
            ("api.example:80/results", "api.example:"),
            ("/results", "results_url is no URL"),
            ("http://user:secret@/", "results_url is no URL"),
            ("", "results_url is no URL"),
        ] {
            let error = check(url).unwrap_err();
            assert!(error.contains("results_url") && error.contains(named), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
