//! Keys and proofs of main mode with a pre-shared key (RFC 2409 section 5).

use bytes::Bytes;
use gdoi_proto::header::{Flags, HEADER_LEN, Header};
use gdoi_proto::ids::{CookiePair, MessageId};
use gdoi_proto::message::{Chain, Message, Rules, encode_chain, encode_payload};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_proto::secret::SecretBytes;

use super::Refusal;
use crate::crypto::Suite;
use crate::crypto::cipher::CipherKey;
use crate::crypto::prf::prf;
use crate::crypto::skeyid::{Skeyid, phase1_iv};

/// Public facts both proofs cover, and the keys derived from the shared secret.
pub struct Proof {
    suite: Suite,
    cookies: CookiePair,
    skeyid: Skeyid,
    /// Key of every HASH(n).
    pub skeyid_a: SecretBytes,
    /// Cipher key.
    pub key: CipherKey,
    g_xi: Vec<u8>,
    g_xr: Vec<u8>,
    sai_b: Vec<u8>,
    /// IV of message 5.
    pub first_iv: [u8; 16],
}

/// What [`Proof::new`] is made from.
pub struct Facts<'a> {
    /// What was negotiated.
    pub suite: Suite,
    /// CKY-I and CKY-R.
    pub cookies: CookiePair,
    /// The pre-shared key.
    pub pre_shared_key: &'a SecretBytes,
    /// Ni_b.
    pub ni: &'a [u8],
    /// Nr_b.
    pub nr: &'a [u8],
    /// KE_b of the initiator.
    pub g_xi: &'a [u8],
    /// KE_b of the responder.
    pub g_xr: &'a [u8],
    /// g^xy.
    pub shared: &'a SecretBytes,
    /// SA body of message 1 as sent.
    pub sai_b: &'a [u8],
}

impl Proof {
    /// Derives the keys.
    pub fn new(facts: &Facts<'_>) -> Proof {
        let hash = facts.suite.hash;
        let skeyid = Skeyid::pre_shared(hash, facts.pre_shared_key, facts.ni, facts.nr);
        let derived = skeyid.derive(facts.shared, facts.cookies);
        Proof {
            suite: facts.suite,
            cookies: facts.cookies,
            key: derived.cipher_key(hash, facts.suite.cipher),
            skeyid_a: derived.a,
            skeyid,
            g_xi: facts.g_xi.to_vec(),
            g_xr: facts.g_xr.to_vec(),
            sai_b: facts.sai_b.to_vec(),
            first_iv: phase1_iv(hash, facts.g_xi, facts.g_xr),
        }
    }

    /// HASH_I over the initiator's identity.
    pub fn hash_i(&self, id: &Identification) -> SecretBytes {
        let (i, r) = (self.cookies.initiator.0, self.cookies.responder.0);
        self.hash(&[&self.g_xi, &self.g_xr, &i, &r, &self.sai_b, &id_body(id)])
    }

    /// HASH_R over the responder's identity.
    pub fn hash_r(&self, id: &Identification) -> SecretBytes {
        let (i, r) = (self.cookies.initiator.0, self.cookies.responder.0);
        self.hash(&[&self.g_xr, &self.g_xi, &r, &i, &self.sai_b, &id_body(id)])
    }

    fn hash(&self, parts: &[&[u8]]) -> SecretBytes {
        prf(self.suite.hash, self.skeyid.skeyid.expose(), parts)
    }

    /// Encrypts message 5 or 6; the last ciphertext block is the next IV.
    pub fn seal(&self, iv: &[u8; 16], payloads: &[Payload]) -> (Bytes, [u8; 16]) {
        let (next, plain) = encode_chain(payloads);
        let sealed = self.key.encrypt(iv, &plain);
        let header = Header {
            cookies: self.cookies,
            next,
            exchange: ExchangeType::MainMode,
            flags: Flags::ENCRYPTION,
            message_id: MessageId(0),
            length: (HEADER_LEN + sealed.len()) as u32,
        };
        let last = last_block(&sealed);
        ([&header.encode()[..], &sealed].concat().into(), last)
    }

    /// Decrypts message 5 or 6 with a copy of the IV.
    ///
    /// # Errors
    /// [`Refusal::Dropped`]: what does not decrypt to a chain is usually the sign of another pre-shared key.
    pub fn open(&self, iv: &[u8; 16], header: &Header, octets: &[u8]) -> Result<AuthMessage, Refusal> {
        if !header.flags.encrypted() {
            return Err(Refusal::dropped("clear message where an encrypted one is due"));
        }
        let sealed = octets.get(HEADER_LEN..).unwrap_or_default();
        let garbage = |why: String| {
            Refusal::Dropped(format!("message does not decrypt, probable pre-shared key mismatch ({why})"))
        };
        let plain =
            self.key.decrypt(iv, sealed).ok_or_else(|| Refusal::dropped("not whole cipher blocks"))?;
        let chain = Chain::decode(header.next, &plain, Rules::PHASE1_OPENED)
            .map_err(|error| garbage(error.to_string()))?;
        let (mut id, mut hash, mut notifies) = (None, None, Vec::new());
        for located in chain.payloads {
            match located.payload {
                Payload::Id(found) => id = Some(found),
                Payload::Hash(found) => hash = Some(found),
                Payload::Notify(found) => notifies.push(found),
                Payload::Cert(_) | Payload::CertRequest(_) | Payload::VendorId(_) | Payload::Delete(_) => {}
                _ => return Err(garbage("unexpected payload".to_owned())),
            }
        }
        match (id, hash) {
            (Some(id), Some(hash)) => Ok(AuthMessage { id, hash, notifies, last_block: last_block(sealed) }),
            _ => Err(garbage("no ID or no HASH".to_owned())),
        }
    }
}

/// Message 5 or 6 decrypted, its HASH not checked yet.
pub struct AuthMessage {
    /// IDii or IDir.
    pub id: Identification,
    /// HASH_I or HASH_R.
    pub hash: Vec<u8>,
    /// Chained notifications; not covered by the HASH.
    pub notifies: Vec<gdoi_proto::payload::Notify>,
    /// The next IV.
    pub last_block: [u8; 16],
}

fn last_block(sealed: &[u8]) -> [u8; 16] {
    sealed.last_chunk::<16>().copied().unwrap_or_default()
}

/// IDxx_b: the body with its first four octets.
fn id_body(id: &Identification) -> Vec<u8> {
    encode_payload(&Payload::Id(id.clone()), PayloadType::None).split_off(4)
}

/// SAi_b of a first message, as it stands on the wire: never re-encoded.
pub(super) fn sa_body(first_message: &[u8]) -> Vec<u8> {
    let header = HEADER_LEN + 4;
    let length = first_message
        .get(HEADER_LEN + 2..HEADER_LEN + 4)
        .and_then(|octets| <[u8; 2]>::try_from(octets).ok())
        .map_or(0, |octets| usize::from(u16::from_be_bytes(octets)));
    first_message.get(header..HEADER_LEN + length).unwrap_or_default().to_vec()
}

/// Encodes a clear main-mode message.
pub(super) fn clear(cookies: CookiePair, payloads: Vec<Payload>) -> Bytes {
    let header = Header {
        cookies,
        next: PayloadType::None,
        exchange: ExchangeType::MainMode,
        flags: Flags::NONE,
        message_id: MessageId(0),
        length: 0,
    };
    Message { header, payloads }.encode().into()
}

/// KE and nonce of message 3 or 4.
pub(super) fn key_exchange(
    octets: &[u8],
    suite: Suite,
    own_nonce: Option<&[u8]>,
) -> Result<(Bytes, Vec<u8>), Refusal> {
    let message = Message::decode(octets, Rules::PHASE1_CLEAR).map_err(Refusal::dropped)?;
    let (mut ke, mut nonce) = (None, None);
    for payload in message.payloads {
        match payload {
            Payload::Ke(found) => ke = Some(found),
            Payload::Nonce(found) => nonce = Some(found),
            Payload::VendorId(_)
            | Payload::NatD(_)
            | Payload::Cert(_)
            | Payload::CertRequest(_)
            | Payload::Notify(_) => {}
            other => return Err(Refusal::dropped(format!("{} has no place here", other.payload_type()))),
        }
    }
    let (Some(ke), Some(nonce)) = (ke, nonce) else { return Err(Refusal::dropped("no KE or no nonce")) };
    if ke.len() != suite.group.public_len() {
        return Err(Refusal::dropped(format!(
            "KE has {} octets, {} expected",
            ke.len(),
            suite.group.public_len()
        )));
    }
    if own_nonce == Some(nonce.as_slice()) {
        return Err(Refusal::dropped("the peer's nonce is ours"));
    }
    Ok((ke.into(), nonce))
}
