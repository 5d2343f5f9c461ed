//! The rekey SA: a SAK and what it means (RFC 6407 section 5.3, RFC 8263 section 2).

use super::{Carriage, aes_octets, bits, number, refuse_repeats};
use crate::attribute::Attribute;
use crate::error::PolicyError;
use crate::ids::KekSpi;
use crate::payload::{Endpoint, SaKek};
use crate::registry::{
    AckType, KekAlgorithm, KekAttribute, KekManagement, PayloadType, SigAlgorithm, SigHashAlgorithm,
};

const PAYLOAD: PayloadType = PayloadType::SaKek;

/// The IP protocol of every PUSH.
const UDP: u8 = 17;

/// Life of a KEK whose SAK names none.
const DEFAULT_LIFETIME_SECONDS: u32 = 28800;

/// KEK_ALGORITHM with its key length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KekCipher {
    /// AES-CBC with 16, 24 or 32 octets of key.
    AesCbc {
        /// Octets of key; 0 when the SAK had no KEK_KEY_LENGTH: then the KEK in the KD tells
        /// (see [`KekCipher::key_octets_for`]).
        key_octets: usize,
    },
    /// 3DES-CBC: decoded, never installed.
    TripleDesCbc,
}

/// SIG_HASH_ALGORITHM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignatureHash {
    /// 2: decoded for legacy peers.
    Sha1,
    /// 3.
    Sha256,
    /// 4.
    Sha384,
    /// 5.
    Sha512,
}

/// SIG_ALGORITHM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignatureAlgorithm {
    /// 1, RSASSA-PKCS1-v1_5.
    Rsa,
    /// 4, P-256 with SHA-256.
    Ecdsa256,
    /// 5, P-384 with SHA-384.
    Ecdsa384,
    /// 6, P-521 with SHA-512.
    Ecdsa521,
}

/// KEK_ACK_REQUESTED (RFC 8263 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AckRequest {
    /// 1.
    KekSha256,
    /// 2.
    LkhSha256,
    /// 3.
    KekSha512,
    /// 4.
    LkhSha512,
}

/// A rekey SA policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekPolicy {
    /// Cookie pair of its PUSHes.
    pub spi: KekSpi,
    /// Where PUSHes come from.
    pub source: Endpoint,
    /// Where PUSHes go to.
    pub destination: Endpoint,
    /// Cipher and key length.
    pub cipher: KekCipher,
    /// Remaining life in seconds when sent; 28800 when absent (the default of RFC 2407 section 4.5).
    pub lifetime_seconds: u32,
    /// Hash of the signature; implied by ECDSA.
    pub signature_hash: SignatureHash,
    /// Signature algorithm.
    pub signature: SignatureAlgorithm,
    /// SIG_KEY_LENGTH in bits, as sent; never compared (RFC 6407 names no rule).
    pub signature_key_bits: Option<u16>,
    /// Acknowledgements wanted; an unknown value reads as none (RFC 8263 section 4).
    pub acknowledgement: Option<AckRequest>,
    /// KEK_MANAGEMENT_ALGORITHM LKH; PUSH only.
    pub lkh: bool,
}

impl KekPolicy {
    /// Reads a SAK.
    ///
    /// # Errors
    /// [`PolicyError`]: KEK_ALGORITHM or SIG_ALGORITHM missing, SIG_HASH_ALGORITHM missing with RSA or contradicting
    /// ECDSA, a repeated attribute, unknown attribute or value.
    pub fn read(sak: &SaKek, carriage: Carriage) -> Result<KekPolicy, PolicyError> {
        let mut found = Found::default();
        if sak.protocol != UDP {
            return Err(unsupported("IP protocol", u64::from(sak.protocol)));
        }
        refuse_repeats(PAYLOAD, &sak.attributes, |_| false)?;
        for attribute in &sak.attributes {
            found.take(attribute, carriage)?;
        }
        found.policy(sak)
    }

    /// Writes the SAK: attributes KEK_ALGORITHM, KEK_KEY_LENGTH, KEK_KEY_LIFETIME, SIG_HASH_ALGORITHM,
    /// SIG_ALGORITHM, SIG_KEY_LENGTH, KEK_ACK_REQUESTED in this order (the order of the vectors).
    pub fn write(&self, carriage: Carriage) -> SaKek {
        let mut attributes = Vec::new();
        let mut basic = |kind: KekAttribute, value| attributes.push(Attribute::basic(kind.number(), value));
        if self.lkh && carriage == Carriage::Push {
            basic(KekAttribute::ManagementAlgorithm, KekManagement::Lkh.number());
        }
        match self.cipher {
            KekCipher::AesCbc { key_octets } => {
                basic(KekAttribute::Algorithm, KekAlgorithm::Aes.number());
                if key_octets != 0 {
                    basic(KekAttribute::KeyLength, bits(key_octets));
                }
            }
            KekCipher::TripleDesCbc => basic(KekAttribute::Algorithm, KekAlgorithm::TripleDes.number()),
        }
        let lifetime = self.lifetime_seconds.to_be_bytes();
        attributes.push(Attribute::variable(KekAttribute::KeyLifetime.number(), lifetime));
        let mut basic = |kind: KekAttribute, value| attributes.push(Attribute::basic(kind.number(), value));
        if self.signature.implied_hash().is_none() {
            basic(KekAttribute::SigHashAlgorithm, self.signature_hash.registry().number());
        }
        basic(KekAttribute::SigAlgorithm, self.signature.registry().number());
        if let Some(length) = self.signature_key_bits {
            basic(KekAttribute::SigKeyLength, length);
        }
        if let Some(request) = self.acknowledgement {
            basic(KekAttribute::AckRequested, request.registry().number());
        }
        SaKek {
            protocol: UDP,
            source: self.source.clone(),
            destination: self.destination.clone(),
            spi: self.spi,
            reserved2: vec![0; 4],
            attributes,
        }
    }
}

impl KekCipher {
    /// Octets of one cipher block, which is also the length of the IV.
    pub fn block_octets(self) -> usize {
        match self {
            KekCipher::AesCbc { .. } => 16,
            KekCipher::TripleDesCbc => 8,
        }
    }

    /// Octets of key in a `IV | key` of `octets`, or none when the length does not fit the cipher. A policy without
    /// KEK_KEY_LENGTH takes any AES key.
    pub fn key_octets_for(self, octets: usize) -> Option<usize> {
        let had = octets.checked_sub(self.block_octets())?;
        let fits = match self {
            KekCipher::AesCbc { key_octets: 0 } => matches!(had, 16 | 24 | 32),
            KekCipher::AesCbc { key_octets } => had == key_octets,
            KekCipher::TripleDesCbc => had == 24,
        };
        fits.then_some(had)
    }

    /// Its number: KEK_ALGORITHM, and the key type of its LKH keys.
    pub fn registry(self) -> KekAlgorithm {
        match self {
            KekCipher::AesCbc { .. } => KekAlgorithm::Aes,
            KekCipher::TripleDesCbc => KekAlgorithm::TripleDes,
        }
    }
}

impl SignatureHash {
    /// Its number.
    pub fn registry(self) -> SigHashAlgorithm {
        match self {
            SignatureHash::Sha1 => SigHashAlgorithm::Sha1,
            SignatureHash::Sha256 => SigHashAlgorithm::Sha256,
            SignatureHash::Sha384 => SigHashAlgorithm::Sha384,
            SignatureHash::Sha512 => SigHashAlgorithm::Sha512,
        }
    }
}

impl SignatureAlgorithm {
    /// Its number.
    pub fn registry(self) -> SigAlgorithm {
        match self {
            SignatureAlgorithm::Rsa => SigAlgorithm::Rsa,
            SignatureAlgorithm::Ecdsa256 => SigAlgorithm::Ecdsa256,
            SignatureAlgorithm::Ecdsa384 => SigAlgorithm::Ecdsa384,
            SignatureAlgorithm::Ecdsa521 => SigAlgorithm::Ecdsa521,
        }
    }

    /// Octets of a SIG body by a key of `key_bits`: the modulus, or r | s (RFC 6407 section 5.3.6, RFC 4754 section 7).
    pub fn octets(self, key_bits: u16) -> usize {
        match self {
            SignatureAlgorithm::Rsa => usize::from(key_bits.div_ceil(8)),
            SignatureAlgorithm::Ecdsa256 => 64,
            SignatureAlgorithm::Ecdsa384 => 96,
            SignatureAlgorithm::Ecdsa521 => 132,
        }
    }

    /// Octets of a SubjectPublicKeyInfo in DER with a key of `key_bits` (for RSA with the exponent 65537): SIG_ALGORITHM_KEY.
    pub fn public_key_octets(self, key_bits: u16) -> usize {
        match self {
            // 38 octets of frame, and the modulus with the zero that keeps it positive.
            SignatureAlgorithm::Rsa => usize::from(key_bits.div_ceil(8)) + 38,
            SignatureAlgorithm::Ecdsa256 => 91,
            SignatureAlgorithm::Ecdsa384 => 120,
            SignatureAlgorithm::Ecdsa521 => 158,
        }
    }

    /// The hash that an ECDSA algorithm fixes, none for RSA.
    pub fn implied_hash(self) -> Option<SignatureHash> {
        match self {
            SignatureAlgorithm::Rsa => None,
            SignatureAlgorithm::Ecdsa256 => Some(SignatureHash::Sha256),
            SignatureAlgorithm::Ecdsa384 => Some(SignatureHash::Sha384),
            SignatureAlgorithm::Ecdsa521 => Some(SignatureHash::Sha512),
        }
    }
}

impl AckRequest {
    /// Its number.
    pub fn registry(self) -> AckType {
        match self {
            AckRequest::KekSha256 => AckType::KekSha256,
            AckRequest::LkhSha256 => AckType::LkhSha256,
            AckRequest::KekSha512 => AckType::KekSha512,
            AckRequest::LkhSha512 => AckType::LkhSha512,
        }
    }
}

fn unsupported(what: &'static str, value: u64) -> PolicyError {
    PolicyError::Unsupported { payload: PAYLOAD, what, value }
}

fn missing(what: &'static str) -> PolicyError {
    PolicyError::Missing { payload: PAYLOAD, what }
}

/// What the attributes of a SAK said so far.
#[derive(Default)]
struct Found {
    algorithm: Option<KekAlgorithm>,
    key_bits: Option<u64>,
    lifetime_seconds: Option<u32>,
    signature_hash: Option<SignatureHash>,
    signature: Option<SignatureAlgorithm>,
    signature_key_bits: Option<u16>,
    acknowledgement: Option<AckRequest>,
    lkh: bool,
}

impl Found {
    fn take(&mut self, attribute: &Attribute, carriage: Carriage) -> Result<(), PolicyError> {
        let value = |what| number::<u16>(PAYLOAD, what, attribute);
        match KekAttribute::from_number(attribute.kind) {
            // Forbidden in a PULL but sent there by members of the RFC 3547 family: RFC 6407 says to ignore it.
            KekAttribute::ManagementAlgorithm if carriage == Carriage::Pull => {}
            KekAttribute::ManagementAlgorithm => {
                match KekManagement::from_number(value("KEK_MANAGEMENT_ALGORITHM")?) {
                    KekManagement::Lkh => self.lkh = true,
                    KekManagement::Other(other) => {
                        return Err(unsupported("KEK_MANAGEMENT_ALGORITHM", u64::from(other)));
                    }
                }
            }
            KekAttribute::Algorithm => {
                self.algorithm = Some(KekAlgorithm::from_number(value("KEK_ALGORITHM")?))
            }
            KekAttribute::KeyLength => self.key_bits = Some(u64::from(value("KEK_KEY_LENGTH")?)),
            KekAttribute::KeyLifetime => {
                self.lifetime_seconds = Some(number(PAYLOAD, "KEK_KEY_LIFETIME", attribute)?);
            }
            KekAttribute::SigHashAlgorithm => {
                self.signature_hash =
                    Some(match SigHashAlgorithm::from_number(value("SIG_HASH_ALGORITHM")?) {
                        SigHashAlgorithm::Sha1 => SignatureHash::Sha1,
                        SigHashAlgorithm::Sha256 => SignatureHash::Sha256,
                        SigHashAlgorithm::Sha384 => SignatureHash::Sha384,
                        SigHashAlgorithm::Sha512 => SignatureHash::Sha512,
                        other @ (SigHashAlgorithm::Md5 | SigHashAlgorithm::Other(_)) => {
                            return Err(unsupported("SIG_HASH_ALGORITHM", u64::from(other.number())));
                        }
                    });
            }
            KekAttribute::SigAlgorithm => {
                self.signature = Some(match SigAlgorithm::from_number(value("SIG_ALGORITHM")?) {
                    SigAlgorithm::Rsa => SignatureAlgorithm::Rsa,
                    SigAlgorithm::Ecdsa256 => SignatureAlgorithm::Ecdsa256,
                    SigAlgorithm::Ecdsa384 => SignatureAlgorithm::Ecdsa384,
                    SigAlgorithm::Ecdsa521 => SignatureAlgorithm::Ecdsa521,
                    other @ (SigAlgorithm::Dss | SigAlgorithm::Ecdss | SigAlgorithm::Other(_)) => {
                        return Err(unsupported("SIG_ALGORITHM", u64::from(other.number())));
                    }
                });
            }
            // Peers disagree about what it counts, so an odd value is no error.
            KekAttribute::SigKeyLength => {
                self.signature_key_bits = attribute.integer().and_then(|bits| u16::try_from(bits).ok());
            }
            KekAttribute::KeOakleyGroup => {}
            KekAttribute::AckRequested => {
                self.acknowledgement = match attribute.integer().map(u16::try_from) {
                    Some(Ok(1)) => Some(AckRequest::KekSha256),
                    Some(Ok(2)) => Some(AckRequest::LkhSha256),
                    Some(Ok(3)) => Some(AckRequest::KekSha512),
                    Some(Ok(4)) => Some(AckRequest::LkhSha512),
                    _ => None,
                };
            }
            KekAttribute::Other(kind) => return Err(unsupported("KEK attribute", u64::from(kind))),
        }
        Ok(())
    }

    fn policy(self, sak: &SaKek) -> Result<KekPolicy, PolicyError> {
        let cipher = match self.algorithm.ok_or(missing("KEK_ALGORITHM"))? {
            KekAlgorithm::Aes => {
                let octets =
                    self.key_bits.map(|bits| aes_octets(PAYLOAD, "KEK_KEY_LENGTH", bits)).transpose()?;
                KekCipher::AesCbc { key_octets: octets.unwrap_or(0) }
            }
            KekAlgorithm::TripleDes => KekCipher::TripleDesCbc,
            other @ (KekAlgorithm::Des | KekAlgorithm::Other(_)) => {
                return Err(unsupported("KEK_ALGORITHM", u64::from(other.number())));
            }
        };
        let signature = self.signature.ok_or(missing("SIG_ALGORITHM"))?;
        let signature_hash = match (signature.implied_hash(), self.signature_hash) {
            (Some(implied), Some(said)) if implied != said => {
                return Err(PolicyError::Forbidden {
                    payload: PAYLOAD,
                    rule: "SIG_HASH_ALGORITHM contradicts SIG_ALGORITHM",
                });
            }
            (Some(implied), _) => implied,
            (None, said) => said.ok_or(missing("SIG_HASH_ALGORITHM"))?,
        };
        Ok(KekPolicy {
            spi: sak.spi,
            source: sak.source.clone(),
            destination: sak.destination.clone(),
            cipher,
            lifetime_seconds: self.lifetime_seconds.unwrap_or(DEFAULT_LIFETIME_SECONDS),
            signature_hash,
            signature,
            signature_key_bits: self.signature_key_bits,
            acknowledgement: self.acknowledgement,
            lkh: self.lkh,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::IdType;

    fn sak(attributes: Vec<Attribute>) -> SaKek {
        let endpoint = Endpoint { id_type: IdType::Ipv4Addr, port: 848, data: vec![192, 0, 2, 1] };
        SaKek {
            protocol: 17,
            source: endpoint.clone(),
            destination: endpoint,
            spi: KekSpi([7; 16]),
            reserved2: vec![0; 4],
            attributes,
        }
    }

    fn read(pairs: &[(u16, u16)], carriage: Carriage) -> Result<KekPolicy, PolicyError> {
        KekPolicy::read(
            &sak(pairs.iter().map(|(kind, value)| Attribute::basic(*kind, *value)).collect()),
            carriage,
        )
    }

    #[test]
    fn policy_is_written_as_read() {
        for carriage in [Carriage::Pull, Carriage::Push] {
            let policy = read(&[(1, 1), (2, 3), (3, 256), (4, 3600), (6, 5), (9, 3)], carriage).unwrap();
            assert_eq!(policy.cipher, KekCipher::AesCbc { key_octets: 32 });
            assert_eq!(policy.signature_hash, SignatureHash::Sha384);
            assert_eq!(policy.acknowledgement, Some(AckRequest::KekSha512));
            assert_eq!(policy.lkh, carriage == Carriage::Push);
            assert_eq!(KekPolicy::read(&policy.write(carriage), carriage), Ok(policy));
        }
    }

    #[test]
    fn lifetime_and_numbers_are_read_from_both_forms() {
        let attributes = vec![
            Attribute::variable(2, [0, 3]),
            Attribute::variable(4, [0, 1, 0x51, 0x80]),
            Attribute::basic(5, 3),
            Attribute::basic(6, 1),
        ];
        let policy = KekPolicy::read(&sak(attributes), Carriage::Pull).unwrap();
        assert_eq!(policy.lifetime_seconds, 86400);
        assert_eq!(policy.cipher, KekCipher::AesCbc { key_octets: 0 });
        assert_eq!(read(&[(2, 3), (6, 4), (4, 60)], Carriage::Pull).unwrap().lifetime_seconds, 60);
        assert_eq!(read(&[(2, 3), (6, 4)], Carriage::Pull).unwrap().lifetime_seconds, 28800);
    }

    #[test]
    fn required_attributes_are_missed() {
        let missed =
            |pairs: &[(u16, u16)]| matches!(read(pairs, Carriage::Pull), Err(PolicyError::Missing { .. }));
        assert!(missed(&[(6, 4)]));
        assert!(missed(&[(2, 3)]));
        assert!(missed(&[(2, 3), (6, 1)]));
    }

    #[test]
    fn unknown_values_are_unsupported_but_an_unknown_ack_type_and_old_attributes_are_not() {
        let with = |pair| read(&[(2, 3), (6, 4), pair], Carriage::Push);
        for pair in [(3, 129), (5, 1), (10, 0), (200, 1), (1, 2)] {
            assert!(matches!(with(pair), Err(PolicyError::Unsupported { .. })), "{pair:?}");
        }
        assert!(matches!(read(&[(2, 1), (6, 4)], Carriage::Pull), Err(PolicyError::Unsupported { .. })));
        assert!(matches!(read(&[(2, 3), (6, 2)], Carriage::Pull), Err(PolicyError::Unsupported { .. })));
        assert!(matches!(with((5, 5)), Err(PolicyError::Forbidden { .. })));
        assert!(matches!(with((2, 3)), Err(PolicyError::Forbidden { .. })));
        assert_eq!(with((9, 77)).unwrap().acknowledgement, None);
        assert!(with((8, 14)).is_ok());
        assert_eq!(with((7, 4400)).unwrap().signature_key_bits, Some(4400));
    }

    #[test]
    fn key_length_follows_the_policy_or_the_key() {
        assert_eq!(KekCipher::AesCbc { key_octets: 16 }.key_octets_for(32), Some(16));
        assert_eq!(KekCipher::AesCbc { key_octets: 16 }.key_octets_for(48), None);
        assert_eq!(KekCipher::AesCbc { key_octets: 0 }.key_octets_for(48), Some(32));
        assert_eq!(KekCipher::AesCbc { key_octets: 0 }.key_octets_for(15), None);
        assert_eq!(KekCipher::TripleDesCbc.key_octets_for(32), Some(24));
    }
}
