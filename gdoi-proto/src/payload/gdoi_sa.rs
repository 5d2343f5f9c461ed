//! SA of the group DOI and what may follow it (RFC 6407 section 5.2).
//!
//! ```text
//! DOI = 2 (4) | situation = 0 (4) | type of the first inner payload(2) | RESERVED2(2) | SAK? GAP? SAT*
//! ```

use super::{Gap, SaKek, SaTek};
use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::message::Dialect;
use crate::registry::{Doi, PayloadType};

/// Most SATs in one SA: what a datagram could hold is far less than this times their size.
const MAX_TEKS: usize = 1024;

/// The policy container of message 2 of a PULL and of a PUSH: at most one SAK, at most one GAP, any number of
/// SATs, at least one SAK or SAT. DOI 2, situation 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GdoiSa {
    /// Rekey SA policy.
    pub kek: Option<SaKek>,
    /// Group associated policy.
    pub gap: Option<Gap>,
    /// Data-security SA policies.
    pub teks: Vec<SaTek>,
    /// ID data lengths of SAK and SAT take 2 octets (dialect `id-length-2-octets`), else 1.
    pub wide_id_lengths: bool,
}

impl GdoiSa {
    /// RESERVED2 is not checked.
    pub(crate) fn decode(mut r: Reader<'_>, dialect: Dialect) -> Result<GdoiSa, DecodeError> {
        let doi = r.u32("DOI")?;
        if Doi::from_number(doi) != Doi::Gdoi {
            return Err(r.refuse("DOI", doi, "must be 2"));
        }
        let situation = r.u32("situation")?;
        if situation != 0 {
            return Err(r.refuse("situation", situation, "must be 0"));
        }
        let first = r.u16("SA attribute next payload")?;
        let first_refused = r.refuse("SA attribute next payload", first, "15 SAK, 16 SAT or 22 GAP");
        r.u16("RESERVED2")?;
        let mut kind = u8::try_from(first).map_or(PayloadType::Other(0), PayloadType::from_number);
        if !matches!(kind, PayloadType::SaKek | PayloadType::SaTek | PayloadType::Gap) {
            return Err(first_refused);
        }
        let mut sa = GdoiSa { wide_id_lengths: dialect.id_length_2_octets, ..GdoiSa::default() };
        while kind != PayloadType::None {
            r = r.within(kind);
            match kind {
                PayloadType::SaKek if sa.kek.is_none() && sa.gap.is_none() && sa.teks.is_empty() => {}
                PayloadType::Gap if sa.gap.is_none() && sa.teks.is_empty() => {}
                PayloadType::SaTek if sa.teks.len() < MAX_TEKS => {}
                _ => return Err(r.misplaced("inside an SA: one SAK, one GAP, SATs, in this order")),
            }
            let (next, body) = r.generic()?;
            match kind {
                PayloadType::SaKek => sa.kek = Some(SaKek::decode(body, dialect)?),
                PayloadType::Gap => sa.gap = Some(Gap::decode(body)?),
                _ => sa.teks.push(SaTek::decode(body, dialect)?),
            }
            kind = next;
        }
        r = r.within(PayloadType::Sa);
        if sa.kek.is_none() && sa.teks.is_empty() {
            return Err(r.misplaced("at least one SAK or SAT"));
        }
        r.finish()?;
        Ok(sa)
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        let tek = if self.teks.is_empty() { PayloadType::None } else { PayloadType::SaTek };
        let after_kek = if self.gap.is_some() { PayloadType::Gap } else { tek };
        let first = if self.kek.is_some() { PayloadType::SaKek } else { after_kek };
        w.u32(Doi::Gdoi.number());
        w.u32(0);
        w.u16(u16::from(first.number()));
        w.u16(0);
        if let Some(kek) = &self.kek {
            w.generic(after_kek, |w| kek.encode(w, self.wide_id_lengths));
        }
        if let Some(gap) = &self.gap {
            w.generic(tek, |w| gap.encode(w));
        }
        let mut teks = self.teks.iter().peekable();
        while let Some(tek) = teks.next() {
            let next = if teks.peek().is_some() { PayloadType::SaTek } else { PayloadType::None };
            w.generic(next, |w| tek.encode(w, self.wide_id_lengths));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "0000000200000000000f0000160000491101035004c000020101035004efc00001a27b12ef5f09ee8ebdc480cf760c385b\
        0000000080020003800300800004000400015180800500038006000180070800800900011000000c8001001e8002003c10000037010004\
        0000080a000000ff000000040000080a000000ff0000001400010001800100010002000400000e1080040001800600800000003f011104\
        0000080a000000ff00000001138c04efc001010c00010002800100010002000400000e10800400018005000580060080800e0004800f0003";

    fn decode(octets: &[u8]) -> Result<GdoiSa, DecodeError> {
        GdoiSa::decode(Reader::new(PayloadType::Sa, octets), Dialect::STRICT)
    }

    fn encode(sa: &GdoiSa) -> Vec<u8> {
        let mut w = Writer::new();
        sa.encode(&mut w);
        w.finish()
    }

    #[test]
    fn sak_gap_and_two_sats_go_both_ways() {
        let octets = hex::decode(FULL).unwrap();
        let sa = decode(&octets).unwrap();
        assert!(sa.kek.is_some() && sa.gap.is_some() && sa.teks.len() == 2);
        assert_eq!(encode(&sa), octets);
    }

    #[test]
    fn every_legal_combination_round_trips_and_others_do_not() {
        let full = decode(&hex::decode(FULL).unwrap()).unwrap();
        for bits in 0..8u8 {
            let sa = GdoiSa {
                kek: full.kek.clone().filter(|_| bits & 1 != 0),
                gap: full.gap.clone().filter(|_| bits & 2 != 0),
                teks: full.teks.iter().filter(|_| bits & 4 != 0).cloned().collect(),
                wide_id_lengths: bits & 1 != 0 && bits & 4 != 0,
            };
            let dialect = Dialect { id_length_2_octets: sa.wide_id_lengths, ..Dialect::STRICT };
            let again = GdoiSa::decode(Reader::new(PayloadType::Sa, &encode(&sa)), dialect);
            match bits & 5 {
                0 => assert!(again.is_err()),
                _ => assert_eq!(again, Ok(sa)),
            }
        }
    }

    #[test]
    fn truncation_at_every_length_is_refused() {
        let octets = hex::decode(FULL).unwrap();
        for end in 0..octets.len() {
            assert!(decode(&octets[..end]).is_err());
        }
    }
}
