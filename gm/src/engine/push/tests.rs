//! What becomes of PUSHes: those of this server and forged ones, whole and in pieces, in order and not.

use gdoi_proto::payload::{Delete, LkhDownload, LkhKey, LkhUpdate};
use gdoi_proto::policy::{AckRequest, KekPolicy};
use gdoi_proto::registry::Doi;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;
use ike::crypto::cipher::CipherKey;
use ike::protect::ack::Ack;

use super::super::testing::{Bench, cipher, kek, policy, tek};
use super::*;

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.take_told();
    bench
}

fn delete(protocol: u8, spi: Vec<u8>) -> Delete {
    Delete { doi: Doi::Gdoi, protocol, spi_size: spi.len() as u8, spis: vec![spi] }
}

fn acked(bench: &mut Bench) -> Vec<u32> {
    let verify = |datagram: Datagram| {
        let ack = Ack::decode(&datagram.octets).expect("an acknowledgement");
        let key = AckKey::derive(AckRequest::KekSha256, cipher(ack.spi.0[0]).key.key(), ack.spi);
        key.verify(ack).expect("its HASH").into_inner().seq.0
    };
    bench.sent.drain(..).map(verify).collect()
}

#[test]
fn a_push_is_applied_once_and_acknowledged_again_at_most_three_times_once_a_second() {
    let mut bench = bench();
    let push = bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)]));
    bench.receive(&push);
    assert_eq!((acked(&mut bench), bench.take_told()), (vec![5], "install 301".to_owned()));
    bench.receive(&push);
    assert!(acked(&mut bench).is_empty(), "not within a second");
    for copy in 0..5 {
        bench.pass(1);
        bench.receive(&push);
        assert_eq!(acked(&mut bench).len(), usize::from(copy < 3));
    }
    assert_eq!(bench.take_told(), "");
    assert_eq!(bench.vpn.statistics.push_succeeded, 1);
}

#[test]
fn a_copy_of_an_older_push_stays_unanswered() {
    let mut bench = bench();
    let first = bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)]));
    bench.receive(&first);
    bench.receive(&bench.push_keys(1, 6, &policy(None, vec![tek(302, 3600)])));
    assert_eq!(acked(&mut bench), [5, 6]);
    bench.pass(2);
    bench.receive(&first);
    assert!(acked(&mut bench).is_empty());
}

#[test]
fn a_number_not_above_the_last_is_dropped() {
    let mut bench = bench();
    bench.receive(&bench.push_keys(1, 4, &policy(None, vec![tek(301, 3600)])));
    assert_eq!(bench.take_told(), "");
    assert!(bench.happened("push_refused") && bench.sent.is_empty());
}

#[test]
fn a_bad_signature_changes_nothing_and_is_not_answered() {
    let mut bench = bench();
    let forger = Bench::new();
    bench.receive(&forger.push_keys(1, 9, &policy(None, vec![tek(301, 3600)])));
    assert_eq!(bench.take_told(), "");
    assert!(bench.sent.is_empty() && bench.happened("push_refused"));
    bench.receive(&bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)])));
    assert_eq!(bench.take_told(), "install 301", "the number did not advance");
}

#[test]
fn a_gap_is_told_and_a_push_that_accounts_for_every_tek_repairs_it() {
    let mut bench = bench();
    bench.receive(&bench.push_keys(1, 7, &policy(None, vec![tek(301, 3600)])));
    assert!(bench.happened("push_gap"));
    assert_eq!((bench.take_told(), acked(&mut bench)), ("install 301".to_owned(), vec![7]));
    assert!(!bench.pass(60), "no storm of registrations where pushes get lost");
}

#[test]
fn a_gap_that_leaves_a_tek_open_leads_to_a_registration() {
    let mut bench = Bench::new();
    let other = TekPolicy { ip_protocol: 6, ..tek(302, 3600) };
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600), other]), 4).unwrap();
    bench.receive(&bench.push_keys(1, 7, &policy(None, vec![tek(301, 3600)])));
    assert!(bench.happened("push_gap"));
    assert!(bench.pass(30), "302 may have been replaced");
    let mut kek_only = self::bench();
    kek_only.receive(&kek_only.push_keys(1, 7, &policy(Some(kek(2, 7200)), vec![])));
    assert!(kek_only.pass(30), "and so may 300");
}

#[test]
fn a_registration_planned_while_another_is_under_way_is_not_lost() {
    let mut bench = bench();
    bench.begin();
    bench.receive(&bench.push_keys(1, 7, &policy(Some(kek(2, 7200)), vec![])));
    assert!(!bench.pass(60), "one at a time");
    bench.download(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    assert!(bench.pass(1));
}

#[test]
fn a_forged_push_under_verification_does_not_hold_off_the_genuine_one() {
    let forger = Bench::new();
    let forged = forger.push_keys(1, 5, &policy(None, vec![tek(399, 3600)]));
    for genuine_first in [false, true] {
        let mut bench = bench();
        let genuine = bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)]));
        bench.hold_jobs = true;
        bench.receive(if genuine_first { &genuine } else { &forged });
        bench.receive(if genuine_first { &forged } else { &genuine });
        bench.receive(&forged);
        assert_eq!(bench.vpn.statistics.push_duplicate, 1, "the same octets are checked once");
        bench.run_held_jobs();
        assert_eq!((bench.take_told(), acked(&mut bench)), ("install 301".to_owned(), vec![5]));
    }
}

#[test]
fn at_most_three_candidates_of_a_number_are_verified_at_a_time() {
    let mut bench = bench();
    bench.hold_jobs = true;
    for life in 3600..3604 {
        bench.receive(&Bench::new().push_keys(1, 5, &policy(None, vec![tek(301, life)])));
    }
    assert!(bench.happened("push_refused"));
    assert_eq!(bench.run_held_jobs(), 3);
}

#[test]
fn a_new_kek_takes_over_and_the_old_one_goes_after_the_first_push_under_it() {
    let mut bench = bench();
    bench.receive(&bench.push_keys(1, 5, &policy(Some(kek(2, 7200)), vec![])));
    assert!(bench.happened("kek_installed"));
    bench.receive(&bench.push_keys(1, 6, &policy(None, vec![tek(301, 3600)])));
    assert_eq!(bench.take_told(), "install 301", "the old KEK still protects");
    bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(302, 3600)])));
    assert_eq!(acked(&mut bench), [5, 6, 1]);
    assert!(bench.vpn.keyring.find_kek(KekSpi([1; 16])).is_some(), "DTD is not over");
    bench.pass(45);
    assert!(bench.vpn.keyring.find_kek(KekSpi([1; 16])).is_none());
}

/// A key of a tree; every octet of it says which.
fn node(id: u16, handle: u32, octet: u8) -> LkhKey {
    LkhKey { id, key_type: 3, created: 0, expires: 0, handle, data: vec![octet; 32].into() }
}

/// A new root for KEK `spi`, sealed under the key that `holder` names.
fn array(holder: &LkhKey, spi: u8) -> LkhUpdate {
    let under = CipherKey::new(Cipher::Aes128Cbc, SecretBytes::copy(&holder.data[16..])).unwrap();
    let iv = <[u8; 16]>::try_from(&holder.data[..16]).unwrap();
    let plain = [[1; 16], [spi; 16]].concat();
    let root = LkhKey { data: under.encrypt(&iv, &plain).into(), ..node(9, u32::from(spi), 0) };
    LkhUpdate { id: holder.id, handle: holder.handle, keys: vec![root] }
}

/// A VPN that holds leaf 3, node 5 and the root, which is KEK 1.
fn in_a_tree() -> Bench {
    let mut bench = Bench::new();
    let sak = KekPolicy { acknowledgement: Some(AckRequest::LkhSha256), ..kek(1, 7200) };
    let mut root = node(9, 1, 1);
    root.data[..16].fill(1);
    let keys = vec![node(3, 30, 0x33), node(5, 50, 0x55), root];
    bench.download = Some(LkhDownload { keys });
    bench.registered(policy(Some(sak), vec![tek(300, 3600)]), 4).unwrap();
    bench.take_told();
    bench
}

fn push_arrays(bench: &Bench, seq: u32, spi: u8, lkh_updates: Vec<LkhUpdate>) -> Bytes {
    let sak = KekPolicy { acknowledgement: Some(AckRequest::LkhSha256), lkh: true, ..kek(spi, 7200) };
    let policy = policy(Some(sak), Vec::new());
    let kd = KeySet { lkh_updates, ..KeySet::default() }.write(&policy);
    let keys = Some((policy.write(Carriage::Push), kd));
    bench.push(1, &PushContent { seq: SeqNumber(seq), deletes: Vec::new(), keys })
}

#[test]
fn arrays_for_a_key_of_ours_lead_to_the_new_kek_and_are_acknowledged_by_the_key_of_our_leaf() {
    let mut bench = in_a_tree();
    let others = array(&node(7, 70, 0x77), 2);
    bench.receive(&push_arrays(&bench, 5, 2, vec![others.clone(), array(&node(5, 50, 0x55), 2)]));
    assert!(bench.vpn.keyring.kek().is_some_and(|kek| kek.key().ct_eq(&[2; 16])));
    let ack = Ack::decode(&bench.sent.remove(0).octets).unwrap();
    let leaf = SecretBytes::copy(&[0x33; 16]);
    AckKey::derive(AckRequest::LkhSha256, &leaf, ack.spi).verify(ack).expect("its HASH");
    // Another PUSH of the same change has nothing for us; what the new KEK protects is ours.
    bench.receive(&push_arrays(&bench, 6, 2, vec![others]));
    bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(301, 3600)])));
    assert_eq!((bench.take_told().as_str(), bench.sent.len()), ("install 301", 2));
    assert!(!bench.pass(60));
}

#[test]
fn who_is_excluded_is_silent_and_registers_again_unless_another_push_brings_the_kek() {
    for comes in [false, true] {
        let mut bench = in_a_tree();
        let stale = array(&node(5, 49, 0x55), 2);
        bench.receive(&push_arrays(&bench, 5, 2, vec![array(&node(7, 70, 0x77), 2), stale]));
        assert!(bench.happened("reregistration_scheduled") && bench.sent.is_empty());
        if comes {
            bench.receive(&push_arrays(&bench, 6, 2, vec![array(&node(3, 30, 0x33), 2)]));
            assert_eq!(bench.sent.len(), 1);
        }
        assert_eq!(bench.pass(30), !comes);
        assert_eq!(bench.vpn.keyring.teks().len(), 1, "keys in use stay");
    }
}

#[test]
fn arrays_for_us_are_taken_after_those_for_others_whatever_the_order_and_copies_cost_nothing() {
    let mut bench = in_a_tree();
    let others = |seq| push_arrays(&bench, seq, 2, vec![array(&node(7, 70, 0x77), 2)]);
    let (before, after) = (others(5), others(7));
    let ours = push_arrays(&bench, 6, 2, vec![array(&node(5, 50, 0x55), 2)]);
    bench.receive(&after);
    bench.receive(&after);
    assert_eq!(bench.vpn.statistics.push_duplicate, 1);
    bench.receive(&before);
    bench.receive(&ours);
    assert!(bench.vpn.keyring.kek().is_some_and(|kek| kek.key().ct_eq(&[2; 16])));
    assert_eq!(bench.sent.len(), 1, "only what was for us is acknowledged");
    assert!(!bench.pass(60), "nothing is missing");
}

#[test]
fn numbers_before_our_arrays_are_those_of_arrays_for_others_unless_nothing_says_so() {
    for told in [true, false] {
        let mut bench = in_a_tree();
        bench.receive(&push_arrays(&bench, 7, 2, vec![array(&node(5, 50, 0x55), 2)]));
        assert!(bench.vpn.misses_rekeys() && !bench.happened("reregistration_scheduled"));
        if told {
            bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(301, 3600)])));
        }
        assert_eq!((bench.pass(60), bench.vpn.misses_rekeys()), (!told, false));
        assert_eq!(bench.happened("reregistration_scheduled"), !told);
        assert!(!bench.happened("push_gap") && bench.vpn.statistics.push_gaps == 0);
    }
}

#[test]
fn several_pushes_together_settle_what_a_gap_before_left_open() {
    let other = |spi| TekPolicy { ip_protocol: 6, ..tek(spi, 3600) };
    for all in [false, true] {
        let mut bench = Bench::new();
        bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600), other(302)]), 4).unwrap();
        bench.receive(&bench.push_keys(1, 7, &policy(Some(kek(2, 7200)), vec![])));
        assert!(bench.happened("reregistration_scheduled"));
        bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(301, 3600)])));
        if all {
            bench.receive(&bench.push_keys(2, 2, &policy(None, vec![other(303)])));
        }
        assert_eq!(bench.pass(60), !all);
    }
}

#[test]
fn the_array_for_us_may_come_as_a_late_copy_and_a_registration_is_over_before_the_others_send() {
    for copy in [false, true] {
        let mut bench = in_a_tree();
        bench.receive(&push_arrays(&bench, 6, 2, vec![array(&node(7, 70, 0x77), 2)]));
        assert!(!bench.pass(19), "copies of 5 may still come");
        if copy {
            bench.receive(&push_arrays(&bench, 5, 2, vec![array(&node(5, 50, 0x55), 2)]));
        }
        assert_eq!(bench.pass(6), !copy, "ATD is 30 s");
    }
}

#[test]
fn a_registration_that_brings_the_kek_settles_the_doubt_of_it() {
    let mut bench = in_a_tree();
    bench.begin();
    bench.receive(&push_arrays(&bench, 5, 2, vec![array(&node(7, 70, 0x77), 2)]));
    bench.download(policy(Some(kek(2, 7200)), vec![tek(300, 3600)]), 0).unwrap();
    assert!(!bench.pass(60));
}

#[test]
fn arrays_are_nothing_to_a_member_without_keys_of_a_tree() {
    let mut bench = bench();
    bench.receive(&push_arrays(&bench, 5, 2, vec![array(&node(5, 50, 0x55), 2)]));
    assert!(bench.happened("policy_refused") && bench.sent.is_empty() && bench.pass(30));
}

#[test]
fn a_clean_slate_acts_at_once_is_acknowledged_and_leads_to_a_registration() {
    let mut bench = bench();
    let deletes = vec![delete(1, vec![0; 4]), delete(0, vec![0; 16])];
    let push = bench.push(1, &PushContent { seq: SeqNumber(5), deletes, keys: None });
    bench.receive(&push);
    assert_eq!((bench.take_told(), acked(&mut bench)), ("remove 300".to_owned(), vec![5]));
    assert_eq!(bench.vpn.state(), "expired");
    assert!(bench.vpn.pushes.knows(&push), "a copy is still acknowledged");
    assert!(bench.pass(10));
}

#[test]
fn a_named_delete_waits_for_dtd_and_unknown_spis_mean_nothing() {
    let mut bench = bench();
    let deletes = vec![delete(1, vec![0, 0, 1, 44]), delete(1, vec![9; 4]), delete(2, vec![0; 4])];
    bench.receive(&bench.push(1, &PushContent { seq: SeqNumber(5), deletes, keys: None }));
    bench.pass(44);
    assert_eq!(bench.take_told(), "");
    bench.pass(1);
    assert_eq!(bench.take_told(), "remove 300");
}

#[test]
fn a_policy_we_refuse_uses_its_number_up_keeps_the_keys_and_leads_to_a_registration() {
    let mut bench = bench();
    bench.receive(&bench.push_keys(1, 5, &policy(Some(kek(1, 7200)), vec![tek(301, 0)])));
    assert_eq!(bench.take_told(), "");
    assert!(bench.happened("policy_refused") && bench.sent.is_empty());
    bench.receive(&bench.push_keys(1, 6, &policy(None, vec![tek(301, 3600)])));
    assert!(!bench.happened("push_gap"), "5 was used up");
    assert!(bench.pass(30));
}

#[test]
fn a_push_by_multicast_is_acknowledged_from_our_address_and_its_copies_once_more() {
    let mut bench = Bench::new();
    let group = "239.192.0.1:8480".parse::<SocketAddr>().unwrap();
    let mut sak = kek(1, 7200);
    sak.destination = gdoi_proto::payload::Endpoint {
        id_type: gdoi_proto::registry::IdType::Ipv4Addr,
        port: 8480,
        data: vec![239, 192, 0, 1],
    };
    sak.acknowledgement = Some(AckRequest::KekSha256);
    bench.registered(policy(Some(sak), vec![tek(300, 3600)]), 4).unwrap();
    assert_eq!(bench.vpn.keyring.channels(), [group]);
    let push = bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)]));
    bench.entropy = 0x55;
    for _ in 0..3 {
        bench.receive_at(group, &push);
    }
    assert!(bench.sent.is_empty(), "it waits up to 2 s, so that not everybody answers at once");
    bench.pass(2);
    let own: SocketAddr = super::super::testing::MEMBER.parse().unwrap();
    assert_eq!(bench.sent.len(), 1);
    assert_eq!(bench.sent[0].local, SocketAddr::new(own.ip(), 8480), "as the PUSH came, ports swapped");
    bench.receive_at(group, &push);
    bench.pass(2);
    assert_eq!(bench.sent.len(), 2, "the acknowledgement may have been lost");
    assert_eq!(bench.vpn.statistics.push_duplicate, 3);
}
