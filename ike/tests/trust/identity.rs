//! The name half (RFC 4945 section 3.1).

use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use ike::trust::{Half, Rule, name_from_text};
use rcgen::{DnType, DnValue, SanType};

use super::pki::*;

fn id(id_type: IdType, data: &[u8]) -> Identification {
    Identification::new(id_type, data)
}

#[test]
fn an_identity_of_each_kind_is_proved_by_its_field_alone() {
    let root = root("Root");
    let trust = trust(&[&root]);
    let chain = [issue(&member("gm1"), &root)];
    let v6 = "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let dn = name_from_text("CN=gm1, O=Example").unwrap();
    for good in [
        id(IdType::Fqdn, b"gm1.example"),
        id(IdType::Fqdn, b"GM1.Example"),
        id(IdType::UserFqdn, b"gm1@example.net"),
        id(IdType::UserFqdn, b"GM1@example.net"),
        id(IdType::Ipv4Addr, &[192, 0, 2, 7]),
        id(IdType::Ipv6Addr, &v6),
        id(IdType::DerAsn1Dn, &dn),
    ] {
        assert!(trust.check(&chain, &good, NOW).is_ok(), "{good:?}");
    }
    for bad in [
        id(IdType::Fqdn, b"gm1.example.net"),
        id(IdType::Fqdn, b"gm1.example."),
        id(IdType::Fqdn, b"example"),
        id(IdType::Fqdn, b"gm1"),
        id(IdType::Fqdn, b"192.0.2.7"),
        id(IdType::Fqdn, b"gm1@example.net"),
        id(IdType::Fqdn, b""),
        id(IdType::UserFqdn, b"gm1.example"),
        id(IdType::Ipv4Addr, &[192, 0, 2, 8]),
        id(IdType::Ipv4Addr, &v6),
        id(IdType::Ipv6Addr, &[192, 0, 2, 7]),
        id(IdType::DerAsn1Dn, &name_from_text("CN=gm1").unwrap()),
        id(IdType::DerAsn1Dn, &[0x30, 0]),
        id(IdType::DerAsn1Dn, b"gm1"),
    ] {
        let error = trust.check(&chain, &bad, NOW).unwrap_err();
        assert_eq!(error.half, Half::Name, "{bad:?}");
        assert!(matches!(error.rule, Rule::Name { .. }), "{bad:?}");
    }
}

#[test]
fn a_swapped_identity_is_refused_by_the_name_with_both_names() {
    let root = root("Root");
    let chain = [issue(&member("gm2"), &root)];
    let error = check(&trust(&[&root]), &chain).unwrap_err();
    assert_eq!(error.half, Half::Name);
    assert_eq!(
        error.to_string(),
        "name refused: certificate \"CN=gm2,O=Example\" serial 0101: claimed identity is FQDN gm1.example, \
         certificate names: dNSName gm2.example"
    );
}

#[test]
fn a_wildcard_in_a_certificate_matches_nothing() {
    let root = root("Root");
    let mut params = member("gm1");
    params.subject_alt_names = vec![SanType::DnsName("*.example".to_owned().try_into().unwrap())];
    let chain = [issue(&params, &root)];
    for name in ["gm1.example", "*.example"] {
        let error = trust(&[&root]).check(&chain, &fqdn(name), NOW).unwrap_err();
        assert_eq!(error.half, Half::Name, "{name}");
    }
}

#[test]
fn a_common_name_is_no_host_name() {
    let root = root("Root");
    let mut params = member("gm1.example");
    params.subject_alt_names.clear();
    let error = check(&trust(&[&root]), &[issue(&params, &root)]).unwrap_err();
    assert!(error.to_string().ends_with("certificate names: none of that kind"), "{error}");
}

#[test]
fn a_distinguished_name_in_other_string_types_is_the_same_name() {
    let root = root("Root");
    let mut params = member("gm1");
    params.distinguished_name = rcgen::DistinguishedName::new();
    let printable = |text: &str| DnValue::PrintableString(text.to_owned().try_into().unwrap());
    params.distinguished_name.push(DnType::OrganizationName, printable("EXAMPLE"));
    params.distinguished_name.push(DnType::CommonName, printable("gm1"));
    let chain = [issue(&params, &root)];
    let dn = id(IdType::DerAsn1Dn, &name_from_text("CN=gm1, O=Example").unwrap());
    assert!(trust(&[&root]).check(&chain, &dn, NOW).is_ok());
}

#[test]
fn what_no_certificate_can_prove_is_refused_unless_a_rule_checks_the_chain_alone() {
    let root = root("Root");
    let trust = trust(&[&root]);
    let chain = [issue(&member("gm1"), &root)];
    for id_type in
        [IdType::KeyId, IdType::DerAsn1Gn, IdType::Ipv4Subnet, IdType::Ipv6Range, IdType::Other(99)]
    {
        let error = trust.check(&chain, &id(id_type, b"\x01\x02"), NOW).unwrap_err();
        assert_eq!((error.half, error.rule), (Half::Name, Rule::NotBindable { id_type }));
    }
    let checked = trust.check_chain(&chain, NOW).unwrap();
    assert_eq!(checked.subject, name_from_text("CN=gm1, O=Example").unwrap());
}
