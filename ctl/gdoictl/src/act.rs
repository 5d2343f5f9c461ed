//! Commands that change something.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ctl::client::ClientError;
use ctl::control::{Reply, Request};
use ctl::event::{Event, Stamped};

use crate::Failure;
use crate::args::{ClearWhat, StateWhat};
use crate::connect::Daemon;
use crate::server::select;
use crate::table;
use crate::{plan, say, watch};

/// Takes a member out of the list.
///
/// # Errors
/// The daemon's refusal.
pub fn expel(daemon: &Daemon, group: String, member: String, json: bool) -> Result<(), Failure> {
    simple(daemon, &Request::Expel { group: canonical(daemon, group)?, member }, json)
}

/// Locks a member out and follows the acknowledgements of the others to the end.
///
/// # Errors
/// The daemon's refusal, or when the end does not come in time.
pub fn revoke(daemon: &Daemon, group: &str, member: String, json: bool) -> Result<(), Failure> {
    follow(daemon, group, json, |group| Request::Revoke { group, member })
}

/// Lets a revoked identity in again.
///
/// # Errors
/// The daemon's refusal.
pub fn unrevoke(daemon: &Daemon, group: String, member: String, json: bool) -> Result<(), Failure> {
    simple(daemon, &Request::Unrevoke { group: canonical(daemon, group)?, member }, json)
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

/// Verifies, copies or seals the stored state.
///
/// # Errors
/// The daemon's refusal, or when the current directory is not known.
pub fn state(daemon: &Daemon, what: StateWhat, json: bool) -> Result<(), Failure> {
    let request = match what {
        StateWhat::Verify => Request::StateVerify,
        StateWhat::Reseal => Request::StateReseal,
        StateWhat::Backup { file } => {
            // The daemon writes it, and stands elsewhere.
            let file = std::path::absolute(&file).map_err(|error| Failure::Refused(error.to_string()))?;
            let file =
                file.to_str().ok_or_else(|| Failure::Usage("a file name in UTF-8 is needed".to_owned()))?;
            Request::StateBackup { file: file.to_owned() }
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

/// Lets a member use `file`, or the one it was started with.
///
/// # Errors
/// The problems of the file, or the daemon's refusal.
pub fn apply(daemon: &Daemon, file: Option<&Path>, json: bool) -> Result<(), Failure> {
    simple(daemon, &Request::Apply { file: file.map(plan::absolute).transpose()? }, json)
}

fn simple(daemon: &Daemon, request: &Request, json: bool) -> Result<(), Failure> {
    let reply = daemon.ask(request)?;
    if json {
        return say(&table::json(&reply)?);
    }
    match reply {
        Reply::Done { text, .. } => say(&format!("{}\n", ctl::event::printable(&text))),
        Reply::Refused { reason } => Err(Failure::Refused(reason)),
        Reply::Snapshot(_) | Reply::Plan(_) | Reply::Audit { .. } | Reply::Explained { .. } => {
            Err(Failure::Refused("the daemon answered something else".to_owned()))
        }
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
    let (tek, kek) = if only == (false, false) { (true, true) } else { only };
    follow(daemon, group, json, |group| Request::Rekey { group, tek, kek })
}

/// Asks for something that rekeys, and tells how that goes until it is over.
fn follow(
    daemon: &Daemon,
    group: &str,
    json: bool,
    wish: impl FnOnce(String) -> Request,
) -> Result<(), Failure> {
    let snapshot = daemon.gcks()?;
    let Some(view) = select(&snapshot, Some(group))?.first().copied() else {
        return Err(Failure::Refused(format!("no group {group}")));
    };
    // Before the wish: no acknowledgement is too quick for us.
    let events = daemon.watch()?;
    let reply = daemon.ask(&wish(view.name.clone()))?;
    let Reply::Done { text, rekey, .. } = &reply else {
        return Err(Failure::Refused("the daemon answered something else".to_owned()));
    };
    say(&if json { watch::json_line(&reply)? } else { lines(text) })?;
    // Without one there is nothing to follow: nobody to tell, or no KEK.
    let Some(rekey) = *rekey else { return Ok(()) };
    let span = view
        .communication
        .as_ref()
        .map_or(120, |it| it.retransmission_period * (it.number_of_retransmission + 1));
    events.set_timeout(Some(Duration::from_secs(span + 30)))?;
    let mut progress = Progress::new(view.name.clone(), rekey);
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

/// A daemon's text line by line, each fit for a terminal.
fn lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", ctl::event::printable(line))).collect()
}

/// One rekey, followed from its start, which a queued one has later than the reply.
struct Progress {
    group: String,
    rekey: u64,
    /// How many PUSHes it takes.
    pushes: u64,
    /// Those PUSHes by KEK and SEQ: members they went to, and acknowledgements.
    under_way: BTreeMap<(String, u64), (u64, u64)>,
    completed: u64,
}

impl Progress {
    fn new(group: String, rekey: u64) -> Progress {
        Progress { group, rekey, pushes: 0, under_way: BTreeMap::new(), completed: 0 }
    }

    /// What to print for an event of this rekey, and whether it is the last.
    fn on(&mut self, stamped: &Stamped) -> Option<(String, bool)> {
        match &stamped.event {
            Event::RekeyStarted { group, rekey, pushes, kek_spi, seq, .. }
                if *group == self.group && *rekey == self.rekey =>
            {
                self.pushes = *pushes;
                self.under_way.insert((kek_spi.clone(), *seq), (0, 0));
                None
            }
            Event::PushSent { group, seq, kek_spi, attempt, members, way } => {
                let which = self.which(*seq);
                let (all, _) = self.ours(group, kek_spi, *seq)?;
                if *attempt == 1 {
                    *all = *members;
                }
                Some((format!("{which}sent to {members} members by {way}, attempt {attempt}"), false))
            }
            Event::AckReceived { group, member, seq, kek_spi, milliseconds } => {
                let which = self.which(*seq);
                let (all, done) = self.ours(group, kek_spi, *seq)?;
                *done += 1;
                let bar = bar(*done, *all);
                let member = ctl::event::printable(member);
                Some((format!("{which}{bar} {member} acknowledged after {milliseconds} ms"), false))
            }
            Event::MemberExpired { group, .. } if *group == self.group => {
                Some((stamped.event.to_string(), false))
            }
            Event::RekeyCompleted { group, seq, kek_spi, acknowledged, missing, seconds } => {
                self.ours(group, kek_spi, *seq)?;
                self.completed += 1;
                let missing: Vec<String> =
                    missing.iter().map(|member| ctl::event::printable(member)).collect();
                let end = match missing.as_slice() {
                    [] => "nobody is missing".to_owned(),
                    some => format!("{} did not answer: {}", some.len(), some.join(", ")),
                };
                let which = self.which(*seq);
                let line = format!("{which}done in {seconds:.1} s, {acknowledged} acknowledged, {end}");
                Some((line, self.completed == self.pushes))
            }
            _ => None,
        }
    }

    fn ours(&mut self, group: &str, kek_spi: &str, seq: u64) -> Option<&mut (u64, u64)> {
        if group != self.group {
            return None;
        }
        self.under_way.get_mut(&(kek_spi.to_owned(), seq))
    }

    /// The number, where there are several.
    fn which(&self, seq: u64) -> String {
        if self.pushes > 1 { format!("SEQ {seq}: ") } else { String::new() }
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

    fn started(rekey: u64, kek_spi: &str, seq: u64, pushes: u64) -> Event {
        Event::RekeyStarted {
            group: "g1".to_owned(),
            rekey,
            pushes,
            seq,
            kek_spi: kek_spi.to_owned(),
            teks: Vec::new(),
            new_kek: None,
            members: 2,
            octets: 300,
            why: "operator".to_owned(),
        }
    }

    fn sent(kek_spi: &str, seq: u64) -> Event {
        let (group, kek_spi, way) = ("g1".to_owned(), kek_spi.to_owned(), "unicast".to_owned());
        Event::PushSent { group, seq, kek_spi, attempt: 1, members: 2, way }
    }

    fn ack(kek_spi: &str, seq: u64) -> Event {
        let (group, member, kek_spi) = ("g1".to_owned(), "gm1".to_owned(), kek_spi.to_owned());
        Event::AckReceived { group, member, seq, kek_spi, milliseconds: 12 }
    }

    fn completed(kek_spi: &str, seq: u64) -> Event {
        Event::RekeyCompleted {
            group: "g1".to_owned(),
            seq,
            kek_spi: kek_spi.to_owned(),
            acknowledged: 1,
            missing: vec!["gm2".to_owned()],
            seconds: 30.0,
        }
    }

    #[test]
    fn a_rekey_is_followed_to_its_end_and_one_with_the_same_number_under_another_kek_is_not_ours() {
        let mut progress = Progress::new("g1".to_owned(), 8);
        let mut on = |event| progress.on(&Stamped::new(0, event));
        for event in [started(7, "0x0a", 1, 1), sent("0x0a", 1), started(8, "0x0b", 1, 1)] {
            assert_eq!(on(event), None);
        }
        let (line, end) = on(sent("0x0b", 1)).unwrap();
        assert_eq!((line.as_str(), end), ("sent to 2 members by unicast, attempt 1", false));
        assert_eq!(on(ack("0x0a", 1)), None);
        assert_eq!(on(ack("0x0b", 1)).unwrap().0, "[##########..........] 1/2 gm1 acknowledged after 12 ms");
        assert_eq!(on(completed("0x0a", 1)), None);
        let (line, end) = on(completed("0x0b", 1)).unwrap();
        assert_eq!((line.as_str(), end), ("done in 30.0 s, 1 acknowledged, 1 did not answer: gm2", true));
    }

    #[test]
    fn a_rekey_of_several_pushes_ends_with_the_last_of_them() {
        let mut progress = Progress::new("g1".to_owned(), 8);
        let mut on = |event| progress.on(&Stamped::new(0, event));
        on(started(8, "0x0b", 4, 2));
        on(started(8, "0x0b", 5, 2));
        assert_eq!(on(sent("0x0b", 4)).unwrap().0, "SEQ 4: sent to 2 members by unicast, attempt 1");
        assert!(!on(completed("0x0b", 5)).unwrap().1);
        assert!(on(completed("0x0b", 4)).unwrap().1);
    }

    #[test]
    fn a_bar_never_overflows() {
        assert_eq!(bar(3, 2), "[####################] 3/2");
        assert_eq!(bar(0, 0), "[....................] 0/0");
    }
}
