//! `gdoictl server explain`.

use ctl::control::{Explanation, Reply, Request};

use crate::connect::Daemon;
use crate::table::{self, Table, dash};
use crate::{Failure, say};

/// Prints each step of a registration up to the first that says no.
///
/// # Errors
/// The daemon's refusal.
pub fn explain(daemon: &Daemon, member: String, group: Option<String>, json: bool) -> Result<(), Failure> {
    let Reply::Explained { steps } = daemon.ask(&Request::Explain { member, group })? else {
        return Err(Failure::Refused("the daemon answered something else".to_owned()));
    };
    say(&if json { table::json(&steps)? } else { text(&steps) })
}

fn text(steps: &[Explanation]) -> String {
    let mut table = Table::new(&["Group", "Step", "", "Line", "Why"]);
    for step in steps {
        table.row([
            dash(step.group.as_ref()),
            step.step.clone(),
            if step.yes { "yes" } else { "NO" }.to_owned(),
            dash(step.line),
            step.text.clone(),
        ]);
    }
    table.or("nothing to say")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_a_line_with_the_line_of_its_statement() {
        let steps = [
            Explanation {
                step: "gateway".to_owned(),
                yes: true,
                line: Some(7),
                text: "ike.gateway.a".to_owned(),
                ..Explanation::default()
            },
            Explanation {
                group: Some("g1".to_owned()),
                step: "authorisation".to_owned(),
                text: "revoked".to_owned(),
                ..Explanation::default()
            },
        ];
        let text = text(&steps);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["-", "gateway", "yes", "7", "ike.gateway.a"]);
        assert_eq!(lines[2], ["g1", "authorisation", "NO", "-", "revoked"]);
    }
}
