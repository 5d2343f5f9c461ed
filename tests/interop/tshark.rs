//! Wireshark's dissector on what the daemons really send.
//!
//! What it misreads is known and left out: exchange 32 is called Quick Mode, 33 New Group Mode; a phase 1 SA of DOI 2 is
//! taken for a phase 2 one, without its transforms; a SAT is reported malformed, since its ID lengths are read as two octets
//! (RFC 6407 section 5.5 has one).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ctl::control::{Reply, Request};
use gdoi_lab::binaries::{Binaries, Profile};
use gdoi_lab::capture;
use gdoi_lab::network::{GCKS, MEMBERS, Network};
use gdoi_lab::relay::Relay;
use gdoi_lab::site::{GROUP, MemberPlan, ServerPlan, Site, Timing};

const SOON: Duration = Duration::from_secs(30);

/// The version line, or none after saying that the test is skipped.
fn tshark(test: &str) -> Option<String> {
    match Command::new("tshark").arg("--version").output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
        }
        _ => {
            gdoi_lab::skipped(test, "tshark");
            None
        }
    }
}

/// Runs tshark on a capture whose ISAKMP is on `port`.
fn dissect(path: &Path, port: u16, arguments: &[&str]) -> String {
    let decode = format!("udp.port=={port},isakmp");
    let output = Command::new("tshark")
        .arg("-r")
        .arg(path)
        .args(["-n", "-d", &decode])
        .args(arguments)
        .output()
        .expect("tshark runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn wireshark_reads_a_registration_a_push_and_its_acknowledgement() {
    let Some(version) = tshark("wireshark_reads_a_registration_a_push_and_its_acknowledgement") else {
        return;
    };
    let network = Network::own_loopback().expect("a free port");
    let (server, member) = (network.address(GCKS), network.address(MEMBERS[0]));
    let site =
        Site::new(network, Binaries::build(Profile::Debug).expect("the programs")).expect("a directory");
    site.write_server(&ServerPlan::new(Timing::LONG)).unwrap();
    let gcks = site.start(GCKS, None).unwrap();
    gcks.wait_named(gcks.beginning(), SOON, "group_created").unwrap();
    let relay = Relay::start(member, server).unwrap();
    let plan = MemberPlan { server: Some(relay.address()), ..MemberPlan::default() };
    site.write_member(MEMBERS[0], &plan).unwrap();
    let gm1 = site.start(MEMBERS[0], None).unwrap();
    gm1.wait_named(gm1.beginning(), SOON, "registered").unwrap();
    let reply = gcks.ask(&Request::Rekey { group: GROUP.to_owned(), tek: true, kek: true }).unwrap();
    assert!(matches!(reply, Reply::Done { seq: Some(_), .. }), "{reply:?}");
    gcks.wait_named(gcks.beginning(), SOON, "ack_received").unwrap();
    // A member that stops says goodbye: an informational exchange.
    assert_eq!(gm1.stop().unwrap().0, Some(0));
    gcks.wait_named(gcks.beginning(), SOON, "phase1_deleted").unwrap();

    let path = site.path("lab.pcap");
    capture::write(&path, &relay.passed()).unwrap();
    let port = server.port();
    let exchanges = dissect(&path, port, &["-T", "fields", "-e", "isakmp.exchangetype"]);
    let exchanges: Vec<&str> = exchanges.lines().collect();
    // Six of main mode, four of GROUPKEY-PULL, a PUSH, its acknowledgement, a Delete.
    let expected = ["2", "2", "2", "2", "2", "2", "32", "32", "32", "32", "33", "35", "5"];
    assert_eq!(exchanges, expected, "{version}");
    let malformed = dissect(&path, port, &["-Y", "_ws.malformed"]);
    assert_eq!(malformed, "", "{version}");
    let text = dissect(&path, port, &["-V"]);
    assert!(!text.contains("Malformed"), "{version}: {text}");
}
