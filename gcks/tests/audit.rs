//! The audit log as an operator meets it: what stands in it, what `kill -9` leaves of it, and openssl, which checks it.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use ctl::control::{Reply, Request};
use serde_json::Value;

use support::member::Member;
use support::{Daemon, Site};

fn audit(daemon: &Daemon, verify: bool) -> Result<(Vec<Value>, Option<String>), String> {
    match daemon.ask(&Request::Audit { last: 1000, verify }) {
        Reply::Audit { records, verified } => {
            Ok((records.iter().map(|record| serde_json::from_str(record).unwrap()).collect(), verified))
        }
        Reply::Refused { reason } => Err(reason),
        other => panic!("{other:?}"),
    }
}

/// Waits until a record is there; nothing waits for the log, so that it comes a moment after its event.
fn until(daemon: &Daemon, event: &str) -> Vec<Value> {
    until_there_are(daemon, 1, event)
}

fn until_there_are(daemon: &Daemon, count: usize, event: &str) -> Vec<Value> {
    for _ in 0..600 {
        // The log may not be there yet.
        let records = audit(daemon, false).map(|(records, _)| records).unwrap_or_default();
        if records.iter().filter(|record| record["event"] == event).count() >= count {
            return records;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("not {count} {event} within 30 s")
}

fn named<'a>(records: &'a [Value], event: &str) -> &'a Value {
    records
        .iter()
        .rfind(|record| record["event"] == event)
        .unwrap_or_else(|| panic!("no {event}: {records:#?}"))
}

#[test]
fn a_decision_is_recorded_with_who_why_and_the_lines_it_rests_on() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut member = Member::new(daemon.address());
    member.register();
    daemon.rekey(true);
    let records = until(&daemon, "operator_request");
    let registered = named(&records, "member_registered");
    let identity = registered["member"].as_str().unwrap().to_owned();
    let statement = registered["statement"].as_str().unwrap();
    let lines: Vec<&str> = statement.split(", ").collect();
    let configuration = std::fs::read_to_string(site.path("gcks.toml")).unwrap();
    for (line, table) in lines.iter().zip(["[ike.gateway.", "[group."]) {
        let number: usize = line.split([':', ' ']).nth(1).unwrap().parse().unwrap();
        let said = configuration.lines().nth(number - 1).unwrap();
        assert!(said.starts_with(table), "{line}: {said}");
    }
    assert_eq!(lines.len(), 2);
    let asked = named(&records, "operator_request");
    assert_eq!(asked["uid"].as_u64(), Some(u64::from(rustix::process::getuid().as_raw())));
    assert_eq!(asked["pid"].as_u64(), Some(u64::from(std::process::id())));
    assert!(asked["request"].as_str().unwrap().contains("\"rekey\"") && asked["done"] == true);
    assert_eq!(named(&records, "rekey_started")["why"], "operator");
    assert!(named(&records, "pull_completed")["sender_ids"].is_array());

    let revoke = Request::Revoke { group: "g1".to_owned(), member: identity.clone() };
    assert!(matches!(daemon.ask(&revoke), Reply::Done { .. }));
    let records = until(&daemon, "member_revoked");
    assert!(
        records.iter().any(|record| record["event"] == "member_revoked" && record["member"] == *identity)
    );
    let (_, verified) = audit(&daemon, true).unwrap();
    assert!(verified.unwrap().starts_with("good: lines 1 to "));
    // No key and no secret.
    let text = std::fs::read_to_string(site.path("state/audit/audit.jsonl")).unwrap();
    assert!(!text.contains("key_hex") && text.ends_with('\n'));
    assert_eq!(daemon.stop().0, Some(0));
    let text = std::fs::read_to_string(site.path("state/audit/audit.jsonl")).unwrap();
    assert!(text.lines().rev().nth(1).unwrap().contains("audit_closed"), "{text}");
}

#[test]
fn a_killed_server_names_the_gap_and_the_chain_goes_on() {
    let site = Site::new();
    for start in 0..4 {
        let daemon = site.start(&[]);
        let records = until_there_are(&daemon, start + 1, "started");
        let gaps = records.iter().filter(|record| record["event"] == "audit_gap").count();
        assert_eq!(gaps, start, "one for each time it was killed");
        daemon.rekey(false);
        daemon.kill();
    }
    let daemon = site.start(&[]);
    until_there_are(&daemon, 5, "started");
    let (_, verified) = audit(&daemon, true).unwrap();
    assert!(verified.unwrap().starts_with("good: lines 1 to "));
    daemon.stop();
    // In order: no gap.
    let daemon = site.start(&[]);
    let records = until_there_are(&daemon, 6, "started");
    assert_eq!(records.iter().filter(|record| record["event"] == "audit_gap").count(), 4);
}

#[test]
fn a_changed_log_is_named_and_the_server_goes_on() {
    let site = Site::new();
    let daemon = site.start(&[]);
    until(&daemon, "group_created");
    assert_eq!(daemon.stop().0, Some(0));
    let file = site.path("state/audit/audit.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("group_created", "group_crashed", 1)).unwrap();
    let daemon = site.start(&[]);
    let wrong = audit(&daemon, true).unwrap_err();
    assert!(wrong.contains("not as it was written: audit.jsonl line "), "{wrong}");
    daemon.rekey(true);
}

#[test]
fn a_log_that_cannot_be_opened_stops_nothing_and_is_told() {
    let site = Site::new();
    let daemon = site.start(&[]);
    daemon.stop();
    std::fs::remove_dir_all(site.path("state/audit")).unwrap();
    std::fs::write(site.path("state/audit"), "in the way").unwrap();
    let mut daemon = site.start(&[]);
    daemon.until("the audit log cannot be written");
    Member::new(daemon.address()).register();
    daemon.rekey(true);
    std::fs::remove_file(site.path("state/audit")).unwrap();
    let records = until(&daemon, "audit_recovered");
    assert_eq!(named(&records, "audit_recovered")["lost"], 0);
    assert_eq!(records[0]["event"], "started", "nothing that fits in memory is lost");
}

/// The shell commands of the page, in order.
fn commands() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/audit.md");
    let text = std::fs::read_to_string(page).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

fn run(command: &str, directory: &Path) -> (bool, String) {
    let done = Command::new("sh").args(["-c", command]).current_dir(directory).output().unwrap();
    (done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned())
}

#[test]
fn openssl_checks_the_log_by_the_commands_of_the_page() {
    if Command::new("openssl").arg("version").output().is_err() {
        gdoi_lab::skipped("audit log checked by openssl", "openssl");
        return;
    }
    let site = Site::new();
    let daemon = site.start(&[]);
    Member::new(daemon.address()).register();
    daemon.rekey(true);
    until(&daemon, "operator_request");
    assert_eq!(daemon.stop().0, Some(0));
    let log: PathBuf = site.path("state/audit");
    let [chain, signatures] = &commands()[..] else { panic!("two blocks of commands") };
    let text = std::fs::read_to_string(log.join("audit.jsonl")).unwrap();
    let signed = text.lines().filter(|line| line.contains("\"event\":\"signature\"")).count();
    let (good, said) = run(chain, &log);
    assert!(good && said == "every line follows the one before\n", "{said}");
    let (good, said) = run(signatures, &log);
    assert!(good && said.lines().all(|line| line == "Verified OK"), "{said}");
    assert_eq!(said.lines().count(), signed);

    // In two files.
    let (first, rest) = text.split_at(text.find('\n').unwrap() + 1);
    std::fs::write(log.join("audit-000000000001.jsonl"), first).unwrap();
    std::fs::write(log.join("audit.jsonl"), rest).unwrap();
    assert!(run(chain, &log).0 && run(signatures, &log).0);

    std::fs::write(log.join("audit.jsonl"), rest.replacen("rekey_started", "rekey_stopped", 1)).unwrap();
    let (good, said) = run(chain, &log);
    assert!(!good && said.starts_with("BROKEN before "), "{said}");
    let signature = rest.find("\"event\":\"signature\"").unwrap();
    let (before, after) = rest.split_at(signature);
    let line = before.rfind("{\"n\":").unwrap();
    let forged =
        format!("{}{}{after}", &before[..line], before[line..].replacen("\"prev\":\"", "\"prev\":\"0", 1));
    std::fs::write(log.join("audit.jsonl"), forged).unwrap();
    assert!(!run(signatures, &log).0, "a signature of something else");
}
