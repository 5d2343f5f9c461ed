//! PEM files of operators (RFC 7468).

use pki_types::pem::{Error, PemObject, SectionKind};

/// What is wrong with a PEM file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// No section of the wanted kind.
    #[error("no {wanted} section{}{}", if found.is_empty() { "" } else { "; the file holds: " }, found.join(", "))]
    NoSection {
        /// The label looked for.
        wanted: &'static str,
        /// Labels of the known sections there are.
        found: Vec<&'static str>,
    },
    /// DER where PEM is expected.
    #[error("the file is DER, expected PEM: convert it with `openssl {command} -inform DER -in FILE`")]
    Der {
        /// The subcommand of openssl.
        command: &'static str,
    },
    /// A section that does not end, or is not base64.
    #[error("section {section}: {problem}")]
    Broken {
        /// Which section, from 1.
        section: usize,
        /// What the reader found.
        problem: &'static str,
    },
}

const fn label(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::Certificate => "CERTIFICATE",
        SectionKind::PublicKey => "PUBLIC KEY",
        SectionKind::RsaPrivateKey => "RSA PRIVATE KEY",
        SectionKind::PrivateKey => "PRIVATE KEY",
        SectionKind::EcPrivateKey => "EC PRIVATE KEY",
        SectionKind::Crl => "X509 CRL",
        SectionKind::Csr => "CERTIFICATE REQUEST",
        SectionKind::EchConfigList => "ECHCONFIG",
        _ => "another kind of section",
    }
}

fn sections(text: &[u8], wanted: SectionKind, command: &'static str) -> Result<Vec<Vec<u8>>, PemError> {
    // SEQUENCE with a long length, as every certificate and list starts.
    if matches!(text, [0x30, 0x80..=0x84, ..]) {
        return Err(PemError::Der { command });
    }
    let (mut out, mut found) = (Vec::new(), Vec::new());
    for (index, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(text).enumerate() {
        let problem = match section {
            Ok((kind, der)) if kind == wanted => {
                out.push(der);
                continue;
            }
            Ok((kind, _)) => {
                found.push(label(kind));
                continue;
            }
            Err(Error::MissingSectionEnd { .. }) => "the END line is missing",
            Err(Error::IllegalSectionStart { .. }) => {
                "the BEGIN line is not of the form -----BEGIN LABEL-----"
            }
            Err(Error::Base64Decode(_)) => "not base64 between BEGIN and END",
            Err(_) => "unreadable",
        };
        return Err(PemError::Broken { section: index + 1, problem });
    }
    if out.is_empty() {
        return Err(PemError::NoSection { wanted: label(wanted), found });
    }
    Ok(out)
}

/// DER of every certificate in a PEM file, in the order of the file; at least one. Other sections are passed over.
///
/// # Errors
/// [`PemError`], which says what the file holds instead.
pub fn pem_certificates(text: &[u8]) -> Result<Vec<Vec<u8>>, PemError> {
    sections(text, SectionKind::Certificate, "x509")
}

/// DER of every revocation list in a PEM file; at least one. Other sections are passed over.
///
/// # Errors
/// As [`pem_certificates`].
pub fn pem_revocation_lists(text: &[u8]) -> Result<Vec<Vec<u8>>, PemError> {
    sections(text, SectionKind::Crl, "crl")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    const LIST: &str = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";

    #[test]
    fn a_bundle_gives_its_certificates_in_order_and_passes_over_the_rest() {
        let bundle = format!("comment\n{CERTIFICATE}{KEY}{CERTIFICATE}{LIST}");
        assert_eq!(pem_certificates(bundle.as_bytes()), Ok(vec![vec![0x30, 0]; 2]));
        assert_eq!(pem_revocation_lists(bundle.as_bytes()), Ok(vec![vec![0x30, 0]]));
    }

    #[test]
    fn a_wrong_file_is_refused_with_what_it_holds() {
        let said = |text: &[u8]| pem_certificates(text).map_err(|error| error.to_string());
        let no = |text: &str| Err(text.to_owned());
        assert_eq!(said(KEY.as_bytes()), no("no CERTIFICATE section; the file holds: PRIVATE KEY"));
        assert_eq!(said(b""), no("no CERTIFICATE section"));
        assert_eq!(
            said(&[0x30, 0x82, 1, 0]),
            no("the file is DER, expected PEM: convert it with `openssl x509 -inform DER -in FILE`")
        );
        let cut = &CERTIFICATE[..40];
        assert_eq!(said(format!("{CERTIFICATE}{cut}").as_bytes()), no("section 2: the END line is missing"));
        let broken = CERTIFICATE.replace("MAA=", "M*A=");
        assert_eq!(said(broken.as_bytes()), no("section 1: not base64 between BEGIN and END"));
    }
}
