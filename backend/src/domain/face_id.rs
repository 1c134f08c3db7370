//! Face IDs: the names of people, validated and normalised when they enter the system.

use std::fmt;

use caseless::Caseless as _;
use facepipe_shared::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use unicode_normalization::UnicodeNormalization as _;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// The name of a person, in any script. It is in Unicode's normalisation form C, without white space around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FaceId(String);

/// Characters of a Face ID at most: Unicode code points in normalisation form C.
pub const MAX_CHARACTERS: usize = 64;

/// Which Face IDs count as the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SameName {
    /// Those that differ only in the case of letters.
    IgnoringCase,
    /// Those with the same letters in the same case.
    MindingCase,
}

/// Why a text is not a valid Face ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFaceId {
    /// Nothing visible.
    #[error("the Face ID has nothing that can be seen, it needs 1 to {MAX_CHARACTERS} characters")]
    Empty,
    /// Too long.
    #[error("the Face ID has {0} characters, at most {MAX_CHARACTERS} are allowed")]
    TooLong(usize),
    /// Starts with a dot.
    #[error("the Face ID starts with a dot")]
    LeadingDot,
    /// Starts like the formula of a spreadsheet.
    #[error("the Face ID starts with {0:?}, which spreadsheets take for a formula")]
    Formula(char),
    /// A joiner without a letter before it.
    #[error("the Face ID has {} without a letter before it", code_point(*.0))]
    Joiner(char),
    /// Has a character that is not allowed.
    #[error("the Face ID has {}: {reason}", code_point(*.character))]
    Character {
        /// The first character that is not allowed.
        character: char,
        /// Why it is not allowed, as in the message.
        reason: &'static str,
    },
    /// The percent-encoded path is not UTF-8.
    #[error("the Face ID is not UTF-8")]
    Encoding,
}

/// Formats a character for errors: a visible ASCII character as it is, any other by its code point only.
fn code_point(character: char) -> String {
    let number = u32::from(character);
    match character.general_category() {
        _ if character.is_ascii_graphic() => format!("the character {character:?}"),
        _ => format!("the character U+{number:04X}"),
    }
}

impl FaceId {
    /// Returns the text as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the key that Face IDs share if they count as the same. At most 512 bytes; internal.
    pub fn key(&self, rule: SameName) -> String {
        key(&self.0, rule)
    }
}

/// Returns the [`FaceId::key`] of any text.
pub fn key(text: &str, rule: SameName) -> String {
    // Unicode's compatibility caseless match (The Unicode Standard, 3.13, D146): one-sided forms such as full-width
    // letters and no-break spaces are the same as the usual ones.
    let plain = text.chars().map(canonical_sign).nfkd().filter(|c| !is_ignorable(*c));
    let folded: String = match rule {
        SameName::IgnoringCase => plain
            .default_case_fold()
            .nfkd()
            .default_case_fold()
            .filter(|c| !is_ignorable(*c))
            .nfkc()
            .collect(),
        SameName::MindingCase => plain.nfkc().collect(),
    };
    let key = folded.split_whitespace().collect::<Vec<_>>().join(" ");
    // Some characters expand to many others, and the database index limits the length of keys.
    if key.len() > MAX_KEY_BYTES { hex(&Sha256::digest(&key)) } else { key }
}

const MAX_KEY_BYTES: usize = 512;

/// Maps signs that keyboards and word processors interchange to one of them.
fn canonical_sign(character: char) -> char {
    match character {
        // Apostrophes: typographic ones, those of transcriptions, and accents that are typed instead.
        '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2032}' | '\u{2bc}' | '\u{b4}' | '`' => '\'',
        // Hyphens, breaking and not.
        '\u{2010}' | '\u{2011}' => '-',
        other => other,
    }
}

/// Returns whether a character is invisible: Unicode's Default_Ignorable_Code_Point, and the empty braille cell.
fn is_ignorable(character: char) -> bool {
    matches!(
        u32::from(character),
        0xad | 0x34f
            | 0x61c
            | 0x115f..=0x1160
            | 0x17b4..=0x17b5
            | 0x180b..=0x180f
            | 0x200b..=0x200f
            | 0x202a..=0x202e
            | 0x2060..=0x206f
            | 0x2800
            | 0x3164
            | 0xfe00..=0xfe0f
            | 0xfeff
            | 0xffa0
            | 0xfff0..=0xfff8
            | 0x1bca0..=0x1bca3
            | 0x1d173..=0x1d17a
            | 0xe0000..=0xe0fff
    )
}

/// Returns whether a character is ZERO WIDTH NON-JOINER or ZERO WIDTH JOINER, which Persian and Indic orthographies
/// need.
fn is_joiner(character: char) -> bool {
    matches!(character, '\u{200c}' | '\u{200d}')
}

/// Returns the first character of a text that shows nothing and can mislead its readers, such as one that reverses the
/// direction of writing, and why it can. Joiners, which orthographies need, are none.
pub fn hidden_character(text: &str) -> Option<(char, &'static str)> {
    text.chars().find_map(|character| Some((character, hiding_reason(character)?)))
}

fn hiding_reason(character: char) -> Option<&'static str> {
    use GeneralCategory as Category;
    match character.general_category() {
        Category::Control => Some("it is a control character"),
        Category::LineSeparator | Category::ParagraphSeparator => Some("it ends a line"),
        Category::Format if !is_joiner(character) => {
            Some("it cannot be seen and changes how text around it is shown or compared")
        }
        _ => None,
    }
}

/// Returns why a character is not allowed anywhere.
fn rejection_reason(character: char) -> Option<&'static str> {
    use GeneralCategory as Category;
    match character {
        '/' | '\\' => return Some("it separates the parts of paths"),
        '%' => return Some("addresses take what follows it for the number of a character"),
        '<' | '>' => return Some("it begins or ends markup"),
        '\u{fffd}' => return Some("it stands where something could not be read"),
        _ => (),
    }
    hiding_reason(character).or_else(|| match character.general_category() {
        Category::Surrogate | Category::PrivateUse => Some("its meaning is private"),
        // The tables of the standard library may know a later Unicode.
        Category::Unassigned if !character.is_alphanumeric() => Some("Unicode gives it no meaning"),
        _ => None,
    })
}

impl TryFrom<String> for FaceId {
    type Error = InvalidFaceId;

    fn try_from(text: String) -> Result<Self, InvalidFaceId> {
        if let Some((character, reason)) = text.chars().find_map(|c| Some((c, rejection_reason(c)?))) {
            return Err(InvalidFaceId::Character { character, reason });
        }
        let text: String = text.trim().nfc().collect();
        let characters = text.chars().count();
        if text.chars().all(|c| is_ignorable(c) || c.is_whitespace()) {
            return Err(InvalidFaceId::Empty);
        }
        if characters > MAX_CHARACTERS {
            return Err(InvalidFaceId::TooLong(characters));
        }
        match text.chars().next() {
            Some('.') => return Err(InvalidFaceId::LeadingDot),
            Some(sign @ ('=' | '+' | '@')) => return Err(InvalidFaceId::Formula(sign)),
            _ => (),
        }
        let mut before = ' ';
        for character in text.chars() {
            if is_joiner(character) && (before.is_whitespace() || is_joiner(before)) {
                return Err(InvalidFaceId::Joiner(character));
            }
            before = character;
        }
        Ok(Self(text))
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

    fn same(one: &str, other: &str, rule: SameName) -> bool {
        parse(one).unwrap().key(rule) == parse(other).unwrap().key(rule)
    }

    #[test]
    fn names_of_people_are_accepted_as_they_are_written() {
        for name in [
            "a",
            "Ada Lovelace",
            "J\u{fc}rgen_M\u{fc}ller-2",
            "\u{738b}\u{83f2}",
            "x.y",
            "_",
            &"z".repeat(64),
            "O'Brien",
            "O\u{2019}Brien",
            "Smith, John (Lab 2)",
            "Visitor #7 & Co.",
            // With a vowel sign, a virama and a nukta.
            "\u{92a}\u{94d}\u{930}\u{93f}\u{92f}\u{93e}\u{902}\u{915}\u{93e}",
            // Thai, with a tone mark.
            "\u{e19}\u{e49}\u{e33}\u{e1d}\u{e19}",
            // Vietnamese.
            "Nguy\u{1ec5}n V\u{103}n \u{110}\u{1ee9}c",
            // Persian with a zero width non-joiner, Malayalam with a joiner at the end.
            "\u{639}\u{644}\u{6cc}\u{200c}\u{631}\u{636}\u{627}",
            "\u{d30}\u{d3e}\u{d1c}\u{d28}\u{d4d}\u{200d}",
            // Katakana with its middle dot, Japanese with a wide space.
            "\u{30a2}\u{30c0}\u{30fb}\u{30e9}\u{30d6}\u{30ec}\u{30b9}",
            "\u{5c71}\u{7530}\u{3000}\u{592a}\u{90ce}",
            // Catalan, Hawaiian, a click of Khoekhoe, a letter with two marks that has no form of its own.
            "Gal\u{b7}la",
            "Ka\u{2bb}ahumanu",
            "\u{1c3}X\u{f3}\u{f5}",
            "m\u{30c}\u{323}".nfc().collect::<String>().as_str(),
            "\u{1f600}",
        ] {
            assert_eq!(parse(name).map(|id| id.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn visually_equal_names_are_equal() {
        for (typed, kept) in [
            ("Jose\u{301}", "Jos\u{e9}"),
            // Hangul.
            ("\u{1100}\u{1175}\u{11b7}\u{110e}\u{1165}\u{11af}\u{1109}\u{116e}", "\u{ae40}\u{cca0}\u{c218}"),
            ("Nguye\u{302}\u{303}n", "Nguy\u{1ec5}n"),
            (" ann", "ann"),
            ("ann ", "ann"),
            ("\u{3000}ann\u{a0} ", "ann"),
        ] {
            assert_eq!(parse(typed).map(|id| id.to_string()), Ok(kept.to_owned()), "{typed:?}");
        }
        for (one, other) in [
            ("O'Brien", "O\u{2019}Brien"),
            ("Ann  Lee", "Ann Lee"),
            ("Ann\u{a0}Lee", "Ann Lee"),
            ("Jean\u{2011}Luc", "Jean-Luc"),
            ("\u{ff21}nn", "Ann"),
            ("\u{ff71}\u{ff80}\u{ff9e}", "\u{30a2}\u{30c0}"),
            ("\u{639}\u{644}\u{6cc}\u{200c}\u{631}", "\u{639}\u{644}\u{6cc}\u{631}"),
        ] {
            for rule in [SameName::IgnoringCase, SameName::MindingCase] {
                assert!(same(one, other, rule), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn letter_case_matters_only_when_configured() {
        for (one, other) in [
            ("Ann", "ANN"),
            ("J\u{fc}rgen", "J\u{dc}RGEN"),
            ("Stra\u{df}er", "STRASSER"),
            (
                "\u{3a3}\u{3af}\u{3c3}\u{3c5}\u{3c6}\u{3bf}\u{3c2}",
                "\u{3a3}\u{38a}\u{3a3}\u{3a5}\u{3a6}\u{39f}\u{3a3}",
            ),
        ] {
            assert!(same(one, other, SameName::IgnoringCase), "{one:?} {other:?}");
            assert!(!same(one, other, SameName::MindingCase), "{one:?} {other:?}");
        }
        for (one, other) in
            [("Jose", "Jos\u{e9}"), ("Ann", "Anna"), ("Ann Lee", "AnnLee"), ("Ann-Lee", "Ann Lee")]
        {
            assert!(!same(one, other, SameName::IgnoringCase), "{one:?} {other:?}");
        }
    }

    #[test]
    fn a_key_fits_the_database_index() {
        let long = "\u{fdfa}".repeat(64);
        let (one, other) = (parse(&long).unwrap(), parse(&long[3..]).unwrap());
        assert_eq!(one.key(SameName::IgnoringCase).len(), 64);
        assert_ne!(one.key(SameName::IgnoringCase), other.key(SameName::IgnoringCase));
    }

    #[test]
    fn harmful_names_are_rejected_with_a_reason() {
        for (name, reason) in [
            ("", InvalidFaceId::Empty),
            ("   ", InvalidFaceId::Empty),
            ("\u{3164}", InvalidFaceId::Empty),
            ("\u{200d}", InvalidFaceId::Empty),
            (&"z".repeat(65), InvalidFaceId::TooLong(65)),
            // The characters are counted in the stored form.
            (&"e\u{301}".repeat(65), InvalidFaceId::TooLong(65)),
            (".x", InvalidFaceId::LeadingDot),
            (" ..", InvalidFaceId::LeadingDot),
            ("=1+1", InvalidFaceId::Formula('=')),
            ("Ann \u{200d}Lee", InvalidFaceId::Joiner('\u{200d}')),
        ] {
            assert_eq!(parse(name), Err(reason), "{name:?}");
        }
        for (name, character) in [
            ("a/b", '/'),
            ("a\\b", '\\'),
            ("a\0", '\0'),
            ("a\nb", '\n'),
            ("ann\n", '\n'),
            ("a\u{85}b", '\u{85}'),
            ("a%2f", '%'),
            ("<b>", '<'),
            ("nnA\u{202e}Ann", '\u{202e}'),
            ("\u{feff}Ann", '\u{feff}'),
            ("An\u{ad}n", '\u{ad}'),
            ("An\u{200b}n", '\u{200b}'),
            ("a\u{2028}b", '\u{2028}'),
            ("a\u{e000}", '\u{e000}'),
            ("a\u{fffd}", '\u{fffd}'),
            ("a\u{378}", '\u{378}'),
        ] {
            let error = parse(name).unwrap_err();
            assert!(
                matches!(error, InvalidFaceId::Character { character: c, .. } if c == character),
                "{error:?}"
            );
            let named = format!("U+{:04X}", u32::from(character));
            let shown = format!("{character:?}");
            let told = error.to_string();
            assert!(told.contains(&named) || character.is_ascii_graphic() && told.contains(&shown), "{told}");
        }
        // The error's text has no character that changes the direction of writing.
        assert!(!parse("a\u{202e}").unwrap_err().to_string().contains('\u{202e}'));
    }

    #[test]
    fn previously_valid_names_stay_valid() {
        let old = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ');
        for character in ('\u{20}'..=char::MAX).filter(|c| old(*c)) {
            let name = format!("x{character}x");
            assert!(parse(&name).is_ok(), "{name:?}");
        }
    }
}
