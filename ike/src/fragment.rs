//! IKE fragmentation as Cisco's routers began it and others took over, for messages that routers on the way would not
//! pass in pieces of IP. No RFC has it; the octets are those strongSwan sends and takes (`tests/interop/fragments.rs`):
//!
//! ```text
//! ISAKMP header, next payload 132, main or aggressive mode, flags 0, message ID 0
//!   next 0 | reserved 0 | length (2) | message (2) | number from 1 (1) | last: 1 (1) | octets of the whole message
//! ```
//!
//! Both sides announce it by a vendor ID. Fragments are not authenticated, what comes of them is: whoever knows the
//! cookies can spoil a message, which its sender then repeats.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use gdoi_proto::header::{HEADER_LEN, Header};
use gdoi_proto::ids::CookiePair;
use gdoi_proto::registry::ExchangeType;

/// Vendor ID that announces it: MD5 of "FRAGMENTATION", and which exchanges may use it.
pub const VENDOR_FRAGMENTATION: [u8; 20] = [
    0x40, 0x48, 0xb7, 0xd5, 0x6e, 0xbc, 0xe8, 0x85, 0x25, 0xe7, 0xde, 0x7f, 0x00, 0xd6, 0xc2, 0xd3, 0x80, 0,
    0, 0,
];

/// Longest message that goes whole, and longest fragment with its header, in octets: passes 1280 with IPv6, UDP and a
/// non-ESP marker.
pub const LIMIT: usize = 1200;
/// Longest message that is put together, in octets.
const MOST_OCTETS: usize = 16 * 1024;
/// Most fragments of a message.
const MOST_FRAGMENTS: u8 = 64;
/// Messages that are being put together at once; the oldest gives way.
const MOST_MESSAGES: usize = 256;
const PAYLOAD: u8 = 132;
/// Generic header, message, number, flags.
const FRONT: usize = 8;
const LAST: u8 = 1;

/// True for the vendor ID, whatever exchanges it names.
pub fn is_announcement(vendor: &[u8]) -> bool {
    vendor.get(..16) == VENDOR_FRAGMENTATION.get(..16)
}

/// True for a fragment.
pub fn is_fragment(header: &Header) -> bool {
    header.next.number() == PAYLOAD
}

/// The fragments of a message that is longer than [`LIMIT`]; a shorter one as it is.
pub fn split(message: &Bytes) -> Vec<Bytes> {
    let Some(header) = Header::decode(message).ok().filter(|_| message.len() > LIMIT) else {
        return vec![message.clone()];
    };
    // What tells this message from others of its exchange, and its repeats not.
    let id = message.iter().fold(0u16, |sum, octet| sum.rotate_left(3) ^ u16::from(*octet)) | 1;
    let exchange = match header.exchange {
        ExchangeType::Aggressive => ExchangeType::Aggressive,
        _ => ExchangeType::MainMode,
    };
    let size = LIMIT - HEADER_LEN - FRONT;
    let count = message.len().div_ceil(size);
    let one = |(index, part): (usize, &[u8])| {
        let length = HEADER_LEN + FRONT + part.len();
        let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
        let mut out = Vec::with_capacity(length);
        out.extend(header.cookies.octets());
        out.extend([PAYLOAD, 0x10, exchange.number(), 0, 0, 0, 0, 0]);
        out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        out.extend([0, 0]);
        out.extend(u16::try_from(length - HEADER_LEN).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(id.to_be_bytes());
        out.extend([number, if index + 1 == count { LAST } else { 0 }]);
        out.extend(part);
        Bytes::from(out)
    };
    message.chunks(size).enumerate().map(one).collect()
}

/// One message that is being put together.
#[derive(Debug, Default)]
pub struct Assembly {
    id: u16,
    last: Option<u8>,
    parts: BTreeMap<u8, Bytes>,
}

impl Assembly {
    /// Takes a fragment; the whole message with the last missing one.
    ///
    /// # Errors
    /// What is wrong with the fragment, or with what it completes; what was gathered is forgotten where it cannot become
    /// a message any more.
    pub fn take(&mut self, datagram: &[u8]) -> Result<Option<Bytes>, &'static str> {
        let body = datagram.get(HEADER_LEN..).unwrap_or_default();
        let Some(([next, 0, high, low, id @ .., number, flags], part)) = body.split_first_chunk::<FRONT>()
        else {
            return Err("no fragment");
        };
        if *next != 0 || usize::from(u16::from_be_bytes([*high, *low])) != body.len() || part.is_empty() {
            return Err("a fragment of another length than it says, or with company");
        }
        if *number == 0 || *number > MOST_FRAGMENTS {
            return Err("a fragment with a number outside 1 to 64");
        }
        let id = u16::from_be_bytes(*id);
        // Some number every message alike: another one shows by what it has in the same place.
        let other = self.parts.get(number).is_some_and(|known| known != part);
        let last = (*flags & LAST != 0).then_some(*number);
        let ends_elsewhere = last.is_some() && self.last.is_some() && self.last != last;
        if id != self.id || other || ends_elsewhere {
            *self = Assembly { id, ..Assembly::default() };
        }
        self.last = self.last.or(last);
        self.parts.insert(*number, Bytes::copy_from_slice(part));
        if self.parts.values().map(Bytes::len).sum::<usize>() > MOST_OCTETS {
            *self = Assembly::default();
            return Err("fragments of a message longer than 16 KiB");
        }
        if self.last.is_none_or(|last| !(1..=last).all(|number| self.parts.contains_key(&number))) {
            return Ok(None);
        }
        let whole = std::mem::take(self).parts.into_values().fold(Vec::new(), |mut whole, part| {
            whole.extend(part);
            whole
        });
        match Header::decode(&whole) {
            Ok(header) if !is_fragment(&header) && datagram.starts_with(&header.cookies.octets()) => {
                Ok(Some(whole.into()))
            }
            _ => Err("fragments that make no message of their exchange"),
        }
    }
}

/// Messages of many peers; at most 256, 4 MiB, are being put together at once.
#[derive(Debug, Default)]
pub struct Assemblies {
    under_way: BTreeMap<CookiePair, Assembly>,
    order: VecDeque<CookiePair>,
}

impl Assemblies {
    /// As [`Assembly::take`]. The owner makes sure that the peer of these cookies may send fragments.
    ///
    /// # Errors
    /// As [`Assembly::take`].
    pub fn take(&mut self, cookies: CookiePair, datagram: &[u8]) -> Result<Option<Bytes>, &'static str> {
        if !self.under_way.contains_key(&cookies) {
            if self.order.len() >= MOST_MESSAGES
                && let Some(oldest) = self.order.pop_front()
            {
                self.under_way.remove(&oldest);
            }
            self.order.push_back(cookies);
        }
        let taken = self.under_way.entry(cookies).or_default().take(datagram);
        if !matches!(taken, Ok(None)) {
            self.under_way.remove(&cookies);
            self.order.retain(|other| *other != cookies);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use gdoi_proto::ids::Cookie;

    use super::*;

    /// A message of `length` octets, filled with `fill`.
    fn message(length: u32, fill: u8) -> Bytes {
        let mut octets = vec![fill; length as usize];
        octets[..16].copy_from_slice(&[7; 16]);
        octets[16..24].copy_from_slice(&[5, 0x10, 32, 1, 0, 0, 0, 9]);
        octets[24..28].copy_from_slice(&length.to_be_bytes());
        octets.into()
    }

    #[test]
    fn a_long_message_comes_together_in_any_order_and_a_short_one_goes_whole() {
        let long = message(3000, 0xaa);
        let parts = split(&long);
        assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>(), [1200, 1200, 708]);
        let header = Header::decode(&parts[0]).unwrap();
        assert!(is_fragment(&header) && !header.flags.encrypted() && header.message_id.0 == 0);
        assert_eq!(header.exchange, ExchangeType::MainMode);
        assert_eq!(parts[2][28..32], [0, 0, 2, 0xa8]);
        assert_eq!([parts[0][34], parts[0][35], parts[2][34], parts[2][35]], [1, 0, 3, 1]);
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut assembly = Assembly::default();
            assert_eq!(assembly.take(&parts[order[0]]), Ok(None));
            assert_eq!(assembly.take(&parts[order[0]]), Ok(None), "a copy");
            assert_eq!(assembly.take(&parts[order[1]]), Ok(None));
            assert_eq!(assembly.take(&parts[order[2]]), Ok(Some(long.clone())));
        }
        let short = message(1200, 0xaa);
        assert_eq!(split(&short), [short]);
    }

    #[test]
    fn a_message_whose_rest_was_lost_gives_way_to_the_next() {
        let (first, second) = (split(&message(3000, 1)), split(&message(3000, 2)));
        let mut assembly = Assembly::default();
        assert_eq!(assembly.take(&first[0]), Ok(None));
        assert_eq!(assembly.take(&second[0]), Ok(None));
        assert_eq!(assembly.take(&first[1]), Ok(None));
        assert_eq!(assembly.take(&second[0]), Ok(None));
        assert_eq!(assembly.take(&second[1]), Ok(None));
        assert!(assembly.take(&second[2]).unwrap().is_some());
        // Where every message has the same number, by its content.
        let same = |part: &Bytes| [&part[..32], &[0, 1], &part[34..]].concat();
        assert_eq!(assembly.take(&same(&first[0])), Ok(None));
        assert_eq!(assembly.take(&same(&second[0])), Ok(None));
        assert_eq!(assembly.take(&same(&second[1])), Ok(None));
        assert!(assembly.take(&same(&second[2])).unwrap().is_some());
    }

    #[test]
    fn what_cannot_become_a_message_is_refused() {
        let parts = split(&message(3000, 1));
        let with = |at: usize, value: u8| {
            let mut octets = parts[0].to_vec();
            octets[at] = value;
            Assembly::default().take(&octets)
        };
        for (at, value) in [(28, 1), (29, 1), (31, 0), (34, 0), (34, 65)] {
            assert!(with(at, value).is_err(), "octet {at}");
        }
        for end in 0..36 + 1 {
            assert!(Assembly::default().take(&parts[0][..end]).is_err());
        }
        // A fragment inside a fragment, and another exchange's message.
        let nested = |whole: &[u8]| {
            let mut octets = parts[0][..36].to_vec();
            octets.extend(whole);
            octets[30..32].copy_from_slice(&u16::try_from(8 + whole.len()).unwrap().to_be_bytes());
            octets[35] = LAST;
            Assembly::default().take(&octets)
        };
        assert!(nested(&message(600, 1)).unwrap().is_some());
        assert!(nested(&parts[2]).is_err());
        let mut foreign = message(600, 1).to_vec();
        foreign[0] = 8;
        assert!(nested(&foreign).is_err());
        let mut endless = Assembly::default();
        let refused = (1..=64u8).any(|number| {
            let mut octets = parts[0].to_vec();
            octets[34] = number;
            endless.take(&octets).is_err()
        });
        assert!(refused, "16 KiB are enough");
    }

    #[test]
    fn the_oldest_of_too_many_messages_gives_way() {
        let parts = split(&message(3000, 1));
        let mut assemblies = Assemblies::default();
        let cookies = |number: u16| {
            let mut responder = [7; 8];
            responder[..2].copy_from_slice(&number.to_be_bytes());
            CookiePair { initiator: Cookie([7; 8]), responder: Cookie(responder) }
        };
        for number in 0..300 {
            assert_eq!(assemblies.take(cookies(number), &parts[0]), Ok(None));
        }
        assert_eq!((assemblies.under_way.len(), assemblies.order.len()), (256, 256));
        let last = cookies(0x0707);
        assert_eq!(assemblies.take(last, &parts[0]), Ok(None));
        assert_eq!(assemblies.take(last, &parts[1]), Ok(None));
        assert!(assemblies.take(last, &parts[2]).unwrap().is_some());
        assert_eq!((assemblies.under_way.len(), assemblies.order.len()), (255, 255));
    }
}
