//! A listener who holds the keys: decrypts the messages of a recorded SA, follows the IVs and checks every HASH and proof.

use std::collections::BTreeMap;

use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use gdoi_proto::header::{HEADER_LEN, Header};
use gdoi_proto::ids::{CookiePair, MessageId};
use gdoi_proto::message::{Chain, Dialect, Domain, Message, Rules, Trailing, encode_chain, encode_payload};
use gdoi_proto::payload::Payload;
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::prf::{hash, prf};
use ike::crypto::provider::default_provider;
use ike::crypto::{AuthMethod, Cipher, Hash};
use ike::sa::Role;

/// UDP payloads of a capture in order; 4 zero octets of a non-ESP marker are taken off.
pub fn datagrams(name: &str) -> Vec<Vec<u8>> {
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

pub fn secret(hex_text: &str) -> SecretBytes {
    SecretBytes::new(hex::decode(hex_text).expect("hexadecimal"))
}

/// Everything an observer with the phase 1 key sees: decrypts every encrypted message of the SA and follows the IVs.
pub struct Observer {
    hash: Hash,
    key: SecretBytes,
    skeyid_a: Option<SecretBytes>,
    running: BTreeMap<MessageId, Vec<u8>>,
    said: BTreeMap<MessageId, Vec<Vec<u8>>>,
    last_phase1: Vec<u8>,
    pub hashes: usize,
    proofs: Option<Proofs>,
    pub proved: usize,
}

/// What HASH_I and HASH_R are made of besides the identity (RFC 2409 section 5).
pub struct Proofs {
    hash: Hash,
    skeyid: SecretBytes,
    /// g^xi, g^xr.
    pub public: [Vec<u8>; 2],
    cookies: CookiePair,
    sai_b: Vec<u8>,
}

impl Proofs {
    /// From the four clear messages of a main mode.
    pub fn new(hash: Hash, skeyid: &str, clear: &[&Vec<u8>]) -> Proofs {
        let length = usize::from(u16::from_be_bytes([clear[0][30], clear[0][31]]));
        Proofs {
            hash,
            skeyid: secret(skeyid),
            public: [ke(clear[2]).expect("KE"), ke(clear[3]).expect("KE")],
            cookies: header(clear[2]).cookies,
            sai_b: clear[0][HEADER_LEN + 4..HEADER_LEN + length].to_vec(),
        }
    }

    /// Checks HASH_I or HASH_R, or the signature over it with the key of the certificate sent along.
    fn check(&self, side: Role, payloads: &[Payload]) {
        let [g_xi, g_xr] = &self.public;
        let (i, r) = (&self.cookies.initiator.0[..], &self.cookies.responder.0[..]);
        let (own, other, first, second) = match side {
            Role::Initiator => (g_xi, g_xr, i, r),
            Role::Responder => (g_xr, g_xi, r, i),
        };
        let id = payloads.iter().find(|payload| matches!(payload, Payload::Id(_))).expect("an ID");
        let id = &encode_payload(id, PayloadType::None)[4..];
        let digest = prf(self.hash, self.skeyid.expose(), &[own, other, first, second, &self.sai_b, id]);
        let certificate = payloads.iter().find_map(|payload| match payload {
            Payload::Cert(certificate) => Some(&certificate.data),
            _ => None,
        });
        for payload in payloads {
            match payload {
                Payload::Hash(received) => return assert!(digest.ct_eq(received), "HASH of the {side:?}"),
                Payload::Sig(signature) => {
                    let key = ike::trust::public_key(certificate.expect("a CERT")).expect("a public key");
                    let method = AuthMethod::RsaSignature;
                    let checked = default_provider().verify_proof(method, &key, digest.expose(), signature);
                    return checked.unwrap_or_else(|error| panic!("SIG of the {side:?}: {error}"));
                }
                _ => {}
            }
        }
        panic!("the {side:?} proves nothing");
    }
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
    pub fn new(hash_used: Hash, key: &str, skeyid_a: Option<&str>, g_xi: &[u8], g_xr: &[u8]) -> Observer {
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
            proofs: None,
            proved: 0,
        }
    }

    /// Also checks the proofs of messages 5 and 6.
    pub fn with_proofs(self, proofs: Proofs) -> Observer {
        Observer { proofs: Some(proofs), ..self }
    }

    pub fn open(&mut self, header: &Header, packet: &[u8], dialect: Dialect) -> Vec<Payload> {
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
        if let (ExchangeType::MainMode, Some(proofs)) = (header.exchange, &self.proofs) {
            proofs.check([Role::Initiator, Role::Responder][self.proved], &payloads);
            self.proved += 1;
        }
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

pub fn ke(packet: &[u8]) -> Option<Vec<u8>> {
    let message = Message::decode(packet, Rules::PHASE1_CLEAR).ok()?;
    message.payloads.into_iter().find_map(|payload| match payload {
        Payload::Ke(value) => Some(value),
        _ => None,
    })
}

/// Clear messages encode back to the same octets.
pub fn check_clear(packet: &[u8]) {
    let message = Message::decode(packet, Rules::PHASE1_CLEAR).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(hex::encode(message.encode()), hex::encode(packet));
}

pub fn header(packet: &[u8]) -> Header {
    Header::decode(packet).unwrap_or_else(|error| panic!("{error}"))
}
