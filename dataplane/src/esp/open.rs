//! From ESP to the clear packet, in place. Nothing of it is believed before the ICV verified.

use std::ops::Range;
use std::time::Duration;

use gdoi_proto::policy::Encapsulation;
use thiserror::Error;

use super::Keys;
use super::packet::{Carrier, ESP_HEADER, TRAILER, merge_ecn, rewrite, shifted};
use crate::d3p::{self, Refusal, Timestamp};
use crate::header::{Fragment, Header, Malformed, protocol};

/// Why an ESP packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Too short, or not a whole number of blocks.
    #[error("impossible length")]
    Length,
    /// A fragment; it must be put together first (RFC 4303 section 3.4.1).
    #[error("a fragment")]
    Fragment,
    /// The ICV does not verify.
    #[error("the ICV does not verify")]
    Icv,
    /// Padding is not 1, 2, 3 ...
    #[error("wrong padding")]
    Padding,
    /// A dummy packet: not an error (RFC 4303 section 2.6).
    #[error("a dummy packet")]
    Dummy,
    /// Not what tunnel mode carries.
    #[error("next header {0} in a tunnel")]
    NextHeader(u8),
    /// The inner packet is none.
    #[error("inner packet: {0}")]
    Inner(#[from] Malformed),
    /// Outer and inner addresses differ (RFC 5374 section 5.2).
    #[error("outer and inner addresses differ")]
    Address,
    /// Congestion experienced by a packet whose ends do not know ECN (RFC 6040 section 4.2).
    #[error("congestion experienced without ECN")]
    Congestion,
    /// IP-D3P.
    #[error(transparent)]
    Delay(#[from] Refusal),
}

/// How to open.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The keys.
    pub keys: &'a Keys,
    /// Tunnel, with both addresses preserved, or transport.
    pub encapsulation: Encapsulation,
    /// What carries it, as [`super::peek`] says.
    pub carrier: Carrier,
    /// Width of the window of IP-D3P timestamps, when the policy wants them.
    pub window: Option<Duration>,
    /// Our wall clock.
    pub now: Timestamp,
}

/// An opened packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Where it is in the buffer.
    pub packet: Range<usize>,
    /// Its header.
    pub header: Header,
    /// How far the sender's clock was from ours, in microseconds, when it told.
    pub skew: Option<i64>,
}

/// A packet whose ICV verified and whose timestamp did not please: the skew is worth knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub error: OpenError,
    /// As in [`Opened`].
    pub skew: Option<i64>,
}

impl<E: Into<OpenError>> From<E> for Refused {
    fn from(error: E) -> Refused {
        Refused { error: error.into(), skew: None }
    }
}

/// Opens the ESP packet at `packet` in `buffer`, whose outer header is `outer`. Its sequence number has been checked, and
/// is accepted by the caller afterwards. On error the buffer may hold anything.
///
/// # Errors
/// [`Refused`].
pub fn open(
    how: &Opening<'_>,
    buffer: &mut [u8],
    packet: Range<usize>,
    outer: &Header,
) -> Result<Opened, Refused> {
    if outer.fragment != Fragment::Whole {
        return Err(OpenError::Fragment.into());
    }
    let shape = how.keys.shape();
    let base = packet.start;
    let whole = buffer.get_mut(packet.start..packet.start.saturating_add(outer.total));
    let whole = whole.ok_or(OpenError::Length)?;
    let text_at = ESP_HEADER + shape.iv;
    let esp = outer.length + how.carrier.octets();
    let body_len = outer.total.checked_sub(esp + shape.icv).ok_or(OpenError::Length)?;
    let text_len = body_len.checked_sub(text_at).ok_or(OpenError::Length)?;
    if text_len < TRAILER || text_len % shape.align != 0 {
        return Err(OpenError::Length.into());
    }
    let (body, icv) =
        whole.get_mut(esp..).and_then(|rest| rest.split_at_mut_checked(body_len)).ok_or(OpenError::Length)?;
    how.keys.open(body, text_at, icv).map_err(|_| OpenError::Icv)?;

    let [padding, mut next] = *body.last_chunk::<TRAILER>().ok_or(OpenError::Length)?;
    let payload_len = text_len.checked_sub(TRAILER + usize::from(padding)).ok_or(OpenError::Padding)?;
    let mut payload = text_at..text_at + payload_len;
    let pad = body.get(payload.end..payload.end + usize::from(padding)).ok_or(OpenError::Padding)?;
    if !pad.iter().zip(1u8..).all(|(found, wanted)| *found == wanted) {
        return Err(OpenError::Padding.into());
    }
    if next == protocol::NONE {
        return Err(OpenError::Dummy.into());
    }
    let mut skew = None;
    match (how.window, next == d3p::PROTOCOL) {
        (Some(_), false) => return Err(Refusal::NoTimestamp.into()),
        // In a transport SA it may be the protocol itself (draft-weis-delay-detection-03 section 2).
        (None, true) if how.encapsulation == Encapsulation::Tunnel => return Err(Refusal::Unexpected.into()),
        (Some(width), true) => {
            let (following, time) = Timestamp::decode(body.get(payload.clone()).unwrap_or_default())?;
            let measured = time.skew(how.now);
            time.check(how.now, width)
                .map_err(|refusal| Refused { error: refusal.into(), skew: Some(measured) })?;
            let tunnel = how.encapsulation == Encapsulation::Tunnel;
            if tunnel && ![protocol::IPV4, protocol::IPV6].contains(&following) {
                return Err(Refusal::WrongNextHeader.into());
            }
            next = following;
            payload.start += d3p::LENGTH;
            skew = Some(measured);
        }
        (None, _) => {}
    }
    match how.encapsulation {
        Encapsulation::Tunnel => {
            let inner_at = shifted(payload, esp);
            let inner = whole.get_mut(inner_at.clone()).ok_or(OpenError::Length)?;
            let header = Header::read(inner)?;
            match (next, header.is_v4()) {
                (protocol::IPV4, true) | (protocol::IPV6, false) => {}
                _ => return Err(OpenError::NextHeader(next).into()),
            }
            if (header.source, header.destination) != (outer.source, outer.destination) {
                return Err(OpenError::Address.into());
            }
            if !merge_ecn(inner, &header, outer.traffic_class) {
                return Err(OpenError::Congestion.into());
            }
            let start = base + inner_at.start;
            Ok(Opened { packet: start..start + header.total, header, skew })
        }
        Encapsulation::Transport => {
            // The IP header moves to the payload.
            let start = esp + payload.start - outer.length;
            whole.copy_within(..outer.length, start);
            let end = esp + payload.end;
            let clear = whole.get_mut(start..end).ok_or(OpenError::Length)?;
            rewrite(clear, outer, next, end - start).ok_or(OpenError::Length)?;
            let header = Header::read(clear)?;
            Ok(Opened { packet: base + start..base + end, header, skew })
        }
    }
}
