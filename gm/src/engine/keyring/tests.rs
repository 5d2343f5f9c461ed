//! What a keyring does with registrations and pushes.

use super::super::pull::Download;
use super::super::testing::{Bench, kek, policy, tek};
use super::*;

#[test]
fn the_first_registration_sends_at_once_with_the_tek_that_ends_first() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600), tek(301, 400)]), 0).unwrap();
    assert_eq!(bench.take_told(), "install 300, install 301, activate 301");
    bench.pass(30);
    assert_eq!(bench.take_told(), "activate 300");
    assert_eq!(bench.vpn.state(), "registered");
}

#[test]
fn a_pushed_tek_receives_at_once_sends_after_atd_and_its_predecessor_goes_at_dtd() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 0).unwrap();
    bench.take_told();
    let push = bench.push_keys(1, 1, &policy(None, vec![tek(301, 3600)]));
    bench.receive(&push);
    assert_eq!(bench.take_told(), "install 301");
    bench.pass(29);
    assert_eq!(bench.take_told(), "");
    bench.pass(1);
    assert_eq!(bench.take_told(), "activate 301");
    bench.pass(14);
    assert_eq!(bench.take_told(), "");
    bench.pass(1);
    assert_eq!(bench.take_told(), "remove 300");
}

#[test]
fn without_dtd_the_predecessor_lives_to_its_end() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 0).unwrap();
    let next = GroupPolicy { deactivation_delay: None, ..policy(None, vec![tek(301, 7200)]) };
    bench.receive(&bench.push_keys(1, 1, &next));
    bench.take_told();
    bench.pass(3599);
    assert_eq!(bench.take_told(), "activate 301");
    bench.pass(1);
    assert_eq!(bench.take_told(), "remove 300");
}

#[test]
fn a_tek_of_other_selectors_is_not_replaced() {
    let mut bench = Bench::new();
    let mut other = tek(302, 3600);
    other.ip_protocol = 6;
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600), other]), 0).unwrap();
    bench.receive(&bench.push_keys(1, 1, &policy(None, vec![tek(301, 3600)])));
    bench.take_told();
    bench.pass(60);
    assert_eq!(bench.take_told(), "activate 301, remove 300");
}

#[test]
fn a_tek_without_successor_sends_us_to_the_server_and_goes_at_its_end_only() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 0).unwrap();
    bench.take_told();
    assert!(!bench.pass(3491));
    assert!(bench.pass(1), "108 s before the end");
    assert_eq!(bench.take_told(), "");
    bench.pass(108);
    assert_eq!(bench.take_told(), "remove 300");
    assert!(bench.happened("keys_expired"));
    assert_eq!(bench.vpn.state(), "registered", "the KEK is still there");
}

#[test]
fn a_tek_with_a_successor_ends_in_silence() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 90_000)), vec![tek(300, 3600)]), 0).unwrap();
    bench.pass(3000);
    bench.receive(&bench.push_keys(1, 1, &policy(None, vec![tek(301, 3600)])));
    assert!(!bench.pass(1000));
}

#[test]
fn the_kek_without_successor_sends_us_to_the_server() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 600)), vec![tek(300, 90_000)]), 0).unwrap();
    assert!(!bench.pass(569));
    assert!(bench.pass(1), "30 s before its end");
}

#[test]
fn registering_again_installs_the_new_set_first_and_retires_what_is_no_longer_listed() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 5).unwrap();
    bench.take_told();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(301, 3600)]), 5).unwrap();
    // Of 300 the server knows nothing any more: the others have dropped it.
    assert_eq!(bench.take_told(), "sids 8 of 300, install 301, activate 301");
    bench.pass(45);
    assert_eq!(bench.take_told(), "remove 300");
}

#[test]
fn registering_again_in_a_rollover_goes_on_with_what_the_others_use_until_atd() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 5).unwrap();
    bench.take_told();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 40), tek(301, 3600)]), 5).unwrap();
    assert_eq!(bench.take_told(), "sids 8 of 300, install 301");
    bench.pass(30);
    assert_eq!(bench.take_told(), "activate 301");
}

#[test]
fn a_tek_listed_again_is_not_installed_twice() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 0).unwrap();
    bench.take_told();
    bench.pass(1000);
    bench.registered(policy(Some(kek(1, 6200)), vec![tek(300, 2600)]), 0).unwrap();
    assert_eq!(bench.take_told(), "sids 8 of 300", "its IV space begins anew with a new Sender-ID");
}

#[test]
fn a_counting_tek_without_a_sender_id_is_never_activated() {
    let mut bench = Bench::new();
    let first = policy(Some(kek(1, 7200)), vec![tek(300, 3600)]);
    let keys = bench.keys(&first, false);
    let local = "192.0.2.10".parse().unwrap();
    bench
        .step(|vpn, cx| {
            vpn.begin(cx);
            vpn.on_keys(Download { policy: first, keys, seq: SeqNumber(0), age: Age::default() }, local, cx)
        })
        .unwrap();
    bench.pass(100);
    assert_eq!(bench.take_told(), "install 300");
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 0).unwrap();
    assert_eq!(bench.take_told(), "install 300, activate 300", "with a Sender-ID it may send");
}

#[test]
fn terms_older_than_a_push_take_no_key_away() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.begin();
    bench.receive(&bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)])));
    bench.take_told();
    bench.download(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    assert_eq!(bench.vpn.keyring.kek().unwrap().last, SeqNumber(5), "a stale SEQ is ignored");
    bench.pass(60);
    assert_eq!(bench.take_told(), "sids 8 of 300, sids 8 of 301, activate 301, remove 300");
    assert!(bench.vpn.keyring.teks()[0].leaves.is_none(), "301 stays");
}

#[test]
fn terms_older_than_a_push_do_not_bring_back_the_kek_it_replaced() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.begin();
    bench.receive(&bench.push_keys(1, 5, &policy(Some(kek(2, 7200)), vec![tek(301, 3600)])));
    bench.download(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    assert_eq!(bench.vpn.keyring.kek().unwrap().policy.spi, KekSpi([2; 16]));
    bench.take_told();
    bench.receive(&bench.push_keys(2, 1, &policy(None, vec![tek(302, 3600)])));
    assert_eq!(bench.take_told(), "install 302");
}

#[test]
fn terms_of_a_kek_that_is_gone_bring_nothing_and_lead_to_another_registration() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.begin();
    bench.receive(&bench.push_keys(1, 5, &policy(Some(kek(2, 7200)), vec![tek(301, 3600)])));
    bench.receive(&bench.push_delete(2, 1, 1, &[9; 4]));
    bench.pass(46);
    bench.take_told();
    bench.download(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    assert_eq!(bench.take_told(), "");
    assert!(bench.pass(10));
}

#[test]
fn who_missed_a_rekey_sends_under_the_listed_key_though_a_push_overtook_the_terms() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 400)]), 4).unwrap();
    bench.begin();
    bench.receive(&bench.push_keys(1, 6, &policy(Some(kek(2, 7200)), vec![])));
    bench.take_told();
    let listed = GroupPolicy { activation_delay: 9, ..policy(Some(kek(1, 7200)), vec![tek(301, 3600)]) };
    bench.download(listed, 5).unwrap();
    assert_eq!(bench.take_told(), "sids 8 of 300, install 301, activate 301", "300 is gone at the others");
}

#[test]
fn a_tek_that_went_comes_back_from_older_terms_for_decryption_only() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.begin();
    bench.receive(&bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)])));
    bench.pass(46);
    bench.take_told();
    bench.download(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.pass(100);
    assert_eq!(bench.take_told(), "sids 8 of 301, install 300");
}

#[test]
fn a_tek_that_was_replaced_before_its_turn_encrypts_nothing() {
    // Two rekeys in the same second: the others go from 300 to 302.
    let mut bench = Bench::new();
    let teks = vec![tek(300, 40), tek(301, 40), tek(302, 3600)];
    bench.registered(policy(Some(kek(1, 7200)), teks), 4).unwrap();
    assert_eq!(bench.take_told(), "install 300, install 301, install 302, activate 300");
    bench.pass(39);
    assert_eq!(bench.take_told(), "activate 302");
    bench.pass(1);
    assert_eq!(bench.take_told(), "remove 301, remove 300");
}

#[test]
fn who_learns_of_a_rekey_by_the_next_one_turns_to_it_when_the_others_do() {
    // 301 was told 5 s before 302, in a push that never came; 300 goes 45 s after that.
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.take_told();
    let teks = vec![tek(300, 40), tek(301, 45), tek(302, 3600)];
    bench.receive(&bench.push_keys(1, 6, &policy(None, teks)));
    assert_eq!(bench.take_told(), "install 301, install 302");
    for (seconds, told) in [(25, "activate 301"), (5, "activate 302"), (10, "remove 300"), (5, "remove 301")]
    {
        bench.pass(seconds);
        assert_eq!(bench.take_told(), told);
    }
}

#[test]
fn who_has_no_key_sends_under_what_the_others_use_when_a_push_tells_it() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), Vec::new()), 4).unwrap();
    let teks = vec![tek(300, 40), tek(301, 3600)];
    bench.receive(&bench.push_keys(1, 5, &policy(None, teks)));
    assert_eq!(bench.take_told(), "install 300, install 301, activate 300");
    bench.pass(25);
    assert_eq!(bench.take_told(), "activate 301");
}

#[test]
fn a_registration_tells_that_a_pushed_tek_was_replaced_before_its_turn() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 400)]), 4).unwrap();
    bench.begin();
    // A push that tells 301 again with 302, which replaced it in the same second; the others had it 12 s ago.
    bench.receive(&bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600), tek(302, 3600)])));
    bench.take_told();
    let teks = vec![tek(300, 33), tek(301, 33), tek(302, 3600)];
    bench.download(policy(Some(kek(1, 7200)), teks), 5).unwrap();
    bench.pass(32);
    assert_eq!(bench.take_told(), "sids 8 of 300, sids 8 of 301, sids 8 of 302, activate 302");
}

#[test]
fn who_missed_something_waits_for_atd_as_the_others_do_and_sends_under_what_they_use_until_then() {
    // 301 comes by a push while we register anew; the others encrypt under 300 for 30 s more, and drop it after 45 s.
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), Vec::new()), 4).unwrap();
    bench.begin();
    bench.receive(&bench.push_keys(1, 5, &policy(None, vec![tek(301, 3600)])));
    assert_eq!(bench.take_told(), "install 301");
    bench.pass(10);
    bench.download(policy(Some(kek(1, 7200)), vec![tek(300, 400)]), 4).unwrap();
    assert_eq!(bench.take_told(), "sids 8 of 301, install 300, activate 300");
    let spis =
        |bench: &Bench| bench.vpn.keyring.teks().iter().map(|tek| tek.policy.spi.0).collect::<Vec<_>>();
    assert_eq!(spis(&bench), [300, 301], "the one that encrypts later comes last");
    bench.pass(20);
    assert_eq!(bench.take_told(), "activate 301");
    bench.pass(25);
    assert_eq!(bench.take_told(), "remove 300");
}

#[test]
fn a_clean_slate_takes_the_sender_ids_too() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.receive(&bench.push_delete(1, 5, 1, &[0; 4]));
    bench.take_told();
    bench.receive(&bench.push_keys(1, 6, &policy(None, vec![tek(301, 3600)])));
    bench.pass(60);
    assert_eq!(bench.take_told(), "install 301", "it decrypts only until new Sender-IDs come");
}

#[test]
fn sender_ids_of_another_width_are_for_new_teks_only() {
    let mut bench = Bench::new();
    bench.registered(policy(Some(kek(1, 7200)), vec![tek(300, 3600)]), 4).unwrap();
    bench.take_told();
    let both = policy(Some(kek(1, 7200)), vec![tek(300, 3600), tek(301, 3600)]);
    let mut keys = bench.keys(&both, true);
    keys.sender_ids = Some(SenderIds { bits: 8, values: vec![gdoi_proto::ids::SenderId(0)] });
    let download = Download { policy: both, keys, seq: SeqNumber(4), age: Age::default() };
    bench.begin();
    let local = "192.0.2.10".parse().unwrap();
    bench.step(|vpn, cx| vpn.on_keys(download, local, cx)).unwrap();
    assert_eq!(bench.take_told(), "install 301");
}

#[test]
fn who_registers_late_in_a_rollover_sends_under_what_the_others_have_turned_to() {
    // DTD is 45 s and ATD 30 s: 15 s before the others drop 300, all of them send under 301.
    for (life, age, at_once) in [(40, 0, 300), (15, 0, 301), (40, 25, 301)] {
        let mut bench = Bench::new();
        let policy = policy(Some(kek(1, 7200)), vec![tek(300, life), tek(301, 3600)]);
        let keys = bench.keys(&policy, true);
        let age = Age { least: Duration::ZERO, most: Duration::from_secs(age) };
        let download = Download { policy, keys, seq: SeqNumber(4), age };
        bench.begin();
        let local = "192.0.2.10".parse().unwrap();
        bench.step(|vpn, cx| vpn.on_keys(download, local, cx)).unwrap();
        let teks = bench.vpn.keyring.teks();
        let sends = teks.iter().filter(|tek| tek.sending == Sending::Now).map(|tek| tek.policy.spi.0);
        assert_eq!(
            (teks.len(), sends.collect::<Vec<_>>()),
            (2, vec![at_once]),
            "{life} s left, asked {age:?} ago"
        );
    }
}
