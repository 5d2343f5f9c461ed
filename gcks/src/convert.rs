//! From the configuration file to what the engine needs to know: names to numbers, prefixes to selectors.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use config::{AddressPrefix, Gateway, Gcks, Group, IpsecSa, MatchPolicy, Server};
use gdoi_proto::Dialect;
use gdoi_proto::ids::GroupId;
use gdoi_proto::payload::Endpoint;
use gdoi_proto::registry::IdType;
use ike::crypto::Suite;
use ike::identity::IdentityRule;
use ike::phase1::{Offer, PeerPolicy};

use crate::engine::settings::{
    Acknowledgement, Channel, CommunicationSettings, GatewaySettings, GroupSettings, SaSettings, Settings,
    Way,
};

/// The whole configuration as the engine takes it. `nat_traversal`: there are sockets for it.
pub fn settings(config: &Gcks, nat_traversal: bool) -> Settings {
    let octets = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Settings {
        gateways: config.gateways.iter().map(|it| gateway(it, nat_traversal, &config.server)).collect(),
        groups: config.groups.iter().map(|it| group(it, &config.gateways)).collect(),
        half_open_limit: octets(config.server.half_open_limit),
        half_open_limit_per_address: octets(config.server.half_open_limit_per_address),
        half_open_timeout: Duration::from_secs(config.server.half_open_timeout_seconds),
        approved_only: config.server.approved_only,
    }
}

fn gateway(gateway: &Gateway, nat_traversal: bool, server: &Server) -> GatewaySettings {
    let offers = gateway.proposals.iter().map(|proposal| Offer {
        suite: Suite {
            cipher: proposal.cipher,
            hash: proposal.hash,
            group: proposal.group,
            method: proposal.method,
        },
        lifetime: seconds(proposal.lifetime_seconds),
    });
    let remote = gateway.remote_identity.as_ref().map_or(IdentityRule::PeerAddress, |pattern| pattern.rule());
    let policy = PeerPolicy {
        mode: gateway.mode,
        offers: offers.collect(),
        credentials: gateway.credentials.clone(),
        local_identity: gateway.local_identity.clone(),
        remote: vec![remote],
        nat_traversal,
        fragmentation: server.ike_fragmentation,
        dialect: gateway.compat,
    };
    let policy = if server.approved_only { policy.approved_only() } else { policy };
    GatewaySettings {
        name: gateway.name.clone(),
        address: gateway.address.map(|it| (it.address, it.prefix_len)),
        policy: Arc::new(policy),
        dead_peer_detection: gateway.dead_peer_detection.map(|dpd| ike::dpd::Settings {
            interval: seconds(dpd.interval_seconds),
            threshold: dpd.threshold,
        }),
        valid_until: gateway.valid_until,
        line: gateway.line,
    }
}

fn group(group: &Group, gateways: &[Gateway]) -> GroupSettings {
    // The configuration made sure that its gateways agree.
    let window = group.anti_replay_time_window_ms.map(|width| Duration::from_millis(u64::from(width)));
    let member = gateways.iter().find(|gateway| group.gateways.contains(&gateway.name));
    GroupSettings {
        name: group.name.clone(),
        id: group.id.clone(),
        address: group.address.map(GroupId::address),
        push_dialect: member.map_or(Dialect::STRICT, |gateway| gateway.compat.of_push()),
        gateways: group.gateways.iter().cloned().collect(),
        member_threshold: group.member_threshold.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        sender_id_bits: group.sender_id_bits,
        rekey_on_leave: group.rekey_on_leave,
        rekey_on_join: group.rekey_on_join,
        communication: group.communication.as_ref().map(communication),
        sas: group
            .sas
            .iter()
            .flat_map(|sa| sa.policies.iter().map(move |policy| self::sa(sa, policy, window)))
            .collect(),
        line: group.line,
    }
}

fn communication(communication: &config::Communication) -> CommunicationSettings {
    let channel = |multicast: &config::Multicast| Channel {
        group: multicast.group,
        interface: multicast.interface.clone(),
    };
    CommunicationSettings {
        way: match &communication.communication_type {
            config::CommunicationType::Unicast => Way::Unicast,
            config::CommunicationType::Multicast(multicast) => Way::Multicast(channel(multicast)),
            config::CommunicationType::Both(multicast) => Way::Both(channel(multicast)),
        },
        cipher: communication.cipher,
        signature_hash: communication.signature_hash,
        signature: communication.signature,
        signature_key_bits: communication.signature_key_bits,
        signing_key: communication.signing_key.clone(),
        lifetime: seconds(communication.lifetime_seconds),
        retransmissions: communication.number_of_retransmission,
        retransmission_period: seconds(communication.retransmission_period_seconds),
        acknowledgement: match communication.acknowledgement {
            config::Acknowledgement::Required => Acknowledgement::Required,
            config::Acknowledgement::Requested => Acknowledgement::Requested,
            config::Acknowledgement::None => Acknowledgement::None,
        },
        missed_rekeys: communication.missed_rekeys,
        lkh: communication.lkh,
        max_push_size: usize::try_from(communication.max_push_size).unwrap_or(usize::MAX),
        activation_delay: communication.activation_delay_seconds,
        deactivation_delay: communication.deactivation_delay_seconds,
        margin: seconds(communication.rekey_margin_kek_seconds),
    }
}

fn sa(sa: &IpsecSa, policy: &MatchPolicy, delay_window: Option<Duration>) -> SaSettings {
    SaSettings {
        name: format!("{}/{}", sa.name, policy.name),
        cipher: sa.cipher,
        lifetime: seconds(sa.lifetime_seconds),
        margin: seconds(sa.rekey_margin_seconds),
        encapsulation: sa.encapsulation,
        ip_protocol: policy.protocol,
        source: selector(policy.source, policy.source_port),
        destination: selector(policy.destination, policy.destination_port),
        delay_window,
    }
}

/// Network and mask, 8 octets for IPv4 and 32 for IPv6 (RFC 2407 section 4.6.2).
fn selector(prefix: AddressPrefix, port: u16) -> Endpoint {
    let length = u32::from(prefix.prefix_len);
    let (id_type, data) = match prefix.address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(length)).unwrap_or(0);
            (IdType::Ipv4Subnet, [address.octets(), mask.to_be_bytes()].concat())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(length)).unwrap_or(0);
            (IdType::Ipv6Subnet, [address.octets(), mask.to_be_bytes()].concat())
        }
    };
    Endpoint { id_type, port, data }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use gdoi_proto::ids::GroupId;
    use gdoi_proto::policy::{Encapsulation, TekCipher};

    use super::*;

    const FILE: &str = r#"
[server]
half-open-limit = 100
half-open-timeout-seconds = 7
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
lifetime-seconds = 3600
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = { file = "key" }
[ike.gateway.one]
ike-policy = "pol"
address = "10.0.0.7"
[ike.gateway.many]
ike-policy = "pol"
address = "10.1.0.0/16"
remote-identity = { hostname = "*.branch.example" }
local-identity = { hostname = "gcks.example" }
compat = ["ack-l-output", "large-offers"]
[ipsec.proposal.esp]
encryption-algorithm = "aes-256-gcm"
encapsulation = "transport"
[group.G]
group-id = 9
ike-gateways = ["one", "many"]
member-threshold = 5
[group.G.server-member-communication]
encryption-algorithm = "aes-128-cbc"
signature = "ecdsa-256"
sig-hash-algorithm = "sha-256"
acknowledgement = "requested"
max-push-size = 900
[group.G.ipsec-sa.S]
proposal = "esp"
[[group.G.ipsec-sa.S.match-policy]]
name = "four"
source = "172.16.0.0/12"
destination = "0.0.0.0/0"
destination-port = 53
protocol = 17
[[group.G.ipsec-sa.S.match-policy]]
name = "six"
source = "2001:db8::/33"
destination = "2001:db8::1/128"
"#;

    fn config() -> Gcks {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        std::fs::write(&key, "a secret of more than 16 octets").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let path = directory.path().join("gcks.toml");
        std::fs::write(&path, FILE).unwrap();
        config::load_gcks(&path, config::Options::default())
            .unwrap_or_else(|errors| panic!("{errors}"))
            .config
    }

    #[test]
    fn gateways_keep_their_rules_and_a_missing_identity_means_the_peers_address() {
        let settings = settings(&config(), false);
        assert_eq!((settings.half_open_limit, settings.half_open_limit_per_address), (100, 16));
        assert_eq!(settings.half_open_timeout, Duration::from_secs(7));
        let [one, many] = &settings.gateways[..] else { panic!("{:?}", settings.gateways) };
        assert_eq!(one.address, Some(("10.0.0.7".parse().unwrap(), 32)));
        assert_eq!(one.policy.remote, [IdentityRule::PeerAddress]);
        assert_eq!(one.policy.offers[0].lifetime, Duration::from_secs(3600));
        assert!(!one.policy.dialect.ack_l_output && !one.policy.dialect.large_offers);
        assert_eq!(many.address, Some(("10.1.0.0".parse().unwrap(), 16)));
        let below = IdentityRule::NameEndsWith { id_type: IdType::Fqdn, tail: b".branch.example".to_vec() };
        assert_eq!(many.policy.remote, [below]);
        assert_eq!(many.policy.local_identity.as_ref().unwrap().data, b"gcks.example");
        assert!(many.policy.dialect.ack_l_output && many.policy.dialect.large_offers);
    }

    #[test]
    fn every_match_policy_becomes_an_sa_with_network_and_mask() {
        let settings = settings(&config(), false);
        let group = &settings.groups[0];
        assert_eq!((&group.id, group.member_threshold), (&GroupId::number(9), Some(5)));
        let communication = group.communication.as_ref().unwrap();
        assert_eq!(communication.acknowledgement, Acknowledgement::Requested);
        assert_eq!((communication.activation_delay, communication.deactivation_delay), (30, 45));
        assert_eq!((communication.margin, communication.max_push_size), (Duration::from_secs(360), 900));
        let [four, six] = &group.sas[..] else { panic!("{:?}", group.sas) };
        assert_eq!((four.name.as_str(), four.ip_protocol), ("S/four", 17));
        assert_eq!(four.cipher, TekCipher::AesGcm { key_octets: 32, icv_octets: 16 });
        assert_eq!(four.encapsulation, Encapsulation::Transport);
        let subnet = |port, data: &[u8]| Endpoint { id_type: IdType::Ipv4Subnet, port, data: data.to_vec() };
        assert_eq!(four.source, subnet(0, &[172, 16, 0, 0, 255, 240, 0, 0]));
        assert_eq!(four.destination, subnet(53, &[0; 8]), "everything");
        assert_eq!((six.source.id_type, six.source.data.len()), (IdType::Ipv6Subnet, 32));
        assert_eq!(six.source.data[16..22], [255, 255, 255, 255, 128, 0]);
        assert_eq!(six.destination.data[16..], [255; 16]);
    }
}
