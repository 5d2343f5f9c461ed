//! Phase 1 negotiations in flight and established, and the exchanges under them. Knows nothing of groups: it asks
//! ([`Ask`]) and is answered, so that peers can be spread over threads while a group stays in one place.
//! [`shard_of`] says which peer table a datagram belongs to.
//!
//! Negotiations and their limits are in `peers/half_open.rs`, what runs under an SA in `peers/exchanges.rs`.

mod established;
mod exchanges;
mod half_open;
mod notify_limit;
mod reload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::header::{Flags, Header};
use gdoi_proto::ids::{Cookie, CookiePair, GroupId, MessageId};
use gdoi_proto::message::Message;
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::{ExchangeType, NotifyType, PayloadType};
use ike::crypto::Hash;
use ike::crypto::prf::prf;
use ike::crypto::provider::{Done, Job};
use ike::dpd::{Verdict, Watch};
use ike::fragment::{self, Assemblies};
use ike::io::{Entropy, Instant, Now, Wakeup};
use ike::phase1::{Ends, FirstAggressive, Mode, Refusal, Responder, Step};
use ike::protect::notify;
use ike::sa::IkeSa;
use ike::trust::PeerCertificate;

use super::complaints::Complaints;
use super::group::Terms;
use super::member::member_key;
use super::settings::{GatewaySettings, Settings};
use established::{ANSWER_LIFE, Established};
use half_open::{Acquaintances, HalfOpen, HalfOpenTable, Room};
use notify_limit::NotifyLimit;

/// SAs of one identity at a time: two while one replaces the other, some that their peer lost.
const MAX_SAS: usize = 8;
/// Clear notifications per second: in all, and to one address.
const CLEAR_NOTIFIES: (u32, u32) = (10, 1);
/// Protected refusals per second: in all, and to one address.
const REFUSALS: (u32, u32) = (100, 4);

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
    gateways: Vec<Arc<GatewaySettings>>,
    /// All `dynamic` gateways of main mode as one: which of them a peer is shows when it has proved its identity.
    dynamic: Option<Arc<GatewaySettings>>,
    /// To be shown.
    pub approved_only: bool,
    secret: [u8; 32],
    counter: u64,
    half_open: HalfOpenTable,
    acquaintances: Acquaintances,
    established: BTreeMap<CookiePair, Box<Established>>,
    by_identity: BTreeMap<Identification, BTreeSet<CookiePair>>,
    timers: BTreeSet<(Instant, CookiePair)>,
    assemblies: Assemblies,
    notifies: NotifyLimit,
    refusals: NotifyLimit,
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
        let mut secret = [0; 32];
        entropy.fill(&mut secret);
        Peers {
            gateways: settings.gateways.iter().cloned().map(Arc::new).collect(),
            dynamic: joint(&settings.gateways).map(Arc::new),
            approved_only: settings.approved_only,
            secret,
            counter: 0,
            half_open: HalfOpenTable::new(settings),
            acquaintances: Acquaintances::default(),
            established: BTreeMap::new(),
            by_identity: BTreeMap::new(),
            timers: BTreeSet::new(),
            assemblies: Assemblies::default(),
            notifies: NotifyLimit::new(CLEAR_NOTIFIES.0, CLEAR_NOTIFIES.1),
            refusals: NotifyLimit::new(REFUSALS.0, REFUSALS.1),
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
        self.acquaintances.meet(address);
    }

    /// Who may talk to us.
    pub fn gateways(&self) -> impl Iterator<Item = &GatewaySettings> {
        self.gateways.iter().map(Arc::as_ref)
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

    /// The gateway statement of that name.
    pub(super) fn gateway_named(&self, name: &str) -> Option<Arc<GatewaySettings>> {
        self.gateways.iter().find(|gateway| gateway.name == name).cloned()
    }

    /// The first gateway statement that admits an identity, wherever it is.
    pub(super) fn gateway_admitting(&self, identity: &Identification) -> Option<Arc<GatewaySettings>> {
        let nowhere = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        self.gateways.iter().find(|gateway| gateway.admits(identity, nowhere)).cloned()
    }

    /// The gateway statement of an established SA.
    pub(super) fn gateway_of(&self, sa: &IkeSa, peer: IpAddr) -> Option<Arc<GatewaySettings>> {
        self.gateway_for(peer).map(|known| self.gateway_proved(&known, sa, peer))
    }

    /// The gateway statement a first message from an address is answered by.
    pub(super) fn gateway_for(&self, address: IpAddr) -> Option<Arc<GatewaySettings>> {
        self.gateways
            .iter()
            .filter(|gateway| gateway.covers(address))
            .max_by_key(|gateway| gateway.address.map_or(0, |(_, length)| length))
            .or(self.dynamic.as_ref())
            .cloned()
    }

    /// The gateway of aggressive mode for a peer that claims `identity`: the one of its address, else a dynamic one.
    fn gateway_claimed(&self, identity: &Identification, address: IpAddr) -> Option<Arc<GatewaySettings>> {
        let aggressive = |gateway: &&Arc<GatewaySettings>| gateway.policy.mode == Mode::Aggressive;
        let here = self.gateways.iter().filter(|gateway| gateway.covers(address));
        let here = here.max_by_key(|gateway| gateway.address.map_or(0, |(_, length)| length));
        here.filter(aggressive)
            .filter(|gateway| gateway.admits(identity, address))
            .or_else(|| {
                let mut dynamic = self.gateways.iter().filter(|gateway| gateway.address.is_none());
                dynamic.find(|gateway| aggressive(gateway) && gateway.admits(identity, address))
            })
            .cloned()
    }

    /// The statement an authenticated peer belongs to: of the dynamic ones, the one that names it.
    fn gateway_proved(&self, known: &Arc<GatewaySettings>, sa: &IkeSa, peer: IpAddr) -> Arc<GatewaySettings> {
        if !self.dynamic.as_ref().is_some_and(|joint| Arc::ptr_eq(joint, known)) {
            return known.clone();
        }
        let mut dynamic = self.gateways.iter().filter(|gateway| gateway.address.is_none());
        let named = dynamic
            .find(|gateway| gateway.policy.mode == Mode::Main && gateway.admits(&sa.peer_identity, peer));
        named.unwrap_or(known).clone()
    }

    fn drop_message(&mut self, peer: SocketAddr, reason: impl ToString) {
        self.counters.dropped += 1;
        self.out.push_back(PeerOutput::Event(Event::MessageDropped {
            peer: peer.to_string(),
            reason: reason.to_string(),
        }));
    }

    /// Exchanges 2 and 4: phase 1.
    pub fn on_phase1(
        &mut self,
        now: Now,
        (local, peer): (SocketAddr, SocketAddr),
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) {
        if header.cookies.responder.is_zero() {
            return self.on_first(now, (local, peer), header, octets, entropy);
        }
        if let Some(half) = self.half_open.get_mut(&header.cookies) {
            let ends = Ends { local, peer };
            let moved = half.ends != ends;
            if moved && (!half.responder.may_move() || half.responder.answered().is_for(octets)) {
                return self.drop_message(peer, "another address than the negotiation began with");
            }
            let result = half.responder.on_message(now, ends, header, octets, entropy);
            if result.is_ok() {
                half.ends = ends;
            }
            self.half_open.settle(&header.cookies);
            return self.on_steps(now.at, header.cookies, result, entropy);
        }
        let repeat = self
            .established
            .get_mut(&header.cookies)
            .filter(|known| known.peer == peer && now.at.since(known.since) < ANSWER_LIFE)
            .and_then(|known| known.answered.as_mut()?.repeat(octets));
        match repeat {
            Some(answer) => self.out.push_back(PeerOutput::Transmit(local, peer, answer)),
            None => self.drop_message(peer, "no such phase 1"),
        }
    }

    fn on_first(
        &mut self,
        now: Now,
        (local, peer): (SocketAddr, SocketAddr),
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) {
        if let Some(known) = self.half_open.by_first(header.cookies.initiator, peer) {
            let repeat =
                self.half_open.get_mut(&known).and_then(|half| half.responder.answered().repeat(octets));
            match repeat {
                Some(answer) => self.out.push_back(PeerOutput::Transmit(local, peer, answer)),
                None => self.drop_message(peer, "a first message for a negotiation under way"),
            }
            return;
        }
        // The identity of aggressive mode is in message 1; main mode has the address only (RFC 2409 section 5.4).
        let aggressive = match header.exchange {
            ExchangeType::Aggressive => match FirstAggressive::read(header, octets) {
                Ok(first) => Some(first),
                Err(refusal) => return self.drop_message(peer, refusal),
            },
            _ => None,
        };
        let gateway = match &aggressive {
            Some(first) => self.gateway_claimed(first.identity(), peer.ip()),
            None => self.gateway_for(peer.ip()),
        };
        let Some(gateway) = gateway else {
            return self.drop_message(peer, "no gateway covers this address or identity");
        };
        let known = gateway.is_one_address() || self.acquaintances.knows(peer.ip());
        if !self.make_room(now.at, peer, known) {
            return;
        }
        let cookie = self.fresh_cookie(now.unix_seconds, local, peer, header.cookies.initiator, entropy);
        let policy = gateway.policy.clone();
        let here = Ends { local, peer };
        let started = match aggressive {
            Some(first) => Responder::start_aggressive(policy, cookie, here, first, entropy),
            None => Responder::start(policy, cookie, here, header, octets),
        };
        match started {
            Ok((responder, steps)) => {
                let cookies = responder.cookies();
                let until = self.half_open.insert(now.at, here, responder, gateway, known);
                self.timers.insert((until, cookies));
                self.on_steps(now.at, cookies, Ok(steps), entropy);
            }
            Err(Refusal::Unacceptable { notify, reason }) => {
                self.counters.failed += 1;
                self.out.push_back(PeerOutput::Event(Event::Phase1Failed {
                    peer: peer.to_string(),
                    reason,
                    stage: "message 1".to_owned(),
                }));
                self.clear_notify(
                    now.at,
                    (local, peer),
                    header.cookies.initiator,
                    cookie,
                    notify,
                    octets.len(),
                    entropy,
                );
            }
            Err(refusal) => self.drop_message(peer, refusal),
        }
    }

    /// Keeps the half-open limits: true when a negotiation may begin.
    fn make_room(&mut self, now: Instant, peer: SocketAddr, known: bool) -> bool {
        let room = self.half_open.room(now, peer, known);
        if room == Room::Free {
            return true;
        }
        self.counters.limited += 1;
        self.out.push_back(PeerOutput::Event(Event::HalfOpenLimit { peer: peer.to_string() }));
        match room {
            Room::Instead(cookies) => self.forget_half_open(cookies).is_some(),
            Room::Free | Room::None => false,
        }
    }

    /// A keyed cookie bound to the parties and the time (RFC 2408 section 2.5.3), never zero, never of a live SA.
    fn fresh_cookie(
        &mut self,
        unix_seconds: u64,
        local: SocketAddr,
        peer: SocketAddr,
        initiator: Cookie,
        entropy: &mut dyn Entropy,
    ) -> Cookie {
        loop {
            self.counter += 1;
            let mut salt = [0; 8];
            entropy.fill(&mut salt);
            let text = format!("responder|{local}|{peer}|{unix_seconds}|{}", self.counter);
            let mac = prf(Hash::Sha256, &self.secret, &[text.as_bytes(), &salt]);
            let Some(head) = mac.expose().first_chunk::<8>() else { continue };
            let cookie = Cookie(*head);
            let pair = CookiePair { initiator, responder: cookie };
            let taken = self.half_open.contains(&pair) || self.established.contains_key(&pair);
            if !cookie.is_zero() && cookie != initiator && !taken {
                return cookie;
            }
        }
    }

    /// The result of a job asked for by a negotiation.
    pub fn on_done(&mut self, now: Now, cookies: CookiePair, done: Done, entropy: &mut dyn Entropy) {
        if let Some(half) = self.half_open.get_mut(&cookies) {
            let result = half.responder.on_done(now, done, entropy);
            self.half_open.settle(&cookies);
            self.on_steps(now.at, cookies, result, entropy);
        }
    }

    fn on_steps(
        &mut self,
        now: Instant,
        cookies: CookiePair,
        result: Result<Vec<Step>, Refusal>,
        entropy: &mut dyn Entropy,
    ) {
        let Some(half) = self.half_open.get(&cookies) else { return };
        let Ends { local, peer } = half.ends;
        match result {
            Ok(steps) => {
                for step in steps {
                    match step {
                        Step::Send(octets) => self.out.push_back(PeerOutput::Transmit(local, peer, octets)),
                        Step::Run(job) => self.out.push_back(PeerOutput::Job(cookies, job)),
                        Step::Established(done) => {
                            if let Some(reason) = done.remark {
                                self.out.push_back(PeerOutput::Event(Event::CertificateRehearsed {
                                    peer: peer.to_string(),
                                    identity: done.sa.peer_identity.to_string(),
                                    reason,
                                }));
                            }
                            self.on_established(now, cookies, done.sa, done.initial_contact, entropy)
                        }
                    }
                }
                // Aggressive mode repeats message 2.
                if let Some(due) = self.half_open.get(&cookies).and_then(|half| half.responder.due()) {
                    self.timers.insert((due, cookies));
                }
            }
            Err(Refusal::Failed { reason, answer }) => {
                self.counters.failed += 1;
                if let Some(answer) = answer {
                    self.out.push_back(PeerOutput::Transmit(local, peer, answer));
                }
                self.complaints.note(&half.gateway.name, now, peer, &reason);
                if self.complaints.take(&half.gateway.name, now) {
                    self.out.push_back(PeerOutput::Event(Event::Phase1Refused {
                        peer: peer.to_string(),
                        gateway: half.gateway.name.clone(),
                        reason: reason.clone(),
                    }));
                }
                self.out.push_back(PeerOutput::Event(Event::Phase1Failed {
                    peer: peer.to_string(),
                    reason,
                    stage: half.responder.state().to_owned(),
                }));
                self.forget_half_open(cookies);
            }
            Err(refusal) => self.drop_message(peer, refusal),
        }
    }

    fn on_established(
        &mut self,
        now: Instant,
        cookies: CookiePair,
        mut sa: IkeSa,
        initial_contact: bool,
        entropy: &mut dyn Entropy,
    ) {
        let Some(half) = self.forget_half_open(cookies) else { return };
        let Ends { local, peer } = half.ends;
        self.counters.established += 1;
        self.out.push_back(PeerOutput::Event(Event::Phase1Established {
            peer: peer.to_string(),
            identity: sa.peer_identity.to_string(),
            suite: sa.suite.to_string(),
            role: "responder".to_owned(),
        }));
        if sa.suite.is_legacy() {
            self.out.push_back(PeerOutput::Event(Event::LegacyAlgorithm {
                peer: peer.to_string(),
                identity: sa.peer_identity.to_string(),
                suite: sa.suite.to_string(),
            }));
        }
        let gateway = self.gateway_proved(&half.gateway, &sa, half.first.ip());
        // From here on an identity is a name to look up by: one form for one peer.
        sa.peer_identity = member_key(sa.peer_identity);
        // Its next phase 1 begins where this one did, before it floats.
        self.acquaintances.meet(half.first.ip());
        if sa.nat.any() {
            self.out.push_back(PeerOutput::Event(Event::NatFound {
                peer: peer.to_string(),
                local: local.to_string(),
                ours: sa.nat.ours,
                theirs: sa.nat.theirs,
            }));
        }
        if initial_contact {
            // RFC 3947 section 6: by identity, never by address; group keys and membership are untouched.
            for old in self.named(&sa.peer_identity) {
                self.forget_established(old, "initial contact");
            }
        }
        let others = self.named(&sa.peer_identity);
        if others.len() >= MAX_SAS {
            let since = |cookies: &&CookiePair| self.established.get(*cookies).map(|known| known.since);
            if let Some(oldest) = others.iter().min_by_key(since) {
                self.delete(*oldest, "one of too many of its identity", entropy);
            }
        }
        self.by_identity.entry(sa.peer_identity.clone()).or_default().insert(cookies);
        let answered = Some(half.responder.into_answered());
        let asks = half.gateway.dead_peer_detection.filter(|_| sa.peer_does_dpd);
        let mut known = Box::new(Established {
            sa,
            watch: asks.map(|settings| Watch::new(settings, entropy)),
            gateway,
            local,
            peer,
            answered,
            since: now,
            used: now,
            timer: now,
            pulls: BTreeMap::new(),
        });
        known.timer = known.due();
        self.timers.insert((known.timer, cookies));
        self.established.insert(cookies, known);
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

    /// A clear notification, rate-limited and never larger than its cause.
    #[allow(clippy::too_many_arguments)]
    fn clear_notify(
        &mut self,
        now: Instant,
        (local, peer): (SocketAddr, SocketAddr),
        initiator: Cookie,
        responder: Cookie,
        kind: NotifyType,
        cause: usize,
        entropy: &mut dyn Entropy,
    ) {
        if !self.notifies.take(now, peer.ip()) {
            return;
        }
        let cookies = CookiePair { initiator, responder };
        let mut id = [0; 4];
        entropy.fill(&mut id);
        id[3] |= 1;
        let header = Header {
            cookies,
            next: PayloadType::None,
            exchange: ExchangeType::Informational,
            flags: Flags::NONE,
            message_id: MessageId(u32::from_be_bytes(id)),
            length: 0,
        };
        let octets = Message { header, payloads: vec![notify::notification(cookies, kind)] }.encode();
        if octets.len() <= cause {
            self.out.push_back(PeerOutput::Transmit(local, peer, octets.into()));
            self.out.push_back(PeerOutput::Event(Event::NotifySent {
                peer: peer.to_string(),
                kind: kind.to_string(),
            }));
        }
    }
}

/// All `dynamic` gateways of main mode as one that admits whom any of them admits. Their configuration makes sure that
/// they share everything else.
fn joint(gateways: &[GatewaySettings]) -> Option<GatewaySettings> {
    let mut dynamic =
        gateways.iter().filter(|gateway| gateway.address.is_none() && gateway.policy.mode == Mode::Main);
    let mut joint = dynamic.next()?.clone();
    let mut policy = joint.policy.as_ref().clone();
    for other in dynamic {
        policy.remote.extend(other.policy.remote.iter().cloned());
    }
    joint.policy = Arc::new(policy);
    Some(joint)
}
