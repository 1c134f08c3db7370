//! The HTTP client: keep-alive connections, TLS for https, the proxy that the environment names, and a count of the bytes on
//! the wire.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            self, ResponseFuture,
            connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    client::Resumption,
    crypto::{CryptoProvider, ring},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower_service::Service;

use super::{
    UploadError,
    config::{is_loopback, without_user},
    tls::{ClientIdentity, TlsOptions, Verifier, read_certificates},
};

/// An HTTP client for one backend.
#[derive(Debug)]
pub(super) struct Client {
    inner: legacy::Client<HttpsConnector<ProxyConnector>, Full<Bytes>>,
    /// For a proxy that forwards plain HTTP.
    proxy_authorization: Option<HeaderValue>,
}

impl Client {
    pub(super) fn request(&self, mut request: Request<Full<Bytes>>) -> ResponseFuture {
        if let Some(value) = &self.proxy_authorization {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, value.clone());
        }
        self.inner.request(request)
    }
}

/// Maximum time to wait for a connection, within the limit of the request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that are idle for so long are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that crossed the client's sockets.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) written: AtomicU64,
    pub(super) read: AtomicU64,
}

/// Returns the proxy for a backend, from `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` in the environment.
/// Loopback addresses are never proxied.
fn find_proxy(uri: &Uri) -> Result<Option<Intercept>, UploadError> {
    if uri.host().is_some_and(is_loopback) {
        return Ok(None);
    }
    let proxy = Matcher::from_env().intercept(uri);
    match &proxy {
        Some(proxy) if proxy.uri().scheme_str() != Some("http") => {
            Err(UploadError::Proxy { proxy: without_user(&proxy.uri().to_string()) })
        }
        _ => Ok(proxy),
    }
}

/// Returns the address of the proxy for a backend, if there is one.
///
/// # Errors
/// The backend's address is not a URL, or the kind of proxy is not supported.
pub fn proxy(backend_url: &str) -> Result<Option<String>, UploadError> {
    let reason = "is not a URL".into();
    let uri = backend_url
        .trim()
        .parse()
        .map_err(|_| UploadError::Url { url: without_user(backend_url), reason })?;
    Ok(find_proxy(&uri)?.map(|proxy| without_user(&proxy.uri().to_string())))
}

/// Creates the client for one backend, whose certificate is checked by [`Verifier`].
pub(super) fn client(uri: &Uri, options: &TlsOptions, traffic: Arc<Traffic>) -> Result<Client, UploadError> {
    let proxy = find_proxy(uri)?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));

    let config = if uri.scheme_str() == Some("https") {
        tls(options)?
    } else {
        // Plain HTTP must also work on a system without certificates, so none are loaded. An invalid file is an error all
        // the same.
        if let Some(file) = &options.ca_file {
            read_certificates(file).map_err(|reason| UploadError::CaFile { path: file.clone(), reason })?;
        }
        tls_builder(&Arc::new(ring::default_provider()))?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    };
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(
            ProxyConnector { direct: CountingConnector { http, traffic }, proxy: proxy.clone() },
        );
    let inner = legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new())
        .build(connector);
    // In a tunnel, the proxy got it when the tunnel was established.
    let proxy = proxy.filter(|_| uri.scheme_str() == Some("http"));
    let proxy_authorization = proxy.and_then(|proxy| proxy.basic_auth().cloned());
    Ok(Client { inner, proxy_authorization })
}

/// Returns a TLS configuration that checks the backend's certificate by [`Verifier`], and has the client's own.
///
/// # Errors
/// A file cannot be used, or there are no root certificates.
pub fn tls(options: &TlsOptions) -> Result<ClientConfig, UploadError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(&provider, options)?;
    let config = tls_builder(&provider)?.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    match (&options.client_cert, &options.client_key) {
        (Some(cert), key) => {
            let identity = ClientIdentity::open(&provider, cert, key.as_deref())?;
            let mut config = config.with_client_cert_resolver(Arc::new(identity));
            // A resumed session would prove the client by the certificate that the session began with.
            config.resumption = Resumption::disabled();
            Ok(config)
        }
        (None, Some(_)) => Err(UploadError::KeyWithoutCert),
        (None, None) => Ok(config.with_no_client_auth()),
    }
}

fn tls_builder(
    provider: &Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, UploadError> {
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| UploadError::Certificates(e.to_string()))
}

/// Connects, and counts the bytes on the connections.
#[derive(Clone)]
pub(super) struct CountingConnector {
    http: HttpConnector,
    traffic: Arc<Traffic>,
}

impl Service<Uri> for CountingConnector {
    type Response = TokioIo<CountingStream>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.http.call(uri);
        let traffic = Arc::clone(&self.traffic);
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            Ok(TokioIo::new(CountingStream { stream, traffic, is_proxied: false }))
        })
    }
}

/// Connects to the backend directly or through a proxy: for https by a tunnel, for http by a request to the proxy.
#[derive(Clone)]
pub(super) struct ProxyConnector {
    direct: CountingConnector,
    proxy: Option<Intercept>,
}

impl Service<Uri> for ProxyConnector {
    type Response = TokioIo<CountingStream>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.proxy.clone() else {
            let connecting = self.direct.call(uri);
            return Box::pin(async move { Ok(connecting.await?) });
        };
        let mut direct = self.direct.clone();
        Box::pin(async move {
            let proxy_error = |error: &(dyn std::error::Error + 'static)| {
                // The message must say that it is not the backend that fails.
                io::Error::other(format!("proxy {}: {}", proxy.uri(), root_cause(error)))
            };
            if uri.scheme_str() == Some("https") {
                let tunnel = Tunnel::new(proxy.uri().clone(), direct);
                let mut tunnel = match proxy.basic_auth() {
                    Some(value) => tunnel.with_auth(value.clone()),
                    None => tunnel,
                };
                return tunnel.call(uri).await.map_err(|error| proxy_error(&error).into());
            }
            let mut stream = direct.call(proxy.uri().clone()).await.map_err(|error| proxy_error(&error))?;
            stream.inner_mut().is_proxied = true;
            Ok(stream)
        })
    }
}

/// A TCP connection that counts its bytes.
pub(super) struct CountingStream {
    stream: TcpStream,
    traffic: Arc<Traffic>,
    /// Requests go to a proxy that forwards them: their target must be the full URL.
    is_proxied: bool,
}

impl CountingStream {
    fn count_written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            count(&self.traffic.written, *bytes);
        }
        result
    }
}

/// Returns the message of the innermost error: it says what happened ("Connection refused"), the outer ones only where.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn count(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
}

impl Connection for CountingStream {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_proxied)
    }
}

impl AsyncRead for CountingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        count(&self.traffic.read, buffer.filled().len().saturating_sub(before));
        result
    }
}

impl AsyncWrite for CountingStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count_written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.count_written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
