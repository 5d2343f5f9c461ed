//! Phase 1 negotiations in flight and established, and the exchanges under them. Knows nothing of groups: it asks
//! ([`Ask`]) and is answered, so that peers can be spread over threads while a group stays in one place.
//! [`shard_of`] says which peer table a datagram belongs to.
//!
//! Phase 1 is in `peers/phase1.rs`, its limits in `half_open.rs` and `offers.rs`, what runs under an SA in `exchanges.rs`.

mod aggressive;
mod established;
mod exchanges;
mod gateways;
mod generations;
mod half_open;
mod notify_limit;
mod offers;
mod phase1;
mod reload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{CookiePair, GroupId, MessageId};
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::NotifyType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::Job;
use ike::dpd::Verdict;
use ike::fragment::{self, Assemblies};
use ike::io::{Entropy, Instant, Wakeup};
use ike::phase1::Ends;
use ike::protect::notify;
use ike::sa::IkeSa;
use ike::trust::PeerCertificate;

use super::complaints::Complaints;
use super::group::Terms;
use super::settings::{GatewaySettings, Settings};
use aggressive::FirstAnswers;
use established::Established;
use gateways::Gateways;
use generations::Generations;
use half_open::{HalfOpen, HalfOpenTable};
use notify_limit::NotifyLimit;
use offers::Offers;

/// SAs of one identity at a time: two while one replaces the other, some that their peer lost.
const MAX_SAS: usize = 8;
/// Clear notifications per second: in all, and to one address.
const CLEAR_NOTIFIES: (u32, u32) = (10, 1);
/// Protected refusals per second: in all, and to one address.
const REFUSALS: (u32, u32) = (100, 4);
/// Addresses remembered where somebody proved an identity: members, of this life of the server and of the one before.
const ACQUAINTANCES: usize = 65_536;

/// Names one PULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PullName {
    /// Its SA.
    pub sa: CookiePair,
    /// Its message ID.
    pub message_id: MessageId,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The authenticated phase 1 identity.
    pub identity: Identification,
    /// The gateway statement it came in by.
    pub gateway: Arc<GatewaySettings>,
    /// Where it is.
    pub peer: SocketAddr,
    /// Where it found us.
    pub local: SocketAddr,
    /// A NAT is before it: its address is not the one it knows itself by.
    pub behind_nat: bool,
    /// What proved its identity; none with a pre-shared key.
    pub certificate: Option<Arc<PeerCertificate>>,
}

impl Asker {
    /// Tells that it does not get into a group.
    pub(super) fn refused(&self, group: String, reason: String) -> Event {
        Event::PullRefused {
            peer: self.peer.to_string(),
            identity: self.identity.to_string(),
            group,
            reason,
            gateway: self.gateway.name.clone(),
        }
    }
}

/// A question to a group.
#[derive(Debug)]
pub enum Ask {
    /// Message 1 of a PULL: may it know the policy?
    Policy(PullName, Asker, GroupId),
    /// Message 3: it is live; make it a member.
    Join(PullName, Asker, GroupId, Arc<Terms>, u16),
}

/// The answer to [`Ask::Policy`].
#[derive(Debug)]
pub enum PolicyAnswer {
    /// What message 2 says.
    Terms(Arc<Terms>),
    /// A protected notification.
    Refused(NotifyType),
    /// Nothing at all.
    Silence,
    /// Nothing yet: the same message 1 is heard again when it is repeated.
    Later,
}

/// What the table wants.
#[derive(Debug)]
pub enum PeerOutput {
    /// Send.
    Transmit(SocketAddr, SocketAddr, Bytes),
    /// Run for a negotiation.
    Job(CookiePair, Job),
    /// Tell.
    Event(Event),
    /// Ask a group.
    Ask(Ask),
    /// An identity is somewhere else now: the NAT before it changed its mind.
    Moved(Identification, Move),
}

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Where its packets came from.
    pub from: SocketAddr,
    /// Where they come from now, and where they find us.
    pub to: Ends,
}

/// Counters of phase 1 and its exchanges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Negotiations that ended with two identities proved.
    pub established: u64,
    /// Negotiations that ended otherwise.
    pub failed: u64,
    /// Messages dropped without answer.
    pub dropped: u64,
    /// Of these, acknowledgements of a rekey SA no group has.
    pub acks_unknown: u64,
    /// First messages dropped or negotiations evicted because of a limit.
    pub limited: u64,
}

/// The peer table.
pub struct Peers {
    gateways: Gateways,
    /// To be shown.
    pub approved_only: bool,
    secret: SecretBytes,
    counter: u64,
    half_open: HalfOpenTable,
    offers: Offers,
    acquaintances: Generations<IpAddr>,
    established: BTreeMap<CookiePair, Box<Established>>,
    by_identity: BTreeMap<Identification, BTreeSet<CookiePair>>,
    timers: BTreeSet<(Instant, CookiePair)>,
    assemblies: Assemblies,
    notifies: NotifyLimit,
    refusals: NotifyLimit,
    first_answers: FirstAnswers,
    complaints: Complaints,
    out: VecDeque<PeerOutput>,
    /// Counters.
    pub counters: PeerCounters,
}

/// Which of `shards` peer tables a datagram belongs to: CKY-I stays the same for the life of an SA.
pub fn shard_of(octets: &[u8], shards: usize) -> usize {
    let mut sum: usize = 0;
    for octet in octets.iter().take(8) {
        sum = sum.wrapping_mul(31).wrapping_add(usize::from(*octet));
    }
    sum % shards.max(1)
}

impl Peers {
    /// An empty table.
    pub fn new(settings: &Settings, entropy: &mut dyn Entropy) -> Peers {
        let mut octets = [0; 32];
        entropy.fill(&mut octets);
        let secret = SecretBytes::copy(&octets);
        Peers {
            gateways: Gateways::new(&settings.gateways),
            approved_only: settings.approved_only,
            counter: 0,
            half_open: HalfOpenTable::new(settings),
            offers: Offers::new(secret.clone()),
            secret,
            acquaintances: Generations::new(ACQUAINTANCES),
            established: BTreeMap::new(),
            by_identity: BTreeMap::new(),
            timers: BTreeSet::new(),
            assemblies: Assemblies::default(),
            notifies: NotifyLimit::new(CLEAR_NOTIFIES.0, CLEAR_NOTIFIES.1),
            refusals: NotifyLimit::new(REFUSALS.0, REFUSALS.1),
            first_answers: FirstAnswers::default(),
            complaints: Complaints::default(),
            out: VecDeque::new(),
            counters: PeerCounters::default(),
        }
    }

    /// The next wish. A long message to a peer that takes fragments leaves as those.
    pub fn poll(&mut self) -> Option<PeerOutput> {
        let output = self.out.pop_front()?;
        let PeerOutput::Transmit(local, peer, octets) = &output else { return Some(output) };
        let cookies = Header::decode(octets).map(|header| header.cookies);
        if octets.len() <= fragment::LIMIT || !cookies.is_ok_and(|cookies| self.takes_fragments(cookies)) {
            return Some(output);
        }
        for part in fragment::split(octets).into_iter().rev() {
            self.out.push_front(PeerOutput::Transmit(*local, *peer, part));
        }
        self.out.pop_front()
    }

    fn takes_fragments(&self, cookies: CookiePair) -> bool {
        let half = self.half_open.get(&cookies).map(|half| half.responder.fragments());
        half.or(self.established.get(&cookies).map(|known| known.sa.fragments)).unwrap_or(false)
    }

    /// A fragment; the message it completes. Our cookie in it shows that its sender got an answer of ours.
    pub fn on_fragment(&mut self, peer: SocketAddr, header: &Header, octets: &[u8]) -> Option<Bytes> {
        if !self.takes_fragments(header.cookies) {
            self.drop_message(peer, "a fragment nobody agreed on");
            return None;
        }
        match self.assemblies.take(header.cookies, octets) {
            Ok(whole) => whole,
            Err(reason) => {
                self.drop_message(peer, reason);
                None
            }
        }
    }

    /// The next timer.
    pub fn poll_timeout(&self) -> Option<Wakeup> {
        self.timers.first().map(|(at, _)| Wakeup { at: *at, why: "phase 1 life" })
    }

    /// An established SA.
    pub fn sa(&self, cookies: CookiePair) -> Option<&IkeSa> {
        self.established.get(&cookies).map(|known| &known.sa)
    }

    /// Established SAs: identity, peer, suite, end.
    pub fn established(&self) -> impl Iterator<Item = (&IkeSa, SocketAddr, SocketAddr, Instant)> {
        self.established.values().map(|peer| (&peer.sa, peer.local, peer.peer, peer.since))
    }

    /// True when the gateway that covers `address` may use the short L in acknowledgements (`ack-l-output`).
    pub fn takes_short_l(&self, address: IpAddr) -> bool {
        self.gateway_for(address).is_some_and(|gateway| gateway.policy.dialect.ack_l_output)
    }

    /// Somebody at this address was a member before the restart: the address keeps its part of the half-open table.
    pub fn acquaint(&mut self, address: IpAddr) {
        self.acquaintances.insert(address);
    }

    /// Who may talk to us.
    pub fn gateways(&self) -> impl Iterator<Item = &GatewaySettings> {
        self.gateways.all().map(Arc::as_ref)
    }

    /// Where the peer of a negotiation under way is.
    pub(super) fn half_open_peer(&self, cookies: &CookiePair) -> Option<SocketAddr> {
        self.half_open.get(cookies).map(|half| half.ends.peer)
    }

    /// Negotiations under way.
    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// The last failed negotiation with a gateway: when, with whom, why.
    pub(super) fn last_failure(&self, gateway: &str) -> Option<(Instant, SocketAddr, &str)> {
        self.complaints.failure(gateway)
    }

    fn drop_message(&mut self, peer: SocketAddr, reason: impl ToString) {
        self.counters.dropped += 1;
        self.out.push_back(PeerOutput::Event(Event::MessageDropped {
            peer: peer.to_string(),
            reason: reason.to_string(),
        }));
    }

    /// An SA's timer moves when it must come earlier; one that may come later is looked at again when it fires.
    fn hasten(&mut self, cookies: CookiePair) {
        let Some(known) = self.established.get_mut(&cookies) else { return };
        let due = known.due();
        if due < known.timer {
            self.timers.remove(&(known.timer, cookies));
            known.timer = due;
            self.timers.insert((due, cookies));
        }
    }

    fn forget_half_open(&mut self, cookies: CookiePair) -> Option<Box<HalfOpen>> {
        let half = self.half_open.remove(&cookies)?;
        self.timers.remove(&(half.until, cookies));
        Some(half)
    }

    fn forget_established(&mut self, cookies: CookiePair, reason: &str) {
        if let Some(known) = self.established.remove(&cookies) {
            self.timers.remove(&(known.timer, cookies));
            if let Some(named) = self.by_identity.get_mut(&known.sa.peer_identity) {
                named.remove(&cookies);
                if named.is_empty() {
                    self.by_identity.remove(&known.sa.peer_identity);
                }
            }
            self.out.push_back(PeerOutput::Event(Event::Phase1Deleted {
                peer: known.peer.to_string(),
                identity: known.sa.peer_identity.to_string(),
                reason: reason.to_owned(),
            }));
        }
    }

    /// SAs of an identity.
    fn named(&self, identity: &Identification) -> Vec<CookiePair> {
        self.by_identity.get(identity).into_iter().flatten().copied().collect()
    }

    /// Ends every SA of an identity with a Delete: its owner was removed.
    pub fn delete_identity(&mut self, identity: &Identification, reason: &str, entropy: &mut dyn Entropy) {
        for cookies in self.named(identity) {
            self.delete(cookies, reason, entropy);
        }
    }

    /// Ends every SA with a Delete (RFC 2408 section 5.15).
    pub fn delete_all(&mut self, reason: &str, entropy: &mut dyn Entropy) {
        let all: Vec<CookiePair> = self.established.keys().copied().collect();
        for cookies in all {
            self.delete(cookies, reason, entropy);
        }
    }

    fn delete(&mut self, cookies: CookiePair, reason: &str, entropy: &mut dyn Entropy) {
        if let Some(known) = self.established.get_mut(&cookies) {
            let octets = notify::seal(&mut known.sa, &[notify::delete_isakmp(cookies)], entropy);
            self.out.push_back(PeerOutput::Transmit(known.local, known.peer, octets));
        }
        self.forget_established(cookies, reason);
    }

    /// Lives that ended.
    pub fn on_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        while let Some((at, cookies)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, cookies));
            if let Some(half) = self.half_open.get_mut(&cookies).filter(|half| now < half.until) {
                let steps = half.responder.on_timeout(now, entropy);
                self.on_steps(now, cookies, Ok(steps), entropy);
            } else if let Some(half) = self.forget_half_open(cookies) {
                self.counters.failed += 1;
                self.out.push_back(PeerOutput::Event(Event::Phase1Failed {
                    peer: half.ends.peer.to_string(),
                    reason: "no answer in time".to_owned(),
                    stage: half.responder.state().to_owned(),
                }));
            } else {
                self.on_sa_timer(now, cookies, entropy);
            }
        }
    }

    /// The life of an SA, or a peer that owes us a word.
    fn on_sa_timer(&mut self, now: Instant, cookies: CookiePair, entropy: &mut dyn Entropy) {
        let Some(known) = self.established.get_mut(&cookies) else { return };
        if known.ends() <= now {
            let reason = if known.sa.expires <= now { "lifetime ended" } else { "idle since its last PULL" };
            return self.delete(cookies, reason, entropy);
        }
        known.prune(now);
        match known.watch.as_mut().map(|watch| watch.on_timeout(now)) {
            Some(Verdict::Ask(number)) => {
                let question = notify::dpd(cookies, NotifyType::RUThere, number);
                let octets = notify::seal(&mut known.sa, &[question], entropy);
                self.out.push_back(PeerOutput::Transmit(known.local, known.peer, octets));
            }
            Some(Verdict::Dead) => {
                return self.delete(cookies, "dead: no answer to dead-peer detection", entropy);
            }
            Some(Verdict::Wait) | None => {}
        }
        known.timer = known.due();
        self.timers.insert((known.timer, cookies));
    }
}
