//! A message is a header and a chain of payloads; this file links next-payload octets and lengths.

use crate::codec::{Reader, Writer};
pub use crate::dialect::Dialect;
use crate::error::DecodeError;
use crate::header::{HEADER_LEN, Header};
use crate::payload::Payload;
use crate::registry::PayloadType;

/// What an SA payload means: the phase 1 form or the group form (RFC 6407 section 5.2). The octets do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Main mode, aggressive mode.
    Phase1,
    /// GROUPKEY-PULL, GROUPKEY-PUSH.
    Group,
}

/// What may follow the last payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailing {
    /// Clear message: at most 3 zero octets.
    Alignment,
    /// Decrypted message: at most 255 octets of anything.
    Padding,
}

/// How to read a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Meaning of an SA payload.
    pub domain: Domain,
    /// What may follow the last payload.
    pub trailing: Trailing,
    /// Tolerated deviations.
    pub dialect: Dialect,
}

impl Rules {
    /// Clear phase 1 messages, strict.
    pub const PHASE1_CLEAR: Rules =
        Rules { domain: Domain::Phase1, trailing: Trailing::Alignment, dialect: Dialect::STRICT };
    /// Decrypted phase 1 and informational messages, strict.
    pub const PHASE1_OPENED: Rules =
        Rules { domain: Domain::Phase1, trailing: Trailing::Padding, dialect: Dialect::STRICT };
    /// Decrypted PULL and PUSH messages, strict.
    pub const GROUP_OPENED: Rules =
        Rules { domain: Domain::Group, trailing: Trailing::Padding, dialect: Dialect::STRICT };

    /// The same rules for a peer with deviations.
    pub const fn for_dialect(self, dialect: Dialect) -> Rules {
        Rules { dialect, ..self }
    }
}

/// A payload and the octets it came from, generic header included: `start..end` within what was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The payload.
    pub payload: Payload,
    /// First octet of its generic header.
    pub start: usize,
    /// One past its last octet.
    pub end: usize,
}

/// A decoded chain of payloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// In the order of the wire.
    pub payloads: Vec<Located>,
    /// One past the last octet of the last payload: what follows is padding.
    pub end: usize,
}

impl Chain {
    /// Walks the chain in `octets` whose first payload has type `first`. Applies the payload-chain rules
    /// (RFC 2408 section 5.3): bounded, RESERVED zero, unique SA/KE/NONCE/ID/HASH/SIG, ceilings, unknown types refused.
    ///
    /// # Errors
    /// [`DecodeError`], first failing rule; offsets count from `octets`.
    pub fn decode(first: PayloadType, octets: &[u8], rules: Rules) -> Result<Chain, DecodeError> {
        Chain::decode_at(first, octets, rules, 0)
    }

    /// [`Chain::decode`] with error offsets that start at `base`.
    fn decode_at(first: PayloadType, octets: &[u8], rules: Rules, base: usize) -> Result<Chain, DecodeError> {
        let mut r = Reader::at(first, octets, base);
        let mut kind = first;
        let mut payloads: Vec<Located> = Vec::new();
        if first == PayloadType::None {
            return Err(r.misplaced("a message has at least one payload"));
        }
        while kind != PayloadType::None {
            r = r.within(kind);
            check_place(&r, &payloads, rules.domain)?;
            let start = r.offset().saturating_sub(base);
            let (next, body) = r.generic()?;
            let payload = Payload::decode(body, rules)?;
            payloads.push(Located { payload, start, end: r.offset().saturating_sub(base) });
            kind = next;
        }
        let end = r.offset().saturating_sub(base);
        r = r.within(PayloadType::None);
        let trailing = r.clone().rest();
        let fits = match rules.trailing {
            Trailing::Alignment => trailing.len() <= 3 && trailing.iter().all(|octet| *octet == 0),
            Trailing::Padding => trailing.len() <= MAX_PADDING,
        };
        if !fits {
            r.finish()?;
        }
        Ok(Chain { payloads, end })
    }

    /// The payload types in order.
    pub fn types(&self) -> Vec<PayloadType> {
        self.payloads.iter().map(|located| located.payload.payload_type()).collect()
    }
}

/// Most payloads a message may hold.
const MAX_PAYLOADS: usize = 64;

/// Most octets after the last payload of a decrypted message.
const MAX_PADDING: usize = 255;

/// How many payloads of one type a message may hold, none for a type that has no place at top level. The numbers
/// are a local policy; those of 1 are RFC 2408's and RFC 6407's one-per-message payloads.
fn ceiling(kind: PayloadType, domain: Domain) -> Option<usize> {
    Some(match kind {
        PayloadType::Sa
        | PayloadType::Ke
        | PayloadType::Id
        | PayloadType::Hash
        | PayloadType::Sig
        | PayloadType::Nonce => 1,
        PayloadType::Kd | PayloadType::Seq | PayloadType::Gap if domain == Domain::Group => 1,
        PayloadType::Cert | PayloadType::CertRequest | PayloadType::Notify | PayloadType::Delete => 16,
        PayloadType::VendorId => 40,
        PayloadType::NatD => 8,
        PayloadType::NatOa => 2,
        PayloadType::Kd
        | PayloadType::Seq
        | PayloadType::Gap
        | PayloadType::None
        | PayloadType::Proposal
        | PayloadType::Transform
        | PayloadType::SaKek
        | PayloadType::SaTek
        | PayloadType::Pop
        | PayloadType::Other(_) => return None,
    })
}

/// Whether the payload that `r` is about to read may stand after those read so far.
fn check_place(r: &Reader<'_>, so_far: &[Located], domain: Domain) -> Result<(), DecodeError> {
    if so_far.len() >= MAX_PAYLOADS {
        return Err(r.misplaced("too many payloads"));
    }
    let Some(most) = ceiling(r.payload(), domain) else {
        return Err(r.misplaced("payload type not known or not allowed here"));
    };
    let had = so_far.iter().filter(|located| located.payload.payload_type() == r.payload()).count();
    if had < most {
        return Ok(());
    }
    Err(r.misplaced(if most == 1 { "must be unique" } else { "too many payloads of this type" }))
}

/// Encodes payloads as a chain: the type of the first (for the header) and the octets, without padding.
pub fn encode_chain(payloads: &[Payload]) -> (PayloadType, Vec<u8>) {
    let types = payloads.iter().map(Payload::payload_type);
    let following = types.clone().skip(1).chain([PayloadType::None]);
    let mut w = Writer::new();
    for (payload, next) in payloads.iter().zip(following) {
        w.generic(next, |w| payload.encode(w));
    }
    (types.clone().next().unwrap_or(PayloadType::None), w.finish())
}

/// One payload with its generic header, announcing `next`: the form that enters a hash.
pub fn encode_payload(payload: &Payload, next: PayloadType) -> Vec<u8> {
    let mut w = Writer::new();
    w.generic(next, |w| payload.encode(w));
    w.finish()
}

/// A clear message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payloads.
    pub payloads: Vec<Payload>,
}

impl Message {
    /// Decodes a clear datagram.
    ///
    /// # Errors
    /// [`DecodeError`], first failing rule; offsets count from the first octet of the datagram.
    pub fn decode(datagram: &[u8], rules: Rules) -> Result<Message, DecodeError> {
        let header = Header::decode(datagram)?;
        if header.flags.encrypted() {
            return Err(DecodeError::Value {
                payload: PayloadType::None,
                field: "flags",
                offset: 19,
                value: u64::from(header.flags.0),
                rule: "a clear message has no encryption flag",
            });
        }
        let body = datagram.get(HEADER_LEN..).unwrap_or_default();
        let chain = Chain::decode_at(header.next, body, rules, HEADER_LEN)?;
        let payloads = chain.payloads.into_iter().map(|located| located.payload).collect();
        Ok(Message { header, payloads })
    }

    /// Encodes the message; `header.next` and `header.length` are computed, not taken.
    pub fn encode(&self) -> Vec<u8> {
        let (next, body) = encode_chain(&self.payloads);
        let length = HEADER_LEN.saturating_add(body.len());
        let header = Header { next, length: u32::try_from(length).unwrap_or(u32::MAX), ..self.header };
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&body);
        out
    }
}
