//! What `gdoictl` may see. A key is its length and a fingerprint; its octets only with `--show-keys`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ctl::observe::{GmSnapshot, IkeSaView, KekView, PolicyView, TekView, VpnView};
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{
    AckRequest, Encapsulation, KekPolicy, SignatureAlgorithm, SignatureHash, TekAuthentication, TekCipher,
};
use ike::crypto::Hash;
use ike::crypto::prf::hash;
use ike::io::{Instant, Now};

use super::GroupMember;
use super::kek::Kek;
use super::keyring::{Sending, Tek};
use super::vpn::Vpn;

impl GroupMember {
    /// Everything an operator may see now; key octets only when `show_keys`.
    pub fn snapshot(&self, now: Now, show_keys: bool) -> GmSnapshot {
        let sas = self.servers.values().filter_map(|server| server.sa().map(|sa| (server, sa)));
        GmSnapshot {
            vpns: self.vpns.values().map(|vpn| vpn.view(now.at, show_keys)).collect(),
            ike_sas: sas
                .map(|(server, sa)| IkeSaView {
                    peer: server.peer.to_string(),
                    identity: sa.peer_identity.to_string(),
                    local: server.local.to_string(),
                    initiator_cookie: sa.cookies.initiator.to_string(),
                    responder_cookie: sa.cookies.responder.to_string(),
                    suite: sa.suite.to_string(),
                    role: "initiator".to_owned(),
                    remaining_seconds: sa.expires.since(now.at).as_secs(),
                })
                .collect(),
            statistics: self.out.statistics,
            approved_only: self.approved_only,
            ..GmSnapshot::default()
        }
    }
}

impl Vpn {
    fn view(&self, at: Instant, show_keys: bool) -> VpnView {
        let keyring = &self.keyring;
        // Of the TEKs that may encrypt a flow, the one activated last does.
        let current = |tek: &Tek| {
            let newer = |other: &&Tek| {
                other.sending == Sending::Now
                    && (&other.policy.source, &other.policy.destination, other.policy.ip_protocol)
                        == (&tek.policy.source, &tek.policy.destination, tek.policy.ip_protocol)
            };
            keyring.teks().iter().rfind(newer).is_some_and(|last| last.policy.spi == tek.policy.spi)
        };
        let sender_ids = keyring.sender_ids.as_ref();
        VpnView {
            name: self.name().to_owned(),
            group: self.settings.group.to_string(),
            state: self.state().to_owned(),
            server: self.server().map(|address| address.to_string()).unwrap_or_default(),
            kek: keyring.kek().map(|kek| kek_view(kek, at, show_keys)),
            teks: keyring.teks().iter().map(|tek| tek_view(tek, current(tek), at, show_keys)).collect(),
            policy: keyring.teks().iter().map(|tek| policy_view(tek, at)).collect(),
            sender_ids: sender_ids
                .map(|ids| ids.values.iter().map(|sid| u64::from(sid.0)).collect())
                .unwrap_or_default(),
            sid_bits: sender_ids.map_or(0, |ids| u64::from(ids.bits)),
            reregister_in_seconds: self.planned().map(|planned| planned.since(at).as_secs()),
            keys_end_in_seconds: keyring.keys_until().map(|until| until.since(at).as_secs()),
            statistics: self.statistics,
            traffic: None,
        }
    }
}

fn kek_view(kek: &Kek, at: Instant, show_keys: bool) -> KekView {
    KekView {
        spi: kek.policy.spi.to_string(),
        algorithm: format!("aes-{}-cbc", kek.key().len() * 8),
        key_octets: kek.key().len() as u64,
        key_fingerprint: fingerprint(kek.key().expose()),
        remaining_seconds: kek.expires.since(at).as_secs(),
        seq: u64::from(kek.last.0),
        signature: signature_name(&kek.policy),
        signature_hash: match kek.policy.signature_hash {
            SignatureHash::Sha1 => "sha1",
            SignatureHash::Sha256 => "sha-256",
            SignatureHash::Sha384 => "sha-384",
            SignatureHash::Sha512 => "sha-512",
        }
        .to_owned(),
        signing_key_fingerprint: fingerprint(&kek.public_key),
        acknowledgement: match kek.policy.acknowledgement {
            Some(
                AckRequest::KekSha256 | AckRequest::KekSha512 | AckRequest::LkhSha256 | AckRequest::LkhSha512,
            ) => "requested",
            None => "none",
        }
        .to_owned(),
        key_hex: show_keys.then(|| hex(kek.key().expose())),
    }
}

fn tek_view(tek: &Tek, current: bool, at: Instant, show_keys: bool) -> TekView {
    let octets =
        [tek.key.encryption.expose(), tek.key.integrity.as_ref().map_or(&[][..], |key| key.expose())]
            .concat();
    let (state, waits) = match tek.sending {
        _ if tek.leaves.is_some() => ("retiring", None),
        Sending::At(activates) => ("next", Some(activates.since(at).as_secs())),
        Sending::Now if current => ("current", None),
        Sending::Now => ("retiring", None),
        Sending::Never => ("current", None),
    };
    TekView {
        spi: tek.policy.spi.to_string(),
        sa: flow_name(tek),
        algorithm: cipher_name(tek.policy.cipher),
        key_octets: octets.len() as u64,
        key_fingerprint: fingerprint(&octets),
        remaining_seconds: tek
            .leaves
            .map_or(tek.expires, |leaves| leaves.min(tek.expires))
            .since(at)
            .as_secs(),
        state: state.to_owned(),
        activates_in_seconds: waits,
        key_hex: show_keys.then(|| hex(&octets)),
    }
}

fn policy_view(tek: &Tek, at: Instant) -> PolicyView {
    PolicyView {
        sa: tek.policy.spi.to_string(),
        name: flow_name(tek),
        algorithm: cipher_name(tek.policy.cipher),
        encapsulation: match tek.policy.encapsulation {
            Encapsulation::Tunnel => "tunnel",
            Encapsulation::Transport => "transport",
        }
        .to_owned(),
        source: selector(&tek.policy.source),
        destination: selector(&tek.policy.destination),
        source_port: u64::from(tek.policy.source.port),
        destination_port: u64::from(tek.policy.destination.port),
        protocol: u64::from(tek.policy.ip_protocol),
        lifetime_seconds: tek.expires.since(at).as_secs(),
    }
}

fn flow_name(tek: &Tek) -> String {
    format!("{}->{}", selector(&tek.policy.source), selector(&tek.policy.destination))
}

fn selector(endpoint: &Endpoint) -> String {
    let data = endpoint.data.as_slice();
    if endpoint.is_any() {
        return "any".to_owned();
    }
    if let Ok(address) = <[u8; 4]>::try_from(data) {
        return Ipv4Addr::from(address).to_string();
    }
    if let Ok([a, b, c, d, mask @ ..]) = <[u8; 8]>::try_from(data) {
        return format!("{}/{}", Ipv4Addr::new(a, b, c, d), u32::from_be_bytes(mask).leading_ones());
    }
    if let (32, Some(address), Some(mask)) = (data.len(), data.first_chunk::<16>(), data.last_chunk::<16>()) {
        return format!("{}/{}", Ipv6Addr::from(*address), u128::from_be_bytes(*mask).leading_ones());
    }
    format!("{}:{}", endpoint.id_type, hex(data))
}

/// A cipher as the configuration spells it.
pub(super) fn cipher_name(cipher: TekCipher) -> String {
    let integrity = |authentication| match authentication {
        TekAuthentication::HmacSha1 => "hmac-sha1-96",
        TekAuthentication::HmacSha256 => "hmac-sha-256-128",
        TekAuthentication::HmacSha384 => "hmac-sha-384-192",
        TekAuthentication::HmacSha512 => "hmac-sha-512-256",
    };
    match cipher {
        TekCipher::AesCbc { key_octets, authentication } => {
            format!("aes-{}-cbc/{}", key_octets * 8, integrity(authentication))
        }
        TekCipher::AesGcm { key_octets, .. } => format!("aes-{}-gcm", key_octets * 8),
        TekCipher::AesGmac { key_octets } => format!("aes-{}-gmac", key_octets * 8),
        TekCipher::Null { authentication } => format!("null/{}", integrity(authentication)),
    }
}

fn signature_name(policy: &KekPolicy) -> String {
    match policy.signature {
        SignatureAlgorithm::Rsa => match policy.signature_key_bits {
            Some(bits) => format!("rsa-{bits}"),
            None => "rsa".to_owned(),
        },
        SignatureAlgorithm::Ecdsa256 => "ecdsa-256".to_owned(),
        SignatureAlgorithm::Ecdsa384 => "ecdsa-384".to_owned(),
        SignatureAlgorithm::Ecdsa521 => "ecdsa-521".to_owned(),
    }
}

fn fingerprint(octets: &[u8]) -> String {
    hex(hash(Hash::Sha256, &[octets]).get(..16).unwrap_or_default())
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}
