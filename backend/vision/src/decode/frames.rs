//! Finds the first frame of an animation: GIF and WebP place frames on a canvas of any size.

/// Returns the width and height of the first frame of a GIF or an animated WebP, `None` for other files and where the file
/// ends before it.
pub fn first_frame(bytes: &[u8]) -> Option<[u32; 2]> {
    if bytes.starts_with(b"GIF8") { gif_frame(bytes) } else { webp_frame(bytes) }
}

/// Follows the blocks of a GIF (GIF89a specification, sections 18 to 25) to its first image descriptor.
fn gif_frame(bytes: &[u8]) -> Option<[u32; 2]> {
    let flags = *bytes.get(10)?;
    let colours = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut rest = bytes.get(13 + colours..)?;
    loop {
        let (&kind, after) = rest.split_first()?;
        match kind {
            0x2c => {
                let &[wide_low, wide_high, low, high] = after.get(4..)?.first_chunk()?;
                let side = |low, high| u32::from(u16::from_le_bytes([low, high]));
                return Some([side(wide_low, wide_high), side(low, high)]);
            }
            // An extension: a label, then sub-blocks until an empty one.
            0x21 => {
                rest = after.get(1..)?;
                loop {
                    let (&length, after) = rest.split_first()?;
                    rest = after.get(usize::from(length)..)?;
                    if length == 0 {
                        break;
                    }
                }
            }
            // Decoders skip empty blocks between others.
            0x00 => rest = after,
            _ => return None,
        }
    }
}

/// Follows the chunks of a WebP (RFC 9649, section 2.7) to its first frame.
fn webp_frame(bytes: &[u8]) -> Option<[u32; 2]> {
    if !bytes.starts_with(b"RIFF") || bytes.get(8..12)? != b"WEBP" {
        return None;
    }
    let mut rest = bytes.get(12..)?;
    loop {
        let (head, after) = rest.split_first_chunk::<8>()?;
        let [name @ .., a, b, c, d] = head;
        let length = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).ok()?;
        if name == b"ANMF" {
            let &[w0, w1, w2, h0, h1, h2] = after.get(6..)?.first_chunk()?;
            let side = |low, middle, high| u32::from_le_bytes([low, middle, high, 0]) + 1;
            return Some([side(w0, w1, w2), side(h0, h1, h2)]);
        }
        // Chunks have an even length.
        rest = after.get(length.checked_add(length % 2)?..)?;
    }
}
