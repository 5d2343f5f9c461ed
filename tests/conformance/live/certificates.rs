//! Certificates that must not pass, over both whole engines: the server refuses the member that shows one, the member
//! the server. The log names the half that failed, the certificate, and what was expected; a rehearsal lets the same
//! certificate in and says the same.

use std::sync::Arc;

use ctl::event::Event;
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use gdoi_sim::world::peer_policy;
use ike::crypto::AuthMethod;
use ike::crypto::provider::default_provider;
use ike::identity::IdentityRule;
use ike::phase1::{Credentials, OwnCertificate, PeerPolicy};
use ike::trust::{Trust, Verification};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::gcks::Gcks;
use super::gm::{Gm, talk};

type Ca = CertifiedIssuer<'static, KeyPair>;

/// Who shows the certificate, and who checks it.
const SHOWN: &str = "gm1.example";
const CHECKS: &str = "good.example";

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(ca(name), key()).expect("a root")
}

fn below(params: CertificateParams, issuer: &Ca) -> Ca {
    CertifiedIssuer::signed_by(params, key(), issuer).expect("a CA")
}

fn end(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(vec![7, 7]));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

/// A certificate of `params` with its key, below `issuer` and `above`.
fn own(params: &CertificateParams, issuer: &Ca, above: &[&Ca]) -> OwnCertificate {
    let key = key();
    let end = params.signed_by(&key, issuer).expect("a certificate").der().to_vec();
    let chain = std::iter::once(end).chain(above.iter().map(|ca| ca.der().to_vec())).collect();
    with_key(chain, &key)
}

fn with_key(chain: Vec<Vec<u8>>, key: &KeyPair) -> OwnCertificate {
    let pkcs8 = gdoi_proto::secret::SecretBytes::new(key.serialize_der());
    let signer = default_provider().proof_signer(AuthMethod::Ecdsa256, &pkcs8).expect("its own key");
    OwnCertificate { chain, signer }
}

/// A list of `issuer` that revokes serial 0707.
fn list(issuer: &Ca) -> Vec<u8> {
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2036, 1, 1),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[7, 7]),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).expect("a list").der().to_vec()
}

fn fqdn(name: &str) -> Identification {
    Identification::new(IdType::Fqdn, name.as_bytes())
}

fn policy(own: OwnCertificate, trust: Trust, local: &str, remote: &str) -> PeerPolicy {
    let mut policy = peer_policy(Dialect::STRICT);
    policy.offers[0].suite.method = AuthMethod::Ecdsa256;
    policy.credentials = Credentials::certificates(vec![own], Arc::new(trust));
    policy.local_identity = Some(fqdn(local));
    let remote = fqdn(remote);
    policy.remote = vec![IdentityRule::Exactly { id_type: remote.id_type, data: remote.data }];
    policy
}

/// One certificate that must not pass.
struct Case {
    name: &'static str,
    shown: OwnCertificate,
    anchor: Vec<u8>,
    lists: Vec<Vec<u8>>,
    /// What the log says, in this order.
    said: &'static [&'static str],
    /// A rehearsal can let it in: it is readable, within the limits, and its key is at hand.
    rehearsable: bool,
}

fn cases() -> Vec<Case> {
    let anchor = root("Root");
    let case = |name, shown, said| {
        let anchor = anchor.der().to_vec();
        Case { name, shown, anchor, lists: Vec::new(), said, rehearsable: true }
    };
    let changed = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = end(SHOWN);
        change(&mut params);
        own(&params, &anchor, &[])
    };
    const CHAIN: &str = "chain refused: certificate \"CN=gm1.example\" serial 0707: ";
    let mut long: Vec<Ca> = Vec::new();
    for number in 0..7 {
        let next = below(ca(&format!("CA {number}")), long.last().unwrap_or(&anchor));
        long.push(next);
    }
    let above: Vec<&Ca> = long.iter().collect();
    let mut only_org = ca("Constrained");
    let subtree = GeneralSubtree::DnsName("example.org".into());
    only_org.name_constraints =
        Some(NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] });
    let only_org = below(only_org, &anchor);
    let mut many = own(&end(SHOWN), &anchor, &[]);
    many.chain.extend((0..8).map(|number| vec![number; 10]));
    let mut large = own(&end(SHOWN), &anchor, &[]);
    large.chain.push(vec![0; 33_000]);
    let foreign = |der: &[u8]| with_key(vec![der.to_vec()], &key());
    let other_root = include_bytes!("../../../ike/tests/data/trust/root.der");
    let mut cases = vec![
        case(
            "expired",
            changed(&|it| it.not_after = date_time_ymd(2026, 1, 1)),
            &[CHAIN, "expired 2026-01-01T00:00:00Z, it is 2027-01-15T"],
        ),
        case(
            "not yet valid",
            changed(&|it| it.not_before = date_time_ymd(2030, 1, 1)),
            &[CHAIN, "not valid before 2030-01-01T00:00:00Z"],
        ),
        case(
            "wrong name",
            own(&end("other.test"), &anchor, &[]),
            &[
                "name refused: certificate \"CN=other.test\"",
                "claimed identity is FQDN gm1.example",
                "other.test",
            ],
        ),
        case(
            "swapped identity: the good certificate of another member",
            own(&end("gm2.example"), &anchor, &[]),
            &["name refused: certificate \"CN=gm2.example\"", "FQDN gm1.example", "gm2.example"],
        ),
        case(
            "wrong usage",
            changed(&|it| it.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
            &[CHAIN, "keyUsage lacks digitalSignature or nonRepudiation"],
        ),
        case(
            "wrong extended usage",
            changed(&|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            &[CHAIN, "extendedKeyUsage is ", "expected none, id-kp-ipsecIKE or anyExtendedKeyUsage"],
        ),
        case(
            "unknown anchor",
            own(&end(SHOWN), &root("Stranger"), &[]),
            &[CHAIN, "issuer \"CN=Stranger\" is no trust anchor; expected one of: CN=Root"],
        ),
        case(
            "chain too long",
            own(&end(SHOWN), &long[6], &above),
            &[CHAIN, "chain too long: more than 6 intermediate certificates"],
        ),
        case(
            "name constraints",
            own(&end(SHOWN), &only_org, &[&only_org]),
            &[CHAIN, "a name is outside the name constraints of a CA above it"],
        ),
    ];
    let revoked =
        case("revoked", own(&end(SHOWN), &anchor, &[]), &[CHAIN, "revoked by the list of \"CN=Root\""]);
    cases.push(Case { lists: vec![list(&anchor)], ..revoked });
    let bounded = [
        case("huge chain, many", many, &["chain refused: 9 certificates, at most 8 are taken"]),
        case(
            "huge chain, large",
            large,
            &["chain refused: ", " octets of certificates, at most 32768 are taken"],
        ),
    ];
    let old = [
        case(
            "weak key",
            foreign(include_bytes!("../../../ike/tests/data/trust/weak.der")),
            &["chain refused: certificate ", "key is RSA of 1024 bits; expected RSA of 2048 to 8192 bits"],
        ),
        case(
            "SHA-1-signed",
            foreign(include_bytes!("../../../ike/tests/data/trust/sha1.der")),
            &["chain refused: certificate ", "signed with sha1", "expected RSA or ECDSA with SHA-256"],
        ),
    ];
    cases.extend(bounded.map(|it| Case { rehearsable: false, ..it }));
    cases.extend(old.map(|it| Case { rehearsable: false, anchor: other_root.to_vec(), ..it }));
    cases
}

/// Phase 1 and what follows, between who shows and who checks.
fn meet(case: &Case, server_checks: bool, mode: Verification) -> (Gcks, Gm) {
    let good = root("Good");
    let trust = Trust::new(vec![case.anchor.clone()], case.lists.clone(), mode).expect("trust");
    let checks = policy(own(&end(CHECKS), &good, &[]), trust, CHECKS, SHOWN);
    let trust = Trust::new(vec![good.der().to_vec()], Vec::new(), Verification::Enforce).expect("trust");
    let shows = policy(case.shown.clone(), trust, SHOWN, CHECKS);
    let (at_server, at_member) = if server_checks { (checks, shows) } else { (shows, checks) };
    let (mut gcks, mut gm) = (Gcks::by(at_server), Gm::by(at_member, 1));
    talk(&mut gcks, &mut gm);
    (gcks, gm)
}

/// Everything in its order.
fn holds(text: &str, parts: &[&str]) -> bool {
    let mut rest = text;
    parts.iter().all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

fn reason(events: &[Event]) -> Option<&str> {
    events.iter().find_map(|event| match event {
        Event::Phase1Failed { reason, .. } => Some(reason.as_str()),
        _ => None,
    })
}

#[test]
fn a_server_refuses_each_certificate_and_says_which_half_which_certificate_and_what_was_expected() {
    for case in cases() {
        let (gcks, gm) = meet(&case, true, Verification::Enforce);
        let said = reason(&gcks.events).unwrap_or_else(|| panic!("{}: {:?}", case.name, gcks.events));
        assert!(holds(said, case.said), "{}: {said}", case.name);
        assert_eq!((gcks.peers(), gcks.members(), gm.installed), ((0, 0), 0, 0), "{}", case.name);
        // The operator is told, not only who looks for debugging.
        assert_eq!(gcks.count("phase1_refused"), 1, "{}", case.name);
    }
}

#[test]
fn a_member_refuses_each_certificate_of_a_server_in_the_same_words() {
    for case in cases() {
        let (gcks, gm) = meet(&case, false, Verification::Enforce);
        let said = reason(&gm.events).unwrap_or_else(|| panic!("{}: {:?}", case.name, gm.events));
        assert!(holds(said, case.said), "{}: {said}", case.name);
        assert_eq!((gcks.members(), gm.installed), (0, 0), "{}", case.name);
    }
}

#[test]
fn a_rehearsal_lets_in_what_enforcement_refuses_and_logs_the_same_words_on_either_side() {
    for case in cases().into_iter().filter(|case| case.rehearsable) {
        for server_checks in [true, false] {
            let (gcks, gm) = meet(&case, server_checks, Verification::Rehearse);
            let name = format!("{}, server checks: {server_checks}", case.name);
            assert_eq!((gcks.members(), gm.installed), (1, 1), "{name}");
            let events = if server_checks { &gcks.events } else { &gm.events };
            let said = events.iter().find_map(|event| match event {
                Event::CertificateRehearsed { reason, .. } => Some(reason.as_str()),
                _ => None,
            });
            assert!(said.is_some_and(|said| holds(said, case.said)), "{name}: {said:?}");
        }
    }
}

#[test]
fn the_calendar_shows_what_the_server_holds_and_which_anchor_a_member_chains_to() {
    let (old, new) = (root("Old"), root("New"));
    let anchors = vec![old.der().to_vec(), new.der().to_vec()];
    let trust = Trust::new(anchors, vec![list(&old)], Verification::Enforce).expect("trust");
    let middle = below(ca("Middle"), &new);
    let at_server = policy(own(&end(CHECKS), &middle, &[&middle]), trust, CHECKS, SHOWN);
    let trust = Trust::new(vec![new.der().to_vec()], Vec::new(), Verification::Enforce).expect("trust");
    let mut params = end(SHOWN);
    params.not_after = date_time_ymd(2027, 2, 1);
    let at_member = policy(own(&params, &new, &[]), trust, SHOWN, CHECKS);
    let (mut gcks, mut gm) = (Gcks::by(at_server), Gm::by(at_member, 1));
    talk(&mut gcks, &mut gm);
    let shown = gcks.engine.snapshot(gcks.now, false);
    let seen: Vec<_> = shown.certificates.iter().map(|it| (it.kind.as_str(), it.subject.as_str())).collect();
    assert_eq!(seen[0], ("crl", "CN=Old"), "it ends first");
    for expected in [
        ("own", "CN=good.example"),
        ("intermediate", "CN=Middle"),
        ("anchor", "CN=Old"),
        ("anchor", "CN=New"),
    ] {
        assert!(seen.contains(&expected), "{seen:?}");
    }
    assert_eq!((seen.len(), shown.certificates[0].revoked), (5, Some(1)));
    assert!(shown.certificates.iter().all(|it| it.state == "valid" && it.gateways.len() == 1));
    let held = shown.groups[0].members[0].certificate.as_ref().expect("a certificate");
    assert_eq!((held.subject.as_str(), held.serial.as_str()), ("CN=gm1.example", "0707"));
    assert_eq!(held.anchor.as_deref(), Some("CN=New"));
    assert_eq!(held.not_after, "2027-02-01T00:00:00Z");
}
