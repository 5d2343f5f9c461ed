//! The way of one packet through the data plane: header, decision, ESP, counters. It touches only the buffer given.
//!
//! ```text
//! outbound   clear packet -> clear | ESP | dropped and counted
//! inbound    ESP of ours  -> clear, when ICV, sequence, timestamp, addresses and selectors are right
//!            anything else -> clear when the rules say so
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use gdoi_proto::ids::Spi;

use crate::d3p::{Skews, Timestamp};
use crate::esp::{self, Carrier, DfBit, OpenError, Opening, Peeked, Replay, SealError, Sealing};
use crate::header::{Header, Malformed};
use crate::policy::{Blocked, Clear, Gspd, Inbound, Outbound};
use crate::sa::{Moment, Sa};

/// Both clocks when packets were read.
#[derive(Debug, Clone, Copy, Default)]
pub struct When {
    /// Monotonic: lives of keys.
    pub now: Moment,
    /// Wall clock: IP-D3P only.
    pub wall: Timestamp,
}

/// Every name of [`Dropped::name`].
pub const CAUSES: &[&str] = &[
    "malformed",
    "no_key",
    "not_sending",
    "no_match",
    "no_policy",
    "clear_text",
    "spent",
    "seal",
    "too_big",
    "unknown_spi",
    "not_receiving",
    "replay",
    "selector",
    "icv",
    "fragment",
    "dummy",
    "address",
    "congestion",
    "malformed_esp",
    "d3p_too_old",
    "d3p_too_new",
    "d3p_no_timestamp",
    "d3p_unexpected",
    "d3p_wrong_type",
    "d3p_wrong_length",
    "d3p_wrong_next_header",
];

/// Why a packet went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// No IP packet.
    Malformed(Malformed),
    /// Rules and policies.
    Blocked(Blocked),
    /// The SA has nothing left to number a packet with.
    Spent(Spi),
    /// It could not be sealed.
    Seal(SealError),
    /// Sealed it would be longer than the path takes.
    TooBig {
        /// Octets a packet may have to fit.
        room: usize,
    },
    /// ESP that no SA of ours opens, though our policy covers it.
    UnknownSpi(Spi),
    /// The key of that ESP has ended or is for sending only.
    NotReceiving(Spi),
    /// The sequence window.
    Replay(Replay),
    /// It could not be opened.
    Open(OpenError),
    /// Opened, but not of the SA's flow (RFC 4301 section 5.2).
    Selector(Spi),
}

impl Dropped {
    /// The name of its counter.
    pub fn name(self) -> &'static str {
        use crate::d3p::Refusal;
        match self {
            Dropped::Malformed(_) => "malformed",
            Dropped::Blocked(Blocked::NoKey) => "no_key",
            Dropped::Blocked(Blocked::NotSending) => "not_sending",
            Dropped::Blocked(Blocked::NoMatch) => "no_match",
            Dropped::Blocked(Blocked::NoPolicy) => "no_policy",
            Dropped::Blocked(Blocked::ClearText) => "clear_text",
            Dropped::Spent(_) => "spent",
            Dropped::Seal(_) => "seal",
            Dropped::TooBig { .. } => "too_big",
            Dropped::UnknownSpi(_) => "unknown_spi",
            Dropped::NotReceiving(_) => "not_receiving",
            Dropped::Replay(_) => "replay",
            Dropped::Selector(_) => "selector",
            Dropped::Open(error) => match error {
                OpenError::Icv => "icv",
                OpenError::Fragment => "fragment",
                OpenError::Dummy => "dummy",
                OpenError::Address => "address",
                OpenError::Congestion => "congestion",
                OpenError::Length | OpenError::Padding | OpenError::NextHeader(_) | OpenError::Inner(_) => {
                    "malformed_esp"
                }
                OpenError::Delay(Refusal::TooOld) => "d3p_too_old",
                OpenError::Delay(Refusal::TooNew) => "d3p_too_new",
                OpenError::Delay(Refusal::NoTimestamp) => "d3p_no_timestamp",
                OpenError::Delay(Refusal::Unexpected) => "d3p_unexpected",
                OpenError::Delay(Refusal::WrongType) => "d3p_wrong_type",
                OpenError::Delay(Refusal::WrongLength) => "d3p_wrong_length",
                OpenError::Delay(Refusal::WrongNextHeader) => "d3p_wrong_next_header",
            },
        }
    }
}

/// A packet that goes on.
#[derive(Debug, Clone)]
pub struct Passed {
    /// Where it is in the buffer.
    pub packet: Range<usize>,
    /// How it got there.
    pub how: How,
}

/// How a packet passed.
#[derive(Debug, Clone)]
pub enum How {
    /// In clear, because.
    Clear(Clear),
    /// Sealed or opened by this SA.
    Esp(Arc<Sa>),
}

/// What happened in one direction. A thread owns one; nothing is shared on the way of a packet.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Sealed or opened.
    pub protected: u64,
    /// Passed in clear by control, exclude rules and fail-open rules.
    pub clear: [u64; 3],
    /// Dropped, by name of the cause.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Outbound: packets sent in fragments. Inbound: ESP put together from fragments.
    pub fragmented: u64,
    /// Sealed packets the system did not send.
    pub not_sent: u64,
    /// Clocks of senders, inbound with IP-D3P only.
    pub skews: Skews,
}

/// What the path of a VPN takes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// DF of outer headers.
    pub df: DfBit,
    /// Octets of the longest ESP packet, outer header included.
    pub mtu: usize,
    /// What carries ESP that goes out. What comes in is taken from either.
    pub carrier: Carrier,
}

impl Counters {
    fn count(&mut self, result: Result<Passed, Dropped>) -> Result<Passed, Dropped> {
        match &result {
            Ok(Passed { how: How::Esp(_), .. }) => self.protected += 1,
            Ok(Passed { how: How::Clear(Clear::Control), .. }) => self.clear[0] += 1,
            Ok(Passed { how: How::Clear(Clear::Exclude(_)), .. }) => self.clear[1] += 1,
            Ok(Passed { how: How::Clear(Clear::FailOpen(_)), .. }) => self.clear[2] += 1,
            // What becomes of it is decided, and counted, by who sent it here.
            Err(Dropped::TooBig { .. }) => {}
            Err(why) => self.count_drop(*why),
        }
        result
    }

    /// Counts a packet that goes no further.
    pub fn count_drop(&mut self, why: Dropped) {
        *self.dropped.entry(why.name()).or_default() += 1;
    }
}

/// What goes out. `buffer` has [`esp::HEADROOM`] octets before and [`esp::TAILROOM`] behind `packet`.
///
/// # Errors
/// [`Dropped`]; it is counted, but for [`Dropped::TooBig`]: then the packet is as it was.
pub fn outbound(
    gspd: &Gspd,
    counters: &mut Counters,
    when: When,
    shape: Shape,
    buffer: &mut [u8],
    packet: Range<usize>,
) -> Result<Passed, Dropped> {
    match Header::read(buffer.get(packet.clone()).unwrap_or_default()) {
        Ok(header) => {
            let decided = gspd.outbound(&header, when.now);
            outbound_by(decided, counters, when, shape, &header, buffer, packet)
        }
        Err(why) => counters.count(Err(Dropped::Malformed(why))),
    }
}

/// What goes out by a decision that was made at the same moment for this packet, or one of its flow. `header` is that of
/// the packet.
///
/// # Errors
/// As [`outbound`].
pub fn outbound_by(
    decided: Outbound<'_>,
    counters: &mut Counters,
    when: When,
    shape: Shape,
    header: &Header,
    buffer: &mut [u8],
    packet: Range<usize>,
) -> Result<Passed, Dropped> {
    let result = match decided {
        Outbound::Clear(why) => Ok(Passed { packet, how: How::Clear(why) }),
        Outbound::Drop(why) => Err(Dropped::Blocked(why)),
        Outbound::Seal(sa) => {
            let stamped = sa.delay_detection.is_some();
            let room =
                esp::room(sa.keys.shape(), sa.encapsulation, shape.carrier, header, stamped, shape.mtu);
            match header.total > room {
                true => Err(Dropped::TooBig { room }),
                false => seal(sa, when, shape, header, buffer, packet),
            }
        }
    };
    counters.count(result)
}

/// Seals one fragment of a packet that was [`Dropped::TooBig`] with the SA of the whole.
///
/// # Errors
/// [`Dropped`]; it is counted.
pub fn outbound_fragment(
    sa: &Arc<Sa>,
    counters: &mut Counters,
    when: When,
    shape: Shape,
    buffer: &mut [u8],
    packet: Range<usize>,
) -> Result<Passed, Dropped> {
    let result = Header::read(buffer.get(packet.clone()).unwrap_or_default())
        .map_err(Dropped::Malformed)
        .and_then(|header| seal(sa, when, shape, &header, buffer, packet));
    counters.count(result)
}

fn seal(
    sa: &Arc<Sa>,
    when: When,
    shape: Shape,
    header: &Header,
    buffer: &mut [u8],
    packet: Range<usize>,
) -> Result<Passed, Dropped> {
    let stamp = sa.stamp(header.total).map_err(|_| Dropped::Spent(sa.spi))?;
    let [.., high, low] = stamp.sequence.to_be_bytes();
    let how = Sealing {
        keys: &sa.keys,
        spi: sa.spi,
        encapsulation: sa.encapsulation,
        carrier: shape.carrier,
        stamp,
        timestamp: sa.delay_detection.map(|_| when.wall),
        df: shape.df,
        identification: u16::from_be_bytes([high, low]),
    };
    let packet = esp::seal_read(&how, buffer, packet, header).map_err(Dropped::Seal)?;
    Ok(Passed { packet, how: How::Esp(Arc::clone(sa)) })
}

/// What comes in. ESP with a known SPI is opened whatever carries it, so that members can be moved from one carrier to the
/// other one by one; with an unknown SPI it is ESP of ours in the `expected` carrier only.
///
/// # Errors
/// [`Dropped`]; it is counted.
pub fn inbound(
    gspd: &Gspd,
    counters: &mut Counters,
    when: When,
    expected: Carrier,
    buffer: &mut [u8],
    packet: Range<usize>,
) -> Result<Passed, Dropped> {
    let result = open(gspd, counters, when, expected, buffer, packet);
    counters.count(result)
}

fn open(
    gspd: &Gspd,
    counters: &mut Counters,
    when: When,
    expected: Carrier,
    buffer: &mut [u8],
    packet: Range<usize>,
) -> Result<Passed, Dropped> {
    let octets = buffer.get(packet.clone()).unwrap_or_default();
    let outer = Header::read(octets).map_err(Dropped::Malformed)?;
    let ours = esp::peek(octets, &outer);
    let Some((sa, peeked)) = ours.and_then(|peeked| Some((gspd.find(peeked.spi)?, peeked))) else {
        let stranger = ours.filter(|peeked| peeked.carrier == expected);
        return match (gspd.inbound(&outer, when.now), stranger) {
            (Inbound::Clear(why), _) => Ok(Passed { packet, how: How::Clear(why) }),
            // ESP between hosts that our policy says nothing about is none of our keys.
            (Inbound::Drop(Blocked::ClearText | Blocked::NoKey | Blocked::NoPolicy), Some(peeked)) => {
                Err(Dropped::UnknownSpi(peeked.spi))
            }
            (Inbound::Drop(why), _) => Err(Dropped::Blocked(why)),
        };
    };
    if !sa.receives(when.now) {
        return Err(Dropped::NotReceiving(sa.spi));
    }
    let Peeked { sequence, carrier, .. } = peeked;
    sa.check_sequence(sequence).map_err(Dropped::Replay)?;
    let how = Opening {
        keys: &sa.keys,
        encapsulation: sa.encapsulation,
        carrier,
        window: sa.delay_detection,
        now: when.wall,
    };
    let opened = match esp::open(&how, buffer, packet, &outer) {
        Ok(opened) => opened,
        Err(refused) => {
            if let Some(skew) = refused.skew {
                counters.skews.note(outer.source, skew, true);
            }
            return Err(Dropped::Open(refused.error));
        }
    };
    if let Some(skew) = opened.skew {
        counters.skews.note(outer.source, skew, false);
    }
    sa.accept_sequence(sequence).map_err(Dropped::Replay)?;
    if !sa.selector.matches_either_way(&opened.header) {
        return Err(Dropped::Selector(sa.spi));
    }
    sa.count_opened(opened.header.total);
    Ok(Passed { packet: opened.packet, how: How::Esp(Arc::clone(sa)) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::Rules;
    use crate::sa::SEED;
    use crate::sa::tests::{cbc, gcm};
    use crate::selector::tests::selector;

    const PING: &str = "4500002000014000401126bc0a0100050a0200099c400009000c000067646f69";

    const WIDE: Shape = Shape { df: DfBit::Copy, mtu: 1500, carrier: Carrier::Raw };

    fn member(tek: &crate::TekInstall) -> Gspd {
        let mut gspd = Gspd::new(Rules::default());
        let mut sa = Sa::new(tek, Duration::ZERO, &[3; SEED]).unwrap();
        sa.selector = selector("10.0.0.0/8", "10.0.0.0/8");
        sa.activate(1).unwrap();
        gspd.install(Arc::new(sa));
        gspd
    }

    fn sealed(gspd: &Gspd, counters: &mut Counters, inner: &[u8]) -> Result<Vec<u8>, Dropped> {
        sealed_as(WIDE, gspd, counters, inner)
    }

    fn sealed_as(
        shape: Shape,
        gspd: &Gspd,
        counters: &mut Counters,
        inner: &[u8],
    ) -> Result<Vec<u8>, Dropped> {
        let mut buffer = vec![0; esp::HEADROOM];
        buffer.extend_from_slice(inner);
        buffer.extend([0; esp::TAILROOM]);
        let packet = esp::HEADROOM..esp::HEADROOM + inner.len();
        let passed = outbound(gspd, counters, When::default(), shape, &mut buffer, packet)?;
        Ok(buffer[passed.packet].to_vec())
    }

    fn opened(gspd: &Gspd, counters: &mut Counters, when: When, outer: &[u8]) -> Result<Vec<u8>, Dropped> {
        let mut buffer = outer.to_vec();
        let passed = inbound(gspd, counters, when, Carrier::Raw, &mut buffer, 0..outer.len())?;
        Ok(buffer[passed.packet].to_vec())
    }

    #[test]
    fn a_packet_crosses_two_members_and_everything_is_counted() {
        let ping = hex::decode(PING).unwrap();
        let mut teks = vec![gcm(300), cbc(300)];
        for tek in teks.clone() {
            let mut transport = tek;
            transport.policy.encapsulation = gdoi_proto::policy::Encapsulation::Transport;
            teks.push(transport);
        }
        for tek in teks {
            let (here, there) = (member(&tek), member(&tek));
            let (mut out, mut inn) = (Counters::default(), Counters::default());
            let esp = sealed(&here, &mut out, &ping).unwrap();
            assert_eq!((esp[9], &esp[12..20]), (50, &ping[12..20]));
            assert_eq!(opened(&there, &mut inn, When::default(), &esp).unwrap(), ping);
            assert_eq!((out.protected, inn.protected), (1, 1));
            let sa = there.find(Spi(300)).unwrap();
            assert_eq!((sa.counters().packets_in, sa.counters().octets_in), (1, 32));
        }
    }

    #[test]
    fn the_longest_packet_that_fits_is_sealed_and_one_octet_more_is_not() {
        for tek in [gcm(300), cbc(300)] {
            let gspd = member(&tek);
            let long = |octets: usize| {
                let mut packet = hex::decode(PING).unwrap();
                packet.resize(octets, 0);
                packet[2..4].copy_from_slice(&u16::try_from(octets).unwrap().to_be_bytes());
                packet
            };
            let mut counters = Counters::default();
            let Err(Dropped::TooBig { room }) = sealed(&gspd, &mut counters, &long(1500)) else {
                panic!("1500 octets do not fit");
            };
            assert!(counters.dropped.is_empty(), "its sender may do better");
            let esp = sealed(&gspd, &mut counters, &long(room)).unwrap();
            assert!((1497 - 12..=1500).contains(&esp.len()), "{} octets", esp.len());
            assert_eq!(sealed(&gspd, &mut counters, &long(room + 1)).unwrap_err(), Dropped::TooBig { room });
        }
    }

    #[test]
    fn clear_text_unknown_spis_and_old_keys_are_dropped_by_cause() {
        let ping = hex::decode(PING).unwrap();
        let (here, there) = (member(&gcm(300)), member(&gcm(301)));
        let mut counters = Counters::default();
        let esp = sealed(&here, &mut Counters::default(), &ping).unwrap();
        let mut drop = |when, packet: &[u8]| opened(&there, &mut counters, when, packet).unwrap_err();
        assert_eq!(drop(When::default(), &ping), Dropped::Blocked(Blocked::ClearText));
        assert_eq!(drop(When::default(), &esp), Dropped::UnknownSpi(Spi(300)));
        let late = When { now: Duration::from_secs(3600), ..When::default() };
        let ours = sealed(&there, &mut Counters::default(), &ping).unwrap();
        assert_eq!(drop(late, &ours), Dropped::NotReceiving(Spi(301)));
        assert_eq!(drop(When::default(), &[0x45]), Dropped::Malformed(Malformed::Truncated));
        assert_eq!(
            counters.dropped.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>(),
            ["clear_text 1", "malformed 1", "not_receiving 1", "unknown_spi 1"]
        );
    }

    #[test]
    fn esp_in_udp_is_opened_whatever_is_expected_and_a_stranger_only_where_it_is() {
        let ping = hex::decode(PING).unwrap();
        let (here, there) = (member(&gcm(300)), member(&gcm(300)));
        let udp = Shape { carrier: Carrier::Udp, ..WIDE };
        let mut counters = Counters::default();
        let mut esp = sealed_as(udp, &here, &mut counters, &ping).unwrap();
        assert_eq!((esp[9], &esp[12..20], &esp[20..24]), (17, &ping[12..20], &[0x11, 0x94, 0x11, 0x94][..]));
        assert_eq!(opened(&there, &mut counters, When::default(), &esp).unwrap(), ping);
        let mut come = |expected, esp: &[u8]| {
            let mut buffer = esp.to_vec();
            inbound(&there, &mut counters, When::default(), expected, &mut buffer, 0..esp.len()).unwrap_err()
        };
        esp[31] ^= 1;
        assert_eq!(come(Carrier::Udp, &esp), Dropped::UnknownSpi(Spi(301)));
        assert_eq!(come(Carrier::Raw, &esp), Dropped::Blocked(Blocked::ClearText));
        esp[28..32].fill(0);
        assert_eq!(come(Carrier::Udp, &esp), Dropped::Blocked(Blocked::ClearText), "ISAKMP of somebody else");
        let long = |octets: u16| {
            let mut packet = hex::decode(PING).unwrap();
            packet.resize(octets.into(), 0);
            packet[2..4].copy_from_slice(&octets.to_be_bytes());
            packet
        };
        let Err(Dropped::TooBig { room }) = sealed_as(udp, &here, &mut counters, &long(1500)) else {
            panic!("1500 octets do not fit");
        };
        let room = u16::try_from(room).unwrap();
        let longest = sealed_as(udp, &here, &mut counters, &long(room)).unwrap().len();
        assert!((1497..=1500).contains(&longest), "{longest} octets");
        assert!(sealed_as(udp, &here, &mut counters, &long(room + 1)).is_err());
    }

    #[test]
    fn what_the_key_opens_must_still_be_of_its_flow() {
        let mut inner = hex::decode(PING).unwrap();
        let mut wide = Gspd::new(Rules::default());
        let sa = Sa::new(&gcm(300), Duration::ZERO, &[3; SEED]).unwrap();
        sa.activate(1).unwrap();
        wide.install(Arc::new(sa));
        inner[12] = 11;
        let esp = sealed(&wide, &mut Counters::default(), &inner).unwrap();
        let there = member(&gcm(300));
        let dropped = opened(&there, &mut Counters::default(), When::default(), &esp);
        assert_eq!(dropped, Err(Dropped::Selector(Spi(300))));
    }

    #[test]
    fn the_skew_of_a_sender_is_known_before_and_after_it_is_refused() {
        let mut tek = gcm(300);
        tek.delay_detection = Some(Duration::from_secs(1));
        let (here, there) = (member(&tek), member(&tek));
        let mut counters = Counters::default();
        for (microseconds, good) in [(300_000, true), (700_000, false)] {
            let esp = sealed(&here, &mut Counters::default(), &hex::decode(PING).unwrap()).unwrap();
            let wall = Timestamp { seconds: 0, microseconds };
            let result = opened(&there, &mut counters, When { wall, ..When::default() }, &esp);
            assert_eq!(result.is_ok(), good);
        }
        let (_, skew) = counters.skews.iter().next().unwrap();
        assert_eq!((skew.last, skew.most, skew.refused), (-700_000, -300_000, 1));
        assert_eq!(counters.dropped.get("d3p_too_old"), Some(&1));
    }
}
