//! Both sides with a NAT between them: who finds out, when they float, and what an SA remembers of it (RFC 3947); and
//! who announces fragmentation.

use gdoi_proto::header::HEADER_LEN;
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::Payload;

use super::pair::{Pair, fqdn, member as member_address, shared, suite};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash};
use ike::identity::IdentityRule;
use ike::phase1::nat::VENDOR_NAT_T;
use ike::phase1::{Behind, Mode, PeerPolicy};

const OUTSIDE: &str = "198.51.100.7:1024";

/// A member and a server by name: addresses change on the way.
fn policies(mode: Mode) -> (PeerPolicy, PeerPolicy) {
    let suites = [suite(DhGroup::Ecp256, Hash::Sha384, Cipher::Aes256Cbc, AuthMethod::PreSharedKey)];
    let of = |local: &str, remote: &str| PeerPolicy {
        mode,
        local_identity: Some(fqdn(local)),
        remote: vec![IdentityRule::Exactly { id_type: fqdn(remote).id_type, data: fqdn(remote).data }],
        nat_traversal: true,
        ..shared(&suites, super::pair::KEY)
    };
    (of("gm1.example", "gcks.example"), of("gcks.example", "gm1.example"))
}

/// VIDs of NAT traversal and NAT-D payloads in each message sent in clear.
fn told(pair: &Pair) -> Vec<(bool, usize, usize)> {
    let clear = pair.sent.iter().filter(|(_, octets)| octets.get(19).is_some_and(|flags| flags & 1 == 0));
    let counted = clear.map(|(from_member, octets)| {
        assert!(octets.len() > HEADER_LEN);
        let payloads = Message::decode(octets, Rules::PHASE1_CLEAR).expect("our own").payloads;
        let announced = |payload: &&Payload| matches!(payload, Payload::VendorId(id) if *id == VENDOR_NAT_T);
        let hashed = |payload: &&Payload| matches!(payload, Payload::NatD(hash) if hash.len() == 48);
        (*from_member, payloads.iter().filter(announced).count(), payloads.iter().filter(hashed).count())
    });
    counted.collect()
}

fn behind(pair: &Pair) -> (Behind, Behind) {
    let sa = |side: &Option<Box<ike::phase1::Established>>| side.as_ref().expect("established").sa.nat;
    (sa(&pair.member_sa), sa(&pair.server_sa))
}

#[test]
fn main_mode_through_a_nat_announces_hashes_and_floats_before_message_5() {
    let (ours, theirs) = policies(Mode::Main);
    let mut pair = Pair::through(OUTSIDE.parse().unwrap(), ours, theirs, 1);
    assert!(pair.talks(), "{}", pair.said());
    assert_eq!(told(&pair), [(true, 1, 0), (false, 1, 0), (true, 0, 2), (false, 0, 2)]);
    let (member, server) = behind(&pair);
    assert_eq!(member, Behind { ours: true, theirs: false });
    assert_eq!(server, Behind { ours: false, theirs: true });
}

#[test]
fn identities_behind_a_nat_have_port_0_in_both_modes() {
    for mode in [Mode::Main, Mode::Aggressive] {
        let (ours, theirs) = policies(mode);
        let pair = Pair::through(OUTSIDE.parse().unwrap(), ours, theirs, 1);
        let (member, server) = behind(&pair);
        assert!(member.ours && server.theirs, "{mode:?}: {}", pair.said());
        // As received: both HASHes cover protocol and port.
        let claimed = |side: &Option<Box<ike::phase1::Established>>| {
            let id = side.as_ref().expect("established").sa.peer_identity.clone();
            (id.protocol, id.port)
        };
        assert_eq!((claimed(&pair.server_sa), claimed(&pair.member_sa)), ((0, 0), (0, 0)), "{mode:?}");
    }
}

#[test]
fn aggressive_mode_through_a_nat_floats_before_message_3() {
    let (ours, theirs) = policies(Mode::Aggressive);
    let mut pair = Pair::through(OUTSIDE.parse().unwrap(), ours, theirs, 1);
    assert!(pair.talks(), "{}", pair.said());
    assert_eq!(told(&pair), [(true, 1, 0), (false, 1, 2)]);
    let (member, server) = behind(&pair);
    assert_eq!(member, Behind { ours: true, theirs: false });
    assert_eq!(server, Behind { ours: false, theirs: true });
}

#[test]
fn fragmentation_is_used_when_both_announce_it_and_else_not() {
    for mode in [Mode::Main, Mode::Aggressive] {
        for (ours, theirs) in [(true, true), (true, false), (false, true), (false, false)] {
            let (mut member, mut server) = policies(mode);
            (member.fragmentation, server.fragmentation) = (ours, theirs);
            let pair = Pair::through(member_address(), member, server, 1);
            let agreed = |side: &Option<Box<ike::phase1::Established>>| {
                side.as_ref().expect("established").sa.fragments
            };
            assert_eq!((agreed(&pair.member_sa), agreed(&pair.server_sa)), (ours && theirs, ours && theirs));
        }
    }
}

#[test]
fn without_a_nat_both_do_nat_traversal_and_nothing_moves() {
    for mode in [Mode::Main, Mode::Aggressive] {
        let (ours, theirs) = policies(mode);
        let mut pair = Pair::through(member_address(), ours, theirs, 2);
        assert!(pair.talks(), "{}", pair.said());
        assert_eq!(behind(&pair), (Behind::default(), Behind::default()));
        assert!(told(&pair).iter().any(|(_, _, hashes)| *hashes == 2));
    }
}

#[test]
fn a_side_that_has_it_off_hears_and_says_nothing_of_it() {
    for mode in [Mode::Main, Mode::Aggressive] {
        for off in [[true, false], [false, true], [true, true]] {
            let (mut ours, mut theirs) = policies(mode);
            (ours.nat_traversal, theirs.nat_traversal) = (!off[0], !off[1]);
            let mut pair = Pair::through(OUTSIDE.parse().unwrap(), ours, theirs, 1);
            assert!(pair.talks(), "{}", pair.said());
            assert_eq!(behind(&pair), (Behind::default(), Behind::default()));
            let told = told(&pair);
            assert!(told.iter().all(|(from_member, vids, hashes)| {
                *hashes == 0 && (*vids == 0 || *from_member && !off[0])
            }));
        }
    }
}

#[test]
fn only_a_negotiation_that_found_a_nat_lets_its_peer_move() {
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc, AuthMethod::PreSharedKey)];
    let mut plain = Pair::run(shared(&suites, "one key of length"), shared(&suites, "another of length"), 1);
    assert!(!plain.responder.take().expect("begun").may_move());
    let (ours, mut theirs) = policies(Mode::Main);
    theirs.credentials = shared(&suites, "another of length").credentials;
    let mut found = Pair::through(OUTSIDE.parse().unwrap(), ours, theirs, 1);
    let mut responder = found.responder.take().expect("begun");
    assert_eq!((responder.state(), responder.may_move()), ("AwaitAuth", true));
    assert!(responder.answered().repeat(b"nothing").is_none());
}
