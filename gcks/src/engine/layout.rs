//! A rekey as octets to sign: which keys go into which PUSH, each within `max-push-size` where keys can be split.

use gdoi_proto::ids::SeqNumber;
use gdoi_proto::payload::Delete;
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::registry::Doi;
use ike::io::Now;
use ike::protect::push::{PushContent, Unsigned};

use super::group::{Group, Kek, Tek, unspecified_endpoint};
use super::settings::CommunicationSettings;

/// What a rekey says besides new keys.
#[derive(Debug, Clone, Default)]
pub(super) struct Besides {
    /// At the head of its first PUSH.
    pub(super) deletes: Vec<Delete>,
    /// DTD, when it is not the configured one.
    pub(super) deactivation: Option<u16>,
}

/// One PUSH of a rekey, laid out.
pub(super) struct Part {
    pub(super) seq: SeqNumber,
    pub(super) unsigned: Unsigned,
    /// SPIs of new TEKs in it.
    pub(super) teks: Vec<String>,
    /// SPI of the new KEK in it.
    pub(super) new_kek: Option<String>,
}

impl Group {
    /// A PUSH that only deletes; none without a KEK or a number.
    pub(super) fn lay_out_delete(
        &self,
        communication: &CommunicationSettings,
        deletes: Vec<Delete>,
    ) -> Option<Part> {
        let kek = self.kek.as_ref()?;
        let seq = kek.seq.next()?;
        let content = PushContent { seq, deletes, keys: None };
        let length = communication.signature.octets(communication.signature_key_bits);
        let unsigned = Unsigned::new(kek.spi, &content, length);
        Some(Part { seq, unsigned, teks: Vec::new(), new_kek: None })
    }

    /// The PUSHes that carry these keys, each within `max-push-size` where keys can be split. All go under the present KEK,
    /// its successor last. None without a KEK or numbers for all.
    pub(super) fn lay_out(
        &self,
        now: Now,
        teks: &[Tek],
        successor: Option<&Kek>,
        besides: &Besides,
    ) -> Vec<Part> {
        let (Some(communication), Some(kek)) = (&self.settings.communication, &self.kek) else {
            return Vec::new();
        };
        let small = |part: &Part| part.unsigned.datagram_len() <= communication.max_push_size;
        let (mut parts, mut rest, mut last) = (Vec::new(), teks, kek.seq);
        // Only the first one deletes.
        let mut besides = besides.clone();
        loop {
            let Some(seq) = last.next() else { return Vec::new() };
            last = seq;
            let Some(all) = self.lay_out_part(now, seq, rest, successor, &besides) else { return Vec::new() };
            if small(&all) || rest.is_empty() {
                parts.push(all);
                return parts;
            }
            // As many as fit, and at least one.
            let part = |count: usize| self.lay_out_part(now, seq, rest.get(..count)?, None, &besides);
            let mut count = 1;
            let mut best = part(count);
            while let Some(more) = part(count + 1).filter(&small) {
                (best, count) = (Some(more), count + 1);
            }
            parts.extend(best);
            besides.deletes.clear();
            rest = rest.get(count..).unwrap_or_default();
            if rest.is_empty() && successor.is_none() {
                return parts;
            }
        }
    }

    fn lay_out_part(
        &self,
        now: Now,
        seq: SeqNumber,
        teks: &[Tek],
        successor: Option<&Kek>,
        besides: &Besides,
    ) -> Option<Part> {
        let communication = self.settings.communication.as_ref()?;
        let protecting = self.kek.as_ref()?;
        let dialect = self.settings.push_dialect;
        let policy = GroupPolicy {
            kek: successor.map(|kek| {
                self.kek_policy(communication, kek, now.at, unspecified_endpoint(), unspecified_endpoint())
            }),
            activation_delay: communication.activation_delay,
            deactivation_delay: Some(besides.deactivation.unwrap_or(communication.deactivation_delay)),
            teks: teks.iter().map(|tek| tek.policy(now.at)).collect(),
        };
        let keys = KeySet {
            kek: successor.map(|kek| self.kek_key(kek)),
            teks: teks.iter().map(|tek| (tek.spi, tek.key.clone())).collect(),
            ..KeySet::default()
        };
        // A PUSH that brings no key has no SA and no KD.
        let keyed = !teks.is_empty() || successor.is_some();
        let content = PushContent {
            seq,
            deletes: besides.deletes.clone(),
            keys: keyed.then(|| {
                (
                    dialect.sa_to_peer(policy.write(Carriage::Push)),
                    dialect.kd_to_peer(keys.write(&policy), Some(protecting.spi)),
                )
            }),
        };
        let signature_len = communication.signature.octets(communication.signature_key_bits);
        Some(Part {
            seq,
            unsigned: Unsigned::new(protecting.spi, &content, signature_len),
            teks: teks.iter().map(|tek| tek.spi.to_string()).collect(),
            new_kek: successor.map(|kek| kek.spi.to_string()),
        })
    }
}

/// Everything of a kind goes: SPI 0 (RFC 6407 section 5.9).
pub(super) fn delete_everything(protocol: u8, spi_size: u8) -> Delete {
    Delete { doi: Doi::Gdoi, protocol, spi_size, spis: vec![vec![0; usize::from(spi_size)]] }
}
