//! Recorded exchanges of peers nobody here wrote: every message decoded, every encrypted one opened with the recorded
//! keys, HASHes and signatures checked where the recording gives what that needs, and encoded back.

use std::collections::BTreeMap;

use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use gdoi_proto::header::{HEADER_LEN, Header};
use gdoi_proto::ids::{Cookie, KekSpi, MessageId, SeqNumber};
use gdoi_proto::message::{Chain, Dialect, Domain, Message, Rules, Trailing, encode_chain};
use gdoi_proto::payload::{KeyPacket, Payload};
use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::prf::{hash, prf};
use ike::crypto::provider::{Verification, default_provider};
use ike::crypto::{Cipher, Hash};
use ike::protect::push::{self, KekCipherKey};

/// UDP payloads of a capture in order; 4 zero octets of a non-ESP marker are taken off.
fn datagrams(name: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/tests/data/captures/{name}.pcap", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut reader = pcap_file::pcap::PcapReader::new(file).expect("a capture");
    let mut out = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let frame = packet.expect("a packet").data.to_vec();
        // Ethernet 14, IPv4 header by its length, UDP 8.
        let ip = 14 + usize::from(frame[14] & 15) * 4;
        let payload = &frame[ip + 8..];
        out.push(payload.strip_prefix(&[0, 0, 0, 0]).unwrap_or(payload).to_vec());
    }
    out
}

fn secret(hex_text: &str) -> SecretBytes {
    SecretBytes::new(hex::decode(hex_text).expect("hexadecimal"))
}

/// Everything an observer with the phase 1 key sees: decrypts every encrypted message of the SA and follows the IVs.
struct Observer {
    hash: Hash,
    key: SecretBytes,
    skeyid_a: Option<SecretBytes>,
    running: BTreeMap<MessageId, Vec<u8>>,
    said: BTreeMap<MessageId, Vec<Vec<u8>>>,
    last_phase1: Vec<u8>,
    hashes: usize,
}

/// Octets of a cipher block: 3DES when the key of 24 octets comes with SHA-1, as only the stock reference daemon does.
fn block_len(hash: Hash, key: &SecretBytes) -> usize {
    if hash == Hash::Sha1 && key.len() == 24 { 8 } else { 16 }
}

fn decrypt(key: &SecretBytes, iv: &[u8], sealed: &[u8]) -> Vec<u8> {
    if let Ok(iv) = <[u8; 16]>::try_from(iv) {
        let cipher = Cipher::with_key_len(key.len()).expect("AES");
        return CipherKey::new(cipher, key.clone())
            .expect("the key fits")
            .decrypt(&iv, sealed)
            .expect("whole blocks");
    }
    let mut plain = sealed.to_vec();
    let mut mode = cbc::Decryptor::<des::TdesEde3>::new_from_slices(key.expose(), iv).expect("3DES");
    let (blocks, rest) = cbc::cipher::Block::<des::TdesEde3>::slice_as_chunks_mut(&mut plain);
    assert!(rest.is_empty(), "whole blocks");
    mode.decrypt_blocks(blocks);
    plain
}

impl Observer {
    fn new(hash_used: Hash, key: &str, skeyid_a: Option<&str>, g_xi: &[u8], g_xr: &[u8]) -> Observer {
        let key = secret(key);
        let first = hash(hash_used, &[g_xi, g_xr])[..block_len(hash_used, &key)].to_vec();
        Observer {
            hash: hash_used,
            key,
            skeyid_a: skeyid_a.map(secret),
            running: BTreeMap::from([(MessageId(0), first.clone())]),
            said: BTreeMap::new(),
            last_phase1: first,
            hashes: 0,
        }
    }

    fn open(&mut self, header: &Header, packet: &[u8], dialect: Dialect) -> Vec<Payload> {
        let fresh = hash(self.hash, &[&self.last_phase1, &header.message_id.0.to_be_bytes()]);
        let block = block_len(self.hash, &self.key);
        let iv = self.running.entry(header.message_id).or_insert_with(|| fresh[..block].to_vec()).clone();
        let sealed = &packet[HEADER_LEN..];
        let plain = decrypt(&self.key, &iv, sealed);
        let domain = match header.exchange {
            ExchangeType::GroupkeyPull => Domain::Group,
            _ => Domain::Phase1,
        };
        let rules = Rules { domain, trailing: Trailing::Padding, dialect };
        let chain = Chain::decode(header.next, &plain, rules)
            .unwrap_or_else(|error| panic!("{:?} {}: {error}", header.exchange, header.message_id));
        let last = sealed[sealed.len() - block..].to_vec();
        self.running.insert(header.message_id, last.clone());
        if header.exchange == ExchangeType::MainMode {
            self.last_phase1 = last;
        } else {
            self.check_hash(header, &plain, &chain);
        }
        let payloads: Vec<Payload> = chain.payloads.iter().map(|located| located.payload.clone()).collect();
        assert_eq!(hex::encode(encode_chain(&payloads).1), hex::encode(&plain[..chain.end]), "encodes back");
        payloads
    }

    fn check_hash(&mut self, header: &Header, plain: &[u8], chain: &Chain) {
        let Some(skeyid_a) = &self.skeyid_a else { return };
        let Payload::Hash(received) = &chain.payloads[0].payload else { panic!("HASH is not first") };
        let id = header.message_id.0.to_be_bytes();
        let said = self.said.entry(header.message_id).or_default();
        let mut parts: Vec<&[u8]> = vec![&id];
        // Every message covers the nonces said before it.
        parts.extend(said.iter().map(Vec::as_slice));
        parts.push(&plain[chain.payloads[0].end..chain.end]);
        assert!(prf(self.hash, skeyid_a.expose(), &parts).ct_eq(received), "HASH of {:?}", header.message_id);
        self.hashes += 1;
        for located in &chain.payloads {
            if let Payload::Nonce(nonce) = &located.payload {
                said.push(nonce.clone());
            }
        }
    }
}

fn ke(packet: &[u8]) -> Option<Vec<u8>> {
    let message = Message::decode(packet, Rules::PHASE1_CLEAR).ok()?;
    message.payloads.into_iter().find_map(|payload| match payload {
        Payload::Ke(value) => Some(value),
        _ => None,
    })
}

/// Clear messages encode back to the same octets.
fn check_clear(packet: &[u8]) {
    let message = Message::decode(packet, Rules::PHASE1_CLEAR).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(hex::encode(message.encode()), hex::encode(packet));
}

fn header(packet: &[u8]) -> Header {
    Header::decode(packet).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens PUSHes in order under the given KEK and checks the signatures with the key of the KD.
fn check_pushes(
    packets: &[Vec<u8>],
    kek: [&str; 3],
    public_key: &[u8],
    bare_digest: bool,
    dialect: Dialect,
) -> usize {
    let key = secret(kek[2]);
    let kek = KekCipherKey {
        spi: KekSpi(secret(kek[0]).expose().try_into().expect("16 octets")),
        iv: secret(kek[1]).expose().try_into().expect("16 octets"),
        key: CipherKey::new(Cipher::with_key_len(key.len()).expect("AES"), key).expect("the key fits"),
    };
    let mut last = SeqNumber(0);
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
            bare_digest,
        };
        default_provider().verify(&check).unwrap_or_else(|error| panic!("SEQ {}: {error}", opened.seq()));
        last = opened.seq();
    }
    packets.len()
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

fn reference(name: &str, key: &str, skeyid_a: &str, kek: [&str; 3]) {
    let packets = datagrams(name);
    let dialect = Dialect::STRICT;
    packets[..4].iter().for_each(|packet| check_clear(packet));
    let (g_xi, g_xr) = (ke(&packets[2]).expect("KE"), ke(&packets[3]).expect("KE"));
    let mut observer = Observer::new(Hash::Sha256, key, Some(skeyid_a), &g_xi, &g_xr);
    let mut found = None;
    for packet in &packets[4..10] {
        let payloads = observer.open(&header(packet), packet, dialect);
        found = found.or(public_key(&payloads));
    }
    assert_eq!(observer.hashes, 4, "four HASHes of the PULL");
    let public_key = found.expect("message 4 carries the signing key");
    assert_eq!(check_pushes(&packets[10..], kek, &public_key, false, dialect), packets.len() - 10);
}

#[test]
fn the_reference_daemon_with_rfc_encodings_and_a_pre_shared_key() {
    reference(
        "reference-rfc-pull-push-psk",
        "6028c2b32b921645a3f811520c18d351",
        "e8c1f6e6de4f9b1c3a2244788498cecf6f5d1a3665747755cc202ecb56cf6306",
        [
            "f78858df72958112375d28baa53e6d77",
            "be9d7b84dcf0c417b9abbecf209cb997",
            "b50bfdb8ab33f839f94f62326bb5c887",
        ],
    );
}

#[test]
fn the_reference_daemon_with_rsa_signatures() {
    reference(
        "reference-rfc-pull-push-rsasig",
        "9c57e35b471c9d1da5e34c874d30a08e",
        "d9d2d27abd238808ac0055663b533cef8db6679a125baa84bdcfb89ae3291c20",
        [
            "405fd1ab004b04354cd2178bff88dc3e",
            "4c62dcd7c8e6c89afac114728d063b24",
            "f3dd3f38ad21aa7f6ab76c6e2dac5a41",
        ],
    );
}

#[test]
fn the_stock_reference_daemon_with_3des_and_its_own_encodings() {
    let packets = datagrams("reference-pull-push-3des-phase1");
    let dialect = Dialect { sak_6_octets: true, ..Dialect::STRICT };
    packets[..4].iter().for_each(|packet| check_clear(packet));
    let (g_xi, g_xr) = (ke(&packets[2]).expect("KE"), ke(&packets[3]).expect("KE"));
    let mut observer = Observer::new(
        Hash::Sha1,
        "545a00d3ca6a42e73d47bde24393ec7bca50903a087bfb3d",
        Some("a5d85a02aff8f3da350a1f40082632f6ba80bf67"),
        &g_xi,
        &g_xr,
    );
    let mut found = None;
    for packet in &packets[4..10] {
        let payloads = observer.open(&header(packet), packet, dialect);
        found = found.or(public_key(&payloads));
    }
    assert_eq!(observer.hashes, 4, "four HASHes of the PULL");
    let public_key = found.expect("message 4 carries the signing key");
    let first = [
        "4e27fd363fc3c9a33d57b55d47419d3e",
        "16846997e342699cba8c79bda7b943d0",
        "8839194a13182f8046fd06d23225dce1",
    ];
    let second = [
        "2b756867cf1e383a5aec41bd79361544",
        "b558d9d502ff68f2c32d7ac9ed93cb92",
        "bbab27f599f7bf205d9d4325c1db1032",
    ];
    let (old, new): (Vec<Vec<u8>>, Vec<Vec<u8>>) =
        packets[10..].iter().cloned().partition(|packet| hex::encode(&packet[..16]) == first[0]);
    assert_eq!((old.len(), new.len()), (4, 2), "the KEK is replaced before SEQ 5");
    assert_eq!(check_pushes(&old, first, &public_key, true, dialect), 4);
    assert_eq!(check_pushes(&new, second, &public_key, true, dialect), 2);
}

#[test]
fn strongswan_on_both_sides() {
    let packets = datagrams("strongswan-main-mode-psk");
    let of_sa: Vec<&Vec<u8>> =
        packets.iter().filter(|p| p[..8] == [0x27, 0x41, 0x16, 0x26, 0x37, 0x09, 0x3f, 0x89]).collect();
    assert_eq!(of_sa.len(), 8, "six messages of main mode and a Delete from each side");
    let (g_xi, g_xr) = (ke(of_sa[2]).expect("KE"), ke(of_sa[3]).expect("KE"));
    let mut observer = Observer::new(
        Hash::Sha256,
        "8a355d19724cd02fad1e0f5f5c1ad4c2",
        Some("f369268872f971df69ea4fe9b338bf21c8c46a06c23948d2d50b590b544db0e1"),
        &g_xi,
        &g_xr,
    );
    for packet in &of_sa {
        let header = header(packet);
        if header.flags.encrypted() {
            observer.open(&header, packet, Dialect::STRICT);
        } else {
            check_clear(packet);
        }
    }
    assert_eq!(observer.hashes, 2, "two informational HASHes");
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
        assert!(of_sa.len() >= 8 || wrong_psk, "{cookie}: {} messages", of_sa.len());
    }
    assert_eq!(header(&packets[33]).next, PayloadType::Notify, "the wrong PSK is answered in clear");
}
