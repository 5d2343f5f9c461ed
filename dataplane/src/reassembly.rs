//! Fragments of ESP put together again (RFC 791 section 3.2, RFC 4303 section 3.4.1): routers on the way may have
//! fragmented what we must open whole. IPv4 only: routers do not fragment IPv6, and we send none that is too long.
//!
//! Anybody can send fragments, so there are few places and the oldest datagram makes room. Overlaps are refused: no honest
//! router makes them.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use crate::header::{Fragment, Header, checksum, octets};
use crate::sa::Moment;

/// Datagrams that may be incomplete at once.
const PLACES: usize = 64;
/// How long one may stay so.
const PATIENCE: Duration = Duration::from_secs(5);
/// Fragments one may have: 68 octets each are the least a path carries, 576 what real ones do.
const FRAGMENTS: usize = 64;

#[derive(Debug, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    identification: [u8; 2],
}

#[derive(Debug)]
struct Partial {
    key: Key,
    begun: Moment,
    /// The IP header of the first fragment; empty before it came.
    head: Vec<u8>,
    payload: Vec<u8>,
    /// What of the payload is there.
    have: Vec<Range<usize>>,
    /// Octets of payload, once the last fragment came.
    end: Option<usize>,
}

impl Partial {
    fn is_complete(&self) -> bool {
        let there: usize = self.have.iter().map(Range::len).sum();
        !self.head.is_empty() && self.end == Some(there)
    }
}

/// Incomplete datagrams.
#[derive(Debug)]
pub struct Reassembler {
    partial: Vec<Partial>,
    /// Octets of the longest datagram, header included.
    longest: usize,
}

/// What became of a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It waits for the others; so many older datagrams were given up.
    Waits(u64),
    /// The datagram is whole.
    Whole(Range<usize>),
    /// It cannot be a part of anything; what it claims to belong to is given up.
    Refused,
}

impl Reassembler {
    /// Nothing yet, for datagrams of at most `longest` octets.
    pub fn new(longest: usize) -> Reassembler {
        Reassembler { partial: Vec::new(), longest }
    }

    /// Takes a fragment. A datagram that it completes is written at `at` into `out`.
    pub fn add(&mut self, packet: &[u8], header: &Header, now: Moment, out: &mut [u8], at: usize) -> Added {
        let before = self.partial.len();
        self.partial.retain(|partial| now.saturating_sub(partial.begun) < PATIENCE);
        let mut given_up = before - self.partial.len();
        let Some((key, place, last)) = self.read(packet, header) else { return Added::Refused };
        let body = packet.get(header.length..header.total).unwrap_or_default();
        let index = match self.partial.iter().position(|partial| partial.key == key) {
            Some(index) => index,
            None => {
                if self.partial.len() >= PLACES {
                    self.partial.remove(0);
                    given_up += 1;
                }
                let (head, payload, have) = (Vec::new(), Vec::new(), Vec::new());
                self.partial.push(Partial { key, begun: now, head, payload, have, end: None });
                self.partial.len() - 1
            }
        };
        let Some(partial) = self.partial.get_mut(index) else { return Added::Refused };
        let overlaps = |there: &Range<usize>| there.start < place.end && place.start < there.end;
        let beyond = partial.end.is_some_and(|end| place.end > end || (last && place.end != end))
            || (last && partial.have.iter().any(|there| there.end > place.end));
        if partial.have.iter().any(overlaps) || beyond || partial.have.len() >= FRAGMENTS {
            self.partial.remove(index);
            return Added::Refused;
        }
        if partial.payload.len() < place.end {
            partial.payload.resize(place.end, 0);
        }
        if let Some(to) = partial.payload.get_mut(place.clone()) {
            to.copy_from_slice(body);
        }
        if place.start == 0 {
            partial.head = packet.get(..header.length).unwrap_or_default().to_vec();
        }
        if last {
            partial.end = Some(place.end);
        }
        partial.have.push(place);
        if !partial.is_complete() {
            return Added::Waits(given_up as u64);
        }
        let whole = self.partial.remove(index);
        write(&whole, out, at).map_or(Added::Refused, Added::Whole)
    }

    /// What a fragment belongs to, where it stands, and whether it is the last.
    fn read(&self, packet: &[u8], header: &Header) -> Option<(Key, Range<usize>, bool)> {
        if !header.is_v4() || header.fragment == Fragment::Whole {
            return None;
        }
        let flags = u16::from_be_bytes(octets(packet, 6)?);
        let (start, more) = (usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0);
        let length = header.total.checked_sub(header.length)?;
        // Only the last may have a length that is no multiple of eight.
        if length == 0 || (more && length % 8 != 0) || header.length + start + length > self.longest {
            return None;
        }
        let key = Key {
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            identification: octets(packet, 4)?,
        };
        Some((key, start..start + length, !more))
    }
}

/// Writes a whole datagram: the first header, no longer a fragment's.
fn write(whole: &Partial, out: &mut [u8], at: usize) -> Option<Range<usize>> {
    let total = whole.head.len() + whole.payload.len();
    let place = at..at.checked_add(total)?;
    let (ip, body) = out.get_mut(place.clone())?.split_at_mut_checked(whole.head.len())?;
    ip.copy_from_slice(&whole.head);
    body.copy_from_slice(&whole.payload);
    let [high, low] = u16::try_from(total).ok()?.to_be_bytes();
    for (index, octet) in [(2, high), (3, low), (6, 0), (7, 0), (10, 0), (11, 0)] {
        *ip.get_mut(index)? = octet;
    }
    let sum = checksum(ip).to_be_bytes();
    ip.get_mut(10..12)?.copy_from_slice(&sum);
    Some(place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fragment::Fragments;

    const LONGEST: usize = 9216;

    fn datagram(id: u8, payload: usize) -> Vec<u8> {
        let total = u16::try_from(20 + payload).unwrap().to_be_bytes();
        let mut packet =
            vec![0x45, 0, total[0], total[1], 0, id, 0, 0, 64, 50, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9];
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend((0..payload).map(|number| (number / 3) as u8));
        packet
    }

    fn parts(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        let header = Header::read(packet).unwrap();
        let mut fragments = Fragments::new(packet, &header, mtu).unwrap();
        let mut buffer = vec![0; mtu];
        std::iter::from_fn(|| fragments.next_into(&mut buffer, 0).map(|at| buffer[at].to_vec())).collect()
    }

    fn add(to: &mut Reassembler, part: &[u8], second: u64) -> Result<Vec<u8>, Added> {
        let mut out = vec![0; LONGEST + 10];
        let header = Header::read(part).unwrap();
        match to.add(part, &header, Duration::from_secs(second), &mut out, 10) {
            Added::Whole(at) => Ok(out[at].to_vec()),
            other => Err(other),
        }
    }

    proptest! {
        #[test]
        fn fragments_in_any_order_become_the_datagram(
            payload in 100usize..4000, mtu in 576usize..1500, order in any::<prop::sample::Index>()
        ) {
            let packet = datagram(1, payload);
            let mut parts = parts(&packet, mtu);
            prop_assume!(parts.len() > 1);
            let turn = order.index(parts.len());
            parts.rotate_left(turn);
            let mut reassembler = Reassembler::new(LONGEST);
            let (last, others) = parts.split_last().unwrap();
            for part in others {
                prop_assert_eq!(add(&mut reassembler, part, 0), Err(Added::Waits(0)));
            }
            prop_assert_eq!(add(&mut reassembler, last, 1), Ok(packet));
            prop_assert!(reassembler.partial.is_empty());
        }

        #[test]
        fn no_fragments_make_it_panic(starts in proptest::collection::vec((0u16..0x4000, 0usize..200), 1..80)) {
            let mut reassembler = Reassembler::new(LONGEST);
            for (flags, length) in starts {
                let mut packet = datagram(1, length);
                packet[6..8].copy_from_slice(&flags.to_be_bytes());
                let _ = add(&mut reassembler, &packet, 0);
            }
        }
    }

    #[test]
    fn an_overlap_ends_the_datagram() {
        let parts = parts(&datagram(1, 3000), 1500);
        let mut reassembler = Reassembler::new(LONGEST);
        assert_eq!(add(&mut reassembler, &parts[0], 0), Err(Added::Waits(0)));
        assert_eq!(add(&mut reassembler, &parts[0], 0), Err(Added::Refused));
        assert!(reassembler.partial.is_empty());
    }

    #[test]
    fn the_oldest_makes_room_and_none_waits_for_ever() {
        let mut reassembler = Reassembler::new(LONGEST);
        for id in 0..=64 {
            let waits = u64::from(id == 64);
            assert_eq!(
                add(&mut reassembler, &parts(&datagram(id, 3000), 1500)[0], 0),
                Err(Added::Waits(waits))
            );
        }
        assert_eq!(reassembler.partial.len(), PLACES);
        assert_eq!(add(&mut reassembler, &parts(&datagram(99, 3000), 1500)[0], 5), Err(Added::Waits(64)));
    }

    #[test]
    fn what_would_be_too_long_is_refused() {
        let mut packet = datagram(1, 1400);
        packet[6..8].copy_from_slice(&1000u16.to_be_bytes());
        assert_eq!(add(&mut Reassembler::new(LONGEST), &packet, 0), Err(Added::Refused));
    }
}
