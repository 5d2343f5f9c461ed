//! When to rekey and what goes in: make before break, ATD and DTD (RFC 6407 section 4, RFC 5374 section 4.2.1).
//!
//! ```text
//! want  ->  new keys and SEQ written, with the unsigned PUSH  ->  signature (a job)
//!       ->  signed datagram written  ->  sent, repeated, acknowledged (push.rs)
//! ```
//!
//! What exceeds `max-push-size` is several PUSHes, written in one transaction: a restart sends all of them.
//!
//! The SEQ is written with the message it names before anything is signed: a restart signs the same message again
//! and never another one under that number.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ctl::event::Event;
use gdoi_proto::ids::{KekSpi, SeqNumber, Spi};
use gdoi_proto::policy::TekKey;
use gdoi_proto::registry::TekProtocol;
use gdoi_proto::secret::SecretBytes;
use ike::io::{Entropy, Instant, Now, Wakeup};
use ike::protect::ack::AckKey;

use super::durable::Change;
use super::group::{Group, GroupOutput, Kek, Tek, fresh_secret, kek_cipher, policy_of};
use super::io::Outcome;
use super::layout::{Besides, Part, delete_everything};
use super::member::MemberKey;
use super::pull;
use super::push::{Delivery, Mark};
use super::roster::NumberSet;
use super::sender_id::SenderIdPool;
use super::settings::{SaSettings, Signing};

/// The last numbers of a KEK bring its successor and nothing else: from here on it is replaced at the next rekey, which is
/// due at once (RFC 6407 section 4).
const LAST_NUMBERS: u32 = u32::MAX - 0xffff;
/// TEKs of an SA that a rekey tells again, the one in use included: more are of rekeys in a loop.
const MOST_TOLD_AGAIN: usize = 3;

/// Rekeys asked for while another was being signed, or before there was a signing key. Stored with the group: who was
/// told that one is queued can rely on it.
#[derive(Debug, Default, Clone)]
pub struct Wanted {
    pub(super) tek: BTreeSet<String>,
    pub(super) kek: bool,
    pub(super) why: Option<Cow<'static, str>>,
    /// Its number in this life of the server.
    pub(super) rekey: Option<u64>,
}

/// What an event of a PUSH says of its rekey.
pub(super) struct Cause<'a> {
    pub(super) rekey: u64,
    pub(super) pushes: u64,
    pub(super) why: &'a str,
}

/// Who a PUSH is for: members, and addresses that are no members any more.
pub(super) type Audience = (NumberSet, Vec<(SocketAddr, SocketAddr)>);

impl Group {
    /// True when the next rekey waits for a signature. One that fails holds nothing up: keys get their successors, and
    /// the PUSHes are signed in order when that works again.
    fn is_signing(&self) -> bool {
        self.failures == 0 && self.deliveries.iter().any(Delivery::is_unsigned)
    }

    /// Makes what is missing without a PUSH: first start, or keys that ended while we were away.
    pub(super) fn fill_keys(&mut self, now: Now, entropy: &mut dyn Entropy) {
        let mut changes = Vec::new();
        if std::mem::take(&mut self.other_keys) && self.kek.is_some() {
            // Flat keys lead to no tree, nor the other way round: whoever holds them comes again.
            self.clear_members(now, "key-management changed", entropy);
        }
        // Whoever can be told gets what is missing by a rekey, which is due at once.
        let told = self.kek.is_some() && !self.members.is_empty();
        if self.settings.communication.is_some()
            && self.kek.is_none()
            && let Some((kek, _)) = self.new_kek(now, false, entropy, &mut changes)
        {
            self.event(Event::GroupCreated {
                group: self.settings.name.clone(),
                kek_spi: kek.spi.to_string(),
            });
            changes.push(self.kek_row(&kek));
            self.kek = Some(kek);
        }
        for sa in self.settings.sas.clone() {
            if !told && !self.teks.iter().any(|tek| tek.sa == sa.name && tek.retires.is_none()) {
                let tek = self.new_tek(now, &sa, Duration::ZERO, entropy);
                changes.push(self.tek_row(&tek));
                self.teks.push(tek);
            }
        }
        if !changes.is_empty() {
            self.out.push_back(GroupOutput::Persist(changes));
        }
    }

    fn new_tek(
        &mut self,
        now: Now,
        sa: &SaSettings,
        activates_in: Duration,
        entropy: &mut dyn Entropy,
    ) -> Tek {
        let mut spi = [0; 4];
        loop {
            entropy.fill(&mut spi);
            let candidate = u32::from_be_bytes(spi);
            if candidate > 255 && self.spis.insert(Spi(candidate)) {
                break;
            }
        }
        Tek {
            sa: sa.name.clone(),
            spi: Spi(u32::from_be_bytes(spi)),
            made_for: policy_of(sa, Spi(u32::from_be_bytes(spi))),
            key: TekKey {
                encryption: fresh_secret(sa.cipher.encryption_octets(), entropy),
                integrity: sa.cipher.authentication().map(|it| fresh_secret(it.key_octets(), entropy)),
            },
            activates: now.at + activates_in,
            ends: now.at + sa.lifetime,
            ends_unix: now.unix_seconds + sa.lifetime.as_secs(),
            retires: None,
        }
    }

    /// When the TEK of an SA must be replaced: before it ends, at once when it was made for something else or is missing.
    fn tek_due(&self, sa: &SaSettings) -> Instant {
        match self.current_tek(&sa.name) {
            Some(tek) if tek.made_for == policy_of(sa, tek.spi) => tek.ends - sa.margin,
            Some(_) | None => Instant::default(),
        }
    }

    /// SAs whose current TEK must be replaced by `at`.
    pub(super) fn due_sas(&self, at: Instant) -> BTreeSet<String> {
        self.settings.sas.iter().filter(|sa| self.tek_due(sa) <= at).map(|sa| sa.name.clone()).collect()
    }

    pub(super) fn current_tek(&self, sa: &str) -> Option<&Tek> {
        self.teks.iter().filter(|tek| tek.sa == sa && tek.retires.is_none()).max_by_key(|tek| tek.ends)
    }

    /// When the KEK must be replaced, like [`Group::tek_due`].
    pub(super) fn kek_due(&self) -> Option<Instant> {
        let (communication, kek) = self.settings.communication.as_ref().zip(self.kek.as_ref())?;
        let fits = kek.key.len() == communication.cipher.key_len()
            && kek.ack == communication.ack_request()
            && kek.signing == communication.signing()
            && self.public_key.as_ref().is_none_or(|key| *key == kek.public_key)
            && kek.channel == communication.way.channel().map(|channel| channel.group)
            && kek.seq.0 < LAST_NUMBERS
            && communication.lkh == self.tree.is_some()
            && !self.lacks_leaves();
        Some(if fits { kek.ends - communication.margin } else { Instant::default() })
    }

    /// True when the next registration might get no Sender-ID of its own.
    pub(super) fn sids_end(&self) -> bool {
        let counted = self.teks.iter().any(|tek| tek.made_for.needs_sender_id());
        counted && (self.foreign_sids || self.sids.left() < u32::from(pull::MAX_SENDER_IDS))
    }

    /// The next rekey, retirement or end, when nothing is being signed.
    pub(super) fn rekey_wakeup(&self) -> Option<Wakeup> {
        let signing = self.is_signing();
        let ready = self.is_ready();
        let rekeys = self
            .settings
            .sas
            .iter()
            .map(|sa| self.tek_due(sa))
            .chain(self.kek_due())
            .chain(self.departed().next().map(|_| Instant::default()))
            .chain((self.sids_end() || self.join_waits).then(Instant::default))
            .min()
            .filter(|_| ready && !signing)
            .map(|at| Wakeup { at, why: "rekey" });
        let ends = self
            .teks
            .iter()
            .map(|tek| tek.retires.map_or(tek.ends, |retires| retires.min(tek.ends)))
            // One that a delivery still needs goes with it, see `on_key_timers`.
            .chain(
                self.old_keks
                    .iter()
                    .filter(|kek| !self.deliveries.iter().any(|delivery| delivery.kek_spi == kek.spi))
                    .filter_map(|kek| kek.replaced_until),
            )
            .min()
            .map(|at| Wakeup { at, why: "end of a key" });
        Wakeup::earlier(rekeys, ends)
    }

    /// Removes what ended and begins what is due.
    pub(super) fn on_key_timers(&mut self, now: Now, entropy: &mut dyn Entropy) {
        let mut changes = Vec::new();
        let (ended, live): (Vec<Tek>, Vec<Tek>) =
            std::mem::take(&mut self.teks).into_iter().partition(|tek| tek.life(now.at).is_zero());
        self.teks = live;
        changes.extend(ended.iter().map(|tek| self.tek_gone(tek.spi)));
        for tek in &ended {
            self.spis.remove(&tek.spi);
        }
        let in_use: BTreeSet<KekSpi> = self.deliveries.iter().map(|delivery| delivery.kek_spi).collect();
        let (ended, live): (Vec<Kek>, Vec<Kek>) =
            std::mem::take(&mut self.old_keks).into_iter().partition(|kek| {
                kek.replaced_until.is_none_or(|until| until <= now.at) && !in_use.contains(&kek.spi)
            });
        self.old_keks = live;
        changes.extend(ended.iter().map(|kek| self.kek_gone(kek.spi)));
        if !changes.is_empty() {
            self.out.push_back(GroupOutput::Persist(changes));
        }
        self.forget_former_keys();
        if self.is_ready() && !self.is_signing() {
            if self.sids_end() {
                self.event(Event::SenderIdsExhausted { group: self.settings.name.clone() });
                self.clean_slate(now, "sender-ids end", Vec::new(), Vec::new(), entropy);
                return;
            }
            if std::mem::take(&mut self.join_waits) {
                self.rekey_all(now, "a member joins", Vec::new(), entropy);
                return;
            }
            // What ends soon after goes along: one rekey instead of two.
            let span = self.settings.communication.as_ref().map_or(Duration::ZERO, |communication| {
                communication.retransmission_period * (communication.retransmissions + 1)
            });
            let due = self.due_sas(now.at);
            let kek_due = |at| self.kek_due().is_some_and(|due| due <= at);
            if !due.is_empty() || kek_due(now.at) || self.departed().next().is_some() {
                let teks = self.due_sas(now.at + span);
                let kek = kek_due(now.at + span);
                let rekey = self.next_rekey();
                let why = if self.lacks_leaves() { "the key tree is full" } else { "before keys end" };
                self.rekey(now, teks, kek, (rekey, why), Vec::new(), entropy);
            }
        }
    }

    /// An operator's rekey. One that is being signed goes first.
    ///
    /// # Errors
    /// A reason for the operator.
    pub fn rekey_now(
        &mut self,
        now: Now,
        tek: bool,
        kek: bool,
        why: &'static str,
        entropy: &mut dyn Entropy,
    ) -> Result<Outcome, String> {
        self.must_be_ready()?;
        let sas =
            if tek { self.settings.sas.iter().map(|sa| sa.name.clone()).collect() } else { BTreeSet::new() };
        let kek = kek && self.settings.communication.is_some();
        Ok(self.rekey_soon(now, sas, kek, why, entropy))
    }

    /// Now, or behind the rekey that is being signed.
    pub(super) fn rekey_soon(
        &mut self,
        now: Now,
        sas: BTreeSet<String>,
        kek: bool,
        why: &'static str,
        entropy: &mut dyn Entropy,
    ) -> Outcome {
        if !self.is_ready() || self.deliveries.iter().any(Delivery::is_unsigned) {
            self.wanted.tek.extend(sas);
            self.wanted.kek |= kek;
            self.wanted.why = Some(Cow::Borrowed(why));
            let rekey = match self.wanted.rekey {
                Some(rekey) => rekey,
                None => self.next_rekey(),
            };
            self.wanted.rekey = Some(rekey);
            let row = self.group_row();
            self.out.push_back(GroupOutput::Persist(vec![row]));
            return Outcome {
                text: "queued behind the rekey that is being signed".to_owned(),
                rekey: Some(rekey),
                push: None,
            };
        }
        let rekey = self.next_rekey();
        self.rekey(now, sas, kek, (rekey, why), Vec::new(), entropy)
    }

    /// What was asked for meanwhile, when nothing waits for a signature any more but what is behind it.
    pub(super) fn want_more(&mut self, now: Now, entropy: &mut dyn Entropy) {
        // Where Sender-IDs end every key is replaced at once.
        if self.wanted.why.is_none() || self.sids_end() {
            return;
        }
        let Wanted { mut tek, kek, why, rekey } = std::mem::take(&mut self.wanted);
        // What waited long may be due, or gone from the configuration.
        tek.retain(|sa| self.sa_settings(sa).is_some());
        tek.extend(self.due_sas(now.at));
        let kek = self.kek.is_some() && (kek || self.kek_due().is_some_and(|due| due <= now.at));
        let rekey = match rekey {
            Some(rekey) => rekey,
            None => self.next_rekey(),
        };
        let changes = vec![self.group_row()];
        self.rekey(now, tek, kek, (rekey, why.as_deref().unwrap_or_default()), changes, entropy);
    }

    pub(super) fn next_rekey(&mut self) -> u64 {
        self.rekeys += 1;
        self.rekeys
    }

    /// Makes the new keys and lays out the PUSHes that carry them, in one transaction with `changes`. When the key tree
    /// shuts somebody out, new TEKs go under the new KEK only (RFC 6407 section 7.4.1).
    pub(super) fn rekey(
        &mut self,
        now: Now,
        sas: BTreeSet<String>,
        new_kek_wanted: bool,
        (rekey, why): (u64, &str),
        mut changes: Vec<Change>,
        entropy: &mut dyn Entropy,
    ) -> Outcome {
        self.counters.rekeys += 1;
        let communication = self.settings.communication.clone();
        // Nothing is known of members that were cleared, or that this server's former life forgot, and they still hold keys:
        // the overlap is kept with nobody in the list too.
        let seq = self.kek.as_ref().map_or(0, |kek| kek.seq.0);
        let numbers = u64::from(u32::MAX - seq);
        let mute = !self.members.is_empty() && numbers <= sas.len() as u64;
        let tell = communication.is_some() && !self.members.is_empty() && !mute;
        let new_kek_wanted = new_kek_wanted || seq >= LAST_NUMBERS;
        let besides = self.leave_behind(now.at, &sas, &mut changes);
        let mut teks = Vec::new();
        for sa in self.settings.sas.clone().iter().filter(|sa| sas.contains(&sa.name)) {
            let old = self.current_tek(&sa.name).map(|tek| tek.ends);
            let (activates_in, overlap) = match (communication.as_ref().filter(|_| !mute), old) {
                (Some(communication), _) => (
                    Duration::from_secs(u64::from(communication.activation_delay)),
                    Duration::from_secs(u64::from(
                        besides.deactivation.unwrap_or(communication.deactivation_delay),
                    )),
                ),
                // Nobody can be told: members fetch the successor before the old one ends, each at its own time, and may
                // send on it when the last one has it.
                (None, Some(ends)) => {
                    (ends.since(now.at).saturating_sub(sa.lifetime / 64), ends.since(now.at))
                }
                (None, None) => (Duration::ZERO, Duration::ZERO),
            };
            let tek = self.new_tek(now, sa, activates_in, entropy);
            // Members that register keep both until the old one is dropped everywhere.
            for old in self.teks.iter_mut().filter(|old| old.sa == sa.name && old.retires.is_none()) {
                old.retires = Some((now.at + overlap).min(old.ends));
            }
            for old in self.teks.iter().filter(|old| old.sa == sa.name) {
                changes.push(self.tek_row(old));
            }
            changes.push(self.tek_row(&tek));
            teks.push(tek);
        }
        let told = [self.still_going_round(now.at, besides.deactivation.is_none()), teks.clone()].concat();
        let apart = new_kek_wanted && !self.left_leaves().is_empty();
        let made = if new_kek_wanted { self.new_kek(now, false, entropy, &mut changes) } else { None };
        let (successor, arrays) = made.map_or((None, Vec::new()), |(kek, arrays)| (Some(kek), arrays));
        let (mut parts, mut after) = (Vec::new(), Vec::new());
        if let Some(kek) = self.kek.as_ref().filter(|_| tell) {
            let successor = successor.as_ref().map(|successor| (successor, arrays.as_slice()));
            match successor.filter(|_| apart) {
                Some((next, arrays)) => {
                    parts = self.lay_out(now, kek, &[], Some((next, arrays)), &besides);
                    let restated = if parts.len() > 1 { self.restated(&sas, &told) } else { Vec::new() };
                    let told = [restated, told].concat();
                    if !told.is_empty() && !parts.is_empty() {
                        let besides = Besides { deletes: Vec::new(), ..besides.clone() };
                        after = self.lay_out(now, next, &told, None, &besides);
                    }
                }
                None => parts = self.lay_out(now, kek, &told, successor, &besides),
            }
        }
        if !parts.is_empty() {
            self.counters.lkh_keys += arrays.iter().map(|array| array.update.keys.len() as u64).sum::<u64>();
        }
        let keys = format!(
            "new TEKs [{}], new KEK {}",
            teks.iter().map(|tek| tek.spi.to_string()).collect::<Vec<_>>().join(" "),
            successor.as_ref().map_or("none".to_owned(), |kek| kek.spi.to_string())
        );
        let cause = Cause { rekey, pushes: (parts.len() + after.len()) as u64, why };
        let mut outcome = Outcome { text: format!("{keys}, no member to tell"), rekey: None, push: None };
        if let (Some(first), Some(last), Some(kek)) = (parts.first(), parts.last(), &self.kek) {
            let octets: usize = parts.iter().chain(&after).map(|part| part.unsigned.datagram_len()).sum();
            let span = |first: &Part, last: &Part| match first.seq == last.seq {
                true => format!("{}", first.seq),
                false => format!("{} to {}", first.seq, last.seq),
            };
            let mut numbers = span(first, last);
            let mut push = (kek.spi, last.seq);
            if let (Some(first), Some(last), Some(next)) = (after.first(), after.last(), &successor) {
                numbers += &format!(", then {} under the new KEK", span(first, last));
                push = (next.spi, last.seq);
            }
            outcome = Outcome {
                text: format!(
                    "rekey SEQ {numbers}: {keys}, {octets} octets to {} members",
                    self.members.len()
                ),
                rekey: Some(rekey),
                push: Some(push),
            };
        } else {
            self.untold += 1;
        }
        let last = parts.last().map(|part| part.seq);
        self.dispatch_all(now, parts, &cause, &mut changes);
        if let Some(mut successor) = successor {
            // Deviation `kek-old-spi`: such members count on under the new KEK.
            if let (true, Some(seq)) =
                (self.settings.push_dialect.kek_old_spi, last.filter(|seq| seq.0 < LAST_NUMBERS))
            {
                successor.seq = seq;
            }
            self.succeed(now, successor, &mut changes);
            self.dispatch_all(now, after, &cause, &mut changes);
        }
        let made = teks.iter().map(|tek| tek.spi);
        if new_kek_wanted && sas.len() == self.settings.sas.len() {
            self.fresh = Some((now.at, made.collect()));
        } else if let Some((_, fresh)) = &mut self.fresh {
            fresh.extend(made);
        }
        self.teks.extend(teks);
        self.out.push_back(GroupOutput::Persist(changes));
        self.sign_next();
        outcome
    }

    /// The TEKs whose own PUSH goes round yet. Whoever takes the next one first takes no copy of that one any more, and must
    /// open what the others send: so they are told again, whatever the rekey is about. With them goes the one that the first
    /// of them replaced, unless this rekey has a DTD of its own: by DTD its life says when the others turn.
    fn still_going_round(&self, at: Instant, usual_delay: bool) -> Vec<Tek> {
        let told: BTreeSet<Spi> = self.deliveries.iter().flat_map(|it| it.tells.iter().copied()).collect();
        let may_be_told = |tek: &&Tek| {
            // Who came later must not learn what encrypted before.
            let secret = tek.retires.is_some() && tek.activates <= at && self.settings.rekey_on_join;
            !tek.life(at).is_zero() && !secret
        };
        let of_sa = |sa: &SaSettings| {
            let teks: Vec<&Tek> =
                self.teks.iter().filter(may_be_told).filter(|tek| tek.sa == sa.name).collect();
            let first = teks.iter().position(|tek| told.contains(&tek.spi));
            let from = first.map_or(teks.len(), |first| {
                first.saturating_sub(usize::from(usual_delay)).max(teks.len().saturating_sub(MOST_TOLD_AGAIN))
            });
            teks.into_iter().skip(from).cloned().collect::<Vec<_>>()
        };
        self.settings.sas.iter().flat_map(of_sa).collect()
    }

    /// The TEKs in use of all other SAs that are not `told` anyway. Who got one of several PUSHes of key arrays cannot know
    /// that those it did not get were not about them, and would ask.
    fn restated(&self, sas: &BTreeSet<String>, told: &[Tek]) -> Vec<Tek> {
        let others = self.settings.sas.iter().filter(|sa| !sas.contains(&sa.name));
        let current = others.filter_map(|sa| self.current_tek(&sa.name));
        current.filter(|tek| told.iter().all(|told| told.spi != tek.spi)).cloned().collect()
    }

    /// PUSHes under the present KEK begin their way to every member that can use them.
    fn dispatch_all(&mut self, now: Now, parts: Vec<Part>, cause: &Cause<'_>, changes: &mut Vec<Change>) {
        let limit = self.settings.communication.as_ref().map_or(usize::MAX, |it| it.max_push_size);
        for part in parts {
            let octets = part.unsigned.datagram_len();
            if let Some(kek) = self.kek.as_ref().filter(|_| octets > limit) {
                self.event(Event::PushTooLarge {
                    group: self.settings.name.clone(),
                    seq: u64::from(part.seq.0),
                    kek_spi: kek.spi.to_string(),
                    octets: octets as u64,
                    limit: limit as u64,
                });
            }
            let members = (self.readers(&part.holders, |_| true), Vec::new());
            self.dispatch(now, part, cause, members, changes);
        }
    }

    /// A PUSH begins its way: its number and content are among `changes`.
    pub(super) fn dispatch(
        &mut self,
        now: Now,
        part: Part,
        cause: &Cause<'_>,
        (members, farewell): Audience,
        changes: &mut Vec<Change>,
    ) {
        let Part { seq, unsigned, teks, new_kek, tells, holders } = part;
        let Some(protecting) = self.kek.as_mut() else { return };
        protecting.seq = seq;
        let protecting = protecting.clone();
        changes.push(self.kek_row(&protecting));
        let octets = unsigned.datagram_len();
        let mark = Mark { generation: protecting.generation, seq: seq.0 };
        let addressed = members.len() + farewell.len();
        let mut delivery =
            Delivery::new(protecting.spi, mark, unsigned, members, now.at).with_farewell(farewell);
        (delivery.tells, delivery.holders) = (tells, holders);
        delivery.whispered = protecting.overheard;
        changes.push(self.push_row(&delivery));
        self.deliveries.push(delivery);
        self.event(Event::RekeyStarted {
            group: self.settings.name.clone(),
            rekey: cause.rekey,
            pushes: cause.pushes,
            seq: u64::from(seq.0),
            kek_spi: protecting.spi.to_string(),
            teks,
            new_kek,
            members: addressed as u64,
            octets: octets as u64,
            why: cause.why.to_owned(),
        });
    }

    /// `successor` is the KEK from now on.
    fn succeed(&mut self, now: Now, successor: Kek, changes: &mut Vec<Change>) {
        changes.push(self.kek_row(&successor));
        if let Some(mut old) = self.kek.replace(successor) {
            // RFC 8263 section 6: late acknowledgements must still find the key.
            old.replaced_until = Some(now.at + self.kek_overlap());
            changes.push(self.kek_row(&old));
            self.old_keks.push(old);
        }
    }

    /// Forgets every member. A Delete of the rekey SA tells them, so that they register again within seconds and keep
    /// their TEKs until then (RFC 6407 section 5.9). A Delete of the IKE SA would not: it is gone a minute after a registration,
    /// and one that is deleted then says nothing of the membership.
    ///
    /// Who is removed alone learns of it otherwise: an expelled member by a TEK that ends, one that expired for silence
    /// cannot be reached and finds out the same way.
    ///
    pub fn clear_members(&mut self, now: Now, reason: &str, entropy: &mut dyn Entropy) -> Outcome {
        let members: Vec<(MemberKey, (SocketAddr, SocketAddr))> =
            self.members.iter().map(|(key, member)| (key.clone(), (member.local, member.peer))).collect();
        let count = members.len();
        let text = format!("{count} members cleared; they register again before their keys end");
        let mut outcome = Outcome::from(text);
        let mut changes = Vec::new();
        let told = self.settings.communication.is_some() && !members.is_empty();
        if let Some(part) = told.then(|| self.lay_out_delete(vec![delete_everything(0, 16)])).flatten()
            && let Some(spi) = self.kek.as_ref().map(|kek| kek.spi)
            && let Some((successor, _)) = self.new_kek(now, true, entropy, &mut changes)
        {
            let rekey = self.next_rekey();
            outcome = Outcome {
                text: format!("{count} members cleared; rekey SEQ {} tells them to register again", part.seq),
                rekey: Some(rekey),
                push: Some((spi, part.seq)),
            };
            let cause = Cause { rekey, pushes: 1, why: "members cleared" };
            let to = (NumberSet::default(), members.iter().map(|(_, address)| *address).collect());
            self.dispatch(now, part, &cause, to, &mut changes);
            self.succeed(now, successor, &mut changes);
        }
        self.untold += 1;
        for (key, _) in &members {
            changes.extend(self.forget_member(key, reason));
        }
        self.out.push_back(GroupOutput::Persist(changes));
        for (key, _) in &members {
            self.out.push_back(GroupOutput::DeleteIdentity(key.clone(), reason.to_owned()));
        }
        self.sign_next();
        outcome
    }

    /// Every key goes, members register again and get new ones, with Sender-IDs from a space that begins anew (RFC 6407
    /// section 3.5). What was offered to registrations under way is void. `farewell` are told too.
    pub(super) fn clean_slate(
        &mut self,
        now: Now,
        why: &'static str,
        farewell: Vec<(SocketAddr, SocketAddr)>,
        mut changes: Vec<Change>,
        entropy: &mut dyn Entropy,
    ) -> Outcome {
        self.counters.rekeys += 1;
        let mut outcome = Outcome::from("every key replaced, no member to tell".to_owned());
        let ended = std::mem::take(&mut self.teks);
        changes.extend(ended.iter().map(|tek| self.tek_gone(tek.spi)));
        for tek in &ended {
            self.spis.remove(&tek.spi);
        }
        // It leaves nothing to be wanted.
        self.wanted = Wanted::default();
        let communication = self.settings.communication.is_some();
        let successor = self.new_kek(now, false, entropy, &mut changes);
        let everything = vec![delete_everything(TekProtocol::Esp.number(), 4), delete_everything(0, 16)];
        let anybody = !self.members.is_empty() || !farewell.is_empty();
        if let Some(part) = (communication && anybody).then(|| self.lay_out_delete(everything)).flatten()
            && let Some(spi) = self.kek.as_ref().map(|kek| kek.spi)
        {
            let rekey = self.next_rekey();
            let told = self.members.len() + farewell.len();
            outcome = Outcome {
                text: format!("rekey SEQ {}: Deletes of every key to {told} members", part.seq),
                rekey: Some(rekey),
                push: Some((spi, part.seq)),
            };
            let cause = Cause { rekey, pushes: 1, why };
            let members = (self.members.numbers(), farewell);
            self.dispatch(now, part, &cause, members, &mut changes);
        }
        if let Some((successor, _)) = successor {
            self.succeed(now, successor, &mut changes);
        }
        for sa in self.settings.sas.clone() {
            let tek = self.new_tek(now, &sa, Duration::ZERO, entropy);
            changes.push(self.tek_row(&tek));
            self.teks.push(tek);
        }
        self.untold += 1;
        self.foreign_sids = false;
        self.sids = SenderIdPool::new(self.settings.sender_id_bits, 0);
        changes.push(self.group_row());
        self.out.push_back(GroupOutput::Persist(changes));
        self.sign_next();
        outcome
    }

    /// How long a replaced KEK is kept: for late acknowledgements, and for PULLs that began under it.
    pub(super) fn kek_overlap(&self) -> Duration {
        let span = self
            .settings
            .communication
            .as_ref()
            .map_or(Duration::ZERO, |c| c.retransmission_period * (c.retransmissions + 1));
        (span + Duration::from_secs(10)).max(pull::LIFE)
    }

    /// PUSHes that were to leave from `since` on leave `delay` later: so do the moments that count from them.
    pub(super) fn postpone(&mut self, since: Instant, delay: Duration) {
        let mut moved: Vec<Spi> = Vec::new();
        for tek in &mut self.teks {
            let before = (tek.activates, tek.retires);
            if tek.activates >= since {
                tek.activates = tek.activates + delay;
            }
            tek.retires =
                tek.retires.map(|at| if at >= since { (at + delay).min(tek.ends.max(at)) } else { at });
            if before != (tek.activates, tek.retires) {
                moved.push(tek.spi);
            }
        }
        for kek in &mut self.old_keks {
            kek.replaced_until = kek.replaced_until.map(|at| if at >= since { at + delay } else { at });
        }
        let changes: Vec<Change> =
            self.teks.iter().filter(|tek| moved.contains(&tek.spi)).map(|tek| self.tek_row(tek)).collect();
        if !changes.is_empty() {
            self.out.push_back(GroupOutput::Persist(changes));
        }
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.kek.iter().chain(&self.old_keks).map(|kek| kek.generation + 1).max().unwrap_or(0)
    }
}

/// A rekey SA from its parts; none when the key has no AES length.
pub(super) fn make_kek(
    spi: KekSpi,
    iv: [u8; 16],
    key: SecretBytes,
    seq: SeqNumber,
    (made, ends, ends_unix): (Instant, Instant, u64),
    ack: Option<gdoi_proto::policy::AckRequest>,
    (signing, public_key): (Signing, Vec<u8>),
) -> Option<Kek> {
    Some(Kek {
        spi,
        iv,
        cipher: kek_cipher(spi, iv, &key)?,
        ack,
        ack_key: ack.map(|request| AckKey::derive(request, &key, spi)),
        ack_key_output: ack.map(|request| AckKey::derive_output_length(request, &key, spi)),
        key,
        signing,
        public_key,
        seq,
        generation: 0,
        made,
        ends,
        ends_unix,
        replaced_until: None,
        channel: None,
        overheard: false,
    })
}
