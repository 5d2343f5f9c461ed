//! `gdoictl server trace`: what one member and the key server say to each other, in clear.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ctl::control::Request;
use gdoi_lab::network::{GCKS, MEMBERS};
use gdoi_lab::site::{GROUP, MemberPlan, ServerPlan, Site, Timing};
use gdoi_proto::Dialect;
use gdoi_proto::header::Header;
use gdoi_proto::message::{Domain, Message, Rules, Trailing};
use gdoi_proto::payload::Payload;
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::registry::ExchangeType;
use pcap_file::pcap::PcapReader;

use crate::support::{SOON, site};

/// Waits for what comes soon.
fn soon(there: impl Fn() -> bool) {
    let step = Duration::from_millis(20);
    let there = (0..SOON.as_millis() / step.as_millis()).any(|_| {
        std::thread::sleep(step);
        there()
    });
    assert!(there, "it never comes");
}

/// A trace that runs until it is dropped.
struct Trace(Child);

impl Trace {
    /// Begins when this returns.
    fn of(site: &Site, member: &str, file: &str) -> Trace {
        let path = site.path(file);
        let mut command = site.gdoictl(GCKS);
        command.args(["server", "trace", "--member", member, "--pcap"]).arg(&path).stdout(Stdio::null());
        let trace = Trace(command.spawn().unwrap());
        soon(|| path.exists());
        trace
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The ISAKMP messages in a file, which is being written.
fn messages(path: &Path) -> Vec<Vec<u8>> {
    let octets = std::fs::read(path).unwrap();
    let Ok(mut reader) = PcapReader::new(&octets[..]) else { return Vec::new() };
    let mut all = Vec::new();
    while let Some(Ok(packet)) = reader.next_packet() {
        // IPv4 and UDP.
        all.push(packet.data[28..].to_vec());
    }
    all
}

/// Those of an exchange; all must be in clear.
fn of_exchange(messages: &[Vec<u8>], exchange: ExchangeType, domain: Domain) -> Vec<Vec<Payload>> {
    let rules = Rules { domain, trailing: Trailing::Alignment, dialect: Dialect::STRICT };
    let of_it = |octets: &&Vec<u8>| Header::decode(octets).unwrap().exchange == exchange;
    let read = |octets: &Vec<u8>| Message::decode(octets, rules).expect("in clear").payloads;
    messages.iter().filter(of_it).map(read).collect()
}

#[test]
fn a_lab_shows_every_message_of_one_member_in_clear_and_none_of_another() {
    let site = site();
    site.write_server(&ServerPlan::new(Timing::LONG)).unwrap();
    let gcks = site.start(GCKS, None).unwrap();
    gcks.wait_named(gcks.beginning(), SOON, "group_created").unwrap();
    let address = site.network.ip(MEMBERS[0]).to_string();
    let _traces = [Trace::of(&site, &address, "gm1.pcap"), Trace::of(&site, "192.0.2.99", "none.pcap")];
    site.write_member(MEMBERS[0], &MemberPlan::default()).unwrap();
    let gm1 = site.start(MEMBERS[0], None).unwrap();
    gm1.wait_named(gm1.beginning(), SOON, "registered").unwrap();
    gcks.ask(&Request::Rekey { group: GROUP.to_owned(), tek: true, kek: true }).unwrap();
    gcks.wait_named(gcks.beginning(), SOON, "ack_received").unwrap();
    let keys: Vec<String> = gm1.vpn().unwrap().teks.into_iter().filter_map(|tek| tek.key_hex).collect();
    assert_eq!(keys.len(), 2, "old and new, which a lab shows");

    let path = site.path("gm1.pcap");
    // Six of main mode, four of GROUPKEY-PULL, a PUSH and its acknowledgement.
    soon(|| messages(&path).len() >= 12);
    let all = messages(&path);
    let main = of_exchange(&all, ExchangeType::MainMode, Domain::Phase1);
    let identities = main.iter().filter(|payloads| matches!(payloads[0], Payload::Id(_))).count();
    assert_eq!((main.len(), identities), (6, 2), "messages 5 and 6 are read");
    let pull = of_exchange(&all, ExchangeType::GroupkeyPull, Domain::Group);
    let [_, second, _, fourth] = &pull[..] else { panic!("{} messages", pull.len()) };
    let (Some(Payload::GdoiSa(sa)), Some(Payload::Kd(kd))) = (second.last(), fourth.last()) else {
        panic!("policy, then keys")
    };
    let policy = GroupPolicy::read(sa, Carriage::Pull).unwrap();
    let first = KeySet::read(kd, &policy, Carriage::Pull).unwrap();
    let push = of_exchange(&all, ExchangeType::GroupkeyPush, Domain::Group);
    let find = |wanted: fn(&Payload) -> bool| push[0].iter().find(|payload| wanted(payload)).unwrap();
    let Payload::GdoiSa(sa) = find(|it| matches!(it, Payload::GdoiSa(_))) else { unreachable!() };
    let Payload::Kd(kd) = find(|it| matches!(it, Payload::Kd(_))) else { unreachable!() };
    let policy = GroupPolicy::read(sa, Carriage::Push).unwrap();
    let second = KeySet::read(kd, &policy, Carriage::Push).unwrap();
    for (_, tek) in first.teks.iter().chain(&second.teks) {
        let octets = hex::encode(tek.encryption.expose());
        assert!(keys.iter().any(|key| key.starts_with(&octets)), "a key that the member has");
    }
    assert!(messages(&site.path("none.pcap")).is_empty());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds keys");

    // A file that is there is not written over.
    let mut again = site.gdoictl(GCKS);
    let again = again.args(["server", "trace", "--member", &address, "--pcap"]).arg(&path).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("File exists"), "{again:?}");
    wireshark_reads(&path, site.network.address(GCKS).port());
}

fn wireshark_reads(path: &Path, port: u16) {
    if !Command::new("tshark").arg("--version").output().is_ok_and(|output| output.status.success()) {
        gdoi_lab::skipped("the trace in wireshark", "tshark");
        return;
    }
    let dissect = |arguments: &[&str]| {
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(path).args(["-n", "-d", &format!("udp.port=={port},isakmp")]).args(arguments);
        String::from_utf8_lossy(&tshark.output().unwrap().stdout).into_owned()
    };
    let exchanges = dissect(&["-T", "fields", "-e", "isakmp.exchangetype"]);
    let exchanges: Vec<&str> = exchanges.lines().collect();
    assert_eq!(exchanges, ["2", "2", "2", "2", "2", "2", "32", "32", "32", "32", "33", "35"]);
    assert_eq!(dissect(&["-Y", "isakmp.flag_e == 1 && isakmp.exchangetype != 35"]), "", "none encrypted");
    assert_eq!(dissect(&["-Y", "_ws.malformed"]), "");
}
