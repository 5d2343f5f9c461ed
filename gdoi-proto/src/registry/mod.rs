//! Every IANA number once. Unknown values are kept and printed, never dropped.

use std::fmt;

/// Declares an enum over a wire number that keeps unknown values.
macro_rules! registry {
    ($(#[$meta:meta])* $name:ident: $repr:ty { $($(#[$vmeta:meta])* $variant:ident = $value:literal => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(#[doc = $text] $(#[$vmeta])* $variant,)+
            /// A value that is not in the table.
            Other($repr),
        }

        impl $name {
            /// Every named value, in the order of the registry.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The number on the wire.
            pub const fn number(self) -> $repr {
                match self {
                    $($name::$variant => $value,)+
                    $name::Other(number) => number,
                }
            }

            /// The value of a number on the wire.
            pub const fn from_number(number: $repr) -> $name {
                match number {
                    $($value => $name::$variant,)+
                    other => $name::Other(other),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($name::$variant => f.write_str($text),)+
                    $name::Other(number) => write!(f, "{number}"),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($name::$variant => f.write_str($text),)+
                    $name::Other(number) => write!(f, concat!(stringify!($name), "({})"), number),
                }
            }
        }
    };
}

mod gdoi;

pub use gdoi::*;

registry! {
    /// Exchange types (RFC 2408 section 3.1, RFC 6407 section 8, RFC 8263 section 8).
    ExchangeType: u8 {
        Base = 1 => "Base",
        MainMode = 2 => "Main Mode",
        AuthenticationOnly = 3 => "Authentication Only",
        Aggressive = 4 => "Aggressive",
        Informational = 5 => "Informational",
        GroupkeyPull = 32 => "GROUPKEY-PULL",
        GroupkeyPush = 33 => "GROUPKEY-PUSH",
        GroupkeyPushAck = 35 => "GROUPKEY-PUSH-ACK",
    }
}

registry! {
    /// Payload types (RFC 2408 section 3.1, RFC 6407 section 5, RFC 3947 section 9).
    PayloadType: u8 {
        None = 0 => "NONE",
        Sa = 1 => "SA",
        Proposal = 2 => "P",
        Transform = 3 => "T",
        Ke = 4 => "KE",
        Id = 5 => "ID",
        Cert = 6 => "CERT",
        CertRequest = 7 => "CERTREQ",
        Hash = 8 => "HASH",
        Sig = 9 => "SIG",
        Nonce = 10 => "NONCE(10)",
        Notify = 11 => "N",
        Delete = 12 => "D",
        VendorId = 13 => "VID",
        SaKek = 15 => "SAK",
        SaTek = 16 => "SAT",
        Kd = 17 => "KD",
        Seq = 18 => "SEQ",
        Pop = 19 => "POP",
        NatD = 20 => "NAT-D",
        NatOa = 21 => "NAT-OA",
        Gap = 22 => "GAP",
    }
}

registry! {
    /// Domains of interpretation (RFC 2408 section 2.1, RFC 6407 section 2.1).
    Doi: u32 { Isakmp = 0 => "ISAKMP", Ipsec = 1 => "IPsec", Gdoi = 2 => "GDOI", }
}

registry! {
    /// Identification types under the GDOI DOI (RFC 2407 section 4.6.2.1, RFC 8052 section 4).
    IdType: u8 {
        Ipv4Addr = 1 => "ID_IPV4_ADDR",
        Fqdn = 2 => "ID_FQDN",
        UserFqdn = 3 => "ID_USER_FQDN",
        Ipv4Subnet = 4 => "ID_IPV4_ADDR_SUBNET",
        Ipv6Addr = 5 => "ID_IPV6_ADDR",
        Ipv6Subnet = 6 => "ID_IPV6_ADDR_SUBNET",
        Ipv4Range = 7 => "ID_IPV4_ADDR_RANGE",
        Ipv6Range = 8 => "ID_IPV6_ADDR_RANGE",
        DerAsn1Dn = 9 => "ID_DER_ASN1_DN",
        DerAsn1Gn = 10 => "ID_DER_ASN1_GN",
        KeyId = 11 => "ID_KEY_ID",
        List = 12 => "ID_LIST",
        Oid = 13 => "ID_OID",
    }
}

registry! {
    /// Notify message types (RFC 2408 section 3.14.1, RFC 2407 section 4.6.3, RFC 3706 section 5.2).
    NotifyType: u16 {
        InvalidPayloadType = 1 => "INVALID-PAYLOAD-TYPE",
        DoiNotSupported = 2 => "DOI-NOT-SUPPORTED",
        SituationNotSupported = 3 => "SITUATION-NOT-SUPPORTED",
        InvalidCookie = 4 => "INVALID-COOKIE",
        InvalidMajorVersion = 5 => "INVALID-MAJOR-VERSION",
        InvalidMinorVersion = 6 => "INVALID-MINOR-VERSION",
        InvalidExchangeType = 7 => "INVALID-EXCHANGE-TYPE",
        InvalidFlags = 8 => "INVALID-FLAGS",
        InvalidMessageId = 9 => "INVALID-MESSAGE-ID",
        InvalidProtocolId = 10 => "INVALID-PROTOCOL-ID",
        InvalidSpi = 11 => "INVALID-SPI",
        InvalidTransformId = 12 => "INVALID-TRANSFORM-ID",
        AttributesNotSupported = 13 => "ATTRIBUTES-NOT-SUPPORTED",
        NoProposalChosen = 14 => "NO-PROPOSAL-CHOSEN",
        BadProposalSyntax = 15 => "BAD-PROPOSAL-SYNTAX",
        PayloadMalformed = 16 => "PAYLOAD-MALFORMED",
        InvalidKeyInformation = 17 => "INVALID-KEY-INFORMATION",
        InvalidIdInformation = 18 => "INVALID-ID-INFORMATION",
        InvalidCertEncoding = 19 => "INVALID-CERT-ENCODING",
        InvalidCertificate = 20 => "INVALID-CERTIFICATE",
        CertTypeUnsupported = 21 => "CERT-TYPE-UNSUPPORTED",
        InvalidCertAuthority = 22 => "INVALID-CERT-AUTHORITY",
        InvalidHashInformation = 23 => "INVALID-HASH-INFORMATION",
        AuthenticationFailed = 24 => "AUTHENTICATION-FAILED",
        InvalidSignature = 25 => "INVALID-SIGNATURE",
        AddressNotification = 26 => "ADDRESS-NOTIFICATION",
        NotifySaLifetime = 27 => "NOTIFY-SA-LIFETIME",
        CertificateUnavailable = 28 => "CERTIFICATE-UNAVAILABLE",
        UnsupportedExchangeType = 29 => "UNSUPPORTED-EXCHANGE-TYPE",
        UnequalPayloadLengths = 30 => "UNEQUAL-PAYLOAD-LENGTHS",
        Connected = 16384 => "CONNECTED",
        ResponderLifetime = 24576 => "RESPONDER-LIFETIME",
        ReplayStatus = 24577 => "REPLAY-STATUS",
        InitialContact = 24578 => "INITIAL-CONTACT",
        RUThere = 36136 => "R-U-THERE",
        RUThereAck = 36137 => "R-U-THERE-ACK",
    }
}

registry! {
    /// Phase 1 attribute classes (RFC 2409 appendix A).
    IkeAttribute: u16 {
        Encryption = 1 => "Encryption Algorithm",
        Hash = 2 => "Hash Algorithm",
        Authentication = 3 => "Authentication Method",
        Group = 4 => "Group Description",
        GroupType = 5 => "Group Type",
        GroupPrime = 6 => "Group Prime",
        GroupGeneratorOne = 7 => "Group Generator One",
        GroupGeneratorTwo = 8 => "Group Generator Two",
        GroupCurveA = 9 => "Group Curve A",
        GroupCurveB = 10 => "Group Curve B",
        LifeType = 11 => "Life Type",
        LifeDuration = 12 => "Life Duration",
        Prf = 13 => "PRF",
        KeyLength = 14 => "Key Length",
        FieldSize = 15 => "Field Size",
        GroupOrder = 16 => "Group Order",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published numbers, in the order of each registry.
    #[test]
    fn tables_hold_the_published_numbers() {
        macro_rules! published {
            ($($name:ident: $numbers:expr;)+) => {$(
                let numbers: Vec<u64> = $name::ALL.iter().map(|value| u64::from(value.number())).collect();
                assert_eq!(numbers, Vec::<u64>::from($numbers), stringify!($name));
                for value in $name::ALL {
                    assert_eq!($name::from_number(value.number()), *value);
                }
            )+};
        }
        let notify: Vec<u64> = (1..=30).chain([16384, 24576, 24577, 24578, 36136, 36137]).collect();
        published! {
            ExchangeType: [1, 2, 3, 4, 5, 32, 33, 35];
            PayloadType: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22];
            Doi: [0, 1, 2];
            IdType: (1..=13).collect::<Vec<u64>>();
            NotifyType: notify;
            TekProtocol: [1, 2, 3];
            KekAttribute: (1..=9).collect::<Vec<u64>>();
            KekManagement: [1];
            KekAlgorithm: [1, 2, 3];
            SigHashAlgorithm: [1, 2, 3, 4, 5];
            SigAlgorithm: [1, 2, 3, 4, 5, 6];
            AckType: [1, 2, 3, 4];
            GapAttribute: [1, 2, 3, 240, 241];
            IpsecAttribute: (1..=15).collect::<Vec<u64>>();
            LifeType: [1, 2];
            EncapsulationMode: [1, 2, 3, 4];
            EspTransform: [2, 3, 11, 12, 13, 14, 15, 16, 18, 19, 20, 23];
            AuthenticationAlgorithm: [1, 2, 5, 6, 7, 9, 10, 11, 12, 13];
            AddressPreservationMode: [1, 2, 3, 4];
            SaDirection: [1, 2, 3];
            KdType: [1, 2, 3, 4];
            TekKeyAttribute: [1, 2, 3];
            KekKeyAttribute: [1, 2];
            LkhAttribute: [1, 2, 3];
            SidAttribute: [1, 2];
            IecAuthentication: [1, 2, 3, 4, 5];
            IecEncryption: [1, 2, 3, 4, 5];
            IecAttribute: [1, 2];
            IkeAttribute: (1..=16).collect::<Vec<u64>>();
        }
    }

    #[test]
    fn names_stay_with_their_numbers() {
        assert_eq!(PayloadType::SaKek.number(), 15);
        assert_eq!(PayloadType::Gap.number(), 22);
        assert_eq!(IdType::Oid.number(), 13);
        assert_eq!(NotifyType::InitialContact.number(), 24578);
        assert_eq!(IpsecAttribute::SaDirection.number(), 15);
        assert_eq!(EspTransform::AesGcm16.number(), 20);
        assert_eq!(AuthenticationAlgorithm::HmacSha256.number(), 5);
        assert_eq!(KekAttribute::AckRequested.number(), 9);
    }

    #[test]
    fn unknown_values_are_kept_and_printed() {
        let exchange = ExchangeType::from_number(239);
        assert_eq!((exchange.number(), exchange.to_string()), (239, "239".to_owned()));
        assert_eq!(format!("{exchange:?}"), "ExchangeType(239)");
    }
}
