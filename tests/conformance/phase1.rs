//! Phase 1 with pre-shared keys: keys, proofs and messages 5 and 6 octet for octet; everything else decoded and
//! encoded back; the informational exchanges after it.

use std::time::Duration;

use gdoi_proto::header::Header;
use gdoi_proto::message::{Chain, Message, Rules};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, IdType, PayloadType};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::io::Instant;
use ike::phase1::auth::{Facts, Proof};
use ike::protect::notify::{self, Informational};
use ike::protect::phase2::Exchange;
use ike::sa::{IkeSa, Role, SaKeys};
use serde_json::Value;

use crate::support::{array, cookies, list, octets, secret, text, vectors};

const PSK_FILES: [&str; 3] =
    ["phase1-psk-modp14-aes128-sha256", "phase1-psk-ecp256-aes256-sha384", "phase1-psk-modp14-aes256-sha1"];

fn suite(vector: &Value) -> Suite {
    let negotiated = &vector["negotiated"];
    let number = |field: &str| u16::try_from(negotiated[field].as_u64().expect("a number")).expect("16 bits");
    Suite {
        cipher: Cipher::with_key_len(usize::from(number("key_bits")) / 8).expect("AES"),
        hash: Hash::from_number(number("hash")).expect("a hash"),
        group: DhGroup::from_number(number("group")).expect("a group"),
        method: AuthMethod::from_number(number("auth_method")).expect("a method"),
    }
}

fn identity(body: &[u8]) -> Identification {
    let chain = [&[0, 0], &((body.len() + 4) as u16).to_be_bytes()[..], body].concat();
    let decoded = Chain::decode(PayloadType::Id, &chain, Rules::PHASE1_OPENED).expect("an ID");
    match decoded.payloads.into_iter().next().expect("one payload").payload {
        Payload::Id(id) => id,
        other => panic!("{other:?}"),
    }
}

fn proof(vector: &Value) -> Proof {
    let dh = &vector["dh"];
    Proof::new(&Facts {
        suite: suite(vector),
        cookies: cookies(vector),
        pre_shared_key: &secret(vector, "psk"),
        ni: &octets(vector, "ni_b"),
        nr: &octets(vector, "nr_b"),
        g_xi: &octets(dh, "g_xi"),
        g_xr: &octets(dh, "g_xr"),
        shared: &secret(dh, "g_xy"),
        sai_b: &octets(vector, "sai_b"),
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
fn proofs_and_keys_of_every_psk_vector() {
    for file in PSK_FILES {
        let vector = vectors(file);
        let proof = proof(&vector);
        assert_eq!(proof.key.key().expose(), octets(&vector, "enc_key"), "{file}");
        assert_eq!(proof.skeyid_a.expose(), octets(&vector, "skeyid_a"), "{file}");
        assert_eq!(proof.first_iv, array::<16>(&vector, "iv_first"), "{file}");
        let (idii, idir) = (identity(&octets(&vector, "idii_b")), identity(&octets(&vector, "idir_b")));
        assert_eq!(proof.hash_i(&idii).expose(), octets(&vector, "hash_i"), "{file}");
        assert_eq!(proof.hash_r(&idir).expose(), octets(&vector, "hash_r"), "{file}");
    }
}

#[test]
fn messages_5_and_6_are_made_octet_for_octet() {
    for file in PSK_FILES {
        let vector = vectors(file);
        let proof = proof(&vector);
        let messages = list(&vector, "messages");
        let (five, six) = (&messages[4], &messages[5]);
        let (idii, idir) = (identity(&octets(&vector, "idii_b")), identity(&octets(&vector, "idir_b")));
        let mut payloads =
            vec![Payload::Id(idii.clone()), Payload::Hash(proof.hash_i(&idii).expose().to_vec())];
        if list(five, "payloads").iter().any(|kind| kind.as_u64() == Some(11)) {
            payloads.push(notify::initial_contact(cookies(&vector)));
        }
        let (made, iv) = proof.seal(&array(five, "iv"), &payloads);
        assert_eq!(hex::encode(&made), text(five, "packet"), "{file} message 5");
        let payloads = [Payload::Id(idir.clone()), Payload::Hash(proof.hash_r(&idir).expose().to_vec())];
        let (made, last) = proof.seal(&iv, &payloads);
        assert_eq!(hex::encode(&made), text(six, "packet"), "{file} message 6");
        assert_eq!(last, array::<16>(&vector, "iv_last_phase1_block"), "{file}");

        let packet = octets(five, "packet");
        let opened = proof.open(&array(five, "iv"), &Header::decode(&packet).expect("a header"), &packet);
        let opened = opened.expect("message 5 opens");
        assert!(proof.hash_i(&opened.id).ct_eq(&opened.hash), "{file}");
    }
}

#[test]
fn clear_messages_encode_back_to_the_same_octets() {
    let mut checked = 0;
    for file in PSK_FILES {
        for message in
            list(&vectors(file), "messages").iter().filter(|m| m["encrypted"] == Value::Bool(false))
        {
            let packet = octets(message, "packet");
            let decoded = Message::decode(&packet, Rules::PHASE1_CLEAR).expect("a message");
            assert_eq!(
                hex::encode(decoded.encode()),
                hex::encode(&packet),
                "{file} message {}",
                message["n"]
            );
            checked += 1;
        }
    }
    assert_eq!(checked, 12);
}

#[test]
fn informational_messages_are_made_and_opened_octet_for_octet() {
    for file in PSK_FILES {
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
    for file in PSK_FILES {
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
