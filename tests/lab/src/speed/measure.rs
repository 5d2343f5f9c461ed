//! What is measured: iperf3 between the hosts of two LANs, CPU time of the tunnel's processes, pings beside the stream.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use gdoi_lab::LabError;
use gdoi_lab::lans::{FAR, HOSTS};
use gdoi_lab::site::Site;
use serde_json::Value;

/// Octets of UDP payload that make an IPv4 packet of 64.
const SMALL: &str = "36";
/// Clock ticks in a second, as /proc counts CPU time.
const TICKS: f64 = 100.0;

/// One measurement of one tunnel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Received by TCP.
    pub gbits: f64,
    /// Seconds of CPU per Gbit, of the sending and the receiving end.
    pub cpu: [f64; 2],
    /// Median of pings beside it, in ms.
    pub ping: f64,
    /// 99 of 100 pings took no longer, in ms.
    pub ping_p99: f64,
    /// UDP packets of 64 octets received in a second.
    pub packets: f64,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Taken { gbits, cpu: [here, there], ping, ping_p99, packets } = self;
        write!(
            f,
            "{gbits:.2} Gbit/s, CPU {here:.3} and {there:.3} s/Gbit, ping {ping:.2} ms, p99 {ping_p99:.2} ms, \
             {packets:.0} packets/s"
        )
    }
}

/// What is not installed; none when all is there.
pub fn missing() -> Option<&'static str> {
    let iperf3 = Command::new("iperf3").arg("--version").stdin(Stdio::null()).output();
    if iperf3.is_ok_and(|output| output.status.success()) { None } else { Some("iperf3 is not installed") }
}

/// The load of this machine over 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The middle one; of none, not a number.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds of CPU a process has used; 0 for none.
fn cpu_of(process: Option<u32>) -> f64 {
    let Some(process) = process else { return 0.0 };
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may hold blanks: fields 14 and 15 of proc(5).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS
}

/// Measures the tunnel that is up; `processes` are its sending and receiving end.
///
/// # Errors
/// When nothing passes, or iperf3 says something else.
pub fn take(site: &Site, processes: [Option<u32>; 2], seconds: u32) -> Result<Taken, LabError> {
    let up = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        site.network.ping(FAR[0], 1).is_ok_and(gdoi_lab::lans::Pings::all_answered)
    });
    if !up {
        return Err(LabError::Wrong("no ping passes".to_owned()));
    }
    let before = processes.map(cpu_of);
    let pings = Pinger::start(site, seconds)?;
    let tcp = iperf3(site, &["-t", &seconds.to_string()])?;
    let [ping, ping_p99] = pings.end()?;
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    let received = tcp.pointer("/end/sum_received/bytes");
    let received = number(received).ok_or_else(|| LabError::Wrong(format!("iperf3 said: {tcp}")))?;
    let took = number(tcp.pointer("/end/sum_received/seconds")).unwrap_or(f64::NAN);
    let gbit = received * 8.0 / 1e9;
    let mut cpu = [0.0; 2];
    for ((cpu, process), before) in cpu.iter_mut().zip(processes).zip(before) {
        *cpu = (cpu_of(process) - before) / gbit;
    }
    let udp = iperf3(site, &["-t", "2", "-u", "-b", "0", "-l", SMALL])?;
    let field = |name: &str| number(udp.pointer(&format!("/end/sum/{name}"))).unwrap_or(f64::NAN);
    let packets = (field("packets") - field("lost_packets")) / field("seconds");
    Ok(Taken { gbits: gbit / took, cpu, ping, ping_p99, packets })
}

/// Runs a server on the far host, for one client, and the client on the near one: what the client says.
fn iperf3(site: &Site, arguments: &[&str]) -> Result<Value, LabError> {
    let mut server = site.network.command(HOSTS[1], Path::new("iperf3"));
    server.args(["-s", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = server.spawn().map_err(LabError::system("iperf3"))?;
    let mut said = Value::Null;
    for _ in 0..20 {
        // Until the server listens.
        std::thread::sleep(Duration::from_millis(100));
        let mut client = site.network.command(HOSTS[0], Path::new("iperf3"));
        client.args(["-J", "--connect-timeout", "2000", "-c", FAR[0]]).args(arguments).stdin(Stdio::null());
        let output = client.output().map_err(LabError::system("iperf3"))?;
        said = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() {
            break;
        }
    }
    let _ = server.kill();
    let _ = server.wait();
    match said.get("error") {
        Some(error) => Err(LabError::Wrong(format!("iperf3: {error}"))),
        None => Ok(said),
    }
}

/// Pings beside a stream, a hundred in a second.
struct Pinger(std::process::Child);

impl Pinger {
    fn start(site: &Site, seconds: u32) -> Result<Pinger, LabError> {
        let mut ping = site.network.command(HOSTS[0], Path::new("ping"));
        ping.args(["-n", "-i", "0.01", "-W", "1", "-w", &seconds.to_string(), FAR[0]]);
        ping.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        ping.spawn().map(Pinger).map_err(LabError::system("ping cannot be run"))
    }

    /// Median and the 99th of a hundred, in ms.
    fn end(self) -> Result<[f64; 2], LabError> {
        let output = self.0.wait_with_output().map_err(LabError::system("ping"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let time = |line: &str| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok();
        let mut times: Vec<f64> = text.lines().filter_map(time).collect();
        times.sort_by(f64::total_cmp);
        let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(f64::NAN);
        Ok([at(50), at(99)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cpu_time_is_found() {
        let mut sum = 0u64;
        let before = cpu_of(Some(std::process::id()));
        while cpu_of(Some(std::process::id())) < before + 0.02 {
            sum = (0..100_000u64).fold(sum, |sum, n| sum.wrapping_mul(31) ^ n);
        }
        assert!(sum != 1 && before >= 0.0);
        assert!(cpu_of(None) == 0.0 && median(vec![3.0, 1.0, 2.0]) == 2.0);
    }
}
