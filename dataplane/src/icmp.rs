//! The answer to a packet that is too long for the tunnel and must not be fragmented: its sender learns the path MTU
//! (RFC 1191 section 4, RFC 4443 section 3.2).

use std::net::IpAddr;

use crate::header::{Fragment, Header, checksum, protocol};

/// Octets of the longest answer.
pub const MAX: usize = 1280;
/// Octets of an IPv4 answer: the header and eight octets are enough, hosts like more (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;

/// Writes the answer to `packet` from `own` into `out` and returns its length; none when there must be no answer: to
/// an ICMP error, a later fragment, a multicast of IPv4, or a sender that is no host.
pub fn too_big(packet: &[u8], header: &Header, own: IpAddr, mtu: usize, out: &mut [u8]) -> Option<usize> {
    let no_host = header.source.is_unspecified() || header.source.is_multicast();
    if no_host || header.fragment == Fragment::Later || is_error(packet, header) {
        return None;
    }
    let packet = packet.get(..header.total)?;
    match (own, header.source) {
        (IpAddr::V4(own), IpAddr::V4(to)) => {
            if header.destination.is_multicast() || to.is_broadcast() {
                return None;
            }
            let quoted = packet.get(..MAX_V4 - 28).unwrap_or(packet);
            let total = 28 + quoted.len();
            let out = out.get_mut(..total)?;
            let (ip, rest) = out.split_at_mut_checked(20)?;
            // Internetwork control, as routers send it.
            ip.copy_from_slice(&[
                0x45,
                0xc0,
                0,
                0,
                0,
                0,
                0,
                0,
                64,
                protocol::ICMP,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ]);
            put(ip, 2, &u16::try_from(total).ok()?.to_be_bytes())?;
            put(ip, 12, &own.octets())?;
            put(ip, 16, &to.octets())?;
            let sum = checksum(ip);
            put(ip, 10, &sum.to_be_bytes())?;
            put(rest, 0, &[3, 4, 0, 0, 0, 0])?;
            put(rest, 6, &u16::try_from(mtu).ok()?.to_be_bytes())?;
            put(rest, 8, quoted)?;
            let sum = checksum(rest);
            put(rest, 2, &sum.to_be_bytes())?;
            Some(total)
        }
        (IpAddr::V6(own), IpAddr::V6(to)) => {
            let quoted = packet.get(..MAX - 48).unwrap_or(packet);
            let total = 48 + quoted.len();
            let out = out.get_mut(..total)?;
            let length = u32::try_from(8 + quoted.len()).ok()?;
            put(out, 0, &[0x60, 0, 0, 0, 0, 0, protocol::ICMPV6, 64])?;
            put(out, 8, &own.octets())?;
            put(out, 24, &to.octets())?;
            put(out, 40, &[2, 0, 0, 0])?;
            put(out, 44, &u32::try_from(mtu).ok()?.to_be_bytes())?;
            put(out, 48, quoted)?;
            // The pseudo-header (RFC 8200 section 8.1) stands where version and hop limit will.
            put(out, 0, &length.to_be_bytes())?;
            put(out, 4, &[0, 0, 0, protocol::ICMPV6])?;
            let sum = checksum(out);
            put(out, 42, &sum.to_be_bytes())?;
            put(out, 0, &[0x60, 0, 0, 0])?;
            put(out, 4, &u16::try_from(length).ok()?.to_be_bytes())?;
            put(out, 6, &[protocol::ICMPV6, 64])?;
            Some(total)
        }
        _ => None,
    }
}

fn is_error(packet: &[u8], header: &Header) -> bool {
    let kind = packet.get(header.length).copied();
    match header.protocol {
        // Echo, router discovery, timestamp and information are questions and answers.
        protocol::ICMP => !kind.is_some_and(|kind| matches!(kind, 0 | 8..=10 | 13..=18)),
        protocol::ICMPV6 => kind.is_none_or(|kind| kind < 128),
        _ => false,
    }
}

fn put(to: &mut [u8], at: usize, from: &[u8]) -> Option<()> {
    to.get_mut(at..at.checked_add(from.len())?)?.copy_from_slice(from);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(packet: &[u8], own: &str) -> Option<Vec<u8>> {
        let mut out = vec![0; MAX];
        let header = Header::read(packet).unwrap();
        too_big(packet, &header, own.parse().unwrap(), 1400, &mut out).map(|length| out[..length].to_vec())
    }

    fn v4(protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9];
        packet.extend(body);
        let total = u16::try_from(packet.len()).unwrap().to_be_bytes();
        packet[2..4].copy_from_slice(&total);
        packet
    }

    #[test]
    fn the_sender_of_ipv4_learns_the_mtu_and_sees_its_packet() {
        let long = v4(17, &[7; 1480]);
        let icmp = answer(&long, "10.1.0.1").unwrap();
        let header = Header::read(&icmp).unwrap();
        assert_eq!((header.protocol, header.total), (1, 576));
        assert_eq!(
            (header.source.to_string(), header.destination),
            ("10.1.0.1".to_owned(), "10.1.0.5".parse().unwrap())
        );
        assert_eq!((checksum(&icmp[..20]), checksum(&icmp[20..])), (0, 0));
        assert_eq!(icmp[20..22], [3, 4]);
        assert_eq!(icmp[26..28], 1400u16.to_be_bytes());
        assert_eq!(icmp[28..], long[..548]);
    }

    #[test]
    fn the_sender_of_ipv6_learns_it_too() {
        let mut long = vec![0x60, 0, 0, 0, 5, 0xdc, 17, 64];
        long.extend([0x20; 16]);
        long.extend([0x30; 16]);
        long.extend([9; 1500]);
        let icmp = answer(&long, "2001:db8::1").unwrap();
        let header = Header::read(&icmp).unwrap();
        assert_eq!((header.protocol, header.total), (58, 1280));
        assert_eq!(icmp[40..42], [2, 0]);
        assert_eq!(icmp[44..48], 1400u32.to_be_bytes());
        let mut pseudo = icmp[8..40].to_vec();
        pseudo.extend(1240u32.to_be_bytes());
        pseudo.extend([0, 0, 0, 58]);
        pseudo.extend(&icmp[40..]);
        assert_eq!(checksum(&pseudo), 0);
    }

    #[test]
    fn errors_fragments_and_multicast_get_no_answer() {
        assert!(answer(&v4(1, &[3; 600]), "10.1.0.1").is_none());
        assert!(answer(&v4(1, &[8; 600]), "10.1.0.1").is_some(), "a ping is no error");
        let mut later = v4(17, &[0; 600]);
        later[7] = 9;
        assert!(answer(&later, "10.1.0.1").is_none());
        let mut group = v4(17, &[0; 600]);
        group[16] = 239;
        assert!(answer(&group, "10.1.0.1").is_none());
    }
}
