//! The PULLs under one phase 1: at most eight at a time, and which of them an error notification is about.
//!
//! A notification names no PULL. A server refuses after message 1 only, so those that wait for message 2 may be meant;
//! while they are more than the refusals counted, the answers to the others tell which ones were not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use gdoi_proto::ids::MessageId;
use gdoi_proto::registry::NotifyType;
use ike::io::{Entropy, Instant};
use ike::sa::IkeSa;

use super::super::pull::{Pull, Repeat};
use super::super::settings::VpnSettings;

/// PULLs under way at a time: key servers keep a limit of their own.
pub const MOST_OPEN: usize = 8;

/// VPNs that wait for their PULL, by name.
pub type Waiting = BTreeMap<String, Arc<VpnSettings>>;

/// PULLs under one SA.
#[derive(Debug, Default)]
pub struct Pulls {
    open: BTreeMap<MessageId, Pull>,
    /// VPNs for which the SA was made and that have not finished under it.
    made_for: BTreeSet<String>,
    refusals: usize,
    said: String,
}

/// What the timers of PULLs ask for.
#[derive(Debug, Default)]
pub struct Due {
    /// Octets to send again.
    pub again: Vec<Bytes>,
    /// VPNs that got no answer.
    pub silent: Vec<String>,
    /// Two copies under an SA of earlier days stayed unanswered.
    pub stale: bool,
}

impl Pulls {
    /// None yet, under an SA made for who waits.
    pub fn for_waiting(waiting: &Waiting) -> Pulls {
        Pulls { made_for: waiting.keys().cloned().collect(), ..Pulls::default() }
    }

    /// Begins as many as may be open; their messages 1.
    pub fn start(
        &mut self,
        waiting: &mut Waiting,
        sa: &mut IkeSa,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Vec<Bytes> {
        let mut firsts = Vec::new();
        while self.open.len() < MOST_OPEN
            && let Some((name, vpn)) = waiting.pop_first()
        {
            let (pull, first) = Pull::start(vpn, sa, self.made_for.contains(&name), now, entropy);
            self.open.insert(pull.message_id(), pull);
            firsts.push(first);
        }
        firsts
    }

    /// True while the VPN registers.
    pub fn has(&self, vpn: &str) -> bool {
        self.open.values().any(|pull| pull.vpn().name == vpn)
    }

    /// The PULL of a message.
    pub fn get_mut(&mut self, message_id: MessageId) -> Option<&mut Pull> {
        self.open.get_mut(&message_id)
    }

    /// A PULL is over; the name of its VPN.
    pub fn finish(&mut self, message_id: MessageId) -> Option<String> {
        let name = self.open.remove(&message_id)?.vpn().name.clone();
        self.made_for.remove(&name);
        Some(name)
    }

    /// A VPN wants nothing any more.
    pub fn forget(&mut self, vpn: &str) {
        self.open.retain(|_, pull| pull.vpn().name != vpn);
        self.made_for.remove(vpn);
    }

    /// The server said that something failed: the VPNs that must be meant, with the reason.
    pub fn on_error(&mut self, kind: NotifyType) -> Vec<(String, String)> {
        self.refusals += 1;
        self.said = format!("the server said {kind}");
        self.refused()
    }

    /// The VPNs that must be meant by the refusals so far: those that wait for message 2, unless they are more.
    pub fn refused(&mut self) -> Vec<(String, String)> {
        let asking: Vec<MessageId> =
            self.open.values().filter(|pull| pull.awaits_policy()).map(Pull::message_id).collect();
        if self.refusals == 0 || asking.len() > self.refusals {
            return Vec::new();
        }
        self.refusals = 0;
        let said = std::mem::take(&mut self.said);
        let names = asking.into_iter().filter_map(|message_id| self.finish(message_id));
        names.map(|name| (name, said.clone())).collect()
    }

    /// The SA is gone: who must be told that it failed because the SA was made for it, and who tries a new one.
    pub fn orphans(self, waiting: &mut Waiting) -> Vec<String> {
        for pull in self.open.into_values() {
            waiting.insert(pull.vpn().name.clone(), pull.vpn().clone());
        }
        self.made_for.into_iter().filter(|name| waiting.contains_key(name)).collect()
    }

    /// The next timer.
    pub fn due(&self) -> Option<Instant> {
        self.open.values().map(Pull::due).min()
    }

    /// Repeats and ends what is due.
    pub fn on_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) -> Due {
        let mut due = Due::default();
        let mut over = Vec::new();
        for (message_id, pull) in &mut self.open {
            match pull.on_timeout(now, entropy) {
                Repeat::Wait => {}
                Repeat::Again(octets) => due.again.push(octets),
                Repeat::StaleSa => due.stale = true,
                Repeat::GiveUp => over.push(*message_id),
            }
        }
        due.silent = over.into_iter().filter_map(|message_id| self.finish(message_id)).collect();
        due
    }
}
