//! Which packets a policy or a rule is about.

use std::net::IpAddr;

use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::TekPolicy;
use gdoi_proto::registry::IdType;
use thiserror::Error;

use crate::header::Header;

/// A selector that does not name addresses we can compare.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a selector of type {id_type:?} with {octets} octets")]
pub struct BadSelector {
    /// Its type.
    pub id_type: IdType,
    /// Octets of its data.
    pub octets: usize,
}

/// A set of addresses of one family; the other family is never in it, except in [`Addresses::Any`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// Every address of both families.
    Any,
    /// IPv4 addresses that equal `.0` in the bits of `.1`.
    V4Mask(u32, u32),
    /// IPv4 addresses from `.0` to `.1`.
    V4Range(u32, u32),
    /// IPv6 addresses that equal `.0` in the bits of `.1`.
    V6Mask(u128, u128),
    /// IPv6 addresses from `.0` to `.1`.
    V6Range(u128, u128),
}

impl Addresses {
    /// The addresses that share their first `length` bits with `address`; a length too long means all bits.
    pub fn prefix(address: IpAddr, length: u8) -> Addresses {
        match address {
            IpAddr::V4(address) => {
                let free = 32u32.saturating_sub(u32::from(length));
                let mask = u32::MAX.checked_shl(free).unwrap_or(0);
                Addresses::V4Mask(address.to_bits() & mask, mask)
            }
            IpAddr::V6(address) => {
                let free = 128u32.saturating_sub(u32::from(length));
                let mask = u128::MAX.checked_shl(free).unwrap_or(0);
                Addresses::V6Mask(address.to_bits() & mask, mask)
            }
        }
    }

    fn of(endpoint: &Endpoint) -> Result<Addresses, BadSelector> {
        if endpoint.is_any() {
            return Ok(Addresses::Any);
        }
        let bad = BadSelector { id_type: endpoint.id_type, octets: endpoint.data.len() };
        let data = endpoint.data.as_slice();
        let one4 = || <[u8; 4]>::try_from(data).ok().map(u32::from_be_bytes);
        let one6 = || <[u8; 16]>::try_from(data).ok().map(u128::from_be_bytes);
        let two4 = || {
            let (first, second) = data.split_at_checked(4)?;
            Some((u32::from_be_bytes(first.try_into().ok()?), u32::from_be_bytes(second.try_into().ok()?)))
        };
        let two6 = || {
            let (first, second) = data.split_at_checked(16)?;
            Some((u128::from_be_bytes(first.try_into().ok()?), u128::from_be_bytes(second.try_into().ok()?)))
        };
        let read = match endpoint.id_type {
            IdType::Ipv4Addr => one4().map(|one| Addresses::V4Mask(one, u32::MAX)),
            IdType::Ipv4Subnet => two4().map(|(base, mask)| Addresses::V4Mask(base & mask, mask)),
            IdType::Ipv4Range => two4().map(|(low, high)| Addresses::V4Range(low, high)),
            IdType::Ipv6Addr => one6().map(|one| Addresses::V6Mask(one, u128::MAX)),
            IdType::Ipv6Subnet => two6().map(|(base, mask)| Addresses::V6Mask(base & mask, mask)),
            IdType::Ipv6Range => two6().map(|(low, high)| Addresses::V6Range(low, high)),
            _ => None,
        };
        read.ok_or(bad)
    }

    /// True when `address` is in the set.
    pub fn contain(&self, address: IpAddr) -> bool {
        match (*self, address) {
            (Addresses::Any, _) => true,
            (Addresses::V4Mask(base, mask), IpAddr::V4(address)) => address.to_bits() & mask == base,
            (Addresses::V4Range(low, high), IpAddr::V4(address)) => (low..=high).contains(&address.to_bits()),
            (Addresses::V6Mask(base, mask), IpAddr::V6(address)) => address.to_bits() & mask == base,
            (Addresses::V6Range(low, high), IpAddr::V6(address)) => (low..=high).contains(&address.to_bits()),
            (Addresses::V4Mask(..) | Addresses::V4Range(..), IpAddr::V6(_))
            | (Addresses::V6Mask(..) | Addresses::V6Range(..), IpAddr::V4(_)) => false,
        }
    }

    /// True for exactly one address.
    pub fn is_single(&self) -> bool {
        match *self {
            Addresses::Any => false,
            Addresses::V4Mask(_, mask) => mask == u32::MAX,
            Addresses::V6Mask(_, mask) => mask == u128::MAX,
            Addresses::V4Range(low, high) => low == high,
            Addresses::V6Range(low, high) => low == high,
        }
    }
}

/// Addresses, ports and protocol of a flow as its sender sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selector {
    /// Where it comes from.
    pub source: Addresses,
    /// Where it goes to.
    pub destination: Addresses,
    /// 0 any.
    pub source_port: u16,
    /// 0 any.
    pub destination_port: u16,
    /// IP protocol, 0 any.
    pub protocol: u8,
}

impl Selector {
    /// The selector of a SAT.
    ///
    /// # Errors
    /// [`BadSelector`] for an end that is neither addresses nor "any".
    pub fn of(policy: &TekPolicy) -> Result<Selector, BadSelector> {
        Ok(Selector {
            source: Addresses::of(&policy.source)?,
            destination: Addresses::of(&policy.destination)?,
            source_port: policy.source.port,
            destination_port: policy.destination.port,
            protocol: policy.ip_protocol,
        })
    }

    /// True when the packet is of this flow, as its sender sees it.
    pub fn matches(&self, packet: &Header) -> bool {
        let ports = match packet.ports {
            _ if self.source_port == 0 && self.destination_port == 0 => true,
            Some((source, destination)) => {
                (self.source_port == 0 || self.source_port == source)
                    && (self.destination_port == 0 || self.destination_port == destination)
            }
            None => false,
        };
        ports
            && (self.protocol == 0 || self.protocol == packet.protocol)
            && self.source.contain(packet.source)
            && self.destination.contain(packet.destination)
    }

    /// The same for what arrives: a unicast packet may be the answer to the flow, a multicast packet may not
    /// (RFC 5374 section 4.1.1).
    pub fn matches_either_way(&self, packet: &Header) -> bool {
        self.matches(packet) || (!packet.destination.is_multicast() && self.matches(&packet.reversed()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::header::Fragment;

    pub(crate) fn packet(source: &str, destination: &str, protocol: u8, ports: Option<(u16, u16)>) -> Header {
        Header {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            ports,
            length: 20,
            total: 40,
            protocol_at: 9,
            traffic_class: 0,
            dont_fragment: false,
            fragment: Fragment::Whole,
        }
    }

    pub(crate) fn prefix(text: &str) -> Addresses {
        let (address, length) = text.split_once('/').unwrap();
        Addresses::prefix(address.parse().unwrap(), length.parse().unwrap())
    }

    pub(crate) fn selector(source: &str, destination: &str) -> Selector {
        Selector {
            source: prefix(source),
            destination: prefix(destination),
            source_port: 0,
            destination_port: 0,
            protocol: 0,
        }
    }

    #[test]
    fn every_kind_of_endpoint_becomes_its_set_of_addresses() {
        let of = |id_type, data: &str| {
            Addresses::of(&Endpoint { id_type, port: 0, data: hex::decode(data).unwrap() })
        };
        let contains =
            |set: Result<Addresses, BadSelector>, text: &str| set.unwrap().contain(text.parse().unwrap());
        assert!(contains(of(IdType::Ipv4Addr, "0a000001"), "10.0.0.1"));
        assert!(!contains(of(IdType::Ipv4Addr, "0a000001"), "10.0.0.2"));
        assert!(contains(of(IdType::Ipv4Subnet, "0a0100ffffff0000"), "10.1.2.3"));
        assert!(!contains(of(IdType::Ipv4Subnet, "0a010000ffff0000"), "10.2.2.3"));
        assert!(contains(of(IdType::Ipv4Range, "0a0000010a000003"), "10.0.0.3"));
        assert!(!contains(of(IdType::Ipv4Range, "0a0000010a000003"), "10.0.0.4"));
        let six = "20010db8000000000000000000000000";
        assert!(contains(
            of(IdType::Ipv6Subnet, &format!("{six}ffffffff{}", "00".repeat(12))),
            "2001:db8::9"
        ));
        assert!(contains(of(IdType::Ipv6Range, &format!("{six}{six}")), "2001:db8::"));
        assert!(contains(of(IdType::Ipv6Addr, six), "2001:db8::"));
        assert!(contains(of(IdType::Ipv4Subnet, ""), "2001:db8::"));
        assert!(!contains(of(IdType::Ipv4Subnet, "0000000000000000"), "2001:db8::"));
        assert!(of(IdType::Ipv4Subnet, "0a0000").is_err());
        assert!(of(IdType::KeyId, "0a000001").is_err());
    }

    #[test]
    fn a_selector_with_a_port_never_matches_a_packet_without_one() {
        let web = Selector { destination_port: 80, protocol: 6, ..selector("10.0.0.0/8", "10.0.0.0/8") };
        assert!(web.matches(&packet("10.1.0.1", "10.2.0.1", 6, Some((4000, 80)))));
        assert!(!web.matches(&packet("10.1.0.1", "10.2.0.1", 6, None)));
        assert!(!web.matches(&packet("10.1.0.1", "10.2.0.1", 17, Some((4000, 80)))));
    }

    #[test]
    fn only_a_unicast_flow_has_an_answer() {
        let flow = selector("10.1.0.0/16", "0.0.0.0/0");
        assert!(flow.matches_either_way(&packet("10.9.0.1", "10.1.0.1", 1, None)));
        assert!(!flow.matches(&packet("10.9.0.1", "10.1.0.1", 1, None)));
        let group = selector("239.0.0.0/8", "10.9.0.0/16");
        assert!(!group.matches_either_way(&packet("10.9.0.1", "239.1.1.1", 17, None)));
    }
}
