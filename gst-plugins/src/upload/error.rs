//! Why an uploader cannot be started.

use std::path::PathBuf;

use super::{SpoolError, TokenError};

/// Why an uploader cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The backend's address is invalid.
    #[error("backend-url `{url}` {reason}; give it as http://host:port or https://host:port")]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There are no root certificates to check the backend's certificate against.
    #[error(
        "backend-url is https, but no root certificates were found ({0}): install the package ca-certificates, or \
         set ca-file"
    )]
    Certificates(String),
    /// The trace collector's address is invalid.
    #[error("otlp-endpoint `{url}` {reason}; give it as http://host:port or https://host:port")]
    Collector {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A trace collector is configured, but this build cannot send spans.
    #[error(
        "otlp-endpoint is `{0}`, but this plugin was built without traces: build gst-plugin-facepipe with its feature \
         `traces`, which it has by default, or leave the property out"
    )]
    WithoutTraces(String),
    /// The environment names an unsupported kind of proxy.
    #[error(
        "the proxy `{proxy}`, which the environment names (http_proxy, https_proxy or all_proxy), is not supported; \
         give one as http://host:port, or except the backend by no_proxy"
    )]
    Proxy {
        /// Its address.
        proxy: String,
    },
    /// The file of certificates cannot be used.
    #[error("ca-file `{}` cannot be used: {reason}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of the client's certificate cannot be used.
    #[error("client-cert `{}` cannot be used: {reason}", path.display())]
    ClientCert {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of the client's private key cannot be used.
    #[error("client-key `{}` cannot be used: {reason}", path.display())]
    ClientKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A private key is given without its certificate.
    #[error(
        "client-key is set, but client-cert is not: set both, or client-cert alone if its file has the key, too"
    )]
    KeyWithoutCert,
    /// The client has a certificate, but the connection has no TLS that it could prove itself by.
    #[error(
        "client-cert is set, but backend-url `{0}` is not https, and without TLS nothing can be proved: use https, or leave \
         client-cert out"
    )]
    CertWithoutTls(String),
    /// A token would be sent in clear over a network.
    #[error(
        "backend-url `{0}` is http, on which everybody on the way can read the token: use https, or set \
         allow-insecure-token=true if the network is protected otherwise"
    )]
    InsecureToken(String),
    /// A pin is not a digest.
    #[error(
        "pinned-sha256 `{0}` is not the SHA-256 digest of a public key in base64, such as sha256//{example}; separate \
         several with semicolons",
        example = "YLh1dUR9y6Kja30RrAn7JKnbQG/uEtLMkBgFF2Fuihg="
    )]
    Pin(String),
    /// Keys are pinned, but the connection has no TLS that would prove one.
    #[error(
        "pinned-sha256 is set, but backend-url `{0}` is not https, and without TLS the backend cannot prove its key: use \
         https, or leave pinned-sha256 out"
    )]
    PinWithoutTls(String),
    /// The token file cannot be used.
    #[error("token-file `{}` {error}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: TokenError,
    },
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Threads cannot be started.
    #[error("cannot start the uploader's threads: {0}")]
    Runtime(String),
}
