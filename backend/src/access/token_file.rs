//! The token file: bearer tokens for the start of a deployment and for emergencies. It is reloaded when it changes, so
//! that tokens are added and revoked without a restart. Only SHA-256 digests of tokens are kept. The server checks the
//! file every second, which also works on network file systems and mounted secrets, where notifications of changes do
//! not arrive.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tokio_util::sync::CancellationToken;

use super::{Digest, Principal, digest_of};
use crate::watched_file::{self, FileVersion};

/// Minimum length of a token, characters. 16 of `openssl rand -hex` are 64 bits: too many to try.
const MIN_CHARACTERS: usize = 16;
/// Maximum length of a token, characters; clients and proxies take no longer headers.
const MAX_CHARACTERS: usize = 8192;

/// The bits of a file's mode that let users read it who neither own it nor belong to its group.
const READABLE_BY_OTHERS: u32 = 0o004;

/// What a token of the file allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Uploading and recognition only.
    Camera,
    /// Everything.
    Admin,
}

/// Why a file cannot be used; never shows the content of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A line is invalid.
    #[error("line {line} {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The error.
        reason: LineError,
    },
}

/// The error of a line.
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

/// A token of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileToken {
    digest: Digest,
    principal: Arc<Principal>,
}

/// The tokens of a file.
pub struct TokenFile {
    path: PathBuf,
    known: RwLock<Arc<[FileToken]>>,
    /// Whether the last check found the file missing or invalid.
    unusable: AtomicBool,
}

/// The state of the file beside its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStatus {
    /// Whether it has no token, so that it admits nobody.
    pub is_empty: bool,
    /// Whether every user of the machine may read it, although this process does not depend on that.
    pub is_readable_by_others: bool,
}

/// The folder where container engines mount secrets, which all users of the container can read.
const SECRETS: &str = "/run/secrets";

impl TokenFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TokenFileError`].
    pub fn open(path: &Path) -> Result<Self, TokenFileError> {
        Ok(Self { path: path.to_owned(), known: RwLock::new(read(path)?), unusable: AtomicBool::new(false) })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the principal of a token, `None` of an unknown one. Compares in constant time.
    pub fn principal_of(&self, token: &str) -> Option<Arc<Principal>> {
        let digest = digest_of(token);
        let known = self.known();
        // `found` is one more than the position of the token, 0 for none.
        let mut found = 0_u64;
        for (number, known) in (1..).zip(known.iter()) {
            found.conditional_assign(&number, known.digest.ct_eq(&digest));
        }
        let position = usize::try_from(found).ok()?.checked_sub(1)?;
        known.get(position).map(|known| Arc::clone(&known.principal))
    }

    /// Reads the file's status.
    ///
    /// # Errors
    /// The file cannot be found.
    pub fn status(&self) -> Result<FileStatus, TokenFileError> {
        let metadata = fs::metadata(&self.path).map_err(|error| unreadable(&error))?;
        Ok(FileStatus {
            is_empty: self.known().is_empty(),
            is_readable_by_others: metadata.mode() & READABLE_BY_OTHERS != 0
                && !self.path.starts_with(SECRETS)
                && Identity::of_process().reads_without_others(metadata.uid(), metadata.gid()),
        })
    }

    /// Returns whether the last check found the file missing or invalid, so that the tokens before it stay.
    pub fn is_unusable(&self) -> bool {
        self.unusable.load(Ordering::Relaxed)
    }

    /// Reloads the file whenever it has changed, until `stop` is set. A missing or invalid file leaves the tokens unchanged,
    /// an empty one revokes all.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        watched_file::watch(move |last| self.check_file(last), stop).await;
    }

    fn check_file(&self, last: LastCheck) -> LastCheck {
        // The version is determined before the file is read: a write in the meantime changes it again.
        let version = FileVersion::of(&self.path).map_err(|error| unreadable(&error));
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
                    // The line is logged afterwards: its reader may use the new tokens at once.
                    if tokens == 0 {
                        tracing::warn!(
                            "read the changed token_file: it is empty, and all of its tokens are revoked"
                        );
                    } else {
                        tracing::info!(tokens, "read the changed token_file");
                    }
                }
                None
            }
            Err(error) => Some(error),
        };
        // An unreadable file is read again until it can be read: the obstacle may vanish without a change of the
        // version.
        let version = version.filter(|_| !matches!(problem, Some(TokenFileError::Unreadable(_))));
        self.unusable.store(problem.is_some(), Ordering::Relaxed);
        if let Some(error) = &problem
            && last.problem.as_ref() != Some(error)
        {
            tracing::warn!(
                file = %self.path.display(),
                %error,
                "token_file is not used: the tokens before it stay; an empty file revokes them"
            );
        }
        LastCheck { version, problem }
    }

    fn known(&self) -> Arc<[FileToken]> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The result of the last check of the file.
#[derive(Default)]
struct LastCheck {
    version: Option<FileVersion>,
    /// The problem that was found, logged once, not at every check.
    problem: Option<TokenFileError>,
}

/// The users and groups that this process acts as.
struct Identity {
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl Identity {
    fn of_process() -> Self {
        Self::of_status(&fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    /// Reads them from the content of `/proc/self/status`.
    fn of_status(status: &str) -> Self {
        let ids = |name: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().filter_map(|id| id.parse().ok()).collect()
        };
        Self { users: ids("Uid:"), groups: [ids("Gid:"), ids("Groups:")].concat() }
    }

    /// Returns whether it can read a file of this owner and group without the rights of all others. If the process is
    /// unknown, it can.
    fn reads_without_others(&self, owner: u32, group: u32) -> bool {
        self.users.is_empty()
            || self.users.contains(&0)
            || self.users.contains(&owner)
            || self.groups.contains(&group)
    }
}

fn unreadable(error: &io::Error) -> TokenFileError {
    TokenFileError::Unreadable(error.to_string())
}

fn read(path: &Path) -> Result<Arc<[FileToken]>, TokenFileError> {
    parse(&fs::read(path).map_err(|error| unreadable(&error))?)
}

fn parse(content: &[u8]) -> Result<Arc<[FileToken]>, TokenFileError> {
    let mut known: Vec<(usize, Digest, Role)> = Vec::new();
    for (line, text) in (1..).zip(content.split(|byte| *byte == b'\n')) {
        let wrong = |reason| TokenFileError::Line { line, reason };
        let Some((digest, role)) = parse_line(text).map_err(wrong)? else { continue };
        if let Some((earlier, ..)) = known.iter().find(|(_, other, _)| *other == digest) {
            return Err(wrong(LineError::Repeated(*earlier)));
        }
        known.push((line, digest, role));
    }
    let token = |(_, digest, role): (usize, Digest, Role)| FileToken {
        digest,
        principal: Arc::new(Principal::of_file(role, &digest)),
    };
    Ok(known.into_iter().map(token).collect())
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
        _ => Ok(Some((digest_of(token), role))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(content: &str) -> TokenFile {
        TokenFile {
            path: PathBuf::new(),
            known: RwLock::new(parse(content.as_bytes()).unwrap()),
            unusable: AtomicBool::new(false),
        }
    }

    #[test]
    fn each_token_has_its_role() {
        let tokens = tokens(
            "# of the gate\n\n camera gate-0123456789abc # until May\r\nadmin\tops-0123456789abcd\n\
             camera #hash-0123456789\n",
        );
        let scopes = |token| tokens.principal_of(token).map(|principal| principal.scopes);
        assert_eq!(scopes("gate-0123456789abc").unwrap().to_string(), "upload,recognise");
        assert_eq!(scopes("ops-0123456789abcd").unwrap().to_string(), "admin");
        assert_eq!(scopes("#hash-0123456789").unwrap().to_string(), "upload,recognise");
        for unknown in ["", "gate-0123456789ab", "gate-0123456789abcd", "GATE-0123456789ABC", "camera"] {
            assert_eq!(scopes(unknown), None, "{unknown}");
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
            assert_eq!(error, TokenFileError::Line { line: 3, reason }, "{line}");
            let told = error.to_string();
            assert!(told.contains("line 3") && !told.contains("s3cret"), "{told}");
        }
    }

    #[test]
    fn only_who_does_not_depend_on_it_is_warned_of_a_file_that_others_can_read() {
        let status = |uid: u32, gid: u32, groups: &str| {
            let status =
                format!("Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\n");
            Identity::of_status(&format!("{status}FDSize:\t64\nGroups:\t{groups} \n"))
        };
        for (process, reads) in [
            (status(1000, 1000, ""), true),
            (status(0, 0, "0"), true),
            (status(10001, 1001, "4"), true),
            (status(10001, 10001, "4 1001"), true),
            (status(10001, 10001, "4 27"), false),
            (Identity::of_status(""), true),
        ] {
            assert_eq!(process.reads_without_others(1000, 1001), reads);
        }
        assert!(!Identity::of_process().users.is_empty());
    }

    #[test]
    fn other_permissions_are_another_version() {
        use std::{
            os::unix::fs::PermissionsExt as _,
            time::{Duration, Instant},
        };

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, "admin s3cret-0123456789\n").unwrap();
        let (first, begun) = (FileVersion::of(&path).unwrap(), Instant::now());
        // The clock of file systems ticks slowly.
        while FileVersion::of(&path).unwrap() == first {
            assert!(begun.elapsed() < Duration::from_secs(10), "the version stays");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_read_again_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, "admin s3cret-0123456789\n").unwrap();
        let tokens = TokenFile::open(&path).unwrap();
        let last = tokens.check_file(LastCheck::default());
        assert!(last.version.is_some() && last.problem.is_none());
        // A folder can be examined but not read, even by the administrator.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let last = tokens.check_file(last);
        assert!(last.version.is_none() && last.problem.is_some() && tokens.is_unusable());
        assert!(tokens.principal_of("s3cret-0123456789").is_some());
    }

    #[test]
    fn a_file_without_tokens_admits_nobody() {
        for nothing in ["", "\n\n", "# admin s3cret-0123456789\n"] {
            assert!(tokens(nothing).principal_of("s3cret-0123456789").is_none());
        }
    }
}
