//! Revocation lists.

use ike::trust::{Half, Rule, Trust, TrustError, Verification};
use rcgen::{KeyUsagePurpose, SerialNumber};

use super::pki::*;

const MEMBER: &[u8] = &[1, 1];

fn with_lists(anchors: &[&Ca], lists: Vec<Vec<u8>>) -> Result<Trust, TrustError> {
    Trust::new(anchors.iter().map(|ca| der(ca)).collect(), lists, Verification::Enforce)
}

#[test]
fn a_revoked_member_is_refused_and_others_are_not() {
    let root = root("Root");
    let trust = with_lists(&[&root], vec![list(&root, 2026, 2030, &[MEMBER])]).unwrap();
    let error = check(&trust, &[issue(&member("gm1"), &root)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "chain refused: certificate \"CN=gm1,O=Example\" serial 0101: revoked by the list of \"CN=Root,O=Example\""
    );
    let mut other = member("gm1");
    other.serial_number = Some(SerialNumber::from(vec![1, 2]));
    assert!(check(&trust, &[issue(&other, &root)]).is_ok());
    let facts: Vec<_> = trust.revocation_lists().collect();
    assert_eq!((facts[0].revoked, facts[0].next_update), (1, 1_893_456_000));
}

#[test]
fn a_revoked_ca_refuses_those_below_and_is_named() {
    let root = root("Root");
    let mut params = ca("Middle");
    params.serial_number = Some(SerialNumber::from(vec![7]));
    let middle = below(params, &root);
    let chain = [issue(&member("gm1"), &middle), der(&middle)];
    let trust = with_lists(&[&root], vec![list(&root, 2026, 2030, &[&[7]])]).unwrap();
    let error = check(&trust, &chain).unwrap_err();
    assert_eq!(error.certificate.unwrap().subject, "CN=Middle,O=Example");
    assert!(matches!(error.rule, Rule::Revoked { .. }));
    // The list of the CA in the middle counts for those below it.
    let trust = with_lists(&[&root], vec![list(&middle, 2026, 2030, &[MEMBER])]).unwrap();
    assert!(matches!(refusal(&trust, &chain).1, Rule::Revoked { .. }));
}

#[test]
fn an_expired_list_refuses_and_is_named_until_a_newer_one_is_there() {
    let root = root("Root");
    let chain = [issue(&member("gm1"), &root)];
    let old = list(&root, 2025, 2026, &[]);
    let error = check(&with_lists(&[&root], vec![old.clone()]).unwrap(), &chain).unwrap_err();
    assert!(
        error.to_string().ends_with(
            "the revocation list of \"CN=Root,O=Example\" expired 2026-01-01T00:00:00Z, it is \
             2027-01-01T00:00:00Z; fetch its next one"
        ),
        "{error}"
    );
    let new = list(&root, 2026, 2030, &[]);
    assert!(check(&with_lists(&[&root], vec![old, new]).unwrap(), &chain).is_ok());
}

#[test]
fn a_list_by_another_key_or_with_sha_1_is_no_list() {
    let (root, forged) = (root("Root"), root("Root"));
    let error = with_lists(&[&root], vec![list(&forged, 2026, 2030, &[])]).unwrap_err();
    assert_eq!(error.half, Half::File);
    assert_eq!(error.rule, Rule::ListSignature { list: "CN=Root,O=Example".into() });

    let sha1 = include_bytes!("../data/trust/sha1-list.der").to_vec();
    let anchor = include_bytes!("../data/trust/root.der").to_vec();
    let error = Trust::new(vec![anchor], vec![sha1], Verification::Enforce).unwrap_err();
    assert!(matches!(error.rule, Rule::ListSignature { .. }), "{error}");
    assert!(matches!(with_lists(&[&root], vec![vec![0x30, 0]]).unwrap_err().rule, Rule::Unreadable(_)));

    // The same below an anchor, where the CA's key is known only when its certificate comes.
    let (middle, impostor) = (below(ca("Middle"), &root), below(ca("Middle"), &root));
    let trust = with_lists(&[&root], vec![list(&impostor, 2026, 2030, &[])]).unwrap();
    let rule = refusal(&trust, &[issue(&member("gm1"), &middle), der(&middle)]).1;
    assert_eq!(rule, Rule::ListSignature { list: "CN=Middle,O=Example".into() });
}

#[test]
fn a_ca_that_may_not_sign_lists_has_none_that_counts() {
    let root = root("Root");
    // A generator refuses to make such a list: the same key signs it under parameters that may.
    let mut params = ca("Middle");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let middle_key = key();
    let certificate = params.signed_by(&middle_key, &root).unwrap().der().to_vec();
    let middle = rcgen::CertifiedIssuer::signed_by(ca("Middle"), middle_key, &root).unwrap();
    let trust = with_lists(&[&root], vec![list(&middle, 2026, 2030, &[])]).unwrap();
    assert_eq!(refusal(&trust, &[issue(&member("gm1"), &middle), certificate]).1, Rule::ListSigner);
}

#[test]
fn rehearsal_reports_a_revocation() {
    let root = root("Root");
    let lists = vec![list(&root, 2026, 2030, &[MEMBER])];
    let trust = Trust::new(vec![der(&root)], lists, Verification::Rehearse).unwrap();
    let checked = check(&trust, &[issue(&member("gm1"), &root)]).unwrap();
    assert!(matches!(checked.would_refuse[0].rule, Rule::Revoked { .. }));
}
