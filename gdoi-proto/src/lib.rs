//! Octets and payloads of ISAKMP and GDOI, and the identifiers and the secret type everyone shares.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects))]

pub mod attribute;
pub mod codec;
pub mod dialect;
pub mod error;
pub mod header;
pub mod ids;
pub mod message;
pub mod payload;
pub mod policy;
pub mod pretty;
pub mod registry;
pub mod secret;

pub use dialect::Dialect;
pub use error::{DecodeError, PolicyError};
