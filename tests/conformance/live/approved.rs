//! What is never chosen, whatever a gateway statement allows: algorithms that are too old, and with `approved-only`
//! everything outside its list. And what is logged when `allow-legacy` lets something in.

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::attribute::Attribute;
use gdoi_proto::message::{Dialect, Message, Rules};
use gdoi_proto::payload::Payload;
use gdoi_proto::registry::{ExchangeType, NotifyType};
use gdoi_sim::world::peer_policy;
use ike::crypto::{DhGroup, Hash, Suite};
use ike::phase1::PeerPolicy;

use super::gcks::Gcks;
use super::gm::{Gm, offered, talk};
use super::hand::{Opening, suite};
use super::{at, exchanges, only};

/// Numbers of attributes (RFC 2409 appendix A).
const ENCRYPTION: u16 = 1;
const HASH: u16 = 2;
const METHOD: u16 = 3;
const GROUP: u16 = 4;

/// A policy that takes each of `suites`.
fn taking(suites: &[Suite]) -> PeerPolicy {
    let mut policy = peer_policy(Dialect::STRICT);
    let offer = policy.offers[0];
    policy.offers = suites.iter().map(|suite| ike::phase1::Offer { suite: *suite, ..offer }).collect();
    policy
}

/// A first message whose transform has these values instead.
fn first(number: u8, values: &[(u16, u16)]) -> Bytes {
    let octets = Opening::of(number).first();
    let mut message = Message::decode(&octets, Rules::PHASE1_CLEAR).expect("our own");
    let Some(Payload::Sa(sa)) = message.payloads.first_mut() else { panic!("no SA") };
    let attributes = &mut sa.proposals[0].transforms[0].attributes;
    for (kind, value) in values {
        let place = attributes.iter().position(|attribute| attribute.kind == *kind).expect("mandatory");
        attributes[place] = Attribute::basic(*kind, *value);
        // 3DES and DES have keys of one length and no Key Length.
        if (*kind, *value) == (ENCRYPTION, 5) || (*kind, *value) == (ENCRYPTION, 1) {
            attributes.retain(|attribute| attribute.kind != 14);
        }
    }
    message.encode().into()
}

/// True when the server refuses this first message with NO-PROPOSAL-CHOSEN and keeps nothing of it.
fn refuses(gcks: &mut Gcks, octets: &Bytes) -> bool {
    // Refusals in clear are limited.
    gcks.pass(std::time::Duration::from_secs(2));
    let before = gcks.peers();
    let answer = only(gcks.tell(at("10.1.0.1:848"), octets));
    if exchanges(std::slice::from_ref(&answer)) == [ExchangeType::MainMode] {
        return false;
    }
    let said = Message::decode(&answer, Rules::PHASE1_CLEAR).expect("clear");
    let [Payload::Notify(said)] = &said.payloads[..] else { panic!("{said:?}") };
    assert_eq!(said.kind, NotifyType::NoProposalChosen.number());
    assert_eq!(gcks.peers(), before);
    true
}

#[test]
fn des_3des_md5_small_groups_and_encryption_as_proof_are_never_chosen_even_where_sha1_is() {
    let sha1 = Suite { hash: Hash::Sha1, ..suite() };
    let mut gcks = Gcks::by(taking(&[suite(), sha1]));
    let too_old: [&[(u16, u16)]; 14] = [
        &[(ENCRYPTION, 1)],            // DES
        &[(ENCRYPTION, 2)],            // IDEA
        &[(ENCRYPTION, 3)],            // Blowfish
        &[(ENCRYPTION, 5)],            // 3DES
        &[(ENCRYPTION, 5), (HASH, 2)], // what old routers begin with
        &[(ENCRYPTION, 6)],            // CAST
        &[(HASH, 1)],                  // MD5
        &[(GROUP, 1)],
        &[(GROUP, 2)],
        &[(GROUP, 5)],
        &[(GROUP, 2), (HASH, 2)],
        &[(METHOD, 2)], // DSS
        &[(METHOD, 4)], // RSA encryption
        &[(METHOD, 5)],
    ];
    for (number, values) in (1..).zip(too_old) {
        assert!(refuses(&mut gcks, &first(number, values)), "{values:?}");
    }
    assert!(!refuses(&mut gcks, &first(100, &[(HASH, 2)])), "SHA-1 is allowed here");
    assert!(!refuses(&mut gcks, &first(101, &[])));
    let mut strict = Gcks::by(taking(&[suite()]));
    assert!(refuses(&mut strict, &first(1, &[(HASH, 2)])), "and not where it is not");
}

#[test]
fn approved_only_refuses_an_offer_that_its_gateway_would_allow() {
    let curve = Suite { group: DhGroup::Curve25519, ..suite() };
    let sha1 = Suite { hash: Hash::Sha1, ..suite() };
    let all = taking(&[curve, sha1, suite()]);
    let (mut loose, mut strict) = (Gcks::by(all.clone()), Gcks::by(all.approved_only()));
    for outside in [(GROUP, 31), (HASH, 2)] {
        assert!(!refuses(&mut loose, &first(1, &[outside])), "{outside:?}");
        assert!(refuses(&mut strict, &first(1, &[outside])), "{outside:?}");
        let reason = strict.events.iter().rev().find_map(|event| match event {
            Event::Phase1Failed { reason, .. } => Some(reason.as_str()),
            _ => None,
        });
        assert_eq!(
            reason,
            Some("no offered transform is one of aes-256-cbc/sha-256/group19/pre-shared-keys")
        );
        loose.pass(std::time::Duration::from_secs(60));
    }
    assert!(!refuses(&mut strict, &first(2, &[])));
    // With nothing left it takes nothing.
    let mut none = Gcks::by(taking(&[curve]).approved_only());
    assert!(refuses(&mut none, &first(1, &[(GROUP, 31)])));
}

#[test]
fn an_approved_only_member_offers_nothing_outside() {
    let curve = Suite { group: DhGroup::Curve25519, ..suite() };
    let mut gm = Gm::by(taking(&[curve, suite()]).approved_only(), 1);
    let offer = offered(&only(gm.take()));
    let groups: Vec<_> = offer.proposals[0].transforms.iter().map(|it| it.attributes[3].integer()).collect();
    assert_eq!(groups, [Some(19)]);
}

#[test]
fn each_use_of_sha1_is_logged_by_both_sides_and_no_use_of_sha_2_is() {
    let sha1 = Suite { hash: Hash::Sha1, ..suite() };
    for (suite, times) in [(sha1, 2), (suite(), 0)] {
        let mut gcks = Gcks::by(taking(&[suite]));
        for _ in 0..2 {
            let mut gm = Gm::by(taking(&[suite]), 1);
            talk(&mut gcks, &mut gm);
            assert_eq!((gm.count("phase1_established"), gm.count("legacy_algorithm")), (1, times / 2));
        }
        assert_eq!((gcks.count("phase1_established"), gcks.count("legacy_algorithm")), (2, times));
        let said =
            gcks.events.iter().find(|event| event.name() == "legacy_algorithm").map(ToString::to_string);
        assert_eq!(said.is_some_and(|said| said.contains("aes-256-cbc/sha1/group19")), times > 0);
    }
}
