//! What a configuration of the key server changes: asked for, or done.

use std::path::Path;

use ctl::control::{Plan, Reply, Request};

use crate::connect::Daemon;
use crate::table::{self, Table};
use crate::{Failure, say};

/// Shows what `file` would change.
///
/// # Errors
/// The problems of the file, or the daemon's refusal.
pub fn plan(daemon: &Daemon, file: &Path, json: bool) -> Result<(), Failure> {
    ask(daemon, &Request::Plan { file: absolute(file)? }, json)
}

/// Uses `file`, or the one the daemon was started with.
///
/// # Errors
/// The problems of the file, or the daemon's refusal.
pub fn apply(daemon: &Daemon, file: Option<&Path>, json: bool) -> Result<(), Failure> {
    ask(daemon, &Request::Apply { file: file.map(absolute).transpose()? }, json)
}

/// The daemon reads it, and stands elsewhere.
pub fn absolute(file: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(file).map_err(|error| Failure::Refused(error.to_string()))?;
    path.into_os_string()
        .into_string()
        .map_err(|_| Failure::Usage("the name of the file is not UTF-8".to_owned()))
}

fn ask(daemon: &Daemon, request: &Request, json: bool) -> Result<(), Failure> {
    match daemon.ask(request)? {
        Reply::Plan(plan) if json => say(&table::json(&plan)?),
        Reply::Plan(plan) => say(&text(&plan)),
        _ => Err(Failure::Refused("the daemon answered something else".to_owned())),
    }
}

fn text(plan: &Plan) -> String {
    let mut groups =
        Table::new(&["Group", "Change", "Members", "Expelled", "SAs", "Rekeys", "New KEK", "DTD"]);
    let mut pushes =
        Table::new(&["Group", "Push", "Octets", "Limit", "TEKs", "Deletes", "New KEK", "Members"]);
    let mut lines = String::new();
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    for group in &plan.groups {
        let sas = format!(
            "+{} -{} ~{} <{}",
            group.sas_added.len(),
            group.sas_removed.len(),
            group.sas_changed.len(),
            group.sas_shortened.len()
        );
        groups.row([
            group.group.clone(),
            group.change.clone(),
            group.members.to_string(),
            group.expelled.len().to_string(),
            sas,
            group.rekeys.to_string(),
            yes(group.new_kek),
            table::dash(group.deactivation_delay),
        ]);
        for (push, number) in group.pushes.iter().zip(1..) {
            pushes.row([
                group.group.clone(),
                format!("{number}"),
                push.octets.to_string(),
                push.limit.to_string(),
                push.teks.to_string(),
                push.deletes.to_string(),
                yes(push.new_kek),
                push.members.to_string(),
            ]);
        }
        for (what, names) in [
            ("SA added", &group.sas_added),
            ("SA removed", &group.sas_removed),
            ("SA changed", &group.sas_changed),
            ("SA shortened", &group.sas_shortened),
            ("expelled", &group.expelled),
            ("note", &group.notes),
        ] {
            for name in names {
                lines.push_str(&ctl::event::printable(&format!("{}: {what}: {name}", group.group)));
                lines.push('\n');
            }
        }
    }
    for (what, names) in [
        ("gateway added", &plan.gateways_added),
        ("gateway removed", &plan.gateways_removed),
        ("only a restart takes", &plan.restart),
    ] {
        for name in names {
            lines.push_str(&ctl::event::printable(&format!("{what}: {name}")));
            lines.push('\n');
        }
    }
    let end = if plan.applied { "applied\n" } else { "nothing changed yet: gdoictl server apply\n" };
    format!("{}\n{}\n{lines}{end}", groups.or("no group"), pushes.or("no push"))
}
