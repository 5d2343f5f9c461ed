//! Certificates of peers: is there a path to a trust anchor, may this certificate sign for IKE, was it revoked, and
//! does it bear the identity the peer claims. Every refusal is a [`TrustError`]: which half failed (chain or name),
//! which certificate, what was expected.
//!
//! ```text
//! octets of CERT payloads --limits--> parse --> rules of the end entity --> path, signatures, constraints
//!                                                                             |
//!            Checked { public_key, .. } <-- name against the ID payload <-- rules of the CAs, revocation
//! ```
//!
//! | what | who |
//! | --- | --- |
//! | paths, signatures, name constraints, path lengths, CRLs (RFC 5280 sections 5 and 6) | rustls-webpki |
//! | reading names, usages, keys; names as text (RFC 4514) | x509-cert |
//! | key sizes, KeyUsage, ExtendedKeyUsage, identity (RFC 4945 sections 3.1 and 5.1.3) | this module |
//!
//! Limits of the libraries, all towards refusal: a CA whose name constraints speak of directory names, mail addresses
//! or URIs refuses certificates that bear such names; lists in parts or for other issuers are not read. An address
//! identity must also be the packet's source (RFC 4945 section 3.1.1): that is [`crate::identity`].

mod algorithms;
mod calendar;
mod error;
mod facts;
mod lists;
mod names;
mod pem;
mod pkcs7;

use std::cell::RefCell;
use std::time::Duration;

use gdoi_proto::payload::Identification;
use pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Encode, Tag};

use self::algorithms::{ALGORITHMS, signed_by};
pub use self::calendar::{Calendar, PeerCertificate};
pub use self::error::{At, CertificateName, Half, Rule, TrustError};
pub use self::facts::{CertificateFacts, KeyKind, facts, public_key, subject};
use self::facts::{Parsed, Role};
use self::lists::List;
pub use self::lists::ListFacts;
pub use self::names::{
    AlternativeName, NameError, is_name_pattern, name_fits, name_from_text, name_to_text, same_name,
};
pub use self::pem::{PemError, pem_certificates, pem_revocation_lists};
#[cfg(test)]
pub(crate) use self::pkcs7::signed_data;
pub use self::pkcs7::wrapped_certificates;

/// What a refusal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verification {
    /// It refuses.
    #[default]
    Enforce,
    /// It is reported in [`Checked::would_refuse`] and the peer accepted: anyone with any certificate gets in. For
    /// the days before certificates are relied on.
    Rehearse,
}

/// Bounds on what a peer may send, checked before anything is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Certificates in one message; default 8.
    pub certificates: usize,
    /// Octets of all certificates together; default 32768.
    pub octets: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { certificates: 8, octets: 32_768 }
    }
}

/// A peer's certificate that passed, or would not have in [`Verification::Rehearse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// DER SubjectPublicKeyInfo of the end entity: the key its signature is verified with.
    pub public_key: Vec<u8>,
    /// The end entity certificate.
    pub certificate: CertificateFacts,
    /// DER Name of its subject.
    pub subject: Vec<u8>,
    /// The anchor the path ends at; none when rehearsal accepted a chain without a path.
    pub anchor: Option<CertificateName>,
    /// What [`Verification::Enforce`] would have refused; empty there.
    pub would_refuse: Vec<TrustError>,
}

/// Trust anchors and revocation lists. Files that changed make a new value; nothing else is remembered.
#[derive(Debug)]
pub struct Trust {
    /// The anchors as read, in the order of `trusted`.
    anchors: Vec<Parsed>,
    trusted: Vec<TrustAnchor<'static>>,
    /// Newest first.
    lists: Vec<List>,
    mode: Verification,
    limits: Limits,
    /// Every key of a path must be approved.
    approved_only: bool,
}

/// ExtendedKeyUsage is a rule of ours (RFC 4945 section 5.1.3.12), with a better message.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// A library error without its type names: `PathLenConstraintViolated`, or the text before its fields.
fn plain(error: &webpki::Error) -> String {
    let text = format!("{error:?}");
    text.split(['(', '{']).next().unwrap_or_default().trim().to_owned()
}

/// DER Name around its content.
fn name_of(content: &[u8]) -> Vec<u8> {
    AnyRef::new(Tag::Sequence, content).and_then(|name| name.to_der()).unwrap_or_default()
}

/// Collects refusals, or stops at the first.
struct Refusals {
    mode: Verification,
    list: Vec<TrustError>,
}

impl Refusals {
    fn add(&mut self, error: TrustError) -> Result<(), TrustError> {
        match self.mode {
            Verification::Enforce => Err(error),
            Verification::Rehearse => {
                if !self.list.contains(&error) {
                    self.list.push(error);
                }
                Ok(())
            }
        }
    }
}

/// The certificates of a peer.
struct Received {
    end_entity: Parsed,
    /// The readable others, each once.
    others: Vec<Parsed>,
}

impl Trust {
    /// Anchors and revocation lists as DER. Several anchors count side by side, also of one name, so that one can
    /// replace another while members chain to both.
    ///
    /// # Errors
    /// With [`Half::File`]: no anchor; an anchor that is unreadable, no CA, or has a weak key; a list that is
    /// unreadable, partial, or bears an anchor's name without its signature. Anchors and lists that are out of date
    /// are taken: [`Trust::check`] refuses what depends on them.
    pub fn new(
        anchors_der: Vec<Vec<u8>>,
        crls_der: Vec<Vec<u8>>,
        mode: Verification,
    ) -> Result<Trust, TrustError> {
        let nameless = |rule| TrustError { half: Half::File, certificate: None, rule };
        if anchors_der.is_empty() {
            return Err(nameless(Rule::Missing));
        }
        let (mut anchors, mut trusted): (Vec<Parsed>, Vec<TrustAnchor<'static>>) = (Vec::new(), Vec::new());
        for der in anchors_der {
            if anchors.iter().any(|known| known.der == der) {
                continue;
            }
            let parsed = Parsed::read(&der).map_err(nameless)?;
            if let Some(rule) = parsed.broken_rules(Role::Anchor, None).into_iter().next() {
                return Err(parsed.refused(Half::File, rule));
            }
            let certificate = CertificateDer::from(der);
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| parsed.refused(Half::File, Rule::Unreadable(plain(&error))))?;
            trusted.push(anchor.to_owned());
            anchors.push(parsed);
        }
        let mut lists =
            crls_der.into_iter().map(|der| List::read(der, &trusted)).collect::<Result<Vec<_>, _>>()?;
        lists.sort_by_key(|list| std::cmp::Reverse(list.facts.this_update));
        Ok(Trust { anchors, trusted, lists, mode, limits: Limits::default(), approved_only: false })
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Trust {
        Trust { limits, ..self }
    }

    /// The same with ECDSA alone, from the anchors down to the peers (`approved-only`).
    ///
    /// # Errors
    /// With [`Half::File`]: an anchor with another key.
    pub fn approved_only(self) -> Result<Trust, TrustError> {
        match self.anchors.iter().find_map(|anchor| Some((anchor, anchor.outside_approved()?))) {
            Some((anchor, rule)) => Err(anchor.refused(Half::File, rule)),
            None => Ok(Trust { approved_only: true, ..self }),
        }
    }

    /// Checks the certificates of a peer that claims `id`, at `unix_seconds`. `chain` is DER as received, the end
    /// entity first, others in any order; what is not needed or not readable among the others is passed over (RFC
    /// 4945 section 3.3.10).
    ///
    /// Extended key usages that are taken: none at all, anyExtendedKeyUsage, id-kp-ipsecIKE. serverAuth and
    /// clientAuth alone are refused (RFC 4945 section 5.1.3.12).
    ///
    /// # Errors
    /// The first rule that refuses, of the chain before the name. While rehearsing only what leaves no key to return:
    /// no certificate, over the limits, an unreadable end entity.
    pub fn check(
        &self,
        chain: &[Vec<u8>],
        id: &Identification,
        unix_seconds: u64,
    ) -> Result<Checked, TrustError> {
        self.run(chain, Some(id), unix_seconds)
    }

    /// The chain half alone, for a rule that ties an identity no certificate can bear (a key-id) to a subject.
    ///
    /// # Errors
    /// As [`Trust::check`], without the name.
    pub fn check_chain(&self, chain: &[Vec<u8>], unix_seconds: u64) -> Result<Checked, TrustError> {
        self.run(chain, None, unix_seconds)
    }

    /// True when `der` can be read, is no CA and bears `id`: of the certificates of a message, whose order is free (RFC 4945
    /// section 3.3.10), the likely end entity.
    pub fn bears(der: &[u8], id: &Identification) -> bool {
        Parsed::read(der).is_ok_and(|it| !it.is_ca() && names::bind(&it, id).is_ok())
    }

    /// DER subject names of the anchors, each once: one CERTREQ payload each.
    pub fn anchors(&self) -> Vec<Vec<u8>> {
        let mut out: Vec<Vec<u8>> = Vec::new();
        for anchor in &self.trusted {
            let name = name_of(&anchor.subject);
            if !out.contains(&name) {
                out.push(name);
            }
        }
        out
    }

    /// The anchors, in the order given.
    pub fn anchor_facts(&self) -> impl Iterator<Item = &CertificateFacts> {
        self.anchors.iter().map(|anchor| &anchor.facts)
    }

    /// The revocation lists, newest first.
    pub fn revocation_lists(&self) -> impl Iterator<Item = &ListFacts> {
        self.lists.iter().map(|list| &list.facts)
    }

    /// When all of it ends.
    pub fn calendar(&self) -> Calendar {
        Calendar {
            anchors: self.anchor_facts().cloned().collect(),
            lists: self.revocation_lists().cloned().collect(),
        }
    }

    /// The anchor whose key signed the top of a chain, whatever the time and the other rules say; none when there is
    /// no such anchor or the chain is over the limits.
    pub fn anchor_of(&self, chain: &[Vec<u8>]) -> Option<&CertificateFacts> {
        let received = self.read(chain).ok()?;
        let walk = self.walk(&received);
        let (top, below) = walk.split_last()?;
        let joined = below
            .iter()
            .zip(walk.get(1..)?)
            .all(|(signed, by)| signed_by(&signed.der, &by.public_key.as_slice().into()));
        self.anchors
            .iter()
            .find(|anchor| {
                anchor.subject == top.issuer && signed_by(&top.der, &anchor.public_key.as_slice().into())
            })
            .filter(|_| joined)
            .map(|anchor| &anchor.facts)
    }

    fn run(&self, chain: &[Vec<u8>], id: Option<&Identification>, now: u64) -> Result<Checked, TrustError> {
        let received = self.read(chain)?;
        let end_entity = &received.end_entity;
        let mut refusals = Refusals { mode: self.mode, list: Vec::new() };
        for rule in end_entity.broken_rules(Role::EndEntity, Some(now)) {
            refusals.add(end_entity.refused(Half::Chain, rule))?;
        }
        if let Some(rule) = self.outside_approved(end_entity) {
            refusals.add(end_entity.refused(Half::Chain, rule))?;
        }
        let anchor = match self.path(&received, now) {
            Ok(anchor) => anchor,
            Err(errors) => {
                for error in errors {
                    refusals.add(error)?;
                }
                None
            }
        };
        if let Some(Err(rule)) = id.map(|id| names::bind(end_entity, id)) {
            refusals.add(end_entity.refused(Half::Name, rule))?;
        }
        Ok(Checked {
            public_key: end_entity.public_key.clone(),
            certificate: end_entity.facts.clone(),
            subject: end_entity.subject.clone(),
            anchor,
            would_refuse: refusals.list,
        })
    }

    /// Bounds first, then parsing.
    fn read(&self, chain: &[Vec<u8>]) -> Result<Received, TrustError> {
        let refused = |rule| TrustError { half: Half::Chain, certificate: None, rule };
        let Some((first, rest)) = chain.split_first() else { return Err(refused(Rule::Missing)) };
        if chain.len() > self.limits.certificates {
            return Err(refused(Rule::TooMany { found: chain.len(), limit: self.limits.certificates }));
        }
        let octets = chain.iter().fold(0usize, |sum, der| sum.saturating_add(der.len()));
        if octets > self.limits.octets {
            return Err(refused(Rule::TooLarge { found: octets, limit: self.limits.octets }));
        }
        let end_entity = Parsed::read(first).map_err(refused)?;
        let mut others: Vec<Parsed> = Vec::new();
        for der in rest {
            if der != first && !others.iter().any(|known| known.der == *der) {
                others.extend(Parsed::read(der).ok());
            }
        }
        Ok(Received { end_entity, others })
    }

    /// A path to an anchor that keeps every rule. Errors: at least one, the most telling first.
    fn path(&self, received: &Received, now: u64) -> Result<Option<CertificateName>, Vec<TrustError>> {
        let der = CertificateDer::from(received.end_entity.der.as_slice());
        let intermediates: Vec<_> =
            received.others.iter().map(|other| CertificateDer::from(other.der.as_slice())).collect();
        let end_entity =
            EndEntityCert::try_from(&der).map_err(|error| self.explain(&error, received, now))?;
        let refusal = RefCell::new(None);
        let keeps_rules = |path: &VerifiedPath<'_>| {
            self.keeps_rules(path, received, now).map_err(|error| {
                // The shortest path comes first and its refusal is reported; path building goes on with others.
                refusal.borrow_mut().get_or_insert(error);
                webpki::Error::CertDistrusted
            })
        };
        let verified = end_entity.verify_for_usage(
            ALGORITHMS,
            &self.trusted,
            &intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            AnyUsage,
            None,
            Some(&keeps_rules),
        );
        match verified {
            Ok(path) => Ok(self.anchor_at(&path).map(|anchor| anchor.facts.name())),
            Err(error) => Err(match refusal.take() {
                Some(refusal) => vec![refusal],
                None => self.explain(&error, received, now),
            }),
        }
    }

    /// The rule of `approved-only` that `certificate` breaks, where it holds.
    fn outside_approved(&self, certificate: &Parsed) -> Option<Rule> {
        certificate.outside_approved().filter(|_| self.approved_only)
    }

    fn anchor_at(&self, path: &VerifiedPath<'_>) -> Option<&Parsed> {
        let index = self.trusted.iter().position(|anchor| anchor == path.anchor())?;
        self.anchors.get(index)
    }

    /// The rules that webpki leaves to us, on a path whose signatures it has verified, then revocation.
    ///
    /// Deviation: RFC 5280 section 6.1 gives an anchor no end. Here an anchor ends with its certificate, as operators
    /// who plan a rollover by that date expect.
    fn keeps_rules(&self, path: &VerifiedPath<'_>, received: &Received, now: u64) -> Result<(), TrustError> {
        let known = |der: &[u8]| received.others.iter().find(|other| other.der == der);
        for certificate in path.intermediate_certificates() {
            if let Some(ca) = known(&certificate.der())
                && let Some(rule) = ca
                    .broken_rules(Role::Intermediate, Some(now))
                    .into_iter()
                    .next()
                    .or_else(|| self.outside_approved(ca))
            {
                return Err(ca.refused(Half::Chain, rule));
            }
        }
        if let Some(anchor) = self.anchor_at(path)
            && let Some(rule) = anchor.broken_rules(Role::Anchor, Some(now)).into_iter().next()
        {
            return Err(anchor.refused(Half::Chain, rule));
        }
        lists::check(&self.lists, path, now).map_err(|(der, rule)| {
            let about = der.and_then(|der| known(&der)).unwrap_or(&received.end_entity);
            about.refused(Half::Chain, rule)
        })
    }

    /// The certificates from the end entity up as their names lead, at most 8; where several bear a name, the one
    /// whose key fits. Stops below an anchor.
    fn walk<'r>(&self, received: &'r Received) -> Vec<&'r Parsed> {
        let mut walk = vec![&received.end_entity];
        while let Some(top) = walk.last().filter(|_| walk.len() < 8) {
            if self.anchors.iter().any(|anchor| anchor.subject == top.issuer) {
                break;
            }
            let above = |other: &&Parsed| {
                other.subject == top.issuer && !walk.iter().any(|below| below.der == other.der)
            };
            let mut candidates = received.others.iter().filter(above);
            let fits = |other: &&Parsed| signed_by(&top.der, &other.public_key.as_slice().into());
            let Some(next) = candidates.clone().find(fits).or_else(|| candidates.next()) else { break };
            walk.push(next);
        }
        walk
    }

    /// Why there is no path, in our words: rules broken on the way up, then what webpki says.
    fn explain(&self, error: &webpki::Error, received: &Received, now: u64) -> Vec<TrustError> {
        use webpki::Error as E;
        let walk = self.walk(received);
        let mut out = Vec::new();
        for (index, certificate) in walk.iter().enumerate() {
            let role = if index == 0 { Role::EndEntity } else { Role::Intermediate };
            let rules = certificate.broken_rules(role, Some(now));
            out.extend(rules.into_iter().map(|rule| certificate.refused(Half::Chain, rule)));
        }
        let end_entity = &received.end_entity;
        let top = walk.last().copied().unwrap_or(end_entity);
        let (about, rule) = match error {
            E::UnknownIssuer => {
                let anchors = self.anchors.iter().map(|anchor| anchor.facts.subject.clone()).collect();
                (top, Rule::UnknownAnchor { issuer: top.facts.issuer.clone(), anchors })
            }
            E::InvalidSignatureForPublicKey | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                let about = walk
                    .iter()
                    .zip(walk.get(1..).unwrap_or_default())
                    .find(|(signed, by)| !signed_by(&signed.der, &by.public_key.as_slice().into()))
                    .map_or(top, |(signed, _)| *signed);
                (about, Rule::Signature { issuer: about.facts.issuer.clone() })
            }
            E::NameConstraintViolation => (end_entity, Rule::NameConstraints),
            E::PathLenConstraintViolated => (end_entity, Rule::PathLength),
            E::MaximumPathDepthExceeded => (end_entity, Rule::PathTooLong),
            E::MaximumNameConstraintComparisonsExceeded
            | E::MaximumPathBuildCallsExceeded
            | E::MaximumSignatureChecksExceeded => (end_entity, Rule::TooComplex),
            E::UnsupportedCriticalExtension => (end_entity, Rule::CriticalExtension),
            E::UnsupportedCertVersion => {
                (end_entity, Rule::Unreadable("not a version 3 certificate".to_owned()))
            }
            // Our own rules have said it, and better.
            E::CertExpired { .. }
            | E::CertNotValidYet { .. }
            | E::CaUsedAsEndEntity
            | E::EndEntityUsedAsCa
            | E::UnsupportedSignatureAlgorithmContext(_)
                if !out.is_empty() =>
            {
                return out;
            }
            other => (end_entity, Rule::Path(plain(other))),
        };
        out.push(about.refused(Half::Chain, rule));
        out
    }
}
