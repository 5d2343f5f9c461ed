//! Octets of strangers: an answer, never a panic.

use ike::trust::{Trust, Verification, facts, name_from_text, name_to_text, pem_certificates, same_name};
use proptest::prelude::*;

use super::pki::*;

/// A chain of two and trust that knows its anchor and a list, made once.
fn fixture() -> &'static (Trust, Vec<Vec<u8>>, Vec<u8>) {
    static MADE: std::sync::OnceLock<(Trust, Vec<Vec<u8>>, Vec<u8>)> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let root = root("Root");
        let middle = below(ca("Middle"), &root);
        let list = list(&root, 2026, 2030, &[&[9]]);
        let trust = Trust::new(vec![der(&root)], vec![list.clone()], Verification::Enforce).expect("trust");
        (trust, vec![issue(&member("gm1"), &middle), der(&middle)], list)
    })
}

#[test]
fn a_chain_cut_anywhere_is_refused() {
    let (trust, chain, _) = fixture();
    assert!(check(trust, chain).is_ok());
    for (which, whole) in chain.iter().enumerate() {
        for len in 0..whole.len() {
            let mut cut = chain.clone();
            cut[which].truncate(len);
            assert!(check(trust, &cut).is_err(), "certificate {which} cut to {len}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_chain_with_any_octet_changed_is_refused(which in 0usize..2, at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (trust, chain, _) = fixture();
        let mut chain = chain.clone();
        let index = at.index(chain[which].len());
        chain[which][index] ^= flip;
        prop_assert!(check(trust, &chain).is_err());
    }

    #[test]
    fn a_list_with_any_octet_changed_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (_, _, list) = fixture();
        let mut list = list.clone();
        let index = at.index(list.len());
        list[index] ^= flip;
        // It may name another issuer now; then it is nobody's list and read without a signature.
        let _ = Trust::new(vec![der(&root("Root"))], vec![list], Verification::Enforce);
    }

    #[test]
    fn arbitrary_octets_never_panic(octets in prop::collection::vec(any::<u8>(), 0..600), text in ".{0,80}") {
        let (trust, chain, _) = fixture();
        prop_assert!(check(trust, std::slice::from_ref(&octets)).is_err());
        prop_assert!(check(trust, &[chain[0].clone(), octets.clone()]).is_err());
        prop_assert!(trust.anchor_of(std::slice::from_ref(&octets)).is_none());
        let _ = facts(&octets);
        let _ = name_to_text(&octets);
        let _ = same_name(&octets, &octets);
        let _ = pem_certificates(&octets);
        let _ = Trust::new(vec![octets.clone()], vec![octets], Verification::Enforce);
        if let Ok(der) = name_from_text(&text) {
            prop_assert!(same_name(&der, &der));
            prop_assert!(name_to_text(&der).is_some());
        }
    }
}
