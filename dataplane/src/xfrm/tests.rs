use std::path::Path;

use gdoi_proto::policy::{AddressPreservation, Direction, Encapsulation};
use netlink_packet_xfrm::policy::ModifyMessage;
use rtnetlink::packet_core::NLM_F_ACK;

use super::flow::{Flow, Prefix};
use super::message::{add_state, delete_policy, delete_state, our_policy, set_policy};
use super::plan::{Action, Policy, Tek, Way};
use super::*;
use crate::sa::tests::{cbc, gcm};
use crate::tun::{Pair, Zone};

const REQID: u32 = 0x6d00_0001;
const TRAP: u32 = 0x6e00_0001;

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix { address: address.parse().unwrap(), length: length.parse().unwrap() }
}

fn key(way: Way, source: &str, destination: &str) -> PolicyKey {
    let flow = Flow {
        source: prefix(source),
        destination: prefix(destination),
        source_port: 0,
        destination_port: 0,
        protocol: 0,
    };
    PolicyKey { mark: plan::MARK, way, flow }
}

fn state(tek: TekInstall, single: bool, source: Option<&str>) -> State {
    State {
        source: source.map(|source| source.parse().unwrap()),
        tunnel: tek.policy.encapsulation == Encapsulation::Tunnel,
        reqid: REQID,
        sends: source.is_some(),
        tek: Arc::new(Tek { expires: Duration::from_secs(3600), single, install: tek }),
    }
}

/// What our code asks for each recorded request.
fn ours(name: &str) -> XfrmMessage {
    let host = |text: &str| -> IpAddr { text.parse().unwrap() };
    let spi = Spi(0x1234_5678);
    let hour = Duration::from_secs(3600);
    let pair = key(Way::Out, "10.1.0.1/32", "10.2.0.2/32");
    let to = |destination: &str| StateKey { spi, destination: host(destination) };
    match name {
        "allow" => {
            let mut key = key(Way::Out, "10.0.0.0/8", "192.0.2.0/24");
            (key.flow.protocol, key.flow.destination_port) = (6, 179);
            set_policy(&key, &Policy { priority: 1000, action: Action::Allow })
        }
        "block" => {
            let key = key(Way::In, "::/0", "::/0");
            set_policy(&key, &Policy { priority: 4_000_000, action: Action::Block })
        }
        "ask" => {
            let key = key(Way::Out, "10.0.0.0/8", "10.0.0.0/8");
            set_policy(&key, &Policy { priority: 10_001, action: Action::Ask { reqid: TRAP } })
        }
        "protect" => {
            let ends = (host("10.1.0.1"), host("10.2.0.2"));
            let action = Action::Protect { spi, ends, tunnel: true, reqid: REQID };
            set_policy(&pair, &Policy { priority: 10_000, action })
        }
        "require" => {
            let key = key(Way::In, "2001:db8::/32", "2001:db8::/32");
            let action = Action::Require { tunnel: true, reqid: REQID };
            set_policy(&key, &Policy { priority: 10_001, action })
        }
        "delete-policy" => delete_policy(&key(Way::Out, "10.0.0.0/8", "10.0.0.0/8")),
        "cbc" => {
            let mut tek = cbc(spi.0);
            tek.policy.lifetime_kilobytes = Some(1024);
            add_state(&to("10.2.0.2"), &state(tek, false, Some("10.1.0.1")), hour, false)
        }
        "gcm" => {
            let mut tek = gcm(spi.0);
            tek.policy.encapsulation = Encapsulation::Transport;
            add_state(&to("2001:db8::2"), &state(tek, true, None), hour, false)
        }
        "delete-state" => delete_state(&to("10.2.0.2")),
        other => panic!("no request of ours for {other}"),
    }
}

#[test]
fn requests_are_those_of_iproute2_octet_for_octet() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/netlink/iproute2-xfrm.json");
    let recorded: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let requests = recorded["requests"].as_array().unwrap();
    assert_eq!(requests.len(), 9);
    for request in requests {
        let name = request["name"].as_str().unwrap();
        let octets = socket::octets(ours(name), NLM_F_ACK, 7);
        let kind = u16::from_ne_bytes([octets[4], octets[5]]);
        assert_eq!(u64::from(kind), request["type"].as_u64().unwrap(), "{name}");
        assert_eq!(
            hex::encode(&octets[16..]),
            request["body"].as_str().unwrap(),
            "{name}: {}",
            request["command"]
        );
    }
}

#[test]
fn a_policy_of_ours_is_known_again_and_one_of_others_is_not() {
    let key = key(Way::Out, "10.0.0.0/8", "10.0.0.0/8");
    let XfrmMessage::UpdatePolicy(message) = set_policy(&key, &Policy { priority: 1, action: Action::Block })
    else {
        panic!("another message");
    };
    assert_eq!(our_policy(&message), Some(key));
    let unmarked = ModifyMessage { nlas: Vec::new(), ..message.clone() };
    assert_eq!(our_policy(&unmarked), None);
    let other = PolicyKey { mark: plan::MARK + 64, ..key };
    let XfrmMessage::UpdatePolicy(message) =
        set_policy(&other, &Policy { priority: 1, action: Action::Block })
    else {
        panic!("another message");
    };
    assert_eq!(our_policy(&message), None);
}

#[test]
fn keys_are_wiped_from_a_message_that_was_sent() {
    let mut message = ours("cbc");
    message::wipe(&mut message);
    let XfrmMessage::AddSa(message) = message else { panic!("another message") };
    let left = format!("{message:?}");
    assert!(!left.contains("[1, 1, 1") && !left.contains("[2, 2, 2"), "{left}");
}

#[test]
fn settings_the_kernel_cannot_follow_are_named() {
    let settings = |from: &str, vpn: VpnSettings| TunSettings {
        zones: vec![
            Zone { name: from.to_owned(), interfaces: Vec::new() },
            Zone { name: "wan".to_owned(), interfaces: vec!["eth0".to_owned()] },
        ],
        pairs: vec![Pair { from: from.to_owned(), to: "wan".to_owned(), vpn: "v".to_owned() }],
        vpns: vec![VpnSettings { name: "v".to_owned(), ..vpn }],
    };
    let good = settings(HOST, VpnSettings::default());
    let (vpns, marks) = resolve(&good).unwrap();
    assert_eq!((vpns.len(), marks), (1, vec![("eth0".to_owned(), plan::MARK)]));
    for bad in [
        settings("lan", VpnSettings::default()),
        settings(HOST, VpnSettings { carrier: Carrier::Udp, ..VpnSettings::default() }),
        settings(HOST, VpnSettings { df: DfBit::Set, ..VpnSettings::default() }),
        settings(HOST, VpnSettings { tunnel_mtu: 1400, ..VpnSettings::default() }),
    ] {
        assert_eq!(misfits(&bad).len(), 1);
        assert!(resolve(&bad).is_err());
    }
}

#[test]
fn a_tek_the_kernel_would_use_wrongly_is_refused_with_the_reason() {
    let why = |tek: TekInstall| {
        let mut vpn = Vpn::new("v".to_owned(), 0, crate::policy::Rules::default());
        vpn.install(tek, Duration::ZERO).map_err(|error| error.0)
    };
    assert_eq!(why(cbc(300)), Ok(()));
    assert!(why(gcm(300)).unwrap_err().contains("AES-GCM with several senders"));
    // Whoever only receives makes no IV.
    assert_eq!(why(TekInstall { activate_after: None, ..gcm(300) }), Ok(()));
    let delayed = TekInstall { delay_detection: Some(Duration::from_secs(1)), ..cbc(300) };
    assert!(why(delayed).unwrap_err().contains("IP-D3P"));
    let mut half = cbc(300);
    half.policy.address_preservation = AddressPreservation::Source;
    assert!(why(half).unwrap_err().contains("preserved"));
    // One sender, one receiver: one state and one counter.
    let mut single = gcm(300);
    single.policy.direction = Direction::SenderOnly;
    let host = |last: u8| gdoi_proto::payload::Endpoint {
        id_type: gdoi_proto::registry::IdType::Ipv4Addr,
        port: 0,
        data: vec![10, 0, 0, last],
    };
    (single.policy.source, single.policy.destination) = (host(1), host(2));
    assert_eq!(why(single), Ok(()));
}
