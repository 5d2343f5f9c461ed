//! SA TEK, the data-security policy for ESP, AH and IEC 61850 (RFC 6407 section 5.5, RFC 8052).
//!
//! ```text
//! protocol ID(1) | for ESP and AH: IP protocol(1) | source | destination | transform(1) | SPI(4) | attributes
//! ```

use super::{Endpoint, Iec61850Tek};
use crate::attribute::Attribute;
use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::Spi;
use crate::message::Dialect;
use crate::registry::TekProtocol;

/// Body of a SAT by protocol ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaTek {
    /// Protocol ID 1.
    Esp(EspTek),
    /// Protocol ID 2.
    Ah(EspTek),
    /// Protocol ID 3.
    Iec61850(Iec61850Tek),
}

/// Protocol-specific part for ESP and AH. Typed reading: [`crate::policy::TekPolicy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspTek {
    /// IP protocol of the traffic, 0 any.
    pub ip_protocol: u8,
    /// Source selector.
    pub source: Endpoint,
    /// Destination selector.
    pub destination: Endpoint,
    /// ESP or AH transform ID.
    pub transform: u8,
    /// SPI of the SA.
    pub spi: Spi,
    /// IPsec DOI attributes in the order of the wire.
    pub attributes: Vec<Attribute>,
}

impl SaTek {
    /// The SPI, whatever the protocol.
    pub fn spi(&self) -> Spi {
        match self {
            SaTek::Esp(tek) | SaTek::Ah(tek) => tek.spi,
            SaTek::Iec61850(tek) => tek.spi,
        }
    }

    pub(crate) fn decode(mut r: Reader<'_>, dialect: Dialect) -> Result<SaTek, DecodeError> {
        let protocol = r.u8("protocol ID")?;
        match TekProtocol::from_number(protocol) {
            TekProtocol::Esp => EspTek::decode(r, dialect).map(SaTek::Esp),
            TekProtocol::Ah => EspTek::decode(r, dialect).map(SaTek::Ah),
            TekProtocol::Iec61850 => Iec61850Tek::decode(r).map(SaTek::Iec61850),
            TekProtocol::Other(_) => Err(r.refuse("protocol ID", protocol, "1 ESP, 2 AH or 3 IEC 61850")),
        }
    }

    pub(crate) fn encode(&self, w: &mut Writer, wide: bool) {
        match self {
            SaTek::Esp(tek) => {
                w.u8(TekProtocol::Esp.number());
                tek.encode(w, wide);
            }
            SaTek::Ah(tek) => {
                w.u8(TekProtocol::Ah.number());
                tek.encode(w, wide);
            }
            SaTek::Iec61850(tek) => {
                w.u8(TekProtocol::Iec61850.number());
                tek.encode(w);
            }
        }
    }
}

impl EspTek {
    fn decode(mut r: Reader<'_>, dialect: Dialect) -> Result<EspTek, DecodeError> {
        let ip_protocol = r.u8("IP protocol")?;
        let source = Endpoint::decode(&mut r, dialect)?;
        let destination = Endpoint::decode(&mut r, dialect)?;
        let transform = r.u8("transform ID")?;
        let spi = r.u32("SPI")?;
        if spi <= 255 {
            return Err(r.refuse("SPI", spi, "0 to 255 are reserved"));
        }
        let attributes = Attribute::decode_all(r)?;
        Ok(EspTek { ip_protocol, source, destination, transform, spi: Spi(spi), attributes })
    }

    fn encode(&self, w: &mut Writer, wide: bool) {
        w.u8(self.ip_protocol);
        self.source.encode(w, wide);
        self.destination.encode(w, wide);
        w.u8(self.transform);
        w.u32(self.spi.0);
        Attribute::encode_all(&self.attributes, w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    fn decode(octets: &str) -> Result<SaTek, DecodeError> {
        SaTek::decode(Reader::new(PayloadType::SaTek, &hex::decode(octets).unwrap()), Dialect::STRICT)
    }

    #[test]
    fn esp_policies_go_both_ways() {
        for octets in [
            "0100040000080a000000ff000000040000080a000000ff0000001400010001800100010002000400000e108004000180060080",
            "0111040000080a000000ff00000001138c04efc001010c0001000280010001",
            "02000000000001000004efc001010b00010003",
        ] {
            let sat = decode(octets).unwrap();
            let mut w = Writer::new();
            sat.encode(&mut w, false);
            assert_eq!(hex::encode(w.finish()), octets);
        }
    }

    #[test]
    fn any_source_may_be_empty_or_three_zero_octets() {
        for source in ["01000000", "01000003000000"] {
            let octets = format!("0100{source}01000004efc001011400010001");
            let SaTek::Esp(tek) = decode(&octets).unwrap() else { panic!() };
            assert!(tek.source.is_any() && !tek.destination.is_any());
        }
    }

    #[test]
    fn reserved_spis_wrong_lengths_and_unknown_protocols_are_refused() {
        assert!(decode("010001000004c000020101000004efc0010114000000ff").is_err());
        assert!(decode("010001000003c0000201000004efc001011400010001").is_err());
        assert!(decode("090001000004c000020101000004efc001011400010001").is_err());
        assert!(decode("010001000004c000020101000004efc001011400010001").is_ok());
    }
}
