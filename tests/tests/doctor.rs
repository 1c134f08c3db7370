//! `facepipe doctor` on complete and incomplete machines.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use facepipe_test_support::{models_dir, require};
use facepipe_tests::{Backend, build_dir, program, require_backend_weights};
use serde_json::Value;

mod setup;

/// Runs it with or without the plugin on the path.
fn doctor(folder: &Path, with_plugin: bool, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let plugins = folder.join("plugins");
    fs::create_dir_all(&plugins).unwrap();
    if with_plugin {
        fs::copy(build_dir().join("libgstfacepipe.so"), plugins.join("libgstfacepipe.so")).unwrap();
    }
    let run = |json: &[&str]| {
        let mut command = Command::new(program("facepipe"));
        command.arg("doctor").args(arguments).args(json).env("GST_PLUGIN_PATH", &plugins);
        command.env("GST_REGISTRY", folder.join(format!("registry-{with_plugin}.bin")));
        command
            .env("FACEPIPE_MODELS", models_dir())
            .env_remove("FACEPIPE_SERVER")
            .env_remove("FACEPIPE_TOKEN");
        command.output().unwrap()
    };
    let output = run(&["--json"]);
    let text = String::from_utf8_lossy(&run(&[]).stdout).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap(), text)
}

fn state(findings: &Value, name: &str) -> String {
    let checks = findings["checks"].as_array().unwrap();
    let check =
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {findings}"));
    assert_eq!(
        check["state"] == "ok",
        check.get("remedy").is_none(),
        "a remedy where one is needed: {check}"
    );
    check["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_complete_machine_is_healthy() {
    for model in ["version-RFB-320.onnx", "version-RFB-640.onnx", "version-slim-320.onnx"] {
        let _ = require!(&format!("models/{model}"));
    }
    let backend = Backend::start(&require_backend_weights!());
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let arguments =
        ["--server", backend.url(), "--spool-dir", spool.to_str().unwrap(), "--token", "secret-token"];
    let (code, findings, text) = doctor(folder.path(), true, &arguments);
    assert_eq!((code, findings["healthy"].as_bool()), (Some(0), Some(true)), "{text}");
    for name in ["GStreamer", "plugin facepipe", "ONNX Runtime", "spool folder", "backend"] {
        assert_eq!(state(&findings, name), "ok", "{text}");
    }
    // GStreamer's plugins have a `faceoverlay` too; which of the two the short name means is undetermined.
    let named =
        findings["checks"].as_array().unwrap().iter().find(|check| check["name"] == "element names").unwrap();
    let found = named["found"].as_str().unwrap();
    assert!(found.ends_with("are ours") || found.contains("faceoverlay is the one of plugin"), "{text}");
    assert!(!text.contains("secret-token"), "{text}");
    assert_eq!(fs::read_dir(&spool).unwrap().count(), 0, "nothing is left in the spool");
}

#[test]
fn missing_parts_are_reported_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("no-folder");
    fs::write(&file, "a file").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = format!("http://127.0.0.1:{port}");
    let arguments = ["--server", &dead, "--spool-dir", file.to_str().unwrap()];
    let (code, findings, text) = doctor(folder.path(), false, &arguments);
    assert_eq!((code, findings["healthy"].as_bool()), (Some(1), Some(false)), "{text}");
    for name in ["plugin facepipe", "spool folder", "backend"] {
        assert_eq!(state(&findings, name), "failed", "{text}");
    }
    for part in ["GST_PLUGIN_PATH", &dead, "Connection refused", "no-folder"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// Starts a server that answers every request with this status and a date in 1994.
fn answering(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let answer = format!(
                "HTTP/1.1 {status}\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-length: 0\r\n\
                 connection: close\r\n\r\n"
            );
            // The client may have gone.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn a_refused_token_and_a_wrong_clock_are_failures() {
    let folder = tempfile::tempdir().unwrap();
    let (_, findings, text) = doctor(folder.path(), true, &["--server", &answering("401 Unauthorized")]);
    assert_eq!(state(&findings, "backend"), "failed");
    assert!(text.contains("refuses the token"), "{text}");
    let (code, findings, text) = doctor(folder.path(), true, &["--server", &answering("200 OK")]);
    assert_eq!(
        (state(&findings, "backend").as_str(), state(&findings, "clock").as_str(), code),
        ("ok", "failed", Some(1))
    );
    assert!(text.contains("apart from the backend's"), "{text}");
    let (_, findings, text) =
        doctor(folder.path(), true, &["--server", &answering("200 OK"), "--token-file", "/nowhere/token"]);
    assert_eq!(state(&findings, "backend"), "failed");
    assert!(text.contains("/nowhere/token"), "{text}");
    fs::write(folder.path().join("ca.pem"), "no certificate").unwrap();
    for (file, why) in [("/nowhere/ca.pem", "No such file"), ("ca.pem", "no certificate in PEM form")] {
        let file = folder.path().join(file);
        let ca = ["--server", &answering("200 OK"), "--ca-file", file.to_str().unwrap()];
        let (_, findings, text) = doctor(folder.path(), true, &ca);
        assert_eq!(state(&findings, "backend"), "failed");
        assert!(text.contains(file.to_str().unwrap()) && text.contains(why), "{text}");
    }
}

/// A server with a self-signed certificate (`openssl req -x509`), which answers every call with 501.
struct SelfSigned {
    child: Child,
    url: String,
}

impl SelfSigned {
    fn start(folder: &Path) -> Self {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args([
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-keyout",
                "key.pem",
                "-out",
                "ca.pem",
            ])
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let server = "import http.server, ssl\n\
            server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler)\n\
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
            context.load_cert_chain('ca.pem', 'key.pem')\n\
            server.socket = context.wrap_socket(server.socket, server_side=True)\n\
            print(server.server_port, flush=True)\n\
            server.serve_forever()";
        let mut command = Command::new("python3");
        command.args(["-c", server]).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, url: format!("https://127.0.0.1:{}", port.trim()) }
    }
}

impl Drop for SelfSigned {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn commands_accept_a_given_self_signed_certificate_like_the_doctor() {
    let folder = tempfile::tempdir().unwrap();
    let server = SelfSigned::start(folder.path());
    let ca = folder.path().join("ca.pem");
    let people = |ca: &[&str]| {
        let mut command = Command::new(program("facepipe"));
        command.args(["people", "list", "--server", &server.url]).args(ca);
        command.env_remove("FACEPIPE_TOKEN").env_remove("FACEPIPE_CLI_CONFIG").env("HOME", folder.path());
        // The number of a port may have that of a status in it.
        String::from_utf8_lossy(&command.output().unwrap().stderr).replace(&server.url, "URL")
    };
    let named = people(&["--ca-file", ca.to_str().unwrap()]);
    assert!(named.contains("501"), "the server was not reached: {named}");
    let unnamed = people(&[]);
    assert!(unnamed.contains("certificate") && !unnamed.contains("501"), "{unnamed}");
    let missing = people(&["--ca-file", "/nowhere/ca.pem"]);
    assert!(missing.contains("--ca-file") && missing.contains("/nowhere/ca.pem"), "{missing}");

    let arguments = ["--server", &server.url, "--ca-file", ca.to_str().unwrap()];
    let (_, _, text) = doctor(folder.path(), true, &arguments);
    assert!(text.replace(&server.url, "URL").contains("501"), "{text}");
}
