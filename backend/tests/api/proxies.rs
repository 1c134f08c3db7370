//! The shipped configurations of proxies log no names: no path, no query and no referrer.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use facepipe_test_support::{free_port, workspace_root};
use serde_json::Value;

use crate::helpers::{files_below, start};

/// A running nginx, stopped when dropped.
pub struct Nginx(Child);

impl Nginx {
    /// Starts nginx with the content of its `http` block, and waits until it listens on the port.
    pub fn start(folder: &Path, http: &str, port: u16) -> Self {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()))
            .collect();
        let main = folder.join("main.conf");
        let text = format!(
            "worker_processes 1; pid {folder}/nginx.pid; events {{}} http {{ access_log off; {temporary} {http} }}",
            folder = folder.display()
        );
        fs::write(&main, text).unwrap();
        Self::start_main(folder, &main, port)
    }

    /// Starts nginx with a whole configuration.
    pub fn start_main(folder: &Path, main: &Path, port: u16) -> Self {
        let mut command = Command::new("/usr/sbin/nginx");
        // Workers of another user could not write below the test's folder.
        command.arg("-g").arg("daemon off; user root root;");
        command.arg("-e").arg(folder.join("main.log")).arg("-c").arg(main);
        let mut nginx =
            Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || fs::read_to_string(folder.join("main.log")).unwrap_or_default();
            assert!(nginx.0.try_wait().unwrap().is_none(), "nginx ended: {}", log());
            assert!(begun.elapsed() < Duration::from_secs(20), "nginx does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGQUIT ends its workers, too; SIGKILL would not.
        let _ = Command::new("kill").args(["-s", "QUIT"]).arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// A shipped configuration with a test's ports, server and folder.
fn adapted(file: &str, folder: &Path, port: u16, server: &str) -> String {
    let text = fs::read_to_string(workspace_root().join(file)).unwrap();
    let server = server.strip_prefix("http://").unwrap();
    let mut adapted = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if ["listen [::]", "ssl_certificate", "include resolver.conf", "listen 80"]
            .iter()
            .any(|s| trimmed.starts_with(s))
        {
            // The plain-text server gets its own port; no test uses TLS.
            if trimmed == "listen 80;" {
                adapted.push_str(&format!("listen 127.0.0.1:{};\n", free_port()));
            }
            if trimmed == "listen 8080;" {
                adapted.push_str(&format!("listen 127.0.0.1:{port};\n"));
            }
            continue;
        }
        let line = match trimmed.split_whitespace().collect::<Vec<_>>()[..] {
            ["listen", "443", "ssl;"] => format!("listen 127.0.0.1:{port};"),
            ["server", "backend:8080", ..] | ["server", "127.0.0.1:8080;"] => format!("server {server};"),
            // Needs name resolution.
            ["zone", ..] => String::new(),
            // After a refused body nginx waits 5 s for the rest of it.
            ["send_timeout", _] => format!("{line} lingering_timeout 100ms;"),
            _ => line.to_owned(),
        };
        adapted.push_str(&line);
        adapted.push('\n');
    }
    let folder = folder.display();
    adapted
        .replace("/tmp/", &format!("{folder}/"))
        .replace("/dev/stdout", &format!("{folder}/access.log"))
        .replace("/dev/stderr", &format!("{folder}/main.log"))
        .replace("/var/log/nginx/facepipe.log", &format!("{folder}/access.log"))
}

/// Sends a request, and ignores the response.
fn send(port: u16, request: &str) {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 "), "{request}: {}", answer.escape_ascii());
}

/// The logs of nginx after requests with names that fail in many ways, and the number of requests.
fn logs(file: &str, server: &str, change: impl Fn(String) -> String) -> (Vec<(PathBuf, String)>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut requests = 0;
    // One server that responds, and none.
    for (server, name) in [(server, "up"), (&format!("http://127.0.0.1:{}", free_port())[..], "down")] {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        let port = free_port();
        let text = change(adapted(file, &folder, port, server));
        let _nginx = if text.contains("events {") {
            let main = folder.join("nginx.conf");
            fs::write(&main, text).unwrap();
            Nginx::start_main(&folder, &main, port)
        } else {
            Nginx::start(&folder, &text, port)
        };
        let close = "Host: faces.example.com\r\nConnection: close\r\n";
        for request in [
            format!(
                "GET /dataset/Colin_Powell HTTP/1.1\r\n{close}Referer: http://x/dataset/Colin_Powell\r\n\r\n"
            ),
            format!("GET /database/detections?person=Colin_Powell HTTP/1.1\r\n{close}\r\n"),
            format!("POST /dataset/Colin_Powell/image HTTP/1.1\r\n{close}Content-Length: 999999999\r\n\r\n"),
            format!("GET /dataset/Colin_Powell HTTP/9.9\r\n{close}\r\n"),
            format!("GET /dataset/Colin_Powell HTTP/1.1\r\n{close}Bad\u{1}Header\r\n\r\n"),
            format!("GET /dataset/Colin_Powell?{} HTTP/1.1\r\n{close}\r\n", "x".repeat(40_000)),
        ] {
            send(port, &request);
            requests += 1;
        }
    }
    let written =
        files_below(folder.path()).into_iter().filter(|file| file.extension().is_some_and(|e| e == "log"));
    (written.map(|file| (file.clone(), fs::read_to_string(&file).unwrap())).collect(), requests)
}

#[tokio::test]
async fn logs_of_the_shipped_nginx_have_no_names() {
    let server = start!();
    let url = server.url.clone();
    let watched = tokio::task::spawn_blocking(move || {
        for file in ["deploy/nginx/nginx.conf", "deploy/nginx/virtual-machine.conf"] {
            let (written, requests) = logs(file, &url, |text| text);
            let mut lines = 0;
            for (log, text) in written {
                assert!(
                    !text.contains("Powell") && !text.contains("dataset"),
                    "{file}, {}:\n{text}",
                    log.display()
                );
                if log.ends_with("access.log") {
                    for line in text.lines() {
                        let line: Value = serde_json::from_str(line).unwrap();
                        assert!(line["status"].as_u64() > Some(0), "{line}");
                        lines += 1;
                    }
                }
            }
            assert_eq!(lines, requests, "{file}");
            // nginx's error log would have the names of such requests.
            let (written, _) = logs(file, &url, |text| {
                assert!(text.contains("error_log /dev/null emerg;"), "{file}");
                text.replace("error_log /dev/null emerg;", "error_log ERRORS info;")
                    .replace("ERRORS", &format!("{}/errors.log", tempfile_of(&text)))
            });
            assert!(written.iter().any(|(_, text)| text.contains("Colin_Powell")), "{file}");
        }
    });
    watched.await.unwrap();
}

/// The folder of an adapted configuration's files.
fn tempfile_of(text: &str) -> String {
    let log = text.split_whitespace().find(|word| word.ends_with("/access.log")).unwrap();
    log.strip_suffix("/access.log").unwrap().to_owned()
}

/// The variables with a request's path, query or referrer.
const TELLING: [&str; 11] = [
    "$request ",
    "$request\"",
    "$request'",
    "$request_uri",
    "$uri",
    "$document_uri",
    "$args",
    "$query_string",
    "$http_referer",
    "$request_filename",
    "$upstream_http_location",
];

#[test]
fn no_configuration_of_a_proxy_logs_a_path() {
    let root = workspace_root();
    let shipped = ["deploy", "docs", "jetson", "pipelines"].map(|folder| files_below(&root.join(folder)));
    let (mut nginx, mut ingresses) = (0, 0);
    for file in shipped.into_iter().flatten().chain([root.join("README.md")]) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let place = file.display();
        for format in text.split("log_format ").skip(1).map(|rest| rest.split(';').next().unwrap()) {
            let format = format!("{format} ");
            assert!(!TELLING.iter().any(|name| format.contains(name)), "{place}: log_format {format}");
        }
        for log in text.lines().map(str::trim).filter(|line| line.starts_with("access_log ")) {
            assert!(log == "access_log off;" || log.ends_with(" facepipe;"), "{place}: {log}");
        }
        // Directives, and not a sentence about them.
        let proxies = text.lines().any(|line| line.trim().starts_with("proxy_pass "));
        if proxies {
            nginx += 1;
            let servers = text.lines().filter(|line| line.trim() == "server {").count();
            let silent =
                |directive: &str| text.lines().filter(|line| line.trim().starts_with(directive)).count();
            let within_http = text.contains("http {");
            let wanted = if within_http { 1 } else { servers };
            assert!(silent("access_log ") >= wanted, "{place}: a server without access_log");
            assert!(
                silent("error_log /dev/null emerg;") >= wanted,
                "{place}: a server whose error_log names paths"
            );
        }
        if text.lines().any(|line| line == "kind: Ingress") {
            ingresses += 1;
            assert!(
                text.contains("nginx.ingress.kubernetes.io/enable-access-log: \"false\""),
                "{place}: the Ingress has its requests logged"
            );
        }
    }
    assert!(nginx >= 2 && ingresses >= 1, "{nginx} of nginx, {ingresses} of Kubernetes");
}
