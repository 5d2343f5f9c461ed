//! Delete (RFC 2408 section 3.15, RFC 6407 section 5.9).
//!
//! ```text
//! DOI(4) | protocol(1) | SPI size(1) | number of SPIs(2) | SPIs
//! ```

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::message::Domain;
use crate::registry::Doi;

/// Body of a Delete payload. All SPIs have the same size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// 2 in a PUSH; 0 or 1 for an ISAKMP SA.
    pub doi: Doi,
    /// Protocol-ID under that DOI.
    pub protocol: u8,
    /// Octets of each SPI.
    pub spi_size: u8,
    /// The SPIs, `spi_size` octets each.
    pub spis: Vec<Vec<u8>>,
}

impl Delete {
    /// In a group message the DOI is 2, TEK SPIs have 4 octets and KEK SPIs 16 (4 when all zero: RFC 6407 prints
    /// no size for "every Rekey SA"); a count of 0 is legal there and means nothing. Elsewhere at least one SPI.
    pub(crate) fn decode(mut r: Reader<'_>, domain: Domain) -> Result<Delete, DecodeError> {
        let doi = Doi::from_number(r.u32("DOI")?);
        if domain == Domain::Group && doi != Doi::Gdoi {
            return Err(r.refuse("DOI", doi.number(), "must be 2 in a group message"));
        }
        let protocol = r.u8("protocol ID")?;
        if domain == Domain::Group && protocol > 3 {
            return Err(r.refuse("protocol ID", protocol, "0 KEK, 1 ESP, 2 AH or 3 IEC 61850"));
        }
        let spi_size = r.u8("SPI size")?;
        let legal = match (domain, protocol) {
            (Domain::Group, 0) => spi_size == 16 || spi_size == 4,
            (Domain::Group, _) => spi_size == 4,
            (Domain::Phase1, _) => spi_size != 0,
        };
        if !legal {
            return Err(r.refuse("SPI size", spi_size, "4 for TEKs, 16 for KEKs and ISAKMP SAs"));
        }
        let count = r.u16("number of SPIs")?;
        if count == 0 && domain == Domain::Phase1 {
            return Err(r.refuse("number of SPIs", count, "at least 1"));
        }
        let mut spis = Vec::new();
        for _ in 0..count {
            let spi = r.octets("SPI", usize::from(spi_size))?;
            if domain == Domain::Group && protocol == 0 && spi_size == 4 && spi != [0; 4] {
                return Err(r.refuse("SPI size", spi_size, "a KEK SPI of 4 octets must be 0"));
            }
            spis.push(spi.to_vec());
        }
        r.finish()?;
        Ok(Delete { doi, protocol, spi_size, spis })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u32(self.doi.number());
        w.u8(self.protocol);
        w.u8(self.spi_size);
        w.u16(u16::try_from(self.spis.len()).unwrap_or(u16::MAX));
        self.spis.iter().for_each(|spi| w.octets(spi));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    fn decode(octets: &str, domain: Domain) -> Result<Delete, DecodeError> {
        Delete::decode(Reader::new(PayloadType::Delete, &hex::decode(octets).unwrap()), domain)
    }

    #[test]
    fn deletes_of_teks_and_keks_go_both_ways() {
        for octets in [
            "00000002010400020001000100010002",
            "000000020104000100000000",
            "000000020010000100000000000000000000000000000000",
            "000000020004000100000000",
            "0000000201040000",
        ] {
            let delete = decode(octets, Domain::Group).unwrap();
            let mut w = Writer::new();
            delete.encode(&mut w);
            assert_eq!(hex::encode(w.finish()), octets);
        }
    }

    #[test]
    fn group_rules_do_not_bind_the_isakmp_sa() {
        let octets = "0000000001100001000102030405060708090a0b0c0d0e0f";
        assert_eq!(decode(octets, Domain::Phase1).unwrap().spis.len(), 1);
        assert!(decode(octets, Domain::Group).is_err());
    }

    #[test]
    fn wrong_sizes_counts_and_domains_are_refused() {
        for bad in [
            "000000020110000100000000000000000000000000000000",
            "000000020104000200010001",
            "00000002010400010001000100",
            "000000010104000100010001",
            "000000020004000100000001",
            "000000020904000100000001",
        ] {
            assert!(decode(bad, Domain::Group).is_err(), "{bad}");
        }
        assert!(decode("0000000001100000", Domain::Phase1).is_err());
        assert!(decode("000000000100ffff", Domain::Phase1).is_err());
    }
}
