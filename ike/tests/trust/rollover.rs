//! From one anchor to the next with members on both.

use ike::trust::{Rule, Trust, Verification};

use super::pki::*;

#[test]
fn members_of_the_old_and_the_new_anchor_are_accepted_side_by_side_and_told_apart() {
    let (old, new) = (root("Root 2020"), root("Root 2030"));
    let trust = trust(&[&old, &new]);
    assert_eq!(trust.anchors().len(), 2);
    for (ca, name) in [(&old, "CN=Root 2020,O=Example"), (&new, "CN=Root 2030,O=Example")] {
        let chain = [issue(&member("gm1"), ca)];
        assert_eq!(check(&trust, &chain).unwrap().anchor.unwrap().subject, name);
        assert_eq!(trust.anchor_of(&chain).unwrap().subject, name);
    }
}

#[test]
fn the_old_anchor_ends_when_its_file_goes() {
    let (old, new) = (root("Root 2020"), root("Root 2030"));
    let chain = [issue(&member("gm1"), &old)];
    assert!(check(&trust(&[&old, &new]), &chain).is_ok());
    assert!(matches!(refusal(&trust(&[&new]), &chain).1, Rule::UnknownAnchor { .. }));
}

#[test]
fn a_new_key_under_the_old_name_works_beside_the_old_with_the_lists_of_either() {
    let (old, new) = (root("Root"), root("Root"));
    let (on_old, on_new) = ([issue(&member("gm1"), &old)], [issue(&member("gm1"), &new)]);
    let revoked: &[&[u8]] = &[&[1, 1]];
    let with = |lists: Vec<Vec<u8>>| {
        Trust::new(vec![der(&old), der(&new)], lists, Verification::Enforce).expect("anchors and lists")
    };
    // One name, so one CERTREQ.
    assert_eq!(with(vec![]).anchors().len(), 1);
    let both = with(vec![list(&old, 2026, 2030, &[]), list(&new, 2025, 2030, &[])]);
    assert!(check(&both, &on_old).is_ok());
    assert!(check(&both, &on_new).is_ok());
    // A serial revoked by one is not revoked by the other.
    let one = with(vec![list(&old, 2026, 2030, revoked), list(&new, 2025, 2030, &[])]);
    assert!(matches!(refusal(&one, &on_old).1, Rule::Revoked { .. }));
    assert!(check(&one, &on_new).is_ok());
    let only = with(vec![list(&new, 2025, 2030, revoked)]);
    assert!(check(&only, &on_old).is_ok());
    assert!(matches!(refusal(&only, &on_new).1, Rule::Revoked { .. }));
}

#[test]
fn a_link_certificate_does_not_carry_a_revoked_member_past_its_list() {
    let (old, new) = (root("Root"), root("Root"));
    // New key signed by the old one, as RFC 4210 section 4.4 has it; the member is revoked by the new key's list.
    let link = ca("Root").signed_by(new.key(), &old).unwrap().der().to_vec();
    let chain = [issue(&member("gm1"), &new), link];
    assert!(check(&trust(&[&old]), &chain).is_ok());
    let with = |anchors: &[&Ca], lists: Vec<Vec<u8>>| {
        Trust::new(anchors.iter().map(|ca| der(ca)).collect(), lists, Verification::Enforce).expect("trust")
    };
    let (on_old, on_new) = (list(&old, 2026, 2030, &[]), list(&new, 2025, 2030, &[&[1, 1]]));
    let rule = refusal(&with(&[&old, &new], vec![on_old.clone(), on_new]), &chain).1;
    assert!(matches!(rule, Rule::Revoked { .. } | Rule::ListSignature { .. }), "{rule}");
    // Two keys under one name in one path, and a list of one of them: refused rather than guessed.
    let rule = refusal(&with(&[&old], vec![on_old]), &chain).1;
    assert!(matches!(rule, Rule::ListSignature { .. }), "{rule}");
}
