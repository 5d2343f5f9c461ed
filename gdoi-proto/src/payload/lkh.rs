//! Arrays of a logical key hierarchy, the values of attributes in an LKH packet (RFC 6407 section 5.6.3).
//!
//! ```text
//! download: version = 1 (1) | number of keys(2) | RESERVED(1) | keys, leaf first, root last
//! update:   version = 1 (1) | number of keys(2) | RESERVED(1) | LKH ID(2) | RESERVED2(2) | key handle(4) | keys
//! key:      LKH ID(2) | key type(1) | RESERVED(1) | created(4) | expires(4) | key handle(4) | key data
//! ```
//!
//! The length of the key data stands nowhere: all keys of an array have the key type of the KEK and so the same
//! length, which is what is left after the fixed fields, divided by the number of keys.

use zeroize::Zeroizing;

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::registry::{KekAlgorithm, PayloadType};

/// One node key of a logical key hierarchy.
#[derive(Clone, PartialEq, Eq)]
pub struct LkhKey {
    /// Node.
    pub id: u16,
    /// A KEK_ALGORITHM value.
    pub key_type: u8,
    /// Unix seconds, 0 unbounded.
    pub created: u32,
    /// Unix seconds, 0 unbounded.
    pub expires: u32,
    /// New for every key of a node.
    pub handle: u32,
    /// IV and key, in an update array encrypted. Wiped on drop.
    pub data: Zeroizing<Vec<u8>>,
}

/// LKH_DOWNLOAD_ARRAY: leaf first, root last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LkhDownload {
    /// The keys.
    pub keys: Vec<LkhKey>,
}

/// LKH_UPDATE_ARRAY: the header names the key that encrypts the first key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LkhUpdate {
    /// Node whose key opens the first key data.
    pub id: u16,
    /// Handle of that key.
    pub handle: u32,
    /// The keys.
    pub keys: Vec<LkhKey>,
}

impl std::fmt::Debug for LkhKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LkhKey(node {}, handle {:#010x}, {} octets)", self.id, self.handle, self.data.len())
    }
}

/// Version of both arrays.
const VERSION: u8 = 1;

/// Octets of a key in front of its key data.
const KEY_FIXED: usize = 16;

impl LkhDownload {
    /// Reads the value of an LKH_DOWNLOAD_ARRAY attribute.
    ///
    /// # Errors
    /// [`DecodeError`]: another version, no keys, key types that differ, or a length that does not fit key type
    /// and count. Key data is IV and key: 16 octets for DES, 32 for 3DES, 32 or 48 for AES; with AES-192 the 40
    /// octets are not whole blocks and cannot be updated, so they are refused.
    pub fn decode(octets: &[u8]) -> Result<LkhDownload, DecodeError> {
        let mut r = Reader::new(PayloadType::Kd, octets);
        let count = decode_start(&mut r)?;
        Ok(LkhDownload { keys: decode_keys(r, count)? })
    }

    /// The value of an LKH_DOWNLOAD_ARRAY attribute.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        encode_start(&self.keys, &mut w);
        self.keys.iter().for_each(|key| key.encode(&mut w));
        w.finish()
    }
}

impl LkhUpdate {
    /// Reads the value of an LKH_UPDATE_ARRAY attribute. Key data stays encrypted.
    ///
    /// # Errors
    /// As [`LkhDownload::decode`].
    pub fn decode(octets: &[u8]) -> Result<LkhUpdate, DecodeError> {
        let mut r = Reader::new(PayloadType::Kd, octets);
        let count = decode_start(&mut r)?;
        let id = r.u16("LKH ID")?;
        r.u16("RESERVED2")?;
        let handle = r.u32("key handle")?;
        Ok(LkhUpdate { id, handle, keys: decode_keys(r, count)? })
    }

    /// The value of an LKH_UPDATE_ARRAY attribute.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        encode_start(&self.keys, &mut w);
        w.u16(self.id);
        w.u16(0);
        w.u32(self.handle);
        self.keys.iter().for_each(|key| key.encode(&mut w));
        w.finish()
    }
}

impl LkhKey {
    fn encode(&self, w: &mut Writer) {
        w.u16(self.id);
        w.u8(self.key_type);
        w.u8(0);
        w.u32(self.created);
        w.u32(self.expires);
        w.u32(self.handle);
        w.octets(&self.data);
    }
}

fn encode_start(keys: &[LkhKey], w: &mut Writer) {
    w.u8(VERSION);
    w.u16(u16::try_from(keys.len()).unwrap_or(u16::MAX));
    w.u8(0);
}

/// Version, number of keys and the reserved octet, which is not checked.
fn decode_start(r: &mut Reader<'_>) -> Result<u16, DecodeError> {
    let version = r.u8("LKH version")?;
    if version != VERSION {
        return Err(r.refuse("LKH version", version, "must be 1"));
    }
    let count = r.u16("number of LKH keys")?;
    if count == 0 {
        return Err(r.refuse("number of LKH keys", count, "at least 1"));
    }
    r.u8("RESERVED")?;
    Ok(count)
}

fn decode_keys(mut r: Reader<'_>, count: u16) -> Result<Vec<LkhKey>, DecodeError> {
    let each = r.remaining().checked_div(usize::from(count)).unwrap_or(0);
    let exact = each.checked_mul(usize::from(count)) == Some(r.remaining());
    let data_length = each.checked_sub(KEY_FIXED).filter(|_| exact);
    let Some(data_length) = data_length else {
        return Err(r.misplaced("the keys of an LKH array do not fill it"));
    };
    let mut keys: Vec<LkhKey> = Vec::new();
    while !r.is_empty() {
        let id = r.u16("LKH ID")?;
        let key_type = r.u8("key type")?;
        let fits = match KekAlgorithm::from_number(u16::from(key_type)) {
            KekAlgorithm::Des => data_length == 16,
            KekAlgorithm::TripleDes => data_length == 32,
            KekAlgorithm::Aes => data_length == 32 || data_length == 48,
            KekAlgorithm::Other(_) => false,
        };
        if !fits || keys.last().is_some_and(|last| last.key_type != key_type) {
            return Err(r.refuse(
                "key type",
                key_type,
                "one KEK_ALGORITHM for all keys, fitting their length",
            ));
        }
        r.u8("RESERVED")?;
        keys.push(LkhKey {
            id,
            key_type,
            created: r.u32("key creation date")?,
            expires: r.u32("key expiration date")?,
            handle: r.u32("key handle")?,
            data: r.octets("key data", data_length)?.to_vec().into(),
        });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u16, length: usize) -> LkhKey {
        LkhKey { id, key_type: 3, created: 0, expires: 0, handle: 0x1_0000, data: vec![7; length].into() }
    }

    #[test]
    fn update_arrays_of_the_vectors_go_both_ways() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/data/vectors/gdoi-lkh.json")).unwrap();
        for (octets, header) in vectors["update_arrays"].as_array().unwrap().iter().zip([13, 7, 2]) {
            let octets = hex::decode(octets.as_str().unwrap()).unwrap();
            let update = LkhUpdate::decode(&octets).unwrap();
            assert_eq!(update.id, header);
            assert_eq!(update.keys.last().map(|root| root.id), Some(1));
            assert_eq!(update.encode(), octets);
            for end in 0..octets.len() {
                assert!(LkhUpdate::decode(&octets[..end]).is_err());
            }
        }
    }

    #[test]
    fn download_arrays_round_trip_for_both_aes_lengths() {
        for length in [32, 48] {
            let download = LkhDownload { keys: vec![key(9, length), key(4, length), key(1, length)] };
            assert_eq!(LkhDownload::decode(&download.encode()), Ok(download));
        }
    }

    #[test]
    fn lengths_types_and_counts_that_do_not_fit_are_refused() {
        let refused = |keys: Vec<LkhKey>| LkhDownload::decode(&LkhDownload { keys }.encode()).is_err();
        assert!(refused(vec![]));
        assert!(refused(vec![key(1, 40)]));
        assert!(refused(vec![key(1, 32), key(2, 48)]));
        assert!(refused(vec![key(1, 32), LkhKey { key_type: 2, ..key(2, 32) }]));
        let mut octets = LkhDownload { keys: vec![key(1, 32)] }.encode();
        octets[2] = 2;
        assert!(LkhDownload::decode(&octets).is_err());
        octets[2] = 1;
        octets[0] = 2;
        assert!(LkhDownload::decode(&octets).is_err());
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", key(9, 32)), "LkhKey(node 9, handle 0x00010000, 32 octets)");
    }
}
