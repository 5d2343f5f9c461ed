//! One key server whose file says who may come from anywhere, by every kind of identity a name can be, with a pre-shared key in
//! aggressive mode and by certificates of two algorithms in main mode: each member gets in under the statement for it.

use std::net::{SocketAddr, UdpSocket};

use ctl::event::Event;
use gdoi_lab::daemon::Daemon;
use gdoi_lab::network::{GCKS, Network};
use gdoi_lab::site::Site;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SanType};

use super::certificates::{Ca, root};
use crate::support::{SOON, binaries};

const SECRET: &str = "philippine trench, 10540 m";

/// A free port of `address`; none where the machine has no such address.
fn free(address: &str) -> Option<SocketAddr> {
    UdpSocket::bind(address).and_then(|socket| socket.local_addr()).ok()
}

/// `NAME.pem` and `NAME.key`, for these names and a subject of `CN=NAME, O=Branches`.
fn issue(
    site: &Site,
    ca: &Ca,
    name: &str,
    algorithm: &'static rcgen::SignatureAlgorithm,
    names: Vec<SanType>,
) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Branches");
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = names;
    std::fs::write(site.path(&format!("{name}.pem")), params.signed_by(&key, ca).unwrap().pem()).unwrap();
    site.write_secret(&format!("{name}.key"), &key.serialize_pem()).unwrap();
}

fn own(name: &str) -> String {
    format!("{{ certificate = \"{name}.pem\", private-key = {{ file = \"{name}.key\" }} }}")
}

/// The proposal of a method.
fn proposal(method: &str) -> String {
    format!(
        "[ike.proposal.{method}]\nauthentication-method = \"{method}\"\ndh-group = \"group19\"\n\
         authentication-algorithm = \"sha-256\"\nencryption-algorithm = \"aes-256-cbc\"\n"
    )
}

const METHODS: [&str; 3] = ["pre-shared-keys", "rsa-signatures", "ecdsa-signatures-256"];

fn server(site: &Site, listen: &[SocketAddr]) {
    let proposals = METHODS.map(proposal).concat();
    let own = ["server-rsa", "server-ec"].map(own).join(", ");
    let text = format!(
        r#"[server]
listen = {:?}
nat-traversal = false
state-directory = {:?}
control-socket = {:?}
observe-socket = {:?}
{proposals}
[ike.policy.keys]
mode = "aggressive"
proposals = ["pre-shared-keys"]
pre-shared-key = {{ file = "psk" }}
[ike.policy.certificates]
proposals = ["rsa-signatures", "ecdsa-signatures-256"]
certificates = [{own}]
trust-anchors = ["ca.pem"]
[ike.gateway.by-key-id]
ike-policy = "keys"
dynamic = {{ key-id = "branch-7" }}
local-identity = {{ hostname = "gcks.example" }}
[ike.gateway.by-user]
ike-policy = "certificates"
dynamic = {{ user-at-hostname = "gm@branch.example" }}
local-identity = {{ hostname = "gcks.example" }}
[ike.gateway.by-subject]
ike-policy = "certificates"
dynamic = {{ distinguished-name = "CN=*, O=Branches" }}
local-identity = {{ hostname = "gcks.example" }}
[ike.gateway.by-name]
ike-policy = "certificates"
dynamic = {{ hostname = "gm4.example" }}
local-identity = {{ hostname = "gcks.example" }}
[ipsec.proposal.esp]
encryption-algorithm = "aes-256-gcm"
[group.lab]
group-id = 1
ike-gateways = ["by-key-id", "by-user", "by-subject", "by-name"]
[group.lab.ipsec-sa.SA1]
proposal = "esp"
[[group.lab.ipsec-sa.SA1.match-policy]]
name = "lan"
source = "172.16.0.0/12"
destination = "172.16.0.0/12"
"#,
        listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        site.path("state"),
        site.control(GCKS),
        site.path("gcks.observe"),
    );
    std::fs::write(site.path("gcks.toml"), text).unwrap();
}

/// A member that says it is `identity` and proves it by `method`.
fn member(site: &Site, server: SocketAddr, method: &str, identity: &str, proof: &str) -> Daemon {
    let mode = if method == METHODS[0] { "aggressive" } else { "main" };
    let text = format!(
        r#"[member]
listen = ["{}"]
nat-traversal = false
control-socket = {:?}
observe-socket = {:?}
{}
[ike.policy.p]
mode = "{mode}"
proposals = ["{method}"]
{proof}
[ike.gateway.g]
ike-policy = "p"
server-address = ["{server}"]
local-identity = {{ {identity} }}
remote-identity = {{ hostname = "gcks.example" }}
[vpn.v]
ike-gateway = "g"
group = 1
[data-plane]
backend = "none"
"#,
        free(if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap(),
        site.control("gm1"),
        site.path("gm1.observe"),
        proposal(method),
    );
    std::fs::write(site.path("gm1.toml"), text).unwrap();
    site.start("gm1", None).unwrap()
}

#[test]
fn members_from_anywhere_get_in_by_every_kind_of_name_and_by_the_certificate_of_their_method() {
    let site = Site::new(Network::own_loopback().expect("a free port"), binaries()).unwrap();
    let ca = root("Root");
    std::fs::write(site.path("ca.pem"), ca.pem()).unwrap();
    site.write_secret("psk", SECRET).unwrap();
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let mail = |name: &str| SanType::Rfc822Name(name.try_into().unwrap());
    for (name, algorithm) in [("server-rsa", &PKCS_RSA_SHA256), ("server-ec", &PKCS_ECDSA_P256_SHA256)] {
        issue(&site, &ca, name, algorithm, vec![dns("gcks.example")]);
    }
    issue(&site, &ca, "gm2", &PKCS_ECDSA_P256_SHA256, vec![mail("gm@branch.example")]);
    issue(&site, &ca, "gm3", &PKCS_RSA_SHA256, Vec::new());
    issue(&site, &ca, "gm4", &PKCS_RSA_SHA256, vec![dns("gm4.example")]);
    let listen: Vec<SocketAddr> = ["127.0.0.1:0", "[::1]:0"].into_iter().filter_map(free).collect();
    if listen.len() < 2 {
        gdoi_lab::skipped("members from anywhere over IPv6", "IPv6");
    }
    server(&site, &listen);
    let gcks = site.start(GCKS, None).unwrap();
    let ready = gcks.wait_named(gcks.beginning(), SOON, "listening");
    ready.unwrap_or_else(|error| panic!("{error}\n{}", gcks.tail(8).join("\n")));
    let by_certificate = |name: &str| format!("certificates = [{}]\ntrust-anchors = [\"ca.pem\"]", own(name));
    for (number, (gateway, method, identity, proof)) in (1..).zip([
        ("by-key-id", METHODS[0], r#"key-id = "branch-7""#, "pre-shared-key = { file = \"psk\" }".to_owned()),
        ("by-user", METHODS[2], r#"user-at-hostname = "gm@branch.example""#, by_certificate("gm2")),
        ("by-subject", METHODS[1], r#"distinguished-name = "CN=gm3, O=Branches""#, by_certificate("gm3")),
        ("by-name", METHODS[1], r#"hostname = "gm4.example""#, by_certificate("gm4")),
    ]) {
        for (at, said) in listen.iter().zip(["member_registered", "member_reregistered"]) {
            let mark = gcks.mark();
            let gm = member(&site, *at, method, identity, &proof);
            let up = gm.wait_named(gm.beginning(), SOON, "registered");
            up.unwrap_or_else(|error| panic!("{gateway}: {error}\n{}", gcks.tail(8).join("\n")));
            let suite = gcks.wait_named(mark, SOON, "phase1_established").unwrap().to_string();
            assert!(suite.contains(method), "{gateway}: {suite}");
            gcks.wait_named(mark, SOON, said).unwrap();
            let members = gcks.group().unwrap().members;
            assert_eq!(members.len(), number, "{gateway}");
            let admitted: Vec<_> = members.iter().filter(|member| member.gateway == gateway).collect();
            let [admitted] = admitted[..] else { panic!("{gateway}: {members:?}") };
            let address: SocketAddr = admitted.address.parse().unwrap();
            assert_eq!(address.is_ipv4(), at.is_ipv4(), "{gateway}");
            assert_eq!(gm.stop().unwrap().0, Some(0));
        }
    }
    // A name that no statement has, with a certificate that is good.
    issue(&site, &ca, "gm5", &PKCS_RSA_SHA256, vec![dns("gm5.example")]);
    let mark = gcks.mark();
    let gm = member(&site, listen[0], METHODS[1], r#"hostname = "gm5.example""#, &by_certificate("gm5"));
    let told = gcks.wait_named(mark, SOON, "phase1_refused");
    let told = told.unwrap_or_else(|error| panic!("{error}\n{}", gcks.tail(8).join("\n")));
    assert!(matches!(&told, Event::Phase1Refused { reason, .. } if reason.contains("gm5.example")), "{told}");
    assert_eq!(gcks.group().unwrap().members.len(), 4);
    drop(gm);
}
