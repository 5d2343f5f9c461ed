//! ESP ciphers of data-security SAs and the lengths of their keys (RFC 6407 section 5.6.1).

use crate::registry::AuthenticationAlgorithm;

/// Octets of salt behind the key of a counter mode (RFC 4106 section 8.1, RFC 4543 section 5.3).
const SALT_OCTETS: usize = 4;

/// ESP cipher of a TEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TekCipher {
    /// ESP transform 12, 16/24/32 octets of key, with an authentication algorithm.
    AesCbc {
        /// Octets of key.
        key_octets: usize,
        /// Integrity.
        authentication: TekAuthentication,
    },
    /// ESP transforms 18, 19, 20: key of 16/24/32 octets and a salt of 4.
    AesGcm {
        /// Octets of key without salt.
        key_octets: usize,
        /// 8, 12 or 16 octets of ICV.
        icv_octets: usize,
    },
    /// ESP transform 23: AES-GMAC, key and salt of 4.
    AesGmac {
        /// Octets of key without salt.
        key_octets: usize,
    },
    /// ESP transform 11 with integrity only.
    Null {
        /// Integrity.
        authentication: TekAuthentication,
    },
}

/// Authentication Algorithm attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TekAuthentication {
    /// 2, 20 octets of key, 12 of ICV.
    HmacSha1,
    /// 5, 32 octets of key, 16 of ICV.
    HmacSha256,
    /// 6, 48 octets of key, 24 of ICV.
    HmacSha384,
    /// 7, 64 octets of key, 32 of ICV.
    HmacSha512,
}

impl TekCipher {
    /// Octets of TEK_ALGORITHM_KEY, salt included; 0 for NULL.
    pub fn encryption_octets(self) -> usize {
        match self {
            TekCipher::AesCbc { key_octets, .. } => key_octets,
            TekCipher::AesGcm { key_octets, .. } | TekCipher::AesGmac { key_octets } => {
                key_octets.saturating_add(SALT_OCTETS)
            }
            TekCipher::Null { .. } => 0,
        }
    }

    /// The separate integrity algorithm, none for combined modes.
    pub fn authentication(self) -> Option<TekAuthentication> {
        match self {
            TekCipher::AesCbc { authentication, .. } | TekCipher::Null { authentication } => {
                Some(authentication)
            }
            TekCipher::AesGcm { .. } | TekCipher::AesGmac { .. } => None,
        }
    }
}

impl TekAuthentication {
    /// Octets of TEK_INTEGRITY_KEY.
    pub fn key_octets(self) -> usize {
        match self {
            TekAuthentication::HmacSha1 => 20,
            TekAuthentication::HmacSha256 => 32,
            TekAuthentication::HmacSha384 => 48,
            TekAuthentication::HmacSha512 => 64,
        }
    }

    /// Its number.
    pub fn registry(self) -> AuthenticationAlgorithm {
        match self {
            TekAuthentication::HmacSha1 => AuthenticationAlgorithm::HmacSha1,
            TekAuthentication::HmacSha256 => AuthenticationAlgorithm::HmacSha256,
            TekAuthentication::HmacSha384 => AuthenticationAlgorithm::HmacSha384,
            TekAuthentication::HmacSha512 => AuthenticationAlgorithm::HmacSha512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_counter_modes_carry_four_octets_of_salt() {
        let gcm = TekCipher::AesGcm { key_octets: 16, icv_octets: 16 };
        assert_eq!((gcm.encryption_octets(), gcm.authentication()), (20, None));
        assert_eq!(TekCipher::AesGmac { key_octets: 32 }.encryption_octets(), 36);
    }

    #[test]
    fn separate_integrity_keys_are_as_long_as_their_hash() {
        let cbc = TekCipher::AesCbc { key_octets: 16, authentication: TekAuthentication::HmacSha384 };
        assert_eq!(cbc.encryption_octets(), 16);
        assert_eq!(cbc.authentication().map(TekAuthentication::key_octets), Some(48));
        let null = TekCipher::Null { authentication: TekAuthentication::HmacSha1 };
        assert_eq!(
            (null.encryption_octets(), null.authentication().map(TekAuthentication::key_octets)),
            (0, Some(20))
        );
    }
}
