//! Runs the program `facepipe` in tests, with a backend and a folder.

use std::{
    fs,
    io::BufRead,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
};

use facepipe_test_support::models_dir;
use serde_json::Value;

use crate::{Backend, program};

/// Token of a [`TestEnvironment`]'s backend.
pub const ADMIN_TOKEN: &str = "an-admin-of-this-test";

/// Exit code and output of a program.
pub struct ProgramOutput {
    /// The exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl ProgramOutput {
    /// Converts a program's output, which must be UTF-8.
    pub fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// Fails the test unless the program ended with this code and printed these texts.
    #[track_caller]
    pub fn expect(self, code: i32, texts: &[&str]) -> Self {
        let Self { stdout, stderr, .. } = &self;
        assert_eq!(self.code, Some(code), "{stdout}\n{stderr}");
        for text in texts {
            assert!(
                stdout.contains(text) || stderr.contains(text),
                "{text:?} is not in:\n{stdout}\n{stderr}"
            );
        }
        self
    }
}

/// Returns the program, isolated from the server and configuration of the user who runs the tests.
pub fn facepipe(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("facepipe"));
    command.args(arguments);
    for name in ["SERVER", "TOKEN", "TOKEN_FILE", "CA_FILE", "PROFILE", "CLI_CONFIG", "EMBEDDER"] {
        command.env_remove(format!("FACEPIPE_{name}"));
    }
    command.env("XDG_CONFIG_HOME", "/nonexistent").env("FACEPIPE_MODELS", models_dir());
    command
}

/// Sends SIGINT, as Ctrl-C does.
pub fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill can be run").success());
}

/// Returns the same program with a limit on the size of files that it writes, which acts like a full disk.
pub fn with_file_size_limit(limited: &Command, kib: u32) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\""), "bash"]);
    command.arg(limited.get_program()).args(limited.get_args());
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Reads lines until one contains `text`.
#[track_caller]
pub fn read_until(reader: &mut impl BufRead, text: &str) {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        let read = reader.read_line(&mut line).expect("text");
        assert!(read > 0, "the program ended without printing {text:?}");
    }
}

/// Copies the photographs with these numbers (from 1, ordered by name) from `<gallery>/<person>` to `<target>/<person>`, and
/// returns the latter.
pub fn copy_photographs(gallery: &Path, target: &Path, person: &str, numbers: &[usize]) -> PathBuf {
    let target = target.join(person);
    fs::create_dir_all(&target).expect("a folder");
    let entries = fs::read_dir(gallery.join(person)).expect("photographs");
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.expect("a photograph").path()).collect();
    all.sort();
    for number in numbers {
        let photograph = all.get(number - 1).expect("a photograph of that number");
        fs::copy(photograph, target.join(photograph.file_name().expect("a name"))).expect("copied");
    }
    target
}

/// A backend with a token, and a folder for files of the test.
pub struct TestEnvironment {
    /// Accepts [`ADMIN_TOKEN`].
    pub backend: Backend,
    /// For files of the test; removed at the end.
    pub folder: tempfile::TempDir,
    faces: PathBuf,
}

impl TestEnvironment {
    /// Starts the backend. `faces` has a folder of photographs per person.
    pub fn new(models: &Path, faces: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tokens = folder.path().join("tokens");
        fs::write(&tokens, format!("admin {ADMIN_TOKEN}\n")).expect("written");
        let backend = Backend::start_with(models, &["--token-file", tokens.to_str().expect("text")]);
        Self { backend, folder, faces }
    }

    /// Returns the program with server and token in its environment, and without a screen.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = facepipe(arguments);
        command.env("FACEPIPE_SERVER", self.backend.url()).env("FACEPIPE_TOKEN", ADMIN_TOKEN);
        command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> ProgramOutput {
        ProgramOutput::new(self.command(arguments).output().expect("the program can be run"))
    }

    /// Runs the program with `--json` and parses its output.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let said = self.run(&[arguments, &["--json"]].concat());
        serde_json::from_str(&said.stdout)
            .unwrap_or_else(|_| panic!("{arguments:?}: {} {}", said.stdout, said.stderr))
    }

    /// Copies photographs of a person to `<folder>/<person>` in this folder; see [`copy_photographs`].
    pub fn photographs(&self, folder: &str, person: &str, numbers: &[usize]) -> PathBuf {
        copy_photographs(&self.faces, &self.folder.path().join(folder), person, numbers)
    }

    /// Returns a path in the folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("text").to_owned()
    }
}
