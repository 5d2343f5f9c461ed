//! Phase 1 that peers begin, from message 1 to two identities proved.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::header::{Flags, Header};
use gdoi_proto::ids::{Cookie, CookiePair, MessageId};
use gdoi_proto::message::Message;
use gdoi_proto::registry::{ExchangeType, NotifyType, PayloadType};
use ike::crypto::Hash;
use ike::crypto::prf::prf;
use ike::crypto::provider::Done;
use ike::dpd::Watch;
use ike::io::{Entropy, Instant, Now};
use ike::phase1::{Ends, FirstAggressive, Mode, Refusal, Responder, Step};
use ike::protect::notify;
use ike::sa::IkeSa;

use super::super::member::member_key;
use super::established::{ANSWER_LIFE, Established};
use super::half_open::{Newcomer, Room};
use super::offers::offer_of;
use super::{MAX_SAS, PeerOutput, Peers};

/// Why a first message of aggressive mode is dropped when a second has its share.
const BUSY: &str = "more first messages of aggressive mode than are worked on in a second";

impl Peers {
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
            if self.half_open.settle(&header.cookies) {
                self.offers.spend(now.at, header.cookies);
            }
            return self.on_steps(now.at, header.cookies, result, entropy);
        }
        let Some(known) = self.established.get_mut(&header.cookies) else {
            return self.on_recalled(now, Ends { local, peer }, header, octets, entropy);
        };
        let young = known.peer == peer && now.at.since(known.since) < ANSWER_LIFE;
        match known.answered.as_mut().filter(|_| young).and_then(|answered| answered.repeat(octets)) {
            Some(answer) => self.out.push_back(PeerOutput::Transmit(local, peer, answer)),
            None => self.drop_message(peer, "no such phase 1"),
        }
    }

    /// A message of no negotiation in the table: message 3 of one that was answered and not stored, or evicted, when its
    /// cookie says so.
    fn on_recalled(
        &mut self,
        now: Now,
        ends: Ends,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) {
        let (peer, cookies) = (ends.peer, header.cookies);
        let first = self.offers.recall(now.at, ends, cookies);
        let (Some(first), Some(gateway)) = (first, self.gateway_for(peer.ip())) else {
            return self.drop_message(peer, "no such phase 1");
        };
        let again = Header::decode(&first).ok().and_then(|header| {
            Responder::start(gateway.policy.clone(), cookies.responder, ends, &header, &first).ok()
        });
        let Some((mut responder, _)) = again else {
            return self.drop_message(peer, "its first message is refused by now");
        };
        let steps = match responder.on_message(now, ends, header, octets, entropy) {
            Ok(steps) => steps,
            Err(refusal) => return self.drop_message(peer, refusal),
        };
        let known = gateway.is_one_address() || self.acquaintances.contains(&peer.ip());
        let room = self.half_open.room(now.at, peer, known, true);
        if !self.make_room(peer, room) {
            return;
        }
        let offer = offer_of(&first).map(Bytes::copy_from_slice).unwrap_or_default();
        self.offers.spend(now.at, cookies);
        self.keep(
            now.at,
            ends,
            responder,
            Newcomer { gateway, known, offer, recallable: true, size: first.len() },
        );
        self.half_open.settle(&cookies);
        self.on_steps(now.at, cookies, Ok(steps), entropy);
    }

    /// Stores a negotiation that found room.
    fn keep(&mut self, now: Instant, ends: Ends, responder: Responder, newcomer: Newcomer) {
        let cookies = responder.cookies();
        let until = self.half_open.insert(now, ends, responder, newcomer);
        self.timers.insert((until, cookies));
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
            return self.on_first_again(now.at, known, (local, peer), octets);
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
        let known = gateway.is_one_address() || self.acquaintances.contains(&peer.ip());
        let (here, initiator) = (Ends { local, peer }, header.cookies.initiator);
        let main = aggressive.is_none();
        if !main && !self.first_answers.take(now.at, peer.ip(), known) {
            self.counters.limited += 1;
            return self.drop_message(peer, BUSY);
        }
        let known_offer = if main { self.known_offer(now.at, here, initiator, octets) } else { None };
        let room = self.half_open.room(now.at, peer, known, false);
        // Whose cookie says everything takes nobody's place.
        let stored = room == Room::Free || known_offer.is_none();
        if stored && !self.make_room(peer, room) {
            return;
        }
        let recallable = known_offer.is_some();
        let (cookie, offer) = known_offer.unwrap_or_else(|| {
            let offer = offer_of(octets).filter(|_| main).map(Bytes::copy_from_slice);
            (self.fresh_cookie(now.unix_seconds, here, initiator, entropy), offer.unwrap_or_default())
        });
        let policy = gateway.policy.clone();
        let started = match aggressive {
            Some(first) => Responder::start_aggressive(policy, cookie, here, first, entropy),
            None => Responder::start(policy, cookie, here, header, octets),
        };
        match started {
            Ok((responder, steps)) if stored => {
                let cookies = responder.cookies();
                self.keep(
                    now.at,
                    here,
                    responder,
                    Newcomer { gateway, known, offer, recallable, size: octets.len() },
                );
                self.on_steps(now.at, cookies, Ok(steps), entropy);
            }
            Ok((_, steps)) => {
                for step in steps {
                    if let Step::Send(octets) = step {
                        self.out.push_back(PeerOutput::Transmit(local, peer, octets));
                    }
                }
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

    /// Message 1 of a negotiation under way.
    fn on_first_again(
        &mut self,
        now: Instant,
        cookies: CookiePair,
        (local, peer): (SocketAddr, SocketAddr),
        octets: &[u8],
    ) {
        let Some(half) = self.half_open.get_mut(&cookies) else { return };
        let aggressive = half.gateway.policy.mode == Mode::Aggressive;
        if aggressive && !self.first_answers.take(now, peer.ip(), half.is_known()) {
            self.counters.limited += 1;
            return self.drop_message(peer, BUSY);
        }
        match half.responder.answered().repeat(octets) {
            Some(answer) => self.out.push_back(PeerOutput::Transmit(local, peer, answer)),
            None => self.drop_message(peer, "a first message for a negotiation under way"),
        }
    }

    /// A PULL while message 3 of aggressive mode is due: its sender sent that too, and it was lost. Message 2 once more
    /// brings it again. Only who got message 2 knows these cookies.
    pub(super) fn on_early_pull(&mut self, ends: Ends, cookies: CookiePair) {
        let half = self.half_open.get_mut(&cookies);
        let half = half.filter(|half| half.ends == ends || half.responder.may_move());
        match half.and_then(|half| half.responder.second_again()) {
            Some(second) => self.out.push_back(PeerOutput::Transmit(ends.local, ends.peer, second)),
            None => self.drop_message(ends.peer, "PULL without a phase 1"),
        }
    }

    /// Keeps the half-open limits: true when a negotiation may be stored.
    fn make_room(&mut self, peer: SocketAddr, room: Room) -> bool {
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

    /// The cookie for a first message that need not be stored, and its offer.
    fn known_offer(
        &self,
        now: Instant,
        ends: Ends,
        initiator: Cookie,
        octets: &[u8],
    ) -> Option<(Cookie, Bytes)> {
        let known = self.offers.cookie(now, ends, initiator, octets);
        known.filter(|(responder, _)| !self.taken(&CookiePair { initiator, responder: *responder }))
    }

    /// True when a negotiation or an SA has these cookies.
    fn taken(&self, cookies: &CookiePair) -> bool {
        self.half_open.contains(cookies) || self.established.contains_key(cookies)
    }

    /// A keyed cookie bound to the parties and the time (RFC 2408 section 2.5.3), never zero, never of a live SA.
    fn fresh_cookie(
        &mut self,
        unix_seconds: u64,
        Ends { local, peer }: Ends,
        initiator: Cookie,
        entropy: &mut dyn Entropy,
    ) -> Cookie {
        loop {
            self.counter += 1;
            let mut salt = [0; 8];
            entropy.fill(&mut salt);
            let text = format!("responder|{local}|{peer}|{unix_seconds}|{}", self.counter);
            let mac = prf(Hash::Sha256, self.secret.expose(), &[text.as_bytes(), &salt]);
            let Some(head) = mac.expose().first_chunk::<8>() else { continue };
            let cookie = Cookie(*head);
            let pair = CookiePair { initiator, responder: cookie };
            if !cookie.is_zero() && cookie != initiator && !self.taken(&pair) {
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

    pub(super) fn on_steps(
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
                // Aggressive mode repeats message 2, to addresses that are known: others ask again for themselves.
                let half = self.half_open.get(&cookies).filter(|half| half.is_known());
                if let Some(due) = half.and_then(|half| half.responder.due()) {
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
        self.acquaintances.insert(half.first.ip());
        if !half.offer.is_empty() {
            self.offers.learn(&half.offer);
        }
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
