//! Main mode with pre-shared keys, initiator and responder (RFC 2409 section 5). States hold exactly what is known
//! in them; a datagram that does not fit leaves state and IV untouched.

pub mod auth;
pub mod initiator;
pub mod proposal;
pub mod responder;

use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::NotifyType;
use gdoi_proto::secret::SecretBytes;
use thiserror::Error;

use crate::crypto::Suite;
use crate::crypto::provider::Job;
use crate::identity::IdentityRule;
use crate::sa::IkeSa;
use gdoi_proto::message::Dialect;

pub use initiator::Initiator;
pub use responder::Responder;

/// Vendor ID of dead-peer detection, version 1.0 (RFC 3706 section 5.1).
pub const VENDOR_DPD: [u8; 16] =
    [0xaf, 0xca, 0xd7, 0x13, 0x68, 0xa1, 0xf1, 0xc9, 0x6b, 0x86, 0x96, 0xfc, 0x77, 0x57, 0x01, 0x00];

/// Octets of our nonces.
pub const NONCE_LEN: usize = 32;

/// One acceptable transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// What it negotiates.
    pub suite: Suite,
    /// Longest life accepted, and the life offered.
    pub lifetime: Duration,
}

/// Everything one side holds about a peer before talking to it.
#[derive(Debug, Clone)]
pub struct PeerPolicy {
    /// In order of preference.
    pub offers: Vec<Offer>,
    /// The pre-shared key.
    pub pre_shared_key: SecretBytes,
    /// Who we say we are; none for the address our packets come from.
    pub local_identity: Option<Identification>,
    /// Who the peer may be; any rule suffices.
    pub remote: Vec<IdentityRule>,
    /// Deviations of this peer.
    pub dialect: Dialect,
}

/// What a phase 1 wants of its owner.
#[derive(Debug)]
pub enum Step {
    /// Send this to the peer.
    Send(Bytes),
    /// Run this and bring the result back.
    Run(Job),
    /// Both sides proved who they are.
    Established(Box<Established>),
}

/// A finished phase 1.
#[derive(Debug)]
pub struct Established {
    /// The SA.
    pub sa: IkeSa,
    /// The peer said INITIAL-CONTACT.
    pub initial_contact: bool,
}

/// Why a message was refused or the negotiation ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Not a message this state can use; state kept.
    #[error("{0}")]
    Dropped(String),
    /// Nothing the peer offers is acceptable; a clear notify may say so.
    #[error("{reason}")]
    Unacceptable {
        /// What the answer may be.
        notify: NotifyType,
        /// For the log.
        reason: String,
    },
    /// The peer failed to prove an identity; the negotiation is over.
    #[error("{reason}")]
    Failed {
        /// For the log.
        reason: String,
    },
}

impl Refusal {
    pub(crate) fn dropped(reason: impl ToString) -> Refusal {
        Refusal::Dropped(reason.to_string())
    }
}
