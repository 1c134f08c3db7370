//! The token that authenticates us to the backend, sent as `Authorization: Bearer …` (RFC 6750): a property, or the content
//! of a file that may be replaced at any time. No message and no debug output contains it. The file is checked by its version,
//! as the backend checks its own (`backend/src/access/token_file.rs`): the halves share no crate.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http::HeaderValue;

use super::file_version::{FileVersion, file_version};

/// Minimum time between checks of the file, unless the backend rejects the token.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum length of a token in bytes; servers accept no longer headers.
const MAX_TOKEN: usize = 8192;

/// A bearer token. Its `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

/// Why a text is not a token. Doesn't show the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It has nothing but white space.
    #[error("is empty")]
    Empty,
    /// It has characters that a header cannot have.
    #[error("contains a space, a line break or a character that is not ASCII")]
    Character,
    /// It is longer than servers accept.
    #[error("has {0} bytes, at most {MAX_TOKEN} are possible")]
    TooLong(usize),
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

impl Token {
    /// Parses a token; white space around it, such as a file's last line break, is ignored.
    ///
    /// # Errors
    ///
    /// It is empty, too long, or has characters that a header cannot have.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > MAX_TOKEN {
            return Err(TokenError::TooLong(text.len()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Character);
        }
        let mut value =
            HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| TokenError::Character)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// Reads a token from a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or its content is not a token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let content = fs::read(path).map_err(|e| TokenError::Unreadable(e.to_string()))?;
        Self::new(str::from_utf8(&content).map_err(|_| TokenError::Character)?)
    }

    /// Returns the value of the header `Authorization`.
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A watched token file.
#[derive(Debug, Default)]
pub(super) struct TokenFile {
    path: PathBuf,
    version: Option<FileVersion>,
    checked_at: Option<Instant>,
    token: Option<Token>,
    problem: Option<TokenError>,
}

impl TokenFile {
    /// Returns the current token of the file at `path`. If it cannot be read, the last one is kept.
    pub(super) async fn token(&mut self, path: &Path) -> Option<Token> {
        if self.path != path {
            *self = Self { path: path.to_path_buf(), ..Self::default() };
        }
        if self.checked_at.is_none_or(|checked_at| checked_at.elapsed() >= CHECK_INTERVAL) {
            let (path, version) = (self.path.clone(), self.version);
            let read = tokio::task::spawn_blocking(move || read_if_changed(&path, version)).await;
            match read {
                Ok(Ok(Some((version, token)))) => {
                    (self.version, self.token, self.problem) = (Some(version), Some(token), None);
                }
                Ok(Ok(None)) => (),
                Ok(Err(problem)) => (self.version, self.problem) = (None, Some(problem)),
                Err(_) => (),
            }
            self.checked_at = Some(Instant::now());
        }
        self.token.clone()
    }

    /// Has the file read again for the next request, since the backend rejects the token.
    pub(super) fn invalidate(&mut self) {
        (self.version, self.checked_at) = (None, None);
    }

    /// Returns what is wrong with the file, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        let problem = self.problem.as_ref()?;
        Some(format!("token-file `{}` {problem}", self.path.display()))
    }
}

fn read_if_changed(
    path: &Path,
    known: Option<FileVersion>,
) -> Result<Option<(FileVersion, Token)>, TokenError> {
    let version = file_version(path).map_err(|e| TokenError::Unreadable(e.to_string()))?;
    if known == Some(version) {
        return Ok(None);
    }
    Ok(Some((version, Token::read(path)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::new(" s3cret\n").unwrap();
        assert_eq!(token.header().as_bytes(), b"Bearer s3cret");
        assert!(!format!("{token:?} {:?}", token.header()).contains("s3cret"));
    }

    #[test]
    fn tokens_invalid_in_a_header_are_rejected() {
        assert_eq!(Token::new(" \n"), Err(TokenError::Empty));
        assert_eq!(Token::new("two words"), Err(TokenError::Character));
        assert_eq!(Token::new("a\nb"), Err(TokenError::Character));
        assert_eq!(Token::new("schlüssel"), Err(TokenError::Character));
        assert_eq!(Token::new(&"x".repeat(9000)), Err(TokenError::TooLong(9000)));
        assert!(!Token::new("two words").unwrap_err().to_string().contains("two words"));
    }
}
