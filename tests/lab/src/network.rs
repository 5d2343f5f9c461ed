//! The machines of a lab.
//!
//! ```text
//! namespaces   gcks 192.0.2.1   gm1 192.0.2.11   gm2 192.0.2.12 ...  each `wan` a cable to the bridge `lab`, UDP 848
//! loopback     the same names on addresses of the loopback interface, UDP 8480 or the next free port
//! ```
//!
//! Namespaces need a user, network and mount namespace of our own around them: see [`Network::namespaces`]. There each
//! member can have a `lan` with a host beside its `wan`: [`crate::lans`]. Loopback hosts cannot.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::LabError;

/// The machine of the key server.
pub const GCKS: &str = "gcks";
/// The machines of the members.
pub const MEMBERS: [&str; 2] = ["gm1", "gm2"];

/// One more machine for a member, where two are not enough.
pub const THIRD: &str = "gm3";

/// Last octet of each machine's address.
const HOSTS: [(&str, u8); 4] = [(GCKS, 1), (MEMBERS[0], 11), (MEMBERS[1], 12), (THIRD, 13)];
/// The network of the namespaces: for documentation (RFC 5737), so it is nobody's.
const NAMESPACES: [u8; 3] = [192, 0, 2];
/// GDOI (RFC 6407 section 1.5).
const PORT: u16 = 848;
/// First port tried on loopback, where 848 belongs to root.
const LOOPBACK_PORT: u16 = 8480;

/// Where the daemons of a lab run.
#[derive(Debug)]
pub struct Network {
    prefix: [u8; 3],
    port: u16,
    namespaces: bool,
    /// The same port of TCP, which no daemon uses: while it is held, no other lab takes these addresses.
    _claim: Option<TcpListener>,
}

impl Network {
    /// 127.0.0.x with the first port from 8480 on that is free everywhere.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when 50 ports are taken.
    pub fn loopback() -> Result<Network, LabError> {
        Network::on_loopback([127, 0, 0])
    }

    /// Addresses of the loopback interface that no other lab of this process uses, nor likely any other process.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when 50 ports are taken.
    pub fn own_loopback() -> Result<Network, LabError> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [process, ..] = std::process::id().to_le_bytes();
        Network::on_loopback([127, process | 64, NEXT.fetch_add(1, Ordering::Relaxed)])
    }

    fn on_loopback(prefix: [u8; 3]) -> Result<Network, LabError> {
        (LOOPBACK_PORT..LOOPBACK_PORT + 50)
            .filter_map(|port| {
                let mut network = Network { prefix, port, namespaces: false, _claim: None };
                network._claim = Some(TcpListener::bind(network.address(GCKS)).ok()?);
                let free = HOSTS.iter().all(|(name, _)| UdpSocket::bind(network.address(name)).is_ok());
                free.then_some(network)
            })
            .next()
            .ok_or_else(|| LabError::Wrong(format!("no port from {LOOPBACK_PORT} on is free on loopback")))
    }

    /// Makes the namespaces. To be called in a process that is root of its own user, network and mount namespace
    /// (`unshare --user --map-root-user --net --mount`): nothing of the machine is touched, and all of it goes with the
    /// last process in it.
    ///
    /// # Errors
    /// [`LabError`] that says which command was refused.
    pub fn namespaces() -> Result<Network, LabError> {
        // `ip netns` keeps its names in /run, which belongs to the machine's root.
        run("mount -t tmpfs -o mode=0755 tmpfs /run")?;
        run("ip link set lo up")?;
        run("ip link add lab type bridge forward_delay 0")?;
        run("ip link set lab up")?;
        let [a, b, c] = NAMESPACES;
        for (name, octet) in HOSTS {
            run(&format!("ip netns add {name}"))?;
            run(&format!("ip link add port-{name} type veth peer name wan netns {name}"))?;
            run(&format!("ip link set port-{name} master lab up"))?;
            run(&format!("ip -n {name} address add {a}.{b}.{c}.{octet}/24 dev wan"))?;
            run(&format!("ip -n {name} link set wan up"))?;
            run(&format!("ip -n {name} link set lo up"))?;
        }
        Ok(Network { prefix: NAMESPACES, port: PORT, namespaces: true, _claim: None })
    }

    /// True when hosts are network namespaces.
    pub fn is_namespaces(&self) -> bool {
        self.namespaces
    }

    /// Why traffic cannot be sent here; none when it can.
    pub fn no_traffic(&self) -> Option<&'static str> {
        if !self.namespaces {
            return Some("no network namespaces");
        }
        if !Path::new("/dev/net/tun").exists() {
            return Some("no /dev/net/tun");
        }
        let ping = Command::new("ping").arg("-V").stdin(Stdio::null()).output();
        if ping.is_ok_and(|output| output.status.success()) { None } else { Some("ping is not installed") }
    }

    /// Address and port of a host's daemon.
    pub fn address(&self, host: &str) -> SocketAddr {
        SocketAddr::new(self.ip(host), self.port)
    }

    /// Address of a host.
    pub fn ip(&self, host: &str) -> IpAddr {
        let [a, b, c] = self.prefix;
        // On loopback there is room for more members than machines are made for: gm1 to gm200.
        let more =
            || host.strip_prefix("gm")?.parse::<u8>().ok()?.checked_add(10).filter(|octet| *octet < 211);
        let known = HOSTS.iter().find(|(name, _)| *name == host).map(|(_, octet)| *octet);
        let octet = known.or_else(more).unwrap_or(254);
        IpAddr::V4(Ipv4Addr::new(a, b, c, octet))
    }

    /// A program on a host. The process that is started is the program itself: signals reach it.
    pub fn command(&self, host: &str, program: &Path) -> Command {
        if !self.namespaces {
            return Command::new(program);
        }
        // Not `ip netns exec`: that mounts /sys anew, which containers refuse.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{host}")).arg(program);
        command
    }

    /// Runs `work` on a thread that lives in the namespace of a host.
    ///
    /// # Errors
    /// [`LabError`] without such a namespace, or when the work panics.
    pub fn inside<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let path = format!("/run/netns/{host}");
        let namespace = std::fs::File::open(&path).map_err(LabError::system(path))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let moved = rustix::thread::move_into_link_name_space(namespace.as_fd(), kind);
                moved.map_err(|error| LabError::Wrong(format!("{host}: {error}"))).map(|()| work())
            });
            thread.join()
        });
        result.unwrap_or_else(|_| Err(LabError::Wrong(format!("what ran on {host} did not end well"))))
    }

    /// Commands for `ip` on a host, one a line, in one process.
    ///
    /// # Errors
    /// [`LabError`] when `ip` refuses one of them.
    pub fn ip_batch(&self, host: &str, lines: &str) -> Result<(), LabError> {
        let mut command = Command::new("ip");
        command.args(["-n", host, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(LabError::system("ip cannot be run"))?;
        if let Some(mut into) = child.stdin.take() {
            into.write_all(lines.as_bytes()).map_err(LabError::system("what ip reads"))?;
        }
        let output = child.wait_with_output().map_err(LabError::system("ip"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(LabError::Program(format!("ip: {}", said.trim()))) }
    }

    /// Pulls a host's cable: nothing passes any more. False on loopback, which has no cable.
    ///
    /// # Errors
    /// [`LabError`] when `ip` refuses.
    pub fn cut(&self, host: &str) -> Result<bool, LabError> {
        self.cable(host, "down")
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// [`LabError`] when `ip` refuses.
    pub fn mend(&self, host: &str) -> Result<bool, LabError> {
        self.cable(host, "up")
    }

    fn cable(&self, host: &str, state: &str) -> Result<bool, LabError> {
        if self.namespaces {
            run(&format!("ip link set port-{host} {state}"))?;
        }
        Ok(self.namespaces)
    }
}

/// A command line of plain words.
///
/// # Errors
/// [`LabError`] with what it said.
pub fn run(line: &str) -> Result<(), LabError> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(LabError::system(format!("{program} cannot be run")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Program(format!("{line}: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_labs_of_one_process_share_no_address() {
        let (one, two) = (Network::own_loopback().unwrap(), Network::own_loopback().unwrap());
        assert_ne!(one.ip(GCKS), two.ip(GCKS));
        let (one, two) = (Network::loopback().unwrap(), Network::loopback().unwrap());
        assert_ne!(one.address(GCKS), two.address(GCKS), "the claim of the first holds");
        assert!(one.ip("gm2").is_loopback() && one.address("gm2").port() >= LOOPBACK_PORT);
        assert!(!one.cut("gm2").unwrap(), "there is no cable");
    }

    #[test]
    fn a_command_that_is_refused_says_why() {
        let error = run("ls /nonexistent").unwrap_err().to_string();
        assert!(error.starts_with("ls /nonexistent: "), "{error}");
        assert!(run("no-such-program").is_err());
    }
}
