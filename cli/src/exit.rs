//! Exit codes: each kind of failure has its own, for scripts.

use std::{fmt::Display, io, process::ExitCode};

use crate::client::ClientError;

/// The exit codes, as shown by `--help`.
pub const HELP: &str = "\
Exit codes:
  0    done
  1    failed
  2    wrong usage or wrong configuration
  3    done, but not every input was accepted (no face on it, unreadable, …)
  4    the server cannot be reached, or cannot serve
  5    the server refused the token
  6    an input (file, folder, camera) cannot be read, or is empty
  7    the output cannot be written (full disk, no permission)
  130  interrupted";

/// Outcome of a command that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// Done, but some inputs were not accepted.
    Partial,
    /// Ended by Ctrl-C or SIGTERM in an orderly way.
    Interrupted,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Partial => Self::from(3),
            Outcome::Interrupted => Self::from(130),
        }
    }
}

/// A failure with its own exit code; all others have code 1.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Invalid arguments or configuration beyond what clap checks.
    #[error("{0}")]
    Usage(String),
    /// An input cannot be read, or is empty.
    #[error("{0}")]
    Input(String),
    /// The output cannot be written.
    #[error("{0}")]
    Output(String),
}

impl Failure {
    /// Creates the error for an unreadable input (`what`: path or address).
    pub fn input(what: impl Display, why: impl Display) -> Self {
        Self::Input(format!("{what}: {why}"))
    }

    /// Creates the error for an output (`what`: path) that cannot be written.
    pub fn output(what: impl Display, why: impl Display) -> Self {
        Self::Output(format!("{what}: cannot be written: {why}"))
    }
}

/// Returns the exit code of an error, searching its chain of causes.
pub fn code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|cause| {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return Some(match failure {
                Failure::Usage(_) => 2,
                Failure::Input(_) => 6,
                Failure::Output(_) => 7,
            });
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return match error {
                ClientError::Unreachable { .. } => Some(4),
                ClientError::Unauthorized { .. } => Some(5),
                ClientError::Refused { status, .. } if status.is_server_error() || status.as_u16() == 429 => {
                    Some(4)
                }
                ClientError::Refused { .. } | ClientError::UnexpectedResponse { .. } => None,
            };
        }
        let full = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(full, Some(io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge)).then_some(7)
    });
    ExitCode::from(code.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    fn same(error: &anyhow::Error, expected: u8) -> bool {
        // ExitCode has no equality; its debug form names the number.
        format!("{:?}", code(error)) == format!("{:?}", ExitCode::from(expected))
    }

    #[test]
    fn each_kind_of_failure_has_its_code_under_any_context() {
        let kinds = [
            (Failure::Usage("u".into()), 2),
            (Failure::input("folder", "is empty"), 6),
            (Failure::output("out.mp4", "no space"), 7),
        ];
        for (failure, expected) in kinds {
            let error = Err::<(), _>(failure).context("while something was done");
            assert!(same(&error.expect_err("a failure"), expected));
        }
        assert!(same(&anyhow!("anything else"), 1));
        let full = anyhow::Error::from(io::Error::from(io::ErrorKind::StorageFull)).context("index.jsonl");
        assert!(same(&full, 7));
    }
}
