//! Octets that must not be seen: keys, nonces of exponents, shared secrets.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret octets: wiped on drop, silent in `Debug`, without `Display`, serialisation or `==`.
#[derive(Clone)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes over `octets`; the caller keeps no copy.
    pub fn new(octets: Vec<u8>) -> SecretBytes {
        SecretBytes(Zeroizing::new(octets))
    }

    /// Copies `octets`.
    pub fn copy(octets: &[u8]) -> SecretBytes {
        SecretBytes::new(octets.to_vec())
    }

    /// The octets themselves; the one way in.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in octets.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without octets.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Equality in constant time for equal lengths.
    pub fn ct_eq(&self, other: &[u8]) -> bool {
        ct_eq(&self.0, other)
    }
}

/// Equality in constant time for equal lengths: for MACs, hashes, nonces and cookies.
pub fn ct_eq(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} octets)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_only_the_length() {
        let secret = SecretBytes::copy(b"tell nobody");
        assert_eq!(format!("{secret:?}"), "SecretBytes(11 octets)");
    }

    #[test]
    fn comparison_is_by_content_and_length() {
        let secret = SecretBytes::copy(&[1, 2, 3]);
        assert!(secret.ct_eq(&[1, 2, 3]));
        assert!(!secret.ct_eq(&[1, 2, 4]));
        assert!(!secret.ct_eq(&[1, 2]));
    }
}
