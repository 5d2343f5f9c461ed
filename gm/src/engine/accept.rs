//! Is this policy ours to accept? Algorithms the configuration does not list refuse the whole policy; selectors outside
//! the allowed flows leave out their SA (RFC 6407 section 3.3, RFC 5374 section 4.1.3.5).

use std::net::IpAddr;

use gdoi_proto::ids::Spi;
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{
    GroupPolicy, KekCipher, KekPolicy, SignatureAlgorithm, SignatureHash, TekCipher, TekPolicy,
};
use gdoi_proto::registry::IdType;
use ike::approved;
use ike::crypto::Cipher;

use super::settings::{Flow, VpnSettings};
use super::snapshot::cipher_name;

/// Checks the algorithms and lives of `policy` against the VPN's settings.
///
/// # Errors
/// The reason, for the log and the operator.
pub fn check(settings: &VpnSettings, policy: &GroupPolicy) -> Result<(), String> {
    if let Some(kek) = &policy.kek {
        if kek.cipher == KekCipher::TripleDesCbc {
            return Err("the KEK cipher 3DES is not supported".to_owned());
        }
        if kek.signature_hash == SignatureHash::Sha1 {
            return Err("pushes signed with SHA-1 are not supported".to_owned());
        }
        if kek.lifetime_seconds == 0 {
            return Err("the KEK has no life left".to_owned());
        }
        // The size of an RSA key is known with the key only.
        let accepted = &settings.accept.rekey_signature;
        let listed = accepted.iter().any(|(algorithm, _)| *algorithm == kek.signature);
        if !accepted.is_empty() && !listed {
            return Err(format!("rekey signature {} is not in accept", kek.signature.registry()));
        }
    }
    if settings.approved_only {
        check_approved(policy)?;
    }
    for tek in &policy.teks {
        if !settings.accept.encryption(tek.cipher) {
            return Err(format!("encryption {} of SA {} is not in accept", cipher_name(tek.cipher), tek.spi));
        }
        if tek.lifetime_seconds == 0 {
            return Err(format!("SA {} has no life left", tek.spi));
        }
        if tek.spi.0 < 256 {
            return Err(format!("SPI {} is reserved", tek.spi));
        }
    }
    Ok(())
}

/// `approved-only`: everything in the policy is in [`ike::approved`].
fn check_approved(policy: &GroupPolicy) -> Result<(), String> {
    let outside = |what: &str| format!("{what} is outside approved-only");
    if let Some(kek) = &policy.kek {
        approved::kek(kek).map_err(outside)?;
    }
    for tek in &policy.teks {
        approved::tek(tek.cipher).map_err(|what| format!("{} (SA {})", outside(what), tek.spi))?;
    }
    Ok(())
}

/// `approved-only`: no key travels under a phase 1 cipher weaker than itself (RFC 6407 section 7.1.2).
///
/// # Errors
/// The reason.
pub fn check_carrier(settings: &VpnSettings, carrier: Cipher, policy: &GroupPolicy) -> Result<(), String> {
    let kek = policy.kek.iter().map(|kek| match kek.cipher {
        KekCipher::AesCbc { key_octets } => key_octets,
        KekCipher::TripleDesCbc => 0,
    });
    let teks = policy.teks.iter().map(|tek| match tek.cipher {
        TekCipher::AesCbc { key_octets, .. }
        | TekCipher::AesGcm { key_octets, .. }
        | TekCipher::AesGmac { key_octets } => key_octets,
        TekCipher::Null { .. } => 0,
    });
    let strongest = kek.chain(teks).max().unwrap_or(0);
    if !settings.approved_only || carrier.key_len() >= strongest {
        return Ok(());
    }
    let (carrier, keys) = (carrier.key_len() * 8, strongest * 8);
    Err(format!("keys of {keys} bits under a phase 1 cipher of {carrier} bits are outside approved-only"))
}

/// Checks the size of an RSA key that verifies pushes: SIG_KEY_LENGTH is not to be trusted, peers count differently.
///
/// # Errors
/// The reason.
pub fn check_signing_key(
    settings: &VpnSettings,
    policy: &KekPolicy,
    public_key: &[u8],
) -> Result<(), String> {
    if policy.signature != SignatureAlgorithm::Rsa {
        return Ok(());
    }
    // A SubjectPublicKeyInfo of RSA has 38 octets around the modulus for every size from 2048 to 4096 bits.
    let bits = public_key.len().saturating_sub(38).saturating_mul(8);
    let accept = &settings.accept.rekey_signature;
    if !(2000..=8200).contains(&bits) {
        return Err(format!("an RSA key of about {bits} bits"));
    }
    if settings.approved_only && bits < approved::SMALLEST_RSA {
        return Err(format!("an RSA key of about {bits} bits is outside approved-only"));
    }
    let close = |listed: u16| bits.abs_diff(usize::from(listed)) < 64;
    if accept.is_empty()
        || accept.iter().any(|(algorithm, listed)| *algorithm == SignatureAlgorithm::Rsa && close(*listed))
    {
        return Ok(());
    }
    Err(format!("a rekey signature by RSA with about {bits} bits is not in accept"))
}

/// SPIs of the SAs whose selectors lie outside the allowed flows.
pub fn outside(flows: &[Flow], policy: &GroupPolicy) -> Vec<Spi> {
    policy.teks.iter().filter(|tek| !allowed(flows, tek)).map(|tek| tek.spi).collect()
}

fn allowed(flows: &[Flow], tek: &TekPolicy) -> bool {
    flows.is_empty()
        || flows
            .iter()
            .any(|flow| within(flow.source, &tek.source) && within(flow.destination, &tek.destination))
}

fn within((address, length): (IpAddr, u8), selector: &Endpoint) -> bool {
    let (prefix, v6) = match address {
        IpAddr::V4(address) => (range_of(u128::from(address.to_bits()), length, 32), false),
        IpAddr::V6(address) => (range_of(address.to_bits(), length, 128), true),
    };
    span(selector).is_some_and(|(first, last, is_v6)| is_v6 == v6 && prefix.0 <= first && last <= prefix.1)
}

fn range_of(address: u128, length: u8, width: u32) -> (u128, u128) {
    let all = u128::MAX >> (128 - width);
    let host = all.checked_shr(u32::from(length)).unwrap_or(0);
    (address & !host, address | host)
}

/// First and last address of a selector and whether they are IPv6.
fn span(selector: &Endpoint) -> Option<(u128, u128, bool)> {
    let v6 = match selector.id_type {
        IdType::Ipv4Addr | IdType::Ipv4Subnet | IdType::Ipv4Range => false,
        IdType::Ipv6Addr | IdType::Ipv6Subnet | IdType::Ipv6Range => true,
        _ => return None,
    };
    let all = if v6 { u128::MAX } else { u128::from(u32::MAX) };
    if selector.is_any() {
        return Some((0, all, v6));
    }
    let number = |octets: &[u8]| octets.iter().fold(0u128, |number, octet| number << 8 | u128::from(*octet));
    let (left, right) = selector.data.split_at_checked(selector.data.len() / 2)?;
    match selector.id_type {
        IdType::Ipv4Addr | IdType::Ipv6Addr => Some((number(&selector.data), number(&selector.data), v6)),
        IdType::Ipv4Subnet | IdType::Ipv6Subnet => {
            Some((number(left) & number(right), number(left) | (all & !number(right)), v6))
        }
        _ => Some((number(left), number(right), v6)),
    }
}

#[cfg(test)]
mod tests {
    use gdoi_proto::policy::TekAuthentication;

    use super::super::settings::{Accept, Encryption};
    use super::super::testing::{kek, policy, tek};
    use super::*;

    fn settings(encryption: Vec<Encryption>, signature: Vec<(SignatureAlgorithm, u16)>) -> VpnSettings {
        VpnSettings { accept: Accept { encryption, rekey_signature: signature }, ..VpnSettings::default() }
    }

    fn with_kek(change: impl FnOnce(&mut KekPolicy)) -> GroupPolicy {
        let mut sak = kek(1, 7200);
        change(&mut sak);
        policy(Some(sak), vec![tek(300, 3600)])
    }

    #[test]
    fn a_signature_outside_accept_is_refused_at_message_2() {
        let only_rsa = settings(Vec::new(), vec![(SignatureAlgorithm::Rsa, 3072)]);
        let only_384 = settings(Vec::new(), vec![(SignatureAlgorithm::Ecdsa384, 384)]);
        let rsa = with_kek(|sak| sak.signature = SignatureAlgorithm::Rsa);
        let ecdsa = with_kek(|_| ());
        assert!(check(&only_rsa, &rsa).is_ok(), "its size shows with the key");
        assert!(check(&only_384, &rsa).unwrap_err().contains("not in accept"));
        assert!(check(&only_rsa, &ecdsa).is_err() && check(&only_384, &ecdsa).is_err());
        assert!(
            check(&VpnSettings::default(), &rsa).is_ok() && check(&VpnSettings::default(), &ecdsa).is_ok()
        );
    }

    #[test]
    fn an_rsa_key_must_have_the_size_that_accept_names() {
        let sak = KekPolicy { signature: SignatureAlgorithm::Rsa, ..kek(1, 7200) };
        let only_3072 = settings(Vec::new(), vec![(SignatureAlgorithm::Rsa, 3072)]);
        // SubjectPublicKeyInfo of RSA 3072 and 2048.
        assert!(check_signing_key(&only_3072, &sak, &[0; 422]).is_ok());
        assert!(check_signing_key(&only_3072, &sak, &[0; 294]).is_err());
        assert!(check_signing_key(&VpnSettings::default(), &sak, &[0; 294]).is_ok());
        assert!(
            check_signing_key(&VpnSettings::default(), &sak, &[0; 162]).is_err(),
            "1024 bits are too few"
        );
    }

    #[test]
    fn every_cipher_outside_accept_is_refused_and_named() {
        let gcm = |key_octets| TekCipher::AesGcm { key_octets, icv_octets: 16 };
        let authentication = TekAuthentication::HmacSha256;
        let cbc = TekCipher::AesCbc { key_octets: 32, authentication };
        let with = |cipher| policy(None, vec![TekPolicy { cipher, ..tek(300, 3600) }]);
        let only_gcm = settings(vec![Encryption::AesGcm { key_octets: 32 }], Vec::new());
        assert!(check(&only_gcm, &with(gcm(32))).is_ok());
        for other in [gcm(16), cbc, TekCipher::Null { authentication }, TekCipher::AesGmac { key_octets: 32 }]
        {
            let reason = check(&only_gcm, &with(other)).unwrap_err();
            assert!(reason.contains("is not in accept"), "{reason}");
        }
        let mut two = with(gcm(32));
        two.teks.push(tek(301, 3600));
        assert!(check(&only_gcm, &two).is_err(), "one SA outside refuses the whole policy");
    }

    #[test]
    fn approved_only_refuses_every_key_outside_its_list() {
        let approved = VpnSettings { approved_only: true, ..VpnSettings::default() };
        let gcm = TekCipher::AesGcm { key_octets: 16, icv_octets: 16 };
        let cbc = |authentication| TekCipher::AesCbc { key_octets: 32, authentication };
        let with = |cipher| policy(Some(kek(1, 7200)), vec![TekPolicy { cipher, ..tek(300, 3600) }]);
        for inside in [gcm, cbc(TekAuthentication::HmacSha256), cbc(TekAuthentication::HmacSha512)] {
            assert_eq!(check(&approved, &with(inside)), Ok(()), "{inside:?}");
        }
        for outside in [
            cbc(TekAuthentication::HmacSha1),
            TekCipher::AesGmac { key_octets: 32 },
            TekCipher::Null { authentication: TekAuthentication::HmacSha256 },
        ] {
            assert_eq!(check(&VpnSettings::default(), &with(outside)), Ok(()), "{outside:?}");
            let reason = check(&approved, &with(outside)).unwrap_err();
            assert!(reason.contains("outside approved-only") && reason.contains("0x0000012c"), "{reason}");
        }
        let sak = KekPolicy { signature: SignatureAlgorithm::Rsa, ..kek(1, 7200) };
        assert!(check_signing_key(&approved, &sak, &[0; 294]).is_ok(), "RSA 2048");
        // 2040 bits pass elsewhere, since peers count differently.
        assert!(check_signing_key(&VpnSettings::default(), &sak, &[0; 293]).is_ok());
        assert!(check_signing_key(&approved, &sak, &[0; 293]).unwrap_err().contains("outside approved-only"));
    }

    #[test]
    fn approved_only_takes_no_key_under_a_weaker_phase_1() {
        let approved = VpnSettings { approved_only: true, ..VpnSettings::default() };
        let gcm = |key_octets| TekCipher::AesGcm { key_octets, icv_octets: 16 };
        let keys = |kek_octets, cipher| {
            let sak = KekPolicy { cipher: KekCipher::AesCbc { key_octets: kek_octets }, ..kek(1, 7200) };
            policy(Some(sak), vec![TekPolicy { cipher, ..tek(300, 3600) }])
        };
        let carried = |policy: &GroupPolicy| check_carrier(&approved, Cipher::Aes128Cbc, policy);
        assert_eq!(carried(&keys(16, gcm(16))), Ok(()));
        for stronger in [keys(32, gcm(16)), keys(16, gcm(32))] {
            let reason = carried(&stronger).unwrap_err();
            assert!(reason.contains("256 bits under a phase 1 cipher of 128 bits"), "{reason}");
            assert_eq!(check_carrier(&approved, Cipher::Aes256Cbc, &stronger), Ok(()));
            assert_eq!(check_carrier(&VpnSettings::default(), Cipher::Aes128Cbc, &stronger), Ok(()));
        }
    }

    #[test]
    fn what_no_push_could_be_verified_with_is_refused_before_it_registers() {
        let settings = VpnSettings::default();
        let sha1 = with_kek(|sak| sak.signature_hash = SignatureHash::Sha1);
        assert!(check(&settings, &sha1).unwrap_err().contains("SHA-1"));
        let des = with_kek(|sak| sak.cipher = KekCipher::TripleDesCbc);
        assert!(check(&settings, &des).unwrap_err().contains("3DES"));
        assert!(check(&settings, &with_kek(|sak| sak.lifetime_seconds = 0)).is_err());
    }

    fn selector(id_type: IdType, data: &[u8]) -> Endpoint {
        Endpoint { id_type, port: 0, data: data.to_vec() }
    }

    #[test]
    fn selectors_must_lie_within_the_prefix() {
        let prefix = ("172.16.0.0".parse().unwrap(), 12);
        let subnet = |data: [u8; 8]| within(prefix, &selector(IdType::Ipv4Subnet, &data));
        assert!(subnet([172, 16, 0, 0, 255, 240, 0, 0]));
        assert!(subnet([172, 20, 0, 0, 255, 255, 0, 0]));
        assert!(!subnet([172, 0, 0, 0, 255, 0, 0, 0]));
        assert!(!subnet([10, 0, 0, 0, 255, 240, 0, 0]));
        assert!(!subnet([0; 8]));
        assert!(within(prefix, &selector(IdType::Ipv4Range, &[172, 16, 0, 1, 172, 31, 255, 255])));
        assert!(!within(prefix, &selector(IdType::Ipv4Range, &[172, 16, 0, 1, 172, 32, 0, 0])));
        assert!(within(prefix, &selector(IdType::Ipv4Addr, &[172, 16, 0, 1])));
        assert!(!within(prefix, &selector(IdType::Ipv4Addr, &[])));
        assert!(within(("0.0.0.0".parse().unwrap(), 0), &selector(IdType::Ipv4Addr, &[])));
        assert!(!within(("0.0.0.0".parse().unwrap(), 0), &selector(IdType::Ipv6Addr, &[])));
    }
}
