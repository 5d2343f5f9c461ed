//! The keys of an SA, prepared once: ciphers with their schedules, HMACs with their padded keys absorbed.

use std::fmt;

use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::{
    Array, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit as CipherKeyInit, typenum::U16,
};
use gdoi_proto::policy::{TekAuthentication, TekCipher, TekKey};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};
use thiserror::Error;

#[cfg(feature = "aws-lc")]
use aws_lc_rs::aead;
#[cfg(all(feature = "portable", not(feature = "aws-lc")))]
use ring::aead;

/// Octets of a full GCM or GMAC tag.
pub const TAG: usize = 16;
/// Longest ICV: HMAC-SHA-512-256.
pub const MAX_ICV: usize = 32;

/// Why keys cannot be used. Holds no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not the length of the algorithm.
    #[error("a key of {0} octets does not fit its cipher")]
    Length(usize),
    /// This build's library lacks it.
    #[error("AES-GCM with a key of {0} octets is not in this build")]
    Unsupported(usize),
    /// A cipher without combined mode needs an integrity key.
    #[error("the integrity key is missing")]
    NoIntegrity,
}

/// An ICV did not verify, or octets were too many for the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Keys ready for use. `Debug` shows the cipher only.
pub struct Keys {
    cipher: Cipher,
    shape: Shape,
}

/// The sizes ESP needs to know of a cipher, in octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Explicit IV: 8 for counter modes, 16 for CBC, 0 for NULL.
    pub iv: usize,
    /// Padding makes plaintext a multiple of this.
    pub align: usize,
    /// ICV.
    pub icv: usize,
    /// The IV is a counter that must never repeat.
    pub counts: bool,
}

enum Cipher {
    Gcm { key: Box<aead::LessSafeKey>, salt: [u8; 4] },
    Gmac { key: Box<aead::LessSafeKey>, salt: [u8; 4] },
    Cbc { key: Box<CbcKey>, mac: Box<HmacKey> },
    Null { mac: Box<HmacKey> },
}

enum CbcKey {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

enum HmacKey {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Sha384(Hmac<Sha384>),
    Sha512(Hmac<Sha512>),
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.cipher {
            Cipher::Gcm { .. } => "AES-GCM",
            Cipher::Gmac { .. } => "AES-GMAC",
            Cipher::Cbc { .. } => "AES-CBC",
            Cipher::Null { .. } => "NULL",
        };
        write!(f, "Keys({name})")
    }
}

fn aead_key(octets: &[u8]) -> Result<(Box<aead::LessSafeKey>, [u8; 4]), KeyError> {
    let wrong = KeyError::Length(octets.len());
    let (key, salt) = octets.split_last_chunk::<4>().ok_or(wrong)?;
    let algorithm = match key.len() {
        16 => &aead::AES_128_GCM,
        #[cfg(feature = "aws-lc")]
        24 => &aead::AES_192_GCM,
        #[cfg(not(feature = "aws-lc"))]
        24 => return Err(KeyError::Unsupported(24)),
        32 => &aead::AES_256_GCM,
        _ => return Err(wrong),
    };
    let unbound = aead::UnboundKey::new(algorithm, key).map_err(|_| wrong)?;
    Ok((Box::new(aead::LessSafeKey::new(unbound)), *salt))
}

fn hmac_key(authentication: TekAuthentication, key: &TekKey) -> Result<Box<HmacKey>, KeyError> {
    let key = key.integrity.as_ref().ok_or(KeyError::NoIntegrity)?.expose();
    if key.len() != authentication.key_octets() {
        return Err(KeyError::Length(key.len()));
    }
    let wrong = |_| KeyError::Length(key.len());
    Ok(Box::new(match authentication {
        TekAuthentication::HmacSha1 => HmacKey::Sha1(KeyInit::new_from_slice(key).map_err(wrong)?),
        TekAuthentication::HmacSha256 => HmacKey::Sha256(KeyInit::new_from_slice(key).map_err(wrong)?),
        TekAuthentication::HmacSha384 => HmacKey::Sha384(KeyInit::new_from_slice(key).map_err(wrong)?),
        TekAuthentication::HmacSha512 => HmacKey::Sha512(KeyInit::new_from_slice(key).map_err(wrong)?),
    }))
}

fn icv_octets(authentication: TekAuthentication) -> usize {
    match authentication {
        TekAuthentication::HmacSha1 => 12,
        TekAuthentication::HmacSha256 => 16,
        TekAuthentication::HmacSha384 => 24,
        TekAuthentication::HmacSha512 => 32,
    }
}

impl Shape {
    /// The sizes of `cipher`.
    pub fn of(cipher: TekCipher) -> Shape {
        match cipher {
            TekCipher::AesGcm { icv_octets, .. } => {
                Shape { iv: 8, align: 4, icv: icv_octets.clamp(8, TAG), counts: true }
            }
            TekCipher::AesGmac { .. } => Shape { iv: 8, align: 4, icv: TAG, counts: true },
            TekCipher::AesCbc { authentication, .. } => {
                Shape { iv: 16, align: 16, icv: icv_octets(authentication), counts: false }
            }
            TekCipher::Null { authentication } => {
                Shape { iv: 0, align: 4, icv: icv_octets(authentication), counts: false }
            }
        }
    }
}

impl Keys {
    /// Prepares the keys of a TEK.
    ///
    /// # Errors
    /// [`KeyError`] when a key has the wrong length, is missing, or is of a size this build lacks.
    pub fn new(cipher: TekCipher, key: &TekKey) -> Result<Keys, KeyError> {
        let octets = key.encryption.expose();
        if octets.len() != cipher.encryption_octets() {
            return Err(KeyError::Length(octets.len()));
        }
        let shape = Shape::of(cipher);
        let cipher = match cipher {
            TekCipher::AesGcm { .. } => {
                let (key, salt) = aead_key(octets)?;
                Cipher::Gcm { key, salt }
            }
            TekCipher::AesGmac { .. } => {
                let (key, salt) = aead_key(octets)?;
                Cipher::Gmac { key, salt }
            }
            TekCipher::AesCbc { authentication, .. } => {
                let wrong = |_| KeyError::Length(octets.len());
                let cbc = match octets.len() {
                    16 => CbcKey::Aes128(CipherKeyInit::new_from_slice(octets).map_err(wrong)?),
                    24 => CbcKey::Aes192(CipherKeyInit::new_from_slice(octets).map_err(wrong)?),
                    _ => CbcKey::Aes256(CipherKeyInit::new_from_slice(octets).map_err(wrong)?),
                };
                Cipher::Cbc { key: Box::new(cbc), mac: hmac_key(authentication, key)? }
            }
            TekCipher::Null { authentication } => Cipher::Null { mac: hmac_key(authentication, key)? },
        };
        Ok(Keys { cipher, shape })
    }

    /// The sizes of the cipher.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Encrypts in place the part of `body` behind ESP header and IV, `text_at` octets in, and returns the ICV; its
    /// first [`Shape::icv`] octets count. `body` begins with SPI and sequence number (8 octets).
    ///
    /// # Errors
    /// [`Refused`] when lengths cannot be, which the caller's layout rules out.
    pub(super) fn seal(&self, body: &mut [u8], text_at: usize) -> Result<[u8; MAX_ICV], Refused> {
        let mut icv = [0; MAX_ICV];
        match &self.cipher {
            Cipher::Gcm { key, salt } => {
                let (head, text) = body.split_at_mut_checked(text_at).ok_or(Refused)?;
                let aad = head.get(..8).ok_or(Refused)?;
                let tag = key.seal_in_place_separate_tag(nonce(*salt, head)?, aead::Aad::from(aad), text);
                copy(&mut icv, tag.map_err(|_| Refused)?.as_ref());
            }
            Cipher::Gmac { key, salt } => {
                let nonce = nonce(*salt, body)?;
                let tag = key.seal_in_place_separate_tag(nonce, aead::Aad::from(&*body), &mut []);
                copy(&mut icv, tag.map_err(|_| Refused)?.as_ref());
            }
            Cipher::Cbc { key, mac } => {
                let (head, text) = body.split_at_mut_checked(text_at).ok_or(Refused)?;
                let iv: &[u8; 16] = head.last_chunk().ok_or(Refused)?;
                key.encrypt(iv, text)?;
                icv = mac.icv(body);
            }
            Cipher::Null { mac } => icv = mac.icv(body),
        }
        Ok(icv)
    }

    /// Verifies `icv` over `body` and decrypts in place what is behind ESP header and IV. On refusal the text may hold
    /// anything.
    ///
    /// # Errors
    /// [`Refused`] when the ICV does not verify.
    pub(super) fn open(&self, body: &mut [u8], text_at: usize, icv: &[u8]) -> Result<(), Refused> {
        match &self.cipher {
            Cipher::Gcm { key, salt } => {
                let (head, text_and_icv) = body.split_at_mut_checked(text_at).ok_or(Refused)?;
                let aad = head.get(..8).ok_or(Refused)?;
                open_gcm(key, *salt, head, aad, text_and_icv, icv)
            }
            Cipher::Gmac { key, salt } => {
                let tag =
                    key.seal_in_place_separate_tag(nonce(*salt, body)?, aead::Aad::from(&*body), &mut []);
                equal(tag.map_err(|_| Refused)?.as_ref(), icv)
            }
            Cipher::Cbc { key, mac } => {
                equal(mac.icv(body).get(..icv.len()).ok_or(Refused)?, icv)?;
                let (head, text) = body.split_at_mut_checked(text_at).ok_or(Refused)?;
                let iv: &[u8; 16] = head.last_chunk().ok_or(Refused)?;
                key.decrypt(iv, text)
            }
            Cipher::Null { mac } => equal(mac.icv(body).get(..icv.len()).ok_or(Refused)?, icv),
        }
    }
}

fn copy(icv: &mut [u8; MAX_ICV], tag: &[u8]) {
    icv.iter_mut().zip(tag).for_each(|(to, from)| *to = *from);
}

fn equal(left: &[u8], right: &[u8]) -> Result<(), Refused> {
    gdoi_proto::secret::ct_eq(left, right).then_some(()).ok_or(Refused)
}

/// salt | IV, which stands behind SPI and sequence number (RFC 4106 section 4).
fn nonce(salt: [u8; 4], head: &[u8]) -> Result<aead::Nonce, Refused> {
    let iv: [u8; 8] = crate::header::octets(head, 8).ok_or(Refused)?;
    let mut nonce = [0; 12];
    let (left, right) = nonce.split_at_mut(4);
    left.copy_from_slice(&salt);
    right.copy_from_slice(&iv);
    Ok(aead::Nonce::assume_unique_for_key(nonce))
}

/// `text` holds ciphertext only, `icv` its tag. A shortened tag (transforms 18 and 19) is checked by computing the whole
/// one: the counter mode undoes itself, so a second sealing of the plaintext gives the ciphertext and its tag.
fn open_gcm(
    key: &aead::LessSafeKey,
    salt: [u8; 4],
    head: &[u8],
    aad: &[u8],
    text: &mut [u8],
    icv: &[u8],
) -> Result<(), Refused> {
    #[cfg(feature = "aws-lc")]
    if icv.len() == TAG {
        let opened = key.open_in_place_separate_tag(nonce(salt, head)?, aead::Aad::from(aad), icv, text);
        return opened.map(|_| ()).map_err(|_| Refused);
    }
    let seal = |text: &mut [u8]| {
        key.seal_in_place_separate_tag(nonce(salt, head)?, aead::Aad::from(aad), text).map_err(|_| Refused)
    };
    let _ = seal(text)?;
    let tag = seal(text)?;
    equal(tag.as_ref().get(..icv.len()).ok_or(Refused)?, icv)?;
    seal(text).map(|_| ())
}

impl CbcKey {
    fn encrypt(&self, iv: &[u8; 16], text: &mut [u8]) -> Result<(), Refused> {
        let (blocks, rest) = Array::<u8, U16>::slice_as_chunks_mut(text);
        let iv = iv.into();
        match self {
            CbcKey::Aes128(key) => cbc::Encryptor::inner_iv_init(key, iv).encrypt_blocks(blocks),
            CbcKey::Aes192(key) => cbc::Encryptor::inner_iv_init(key, iv).encrypt_blocks(blocks),
            CbcKey::Aes256(key) => cbc::Encryptor::inner_iv_init(key, iv).encrypt_blocks(blocks),
        }
        rest.is_empty().then_some(()).ok_or(Refused)
    }

    fn decrypt(&self, iv: &[u8; 16], text: &mut [u8]) -> Result<(), Refused> {
        let (blocks, rest) = Array::<u8, U16>::slice_as_chunks_mut(text);
        let iv = iv.into();
        match self {
            CbcKey::Aes128(key) => cbc::Decryptor::inner_iv_init(key, iv).decrypt_blocks(blocks),
            CbcKey::Aes192(key) => cbc::Decryptor::inner_iv_init(key, iv).decrypt_blocks(blocks),
            CbcKey::Aes256(key) => cbc::Decryptor::inner_iv_init(key, iv).decrypt_blocks(blocks),
        }
        rest.is_empty().then_some(()).ok_or(Refused)
    }
}

impl HmacKey {
    fn icv(&self, body: &[u8]) -> [u8; MAX_ICV] {
        fn mac<M: Mac + Clone>(keyed: &M, body: &[u8]) -> [u8; MAX_ICV] {
            let mut mac = keyed.clone();
            mac.update(body);
            let mut icv = [0; MAX_ICV];
            copy(&mut icv, &mac.finalize().into_bytes());
            icv
        }
        match self {
            HmacKey::Sha1(key) => mac(key, body),
            HmacKey::Sha256(key) => mac(key, body),
            HmacKey::Sha384(key) => mac(key, body),
            HmacKey::Sha512(key) => mac(key, body),
        }
    }
}

#[cfg(test)]
mod tests {
    use gdoi_proto::secret::SecretBytes;

    use super::*;

    fn key(encryption: usize, integrity: Option<usize>) -> TekKey {
        TekKey {
            encryption: SecretBytes::new(vec![7; encryption]),
            integrity: integrity.map(|octets| SecretBytes::new(vec![9; octets])),
        }
    }

    #[test]
    fn keys_of_the_wrong_length_are_refused() {
        let cbc = TekCipher::AesCbc { key_octets: 32, authentication: TekAuthentication::HmacSha256 };
        assert!(Keys::new(cbc, &key(32, Some(32))).is_ok());
        assert_eq!(Keys::new(cbc, &key(32, None)).unwrap_err(), KeyError::NoIntegrity);
        assert_eq!(Keys::new(cbc, &key(32, Some(20))).unwrap_err(), KeyError::Length(20));
        assert_eq!(Keys::new(cbc, &key(16, Some(32))).unwrap_err(), KeyError::Length(16));
        let gcm = TekCipher::AesGcm { key_octets: 32, icv_octets: 16 };
        assert!(Keys::new(gcm, &key(36, None)).is_ok());
        assert_eq!(Keys::new(gcm, &key(32, None)).unwrap_err(), KeyError::Length(32));
    }

    #[test]
    fn what_one_seals_the_other_opens_and_a_changed_octet_does_not() {
        let mac = TekAuthentication::HmacSha384;
        let ciphers = [
            (TekCipher::AesGcm { key_octets: 16, icv_octets: 16 }, key(20, None)),
            (TekCipher::AesGcm { key_octets: 32, icv_octets: 12 }, key(36, None)),
            (TekCipher::AesGcm { key_octets: 32, icv_octets: 8 }, key(36, None)),
            (TekCipher::AesGmac { key_octets: 16 }, key(20, None)),
            (TekCipher::AesCbc { key_octets: 24, authentication: mac }, key(24, Some(48))),
            (TekCipher::Null { authentication: TekAuthentication::HmacSha1 }, key(0, Some(20))),
        ];
        for (cipher, key) in ciphers {
            let keys = Keys::new(cipher, &key).unwrap();
            let at = 8 + keys.shape().iv;
            let clear: Vec<u8> = (0..at as u8 + 64).collect();
            let mut body = clear.clone();
            let icv = keys.seal(&mut body, at).unwrap();
            let icv = &icv[..keys.shape().icv];
            let sealed = body.clone();
            keys.open(&mut body, at, icv).unwrap();
            assert_eq!(body, clear, "{cipher:?}");
            for index in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[index] ^= 1;
                assert_eq!(keys.open(&mut changed, at, icv), Err(Refused), "{cipher:?} octet {index}");
            }
        }
    }
}
