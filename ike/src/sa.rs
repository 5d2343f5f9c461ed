//! What an established phase 1 gives its user: keys, identities, and the names of exchanges already seen.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Arc;

use gdoi_proto::ids::{CookiePair, MessageId};
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::Identification;
use gdoi_proto::secret::SecretBytes;

use crate::crypto::Suite;
use crate::crypto::cipher::CipherKey;
use crate::crypto::prf::prf;
use crate::crypto::skeyid::exchange_iv;
use crate::dpd::Questions;
use crate::io::{Entropy, Instant};
use crate::phase1::nat::Behind;
use crate::trust::PeerCertificate;

/// Message IDs remembered per SA against replays.
const REMEMBERED: usize = 256;

/// Which side of phase 1 we were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The group member.
    Initiator,
    /// The key server.
    Responder,
}

/// An ISAKMP SA made for GDOI: any number of GROUPKEY-PULLs and informational exchanges run under it.
#[derive(Debug)]
pub struct IkeSa {
    /// Its name.
    pub cookies: CookiePair,
    /// What was negotiated.
    pub suite: Suite,
    /// Our side.
    pub role: Role,
    /// The authenticated identity of the peer.
    pub peer_identity: Identification,
    /// Our identity.
    pub local_identity: Identification,
    /// When it ends.
    pub expires: Instant,
    /// Deviations tolerated for this peer.
    pub dialect: Dialect,
    /// Both sides announced dead-peer detection (RFC 3706 section 5.1).
    pub peer_does_dpd: bool,
    /// Both sides announced fragmentation.
    pub fragments: bool,
    /// Who is behind a NAT.
    pub nat: Behind,
    /// The peer's R-U-THERE so far.
    pub questions: Questions,
    /// The certificate that proved the peer's identity; none with a pre-shared key.
    pub certificate: Option<Arc<PeerCertificate>>,
    skeyid_a: SecretBytes,
    key: CipherKey,
    last_phase1_block: [u8; 16],
    seen: VecDeque<MessageId>,
    seen_set: BTreeSet<MessageId>,
    /// Of these, the ones that may come again.
    open: BTreeSet<MessageId>,
}

/// The secret half of an [`IkeSa`].
#[derive(Debug, Clone)]
pub struct SaKeys {
    /// Key of every HASH(n).
    pub skeyid_a: SecretBytes,
    /// Cipher key.
    pub key: CipherKey,
    /// Last ciphertext block of phase 1.
    pub last_phase1_block: [u8; 16],
}

impl IkeSa {
    /// An SA from what phase 1 left.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        cookies: CookiePair,
        suite: Suite,
        role: Role,
        peer_identity: Identification,
        local_identity: Identification,
        expires: Instant,
        dialect: Dialect,
        keys: SaKeys,
    ) -> IkeSa {
        IkeSa {
            cookies,
            suite,
            role,
            peer_identity,
            local_identity,
            expires,
            dialect,
            peer_does_dpd: false,
            fragments: false,
            nat: Behind::default(),
            questions: Questions::default(),
            certificate: None,
            skeyid_a: keys.skeyid_a,
            key: keys.key,
            last_phase1_block: keys.last_phase1_block,
            seen: VecDeque::new(),
            seen_set: BTreeSet::new(),
            open: BTreeSet::new(),
        }
    }

    /// The cipher key.
    pub fn key(&self) -> &CipherKey {
        &self.key
    }

    /// First IV of the exchange `message_id` (RFC 2409 appendix B).
    pub(crate) fn iv(&self, message_id: MessageId) -> [u8; 16] {
        exchange_iv(self.suite.hash, &self.last_phase1_block, message_id)
    }

    /// prf(SKEYID_a, M-ID | parts): the form of every HASH(n).
    pub(crate) fn hash(&self, message_id: MessageId, parts: &[&[u8]]) -> SecretBytes {
        let id = message_id.0.to_be_bytes();
        let mut all: Vec<&[u8]> = Vec::with_capacity(parts.len() + 1);
        all.push(&id);
        all.extend_from_slice(parts);
        prf(self.suite.hash, self.skeyid_a.expose(), &all)
    }

    /// Last ciphertext block of phase 1: the source of every later IV.
    pub fn last_phase1_block(&self) -> &[u8; 16] {
        &self.last_phase1_block
    }

    /// True when the exchange was seen before under this SA.
    pub fn was_seen(&self, message_id: MessageId) -> bool {
        self.was_heard(message_id) && !self.open.contains(&message_id)
    }

    /// True when its first message came before, whether or not it may come again: it is nothing fresh.
    pub fn was_heard(&self, message_id: MessageId) -> bool {
        self.seen_set.contains(&message_id)
    }

    /// Remembers an exchange; the oldest of 256 is forgotten.
    pub fn remember(&mut self, message_id: MessageId) {
        self.open.remove(&message_id);
        if self.seen_set.insert(message_id) {
            self.seen.push_back(message_id);
            if self.seen.len() > REMEMBERED
                && let Some(oldest) = self.seen.pop_front()
            {
                self.seen_set.remove(&oldest);
                self.open.remove(&oldest);
            }
        }
    }

    /// Forgets an exchange that left nothing behind: its first message may come again.
    pub fn forget(&mut self, message_id: MessageId) {
        if self.was_heard(message_id) {
            self.open.insert(message_id);
        }
    }

    /// A fresh message ID: random, not zero, not of another exchange of this SA; remembered.
    pub fn fresh_message_id(&mut self, entropy: &mut dyn Entropy) -> MessageId {
        loop {
            let mut octets = [0; 4];
            entropy.fill(&mut octets);
            let id = MessageId(u32::from_be_bytes(octets));
            if id.0 != 0 && !self.was_heard(id) {
                self.remember(id);
                return id;
            }
        }
    }
}
