//! The table at the end: what was shown, how it went, how long it took.

use std::fmt;
use std::time::Duration;

/// One thing shown.
#[derive(Debug, Clone)]
struct Row {
    what: String,
    result: String,
    time: Duration,
}

/// The table.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// One more row.
    pub fn push(&mut self, what: &str, result: &str, time: Duration) {
        self.rows.push(Row { what: what.to_owned(), result: result.to_owned(), time });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |cell: fn(&Row) -> &str, head: &str| {
            self.rows.iter().map(|row| cell(row).chars().count()).max().unwrap_or(0).max(head.len())
        };
        let what = width(|row| &row.what, "shown");
        let result = width(|row| &row.result, "result");
        writeln!(f, "{:what$}  {:result$}  seconds", "shown", "result")?;
        writeln!(f, "{}  {}  -------", "-".repeat(what), "-".repeat(result))?;
        for row in &self.rows {
            let seconds = row.time.as_secs_f64();
            writeln!(f, "{:what$}  {:result$}  {seconds:7.1}", row.what, row.result)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::default();
        table.push("both register", "held", Duration::from_millis(1250));
        table.push("x", "FAILED", Duration::ZERO);
        let text = "shown          result  seconds\n-------------  ------  -------\n\
                    both register  held        1.2\nx              FAILED      0.0\n";
        assert_eq!(table.to_string(), text);
    }
}
