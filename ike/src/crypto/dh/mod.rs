//! The MODP groups as numbers: what a public value and a private exponent must be, and the primes themselves.

#[cfg(feature = "portable")]
mod primes;

use gdoi_proto::secret::SecretBytes;

use super::DhGroup;

#[cfg(feature = "portable")]
pub(super) use primes::prime;

/// Octets of a fresh exponent: twice the strength of the group (RFC 3526 section 8), so 256 to 400 bits.
pub(super) const fn exponent_len(group: DhGroup) -> usize {
    match group {
        DhGroup::Modp2048 => 32,
        DhGroup::Modp3072 => 36,
        DhGroup::Modp4096 => 40,
        DhGroup::Modp6144 => 44,
        DhGroup::Modp8192 => 50,
        DhGroup::Ecp256 | DhGroup::Ecp384 | DhGroup::Ecp521 | DhGroup::Curve25519 => group.shared_len(),
    }
}

/// A private exponent given by its octets: not zero, no longer than the modulus.
pub(super) fn given_exponent(group: DhGroup, private: &[u8]) -> Option<SecretBytes> {
    let fits = private.len() <= group.public_len() && private.iter().any(|octet| *octet != 0);
    fits.then(|| SecretBytes::copy(private))
}
