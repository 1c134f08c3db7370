//! HTTP/2 over TLS. Not by actix-http, which calls on for clients that have left, and closes connections without notice when
//! the server stops.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use actix_http::{BoxedPayloadStream, HttpMessage as _, Payload, Request, Response};
use actix_service::Service;
use actix_web::{
    Error,
    body::{BodySize, BoxBody, MessageBody},
    dev::ServiceResponse,
    error::PayloadError,
    http::{
        Method, StatusCode, Uri, Version,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};
use bytes::Bytes;
use futures_util::Stream;
use h2::{
    RecvStream, SendStream,
    server::{Builder, SendResponse},
};
use tokio::time::{Instant, Sleep};

use crate::tls::CertifiedCamera;

use super::{
    Connection, ConnectionOptions, DISCONNECT_TIMEOUT, ExceededConnections, KEEP_ALIVE_GRACE, MIN_WRITTEN,
};

/// Maximum number of requests that a connection has at a time.
const MAX_STREAMS: u32 = 128;
/// How many bytes of a request's body a client may send ahead of the handler.
const STREAM_WINDOW: u32 = 1 << 20;
/// How many bytes of all bodies of a connection a client may send ahead of the handlers.
const CONNECTION_WINDOW: u32 = 1 << 21;
/// Maximum size of a request's headers, bytes.
const MAX_HEADERS: u32 = 64 << 10;
/// How much of a response is buffered for a client that does not read it, bytes.
const SEND_BUFFER: usize = 64 << 10;

/// Serves a connection until its client closes it, it was idle for too long, or the server has stopped and all requests are
/// answered.
///
/// # Errors
/// The client does not follow the protocol, or has left during a request.
pub async fn serve<S, B>(
    stream: Connection,
    peer: Option<SocketAddr>,
    application: Rc<S>,
    options: ConnectionOptions,
    stopping: impl Future<Output = ()>,
) -> Result<(), h2::Error>
where
    S: Service<Request, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    let camera = stream.stream.certified_camera();
    let exceeded = stream.call.exceeded().map(|(limit, max)| ExceededConnections(limit, max));
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER);
    let handshake = builder.handshake::<_, Bytes>(stream);
    let Ok(connection) = tokio::time::timeout(options.request_timeout, handshake).await else {
        return Ok(());
    };
    let mut connection = connection?;
    let mut stopping = pin!(stopping);
    let mut closing = false;
    let patience = options.keep_alive.saturating_add(KEEP_ALIVE_GRACE);
    let mut idle = pin!(tokio::time::sleep(patience));
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, respond) = accepted?;
                restart(idle.as_mut(), if closing { DISCONNECT_TIMEOUT } else { patience });
                tokio::task::spawn_local(answer(
                    request,
                    respond,
                    (peer, exceeded),
                    camera.clone(),
                    Rc::clone(&application),
                    options.write_timeout,
                ));
            }
            () = &mut stopping, if !closing => {
                closing = true;
                connection.graceful_shutdown();
                restart(idle.as_mut(), DISCONNECT_TIMEOUT);
            }
            () = idle.as_mut() => {
                if connection.has_streams() {
                    restart(idle.as_mut(), if closing { DISCONNECT_TIMEOUT } else { patience });
                } else if closing {
                    // The client does not confirm that it sends no more requests.
                    return Ok(());
                } else {
                    closing = true;
                    connection.graceful_shutdown();
                    restart(idle.as_mut(), DISCONNECT_TIMEOUT);
                }
            }
        }
    }
}

fn restart(timer: Pin<&mut Sleep>, duration: Duration) {
    timer.reset(Instant::now() + duration);
}

/// Calls the application and sends its response. A client that resets the request, or closes the connection, ends the call.
async fn answer<S, B>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (peer, exceeded): (Option<SocketAddr>, Option<ExceededConnections>),
    camera: Option<CertifiedCamera>,
    application: Rc<S>,
    write_timeout: Duration,
) where
    S: Service<Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let is_head = request.method() == http::Method::HEAD;
    let Some(request) = read_request(request, peer) else {
        respond.send_reset(h2::Reason::PROTOCOL_ERROR);
        return;
    };
    if let Some(camera) = camera {
        request.extensions_mut().insert(camera);
    }
    if let Some(exceeded) = exceeded {
        request.extensions_mut().insert(exceeded);
    }
    let outcome = tokio::select! {
        biased;
        _ = poll_fn(|context| respond.poll_reset(context)) => return,
        outcome = application.call(request) => outcome,
    };
    let sent = match outcome {
        Ok(response) => send(response.into(), &mut respond, is_head, write_timeout).await,
        Err(error) => {
            let response: Response<BoxBody> = error.into();
            send(response, &mut respond, is_head, write_timeout).await
        }
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "a response was not sent to its end");
    }
}

/// Converts a request to what HTTP/1.1 has for it: the path alone as its target, `Host`, one `Cookie`.
fn read_request(request: http::Request<RecvStream>, peer: Option<SocketAddr>) -> Option<Request> {
    let (parts, body) = request.into_parts();
    let payload: Payload<BoxedPayloadStream> =
        if body.is_end_stream() { Payload::None } else { Payload::Stream { payload: Box::pin(Body(body)) } };
    let mut request = Request::with_payload(payload);
    let head = request.head_mut();
    head.peer_addr = peer;
    head.version = Version::HTTP_2;
    head.method = Method::from_bytes(parts.method.as_str().as_bytes()).ok()?;
    head.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>().ok()?;
    for (name, value) in &parts.headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        head.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    if let Some(authority) = parts.uri.authority() {
        // `:authority` takes precedence over `Host` (RFC 9113, section 8.3.1).
        head.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str()).ok()?);
    }
    join_cookies(&mut head.headers)?;
    Some(request)
}

/// Joins the fields that a client may have split `Cookie` into (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Option<()> {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let cookie = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).ok()?;
        headers.insert(header::COOKIE, cookie);
    }
    Some(())
}

/// The body of a request. A client may send more once a chunk was read.
struct Body(RecvStream);

impl Stream for Body {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let failed = |error: h2::Error| {
            PayloadError::Incomplete(Some(io::Error::new(io::ErrorKind::UnexpectedEof, error)))
        };
        let Some(chunk) = ready!(self.0.poll_data(context)) else { return Poll::Ready(None) };
        let chunk = chunk.and_then(|chunk| {
            self.0.flow_control().release_capacity(chunk.len())?;
            Ok(chunk)
        });
        Poll::Ready(Some(chunk.map_err(failed)))
    }
}

/// Why a response was not sent to its end.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("its head is malformed: {0}")]
    Head(#[from] http::Error),
    #[error(transparent)]
    Connection(#[from] h2::Error),
    #[error("its body failed: {0}")]
    Body(String),
    #[error("the client has left")]
    Left,
    #[error("the client read nothing for {} s", .0.as_secs())]
    Timeout(Duration),
}

async fn send<B: MessageBody>(
    response: Response<B>,
    respond: &mut SendResponse<Bytes>,
    is_head: bool,
    write_timeout: Duration,
) -> Result<(), SendError> {
    let (response, body) = response.into_parts();
    let size = body.size();
    let head = write_head(response.status(), response.headers(), size)?;
    let has_body = !(is_head || size.is_eof() || response.status() == StatusCode::NO_CONTENT);
    let mut stream = respond.send_response(head, !has_body)?;
    if !has_body {
        return Ok(());
    }
    let mut body = pin!(body);
    loop {
        let next = poll_fn(|context| {
            if let Poll::Ready(chunk) = body.as_mut().poll_next(context) {
                return Poll::Ready(Some(chunk));
            }
            stream.poll_reset(context).map(|_| None)
        });
        match next.await {
            None => return Err(SendError::Left),
            Some(None) => break,
            Some(Some(Err(error))) => {
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
                return Err(SendError::Body(error.into().to_string()));
            }
            Some(Some(Ok(chunk))) => send_chunk(chunk, &mut stream, write_timeout).await?,
        }
    }
    stream.send_data(Bytes::new(), true)?;
    Ok(())
}

/// Sends a chunk as the client makes room for it: for [`MIN_WRITTEN`] bytes, or the rest of the chunk, within the timeout.
async fn send_chunk(
    mut chunk: Bytes,
    stream: &mut SendStream<Bytes>,
    write_timeout: Duration,
) -> Result<(), SendError> {
    let (mut deadline, mut written) = (Instant::now() + write_timeout, 0_usize);
    while !chunk.is_empty() {
        stream.reserve_capacity(chunk.len().min(SEND_BUFFER));
        let capacity = poll_fn(|context| stream.poll_capacity(context));
        let Ok(capacity) = tokio::time::timeout_at(deadline, capacity).await else {
            stream.send_reset(h2::Reason::CANCEL);
            return Err(SendError::Timeout(write_timeout));
        };
        let capacity = capacity.ok_or(SendError::Left)??;
        let part = chunk.split_to(capacity.min(chunk.len()));
        written = written.saturating_add(part.len());
        if written >= MIN_WRITTEN {
            (deadline, written) = (Instant::now() + write_timeout, 0);
        }
        stream.send_data(part, false)?;
    }
    Ok(())
}

/// Converts the head of a response, without what concerns connections of HTTP/1.1 (RFC 9113, section 8.2.2).
fn write_head(
    status: StatusCode,
    headers: &HeaderMap,
    size: BodySize,
) -> Result<http::Response<()>, http::Error> {
    let mut head = http::Response::builder().status(status.as_u16());
    for (name, value) in headers {
        let concerns_connection = matches!(
            name.as_str(),
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
        );
        if !concerns_connection && (*name != header::CONTENT_LENGTH || size == BodySize::Stream) {
            head = head.header(name.as_str(), value.as_bytes());
        }
    }
    if let BodySize::Sized(length) = size {
        head = head.header(http::header::CONTENT_LENGTH, length);
    }
    if !headers.contains_key(header::DATE) {
        head = head.header(http::header::DATE, header::HttpDate::from(SystemTime::now()).to_string());
    }
    head.body(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_reads_a_byte_now_and_then_does_not_keep_its_response() {
        let (client, server) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let mut builder = h2::client::Builder::new();
            let (requests, connection) =
                builder.initial_window_size(2).handshake::<_, Bytes>(client).await.unwrap();
            tokio::spawn(connection);
            let request = http::Request::get("http://localhost/").body(()).unwrap();
            let (response, _) = requests.ready().await.unwrap().send_request(request, true).unwrap();
            let mut body = response.await.unwrap().into_body();
            while let Some(Ok(bytes)) = body.data().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if body.flow_control().release_capacity(bytes.len()).is_err() {
                    break;
                }
            }
        });
        let mut connection = h2::server::handshake(server).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
        // Sending would take two seconds, without a long pause.
        let sent = send_chunk(Bytes::from(vec![7_u8; 200]), &mut stream, Duration::from_millis(200)).await;
        assert!(matches!(sent, Err(SendError::Timeout(_))), "{sent:?}");
    }
}
