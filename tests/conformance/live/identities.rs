//! Who may claim what, in both directions: every kind of identity and wildcard, at the server and at the member.

use std::sync::Arc;

use gdoi_proto::message::Dialect;
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use gdoi_sim::world::{SERVER, peer_policy};
use ike::identity::{IdentityRule, address_identity};
use ike::phase1::PeerPolicy;
use ike::trust::name_from_text;

use super::gcks::Gcks;
use super::gm::{Gm, local, talk};

fn name(text: &str) -> Vec<u8> {
    name_from_text(text).expect("a name")
}

fn claims(id_type: IdType, data: &[u8]) -> Identification {
    Identification::new(id_type, data)
}

fn exactly(id_type: IdType, data: &[u8]) -> IdentityRule {
    IdentityRule::Exactly { id_type, data: data.to_vec() }
}

fn below(id_type: IdType, tail: &str) -> IdentityRule {
    IdentityRule::NameEndsWith { id_type, tail: tail.as_bytes().to_vec() }
}

/// A rule, who satisfies it, and who does not.
fn rules() -> Vec<(IdentityRule, Vec<Identification>, Vec<Identification>)> {
    let host = |text: &str| claims(IdType::Fqdn, text.as_bytes());
    let user = |text: &str| claims(IdType::UserFqdn, text.as_bytes());
    let dn = |text: &str| claims(IdType::DerAsn1Dn, &name(text));
    let key = |octets: &[u8]| claims(IdType::KeyId, octets);
    vec![
        (
            exactly(IdType::Fqdn, b"a.example"),
            vec![host("a.example"), host("A.Example")],
            vec![host("b.example"), host("x.a.example"), user("a.example"), key(b"a.example")],
        ),
        (
            below(IdType::Fqdn, ".example"),
            vec![host("a.example"), host("B.EXAMPLE"), host("x.y.example")],
            vec![host(".example"), host("example"), host("a.example.org"), user("a@b.example")],
        ),
        (IdentityRule::AnyOf { id_type: IdType::Fqdn }, vec![host("anybody")], vec![user("a@example")]),
        (
            below(IdType::UserFqdn, "@example"),
            vec![user("me@example"), user("You@Example")],
            vec![user("me@other.example"), host("me@example")],
        ),
        (
            exactly(IdType::DerAsn1Dn, &name("CN=gm1, O=Example")),
            vec![dn("CN=gm1, O=Example"), dn("CN=GM1, O=example")],
            vec![dn("CN=gm2, O=Example"), dn("CN=gm1"), claims(IdType::DerAsn1Dn, &[0x30, 0])],
        ),
        (
            IdentityRule::NameLike { pattern: name("CN=*, O=Example") },
            vec![dn("CN=gm7, O=Example"), dn("CN=GM8, O=EXAMPLE")],
            vec![dn("CN=gm7, O=Other"), dn("O=Example"), dn("CN=*, O=Example"), host("gm7")],
        ),
        (
            exactly(IdType::KeyId, &[0, 1, 0xff]),
            vec![key(&[0, 1, 0xff])],
            vec![key(&[0, 1]), key(&[0, 1, 0xff, 0]), key(b"key")],
        ),
        (
            exactly(IdType::Ipv4Addr, &[203, 0, 113, 9]),
            vec![claims(IdType::Ipv4Addr, &[203, 0, 113, 9])],
            vec![address_identity(local().ip()), address_identity(SERVER.ip())],
        ),
    ]
}

fn policy(own: Option<Identification>, remote: IdentityRule) -> PeerPolicy {
    PeerPolicy { local_identity: own, remote: vec![remote], ..peer_policy(Dialect::STRICT) }
}

/// Members after the two have met.
fn members(at_server: PeerPolicy, at_member: PeerPolicy) -> usize {
    let mut settings = super::gcks::settings();
    settings.gateways[0].policy = Arc::new(at_server);
    let mut gcks = Gcks::with(settings);
    let mut settings = super::gm::settings();
    settings.gateways[0].policies = vec![at_member];
    let mut gm = Gm::with(settings, 1);
    talk(&mut gcks, &mut gm);
    assert_eq!(gm.installed, gcks.members(), "keys go to members alone");
    gcks.members()
}

#[test]
fn a_server_takes_who_satisfies_its_rule_and_nobody_else_who_holds_the_same_key() {
    for (rule, good, bad) in rules() {
        for (ids, expected) in [(good, 1), (bad, 0)] {
            for id in ids {
                let claim = format!("{rule:?} {id}");
                let at_member = policy(Some(id), IdentityRule::PeerAddress);
                assert_eq!(members(policy(None, rule.clone()), at_member), expected, "{claim}");
            }
        }
    }
}

#[test]
fn a_member_takes_a_server_that_satisfies_its_rule_and_no_other_that_holds_the_same_key() {
    for (rule, good, bad) in rules() {
        for (ids, expected) in [(good, 1), (bad, 0)] {
            for id in ids {
                let claim = format!("{rule:?} {id}");
                let at_server = policy(Some(id), IdentityRule::PeerAddress);
                assert_eq!(members(at_server, policy(None, rule.clone())), expected, "{claim}");
            }
        }
    }
}

#[test]
fn without_a_rule_each_side_is_its_address_and_no_other() {
    let by_address = || policy(None, IdentityRule::PeerAddress);
    assert_eq!(members(by_address(), by_address()), 1);
    for id in [claims(IdType::Ipv4Addr, &[10, 1, 0, 77]), claims(IdType::Fqdn, b"gm1.example")] {
        assert_eq!(members(by_address(), policy(Some(id.clone()), IdentityRule::PeerAddress)), 0, "{id}");
        assert_eq!(members(policy(Some(id.clone()), IdentityRule::PeerAddress), by_address()), 0, "{id}");
    }
}
