//! Typed reading of SA and KD payloads: what a policy means, without the octets it came in. Key servers write
//! these, members read them; the rules of RFC 6407 sections 5.3 to 5.6 live here, once.

mod cipher;
mod group;
mod kek;
mod keys;
mod tek;

pub use cipher::{TekAuthentication, TekCipher};
pub use group::{GroupPolicy, read_sender_id_request};
pub use kek::{AckRequest, KekCipher, KekPolicy, SignatureAlgorithm, SignatureHash};
pub use keys::{KekKey, KeySet, SenderIds, TekKey};
pub use tek::{AddressPreservation, Direction, Encapsulation, TekPolicy};

use crate::attribute::Attribute;
use crate::error::PolicyError;
use crate::registry::PayloadType;

/// How a policy travels: some attributes are forbidden in one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carriage {
    /// Messages 2 and 4 of GROUPKEY-PULL.
    Pull,
    /// GROUPKEY-PUSH.
    Push,
}

/// The value of an attribute that must be a number of at most `T`.
fn number<T: TryFrom<u64>>(
    payload: PayloadType,
    what: &'static str,
    attribute: &Attribute,
) -> Result<T, PolicyError> {
    let unreadable = PolicyError::Forbidden { payload, rule: "a numeric attribute has 1 to 8 octets" };
    let value = attribute.integer().ok_or(unreadable)?;
    T::try_from(value).map_err(|_| PolicyError::Unsupported { payload, what, value })
}

/// Refuses an attribute that stands twice, unless `repeatable` says that it may.
fn refuse_repeats(
    payload: PayloadType,
    attributes: &[Attribute],
    repeatable: impl Fn(u16) -> bool,
) -> Result<(), PolicyError> {
    for (index, attribute) in attributes.iter().enumerate() {
        let repeated = attributes.iter().take(index).any(|earlier| earlier.kind == attribute.kind);
        if repeated && !repeatable(attribute.kind) {
            return Err(PolicyError::Forbidden { payload, rule: "an attribute is repeated" });
        }
    }
    Ok(())
}

/// Octets of an AES key of `bits`.
fn aes_octets(payload: PayloadType, what: &'static str, bits: u64) -> Result<usize, PolicyError> {
    match bits {
        128 => Ok(16),
        192 => Ok(24),
        256 => Ok(32),
        value => Err(PolicyError::Unsupported { payload, what, value }),
    }
}

/// Bits of a key of `octets`, as an attribute holds them.
fn bits(octets: usize) -> u16 {
    u16::try_from(octets.saturating_mul(8)).unwrap_or(u16::MAX)
}
