//! What `approved-only` leaves, written once for both daemons: AES-CBC and AES-GCM, SHA-2, groups 14 to 21, ECDSA, and
//! for group messages RSA of 2048 bits or more. Nothing else.
//!
//! | what | approved | outside |
//! | --- | --- | --- |
//! | phase 1 cipher | AES-CBC | - |
//! | hash and prf | SHA-256, SHA-384, SHA-512 | SHA-1 |
//! | Diffie-Hellman | groups 14 to 21 | group 31 |
//! | authentication | pre-shared keys of 16 octets or more, ECDSA | RSA signatures |
//! | certificates | ECDSA on P-256, P-384, P-521 with SHA-2, from the anchor down | RSA, also of an authority |
//! | KEK | AES-CBC, pushes signed by ECDSA, or RSA of 2048 bits or more, with SHA-2 | 3DES, SHA-1 |
//! | TEK | AES-CBC with an HMAC of SHA-2, AES-GCM | AES-GMAC, NULL, HMAC-SHA-1 |

use gdoi_proto::policy::{KekCipher, KekPolicy, SignatureHash, TekAuthentication, TekCipher};

use crate::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};

/// Smallest RSA modulus of a signing key, in bits.
pub const SMALLEST_RSA: usize = 2048;

/// True for groups 14 to 21.
pub const fn group(group: DhGroup) -> bool {
    match group {
        DhGroup::Modp2048
        | DhGroup::Modp3072
        | DhGroup::Modp4096
        | DhGroup::Modp6144
        | DhGroup::Modp8192
        | DhGroup::Ecp256
        | DhGroup::Ecp384
        | DhGroup::Ecp521 => true,
        DhGroup::Curve25519 => false,
    }
}

/// True for SHA-2.
pub const fn hash(hash: Hash) -> bool {
    match hash {
        Hash::Sha256 | Hash::Sha384 | Hash::Sha512 => true,
        Hash::Sha1 => false,
    }
}

/// True for pre-shared keys and ECDSA.
pub const fn method(method: AuthMethod) -> bool {
    match method {
        AuthMethod::PreSharedKey | AuthMethod::Ecdsa256 | AuthMethod::Ecdsa384 | AuthMethod::Ecdsa521 => true,
        AuthMethod::RsaSignature => false,
    }
}

/// True when every part of a phase 1 is approved.
pub const fn suite(suite: &Suite) -> bool {
    let cipher = match suite.cipher {
        Cipher::Aes128Cbc | Cipher::Aes192Cbc | Cipher::Aes256Cbc => true,
    };
    cipher && hash(suite.hash) && group(suite.group) && method(suite.method)
}

/// Checks a rekey SA; the size of an RSA key is known with the key only.
///
/// # Errors
/// What is outside.
pub fn kek(kek: &KekPolicy) -> Result<(), &'static str> {
    match kek.cipher {
        KekCipher::AesCbc { .. } => {}
        KekCipher::TripleDesCbc => return Err("a KEK with 3DES"),
    }
    match kek.signature_hash {
        SignatureHash::Sha256 | SignatureHash::Sha384 | SignatureHash::Sha512 => Ok(()),
        SignatureHash::Sha1 => Err("pushes signed with SHA-1"),
    }
}

/// Checks the cipher of a data-security SA.
///
/// # Errors
/// What is outside.
pub fn tek(cipher: TekCipher) -> Result<(), &'static str> {
    match cipher {
        TekCipher::AesGcm { .. } => Ok(()),
        TekCipher::AesCbc { authentication, .. } => match authentication {
            TekAuthentication::HmacSha256 | TekAuthentication::HmacSha384 | TekAuthentication::HmacSha512 => {
                Ok(())
            }
            TekAuthentication::HmacSha1 => Err("a TEK with HMAC-SHA-1"),
        },
        TekCipher::AesGmac { .. } => Err("a TEK with AES-GMAC"),
        TekCipher::Null { .. } => Err("a TEK with NULL encryption"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_approved_when_all_of_it_is() {
        let good = Suite {
            cipher: Cipher::Aes128Cbc,
            hash: Hash::Sha256,
            group: DhGroup::Modp2048,
            method: AuthMethod::PreSharedKey,
        };
        let numbers: Vec<u16> =
            DhGroup::ALL.into_iter().filter(|it| group(*it)).map(DhGroup::number).collect();
        assert_eq!(numbers, [14, 15, 16, 17, 18, 19, 20, 21]);
        assert!(suite(&good));
        assert!(suite(&Suite { method: AuthMethod::Ecdsa521, group: DhGroup::Ecp521, ..good }));
        assert!(!suite(&Suite { group: DhGroup::Curve25519, ..good }));
        assert!(!suite(&Suite { hash: Hash::Sha1, ..good }));
        assert!(!suite(&Suite { method: AuthMethod::RsaSignature, ..good }));
    }

    #[test]
    fn traffic_is_protected_by_aes_with_sha_2_or_by_gcm() {
        let cbc = |authentication| TekCipher::AesCbc { key_octets: 16, authentication };
        assert!(tek(TekCipher::AesGcm { key_octets: 16, icv_octets: 16 }).is_ok());
        assert!(tek(cbc(TekAuthentication::HmacSha512)).is_ok());
        for outside in [
            cbc(TekAuthentication::HmacSha1),
            TekCipher::AesGmac { key_octets: 32 },
            TekCipher::Null { authentication: TekAuthentication::HmacSha256 },
        ] {
            assert!(tek(outside).is_err(), "{outside:?}");
        }
    }
}
