//! What rules and ESP need to know of an IP packet, read without trusting it.
//!
//! ```text
//! IPv4: 20-60 octets of header                                     | upper protocol
//! IPv6: 40 octets | hop-by-hop, routing, destination, fragment ... | upper protocol
//! ```
//!
//! A later fragment has no ports: rules that name a port never match it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// IPv6 extension headers looked through; more are refused.
const MAX_EXTENSIONS: usize = 8;

/// IP protocol numbers used here.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ESP.
    pub const ESP: u8 = 50;
    /// AH.
    pub const AH: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows: in ESP a dummy packet (RFC 4303 section 2.6).
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Why octets are no packet we can judge. Such a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Fewer octets than a header, or than the header says.
    #[error("shorter than its header says")]
    Truncated,
    /// Neither 4 nor 6.
    #[error("IP version {0}")]
    Version(u8),
    /// A header length that cannot be.
    #[error("impossible header length")]
    Length,
    /// A chain of IPv6 extension headers that is too long.
    #[error("more than {MAX_EXTENSIONS} extension headers")]
    Extensions,
}

/// Which part of a datagram a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first one: it has the upper header.
    First,
    /// A later one.
    Later,
}

/// A parsed IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The protocol behind all IPv6 extension headers.
    pub protocol: u8,
    /// Source and destination port where the protocol has them.
    pub ports: Option<(u16, u16)>,
    /// Octets before the upper protocol.
    pub length: usize,
    /// Octets of the whole packet, as the header says.
    pub total: usize,
    /// Offset of the octet that holds `protocol`.
    pub protocol_at: usize,
    /// DSCP and ECN: TOS or Traffic Class.
    pub traffic_class: u8,
    /// IPv4: the DF bit. Routers never fragment IPv6: true.
    pub dont_fragment: bool,
    /// Whole or a fragment.
    pub fragment: Fragment,
}

/// Reads `N` octets at `at`.
pub(crate) fn octets<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    octets(packet, at).map(u16::from_be_bytes)
}

impl Header {
    /// Reads the header of `packet`; octets behind the end the header states are not looked at.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(packet: &[u8]) -> Result<Header, Malformed> {
        let first = *packet.first().ok_or(Malformed::Truncated)?;
        match first >> 4 {
            4 => Header::read_v4(packet, first),
            6 => Header::read_v6(packet),
            other => Err(Malformed::Version(other)),
        }
    }

    fn read_v4(packet: &[u8], first: u8) -> Result<Header, Malformed> {
        let length = usize::from(first & 15) * 4;
        let fixed: [u8; 20] = octets(packet, 0).ok_or(Malformed::Truncated)?;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if length < 20 || total < length {
            return Err(Malformed::Length);
        }
        if packet.len() < total {
            return Err(Malformed::Truncated);
        }
        let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
        let fragment = match (flags & 0x1fff, flags & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        let mut header = Header {
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
            protocol: fixed[9],
            ports: None,
            length,
            total,
            protocol_at: 9,
            traffic_class: fixed[1],
            dont_fragment: flags & 0x4000 != 0,
            fragment,
        };
        header.ports = header.read_ports(packet);
        Ok(header)
    }

    fn read_v6(packet: &[u8]) -> Result<Header, Malformed> {
        let fixed: [u8; 40] = octets(packet, 0).ok_or(Malformed::Truncated)?;
        let total = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let packet = packet.get(..total).ok_or(Malformed::Truncated)?;
        let address = |at: usize| octets::<16>(packet, at).ok_or(Malformed::Truncated).map(Ipv6Addr::from);
        let (source, destination) = (address(8)?, address(24)?);
        let (mut next, mut at, mut protocol_at) = (fixed[6], 40usize, 6usize);
        let mut fragment = Fragment::Whole;
        for seen in 0.. {
            let extension =
                [protocol::HOP_BY_HOP, protocol::ROUTING, protocol::DESTINATION_OPTIONS, protocol::FRAGMENT];
            if fragment == Fragment::Later || !extension.contains(&next) {
                break;
            }
            if seen == MAX_EXTENSIONS {
                return Err(Malformed::Extensions);
            }
            let [following, units] = octets::<2>(packet, at).ok_or(Malformed::Truncated)?;
            let mut length = (usize::from(units) + 1) * 8;
            if next == protocol::FRAGMENT {
                length = 8;
                let offset = u16_at(packet, at + 2).ok_or(Malformed::Truncated)?;
                fragment = match (offset & 0xfff8, offset & 1) {
                    (0, 0) => fragment,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
            }
            protocol_at = at;
            next = following;
            at += length;
            if at > total {
                return Err(Malformed::Truncated);
            }
        }
        let mut header = Header {
            source: source.into(),
            destination: destination.into(),
            protocol: next,
            ports: None,
            length: at,
            total,
            protocol_at,
            traffic_class: (fixed[0] << 4) | (fixed[1] >> 4),
            dont_fragment: true,
            fragment,
        };
        header.ports = header.read_ports(packet);
        Ok(header)
    }

    /// TCP, UDP, DCCP, SCTP and UDP-Lite begin with two ports.
    fn read_ports(&self, packet: &[u8]) -> Option<(u16, u16)> {
        if self.fragment == Fragment::Later
            || !matches!(self.protocol, protocol::TCP | protocol::UDP | 33 | protocol::SCTP | 136)
            || self.length + 4 > self.total
        {
            return None;
        }
        Some((u16_at(packet, self.length)?, u16_at(packet, self.length + 2)?))
    }

    /// True for IPv4.
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// True when routes, rules and policies cannot tell the two packets apart.
    pub fn is_same_flow(&self, other: &Header) -> bool {
        let flow = |header: &Header| {
            (header.ports, header.protocol, header.fragment, header.destination, header.source)
        };
        flow(self) == flow(other)
    }

    /// The same packet as its answer would look: ends swapped.
    pub fn reversed(&self) -> Header {
        Header {
            source: self.destination,
            destination: self.source,
            ports: self.ports.map(|(source, destination)| (destination, source)),
            ..*self
        }
    }

    /// True for traffic that never leaves a link or manages multicast: the operator may let it bypass.
    pub fn is_link_local(&self) -> bool {
        match self.destination {
            IpAddr::V4(to) => {
                to.is_broadcast() || to.octets().starts_with(&[224, 0, 0]) || to.is_link_local()
            }
            IpAddr::V6(to) => to.is_unicast_link_local() || (to.is_multicast() && to.octets()[1] & 15 <= 2),
        }
    }
}

/// The one's complement sum of an IPv4 header whose checksum field is zero, complemented (RFC 791 section 3.1).
pub fn checksum(header: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in header.chunks(2) {
        let high = u32::from(pair.first().copied().unwrap_or(0)) << 8;
        sum += high | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // At most 0xffff after folding.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Hops a packet may still take: TTL or hop limit.
pub fn hops(packet: &[u8]) -> u8 {
    hops_at(packet).and_then(|at| packet.get(at)).copied().unwrap_or(0)
}

fn hops_at(packet: &[u8]) -> Option<usize> {
    Some(if packet.first()? >> 4 == 4 { 8 } else { 7 })
}

/// Takes a hop from a packet; false when it has none to spare.
pub fn take_hop(packet: &mut [u8]) -> bool {
    let left = hops(packet);
    left > 1 && set_hops(packet, left - 1)
}

/// Gives a packet a hop back.
pub fn add_hop(packet: &mut [u8]) {
    set_hops(packet, hops(packet).saturating_add(1));
}

fn set_hops(packet: &mut [u8], value: u8) -> bool {
    let Some(at) = hops_at(packet) else { return false };
    let Some(hops) = packet.get_mut(at) else { return false };
    let old = std::mem::replace(hops, value);
    if at == 8
        && let Some(sum) = packet.get_mut(10..12)
    {
        // RFC 1624: HC' = ~(~HC + ~m + m'), where m is the TTL and what stands beside it.
        let before = sum.iter().fold(0, |sum, octet| sum << 8 | u32::from(*octet));
        let mut new = (!before & 0xffff) + (!(u32::from(old) << 8) & 0xffff) + (u32::from(value) << 8);
        while new > 0xffff {
            new = (new & 0xffff) + (new >> 16);
        }
        let [.., high, low] = (!new).to_be_bytes();
        sum.copy_from_slice(&[high, low]);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4() -> Vec<u8> {
        hex::decode("4500002000014000401126bc0a0100050a0200099c400009000c000067646f69").unwrap()
    }

    /// IPv6 with a hop-by-hop header before UDP 7 -> 9.
    fn v6() -> Vec<u8> {
        let mut packet = vec![0x6b, 0x80, 0, 0, 0, 16, 0, 64];
        packet.extend([0x20; 16]);
        packet.extend([0x30; 16]);
        packet.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend([0, 7, 0, 9, 0, 8, 0, 0]);
        packet
    }

    #[test]
    fn an_ipv4_header_is_read_and_its_checksum_is_that_of_the_vector() {
        let mut packet = v4();
        let header = Header::read(&packet).unwrap();
        assert_eq!((header.protocol, header.ports), (17, Some((40000, 9))));
        assert_eq!((header.length, header.total, header.dont_fragment), (20, 32, true));
        packet[10..12].fill(0);
        assert_eq!(checksum(&packet[..20]), 0x26bc);
    }

    #[test]
    fn the_upper_protocol_is_found_behind_extension_headers() {
        let header = Header::read(&v6()).unwrap();
        assert_eq!((header.protocol, header.ports, header.length), (17, Some((7, 9)), 48));
        assert_eq!((header.protocol_at, header.traffic_class), (40, 0xb8));
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut packet = v4();
        packet[6..8].copy_from_slice(&[0x20, 0]);
        assert_eq!(Header::read(&packet).unwrap().fragment, Fragment::First);
        packet[6..8].copy_from_slice(&[0, 5]);
        let header = Header::read(&packet).unwrap();
        assert_eq!((header.fragment, header.ports), (Fragment::Later, None));
        let mut packet = v6();
        packet[6] = protocol::FRAGMENT;
        packet[40..44].copy_from_slice(&[60, 0, 1, 0]);
        let header = Header::read(&packet).unwrap();
        assert_eq!((header.protocol, header.fragment, header.ports), (60, Fragment::Later, None));
    }

    #[test]
    fn every_truncation_is_refused() {
        for packet in [v4(), v6()] {
            for length in 0..packet.len() {
                assert!(Header::read(&packet[..length]).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn an_endless_chain_of_extensions_is_refused() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 160, 60, 64];
        packet.extend([0x20; 32]);
        for _ in 0..20 {
            packet.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        }
        assert_eq!(Header::read(&packet), Err(Malformed::Extensions));
    }

    #[test]
    fn what_no_router_forwards_is_told_from_the_rest() {
        let header = Header::read(&v4()).unwrap();
        let stays = |to: &str| Header { destination: to.parse().unwrap(), ..header }.is_link_local();
        assert!(["224.0.0.22", "ff02::16", "ff01::1", "ff12::5", "fe80::1"].into_iter().all(stays));
        assert!(!["224.0.1.1", "239.1.1.1", "ff05::2", "ff0e::7", "192.0.2.1"].into_iter().any(stays));
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(mut packet in proptest::collection::vec(any::<u8>(), 0..120), version in 0u8..3) {
            if let (Some(first), 1..) = (packet.first_mut(), version) {
                *first = [0, 0x45, 0x60][usize::from(version)];
            }
            if let Ok(header) = Header::read(&packet) {
                prop_assert!(header.length <= header.total && header.total <= packet.len());
            }
        }
    }
}
