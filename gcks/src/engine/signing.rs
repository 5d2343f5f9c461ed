//! A group's signing key: made or loaded at the start, asked for one signature at a time, tried again when it fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::ids::KekSpi;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{CryptoError, Done, Job, Signer};
use ike::io::{Entropy, Instant, Now};

use super::group::{Group, GroupOutput};
use super::push::Stage;

/// Failures to read a signing key that this server made, before it makes another.
const OWN_KEY_TRIES: u32 = 5;

impl Group {
    /// Loads or makes the signing key; everything else waits for it. Called once after restore.
    pub fn start(&mut self, now: Now, entropy: &mut dyn Entropy) {
        if self.settings.communication.is_none() {
            self.fill_keys(now, entropy);
            return;
        }
        self.ask_for_signer();
    }

    pub(super) fn ask_for_signer(&mut self) {
        let Some(communication) = &self.settings.communication else { return };
        let algorithm = communication.signature;
        // One of our own that cannot be read again and again is given up for a new one.
        let own = self.signing_key.as_ref().filter(|_| self.failures < OWN_KEY_TRIES);
        let stored = communication.signing_key.as_ref().or(own).cloned();
        self.out.push_back(GroupOutput::Job(match stored {
            Some(pkcs8) => Job::LoadSigner { algorithm, pkcs8 },
            None => Job::MakeSigner { algorithm, key_bits: communication.signature_key_bits },
        }));
    }

    /// A job of this group is done.
    ///
    /// # Errors
    /// Why it failed, and when it is tried again.
    pub fn on_done(&mut self, now: Now, done: Done, entropy: &mut dyn Entropy) -> Result<(), String> {
        match done {
            Done::Signer(Ok((signer, pkcs8))) => {
                self.failures = 0;
                self.on_signer(now, signer, pkcs8, entropy);
                Ok(())
            }
            Done::Signed(Ok(signature)) => {
                self.failures = 0;
                self.on_signed(now, &signature);
                self.want_more(now, entropy);
                Ok(())
            }
            Done::Signer(Err(error)) => Err(self.on_failure(now.at, "the signing key", &error)),
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
        match self.signer {
            Some(_) => self.sign_next(),
            None => self.ask_for_signer(),
        }
    }

    fn on_signer(
        &mut self,
        now: Now,
        signer: Arc<dyn Signer>,
        pkcs8: SecretBytes,
        entropy: &mut dyn Entropy,
    ) {
        let public_key = signer.public_key().to_vec();
        // Members verify with the key they were given: another key needs another rekey SA.
        if self.public_key.as_ref().is_some_and(|old| *old != public_key) {
            self.drop_keks();
        }
        self.public_key = Some(public_key);
        self.signing_key = Some(pkcs8);
        self.signer = Some(signer);
        let row = self.group_row();
        self.out.push_back(GroupOutput::Persist(vec![row]));
        self.fill_keys(now, entropy);
        self.sign_next();
    }

    /// Asks for the signature of the first unsigned PUSH; one at a time keeps them in order.
    pub(super) fn sign_next(&mut self) {
        if self.retry.is_some() {
            return;
        }
        let (Some(signer), Some(communication)) = (self.signer.clone(), &self.settings.communication) else {
            return;
        };
        let hash = communication.signature_hash;
        let padded = self.settings.push_dialect.padded_length_signature;
        let bare_digest = self.settings.push_dialect.bare_digest_signature;
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

    /// Drops every rekey SA without a word: the signing key changed under them.
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
