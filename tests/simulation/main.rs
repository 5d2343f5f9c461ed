//! Scenarios in the simulator: engines of key server and members, one clock, a network that loses, doubles and reorders.
//! Every scenario takes a seed and prints it when it fails.

mod crash;
mod long;
mod revocation;

use std::time::Duration;

use gcks::engine::io::Command;
use gdoi_proto::Dialect;
use gdoi_sim::world::GROUP;
use gdoi_sim::{Timing, Weather, World};

fn rekey(kek: bool) -> Command {
    Command::Rekey { group: GROUP.to_owned(), tek: true, kek }
}

fn all_registered(world: &World, members: usize) -> bool {
    world.registered() == members
        && (0..members).all(|index| world.member(index).state(GROUP) == "registered")
}

/// SPIs of the TEKs every member holds.
fn common_teks(world: &World, members: usize) -> Vec<String> {
    let spis = |index: usize| -> Vec<String> {
        world.member(index).installed(GROUP).iter().map(|(spi, _)| spi.to_string()).collect()
    };
    spis(0).into_iter().filter(|spi| (1..members).all(|index| spis(index).contains(spi))).collect()
}

#[test]
fn members_register_and_are_rekeyed_on_a_fair_network() {
    let mut world = World::new(1, 3, Weather::FAIR, Timing::USUAL);
    assert!(
        world.run_until(Duration::from_secs(30), |world| all_registered(world, 3)),
        "{}",
        world.trace.text()
    );
    world.command(rekey(true)).expect("it runs").expect("a rekey");
    world.run(Duration::from_secs(5));
    assert_eq!(world.trace.count("gcks", "rekey_completed"), 1, "{}", world.trace.text());
    assert_eq!(common_teks(&world, 3).len(), 2, "old and new TEK are both installed");
    world.run(Duration::from_secs(60));
    assert_eq!(common_teks(&world, 3).len(), 1, "the old TEK went at DTD");
}

#[test]
fn registration_and_rekey_complete_at_thirty_percent_loss_duplication_and_reordering() {
    for seed in 1..=40 {
        let mut world = World::new(seed, 4, Weather::bad(30), Timing::USUAL);
        let done = world.run_until(Duration::from_secs(1800), |world| all_registered(world, 4));
        assert!(done, "seed {seed}: not registered\n{}", world.trace.text());
        world.command(rekey(seed % 2 == 0)).expect("it runs").expect("a rekey");
        world.run(Duration::from_secs(40));
        assert!(world.trace.count("gcks", "rekey_completed") >= 1, "seed {seed}: rekey not completed");
        // A member that lost every copy (or whose every acknowledgement was lost) is expired; it holds keys until it
        // registers again by itself, when its last TEK nears its end.
        let done = world.run_until(Duration::from_secs(4200), |world| {
            (0..4).all(|index| world.member(index).state(GROUP) == "registered")
                && !common_teks(world, 4).is_empty()
        });
        assert!(done, "seed {seed}: members do not share a TEK\n{}", world.trace.text());
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_shows_no_key() {
    let run = |seed| {
        let mut world = World::new(seed, 3, Weather::bad(20), Timing::USUAL);
        world.run(Duration::from_secs(7200));
        let keys: Vec<String> = (0..3)
            .flat_map(|index| world.member(index).installed(GROUP))
            .map(|(_, key)| key.expose().iter().map(|octet| format!("{octet:02x}")).collect())
            .collect();
        (world.trace.text().to_owned(), keys)
    };
    let (first, keys) = run(7);
    assert_eq!(first, run(7).0);
    assert_ne!(first, run(8).0);
    assert!(
        !keys.is_empty() && keys.iter().all(|key| !first.contains(key.as_str())),
        "a key octet string in the trace"
    );
}

#[test]
fn a_silenced_member_is_expired_and_comes_back() {
    let mut world = World::new(3, 2, Weather::FAIR, Timing::USUAL);
    assert!(world.run_until(Duration::from_secs(30), |world| all_registered(world, 2)));
    let address = gdoi_sim::world::member_address(1).ip();
    world.net.cut(address);
    world.command(rekey(false)).expect("it runs").expect("a rekey");
    world.run(Duration::from_secs(31));
    assert_eq!((world.registered(), world.trace.count("gcks", "member_expired")), (1, 1));
    world.net.mend(address);
    let back = world.run_until(Duration::from_secs(3600), |world| {
        world.registered() == 2 && !common_teks(world, 2).is_empty()
    });
    assert!(back, "{}", world.trace.text());
}

#[test]
fn a_server_that_dies_at_any_write_keeps_every_member() {
    for batches in 1..=6 {
        let mut world = World::new(batches, 3, Weather::FAIR, Timing::USUAL);
        assert!(world.run_until(Duration::from_secs(30), |world| all_registered(world, 3)));
        let registrations = world.trace.count("gcks", "member_registered");
        world.kill_server_after(batches);
        let _ = world.command(rekey(batches % 2 == 0));
        let mut died = false;
        for _ in 0..40 {
            world.run(Duration::from_secs(1));
            if !world.server_runs() {
                died = true;
                world.start_server();
            }
        }
        assert_eq!(world.registered(), 3, "after {batches} batches");
        let again = world.trace.count("gcks", "member_reregistered");
        assert_eq!(
            (world.trace.count("gcks", "member_registered"), again),
            (registrations, 0),
            "nobody had to register"
        );
        assert_eq!(
            common_teks(&world, 3).len(),
            2,
            "after {batches} batches (died: {died})\n{}",
            world.trace.text()
        );
    }
}

#[test]
fn every_compat_word_works_between_two_sides_that_have_it() {
    for word in Dialect::WORDS {
        let mut dialect = Dialect::STRICT;
        assert!(dialect.set(word));
        let mut world = World::in_dialect(5, 2, Weather::FAIR, Timing::USUAL, dialect);
        let registered = world.run_until(Duration::from_secs(30), |world| all_registered(world, 2));
        assert!(registered, "{word}: {}", world.trace.text());
        for kek in [true, false, true] {
            world.command(rekey(kek)).expect("it runs").expect("a rekey");
            world.run(Duration::from_secs(100));
        }
        assert_eq!(world.trace.count("gcks", "ack_received"), 6, "{word}: {}", world.trace.text());
        for name in ["gm1", "gm2"] {
            assert_eq!(world.trace.count(name, "push_gap"), 0, "{word}: {}", world.trace.text());
        }
        assert_eq!(common_teks(&world, 2).len(), 1, "{word}");
    }
}

#[test]
fn members_can_always_open_what_the_others_send() {
    for seed in 1..=10 {
        let mut world = World::new(seed, 4, Weather::FAIR, Timing::USUAL);
        assert!(world.run_until(Duration::from_secs(30), |world| all_registered(world, 4)), "seed {seed}");
        // Scheduled rekeys of TEK and KEK, a member that leaves no trace and comes back, a forced rekey.
        let mut gaps = world.run_watching(Duration::from_secs(4 * 3600));
        world.start_member(2);
        gaps.extend(world.run_watching(Duration::from_secs(60)));
        world.command(rekey(true)).expect("it runs").expect("a rekey");
        gaps.extend(world.run_watching(Duration::from_secs(3600)));
        assert!(gaps.is_empty(), "seed {seed}: {:?}\n{}", gaps.first(), world.trace.text());
        assert!(world.trace.count("gcks", "rekey_completed") >= 5);
    }
}

#[test]
fn members_of_a_group_without_rekeying_can_always_open_what_the_others_send() {
    for seed in 1..=10 {
        let mut world = World::without_rekeying(seed, 4, Weather::FAIR, Timing::USUAL);
        assert!(world.run_until(Duration::from_secs(30), |world| all_registered(world, 4)), "seed {seed}");
        let gaps = world.run_watching(Duration::from_secs(4 * 3600));
        assert!(gaps.is_empty(), "seed {seed}: {:?}\n{}", gaps.first(), world.trace.text());
        assert!(world.trace.count("gcks", "member_reregistered") >= 12, "they fetch new keys");
    }
}

#[test]
fn cleared_members_are_back_within_a_minute_and_a_rekey_meanwhile_tears_nothing() {
    for seed in 1..=10 {
        let mut world = World::new(seed, 4, Weather::FAIR, Timing::USUAL);
        assert!(world.run_until(Duration::from_secs(30), |world| all_registered(world, 4)), "seed {seed}");
        // Long enough for IKE SAs to be gone: nothing under them could tell anybody.
        world.run(Duration::from_secs(120));
        let clear = Command::ClearMembers { group: GROUP.to_owned() };
        world.command(clear).expect("it runs").expect("cleared");
        let told = world.command(rekey(true)).expect("it runs").expect("a rekey").1;
        assert_eq!((world.registered(), told), (0, None), "nobody is in the list");
        let mut gaps = world.run_watching(Duration::from_secs(60));
        assert!(all_registered(&world, 4), "seed {seed}: {}", world.trace.text());
        gaps.extend(world.run_watching(Duration::from_secs(3600)));
        assert!(gaps.is_empty(), "seed {seed}: {:?}\n{}", gaps.first(), world.trace.text());
        assert_eq!(world.trace.count("gcks", "member_expired"), 0, "seed {seed}");
    }
}
