//! Each provider against the other on random inputs: every group, every kind of signature.
#![cfg(all(feature = "aws-lc", feature = "portable"))]

use ike::crypto::DhGroup;
use ike::crypto::provider::aws_lc::AwsLc;
use ike::crypto::provider::portable::Portable;
use ike::crypto::provider::{CryptoError, Done, Job, Provider, Verification, run};

use gdoi_proto::policy::SignatureAlgorithm as A;
use gdoi_proto::policy::SignatureHash as H;
use gdoi_proto::secret::SecretBytes;

const BOTH: [&dyn Provider; 2] = [&AwsLc, &Portable];

const KINDS: [(A, H, u16); 6] = [
    (A::Rsa, H::Sha256, 2048),
    (A::Rsa, H::Sha384, 3072),
    (A::Rsa, H::Sha512, 2048),
    (A::Ecdsa256, H::Sha256, 256),
    (A::Ecdsa384, H::Sha384, 384),
    (A::Ecdsa521, H::Sha512, 521),
];

#[test]
fn each_agrees_with_the_other_in_every_group() {
    for group in DhGroup::ALL {
        let rounds = if group.number() > 16 && group.number() < 19 { 1 } else { 8 };
        for _ in 0..rounds {
            let (ours, theirs) =
                (AwsLc.dh_generate(group).expect("a key"), Portable.dh_generate(group).expect("a key"));
            let (public_ours, public_theirs) = (ours.public().to_vec(), theirs.public().to_vec());
            let (left, right) = (ours.agree(&public_theirs), theirs.agree(&public_ours));
            let right = right.expect("agreed");
            assert!(left.expect("agreed").ct_eq(right.expose()), "group {}", group.number());
        }
    }
}

#[test]
fn the_same_private_value_has_the_same_public_one() {
    for group in DhGroup::ALL {
        for _ in 0..4 {
            let mut private = random(32);
            if (19..=21).contains(&group.number()) {
                // A scalar of the field's length, below every order.
                let mut padded = vec![0; group.shared_len() - 32];
                private[0] &= 0x7f;
                padded.append(&mut private);
                private = padded;
            }
            let public = |provider: &dyn Provider| {
                provider.dh_from_private(group, &private).map(|key| key.public().to_vec())
            };
            assert_eq!(public(&AwsLc), public(&Portable), "group {}", group.number());
        }
    }
}

#[test]
fn each_verifies_what_the_other_signed_with_either_ones_key() {
    for maker in BOTH {
        for (algorithm, hash, bits) in KINDS {
            let pkcs8 = match maker.generate_signing_key(algorithm, bits) {
                Ok(pkcs8) => pkcs8,
                Err(CryptoError::Unsupported { provider: "portable", .. }) if algorithm == A::Rsa => continue,
                Err(error) => panic!("{error}"),
            };
            let (ours, theirs) = (signer(&AwsLc, algorithm, &pkcs8), signer(&Portable, algorithm, &pkcs8));
            assert_eq!(hex::encode(ours.public_key()), hex::encode(theirs.public_key()), "{algorithm:?}");
            assert_eq!((ours.key_bits(), theirs.key_bits()), (bits, bits));
            for signer in [ours, theirs] {
                for len in [0, 1, 63, 500, 1400] {
                    let input = random(len);
                    let signature = signer.sign(hash, &input).expect("signed");
                    let check = Verification {
                        algorithm,
                        hash,
                        public_key: signer.public_key().to_vec().into(),
                        input: input.into(),
                        signature: signature.into(),
                        or_input: None,
                        bare_digest: false,
                    };
                    for verifier in BOTH {
                        let at = format!("{algorithm:?} {hash:?}, {len} octets, on {}", verifier.name());
                        assert_eq!(verifier.verify(&check), Ok(()), "{at}");
                        let mut altered = check.signature.to_vec();
                        let place = usize::from(random(1)[0]) % altered.len();
                        altered[place] ^= 1 << (random(1)[0] % 8);
                        let altered = Verification { signature: altered.into(), ..check.clone() };
                        assert_eq!(
                            verifier.verify(&altered),
                            Err(CryptoError::Signature),
                            "{at}: octet {place}"
                        );
                        let other = Verification { input: random(len + 1).into(), ..check.clone() };
                        assert_eq!(verifier.verify(&other), Err(CryptoError::Signature), "{at}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_push_signed_over_the_bare_digest_verifies_where_that_is_tolerated_and_nowhere_else() {
    let pkcs8 = AwsLc.generate_signing_key(A::Rsa, 2048).expect("a key");
    let ours = signer(&AwsLc, A::Rsa, &pkcs8);
    for hash in [H::Sha256, H::Sha384, H::Sha512] {
        let check = Verification {
            algorithm: A::Rsa,
            hash,
            public_key: ours.public_key().to_vec().into(),
            input: b"a push".as_slice().into(),
            signature: ours.sign_bare(hash, b"a push").expect("signed").into(),
            or_input: None,
            bare_digest: true,
        };
        for verifier in BOTH {
            assert_eq!(verifier.verify(&check), Ok(()), "{hash:?} on {}", verifier.name());
            let strict = Verification { bare_digest: false, ..check.clone() };
            assert_eq!(verifier.verify(&strict), Err(CryptoError::Signature));
            let second = Verification {
                input: b"?".as_slice().into(),
                or_input: Some(check.input.clone()),
                ..check.clone()
            };
            let tried = run(verifier, Job::Verify(second));
            assert!(matches!(tried, Done::Verified(Ok(()))), "the second form is tried");
        }
    }
    let theirs = signer(&Portable, A::Rsa, &pkcs8);
    assert!(matches!(theirs.sign_bare(H::Sha256, b"a push"), Err(CryptoError::Unsupported { .. })));
}

#[test]
fn both_refuse_the_same_keys() {
    let pkcs8 = AwsLc.generate_signing_key(A::Ecdsa256, 256).expect("a key");
    let public = signer(&AwsLc, A::Ecdsa256, &pkcs8).public_key().to_vec();
    let rsa = AwsLc.generate_signing_key(A::Rsa, 2048).expect("a key");
    let rsa_public = signer(&AwsLc, A::Rsa, &rsa).public_key().to_vec();
    for provider in BOTH {
        let verify = |algorithm, hash, public_key: &[u8]| {
            provider.verify(&Verification {
                algorithm,
                hash,
                public_key: public_key.to_vec().into(),
                input: b"input".as_slice().into(),
                signature: vec![1; 64].into(),
                or_input: None,
                bare_digest: false,
            })
        };
        let name = provider.name();
        let key_error = |result: Result<(), CryptoError>| matches!(result, Err(CryptoError::Key(_)));
        for len in 0..public.len() {
            assert!(key_error(verify(A::Ecdsa256, H::Sha256, &public[..len])), "{name}: {len} octets");
        }
        assert!(key_error(verify(A::Ecdsa256, H::Sha256, &[public.as_slice(), &[0]].concat())), "{name}");
        // The bare point, and the bare RSAPublicKey, which libraries also read when they are let to.
        assert!(key_error(verify(A::Ecdsa256, H::Sha256, &public[26..])), "{name}");
        assert!(key_error(verify(A::Rsa, H::Sha256, &rsa_public[24..])), "{name}");
        assert!(key_error(verify(A::Rsa, H::Sha256, &public)), "{name}");
        assert!(key_error(verify(A::Ecdsa384, H::Sha384, &public)), "{name}");
        assert!(key_error(verify(A::Ecdsa256, H::Sha256, &rsa_public)), "{name}");
        assert!(key_error(verify(A::Ecdsa256, H::Sha384, &public)), "{name}: another hash");
        let sha1 = verify(A::Rsa, H::Sha1, &rsa_public);
        assert!(matches!(sha1, Err(CryptoError::Unsupported { .. })), "{name}: {sha1:?}");
        for (algorithm, wrong) in
            [(A::Ecdsa256, &rsa), (A::Rsa, &pkcs8), (A::Ecdsa384, &pkcs8), (A::Ecdsa521, &pkcs8)]
        {
            assert!(
                matches!(provider.signer(algorithm, wrong), Err(CryptoError::Key(_))),
                "{name} {algorithm:?}"
            );
        }
        assert!(
            matches!(provider.signer(A::Rsa, &SecretBytes::copy(b"not DER")), Err(CryptoError::Key(_))),
            "{name}"
        );
    }
}

#[test]
fn portable_says_what_to_do_about_rsa_keys_it_cannot_make() {
    let error = Portable.generate_signing_key(A::Rsa, 2048).expect_err("no RSA keys");
    assert_eq!(error.to_string(), "portable cannot make RSA keys: give this key server a signing-key file");
}

fn signer(
    provider: &dyn Provider,
    algorithm: A,
    pkcs8: &SecretBytes,
) -> std::sync::Arc<dyn ike::crypto::provider::Signer> {
    provider.signer(algorithm, pkcs8).unwrap_or_else(|error| panic!("{}: {error}", provider.name()))
}

fn random(len: usize) -> Vec<u8> {
    let mut octets = vec![0; len];
    AwsLc.fill(&mut octets);
    octets
}
