//! The expiry calendar: our certificates, the anchors and revocation lists of every gateway, and the certificates by which
//! members proved who they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use ctl::observe::{CertificateView, MemberCertificateView};
use ctl::time::rfc3339;
use ike::trust::{CertificateFacts, ListFacts, PeerCertificate, facts};

use super::settings::GatewaySettings;

/// What has one name may serve many gateways: kind, issuer, serial number or the time a list was made.
type Key = (&'static str, String, String);

/// Certificates and lists of `gateways` at `now` (Unix seconds), what ends first at the head.
pub fn certificates<'g>(
    gateways: impl Iterator<Item = &'g GatewaySettings>,
    now: u64,
) -> Vec<CertificateView> {
    // Gateways of one policy share what is read: it is looked at once, by where it is.
    let (mut own, mut trusts) = (BTreeMap::new(), BTreeMap::new());
    for gateway in gateways {
        let credentials = &gateway.policy.credentials;
        for certificate in &credentials.certificates {
            let at = Arc::as_ptr(certificate) as usize;
            own.entry(at).or_insert((certificate, Vec::new())).1.push(gateway.name.clone());
        }
        if let Some(trust) = &credentials.trust {
            let at = Arc::as_ptr(trust).cast::<()>() as usize;
            trusts.entry(at).or_insert((trust, Vec::new())).1.push(gateway.name.clone());
        }
    }
    let mut found: BTreeMap<Key, CertificateView> = BTreeMap::new();
    let mut add = |view: CertificateView, kind: &'static str, serial: &str, gateways: &[String]| {
        let known = found.entry((kind, view.issuer.clone(), serial.to_owned())).or_insert(view);
        known.gateways.extend(
            gateways.iter().filter(|name| !known.gateways.contains(name)).cloned().collect::<Vec<_>>(),
        );
    };
    for (certificate, gateways) in own.values() {
        for (index, der) in certificate.chain.iter().enumerate() {
            let kind = if index == 0 { "own" } else { "intermediate" };
            if let Ok(facts) = facts(der) {
                add(of_certificate(kind, &facts, now), kind, &facts.serial, gateways);
            }
        }
    }
    for (trust, gateways) in trusts.values() {
        let calendar = trust.calendar();
        for facts in &calendar.anchors {
            add(of_certificate("anchor", facts, now), "anchor", &facts.serial, gateways);
        }
        for facts in &calendar.lists {
            add(of_list(facts, now), "crl", &facts.this_update.to_string(), gateways);
        }
    }
    let mut all: Vec<CertificateView> = found.into_values().collect();
    all.sort_by(|one, other| (&one.not_after, &one.subject).cmp(&(&other.not_after, &other.subject)));
    all
}

fn state(not_before: u64, not_after: u64, now: u64) -> String {
    if now < not_before {
        "not yet valid"
    } else if now > not_after {
        "expired"
    } else {
        "valid"
    }
    .to_owned()
}

fn of_certificate(kind: &str, facts: &CertificateFacts, now: u64) -> CertificateView {
    CertificateView {
        kind: kind.to_owned(),
        subject: facts.subject.clone(),
        issuer: facts.issuer.clone(),
        serial: facts.serial.clone(),
        key: facts.key_name(),
        not_before: rfc3339(facts.not_before),
        not_after: rfc3339(facts.not_after),
        remaining_seconds: facts.not_after.saturating_sub(now),
        state: state(facts.not_before, facts.not_after, now),
        revoked: None,
        gateways: Vec::new(),
    }
}

fn of_list(facts: &ListFacts, now: u64) -> CertificateView {
    CertificateView {
        kind: "crl".to_owned(),
        subject: facts.issuer.clone(),
        issuer: facts.issuer.clone(),
        not_before: rfc3339(facts.this_update),
        not_after: rfc3339(facts.next_update),
        remaining_seconds: facts.next_update.saturating_sub(now),
        state: state(facts.this_update, facts.next_update, now),
        revoked: Some(facts.revoked as u64),
        ..CertificateView::default()
    }
}

/// The certificate of a member at `now`, Unix seconds.
pub fn of_member(certificate: &PeerCertificate, now: u64) -> MemberCertificateView {
    let anchor = certificate.anchor.as_ref();
    MemberCertificateView {
        subject: certificate.name.subject.clone(),
        serial: certificate.name.serial.clone(),
        not_after: rfc3339(certificate.not_after),
        remaining_seconds: certificate.not_after.saturating_sub(now),
        anchor: anchor.map(|anchor| anchor.subject.clone()),
        anchor_serial: anchor.map(|anchor| anchor.serial.clone()),
    }
}
