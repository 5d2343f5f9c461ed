//! Aggressive mode of the member: everything about message 2 is unproved until its HASH_R or SIG_R is checked.

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, NotifyType, PayloadType};
use gdoi_proto::secret::SecretBytes;

use super::super::auth::{Facts, Proof, Proving};
use super::super::messages;
use super::super::{Refusal, Step, VerifyContext, proposal};
use super::{Agreed, Answered, Initiator, State};
use crate::crypto::provider::{DhKey, Job, ProofError, Proved};
use crate::io::{Entropy, Now};
use crate::sa::Role;

/// Message 2 as read.
pub(super) struct Second {
    g_xr: Bytes,
    nr: Vec<u8>,
    id: Identification,
    chain: Vec<Vec<u8>>,
    presented: Vec<u8>,
    /// The whole message: its repeats get the same message 3.
    question: Bytes,
}

const EXPECTED: [PayloadType; 7] = [
    PayloadType::Sa,
    PayloadType::Ke,
    PayloadType::Nonce,
    PayloadType::Id,
    PayloadType::NatD,
    PayloadType::Hash,
    PayloadType::Sig,
];

impl Initiator {
    /// The key pair of message 1 is in the group that all offers share.
    pub(super) fn make_first(&mut self) -> Step {
        // A configuration without a usable offer is refused before it gets here; the offer of nothing is answered so.
        let group = self.policy.usable_offers().first().map(|offer| offer.suite.group);
        self.state = State::MakeFirst;
        Step::Run(Job::DhGenerate { group: group.unwrap_or(crate::crypto::DhGroup::Ecp256) })
    }

    pub(super) fn send_first(
        &mut self,
        now: Now,
        key: Box<dyn DhKey>,
        entropy: &mut dyn Entropy,
    ) -> Vec<Step> {
        let offers = self.policy.usable_offers();
        let credential =
            offers.first().and_then(|offer| self.policy.credentials.for_method(offer.suite.method));
        let names = credential.map(|credential| credential.requests()).unwrap_or_default();
        let payloads = messages::aggressive_first(
            proposal::offer(&self.policy),
            (key.public(), &self.nonce),
            &self.local,
            &names,
            &self.extras(),
        );
        let message = self.clear(payloads);
        self.sai_b = messages::sa_body(&message);
        self.state = State::SentFirst { key };
        self.send(message, now, entropy)
    }

    pub(super) fn on_second(&mut self, header: &Header, octets: &[u8]) -> Result<Vec<Step>, Refusal> {
        let mut heard = self.read(octets, &EXPECTED)?;
        let agreed = self.agree(header, &heard)?;
        let (g_xr, nr) = heard.key_exchange(agreed.reading.suite, Some(&self.nonce))?;
        let (Some(id), Some(presented)) = (heard.id.take(), heard.proof(agreed.reading.suite.method)) else {
            return Err(Refusal::dropped("no ID or no proof"));
        };
        // Whoever answers in another name is not asked for a proof (RFC 6407 section 3.1).
        if !self.policy.admits(&id, self.ends.peer.ip()) {
            return Err(Refusal::Dropped(format!("the peer is {id}, not the configured key server")));
        }
        let State::SentFirst { key } = &self.state else {
            return Err(Refusal::dropped("no message 2 is due"));
        };
        if key.public() == g_xr.as_ref() {
            return Err(Refusal::dropped("the peer's KE is ours"));
        }
        let State::SentFirst { key } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::dropped("no message 2 is due"));
        };
        self.cookies.responder = header.cookies.responder;
        self.fragments = self.policy.fragmentation && heard.announces_fragmentation();
        self.examine(&agreed, &heard);
        let second = Second {
            g_xr: g_xr.clone(),
            nr,
            id,
            chain: std::mem::take(&mut heard.certificates),
            presented,
            question: Bytes::copy_from_slice(octets),
        };
        self.state = State::AgreeFirst { agreed, g_xi: key.public().to_vec(), second };
        Ok(vec![Step::Run(Job::DhAgree { key, peer_public: g_xr })])
    }

    pub(super) fn on_shared(
        &mut self,
        now: Now,
        agreed: Agreed,
        g_xi: Vec<u8>,
        second: Second,
        shared: &SecretBytes,
    ) -> Result<Vec<Step>, Refusal> {
        let Second { g_xr, nr, id, chain, presented, question } = second;
        let proof = Box::new(Proof::new(&Facts {
            exchange: ExchangeType::Aggressive,
            suite: agreed.reading.suite,
            cookies: self.cookies,
            basis: agreed.credential.basis(),
            ni: &self.nonce,
            nr: &nr,
            g_xi: &g_xi,
            g_xr: &g_xr,
            shared,
            sai_b: &self.sai_b,
            double_hash: self.policy.dialect.ecdsa_double_hash,
        }));
        let context = VerifyContext { side: Role::Responder, id: &id, chain, now };
        // The key pair is spent: a proof that does not fit ends the attempt.
        let checked = proof.check(&agreed.credential, presented, context);
        match checked.map_err(|refusal| Refusal::failed(format!("{refusal}: another pre-shared key?")))? {
            None => self.prove_third(now, agreed, proof, (id, question), Proved::default()),
            Some(job) => {
                self.state = State::VerifyFirst { agreed, proof, id, question };
                Ok(vec![Step::Run(job)])
            }
        }
    }

    pub(super) fn on_second_verified(
        &mut self,
        now: Now,
        agreed: Agreed,
        proof: Box<Proof>,
        (id, question): (Identification, Bytes),
        proved: Result<Proved, ProofError>,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        match proved {
            Ok(proved) => self.prove_third(now, agreed, proof, (id, question), proved),
            Err(error) => {
                let reason = format!("{id} did not prove who it is: {error}");
                // Nothing was encrypted yet: the first IV stands for the last block.
                let sa = self.sa(now, &agreed, &proof, &id, proof.first_iv);
                Err(Refusal::told(reason, NotifyType::AuthenticationFailed, sa, entropy))
            }
        }
    }

    fn prove_third(
        &mut self,
        now: Now,
        agreed: Agreed,
        proof: Box<Proof>,
        (id, question): (Identification, Bytes),
        proved: Proved,
    ) -> Result<Vec<Step>, Refusal> {
        match proof.prove(Role::Initiator, &self.local, &agreed.credential) {
            Proving::Ready(payload) => self.send_third(now, agreed, &proof, (id, question), proved, payload),
            Proving::Sign(job) => {
                self.state = State::SignThird { agreed, proof, id, question, proved };
                Ok(vec![Step::Run(job)])
            }
        }
    }

    /// Message 3 ends the negotiation on this side; whether it arrived shows in what the server does next.
    pub(super) fn send_third(
        &mut self,
        now: Now,
        agreed: Agreed,
        proof: &Proof,
        (id, question): (Identification, Bytes),
        proved: Proved,
        payload: Payload,
    ) -> Result<Vec<Step>, Refusal> {
        let chain = agreed.credential.certificates(agreed.wanted);
        let payloads = messages::aggressive_third(chain, &self.nat_d(&agreed), payload);
        let (message, last_block) = proof.seal(&proof.first_iv, &payloads);
        let sa = self.sa(now, &agreed, proof, &id, last_block);
        let answered = Answered::new(question, message.clone());
        let mut steps = vec![Step::Send(message)];
        steps.extend(self.establish(sa, proved, Some(answered))?);
        Ok(steps)
    }
}
