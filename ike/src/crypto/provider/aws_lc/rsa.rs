//! RSA over a bare digest, PKCS#1 type 1 without DigestInfo (RFC 2409 section 5.1), which aws-lc-rs does not offer: the
//! library's raw operations, padded by the library. Every pointer made here is freed here.
#![allow(unsafe_code)]

use aws_lc_sys as sys;
use gdoi_proto::secret::{SecretBytes, ct_eq};

use crate::crypto::provider::CryptoError;

/// An owned private key.
pub(super) struct PrivateKey(*mut sys::EVP_PKEY);

// SAFETY: AWS-LC guards what an RSA key caches with locks of its own; the key is only read after construction.
unsafe impl Send for PrivateKey {}
// SAFETY: as above.
unsafe impl Sync for PrivateKey {}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        // SAFETY: made by EVP_parse_private_key, freed once; the library wipes it.
        unsafe { sys::EVP_PKEY_free(self.0) }
    }
}

impl PrivateKey {
    /// The RSA key of PKCS#8 DER, at least 2048 bits.
    pub(super) fn load(pkcs8: &SecretBytes) -> Result<PrivateKey, CryptoError> {
        let octets = pkcs8.expose();
        // SAFETY: the CBS borrows `octets` for the call only; a null result is not used.
        let key = unsafe {
            let mut cbs = sys::CBS { data: octets.as_ptr(), len: octets.len() };
            sys::EVP_parse_private_key(&mut cbs)
        };
        if key.is_null() {
            return Err(CryptoError::Key("not a PKCS#8 key of this algorithm"));
        }
        let key = PrivateKey(key);
        // SAFETY: the key is live; get0 borrows from it and gives null for another algorithm; RSA_size only reads.
        let octets = unsafe {
            let rsa = sys::EVP_PKEY_get0_RSA(key.0);
            if rsa.is_null() { 0 } else { sys::RSA_size(rsa) as usize }
        };
        if octets == 0 {
            return Err(CryptoError::Key("not a PKCS#8 key of this algorithm"));
        }
        if octets < 256 { Err(CryptoError::Key("RSA keys below 2048 bits are refused")) } else { Ok(key) }
    }

    /// The private operation on 00 01 ff.. 00 | digest, as long as the modulus. The library blinds and checks it.
    pub(super) fn sign_bare(&self, digest: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let failed = CryptoError::Library("RSA signature");
        // SAFETY: the key is live and an RSA key (see `load`); `out` has the length passed; `len` is read only after
        // success; RSA_sign_raw takes the key as mutable for its caches, which it locks.
        let (out, len) = unsafe {
            let rsa = sys::EVP_PKEY_get0_RSA(self.0);
            if rsa.is_null() {
                return Err(failed);
            }
            let mut out = vec![0; sys::RSA_size(rsa) as usize];
            let mut len = 0;
            let signed = sys::RSA_sign_raw(
                rsa,
                &mut len,
                out.as_mut_ptr(),
                out.len(),
                digest.as_ptr(),
                digest.len(),
                sys::RSA_PKCS1_PADDING,
            );
            if signed != 1 {
                return Err(failed);
            }
            (out, len)
        };
        if out.len() == len { Ok(out) } else { Err(failed) }
    }
}

/// Verifies PKCS#1 type 1 padding around a bare digest, without DigestInfo, by comparing the whole recovered content.
pub(super) fn verify_bare(public_key: &[u8], digest: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let unreadable = CryptoError::Key("not an RSA SubjectPublicKeyInfo");
    let mut recovered = vec![0; signature.len().max(1)];
    let mut len = 0;
    // SAFETY: the CBS borrows `public_key` for these calls only; the key is freed before returning; get0 borrows from
    // it; `recovered` has the length passed; `len` is read only after success.
    let verified = unsafe {
        let mut cbs = sys::CBS { data: public_key.as_ptr(), len: public_key.len() };
        let key = sys::EVP_parse_public_key(&mut cbs);
        if key.is_null() {
            return Err(unreadable);
        }
        let rsa = sys::EVP_PKEY_get0_RSA(key);
        let verified = !rsa.is_null()
            && sys::RSA_size(rsa) as usize >= 256
            && sys::RSA_verify_raw(
                rsa,
                &mut len,
                recovered.as_mut_ptr(),
                recovered.len(),
                signature.as_ptr(),
                signature.len(),
                sys::RSA_PKCS1_PADDING,
            ) == 1;
        sys::EVP_PKEY_free(key);
        verified
    };
    if verified && recovered.get(..len).is_some_and(|content| ct_eq(content, digest)) {
        Ok(())
    } else {
        Err(CryptoError::Signature)
    }
}
