//! The member in GROUPKEY-PULL, and its answers to PUSHes.

use std::collections::BTreeSet;
use std::time::Duration;

use gdoi_proto::message::{Dialect, Domain, Message, Rules};
use gdoi_proto::registry::ExchangeType;
use gdoi_sim::world::{GROUP, SERVER, Timing, server_settings};
use gm::engine::io::{Command, Input};
use gm::engine::settings::{Encryption, Flow};
use ike::protect::ack::Ack;

use super::gcks::Gcks;
use super::gm::{Gm, established, local, settings, talk};
use super::{exchanges, header, only};

/// A server and a member that is registered.
fn registered() -> (Gcks, Gm) {
    let (mut gcks, mut gm) = (Gcks::new(), Gm::new());
    talk(&mut gcks, &mut gm);
    assert_eq!(gm.engine.state(GROUP), "registered");
    (gcks, gm)
}

#[test]
fn every_pull_has_a_message_id_of_its_own_under_the_cookies_of_phase_1() {
    let (mut gcks, mut gm) = registered();
    for _ in 0..3 {
        gm.input(Input::Command { ticket: 1, command: Command::Register { vpn: None } });
        talk(&mut gcks, &mut gm);
    }
    let cookies = gcks.engine.peers().established().next().expect("an SA").0.cookies;
    let pulls: Vec<_> = gm
        .log
        .iter()
        .map(|(_, sent)| header(&sent.octets))
        .filter(|header| header.exchange == ExchangeType::GroupkeyPull)
        .collect();
    let ids: BTreeSet<u32> = pulls.iter().map(|header| header.message_id.0).collect();
    assert_eq!((pulls.len(), ids.len(), ids.contains(&0)), (8, 4, false), "two messages each");
    assert!(pulls.iter().all(|header| header.flags.0 == 1 && header.cookies == cookies));
    assert_eq!(ExchangeType::GroupkeyPull.number(), 32);
}

#[test]
fn a_message_of_a_pull_comes_again_octet_for_octet() {
    let mut gm = Gm::new();
    let (_, first) = established(&mut gm);
    gm.pass(Duration::from_secs(10));
    assert_eq!(gm.take(), [first.clone(), first]);
}

#[test]
fn a_message_2_with_a_wrong_hash_changes_nothing() {
    let mut gcks = Gcks::new();
    let mut gm = Gm::new();
    // Everything up to the server's message 2.
    let second = loop {
        let sent = gm.sent.remove(0);
        let answers = gcks.tell(sent.local, &sent.octets);
        let answer = only(answers);
        if header(&answer).exchange == ExchangeType::GroupkeyPull {
            break answer;
        }
        gm.input(Input::Datagram(ike::io::Datagram { local: local(), peer: SERVER, octets: answer }));
    };
    for index in [28, 50, 70, second.len() - 20] {
        let mut forged = second.to_vec();
        forged[index] ^= 1;
        assert!(gm.tell(&forged).is_empty(), "octet {index}");
    }
    assert_eq!((gm.installed, gm.engine.state(GROUP)), (0, "registering"));
    let third = only(gm.tell(&second));
    let fourth = only(gcks.tell(local(), &third));
    for index in 28..fourth.len() - 32 {
        let mut forged = fourth.to_vec();
        forged[index] ^= 1;
        assert!(gm.tell(&forged).is_empty());
    }
    assert_eq!(gm.installed, 0);
    gm.tell(&fourth);
    assert_eq!((gm.installed, gm.engine.state(GROUP)), (1, "registered"));
}

#[test]
fn a_policy_that_is_refused_ends_phase_1_with_a_delete() {
    let mut settings = settings();
    settings.vpns[0].accept.encryption = vec![Encryption::AesGcm { key_octets: 16 }];
    let (mut gcks, mut gm) = (Gcks::new(), Gm::with(settings, 1));
    talk(&mut gcks, &mut gm);
    assert_eq!((gm.count("policy_refused"), gm.installed), (1, 0));
    let pulls = gm.log.iter().filter(|(_, it)| header(&it.octets).exchange == ExchangeType::GroupkeyPull);
    assert_eq!(pulls.count(), 1, "no message 3");
    let (_, last) = gm.log.last().expect("a Delete");
    assert_eq!(header(&last.octets).exchange, ExchangeType::Informational);
    let deleted = gcks.events.iter().find(|event| event.name() == "phase1_deleted").expect("a Delete");
    assert!(deleted.to_string().contains("deleted by the peer"), "{deleted}");
    assert_eq!((gcks.peers().1, gcks.members()), (0, 0));
}

#[test]
fn sas_outside_the_flows_the_member_allows_are_told_and_left_out() {
    let mut settings = settings();
    let prefix = |text: &str| (text.parse().expect("an address"), 16);
    settings.vpns[0].allowed_flows =
        vec![Flow { source: prefix("192.168.0.0"), destination: prefix("192.168.0.0") }];
    let (mut gcks, mut gm) = (Gcks::new(), Gm::with(settings, 1));
    talk(&mut gcks, &mut gm);
    assert_eq!((gcks.members(), gm.installed), (1, 0));
    assert_eq!(gm.count("policy_refused"), 1, "{:?}", gm.events);
}

#[test]
fn an_acknowledgement_goes_back_where_the_push_came_from_with_the_address_of_the_pull() {
    let (mut gcks, mut gm) = registered();
    for kek in [true, false] {
        gcks.rekey(kek);
        let push = gcks.sent.remove(0);
        let before = gm.log.len();
        gm.input(Input::Datagram(ike::io::Datagram {
            local: push.peer,
            peer: push.local,
            octets: push.octets.clone(),
        }));
        let [(_, sent)] = &gm.log[before..] else { panic!("one acknowledgement") };
        assert_eq!((sent.local, sent.peer), (push.peer, push.local));
        let (asked, answered) = (header(&push.octets), header(&sent.octets));
        assert_eq!((answered.cookies, answered.flags.0, answered.message_id.0), (asked.cookies, 0, 0));
        let ack = Ack::decode(&sent.octets).expect("an acknowledgement");
        let pulled = gm
            .log
            .iter()
            .rfind(|(_, sent)| header(&sent.octets).exchange == ExchangeType::GroupkeyPull)
            .map(|(_, sent)| sent.local.ip());
        assert_eq!(ack.address(), pulled);
        assert_eq!((ack.id.protocol, ack.id.port), (0, 0));
        let rules = Rules { domain: Domain::Group, ..Rules::PHASE1_CLEAR };
        assert_eq!(Message::decode(&sent.octets, rules).expect("clear").payloads.len(), 3);
        talk(&mut gcks, &mut gm);
    }
    assert_eq!((gcks.count("ack_received"), gcks.count("rekey_completed")), (2, 2));
}

#[test]
fn a_push_under_an_unknown_cookie_pair_is_dropped_in_silence() {
    let (mut gcks, mut gm) = registered();
    gcks.rekey(false);
    let push = only(gcks.to(local()));
    for index in [0, 7, 8, 15] {
        let mut octets = push.to_vec();
        octets[index] ^= 0x40;
        assert!(gm.tell(&octets).is_empty());
    }
    assert_eq!((gm.count("push_accepted"), gm.count("push_refused"), gm.installed), (0, 0, 1));
    assert_eq!(exchanges(&gm.tell(&push)), [ExchangeType::GroupkeyPushAck]);
}

#[test]
fn members_come_back_before_their_last_key_ends_each_at_a_moment_of_its_own() {
    let mut moments = BTreeSet::new();
    for seed in 1..=6 {
        let mut gcks = Gcks::with(server_settings(Timing::USUAL, Dialect::STRICT, false));
        let mut gm = Gm::with(settings(), seed);
        talk(&mut gcks, &mut gm);
        let (registered, said) = (gm.now.at, gm.log.len());
        while gm.log.len() == said {
            gm.pass(Duration::from_secs(1));
        }
        let after = gm.log[said].0.since(registered);
        assert!(after < Duration::from_secs(3600), "{after:?}");
        moments.insert(after);
    }
    assert_eq!(moments.len(), 6, "{moments:?}");
}
