//! What members learned of the group. They hold the same keys, so a push is opened once and recognised for the rest.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{KekSpi, SeqNumber};
use gdoi_proto::message::Dialect;
use gdoi_proto::policy::{AckRequest, Carriage, GroupPolicy, KekKey, KekPolicy, KeySet};
use gm::engine::kek::Kek;
use gm::engine::pull::Download;
use ike::crypto::provider::{Provider, Verification};
use ike::io::{Entropy, Instant};
use ike::protect::ack::AckKey;
use ike::protect::push;

/// Pushes remembered.
const REMEMBERED: usize = 8;

/// The keys of one crowd of members.
#[derive(Debug, Default)]
pub struct Keys {
    keks: BTreeMap<KekSpi, Held>,
    opened: VecDeque<Opened>,
    count: u32,
}

#[derive(Debug)]
struct Held {
    kek: Kek,
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

    /// What a registration brought.
    ///
    /// # Errors
    /// Why the KEK cannot be used.
    pub fn learn(
        &mut self,
        download: Download,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<(), String> {
        if let (Some(policy), Some(key)) = (download.policy.kek, download.keys.kek) {
            self.hold(policy, key, None, download.seq, now, entropy)?;
        }
        Ok(())
    }

    fn hold(
        &mut self,
        policy: KekPolicy,
        key: KekKey,
        before: Option<KekSpi>,
        seq: SeqNumber,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<(), String> {
        if self.keks.contains_key(&policy.spi) {
            return Ok(());
        }
        let before = before.and_then(|spi| self.keks.get(&spi)).map(|held| &held.kek);
        let mut kek = Kek::new(policy, key, before, now, entropy)?;
        kek.last = seq;
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
        let unverified = push::open(&kek.cipher, kek.last, header, octets, Dialect::STRICT)
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
            if let (Some(policy), Some(key)) = (policy.kek, keys.kek) {
                self.hold(policy, key, Some(spi), SeqNumber(0), now, entropy)?;
            }
        }
        if let Some(held) = self.keks.get_mut(&spi) {
            held.kek.last = seq;
        }
        self.count += 1;
        let opened = Opened { octets: octets.clone(), spi, seq, ordinal: self.count, first: now };
        self.opened.push_back(opened.clone());
        if self.opened.len() > REMEMBERED {
            self.opened.pop_front();
        }
        Ok(opened)
    }

    /// The acknowledgement of a push by the member at `address`; none when the group asks for none.
    pub fn acknowledgement(&self, push: &Opened, address: IpAddr) -> Option<Bytes> {
        Some(self.keks.get(&push.spi)?.ack.as_ref()?.seal(push.spi, push.seq, address))
    }
}
