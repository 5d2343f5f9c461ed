//! Tables for people and JSON for programs.

use ctl::event::printable;
use serde::Serialize;

use crate::Failure;

/// Columns, aligned by their longest cell, two spaces apart; cells are made fit for a terminal.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row, one cell per heading.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The table with its headings, or `empty` when it has no row.
    pub fn or(self, empty: &str) -> String {
        if self.rows.len() == 1 { format!("{empty}\n") } else { self.text() }
    }

    fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let line: String =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// A heading line and indented `name: value` lines, for `detail`.
pub fn block(heading: &str, lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = format!("{}\n", printable(heading));
    for (name, value) in lines {
        out.push_str(&format!("  {name:<width$}  {}\n", printable(value)));
    }
    out
}

/// `value` as indented JSON.
///
/// # Errors
/// [`Failure::Refused`] when it cannot be written, which no type of ours causes.
pub fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Refused(error.to_string()))?;
    Ok(text + "\n")
}

/// The text, or `-`.
pub fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Numbers or texts with spaces between, or `-`.
pub fn list<T: ToString>(values: &[T]) -> String {
    let text = values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_cannot_steer_the_terminal() {
        let mut table = Table::new(&["Member", "Missed"]);
        table.row(["gm\u{1b}1".to_owned(), "0".to_owned()]);
        table.row(["x".to_owned(), "12".to_owned()]);
        assert_eq!(table.or("none"), "Member     Missed\ngm\\u{1b}1  0\nx          12\n");
        assert_eq!(Table::new(&["Member"]).or("no members"), "no members\n");
    }
}
