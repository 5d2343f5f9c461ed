//! Data attributes, TV and TLV (RFC 2408 section 3.3).

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;

/// Attribute format: set for TV, clear for TLV.
const FORMAT_TV: u16 = 0x8000;

/// One attribute as it stands on the wire; the form (TV or TLV) is kept so that it re-encodes to the same octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Type without the format bit, 0..=32767.
    pub kind: u16,
    /// The value in its form.
    pub value: AttributeValue,
}

/// The two forms of an attribute.
#[derive(Clone, PartialEq, Eq)]
pub enum AttributeValue {
    /// TV: 2 octets.
    Basic(u16),
    /// TLV: any octets. May be key material: not shown by `Debug`.
    Variable(Vec<u8>),
}

impl Attribute {
    /// A TV attribute.
    pub fn basic(kind: u16, value: u16) -> Attribute {
        Attribute { kind, value: AttributeValue::Basic(value) }
    }

    /// A TLV attribute.
    pub fn variable(kind: u16, value: impl Into<Vec<u8>>) -> Attribute {
        Attribute { kind, value: AttributeValue::Variable(value.into()) }
    }

    /// The value as a big-endian integer: TV, or TLV of 1..=8 octets; none otherwise.
    pub fn integer(&self) -> Option<u64> {
        match &self.value {
            AttributeValue::Basic(value) => Some(u64::from(*value)),
            AttributeValue::Variable(octets) if matches!(octets.len(), 1..=8) => {
                Some(octets.iter().fold(0, |value, octet| (value << 8) | u64::from(*octet)))
            }
            AttributeValue::Variable(_) => None,
        }
    }

    /// The octets of a TLV, or none for a TV.
    pub fn octets(&self) -> Option<&[u8]> {
        match &self.value {
            AttributeValue::Basic(_) => None,
            AttributeValue::Variable(octets) => Some(octets),
        }
    }

    /// Reads one attribute.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when the value runs past the payload.
    pub fn decode(r: &mut Reader<'_>) -> Result<Attribute, DecodeError> {
        let word = r.u16("attribute type")?;
        let kind = word & !FORMAT_TV;
        if word & FORMAT_TV != 0 {
            return Ok(Attribute::basic(kind, r.u16("attribute value")?));
        }
        let length = r.u16("attribute length")?;
        Ok(Attribute::variable(kind, r.octets("attribute value", usize::from(length))?))
    }

    /// Reads attributes up to the end of `r`.
    ///
    /// # Errors
    /// As [`Attribute::decode`].
    pub fn decode_all(mut r: Reader<'_>) -> Result<Vec<Attribute>, DecodeError> {
        let mut attributes = Vec::new();
        while !r.is_empty() {
            attributes.push(Attribute::decode(&mut r)?);
        }
        Ok(attributes)
    }

    /// Writes the attribute in its form. A TLV value is at most 65535 octets.
    pub fn encode(&self, w: &mut Writer) {
        match &self.value {
            AttributeValue::Basic(value) => {
                w.u16(self.kind | FORMAT_TV);
                w.u16(*value);
            }
            AttributeValue::Variable(octets) => {
                w.u16(self.kind & !FORMAT_TV);
                // The length of a TLV leaves its own 4 octets out.
                w.u16(u16::try_from(octets.len()).unwrap_or(u16::MAX));
                w.octets(octets);
            }
        }
    }

    /// Writes several attributes in their order.
    pub fn encode_all(attributes: &[Attribute], w: &mut Writer) {
        attributes.iter().for_each(|attribute| attribute.encode(w));
    }
}

impl std::fmt::Debug for AttributeValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AttributeValue::Basic(value) => value.fmt(f),
            AttributeValue::Variable(octets) => write!(f, "({} octets)", octets.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    fn decode(octets: &[u8]) -> Result<Vec<Attribute>, DecodeError> {
        Attribute::decode_all(Reader::new(PayloadType::SaKek, octets))
    }

    #[test]
    fn both_forms_go_both_ways() {
        let octets = hex::decode("800c7080000c000400007080000c0000").unwrap();
        let attributes = decode(&octets).unwrap();
        assert_eq!(
            attributes,
            [
                Attribute::basic(12, 0x7080),
                Attribute::variable(12, [0, 0, 0x70, 0x80]),
                Attribute::variable(12, Vec::new()),
            ]
        );
        let mut w = Writer::new();
        Attribute::encode_all(&attributes, &mut w);
        assert_eq!(w.finish(), octets);
    }

    #[test]
    fn integers_are_read_from_both_forms_up_to_eight_octets() {
        assert_eq!(Attribute::basic(1, 28800).integer(), Some(28800));
        assert_eq!(Attribute::variable(1, [0, 0, 0x70, 0x80]).integer(), Some(28800));
        assert_eq!(Attribute::variable(1, [0xff; 8]).integer(), Some(u64::MAX));
        assert_eq!(Attribute::variable(1, [0; 9]).integer(), None);
        assert_eq!(Attribute::variable(1, []).integer(), None);
    }

    #[test]
    fn truncated_attributes_are_refused() {
        for bad in [&[0x80][..], &[0x80, 1], &[0x80, 1, 0], &[0, 1, 0, 2, 9], &[0, 1, 0xff, 0xff]] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn debug_hides_variable_values() {
        let attribute = Attribute::variable(1, [0xde, 0xad]);
        assert_eq!(format!("{attribute:?}"), "Attribute { kind: 1, value: (2 octets) }");
    }
}
