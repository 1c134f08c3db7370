//! Authentication by the bearer tokens of a file, which is reloaded when it changes, so that tokens are added and revoked
//! without a restart. Only SHA-256 digests of tokens are kept. By hand: checking the file every second also works on network
//! file systems and mounted secrets, where notifications of changes do not arrive.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use tokio_util::sync::CancellationToken;

/// Characters of a token at least. 16 of `openssl rand -hex` are 64 bits: too many to try.
const MIN_CHARACTERS: usize = 16;
/// Characters of a token at most; clients and proxies take no longer headers.
const MAX_CHARACTERS: usize = 8192;

/// The interval between checks of the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Recognition only.
    Camera,
    /// Everything.
    Admin,
}

/// Why a file cannot be used; never shows the content of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A line is invalid.
    #[error("line {line} {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: LineError,
    },
    /// The file has no token, so that nobody could do anything.
    #[error("has no token: a line each, `camera <token>` or `admin <token>`")]
    Empty,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// No role.
    #[error("does not begin with a role, `camera` or `admin`")]
    Role,
    /// No token after the role.
    #[error("has no token after the role")]
    NoToken,
    /// More text after the token.
    #[error("goes on after the token: a token has no spaces, and a comment begins with #")]
    Rest,
    /// A token that could be guessed.
    #[error("has a token of {0} characters, at least {MIN_CHARACTERS} are needed")]
    TooShort(usize),
    /// A token that is too long for a header.
    #[error("has a token of {0} characters, at most {MAX_CHARACTERS} are possible")]
    TooLong(usize),
    /// A token with a character that a header cannot have.
    #[error("has a character that is not ASCII")]
    Character,
    /// A token that occurs twice, so that its role would be ambiguous.
    #[error("has the token of line {0} again")]
    Repeated(usize),
}

type Digest = [u8; 32];

/// The tokens of a file.
pub struct Tokens {
    path: PathBuf,
    known: RwLock<Arc<[(Digest, Role)]>>,
}

/// Time of modification, length and inode of a file: changes when it is written or replaced.
type FileVersion = (SystemTime, u64, u64);

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        Ok(Self { path: path.to_owned(), known: RwLock::new(read(path)?) })
    }

    /// Returns the role of a token, `None` of an unknown one. Compares in constant time.
    pub fn role_of(&self, token: &str) -> Option<Role> {
        let digest: Digest = Sha256::digest(token).into();
        let (mut found, mut is_admin) = (Choice::from(0), Choice::from(0));
        for (known, role) in self.known().iter() {
            let same = known.ct_eq(&digest);
            found |= same;
            is_admin.conditional_assign(&Choice::from(u8::from(*role == Role::Admin)), same);
        }
        match (bool::from(found), bool::from(is_admin)) {
            (false, _) => None,
            (true, false) => Some(Role::Camera),
            (true, true) => Some(Role::Admin),
        }
    }

    /// Reloads the file whenever it has changed, until `stop` is set. An invalid file leaves the tokens unchanged.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut last = LastCheck::default();
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => (),
                () = stop.cancelled() => break,
            }
            let tokens = Arc::clone(&self);
            // A check that was interrupted is repeated.
            last = tokio::task::spawn_blocking(move || tokens.check_file(last)).await.unwrap_or_default();
        }
    }

    fn check_file(&self, last: LastCheck) -> LastCheck {
        // Before the file is read: a write in the meantime changes the version again.
        let version = file_version(&self.path);
        if version.is_ok() && version.as_ref().ok() == last.version.as_ref() {
            tracing::trace!("token_file is unchanged");
            return last;
        }
        let (version, read) = match version {
            Ok(version) => (Some(version), read(&self.path)),
            Err(error) => (None, Err(error)),
        };
        let problem = match read {
            Ok(known) => {
                if *self.known() != *known {
                    let tokens = known.len();
                    *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
                    // Afterwards: a reader of this line may use the new tokens at once.
                    tracing::info!(tokens, "read the changed token_file");
                }
                None
            }
            Err(error) => Some(error),
        };
        if let Some(error) = &problem
            && last.problem.as_ref() != Some(error)
        {
            tracing::warn!(file = %self.path.display(), %error, "token_file is not used: the tokens before it stay");
        }
        LastCheck { version, problem }
    }

    fn known(&self) -> Arc<[(Digest, Role)]> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The result of the last check of the file.
#[derive(Default)]
struct LastCheck {
    version: Option<FileVersion>,
    /// Logged once, not at every check.
    problem: Option<TokensError>,
}

fn file_version(path: &Path) -> Result<FileVersion, TokensError> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(&error))?;
    let modified = metadata.modified().map_err(|error| unreadable(&error))?;
    Ok((modified, metadata.len(), metadata.ino()))
}

fn unreadable(error: &io::Error) -> TokensError {
    TokensError::Unreadable(error.to_string())
}

fn read(path: &Path) -> Result<Arc<[(Digest, Role)]>, TokensError> {
    parse(&fs::read(path).map_err(|error| unreadable(&error))?)
}

fn parse(content: &[u8]) -> Result<Arc<[(Digest, Role)]>, TokensError> {
    let mut known: Vec<(usize, Digest, Role)> = Vec::new();
    for (line, text) in (1..).zip(content.split(|byte| *byte == b'\n')) {
        let wrong = |reason| TokensError::Line { line, reason };
        let Some((digest, role)) = parse_line(text).map_err(wrong)? else { continue };
        if let Some((earlier, ..)) = known.iter().find(|(_, other, _)| *other == digest) {
            return Err(wrong(LineError::Repeated(*earlier)));
        }
        known.push((line, digest, role));
    }
    if known.is_empty() {
        return Err(TokensError::Empty);
    }
    Ok(known.into_iter().map(|(_, digest, role)| (digest, role)).collect())
}

/// Returns the token of a line and its role; `None` of a line without a token.
fn parse_line(line: &[u8]) -> Result<Option<(Digest, Role)>, LineError> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let role = match words.next() {
        None => return Ok(None),
        Some(word) if word.starts_with(b"#") => return Ok(None),
        Some(b"camera") => Role::Camera,
        Some(b"admin") => Role::Admin,
        Some(_) => return Err(LineError::Role),
    };
    let token = words.next().ok_or(LineError::NoToken)?;
    if words.next().is_some_and(|word| !word.starts_with(b"#")) {
        return Err(LineError::Rest);
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err(LineError::Character);
    }
    match token.len() {
        length if length < MIN_CHARACTERS => Err(LineError::TooShort(length)),
        length if length > MAX_CHARACTERS => Err(LineError::TooLong(length)),
        _ => Ok(Some((Sha256::digest(token).into(), role))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(content: &str) -> Tokens {
        Tokens { path: PathBuf::new(), known: RwLock::new(parse(content.as_bytes()).unwrap()) }
    }

    #[test]
    fn each_token_has_its_role() {
        let tokens = tokens(
            "# of the gate\n\n camera gate-0123456789abc # until May\r\nadmin\tops-0123456789abcd\n\
             camera #hash-0123456789\n",
        );
        assert_eq!(tokens.role_of("gate-0123456789abc"), Some(Role::Camera));
        assert_eq!(tokens.role_of("ops-0123456789abcd"), Some(Role::Admin));
        assert_eq!(tokens.role_of("#hash-0123456789"), Some(Role::Camera));
        for unknown in ["", "gate-0123456789ab", "gate-0123456789abcd", "GATE-0123456789ABC", "camera"] {
            assert_eq!(tokens.role_of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn an_invalid_line_is_reported_by_number_without_its_token() {
        let long = format!("admin {}", "s3cret".repeat(2000));
        for (line, reason) in [
            ("s3cret-0123456789", LineError::Role),
            ("Admin s3cret-0123456789", LineError::Role),
            ("admin", LineError::NoToken),
            ("camera s3cret-0123456789 s3cret-9876543210", LineError::Rest),
            ("camera s3cret-01234567", LineError::TooShort(15)),
            (&long, LineError::TooLong(12_000)),
            ("camera s3cret-0123456789-ß", LineError::Character),
            ("camera first-0123456789", LineError::Repeated(2)),
        ] {
            let content = format!("# head\nadmin first-0123456789\n{line}\ncamera last-0123456789\n");
            let error = parse(content.as_bytes()).unwrap_err();
            assert_eq!(error, TokensError::Line { line: 3, reason }, "{line}");
            let told = error.to_string();
            assert!(told.contains("line 3") && !told.contains("s3cret"), "{told}");
        }
        for nothing in ["", "\n\n", "# admin s3cret-0123456789\n"] {
            assert_eq!(parse(nothing.as_bytes()), Err(TokensError::Empty));
        }
    }
}
