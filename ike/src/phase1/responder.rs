//! The key server's side of main mode: AwaitKe -> Compute -> AwaitAuth -> established, in that order. It never
//! retransmits on a timer; a repeated message gets the cached answer, at most ten times.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, NotifyType};

use super::auth::{self, Facts, Proof};
use super::initiator::announces_dpd;
use super::proposal;
use super::{Established, NONCE_LEN, PeerPolicy, Refusal, Step, VENDOR_DPD};
use crate::crypto::Suite;
use crate::crypto::provider::{Done, Job};
use crate::identity::{acceptable_ports, address_identity};
use crate::io::{Entropy, Instant};
use crate::sa::{IkeSa, Role, SaKeys};

/// Answers to one repeated message.
const MAX_REPEATS: u32 = 10;
/// Messages 5 that may fail before the negotiation is given up.
const MAX_FAILURES: u32 = 3;
/// Longest first message: SAi_b must be stored.
pub const MAX_OFFER: usize = 4096;
/// Longest first message with `large-offers`.
pub const MAX_LARGE_OFFER: usize = 16 * 1024;

/// A main mode a peer started.
#[derive(Debug)]
pub struct Responder {
    policy: Arc<PeerPolicy>,
    local: IpAddr,
    peer: IpAddr,
    cookies: CookiePair,
    suite: Suite,
    life: Duration,
    dpd: bool,
    sai_b: Vec<u8>,
    answered: Answered,
    failures: u32,
    state: State,
}

/// The last message answered and its answer.
#[derive(Debug)]
pub struct Answered {
    question: Bytes,
    answer: Bytes,
    repeats: u32,
}

impl Answered {
    /// An answer to a question.
    pub fn new(question: &[u8], answer: Bytes) -> Answered {
        Answered { question: Bytes::copy_from_slice(question), answer, repeats: 0 }
    }

    /// The cached answer when `question` is the same octets; at most ten times.
    pub fn repeat(&mut self, question: &[u8]) -> Option<Bytes> {
        if self.question != question || self.repeats >= MAX_REPEATS {
            return None;
        }
        self.repeats += 1;
        Some(self.answer.clone())
    }

    /// True when `question` is the one answered.
    pub fn is_for(&self, question: &[u8]) -> bool {
        self.question == question
    }
}

enum State {
    AwaitKe,
    Compute { question: Bytes, ni: Vec<u8>, g_xi: Bytes, nr: [u8; NONCE_LEN] },
    AwaitAuth { proof: Box<Proof> },
    Over,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            State::AwaitKe => "AwaitKe",
            State::Compute { .. } => "Compute",
            State::AwaitAuth { .. } => "AwaitAuth",
            State::Over => "Over",
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Responder {
    /// Takes message 1 and answers with message 2. `cookie` is our keyed cookie for this negotiation.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] for what is no first message, [`Refusal::Unacceptable`] with the notify that may be sent.
    pub fn start(
        policy: Arc<PeerPolicy>,
        cookie: Cookie,
        local: IpAddr,
        peer: IpAddr,
        header: &Header,
        octets: &[u8],
    ) -> Result<(Responder, Vec<Step>), Refusal> {
        let limit = if policy.dialect.large_offers { MAX_LARGE_OFFER } else { MAX_OFFER };
        if octets.len() > limit {
            return Err(Refusal::dropped("first message too long"));
        }
        let plain = header.exchange == ExchangeType::MainMode
            && header.message_id.0 == 0
            && !header.flags.encrypted();
        if !plain || !header.cookies.responder.is_zero() {
            return Err(Refusal::dropped("not a first message of main mode"));
        }
        let rules = Rules::PHASE1_CLEAR.for_dialect(policy.dialect);
        let message = Message::decode(octets, rules).map_err(Refusal::dropped)?;
        let Some((Payload::Sa(sa), rest)) = message.payloads.split_first() else {
            return Err(Refusal::dropped("SA is not first"));
        };
        let stranger = rest.iter().find(|p| {
            !matches!(
                p,
                Payload::VendorId(_) | Payload::Cert(_) | Payload::CertRequest(_) | Payload::Notify(_)
            )
        });
        if let Some(stranger) = stranger {
            return Err(Refusal::Dropped(format!("{} has no place here", stranger.payload_type())));
        }
        let choice = proposal::choose(sa, &policy)?;
        let cookies = CookiePair { initiator: header.cookies.initiator, responder: cookie };
        let dpd = announces_dpd(rest);
        let mut payloads = vec![Payload::Sa(choice.answer)];
        if dpd {
            payloads.push(Payload::VendorId(VENDOR_DPD.to_vec()));
        }
        let answer = auth::clear(cookies, payloads);
        let responder = Responder {
            policy,
            local,
            peer,
            cookies,
            suite: choice.suite,
            life: choice.life,
            dpd,
            sai_b: auth::sa_body(octets),
            answered: Answered::new(octets, answer.clone()),
            failures: 0,
            state: State::AwaitKe,
        };
        Ok((responder, vec![Step::Send(answer)]))
    }

    /// The SA's name.
    pub fn cookies(&self) -> CookiePair {
        self.cookies
    }

    /// The state's name.
    pub fn state(&self) -> &'static str {
        self.state.name()
    }

    /// True once the peer answered a message of ours: it can receive at its address.
    pub fn returned(&self) -> bool {
        !matches!(self.state, State::AwaitKe)
    }

    /// True when `octets` are the message answered last (a repeated message 1 has no responder cookie to find us by).
    pub fn answered(&mut self) -> &mut Answered {
        &mut self.answered
    }

    /// The last question and answer, to be kept while the SA is young: message 6 may be lost.
    pub fn into_answered(self) -> Answered {
        self.answered
    }

    /// Message 3 or 5, or a repeat.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] leaves everything as it was; [`Refusal::Failed`] ends the negotiation.
    pub fn on_message(
        &mut self,
        now: Instant,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        if let Some(answer) = self.answered.repeat(octets) {
            return Ok(vec![Step::Send(answer)]);
        }
        if header.exchange != ExchangeType::MainMode
            || header.message_id.0 != 0
            || header.cookies != self.cookies
        {
            return Err(Refusal::dropped("not a message of this main mode"));
        }
        match &self.state {
            State::AwaitKe => {
                if header.flags.encrypted() {
                    return Err(Refusal::dropped("encrypted message where KE is due"));
                }
                let (g_xi, ni) = auth::key_exchange(octets, self.suite, None)?;
                let mut nr = [0; NONCE_LEN];
                entropy.fill(&mut nr);
                let job = Job::DhRespond { group: self.suite.group, peer_public: g_xi.clone() };
                self.state = State::Compute { question: Bytes::copy_from_slice(octets), ni, g_xi, nr };
                Ok(vec![Step::Run(job)])
            }
            State::AwaitAuth { .. } => self.on_auth(now, header, octets),
            State::Compute { .. } | State::Over => {
                Err(Refusal::Dropped(format!("nothing expected in state {}", self.state.name())))
            }
        }
    }

    /// The result of the key exchange: message 4 goes out.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] when the peer's value was invalid: the half-open state is kept, the message may be forged.
    pub fn on_done(&mut self, done: Done) -> Result<Vec<Step>, Refusal> {
        let Done::Responded(result) = done else { return Err(Refusal::dropped("no such job")) };
        let State::Compute { question, ni, g_xi, nr } = std::mem::replace(&mut self.state, State::AwaitKe)
        else {
            return Err(Refusal::dropped("no key exchange is due"));
        };
        let (g_xr, shared) = result.map_err(Refusal::dropped)?;
        let proof = Proof::new(&Facts {
            suite: self.suite,
            cookies: self.cookies,
            pre_shared_key: &self.policy.pre_shared_key,
            ni: &ni,
            nr: &nr,
            g_xi: &g_xi,
            g_xr: &g_xr,
            shared: &shared,
            sai_b: &self.sai_b,
        });
        let answer = auth::clear(self.cookies, vec![Payload::Ke(g_xr), Payload::Nonce(nr.to_vec())]);
        self.answered = Answered::new(&question, answer.clone());
        self.state = State::AwaitAuth { proof: Box::new(proof) };
        Ok(vec![Step::Send(answer)])
    }

    fn on_auth(&mut self, now: Instant, header: &Header, octets: &[u8]) -> Result<Vec<Step>, Refusal> {
        let State::AwaitAuth { proof } = &self.state else { return Err(Refusal::dropped("no proof is due")) };
        let checked = proof.open(&proof.first_iv, header, octets).and_then(|message| {
            if proof.hash_i(&message.id).ct_eq(&message.hash) {
                Ok(message)
            } else {
                Err(Refusal::dropped("HASH_I mismatch"))
            }
        });
        let message = match checked {
            Ok(message) => message,
            Err(refusal) => {
                self.failures += 1;
                if self.failures < MAX_FAILURES {
                    return Err(refusal);
                }
                return Err(Refusal::Failed { reason: refusal.to_string() });
            }
        };
        if !acceptable_ports(&message.id)
            || !self.policy.remote.iter().any(|rule| rule.accepts(&message.id, self.peer))
        {
            return Err(Refusal::Failed {
                reason: format!("identity {} is not the one this gateway may claim", message.id),
            });
        }
        let local = self.local_identity();
        let payloads = [Payload::Id(local.clone()), Payload::Hash(proof.hash_r(&local).expose().to_vec())];
        let (answer, last_phase1_block) = proof.seal(&message.last_block, &payloads);
        let keys = SaKeys { skeyid_a: proof.skeyid_a.clone(), key: proof.key.clone(), last_phase1_block };
        let initial_contact =
            message.notifies.iter().any(|n| NotifyType::from_number(n.kind) == NotifyType::InitialContact);
        let mut sa = IkeSa::new(
            self.cookies,
            self.suite,
            Role::Responder,
            message.id,
            local,
            now + self.life,
            self.policy.dialect,
            keys,
        );
        sa.peer_does_dpd = self.dpd;
        self.answered = Answered::new(octets, answer.clone());
        self.state = State::Over;
        Ok(vec![Step::Send(answer), Step::Established(Box::new(Established { sa, initial_contact }))])
    }

    fn local_identity(&self) -> Identification {
        self.policy.local_identity.clone().unwrap_or_else(|| address_identity(self.local))
    }
}
