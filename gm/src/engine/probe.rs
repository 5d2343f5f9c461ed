//! The recovery probe: traffic shows that our keys may not be those of the group, and the key server is asked again,
//! slowly. Whoever sends packets with invented SPIs can start it and never drive it.
//!
//! ```text
//! trigger --10 s--> probe --20 s--> probe --40 s--> probe --80 s--> probe --160 s--> probe --320 s--> probe, then rest
//!                     '-- keys came: no further probe without a new trigger, and then not before its moment in the row
//! ```
//!
//! A row begins anew 320 s after a whole one, or 630 s after the last probe of one that success ended: in any 630 s there
//! are six probes at most. A probe is a registration like any other and takes no key away.

use std::time::Duration;

use ike::io::Instant;

/// From the trigger to the first probe, then from probe to probe.
const INTERVALS: [Duration; 6] = [
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(40),
    Duration::from_secs(80),
    Duration::from_secs(160),
    Duration::from_secs(320),
];
/// Rest after a whole row.
const REST: Duration = INTERVALS[5];
/// Rest after a row that success ended early.
const LONG_REST: Duration = Duration::from_secs(630);

/// Why a probe is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// ESP that our policy covers came with an SPI we do not have.
    UnknownSpi,
    /// We send under the group's keys and nothing comes back under them.
    OutboundWithoutInbound,
}

impl Trigger {
    /// For the log.
    pub const fn reason(self) -> &'static str {
        match self {
            Trigger::UnknownSpi => "recovery probe: packets under an unknown SPI come",
            Trigger::OutboundWithoutInbound => "recovery probe: packets go out and none comes",
        }
    }
}

/// The probe of one VPN.
#[derive(Debug, Default)]
pub struct Probe {
    made: usize,
    last: Option<Instant>,
    due: Option<(Instant, Trigger)>,
}

impl Probe {
    /// Traffic looks wrong; the time until the probe when one was planned by this.
    pub fn trigger(&mut self, trigger: Trigger, now: Instant) -> Option<Duration> {
        if self.due.is_some() {
            return None;
        }
        let rest = if self.made == INTERVALS.len() { REST } else { LONG_REST };
        if self.last.is_some_and(|last| now.since(last) >= rest) {
            *self = Probe::default();
        }
        let interval = *INTERVALS.get(self.made)?;
        let first = now + INTERVALS[0];
        let at = self.last.map_or(first, |last| first.max(last + interval));
        self.due = Some((at, trigger));
        Some(at.since(now))
    }

    /// True when a probe is due; the next one is planned.
    pub fn fire(&mut self, now: Instant) -> bool {
        let Some((_, trigger)) = self.due.filter(|(at, _)| *at <= now) else { return false };
        self.made += 1;
        self.last = Some(now);
        self.due = INTERVALS.get(self.made).map(|interval| (now + *interval, trigger));
        true
    }

    /// Keys came: whatever was wrong may be right now.
    pub fn settled(&mut self) {
        self.due = None;
    }

    /// What `trigger` told of is over.
    pub fn resolved(&mut self, trigger: Trigger) {
        self.due = self.due.filter(|(_, why)| *why != trigger);
    }

    /// When [`Probe::fire`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.due.map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments of the probes in s, under a flood of triggers every 100 ms; `succeeds` says which probes bring keys.
    fn flood(seconds: u64, succeeds: impl Fn(usize) -> bool) -> Vec<u64> {
        let mut probe = Probe::default();
        let mut probes = Vec::new();
        for tick in 0..seconds * 10 {
            let now = Instant(tick * 100_000);
            if probe.fire(now) {
                probes.push(tick / 10);
                if succeeds(probes.len()) {
                    probe.settled();
                }
            }
            probe.trigger(Trigger::UnknownSpi, now);
        }
        probes
    }

    #[test]
    fn six_probes_come_after_10_20_40_80_160_and_320_s() {
        assert_eq!(flood(640, |_| false), [10, 30, 70, 150, 310, 630]);
    }

    #[test]
    fn one_trigger_is_enough_and_without_a_new_one_the_row_is_the_last() {
        let mut probe = Probe::default();
        assert_eq!(probe.trigger(Trigger::UnknownSpi, Instant(0)), Some(INTERVALS[0]));
        let mut moments = Vec::new();
        while let Some(due) = probe.due() {
            assert!(!probe.fire(due - Duration::from_micros(1)) && probe.fire(due));
            moments.push(due.0 / 1_000_000);
        }
        assert_eq!(moments, [10, 30, 70, 150, 310, 630]);
        let at = |seconds: u64| Instant(seconds * 1_000_000);
        assert_eq!(probe.trigger(Trigger::UnknownSpi, at(900)), None, "it rests");
        assert_eq!(probe.trigger(Trigger::UnknownSpi, at(950)), Some(INTERVALS[0]));
    }

    #[test]
    fn success_ends_it_and_a_flood_gets_no_more_than_the_row() {
        assert_eq!(flood(640, |_| true), [10, 30, 70, 150, 310, 630]);
        let mut probe = Probe::default();
        probe.trigger(Trigger::OutboundWithoutInbound, Instant(0));
        assert!(probe.fire(Instant(10_000_000)));
        probe.settled();
        assert_eq!(probe.due(), None);
    }

    #[test]
    fn in_any_630_s_there_are_six_probes_at_most() {
        for ended in 1..=6 {
            for succeeds in [|_| false, |_| true] {
                let probes = flood(20_000, succeeds);
                assert!(probes.windows(7).all(|seven| seven[6] - seven[0] > 630), "{probes:?}");
            }
            // A trigger at the earliest moment that begins a new row.
            let mut probe = Probe::default();
            let mut probes = Vec::new();
            let mut now = Instant(0);
            for _ in 0..10 {
                probe.trigger(Trigger::UnknownSpi, now);
                for _ in 0..ended {
                    let Some(due) = probe.due() else { break };
                    now = due;
                    assert!(probe.fire(now));
                    probes.push(now.0 / 1_000_000);
                }
                probe.settled();
                now = now + if ended == 6 { REST } else { LONG_REST };
            }
            assert!(probes.windows(7).all(|seven| seven[6] - seven[0] > 630), "{probes:?}");
        }
    }

    #[test]
    fn traffic_that_comes_again_ends_only_what_its_absence_began() {
        let mut probe = Probe::default();
        probe.trigger(Trigger::UnknownSpi, Instant(0));
        probe.resolved(Trigger::OutboundWithoutInbound);
        assert!(probe.due().is_some());
        probe.resolved(Trigger::UnknownSpi);
        assert!(probe.due().is_none());
    }
}
