//! Determines the kind of a file by its first bytes, since file names are unreliable.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Number of bytes examined.
const HEAD: u64 = 512;

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A picture that the backend reads: JPEG, PNG, WebP, BMP or GIF.
    Picture,
    /// HEIC (HEVC in HEIF), sent as JPEG.
    Heic,
    /// Something else.
    Other {
        /// Description for messages.
        what: &'static str,
        /// Advice on it.
        remedy: Option<Remedy>,
    },
}

/// Advice on an unsupported file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remedy {
    /// Convert the picture.
    Convert,
    /// Use the video commands.
    Video,
    /// Unpack the archive.
    Unpack,
}

impl Remedy {
    /// Returns the advice as a line of text.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Convert => {
                "Pictures of other kinds must be JPEG, PNG, WebP, BMP, GIF or HEIC. ImageMagick makes JPEG files of \
                 them, beside them: mogrify -format jpg FILES"
            }
            Self::Video => {
                "Videos are for `facepipe enroll camera FILE --id NAME` and `facepipe recognize video FILE`."
            }
            Self::Unpack => "Archives must be unpacked.",
        }
    }
}

/// Determines the kind of a file.
///
/// # Errors
/// The file cannot be read.
pub fn from_file(path: &Path) -> io::Result<Kind> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    Ok(from_head(&head))
}

/// Determines the kind of content with these first bytes.
pub fn from_head(head: &[u8]) -> Kind {
    let other = |what, remedy| Kind::Other { what, remedy };
    let starts = |magic: &[u8]| head.starts_with(magic);
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    // The formats that the backend decodes.
    if image::guess_format(head).is_ok_and(|format| format.reading_enabled()) {
        return Kind::Picture;
    }
    if let Some(kind) = from_media_brands(head) {
        return kind;
    }
    match head {
        [] => other("an empty file", None),
        _ if at(8, b"CR") && starts(b"II*\0") => other("a camera's raw picture", Some(Remedy::Convert)),
        _ if starts(b"II*\0") || starts(b"MM\0*") || starts(b"II+\0") || starts(b"MM\0+") => {
            other("TIFF or a camera's raw picture", Some(Remedy::Convert))
        }
        _ if starts(b"\0\0\0\x0cjP  ") => other("JPEG 2000", Some(Remedy::Convert)),
        _ if starts(b"\0\0\0\x0cJXL ") || starts(b"\xff\x0a") => other("JPEG XL", Some(Remedy::Convert)),
        _ if starts(b"8BPS") => other("a Photoshop file", Some(Remedy::Convert)),
        _ if starts(b"%PDF-") => other("PDF", Some(Remedy::Convert)),
        _ if starts(b"RIFF") && at(8, b"AVI ") => other("a video (AVI)", Some(Remedy::Video)),
        _ if starts(b"\x1a\x45\xdf\xa3") => other("a video (Matroska or WebM)", Some(Remedy::Video)),
        _ if starts(b"\0\0\x01\xba") || starts(b"\0\0\x01\xb3") => {
            other("a video (MPEG)", Some(Remedy::Video))
        }
        _ if starts(b"G") && at(188, b"G") => other("a video (MPEG transport stream)", Some(Remedy::Video)),
        _ if starts(b"FLV\x01") => other("a video (Flash)", Some(Remedy::Video)),
        _ if starts(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11") => {
            other("a video (Windows Media)", Some(Remedy::Video))
        }
        _ if starts(b"PK\x03\x04") => other("a ZIP archive or an office document", Some(Remedy::Unpack)),
        _ if starts(b"\x1f\x8b")
            || starts(b"7z\xbc\xaf\x27\x1c")
            || starts(b"Rar!\x1a\x07")
            || at(257, b"ustar") =>
        {
            other("an archive", Some(Remedy::Unpack))
        }
        _ if is_text(head) => other("text, no picture", None),
        _ => other("no picture of a known kind, or a damaged one", None),
    }
}

/// Determines the kind of an ISO base media file (HEIC, AVIF, MP4, QuickTime) by its brands.
fn from_media_brands(head: &[u8]) -> Option<Kind> {
    let other = |what, remedy| Some(Kind::Other { what, remedy: Some(remedy) });
    let (size, rest) = head.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_first_chunk::<4>()?;
    if matches!(name, b"moov" | b"mdat" | b"wide" | b"free" | b"skip") {
        return other("a video (QuickTime)", Remedy::Video);
    }
    if name != b"ftyp" {
        return None;
    }
    let length = usize::try_from(u32::from_be_bytes(*size)).unwrap_or(usize::MAX).saturating_sub(8);
    let brands = rest.get(..length).unwrap_or(rest);
    // Major brand, version and compatible brands.
    let (brands, _) = brands.as_chunks::<4>();
    let any = |wanted: &[&[u8; 4]]| brands.iter().any(|brand| wanted.contains(&brand));
    match brands.first()? {
        b"crx " => other("a camera's raw picture", Remedy::Convert),
        // A generic major brand does not tell the codec.
        _ if any(&[b"avif", b"avis"]) => other("AVIF", Remedy::Convert),
        _ if any(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"]) => Some(Kind::Heic),
        _ if any(&[b"mif1", b"mif2", b"msf1"]) => other("HEIF of a kind that is not read", Remedy::Convert),
        _ => other("a video (MP4 or QuickTime)", Remedy::Video),
    }
}

fn is_text(head: &[u8]) -> bool {
    // The last character may be cut off.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(head.get(..error.valid_up_to()).unwrap_or_default()).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && !text.chars().any(|c| c.is_control() && !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(head: &[u8]) -> &'static str {
        match from_head(head) {
            Kind::Picture => "picture",
            Kind::Heic => "HEIC",
            Kind::Other { what, .. } => what,
        }
    }

    #[test]
    fn the_kind_depends_on_the_content() {
        for picture in [
            &b"\xff\xd8\xff\xe1\x00\x10Exif"[..],
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            b"GIF89a\x01\0",
            b"RIFF\x10\0\0\0WEBPVP8 ",
            b"BM\x36\0\0\0\0\0",
        ] {
            assert_eq!(from_head(picture), Kind::Picture, "{picture:?}");
        }
        for (head, expected) in [
            (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "HEIC"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
            (b"\0\0\0\x14ftypmif1\0\0\0\0mif1", "HEIF of a kind that is not read"),
            (b"\0\0\0\x14ftypisom\0\0\x02\0isom", "a video (MP4 or QuickTime)"),
            (b"\0\0\0\x14ftypqt  \0\0\x02\0qt  ", "a video (MP4 or QuickTime)"),
            (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "a camera's raw picture"),
            (b"\0\0\0\x08wide\0\0\0\0mdat", "a video (QuickTime)"),
            (b"II*\0\x08\0\0\0", "TIFF or a camera's raw picture"),
            (b"MM\0*\0\0\0\x08", "TIFF or a camera's raw picture"),
            (b"II*\0\x10\0\0\0CR\x02\0", "a camera's raw picture"),
            (b"\x1a\x45\xdf\xa3\x01", "a video (Matroska or WebM)"),
            (b"RIFF\x10\0\0\0AVI LIST", "a video (AVI)"),
            (b"PK\x03\x04\x14", "a ZIP archive or an office document"),
            (b"%PDF-1.7\n", "PDF"),
            ("Fotos von Ärzten\n".as_bytes(), "text, no picture"),
            (b"", "an empty file"),
            (b"\x01\x02\x03\x04\x05", "no picture of a known kind, or a damaged one"),
        ] {
            assert_eq!(what(head), expected, "{head:?}");
        }
    }
}
