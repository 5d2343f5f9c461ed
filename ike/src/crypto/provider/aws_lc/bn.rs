//! Modular exponentiation in constant time, which aws-lc-rs does not offer. Every pointer made here is freed here; secrets are freed with `BN_clear_free`.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::OnceLock;

use aws_lc_sys as sys;
use gdoi_proto::secret::SecretBytes;

use crate::crypto::DhGroup;
use crate::crypto::provider::CryptoError;

/// An owned number, wiped when dropped.
struct Number(*mut sys::BIGNUM);

impl Number {
    fn new() -> Result<Number, CryptoError> {
        // SAFETY: allocates, or gives null.
        let number = unsafe { sys::BN_new() };
        if number.is_null() { Err(CryptoError::Library("out of memory")) } else { Ok(Number(number)) }
    }

    fn from_octets(octets: &[u8]) -> Result<Number, CryptoError> {
        let number = Number::new()?;
        // SAFETY: the pointer and length are those of a live slice; the target is ours.
        let read = unsafe { sys::BN_bin2bn(octets.as_ptr(), octets.len(), number.0) };
        if read.is_null() { Err(CryptoError::Library("out of memory")) } else { Ok(number) }
    }

    fn is_above(&self, other: &Number) -> bool {
        // SAFETY: both are live.
        unsafe { sys::BN_cmp(self.0, other.0) > 0 }
    }

    fn to_octets(&self, len: usize) -> Result<Vec<u8>, CryptoError> {
        let mut out = vec![0; len];
        // SAFETY: `out` has `len` octets.
        let written = unsafe { sys::BN_bn2bin_padded(out.as_mut_ptr(), len, self.0) };
        if written == 1 { Ok(out) } else { Err(CryptoError::Library("number too long")) }
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        // SAFETY: made by BN_new, freed once.
        unsafe { sys::BN_clear_free(self.0) }
    }
}

struct Context(*mut sys::BN_CTX);

impl Context {
    fn new() -> Result<Context, CryptoError> {
        // SAFETY: allocates, or gives null.
        let context = unsafe { sys::BN_CTX_new() };
        if context.is_null() { Err(CryptoError::Library("out of memory")) } else { Ok(Context(context)) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by BN_CTX_new, freed once.
        unsafe { sys::BN_CTX_free(self.0) }
    }
}

/// A modulus with its Montgomery form, made once and read only from then on.
struct Modulus {
    prime: Number,
    largest: Number,
    montgomery: *mut sys::BN_MONT_CTX,
}

// SAFETY: after construction prime, largest and montgomery are only read; AWS-LC takes them as const.
unsafe impl Send for Modulus {}
// SAFETY: as above.
unsafe impl Sync for Modulus {}

impl Modulus {
    fn make(group: DhGroup) -> Result<Modulus, CryptoError> {
        let prime = Number::new()?;
        let context = Context::new()?;
        // SAFETY: each call fills the number given (RFC 3526) and returns it, or null.
        let filled = unsafe {
            match group {
                DhGroup::Modp2048 => sys::BN_get_rfc3526_prime_2048(prime.0),
                DhGroup::Modp3072 => sys::BN_get_rfc3526_prime_3072(prime.0),
                DhGroup::Modp4096 => sys::BN_get_rfc3526_prime_4096(prime.0),
                DhGroup::Modp6144 => sys::BN_get_rfc3526_prime_6144(prime.0),
                DhGroup::Modp8192 => sys::BN_get_rfc3526_prime_8192(prime.0),
                DhGroup::Ecp256 | DhGroup::Ecp384 | DhGroup::Ecp521 | DhGroup::Curve25519 => ptr::null_mut(),
            }
        };
        if filled.is_null() {
            return Err(CryptoError::Library("no such prime"));
        }
        let mut octets = prime.to_octets(group.public_len())?;
        // p - 2, the largest acceptable public value: the primes end in an odd octet above 2.
        if let Some(last) = octets.last_mut() {
            *last -= 2;
        }
        let largest = Number::from_octets(&octets)?;
        // SAFETY: prime and context are live; the result is owned by the new Modulus and never freed (it is static).
        let montgomery = unsafe { sys::BN_MONT_CTX_new_for_modulus(prime.0, context.0) };
        if montgomery.is_null() {
            return Err(CryptoError::Library("out of memory"));
        }
        Ok(Modulus { prime, largest, montgomery })
    }

    fn of(group: DhGroup) -> Result<&'static Modulus, CryptoError> {
        static MODULI: [OnceLock<Modulus>; 5] = [const { OnceLock::new() }; 5];
        let slot = usize::from(group.number()).checked_sub(14).and_then(|index| MODULI.get(index));
        let slot = slot.ok_or(CryptoError::Library("no such prime"))?;
        if let Some(modulus) = slot.get() {
            return Ok(modulus);
        }
        let made = Modulus::make(group)?;
        Ok(slot.get_or_init(|| made))
    }

    fn power(&self, base: &Number, exponent: &SecretBytes) -> Result<Number, CryptoError> {
        let exponent = Number::from_octets(exponent.expose())?;
        let result = Number::new()?;
        let context = Context::new()?;
        // SAFETY: every pointer is live for the call; the modulus and its Montgomery form are only read.
        let done = unsafe {
            sys::BN_mod_exp_mont_consttime(
                result.0,
                base.0,
                exponent.0,
                self.prime.0,
                context.0,
                self.montgomery,
            )
        };
        if done == 1 { Ok(result) } else { Err(CryptoError::Library("modular exponentiation")) }
    }
}

/// 2^exponent mod p at full length.
pub(super) fn power_of_two(group: DhGroup, exponent: &SecretBytes) -> Result<Vec<u8>, CryptoError> {
    let modulus = Modulus::of(group)?;
    modulus.power(&Number::from_octets(&[2])?, exponent)?.to_octets(group.public_len())
}

/// peer^exponent mod p at full length, for 1 < peer < p - 1.
pub(super) fn power(group: DhGroup, peer: &[u8], exponent: &SecretBytes) -> Result<SecretBytes, CryptoError> {
    let modulus = Modulus::of(group)?;
    let peer = Number::from_octets(peer)?;
    let one = Number::from_octets(&[1])?;
    if !peer.is_above(&one) || peer.is_above(&modulus.largest) {
        return Err(CryptoError::PublicValue { group });
    }
    modulus.power(&peer, exponent)?.to_octets(group.shared_len()).map(SecretBytes::new)
}
