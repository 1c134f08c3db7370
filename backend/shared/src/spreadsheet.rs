//! Cells of CSV that programs for tables must not take for formulas.

use std::borrow::Cow;

/// Returns the text of a cell: with an apostrophe before it where a spreadsheet would calculate it, since it begins with
/// `=`, `+`, `-`, `@`, a tab or the end of a line, also in full width (OWASP, “CSV Injection”). Numbers stay as they are.
pub fn spreadsheet_cell(text: &str) -> Cow<'_, str> {
    let is_formula = text
        .starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}']);
    if is_formula && text.parse::<f64>().is_err() { format!("'{text}").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_become_texts_and_numbers_stay_numbers() {
        for formula in ["=1+1", "+a", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\u{ff1d}1", "-", "-nope"] {
            assert_eq!(spreadsheet_cell(formula), format!("'{formula}"));
        }
        for plain in ["", "-1.5", "+2", "-1e-7", "gate-1", "a=b", "'=1"] {
            assert_eq!(spreadsheet_cell(plain), plain);
        }
    }
}
