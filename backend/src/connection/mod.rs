//! Connections of clients: HTTP/1.1 over TCP, HTTP/1.1 and HTTP/2 over TLS, and detecting that a client has left.
//!
//! A client that has sent its request may close its side of the connection and wait for the response (RFC 9112,
//! section 9.6); one that has left closes its side, too, and TCP does not distinguish the two. The first byte of the
//! response does, which is always the `H` of `HTTP/1.1`: it is sent as soon as a client closes its side during a call. A
//! client that waits gets it a little before the rest; for one that has left, the system rejects it (RST), which cancels
//! the call. Over TLS, the alert `close_notify` closes a side. HTTP/2 has a frame for clients that leave ([`http2`]).

mod http2;

use std::{
    cell::Cell,
    future::{Future as _, ready},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{self, Context, Poll},
    time::Duration,
};

use actix_http::{HttpService, KeepAlive, Request};
use actix_server::Server;
use actix_service::{IntoServiceFactory, Service as _, ServiceFactory, fn_factory, fn_service};
use actix_web::{
    Error,
    body::MessageBody,
    dev::{AppConfig, ServiceResponse},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;

use crate::{
    metrics::{Metrics, Rejection},
    shares::{Admission, ConnectionGuard, Connections, Limit},
    tls::{CertifiedCamera, ServerTls},
};

/// How a server treats its connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionOptions {
    /// Threads that handle HTTP.
    pub workers: usize,
    /// Maximum time until the head of a request has arrived.
    pub request_timeout: Duration,
    /// Minimum time for which an idle connection is kept.
    pub keep_alive: Duration,
    /// Maximum time in which a client reads [`MIN_WRITTEN`] bytes of a response, or the rest of it.
    pub write_timeout: Duration,
    /// Maximum time for accepted requests when the server stops, seconds.
    pub shutdown_timeout_s: u64,
}

/// How much longer than announced a connection is kept, for requests that are in transit when the time ends.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(3);
/// How long a connection is drained after a response that preceded the end of its request.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often to check whether a client rejected the early byte.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How many times in a row a call may be polled without reading from its body, before the end of the client's sending
/// counts as the end of the body.
const MAX_IDLE_POLLS: u32 = 16;

/// Bytes that a client reads within the write timeout at least: a client that reads one byte now and then does not count as
/// one that reads.
const MIN_WRITTEN: usize = 16 * 1024;
/// How long a connection beyond the bound is kept, which is enough for a probe, and one whose request was refused before its
/// end: actix-http reads on for the rest of a chunked body, however long it takes.
const SPARE_TIME: Duration = Duration::from_secs(5);

/// The bound on connections that a request's connection is beyond, and its maximum; among the extensions of requests by
/// HTTP/2.
#[derive(Debug, Clone, Copy)]
pub struct ExceededConnections(pub Limit, pub usize);

/// The state that a connection shares with its running call, as connection data.
#[derive(Debug, Default)]
pub struct CallState {
    /// The bound on connections that this one is beyond, and its maximum.
    exceeded: Cell<Option<(Limit, usize)>>,
    /// Whether the connection ends with a response that precedes the end of its request.
    ending: Cell<bool>,
    running: Cell<bool>,
    body_open: Cell<bool>,
    body_chunks: Cell<u64>,
}

impl CallState {
    /// Records that a call starts, with a body or without; it ends when the returned guard is dropped.
    pub fn begin(self: &Rc<Self>, has_body: bool) -> RunningCall {
        self.running.set(true);
        self.body_open.set(has_body);
        RunningCall(Rc::clone(self))
    }

    /// Returns the bound on connections that this one is beyond, and its maximum: it is served probes only.
    pub fn exceeded(&self) -> Option<(Limit, usize)> {
        self.exceeded.get()
    }

    /// Records that the connection ends with the call's response, which is an error and precedes the end of the request.
    pub fn end_after_response(&self) {
        self.ending.set(true);
    }

    /// Records that the call has read a chunk of its body.
    pub fn read_chunk(&self) {
        self.body_chunks.set(self.body_chunks.get().wrapping_add(1));
    }

    /// Records that the call has read all of its body, or needs no more of it.
    pub fn finish_body(&self) {
        self.body_open.set(false);
    }
}

/// A running call.
#[derive(Debug)]
pub struct RunningCall(Rc<CallState>);

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.body_open.set(false);
    }
}

/// Serves a listener, with TLS if it is given; each thread has its own application.
///
/// # Errors
/// The listener cannot be used.
pub fn serve<F, I, S, B>(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    options: ConnectionOptions,
    connections: Connections,
    metrics: Arc<Metrics>,
    application: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request> + 'static,
    S: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = Error> + 'static,
    S::InitError: std::fmt::Debug,
    B: MessageBody + 'static,
{
    let builder = Server::build()
        .workers(options.workers)
        .shutdown_timeout(options.shutdown_timeout_s)
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let builder = builder.listen("http", listener, move || {
        let (application, tls, stopping) = (application.clone(), tls.clone(), stopping.clone());
        let admission = (connections.clone(), Arc::clone(&metrics));
        fn_factory(move || {
            let admission = admission.clone();
            let application = application().into_factory().new_service(AppConfig::default());
            let (tls, stopping) = (tls.clone(), stopping.clone());
            async move {
                let application = application.await.map_err(|error| {
                    tracing::error!(?error, "cannot start the application");
                })?;
                let application = Rc::new(application);
                let (shared, stopped) = (Rc::clone(&application), stopping.clone());
                let http1 = HttpService::build()
                    .graceful_shutdown_signal(move || {
                        let stopping = stopped.clone();
                        async move { stopping.notified().await }
                    })
                    .keep_alive(KeepAlive::Timeout(options.keep_alive.saturating_add(KEEP_ALIVE_GRACE)))
                    .client_request_timeout(options.request_timeout)
                    .client_disconnect_timeout(DISCONNECT_TIMEOUT)
                    .h1_allow_half_closed(true)
                    .on_connect_ext(|connection: &Connection, data| {
                        data.insert(Rc::clone(&connection.call));
                        if let Some(camera) = connection.stream.certified_camera() {
                            data.insert(camera);
                        }
                    })
                    .h1(fn_factory(move || ready(Ok::<_, ()>(Rc::clone(&shared)))));
                let http1 = Rc::new(http1.new_service(()).await?);
                Ok::<_, ()>(fn_service(move |stream: TcpStream| {
                    let (application, http1) = (Rc::clone(&application), Rc::clone(&http1));
                    let (tls, stopping) = (tls.clone(), stopping.clone());
                    let (connections, metrics) = admission.clone();
                    async move {
                        let peer = stream.peer_addr().ok();
                        let accepted = Instant::now();
                        // Admission precedes the handshake of TLS, which costs more than anything else that strangers
                        // can ask for.
                        let Some((guard, exceeded)) = admit(&connections, &metrics, peer) else {
                            return Ok(());
                        };
                        let patience = match exceeded {
                            Some(_) => options.request_timeout.min(SPARE_TIME),
                            None => options.request_timeout,
                        };
                        let transport = match &tls {
                            None => Transport::Clear(stream),
                            Some(tls) => match tls.accept(stream, patience).await {
                                Some(stream) => Transport::Tls(Box::new(stream)),
                                None => return Ok(()),
                            },
                        };
                        let is_http2 = transport.is_http2();
                        let end = exceeded.map(|_| accepted + SPARE_TIME);
                        let connection =
                            Connection::new(transport, guard, (exceeded, end), options.write_timeout);
                        if is_http2 {
                            let stopping = async move { stopping.notified().await };
                            let served = http2::serve(connection, peer, application, options, stopping).await;
                            served.map_err(|error| tracing::debug!(%error, "a connection failed"))
                        } else {
                            let served = http1.call((connection, peer)).await;
                            served.map_err(|error| tracing::debug!(%error, "a connection failed"))
                        }
                    }
                }))
            }
        })
    })?;
    Ok(builder.run())
}

/// Counts a new connection; returns `None` if it must be closed. A connection beyond the bound comes with that bound
/// and its maximum.
fn admit(
    connections: &Connections,
    metrics: &Metrics,
    peer: Option<SocketAddr>,
) -> Option<(ConnectionGuard, Option<(Limit, usize)>)> {
    let address = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
    let (guard, limit) = match connections.admit(address) {
        Admission::Served(guard) => return Some((guard, None)),
        Admission::ProbesOnly(guard, limit) => (Some(guard), limit),
        Admission::Refused(limit) => (None, limit),
    };
    metrics.rejected(Rejection::Exceeded(limit));
    guard.map(|guard| (guard, Some((limit, connections.max(limit)))))
}

/// The bytes of a connection, in clear or in TLS.
enum Transport {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Returns whether the connection uses HTTP/2.
    fn is_http2(&self) -> bool {
        match self {
            Self::Clear(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Returns the camera that the client's certificate authenticates.
    fn certified_camera(&self) -> Option<CertifiedCamera> {
        match self {
            Self::Clear(_) => None,
            Self::Tls(stream) => CertifiedCamera::of(stream.get_ref().1.peer_certificates()?.first()?),
        }
    }

    /// Returns the connection below TLS.
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Clear(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A client's connection.
struct Connection {
    stream: Transport,
    call: Rc<CallState>,
    /// Whether the client has closed its side, after the call's body was read.
    client_closed: bool,
    /// The number of chunks read when the client's side was found closed, and the number of polls since then without
    /// another chunk.
    idle: (u64, u32),
    early_byte: EarlyByte,
    write_timeout: Duration,
    /// The response that the client does not read as fast as it is sent, if any.
    stalled: Option<Stalled>,
    /// The end of a connection that is beyond the bound, or whose request was refused before its end.
    end: Option<Pin<Box<Sleep>>>,
    /// Counts the connection.
    _guard: ConnectionGuard,
}

/// A response that the client does not read as fast as it is sent.
struct Stalled {
    timeout: Pin<Box<Sleep>>,
    /// Bytes written since it began.
    written: usize,
}

/// The state of the response's first byte, which may be sent before the rest.
enum EarlyByte {
    Unsent,
    Sent(Pin<Box<Sleep>>),
}

impl Connection {
    fn new(
        stream: Transport,
        guard: ConnectionGuard,
        (exceeded, end): (Option<(Limit, usize)>, Option<Instant>),
        write_timeout: Duration,
    ) -> Self {
        let call = Rc::new(CallState { exceeded: Cell::new(exceeded), ..CallState::default() });
        Self {
            stream,
            call,
            client_closed: false,
            idle: (0, 0),
            early_byte: EarlyByte::Unsent,
            write_timeout,
            stalled: None,
            end: end.map(|end| Box::pin(tokio::time::sleep_until(end))),
            _guard: guard,
        }
    }

    /// Fails once the time of a connection that must end has passed.
    fn poll_end(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.call.ending.get() && !self.call.running.get() && self.end.is_none() {
            self.end = Some(Box::pin(tokio::time::sleep(SPARE_TIME)));
        }
        let ended = self.end.as_mut().is_some_and(|end| end.as_mut().poll(context).is_ready());
        if ended { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Writes to the client; fails if it has read too little for too long.
    fn poll_write_in_time(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_end(context)?;
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(Ok(written)) => {
                if let Some(stalled) = &mut self.stalled {
                    stalled.written = stalled.written.saturating_add(written);
                    // All bytes were written, or enough of them.
                    if written == bytes.len() || stalled.written >= MIN_WRITTEN {
                        self.stalled = None;
                    }
                }
                Poll::Ready(Ok(written))
            }
            Poll::Pending => {
                let timeout = self.write_timeout;
                let stalled = self.stalled.get_or_insert_with(|| Stalled {
                    timeout: Box::pin(tokio::time::sleep(timeout)),
                    written: 0,
                });
                task::ready!(stalled.timeout.as_mut().poll(context));
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client does not read the response",
                )))
            }
            failed => failed,
        }
    }

    /// Returns whether to report that the client has stopped sending. While a call reads its body, the report waits:
    /// actix-http would drop the part that it has not passed on.
    fn may_end(&mut self) -> bool {
        if !self.call.body_open.get() {
            return true;
        }
        let (read, polls) = self.idle;
        let now = self.call.body_chunks.get();
        self.idle = if read == now { (now, polls + 1) } else { (now, 0) };
        self.idle.1 > MAX_IDLE_POLLS
    }

    /// Fails if the client has left.
    fn poll_client(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.client_closed || !self.call.running.get() || self.call.body_open.get() {
            return Ok(());
        }
        if matches!(self.early_byte, EarlyByte::Unsent) {
            // Nagle's algorithm would delay the rest until this is acknowledged.
            self.stream.tcp().set_nodelay(true)?;
            match Pin::new(&mut self.stream).poll_write(context, b"H")? {
                Poll::Ready(1) => {
                    self.early_byte = EarlyByte::Sent(Box::pin(tokio::time::sleep(CHECK_INTERVAL)));
                    // TLS may hold its record back; if the socket is full, the next flush sends the rest.
                    let _ = Pin::new(&mut self.stream).poll_flush(context)?;
                }
                Poll::Ready(_) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Pending => return Ok(()),
            }
        }
        if let EarlyByte::Sent(wait) = &mut self.early_byte {
            while wait.as_mut().poll(context).is_ready() {
                if let Some(error) = self.stream.tcp().take_error()? {
                    return Err(error);
                }
                wait.set(tokio::time::sleep(CHECK_INTERVAL));
            }
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        this.poll_end(context)?;
        task::ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if buffer.filled().len() == before && buffer.remaining() > 0 {
            if !this.may_end() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            this.client_closed = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let rest = match (&this.early_byte, bytes.split_first()) {
            (EarlyByte::Sent(_), Some((b'H', rest))) => rest,
            (EarlyByte::Sent(_), Some(_)) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            _ => return this.poll_write_in_time(context, bytes),
        };
        // The first byte was sent before.
        let written = task::ready!(this.poll_write_in_time(context, rest))?;
        this.early_byte = EarlyByte::Unsent;
        this.client_closed = false;
        Poll::Ready(Ok(written + 1))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        task::ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        Poll::Ready(this.poll_client(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
