//! `gdoictl member check`: registers again, harmlessly, and tells how far it got and what will soon be in the way.
//!
//! ```text
//! VPN  Check       Result
//! v    key server  good    reached, 192.0.2.1:848
//! v    phase 1     good    established: aes-256-cbc/sha-256/group19/ecdsa-256
//! v    keys        good    registered, TEKs [0x67bd01da]
//! v    clocks      good    3 senders, the furthest is 10.0.0.2 at 12 ms; 0 packets dropped for their time
//! ```
//!
//! Certificates are part of phase 1: one that does not hold fails it, with the reason.

use std::time::Duration;

use ctl::client::ClientError;
use ctl::control::Request;
use ctl::event::Event;
use ctl::observe::{GmSnapshot, VpnView};
use serde_json::json;

use crate::connect::Daemon;
use crate::table::{self, Table};
use crate::{Failure, say};

/// Longest silence of the daemon that is waited for: all retransmissions to one server.
const PATIENCE: Duration = Duration::from_secs(75);
/// A clock this far from ours, in microseconds, is worth a look even when nothing is dropped.
const FAR: i64 = 500_000;

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    vpn: String,
    what: &'static str,
    good: bool,
    text: String,
}

/// What one registration came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Course {
    server: Option<String>,
    phase1: Option<Result<String, String>>,
    end: Option<Result<String, String>>,
}

impl Course {
    /// Takes an event in; true when the registration of `vpn` is over.
    fn take(&mut self, vpn: &str, event: &Event) -> bool {
        match event {
            Event::Registering { vpn: of, server } if of == vpn => self.server = Some(server.clone()),
            Event::Phase1Established { peer, suite, .. } if self.is_of(peer) => {
                self.phase1 = Some(Ok(suite.clone()));
            }
            Event::Phase1Failed { peer, reason, .. } | Event::Phase1Refused { peer, reason, .. }
                if self.is_of(peer) =>
            {
                self.phase1 = Some(Err(reason.clone()));
            }
            Event::Registered { vpn: of, server, teks, .. } if of == vpn => {
                self.server = Some(server.clone());
                self.end = Some(Ok(teks.join(" ")));
            }
            Event::RegistrationFailed { vpn: of, reason, .. } | Event::PolicyRefused { vpn: of, reason }
                if of == vpn =>
            {
                self.end = Some(Err(reason.clone()));
            }
            Event::ServerUnreachable { vpn: of, server } if of == vpn => {
                self.end = Some(Err(format!("{server} does not answer")));
            }
            _ => {}
        }
        self.end.is_some()
    }

    /// Ports change behind a NAT; addresses do not.
    fn is_of(&self, peer: &str) -> bool {
        let address = |text: &str| text.rsplit_once(':').map(|(address, _)| address.to_owned());
        self.server.as_deref().is_some_and(|server| address(server) == address(peer))
    }
}

/// Checks every VPN, or one.
///
/// # Errors
/// [`Failure::Refused`] after the result was shown, when a check failed; the daemon's refusal.
pub fn check(daemon: &Daemon, json: bool) -> Result<(), Failure> {
    let before = daemon.gm()?;
    let mut findings = Vec::new();
    for vpn in &before.vpns {
        // Before the wish: no answer is too quick for us.
        let events = daemon.watch()?;
        daemon.ask(&Request::Register { vpn: Some(vpn.name.clone()) })?;
        events.set_timeout(Some(PATIENCE))?;
        let mut course = Course { server: Some(vpn.server.clone()), ..Course::default() };
        for event in events {
            match event {
                Ok(stamped) if course.take(&vpn.name, &stamped.event) => break,
                Ok(_) | Err(ClientError::NotUnderstood(_)) => {}
                Err(_) => break,
            }
        }
        findings.extend(read(&vpn.name, &course, &daemon.gm()?));
    }
    say(&show(&findings, json)?)?;
    match findings.iter().filter(|finding| !finding.good).count() {
        0 => Ok(()),
        failed => Err(Failure::Refused(format!("{failed} of {} checks failed", findings.len()))),
    }
}

fn read(vpn: &str, course: &Course, after: &GmSnapshot) -> Vec<Finding> {
    let finding = |what, good, text| Finding { vpn: vpn.to_owned(), what, good, text };
    let server = course.server.clone().unwrap_or_default();
    let mut findings = Vec::new();
    let kept = after.ike_sas.iter().find(|sa| course.is_of(&sa.peer));
    let answered = course.phase1.is_some() || matches!(course.end, Some(Ok(_))) || kept.is_some();
    let reached = if answered { "reached" } else { "no answer" };
    findings.push(finding("key server", answered, format!("{reached}, {server}")));
    let phase1 = match (&course.phase1, kept) {
        (Some(Err(reason)), _) => Err(reason.clone()),
        (Some(Ok(suite)), _) => Ok(format!("established: {suite}")),
        (None, Some(sa)) => Ok(format!("in use for {} s more: {}", sa.remaining_seconds, sa.suite)),
        (None, None) => Err("not established".to_owned()),
    };
    findings.push(finding("phase 1", phase1.is_ok(), phase1.unwrap_or_else(|reason| reason)));
    let keys = match &course.end {
        Some(Ok(teks)) => Ok(format!("registered, TEKs [{teks}]")),
        Some(Err(reason)) => Err(reason.clone()),
        None => Err("the registration did not end in time".to_owned()),
    };
    findings.push(finding("keys", keys.is_ok(), keys.unwrap_or_else(|reason| reason)));
    let view = after.vpns.iter().find(|view| view.name == vpn);
    findings.extend(view.and_then(clocks).map(|(good, text)| finding("clocks", good, text)));
    findings
}

/// Clocks of senders, where the group measures them.
fn clocks(view: &VpnView) -> Option<(bool, String)> {
    let skews = &view.traffic.as_ref()?.skews;
    let worst = skews.iter().max_by_key(|skew| skew.last_microseconds.unsigned_abs())?;
    let refused: u64 = skews.iter().map(|skew| skew.refused).sum();
    let apart = worst.last_microseconds;
    let text = format!(
        "{} senders, the furthest is {} at {} ms; {refused} packets dropped for their time",
        skews.len(),
        worst.sender,
        apart / 1000
    );
    Some((apart.abs() < FAR, text))
}

fn show(findings: &[Finding], json: bool) -> Result<String, Failure> {
    if json {
        let of = |finding: &Finding| json!({"vpn": finding.vpn, "check": finding.what, "good": finding.good, "text": finding.text});
        return table::json(&findings.iter().map(of).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["VPN", "Check", "Result", ""]);
    for finding in findings {
        let result = if finding.good { "good" } else { "FAILED" };
        table.row([finding.vpn.clone(), finding.what.to_owned(), result.to_owned(), finding.text.clone()]);
    }
    Ok(table.or("no VPNs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn a_registration_is_followed_to_its_end_and_others_are_not_looked_at() {
        let mut course = Course { server: Some(text("192.0.2.1:848")), ..Course::default() };
        let established = |peer: &str| Event::Phase1Established {
            peer: text(peer),
            identity: text("i"),
            suite: text("s"),
            role: text("initiator"),
        };
        assert!(!course.take("v", &established("192.0.2.2:848")));
        assert_eq!(course.phase1, None);
        assert!(!course.take("v", &established("192.0.2.1:4500")));
        assert_eq!(course.phase1, Some(Ok(text("s"))));
        let registered = |vpn: &str| Event::Registered {
            vpn: text(vpn),
            server: text("192.0.2.1:848"),
            kek_spi: None,
            teks: vec![text("0x00000007")],
            sender_ids: Vec::new(),
        };
        assert!(!course.take("v", &registered("w")));
        assert!(course.take("v", &registered("v")));
        let lines = read("v", &course, &GmSnapshot::default());
        assert!(lines.iter().all(|line| line.good), "{lines:?}");
        assert_eq!(lines.iter().map(|line| line.what).collect::<Vec<_>>(), ["key server", "phase 1", "keys"]);
    }

    #[test]
    fn the_first_thing_that_is_wrong_is_named() {
        let course = Course { server: Some(text("192.0.2.1:848")), ..Course::default() };
        let lines = read("v", &course, &GmSnapshot::default());
        assert_eq!((lines[0].good, lines[0].text.as_str()), (false, "no answer, 192.0.2.1:848"));
        let refused = Course { phase1: Some(Err(text("certificate expired"))), ..course };
        let lines = read("v", &refused, &GmSnapshot::default());
        assert!(lines[0].good);
        assert_eq!((lines[1].good, lines[1].text.as_str()), (false, "certificate expired"));
        assert!(show(&lines, false).unwrap().contains("FAILED"));
    }
}
