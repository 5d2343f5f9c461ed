//! Sealing and opening: the only code where keys meet messages.

pub mod ack;
pub mod notify;
pub mod phase2;
pub mod push;

use gdoi_proto::DecodeError;
use thiserror::Error;

/// Content that was authenticated. Group engines accept nothing less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened<T>(T);

impl<T> Opened<T> {
    fn new(content: T) -> Opened<T> {
        Opened(content)
    }

    /// The content.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// The content, owned.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Why a protected message was not opened. None of these is ever answered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The body is not a positive number of cipher blocks.
    #[error("the encrypted body of {octets} octets is not whole blocks")]
    Blocks {
        /// Octets of the body.
        octets: usize,
    },
    /// The header does not fit the exchange.
    #[error("the header does not fit: {0}")]
    Header(&'static str),
    /// The plaintext is not a chain: usually another key.
    #[error("not well formed after decryption: {0}")]
    Malformed(#[from] DecodeError),
    /// The first payload is not HASH, or the payloads are not those of the message.
    #[error("payloads do not fit: {0}")]
    Payloads(&'static str),
    /// The HASH does not verify.
    #[error("HASH mismatch")]
    Hash,
    /// An exchange that was seen before.
    #[error("replayed message ID")]
    Replay,
    /// A sequence number that was used before.
    #[error("sequence number {received} is not above {last}")]
    Sequence {
        /// The number received.
        received: u32,
        /// The last one accepted.
        last: u32,
    },
}
