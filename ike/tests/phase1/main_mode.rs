//! Both sides of main mode against each other, with real crypto: every group, every hash, repetition and refusals.

use super::pair::{KEY, Pair, member, shared, suite};
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

/// Message 1 with another life in its second transform, which is not the one taken: both sides go on, and only the proofs
/// show that what was offered is not what arrived.
fn changed_on_the_way() -> Pair {
    let suites =
        [Cipher::Aes256Cbc, Cipher::Aes128Cbc].map(|it| suite(DhGroup::Ecp256, Hash::Sha256, it, PSK));
    let mut pair = Pair::strangers(member(), shared(&suites, KEY), shared(&suites, KEY));
    let mut first = pair.sent[0].1.to_vec();
    let life = 3600_u32.to_be_bytes();
    let at = first.windows(4).rposition(|it| it == life).or_else(|| {
        let short = 3600_u16.to_be_bytes();
        first.windows(2).rposition(|it| it == short)
    });
    first[at.expect("a life") + 1] ^= 1;
    let second = pair.at_server(&first);
    let third = pair.at_member(&second[0]);
    let fourth = pair.at_server(&third[0]);
    pair.at_member(&fourth[0]);
    pair
}

#[test]
fn an_offer_changed_on_the_way_is_seen_and_the_member_is_told_at_the_third_time() {
    let mut pair = changed_on_the_way();
    let fifth = pair.sent.last().expect("message 5").1.clone();
    let said: Vec<Vec<bytes::Bytes>> = (0..4).map(|_| pair.at_server(&fifth)).collect();
    let lengths: Vec<usize> = said.iter().map(Vec::len).collect();
    assert_eq!(lengths, [0, 0, 1, 0], "{:?}", pair.refusals);
    assert!(pair.server_sa.is_none());
    assert_eq!(pair.refusals[0], Refusal::Dropped("HASH_I mismatch".to_owned()));
    assert!(
        matches!(&pair.refusals[2], Refusal::Failed { reason, answer: Some(_) } if reason == "HASH_I mismatch")
    );
    pair.refusals.clear();
    pair.at_member(&said[2][0]);
    let [Refusal::Failed { reason, answer: None }] = &pair.refusals[..] else {
        panic!("{:?}", pair.refusals)
    };
    assert!(reason.contains("AUTHENTICATION-FAILED"), "{reason}");
}
