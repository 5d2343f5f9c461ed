//! Aggressive mode with pre-shared keys: what it negotiates, what it refuses, and its third message lost.

use super::pair::{KEY, NOW, Pair, fqdn, shared, suite};
use gdoi_proto::header::Header;
use gdoi_proto::registry::ExchangeType;
use ike::crypto::provider::Random;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash};
use ike::identity::IdentityRule;
use ike::io::Instant;
use ike::phase1::{Mode, PeerPolicy, Refusal};

const PSK: AuthMethod = AuthMethod::PreSharedKey;

fn aggressive(groups: &[DhGroup], key: &str) -> PeerPolicy {
    let suites: Vec<_> =
        groups.iter().map(|group| suite(*group, Hash::Sha256, Cipher::Aes256Cbc, PSK)).collect();
    PeerPolicy { mode: Mode::Aggressive, ..shared(&suites, key) }
}

#[test]
fn every_group_establishes_with_three_messages() {
    for group in DhGroup::ALL {
        let mut pair = Pair::run(aggressive(&[group], KEY), aggressive(&[group], KEY), 1);
        assert!(pair.talks(), "group {}: {}", group.number(), pair.said());
        assert_eq!(pair.sent.len(), 3);
        let exchanges: Vec<_> =
            pair.sent.iter().map(|(_, octets)| Header::decode(octets).expect("ours").exchange).collect();
        assert_eq!(exchanges, [ExchangeType::Aggressive; 3]);
        let last = pair.sent.last().map(|(_, octets)| Header::decode(octets).expect("ours"));
        assert!(last.is_some_and(|header| header.flags.encrypted()), "message 3 is encrypted");
    }
}

#[test]
fn an_offer_holds_one_group_only() {
    let groups = [DhGroup::Ecp384, DhGroup::Modp2048, DhGroup::Ecp384];
    let policy = aggressive(&groups, KEY);
    let offered: Vec<_> = policy.usable_offers().iter().map(|offer| offer.suite.group).collect();
    assert_eq!(offered, [DhGroup::Ecp384, DhGroup::Ecp384]);
    let mut pair = Pair::run(policy, aggressive(&[DhGroup::Ecp384], KEY), 1);
    assert!(pair.talks(), "{}", pair.said());
}

#[test]
fn an_identity_that_is_not_admitted_gets_no_key_exchange_and_no_answer() {
    let mut member = aggressive(&[DhGroup::Ecp256], KEY);
    member.local_identity = Some(fqdn("stranger.example"));
    let pair = Pair::run(member, aggressive(&[DhGroup::Ecp256], KEY), 1);
    assert!(pair.responder.is_none() && pair.sent.len() == 1, "{}", pair.said());
}

#[test]
fn another_pre_shared_key_shows_at_the_member() {
    let groups = [DhGroup::Ecp256];
    let pair = Pair::run(aggressive(&groups, KEY), aggressive(&groups, "another secret"), 1);
    assert!(pair.member_sa.is_none() && pair.server_sa.is_none());
    let [Refusal::Failed { reason, answer: None }] = &pair.refusals[..] else { panic!("{}", pair.said()) };
    assert_eq!(reason, "HASH_R mismatch: another pre-shared key?");
}

#[test]
fn a_mode_that_is_not_configured_gets_no_answer() {
    let groups = [DhGroup::Ecp256];
    let main = PeerPolicy { mode: Mode::Main, ..aggressive(&groups, KEY) };
    for (member, server) in
        [(main.clone(), aggressive(&groups, KEY)), (aggressive(&groups, KEY), main.clone())]
    {
        let pair = Pair::run(member, server, 1);
        assert!(pair.responder.is_none() && pair.sent.len() == 1, "{}", pair.said());
    }
}

#[test]
fn a_server_of_another_name_is_refused_before_any_key_is_computed() {
    let groups = [DhGroup::Ecp256];
    let mut member = aggressive(&groups, KEY);
    let id_type = gdoi_proto::registry::IdType::Fqdn;
    member.remote = vec![IdentityRule::Exactly { id_type, data: b"gcks.example".to_vec() }];
    let pair = Pair::run(member, aggressive(&groups, KEY), 1);
    assert!(pair.member_sa.is_none() && pair.initiator.state() == "SentFirst", "{}", pair.said());
}

#[test]
fn a_lost_third_message_is_sent_again_when_the_second_comes_again() {
    let groups = [DhGroup::Ecp256];
    let mut lost = Pair::run(aggressive(&groups, KEY), aggressive(&groups, KEY), 1);
    let second = lost.sent[1].1.clone();
    let third = lost.sent[2].1.clone();
    assert_eq!(lost.at_member(&second), [third], "the same octets again");

    // The server repeats message 2 on its own, twice and no more.
    let mut pair = Pair::run(aggressive(&groups, KEY), aggressive(&groups, KEY), 0);
    let first = pair.sent[0].1.clone();
    let second = pair.at_server(&first);
    let mut random = Random(pair.provider.clone());
    let mut repeats = 0;
    let responder = pair.responder.as_mut().expect("negotiating");
    assert!(!responder.returned(), "nothing proves that the peer can receive");
    while let Some(due) = responder.due() {
        let steps = responder.on_timeout(due, &mut random);
        for step in steps {
            let ike::phase1::Step::Send(octets) = step else { panic!("{step:?}") };
            assert_eq!(octets, second[0]);
            repeats += 1;
        }
        assert!(due < Instant(NOW.at.0 + 60_000_000));
    }
    assert_eq!(repeats, 2);
}
