//! Message IDs, IV chain and HASH(n) of the exchanges under an ISAKMP SA (RFC 2409 section 5.5 and appendix B,
//! RFC 6407 section 3.2).
//!
//! ```text
//! HASH(1) = prf(SKEYID_a, M-ID | Ni | ID)            HASH(3) = prf(SKEYID_a, M-ID | Ni_b | Nr_b [| GAP])
//! HASH(2) = prf(SKEYID_a, M-ID | Ni_b | Nr | SA)     HASH(4) = prf(SKEYID_a, M-ID | Ni_b | Nr_b [| SEQ] | KD)
//! ```
//!
//! Every one is: message ID, the nonces said before, then every octet after the HASH payload, padding excluded.

use bytes::Bytes;
use gdoi_proto::header::{Flags, HEADER_LEN, Header};
use gdoi_proto::ids::MessageId;
use gdoi_proto::message::{Chain, Domain, Rules, Trailing, encode_chain, encode_payload};
use gdoi_proto::payload::Payload;
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_proto::secret::ct_eq;

use super::{OpenError, Opened};
use crate::sa::IkeSa;

/// One exchange under an SA: its message ID and running IV.
#[derive(Debug, Clone)]
pub struct Exchange {
    message_id: MessageId,
    kind: ExchangeType,
    iv: [u8; 16],
}

impl Exchange {
    /// The exchange `message_id` before its first message.
    pub fn new(sa: &IkeSa, kind: ExchangeType, message_id: MessageId) -> Exchange {
        Exchange { message_id, kind, iv: sa.iv(message_id) }
    }

    /// Its message ID.
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    /// Seals `payloads` behind their HASH and advances the IV. `said` are the nonce bodies said before.
    pub fn seal(&mut self, sa: &IkeSa, said: &[&[u8]], payloads: &[Payload]) -> Bytes {
        let (next, rest) = encode_chain(payloads);
        let mut parts = said.to_vec();
        parts.push(&rest);
        let hash = sa.hash(self.message_id, &parts);
        let mut plain = encode_payload(&Payload::Hash(hash.expose().to_vec()), next);
        plain.extend_from_slice(&rest);
        let sealed = sa.key().encrypt(&self.iv, &plain);
        let header = Header {
            cookies: sa.cookies,
            next: PayloadType::Hash,
            exchange: self.kind,
            flags: Flags::ENCRYPTION,
            message_id: self.message_id,
            length: (HEADER_LEN + sealed.len()) as u32,
        };
        self.advance(&sealed);
        let mut out = header.encode().to_vec();
        out.extend_from_slice(&sealed);
        out.into()
    }

    /// Opens a message: decrypts with a copy of the IV, checks HASH over `said` and the rest, and only then advances
    /// the IV. The payloads after HASH are handed back.
    ///
    /// # Errors
    /// [`OpenError`]; the exchange is unchanged.
    pub fn open(
        &mut self,
        sa: &IkeSa,
        header: &Header,
        octets: &[u8],
        said: &[&[u8]],
    ) -> Result<Opened<Vec<Payload>>, OpenError> {
        if !header.flags.encrypted() {
            return Err(OpenError::Header("not encrypted"));
        }
        if header.next != PayloadType::Hash {
            return Err(OpenError::Payloads("HASH is not first"));
        }
        let sealed = octets.get(HEADER_LEN..).unwrap_or_default();
        let plain = sa.key().decrypt(&self.iv, sealed).ok_or(OpenError::Blocks { octets: sealed.len() })?;
        let domain = if self.kind == ExchangeType::Informational { Domain::Phase1 } else { Domain::Group };
        let rules = Rules { domain, trailing: Trailing::Padding, dialect: sa.dialect };
        let chain = Chain::decode(PayloadType::Hash, &plain, rules)?;
        let mut payloads = chain.payloads.into_iter();
        let Some(first) = payloads.next() else { return Err(OpenError::Payloads("no payload")) };
        let Payload::Hash(received) = first.payload else {
            return Err(OpenError::Payloads("HASH is not first"));
        };
        let mut parts = said.to_vec();
        parts.push(plain.get(first.end..chain.end).unwrap_or_default());
        if !sa.hash(self.message_id, &parts).ct_eq(&received) {
            return Err(OpenError::Hash);
        }
        self.advance(sealed);
        Ok(Opened::new(payloads.map(|located| located.payload).collect()))
    }

    fn advance(&mut self, sealed: &[u8]) {
        if let Some(last) = sealed.last_chunk::<16>() {
            self.iv = *last;
        }
    }
}

/// Compares two nonces or digests received from the network in constant time.
pub fn same(left: &[u8], right: &[u8]) -> bool {
    ct_eq(left, right)
}
