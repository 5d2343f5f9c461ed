//! Rounds of copies: each PUSH goes to everybody who did not acknowledge it, as fast as the pace allows.

use std::net::SocketAddr;
use std::time::Duration;

use ctl::event::Event;
use ike::io::{Instant, Now, Wakeup};

use super::group::{Group, GroupOutput};
use super::pace::{Pace, SLICE};
use super::push::{Delivery, Stage};
use super::roster::MemberNumber;
use super::settings::{Acknowledgement, CommunicationSettings, Way};

/// After the last copy, before a member counts as missing that was asked to acknowledge and need not.
const PATIENCE: Duration = Duration::from_secs(10);

/// A round of copies on its way.
pub(super) struct Round {
    began: Instant,
    /// Whose turn it is, of the members and of the farewell.
    pub(super) next: (MemberNumber, usize),
    /// Whom it was sent to.
    members: usize,
    /// By multicast too.
    shouted: bool,
}

impl Group {
    /// When a round that is not over goes on.
    pub(super) fn round_wakeup(&self, pace: &Pace) -> Option<Wakeup> {
        let left = self.deliveries.iter().find_map(Delivery::left).filter(|_| self.frozen.is_none())?;
        Some(Wakeup { at: pace.due(left), why: "room for the next part of a push" })
    }

    /// Sends copies that are due and closes deliveries whose last copy had its time.
    pub(super) fn send_due(&mut self, now: Now) {
        if self.frozen.is_some() {
            return;
        }
        let Some(communication) = self.settings.communication.clone() else { return };
        let mut closed = Vec::new();
        for index in 0..self.deliveries.len() {
            let Some(delivery) = self.deliveries.get_mut(index) else { continue };
            let answered = delivery.is_answered();
            let Stage::Signed { copies, due, round, .. } = &mut delivery.stage else { continue };
            if round.is_none() {
                if *due > now.at {
                    continue;
                }
                if *copies > communication.retransmissions || answered {
                    closed.push(index);
                    continue;
                }
                *copies += 1;
                let (began, next) = (now.at, (MemberNumber::FIRST, 0));
                *round = Some(Round { began, next, members: 0, shouted: false });
            }
            self.send_round(now.at, index, &communication, false);
        }
        for index in closed.into_iter().rev() {
            self.close(now, index, communication.acknowledgement, communication.missed_rekeys);
        }
    }

    /// The rest of every round, however many leave at once: nobody will be here to send it.
    pub(super) fn finish_rounds(&mut self, now: Now) {
        let Some(communication) = self.settings.communication.clone().filter(|_| self.frozen.is_none())
        else {
            return;
        };
        for index in 0..self.deliveries.len() {
            self.send_round(now.at, index, &communication, true);
        }
    }

    /// Sends what the pace allows of a round, or all of it in a `hurry`.
    fn send_round(&mut self, at: Instant, index: usize, communication: &CommunicationSettings, hurry: bool) {
        let Some(delivery) = self.deliveries.get_mut(index) else { return };
        let Some(left) = delivery.left() else { return };
        let (kek_spi, seq, alone) = (delivery.kek_spi, delivery.seq, delivery.again || delivery.whispered);
        let Delivery { outstanding, farewell, stage, .. } = delivery;
        let Stage::Signed { datagram, copies, due, round: slot } = stage else { return };
        let (Some(mut round), attempt, datagram) = (slot.take(), *copies, datagram.clone()) else { return };
        let kek = self.kek.iter().chain(&self.old_keks).find(|kek| kek.spi == kek_spi);
        let channel = match &communication.way {
            Way::Multicast(channel) => Some(channel),
            Way::Both(channel) if attempt == 1 => Some(channel),
            Way::Both(_) | Way::Unicast => None,
        }
        .filter(|_| !alone)
        // Members listen where the SAK of the KEK that protects it said.
        .filter(|channel| kek.is_some_and(|kek| kek.channel == Some(channel.group)));
        let asks = kek.is_some_and(|kek| kek.ack.is_some());
        let room = match (hurry, asks && channel.is_none()) {
            (true, _) => usize::MAX,
            (false, true) => self.pace.room(at, left),
            // Nobody answers, or all at once whatever is done here.
            (false, false) => SLICE,
        };
        // Who is behind a NAT or of the other address family hears no multicast.
        let hears = |peer: &SocketAddr, behind_nat: bool| {
            channel.is_some_and(|it| it.group.is_ipv4() == peer.is_ipv4() && !behind_nat)
        };
        let shouts = channel.filter(|_| !std::mem::replace(&mut round.shouted, true));
        if let Some(channel) = shouts {
            self.counters.pushes_multicast += 1;
            self.out.push_back(GroupOutput::Multicast(datagram.clone(), channel.clone()));
        }
        let most = if hurry { usize::MAX } else { SLICE };
        let (mut to, mut waited_for): (Vec<(SocketAddr, SocketAddr)>, usize) = (Vec::new(), 0);
        let mut over = true;
        for number in outstanding.iter_from(round.next.0) {
            let Some(member) = self.members.get_mut(number) else { continue };
            // Who never answered in a whole rekey is not waited for.
            let silent = member.acks == 0 && member.pushes_sent > u64::from(communication.retransmissions);
            if to.len() >= most || (!silent && waited_for >= room) {
                over = false;
                break;
            }
            round.next.0 = number.next();
            member.pushes_sent += 1;
            round.members += 1;
            member.pushed = Instant::default();
            if !hears(&member.peer, member.behind_nat) {
                if !silent {
                    (member.pushed, waited_for) = (at, waited_for + 1);
                }
                to.push((member.local, member.peer));
            }
        }
        while over && let Some((local, peer)) = farewell.get(round.next.1) {
            if to.len() >= most || waited_for >= room {
                over = false;
                break;
            }
            round.next.1 += 1;
            round.members += 1;
            if !hears(peer, false) {
                waited_for += 1;
                to.push((*local, *peer));
            }
        }
        let datagrams = (to.len() + usize::from(shouts.is_some())) as u64;
        self.counters.pushes_sent += datagrams;
        if attempt > 1 {
            self.counters.retransmissions += datagrams;
        }
        if !to.is_empty() {
            if asks {
                self.pace.sent(at, waited_for);
            }
            self.out.push_back(GroupOutput::Fanout(datagram, to));
        }
        if !over {
            *slot = Some(round);
            return self.warn_of_delay(at, index, attempt, communication);
        }
        let last = attempt > communication.retransmissions;
        // RFC 8263 section 6: who was only asked is not missing before 10 s.
        let waits = last && communication.acknowledgement == Acknowledgement::Requested;
        let patience = if waits { PATIENCE } else { Duration::ZERO };
        let began = if last { at } else { round.began };
        *due = (began + communication.retransmission_period.max(patience)).max(at);
        let way =
            channel.map_or_else(|| "unicast".to_owned(), |channel| format!("multicast {}", channel.group));
        let (group, kek_spi) = (self.settings.name.clone(), kek_spi.to_string());
        self.event(Event::PushSent {
            group,
            seq: u64::from(seq.0),
            kek_spi,
            attempt: u64::from(attempt),
            members: round.members as u64,
            way,
        });
    }

    /// Tells once when the last member gets a PUSH after the first may send under its keys (ATD).
    fn warn_of_delay(&mut self, at: Instant, index: usize, attempt: u32, settings: &CommunicationSettings) {
        let latency = self.pace.latency();
        let Some(delivery) = self.deliveries.get_mut(index).filter(|it| attempt == 1 && !it.late) else {
            return;
        };
        let (Some(left), Stage::Signed { round: Some(round), .. }) = (delivery.left(), &delivery.stage)
        else {
            return;
        };
        let takes = at.since(round.began) + self.pace.time_for(left);
        if takes <= Duration::from_secs(u64::from(settings.activation_delay)) {
            return;
        }
        delivery.late = true;
        let (seq, kek_spi) = (u64::from(delivery.seq.0), delivery.kek_spi.to_string());
        self.event(Event::DeliveryLate {
            group: self.settings.name.clone(),
            seq,
            kek_spi,
            left: left as u64,
            seconds: takes.as_secs_f64(),
            activation_seconds: u64::from(settings.activation_delay),
            latency_milliseconds: latency.map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
        });
    }
}
