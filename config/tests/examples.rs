//! The sample files load, and say what their comments say.

mod support;

use std::path::Path;

use config::{Acknowledgement, AddressPrefix, Backend, DfBit, Encryption, IdentityPattern, Options};
use gdoi_proto::ids::GroupId;
use gdoi_proto::policy::{Encapsulation, SignatureAlgorithm, SignatureHash, TekCipher};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash};

fn copy(name: &str, secrets: &[&str]) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    for secret in secrets {
        support::secret(directory.path(), secret, "a secret of more than 16 octets\n");
    }
    let path = directory.path().join(name);
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name), &path).unwrap();
    (directory, path)
}

#[test]
fn the_sample_of_the_key_server_loads_without_a_warning() {
    let (_directory, path) = copy("gcks.toml", &["psk/branches"]);
    let loaded = config::load_gcks(&path, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((loaded.warnings.len(), loaded.notices.len()), (0, 0));
    let config = loaded.config;
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.server.half_open_limit, 4096);

    let gateway = &config.gateways[0];
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(gateway.name, "gm-0001");
    assert_eq!(text.lines().nth(gateway.line - 1), Some("[ike.gateway.gm-0001]"));
    assert_eq!(gateway.address, Some(AddressPrefix { address: [10, 18, 101, 1].into(), prefix_len: 32 }));
    assert_eq!(gateway.remote_identity, Some(IdentityPattern::Address([10, 18, 101, 1].into())));
    assert_eq!(gateway.local_identity.as_ref().unwrap().data, b"gcks.example");
    let key = gateway.credentials.pre_shared_key.as_ref().unwrap();
    assert!(key.ct_eq(b"a secret of more than 16 octets"));
    let proposal = &gateway.proposals[0];
    assert_eq!(
        (proposal.method, proposal.group, proposal.hash, proposal.cipher, proposal.lifetime_seconds),
        (AuthMethod::PreSharedKey, DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc, 86_400)
    );

    let group = &config.groups[0];
    assert_eq!(group.id, GroupId::number(1));
    assert_eq!(group.gateways, ["gm-0001", "branches"]);
    assert_eq!(group.member_threshold, Some(2000));
    let communication = group.communication.as_ref().unwrap();
    assert_eq!(communication.signature, SignatureAlgorithm::Ecdsa256);
    assert_eq!(communication.signature_key_bits, 256);
    assert_eq!(communication.signature_hash, SignatureHash::Sha256);
    assert_eq!(communication.acknowledgement, Acknowledgement::Required);
    assert_eq!((communication.activation_delay_seconds, communication.deactivation_delay_seconds), (30, 50));
    assert_eq!((communication.rekey_span_seconds(), communication.rekey_margin_kek_seconds), (85, 360));
    let sa = &group.sas[0];
    assert_eq!(sa.cipher, TekCipher::AesGcm { key_octets: 32, icv_octets: 16 });
    assert_eq!((sa.encapsulation, sa.rekey_margin_seconds), (Encapsulation::Tunnel, 360));
    assert_eq!(sa.policies[0].source.to_string(), "172.16.0.0/12");
}

#[test]
fn the_sample_of_the_member_loads_without_a_warning() {
    let (_directory, path) = copy("gm.toml", &["psk"]);
    let loaded = config::load_gm(&path, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((loaded.warnings.len(), loaded.notices.len()), (0, 0));
    let config = loaded.config;
    let gateway = &config.gateways[0];
    assert_eq!(gateway.servers, ["10.10.10.1:848".parse().unwrap(), "10.10.10.2:848".parse().unwrap()]);
    assert_eq!(gateway.identity_of(1), Some(&IdentityPattern::Fqdn("gcks.example".into())));
    let vpn = &config.vpns[0];
    assert_eq!((vpn.gateway.as_str(), &vpn.group), ("servers", &GroupId::number(1)));
    assert_eq!(vpn.accept.as_ref().unwrap().encryption, [Encryption::AesGcm { key_octets: 32 }]);
    let lan = AddressPrefix::parse("172.16.1.0/24").unwrap();
    assert!(vpn.allows(&lan, &lan));
    assert!(!vpn.allows(&lan, &AddressPrefix::parse("0.0.0.0/0").unwrap()));
    assert_eq!((config.backend, vpn.df_bit, vpn.tunnel_mtu), (Backend::Tun, DfBit::Clear, 1500));
    assert_eq!((vpn.exclude[0].name.as_str(), vpn.exclude[0].protocol, vpn.exclude[0].port), ("bgp", 6, 179));
    assert_eq!(vpn.fail_open[0].destination.to_string(), "10.0.0.5/32");
    assert_eq!(config.zones[0].interfaces, ["eth1"]);
    assert_eq!((config.policies[0].from_zone.as_str(), config.policies[0].to_zone.as_str()), ("lan", "wan"));
}
