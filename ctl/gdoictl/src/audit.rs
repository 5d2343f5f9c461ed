//! `gdoictl server show audit`.

use ctl::control::{Reply, Request};
use ctl::event::{Event, printable};
use serde_json::{Value, json};

use crate::connect::Daemon;
use crate::{Failure, say, table};

/// Prints the end of the audit log, after a check of all of it when wanted.
///
/// # Errors
/// The daemon's refusal: also when the log is not as it was written.
pub fn show(daemon: &Daemon, last: u64, verify: bool, as_json: bool) -> Result<(), Failure> {
    let Reply::Audit { records, verified } = daemon.ask(&Request::Audit { last, verify })? else {
        return Err(Failure::Refused("the daemon answered something else".to_owned()));
    };
    if as_json {
        let records: Vec<Value> =
            records.iter().filter_map(|record| serde_json::from_str(record).ok()).collect();
        return say(&table::json(&json!({"records": records, "verified": verified}))?);
    }
    let mut text: String = records.iter().map(|record| line(record)).collect();
    if let Some(verified) = verified {
        text.push_str(&format!("{}\n", printable(&verified)));
    }
    say(&text)
}

/// Number, time, what happened, and the statements it rests on.
fn line(record: &str) -> String {
    let Ok(fields) = serde_json::from_str::<Value>(record) else { return format!("{}\n", printable(record)) };
    let word = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = fields.get("n").and_then(Value::as_u64).unwrap_or_default();
    // An event of another release is shown as it is.
    let what = serde_json::from_value::<Event>(fields.clone())
        .map_or_else(|_| printable(record), |event| event.to_string());
    let statement = match word("statement") {
        "" => String::new(),
        statement => format!(" [{}]", printable(statement)),
    };
    format!("{number:>8}  {}  {what}{statement}\n", printable(word("time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_line_with_its_statements_and_cannot_steer_the_terminal() {
        let record = r#"{"n":7,"prev":"00","time":"2026-11-25T00:00:00Z","event":"member_revoked","group":"g1","member":"gm\u001b7","statement":"gcks.toml:40 group.g1"}"#;
        assert_eq!(
            line(record),
            "       7  2026-11-25T00:00:00Z  g1: gm\\u{1b}7 revoked: it may not register any more, and the keys change [gcks.toml:40 group.g1]\n"
        );
        assert!(line(r#"{"n":1,"event":"from_the_future"}"#).contains("from_the_future"));
    }
}
