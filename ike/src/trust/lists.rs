//! Certificate revocation lists (RFC 5280 section 5): complete and direct ones, given as files by the operator.
//!
//! - A list counts for the certificates of the CA that signed it: same name and, since two CAs may share a name while
//!   one key replaces the other, same key.
//! - Of several lists of one CA the newest counts.
//! - A list past its nextUpdate refuses every certificate of its CA: an old list would hide a revocation.
//! - A path through two keys of one name (a link certificate) with a list of either is refused: the library looks lists
//!   up by name. Take both keys as anchors during such a rollover.
//! - A CA without a list is not asked: which CAs have lists is the operator's choice.

use pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, ExpirationPolicy, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;

use super::algorithms::{ALGORITHMS, signed_by};
use super::error::{At, Half, Rule, TrustError};
use super::{AnyUsage, plain};

/// What an operator's calendar shows of a revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListFacts {
    /// Issuer as RFC 4514 text.
    pub issuer: String,
    /// When it was made, Unix seconds.
    pub this_update: u64,
    /// When its next one is due, Unix seconds; from then on it refuses.
    pub next_update: u64,
    /// How many certificates it revokes.
    pub revoked: usize,
}

#[derive(Debug)]
pub(super) struct List {
    der: Vec<u8>,
    list: CertRevocationList<'static>,
    /// Keys of the anchors that signed it.
    signers: Vec<SubjectPublicKeyInfoDer<'static>>,
    pub(super) facts: ListFacts,
}

fn refused(rule: Rule) -> TrustError {
    TrustError { half: Half::File, certificate: None, rule }
}

impl List {
    /// Reads a list. One that bears an anchor's name must be signed by an anchor of that name.
    pub(super) fn read(der: Vec<u8>, anchors: &[TrustAnchor<'static>]) -> Result<List, TrustError> {
        let unreadable = |text: String| refused(Rule::Unreadable(format!("revocation list: {text}")));
        let read = <CertificateList>::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
        let tbs = read.tbs_cert_list;
        let list = BorrowedCertRevocationList::from_der(&der)
            .and_then(|list| list.to_owned())
            .map_err(|error| unreadable(plain(&error)))?;
        let list = CertRevocationList::from(list);
        let facts = ListFacts {
            issuer: tbs.issuer.to_string(),
            this_update: tbs.this_update.to_unix_duration().as_secs(),
            next_update: tbs.next_update.map_or(0, |time| time.to_unix_duration().as_secs()),
            revoked: tbs.revoked_certificates.map_or(0, |revoked| revoked.len()),
        };
        let namesakes = anchors.iter().filter(|anchor| anchor.subject.as_ref() == list.issuer());
        let keys: Vec<_> = namesakes.map(webpki::spki_for_anchor).collect();
        let signers: Vec<_> = keys.iter().filter(|key| signed_by(&der, key)).cloned().collect();
        if signers.is_empty() && !keys.is_empty() {
            return Err(refused(Rule::ListSignature { list: facts.issuer }));
        }
        Ok(List { der, list, signers, facts })
    }
}

/// A certificate of a path beside the name and key of its issuer.
struct Link<'p> {
    der: CertificateDer<'p>,
    serial: &'p [u8],
    issuer: &'p [u8],
    issuer_key: SubjectPublicKeyInfoDer<'p>,
}

fn links<'p>(path: &'p VerifiedPath<'p>) -> Vec<Link<'p>> {
    let end_entity: &webpki::Cert<'p> = path.end_entity();
    let mut out: Vec<Link<'p>> = Vec::new();
    for certificate in std::iter::once(end_entity).chain(path.intermediate_certificates()) {
        if let Some(below) = out.last_mut() {
            below.issuer_key = certificate.subject_public_key_info();
        }
        out.push(Link {
            der: certificate.der(),
            serial: certificate.serial(),
            issuer: certificate.issuer(),
            issuer_key: webpki::spki_for_anchor(path.anchor()),
        });
    }
    out
}

/// Asks the lists about every certificate of a path whose signatures are already verified. `lists` has the newest
/// first.
///
/// # Errors
/// The rule, and the DER of the certificate it is about when it is one.
pub(super) fn check(
    lists: &[List],
    path: &VerifiedPath<'_>,
    now: u64,
) -> Result<(), (Option<Vec<u8>>, Rule)> {
    let links = links(path);
    let mut chosen: Vec<&List> = Vec::new();
    for link in &links {
        for list in lists.iter().filter(|list| list.list.issuer() == link.issuer) {
            if list.signers.contains(&link.issuer_key) || signed_by(&list.der, &link.issuer_key) {
                if !chosen.iter().any(|known| std::ptr::eq(*known, list)) {
                    chosen.push(list);
                }
            } else if list.signers.is_empty() {
                // Nobody's list: of a CA below an anchor, and not by that CA's key.
                let rule = Rule::ListSignature { list: list.facts.issuer.clone() };
                return Err((None, rule));
            }
        }
    }
    let borrowed: Vec<&CertRevocationList<'_>> = chosen.iter().map(|list| &list.list).collect();
    let Ok(options) = RevocationOptionsBuilder::new(&borrowed) else { return Ok(()) };
    let options = options
        .with_depth(RevocationCheckDepth::Chain)
        .with_status_policy(UnknownStatusPolicy::Allow)
        .with_expiration_policy(ExpirationPolicy::Enforce)
        .build();
    let intermediates: Vec<_> = path.intermediate_certificates().map(webpki::Cert::der).collect();
    let anchors = [path.anchor().clone()];
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    let verified = path.end_entity().verify_for_usage(
        ALGORITHMS,
        &anchors,
        &intermediates,
        time,
        AnyUsage,
        Some(options),
        None,
    );
    let Err(error) = verified else { return Ok(()) };
    Err(explain(&error, &links, &chosen, now))
}

fn explain(error: &webpki::Error, links: &[Link<'_>], chosen: &[&List], now: u64) -> (Option<Vec<u8>>, Rule) {
    use webpki::Error as E;
    match error {
        E::CertRevoked => {
            let revoked = links.iter().find_map(|link| {
                let list = chosen.iter().find(|list| {
                    list.list.issuer() == link.issuer
                        && matches!(list.list.find_serial(link.serial), Ok(Some(_)))
                })?;
                Some((link.der.to_vec(), list.facts.issuer.clone()))
            });
            let (der, list) = revoked.map_or((None, String::new()), |(der, list)| (Some(der), list));
            (der, Rule::Revoked { list })
        }
        E::CrlExpired { next_update, .. } => {
            let list = chosen.iter().find(|list| list.facts.next_update == next_update.as_secs());
            let list = list.map_or_else(String::new, |list| list.facts.issuer.clone());
            (None, Rule::ListExpired { list, next_update: At(next_update.as_secs()), now: At(now) })
        }
        E::IssuerNotCrlSigner => (None, Rule::ListSigner),
        // The certificates' own signatures are verified before: what fails is a list looked up by name.
        E::InvalidSignatureForPublicKey
        | E::InvalidCrlSignatureForPublicKey
        | E::UnsupportedCrlSignatureAlgorithmContext(_)
        | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => {
            let list = chosen.first().map_or_else(String::new, |list| list.facts.issuer.clone());
            (None, Rule::ListSignature { list })
        }
        other => (None, Rule::Path(plain(other))),
    }
}
