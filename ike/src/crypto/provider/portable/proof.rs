//! Phase 1 signatures on RustCrypto: ECDSA over a given digest with the deterministic nonce of RFC 6979. RSA is verified
//! and not signed: a private operation without blinding and fault checks of a proven library is not worth having.

use gdoi_proto::policy::SignatureAlgorithm;
use gdoi_proto::secret::SecretBytes;
use p521::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p521::pkcs8::DecodePrivateKey;

use super::{NAME, modp};
use crate::crypto::AuthMethod;
use crate::crypto::provider::{CryptoError, ProofSigner, public_key};

const NOT_A_POINT: CryptoError = CryptoError::Key("not a point of this curve");

enum Key {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
}

/// The private key of a certificate.
pub(super) struct CertificateKey {
    method: AuthMethod,
    digest_len: Option<usize>,
    public_key: Vec<u8>,
    key: Key,
}

impl CertificateKey {
    pub(super) fn load(method: AuthMethod, pkcs8: &SecretBytes) -> Result<CertificateKey, CryptoError> {
        let octets = pkcs8.expose();
        let refused = |_| CryptoError::Key("not a PKCS#8 key of this algorithm");
        let (algorithm, digest_len) = public_key::of_method(method)?;
        let (key, point) = match algorithm {
            SignatureAlgorithm::Rsa => {
                let what = "sign phase 1 with RSA: use an ECDSA certificate here, or the provider aws-lc";
                return Err(CryptoError::Unsupported { provider: NAME, what });
            }
            SignatureAlgorithm::Ecdsa256 => {
                let secret = p256::SecretKey::from_pkcs8_der(octets).map_err(refused)?;
                let key = p256::ecdsa::SigningKey::from(secret);
                let point = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
                (Key::P256(key), point)
            }
            SignatureAlgorithm::Ecdsa384 => {
                let secret = p384::SecretKey::from_pkcs8_der(octets).map_err(refused)?;
                let key = p384::ecdsa::SigningKey::from(secret);
                let point = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
                (Key::P384(key), point)
            }
            SignatureAlgorithm::Ecdsa521 => {
                let secret = p521::SecretKey::from_pkcs8_der(octets).map_err(refused)?;
                let key = p521::ecdsa::SigningKey::from(secret);
                let point = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
                (Key::P521(key), point)
            }
        };
        Ok(CertificateKey { method, digest_len, public_key: public_key::seal(algorithm, &point), key })
    }
}

impl ProofSigner for CertificateKey {
    fn method(&self) -> AuthMethod {
        self.method
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, CryptoError> {
        check_digest(digest, self.digest_len)?;
        let failed = |_| CryptoError::Library("ECDSA signature");
        Ok(match &self.key {
            Key::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign_prehash(digest).map_err(failed)?;
                signature.to_bytes().to_vec()
            }
            Key::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign_prehash(digest).map_err(failed)?;
                signature.to_bytes().to_vec()
            }
            Key::P521(key) => {
                let signature: p521::ecdsa::Signature = key.sign_prehash(digest).map_err(failed)?;
                signature.to_bytes().to_vec()
            }
        })
    }
}

fn check_digest(digest: &[u8], wanted: Option<usize>) -> Result<(), CryptoError> {
    if wanted.is_some_and(|wanted| wanted != digest.len()) {
        return Err(CryptoError::Key("the digest is not one of this ECDSA method"));
    }
    Ok(())
}

/// See [`super::Provider::verify_proof`].
pub(super) fn verify(
    method: AuthMethod,
    public_key: &[u8],
    digest: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    let (algorithm, digest_len) = public_key::of_method(method)?;
    let key = public_key::open(algorithm, public_key)?;
    check_digest(digest, digest_len)?;
    let wrong = |_| CryptoError::Signature;
    match algorithm {
        SignatureAlgorithm::Rsa => modp::verify_bare(key, digest, signature),
        SignatureAlgorithm::Ecdsa256 => {
            let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| NOT_A_POINT)?;
            let signature = p256::ecdsa::Signature::from_slice(signature).map_err(wrong)?;
            key.verify_prehash(digest, &signature).map_err(wrong)
        }
        SignatureAlgorithm::Ecdsa384 => {
            let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| NOT_A_POINT)?;
            let signature = p384::ecdsa::Signature::from_slice(signature).map_err(wrong)?;
            key.verify_prehash(digest, &signature).map_err(wrong)
        }
        SignatureAlgorithm::Ecdsa521 => {
            let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| NOT_A_POINT)?;
            let signature = p521::ecdsa::Signature::from_slice(signature).map_err(wrong)?;
            key.verify_prehash(digest, &signature).map_err(wrong)
        }
    }
}
