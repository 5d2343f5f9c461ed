//! What can be wrong with octets: every error names payload, field and offset.

use thiserror::Error;

use crate::registry::PayloadType;

/// Why octets are not a message. Offsets count from the first octet of what was decoded (the datagram for
/// [`crate::message::Message::decode`], the body for a payload).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A field needs more octets than are left.
    #[error("{payload}: {field} at offset {offset} needs {needed} octets, {had} left")]
    Truncated {
        /// The payload being read.
        payload: PayloadType,
        /// The field being read.
        field: &'static str,
        /// Where the field starts.
        offset: usize,
        /// Octets the field needs.
        needed: usize,
        /// Octets left.
        had: usize,
    },
    /// Octets are left over after the last field.
    #[error("{payload}: {had} octets too many at offset {offset}")]
    Trailing {
        /// The payload being read.
        payload: PayloadType,
        /// Where the surplus starts.
        offset: usize,
        /// How many octets.
        had: usize,
    },
    /// A field holds a value that is not allowed there.
    #[error("{payload}: {field} at offset {offset} is {value}: {rule}")]
    Value {
        /// The payload being read.
        payload: PayloadType,
        /// The field.
        field: &'static str,
        /// Where the field starts.
        offset: usize,
        /// The value found.
        value: u64,
        /// What would be right.
        rule: &'static str,
    },
    /// A payload or attribute is missing, repeated or out of place.
    #[error("{payload} at offset {offset}: {rule}")]
    Structure {
        /// The payload concerned.
        payload: PayloadType,
        /// Where it starts.
        offset: usize,
        /// The rule it breaks.
        rule: &'static str,
    },
}

/// Why well-formed SA or KD payloads are not a policy that can be used. See [`crate::policy`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// A required attribute or packet is missing.
    #[error("{payload}: {what} is required")]
    Missing {
        /// Where it was expected.
        payload: PayloadType,
        /// What is missing.
        what: &'static str,
    },
    /// An attribute or value this build does not support; RFC 6407 section 5.3.2 asks to abort.
    #[error("{payload}: {what} {value} is not supported")]
    Unsupported {
        /// Where it was found.
        payload: PayloadType,
        /// What it is.
        what: &'static str,
        /// The number found.
        value: u64,
    },
    /// Something the RFC forbids here.
    #[error("{payload}: {rule}")]
    Forbidden {
        /// Where it was found.
        payload: PayloadType,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A key has the wrong length for its policy.
    #[error("{what} has {had} octets, {needed} expected")]
    KeyLength {
        /// Which key.
        what: &'static str,
        /// Octets the policy needs.
        needed: usize,
        /// Octets found.
        had: usize,
    },
    /// A structure inside an attribute is not well formed; offsets count from the attribute's value.
    #[error("{what}: {error}")]
    Malformed {
        /// Which attribute.
        what: &'static str,
        /// Why.
        error: DecodeError,
    },
}
