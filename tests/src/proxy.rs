//! An HTTP proxy for tests that holds back chosen requests, so that a test decides what happens while one is in flight.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// What a test may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Forwards requests to a backend and holds back those beyond a limit until they are released.
pub struct HoldingProxy {
    url: String,
    gate: Arc<Gate>,
}

struct Gate {
    /// Part of the request line of requests that count.
    request: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Requests that may still pass; none after the release.
    permits: Option<usize>,
    held: usize,
}

impl HoldingProxy {
    /// Starts a proxy for `backend` (`http://host:port`). Of the requests whose request line contains `request`, `permits`
    /// pass.
    pub fn start(backend: &str, request: &'static str, permits: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let backend = backend.trim_start_matches("http://").to_owned();
        let state = Mutex::new(State { permits: Some(permits), held: 0 });
        let gate = Arc::new(Gate { request, state, changed: Condvar::new() });
        let shared = Arc::clone(&gate);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (backend, gate) = (backend.clone(), Arc::clone(&shared));
                // A connection ends when either side closes it.
                thread::spawn(move || forward(&client, &backend, &gate));
            }
        });
        Self { url, gate }
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until a request is held back.
    #[track_caller]
    pub fn wait_until_holding(&self) {
        let state = self.gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .gate
            .changed
            .wait_timeout_while(state, TIMEOUT, |state| state.held == 0)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(state.held > 0, "no {} was held back after {TIMEOUT:?}", self.gate.request);
    }

    /// Lets all requests pass, held and future ones.
    pub fn release(&self) {
        self.gate.state.lock().unwrap_or_else(PoisonError::into_inner).permits = None;
        self.gate.changed.notify_all();
    }
}

impl Gate {
    /// Blocks while the request has to be held back.
    fn pass(&self, request_line: &str) {
        if !request_line.contains(self.request) {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.permits {
            None => {}
            Some(0) => {
                state.held += 1;
                self.changed.notify_all();
                let released = self.changed.wait_while(state, |state| state.permits.is_some());
                drop(released.unwrap_or_else(PoisonError::into_inner));
            }
            Some(permits) => *permits -= 1,
        }
    }
}

/// Forwards the requests of a connection, one after the other, and the responses as they come.
fn forward(client: &TcpStream, backend: &str, gate: &Gate) -> io::Result<()> {
    let mut server = TcpStream::connect(backend)?;
    let (mut responses, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut responses, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Both);
    });
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let start = head.len();
            if requests.read_line(&mut head)? == 0 {
                return server.shutdown(std::net::Shutdown::Both);
            }
            let line = head.get(start..).unwrap_or_default().trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        gate.pass(head.lines().next().unwrap_or_default());
        server.write_all(head.as_bytes())?;
        io::copy(&mut requests.by_ref().take(length), &mut server)?;
    }
}
