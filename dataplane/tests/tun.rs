//! Two gateways with the userspace backend in network namespaces of their own, a TEK installed by hand.
//!
//! ```text
//! lan1 10.1.0.2 -- 10.1.0.1 gw1 10.9.0.1 == 10.9.0.9 core 10.8.0.9 == 10.8.0.1 gw2 10.2.0.1 -- 10.2.0.2 lan2
//! (IPv6: 2001:db8:N::)                       the core has an MTU of 1400 towards gw2, for IPv4
//! ```
#![cfg(feature = "linux")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::esp::Carrier;
use dataplane::path::Counters;
use dataplane::tun::{Pair, TunPlane, TunSettings, VpnSettings, Zone};
use dataplane::{DataPlane, TekInstall};
use gdoi_proto::ids::{SenderId, Spi};
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{
    AddressPreservation, Direction, Encapsulation, SenderIds, TekCipher, TekKey, TekPolicy,
};
use gdoi_proto::registry::IdType;
use gdoi_proto::secret::SecretBytes;

const HOSTS: [&str; 5] = ["lan1", "gw1", "core", "gw2", "lan2"];

/// Five namespaces, named after this process; gone with the value.
struct Lab(u32);

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split_whitespace()).output().is_ok_and(|output| output.status.success())
}

/// What a command line prints.
fn ip_says(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Lab {
    fn new() -> Option<Lab> {
        let lab = Lab(std::process::id());
        for host in HOSTS {
            if !ip(&format!("netns add {}", lab.name(host))) {
                return None;
            }
            lab.inside(host, "ip link set lo up");
        }
        for (left, left_if, right, right_if) in [
            ("lan1", "eth0", "gw1", "lan"),
            ("gw1", "wan", "core", "one"),
            ("core", "two", "gw2", "wan"),
            ("gw2", "lan", "lan2", "eth0"),
        ] {
            let (left, right) = (lab.name(left), lab.name(right));
            assert!(ip(&format!(
                "link add {left_if} netns {left} type veth peer name {right_if} netns {right}"
            )));
        }
        for (host, interface, net, number) in [
            ("lan1", "eth0", "1", 2),
            ("gw1", "lan", "1", 1),
            ("gw1", "wan", "9", 1),
            ("core", "one", "9", 9),
            ("core", "two", "8", 9),
            ("gw2", "wan", "8", 1),
            ("gw2", "lan", "2", 1),
            ("lan2", "eth0", "2", 2),
        ] {
            lab.inside(host, &format!("ip addr add 10.{net}.0.{number}/24 dev {interface}"));
            lab.inside(host, &format!("ip addr add 2001:db8:{net}::{number}/64 dev {interface} nodad"));
            lab.inside(host, &format!("ip link set {interface} up"));
        }
        for (host, to, via, number) in
            [("lan1", 2, 1, 1), ("gw1", 2, 9, 9), ("core", 1, 9, 1), ("gw2", 1, 8, 9), ("lan2", 1, 2, 1)]
        {
            lab.inside(host, &format!("ip route add 10.{to}.0.0/24 via 10.{via}.0.{number}"));
            lab.inside(host, &format!("ip route add 2001:db8:{to}::/64 via 2001:db8:{via}::{number}"));
        }
        lab.inside("core", "ip route add 10.2.0.0/24 via 10.8.0.1 mtu lock 1400");
        lab.inside("core", "ip route add 2001:db8:2::/64 via 2001:db8:8::1");
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            let write = format!("echo 1 > /proc/sys/net/{switch}");
            let core = lab.name("core");
            let shell = Command::new("ip").args(["netns", "exec", &core, "sh", "-c", &write]).status();
            assert!(shell.is_ok_and(|status| status.success()), "{write}");
        }
        Some(lab)
    }

    fn path(&self, host: &str) -> String {
        format!("/run/netns/{}", self.name(host))
    }

    /// Sends 4 MB by TCP from `lan1` to `lan2`; panics when others come.
    fn stream(&self, to: &str) {
        let octets: Vec<u8> = (0..4_000_000u32).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect();
        let to = SocketAddr::new(to.parse().unwrap(), 5001);
        let (wanted, [here, there]) = (octets.clone(), ["lan1", "lan2"].map(|host| self.path(host)));
        let (ready, listening) = channel();
        let patience = Some(Duration::from_secs(60));
        let receiver = std::thread::spawn(move || {
            enter(&there);
            let listener = TcpListener::bind(to).unwrap();
            ready.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(patience).unwrap();
            let mut found = Vec::new();
            stream.read_to_end(&mut found).unwrap();
            assert!(found == wanted, "{} octets", found.len());
        });
        listening.recv().unwrap();
        let sender = std::thread::spawn(move || {
            enter(&here);
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(20)).unwrap();
            stream.set_write_timeout(patience).unwrap();
            stream.write_all(&octets).unwrap();
        });
        sender.join().unwrap();
        receiver.join().unwrap();
    }

    fn name(&self, host: &str) -> String {
        format!("gdoi-{}-{host}", self.0)
    }

    fn inside(&self, host: &str, command: &str) {
        assert!(ip(&format!("netns exec {} {command}", self.name(host))), "{host}: {command}");
    }

    fn pings(&self, to: &str) -> bool {
        self.pings_with("-s 1200", to)
    }

    fn pings_with(&self, options: &str, to: &str) -> bool {
        ip(&format!("netns exec {} ping -n -c 3 -i 0.05 -W 1 {options} {to}", self.name("lan1")))
    }

    /// Runs a gateway on a thread that lives in its namespace.
    fn gateway(&self, host: &str, sid: u32, carrier: Carrier) -> Gateway {
        let namespace = self.path(host);
        let (orders, taken) = channel::<Order>();
        let (ready, started) = channel();
        let thread = std::thread::spawn(move || {
            enter(&namespace);
            for version in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{version}"), "1").unwrap();
            }
            let zone = |name: &str| Zone { name: name.to_owned(), interfaces: vec![name.to_owned()] };
            let settings = TunSettings {
                zones: ["lan", "wan"].map(zone).to_vec(),
                pairs: vec![Pair { from: "lan".to_owned(), to: "wan".to_owned(), vpn: "v".to_owned() }],
                vpns: vec![VpnSettings { name: "v".to_owned(), carrier, ..VpnSettings::default() }],
            };
            let random = Box::new(|out: &mut [u8]| out.fill(7));
            let mut plane = Some(TunPlane::start(settings, random, Box::new(|_| {})).unwrap());
            ready.send(()).unwrap();
            for order in taken {
                match (order, &mut plane) {
                    (Order::Install, Some(plane)) => {
                        for tek in [tek(300, sid, &[10, 0, 0, 0], 1), tek(301, sid, &V6, 4)] {
                            let spi = tek.spi();
                            plane.install(tek).unwrap();
                            plane.activate("v", spi).unwrap();
                        }
                    }
                    (Order::Die, plane) => drop(plane.take()),
                    (Order::Release, _) => dataplane::tun::steer::release().unwrap(),
                    (Order::Count(reply), Some(plane)) => reply.send(plane.counters("v").unwrap()).unwrap(),
                    (Order::Install | Order::Count(_), None) => panic!("it is dead"),
                }
                ready.send(()).unwrap();
            }
        });
        started.recv_timeout(Duration::from_secs(20)).expect("the gateway starts");
        Gateway { orders: Some(orders), done: started, thread: Some(thread) }
    }
}

/// Moves this thread into a namespace.
fn enter(path: &str) {
    let namespace = std::fs::File::open(path).unwrap();
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in HOSTS {
            ip(&format!("netns del {}", self.name(host)));
        }
    }
}

enum Order {
    Install,
    Die,
    Release,
    Count(Sender<(Counters, Counters)>),
}

struct Gateway {
    orders: Option<Sender<Order>>,
    done: std::sync::mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    fn tell(&self, order: Order) {
        self.orders.as_ref().unwrap().send(order).unwrap();
        self.done.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    fn counters(&self) -> (Counters, Counters) {
        let (reply, counters) = channel();
        self.tell(Order::Count(reply));
        counters.recv().unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// 2001:db8::
const V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// AES-256-GCM between all addresses that share the first `octets` of `net`.
fn tek(spi: u32, sid: u32, net: &[u8], octets: usize) -> TekInstall {
    let mut data = net.to_vec();
    data.extend((0..net.len()).map(|at| if at < octets { 255 } else { 0 }));
    let id_type = if net.len() == 4 { IdType::Ipv4Subnet } else { IdType::Ipv6Subnet };
    let all = Endpoint { id_type, port: 0, data };
    TekInstall {
        vpn: "v".to_owned(),
        policy: TekPolicy {
            spi: Spi(spi),
            ip_protocol: 0,
            source: all.clone(),
            destination: all,
            cipher: TekCipher::AesGcm { key_octets: 32, icv_octets: 16 },
            lifetime_seconds: 3600,
            lifetime_kilobytes: None,
            encapsulation: Encapsulation::Tunnel,
            address_preservation: AddressPreservation::Both,
            direction: Direction::Symmetric,
            delay_window: None,
        },
        key: TekKey { encryption: SecretBytes::copy(&[0x5a; 36]), integrity: None },
        sender_ids: Some(SenderIds { bits: 16, values: vec![SenderId(sid)] }),
        activate_after: Some(Duration::ZERO),
        delay_detection: Some(Duration::from_secs(1)),
    }
}

#[test]
fn lans_talk_through_esp_only_and_not_at_all_without_keys_or_daemon() {
    let tools =
        Command::new("ping").arg("-V").output().is_ok() && std::path::Path::new("/dev/net/tun").exists();
    let Some(lab) = Some(()).filter(|()| tools).and_then(|()| Lab::new()) else {
        println!("skipped: dataplane tun: needs root, ip, ping and /dev/net/tun");
        return;
    };
    for carrier in [Carrier::Raw, Carrier::Udp] {
        esp_only_and_nothing_without(&lab, carrier);
    }
}

fn esp_only_and_nothing_without(lab: &Lab, carrier: Carrier) {
    let (first, second) = (lab.gateway("gw1", 1, carrier), lab.gateway("gw2", 2, carrier));
    let targets = ["10.2.0.2", "2001:db8:2::2"];
    // No key: nothing passes, and the cause is counted.
    for to in targets {
        assert!(!lab.pings(to), "{to} without a key");
    }
    assert!(first.counters().0.dropped["no_policy"] >= 6);
    first.tell(Order::Install);
    second.tell(Order::Install);
    for to in targets {
        assert!(lab.pings(to), "{to} with a key: {:?} {:?}", first.counters(), second.counters());
    }
    for gateway in [&first, &second] {
        let (out, inn) = gateway.counters();
        // Three pings each of IPv4 and IPv6 went one way, as many answers the other.
        assert!(out.protected >= 6 && inn.protected >= 6, "{out:?} {inn:?}");
        assert_eq!((out.clear, inn.clear), ([0; 3], [0; 3]));
    }
    // Too long for the tunnel: fragments where they are allowed, and where not the sender learns the path MTU.
    assert!(lab.pings_with("-M dont -s 1472", "10.2.0.2"), "fragments: {:?}", first.counters());
    assert!(first.counters().0.fragmented >= 3);
    assert!(!lab.pings_with("-M do -s 1472", "10.2.0.2"));
    assert!(first.counters().0.dropped["too_big"] >= 1);
    // GCM, IP-D3P and the tunnel take 66 octets of 1500, UDP takes 8 more.
    let room = if carrier == Carrier::Raw { 1434 } else { 1426 };
    let learned = ip_says(&format!("netns exec {} ip route get 10.2.0.2", lab.name("lan1")));
    assert!(learned.contains(&format!("mtu {room}")), "{learned}");
    assert!(lab.pings_with(&format!("-M do -s {}", room - 28), "10.2.0.2"), "as long as it fits");
    // On the way to gw2 the core made fragments of ESP.
    assert!(second.counters().1.fragmented >= 6, "{:?}", second.counters());
    assert_eq!(first.counters().1.fragmented, 0);
    // IPv6 has fragments of senders only: each side loses a packet to learn it, then all pass.
    assert!(!ip(&format!("netns exec {} ping -n -c 1 -W 1 -s 1452 2001:db8:2::2", lab.name("lan1"))));
    lab.pings_with("-s 1452", "2001:db8:2::2");
    assert!(lab.pings_with("-s 1452", "2001:db8:2::2"), "both sides know");
    // Many packets at once, split and merged by every kernel on the way.
    for to in targets {
        lab.stream(to);
    }
    // A dead daemon: fail-close holds until the release.
    first.tell(Order::Die);
    second.tell(Order::Die);
    for to in targets {
        assert!(!lab.pings(to), "{to} while the daemons are dead");
    }
    first.tell(Order::Release);
    second.tell(Order::Release);
    for to in targets {
        assert!(lab.pings(to), "{to} after the release");
    }
    lab.inside("lan1", "ip route flush cache");
    lab.inside("lan2", "ip route flush cache");
}
