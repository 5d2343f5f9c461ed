//! Certificates of a policy: files that are read, keys that must fit, and what is said when they do not.

mod support;

use std::path::Path;
use std::sync::LazyLock;

use config::{Errors, Gcks, IdentityPattern, Loaded, Options};
use gdoi_proto::policy::SignatureAlgorithm;
use ike::crypto::AuthMethod;
use ike::crypto::provider::default_provider;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
};
use support::{change, lines, secret};

const GOOD: &str = r#"[ike.proposal.p256]
authentication-method = "ecdsa-signatures-256"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.proposal.p384]
authentication-method = "ecdsa-signatures-384"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
proposals = ["p256", "p384"]
certificates = [{ certificate = "256.pem", private-key = { file = "256.key" } }, { certificate = "384.pem", private-key = { file = "384.key" } }]
trust-anchors = ["root.pem"]
[ike.gateway.gw]
ike-policy = "pol"
dynamic = { distinguished-name = "CN=gm1,O=Example" }
local-identity = { hostname = "gcks.example" }
[group.G]
group-id = 1
ike-gateways = ["gw"]
[ipsec.proposal.esp]
encryption-algorithm = "aes-128-gcm"
[group.G.ipsec-sa.S]
proposal = "esp"
[[group.G.ipsec-sa.S.match-policy]]
name = "m"
source = "10.0.0.0/8"
destination = "10.0.0.0/8"
"#;

fn issuer(key: KeyPair) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, key).unwrap()
}

/// An RSA key of 2048 bits, which rcgen does not make by itself; one for all tests, since it takes long.
fn rsa() -> KeyPair {
    static KEY: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let key = default_provider().generate_signing_key(SignatureAlgorithm::Rsa, 2048).unwrap();
        key.expose().to_vec()
    });
    KeyPair::try_from(KEY.as_slice()).unwrap()
}

/// Root, two certificates of the server and their keys, in `directory`.
fn pki(directory: &Path) {
    let root = issuer(KeyPair::generate().unwrap());
    std::fs::write(directory.join("root.pem"), root.pem()).unwrap();
    std::fs::write(directory.join("rsa-root.pem"), issuer(rsa()).pem()).unwrap();
    for (name, key) in [
        ("256", KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()),
        ("384", KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()),
        ("rsa", rsa()),
    ] {
        let params = CertificateParams::new(vec!["gcks.example".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &root).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        secret(directory, &format!("{name}.key"), &key.serialize_pem());
    }
}

fn load(text: &str) -> Result<Loaded<Gcks>, Errors> {
    let directory = support::directory();
    pki(directory.path());
    let path = directory.path().join("gcks.toml");
    std::fs::write(&path, text).unwrap();
    config::load_gcks(&path, Options::default())
}

fn warnings(text: &str) -> Vec<String> {
    let loaded = load(text).unwrap_or_else(|errors| panic!("{errors}"));
    loaded.warnings.iter().flat_map(|warning| lines(&warning.to_string())).collect()
}

#[test]
fn a_policy_holds_one_certificate_per_method_with_its_key_and_the_anchors() {
    let loaded = load(GOOD).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let gateway = &loaded.config.gateways[0];
    let credentials = &gateway.credentials;
    let methods: Vec<_> = credentials.certificates.iter().map(|own| own.signer.method()).collect();
    assert_eq!(methods, [AuthMethod::Ecdsa256, AuthMethod::Ecdsa384]);
    assert_eq!(credentials.trust.as_ref().map(|trust| trust.anchors().len()), Some(1));
    assert!(credentials.pre_shared_key.is_none());
    assert!(credentials.for_method(AuthMethod::Ecdsa384).is_some());
    assert!(credentials.for_method(AuthMethod::RsaSignature).is_none());
    assert!(matches!(gateway.remote_identity, Some(IdentityPattern::DistinguishedName(_))));
}

#[test]
fn what_does_not_fit_together_is_named() {
    for (from, to, expected) in [
        (
            "{ certificate = \"384.pem\", private-key = { file = \"384.key\" } }",
            "{ certificate = \"384.pem\", private-key = { file = \"256.key\" } }",
            "ike.policy.pol.certificates.private-key: the key cannot be used: not a PKCS#8 key of this algorithm",
        ),
        (
            ", { certificate = \"384.pem\", private-key = { file = \"384.key\" } }",
            "",
            "ike.policy.pol.certificates: none has the kind of key that ike.proposal.p384 signs with (a certificate for each authentication-method of the proposals)",
        ),
        (
            "{ certificate = \"384.pem\", private-key = { file = \"384.key\" } }",
            "{ certificate = \"256.pem\", private-key = { file = \"256.key\" } }",
            "ike.policy.pol.certificates: another certificate of this policy has the same kind of key (one per authentication-method)",
        ),
        (
            "trust-anchors = [\"root.pem\"]\n",
            "",
            "ike.policy.pol: trust-anchors is missing ([\"pki/root.pem\"])",
        ),
        (
            "trust-anchors = [\"root.pem\"]",
            "trust-anchors = [\"root.pem\"]\nverification = \"maybe\"",
            "ike.policy.pol.verification: \"maybe\" is not known (enforce | rehearse)",
        ),
        (
            "trust-anchors = [\"root.pem\"]",
            "trust-anchors = []",
            "ike.policy.pol.trust-anchors: is empty ([\"pki/file.pem\"])",
        ),
        ("CN=gm1,O=Example", "gm1", "ike.gateway.gw.dynamic.distinguished-name: "),
    ] {
        let errors = load(&change(GOOD, from, to)).map(drop).unwrap_err();
        let said = lines(&errors.to_string());
        assert!(said.iter().any(|line| line.contains(expected)), "{to}: {said:?}");
    }
    let foreign = change(GOOD, "file = \"256.key\"", "file = \"foreign.key\"");
    let directory = support::directory();
    pki(directory.path());
    secret(directory.path(), "foreign.key", &KeyPair::generate().unwrap().serialize_pem());
    let path = directory.path().join("gcks.toml");
    std::fs::write(&path, foreign).unwrap();
    let errors = config::load_gcks(&path, Options::default()).map(drop).unwrap_err();
    assert!(errors.to_string().contains("this is not the private key of "), "{errors}");
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    for (from, to, expected) in [
        ("[\"root.pem\"]", "[\"none.pem\"]", "none.pem cannot be read: "),
        ("[\"root.pem\"]", "[\"256.key\"]", "256.key: no CERTIFICATE section"),
        ("[\"root.pem\"]", "[\"256.pem\"]", "ike.policy.pol.trust-anchors: "),
        ("[\"root.pem\"]", "[\"root.pem\"]\ncrls = [\"root.pem\"]", "root.pem: no X509 CRL section"),
    ] {
        let errors = load(&change(GOOD, from, to)).map(drop).unwrap_err();
        assert!(errors.to_string().contains(expected), "{to}: {errors}");
    }
}

#[test]
fn approved_only_takes_ecdsa_certificates_alone_and_never_rehearses() {
    let strict = format!("[server]\napproved-only = true\n{GOOD}");
    load(&strict).map(drop).unwrap_or_else(|errors| panic!("{errors}"));
    let rehearse = change(&strict, "[\"root.pem\"]", "[\"root.pem\"]\nverification = \"rehearse\"");
    let errors = load(&rehearse).map(drop).unwrap_err();
    assert_eq!(
        lines(&errors.to_string()),
        [
            "17:1: ike.policy.pol.verification: any certificate is accepted: refusals are logged and not carried out, except of RSA keys below 2048 bits and of signatures that do not verify (enforce, when the log shows none)"
        ]
    );
    for (from, to, expected) in [
        (
            "{ certificate = \"384.pem\", private-key = { file = \"384.key\" } }",
            "{ certificate = \"rsa.pem\", private-key = { file = \"rsa.key\" } }",
            "15:98: ike.policy.pol.certificates.certificate: certificate \"CN=rcgen self signed cert\" serial ",
        ),
        (
            "[\"root.pem\"]",
            "[\"rsa-root.pem\"]",
            "16:1: ike.policy.pol.trust-anchors: file refused: certificate \"CN=Root\" serial ",
        ),
    ] {
        let text = change(&strict, from, to);
        let errors = load(&text).map(drop).unwrap_err();
        let said = lines(&errors.to_string());
        let found = said.iter().find(|line| line.starts_with(expected));
        let found = found.unwrap_or_else(|| panic!("{to}: {said:?}"));
        if to.contains("root") {
            let what = "key is RSA of 2048 bits; approved-only takes ECDSA on P-256, P-384, P-521";
            assert!(found.ends_with(what), "{said:?}");
            let loose = change(&text, "approved-only = true", "approved-only = false");
            load(&loose).map(drop).unwrap_or_else(|errors| panic!("{errors}"));
        } else {
            let what =
                "with a key of RSA of 2048 bits is outside approved-only (ECDSA on P-256, P-384 or P-521)";
            assert!(found.ends_with(what), "{said:?}");
        }
    }
}

#[test]
fn weak_choices_are_warnings() {
    let rehearse = change(GOOD, "[\"root.pem\"]", "[\"root.pem\"]\nverification = \"rehearse\"");
    assert_eq!(
        warnings(&rehearse),
        [
            "15:1: ike.policy.pol.verification: any certificate is accepted: refusals are logged and not carried out, except of RSA keys below 2048 bits and of signatures that do not verify (enforce, when the log shows none)"
        ]
    );
    let other_name = change(GOOD, "hostname = \"gcks.example\"", "hostname = \"other.example\"");
    let said = warnings(&other_name);
    assert_eq!(said.len(), 2, "one for each certificate: {said:?}");
    assert!(said[0].contains("local-identity: peers will not take our own certificate: "), "{said:?}");
    let unused = change(
        GOOD,
        "proposals = [\"p256\", \"p384\"]",
        "proposals = [\"p256\", \"p384\"]\npre-shared-key = { file = \"key\" }",
    );
    assert_eq!(
        warnings(&unused),
        ["13:1: ike.policy.pol.pre-shared-key: no proposal of this policy uses it"]
    );
    let aggressive =
        change(GOOD, "proposals = [\"p256\", \"p384\"]", "proposals = [\"p256\"]\nmode = \"aggressive\"");
    assert_eq!(
        warnings(&aggressive),
        [
            "13:1: ike.policy.pol.mode: aggressive mode shows the identities and certificates of both sides to everyone on the way, and answers whoever names a known identity, in whatever address, with a key exchange, a signature and certificates (250 answers a second, 4 to one address) (main mode)"
        ]
    );
}
