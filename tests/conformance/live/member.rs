//! The member in phase 1 and under its SA.

use std::collections::BTreeSet;
use std::time::Duration;

use gdoi_proto::attribute::Attribute;
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::{Notify, Payload, Sa};
use gdoi_proto::registry::{Doi, ExchangeType, NotifyType};
use gdoi_sim::provider::SeededEntropy;
use gdoi_sim::world::SERVER;
use ike::crypto::{AuthMethod, DhGroup, Hash};
use ike::identity::address_identity;
use ike::phase1::messages::{self, Extras};
use ike::phase1::{Mode, VENDOR_DPD, proposal};
use ike::protect::notify::{self, Informational};

use super::gm::{Gm, aggressive, established, established_by, keyed, offered, second, settings};
use super::hand::told;
use super::{at, exchanges, header, only};

/// An error notification.
fn error(kind: NotifyType, spi: &[u8]) -> Payload {
    Payload::Notify(Notify {
        doi: Doi::Isakmp,
        protocol: 1,
        spi: spi.to_vec(),
        kind: kind.number(),
        data: Vec::new(),
    })
}

#[test]
fn a_member_asks_and_answers_only_a_server_that_announced_dead_peer_detection() {
    for (vendor, announced) in [(&VENDOR_DPD[..], true), (b"another", false)] {
        let mut settings = settings();
        let asks = ike::dpd::Settings { interval: Duration::from_secs(10), threshold: 5 };
        settings.gateways[0].dead_peer_detection = Some(asks);
        let mut gm = Gm::with(settings, 1);
        let (mut sa, _) = established_by(&mut gm, vendor);
        let question = notify::dpd(sa.cookies, NotifyType::RUThere, 77);
        let answers = gm.tell(&notify::seal(&mut sa, &[question], &mut SeededEntropy::new(9)));
        let expected = [Informational::RUThereAck(77)];
        assert_eq!(told(&mut sa, &answers), expected[..usize::from(announced)]);

        // A server that does not go on with the registration owes it a word.
        gm.pass(Duration::from_secs(25));
        let mut sent = gm.take();
        sent.retain(|octets| header(octets).exchange == ExchangeType::Informational);
        let asked = told(&mut sa, &sent);
        assert_eq!(asked.is_empty(), !announced, "{asked:?}");
        assert!(asked.iter().all(|said| matches!(said, Informational::RUThere(_))), "{asked:?}");
    }
}

#[test]
fn every_transform_offered_names_cipher_hash_method_and_group() {
    let settings = settings();
    let mut policy = settings.gateways[0].policies[0].clone();
    policy.offers = DhGroup::ALL
        .into_iter()
        .flat_map(|group| [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512].map(|hash| (group, hash)))
        .map(|(group, hash)| {
            let mut offer = policy.offers[0];
            (offer.suite.group, offer.suite.hash, offer.suite.method) =
                (group, hash, AuthMethod::PreSharedKey);
            offer
        })
        .collect();
    let sa = proposal::offer(&policy);
    let [offered] = &sa.proposals[..] else { panic!("one proposal") };
    assert_eq!((offered.transforms.len(), offered.spi.len()), (policy.offers.len(), 0));
    for transform in &offered.transforms {
        let kinds: BTreeSet<u16> = transform.attributes.iter().map(|attribute| attribute.kind).collect();
        assert_eq!(kinds, [1, 2, 3, 4, 11, 12, 14].into(), "and Key Length, for AES, and the life");
        assert_eq!(transform.attributes.len(), kinds.len());
    }
}

#[test]
fn an_answer_with_anything_changed_added_or_missing_is_not_used() {
    let mut gm = Gm::new();
    let first = only(gm.take());
    let good = offered(&first);
    let with = |change: &dyn Fn(&mut Sa)| {
        let mut sa = good.clone();
        change(&mut sa);
        second(&first, sa)
    };
    let attributes = |change: &dyn Fn(&mut Vec<Attribute>)| {
        with(&|sa| change(&mut sa.proposals[0].transforms[0].attributes))
    };
    let mut bad = vec![
        with(&|sa| sa.doi = Doi::Ipsec),
        with(&|sa| sa.proposals[0].transforms[0].id = 2),
        with(&|sa| {
            let mut again = sa.proposals[0].transforms[0].clone();
            again.number += 1;
            sa.proposals[0].transforms.push(again);
        }),
        attributes(&|all| all.push(Attribute::basic(13, 128))),
        attributes(&|all| all.extend([Attribute::basic(11, 2), Attribute::basic(12, 1000)])),
        attributes(&|all| all.extend([Attribute::basic(11, 1), Attribute::basic(12, 3600)])),
        attributes(&|all| drop(all.pop())),
        attributes(&|all| all.truncate(5)),
    ];
    for index in 0..7 {
        bad.push(attributes(&|all| drop(all.remove(index))));
        bad.push(attributes(&|all| {
            let value = all[index].integer().expect("a number") + 1;
            let value = u32::try_from(value).expect("a short number").to_be_bytes();
            all[index] = match all[index].kind {
                12 => Attribute::variable(12, value),
                kind => Attribute::basic(kind, u16::from_be_bytes([value[2], value[3]])),
            };
        }));
    }
    for octets in &bad {
        assert!(gm.tell(octets).is_empty());
    }
    // Another order, and the long form where the attribute has one, are the same answer.
    let same = attributes(&|all| {
        let life = all.pop().and_then(|life| life.integer()).expect("a life");
        all.rotate_left(2);
        let kind = all.iter().position(|attribute| attribute.kind == 11).expect("a life type");
        let kind = all.remove(kind);
        all.extend([kind, Attribute::variable(12, life.to_be_bytes())]);
    });
    assert_eq!(exchanges(&gm.tell(&same)), [ExchangeType::MainMode]);
}

#[test]
fn an_answer_whose_sa_is_not_first_is_not_used() {
    let mut gm = Gm::new();
    let first = only(gm.take());
    let answer = Message::decode(&second(&first, offered(&first)), Rules::PHASE1_CLEAR).expect("our own");
    let odd = Message { payloads: answer.payloads.iter().rev().cloned().collect(), ..answer.clone() };
    assert!(gm.tell(&odd.encode()).is_empty());
    assert_eq!(gm.tell(&answer.encode()).len(), 1);
}

#[test]
fn a_missing_life_is_missed_even_where_its_default_was_offered() {
    let mut settings = settings();
    settings.gateways[0].policies[0].offers[0].lifetime = proposal::DEFAULT_LIFE;
    let mut gm = Gm::with(settings, 1);
    let first = only(gm.take());
    let mut sa = offered(&first);
    sa.proposals[0].transforms[0].attributes.truncate(5);
    assert!(gm.tell(&second(&first, sa)).is_empty());
    assert_eq!(gm.tell(&second(&first, offered(&first))).len(), 1);
}

#[test]
fn an_error_notification_in_clear_ends_no_attempt_by_itself() {
    let mut gm = Gm::new();
    let first = only(gm.take());
    let say = |gm: &mut Gm, cookies| {
        for kind in
            [NotifyType::NoProposalChosen, NotifyType::InvalidCookie, NotifyType::AuthenticationFailed]
        {
            let clear = messages::clear(ExchangeType::Informational, cookies, vec![error(kind, &[])]);
            assert!(gm.tell(&clear).is_empty(), "and nothing is answered");
        }
    };
    say(&mut gm, header(&first).cookies);
    let answer = second(&first, offered(&first));
    assert_eq!(gm.tell(&answer).len(), 1);
    say(&mut gm, header(&answer).cookies);
    assert_eq!(gm.count("phase1_failed"), 0, "the server may still answer within the present interval");
}

#[test]
fn what_is_not_answered_comes_again_octet_for_octet_and_then_the_next_server_is_asked() {
    let mut settings = settings();
    let other = at("10.0.0.2:848");
    settings.gateways[0].servers.push(other);
    let mut gm = Gm::with(settings, 1);
    gm.pass(Duration::from_secs(120));
    let of = |peer| {
        let sent = gm.log.iter().filter(move |(_, datagram)| datagram.peer == peer);
        sent.map(|(at, datagram)| (*at, datagram.octets.clone())).collect::<Vec<_>>()
    };
    let (here, there) = (of(SERVER), of(other));
    let first = &here[..6];
    assert!(first.iter().all(|(_, octets)| *octets == first[0].1), "five copies");
    let gaps: Vec<_> = first.windows(2).map(|pair| pair[1].0.since(pair[0].0)).collect();
    assert!(gaps.windows(2).all(|pair| pair[1] > pair[0]), "{gaps:?}");
    let asked = there.first().expect("the second server is asked");
    assert!(asked.0 > first[5].0 && asked.1 != first[0].1);
    assert!(here.get(6).is_none_or(|(again, _)| *again > asked.0));
}

#[test]
fn messages_3_and_5_come_again_octet_for_octet() {
    let mut gm = Gm::new();
    let first = only(gm.take());
    let third = only(gm.tell(&second(&first, offered(&first))));
    gm.pass(Duration::from_secs(8));
    assert_eq!(gm.take(), [third.clone(), third]);
    let mut gm = Gm::new();
    keyed(&mut gm);
    let (_, fifth) = gm.log.last().expect("message 5").clone();
    gm.pass(Duration::from_secs(8));
    assert_eq!(gm.take(), [fifth.octets.clone(), fifth.octets]);
}

#[test]
fn initial_contact_stands_in_message_5_of_main_mode_and_never_in_aggressive_mode() {
    let mut gm = Gm::new();
    let (hand, fifth) = keyed(&mut gm);
    let [contact] = &fifth.notifies[..] else { panic!("{:?}", fifth.notifies) };
    assert_eq!((contact.doi, contact.protocol), (Doi::Ipsec, 1));
    assert_eq!(contact.kind, NotifyType::InitialContact.number());
    assert_eq!(contact.spi, hand.cookies.octets());
    assert!(contact.data.is_empty());

    let mut settings = settings();
    settings.gateways[0].policies[0].mode = Mode::Aggressive;
    let mut gm = Gm::with(settings, 1);
    let third = aggressive(&mut gm);
    assert!(third.notifies.is_empty() && third.hash.is_some());
    assert_eq!(gm.count("phase1_established"), 1);
    let clear = gm.log.iter().filter(|(_, sent)| !header(&sent.octets).flags.encrypted());
    assert!(clear.clone().count() > 0);
    for (_, sent) in clear {
        assert_eq!(header(&sent.octets).exchange, ExchangeType::Aggressive);
    }
}

#[test]
fn a_server_without_an_identity_or_with_another_is_not_used() {
    let mut gm = Gm::new();
    let (mut hand, _) = keyed(&mut gm);
    let hash = hand.hash(&address_identity(SERVER.ip()));
    let before = hand.iv;
    let sixth = hand.seal(&[hash]);
    assert!(gm.tell(&sixth).is_empty());
    hand.iv = before;
    let other = hand.prove(&address_identity(at("10.0.0.2:848").ip()));
    gm.tell(&other);
    assert_eq!(gm.count("phase1_established"), 0);
}

#[test]
fn the_member_counts_only_protected_informational_messages_and_answers_no_error() {
    let mut gm = Gm::new();
    let (mut sa, _) = established(&mut gm);
    let cookies = sa.cookies;
    let question = notify::dpd(cookies, NotifyType::RUThere, 9);
    for payload in [
        notify::delete_isakmp(cookies),
        question.clone(),
        notify::dpd(cookies, NotifyType::RUThereAck, 9),
        error(NotifyType::InvalidCookie, &cookies.octets()),
    ] {
        let clear = messages::clear(ExchangeType::Informational, cookies, vec![payload.clone()]);
        assert!(gm.tell(&clear).is_empty());
        let mut forged = notify::seal(&mut sa, &[payload], &mut SeededEntropy::new(3)).to_vec();
        forged[29] ^= 1;
        assert!(gm.tell(&forged).is_empty());
    }
    assert_eq!(gm.count("phase1_deleted"), 0);
    let octets = notify::seal(&mut sa, &[question], &mut SeededEntropy::new(4));
    let answers = gm.tell(&octets);
    assert_eq!(told(&mut sa, &answers), [Informational::RUThereAck(9)]);
    let status = notify::notification(cookies, NotifyType::from_number(16384));
    let octets = notify::seal(&mut sa, &[status], &mut SeededEntropy::new(5));
    assert!(gm.tell(&octets).is_empty());
    let octets = notify::seal(&mut sa, &[notify::delete_isakmp(cookies)], &mut SeededEntropy::new(6));
    gm.tell(&octets);
    assert_eq!(gm.count("phase1_deleted"), 1);
}

#[test]
fn every_attempt_has_a_key_pair_of_its_own() {
    let ke = || {
        let mut gm = Gm::new();
        let first = only(gm.take());
        let third = only(gm.tell(&second(&first, offered(&first))));
        super::hand::key_exchange(&third).0
    };
    assert_ne!(ke(), ke(), "whatever the member's own randomness says");
}

#[test]
fn a_message_4_with_a_bad_value_is_dropped_and_the_good_one_still_counts() {
    let mut gm = Gm::new();
    let first = only(gm.take());
    let answer = second(&first, offered(&first));
    let third = only(gm.tell(&answer));
    let cookies = header(&answer).cookies;
    let (own_ke, own_nonce) = super::hand::key_exchange(&third);
    for (ke, nonce) in [(vec![1; 63], vec![5; 32]), (own_ke, vec![5; 32]), (vec![1; 64], own_nonce)] {
        let payloads = messages::key_exchange(&ke, &nonce, &[], &Extras::default());
        assert!(gm.tell(&messages::clear(ExchangeType::MainMode, cookies, payloads)).is_empty());
    }
    assert_eq!(gm.count("phase1_failed"), 0);
}
