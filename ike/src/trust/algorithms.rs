//! Signature algorithms of certificates and revocation lists: RSA (PKCS#1 v1.5, PSS) and ECDSA with SHA-2, by the
//! library of the build. SHA-1 and MD5 are in no list, so nothing signed with them verifies.

use pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
#[cfg(feature = "aws-lc")]
use webpki::aws_lc_rs as library;
#[cfg(all(feature = "portable", not(feature = "aws-lc")))]
use webpki::ring as library;
use x509_cert::der::asn1::BitStringRef;
use x509_cert::der::{Decode, Reader, SliceReader};

/// Every algorithm a certificate or list may be signed with.
pub(super) static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::ECDSA_P256_SHA256,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::ECDSA_P256_SHA384,
    #[cfg(feature = "aws-lc")]
    library::ECDSA_P256_SHA512,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::ECDSA_P384_SHA256,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::ECDSA_P384_SHA384,
    #[cfg(feature = "aws-lc")]
    library::ECDSA_P384_SHA512,
    #[cfg(feature = "aws-lc")]
    library::ECDSA_P521_SHA256,
    #[cfg(feature = "aws-lc")]
    library::ECDSA_P521_SHA384,
    #[cfg(feature = "aws-lc")]
    library::ECDSA_P521_SHA512,
    #[cfg(all(feature = "portable", not(feature = "aws-lc")))]
    &p521_sha512::EcdsaP521Sha512,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::RSA_PKCS1_2048_8192_SHA256,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::RSA_PKCS1_2048_8192_SHA384,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::RSA_PKCS1_2048_8192_SHA512,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    #[cfg(any(feature = "aws-lc", feature = "portable"))]
    library::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// True when the signature of `der`, a certificate or a revocation list, is by the key in `key`.
pub(super) fn signed_by(der: &[u8], key: &SubjectPublicKeyInfoDer<'_>) -> bool {
    let parts = SliceReader::new(der).and_then(|mut reader| {
        reader.sequence(|r| {
            let signed = r.tlv_bytes()?;
            let algorithm = r.tlv_bytes()?;
            Ok::<_, x509_cert::der::Error>((signed, algorithm, BitStringRef::decode(r)?))
        })
    });
    let Ok((signed, algorithm, signature)) = parts else { return false };
    let Some(signature) = signature.as_bytes() else { return false };
    let Ok(key) = webpki::RawPublicKeyEntity::try_from(key) else { return false };
    // The identifiers of the list have no SEQUENCE header, and all are shorter than 128 octets.
    let identifier = algorithm.get(2..).unwrap_or_default();
    ALGORITHMS
        .iter()
        .filter(|known| known.signature_alg_id().as_ref() == identifier)
        .any(|known| key.verify_signature(*known, signed, signature).is_ok())
}

/// ring has no P-521.
#[cfg(all(feature = "portable", not(feature = "aws-lc")))]
mod p521_sha512 {
    use p521::ecdsa::signature::Verifier as _;
    use p521::ecdsa::{Signature, VerifyingKey};
    use pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

    /// ECDSA on P-521 with SHA-512, signature in DER (RFC 5758 section 3.2).
    #[derive(Debug)]
    pub(super) struct EcdsaP521Sha512;

    impl SignatureVerificationAlgorithm for EcdsaP521Sha512 {
        fn verify_signature(
            &self,
            key: &[u8],
            message: &[u8],
            signature: &[u8],
        ) -> Result<(), InvalidSignature> {
            let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
            let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
            key.verify(message, &signature).map_err(|_| InvalidSignature)
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_P521
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_SHA512
        }
    }
}
