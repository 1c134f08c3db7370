//! A small HTTP/1.1 server in the test's own process, which answers as the test says and keeps the requests.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

type Handler = Box<dyn FnMut(&Received) -> Answer + Send>;

struct Shared {
    handler: Mutex<Handler>,
    received: Mutex<Vec<Received>>,
    arrived: Condvar,
    connections: AtomicUsize,
    peers: Mutex<Vec<Vec<u8>>>,
}

#[derive(Clone, Debug)]
pub struct Received {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub parts: Vec<Part>,
    /// Bytes on the wire, head and body.
    pub bytes: usize,
    pub at: Instant,
}

#[derive(Clone, Debug)]
pub struct Part {
    pub name: String,
    pub file_name: Option<String>,
    pub content_type: Option<String>,
    pub body: Vec<u8>,
}

/// What the server answers.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: String,
    body: String,
    delay: Duration,
    hold: Option<Hold>,
    /// Closes the connection after so many bytes of the answer.
    cut: Option<usize>,
}

/// Keeps answers back until it is released.
#[derive(Clone, Debug, Default)]
pub struct Hold(Arc<(Mutex<bool>, Condvar)>);

impl Hold {
    /// Sends the answers that are held, and all later ones at once.
    pub fn release(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |released| !*released).unwrap());
    }
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: String::new(),
            body: String::new(),
            delay: Duration::ZERO,
            hold: None,
            cut: None,
        }
    }

    pub fn json(status: u16, body: &str) -> Self {
        Self { body: body.into(), ..Self::status(status) }.header("Content-Type", "application/json")
    }

    pub fn html(status: u16, body: &str) -> Self {
        Self { body: body.into(), ..Self::status(status) }.header("Content-Type", "text/html")
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends the answer only when the hold is released.
    pub fn held(mut self, hold: &Hold) -> Self {
        self.hold = Some(hold.clone());
        self
    }

    /// Closes the connection after so many bytes of the answer.
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

impl Received {
    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns the fields of this name, in the order of the form.
    pub fn all(&self, name: &str) -> Vec<String> {
        let parts = self.parts.iter().filter(|part| part.name == name);
        parts.map(|part| String::from_utf8(part.body.clone()).unwrap()).collect()
    }

    /// Returns the only field of this name.
    pub fn field(&self, name: &str) -> String {
        let mut all = self.all(name);
        assert_eq!(all.len(), 1, "fields named {name}");
        all.remove(0)
    }

    /// Returns the images.
    pub fn images(&self) -> Vec<Vec<u8>> {
        self.parts.iter().filter(|part| part.name == "image").map(|part| part.body.clone()).collect()
    }
}

impl Server {
    pub fn start(handler: impl FnMut(&Received) -> Answer + Send + 'static) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").unwrap(), None, handler)
    }

    /// Speaks TLS.
    pub fn start_tls(
        config: rustls::ServerConfig,
        handler: impl FnMut(&Received) -> Answer + Send + 'static,
    ) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").unwrap(), Some(Arc::new(config)), handler)
    }

    /// Starts at an address where nothing listened before.
    pub fn start_at(address: SocketAddr, handler: impl FnMut(&Received) -> Answer + Send + 'static) -> Self {
        Self::listen(TcpListener::bind(address).unwrap(), None, handler)
    }

    /// Answers with these in turn, and with the last of them for good.
    pub fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers: VecDeque<Answer> = answers.into_iter().collect();
        Self::start(
            move |_| {
                if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
            },
        )
    }

    fn listen(
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl FnMut(&Received) -> Answer + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            handler: Mutex::new(Box::new(handler)),
            received: Mutex::default(),
            arrived: Condvar::new(),
            connections: AtomicUsize::new(0),
            peers: Mutex::default(),
        });
        let server = Self { address: listener.local_addr().unwrap(), shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), shared, tls) = (stream, Arc::clone(&shared), tls.clone()) else { return };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || match tls {
                    None => serve(stream, &shared),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        let mut stream = rustls::StreamOwned::new(connection, stream);
                        // Where it fails, so does reading the request.
                        let _ = stream.conn.complete_io(&mut stream.sock);
                        let peer = stream.conn.peer_certificates().and_then(|chain| chain.first());
                        if let Some(peer) = peer {
                            shared.peers.lock().unwrap().push(peer.to_vec());
                        }
                        serve(stream, &shared);
                    }
                });
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Returns the certificates by which clients proved themselves, one for each connection, in DER.
    pub fn peers(&self) -> Vec<Vec<u8>> {
        self.shared.peers.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits for so many requests, a minute at most.
    pub fn wait_for(&self, requests: usize) -> Vec<Received> {
        let received = self.shared.received.lock().unwrap();
        let (received, wait) = self
            .shared
            .arrived
            .wait_timeout_while(received, Duration::from_secs(60), |received| received.len() < requests)
            .unwrap();
        assert!(!wait.timed_out(), "{} of {requests} requests after 60 s", received.len());
        received.clone()
    }
}

/// Returns an address where nothing listens.
pub fn dead_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn serve(stream: impl Read + Write, shared: &Shared) {
    let mut stream = BufReader::new(stream);
    while let Some(received) = read_request(&mut stream) {
        let answer = (shared.handler.lock().unwrap())(&received);
        shared.received.lock().unwrap().push(received);
        shared.arrived.notify_all();
        thread::sleep(answer.delay);
        let Answer { status, headers, body, hold, cut, .. } = answer;
        if let Some(hold) = hold {
            hold.wait();
        }
        let length =
            if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let text = format!("HTTP/1.1 {status} Told\r\n{headers}{length}\r\n{body}");
        let sent = &text.as_bytes()[..cut.unwrap_or(text.len())];
        if stream.get_mut().write_all(sent).and_then(|()| stream.get_mut().flush()).is_err() || cut.is_some()
        {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Received> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        head.push(line);
    }
    let value = |name: &str| {
        head.iter().find_map(|line| {
            let (key, value) = line.trim_end().split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let pairs = head.iter().skip(1).filter_map(|line| line.trim_end().split_once(": "));
    let headers = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut body = vec![0; value("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let parts = value("content-type")
        .and_then(|t| t.strip_prefix("multipart/form-data; boundary=").map(str::to_owned))
        .map_or_else(Vec::new, |boundary| parts(&body, &boundary));
    Some(Received {
        line: head[0].trim_end().to_owned(),
        headers,
        parts,
        bytes: head.iter().map(String::len).sum::<usize>() + 2 + body.len(),
        at: Instant::now(),
    })
}

fn parts(body: &[u8], boundary: &str) -> Vec<Part> {
    let delimiter = format!("--{boundary}");
    let starts: Vec<usize> =
        (0..body.len()).filter(|&at| body[at..].starts_with(delimiter.as_bytes())).collect();
    assert!(body[*starts.last().unwrap()..].ends_with(b"--\r\n"), "the form has no end");
    starts
        .windows(2)
        .map(|pair| {
            let part = &body[pair[0] + delimiter.len() + 2..pair[1] - 2];
            let split = part.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(part[..split].to_vec()).unwrap();
            let value = |after: &str| {
                let rest = head.split(after).nth(1)?;
                Some(rest.split([';', '\r']).next().unwrap().trim().to_owned())
            };
            let name = value(";name=").unwrap();
            let (file_name, content_type) = (value(";filename="), value("Content-Type:"));
            Part { name, file_name, content_type, body: part[split + 4..].to_vec() }
        })
        .collect()
}
