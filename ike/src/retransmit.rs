//! Retransmission with growing intervals and a give-up rule (RFC 2408 section 5.1).

use std::time::Duration;

use crate::io::{Entropy, Instant};

/// When to send again: `first` x `factor_percent`^k, each +-10 %, `tries` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Interval before the first repeat.
    pub first: Duration,
    /// Growth per repeat in percent, above 100.
    pub factor_percent: u32,
    /// Repeats before giving up.
    pub tries: u32,
}

impl Schedule {
    /// Phase 1: 2 s x 1.8^k, 5 repeats.
    pub const PHASE1: Schedule = Schedule { first: Duration::from_secs(2), factor_percent: 180, tries: 5 };
    /// GROUPKEY-PULL: 2, 4, 8, 16, 32 s.
    pub const PULL: Schedule = Schedule { first: Duration::from_secs(2), factor_percent: 200, tries: 5 };
}

/// One message on its schedule.
#[derive(Debug, Clone)]
pub struct Retransmit {
    schedule: Schedule,
    interval: Duration,
    sent: u32,
    due: Instant,
}

/// What a due moment asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Nothing yet.
    Wait,
    /// Send the same octets again.
    Again,
    /// All repeats went unanswered.
    GiveUp,
}

impl Retransmit {
    /// A message first sent now.
    pub fn sent(schedule: Schedule, now: Instant, entropy: &mut dyn Entropy) -> Retransmit {
        let mut retransmit = Retransmit { schedule, interval: schedule.first, sent: 0, due: now };
        retransmit.due = now + jittered(retransmit.interval, entropy);
        retransmit
    }

    /// When to ask [`Retransmit::attempt`] again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Repeats made so far.
    pub fn repeats(&self) -> u32 {
        self.sent
    }

    /// What to do now.
    pub fn attempt(&mut self, now: Instant, entropy: &mut dyn Entropy) -> Attempt {
        if now < self.due {
            return Attempt::Wait;
        }
        if self.sent >= self.schedule.tries {
            return Attempt::GiveUp;
        }
        self.sent += 1;
        self.interval = self.interval * self.schedule.factor_percent / 100;
        self.due = now + jittered(self.interval, entropy);
        Attempt::Again
    }
}

/// `interval` +-10 %.
fn jittered(interval: Duration, entropy: &mut dyn Entropy) -> Duration {
    spread(interval, 10, entropy)
}

/// `interval` +-`percent` %.
pub fn spread(interval: Duration, percent: u32, entropy: &mut dyn Entropy) -> Duration {
    let span = interval * percent / 100;
    (interval - span) + below(span * 2, entropy)
}

/// A uniform time in `0..=limit`.
pub fn below(limit: Duration, entropy: &mut dyn Entropy) -> Duration {
    let mut octets = [0; 8];
    entropy.fill(&mut octets);
    let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX - 1);
    Duration::from_micros(u64::from_be_bytes(octets) % (micros + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Middle;
    impl Entropy for Middle {
        fn fill(&mut self, out: &mut [u8]) {
            out.fill(0);
        }
    }

    #[test]
    fn intervals_grow_and_end() {
        let mut now = Instant(0);
        let mut retransmit = Retransmit::sent(Schedule::PULL, now, &mut Middle);
        let mut gaps = Vec::new();
        loop {
            let due = retransmit.due();
            gaps.push(due.since(now).as_millis());
            now = due;
            match retransmit.attempt(now, &mut Middle) {
                Attempt::Again => {}
                Attempt::GiveUp => break,
                Attempt::Wait => panic!("due and still waiting"),
            }
        }
        assert_eq!(gaps, [1800, 3600, 7200, 14400, 28800, 57600]);
    }
}
