//! Which server is asked when, in virtual time.

use std::time::Duration;

use ctl::observe::VpnView;
use gdoi_proto::ids::Spi;

use super::super::io::{Command, Input};
use super::super::testing::site::{Manner, Site, vpn};
use super::*;

const AWAY: Manner = Manner::Silent;
const HERE: Manner = Manner::Serves;

fn view(site: &Site) -> VpnView {
    site.member.snapshot(site.now, false).vpns.remove(0)
}

fn probing() -> VpnSettings {
    VpnSettings { recovery_probe: true, ..vpn(1) }
}

/// Moments of registrations since `from`, in s after it.
fn registrations(site: &Site, from: Instant) -> Vec<u64> {
    let registering = site.events.iter().filter(|(at, event)| *at >= from && event.name() == "registering");
    registering.map(|(at, _)| at.since(from).as_secs()).collect()
}

/// `seconds` pass, and ten packets under unknown SPIs come in each.
fn flood(site: &mut Site, seconds: u64) {
    for number in 0..seconds * 10 {
        let spi = Spi(70_000 + number as u32);
        site.tell(Input::UnknownSpi { vpn: (number % 2 == 0).then(|| "v01".to_owned()), spi });
        if number % 10 == 9 {
            site.pass(1);
        }
    }
}

#[test]
fn servers_are_asked_in_their_order_until_the_fourth_serves() {
    let mut site = Site::new(vec![vpn(1)], &[AWAY, AWAY, AWAY, HERE]);
    site.pass(300);
    let asked: Vec<usize> = site.knocks.iter().map(|(_, index)| *index).collect();
    assert_eq!((asked, site.states()), (vec![0, 1, 2, 3], vec!["registered"]));
    let view = view(&site);
    assert_eq!((view.server.as_str(), view.statistics.server_failover), ("192.0.2.4:848", 3));
    site.tell(Input::Command { ticket: 1, command: Command::Register { vpn: None } });
    assert_eq!(site.servers[3].served.len(), 2, "the server in use is asked first");
}

#[test]
fn the_member_returns_to_the_first_server_when_it_is_back() {
    let mut site = Site::started(vec![vpn(1)], &[AWAY, HERE], |servers| servers[1].life = 86_400);
    site.pass(100);
    assert_eq!(view(&site).server, "192.0.2.2:848");
    site.pass(2400);
    assert!(site.knocks.iter().filter(|(_, index)| *index == 0).count() >= 2, "it looked");
    assert_eq!(site.servers[1].served.len(), 1, "a look costs the server in use nothing");
    assert_eq!((view(&site).server.as_str(), site.states()), ("192.0.2.2:848", vec!["registered"]));
    site.servers[0].manner = HERE;
    site.pass(4500);
    assert_eq!(view(&site).server, "192.0.2.1:848");
    let looks = site.knocks.len();
    site.pass(40_000);
    assert_eq!(site.knocks.len(), looks, "at home it looks for no other");
}

#[test]
fn keys_stay_in_use_while_every_server_is_away_and_show_says_how_long() {
    let mut site = Site::new(vec![vpn(1)], &[HERE, HERE, HERE, HERE]);
    site.servers.iter_mut().for_each(|server| server.manner = AWAY);
    assert_eq!(view(&site).keys_end_in_seconds, Some(3600));
    site.pass(3599);
    assert!(site.lines("registering").len() > 1, "it tried");
    let shown = view(&site);
    assert_eq!(
        (shown.state.as_str(), shown.keys_end_in_seconds, shown.teks.len()),
        ("registered", Some(1), 1)
    );
    site.pass(1);
    assert_eq!(site.lines("keys_expired").len(), 1);
    assert_eq!((site.states(), view(&site).keys_end_in_seconds), (vec!["registering"], None));
    site.pass(1000);
    site.servers[2].manner = HERE;
    site.pass(1000);
    assert_eq!((view(&site).server.as_str(), site.states()), ("192.0.2.3:848", vec!["registered"]));
}

#[test]
fn a_member_isolated_past_a_rekey_probes_after_10_s_and_gets_the_new_keys() {
    let mut site = Site::new(vec![probing()], &[HERE]);
    let from = site.now.at;
    site.servers[0].first_spi = 500;
    site.tell(Input::UnknownSpi { vpn: None, spi: Spi(501) });
    site.pass(9);
    assert_eq!(site.servers[0].served.len(), 1);
    site.pass(1);
    assert_eq!(site.servers[0].served.len(), 2);
    assert!(site.member.installed("v01").iter().any(|(spi, _)| *spi == Spi(501)));
    site.tell(Input::UnknownSpi { vpn: None, spi: Spi(501) });
    site.pass(2000);
    assert_eq!(registrations(&site, from)[1..], [10], "the SPI is known now");
}

#[test]
fn a_key_server_that_restarts_with_new_keys_is_found_by_the_probe_under_a_new_phase_1() {
    let mut site = Site::new(vec![probing()], &[HERE]);
    let from = site.now.at;
    site.servers[0].restart(500);
    flood(&mut site, 630);
    assert!(site.member.installed("v01").iter().any(|(spi, _)| *spi == Spi(501)), "{:?}", site.states());
    assert_eq!(site.lines("phase1_established").len(), 2);
    assert!(
        registrations(&site, from).len() <= 7,
        "the first, and six probes: {:?}",
        registrations(&site, from)
    );
    assert_eq!((site.states(), site.lines("keys_expired").len()), (vec!["registered"], 0));
}

#[test]
fn a_flood_of_unknown_spis_causes_at_most_six_registrations_in_630_s() {
    for manner in [HERE, AWAY] {
        let mut site = Site::new(vec![probing(), vpn(2)], &[HERE]);
        site.servers[0].manner = manner;
        site.pass(10);
        let from = site.now.at;
        flood(&mut site, 700);
        let probes = registrations(&site, from);
        match manner {
            HERE => assert_eq!(probes, [10, 30, 70, 150, 310, 630]),
            // Phase 1 waits for 82 s and more: a probe that falls due meanwhile is this one.
            _ => assert_eq!(probes, [10, 150, 310, 630]),
        }
        assert_eq!(site.states(), ["registered"; 2], "keys stay");
        site.pass(120);
        assert_eq!(registrations(&site, from).len(), probes.len(), "no backoff beside the probe");
    }
}

#[test]
fn without_the_statement_no_traffic_leads_to_a_registration() {
    let mut site = Site::new(vec![vpn(1)], &[HERE]);
    flood(&mut site, 30);
    site.tell(Input::OutboundWithoutInbound { vpn: "v01".to_owned() });
    site.pass(700);
    assert_eq!(site.servers[0].served.len(), 1);
}

#[test]
fn one_way_traffic_probes_until_packets_come_again() {
    let mut site = Site::new(vec![probing()], &[HERE]);
    site.tell(Input::OutboundWithoutInbound { vpn: "v01".to_owned() });
    site.tell(Input::InboundAgain { vpn: "v01".to_owned() });
    site.pass(700);
    assert_eq!(site.servers[0].served.len(), 1);
    site.tell(Input::OutboundWithoutInbound { vpn: "v01".to_owned() });
    site.pass(700);
    assert_eq!(site.servers[0].served.len(), 2, "keys came");
}

#[test]
fn a_tek_that_is_used_up_sends_us_to_the_server_once_per_limit_and_sender_id() {
    let mut site = Site::new(vec![vpn(1)], &[HERE]);
    let soft = || Input::SoftLimit { vpn: "v01".to_owned(), spi: Spi(301) };
    site.tell(Input::SoftLimit { vpn: "v01".to_owned(), spi: Spi(999) });
    site.tell(soft());
    site.tell(soft());
    site.pass(5);
    assert_eq!(site.servers[0].served.len(), 2, "early, while it still encrypts");
    assert_eq!(site.sender_ids, [(Spi(301), 2)], "a new IV space for the TEK in use");
    site.tell(soft());
    site.pass(5);
    assert_eq!(site.servers[0].served.len(), 3, "the new space is used up too");
    site.servers[0].manner = AWAY;
    site.tell(soft());
    site.tell(Input::Spent { vpn: "v01".to_owned(), spi: Spi(301) });
    site.tell(Input::Spent { vpn: "v01".to_owned(), spi: Spi(301) });
    site.pass(600);
    site.servers[0].manner = HERE;
    site.pass(700);
    assert_eq!(site.servers[0].served.len(), 4);
    assert_eq!(site.states(), ["registered"]);
}

#[test]
fn a_probe_leaves_the_pause_of_a_failed_registration_as_it_was() {
    let mut site = Site::new(vec![probing()], &[AWAY]);
    site.pass(100);
    let until = view(&site).reregister_in_seconds.map(|left| site.now.at + Duration::from_secs(left));
    assert!(until.is_some(), "it pauses");
    flood(&mut site, 1300);
    let all = registrations(&site, Instant(0));
    assert!(all.len() <= 16, "{all:?}");
}
