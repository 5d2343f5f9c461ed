//! Why a certificate was refused: which half, which certificate, what was expected.

use std::fmt;
use std::time::Duration;

use gdoi_proto::registry::IdType;
use x509_cert::der::DateTime;

use super::names::AlternativeName;

/// The half of an authentication by certificate that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// A file of the operator: a trust anchor or a revocation list.
    File,
    /// The path from the end entity to a trust anchor.
    Chain,
    /// The claimed identity against the names in the end entity certificate.
    Name,
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Half::File => "file",
            Half::Chain => "chain",
            Half::Name => "name",
        })
    }
}

/// Which certificate is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateName {
    /// Subject as RFC 4514 text.
    pub subject: String,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate \"{}\" serial {}", self.subject, self.serial)
    }
}

/// Seconds of the Unix epoch, printed as `2027-01-31T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(pub u64);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_unix_duration(Duration::from_secs(self.0)) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustError {
    /// Which half failed.
    pub half: Half,
    /// Which certificate; none when it could not be read or there was none.
    pub certificate: Option<CertificateName>,
    /// The rule, with what was found and what was expected.
    pub rule: Rule,
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.certificate {
            Some(certificate) => write!(f, "{} refused: {certificate}: {}", self.half, self.rule),
            None => write!(f, "{} refused: {}", self.half, self.rule),
        }
    }
}

impl std::error::Error for TrustError {}

/// The rules. Those about the chain follow RFC 5280 section 6 and RFC 4945 section 5.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// No certificate came, or no trust anchor was given.
    #[error("there is none")]
    Missing,
    /// More certificates than [`super::Limits::certificates`]. Nothing was parsed.
    #[error("{found} certificates, at most {limit} are taken")]
    TooMany {
        /// Received.
        found: usize,
        /// Taken.
        limit: usize,
    },
    /// More octets than [`super::Limits::octets`]. Nothing was parsed.
    #[error("{found} octets of certificates, at most {limit} are taken")]
    TooLarge {
        /// Received, octets.
        found: usize,
        /// Taken, octets.
        limit: usize,
    },
    /// Not DER of a version 3 certificate or a version 2 list.
    #[error("unreadable: {0}")]
    Unreadable(String),
    /// Before notBefore.
    #[error("not valid before {not_before}, it is {now}")]
    NotYetValid {
        /// First second of validity.
        not_before: At,
        /// The time checked against.
        now: At,
    },
    /// After notAfter.
    #[error("expired {not_after}, it is {now}")]
    Expired {
        /// Last second of validity.
        not_after: At,
        /// The time checked against.
        now: At,
    },
    /// No configured anchor issued the last certificate of the chain.
    #[error("issuer \"{issuer}\" is no trust anchor; expected one of: {}", anchors.join("; "))]
    UnknownAnchor {
        /// Issuer at which the chain ends.
        issuer: String,
        /// Subjects of the configured anchors.
        anchors: Vec<String>,
    },
    /// The issuer's key did not make the signature.
    #[error("its signature is not by the key of \"{issuer}\"")]
    Signature {
        /// The issuer it names.
        issuer: String,
    },
    /// SHA-1, MD5 or another signature algorithm that is not taken.
    #[error("signed with {algorithm}; expected RSA or ECDSA with SHA-256, SHA-384 or SHA-512")]
    SignatureAlgorithm {
        /// The algorithm's name, or its object identifier.
        algorithm: String,
    },
    /// A short RSA key, or another kind of key.
    #[error("key is {found}; expected RSA of 2048 to 8192 bits or ECDSA on P-256, P-384, P-521")]
    Key {
        /// Kind and size.
        found: String,
    },
    /// A key that may be taken elsewhere, but not with `approved-only`.
    #[error("key is {found}; approved-only takes ECDSA on P-256, P-384, P-521")]
    NotApproved {
        /// Kind and size.
        found: String,
    },
    /// More intermediate certificates than the path builder takes (6).
    #[error("chain too long: more than 6 intermediate certificates")]
    PathTooLong,
    /// More CA certificates below one than its pathLenConstraint allows.
    #[error("chain too long: a CA's path length constraint is exceeded")]
    PathLength,
    /// Signs certificates but is not a CA (RFC 5280 section 4.2.1.9).
    #[error("signs certificates without being a CA (basicConstraints cA)")]
    NotCa,
    /// A CA's own certificate where a peer's is expected.
    #[error("is a CA; expected an end entity")]
    CaAsEndEntity,
    /// KeyUsage is present without a bit that is needed (RFC 4945 section 5.1.3.2, RFC 5280 section 4.2.1.3).
    #[error("keyUsage lacks {expected}")]
    KeyUsage {
        /// The bit or bits of which one is needed.
        expected: &'static str,
    },
    /// ExtendedKeyUsage is present without a purpose that is taken (RFC 4945 section 5.1.3.12).
    #[error("extendedKeyUsage is {}; expected none, id-kp-ipsecIKE or anyExtendedKeyUsage", found.join(", "))]
    ExtendedKeyUsage {
        /// Object identifiers found.
        found: Vec<String>,
    },
    /// A name outside what a CA may certify, or a kind of constraint that is not understood.
    #[error("a name is outside the name constraints of a CA above it")]
    NameConstraints,
    /// An unknown critical extension.
    #[error("has a critical extension that is not understood")]
    CriticalExtension,
    /// On the issuer's revocation list.
    #[error("revoked by the list of \"{list}\"")]
    Revoked {
        /// Issuer of the list.
        list: String,
    },
    /// The revocation list that would tell is out of date.
    #[error("the revocation list of \"{list}\" expired {next_update}, it is {now}; fetch its next one")]
    ListExpired {
        /// Issuer of the list.
        list: String,
        /// When the next one was due.
        next_update: At,
        /// The time checked against.
        now: At,
    },
    /// A revocation list whose signature is not its issuer's.
    #[error("the revocation list of \"{list}\" is not signed by that CA with an algorithm that is taken")]
    ListSignature {
        /// Issuer of the list.
        list: String,
    },
    /// The CA's KeyUsage does not let it sign lists.
    #[error("a CA's keyUsage lacks cRLSign, so its revocation list does not count")]
    ListSigner,
    /// Path building gave up: too many candidates with equal names.
    #[error("too many ways to build a path")]
    TooComplex,
    /// Anything else path validation found.
    #[error("path validation: {0}")]
    Path(String),
    /// No name in the certificate equals the identity (RFC 4945 section 3.1).
    #[error(
        "claimed identity is {claimed}, certificate names: {}",
        if found.is_empty() { "none of that kind".to_owned() } else { list(found) }
    )]
    Name {
        /// The identity the peer claimed.
        claimed: String,
        /// The names of that kind in the certificate.
        found: Vec<AlternativeName>,
    },
    /// An identity type that no certificate field can prove.
    #[error(
        "a {id_type:?} identity is not bound by a certificate; expected an address, FQDN, USER_FQDN or DN"
    )]
    NotBindable {
        /// The type claimed.
        id_type: IdType,
    },
}

fn list(names: &[AlternativeName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
