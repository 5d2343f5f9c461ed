//! What the service manager is told (`sd_notify`): that the daemon is ready, reads its configuration again, stops, and,
//! when it asks for that, that the daemon's loop still turns. Nothing without `NOTIFY_SOCKET` in the environment.

use std::time::Duration;

use ike::io::Instant;
use sd_notify::NotifyState;

/// Tells the service manager. One that does not listen is its own problem: the log has it once.
#[derive(Debug, Default)]
pub struct Supervisor {
    /// Between two signs of life; none: nobody waits for them.
    interval: Option<Duration>,
    next: Instant,
    failed: bool,
}

impl Supervisor {
    /// As the environment says. A sign of life leaves at half of the time that the manager waits.
    pub fn from_environment() -> Supervisor {
        Supervisor { interval: sd_notify::watchdog_enabled().map(|limit| limit / 2), ..Supervisor::default() }
    }

    fn tell(&mut self, state: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(state)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(target: "gdoi", "the service manager cannot be told: {error}");
        }
    }

    /// Members may come, or the new configuration is in use, or the old one stays.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// The configuration is being read again; [`Supervisor::ready`] follows.
    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(target: "gdoi", "the service manager cannot be told: {error}"),
        }
    }

    /// The daemon ends.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// The loop turns: a sign of life when one is due; how long until the next, none when nobody waits.
    pub fn alive(&mut self, now: Instant) -> Option<Duration> {
        let interval = self.interval?;
        if self.next <= now {
            self.tell(&[NotifyState::Watchdog]);
            self.next = now + interval;
        }
        Some(self.next.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_life_is_due_at_half_of_the_time_and_never_without_a_watchdog() {
        let seconds = Duration::from_secs;
        let mut none = Supervisor::default();
        assert_eq!(none.alive(Instant::default()), None);
        let mut watched = Supervisor { interval: Some(seconds(5)), ..Supervisor::default() };
        let start = Instant::default();
        assert_eq!(watched.alive(start), Some(seconds(5)));
        assert_eq!(watched.alive(start + seconds(3)), Some(seconds(2)));
        assert_eq!(watched.alive(start + seconds(7)), Some(seconds(5)), "late, and on from there");
    }
}
