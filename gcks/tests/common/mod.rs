//! What the engine tests have in common: a server with one group, its peers, its randomness.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use gcks::engine::settings::{
    Acknowledgement, CommunicationSettings, GatewaySettings, GroupSettings, SaSettings, Settings, Way,
};
use gdoi_proto::ids::GroupId;
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{Encapsulation, SignatureAlgorithm, SignatureHash, TekCipher};
use gdoi_proto::registry::IdType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::phase1::{Credentials, Mode, Offer, PeerPolicy};

/// Where the server listens.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 848);

/// Phase 1 of every peer.
pub fn peer_policy() -> PeerPolicy {
    let suite = Suite {
        cipher: Cipher::Aes256Cbc,
        hash: Hash::Sha256,
        group: DhGroup::Curve25519,
        method: AuthMethod::PreSharedKey,
    };
    PeerPolicy {
        mode: Mode::Main,
        offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
        credentials: Credentials::pre_shared(SecretBytes::copy(b"a key for tests of the engine")),
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        nat_traversal: false,
        fragmentation: false,
        dialect: Dialect::STRICT,
    }
}

/// The gateway statement of the peers in 10.1.`third`.0/24.
pub fn gateway(name: &str, third: u8) -> GatewaySettings {
    GatewaySettings {
        name: name.to_owned(),
        address: Some((IpAddr::V4(Ipv4Addr::new(10, 1, third, 0)), 24)),
        policy: Arc::new(peer_policy()),
        dead_peer_detection: Some(ike::dpd::Settings { interval: Duration::from_secs(10), threshold: 3 }),
        valid_until: None,
        line: 7,
    }
}

/// A group `g1` for the gateway `members`, and a gateway `strangers` that may not register.
pub fn settings() -> Settings {
    let subnet = Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![172, 16, 0, 0, 255, 240, 0, 0] };
    Settings {
        gateways: vec![gateway("members", 0), gateway("strangers", 9)],
        groups: vec![GroupSettings {
            line: 20,
            name: "g1".to_owned(),
            id: GroupId::number(1),
            address: None,
            push_dialect: Dialect::STRICT,
            gateways: ["members".to_owned()].into(),
            member_threshold: Some(3),
            sender_id_bits: 8,
            rekey_on_leave: true,
            rekey_on_join: false,
            communication: Some(CommunicationSettings {
                cipher: Cipher::Aes256Cbc,
                signature_hash: SignatureHash::Sha256,
                signature: SignatureAlgorithm::Ecdsa256,
                signature_key_bits: 256,
                signing_key: None,
                lifetime: Duration::from_secs(7200),
                retransmissions: 2,
                retransmission_period: Duration::from_secs(10),
                acknowledgement: Acknowledgement::Required,
                missed_rekeys: 1,
                lkh: false,
                max_push_size: 1280,
                way: Way::Unicast,
                activation_delay: 30,
                deactivation_delay: 45,
                margin: Duration::from_secs(720),
            }),
            sas: vec![SaSettings {
                name: "SA1/all".to_owned(),
                cipher: TekCipher::AesGcm { key_octets: 32, icv_octets: 16 },
                lifetime: Duration::from_secs(3600),
                margin: Duration::from_secs(360),
                encapsulation: Encapsulation::Tunnel,
                ip_protocol: 0,
                source: subnet.clone(),
                destination: subnet,
                delay_window: None,
            }],
        }],
        half_open_limit: 64,
        half_open_limit_per_address: 4,
        half_open_timeout: Duration::from_secs(30),
        approved_only: false,
    }
}
