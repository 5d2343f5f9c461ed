//! Informational exchange, Delete of the ISAKMP SA, dead-peer detection (RFC 2409 section 5.7, RFC 3706).

use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::attribute::Attribute;
use gdoi_proto::codec::Reader;
use gdoi_proto::header::Header;
use gdoi_proto::ids::CookiePair;
use gdoi_proto::payload::{Delete, Notify, Payload};
use gdoi_proto::registry::{Doi, ExchangeType, NotifyType, PayloadType};

use super::phase2::Exchange;
use super::{OpenError, Opened};
use crate::io::Entropy;
use crate::phase1::proposal;
use crate::sa::IkeSa;

/// Protocol-ID of the ISAKMP SA under DOI 0 and 1.
const PROTO_ISAKMP: u8 = 1;

/// What a protected informational message said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Informational {
    /// The peer deleted this ISAKMP SA.
    DeleteIsakmp,
    /// R-U-THERE with its number.
    RUThere(u32),
    /// R-U-THERE-ACK with its number.
    RUThereAck(u32),
    /// INITIAL-CONTACT.
    InitialContact,
    /// RESPONDER-LIFETIME: how long the peer lets this SA live.
    ResponderLifetime(Duration),
    /// Any other notification.
    Notified(NotifyType),
}

/// Seals one informational message in an exchange of its own.
pub fn seal(sa: &mut IkeSa, payloads: &[Payload], entropy: &mut dyn Entropy) -> Bytes {
    let message_id = sa.fresh_message_id(entropy);
    Exchange::new(sa, ExchangeType::Informational, message_id).seal(sa, &[], payloads)
}

/// Opens an informational message: a repeated message ID is refused, a good one remembered.
///
/// # Errors
/// [`OpenError`]; never answered.
pub fn open(sa: &mut IkeSa, header: &Header, octets: &[u8]) -> Result<Opened<Vec<Informational>>, OpenError> {
    if header.message_id.0 == 0 {
        return Err(OpenError::Header("message ID 0"));
    }
    if sa.was_seen(header.message_id) {
        return Err(OpenError::Replay);
    }
    let mut exchange = Exchange::new(sa, ExchangeType::Informational, header.message_id);
    let payloads = exchange.open(sa, header, octets, &[])?.into_inner();
    sa.remember(header.message_id);
    let cookies = sa.cookies.octets();
    Ok(Opened::new(payloads.iter().filter_map(|payload| read(payload, &cookies)).collect()))
}

fn read(payload: &Payload, cookies: &[u8; 16]) -> Option<Informational> {
    match payload {
        // DOI 2 with a 16-octet SPI can only mean the ISAKMP SA: ESP SPIs have 4 octets.
        Payload::Delete(delete) => (delete.protocol == PROTO_ISAKMP
            && delete.spi_size == 16
            && delete.spis.iter().any(|spi| spi.as_slice() == cookies))
        .then_some(Informational::DeleteIsakmp),
        Payload::Notify(notify) => {
            let kind = NotifyType::from_number(notify.kind);
            let number = || <[u8; 4]>::try_from(notify.data.as_slice()).ok().map(u32::from_be_bytes);
            let ours = notify.spi.as_slice() == cookies;
            match kind {
                NotifyType::RUThere if ours => number().map(Informational::RUThere),
                NotifyType::RUThereAck if ours => number().map(Informational::RUThereAck),
                NotifyType::RUThere | NotifyType::RUThereAck => None,
                NotifyType::InitialContact => about(notify, cookies).then_some(Informational::InitialContact),
                NotifyType::ResponderLifetime if ours && notify.protocol == PROTO_ISAKMP => {
                    responder_lifetime(&notify.data).map(Informational::ResponderLifetime)
                }
                other => Some(Informational::Notified(other)),
            }
        }
        _ => None,
    }
}

/// True where a notification about an ISAKMP SA names the one of `cookies`, or none: some peers leave the SPI out.
pub(crate) fn about(notify: &Notify, cookies: &[u8; 16]) -> bool {
    notify.spi.is_empty() || notify.spi.as_slice() == cookies
}

/// The life a RESPONDER-LIFETIME states, in attributes as phase 1 numbers them (RFC 2407 section 4.6.3.1). Some peers mix
/// the numbers of both phases: that says nothing.
pub(crate) fn responder_lifetime(data: &[u8]) -> Option<Duration> {
    Attribute::decode_all(Reader::new(PayloadType::Notify, data))
        .ok()
        .and_then(|pairs| proposal::life(&pairs))
}

/// Delete of the ISAKMP SA: DOI 0, because under DOI 2 protocol 1 is ESP.
pub fn delete_isakmp(cookies: CookiePair) -> Payload {
    Payload::Delete(Delete {
        doi: Doi::Isakmp,
        protocol: PROTO_ISAKMP,
        spi_size: 16,
        spis: vec![cookies.octets().to_vec()],
    })
}

/// A notification about the ISAKMP SA.
pub fn notification(cookies: CookiePair, kind: NotifyType) -> Payload {
    Payload::Notify(Notify {
        doi: Doi::Isakmp,
        protocol: PROTO_ISAKMP,
        spi: cookies.octets().to_vec(),
        kind: kind.number(),
        data: Vec::new(),
    })
}

/// INITIAL-CONTACT: IPsec DOI, no data (RFC 2407 section 4.6.3.3).
pub fn initial_contact(cookies: CookiePair) -> Payload {
    Payload::Notify(Notify {
        doi: Doi::Ipsec,
        protocol: PROTO_ISAKMP,
        spi: cookies.octets().to_vec(),
        kind: NotifyType::InitialContact.number(),
        data: Vec::new(),
    })
}

/// R-U-THERE or its acknowledgement (RFC 3706 section 5.2).
pub fn dpd(cookies: CookiePair, kind: NotifyType, number: u32) -> Payload {
    Payload::Notify(Notify {
        doi: Doi::Ipsec,
        protocol: PROTO_ISAKMP,
        spi: cookies.octets().to_vec(),
        kind: kind.number(),
        data: number.to_be_bytes().to_vec(),
    })
}
