//! MODP on crypto-bigint: exponentiation in constant time, for any exponent of a given length.

use std::sync::OnceLock;

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U2048, U3072, U4096, U6144, U8192, Uint, Word};
use gdoi_proto::secret::{SecretBytes, ct_eq};
use zeroize::Zeroizing;

use crate::crypto::provider::{CryptoError, DhKey, public_key};
use crate::crypto::{DhGroup, dh};

const TOO_LONG: CryptoError = CryptoError::Library("number too long");

/// An exponent with its g^x.
pub(super) struct ModpKey {
    group: DhGroup,
    exponent: SecretBytes,
    public: Vec<u8>,
}

impl ModpKey {
    pub(super) fn new(group: DhGroup, exponent: SecretBytes) -> Result<ModpKey, CryptoError> {
        let public = prepared(group)?.raise(&[2], &exponent).ok_or(TOO_LONG)?;
        Ok(ModpKey { group, exponent, public })
    }
}

impl DhKey for ModpKey {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        let prime = dh::prime(self.group).unwrap_or_default();
        if peer_public.len() != prime.len() || !is_inside(prime, peer_public) {
            return Err(CryptoError::PublicValue { group: self.group });
        }
        prepared(self.group)?.raise(peer_public, &self.exponent).map(SecretBytes::new).ok_or(TOO_LONG)
    }
}

/// 1 < y < p - 1, of equal lengths; p is odd, so p - 1 differs from p in the last bit only.
fn is_inside(prime: &[u8], y: &[u8]) -> bool {
    let (Some((prime_last, prime_head)), Some((last, head))) = (prime.split_last(), y.split_last()) else {
        return false;
    };
    let above_one = *last > 1 || head.iter().any(|octet| *octet != 0);
    above_one && (head, *last) < (prime_head, *prime_last - 1)
}

/// An odd modulus that can raise: hides the number of limbs, which crypto-bigint has in the type.
trait Raise: Send + Sync {
    /// base^exponent, as long as the modulus was given; none when an operand is longer than it.
    /// Time depends on the lengths only.
    fn raise(&self, base: &[u8], exponent: &SecretBytes) -> Option<Vec<u8>>;
}

struct Modulus<const LIMBS: usize> {
    parameters: FixedMontyParams<LIMBS>,
    len: usize,
}

impl<const LIMBS: usize> Modulus<LIMBS> {
    fn boxed(octets: &[u8]) -> Option<Box<dyn Raise>> {
        let odd = Odd::new(number::<LIMBS>(octets)?).into_option()?;
        Some(Box::new(Modulus { parameters: FixedMontyParams::new_vartime(odd), len: octets.len() }))
    }
}

impl<const LIMBS: usize> Raise for Modulus<LIMBS> {
    fn raise(&self, base: &[u8], exponent: &SecretBytes) -> Option<Vec<u8>> {
        let bits = u32::try_from(exponent.len().checked_mul(8)?).ok()?;
        let exponent = Zeroizing::new(number::<LIMBS>(exponent.expose())?);
        let base = FixedMontyForm::new(&number(base)?, &self.parameters);
        let result = Zeroizing::new(base.pow_bounded_exp(&exponent, bits));
        let value = Zeroizing::new(result.retrieve());
        let mut octets = vec![0; self.len];
        let low_first = value.as_words().iter().flat_map(|word| word.to_le_bytes());
        octets.iter_mut().rev().zip(low_first).for_each(|(octet, value)| *octet = value);
        Some(octets)
    }
}

/// A number from its octets, high octet first; none when there are more than fit.
fn number<const LIMBS: usize>(octets: &[u8]) -> Option<Uint<LIMBS>> {
    if octets.len() > LIMBS * size_of::<Word>() {
        return None;
    }
    let mut out = Uint::ZERO;
    for (word, chunk) in out.as_mut_words().iter_mut().zip(octets.rchunks(size_of::<Word>())) {
        *word = chunk.iter().fold(0, |word, octet| word << 8 | Word::from(*octet));
    }
    Some(out)
}

/// The smallest of the five sizes that holds the modulus.
fn modulus(octets: &[u8]) -> Option<Box<dyn Raise>> {
    match octets.len() {
        0..=256 => Modulus::<{ U2048::LIMBS }>::boxed(octets),
        257..=384 => Modulus::<{ U3072::LIMBS }>::boxed(octets),
        385..=512 => Modulus::<{ U4096::LIMBS }>::boxed(octets),
        513..=768 => Modulus::<{ U6144::LIMBS }>::boxed(octets),
        769.. => Modulus::<{ U8192::LIMBS }>::boxed(octets),
    }
}

/// A group's prime, prepared once.
fn prepared(group: DhGroup) -> Result<&'static dyn Raise, CryptoError> {
    static PRIMES: [OnceLock<Box<dyn Raise>>; 5] = [const { OnceLock::new() }; 5];
    let none = CryptoError::Library("no such prime");
    let slot = usize::from(group.number()).checked_sub(14).and_then(|index| PRIMES.get(index));
    let (Some(slot), Some(prime)) = (slot, dh::prime(group)) else { return Err(none) };
    if let Some(ready) = slot.get() {
        return Ok(ready.as_ref());
    }
    let made = modulus(prime).ok_or(none)?;
    Ok(slot.get_or_init(|| made).as_ref())
}

/// Verifies PKCS#1 type 1 padding around a bare digest, without DigestInfo (RFC 8017 section 9.2 minus step 2), by
/// comparing the whole block: 00 01, at least 8 octets of ff, 00, digest. `key` is an RSAPublicKey.
pub(super) fn verify_bare(key: &[u8], digest: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let unreadable = CryptoError::Key("not an RSA SubjectPublicKeyInfo");
    let (n, e) = public_key::rsa_numbers(key).ok_or(unreadable.clone())?;
    if e.len() > 8 || e == [1] || e.last().is_none_or(|last| last % 2 == 0) {
        return Err(unreadable);
    }
    let fill = n.len().checked_sub(digest.len() + 3).ok_or(CryptoError::Signature)?;
    if signature.len() != n.len() || signature >= n || fill < 8 {
        return Err(CryptoError::Signature);
    }
    let raised = modulus(n).ok_or(unreadable)?.raise(signature, &SecretBytes::copy(e));
    let block = raised.ok_or(CryptoError::Signature)?;
    let expected = [&[0, 1], vec![0xff; fill].as_slice(), &[0], digest].concat();
    if ct_eq(&block, &expected) { Ok(()) } else { Err(CryptoError::Signature) }
}
