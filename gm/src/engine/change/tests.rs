//! A configuration that changes under a registered member.

use std::net::SocketAddr;

use gdoi_proto::ids::{GroupId, Spi};
use gdoi_proto::registry::IdType;
use ike::identity::IdentityRule;
use ike::io::Machine;

use super::super::io::{Command, Input};
use super::super::settings::{Flow, VpnSettings};
use super::super::testing::site::{Manner, Site, server_address, vpn};
use super::*;

const HERE: Manner = Manner::Serves;

fn apply(site: &mut Site, change: impl FnOnce(&mut Settings)) -> String {
    change(&mut site.settings);
    let told = site.member.plan(&site.settings).to_string();
    site.tell(Input::Apply(Box::new(site.settings.clone())));
    assert_eq!(site.lines("configuration_reloaded").len(), 1);
    site.events.clear();
    told
}

fn register(site: &mut Site) {
    site.tell(Input::Command { ticket: 1, command: Command::Register { vpn: None } });
}

fn installed(site: &Site, vpn: &str) -> Vec<u32> {
    site.member.installed(vpn).into_iter().map(|(Spi(spi), _)| spi).collect()
}

#[test]
fn the_same_settings_end_nothing_and_the_next_registration_negotiates_anew() {
    let mut site = Site::new(vec![vpn(1), vpn(2)], &[HERE]);
    let planned = site.member.poll_timeout();
    let told = apply(&mut site, |_| ());
    assert_eq!(told, "in use; vpns going on: v01, v02; the next registration negotiates phase 1 anew");
    assert_eq!((site.knocks.len(), site.servers[0].served.len()), (1, 2), "nothing happens now");
    assert_eq!(site.member.poll_timeout(), planned, "not even to a timer");
    assert!(site.member.snapshot(site.now, false).ike_sas.len() == 1, "the SA stays");
    register(&mut site);
    assert_eq!((site.knocks.len(), site.servers[0].served.len()), (2, 4), "one new phase 1 for both");
    register(&mut site);
    assert_eq!((site.knocks.len(), site.servers[0].served.len()), (2, 6), "which serves from then on");
    assert_eq!(site.states(), ["registered"; 2]);
}

#[test]
fn a_vpn_comes_and_another_goes_with_its_keys() {
    let mut site = Site::new(vec![vpn(1), vpn(2)], &[HERE]);
    let told = apply(&mut site, |settings| settings.vpns = vec![vpn(2), vpn(3)]);
    assert!(told.starts_with("in use; vpns added: v03; removed: v01; going on: v02;"), "{told}");
    assert_eq!(site.removed, [Spi(301)], "the data plane has its key no more");
    assert_eq!(site.member.state("v01"), "unknown");
    assert_eq!((installed(&site, "v02"), installed(&site, "v03")), (vec![302], vec![303]));
    assert_eq!(site.servers[0].served, [1, 2, 3], "nobody else registered");
    site.pass(100);
    assert_eq!(site.states(), ["registered"; 2]);
}

#[test]
fn a_vpn_that_goes_while_it_registers_is_forgotten() {
    let mut site = Site::started(vec![vpn(1), vpn(2)], &[HERE], |servers| servers[0].holds_keys = true);
    apply(&mut site, |settings| settings.vpns = vec![vpn(2)]);
    site.servers[0].holds_keys = false;
    site.pass(10);
    assert_eq!((site.states(), &site.servers[0].served[..]), (vec!["registered"], &[2][..]));
}

#[test]
fn another_group_is_joined_while_the_keys_of_the_old_one_serve_until_they_are_replaced() {
    let mut site = Site::new(vec![vpn(1)], &[HERE]);
    site.servers[0].holds_keys = true;
    let told = apply(&mut site, |settings| settings.vpns[0].group = GroupId::number(7));
    assert!(told.contains("registering anew: v01"), "{told}");
    assert_eq!((installed(&site, "v01"), site.states()), (vec![301], vec!["registered"]));
    assert_eq!(site.sender_ids, []);
    site.servers[0].holds_keys = false;
    site.pass(10);
    assert_eq!(site.servers[0].served, [1, 7]);
    assert_eq!(installed(&site, "v01"), [301, 307], "what others still send is read");
    assert_eq!(site.sender_ids, [], "Sender-IDs of the new group are nothing for keys of the old one");
    site.pass(60);
    assert_eq!(installed(&site, "v01"), [307]);
}

#[test]
fn servers_that_changed_are_asked_at_once_and_those_that_are_gone_are_told() {
    let mut site = Site::new(vec![vpn(1)], &[HERE, HERE]);
    let told = apply(&mut site, |settings| settings.gateways[0].servers = vec![server_address(1)]);
    assert!(told.contains("registering anew: v01"), "{told}");
    assert_eq!(site.knocks.last().map(|(_, index)| *index), Some(1));
    assert_eq!((site.servers[1].served.len(), site.states()), (1, vec!["registered"]));
    let shown = site.member.snapshot(site.now, false);
    let peers: Vec<&str> = shown.ike_sas.iter().map(|sa| sa.peer.as_str()).collect();
    assert_eq!(peers, ["192.0.2.2:848"], "{:?}", shown.ike_sas);
    // It goes on with the one in use when another comes before it.
    let both: Vec<SocketAddr> = vec![server_address(0), server_address(1)];
    apply(&mut site, |settings| settings.gateways[0].servers = both);
    assert_eq!(site.member.snapshot(site.now, false).vpns[0].server, "192.0.2.2:848");
}

#[test]
fn another_identity_or_limit_registers_anew_and_the_recovery_probe_does_not() {
    let mut site = Site::new(vec![vpn(1)], &[HERE]);
    let lan = ("172.16.0.0".parse().unwrap(), 12);
    let told = apply(&mut site, |settings| {
        settings.vpns[0] = VpnSettings { recovery_probe: true, ..vpn(1) };
    });
    assert!(told.contains("going on: v01"), "{told}");
    let told = apply(&mut site, |settings| {
        settings.vpns[0].allowed_flows = vec![Flow { source: lan, destination: lan }];
    });
    assert!(told.contains("registering anew: v01"), "{told}");
    assert_eq!((site.knocks.len(), site.servers[0].served.len()), (2, 2));
    let told = apply(&mut site, |settings| {
        let other = IdentityRule::Exactly { id_type: IdType::Fqdn, data: b"gcks.example".to_vec() };
        settings.gateways[0].policies[0].remote.push(other);
    });
    assert!(told.contains("registering anew: v01"), "{told}");
    assert_eq!((site.knocks.len(), site.states()), (3, vec!["registered"]));
}

#[test]
fn a_member_that_negotiates_or_pauses_asks_at_once_by_what_changed() {
    for (seconds, state) in [(1, "registering"), (95, "unregistered")] {
        let mut site = Site::new(vec![vpn(1)], &[Manner::DeafToProofs]);
        site.pass(seconds);
        assert_eq!(site.states(), [state]);
        site.servers[0].manner = HERE;
        let told = apply(&mut site, |_| ());
        assert!(told.contains("going on: v01"), "{told}");
        assert_eq!((site.knocks.len(), site.states()), (2, vec!["registered"]));
    }
}
