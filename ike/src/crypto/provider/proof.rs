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
use crate::trust::{Calendar, Limits, PeerCertificate, Trust};

/// Certificates of a message tried as the end entity, those that bear the identity first: peers send it first, but the
/// order is free (RFC 4945 section 3.3.10). Each costs a search for a path.
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
    /// The key of the end entity when `chain` (DER certificates, end entity first, the rest in any order) leads to a trust
    /// anchor and certifies `id`, the claimed phase 1 identity.
    ///
    /// # Errors
    /// Text for the log that names which half failed: the chain, or the name.
    fn check(
        &self,
        chain: &[Vec<u8>],
        id: &Identification,
        unix_seconds: u64,
    ) -> Result<CertifiedKey, String>;

    /// DER distinguished names of the trust anchors, for CERTREQ payloads.
    fn anchors(&self) -> Vec<Vec<u8>>;

    /// When anchors and revocation lists end; empty where nobody keeps such a calendar.
    fn calendar(&self) -> Calendar {
        Calendar::default()
    }
}

/// The key a chain certifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedKey {
    /// DER SubjectPublicKeyInfo of the end entity.
    pub public_key: Vec<u8>,
    /// What would have been refused but for a rehearsal (`verification = "rehearse"`); for the log.
    pub remark: Option<String>,
    /// The end entity, for the operator's calendar; none where nobody keeps one.
    pub certificate: Option<Arc<PeerCertificate>>,
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
    /// The certificate that did it; none with a pre-shared key.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// Why a peer did not prove its identity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProofError {
    /// The chain does not lead to an anchor, or certifies another name; the text says which.
    #[error("{0}")]
    Certificate(String),
    /// The certified key did not make the signature.
    #[error("{error}{}", by.as_ref().map(|it| format!(" with the key of {it}")).unwrap_or_default())]
    Signature {
        /// What the provider said.
        error: CryptoError,
        /// Whose key it is.
        by: Option<String>,
    },
}

impl From<CryptoError> for ProofError {
    fn from(error: CryptoError) -> ProofError {
        ProofError::Signature { error, by: None }
    }
}

impl ProofCheck {
    /// Chain and name first, then the signature with the key of the end entity (RFC 4945 section 3.1).
    pub(super) fn run(&self, provider: &dyn Provider) -> Result<Proved, ProofError> {
        let CertifiedKey { public_key, remark, certificate } = self.certified_key()?;
        let verified = provider.verify_proof(self.method, &public_key, self.digest.expose(), &self.signature);
        verified.map_err(|error| {
            let by = certificate.as_ref().map(|it| it.name.to_string());
            ProofError::Signature { error, by }
        })?;
        Ok(Proved { remark, certificate })
    }

    /// The certificate that passes without a remark, else what was said of the likeliest.
    fn certified_key(&self) -> Result<CertifiedKey, ProofError> {
        let mut first = Err("the peer sent no certificate".to_owned());
        // Where there are more than may come at all, the check says so without reading one.
        let few = self.chain.len() <= Limits::default().certificates;
        let mut order: Vec<usize> = (0..self.chain.len()).collect();
        order.sort_by_key(|at| !(few && self.chain.get(*at).is_some_and(|it| Trust::bears(it, &self.id))));
        for (tried, at) in order.into_iter().take(MAX_CANDIDATES).enumerate() {
            let mut chain = self.chain.clone();
            chain.rotate_left(at);
            match self.trust.check(&chain, &self.id, self.unix_seconds) {
                Ok(key) if key.remark.is_none() => return Ok(key),
                other if tried == 0 => first = other,
                _ => {}
            }
        }
        first.map_err(ProofError::Certificate)
    }
}
