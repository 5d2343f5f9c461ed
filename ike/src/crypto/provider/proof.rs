//! Signatures of phase 1: the private key of a certificate, and what must hold before a peer's signature counts. Whether
//! a chain of certificates proves an identity is decided behind [`PeerTrust`]; it runs with the signature as one job.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use gdoi_proto::payload::Identification;
use gdoi_proto::secret::SecretBytes;
use thiserror::Error;

use super::{CryptoError, Provider};
use crate::crypto::AuthMethod;

/// Certificates of a message tried as the end entity: peers send it first, but the order is free (RFC 4945 section
/// 3.3.10).
const MAX_CANDIDATES: usize = 4;

/// The private key of a certificate. It signs the phase 1 hash itself.
pub trait ProofSigner: Send + Sync {
    /// The method it serves.
    fn method(&self) -> AuthMethod;

    /// DER SubjectPublicKeyInfo, to be compared with the certificate's.
    fn public_key(&self) -> &[u8];

    /// Signature over `digest` as it is, not hashed again: RSA as a PKCS#1 type 1 block without DigestInfo (RFC 2409
    /// section 5.1), ECDSA as r | s of 64, 96 or 132 octets (RFC 4754 section 7).
    ///
    /// # Errors
    /// [`CryptoError`] when the digest does not fit the key or the library fails.
    fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, CryptoError>;
}

impl fmt::Debug for dyn ProofSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProofSigner({:?})", self.method())
    }
}

/// Decides whether a certificate chain proves an identity, and gives the key to verify with.
pub trait PeerTrust: Send + Sync + fmt::Debug {
    /// The DER SubjectPublicKeyInfo of the end entity when `chain` (DER certificates, end entity first, the rest in any
    /// order) leads to a trust anchor and certifies `id`, the claimed phase 1 identity.
    ///
    /// # Errors
    /// Text for the log that names which half failed: the chain, or the name.
    fn check(&self, chain: &[Vec<u8>], id: &Identification, unix_seconds: u64) -> Result<Vec<u8>, String>;

    /// DER distinguished names of the trust anchors, for CERTREQ payloads.
    fn anchors(&self) -> Vec<Vec<u8>>;

    /// In a rehearsal (`verification = "rehearse"`): the end entity's key whatever [`PeerTrust::check`] said, which is
    /// then only logged. None, the default, refuses.
    fn rehearse(&self, chain: &[Vec<u8>]) -> Option<Vec<u8>> {
        let _ = chain;
        None
    }
}

/// A peer's signature to check, with the certificates it came with.
pub struct ProofCheck {
    /// What was negotiated.
    pub method: AuthMethod,
    /// DER certificates in the order received.
    pub chain: Vec<Vec<u8>>,
    /// The claimed identity.
    pub id: Identification,
    /// Wall clock, seconds since 1970.
    pub unix_seconds: u64,
    /// Who decides on the chain.
    pub trust: Arc<dyn PeerTrust>,
    /// HASH_I or HASH_R.
    pub digest: SecretBytes,
    /// The SIG body.
    pub signature: Bytes,
}

impl fmt::Debug for ProofCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProofCheck({:?}, {}, {} certificates)", self.method, self.id, self.chain.len())
    }
}

/// A peer proved its identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proved {
    /// What would have been refused but for a rehearsal.
    pub remark: Option<String>,
}

/// Why a peer did not prove its identity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProofError {
    /// The chain does not lead to an anchor, or certifies another name; the text says which.
    #[error("{0}")]
    Certificate(String),
    /// The certified key did not make the signature.
    #[error("{0}")]
    Signature(#[from] CryptoError),
}

impl ProofCheck {
    /// Chain and name first, then the signature with the key of the end entity (RFC 4945 section 3.1).
    pub(super) fn run(&self, provider: &dyn Provider) -> Result<Proved, ProofError> {
        let (public_key, remark) = self.certified_key()?;
        provider.verify_proof(self.method, &public_key, self.digest.expose(), &self.signature)?;
        Ok(Proved { remark })
    }

    fn certified_key(&self) -> Result<(Vec<u8>, Option<String>), ProofError> {
        if self.chain.is_empty() {
            return Err(ProofError::Certificate("the peer sent no certificate".to_owned()));
        }
        let mut first_reason = None;
        for candidate in 0..self.chain.len().min(MAX_CANDIDATES) {
            let mut chain = self.chain.clone();
            chain.rotate_left(candidate);
            match self.trust.check(&chain, &self.id, self.unix_seconds) {
                Ok(public_key) => return Ok((public_key, None)),
                Err(reason) => {
                    first_reason.get_or_insert(reason);
                }
            }
        }
        let reason = first_reason.unwrap_or_default();
        match self.trust.rehearse(&self.chain) {
            Some(public_key) => Ok((public_key, Some(reason))),
            None => Err(ProofError::Certificate(reason)),
        }
    }
}
