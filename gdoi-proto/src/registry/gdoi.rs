//! Numbers that only group payloads use (RFC 6407 section 8, RFC 8052 section 4, RFC 8263 section 8).

use std::fmt;

registry! {
    /// Protocols of a SAT and, besides 0 for the KEK, of a Delete (RFC 6407 section 5.5, RFC 8052 section 4).
    TekProtocol: u8 {
        Esp = 1 => "GDOI_PROTO_IPSEC_ESP",
        Ah = 2 => "GDOI_PROTO_IPSEC_AH",
        Iec61850 = 3 => "GDOI_PROTO_IEC_61850",
    }
}

registry! {
    /// SAK attributes (RFC 6407 section 5.3, RFC 8263 section 8). 8 was KE_OAKLEY_GROUP in RFC 3547.
    KekAttribute: u16 {
        ManagementAlgorithm = 1 => "KEK_MANAGEMENT_ALGORITHM",
        Algorithm = 2 => "KEK_ALGORITHM",
        KeyLength = 3 => "KEK_KEY_LENGTH",
        KeyLifetime = 4 => "KEK_KEY_LIFETIME",
        SigHashAlgorithm = 5 => "SIG_HASH_ALGORITHM",
        SigAlgorithm = 6 => "SIG_ALGORITHM",
        SigKeyLength = 7 => "SIG_KEY_LENGTH",
        KeOakleyGroup = 8 => "KE_OAKLEY_GROUP",
        AckRequested = 9 => "KEK_ACK_REQUESTED",
    }
}

registry! {
    /// KEK_MANAGEMENT_ALGORITHM (RFC 6407 section 5.3.1).
    KekManagement: u16 { Lkh = 1 => "LKH", }
}

registry! {
    /// KEK_ALGORITHM, also the key type of an LKH key (RFC 6407 section 5.3.2).
    KekAlgorithm: u16 { Des = 1 => "DES-CBC", TripleDes = 2 => "3DES-CBC", Aes = 3 => "AES-CBC", }
}

registry! {
    /// SIG_HASH_ALGORITHM (RFC 6407 section 5.3.5).
    SigHashAlgorithm: u16 {
        Md5 = 1 => "MD5",
        Sha1 = 2 => "SHA1",
        Sha256 = 3 => "SHA256",
        Sha384 = 4 => "SHA384",
        Sha512 = 5 => "SHA512",
    }
}

registry! {
    /// SIG_ALGORITHM (RFC 6407 section 5.3.6).
    SigAlgorithm: u16 {
        Rsa = 1 => "RSA",
        Dss = 2 => "DSS",
        Ecdss = 3 => "ECDSS",
        Ecdsa256 = 4 => "ECDSA-256",
        Ecdsa384 = 5 => "ECDSA-384",
        Ecdsa521 = 6 => "ECDSA-521",
    }
}

registry! {
    /// KEK_ACK_REQUESTED (RFC 8263 section 2).
    AckType: u16 {
        KekSha256 = 1 => "REKEY_ACK_KEK_SHA256",
        LkhSha256 = 2 => "REKEY_ACK_LKH_SHA256",
        KekSha512 = 3 => "REKEY_ACK_KEK_SHA512",
        LkhSha512 = 4 => "REKEY_ACK_LKH_SHA512",
    }
}

registry! {
    /// GAP attributes (RFC 6407 section 5.4).
    GapAttribute: u16 {
        ActivationTimeDelay = 1 => "ACTIVATION_TIME_DELAY",
        DeactivationTimeDelay = 2 => "DEACTIVATION_TIME_DELAY",
        SenderIdRequest = 3 => "SENDER_ID_REQUEST",
        DelayDetectionType = 240 => "D3P-TYPE (private use)",
        DelayDetectionWindow = 241 => "D3P-WINDOWSIZE (private use)",
    }
}

registry! {
    /// IPsec DOI attributes of an ESP or AH SAT (RFC 2407 section 4.5, RFC 4304, RFC 4359, RFC 6407 section 5.5.1).
    IpsecAttribute: u16 {
        LifeType = 1 => "SA Life Type",
        LifeDuration = 2 => "SA Life Duration",
        GroupDescription = 3 => "Group Description",
        EncapsulationMode = 4 => "Encapsulation Mode",
        AuthenticationAlgorithm = 5 => "Authentication Algorithm",
        KeyLength = 6 => "Key Length",
        KeyRounds = 7 => "Key Rounds",
        CompressDictionarySize = 8 => "Compress Dictionary Size",
        CompressPrivateAlgorithm = 9 => "Compress Private Algorithm",
        EcnTunnel = 10 => "ECN Tunnel",
        ExtendedSequenceNumber = 11 => "Extended Sequence Number",
        AuthenticationKeyLength = 12 => "Authentication Key Length",
        SignatureEncoding = 13 => "Signature Encoding Algorithm",
        AddressPreservation = 14 => "Address Preservation",
        SaDirection = 15 => "SA Direction",
    }
}

registry! {
    /// SA Life Type (RFC 2407 section 4.5).
    LifeType: u16 { Seconds = 1 => "seconds", Kilobytes = 2 => "kilobytes", }
}

registry! {
    /// Encapsulation Mode (RFC 2407 section 4.5, RFC 3947 section 5.1).
    EncapsulationMode: u16 {
        Tunnel = 1 => "tunnel",
        Transport = 2 => "transport",
        UdpTunnel = 3 => "UDP-encapsulated tunnel",
        UdpTransport = 4 => "UDP-encapsulated transport",
    }
}

registry! {
    /// ESP transforms (RFC 2407 section 4.4.4, RFC 3602, RFC 3686, RFC 4106, RFC 4309, RFC 4543).
    EspTransform: u8 {
        Des = 2 => "DES-CBC",
        TripleDes = 3 => "3DES-CBC",
        Null = 11 => "NULL",
        AesCbc = 12 => "AES-CBC",
        AesCtr = 13 => "AES-CTR",
        AesCcm8 = 14 => "AES-CCM-8",
        AesCcm12 = 15 => "AES-CCM-12",
        AesCcm16 = 16 => "AES-CCM-16",
        AesGcm8 = 18 => "AES-GCM-8",
        AesGcm12 = 19 => "AES-GCM-12",
        AesGcm16 = 20 => "AES-GCM-16",
        NullAuthAesGmac = 23 => "NULL_AUTH_AES-GMAC",
    }
}

registry! {
    /// Authentication Algorithm of an ESP or AH SA (RFC 2407 section 4.5, RFC 4868, RFC 4543).
    AuthenticationAlgorithm: u16 {
        HmacMd5 = 1 => "HMAC-MD5",
        HmacSha1 = 2 => "HMAC-SHA1",
        HmacSha256 = 5 => "HMAC-SHA2-256",
        HmacSha384 = 6 => "HMAC-SHA2-384",
        HmacSha512 = 7 => "HMAC-SHA2-512",
        AesXcbcMac = 9 => "AES-XCBC-MAC",
        SigRsa = 10 => "SIG-RSA",
        Aes128Gmac = 11 => "AES-128-GMAC",
        Aes192Gmac = 12 => "AES-192-GMAC",
        Aes256Gmac = 13 => "AES-256-GMAC",
    }
}

registry! {
    /// Address Preservation (RFC 6407 section 5.5.1.1.1).
    AddressPreservationMode: u16 {
        None = 1 => "none",
        SourceOnly = 2 => "source-only",
        DestinationOnly = 3 => "destination-only",
        SourceAndDestination = 4 => "source-and-destination",
    }
}

registry! {
    /// SA Direction (RFC 6407 section 5.5.1.1.2).
    SaDirection: u16 { SenderOnly = 1 => "sender-only", ReceiverOnly = 2 => "receiver-only", Symmetric = 3 => "symmetric", }
}

registry! {
    /// KD types (RFC 6407 section 5.6).
    KdType: u8 { Tek = 1 => "TEK", Kek = 2 => "KEK", Lkh = 3 => "LKH", Sid = 4 => "SID", }
}

registry! {
    /// Attributes of a TEK packet (RFC 6407 section 5.6.1).
    TekKeyAttribute: u16 {
        AlgorithmKey = 1 => "TEK_ALGORITHM_KEY",
        IntegrityKey = 2 => "TEK_INTEGRITY_KEY",
        SourceAuthKey = 3 => "TEK_SOURCE_AUTH_KEY",
    }
}

registry! {
    /// Attributes of a KEK packet (RFC 6407 section 5.6.2).
    KekKeyAttribute: u16 { AlgorithmKey = 1 => "KEK_ALGORITHM_KEY", SigAlgorithmKey = 2 => "SIG_ALGORITHM_KEY", }
}

registry! {
    /// Attributes of an LKH packet (RFC 6407 section 5.6.3).
    LkhAttribute: u16 {
        DownloadArray = 1 => "LKH_DOWNLOAD_ARRAY",
        UpdateArray = 2 => "LKH_UPDATE_ARRAY",
        SigAlgorithmKey = 3 => "SIG_ALGORITHM_KEY",
    }
}

registry! {
    /// Attributes of a SID packet (RFC 6407 section 5.6.4).
    SidAttribute: u16 { NumberOfBits = 1 => "NUMBER_OF_SID_BITS", Value = 2 => "SID_VALUE", }
}

registry! {
    /// Authentication algorithms of an IEC 61850 SAT (RFC 8052 section 2.2.1).
    IecAuthentication: u16 {
        None = 1 => "NONE",
        HmacSha256Truncated = 2 => "HMAC-SHA256-128",
        HmacSha256 = 3 => "HMAC-SHA256",
        AesGmac128 = 4 => "AES-GMAC-128",
        AesGmac256 = 5 => "AES-GMAC-256",
    }
}

registry! {
    /// Encryption algorithms of an IEC 61850 SAT (RFC 8052 section 2.2.2).
    IecEncryption: u16 {
        None = 1 => "NONE",
        AesCbc128 = 2 => "AES-CBC-128",
        AesCbc256 = 3 => "AES-CBC-256",
        AesGcm128 = 4 => "AES-GCM-128",
        AesGcm256 = 5 => "AES-GCM-256",
    }
}

registry! {
    /// Attributes of an IEC 61850 SAT (RFC 8052 section 2.2.3).
    IecAttribute: u16 { ActivationDelay = 1 => "SA_ATD", KeyDeliveryAssurance = 2 => "SA_KDA", }
}
