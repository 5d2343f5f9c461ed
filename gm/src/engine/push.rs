//! GROUPKEY-PUSH received (RFC 6407 section 4.4): byte-identical copies are recognised first, then decrypt, structure,
//! SEQ, signature, and only then the content, all of it or nothing. Acknowledged by RFC 8263.
//!
//! ```text
//! datagram --copy of the last accepted--> acknowledged again, at most 3 times, once a second
//!          --open--> Pending --signature good--> SEQ advances --read--> applied --> acknowledged
//!                            --bad--> dropped                 --not ours--> alarm, registration
//! ```

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{KekSpi, SeqNumber};
use gdoi_proto::policy::{Carriage, GroupPolicy, KekKey, KeySet, TekPolicy};
use ike::crypto::provider::{Done, Job, Verification};
use ike::io::{Datagram, Instant, JobId, Wakeup};
use ike::protect::ack::AckKey;
use ike::protect::push::{self, PushContent, Unverified};
use ike::retransmit::below;

use super::doubts::Doubt;
use super::kek::Kek;
use super::lkh::LkhError;
use super::vpn::Vpn;
use super::{Cx, Owner, accept, terms};

/// Accepted PUSHes remembered.
const REMEMBERED: usize = 8;
/// PUSHes under verification.
const MOST_PENDING: usize = 8;
/// Different octets under one number that are verified at a time: whoever holds the KEK can race the key server.
const MOST_CANDIDATES: usize = 3;
/// Copies of one PUSH that are acknowledged again.
const MOST_REPEATED_ACKS: u32 = 3;
/// Time between those.
const ACK_INTERVAL: Duration = Duration::from_secs(1);
/// Acknowledgements of a PUSH by multicast are spread over this; RFC 8263 section 4.4 allows 5 s.
const MULTICAST_JITTER: Duration = Duration::from_secs(2);

/// What a VPN remembers of PUSHes.
#[derive(Debug, Default)]
pub struct Pushes {
    accepted: VecDeque<Accepted>,
    /// PUSHes whose key arrays are all for others. They use no number up: the one for us may come after them.
    for_others: VecDeque<ForOthers>,
    pending: VecDeque<Pending>,
    /// Acknowledgements of PUSHes by multicast that wait for their moment.
    late: Vec<LateAck>,
}

#[derive(Debug)]
struct LateAck {
    at: Instant,
    seq: SeqNumber,
    datagram: Datagram,
}

#[derive(Debug)]
struct Accepted {
    octets: Bytes,
    seq: SeqNumber,
    ack: Option<Bytes>,
    repeated: u32,
    last_ack: Instant,
}

#[derive(Debug)]
struct ForOthers {
    octets: Bytes,
    spi: KekSpi,
    seq: SeqNumber,
}

#[derive(Debug)]
struct Pending {
    job: JobId,
    spi: KekSpi,
    kek: Box<Kek>,
    datagram: Datagram,
    unverified: Unverified,
    outcome: Option<Result<(), String>>,
}

/// What an applied PUSH said.
#[derive(Debug, Default)]
struct Applied {
    /// TEKs that it lists.
    teks: Vec<TekPolicy>,
    /// When others send under new ones.
    activation: Duration,
    /// Its KEK comes by key arrays: what was skipped before it may be arrays for others, which are not sent to us.
    arrays: bool,
}

impl Vpn {
    /// A PUSH under one of our KEKs.
    pub fn on_push(&mut self, datagram: &Datagram, header: &Header, cx: &mut Cx<'_>) {
        if let Some(index) = self.pushes.accepted.iter().position(|push| push.octets == datagram.octets) {
            self.statistics.push_duplicate += 1;
            return self.acknowledge_copy(index, datagram, cx);
        }
        if self.pushes.for_others.iter().any(|push| push.octets == datagram.octets) {
            self.statistics.push_duplicate += 1;
            return;
        }
        let spi = KekSpi::from(header.cookies);
        let Some(kek) = self.keyring.find_kek(spi) else { return };
        let unverified = match push::open(&kek.cipher, kek.last, header, &datagram.octets, self.dialect) {
            Ok(unverified) => unverified,
            Err(error) => return self.refuse_push(error.to_string(), None, cx),
        };
        let seq = unverified.seq();
        let pending = &self.pushes.pending;
        if pending.iter().any(|other| other.datagram.octets == datagram.octets) {
            self.statistics.push_duplicate += 1;
            return;
        }
        let same = pending.iter().filter(|other| other.spi == spi && other.unverified.seq() == seq).count();
        if pending.len() >= MOST_PENDING || same >= MOST_CANDIDATES {
            return self.refuse_push("too many wait for verification".to_owned(), Some(seq), cx);
        }
        let check = Verification {
            algorithm: kek.policy.signature,
            hash: kek.policy.signature_hash,
            public_key: kek.public_key.clone(),
            input: unverified.signature_input.clone(),
            or_input: unverified.padded_input.clone(),
            signature: unverified.signature.clone(),
            bare_digest: self.dialect.bare_digest_signature,
        };
        let kek = Box::new(kek.clone());
        let job = cx.out.request(Owner::Push(self.name().to_owned()), Job::Verify(check));
        let datagram = datagram.clone();
        self.pushes.pending.push_back(Pending { job, spi, kek, datagram, unverified, outcome: None });
    }

    fn refuse_push(&mut self, reason: String, seq: Option<SeqNumber>, cx: &mut Cx<'_>) {
        self.statistics.push_failed += 1;
        let (vpn, seq) = (self.name().to_owned(), seq.map(|seq| u64::from(seq.0)));
        cx.out.event(Event::PushRefused { vpn, reason, seq });
    }

    /// RFC 8263 section 6 lets a lost acknowledgement be repaired by another copy of the PUSH.
    fn acknowledge_copy(&mut self, index: usize, datagram: &Datagram, cx: &mut Cx<'_>) {
        if index + 1 != self.pushes.accepted.len() {
            return;
        }
        let Some(push) = self.pushes.accepted.back_mut() else { return };
        let Some(ack) = push.ack.clone() else { return };
        if push.repeated >= MOST_REPEATED_ACKS || cx.now.at.since(push.last_ack) < ACK_INTERVAL {
            return;
        }
        push.repeated += 1;
        push.last_ack = cx.now.at;
        let seq = push.seq;
        self.send_ack(ack, seq, datagram, cx);
    }

    fn send_ack(&mut self, octets: Bytes, seq: SeqNumber, push: &Datagram, cx: &mut Cx<'_>) {
        let datagram = Datagram { local: push.local, peer: push.peer, octets };
        match self.address.filter(|_| push.local.ip().is_multicast()) {
            None => self.send_ack_now(datagram, seq, cx),
            // All members got it at once: their acknowledgements must not come at once (RFC 8263 section 4.4), and from
            // our own address.
            Some(own) => {
                let at = cx.now.at + below(MULTICAST_JITTER, cx.entropy);
                let datagram = Datagram { local: SocketAddr::new(own, push.local.port()), ..datagram };
                if !self.pushes.late.iter().any(|late| late.datagram == datagram) {
                    self.pushes.late.push(LateAck { at, seq, datagram });
                }
                self.send_late_acks(cx);
            }
        }
    }

    fn send_ack_now(&mut self, datagram: Datagram, seq: SeqNumber, cx: &mut Cx<'_>) {
        self.statistics.acks_sent += 1;
        cx.out.transmit(datagram);
        cx.out.event(Event::AckSent { vpn: self.name().to_owned(), seq: u64::from(seq.0) });
    }

    /// Sends the acknowledgements whose moment has come.
    pub(super) fn send_late_acks(&mut self, cx: &mut Cx<'_>) {
        let due = |late: &mut LateAck| late.at <= cx.now.at;
        let due: Vec<LateAck> = self.pushes.late.extract_if(.., due).collect();
        for LateAck { seq, datagram, .. } in due {
            self.send_ack_now(datagram, seq, cx);
        }
    }

    /// A signature was checked. Results may come in any order; PUSHes of one KEK are taken in the order of their
    /// numbers, so that a slow check does not look like a gap.
    pub fn on_verified(&mut self, job: JobId, done: Done, cx: &mut Cx<'_>) {
        let Some(pending) = self.pushes.pending.iter_mut().find(|pending| pending.job == job) else { return };
        pending.outcome = Some(match done {
            Done::Verified(result) => result.map_err(|error| error.to_string()),
            _ => Err("another job's result".to_owned()),
        });
        while let Some(index) = self.pushes.next() {
            let Some(pending) = self.pushes.pending.remove(index) else { return };
            let seq = pending.unverified.seq();
            match pending.outcome {
                Some(Ok(())) => {
                    let content = pending.unverified.verified().into_inner();
                    self.on_authentic(&pending.kek, content, &pending.datagram, cx);
                }
                Some(Err(reason)) => self.refuse_push(reason, Some(seq), cx),
                None => {}
            }
        }
    }

    fn on_authentic(&mut self, protecting: &Kek, content: PushContent, datagram: &Datagram, cx: &mut Cx<'_>) {
        let spi = protecting.policy.spi;
        let seq = content.seq;
        // Meanwhile the KEK may have gone, or a later PUSH may have been taken.
        let Some(last) = self.keyring.find_kek(spi).map(|kek| kek.last).filter(|last| seq > *last) else {
            return self.refuse_push("its KEK or number is no longer current".to_owned(), Some(seq), cx);
        };
        let expected = last.next().unwrap_or(last);
        let gap = self.pushes.misses(spi, expected, seq);
        let applied = self.apply(protecting, &content, cx);
        if gap && !matches!(applied, Ok(None | Some(Applied { arrays: true, .. }))) {
            self.statistics.push_gaps += 1;
            cx.out.event(Event::PushGap {
                vpn: self.name().to_owned(),
                expected: u64::from(expected.0),
                received: u64::from(seq.0),
            });
        }
        match applied {
            // Nothing of it is for us, so that nothing of it is acknowledged.
            Ok(None) => self.pushes.note_for_others(ForOthers { octets: datagram.octets.clone(), spi, seq }),
            Ok(Some(applied)) => {
                self.doubts.settle_kek(|spi| self.keyring.find_kek(spi).is_some());
                // What the missed ones said of a TEK that this one accounts for is out of date.
                let open = self.keyring.left_open(&applied.teks);
                self.doubts.settle_teks(&open);
                if gap && !open.is_empty() {
                    let doubt = Doubt::Teks { open, quiet: applied.arrays };
                    self.doubt(doubt, applied.activation, cx);
                }
                self.acknowledge(protecting, seq, datagram, cx);
            }
            Err(reason) => {
                self.keyring.accept_seq(spi, seq);
                self.refuse_push(reason.clone(), Some(seq), cx);
                cx.out.event(Event::PolicyRefused { vpn: self.name().to_owned(), reason });
                let why = "a push could not be used";
                self.plan(Duration::from_secs(1), Duration::from_secs(30), why, cx);
            }
        }
    }

    /// Reads everything before it changes anything, then applies: Deletes, KEK, delays, TEKs. Hands back what it
    /// said; none when the key arrays lead us nowhere and nothing was applied.
    fn apply(
        &mut self,
        protecting: &Kek,
        content: &PushContent,
        cx: &mut Cx<'_>,
    ) -> Result<Option<Applied>, String> {
        let mut new = None;
        if let Some((sa, kd)) = &content.keys {
            let sa = self.dialect.sa_from_peer(sa.clone());
            let policy = GroupPolicy::read(&sa, Carriage::Push).map_err(|error| error.to_string())?;
            let kd = self.dialect.kd_from_peer(kd.clone(), policy.kek.as_ref().map(|sak| sak.spi));
            let mut keys = KeySet::read(&kd, &policy, Carriage::Push).map_err(|error| error.to_string())?;
            accept::check(&self.settings, &policy)?;
            let (key, path) = match &policy.kek {
                Some(sak) if keys.kek.is_none() && self.keyring.find_kek(sak.spi).is_none() => {
                    let path = protecting.path.as_ref().ok_or("key arrays without keys of the tree")?;
                    match path.updated(&keys.lkh_updates) {
                        Ok((path, key)) => {
                            let key = KekKey { public_key: keys.lkh_public_key.take(), ..key };
                            (Some(key), Some(path))
                        }
                        Err(LkhError::Excluded) => {
                            self.refuse_push(LkhError::Excluded.to_string(), Some(content.seq), cx);
                            self.doubt(Doubt::Kek(sak.spi), terms::activation(&policy), cx);
                            return Ok(None);
                        }
                        Err(error) => return Err(error.to_string()),
                    }
                }
                _ => (keys.kek.take(), None),
            };
            let kek = match (&policy.kek, key) {
                (Some(sak), Some(key)) => {
                    let mut kek = Kek::new(sak.clone(), key, self.keyring.kek(), cx.now.at, cx.entropy)?
                        .with_path(path);
                    if self.dialect.kek_old_spi {
                        kek.last = content.seq;
                    }
                    accept::check_signing_key(&self.settings, sak, &kek.public_key)?;
                    // The same SPI with another key would give two meanings to one name (RFC 6407 section 4).
                    let known = self.keyring.find_kek(sak.spi);
                    if known.is_some_and(|known| !known.key().ct_eq(kek.key().expose())) {
                        return Err("a new KEK has the SPI of a known one".to_owned());
                    }
                    Some(kek)
                }
                // Arrays for others, of a change that brought us its KEK already.
                (Some(_), None) | (None, _) => None,
            };
            let arrays = policy.teks.is_empty() && policy.kek.as_ref().is_some_and(|sak| sak.lkh);
            new = Some((policy, keys, kek, arrays));
        }
        self.keyring.accept_seq(protecting.policy.spi, content.seq);
        let delay = new.as_ref().and_then(|(policy, ..)| policy.deactivation_delay);
        let deleted = self.keyring.delete(&content.deletes, delay, cx);
        self.statistics.delete_received += deleted.count;
        let mut event = (Vec::new(), None);
        let mut applied = Applied::default();
        if let Some((policy, keys, kek, arrays)) = new {
            event.0 = keys.teks.iter().map(|(spi, _)| spi.to_string()).collect();
            event.1 = kek.as_ref().map(|kek| kek.policy.spi.to_string());
            let outside = self.report_outside(&policy, cx);
            let registers = self.is_trying() || self.pauses();
            self.keyring.apply_push(&policy, keys, kek, (&outside, registers), cx);
            applied = Applied { activation: terms::activation(&policy), teks: policy.teks, arrays };
            if !applied.teks.is_empty() {
                self.settle_probe();
            }
        }
        self.statistics.push_succeeded += 1;
        cx.out.event(Event::PushAccepted {
            vpn: self.name().to_owned(),
            seq: u64::from(content.seq.0),
            new_teks: event.0,
            new_kek: event.1,
        });
        if deleted.everything || (self.keyring.kek().is_none() && self.keyring.teks().is_empty()) {
            self.plan(Duration::from_secs(1), Duration::from_secs(10), "the key server deleted the keys", cx);
        }
        Ok(Some(applied))
    }

    /// Remembers the PUSH, and acknowledges it when the most recent SAK asks so, even if the PUSH deleted its own KEK
    /// (RFC 8263 sections 4 and 7.2).
    fn acknowledge(&mut self, protecting: &Kek, seq: SeqNumber, push: &Datagram, cx: &mut Cx<'_>) {
        let spi = protecting.policy.spi;
        // Acknowledgements by leaf keys need the tree; who cannot make them goes on without.
        let asked =
            self.keyring.ack_request.and_then(|request| Some((request, protecting.ack_base(request)?)));
        let ack = asked.zip(self.address).map(|((request, base_key), address)| {
            let key = if self.dialect.ack_l_output {
                AckKey::derive_output_length(request, &base_key, spi)
            } else {
                AckKey::derive(request, &base_key, spi)
            };
            key.seal(spi, seq, address)
        });
        self.pushes.accepted.push_back(Accepted {
            octets: push.octets.clone(),
            seq,
            ack: ack.clone(),
            repeated: 0,
            last_ack: cx.now.at,
        });
        if self.pushes.accepted.len() > REMEMBERED {
            self.pushes.accepted.pop_front();
        }
        if let Some(octets) = ack {
            self.send_ack(octets, seq, push, cx);
        }
    }
}

impl Pushes {
    /// The next acknowledgement that waits.
    pub(super) fn poll_timeout(&self) -> Option<Wakeup> {
        self.late
            .iter()
            .map(|late| late.at)
            .min()
            .map(|at| Wakeup { at, why: "acknowledgement of a multicast push" })
    }

    /// A checked PUSH that no unchecked one of the same KEK with a lower number precedes.
    fn next(&self) -> Option<usize> {
        self.pending.iter().position(|done| {
            done.outcome.is_some()
                && !self
                    .pending
                    .iter()
                    .any(|other| other.spi == done.spi && other.unverified.seq() < done.unverified.seq())
        })
    }

    /// True when a PUSH between `expected` and `seq` is not known.
    fn misses(&self, spi: KekSpi, expected: SeqNumber, seq: SeqNumber) -> bool {
        let between = |push: &&ForOthers| push.spi == spi && (expected..seq).contains(&push.seq);
        let known = self.for_others.iter().filter(between).count();
        u64::from(seq.0).saturating_sub(u64::from(expected.0)) > known as u64
    }

    fn note_for_others(&mut self, push: ForOthers) {
        if self.for_others.len() >= REMEMBERED {
            self.for_others.pop_front();
        }
        self.for_others.push_back(push);
    }

    /// True when a datagram was accepted lately: its KEK may be gone, and a copy still deserves its acknowledgement.
    pub fn knows(&self, octets: &Bytes) -> bool {
        self.accepted.iter().any(|push| push.octets == *octets)
    }
}
