//! The tunnels that are compared: ours, and those of others on the same ground, each with its own configuration.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gdoi_lab::LabError;
use gdoi_lab::daemon::Daemon;
use gdoi_lab::network::{GCKS, MEMBERS, run};
use gdoi_lab::site::{MemberPlan, ServerPlan, Site, Timing};

/// Ours with AES-256-GCM in UDP: the others are compared with it.
pub const OURS_UDP: &str = "gmd udp gcm";
/// The same by raw ESP.
pub const OURS_RAW: &str = "gmd raw gcm";
const CHARON: &str = "/usr/lib/ipsec/charon";
const SOON: Duration = Duration::from_secs(30);
const SECRET: &str = "challenger deep, 10935 m";

/// One of them.
#[derive(Debug)]
pub struct Peer {
    /// Its name in the table.
    pub name: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Nothing but routing.
    Clear,
    Ours {
        udp: bool,
        encryption: &'static str,
        more: More,
    },
    /// kernel-libipsec: ESP in the daemon.
    StrongSwan {
        proposal: &'static str,
    },
    /// A program that makes an interface which `wg` configures.
    WireGuard {
        program: &'static str,
    },
}

const GCM: &str = "aes-256-gcm";
const CBC: &str = "aes-256-cbc";

/// What else ours does for each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum More {
    Nothing,
    /// Asks 36 rules and policies.
    Rules,
    /// Timestamps: IP-D3P.
    Timestamps,
}

/// All, in the order they take turns.
pub const ALL: &[Peer] = &[
    Peer { name: "no tunnel", kind: Kind::Clear },
    Peer { name: OURS_UDP, kind: Kind::Ours { udp: true, encryption: GCM, more: More::Nothing } },
    Peer { name: OURS_RAW, kind: Kind::Ours { udp: false, encryption: GCM, more: More::Nothing } },
    Peer { name: "wireguard-go", kind: Kind::WireGuard { program: "wireguard-go" } },
    Peer { name: "boringtun", kind: Kind::WireGuard { program: "boringtun-cli" } },
    Peer { name: "strongSwan libipsec gcm", kind: Kind::StrongSwan { proposal: "aes256gcm16" } },
    Peer {
        name: "gmd udp gcm, 36 rules",
        kind: Kind::Ours { udp: true, encryption: GCM, more: More::Rules },
    },
    Peer {
        name: "gmd udp gcm, timestamps",
        kind: Kind::Ours { udp: true, encryption: GCM, more: More::Timestamps },
    },
    Peer {
        name: "gmd raw gcm, timestamps",
        kind: Kind::Ours { udp: false, encryption: GCM, more: More::Timestamps },
    },
    Peer { name: "gmd udp cbc", kind: Kind::Ours { udp: true, encryption: CBC, more: More::Nothing } },
    Peer { name: "gmd raw cbc", kind: Kind::Ours { udp: false, encryption: CBC, more: More::Nothing } },
    Peer { name: "strongSwan libipsec cbc", kind: Kind::StrongSwan { proposal: "aes256-sha256" } },
];

/// A tunnel that is up, or about to be; gone when dropped.
#[derive(Debug, Default)]
pub struct Running {
    daemons: Vec<Daemon>,
    children: Vec<Child>,
    /// The two ends, when they are processes.
    ends: [Option<u32>; 2],
    /// To be run on the hosts at the end.
    after: Vec<Command>,
}

impl Running {
    /// The sending and the receiving end.
    pub fn processes(&self) -> [Option<u32>; 2] {
        self.ends
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // In order, so that nothing of the next one meets them.
        for daemon in self.daemons.drain(..) {
            let _ = daemon.stop();
        }
        for child in &mut self.children {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(child),
                rustix::process::Signal::TERM,
            );
            let ended = (0..30).any(|_| {
                std::thread::sleep(Duration::from_millis(100));
                child.try_wait().is_ok_and(|status| status.is_some())
            });
            if !ended {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for command in &mut self.after {
            let _ = command.stdin(Stdio::null()).output();
        }
    }
}

impl Peer {
    /// Brings it up on a ground that has none.
    ///
    /// # Errors
    /// [`LabError`] when its program is missing or refuses.
    pub fn start(&self, site: &Site, programs: Option<&Path>) -> Result<Running, LabError> {
        match &self.kind {
            Kind::Clear => Ok(Running::default()),
            Kind::Ours { udp, encryption, more } => ours(site, *udp, encryption, *more),
            Kind::StrongSwan { proposal } => strongswan(site, proposal),
            Kind::WireGuard { program } => wireguard(site, programs, program),
        }
    }
}

fn ours(site: &Site, udp: bool, encryption: &'static str, more: More) -> Result<Running, LabError> {
    // A key server that begins anew: another cipher must not meet stored keys.
    let _ = std::fs::remove_dir_all(site.path("state"));
    let rules = more == More::Rules;
    let idle_policies = if rules { 15 } else { 0 };
    let delay_window = (more == More::Timestamps).then_some(1000);
    let plan = ServerPlan { encryption, idle_policies, delay_window, ..ServerPlan::new(Timing::LONG) };
    site.write_server(&plan)?;
    let mut text = String::new();
    for number in 0..if rules { 10 } else { 0 } {
        for kind in ["exclude", "fail-open"] {
            let _ = write!(
                text,
                "[[vpn.lab.{kind}]]\nname = \"r{number}\"\nsource-address = \"10.9.{number}.0/24\"\n\
                 destination-address = \"0.0.0.0/0\"\napplication = \"tcp/{}\"\n",
                1000 + number
            );
        }
    }
    let plan = MemberPlan { traffic: true, udp, rules: text, ..MemberPlan::default() };
    let server = site.start(GCKS, None)?;
    server.wait_named(server.beginning(), SOON, "group_created")?;
    let mut running = Running::default();
    running.daemons.push(server);
    for (end, member) in running.ends.iter_mut().zip(MEMBERS) {
        site.write_member(member, &plan)?;
        let daemon = site.start(member, None)?;
        *end = Some(daemon.process());
        running.after.push(site.gmd(member, "--release"));
        daemon.wait_named(daemon.beginning(), SOON, "tek_activated")?;
        running.daemons.insert(0, daemon);
    }
    Ok(running)
}

/// The other member's number, from 1, and its LAN.
fn other(number: usize) -> (usize, String) {
    let other = 3 - number;
    (other, format!("172.16.{other}.0/24"))
}

fn back_to_routing(site: &Site, running: &mut Running) {
    for (number, member) in (1..).zip(MEMBERS) {
        let (other, lan) = other(number);
        let mut command = site.network.command(member, Path::new("ip"));
        command.args(["route", "replace", &lan, "via", &format!("192.0.2.1{other}")]);
        running.after.push(command);
    }
}

fn output(command: &mut Command, input: &str) -> Result<String, LabError> {
    use std::io::Write as _;
    let name = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(LabError::system(name.clone()))?;
    if let Some(stdin) = &mut child.stdin {
        stdin.write_all(input.as_bytes()).map_err(LabError::system(name.clone()))?;
    }
    let output = child.wait_with_output().map_err(LabError::system(name.clone()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => {
            Err(LabError::Program(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
        }
    }
}

fn wireguard(site: &Site, programs: Option<&Path>, program: &str) -> Result<Running, LabError> {
    let beside = programs.map(|directory| directory.join(program)).filter(|path| path.is_file());
    let path = beside.unwrap_or_else(|| PathBuf::from(program));
    std::fs::create_dir_all("/run/wireguard").map_err(LabError::system("/run/wireguard"))?;
    let mut keys = Vec::new();
    for number in 1..=2 {
        let private = output(Command::new("wg").arg("genkey"), "")?;
        let file = site.path(&format!("wg{number}.key"));
        std::fs::write(&file, &private).map_err(LabError::system("a key"))?;
        keys.push((file, output(Command::new("wg").arg("pubkey"), &private)?));
    }
    let mut running = Running::default();
    for (number, member) in (1..).zip(MEMBERS) {
        let interface = format!("wg{number}");
        let mut command = site.network.command(member, &path);
        command.args(["-f", &interface]).env("WG_PROCESS_FOREGROUND", "1").env("WG_THREADS", "2");
        command.env("WG_SUDO", "true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(LabError::system(program))?;
        if let Some(end) = running.ends.get_mut(number - 1) {
            *end = Some(child.id());
        }
        running.children.push(child);
    }
    back_to_routing(site, &mut running);
    for (number, member) in (1..).zip(MEMBERS) {
        let (other, lan) = other(number);
        let interface = format!("wg{number}");
        let (Some((key, _)), Some((_, peer))) = (keys.get(number - 1), keys.get(other - 1)) else { continue };
        let mut set = site.network.command(member, Path::new("wg"));
        set.args(["set", &interface, "listen-port", "51820", "private-key"]).arg(key);
        set.args(["peer", peer, "allowed-ips", "172.16.0.0/12"]);
        set.args(["endpoint", &format!("192.0.2.1{other}:51820")]);
        // Until the program has made its socket.
        let mut last = Ok(String::new());
        for _ in 0..50 {
            last = output(&mut set, "");
            if last.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        last?;
        run(&format!("ip -n {member} link set {interface} mtu 1420 up"))?;
        run(&format!("ip -n {member} route replace {lan} dev {interface}"))?;
    }
    Ok(running)
}

fn strongswan(site: &Site, proposal: &str) -> Result<Running, LabError> {
    let mut running = Running::default();
    for (number, member) in (1..).zip(MEMBERS) {
        let file = |name: &str| site.path(&format!("{member}.{name}"));
        let (other, lan) = other(number);
        let vici = format!("unix://{}", file("vici").display());
        let conf = format!(
            "charon {{\n load = random nonce aes sha1 sha2 hmac kdf gcm openssl curve25519 kernel-libipsec kernel-netlink \
             socket-default vici\n plugins {{ vici {{ socket = {vici} }} }}\n filelog {{ log {{ path = {}\n }} }}\n}}\n",
            file("charon.log").display()
        );
        let connection = format!(
            "connections {{ net {{\n version = 2\n local_addrs = 192.0.2.1{number}\n remote_addrs = 192.0.2.1{other}\n \
             encap = yes\n proposals = aes256-sha256-curve25519\n local {{ auth = psk\n id = gm{number} }}\n \
             remote {{ auth = psk\n id = gm{other} }}\n children {{ net {{\n local_ts = 172.16.{number}.0/24\n \
             remote_ts = {lan}\n esp_proposals = {proposal}\n }} }}\n }} }}\n\
             secrets {{ ike-all {{ secret = \"{SECRET}\" }} }}\n"
        );
        let write = |name: &str, text: &str| {
            std::fs::write(file(name), text).map_err(LabError::system("a configuration of strongSwan"))
        };
        write("strongswan.conf", &conf)?;
        write("swanctl.conf", &connection)?;
        // Each charon has a /run of its own: it keeps its number there.
        let mut command = site.network.command(member, Path::new("unshare"));
        command.args(["--mount", "sh", "-c", &format!("mount -t tmpfs tmpfs /run && exec {CHARON}")]);
        command.env("STRONGSWAN_CONF", file("strongswan.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(LabError::system("charon"))?;
        if let Some(end) = running.ends.get_mut(number - 1) {
            *end = Some(child.id());
        }
        running.children.push(child);
        let swanctl = |arguments: &[&str]| {
            let mut command = Command::new("swanctl");
            command.args(arguments).args(["--uri", &vici]).env("STRONGSWAN_CONF", file("strongswan.conf"));
            output(&mut command, "")
        };
        let up = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            swanctl(&["--stats"]).is_ok()
        });
        if !up {
            return Err(LabError::Wrong("charon does not answer".to_owned()));
        }
        let configuration = file("swanctl.conf");
        swanctl(&["--load-all", "--file", &configuration.to_string_lossy()])?;
        if number == 2 {
            swanctl(&["--initiate", "--child", "net"])?;
        }
    }
    Ok(running)
}
