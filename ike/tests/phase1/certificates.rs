//! Phase 1 with real certificates: the vectors' own, and chains with an intermediate, a rehearsal and a stranger.

use std::sync::Arc;

use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::default_provider;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::phase1::{Credentials, Mode, OwnCertificate, PeerPolicy, PeerTrust};
use ike::trust::{Trust, Verification};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, DnValue, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use serde_json::Value;

use super::pair::{Pair, fqdn, policy, suite};

fn octets(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(value[field].as_str().expect("text")).expect("hexadecimal")
}

fn own(method: AuthMethod, chain: Vec<Vec<u8>>, key: &[u8]) -> OwnCertificate {
    let signer = default_provider().proof_signer(method, &SecretBytes::copy(key)).expect("a key");
    OwnCertificate { chain, signer }
}

fn towards(
    suites: &[Suite],
    own: OwnCertificate,
    trust: Trust,
    local: &Identification,
    remote: &Identification,
) -> PeerPolicy {
    let mut policy = policy(suites, Credentials::certificates(vec![own], Arc::new(trust)));
    policy.local_identity = Some(local.clone());
    policy.remote = vec![IdentityRule::Exactly { id_type: remote.id_type, data: remote.data.clone() }];
    policy
}

#[test]
fn the_certificates_of_the_vectors_establish_in_both_modes() {
    for (name, method) in [
        ("rsasig-modp14-aes128-sha256", AuthMethod::RsaSignature),
        ("ecdsa256-ecp256-aes128-sha256", AuthMethod::Ecdsa256),
        ("ecdsa521-ecp384-aes256-sha256", AuthMethod::Ecdsa521),
    ] {
        let path = format!("{}/../tests/data/vectors/phase1-{name}.json", env!("CARGO_MANIFEST_DIR"));
        let vector: Value =
            serde_json::from_str(&std::fs::read_to_string(path).expect("the vector")).expect("JSON");
        let credentials = &vector["credentials"];
        let identity = |field: &str| {
            let body = octets(&vector, field);
            let id_type = IdType::from_number(body[0]);
            Identification { id_type, protocol: 0, port: 0, data: body[4..].to_vec() }
        };
        let (idii, idir) = (identity("idii_b"), identity("idir_b"));
        let trust =
            || Trust::new(vec![octets(credentials, "ca")], Vec::new(), Verification::Enforce).expect("trust");
        assert_eq!(PeerTrust::anchors(&trust()), [octets(credentials, "ca_subject")]);
        let party = |side: &str| {
            let key = octets(credentials, &format!("{side}_key_pkcs8"));
            own(method, vec![octets(credentials, side)], &key)
        };
        let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes128Cbc, method)];
        for mode in [Mode::Main, Mode::Aggressive] {
            let mut member = towards(&suites, party("initiator"), trust(), &idii, &idir);
            let mut server = towards(&suites, party("responder"), trust(), &idir, &idii);
            (member.mode, server.mode) = (mode, mode);
            let mut pair = Pair::run(member, server, 1);
            assert!(pair.talks(), "{name} {mode:?}: {}", pair.said());
        }
    }
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str, issuer: Option<&Ca>) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    match issuer {
        Some(issuer) => CertifiedIssuer::signed_by(params, key, issuer).expect("a CA"),
        None => CertifiedIssuer::self_signed(params, key).expect("a root"),
    }
}

fn issued(name: &str, issuer: &Ca, above: &[&Ca]) -> OwnCertificate {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let end = params.signed_by(&key, issuer).expect("a certificate").der().to_vec();
    let chain = [vec![end], above.iter().map(|ca| ca.der().to_vec()).collect()].concat();
    own(AuthMethod::Ecdsa256, chain, &key.serialize_der())
}

fn trusting(root: &Ca, mode: Verification) -> Trust {
    Trust::new(vec![root.der().to_vec()], Vec::new(), mode).expect("trust")
}

#[test]
fn a_chain_with_an_intermediate_is_sent_and_followed_in_any_order() {
    let root = authority("Root", None);
    let middle = authority("Middle", Some(&root));
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes128Cbc, AuthMethod::Ecdsa256)];
    let (gm, gcks) = (fqdn("gm1.example"), fqdn("gcks.example"));
    for reversed in [false, true] {
        let mut chain = issued("gm1.example", &middle, &[&middle]);
        if reversed {
            chain.chain.reverse();
        }
        let member = towards(&suites, chain, trusting(&root, Verification::Enforce), &gm, &gcks);
        let own = issued("gcks.example", &root, &[]);
        let server = towards(&suites, own, trusting(&root, Verification::Enforce), &gcks, &gm);
        let mut pair = Pair::run(member, server, 1);
        assert!(pair.talks(), "{}", pair.said());
    }
}

#[test]
fn the_end_entity_is_found_behind_more_certificates_than_are_tried() {
    let root = authority("Root", None);
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes128Cbc, AuthMethod::Ecdsa256)];
    let (gm, gcks) = (fqdn("gm1.example"), fqdn("gcks.example"));
    let mut own = issued("gm1.example", &root, &[]);
    // Of other parties, and of this one by an authority that nobody trusts.
    let before = ["a.example", "b.example", "c.example", "d.example", "e.example"];
    let stranger = authority("Stranger", None);
    let others = before.map(|name| issued(name, &root, &[]).chain.remove(0));
    let other = issued("gm1.example", &stranger, &[]).chain.remove(0);
    own.chain = [&others[..], &[other], &own.chain].concat();
    let member = towards(&suites, own, trusting(&root, Verification::Enforce), &gm, &gcks);
    let server = towards(
        &suites,
        issued("gcks.example", &root, &[]),
        trusting(&root, Verification::Enforce),
        &gcks,
        &gm,
    );
    let mut pair = Pair::run(member, server, 1);
    assert!(pair.talks(), "{}", pair.said());
}

#[test]
fn what_enforcement_refuses_a_rehearsal_lets_in_with_a_remark() {
    let (root, stranger) = (authority("Root", None), authority("Stranger", None));
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes128Cbc, AuthMethod::Ecdsa256)];
    let (gm, gcks) = (fqdn("gm1.example"), fqdn("gcks.example"));
    for (signer, name, half) in
        [(&stranger, "gm1.example", "chain refused"), (&root, "gm2.example", "name refused")]
    {
        let run = |mode| {
            let member = towards(
                &suites,
                issued(name, signer, &[]),
                trusting(&root, Verification::Enforce),
                &gm,
                &gcks,
            );
            let own = issued("gcks.example", &root, &[]);
            Pair::run(member, towards(&suites, own, trusting(&root, mode), &gcks, &gm), 1)
        };
        let refused = run(Verification::Enforce);
        assert!(refused.server_sa.is_none() && refused.said().contains(half), "{}", refused.said());
        let mut rehearsed = run(Verification::Rehearse);
        assert!(rehearsed.talks(), "{}", rehearsed.said());
        let remark = rehearsed.server_sa.and_then(|up| up.remark).unwrap_or_default();
        assert!(remark.contains(half), "{remark}");
    }
}

#[test]
fn a_distinguished_name_goes_out_octet_for_octet_as_the_certificate_has_it() {
    let root = authority("Root", None);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let printable = |text: &str| DnValue::PrintableString(text.to_owned().try_into().expect("printable"));
    params.distinguished_name.push(DnType::OrganizationName, printable("Example"));
    params.distinguished_name.push(DnType::CommonName, printable("gm1"));
    let end = params.signed_by(&key, &root).expect("a certificate").der().to_vec();
    let subject = ike::trust::subject(&end).expect("a subject");
    let dn = |data: Vec<u8>| Identification { id_type: IdType::DerAsn1Dn, protocol: 0, port: 0, data };
    // As an operator writes it, in the string types of the configuration.
    let gm = dn(ike::trust::name_from_text("CN=gm1, O=Example").expect("a name"));
    assert_ne!(gm.data, subject);
    let gcks = fqdn("gcks.example");
    let trust = || trusting(&root, Verification::Enforce);
    for mode in [Mode::Main, Mode::Aggressive] {
        let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes128Cbc, AuthMethod::Ecdsa256)];
        let gm1 = own(AuthMethod::Ecdsa256, vec![end.clone()], &key.serialize_der());
        let mut member = towards(&suites, gm1, trust(), &gm, &gcks);
        let mut server = towards(&suites, issued("gcks.example", &root, &[]), trust(), &gcks, &gm);
        (member.mode, server.mode) = (mode, mode);
        let mut pair = Pair::run(member, server, 1);
        assert!(pair.talks(), "{mode:?}: {}", pair.said());
        assert_eq!(pair.server_sa.expect("established").sa.peer_identity, dn(subject.clone()));
    }
}
