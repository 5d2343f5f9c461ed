//! Signatures of phase 1: the vectors' keys on their hashes, octet for octet where a signature is deterministic, each
//! provider against the other, and what must not verify.
#![cfg(all(feature = "aws-lc", feature = "portable"))]

use gdoi_proto::secret::SecretBytes;
use ike::crypto::AuthMethod;
use ike::crypto::provider::aws_lc::AwsLc;
use ike::crypto::provider::portable::Portable;
use ike::crypto::provider::{CryptoError, Provider};
use serde_json::Value;

const BOTH: [&dyn Provider; 2] = [&AwsLc, &Portable];

const FILES: [(&str, AuthMethod); 3] = [
    ("rsasig-modp14-aes128-sha256", AuthMethod::RsaSignature),
    ("ecdsa256-ecp256-aes128-sha256", AuthMethod::Ecdsa256),
    ("ecdsa521-ecp384-aes256-sha256", AuthMethod::Ecdsa521),
];

fn vector(name: &str) -> Value {
    let path = format!("{}/../tests/data/vectors/phase1-{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("the vector")).expect("JSON")
}

fn octets(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(value[field].as_str().expect("text")).expect("hexadecimal")
}

/// Key, hash and signature of one side of a vector.
fn side(vector: &Value, side: char) -> (SecretBytes, Vec<u8>, Vec<u8>) {
    let key = if side == 'i' { "initiator_key_pkcs8" } else { "responder_key_pkcs8" };
    let key = SecretBytes::new(octets(&vector["credentials"], key));
    (key, octets(vector, &format!("hash_{side}")), octets(vector, &format!("sig_{side}")))
}

#[test]
fn the_vectors_are_signed_octet_for_octet_and_verified_by_both() {
    for (name, method) in FILES {
        let vector = vector(name);
        for which in ['i', 'r'] {
            let (key, hash, expected) = side(&vector, which);
            let aws = AwsLc.proof_signer(method, &key).expect("a key");
            let made = aws.sign(&hash).expect("a signature");
            if method == AuthMethod::RsaSignature {
                assert_eq!(made, expected, "{name} {which}");
            } else {
                // RFC 6979 makes the nonce of the vectors, and the portable provider's.
                let portable = Portable.proof_signer(method, &key).expect("a key");
                assert_eq!(portable.sign(&hash).expect("a signature"), expected, "{name} {which}");
                assert_eq!(portable.public_key(), aws.public_key(), "{name} {which}");
            }
            for provider in BOTH {
                for signature in [&made, &expected] {
                    assert_eq!(
                        provider.verify_proof(method, aws.public_key(), &hash, signature),
                        Ok(()),
                        "{name} {which} {}",
                        provider.name()
                    );
                }
            }
        }
    }
}

#[test]
fn every_changed_bit_and_every_other_length_is_refused_by_both() {
    for (name, method) in FILES {
        let vector = vector(name);
        let (key, hash, good) = side(&vector, 'i');
        let public = AwsLc.proof_signer(method, &key).expect("a key").public_key().to_vec();
        let other_hash = octets(&vector, "hash_r");
        for provider in BOTH {
            let check = |hash: &[u8], signature: &[u8]| {
                assert!(
                    provider.verify_proof(method, &public, hash, signature).is_err(),
                    "{name} {}",
                    provider.name()
                );
            };
            check(&other_hash, &good);
            check(&hash[1..], &good);
            check(&hash, &[]);
            check(&hash, &good[1..]);
            check(&hash, &[good.as_slice(), &[0]].concat());
            check(&hash, &vec![0; good.len()]);
            check(&hash, &vec![0xff; good.len()]);
            for at in [0, 1, good.len() / 2, good.len() - 1] {
                let mut wrong = good.clone();
                wrong[at] ^= 1;
                check(&hash, &wrong);
            }
        }
    }
}

#[test]
fn rsa_with_a_digest_info_is_not_a_phase_1_signature() {
    let vector = vector(FILES[0].0);
    let (key, hash, _) = side(&vector, 'i');
    let signer = AwsLc.proof_signer(AuthMethod::RsaSignature, &key).expect("a key");
    let info = hex::decode("3031300d060960864801650304020105000420").expect("SHA-256");
    let prefixed = signer.sign(&[info, hash.clone()].concat()).expect("a signature");
    for provider in BOTH {
        let verified = provider.verify_proof(AuthMethod::RsaSignature, signer.public_key(), &hash, &prefixed);
        assert_eq!(verified, Err(CryptoError::Signature), "{}", provider.name());
    }
}

#[test]
fn a_key_serves_its_own_method_only() {
    let all = [AuthMethod::RsaSignature, AuthMethod::Ecdsa256, AuthMethod::Ecdsa384, AuthMethod::Ecdsa521];
    for (name, method) in FILES {
        let (key, hash, good) = side(&vector(name), 'i');
        let public = AwsLc.proof_signer(method, &key).expect("a key").public_key().to_vec();
        for other in all.into_iter().filter(|other| *other != method) {
            for provider in BOTH {
                assert!(provider.proof_signer(other, &key).is_err(), "{name} {other:?}");
                assert!(provider.verify_proof(other, &public, &hash, &good).is_err(), "{name} {other:?}");
            }
        }
        assert!(AwsLc.proof_signer(AuthMethod::PreSharedKey, &key).is_err());
    }
}

#[test]
fn the_portable_provider_says_what_to_use_instead_of_rsa() {
    let (key, _, _) = side(&vector(FILES[0].0), 'i');
    let error = Portable.proof_signer(AuthMethod::RsaSignature, &key).expect_err("no RSA");
    assert_eq!(
        error.to_string(),
        "portable cannot sign phase 1 with RSA: use an ECDSA certificate here, or the provider aws-lc"
    );
}
