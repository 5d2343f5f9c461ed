//! Delivery of PUSHes: copies until acknowledged, members that stay silent, acknowledgements (RFC 8263).
//!
//! ```text
//! Unsigned --signature--> Signed: copy 1 .. copy n+1, every retransmission-period, to whoever has not acknowledged
//!                         -> all acknowledged, or the last period over: the silent ones missed this rekey
//! ```
//!
//! Copies leave in rounds, as fast as the members answer (`rounds.rs`, `pace.rs`).

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use ctl::observe::LastPushView;
use gdoi_proto::ids::{KekSpi, SeqNumber, Spi};
use gdoi_proto::policy::AckRequest;
use ike::io::{Entropy, Instant, Now, Wakeup};
use ike::protect::ack::{Ack, AckKey};
use ike::protect::push::Unsigned;

use super::durable::Change;
use super::group::{Group, GroupOutput, Kek, Terms};
use super::lkh::Node;
use super::member::MemberKey;
use super::peers::Move;
use super::pull;
use super::roster::{MemberNumber, NumberSet};
use super::rounds::Round;
use super::settings::Acknowledgement;
use super::tree::reads;

/// Delivered PUSHes kept for members that are registering, at most.
const DELIVERED: usize = 256;

/// What a new KEK protects leaves this much after the KEK.
const HEAD_START: Duration = Duration::from_secs(1);

/// Where a PUSH, or what a member knows, stands among all PUSHes of a group: later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mark {
    /// Generation of the KEK.
    pub generation: u64,
    /// Number under that KEK, 0 before the first.
    pub seq: u32,
}

/// A PUSH that is delivered.
#[derive(Debug, Clone)]
pub struct Delivered {
    kek_spi: KekSpi,
    mark: Mark,
    datagram: Bytes,
    until: Instant,
}

/// One PUSH on its way.
pub struct Delivery {
    /// KEK that protects it.
    pub kek_spi: KekSpi,
    /// Its number.
    pub seq: SeqNumber,
    /// Its place among all PUSHes.
    pub mark: Mark,
    /// It was delivered once, and told to be.
    pub(super) again: bool,
    /// Never by multicast: somebody who must not open it may listen there.
    pub(super) whispered: bool,
    /// TEKs that it tells.
    pub(super) tells: Vec<Spi>,
    /// Nodes of the key tree whose holders alone can use it; none when it is for everybody.
    pub(super) holders: Vec<Node>,
    /// Members that did not acknowledge.
    pub outstanding: NumberSet,
    /// Addresses it goes to that are no members any more: `(local, peer)`.
    pub farewell: Vec<(SocketAddr, SocketAddr)>,
    /// Members it was sent to.
    pub addressed: usize,
    /// When the rekey began.
    pub started: Instant,
    /// It was told that members get it after others send under its keys.
    pub(super) late: bool,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    Unsigned { unsigned: Unsigned, asked: bool },
    Signed { datagram: Bytes, copies: u32, due: Instant, round: Option<Round> },
}

impl Delivery {
    pub(super) fn new(
        kek_spi: KekSpi,
        mark: Mark,
        unsigned: Unsigned,
        members: NumberSet,
        started: Instant,
    ) -> Delivery {
        let addressed = members.len();
        let stage = Stage::Unsigned { unsigned, asked: false };
        let seq = SeqNumber(mark.seq);
        let (outstanding, farewell) = (members, Vec::new());
        let (again, whispered) = (false, false);
        let late = false;
        Delivery {
            kek_spi,
            seq,
            mark,
            again,
            whispered,
            tells: Vec::new(),
            holders: Vec::new(),
            outstanding,
            farewell,
            addressed,
            started,
            late,
            stage,
        }
    }

    pub(super) fn with_farewell(mut self, farewell: Vec<(SocketAddr, SocketAddr)>) -> Delivery {
        self.addressed += farewell.len();
        Delivery { farewell, ..self }
    }

    /// True when nobody is left that it must reach.
    pub(super) fn is_answered(&self) -> bool {
        self.outstanding.is_empty() && self.farewell.is_empty()
    }

    /// An address of the farewell needs it no more; true when it did.
    fn drop_farewell(&mut self, peer: SocketAddr) -> bool {
        let Some(place) = self.farewell.iter().position(|(_, address)| *address == peer) else {
            return false;
        };
        self.farewell.remove(place);
        if let Stage::Signed { round: Some(Round { next: (_, next), .. }), .. } = &mut self.stage
            && place < *next
        {
            *next -= 1;
        }
        true
    }

    /// Copies of this round that did not leave; none between rounds.
    pub(super) fn left(&self) -> Option<usize> {
        let Stage::Signed { round: Some(round), .. } = &self.stage else { return None };
        let (number, farewell) = round.next;
        Some(self.outstanding.len_from(number) + self.farewell.len().saturating_sub(farewell))
    }

    /// True until the signature is there.
    pub fn is_unsigned(&self) -> bool {
        matches!(self.stage, Stage::Unsigned { .. })
    }

    /// Copies sent so far.
    pub fn copies(&self) -> u32 {
        match self.stage {
            Stage::Unsigned { .. } => 0,
            Stage::Signed { copies, .. } => copies,
        }
    }
}

impl Group {
    /// PUSHes on their way.
    pub fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }

    /// The signature is there: the datagram is written, then sent.
    pub(super) fn on_signed(&mut self, now: Now, signature: &[u8]) {
        let Some(index) = self.deliveries.iter().position(Delivery::is_unsigned) else { return };
        let kek_spi = self.deliveries[index].kek_spi;
        let Some(cipher) =
            self.kek.iter().chain(&self.old_keks).find(|kek| kek.spi == kek_spi).map(|k| k.cipher.clone())
        else {
            self.deliveries.remove(index);
            return;
        };
        // The PUSHes of one change leave together: that of the new KEK gets a moment to be verified before what it protects.
        let lkh = self.settings.communication.as_ref().is_some_and(|it| it.lkh);
        let follows =
            |older: &Delivery| older.kek_spi != kek_spi && older.copies() <= 1 && !older.is_answered();
        let wait = lkh && self.deliveries.iter().take(index).any(follows);
        let due = if wait { now.at + HEAD_START } else { now.at };
        let delivery = &mut self.deliveries[index];
        if let Stage::Unsigned { unsigned, .. } = &delivery.stage {
            let datagram = unsigned.clone().seal(&cipher, signature);
            delivery.stage = Stage::Signed { datagram, copies: 0, due, round: None };
        }
        let row = self.push_row(&self.deliveries[index]);
        self.out.push_back(GroupOutput::Persist(vec![row]));
        self.send_due(now);
        self.sign_next();
    }

    pub(super) fn delivery_wakeup(&self) -> Option<Wakeup> {
        self.deliveries
            .iter()
            .filter_map(|delivery| match delivery.stage {
                Stage::Signed { round: Some(_), .. } => None,
                Stage::Signed { due, .. } => Some(Wakeup { at: due, why: "next copy of a push" }),
                Stage::Unsigned { .. } => None,
            })
            .min_by_key(|wakeup| wakeup.at)
    }

    /// The store refuses writes or takes them again. What is written meanwhile leaves only afterwards: time that passes
    /// until then counts for no copy and ends no key, and what is on its way begins its whole schedule anew.
    pub fn on_store(&mut self, at: Instant, failing: bool) {
        if failing {
            self.frozen.get_or_insert(at);
            return;
        }
        let Some(since) = self.frozen.take() else { return };
        for delivery in &mut self.deliveries {
            if let Stage::Signed { copies, due, round, .. } = &mut delivery.stage {
                (*copies, *due, *round) = (0, at, None);
            }
        }
        self.postpone(since, at.since(since));
    }

    pub(super) fn close(
        &mut self,
        now: Now,
        index: usize,
        acknowledgement: Acknowledgement,
        missed_rekeys: u32,
    ) {
        let delivery = self.deliveries.remove(index);
        // Members that hold a KEK which asks for nothing need not answer for what the next one asks.
        let asked = self.kek_of(delivery.kek_spi).is_some_and(|kek| kek.ack.is_some());
        let acknowledgement = if asked { acknowledgement } else { Acknowledgement::None };
        let mut changes: Vec<Change> = vec![self.push_gone(&delivery)];
        self.delivered.retain(|delivered| delivered.until > now.at);
        if let Stage::Signed { datagram, .. } = &delivery.stage {
            if self.delivered.len() == DELIVERED {
                self.delivered.pop_front();
            }
            let (kek_spi, mark, datagram) = (delivery.kek_spi, delivery.mark, datagram.clone());
            self.delivered.push_back(Delivered { kek_spi, mark, datagram, until: now.at + pull::LIFE });
        }
        let missing: Vec<String> = match acknowledgement {
            Acknowledgement::None => Vec::new(),
            _ => {
                let gone = delivery.farewell.iter().map(|(_, peer)| peer.to_string());
                self.names(&delivery.outstanding).into_iter().chain(gone).collect()
            }
        };
        if !delivery.again {
            let took = now.at.since(delivery.started);
            self.counters.durations.rekey.count(took);
            self.last_push = Some(LastPushView {
                seq: u64::from(delivery.seq.0),
                seconds: took.as_secs_f64(),
                retransmits: u64::from(delivery.copies().saturating_sub(1)),
                missing: missing.len() as u64,
            });
            self.event(Event::RekeyCompleted {
                group: self.settings.name.clone(),
                seq: u64::from(delivery.seq.0),
                kek_spi: delivery.kek_spi.to_string(),
                acknowledged: delivery
                    .addressed
                    .saturating_sub(delivery.outstanding.len() + delivery.farewell.len())
                    as u64,
                missing,
                seconds: took.as_secs_f64(),
            });
        }
        if acknowledgement != Acknowledgement::None {
            for number in delivery.outstanding.iter() {
                self.on_missed(now.at, number, (acknowledgement, missed_rekeys), &mut changes);
            }
        }
        self.out.push_back(GroupOutput::Persist(changes));
    }

    /// A member that joined with terms older than a PUSH on its way gets that PUSH; one that joined with newer terms has
    /// its content already.
    pub(super) fn catch_up(&mut self, now: Now, key: &MemberKey, joined: Mark) {
        let Some(communication) = &self.settings.communication else { return };
        let Some(number) = self.members.number(key) else { return };
        let leaf = self.members.get(key).and_then(|member| member.leaf);
        let mut send = Vec::new();
        for delivery in &mut self.deliveries {
            if delivery.mark > joined && reads(&delivery.holders, leaf) {
                if delivery.outstanding.insert(number) {
                    delivery.addressed += 1;
                }
                if let Stage::Signed { datagram, copies, due, .. } = &mut delivery.stage {
                    send.push(datagram.clone());
                    if delivery.again && *copies == 0 {
                        (*copies, *due) = (1, now.at + communication.retransmission_period);
                    }
                }
            } else {
                delivery.outstanding.remove(number);
            }
        }
        let Some(member) = self.members.get(key) else { return };
        let to = vec![(member.local, member.peer)];
        for datagram in send {
            self.out.push_back(GroupOutput::Fanout(datagram, to.clone()));
        }
        self.close_answered(now);
    }

    /// The last PUSH so far.
    pub(super) fn mark(&self) -> Mark {
        self.kek.as_ref().map_or(Mark::default(), |kek| Mark { generation: kek.generation, seq: kek.seq.0 })
    }

    /// Delivered PUSHes whose content these terms lack, in order; none when something between is no longer known.
    pub(super) fn missed_since(&self, terms: &Terms) -> Option<Vec<Delivered>> {
        if self.untold != terms.untold {
            return None;
        }
        let mut missed = Vec::new();
        let mut generation = terms.mark.generation;
        let mut seq = terms.mark.seq;
        while let Some(kek) = self.old_keks.iter().chain(&self.kek).find(|kek| kek.generation == generation) {
            while seq < kek.seq.0 {
                seq += 1;
                let mark = Mark { generation, seq };
                if self.deliveries.iter().any(|delivery| delivery.mark == mark) {
                    continue;
                }
                missed.push(self.delivered.iter().find(|delivered| delivered.mark == mark)?.clone());
            }
            if self.kek.as_ref().is_some_and(|current| current.generation == generation) {
                return Some(missed);
            }
            (generation, seq) = (generation + 1, 0);
        }
        // Without rekey SAs there is nothing to miss.
        self.kek.is_none().then_some(missed)
    }

    /// A delivered PUSH is on its way again, to whoever needs it yet.
    pub(super) fn deliver_again(&mut self, now: Now, delivered: Delivered) -> Change {
        let Delivered { kek_spi, mark, datagram, .. } = delivered;
        self.delivered.retain(|delivered| delivered.mark != mark);
        let unsigned = Unsigned::from_parts(kek_spi, Vec::new(), 0);
        let mut delivery = Delivery::new(kek_spi, mark, unsigned, NumberSet::default(), now.at);
        delivery.stage = Stage::Signed { datagram, copies: 0, due: now.at, round: None };
        delivery.again = true;
        let row = self.push_row(&delivery);
        let index = self.deliveries.partition_point(|other| other.mark < mark);
        self.deliveries.insert(index, delivery);
        row
    }

    /// An acknowledgement for one of this group's KEKs (RFC 8263 section 5).
    ///
    /// It answers older PUSHes too: a member takes no number below the last, and acknowledges copies of its last only.
    pub fn on_ack(&mut self, now: Now, peer: SocketAddr, ack: Ack, output_length: bool) {
        let Some(number) = self.sender_of(peer) else {
            if self.takes_leave(now, peer, &ack, output_length) {
                return;
            }
            self.counters.acks_stranger += 1;
            return self.refuse_ack(peer, "no member is registered at this address");
        };
        // Behind a NAT the ID is an address nobody sees here; its source address and port name the member.
        let hidden = self.members.get_mut(number).is_some_and(|member| member.behind_nat);
        if ack.address() != Some(peer.ip()) && !(hidden && ack.address().is_some()) {
            self.counters.acks_forged += 1;
            return self.refuse_ack(peer, "its ID is not the address it came from");
        }
        let spi = ack.spi;
        let asked = self.kek_of(spi).filter(|kek| self.ack_types(kek).next().is_some());
        let waits =
            self.deliveries.iter().position(|d| d.kek_spi == spi && d.seq == ack.seq && !d.is_unsigned());
        let index = match (asked, waits) {
            (Some(_), Some(index)) => index,
            (Some(kek), None) if ack.seq.0 > 0 && ack.seq <= kek.seq => {
                self.counters.acks_late += 1;
                return self.refuse_ack(peer, "nobody waits for this acknowledgement any more");
            }
            (Some(_), None) => {
                self.counters.acks_unexpected += 1;
                return self.refuse_ack(peer, "nothing with this number was sent");
            }
            (None, _) => {
                self.counters.acks_unexpected += 1;
                return self.refuse_ack(peer, "the group asks for no acknowledgements");
            }
        };
        if !self.deliveries[index].outstanding.contains(number) {
            self.counters.acks_duplicate += 1;
            return;
        }
        if !self.is_genuine(&ack, output_length, Some(number)) {
            self.counters.acks_forged += 1;
            return self.refuse_ack(peer, "HASH mismatch");
        }
        self.counters.acks += 1;
        for older in &mut self.deliveries[..index] {
            older.outstanding.remove(number);
        }
        let delivery = &mut self.deliveries[index];
        delivery.outstanding.remove(number);
        let took = now.at.since(delivery.started);
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.counters.durations.acknowledgement.count(took);
        let first = delivery.copies() == 1;
        let mut missed = 0;
        if let Some(member) = self.members.get_mut(number) {
            match std::mem::take(&mut member.pushed) {
                // Of several PUSHes in a row, or by multicast.
                Instant(0) => self.pace.answered_somehow(),
                sent => self.pace.answered(now.at, sent, first),
            }
            member.last_ack = Some(ack.seq);
            missed = std::mem::take(&mut member.missed);
            member.acks += 1;
        }
        if missed > 0 {
            self.on_answer_of_suspect(number, missed);
        }
        self.event(Event::AckReceived {
            group: self.settings.name.clone(),
            member: self.members.key(number).map(ToString::to_string).unwrap_or_default(),
            seq: u64::from(ack.seq.0),
            kek_spi: spi.to_string(),
            milliseconds,
        });
        self.close_answered(now);
    }

    /// The member an acknowledgement comes from. Of a PUSH by multicast it comes from that PUSH's port (RFC 8263 section
    /// 4.4), which need not be the one the member registered from.
    fn sender_of(&self, peer: SocketAddr) -> Option<MemberNumber> {
        let by_channel = || {
            let channel = self.settings.communication.as_ref()?.way.channel()?;
            self.members.only_at(peer.ip()).filter(|_| channel.group.port() == peer.port())
        };
        self.members.at(peer).or_else(by_channel)
    }

    fn is_genuine(&self, ack: &Ack, output_length: bool, from: Option<MemberNumber>) -> bool {
        let Some(kek) = self.kek_of(ack.spi) else { return false };
        let other = kek.ack_key_output.as_ref().filter(|_| output_length);
        if kek.ack_key.iter().chain(other).any(|key| key.verify(ack.clone()).is_ok()) {
            return true;
        }
        // Each member has a key of its own where there is a tree: that of its leaf (RFC 8263 section 4.2).
        self.ack_types(kek).any(|request| {
            let base = match request {
                AckRequest::KekSha256 | AckRequest::KekSha512 => Some(kek.key.clone()),
                AckRequest::LkhSha256 | AckRequest::LkhSha512 => {
                    from.and_then(|number| self.leaf_key(number))
                }
            };
            let Some(base) = base else { return false };
            let strict = AckKey::derive(request, &base, kek.spi);
            let other = output_length.then(|| AckKey::derive_output_length(request, &base, kek.spi));
            std::iter::once(strict).chain(other).any(|key| key.verify(ack.clone()).is_ok())
        })
    }

    pub(super) fn kek_of(&self, spi: KekSpi) -> Option<&Kek> {
        self.kek.iter().chain(&self.old_keks).find(|kek| kek.spi == spi)
    }

    /// How a PUSH under this KEK may be acknowledged: as its SAK asks, or as a later one does, because a member goes by the
    /// most recent that it took (RFC 8263 section 7.2), which is that of the very PUSH when it brings one.
    fn ack_types<'a>(&'a self, kek: &'a Kek) -> impl Iterator<Item = AckRequest> + 'a {
        let later = self.old_keks.iter().chain(&self.kek).filter(|it| it.generation > kek.generation);
        let later = later.filter_map(|it| it.ack).filter(|ack| Some(*ack) != kek.ack);
        kek.ack.into_iter().chain(later)
    }

    /// A PUSH that told a former member to come again is acknowledged: it needs no more copies.
    fn takes_leave(&mut self, now: Now, peer: SocketAddr, ack: &Ack, output_length: bool) -> bool {
        // Its record is gone, and with it whether a NAT is before it: address and port it comes from say who it was.
        if ack.address().is_none() || !self.is_genuine(ack, output_length, None) {
            return false;
        }
        let sent = |d: &&mut Delivery| d.kek_spi == ack.spi && d.seq == ack.seq && !d.is_unsigned();
        let Some(delivery) = self.deliveries.iter_mut().find(sent) else { return false };
        let counts = delivery.drop_farewell(peer);
        if counts {
            self.counters.acks += 1;
            self.pace.answered_somehow();
        }
        self.close_answered(now);
        counts
    }

    /// A former member is back: what told it to come must not reach it any more.
    pub(super) fn returned(&mut self, peer: SocketAddr) -> Vec<Change> {
        let mut back = Vec::new();
        for (delivery, index) in self.deliveries.iter_mut().zip(0..) {
            if delivery.drop_farewell(peer) {
                back.push(index);
            }
        }
        back.into_iter()
            .filter_map(|index: usize| self.deliveries.get(index))
            .map(|it| self.push_row(it))
            .collect()
    }

    /// A NAT chose another address or port for a member: pushes go there from now on.
    pub fn on_moved(&mut self, identity: &MemberKey, moved: Move) {
        let here = self.members.get(identity).filter(|member| member.peer == moved.from);
        let Some(mut member) = here.cloned() else { return };
        (member.peer, member.local) = (moved.to.peer, moved.to.local);
        let mut changes = vec![self.member_row(identity, &member)];
        let there = self.members.at(member.peer).and_then(|number| self.members.key(number)).cloned();
        if let Some(other) = there.filter(|other| other != identity) {
            changes.extend(self.forget_member(&other, "its address is another identity's now"));
        }
        self.members.put(identity.clone(), member);
        changes.extend(self.returned(moved.to.peer));
        self.out.push_back(GroupOutput::Persist(changes));
    }

    /// Closes what everybody acknowledged.
    fn close_answered(&mut self, now: Now) {
        let Some(communication) = &self.settings.communication else { return };
        if communication.acknowledgement == Acknowledgement::None {
            return;
        }
        let (acknowledgement, missed) = (communication.acknowledgement, communication.missed_rekeys);
        let answered =
            |delivery: &Delivery| !delivery.is_unsigned() && delivery.copies() > 0 && delivery.is_answered();
        while let Some(index) = self.deliveries.iter().position(answered) {
            self.close(now, index, acknowledgement, missed);
        }
    }

    fn refuse_ack(&mut self, peer: SocketAddr, reason: &str) {
        self.event(Event::AckRefused {
            peer: peer.to_string(),
            group: self.settings.name.clone(),
            reason: reason.to_owned(),
        });
    }

    /// Timers of keys and deliveries.
    pub fn on_timeout(&mut self, now: Now, entropy: &mut dyn Entropy) {
        self.try_again(now.at);
        self.send_due(now);
        self.on_ends(now, entropy);
        self.on_key_timers(now, entropy);
    }

    /// The group's next timer but for a round that waits for room; none while the store refuses writes.
    pub fn poll_timeout(&self) -> Option<Wakeup> {
        if self.frozen.is_some() {
            return None;
        }
        let retry = self.retry.map(|at| Wakeup { at, why: "a signing key that failed" });
        let keys = Wakeup::earlier(self.delivery_wakeup(), self.rekey_wakeup());
        Wakeup::earlier(retry, Wakeup::earlier(self.ends_wakeup(), keys))
    }
}
