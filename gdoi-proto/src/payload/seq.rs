//! Sequence number: one big-endian counter of 4 octets (RFC 6407 section 5.7).

use crate::codec::Reader;
use crate::error::DecodeError;
use crate::ids::SeqNumber;

pub(crate) fn decode(mut r: Reader<'_>) -> Result<SeqNumber, DecodeError> {
    let seq = SeqNumber(r.u32("sequence number")?);
    r.finish()?;
    Ok(seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    #[test]
    fn sequence_number_has_exactly_four_octets() {
        let seq = |octets: &[u8]| decode(Reader::new(PayloadType::Seq, octets));
        assert_eq!(seq(&[0, 0, 1, 2]), Ok(SeqNumber(258)));
        assert!(seq(&[0, 0, 1]).is_err());
        assert!(seq(&[0, 0, 0, 1, 2]).is_err());
    }
}
