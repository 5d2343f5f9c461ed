//! What becomes of registrations when a key server refuses, deletes, or cannot be reached.

use std::time::Duration;

use super::super::io::{Command, Input};
use super::super::testing::site::{Manner, Site, vpn};

fn register(site: &mut Site) {
    site.tell(Input::Command { ticket: 1, command: Command::Register { vpn: None } });
}

#[test]
fn twelve_vpns_of_one_gateway_register_eight_at_a_time() {
    let mut site = Site::started((1..=12).map(vpn).collect(), &[Manner::Serves], |servers| {
        servers[0].holds_keys = true;
    });
    assert_eq!((site.servers[0].most_open, site.servers[0].served.len()), (8, 0));
    site.servers[0].holds_keys = false;
    site.pass(3);
    assert_eq!(site.states(), ["registered"; 12], "the others follow when one is done");
    assert_eq!(site.servers[0].most_open, 8);
}

#[test]
fn an_unauthorised_vpn_does_not_fail_the_others() {
    for refused in 1..=3 {
        let mut site = Site::started((1..=3).map(vpn).collect(), &[Manner::Serves], |servers| {
            servers[0].refuses.insert(refused);
        });
        let states = site.states();
        assert_eq!(states.iter().filter(|state| **state == "registered").count(), 2, "within one round trip");
        assert_eq!(states[refused as usize - 1], "unregistered");
        let [failed] = &site.lines("registration_failed")[..] else { panic!("one fails") };
        assert!(failed.contains("INVALID-ID-INFORMATION"), "{failed}");
        site.pass(1);
    }
}

#[test]
fn two_unauthorised_vpns_of_many_are_told_apart() {
    let site = Site::started((1..=12).map(vpn).collect(), &[Manner::Serves], |servers| {
        servers[0].refuses.extend([2, 9]);
    });
    assert_eq!(site.servers[0].served.len(), 10);
    assert_eq!(site.lines("registration_failed").len(), 2);
}

#[test]
fn a_delete_that_crosses_a_fresh_pull_leads_to_a_new_phase_1() {
    let mut site = Site::new(vec![vpn(1)], &[Manner::Serves]);
    assert_eq!(site.states(), ["registered"]);
    let deletes = site.servers[0].delete_sas();
    register(&mut site);
    assert_eq!(site.knocks.len(), 1, "message 1 of the PULL went to a server that has no SA any more");
    for delete in deletes {
        site.hear(0, delete);
    }
    assert_eq!((site.knocks.len(), site.servers[0].served.len()), (2, 2));
    assert!(site.lines("registration_failed").is_empty());
}

#[test]
fn a_delete_of_the_sa_made_for_a_pull_fails_it() {
    let mut site = Site::started(vec![vpn(1)], &[Manner::Serves], |servers| servers[0].holds_keys = true);
    for delete in site.servers[0].delete_sas() {
        site.hear(0, delete);
    }
    let [failed] = &site.lines("registration_failed")[..] else { panic!("one fails") };
    assert!(failed.contains("deleted phase 1"), "{failed}");
    assert_eq!(site.knocks.len(), 1);
}

#[test]
fn a_delete_after_the_registration_takes_no_key() {
    let mut site = Site::new(vec![vpn(1)], &[Manner::Serves]);
    for delete in site.servers[0].delete_sas() {
        site.hear(0, delete);
    }
    site.pass(60);
    assert_eq!((site.states(), site.knocks.len()), (vec!["registered"], 1), "the server may only be idle");
}

#[test]
fn no_proposal_chosen_in_clear_is_named_and_the_next_server_is_asked_within_one_interval() {
    let mut site = Site::new(vec![vpn(1)], &[Manner::NoProposal, Manner::Serves]);
    assert!(site.lines("registration_failed").is_empty(), "it may be forged");
    site.pass(3);
    let [failed] = &site.lines("registration_failed")[..] else { panic!("one fails") };
    assert!(failed.contains("NO-PROPOSAL-CHOSEN"), "{failed}");
    assert_eq!(site.states(), ["registered"]);
    let refused: Vec<_> = site.knocks.iter().map(|(_, index)| *index).collect();
    assert_eq!(refused, [0, 1]);
}

#[test]
fn a_forged_notification_does_not_stop_a_negotiation_that_goes_on() {
    let mut site = Site::new(vec![vpn(1)], &[Manner::Silent]);
    let knock = site.last_knock();
    site.hear(0, Site::no_proposal(&knock));
    site.servers[0].manner = Manner::Serves;
    site.pass(1);
    for answer in site.answer_knock(&knock) {
        site.hear(0, answer);
    }
    site.pass(10);
    assert!(site.lines("registration_failed").is_empty());
    assert_eq!(site.states(), ["registered"]);
}

#[test]
fn a_server_without_a_route_fails_its_turn_and_the_next_one_serves() {
    let site = Site::started(vec![vpn(1)], &[Manner::Serves, Manner::Serves], |servers| {
        servers[0].routeless = true;
    });
    assert_eq!((site.states(), site.servers[1].served.len()), (vec!["registered"], 1));
    let [failed] = &site.lines("registration_failed")[..] else { panic!("one fails") };
    assert!(failed.contains("no route to key server 192.0.2.1:848"), "{failed}");
}

#[test]
fn a_route_that_comes_later_is_found_at_the_next_try() {
    let mut site = Site::started(vec![vpn(1)], &[Manner::Serves], |servers| servers[0].routeless = true);
    let [failed] = &site.lines("registration_failed")[..] else { panic!("one fails") };
    assert!(failed.contains("no route to key server 192.0.2.1:848"), "{failed}");
    site.pass(600);
    assert!(site.lines("registration_failed").len() >= 16, "again every half minute or so");
    site.no_route.clear();
    site.pass(36);
    assert_eq!(site.states(), ["registered"]);
}

#[test]
fn a_server_deaf_to_message_5_makes_the_member_name_key_and_identity() {
    let mut site = Site::new(vec![vpn(1)], &[Manner::DeafToProofs]);
    site.pass(90);
    let [failed] = &site.lines("registration_failed")[..] else { panic!("one fails") };
    assert!(failed.contains("did not accept message 5: another pre-shared key or identity?"), "{failed}");
    let (_, event) = site.events.iter().find(|(_, event)| event.name() == "registration_failed").unwrap();
    assert_eq!(event.level(), ctl::event::Level::Warn);
    assert!(site.now.at.since(site.knocks[0].0) >= Duration::from_secs(82));
}

#[test]
fn a_responder_lifetime_shortens_phase_1_and_never_lengthens_it() {
    for (told, negotiated) in [(&[30][..], 2), (&[30, 3000], 2), (&[3000], 1), (&[], 1)] {
        let mut site = Site::new(vec![vpn(1)], &[Manner::Serves]);
        for seconds in told {
            for octets in site.servers[0].tell_life(*seconds) {
                site.hear(0, octets);
            }
        }
        site.pass(15);
        register(&mut site);
        assert_eq!((site.knocks.len(), site.servers[0].served.len()), (1, 2), "{told:?}: the same SA serves");
        site.pass(20);
        assert_eq!(site.lines("phase1_deleted").len(), negotiated - 1, "{told:?}");
        register(&mut site);
        assert_eq!((site.knocks.len(), site.servers[0].served.len()), (negotiated, 3), "{told:?}");
        assert!(site.lines("registration_failed").is_empty());
    }
}

#[test]
fn over_the_life_of_phase_1_a_member_negotiates_anew_and_is_never_without_its_keys() {
    let mut site = Site::new(vec![vpn(1)], &[Manner::Serves]);
    // A group without pushes: it comes again before each TEK of an hour ends, under the SA of a day.
    for _ in 0..=25 * 6 {
        site.pass(600);
        assert_eq!(site.states(), ["registered"]);
    }
    assert!(site.servers[0].served.len() > 20);
    assert_eq!(site.knocks.len(), 2, "one phase 1 for a day, then another");
    assert!(site.lines("registration_failed").is_empty());
}

#[test]
fn a_server_that_stops_answering_is_asked_three_times_and_its_phase_1_goes_while_the_keys_stay() {
    let watch = ike::dpd::Settings { interval: Duration::from_secs(10), threshold: 3 };
    let mut site = Site::watched(vec![vpn(1)], &[Manner::Serves], |_| (), Some(watch));
    site.pass(60);
    let answered = site.servers[0].asked;
    assert!(answered >= 3, "a member that watches at all watches all the time: {answered}");
    assert!(site.lines("phase1_deleted").is_empty());
    site.servers[0].manner = Manner::Silent;
    site.pass(60);
    let [ended] = &site.lines("phase1_deleted")[..] else { panic!("{:?}", site.events) };
    assert!(ended.ends_with("dead: no answer to dead-peer detection"), "{ended}");
    assert_eq!((site.servers[0].asked - answered, site.states()), (3, vec!["registered"]));
    // The next registration does not rely on what is dead.
    site.servers[0].manner = Manner::Serves;
    register(&mut site);
    assert_eq!((site.knocks.len(), site.servers[0].served.len()), (2, 2));
}

#[test]
fn terms_of_which_nobody_knows_whether_the_others_have_turned_are_asked_for_again() {
    // DTD is 45 s and ATD 30 s: 15 s before an old TEK ends, the others encrypt under its successor.
    for (leaving, asked) in [(Some(16), 2), (Some(12), 1), (None, 1)] {
        let site = &mut Site::started(vec![vpn(1)], &[Manner::Serves], |servers| {
            servers[0].leaving = leaving;
            servers[0].deaf_to_pulls = 3;
        });
        site.pass(60);
        assert_eq!((site.states(), site.servers[0].served.len()), (vec!["registered"], asked), "{leaving:?}");
        let scheduled = site.lines("reregistration_scheduled");
        assert_eq!(scheduled.iter().filter(|line| line.contains("may be older")).count(), asked - 1);
        assert_eq!(site.knocks.len(), 1);
    }
}
