//! Fragments of an IPv4 packet that is too long for the tunnel (RFC 791 section 3.2), made before encryption so that the
//! far gateway opens each by itself.

use std::ops::Range;

use crate::header::{Header, checksum};

const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Option that does nothing.
const NOP: u8 = 1;

/// The fragments of one packet, in order.
#[derive(Debug)]
pub struct Fragments<'a> {
    packet: &'a [u8],
    header: usize,
    /// Octets of payload in each but the last, a multiple of 8.
    part: usize,
    done: usize,
}

impl<'a> Fragments<'a> {
    /// Fragments of at most `mtu` octets; none when the packet is not IPv4, says DF, or `mtu` leaves no room.
    pub fn new(packet: &'a [u8], header: &Header, mtu: usize) -> Option<Fragments<'a>> {
        let part = mtu.checked_sub(header.length)? & !7;
        let whole = packet.get(..header.total)?;
        (header.is_v4() && !header.dont_fragment && part > 0).then_some(Fragments {
            packet: whole,
            header: header.length,
            part,
            done: 0,
        })
    }

    /// Writes the next fragment at `at` into `buffer`; none when all are written or it does not fit.
    pub fn next_into(&mut self, buffer: &mut [u8], at: usize) -> Option<Range<usize>> {
        let payload = self.packet.get(self.header..)?;
        let rest = payload.get(self.done..).filter(|rest| !rest.is_empty())?;
        let part = rest.get(..self.part).unwrap_or(rest);
        let place = at..at.checked_add(self.header + part.len())?;
        let out = buffer.get_mut(place.clone())?;
        let (ip, body) = out.split_at_mut_checked(self.header)?;
        ip.copy_from_slice(self.packet.get(..self.header)?);
        body.copy_from_slice(part);
        let [high, low] = [*ip.get(6)?, *ip.get(7)?];
        let original = u16::from_be_bytes([high, low]);
        let last = part.len() == rest.len();
        let more = if last { original & MORE } else { MORE };
        let offset = (original & OFFSET).checked_add(u16::try_from(self.done / 8).ok()?)?;
        put(ip, 2, u16::try_from(self.header + part.len()).ok()?)?;
        put(ip, 6, more | (offset & OFFSET))?;
        if self.done > 0 {
            forget_options(ip.get_mut(20..)?);
        }
        put(ip, 10, 0)?;
        let sum = checksum(ip);
        put(ip, 10, sum)?;
        self.done += part.len();
        Some(place)
    }
}

fn put(to: &mut [u8], at: usize, value: u16) -> Option<()> {
    to.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

/// Only options with the copied flag belong into later fragments (RFC 791 section 3.1); the others are blanked.
fn forget_options(mut options: &mut [u8]) {
    while let [kind, rest @ ..] = options {
        let length = match (*kind, rest.first()) {
            (0, _) => return,
            (NOP, _) => 1,
            (_, Some(length)) => usize::from(*length).max(2),
            (_, None) => return,
        };
        let keep = *kind & 0x80 != 0;
        let Some((option, rest)) = options.split_at_mut_checked(length) else { return };
        if !keep {
            option.fill(NOP);
        }
        options = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::header::Fragment;

    fn packet(payload: usize, flags: u16, options: &[u8]) -> Vec<u8> {
        let header = 20 + options.len();
        let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), 0xb9];
        packet.extend(u16::try_from(header + payload).unwrap().to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(flags.to_be_bytes());
        packet.extend([63, 17, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9]);
        packet.extend(options);
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend((0..payload).map(|number| number as u8));
        packet
    }

    fn all(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        let header = Header::read(packet).unwrap();
        let mut fragments = Fragments::new(packet, &header, mtu).unwrap();
        let mut buffer = vec![0; 4 + mtu];
        std::iter::from_fn(|| fragments.next_into(&mut buffer, 4).map(|at| buffer[at].to_vec())).collect()
    }

    proptest! {
        #[test]
        fn fragments_put_together_are_the_packet(payload in 1usize..4000, mtu in 68usize..1500, first in 0u16..100) {
            let whole = packet(payload, first | MORE, &[]);
            let mut seen: Vec<u8> = Vec::new();
            let parts = all(&whole, mtu);
            for part in &parts {
                let header = Header::read(part).unwrap();
                prop_assert!(part.len() <= mtu && checksum(&part[..20]) == 0);
                let flags = u16::from_be_bytes([part[6], part[7]]);
                prop_assert_eq!(usize::from(flags & OFFSET) * 8, usize::from(first) * 8 + seen.len());
                prop_assert_eq!(flags & MORE, MORE, "it was a fragment with more to come");
                prop_assert_eq!(header.traffic_class, 0xb9);
                seen.extend(&part[20..]);
            }
            prop_assert_eq!(&seen, &whole[20..]);
        }
    }

    #[test]
    fn the_last_fragment_says_so() {
        let parts = all(&packet(1000, 0, &[]), 576);
        let kinds: Vec<Fragment> = parts.iter().map(|part| Header::read(part).unwrap().fragment).collect();
        assert_eq!(kinds, [Fragment::First, Fragment::Later]);
        assert_eq!(parts[1][6] & 0x20, 0);
    }

    #[test]
    fn later_fragments_keep_only_the_options_that_are_copied() {
        // Record route is not copied, strict source route is.
        let parts = all(&packet(100, 0, &[7, 3, 4, 137, 3, 4, 0, 0]), 100);
        assert_eq!(parts[0][20..28], [7, 3, 4, 137, 3, 4, 0, 0]);
        assert_eq!(parts[1][20..28], [1, 1, 1, 137, 3, 4, 0, 0]);
    }

    #[test]
    fn df_and_a_tiny_mtu_are_refused() {
        let whole = packet(100, 0x4000, &[]);
        assert!(Fragments::new(&whole, &Header::read(&whole).unwrap(), 60).is_none());
        let whole = packet(100, 0, &[]);
        assert!(Fragments::new(&whole, &Header::read(&whole).unwrap(), 27).is_none());
    }
}
