//! SA KEK, the rekey policy (RFC 6407 section 5.3).
//!
//! ```text
//! protocol(1) | source | destination | SPI(16) | RESERVED2(4) | attributes
//! source, destination: ID type(1) | port(2) | data length(1) | data
//! ```
//!
//! There is no "DST ID Prot" octet: erratum 3598 of RFC 6407.

use std::net::IpAddr;

use super::id::address_of;
use crate::attribute::Attribute;
use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::KekSpi;
use crate::message::Dialect;
use crate::registry::IdType;

/// An end of a rekey or data-security SA: ID type, port and identification data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// ID type of the data.
    pub id_type: IdType,
    /// Port, 0 any.
    pub port: u16,
    /// Identification data, at most 255 octets.
    pub data: Vec<u8>,
}

impl Endpoint {
    /// The address of an ID_IPV4_ADDR or ID_IPV6_ADDR; none of another type, or when the data is no address.
    pub fn address(&self) -> Option<IpAddr> {
        address_of(self.id_type, &self.data)
    }
}

/// Body of a SAK. Typed reading of the attributes: [`crate::policy::KekPolicy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaKek {
    /// IP protocol of the PUSH, 17.
    pub protocol: u8,
    /// Where the PUSH comes from.
    pub source: Endpoint,
    /// Where the PUSH goes to.
    pub destination: Endpoint,
    /// Cookie pair of the PUSH.
    pub spi: KekSpi,
    /// 4 octets, zero as sent by us (6 octets with the dialect `sak_6_octets`).
    pub reserved2: Vec<u8>,
    /// Attributes in the order of the wire.
    pub attributes: Vec<Attribute>,
}

impl Endpoint {
    /// True for "any address": no data, or the three zero octets of RFC 3547.
    pub fn is_any(&self) -> bool {
        matches!(self.data.as_slice(), [] | [0, 0, 0])
    }

    /// The data length must fit the ID type, except for "any".
    pub(crate) fn decode(r: &mut Reader<'_>, dialect: Dialect) -> Result<Endpoint, DecodeError> {
        let id_type = IdType::from_number(r.u8("ID type")?);
        let port = r.u16("ID port")?;
        let length = if dialect.id_length_2_octets {
            r.u16("ID data length")?
        } else {
            u16::from(r.u8("ID data length")?)
        };
        let refused = r.refuse("ID data length", length, "must fit the ID type");
        let data = r.octets("ID data", usize::from(length))?.to_vec();
        let endpoint = Endpoint { id_type, port, data };
        // A length that does not fit one octet cannot be sent again.
        if length > 255 || !(endpoint.is_any() || super::id::data_fits(id_type, &endpoint.data)) {
            return Err(refused);
        }
        Ok(endpoint)
    }

    /// `wide`: the data length takes 2 octets.
    pub(crate) fn encode(&self, w: &mut Writer, wide: bool) {
        w.u8(self.id_type.number());
        w.u16(self.port);
        let length = u8::try_from(self.data.len()).unwrap_or(u8::MAX);
        if wide {
            w.u16(u16::from(length));
        } else {
            w.u8(length);
        }
        w.octets(&self.data);
    }
}

impl SaKek {
    /// RESERVED2 is kept and not checked: RFC 3547 had the POP algorithm there.
    pub(crate) fn decode(mut r: Reader<'_>, dialect: Dialect) -> Result<SaKek, DecodeError> {
        let protocol = r.u8("protocol")?;
        let source = Endpoint::decode(&mut r, dialect)?;
        let destination = Endpoint::decode(&mut r, dialect)?;
        let spi = KekSpi(r.array("SPI")?);
        let mut longer = r.clone();
        let mut reserved2 = r.octets("RESERVED2", 4)?.to_vec();
        let mut attributes = Attribute::decode_all(r);
        // Deviation: one old key server has 6 octets here; its zero TLV never parses at 4.
        if dialect.sak_6_octets && attributes.is_err() {
            reserved2 = longer.octets("RESERVED2", 6)?.to_vec();
            attributes = Attribute::decode_all(longer);
        }
        Ok(SaKek { protocol, source, destination, spi, reserved2, attributes: attributes? })
    }

    pub(crate) fn encode(&self, w: &mut Writer, wide: bool) {
        w.u8(self.protocol);
        self.source.encode(w, wide);
        self.destination.encode(w, wide);
        w.octets(&self.spi.0);
        w.octets(&self.reserved2);
        Attribute::encode_all(&self.attributes, w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    const FIXED: &str = "1101035004c000020101035004efc00001a27b12ef5f09ee8ebdc480cf760c385b";
    const ATTRIBUTES: &str = "800200038003008080060004";

    fn decode(octets: &str, dialect: Dialect) -> Result<SaKek, DecodeError> {
        SaKek::decode(Reader::new(PayloadType::SaKek, &hex::decode(octets).unwrap()), dialect)
    }

    #[test]
    fn rekey_policy_goes_both_ways_and_keeps_reserved2() {
        for reserved2 in ["00000000", "00010800"] {
            let octets = format!("{FIXED}{reserved2}{ATTRIBUTES}");
            let sak = decode(&octets, Dialect::STRICT).unwrap();
            assert_eq!(sak.destination.data, [239, 192, 0, 1]);
            let mut w = Writer::new();
            sak.encode(&mut w, false);
            assert_eq!(hex::encode(w.finish()), octets);
        }
    }

    #[test]
    fn six_reserved_octets_need_the_dialect() {
        let octets = format!("{FIXED}000000000000{ATTRIBUTES}");
        assert!(decode(&octets, Dialect::STRICT).is_err());
        let six = Dialect { sak_6_octets: true, ..Dialect::STRICT };
        let sak = decode(&octets, six).unwrap();
        assert_eq!((sak.reserved2.len(), sak.attributes.len()), (6, 3));
        let four = decode(&format!("{FIXED}00000000{ATTRIBUTES}"), six).unwrap();
        assert_eq!((four.reserved2.len(), four.attributes.len()), (4, 3));
    }

    #[test]
    fn two_octet_lengths_need_the_dialect() {
        let octets = "110103500004c0000201010350".to_owned()
            + "0004efc00001a27b12ef5f09ee8ebdc480cf760c385b00000000"
            + ATTRIBUTES;
        assert!(decode(&octets, Dialect::STRICT).is_err());
        let two = Dialect { id_length_2_octets: true, ..Dialect::STRICT };
        assert_eq!(decode(&octets, two).unwrap().attributes.len(), 3);
    }
}
