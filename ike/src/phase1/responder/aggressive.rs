//! Aggressive mode of the key server: one exchange of keys per first message that names an admitted identity, before
//! the peer showed that it can receive. The owner's half-open limits are all that stands before it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::message::Rules;
use gdoi_proto::payload::{Identification, Payload, Sa};
use gdoi_proto::registry::{ExchangeType, PayloadType};

use super::super::auth::{Proof, Proving};
use super::super::messages::{self, Extras, Heard};
use super::super::nat::{Behind, Ends};
use super::super::{Mode, NONCE_LEN, PeerPolicy, Refusal, Step, VerifyContext, proposal};
use super::{Answered, Claim, MAX_OFFER, Responder, State, Unproved, is_first, read};
use crate::crypto::provider::{Job, Proved};
use crate::io::{Entropy, Instant, Now};
use crate::retransmit::{Attempt, Retransmit, Schedule};
use crate::sa::Role;

/// Message 2 is repeated twice at most: it goes to an address nobody has proved yet.
const SECOND: Schedule = Schedule { first: Duration::from_secs(2), factor_percent: 180, tries: 2 };

/// Message 1 of aggressive mode as read: its sender's gateway is found by its identity.
#[derive(Debug)]
pub struct FirstAggressive {
    heard: Heard,
    cookie: Cookie,
    octets: Bytes,
    id: Identification,
}

/// What message 2 is made from.
type Answer = (Sa, Vec<u8>, [u8; NONCE_LEN]);

impl FirstAggressive {
    /// Reads a first message.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] for what is none.
    pub fn read(header: &Header, octets: &[u8]) -> Result<FirstAggressive, Refusal> {
        if octets.len() > MAX_OFFER {
            return Err(Refusal::dropped("first message too long"));
        }
        if !is_first(header, ExchangeType::Aggressive) {
            return Err(Refusal::dropped("not a first message of aggressive mode"));
        }
        let expected = [PayloadType::Sa, PayloadType::Ke, PayloadType::Nonce, PayloadType::Id];
        let mut heard = read(octets, Rules::PHASE1_CLEAR, &expected)?;
        let id = heard.id.take().ok_or_else(|| Refusal::dropped("no ID"))?;
        let octets = Bytes::copy_from_slice(octets);
        Ok(FirstAggressive { heard, cookie: header.cookies.initiator, octets, id })
    }

    /// IDii, claimed and not proved.
    pub fn identity(&self) -> &Identification {
        &self.id
    }
}

impl Responder {
    /// Takes message 1 of aggressive mode; message 2 follows when the keys are exchanged.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] for an identity the policy does not admit and for what does not fit,
    /// [`Refusal::Unacceptable`] with the notify that may be sent.
    pub fn start_aggressive(
        policy: Arc<PeerPolicy>,
        cookie: Cookie,
        ends: Ends,
        first: FirstAggressive,
        entropy: &mut dyn Entropy,
    ) -> Result<(Responder, Vec<Step>), Refusal> {
        let FirstAggressive { mut heard, cookie: initiator, octets, id } = first;
        if policy.mode != Mode::Aggressive {
            return Err(Refusal::dropped("aggressive mode is not configured for this peer"));
        }
        if !policy.admits(&id, ends.peer.ip()) {
            return Err(Refusal::Dropped(format!("identity {id} is not the one this gateway may claim")));
        }
        let sa = heard.sa.take().ok_or_else(|| Refusal::dropped("no SA"))?;
        let choice = proposal::choose(&sa, &policy)?;
        let (g_xi, ni) = heard.key_exchange(choice.suite, None)?;
        let answer = choice.answer.clone();
        let cookies = CookiePair { initiator, responder: cookie };
        let mut responder = Responder::new(policy, ends, cookies, choice, &heard, octets)?;
        let mut nr = [0; NONCE_LEN];
        entropy.fill(&mut nr);
        let job = Job::DhRespond { group: responder.suite.group, peer_public: g_xi.clone() };
        responder.state = State::ComputeFirst { answer, ni, g_xi, nr, id };
        Ok((responder, vec![Step::Run(job)]))
    }

    pub(super) fn prove_first(
        &mut self,
        now: Now,
        answer: Answer,
        proof: Box<Proof>,
        id: Identification,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        match proof.prove(Role::Responder, &self.local_identity(), &self.credential) {
            Proving::Ready(payload) => Ok(self.send_second(now, answer, proof, id, payload, entropy)),
            Proving::Sign(job) => {
                let (answer, g_xr, nr) = answer;
                self.state = State::SignFirst { answer, g_xr, nr, proof, id };
                Ok(vec![Step::Run(job)])
            }
        }
    }

    pub(super) fn send_second(
        &mut self,
        now: Now,
        (answer, g_xr, nr): Answer,
        proof: Box<Proof>,
        id: Identification,
        payload: Payload,
        entropy: &mut dyn Entropy,
    ) -> Vec<Step> {
        let names = self.credential.requests();
        let payloads = messages::aggressive_second(
            answer,
            (&g_xr, &nr),
            &self.local_identity(),
            (self.credential.certificates(self.wanted), &names),
            &Extras { nat_d: self.nat_d(), ..self.extras() },
            payload,
        );
        let message = self.clear(payloads);
        self.answered.answer = message.clone();
        self.retransmit = Some(Retransmit::sent(SECOND, now.at, entropy));
        self.state = State::AwaitThird { proof, id };
        vec![Step::Send(message)]
    }

    /// Message 2 once more, while message 3 is due: the peer goes on as one that sent it. Counted with the repeats.
    pub fn second_again(&mut self) -> Option<Bytes> {
        matches!(self.state, State::AwaitThird { .. }).then(|| self.answered.again()).flatten()
    }

    /// Repeats message 2, twice at most.
    pub fn on_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) -> Vec<Step> {
        let State::AwaitThird { .. } = self.state else { return Vec::new() };
        let Some(retransmit) = &mut self.retransmit else { return Vec::new() };
        match retransmit.attempt(now, entropy) {
            Attempt::Wait => Vec::new(),
            Attempt::Again => vec![Step::Send(self.answered.answer.clone())],
            Attempt::GiveUp => {
                self.retransmit = None;
                Vec::new()
            }
        }
    }

    pub(super) fn on_third(
        &mut self,
        now: Now,
        ends: Ends,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        let State::AwaitThird { proof, id } = &self.state else {
            return Err(Refusal::dropped("no message 3 is due"));
        };
        let opened = proof.open(&proof.first_iv, header, octets).map_err(Unproved::from);
        let checked = opened.and_then(|(mut heard, last_block)| {
            let Some(presented) = heard.proof(self.suite.method) else {
                return Err(proof.garbage("no proof").into());
            };
            let chain = std::mem::take(&mut heard.certificates);
            let context = VerifyContext { side: Role::Initiator, id, chain, now };
            let found = self.examined(ends, &heard.nat_d);
            match proof.check(&self.credential, presented, context) {
                Ok(job) => Ok((job, last_block, found)),
                Err(refusal) => Err(Unproved { refusal, read: Some((id.clone(), last_block)) }),
            }
        });
        let (job, last_block, nat) =
            checked.map_err(|unproved| self.count_failure(now, unproved, entropy))?;
        let State::AwaitThird { proof, id } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::dropped("no message 3 is due"));
        };
        self.nat = nat;
        let question = Bytes::copy_from_slice(octets);
        // Status notifications have no place in aggressive mode (RFC 2407 section 4.6.3).
        let claim = Claim { id, initial_contact: false, question, last_block };
        // Message 3 has no answer, and message 1 is no longer answered.
        self.answered = Answered::new(claim.question.clone(), Bytes::new());
        match job {
            None => Ok(vec![self.established(now, &proof, claim, Proved::default(), None)]),
            Some(job) => {
                self.state = State::VerifyThird { proof, claim };
                Ok(vec![Step::Run(job)])
            }
        }
    }

    /// Message 3 already comes from the port of NAT traversal; whether its sender hashed that port or the one message 1
    /// came from is its business, so a hash of either shows an end that no NAT changed.
    fn examined(&self, ends: Ends, nat_d: &[Vec<u8>]) -> Behind {
        if !self.nat_traversal {
            return Behind::default();
        }
        let along = |ends: Ends| ends.examine(self.suite.hash, self.cookies, nat_d).unwrap_or_default();
        let (here, first) = (along(ends), along(self.ends));
        Behind { ours: here.ours && first.ours, theirs: here.theirs && first.theirs }
    }
}
