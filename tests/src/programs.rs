//! The program `facepipe` as a test runs it, and what it said.

use std::process::{Child, Command, Output};

use facepipe_test_support::models_dir;

use crate::program;

/// What a program said and how it ended.
pub struct Said {
    /// The exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Said {
    /// Takes a program's output, which must be text.
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// Fails the test unless the program ended with this code and said these words.
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

/// The program without a server or a configuration of whoever runs the tests.
pub fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("facepipe"));
    command.args(arguments);
    for name in ["SERVER", "TOKEN", "TOKEN_FILE", "CA_FILE", "PROFILE", "CLI_CONFIG", "EMBEDDER"] {
        command.env_remove(format!("FACEPIPE_{name}"));
    }
    command.env("XDG_CONFIG_HOME", "/nonexistent").env("FACEPIPE_MODELS", models_dir());
    command
}

/// Ctrl-C.
pub fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill can be run").success());
}
