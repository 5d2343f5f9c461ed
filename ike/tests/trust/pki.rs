//! A small PKI made anew for each test.

use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use ike::trust::{Checked, Half, Rule, Trust, TrustError, Verification};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

/// 2027-01-01T00:00:00Z.
pub const NOW: u64 = 1_798_761_600;

/// A CA with its certificate.
pub type Ca = CertifiedIssuer<'static, KeyPair>;

/// A key on P-256.
pub fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("key")
}

/// Parameters of a CA: no path length limit, keyCertSign and cRLSign, 1975 to 4096.
pub fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A root of that name with a key of its own.
pub fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(ca(name), key()).expect("root")
}

/// A CA below another.
pub fn below(params: CertificateParams, issuer: &Ca) -> Ca {
    CertifiedIssuer::signed_by(params, key(), issuer).expect("intermediate")
}

/// Parameters of member `gm1`: serial 0101, digitalSignature, one name of each kind.
pub fn member(name: &str) -> CertificateParams {
    let host = format!("{name}.example");
    let mut params =
        CertificateParams::new(vec![host.clone(), "192.0.2.7".into(), "2001:db8::7".into()]).expect("names");
    let email = format!("{name}@example.net");
    params.subject_alt_names.push(SanType::Rfc822Name(email.try_into().expect("ascii")));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(vec![1, 1]));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

/// A certificate as DER.
pub fn issue(params: &CertificateParams, issuer: &Ca) -> Vec<u8> {
    params.signed_by(&key(), issuer).expect("certificate").der().to_vec()
}

/// DER of a CA's own certificate.
pub fn der(ca: &Ca) -> Vec<u8> {
    ca.der().to_vec()
}

/// A revocation list of `issuer`, made in `made` and due in `due` (years), with these serials.
pub fn list(issuer: &Ca, made: i32, due: i32, serials: &[&[u8]]) -> Vec<u8> {
    let revoked = serials.iter().map(|serial| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: date_time_ymd(made, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(made, 1, 1),
        next_update: date_time_ymd(due, 1, 1),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).expect("list").der().to_vec()
}

/// Enforcing trust in these anchors, without lists.
pub fn trust(anchors: &[&Ca]) -> Trust {
    Trust::new(anchors.iter().map(|ca| der(ca)).collect(), vec![], Verification::Enforce).expect("anchors")
}

/// The same, rehearsing.
pub fn rehearsal(anchors: &[&Ca]) -> Trust {
    Trust::new(anchors.iter().map(|ca| der(ca)).collect(), vec![], Verification::Rehearse).expect("anchors")
}

/// An ID_FQDN.
pub fn fqdn(name: &str) -> Identification {
    Identification::new(IdType::Fqdn, name.as_bytes())
}

/// Checks the chain of `gm1.example` at [`NOW`].
pub fn check(trust: &Trust, chain: &[Vec<u8>]) -> Result<Checked, TrustError> {
    trust.check(chain, &fqdn("gm1.example"), NOW)
}

/// The half and the rule that refuse `gm1.example` at [`NOW`].
pub fn refusal(trust: &Trust, chain: &[Vec<u8>]) -> (Half, Rule) {
    let error = check(trust, chain).expect_err("refused");
    (error.half, error.rule)
}
