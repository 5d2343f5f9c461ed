//! The chain half.

use ike::trust::{Half, KeyKind, Limits, Rule, Trust, Verification, facts};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose as Purpose, GeneralSubtree,
    IsCa, KeyPair, KeyUsagePurpose, NameConstraints, date_time_ymd,
};

use super::pki::*;

/// Data made with OpenSSL.
macro_rules! data {
    ($name:literal) => {
        include_bytes!(concat!("../data/trust/", $name)).to_vec()
    };
}

fn chain_rule(trust: &Trust, chain: &[Vec<u8>]) -> Rule {
    let (half, rule) = refusal(trust, chain);
    assert_eq!(half, Half::Chain, "{rule}");
    rule
}

#[test]
fn a_good_chain_gives_the_end_entitys_key_whatever_comes_besides() {
    let root = root("Root");
    let middle = below(ca("Middle"), &root);
    let low = below(ca("Low"), &middle);
    let member_key = key();
    let end = member("gm1").signed_by(&member_key, &low).unwrap().der().to_vec();
    let junk = vec![0xff; 40];
    let chain = [end.clone(), der(&root), junk.clone(), der(&low), der(&low), end.clone(), der(&middle)];
    let trust = trust(&[&root]);
    let checked = check(&trust, &chain).unwrap();
    assert_eq!(checked.public_key, rcgen::PublicKeyData::subject_public_key_info(&member_key));
    assert_eq!(checked.certificate.subject, "CN=gm1,O=Example");
    assert_eq!(checked.anchor.unwrap().subject, "CN=Root,O=Example");
    assert!(checked.would_refuse.is_empty());
    assert_eq!(trust.anchor_of(&chain).unwrap().subject, "CN=Root,O=Example");
}

#[test]
fn facts_are_what_a_calendar_shows() {
    let root = root("Root");
    let mut params = member("gm1");
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2028, 1, 1);
    let facts = facts(&issue(&params, &root)).unwrap();
    assert_eq!((facts.subject.as_str(), facts.issuer.as_str()), ("CN=gm1,O=Example", "CN=Root,O=Example"));
    assert_eq!((facts.serial.as_str(), facts.key.clone(), facts.bits), ("0101", KeyKind::Ecdsa, 256));
    assert_eq!((facts.not_before, facts.not_after), (1_767_225_600, 1_830_297_600));
    let names: Vec<_> = facts.names.iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        ["dNSName gm1.example", "iPAddress 192.0.2.7", "iPAddress 2001:db8::7", "rfc822Name gm1@example.net"]
    );
    let rsa = ike::trust::facts(&data!("weak.der")).unwrap();
    assert_eq!((rsa.key, rsa.bits), (KeyKind::Rsa, 1024));
}

#[test]
fn a_certificate_counts_from_its_first_to_its_last_second() {
    let root = root("Root");
    let mut params = member("gm1");
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    let chain = [issue(&params, &root)];
    let trust = trust(&[&root]);
    assert!(check(&trust, &chain).is_ok());
    let late = trust.check(&chain, &fqdn("gm1.example"), NOW + 1).unwrap_err();
    assert_eq!(
        late.to_string(),
        "chain refused: certificate \"CN=gm1,O=Example\" serial 0101: expired 2027-01-01T00:00:00Z, it is \
         2027-01-01T00:00:01Z"
    );
    let early = trust.check(&chain, &fqdn("gm1.example"), 1_767_225_599).unwrap_err();
    assert!(matches!(early.rule, Rule::NotYetValid { .. }), "{early}");
}

#[test]
fn a_ca_out_of_date_refuses_and_is_named() {
    let mut params = ca("Middle");
    params.not_after = date_time_ymd(2026, 1, 1);
    let good_root = root("Root");
    let middle = below(params.clone(), &good_root);
    let error = check(&trust(&[&good_root]), &[issue(&member("gm1"), &middle), der(&middle)]).unwrap_err();
    assert_eq!(error.certificate.unwrap().subject, "CN=Middle,O=Example");
    assert!(matches!(error.rule, Rule::Expired { .. }));

    let old = rcgen::CertifiedIssuer::self_signed(params, key()).unwrap();
    let error = check(&trust(&[&old]), &[issue(&member("gm1"), &old)]).unwrap_err();
    assert_eq!(error.certificate.unwrap().subject, "CN=Middle,O=Example");
    assert!(matches!(error.rule, Rule::Expired { .. }));
}

#[test]
fn an_unknown_anchor_is_refused_with_the_anchors_there_are() {
    let (ours, also, theirs) = (root("Root"), root("Second"), root("Stranger"));
    let middle = below(ca("Middle"), &theirs);
    let error = check(&trust(&[&ours, &also]), &[issue(&member("gm1"), &middle), der(&middle)]).unwrap_err();
    assert!(
        error.to_string().ends_with(
            "issuer \"CN=Stranger,O=Example\" is no trust anchor; expected one of: CN=Root,O=Example; \
             CN=Second,O=Example"
        ),
        "{error}"
    );
    assert_eq!(error.certificate.unwrap().subject, "CN=Middle,O=Example");
}

#[test]
fn an_anchors_name_without_its_key_is_refused() {
    let (ours, forged) = (root("Root"), root("Root"));
    let rule = chain_rule(&trust(&[&ours]), &[issue(&member("gm1"), &forged), der(&forged)]);
    assert_eq!(rule, Rule::Signature { issuer: "CN=Root,O=Example".into() });
    assert!(trust(&[&ours]).anchor_of(&[issue(&member("gm1"), &forged)]).is_none());
}

#[test]
fn key_usage_must_allow_signatures_when_it_is_there() {
    let root = root("Root");
    let trust = trust(&[&root]);
    let with = |usages: Vec<KeyUsagePurpose>| {
        let mut params = member("gm1");
        params.key_usages = usages;
        check(&trust, &[issue(&params, &root)]).map(drop).map_err(|error| error.rule)
    };
    assert_eq!(with(vec![]), Ok(()));
    assert_eq!(with(vec![KeyUsagePurpose::ContentCommitment]), Ok(()));
    let expected = "digitalSignature or nonRepudiation";
    assert_eq!(with(vec![KeyUsagePurpose::KeyEncipherment]), Err(Rule::KeyUsage { expected }));
}

#[test]
fn extended_key_usage_must_be_absent_any_or_ipsec_ike() {
    let root = root("Root");
    let trust = trust(&[&root]);
    let with = |purposes: Vec<Purpose>| {
        let mut params = member("gm1");
        params.extended_key_usages = purposes;
        check(&trust, &[issue(&params, &root)]).map(drop).map_err(|error| error.rule)
    };
    let ike = || Purpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17]);
    assert_eq!(with(vec![ike()]), Ok(()));
    assert_eq!(with(vec![Purpose::Any]), Ok(()));
    assert_eq!(with(vec![Purpose::ServerAuth, ike()]), Ok(()));
    let refused = with(vec![Purpose::ServerAuth, Purpose::ClientAuth]).unwrap_err();
    assert!(matches!(&refused, Rule::ExtendedKeyUsage { found } if found.len() == 2), "{refused}");
}

#[test]
fn only_a_ca_with_key_cert_sign_issues_and_none_is_a_peer() {
    let root = root("Root");
    let trust = trust(&[&root]);
    let no_ca = below(member("gm9"), &root);
    assert_eq!(chain_rule(&trust, &[issue(&member("gm1"), &no_ca), der(&no_ca)]), Rule::NotCa);
    let mut params = ca("Middle");
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let silent = below(params, &root);
    assert_eq!(
        chain_rule(&trust, &[issue(&member("gm1"), &silent), der(&silent)]),
        Rule::KeyUsage { expected: "keyCertSign" }
    );
    let mut params = member("gm1");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(chain_rule(&trust, &[issue(&params, &root)]), Rule::CaAsEndEntity);
}

#[test]
fn weak_keys_and_old_hashes_are_refused() {
    let trust = Trust::new(vec![data!("root.der")], vec![], Verification::Enforce).unwrap();
    assert!(check(&trust, &[data!("good.der")]).is_ok());
    assert_eq!(chain_rule(&trust, &[data!("weak.der")]), Rule::Key { found: "RSA of 1024 bits".into() });
    for (der, name) in [(data!("sha1.der"), "sha1"), (data!("md5.der"), "md5")] {
        let rule = chain_rule(&trust, &[der]);
        assert!(
            matches!(&rule, Rule::SignatureAlgorithm { algorithm } if algorithm.contains(name)),
            "{rule}"
        );
    }
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let root = root("Root");
    let odd = member("gm1").signed_by(&ed25519, &root).unwrap().der().to_vec();
    assert!(matches!(chain_rule(&super::pki::trust(&[&root]), &[odd]), Rule::Key { .. }));
}

#[test]
fn approved_only_takes_no_rsa_key_from_the_anchor_down() {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let rsa = || KeyPair::try_from(key.serialize_der()).unwrap();
    let root = root("Root");
    let approved = || super::pki::trust(&[&root]).approved_only().unwrap();
    assert!(check(&approved(), &[issue(&member("gm1"), &root)]).is_ok());
    let refused = || Rule::NotApproved { found: "RSA of 2048 bits".into() };
    // A member's own key, and the key of an authority between.
    let own = member("gm1").signed_by(&rsa(), &root).unwrap().der().to_vec();
    let middle = rcgen::CertifiedIssuer::signed_by(ca("Middle"), rsa(), &root).unwrap();
    let below = vec![issue(&member("gm1"), &middle), der(&middle)];
    for (chain, who) in [(vec![own], "CN=gm1"), (below, "CN=Middle")] {
        assert!(check(&super::pki::trust(&[&root]), &chain).is_ok(), "{who} is good enough elsewhere");
        let error = check(&approved(), &chain).unwrap_err();
        assert_eq!((error.half, &error.rule), (Half::Chain, &refused()));
        assert!(error.certificate.is_some_and(|named| named.subject.contains(who)), "{who}");
    }
    let rsa_root = rcgen::CertifiedIssuer::self_signed(ca("Old Root"), rsa()).unwrap();
    let error = super::pki::trust(&[&root, &rsa_root]).approved_only().unwrap_err();
    assert_eq!((error.half, error.rule), (Half::File, refused()));
}

#[test]
fn keys_and_signatures_on_all_three_curves_are_taken() {
    for algorithm in
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ECDSA_P521_SHA512]
    {
        let ca_key = KeyPair::generate_for(algorithm).unwrap();
        let root = rcgen::CertifiedIssuer::self_signed(ca("Root"), ca_key).unwrap();
        let end_key = KeyPair::generate_for(algorithm).unwrap();
        let end = member("gm1").signed_by(&end_key, &root).unwrap().der().to_vec();
        let checked = check(&trust(&[&root]), &[end]).unwrap();
        assert_eq!(checked.certificate.key, KeyKind::Ecdsa);
    }
}

/// A chain with this many CAs between the root and the member, top first.
fn long(root: &Ca, count: usize) -> Vec<Vec<u8>> {
    let mut cas: Vec<Ca> = Vec::new();
    for n in 0..count {
        let next = below(ca(&format!("CA {n}")), cas.last().unwrap_or(root));
        cas.push(next);
    }
    let end = issue(&member("gm1"), cas.last().unwrap_or(root));
    std::iter::once(end).chain(cas.iter().map(der)).collect()
}

#[test]
fn a_chain_that_is_too_long_is_refused() {
    let root = root("Root");
    let trust = trust(&[&root]);
    assert!(check(&trust, &long(&root, 6)).is_ok());
    assert_eq!(chain_rule(&trust, &long(&root, 7)), Rule::PathTooLong);
    let mut params = ca("Middle");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let middle = below(params, &root);
    let low = below(ca("Low"), &middle);
    let chain = [issue(&member("gm1"), &low), der(&low), der(&middle)];
    assert_eq!(chain_rule(&trust, &chain), Rule::PathLength);
}

#[test]
fn name_constraints_of_a_ca_hold() {
    let root = root("Root");
    let with = |subtree: GeneralSubtree| {
        let mut params = ca("Middle");
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] });
        let middle = below(params, &root);
        let mut end = member("gm1");
        end.subject_alt_names.truncate(1);
        check(&trust(&[&root]), &[issue(&end, &middle), der(&middle)]).map(drop).map_err(|error| error.rule)
    };
    assert_eq!(with(GeneralSubtree::DnsName("example".into())), Ok(()));
    assert_eq!(with(GeneralSubtree::DnsName("other.test".into())), Err(Rule::NameConstraints));
}

#[test]
fn a_huge_chain_is_refused_before_anything_is_parsed() {
    let root = root("Root");
    let trust = trust(&[&root]);
    let end = issue(&member("gm1"), &root);
    // Unreadable octets: parsing the first of them would say so.
    let many = vec![vec![0u8; 10]; 9];
    assert_eq!(chain_rule(&trust, &many), Rule::TooMany { found: 9, limit: 8 });
    let large = [vec![0u8; 32_000], vec![0u8; 1000]];
    assert_eq!(chain_rule(&trust, &large), Rule::TooLarge { found: 33_000, limit: 32_768 });
    let narrow = trust.with_limits(Limits { certificates: 1, octets: end.len() });
    assert!(check(&narrow, std::slice::from_ref(&end)).is_ok());
    assert_eq!(chain_rule(&narrow, &[end.clone(), end]), Rule::TooMany { found: 2, limit: 1 });
    assert_eq!(chain_rule(&narrow, &[]), Rule::Missing);
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let root = root("Root");
    let mut params = member("gm1");
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 32473, 1], vec![5, 0]);
    extension.set_criticality(true);
    params.custom_extensions.push(extension);
    assert_eq!(chain_rule(&trust(&[&root]), &[issue(&params, &root)]), Rule::CriticalExtension);
}

#[test]
fn a_file_that_cannot_be_an_anchor_is_refused_when_it_is_read() {
    let refused = |anchors: Vec<Vec<u8>>| {
        let error = Trust::new(anchors, vec![], Verification::Enforce).unwrap_err();
        assert_eq!(error.half, Half::File);
        error.rule
    };
    assert_eq!(refused(vec![]), Rule::Missing);
    assert!(matches!(refused(vec![vec![0x30, 0]]), Rule::Unreadable(_)));
    let self_signed = member("gm1").self_signed(&key()).unwrap().der().to_vec();
    assert_eq!(refused(vec![self_signed]), Rule::NotCa);
    assert!(matches!(refused(vec![data!("weak.der")]), Rule::Key { .. }));
}

#[test]
fn rehearsal_accepts_what_would_be_refused_and_reports_all_of_it() {
    let (ours, theirs) = (root("Root"), root("Stranger"));
    let mut params: CertificateParams = member("gm2");
    params.not_after = date_time_ymd(2026, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    let member_key = key();
    let end = params.signed_by(&member_key, &theirs).unwrap().der().to_vec();
    let checked = check(&rehearsal(&[&ours]), std::slice::from_ref(&end)).unwrap();
    assert_eq!(checked.public_key, rcgen::PublicKeyData::subject_public_key_info(&member_key));
    assert_eq!(checked.anchor, None);
    let halves: Vec<_> = checked.would_refuse.iter().map(|error| error.half).collect();
    assert_eq!(halves, [Half::Chain, Half::Chain, Half::Name], "{:?}", checked.would_refuse);

    // Each alone is the first refusal of enforcement.
    let first = check(&trust(&[&ours]), &[end]).unwrap_err();
    assert_eq!(Some(&first), checked.would_refuse.first());
    // A good chain reports nothing, and octets that hold no key are refused all the same.
    assert!(check(&rehearsal(&[&ours]), &[issue(&member("gm1"), &ours)]).unwrap().would_refuse.is_empty());
    assert!(matches!(chain_rule(&rehearsal(&[&ours]), &[vec![1, 2, 3]]), Rule::Unreadable(_)));
}
