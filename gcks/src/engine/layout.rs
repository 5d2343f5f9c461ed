//! A rekey as octets to sign: which keys go into which PUSH, each within `max-push-size` where keys can be split.

use gdoi_proto::ids::{SeqNumber, Spi};
use gdoi_proto::payload::Delete;
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::registry::Doi;
use ike::io::Now;
use ike::protect::push::{PushContent, Unsigned};

use super::group::{Group, Kek, Tek, pushed_endpoints};
use super::lkh::{Array, Node};

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
    /// All TEKs in it.
    pub(super) tells: Vec<Spi>,
    /// Nodes of the key tree whose holders alone can use it; none when it is for everybody.
    pub(super) holders: Vec<Node>,
    /// SPI of the new KEK in it.
    pub(super) new_kek: Option<String>,
}

impl Group {
    /// A PUSH that only deletes; none without a KEK or a number.
    pub(super) fn lay_out_delete(&self, deletes: Vec<Delete>) -> Option<Part> {
        let kek = self.kek.as_ref()?;
        let seq = kek.seq.next()?;
        let content = PushContent { seq, deletes, keys: None };
        let unsigned = Unsigned::new(kek.spi, &content, kek.signing.octets());
        Some(Part { seq, unsigned, teks: Vec::new(), tells: Vec::new(), holders: Vec::new(), new_kek: None })
    }

    /// The PUSHes that carry these keys, each within `max-push-size` where keys can be split. All go under `protecting`,
    /// its successor last; the arrays of a key tree are split as well, each PUSH with the same SAK (RFC 6407 section 4).
    /// None without numbers for all.
    pub(super) fn lay_out(
        &self,
        now: Now,
        protecting: &Kek,
        teks: &[Tek],
        successor: Option<(&Kek, &[Array])>,
        besides: &Besides,
    ) -> Vec<Part> {
        let Some(communication) = &self.settings.communication else { return Vec::new() };
        let small = |part: &Part| part.unsigned.datagram_len() <= communication.max_push_size;
        let (mut parts, mut rest, mut last) = (Vec::new(), teks, protecting.seq);
        let mut successor = successor;
        // Only the first one deletes.
        let mut besides = besides.clone();
        loop {
            let Some(seq) = last.next() else { return Vec::new() };
            last = seq;
            let Some(all) = self.lay_out_part(now, protecting, seq, (rest, successor), &besides) else {
                return Vec::new();
            };
            let arrays = successor.map_or(0, |(_, arrays)| arrays.len());
            if small(&all) || (rest.is_empty() && arrays < 2) {
                parts.push(all);
                return parts;
            }
            if let (true, Some((kek, arrays))) = (rest.is_empty(), successor) {
                let part = |count: usize| {
                    let arrays = Some((kek, arrays.get(..count)?));
                    self.lay_out_part(now, protecting, seq, (&[], arrays), &besides)
                };
                let (best, count) = most_that_fit(part, small);
                parts.extend(best);
                besides.deletes.clear();
                successor = arrays.get(count..).map(|left| (kek, left));
                continue;
            }
            let part =
                |count: usize| self.lay_out_part(now, protecting, seq, (rest.get(..count)?, None), &besides);
            let (best, count) = most_that_fit(part, small);
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
        protecting: &Kek,
        seq: SeqNumber,
        (teks, successor): (&[Tek], Option<(&Kek, &[Array])>),
        besides: &Besides,
    ) -> Option<Part> {
        let communication = self.settings.communication.as_ref()?;
        let (successor, arrays) = successor.map_or((None, &[][..]), |(kek, arrays)| (Some(kek), arrays));
        let dialect = self.settings.push_dialect;
        // Others than those of this very rekey are told again.
        let is_new = |tek: &Tek| self.teks.iter().all(|known| known.spi != tek.spi);
        let policy = GroupPolicy {
            kek: successor.map(|kek| {
                let (source, destination) = pushed_endpoints(communication);
                self.kek_policy(communication, kek, now.at, source, destination)
            }),
            activation_delay: communication.activation_delay,
            deactivation_delay: Some(besides.deactivation.unwrap_or(communication.deactivation_delay)),
            teks: teks.iter().map(|tek| tek.policy(now.at)).collect(),
        };
        let keys = KeySet {
            kek: successor.filter(|_| !communication.lkh).map(Group::kek_key),
            lkh_updates: arrays.iter().map(|array| array.update.clone()).collect(),
            lkh_public_key: successor.filter(|_| !arrays.is_empty()).map(|kek| kek.public_key.clone()),
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
        let apart = teks.is_empty() && content.deletes.is_empty();
        Some(Part {
            seq,
            unsigned: Unsigned::new(protecting.spi, &content, protecting.signing.octets()),
            tells: teks.iter().map(|tek| tek.spi).collect(),
            holders: arrays.iter().filter(|_| apart).map(|array| array.holder).collect(),
            teks: teks.iter().filter(|tek| is_new(tek)).map(|tek| tek.spi.to_string()).collect(),
            new_kek: successor.map(|kek| kek.spi.to_string()),
        })
    }
}

/// The part with as many keys as fit, at least one, and how many.
fn most_that_fit(
    part: impl Fn(usize) -> Option<Part>,
    small: impl Fn(&Part) -> bool,
) -> (Option<Part>, usize) {
    let (mut best, mut count) = (part(1), 1);
    while let Some(more) = part(count + 1).filter(&small) {
        (best, count) = (Some(more), count + 1);
    }
    (best, count)
}

/// Everything of a kind goes: SPI 0 (RFC 6407 section 5.9).
pub(super) fn delete_everything(protocol: u8, spi_size: u8) -> Delete {
    Delete { doi: Doi::Gdoi, protocol, spi_size, spis: vec![vec![0; usize::from(spi_size)]] }
}
