//! GROUPKEY-PUSH under the KEK and the signature over it (RFC 6407 section 4).
//!
//! ```text
//! signed:  "rekey" | HDR (flags E, length without padding, SIG included) | SEQ .. up to SIG
//! wire:    HDR | CBC(KEK, IV of the KEK; SEQ [D..] [SA KD] SIG, zero padding)
//! ```

use bytes::Bytes;
use gdoi_proto::header::{Flags, HEADER_LEN, Header};
use gdoi_proto::ids::{KekSpi, MessageId, SeqNumber};
use gdoi_proto::message::{Chain, Dialect, Rules, encode_chain};
use gdoi_proto::payload::{Delete, GdoiSa, KeyDownload, Payload};
use gdoi_proto::registry::{ExchangeType, PayloadType};

use super::{OpenError, Opened};
use crate::crypto::cipher::CipherKey;

/// What is signed first: 5 octets, no terminator.
const LABEL: &[u8] = b"rekey";

/// A KEK as PUSHes use it.
#[derive(Debug, Clone)]
pub struct KekCipherKey {
    /// Cookie pair of its PUSHes.
    pub spi: KekSpi,
    /// The key.
    pub key: CipherKey,
    /// The IV of every message under this KEK (RFC 6407 section 5.6.2.1).
    pub iv: [u8; 16],
}

/// Content of a PUSH between SEQ and SIG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushContent {
    /// Number under the protecting KEK.
    pub seq: SeqNumber,
    /// Deletes, first to be applied.
    pub deletes: Vec<Delete>,
    /// New policy and its keys: both or neither.
    pub keys: Option<(GdoiSa, KeyDownload)>,
}

/// A PUSH that waits for its signature.
#[derive(Clone)]
pub struct Unsigned {
    spi: KekSpi,
    plain: Vec<u8>,
    signature_len: usize,
}

impl Unsigned {
    /// Lays out the message for a signature of `signature_len` octets.
    pub fn new(spi: KekSpi, content: &PushContent, signature_len: usize) -> Unsigned {
        let mut payloads = vec![Payload::Seq(content.seq)];
        payloads.extend(content.deletes.iter().cloned().map(Payload::Delete));
        if let Some((sa, kd)) = &content.keys {
            payloads.push(Payload::GdoiSa(sa.clone()));
            payloads.push(Payload::Kd(kd.clone()));
        }
        payloads.push(Payload::Sig(vec![0; signature_len]));
        let (_, mut plain) = encode_chain(&payloads);
        plain.truncate(plain.len() - signature_len);
        Unsigned { spi, plain, signature_len }
    }

    /// The octets to sign. `padded` takes the length with CBC padding into the header (`padded-length-signature`).
    pub fn signature_input(&self, padded: bool) -> Bytes {
        let unpadded = HEADER_LEN + self.plain.len() + self.signature_len;
        let header = header(self.spi, if padded { self.datagram_len() } else { unpadded });
        let signed = self.plain.len().saturating_sub(4);
        [LABEL, &header.encode(), &self.plain[..signed]].concat().into()
    }

    /// Adds the signature and encrypts: the datagram every member gets.
    pub fn seal(mut self, kek: &KekCipherKey, signature: &[u8]) -> Bytes {
        self.plain.extend_from_slice(signature);
        let sealed = kek.key.encrypt(&kek.iv, &self.plain);
        [&header(kek.spi, HEADER_LEN + sealed.len()).encode()[..], &sealed].concat().into()
    }

    /// The laid-out payloads up to the signature (they hold keys) and the signature's length, for the store.
    pub fn parts(&self) -> (&[u8], usize) {
        (&self.plain, self.signature_len)
    }

    /// A message back from the store.
    pub fn from_parts(spi: KekSpi, plain: Vec<u8>, signature_len: usize) -> Unsigned {
        Unsigned { spi, plain, signature_len }
    }

    /// Octets of the finished datagram.
    pub fn datagram_len(&self) -> usize {
        HEADER_LEN + (self.plain.len() + self.signature_len).next_multiple_of(16)
    }
}

fn header(spi: KekSpi, length: usize) -> Header {
    Header {
        cookies: spi.cookies(),
        next: PayloadType::Seq,
        exchange: ExchangeType::GroupkeyPush,
        flags: Flags::ENCRYPTION,
        message_id: MessageId(0),
        length: length as u32,
    }
}

/// A PUSH that decrypted, has the right structure and a fresh number; its signature is not checked yet.
#[derive(Clone)]
pub struct Unverified {
    content: PushContent,
    /// What the signature covers.
    pub signature_input: Bytes,
    /// The same with the length of the datagram as it came, for peers that sign so (`padded-length-signature`).
    pub padded_input: Option<Bytes>,
    /// The SIG body.
    pub signature: Bytes,
}

/// The input is the plaintext, keys included: only the number is shown.
impl std::fmt::Debug for Unverified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unverified(SEQ {})", self.content.seq)
    }
}

impl Unverified {
    /// The number claimed.
    pub fn seq(&self) -> SeqNumber {
        self.content.seq
    }

    /// The content, once the shell's verification of [`Unverified::signature`] succeeded.
    pub fn verified(self) -> Opened<PushContent> {
        Opened::new(self.content)
    }
}

/// Opens a PUSH as RFC 6407 section 4.4 orders: decrypt, structure, SEQ above `last`; the signature is the caller's
/// next step.
///
/// # Errors
/// [`OpenError`]; a bad PUSH is never answered.
pub fn open(
    kek: &KekCipherKey,
    last: SeqNumber,
    header: &Header,
    octets: &[u8],
    dialect: Dialect,
) -> Result<Unverified, OpenError> {
    if header.exchange != ExchangeType::GroupkeyPush || header.flags != Flags::ENCRYPTION {
        return Err(OpenError::Header("flags are not exactly E"));
    }
    if header.message_id.0 != 0 {
        return Err(OpenError::Header("message ID is not 0"));
    }
    if header.next != PayloadType::Seq {
        return Err(OpenError::Payloads("SEQ is not first"));
    }
    let sealed = octets.get(HEADER_LEN..).unwrap_or_default();
    let plain = kek.key.decrypt(&kek.iv, sealed).ok_or(OpenError::Blocks { octets: sealed.len() })?;
    let chain = Chain::decode(PayloadType::Seq, &plain, Rules::GROUP_OPENED.for_dialect(dialect))?;
    let sig_start = chain.payloads.last().map_or(0, |located| located.start);
    let (content, signature) = read(chain.payloads.into_iter().map(|located| located.payload))?;
    if content.seq <= last {
        return Err(OpenError::Sequence { received: content.seq.0, last: last.0 });
    }
    let unpadded = HEADER_LEN + chain.end;
    let signed = plain.get(..sig_start).unwrap_or_default();
    let input = |header: &Header| Bytes::from([LABEL, &header.encode(), signed].concat());
    let padded = dialect.padded_length_signature && octets.len() != unpadded;
    Ok(Unverified {
        content,
        signature_input: input(&Header { length: unpadded as u32, ..*header }),
        padded_input: padded.then(|| input(header)),
        signature: signature.into(),
    })
}

/// SEQ, D*, then SA and KD both or neither, then SIG last.
fn read(payloads: impl Iterator<Item = Payload>) -> Result<(PushContent, Vec<u8>), OpenError> {
    let mut payloads = payloads.peekable();
    let Some(Payload::Seq(seq)) = payloads.next() else {
        return Err(OpenError::Payloads("SEQ is not first"));
    };
    let mut deletes = Vec::new();
    while let Some(Payload::Delete(delete)) = payloads.next_if(|p| matches!(p, Payload::Delete(_))) {
        deletes.push(delete);
    }
    let keys = match payloads.next_if(|p| matches!(p, Payload::GdoiSa(_))) {
        Some(Payload::GdoiSa(sa)) => match payloads.next() {
            Some(Payload::Kd(kd)) => Some((sa, kd)),
            _ => return Err(OpenError::Payloads("SA without KD")),
        },
        _ => None,
    };
    let Some(Payload::Sig(signature)) = payloads.next() else {
        return Err(OpenError::Payloads("order is SEQ, D, SA, KD, SIG"));
    };
    if payloads.next().is_some() {
        return Err(OpenError::Payloads("SIG is not last"));
    }
    Ok((PushContent { seq, deletes, keys }, signature))
}
