//! Notification (RFC 2408 section 3.14).
//!
//! ```text
//! DOI(4) | protocol(1) | SPI size(1) | notify type(2) | SPI | data
//! ```

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::registry::Doi;

/// Body of a Notify payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// Domain that gives `protocol` and `kind` their meaning.
    pub doi: Doi,
    /// Protocol-ID.
    pub protocol: u8,
    /// 0 to 255 octets.
    pub spi: Vec<u8>,
    /// Notify message type; see [`crate::registry::NotifyType`].
    pub kind: u16,
    /// Notification data.
    pub data: Vec<u8>,
}

impl Notify {
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<Notify, DecodeError> {
        let doi = Doi::from_number(r.u32("DOI")?);
        let protocol = r.u8("protocol ID")?;
        let spi_size = r.u8("SPI size")?;
        let kind = r.u16("notify message type")?;
        let spi = r.octets("SPI", usize::from(spi_size))?.to_vec();
        Ok(Notify { doi, protocol, spi, kind, data: r.rest().to_vec() })
    }

    /// An SPI longer than 255 octets is cut.
    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u32(self.doi.number());
        w.u8(self.protocol);
        let size = u8::try_from(self.spi.len()).unwrap_or(u8::MAX);
        w.u8(size);
        w.u16(self.kind);
        w.octets(self.spi.get(..usize::from(size)).unwrap_or_default());
        w.octets(&self.data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    #[test]
    fn notification_goes_both_ways() {
        let octets = hex::decode("0000000001020010aabbcafe").unwrap();
        let notify = Notify::decode(Reader::new(PayloadType::Notify, &octets)).unwrap();
        assert_eq!(
            (notify.kind, &notify.spi[..], &notify.data[..]),
            (16, &[0xaa, 0xbb][..], &[0xca, 0xfe][..])
        );
        let mut w = Writer::new();
        notify.encode(&mut w);
        assert_eq!(w.finish(), octets);
    }

    #[test]
    fn an_spi_past_the_end_is_refused() {
        let octets = hex::decode("0000000001100010aabbcafe").unwrap();
        assert!(Notify::decode(Reader::new(PayloadType::Notify, &octets)).is_err());
    }
}
