//! Main mode and aggressive mode, initiator and responder, with pre-shared keys and signatures (RFC 2409 section 5, RFC
//! 4754). States hold exactly what is known in them; a datagram that does not fit leaves state and IV untouched.
//!
//! ```text
//! main        1 SA -->  <-- 2 SA   3 KE, Ni -->  <-- 4 KE, Nr   5 {IDii, proof} -->  <-- 6 {IDir, proof}
//! aggressive  1 SA, KE, Ni, IDii -->  <-- 2 SA, KE, Nr, IDir, proof   3 {proof} -->          {}: encrypted
//! ```
//!
//! Main mode hides both identities from whoever only listens, and the initiator's from nobody who answers in the key
//! server's place: with signatures message 5 goes out before the responder is authenticated. Aggressive mode hides
//! none, and with pre-shared keys gives a guesser HASH_R for one datagram.
//!
//! Where to look: [`auth`] keys and proofs, [`messages`] which payloads make a message, [`proposal`] offering and
//! choosing, [`credentials`] what proves whom, [`nat`] who is behind a NAT, [`initiator`] and [`responder`] the states.

pub mod auth;
pub mod credentials;
pub mod initiator;
pub mod messages;
pub mod nat;
pub mod proposal;
pub mod responder;

use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::{ExchangeType, NotifyType};
use thiserror::Error;

use crate::crypto::Suite;
use crate::crypto::provider::Job;
use crate::identity::IdentityRule;
use crate::io::Now;
use crate::protect::notify;
use crate::sa::{IkeSa, Role};
use gdoi_proto::message::Dialect;

pub use crate::crypto::provider::{CertifiedKey, PeerTrust, ProofSigner};
pub use credentials::{Credential, Credentials, OwnCertificate};
pub use initiator::Initiator;
pub use nat::{Behind, Ends};
pub use responder::{Answered, FirstAggressive, Responder};

/// Vendor ID of dead-peer detection, version 1.0 (RFC 3706 section 5.1).
pub const VENDOR_DPD: [u8; 16] =
    [0xaf, 0xca, 0xd7, 0x13, 0x68, 0xa1, 0xf1, 0xc9, 0x6b, 0x86, 0x96, 0xfc, 0x77, 0x57, 0x01, 0x00];

/// Octets of our nonces.
pub const NONCE_LEN: usize = 32;

/// Proofs that may fail, or not decrypt, before a negotiation is given up: one that was changed on the way ends nothing.
const MAX_FAILURES: u32 = 3;

/// One acceptable transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// What it negotiates.
    pub suite: Suite,
    /// Longest life accepted, and the life offered.
    pub lifetime: Duration,
}

/// How phase 1 is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Six messages; identities are encrypted.
    #[default]
    Main,
    /// Three messages; identities are in clear, and a pre-shared key can be guessed offline.
    Aggressive,
}

impl Mode {
    /// Its exchange type.
    pub const fn exchange(self) -> ExchangeType {
        match self {
            Mode::Main => ExchangeType::MainMode,
            Mode::Aggressive => ExchangeType::Aggressive,
        }
    }
}

/// Everything one side holds about a peer before talking to it.
#[derive(Debug, Clone)]
pub struct PeerPolicy {
    /// Of this mode and no other.
    pub mode: Mode,
    /// In order of preference.
    pub offers: Vec<Offer>,
    /// What proves who is who.
    pub credentials: Credentials,
    /// Who we say we are; none for the address our packets come from.
    pub local_identity: Option<Identification>,
    /// Who the peer may be; any rule suffices.
    pub remote: Vec<IdentityRule>,
    /// Announce and use NAT traversal where the peer does too (RFC 3947).
    pub nat_traversal: bool,
    /// Announce fragmentation, and use it where the peer announces it too.
    pub fragmentation: bool,
    /// Deviations of this peer.
    pub dialect: Dialect,
}

impl PeerPolicy {
    /// The same with the approved offers alone (`approved-only`): whatever else was configured is neither offered nor
    /// accepted.
    #[must_use]
    pub fn approved_only(mut self) -> PeerPolicy {
        self.offers.retain(|offer| crate::approved::suite(&offer.suite));
        self
    }

    /// The offers we hold a credential for. In aggressive mode all are of the first one's group and method: KE is in
    /// message 1 already (RFC 2409 section 5).
    pub fn usable_offers(&self) -> Vec<Offer> {
        let mut offers = self.offers.clone();
        offers.retain(|offer| self.credentials.for_method(offer.suite.method).is_some());
        if let (Mode::Aggressive, Some(first)) = (self.mode, offers.first().copied()) {
            offers.retain(|offer| {
                (offer.suite.group, offer.suite.method) == (first.suite.group, first.suite.method)
            });
        }
        offers
    }

    /// Who we say we are when our packets come from `address`.
    pub(crate) fn own_identity(&self, address: std::net::IpAddr) -> Identification {
        let id = self.local_identity.clone().unwrap_or_else(|| crate::identity::address_identity(address));
        self.credentials.own_identity(id)
    }

    /// True when the peer at `peer` may claim `id`.
    pub(crate) fn admits(&self, id: &Identification, peer: std::net::IpAddr) -> bool {
        crate::identity::acceptable_ports(id) && self.remote.iter().any(|rule| rule.accepts(id, peer))
    }
}

/// What is needed to check a peer's proof besides the proof.
pub(crate) struct VerifyContext<'a> {
    /// The peer's side.
    pub(crate) side: Role,
    /// The identity it claims.
    pub(crate) id: &'a Identification,
    /// Its certificates.
    pub(crate) chain: Vec<Vec<u8>>,
    /// Both clocks.
    pub(crate) now: Now,
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
    /// What would have been refused but for a rehearsal (`verification = "rehearse"`); for the log.
    pub remark: Option<String>,
    /// An initiator's last question and answer of aggressive mode: its message 3 may be lost.
    pub answered: Option<Answered>,
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
        /// A protected notification that tells the peer, where it holds the keys to read it.
        answer: Option<Bytes>,
    },
}

impl Refusal {
    pub(crate) fn dropped(reason: impl ToString) -> Refusal {
        Refusal::Dropped(reason.to_string())
    }

    /// The end, without a word to the peer.
    pub(crate) fn failed(reason: impl ToString) -> Refusal {
        Refusal::Failed { reason: reason.to_string(), answer: None }
    }

    /// The end, told under the keys of `sa`, which never comes up.
    pub(crate) fn told(
        reason: impl ToString,
        kind: NotifyType,
        mut sa: IkeSa,
        entropy: &mut dyn crate::io::Entropy,
    ) -> Refusal {
        let notification = notify::notification(sa.cookies, kind);
        let answer = Some(notify::seal(&mut sa, &[notification], entropy));
        Refusal::Failed { reason: reason.to_string(), answer }
    }
}
