//! TEK policy for IEC 61850 (RFC 8052 section 2.2).
//!
//! ```text
//! OID length(1) | OID | payload length(2) | payload | SPI(4) | authentication(2) | encryption(2) | lifetime(4) | attributes
//! ```

use super::id::{decode_oid, encode_oid};
use crate::attribute::Attribute;
use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::Spi;
use crate::registry::{IecAttribute, IecAuthentication, IecEncryption};

/// Protocol-specific part of a SAT with protocol ID 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iec61850Tek {
    /// OID, complete DER with tag and length.
    pub oid: Vec<u8>,
    /// OID-specific payload, opaque.
    pub oid_payload: Vec<u8>,
    /// Key ID.
    pub spi: Spi,
    /// Authentication algorithm.
    pub authentication: u16,
    /// Encryption algorithm.
    pub encryption: u16,
    /// Seconds, 0 for no expiry.
    pub remaining_lifetime: u32,
    /// SA_ATD, SA_KDA.
    pub attributes: Vec<Attribute>,
}

impl Iec61850Tek {
    /// SA_ATD: seconds to wait before the key is used at all; none when absent.
    pub fn activation_delay(&self) -> Option<u64> {
        self.attribute(IecAttribute::ActivationDelay)
    }

    /// SA_KDA: percentage of subscribers known to hold the key, 0..=100; none when absent.
    pub fn key_delivery_assurance(&self) -> Option<u64> {
        self.attribute(IecAttribute::KeyDeliveryAssurance)
    }

    fn attribute(&self, kind: IecAttribute) -> Option<u64> {
        self.attributes.iter().find(|attribute| attribute.kind == kind.number())?.integer()
    }

    /// Refuses combinations that RFC 8052 forbids and attributes it does not know.
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<Iec61850Tek, DecodeError> {
        let (oid, oid_payload) = decode_oid(&mut r)?;
        let spi = Spi(r.u32("SPI")?);
        let authentication = r.u16("authentication algorithm")?;
        let encryption = r.u16("encryption algorithm")?;
        let unauthenticated = IecAuthentication::from_number(authentication) == IecAuthentication::None;
        let allowed = match IecEncryption::from_number(encryption) {
            IecEncryption::AesCbc128 | IecEncryption::AesCbc256 => !unauthenticated,
            IecEncryption::AesGcm128 | IecEncryption::AesGcm256 => unauthenticated,
            IecEncryption::None | IecEncryption::Other(_) => true,
        };
        if !allowed {
            return Err(r.refuse(
                "encryption algorithm",
                encryption,
                "AES-CBC with, AES-GCM without authentication",
            ));
        }
        let remaining_lifetime = r.u32("remaining lifetime")?;
        let at = r.clone();
        let attributes = Attribute::decode_all(r)?;
        for (index, attribute) in attributes.iter().enumerate() {
            let fits = match IecAttribute::from_number(attribute.kind) {
                IecAttribute::ActivationDelay => attribute.integer().is_some(),
                IecAttribute::KeyDeliveryAssurance => {
                    attribute.integer().is_some_and(|percent| percent <= 100)
                }
                IecAttribute::Other(_) => false,
            };
            if !fits || attributes.iter().take(index).any(|earlier| earlier.kind == attribute.kind) {
                return Err(at.refuse(
                    "attribute type",
                    attribute.kind,
                    "one SA_ATD, one SA_KDA up to 100, no other",
                ));
            }
        }
        Ok(Iec61850Tek {
            oid: oid.to_vec(),
            oid_payload: oid_payload.to_vec(),
            spi,
            authentication,
            encryption,
            remaining_lifetime,
            attributes,
        })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        encode_oid(&self.oid, &self.oid_payload, w);
        w.u32(self.spi.0);
        w.u16(self.authentication);
        w.u16(self.encryption);
        w.u32(self.remaining_lifetime);
        Attribute::encode_all(&self.attributes, w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    fn decode(octets: &str) -> Result<Iec61850Tek, DecodeError> {
        Iec61850Tek::decode(Reader::new(PayloadType::SaTek, &hex::decode(octets).unwrap()))
    }

    #[test]
    fn policies_of_the_rfc_example_go_both_ways() {
        for octets in [
            "0d060b2a8648ce5683e31a08010200060404e9fc0001000000010002000200000e10",
            "0d060b2a8648ce5683e31a08010200060404e9fc000100000002000100040000a8c00001000400000ce4",
            "0d060b2a8648ce5683e31a080102000000000003000100040000000080020050",
        ] {
            let tek = decode(octets).unwrap();
            let mut w = Writer::new();
            tek.encode(&mut w);
            assert_eq!(hex::encode(w.finish()), octets);
            let values = (tek.activation_delay(), tek.key_delivery_assurance());
            assert_eq!(values, [(None, None), (Some(3300), None), (None, Some(80))][tek.spi.0 as usize - 1]);
        }
    }

    #[test]
    fn forbidden_combinations_and_attributes_are_refused() {
        let tek = |authentication, encryption, attributes: &str| {
            decode(&format!("0306012a000000000001{authentication:04x}{encryption:04x}0000003c{attributes}"))
        };
        assert!(tek(2, 2, "").is_ok());
        assert!(tek(1, 2, "").is_err());
        assert!(tek(2, 4, "").is_err());
        assert!(tek(2, 2, "80020064").is_ok());
        assert!(tek(2, 2, "80020065").is_err());
        assert!(tek(2, 2, "80030001").is_err());
        assert!(tek(2, 2, "8002000180020001").is_err());
    }
}
