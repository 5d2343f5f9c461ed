//! The kernel backend in a network namespace of its own, as far as any kernel with policies goes: what it holds is read back
//! with `ip`, and what it blocks is tried with ping. States need ESP in the kernel: `tests/daemon/kernel.rs` boots one.
#![cfg(feature = "linux")]

use std::os::fd::AsFd;
use std::process::Command;

use dataplane::policy::{Rule, Rules};
use dataplane::selector::Addresses;
use dataplane::tun::{HOST, Pair, TunSettings, VpnSettings, Zone};
use dataplane::xfrm::{self, XfrmPlane};

/// Pings until the answer is taken for wrong.
const TRIES: u32 = 20;

/// Two namespaces, named after this process; gone with the value.
struct Hosts([String; 2]);

fn ip(arguments: &str) -> Option<String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Hosts {
    fn new() -> Option<Hosts> {
        let id = std::process::id();
        let hosts = Hosts([format!("gdoi-{id}-here"), format!("gdoi-{id}-there")]);
        for host in &hosts.0 {
            ip(&format!("netns add {host}"))?;
        }
        let [here, there] = &hosts.0;
        ip(&format!("link add wan netns {here} type veth peer name wan netns {there}"))?;
        for (host, number) in hosts.0.iter().zip([1, 2]) {
            for command in [
                "link set lo up".to_owned(),
                "link set wan up".to_owned(),
                format!("addr add 10.0.0.{number}/24 dev wan"),
                format!("addr add 2001:db8::{number}/64 dev wan nodad"),
            ] {
                ip(&format!("-n {host} {command}"))?;
            }
        }
        // A kernel without policies has nothing to show.
        ip(&format!("-n {here} xfrm policy add src 10.9.0.0/16 dst 10.9.0.0/16 dir out action block"))?;
        Some(hosts)
    }

    fn policies(&self) -> String {
        ip(&format!("-n {} -d xfrm policy", self.0[0])).unwrap()
    }

    fn pings(&self, to: &str) -> bool {
        ip(&format!("netns exec {} ping -n -c 2 -i 0.05 -W 1 {to}", self.0[0])).is_some()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &self.0 {
            ip(&format!("netns del {host}"));
        }
    }
}

/// Moves this thread into a namespace.
fn enter(name: &str) {
    let namespace = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
}

/// `host -> wan`, with an exclude rule for `excluded` and a fail-open rule for the other protocol of ping.
fn settings(excluded: &str) -> TunSettings {
    let every = |family: &str| Addresses::prefix(family.parse().unwrap(), 0);
    let rule = |family: &str, protocol: u8| Rule {
        name: "r".to_owned(),
        source: every(family),
        destination: every(family),
        protocol,
        port: 0,
    };
    let rules = match excluded {
        "four" => Rules { exclude: vec![rule("0.0.0.0", 1)], ..Rules::default() },
        "six" => Rules { fail_open: vec![rule("::", 58)], ..Rules::default() },
        _ => Rules::default(),
    };
    TunSettings {
        zones: vec![
            Zone { name: HOST.to_owned(), interfaces: Vec::new() },
            Zone { name: "wan".to_owned(), interfaces: vec!["wan".to_owned()] },
        ],
        pairs: vec![Pair { from: HOST.to_owned(), to: "wan".to_owned(), vpn: "v".to_owned() }],
        vpns: vec![VpnSettings { name: "v".to_owned(), rules, ..VpnSettings::default() }],
    }
}

#[test]
fn policies_of_the_kernel_hold_without_keys_or_daemon_until_they_are_released() {
    let tools = Command::new("ping").arg("-V").output().is_ok();
    let Some(hosts) = Some(()).filter(|()| tools).and_then(|()| Hosts::new()) else {
        println!("skipped: dataplane xfrm: needs root, ip, ping and a kernel with IPsec policies");
        return;
    };
    let here = hosts.0[0].clone();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(&here);
            both_families(&hosts, [true, true], "before");
            xfrm::hold(&settings("none")).unwrap();
            both_families(&hosts, [false, false], "held");
            let shown = hosts.policies();
            // Out and in, both families, marked as ours; those of others stay.
            assert_eq!(shown.matches("action block").count(), 5, "{shown}");
            assert_eq!(shown.matches("mark 0x6d0900/0xffffffff").count(), 4, "{shown}");
            assert_eq!(shown.matches("priority 4000000").count(), 4, "{shown}");
            assert!(!xfrm::is_running());
            let plane = XfrmPlane::start(&settings("four"), Box::new(|_| {})).unwrap();
            both_families(&hosts, [true, false], "an exclude rule for ICMP");
            assert!(xfrm::is_running());
            let second = XfrmPlane::start(&settings("none"), Box::new(|_| {})).err().unwrap();
            assert!(second.0.contains("another data plane is running"), "{second}");
            drop(plane);
            both_families(&hosts, [true, false], "what it left behind");
            // Another configuration takes the place of what is stale.
            let plane = XfrmPlane::start(&settings("six"), Box::new(|_| {})).unwrap();
            both_families(&hosts, [false, true], "a fail-open rule for ICMPv6");
            let shown = hosts.policies();
            assert!(shown.contains("proto ipv6-icmp") && !shown.contains("proto icmp"), "{shown}");
            drop(plane);
            xfrm::release().unwrap();
            both_families(&hosts, [true, true], "released");
            let shown = hosts.policies();
            assert!(shown.contains("10.9.0.0/16") && !shown.contains("mark"), "{shown}");
        });
        inside.join().unwrap();
    });
}

fn both_families(hosts: &Hosts, expected: [bool; 2], when: &str) {
    for (to, expected) in ["10.0.0.2", "2001:db8::2"].into_iter().zip(expected) {
        // The first packets may wait for the link.
        let tried = (0..TRIES).find(|_| hosts.pings(to) == expected);
        assert!(tried.is_some(), "{to}, {when}: {}", hosts.policies());
    }
}
