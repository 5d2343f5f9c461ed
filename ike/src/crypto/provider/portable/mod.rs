//! Provider on ring and RustCrypto, without the C library of `aws-lc` for agreement and without unsafe code here: the
//! second opinion, and the one for platforms AWS-LC does not build on. It makes no RSA keys, signs pushes with RSA keys of
//! up to 4096 bits, and signs no phase 1 with RSA.

mod curves;
mod modp;
mod proof;
mod signatures;

use std::sync::Arc;

use gdoi_proto::policy::SignatureAlgorithm;
use gdoi_proto::secret::SecretBytes;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::{CryptoError, DhKey, ProofSigner, Provider, Signer, Verification};
use crate::crypto::{AuthMethod, DhGroup, dh};

const NAME: &str = "portable";

/// Tries at a scalar below the order of its curve. One is enough but for a chance of at most 2^-32.
const SCALAR_TRIES: usize = 64;

/// The provider for a second opinion and for other platforms.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

fn fill(out: &mut [u8]) {
    // Without the system's randomness there are no keys, and an error cannot be seen here.
    if SystemRandom::new().fill(out).is_err() {
        std::process::abort();
    }
}

/// Draws private values of a curve until `accept` takes one.
fn random_scalar<T>(group: DhGroup, accept: impl Fn(&[u8]) -> Option<T>) -> Result<T, CryptoError> {
    let mut octets = Zeroizing::new(vec![0; group.shared_len()]);
    for _ in 0..SCALAR_TRIES {
        fill(&mut octets);
        if let (DhGroup::Ecp521, Some(first)) = (group, octets.first_mut()) {
            // 521 bits in 66 octets.
            *first &= 1;
        }
        if let Some(accepted) = accept(&octets) {
            return Ok(accepted);
        }
    }
    Err(CryptoError::Library("key generation"))
}

impl Provider for Portable {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fill(&self, out: &mut [u8]) {
        fill(out);
    }

    fn dh_generate(&self, group: DhGroup) -> Result<Box<dyn DhKey>, CryptoError> {
        if dh::prime(group).is_none() {
            return random_scalar(group, |octets| curves::key(group, octets));
        }
        let mut exponent = vec![0; dh::exponent_len(group)];
        fill(&mut exponent);
        Ok(Box::new(modp::ModpKey::new(group, SecretBytes::new(exponent))?))
    }

    fn dh_from_private(&self, group: DhGroup, private: &[u8]) -> Result<Box<dyn DhKey>, CryptoError> {
        if dh::prime(group).is_none() {
            return curves::key(group, private).ok_or(CryptoError::Key("not a private value of this curve"));
        }
        let exponent = dh::given_exponent(group, private);
        let exponent = exponent.ok_or(CryptoError::Key("not a private value of this group"))?;
        Ok(Box::new(modp::ModpKey::new(group, exponent)?))
    }

    fn generate_signing_key(
        &self,
        algorithm: SignatureAlgorithm,
        _: u16,
    ) -> Result<SecretBytes, CryptoError> {
        signatures::generate(algorithm)
    }

    fn signer(
        &self,
        algorithm: SignatureAlgorithm,
        pkcs8: &SecretBytes,
    ) -> Result<Arc<dyn Signer>, CryptoError> {
        Ok(Arc::new(signatures::PushSigner::load(algorithm, pkcs8)?))
    }

    fn verify(&self, check: &Verification) -> Result<(), CryptoError> {
        signatures::verify(check)
    }

    fn proof_signer(
        &self,
        method: AuthMethod,
        pkcs8: &SecretBytes,
    ) -> Result<Arc<dyn ProofSigner>, CryptoError> {
        Ok(Arc::new(proof::CertificateKey::load(method, pkcs8)?))
    }

    fn verify_proof(
        &self,
        method: AuthMethod,
        public_key: &[u8],
        digest: &[u8],
        signature: &[u8],
    ) -> Result<(), CryptoError> {
        proof::verify(method, public_key, digest, signature)
    }
}
