use gdoi_proto::payload::Endpoint;
use gdoi_proto::registry::IdType;

use super::*;
use crate::policy::Rule;
use crate::sa::tests::cbc;
use crate::selector::tests::prefix;

const LIFE: u64 = 3600;

fn at(seconds: u64) -> Moment {
    Duration::from_secs(seconds)
}

fn rule(protocol: u8, port: u16) -> Rule {
    let every = prefix("0.0.0.0/0");
    Rule { name: "r".to_owned(), source: every, destination: every, protocol, port }
}

fn vpn() -> Vpn {
    let rules = Rules { exclude: vec![rule(6, 179)], fail_open: vec![rule(17, 123)], own: Vec::new() };
    Vpn::new("v".to_owned(), 3, rules)
}

/// 10.0.0.0/8 to itself.
fn tek(spi: u32) -> TekInstall {
    let mut tek = cbc(spi);
    let net = Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![10, 0, 0, 0, 255, 0, 0, 0] };
    (tek.policy.source, tek.policy.destination) = (net.clone(), net);
    tek
}

fn plan(vpn: &Vpn, second: u64) -> Plan {
    let own = ["10.1.0.1", "192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
    let mut plan = Plan::default();
    vpn.plan(at(second), &BTreeSet::from(own), &mut plan);
    plan
}

/// What the kernel does with a packet, as its lookup goes: of the policies that cover it the one with the lowest priority.
fn decide(vpn: &Vpn, second: u64, way: Way, from: &str, to: &str, protocol: u8, port: u16) -> String {
    let plan = plan(vpn, second);
    let packet = Flow {
        source: Prefix::host(from.parse().unwrap()),
        destination: Prefix::host(to.parse().unwrap()),
        source_port: if way == Way::Out { 5000 } else { port },
        destination_port: if way == Way::Out { port } else { 5000 },
        protocol,
    };
    let covers = |flow: &Flow| flow.common(&packet) == Some(packet);
    let found = plan.policies.iter().filter(|(key, _)| key.way == way && covers(&key.flow));
    let (key, policy) = found.min_by_key(|(_, policy)| policy.priority).unwrap();
    assert_eq!(key.mark, MARK | 3);
    match policy.action {
        Action::Allow => "allow".to_owned(),
        Action::Block => "block".to_owned(),
        Action::Ask { .. } => "ask".to_owned(),
        Action::Require { .. } => "require".to_owned(),
        Action::Protect { spi, .. } => format!("protect {}", spi.0),
    }
}

#[test]
fn the_matrix_of_keys_and_rules_is_that_of_the_other_backend() {
    let expected = [
        ("no key", "exclude", "allow", "allow"),
        ("no key", "policy", "block", "block"),
        ("no key", "fail-open", "allow", "allow"),
        ("no key", "none", "block", "block"),
        ("valid key", "exclude", "allow", "allow"),
        ("valid key", "policy", "ask", "require"),
        ("valid key", "fail-open", "ask", "require"),
        ("valid key", "none", "block", "block"),
        ("expired key", "exclude", "allow", "allow"),
        ("expired key", "policy", "block", "block"),
        ("expired key", "fail-open", "allow", "allow"),
        ("expired key", "none", "block", "block"),
        ("two TEKs one expired", "exclude", "allow", "allow"),
        ("two TEKs one expired", "policy", "ask", "require"),
        ("two TEKs one expired", "fail-open", "ask", "require"),
        ("two TEKs one expired", "none", "block", "block"),
    ];
    for (keys, kind, outward, inward) in expected {
        let mut vpn = vpn();
        let teks: &[(u32, u64)] = match keys {
            "valid key" => &[(301, 5000)],
            "expired key" => &[(301, 0)],
            "two TEKs one expired" => &[(301, 0), (302, 5000)],
            _ => &[],
        };
        for (spi, second) in teks {
            vpn.install(tek(*spi), at(*second)).unwrap();
            vpn.activate(Spi(*spi)).unwrap();
        }
        let (protocol, port, far) = match kind {
            "exclude" => (6, 179, "10.2.0.1"),
            "policy" => (6, 80, "10.2.0.1"),
            "fail-open" => (17, 123, "10.2.0.1"),
            _ => (6, 80, "192.0.2.9"),
        };
        let out = decide(&vpn, 6000, Way::Out, "10.1.0.1", far, protocol, port);
        assert_eq!(out, outward, "{keys}, {kind}, out");
        let inn = decide(&vpn, 6000, Way::In, far, "10.1.0.1", protocol, port);
        assert_eq!(inn, inward, "{keys}, {kind}, in");
        // Whether the engine has removed what expired or not makes no difference.
        vpn.remove(Spi(301), at(LIFE));
        if keys != "valid key" {
            assert_eq!(
                decide(&vpn, 6000, Way::Out, "10.1.0.1", far, protocol, port),
                outward,
                "{keys}, {kind}"
            );
        }
    }
}

#[test]
fn fail_open_ends_with_a_key_that_does_not_send_yet() {
    let mut vpn = vpn();
    vpn.install(tek(301), at(0)).unwrap();
    assert_eq!(decide(&vpn, 1, Way::Out, "10.1.0.1", "10.2.0.1", 17, 123), "block");
    assert_eq!(decide(&vpn, 1, Way::In, "10.2.0.1", "10.1.0.1", 17, 123), "require");
}

#[test]
fn a_rollover_receives_both_and_sends_under_the_one_activated_last() {
    let mut vpn = vpn();
    let (here, there): (IpAddr, IpAddr) = ("10.1.0.1".parse().unwrap(), "10.2.0.1".parse().unwrap());
    let out = |vpn: &Vpn| decide(vpn, 1, Way::Out, "10.1.0.1", "10.2.0.1", 1, 0);
    vpn.install(tek(301), at(0)).unwrap();
    vpn.activate(Spi(301)).unwrap();
    assert_eq!(out(&vpn), "ask");
    assert_eq!(asked(0x6e03_0001), Some((3, 1)), "what the kernel names when it asks");
    assert!(vpn.talks(1, here, there) && !vpn.talks(1, here, there));
    assert!(!vpn.talks(1, here, "192.0.2.1".parse().unwrap()), "outside the policy");
    assert!(!vpn.talks(9, here, there), "no such policy");
    assert_eq!(out(&vpn), "protect 301");
    // The new TEK has its states, for sending too, before a policy names it: no packet finds none.
    vpn.install(tek(302), at(0)).unwrap();
    assert_eq!(out(&vpn), "protect 301");
    let states = plan(&vpn, 1).states;
    let keys: Vec<_> = states.iter().map(|(key, state)| (key.spi.0, key.destination, state.source)).collect();
    let expected = [301, 302].map(|spi| [(spi, here, None), (spi, there, Some(here))]);
    assert_eq!(keys, expected.concat());
    vpn.activate(Spi(302)).unwrap();
    assert_eq!(out(&vpn), "protect 302");
    vpn.remove(Spi(301), at(1));
    assert_eq!(plan(&vpn, 1).states.len(), 2);
    vpn.remove(Spi(302), at(1));
    assert!(plan(&vpn, 1).states.is_empty(), "a deleted policy leaves nothing");
}

#[test]
fn a_spent_tek_sends_nothing_and_goes_on_receiving() {
    let mut vpn = vpn();
    vpn.install(tek(301), at(0)).unwrap();
    vpn.activate(Spi(301)).unwrap();
    assert!(vpn.talks(1, "10.1.0.1".parse().unwrap(), "10.2.0.1".parse().unwrap()));
    assert!(vpn.take_soft_limit(Spi(301)) && !vpn.take_soft_limit(Spi(301)));
    vpn.spend(Spi(301));
    assert_eq!(decide(&vpn, 1, Way::Out, "10.1.0.1", "10.2.0.1", 1, 0), "block");
    assert_eq!(plan(&vpn, 1).states.len(), 1);
}

#[test]
fn a_multicast_group_is_received_and_has_no_answer() {
    let mut feed = tek(301);
    feed.policy.destination = Endpoint { id_type: IdType::Ipv4Addr, port: 0, data: vec![239, 1, 1, 1] };
    let mut vpn = vpn();
    vpn.install(feed.clone(), at(0)).unwrap();
    let plan = plan(&vpn, 1);
    let group: IpAddr = "239.1.1.1".parse().unwrap();
    assert!(plan.states.contains_key(&StateKey { spi: Spi(301), destination: group }));
    assert_eq!(plan.states.len(), 1);
    assert_eq!(decide(&vpn, 1, Way::In, "10.2.0.1", "239.1.1.1", 17, 9), "require");
    assert_eq!(decide(&vpn, 1, Way::In, "239.1.1.1", "10.2.0.1", 17, 9), "block");
    feed.policy.destination =
        Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![239, 1, 0, 0, 255, 255, 0, 0] };
    assert!(vpn.install(feed, at(0)).unwrap_err().0.contains("one multicast group"));
}

#[test]
fn pairs_that_talk_are_remembered_up_to_a_limit() {
    let mut vpn = vpn();
    vpn.install(tek(301), at(0)).unwrap();
    vpn.activate(Spi(301)).unwrap();
    let here: IpAddr = "10.1.0.1".parse().unwrap();
    for number in 0..2 * PAIRS as u32 {
        let there = std::net::Ipv4Addr::from_bits(0x0a02_0000 + number);
        assert!(vpn.talks(1, here, there.into()));
    }
    // And the one for receiving.
    assert_eq!(plan(&vpn, 1).states.len(), PAIRS + 1);
}
