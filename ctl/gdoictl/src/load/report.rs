//! What a load was like, for people and programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::crowd::Tally;
use super::options::LoadArgs;

/// The report; as JSON with these names.
#[derive(Debug, Serialize)]
pub struct Report {
    members: u32,
    registered: usize,
    /// Registrations that came to nothing.
    pub failed: u64,
    failures: BTreeMap<String, u64>,
    seconds: f64,
    registrations_per_second: f64,
    latency_milliseconds: Percentiles,
    messages_repeated: u64,
    server_cpu_seconds: Option<f64>,
    server_cpu_milliseconds_per_registration: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledge: Option<Acknowledge>,
}

#[derive(Debug, Serialize)]
struct Acknowledge {
    seconds: u32,
    pushes: u64,
    datagrams: u64,
    acknowledgements: usize,
    copies: u64,
    refused: u64,
    overflowed: u64,
    latency_milliseconds: Percentiles,
    server_cpu_seconds: Option<f64>,
    server_cpu_microseconds_per_acknowledgement: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    /// Of microseconds, in milliseconds; zeros of nothing.
    fn of(mut values: Vec<u32>) -> Percentiles {
        values.sort_unstable();
        let at = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).saturating_sub(1);
            values.get(rank).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
        };
        Percentiles { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

impl Report {
    /// The report of the registrations.
    pub fn new(options: &LoadArgs, tallies: &[Tally], seconds: f64, cpu: Option<f64>) -> Report {
        let times: Vec<u32> = tallies.iter().flat_map(|tally| tally.registrations.clone()).collect();
        let mut failures: BTreeMap<String, u64> = BTreeMap::new();
        for (cause, count) in tallies.iter().flat_map(|tally| &tally.failures) {
            *failures.entry(cause.clone()).or_default() += count;
        }
        let registered = times.len();
        Report {
            members: options.members,
            registered,
            failed: failures.values().sum(),
            failures,
            seconds,
            registrations_per_second: registered as f64 / seconds.max(1e-6),
            latency_milliseconds: Percentiles::of(times),
            messages_repeated: tallies.iter().map(|tally| tally.repeats).sum(),
            server_cpu_seconds: cpu,
            server_cpu_milliseconds_per_registration: cpu.and_then(|cpu| per(cpu * 1e3, registered)),
            acknowledge: (options.acknowledge > 0).then(|| Acknowledge {
                seconds: options.acknowledge,
                pushes: 0,
                datagrams: 0,
                acknowledgements: 0,
                copies: 0,
                refused: 0,
                overflowed: 0,
                latency_milliseconds: Percentiles::default(),
                server_cpu_seconds: None,
                server_cpu_microseconds_per_acknowledgement: None,
            }),
        }
    }

    /// Adds what came after the registrations.
    pub fn acknowledged(&mut self, tallies: &[Tally], cpu: Option<f64>) {
        let Some(acknowledge) = &mut self.acknowledge else { return };
        let times: Vec<u32> = tallies.iter().flat_map(|tally| tally.acknowledgements.clone()).collect();
        let sum = |what: fn(&Tally) -> u64| tallies.iter().map(what).sum();
        acknowledge.pushes = tallies.iter().map(|tally| tally.pushes).max().unwrap_or(0);
        acknowledge.datagrams = sum(|tally| tally.datagrams);
        acknowledge.acknowledgements = times.len();
        acknowledge.copies = sum(|tally| tally.copies);
        acknowledge.refused = sum(|tally| tally.refused);
        acknowledge.overflowed = sum(|tally| tally.overflowed);
        acknowledge.server_cpu_seconds = cpu;
        acknowledge.server_cpu_microseconds_per_acknowledgement =
            cpu.and_then(|cpu| per(cpu * 1e6, times.len()));
        acknowledge.latency_milliseconds = Percentiles::of(times);
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "registered       {} of {} in {:.3} s: {:.0} per second",
            self.registered, self.members, self.seconds, self.registrations_per_second
        )?;
        writeln!(out, "latency          {}", line(&self.latency_milliseconds))?;
        writeln!(out, "repeated         {} messages", self.messages_repeated)?;
        for (cause, count) in &self.failures {
            writeln!(out, "failed           {count}: {}", ctl::event::printable(cause))?;
        }
        if let (Some(seconds), Some(each)) =
            (self.server_cpu_seconds, self.server_cpu_milliseconds_per_registration)
        {
            writeln!(out, "server CPU       {seconds:.2} s, {each:.3} ms per registration")?;
        }
        let Some(acknowledge) = &self.acknowledge else { return Ok(()) };
        writeln!(
            out,
            "pushes           {} in {} s, {} datagrams of which {} copies, {} refused, {} dropped here",
            acknowledge.pushes,
            acknowledge.seconds,
            acknowledge.datagrams,
            acknowledge.copies,
            acknowledge.refused,
            acknowledge.overflowed
        )?;
        writeln!(
            out,
            "acknowledged     {} times, after the first datagram of a push: {}",
            acknowledge.acknowledgements,
            line(&acknowledge.latency_milliseconds)
        )?;
        if let (Some(seconds), Some(each)) =
            (acknowledge.server_cpu_seconds, acknowledge.server_cpu_microseconds_per_acknowledgement)
        {
            writeln!(out, "server CPU       {seconds:.2} s, {each:.2} µs per acknowledgement")?;
        }
        Ok(())
    }
}

fn line(percentiles: &Percentiles) -> String {
    let Percentiles { p50, p90, p99, max } = percentiles;
    format!("p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, max {max:.2} ms")
}

fn per(amount: f64, count: usize) -> Option<f64> {
    (count > 0).then(|| amount / count as f64)
}

/// CPU seconds a process used so far, user and system, all its threads.
///
/// # Errors
/// When there is no such process.
pub fn cpu_of(pid: u32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    ticks(&text)
        .map(|ticks| ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
        .ok_or_else(|| format!("{path}: not understood"))
}

/// Fields 14 and 15; field 2 is a name in parentheses that may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let all = Percentiles::of((1..=1000).rev().map(|n| n * 1000).collect());
        assert_eq!((all.p50, all.p90, all.p99, all.max), (500.0, 900.0, 990.0, 1000.0));
        let one = Percentiles::of(vec![1500]);
        assert_eq!((one.p50, one.max), (1.5, 1.5));
        assert_eq!(Percentiles::of(Vec::new()).max, 0.0);
    }

    #[test]
    fn cpu_time_is_read_past_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 120 30 5 6 20 0 1 0 99";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("7 (a"), None);
    }
}
