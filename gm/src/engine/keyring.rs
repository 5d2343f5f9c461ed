//! The keys of one VPN by generation, and their timers (RFC 5374 section 4.2.1, RFC 6407 section 5.4.1).
//!
//! ```text
//! t0        new TEK: decrypts at once
//! t0+ATD    it encrypts; the old one still decrypts
//! t0+DTD    the TEKs it replaced go
//! life      a TEK nobody replaced goes
//! ```
//!
//! A KEK that is replaced stays until a PUSH under the new one came and DTD (at least 10 s) is over, or its life ends.

#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use ctl::event::Event;
use dataplane::TekInstall;
use gdoi_proto::ids::{KekSpi, SeqNumber, Spi};
use gdoi_proto::payload::Delete;
use gdoi_proto::policy::{AckRequest, Direction, GroupPolicy, KeySet, SenderIds, TekKey, TekPolicy};
use ike::io::Instant;

use super::Cx;
use super::io::Output;
use super::kek::{Kek, soft_expiry};
use super::terms::{self, Age, has_left, same_flow};

/// A replaced KEK stays at least this long.
const OLD_KEK: Duration = Duration::from_secs(10);

/// Terms of a registration are this old at most: lives in them are longer by as much than they are.
const TERMS_AGE: Duration = Duration::from_secs(120);

/// KEKs remembered after they went.
const GONE_KEKS: usize = 8;

/// Every key of one VPN.
#[derive(Debug)]
pub struct Keyring {
    vpn: String,
    teks: Vec<Tek>,
    kek: Option<Kek>,
    old_keks: Vec<OldKek>,
    gone_keks: VecDeque<KekSpi>,
    /// Our Sender-IDs, from the last registration.
    pub sender_ids: Option<SenderIds>,
    /// What the most recent SAK asks for (RFC 8263 section 7.2).
    pub ack_request: Option<AckRequest>,
    deactivation_delay: Duration,
}

/// A TEK in use.
#[derive(Debug)]
pub struct Tek {
    /// Its policy.
    pub policy: TekPolicy,
    /// Its key.
    pub key: TekKey,
    /// End of its life.
    pub expires: Instant,
    /// When it encrypts.
    pub sending: Sending,
    /// Earlier end, because it was replaced.
    pub leaves: Option<Instant>,
    soft: Option<Instant>,
    /// The data plane said that its packets, octets or IVs run out.
    limit_told: Option<Limit>,
}

/// Whether a TEK encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Never: receiver-only, or it counts and we have no Sender-ID.
    Never,
    /// From that moment on.
    At(Instant),
    /// Now.
    Now,
}

#[derive(Debug)]
struct OldKek {
    kek: Kek,
    /// Not dropped before.
    not_before: Instant,
    /// A PUSH under its successor came.
    superseded: bool,
}

/// How far a TEK is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// Its packets, octets or IVs run out.
    Soft,
    /// It encrypts nothing more.
    Spent,
}

/// How the terms of a registration stand to what pushes brought meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing newer is known: what they do not list goes.
    Current,
    /// A PUSH after them was taken: they take nothing away.
    Older,
    /// Their KEK is gone already.
    Gone,
}

/// What the Deletes of a PUSH did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Something was named by SPI 0: everything of its kind.
    pub everything: bool,
    /// How many SAs.
    pub count: u64,
}

fn same_key(left: &TekKey, right: &TekKey) -> bool {
    let integrity = match (&left.integrity, &right.integrity) {
        (Some(left), Some(right)) => left.ct_eq(right.expose()),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    left.encryption.ct_eq(right.encryption.expose()) && integrity
}

impl Keyring {
    /// No keys yet.
    pub fn new(vpn: &str) -> Keyring {
        Keyring {
            vpn: vpn.to_owned(),
            teks: Vec::new(),
            kek: None,
            old_keks: Vec::new(),
            gone_keks: VecDeque::new(),
            sender_ids: None,
            ack_request: None,
            deactivation_delay: Duration::ZERO,
        }
    }

    /// The TEKs: those that only wait to encrypt come last, and of those that encrypt the last one does.
    pub fn teks(&self) -> &[Tek] {
        &self.teks
    }

    /// The current KEK.
    pub fn kek(&self) -> Option<&Kek> {
        self.kek.as_ref()
    }

    /// The KEK of a PUSH: the current one or one being replaced.
    pub fn find_kek(&self, spi: KekSpi) -> Option<&Kek> {
        self.kek.iter().chain(self.old_keks.iter().map(|old| &old.kek)).find(|kek| kek.policy.spi == spi)
    }

    /// Multicast groups that PUSHes of our KEKs come to, each once.
    pub fn channels(&self) -> Vec<SocketAddr> {
        let keks = self.kek.iter().chain(self.old_keks.iter().map(|old| &old.kek));
        let mut channels: Vec<SocketAddr> = keks.filter_map(|kek| kek.channel).collect();
        channels.sort_unstable();
        channels.dedup();
        channels
    }

    /// A PUSH under `spi` verified: its number counts, and what the current KEK replaced may go.
    pub fn accept_seq(&mut self, spi: KekSpi, seq: SeqNumber) {
        if let Some(kek) = self.kek.as_mut().filter(|kek| kek.policy.spi == spi) {
            kek.last = kek.last.max(seq);
            self.old_keks.iter_mut().for_each(|old| old.superseded = true);
        }
        if let Some(old) = self.old_keks.iter_mut().find(|old| old.kek.policy.spi == spi) {
            old.kek.last = old.kek.last.max(seq);
        }
    }

    /// How terms with this KEK and number stand to what is known (RFC 6407 section 3.3): a PUSH may overtake the last
    /// message of a registration.
    pub fn standing(&self, kek: Option<KekSpi>, seq: SeqNumber) -> Standing {
        let Some(spi) = kek else { return Standing::Current };
        match &self.kek {
            Some(current) if current.policy.spi == spi && current.last > seq => Standing::Older,
            Some(current) if current.policy.spi == spi => Standing::Current,
            _ if self.old_keks.iter().any(|old| old.kek.policy.spi == spi) => Standing::Older,
            _ if self.gone_keks.contains(&spi) => Standing::Gone,
            _ => Standing::Current,
        }
    }

    /// Keys of a registration: the new set first, then what the server no longer lists goes after DTD, unless a PUSH after
    /// these terms was taken already. `outside` are SAs that are not ours to install.
    pub fn apply_pull(
        &mut self,
        policy: &GroupPolicy,
        keys: KeySet,
        kek: Option<Kek>,
        (seq, age): (SeqNumber, Age),
        outside: &[Spi],
        cx: &mut Cx<'_>,
    ) {
        let standing = self.standing(kek.as_ref().map(|kek| kek.policy.spi), seq);
        if let Some(sender_ids) = keys.sender_ids {
            self.renew_sender_ids(sender_ids, cx);
        }
        let ours: Vec<(&TekPolicy, TekKey)> = keys
            .teks
            .into_iter()
            .filter(|(spi, _)| !outside.contains(spi))
            .filter_map(|(spi, key)| policy.teks.iter().find(|tek| tek.spi == spi).map(|tek| (tek, key)))
            .collect();
        let activation = terms::activation(policy).saturating_sub(age.least);
        if standing != Standing::Current {
            // The path belongs to the KEK, whatever its PUSHes brought meanwhile.
            if let (Some(known), Some(kek)) = (&mut self.kek, &kek)
                && known.policy.spi == kek.policy.spi
            {
                known.path = kek.path.clone();
            }
            return self.merge(ours, activation, cx);
        }
        self.note_delays(policy);
        self.ack_request = policy.kek.as_ref().and_then(|kek| kek.acknowledgement);
        match kek {
            Some(mut kek) => {
                kek.last = seq;
                self.install_kek(kek, cx);
            }
            None => self.retire_kek(cx.now.at, true),
        }
        let flows: Vec<TekPolicy> = ours.iter().map(|(tek, _)| (*tek).clone()).collect();
        let sending: Vec<Spi> =
            self.teks.iter().filter(|tek| tek.sending == Sending::Now).map(|tek| tek.policy.spi).collect();
        for (tek, key) in ours {
            // What is not listed, the others have dropped.
            let mut flow = flows.iter().filter(|it| same_flow(it, tek) && !has_left(policy, it, age.most));
            let open = flow.any(|other| sending.contains(&other.spi));
            let wait = terms::sends_in(policy, &flows, tek, open, age);
            self.install_tek(tek.clone(), key, wait.map(|wait| cx.now.at + wait), cx);
        }
        self.activate_due(cx);
        let leave = cx.now.at + self.deactivation_delay.max(activation);
        for tek in &mut self.teks {
            if !flows.iter().any(|listed| listed.spi == tek.policy.spi) {
                tek.leaves = Some(tek.leaves.map_or(leave, |before| before.min(leave)));
            }
        }
        self.remove_due(cx);
    }

    /// TEKs of a registration that a PUSH overtook: what is on its way out stays so. Where a TEK that lives longer serves a
    /// flow an unknown one only decrypts; where that one waits yet, the others encrypt under the unknown one until then.
    fn merge(&mut self, listed: Vec<(&TekPolicy, TekKey)>, activation: Duration, cx: &mut Cx<'_>) {
        let sending: Vec<Spi> =
            self.teks.iter().filter(|tek| tek.sending == Sending::Now).map(|tek| tek.policy.spi).collect();
        let flows: Vec<TekPolicy> = listed.iter().map(|(tek, _)| (*tek).clone()).collect();
        for (tek, key) in listed {
            let known = self.teks.iter().find(|known| known.policy.spi == tek.spi);
            if known.is_some_and(|known| known.leaves.is_some()) {
                continue;
            }
            let end = cx.now.at + Duration::from_secs(u64::from(tek.lifetime_seconds));
            let successors: Vec<Sending> = self
                .teks
                .iter()
                .filter(|other| same_flow(&other.policy, tek) && other.leaves.is_none())
                .filter(|other| known.is_none() && other.expires + TERMS_AGE >= end)
                .map(|other| other.sending)
                .collect();
            let served = successors.contains(&Sending::Now);
            let replaced = successors.iter().any(|sending| matches!(sending, Sending::At(_)));
            // One that we send under and that is not listed is older than what is: the others have dropped it.
            let open = flows.iter().any(|other| same_flow(other, tek) && sending.contains(&other.spi));
            let waits = open || (known.is_some() && self.sends(tek));
            let at = if waits { cx.now.at + activation } else { cx.now.at };
            self.install_tek(tek.clone(), key, (!served).then_some(at), cx);
            if let Some(tek) = self.teks.iter_mut().find(|known| replaced && known.policy.spi == tek.spi) {
                tek.leaves = Some(cx.now.at + self.deactivation_delay.max(activation));
            }
        }
        self.activate_due(cx);
        self.remove_due(cx);
    }

    /// New Sender-IDs replace the old ones, in installed TEKs too (RFC 6407 section 5.6.4.3): each begins a new IV space.
    /// Of another width they are for new TEKs only, because their IVs could meet those of the old width.
    fn renew_sender_ids(&mut self, sender_ids: SenderIds, cx: &mut Cx<'_>) {
        let same_width = self.sender_ids.as_ref().is_some_and(|before| before.bits == sender_ids.bits);
        if same_width && self.sender_ids.as_ref() != Some(&sender_ids) {
            for tek in &mut self.teks {
                if tek.policy.needs_sender_id() && tek.sending != Sending::Never {
                    tek.limit_told = None;
                    let (vpn, spi) = (self.vpn.clone(), tek.policy.spi);
                    cx.out.push(Output::SenderIds { vpn, spi, sender_ids: sender_ids.clone() });
                }
            }
        }
        self.sender_ids = Some(sender_ids);
    }

    /// Keys of a PUSH. With DTD the TEKs of the same flows go; without, they live to their end. `outside` are SAs that are
    /// not ours to install. While we register, the others may encrypt under keys that we are about to learn: so a new one
    /// waits for its time even where nothing else encrypts.
    pub fn apply_push(
        &mut self,
        policy: &GroupPolicy,
        keys: KeySet,
        kek: Option<Kek>,
        (outside, registers): (&[Spi], bool),
        cx: &mut Cx<'_>,
    ) {
        self.note_delays(policy);
        if let Some(sak) = &policy.kek {
            self.ack_request = sak.acknowledgement;
        }
        if let Some(kek) = kek {
            self.install_kek(kek, cx);
        }
        let activation = terms::activation(policy);
        let ours: Vec<TekPolicy> =
            policy.teks.iter().filter(|tek| !outside.contains(&tek.spi)).cloned().collect();
        let mut fresh: Vec<TekPolicy> = Vec::new();
        for (spi, key) in keys.teks {
            let Some(tek) = ours.iter().find(|tek| tek.spi == spi) else { continue };
            let open = registers || self.sends(tek);
            let wait = terms::sends_in(policy, &ours, tek, open, Age::default());
            // Told again: its own push said when.
            let known = self.teks.iter().find(|known| known.policy.spi == spi).map(|known| known.sending);
            let at = match known {
                Some(Sending::At(at)) => Some(at),
                Some(Sending::Now | Sending::Never) | None => wait.map(|wait| cx.now.at + wait),
            };
            if self.install_tek(tek.clone(), key, at, cx) {
                fresh.push(tek.clone());
            }
        }
        self.activate_due(cx);
        if policy.deactivation_delay.is_some() {
            let leave = cx.now.at + self.deactivation_delay.max(activation);
            for tek in &mut self.teks {
                let replaced = fresh.iter().any(|new| same_flow(new, &tek.policy))
                    && !policy.teks.iter().any(|listed| listed.spi == tek.policy.spi);
                if replaced {
                    tek.leaves = Some(tek.leaves.map_or(leave, |before| before.min(leave)));
                }
            }
        }
        self.remove_due(cx);
    }

    /// TEKs in use that are neither listed nor replaced by `listed`: what a missed PUSH did to them is not known.
    pub fn left_open(&self, listed: &[TekPolicy]) -> BTreeSet<Spi> {
        let accounted =
            |tek: &Tek| listed.iter().any(|new| new.spi == tek.policy.spi || same_flow(new, &tek.policy));
        let in_use = self.teks.iter().filter(|tek| tek.leaves.is_none());
        in_use.filter(|tek| !accounted(tek)).map(|tek| tek.policy.spi).collect()
    }

    fn note_delays(&mut self, policy: &GroupPolicy) {
        self.deactivation_delay = Duration::from_secs(u64::from(policy.deactivation_delay.unwrap_or(0)));
    }

    fn sends(&self, flow: &TekPolicy) -> bool {
        self.teks.iter().any(|tek| tek.sending == Sending::Now && same_flow(&tek.policy, flow))
    }

    /// Installs a TEK that encrypts from `at` on, or never; false when it was there already with the same key, and only
    /// its life was set anew.
    fn install_tek(&mut self, policy: TekPolicy, key: TekKey, at: Option<Instant>, cx: &mut Cx<'_>) -> bool {
        let now = cx.now.at;
        let life = Duration::from_secs(u64::from(policy.lifetime_seconds));
        let may_send = policy.direction != Direction::ReceiverOnly
            && (!policy.needs_sender_id() || self.sender_ids.is_some());
        let at = at.filter(|_| may_send);
        let sending = at.map_or(Sending::Never, Sending::At);
        let soft = soft_expiry(life, now, cx.entropy);
        if let Some(known) = self.teks.iter_mut().find(|tek| tek.policy.spi == policy.spi) {
            let same = same_key(&known.key, &key) && known.policy.cipher == policy.cipher;
            // A TEK that sent must not be installed again under the same key: its counter would restart
            // (RFC 6054 section 2).
            if same && (known.sending != Sending::Never || at.is_none()) {
                known.expires = now + life;
                known.soft = soft;
                known.leaves = None;
                if let Sending::At(before) = known.sending {
                    known.sending = at.map_or(Sending::Never, |at| Sending::At(before.min(at)));
                }
                self.sort_teks();
                return false;
            }
        }
        self.teks.retain(|tek| tek.policy.spi != policy.spi);
        let activate_after = at.map(|at| at.since(now));
        cx.out.push(Output::Install(TekInstall {
            vpn: self.vpn.clone(),
            policy: policy.clone(),
            key: key.clone(),
            sender_ids: self.sender_ids.clone().filter(|_| policy.needs_sender_id()),
            activate_after,
            delay_detection: policy.delay_window,
        }));
        cx.out.event(Event::TekInstalled {
            vpn: self.vpn.clone(),
            spi: policy.spi.to_string(),
            lifetime_seconds: u64::from(policy.lifetime_seconds),
            send_after_seconds: activate_after.unwrap_or(life).as_secs(),
        });
        self.teks.push(Tek {
            policy,
            key,
            expires: now + life,
            sending,
            leaves: None,
            soft,
            limit_told: None,
        });
        self.sort_teks();
        true
    }

    /// Of those that encrypt the last one does.
    fn sort_teks(&mut self) {
        self.teks.sort_by_key(|tek| match tek.sending {
            Sending::At(at) => Some(at),
            Sending::Now | Sending::Never => None,
        });
    }

    /// A KEK that is new replaces the current one; a known one keeps its higher number: then the SEQ of a registration is
    /// stale (RFC 6407 section 3.3).
    fn install_kek(&mut self, mut kek: Kek, cx: &mut Cx<'_>) {
        let spi = kek.policy.spi;
        if let Some(current) = self.kek.as_mut().filter(|current| current.policy.spi == spi) {
            current.last = current.last.max(kek.last);
            if kek.path.is_some() {
                current.path = kek.path;
            }
            current.life_anew(kek.policy.lifetime_seconds, cx.now.at, cx.entropy);
            return;
        }
        if let Some(index) = self.old_keks.iter().position(|old| old.kek.policy.spi == spi) {
            kek.last = kek.last.max(self.old_keks.remove(index).kek.last);
        }
        self.retire_kek(cx.now.at, false);
        cx.out.event(Event::KekInstalled {
            vpn: self.vpn.clone(),
            spi: spi.to_string(),
            lifetime_seconds: u64::from(kek.policy.lifetime_seconds),
        });
        self.kek = Some(kek);
    }

    fn retire_kek(&mut self, now: Instant, superseded: bool) {
        if let Some(kek) = self.kek.take() {
            let not_before = now + self.deactivation_delay.max(OLD_KEK);
            self.old_keks.push(OldKek { kek, not_before, superseded });
        }
    }

    /// The group is not ours any more: none of its pushes is taken, and its Sender-IDs are for its TEKs alone, which stay.
    pub fn leave_group(&mut self) {
        self.kek = None;
        self.old_keks.clear();
        self.gone_keks.clear();
        self.sender_ids = None;
        self.ack_request = None;
    }

    /// No key stays.
    pub fn wipe(&mut self, reason: &str, cx: &mut Cx<'_>) {
        self.leave_group();
        for tek in std::mem::take(&mut self.teks) {
            self.tell_removed(tek.policy.spi, reason, cx);
        }
    }

    /// Drops KEKs and remembers that they are gone.
    fn drop_keks(&mut self, which: impl Fn(KekSpi) -> bool) {
        let known = self.kek.iter().chain(self.old_keks.iter().map(|old| &old.kek));
        let gone: Vec<KekSpi> = known.map(|kek| kek.policy.spi).filter(|spi| which(*spi)).collect();
        self.kek = self.kek.take().filter(|kek| !which(kek.policy.spi));
        self.old_keks.retain(|old| !which(old.kek.policy.spi));
        self.gone_keks.extend(gone);
        while self.gone_keks.len() > GONE_KEKS {
            self.gone_keks.pop_front();
        }
    }

    /// Deletes of a verified PUSH (RFC 6407 section 5.9). SPI 0 acts at once, others after DTD.
    pub fn delete(&mut self, deletes: &[Delete], delay: Option<u16>, cx: &mut Cx<'_>) -> Deleted {
        let mut done = Deleted::default();
        let now = cx.now.at;
        let delay = delay.map_or(self.deactivation_delay, |delay| Duration::from_secs(u64::from(delay)));
        for delete in deletes {
            for spi in &delete.spis {
                let all = spi.iter().all(|octet| *octet == 0);
                match (
                    delete.protocol,
                    <[u8; 4]>::try_from(spi.as_slice()),
                    <[u8; 16]>::try_from(spi.as_slice()),
                ) {
                    (0, _, _) if all => {
                        done.everything = true;
                        done.count += u64::from(self.kek.is_some()) + self.old_keks.len() as u64;
                        self.drop_keks(|_| true);
                    }
                    (0, _, Ok(spi)) => {
                        done.count += u64::from(self.find_kek(KekSpi(spi)).is_some());
                        self.drop_keks(|known| known.0 == spi);
                    }
                    (1, Ok(_), _) if all => {
                        done.everything = true;
                        done.count += self.teks.len() as u64;
                        self.teks.iter_mut().for_each(|tek| tek.leaves = Some(now));
                        // They may be handed out again now (RFC 6407 section 3.5).
                        self.sender_ids = None;
                    }
                    (1, Ok(spi), _) => {
                        let spi = Spi(u32::from_be_bytes(spi));
                        if let Some(tek) = self.teks.iter_mut().find(|tek| tek.policy.spi == spi) {
                            let leave = now + delay;
                            tek.leaves = Some(tek.leaves.map_or(leave, |before| before.min(leave)));
                            done.count += 1;
                        }
                    }
                    // AH and IEC 61850 SAs are never installed.
                    _ => {}
                }
            }
        }
        self.remove_due(cx);
        done
    }
}
