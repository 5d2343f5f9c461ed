//! What members learned of the group. They hold the same keys, so a push is opened once and recognised for the rest. Of a key
//! tree each holds its own path; here they are one.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{KekSpi, SeqNumber};
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::{LkhDownload, LkhKey, LkhUpdate};
use gdoi_proto::policy::{AckRequest, Carriage, GroupPolicy, KekKey, KekPolicy, KeySet};
use gdoi_proto::secret::SecretBytes;
use gm::engine::kek::Kek;
use gm::engine::lkh::KeyPath;
use gm::engine::pull::Download;
use ike::crypto::provider::{Provider, Verification};
use ike::io::{Entropy, Instant};
use ike::protect::ack::AckKey;
use ike::protect::push;

/// Pushes remembered: one change of a key tree takes several.
const REMEMBERED: usize = 256;

/// The keys of one crowd of members.
#[derive(Debug, Default)]
pub struct Keys {
    keks: BTreeMap<KekSpi, Held>,
    /// Keys of the tree by number and handle.
    nodes: BTreeMap<(u16, u32), LkhKey>,
    opened: VecDeque<Opened>,
    count: u32,
}

#[derive(Debug)]
struct Held {
    kek: Kek,
    /// None with a key tree: every leaf makes its own.
    ack: Option<AckKey>,
}

/// A push whose signature was good.
#[derive(Debug, Clone)]
pub struct Opened {
    octets: Bytes,
    spi: KekSpi,
    seq: SeqNumber,
    /// 1 for the first push of this run.
    pub ordinal: u32,
    /// When its first copy came.
    pub first: Instant,
}

impl Keys {
    /// Distinct pushes so far.
    pub fn pushes(&self) -> u32 {
        self.count
    }

    /// What a registration brought; the key of the member's leaf, where there is a tree.
    ///
    /// # Errors
    /// Why the KEK cannot be used.
    pub fn learn(
        &mut self,
        mut download: Download,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<Option<SecretBytes>, String> {
        let path = download.keys.lkh_download.take().map(KeyPath::new);
        if let Some(path) = &path {
            self.note_path(path);
        }
        if let (Some(policy), Some(key)) = (download.policy.kek, download.keys.kek) {
            self.hold(policy, key, None, now, entropy)?;
        }
        Ok(path.and_then(|path| path.leaf_key()))
    }

    fn note_path(&mut self, path: &KeyPath) {
        self.nodes.extend(path.keys().iter().map(|key| ((key.id, key.handle), key.clone())));
    }

    /// The KEK that key arrays lead to, by any key of ours that opens one.
    fn kek_of_arrays(&mut self, updates: &[LkhUpdate]) -> Option<KekKey> {
        let held = updates.iter().find_map(|update| self.nodes.get(&(update.id, update.handle)))?;
        let path = KeyPath::new(LkhDownload { keys: vec![held.clone()] });
        let (path, key) = path.updated(updates).ok()?;
        self.note_path(&path);
        Some(key)
    }

    fn hold(
        &mut self,
        policy: KekPolicy,
        key: KekKey,
        before: Option<KekSpi>,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<(), String> {
        if self.keks.contains_key(&policy.spi) {
            return Ok(());
        }
        let before = before.and_then(|spi| self.keks.get(&spi)).map(|held| &held.kek);
        let kek = Kek::new(policy, key, before, now, entropy)?;
        let ack = match kek.policy.acknowledgement {
            Some(request @ (AckRequest::KekSha256 | AckRequest::KekSha512)) => {
                Some(AckKey::derive(request, kek.key(), kek.policy.spi))
            }
            Some(AckRequest::LkhSha256 | AckRequest::LkhSha512) | None => None,
        };
        self.keks.insert(kek.policy.spi, Held { kek, ack });
        Ok(())
    }

    /// A push as it came to any member.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn take(
        &mut self,
        provider: &dyn Provider,
        header: &Header,
        octets: &Bytes,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<Opened, String> {
        if let Some(known) = self.opened.iter().rev().find(|known| known.octets == *octets) {
            return Ok(known.clone());
        }
        let spi = KekSpi::from(header.cookies);
        let held = self.keks.get(&spi).ok_or("a push under an unknown KEK")?;
        let kek = &held.kek;
        // Each member gets its own of the pushes of key arrays: their numbers come in any order.
        let unverified = push::open(&kek.cipher, SeqNumber(0), header, octets, Dialect::STRICT)
            .map_err(|error| error.to_string())?;
        let check = Verification {
            algorithm: kek.policy.signature,
            hash: kek.policy.signature_hash,
            public_key: kek.public_key.clone(),
            input: unverified.signature_input.clone(),
            signature: unverified.signature.clone(),
            or_input: None,
            bare_digest: false,
        };
        provider.verify(&check).map_err(|error| error.to_string())?;
        let content = unverified.verified().into_inner();
        let seq = content.seq;
        if let Some((sa, kd)) = &content.keys {
            let policy = GroupPolicy::read(sa, Carriage::Push).map_err(|error| error.to_string())?;
            let keys = KeySet::read(kd, &policy, Carriage::Push).map_err(|error| error.to_string())?;
            let by_arrays = || {
                let key = self.kek_of_arrays(&keys.lkh_updates)?;
                Some(KekKey { public_key: keys.lkh_public_key, ..key })
            };
            if let (Some(policy), Some(key)) = (policy.kek, keys.kek.or_else(by_arrays)) {
                self.hold(policy, key, Some(spi), now, entropy)?;
            }
        }
        self.count += 1;
        let opened = Opened { octets: octets.clone(), spi, seq, ordinal: self.count, first: now };
        self.opened.push_back(opened.clone());
        if self.opened.len() > REMEMBERED {
            self.opened.pop_front();
        }
        Ok(opened)
    }

    /// The acknowledgement of a push by the member at `address` with that key of its leaf, where there is a tree; none when the
    /// group asks for none.
    pub fn acknowledgement(
        &self,
        push: &Opened,
        address: IpAddr,
        leaf: Option<&SecretBytes>,
    ) -> Option<Bytes> {
        let held = self.keks.get(&push.spi)?;
        if let Some(key) = &held.ack {
            return Some(key.seal(push.spi, push.seq, address));
        }
        let request = held.kek.policy.acknowledgement?;
        Some(AckKey::derive(request, leaf?, push.spi).seal(push.spi, push.seq, address))
    }
}
