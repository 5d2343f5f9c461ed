//! How a row's body is written: sealed with AES-256-GCM under a key derived from `state-key`, or in clear with a checksum.
//!
//! ```text
//! sealing key   HMAC-SHA-256(state-key, "gcksd state" | salt)           salt: 16 random octets of this database
//! sealed body   01 | nonce (12) | ciphertext | tag (16)                 authenticated with it: kind | 00 | key
//! clear body    JSON, with the first 16 octets of SHA-256(kind | 00 | key | 00 | body) beside it
//! ```
//!
//! So a row cannot be read, changed, or put in the place of another one. That a whole row is the newest one is not
//! proved: who can write the file can put an older copy of the same row there.

use gdoi_proto::secret::SecretBytes;
use ike::crypto::Hash;
use ike::crypto::at_rest::SealingKey;
use ike::crypto::prf::{hash, prf};
use ike::crypto::provider::default_provider;
use serde::{Deserialize, Serialize};

/// First octet of a sealed body; JSON begins with another.
const SEALED: u8 = 1;
/// The only cipher so far.
const CIPHER: &str = "aes-256-gcm";
/// Sealed in the header, to tell a wrong key from a damaged row.
const CHECK: &[u8] = b"gcksd state";
/// Octets of a checksum.
const SUM: usize = 16;

/// What the database says of its seal.
#[derive(Serialize, Deserialize)]
struct Header {
    cipher: String,
    salt: String,
    check: String,
}

/// Why a header does not give a seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// It is sealed under another key.
    OtherKey,
    /// It cannot be read.
    Damaged,
    /// The crypto library failed.
    Library,
}

/// A key that seals the rows of one database.
#[derive(Debug)]
pub struct Seal {
    key: SealingKey,
    header: String,
}

impl Seal {
    /// A new seal with a salt of its own: nonces begin anew.
    ///
    /// # Errors
    /// [`HeaderError::Library`].
    pub fn new(state_key: &SecretBytes) -> Result<Seal, HeaderError> {
        let mut salt = [0; 16];
        default_provider().fill(&mut salt);
        let key = derive(state_key, &salt)?;
        let check = seal(&key, b"", CHECK).ok_or(HeaderError::Library)?;
        let header = Header { cipher: CIPHER.to_owned(), salt: hex(&salt), check: hex(&check) };
        let header = serde_json::to_string(&header).map_err(|_| HeaderError::Library)?;
        Ok(Seal { key, header })
    }

    /// The seal a header describes.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn open(state_key: &SecretBytes, header: &str) -> Result<Seal, HeaderError> {
        let parsed: Header = serde_json::from_str(header).map_err(|_| HeaderError::Damaged)?;
        let (salt, check) = (unhex(&parsed.salt), unhex(&parsed.check));
        let (Some(salt), Some(check), CIPHER) = (salt, check, parsed.cipher.as_str()) else {
            return Err(HeaderError::Damaged);
        };
        let key = derive(state_key, &salt)?;
        key.open(b"", &check).map_err(|_| HeaderError::OtherKey)?;
        Ok(Seal { key, header: header.to_owned() })
    }

    /// What the database says of it.
    pub fn header(&self) -> &str {
        &self.header
    }
}

/// How a body stands in the file: its octets, and a checksum when it is in clear. None when the library fails.
pub fn stored(
    seal: Option<&Seal>,
    kind: &str,
    key: &str,
    body: &SecretBytes,
) -> Option<(SecretBytes, Option<Vec<u8>>)> {
    let Some(it) = seal else { return Some((body.clone(), Some(sum(kind, key, body.expose())))) };
    let sealed = self::seal(&it.key, &context(kind, key), body.expose())?;
    Some((SecretBytes::new([&[SEALED], sealed.as_slice()].concat()), None))
}

/// The body of what stands in the file.
///
/// # Errors
/// What is wrong, never an octet of it.
pub fn opened(
    seal: Option<&Seal>,
    kind: &str,
    key: &str,
    octets: SecretBytes,
    checksum: Option<&[u8]>,
) -> Result<SecretBytes, &'static str> {
    match (seal, octets.expose().split_first()) {
        (Some(seal), Some((&SEALED, sealed))) => seal
            .key
            .open(&context(kind, key), sealed)
            .map_err(|_| "it was changed, or is not the row it is said to be (its seal does not open)"),
        (Some(_), _) => Err("it is not sealed, the others are"),
        (None, first) => match (checksum, first) {
            (Some(checksum), _) if checksum == sum(kind, key, octets.expose()) => Ok(octets),
            (Some(_), _) => Err("it was changed (its checksum differs)"),
            (None, Some((&SEALED, _))) => Err("it is sealed, the others are not"),
            (None, _) => Err("its checksum is missing"),
        },
    }
}

fn derive(state_key: &SecretBytes, salt: &[u8]) -> Result<SealingKey, HeaderError> {
    SealingKey::new(&prf(Hash::Sha256, state_key.expose(), &[CHECK, salt])).map_err(|_| HeaderError::Library)
}

fn seal(key: &SealingKey, context: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let mut nonce = [0; 12];
    default_provider().fill(&mut nonce);
    key.seal(nonce, context, text).ok()
}

fn context(kind: &str, key: &str) -> Vec<u8> {
    [kind.as_bytes(), &[0], key.as_bytes()].concat()
}

fn sum(kind: &str, key: &str, body: &[u8]) -> Vec<u8> {
    let mut sum = hash(Hash::Sha256, &[kind.as_bytes(), &[0], key.as_bytes(), &[0], body]);
    sum.truncate(SUM);
    sum
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    rest.is_empty().then_some(())?;
    let digit = |octet: u8| char::from(octet).to_digit(16).and_then(|value| u8::try_from(value).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(octet: u8) -> SecretBytes {
        SecretBytes::new(vec![octet; 32])
    }

    #[test]
    fn a_header_knows_its_key() {
        let seal = Seal::new(&key(1)).unwrap();
        assert!(Seal::open(&key(1), seal.header()).is_ok());
        assert_eq!(Seal::open(&key(2), seal.header()).unwrap_err(), HeaderError::OtherKey);
        for broken in [
            "",
            "{}",
            &seal.header().replace("gcm", "ccm"),
            &seal.header().replace("\"salt\":\"", "\"salt\":\"x"),
        ] {
            assert_eq!(Seal::open(&key(1), broken).unwrap_err(), HeaderError::Damaged, "{broken}");
        }
    }

    #[test]
    fn rows_cannot_be_read_changed_or_exchanged() {
        let seal = Seal::new(&key(1)).unwrap();
        let body = SecretBytes::copy(b"{\"key\":\"00\"}");
        let (sealed, sum) = stored(Some(&seal), "tek", "g/1", &body).unwrap();
        assert!(sum.is_none());
        let open = |kind, key, octets| opened(Some(&seal), kind, key, octets, None);
        assert_eq!(open("tek", "g/1", sealed.clone()).unwrap().expose(), body.expose());
        assert!(open("tek", "g/2", sealed.clone()).is_err() && open("kek", "g/1", sealed.clone()).is_err());
        assert!(open("tek", "g/1", body.clone()).is_err(), "one in clear put there");
        assert!(opened(None, "tek", "g/1", sealed, None).is_err());
    }

    #[test]
    fn a_flipped_bit_in_clear_is_found() {
        let body = SecretBytes::copy(b"{\"key\":\"00\"}");
        let (clear, sum) = stored(None, "tek", "g/1", &body).unwrap();
        assert_eq!(clear.expose(), body.expose(), "readable with any SQLite tool");
        assert!(opened(None, "tek", "g/1", clear, sum.as_deref()).is_ok());
        for place in 0..body.len() {
            let mut octets = body.expose().to_vec();
            octets[place] ^= 0x10;
            assert!(opened(None, "tek", "g/1", SecretBytes::new(octets), sum.as_deref()).is_err());
        }
        assert!(opened(None, "tek", "g/1", body, None).is_err());
    }
}
