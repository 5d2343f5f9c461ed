//! Protects what a daemon keeps on its disk: AES-256-GCM for rows, ECDSA on P-256 in the DER form of OpenSSL for logs. No
//! GDOI message uses it. Both providers have the same interface here, since one was made after the other.

#[cfg(feature = "aws-lc")]
use aws_lc_rs as library;
#[cfg(all(feature = "portable", not(feature = "aws-lc")))]
use ring as library;

use gdoi_proto::secret::SecretBytes;
use library::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use library::rand::SystemRandom;
use library::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};

use super::provider::CryptoError;

/// Octets a sealed text is longer than what it holds: nonce and tag.
pub const OVERHEAD: usize = NONCE_LEN + 16;
/// What precedes the point in a SubjectPublicKeyInfo of P-256 (RFC 5480 section 2).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A sealing key. Its nonces are random: seal no more than 2^32 texts under one.
pub struct SealingKey(LessSafeKey);

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(AES-256-GCM)")
    }
}

impl SealingKey {
    /// The key of 32 octets.
    ///
    /// # Errors
    /// [`CryptoError::Key`] for another length.
    pub fn new(key: &SecretBytes) -> Result<SealingKey, CryptoError> {
        UnboundKey::new(&AES_256_GCM, key.expose())
            .map(|key| SealingKey(LessSafeKey::new(key)))
            .map_err(|_| CryptoError::Key("AES-256 takes 32 octets"))
    }

    /// Nonce (12 octets), ciphertext, tag (16 octets). `context` is authenticated with it and must be the same to open.
    ///
    /// # Errors
    /// [`CryptoError::Library`] when the library fails.
    pub fn seal(&self, nonce: [u8; NONCE_LEN], context: &[u8], text: &[u8]) -> Result<Vec<u8>, CryptoError> {
        // Room for the tag too: growing would leave a copy of the text behind.
        let mut sealed = Vec::with_capacity(OVERHEAD + text.len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(text);
        let failed = CryptoError::Library("AES-256-GCM does not seal");
        let body = sealed.get_mut(NONCE_LEN..).ok_or_else(|| failed.clone())?;
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), body)
            .map_err(|_| failed)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// What was sealed with this key in this context.
    ///
    /// # Errors
    /// [`CryptoError::Signature`] when an octet, the key or the context is another.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<SecretBytes, CryptoError> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(CryptoError::Signature)?;
        let mut body = body.to_vec();
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut body)
            .map_err(|_| CryptoError::Signature)?
            .len();
        body.truncate(length);
        Ok(SecretBytes::new(body))
    }
}

/// A key that signs a log.
pub struct LogKey(EcdsaKeyPair);

impl std::fmt::Debug for LogKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogKey(ECDSA P-256)")
    }
}

impl LogKey {
    /// A new key as PKCS#8 DER.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn generate() -> Result<SecretBytes, CryptoError> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map(|pkcs8| SecretBytes::copy(pkcs8.as_ref()))
            .map_err(|_| CryptoError::Library("no P-256 key made"))
    }

    /// The key of PKCS#8 DER.
    ///
    /// # Errors
    /// [`CryptoError::Key`] when it is none of P-256.
    pub fn load(pkcs8: &SecretBytes) -> Result<LogKey, CryptoError> {
        #[cfg(feature = "aws-lc")]
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.expose());
        #[cfg(all(feature = "portable", not(feature = "aws-lc")))]
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.expose(), &SystemRandom::new());
        pair.map(LogKey).map_err(|_| CryptoError::Key("not PKCS#8 of a P-256 key"))
    }

    /// DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        [&SPKI[..], self.0.public_key().as_ref()].concat()
    }

    /// DER signature over SHA-256 of `text`.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn sign(&self, text: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.0
            .sign(&SystemRandom::new(), text)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| CryptoError::Library("P-256 does not sign"))
    }
}

/// Checks a signature of [`LogKey::sign`] with a DER SubjectPublicKeyInfo of P-256.
///
/// # Errors
/// [`CryptoError::Key`] for another kind of key, [`CryptoError::Signature`] when it does not verify.
pub fn verify_log(public_key: &[u8], text: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let point = public_key.strip_prefix(&SPKI).ok_or(CryptoError::Key("not a public key of P-256"))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(text, signature)
        .map_err(|_| CryptoError::Signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_only_with_its_key_context_and_octets() {
        let key = SealingKey::new(&SecretBytes::copy(&[7; 32])).unwrap();
        let sealed = key.seal([1; 12], b"tek\0a", b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + OVERHEAD);
        assert_eq!(key.open(b"tek\0a", &sealed).unwrap().expose(), b"secret");
        assert!(key.open(b"tek\0b", &sealed).is_err(), "a row under another name");
        for place in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[place] ^= 1;
            assert!(key.open(b"tek\0a", &flipped).is_err(), "octet {place}");
            assert!(key.open(b"tek\0a", &sealed[..place]).is_err(), "{place} octets");
        }
        let other = SealingKey::new(&SecretBytes::copy(&[8; 32])).unwrap();
        assert!(other.open(b"tek\0a", &sealed).is_err());
        assert!(SealingKey::new(&SecretBytes::copy(&[8; 31])).is_err());
    }

    /// McGrew and Viega, test case 14: a zero key, nonce and block.
    #[test]
    fn the_cipher_is_aes_256_gcm() {
        let key = SealingKey::new(&SecretBytes::copy(&[0; 32])).unwrap();
        let sealed = key.seal([0; 12], b"", &[0; 16]).unwrap();
        assert_eq!(
            hex::encode(&sealed[12..]),
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
        );
    }

    #[test]
    fn a_signed_text_verifies_and_a_changed_one_does_not() {
        let pkcs8 = LogKey::generate().unwrap();
        let key = LogKey::load(&pkcs8).unwrap();
        let signature = key.sign(b"text").unwrap();
        verify_log(&key.public_key(), b"text", &signature).unwrap();
        assert_eq!(verify_log(&key.public_key(), b"texT", &signature), Err(CryptoError::Signature));
        assert!(matches!(verify_log(b"something", b"text", &signature), Err(CryptoError::Key(_))));
        assert!(LogKey::load(&SecretBytes::copy(b"no key")).is_err());
    }
}
