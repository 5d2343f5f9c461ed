//! Hash and HMAC of the negotiated hash.

use gdoi_proto::secret::SecretBytes;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::Hash;

/// The plain hash of the concatenated parts, [`Hash::output_len`] octets.
pub fn hash(hash: Hash, parts: &[&[u8]]) -> Vec<u8> {
    fn digest<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
        let mut digest = D::new();
        parts.iter().for_each(|part| digest.update(part));
        digest.finalize().to_vec()
    }
    match hash {
        Hash::Sha1 => digest::<Sha1>(parts),
        Hash::Sha256 => digest::<Sha256>(parts),
        Hash::Sha384 => digest::<Sha384>(parts),
        Hash::Sha512 => digest::<Sha512>(parts),
    }
}

/// prf(key, parts concatenated): HMAC, full output, key of any length (RFC 2409 section 4).
pub fn prf(hash: Hash, key: &[u8], parts: &[&[u8]]) -> SecretBytes {
    fn mac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> SecretBytes {
        // HMAC takes keys of any length: there is no error to have.
        let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return SecretBytes::new(Vec::new()) };
        parts.iter().for_each(|part| mac.update(part));
        SecretBytes::copy(&mac.finalize().into_bytes())
    }
    match hash {
        Hash::Sha1 => mac::<Hmac<Sha1>>(key, parts),
        Hash::Sha256 => mac::<Hmac<Sha256>>(key, parts),
        Hash::Sha384 => mac::<Hmac<Sha384>>(key, parts),
        Hash::Sha512 => mac::<Hmac<Sha512>>(key, parts),
    }
}
