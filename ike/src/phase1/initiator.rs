//! The member's side of main mode: SentSa -> MakeKey -> SentKe -> Agree -> SentAuth -> established, in that order.

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::ExchangeType;

use super::auth::{self, Facts, Proof};
use super::proposal::{self, Reading};
use super::{Established, NONCE_LEN, PeerPolicy, Refusal, Step, VENDOR_DPD};
use crate::crypto::provider::{DhKey, Done, Job};
use crate::identity::{acceptable_ports, address_identity};
use crate::io::{Entropy, Instant};
use crate::protect::notify;
use crate::retransmit::{Attempt, Retransmit, Schedule};
use crate::sa::{IkeSa, Role, SaKeys};
use std::net::IpAddr;

/// A main mode this side started.
#[derive(Debug)]
pub struct Initiator {
    policy: PeerPolicy,
    local: Identification,
    peer: IpAddr,
    initial_contact: bool,
    cookies: CookiePair,
    sai_b: Vec<u8>,
    nonce: [u8; NONCE_LEN],
    last_sent: Bytes,
    retransmit: Retransmit,
    state: State,
}

enum State {
    SentSa,
    MakeKey { reading: Reading, dpd: bool },
    SentKe { reading: Reading, dpd: bool, key: Box<dyn DhKey> },
    Agree { reading: Reading, dpd: bool, g_xi: Vec<u8>, g_xr: Bytes, nr: Vec<u8> },
    SentAuth { reading: Reading, dpd: bool, proof: Box<Proof>, iv: [u8; 16] },
    Over,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            State::SentSa => "SentSa",
            State::MakeKey { .. } => "MakeKey",
            State::SentKe { .. } => "SentKe",
            State::Agree { .. } => "Agree",
            State::SentAuth { .. } => "SentAuth",
            State::Over => "Over",
        }
    }
}

impl Initiator {
    /// Message 1 to `peer` from `local`.
    pub fn start(
        policy: PeerPolicy,
        local: IpAddr,
        peer: IpAddr,
        initial_contact: bool,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> (Initiator, Vec<Step>) {
        let mut cookie = [0; 8];
        while cookie == [0; 8] {
            entropy.fill(&mut cookie);
        }
        let mut nonce = [0; NONCE_LEN];
        entropy.fill(&mut nonce);
        let cookies = CookiePair { initiator: Cookie(cookie), responder: Cookie::ZERO };
        let first = auth::clear(
            cookies,
            vec![Payload::Sa(proposal::offer(&policy)), Payload::VendorId(VENDOR_DPD.to_vec())],
        );
        let local = policy.local_identity.clone().unwrap_or_else(|| address_identity(local));
        let initiator = Initiator {
            sai_b: auth::sa_body(&first),
            local,
            peer,
            initial_contact,
            cookies,
            nonce,
            last_sent: first.clone(),
            retransmit: Retransmit::sent(Schedule::PHASE1, now, entropy),
            state: State::SentSa,
            policy,
        };
        (initiator, vec![Step::Send(first)])
    }

    /// CKY-I, by which answers find their way.
    pub fn cookie(&self) -> Cookie {
        self.cookies.initiator
    }

    /// The state's name, for refusals and tables.
    pub fn state(&self) -> &'static str {
        self.state.name()
    }

    /// When [`Initiator::on_timeout`] is due.
    pub fn due(&self) -> Instant {
        self.retransmit.due()
    }

    /// Repeats the last message, or gives up.
    ///
    /// # Errors
    /// [`Refusal::Failed`] after the last repeat.
    pub fn on_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) -> Result<Vec<Step>, Refusal> {
        match self.retransmit.attempt(now, entropy) {
            Attempt::Wait => Ok(Vec::new()),
            Attempt::Again => Ok(vec![Step::Send(self.last_sent.clone())]),
            Attempt::GiveUp => {
                // The peer cannot read what another key sealed, and must not answer it.
                let hint = match self.state {
                    State::SentAuth { .. } => ": do both sides have the same pre-shared key?",
                    _ => "",
                };
                Err(Refusal::Failed { reason: format!("no answer in state {}{hint}", self.state.name()) })
            }
        }
    }

    fn send(&mut self, octets: Bytes, now: Instant, entropy: &mut dyn Entropy) -> Vec<Step> {
        self.last_sent = octets.clone();
        self.retransmit = Retransmit::sent(Schedule::PHASE1, now, entropy);
        vec![Step::Send(octets)]
    }

    /// Message 2, 4 or 6.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] leaves everything as it was; [`Refusal::Failed`] ends the negotiation.
    pub fn on_message(&mut self, now: Instant, header: &Header, octets: &[u8]) -> Result<Vec<Step>, Refusal> {
        if header.exchange != ExchangeType::MainMode || header.message_id.0 != 0 {
            return Err(Refusal::dropped("not a main mode message"));
        }
        match &self.state {
            State::SentSa => self.on_sa(header, octets),
            State::SentKe { .. } => self.on_ke(header, octets),
            State::SentAuth { .. } => self.on_auth(now, header, octets),
            State::MakeKey { .. } | State::Agree { .. } | State::Over => {
                Err(Refusal::Dropped(format!("nothing expected in state {}", self.state.name())))
            }
        }
    }

    fn on_sa(&mut self, header: &Header, octets: &[u8]) -> Result<Vec<Step>, Refusal> {
        if header.flags.encrypted() || header.cookies.responder.is_zero() {
            return Err(Refusal::dropped("not a message 2"));
        }
        if header.cookies.responder == header.cookies.initiator {
            return Err(Refusal::dropped("the peer's cookie is ours"));
        }
        let rules = Rules::PHASE1_CLEAR.for_dialect(self.policy.dialect);
        let message = Message::decode(octets, rules).map_err(Refusal::dropped)?;
        let Some(Payload::Sa(sa)) = message.payloads.first() else {
            return Err(Refusal::dropped("SA is not first"));
        };
        let reading = proposal::accept(sa, &self.policy)?;
        let dpd = announces_dpd(&message.payloads);
        self.cookies.responder = header.cookies.responder;
        self.state = State::MakeKey { reading, dpd };
        Ok(vec![Step::Run(Job::DhGenerate { group: reading.suite.group })])
    }

    fn on_ke(&mut self, header: &Header, octets: &[u8]) -> Result<Vec<Step>, Refusal> {
        let State::SentKe { reading, dpd, .. } = &self.state else {
            return Err(Refusal::dropped("no KE is due"));
        };
        let (reading, dpd) = (*reading, *dpd);
        if header.cookies != self.cookies || header.flags.encrypted() {
            return Err(Refusal::dropped("not a message 4"));
        }
        let (g_xr, nr) = auth::key_exchange(octets, reading.suite, Some(&self.nonce))?;
        let State::SentKe { key, .. } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::dropped("no KE is due"));
        };
        if key.public() == g_xr.as_ref() {
            self.state = State::SentKe { reading, dpd, key };
            return Err(Refusal::dropped("the peer's KE is ours"));
        }
        self.state = State::Agree { reading, dpd, g_xi: key.public().to_vec(), g_xr: g_xr.clone(), nr };
        Ok(vec![Step::Run(Job::DhAgree { key, peer_public: g_xr })])
    }

    fn on_auth(&mut self, now: Instant, header: &Header, octets: &[u8]) -> Result<Vec<Step>, Refusal> {
        let State::SentAuth { reading, dpd, proof, iv } = &self.state else {
            return Err(Refusal::dropped("no proof is due"));
        };
        if header.cookies != self.cookies {
            return Err(Refusal::dropped("other cookies"));
        }
        let message = proof.open(iv, header, octets)?;
        if !proof.hash_r(&message.id).ct_eq(&message.hash) {
            return Err(Refusal::dropped("HASH_R mismatch"));
        }
        // RFC 6407 section 3.1: the key server must be the configured one.
        if !acceptable_ports(&message.id)
            || !self.policy.remote.iter().any(|rule| rule.accepts(&message.id, self.peer))
        {
            return Err(Refusal::Failed {
                reason: format!("the peer is {}, not the configured key server", message.id),
            });
        }
        let keys = SaKeys {
            skeyid_a: proof.skeyid_a.clone(),
            key: proof.key.clone(),
            last_phase1_block: message.last_block,
        };
        let mut sa = IkeSa::new(
            self.cookies,
            reading.suite,
            Role::Initiator,
            message.id,
            self.local.clone(),
            now + reading.life,
            self.policy.dialect,
            keys,
        );
        sa.peer_does_dpd = *dpd;
        self.state = State::Over;
        Ok(vec![Step::Established(Box::new(Established { sa, initial_contact: false }))])
    }

    /// The result of the job asked for last.
    ///
    /// # Errors
    /// [`Refusal::Failed`] when it failed.
    pub fn on_done(
        &mut self,
        now: Instant,
        done: Done,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        match (std::mem::replace(&mut self.state, State::Over), done) {
            (State::MakeKey { reading, dpd }, Done::DhKey(key)) => {
                let key = key.map_err(|error| Refusal::Failed { reason: error.to_string() })?;
                let payloads = vec![Payload::Ke(key.public().to_vec()), Payload::Nonce(self.nonce.to_vec())];
                let message = auth::clear(self.cookies, payloads);
                self.state = State::SentKe { reading, dpd, key };
                Ok(self.send(message, now, entropy))
            }
            (State::Agree { reading, dpd, g_xi, g_xr, nr }, Done::Shared(shared)) => {
                let shared = shared.map_err(|error| Refusal::Failed { reason: error.to_string() })?;
                let proof = Proof::new(&Facts {
                    suite: reading.suite,
                    cookies: self.cookies,
                    pre_shared_key: &self.policy.pre_shared_key,
                    ni: &self.nonce,
                    nr: &nr,
                    g_xi: &g_xi,
                    g_xr: &g_xr,
                    shared: &shared,
                    sai_b: &self.sai_b,
                });
                let mut payloads = vec![
                    Payload::Id(self.local.clone()),
                    Payload::Hash(proof.hash_i(&self.local).expose().to_vec()),
                ];
                if self.initial_contact {
                    payloads.push(notify::initial_contact(self.cookies));
                }
                let (message, iv) = proof.seal(&proof.first_iv, &payloads);
                self.state = State::SentAuth { reading, dpd, proof: Box::new(proof), iv };
                Ok(self.send(message, now, entropy))
            }
            (state, _) => {
                let name = state.name();
                self.state = state;
                Err(Refusal::Dropped(format!("no such job in state {name}")))
            }
        }
    }
}

/// True when a DPD vendor ID of major version 1 is among the payloads.
pub(super) fn announces_dpd(payloads: &[Payload]) -> bool {
    payloads.iter().any(|payload| match payload {
        Payload::VendorId(vid) => vid.len() == 16 && vid[..14] == VENDOR_DPD[..14] && vid[14] == 1,
        _ => false,
    })
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof")
    }
}
