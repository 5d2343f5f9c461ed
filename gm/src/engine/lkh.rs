//! The keys a member holds of its group's key tree (RFC 6407 section 5.6.3): from its own leaf to the root, which is the KEK.
//!
//! A PUSH that excludes somebody carries arrays; each names the key it is sealed under. Whoever holds none of these keys
//! is excluded, or missed an update before.

use gdoi_proto::payload::{LkhDownload, LkhKey, LkhUpdate};
use gdoi_proto::policy::KekKey;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;
use ike::crypto::cipher::CipherKey;
use thiserror::Error;

/// Octets of the IV in front of a key: one block.
const IV: usize = 16;

/// Why a PUSH with arrays brings no new KEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LkhError {
    /// No array is for us.
    #[error(
        "no key array of the PUSH is sealed under a key we hold: excluded from the group, or an update was missed"
    )]
    Excluded,
    /// The key that should open an array is no AES-128 or AES-256 key, or the array is no whole number of blocks.
    #[error("a key array of the PUSH cannot be opened: its keys are not AES-128 or AES-256")]
    Unreadable,
}

/// Our path of the tree, leaf first, root last.
#[derive(Debug, Clone)]
pub struct KeyPath {
    keys: Vec<LkhKey>,
}

impl KeyPath {
    /// The path of an LKH_DOWNLOAD_ARRAY.
    pub fn new(download: LkhDownload) -> KeyPath {
        KeyPath { keys: download.keys }
    }

    /// The keys, leaf first.
    pub fn keys(&self) -> &[LkhKey] {
        &self.keys
    }

    /// The key of our leaf, without IV.
    pub fn leaf_key(&self) -> Option<SecretBytes> {
        let (_, key) = self.keys.first()?.data.split_first_chunk::<IV>()?;
        Some(SecretBytes::copy(key))
    }

    /// The path after a PUSH, and IV and key of the new root. The old path stays as it is: nothing is replaced before the
    /// whole PUSH is accepted.
    ///
    /// # Errors
    /// [`LkhError`]: no array is for us, or one cannot be opened.
    pub fn updated(&self, updates: &[LkhUpdate]) -> Result<(KeyPath, KekKey), LkhError> {
        let mut keys = self.keys.clone();
        let mut used = false;
        for update in updates {
            let holds = |key: &LkhKey| (key.id, key.handle) == (update.id, update.handle);
            let Some(place) = keys.iter().position(holds) else { continue };
            keys.truncate(place.saturating_add(1));
            for sealed in &update.keys {
                let under = keys.last().ok_or(LkhError::Unreadable)?;
                let data = open(under, sealed).ok_or(LkhError::Unreadable)?;
                keys.push(LkhKey { data: data.into(), ..sealed.clone() });
            }
            used = true;
        }
        let root = keys.last().filter(|_| used).ok_or(LkhError::Excluded)?;
        let (iv, key) = root.data.split_first_chunk::<IV>().ok_or(LkhError::Unreadable)?;
        let kek = KekKey { iv: iv.to_vec(), key: SecretBytes::copy(key), public_key: None };
        Ok((KeyPath { keys }, kek))
    }
}

/// Key data under the key in front of it: CBC with that key's own IV, without padding.
fn open(under: &LkhKey, sealed: &LkhKey) -> Option<Vec<u8>> {
    let (iv, key) = under.data.split_first_chunk::<IV>()?;
    let cipher = Cipher::with_key_len(key.len())?;
    CipherKey::new(cipher, SecretBytes::copy(key))?.decrypt(iv, &sealed.data)
}

#[cfg(test)]
mod tests {
    use gdoi_proto::ids::{KekSpi, SeqNumber};
    use gdoi_proto::message::{Chain, Rules};
    use gdoi_proto::payload::{KeyPacket, Payload};
    use gdoi_proto::policy::{KekPolicy, SignatureAlgorithm};
    use gdoi_proto::registry::PayloadType;

    use super::super::pull::Download;
    use super::super::terms::Age;
    use super::super::testing::{Bench, kek, policy, tek};
    use super::*;

    fn octets(value: &serde_json::Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    fn attribute_values(kd: &[u8], kind: u16) -> Vec<Vec<u8>> {
        let mut octets = vec![0, 0];
        octets.extend(u16::try_from(kd.len() + 4).unwrap().to_be_bytes());
        octets.extend(kd);
        let chain = Chain::decode(PayloadType::Kd, &octets, Rules::GROUP_OPENED).unwrap();
        let Payload::Kd(kd) = &chain.payloads[0].payload else { panic!("no KD") };
        let KeyPacket::Lkh { attributes, .. } = &kd.packets[0] else { panic!("no LKH packet") };
        let of_kind = attributes.iter().filter(|attribute| attribute.kind == kind);
        of_kind.map(|attribute| attribute.octets().unwrap().to_vec()).collect()
    }

    #[test]
    fn members_of_the_vectors_reach_the_new_root_and_the_excluded_one_does_not() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/data/vectors/gdoi-lkh.json")).unwrap();
        let updates: Vec<LkhUpdate> = attribute_values(&octets(&vectors["update_kd_payload_body"]), 2)
            .iter()
            .map(|value| LkhUpdate::decode(value).unwrap())
            .collect();
        for (leaf, kd) in vectors["download_kd_payload_body_by_leaf"].as_object().unwrap() {
            let download = LkhDownload::decode(&attribute_values(&octets(kd), 1)[0]).unwrap();
            let path = KeyPath::new(download);
            match path.updated(&updates) {
                Err(error) => assert_eq!((leaf.as_str(), error), ("12", LkhError::Excluded)),
                Ok((updated, kek)) => {
                    let root = octets(&vectors["root_key_data_seen_by_leaf_after_update"][leaf]);
                    let whole = |kek: KekKey| [&kek.iv, kek.key.expose()].concat();
                    assert_eq!(whole(kek), root);
                    let again = updated.updated(&updates).map(|(_, kek)| whole(kek));
                    assert_eq!(again, Ok(root), "a copy changes nothing");
                }
            }
        }
    }

    #[test]
    fn the_push_of_the_vectors_leads_every_member_but_the_excluded_one_to_the_new_kek() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/data/vectors/gdoi-lkh.json")).unwrap();
        let push = &vectors["push"];
        let spi = KekSpi(octets(&push["kek_spi"]).try_into().unwrap());
        let sak =
            KekPolicy { spi, signature: SignatureAlgorithm::Rsa, acknowledgement: None, ..kek(1, 7200) };
        let policy = policy(Some(sak), vec![tek(300, 3600)]);
        for (leaf, kd) in vectors["download_kd_payload_body_by_leaf"].as_object().unwrap() {
            let download = LkhDownload::decode(&attribute_values(&octets(kd), 1)[0]).unwrap();
            let key = KekKey {
                iv: octets(&push["kek_iv"]),
                key: SecretBytes::new(octets(&push["kek_key"])),
                public_key: Some(octets(&push["sig_pubkey"])),
            };
            let mut keys = Bench::new().keys(&policy, true);
            (keys.kek, keys.lkh_download) = (Some(key), Some(download));
            let mut bench = Bench::new();
            bench.begin();
            let registered =
                Download { policy: policy.clone(), keys, seq: SeqNumber(0), age: Age::default() };
            let here = "192.0.2.10".parse().unwrap();
            bench.step(|vpn, cx| vpn.on_keys(registered, here, cx)).unwrap();
            bench.receive(&octets(&push["message"]).into());
            let kek = bench.vpn.keyring.kek().unwrap();
            if leaf == "12" {
                assert_eq!(kek.policy.spi, spi);
                assert!(bench.happened("push_refused") && bench.pass(30), "it registers again");
            } else {
                let root = octets(&vectors["root_key_data_seen_by_leaf_after_update"][leaf]);
                assert_eq!([&kek.cipher.iv[..], kek.key().expose()].concat(), root);
                assert!(bench.happened("push_accepted"));
            }
        }
    }

    #[test]
    fn keys_that_are_no_whole_blocks_are_refused_without_a_change() {
        let key = |handle, length| LkhKey {
            id: 1,
            key_type: 3,
            created: 0,
            expires: 0,
            handle,
            data: vec![7; length].into(),
        };
        let path = KeyPath::new(LkhDownload { keys: vec![key(1, 32)] });
        let update = |length| [LkhUpdate { id: 1, handle: 1, keys: vec![key(2, length)] }];
        assert_eq!(path.updated(&update(33)).err(), Some(LkhError::Unreadable));
        assert!(path.updated(&update(48)).is_ok());
    }
}
