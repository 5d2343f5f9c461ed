//! What old peers do differently, one word each; without words the RFC form holds.
//!
//! A deviation of a layout is a matter of the decoders and encoders (`sak-6-octets`, `id-length-2-octets`,
//! `large-offers`); one of a value is undone on what arrives and done to what leaves, here and nowhere else.

use crate::attribute::Attribute;
use crate::ids::{GroupId, KekSpi};
use crate::payload::{GdoiSa, KeyDownload, KeyPacket, SaTek};
use crate::registry::{EspTransform, IdType, IpsecAttribute, SidAttribute};

macro_rules! words {
    ($($(#[$doc:meta])* $field:ident = $word:literal),+ $(,)?) => {
        /// Deviations of one peer, each opened by its `compat` word; all off is the RFC form.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Dialect {
            $($(#[$doc])* pub $field: bool,)+
        }

        impl Dialect {
            /// The RFC form.
            pub const STRICT: Dialect = Dialect { $($field: false,)+ };

            /// Every word, in the order of the documentation.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// Turns `word` on; false when there is no such word.
            pub fn set(&mut self, word: &str) -> bool {
                match word {
                    $($word => self.$field = true,)+
                    _ => return false,
                }
                true
            }

            /// The words that are on.
            pub fn words(&self) -> impl Iterator<Item = &'static str> {
                [$((self.$field, $word)),+].into_iter().filter(|(on, _)| *on).map(|(_, word)| word)
            }
        }
    };
}

words! {
    /// Send and take DOI 1 in phase 1.
    phase1_doi_ipsec = "phase1-doi-ipsec",
    /// Up to 8 proposals, 512 transforms and 16 KiB in a phase 1 offer.
    large_offers = "large-offers",
    /// Group number of an ID_KEY_ID little-endian.
    group_id_little_endian = "group-id-little-endian",
    /// IPv4 addresses of SAT selectors little-endian.
    selectors_little_endian = "selectors-little-endian",
    /// The group named by an ID_IPV4_ADDR or ID_IPV6_ADDR.
    group_id_address = "group-id-address",
    /// RSA signature of a PUSH over the bare digest, without DigestInfo.
    bare_digest_signature = "bare-digest-signature",
    /// The header that the signature of a PUSH covers has the length with CBC padding.
    padded_length_signature = "padded-length-signature",
    /// ECDSA signature of phase 1 over the hash of HASH_I or HASH_R.
    ecdsa_double_hash = "ecdsa-double-hash",
    /// 6 reserved octets after the SAK's SPI.
    sak_6_octets = "sak-6-octets",
    /// ID data length of SAK and SAT in 2 octets.
    id_length_2_octets = "id-length-2-octets",
    /// Key Length of AES-GCM counts the salt of 32 bits.
    gcm_key_length_with_salt = "gcm-key-length-with-salt",
    /// L in the acknowledgement key is the output length of the hash.
    ack_l_output = "ack-l-output",
    /// SID_VALUE little-endian.
    sid_little_endian = "sid-little-endian",
    /// The KEK packet of a PUSH has the SPI of the KEK that protects it, and its successor goes on counting.
    kek_old_spi = "kek-old-spi",
}

/// Octets of the salt of AES-GCM (RFC 4106 section 4), in bits.
const SALT_BITS: u64 = 32;

impl Dialect {
    /// The words that shape a PUSH: one PUSH is signed for a whole group, so its members must agree on them.
    pub fn of_push(self) -> Dialect {
        Dialect {
            phase1_doi_ipsec: false,
            large_offers: false,
            group_id_little_endian: false,
            group_id_address: false,
            ecdsa_double_hash: false,
            ack_l_output: false,
            sid_little_endian: false,
            ..self
        }
    }

    /// A group's name as it stands on the peer's side of the wire, and back: its own inverse.
    pub fn group_id(self, mut id: GroupId) -> GroupId {
        if self.group_id_little_endian && id.id_type == IdType::KeyId {
            id.data.reverse();
        }
        id
    }

    /// An SA payload as the peer expects it.
    pub fn sa_to_peer(self, mut sa: GdoiSa) -> GdoiSa {
        sa.wide_id_lengths = self.id_length_2_octets;
        if let Some(sak) = sa.kek.as_mut().filter(|_| self.sak_6_octets) {
            sak.reserved2 = vec![0; 6];
        }
        self.swap_selectors(&mut sa);
        if self.gcm_key_length_with_salt {
            change_gcm_key_lengths(&mut sa, |bits| bits.checked_add(SALT_BITS));
        }
        sa
    }

    /// An SA payload of the peer in the RFC form.
    pub fn sa_from_peer(self, mut sa: GdoiSa) -> GdoiSa {
        sa.wide_id_lengths = false;
        if let Some(sak) = sa.kek.as_mut() {
            sak.reserved2.truncate(4);
        }
        self.swap_selectors(&mut sa);
        if self.gcm_key_length_with_salt {
            change_gcm_key_lengths(&mut sa, |bits| match bits {
                160 | 224 | 288 => bits.checked_sub(SALT_BITS),
                _ => None,
            });
        }
        sa
    }

    /// A KD as the peer expects it. `protecting` is the KEK of the PUSH that carries it; none in a PULL.
    pub fn kd_to_peer(self, mut kd: KeyDownload, protecting: Option<KekSpi>) -> KeyDownload {
        if let Some(old) = protecting.filter(|_| self.kek_old_spi) {
            rename_kek(&mut kd, old);
        }
        self.swap_sender_ids(&mut kd);
        kd
    }

    /// A KD of the peer in the RFC form. `sak` is the SPI that its SA payload names.
    pub fn kd_from_peer(self, mut kd: KeyDownload, sak: Option<KekSpi>) -> KeyDownload {
        if let Some(new) = sak.filter(|_| self.kek_old_spi) {
            rename_kek(&mut kd, new);
        }
        self.swap_sender_ids(&mut kd);
        kd
    }

    fn swap_selectors(self, sa: &mut GdoiSa) {
        if !self.selectors_little_endian {
            return;
        }
        for tek in &mut sa.teks {
            let (SaTek::Esp(tek) | SaTek::Ah(tek)) = tek else { continue };
            for selector in [&mut tek.source, &mut tek.destination] {
                if matches!(selector.id_type, IdType::Ipv4Addr | IdType::Ipv4Subnet | IdType::Ipv4Range) {
                    selector.data.chunks_exact_mut(4).for_each(<[u8]>::reverse);
                }
            }
        }
    }

    fn swap_sender_ids(self, kd: &mut KeyDownload) {
        if !self.sid_little_endian {
            return;
        }
        for packet in &mut kd.packets {
            let KeyPacket::SenderIds { attributes } = packet else { continue };
            for attribute in attributes.iter_mut().filter(|it| it.kind == SidAttribute::Value.number()) {
                let swapped =
                    attribute.octets().map(|octets| octets.iter().rev().copied().collect::<Vec<u8>>());
                if let Some(octets) = swapped {
                    *attribute = Attribute::variable(attribute.kind, octets);
                }
            }
        }
    }
}

/// Rewrites the Key Length of every AES-GCM SAT for which `change` has a value.
fn change_gcm_key_lengths(sa: &mut GdoiSa, change: impl Fn(u64) -> Option<u64>) {
    for tek in &mut sa.teks {
        let SaTek::Esp(tek) = tek else { continue };
        let gcm = matches!(
            EspTransform::from_number(tek.transform),
            EspTransform::AesGcm8 | EspTransform::AesGcm12 | EspTransform::AesGcm16
        );
        for attribute in
            tek.attributes.iter_mut().filter(|it| gcm && it.kind == IpsecAttribute::KeyLength.number())
        {
            let changed = attribute.integer().and_then(&change).and_then(|bits| u16::try_from(bits).ok());
            if let Some(bits) = changed {
                *attribute = Attribute::basic(attribute.kind, bits);
            }
        }
    }
}

fn rename_kek(kd: &mut KeyDownload, to: KekSpi) {
    for packet in &mut kd.packets {
        if let KeyPacket::Kek { spi, .. } = packet {
            *spi = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Spi;
    use crate::payload::{Endpoint, EspTek, SaKek};

    fn with(word: &str) -> Dialect {
        let mut dialect = Dialect::STRICT;
        assert!(dialect.set(word), "{word}");
        dialect
    }

    fn endpoint(id_type: IdType, data: &[u8]) -> Endpoint {
        Endpoint { id_type, port: 0, data: data.to_vec() }
    }

    fn sa() -> GdoiSa {
        let any = endpoint(IdType::Ipv4Addr, &[192, 0, 2, 1]);
        GdoiSa {
            kek: Some(SaKek {
                protocol: 17,
                source: any.clone(),
                destination: any,
                spi: KekSpi([7; 16]),
                reserved2: vec![0; 4],
                attributes: vec![Attribute::basic(2, 3)],
            }),
            teks: vec![SaTek::Esp(EspTek {
                ip_protocol: 0,
                source: endpoint(IdType::Ipv4Subnet, &[10, 1, 2, 0, 255, 255, 255, 0]),
                destination: endpoint(IdType::Ipv6Addr, &[9; 16]),
                transform: 20,
                spi: Spi(0x1_0000),
                attributes: vec![Attribute::basic(6, 256)],
            })],
            ..GdoiSa::default()
        }
    }

    #[test]
    fn every_word_opens_one_deviation_and_other_words_none() {
        for word in Dialect::WORDS {
            let dialect = with(word);
            assert_ne!(dialect, Dialect::STRICT);
            assert_eq!(dialect.words().collect::<Vec<_>>(), [*word]);
        }
        assert!(!Dialect::STRICT.clone().set("strict"));
    }

    #[test]
    fn what_leaves_in_a_dialect_comes_back_in_the_rfc_form() {
        for word in Dialect::WORDS {
            let dialect = with(word);
            assert_eq!(dialect.sa_from_peer(dialect.sa_to_peer(sa())), sa(), "{word}");
        }
        assert_eq!(Dialect::STRICT.sa_to_peer(sa()), sa());
    }

    #[test]
    fn only_the_addresses_of_ipv4_selectors_turn_round() {
        let sent = with("selectors-little-endian").sa_to_peer(sa());
        let SaTek::Esp(tek) = &sent.teks[0] else { panic!() };
        assert_eq!(tek.source.data, [0, 2, 1, 10, 0, 255, 255, 255]);
        assert_eq!(tek.destination.data, [9; 16]);
        assert_eq!(sent.kek, sa().kek);
    }

    #[test]
    fn a_gcm_key_length_may_count_the_salt() {
        let sent = with("gcm-key-length-with-salt").sa_to_peer(sa());
        let SaTek::Esp(tek) = &sent.teks[0] else { panic!() };
        assert_eq!(tek.attributes, [Attribute::basic(6, 288)]);
        // One that does not count it is taken as it is.
        assert_eq!(with("gcm-key-length-with-salt").sa_from_peer(sa()), sa());
    }

    #[test]
    fn the_kek_packet_of_a_push_may_have_the_old_spi_and_sender_ids_turn_round() {
        let (old, new) = (KekSpi([1; 16]), KekSpi([2; 16]));
        let value = |octets: &[u8]| Attribute::variable(2, octets.to_vec());
        let kd = KeyDownload {
            packets: vec![
                KeyPacket::Kek { spi: new, attributes: vec![] },
                KeyPacket::SenderIds { attributes: vec![Attribute::basic(1, 16), value(&[0, 0, 1, 2])] },
            ],
        };
        let sent = with("kek-old-spi").kd_to_peer(kd.clone(), Some(old));
        assert!(matches!(sent.packets[0], KeyPacket::Kek { spi, .. } if spi == old));
        assert_eq!(with("kek-old-spi").kd_from_peer(sent, Some(new)), kd);
        assert_eq!(with("kek-old-spi").kd_to_peer(kd.clone(), None), kd, "a PULL has the new one");
        let sent = with("sid-little-endian").kd_to_peer(kd.clone(), None);
        let KeyPacket::SenderIds { attributes } = &sent.packets[1] else { panic!() };
        assert_eq!(attributes[1], value(&[2, 1, 0, 0]));
        assert_eq!(with("sid-little-endian").kd_from_peer(sent, None), kd);
    }

    #[test]
    fn a_little_endian_group_number_turns_round_and_an_address_does_not() {
        let dialect = with("group-id-little-endian");
        assert_eq!(dialect.group_id(GroupId::number(1234)).data, [0xd2, 4, 0, 0]);
        assert_eq!(dialect.group_id(dialect.group_id(GroupId::number(1234))), GroupId::number(1234));
        let address = GroupId::address("239.1.2.3".parse().unwrap());
        assert_eq!(dialect.group_id(address.clone()), address);
    }
}
