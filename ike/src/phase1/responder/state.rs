//! The states of the responder.

use bytes::Bytes;
use gdoi_proto::payload::{Identification, Sa};

use super::super::auth::Proof;
use super::super::{NONCE_LEN, Refusal};
use crate::crypto::provider::Proved;

/// What message 5 said besides its proof.
pub(super) struct Claim {
    pub(super) id: Identification,
    pub(super) initial_contact: bool,
    pub(super) question: Bytes,
    pub(super) last_block: [u8; 16],
}

/// A message that proved nothing.
pub(super) struct Unproved {
    pub(super) refusal: Refusal,
    /// Who sent it, and its last ciphertext block, where it was sealed with the right keys.
    pub(super) read: Option<(Identification, [u8; 16])>,
}

impl From<Refusal> for Unproved {
    fn from(refusal: Refusal) -> Unproved {
        Unproved { refusal, read: None }
    }
}

/// What is known in each state, and nothing else.
pub(super) enum State {
    AwaitKe,
    Compute { question: Bytes, ni: Vec<u8>, g_xi: Bytes, nr: [u8; NONCE_LEN] },
    AwaitAuth { proof: Box<Proof> },
    Verify { proof: Box<Proof>, claim: Claim },
    Sign { proof: Box<Proof>, claim: Claim, proved: Proved },
    ComputeFirst { answer: Sa, ni: Vec<u8>, g_xi: Bytes, nr: [u8; NONCE_LEN], id: Identification },
    SignFirst { answer: Sa, g_xr: Vec<u8>, nr: [u8; NONCE_LEN], proof: Box<Proof>, id: Identification },
    AwaitThird { proof: Box<Proof>, id: Identification },
    VerifyThird { proof: Box<Proof>, claim: Claim },
    Over,
}

impl State {
    pub(super) fn name(&self) -> &'static str {
        match self {
            State::AwaitKe => "AwaitKe",
            State::Compute { .. } => "Compute",
            State::AwaitAuth { .. } => "AwaitAuth",
            State::Verify { .. } => "Verify",
            State::Sign { .. } => "Sign",
            State::ComputeFirst { .. } => "ComputeFirst",
            State::SignFirst { .. } => "SignFirst",
            State::AwaitThird { .. } => "AwaitThird",
            State::VerifyThird { .. } => "VerifyThird",
            State::Over => "Over",
        }
    }

    /// True once the peer answered a message of ours.
    pub(super) fn returned(&self) -> bool {
        match self {
            State::AwaitKe
            | State::ComputeFirst { .. }
            | State::SignFirst { .. }
            | State::AwaitThird { .. } => false,
            State::Compute { .. }
            | State::AwaitAuth { .. }
            | State::Verify { .. }
            | State::Sign { .. }
            | State::VerifyThird { .. }
            | State::Over => true,
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
