//! A network camera for tests: Debian's RTSP server playing recordings.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use facepipe_test_support::workspace_root;

/// An RTSP server; dropping it ends it abruptly.
pub struct Camera {
    child: Child,
    port: u16,
}

impl Camera {
    /// Starts it on a port (0: a free one) with the arguments of `tests/rtsp/server.py`. Returns none if Debian's RTSP server
    /// is missing.
    pub fn start(port: u16, arguments: &[&str]) -> Option<Self> {
        let mut child = Command::new("/usr/bin/python3")
            .arg(workspace_root().join("tests/rtsp/server.py"))
            .arg(port.to_string())
            .args(arguments)
            .env_remove("GST_PLUGIN_PATH")
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
        match line.trim().parse() {
            Ok(port) => Some(Self { child, port }),
            Err(_) => {
                let _ = child.wait();
                None
            }
        }
    }

    /// Returns the port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address of a stream.
    pub fn url(&self, name: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
