//! What a daemon in a lab shows besides events: every datagram, and the key that opens it.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One datagram that came or left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tapped {
    /// Unix time in microseconds.
    pub unix_micros: u64,
    /// Who sent it.
    pub from: SocketAddr,
    /// Whom it was sent to.
    pub to: SocketAddr,
    /// The message in hexadecimal, as on the wire but without the non-ESP marker.
    pub message_hex: String,
    /// What opens it, when the daemon knows: phase 1 messages come before their key is known.
    pub opener: Option<Opener>,
}

/// What opens a message, and others of its cookies.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opener {
    /// Hash that makes IVs under an ISAKMP SA, as its attribute value (RFC 2409 appendix A); none for a PUSH.
    pub hash: Option<u16>,
    /// AES-CBC key in hexadecimal: of the ISAKMP SA, or the KEK.
    pub key_hex: String,
    /// Under an ISAKMP SA the last block of phase 1 in hexadecimal, from which IVs are made; else the IV of the PUSH.
    pub block_hex: String,
}

impl Tapped {
    /// A message on its way.
    pub fn new(
        unix_micros: u64,
        (from, to): (SocketAddr, SocketAddr),
        message: &[u8],
        opener: Option<Opener>,
    ) -> Tapped {
        Tapped { unix_micros, from, to, message_hex: hex::encode(message), opener }
    }

    /// Its octets; none when they are not hexadecimal.
    pub fn message(&self) -> Option<Vec<u8>> {
        hex::decode(&self.message_hex).ok()
    }
}

impl Opener {
    /// A key with the block that IVs begin with.
    pub fn new(hash: Option<u16>, key: &[u8], block: &[u8; 16]) -> Opener {
        Opener { hash, key_hex: hex::encode(key), block_hex: hex::encode(block) }
    }

    /// Both; none when they are not hexadecimal.
    pub fn key(&self) -> Option<(Vec<u8>, [u8; 16])> {
        let block = hex::decode(&self.block_hex).ok()?;
        Some((hex::decode(&self.key_hex).ok()?, <[u8; 16]>::try_from(block).ok()?))
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("hash", &self.hash).finish_non_exhaustive()
    }
}
