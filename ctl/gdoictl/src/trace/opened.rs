//! Messages of a trace, decrypted where their key is known.
//!
//! ```text
//! in clear                         --> as it is, its KE payloads remembered
//! phase 1 before its key is known  --> waits for the next message of its cookies that names the key
//! encrypted, key known             --> decrypted, flag E cleared, padding dropped
//! encrypted, never a key           --> as it is
//! ```

use std::collections::{BTreeMap, VecDeque};

use ctl::tap::{Opener, Tapped};
use gdoi_proto::Dialect;
use gdoi_proto::header::{Flags, HEADER_LEN, Header};
use gdoi_proto::ids::{Cookie, MessageId};
use gdoi_proto::message::{Chain, Domain, Message, Rules, Trailing};
use gdoi_proto::payload::Payload;
use gdoi_proto::registry::ExchangeType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::skeyid::{exchange_iv, phase1_iv};
use ike::crypto::{Cipher, Hash};
use ike::fragment::{Assemblies, is_fragment};

/// Negotiations remembered.
const MOST: usize = 64;
/// Messages of one that wait for their key.
const MOST_WAITING: usize = 16;
/// Messages of one that are known again when they are repeated.
const MOST_REPEATED: usize = 32;

/// What opens messages, learnt from the trace itself.
#[derive(Default)]
pub struct Opened {
    negotiations: VecDeque<(Cookie, Negotiation)>,
    fragments: Assemblies,
}

#[derive(Default)]
struct Negotiation {
    key: Option<Key>,
    /// Both public values, the initiator's first.
    values: Vec<Vec<u8>>,
    /// IV of the next message of each exchange; message ID 0 is phase 1.
    ivs: BTreeMap<MessageId, [u8; 16]>,
    waiting: Vec<Tapped>,
    /// What left, by what it was.
    known: VecDeque<(Vec<u8>, Vec<u8>)>,
}

struct Key {
    hash: Hash,
    cipher: CipherKey,
    last_block: [u8; 16],
}

/// A message to write.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// As it was tapped.
    pub tapped: Tapped,
    /// Its octets, in clear where that was possible.
    pub message: Vec<u8>,
}

impl Opened {
    /// A message; those that can be shown now, in order.
    pub fn take(&mut self, tapped: Tapped) -> Vec<Shown> {
        let Some(octets) = tapped.message() else { return Vec::new() };
        let Ok(header) = Header::decode(&octets) else { return vec![Shown { tapped, message: octets }] };
        if is_fragment(&header) {
            return match self.fragments.take(header.cookies, &octets) {
                Ok(Some(whole)) => {
                    let ends = (tapped.from, tapped.to);
                    self.take(Tapped::new(tapped.unix_micros, ends, &whole, tapped.opener))
                }
                Ok(None) => Vec::new(),
                Err(_) => vec![Shown { tapped, message: octets }],
            };
        }
        if header.exchange == ExchangeType::GroupkeyPush {
            let message = open_push(&tapped, &header, &octets).unwrap_or(octets);
            return vec![Shown { tapped, message }];
        }
        let negotiation = self.negotiation(header.cookies.initiator);
        if let Some(key) = tapped.opener.as_ref().and_then(Key::read) {
            negotiation.key.get_or_insert(key);
        }
        if !header.flags.encrypted() {
            negotiation.note_values(&octets);
            return vec![Shown { tapped, message: octets }];
        }
        negotiation.waiting.push(tapped);
        if negotiation.key.is_none() && negotiation.waiting.len() < MOST_WAITING {
            return Vec::new();
        }
        let waiting = std::mem::take(&mut negotiation.waiting);
        waiting.into_iter().filter_map(|tapped| negotiation.show(tapped)).collect()
    }

    fn negotiation(&mut self, cookie: Cookie) -> &mut Negotiation {
        let place = self.negotiations.iter().position(|(known, _)| *known == cookie);
        let found = place.and_then(|place| self.negotiations.remove(place));
        while self.negotiations.len() >= MOST {
            self.negotiations.pop_front();
        }
        self.negotiations.push_back(found.unwrap_or((cookie, Negotiation::default())));
        let last = self.negotiations.len() - 1;
        &mut self.negotiations[last].1
    }
}

impl Negotiation {
    /// The public values of phase 1, of which its first IV is made (RFC 2409 appendix B).
    fn note_values(&mut self, octets: &[u8]) {
        let rules = Rules { domain: Domain::Phase1, trailing: Trailing::Alignment, dialect: Dialect::STRICT };
        let Ok(message) = Message::decode(octets, rules) else { return };
        for payload in message.payloads {
            if let Payload::Ke(value) = payload
                && self.values.len() < 2
                && !self.values.contains(&value)
            {
                self.values.push(value);
            }
        }
    }

    fn show(&mut self, tapped: Tapped) -> Option<Shown> {
        let octets = tapped.message()?;
        let repeated =
            self.known.iter().find(|(sealed, _)| *sealed == octets).map(|(_, clear)| clear.clone());
        let message = match repeated.or_else(|| self.open(&octets)) {
            Some(clear) => {
                self.known.push_back((octets, clear.clone()));
                if self.known.len() > MOST_REPEATED {
                    self.known.pop_front();
                }
                clear
            }
            None => octets,
        };
        Some(Shown { tapped, message })
    }

    fn open(&mut self, octets: &[u8]) -> Option<Vec<u8>> {
        let header = Header::decode(octets).ok()?;
        let Key { hash, cipher, last_block } = self.key.as_ref()?;
        let first = || match header.message_id {
            MessageId(0) => match &self.values[..] {
                [initiator, responder] => Some(phase1_iv(*hash, initiator, responder)),
                _ => None,
            },
            message_id => Some(exchange_iv(*hash, last_block, message_id)),
        };
        let iv = self.ivs.get(&header.message_id).copied().or_else(first)?;
        let clear = in_clear(&header, octets, cipher, &iv)?;
        self.ivs.insert(header.message_id, *octets.last_chunk()?);
        Some(clear)
    }
}

impl Key {
    fn read(opener: &Opener) -> Option<Key> {
        let hash = Hash::from_number(opener.hash?)?;
        let (key, last_block) = opener.key()?;
        Some(Key { hash, cipher: aes(key)?, last_block })
    }
}

fn aes(key: Vec<u8>) -> Option<CipherKey> {
    CipherKey::new(Cipher::with_key_len(key.len())?, SecretBytes::new(key))
}

fn open_push(tapped: &Tapped, header: &Header, octets: &[u8]) -> Option<Vec<u8>> {
    let (key, iv) = tapped.opener.as_ref()?.key()?;
    in_clear(header, octets, &aes(key)?, &iv)
}

/// The message as if it had never been encrypted; none when the key or the IV is another.
fn in_clear(header: &Header, octets: &[u8], key: &CipherKey, iv: &[u8; 16]) -> Option<Vec<u8>> {
    let plain = key.decrypt(iv, octets.get(HEADER_LEN..)?)?;
    let domain = match header.exchange {
        ExchangeType::GroupkeyPull | ExchangeType::GroupkeyPush => Domain::Group,
        _ => Domain::Phase1,
    };
    let rules = Rules { domain, trailing: Trailing::Padding, dialect: Dialect::STRICT };
    let chain = Chain::decode(header.next, &plain, rules).ok()?;
    let payloads = plain.get(..chain.end)?;
    let length = u32::try_from(HEADER_LEN + payloads.len()).ok()?;
    let header = Header { flags: Flags::NONE, length, ..*header };
    Some([&header.encode()[..], payloads].concat())
}
