//! Phase 1 SA, proposal and transform (RFC 2408 sections 3.4 to 3.6).
//!
//! ```text
//! SA        DOI(4) | situation(4) | proposals
//! proposal  generic header | number(1) | protocol(1) | SPI size(1) | transforms(1) | SPI | transforms
//! transform generic header | number(1) | transform ID(1) | 0(2) | attributes
//! ```

use crate::attribute::{Attribute, AttributeValue};
use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::message::Dialect;
use crate::registry::{Doi, PayloadType};

/// SA of phase 1: DOI, situation and one proposal (more with the dialect `large_offers`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sa {
    /// 2 (GDOI).
    pub doi: Doi,
    /// 0 as sent by us; 1 is accepted.
    pub situation: u32,
    /// In order of preference.
    pub proposals: Vec<Proposal>,
}

/// One proposal of PROTO_ISAKMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Proposal number.
    pub number: u8,
    /// Protocol-ID; 1 is PROTO_ISAKMP.
    pub protocol: u8,
    /// 0 to 16 octets, without meaning in phase 1.
    pub spi: Vec<u8>,
    /// In order of preference.
    pub transforms: Vec<Transform>,
}

/// One transform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transform {
    /// Transform number.
    pub number: u8,
    /// Transform-ID; 1 is KEY_IKE.
    pub id: u8,
    /// Attributes in the order of the wire.
    pub attributes: Vec<Attribute>,
}

/// Transform-ID of phase 1 (RFC 2407 section 4.4.2).
const KEY_IKE: u8 = 1;

impl Sa {
    /// Structure only: whether DOI, situation, protocol and attribute values are acceptable is the exchange's to
    /// say, since it has notifications for each.
    pub(crate) fn decode(mut r: Reader<'_>, dialect: Dialect) -> Result<Sa, DecodeError> {
        let doi = Doi::from_number(r.u32("DOI")?);
        let situation = r.u32("situation")?;
        let (most_proposals, mut transforms_left) = if dialect.large_offers { (8, 512) } else { (1, 64) };
        let mut proposals = Vec::new();
        loop {
            if proposals.len() >= most_proposals {
                return Err(r.misplaced("too many proposals"));
            }
            r = r.within(PayloadType::Proposal);
            let (next, body) = r.generic()?;
            proposals.push(Proposal::decode(body, &mut transforms_left)?);
            match next {
                PayloadType::None => break,
                PayloadType::Proposal => {}
                other => return Err(r.refuse("next payload", other.number(), "0 or 2 after a proposal")),
            }
        }
        r.within(PayloadType::Sa).finish()?;
        Ok(Sa { doi, situation, proposals })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u32(self.doi.number());
        w.u32(self.situation);
        let mut proposals = self.proposals.iter().peekable();
        while let Some(proposal) = proposals.next() {
            let next = if proposals.peek().is_some() { PayloadType::Proposal } else { PayloadType::None };
            w.generic(next, |w| proposal.encode(w));
        }
    }
}

impl Proposal {
    /// Fills its parent exactly; `left` is how many transforms the SA may still hold.
    fn decode(mut r: Reader<'_>, left: &mut usize) -> Result<Proposal, DecodeError> {
        let number = r.u8("proposal number")?;
        let protocol = r.u8("protocol ID")?;
        let spi_size = r.u8("SPI size")?;
        if spi_size > 16 {
            return Err(r.refuse("SPI size", spi_size, "0 to 16 in phase 1"));
        }
        let count = r.u8("number of transforms")?;
        if count == 0 {
            return Err(r.refuse("number of transforms", count, "at least 1"));
        }
        let Some(still_left) = left.checked_sub(usize::from(count)) else {
            return Err(r.refuse("number of transforms", count, "too many transforms"));
        };
        *left = still_left;
        let spi = r.octets("SPI", usize::from(spi_size))?.to_vec();
        let mut transforms: Vec<Transform> = Vec::new();
        for index in 1..=count {
            r = r.within(PayloadType::Transform);
            let (next, body) = r.generic()?;
            let expected = if index == count { PayloadType::None } else { PayloadType::Transform };
            if next != expected {
                return Err(r.refuse(
                    "next payload",
                    next.number(),
                    "must agree with the number of transforms",
                ));
            }
            let transform = Transform::decode(body)?;
            if transforms.last().is_some_and(|last| last.number >= transform.number) {
                return Err(r.refuse("transform number", transform.number, "must increase"));
            }
            transforms.push(transform);
        }
        r.within(PayloadType::Proposal).finish()?;
        Ok(Proposal { number, protocol, spi, transforms })
    }

    fn encode(&self, w: &mut Writer) {
        w.u8(self.number);
        w.u8(self.protocol);
        w.u8(u8::try_from(self.spi.len()).unwrap_or(u8::MAX));
        w.u8(u8::try_from(self.transforms.len()).unwrap_or(u8::MAX));
        w.octets(&self.spi);
        let mut transforms = self.transforms.iter().peekable();
        while let Some(transform) = transforms.next() {
            let next = if transforms.peek().is_some() { PayloadType::Transform } else { PayloadType::None };
            w.generic(next, |w| transform.encode(w));
        }
    }
}

/// Classes of RFC 2409 appendix A that are Basic, so never TLV.
fn is_basic_class(kind: u16) -> bool {
    matches!(kind, 1..=5 | 11 | 13..=15)
}

impl Transform {
    fn decode(mut r: Reader<'_>) -> Result<Transform, DecodeError> {
        let number = r.u8("transform number")?;
        let id = r.u8("transform ID")?;
        let reserved = r.u16("RESERVED2")?;
        if reserved != 0 {
            return Err(r.refuse("RESERVED2", reserved, "must be 0"));
        }
        let at = r.clone();
        let attributes = Attribute::decode_all(r)?;
        // The classes are those of KEY_IKE; what they mean under another transform ID is unknown.
        if id == KEY_IKE {
            for (index, attribute) in attributes.iter().enumerate() {
                let tlv = matches!(attribute.value, AttributeValue::Variable(_));
                if tlv && is_basic_class(attribute.kind) {
                    return Err(at.refuse(
                        "attribute type",
                        attribute.kind,
                        "a basic attribute must not be a TLV",
                    ));
                }
                let repeated = attributes.iter().take(index).any(|earlier| earlier.kind == attribute.kind);
                if repeated && !matches!(attribute.kind, 11 | 12) {
                    return Err(at.refuse(
                        "attribute type",
                        attribute.kind,
                        "must be unique in its transform",
                    ));
                }
            }
        }
        Ok(Transform { number, id, attributes })
    }

    fn encode(&self, w: &mut Writer) {
        w.u8(self.number);
        w.u8(self.id);
        w.u16(0);
        Attribute::encode_all(&self.attributes, w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "00000002000000000000002c0101000100000024010100008001000780\
                       0e0080800200048004000e80030001800b0001800c0e10";

    fn decode(octets: &[u8], dialect: Dialect) -> Result<Sa, DecodeError> {
        Sa::decode(Reader::new(PayloadType::Sa, octets), dialect)
    }

    fn encode(sa: &Sa) -> Vec<u8> {
        let mut w = Writer::new();
        sa.encode(&mut w);
        w.finish()
    }

    fn offer(proposals: u8, transforms: u8) -> Vec<u8> {
        let transform = |number| Transform { number, id: 1, attributes: vec![Attribute::basic(1, 7)] };
        let proposal = |number| Proposal {
            number,
            protocol: 1,
            spi: vec![],
            transforms: (1..=transforms).map(transform).collect(),
        };
        encode(&Sa { doi: Doi::Gdoi, situation: 0, proposals: (1..=proposals).map(proposal).collect() })
    }

    #[test]
    fn a_proposal_with_one_transform_goes_both_ways() {
        let octets = hex::decode(ONE).unwrap();
        let sa = decode(&octets, Dialect::STRICT).unwrap();
        assert_eq!(sa.proposals[0].transforms[0].attributes.len(), 7);
        assert_eq!(encode(&sa), octets);
    }

    #[test]
    fn truncation_at_every_length_is_refused() {
        let octets = hex::decode(ONE).unwrap();
        for end in 0..octets.len() {
            assert!(decode(&octets[..end], Dialect::STRICT).is_err());
        }
    }

    #[test]
    fn large_offers_need_the_dialect() {
        let large = Dialect { large_offers: true, ..Dialect::STRICT };
        assert!(decode(&offer(1, 64), Dialect::STRICT).is_ok());
        assert!(decode(&offer(1, 65), Dialect::STRICT).is_err());
        assert!(decode(&offer(2, 1), Dialect::STRICT).is_err());
        assert!(decode(&offer(8, 64), large).is_ok());
        assert!(decode(&offer(8, 65), large).is_err());
        assert!(decode(&offer(9, 1), large).is_err());
    }

    #[test]
    fn repeated_classes_are_refused_except_lives() {
        let with = |attributes: Vec<Attribute>, id| {
            let transforms = vec![Transform { number: 1, id, attributes }];
            let proposals = vec![Proposal { number: 1, protocol: 1, spi: vec![], transforms }];
            decode(&encode(&Sa { doi: Doi::Gdoi, situation: 0, proposals }), Dialect::STRICT)
        };
        let hash = Attribute::basic(2, 4);
        let life = [
            Attribute::basic(11, 1),
            Attribute::basic(12, 1),
            Attribute::basic(11, 2),
            Attribute::basic(12, 1),
        ];
        assert!(with(vec![hash.clone(), hash.clone()], 1).is_err());
        assert!(with(life.to_vec(), 1).is_ok());
        assert!(with(vec![Attribute::variable(2, [0, 4])], 1).is_err());
        assert!(with(vec![Attribute::variable(2, [0, 4])], 9).is_ok());
    }
}
