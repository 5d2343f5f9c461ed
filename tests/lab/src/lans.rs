//! A host behind each member, in namespaces of their own.
//!
//! ```text
//! lan1 172.16.1.2 -- 172.16.1.1 gm1 192.0.2.11 == bridge == 192.0.2.12 gm2 172.16.2.1 -- 172.16.2.2 lan2
//! lan1 2001:db8:1::2 -- 2001:db8:1::1 gm1 2001:db8:9::11 ==    == 2001:db8:9::12 gm2 2001:db8:2::1 -- 2001:db8:2::2 lan2
//! ```

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::LabError;
use crate::network::{MEMBERS, Network, THIRD, run};

/// The hosts, in the order of their members.
pub const HOSTS: [&str; 3] = ["lan1", "lan2", "lan3"];
/// The far host as `lan1` sees it: IPv4 and IPv6.
pub const FAR: [&str; 2] = ["172.16.2.2", "2001:db8:2::2"];

/// A running stream of iperf3; both its ends are killed on drop.
#[derive(Debug)]
pub struct Stream([Child; 2]);

/// True when iperf3 can be run.
pub fn has_iperf3() -> bool {
    let output = Command::new("iperf3").arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

/// A running train of pings; killed on drop.
#[derive(Debug)]
pub struct Train(Child);

/// What a train of pings came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pings {
    /// Questions sent.
    pub sent: u64,
    /// Answers received.
    pub answered: u64,
}

impl Network {
    /// Gives both members a `lan` with a host and routes to the other's.
    ///
    /// # Errors
    /// [`LabError`] that says which command was refused.
    pub fn add_lans(&self) -> Result<(), LabError> {
        self.add_lans_behind(&MEMBERS)
    }

    /// The same for up to three members.
    ///
    /// # Errors
    /// [`LabError`] that says which command was refused.
    pub fn add_lans_behind(&self, members: &[&str]) -> Result<(), LabError> {
        for (number, (host, member)) in (1..).zip(HOSTS.into_iter().zip(members)) {
            run(&format!("ip netns add {host}"))?;
            run(&format!("ip link add eth0 netns {host} type veth peer name lan netns {member}"))?;
            for (place, device, four, six) in [
                (host, "eth0", format!("172.16.{number}.2/24"), format!("2001:db8:{number}::2/64")),
                (member, "lan", format!("172.16.{number}.1/24"), format!("2001:db8:{number}::1/64")),
                (member, "wan", String::new(), format!("2001:db8:9::1{number}/64")),
            ] {
                if !four.is_empty() {
                    run(&format!("ip -n {place} address add {four} dev {device}"))?;
                }
                run(&format!("ip -n {place} address add {six} dev {device} nodad"))?;
                run(&format!("ip -n {place} link set {device} up"))?;
            }
            run(&format!("ip -n {host} link set lo up"))?;
            run(&format!("ip -n {host} route add default via 172.16.{number}.1"))?;
            run(&format!("ip -n {host} route add default via 2001:db8:{number}::1"))?;
            for other in (1..=members.len()).filter(|other| *other != number) {
                run(&format!("ip -n {member} route add 172.16.{other}.0/24 via 192.0.2.1{other}"))?;
                run(&format!("ip -n {member} route add 2001:db8:{other}::/64 via 2001:db8:9::1{other}"))?;
            }
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                let write = format!("echo 1 > /proc/sys/net/{switch}");
                let mut shell = self.command(member, Path::new("sh"));
                let output = shell.args(["-c", &write]).stdin(Stdio::null()).output();
                let output = output.map_err(LabError::system("sh cannot be run"))?;
                if !output.status.success() {
                    return Err(LabError::Program(format!("{member}: {write}: {}", output.status)));
                }
            }
        }
        Ok(())
    }

    /// The rules, routes and filters a host has that are not the system's own: what a data plane left.
    ///
    /// # Errors
    /// [`LabError`] when `ip` is refused.
    pub fn steering(&self, host: &str) -> Result<Vec<String>, LabError> {
        let mut left = Vec::new();
        let ip = |what: &str| {
            let mut command = Command::new("ip");
            command.args(["-n", host]).args(what.split(' '));
            command
        };
        let routes = ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"].map(ip);
        let mut filters = self.command(host, Path::new("nft"));
        filters.args(["list", "tables"]);
        for mut command in routes.into_iter().chain([filters]) {
            let output =
                command.stdin(Stdio::null()).output().map_err(LabError::system("ip, nft cannot be run"))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // A link-local address is made of chance, and may hold our number.
            let chance = |line: &&str| line.contains("fe80::");
            let ours = |line: &&str| {
                !chance(line) && ["gdoi", "848", "6d0848"].iter().any(|word| line.contains(word))
            };
            left.extend(text.lines().filter(ours).map(str::to_owned));
        }
        Ok(left)
    }

    /// Pings from `lan1`: `count` of them, ten in a second, each waited for up to a second.
    ///
    /// # Errors
    /// [`LabError`] when `ping` cannot be run.
    pub fn ping(&self, to: &str, count: u32) -> Result<Pings, LabError> {
        self.ping_from(HOSTS[0], to, count)
    }

    /// The same from any host.
    ///
    /// # Errors
    /// [`LabError`] when `ping` cannot be run.
    pub fn ping_from(&self, host: &str, to: &str, count: u32) -> Result<Pings, LabError> {
        let mut ping = self.command(host, Path::new("ping"));
        ping.args(["-n", "-q", "-i", "0.1", "-W", "1", "-c", &count.to_string(), to]);
        let output = ping.stdin(Stdio::null()).output().map_err(LabError::system("ping cannot be run"))?;
        Pings::read(&String::from_utf8_lossy(&output.stdout))
    }

    /// A train of pings from `lan1`, one every `every`, until [`Train::end`].
    ///
    /// # Errors
    /// [`LabError`] when `ping` cannot be run.
    pub fn train(&self, to: &str, every: Duration) -> Result<Train, LabError> {
        let mut ping = self.command(HOSTS[0], Path::new("ping"));
        let every = every.as_secs_f64().to_string();
        ping.args(["-n", "-q", "-i", &every, "-W", "1", to]);
        ping.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        ping.spawn().map(Train).map_err(LabError::system("ping cannot be run"))
    }
}

impl Network {
    /// A TCP stream from `lan1` to `to`, paced at so many Mbit/s, until [`Stream::end`].
    ///
    /// # Errors
    /// [`LabError`] when iperf3 cannot be run.
    pub fn stream(&self, to: &str, megabits: u32) -> Result<Stream, LabError> {
        let iperf3 = |host: &str, arguments: &[&str]| {
            let mut command = self.command(host, Path::new("iperf3"));
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().map_err(LabError::system("iperf3 cannot be run"))
        };
        let server = iperf3(HOSTS[1], &["-s", "-1"])?;
        // The client asks once: until the server listens, it is refused.
        let mut ask = self.command(HOSTS[1], Path::new("sh"));
        ask.args(["-c", "until ss -Hltn 'sport = 5201' | grep -q .; do sleep 0.05; done"]);
        ask.stdin(Stdio::null()).output().map_err(LabError::system("sh cannot be run"))?;
        let rate = format!("{megabits}M");
        Ok(Stream([iperf3(HOSTS[0], &["-c", to, "-b", &rate, "-t", "86400"])?, server]))
    }

    /// Packets dropped by full queues so far: of devices of all hosts, and between them.
    ///
    /// # Errors
    /// [`LabError`] when `ip` says nothing that can be read.
    pub fn queue_drops(&self) -> Result<u64, LabError> {
        let mut dropped = 0;
        let places = HOSTS.iter().chain(&MEMBERS).chain([&THIRD]);
        for host in places.filter(|place| Path::new("/run/netns").join(place).exists()) {
            let mut ip = Command::new("ip");
            ip.args(["-n", host, "-s", "-j", "link"]).stdin(Stdio::null());
            let output = ip.output().map_err(LabError::system("ip cannot be run"))?;
            let links: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)
                .map_err(|error| LabError::Wrong(format!("ip -s -j link: {error}")))?;
            for way in ["/stats64/rx/dropped", "/stats64/tx/dropped"] {
                let count = |link: &serde_json::Value| link.pointer(way)?.as_u64();
                dropped += links.iter().filter_map(count).sum::<u64>();
            }
        }
        // The second column of each CPU, hexadecimal.
        let softnet = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
        let column = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
        Ok(dropped + softnet.lines().filter_map(column).sum::<u64>())
    }
}

impl Stream {
    /// Ends it.
    ///
    /// # Errors
    /// [`LabError`] when it ended before.
    pub fn end(mut self) -> Result<(), LabError> {
        let ended = self.0.iter_mut().any(|child| child.try_wait().is_ok_and(|status| status.is_some()));
        if ended { Err(LabError::Wrong("iperf3 ended by itself".to_owned())) } else { Ok(()) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Pings {
    fn read(text: &str) -> Result<Pings, LabError> {
        // "4 packets transmitted, 4 received, 0% packet loss, time 300ms", with "+1 errors, " in between at times.
        let line = text.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
        let number = |what: &str| {
            let part = line.split(',').find(|part| part.contains(what))?;
            part.trim().split(' ').next()?.parse().ok()
        };
        match (number("transmitted"), number("received")) {
            (Some(sent), Some(answered)) => Ok(Pings { sent, answered }),
            _ => Err(LabError::Wrong(format!("ping said: {text}"))),
        }
    }

    /// True when every question was answered, and there were questions.
    pub fn all_answered(self) -> bool {
        self.sent > 0 && self.sent == self.answered
    }
}

impl Train {
    /// Ends it in order: what it came to. An answer still on its way counts as lost, so this waits for none but asks no
    /// more either.
    ///
    /// # Errors
    /// [`LabError`] when it ended before.
    pub fn end(mut self) -> Result<Pings, LabError> {
        let wrong = |error: rustix::io::Errno| LabError::Wrong(format!("ping: {error}"));
        kill_process(Pid::from_child(&self.0), Signal::INT).map_err(wrong)?;
        let mut text = String::new();
        if let Some(mut out) = self.0.stdout.take() {
            std::io::Read::read_to_string(&mut out, &mut text).map_err(LabError::system("what ping says"))?;
        }
        self.0.wait().map_err(LabError::system("ping"))?;
        Pings::read(&text)
    }
}

impl Drop for Train {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ping_says_is_counted() {
        let text = "--- 10.0.0.1 ping statistics ---\n4 packets transmitted, 3 received, +1 errors, 25% packet loss, time 3ms\n";
        let pings = Pings::read(text).unwrap();
        assert_eq!(pings, Pings { sent: 4, answered: 3 });
        assert!(!pings.all_answered());
        assert!(Pings::read("ping: unknown host").is_err());
    }
}
