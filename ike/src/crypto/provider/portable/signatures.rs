//! PUSH signatures: ring for RSA, P-256 and P-384; RustCrypto for P-521.

use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};
use gdoi_proto::secret::SecretBytes;
use p521::ecdsa::signature::{Signer as _, Verifier as _};
use p521::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, RsaKeyPair};

use super::{NAME, modp, random_scalar};
use crate::crypto::prf::hash as digest;
use crate::crypto::provider::{CryptoError, Signer, Verification, public_key};
use crate::crypto::{DhGroup, Hash};

const REFUSED: CryptoError = CryptoError::Key("not a PKCS#8 key of this algorithm");

enum PushKey {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Box<EcdsaKeyPair>, SystemRandom),
    Ecdsa521(Box<p521::ecdsa::SigningKey>),
}

/// A signing key with its SubjectPublicKeyInfo.
pub(super) struct PushSigner {
    algorithm: SignatureAlgorithm,
    key_bits: u16,
    public_key: Vec<u8>,
    key: PushKey,
}

/// ring's name of an ECDSA it has, and bits of its field.
fn ecdsa(algorithm: SignatureAlgorithm) -> Option<(&'static EcdsaSigningAlgorithm, u16)> {
    match algorithm {
        SignatureAlgorithm::Ecdsa256 => Some((&signature::ECDSA_P256_SHA256_FIXED_SIGNING, 256)),
        SignatureAlgorithm::Ecdsa384 => Some((&signature::ECDSA_P384_SHA384_FIXED_SIGNING, 384)),
        SignatureAlgorithm::Rsa | SignatureAlgorithm::Ecdsa521 => None,
    }
}

/// Makes an ECDSA key as PKCS#8 DER.
pub(super) fn generate(algorithm: SignatureAlgorithm) -> Result<SecretBytes, CryptoError> {
    let failed = CryptoError::Library("signing key generation");
    if let Some((algorithm, _)) = ecdsa(algorithm) {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).map_err(|_| failed)?;
        return Ok(SecretBytes::copy(pkcs8.as_ref()));
    }
    if algorithm == SignatureAlgorithm::Rsa {
        let what = "make RSA keys: give this key server a signing-key file";
        return Err(CryptoError::Unsupported { provider: NAME, what });
    }
    let secret = random_scalar(DhGroup::Ecp521, |octets| p521::SecretKey::from_slice(octets).ok())?;
    let pkcs8 = secret.to_pkcs8_der().map_err(|_| failed)?;
    Ok(SecretBytes::copy(pkcs8.as_bytes()))
}

impl PushSigner {
    pub(super) fn load(
        algorithm: SignatureAlgorithm,
        pkcs8: &SecretBytes,
    ) -> Result<PushSigner, CryptoError> {
        let octets = pkcs8.expose();
        let (key, key_bits, public) = match (algorithm, ecdsa(algorithm)) {
            (_, Some((ecdsa, bits))) => {
                let random = SystemRandom::new();
                let key = EcdsaKeyPair::from_pkcs8(ecdsa, octets, &random).map_err(|_| REFUSED)?;
                let public = key.public_key().as_ref().to_vec();
                (PushKey::Ecdsa(Box::new(key), random), bits, public)
            }
            (SignatureAlgorithm::Rsa, None) => {
                // ring takes 2048 to 4096 bits.
                let key = RsaKeyPair::from_pkcs8(octets).map_err(|_| REFUSED)?;
                let bits = u16::try_from(key.public().modulus_len() * 8).map_err(|_| REFUSED)?;
                let public = key.public_key().as_ref().to_vec();
                (PushKey::Rsa(Box::new(key)), bits, public)
            }
            (_, None) => {
                let secret = p521::SecretKey::from_pkcs8_der(octets).map_err(|_| REFUSED)?;
                let key = p521::ecdsa::SigningKey::from(secret);
                let public = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
                (PushKey::Ecdsa521(Box::new(key)), 521, public)
            }
        };
        Ok(PushSigner { algorithm, key_bits, public_key: public_key::seal(algorithm, &public), key })
    }
}

impl Signer for PushSigner {
    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    fn key_bits(&self) -> u16 {
        self.key_bits
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn sign(&self, hash: SignatureHash, input: &[u8]) -> Result<Vec<u8>, CryptoError> {
        public_key::check_hash(NAME, self.algorithm, hash)?;
        match &self.key {
            PushKey::Rsa(key) => {
                let padding: &dyn signature::RsaEncoding = match hash {
                    SignatureHash::Sha256 => &signature::RSA_PKCS1_SHA256,
                    SignatureHash::Sha384 => &signature::RSA_PKCS1_SHA384,
                    SignatureHash::Sha512 => &signature::RSA_PKCS1_SHA512,
                    SignatureHash::Sha1 => return Err(CryptoError::Key("SHA-1 is not signed with")),
                };
                let mut out = vec![0; key.public().modulus_len()];
                key.sign(padding, &SystemRandom::new(), input, &mut out)
                    .map_err(|_| CryptoError::Library("RSA signature"))?;
                Ok(out)
            }
            PushKey::Ecdsa(key, random) => {
                let signature =
                    key.sign(random, input).map_err(|_| CryptoError::Library("ECDSA signature"))?;
                Ok(signature.as_ref().to_vec())
            }
            PushKey::Ecdsa521(key) => {
                let signature: p521::ecdsa::Signature =
                    key.try_sign(input).map_err(|_| CryptoError::Library("ECDSA signature"))?;
                Ok(signature.to_bytes().to_vec())
            }
        }
    }
}

/// See [`super::Provider::verify`].
pub(super) fn verify(check: &Verification) -> Result<(), CryptoError> {
    use SignatureAlgorithm as A;
    use SignatureHash as H;
    public_key::check_hash(NAME, check.algorithm, check.hash)?;
    let key = public_key::open(check.algorithm, &check.public_key)?;
    let (algorithm, hash): (&'static dyn signature::VerificationAlgorithm, Hash) =
        match (check.algorithm, check.hash) {
            (A::Rsa, H::Sha384) => (&signature::RSA_PKCS1_2048_8192_SHA384, Hash::Sha384),
            (A::Rsa, H::Sha512) => (&signature::RSA_PKCS1_2048_8192_SHA512, Hash::Sha512),
            (A::Rsa, H::Sha256 | H::Sha1) => (&signature::RSA_PKCS1_2048_8192_SHA256, Hash::Sha256),
            (A::Ecdsa256, _) => (&signature::ECDSA_P256_SHA256_FIXED, Hash::Sha256),
            (A::Ecdsa384, _) => (&signature::ECDSA_P384_SHA384_FIXED, Hash::Sha384),
            (A::Ecdsa521, _) => return verify_521(key, &check.input, &check.signature),
        };
    if signature::UnparsedPublicKey::new(algorithm, key).verify(&check.input, &check.signature).is_ok() {
        return Ok(());
    }
    if check.bare_digest && check.algorithm == A::Rsa {
        return modp::verify_bare(key, &digest(hash, &[&check.input]), &check.signature);
    }
    Err(CryptoError::Signature)
}

fn verify_521(point: &[u8], input: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(point)
        .map_err(|_| CryptoError::Key("not a point of this curve"))?;
    let signature = p521::ecdsa::Signature::from_slice(signature).map_err(|_| CryptoError::Signature)?;
    key.verify(input, &signature).map_err(|_| CryptoError::Signature)
}
