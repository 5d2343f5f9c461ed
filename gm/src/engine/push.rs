//! GROUPKEY-PUSH received (RFC 6407 section 4.4): byte-identical copies are recognised first, then decrypt, structure,
//! SEQ, signature, and only then the content, all of it or nothing. Acknowledged by RFC 8263.
//!
//! ```text
//! datagram --copy of the last accepted--> acknowledged again, at most 3 times, once a second
//!          --open--> Pending --signature good--> SEQ advances --read--> applied --> acknowledged
//!                            --bad--> dropped                 --not ours--> alarm, registration
//! ```

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

#[cfg(test)]
mod tests {
    use gdoi_proto::payload::{Delete, LkhDownload, LkhKey, LkhUpdate};
    use gdoi_proto::policy::{AckRequest, KekPolicy};
    use gdoi_proto::registry::Doi;
    use gdoi_proto::secret::SecretBytes;
    use ike::crypto::Cipher;
    use ike::crypto::cipher::CipherKey;
    use ike::protect::ack::Ack;

    use super::super::testing::{Bench, cipher, kek, policy, tek};
    use super::*;

    fn bench() -> Bench {
        let mut bench = Bench::new();
        bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
        bench.take_told();
        bench
    }

    fn delete(protocol: u8, spi: Vec<u8>) -> Delete {
        Delete { doi: Doi::Gdoi, protocol, spi_size: spi.len() as u8, spis: vec![spi] }
    }

    fn acked(bench: &mut Bench) -> Vec<u32> {
        let verify = |datagram: Datagram| {
            let ack = Ack::decode(&datagram.octets).expect("an acknowledgement");
            let key = AckKey::derive(AckRequest::KekSha256, cipher(ack.spi.0[0]).key.key(), ack.spi);
            key.verify(ack).expect("its HASH").into_inner().seq.0
        };
        bench.sent.drain(..).map(verify).collect()
    }

    #[test]
    fn a_push_is_applied_once_and_acknowledged_again_at_most_three_times_once_a_second() {
        let mut bench = bench();
        let push = bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)]));
        bench.receive(&push);
        assert_eq!((acked(&mut bench), bench.take_told()), (vec![5], "install 301".to_owned()));
        bench.receive(&push);
        assert!(acked(&mut bench).is_empty(), "not within a second");
        for copy in 0..5 {
            bench.pass(1);
            bench.receive(&push);
            assert_eq!(acked(&mut bench).len(), usize::from(copy < 3));
        }
        assert_eq!(bench.take_told(), "");
        assert_eq!(bench.vpn.statistics.push_succeeded, 1);
    }

    #[test]
    fn a_copy_of_an_older_push_stays_unanswered() {
        let mut bench = bench();
        let first = bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)]));
        bench.receive(&first);
        bench.receive(&bench.push_keys(1, 6, &policy(None, vec![tek(302, 3600)])));
        assert_eq!(acked(&mut bench), [5, 6]);
        bench.pass(2);
        bench.receive(&first);
        assert!(acked(&mut bench).is_empty());
    }

    #[test]
    fn a_number_not_above_the_last_is_dropped() {
        let mut bench = bench();
        bench.receive(&bench.push_keys(1, 4, &policy(None, vec![tek(301, 3600)])));
        assert_eq!(bench.take_told(), "");
        assert!(bench.happened("push_refused") && bench.sent.is_empty());
    }

    #[test]
    fn a_bad_signature_changes_nothing_and_is_not_answered() {
        let mut bench = bench();
        let forger = Bench::new();
        bench.receive(&forger.push_keys(1, 9, &policy(None, vec![tek(301, 3600)])));
        assert_eq!(bench.take_told(), "");
        assert!(bench.sent.is_empty() && bench.happened("push_refused"));
        bench.receive(&bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)])));
        assert_eq!(bench.take_told(), "install 301", "the number did not advance");
    }

    #[test]
    fn a_gap_is_told_and_a_push_that_accounts_for_every_tek_repairs_it() {
        let mut bench = bench();
        bench.receive(&bench.push_keys(1, 7, &policy(None, vec![tek(301, 3600)])));
        assert!(bench.happened("push_gap"));
        assert_eq!((bench.take_told(), acked(&mut bench)), ("install 301".to_owned(), vec![7]));
        assert!(!bench.pass(60), "no storm of registrations where pushes get lost");
    }

    #[test]
    fn a_gap_that_leaves_a_tek_open_leads_to_a_registration() {
        let mut bench = Bench::new();
        let other = TekPolicy { ip_protocol: 6, ..tek(302, 3600) };
        bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600), other]), 4).unwrap();
        bench.receive(&bench.push_keys(1, 7, &policy(None, vec![tek(301, 3600)])));
        assert!(bench.happened("push_gap"));
        assert!(bench.pass(30), "302 may have been replaced");
        let mut kek_only = self::bench();
        kek_only.receive(&kek_only.push_keys(1, 7, &policy(Some(kek(2, 7200)), vec![])));
        assert!(kek_only.pass(30), "and so may 300");
    }

    #[test]
    fn a_registration_planned_while_another_is_under_way_is_not_lost() {
        let mut bench = bench();
        bench.begin();
        bench.receive(&bench.push_keys(1, 7, &policy(Some(kek(2, 7200)), vec![])));
        assert!(!bench.pass(60), "one at a time");
        bench.download(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
        assert!(bench.pass(1));
    }

    #[test]
    fn a_forged_push_under_verification_does_not_hold_off_the_genuine_one() {
        let forger = Bench::new();
        let forged = forger.push_keys(1, 5, &policy(None, vec![tek(399, 3600)]));
        for genuine_first in [false, true] {
            let mut bench = bench();
            let genuine = bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)]));
            bench.hold_jobs = true;
            bench.receive(if genuine_first { &genuine } else { &forged });
            bench.receive(if genuine_first { &forged } else { &genuine });
            bench.receive(&forged);
            assert_eq!(bench.vpn.statistics.push_duplicate, 1, "the same octets are checked once");
            bench.run_held_jobs();
            assert_eq!((bench.take_told(), acked(&mut bench)), ("install 301".to_owned(), vec![5]));
        }
    }

    #[test]
    fn at_most_three_candidates_of_a_number_are_verified_at_a_time() {
        let mut bench = bench();
        bench.hold_jobs = true;
        for life in 3600..3604 {
            bench.receive(&Bench::new().push_keys(1, 5, &policy(None, vec![tek(301, life)])));
        }
        assert!(bench.happened("push_refused"));
        assert_eq!(bench.run_held_jobs(), 3);
    }

    #[test]
    fn a_new_kek_takes_over_and_the_old_one_goes_after_the_first_push_under_it() {
        let mut bench = bench();
        bench.receive(&bench.push_keys(1, 5, &policy(Some(kek(2, 7200)), vec![])));
        assert!(bench.happened("kek_installed"));
        bench.receive(&bench.push_keys(1, 6, &policy(None, vec![tek(301, 3600)])));
        assert_eq!(bench.take_told(), "install 301", "the old KEK still protects");
        bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(302, 3600)])));
        assert_eq!(acked(&mut bench), [5, 6, 1]);
        assert!(bench.vpn.keyring.find_kek(KekSpi([1; 16])).is_some(), "DTD is not over");
        bench.pass(45);
        assert!(bench.vpn.keyring.find_kek(KekSpi([1; 16])).is_none());
    }

    /// A key of a tree; every octet of it says which.
    fn node(id: u16, handle: u32, octet: u8) -> LkhKey {
        LkhKey { id, key_type: 3, created: 0, expires: 0, handle, data: vec![octet; 32].into() }
    }

    /// A new root for KEK `spi`, sealed under the key that `holder` names.
    fn array(holder: &LkhKey, spi: u8) -> LkhUpdate {
        let under = CipherKey::new(Cipher::Aes128Cbc, SecretBytes::copy(&holder.data[16..])).unwrap();
        let iv = <[u8; 16]>::try_from(&holder.data[..16]).unwrap();
        let plain = [[1; 16], [spi; 16]].concat();
        let root = LkhKey { data: under.encrypt(&iv, &plain).into(), ..node(9, u32::from(spi), 0) };
        LkhUpdate { id: holder.id, handle: holder.handle, keys: vec![root] }
    }

    /// A VPN that holds leaf 3, node 5 and the root, which is KEK 1.
    fn in_a_tree() -> Bench {
        let mut bench = Bench::new();
        let sak = KekPolicy { acknowledgement: Some(AckRequest::LkhSha256), ..kek(1, 7200) };
        let mut root = node(9, 1, 1);
        root.data[..16].fill(1);
        let keys = vec![node(3, 30, 0x33), node(5, 50, 0x55), root];
        bench.download = Some(LkhDownload { keys });
        bench.registered(policy(Some(sak), vec![tek(300, 3600)]), 4).unwrap();
        bench.take_told();
        bench
    }

    fn push_arrays(bench: &Bench, seq: u32, spi: u8, lkh_updates: Vec<LkhUpdate>) -> Bytes {
        let sak = KekPolicy { acknowledgement: Some(AckRequest::LkhSha256), lkh: true, ..kek(spi, 7200) };
        let policy = policy(Some(sak), Vec::new());
        let kd = KeySet { lkh_updates, ..KeySet::default() }.write(&policy);
        let keys = Some((policy.write(Carriage::Push), kd));
        bench.push(1, &PushContent { seq: SeqNumber(seq), deletes: Vec::new(), keys })
    }

    #[test]
    fn arrays_for_a_key_of_ours_lead_to_the_new_kek_and_are_acknowledged_by_the_key_of_our_leaf() {
        let mut bench = in_a_tree();
        let others = array(&node(7, 70, 0x77), 2);
        bench.receive(&push_arrays(&bench, 5, 2, vec![others.clone(), array(&node(5, 50, 0x55), 2)]));
        assert!(bench.vpn.keyring.kek().is_some_and(|kek| kek.key().ct_eq(&[2; 16])));
        let ack = Ack::decode(&bench.sent.remove(0).octets).unwrap();
        let leaf = SecretBytes::copy(&[0x33; 16]);
        AckKey::derive(AckRequest::LkhSha256, &leaf, ack.spi).verify(ack).expect("its HASH");
        // Another PUSH of the same change has nothing for us; what the new KEK protects is ours.
        bench.receive(&push_arrays(&bench, 6, 2, vec![others]));
        bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(301, 3600)])));
        assert_eq!((bench.take_told().as_str(), bench.sent.len()), ("install 301", 2));
        assert!(!bench.pass(60));
    }

    #[test]
    fn who_is_excluded_is_silent_and_registers_again_unless_another_push_brings_the_kek() {
        for comes in [false, true] {
            let mut bench = in_a_tree();
            let stale = array(&node(5, 49, 0x55), 2);
            bench.receive(&push_arrays(&bench, 5, 2, vec![array(&node(7, 70, 0x77), 2), stale]));
            assert!(bench.happened("reregistration_scheduled") && bench.sent.is_empty());
            if comes {
                bench.receive(&push_arrays(&bench, 6, 2, vec![array(&node(3, 30, 0x33), 2)]));
                assert_eq!(bench.sent.len(), 1);
            }
            assert_eq!(bench.pass(30), !comes);
            assert_eq!(bench.vpn.keyring.teks().len(), 1, "keys in use stay");
        }
    }

    #[test]
    fn arrays_for_us_are_taken_after_those_for_others_whatever_the_order_and_copies_cost_nothing() {
        let mut bench = in_a_tree();
        let others = |seq| push_arrays(&bench, seq, 2, vec![array(&node(7, 70, 0x77), 2)]);
        let (before, after) = (others(5), others(7));
        let ours = push_arrays(&bench, 6, 2, vec![array(&node(5, 50, 0x55), 2)]);
        bench.receive(&after);
        bench.receive(&after);
        assert_eq!(bench.vpn.statistics.push_duplicate, 1);
        bench.receive(&before);
        bench.receive(&ours);
        assert!(bench.vpn.keyring.kek().is_some_and(|kek| kek.key().ct_eq(&[2; 16])));
        assert_eq!(bench.sent.len(), 1, "only what was for us is acknowledged");
        assert!(!bench.pass(60), "nothing is missing");
    }

    #[test]
    fn numbers_before_our_arrays_are_those_of_arrays_for_others_unless_nothing_says_so() {
        for told in [true, false] {
            let mut bench = in_a_tree();
            bench.receive(&push_arrays(&bench, 7, 2, vec![array(&node(5, 50, 0x55), 2)]));
            assert!(bench.vpn.misses_rekeys() && !bench.happened("reregistration_scheduled"));
            if told {
                bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(301, 3600)])));
            }
            assert_eq!((bench.pass(60), bench.vpn.misses_rekeys()), (!told, false));
            assert_eq!(bench.happened("reregistration_scheduled"), !told);
            assert!(!bench.happened("push_gap") && bench.vpn.statistics.push_gaps == 0);
        }
    }

    #[test]
    fn several_pushes_together_settle_what_a_gap_before_left_open() {
        let other = |spi| TekPolicy { ip_protocol: 6, ..tek(spi, 3600) };
        for all in [false, true] {
            let mut bench = Bench::new();
            bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600), other(302)]), 4).unwrap();
            bench.receive(&bench.push_keys(1, 7, &policy(Some(kek(2, 7200)), vec![])));
            assert!(bench.happened("reregistration_scheduled"));
            bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(301, 3600)])));
            if all {
                bench.receive(&bench.push_keys(2, 2, &policy(None, vec![other(303)])));
            }
            assert_eq!(bench.pass(60), !all);
        }
    }

    #[test]
    fn the_array_for_us_may_come_as_a_late_copy_and_a_registration_is_over_before_the_others_send() {
        for copy in [false, true] {
            let mut bench = in_a_tree();
            bench.receive(&push_arrays(&bench, 6, 2, vec![array(&node(7, 70, 0x77), 2)]));
            assert!(!bench.pass(19), "copies of 5 may still come");
            if copy {
                bench.receive(&push_arrays(&bench, 5, 2, vec![array(&node(5, 50, 0x55), 2)]));
            }
            assert_eq!(bench.pass(6), !copy, "ATD is 30 s");
        }
    }

    #[test]
    fn a_registration_that_brings_the_kek_settles_the_doubt_of_it() {
        let mut bench = in_a_tree();
        bench.begin();
        bench.receive(&push_arrays(&bench, 5, 2, vec![array(&node(7, 70, 0x77), 2)]));
        bench.download(policy(Some(kek(2, 7200)), vec![tek(300, 3600)]), 0).unwrap();
        assert!(!bench.pass(60));
    }

    #[test]
    fn arrays_are_nothing_to_a_member_without_keys_of_a_tree() {
        let mut bench = bench();
        bench.receive(&push_arrays(&bench, 5, 2, vec![array(&node(5, 50, 0x55), 2)]));
        assert!(bench.happened("policy_refused") && bench.sent.is_empty() && bench.pass(30));
    }

    #[test]
    fn a_clean_slate_acts_at_once_is_acknowledged_and_leads_to_a_registration() {
        let mut bench = bench();
        let deletes = vec![delete(1, vec![0; 4]), delete(0, vec![0; 16])];
        let push = bench.push(1, &PushContent { seq: SeqNumber(5), deletes, keys: None });
        bench.receive(&push);
        assert_eq!((bench.take_told(), acked(&mut bench)), ("remove 300".to_owned(), vec![5]));
        assert_eq!(bench.vpn.state(), "expired");
        assert!(bench.vpn.pushes.knows(&push), "a copy is still acknowledged");
        assert!(bench.pass(10));
    }

    #[test]
    fn a_named_delete_waits_for_dtd_and_unknown_spis_mean_nothing() {
        let mut bench = bench();
        let deletes = vec![delete(1, vec![0, 0, 1, 44]), delete(1, vec![9; 4]), delete(2, vec![0; 4])];
        bench.receive(&bench.push(1, &PushContent { seq: SeqNumber(5), deletes, keys: None }));
        bench.pass(44);
        assert_eq!(bench.take_told(), "");
        bench.pass(1);
        assert_eq!(bench.take_told(), "remove 300");
    }

    #[test]
    fn a_policy_we_refuse_uses_its_number_up_keeps_the_keys_and_leads_to_a_registration() {
        let mut bench = bench();
        bench.receive(&bench.push_keys(1, 5, &policy(Some(kek(1, 7200)), vec![tek(301, 0)])));
        assert_eq!(bench.take_told(), "");
        assert!(bench.happened("policy_refused") && bench.sent.is_empty());
        bench.receive(&bench.push_keys(1, 6, &policy(None, vec![tek(301, 3600)])));
        assert!(!bench.happened("push_gap"), "5 was used up");
        assert!(bench.pass(30));
    }

    #[test]
    fn a_push_by_multicast_is_acknowledged_from_our_address_and_its_copies_once_more() {
        let mut bench = Bench::new();
        let group = "239.192.0.1:8480".parse::<SocketAddr>().unwrap();
        let mut sak = kek(1, 7200);
        sak.destination = gdoi_proto::payload::Endpoint {
            id_type: gdoi_proto::registry::IdType::Ipv4Addr,
            port: 8480,
            data: vec![239, 192, 0, 1],
        };
        sak.acknowledgement = Some(AckRequest::KekSha256);
        bench.registered(policy(Some(sak), vec![tek(300, 3600)]), 4).unwrap();
        assert_eq!(bench.vpn.keyring.channels(), [group]);
        let push = bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)]));
        bench.entropy = 0x55;
        for _ in 0..3 {
            bench.receive_at(group, &push);
        }
        assert!(bench.sent.is_empty(), "it waits up to 2 s, so that not everybody answers at once");
        bench.pass(2);
        let own: SocketAddr = super::super::testing::MEMBER.parse().unwrap();
        assert_eq!(bench.sent.len(), 1);
        assert_eq!(bench.sent[0].local, SocketAddr::new(own.ip(), 8480), "as the PUSH came, ports swapped");
        bench.receive_at(group, &push);
        bench.pass(2);
        assert_eq!(bench.sent.len(), 2, "the acknowledgement may have been lost");
        assert_eq!(bench.vpn.statistics.push_duplicate, 3);
    }
}
