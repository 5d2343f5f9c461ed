//! NAT detection and original address (RFC 3947 sections 3.2 and 5.2). NAT-D is a raw hash.
//!
//! ```text
//! NAT-OA: ID type 1 or 5 (1) | 0 (3) | address (4 or 16)
//! ```

use std::net::IpAddr;

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::registry::IdType;

/// Body of a NAT-OA payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatOa {
    /// The original address.
    pub address: IpAddr,
}

impl NatOa {
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<NatOa, DecodeError> {
        let id_type = r.u8("ID type")?;
        let refused = r.refuse("ID type", id_type, "1 (IPv4) or 5 (IPv6)");
        if r.array::<3>("reserved")? != [0; 3] {
            return Err(r.refuse("reserved", 1u8, "must be 0"));
        }
        let address = match IdType::from_number(id_type) {
            IdType::Ipv4Addr => IpAddr::from(r.array::<4>("address")?),
            IdType::Ipv6Addr => IpAddr::from(r.array::<16>("address")?),
            _ => return Err(refused),
        };
        r.finish()?;
        Ok(NatOa { address })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        let (id_type, octets) = match self.address {
            IpAddr::V4(address) => (IdType::Ipv4Addr, address.octets().to_vec()),
            IpAddr::V6(address) => (IdType::Ipv6Addr, address.octets().to_vec()),
        };
        w.u8(id_type.number());
        w.octets(&[0; 3]);
        w.octets(&octets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    #[test]
    fn original_addresses_go_both_ways() {
        for address in ["192.0.2.7", "2001:db8::7"] {
            let oa = NatOa { address: address.parse().unwrap() };
            let mut w = Writer::new();
            oa.encode(&mut w);
            assert_eq!(NatOa::decode(Reader::new(PayloadType::NatOa, &w.finish())), Ok(oa));
        }
    }

    #[test]
    fn other_types_and_lengths_are_refused() {
        for bad in [
            &[2, 0, 0, 0, 1, 2, 3, 4][..],
            &[1, 0, 0, 0, 1, 2, 3],
            &[1, 0, 0, 1, 1, 2, 3, 4],
            &[5, 0, 0, 0, 1],
        ] {
            assert!(NatOa::decode(Reader::new(PayloadType::NatOa, bad)).is_err());
        }
    }
}
