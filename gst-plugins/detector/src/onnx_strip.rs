//! Removes the weights from an ONNX model's list of graph inputs.
//!
//! The published Ultra-Light files list every weight as an input with a default value. Since a caller might override it, ONNX
//! Runtime cannot fold them as constants and runs several times slower. The file is rewritten at the level of the protobuf wire
//! format (<https://protobuf.dev/programming-guides/encoding/>) and not through generated types, so that unknown fields are
//! copied byte by byte.

use std::collections::HashSet;

/// Field numbers of `onnx.proto` (ONNX 1.17, unchanged since IR version 3).
mod field {
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const GRAPH_INITIALIZER: u64 = 5;
    pub(super) const GRAPH_INPUT: u64 = 11;
    pub(super) const GRAPH_SPARSE_INITIALIZER: u64 = 15;
    pub(super) const TENSOR_NAME: u64 = 8;
    pub(super) const SPARSE_TENSOR_VALUES: u64 = 1;
    pub(super) const VALUE_INFO_NAME: u64 = 1;
}

/// A violation of the protobuf format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {offset} of {message}")]
pub struct WireError {
    problem: &'static str,
    offset: usize,
    message: &'static str,
}

/// Returns the model without the graph inputs that have an initializer, otherwise unchanged.
///
/// # Errors
///
/// [`WireError`] if the bytes are not a complete protobuf message, or have no graph.
pub fn strip(model: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut has_graph = false;
    let mut initializers = HashSet::new();
    // A message field that occurs twice is one message in two parts, so the names are collected from all of them first.
    for entry in Fields::new(model, "the model") {
        let entry = entry?;
        if entry.number == field::MODEL_GRAPH {
            has_graph = true;
            collect_initializers(entry.message("the model's graph")?, &mut initializers)?;
        }
    }
    if !has_graph {
        return Err(WireError { problem: "no graph", offset: model.len(), message: "the model" });
    }

    let mut stripped = Vec::with_capacity(model.len());
    for entry in Fields::new(model, "the model") {
        let entry = entry?;
        if entry.number == field::MODEL_GRAPH {
            let graph = strip_graph(entry.message("the model's graph")?, &initializers)?;
            // Wire type 2, length-delimited.
            push_varint(&mut stripped, (field::MODEL_GRAPH << 3) | 2);
            push_varint(&mut stripped, graph.len() as u64);
            stripped.extend_from_slice(&graph);
        } else {
            stripped.extend_from_slice(entry.raw);
        }
    }
    Ok(stripped)
}

fn collect_initializers<'a>(graph: &'a [u8], names: &mut HashSet<&'a [u8]>) -> Result<(), WireError> {
    for entry in Fields::new(graph, "the graph") {
        let entry = entry?;
        let tensor = match entry.number {
            field::GRAPH_INITIALIZER => Some(entry.message("a weight")?),
            field::GRAPH_SPARSE_INITIALIZER => {
                last(entry.message("a sparse weight")?, field::SPARSE_TENSOR_VALUES, "a sparse weight")?
            }
            _ => None,
        };
        if let Some(tensor) = tensor {
            names.extend(last(tensor, field::TENSOR_NAME, "a weight")?);
        }
    }
    Ok(())
}

fn strip_graph(graph: &[u8], initializers: &HashSet<&[u8]>) -> Result<Vec<u8>, WireError> {
    let mut stripped = Vec::with_capacity(graph.len());
    for entry in Fields::new(graph, "the graph") {
        let entry = entry?;
        let weight = entry.number == field::GRAPH_INPUT
            && last(entry.message("an input")?, field::VALUE_INFO_NAME, "an input")?
                .is_some_and(|name| initializers.contains(name));
        if !weight {
            stripped.extend_from_slice(entry.raw);
        }
    }
    Ok(stripped)
}

/// Returns the bytes of the last occurrence of a length-delimited field, which is the effective one in protobuf.
fn last<'a>(message: &'a [u8], number: u64, name: &'static str) -> Result<Option<&'a [u8]>, WireError> {
    let mut found = None;
    for entry in Fields::new(message, name) {
        let entry = entry?;
        if entry.number == number {
            found = Some(entry.message(name)?);
        }
    }
    Ok(found)
}

/// One field of a message: its number, its whole encoding, and its content where it is length-delimited.
struct Field<'a> {
    number: u64,
    raw: &'a [u8],
    content: Option<&'a [u8]>,
    offset: usize,
}

impl<'a> Field<'a> {
    fn message(&self, name: &'static str) -> Result<&'a [u8], WireError> {
        let problem = "a number where a message or text belongs";
        self.content.ok_or(WireError { problem, offset: self.offset, message: name })
    }
}

/// Iterates over the fields of a message without descending into them; ends after the first error.
struct Fields<'a> {
    bytes: &'a [u8],
    offset: usize,
    message: &'static str,
}

impl<'a> Fields<'a> {
    const fn new(bytes: &'a [u8], message: &'static str) -> Self {
        Self { bytes, offset: 0, message }
    }

    fn error(&self, problem: &'static str) -> WireError {
        WireError { problem, offset: self.offset, message: self.message }
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.offset) else {
                return Err(self.error("the file ends within a number"));
            };
            self.offset += 1;
            // The tenth byte has room for one bit only.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number longer than 64 bits"))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], WireError> {
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| self.offset.checked_add(count))
            .and_then(|end| self.bytes.get(self.offset..end));
        let Some(taken) = taken else {
            return Err(self.error("the file ends within a field"));
        };
        self.offset += taken.len();
        Ok(taken)
    }

    fn field(&mut self) -> Result<Field<'a>, WireError> {
        let start = self.offset;
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number >= 1 << 29 {
            return Err(self.error("a field number that does not exist"));
        }
        let content = match tag & 7 {
            0 => {
                self.varint()?;
                None
            }
            1 => {
                self.take(8)?;
                None
            }
            2 => {
                let length = self.varint()?;
                Some(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                None
            }
            _ => return Err(self.error("a field type that ONNX does not use")),
        };
        let raw = self.bytes.get(start..self.offset).unwrap_or_default();
        Ok(Field { number, raw, content, offset: start })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.offset = self.bytes.len();
        }
        Some(field)
    }
}

pub(crate) fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        bytes.push(low | 0x80);
        value >>= 7;
    }
    let [low, ..] = value.to_le_bytes();
    bytes.push(low);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delimited(number: u64, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_varint(&mut bytes, (number << 3) | 2);
        push_varint(&mut bytes, content.len() as u64);
        bytes.extend_from_slice(content);
        bytes
    }

    /// Returns a model with inputs `picture`, `w`, `s`, a weight `w` and a sparse weight `s`.
    fn model(inputs: &[&str]) -> Vec<u8> {
        let mut graph = delimited(2, b"graph's name");
        graph.extend(delimited(field::GRAPH_INITIALIZER, &delimited(field::TENSOR_NAME, b"w")));
        let values = delimited(field::SPARSE_TENSOR_VALUES, &delimited(field::TENSOR_NAME, b"s"));
        graph.extend(delimited(field::GRAPH_SPARSE_INITIALIZER, &values));
        for input in inputs {
            graph.extend(delimited(field::GRAPH_INPUT, &delimited(field::VALUE_INFO_NAME, input.as_bytes())));
        }
        graph.extend(delimited(12, b"\x0a\x06scores"));
        // ir_version = 4, unknown 64-bit and 32-bit fields, a producer longer than 127 bytes.
        let mut bytes = vec![0x08, 0x04, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4];
        bytes.extend(delimited(2, &[b'x'; 300]));
        bytes.extend(delimited(field::MODEL_GRAPH, &graph));
        bytes.extend(delimited(8, b"\x10\x09"));
        bytes
    }

    #[test]
    fn inputs_with_weights_are_removed_and_all_other_bytes_kept() {
        assert_eq!(strip(&model(&["w", "picture", "s"])).unwrap(), model(&["picture"]));
        assert_eq!(strip(&model(&["picture"])).unwrap(), model(&["picture"]));
    }

    #[test]
    fn truncated_files_are_rejected() {
        let whole = model(&["w", "picture"]);
        // The last field is whole again where only the field behind the graph is missing.
        let graph_end = whole.len() - 4;
        for length in (0..whole.len()).filter(|&length| length != graph_end) {
            assert!(strip(&whole[..length]).is_err(), "cut at {length} of {}", whole.len());
        }
    }

    #[test]
    fn malformed_bytes_are_errors_with_their_position() {
        let cases: [(&[u8], &str); 6] = [
            (&[], "no graph at byte 0 of the model"),
            (&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], "the file ends within a field at byte 6 of the model"),
            (&[0xff; 12], "a number longer than 64 bits at byte 10 of the model"),
            (&[0x00], "a field number that does not exist at byte 1 of the model"),
            (&[0x3b], "a field type that ONNX does not use at byte 1 of the model"),
            (&[0x38, 0x01], "a number where a message or text belongs at byte 0 of the model's graph"),
        ];
        for (bytes, message) in cases {
            assert_eq!(strip(bytes).unwrap_err().to_string(), message);
        }
    }
}
