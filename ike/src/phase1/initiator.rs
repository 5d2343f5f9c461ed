//! The member's side of phase 1, in the order of the states:
//!
//! ```text
//! main        SentSa -> MakeKey -> SentKe -> Agree -> [Sign] -> SentAuth -> [Verify] -> established
//! aggressive  MakeFirst -> SentFirst -> AgreeFirst -> [VerifyFirst] -> [SignThird] -> established
//! ```
//!
//! The states in brackets belong to signatures. Aggressive mode is in `initiator/aggressive.rs`.

mod aggressive;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, NotifyType, PayloadType};

use super::auth::{Facts, Proof, Proving, SaEnds};
use super::messages::{self, Extras, Heard};
use super::nat::{Behind, Ends, VENDOR_NAT_T};
use super::proposal::{self, Reading};
use super::responder::Answered;
use super::{
    Credential, Established, MAX_FAILURES, Mode, NONCE_LEN, PeerPolicy, Refusal, Step, VENDOR_DPD,
    VerifyContext,
};
use crate::crypto::AuthMethod;
use crate::crypto::provider::{CryptoError, DhKey, Done, Job, ProofError, Proved};
use crate::fragment::VENDOR_FRAGMENTATION;
use crate::io::{Entropy, Instant, Now};
use crate::protect::notify::{self, Informational};
use crate::retransmit::{Attempt, Retransmit, Schedule};
use crate::sa::{IkeSa, Role};

/// A phase 1 this side started.
#[derive(Debug)]
pub struct Initiator {
    policy: PeerPolicy,
    local: Identification,
    ends: Ends,
    nat: Behind,
    fragments: bool,
    initial_contact: bool,
    cookies: CookiePair,
    sai_b: Bytes,
    nonce: [u8; NONCE_LEN],
    last_sent: Bytes,
    retransmit: Retransmit,
    /// Proofs of the server that did not fit.
    failures: u32,
    state: State,
}

/// What the server's SA settled.
#[derive(Debug)]
struct Agreed {
    reading: Reading,
    dpd: bool,
    /// Both sides do NAT traversal.
    nat_traversal: bool,
    credential: Credential,
    /// The server asked for our certificates.
    wanted: bool,
}

enum State {
    SentSa,
    MakeKey { agreed: Agreed },
    SentKe { agreed: Agreed, key: Box<dyn DhKey> },
    Agree { agreed: Agreed, g_xi: Vec<u8>, g_xr: Bytes, nr: Vec<u8> },
    Sign { agreed: Agreed, proof: Box<Proof> },
    SentAuth { agreed: Agreed, proof: Box<Proof>, iv: [u8; 16] },
    Verify { agreed: Agreed, proof: Box<Proof>, id: Identification, last_block: [u8; 16] },
    MakeFirst,
    SentFirst { key: Box<dyn DhKey> },
    AgreeFirst { agreed: Agreed, g_xi: Vec<u8>, second: aggressive::Second },
    VerifyFirst { agreed: Agreed, proof: Box<Proof>, id: Identification, question: Bytes },
    SignThird { agreed: Agreed, proof: Box<Proof>, id: Identification, question: Bytes, proved: Proved },
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
            State::Sign { .. } => "Sign",
            State::SentAuth { .. } => "SentAuth",
            State::Verify { .. } => "Verify",
            State::MakeFirst => "MakeFirst",
            State::SentFirst { .. } => "SentFirst",
            State::AgreeFirst { .. } => "AgreeFirst",
            State::VerifyFirst { .. } => "VerifyFirst",
            State::SignThird { .. } => "SignThird",
            State::Over => "Over",
        }
    }
}

impl Initiator {
    /// A phase 1 between `ends`, in the policy's mode.
    pub fn start(
        policy: PeerPolicy,
        ends: Ends,
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
        let local = policy.own_identity(ends.local.ip());
        let mut initiator = Initiator {
            sai_b: Bytes::new(),
            local,
            ends,
            nat: Behind::default(),
            fragments: false,
            initial_contact,
            cookies: CookiePair { initiator: Cookie(cookie), responder: Cookie::ZERO },
            nonce,
            last_sent: Bytes::new(),
            retransmit: Retransmit::sent(Schedule::PHASE1, now, entropy),
            failures: 0,
            state: State::SentSa,
            policy,
        };
        let step = match initiator.policy.mode {
            Mode::Main => {
                let offer = messages::offer(proposal::offer(&initiator.policy), &initiator.extras());
                let first = initiator.clear(offer);
                initiator.sai_b = messages::sa_body(&first);
                initiator.last_sent = first.clone();
                Step::Send(first)
            }
            Mode::Aggressive => initiator.make_first(),
        };
        (initiator, vec![step])
    }

    /// CKY-I, by which answers find their way.
    pub fn cookie(&self) -> Cookie {
        self.cookies.initiator
    }

    /// Who is behind a NAT, as far as is known. Once there is one, everything goes between the ports of NAT traversal,
    /// beginning with the next message (RFC 3947 section 4): the owner moves its ends and says so with
    /// [`Initiator::moved`].
    pub fn nat(&self) -> Behind {
        self.nat
    }

    /// True once both sides announced fragmentation: long messages go in fragments from now on.
    pub fn fragments(&self) -> bool {
        self.fragments
    }

    /// Where the negotiation runs from now on.
    pub fn moved(&mut self, ends: Ends) {
        self.ends = ends;
    }

    /// The state's name, for refusals and tables.
    pub fn state(&self) -> &'static str {
        self.state.name()
    }

    /// True until the server answered anything that fits.
    pub fn is_unanswered(&self) -> bool {
        matches!(self.state, State::SentSa | State::MakeFirst | State::SentFirst { .. })
    }

    /// True while no keys are agreed: whatever the server says comes in clear.
    pub fn is_without_keys(&self) -> bool {
        matches!(
            self.state,
            State::SentSa
                | State::MakeKey { .. }
                | State::SentKe { .. }
                | State::MakeFirst
                | State::SentFirst { .. }
        )
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
            Attempt::Again if !self.last_sent.is_empty() => Ok(vec![Step::Send(self.last_sent.clone())]),
            Attempt::Wait | Attempt::Again => Ok(Vec::new()),
            Attempt::GiveUp => {
                // The peer cannot read what another key sealed, and must not answer it.
                let hint = match &self.state {
                    State::SentAuth { agreed, .. } => match agreed.reading.suite.method {
                        AuthMethod::PreSharedKey => {
                            ": the server did not accept message 5: another pre-shared key or identity?"
                        }
                        _ => ": the server did not accept message 5: another identity or certificate?",
                    },
                    _ => "",
                };
                Err(Refusal::failed(format!("no answer in state {}{hint}", self.state.name())))
            }
        }
    }

    fn send(&mut self, octets: Bytes, now: Now, entropy: &mut dyn Entropy) -> Vec<Step> {
        self.last_sent = octets.clone();
        self.retransmit = Retransmit::sent(Schedule::PHASE1, now.at, entropy);
        vec![Step::Send(octets)]
    }

    fn clear(&self, payloads: Vec<Payload>) -> Bytes {
        messages::clear(self.policy.mode.exchange(), self.cookies, payloads)
    }

    /// What our first message carries besides its own payloads.
    fn extras(&self) -> Extras {
        let mut vendors = vec![VENDOR_DPD.to_vec()];
        if self.policy.nat_traversal {
            vendors.push(VENDOR_NAT_T.to_vec());
        }
        if self.policy.fragmentation {
            vendors.push(VENDOR_FRAGMENTATION.to_vec());
        }
        Extras { vendors, nat_d: Vec::new() }
    }

    /// What shows the server whether a NAT is between us.
    fn nat_d(&self, agreed: &Agreed) -> Extras {
        let hash = agreed.reading.suite.hash;
        let nat_d = if agreed.nat_traversal { self.ends.hashes(hash, self.cookies) } else { Vec::new() };
        Extras { vendors: Vec::new(), nat_d }
    }

    /// What the hashes of the server's message show.
    fn examine(&mut self, agreed: &Agreed, heard: &Heard) {
        if agreed.nat_traversal {
            let found = self.ends.examine(agreed.reading.suite.hash, self.cookies, &heard.nat_d);
            self.nat = found.unwrap_or_default();
        }
    }

    /// A message of the server.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] leaves everything as it was; [`Refusal::Failed`] ends the negotiation.
    pub fn on_message(
        &mut self,
        now: Now,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        if header.exchange != self.policy.mode.exchange() || header.message_id.0 != 0 {
            return Err(Refusal::dropped("not a message of this phase 1"));
        }
        match &self.state {
            State::SentSa => self.on_sa(header, octets),
            State::SentKe { .. } => self.on_ke(header, octets),
            State::SentAuth { .. } => self.on_auth(now, header, octets, entropy),
            State::SentFirst { .. } => self.on_second(header, octets),
            State::MakeKey { .. }
            | State::Agree { .. }
            | State::Sign { .. }
            | State::Verify { .. }
            | State::MakeFirst
            | State::AgreeFirst { .. }
            | State::VerifyFirst { .. }
            | State::SignThird { .. }
            | State::Over => {
                Err(Refusal::Dropped(format!("nothing expected in state {}", self.state.name())))
            }
        }
    }

    /// What the SA of an answer settles.
    fn agree(&self, header: &Header, heard: &Heard) -> Result<Agreed, Refusal> {
        if header.flags.encrypted() || header.cookies.responder.is_zero() {
            return Err(Refusal::dropped("not a message 2"));
        }
        if header.cookies.responder == header.cookies.initiator {
            return Err(Refusal::dropped("the peer's cookie is ours"));
        }
        let sa = heard.sa.as_ref().ok_or_else(|| Refusal::dropped("no SA"))?;
        let reading = proposal::accept(sa, &self.policy)?;
        let credential = self.policy.credentials.for_method(reading.suite.method);
        let credential = credential.ok_or_else(|| Refusal::dropped("a method that was not offered"))?;
        Ok(Agreed {
            reading,
            dpd: heard.announces_dpd(),
            nat_traversal: self.policy.nat_traversal && heard.announces_nat_traversal(),
            credential,
            wanted: heard.wants_certificate,
        })
    }

    fn read(&self, octets: &[u8], expected: &[PayloadType]) -> Result<Heard, Refusal> {
        let rules = Rules::PHASE1_CLEAR.for_dialect(self.policy.dialect);
        let message = Message::decode(octets, rules).map_err(Refusal::dropped)?;
        if expected.contains(&PayloadType::Sa) && !matches!(message.payloads.first(), Some(Payload::Sa(_))) {
            return Err(Refusal::dropped("SA is not first"));
        }
        Heard::from_payloads(message.payloads, expected)
    }

    fn on_sa(&mut self, header: &Header, octets: &[u8]) -> Result<Vec<Step>, Refusal> {
        let heard = self.read(octets, &[PayloadType::Sa])?;
        let agreed = self.agree(header, &heard)?;
        self.cookies.responder = header.cookies.responder;
        self.fragments = self.policy.fragmentation && heard.announces_fragmentation();
        let group = agreed.reading.suite.group;
        self.state = State::MakeKey { agreed };
        Ok(vec![Step::Run(Job::DhGenerate { group })])
    }

    fn on_ke(&mut self, header: &Header, octets: &[u8]) -> Result<Vec<Step>, Refusal> {
        if header.cookies != self.cookies || header.flags.encrypted() {
            return Err(Refusal::dropped("not a message 4"));
        }
        let mut heard = self.read(octets, &[PayloadType::Ke, PayloadType::Nonce, PayloadType::NatD])?;
        let State::SentKe { agreed, key } = &self.state else {
            return Err(Refusal::dropped("no KE is due"));
        };
        let (g_xr, nr) = heard.key_exchange(agreed.reading.suite, Some(&self.nonce))?;
        if key.public() == g_xr.as_ref() {
            return Err(Refusal::dropped("the peer's KE is ours"));
        }
        let State::SentKe { mut agreed, key } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::dropped("no KE is due"));
        };
        agreed.wanted |= heard.wants_certificate;
        self.examine(&agreed, &heard);
        self.state = State::Agree { agreed, g_xi: key.public().to_vec(), g_xr: g_xr.clone(), nr };
        Ok(vec![Step::Run(Job::DhAgree { key, peer_public: g_xr })])
    }

    fn on_auth(
        &mut self,
        now: Now,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        let State::SentAuth { agreed, proof, iv } = &self.state else {
            return Err(Refusal::dropped("no proof is due"));
        };
        if header.cookies != self.cookies {
            return Err(Refusal::dropped("other cookies"));
        }
        let (mut heard, last_block) = proof.open(iv, header, octets)?;
        let (Some(id), Some(presented)) = (heard.id.take(), heard.proof(agreed.reading.suite.method)) else {
            return Err(proof.garbage("no ID or no proof"));
        };
        let chain = std::mem::take(&mut heard.certificates);
        let context = VerifyContext { side: Role::Responder, id: &id, chain, now };
        let job = match proof.check(&agreed.credential, presented, context) {
            Ok(job) => job,
            Err(refusal) => {
                self.failures += 1;
                if self.failures < MAX_FAILURES {
                    return Err(refusal);
                }
                let sa = self.sa(now, agreed, proof, &id, last_block);
                self.state = State::Over;
                return Err(Refusal::told(refusal, NotifyType::AuthenticationFailed, sa, entropy));
            }
        };
        let State::SentAuth { agreed, proof, .. } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::dropped("no proof is due"));
        };
        match job {
            None => {
                let sa = self.sa(now, &agreed, &proof, &id, last_block);
                self.establish(sa, Proved::default(), None)
            }
            Some(job) => {
                self.state = State::Verify { agreed, proof, id, last_block };
                Ok(vec![Step::Run(job)])
            }
        }
    }

    fn sa(&self, now: Now, agreed: &Agreed, proof: &Proof, id: &Identification, last: [u8; 16]) -> IkeSa {
        let expires = now.at + agreed.reading.life;
        let ends = SaEnds { peer: id, local: &self.local, expires, dialect: self.policy.dialect };
        let mut sa = proof.sa(Role::Initiator, last, ends);
        sa.peer_does_dpd = agreed.dpd;
        sa.nat = self.nat;
        sa.fragments = self.fragments;
        sa
    }

    /// The peer proved its identity; is it the one we want (RFC 6407 section 3.1)?
    fn establish(
        &mut self,
        mut sa: IkeSa,
        proved: Proved,
        answered: Option<Answered>,
    ) -> Result<Vec<Step>, Refusal> {
        self.state = State::Over;
        sa.certificate = proved.certificate;
        if !self.policy.admits(&sa.peer_identity, self.ends.peer.ip()) {
            let id = &sa.peer_identity;
            return Err(Refusal::failed(format!("the peer is {id}, not the configured key server")));
        }
        let established = Established { sa, initial_contact: false, remark: proved.remark, answered };
        Ok(vec![Step::Established(Box::new(established))])
    }

    /// The result of the job asked for last.
    ///
    /// # Errors
    /// [`Refusal::Failed`] when it failed.
    pub fn on_done(&mut self, now: Now, done: Done, entropy: &mut dyn Entropy) -> Result<Vec<Step>, Refusal> {
        match (std::mem::replace(&mut self.state, State::Over), done) {
            (State::MakeKey { agreed }, Done::DhKey(key)) => {
                let key = key.map_err(Refusal::failed)?;
                let payloads = messages::key_exchange(key.public(), &self.nonce, &[], &self.nat_d(&agreed));
                let message = self.clear(payloads);
                self.state = State::SentKe { agreed, key };
                Ok(self.send(message, now, entropy))
            }
            (State::Agree { agreed, g_xi, g_xr, nr }, Done::Shared(shared)) => {
                let shared = shared.map_err(Refusal::failed)?;
                let proof = Box::new(Proof::new(&Facts {
                    exchange: ExchangeType::MainMode,
                    suite: agreed.reading.suite,
                    cookies: self.cookies,
                    basis: agreed.credential.basis(),
                    ni: &self.nonce,
                    nr: &nr,
                    g_xi: &g_xi,
                    g_xr: &g_xr,
                    shared: &shared,
                    sai_b: &self.sai_b,
                    double_hash: self.policy.dialect.ecdsa_double_hash,
                }));
                match proof.prove(Role::Initiator, &self.local, &agreed.credential) {
                    Proving::Ready(payload) => Ok(self.send_auth(now, agreed, proof, payload, entropy)),
                    Proving::Sign(job) => {
                        self.state = State::Sign { agreed, proof };
                        Ok(vec![Step::Run(job)])
                    }
                }
            }
            (State::Sign { agreed, proof }, Done::Phase1Signed(signature)) => {
                let signature = signed(signature)?;
                Ok(self.send_auth(now, agreed, proof, Payload::Sig(signature), entropy))
            }
            (State::Verify { agreed, proof, id, last_block }, Done::Phase1Verified(proved)) => {
                let sa = self.sa(now, &agreed, &proof, &id, last_block);
                self.on_verified(sa, proved, None, entropy)
            }
            (State::MakeFirst, Done::DhKey(key)) => {
                let key = key.map_err(Refusal::failed)?;
                Ok(self.send_first(now, key, entropy))
            }
            (State::AgreeFirst { agreed, g_xi, second }, Done::Shared(shared)) => {
                let shared = shared.map_err(Refusal::failed)?;
                self.on_shared(now, agreed, g_xi, second, &shared)
            }
            (State::VerifyFirst { agreed, proof, id, question }, Done::Phase1Verified(proved)) => {
                self.on_second_verified(now, agreed, proof, (id, question), proved, entropy)
            }
            (State::SignThird { agreed, proof, id, question, proved }, Done::Phase1Signed(signature)) => {
                let signature = signed(signature)?;
                self.send_third(now, agreed, &proof, (id, question), proved, Payload::Sig(signature))
            }
            (state, _) => {
                let name = state.name();
                self.state = state;
                Err(Refusal::Dropped(format!("no such job in state {name}")))
            }
        }
    }

    fn send_auth(
        &mut self,
        now: Now,
        agreed: Agreed,
        proof: Box<Proof>,
        payload: Payload,
        entropy: &mut dyn Entropy,
    ) -> Vec<Step> {
        let notifies = match self.initial_contact {
            true => vec![notify::initial_contact(self.cookies)],
            false => Vec::new(),
        };
        let chain = agreed.credential.certificates(agreed.wanted);
        let payloads =
            messages::authentication(&self.local, chain, &agreed.credential.requests(), payload, notifies);
        let (message, iv) = proof.seal(&proof.first_iv, &payloads);
        self.state = State::SentAuth { agreed, proof, iv };
        self.send(message, now, entropy)
    }

    fn on_verified(
        &mut self,
        sa: IkeSa,
        proved: Result<Proved, ProofError>,
        answered: Option<Answered>,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Step>, Refusal> {
        match proved {
            Ok(proved) => self.establish(sa, proved, answered),
            Err(error) => {
                let reason = format!("{} did not prove who it is: {error}", sa.peer_identity);
                Err(Refusal::told(reason, NotifyType::AuthenticationFailed, sa, entropy))
            }
        }
    }

    /// A protected informational message before the SA is up: an error in it ends the attempt, since the sender holds
    /// the keys (RFC 2409 section 5.7). Anything else is not for now.
    ///
    /// # Errors
    /// [`Refusal::Failed`] for an error notification, [`Refusal::Dropped`] otherwise.
    pub fn on_informational(&mut self, now: Now, header: &Header, octets: &[u8]) -> Result<(), Refusal> {
        let State::SentAuth { agreed, proof, iv } = &self.state else {
            return Err(Refusal::dropped("an informational message without keys to read it"));
        };
        if header.cookies != self.cookies {
            return Err(Refusal::dropped("other cookies"));
        }
        let mut early = self.sa(now, agreed, proof, &self.local, *iv);
        let said = notify::open(&mut early, header, octets).map_err(Refusal::dropped)?;
        for item in said.into_inner() {
            if let Informational::Notified(kind) = item
                && kind.number() < FIRST_STATUS
            {
                self.state = State::Over;
                return Err(Refusal::failed(format!("the server said {kind}")));
            }
        }
        Err(Refusal::dropped("no error in an informational message before phase 1 is up"))
    }
}

/// Notify types below this say that something failed (RFC 2408 section 3.14.1).
const FIRST_STATUS: u16 = 16384;

fn signed(signature: Result<Vec<u8>, CryptoError>) -> Result<Vec<u8>, Refusal> {
    signature.map_err(|error| Refusal::failed(format!("our certificate's key: {error}")))
}
