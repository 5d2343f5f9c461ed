//! From a clear packet to ESP, in place: headers go before it, padding and ICV behind it.

use std::ops::Range;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::Encapsulation;
use thiserror::Error;

use super::Keys;
use super::packet::{Carrier, DfBit, ESP_HEADER, TRAILER, outer_v4, outer_v6, put, rewrite, udp_header};
use crate::d3p::{self, Timestamp};
use crate::header::{Fragment, Header, Malformed, protocol};
use crate::sa::Stamp;

/// Padding octets (RFC 4303 section 2.4).
const PADDING: [u8; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Why a packet cannot be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// It is no packet.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The buffer lacks room before or behind it.
    #[error("no room in the buffer")]
    NoRoom,
    /// It would be longer than 65535 octets.
    #[error("too long")]
    TooLong,
    /// Transport mode takes whole datagrams only (RFC 4303 section 3.3.4).
    #[error("a fragment in transport mode")]
    Fragment,
}

/// How to seal.
#[derive(Debug, Clone, Copy)]
pub struct Sealing<'a> {
    /// The keys.
    pub keys: &'a Keys,
    /// The SPI.
    pub spi: Spi,
    /// Tunnel, with both addresses preserved, or transport.
    pub encapsulation: Encapsulation,
    /// What carries it.
    pub carrier: Carrier,
    /// Sequence number and IV, never used before under these keys.
    pub stamp: Stamp,
    /// IP-D3P.
    pub timestamp: Option<Timestamp>,
    /// DF of an outer IPv4 header.
    pub df: DfBit,
    /// Identification of an outer IPv4 header.
    pub identification: u16,
}

/// Seals the packet at `packet` in `buffer`, which needs [`super::HEADROOM`] octets before and [`super::TAILROOM`]
/// behind it, and returns where the sealed one is. On error the buffer may hold anything.
///
/// # Errors
/// [`SealError`].
pub fn seal(how: &Sealing<'_>, buffer: &mut [u8], packet: Range<usize>) -> Result<Range<usize>, SealError> {
    let inner = Header::read(buffer.get(packet.clone()).ok_or(SealError::NoRoom)?)?;
    seal_read(how, buffer, packet, &inner)
}

/// [`seal`] for a packet whose header has been read.
pub(crate) fn seal_read(
    how: &Sealing<'_>,
    buffer: &mut [u8],
    packet: Range<usize>,
    inner: &Header,
) -> Result<Range<usize>, SealError> {
    let shape = how.keys.shape();
    let stamp = if how.timestamp.is_some() { d3p::LENGTH } else { 0 };
    let front = ESP_HEADER + shape.iv + stamp;
    // Where the payload begins, and what it is.
    let (payload, next) = match how.encapsulation {
        Encapsulation::Tunnel => (packet.start, if inner.is_v4() { protocol::IPV4 } else { protocol::IPV6 }),
        Encapsulation::Transport if inner.fragment != Fragment::Whole => return Err(SealError::Fragment),
        Encapsulation::Transport => (packet.start + inner.length, inner.protocol),
    };
    let payload_end = packet.start + inner.total;
    let text_len = payload_end - payload + stamp;
    let padding = (text_len + TRAILER).next_multiple_of(shape.align) - text_len - TRAILER;
    let body_end = payload_end + padding + TRAILER;
    let esp = payload.checked_sub(front).ok_or(SealError::NoRoom)?;
    let end = body_end + shape.icv;
    if buffer.len() < end {
        return Err(SealError::NoRoom);
    }
    let start = match how.encapsulation {
        Encapsulation::Tunnel => put_outer(how, buffer, inner, packet.start, esp, end)?,
        Encapsulation::Transport => {
            let start = packet.start.checked_sub(front + how.carrier.octets()).ok_or(SealError::NoRoom)?;
            buffer.copy_within(packet.start..packet.start + inner.length, start);
            let sealed = buffer.get_mut(start..end).ok_or(SealError::NoRoom)?;
            rewrite(sealed, inner, how.carrier.protocol(), end - start).ok_or(SealError::TooLong)?;
            start
        }
    };
    if how.carrier == Carrier::Udp {
        let udp = udp_header(end - esp).ok_or(SealError::TooLong)?;
        let at = esp.checked_sub(udp.len()).ok_or(SealError::NoRoom)?;
        put(buffer, at, &udp).then_some(()).ok_or(SealError::NoRoom)?;
    }
    let body = buffer.get_mut(esp..body_end).ok_or(SealError::NoRoom)?;
    let mut placed = put(body, 0, &how.spi.0.to_be_bytes());
    placed &= put(body, 4, &how.stamp.sequence.to_be_bytes());
    placed &= put(body, ESP_HEADER, how.stamp.iv.get(..shape.iv).unwrap_or_default());
    let next = match how.timestamp {
        Some(time) => {
            placed &= put(body, ESP_HEADER + shape.iv, &time.encode(next));
            d3p::PROTOCOL
        }
        None => next,
    };
    placed &= put(body, payload_end - esp, PADDING.get(..padding).unwrap_or_default());
    // At most 15 octets of padding.
    placed &= put(body, body_end - esp - TRAILER, &[padding as u8, next]);
    if !placed {
        return Err(SealError::NoRoom);
    }
    let icv = how.keys.seal(body, ESP_HEADER + shape.iv).map_err(|_| SealError::TooLong)?;
    match put(buffer, body_end, icv.get(..shape.icv).unwrap_or_default()) {
        true => Ok(start..end),
        false => Err(SealError::NoRoom),
    }
}

fn put_outer(
    how: &Sealing<'_>,
    buffer: &mut [u8],
    inner: &Header,
    inner_at: usize,
    esp: usize,
    end: usize,
) -> Result<usize, SealError> {
    if inner.is_v4() {
        let start = esp.checked_sub(20 + how.carrier.octets()).ok_or(SealError::NoRoom)?;
        let total = u16::try_from(end - start).map_err(|_| SealError::TooLong)?;
        let outer =
            outer_v4(inner, how.carrier, total, how.df, how.identification).ok_or(SealError::NoRoom)?;
        put(buffer, start, &outer).then_some(start).ok_or(SealError::NoRoom)
    } else {
        let start = esp.checked_sub(40 + how.carrier.octets()).ok_or(SealError::NoRoom)?;
        let payload = u16::try_from(end - start - 40).map_err(|_| SealError::TooLong)?;
        let inner = buffer.get(inner_at..).ok_or(SealError::NoRoom)?;
        let outer = outer_v6(inner, how.carrier, payload).ok_or(SealError::NoRoom)?;
        put(buffer, start, &outer).then_some(start).ok_or(SealError::NoRoom)
    }
}
