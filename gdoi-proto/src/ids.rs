//! The identifiers everyone shares. Each is its own type: a KEK's SPI is not a TEK's.

use std::fmt;
use std::net::IpAddr;

use crate::registry::IdType;

/// An ISAKMP cookie, 8 octets (RFC 2408 section 2.5.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cookie(pub [u8; 8]);

impl Cookie {
    /// The responder cookie of the first message of a phase 1 exchange.
    pub const ZERO: Cookie = Cookie([0; 8]);

    /// True for eight zero octets.
    pub fn is_zero(self) -> bool {
        self == Cookie::ZERO
    }
}

/// Initiator and responder cookie in the order phase 1 fixed: the name of an ISAKMP SA (RFC 2409 section 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CookiePair {
    /// CKY-I.
    pub initiator: Cookie,
    /// CKY-R.
    pub responder: Cookie,
}

impl CookiePair {
    /// CKY-I | CKY-R, the 16-octet SPI of the ISAKMP SA.
    pub fn octets(self) -> [u8; 16] {
        let mut out = [0; 16];
        let (left, right) = out.split_at_mut(8);
        left.copy_from_slice(&self.initiator.0);
        right.copy_from_slice(&self.responder.0);
        out
    }
}

/// The Message ID of the ISAKMP header: 0 in phase 1 and GROUPKEY-PUSH, else random per exchange.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MessageId(pub u32);

/// The SPI of a data-security SA (TEK), 4 octets, never 0..=255 (RFC 4303 section 2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(pub u32);

/// The SPI of a rekey SA (KEK): the cookie pair of the PUSH it protects (RFC 6407 section 5.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KekSpi(pub [u8; 16]);

impl KekSpi {
    /// The SPI as the two cookies of a PUSH header.
    pub fn cookies(self) -> CookiePair {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        CookiePair {
            initiator: Cookie([a, b, c, d, e, f, g, h]),
            responder: Cookie([i, j, k, l, m, n, o, p]),
        }
    }
}

impl From<CookiePair> for KekSpi {
    fn from(pair: CookiePair) -> KekSpi {
        KekSpi(pair.octets())
    }
}

/// The number of a PUSH under its KEK: 1 for the first, 0 for "none yet" (RFC 6407 section 5.7). It has no
/// addition, only [`SeqNumber::next`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// The following number, or none at 2^32-1: the KEK must be replaced before that.
    pub fn next(self) -> Option<SeqNumber> {
        self.0.checked_add(1).map(SeqNumber)
    }
}

/// A Sender-ID for counter-mode TEKs (RFC 6054 section 3), right-aligned in its group's SID bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SenderId(pub u32);

/// The name of a group as the ID payload of a GROUPKEY-PULL carries it: type and data octets
/// (RFC 6407 section 5.1, RFC 8052 section 2.1). Groups are equal when both are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    /// ID_KEY_ID, an address type, a name type or ID_OID.
    pub id_type: IdType,
    /// The identification data without the 4 octets before it.
    pub data: Vec<u8>,
}

impl GroupId {
    /// A group number as ID_KEY_ID of 4 octets, big-endian.
    pub fn number(number: u32) -> GroupId {
        GroupId { id_type: IdType::KeyId, data: number.to_be_bytes().to_vec() }
    }

    /// A group named by an address.
    pub fn address(address: IpAddr) -> GroupId {
        match address {
            IpAddr::V4(a) => GroupId { id_type: IdType::Ipv4Addr, data: a.octets().to_vec() },
            IpAddr::V6(a) => GroupId { id_type: IdType::Ipv6Addr, data: a.octets().to_vec() },
        }
    }

    /// The number of an ID_KEY_ID of 4 octets.
    pub fn as_number(&self) -> Option<u32> {
        match (self.id_type, <[u8; 4]>::try_from(self.data.as_slice())) {
            (IdType::KeyId, Ok(octets)) => Some(u32::from_be_bytes(octets)),
            _ => None,
        }
    }
}

fn hex(f: &mut fmt::Formatter<'_>, octets: &[u8]) -> fmt::Result {
    octets.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.0)
    }
}

impl fmt::Display for CookiePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.initiator, self.responder)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}

impl fmt::Display for KekSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        hex(f, &self.0)
    }
}

impl fmt::Display for SeqNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SenderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_number() {
            Some(number) => number.fmt(f),
            None => {
                write!(f, "{:?}:", self.id_type)?;
                hex(f, &self.data)
            }
        }
    }
}

macro_rules! debug_as_display {
    ($($name:ident),+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}
debug_as_display!(Cookie, CookiePair, MessageId, Spi, KekSpi, GroupId);
