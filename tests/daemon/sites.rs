//! Three sites with a key server in the WAN, in network namespaces: every kind of traffic crosses, and every frame on the
//! WAN is looked at. Skipped where user namespaces, TUN devices or ping are missing.
//!
//! ```text
//! lan1 172.16.1.2 - gm1 192.0.2.11 --+-- 192.0.2.12 gm2 - 172.16.2.2 lan2      IPv6: 2001:db8:N::2, 2001:db8:9::1N
//!                     192.0.2.1 gcks +-- 192.0.2.13 gm3 - 172.16.3.2 lan3
//! ```

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use gdoi_lab::binaries::Binaries;
use gdoi_lab::daemon::Daemon;
use gdoi_lab::lans::HOSTS;
use gdoi_lab::network::{GCKS, MEMBERS, Network, THIRD};
use gdoi_lab::site::{MemberPlan, ServerPlan, Site, Timing};
use gdoi_lab::wire::Wire;

use crate::support::SOON;
use crate::traffic::{PROGRAMS, in_namespaces};

const SITES: [&str; 3] = [MEMBERS[0], MEMBERS[1], THIRD];
/// Groups the policies protect.
const GROUPS: [&str; 2] = ["239.1.1.1", "ff0e::1:1"];
/// A port the members exclude: echo.
const CLEAR_PORT: u16 = 7;
/// A network behind gm2 that no policy names.
const UNNAMED: &str = "198.51.100.2";
const PATIENCE: Duration = Duration::from_secs(10);
/// For what is tried again.
const QUICK: Duration = Duration::from_millis(500);

#[test]
fn three_sites_exchange_every_kind_of_traffic_and_the_wan_sees_only_esp() {
    in_namespaces("sites::three_sites");
}

#[test]
fn the_machines_own_traffic_is_protected_in_transport_mode_beside_that_of_the_lans() {
    in_namespaces("sites::own_traffic");
}

#[test]
fn packets_that_meet_a_change_of_routes_do_not_leave_in_clear() {
    in_namespaces("sites::changing_routes");
}

/// Key server, members and their LANs, all registered; none when this is not the place.
struct Ground {
    site: Site,
    wire: Wire,
    members: Vec<Daemon>,
    _server: Daemon,
}

impl Ground {
    fn new(members: &[&'static str], server: &str, member: &str) -> Option<Ground> {
        let programs = std::env::var_os(PROGRAMS)?;
        let network = Network::namespaces().unwrap();
        if let Some(reason) = network.no_traffic() {
            gdoi_lab::skipped("daemon sites", reason);
            return None;
        }
        network.add_lans_behind(members).unwrap();
        let site = Site::new(network, Binaries::in_directory(programs.as_ref()).unwrap()).unwrap();
        let plan = ServerPlan::new(Timing::LONG);
        let more = server.to_owned();
        site.write_server(&ServerPlan { ipv6: true, admitted: members.to_vec(), more, ..plan }).unwrap();
        let server = site.start(GCKS, None).unwrap();
        server.wait_named(server.beginning(), SOON, "group_created").unwrap();
        for host in members {
            let plan = MemberPlan { traffic: true, more: member.to_owned(), ..MemberPlan::default() };
            site.write_member(host, &plan).unwrap();
        }
        let wire = Wire::watch().unwrap();
        let members: Vec<Daemon> = members.iter().map(|host| site.start(host, None).unwrap()).collect();
        for member in &members {
            member.wait_named(member.beginning(), SOON * 2, "tek_activated").unwrap();
        }
        Some(Ground { site, wire, members, _server: server })
    }

    fn network(&self) -> &Network {
        &self.site.network
    }

    fn counters(&self) -> String {
        let traffic = |member: &Daemon| member.vpn().map(|vpn| vpn.traffic);
        format!("{:#?}", self.members.iter().map(traffic).collect::<Vec<_>>())
    }
}

fn lan(number: usize, v4: bool) -> IpAddr {
    let text = if v4 { format!("172.16.{number}.2") } else { format!("2001:db8:{number}::2") };
    text.parse().unwrap()
}

#[test]
#[ignore = "in namespaces only, where another test starts it"]
fn three_sites() {
    let groups = GROUPS.map(|group| {
        let (source, length) =
            if group.contains(':') { ("2001:db8::/44", 128) } else { ("172.16.0.0/12", 32) };
        format!(
            "[[group.lab.ipsec-sa.SA1.match-policy]]\nname = \"{group}\"\nsource = \"{source}\"\n\
             destination = \"{group}/{length}\"\n"
        )
    });
    let exclude: String = ["0.0.0.0/0", "::/0"]
        .map(|all| {
            format!(
                "[[vpn.lab.exclude]]\nname = \"echo {all}\"\nsource-address = \"{all}\"\n\
                 destination-address = \"{all}\"\napplication = \"udp/{CLEAR_PORT}\"\n"
            )
        })
        .concat();
    let Some(ground) = Ground::new(&SITES, &groups.concat(), &exclude) else { return };
    let network = ground.network();
    for line in
        ["-n gm1 route add 198.51.100.0/24 via 192.0.2.12", "-n gm2 route add 198.51.100.0/24 via 172.16.2.2"]
    {
        assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "{line}");
    }

    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            for v4 in [true, false] {
                let far = lan(to, v4).to_string();
                // The first may wait for a neighbour's address.
                network.ping_from(HOSTS[from - 1], &far, 1).unwrap();
                let pings = network.ping_from(HOSTS[from - 1], &far, 2).unwrap();
                assert!(pings.all_answered(), "lan{from} to {far}: {pings:?} {}", ground.counters());
            }
        }
    }
    for v4 in [true, false] {
        over_tcp(network, "lan1", "lan2", lan(2, v4));
        over_udp(&ground, "lan3", "lan1", SocketAddr::new(lan(1, v4), 5000), &[5, 1300, 3000]);
        // Fragments have no ports a rule could know.
        over_udp(&ground, "lan2", "lan3", SocketAddr::new(lan(3, v4), CLEAR_PORT), &[5, 1300]);
        to_a_group(&ground, v4);
    }
    assert_eq!(network.ping_from("lan1", UNNAMED, 2).unwrap().answered, 0);

    let frames = ground.wire.frames();
    let teks: Vec<(String, String)> = {
        let vpn = ground.members[0].vpn().unwrap();
        vpn.teks.iter().map(|tek| (tek.spi.clone(), tek.key_hex.clone().unwrap())).collect()
    };
    let esp = every_frame_is_as_it_should_be(&frames);
    decrypted_by_wireshark(&ground.site, &frames, &teks, esp);
}

fn over_tcp(network: &Network, client: &str, server: &str, address: IpAddr) {
    let (ready, port) = channel();
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || {
            network
                .inside(server, move || {
                    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let listener = TcpListener::bind(any).unwrap();
                    ready.send(listener.local_addr().unwrap().port()).unwrap();
                    listener.set_nonblocking(true).unwrap();
                    let accepted = (0..100)
                        .find_map(|_| listener.accept().map_err(|_| std::thread::sleep(QUICK / 5)).ok());
                    let (mut stream, from) = accepted.expect("a connection");
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.set_write_timeout(Some(PATIENCE)).unwrap();
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).unwrap();
                    stream.write_all(&all).unwrap();
                    from.ip()
                })
                .unwrap()
        });
        let port = port.recv_timeout(PATIENCE).unwrap();
        let own = network
            .inside(client, || {
                let mut stream =
                    TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let sent: Vec<u8> = (0..300_000u32).map(|number| number.to_le_bytes()[1]).collect();
                stream.write_all(&sent).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut back = Vec::new();
                stream.read_to_end(&mut back).unwrap();
                assert!(back == sent, "{} of {} octets came back", back.len(), sent.len());
                stream.local_addr().unwrap().ip()
            })
            .unwrap();
        assert_eq!(echo.join().unwrap(), own, "the address is preserved");
    });
}

/// Short and long datagrams there and back. One that is too long for the tunnel may be lost so that its sender learns that.
fn over_udp(ground: &Ground, client: &str, server: &str, to: SocketAddr, lengths: &[usize]) {
    let network = ground.network();
    let (ready, listening) = channel();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            network
                .inside(server, || {
                    let socket = UdpSocket::bind(to).unwrap();
                    socket.set_read_timeout(Some(QUICK)).unwrap();
                    ready.send(()).unwrap();
                    let mut buffer = [0; 4000];
                    while !done.load(Ordering::Relaxed) {
                        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                            socket.send_to(&buffer[..length], from).unwrap();
                        }
                    }
                })
                .unwrap();
        });
        listening.recv_timeout(PATIENCE).unwrap();
        let missing = network.inside(client, || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(QUICK)).unwrap();
            let mut buffer = [0; 4000];
            let mut passes = |length: usize| {
                (0..10).any(|_| {
                    socket.send_to(&vec![7; length], to).unwrap();
                    socket.recv_from(&mut buffer).is_ok_and(|answer| answer == (length, to))
                })
            };
            lengths.iter().copied().filter(|length| !passes(*length)).collect::<Vec<_>>()
        });
        done.store(true, Ordering::Relaxed);
        assert_eq!(missing.unwrap(), Vec::<usize>::new(), "{client} to {to}: {}", ground.counters());
    });
}

/// lan1 sends to a group; lan2 and lan3 hear it, from lan1.
fn to_a_group(ground: &Ground, v4: bool) {
    let network = ground.network();
    let group: IpAddr = GROUPS[usize::from(!v4)].parse().unwrap();
    let (ready, listening) = channel();
    std::thread::scope(|scope| {
        let hearers: Vec<_> = ["lan2", "lan3"]
            .map(|host| {
                let ready = ready.clone();
                scope.spawn(move || {
                    network
                        .inside(host, move || {
                            let any = if v4 { "0.0.0.0:5001" } else { "[::]:5001" };
                            let socket = UdpSocket::bind(any).unwrap();
                            socket.set_read_timeout(Some(PATIENCE)).unwrap();
                            let interface = rustix::net::netdevice::name_to_index(&socket, "eth0").unwrap();
                            match group {
                                IpAddr::V4(group) => socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED),
                                IpAddr::V6(group) => socket.join_multicast_v6(&group, interface),
                            }
                            .unwrap();
                            ready.send(()).unwrap();
                            let mut buffer = [0; 2000];
                            let heard = socket.recv_from(&mut buffer);
                            heard.map(|(length, from)| (buffer[..length].to_vec(), from.ip()))
                        })
                        .unwrap()
                })
            })
            .into_iter()
            .collect();
        for _ in 0..2 {
            listening.recv_timeout(PATIENCE).unwrap();
        }
        network
            .inside("lan1", || {
                let socket = socket2::Socket::new(
                    if v4 { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 },
                    socket2::Type::DGRAM,
                    None,
                )
                .unwrap();
                socket.set_multicast_ttl_v4(8).or_else(|_| socket.set_multicast_hops_v6(8)).unwrap();
                if !v4 {
                    socket.set_multicast_hops_v6(8).unwrap();
                }
                socket.send_to(b"to all of you", &SocketAddr::new(group, 5001).into()).unwrap();
            })
            .unwrap();
        for hearer in hearers {
            let heard = hearer.join().unwrap();
            let (said, from) = heard.unwrap_or_else(|error| panic!("{group}: {error} {}", ground.counters()));
            assert_eq!((said.as_slice(), from), (b"to all of you".as_slice(), lan(1, v4)));
        }
    });
}

/// What a frame carries, when it is IP.
#[derive(Debug)]
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Of UDP.
    ports: [u16; 2],
}

fn packet(frame: &[u8]) -> Option<Packet> {
    let (kind, ip) = (&frame[12..14], &frame[14..]);
    let pair = |at: usize| ip.get(at..at + 2).map_or(0, |octets| u16::from_be_bytes([octets[0], octets[1]]));
    let four = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap()).into();
    let six = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap()).into();
    let (source, destination, protocol, at) = match kind {
        [0x08, 0x00] => (four(12), four(16), ip[9], usize::from(ip[0] & 15) * 4),
        // Fragments count as what they are fragments of.
        [0x86, 0xdd] if ip[6] == 44 => (six(8), six(24), ip[40], 48),
        [0x86, 0xdd] => (six(8), six(24), ip[6], 40),
        _ => return None,
    };
    let later = kind == [0x08, 0x00] && pair(6) & 0x1fff != 0
        || kind == [0x86, 0xdd] && ip[6] == 44 && pair(42) & 0xfff8 != 0;
    let ports = if protocol == 17 && !later { [pair(at), pair(at + 2)] } else { [0; 2] };
    Some(Packet { source, destination, protocol, ports })
}

fn is_of_lan(address: IpAddr) -> bool {
    (1..=3).any(|number| [true, false].into_iter().any(|v4| lan(number, v4) == address))
}

/// Returns how many frames were ESP. Each crosses two ports of the bridge, multicast more.
fn every_frame_is_as_it_should_be(frames: &[Vec<u8>]) -> usize {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let groups = GROUPS.map(|group| group.parse::<IpAddr>().unwrap());
    for frame in frames {
        let Some(packet) = packet(frame) else {
            // ARP and the like.
            continue;
        };
        let lans = is_of_lan(packet.source)
            && (is_of_lan(packet.destination) || groups.contains(&packet.destination));
        let kind = match packet.protocol {
            50 if lans && packet.destination.is_multicast() => "ESP to a group",
            50 if lans && packet.source.is_ipv4() => "ESP, IPv4",
            50 if lans => "ESP, IPv6",
            17 if lans && packet.ports.contains(&CLEAR_PORT) => "excluded",
            17 if packet.ports.contains(&848) && !is_of_lan(packet.source) => "key management",
            2 | 58 | 0 if !is_of_lan(packet.source) && !is_of_lan(packet.destination) => "neighbours",
            _ => panic!("{packet:?} on the WAN: {}", hex::encode(frame)),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    for (kind, least) in [
        ("ESP, IPv4", 100),
        ("ESP, IPv6", 100),
        ("ESP to a group", 4),
        ("excluded", 8),
        ("key management", 10),
    ] {
        assert!(kinds.get(kind).is_some_and(|count| *count >= least), "{kind}: {kinds:?}");
    }
    kinds.iter().filter(|(kind, _)| kind.starts_with("ESP")).map(|(_, count)| count).sum()
}

/// tshark opens every ESP packet with the keys of `--show-keys` and finds each ICV good.
fn decrypted_by_wireshark(site: &Site, frames: &[Vec<u8>], teks: &[(String, String)], esp: usize) {
    if !Command::new("tshark").arg("--version").output().is_ok_and(|output| output.status.success()) {
        gdoi_lab::skipped("decryption by tshark", "tshark");
        return;
    }
    let path = site.path("wan.pcap");
    gdoi_lab::capture::write_frames(&path, frames).unwrap();
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(&path).env("HOME", site.directory());
    for option in ["enable_encryption_decode", "enable_authentication_check"] {
        command.args(["-o", &format!("esp.{option}:TRUE")]);
    }
    for family in ["IPv4", "IPv6"] {
        for (spi, key) in teks {
            let algorithms = "\"AES-GCM with 16 octet ICV [RFC4106]\"";
            let sa = format!("\"{family}\",\"*\",\"*\",\"{spi}\",{algorithms},\"0x{key}\",\"NULL\",\"\"");
            command.args(["-o", &format!("uat:esp_sa:{sa}")]);
        }
    }
    let fields = ["esp.icv_good", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst"];
    command.args(["-Y", "esp", "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), esp, "{}", String::from_utf8_lossy(&output.stderr));
    for line in lines {
        let mut fields = line.split('\t');
        assert!(fields.next().is_some_and(|good| matches!(good, "1" | "True")), "{line}");
        // Outer and inner address, the same twice.
        for addresses in fields.filter(|field| !field.is_empty()) {
            let (outer, inner) = addresses.split_once(',').unwrap_or_else(|| panic!("not opened: {line}"));
            assert_eq!(outer, inner, "{line}");
        }
    }
}

/// A second group for what the members say to each other themselves, in transport mode.
const OWN_SERVER: &str = r#"
[ipsec.proposal.own]
encryption-algorithm = "aes-256-cbc"
authentication-algorithm = "hmac-sha-256-128"
encapsulation = "transport"
[group.own]
group-id = 2
anti-replay-time-window = 5000
ike-gateways = ["gm1", "gm2"]
[group.own.server-member-communication]
encryption-algorithm = "aes-256-cbc"
sig-hash-algorithm = "sha-256"
signature = "ecdsa-256"
[group.own.ipsec-sa.SA1]
proposal = "own"
[[group.own.ipsec-sa.SA1.match-policy]]
name = "members"
source = "192.0.2.8/29"
destination = "192.0.2.8/29"
"#;

const OWN_MEMBER: &str = r#"
[vpn.own]
ike-gateway = "servers"
group = 2
[[ipsec-policy]]
from-zone = "host"
to-zone = "wan"
vpn = "own"
"#;

#[test]
#[ignore = "in namespaces only, where another test starts it"]
fn own_traffic() {
    let Some(mut ground) = Ground::new(&MEMBERS, OWN_SERVER, OWN_MEMBER) else { return };
    let (gm2, lan2) = (ground.network().ip(MEMBERS[1]), lan(2, true));
    let own = |packet: &Packet| packet.source.to_string().starts_with("192.0.2.1") && packet.ports == [0, 0];
    for member in &ground.members {
        member
            .wait_until(SOON, "keys of both groups", |member| {
                Ok(member.member()?.vpns.iter().all(|vpn| vpn.teks.iter().any(|tek| tek.state == "current")))
            })
            .unwrap();
    }
    for (from, to) in [(MEMBERS[0], gm2), ("lan1", lan2)] {
        ground.network().ping_from(from, &to.to_string(), 1).unwrap();
        let pings = ground.network().ping_from(from, &to.to_string(), 3).unwrap();
        assert!(pings.all_answered(), "{from} to {to}: {pings:?} {}", ground.counters());
    }
    // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN and CAP_NET_RAW, and no way to more.
    for (field, value) in [
        ("CapEff", "0000000000003400"),
        ("CapPrm", "0000000000003400"),
        ("CapBnd", "0000000000003400"),
        ("CapInh", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(ground.members[0].status(field).unwrap(), value, "{field}");
    }
    // Longer than the path takes: the sender is this machine, and learns it.
    over_tcp(ground.network(), MEMBERS[0], MEMBERS[1], gm2);
    let packets: Vec<Packet> = ground.wire.frames().iter().filter_map(|frame| packet(frame)).collect();
    let mine: Vec<&Packet> = packets
        .iter()
        .filter(|packet| own(packet) && packet.destination.to_string().starts_with("192.0.2.1"))
        .filter(|packet| packet.destination != ground.network().ip(GCKS))
        .collect();
    assert!(mine.len() > 100 && mine.iter().all(|packet| packet.protocol == 50), "{mine:#?}");

    // Packets carry the time, and the clock of the sender is shown before anything is dropped for it.
    let own = ground.members[0].member().unwrap().vpns.into_iter().find(|vpn| vpn.name == "own").unwrap();
    let traffic = own.traffic.unwrap();
    let skew = traffic.skews.iter().find(|skew| skew.sender == gm2.to_string());
    assert!(
        skew.is_some_and(|skew| skew.refused == 0 && skew.most_microseconds.abs() < 2_500_000),
        "{traffic:#?}"
    );

    // A dead member says nothing in clear, and hears nothing.
    let before = ground.wire.frames().len();
    ground.members[0].kill();
    assert_eq!(ground.network().ping_from(MEMBERS[0], &gm2.to_string(), 2).unwrap().answered, 0);
    assert_eq!(ground.network().ping_from(MEMBERS[1], "192.0.2.11", 2).unwrap().answered, 0);
    let after: Vec<Packet> =
        ground.wire.frames()[before..].iter().filter_map(|frame| packet(frame)).collect();
    assert!(after.iter().all(|packet| packet.protocol != 1), "{after:#?}");
    // Released, it speaks as before.
    let (code, said) = crate::traffic::runs(&mut ground.site.gmd(MEMBERS[0], "--release"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ground.network().steering(MEMBERS[0]).unwrap(), Vec::<String>::new());
    assert!(ground.network().ping_from(MEMBERS[0], "192.0.2.1", 1).unwrap().all_answered());
}

#[test]
#[ignore = "in namespaces only, where another test starts it"]
fn changing_routes() {
    let Some(ground) = Ground::new(&MEMBERS, "", "") else { return };
    let network = ground.network();
    network
        .ip_batch(MEMBERS[0], "link add dmz type veth peer name zmd\nlink set zmd up\naddress add 10.7.0.1/24 dev dmz\nlink set dmz up\n")
        .unwrap();
    assert!(network.ping_from("lan1", "172.16.2.2", 3).unwrap().answered > 0);
    // Now to the WAN, now to an interface that forms no pair with the LAN.
    let change = "route replace 172.16.2.0/24 dev dmz\nroute replace 172.16.2.0/24 via 192.0.2.12\n";
    // Until both ways were taken often, however busy the machine is.
    let (enough, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            network.inside("lan1", || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !enough.load(Ordering::Relaxed) && sent.load(Ordering::Relaxed) < 3_000_000 {
                    sent.fetch_add(
                        u32::from(socket.send_to(&[1; 64], "172.16.2.2:9").is_ok()),
                        Ordering::Relaxed,
                    );
                }
            })
        });
        while !sender.is_finished() {
            network.ip_batch(MEMBERS[0], &change.repeat(20)).unwrap();
            let often = sent.load(Ordering::Relaxed) > 60_000 && ground.wire.seen().esp > 100;
            enough.fetch_or(often, Ordering::Relaxed);
        }
        sender.join().unwrap().unwrap();
    });
    let seen = ground.wire.seen();
    assert!(seen.esp > 100, "{seen:?} of {}", sent.load(Ordering::Relaxed));
    assert_eq!(seen.clear, 0, "{:?}", seen.examples);
}
