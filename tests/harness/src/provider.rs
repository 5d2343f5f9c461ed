//! The simulator's own crypto provider: deterministic, fast, and worthless as crypto. Same seed, same octets.
//!
//! Diffie-Hellman is g^x modulo the prime 2^61 - 1, padded to the group's lengths; a signature is a keyed hash with
//! the public key as its key.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::prf::{hash, prf};
use ike::crypto::provider::{
    CryptoError, DhKey, ProofSigner, Provider, Signer, Verification, default_provider,
};
use ike::crypto::{AuthMethod, DhGroup, Hash};
use ike::io::Entropy;

const PRIME: u64 = (1 << 61) - 1;
const GENERATOR: u64 = 37;

/// A reproducible stream of octets: SHA-256 of seed and counter.
#[derive(Debug, Clone)]
pub struct SeededEntropy {
    seed: u64,
    counter: u64,
}

impl SeededEntropy {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> SeededEntropy {
        SeededEntropy { seed, counter: 0 }
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        u64::from_be_bytes(self.array()) % limit.max(1)
    }
}

impl Entropy for SeededEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(32) {
            self.counter += 1;
            let block = hash(Hash::Sha256, &[&self.seed.to_be_bytes(), &self.counter.to_be_bytes()]);
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
    }
}

/// The provider.
#[derive(Default)]
pub struct Deterministic {
    seed: u64,
    counter: AtomicU64,
    /// Makes and checks the signatures of PUSHes.
    signatures: Option<Arc<dyn Provider>>,
    /// Signatures found good: hundreds of members check the same octets.
    good: Mutex<BTreeSet<Vec<u8>>>,
}

/// Good signatures remembered.
const REMEMBERED: usize = 4096;

/// What a check is about, as a digest.
fn digest(check: &Verification) -> Vec<u8> {
    let about = format!("{:?} {:?} {}", check.algorithm, check.hash, check.bare_digest);
    let or_input = check.or_input.as_deref().unwrap_or_default();
    let parts = [about.as_bytes(), &check.public_key, &check.input, or_input, &check.signature];
    let lengths: Vec<u8> = parts.iter().flat_map(|part| part.len().to_be_bytes()).collect();
    hash(Hash::Sha256, &[&lengths, parts[0], parts[1], parts[2], parts[3], parts[4]])
}

impl std::fmt::Debug for Deterministic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deterministic").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Deterministic {
    /// A provider whose randomness follows `seed`.
    pub fn new(seed: u64) -> Deterministic {
        Deterministic { seed, ..Deterministic::default() }
    }

    /// The same with real signatures of PUSHes. Their octets differ from run to run, and nothing else.
    pub fn with_real_signatures(self) -> Deterministic {
        Deterministic { signatures: Some(default_provider()), ..self }
    }

    fn stream(&self) -> SeededEntropy {
        SeededEntropy::new(self.seed ^ (self.counter.fetch_add(1, Ordering::Relaxed) << 20))
    }
}

struct ToyKey {
    group: DhGroup,
    exponent: u64,
    public: Vec<u8>,
}

fn power(base: u64, mut exponent: u64) -> u64 {
    let modulus = u128::from(PRIME);
    let (mut result, mut square) = (1u128, u128::from(base) % modulus);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * square % modulus;
        }
        square = square * square % modulus;
        exponent >>= 1;
    }
    result as u64
}

fn padded(value: u64, octets: usize) -> Vec<u8> {
    let mut out = vec![0; octets];
    out[octets - 8..].copy_from_slice(&value.to_be_bytes());
    out
}

impl DhKey for ToyKey {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        let value = peer_public.last_chunk::<8>().map(|octets| u64::from_be_bytes(*octets));
        match value {
            Some(value) if peer_public.len() == self.group.public_len() && value > 1 && value < PRIME => {
                Ok(SecretBytes::new(padded(power(value, self.exponent), self.group.shared_len())))
            }
            _ => Err(CryptoError::PublicValue { group: self.group }),
        }
    }
}

struct ToySigner {
    algorithm: SignatureAlgorithm,
    public_key: Vec<u8>,
}

fn signature(algorithm: SignatureAlgorithm, public_key: &[u8], input: &[u8]) -> Vec<u8> {
    let octets = match algorithm {
        SignatureAlgorithm::Rsa => 256,
        SignatureAlgorithm::Ecdsa256 => 64,
        SignatureAlgorithm::Ecdsa384 => 96,
        SignatureAlgorithm::Ecdsa521 => 132,
    };
    prf(Hash::Sha256, public_key, &[input]).expose().iter().copied().cycle().take(octets).collect()
}

impl Signer for ToySigner {
    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    fn key_bits(&self) -> u16 {
        256
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn sign(&self, _: SignatureHash, input: &[u8]) -> Result<Vec<u8>, CryptoError> {
        Ok(signature(self.algorithm, &self.public_key, input))
    }
}

struct ToyProofSigner {
    method: AuthMethod,
    public_key: Vec<u8>,
}

fn proof(method: AuthMethod, public_key: &[u8], digest: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let algorithm = match method {
        AuthMethod::RsaSignature => SignatureAlgorithm::Rsa,
        AuthMethod::Ecdsa256 => SignatureAlgorithm::Ecdsa256,
        AuthMethod::Ecdsa384 => SignatureAlgorithm::Ecdsa384,
        AuthMethod::Ecdsa521 => SignatureAlgorithm::Ecdsa521,
        AuthMethod::PreSharedKey => return Err(CryptoError::Key("pre-shared keys do not sign")),
    };
    Ok(signature(algorithm, public_key, digest))
}

impl ProofSigner for ToyProofSigner {
    fn method(&self) -> AuthMethod {
        self.method
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, CryptoError> {
        proof(self.method, &self.public_key, digest)
    }
}

impl Provider for Deterministic {
    fn name(&self) -> &'static str {
        "deterministic"
    }

    fn fill(&self, out: &mut [u8]) {
        self.stream().fill(out);
    }

    fn dh_generate(&self, group: DhGroup) -> Result<Box<dyn DhKey>, CryptoError> {
        let private: [u8; 8] = self.stream().array();
        self.dh_from_private(group, &private)
    }

    fn dh_from_private(&self, group: DhGroup, private: &[u8]) -> Result<Box<dyn DhKey>, CryptoError> {
        let tail = private.last_chunk::<8>().ok_or(CryptoError::Key("too short"))?;
        let exponent = u64::from_be_bytes(*tail) >> 4 | 2;
        let public = padded(power(GENERATOR, exponent), group.public_len());
        Ok(Box::new(ToyKey { group, exponent, public }))
    }

    fn generate_signing_key(
        &self,
        algorithm: SignatureAlgorithm,
        key_bits: u16,
    ) -> Result<SecretBytes, CryptoError> {
        if let Some(real) = &self.signatures {
            return real.generate_signing_key(algorithm, key_bits);
        }
        let mut key = vec![0; 32];
        self.fill(&mut key);
        Ok(SecretBytes::new(key))
    }

    fn signer(
        &self,
        algorithm: SignatureAlgorithm,
        pkcs8: &SecretBytes,
    ) -> Result<Arc<dyn Signer>, CryptoError> {
        if let Some(real) = &self.signatures {
            return real.signer(algorithm, pkcs8);
        }
        Ok(Arc::new(ToySigner { algorithm, public_key: hash(Hash::Sha256, &[b"public", pkcs8.expose()]) }))
    }

    fn verify(&self, check: &Verification) -> Result<(), CryptoError> {
        if let Some(real) = &self.signatures {
            let digest = digest(check);
            let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
            if good.contains(&digest) {
                return Ok(());
            }
            real.verify(check)?;
            if good.len() >= REMEMBERED {
                good.clear();
            }
            good.insert(digest);
            return Ok(());
        }
        if signature(check.algorithm, &check.public_key, &check.input) == check.signature.as_ref() {
            Ok(())
        } else {
            Err(CryptoError::Signature)
        }
    }

    fn proof_signer(
        &self,
        method: AuthMethod,
        pkcs8: &SecretBytes,
    ) -> Result<Arc<dyn ProofSigner>, CryptoError> {
        let public_key = hash(Hash::Sha256, &[b"public", pkcs8.expose()]);
        Ok(Arc::new(ToyProofSigner { method, public_key }))
    }

    fn verify_proof(
        &self,
        method: AuthMethod,
        public_key: &[u8],
        digest: &[u8],
        signature: &[u8],
    ) -> Result<(), CryptoError> {
        if proof(method, public_key, digest)? == signature { Ok(()) } else { Err(CryptoError::Signature) }
    }
}
