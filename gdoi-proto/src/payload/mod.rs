//! One file per payload: layout, struct, decode, encode, tests.

mod cert;
mod delete;
mod gap;
mod gdoi_sa;
pub(crate) mod id;
mod iec61850;
mod kd;
mod lkh;
mod natd;
mod nonce;
mod notify;
mod sa;
mod sak;
mod sat;
mod seq;

pub use cert::{Certificate, CertificateRequest};
pub use delete::Delete;
pub use gap::{ACTIVATION_TIME_DELAY, DEACTIVATION_TIME_DELAY, Gap, SENDER_ID_REQUEST};
pub use gdoi_sa::GdoiSa;
pub use id::Identification;
pub use iec61850::Iec61850Tek;
pub use kd::{KeyDownload, KeyPacket};
pub use lkh::{LkhDownload, LkhKey, LkhUpdate};
pub use natd::NatOa;
pub use notify::Notify;
pub use sa::{Proposal, Sa, Transform};
pub use sak::{Endpoint, SaKek};
pub use sat::{EspTek, SaTek};

use std::ops::RangeInclusive;

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::SeqNumber;
use crate::message::{Domain, Rules};
use crate::registry::PayloadType;

/// A decoded payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Phase 1 SA with its proposals.
    Sa(Sa),
    /// SA of the group DOI: SAK, GAP, SATs.
    GdoiSa(GdoiSa),
    /// Public Diffie-Hellman value, raw.
    Ke(Vec<u8>),
    /// Identity, or the name of a group.
    Id(Identification),
    /// Certificate.
    Cert(Certificate),
    /// Certificate request.
    CertRequest(CertificateRequest),
    /// Hash, raw.
    Hash(Vec<u8>),
    /// Signature, raw.
    Sig(Vec<u8>),
    /// Nonce, raw.
    Nonce(Vec<u8>),
    /// Notification.
    Notify(Notify),
    /// Delete.
    Delete(Delete),
    /// Vendor ID, raw.
    VendorId(Vec<u8>),
    /// NAT detection hash, raw.
    NatD(Vec<u8>),
    /// Original address.
    NatOa(NatOa),
    /// Key download.
    Kd(KeyDownload),
    /// Sequence number.
    Seq(SeqNumber),
    /// Group associated policy (message 3 of a PULL).
    Gap(Gap),
}

impl Payload {
    /// The payload's type.
    pub fn payload_type(&self) -> PayloadType {
        match self {
            Payload::Sa(_) | Payload::GdoiSa(_) => PayloadType::Sa,
            Payload::Ke(_) => PayloadType::Ke,
            Payload::Id(_) => PayloadType::Id,
            Payload::Cert(_) => PayloadType::Cert,
            Payload::CertRequest(_) => PayloadType::CertRequest,
            Payload::Hash(_) => PayloadType::Hash,
            Payload::Sig(_) => PayloadType::Sig,
            Payload::Nonce(_) => PayloadType::Nonce,
            Payload::Notify(_) => PayloadType::Notify,
            Payload::Delete(_) => PayloadType::Delete,
            Payload::VendorId(_) => PayloadType::VendorId,
            Payload::NatD(_) => PayloadType::NatD,
            Payload::NatOa(_) => PayloadType::NatOa,
            Payload::Kd(_) => PayloadType::Kd,
            Payload::Seq(_) => PayloadType::Seq,
            Payload::Gap(_) => PayloadType::Gap,
        }
    }

    /// Reads the body of the payload that `r` names.
    pub(crate) fn decode(r: Reader<'_>, rules: Rules) -> Result<Payload, DecodeError> {
        Ok(match r.payload() {
            PayloadType::Sa => match rules.domain {
                Domain::Phase1 => Payload::Sa(Sa::decode(r, rules.dialect)?),
                Domain::Group => Payload::GdoiSa(GdoiSa::decode(r, rules.dialect)?),
            },
            PayloadType::Ke => Payload::Ke(raw(r, "public value", ANY)?),
            PayloadType::Id => Payload::Id(Identification::decode(r, rules.domain)?),
            PayloadType::Cert => Payload::Cert(Certificate::decode(r)?),
            PayloadType::CertRequest => Payload::CertRequest(CertificateRequest::decode(r)?),
            PayloadType::Hash => Payload::Hash(raw(r, "hash", ANY)?),
            PayloadType::Sig => Payload::Sig(raw(r, "signature", ANY)?),
            PayloadType::Nonce => Payload::Nonce(nonce::decode(r, rules.domain)?),
            PayloadType::Notify => Payload::Notify(Notify::decode(r)?),
            PayloadType::Delete => Payload::Delete(Delete::decode(r, rules.domain)?),
            PayloadType::VendorId => Payload::VendorId(raw(r, "vendor ID", ANY)?),
            PayloadType::NatD => Payload::NatD(raw(r, "hash", ANY)?),
            PayloadType::NatOa => Payload::NatOa(NatOa::decode(r)?),
            PayloadType::Kd => Payload::Kd(KeyDownload::decode(r)?),
            PayloadType::Seq => Payload::Seq(seq::decode(r)?),
            PayloadType::Gap => Payload::Gap(Gap::decode(r)?),
            PayloadType::None
            | PayloadType::Proposal
            | PayloadType::Transform
            | PayloadType::SaKek
            | PayloadType::SaTek
            | PayloadType::Pop
            | PayloadType::Other(_) => return Err(r.misplaced("payload type not known or not allowed here")),
        })
    }

    /// Writes the body, without the generic header.
    pub(crate) fn encode(&self, w: &mut Writer) {
        match self {
            Payload::Sa(sa) => sa.encode(w),
            Payload::GdoiSa(sa) => sa.encode(w),
            Payload::Id(id) => id.encode(w),
            Payload::Cert(cert) => cert.encode(w),
            Payload::CertRequest(request) => request.encode(w),
            Payload::Notify(notify) => notify.encode(w),
            Payload::Delete(delete) => delete.encode(w),
            Payload::NatOa(address) => address.encode(w),
            Payload::Kd(kd) => kd.encode(w),
            Payload::Seq(seq) => w.u32(seq.0),
            Payload::Gap(gap) => gap.encode(w),
            Payload::Ke(octets)
            | Payload::Hash(octets)
            | Payload::Sig(octets)
            | Payload::Nonce(octets)
            | Payload::VendorId(octets)
            | Payload::NatD(octets) => w.octets(octets),
        }
    }
}

/// Any length; what fits is checked by the exchange, which knows group, hash and key.
const ANY: RangeInclusive<usize> = 0..=usize::MAX;

/// A body of raw octets whose number lies in `lengths`.
fn raw(
    mut r: Reader<'_>,
    field: &'static str,
    lengths: RangeInclusive<usize>,
) -> Result<Vec<u8>, DecodeError> {
    let octets = r.rest();
    if lengths.contains(&octets.len()) {
        return Ok(octets.to_vec());
    }
    let length = u64::try_from(octets.len()).unwrap_or(u64::MAX);
    Err(r.refuse(field, length, "octets are too few or too many"))
}
