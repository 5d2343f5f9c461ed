//! What a provider must refuse and keep in Diffie-Hellman, on each provider compiled in.

use std::sync::Arc;

use ike::crypto::DhGroup;
use ike::crypto::provider::{CryptoError, Done, Job, Provider, run};

const CURVES: [DhGroup; 3] = [DhGroup::Ecp256, DhGroup::Ecp384, DhGroup::Ecp521];

#[test]
fn two_sides_agree_in_every_group_and_lengths_are_exact() {
    for provider in providers() {
        for group in DhGroup::ALL {
            let at = format!("group {} on {}", group.number(), provider.name());
            let ours = provider.dh_generate(group).expect(&at);
            let theirs = provider.dh_generate(group).expect(&at);
            let (public_ours, public_theirs) = (ours.public().to_vec(), theirs.public().to_vec());
            assert_eq!(public_ours.len(), group.public_len(), "{at}");
            assert_ne!(public_ours, public_theirs, "{at}");
            let shared = ours.agree(&public_theirs).expect(&at);
            assert_eq!(shared.len(), group.shared_len(), "{at}");
            assert!(shared.ct_eq(theirs.agree(&public_ours).expect(&at).expose()), "{at}");
        }
    }
}

#[test]
fn a_secret_that_begins_with_zeros_keeps_them() {
    for provider in providers() {
        for group in [DhGroup::Modp2048, DhGroup::Ecp256] {
            let public = provider.dh_generate(group).expect("a key").public().to_vec();
            // One in 256 does.
            let shared = loop {
                let ours = provider.dh_generate(group).expect("a key");
                let shared = ours.agree(&public).expect("a secret");
                if shared.expose().first() == Some(&0) {
                    break shared;
                }
            };
            assert_eq!(shared.len(), group.shared_len(), "group {} on {}", group.number(), provider.name());
        }
    }
}

#[test]
fn a_public_value_of_another_length_is_refused() {
    for provider in providers() {
        for group in DhGroup::ALL {
            let good = provider.dh_generate(group).expect("a key").public().to_vec();
            let longer = [&[0], good.as_slice()].concat();
            let with_lead = [&[4], good.as_slice()].concat();
            for peer in [&good[1..], &good[..good.len() - 1], &longer, &with_lead, &[]] {
                refused(provider.as_ref(), group, peer);
            }
        }
    }
}

#[test]
fn modp_values_0_1_p_minus_1_p_and_all_ones_are_refused_and_2_and_p_minus_2_taken() {
    for provider in providers() {
        for group in DhGroup::ALL.into_iter().filter(|group| group.number() < 19) {
            let small = |value: u8| {
                let mut octets = vec![0; group.public_len()];
                *octets.last_mut().expect("an octet") = value;
                octets
            };
            let p_minus = |value: u8| {
                let mut octets = prime(provider.as_ref(), group);
                *octets.last_mut().expect("an octet") -= value;
                octets
            };
            for peer in [small(0), small(1), p_minus(1), p_minus(0), vec![0xff; group.public_len()]] {
                refused(provider.as_ref(), group, &peer);
            }
            for peer in [small(2), p_minus(2)] {
                let key = provider.dh_generate(group).expect("a key");
                assert!(key.agree(&peer).is_ok(), "group {} on {}", group.number(), provider.name());
            }
        }
    }
}

#[test]
fn points_off_their_curve_and_coordinates_above_the_field_are_refused() {
    for provider in providers() {
        for group in CURVES {
            let good = provider.dh_generate(group).expect("a key").public().to_vec();
            let half = group.public_len() / 2;
            let mut off = good.clone();
            off[group.public_len() - 1] ^= 1;
            let mut beyond = good.clone();
            beyond[..half].fill(0xff);
            let swapped = [&good[half..], &good[..half]].concat();
            for peer in [off, beyond, swapped, vec![0; group.public_len()], vec![0xff; group.public_len()]] {
                refused(provider.as_ref(), group, &peer);
            }
        }
    }
}

#[test]
fn curve25519_values_of_small_order_are_refused() {
    // 0, 1, p - 1, p, p + 1 and the two of order 8: all give zeros (RFC 7748 section 6.1).
    for text in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ] {
        for provider in providers() {
            refused(provider.as_ref(), DhGroup::Curve25519, &hex::decode(text).expect("hexadecimal"));
        }
    }
}

#[test]
fn curve25519_gives_the_values_of_rfc_7748_section_6_1() {
    let octets = |text: &str| hex::decode(text).expect("hexadecimal");
    for provider in providers() {
        let private = octets("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let key = provider.dh_from_private(DhGroup::Curve25519, &private).expect("a key");
        assert_eq!(
            hex::encode(key.public()),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
        let shared = key.agree(&octets("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        assert_eq!(
            hex::encode(shared.expect("agreed").expose()),
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
        );
    }
}

#[test]
fn private_values_out_of_range_are_refused() {
    for provider in providers() {
        for group in DhGroup::ALL {
            let long = vec![1; group.public_len() + 1];
            let mut bad: Vec<Vec<u8>> = vec![Vec::new(), long];
            if group != DhGroup::Curve25519 {
                bad.push(vec![0; group.shared_len()]);
            }
            if CURVES.contains(&group) {
                bad.push(vec![0xff; group.shared_len()]);
            }
            for private in bad {
                let made = provider.dh_from_private(group, &private);
                let at = format!("group {} on {}", group.number(), provider.name());
                assert!(matches!(made, Err(CryptoError::Key(_))), "{at}: {} octets", private.len());
            }
        }
    }
}

#[test]
fn jobs_give_both_sides_the_same_secret() {
    for provider in providers() {
        for group in [DhGroup::Modp2048, DhGroup::Ecp384, DhGroup::Curve25519] {
            let Done::DhKey(Ok(key)) = run(provider.as_ref(), Job::DhGenerate { group }) else {
                panic!("a key")
            };
            assert!(format!("{key:?}").starts_with("DhKey(public "));
            let job = Job::DhRespond { group, peer_public: key.public().to_vec().into() };
            let Done::Responded(Ok((public, theirs))) = run(provider.as_ref(), job) else {
                panic!("an answer")
            };
            let job = Job::DhAgree { key, peer_public: public.into() };
            let Done::Shared(Ok(ours)) = run(provider.as_ref(), job) else { panic!("a secret") };
            assert!(ours.ct_eq(theirs.expose()));
        }
    }
}

/// The modulus as the provider has it: with n bits, 2^n mod p = 2^n - p, so p is the negation of that value.
fn prime(provider: &dyn Provider, group: DhGroup) -> Vec<u8> {
    let bits = u16::try_from(group.public_len() * 8).expect("at most 8192").to_be_bytes();
    let mut octets = provider.dh_from_private(group, &bits).expect("a key").public().to_vec();
    let mut carry = true;
    for octet in octets.iter_mut().rev() {
        (*octet, carry) = (!*octet).overflowing_add(u8::from(carry));
    }
    assert!(octets.starts_with(&[0xff; 8]) && octets.ends_with(&[0xff; 8]), "RFC 3526 section 3");
    octets
}

fn refused(provider: &dyn Provider, group: DhGroup, peer: &[u8]) {
    let key = provider.dh_generate(group).expect("a key");
    let agreed = key.agree(peer);
    let at = format!("group {} on {}, {} octets", group.number(), provider.name(), peer.len());
    assert!(matches!(agreed, Err(CryptoError::PublicValue { group: named }) if named == group), "{at}");
}

fn providers() -> Vec<Arc<dyn Provider>> {
    vec![
        #[cfg(feature = "aws-lc")]
        Arc::new(ike::crypto::provider::aws_lc::AwsLc),
        #[cfg(feature = "portable")]
        Arc::new(ike::crypto::provider::portable::Portable),
    ]
}
