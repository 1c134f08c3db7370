//! Connections of clients: HTTP/1.1 over TCP, and whether anybody is left to answer.
//!
//! A client that has sent all that it will may close its side of the connection and wait for the answer (RFC 9112,
//! section 9.6), and one that has gone closes its side as well: at first, TCP tells the same of both. They are told apart
//! by the first byte of the answer, which is always the `H` of `HTTP/1.1`. It is sent as soon as a client has closed
//! its side while its call is under way: whoever waits gets it a little earlier than the rest, while the system of whoever
//! has gone refuses it, which ends the call where it is.

use std::{
    cell::Cell,
    future::Future as _,
    io,
    net::TcpListener,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::{HttpService, KeepAlive, Request};
use actix_server::Server;
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt as _, fn_service, map_config};
use actix_web::{
    Error,
    body::MessageBody,
    dev::{AppConfig, ServiceResponse},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

/// How a server treats its connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionOptions {
    /// Threads that speak HTTP.
    pub workers: usize,
    /// How long a request's head may take to arrive.
    pub request_timeout: Duration,
    /// For how long a connection without a request is kept at least.
    pub keep_alive: Duration,
    /// How long accepted requests get to end when the server stops, seconds.
    pub shutdown_timeout_s: u64,
}

/// How much longer a connection is kept than is announced: for requests that are on their way when the time ends.
const GRACE: Duration = Duration::from_secs(3);
/// How long a connection is read from whose answer came before the end of its request.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often is looked whether a client refused the beginning of its answer.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often in a row a call may be asked to go on with a body of which it takes nothing, before the end of the
/// client's sending counts as the end of the body.
const IDLE_TURNS: u32 = 16;

/// What a connection and the call under way on it tell each other. Calls find it as connection data.
#[derive(Debug, Default)]
pub struct CallState {
    running: Cell<bool>,
    body_open: Cell<bool>,
    body_chunks: Cell<u64>,
}

impl CallState {
    /// A call begins, with a body or without; it has ended once what is returned is dropped.
    pub fn begin(self: &Rc<Self>, has_body: bool) -> RunningCall {
        self.running.set(true);
        self.body_open.set(has_body);
        RunningCall(Rc::clone(self))
    }

    /// The call has taken some of its body.
    pub fn took_chunk(&self) {
        self.body_chunks.set(self.body_chunks.get().wrapping_add(1));
    }

    /// The call has taken all of its body.
    pub fn took_body(&self) {
        self.body_open.set(false);
    }
}

/// A call under way.
#[derive(Debug)]
pub struct RunningCall(Rc<CallState>);

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.body_open.set(false);
    }
}

/// A server on a listener; each of its threads has an application of its own.
///
/// # Errors
/// The listener cannot be used.
pub fn serve<F, I, S, B>(
    listener: TcpListener,
    options: ConnectionOptions,
    application: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
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
        let stopping = stopping.clone();
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .keep_alive(KeepAlive::Timeout(options.keep_alive.saturating_add(GRACE)))
            .client_request_timeout(options.request_timeout)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            .h1_allow_half_closed(true)
            .on_connect_ext(|connection: &Connection, data| {
                data.insert(Rc::clone(&connection.call));
            })
            .h1(map_config(application(), |()| AppConfig::default()));
        fn_service(|stream: TcpStream| async move {
            let peer = stream.peer_addr().ok();
            Ok((Connection::new(stream), peer))
        })
        .and_then(http)
    })?;
    Ok(builder.run())
}

/// A client's connection.
struct Connection {
    stream: TcpStream,
    call: Rc<CallState>,
    /// Whether the client has closed its side and the call's body was read.
    client_closed: bool,
    /// Chunks that the call had taken when its client's side was found closed, and how often nothing was taken since.
    idle: (u64, u32),
    knock: Knock,
}

/// What became of the first byte of an answer that was sent ahead of it.
enum Knock {
    NotYet,
    Sent(Pin<Box<Sleep>>),
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self { stream, call: Rc::default(), client_closed: false, idle: (0, 0), knock: Knock::NotYet }
    }

    /// Whether the end of the client's sending may be told. While a call reads its body, some of it may not have been
    /// handed on: at the end, what is left would be dropped.
    fn may_end(&mut self) -> bool {
        if !self.call.body_open.get() {
            return true;
        }
        let (taken, turns) = self.idle;
        let now = self.call.body_chunks.get();
        self.idle = if taken == now { (now, turns + 1) } else { (now, 0) };
        self.idle.1 > IDLE_TURNS
    }

    /// Whether the client is still there, as far as can be told.
    fn poll_client(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.client_closed || !self.call.running.get() || self.call.body_open.get() {
            return Ok(());
        }
        if matches!(self.knock, Knock::NotYet) {
            // The rest must not wait until this is acknowledged.
            self.stream.set_nodelay(true)?;
            match Pin::new(&mut self.stream).poll_write(context, b"H")? {
                Poll::Ready(1) => self.knock = Knock::Sent(Box::pin(tokio::time::sleep(LOOK_AGAIN))),
                Poll::Ready(_) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Pending => return Ok(()),
            }
        }
        if let Knock::Sent(wait) = &mut self.knock {
            while wait.as_mut().poll(context).is_ready() {
                if let Some(refused) = self.stream.take_error()? {
                    return Err(refused);
                }
                wait.set(tokio::time::sleep(LOOK_AGAIN));
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
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
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
        let rest = match (&this.knock, bytes.split_first()) {
            (Knock::Sent(_), Some((b'H', rest))) => rest,
            (Knock::Sent(_), Some(_)) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            _ => return Pin::new(&mut this.stream).poll_write(context, bytes),
        };
        // Its first byte is with the client already.
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, rest))?;
        this.knock = Knock::NotYet;
        this.client_closed = false;
        Poll::Ready(Ok(written + 1))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        Poll::Ready(this.poll_client(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
