//! The ISAKMP header, 28 octets (RFC 2408 section 3.1).

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::{Cookie, CookiePair, MessageId};
use crate::registry::{ExchangeType, PayloadType};

/// Octets of the header on the wire.
pub const HEADER_LEN: usize = 28;

/// Major version 1, minor version 0.
const VERSION: u8 = 0x10;

/// Header flags; bits 3-7 are zero on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// Everything after the header is encrypted.
    pub const ENCRYPTION: Flags = Flags(0x01);
    /// Nothing set.
    pub const NONE: Flags = Flags(0);

    /// True when the encryption bit is set.
    pub fn encrypted(self) -> bool {
        self.0 & 0x01 != 0
    }
}

/// The ISAKMP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// CKY-I and CKY-R.
    pub cookies: CookiePair,
    /// Type of the first payload, of the plaintext when encrypted.
    pub next: PayloadType,
    /// What the message is part of.
    pub exchange: ExchangeType,
    /// Flag bits.
    pub flags: Flags,
    /// 0 in phase 1, PUSH and its acknowledgement.
    pub message_id: MessageId,
    /// Octets of the whole message, header and encryption padding included.
    pub length: u32,
}

impl Header {
    /// Reads and checks a header: version 1.0, reserved flag bits zero, CKY-I not zero, length equal to the
    /// datagram's (RFC 2408 sections 5.1 and 5.2). `datagram` is the whole UDP payload without a non-ESP marker.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field.
    pub fn decode(datagram: &[u8]) -> Result<Header, DecodeError> {
        let mut r = Reader::new(PayloadType::None, datagram);
        let cookies = CookiePair { initiator: Cookie(r.array("initiator cookie")?), responder: Cookie::ZERO };
        if cookies.initiator.is_zero() {
            return Err(r.refuse("initiator cookie", 0u8, "must not be zero"));
        }
        let cookies = CookiePair { responder: Cookie(r.array("responder cookie")?), ..cookies };
        let next = PayloadType::from_number(r.u8("next payload")?);
        let version = r.u8("version")?;
        if version != VERSION {
            return Err(r.refuse("version", version, "must be 1.0 (0x10)"));
        }
        let exchange = ExchangeType::from_number(r.u8("exchange type")?);
        let flags = r.u8("flags")?;
        if flags & 0xf8 != 0 {
            return Err(r.refuse("flags", flags, "bits 3 to 7 must be 0"));
        }
        let message_id = MessageId(r.u32("message ID")?);
        let length = r.u32("length")?;
        if usize::try_from(length) != Ok(datagram.len()) {
            return Err(r.refuse("length", length, "must be the length of the datagram"));
        }
        Ok(Header { cookies, next, exchange, flags: Flags(flags), message_id, length })
    }

    /// The 28 octets.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut w = Writer::new();
        w.octets(&self.cookies.octets());
        w.u8(self.next.number());
        w.u8(VERSION);
        w.u8(self.exchange.number());
        w.u8(self.flags.0);
        w.u32(self.message_id.0);
        w.u32(self.length);
        let mut out = [0; HEADER_LEN];
        out.copy_from_slice(&w.finish());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OCTETS: &str = "71e0c50d826a0d2e076fbc829d77352b08102001807b87750000001c";

    #[test]
    fn header_goes_both_ways() {
        let octets = hex::decode(OCTETS).unwrap();
        let header = Header::decode(&octets).unwrap();
        assert_eq!(header.next, PayloadType::Hash);
        assert_eq!(header.exchange, ExchangeType::GroupkeyPull);
        assert!(header.flags.encrypted());
        assert_eq!(header.message_id, MessageId(0x807b_8775));
        assert_eq!(header.encode().as_slice(), octets);
    }

    #[test]
    fn every_truncation_is_refused() {
        let octets = hex::decode(OCTETS).unwrap();
        for end in 0..octets.len() {
            assert!(Header::decode(&octets[..end]).is_err());
        }
    }

    #[test]
    fn bad_fields_are_refused_and_unknown_exchanges_kept() {
        let good = hex::decode(OCTETS).unwrap();
        let with = |at: usize, value: u8| {
            let mut octets = good.clone();
            octets[at] = value;
            Header::decode(&octets)
        };
        assert!(with(17, 0x20).is_err());
        assert!(with(17, 0x11).is_err());
        assert!(with(19, 0x09).is_err());
        assert!(with(27, 0x1d).is_err());
        assert!(with(27, 0x1b).is_err());
        assert_eq!(with(18, 239).unwrap().exchange, ExchangeType::Other(239));
        let mut no_cookie = good.clone();
        no_cookie[..8].fill(0);
        assert!(Header::decode(&no_cookie).is_err());
    }
}
