//! Recorded exchanges of peers nobody here wrote: every message decoded, every encrypted one opened with the recorded
//! keys, HASHes and signatures checked where the recording gives what that needs, encoded back to the same octets, and
//! read as policy and keys under the peer's dialect. The proofs and HASHes of the IEC 61850 peer stay unchecked: no
//! SKEYID of it was recorded.

use std::collections::BTreeSet;

use gdoi_proto::ids::{Cookie, GroupId, KekSpi, SeqNumber, Spi};
use gdoi_proto::message::{Dialect, Message, Rules};
use gdoi_proto::payload::{Endpoint, GdoiSa, KeyDownload, KeyPacket, Payload, SaTek};
use gdoi_proto::policy::{
    Carriage, GroupPolicy, KekCipher, KeySet, SignatureAlgorithm, SignatureHash, TekAuthentication,
    TekCipher, TekPolicy,
};
use gdoi_proto::registry::PayloadType;
use ike::crypto::cipher::CipherKey;
use ike::crypto::provider::{Verification, default_provider};
use ike::crypto::{Cipher, Hash};
use ike::protect::push::{self, KekCipherKey, Unsigned};

use crate::observer::{Observer, Proofs, check_clear, datagrams, header, ke, secret};

/// Opens PUSHes in order under the given KEK, checks the signatures with the key of the KD, makes each again octet for
/// octet and reads what it brings. The policies and keys of all.
fn check_pushes(packets: &[Vec<u8>], kek: [&str; 3], public_key: &[u8], dialect: Dialect) -> Vec<Meaning> {
    let key = secret(kek[2]);
    let kek = KekCipherKey {
        spi: KekSpi(secret(kek[0]).expose().try_into().expect("16 octets")),
        iv: secret(kek[1]).expose().try_into().expect("16 octets"),
        key: CipherKey::new(Cipher::with_key_len(key.len()).expect("AES"), key).expect("the key fits"),
    };
    let mut last = SeqNumber(0);
    let mut brought = Vec::new();
    for packet in packets {
        let opened = push::open(&kek, last, &header(packet), packet, dialect)
            .unwrap_or_else(|error| panic!("{error}"));
        let check = Verification {
            algorithm: SignatureAlgorithm::Rsa,
            hash: SignatureHash::Sha256,
            public_key: public_key.to_vec().into(),
            input: opened.signature_input.clone(),
            signature: opened.signature.clone(),
            or_input: None,
            bare_digest: dialect.bare_digest_signature,
        };
        default_provider().verify(&check).unwrap_or_else(|error| panic!("SEQ {}: {error}", opened.seq()));
        last = opened.seq();
        let (signature, input) = (opened.signature.clone(), opened.signature_input.clone());
        let content = opened.verified().into_inner();
        let again = Unsigned::new(kek.spi, &content, signature.len());
        assert_eq!(hex::encode(again.signature_input(false)), hex::encode(&input), "SEQ {last}");
        assert_eq!(hex::encode(again.seal(&kek, &signature)), hex::encode(packet), "SEQ {last}");
        let (sa, kd) = content.keys.expect("every PUSH of these recordings brings keys");
        brought.push(Meaning::read(sa, kd, Carriage::Push, dialect));
    }
    brought
}

/// What an SA and a KD mean, in the RFC form.
struct Meaning {
    policy: GroupPolicy,
    keys: KeySet,
    /// SATs this build refuses, by name; they and their keys are left out of the rest.
    refused: BTreeSet<String>,
    /// Source and destination of every SAT.
    flows: BTreeSet<String>,
}

impl Meaning {
    fn read(sa: GdoiSa, mut kd: KeyDownload, carriage: Carriage, dialect: Dialect) -> Meaning {
        let mut sa = dialect.sa_from_peer(sa);
        let (mut refused, mut flows, mut left_out) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        sa.teks.retain(|sat| {
            let SaTek::Esp(sat) = sat else { panic!("{sat:?}") };
            flows.insert(format!("{} > {}", address(&sat.source), address(&sat.destination)));
            let Err(error) = TekPolicy::read(sat) else { return true };
            refused.insert(error.to_string());
            left_out.push(sat.spi);
            false
        });
        kd.packets.retain(|packet| !matches!(packet, KeyPacket::Tek { spi, .. } if left_out.contains(spi)));
        let policy = GroupPolicy::read(&sa, carriage).unwrap_or_else(|error| panic!("{error}"));
        let kd = dialect.kd_from_peer(kd, policy.kek.as_ref().map(|kek| kek.spi));
        let keys = KeySet::read(&kd, &policy, carriage).unwrap_or_else(|error| panic!("{error}"));
        Meaning { policy, keys, refused, flows }
    }

    /// Every message of the reference daemon: its KEK and delays, and a key for each SA.
    fn check_reference(&self, keks: &[[&str; 3]]) {
        let policy = self.policy.kek.as_ref().expect("a SAK");
        assert_eq!(address(&policy.source), "127.0.0.2");
        assert_eq!((address(&policy.destination), policy.destination.port), ("239.192.7.7".to_owned(), 1848));
        assert_eq!(policy.cipher, KekCipher::AesCbc { key_octets: 16 });
        assert_eq!(
            (policy.signature, policy.signature_hash),
            (SignatureAlgorithm::Rsa, SignatureHash::Sha256)
        );
        assert_eq!((self.policy.activation_delay, self.policy.deactivation_delay), (60, Some(90)));
        let key = self.keys.kek.as_ref().expect("a KEK");
        let kek = keks.iter().find(|kek| kek[0] == hex::encode(policy.spi.0)).expect("a recorded KEK");
        let flows = ["127.0.0.9 > 239.192.1.2", "172.19.137.42 > 239.192.1.1"].map(str::to_owned);
        assert!(self.flows.is_empty() || self.flows == flows.into(), "{:?}", self.flows);
        assert_eq!(
            (hex::encode(&key.iv), hex::encode(key.key.expose())),
            (kek[1].to_owned(), kek[2].to_owned())
        );
        let announced: Vec<Spi> = self.policy.teks.iter().map(|tek| tek.spi).collect();
        assert_eq!(self.keys.teks.iter().map(|(spi, _)| *spi).collect::<Vec<_>>(), announced);
    }
}

fn address(endpoint: &Endpoint) -> String {
    let octets: [u8; 4] = endpoint.data.as_slice().try_into().expect("one IPv4 address");
    std::net::Ipv4Addr::from(octets).to_string()
}

/// Group, policy and keys of the PULL among decrypted payloads.
fn pulled(payloads: &[Payload], dialect: Dialect) -> (GroupId, Meaning) {
    let (mut group, mut sa, mut kd) = (None, None, None);
    for payload in payloads.iter().cloned() {
        match payload {
            // The identities of phase 1 come before; the last one names the group.
            Payload::Id(id) => {
                group = Some(dialect.group_id(GroupId { id_type: id.id_type, data: id.data }));
            }
            Payload::GdoiSa(found) => sa = Some(found),
            Payload::Kd(found) => kd = Some(found),
            _ => {}
        }
    }
    let meant = Meaning::read(sa.expect("an SA"), kd.expect("a KD"), Carriage::Pull, dialect);
    (group.expect("an ID"), meant)
}

/// SIG_ALGORITHM_KEY of a KD among payloads.
fn public_key(payloads: &[Payload]) -> Option<Vec<u8>> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Kd(kd) => kd.packets.iter().find_map(|packet| match packet {
            KeyPacket::Kek { attributes, .. } => {
                attributes.iter().find(|a| a.kind == 2).and_then(|a| a.octets()).map(<[u8]>::to_vec)
            }
            _ => None,
        }),
        _ => None,
    })
}

/// One of the three recordings of the reference daemon.
struct Reference {
    name: &'static str,
    hash: Hash,
    key: &'static str,
    skeyid: [&'static str; 2],
    /// SPI, IV and key of each KEK.
    keks: &'static [[&'static str; 3]],
    dialect: Dialect,
}

impl Reference {
    /// Checks every message; what the PULL and then every PUSH mean.
    fn check(&self) -> Vec<Meaning> {
        let packets = datagrams(self.name);
        packets[..4].iter().for_each(|packet| check_clear(packet));
        let clear: Vec<&Vec<u8>> = packets[..4].iter().collect();
        let proofs = Proofs::new(self.hash, self.skeyid[0], &clear);
        let [g_xi, g_xr] = proofs.public.clone();
        let mut observer =
            Observer::new(self.hash, self.key, Some(self.skeyid[1]), &g_xi, &g_xr).with_proofs(proofs);
        let mut payloads = Vec::new();
        for packet in &packets[4..10] {
            payloads.extend(observer.open(&header(packet), packet, self.dialect));
        }
        assert_eq!((observer.proved, observer.hashes), (2, 4), "both proofs, and four HASHes of the PULL");
        let public_key = public_key(&payloads).expect("message 4 carries the signing key");
        let mut rest = packets[10..].to_vec();
        let (group, pull) = pulled(&payloads, self.dialect);
        assert_eq!(group, GroupId::number(1234));
        let mut all = vec![pull];
        for kek in self.keks {
            let (under, others) = rest.into_iter().partition(|packet| hex::encode(&packet[..16]) == kek[0]);
            rest = others;
            all.extend(check_pushes(&under, *kek, &public_key, self.dialect));
        }
        assert!(rest.is_empty(), "a PUSH under another KEK");
        assert_eq!(all.len(), packets.len() - 9, "the PULL and every PUSH mean something");
        for meant in &all {
            meant.check_reference(self.keks);
        }
        all
    }
}

fn dialect(words: &[&str]) -> Dialect {
    let mut dialect = Dialect::STRICT;
    words.iter().for_each(|word| assert!(dialect.set(word), "{word}"));
    dialect
}

#[test]
fn the_reference_daemon_with_rfc_encodings_and_a_pre_shared_key() {
    let all = Reference {
        name: "reference-rfc-pull-push-psk",
        hash: Hash::Sha256,
        key: "6028c2b32b921645a3f811520c18d351",
        skeyid: [
            "da65d5f47b1708dcb44d753cc5f11608a91e71be11ff7b04dcb879aa4c04708c",
            "e8c1f6e6de4f9b1c3a2244788498cecf6f5d1a3665747755cc202ecb56cf6306",
        ],
        keks: &[[
            "f78858df72958112375d28baa53e6d77",
            "be9d7b84dcf0c417b9abbecf209cb997",
            "b50bfdb8ab33f839f94f62326bb5c887",
        ]],
        dialect: dialect(&["group-id-little-endian"]),
    }
    .check();
    for meant in all {
        assert_eq!(meant.refused, ["SAT: ESP transform 3 is not supported".to_owned()].into());
        assert!(!meant.policy.teks.is_empty());
        for tek in &meant.policy.teks {
            let authentication = TekAuthentication::HmacSha256;
            assert_eq!(tek.cipher, TekCipher::AesCbc { key_octets: 16, authentication });
        }
    }
}

#[test]
fn the_reference_daemon_with_rsa_signatures() {
    let all = Reference {
        name: "reference-rfc-pull-push-rsasig",
        hash: Hash::Sha256,
        key: "9c57e35b471c9d1da5e34c874d30a08e",
        skeyid: [
            "968f83416fb15e1928a38b27712a5ee1ea41c1cc41612128c1f8a17eea836d03",
            "d9d2d27abd238808ac0055663b533cef8db6679a125baa84bdcfb89ae3291c20",
        ],
        keks: &[[
            "405fd1ab004b04354cd2178bff88dc3e",
            "4c62dcd7c8e6c89afac114728d063b24",
            "f3dd3f38ad21aa7f6ab76c6e2dac5a41",
        ]],
        dialect: dialect(&["group-id-little-endian"]),
    }
    .check();
    for meant in all {
        assert_eq!(meant.refused, ["SAT: ESP transform 3 is not supported".to_owned()].into());
        assert!(!meant.policy.teks.is_empty());
        for tek in &meant.policy.teks {
            let authentication = TekAuthentication::HmacSha256;
            assert_eq!(tek.cipher, TekCipher::AesCbc { key_octets: 16, authentication });
        }
    }
}

#[test]
fn the_stock_reference_daemon_with_3des_and_its_own_encodings() {
    let all = Reference {
        name: "reference-pull-push-3des-phase1",
        hash: Hash::Sha1,
        key: "545a00d3ca6a42e73d47bde24393ec7bca50903a087bfb3d",
        skeyid: ["6e72ae3b3c85a9e611d5b8382cf2fe7655c8a78d", "a5d85a02aff8f3da350a1f40082632f6ba80bf67"],
        keks: &[
            [
                "4e27fd363fc3c9a33d57b55d47419d3e",
                "16846997e342699cba8c79bda7b943d0",
                "8839194a13182f8046fd06d23225dce1",
            ],
            [
                "2b756867cf1e383a5aec41bd79361544",
                "b558d9d502ff68f2c32d7ac9ed93cb92",
                "bbab27f599f7bf205d9d4325c1db1032",
            ],
        ],
        dialect: dialect(&[
            "sak-6-octets",
            "selectors-little-endian",
            "kek-old-spi",
            "bare-digest-signature",
            "group-id-little-endian",
        ]),
    }
    .check();
    for (at, meant) in all.iter().enumerate() {
        // Its AES SAT has Key Length 0 and an integrity key only. The PUSH with the new KEK brings no SAT at all.
        let named = ["SAT: ESP transform 3 is not supported", "SAT: Key Length 0 is not supported"];
        let named = if at == 4 { BTreeSet::new() } else { named.map(str::to_owned).into() };
        assert_eq!(meant.refused, named, "message {at}");
        assert!(meant.policy.teks.is_empty());
    }
}

#[test]
fn strongswan_on_both_sides() {
    let packets = datagrams("strongswan-main-mode-psk");
    let of_sa: Vec<&Vec<u8>> =
        packets.iter().filter(|p| p[..8] == [0x27, 0x41, 0x16, 0x26, 0x37, 0x09, 0x3f, 0x89]).collect();
    assert_eq!(of_sa.len(), 8, "six messages of main mode and a Delete from each side");
    let skeyid = "bccd1ed2e272b6c3726ed1c0c006a902cbb198061f1424c070edc924a6b32fec";
    let proofs = Proofs::new(Hash::Sha256, skeyid, &of_sa);
    let [g_xi, g_xr] = proofs.public.clone();
    let mut observer = Observer::new(
        Hash::Sha256,
        "8a355d19724cd02fad1e0f5f5c1ad4c2",
        Some("f369268872f971df69ea4fe9b338bf21c8c46a06c23948d2d50b590b544db0e1"),
        &g_xi,
        &g_xr,
    )
    .with_proofs(proofs);
    for packet in &of_sa {
        let header = header(packet);
        if header.flags.encrypted() {
            observer.open(&header, packet, Dialect::STRICT);
        } else {
            check_clear(packet);
        }
    }
    assert_eq!((observer.proved, observer.hashes), (2, 2), "both proofs and two informational HASHes");
    let half_open: Vec<&Vec<u8>> = packets.iter().filter(|packet| !of_sa.contains(packet)).collect();
    assert!(!half_open.is_empty(), "the half-open exchange");
    for packet in half_open {
        assert!(!header(packet).flags.encrypted(), "nothing encrypted without keys");
        check_clear(packet);
    }
}

#[test]
fn the_iec_61850_peer() {
    let keys = [
        (
            "e963806f484560af",
            Hash::Sha256,
            "10dc2fd61a8d20a8ec4167b94e502c51fb201f4804872997c4e04f958e7138b4",
        ),
        ("6df1d1b32d13cc2f", Hash::Sha256, "6643cc227e22267176d3cb6f3451410d"),
        (
            "ffd5a59a35380b15",
            Hash::Sha256,
            "5d2f8c2c2e9b6513a9e50b0a85336f38ad42a128764acf00cfe7c3f06cd690e1",
        ),
        (
            "9eb4e492b18646e8",
            Hash::Sha256,
            "adbad7b4ef2d61d2178ddd7ab491cb9f217201a1c74acce9358d2a724bc6b8db",
        ),
    ];
    let packets = datagrams("iec61850-pull");
    assert_eq!(packets.len(), 34);
    let mut covered = 0;
    for (cookie, _, key) in keys {
        let cookie = Cookie(hex::decode(cookie).expect("hexadecimal").try_into().expect("8 octets"));
        let of_sa: Vec<&Vec<u8>> = packets.iter().filter(|p| header(p).cookies.initiator == cookie).collect();
        // The chosen hash stands in message 2 (attribute 2): 4 is SHA-256, 5 is SHA-384.
        let chosen = Message::decode(of_sa[1], Rules::PHASE1_CLEAR).expect("message 2");
        let Payload::Sa(sa) = &chosen.payloads[0] else { panic!("no SA") };
        let attributes = &sa.proposals[0].transforms[0].attributes;
        let number = attributes.iter().find(|a| a.kind == 2).and_then(|a| a.integer()).expect("a hash");
        let hash = Hash::from_number(u16::try_from(number).expect("16 bits")).expect("a known hash");
        let (g_xi, g_xr) = (ke(of_sa[2]).expect("KE"), ke(of_sa[3]).expect("KE"));
        let mut observer = Observer::new(hash, key, None, &g_xi, &g_xr);
        let wrong_psk = of_sa.len() == 6 && !header(of_sa[5]).flags.encrypted();
        for packet in &of_sa {
            let header = header(packet);
            if header.flags.encrypted() {
                observer.open(&header, packet, Dialect::STRICT);
            } else {
                check_clear(packet);
            }
        }
        covered += of_sa.len();
        assert!(of_sa.len() >= 8 || wrong_psk, "{cookie}: {} messages", of_sa.len());
    }
    assert_eq!(covered, 34, "every message belongs to one of the four SAs");
    assert_eq!(header(&packets[33]).next, PayloadType::Notify, "the wrong PSK is answered in clear");
}
