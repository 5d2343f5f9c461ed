//! When to rekey and what goes in: make before break, ATD and DTD (RFC 6407 section 4, RFC 5374 section 4.2.1).
//!
//! ```text
//! want  ->  new keys and SEQ written, with the unsigned PUSH  ->  signature (a job)
//!       ->  signed datagram written  ->  sent, repeated, acknowledged (push.rs)
//! ```
//!
//! The SEQ is written with the message it names before anything is signed: a restart signs the same message again
//! and never another one under that number.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::ids::{KekSpi, SeqNumber, Spi};
use gdoi_proto::payload::Delete;
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet, TekKey};
use gdoi_proto::registry::{Doi, TekProtocol};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{CryptoError, Done, Job, Signer};
use ike::io::{Entropy, Instant, Now, Wakeup};
use ike::protect::ack::AckKey;
use ike::protect::push::{PushContent, Unsigned};
use std::sync::Arc;

use super::durable::Change;
use super::group::{Group, GroupOutput, Kek, Tek, fresh_secret, kek_cipher, policy_of, unspecified_endpoint};
use super::io::Outcome;
use super::member::MemberKey;
use super::pull;
use super::push::{Delivery, Mark, Stage};
use super::roster::NumberSet;
use super::sender_id::SenderIdPool;
use super::settings::{CommunicationSettings, SaSettings};

/// Failures to read a signing key that this server made, before it makes another.
const OWN_KEY_TRIES: u32 = 5;

/// The last numbers of a KEK bring its successor and nothing else: from here on it is replaced at the next rekey, which is
/// due at once (RFC 6407 section 4).
const LAST_NUMBERS: u32 = u32::MAX - 0xffff;

/// Rekeys asked for while another was being signed.
#[derive(Debug, Default)]
pub struct Wanted {
    tek: BTreeSet<String>,
    kek: bool,
    why: Option<&'static str>,
    /// Its number.
    rekey: u64,
}

/// What an event of a PUSH says of its rekey.
struct Cause {
    rekey: u64,
    pushes: u64,
    why: &'static str,
}

/// Who a PUSH is for: members, and addresses that are no members any more.
type Audience = (NumberSet, Vec<(SocketAddr, SocketAddr)>);

/// One PUSH of a rekey, laid out.
struct Part {
    seq: SeqNumber,
    unsigned: Unsigned,
    /// SPIs of new TEKs in it.
    teks: Vec<String>,
    /// SPI of the new KEK in it.
    new_kek: Option<String>,
}

impl Group {
    /// Loads or makes the signing key; everything else waits for it. Called once after restore.
    pub fn start(&mut self, now: Now, entropy: &mut dyn Entropy) {
        if self.settings.communication.is_none() {
            self.fill_keys(now, entropy);
            return;
        }
        self.ask_for_signer();
    }

    fn ask_for_signer(&mut self) {
        let Some(communication) = &self.settings.communication else { return };
        let algorithm = communication.signature;
        // One of our own that cannot be read again and again is given up for a new one.
        let own = self.signing_key.as_ref().filter(|_| self.failures < OWN_KEY_TRIES);
        let stored = communication.signing_key.as_ref().or(own).cloned();
        self.out.push_back(GroupOutput::Job(match stored {
            Some(pkcs8) => Job::LoadSigner { algorithm, pkcs8 },
            None => Job::MakeSigner { algorithm, key_bits: communication.signature_key_bits },
        }));
    }

    /// A job of this group is done.
    ///
    /// # Errors
    /// Why it failed, and when it is tried again.
    pub fn on_done(&mut self, now: Now, done: Done, entropy: &mut dyn Entropy) -> Result<(), String> {
        match done {
            Done::Signer(Ok((signer, pkcs8))) => {
                self.failures = 0;
                self.on_signer(now, signer, pkcs8, entropy);
                Ok(())
            }
            Done::Signed(Ok(signature)) => {
                self.failures = 0;
                self.on_signed(now, &signature);
                self.want_more(now, entropy);
                Ok(())
            }
            Done::Signer(Err(error)) => Err(self.on_failure(now.at, "the signing key", &error)),
            Done::Signed(Err(error)) => Err(self.on_failure(now.at, "signing a push", &error)),
            Done::DhKey(_)
            | Done::Shared(_)
            | Done::Responded(_)
            | Done::Verified(_)
            | Done::Phase1Signed(_)
            | Done::Phase1Verified(_) => Ok(()),
        }
    }

    /// A job of the signing key failed: again after 1, 2, 4 .. 60 s. What counts from the PUSH waits with it.
    fn on_failure(&mut self, at: Instant, what: &str, error: &CryptoError) -> String {
        let delay = Duration::from_secs((1 << self.failures.min(6)).min(60));
        self.failures += 1;
        self.retry = Some(at + delay);
        let mut since = None;
        for delivery in &mut self.deliveries {
            if let Stage::Unsigned { asked, .. } = &mut delivery.stage {
                *asked = false;
                since.get_or_insert(delivery.started);
            }
        }
        if let Some(since) = since {
            self.postpone(since, delay);
        }
        format!("{what} failed, again in {} s: {error}", delay.as_secs())
    }

    /// Asks once more for what failed.
    pub(super) fn try_again(&mut self, at: Instant) {
        if self.retry.is_none_or(|retry| retry > at) {
            return;
        }
        self.retry = None;
        match self.signer {
            Some(_) => self.sign_next(),
            None => self.ask_for_signer(),
        }
    }

    /// True when the next rekey waits for a signature. One that fails holds nothing up: keys get their successors, and
    /// the PUSHes are signed in order when that works again.
    fn is_signing(&self) -> bool {
        self.failures == 0 && self.deliveries.iter().any(Delivery::is_unsigned)
    }

    fn on_signer(
        &mut self,
        now: Now,
        signer: Arc<dyn Signer>,
        pkcs8: SecretBytes,
        entropy: &mut dyn Entropy,
    ) {
        let public_key = signer.public_key().to_vec();
        // Members verify with the key they were given: another key needs another rekey SA.
        if self.public_key.as_ref().is_some_and(|old| *old != public_key) {
            self.drop_keks();
        }
        self.public_key = Some(public_key);
        self.signing_key = Some(pkcs8);
        self.signer = Some(signer);
        let row = self.group_row();
        self.out.push_back(GroupOutput::Persist(vec![row]));
        self.fill_keys(now, entropy);
        self.sign_next();
    }

    /// Makes what is missing without a PUSH: first start, or keys that ended while we were away.
    fn fill_keys(&mut self, now: Now, entropy: &mut dyn Entropy) {
        let mut changes = Vec::new();
        if let (Some(communication), None) = (&self.settings.communication, &self.kek)
            && let Some(mut kek) = communication.new_kek(now, entropy)
        {
            kek.generation = self.next_generation();
            self.event(Event::GroupCreated {
                group: self.settings.name.clone(),
                kek_spi: kek.spi.to_string(),
            });
            changes.push(self.kek_row(&kek));
            self.kek = Some(kek);
        }
        for sa in self.settings.sas.clone() {
            if !self.teks.iter().any(|tek| tek.sa == sa.name && tek.retires.is_none()) {
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
    fn due_sas(&self, at: Instant) -> BTreeSet<String> {
        self.settings.sas.iter().filter(|sa| self.tek_due(sa) <= at).map(|sa| sa.name.clone()).collect()
    }

    fn current_tek(&self, sa: &str) -> Option<&Tek> {
        self.teks.iter().filter(|tek| tek.sa == sa && tek.retires.is_none()).max_by_key(|tek| tek.ends)
    }

    /// When the KEK must be replaced, like [`Group::tek_due`].
    fn kek_due(&self) -> Option<Instant> {
        let (communication, kek) = self.settings.communication.as_ref().zip(self.kek.as_ref())?;
        let fits = kek.key.len() == communication.cipher.key_len()
            && kek.ack == communication.ack_request()
            && kek.seq.0 < LAST_NUMBERS;
        Some(if fits { kek.ends - communication.margin } else { Instant::default() })
    }

    /// True when the next registration might get no Sender-ID of its own.
    fn sids_end(&self) -> bool {
        let counted = self.teks.iter().any(|tek| tek.made_for.needs_sender_id());
        counted && (self.foreign_sids || self.sids.left() < u32::from(pull::MAX_SENDER_IDS))
    }

    /// The next rekey, retirement or end, when nothing is being signed.
    pub(super) fn rekey_wakeup(&self) -> Option<Wakeup> {
        let signing = self.is_signing();
        let ready = self.settings.communication.is_none() || self.signer.is_some();
        let rekeys = self
            .settings
            .sas
            .iter()
            .map(|sa| self.tek_due(sa))
            .chain(self.kek_due())
            .chain(self.sids_end().then(Instant::default))
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
        let ready = self.settings.communication.is_none() || self.signer.is_some();
        if ready && !self.is_signing() {
            if self.sids_end() {
                self.clean_slate(now, entropy);
                return;
            }
            // What ends soon after goes along: one rekey instead of two.
            let span = self.settings.communication.as_ref().map_or(Duration::ZERO, |communication| {
                communication.retransmission_period * (communication.retransmissions + 1)
            });
            let due = self.due_sas(now.at);
            let kek_due = |at| self.kek_due().is_some_and(|due| due <= at);
            if !due.is_empty() || kek_due(now.at) {
                let teks = self.due_sas(now.at + span);
                let kek = kek_due(now.at + span);
                let rekey = self.next_rekey();
                self.rekey(now, teks, kek, (rekey, "before keys end"), entropy);
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
        if self.settings.communication.is_some() && self.signer.is_none() {
            return Err("the group's signing key is not ready".to_owned());
        }
        let sas =
            if tek { self.settings.sas.iter().map(|sa| sa.name.clone()).collect() } else { BTreeSet::new() };
        let kek = kek && self.settings.communication.is_some();
        if self.deliveries.iter().any(Delivery::is_unsigned) {
            self.wanted.tek.extend(sas);
            self.wanted.kek |= kek;
            if self.wanted.why.replace(why).is_none() {
                self.wanted.rekey = self.next_rekey();
            }
            return Ok(Outcome {
                text: "queued behind the rekey that is being signed".to_owned(),
                rekey: Some(self.wanted.rekey),
                push: None,
            });
        }
        let rekey = self.next_rekey();
        Ok(self.rekey(now, sas, kek, (rekey, why), entropy))
    }

    fn want_more(&mut self, now: Now, entropy: &mut dyn Entropy) {
        let wanted = std::mem::take(&mut self.wanted);
        if let Some(why) = wanted.why {
            self.rekey(now, wanted.tek, wanted.kek, (wanted.rekey, why), entropy);
        }
    }

    fn next_rekey(&mut self) -> u64 {
        self.rekeys += 1;
        self.rekeys
    }

    /// Makes the new keys and lays out the PUSH that carries them.
    fn rekey(
        &mut self,
        now: Now,
        sas: BTreeSet<String>,
        new_kek_wanted: bool,
        (rekey, why): (u64, &'static str),
        entropy: &mut dyn Entropy,
    ) -> Outcome {
        self.counters.rekeys += 1;
        let communication = self.settings.communication.clone();
        // Nothing is known of members that were cleared, or that this server's former life forgot, and they still hold keys:
        // the overlap is kept with nobody in the list too.
        let seq = self.kek.as_ref().map_or(0, |kek| kek.seq.0);
        let mute = !self.members.is_empty() && seq == u32::MAX;
        let tell = communication.is_some() && !self.members.is_empty() && !mute;
        let new_kek_wanted = new_kek_wanted || seq >= LAST_NUMBERS;
        let mut changes = Vec::new();
        let mut teks = Vec::new();
        for sa in self.settings.sas.clone().iter().filter(|sa| sas.contains(&sa.name)) {
            let old = self.current_tek(&sa.name).map(|tek| tek.ends);
            let (activates_in, overlap) = match (communication.as_ref().filter(|_| !mute), old) {
                (Some(communication), _) => (
                    Duration::from_secs(u64::from(communication.activation_delay)),
                    Duration::from_secs(u64::from(communication.deactivation_delay)),
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
        let mut successor = communication
            .as_ref()
            .filter(|_| new_kek_wanted)
            .and_then(|communication| communication.new_kek(now, entropy));
        if let Some(kek) = &mut successor {
            kek.generation = self.next_generation();
        }
        let parts = if tell { self.lay_out(now, &teks, successor.as_ref()) } else { Vec::new() };
        let keys = format!(
            "new TEKs [{}], new KEK {}",
            teks.iter().map(|tek| tek.spi.to_string()).collect::<Vec<_>>().join(" "),
            successor.as_ref().map_or("none".to_owned(), |kek| kek.spi.to_string())
        );
        let cause = Cause { rekey, pushes: parts.len() as u64, why };
        let mut outcome = Outcome { text: format!("{keys}, no member to tell"), rekey: None, push: None };
        if let (Some(first), Some(last), Some(kek)) = (parts.first(), parts.last(), &self.kek) {
            let octets: usize = parts.iter().map(|part| part.unsigned.datagram_len()).sum();
            let numbers = match parts.len() {
                1 => format!("{}", first.seq),
                _ => format!("{} to {}", first.seq, last.seq),
            };
            outcome = Outcome {
                text: format!(
                    "rekey SEQ {numbers}: {keys}, {octets} octets to {} members",
                    self.members.len()
                ),
                rekey: Some(rekey),
                push: Some((kek.spi, last.seq)),
            };
        } else {
            self.untold += 1;
        }
        for part in parts {
            let members = (self.members.numbers(), Vec::new());
            self.dispatch(now, part, &cause, members, &mut changes);
        }
        if let Some(mut successor) = successor {
            let last = outcome.push.map(|(_, seq)| seq);
            // Deviation `kek-old-spi`: such members count on under the new KEK.
            if let (true, Some(seq)) =
                (self.settings.push_dialect.kek_old_spi, last.filter(|seq| seq.0 < LAST_NUMBERS))
            {
                successor.seq = seq;
            }
            self.succeed(now, successor, &mut changes);
        }
        self.teks.extend(teks);
        self.out.push_back(GroupOutput::Persist(changes));
        self.sign_next();
        outcome
    }

    /// A PUSH begins its way: its number and content are among `changes`.
    fn dispatch(
        &mut self,
        now: Now,
        part: Part,
        cause: &Cause,
        (members, farewell): Audience,
        changes: &mut Vec<Change>,
    ) {
        let Part { seq, unsigned, teks, new_kek } = part;
        let Some(protecting) = self.kek.as_mut() else { return };
        protecting.seq = seq;
        let protecting = protecting.clone();
        changes.push(self.kek_row(&protecting));
        let octets = unsigned.datagram_len();
        let mark = Mark { generation: protecting.generation, seq: seq.0 };
        let addressed = members.len() + farewell.len();
        let delivery = Delivery::new(protecting.spi, mark, unsigned, members, now.at).with_farewell(farewell);
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
        let communication = self.settings.communication.clone().filter(|_| !members.is_empty());
        if let Some(communication) = communication
            && let Some(part) = self.lay_out_delete(&communication, vec![delete_everything(0, 16)])
            && let Some(spi) = self.kek.as_ref().map(|kek| kek.spi)
            && let Some(mut successor) = communication.new_kek(now, entropy)
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
            successor.generation = self.next_generation();
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

    /// The Sender-IDs end: every key goes, members register again and get new ones from a space that begins anew (RFC
    /// 6407 section 3.5). What was offered to registrations under way is void.
    fn clean_slate(&mut self, now: Now, entropy: &mut dyn Entropy) {
        self.counters.rekeys += 1;
        self.event(Event::SenderIdsExhausted { group: self.settings.name.clone() });
        let ended = std::mem::take(&mut self.teks);
        let mut changes: Vec<Change> = ended.iter().map(|tek| self.tek_gone(tek.spi)).collect();
        for tek in &ended {
            self.spis.remove(&tek.spi);
        }
        let communication = self.settings.communication.clone();
        let successor = communication.as_ref().and_then(|communication| communication.new_kek(now, entropy));
        let everything = vec![delete_everything(TekProtocol::Esp.number(), 4), delete_everything(0, 16)];
        if let Some(communication) = communication.as_ref().filter(|_| !self.members.is_empty())
            && let Some(part) = self.lay_out_delete(communication, everything)
        {
            let cause = Cause { rekey: self.next_rekey(), pushes: 1, why: "sender-ids end" };
            let members = (self.members.numbers(), Vec::new());
            self.dispatch(now, part, &cause, members, &mut changes);
        }
        if let Some(mut successor) = successor {
            successor.generation = self.next_generation();
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

    fn next_generation(&self) -> u64 {
        self.kek.iter().chain(&self.old_keks).map(|kek| kek.generation + 1).max().unwrap_or(0)
    }

    /// A PUSH that only deletes; none without a KEK or a number.
    fn lay_out_delete(&self, communication: &CommunicationSettings, deletes: Vec<Delete>) -> Option<Part> {
        let kek = self.kek.as_ref()?;
        let seq = kek.seq.next()?;
        let content = PushContent { seq, deletes, keys: None };
        let length = communication.signature.octets(communication.signature_key_bits);
        let unsigned = Unsigned::new(kek.spi, &content, length);
        Some(Part { seq, unsigned, teks: Vec::new(), new_kek: None })
    }

    /// The PUSHes that carry these keys; none without a KEK or a number.
    fn lay_out(&self, now: Now, teks: &[Tek], successor: Option<&Kek>) -> Vec<Part> {
        self.kek
            .as_ref()
            .and_then(|kek| self.lay_out_part(now, kek.seq.next()?, teks, successor))
            .into_iter()
            .collect()
    }

    fn lay_out_part(&self, now: Now, seq: SeqNumber, teks: &[Tek], successor: Option<&Kek>) -> Option<Part> {
        let communication = self.settings.communication.as_ref()?;
        let protecting = self.kek.as_ref()?;
        let dialect = self.settings.push_dialect;
        let policy = GroupPolicy {
            kek: successor.map(|kek| {
                self.kek_policy(communication, kek, now.at, unspecified_endpoint(), unspecified_endpoint())
            }),
            activation_delay: communication.activation_delay,
            deactivation_delay: Some(communication.deactivation_delay),
            teks: teks.iter().map(|tek| tek.policy(now.at)).collect(),
        };
        let keys = KeySet {
            kek: successor.map(|kek| self.kek_key(kek)),
            teks: teks.iter().map(|tek| (tek.spi, tek.key.clone())).collect(),
            ..KeySet::default()
        };
        let content = PushContent {
            seq,
            deletes: Vec::new(),
            keys: Some((
                dialect.sa_to_peer(policy.write(Carriage::Push)),
                dialect.kd_to_peer(keys.write(&policy), Some(protecting.spi)),
            )),
        };
        let signature_len = communication.signature.octets(communication.signature_key_bits);
        Some(Part {
            seq,
            unsigned: Unsigned::new(protecting.spi, &content, signature_len),
            teks: teks.iter().map(|tek| tek.spi.to_string()).collect(),
            new_kek: successor.map(|kek| kek.spi.to_string()),
        })
    }

    /// Asks for the signature of the first unsigned PUSH; one at a time keeps them in order.
    pub(super) fn sign_next(&mut self) {
        if self.retry.is_some() {
            return;
        }
        let (Some(signer), Some(communication)) = (self.signer.clone(), &self.settings.communication) else {
            return;
        };
        let hash = communication.signature_hash;
        let padded = self.settings.push_dialect.padded_length_signature;
        let bare_digest = self.settings.push_dialect.bare_digest_signature;
        let Some(delivery) = self.deliveries.iter_mut().find(|delivery| delivery.is_unsigned()) else {
            return;
        };
        if let Stage::Unsigned { unsigned, asked } = &mut delivery.stage
            && !*asked
        {
            *asked = true;
            let input: Bytes = unsigned.signature_input(padded);
            self.out.push_back(GroupOutput::Job(Job::Sign { signer, hash, input, bare_digest }));
        }
    }

    /// Drops every rekey SA without a word: the signing key changed under them.
    fn drop_keks(&mut self) {
        let gone: Vec<KekSpi> = self.kek_spis().collect();
        let changes = gone.iter().map(|spi| self.kek_gone(*spi)).collect();
        self.kek = None;
        self.old_keks.clear();
        self.deliveries.clear();
        self.delivered.clear();
        self.out.push_back(GroupOutput::Persist(changes));
    }
}

/// Everything of a kind goes: SPI 0 (RFC 6407 section 5.9).
fn delete_everything(protocol: u8, spi_size: u8) -> Delete {
    Delete { doi: Doi::Gdoi, protocol, spi_size, spis: vec![vec![0; usize::from(spi_size)]] }
}

impl CommunicationSettings {
    /// A fresh rekey SA with counter 0; none when the key has no AES length.
    fn new_kek(&self, now: Now, entropy: &mut dyn Entropy) -> Option<Kek> {
        let mut spi = [0; 16];
        while spi[..8] == [0; 8] || spi[8..] == [0; 8] {
            entropy.fill(&mut spi);
        }
        let mut iv = [0; 16];
        entropy.fill(&mut iv);
        let key = fresh_secret(self.cipher.key_len(), entropy);
        let ends_unix = now.unix_seconds + self.lifetime.as_secs();
        let life = (now.at, now.at + self.lifetime, ends_unix);
        make_kek(KekSpi(spi), iv, key, SeqNumber(0), life, self.ack_request())
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
) -> Option<Kek> {
    Some(Kek {
        spi,
        iv,
        cipher: kek_cipher(spi, iv, &key)?,
        ack,
        ack_key: ack.map(|request| AckKey::derive(request, &key, spi)),
        ack_key_output: ack.map(|request| AckKey::derive_output_length(request, &key, spi)),
        key,
        seq,
        generation: 0,
        made,
        ends,
        ends_unix,
        replaced_until: None,
    })
}
