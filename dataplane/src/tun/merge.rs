//! Packets of one flow as one: the host takes a run of them with a single write, as if its own TCP had made it.
//!
//! ```text
//! virtio header | IP | TCP or UDP | payload | payload | ... | payload, the last perhaps shorter
//!                 `-- of the first packet --'`-- of each packet, where it lies --'
//! ```
//!
//! Nothing is copied: the caller writes the parts from where they are. A packet that is not the exact continuation of those
//! before it begins a run of its own, and order is kept.

use tun_rs::{
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4, VirtioNetHdr,
    checksum as sum, checksum_no_fold,
};

use crate::header::{checksum, protocol};

/// Packets in a run, at most.
pub const LONGEST: usize = 128;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the host, or its hardware, computes the checksum.
const NEEDS_CHECKSUM: u8 = 1;
const ACK: u8 = 0x10;
const PUSH: u8 = 0x08;

/// Whose checksum counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Somebody's packet: only packets whose checksum is right are merged, or a wrong one would become right.
    Verify,
    /// Our own ESP in UDP, which has none yet.
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp { next: u32, push: bool },
    Udp,
}

/// A run of packets.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    kind: Kind,
    trust: Trust,
    v4: bool,
    /// Octets of the IP header.
    ip: usize,
    /// Octets of all headers.
    headers: usize,
    /// Octets of payload in each but the last.
    segment: usize,
    /// Octets of payload in all.
    payload: usize,
    packets: usize,
    /// Nothing follows: the last one was shorter, or pushed.
    closed: bool,
}

fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    crate::header::octets(packet, at).map(u16::from_be_bytes)
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    if let Some(place) = packet.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

impl Run {
    /// A run that begins with `packet`; none when nothing is merged with packets like it.
    pub fn begin(packet: &[u8], trust: Trust) -> Option<Run> {
        let v4 = packet.first()? >> 4 == 4;
        let (ip, total, upper) = if v4 {
            // No options, no fragments: MF and offset are zero.
            let plain = *packet.first()? == 0x45 && u16_at(packet, 6)? & 0x3fff == 0;
            (20, usize::from(u16_at(packet, 2)?), plain.then_some(*packet.get(9)?)?)
        } else {
            (40, 40 + usize::from(u16_at(packet, 4)?), *packet.get(6)?)
        };
        if total != packet.len() {
            return None;
        }
        let (kind, headers) = match upper {
            protocol::TCP => {
                let headers = ip + usize::from(*packet.get(ip + 12)? >> 4) * 4;
                let flags = *packet.get(ip + 13)?;
                if flags & !PUSH != ACK || headers < ip + 20 {
                    return None;
                }
                let sequence = crate::header::octets(packet, ip + 4).map(u32::from_be_bytes)?;
                // Only lengths below 65536 come here.
                let next = sequence.wrapping_add(u32::try_from(total.checked_sub(headers)?).ok()?);
                (Kind::Tcp { next, push: flags & PUSH != 0 }, headers)
            }
            protocol::UDP => {
                let checked = trust == Trust::Own || u16_at(packet, ip + 6)? != 0;
                let whole = usize::from(u16_at(packet, ip + 4)?) == total - ip;
                ((checked && whole).then_some(Kind::Udp)?, ip + 8)
            }
            _ => return None,
        };
        let segment = total.checked_sub(headers).filter(|payload| *payload > 0)?;
        let closed = matches!(kind, Kind::Tcp { push: true, .. });
        Some(Run { kind, trust, v4, ip, headers, segment, payload: segment, packets: 1, closed })
    }

    /// Octets before the payload of every packet.
    pub fn headers(&self) -> usize {
        self.headers
    }

    /// True when it is one packet only, that may go as it is.
    pub fn is_single(&self) -> bool {
        self.packets == 1 && self.trust == Trust::Verify
    }

    /// Adds `packet` behind those there are, of which `first` is the first; false when it does not continue them.
    pub fn add(&mut self, first: &[u8], packet: &[u8]) -> bool {
        self.continued_by(first, packet).is_some_and(|next| {
            *self = next;
            true
        })
    }

    fn continued_by(&self, first: &[u8], packet: &[u8]) -> Option<Run> {
        let next = Run::begin(packet, self.trust)?;
        let fits = !self.closed
            && (next.v4, next.headers) == (self.v4, self.headers)
            && next.segment <= self.segment
            && self.packets < LONGEST
            && self.headers + self.payload + next.payload <= usize::from(u16::MAX);
        let kind = match (self.kind, next.kind) {
            (Kind::Tcp { next: expected, .. }, Kind::Tcp { next: after, push }) => {
                let begins = after.wrapping_sub(u32::try_from(next.payload).ok()?);
                (begins == expected).then_some(Kind::Tcp { next: after, push })?
            }
            (Kind::Udp, Kind::Udp) => Kind::Udp,
            _ => return None,
        };
        if !fits || !self.same_headers(first, packet)? {
            return None;
        }
        let right = |packet: &[u8]| self.trust == Trust::Own || self.checksum_is_right(packet);
        if (self.packets == 1 && !right(first)) || !right(packet) {
            return None;
        }
        Some(Run {
            kind,
            payload: self.payload + next.payload,
            packets: self.packets + 1,
            closed: next.closed || next.segment < self.segment,
            ..*self
        })
    }

    /// Whether all that a receiver could tell the headers apart by is the same: all but lengths, checksums, the sequence
    /// number, PSH, and the identification that counts.
    fn same_headers(&self, first: &[u8], packet: &[u8]) -> Option<bool> {
        let same = |from: usize, to: usize| Some(first.get(from..to)? == packet.get(from..to)?);
        let ip = if self.v4 {
            let counts = u16_at(packet, 4)?.wrapping_sub(u16_at(first, 4)?);
            let identified = first.get(6)? & 0x40 != 0 || usize::from(counts) == self.packets;
            identified && same(0, 2)? && same(6, 10)? && same(12, 20)?
        } else {
            same(0, 4)? && same(6, 40)?
        };
        let upper = match self.kind {
            // Ports; acknowledgement and header length; window; urgent pointer and options.
            Kind::Tcp { .. } => {
                same(self.ip, self.ip + 4)?
                    && same(self.ip + 8, self.ip + 13)?
                    && same(self.ip + 14, self.ip + 16)?
                    && same(self.ip + 18, self.headers)?
            }
            Kind::Udp => same(self.ip, self.ip + 4)?,
        };
        Some(ip && upper)
    }

    /// The sum over the pseudo header of `length` octets of TCP or UDP (RFC 9293 section 3.1, RFC 8200 section 8.1).
    fn pseudo_sum(&self, packet: &[u8], length: usize) -> u64 {
        let addresses = if self.v4 { packet.get(12..20) } else { packet.get(8..40) };
        let upper = if self.kind == Kind::Udp { protocol::UDP } else { protocol::TCP };
        checksum_no_fold(addresses.unwrap_or_default(), u64::from(upper) + length as u64)
    }

    fn checksum_is_right(&self, packet: &[u8]) -> bool {
        let upper = packet.get(self.ip..).unwrap_or_default();
        sum(upper, self.pseudo_sum(packet, upper.len())) == u16::MAX
    }

    /// Makes `first` the head of the whole run and returns what to write before it.
    pub fn finish(&self, first: &mut [u8]) -> VirtioNetHdr {
        let total = self.headers + self.payload;
        let upper = total - self.ip;
        // At most 65535, as every packet was added.
        let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        if self.v4 {
            put(first, 2, short(total));
            put(first, 10, 0);
            let ip = checksum(first.get(..self.ip).unwrap_or_default());
            put(first, 10, ip);
        } else {
            put(first, 4, short(upper));
        }
        let at = match self.kind {
            Kind::Tcp { push, .. } => {
                if let Some(flags) = first.get_mut(self.ip + 13).filter(|_| push) {
                    *flags |= PUSH;
                }
                16
            }
            Kind::Udp => {
                put(first, self.ip + 4, short(upper));
                6
            }
        };
        let pseudo = sum(&[], self.pseudo_sum(first, upper));
        put(first, self.ip + at, pseudo);
        let gso_type = match (self.packets, self.kind, self.v4) {
            (1, ..) => 0,
            (_, Kind::Udp, _) => VIRTIO_NET_HDR_GSO_UDP_L4,
            (_, Kind::Tcp { .. }, true) => VIRTIO_NET_HDR_GSO_TCPV4,
            (_, Kind::Tcp { .. }, false) => VIRTIO_NET_HDR_GSO_TCPV6,
        };
        VirtioNetHdr {
            flags: NEEDS_CHECKSUM,
            gso_type,
            hdr_len: short(self.headers),
            gso_size: if self.packets == 1 { 0 } else { short(self.segment) },
            csum_start: short(self.ip),
            csum_offset: short(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet with all checksums right.
    fn packet(v4: bool, tcp: bool, at: u32, payload: &[u8]) -> Vec<u8> {
        let mut upper = vec![0x9c, 0x40, 0, 80];
        if tcp {
            upper.extend(at.to_be_bytes());
            upper.extend([0, 0, 0, 9, 0x80, ACK, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
            upper.truncate(32);
        } else {
            upper.extend((8 + payload.len() as u16).to_be_bytes());
            upper.extend([0, 0]);
        }
        upper.extend_from_slice(payload);
        let length = upper.len() as u16;
        let number = if tcp { 6 } else { 17 };
        let mut packet = if v4 {
            let [high, low] = (20 + length).to_be_bytes();
            let mut ip = vec![0x45, 0, high, low, 0, 7, 0x40, 0, 63, number, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9];
            let sum = checksum(&ip);
            put(&mut ip, 10, sum);
            ip
        } else {
            let [high, low] = length.to_be_bytes();
            let mut ip = vec![0x60, 0, 1, 2, high, low, number, 63];
            ip.extend([0x20; 16]);
            ip.extend([0x30; 16]);
            ip
        };
        let ip = packet.len();
        packet.extend(upper);
        let addresses = if v4 { &packet[12..20] } else { &packet[8..40] };
        let pseudo = checksum_no_fold(addresses, u64::from(number) + u64::from(length));
        let upper = !sum(&packet[ip..], pseudo);
        let at = ip + if tcp { 16 } else { 6 };
        put(&mut packet, at, upper);
        packet
    }

    /// Merges all that can be from the first on: the run as the host reads it, and how many are in it.
    fn merged(packets: &[Vec<u8>], trust: Trust) -> Option<(VirtioNetHdr, Vec<u8>, usize)> {
        let mut run = Run::begin(&packets[0], trust)?;
        let mut count = 1;
        while packets.get(count).is_some_and(|next| run.add(&packets[0], next)) {
            count += 1;
        }
        let mut whole = packets[0].clone();
        let header = run.finish(&mut whole);
        packets[1..count].iter().for_each(|packet| whole.extend_from_slice(&packet[run.headers()..]));
        Some((header, whole, count))
    }

    #[test]
    fn a_packet_that_is_not_the_next_of_its_flow_begins_anew() {
        for v4 in [true, false] {
            let first = packet(v4, true, 1000, &[1; 100]);
            let follows = |second: Vec<u8>| {
                let mut run = Run::begin(&first, Trust::Verify).unwrap();
                run.add(&first, &second)
            };
            assert!(follows(packet(v4, true, 1100, &[1; 100])));
            assert!(follows(packet(v4, true, 1100, &[1; 60])), "a shorter one ends the run");
            assert!(!follows(packet(v4, true, 1100, &[1; 101])), "longer");
            assert!(!follows(packet(v4, true, 1101, &[1; 100])), "a gap");
            assert!(!follows(packet(v4, true, 1100, &[])), "no payload");
            assert!(!follows(packet(v4, false, 0, &[1; 100])), "UDP");
            let ip = if v4 { 20 } else { 40 };
            for (at, what) in
                [(1, "class"), (ip + 3, "port"), (ip + 11, "acknowledgement"), (ip + 15, "window")]
            {
                let mut other = packet(v4, true, 1100, &[1; 100]);
                other[at] ^= 1;
                // The checksum is made right again: what is wrong is the field.
                let sum_at = ip + 16;
                put(&mut other, sum_at, 0);
                let run = Run::begin(&other, Trust::Verify).unwrap();
                let right = !sum(&other[ip..], run.pseudo_sum(&other, other.len() - ip));
                put(&mut other, sum_at, right);
                assert!(!follows(other), "{what}");
            }
            for flags in [ACK | 1, ACK | 2, ACK | 4, ACK | 0x20, ACK | 0x40, 0] {
                let mut other = packet(v4, true, 1100, &[1; 100]);
                other[ip + 13] = flags;
                assert!(Run::begin(&other, Trust::Verify).is_none(), "flags {flags:#x}");
            }
        }
    }

    #[test]
    fn a_wrong_checksum_never_becomes_a_right_one() {
        for (v4, tcp) in [(true, true), (false, true), (true, false), (false, false)] {
            let packets = [0, 100, 200].map(|at| packet(v4, tcp, at, &[9; 100]));
            for wrong in 0..3 {
                let mut packets = packets.to_vec();
                *packets[wrong].last_mut().unwrap() ^= 1;
                let (_, _, count) = merged(&packets, Trust::Verify).unwrap();
                assert_eq!(count, [1, 1, 2][wrong]);
            }
        }
        let mut none = packet(true, false, 0, &[9; 100]);
        put(&mut none, 26, 0);
        assert!(Run::begin(&none, Trust::Verify).is_none(), "UDP without a checksum stays alone");
    }

    #[test]
    fn fragments_options_and_lengths_that_lie_are_left_alone() {
        let good = packet(true, true, 0, &[1; 100]);
        for (at, value) in [(6, 0x20), (7, 1), (0, 0x46), (2, 1), (32, 0x40), (9, 50)] {
            let mut odd = good.clone();
            odd[at] = value;
            assert!(Run::begin(&odd, Trust::Verify).is_none(), "octet {at}");
        }
        for length in 0..good.len() {
            assert!(Run::begin(&good[..length], Trust::Verify).is_none());
        }
        let mut six = packet(false, true, 0, &[1; 100]);
        six[6] = 0;
        assert!(Run::begin(&six, Trust::Verify).is_none(), "an extension header");
    }

    #[test]
    fn a_run_ends_before_its_length_no_longer_fits() {
        let packets: Vec<_> = (0..60).map(|n| packet(true, true, n * 1400, &[3; 1400])).collect();
        let (header, whole, count) = merged(&packets, Trust::Verify).unwrap();
        assert_eq!((count, whole.len(), header.gso_size), (46, 52 + 46 * 1400, 1400));
    }

    proptest! {
        /// The host splits a run again by the virtio header; what it gets must be the packets there were.
        #[test]
        fn what_the_host_splits_again_are_the_packets_that_were_merged(
            v4 in any::<bool>(), tcp in any::<bool>(), start in any::<u32>(), push in any::<bool>(),
            octets in 1usize..300, count in 2usize..20, last in 1usize..300,
        ) {
            let last = last.min(octets);
            let mut packets: Vec<Vec<u8>> = (0..count).map(|n| {
                let length = if n + 1 == count { last } else { octets };
                let payload: Vec<u8> = (0..length).map(|at| (at * 7 + n) as u8).collect();
                packet(v4, tcp, start.wrapping_add((n * octets) as u32), &payload)
            }).collect();
            let ip = if v4 { 20 } else { 40 };
            if tcp && push {
                let end = packets.last_mut().unwrap();
                end[ip + 13] |= PUSH;
                put(end, ip + 16, 0);
                let run = Run::begin(end, Trust::Verify).unwrap();
                let right = !sum(&end[ip..], run.pseudo_sum(end, end.len() - ip));
                put(end, ip + 16, right);
            }
            let (header, mut whole, merged) = merged(&packets, Trust::Verify).unwrap();
            prop_assert_eq!(merged, count);
            let mut buffers = vec![vec![0; 1500]; count];
            let mut sizes = vec![0; count];
            let split = tun_rs::gso_split(&mut whole, header, &mut buffers, &mut sizes, 0, !v4).unwrap();
            prop_assert_eq!(split, count);
            for (n, packet) in packets.iter_mut().enumerate() {
                let found = &mut buffers[n][..sizes[n]];
                if v4 {
                    // The identification counts on.
                    prop_assert_eq!(u16_at(found, 4), Some(7 + n as u16));
                    put(packet, 4, 7 + n as u16);
                    put(packet, 10, 0);
                    let sum = checksum(&packet[..20]);
                    put(packet, 10, sum);
                }
                prop_assert_eq!(&*found, &packet[..]);
            }
        }

        #[test]
        fn no_octets_make_it_panic(mut octets in proptest::collection::vec(any::<u8>(), 0..120), v4 in any::<bool>()) {
            if octets.len() > 7 {
                octets[0] = if v4 { 0x45 } else { 0x60 };
                let length = if v4 { octets.len() } else { octets.len().saturating_sub(40) } as u16;
                put(&mut octets, if v4 { 2 } else { 4 }, length);
            }
            if let Some(mut run) = Run::begin(&octets, Trust::Own) {
                let other = octets.clone();
                run.add(&octets, &other);
                run.finish(&mut octets);
            }
        }
    }
}
