//! GROUPKEY-PULL, GROUPKEY-PUSH, acknowledgements and key packets, octet for octet.

use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{CookiePair, KekSpi, SeqNumber};
use gdoi_proto::message::{Chain, Dialect, Rules, encode_chain};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::{AckRequest, Carriage, GroupPolicy, KeySet, SignatureAlgorithm, SignatureHash};
use gdoi_proto::registry::{ExchangeType, IdType, PayloadType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::provider::{Verification, default_provider};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::io::Instant;
use ike::protect::OpenError;
use ike::protect::ack::{Ack, AckKey};
use ike::protect::phase2::Exchange;
use ike::protect::push::{self, KekCipherKey, PushContent, Unsigned};
use ike::sa::{IkeSa, Role, SaKeys};
use serde_json::Value;

use crate::support::{array, cookies, list, octets, secret, text, vectors};

fn sa(case: &Value) -> IkeSa {
    let key = secret(case, "enc_key");
    let cipher = Cipher::with_key_len(key.len()).expect("AES");
    let keys = SaKeys {
        skeyid_a: secret(case, "skeyid_a"),
        key: CipherKey::new(cipher, key).expect("the key fits"),
        last_phase1_block: array(case, "last_phase1_block"),
    };
    let suite =
        Suite { cipher, hash: Hash::Sha256, group: DhGroup::Modp2048, method: AuthMethod::PreSharedKey };
    let nobody = Identification { id_type: IdType::KeyId, protocol: 0, port: 0, data: vec![1] };
    let expires = Instant(0) + Duration::from_secs(60);
    IkeSa::new(cookies(case), suite, Role::Initiator, nobody.clone(), nobody, expires, Dialect::STRICT, keys)
}

fn pulls() -> Vec<Value> {
    let mut cases = list(&vectors("gdoi-pull"), "cases").to_vec();
    cases.extend_from_slice(list(&vectors("gdoi-iec61850"), "cases"));
    cases
}

#[test]
fn every_pull_message_opens_and_is_made_again_octet_for_octet() {
    let mut checked = 0;
    for case in pulls() {
        let sa = sa(&case);
        let (ni, nr) = (octets(&case, "ni_b"), octets(&case, "nr_b"));
        let mut exchange: Option<Exchange> = None;
        for (message, said) in list(&case, "messages").iter().zip([0, 1, 2, 2]) {
            let said: &[&[u8]] = &[&ni[..], &nr[..]][..said];
            let packet = octets(message, "message");
            let header = Header::decode(&packet).expect("a header");
            let exchange = exchange
                .get_or_insert_with(|| Exchange::new(&sa, ExchangeType::GroupkeyPull, header.message_id));
            let before = exchange.clone();
            let payloads = exchange.open(&sa, &header, &packet, said);
            let payloads =
                payloads.unwrap_or_else(|e| panic!("{} {}: {e}", case["name"], message["n"])).into_inner();
            let made = before.clone().seal(&sa, said, &payloads);
            assert_eq!(hex::encode(made), text(message, "message"), "{} {}", case["name"], message["n"]);
            let mut damaged = packet.clone();
            damaged[40] ^= 1;
            assert!(before.clone().open(&sa, &header, &damaged, said).is_err());
            checked += 1;
        }
    }
    assert_eq!(checked, 12);
}

fn policy_and_keys(case: &Value) -> (GroupPolicy, KeySet) {
    let sa = sa(case);
    let (ni, nr) = (octets(case, "ni_b"), octets(case, "nr_b"));
    let mut exchange: Option<Exchange> = None;
    let mut policy = None;
    let mut keys = None;
    for (message, said) in list(case, "messages").iter().zip([0, 1, 2, 2]) {
        let said: &[&[u8]] = &[&ni[..], &nr[..]][..said];
        let packet = octets(message, "message");
        let header = Header::decode(&packet).expect("a header");
        let exchange =
            exchange.get_or_insert_with(|| Exchange::new(&sa, ExchangeType::GroupkeyPull, header.message_id));
        for payload in exchange.open(&sa, &header, &packet, said).expect("it opens").into_inner() {
            match payload {
                Payload::GdoiSa(sa) => {
                    let read = GroupPolicy::read(&sa, Carriage::Pull).expect("a policy");
                    // Octets may differ where the vector states a default; the meaning may not.
                    assert_eq!(
                        GroupPolicy::read(&read.write(Carriage::Pull), Carriage::Pull),
                        Ok(read.clone())
                    );
                    policy = Some(read);
                }
                Payload::Kd(kd) => {
                    let policy = policy.as_ref().expect("the SA came before");
                    let read = KeySet::read(&kd, policy, Carriage::Pull).expect("keys");
                    assert_eq!(read.write(policy), kd, "{} KD", case["name"]);
                    keys = Some(read);
                }
                _ => {}
            }
        }
    }
    (policy.expect("an SA"), keys.expect("a KD"))
}

#[test]
fn policy_and_keys_of_the_full_pull_are_read_and_written_back() {
    let file = vectors("gdoi-pull");
    let case = &list(&file, "cases")[0];
    let (policy, keys) = policy_and_keys(case);
    let kek = policy.kek.expect("a rekey SA");
    assert_eq!(kek.signature, SignatureAlgorithm::Rsa);
    assert_eq!(kek.acknowledgement, Some(AckRequest::KekSha256));
    assert_eq!((policy.activation_delay, policy.deactivation_delay), (30, Some(60)));
    assert_eq!(policy.teks.len(), 2);
    assert_eq!(keys.teks.len(), 2);
    assert_eq!(keys.sender_ids.expect("SIDs").values.len(), 2);
    assert_eq!(keys.kek.expect("a KEK").key.len(), 16);
}

fn kek(case: &Value) -> KekCipherKey {
    let key = secret(case, "kek_key");
    let cipher = Cipher::with_key_len(key.len()).expect("AES");
    KekCipherKey {
        spi: KekSpi(array(case, "kek_spi")),
        key: CipherKey::new(cipher, key).expect("the key fits"),
        iv: array(case, "kek_iv"),
    }
}

fn pushes() -> Vec<Value> {
    let mut cases = list(&vectors("gdoi-push"), "cases").to_vec();
    cases.push(vectors("gdoi-lkh")["push"].clone());
    cases
}

fn verification(case: &Value, input: Bytes, signature: Bytes, bare_digest: bool) -> Verification {
    let algorithm = if text(case, "sig_alg").starts_with("ECDSA") {
        SignatureAlgorithm::Ecdsa256
    } else {
        SignatureAlgorithm::Rsa
    };
    Verification {
        algorithm,
        hash: SignatureHash::Sha256,
        public_key: octets(case, "sig_pubkey").into(),
        input,
        signature,
        or_input: None,
        bare_digest,
    }
}

#[test]
fn every_push_opens_verifies_and_is_made_again_octet_for_octet() {
    let provider = default_provider();
    for case in pushes() {
        let name = text(&case, "name");
        let kek = kek(&case);
        let packet = octets(&case, "message");
        let header = Header::decode(&packet).expect("a header");
        let opened = push::open(&kek, SeqNumber(0), &header, &packet, Dialect::STRICT);
        let opened = opened.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(hex::encode(&opened.signature_input), text(&case, "signature_input"), "{name}");
        assert_eq!(hex::encode(&opened.signature), text(&case, "signature"), "{name}");
        let bare = name.contains("no-digestinfo");
        let check = verification(&case, opened.signature_input.clone(), opened.signature.clone(), bare);
        provider.verify(&check).unwrap_or_else(|error| panic!("{name}: {error}"));
        if bare {
            let strict = Verification { bare_digest: false, ..check };
            assert!(provider.verify(&strict).is_err(), "without the compat word it is refused");
        }
        let signature = opened.signature.clone();
        let content: PushContent = opened.verified().into_inner();
        let made = Unsigned::new(kek.spi, &content, signature.len());
        assert_eq!(hex::encode(made.signature_input(false)), text(&case, "signature_input"), "{name}");
        assert_eq!(made.datagram_len(), packet.len(), "{name}");
        assert_eq!(hex::encode(made.seal(&kek, &signature)), text(&case, "message"), "{name}");
        if let Some((sa, kd)) = &content.keys {
            let policy =
                GroupPolicy::read(sa, Carriage::Push).unwrap_or_else(|error| panic!("{name}: {error}"));
            KeySet::read(kd, &policy, Carriage::Push).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let replayed = push::open(&kek, content.seq, &header, &packet, Dialect::STRICT);
        assert!(matches!(replayed, Err(OpenError::Sequence { .. })), "{name}: its number was used");
    }
}

#[test]
fn no_single_bit_of_a_push_can_change() {
    let provider = default_provider();
    let case =
        pushes().into_iter().find(|case| text(case, "name") == "push-ecdsa-new-tek").expect("the vector");
    let kek = kek(&case);
    let packet = octets(&case, "message");
    for bit in 0..packet.len() * 8 {
        let mut damaged = packet.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let Ok(header) = Header::decode(&damaged) else { continue };
        if KekSpi::from(header.cookies) != kek.spi {
            continue;
        }
        let Ok(opened) = push::open(&kek, SeqNumber(0), &header, &damaged, Dialect::STRICT) else { continue };
        let check = verification(&case, opened.signature_input, opened.signature, false);
        // What follows the SIG payload is padding and outside the signature; it carries nothing.
        let in_padding = bit / 8 >= packet.len() - 16;
        assert!(provider.verify(&check).is_err() || in_padding, "bit {bit}");
    }
}

#[test]
fn acknowledgements_of_all_four_types() {
    let requests =
        [AckRequest::KekSha256, AckRequest::LkhSha256, AckRequest::KekSha512, AckRequest::LkhSha512];
    let file = vectors("gdoi-ack");
    for (case, request) in list(&file, "cases").iter().zip(requests) {
        let spi = KekSpi(array(case, "kek_spi"));
        let base: SecretBytes = secret(case, "base_key");
        let key = AckKey::derive(request, &base, spi);
        let made = key.seal(spi, SeqNumber(1), "192.0.2.21".parse().expect("an address"));
        assert_eq!(hex::encode(&made), text(case, "message"), "{}", case["name"]);
        let ack = Ack::decode(&made).expect("an acknowledgement");
        assert_eq!((ack.spi, ack.seq), (spi, SeqNumber(1)));
        assert!(key.verify(ack.clone()).is_ok());
        let other = AckKey::derive_output_length(request, &base, spi);
        assert_eq!(other.verify(ack), Err(OpenError::Hash), "the other L is another key");
        let foreign = other.seal(spi, SeqNumber(1), "192.0.2.21".parse().expect("an address"));
        assert!(hex::encode(foreign).contains(text(case, "alternative_hash")), "{}", case["name"]);
    }
}

#[test]
fn key_packets_encode_back_to_the_same_octets() {
    let file = vectors("gdoi-kd");
    let mut checked = 0;
    for packet in list(&file, "key_packets") {
        let packet = octets(packet, "packet");
        let body = [&[0, 1, 0, 0][..], &packet].concat();
        let payload = [&[0, 0], &((body.len() + 4) as u16).to_be_bytes()[..], &body].concat();
        round_trip(PayloadType::Kd, &payload);
        checked += 1;
    }
    assert_eq!(checked, 11);
    round_trip(PayloadType::Kd, &octets(&file, "kd_payload_kek_tek_tek_sid"));
    let iec = vectors("gdoi-iec61850");
    round_trip(PayloadType::Kd, &octets(&iec, "kd_payload"));
    round_trip(PayloadType::Id, &octets(&iec, "id_payload"));
    for (_, body) in vectors("gdoi-lkh")["download_kd_payload_body_by_leaf"].as_object().expect("an object") {
        let body = hex::decode(body.as_str().expect("text")).expect("hexadecimal");
        let payload = [&[0, 0], &((body.len() + 4) as u16).to_be_bytes()[..], &body].concat();
        round_trip(PayloadType::Kd, &payload);
    }
}

fn round_trip(first: PayloadType, octets: &[u8]) {
    let chain = Chain::decode(first, octets, Rules::GROUP_OPENED).unwrap_or_else(|error| panic!("{error}"));
    let payloads: Vec<Payload> = chain.payloads.into_iter().map(|located| located.payload).collect();
    assert_eq!(hex::encode(encode_chain(&payloads).1), hex::encode(octets));
}

/// Keeps the import of the pair used by `support::cookies` honest.
#[test]
fn cookies_of_a_push_are_its_spi() {
    for case in pushes() {
        let packet = octets(&case, "message");
        let pair: CookiePair = Header::decode(&packet).expect("a header").cookies;
        assert_eq!(KekSpi::from(pair), KekSpi(array(&case, "kek_spi")));
    }
}
