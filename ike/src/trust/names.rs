//! Distinguished names as text, comparison of names, and the identity against the names of a certificate
//! (RFC 4945 section 3.1).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{Any, Ia5StringRef, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Encode, Tag, Tagged};
use x509_cert::ext::pkix::name::{DirectoryString, GeneralName};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};

use super::error::Rule;
use super::facts::Parsed;

/// Why a text is no distinguished name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("an empty name identifies nobody")]
    Empty,
    /// Quoted values are the older form of RFC 2253.
    #[error("quotes are not understood; write special characters with a backslash: O=Example\\, Inc")]
    Quoted,
    /// Not `TYPE=value`, or an attribute type that is neither known nor an object identifier.
    #[error(
        "\"{part}\" is not TYPE=value with a known TYPE (CN, O, OU, C, ST, L, DC, UID, serialNumber, emailAddress) or an object identifier"
    )]
    Attribute {
        /// The part that was not understood.
        part: String,
    },
    /// A value its type does not allow: empty, or characters outside its alphabet.
    #[error("\"{part}\" has a value that is empty or has characters this attribute does not allow")]
    Value {
        /// The part that was not understood.
        part: String,
    },
}

/// Splits at each separator that no backslash precedes; cuts blanks around the parts, not escaped ones.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    // Octets at the end of the part that an escape protects from being cut.
    let mut keep = 0;
    for c in text.chars() {
        if c == separator && !escaped {
            if let Some(part) = parts.last_mut() {
                cut(part, keep);
            }
            parts.push(String::new());
            keep = 0;
            continue;
        }
        if let Some(part) = parts.last_mut() {
            if part.is_empty() && c == ' ' && !escaped {
                continue;
            }
            part.push(c);
            if escaped {
                keep = part.len();
            }
        }
        escaped = c == '\\' && !escaped;
    }
    if let Some(part) = parts.last_mut() {
        cut(part, keep);
    }
    parts
}

fn cut(part: &mut String, keep: usize) {
    while part.len() > keep && part.ends_with(' ') {
        part.pop();
    }
}

fn attribute(part: &str) -> Result<AttributeTypeAndValue, NameError> {
    let value = |_| NameError::Value { part: part.to_owned() };
    let unknown = || NameError::Attribute { part: part.to_owned() };
    let (key, rest) = part.split_once('=').ok_or_else(unknown)?;
    if rest.starts_with('"') {
        return Err(NameError::Quoted);
    }
    // The library's table has these in one spelling only.
    let key = key.trim();
    let known = [("cn", "CN"), ("o", "O"), ("ou", "OU"), ("c", "C"), ("st", "ST"), ("s", "ST"), ("l", "L")]
        .into_iter()
        .chain([("dc", "DC"), ("uid", "UID"), ("street", "STREET"), ("serialnumber", "serialNumber")])
        .chain([("e", "emailAddress"), ("emailaddress", "emailAddress"), ("email", "emailAddress")])
        .find(|(lower, _)| key.eq_ignore_ascii_case(lower))
        .map_or(key, |(_, name)| name);
    // Tells an unknown type from a bad value: the value of the probe is good for every type.
    let probe = AttributeTypeAndValue::from_str(&format!("{known}=x")).map_err(|_| unknown())?;
    if rest.trim() == ANY_VALUE {
        // Not every attribute's alphabet has the star.
        let any = Any::new(Tag::Utf8String, ANY_VALUE.as_bytes()).map_err(value)?;
        return Ok(AttributeTypeAndValue { oid: probe.oid, value: any });
    }
    let attribute =
        AttributeTypeAndValue::from_str(&format!("{known}={}", rest.trim_start())).map_err(value)?;
    if attribute.value.value().is_empty() {
        return Err(NameError::Value { part: part.to_owned() });
    }
    match attribute.value.tag() {
        Tag::PrintableString => PrintableStringRef::try_from(&attribute.value).map(drop),
        Tag::Ia5String => Ia5StringRef::try_from(&attribute.value).map(drop),
        Tag::Utf8String => Utf8StringRef::try_from(&attribute.value).map(drop),
        _ => Ok(()),
    }
    .map_err(value)?;
    Ok(attribute)
}

/// DER Name of a text as in RFC 4514, `CN=gm1, O=Example, C=DE`: most specific part first, so the last part comes
/// first in DER. Blanks around parts are cut; special characters take a backslash. Values become UTF8String, those of
/// C and serialNumber PrintableString, those of DC and emailAddress IA5String: compare with [`same_name`], since a
/// certificate may hold the same name in other string types.
///
/// # Errors
/// [`NameError`] with the part that was not understood.
pub fn name_from_text(text: &str) -> Result<Vec<u8>, NameError> {
    if text.trim().is_empty() {
        return Err(NameError::Empty);
    }
    let mut parts = Vec::new();
    for part in split(text, ',') {
        let attributes = split(&part, '+').iter().map(|p| attribute(p)).collect::<Result<Vec<_>, _>>()?;
        let rdn = RelativeDistinguishedName::try_from(attributes);
        parts.push(rdn.map_err(|_| NameError::Value { part })?);
    }
    parts.reverse();
    let whole = |_| NameError::Value { part: text.to_owned() };
    RdnSequence::from(parts).to_der().map_err(whole)
}

/// RFC 4514 text of a DER Name, `CN=gm1,O=Example,C=DE`; none for other octets. Control characters are escaped.
pub fn name_to_text(der: &[u8]) -> Option<String> {
    Name::from_der(der).ok().map(|name| name.to_string())
}

/// True when two DER Names are the same: equal octets, or equal by RFC 5280 section 7.1 (string types do not matter,
/// nor case, nor how many blanks). Empty and unreadable names are the same as nothing.
///
/// Of the string preparation in RFC 4518, case and blanks are done and Unicode normalisation is not: names that differ
/// only in it count as different.
pub fn same_name(a: &[u8], b: &[u8]) -> bool {
    match (Name::from_der(a), Name::from_der(b)) {
        (Ok(left), Ok(right)) => !left.is_empty() && (a == b || same_rdns(&left, &right)),
        _ => false,
    }
}

fn same_rdns(a: &Name, b: &Name) -> bool {
    alike(a, b, same_attribute)
}

/// As many parts in the same order; within a part every attribute has its like, whatever their order.
fn alike(a: &Name, b: &Name, like: impl Fn(&AttributeTypeAndValue, &AttributeTypeAndValue) -> bool) -> bool {
    a.len() == b.len()
        && a.iter_rdn().zip(b.iter_rdn()).all(|(left, right)| {
            left.len() == right.len()
                && left.iter().all(|x| right.iter().any(|y| like(x, y)))
                && right.iter().all(|y| left.iter().any(|x| like(x, y)))
        })
}

/// A value of a pattern that stands for every value: `CN=*, O=Example`.
const ANY_VALUE: &str = "*";

fn is_any(attribute: &AttributeTypeAndValue) -> bool {
    prepared(&attribute.value).as_deref() == Some(ANY_VALUE)
}

/// True for a DER Name in which some value is `*`: a pattern for [`name_fits`], and nobody's name.
pub fn is_name_pattern(der: &[u8]) -> bool {
    Name::from_der(der).is_ok_and(|name| name.iter_rdn().any(|rdn| rdn.iter().any(is_any)))
}

/// As [`same_name`], where a `*` in `pattern` stands for any value of its attribute. A name that holds a `*` itself fits no
/// pattern.
pub fn name_fits(pattern: &[u8], name: &[u8]) -> bool {
    match (Name::from_der(pattern), Name::from_der(name)) {
        (Ok(pattern), Ok(name)) if !pattern.is_empty() => {
            let fits = |x: &AttributeTypeAndValue, y: &AttributeTypeAndValue| {
                same_attribute(x, y) || (x.oid == y.oid && is_any(x))
            };
            alike(&pattern, &name, fits) && !name.iter_rdn().any(|rdn| rdn.iter().any(is_any))
        }
        _ => false,
    }
}

fn same_attribute(a: &AttributeTypeAndValue, b: &AttributeTypeAndValue) -> bool {
    a.oid == b.oid
        && (a.value == b.value
            || matches!((prepared(&a.value), prepared(&b.value)), (Some(x), Some(y)) if x == y))
}

/// A string value in lower case with single blanks; none for values that are no strings.
fn prepared(value: &Any) -> Option<String> {
    let text = match value.tag() {
        Tag::Ia5String => Ia5StringRef::try_from(value).ok()?.as_str().to_owned(),
        _ => DirectoryString::from_der(&value.to_der().ok()?).ok()?.value().into_owned(),
    };
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    Some(words.join(" "))
}

/// A name of a certificate besides its subject (RFC 5280 section 4.2.1.6), or the subject itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlternativeName {
    /// dNSName.
    Dns(String),
    /// rfc822Name.
    Email(String),
    /// iPAddress.
    Address(IpAddr),
    /// A distinguished name as RFC 4514 text: the subject, or a directoryName.
    Directory(String),
    /// Another kind, or an unusable value; never matches an identity.
    Other(String),
}

impl AlternativeName {
    pub(super) fn from_general(name: &GeneralName) -> AlternativeName {
        match name {
            GeneralName::DnsName(text) => AlternativeName::Dns(text.as_str().to_owned()),
            GeneralName::Rfc822Name(text) => AlternativeName::Email(text.as_str().to_owned()),
            GeneralName::DirectoryName(name) => AlternativeName::Directory(name.to_string()),
            GeneralName::IpAddress(octets) => match address(octets.as_bytes()) {
                Some(address) => AlternativeName::Address(address),
                None => AlternativeName::Other(format!("iPAddress of {} octets", octets.as_bytes().len())),
            },
            GeneralName::UniformResourceIdentifier(text) => {
                AlternativeName::Other(format!("URI {}", text.as_str()))
            }
            GeneralName::OtherName(other) => AlternativeName::Other(format!("otherName {}", other.type_id)),
            GeneralName::EdiPartyName(_) => AlternativeName::Other("ediPartyName".to_owned()),
            GeneralName::RegisteredId(oid) => AlternativeName::Other(format!("registeredID {oid}")),
        }
    }
}

impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AlternativeName::Dns(text) => write!(f, "dNSName {}", text.escape_default()),
            AlternativeName::Email(text) => write!(f, "rfc822Name {}", text.escape_default()),
            AlternativeName::Address(address) => write!(f, "iPAddress {address}"),
            AlternativeName::Directory(text) => write!(f, "DN \"{text}\""),
            AlternativeName::Other(text) => write!(f, "{}", text.escape_default()),
        }
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

/// The claimed identity for a message, with nothing in it that could end a line.
fn claimed(id: &Identification) -> String {
    let text = String::from_utf8_lossy(&id.data);
    match id.id_type {
        IdType::Fqdn => format!("FQDN {}", text.escape_default()),
        IdType::UserFqdn => format!("USER_FQDN {}", text.escape_default()),
        IdType::DerAsn1Dn => match name_to_text(&id.data) {
            Some(name) => format!("DN \"{name}\""),
            None => "an unreadable DN".to_owned(),
        },
        IdType::Ipv4Addr | IdType::Ipv6Addr => match address(&id.data) {
            Some(address) => format!("address {address}"),
            None => "an address of the wrong length".to_owned(),
        },
        other => format!("{other:?}"),
    }
}

/// Holds the identity against the certificate (RFC 4945 sections 3.1.1 to 3.1.5):
///
/// | identity | certificate field | comparison |
/// | --- | --- | --- |
/// | ID_IPV4_ADDR, ID_IPV6_ADDR | SAN iPAddress | octets |
/// | ID_FQDN | SAN dNSName | whole, without case; a wildcard in the certificate matches nothing |
/// | ID_USER_FQDN | SAN rfc822Name | whole, without case |
/// | ID_DER_ASN1_DN | subject, not empty | [`same_name`] |
/// | others | - | refused |
///
/// A common name is never read as a host name.
///
/// Deviation: RFC 4945 section 3.1.5 lets a DN match by octets only. Peers whose DN is configured as text send other
/// string types than their CA wrote, so names equal by RFC 5280 section 7.1 match too.
pub(super) fn bind(parsed: &Parsed, id: &Identification) -> Result<(), Rule> {
    use AlternativeName as N;
    let claims = |text: &str| !text.is_empty() && text.as_bytes().eq_ignore_ascii_case(&id.data);
    let names = &parsed.facts.names;
    let (found, matches): (Vec<&N>, bool) = match id.id_type {
        IdType::Ipv4Addr | IdType::Ipv6Addr => {
            let found = names.iter().filter(|n| matches!(n, N::Address(_))).collect();
            let claimed = id.address();
            (found, names.iter().any(|n| matches!(n, N::Address(a) if Some(*a) == claimed)))
        }
        IdType::Fqdn => {
            let found = names.iter().filter(|n| matches!(n, N::Dns(_))).collect();
            (found, names.iter().any(|n| matches!(n, N::Dns(text) if !text.contains('*') && claims(text))))
        }
        IdType::UserFqdn => {
            let found = names.iter().filter(|n| matches!(n, N::Email(_))).collect();
            (found, names.iter().any(|n| matches!(n, N::Email(text) if claims(text))))
        }
        IdType::DerAsn1Dn => {
            let found = vec![N::Directory(parsed.facts.subject.clone())];
            let matches = same_name(&parsed.subject, &id.data);
            return if matches { Ok(()) } else { Err(Rule::Name { claimed: claimed(id), found }) };
        }
        other => return Err(Rule::NotBindable { id_type: other }),
    };
    if matches {
        return Ok(());
    }
    Err(Rule::Name { claimed: claimed(id), found: found.into_iter().cloned().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_as_operators_write_it_and_prints_as_rfc_4514() {
        let der = name_from_text("CN=gm1, O=Example, C=DE").unwrap();
        // C, O, CN: PrintableString, UTF8String, UTF8String.
        assert_eq!(
            hex::encode(&der),
            "302d310b300906035504061302444531 10300e060355040a0c074578616d706c65310c300a06035504030c03676d31"
                .replace(' ', "")
        );
        assert_eq!(name_to_text(&der).unwrap(), "CN=gm1,O=Example,C=DE");
        assert_eq!(name_from_text("cn=gm1,o = Example ,c=DE").unwrap(), der);
        for text in [
            "CN=gm1,DC=example,DC=net",
            r"CN=a\, b\+c,O=Ex\\ample",
            "OU=Sales+CN=J. Smith,DC=example",
            "UID=jsmith,L=Köln,ST=NRW",
            "SERIALNUMBER=1234,CN=x",
        ] {
            let der = name_from_text(text).unwrap();
            let again = name_from_text(&name_to_text(&der).unwrap()).unwrap();
            assert_eq!(again, der, "{text}");
        }
        assert_eq!(name_from_text("2.5.4.3=gm1").unwrap(), name_from_text("CN=gm1").unwrap());
        assert!(name_from_text("E=a@example.net, CN=a").is_ok());
    }

    #[test]
    fn a_star_stands_for_every_value_of_its_attribute_and_for_nothing_else() {
        let fits = |pattern: &str, name: &str| {
            name_fits(&name_from_text(pattern).unwrap(), &name_from_text(name).unwrap())
        };
        for (pattern, name) in [
            ("CN=*, O=Example, C=DE", "CN=gm1,O=EXAMPLE,C=DE"),
            ("CN=gm1, O=Example, C=*", "CN=gm1,O=Example,C=FR"),
            ("CN=*+OU=West, O=Example", "OU=west+CN=gm7,O=Example"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("CN=*, O=Example", "CN=gm1,O=Other"),
            ("CN=*, O=Example", "OU=gm1,O=Example"),
            ("CN=*, O=Example", "CN=gm1,OU=x,O=Example"),
            ("CN=*, O=Example", "O=Example"),
            ("CN=gm*, O=Example", "CN=gm1,O=Example"),
            ("CN=*, O=Example", "CN=*,O=Example"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        assert!(is_name_pattern(&name_from_text("C=*").unwrap()));
        assert!(!is_name_pattern(&name_from_text("CN=gm*").unwrap()) && !is_name_pattern(b"x"));
    }

    #[test]
    fn a_text_that_is_no_name_is_refused_with_the_part() {
        use NameError as E;
        let part = |text: &str| text.to_owned();
        assert_eq!(name_from_text("  "), Err(E::Empty));
        assert_eq!(name_from_text("gm1"), Err(E::Attribute { part: part("gm1") }));
        assert_eq!(name_from_text("CN=gm1, "), Err(E::Attribute { part: part("") }));
        assert_eq!(name_from_text("CN=gm1, Foo=bar"), Err(E::Attribute { part: part("Foo=bar") }));
        assert_eq!(name_from_text("CN="), Err(E::Value { part: part("CN=") }));
        assert_eq!(name_from_text("CN=gm1, C=Ü"), Err(E::Value { part: part("C=Ü") }));
        assert_eq!(name_from_text(r"CN=\ff"), Err(E::Value { part: part(r"CN=\ff") }));
        assert_eq!(name_from_text(r#"CN=gm1, O="Example, Inc""#), Err(E::Quoted));
    }

    #[test]
    fn names_are_the_same_across_string_types_case_and_blanks_and_no_further() {
        let utf8 = name_from_text("CN=gm 1, C=DE").unwrap();
        // The CN as a PrintableString, in capitals, with two blanks.
        let printable =
            hex::decode("301d310b3009060355040613024445310e300c0603550403130547 4d202031".replace(' ', ""));
        assert!(same_name(&utf8, &printable.unwrap()));
        for other in
            ["CN=gm 2, C=DE", "CN=gm 1", "C=DE, CN=gm 1", "CN=gm1, C=DE", "CN=gm 1+C=DE", "O=gm 1, C=DE"]
        {
            assert!(!same_name(&utf8, &name_from_text(other).unwrap()), "{other}");
        }
        let empty = [0x30, 0];
        assert!(!same_name(&empty, &empty));
        assert!(!same_name(b"x", b"x"));
    }
}
