//! What phase 1 negotiates, and the crypto behind it: symmetric work inline, asymmetric work as jobs.

pub mod cipher;
#[cfg(any(feature = "aws-lc", feature = "portable"))]
mod dh;
pub mod prf;
pub mod provider;
pub mod skeyid;

use std::fmt;

/// Hash of a phase 1 transform; its HMAC is the prf (RFC 2409 section 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hash {
    /// Attribute value 2, 20 octets: only with `allow-legacy`.
    Sha1,
    /// 4, 32 octets.
    Sha256,
    /// 5, 48 octets.
    Sha384,
    /// 6, 64 octets.
    Sha512,
}

impl Hash {
    /// Octets of output.
    pub const fn output_len(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }

    /// Attribute value (RFC 2409 appendix A).
    pub const fn number(self) -> u16 {
        match self {
            Hash::Sha1 => 2,
            Hash::Sha256 => 4,
            Hash::Sha384 => 5,
            Hash::Sha512 => 6,
        }
    }

    /// The hash of an attribute value.
    pub const fn from_number(number: u16) -> Option<Hash> {
        match number {
            2 => Some(Hash::Sha1),
            4 => Some(Hash::Sha256),
            5 => Some(Hash::Sha384),
            6 => Some(Hash::Sha512),
            _ => None,
        }
    }
}

/// Cipher of phase 1 and of KEKs: AES-CBC. 3DES exists so that recorded exchanges can be opened; it is never
/// negotiated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cipher {
    /// 16 octets of key.
    Aes128Cbc,
    /// 24 octets of key.
    Aes192Cbc,
    /// 32 octets of key.
    Aes256Cbc,
}

impl Cipher {
    /// Octets of key.
    pub const fn key_len(self) -> usize {
        match self {
            Cipher::Aes128Cbc => 16,
            Cipher::Aes192Cbc => 24,
            Cipher::Aes256Cbc => 32,
        }
    }

    /// Octets of a block and of an IV.
    pub const fn block_len(self) -> usize {
        16
    }

    /// The AES-CBC cipher with `octets` of key.
    pub const fn with_key_len(octets: usize) -> Option<Cipher> {
        match octets {
            16 => Some(Cipher::Aes128Cbc),
            24 => Some(Cipher::Aes192Cbc),
            32 => Some(Cipher::Aes256Cbc),
            _ => None,
        }
    }
}

/// Diffie-Hellman group of phase 1 (Group Description).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DhGroup {
    /// 14, MODP 2048.
    Modp2048,
    /// 15, MODP 3072.
    Modp3072,
    /// 16, MODP 4096.
    Modp4096,
    /// 17, MODP 6144.
    Modp6144,
    /// 18, MODP 8192.
    Modp8192,
    /// 19, P-256.
    Ecp256,
    /// 20, P-384.
    Ecp384,
    /// 21, P-521.
    Ecp521,
    /// 31, Curve25519.
    Curve25519,
}

impl DhGroup {
    /// Every group, in the order of its number.
    pub const ALL: [DhGroup; 9] = [
        DhGroup::Modp2048,
        DhGroup::Modp3072,
        DhGroup::Modp4096,
        DhGroup::Modp6144,
        DhGroup::Modp8192,
        DhGroup::Ecp256,
        DhGroup::Ecp384,
        DhGroup::Ecp521,
        DhGroup::Curve25519,
    ];

    /// The registered number.
    pub const fn number(self) -> u16 {
        match self {
            DhGroup::Modp2048 => 14,
            DhGroup::Modp3072 => 15,
            DhGroup::Modp4096 => 16,
            DhGroup::Modp6144 => 17,
            DhGroup::Modp8192 => 18,
            DhGroup::Ecp256 => 19,
            DhGroup::Ecp384 => 20,
            DhGroup::Ecp521 => 21,
            DhGroup::Curve25519 => 31,
        }
    }

    /// The group of a number.
    pub fn from_number(number: u16) -> Option<DhGroup> {
        DhGroup::ALL.into_iter().find(|group| group.number() == number)
    }

    /// Octets of a KE payload.
    pub const fn public_len(self) -> usize {
        match self {
            DhGroup::Modp2048 => 256,
            DhGroup::Modp3072 => 384,
            DhGroup::Modp4096 => 512,
            DhGroup::Modp6144 => 768,
            DhGroup::Modp8192 => 1024,
            DhGroup::Ecp256 => 64,
            DhGroup::Ecp384 => 96,
            DhGroup::Ecp521 => 132,
            DhGroup::Curve25519 => 32,
        }
    }

    /// Octets of g^xy.
    pub const fn shared_len(self) -> usize {
        match self {
            DhGroup::Ecp256 | DhGroup::Ecp384 | DhGroup::Ecp521 => self.public_len() / 2,
            _ => self.public_len(),
        }
    }
}

/// Authentication method of phase 1 (RFC 2409 appendix A, RFC 4754).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AuthMethod {
    /// 1.
    PreSharedKey,
    /// 3.
    RsaSignature,
    /// 9.
    Ecdsa256,
    /// 10.
    Ecdsa384,
    /// 11.
    Ecdsa521,
}

impl AuthMethod {
    /// Attribute value.
    pub const fn number(self) -> u16 {
        match self {
            AuthMethod::PreSharedKey => 1,
            AuthMethod::RsaSignature => 3,
            AuthMethod::Ecdsa256 => 9,
            AuthMethod::Ecdsa384 => 10,
            AuthMethod::Ecdsa521 => 11,
        }
    }

    /// The method of an attribute value.
    pub const fn from_number(number: u16) -> Option<AuthMethod> {
        match number {
            1 => Some(AuthMethod::PreSharedKey),
            3 => Some(AuthMethod::RsaSignature),
            9 => Some(AuthMethod::Ecdsa256),
            10 => Some(AuthMethod::Ecdsa384),
            11 => Some(AuthMethod::Ecdsa521),
            _ => None,
        }
    }

    /// The hash a method brings along (RFC 4754 section 3); the others use the negotiated one.
    pub const fn own_hash(self) -> Option<Hash> {
        match self {
            AuthMethod::Ecdsa256 => Some(Hash::Sha256),
            AuthMethod::Ecdsa384 => Some(Hash::Sha384),
            AuthMethod::Ecdsa521 => Some(Hash::Sha512),
            AuthMethod::PreSharedKey | AuthMethod::RsaSignature => None,
        }
    }
}

/// What a phase 1 negotiated: one value names cipher, hash, group and method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suite {
    /// Cipher.
    pub cipher: Cipher,
    /// Hash and prf.
    pub hash: Hash,
    /// Diffie-Hellman group.
    pub group: DhGroup,
    /// How the sides prove who they are.
    pub method: AuthMethod,
}

impl Suite {
    /// True when it holds what only `allow-legacy` lets in: SHA-1.
    pub const fn is_legacy(&self) -> bool {
        matches!(self.hash, Hash::Sha1)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "aes-{}-cbc/{}/group{}/{}",
            self.cipher.key_len() * 8,
            match self.hash {
                Hash::Sha1 => "sha1",
                Hash::Sha256 => "sha-256",
                Hash::Sha384 => "sha-384",
                Hash::Sha512 => "sha-512",
            },
            self.group.number(),
            match self.method {
                AuthMethod::PreSharedKey => "pre-shared-keys",
                AuthMethod::RsaSignature => "rsa-signatures",
                AuthMethod::Ecdsa256 => "ecdsa-signatures-256",
                AuthMethod::Ecdsa384 => "ecdsa-signatures-384",
                AuthMethod::Ecdsa521 => "ecdsa-signatures-521",
            }
        )
    }
}
