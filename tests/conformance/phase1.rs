//! Phase 1 vectors: keys, proofs, signatures and every message octet for octet; the informational exchanges after it.

use std::time::Duration;

use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::message::{Chain, Message, Rules};
use gdoi_proto::payload::{Identification, Payload, Sa};
use gdoi_proto::registry::{ExchangeType, IdType, PayloadType};
use ike::crypto::provider::default_provider;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::io::Instant;
use ike::phase1::auth::{Basis, Facts, Proof};
use ike::phase1::messages::{self, Extras};
use ike::protect::notify::{self, Informational};
use ike::protect::phase2::Exchange;
use ike::sa::{IkeSa, Role, SaKeys};
use serde_json::Value;

use crate::support::{array, cookies, list, octets, secret, text, vectors};

const FILES: [&str; 7] = [
    "phase1-psk-modp14-aes128-sha256",
    "phase1-psk-ecp256-aes256-sha384",
    "phase1-psk-modp14-aes256-sha1",
    "phase1-rsasig-modp14-aes128-sha256",
    "phase1-ecdsa256-ecp256-aes128-sha256",
    "phase1-ecdsa521-ecp384-aes256-sha256",
    "phase1-aggr-psk-modp14-aes128-sha256",
];

pub fn suite(vector: &Value) -> Suite {
    let negotiated = &vector["negotiated"];
    let number = |field: &str| u16::try_from(negotiated[field].as_u64().expect("a number")).expect("16 bits");
    Suite {
        cipher: Cipher::with_key_len(usize::from(number("key_bits")) / 8).expect("AES"),
        hash: Hash::from_number(number("hash")).expect("a hash"),
        group: DhGroup::from_number(number("group")).expect("a group"),
        method: AuthMethod::from_number(number("auth_method")).expect("a method"),
    }
}

pub fn identity(body: &[u8]) -> Identification {
    let chain = [&[0, 0], &((body.len() + 4) as u16).to_be_bytes()[..], body].concat();
    let decoded = Chain::decode(PayloadType::Id, &chain, Rules::PHASE1_OPENED).expect("an ID");
    match decoded.payloads.into_iter().next().expect("one payload").payload {
        Payload::Id(id) => id,
        other => panic!("{other:?}"),
    }
}

fn exchange(vector: &Value) -> ExchangeType {
    match text(vector, "exchange") {
        "main" => ExchangeType::MainMode,
        "aggressive" => ExchangeType::Aggressive,
        other => panic!("exchange {other}"),
    }
}

fn proof(vector: &Value) -> Proof {
    let dh = &vector["dh"];
    let suite = suite(vector);
    let psk = vector["psk"].as_str().map(|_| secret(vector, "psk"));
    Proof::new(&Facts {
        exchange: exchange(vector),
        suite,
        cookies: cookies(vector),
        basis: psk.as_ref().map_or(Basis::Signatures, Basis::PreSharedKey),
        ni: &octets(vector, "ni_b"),
        nr: &octets(vector, "nr_b"),
        g_xi: &octets(dh, "g_xi"),
        g_xr: &octets(dh, "g_xr"),
        shared: &secret(dh, "g_xy"),
        sai_b: &octets(vector, "sai_b"),
        double_hash: false,
    })
}

fn established(vector: &Value) -> IkeSa {
    let proof = proof(vector);
    let keys = SaKeys {
        skeyid_a: proof.skeyid_a.clone(),
        key: proof.key.clone(),
        last_phase1_block: array(vector, "iv_last_phase1_block"),
    };
    let nobody = Identification { id_type: IdType::KeyId, protocol: 0, port: 0, data: vec![1] };
    IkeSa::new(
        cookies(vector),
        suite(vector),
        Role::Responder,
        nobody.clone(),
        nobody,
        Instant(0) + Duration::from_secs(60),
        gdoi_proto::message::Dialect::STRICT,
        keys,
    )
}

#[test]
fn proofs_and_keys_of_every_vector() {
    for file in FILES {
        let vector = vectors(file);
        let proof = proof(&vector);
        assert_eq!(proof.key.key().expose(), octets(&vector, "enc_key"), "{file}");
        assert_eq!(proof.skeyid_a.expose(), octets(&vector, "skeyid_a"), "{file}");
        assert_eq!(proof.first_iv, array::<16>(&vector, "iv_first"), "{file}");
        for (side, id, hash) in [(Role::Initiator, "idii_b", "hash_i"), (Role::Responder, "idir_b", "hash_r")]
        {
            let id = identity(&octets(&vector, id));
            assert_eq!(proof.hash(side, &id).expose(), octets(&vector, hash), "{file} {hash}");
            assert_eq!(proof.signed(side, &id).expose(), octets(&vector, hash), "{file} {hash}");
        }
    }
}

/// SIG_I or SIG_R as this build makes it where the signature is deterministic, else the vector's after a check of both.
fn signature(vector: &Value, side: Role) -> Vec<u8> {
    let (key, hash, expected) = match side {
        Role::Initiator => ("initiator_key_pkcs8", "hash_i", "sig_i"),
        Role::Responder => ("responder_key_pkcs8", "hash_r", "sig_r"),
    };
    let (hash, expected) = (octets(vector, hash), octets(vector, expected));
    let (provider, method) = (default_provider(), suite(vector).method);
    let signer = provider.proof_signer(method, &secret(&vector["credentials"], key)).expect("a key");
    let made = signer.sign(&hash).expect("a signature");
    for signature in [&made, &expected] {
        provider.verify_proof(method, signer.public_key(), &hash, signature).expect("it verifies");
    }
    if method == AuthMethod::RsaSignature { made } else { expected }
}

/// The proof payload of one side.
fn proof_payload(vector: &Value, side: Role, id: &Identification) -> Payload {
    match suite(vector).method {
        AuthMethod::PreSharedKey => Payload::Hash(proof(vector).hash(side, id).expose().to_vec()),
        _ => Payload::Sig(signature(vector, side)),
    }
}

/// Certificates of a side, and the authority asked for; empty with pre-shared keys.
fn certificate(vector: &Value, field: &str) -> Vec<Vec<u8>> {
    vector["credentials"][field].as_str().map(|_| octets(&vector["credentials"], field)).into_iter().collect()
}

/// NAT detection hashes and vendor IDs of a message: what this side adds to the payloads of phase 1 itself.
fn extras(payloads: &[Payload]) -> Extras {
    let mut extras = Extras::default();
    for payload in payloads {
        match payload {
            Payload::NatD(hash) => extras.nat_d.push(hash.clone()),
            Payload::VendorId(vid) => extras.vendors.push(vid.clone()),
            _ => {}
        }
    }
    extras
}

fn sa_of(payloads: &[Payload]) -> Sa {
    match payloads.first() {
        Some(Payload::Sa(sa)) => sa.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_message_of_every_vector_is_made_octet_for_octet() {
    let mut made = 0;
    for file in FILES {
        let vector = vectors(file);
        let (proof, cookies) = (proof(&vector), cookies(&vector));
        let (idii, idir) = (identity(&octets(&vector, "idii_b")), identity(&octets(&vector, "idir_b")));
        let (g_xi, g_xr) = (octets(&vector["dh"], "g_xi"), octets(&vector["dh"], "g_xr"));
        let (ni, nr) = (octets(&vector, "ni_b"), octets(&vector, "nr_b"));
        let (cert_i, cert_r) = (certificate(&vector, "initiator"), certificate(&vector, "responder"));
        let authority = certificate(&vector, "ca_subject");
        let (proof_i, proof_r) =
            (proof_payload(&vector, Role::Initiator, &idii), proof_payload(&vector, Role::Responder, &idir));
        let mut iv = proof.first_iv;
        let clear_cookies = |n: usize| match n {
            1 => CookiePair { responder: Cookie::ZERO, ..cookies },
            _ => cookies,
        };
        for (message, n) in list(&vector, "messages").iter().zip(1..) {
            let packet = octets(message, "packet");
            let encrypted = message["encrypted"] == Value::Bool(true);
            let held = match encrypted {
                true => {
                    let plain = octets(message, "plaintext");
                    let first = Header::decode(&packet).expect("a header").next;
                    let chain = Chain::decode(first, &plain, Rules::PHASE1_OPENED).expect("a chain");
                    chain.payloads.into_iter().map(|located| located.payload).collect()
                }
                false => Message::decode(&packet, Rules::PHASE1_CLEAR).expect("a message").payloads,
            };
            let extras = extras(&held);
            let notifies = held
                .iter()
                .any(|payload| payload.payload_type() == PayloadType::Notify)
                .then(|| notify::initial_contact(cookies));
            let notifies: Vec<Payload> = notifies.into_iter().collect();
            let payloads = match (exchange(&vector), n) {
                (ExchangeType::MainMode, 1 | 2) => messages::offer(sa_of(&held), &extras),
                (ExchangeType::MainMode, 3) => messages::key_exchange(&g_xi, &ni, &[], &extras),
                (ExchangeType::MainMode, 4) => messages::key_exchange(&g_xr, &nr, &authority, &extras),
                (ExchangeType::MainMode, 5) => {
                    messages::authentication(&idii, &cert_i, &authority, proof_i.clone(), notifies)
                }
                (ExchangeType::MainMode, 6) => {
                    messages::authentication(&idir, &cert_r, &[], proof_r.clone(), notifies)
                }
                (ExchangeType::Aggressive, 1) => {
                    messages::aggressive_first(sa_of(&held), (&g_xi, &ni), &idii, &[], &extras)
                }
                (ExchangeType::Aggressive, 2) => messages::aggressive_second(
                    sa_of(&held),
                    (&g_xr, &nr),
                    &idir,
                    (&[], &[]),
                    &extras,
                    proof_r.clone(),
                ),
                (ExchangeType::Aggressive, 3) => messages::aggressive_third(&[], &extras, proof_i.clone()),
                other => panic!("{other:?}"),
            };
            let octets = match encrypted {
                true => {
                    assert_eq!(iv, array::<16>(message, "iv"), "{file} IV of message {n}");
                    let (octets, next) = proof.seal(&iv, &payloads);
                    let opened = proof.open(&iv, &Header::decode(&packet).expect("a header"), &packet);
                    let (mut heard, last) = opened.expect("it opens");
                    assert_eq!(last, next, "{file} message {n}");
                    let side = if n % 2 == 1 { Role::Initiator } else { Role::Responder };
                    let (id, certificates) =
                        if side == Role::Initiator { (&idii, &cert_i) } else { (&idir, &cert_r) };
                    assert_eq!(heard.id.as_ref().unwrap_or(id), id, "{file} message {n}");
                    assert_eq!(&heard.certificates, certificates, "{file} message {n}");
                    assert!(heard.proof(suite(&vector).method).is_some(), "{file} message {n}");
                    iv = next;
                    octets
                }
                false => messages::clear(exchange(&vector), clear_cookies(n), payloads),
            };
            assert_eq!(hex::encode(octets), hex::encode(&packet), "{file} message {n}");
            made += 1;
        }
        assert_eq!(iv, array::<16>(&vector, "iv_last_phase1_block"), "{file}");
    }
    assert_eq!(made, 6 * 6 + 3);
}

#[test]
fn informational_messages_are_made_and_opened_octet_for_octet() {
    for file in FILES {
        let vector = vectors(file);
        let mut sa = established(&vector);
        for message in list(&vector, "informational") {
            let packet = octets(message, "packet");
            let header = Header::decode(&packet).expect("a header");
            let mut exchange = Exchange::new(&sa, ExchangeType::Informational, header.message_id);
            let payloads = exchange.clone().open(&sa, &header, &packet, &[]).expect("it opens").into_inner();
            assert_eq!(hex::encode(exchange.seal(&sa, &[], &payloads)), text(message, "packet"), "{file}");
            let said = notify::open(&mut sa, &header, &packet).expect("it opens").into_inner();
            assert_eq!(said.len(), 1, "{file}");
            assert!(notify::open(&mut sa, &header, &packet).is_err(), "a replay is refused");
        }
    }
}

#[test]
fn every_padding_of_foreign_peers_is_accepted() {
    for file in FILES {
        let vector = vectors(file);
        let variants = vector["padding_variants"].as_object().expect("an object");
        assert!(!variants.is_empty());
        for (name, packet) in variants {
            let packet = hex::decode(packet.as_str().expect("text")).expect("hexadecimal");
            let header = Header::decode(&packet).expect("a header");
            let said = notify::open(&mut established(&vector), &header, &packet);
            let said = said.unwrap_or_else(|error| panic!("{file} {name}: {error}")).into_inner();
            assert!(matches!(said[..], [Informational::RUThere(0x1234_5678)]), "{file} {name}: {said:?}");
        }
    }
}
