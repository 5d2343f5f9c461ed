//! Acknowledgement of a PUSH (RFC 8263).
//!
//! ```text
//! HDR(35, clear), HASH, SEQ, ID      HASH = prf(ack_key, SEQ | ID)
//! ack_key = prf(base_key, "GROUPKEY-PUSH ACK" 00 | SPI | L)
//! ```

use std::net::IpAddr;

use bytes::Bytes;
use gdoi_proto::header::{Flags, Header};
use gdoi_proto::ids::{KekSpi, MessageId, SeqNumber};
use gdoi_proto::message::{Message, Rules, encode_payload};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::AckRequest;
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_proto::secret::SecretBytes;

use super::{OpenError, Opened};
use crate::crypto::Hash;
use crate::crypto::prf::prf;
use crate::identity::address_identity;

/// 17 characters and one zero octet.
const LABEL: &[u8] = b"GROUPKEY-PUSH ACK\0";

/// The key of one KEK's acknowledgements.
#[derive(Debug, Clone)]
pub struct AckKey {
    hash: Hash,
    key: SecretBytes,
}

impl AckKey {
    /// Derives the key for PUSHes under `spi`. `base_key` is the KEK without its IV, or the member's leaf key for the
    /// LKH types. L is the block size of the hash in bits, as the RFC's example has it.
    pub fn derive(request: AckRequest, base_key: &SecretBytes, spi: KekSpi) -> AckKey {
        let (hash, l): (Hash, u16) = match request {
            AckRequest::KekSha256 | AckRequest::LkhSha256 => (Hash::Sha256, 512),
            AckRequest::KekSha512 | AckRequest::LkhSha512 => (Hash::Sha512, 1024),
        };
        AckKey::with_length(hash, base_key, spi, l)
    }

    /// As [`AckKey::derive`] with L = output of the hash, which some peers use (`compat` word `ack-l-output`).
    pub fn derive_output_length(request: AckRequest, base_key: &SecretBytes, spi: KekSpi) -> AckKey {
        let (hash, l): (Hash, u16) = match request {
            AckRequest::KekSha256 | AckRequest::LkhSha256 => (Hash::Sha256, 256),
            AckRequest::KekSha512 | AckRequest::LkhSha512 => (Hash::Sha512, 512),
        };
        AckKey::with_length(hash, base_key, spi, l)
    }

    fn with_length(hash: Hash, base_key: &SecretBytes, spi: KekSpi, l: u16) -> AckKey {
        AckKey { hash, key: prf(hash, base_key.expose(), &[LABEL, &spi.0, &l.to_be_bytes()]) }
    }

    fn hash(&self, seq: SeqNumber, id: &Identification) -> SecretBytes {
        let seq = encode_payload(&Payload::Seq(seq), PayloadType::Id);
        let id = encode_payload(&Payload::Id(id.clone()), PayloadType::None);
        prf(self.hash, self.key.expose(), &[&seq, &id])
    }

    /// The acknowledgement of `seq` by the member whose PULL came from `address`.
    pub fn seal(&self, spi: KekSpi, seq: SeqNumber, address: IpAddr) -> Bytes {
        let id = address_identity(address);
        let header = Header {
            cookies: spi.cookies(),
            next: PayloadType::Hash,
            exchange: ExchangeType::GroupkeyPushAck,
            flags: Flags::NONE,
            message_id: MessageId(0),
            length: 0,
        };
        let hash = self.hash(seq, &id).expose().to_vec();
        Message { header, payloads: vec![Payload::Hash(hash), Payload::Seq(seq), Payload::Id(id)] }
            .encode()
            .into()
    }

    /// Checks the HASH.
    ///
    /// # Errors
    /// [`OpenError::Hash`].
    pub fn verify(&self, ack: Ack) -> Result<Opened<Ack>, OpenError> {
        if self.hash(ack.seq, &ack.id).ct_eq(&ack.hash) { Ok(Opened::new(ack)) } else { Err(OpenError::Hash) }
    }
}

/// An acknowledgement as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// KEK of the PUSH.
    pub spi: KekSpi,
    /// Number of the PUSH.
    pub seq: SeqNumber,
    /// The member's address.
    pub id: Identification,
    hash: Vec<u8>,
}

impl Ack {
    /// The address in the ID payload, by its type: a name of 4 octets is none.
    pub fn address(&self) -> Option<IpAddr> {
        self.id.address()
    }

    /// Decodes a datagram of exchange 35: flags 0, message ID 0, exactly HASH, SEQ, ID.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn decode(octets: &[u8]) -> Result<Ack, OpenError> {
        let message = Message::decode(
            octets,
            Rules { domain: gdoi_proto::message::Domain::Group, ..Rules::PHASE1_CLEAR },
        )?;
        let header = message.header;
        if header.exchange != ExchangeType::GroupkeyPushAck
            || header.flags != Flags::NONE
            || header.message_id.0 != 0
        {
            return Err(OpenError::Header("not an acknowledgement"));
        }
        let Ok([Payload::Hash(hash), Payload::Seq(seq), Payload::Id(id)]) =
            <[Payload; 3]>::try_from(message.payloads)
        else {
            return Err(OpenError::Payloads("order is HASH, SEQ, ID"));
        };
        if id.protocol != 0 || id.port != 0 {
            return Err(OpenError::Payloads("ID protocol and port are 0"));
        }
        Ok(Ack { spi: header.cookies.into(), seq, id, hash })
    }
}

#[cfg(test)]
mod tests {
    use gdoi_proto::registry::IdType;

    use super::*;

    #[test]
    fn an_address_is_read_by_its_type_and_not_by_its_length() {
        let address = |id_type, data: &[u8]| {
            let (spi, seq) = (KekSpi([1; 16]), SeqNumber(1));
            Ack { spi, seq, id: Identification::new(id_type, data), hash: Vec::new() }.address()
        };
        assert_eq!(address(IdType::Ipv4Addr, &[10, 0, 0, 1]), Some([10, 0, 0, 1].into()));
        assert_eq!(address(IdType::Fqdn, b"a.bc"), None);
        assert_eq!(address(IdType::Ipv6Addr, &[10, 0, 0, 1]), None);
    }
}
