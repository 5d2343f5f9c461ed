//! Phase 1 signatures: ECDSA over an imported digest by aws-lc-rs, RSA by the `rsa` module.

use aws_lc_rs::digest::{Algorithm, Digest, SHA256, SHA384, SHA512};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair, ParsedPublicKey, RsaKeyPair};
use gdoi_proto::policy::SignatureAlgorithm;
use gdoi_proto::secret::SecretBytes;

use super::{ecdsa, rsa};
use crate::crypto::AuthMethod;
use crate::crypto::provider::{CryptoError, ProofSigner, public_key};

enum Key {
    Rsa(rsa::PrivateKey),
    Ecdsa(Box<EcdsaKeyPair>, &'static Algorithm),
}

/// The private key of a certificate.
pub(super) struct CertificateKey {
    method: AuthMethod,
    public_key: Vec<u8>,
    key: Key,
}

/// The hash whose output the method signs (RFC 4754 section 3), and the verification with it.
fn digest_of(
    method: AuthMethod,
) -> Option<(&'static Algorithm, &'static dyn signature::VerificationAlgorithm)> {
    match method {
        AuthMethod::Ecdsa256 => Some((&SHA256, &signature::ECDSA_P256_SHA256_FIXED)),
        AuthMethod::Ecdsa384 => Some((&SHA384, &signature::ECDSA_P384_SHA384_FIXED)),
        AuthMethod::Ecdsa521 => Some((&SHA512, &signature::ECDSA_P521_SHA512_FIXED)),
        AuthMethod::PreSharedKey | AuthMethod::RsaSignature => None,
    }
}

fn import(digest: &[u8], algorithm: &'static Algorithm) -> Result<Digest, CryptoError> {
    Digest::import_less_safe(digest, algorithm)
        .map_err(|_| CryptoError::Key("the digest is not one of this ECDSA method"))
}

impl CertificateKey {
    pub(super) fn load(method: AuthMethod, pkcs8: &SecretBytes) -> Result<CertificateKey, CryptoError> {
        let refused = CryptoError::Key("not a PKCS#8 key of this algorithm");
        let (algorithm, _) = public_key::of_method(method)?;
        let (key, public_key) = match (ecdsa(algorithm), digest_of(method)) {
            (Some((ecdsa, _)), Some((digest, _))) => {
                let key = EcdsaKeyPair::from_pkcs8(ecdsa, pkcs8.expose()).map_err(|_| refused.clone())?;
                let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| refused)?;
                let public = public.as_ref().to_vec();
                (Key::Ecdsa(Box::new(key), digest), public)
            }
            _ => {
                // aws-lc-rs checks the key and gives its public half; the raw operation needs it once more.
                let checked = RsaKeyPair::from_pkcs8(pkcs8.expose()).map_err(|_| refused.clone())?;
                let public: PublicKeyX509Der<'_> = checked.public_key().as_der().map_err(|_| refused)?;
                (Key::Rsa(rsa::PrivateKey::load(pkcs8)?), public.as_ref().to_vec())
            }
        };
        Ok(CertificateKey { method, public_key, key })
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
        match &self.key {
            Key::Rsa(key) => key.sign_bare(digest),
            Key::Ecdsa(key, algorithm) => {
                let signature = key
                    .sign_digest(&import(digest, algorithm)?)
                    .map_err(|_| CryptoError::Library("ECDSA signature"))?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
}

/// See [`super::Provider::verify_proof`].
pub(super) fn verify(
    method: AuthMethod,
    public_key: &[u8],
    digest: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    let (algorithm, _) = public_key::of_method(method)?;
    public_key::open(algorithm, public_key)?;
    match (algorithm, digest_of(method)) {
        (SignatureAlgorithm::Rsa, _) => rsa::verify_bare(public_key, digest, signature),
        (_, Some((hash, verification))) => ParsedPublicKey::new(verification, public_key)
            .map_err(|_| CryptoError::Key("not a SubjectPublicKeyInfo of this algorithm"))?
            .verify_digest_sig(&import(digest, hash)?, signature)
            .map_err(|_| CryptoError::Signature),
        (_, None) => Err(CryptoError::Key("pre-shared keys do not sign")),
    }
}
