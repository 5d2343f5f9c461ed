//! Both sides of main mode against each other, with real crypto: every group, every hash, repetition and refusals.

use super::pair::{KEY, Pair, shared, suite};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash};
use ike::identity::IdentityRule;
use ike::phase1::Refusal;

const PSK: AuthMethod = AuthMethod::PreSharedKey;

#[test]
fn every_group_establishes_in_both_roles() {
    for group in DhGroup::ALL {
        let suites = [suite(group, Hash::Sha256, Cipher::Aes256Cbc, PSK)];
        let mut pair = Pair::run(shared(&suites, KEY), shared(&suites, KEY), 1);
        assert!(pair.talks(), "group {}: {:?}", group.number(), pair.refusals);
    }
}

#[test]
fn every_hash_and_key_length_establishes() {
    for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
        for cipher in [Cipher::Aes128Cbc, Cipher::Aes192Cbc, Cipher::Aes256Cbc] {
            let suites = [suite(DhGroup::Ecp256, hash, cipher, PSK)];
            let mut pair = Pair::run(shared(&suites, KEY), shared(&suites, KEY), 1);
            assert!(pair.talks(), "{}: {:?}", suites[0], pair.refusals);
        }
    }
}

#[test]
fn the_responder_takes_the_first_offer_it_accepts() {
    let first = suite(DhGroup::Modp2048, Hash::Sha256, Cipher::Aes128Cbc, PSK);
    let second = suite(DhGroup::Curve25519, Hash::Sha512, Cipher::Aes256Cbc, PSK);
    let mut pair = Pair::run(shared(&[first, second], KEY), shared(&[second], KEY), 1);
    assert!(pair.talks());
    assert_eq!(pair.server_sa.expect("established").sa.suite, second);
}

#[test]
fn repeated_messages_change_nothing() {
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc, PSK)];
    let mut pair = Pair::run(shared(&suites, KEY), shared(&suites, KEY), 2);
    assert!(pair.talks(), "{:?}", pair.refusals);
}

#[test]
fn another_pre_shared_key_ends_without_an_sa_and_says_what_is_probable() {
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc, PSK)];
    let pair = Pair::run(shared(&suites, KEY), shared(&suites, "another secret"), 1);
    assert!(pair.member_sa.is_none() && pair.server_sa.is_none());
    let said: String = pair.refusals.iter().map(ToString::to_string).collect();
    assert!(said.contains("pre-shared key mismatch"), "{said}");
}

#[test]
fn an_unacceptable_offer_is_refused_with_the_reason() {
    let offered = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc, PSK)];
    let accepted = [suite(DhGroup::Ecp384, Hash::Sha256, Cipher::Aes256Cbc, PSK)];
    let pair = Pair::run(shared(&offered, KEY), shared(&accepted, KEY), 1);
    let [Refusal::Unacceptable { reason, .. }] = &pair.refusals[..] else { panic!("{:?}", pair.refusals) };
    assert!(reason.contains("group20"), "{reason}");
}

#[test]
fn a_member_refuses_a_server_of_another_name() {
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc, PSK)];
    let mut strict = shared(&suites, KEY);
    let id_type = gdoi_proto::registry::IdType::Fqdn;
    strict.remote = vec![IdentityRule::Exactly { id_type, data: b"gcks.example".to_vec() }];
    let pair = Pair::run(strict, shared(&suites, KEY), 1);
    assert!(pair.member_sa.is_none());
    assert!(
        pair.refusals.iter().any(|refusal| matches!(refusal, Refusal::Failed { .. })),
        "{:?}",
        pair.refusals
    );
}
