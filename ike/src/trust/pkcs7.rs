//! Certificates wrapped in PKCS#7 (RFC 4945 section 3.3.4: SHOULD be accepted, since some implementations send them; never
//! sent by us).

use x509_cert::der::asn1::{AnyRef, ContextSpecific, ObjectIdentifier};
use x509_cert::der::{Decode, Error, Reader, SliceReader, Tag, TagNumber, Tagged};

/// signedData (RFC 2315 section 14).
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");

/// DER of the certificates in a SignedData, in its order; its own signatures are not looked at. Empty where it holds none
/// or cannot be read.
pub fn wrapped_certificates(octets: &[u8]) -> Vec<Vec<u8>> {
    read(octets).unwrap_or_default()
}

fn read(octets: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let mut reader = SliceReader::new(octets)?;
    // ContentInfo ::= SEQUENCE { contentType, content [0] EXPLICIT SignedData }
    let content: AnyRef<'_> = reader.sequence(|info| {
        let kind = ObjectIdentifier::decode(info)?;
        let content = ContextSpecific::<AnyRef<'_>>::decode_explicit(info, TagNumber(0))?;
        match content {
            Some(content) if kind == SIGNED_DATA => Ok::<_, Error>(content.value),
            _ => Err(Tag::Null.value_error().into()),
        }
    })?;
    content.tag().assert_eq(Tag::Sequence)?;
    let mut signed = SliceReader::new(content.value())?;
    // SignedData ::= SEQUENCE { version, digestAlgorithms, contentInfo, certificates [0] IMPLICIT SET OF ..., ... }
    for _ in 0..3 {
        AnyRef::decode(&mut signed)?;
    }
    let set = AnyRef::decode(&mut signed)?;
    set.tag().assert_eq(Tag::ContextSpecific { constructed: true, number: TagNumber(0) })?;
    let mut certificates = SliceReader::new(set.value())?;
    let mut out = Vec::new();
    while !certificates.is_finished() {
        out.push(certificates.tlv_bytes()?.to_vec());
    }
    Ok(out)
}

/// A SignedData without a signer around `certificates`.
#[cfg(test)]
pub(crate) fn signed_data(certificates: &[&[u8]]) -> Vec<u8> {
    tests::content_info(2, certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u8::try_from(content.len()).expect("a short one");
        let head = if length < 128 { vec![tag, length] } else { vec![tag, 0x81, length] };
        [head, content].concat()
    }

    /// Of type 1.2.840.113549.1.7.`kind`.
    pub(super) fn content_info(kind: u8, certificates: &[&[u8]]) -> Vec<u8> {
        let pkcs7 = |kind| [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, kind];
        let (data, none) = (tlv(0x30, &[&pkcs7(1)]), tlv(0x31, &[]));
        let content = tlv(0x30, &[&[2, 1, 1], &none, &data, &tlv(0xa0, certificates), &none]);
        tlv(0x30, &[&pkcs7(kind), &tlv(0xa0, &[&content])])
    }

    #[test]
    fn certificates_come_out_whole_and_in_order() {
        let (one, two) = (tlv(0x30, &[&[5, 0]]), tlv(0x30, &[&[4, 1, 7]]));
        assert_eq!(wrapped_certificates(&signed_data(&[&one, &two])), [one, two]);
        assert!(wrapped_certificates(&signed_data(&[])).is_empty());
    }

    #[test]
    fn what_is_no_signed_data_holds_none() {
        let one = tlv(0x30, &[&[5, 0]]);
        assert!(wrapped_certificates(&content_info(3, &[&one])).is_empty());
        let whole = signed_data(&[&one]);
        for end in 0..whole.len() {
            assert!(wrapped_certificates(&whole[..end]).is_empty(), "{end}");
        }
    }
}
