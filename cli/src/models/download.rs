//! Resumable HTTP downloads: partial content is kept in a `.part` file.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use gstfacepipe::upload::parse_retry_after;
use reqwest::{
    StatusCode, Url,
    blocking::{Client, Response},
    header,
};
use time::OffsetDateTime;

use super::{manifest::Expected, progress::Progress};

/// Connection timeout; short, so that an offline machine does not wait for each host in turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Read timeout.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Delays before further attempts after a transient error.
const BACK_OFF: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// Longest `Retry-After` that is honoured; longer ones count as a failure.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Downloads files and remembers unreachable hosts, so that each is waited for only once.
#[derive(Default)]
pub struct Downloader {
    client: Option<Client>,
    unreachable: HashMap<String, String>,
    reached: HashSet<String>,
}

/// A completed download in the `.part` file.
pub struct Downloaded {
    /// Whether it continued an earlier attempt.
    pub resumed: bool,
}

/// Why one attempt failed.
enum DownloadError {
    /// Permanent failure.
    Final(String),
    /// Transient failure, with the delay that the server requested.
    Transient(String, Option<Duration>),
    /// The host is unreachable.
    Unreachable(String),
    /// The host accepted a connection but does not respond.
    Silent(String),
    /// The connection failed at once; possibly a temporary problem of DNS or the host.
    Refused(String),
}

impl Downloader {
    /// Downloads `url` to `part`, continuing existing content. `label` names it in progress output.
    ///
    /// # Errors
    /// A message with the host; `part` is then resumable or removed.
    pub fn download(
        &mut self,
        url: &str,
        label: &str,
        part: &Path,
        expected: &Expected,
    ) -> Result<Downloaded, String> {
        self.with_retries(url, |this, url| this.attempt(url, label, part, expected))
    }

    /// Fetches a text of at most `limit` bytes. Returns the final address after redirects, the content type and the text.
    ///
    /// # Errors
    /// A message with the host.
    pub fn text(&mut self, url: &str, accept: &str, limit: u64) -> Result<(Url, String, String), String> {
        self.with_retries(url, |this, url| {
            let request = this.client()?.get(url.clone()).header(header::ACCEPT, accept);
            let response = request.send().map_err(|e| classify(&e))?;
            if response.status() != StatusCode::OK {
                return Err(http_error(response.status(), &response));
            }
            let found = response.url().clone();
            let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let content_type = content_type.unwrap_or_default().to_owned();
            let mut text = String::new();
            let read = response.take(limit + 1).read_to_string(&mut text);
            let read = read.map_err(|e| DownloadError::Transient(innermost_causes(&e), None))?;
            if u64::try_from(read).is_ok_and(|read| read > limit) {
                return Err(DownloadError::Final(format!("sends more than {limit} bytes")));
            }
            Ok((found, content_type, text))
        })
    }

    /// Checks that the host of `url` accepts connections, before starting a program that would wait much longer for it.
    /// Neither the response nor trust in the certificate matters.
    ///
    /// # Errors
    /// A message with the host.
    pub fn check_reachable(&mut self, url: &str) -> Result<(), String> {
        let known = Url::parse(url).ok().is_some_and(|url| self.reached.contains(&host(&url)));
        if known {
            return Ok(());
        }
        self.with_retries(url, |this, url| {
            match this.client()?.head(url.clone()).send() {
                Err(error) if error.is_connect() && !is_tls_error(&error) => return Err(classify(&error)),
                _ => {}
            }
            this.reached.insert(host(url));
            Ok(())
        })
    }

    /// Retries transient failures. A host that keeps failing is marked unreachable for later files.
    fn with_retries<T>(
        &mut self,
        url: &str,
        attempt: impl Fn(&mut Self, &Url) -> Result<T, DownloadError>,
    ) -> Result<T, String> {
        let url = Url::parse(url).map_err(|e| format!("{url}: {e}"))?;
        let host = host(&url);
        if let Some(why) = self.unreachable.get(&host) {
            return Err(format!("{host}: {why}"));
        }
        let mut waits = BACK_OFF.iter();
        let mut refused_before = false;
        let mut silent_before = false;
        loop {
            let error = match attempt(self, &url) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let (problem, wait) = match error {
                DownloadError::Final(problem) => return Err(format!("{host}: {problem}")),
                DownloadError::Refused(problem) if !refused_before => {
                    refused_before = true;
                    (problem, None)
                }
                DownloadError::Silent(problem) if !silent_before => {
                    silent_before = true;
                    (problem, None)
                }
                DownloadError::Unreachable(problem)
                | DownloadError::Refused(problem)
                | DownloadError::Silent(problem) => {
                    self.unreachable.insert(host.clone(), problem.clone());
                    return Err(format!("{host}: {problem}"));
                }
                DownloadError::Transient(problem, wait) => (problem, wait),
            };
            match waits.next() {
                // A date may have passed by this machine's clock; nothing is repeated without a pause.
                Some(back_off) => thread::sleep(wait.unwrap_or_default().max(*back_off)),
                // The next file would fare the same.
                None => {
                    self.unreachable.insert(host.clone(), problem.clone());
                    return Err(format!("{host}: {problem} ({} attempts)", BACK_OFF.len() + 1));
                }
            }
        }
    }

    fn client(&mut self) -> Result<&Client, DownloadError> {
        if self.client.is_none() {
            let builder = Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(READ_TIMEOUT)
                .user_agent(concat!("facepipe/", env!("CARGO_PKG_VERSION")));
            // The usual cause is a system without root certificates.
            let client = builder.build().map_err(|e| {
                DownloadError::Final(format!(
                    "no TLS: {} (is the package ca-certificates installed?)",
                    innermost_causes(&e)
                ))
            })?;
            self.client = Some(client);
        }
        self.client.as_ref().ok_or_else(|| DownloadError::Final("no HTTP client".into()))
    }

    fn attempt(
        &mut self,
        url: &Url,
        label: &str,
        part: &Path,
        expected: &Expected,
    ) -> Result<Downloaded, DownloadError> {
        let mut resume = Resume::from_part(part, expected);
        let mut response = self.request(url, &resume)?;

        let continues = response.status() == StatusCode::PARTIAL_CONTENT && resume.is_continued_by(&response);
        if resume.offset > 0 && !continues {
            // The server does not continue the part: start over.
            resume.discard().map_err(|e| write_error(part, &e))?;
            if response.status() != StatusCode::OK {
                response = self.request(url, &resume)?;
            }
        }
        match response.status() {
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if continues => {}
            status => return Err(http_error(status, &response)),
        }

        resume.save_tag(&response).map_err(|e| write_error(part, &e))?;
        let total = response.content_length().map(|rest| rest + resume.offset).or(expected.bytes);
        let mut progress = Progress::new(label.to_owned(), total);
        let received = receive(response, part, &resume, &mut progress, expected.bytes);
        progress.end(received.as_ref().is_ok_and(|received| total.is_none_or(|total| *received >= total)));
        let received = received?;
        if let Some(total) = total
            && received < total
        {
            return Err(DownloadError::Transient(format!("ended after {received} of {total} bytes"), None));
        }
        resume.remove_tag();
        Ok(Downloaded { resumed: resume.offset > 0 })
    }

    fn request(&mut self, url: &Url, resume: &Resume) -> Result<Response, DownloadError> {
        let mut request = self.client()?.get(url.clone());
        if resume.offset > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", resume.offset));
            if let Some(tag) = &resume.tag {
                request = request.header(header::IF_RANGE, tag);
            }
        }
        request.send().map_err(|e| classify(&e))
    }
}

/// State of an earlier, partial download.
struct Resume {
    part: PathBuf,
    offset: u64,
    /// ETag of the part. Without it or a pinned hash, parts of two versions could be mixed.
    tag: Option<String>,
}

impl Resume {
    fn from_part(part: &Path, expected: &Expected) -> Self {
        let length = fs::metadata(part).map_or(0, |m| m.len());
        let mut resume = Self { part: part.into(), offset: length, tag: None };
        resume.tag = fs::read_to_string(resume.tag_path()).ok().filter(|tag| !tag.is_empty());
        let sure = expected.sha256.is_some() || resume.tag.is_some();
        // A part as long as the whole file would have been renamed: it is of another file.
        if !sure || expected.bytes.is_some_and(|bytes| length >= bytes) {
            resume.offset = 0;
        }
        resume
    }

    /// Returns whether a partial response starts where the part ends (RFC 9110, 14.4).
    fn is_continued_by(&self, response: &Response) -> bool {
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let first = range.and_then(|r| r.strip_prefix("bytes ")).and_then(|r| r.split('-').next());
        first.and_then(|f| f.trim().parse().ok()) == Some(self.offset)
    }

    fn discard(&mut self) -> io::Result<()> {
        self.offset = 0;
        self.tag = None;
        self.remove_tag();
        match fs::remove_file(&self.part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Saves the ETag of a fresh download if it is a strong one.
    fn save_tag(&self, response: &Response) -> io::Result<()> {
        if self.offset > 0 {
            return Ok(());
        }
        let tag = response.headers().get(header::ETAG).and_then(|value| value.to_str().ok());
        match tag.filter(|tag| tag.starts_with('"')) {
            Some(tag) => fs::write(self.tag_path(), tag),
            None => {
                self.remove_tag();
                Ok(())
            }
        }
    }

    fn remove_tag(&self) {
        // A leftover only causes a request that is answered in full.
        let _ = fs::remove_file(self.tag_path());
    }

    fn tag_path(&self) -> PathBuf {
        self.part.with_added_extension("etag")
    }
}

/// Appends the body to the part. Returns the size of the part.
fn receive(
    mut response: Response,
    part: &Path,
    resume: &Resume,
    progress: &mut Progress,
    limit: Option<u64>,
) -> Result<u64, DownloadError> {
    let open = OpenOptions::new().create(true).write(true).truncate(resume.offset == 0).open(part);
    let mut file: File = open.map_err(|e| write_error(part, &e))?;
    file.seek(io::SeekFrom::Start(resume.offset)).map_err(|e| write_error(part, &e))?;

    let mut received = resume.offset;
    let mut block = vec![0; 1 << 16];
    let done = loop {
        progress.set(received);
        let length = match response.read(&mut block) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let problem = format!("broke off after {received} bytes: {}", innermost_causes(&error));
                break Err(DownloadError::Transient(problem, None));
            }
        };
        let bytes = block.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            break Ok(received);
        }
        received += bytes.len() as u64;
        if let Some(limit) = limit
            && received > limit
        {
            break Err(DownloadError::Final(format!("expected {limit} bytes, found more")));
        }
        if let Err(error) = file.write_all(bytes) {
            break Err(write_error(part, &error));
        }
    };
    if let Err(DownloadError::Final(_)) = done {
        let _ = fs::remove_file(part);
        resume.remove_tag();
    }
    done
}

fn http_error(status: StatusCode, response: &Response) -> DownloadError {
    let problem = format!("HTTP {status}");
    let transient = status.is_server_error()
        || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
    if !transient {
        return DownloadError::Final(problem);
    }
    match parse_retry_after(response.headers(), OffsetDateTime::now_utc()) {
        Some(wait) if wait > MAX_RETRY_AFTER => {
            DownloadError::Unreachable(format!("{problem}, retry after {} s", wait.as_secs()))
        }
        wait => DownloadError::Transient(problem, wait),
    }
}

fn write_error(path: &Path, error: &io::Error) -> DownloadError {
    DownloadError::Final(format!("cannot write {}: {error}", path.display()))
}

/// Returns host and port.
fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or("no host");
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

/// Returns whether the TCP connection succeeded and only TLS failed.
fn is_tls_error(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if error.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn classify(error: &reqwest::Error) -> DownloadError {
    let problem = innermost_causes(error);
    match (error.is_connect(), error.is_timeout()) {
        (true, true) => DownloadError::Unreachable(problem),
        (true, false) => DownloadError::Refused(problem),
        (false, true) => DownloadError::Silent(problem),
        (false, false) => DownloadError::Transient(problem, None),
    }
}

/// Formats the two innermost causes of an error; reqwest's own text is only "error sending request".
fn innermost_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    match texts.as_slice() {
        [.., outer, inner] if !outer.contains(inner.as_str()) => format!("{outer}: {inner}"),
        [.., outer, _] => outer.clone(),
        [only] => only.clone(),
        [] => "no reason given".into(),
    }
}
