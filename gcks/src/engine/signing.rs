//! A group's signing keys: made or loaded at the start, asked for one signature at a time, tried again when it fails.
//!
//! ```text
//! current   signs what goes out under KEKs made since it is there
//! former    signs what goes out under the KEKs before: also the PUSH that brings the current one, since members verify
//!           with the key of the SAK they hold (RFC 6407 section 4)
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::ids::KekSpi;
use gdoi_proto::policy::SignatureAlgorithm;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{CryptoError, Done, Job, Signer};
use ike::io::{Entropy, Instant, Now};

use super::group::{Group, GroupOutput, Kek};
use super::push::{Delivery, Stage};
use super::settings::CommunicationSettings;

/// Failures to read a signing key that this server made, before it makes another.
const OWN_KEY_TRIES: u32 = 5;

/// A signing key that members of older KEKs verify with.
#[derive(Debug, Clone)]
pub(super) struct FormerKey {
    pub(super) algorithm: SignatureAlgorithm,
    pub(super) key_bits: u16,
    pub(super) pkcs8: SecretBytes,
    pub(super) public_key: Vec<u8>,
    /// None until it is read after a restart.
    pub(super) signer: Option<Arc<dyn Signer>>,
}

/// Whose signing key is being made or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asking {
    /// The current one.
    Current,
    /// The one that the configuration named before it changed: nobody wants it any more.
    Void,
    /// The former one with this public key.
    Former(Vec<u8>),
}

impl Group {
    /// Loads or makes the signing key; everything else waits for it. Called once after restore.
    pub fn start(&mut self, now: Now, entropy: &mut dyn Entropy) {
        if self.settings.communication.is_none() {
            self.fill_keys(now, entropy);
            return;
        }
        self.ask_for_signer();
    }

    /// True when what goes out under a new KEK can be signed, or nothing is pushed.
    pub(super) fn is_ready(&self) -> bool {
        self.settings.communication.is_none()
            || self.signer.is_some()
            || (self.tried && self.public_key.is_some())
    }

    pub(super) fn ask_for_signer(&mut self) {
        let Some(communication) = &self.settings.communication else { return };
        if self.asking.is_some() || self.tried {
            return;
        }
        if let Some(former) = self.former_keys.iter().find(|former| former.signer.is_none()) {
            let (algorithm, pkcs8) = (former.algorithm, former.pkcs8.clone());
            self.asking = Some(Asking::Former(former.public_key.clone()));
            self.out.push_back(GroupOutput::Job(Job::LoadSigner { algorithm, pkcs8 }));
            return;
        }
        if self.signer.is_some() {
            return;
        }
        self.asking = Some(Asking::Current);
        let algorithm = communication.signature;
        // One of our own that cannot be read again and again is given up for a new one.
        let own = self.signing_key.as_ref().filter(|_| self.failures < OWN_KEY_TRIES);
        let stored = communication.signing_key.as_ref().or(own).cloned();
        self.out.push_back(GroupOutput::Job(match stored {
            Some(pkcs8) => Job::LoadSigner { algorithm, pkcs8 },
            None => Job::MakeSigner { algorithm, key_bits: communication.signature_key_bits },
        }));
    }

    /// Another signing key: the one of now signs on for the KEKs that were made under it.
    pub(super) fn change_signer(&mut self, after: &CommunicationSettings) {
        let current = self.kek.as_ref().map(|kek| kek.signing);
        let known = (self.signer.take(), self.signing_key.take(), self.public_key.take());
        if let ((Some(signer), Some(pkcs8), Some(public_key)), Some(signing)) = (known, current) {
            let (algorithm, key_bits) = (signing.algorithm, signing.key_bits);
            let signer = Some(signer);
            self.former_keys.push(FormerKey { algorithm, key_bits, pkcs8, public_key, signer });
        }
        (self.failures, self.retry) = (0, None);
        if let Some(asking) = self.asking.as_mut().filter(|asking| **asking == Asking::Current) {
            *asking = Asking::Void;
        }
        if self.tried {
            // Nothing is signed, and only its size counts.
            self.public_key = Some(vec![0; after.signature.public_key_octets(after.signature_key_bits)]);
        } else {
            let row = self.group_row();
            self.out.push_back(GroupOutput::Persist(vec![row]));
        }
        self.ask_for_signer();
    }

    /// Nothing is pushed any more: rekey SAs end without a word.
    pub(super) fn end_rekeying(&mut self) {
        self.drop_keks();
        (self.signer, self.signing_key, self.public_key) = (None, None, None);
        self.former_keys.clear();
        (self.failures, self.retry) = (0, None);
        self.asking = self.asking.take().map(|_| Asking::Void);
        let row = self.group_row();
        self.out.push_back(GroupOutput::Persist(vec![row]));
    }

    /// Former keys go with the last KEK that was made under them.
    pub(super) fn forget_former_keys(&mut self) {
        let before = self.former_keys.len();
        let used = |former: &FormerKey| {
            self.kek.iter().chain(&self.old_keks).any(|kek| kek.public_key == former.public_key)
        };
        let used: Vec<FormerKey> = self.former_keys.iter().filter(|former| used(former)).cloned().collect();
        self.former_keys = used;
        if self.former_keys.len() < before {
            let row = self.group_row();
            self.out.push_back(GroupOutput::Persist(vec![row]));
        }
    }

    /// What signs PUSHes under this KEK; none while it is being read.
    fn signer_of(&self, kek: &Kek) -> Option<Arc<dyn Signer>> {
        if self.public_key.as_ref() == Some(&kek.public_key) {
            return self.signer.clone();
        }
        self.former_keys.iter().find(|former| former.public_key == kek.public_key)?.signer.clone()
    }

    /// A job of this group is done.
    ///
    /// # Errors
    /// Why it failed, and when it is tried again.
    pub fn on_done(&mut self, now: Now, done: Done, entropy: &mut dyn Entropy) -> Result<(), String> {
        match done {
            Done::Signer(Ok((signer, pkcs8))) => {
                self.failures = 0;
                match self.asking.take() {
                    Some(Asking::Former(public_key)) => self.on_former_signer(&public_key, &signer),
                    Some(Asking::Void) => {}
                    Some(Asking::Current) | None => self.on_signer(now, signer, pkcs8, entropy),
                }
                self.ask_for_signer();
                Ok(())
            }
            Done::Signed(Ok(signature)) => {
                self.failures = 0;
                self.on_signed(now, &signature);
                self.want_more(now, entropy);
                Ok(())
            }
            Done::Signer(Err(error)) => Err(match self.asking.take() {
                Some(Asking::Former(public_key)) if self.failures + 1 >= OWN_KEY_TRIES => {
                    self.failures = 0;
                    self.former_keys.retain(|former| former.public_key != public_key);
                    // Nobody can be told under these KEKs any more.
                    if self.kek.as_ref().is_some_and(|kek| kek.public_key == public_key) {
                        self.drop_keks();
                    }
                    self.ask_for_signer();
                    format!("a former signing key cannot be read, its rekey SAs are dropped: {error}")
                }
                Some(Asking::Void) => {
                    self.ask_for_signer();
                    format!("a signing key that is no longer configured failed: {error}")
                }
                Some(Asking::Former(_) | Asking::Current) | None => {
                    self.on_failure(now.at, "the signing key", &error)
                }
            }),
            Done::Signed(Err(error)) => Err(self.on_failure(now.at, "signing a push", &error)),
            Done::DhKey(_)
            | Done::Shared(_)
            | Done::Responded(_)
            | Done::Verified(_)
            | Done::Phase1Signed(_)
            | Done::Phase1Verified(_) => Ok(()),
        }
    }

    /// A job of the signing key failed: again after 1, 2, 4 .. 60 s. What counts from the PUSH waits with it.
    fn on_failure(&mut self, at: Instant, what: &str, error: &CryptoError) -> String {
        let delay = Duration::from_secs((1 << self.failures.min(6)).min(60));
        self.failures += 1;
        self.retry = Some(at + delay);
        let mut since = None;
        for delivery in &mut self.deliveries {
            if let Stage::Unsigned { asked, .. } = &mut delivery.stage {
                *asked = false;
                since.get_or_insert(delivery.started);
            }
        }
        if let Some(since) = since {
            self.postpone(since, delay);
        }
        format!("{what} failed, again in {} s: {error}", delay.as_secs())
    }

    /// Asks once more for what failed.
    pub(super) fn try_again(&mut self, at: Instant) {
        if self.retry.is_none_or(|retry| retry > at) {
            return;
        }
        self.retry = None;
        self.sign_next();
        self.ask_for_signer();
    }

    fn on_signer(
        &mut self,
        now: Now,
        signer: Arc<dyn Signer>,
        pkcs8: SecretBytes,
        entropy: &mut dyn Entropy,
    ) {
        let public_key = signer.public_key().to_vec();
        // Members verify with the key they were given: without it nobody can be told of another.
        let signs = |kek: &Kek| {
            kek.public_key == public_key
                || self.former_keys.iter().any(|former| former.public_key == kek.public_key)
        };
        if self.kek.as_ref().is_some_and(|kek| !signs(kek)) {
            self.drop_keks();
        }
        self.public_key = Some(public_key);
        self.signing_key = Some(pkcs8);
        self.signer = Some(signer);
        let row = self.group_row();
        self.out.push_back(GroupOutput::Persist(vec![row]));
        self.fill_keys(now, entropy);
        self.sign_next();
        if !self.deliveries.iter().any(Delivery::is_unsigned) {
            self.want_more(now, entropy);
        }
    }

    fn on_former_signer(&mut self, public_key: &[u8], signer: &Arc<dyn Signer>) {
        for former in self.former_keys.iter_mut().filter(|former| former.public_key == public_key) {
            former.signer = Some(Arc::clone(signer));
        }
        self.sign_next();
    }

    /// Asks for the signature of the first unsigned PUSH; one at a time keeps them in order.
    pub(super) fn sign_next(&mut self) {
        if self.retry.is_some() {
            return;
        }
        let padded = self.settings.push_dialect.padded_length_signature;
        let bare_digest = self.settings.push_dialect.bare_digest_signature;
        let Some(first) = self.deliveries.iter().find(|delivery| delivery.is_unsigned()) else { return };
        let Some(kek) = self.kek_of(first.kek_spi) else { return };
        let (hash, Some(signer)) = (kek.signing.hash, self.signer_of(kek)) else { return };
        let Some(delivery) = self.deliveries.iter_mut().find(|delivery| delivery.is_unsigned()) else {
            return;
        };
        if let Stage::Unsigned { unsigned, asked } = &mut delivery.stage
            && !*asked
        {
            *asked = true;
            let input: Bytes = unsigned.signature_input(padded);
            self.out.push_back(GroupOutput::Job(Job::Sign { signer, hash, input, bare_digest }));
        }
    }

    /// Drops every rekey SA without a word: nothing can be signed for who holds them.
    pub(super) fn drop_keks(&mut self) {
        let gone: Vec<KekSpi> = self.kek_spis().collect();
        let keks = gone.iter().map(|spi| self.kek_gone(*spi));
        let changes = keks.chain(self.deliveries.iter().map(|delivery| self.push_gone(delivery))).collect();
        self.kek = None;
        self.old_keks.clear();
        self.deliveries.clear();
        self.delivered.clear();
        self.out.push_back(GroupOutput::Persist(changes));
    }
}
