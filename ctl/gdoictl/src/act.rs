//! Commands that change something.

use std::time::Duration;

use ctl::client::ClientError;
use ctl::control::{Reply, Request};
use ctl::event::{Event, Stamped};

use crate::Failure;
use crate::args::ClearWhat;
use crate::connect::Daemon;
use crate::server::select;
use crate::table;
use crate::{say, watch};

/// Takes a member out of the list.
///
/// # Errors
/// The daemon's refusal.
pub fn expel(daemon: &Daemon, group: String, member: String, json: bool) -> Result<(), Failure> {
    simple(daemon, &Request::Expel { group: canonical(daemon, group)?, member }, json)
}

/// Forgets members or counters.
///
/// # Errors
/// The daemon's refusal.
pub fn clear(daemon: &Daemon, what: ClearWhat, json: bool) -> Result<(), Failure> {
    let request = match what {
        ClearWhat::Members { group } => Request::ClearMembers { group: canonical(daemon, group)? },
        ClearWhat::Statistics { group } => {
            Request::ClearStatistics { group: group.map(|group| canonical(daemon, group)).transpose()? }
        }
    };
    simple(daemon, &request, json)
}

/// Makes a member register again.
///
/// # Errors
/// The daemon's refusal.
pub fn register(daemon: &Daemon, vpn: Option<String>, json: bool) -> Result<(), Failure> {
    simple(daemon, &Request::Register { vpn }, json)
}

fn simple(daemon: &Daemon, request: &Request, json: bool) -> Result<(), Failure> {
    let reply = daemon.ask(request)?;
    if json {
        return say(&table::json(&reply)?);
    }
    match reply {
        Reply::Done { text, .. } => say(&format!("{}\n", ctl::event::printable(&text))),
        Reply::Refused { reason } => Err(Failure::Refused(reason)),
        Reply::Snapshot(_) => Err(Failure::Refused("the daemon answered something else".to_owned())),
    }
}

/// The name of a group given by name or number.
fn canonical(daemon: &Daemon, group: String) -> Result<String, Failure> {
    let snapshot = daemon.gcks()?;
    Ok(select(&snapshot, Some(&group))?.first().map_or(group, |group| group.name.clone()))
}

/// Replaces keys and follows the acknowledgements to the end. `only` are the switches `--tek` and `--kek`; neither
/// means both.
///
/// # Errors
/// The daemon's refusal, or when the end does not come in time.
pub fn rekey(daemon: &Daemon, group: &str, only: (bool, bool), json: bool) -> Result<(), Failure> {
    let snapshot = daemon.gcks()?;
    let Some(view) = select(&snapshot, Some(group))?.first().copied() else {
        return Err(Failure::Refused(format!("no group {group}")));
    };
    // Before the wish: no acknowledgement is too quick for us.
    let events = daemon.watch()?;
    let (tek, kek) = if only == (false, false) { (true, true) } else { only };
    let reply = daemon.ask(&Request::Rekey { group: view.name.clone(), tek, kek })?;
    let Reply::Done { text, seq } = &reply else {
        return Err(Failure::Refused("the daemon answered something else".to_owned()));
    };
    say(&if json { watch::json_line(&reply)? } else { format!("{}\n", ctl::event::printable(text)) })?;
    // Without a PUSH there is nothing to follow: nobody to tell, or no KEK.
    let Some(seq) = seq.map(u64::from) else { return Ok(()) };
    let span = view
        .communication
        .as_ref()
        .map_or(120, |it| it.retransmission_period * (it.number_of_retransmission + 1));
    events.set_timeout(Some(Duration::from_secs(span + 30)))?;
    let mut progress = Progress { group: view.name.clone(), seq, members: 0, acknowledged: 0 };
    for event in events {
        let stamped = match event {
            Ok(stamped) => stamped,
            Err(ClientError::NotUnderstood(_)) => continue,
            Err(ClientError::Broken(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(Failure::Refused(format!(
                    "no end of the rekey after {} s of silence",
                    span + 30
                )));
            }
            Err(error) => return Err(error.into()),
        };
        let Some((line, end)) = progress.on(&stamped) else { continue };
        say(&if json { watch::json_line(&stamped)? } else { line + "\n" })?;
        if end {
            return Ok(());
        }
    }
    Err(Failure::Refused("the daemon stopped before the rekey was over".to_owned()))
}

/// One rekey, followed.
struct Progress {
    group: String,
    seq: u64,
    members: u64,
    acknowledged: u64,
}

impl Progress {
    /// What to print for an event of this rekey, and whether it is the last.
    fn on(&mut self, stamped: &Stamped) -> Option<(String, bool)> {
        match &stamped.event {
            Event::PushSent { group, seq, attempt, members } if self.is(group, *seq) => {
                if *attempt == 1 {
                    self.members = *members;
                }
                Some((format!("sent to {members} members, attempt {attempt}"), false))
            }
            Event::AckReceived { group, member, seq, milliseconds } if self.is(group, *seq) => {
                self.acknowledged += 1;
                let bar = bar(self.acknowledged, self.members);
                let member = ctl::event::printable(member);
                Some((format!("{bar} {member} acknowledged after {milliseconds} ms"), false))
            }
            Event::MemberExpired { group, .. } if *group == self.group => {
                Some((stamped.event.to_string(), false))
            }
            Event::RekeyCompleted { group, seq, acknowledged, missing, seconds } if self.is(group, *seq) => {
                let missing: Vec<String> =
                    missing.iter().map(|member| ctl::event::printable(member)).collect();
                let end = match missing.as_slice() {
                    [] => "nobody is missing".to_owned(),
                    some => format!("{} did not answer: {}", some.len(), some.join(", ")),
                };
                Some((format!("done in {seconds:.1} s, {acknowledged} acknowledged, {end}"), true))
            }
            _ => None,
        }
    }

    fn is(&self, group: &str, seq: u64) -> bool {
        group == self.group && seq == self.seq
    }
}

/// `[####....] 1/2`
fn bar(done: u64, all: u64) -> String {
    let filled = usize::try_from(done.min(all) * 20 / all.max(1)).unwrap_or(0).min(20);
    format!("[{}{}] {done}/{all}", "#".repeat(filled), ".".repeat(20 - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rekey_is_followed_to_its_end_and_others_are_not_ours() {
        let mut progress = Progress { group: "g1".to_owned(), seq: 4, members: 0, acknowledged: 0 };
        let mut on = |event| progress.on(&Stamped::new(0, event));
        let (group, member) = ("g1".to_owned(), "gm1".to_owned());
        let (line, end) =
            on(Event::PushSent { group: group.clone(), seq: 4, attempt: 1, members: 2 }).unwrap();
        assert_eq!((line.as_str(), end), ("sent to 2 members, attempt 1", false));
        let ack = |seq| Event::AckReceived {
            group: "g1".to_owned(),
            member: member.clone(),
            seq,
            milliseconds: 12,
        };
        assert_eq!(on(ack(3)), None);
        assert_eq!(on(ack(4)).unwrap().0, "[##########..........] 1/2 gm1 acknowledged after 12 ms");
        let missing = vec!["gm2".to_owned()];
        let (line, end) =
            on(Event::RekeyCompleted { group, seq: 4, acknowledged: 1, missing, seconds: 30.0 }).unwrap();
        assert_eq!((line.as_str(), end), ("done in 30.0 s, 1 acknowledged, 1 did not answer: gm2", true));
    }

    #[test]
    fn a_bar_never_overflows() {
        assert_eq!(bar(3, 2), "[####################] 3/2");
        assert_eq!(bar(0, 0), "[....................] 0/0");
    }
}
