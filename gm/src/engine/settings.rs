//! What the engine needs to know of the configuration, resolved: no names to look up, no units to convert.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use gdoi_proto::ids::GroupId;
use gdoi_proto::policy::{SignatureAlgorithm, TekCipher};
use ike::phase1::PeerPolicy;

/// The whole configuration of a member.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Key servers.
    pub gateways: Vec<GatewaySettings>,
    /// Groups to join.
    pub vpns: Vec<VpnSettings>,
    /// `approved-only`, to be shown; policies and VPNs carry what it means.
    pub approved_only: bool,
}

/// An ordered set of key servers.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Its name.
    pub name: String,
    /// Addresses and ports, tried in order.
    pub servers: Vec<SocketAddr>,
    /// The address and port of our socket, as the servers see it; without meaning when `ask_route`. There is no NAT
    /// traversal from here.
    pub local: SocketAddr,
    /// Our address is asked for before each phase 1, by [`super::io::Output::Route`]: routes come, go and change.
    pub ask_route: bool,
    /// Our address as the configuration names it; none: the route decides.
    pub local_address: Option<IpAddr>,
    /// How to negotiate with each server, in the same order; the last one holds for all further servers. NAT traversal is
    /// announced where the route leads to a socket for it.
    pub policies: Vec<PeerPolicy>,
    /// How to ask whether a server is there; none: not at all.
    pub dead_peer_detection: Option<ike::dpd::Settings>,
}

impl Default for GatewaySettings {
    fn default() -> GatewaySettings {
        GatewaySettings {
            name: String::new(),
            servers: Vec::new(),
            local: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 848),
            ask_route: false,
            local_address: None,
            policies: Vec::new(),
            dead_peer_detection: None,
        }
    }
}

/// A group to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpnSettings {
    /// Its name.
    pub name: String,
    /// The gateway that serves it.
    pub gateway: String,
    /// Its name on the wire.
    pub group: GroupId,
    /// Selectors a server may have protected; empty: all (RFC 5374 section 4.1.3.5).
    pub allowed_flows: Vec<Flow>,
    /// Algorithms a server may use.
    pub accept: Accept,
    /// Traffic under unknown keys may lead to a registration.
    pub recovery_probe: bool,
    /// A policy with anything outside [`ike::approved`] is refused.
    pub approved_only: bool,
}

impl Default for VpnSettings {
    fn default() -> VpnSettings {
        VpnSettings {
            name: String::new(),
            gateway: String::new(),
            group: GroupId::number(0),
            allowed_flows: Vec::new(),
            accept: Accept::default(),
            recovery_probe: false,
            approved_only: false,
        }
    }
}

/// Source and destination prefix: an address and its length in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Source.
    pub source: (IpAddr, u8),
    /// Destination.
    pub destination: (IpAddr, u8),
}

/// Algorithms a server may use; an empty list accepts what this build supports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accept {
    /// TEK ciphers.
    pub encryption: Vec<Encryption>,
    /// Signatures of pushes with the size of the key: RSA modulus, or the curve's bits.
    pub rekey_signature: Vec<(SignatureAlgorithm, u16)>,
}

/// A TEK cipher without its integrity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// AES-CBC.
    AesCbc {
        /// Octets of key.
        key_octets: usize,
    },
    /// AES-GCM.
    AesGcm {
        /// Octets of key without salt.
        key_octets: usize,
    },
}

impl Accept {
    /// True when TEKs of `cipher` may be installed.
    pub fn encryption(&self, cipher: TekCipher) -> bool {
        let wanted = match cipher {
            TekCipher::AesCbc { key_octets, .. } => Encryption::AesCbc { key_octets },
            TekCipher::AesGcm { key_octets, .. } => Encryption::AesGcm { key_octets },
            TekCipher::AesGmac { .. } | TekCipher::Null { .. } => return self.encryption.is_empty(),
        };
        self.encryption.is_empty() || self.encryption.contains(&wanted)
    }
}
