//! Public keys of PUSH signatures as both providers read them: DER SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7),
//! RSA keys of 2048 to 8192 bits (RFC 3279 section 2.3.1), points uncompressed on named curves (RFC 5480 section 2).

use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};

use super::CryptoError;
use crate::crypto::AuthMethod;

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const INTEGER: u8 = 0x02;

/// AlgorithmIdentifier, whole.
const fn identifier(algorithm: SignatureAlgorithm) -> &'static [u8] {
    match algorithm {
        // 1.2.840.113549.1.1.1, NULL
        SignatureAlgorithm::Rsa => b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00",
        // 1.2.840.10045.2.1, then 1.2.840.10045.3.1.7, 1.3.132.0.34, 1.3.132.0.35
        SignatureAlgorithm::Ecdsa256 => {
            b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"
        }
        SignatureAlgorithm::Ecdsa384 => {
            b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22"
        }
        SignatureAlgorithm::Ecdsa521 => {
            b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x23"
        }
    }
}

/// Octets of a point with its lead octet; none for RSA.
const fn point_len(algorithm: SignatureAlgorithm) -> Option<usize> {
    match algorithm {
        SignatureAlgorithm::Rsa => None,
        SignatureAlgorithm::Ecdsa256 => Some(65),
        SignatureAlgorithm::Ecdsa384 => Some(97),
        SignatureAlgorithm::Ecdsa521 => Some(133),
    }
}

/// The algorithm of a phase 1 method, and for ECDSA the octets of its digest.
///
/// # Errors
/// [`CryptoError::Key`] for a method without signatures.
pub(super) fn of_method(method: AuthMethod) -> Result<(SignatureAlgorithm, Option<usize>), CryptoError> {
    match method {
        AuthMethod::RsaSignature => Ok((SignatureAlgorithm::Rsa, None)),
        AuthMethod::Ecdsa256 => Ok((SignatureAlgorithm::Ecdsa256, Some(32))),
        AuthMethod::Ecdsa384 => Ok((SignatureAlgorithm::Ecdsa384, Some(48))),
        AuthMethod::Ecdsa521 => Ok((SignatureAlgorithm::Ecdsa521, Some(64))),
        AuthMethod::PreSharedKey => Err(CryptoError::Key("pre-shared keys do not sign")),
    }
}

/// ECDSA fixes its hash (RFC 4754 section 3); RSA takes any but SHA-1, which no provider signs or verifies with.
pub(super) fn check_hash(
    provider: &'static str,
    algorithm: SignatureAlgorithm,
    hash: SignatureHash,
) -> Result<(), CryptoError> {
    use SignatureAlgorithm as A;
    use SignatureHash as H;
    match (algorithm, hash) {
        (_, H::Sha1) => Err(CryptoError::Unsupported { provider, what: "sign or verify with SHA-1" }),
        (A::Rsa, H::Sha256 | H::Sha384 | H::Sha512)
        | (A::Ecdsa256, H::Sha256)
        | (A::Ecdsa384, H::Sha384)
        | (A::Ecdsa521, H::Sha512) => Ok(()),
        (A::Ecdsa256 | A::Ecdsa384 | A::Ecdsa521, H::Sha256 | H::Sha384 | H::Sha512) => {
            Err(CryptoError::Key("the hash is not the one of this ECDSA algorithm"))
        }
    }
}

/// The key inside a SubjectPublicKeyInfo: RSAPublicKey, or an uncompressed point with its lead octet.
///
/// # Errors
/// [`CryptoError::Key`] for another algorithm, other DER, a compressed point, or RSA outside 2048 to 8192 bits.
pub(super) fn open(algorithm: SignatureAlgorithm, der: &[u8]) -> Result<&[u8], CryptoError> {
    let unreadable = CryptoError::Key("not a SubjectPublicKeyInfo of this algorithm");
    let key = (|| {
        let (body, rest) = element(SEQUENCE, der)?;
        let (bits, after) = element(BIT_STRING, body.strip_prefix(identifier(algorithm))?)?;
        let key = bits.strip_prefix(&[0])?;
        (rest.is_empty() && after.is_empty()).then_some(key)
    })()
    .ok_or(unreadable.clone())?;
    match point_len(algorithm) {
        Some(len) if key.len() == len && key.first() == Some(&0x04) => Ok(key),
        Some(_) => Err(CryptoError::Key("not an uncompressed point of this curve")),
        None => {
            let (modulus, _) = rsa_numbers(key).ok_or(unreadable)?;
            if modulus.len() < 256 || modulus.len() == 256 && modulus.first() < Some(&0x80) {
                return Err(CryptoError::Key("RSA keys below 2048 bits are refused"));
            }
            if modulus.len() > 1024 {
                return Err(CryptoError::Key("RSA keys above 8192 bits are refused"));
            }
            Ok(key)
        }
    }
}

/// Modulus and public exponent of an RSAPublicKey, high octet first and not zero.
pub(super) fn rsa_numbers(key: &[u8]) -> Option<(&[u8], &[u8])> {
    fn positive(number: &[u8]) -> Option<&[u8]> {
        match number {
            [0, rest @ ..] if rest.first()? & 0x80 != 0 => Some(rest),
            [first, ..] if (1..0x80).contains(first) => Some(number),
            _ => None,
        }
    }
    let (body, rest) = element(SEQUENCE, key)?;
    let (modulus, after) = element(INTEGER, body)?;
    let (exponent, end) = element(INTEGER, after)?;
    if rest.is_empty() && end.is_empty() { Some((positive(modulus)?, positive(exponent)?)) } else { None }
}

/// SubjectPublicKeyInfo around an RSAPublicKey or an uncompressed point: the inverse of [`open`].
#[cfg(feature = "portable")]
pub(super) fn seal(algorithm: SignatureAlgorithm, key: &[u8]) -> Vec<u8> {
    fn push(out: &mut Vec<u8>, tag: u8, len: usize) {
        let [high, low] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
        match (high, low) {
            (0, 0..=0x7f) => out.extend_from_slice(&[tag, low]),
            (0, _) => out.extend_from_slice(&[tag, 0x81, low]),
            (_, _) => out.extend_from_slice(&[tag, 0x82, high, low]),
        }
    }
    let mut body = identifier(algorithm).to_vec();
    push(&mut body, BIT_STRING, key.len() + 1);
    body.push(0);
    body.extend_from_slice(key);
    let mut out = Vec::with_capacity(body.len() + 4);
    push(&mut out, SEQUENCE, body.len());
    out.extend_from_slice(&body);
    out
}

/// The content of the DER element at the head of `input`, and what follows it. Lengths to 65535, minimal.
fn element(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = match input.strip_prefix(&[tag])? {
        [len @ 0..=0x7f, rest @ ..] => (usize::from(*len), rest),
        [0x81, len @ 0x80..=0xff, rest @ ..] => (usize::from(*len), rest),
        [0x82, high @ 1..=0xff, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SubjectPublicKeyInfo of an RSA key whose modulus has `octets` octets and starts with `first`.
    fn rsa(octets: usize, first: u8) -> Vec<u8> {
        fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
            let len = u16::try_from(content.len()).expect("short").to_be_bytes();
            let head = match len {
                [0, low @ 0..=0x7f] => vec![tag, low],
                [0, low] => vec![tag, 0x81, low],
                [high, low] => vec![tag, 0x82, high, low],
            };
            [head, content.to_vec()].concat()
        }
        let mut modulus = vec![0xa5; octets];
        modulus[0] = first;
        if first >= 0x80 {
            modulus.insert(0, 0);
        }
        let key = wrap(SEQUENCE, &[wrap(INTEGER, &modulus), wrap(INTEGER, &[1, 0, 1])].concat());
        let bits = wrap(BIT_STRING, &[&[0], key.as_slice()].concat());
        wrap(SEQUENCE, &[identifier(SignatureAlgorithm::Rsa), &bits].concat())
    }

    #[test]
    fn rsa_keys_of_2048_to_8192_bits_are_read_and_others_refused() {
        for (octets, first, good) in [
            (256, 0x80, true),
            (256, 0x7f, false),
            (255, 0xff, false),
            (128, 0xff, false),
            (512, 0x80, true),
            (1024, 0xff, true),
            (1025, 0x01, false),
        ] {
            let der = rsa(octets, first);
            let read = open(SignatureAlgorithm::Rsa, &der);
            assert_eq!(read.is_ok(), good, "{octets} octets from {first:02x}: {read:?}");
            if let Ok(key) = read {
                let (modulus, exponent) = rsa_numbers(key).expect("two numbers");
                assert_eq!((modulus.len(), exponent), (octets, [1, 0, 1].as_slice()));
            }
        }
    }

    #[test]
    fn every_cut_and_every_trailing_octet_is_refused() {
        let der = rsa(256, 0x80);
        for len in 0..der.len() {
            assert!(open(SignatureAlgorithm::Rsa, &der[..len]).is_err(), "{len} octets");
        }
        assert!(open(SignatureAlgorithm::Rsa, &[der, vec![0]].concat()).is_err());
    }

    #[test]
    fn a_key_of_another_algorithm_is_refused() {
        let der = rsa(256, 0x80);
        for algorithm in
            [SignatureAlgorithm::Ecdsa256, SignatureAlgorithm::Ecdsa384, SignatureAlgorithm::Ecdsa521]
        {
            assert!(matches!(open(algorithm, &der), Err(CryptoError::Key(_))));
        }
    }

    #[test]
    fn ecdsa_takes_its_own_hash_only() {
        use SignatureAlgorithm as A;
        use SignatureHash as H;
        assert_eq!(check_hash("test", A::Ecdsa384, H::Sha384), Ok(()));
        assert!(matches!(check_hash("test", A::Ecdsa384, H::Sha256), Err(CryptoError::Key(_))));
        assert!(matches!(check_hash("test", A::Rsa, H::Sha1), Err(CryptoError::Unsupported { .. })));
    }
}
