//! AES-CBC without padding of its own: messages are padded by their protocol.

use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, KeyIvInit,
};
use gdoi_proto::secret::SecretBytes;

use super::Cipher;

/// A keyed cipher.
#[derive(Debug, Clone)]
pub struct CipherKey {
    cipher: Cipher,
    key: SecretBytes,
}

impl CipherKey {
    /// Keys `cipher`; none when `key` has another length than it needs.
    pub fn new(cipher: Cipher, key: SecretBytes) -> Option<CipherKey> {
        (key.len() == cipher.key_len()).then_some(CipherKey { cipher, key })
    }

    /// Keys `cipher` with a key its maker gave the right length.
    pub(super) fn exact(cipher: Cipher, key: SecretBytes) -> CipherKey {
        debug_assert_eq!(key.len(), cipher.key_len());
        CipherKey { cipher, key }
    }

    /// The cipher.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// The key.
    pub fn key(&self) -> &SecretBytes {
        &self.key
    }

    /// Encrypts `plain`, padded with zero octets to a whole number of blocks (none when aligned). `iv` has one block.
    pub fn encrypt(&self, iv: &[u8; 16], plain: &[u8]) -> Vec<u8> {
        let mut sealed = plain.to_vec();
        sealed.resize(plain.len().next_multiple_of(self.cipher.block_len()), 0);
        let key = self.key.expose();
        match self.cipher {
            Cipher::Aes128Cbc => encrypt::<Aes128>(key, iv, &mut sealed),
            Cipher::Aes192Cbc => encrypt::<Aes192>(key, iv, &mut sealed),
            Cipher::Aes256Cbc => encrypt::<Aes256>(key, iv, &mut sealed),
        }
        sealed
    }

    /// Decrypts; none unless `sealed` is a positive number of whole blocks.
    pub fn decrypt(&self, iv: &[u8; 16], sealed: &[u8]) -> Option<Vec<u8>> {
        if sealed.is_empty() || !sealed.len().is_multiple_of(self.cipher.block_len()) {
            return None;
        }
        let mut plain = sealed.to_vec();
        let key = self.key.expose();
        match self.cipher {
            Cipher::Aes128Cbc => decrypt::<Aes128>(key, iv, &mut plain),
            Cipher::Aes192Cbc => decrypt::<Aes192>(key, iv, &mut plain),
            Cipher::Aes256Cbc => decrypt::<Aes256>(key, iv, &mut plain),
        }
        Some(plain)
    }
}

// The constructors of CipherKey fix the key's length, so keying cannot fail below; a failure leaves nothing readable.

fn encrypt<C>(key: &[u8], iv: &[u8; 16], octets: &mut [u8])
where
    C: BlockCipherEncrypt + cbc::cipher::KeyInit,
    cbc::Encryptor<C>: BlockModeEncrypt + KeyIvInit,
{
    match cbc::Encryptor::<C>::new_from_slices(key, iv) {
        Ok(mut mode) => {
            let (blocks, _) = Block::<cbc::Encryptor<C>>::slice_as_chunks_mut(octets);
            mode.encrypt_blocks(blocks);
        }
        Err(_) => octets.fill(0),
    }
}

fn decrypt<C>(key: &[u8], iv: &[u8; 16], octets: &mut [u8])
where
    C: BlockCipherDecrypt + cbc::cipher::KeyInit,
    cbc::Decryptor<C>: BlockModeDecrypt + KeyIvInit,
{
    match cbc::Decryptor::<C>::new_from_slices(key, iv) {
        Ok(mut mode) => {
            let (blocks, _) = Block::<cbc::Decryptor<C>>::slice_as_chunks_mut(octets);
            mode.decrypt_blocks(blocks);
        }
        Err(_) => octets.fill(0),
    }
}
