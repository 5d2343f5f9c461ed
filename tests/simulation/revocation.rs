//! A group with a key tree loses members: whoever was revoked opens nothing any more, by whatever key it holds and
//! although it hears everything, and nobody else has to register again.

use std::time::Duration;

use gcks::engine::io::Command;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{KekSpi, SeqNumber};
use gdoi_proto::message::Dialect;
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::secret::SecretBytes;
use gdoi_sim::world::{GROUP, member_address, member_name};
use gdoi_sim::{Timing, Weather, World};
use ike::crypto::Cipher;
use ike::crypto::cipher::CipherKey;
use ike::protect::push::{self, KekCipherKey};

use super::{all_registered, common_teks, rekey};

pub(super) fn revoke(member: usize) -> Command {
    Command::Revoke { group: GROUP.to_owned(), member: member_address(member).ip().to_string() }
}

/// IV and key of everything a member holds: its KEK, and its path of the tree.
pub(super) fn held(world: &World, index: usize) -> Vec<([u8; 16], SecretBytes)> {
    let kek = world.member(index).vpns()[GROUP].keyring.kek().expect("a KEK");
    let path = kek.path.iter().flat_map(|path| path.keys());
    let split = |data: &[u8]| {
        let (iv, key) = data.split_first_chunk::<16>().expect("an IV");
        (*iv, SecretBytes::copy(key))
    };
    path.map(|key| split(&key.data)).chain([(kek.cipher.iv, kek.key().clone())]).collect()
}

fn opener((iv, key): &([u8; 16], SecretBytes), spi: KekSpi) -> KekCipherKey {
    let cipher = Cipher::with_key_len(key.len()).expect("an AES length");
    KekCipherKey { spi, key: CipherKey::new(cipher, key.clone()).expect("its key"), iv: *iv }
}

/// Tries every key of `keys` on a PUSH, and what that opens on every key array in it: all keys that come out.
pub(super) fn try_keys(keys: &[([u8; 16], SecretBytes)], octets: &[u8]) -> Vec<Vec<u8>> {
    let header = Header::decode(octets).expect("a header");
    let mut found = Vec::new();
    for key in keys {
        let kek = opener(key, header.cookies.into());
        let Ok(opened) = push::open(&kek, SeqNumber(0), &header, octets, Dialect::STRICT) else { continue };
        let Some((sa, kd)) = opened.verified().into_inner().keys else { continue };
        let policy = GroupPolicy::read(&sa, Carriage::Push).expect("our policy");
        let set = KeySet::read(&kd, &policy, Carriage::Push).expect("our keys");
        found.extend(set.teks.iter().map(|(_, tek)| tek.encryption.expose().to_vec()));
        found.extend(set.kek.iter().map(|kek| kek.key.expose().to_vec()));
        for sealed in set.lkh_updates.iter().flat_map(|update| &update.keys) {
            for under in keys {
                let plain = opener(under, KekSpi([0; 16])).key.decrypt(&under.0, &sealed.data);
                found.extend(plain.map(|plain| plain[16..].to_vec()));
            }
        }
    }
    found
}

fn key_tree(seed: u64, members: usize) -> World {
    let mut world = World::with_key_tree(seed, members, Weather::FAIR, Timing::USUAL);
    let registered = world.run_until(Duration::from_secs(180), |world| all_registered(world, members));
    assert!(registered, "seed {seed}: {}", world.trace.text());
    // Growth of the tree is over.
    world.run(Duration::from_secs(60));
    world
}

fn registrations(world: &World) -> usize {
    world.trace.count("gcks", "member_registered") + world.trace.count("gcks", "member_reregistered")
}

#[test]
fn one_of_sixty_four_is_revoked_and_opens_nothing_while_nobody_else_registers_again() {
    const OUT: usize = 20;
    let mut world = key_tree(1, 64);
    let (before, sent) = (registrations(&world), world.pushes.len());
    let keys = held(&world, OUT);
    let old_teks = world.member(OUT).installed(GROUP);
    let (report, _) = world.command(revoke(OUT)).expect("it runs").expect("revoked");
    assert!(report.contains("last keys it held: KEK"), "{report}");
    world.run(Duration::from_secs(5));
    // It hears all of it.
    let pushes = world.pushes[sent..].to_vec();
    assert!(pushes.len() >= 2, "the KEK first, then TEKs under it");
    pushes.iter().for_each(|push| world.inject(OUT, push));
    let sizes: Vec<usize> = pushes.iter().map(|push| push.len()).collect();
    assert!(sizes.len() >= 3 && sizes.iter().all(|size| *size <= 1280), "max-push-size: {sizes:?}");
    let kek = world.server().groups()[GROUP].kek().expect("a KEK").key.expose().to_vec();
    let new_teks: Vec<Vec<u8>> = world.server().groups()[GROUP]
        .teks()
        .iter()
        .filter(|tek| !old_teks.iter().any(|(spi, _)| *spi == tek.spi))
        .map(|tek| tek.key.encryption.expose().to_vec())
        .collect();
    assert_eq!(new_teks.len(), 1);
    let found: Vec<Vec<u8>> = pushes.iter().flat_map(|push| try_keys(&keys, push)).collect();
    assert!(!found.is_empty(), "it opens PUSH 1, and arrays to garbage");
    assert!(!found.contains(&kek) && found.iter().all(|key| !new_teks.contains(key)));
    // The same attempt with the keys of a member that stayed finds them: the test can tell.
    let mut others = keys.clone();
    others.extend(held(&world, 3));
    let found: Vec<Vec<u8>> = pushes.iter().flat_map(|push| try_keys(&others, push)).collect();
    assert!(found.iter().any(|key| new_teks.contains(key)));
    assert_eq!(world.member(OUT).installed(GROUP).len(), old_teks.len(), "nothing was installed there");
    world.run(Duration::from_secs(120));
    let tek = world.member(0).installed(GROUP);
    for index in (0..64).filter(|index| *index != OUT) {
        assert_eq!(world.member(index).installed(GROUP)[0].0, tek[0].0, "{}", member_name(index));
        assert_eq!(world.member(index).installed(GROUP).len(), 1, "{}", member_name(index));
    }
    assert_eq!((world.registered(), registrations(&world)), (63, before));
    assert_eq!(world.trace.count("gcks", "member_expired"), 0);
    assert!(world.trace.count("gcks", "pull_refused") > 0, "it tried to come back");
    // Lifted, it is a member again.
    let name = Command::Unrevoke { group: GROUP.to_owned(), member: member_address(OUT).ip().to_string() };
    world.command(name).expect("it runs").expect("lifted");
    assert!(world.run_until(Duration::from_secs(3600), |world| world.registered() == 64));
    world.run(Duration::from_secs(120));
    assert!(!common_teks(&world, 64).is_empty());
}

#[test]
fn a_change_of_the_tree_in_several_pushes_sends_nobody_to_the_server_when_a_tenth_is_lost() {
    let mut again = Vec::new();
    for seed in 1..=5 {
        let mut world = key_tree(seed, 64);
        let (before, sent) = (registrations(&world), world.pushes.len());
        world.net.weather = Weather::bad(10);
        world.command(revoke(20)).expect("it runs").expect("revoked");
        world.run(Duration::from_secs(120));
        let mut changes: Vec<_> = world.pushes[sent..].to_vec();
        changes.sort();
        changes.dedup();
        assert!(changes.len() >= 3, "arrays in two PUSHes at least, then TEKs");
        again.push(registrations(&world) - before);
    }
    // Of a thousand that are told, one loses all three copies.
    assert!(again.iter().sum::<usize>() <= 3, "registrations of 63 members, by seed: {again:?}");
}

#[test]
fn a_server_that_dies_at_any_write_of_a_revocation_keeps_the_rest_together_and_the_revoked_one_out() {
    for batches in 1..=8 {
        let mut world = key_tree(batches, 8);
        let (before, sent) = (registrations(&world), world.pushes.len());
        let keys = held(&world, 5);
        world.kill_server_after(batches);
        let _ = world.command(revoke(5));
        for _ in 0..40 {
            world.run(Duration::from_secs(1));
            if !world.server_runs() {
                world.start_server();
            }
        }
        world.run(Duration::from_secs(60));
        if !world.server_runs() {
            world.start_server();
        }
        let found: Vec<Vec<u8>> =
            world.pushes[sent..].iter().flat_map(|push| try_keys(&keys, push)).collect();
        let teks = world.member(0).installed(GROUP);
        assert!(!teks.is_empty() && teks.iter().all(|(_, key)| !found.iter().any(|it| it == key.expose())));
        for index in (0..8).filter(|index| *index != 5) {
            let theirs = world.member(index).installed(GROUP);
            assert_eq!(
                theirs.len(),
                1,
                "after {batches} batches: {}\n{}",
                member_name(index),
                world.trace.text()
            );
            assert_eq!(theirs[0].0, teks[0].0, "after {batches} batches");
        }
        assert_eq!((world.registered(), registrations(&world)), (7, before), "after {batches} batches");
        world.start_member(5);
        world.run(Duration::from_secs(60));
        assert_eq!(world.registered(), 7, "revoked for good");
    }
}

#[test]
fn a_tree_is_rekeyed_on_schedule_and_by_wish_without_a_registration() {
    for seed in 1..=5 {
        let mut world = key_tree(seed, 20);
        let before = registrations(&world);
        let mut gaps = Vec::new();
        for kek in [true, false, true] {
            world.command(rekey(kek)).expect("it runs").expect("a rekey");
            gaps.extend(world.run_watching(Duration::from_secs(100)));
        }
        gaps.extend(world.run_watching(Duration::from_secs(3 * 3600)));
        assert!(gaps.is_empty(), "seed {seed}: {:?}", gaps.first());
        assert_eq!((registrations(&world), world.registered()), (before, 20), "seed {seed}");
        assert_eq!(world.trace.count("gcks", "ack_refused"), 0, "seed {seed}: {}", world.trace.text());
    }
}

#[test]
fn members_that_come_and_go_in_bad_weather_share_keys_in_the_end() {
    for seed in 1..=10 {
        let mut world = World::with_key_tree(seed, 12, Weather::bad(10), Timing::USUAL);
        assert!(world.run_until(Duration::from_secs(1800), |world| all_registered(world, 12)), "seed {seed}");
        world.command(revoke(7)).expect("it runs").expect("revoked");
        world.run(Duration::from_secs(30));
        let expel = Command::Expel { group: GROUP.to_owned(), member: member_address(2).ip().to_string() };
        let _ = world.command(expel).expect("it runs");
        let shared = |world: &World| {
            let spis = |index: usize| -> Vec<_> {
                world.member(index).installed(GROUP).into_iter().map(|(spi, _)| spi).collect()
            };
            let others = || (0..12).filter(|index| *index != 7);
            let common = spis(0).into_iter().any(|spi| others().all(|index| spis(index).contains(&spi)));
            world.registered() == 11 && common
        };
        assert!(
            world.run_until(Duration::from_secs(2 * 3600), shared),
            "seed {seed}\n{}",
            world.trace.text()
        );
    }
}

#[test]
fn when_the_key_management_changes_everybody_comes_again_once() {
    for (from, to) in [(false, true), (true, false)] {
        let mut world = if from { key_tree(6, 5) } else { World::new(6, 5, Weather::FAIR, Timing::USUAL) };
        assert!(world.run_until(Duration::from_secs(30), |world| all_registered(world, 5)));
        world.kill_server();
        world.set_key_tree(to);
        world.start_server();
        let before = registrations(&world);
        let gaps = world.run_watching(Duration::from_secs(60));
        assert!(gaps.is_empty(), "{:?}\n{}", gaps.first(), world.trace.text());
        assert_eq!((world.registered(), registrations(&world) - before), (5, 5), "to a tree: {to}");
        world.command(rekey(true)).expect("it runs").expect("a rekey");
        world.run(Duration::from_secs(100));
        assert_eq!((common_teks(&world, 5).len(), registrations(&world) - before), (1, 5));
        assert_eq!(world.trace.count("gcks", "member_expired"), 0);
    }
}

#[test]
fn a_restart_between_rekeys_keeps_the_tree() {
    let mut world = key_tree(7, 20);
    let before = registrations(&world);
    for round in 0..3 {
        world.command(revoke(round)).expect("it runs").expect("revoked");
        world.run(Duration::from_secs(70));
        world.kill_server();
        world.start_server();
        world.command(rekey(true)).expect("it runs").expect("a rekey");
        world.run(Duration::from_secs(70));
    }
    let spi = world.member(5).installed(GROUP)[0].0;
    assert!((3..20).all(|index| world.member(index).installed(GROUP)[0].0 == spi));
    assert_eq!((world.registered(), registrations(&world)), (17, before));
}

#[test]
fn with_flat_keys_everybody_registers_again_but_the_revoked_one() {
    let mut world = World::new(4, 5, Weather::FAIR, Timing::USUAL);
    assert!(world.run_until(Duration::from_secs(30), |world| all_registered(world, 5)));
    let old = world.member(0).installed(GROUP);
    let (report, _) = world.command(revoke(1)).expect("it runs").expect("revoked");
    assert!(report.contains("register again within 10 s"), "{report}");
    world.run(Duration::from_secs(60));
    assert_eq!(world.registered(), 4, "{}", world.trace.text());
    for index in [0, 2, 3, 4] {
        let teks = world.member(index).installed(GROUP);
        assert!(teks.len() == 1 && teks[0].0 != old[0].0, "{}", member_name(index));
    }
    assert!(world.member(1).installed(GROUP).is_empty(), "an honest device drops its keys");
    assert!(world.trace.count("gcks", "pull_refused") > 0);
}

#[test]
fn a_joiner_gets_no_key_that_was_in_use_before_it_came() {
    for lkh in [false, true] {
        let mut world = if lkh { key_tree(8, 4) } else { World::new(8, 4, Weather::FAIR, Timing::USUAL) };
        world.kill_server();
        world.set_rekey_on_join(true);
        world.start_server();
        assert!(world.run_until(Duration::from_secs(60), |world| all_registered(world, 4)));
        world.run(Duration::from_secs(120));
        let before = registrations(&world);
        let keys = |world: &World, index| world.member(index).installed(GROUP);
        let old: Vec<_> = keys(&world, 0).into_iter().map(|(spi, _)| spi).collect();
        let old_kek = world.server().groups()[GROUP].kek().expect("a KEK").spi;
        // Two at about the same time share one change of keys.
        world.start_member(4);
        world.start_member(5);
        assert!(
            world.run_until(Duration::from_secs(20), |world| world.registered() == 6),
            "{}",
            world.trace.text()
        );
        for index in [4, 5] {
            let kek = world.member(index).vpns()[GROUP].keyring.kek().expect("a KEK").policy.spi;
            assert_ne!(kek, old_kek);
            assert!(!keys(&world, index).is_empty());
            assert!(keys(&world, index).iter().all(|(spi, _)| !old.contains(spi)));
        }
        let old_pushes = world.pushes.clone();
        let got = held(&world, 4);
        let opened: Vec<Vec<u8>> = old_pushes.iter().flat_map(|push| try_keys(&got, push)).collect();
        assert!(opened.is_empty(), "nothing that was sent before it came");
        world.run(Duration::from_secs(120));
        assert_eq!((common_teks(&world, 6).len(), registrations(&world) - before), (1, 2));
    }
}
