//! From the configuration file to what the engine needs to know, and the answer to its only question to the system: which
//! of our addresses the route to a key server uses now.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use config::{Gm, GmGateway, Vpn};
use gdoi_proto::ids::GroupId;
use ike::crypto::Suite;
use ike::identity::IdentityRule;
use ike::phase1::{Offer, PeerPolicy};
use thiserror::Error;

use crate::engine::io::Locals;
use crate::engine::settings::{Accept, Encryption, Flow, GatewaySettings, Settings, VpnSettings};

/// Why a key server cannot be talked to from this machine.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The system knows no way there.
    #[error(
        "no route to key server {server}: {source}; local-address in the ike.gateway would name our address"
    )]
    NoRoute {
        /// The server.
        server: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No socket has its address family.
    #[error("no listen socket has the address family of key server {server}")]
    NoSocket {
        /// The server.
        server: SocketAddr,
    },
}

/// The whole configuration as the engine takes it. `nat_traversal`: there are sockets for it.
pub fn settings(config: &Gm, nat_traversal: bool) -> Settings {
    let approved_only = config.member.approved_only;
    let gateways = config.gateways.iter().map(|it| gateway(it, nat_traversal, approved_only)).collect();
    let vpns = config.vpns.iter();
    let vpns = vpns.map(|it| VpnSettings { approved_only, ..vpn(it, &config.gateways) }).collect();
    Settings { gateways, vpns, approved_only }
}

fn gateway(gateway: &GmGateway, nat_traversal: bool, approved_only: bool) -> GatewaySettings {
    let policies = (0..gateway.servers.len()).map(|index| policy(gateway, index, nat_traversal));
    let policies =
        policies.map(|policy| if approved_only { policy.approved_only() } else { policy }).collect();
    GatewaySettings {
        name: gateway.name.clone(),
        servers: gateway.servers.clone(),
        ask_route: true,
        local_address: gateway.local_address,
        policies,
        dead_peer_detection: gateway.dead_peer_detection.map(|dpd| ike::dpd::Settings {
            interval: Duration::from_secs(u64::from(dpd.interval_seconds)),
            threshold: dpd.threshold,
        }),
        ..GatewaySettings::default()
    }
}

/// Our addresses towards `server`, with the ports of the sockets that will be used. `stated` is the address the
/// configuration names, `listening` are those of our sockets, `floated` of those for NAT traversal.
///
/// # Errors
/// [`ConvertError`] when this machine cannot talk to the server now.
pub fn locals(
    stated: Option<IpAddr>,
    server: SocketAddr,
    listening: &[SocketAddr],
    floated: &[SocketAddr],
) -> Result<Locals, ConvertError> {
    let first = local(stated, server, listening)?;
    Ok(Locals { first, float: float(first, floated) })
}

/// Where a phase 1 begins.
///
/// # Errors
/// [`ConvertError`] when this machine cannot talk to the server now.
fn local(
    stated: Option<IpAddr>,
    server: SocketAddr,
    listening: &[SocketAddr],
) -> Result<SocketAddr, ConvertError> {
    let family = |socket: &&SocketAddr| socket.is_ipv4() == server.is_ipv4();
    if !listening.iter().any(|socket| family(&socket)) {
        return Err(ConvertError::NoSocket { server });
    }
    let address = match stated {
        Some(address) => address,
        None => {
            runtime::udp::source_for(server).map_err(|source| ConvertError::NoRoute { server, source })?
        }
    };
    let exact = listening.iter().filter(family).find(|socket| socket.ip() == address);
    let any = || listening.iter().filter(family).find(|socket| socket.ip().is_unspecified());
    // A socket of another address can still be the only one there is: then its address is ours.
    let socket = exact.or_else(any).or_else(|| listening.iter().find(family));
    let socket = socket.ok_or(ConvertError::NoSocket { server })?;
    let address = if socket.ip().is_unspecified() { address } else { socket.ip() };
    Ok(SocketAddr::new(address, socket.port()))
}

/// The socket for NAT traversal that goes on where `local` leaves off: of the same address.
fn float(local: SocketAddr, floated: &[SocketAddr]) -> Option<SocketAddr> {
    let family = || floated.iter().filter(|socket| socket.is_ipv4() == local.is_ipv4());
    let exact = family().find(|socket| socket.ip() == local.ip());
    let socket = exact.or_else(|| family().find(|socket| socket.ip().is_unspecified()))?;
    Some(SocketAddr::new(local.ip(), socket.port()))
}

fn policy(gateway: &GmGateway, index: usize, nat_traversal: bool) -> PeerPolicy {
    let offers = gateway.proposals.iter().map(|proposal| Offer {
        suite: Suite {
            cipher: proposal.cipher,
            hash: proposal.hash,
            group: proposal.group,
            method: proposal.method,
        },
        lifetime: Duration::from_secs(u64::from(proposal.lifetime_seconds)),
    });
    PeerPolicy {
        mode: gateway.mode,
        offers: offers.collect(),
        credentials: gateway.credentials.clone(),
        local_identity: gateway.local_identity.clone(),
        remote: vec![gateway.identity_of(index).map_or(IdentityRule::PeerAddress, |pattern| pattern.rule())],
        nat_traversal,
        fragmentation: true,
        dialect: gateway.compat,
    }
}

fn vpn(vpn: &Vpn, gateways: &[GmGateway]) -> VpnSettings {
    let by_address = gateways.iter().any(|it| it.name == vpn.gateway && it.compat.group_id_address);
    let address = vpn.group_address.filter(|_| by_address);
    VpnSettings {
        name: vpn.name.clone(),
        gateway: vpn.gateway.clone(),
        group: address.map_or_else(|| vpn.group.clone(), GroupId::address),
        allowed_flows: vpn
            .allowed_flows
            .iter()
            .map(|(source, destination)| Flow {
                source: (source.address, source.prefix_len),
                destination: (destination.address, destination.prefix_len),
            })
            .collect(),
        accept: vpn.accept.as_ref().map(accept).unwrap_or_default(),
        recovery_probe: vpn.recovery_probe,
        approved_only: false,
    }
}

fn accept(accept: &config::Accept) -> Accept {
    Accept {
        encryption: accept
            .encryption
            .iter()
            .map(|encryption| match *encryption {
                config::Encryption::AesCbc { key_octets } => Encryption::AesCbc { key_octets },
                config::Encryption::AesGcm { key_octets } => Encryption::AesGcm { key_octets },
            })
            .collect(),
        rekey_signature: accept.rekey_signature.iter().map(|it| (it.algorithm, it.key_bits)).collect(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use gdoi_proto::policy::SignatureAlgorithm;

    use super::*;

    const FILE: &str = r#"
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
lifetime-seconds = 3600
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = { file = "key" }
[ike.gateway.servers]
ike-policy = "pol"
server-address = ["127.0.0.1", "127.0.0.2:8480"]
remote-identity = [{ hostname = "one.example" }, { hostname = "two.example" }]
compat = ["group-id-little-endian", "ecdsa-double-hash"]
[vpn.G]
ike-gateway = "servers"
group = 9
group-vpn-external-interface = "lo"
recovery-probe = true
accept = { encryption = ["aes-256-gcm"], rekey-signature = ["ecdsa-256"] }
allowed-flows = [{ source = "172.16.0.0/12", destination = "172.16.0.0/12" }]
"#;

    /// The file `key`, which policies of tests name.
    pub(crate) fn write_key(directory: &std::path::Path) {
        let key = directory.join("key");
        std::fs::write(&key, "a secret of more than 16 octets").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn config() -> Gm {
        let directory = tempfile::tempdir().unwrap();
        write_key(directory.path());
        let path = directory.path().join("gm.toml");
        std::fs::write(&path, FILE).unwrap();
        config::load_gm(&path, config::Options::default()).unwrap_or_else(|errors| panic!("{errors}")).config
    }

    #[test]
    fn every_server_gets_its_identity_and_our_address_on_the_route_to_it() {
        let settings = settings(&config(), false);
        let [gateway] = &settings.gateways[..] else { panic!("{:?}", settings.gateways) };
        assert_eq!(gateway.servers, ["127.0.0.1:848".parse().unwrap(), "127.0.0.2:8480".parse().unwrap()]);
        let listening = ["0.0.0.0:850".parse().unwrap(), "[::]:850".parse().unwrap()];
        let local = local(gateway.local_address, gateway.servers[1], &listening).unwrap();
        assert!(gateway.ask_route && local.ip().is_loopback() && local.port() == 850, "{local}");
        let rule = |name: &str| IdentityRule::Exactly {
            id_type: gdoi_proto::registry::IdType::Fqdn,
            data: name.as_bytes().to_vec(),
        };
        assert_eq!(gateway.policies[0].remote, [rule("one.example")]);
        assert_eq!(gateway.policies[1].remote, [rule("two.example")]);
    }

    #[test]
    fn nat_traversal_needs_a_socket_of_our_address_towards_the_server() {
        let (listening, floated) = ("127.0.0.1:850".parse().unwrap(), "127.0.0.1:4511".parse().unwrap());
        let (any, other) = ("0.0.0.0:4512".parse().unwrap(), "[::]:4500".parse().unwrap());
        let cases = [
            (vec![], None),
            (vec![floated], Some(4511)),
            (vec![any], Some(4512)),
            (vec![any, floated], Some(4511)),
            (vec![other], None),
        ];
        for (floated, port) in cases {
            let settings = settings(&config(), !floated.is_empty());
            let gateway = &settings.gateways[0];
            assert_eq!(gateway.policies[0].nat_traversal, !floated.is_empty());
            let locals = locals(gateway.local_address, gateway.servers[0], &[listening], &floated).unwrap();
            let ends = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
            assert_eq!(locals, Locals { first: ends(850), float: port.map(ends) });
        }
    }

    #[test]
    fn a_vpn_keeps_its_limits() {
        let settings = settings(&config(), false);
        let only = "127.0.0.5:850".parse().unwrap();
        let server = "127.0.0.1:848".parse().unwrap();
        assert_eq!(local(None, server, &[only]).unwrap(), only, "the only socket there is");
        let [vpn] = &settings.vpns[..] else { panic!("{:?}", settings.vpns) };
        assert_eq!((&vpn.group, vpn.recovery_probe), (&GroupId::number(9), true));
        assert_eq!(vpn.accept.encryption, [Encryption::AesGcm { key_octets: 32 }]);
        assert_eq!(vpn.accept.rekey_signature, [(SignatureAlgorithm::Ecdsa256, 256)]);
        assert_eq!(vpn.allowed_flows[0].source, ("172.16.0.0".parse().unwrap(), 12));
    }

    #[test]
    fn a_server_without_a_socket_of_its_family_is_named_when_its_turn_comes() {
        let server = "127.0.0.1:848".parse().unwrap();
        let error = local(None, server, &["[::1]:848".parse().unwrap()]).unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:848"), "{error}");
        assert!(settings(&config(), false).gateways[0].servers.contains(&server), "and gmd starts");
    }
}
