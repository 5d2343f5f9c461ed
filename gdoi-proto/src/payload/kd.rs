//! Key download (RFC 6407 section 5.6).
//!
//! ```text
//! number of packets(2) | RESERVED2(2) | packets
//! packet: KD type(1) | RESERVED(1) | length(2) | SPI size(1) | SPI | attributes
//! ```

use crate::attribute::Attribute;
use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::{KekSpi, Spi};
use crate::registry::KdType;

/// Key packets in the order of the wire. Holds key material: `Debug` shows lengths only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyDownload {
    /// The packets.
    pub packets: Vec<KeyPacket>,
}

/// One key packet by KD type. Attributes are kept as on the wire; typed reading: [`crate::policy::KeySet`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPacket {
    /// KD type 1.
    Tek {
        /// SPI of the SAT.
        spi: Spi,
        /// TEK_ALGORITHM_KEY 1, TEK_INTEGRITY_KEY 2.
        attributes: Vec<Attribute>,
    },
    /// KD type 2.
    Kek {
        /// SPI of the SAK.
        spi: KekSpi,
        /// KEK_ALGORITHM_KEY 1, SIG_ALGORITHM_KEY 2.
        attributes: Vec<Attribute>,
    },
    /// KD type 3.
    Lkh {
        /// SPI of the SAK.
        spi: KekSpi,
        /// LKH_DOWNLOAD_ARRAY 1, LKH_UPDATE_ARRAY 2, SIG_ALGORITHM_KEY 3.
        attributes: Vec<Attribute>,
    },
    /// KD type 4.
    SenderIds {
        /// NUMBER_OF_SID_BITS 1, SID_VALUE 2.
        attributes: Vec<Attribute>,
    },
}

impl KeyDownload {
    /// Count and lengths must be exact; the reserved octets are not checked.
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<KeyDownload, DecodeError> {
        let count = r.u16("number of key packets")?;
        r.u16("RESERVED2")?;
        let mut packets = Vec::new();
        for _ in 0..count {
            packets.push(KeyPacket::decode(&mut r)?);
        }
        r.finish()?;
        Ok(KeyDownload { packets })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u16(u16::try_from(self.packets.len()).unwrap_or(u16::MAX));
        w.u16(0);
        self.packets.iter().for_each(|packet| packet.encode(w));
    }
}

impl KeyPacket {
    /// The KD type of the packet.
    pub fn kd_type(&self) -> KdType {
        match self {
            KeyPacket::Tek { .. } => KdType::Tek,
            KeyPacket::Kek { .. } => KdType::Kek,
            KeyPacket::Lkh { .. } => KdType::Lkh,
            KeyPacket::SenderIds { .. } => KdType::Sid,
        }
    }

    /// The attributes of the packet, in the order of the wire.
    pub fn attributes(&self) -> &[Attribute] {
        match self {
            KeyPacket::Tek { attributes, .. }
            | KeyPacket::Kek { attributes, .. }
            | KeyPacket::Lkh { attributes, .. }
            | KeyPacket::SenderIds { attributes } => attributes,
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<KeyPacket, DecodeError> {
        let kd_type = r.u8("KD type")?;
        let kind = KdType::from_number(kd_type);
        let refused_type = r.refuse("KD type", kd_type, "1 TEK, 2 KEK, 3 LKH or 4 SID");
        r.u8("RESERVED")?;
        let length = r.u16("KD length")?;
        let Some(body) = usize::from(length).checked_sub(4) else {
            return Err(r.refuse("KD length", length, "at least 5"));
        };
        let mut packet = r.sub("key packet", body)?;
        let size = packet.u8("SPI size")?;
        let expected = match kind {
            KdType::Tek => 4,
            KdType::Kek | KdType::Lkh => 16,
            KdType::Sid => 0,
            KdType::Other(_) => return Err(refused_type),
        };
        if size != expected {
            return Err(packet.refuse("SPI size", size, "4 for TEK, 16 for KEK and LKH, 0 for SID"));
        }
        Ok(match kind {
            KdType::Tek => {
                let spi = Spi(packet.u32("SPI")?);
                KeyPacket::Tek { spi, attributes: Attribute::decode_all(packet)? }
            }
            KdType::Kek => {
                let spi = KekSpi(packet.array("SPI")?);
                KeyPacket::Kek { spi, attributes: Attribute::decode_all(packet)? }
            }
            KdType::Lkh => {
                let spi = KekSpi(packet.array("SPI")?);
                KeyPacket::Lkh { spi, attributes: Attribute::decode_all(packet)? }
            }
            KdType::Sid | KdType::Other(_) => {
                KeyPacket::SenderIds { attributes: Attribute::decode_all(packet)? }
            }
        })
    }

    fn encode(&self, w: &mut Writer) {
        w.u8(self.kd_type().number());
        w.u8(0);
        let length = w.length16(2);
        match self {
            KeyPacket::Tek { spi, .. } => {
                w.u8(4);
                w.u32(spi.0);
            }
            KeyPacket::Kek { spi, .. } | KeyPacket::Lkh { spi, .. } => {
                w.u8(16);
                w.octets(&spi.0);
            }
            KeyPacket::SenderIds { .. } => w.u8(0),
        }
        Attribute::encode_all(self.attributes(), w);
        w.end(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    fn decode(octets: &str) -> Result<KeyDownload, DecodeError> {
        KeyDownload::decode(Reader::new(PayloadType::Kd, &hex::decode(octets).unwrap()))
    }

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../../tests/data/vectors/gdoi-kd.json")).unwrap()
    }

    #[test]
    fn every_key_packet_of_the_vectors_goes_both_ways() {
        let vectors = vectors();
        for packet in vectors["key_packets"].as_array().unwrap() {
            let body = format!("00010000{}", packet["packet"].as_str().unwrap());
            let kd = decode(&body).unwrap_or_else(|error| panic!("{}: {error}", packet["what"]));
            let mut w = Writer::new();
            kd.encode(&mut w);
            assert_eq!(hex::encode(w.finish()), body, "{}", packet["what"]);
        }
    }

    #[test]
    fn truncation_at_every_length_is_refused() {
        let vectors = vectors();
        let payload = hex::decode(vectors["kd_payload_kek_tek_tek_sid"].as_str().unwrap()).unwrap();
        let body = &payload[4..];
        assert!(KeyDownload::decode(Reader::new(PayloadType::Kd, body)).is_ok());
        for end in 0..body.len() {
            assert!(KeyDownload::decode(Reader::new(PayloadType::Kd, &body[..end])).is_err());
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let kd =
            decode("000100000100002104000100010001001414141414141414141414141414141414141414aa").unwrap();
        assert!(!format!("{kd:?}").contains("20, 20"));
        assert!(format!("{kd:?}").contains("(20 octets)"));
    }
}
