//! A real NAT, masquerading by nftables in a namespace of its own, before a member:
//!
//! ```text
//! home 10.77.0.5 -- 10.77.0.1 natbox 192.0.2.99 -- bridge -- 192.0.2.1 gcks
//! ```
//!
//! Nothing reaches 10.77.0.5 but answers to what it sent: a push that arrives came through the mapping of its last PULL.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ctl::control::{Reply, Request};
use ctl::event::Event;
use gdoi_lab::binaries::Binaries;
use gdoi_lab::daemon::{Daemon, Mark};
use gdoi_lab::network::{GCKS, Network};
use gdoi_lab::site::Site;
use ike::crypto::Hash;
use ike::phase1::Mode;

use crate::ground::{self, Cell, run};
use crate::strongswan::{CHARON, Charon};

const NFT: &str = "/usr/sbin/nft";
const SOON: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_secs(60);
/// The member's name: addresses change on the way.
const MEMBER: &str = "home.peer.example";
const HOME: &str = "home";

/// The namespaces, with the NAT between `home` and the bridge. Ports on its outside are from 20000 on.
fn network() -> Network {
    let network = Network::namespaces().expect("namespaces");
    for name in ["natbox", HOME] {
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
    }
    run("ip link add port-nat type veth peer name wan netns natbox");
    run("ip link set port-nat master lab up");
    run("ip -n natbox address add 192.0.2.99/24 dev wan");
    run("ip -n natbox link set wan up");
    run("ip -n natbox link add lan type veth peer name wan netns home");
    run("ip -n natbox address add 10.77.0.1/24 dev lan");
    run("ip -n natbox link set lan up");
    run("ip -n home address add 10.77.0.5/24 dev wan");
    run("ip -n home link set wan up");
    run("ip -n home route add default via 10.77.0.1");
    run("nsenter --net=/run/netns/natbox sysctl -qw net.ipv4.ip_forward=1");
    translate("20000-20999");
    network
}

fn in_natbox(arguments: &str) -> String {
    let words = arguments.split(' ');
    let output = std::process::Command::new("nsenter")
        .args(["--net=/run/netns/natbox", NFT])
        .args(words)
        .output()
        .expect("nft runs");
    assert!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The rules anew, with these ports outside. Mappings that exist stay until the cable is pulled.
fn translate(ports: &str) {
    in_natbox("flush ruleset");
    in_natbox("add table ip lab");
    in_natbox("add chain ip lab out { type nat hook postrouting priority 100 ; }");
    in_natbox(&format!("add rule ip lab out oifname wan meta l4proto udp masquerade to :{ports} random"));
    in_natbox("add chain ip lab seen { type filter hook forward priority 0 ; }");
    // A keep-alive has one octet after the 8 of its UDP header.
    in_natbox("add rule ip lab seen oifname wan udp dport 4500 udp length 9 counter");
    in_natbox("add rule ip lab seen iifname wan ct state new drop");
}

/// The NAT forgets every mapping: its outside goes down and comes up.
fn forget() {
    run("ip -n natbox link set wan down");
    run("ip -n natbox link set wan up");
}

/// Keep-alives that went out so far.
fn keepalives() -> u64 {
    let rules = in_natbox("list chain ip lab seen");
    let counted = rules.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
    counted.and_then(|number| number.parse().ok()).expect("a counter")
}

/// `gcks.toml`, and one key for everybody.
fn server(site: &Site, mode: &str) {
    ground::write(&site.path("psk"), ground::SECRET);
    let (phase1, group) = (ground::phase1(mode), ground::group("home", "172.16.0.0/12"));
    let text = format!(
        r#"[server]
listen = ["192.0.2.1:848"]
nat-traversal-listen = ["192.0.2.1:4500"]
state-directory = {:?}
control-socket = {:?}
observe-socket = {:?}
{phase1}[ike.gateway.home]
ike-policy = "branches"
address = "192.0.2.99"
remote-identity = {{ hostname = "*.{}" }}
local-identity = {{ hostname = "{}" }}
compat = ["phase1-doi-ipsec"]
{group}"#,
        site.path("state"),
        site.control(GCKS),
        site.path("gcks.observe"),
        ground::PEER,
        ground::OURS,
    );
    ground::write(&site.path("gcks.toml"), &text);
}

fn member(site: &Site, mode: &str) {
    let phase1 = ground::phase1(mode);
    let text = format!(
        r#"[member]
listen = ["0.0.0.0:848"]
nat-traversal-listen = ["0.0.0.0:4500"]
control-socket = {:?}
observe-socket = {:?}
{phase1}[ike.gateway.servers]
ike-policy = "branches"
server-address = ["192.0.2.1"]
local-identity = {{ hostname = {MEMBER:?} }}
remote-identity = {{ hostname = {:?} }}
[vpn.lab]
ike-gateway = "servers"
group = 1
[data-plane]
backend = "none"
"#,
        site.control(HOME),
        site.path("home.observe"),
        ground::OURS,
    );
    ground::write(&site.path("home.toml"), &text);
}

fn enter(test: &str) -> Option<Binaries> {
    ground::enter(test, Path::new(NFT))
}

/// A rekey by hand, from its beginning in the server's log to every acknowledgement.
fn rekey(gcks: &Daemon, home: &Daemon) {
    let (mark, at_home) = (gcks.mark(), home.mark());
    let asked = Request::Rekey { group: "lab".to_owned(), tek: true, kek: true };
    let Reply::Done { seq: Some(number), .. } = gcks.ask(&asked).unwrap() else { panic!("no rekey") };
    let over =
        |event: &Event| matches!(event, Event::RekeyCompleted { seq, .. } if *seq == u64::from(number));
    match gcks.wait(mark, SOON, "the end of the rekey", over).unwrap() {
        Event::RekeyCompleted { acknowledged, missing, .. } => {
            assert_eq!((acknowledged, missing), (1, vec![]))
        }
        other => panic!("{other:?}"),
    }
    home.wait_named(at_home, SOON, "push_accepted").unwrap();
    let sent = |event: &Event| matches!(event, Event::PushSent { members: 1, .. });
    gcks.wait(mark, SOON, "one push", sent).unwrap();
}

/// Where the server sees its member.
fn outside(gcks: &Daemon, since: Mark, name: &str) -> SocketAddr {
    let address = match gcks.wait_named(since, SOON, name).unwrap() {
        Event::MemberRegistered { address, .. } | Event::PeerMoved { to: address, .. } => address,
        other => panic!("{other:?}"),
    };
    let address: SocketAddr = address.parse().unwrap();
    assert_eq!(address.ip().to_string(), "192.0.2.99");
    address
}

#[test]
fn a_member_behind_a_nat_registers_and_is_rekeyed_through_it_also_after_it_forgot() {
    let test = "nat::a_member_behind_a_nat_registers_and_is_rekeyed_through_it_also_after_it_forgot";
    let Some(binaries) = enter(test) else { return };
    let site = Site::new(network(), binaries).expect("a directory");
    for mode in ["main", "aggressive"] {
        translate("20000-20999");
        forget();
        let _ = std::fs::remove_dir_all(site.path("state"));
        server(&site, mode);
        member(&site, mode);
        let gcks = site.start(GCKS, None).unwrap();
        gcks.wait_named(gcks.beginning(), SOON, "group_created").unwrap();
        let home = site.start(HOME, None).unwrap();
        home.wait_named(home.beginning(), SOON, "registered").unwrap();
        let found = home.wait_named(home.beginning(), SOON, "nat_found").unwrap().to_string();
        assert_eq!(found, "NAT between 10.77.0.5:4500 and 192.0.2.1:4500: we are behind it");
        let first = outside(&gcks, gcks.beginning(), "member_registered");
        assert!((20_000..21_000).contains(&first.port()), "{first}");
        rekey(&gcks, &home);

        // The NAT forgets, and lets the next packet out by another port: a registration under the same SA moves all.
        translate("30000-30999");
        let mark = gcks.mark();
        for _ in 0..10 {
            // It forgets in its own time: a packet that is quicker still leaves by the old port.
            forget();
            std::thread::sleep(Duration::from_millis(500));
            let mark = gcks.mark();
            assert!(matches!(home.ask(&Request::Register { vpn: None }).unwrap(), Reply::Done { .. }));
            gcks.wait_named(mark, SOON, "member_reregistered").unwrap();
            if gcks.count(mark, "peer_moved") > 0 {
                break;
            }
        }
        let second = outside(&gcks, mark, "peer_moved");
        assert!((30_000..31_000).contains(&second.port()), "{second}");
        gcks.wait_named(mark, SOON, "member_reregistered").unwrap();
        assert_eq!(gcks.count(mark, "phase1_established"), 0, "the same ISAKMP SA");
        rekey(&gcks, &home);

        if mode == "main" {
            let before = keepalives();
            home.wait_until(LATER, "a keep-alive", |_| Ok(keepalives() > before)).unwrap();
            rekey(&gcks, &home);
        }
        assert_eq!(home.stop().unwrap().0, Some(0));
        gcks.wait_named(mark, SOON, "phase1_deleted").unwrap();
    }
}

#[test]
fn strongswan_behind_a_nat_floats_to_our_key_server() {
    let test = "nat::strongswan_behind_a_nat_floats_to_our_key_server";
    if !Path::new(CHARON).is_file() {
        gdoi_lab::skipped(test, CHARON);
        return;
    }
    let Some(binaries) = enter(test) else { return };
    let site = Site::new(network(), binaries).expect("a directory");
    ground::certificates(site.directory());
    let charon = Charon::start(&site.network, HOME, site.directory(), "");
    for mode in [Mode::Main, Mode::Aggressive] {
        let all = Cell::all(1);
        let same = |cell: &&Cell| (cell.mode, cell.group.number(), cell.hash) == (mode, 19, Hash::Sha256);
        let cell = all.iter().find(same).expect("a cell");
        let _ = std::fs::remove_dir_all(site.path("state"));
        server(&site, cell.mode_name());
        let gcks = site.start(GCKS, None).unwrap();
        gcks.wait_named(gcks.beginning(), SOON, "group_created").unwrap();
        charon.load(cell, "10.77.0.5", "192.0.2.1", 1).expect("its connection");
        let from = charon.log().len();
        let said = charon.swanctl(&["--initiate", "--ike", "cell", "--timeout", "8"]);
        let found = gcks.wait_named(gcks.beginning(), SOON, "nat_found");
        let found = found.unwrap_or_else(|error| panic!("{error}: {said:?}\n{}", gcks.tail(20).join("\n")));
        let Event::NatFound { peer, local, ours: false, theirs: true } = found else { panic!("{found:?}") };
        let peer: SocketAddr = peer.parse().unwrap();
        assert_eq!((local.as_str(), peer.ip().to_string().as_str()), ("192.0.2.1:4500", "192.0.2.99"));
        assert!((20_000..21_000).contains(&peer.port()), "{peer}");
        charon.says(from, "N(DPD_ACK)").expect("dead-peer detection through the NAT");
        charon.swanctl(&["--terminate", "--ike", "cell", "--timeout", "5"]).expect("it ends");
        gcks.wait_named(gcks.beginning(), SOON, "phase1_deleted").unwrap();
    }
}
