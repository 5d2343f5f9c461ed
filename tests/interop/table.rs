//! The table of `docs/interop.md`: written with `GDOI_BLESS=1`, else what was tried is held against it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use crate::ground::{Cell, GROUPS, Outcome, full};

const HEAD: &str = "# Phase 1 with implementations nobody here wrote

Written by `tests/interop` (`GDOI_INTEROP=full GDOI_BLESS=1 cargo test --test interop`); without `GDOI_INTEROP=full`
a sample is tried and held against this table. `asks`: the peer is the initiator and our `gcksd`, then our responder alone,
answers with `compat = [\"phase1-doi-ipsec\"]`; `answers`: our initiator asks twice. A hash stands under a group when with
AES-256-CBC phase 1 was established, R-U-THERE was acknowledged and DELETE was understood, from us and from the peer. ECDSA
goes with the curve of the hash's size. strongSwan talks from port 500 with our port 848: where neither port is 500 it sends a
non-ESP marker before each message. It answers our DOI with its own, 1 (`compat` in both roles). libreswan talks between ports
500, takes DOI 1 only (`compat` in both roles) and has no ECDSA in IKEv1. It asks R-U-THERE only under an IPsec SA, which
GDOI never makes: it answers ours, and asks none.

";

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/interop.md"))
}

/// Prints what came of a cell and keeps it.
pub fn note(peer: &str, role: &'static str, cell: Cell, failed: Option<String>) -> Outcome {
    let said = failed.as_deref().unwrap_or("holds");
    println!("{peer} {role}, {} mode, {}: {said}", cell.mode_name(), cell.suite());
    (role, cell, failed)
}

fn row(peer: &str, role: &str, cell: &Cell) -> String {
    format!("| {peer} | {role} | {} | {} |", cell.mode_name(), cell.kind())
}

/// Writes the table or compares with it.
pub fn settle(peer: &str, version: &str, outcomes: &[Outcome]) {
    let passed = outcomes.iter().filter(|(_, _, failed)| failed.is_none()).count();
    println!("{peer}: {passed} of {} hold", outcomes.len());
    let known = std::fs::read_to_string(path()).unwrap_or_default();
    if std::env::var_os("GDOI_BLESS").is_some() {
        assert!(full(), "GDOI_BLESS needs GDOI_INTEROP=full: the table is written whole");
        return bless(peer, version, outcomes, &known);
    }
    for (role, cell, failed) in outcomes {
        let line = known.lines().find_map(|line| line.strip_prefix(&row(peer, role, cell)));
        let column = GROUPS.iter().position(|group| *group == cell.group.number()).unwrap_or(0);
        let held = line.and_then(|line| line.split('|').nth(column));
        let held = held.is_some_and(|hashes| hashes.split(' ').any(|hash| hash == cell.hash_name()));
        let Some(failed) = failed else { continue };
        assert!(!held, "{peer} {role} {cell:?} held before: {failed}");
    }
    assert!(passed > 0, "nothing of {peer} holds");
}

/// Which versions the table is of: a line for each peer.
fn versions(peer: &str, version: &str, known: &str) -> String {
    let own = format!("- {peer}: ");
    let mut lines: Vec<String> =
        known.lines().filter(|line| line.starts_with("- ")).map(str::to_owned).collect();
    lines.retain(|line| !line.starts_with(&own));
    // The name and the number, without what it was built with.
    let words = version.split_whitespace();
    let end = words.clone().position(|word| word.starts_with(|it: char| it.is_ascii_digit())).unwrap_or(0);
    let version = words.take(end + 1).collect::<Vec<&str>>().join(" ");
    let day = Command::new("date").args(["-u", "+%F"]).output().expect("the day").stdout;
    lines.push(format!("{own}`{version}`, tried whole on {}", String::from_utf8_lossy(&day).trim()));
    lines.sort();
    lines.join("\n")
}

fn bless(peer: &str, version: &str, outcomes: &[Outcome], known: &str) {
    let mut text = format!("{HEAD}{}\n\n", versions(peer, version, known));
    let _ = writeln!(text, "| Peer | Role | Mode | Method | group 14 | group 19 | group 20 | group 31 |");
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    let own = format!("| {peer} |");
    let others = known.lines().filter(|line| line.starts_with("| ") && !line.starts_with(&own));
    let mut rows: Vec<String> =
        others.filter(|line| !line.starts_with("| Peer")).map(str::to_owned).collect();
    for (role, cell, _) in outcomes {
        let mut line = row(peer, role, cell);
        if rows.iter().any(|row| row.starts_with(&line)) {
            continue;
        }
        for group in GROUPS {
            let same = |other: &&Outcome| {
                other.0 == *role
                    && (other.1.mode, other.1.kind(), other.1.group.number())
                        == (cell.mode, cell.kind(), group)
                    && other.2.is_none()
            };
            let hashes: Vec<&str> = outcomes.iter().filter(same).map(|it| it.1.hash_name()).collect();
            let _ = write!(line, " {} |", hashes.join(" "));
        }
        rows.push(line);
    }
    rows.sort();
    let _ = writeln!(text, "{}", rows.join("\n"));
    std::fs::write(path(), text).expect("docs/interop.md");
}
