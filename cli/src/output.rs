//! Standard output: lines, tables and JSON.

use std::{
    io::{self, ErrorKind, Write},
    process,
};

use anyhow::Result;
use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use serde::Serialize;

/// Writes a line. Ends the program if the reader has closed the pipe (`… | head`) or the write fails.
pub fn line(text: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{}", text.as_ref()).and_then(|()| stdout.flush());
    if let Err(error) = written {
        if error.kind() != ErrorKind::BrokenPipe {
            eprintln!("facepipe: standard output cannot be written: {error}");
        }
        process::exit(if error.kind() == ErrorKind::BrokenPipe { 0 } else { 7 });
    }
}

/// Writes a value as indented JSON.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn json_line(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string(value)?);
    Ok(())
}

/// Writes a table fitted to the terminal.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.map(|heading| Cell::new(heading).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row);
    }
    line(table.trim_fmt());
}

/// Quotes a word for a shell if needed.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_quoted_for_a_shell() {
        assert_eq!(quoted("http://127.0.0.1:8080"), "http://127.0.0.1:8080");
        assert_eq!(quoted("Ada Lovelace"), "'Ada Lovelace'");
        assert_eq!(quoted("$(id); O'Hara"), r"'$(id); O'\''Hara'");
        assert_eq!(quoted(""), "''");
    }
}
