//! `local-identity` and `remote-identity`: who we say we are, and who the peer must be.

use std::net::IpAddr;

use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use ike::identity::{IdentityRule, address_identity};
use ike::trust::{is_name_pattern, name_from_text};

use crate::error::Report;
use crate::table::{Item, Table};

/// Who a peer must claim to be. Names may start with `*`: `*.example` is every name below `example`; in a distinguished name
/// a value may be `*`: `CN=*, O=Example`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityPattern {
    /// `inet`: ID_IPV4_ADDR or ID_IPV6_ADDR.
    Address(IpAddr),
    /// `hostname`: ID_FQDN.
    Fqdn(String),
    /// `user-at-hostname`: ID_USER_FQDN.
    UserFqdn(String),
    /// `distinguished-name`: ID_DER_ASN1_DN, a DER Name; compared by meaning, so that string types do not matter.
    DistinguishedName(Vec<u8>),
    /// `key-id`: ID_KEY_ID.
    KeyId(Vec<u8>),
}

impl IdentityPattern {
    /// The same as phase 1 applies it.
    pub fn rule(&self) -> IdentityRule {
        let name = |id_type, text: &str| match text.strip_prefix('*') {
            Some("") => IdentityRule::AnyOf { id_type },
            Some(tail) => IdentityRule::NameEndsWith { id_type, tail: tail.as_bytes().to_vec() },
            None => IdentityRule::Exactly { id_type, data: text.as_bytes().to_vec() },
        };
        match self {
            IdentityPattern::Address(address) => {
                let id = address_identity(*address);
                IdentityRule::Exactly { id_type: id.id_type, data: id.data }
            }
            IdentityPattern::Fqdn(text) => name(IdType::Fqdn, text),
            IdentityPattern::UserFqdn(text) => name(IdType::UserFqdn, text),
            IdentityPattern::DistinguishedName(der) if is_name_pattern(der) => {
                IdentityRule::NameLike { pattern: der.clone() }
            }
            IdentityPattern::DistinguishedName(der) => {
                IdentityRule::Exactly { id_type: IdType::DerAsn1Dn, data: der.clone() }
            }
            IdentityPattern::KeyId(octets) => {
                IdentityRule::Exactly { id_type: IdType::KeyId, data: octets.clone() }
            }
        }
    }

    /// True when `id` is of this type and equal; names compare without case.
    pub fn matches(&self, id: &Identification) -> bool {
        // The peer's address matters to IdentityRule::PeerAddress alone, which no pattern becomes.
        self.rule().accepts(id, IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    }

    /// The identity itself; none for a pattern with `*`.
    pub fn identification(&self) -> Option<Identification> {
        let plain =
            |id_type, data: &[u8]| Identification { id_type, protocol: 0, port: 0, data: data.to_vec() };
        match self {
            IdentityPattern::Address(address) => Some(address_identity(*address)),
            IdentityPattern::Fqdn(text) if !text.contains('*') => Some(plain(IdType::Fqdn, text.as_bytes())),
            IdentityPattern::UserFqdn(text) if !text.contains('*') => {
                Some(plain(IdType::UserFqdn, text.as_bytes()))
            }
            IdentityPattern::KeyId(octets) => Some(plain(IdType::KeyId, octets)),
            IdentityPattern::DistinguishedName(der) if !is_name_pattern(der) => {
                Some(plain(IdType::DerAsn1Dn, der))
            }
            IdentityPattern::Fqdn(_)
            | IdentityPattern::UserFqdn(_)
            | IdentityPattern::DistinguishedName(_) => None,
        }
    }
}

/// Reads `{ inet | hostname | user-at-hostname | distinguished-name | key-id = "…" }`.
pub(crate) fn read_pattern<'t>(item: &Item<'t>, report: &'t Report<'t>) -> Option<IdentityPattern> {
    const KINDS: [&str; 5] = ["inet", "hostname", "user-at-hostname", "distinguished-name", "key-id"];
    let hint = KINDS.join(" | ");
    let table = item.table(report)?;
    let stated: Vec<_> = KINDS.iter().filter_map(|kind| Some((*kind, table.get(kind)?))).collect();
    table.finish();
    let [(kind, value)] = stated.as_slice() else {
        let what =
            if stated.is_empty() { "an identity rule must not be empty" } else { "more than one identity" };
        report.problem(&item.place, what, format!("exactly one of {hint}"));
        return None;
    };
    let text = value.text(report)?;
    if text.is_empty() || text.contains('\0') {
        report.problem(&value.place, "an identity rule must not be empty", format!("{kind} = \"…\""));
        return None;
    }
    let starred = text.contains('*');
    match *kind {
        "inet" if starred => {
            report.problem(
                &value.place,
                "\"*\" works in names only",
                "an address; without remote-identity a peer must claim its own",
            );
            None
        }
        "inet" => match text.parse() {
            Ok(address) => Some(IdentityPattern::Address(address)),
            Err(_) => {
                report.problem(&value.place, format!("{text:?} is not an address"), "IPv4 or IPv6");
                None
            }
        },
        "hostname" | "user-at-hostname" => {
            if text.rfind('*').is_some_and(|at| at > 0) {
                report.problem(&value.place, "\"*\" may only be the first character", "\"*.example\"");
                return None;
            }
            if *kind == "hostname" {
                return Some(IdentityPattern::Fqdn(text.to_owned()));
            }
            if !text.contains('@') && text != "*" {
                report.problem(&value.place, format!("{text:?} has no @"), "\"user@host.example\"");
                return None;
            }
            Some(IdentityPattern::UserFqdn(text.to_owned()))
        }
        "key-id" if starred => {
            report.problem(&value.place, "\"*\" works in names only", "a key-id in full");
            None
        }
        "key-id" => read_key_id(text, value, report).map(IdentityPattern::KeyId),
        _ => match name_from_text(text) {
            Ok(der) => Some(IdentityPattern::DistinguishedName(der)),
            Err(error) => {
                report.problem(&value.place, error.to_string(), "\"CN=gm1,O=Example,C=DE\"");
                None
            }
        },
    }
}

fn read_key_id(text: &str, item: &Item<'_>, report: &Report<'_>) -> Option<Vec<u8>> {
    match text.strip_prefix("0x") {
        None => Some(text.as_bytes().to_vec()),
        Some(digits) => {
            let octets =
                crate::secret_source::decode_hex(digits.as_bytes()).filter(|octets| !octets.is_empty());
            if octets.is_none() {
                report.problem(&item.place, "not hexadecimal", "\"0x\" and pairs of digits, or plain text");
            }
            octets
        }
    }
}

/// Reads `local-identity` of `gateway`: a pattern without `*`.
pub(crate) fn read_local(gateway: &Table<'_>) -> Option<Identification> {
    let item = gateway.get("local-identity")?;
    let id = read_pattern(&item, gateway.report())?.identification();
    if id.is_none() {
        gateway.report().problem(&item.place, "\"*\" cannot be said of oneself", "the name in full");
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id_type: IdType, data: &[u8]) -> Identification {
        Identification { id_type, protocol: 17, port: 500, data: data.to_vec() }
    }

    #[test]
    fn names_match_without_case_and_below_a_star() {
        let pattern = IdentityPattern::Fqdn("*.Example".into());
        assert!(pattern.matches(&id(IdType::Fqdn, b"gm1.example")));
        assert!(!pattern.matches(&id(IdType::Fqdn, b"gm1.example.org")));
        assert!(!pattern.matches(&id(IdType::UserFqdn, b"gm1.example")));
        assert!(IdentityPattern::Fqdn("*".into()).matches(&id(IdType::Fqdn, b"anyone")));
        assert!(
            IdentityPattern::UserFqdn("*@branch.example".into())
                .matches(&id(IdType::UserFqdn, b"a@BRANCH.example"))
        );
        assert!(IdentityPattern::Fqdn("gm1.example".into()).matches(&id(IdType::Fqdn, b"GM1.example")));
    }

    #[test]
    fn addresses_and_key_ids_match_exactly() {
        let pattern = IdentityPattern::Address("10.0.0.1".parse().unwrap());
        assert!(pattern.matches(&id(IdType::Ipv4Addr, &[10, 0, 0, 1])));
        assert!(!pattern.matches(&id(IdType::Ipv4Addr, &[10, 0, 0, 2])));
        assert!(IdentityPattern::KeyId(vec![0x41]).matches(&id(IdType::KeyId, b"A")));
        assert!(!IdentityPattern::KeyId(vec![0x41]).matches(&id(IdType::KeyId, b"a")));
    }

    #[test]
    fn a_star_in_a_distinguished_name_is_any_value_and_nobodys_own() {
        let pattern = IdentityPattern::DistinguishedName(name_from_text("CN=*,O=Example,C=*").unwrap());
        let other = |text: &str| id(IdType::DerAsn1Dn, &name_from_text(text).unwrap());
        assert!(pattern.matches(&other("CN=gm7, O=example, C=FR")));
        assert!(!pattern.matches(&other("CN=gm7, O=Other, C=FR")));
        assert!(!pattern.matches(&id(IdType::Fqdn, b"gm7.example")));
        assert_eq!(pattern.identification(), None);
    }

    #[test]
    fn distinguished_names_match_by_meaning() {
        let pattern = IdentityPattern::DistinguishedName(name_from_text("CN=gm1,O=Example").unwrap());
        let other = |text: &str| id(IdType::DerAsn1Dn, &name_from_text(text).unwrap());
        assert!(pattern.matches(&other("CN=GM1, O=example")));
        assert!(!pattern.matches(&other("CN=gm2,O=Example")));
        assert!(!pattern.matches(&id(IdType::DerAsn1Dn, &[0x30, 0])));
    }
}
