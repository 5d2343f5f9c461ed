//! `compat`: one word per deviation an old peer needs. Without words the strict RFC form holds.

use gdoi_proto::message::Dialect;

macro_rules! words {
    ($($(#[$doc:meta])* $field:ident = $word:literal),+ $(,)?) => {
        /// The words of a gateway's `compat` list; all off by default.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Compat {
            $($(#[$doc])* pub $field: bool,)+
        }

        impl Compat {
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
        }
    };
}

words! {
    /// Send and take DOI 1 in phase 1.
    phase1_doi_ipsec = "phase1-doi-ipsec",
    /// Up to 8 proposals, 512 transforms and 16 KiB in a phase 1 offer.
    large_offers = "large-offers",
    /// Group number little-endian.
    group_id_little_endian = "group-id-little-endian",
    /// Ports and protocol of selectors little-endian.
    selectors_little_endian = "selectors-little-endian",
    /// The group named by an address.
    group_id_address = "group-id-address",
    /// RSA signature over the bare digest.
    bare_digest_signature = "bare-digest-signature",
    /// ECDSA signature padded to a length field.
    padded_length_signature = "padded-length-signature",
    /// ECDSA over the hash of the hash.
    ecdsa_double_hash = "ecdsa-double-hash",
    /// 6 reserved octets after the SAK's SPI.
    sak_6_octets = "sak-6-octets",
    /// ID data length of SAK and SAT in 2 octets.
    id_length_2_octets = "id-length-2-octets",
    /// GCM key length counts the salt.
    gcm_key_length_with_salt = "gcm-key-length-with-salt",
    /// L in the acknowledgement key is the output length.
    ack_l_output = "ack-l-output",
    /// Sender-IDs little-endian.
    sid_little_endian = "sid-little-endian",
    /// KEK packet of a PUSH under the old SPI.
    kek_old_spi = "kek-old-spi",
}

impl Compat {
    /// What these words mean to the decoder of messages.
    pub fn dialect(&self) -> Dialect {
        Dialect {
            sak_6_octets: self.sak_6_octets,
            id_length_2_octets: self.id_length_2_octets,
            large_offers: self.large_offers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_opens_one_deviation_and_other_words_none() {
        for word in Compat::WORDS {
            let mut compat = Compat::default();
            assert!(compat.set(word), "{word}");
            assert_ne!(compat, Compat::default());
        }
        assert!(!Compat::default().set("strict"));
    }

    #[test]
    fn without_words_messages_are_read_strictly() {
        assert_eq!(Compat::default().dialect(), Dialect::STRICT);
        let mut compat = Compat::default();
        compat.set("sak-6-octets");
        assert!(compat.dialect().sak_6_octets);
    }
}
