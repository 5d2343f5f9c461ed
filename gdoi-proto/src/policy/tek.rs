//! The data-security SA: an ESP SAT and what it means (RFC 6407 section 5.5).

use std::time::Duration;

use super::{TekAuthentication, TekCipher, aes_octets, bits, number, refuse_repeats};
use crate::attribute::Attribute;
use crate::error::PolicyError;
use crate::ids::Spi;
use crate::payload::{Endpoint, EspTek};
use crate::registry::{
    AddressPreservationMode, AuthenticationAlgorithm, EncapsulationMode, EspTransform, IdType,
    IpsecAttribute, LifeType, PayloadType, SaDirection,
};

const PAYLOAD: PayloadType = PayloadType::SaTek;

/// Life of an SA whose SAT names none (RFC 2407 section 4.5).
const DEFAULT_LIFETIME_SECONDS: u32 = 28800;

/// Encapsulation Mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    /// 1.
    Tunnel,
    /// 2.
    Transport,
}

/// SA Direction (RFC 6407 section 5.5.1.1.2); absent and 0 are symmetric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// 1.
    SenderOnly,
    /// 2.
    ReceiverOnly,
    /// 3.
    Symmetric,
}

/// Address Preservation (RFC 6407 section 5.5.1.1.1); absent and 0 are both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressPreservation {
    /// 1.
    None,
    /// 2.
    Source,
    /// 3.
    Destination,
    /// 4.
    Both,
}

/// A data-security SA policy for ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TekPolicy {
    /// SPI.
    pub spi: Spi,
    /// IP protocol, 0 any.
    pub ip_protocol: u8,
    /// Source selector.
    pub source: Endpoint,
    /// Destination selector.
    pub destination: Endpoint,
    /// Cipher and integrity.
    pub cipher: TekCipher,
    /// Remaining life in seconds when sent; 28800 when absent.
    pub lifetime_seconds: u32,
    /// Kilobytes, when limited.
    pub lifetime_kilobytes: Option<u32>,
    /// Tunnel or transport; tunnel when absent, which RFC 2407 section 4.5 leaves to the host.
    pub encapsulation: Encapsulation,
    /// Which outer addresses are copied.
    pub address_preservation: AddressPreservation,
    /// Who sends.
    pub direction: Direction,
    /// Width of the window of IP-D3P timestamps, when packets carry them. It stands in the GAP, for all SATs of an SA payload.
    pub delay_window: Option<Duration>,
}

impl TekPolicy {
    /// Reads an ESP SAT.
    ///
    /// # Errors
    /// [`PolicyError`]: unsupported transform, attribute or selector type, missing key length or authentication,
    /// a duration without its type, a repeated attribute, extended sequence numbers (RFC 4303 section 3.3.3 has
    /// none for several senders).
    pub fn read(sat: &EspTek) -> Result<TekPolicy, PolicyError> {
        for selector in [&sat.source, &sat.destination] {
            let address = matches!(
                selector.id_type,
                IdType::Ipv4Addr
                    | IdType::Ipv4Subnet
                    | IdType::Ipv4Range
                    | IdType::Ipv6Addr
                    | IdType::Ipv6Subnet
                    | IdType::Ipv6Range
            );
            if !address && !selector.is_any() {
                return Err(unsupported("selector type", u64::from(selector.id_type.number())));
            }
        }
        let is_life =
            |kind| kind == IpsecAttribute::LifeType.number() || kind == IpsecAttribute::LifeDuration.number();
        refuse_repeats(PAYLOAD, &sat.attributes, is_life)?;
        let mut found = Found::default();
        for attribute in &sat.attributes {
            found.take(attribute)?;
        }
        found.policy(sat)
    }

    /// Writes the SAT: Life Type, Life Duration (TLV of 4 octets), Encapsulation Mode, Authentication Algorithm (CBC),
    /// Key Length, in the order of the vectors; defaults (address preservation both, symmetric) are left out.
    pub fn write(&self) -> EspTek {
        let (transform, authentication, key_octets) = match self.cipher {
            TekCipher::AesCbc { key_octets, authentication } => {
                (EspTransform::AesCbc, Some(authentication), Some(key_octets))
            }
            TekCipher::AesGcm { key_octets, icv_octets } => {
                let transform = match icv_octets {
                    8 => EspTransform::AesGcm8,
                    12 => EspTransform::AesGcm12,
                    _ => EspTransform::AesGcm16,
                };
                (transform, None, Some(key_octets))
            }
            TekCipher::AesGmac { key_octets } => (EspTransform::NullAuthAesGmac, None, Some(key_octets)),
            TekCipher::Null { authentication } => (EspTransform::Null, Some(authentication), None),
        };
        let mut attributes = Vec::new();
        let mut life = |life_type: LifeType, value: u32| {
            attributes.push(Attribute::basic(IpsecAttribute::LifeType.number(), life_type.number()));
            attributes.push(Attribute::variable(IpsecAttribute::LifeDuration.number(), value.to_be_bytes()));
        };
        life(LifeType::Seconds, self.lifetime_seconds);
        if let Some(kilobytes) = self.lifetime_kilobytes {
            life(LifeType::Kilobytes, kilobytes);
        }
        let mut basic = |kind: IpsecAttribute, value| attributes.push(Attribute::basic(kind.number(), value));
        let encapsulation = match self.encapsulation {
            Encapsulation::Tunnel => EncapsulationMode::Tunnel,
            Encapsulation::Transport => EncapsulationMode::Transport,
        };
        basic(IpsecAttribute::EncapsulationMode, encapsulation.number());
        if let Some(authentication) = authentication {
            basic(IpsecAttribute::AuthenticationAlgorithm, authentication.registry().number());
        }
        if let Some(key_octets) = key_octets {
            basic(IpsecAttribute::KeyLength, bits(key_octets));
        }
        match self.address_preservation {
            AddressPreservation::None => {
                basic(IpsecAttribute::AddressPreservation, AddressPreservationMode::None.number());
            }
            AddressPreservation::Source => {
                basic(IpsecAttribute::AddressPreservation, AddressPreservationMode::SourceOnly.number());
            }
            AddressPreservation::Destination => {
                basic(IpsecAttribute::AddressPreservation, AddressPreservationMode::DestinationOnly.number());
            }
            AddressPreservation::Both => {}
        }
        match self.direction {
            Direction::SenderOnly => basic(IpsecAttribute::SaDirection, SaDirection::SenderOnly.number()),
            Direction::ReceiverOnly => basic(IpsecAttribute::SaDirection, SaDirection::ReceiverOnly.number()),
            Direction::Symmetric => {}
        }
        EspTek {
            ip_protocol: self.ip_protocol,
            source: self.source.clone(),
            destination: self.destination.clone(),
            transform: transform.number(),
            spi: self.spi,
            attributes,
        }
    }

    /// True when the cipher counts (GCM, GMAC): it needs a Sender-ID.
    pub fn needs_sender_id(&self) -> bool {
        matches!(self.cipher, TekCipher::AesGcm { .. } | TekCipher::AesGmac { .. })
    }
}

fn unsupported(what: &'static str, value: u64) -> PolicyError {
    PolicyError::Unsupported { payload: PAYLOAD, what, value }
}

fn missing(what: &'static str) -> PolicyError {
    PolicyError::Missing { payload: PAYLOAD, what }
}

fn forbidden(rule: &'static str) -> PolicyError {
    PolicyError::Forbidden { payload: PAYLOAD, rule }
}

/// What the attributes of a SAT said so far.
#[derive(Default)]
struct Found {
    /// A Life Type whose Life Duration has not come yet.
    life_type: Option<LifeType>,
    seconds: Option<u32>,
    kilobytes: Option<u32>,
    encapsulation: Option<Encapsulation>,
    authentication: Option<TekAuthentication>,
    key_bits: Option<u64>,
    address_preservation: Option<AddressPreservation>,
    direction: Option<Direction>,
}

impl Found {
    fn take(&mut self, attribute: &Attribute) -> Result<(), PolicyError> {
        let value = |what| number::<u16>(PAYLOAD, what, attribute);
        match IpsecAttribute::from_number(attribute.kind) {
            IpsecAttribute::LifeType => {
                if self.life_type.is_some() {
                    return Err(forbidden("Life Type without Life Duration"));
                }
                self.life_type = Some(LifeType::from_number(value("SA Life Type")?));
            }
            IpsecAttribute::LifeDuration => {
                let life = match self.life_type.take() {
                    None => return Err(forbidden("Life Duration must follow Life Type")),
                    Some(LifeType::Seconds) => &mut self.seconds,
                    Some(LifeType::Kilobytes) => &mut self.kilobytes,
                    Some(LifeType::Other(other)) => {
                        return Err(unsupported("SA Life Type", u64::from(other)));
                    }
                };
                if life.is_some() {
                    return Err(forbidden("one life per Life Type"));
                }
                *life = Some(number(PAYLOAD, "SA Life Duration", attribute)?);
            }
            IpsecAttribute::EncapsulationMode => {
                self.encapsulation =
                    Some(match EncapsulationMode::from_number(value("Encapsulation Mode")?) {
                        EncapsulationMode::Tunnel => Encapsulation::Tunnel,
                        EncapsulationMode::Transport => Encapsulation::Transport,
                        other => return Err(unsupported("Encapsulation Mode", u64::from(other.number()))),
                    });
            }
            IpsecAttribute::AuthenticationAlgorithm => {
                let algorithm = AuthenticationAlgorithm::from_number(value("Authentication Algorithm")?);
                self.authentication = Some(match algorithm {
                    AuthenticationAlgorithm::HmacSha1 => TekAuthentication::HmacSha1,
                    AuthenticationAlgorithm::HmacSha256 => TekAuthentication::HmacSha256,
                    AuthenticationAlgorithm::HmacSha384 => TekAuthentication::HmacSha384,
                    AuthenticationAlgorithm::HmacSha512 => TekAuthentication::HmacSha512,
                    other => return Err(unsupported("Authentication Algorithm", u64::from(other.number()))),
                });
            }
            IpsecAttribute::KeyLength => self.key_bits = Some(u64::from(value("Key Length")?)),
            // 0 is reserved and sent for "absent" by an old key server; RFC 2407 section 4.5.3 lets policy go on.
            IpsecAttribute::AddressPreservation => {
                self.address_preservation = Some(match value("Address Preservation")? {
                    0 | 4 => AddressPreservation::Both,
                    1 => AddressPreservation::None,
                    2 => AddressPreservation::Source,
                    3 => AddressPreservation::Destination,
                    other => return Err(unsupported("Address Preservation", u64::from(other))),
                });
            }
            IpsecAttribute::SaDirection => {
                self.direction = Some(match value("SA Direction")? {
                    0 | 3 => Direction::Symmetric,
                    1 => Direction::SenderOnly,
                    2 => Direction::ReceiverOnly,
                    other => return Err(unsupported("SA Direction", u64::from(other))),
                });
            }
            IpsecAttribute::GroupDescription | IpsecAttribute::EcnTunnel => {}
            other @ (IpsecAttribute::KeyRounds
            | IpsecAttribute::CompressDictionarySize
            | IpsecAttribute::CompressPrivateAlgorithm
            | IpsecAttribute::ExtendedSequenceNumber
            | IpsecAttribute::AuthenticationKeyLength
            | IpsecAttribute::SignatureEncoding
            | IpsecAttribute::Other(_)) => {
                return Err(unsupported("SA attribute", u64::from(other.number())));
            }
        }
        Ok(())
    }

    fn policy(self, sat: &EspTek) -> Result<TekPolicy, PolicyError> {
        if self.life_type.is_some() {
            return Err(forbidden("Life Type without Life Duration"));
        }
        Ok(TekPolicy {
            spi: sat.spi,
            ip_protocol: sat.ip_protocol,
            source: sat.source.clone(),
            destination: sat.destination.clone(),
            cipher: self.cipher(sat.transform)?,
            lifetime_seconds: self.seconds.unwrap_or(DEFAULT_LIFETIME_SECONDS),
            lifetime_kilobytes: self.kilobytes,
            encapsulation: self.encapsulation.unwrap_or(Encapsulation::Tunnel),
            address_preservation: self.address_preservation.unwrap_or(AddressPreservation::Both),
            direction: self.direction.unwrap_or(Direction::Symmetric),
            delay_window: None,
        })
    }

    fn cipher(&self, transform: u8) -> Result<TekCipher, PolicyError> {
        let key_octets = || aes_octets(PAYLOAD, "Key Length", self.key_bits.ok_or(missing("Key Length"))?);
        let authentication = || self.authentication.ok_or(missing("Authentication Algorithm"));
        let combined = || match self.authentication {
            None => key_octets(),
            Some(_) => Err(forbidden("a combined mode has no Authentication Algorithm")),
        };
        Ok(match EspTransform::from_number(transform) {
            EspTransform::AesCbc => {
                TekCipher::AesCbc { key_octets: key_octets()?, authentication: authentication()? }
            }
            EspTransform::AesGcm8 => TekCipher::AesGcm { key_octets: combined()?, icv_octets: 8 },
            EspTransform::AesGcm12 => TekCipher::AesGcm { key_octets: combined()?, icv_octets: 12 },
            EspTransform::AesGcm16 => TekCipher::AesGcm { key_octets: combined()?, icv_octets: 16 },
            EspTransform::NullAuthAesGmac => TekCipher::AesGmac { key_octets: combined()? },
            EspTransform::Null if self.key_bits.is_some() => {
                return Err(forbidden("Key Length with a cipher that has no key"));
            }
            EspTransform::Null => TekCipher::Null { authentication: authentication()? },
            other => return Err(unsupported("ESP transform", u64::from(other.number()))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sat(transform: u8, pairs: &[(u16, u16)]) -> EspTek {
        let endpoint = |last| Endpoint { id_type: IdType::Ipv4Addr, port: 0, data: vec![192, 0, 2, last] };
        EspTek {
            ip_protocol: 0,
            source: endpoint(1),
            destination: endpoint(2),
            transform,
            spi: Spi(0x1_0001),
            attributes: pairs.iter().map(|(kind, value)| Attribute::basic(*kind, *value)).collect(),
        }
    }

    fn read(transform: u8, pairs: &[(u16, u16)]) -> Result<TekPolicy, PolicyError> {
        TekPolicy::read(&sat(transform, pairs))
    }

    #[test]
    fn absent_attributes_have_their_defaults() {
        let policy = read(20, &[(6, 128)]).unwrap();
        assert_eq!(policy.lifetime_seconds, 28800);
        assert_eq!(policy.address_preservation, AddressPreservation::Both);
        assert_eq!(policy.direction, Direction::Symmetric);
        assert_eq!(policy.encapsulation, Encapsulation::Tunnel);
        assert!(policy.needs_sender_id());
        assert_eq!(read(20, &[(6, 128), (14, 0), (15, 0)]), Ok(policy));
    }

    #[test]
    fn every_cipher_is_written_as_read() {
        for (transform, pairs) in [
            (12, &[(5, 5), (6, 256)][..]),
            (18, &[(6, 128)]),
            (19, &[(6, 192)]),
            (20, &[(6, 256)]),
            (23, &[(6, 128)]),
            (11, &[(5, 7)]),
        ] {
            let pairs: Vec<(u16, u16)> = pairs
                .iter()
                .copied()
                .chain([(4, 2), (14, 2), (15, 1), (1, 2), (2, 9), (1, 1), (2, 60)])
                .collect();
            let policy = read(transform, &pairs).unwrap();
            assert_eq!((policy.lifetime_seconds, policy.lifetime_kilobytes), (60, Some(9)));
            assert_eq!(policy.write().transform, transform);
            assert_eq!(TekPolicy::read(&policy.write()), Ok(policy));
        }
    }

    #[test]
    fn lives_come_in_pairs() {
        let life = |pairs: &[(u16, u16)]| {
            let pairs: Vec<(u16, u16)> = pairs.iter().copied().chain([(6, 128)]).collect();
            read(20, &pairs)
        };
        assert!(life(&[(1, 1), (2, 60)]).is_ok());
        for bad in [
            &[(2, 60)][..],
            &[(1, 1)],
            &[(1, 1), (2, 60), (2, 60)],
            &[(1, 1), (1, 2), (2, 60)],
            &[(1, 1), (2, 60), (1, 1), (2, 60)],
            &[(1, 3), (2, 60)],
            &[(2, 60), (1, 1)],
        ] {
            assert!(life(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn transforms_without_what_they_need_are_refused() {
        for (transform, pairs) in [
            (12, &[(5, 5)][..]),
            (12, &[(6, 128)]),
            (20, &[]),
            (20, &[(6, 128), (5, 5)]),
            (20, &[(6, 160)]),
            (11, &[(5, 5), (6, 128)]),
            (11, &[]),
            (12, &[(5, 1), (6, 128)]),
            (3, &[(5, 5)]),
            (13, &[(5, 5), (6, 128)]),
            (20, &[(6, 128), (6, 128)]),
            (20, &[(6, 128), (11, 1)]),
            (20, &[(6, 128), (100, 1)]),
            (20, &[(6, 128), (4, 3)]),
            (20, &[(6, 128), (15, 4)]),
        ] {
            assert!(read(transform, pairs).is_err(), "{transform} {pairs:?}");
        }
        assert!(read(20, &[(6, 128), (3, 14), (10, 1)]).is_ok());
    }

    #[test]
    fn selectors_are_addresses_or_any() {
        let mut named = sat(20, &[(6, 128)]);
        named.source.id_type = IdType::Fqdn;
        assert!(TekPolicy::read(&named).is_err());
        named.source.data.clear();
        assert!(TekPolicy::read(&named).is_ok());
    }
}
