//! Who goes first when more register than the cores can take: whoever's keys end soonest, then who has none yet.
//!
//! ```text
//! a Diffie-Hellman of a negotiation -- fewer than ADMITTED under way --> workers
//!                                   -- else waits by urgency ------------> workers, as one is done
//! ```
//!
//! What finishes a negotiation never waits. Many that wait are a storm, which is told and shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ctl::event::Event;
use gdoi_proto::ids::CookiePair;
use ike::crypto::provider::Job;
use ike::io::{Instant, JobId, Wakeup};

/// Exchanges under way at a time: enough for any number of cores, little to wait for.
pub const ADMITTED: usize = 64;
/// So many that wait are a storm.
pub const STORM: usize = 64;
/// Those that wait at most; the least urgent goes, and its peer begins again.
const WAITING: usize = 8192;
/// A storm is over when nobody waited for this long.
const CALM: Duration = Duration::from_secs(5);

/// Who goes first: the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A member whose keys end then.
    Ends(Instant),
    /// Somebody without keys.
    Newcomer,
}

/// An exchange that waits.
#[derive(Debug)]
struct Waiting {
    cookies: CookiePair,
    job: Job,
    since: Instant,
}

/// A storm.
#[derive(Debug)]
struct Storm {
    since: Instant,
    served: u64,
    longest: Duration,
    /// Since when nobody waits.
    calm: Option<Instant>,
}

/// Counters since the start or the last clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdmissionCounters {
    /// Storms.
    pub storms: u64,
    /// Negotiations that waited.
    pub delayed: u64,
}

/// The queue before the workers.
#[derive(Debug, Default)]
pub struct Admission {
    under_way: BTreeSet<JobId>,
    /// By urgency and arrival.
    waiting: BTreeMap<(Urgency, u64), Waiting>,
    arrivals: u64,
    storm: Option<Storm>,
    /// Counters.
    pub counters: AdmissionCounters,
}

impl Admission {
    /// True when one more may begin at once.
    pub fn has_room(&self) -> bool {
        self.under_way.len() < ADMITTED
    }

    /// Negotiations that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// True in a storm.
    pub fn is_storm(&self) -> bool {
        self.storm.is_some()
    }

    /// An exchange began.
    pub fn begin(&mut self, id: JobId) {
        self.under_way.insert(id);
    }

    /// One waits; tells when that makes a storm.
    pub fn wait(&mut self, now: Instant, urgency: Urgency, cookies: CookiePair, job: Job) -> Option<Event> {
        self.arrivals += 1;
        self.counters.delayed += 1;
        self.waiting.insert((urgency, self.arrivals), Waiting { cookies, job, since: now });
        if self.waiting.len() > WAITING {
            self.waiting.pop_last();
        }
        if let Some(storm) = &mut self.storm {
            storm.calm = None;
            return None;
        }
        if self.waiting.len() < STORM {
            return None;
        }
        self.counters.storms += 1;
        self.storm = Some(Storm { since: now, served: 0, longest: Duration::ZERO, calm: None });
        Some(Event::RegistrationStorm { waiting: self.waiting.len() as u64 })
    }

    /// A job is done; it may have been an exchange.
    pub fn done(&mut self, id: JobId) {
        self.under_way.remove(&id);
    }

    /// The most urgent one, when there is room for it.
    pub fn next(&mut self, now: Instant) -> Option<(CookiePair, Job)> {
        if !self.has_room() {
            return None;
        }
        let (_, Waiting { cookies, job, since }) = self.waiting.pop_first()?;
        if let Some(storm) = &mut self.storm {
            storm.served += 1;
            storm.longest = storm.longest.max(now.since(since));
            storm.calm = self.waiting.is_empty().then_some(now);
        }
        Some((cookies, job))
    }

    /// When a storm may be over.
    pub fn poll_timeout(&self) -> Option<Wakeup> {
        let calm = self.storm.as_ref()?.calm?;
        Some(Wakeup { at: calm + CALM, why: "end of a registration storm" })
    }

    /// Tells when a storm is over.
    pub fn on_timeout(&mut self, now: Instant) -> Option<Event> {
        self.poll_timeout().filter(|wakeup| wakeup.at <= now)?;
        let storm = self.storm.take()?;
        Some(Event::RegistrationStormOver {
            seconds: now.since(storm.since).as_secs_f64(),
            served: storm.served,
            longest_wait_milliseconds: u64::try_from(storm.longest.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use gdoi_proto::ids::Cookie;
    use ike::crypto::DhGroup;

    use super::*;

    fn cookies(number: u64) -> CookiePair {
        CookiePair { initiator: Cookie(number.to_be_bytes()), responder: Cookie([1; 8]) }
    }

    fn wait(admission: &mut Admission, at: u64, urgency: Urgency, number: u64) -> Option<Event> {
        let job = Job::DhGenerate { group: DhGroup::Curve25519 };
        admission.wait(Instant(at), urgency, cookies(number), job)
    }

    fn next(admission: &mut Admission, at: u64) -> Option<u64> {
        let (pair, _) = admission.next(Instant(at))?;
        Some(u64::from_be_bytes(pair.initiator.0))
    }

    #[test]
    fn the_end_of_keys_goes_before_arrival_and_newcomers_come_last() {
        let mut admission = Admission::default();
        for (number, urgency) in [
            (1, Urgency::Newcomer),
            (2, Urgency::Ends(Instant(90))),
            (3, Urgency::Ends(Instant(10))),
            (4, Urgency::Newcomer),
            (5, Urgency::Ends(Instant(90))),
        ] {
            assert!(wait(&mut admission, 0, urgency, number).is_none());
        }
        let order: Vec<u64> = std::iter::from_fn(|| next(&mut admission, 1)).collect();
        assert_eq!(order, [3, 2, 5, 1, 4]);
    }

    #[test]
    fn nobody_is_admitted_while_as_many_are_under_way_as_may_be() {
        let mut admission = Admission::default();
        (0..ADMITTED as u64).for_each(|id| admission.begin(JobId(id)));
        assert!(!admission.has_room());
        wait(&mut admission, 0, Urgency::Newcomer, 7);
        admission.done(JobId(9999));
        assert_eq!(next(&mut admission, 1), None, "somebody else's job");
        admission.done(JobId(3));
        assert_eq!((next(&mut admission, 1), next(&mut admission, 1)), (Some(7), None));
    }

    #[test]
    fn a_storm_begins_with_many_that_wait_and_ends_when_it_was_calm_for_a_while() {
        let mut admission = Admission::default();
        let told: Vec<u64> = (0..STORM as u64)
            .filter(|number| wait(&mut admission, 0, Urgency::Newcomer, *number).is_some())
            .collect();
        assert_eq!((told, admission.is_storm()), (vec![STORM as u64 - 1], true));
        while next(&mut admission, 2_000_000).is_some() {}
        let calm = admission.poll_timeout().expect("a timer").at;
        assert_eq!(calm, Instant(7_000_000));
        assert!(
            wait(&mut admission, 3_000_000, Urgency::Newcomer, 99).is_none()
                && admission.poll_timeout().is_none()
        );
        assert_eq!(next(&mut admission, 3_000_000), Some(99));
        assert!(admission.on_timeout(Instant(7_000_000)).is_none(), "not calm for long enough");
        let over = admission.on_timeout(Instant(8_000_000)).expect("over");
        let Event::RegistrationStormOver { seconds, served, longest_wait_milliseconds } = over else {
            panic!("{over:?}")
        };
        assert_eq!((seconds, served, longest_wait_milliseconds), (8.0, STORM as u64 + 1, 2000));
        assert_eq!((admission.is_storm(), admission.counters.storms), (false, 1));
    }

    #[test]
    fn the_least_urgent_gives_way_when_too_many_wait() {
        let mut admission = Admission::default();
        for number in 0..WAITING as u64 {
            wait(&mut admission, 0, Urgency::Newcomer, number);
        }
        wait(&mut admission, 0, Urgency::Ends(Instant(5)), 1_000_000);
        assert_eq!((admission.waiting(), next(&mut admission, 0)), (WAITING, Some(1_000_000)));
    }
}
