//! Certificate and certificate request (RFC 2408 sections 3.9 and 3.10).
//!
//! ```text
//! encoding(1) | certificate, or DER name of an authority
//! ```

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;

/// Body of a CERT payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Certificate encoding; 4 is X.509 for signatures.
    pub encoding: u8,
    /// The certificate.
    pub data: Vec<u8>,
}

/// Body of a CERTREQ payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Certificate encoding.
    pub encoding: u8,
    /// DER name of an acceptable authority, empty for any.
    pub authority: Vec<u8>,
}

impl Certificate {
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<Certificate, DecodeError> {
        Ok(Certificate { encoding: r.u8("certificate encoding")?, data: r.rest().to_vec() })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u8(self.encoding);
        w.octets(&self.data);
    }
}

impl CertificateRequest {
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<CertificateRequest, DecodeError> {
        Ok(CertificateRequest { encoding: r.u8("certificate type")?, authority: r.rest().to_vec() })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u8(self.encoding);
        w.octets(&self.authority);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    #[test]
    fn certificate_and_request_go_both_ways() {
        let octets = [4, 0x30, 0];
        let cert = Certificate::decode(Reader::new(PayloadType::Cert, &octets)).unwrap();
        assert_eq!(cert, Certificate { encoding: 4, data: vec![0x30, 0] });
        let request =
            CertificateRequest::decode(Reader::new(PayloadType::CertRequest, &octets[..1])).unwrap();
        assert_eq!(request, CertificateRequest { encoding: 4, authority: vec![] });
        let mut w = Writer::new();
        cert.encode(&mut w);
        request.encode(&mut w);
        assert_eq!(w.finish(), [4, 0x30, 0, 4]);
    }

    #[test]
    fn an_empty_body_is_refused() {
        assert!(Certificate::decode(Reader::new(PayloadType::Cert, &[])).is_err());
        assert!(CertificateRequest::decode(Reader::new(PayloadType::CertRequest, &[])).is_err());
    }
}
