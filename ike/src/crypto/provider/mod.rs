//! Asymmetric crypto behind one trait: `aws_lc` (default), `portable` (second opinion, other platforms), and the
//! simulator's own deterministic one. Engines never call a provider: they emit a [`Job`], the shell runs it.

#[cfg(feature = "aws-lc")]
pub mod aws_lc;
#[cfg(feature = "portable")]
pub mod portable;
mod proof;
#[cfg(any(feature = "aws-lc", feature = "portable"))]
mod public_key;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};
use gdoi_proto::secret::SecretBytes;
use thiserror::Error;

use super::{AuthMethod, DhGroup};
use crate::io::Entropy;

pub use proof::{CertifiedKey, PeerTrust, ProofCheck, ProofError, ProofSigner, Proved};

/// Why asymmetric work failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CryptoError {
    /// The peer's public value is out of range, off the curve or of the wrong length.
    #[error("the peer's public value is not valid for group {}", group.number())]
    PublicValue {
        /// The group.
        group: DhGroup,
    },
    /// A signature does not verify.
    #[error("the signature does not verify")]
    Signature,
    /// A key cannot be read, or is of another kind than its use needs.
    #[error("the key cannot be used: {0}")]
    Key(&'static str),
    /// This provider does not do that.
    #[error("{provider} cannot {what}")]
    Unsupported {
        /// Name of the provider.
        provider: &'static str,
        /// What it cannot do.
        what: &'static str,
    },
    /// The library failed.
    #[error("the crypto library failed: {0}")]
    Library(&'static str),
}

/// A fresh private value with its public one. Used for one agreement, then wiped.
pub trait DhKey: Send {
    /// KE payload octets, exactly [`DhGroup::public_len`].
    fn public(&self) -> &[u8];

    /// g^xy, exactly [`DhGroup::shared_len`] octets with leading zeros kept (RFC 2409 section 5, RFC 5903 section 7).
    ///
    /// # Errors
    /// [`CryptoError::PublicValue`] for a value out of range, off the curve, or an all-zero Curve25519 result.
    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SecretBytes, CryptoError>;
}

impl fmt::Debug for dyn DhKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DhKey(public {} octets)", self.public().len())
    }
}

/// A private signing key of a group.
pub trait Signer: Send + Sync {
    /// SIG_ALGORITHM it signs for.
    fn algorithm(&self) -> SignatureAlgorithm;

    /// Length of the key in bits: the modulus, or the field of the curve.
    fn key_bits(&self) -> u16;

    /// DER SubjectPublicKeyInfo.
    fn public_key(&self) -> &[u8];

    /// Signature over `input`: RSA as EMSA-PKCS1-v1_5 with DigestInfo, ECDSA as r | s of fixed width
    /// (RFC 6407 section 5.3.6, RFC 4754 section 7).
    ///
    /// # Errors
    /// [`CryptoError`] when the hash does not fit the algorithm or the library fails.
    fn sign(&self, hash: SignatureHash, input: &[u8]) -> Result<Vec<u8>, CryptoError>;

    /// The same with RSA over the bare digest, without DigestInfo (`bare-digest-signature`); ECDSA has one form only.
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] where the library has no such operation.
    fn sign_bare(&self, hash: SignatureHash, input: &[u8]) -> Result<Vec<u8>, CryptoError> {
        if self.algorithm() == SignatureAlgorithm::Rsa {
            let what = "sign RSA without DigestInfo";
            return Err(CryptoError::Unsupported { provider: "this crypto provider", what });
        }
        self.sign(hash, input)
    }
}

impl fmt::Debug for dyn Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({:?}, {} bits)", self.algorithm(), self.key_bits())
    }
}

/// A library of asymmetric crypto and randomness.
pub trait Provider: Send + Sync {
    /// Its name for logs.
    fn name(&self) -> &'static str;

    /// Random octets fit for keys.
    fn fill(&self, out: &mut [u8]);

    /// A fresh key pair.
    ///
    /// # Errors
    /// [`CryptoError`] when the library fails.
    fn dh_generate(&self, group: DhGroup) -> Result<Box<dyn DhKey>, CryptoError>;

    /// The key pair of a known private value (exponent or scalar, big-endian; little-endian for Curve25519): for test vectors.
    ///
    /// # Errors
    /// [`CryptoError::Key`] when it is out of range.
    fn dh_from_private(&self, group: DhGroup, private: &[u8]) -> Result<Box<dyn DhKey>, CryptoError>;

    /// Makes a signing key as PKCS#8 DER. `key_bits` counts for RSA only (2048, 3072, 4096).
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] where the provider cannot make that kind.
    fn generate_signing_key(
        &self,
        algorithm: SignatureAlgorithm,
        key_bits: u16,
    ) -> Result<SecretBytes, CryptoError>;

    /// Loads a signing key from PKCS#8 DER.
    ///
    /// # Errors
    /// [`CryptoError::Key`] when it is not such a key.
    fn signer(
        &self,
        algorithm: SignatureAlgorithm,
        pkcs8: &SecretBytes,
    ) -> Result<Arc<dyn Signer>, CryptoError>;

    /// Verifies a PUSH signature with the public key of a KD (DER SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// [`CryptoError::Signature`] when it does not verify, [`CryptoError::Key`] when the key cannot be read or does not
    /// fit the algorithm.
    fn verify(&self, check: &Verification) -> Result<(), CryptoError>;

    /// Loads the private key of a certificate from PKCS#8 DER, for phase 1 with `method`.
    ///
    /// # Errors
    /// [`CryptoError::Key`] when it is not a key of this method, [`CryptoError::Unsupported`] where the provider cannot
    /// sign that way.
    fn proof_signer(
        &self,
        method: AuthMethod,
        pkcs8: &SecretBytes,
    ) -> Result<Arc<dyn ProofSigner>, CryptoError>;

    /// Verifies SIG_I or SIG_R over `digest` as it is, not hashed again: RSA as a PKCS#1 type 1 block without DigestInfo
    /// (RFC 2409 section 5.1), ECDSA as r | s (RFC 4754 section 7). `public_key` is a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`CryptoError::Signature`] when it does not verify, [`CryptoError::Key`] when the key cannot be read or does not
    /// fit the method.
    fn verify_proof(
        &self,
        method: AuthMethod,
        public_key: &[u8],
        digest: &[u8],
        signature: &[u8],
    ) -> Result<(), CryptoError>;
}

/// A PUSH signature to check.
#[derive(Clone)]
pub struct Verification {
    /// SIG_ALGORITHM of the SAK.
    pub algorithm: SignatureAlgorithm,
    /// SIG_HASH_ALGORITHM of the SAK.
    pub hash: SignatureHash,
    /// DER SubjectPublicKeyInfo.
    pub public_key: Bytes,
    /// What was signed.
    pub input: Bytes,
    /// What else may have been signed; tried second.
    pub or_input: Option<Bytes>,
    /// The SIG body.
    pub signature: Bytes,
    /// Accept RSA over the bare digest, without DigestInfo (`compat` word `bare-digest-signature`).
    pub bare_digest: bool,
}

/// The input is a PUSH in plaintext, keys included: only its length is shown.
impl fmt::Debug for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verification({:?}, {:?}, {} octets)", self.algorithm, self.hash, self.input.len())
    }
}

/// Asymmetric work.
pub enum Job {
    /// An initiator's fresh key pair.
    DhGenerate {
        /// The group.
        group: DhGroup,
    },
    /// An initiator's agreement with the answer's KE.
    DhAgree {
        /// From [`Done::DhKey`].
        key: Box<dyn DhKey>,
        /// KE of the peer.
        peer_public: Bytes,
    },
    /// A responder's fresh key pair and agreement in one go.
    DhRespond {
        /// The group.
        group: DhGroup,
        /// KE of the peer.
        peer_public: Bytes,
    },
    /// A signature of a PUSH.
    Sign {
        /// The group's key.
        signer: Arc<dyn Signer>,
        /// SIG_HASH_ALGORITHM.
        hash: SignatureHash,
        /// Signature input.
        input: Bytes,
        /// RSA over the bare digest.
        bare_digest: bool,
    },
    /// A check of a PUSH signature.
    Verify(Verification),
    /// SIG_I or SIG_R of phase 1.
    Phase1Sign {
        /// The private key of our certificate.
        signer: Arc<dyn ProofSigner>,
        /// HASH_I or HASH_R.
        digest: SecretBytes,
    },
    /// The peer's certificates and its SIG_I or SIG_R.
    Phase1Verify(Box<ProofCheck>),
    /// A new signing key.
    MakeSigner {
        /// SIG_ALGORITHM.
        algorithm: SignatureAlgorithm,
        /// RSA modulus bits.
        key_bits: u16,
    },
    /// A stored signing key, back in memory.
    LoadSigner {
        /// SIG_ALGORITHM.
        algorithm: SignatureAlgorithm,
        /// PKCS#8 DER.
        pkcs8: SecretBytes,
    },
}

/// Names the work; signature inputs are PUSHes in plaintext and are not shown.
impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Job::DhGenerate { group } => write!(f, "DhGenerate(group {})", group.number()),
            Job::DhAgree { key, .. } => write!(f, "DhAgree({key:?})"),
            Job::DhRespond { group, .. } => write!(f, "DhRespond(group {})", group.number()),
            Job::Sign { signer, hash, input, .. } => {
                write!(f, "Sign({signer:?}, {hash:?}, {} octets)", input.len())
            }
            Job::Verify(check) => write!(f, "Verify({check:?})"),
            Job::Phase1Sign { signer, .. } => write!(f, "Phase1Sign({signer:?})"),
            Job::Phase1Verify(check) => write!(f, "Phase1Verify({check:?})"),
            Job::MakeSigner { algorithm, key_bits } => {
                write!(f, "MakeSigner({algorithm:?}, {key_bits} bits)")
            }
            Job::LoadSigner { algorithm, .. } => write!(f, "LoadSigner({algorithm:?})"),
        }
    }
}

/// What came of a [`Job`].
#[derive(Debug)]
pub enum Done {
    /// Of `DhGenerate`.
    DhKey(Result<Box<dyn DhKey>, CryptoError>),
    /// Of `DhAgree`: g^xy.
    Shared(Result<SecretBytes, CryptoError>),
    /// Of `DhRespond`: our KE octets and g^xy.
    Responded(Result<(Vec<u8>, SecretBytes), CryptoError>),
    /// Of `Sign`: SIG body.
    Signed(Result<Vec<u8>, CryptoError>),
    /// Of `Verify`.
    Verified(Result<(), CryptoError>),
    /// Of `Phase1Sign`: SIG body.
    Phase1Signed(Result<Vec<u8>, CryptoError>),
    /// Of `Phase1Verify`.
    Phase1Verified(Result<Proved, ProofError>),
    /// Of `MakeSigner` and `LoadSigner`: the key and its PKCS#8 DER for the store.
    Signer(Result<(Arc<dyn Signer>, SecretBytes), CryptoError>),
}

/// Runs a job. Called by the shell's workers, and at once by the simulator.
pub fn run(provider: &dyn Provider, job: Job) -> Done {
    match job {
        Job::DhGenerate { group } => Done::DhKey(provider.dh_generate(group)),
        Job::DhAgree { key, peer_public } => Done::Shared(key.agree(&peer_public)),
        Job::DhRespond { group, peer_public } => {
            Done::Responded(provider.dh_generate(group).and_then(|key| {
                let public = key.public().to_vec();
                // A peer that sends our own value back is reflecting (RFC 6989 section 2, as a rule of this project).
                if public == peer_public.as_ref() {
                    return Err(CryptoError::PublicValue { group });
                }
                key.agree(&peer_public).map(|shared| (public, shared))
            }))
        }
        Job::Sign { signer, hash, input, bare_digest: false } => Done::Signed(signer.sign(hash, &input)),
        Job::Sign { signer, hash, input, bare_digest: true } => Done::Signed(signer.sign_bare(hash, &input)),
        Job::Verify(mut check) => {
            let mut result = provider.verify(&check);
            if let (Err(CryptoError::Signature), Some(input)) = (&result, check.or_input.take()) {
                check.input = input;
                result = provider.verify(&check);
            }
            Done::Verified(result)
        }
        Job::Phase1Sign { signer, digest } => Done::Phase1Signed(signer.sign(digest.expose())),
        Job::Phase1Verify(check) => Done::Phase1Verified(check.run(provider)),
        Job::MakeSigner { algorithm, key_bits } => Done::Signer(
            provider
                .generate_signing_key(algorithm, key_bits)
                .and_then(|pkcs8| provider.signer(algorithm, &pkcs8).map(|signer| (signer, pkcs8))),
        ),
        Job::LoadSigner { algorithm, pkcs8 } => {
            Done::Signer(provider.signer(algorithm, &pkcs8).map(|signer| (signer, pkcs8)))
        }
    }
}

/// The random octets of a provider, for engines that run with the real one.
pub struct Random(pub Arc<dyn Provider>);

impl Entropy for Random {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out);
    }
}

/// The provider this build was made with: `aws-lc` when compiled in, else `portable`.
#[cfg(any(feature = "aws-lc", feature = "portable"))]
pub fn default_provider() -> Arc<dyn Provider> {
    #[cfg(feature = "aws-lc")]
    return Arc::new(aws_lc::AwsLc);
    #[cfg(all(feature = "portable", not(feature = "aws-lc")))]
    return Arc::new(portable::Portable);
}
