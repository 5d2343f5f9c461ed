//! SKEYID and what is derived from it (RFC 2409 section 5 and appendix B).

use super::cipher::CipherKey;
use super::prf::{hash as digest, prf};
use super::{Cipher, Hash};
use gdoi_proto::ids::CookiePair;
use gdoi_proto::secret::SecretBytes;

/// SKEYID.
#[derive(Debug, Clone)]
pub struct Skeyid {
    /// The negotiated hash.
    pub hash: Hash,
    /// SKEYID itself.
    pub skeyid: SecretBytes,
}

/// SKEYID_d, SKEYID_a, SKEYID_e.
#[derive(Debug, Clone)]
pub struct Derived {
    /// Input of SKEYID_a, otherwise unused by GDOI.
    pub d: SecretBytes,
    /// Key of every HASH(n).
    pub a: SecretBytes,
    /// Source of the cipher key.
    pub e: SecretBytes,
}

impl Skeyid {
    /// SKEYID = prf(pre-shared key, Ni_b | Nr_b).
    pub fn pre_shared(hash: Hash, key: &SecretBytes, ni_b: &[u8], nr_b: &[u8]) -> Skeyid {
        Skeyid { hash, skeyid: prf(hash, key.expose(), &[ni_b, nr_b]) }
    }

    /// SKEYID = prf(Ni_b | Nr_b, g^xy).
    pub fn signatures(hash: Hash, ni_b: &[u8], nr_b: &[u8], shared: &SecretBytes) -> Skeyid {
        Skeyid { hash, skeyid: prf(hash, &[ni_b, nr_b].concat(), &[shared.expose()]) }
    }

    /// SKEYID_d, _a and _e.
    pub fn derive(&self, shared: &SecretBytes, cookies: CookiePair) -> Derived {
        let (i, r) = (cookies.initiator.0, cookies.responder.0);
        let next = |before: &[u8], number: u8| {
            prf(self.hash, self.skeyid.expose(), &[before, shared.expose(), &i, &r, &[number]])
        };
        let d = next(&[], 0);
        let a = next(d.expose(), 1);
        let e = next(a.expose(), 2);
        Derived { d, a, e }
    }
}

impl Derived {
    /// The cipher key: head of SKEYID_e, or of K1 | K2 | .. when it is too short (RFC 2409 appendix B).
    pub fn cipher_key(&self, hash: Hash, cipher: Cipher) -> CipherKey {
        let needed = cipher.key_len();
        let mut octets = if self.e.len() >= needed { self.e.expose().to_vec() } else { Vec::new() };
        let mut block = SecretBytes::copy(&[0]);
        while octets.len() < needed {
            block = prf(hash, self.e.expose(), &[block.expose()]);
            octets.extend_from_slice(block.expose());
        }
        octets.truncate(needed);
        CipherKey::exact(cipher, SecretBytes::new(octets))
    }
}

/// First phase 1 IV: head of H(g^xi | g^xr) (RFC 2409 appendix B).
pub fn phase1_iv(hash: Hash, g_xi: &[u8], g_xr: &[u8]) -> [u8; 16] {
    head(&digest(hash, &[g_xi, g_xr]))
}

/// IV of the first message of a later exchange: head of H(last phase 1 block | M-ID).
pub fn exchange_iv(
    hash: Hash,
    last_phase1_block: &[u8; 16],
    message_id: gdoi_proto::ids::MessageId,
) -> [u8; 16] {
    head(&digest(hash, &[last_phase1_block, &message_id.0.to_be_bytes()]))
}

/// The first block of a digest; every hash has at least 20 octets.
fn head(digest: &[u8]) -> [u8; 16] {
    digest.first_chunk().copied().unwrap_or_default()
}
