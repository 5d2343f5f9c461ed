//! The only place that reads a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ike::io::{Instant, Now};
use rustix::time::{ClockId, clock_gettime};

/// Turns the system's clocks into [`Now`]. The monotonic part counts time asleep too: a key that ended while the
/// machine was suspended has ended.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// CLOCK_BOOTTIME at [`Instant`] zero.
    zero: Duration,
}

impl Clock {
    /// A clock whose [`Instant`] begins at zero now.
    pub fn start() -> Clock {
        Clock { zero: since_boot() }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        let since = since_boot().saturating_sub(self.zero);
        Now {
            at: Instant(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)),
            unix_seconds: unix_seconds(),
        }
    }

    /// How long to sleep until `at`; zero when it has passed. At most 10 s: a timer of the system may stand still while
    /// the machine sleeps, so a long wait is cut and asked for again.
    pub fn until(&self, at: Instant) -> Duration {
        at.since(self.now().at).min(Duration::from_secs(10))
    }
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Seconds since 1970 by the wall clock, zero before that. It may jump: only for what leaves the process.
pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

/// The same in microseconds.
pub fn unix_micros() -> u64 {
    u64::try_from(since_1970().as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_near_zero_and_never_goes_back() {
        let clock = Clock::start();
        let first = clock.now();
        std::thread::sleep(Duration::from_millis(2));
        let second = clock.now();
        assert!(second.at.since(first.at) >= Duration::from_millis(2));
        assert!(first.at < Instant(60_000_000) && first.unix_seconds > 1_700_000_000);
    }

    #[test]
    fn what_has_passed_is_not_waited_for() {
        let clock = Clock::start();
        assert_eq!(clock.until(Instant(0)), Duration::ZERO);
        assert_eq!(clock.until(clock.now().at + Duration::from_secs(3600)), Duration::from_secs(10));
    }
}
