//! What a certificate says, for the rules and for an operator's calendar.

use std::fmt;

use x509_cert::Certificate;
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::der::oid::db::{DB, rfc5912};
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::error::{At, CertificateName, Half, Rule, TrustError};
use super::names::AlternativeName;

/// Kind of a public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA.
    Rsa,
    /// ECDSA on NIST P-256, P-384 or P-521.
    Ecdsa,
    /// Something else, by name or object identifier.
    Other(String),
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyKind::Rsa => f.write_str("RSA"),
            KeyKind::Ecdsa => f.write_str("ECDSA"),
            KeyKind::Other(name) => f.write_str(name),
        }
    }
}

/// What an operator's calendar shows of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Subject as RFC 4514 text.
    pub subject: String,
    /// Issuer as RFC 4514 text.
    pub issuer: String,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// First second of validity, Unix seconds.
    pub not_before: u64,
    /// Last second of validity, Unix seconds.
    pub not_after: u64,
    /// Kind of the public key.
    pub key: KeyKind,
    /// Size of the modulus or the curve, bits; 0 when not known.
    pub bits: u32,
    /// Subject alternative names.
    pub names: Vec<AlternativeName>,
}

impl CertificateFacts {
    /// Subject and serial, as errors show them.
    pub fn name(&self) -> CertificateName {
        CertificateName { subject: self.subject.clone(), serial: self.serial.clone() }
    }

    /// Kind and size of the key.
    pub fn key_name(&self) -> String {
        match (&self.key, self.bits) {
            (kind, 0) => kind.to_string(),
            (kind, bits) => format!("{kind} of {bits} bits"),
        }
    }
}

/// The facts of a DER certificate. It is read, not checked.
///
/// # Errors
/// [`Rule::Unreadable`] for other octets.
pub fn facts(der: &[u8]) -> Result<CertificateFacts, TrustError> {
    let unreadable = |rule| TrustError { half: Half::File, certificate: None, rule };
    Parsed::read(der).map(|parsed| parsed.facts).map_err(unreadable)
}

/// The subject of a DER certificate, a DER Name. It is read, not checked.
///
/// # Errors
/// [`Rule::Unreadable`] for other octets.
pub fn subject(der: &[u8]) -> Result<Vec<u8>, TrustError> {
    let unreadable = |rule| TrustError { half: Half::File, certificate: None, rule };
    Parsed::read(der).map(|parsed| parsed.subject).map_err(unreadable)
}

/// The DER SubjectPublicKeyInfo of a DER certificate, to find its private key. It is read, not checked.
///
/// # Errors
/// [`Rule::Unreadable`] for other octets.
pub fn public_key(der: &[u8]) -> Result<Vec<u8>, TrustError> {
    let unreadable = |rule| TrustError { half: Half::File, certificate: None, rule };
    Parsed::read(der).map(|parsed| parsed.public_key).map_err(unreadable)
}

/// A certificate, read.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) der: Vec<u8>,
    /// DER Name.
    pub(super) subject: Vec<u8>,
    /// DER Name.
    pub(super) issuer: Vec<u8>,
    /// DER SubjectPublicKeyInfo.
    pub(super) public_key: Vec<u8>,
    pub(super) facts: CertificateFacts,
    signature_algorithm: ObjectIdentifier,
    key_usage: Option<KeyUsage>,
    extended_key_usage: Option<ExtendedKeyUsage>,
    ca: bool,
}

/// What a certificate is used for in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    EndEntity,
    Intermediate,
    Anchor,
}

/// Short name of an object identifier, or its digits.
fn named(oid: ObjectIdentifier) -> String {
    DB.by_oid(&oid).map_or_else(|| oid.to_string(), str::to_owned)
}

fn key_kind(key: &SubjectPublicKeyInfoOwned) -> (KeyKind, u32) {
    if key.algorithm.oid == rfc5912::RSA_ENCRYPTION {
        let modulus = key.subject_public_key.as_bytes().and_then(|octets| {
            let mut reader = SliceReader::new(octets).ok()?;
            let numbers = reader.sequence(|r| {
                let modulus = UintRef::decode(r)?;
                UintRef::decode(r)?;
                Ok::<_, x509_cert::der::Error>(modulus)
            });
            numbers.ok()
        });
        let bits = modulus.map_or(0, |modulus| {
            let octets = modulus.as_bytes();
            let unused = octets.first().map_or(0, |first| first.leading_zeros());
            u32::try_from(octets.len()).unwrap_or(u32::MAX).saturating_mul(8).saturating_sub(unused)
        });
        return (KeyKind::Rsa, bits);
    }
    if key.algorithm.oid == rfc5912::ID_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|p| p.decode_as::<ObjectIdentifier>().ok());
        return match curve {
            Some(rfc5912::SECP_256_R_1) => (KeyKind::Ecdsa, 256),
            Some(rfc5912::SECP_384_R_1) => (KeyKind::Ecdsa, 384),
            Some(rfc5912::SECP_521_R_1) => (KeyKind::Ecdsa, 521),
            Some(other) => (KeyKind::Other(format!("ECDSA on {}", named(other))), 0),
            None => (KeyKind::Other("ECDSA without a named curve".to_owned()), 0),
        };
    }
    (KeyKind::Other(named(key.algorithm.oid)), 0)
}

impl Parsed {
    pub(super) fn is_ca(&self) -> bool {
        self.ca
    }

    pub(super) fn read(der: &[u8]) -> Result<Parsed, Rule> {
        let unreadable = |error: x509_cert::der::Error| Rule::Unreadable(error.to_string());
        let certificate = Certificate::from_der(der).map_err(unreadable)?;
        let tbs = certificate.tbs_certificate();
        let names = tbs.get_extension::<SubjectAltName>().map_err(unreadable)?;
        let key_usage = tbs.get_extension::<KeyUsage>().map_err(unreadable)?;
        let extended = tbs.get_extension::<ExtendedKeyUsage>().map_err(unreadable)?;
        let constraints = tbs.get_extension::<BasicConstraints>().map_err(unreadable)?;
        let (key, bits) = key_kind(tbs.subject_public_key_info());
        let serial = tbs.serial_number().as_bytes().iter().map(|octet| format!("{octet:02x}")).collect();
        Ok(Parsed {
            der: der.to_vec(),
            subject: tbs.subject().to_der().map_err(unreadable)?,
            issuer: tbs.issuer().to_der().map_err(unreadable)?,
            public_key: tbs.subject_public_key_info().to_der().map_err(unreadable)?,
            facts: CertificateFacts {
                subject: tbs.subject().to_string(),
                issuer: tbs.issuer().to_string(),
                serial,
                not_before: tbs.validity().not_before.to_unix_duration().as_secs(),
                not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
                key,
                bits,
                names: names.map_or_else(Vec::new, |(_, names)| {
                    names.0.iter().map(AlternativeName::from_general).collect()
                }),
            },
            signature_algorithm: certificate.signature_algorithm().oid,
            key_usage: key_usage.map(|(_, usage)| usage),
            extended_key_usage: extended.map(|(_, usage)| usage),
            ca: constraints.is_some_and(|(_, constraints)| constraints.ca),
        })
    }

    /// An error about this certificate.
    pub(super) fn refused(&self, half: Half, rule: Rule) -> TrustError {
        TrustError { half, certificate: Some(self.facts.name()), rule }
    }

    /// The rule of `approved-only`: every key of a path is for ECDSA, and so is every signature on it.
    pub(super) fn outside_approved(&self) -> Option<Rule> {
        match self.facts.key {
            KeyKind::Ecdsa => None,
            KeyKind::Rsa | KeyKind::Other(_) => Some(Rule::NotApproved { found: self.facts.key_name() }),
        }
    }

    /// Every rule this certificate breaks by itself, in this order: signature algorithm (not of an anchor, whose
    /// signature nobody checks), key, validity, CA or not, KeyUsage, ExtendedKeyUsage.
    pub(super) fn broken_rules(&self, role: Role, now: Option<u64>) -> Vec<Rule> {
        let mut rules = Vec::new();
        if role != Role::Anchor && !strong_signature(self.signature_algorithm) {
            rules.push(Rule::SignatureAlgorithm { algorithm: named(self.signature_algorithm) });
        }
        let strong = match self.facts.key {
            KeyKind::Rsa => (2048..=8192).contains(&self.facts.bits),
            KeyKind::Ecdsa => true,
            KeyKind::Other(_) => false,
        };
        if !strong {
            rules.push(Rule::Key { found: self.facts.key_name() });
        }
        if let Some(now) = now {
            if now < self.facts.not_before {
                rules.push(Rule::NotYetValid { not_before: At(self.facts.not_before), now: At(now) });
            }
            if now > self.facts.not_after {
                rules.push(Rule::Expired { not_after: At(self.facts.not_after), now: At(now) });
            }
        }
        match (role, self.ca) {
            (Role::EndEntity, true) => rules.push(Rule::CaAsEndEntity),
            (Role::Intermediate | Role::Anchor, false) => rules.push(Rule::NotCa),
            (Role::EndEntity, false) | (Role::Intermediate | Role::Anchor, true) => {}
        }
        if let Some(usage) = &self.key_usage {
            let (good, expected) = match role {
                Role::EndEntity => (
                    usage.digital_signature() || usage.non_repudiation(),
                    "digitalSignature or nonRepudiation",
                ),
                Role::Intermediate | Role::Anchor => (usage.key_cert_sign(), "keyCertSign"),
            };
            if !good {
                rules.push(Rule::KeyUsage { expected });
            }
        }
        if let Some(usage) = self.extended_key_usage.as_ref().filter(|_| role != Role::Anchor) {
            let good = [ANY_EXTENDED_KEY_USAGE, ID_KP_IPSEC_IKE];
            if !usage.0.iter().any(|purpose| good.contains(purpose)) {
                let found = usage.0.iter().map(|purpose| named(*purpose)).collect();
                rules.push(Rule::ExtendedKeyUsage { found });
            }
        }
        rules
    }
}

const ANY_EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
const ID_KP_IPSEC_IKE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.17");

/// RSA (PKCS#1 v1.5, PSS) and ECDSA, with SHA-256, SHA-384 or SHA-512. The parameters of PSS are for path validation.
fn strong_signature(algorithm: ObjectIdentifier) -> bool {
    [
        rfc5912::SHA_256_WITH_RSA_ENCRYPTION,
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION,
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION,
        rfc5912::ID_RSASSA_PSS,
        rfc5912::ECDSA_WITH_SHA_256,
        rfc5912::ECDSA_WITH_SHA_384,
        rfc5912::ECDSA_WITH_SHA_512,
    ]
    .contains(&algorithm)
}
