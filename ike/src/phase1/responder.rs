//! The key server's side of phase 1, in the order of the states:
//!
//! ```text
//! main        AwaitKe -> Compute -> AwaitAuth -> [Verify] -> [Sign] -> established
//! aggressive  ComputeFirst -> [SignFirst] -> AwaitThird -> [VerifyThird] -> established
//! ```
//!
//! The states in brackets belong to signatures. A repeated message gets the cached answer, at most ten times. Main mode
//! never retransmits on a timer; aggressive mode, in `responder/aggressive.rs`, repeats message 2 twice, because the
//! initiator is content with it.

mod aggressive;
mod answered;
mod state;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, NotifyType, PayloadType};
use gdoi_proto::secret::SecretBytes;

use super::auth::{Facts, Proof, Proving, SaEnds};
use super::messages::{self, Extras, Heard};
use super::nat::{Behind, Ends, VENDOR_NAT_T};
use super::proposal::{self, Choice};
use super::{
    Credential, Established, MAX_FAILURES, Mode, NONCE_LEN, PeerPolicy, Refusal, Step, VENDOR_DPD,
    VerifyContext,
};
use crate::crypto::Suite;
use crate::crypto::provider::{Done, Job, ProofError, Proved};
use crate::fragment::VENDOR_FRAGMENTATION;
use crate::io::{Entropy, Instant, Now};
use crate::protect::notify;
use crate::retransmit::Retransmit;
use crate::sa::{IkeSa, Role};

pub use aggressive::FirstAggressive;
pub use answered::Answered;

use answered::MAX_REPEATS;
use state::{Claim, State, Unproved};

/// Longest first message: SAi_b must be stored.
pub const MAX_OFFER: usize = 4096;
/// Longest first message with `large-offers`, in main mode: aggressive mode never takes more than [`MAX_OFFER`].
pub const MAX_LARGE_OFFER: usize = 16 * 1024;

/// A phase 1 a peer started.
#[derive(Debug)]
pub struct Responder {
    policy: Arc<PeerPolicy>,
    /// Where the first message came along.
    ends: Ends,
    /// Both sides do NAT traversal.
    nat_traversal: bool,
    nat: Behind,
    fragments: bool,
    cookies: CookiePair,
    suite: Suite,
    life: Duration,
    credential: Credential,
    dpd: bool,
    /// The peer asked for our certificates.
    wanted: bool,
    sai_b: Bytes,
    answered: Answered,
    failures: u32,
    retransmit: Option<Retransmit>,
    state: State,
}

impl Responder {
    /// Takes message 1 of main mode and answers with message 2. `cookie` is our keyed cookie for this negotiation.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] for what is no first message, [`Refusal::Unacceptable`] with the notify that may be sent.
    pub fn start(
        policy: Arc<PeerPolicy>,
        cookie: Cookie,
        ends: Ends,
        header: &Header,
        octets: &[u8],
    ) -> Result<(Responder, Vec<Step>), Refusal> {
        let limit = if policy.dialect.large_offers { MAX_LARGE_OFFER } else { MAX_OFFER };
        if octets.len() > limit {
            return Err(Refusal::dropped("first message too long"));
        }
        if policy.mode != Mode::Main {
            return Err(Refusal::dropped("main mode where aggressive mode is configured"));
        }
        if !is_first(header, ExchangeType::MainMode) {
            return Err(Refusal::dropped("not a first message of main mode"));
        }
        let rules = Rules::PHASE1_CLEAR.for_dialect(policy.dialect);
        let heard = read(octets, rules, &[PayloadType::Sa])?;
        let sa = heard.sa.as_ref().ok_or_else(|| Refusal::dropped("no SA"))?;
        let choice = proposal::choose(sa, &policy)?;
        let answer = choice.answer.clone();
        let cookies = CookiePair { initiator: header.cookies.initiator, responder: cookie };
        let octets = Bytes::copy_from_slice(octets);
        let mut responder = Responder::new(policy, ends, cookies, choice, &heard, octets)?;
        let answer = responder.clear(messages::offer(answer, &responder.extras()));
        responder.answered.answer = answer.clone();
        Ok((responder, vec![Step::Send(answer)]))
    }

    fn new(
        policy: Arc<PeerPolicy>,
        ends: Ends,
        cookies: CookiePair,
        choice: Choice,
        heard: &Heard,
        octets: Bytes,
    ) -> Result<Responder, Refusal> {
        let credential = policy.credentials.for_method(choice.suite.method);
        Ok(Responder {
            credential: credential.ok_or_else(|| Refusal::dropped("no credential for the method"))?,
            nat_traversal: policy.nat_traversal && heard.announces_nat_traversal(),
            fragments: policy.fragmentation && heard.announces_fragmentation(),
            policy,
            ends,
            nat: Behind::default(),
            cookies,
            suite: choice.suite,
            life: choice.life,
            dpd: heard.announces_dpd(),
            wanted: heard.wants_certificate,
            sai_b: messages::sa_body(&octets),
            answered: Answered::new(octets, Bytes::new()),
            failures: 0,
            retransmit: None,
            state: State::AwaitKe,
        })
    }

    /// When [`Responder::on_timeout`] is due: in aggressive mode only, while message 3 is awaited.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::AwaitThird { .. } => self.retransmit.as_ref().map(Retransmit::due),
            State::AwaitKe
            | State::Compute { .. }
            | State::AwaitAuth { .. }
            | State::Verify { .. }
            | State::Sign { .. }
            | State::ComputeFirst { .. }
            | State::SignFirst { .. }
            | State::VerifyThird { .. }
            | State::Over => None,
        }
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
        self.state.returned()
    }

    /// True when both sides announced fragmentation.
    pub fn fragments(&self) -> bool {
        self.fragments
    }

    /// True while the next message may come along other ends than the first: with a NAT between us the peer goes on
    /// from its port of NAT traversal (RFC 3947 section 4). In aggressive mode only message 3 itself tells.
    pub fn may_move(&self) -> bool {
        match self.state {
            State::AwaitAuth { .. } => self.nat.any(),
            State::AwaitThird { .. } => self.nat_traversal,
            State::AwaitKe
            | State::Compute { .. }
            | State::Verify { .. }
            | State::Sign { .. }
            | State::ComputeFirst { .. }
            | State::SignFirst { .. }
            | State::VerifyThird { .. }
            | State::Over => false,
        }
    }

    /// True when `octets` are the message answered last (a repeated message 1 has no responder cookie to find us by).
    pub fn answered(&mut self) -> &mut Answered {
        &mut self.answered
    }

    /// The last question and answer, to be kept while the SA is young: message 6 may be lost.
    pub fn into_answered(self) -> Answered {
        self.answered
    }

    fn clear(&self, payloads: Vec<Payload>) -> Bytes {
        messages::clear(self.policy.mode.exchange(), self.cookies, payloads)
    }

    /// What our first answer carries besides its own payloads: what the peer announced too.
    fn extras(&self) -> Extras {
        let mut vendors = Vec::new();
        if self.dpd {
            vendors.push(VENDOR_DPD.to_vec());
        }
        if self.nat_traversal {
            vendors.push(VENDOR_NAT_T.to_vec());
        }
        if self.fragments {
            vendors.push(VENDOR_FRAGMENTATION.to_vec());
        }
        Extras { vendors, nat_d: Vec::new() }
    }

    /// What shows the peer whether a NAT is between us.
    fn nat_d(&self) -> Vec<Vec<u8>> {
        if self.nat_traversal { self.ends.hashes(self.suite.hash, self.cookies) } else { Vec::new() }
    }

    /// Message 3 or 5, or a repeat. It came along `ends`.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] leaves everything as it was; [`Refusal::Failed`] ends the negotiation.
    pub fn on_message(
        &mut self,
        now: Now,
        ends: Ends,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        if let Some(answer) = self.answered.repeat(octets) {
            return Ok(vec![Step::Send(answer)]);
        }
        if self.answered.is_for(octets) {
            return Err(Refusal::dropped("repeated too often, or still being answered"));
        }
        if header.exchange != self.policy.mode.exchange()
            || header.message_id.0 != 0
            || header.cookies != self.cookies
        {
            return Err(Refusal::dropped("not a message of this phase 1"));
        }
        match &self.state {
            State::AwaitKe => self.on_ke(header, octets, entropy),
            State::AwaitAuth { .. } => self.on_auth(now, header, octets, entropy),
            State::AwaitThird { .. } => self.on_third(now, ends, header, octets, entropy),
            State::Compute { .. }
            | State::Verify { .. }
            | State::Sign { .. }
            | State::ComputeFirst { .. }
            | State::SignFirst { .. }
            | State::VerifyThird { .. }
            | State::Over => {
                Err(Refusal::Dropped(format!("nothing expected in state {}", self.state.name())))
            }
        }
    }

    fn on_ke(
        &mut self,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        if header.flags.encrypted() {
            return Err(Refusal::dropped("encrypted message where KE is due"));
        }
        let message = Message::decode(octets, Rules::PHASE1_CLEAR).map_err(Refusal::dropped)?;
        let expected = [PayloadType::Ke, PayloadType::Nonce, PayloadType::NatD];
        let mut heard = Heard::from_payloads(message.payloads, &expected)?;
        let (g_xi, ni) = heard.key_exchange(self.suite, None)?;
        self.wanted |= heard.wants_certificate;
        if self.nat_traversal {
            let found = self.ends.examine(self.suite.hash, self.cookies, &heard.nat_d);
            self.nat = found.unwrap_or_default();
        }
        let mut nr = [0; NONCE_LEN];
        entropy.fill(&mut nr);
        let job = Job::DhRespond { group: self.suite.group, peer_public: g_xi.clone() };
        self.state = State::Compute { question: Bytes::copy_from_slice(octets), ni, g_xi, nr };
        Ok(vec![Step::Run(job)])
    }

    /// Keys and proofs, once g^xy is there.
    fn proof(
        &self,
        exchange: ExchangeType,
        (ni, nr): (&[u8], &[u8]),
        (g_xi, g_xr): (&[u8], &[u8]),
        shared: &SecretBytes,
    ) -> Proof {
        Proof::new(&Facts {
            exchange,
            suite: self.suite,
            cookies: self.cookies,
            basis: self.credential.basis(),
            ni,
            nr,
            g_xi,
            g_xr,
            shared,
            sai_b: &self.sai_b,
            double_hash: self.policy.dialect.ecdsa_double_hash,
        })
    }

    /// The result of the job asked for last.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] when the peer's public value was invalid in main mode: the half-open state is kept, the
    /// message may be forged. [`Refusal::Failed`] when a proof failed.
    pub fn on_done(&mut self, now: Now, done: Done, entropy: &mut dyn Entropy) -> Result<Vec<Step>, Refusal> {
        match (std::mem::replace(&mut self.state, State::Over), done) {
            (State::Compute { question, ni, g_xi, nr }, Done::Responded(result)) => {
                self.state = State::AwaitKe;
                let (g_xr, shared) = result.map_err(|error| self.count_invalid(error))?;
                self.failures = 0;
                let proof = self.proof(ExchangeType::MainMode, (&ni, &nr), (&g_xi, &g_xr), &shared);
                let names = self.credential.requests();
                let extras = Extras { vendors: Vec::new(), nat_d: self.nat_d() };
                let answer = self.clear(messages::key_exchange(&g_xr, &nr, &names, &extras));
                self.answered = Answered::new(question, answer.clone());
                self.state = State::AwaitAuth { proof: Box::new(proof) };
                Ok(vec![Step::Send(answer)])
            }
            (State::Verify { proof, claim }, Done::Phase1Verified(proved)) => {
                let proved = self.proved(now, &proof, &claim, proved, entropy)?;
                self.prove(now, proof, claim, proved)
            }
            (State::Sign { proof, claim, proved }, Done::Phase1Signed(signature)) => {
                let signature =
                    signature.map_err(|error| Refusal::failed(format!("our certificate's key: {error}")))?;
                self.send_auth(now, &proof, claim, proved, Payload::Sig(signature))
            }
            (State::ComputeFirst { answer, ni, g_xi, nr, id }, Done::Responded(result)) => {
                let (g_xr, shared) = result.map_err(Refusal::failed)?;
                let exchange = ExchangeType::Aggressive;
                let proof = Box::new(self.proof(exchange, (&ni, &nr), (&g_xi, &g_xr), &shared));
                self.prove_first(now, (answer, g_xr, nr), proof, id, entropy)
            }
            (State::SignFirst { answer, g_xr, nr, proof, id }, Done::Phase1Signed(signature)) => {
                let signature =
                    signature.map_err(|error| Refusal::failed(format!("our certificate's key: {error}")))?;
                let payload = Payload::Sig(signature);
                Ok(self.send_second(now, (answer, g_xr, nr), proof, id, payload, entropy))
            }
            (State::VerifyThird { proof, claim }, Done::Phase1Verified(proved)) => {
                let proved = self.proved(now, &proof, &claim, proved, entropy)?;
                Ok(vec![self.established(now, &proof, claim, proved, None)])
            }
            (state, _) => {
                let name = state.name();
                self.state = state;
                Err(Refusal::Dropped(format!("no such job in state {name}")))
            }
        }
    }

    /// A public value that was none: it may be forged, and each costs a computation.
    fn count_invalid(&mut self, reason: impl ToString) -> Refusal {
        self.failures += 1;
        if self.failures < MAX_REPEATS { Refusal::dropped(reason) } else { Refusal::failed(reason) }
    }

    /// A message that did not decrypt or did not fit: kept three times, the last one ends it. Who gave another proof
    /// than the right one under the right keys is told.
    fn count_failure(&mut self, now: Now, unproved: Unproved, entropy: &mut dyn Entropy) -> Refusal {
        self.failures += 1;
        let Unproved { refusal, read } = unproved;
        if self.failures < MAX_FAILURES {
            return refusal;
        }
        match (std::mem::replace(&mut self.state, State::Over), read) {
            (State::AwaitAuth { proof } | State::AwaitThird { proof, .. }, Some((id, last_block))) => {
                let early = self.sa(now, &proof, &id, last_block);
                Refusal::told(refusal, NotifyType::AuthenticationFailed, early, entropy)
            }
            _ => Refusal::failed(refusal),
        }
    }

    fn on_auth(
        &mut self,
        now: Now,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        let State::AwaitAuth { proof } = &self.state else { return Err(Refusal::dropped("no proof is due")) };
        let opened = proof.open(&proof.first_iv, header, octets).map_err(Unproved::from);
        let checked = opened.and_then(|(mut heard, last_block)| {
            let (Some(id), Some(presented)) = (heard.id.take(), heard.proof(self.suite.method)) else {
                return Err(proof.garbage("no ID or no proof").into());
            };
            let chain = std::mem::take(&mut heard.certificates);
            let context = VerifyContext { side: Role::Initiator, id: &id, chain, now };
            let job = match proof.check(&self.credential, presented, context) {
                Ok(job) => job,
                Err(refusal) => return Err(Unproved { refusal, read: Some((id, last_block)) }),
            };
            let cookies = self.cookies.octets();
            let initial_contact = heard.notifies.iter().any(|notify| {
                NotifyType::from_number(notify.kind) == NotifyType::InitialContact
                    && notify::about(notify, &cookies)
            });
            let question = Bytes::copy_from_slice(octets);
            Ok((job, heard.wants_certificate, Claim { id, initial_contact, question, last_block }))
        });
        let (job, wanted, claim) = checked.map_err(|unproved| self.count_failure(now, unproved, entropy))?;
        let State::AwaitAuth { proof } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::dropped("no proof is due"));
        };
        self.wanted |= wanted;
        match job {
            None => {
                let proved = self.proved(now, &proof, &claim, Ok(Proved::default()), entropy)?;
                self.prove(now, proof, claim, proved)
            }
            Some(job) => {
                self.state = State::Verify { proof, claim };
                Ok(vec![Step::Run(job)])
            }
        }
    }

    /// Whether the peer proved an identity, and one it may claim: chain, signature, then policy (RFC 4945 section 3.1).
    fn proved(
        &self,
        now: Now,
        proof: &Proof,
        claim: &Claim,
        proved: Result<Proved, ProofError>,
        entropy: &mut dyn Entropy,
    ) -> Result<Proved, Refusal> {
        let id = &claim.id;
        let (reason, kind) = match proved {
            Ok(proved) if self.policy.admits(id, self.ends.peer.ip()) => return Ok(proved),
            Ok(_) => {
                let reason = format!("identity {id} is not the one this gateway may claim");
                (reason, NotifyType::InvalidIdInformation)
            }
            Err(error) => {
                (format!("{id} did not prove who it is: {error}"), NotifyType::AuthenticationFailed)
            }
        };
        let early = self.sa(now, proof, id, claim.last_block);
        Err(Refusal::told(reason, kind, early, entropy))
    }

    fn prove(
        &mut self,
        now: Now,
        proof: Box<Proof>,
        claim: Claim,
        proved: Proved,
    ) -> Result<Vec<Step>, Refusal> {
        match proof.prove(Role::Responder, &self.local_identity(), &self.credential) {
            Proving::Ready(payload) => self.send_auth(now, &proof, claim, proved, payload),
            Proving::Sign(job) => {
                self.state = State::Sign { proof, claim, proved };
                Ok(vec![Step::Run(job)])
            }
        }
    }

    fn send_auth(
        &mut self,
        now: Now,
        proof: &Proof,
        claim: Claim,
        proved: Proved,
        payload: Payload,
    ) -> Result<Vec<Step>, Refusal> {
        let chain = self.credential.certificates(self.wanted);
        let payloads = messages::authentication(&self.local_identity(), chain, &[], payload, Vec::new());
        let (answer, last_block) = proof.seal(&claim.last_block, &payloads);
        self.answered = Answered::new(claim.question.clone(), answer.clone());
        let established = self.established(now, proof, claim, proved, Some(last_block));
        Ok(vec![Step::Send(answer), established])
    }

    fn sa(&self, now: Now, proof: &Proof, id: &Identification, last_block: [u8; 16]) -> IkeSa {
        let (local, expires) = (self.local_identity(), now.at + self.life);
        let ends = SaEnds { peer: id, local: &local, expires, dialect: self.policy.dialect };
        let mut sa = proof.sa(Role::Responder, last_block, ends);
        sa.peer_does_dpd = self.dpd;
        sa.nat = self.nat;
        sa.fragments = self.fragments;
        sa
    }

    /// `last_block` is ours where we had the last word, else the claim's.
    fn established(
        &mut self,
        now: Now,
        proof: &Proof,
        claim: Claim,
        proved: Proved,
        last_block: Option<[u8; 16]>,
    ) -> Step {
        self.state = State::Over;
        let mut sa = self.sa(now, proof, &claim.id, last_block.unwrap_or(claim.last_block));
        sa.certificate = proved.certificate;
        Step::Established(Box::new(Established {
            sa,
            initial_contact: claim.initial_contact,
            remark: proved.remark,
            answered: None,
        }))
    }

    fn local_identity(&self) -> Identification {
        self.policy.own_identity(self.ends.local.ip())
    }
}

/// True for the header of a first message of `exchange`.
fn is_first(header: &Header, exchange: ExchangeType) -> bool {
    header.exchange == exchange
        && header.message_id.0 == 0
        && !header.flags.encrypted()
        && header.cookies.responder.is_zero()
}

/// A clear message whose SA comes first (RFC 2409 section 5).
fn read(octets: &[u8], rules: Rules, expected: &[PayloadType]) -> Result<Heard, Refusal> {
    let message = Message::decode(octets, rules).map_err(Refusal::dropped)?;
    if !matches!(message.payloads.first(), Some(Payload::Sa(_))) {
        return Err(Refusal::dropped("SA is not first"));
    }
    Heard::from_payloads(message.payloads, expected)
}
