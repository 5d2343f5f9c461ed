//! A TEK as the data plane holds it: prepared keys, the counter that must never repeat, the replay window, its end.
//!
//! ```text
//! installed -> receives          activated -> sends          soft limit -> asks for a new key     spent, expired
//! ```

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aes::Aes256;
use cbc::cipher::{BlockCipherEncrypt, KeyInit};
use gdoi_proto::ids::Spi;
use gdoi_proto::policy::{AddressPreservation, Direction, Encapsulation, SenderIds};

use crate::esp::{Keys, Replay, Window};
use crate::selector::Selector;
use crate::{DataPlaneError, TekInstall};

/// Time since some start, on a clock that never goes back.
pub type Moment = Duration;

/// The last sequence number of an SA with one sender: it must not wrap (RFC 4303 section 3.3.3).
const LAST_SEQUENCE: u64 = u32::MAX as u64;

/// Octets of randomness an SA is made with, from which the IVs of CBC come.
pub const SEED: usize = 32;

/// What makes one packet differ from all others under its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Sequence number. With several senders it wraps.
    pub sequence: u32,
    /// Explicit IV; only the first octets count where the cipher has a shorter one.
    pub iv: [u8; 16],
}

/// Why an SA seals no more packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent;

/// Counts what was sealed. Two of them never work on one key with one Sender-ID.
#[derive(Debug)]
struct Sender {
    iv: IvSource,
    sealed: AtomicU64,
    /// Packets that may be sealed in all.
    hard: u64,
    /// Packets after which a new key is asked for: 7/8 of that.
    soft: u64,
    /// The only sender of its flow: its sequence numbers must not wrap.
    single: bool,
}

enum IvSource {
    /// SID | SSIV, counting from 1 (RFC 6054 section 2). With several Sender-IDs the next begins when one is spent.
    Counter { sid_bits: u32, sids: Vec<u64>, space: u64 },
    /// The encrypted number of the packet, under a key nobody else has: unpredictable, as CBC needs it (NIST SP 800-38A
    /// appendix C), at the price of one block.
    Random(Box<Aes256>),
}

impl std::fmt::Debug for IvSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IvSource::Counter { sid_bits, sids, .. } => write!(f, "Counter({sids:?} of {sid_bits} bits)"),
            IvSource::Random(_) => f.write_str("Random"),
        }
    }
}

impl IvSource {
    fn counter(ids: &SenderIds) -> Result<IvSource, DataPlaneError> {
        let sid_bits = u32::from(ids.bits);
        if !matches!(sid_bits, 8 | 12 | 16) {
            return Err(DataPlaneError(format!("Sender-IDs of {sid_bits} bits")));
        }
        let sids: Vec<u64> = ids.values.iter().map(|id| u64::from(id.0)).collect();
        let mut distinct = sids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if sids.is_empty() || distinct.len() < sids.len() || sids.iter().any(|sid| sid >> sid_bits != 0) {
            return Err(DataPlaneError("Sender-IDs that are missing, equal or too large".to_owned()));
        }
        Ok(IvSource::Counter { sid_bits, sids, space: (1 << (64 - sid_bits)) - 1 })
    }

    fn packets(&self) -> u64 {
        match self {
            IvSource::Counter { sids, space, .. } => space.saturating_mul(sids.len() as u64),
            IvSource::Random(_) => u64::MAX,
        }
    }

    /// The IV of packet `number`, from 1.
    fn iv(&self, number: u64) -> Option<[u8; 16]> {
        let mut iv = [0; 16];
        match self {
            IvSource::Counter { sid_bits, sids, space } => {
                let index = number.checked_sub(1)?;
                let sid = sids.get(usize::try_from(index / space).ok()?)?;
                let value = sid << (64 - sid_bits) | (index % space + 1);
                iv.first_chunk_mut::<8>()?.copy_from_slice(&value.to_be_bytes());
            }
            IvSource::Random(cipher) => {
                iv.last_chunk_mut::<8>()?.copy_from_slice(&number.to_be_bytes());
                let mut block = iv.into();
                cipher.encrypt_block(&mut block);
                iv = block.into();
            }
        }
        Some(iv)
    }
}

/// What an SA did.
#[derive(Debug, Default)]
struct Traffic {
    packets_out: AtomicU64,
    octets_out: AtomicU64,
    packets_in: AtomicU64,
    octets_in: AtomicU64,
}

/// A snapshot of what an SA did: packets and octets of inner packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaCounters {
    /// Sealed.
    pub packets_out: u64,
    /// Sealed.
    pub octets_out: u64,
    /// Opened.
    pub packets_in: u64,
    /// Opened.
    pub octets_in: u64,
}

/// A TEK ready for packets. All its methods take `&self`: threads share it.
#[derive(Debug)]
pub struct Sa {
    /// The VPN it belongs to.
    pub vpn: String,
    /// Its SPI.
    pub spi: Spi,
    /// Its flow, as the sender sees it.
    pub selector: Selector,
    /// Who sends.
    pub direction: Direction,
    /// Tunnel or transport.
    pub encapsulation: Encapsulation,
    /// Which outer addresses are copied.
    pub preservation: AddressPreservation,
    /// Its keys.
    pub keys: Arc<Keys>,
    /// Width of the window of IP-D3P timestamps; none without them.
    pub delay_detection: Option<Duration>,
    /// Its end.
    pub expires: Moment,
    sender: Option<Sender>,
    /// Every Sender-ID it ever had: none may come back under the same key.
    used: BTreeSet<u64>,
    window: Option<Arc<Mutex<Window>>>,
    octet_limit: Option<u64>,
    /// 0 not active; the largest of a flow sends.
    activated: AtomicU64,
    soft_told: AtomicBool,
    traffic: Arc<Traffic>,
}

impl Sa {
    /// Prepares a TEK. `seed` is random and used for nothing else.
    ///
    /// # Errors
    /// [`DataPlaneError`]: keys that do not fit, selectors that are not addresses, a counter mode without Sender-ID
    /// that should send, address preservation other than "both" in tunnel mode.
    pub fn new(tek: &TekInstall, now: Moment, seed: &[u8; SEED]) -> Result<Sa, DataPlaneError> {
        let policy = &tek.policy;
        let refused = |why: String| DataPlaneError(format!("{}: TEK {}: {why}", tek.vpn, policy.spi));
        if policy.encapsulation == Encapsulation::Tunnel
            && policy.address_preservation != AddressPreservation::Both
        {
            return Err(refused("tunnels without both addresses preserved are not supported yet".to_owned()));
        }
        let selector = Selector::of(policy).map_err(|error| refused(error.to_string()))?;
        let keys = Keys::new(policy.cipher, &tek.key).map_err(|error| refused(error.to_string()))?;
        // One host sends this flow, and says so: only then do sequence numbers mean something.
        let single = selector.source.is_single() && policy.direction != Direction::Symmetric;
        let sender = match tek.may_send() {
            true => Some(Sender::new(tek, &keys, single, seed).map_err(|error| refused(error.0))?),
            false => None,
        };
        Ok(Sa {
            vpn: tek.vpn.clone(),
            spi: policy.spi,
            selector,
            direction: policy.direction,
            encapsulation: policy.encapsulation,
            preservation: policy.address_preservation,
            keys: Arc::new(keys),
            delay_detection: tek.delay_detection,
            expires: now.saturating_add(Duration::from_secs(u64::from(policy.lifetime_seconds))),
            sender,
            used: tek.sender_ids.iter().flat_map(|ids| &ids.values).map(|id| u64::from(id.0)).collect(),
            window: (single && policy.direction == Direction::ReceiverOnly).then(Arc::default),
            octet_limit: policy.lifetime_kilobytes.map(|kilobytes| u64::from(kilobytes) * 1024),
            activated: AtomicU64::new(0),
            soft_told: AtomicBool::new(false),
            traffic: Arc::default(),
        })
    }

    /// The same SA with other Sender-IDs, whose IVs begin anew: it goes on where this one is.
    ///
    /// # Errors
    /// [`DataPlaneError`] when its cipher does not count, it never sends, or a Sender-ID is unusable or was its own before.
    pub fn with_sender_ids(&self, ids: &SenderIds) -> Result<Sa, DataPlaneError> {
        let refused = |why: &str| DataPlaneError(format!("{}: TEK {}: {why}", self.vpn, self.spi));
        let Some(before) = self.sender.as_ref().filter(|_| self.keys.shape().counts) else {
            return Err(refused("sends without Sender-IDs, or not at all"));
        };
        let fresh: BTreeSet<u64> = ids.values.iter().map(|id| u64::from(id.0)).collect();
        if !fresh.is_disjoint(&self.used) {
            return Err(refused("a Sender-ID it had before"));
        }
        let iv = IvSource::counter(ids).map_err(|error| refused(&error.0))?;
        let hard = if before.single { iv.packets().min(LAST_SEQUENCE) } else { iv.packets() };
        Ok(Sa {
            vpn: self.vpn.clone(),
            spi: self.spi,
            selector: self.selector,
            direction: self.direction,
            encapsulation: self.encapsulation,
            preservation: self.preservation,
            keys: Arc::clone(&self.keys),
            delay_detection: self.delay_detection,
            expires: self.expires,
            sender: Some(Sender {
                iv,
                sealed: AtomicU64::new(0),
                hard,
                soft: soft(hard),
                single: before.single,
            }),
            used: self.used.union(&fresh).copied().collect(),
            window: self.window.clone(),
            octet_limit: self.octet_limit,
            activated: AtomicU64::new(self.activated.load(Ordering::Acquire)),
            soft_told: AtomicBool::new(false),
            traffic: Arc::clone(&self.traffic),
        })
    }

    /// Lets it send, as the `order`-th activation, from 1.
    ///
    /// # Errors
    /// [`DataPlaneError`] when it never may.
    pub fn activate(&self, order: u64) -> Result<(), DataPlaneError> {
        if self.sender.is_none() {
            return Err(DataPlaneError(format!("{}: TEK {} is not for sending", self.vpn, self.spi)));
        }
        self.activated.store(order, Ordering::Release);
        Ok(())
    }

    /// When it was activated, as a count of activations; none when it was not.
    pub fn activated(&self) -> Option<u64> {
        Some(self.activated.load(Ordering::Acquire)).filter(|order| *order > 0)
    }

    /// True while its key is good for anything.
    pub fn is_valid(&self, now: Moment) -> bool {
        now < self.expires
    }

    /// True when it seals packets now.
    pub fn sends(&self, now: Moment) -> bool {
        self.is_valid(now) && self.activated().is_some() && !self.is_spent()
    }

    /// True when it may open packets now.
    pub fn receives(&self, now: Moment) -> bool {
        self.is_valid(now) && self.direction != Direction::SenderOnly
    }

    /// True when it must seal nothing more: its counter or its octets are used up.
    pub fn is_spent(&self) -> bool {
        let counter = self.sender.as_ref();
        counter.is_some_and(|sender| sender.sealed.load(Ordering::Relaxed) >= sender.hard)
            || self.octet_limit.is_some_and(|limit| self.octets() >= limit)
    }

    fn octets(&self) -> u64 {
        let traffic = &self.traffic;
        traffic.octets_out.load(Ordering::Relaxed).saturating_add(traffic.octets_in.load(Ordering::Relaxed))
    }

    /// Numbers a packet of `octets` to be sealed.
    ///
    /// # Errors
    /// [`Spent`] when it may seal nothing more.
    pub fn stamp(&self, octets: usize) -> Result<Stamp, Spent> {
        let sender = self.sender.as_ref().ok_or(Spent)?;
        if self.is_spent() {
            return Err(Spent);
        }
        // At most one too many per thread, and never as far as to wrap.
        let number = sender.sealed.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if number > sender.hard {
            return Err(Spent);
        }
        self.traffic.packets_out.fetch_add(1, Ordering::Relaxed);
        self.traffic.octets_out.fetch_add(octets as u64, Ordering::Relaxed);
        let [.., a, b, c, d] = number.to_be_bytes();
        let iv = sender.iv.iv(number).ok_or(Spent)?;
        Ok(Stamp { sequence: u32::from_be_bytes([a, b, c, d]), iv })
    }

    /// True once, when 7/8 of its packets or octets are used: time to ask for a new key.
    pub fn take_soft_limit(&self) -> bool {
        let packets = self.sender.as_ref();
        let reached = packets.is_some_and(|sender| sender.sealed.load(Ordering::Relaxed) >= sender.soft)
            || self.octet_limit.is_some_and(|limit| self.octets() >= soft(limit));
        reached && !self.soft_told.swap(true, Ordering::Relaxed)
    }

    /// Asks the sequence window before the ICV is verified.
    ///
    /// # Errors
    /// [`Replay`]; never without a window.
    pub fn check_sequence(&self, sequence: u32) -> Result<(), Replay> {
        let Some(window) = &self.window else { return Ok(()) };
        window.lock().unwrap_or_else(PoisonError::into_inner).check(sequence)
    }

    /// Tells the sequence window of a packet that verified.
    ///
    /// # Errors
    /// [`Replay`]; never without a window.
    pub fn accept_sequence(&self, sequence: u32) -> Result<(), Replay> {
        let Some(window) = &self.window else { return Ok(()) };
        window.lock().unwrap_or_else(PoisonError::into_inner).accept(sequence)
    }

    /// Counts an opened packet of `octets`.
    pub fn count_opened(&self, octets: usize) {
        self.traffic.packets_in.fetch_add(1, Ordering::Relaxed);
        self.traffic.octets_in.fetch_add(octets as u64, Ordering::Relaxed);
    }

    /// What it did so far.
    pub fn counters(&self) -> SaCounters {
        SaCounters {
            packets_out: self.traffic.packets_out.load(Ordering::Relaxed),
            octets_out: self.traffic.octets_out.load(Ordering::Relaxed),
            packets_in: self.traffic.packets_in.load(Ordering::Relaxed),
            octets_in: self.traffic.octets_in.load(Ordering::Relaxed),
        }
    }
}

fn soft(hard: u64) -> u64 {
    hard - hard / 8
}

impl Sender {
    fn new(tek: &TekInstall, keys: &Keys, single: bool, seed: &[u8; SEED]) -> Result<Sender, DataPlaneError> {
        let iv = match (keys.shape().counts, &tek.sender_ids) {
            (true, Some(ids)) => IvSource::counter(ids)?,
            (true, None) => {
                return Err(DataPlaneError("a counter mode never sends without a Sender-ID".to_owned()));
            }
            (false, _) => IvSource::Random(Box::new(Aes256::new(seed.into()))),
        };
        let hard = if single { iv.packets().min(LAST_SEQUENCE) } else { iv.packets() };
        Ok(Sender { iv, sealed: AtomicU64::new(0), hard, soft: soft(hard), single })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use gdoi_proto::ids::SenderId;
    use gdoi_proto::payload::Endpoint;
    use gdoi_proto::policy::{TekAuthentication, TekCipher, TekKey, TekPolicy};
    use gdoi_proto::registry::IdType;
    use gdoi_proto::secret::SecretBytes;

    use super::*;

    /// AES-128-GCM from any to any, Sender-ID 0x203 of 16 bits.
    pub(crate) fn gcm(spi: u32) -> TekInstall {
        let any = Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: Vec::new() };
        TekInstall {
            vpn: "v".to_owned(),
            policy: TekPolicy {
                spi: Spi(spi),
                ip_protocol: 0,
                source: any.clone(),
                destination: any,
                cipher: TekCipher::AesGcm { key_octets: 16, icv_octets: 16 },
                lifetime_seconds: 3600,
                lifetime_kilobytes: None,
                encapsulation: Encapsulation::Tunnel,
                address_preservation: AddressPreservation::Both,
                direction: Direction::Symmetric,
                delay_window: None,
            },
            key: TekKey { encryption: SecretBytes::copy(&[0x5a; 20]), integrity: None },
            sender_ids: Some(SenderIds { bits: 16, values: vec![SenderId(0x203)] }),
            activate_after: Some(Duration::ZERO),
            delay_detection: None,
        }
    }

    /// AES-256-CBC with HMAC-SHA-256 from any to any.
    pub(crate) fn cbc(spi: u32) -> TekInstall {
        let mut tek = gcm(spi);
        tek.policy.cipher =
            TekCipher::AesCbc { key_octets: 32, authentication: TekAuthentication::HmacSha256 };
        tek.key =
            TekKey { encryption: SecretBytes::copy(&[1; 32]), integrity: Some(SecretBytes::copy(&[2; 32])) };
        tek.sender_ids = None;
        tek
    }

    pub(crate) fn sa(tek: &TekInstall) -> Sa {
        Sa::new(tek, Duration::ZERO, &[3; SEED]).unwrap()
    }

    #[test]
    fn a_counter_mode_never_sends_without_a_sender_id() {
        let mut tek = gcm(256);
        tek.sender_ids = None;
        assert!(Sa::new(&tek, Duration::ZERO, &[3; SEED]).is_err());
        tek.activate_after = None;
        let receiver = sa(&tek);
        assert!(receiver.activate(1).is_err() && receiver.receives(Duration::ZERO));
        assert_eq!(receiver.stamp(1), Err(Spent));
    }

    #[test]
    fn sender_ids_that_are_equal_or_too_large_are_refused() {
        for values in [vec![], vec![SenderId(256)], vec![SenderId(1), SenderId(1)]] {
            let tek = TekInstall { sender_ids: Some(SenderIds { bits: 8, values }), ..gcm(256) };
            assert!(Sa::new(&tek, Duration::ZERO, &[3; SEED]).is_err());
        }
    }

    #[test]
    fn the_iv_is_the_sender_id_and_a_number_that_counts_from_one() {
        let sa = sa(&gcm(256));
        let first = sa.stamp(100).unwrap();
        assert_eq!((first.sequence, &first.iv[..8]), (1, &[2, 3, 0, 0, 0, 0, 0, 1][..]));
        assert_eq!(sa.stamp(100).unwrap().iv[..8], [2, 3, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn sender_ids_of_8_12_and_16_bits_stand_at_the_head_of_the_iv() {
        for (bits, sid, head) in
            [(8, 0x5a, [0x5a, 0, 0]), (12, 0x5a5, [0x5a, 0x50, 0]), (16, 0x5a5a, [0x5a, 0x5a, 0])]
        {
            let mut tek = gcm(256);
            tek.sender_ids = Some(SenderIds { bits, values: vec![SenderId(sid)] });
            assert_eq!(sa(&tek).stamp(1).unwrap().iv[..8], [head[0], head[1], head[2], 0, 0, 0, 0, 1]);
        }
    }

    #[test]
    fn new_sender_ids_begin_a_new_space_and_none_comes_back() {
        let ids = |sid| SenderIds { bits: 16, values: vec![SenderId(sid)] };
        let first = sa(&gcm(256));
        first.activate(7).unwrap();
        first.stamp(100).unwrap();
        let second = first.with_sender_ids(&ids(9)).unwrap();
        assert_eq!(second.stamp(100).unwrap().iv[..8], [0, 9, 0, 0, 0, 0, 0, 1]);
        assert_eq!((second.activated(), second.counters().packets_out), (Some(7), 2));
        assert!(second.with_sender_ids(&ids(9)).is_err(), "its own");
        assert!(second.with_sender_ids(&ids(0x0203)).is_err(), "its first");
        assert!(sa(&cbc(256)).with_sender_ids(&ids(9)).is_err(), "CBC does not count");
    }

    #[test]
    fn a_spent_sender_id_is_followed_by_the_next_and_no_iv_repeats() {
        let space = 5;
        let source = IvSource::Counter { sid_bits: 8, sids: vec![7, 9], space };
        let ivs: BTreeSet<_> = (1..=10).map(|number| source.iv(number).unwrap()).collect();
        assert_eq!(ivs.len(), 10);
        assert_eq!(source.iv(6).unwrap()[..8], [9, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((source.iv(11), source.iv(0), source.packets()), (None, None, 10));
    }

    #[test]
    fn a_counter_asks_for_a_new_key_once_and_stops_at_its_end() {
        let mut sa = sa(&gcm(256));
        sa.activate(1).unwrap();
        let sender = sa.sender.as_mut().unwrap();
        (sender.hard, sender.soft) = (16, soft(16));
        for _ in 0..13 {
            sa.stamp(1).unwrap();
        }
        assert!(!sa.take_soft_limit());
        sa.stamp(1).unwrap();
        assert!(sa.take_soft_limit() && !sa.take_soft_limit());
        assert!(sa.stamp(1).is_ok() && sa.sends(Duration::ZERO) && sa.stamp(1).is_ok());
        assert_eq!((sa.stamp(1), sa.sends(Duration::ZERO)), (Err(Spent), false));
    }

    #[test]
    fn a_limit_in_kilobytes_ends_sending() {
        let mut tek = gcm(256);
        tek.policy.lifetime_kilobytes = Some(1);
        let sa = sa(&tek);
        sa.stamp(900).unwrap();
        assert!(sa.take_soft_limit());
        sa.stamp(200).unwrap();
        assert_eq!(sa.stamp(1), Err(Spent));
    }

    #[test]
    fn ivs_of_cbc_look_random_and_never_repeat() {
        let sa = sa(&cbc(256));
        let ivs: BTreeSet<_> = (0..100).map(|_| sa.stamp(1).unwrap().iv).collect();
        assert_eq!(ivs.len(), 100);
        assert!(ivs.iter().all(|iv| iv[..8] != [0; 8]));
    }

    #[test]
    fn only_a_flow_of_one_host_has_a_sequence_window() {
        let mut tek = cbc(256);
        tek.policy.direction = Direction::ReceiverOnly;
        let sa_of_all = sa(&tek);
        tek.policy.source = Endpoint { id_type: IdType::Ipv4Addr, port: 0, data: vec![10, 0, 0, 1] };
        let sa_of_one = sa(&tek);
        for (sa, again) in [(sa_of_all, Ok(())), (sa_of_one, Err(Replay::Seen))] {
            sa.accept_sequence(9).unwrap();
            assert_eq!(sa.check_sequence(9), again);
            assert_eq!(sa.accept_sequence(9), again);
        }
    }

    #[test]
    fn the_single_sender_of_a_flow_stops_before_its_sequence_wraps() {
        let mut tek = cbc(256);
        tek.policy.direction = Direction::SenderOnly;
        tek.policy.source = Endpoint { id_type: IdType::Ipv4Addr, port: 0, data: vec![10, 0, 0, 1] };
        let sa = sa(&tek);
        sa.sender.as_ref().unwrap().sealed.store(LAST_SEQUENCE - 1, Ordering::Relaxed);
        assert_eq!(sa.stamp(1).map(|stamp| stamp.sequence), Ok(u32::MAX));
        assert_eq!(sa.stamp(1), Err(Spent));
    }

    #[test]
    fn several_senders_let_the_sequence_wrap() {
        let sa = sa(&cbc(256));
        sa.sender.as_ref().unwrap().sealed.store(LAST_SEQUENCE, Ordering::Relaxed);
        assert_eq!(sa.stamp(1).map(|stamp| stamp.sequence), Ok(0));
    }

    #[test]
    fn a_key_is_good_until_its_life_ends() {
        let sa = sa(&gcm(256));
        sa.activate(1).unwrap();
        assert!(sa.sends(Duration::from_secs(3599)) && sa.receives(Duration::from_secs(3599)));
        assert!(!sa.sends(Duration::from_secs(3600)) && !sa.receives(Duration::from_secs(3600)));
    }
}
