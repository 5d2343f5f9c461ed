//! Where things stand in an ESP packet, and the outer header of a tunnel (RFC 4301 section 5.1.2).
//!
//! ```text
//! tunnel     outer IP | [UDP] | SPI SEQ | IV | [IP-D3P] | inner IP packet | pad, length, next header | ICV
//! transport  IP, ext. | [UDP] | SPI SEQ | IV | [IP-D3P] | upper protocol  | pad, length, next header | ICV
//! ```

use std::ops::Range;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::Encapsulation;

use super::Shape;
use crate::d3p;
use crate::header::{Fragment, Header, checksum, octets, protocol};

/// SPI and sequence number.
pub const ESP_HEADER: usize = 8;
/// Pad length and next header.
pub const TRAILER: usize = 2;
/// A UDP header.
const UDP_HEADER: usize = 8;
/// Octets a buffer needs before a packet to be sealed: IPv6, UDP, ESP, the longest IV, IP-D3P.
pub const HEADROOM: usize = 40 + UDP_HEADER + ESP_HEADER + 16 + d3p::LENGTH;
/// Octets a buffer needs behind it: padding, trailer, the longest ICV.
pub const TAILROOM: usize = 15 + TRAILER + super::MAX_ICV;

/// What carries ESP over the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Carrier {
    /// IP protocol 50.
    #[default]
    Raw,
    /// UDP from [`UDP_PORT`] to [`UDP_PORT`] (RFC 3948 section 2.1), addresses preserved all the same.
    Udp,
}

/// The port of ESP in UDP, both ways.
pub const UDP_PORT: u16 = 4500;

impl Carrier {
    /// Octets between the IP header and ESP.
    pub fn octets(self) -> usize {
        match self {
            Carrier::Raw => 0,
            Carrier::Udp => UDP_HEADER,
        }
    }

    /// The protocol of the outer IP header.
    pub(super) fn protocol(self) -> u8 {
        match self {
            Carrier::Raw => protocol::ESP,
            Carrier::Udp => protocol::UDP,
        }
    }

    /// What carries the ESP of a packet with this header, if it is ESP at all.
    fn of(header: &Header) -> Option<Carrier> {
        match (header.protocol, header.ports) {
            (protocol::ESP, _) => Some(Carrier::Raw),
            (protocol::UDP, Some((UDP_PORT, UDP_PORT))) => Some(Carrier::Udp),
            _ => None,
        }
    }
}

/// The UDP header before `length` octets of ESP. Its checksum is zero (RFC 3948 section 2.1).
pub(super) fn udp_header(length: usize) -> Option<[u8; UDP_HEADER]> {
    let [high, low] = u16::try_from(UDP_HEADER + length).ok()?.to_be_bytes();
    let [port_high, port_low] = UDP_PORT.to_be_bytes();
    Some([port_high, port_low, port_high, port_low, high, low, 0, 0])
}

/// TTL of outer headers.
const TTL: u8 = 64;

/// The DF bit of outer IPv4 headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DfBit {
    /// Routers may fragment.
    #[default]
    Clear,
    /// Routers must not fragment.
    Set,
    /// As the inner packet says.
    Copy,
}

/// Most octets sealing adds to a packet.
pub fn overhead(
    shape: Shape,
    encapsulation: Encapsulation,
    carrier: Carrier,
    v4: bool,
    timestamp: bool,
) -> usize {
    let outer = match (encapsulation, v4) {
        (Encapsulation::Transport, _) => 0,
        (Encapsulation::Tunnel, true) => 20,
        (Encapsulation::Tunnel, false) => 40,
    };
    let stamp = if timestamp { d3p::LENGTH } else { 0 };
    outer + carrier.octets() + ESP_HEADER + shape.iv + stamp + shape.align - 1 + TRAILER + shape.icv
}

/// Octets of the longest packet that sealed is no longer than `mtu`.
pub fn room(
    shape: Shape,
    encapsulation: Encapsulation,
    carrier: Carrier,
    inner: &Header,
    timestamp: bool,
    mtu: usize,
) -> usize {
    let outer = match (encapsulation, inner.is_v4()) {
        (Encapsulation::Transport, _) => inner.length,
        (Encapsulation::Tunnel, true) => 20,
        (Encapsulation::Tunnel, false) => 40,
    };
    let stamp = if timestamp { d3p::LENGTH } else { 0 };
    let text = mtu.saturating_sub(outer + carrier.octets() + ESP_HEADER + shape.iv + shape.icv);
    let payload = (text - text % shape.align).saturating_sub(TRAILER + stamp);
    // In transport mode the header is not in the payload.
    if encapsulation == Encapsulation::Transport { payload + inner.length } else { payload }
}

/// What an ESP packet says of itself in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peeked {
    /// Its SPI.
    pub spi: Spi,
    /// Its sequence number.
    pub sequence: u32,
    /// What carries it.
    pub carrier: Carrier,
}

/// Looks at an ESP packet; none when it is none, or a later fragment of one. ISAKMP has four zero octets where ESP has its
/// SPI (RFC 3948 section 2.2).
pub fn peek(packet: &[u8], header: &Header) -> Option<Peeked> {
    let carrier = Carrier::of(header).filter(|_| header.fragment != Fragment::Later)?;
    let esp = header.length + carrier.octets();
    let spi = octets(packet, esp).map(u32::from_be_bytes)?;
    let sequence = octets(packet, esp + 4).map(u32::from_be_bytes)?;
    let isakmp = carrier == Carrier::Udp && spi == 0;
    (!isakmp).then_some(Peeked { spi: Spi(spi), sequence, carrier })
}

/// Copies `from` over the octets of `to`; false when it does not fit.
#[must_use]
pub(super) fn put(to: &mut [u8], at: usize, from: &[u8]) -> bool {
    match to.get_mut(at..at.saturating_add(from.len())) {
        Some(place) => {
            place.copy_from_slice(from);
            true
        }
        None => false,
    }
}

/// The outer header of a tunnel that carries `inner`, addresses, DSCP and ECN copied. `total` includes it.
pub(super) fn outer_v4(
    inner: &Header,
    carrier: Carrier,
    total: u16,
    df: DfBit,
    identification: u16,
) -> Option<[u8; 20]> {
    let (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) = (inner.source, inner.destination)
    else {
        return None;
    };
    let df = match df {
        DfBit::Clear => false,
        DfBit::Set => true,
        DfBit::Copy => inner.dont_fragment,
    };
    let [length_high, length_low] = total.to_be_bytes();
    let [id_high, id_low] = identification.to_be_bytes();
    let flags = if df { 0x40 } else { 0 };
    let [s0, s1, s2, s3] = source.octets();
    let [d0, d1, d2, d3] = destination.octets();
    let mut outer = [
        0x45,
        inner.traffic_class,
        length_high,
        length_low,
        id_high,
        id_low,
        flags,
        0,
        TTL,
        carrier.protocol(),
        0,
        0,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ];
    let sum = checksum(&outer).to_be_bytes();
    outer[10] = sum[0];
    outer[11] = sum[1];
    Some(outer)
}

/// The same for IPv6: the flow label is copied too, so that paths stay (RFC 6438 section 3). `payload` excludes it.
pub(super) fn outer_v6(inner: &[u8], carrier: Carrier, payload: u16) -> Option<[u8; 40]> {
    let mut outer: [u8; 40] = octets(inner, 0)?;
    [outer[4], outer[5]] = payload.to_be_bytes();
    outer[6] = carrier.protocol();
    outer[7] = TTL;
    Some(outer)
}

/// Sets length and protocol of the IP header of `packet`, whose extension headers end at `header.length`.
pub(super) fn rewrite(packet: &mut [u8], header: &Header, protocol: u8, total: usize) -> Option<()> {
    *packet.get_mut(header.protocol_at)? = protocol;
    if header.is_v4() {
        let ip = packet.get_mut(..header.length)?;
        put(ip, 2, &u16::try_from(total).ok()?.to_be_bytes()).then_some(())?;
        fix_checksum(ip)
    } else {
        let payload = u16::try_from(total.checked_sub(40)?).ok()?;
        put(packet, 4, &payload.to_be_bytes()).then_some(())
    }
}

/// Computes the checksum of an IPv4 header anew.
fn fix_checksum(ip: &mut [u8]) -> Option<()> {
    put(ip, 10, &[0, 0]).then_some(())?;
    let sum = checksum(ip).to_be_bytes();
    put(ip, 10, &sum).then_some(())
}

/// What congestion the outer header tells of comes into the inner one (RFC 6040 section 4.2); false when the packet
/// must be dropped: congestion experienced, and its ends do not know the word.
#[must_use]
pub(super) fn merge_ecn(packet: &mut [u8], inner: &Header, outer: u8) -> bool {
    let (outer, now) = (outer & 3, inner.traffic_class & 3);
    let merged = match (outer, now) {
        (3, 0) => return false,
        (3, _) => 3,
        (1, 2) => 1,
        _ => now,
    };
    if merged == now {
        return true;
    }
    if inner.is_v4() {
        let Some(ip) = packet.get_mut(..inner.length) else { return false };
        put(ip, 1, &[inner.traffic_class & !3 | merged]) && fix_checksum(ip).is_some()
    } else {
        let Some(octet) = packet.get_mut(1) else { return false };
        *octet = *octet & 0xcf | merged << 4;
        true
    }
}

/// Adds `by` to both ends of a range inside another one.
pub(super) fn shifted(range: Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}
