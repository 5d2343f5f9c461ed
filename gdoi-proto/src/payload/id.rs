//! Identification (RFC 2407 section 4.6.2), also the name of a group (RFC 6407 section 5.1).
//!
//! ```text
//! ID type(1) | protocol(1) | port(2) | data
//! ID_OID data: OID length(1) | OID, DER with tag and length | payload length(2) | payload   (RFC 8052 section 2.1)
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::GroupId;
use crate::message::Domain;
use crate::registry::IdType;

/// Body of an ID payload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identification {
    /// Type of the data.
    pub id_type: IdType,
    /// Protocol ID, 0 as sent by us.
    pub protocol: u8,
    /// Port, 0 as sent by us.
    pub port: u16,
    /// Identification data.
    pub data: Vec<u8>,
}

/// Whether `data` has a length (and for text no NUL) that fits `id_type`; types that are not in the table fit.
pub(crate) fn data_fits(id_type: IdType, data: &[u8]) -> bool {
    match id_type {
        IdType::Ipv4Addr => data.len() == 4,
        IdType::Ipv4Subnet | IdType::Ipv4Range => data.len() == 8,
        IdType::Ipv6Addr => data.len() == 16,
        IdType::Ipv6Subnet | IdType::Ipv6Range => data.len() == 32,
        IdType::Fqdn | IdType::UserFqdn => !data.is_empty() && !data.contains(&0),
        IdType::DerAsn1Dn | IdType::DerAsn1Gn | IdType::KeyId | IdType::List | IdType::Oid => {
            !data.is_empty()
        }
        IdType::Other(_) => true,
    }
}

/// The address of an ID_IPV4_ADDR or ID_IPV6_ADDR.
pub(super) fn address_of(id_type: IdType, data: &[u8]) -> Option<IpAddr> {
    match id_type {
        IdType::Ipv4Addr => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        IdType::Ipv6Addr => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Reads `OID length(1) | OID | payload length(2) | payload`: the OID in complete DER, and the payload.
pub(crate) fn decode_oid<'a>(r: &mut Reader<'a>) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
    let length = r.u8("OID length")?;
    let oid = r.octets("OID", usize::from(length))?;
    // At most 255 octets: short form, or the long form with one length octet.
    let der_fits = match oid {
        [0x06, inner @ 1..=0x7f, content @ ..] => usize::from(*inner) == content.len(),
        [0x06, 0x81, inner @ 0x80..=0xff, content @ ..] => usize::from(*inner) == content.len(),
        _ => false,
    };
    if !der_fits {
        return Err(r.refuse("OID", length, "DER tag 6 whose length agrees with the OID length"));
    }
    let payload_length = r.u16("OID-specific payload length")?;
    Ok((oid, r.octets("OID-specific payload", usize::from(payload_length))?))
}

/// Writes what [`decode_oid`] reads.
pub(crate) fn encode_oid(oid: &[u8], payload: &[u8], w: &mut Writer) {
    w.u8(u8::try_from(oid.len()).unwrap_or(u8::MAX));
    w.octets(oid);
    w.u16(u16::try_from(payload.len()).unwrap_or(u16::MAX));
    w.octets(payload);
}

impl Identification {
    /// An identification with protocol 0 and port 0.
    pub fn new(id_type: IdType, data: impl Into<Vec<u8>>) -> Identification {
        Identification { id_type, protocol: 0, port: 0, data: data.into() }
    }

    /// The address of an ID_IPV4_ADDR or ID_IPV6_ADDR.
    pub fn address(&self) -> Option<IpAddr> {
        address_of(self.id_type, &self.data)
    }

    /// ID_KEY_ID is opaque in phase 1 and exactly 4 octets as the name of a group (RFC 6407 section 5.1).
    pub(crate) fn decode(mut r: Reader<'_>, domain: Domain) -> Result<Identification, DecodeError> {
        let id_type = IdType::from_number(r.u8("ID type")?);
        let protocol = r.u8("protocol ID")?;
        let port = r.u16("port")?;
        if id_type == IdType::Oid {
            let mut inner = r.clone();
            decode_oid(&mut inner)?;
            inner.finish()?;
        }
        let data = r.rest().to_vec();
        let group_number = domain == Domain::Group && id_type == IdType::KeyId;
        if !data_fits(id_type, &data) || (group_number && data.len() != 4) {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            return Err(r.refuse("identification data length", length, "must fit the ID type"));
        }
        Ok(Identification { id_type, protocol, port, data })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u8(self.id_type.number());
        w.u8(self.protocol);
        w.u16(self.port);
        w.octets(&self.data);
    }
}

impl From<IpAddr> for Identification {
    fn from(address: IpAddr) -> Identification {
        Identification::from(&GroupId::address(address))
    }
}

impl From<&GroupId> for Identification {
    fn from(group: &GroupId) -> Identification {
        Identification::new(group.id_type, group.data.clone())
    }
}

impl From<&Identification> for GroupId {
    fn from(id: &Identification) -> GroupId {
        GroupId { id_type: id.id_type, data: id.data.clone() }
    }
}

/// Identification data for people: addresses, prefixes and ranges, names (control characters escaped), hexadecimal
/// for everything else.
pub(crate) struct Readable<'a>(pub IdType, pub &'a [u8]);

impl Readable<'_> {
    fn halves(&self) -> Option<(IpAddr, IpAddr)> {
        let (first, second) = self.1.split_at_checked(self.1.len() / 2)?;
        let address = |octets: &[u8]| match octets.len() {
            4 => <[u8; 4]>::try_from(octets).ok().map(|a| IpAddr::from(Ipv4Addr::from(a))),
            16 => <[u8; 16]>::try_from(octets).ok().map(|a| IpAddr::from(Ipv6Addr::from(a))),
            _ => None,
        };
        Some((address(first)?, address(second)?))
    }
}

impl fmt::Display for Readable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Readable(id_type, data) = self;
        match id_type {
            IdType::Ipv4Addr | IdType::Ipv6Addr => {
                if let Some(address) = address_of(*id_type, data) {
                    return address.fmt(f);
                }
            }
            IdType::Ipv4Subnet | IdType::Ipv6Subnet => {
                if let Some((address, mask)) = self.halves() {
                    return match prefix_length(mask) {
                        Some(bits) => write!(f, "{address}/{bits}"),
                        None => write!(f, "{address}/{mask}"),
                    };
                }
            }
            IdType::Ipv4Range | IdType::Ipv6Range => {
                if let Some((first, last)) = self.halves() {
                    return write!(f, "{first}-{last}");
                }
            }
            IdType::Fqdn | IdType::UserFqdn => return data.escape_ascii().fmt(f),
            IdType::KeyId => f.write_str("key-id ")?,
            IdType::DerAsn1Dn => f.write_str("dn ")?,
            IdType::DerAsn1Gn => f.write_str("gn ")?,
            IdType::Oid => f.write_str("oid ")?,
            IdType::List | IdType::Other(_) => write!(f, "id-type-{} ", id_type.number())?,
        }
        data.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// The number of leading ones of a contiguous mask.
fn prefix_length(mask: IpAddr) -> Option<u32> {
    match mask {
        IpAddr::V4(mask) => {
            let bits = mask.to_bits();
            bits.leading_ones()
                .checked_add(bits.trailing_zeros())
                .filter(|sum| *sum == 32)
                .map(|_| bits.leading_ones())
        }
        IpAddr::V6(mask) => {
            let bits = mask.to_bits();
            bits.leading_ones()
                .checked_add(bits.trailing_zeros())
                .filter(|sum| *sum == 128)
                .map(|_| bits.leading_ones())
        }
    }
}

impl fmt::Display for Identification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Readable(self.id_type, &self.data).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    fn decode(octets: &str, domain: Domain) -> Result<Identification, DecodeError> {
        Identification::decode(Reader::new(PayloadType::Id, &hex::decode(octets).unwrap()), domain)
    }

    #[test]
    fn identities_go_both_ways_and_print_readably() {
        for (octets, text) in [
            ("0b00000000000101", "key-id 00000101"),
            ("01000000efc00101", "239.192.1.1"),
            ("040000000a000000ff000000", "10.0.0.0/8"),
            ("040000000a000000ff0000ff", "10.0.0.0/255.0.0.255"),
            ("070000000a0000010a000009", "10.0.0.1-10.0.0.9"),
            ("021101f4676d310a", "gm1\\n"),
            ("0500000020010db8000000000000000000000001", "2001:db8::1"),
            ("090000003000", "dn 3000"),
            (
                "0d0000000d060b2a8648ce5683e31a08010200060404e9fc0001",
                "oid 0d060b2a8648ce5683e31a08010200060404e9fc0001",
            ),
        ] {
            let id = decode(octets, Domain::Group).unwrap();
            assert_eq!(id.to_string(), text);
            let mut w = Writer::new();
            id.encode(&mut w);
            assert_eq!(hex::encode(w.finish()), octets);
        }
    }

    #[test]
    fn key_id_is_free_in_phase_1_and_four_octets_as_a_group() {
        assert!(decode("0b000000aa", Domain::Phase1).is_ok());
        assert!(decode("0b000000", Domain::Phase1).is_err());
        assert!(decode("0b000000000000", Domain::Group).is_err());
        assert!(decode("0b0000000000000000", Domain::Group).is_err());
    }

    #[test]
    fn data_that_does_not_fit_its_type_is_refused() {
        for bad in [
            "01000000aabbcc",
            "0400000000000000000000",
            "05000000aabbccdd",
            "02000000610062",
            "02000000",
            "09000000",
            "0d0000000506022a03010000",
            "0d0000000406022a0300000000",
            "0d0000000406022a030002ff",
            "0d00000000",
            "01000000",
            "010000",
        ] {
            assert!(decode(bad, Domain::Group).is_err(), "{bad}");
        }
    }
}
