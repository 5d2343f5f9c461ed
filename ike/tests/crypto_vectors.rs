//! Every phase 1 vector and every PUSH vector through the crypto of this build, on each provider compiled in.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use gdoi_proto::ids::{Cookie, CookiePair, MessageId};
use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::provider::{Provider, Verification};
use ike::crypto::skeyid::{Skeyid, exchange_iv, phase1_iv};
use ike::crypto::{Cipher, DhGroup, Hash};
use serde_json::Value;

#[test]
fn public_values_and_shared_secrets_of_every_vector() {
    for provider in providers() {
        for (name, vector) in phase1_vectors() {
            let group = number(&vector, "/negotiated/group");
            let group = DhGroup::from_number(group).expect("a known group");
            let at = format!("{name} on {}", provider.name());
            for (private, public, peer) in [("x_i", "g_xi", "g_xr"), ("x_r", "g_xr", "g_xi")] {
                let octets = |field: &str| octets(&vector, &format!("/dh/{field}"));
                let key = provider.dh_from_private(group, &octets(private)).expect(&at);
                assert_eq!(hex::encode(key.public()), hex::encode(octets(public)), "{public} of {at}");
                let shared = key.agree(&octets(peer)).expect(&at);
                assert_eq!(hex::encode(shared.expose()), hex::encode(octets("g_xy")), "g_xy of {at}");
            }
        }
    }
}

#[test]
fn skeyid_cipher_key_and_ivs_of_every_vector() {
    for (name, vector) in phase1_vectors() {
        let octets = |field: &str| octets(&vector, field);
        let hash = Hash::from_number(number(&vector, "/negotiated/hash")).expect("a known hash");
        let cipher =
            Cipher::with_key_len(usize::from(number(&vector, "/negotiated/key_bits")) / 8).expect("AES");
        let shared = SecretBytes::new(octets("/dh/g_xy"));
        let skeyid = match vector.get("psk") {
            Some(_) => {
                let key = SecretBytes::new(octets("/psk"));
                Skeyid::pre_shared(hash, &key, &octets("/ni_b"), &octets("/nr_b"))
            }
            None => Skeyid::signatures(hash, &octets("/ni_b"), &octets("/nr_b"), &shared),
        };
        let cookie = |field: &str| Cookie(octets(field).try_into().expect("8 octets"));
        let cookies = CookiePair { initiator: cookie("/cky_i"), responder: cookie("/cky_r") };
        let derived = skeyid.derive(&shared, cookies);
        let key = derived.cipher_key(hash, cipher);
        for (field, made) in [
            ("/skeyid", &skeyid.skeyid),
            ("/skeyid_d", &derived.d),
            ("/skeyid_a", &derived.a),
            ("/skeyid_e", &derived.e),
            ("/enc_key", key.key()),
        ] {
            assert_eq!(hex::encode(made.expose()), hex::encode(octets(field)), "{field} of {name}");
        }
        let first = phase1_iv(hash, &octets("/dh/g_xi"), &octets("/dh/g_xr"));
        assert_eq!(hex::encode(first), hex::encode(octets("/iv_first")), "{name}");
        let last: [u8; 16] = octets("/iv_last_phase1_block").try_into().expect("a block");
        for (message_id, iv) in vector["phase2_iv"].as_object().expect("an object") {
            let message_id = MessageId(u32::from_str_radix(message_id, 16).expect("hexadecimal"));
            assert_eq!(
                Some(hex::encode(exchange_iv(hash, &last, message_id)).as_str()),
                iv.as_str(),
                "{name}"
            );
        }
    }
}

#[test]
fn messages_of_every_vector_open_and_seal_again() {
    let mut checked = 0;
    for (name, vector) in phase1_vectors() {
        let cipher =
            Cipher::with_key_len(usize::from(number(&vector, "/negotiated/key_bits")) / 8).expect("AES");
        let key =
            CipherKey::new(cipher, SecretBytes::new(octets(&vector, "/enc_key"))).expect("the key fits");
        for list in ["/messages", "/informational"] {
            for message in vector.pointer(list).and_then(Value::as_array).expect("a list") {
                if message["encrypted"] != Value::Bool(true) {
                    continue;
                }
                let iv: [u8; 16] = octets(message, "/iv").try_into().expect("a block");
                let plain = octets(message, "/plaintext");
                let packet = octets(message, "/packet");
                let sealed = packet.get(28..).expect("a header");
                assert_eq!(hex::encode(key.encrypt(&iv, &plain)), hex::encode(sealed), "{name}");
                let opened = key.decrypt(&iv, sealed).expect("whole blocks");
                assert_eq!(opened.get(..plain.len()), Some(plain.as_slice()), "{name}");
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "only {checked} messages");
}

#[test]
fn push_signatures_of_every_vector_verify_and_altered_ones_do_not() {
    for provider in providers() {
        let mut bare_seen = false;
        for case in push_cases() {
            let at = format!("{} on {}", case["name"], provider.name());
            let bare = case["name"].as_str().expect("a name").contains("no-digestinfo");
            bare_seen |= bare;
            let good = Verification {
                algorithm: algorithm(&case),
                hash: SignatureHash::Sha256,
                public_key: octets(&case, "/sig_pubkey").into(),
                input: octets(&case, "/signature_input").into(),
                signature: octets(&case, "/signature").into(),
                or_input: None,
                bare_digest: bare,
            };
            assert_eq!(provider.verify(&good), Ok(()), "{at}");
            if bare {
                let strict = Verification { bare_digest: false, ..good.clone() };
                assert!(provider.verify(&strict).is_err(), "{at}: bare only where it is allowed");
            } else {
                let lenient = Verification { bare_digest: true, ..good.clone() };
                assert_eq!(provider.verify(&lenient), Ok(()), "{at}: DigestInfo stays good");
            }
            let mut input = good.input.to_vec();
            input[40] ^= 1;
            assert!(provider.verify(&Verification { input: input.into(), ..good.clone() }).is_err(), "{at}");
            for flipped in [0, good.signature.len() / 2, good.signature.len() - 1] {
                let mut signature = good.signature.to_vec();
                signature[flipped] ^= 1;
                let altered = Verification { signature: signature.into(), ..good.clone() };
                assert!(provider.verify(&altered).is_err(), "{at}: octet {flipped}");
            }
            for signature in [&good.signature[1..], &[&[0], &good.signature[..]].concat(), &[]] {
                let altered = Verification { signature: signature.to_vec().into(), ..good.clone() };
                assert!(provider.verify(&altered).is_err(), "{at}: {} octets", signature.len());
            }
        }
        assert!(bare_seen, "one vector is over a bare digest");
    }
}

#[test]
fn the_test_keys_sign_the_vectors_again() {
    let keys = read("gdoi-test-keys.json");
    for provider in providers() {
        for (algorithm, name, bits) in
            [(SignatureAlgorithm::Rsa, "rsa2048", 2048), (SignatureAlgorithm::Ecdsa256, "ecdsa_p256", 256)]
        {
            let pkcs8 = SecretBytes::new(octets(&keys, &format!("/{name}_pkcs8_der")));
            let signer = provider.signer(algorithm, &pkcs8).expect("a key");
            assert_eq!((signer.algorithm(), signer.key_bits()), (algorithm, bits));
            let public = octets(&keys, &format!("/{name}_spki_der"));
            assert_eq!(
                hex::encode(signer.public_key()),
                hex::encode(public),
                "{name} on {}",
                provider.name()
            );
            let text = format!("{signer:?}");
            assert!(text.len() < 40, "{text}");
        }
        let pkcs8 = SecretBytes::new(octets(&keys, "/rsa2048_pkcs8_der"));
        let signer = provider.signer(SignatureAlgorithm::Rsa, &pkcs8).expect("a key");
        // RSA signatures are the same each time, so the vector's own comes out.
        for case in push_cases() {
            let bare = case["name"].as_str().expect("a name").contains("no-digestinfo");
            if algorithm(&case) == SignatureAlgorithm::Rsa && !bare {
                let made =
                    signer.sign(SignatureHash::Sha256, &octets(&case, "/signature_input")).expect("signed");
                assert_eq!(hex::encode(made), hex::encode(octets(&case, "/signature")), "{}", case["name"]);
            }
        }
    }
}

fn algorithm(case: &Value) -> SignatureAlgorithm {
    match case["sig_alg"].as_str() {
        Some(name) if name.starts_with("ECDSA") => SignatureAlgorithm::Ecdsa256,
        _ => SignatureAlgorithm::Rsa,
    }
}

fn providers() -> Vec<Arc<dyn Provider>> {
    vec![
        #[cfg(feature = "aws-lc")]
        Arc::new(ike::crypto::provider::aws_lc::AwsLc),
        #[cfg(feature = "portable")]
        Arc::new(ike::crypto::provider::portable::Portable),
    ]
}

/// The vectors with an exchange in them: the parser's lists have none.
fn phase1_vectors() -> Vec<(String, Value)> {
    let mut found: Vec<_> = fs::read_dir(directory())
        .expect("the vectors")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
        .filter(|name| name.starts_with("phase1-"))
        .map(|name| (name.clone(), read(&name)))
        .filter(|(_, vector)| vector.get("dh").is_some())
        .collect();
    found.sort_by(|left, right| left.0.cmp(&right.0));
    assert!(found.len() >= 7, "only {} vectors", found.len());
    found
}

fn push_cases() -> Vec<Value> {
    let mut cases = read("gdoi-push.json")["cases"].as_array().expect("a list").clone();
    cases.retain(|case| case.get("signature").is_some());
    assert!(cases.len() >= 5, "only {} cases", cases.len());
    cases
}

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/vectors"))
}

fn read(name: &str) -> Value {
    let text = fs::read_to_string(directory().join(name)).expect("a vector file");
    serde_json::from_str(&text).expect("JSON")
}

fn octets(value: &Value, pointer: &str) -> Vec<u8> {
    let text = value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer}"));
    hex::decode(text).expect("hexadecimal")
}

fn number(value: &Value, pointer: &str) -> u16 {
    let number = value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer}"));
    u16::try_from(number).expect("16 bits")
}
