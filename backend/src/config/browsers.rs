//! What browsers and proxies need: origins, the public URL, the guide.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::http_url;

settings! {
    /// What browsers and proxies need: origins, the public URL, the guide.
    BrowserConfig, BrowserFlags {
        /// Origins of web pages with scripts that may use the server (CORS), separated by commas, e.g.
        /// https://dashboard.example,http://localhost:3000
        cors_origins: Vec<String> = Vec::new(), "FACEPIPE_CORS_ORIGINS", "ORIGINS", unset "none",
            arg [value_delimiter = ','];
        /// Where clients find the server behind a proxy that strips a prefix of the path, e.g. https://example.org/faces:
        /// the document's server, and the beginning of Location
        public_url: String, "FACEPIPE_PUBLIC_URL", "URL", unset "none, the root of the requested host";
        /// Folder of the guide at /docs/guide, as `make docs` builds it
        guide_dir: PathBuf, "FACEPIPE_GUIDE_DIR", "DIR",
            unset "/usr/share/facepipe/guide, where a package has installed it";
    }
}

impl BrowserConfig {
    /// Where packages install the guide.
    pub const GUIDE_DIR: &str = "/usr/share/facepipe/guide";
    /// The guide's first page.
    pub(crate) const GUIDE_PAGE: &str = "index.html";

    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.public_url()?;
        self.cors_origins()?;
        if let Some(folder) = &self.guide_dir {
            anyhow::ensure!(
                folder.join(Self::GUIDE_PAGE).is_file(),
                "guide_dir is {}, where there is no {}: it must be a folder that `make docs` has built",
                folder.display(),
                Self::GUIDE_PAGE
            );
        }
        Ok(())
    }

    /// Returns the folder of the guide, which need not exist.
    pub fn guide(&self) -> &Path {
        self.guide_dir.as_deref().unwrap_or(Path::new(Self::GUIDE_DIR))
    }

    /// Returns the public URL, without a trailing `/`.
    ///
    /// # Errors
    /// It is no URL, of a scheme other than http and https, or has a user, a query or a fragment.
    pub fn public_url(&self) -> anyhow::Result<Option<String>> {
        let Some(url) = http_url("public_url", self.public_url.as_deref())? else { return Ok(None) };
        anyhow::ensure!(
            url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none(),
            "public_url must be scheme://host/path, without a user, a query or a fragment"
        );
        Ok(Some(url.as_str().trim_end_matches('/').to_owned()))
    }

    /// Returns the origins of pages that may use the server, as browsers write them.
    ///
    /// # Errors
    /// One is no origin of http or https.
    pub fn cors_origins(&self) -> anyhow::Result<Vec<String>> {
        let origin = |text: &String| {
            let url = http_url("cors_origins", Some(text)).with_context(|| {
                format!("cors_origins has {text:?}, an origin is scheme://host or scheme://host:port")
            })?;
            let url = url.filter(|url| {
                url.path() == "/"
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none()
                    && url.fragment().is_none()
                    && !url.host_str().unwrap_or_default().contains('*')
            });
            let url = url.with_context(|| {
                format!(
                    "cors_origins has {text:?}, an origin is scheme://host or scheme://host:port: no path, no user, no *"
                )
            })?;
            Ok(url.origin().ascii_serialization())
        };
        self.cors_origins.iter().map(origin).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_those_that_browsers_write() {
        let read = |origins: &[&str]| {
            let cors_origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
            let config = BrowserConfig { cors_origins, ..BrowserConfig::default() };
            config.check().and_then(|()| config.cors_origins()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(
            read(&["https://Dashboard.example:443/", "http://localhost:3000", "http://[::1]:80"]).unwrap(),
            ["https://dashboard.example", "http://localhost:3000", "http://[::1]"]
        );
        for wrong in
            ["*", "null", "", "https://*.example", "https://a.example/path", "ftp://a.example", "a.example"]
        {
            let error = read(&["https://good.example", wrong]).unwrap_err();
            assert!(error.contains(&format!("cors_origins has {wrong:?}")), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_public_url_has_no_user_query_or_fragment() {
        let read = |url: &str| {
            let config = BrowserConfig { public_url: Some(url.into()), ..BrowserConfig::default() };
            config.check().and_then(|()| config.public_url()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(read("https://example.org/faces/").unwrap().as_deref(), Some("https://example.org/faces"));
        assert_eq!(read("http://10.0.0.7:8080").unwrap().as_deref(), Some("http://10.0.0.7:8080"));
        for wrong in [
            "/faces",
            "example.org",
            "ftp://example.org",
            "https://u@example.org",
            "https://example.org/?a=b",
        ] {
            assert!(read(wrong).unwrap_err().contains("public_url"), "{wrong}");
        }
    }
}
