//! A KD payload read against the SA payload it belongs to (RFC 6407 section 5.6).

use super::{Carriage, GroupPolicy, KekCipher, KekPolicy, TekCipher, number, refuse_repeats};
use crate::attribute::Attribute;
use crate::error::{DecodeError, PolicyError};
use crate::ids::{KekSpi, SenderId, Spi};
use crate::payload::{KeyDownload, KeyPacket, LkhDownload, LkhKey, LkhUpdate};
use crate::registry::{KekKeyAttribute, LkhAttribute, PayloadType, SidAttribute, TekKeyAttribute};
use crate::secret::SecretBytes;

const PAYLOAD: PayloadType = PayloadType::Kd;

/// A KEK as downloaded: one cipher block of IV, the key, and the public key that verifies PUSHes.
#[derive(Debug, Clone)]
pub struct KekKey {
    /// CBC IV of every PUSH under this KEK, one block.
    pub iv: Vec<u8>,
    /// Cipher key.
    pub key: SecretBytes,
    /// DER SubjectPublicKeyInfo; absent when the member has it from elsewhere.
    pub public_key: Option<Vec<u8>>,
}

/// Keys of a TEK.
#[derive(Debug, Clone)]
pub struct TekKey {
    /// TEK_ALGORITHM_KEY: key, and salt last for counter modes. Empty for NULL.
    pub encryption: SecretBytes,
    /// TEK_INTEGRITY_KEY; absent for combined modes.
    pub integrity: Option<SecretBytes>,
}

/// Sender-IDs of a PULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderIds {
    /// 8, 12 or 16.
    pub bits: u8,
    /// At least one.
    pub values: Vec<SenderId>,
}

/// A KD payload read against the SA payload it belongs to (RFC 6407 section 5.6).
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    /// KEK packet; or the last key of the LKH_DOWNLOAD_ARRAY, which is the KEK, with the array's SIG_ALGORITHM_KEY.
    /// None beside LKH_UPDATE_ARRAYs: there the KEK is still encrypted.
    pub kek: Option<KekKey>,
    /// TEK packets by SPI, in the order sent.
    pub teks: Vec<(Spi, TekKey)>,
    /// SID packet.
    pub sender_ids: Option<SenderIds>,
    /// LKH_DOWNLOAD_ARRAY of a PULL.
    pub lkh_download: Option<LkhDownload>,
    /// LKH_UPDATE_ARRAYs of a PUSH.
    pub lkh_updates: Vec<LkhUpdate>,
    /// SIG_ALGORITHM_KEY beside LKH_UPDATE_ARRAYs, DER SubjectPublicKeyInfo.
    pub lkh_public_key: Option<Vec<u8>>,
}

impl KeySet {
    /// Reads a KD against its policy: SPIs must match, keys must have the lengths of their algorithms, one KEK or
    /// LKH packet at most, one SID packet at most and none in a PUSH. A TEK without packet is legal in a PULL.
    ///
    /// # Errors
    /// [`PolicyError`] naming the rule.
    pub fn read(kd: &KeyDownload, policy: &GroupPolicy, carriage: Carriage) -> Result<KeySet, PolicyError> {
        let mut set = KeySet::default();
        let (mut kek_packet, mut sid_packet) = (false, false);
        for packet in &kd.packets {
            refuse_repeats(PAYLOAD, packet.attributes(), |kind| may_repeat(packet, kind))?;
            match packet {
                KeyPacket::Tek { spi, attributes } => {
                    let Some(tek) = policy.teks.iter().find(|tek| tek.spi == *spi) else {
                        return Err(forbidden("a TEK packet whose SPI is in no SAT"));
                    };
                    if set.teks.iter().any(|(earlier, _)| earlier == spi) {
                        return Err(forbidden("two TEK packets for one SPI"));
                    }
                    set.teks.push((*spi, TekKey::read(attributes, tek.cipher)?));
                }
                KeyPacket::Kek { spi, attributes } => {
                    let kek = rekey_policy(policy, *spi)?;
                    if std::mem::replace(&mut kek_packet, true) {
                        return Err(forbidden("one KEK or LKH packet"));
                    }
                    set.kek = Some(KekKey::read(attributes, kek.cipher)?);
                }
                KeyPacket::Lkh { spi, attributes } => {
                    let kek = rekey_policy(policy, *spi)?;
                    if std::mem::replace(&mut kek_packet, true) {
                        return Err(forbidden("one KEK or LKH packet"));
                    }
                    set.read_lkh(attributes, kek.cipher, carriage)?;
                }
                KeyPacket::SenderIds { attributes } => {
                    if carriage == Carriage::Push {
                        return Err(forbidden("no SID packet in a PUSH"));
                    }
                    if std::mem::replace(&mut sid_packet, true) {
                        return Err(forbidden("one SID packet"));
                    }
                    set.sender_ids = Some(SenderIds::read(attributes)?);
                }
            }
        }
        if policy.kek.is_some() && !kek_packet {
            return Err(missing("KEK or LKH packet"));
        }
        if carriage == Carriage::Push && set.teks.len() < policy.teks.len() {
            return Err(missing("TEK packet"));
        }
        Ok(set)
    }

    /// Writes the KD: KEK (or LKH, when there are arrays), TEKs, SID, in this order. Without a rekey policy there is
    /// no KEK packet.
    pub fn write(&self, policy: &GroupPolicy) -> KeyDownload {
        let mut packets = Vec::new();
        if let Some(kek) = &policy.kek {
            packets.extend(self.write_kek(kek));
        }
        for (spi, key) in &self.teks {
            packets.push(KeyPacket::Tek { spi: *spi, attributes: key.write() });
        }
        if let Some(sender_ids) = &self.sender_ids {
            packets.push(KeyPacket::SenderIds { attributes: sender_ids.write() });
        }
        KeyDownload { packets }
    }
}

fn forbidden(rule: &'static str) -> PolicyError {
    PolicyError::Forbidden { payload: PAYLOAD, rule }
}

fn malformed(what: &'static str, error: DecodeError) -> PolicyError {
    PolicyError::Malformed { what, error }
}

fn missing(what: &'static str) -> PolicyError {
    PolicyError::Missing { payload: PAYLOAD, what }
}

fn unknown_attribute(kind: u16) -> PolicyError {
    PolicyError::Unsupported { payload: PAYLOAD, what: "key attribute", value: u64::from(kind) }
}

/// The octets of an attribute that must be a TLV.
fn variable(attribute: &Attribute) -> Result<&[u8], PolicyError> {
    attribute.octets().ok_or(forbidden("a key must be a variable-length attribute"))
}

/// SID_VALUE and LKH_UPDATE_ARRAY may stand several times.
fn may_repeat(packet: &KeyPacket, kind: u16) -> bool {
    match packet {
        KeyPacket::SenderIds { .. } => kind == SidAttribute::Value.number(),
        KeyPacket::Lkh { .. } => kind == LkhAttribute::UpdateArray.number(),
        KeyPacket::Tek { .. } | KeyPacket::Kek { .. } => false,
    }
}

/// The rekey policy, whose SPI a KEK or LKH packet must carry.
fn rekey_policy(policy: &GroupPolicy, spi: KekSpi) -> Result<&KekPolicy, PolicyError> {
    policy.kek.as_ref().filter(|kek| kek.spi == spi).ok_or(forbidden("a KEK packet whose SPI is in no SAK"))
}

impl KeySet {
    fn read_lkh(
        &mut self,
        attributes: &[Attribute],
        cipher: KekCipher,
        carriage: Carriage,
    ) -> Result<(), PolicyError> {
        let mut public_key = None;
        for attribute in attributes {
            let octets = variable(attribute)?;
            match LkhAttribute::from_number(attribute.kind) {
                LkhAttribute::DownloadArray if carriage == Carriage::Push => {
                    return Err(forbidden("no LKH_DOWNLOAD_ARRAY in a PUSH"));
                }
                LkhAttribute::UpdateArray if carriage == Carriage::Pull => {
                    return Err(forbidden("no LKH_UPDATE_ARRAY in a PULL"));
                }
                LkhAttribute::DownloadArray => {
                    let download = LkhDownload::decode(octets)
                        .map_err(|error| malformed("LKH_DOWNLOAD_ARRAY", error))?;
                    check_lkh_keys(&download.keys, cipher)?;
                    self.lkh_download = Some(download);
                }
                LkhAttribute::UpdateArray => {
                    let update =
                        LkhUpdate::decode(octets).map_err(|error| malformed("LKH_UPDATE_ARRAY", error))?;
                    check_lkh_keys(&update.keys, cipher)?;
                    self.lkh_updates.push(update);
                }
                LkhAttribute::SigAlgorithmKey => public_key = Some(octets.to_vec()),
                LkhAttribute::Other(kind) => return Err(unknown_attribute(kind)),
            }
        }
        let root = self.lkh_download.as_ref().and_then(|download| download.keys.last());
        match root {
            Some(root) => self.kek = Some(KekKey::split(&root.data, cipher, public_key)?),
            None if self.lkh_updates.is_empty() => return Err(missing("an LKH array")),
            None => self.lkh_public_key = public_key,
        }
        Ok(())
    }

    /// The KEK or LKH packet, if there is anything to put into one.
    fn write_kek(&self, policy: &KekPolicy) -> Option<KeyPacket> {
        let spi = policy.spi;
        if self.lkh_download.is_none() && self.lkh_updates.is_empty() {
            return self.kek.as_ref().map(|kek| KeyPacket::Kek { spi, attributes: kek.write() });
        }
        let mut attributes = Vec::new();
        if let Some(download) = &self.lkh_download {
            attributes.push(Attribute::variable(LkhAttribute::DownloadArray.number(), download.encode()));
        }
        for update in &self.lkh_updates {
            attributes.push(Attribute::variable(LkhAttribute::UpdateArray.number(), update.encode()));
        }
        let from_kek = || self.kek.as_ref().and_then(|kek| kek.public_key.as_ref());
        if let Some(public_key) = self.lkh_public_key.as_ref().or_else(from_kek) {
            attributes.push(Attribute::variable(LkhAttribute::SigAlgorithmKey.number(), public_key.clone()));
        }
        Some(KeyPacket::Lkh { spi, attributes })
    }
}

/// All keys of a hierarchy have the algorithm of the KEK (RFC 6407 section 5.3.2).
fn check_lkh_keys(keys: &[LkhKey], cipher: KekCipher) -> Result<(), PolicyError> {
    for key in keys {
        if u16::from(key.key_type) != cipher.registry().number() {
            return Err(forbidden("an LKH key of another algorithm than the KEK's"));
        }
        check_kek_length("LKH key", cipher, key.data.len())?;
    }
    Ok(())
}

fn check_kek_length(what: &'static str, cipher: KekCipher, had: usize) -> Result<(), PolicyError> {
    if cipher.key_octets_for(had).is_some() {
        return Ok(());
    }
    let key_octets = match cipher {
        KekCipher::AesCbc { key_octets: 0 } => 16,
        KekCipher::AesCbc { key_octets } => key_octets,
        KekCipher::TripleDesCbc => 24,
    };
    Err(PolicyError::KeyLength { what, needed: cipher.block_octets().saturating_add(key_octets), had })
}

impl KekKey {
    fn read(attributes: &[Attribute], cipher: KekCipher) -> Result<KekKey, PolicyError> {
        let (mut key, mut public_key) = (None, None);
        for attribute in attributes {
            let octets = variable(attribute)?;
            match KekKeyAttribute::from_number(attribute.kind) {
                KekKeyAttribute::AlgorithmKey => key = Some(octets),
                KekKeyAttribute::SigAlgorithmKey => public_key = Some(octets.to_vec()),
                KekKeyAttribute::Other(kind) => return Err(unknown_attribute(kind)),
            }
        }
        KekKey::split(key.ok_or(missing("KEK_ALGORITHM_KEY"))?, cipher, public_key)
    }

    /// Splits `IV | key`.
    fn split(octets: &[u8], cipher: KekCipher, public_key: Option<Vec<u8>>) -> Result<KekKey, PolicyError> {
        check_kek_length("KEK_ALGORITHM_KEY", cipher, octets.len())?;
        let (iv, key) = octets.split_at_checked(cipher.block_octets()).unwrap_or_default();
        Ok(KekKey { iv: iv.to_vec(), key: SecretBytes::copy(key), public_key })
    }

    fn write(&self) -> Vec<Attribute> {
        let mut octets = self.iv.clone();
        octets.extend_from_slice(self.key.expose());
        let mut attributes = vec![Attribute::variable(KekKeyAttribute::AlgorithmKey.number(), octets)];
        if let Some(public_key) = &self.public_key {
            attributes
                .push(Attribute::variable(KekKeyAttribute::SigAlgorithmKey.number(), public_key.clone()));
        }
        attributes
    }
}

impl TekKey {
    fn read(attributes: &[Attribute], cipher: TekCipher) -> Result<TekKey, PolicyError> {
        let (mut encryption, mut integrity) = (None, None);
        for attribute in attributes {
            let octets = variable(attribute)?;
            match TekKeyAttribute::from_number(attribute.kind) {
                TekKeyAttribute::AlgorithmKey => encryption = Some(octets),
                TekKeyAttribute::IntegrityKey => integrity = Some(octets),
                TekKeyAttribute::SourceAuthKey => return Err(unknown_attribute(attribute.kind)),
                TekKeyAttribute::Other(kind) => return Err(unknown_attribute(kind)),
            }
        }
        // RFC 6407 section 5.6.1.2 lists AES-GMAC under the integrity keys, yet ESP transform 23 is a cipher: either.
        if matches!(cipher, TekCipher::AesGmac { .. }) && encryption.is_none() {
            encryption = integrity.take();
        }
        let needed = cipher.encryption_octets();
        let encryption = match encryption {
            None if needed == 0 => &[],
            None => return Err(missing("TEK_ALGORITHM_KEY")),
            Some(octets) => octets,
        };
        if encryption.len() != needed {
            return Err(PolicyError::KeyLength { what: "TEK_ALGORITHM_KEY", needed, had: encryption.len() });
        }
        let integrity = match (cipher.authentication(), integrity) {
            (None, None) => None,
            (None, Some(_)) => return Err(forbidden("TEK_INTEGRITY_KEY with a combined mode")),
            (Some(_), None) => return Err(missing("TEK_INTEGRITY_KEY")),
            (Some(algorithm), Some(octets)) if octets.len() == algorithm.key_octets() => {
                Some(SecretBytes::copy(octets))
            }
            (Some(algorithm), Some(octets)) => {
                let needed = algorithm.key_octets();
                return Err(PolicyError::KeyLength { what: "TEK_INTEGRITY_KEY", needed, had: octets.len() });
            }
        };
        Ok(TekKey { encryption: SecretBytes::copy(encryption), integrity })
    }

    fn write(&self) -> Vec<Attribute> {
        let mut attributes = Vec::new();
        if !self.encryption.is_empty() {
            attributes
                .push(Attribute::variable(TekKeyAttribute::AlgorithmKey.number(), self.encryption.expose()));
        }
        if let Some(integrity) = &self.integrity {
            attributes.push(Attribute::variable(TekKeyAttribute::IntegrityKey.number(), integrity.expose()));
        }
        attributes
    }
}

impl SenderIds {
    fn read(attributes: &[Attribute]) -> Result<SenderIds, PolicyError> {
        let (mut bits, mut values) = (None, Vec::new());
        for attribute in attributes {
            match SidAttribute::from_number(attribute.kind) {
                SidAttribute::NumberOfBits => {
                    bits = Some(number::<u8>(PAYLOAD, "NUMBER_OF_SID_BITS", attribute)?)
                }
                SidAttribute::Value => values.push(SenderId(number::<u32>(PAYLOAD, "SID_VALUE", attribute)?)),
                SidAttribute::Other(kind) => return Err(unknown_attribute(kind)),
            }
        }
        let bits = bits.ok_or(missing("NUMBER_OF_SID_BITS"))?;
        if !matches!(bits, 8 | 12 | 16) {
            let value = u64::from(bits);
            return Err(PolicyError::Unsupported { payload: PAYLOAD, what: "NUMBER_OF_SID_BITS", value });
        }
        if values.is_empty() {
            return Err(missing("SID_VALUE"));
        }
        if values.iter().any(|sid| sid.0.checked_shr(u32::from(bits)).is_some_and(|over| over != 0)) {
            return Err(forbidden("a SID_VALUE does not fit its bits"));
        }
        Ok(SenderIds { bits, values })
    }

    fn write(&self) -> Vec<Attribute> {
        let mut attributes =
            vec![Attribute::basic(SidAttribute::NumberOfBits.number(), u16::from(self.bits))];
        attributes.extend(
            self.values
                .iter()
                .map(|sid| Attribute::variable(SidAttribute::Value.number(), sid.0.to_be_bytes())),
        );
        attributes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{TekAuthentication, TekKey};

    fn tek(cipher: TekCipher, lengths: &[(u16, usize)]) -> Result<TekKey, PolicyError> {
        let attributes: Vec<Attribute> =
            lengths.iter().map(|(kind, length)| Attribute::variable(*kind, vec![7; *length])).collect();
        TekKey::read(&attributes, cipher)
    }

    #[test]
    fn keys_of_every_cipher_have_their_length() {
        let cbc = TekCipher::AesCbc { key_octets: 32, authentication: TekAuthentication::HmacSha256 };
        let gcm = TekCipher::AesGcm { key_octets: 16, icv_octets: 16 };
        let gmac = TekCipher::AesGmac { key_octets: 16 };
        let null = TekCipher::Null { authentication: TekAuthentication::HmacSha1 };
        for (cipher, good) in [
            (cbc, &[(1, 32), (2, 32)][..]),
            (gcm, &[(1, 20)]),
            (gmac, &[(1, 20)]),
            (gmac, &[(2, 20)]),
            (null, &[(2, 20)]),
        ] {
            let key = tek(cipher, good).unwrap();
            assert_eq!(key.encryption.len(), cipher.encryption_octets());
            assert_eq!(key.integrity.is_some(), cipher.authentication().is_some());
        }
        for (cipher, bad) in [
            (cbc, &[(1, 32)][..]),
            (cbc, &[(2, 32)]),
            (cbc, &[(1, 16), (2, 32)]),
            (cbc, &[(1, 32), (2, 20)]),
            (gcm, &[(1, 16)]),
            (gcm, &[(2, 20)]),
            (gcm, &[(1, 20), (2, 20)]),
            (gmac, &[(1, 20), (2, 20)]),
            (null, &[(1, 1), (2, 20)]),
            (gcm, &[(1, 20), (3, 1)]),
            (gcm, &[(1, 20), (128, 1)]),
        ] {
            assert!(tek(cipher, bad).is_err(), "{cipher:?} {bad:?}");
        }
    }

    #[test]
    fn a_kek_without_key_length_takes_the_length_of_its_key() {
        let cipher = KekCipher::AesCbc { key_octets: 0 };
        for length in [32, 40, 48] {
            let kek = KekKey::read(&[Attribute::variable(1, vec![7; length])], cipher).unwrap();
            assert_eq!((kek.iv.len(), kek.key.len()), (16, length - 16));
        }
        assert!(KekKey::read(&[Attribute::variable(1, vec![7; 33])], cipher).is_err());
        assert!(KekKey::read(&[Attribute::basic(1, 7)], cipher).is_err());
        assert!(KekKey::read(&[Attribute::variable(2, vec![7; 33])], cipher).is_err());
    }

    #[test]
    fn sender_ids_fit_their_bits_and_come_in_any_width() {
        let read = |bits: u16, values: &[&[u8]]| {
            let mut attributes = vec![Attribute::basic(1, bits)];
            attributes.extend(values.iter().map(|value| Attribute::variable(2, value.to_vec())));
            SenderIds::read(&attributes)
        };
        let ids = read(12, &[&[0x0a, 0xbc], &[0, 0, 0, 0, 0, 0, 0, 1]]).unwrap();
        assert_eq!(ids, SenderIds { bits: 12, values: vec![SenderId(0xabc), SenderId(1)] });
        assert_eq!(SenderIds::read(&ids.write()), Ok(ids));
        assert!(read(12, &[&[0x10, 0]]).is_err());
        assert!(read(12, &[&[]]).is_err());
        assert!(read(12, &[]).is_err());
        assert!(read(9, &[&[1]]).is_err());
        assert!(read(16, &[&[1, 0, 0, 0, 0]]).is_err());
    }

    #[test]
    fn a_pull_may_leave_a_tek_for_later_and_a_push_may_not() {
        let endpoint =
            crate::payload::Endpoint { id_type: crate::registry::IdType::Ipv4Addr, port: 0, data: vec![] };
        let attributes = vec![Attribute::basic(6, 128)];
        let sat = crate::payload::EspTek {
            ip_protocol: 0,
            source: endpoint.clone(),
            destination: endpoint,
            transform: 20,
            spi: Spi(0x1_0000),
            attributes,
        };
        let policy = GroupPolicy {
            kek: None,
            activation_delay: 0,
            deactivation_delay: None,
            teks: vec![crate::policy::TekPolicy::read(&sat).unwrap()],
        };
        let empty = KeyDownload::default();
        assert!(KeySet::read(&empty, &policy, Carriage::Pull).is_ok());
        assert!(matches!(KeySet::read(&empty, &policy, Carriage::Push), Err(PolicyError::Missing { .. })));
    }
}
