//! Certificates of a policy: ours with their private keys, the anchors and revocation lists that peers are checked
//! against. All are PEM files; paths are relative to the configuration file.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use gdoi_proto::payload::Identification;
use ike::approved;
use ike::crypto::AuthMethod;
use ike::crypto::provider::default_provider;
use ike::phase1::OwnCertificate;
use ike::trust::{self, Half, KeyKind, Trust, Verification};

use crate::error::Report;
use crate::table::{Item, Table};
use crate::{secret_source, signing_key};

/// Octets a file of certificates or revocation lists may have at most.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Takes the DER of every section of one kind out of a PEM file.
type Sections<E> = fn(&[u8]) -> Result<Vec<Vec<u8>>, E>;

/// What the certificate statements of a policy say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificates {
    /// Ours, at most one per method.
    pub(crate) own: Vec<OwnCertificate>,
    /// None without `trust-anchors`.
    pub(crate) trust: Option<Arc<Trust>>,
    /// The same anchors, never refusing: what the peers' side would say of our own certificates.
    mirror: Option<Arc<Trust>>,
}

/// Reads `certificates`, `trust-anchors`, `crls` and `verification`; none when one of them has a problem.
pub(crate) fn read(table: &Table<'_>) -> Option<Certificates> {
    let report = table.report();
    let own = match table.get("certificates") {
        Some(list) => read_own(&list, report),
        None => Some(Vec::new()),
    };
    let modes = [("enforce", Verification::Enforce), ("rehearse", Verification::Rehearse)];
    let mode = table.word("verification", &modes, Some(Verification::Enforce));
    if mode == Some(Verification::Rehearse) {
        report.weak(
            &table.place_of("verification"),
            "any certificate is accepted: refusals are logged and not carried out, except of RSA keys below 2048 bits and of \
             signatures that do not verify",
            "enforce, when the log shows none",
        );
    }
    let anchors = read_files(table, "trust-anchors", trust::pem_certificates);
    let lists = read_files(table, "crls", trust::pem_revocation_lists);
    let (anchors, lists) = (anchors?, lists?);
    let (own, mode) = (own?, mode?);
    if anchors.is_empty() {
        for name in ["crls", "verification"] {
            if table.states(name) {
                let what = format!("{name} says nothing without trust-anchors");
                report.problem(&table.place_of(name), what, "trust-anchors = [\"pki/root.pem\"]");
            }
        }
        return Some(Certificates { own, trust: None, mirror: None });
    }
    let approved_only = report.is_approved_only();
    let new = |lists, mode| {
        let trust = Trust::new(anchors.clone(), lists, mode)?;
        if approved_only { trust.approved_only() } else { Ok(trust) }
    };
    let made = |lists: Vec<Vec<u8>>, mode| match new(lists, mode) {
        Ok(trust) => Some(Arc::new(trust)),
        Err(error) => {
            report.problem(&table.place_of("trust-anchors"), error.to_string(), "");
            None
        }
    };
    let trust = made(lists, mode)?;
    let mirror = made(Vec::new(), Verification::Rehearse)?;
    Some(Certificates { own, trust: Some(trust), mirror: Some(mirror) })
}

/// The PEM sections of every file that `name` lists; empty when it is absent.
fn read_files<E: std::fmt::Display>(
    table: &Table<'_>,
    name: &str,
    sections: Sections<E>,
) -> Option<Vec<Vec<u8>>> {
    let report = table.report();
    let Some(list) = table.get(name) else { return Some(Vec::new()) };
    let items = list.items(report);
    if items.is_empty() {
        if list.value.is_array() {
            report.problem(&list.place, "is empty", "[\"pki/file.pem\"]");
        }
        return None;
    }
    let read = |item: &Item<'_>| read_pem(item, report, sections);
    let files: Vec<Option<Vec<Vec<u8>>>> = items.iter().map(read).collect();
    Some(files.into_iter().collect::<Option<Vec<_>>>()?.concat())
}

fn read_pem<E: std::fmt::Display>(
    item: &Item<'_>,
    report: &Report<'_>,
    sections: Sections<E>,
) -> Option<Vec<Vec<u8>>> {
    let path = report.directory().join(item.filled_text(report)?);
    report.reads(&path);
    let named = path.display();
    match read_file(&path).and_then(|text| sections(&text).map_err(|error| format!("{named}: {error}"))) {
        Ok(sections) => Some(sections),
        Err(what) => {
            report.problem(&item.place, what, "");
            None
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let named = path.display();
    let failed = |error: std::io::Error| format!("{named} cannot be read: {error}");
    // First by name, because opening a FIFO would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("{named} is not a regular file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(format!("{named} has more than {MAX_FILE} octets"));
    }
    let mut octets = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE).read_to_end(&mut octets).map_err(failed)?;
    Ok(octets)
}

fn read_own<'t>(list: &Item<'t>, report: &'t Report<'t>) -> Option<Vec<OwnCertificate>> {
    let items = list.items(report);
    if items.is_empty() && list.value.is_array() {
        report.problem(
            &list.place,
            "is empty",
            "[{ certificate = \"pki/gcks.pem\", private-key = { file = \"pki/gcks.key\" } }]",
        );
    }
    let mut own: Vec<OwnCertificate> = Vec::new();
    let mut good = !items.is_empty();
    for item in &items {
        match read_certificate(item, report) {
            Some(found) if own.iter().any(|known| known.signer.method() == found.signer.method()) => {
                report.problem(
                    &item.place,
                    "another certificate of this policy has the same kind of key",
                    "one per authentication-method",
                );
                good = false;
            }
            Some(found) => own.push(found),
            None => good = false,
        }
    }
    good.then_some(own)
}

/// The method that a key of this kind and size serves.
fn method_of(kind: &KeyKind, bits: u32) -> Option<AuthMethod> {
    match (kind, bits) {
        (KeyKind::Rsa, 2048..) => Some(AuthMethod::RsaSignature),
        (KeyKind::Ecdsa, 256) => Some(AuthMethod::Ecdsa256),
        (KeyKind::Ecdsa, 384) => Some(AuthMethod::Ecdsa384),
        (KeyKind::Ecdsa, 521) => Some(AuthMethod::Ecdsa521),
        _ => None,
    }
}

fn read_certificate<'t>(item: &Item<'t>, report: &'t Report<'t>) -> Option<OwnCertificate> {
    let table = item.table(report)?;
    let file = table.require("certificate", "the file of the certificate and its intermediates");
    let key_item = table.require("private-key", "{ file = \"pki/gcks.key\" }");
    table.finish();
    let file = file?;
    let chain = read_pem(&file, report, trust::pem_certificates);
    let secret = key_item.as_ref().and_then(|item| secret_source::read(item, report));
    let (chain, secret, key_item) = (chain?, secret?, key_item?);
    let refuse = |place: &crate::error::Place, what: String, hint: &str| {
        report.problem(place, what, hint);
        None
    };
    let first = chain.first().map(Vec::as_slice).unwrap_or_default();
    let (facts, public_key) = match (trust::facts(first), trust::public_key(first)) {
        (Ok(facts), Ok(public_key)) => (facts, public_key),
        (Err(error), _) | (_, Err(error)) => return refuse(&file.place, error.to_string(), ""),
    };
    let Some(method) = method_of(&facts.key, facts.bits) else {
        let what = format!("{} has a key of {} bits on {}", facts.name(), facts.bits, facts.key);
        return refuse(&file.place, what, "RSA of 2048 bits or more, or ECDSA on P-256, P-384 or P-521");
    };
    if !approved::method(method) {
        let what = format!("{} with a key of {}", facts.name(), facts.key_name());
        report.unapproved(&file.place, what, "ECDSA on P-256, P-384 or P-521");
    }
    let der = match signing_key::der(&secret) {
        Ok(der) => der,
        Err((what, hint)) => return refuse(&key_item.place, what, &hint),
    };
    let signer = match default_provider().proof_signer(method, &der) {
        Ok(signer) => signer,
        Err(error) => return refuse(&key_item.place, error.to_string(), ""),
    };
    if signer.public_key() != public_key {
        let what = format!("this is not the private key of {}", facts.name());
        return refuse(&key_item.place, what, "the file's first certificate is ours, intermediates follow");
    }
    Some(OwnCertificate { chain, signer })
}

/// Warns where one of our certificates does not bear the identity we claim: peers would refuse it.
pub(crate) fn check_own_identity(certificates: &Certificates, id: &Identification, item: &Table<'_>) {
    let Some(mirror) = &certificates.mirror else { return };
    for own in &certificates.own {
        // Time decides about the chain half alone, which is not asked here.
        let Ok(checked) = mirror.check(&own.chain, id, 0) else { continue };
        for refusal in checked.would_refuse.iter().filter(|refusal| refusal.half == Half::Name) {
            let what = format!("peers will not take our own certificate: {refusal}");
            item.report().warning(&item.place_of("local-identity"), what, "");
        }
    }
}
