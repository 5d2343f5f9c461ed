//! Provider on AWS-LC: aws-lc-rs where it has a safe call, the `bn` module for MODP, the `rsa` module for bare RSA.

mod bn;
mod proof;
mod rsa;

use std::sync::Arc;

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, ParsedPublicKey, RsaKeyPair};
use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};
use gdoi_proto::secret::SecretBytes;

use super::{CryptoError, DhKey, ProofSigner, Provider, Signer, Verification, public_key};
use crate::crypto::prf::hash as digest;
use crate::crypto::{AuthMethod, DhGroup, Hash, dh};

const NAME: &str = "aws-lc";

/// The default provider.
#[derive(Debug, Clone, Copy)]
pub struct AwsLc;

/// Lead octet of an uncompressed point, never on the wire (RFC 5903 section 7).
const UNCOMPRESSED: u8 = 0x04;

struct CurveKey {
    group: DhGroup,
    key: PrivateKey,
    public: Vec<u8>,
}

fn curve(group: DhGroup) -> Option<&'static agreement::Algorithm> {
    match group {
        DhGroup::Ecp256 => Some(&ECDH_P256),
        DhGroup::Ecp384 => Some(&ECDH_P384),
        DhGroup::Ecp521 => Some(&ECDH_P521),
        DhGroup::Curve25519 => Some(&X25519),
        DhGroup::Modp2048 | DhGroup::Modp3072 | DhGroup::Modp4096 | DhGroup::Modp6144 | DhGroup::Modp8192 => {
            None
        }
    }
}

impl CurveKey {
    fn new(group: DhGroup, key: PrivateKey) -> Result<CurveKey, CryptoError> {
        let public = key.compute_public_key().map_err(|_| CryptoError::Library("no public value"))?;
        let octets = public.as_ref();
        let public = match octets.split_first() {
            Some((&UNCOMPRESSED, point)) if group != DhGroup::Curve25519 => point.to_vec(),
            _ => octets.to_vec(),
        };
        Ok(CurveKey { group, key, public })
    }
}

impl DhKey for CurveKey {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        let refused = CryptoError::PublicValue { group: self.group };
        let Some(algorithm) = curve(self.group).filter(|_| peer_public.len() == self.group.public_len())
        else {
            return Err(refused);
        };
        let point = match self.group {
            DhGroup::Curve25519 => peer_public.to_vec(),
            _ => [&[UNCOMPRESSED], peer_public].concat(),
        };
        // The library checks that the point is on its curve, and that X25519 gives no zeros.
        let peer = UnparsedPublicKey::new(algorithm, point);
        let shared =
            agreement::agree(&self.key, peer, refused.clone(), |shared| Ok(SecretBytes::copy(shared)))?;
        if shared.expose().iter().all(|octet| *octet == 0) { Err(refused) } else { Ok(shared) }
    }
}

struct ModpKey {
    group: DhGroup,
    exponent: SecretBytes,
    public: Vec<u8>,
}

impl ModpKey {
    fn new(group: DhGroup, exponent: SecretBytes) -> Result<ModpKey, CryptoError> {
        let public = bn::power_of_two(group, &exponent)?;
        Ok(ModpKey { group, exponent, public })
    }
}

impl DhKey for ModpKey {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        if peer_public.len() != self.group.public_len() {
            return Err(CryptoError::PublicValue { group: self.group });
        }
        bn::power(self.group, peer_public, &self.exponent)
    }
}

enum PushKey {
    /// The key, and once more for the raw operation.
    Rsa(Box<RsaKeyPair>, rsa::PrivateKey),
    Ecdsa(Box<EcdsaKeyPair>),
}

struct PushSigner {
    algorithm: SignatureAlgorithm,
    key_bits: u16,
    public_key: Vec<u8>,
    key: PushKey,
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
            PushKey::Rsa(key, _) => {
                let padding: &dyn signature::RsaEncoding = match hash {
                    SignatureHash::Sha256 => &signature::RSA_PKCS1_SHA256,
                    SignatureHash::Sha384 => &signature::RSA_PKCS1_SHA384,
                    SignatureHash::Sha512 => &signature::RSA_PKCS1_SHA512,
                    SignatureHash::Sha1 => return Err(CryptoError::Key("SHA-1 is not signed with")),
                };
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(padding, &SystemRandom::new(), input, &mut out)
                    .map_err(|_| CryptoError::Library("RSA signature"))?;
                Ok(out)
            }
            PushKey::Ecdsa(key) => {
                let signature = key
                    .sign(&SystemRandom::new(), input)
                    .map_err(|_| CryptoError::Library("ECDSA signature"))?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
    fn sign_bare(&self, hash: SignatureHash, input: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let PushKey::Rsa(_, raw) = &self.key else { return self.sign(hash, input) };
        public_key::check_hash(NAME, self.algorithm, hash)?;
        raw.sign_bare(&digest(push_hash(hash), &[input]))
    }
}

/// The hash of a PUSH signature as the crypto suite names it.
fn push_hash(hash: SignatureHash) -> Hash {
    match hash {
        SignatureHash::Sha1 => Hash::Sha1,
        SignatureHash::Sha256 => Hash::Sha256,
        SignatureHash::Sha384 => Hash::Sha384,
        SignatureHash::Sha512 => Hash::Sha512,
    }
}

fn ecdsa(algorithm: SignatureAlgorithm) -> Option<(&'static EcdsaSigningAlgorithm, u16)> {
    match algorithm {
        SignatureAlgorithm::Ecdsa256 => Some((&signature::ECDSA_P256_SHA256_FIXED_SIGNING, 256)),
        SignatureAlgorithm::Ecdsa384 => Some((&signature::ECDSA_P384_SHA384_FIXED_SIGNING, 384)),
        SignatureAlgorithm::Ecdsa521 => Some((&signature::ECDSA_P521_SHA512_FIXED_SIGNING, 521)),
        SignatureAlgorithm::Rsa => None,
    }
}

impl Provider for AwsLc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fill(&self, out: &mut [u8]) {
        // AWS-LC aborts rather than hand out predictable octets; an error cannot be seen here.
        if aws_lc_rs::rand::fill(out).is_err() {
            std::process::abort();
        }
    }

    fn dh_generate(&self, group: DhGroup) -> Result<Box<dyn DhKey>, CryptoError> {
        match curve(group) {
            Some(algorithm) => {
                let key =
                    PrivateKey::generate(algorithm).map_err(|_| CryptoError::Library("key generation"))?;
                Ok(Box::new(CurveKey::new(group, key)?))
            }
            None => {
                let mut exponent = vec![0; dh::exponent_len(group)];
                self.fill(&mut exponent);
                Ok(Box::new(ModpKey::new(group, SecretBytes::new(exponent))?))
            }
        }
    }

    fn dh_from_private(&self, group: DhGroup, private: &[u8]) -> Result<Box<dyn DhKey>, CryptoError> {
        match curve(group) {
            Some(algorithm) => {
                let key = PrivateKey::from_private_key(algorithm, private)
                    .map_err(|_| CryptoError::Key("not a private value of this curve"))?;
                Ok(Box::new(CurveKey::new(group, key)?))
            }
            None => {
                let exponent = dh::given_exponent(group, private)
                    .ok_or(CryptoError::Key("not a private value of this group"))?;
                Ok(Box::new(ModpKey::new(group, exponent)?))
            }
        }
    }

    fn generate_signing_key(
        &self,
        algorithm: SignatureAlgorithm,
        key_bits: u16,
    ) -> Result<SecretBytes, CryptoError> {
        let failed = CryptoError::Library("signing key generation");
        match ecdsa(algorithm) {
            Some((algorithm, _)) => {
                let key = EcdsaKeyPair::generate(algorithm).map_err(|_| failed.clone())?;
                Ok(SecretBytes::copy(key.to_pkcs8v1().map_err(|_| failed)?.as_ref()))
            }
            None => {
                let size = match key_bits {
                    2048 => KeySize::Rsa2048,
                    3072 => KeySize::Rsa3072,
                    4096 => KeySize::Rsa4096,
                    _ => return Err(CryptoError::Key("RSA keys have 2048, 3072 or 4096 bits")),
                };
                let key = RsaKeyPair::generate(size).map_err(|_| failed.clone())?;
                let der: Pkcs8V1Der<'_> = key.as_der().map_err(|_| failed)?;
                Ok(SecretBytes::copy(der.as_ref()))
            }
        }
    }

    fn signer(
        &self,
        algorithm: SignatureAlgorithm,
        pkcs8: &SecretBytes,
    ) -> Result<Arc<dyn Signer>, CryptoError> {
        let refused = CryptoError::Key("not a PKCS#8 key of this algorithm");
        let (key, key_bits, public) = match ecdsa(algorithm) {
            Some((ecdsa, bits)) => {
                let key = EcdsaKeyPair::from_pkcs8(ecdsa, pkcs8.expose()).map_err(|_| refused.clone())?;
                let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| refused)?;
                let public = public.as_ref().to_vec();
                (PushKey::Ecdsa(Box::new(key)), bits, public)
            }
            None => {
                let key = RsaKeyPair::from_pkcs8(pkcs8.expose()).map_err(|_| refused.clone())?;
                let bits = u16::try_from(key.public_modulus_len() * 8).map_err(|_| refused.clone())?;
                if bits < 2048 {
                    return Err(CryptoError::Key("RSA keys below 2048 bits are refused"));
                }
                let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| refused)?;
                let public = public.as_ref().to_vec();
                (PushKey::Rsa(Box::new(key), rsa::PrivateKey::load(pkcs8)?), bits, public)
            }
        };
        Ok(Arc::new(PushSigner { algorithm, key_bits, public_key: public, key }))
    }

    fn verify(&self, check: &Verification) -> Result<(), CryptoError> {
        use SignatureAlgorithm as A;
        use SignatureHash as H;
        public_key::check_hash(NAME, check.algorithm, check.hash)?;
        public_key::open(check.algorithm, &check.public_key)?;
        let (algorithm, hash): (&'static dyn signature::VerificationAlgorithm, Hash) =
            match (check.algorithm, check.hash) {
                (A::Rsa, H::Sha384) => (&signature::RSA_PKCS1_2048_8192_SHA384, Hash::Sha384),
                (A::Rsa, H::Sha512) => (&signature::RSA_PKCS1_2048_8192_SHA512, Hash::Sha512),
                (A::Rsa, H::Sha256 | H::Sha1) => (&signature::RSA_PKCS1_2048_8192_SHA256, Hash::Sha256),
                (A::Ecdsa256, _) => (&signature::ECDSA_P256_SHA256_FIXED, Hash::Sha256),
                (A::Ecdsa384, _) => (&signature::ECDSA_P384_SHA384_FIXED, Hash::Sha384),
                (A::Ecdsa521, _) => (&signature::ECDSA_P521_SHA512_FIXED, Hash::Sha512),
            };
        let key = ParsedPublicKey::new(algorithm, &check.public_key)
            .map_err(|_| CryptoError::Key("not a SubjectPublicKeyInfo of this algorithm"))?;
        if key.verify_sig(&check.input, &check.signature).is_ok() {
            return Ok(());
        }
        if check.bare_digest && check.algorithm == A::Rsa {
            return rsa::verify_bare(&check.public_key, &digest(hash, &[&check.input]), &check.signature);
        }
        Err(CryptoError::Signature)
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
