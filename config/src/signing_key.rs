//! The signing key of a group: PKCS#8 in DER or PEM, checked against the `signature` it is meant for.

use gdoi_proto::policy::SignatureAlgorithm;
use gdoi_proto::secret::SecretBytes;

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const HINT: &str = "openssl pkcs8 -topk8 -nocrypt -in key -out key.pem";

/// The DER of `secret`, whose algorithm and size are those of `signature` with `bits`.
///
/// # Errors
/// What is wrong and what would be right; never an octet of the key.
pub fn read(
    secret: &SecretBytes,
    signature: SignatureAlgorithm,
    bits: u16,
) -> Result<SecretBytes, (String, String)> {
    let der = der(secret)?;
    let found = kind(der.expose()).ok_or_else(|| ("not a PKCS#8 private key".to_owned(), HINT.to_owned()))?;
    let wanted = match signature {
        SignatureAlgorithm::Rsa => Kind::Rsa(usize::from(bits)),
        SignatureAlgorithm::Ecdsa256 => Kind::Ec(256),
        SignatureAlgorithm::Ecdsa384 => Kind::Ec(384),
        SignatureAlgorithm::Ecdsa521 => Kind::Ec(521),
    };
    if found != wanted {
        return Err((format!("the key is {found}, signature asks for {wanted}"), String::new()));
    }
    Ok(der)
}

/// The DER of `secret`, which may be PEM.
///
/// # Errors
/// What is wrong and what would be right; never an octet of the key.
pub fn der(secret: &SecretBytes) -> Result<SecretBytes, (String, String)> {
    if secret.expose().starts_with(&[0x30]) { Ok(secret.clone()) } else { from_pem(secret.expose()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa(usize),
    Ec(usize),
    Other,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Rsa(bits) => write!(f, "RSA with {bits} bits"),
            Kind::Ec(bits) => write!(f, "ECDSA on P-{bits}"),
            Kind::Other => f.write_str("of another algorithm"),
        }
    }
}

/// Algorithm and size of a PKCS#8 key (RFC 5208 section 5): none when the octets are something else.
fn kind(der: &[u8]) -> Option<Kind> {
    let (outer, rest) = element(0x30, der)?;
    rest.is_empty().then_some(())?;
    let (_version, rest) = element(0x02, outer)?;
    let (algorithm, rest) = element(0x30, rest)?;
    let (key, _attributes) = element(0x04, rest)?;
    let (oid, parameters) = element(0x06, algorithm)?;
    if oid == RSA {
        let (key, _) = element(0x30, key)?;
        let (_version, rest) = element(0x02, key)?;
        let (modulus, _) = element(0x02, rest)?;
        let zeros = modulus.iter().take_while(|octet| **octet == 0).count();
        let modulus = modulus.get(zeros..)?;
        let first = modulus.first()?.leading_zeros();
        return (modulus.len() * 8).checked_sub(usize::try_from(first).ok()?).map(Kind::Rsa);
    }
    if oid == EC_PUBLIC_KEY {
        let (curve, _) = element(0x06, parameters)?;
        return Some(match curve {
            curve if curve == P256 => Kind::Ec(256),
            curve if curve == P384 => Kind::Ec(384),
            _ => Kind::Other,
        });
    }
    Some(Kind::Other)
}

/// Content of the DER element with `tag` at the start of `der`, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    (found == tag).then_some(())?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 | 0x82 => {
            let (octets, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (octets.iter().fold(0, |length, octet| length * 256 + usize::from(*octet)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// The DER between the lines of a `PRIVATE KEY` block.
fn from_pem(octets: &[u8]) -> Result<SecretBytes, (String, String)> {
    let wrong = |what: &str| (what.to_owned(), HINT.to_owned());
    let text = std::str::from_utf8(octets).map_err(|_| wrong("neither DER nor PEM"))?;
    for (label, what) in [
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "the key is encrypted"),
        ("-----BEGIN EC PRIVATE KEY-----", "the key is in the older EC form"),
        ("-----BEGIN RSA PRIVATE KEY-----", "the key is in the older RSA form"),
    ] {
        if text.contains(label) {
            return Err(wrong(what));
        }
    }
    let body = text
        .split_once("-----BEGIN PRIVATE KEY-----")
        .and_then(|(_, rest)| rest.split_once("-----END PRIVATE KEY-----"))
        .ok_or_else(|| wrong("holds no PRIVATE KEY block"))?
        .0;
    decode_base64(body).ok_or_else(|| wrong("the PRIVATE KEY block is not base64"))
}

fn decode_base64(text: &str) -> Option<SecretBytes> {
    // Room for all of it at once: growing would leave copies behind that nobody wipes.
    let mut out = Vec::with_capacity(text.len());
    let (mut bits, mut have) = (0u32, 0u32);
    for octet in text.bytes().filter(|octet| !octet.is_ascii_whitespace() && *octet != b'=') {
        let value = match octet {
            b'A'..=b'Z' => octet - b'A',
            b'a'..=b'z' => octet - b'a' + 26,
            b'0'..=b'9' => octet - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push(u8::try_from(bits >> have & 0xff).ok()?);
        }
    }
    Some(SecretBytes::new(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A P-256 key made for this test.
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgob8oAvuYTt7qJvJ0\nydqKZOaLw/vBp6VSR2ghii8MFcShRANCAARwZpExInGD4ji2Zs5hvryGATMudp8X\nWwb7CXUptkzJcvEUcL2C7U3vX+CUTt50GC84rfD++nABLk2sCX70zFbE\n-----END PRIVATE KEY-----\n";

    #[test]
    fn pem_and_der_give_the_same_key() {
        let from_pem = read(&SecretBytes::copy(KEY.as_bytes()), SignatureAlgorithm::Ecdsa256, 256).unwrap();
        let from_der = read(&from_pem, SignatureAlgorithm::Ecdsa256, 256).unwrap();
        assert!(from_der.ct_eq(from_pem.expose()));
        assert_eq!(from_pem.len(), 138);
    }

    #[test]
    fn a_key_of_another_algorithm_is_refused() {
        let key = SecretBytes::copy(KEY.as_bytes());
        let (what, _) = read(&key, SignatureAlgorithm::Ecdsa384, 384).unwrap_err();
        assert_eq!(what, "the key is ECDSA on P-256, signature asks for ECDSA on P-384");
        let (what, _) = read(&key, SignatureAlgorithm::Rsa, 3072).unwrap_err();
        assert_eq!(what, "the key is ECDSA on P-256, signature asks for RSA with 3072 bits");
    }

    #[test]
    fn the_modulus_of_an_rsa_key_is_measured() {
        let integer = |octets: &[u8]| [&[0x02, 0x81, u8::try_from(octets.len()).unwrap()], octets].concat();
        let wrap = |tag: u8, content: &[u8]| {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&[tag, 0x82], length.as_slice(), content].concat()
        };
        let mut modulus = vec![0; 129];
        modulus[1] = 0x80;
        let key = wrap(0x30, &[integer(&[0]), integer(&modulus)].concat());
        let algorithm = wrap(0x30, &[&[0x06, 0x09], RSA, &[0x05, 0x00]].concat());
        let der = wrap(0x30, &[integer(&[0]), algorithm, wrap(0x04, &key)].concat());
        assert_eq!(kind(&der), Some(Kind::Rsa(1024)));
    }

    #[test]
    fn other_forms_are_told_how_to_become_pkcs8() {
        for (text, expected) in [
            ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n", "the older EC form"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "encrypted"),
            ("-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n", "not base64"),
            ("-----BEGIN PRIVATE KEY-----\nMHcCAQEE\n-----END PRIVATE KEY-----\n", "not a PKCS#8"),
            ("0\u{3}\u{2}\u{1}\u{0}", "not a PKCS#8"),
            ("hello", "no PRIVATE KEY block"),
            ("", "no PRIVATE KEY block"),
        ] {
            let (what, hint) =
                read(&SecretBytes::copy(text.as_bytes()), SignatureAlgorithm::Ecdsa256, 256).unwrap_err();
            assert!(what.contains(expected), "{what}");
            assert_eq!(hint, HINT);
        }
    }
}
