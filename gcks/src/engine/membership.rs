//! Memberships that end: by silence, told step by step, or by themselves at the `valid-until` of their gateway.
//!
//! ```text
//! registered --a rekey unanswered--> suspect --missed-rekeys of them in a row--> expired
//!            <--------acknowledged--
//! registered --valid-until--> ended: no registration from then on, and new keys for the rest at that moment
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ctl::event::Event;
use ctl::time::rfc3339;
use gdoi_proto::ids::Spi;
use ike::io::{Entropy, Instant, Now, Wakeup};

use super::durable::Change;
use super::group::{Group, GroupOutput};
use super::member::{Member, MemberKey};
use super::peers::Asker;
use super::roster::MemberNumber;
use super::rows;
use super::settings::{Acknowledgement, GatewaySettings};

/// Members that are gone and still shown, at most.
const FORMER: usize = 256;

/// Why somebody is gone, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It left `missed-rekeys` rekeys unanswered.
    Expired,
    /// Its membership ended by itself.
    Ended,
}

/// Somebody who was a member in this life of the server.
#[derive(Debug, Clone)]
pub struct Former {
    /// Its identity.
    pub key: MemberKey,
    /// Its record when it went.
    pub member: Member,
    /// Why it went.
    pub gone: Gone,
    /// When.
    pub since: Instant,
}

/// When memberships end by themselves.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// Gateways of the group that say so, in Unix seconds.
    stated: BTreeMap<Arc<str>, u64>,
    /// The moments that did not come yet.
    pending: BTreeSet<(Instant, Arc<str>)>,
}

impl Ends {
    /// When a gateway's memberships end, Unix seconds.
    pub(super) fn of(&self, gateway: &str) -> Option<u64> {
        self.stated.get(gateway).copied()
    }
}

impl Group {
    /// Members that expired or whose membership ended, oldest first.
    pub fn former(&self) -> impl Iterator<Item = &Former> {
        self.former.iter()
    }

    fn remember_former(&mut self, former: Former) {
        if self.former.len() == FORMER {
            self.former.pop_front();
        }
        self.former.push_back(former);
    }

    /// It is a member again.
    pub(super) fn is_back(former: &mut VecDeque<Former>, key: &MemberKey) {
        former.retain(|former| former.key != *key);
    }

    /// A member left a rekey unanswered, all copies of it: it is suspect, or expired.
    pub(super) fn on_missed(
        &mut self,
        now: Instant,
        number: MemberNumber,
        (acknowledgement, limit): (Acknowledgement, u32),
        changes: &mut Vec<Change>,
    ) {
        let Some(key) = self.members.key(number).cloned() else { return };
        let Some(member) = self.members.get_mut(number) else { return };
        member.missed += 1;
        self.counters.unacknowledged += 1;
        let member = member.clone();
        let (group, name) = (self.settings.name.clone(), key.to_string());
        let (missed, address) = (u64::from(member.missed), member.peer.to_string());
        let gateway = member.gateway.to_string();
        let required = acknowledgement == Acknowledgement::Required;
        if required && member.missed >= limit {
            self.counters.expired += 1;
            self.event(Event::MemberExpired { group, member: name, address, missed, gateway });
            changes.extend(self.forget_member(&key, "no acknowledgement"));
            self.out.push_back(GroupOutput::DeleteIdentity(key.clone(), "no acknowledgement".to_owned()));
            self.remember_former(Former { key, member, gone: Gone::Expired, since: now });
            return;
        }
        if required {
            // A restart must not give it another chance.
            changes.push(self.member_row(&key, &member));
        } else if member.missed > 1 || member.acks == 0 {
            // Who was only asked is told of once, and who never answered need not know how.
            return;
        }
        self.counters.suspected += u64::from(missed == 1);
        let limit = required.then_some(u64::from(limit));
        self.event(Event::MemberSuspect { group, member: name, address, missed, limit, gateway });
    }

    /// A member acknowledged after `missed` rekeys without a word.
    pub(super) fn on_answer_of_suspect(&mut self, number: MemberNumber, missed: u32) {
        let (Some(key), Some(member)) = (self.members.key(number), self.members.at_number(number)) else {
            return;
        };
        let row = self.member_row(key, member);
        let event = Event::MemberRecovered {
            group: self.settings.name.clone(),
            member: key.to_string(),
            missed: u64::from(missed),
            gateway: member.gateway.to_string(),
        };
        self.out.push_back(GroupOutput::Persist(vec![row]));
        self.event(event);
    }

    /// Takes the moments at which memberships end from the configuration.
    pub(super) fn state_ends<'g>(
        &mut self,
        now: Now,
        gateways: impl IntoIterator<Item = &'g GatewaySettings>,
    ) {
        let stated = gateways.into_iter().filter_map(|gateway| {
            let name = self.gateway(&gateway.name)?;
            Some((name, gateway.valid_until?))
        });
        self.ends.stated = stated.collect();
        self.schedule_ends(now);
    }

    /// They are moments of the wall clock: when that is set, they come at other moments of the monotonic one. What is past
    /// comes at once, for members that were let in before.
    pub(super) fn schedule_ends(&mut self, now: Now) {
        let moment = |(name, unix): (&Arc<str>, &u64)| (rows::at(now, *unix), name.clone());
        self.ends.pending = self.ends.stated.iter().map(moment).collect();
    }

    pub(super) fn ends_wakeup(&self) -> Option<Wakeup> {
        let (at, _) = self.ends.pending.first().filter(|_| self.must_be_ready().is_ok())?;
        Some(Wakeup { at: *at, why: "end of a membership" })
    }

    /// Members whose time is over go, all of a moment together, and the rest gets new keys as after `expel`.
    pub(super) fn on_ends(&mut self, now: Now, entropy: &mut dyn Entropy) {
        if self.must_be_ready().is_err() {
            return;
        }
        let mut over = BTreeSet::new();
        while let Some((_, name)) = self.ends.pending.first().filter(|(at, _)| *at <= now.at).cloned() {
            self.ends.pending.pop_first();
            over.insert(name);
        }
        if over.is_empty() {
            return;
        }
        let is_over = |member: &Member| over.contains(&member.gateway);
        let gone: Vec<(MemberKey, Member)> = self
            .members
            .iter()
            .filter(|(_, member)| is_over(member))
            .map(|(key, member)| (key.clone(), member.clone()))
            .collect();
        if gone.is_empty() {
            return;
        }
        let held: BTreeSet<Spi> = self.teks.iter().map(|tek| tek.spi).collect();
        let mut changes = Vec::new();
        for (key, member) in &gone {
            changes.extend(self.remove_member(key, "its membership ended (valid-until)"));
            let former =
                Former { key: key.clone(), member: member.clone(), gone: Gone::Ended, since: now.at };
            self.remember_former(former);
        }
        changes.extend(self.is_overheard());
        if self.settings.rekey_on_leave {
            self.rekey_all(now, "a membership ended", changes, entropy);
        } else {
            self.out.push_back(GroupOutput::Persist(changes));
        }
        let seconds = |tek: &super::group::Tek| tek.life(now.at).as_secs();
        let keys_end_seconds =
            self.teks.iter().filter(|tek| held.contains(&tek.spi)).map(seconds).max().unwrap_or(0);
        let next_keys_seconds = self.teks.iter().filter(|tek| !held.contains(&tek.spi)).map(seconds).min();
        for (key, member) in gone {
            self.counters.ended += 1;
            self.event(Event::MembershipEnded {
                group: self.settings.name.clone(),
                member: key.to_string(),
                address: member.peer.to_string(),
                gateway: member.gateway.to_string(),
                valid_until: self.ends.of(&member.gateway).map(rfc3339).unwrap_or_default(),
                keys_end_seconds,
                next_keys_seconds,
            });
        }
    }

    /// True, and told, when the membership of who asks is over.
    pub(super) fn refuses_ended(&mut self, now: Now, asker: &Asker) -> bool {
        let Some(end) = asker.gateway.valid_until.filter(|_| asker.gateway.is_over(now.unix_seconds)) else {
            return false;
        };
        let (end, name, line) = (rfc3339(end), &asker.gateway.name, asker.gateway.line);
        self.refuse(
            asker,
            format!("its membership ended at {end}: valid-until of gateway {name} (line {line})"),
        );
        true
    }
}
