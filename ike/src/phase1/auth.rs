//! Keys and proofs of phase 1 (RFC 2409 section 5): with a pre-shared key HASH_I and HASH_R are the proofs, with
//! signatures they are what is signed.

use std::fmt;

use bytes::Bytes;
use gdoi_proto::header::{Flags, HEADER_LEN, Header};
use gdoi_proto::ids::{CookiePair, MessageId};
use gdoi_proto::message::{Chain, Dialect, Rules, encode_chain};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_proto::secret::SecretBytes;

use super::credentials::Credential;
use super::messages::{Heard, id_body};
use super::{Refusal, VerifyContext};
use crate::crypto::cipher::CipherKey;
use crate::crypto::prf::{hash as digest, prf};
use crate::crypto::provider::{Job, ProofCheck};
use crate::crypto::skeyid::{Skeyid, phase1_iv};
use crate::crypto::{AuthMethod, Suite};
use crate::io::Instant;
use crate::sa::{IkeSa, Role, SaKeys};

/// Public facts both proofs cover, and the keys derived from the shared secret.
pub struct Proof {
    exchange: ExchangeType,
    suite: Suite,
    cookies: CookiePair,
    skeyid: Skeyid,
    /// Key of every HASH(n).
    pub skeyid_a: SecretBytes,
    /// Cipher key.
    pub key: CipherKey,
    g_xi: Vec<u8>,
    g_xr: Vec<u8>,
    sai_b: Vec<u8>,
    /// IV of the first encrypted message.
    pub first_iv: [u8; 16],
    double_hash: bool,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proof({})", self.suite)
    }
}

/// What SKEYID is made from.
#[derive(Debug, Clone, Copy)]
pub enum Basis<'a> {
    /// prf(pre-shared key, Ni_b | Nr_b).
    PreSharedKey(&'a SecretBytes),
    /// prf(Ni_b | Nr_b, g^xy).
    Signatures,
}

/// What [`Proof::new`] is made from.
pub struct Facts<'a> {
    /// Main mode or aggressive mode.
    pub exchange: ExchangeType,
    /// What was negotiated.
    pub suite: Suite,
    /// CKY-I and CKY-R.
    pub cookies: CookiePair,
    /// By the method.
    pub basis: Basis<'a>,
    /// Ni_b.
    pub ni: &'a [u8],
    /// Nr_b.
    pub nr: &'a [u8],
    /// KE_b of the initiator.
    pub g_xi: &'a [u8],
    /// KE_b of the responder.
    pub g_xr: &'a [u8],
    /// g^xy.
    pub shared: &'a SecretBytes,
    /// SA body of message 1 as sent.
    pub sai_b: &'a [u8],
    /// `ecdsa-double-hash`: HASH_I and HASH_R keep the negotiated hash, and ECDSA hashes them once more.
    pub double_hash: bool,
}

/// A proof of ours: ready, or to be asked for.
#[derive(Debug)]
pub(super) enum Proving {
    /// HASH_I or HASH_R.
    Ready(Payload),
    /// SIG_I or SIG_R comes as [`crate::crypto::provider::Done::Phase1Signed`].
    Sign(Job),
}

impl Proof {
    /// Derives the keys.
    pub fn new(facts: &Facts<'_>) -> Proof {
        let hash = facts.suite.hash;
        let skeyid = match facts.basis {
            Basis::PreSharedKey(key) => Skeyid::pre_shared(hash, key, facts.ni, facts.nr),
            Basis::Signatures => Skeyid::signatures(hash, facts.ni, facts.nr, facts.shared),
        };
        let derived = skeyid.derive(facts.shared, facts.cookies);
        Proof {
            exchange: facts.exchange,
            suite: facts.suite,
            cookies: facts.cookies,
            key: derived.cipher_key(hash, facts.suite.cipher),
            skeyid_a: derived.a,
            skeyid,
            g_xi: facts.g_xi.to_vec(),
            g_xr: facts.g_xr.to_vec(),
            sai_b: facts.sai_b.to_vec(),
            first_iv: phase1_iv(hash, facts.g_xi, facts.g_xr),
            double_hash: facts.double_hash,
        }
    }

    /// HASH_I over the initiator's identity, or HASH_R over the responder's. ECDSA methods fix their hash (RFC 2409
    /// section 5.1 with RFC 4754 section 4); SKEYID and everything else keep the negotiated one.
    pub fn hash(&self, side: Role, id: &Identification) -> SecretBytes {
        let (i, r) = (self.cookies.initiator.0, self.cookies.responder.0);
        let (own, other, first, second) = match side {
            Role::Initiator => (&self.g_xi, &self.g_xr, &i, &r),
            Role::Responder => (&self.g_xr, &self.g_xi, &r, &i),
        };
        let hash = match self.suite.method.own_hash() {
            Some(own) if !self.double_hash => own,
            Some(_) | None => self.suite.hash,
        };
        prf(hash, self.skeyid.skeyid.expose(), &[own, other, first, second, &self.sai_b, &id_body(id)])
    }

    /// What a signature of `side` covers: the hash itself, or with `ecdsa-double-hash` its hash.
    pub fn signed(&self, side: Role, id: &Identification) -> SecretBytes {
        let hash = self.hash(side, id);
        match self.suite.method.own_hash() {
            Some(own) if self.double_hash => SecretBytes::new(digest(own, &[hash.expose()])),
            Some(_) | None => hash,
        }
    }

    /// Our proof, as `side`, of `id`.
    pub(super) fn prove(&self, side: Role, id: &Identification, credential: &Credential) -> Proving {
        match credential {
            Credential::PreSharedKey(_) => {
                Proving::Ready(Payload::Hash(self.hash(side, id).expose().to_vec()))
            }
            Credential::Certificate { own, .. } => {
                let digest = self.signed(side, id);
                Proving::Sign(Job::Phase1Sign { signer: own.signer.clone(), digest })
            }
        }
    }

    /// The check of the peer's proof: none when it is done and good, else the job that does it.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] for a HASH that does not fit.
    pub(super) fn check(
        &self,
        credential: &Credential,
        presented: Vec<u8>,
        context: VerifyContext<'_>,
    ) -> Result<Option<Job>, Refusal> {
        let VerifyContext { side, id, chain, now } = context;
        match credential {
            Credential::PreSharedKey(_) if self.hash(side, id).ct_eq(&presented) => Ok(None),
            Credential::PreSharedKey(_) => Err(Refusal::dropped(match side {
                Role::Initiator => "HASH_I mismatch",
                Role::Responder => "HASH_R mismatch",
            })),
            Credential::Certificate { trust, .. } => Ok(Some(Job::Phase1Verify(Box::new(ProofCheck {
                method: self.suite.method,
                chain,
                id: id.clone(),
                unix_seconds: now.unix_seconds,
                trust: trust.clone(),
                digest: self.signed(side, id),
                signature: presented.into(),
            })))),
        }
    }

    /// Encrypts a message; the last ciphertext block is the next IV.
    pub fn seal(&self, iv: &[u8; 16], payloads: &[Payload]) -> (Bytes, [u8; 16]) {
        let (next, plain) = encode_chain(payloads);
        let sealed = self.key.encrypt(iv, &plain);
        let header = Header {
            cookies: self.cookies,
            next,
            exchange: self.exchange,
            flags: Flags::ENCRYPTION,
            message_id: MessageId(0),
            length: (HEADER_LEN + sealed.len()) as u32,
        };
        let last = last_block(&sealed);
        ([&header.encode()[..], &sealed].concat().into(), last)
    }

    /// Decrypts a message with a copy of the IV. The last ciphertext block is the next IV.
    ///
    /// # Errors
    /// [`Refusal::Dropped`]: what does not decrypt to a chain is usually the sign of another pre-shared key.
    pub fn open(&self, iv: &[u8; 16], header: &Header, octets: &[u8]) -> Result<(Heard, [u8; 16]), Refusal> {
        if !header.flags.encrypted() {
            return Err(Refusal::dropped("clear message where an encrypted one is due"));
        }
        let sealed = octets.get(HEADER_LEN..).unwrap_or_default();
        let plain =
            self.key.decrypt(iv, sealed).ok_or_else(|| Refusal::dropped("not whole cipher blocks"))?;
        let chain =
            Chain::decode(header.next, &plain, Rules::PHASE1_OPENED).map_err(|error| self.garbage(error))?;
        let payloads = chain.payloads.into_iter().map(|located| located.payload);
        let expected = match self.exchange {
            ExchangeType::Aggressive => &AGGRESSIVE_THIRD,
            _ => &MAIN_PROOFS,
        };
        let heard = Heard::from_payloads(payloads, expected).map_err(|error| self.garbage(error))?;
        Ok((heard, last_block(sealed)))
    }

    /// What is missing or misplaced in a message that did decrypt to something.
    pub(super) fn garbage(&self, why: impl fmt::Display) -> Refusal {
        Refusal::Dropped(match self.suite.method {
            AuthMethod::PreSharedKey => {
                format!("message does not decrypt, probable pre-shared key mismatch ({why})")
            }
            _ => format!("message does not decrypt ({why})"),
        })
    }

    /// The SA this proof leads to. `last_block` is the last ciphertext block of phase 1 so far.
    pub(super) fn sa(&self, role: Role, last_block: [u8; 16], ends: SaEnds<'_>) -> IkeSa {
        let keys =
            SaKeys { skeyid_a: self.skeyid_a.clone(), key: self.key.clone(), last_phase1_block: last_block };
        IkeSa::new(
            self.cookies,
            self.suite,
            role,
            ends.peer.clone(),
            ends.local.clone(),
            ends.expires,
            ends.dialect,
            keys,
        )
    }
}

/// Who stands at the ends of an SA, and until when.
#[derive(Clone, Copy)]
pub(super) struct SaEnds<'a> {
    pub(super) peer: &'a Identification,
    pub(super) local: &'a Identification,
    pub(super) expires: Instant,
    pub(super) dialect: Dialect,
}

/// Payloads of main mode 5 and 6; a DELETE among them says nothing yet and is ignored.
const MAIN_PROOFS: [PayloadType; 4] =
    [PayloadType::Id, PayloadType::Hash, PayloadType::Sig, PayloadType::Delete];
/// Payloads of aggressive mode 3.
const AGGRESSIVE_THIRD: [PayloadType; 4] =
    [PayloadType::Hash, PayloadType::Sig, PayloadType::NatD, PayloadType::Delete];

fn last_block(sealed: &[u8]) -> [u8; 16] {
    sealed.last_chunk::<16>().copied().unwrap_or_default()
}
