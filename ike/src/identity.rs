//! Which identity a peer may claim (RFC 6407 section 3.1: authorisation rests on the phase 1 identity).

use std::net::IpAddr;

use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;

use crate::trust::{name_fits, same_name};

/// The identity of an address, protocol and port 0.
pub fn address_identity(address: IpAddr) -> Identification {
    let (id_type, data) = match address {
        IpAddr::V4(a) => (IdType::Ipv4Addr, a.octets().to_vec()),
        IpAddr::V6(a) => (IdType::Ipv6Addr, a.octets().to_vec()),
    };
    Identification { id_type, protocol: 0, port: 0, data }
}

/// A rule one identity satisfies or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityRule {
    /// The peer must claim the address its packets come from.
    PeerAddress,
    /// Type and data must be equal; names compare without case, distinguished names by meaning.
    Exactly {
        /// ID type.
        id_type: IdType,
        /// Identification data.
        data: Vec<u8>,
    },
    /// A name that ends with this text (`*.example` is `.example`), without case.
    NameEndsWith {
        /// ID type, a name type.
        id_type: IdType,
        /// The tail.
        tail: Vec<u8>,
    },
    /// A distinguished name with any value where this one has `*`.
    NameLike {
        /// DER Name.
        pattern: Vec<u8>,
    },
    /// Any identity of this type.
    AnyOf {
        /// ID type.
        id_type: IdType,
    },
}

impl IdentityRule {
    /// True when `id`, claimed by a peer at `peer`, satisfies the rule.
    pub fn accepts(&self, id: &Identification, peer: IpAddr) -> bool {
        match self {
            IdentityRule::PeerAddress => {
                let expected = address_identity(peer);
                expected.id_type == id.id_type && expected.data == id.data
            }
            IdentityRule::Exactly { id_type, data } => {
                *id_type == id.id_type
                    && match id_type {
                        IdType::Fqdn | IdType::UserFqdn => data.eq_ignore_ascii_case(&id.data),
                        // A name typed by an operator need not have the string types of the certificate's.
                        IdType::DerAsn1Dn => same_name(data, &id.data),
                        _ => *data == id.data,
                    }
            }
            IdentityRule::NameEndsWith { id_type, tail } => {
                *id_type == id.id_type
                    && id.data.len() > tail.len()
                    && id.data[id.data.len() - tail.len()..].eq_ignore_ascii_case(tail)
            }
            IdentityRule::NameLike { pattern } => {
                id.id_type == IdType::DerAsn1Dn && name_fits(pattern, &id.data)
            }
            IdentityRule::AnyOf { id_type } => *id_type == id.id_type,
        }
    }
}

/// Protocol and port of a phase 1 ID as peers send them: 0/0, 17/500 (RFC 2407 section 4.6.2), and for compatibility
/// 17/0, 17/4500, 17/848.
pub fn acceptable_ports(id: &Identification) -> bool {
    matches!((id.protocol, id.port), (0, 0) | (17, 0 | 500 | 848 | 4500))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id_type: IdType, text: &str) -> Identification {
        Identification { id_type, protocol: 0, port: 0, data: text.as_bytes().to_vec() }
    }

    #[test]
    fn a_peer_may_claim_only_its_own_address_by_default() {
        let peer: IpAddr = "192.0.2.7".parse().unwrap();
        assert!(IdentityRule::PeerAddress.accepts(&address_identity(peer), peer));
        let other = address_identity("192.0.2.8".parse().unwrap());
        assert!(!IdentityRule::PeerAddress.accepts(&other, peer));
    }

    #[test]
    fn names_compare_without_case_and_wildcards_need_a_label() {
        let peer: IpAddr = "192.0.2.7".parse().unwrap();
        let rule = IdentityRule::NameEndsWith { id_type: IdType::Fqdn, tail: b".example".to_vec() };
        assert!(rule.accepts(&name(IdType::Fqdn, "GM1.Example"), peer));
        assert!(!rule.accepts(&name(IdType::Fqdn, ".example"), peer));
        assert!(!rule.accepts(&name(IdType::UserFqdn, "gm1.example"), peer));
    }
}
