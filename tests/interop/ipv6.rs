//! Registration and push over IPv6: on the loopback interface, and between namespaces on port 848.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ctl::control::{Reply, Request};
use ctl::event::Event;
use gdoi_lab::binaries::{Binaries, Profile};
use gdoi_lab::network::{GCKS, Network};
use gdoi_lab::site::Site;

use crate::ground::{self, run};

const SOON: Duration = Duration::from_secs(30);

/// Both configurations; `floats` says what is said of NAT traversal.
fn write(site: &Site, server: SocketAddr, member: SocketAddr, floats: [&str; 2]) {
    ground::write(&site.path("psk"), ground::SECRET);
    let [at_server, at_member] = floats;
    let (phase1, group) = (ground::phase1("main"), ground::group("gm", "2001:db8:a::/48"));
    let text = format!(
        r#"[server]
listen = ["{server}"]
{at_server}
state-directory = {:?}
control-socket = {:?}
observe-socket = {:?}
{phase1}[ike.gateway.gm]
ike-policy = "branches"
address = "{}"
{group}"#,
        site.path("state"),
        site.control(GCKS),
        site.path("gcks.observe"),
        member.ip(),
    );
    ground::write(&site.path("gcks.toml"), &text);
    let text = format!(
        r#"[member]
listen = ["{member}"]
{at_member}
control-socket = {:?}
observe-socket = {:?}
{phase1}[ike.gateway.servers]
ike-policy = "branches"
server-address = ["{server}"]
remote-identity = {{ inet = "{}" }}
[vpn.lab]
ike-gateway = "servers"
group = 1
[data-plane]
backend = "none"
"#,
        site.control("gm1"),
        site.path("gm1.observe"),
        server.ip(),
    );
    ground::write(&site.path("gm1.toml"), &text);
}

/// Registers, is rekeyed by hand, acknowledges.
fn register_and_rekey(site: &Site, member: SocketAddr) {
    let gcks = site.start(GCKS, None).unwrap();
    gcks.wait_named(gcks.beginning(), SOON, "group_created").unwrap();
    let gm1 = site.start("gm1", None).unwrap();
    gm1.wait_named(gm1.beginning(), SOON, "registered").unwrap();
    let there = gcks.wait_named(gcks.beginning(), SOON, "member_registered").unwrap();
    let Event::MemberRegistered { address, .. } = there else { panic!("{there:?}") };
    assert_eq!(address, member.to_string());
    let mark = gcks.mark();
    let asked = Request::Rekey { group: "lab".to_owned(), tek: true, kek: true };
    assert!(matches!(gcks.ask(&asked).unwrap(), Reply::Done { seq: Some(_), .. }));
    match gcks.wait_named(mark, SOON, "rekey_completed").unwrap() {
        Event::RekeyCompleted { acknowledged: 1, missing, .. } => assert!(missing.is_empty()),
        other => panic!("{other:?}"),
    }
    gm1.wait_named(gm1.beginning(), SOON, "push_accepted").unwrap();
    assert_eq!(gm1.count(gm1.beginning(), "nat_found"), 0);
    assert_eq!(gm1.stop().unwrap().0, Some(0));
    gcks.wait_named(mark, SOON, "phase1_deleted").unwrap();
}

#[test]
fn a_member_registers_and_is_rekeyed_over_the_loopback_of_ipv6() {
    let free = || std::net::UdpSocket::bind("[::1]:0").and_then(|socket| socket.local_addr());
    let (Ok(server), Ok(member)) = (free(), free()) else {
        gdoi_lab::skipped("a_member_registers_and_is_rekeyed_over_the_loopback_of_ipv6", "IPv6");
        return;
    };
    let binaries = Binaries::build(Profile::Debug).expect("the programs");
    let site = Site::new(Network::own_loopback().expect("a port"), binaries).expect("a directory");
    write(&site, server, member, ["nat-traversal = false"; 2]);
    register_and_rekey(&site, member);
}

#[test]
fn a_member_registers_and_is_rekeyed_between_hosts_of_ipv6_with_nat_traversal_on() {
    let test = "ipv6::a_member_registers_and_is_rekeyed_between_hosts_of_ipv6_with_nat_traversal_on";
    let Some(binaries) = ground::enter(test, Path::new("/usr/sbin/ip")) else { return };
    let network = Network::namespaces().expect("namespaces");
    run("ip -n gcks address add 2001:db8::1/64 dev wan nodad");
    run("ip -n gm1 address add 2001:db8::11/64 dev wan nodad");
    let site = Site::new(network, binaries).expect("a directory");
    let (server, member) = ("[2001:db8::1]:848".parse().unwrap(), "[2001:db8::11]:848".parse().unwrap());
    write(&site, server, member, ["", ""]);
    register_and_rekey(&site, member);
}
