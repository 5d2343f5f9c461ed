//! IP-D3P: a timestamp inside the protection, because group SAs have no replay window
//! (draft-weis-delay-detection-03).
//!
//! ```text
//! next header (1) | type 1 (1) | length 12 (2) | seconds of Unix time, low 32 bits (4) | microseconds (4)
//! ```
//!
//! Deviation: the draft has no protocol number assigned; 253, for experiments, is what implementations use.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use crate::header::octets;

/// Its IP protocol number.
pub const PROTOCOL: u8 = 253;
/// Octets of the header with a POSIX timestamp.
pub const LENGTH: usize = 12;
const POSIX_TIME: u8 = 1;
/// Senders whose skew is kept; more are not shown.
const SENDERS: usize = 4096;

/// A wall-clock time as packets carry it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Low 32 bits of Unix time.
    pub seconds: u32,
    /// 0-999999.
    pub microseconds: u32,
}

/// Why a packet is dropped: the seven causes operators know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Refusal {
    /// Sent before the window.
    #[error("timestamp too old")]
    TooOld,
    /// Sent after the window.
    #[error("timestamp too new")]
    TooNew,
    /// The policy wants a timestamp.
    #[error("no timestamp")]
    NoTimestamp,
    /// The policy wants none.
    #[error("unexpected timestamp")]
    Unexpected,
    /// Not POSIX time.
    #[error("wrong type of timestamp")]
    WrongType,
    /// Not 12 octets, or fewer are there.
    #[error("wrong length of the timestamp header")]
    WrongLength,
    /// Behind it is something that cannot be there.
    #[error("wrong next header behind the timestamp")]
    WrongNextHeader,
}

impl Timestamp {
    /// The time `since` 1970.
    pub fn new(since: Duration) -> Timestamp {
        Timestamp {
            // The low 32 bits are what travels.
            seconds: (since.as_secs() & u64::from(u32::MAX)) as u32,
            microseconds: since.subsec_micros(),
        }
    }

    /// The header, followed by `next`.
    pub fn encode(self, next: u8) -> [u8; LENGTH] {
        let [a, b, c, d] = self.seconds.to_be_bytes();
        let [e, f, g, h] = self.microseconds.to_be_bytes();
        [next, POSIX_TIME, 0, 12, a, b, c, d, e, f, g, h]
    }

    /// Reads a header: what follows it and the time.
    ///
    /// # Errors
    /// [`Refusal::WrongLength`], [`Refusal::WrongType`].
    pub fn decode(header: &[u8]) -> Result<(u8, Timestamp), Refusal> {
        let [next, kind, high, low, rest @ ..]: [u8; LENGTH] =
            octets(header, 0).ok_or(Refusal::WrongLength)?;
        if kind != POSIX_TIME {
            return Err(Refusal::WrongType);
        }
        if usize::from(u16::from_be_bytes([high, low])) != LENGTH {
            return Err(Refusal::WrongLength);
        }
        let [a, b, c, d, e, f, g, h] = rest;
        let time = Timestamp {
            seconds: u32::from_be_bytes([a, b, c, d]),
            microseconds: u32::from_be_bytes([e, f, g, h]),
        };
        Ok((next, time))
    }

    /// Microseconds from `now` to this time, negative when it is earlier; seconds count modulo 2^32.
    pub fn skew(self, now: Timestamp) -> i64 {
        let seconds = i64::from(self.seconds.wrapping_sub(now.seconds).cast_signed());
        seconds * 1_000_000 + i64::from(self.microseconds) - i64::from(now.microseconds)
    }

    /// Checks that this time lies in the window of that `width` centred on `now`; returns the skew in microseconds.
    ///
    /// # Errors
    /// [`Refusal::TooOld`], [`Refusal::TooNew`].
    pub fn check(self, now: Timestamp, width: Duration) -> Result<i64, Refusal> {
        let skew = self.skew(now);
        let half = i64::try_from(width.as_micros() / 2).unwrap_or(i64::MAX);
        match skew {
            _ if skew < -half => Err(Refusal::TooOld),
            _ if skew > half => Err(Refusal::TooNew),
            _ => Ok(skew),
        }
    }
}

/// The skew of one sender: its clock and the way here against our clock, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    /// Of the last packet.
    pub last: i64,
    /// Smallest.
    pub least: i64,
    /// Largest.
    pub most: i64,
    /// Packets dropped for it.
    pub refused: u64,
}

/// Skews by sender, of the first 4096 of them: an operator sees a clock go wrong before packets are dropped.
#[derive(Debug, Clone, Default)]
pub struct Skews(BTreeMap<IpAddr, Skew>);

impl Skews {
    /// Notes the skew of a packet whose ICV verified.
    pub fn note(&mut self, sender: IpAddr, skew: i64, refused: bool) {
        if self.0.len() >= SENDERS && !self.0.contains_key(&sender) {
            return;
        }
        let known = self.0.entry(sender).or_insert(Skew { last: skew, least: skew, most: skew, refused: 0 });
        known.last = skew;
        known.least = known.least.min(skew);
        known.most = known.most.max(skew);
        known.refused = known.refused.saturating_add(u64::from(refused));
    }

    /// In the order of addresses.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Skew)> + '_ {
        self.0.iter().map(|(address, skew)| (*address, *skew))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u32, microseconds: u32) -> Timestamp {
        Timestamp { seconds, microseconds }
    }

    #[test]
    fn the_header_is_that_of_the_vector() {
        let header = Timestamp::new(Duration::from_micros(0x6553_f100 * 1_000_000 + 0x3d090)).encode(4);
        assert_eq!(hex::encode(header), "0401000c6553f1000003d090");
        assert_eq!(Timestamp::decode(&header), Ok((4, at(0x6553_f100, 250_000))));
        for length in 0..LENGTH {
            assert_eq!(Timestamp::decode(&header[..length]), Err(Refusal::WrongLength));
        }
    }

    #[test]
    fn other_types_and_lengths_are_refused() {
        let mut header = at(1, 1).encode(4);
        header[1] = 2;
        assert_eq!(Timestamp::decode(&header), Err(Refusal::WrongType));
        header[1..4].copy_from_slice(&[1, 0, 16]);
        assert_eq!(Timestamp::decode(&header), Err(Refusal::WrongLength));
    }

    #[test]
    fn the_window_is_centred_and_seconds_wrap_as_in_the_example_of_the_draft() {
        let (now, width) = (at(u32::MAX, 0), Duration::from_secs(5));
        for inside in [at(u32::MAX - 2, 0), at(u32::MAX, 0), at(1, 0), at(1, 500_000)] {
            assert!(inside.check(now, width).is_ok(), "{inside:?}");
        }
        assert_eq!(at(u32::MAX - 3, 0).check(now, width), Err(Refusal::TooOld));
        assert_eq!(at(1, 500_001).check(now, width), Err(Refusal::TooNew));
        assert_eq!(at(2, 0).check(now, width), Err(Refusal::TooNew));
    }

    #[test]
    fn skews_are_kept_per_sender_and_bounded() {
        let mut skews = Skews::default();
        for number in 0..5000u32 {
            skews.note(std::net::Ipv4Addr::from(number).into(), -3, false);
        }
        skews.note(std::net::Ipv4Addr::from(7).into(), 9, true);
        assert_eq!(skews.iter().count(), SENDERS);
        let (_, skew) = skews.iter().nth(7).unwrap();
        assert_eq!(skew, Skew { last: 9, least: -3, most: 9, refused: 1 });
    }
}
