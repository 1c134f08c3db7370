//! The name under which a person is enrolled, checked once at the door.

use std::fmt;

/// A Face ID: 1 to 64 letters, digits, `_`, `-`, `.` and spaces, not starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FaceId(String);

/// Characters of a Face ID at most.
pub const MAX_CHARACTERS: usize = 64;

/// Why a text is no Face ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFaceId {
    /// Nothing there.
    #[error("the Face ID is empty, it needs 1 to {MAX_CHARACTERS} characters")]
    Empty,
    /// Too long.
    #[error("the Face ID has {0} characters, at most {MAX_CHARACTERS} are allowed")]
    TooLong(usize),
    /// Starts with a dot.
    #[error("the Face ID starts with a dot")]
    LeadingDot,
    /// Has a character that is not allowed.
    #[error("the Face ID has the character {0:?}, only letters, digits, `_`, `-`, `.` and space are allowed")]
    Character(char),
    /// The percent-encoding of the path does not give UTF-8.
    #[error("the Face ID is not UTF-8")]
    Encoding,
}

impl TryFrom<String> for FaceId {
    type Error = InvalidFaceId;

    fn try_from(text: String) -> Result<Self, InvalidFaceId> {
        let characters = text.chars().count();
        if characters == 0 {
            return Err(InvalidFaceId::Empty);
        }
        if characters > MAX_CHARACTERS {
            return Err(InvalidFaceId::TooLong(characters));
        }
        if text.starts_with('.') {
            return Err(InvalidFaceId::LeadingDot);
        }
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ');
        match text.chars().find(|c| !allowed(*c)) {
            Some(other) => Err(InvalidFaceId::Character(other)),
            None => Ok(Self(text)),
        }
    }
}

impl fmt::Display for FaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FaceId, InvalidFaceId> {
        FaceId::try_from(text.to_owned())
    }

    #[test]
    fn names_of_people_are_accepted() {
        for name in
            ["a", "Ada Lovelace", "J\u{fc}rgen_M\u{fc}ller-2", "\u{738b}\u{83f2}", "x.y", &"z".repeat(64)]
        {
            assert_eq!(parse(name).map(|id| id.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        for (name, reason) in [
            ("", InvalidFaceId::Empty),
            (&"z".repeat(65), InvalidFaceId::TooLong(65)),
            ("../x", InvalidFaceId::LeadingDot),
            (".", InvalidFaceId::LeadingDot),
            ("a/b", InvalidFaceId::Character('/')),
            ("a\\b", InvalidFaceId::Character('\\')),
            ("a\0", InvalidFaceId::Character('\0')),
            ("a\nb", InvalidFaceId::Character('\n')),
            ("a%2f", InvalidFaceId::Character('%')),
            ("<b>", InvalidFaceId::Character('<')),
        ] {
            assert_eq!(parse(name), Err(reason), "{name:?}");
        }
    }
}
