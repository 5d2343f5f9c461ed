//! ike-scan, the prober everybody's address meets: our key server answers what it must, and little.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gdoi_lab::binaries::{Binaries, Profile};
use gdoi_lab::network::{GCKS, Network};
use gdoi_lab::relay::Relay;
use gdoi_lab::site::Site;

use crate::ground;

const SCAN: &str = "/usr/bin/ike-scan";
const SOON: Duration = Duration::from_secs(30);
/// Octets an answer may be longer than its question.
const MORE: usize = 64;
/// AES-256, SHA-256, group 14, pre-shared keys, as ike-scan spells it.
const OURS: &str = "--trans=(1=7,14=256,2=4,3=1,4=14)";

/// `gcks.toml` for whoever scans from 127.0.0.1.
fn server(site: &Site, compat: &str) {
    ground::write(&site.path("psk"), ground::SECRET);
    let text = format!(
        r#"[server]
listen = ["{}"]
nat-traversal = false
state-directory = {:?}
control-socket = {:?}
observe-socket = {:?}
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group14"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = {{ file = "psk" }}
[ike.gateway.scanner]
ike-policy = "pol"
address = "127.0.0.1"
compat = [{compat}]
[ipsec.proposal.esp]
encryption-algorithm = "aes-256-gcm"
[group.lab]
group-id = 1
ike-gateways = ["scanner"]
[group.lab.ipsec-sa.SA1]
proposal = "esp"
[[group.lab.ipsec-sa.SA1.match-policy]]
name = "lan"
source = "172.16.0.0/12"
destination = "172.16.0.0/12"
"#,
        site.network.address(GCKS),
        site.path("state"),
        site.control(GCKS),
        site.path("gcks.observe"),
    );
    ground::write(&site.path("gcks.toml"), &text);
}

/// What ike-scan says of our key server, and the longest answer beyond the longest question.
fn scan(site: &Site, arguments: &[&str]) -> (String, usize) {
    let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let relay = Relay::start(free, site.network.address(GCKS)).expect("a relay");
    let target: SocketAddr = relay.address();
    let output = Command::new(SCAN)
        .args(["--nodns", "--retry=1", "--timeout=1000", "--multiline"])
        .arg(format!("--sport={}", free.port()))
        .arg(format!("--dport={}", target.port()))
        .args(arguments)
        .arg(target.ip().to_string())
        .output()
        .expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    let passed = relay.passed();
    let longest = |from_scanner: bool| {
        let these = passed.iter().filter(|datagram| (datagram.from == free) == from_scanner);
        these.map(|datagram| datagram.octets.len()).max().unwrap_or(0)
    };
    assert!(longest(true) > 0, "{}", String::from_utf8_lossy(&said));
    assert!(longest(false) <= longest(true) + MORE, "{} octets for {}", longest(false), longest(true));
    (String::from_utf8_lossy(&said).into_owned(), longest(false))
}

#[test]
fn ike_scan_gets_what_is_right_and_little_of_it() {
    if !Path::new(SCAN).is_file() {
        gdoi_lab::skipped("ike_scan_gets_what_is_right_and_little_of_it", SCAN);
        return;
    }
    let network = Network::own_loopback().expect("a free port");
    let binaries = Binaries::build(Profile::Debug).expect("the programs");
    let site = Site::new(network, binaries).expect("a directory");

    // Of GDOI only: IPsec's domain of interpretation is refused by name.
    server(&site, "");
    let gcks = site.start(GCKS, None).unwrap();
    gcks.wait_named(gcks.beginning(), SOON, "listening").unwrap();
    let (said, _) = scan(&site, &[]);
    assert!(said.contains("DOI-NOT-SUPPORTED"), "{said}");
    let (said, octets) = scan(&site, &["--aggressive", "--id=stranger", OURS]);
    assert!(said.contains("0 returned handshake; 0 returned notify") && octets == 0, "{said}");
    let (said, _) = scan(&site, &["--doi=2", "--situation=0", OURS]);
    assert!(said.contains("Main Mode Handshake returned"), "{said}");
    drop(gcks);

    server(&site, "\"phase1-doi-ipsec\"");
    let gcks = site.start(GCKS, None).unwrap();
    gcks.wait_named(gcks.beginning(), SOON, "listening").unwrap();
    // What it offers by itself is DES, 3DES, MD5, SHA-1, groups 1 and 2.
    let (said, _) = scan(&site, &[]);
    assert!(said.contains("NO-PROPOSAL-CHOSEN"), "{said}");
    let (said, _) = scan(&site, &[OURS]);
    assert!(said.contains("Main Mode Handshake returned"), "{said}");
    assert!(said.contains("Enc=AES KeyLength=256 Hash=SHA2-256 Auth=PSK Group=14:modp2048"), "{said}");
    // Versions, reserved fields and lengths that are wrong get no answer at all.
    for wrong in ["--headerver=32", "--hdrflags=255", "--headerlen=20", "--hdrmsgid=7", "--nextpayload=5"] {
        let (said, octets) = scan(&site, &[OURS, wrong]);
        assert_eq!(octets, 0, "{wrong}: {said}");
    }
}
