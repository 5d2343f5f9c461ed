//! The end of a phase 1: both sides let it go, no group key goes with it, and who needs another makes one.

use std::time::Duration;

use gdoi_proto::message::Dialect;
use gdoi_proto::registry::ExchangeType;
use gdoi_sim::world::peer_policy;
use gm::engine::io::{Command, Input};

use super::exchanges;
use super::gcks::Gcks;
use super::gm::{Gm, local, talk};

/// A server and its member, whose phase 1 has a life of 40 s and is new.
fn registered() -> (Gcks, Gm) {
    let mut policy = peer_policy(Dialect::STRICT);
    policy.offers[0].lifetime = Duration::from_secs(40);
    let (mut gcks, mut gm) = (Gcks::by(policy.clone()), Gm::by(policy, 7));
    talk(&mut gcks, &mut gm);
    (gcks, gm)
}

#[test]
fn when_phase_1_ends_the_keys_stay_in_use_and_the_next_registration_makes_a_new_one() {
    let (mut gcks, mut gm) = registered();
    assert_eq!((gcks.peers(), gcks.members(), gm.installed), ((0, 1), 1, 1));

    let pass = |gcks: &mut Gcks, gm: &mut Gm, seconds| {
        gcks.pass(Duration::from_secs(seconds));
        gm.pass(Duration::from_secs(seconds));
    };
    pass(&mut gcks, &mut gm, 39);
    assert_eq!(gcks.peers(), (0, 1));
    pass(&mut gcks, &mut gm, 1);
    assert_eq!((gcks.peers(), gcks.members()), ((0, 0), 1));
    // The server says that it ended it (RFC 2408 section 5.15); the member's clock said the same.
    let goodbye = gcks.to(local());
    assert_eq!(exchanges(&goodbye), [ExchangeType::Informational]);
    assert_eq!((gcks.count("phase1_deleted"), gm.count("phase1_deleted")), (1, 1));

    // Keys live on: a rekey without any phase 1 reaches the member and is acknowledged.
    gcks.rekey(true);
    talk(&mut gcks, &mut gm);
    assert_eq!((gcks.count("rekey_completed"), gm.installed, gcks.peers()), (1, 2, (0, 0)));
    assert_eq!(gm.count("tek_removed") + gm.count("registration_failed"), 0);

    gm.input(Input::Command { ticket: 1, command: Command::Register { vpn: None } });
    talk(&mut gcks, &mut gm);
    assert_eq!((gcks.count("phase1_established"), gcks.peers(), gcks.members()), (2, (0, 1), 1));
}

#[test]
fn a_registration_near_the_end_of_phase_1_makes_the_new_one_before_and_ends_the_old_one_with_a_delete() {
    let (mut gcks, mut gm) = registered();
    for (seconds, negotiated) in [(25, 1), (7, 2)] {
        gcks.pass(Duration::from_secs(seconds));
        gm.pass(Duration::from_secs(seconds));
        gm.input(Input::Command { ticket: 1, command: Command::Register { vpn: None } });
        talk(&mut gcks, &mut gm);
        // With 15 s left the SA serves once more, with 8 s left it does not.
        assert_eq!(gcks.count("phase1_established"), negotiated);
    }
    // The new one was up before the old one went, by the member's Delete and not by its end.
    let order: Vec<&str> =
        gcks.events.iter().map(|event| event.name()).filter(|name| name.starts_with("phase1_")).collect();
    assert_eq!(order, ["phase1_established", "phase1_established", "phase1_deleted"]);
    assert_eq!((gcks.peers(), gcks.count("phase1_deleted"), gcks.members()), ((0, 1), 1, 1));
    let why =
        gcks.events.iter().rev().find(|event| event.name() == "phase1_deleted").map(ToString::to_string);
    assert!(why.is_some_and(|why| why.ends_with("deleted by the peer")));
    assert_eq!(gm.count("registration_failed"), 0);
}
