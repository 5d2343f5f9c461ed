//! How fast unicast PUSHes leave: never more of them unanswered than acknowledgements find room in the receive buffer,
//! and never slower than the members answer.
//!
//! ```text
//! sent  -- acknowledged: its time on the way is measured, its place is free
//!       -- four deviations above the measured time, twice that when nobody answers: its place is free
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use ike::io::Instant;

/// PUSHes that leave before inputs are looked at again.
pub const SLICE: usize = 256;
/// Octets of receive buffer that one acknowledgement takes, with what the system keeps beside it.
const COST: usize = 1024;
/// Unanswered PUSHes at most, however large the buffer is.
const MOST: usize = 16 * SLICE;
/// The same for the smallest buffer.
const LEAST: usize = 64;
/// How long an answer is waited for, at least, and before any was measured.
const LEAST_PATIENCE: Duration = Duration::from_millis(200);
/// The same, at most.
const MOST_PATIENCE: Duration = Duration::from_secs(1);

/// PUSHes that left at one moment.
#[derive(Debug)]
struct Slice {
    sent: Instant,
    unanswered: usize,
    /// Somebody answered.
    answered: bool,
}

/// PUSHes on their way to members that were asked to acknowledge, and the time they take; one for all groups, which
/// share the sockets.
#[derive(Debug)]
pub struct Pace {
    window: usize,
    /// Oldest first.
    slices: VecDeque<Slice>,
    unanswered: usize,
    /// Smoothed time to the acknowledgement and its deviation, as RFC 6298 section 2 computes them.
    measured: Option<(Duration, Duration)>,
    /// Slices in a row that nobody answered in time.
    silence: u32,
}

impl Default for Pace {
    /// For sockets with large receive buffers.
    fn default() -> Pace {
        Pace { window: MOST, slices: VecDeque::new(), unanswered: 0, measured: None, silence: 0 }
    }
}

impl Pace {
    /// The smallest receive buffer of the sockets has this many octets.
    pub fn set_receive_buffer(&mut self, octets: usize) {
        self.window = (octets / COST).clamp(LEAST, MOST);
    }

    /// PUSHes that may be unanswered at a time.
    pub fn window(&self) -> usize {
        self.window
    }

    /// PUSHes that are unanswered and waited for.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Time to the acknowledgement, smoothed; none before the first.
    pub fn latency(&self) -> Option<Duration> {
        self.measured.map(|(smoothed, _)| smoothed)
    }

    /// How long an answer is waited for.
    fn patience(&self) -> Duration {
        let usual = self.measured.map_or(LEAST_PATIENCE, |(smoothed, deviation)| smoothed + deviation * 4);
        (usual.max(LEAST_PATIENCE) * (1 << self.silence.min(3))).min(MOST_PATIENCE)
    }

    /// How many of `wanted` PUSHes may leave now: none until some can leave together.
    pub fn room(&mut self, now: Instant, wanted: usize) -> usize {
        let patience = self.patience();
        while let Some(slice) = self.slices.pop_front_if(|slice| slice.sent + patience <= now) {
            self.unanswered = self.unanswered.saturating_sub(slice.unanswered);
            self.silence = if slice.answered { 0 } else { self.silence + 1 };
        }
        let free = self.window.saturating_sub(self.unanswered);
        if free < self.together().min(wanted) { 0 } else { free.min(wanted).min(SLICE) }
    }

    /// What leaves in one go when the window is full most of the time.
    fn together(&self) -> usize {
        SLICE.min(self.window / 4)
    }

    /// When there is room for some of `wanted` PUSHes, if nothing is acknowledged before.
    pub fn due(&self, wanted: usize) -> Instant {
        let free = self.window.saturating_sub(self.unanswered);
        match self.slices.front() {
            Some(oldest) if free < self.together().min(wanted) => oldest.sent + self.patience(),
            _ => Instant::default(),
        }
    }

    /// So many left just now.
    pub fn sent(&mut self, now: Instant, count: usize) {
        self.unanswered += count;
        match self.slices.back_mut().filter(|last| last.sent == now) {
            Some(last) => last.unanswered += count,
            None if count > 0 => {
                self.slices.push_back(Slice { sent: now, unanswered: count, answered: false });
            }
            None => {}
        }
    }

    /// One was acknowledged that left at `sent`; `first` when no other copy of it could be meant.
    pub fn answered(&mut self, now: Instant, sent: Instant, first: bool) {
        self.silence = 0;
        if first {
            self.measure(now.since(sent));
        }
        let place = self.slices.binary_search_by_key(&sent, |slice| slice.sent).ok();
        if let Some(slice) = place.and_then(|place| self.slices.get_mut(place)).filter(|it| it.unanswered > 0)
        {
            (slice.unanswered, slice.answered) = (slice.unanswered - 1, true);
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        while self.slices.pop_front_if(|slice| slice.unanswered == 0).is_some() {}
    }

    /// One was acknowledged, and nobody knows when it left.
    pub fn answered_somehow(&mut self) {
        if let Some(oldest) = self.slices.iter_mut().find(|slice| slice.unanswered > 0) {
            (oldest.unanswered, oldest.answered) = (oldest.unanswered - 1, true);
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        while self.slices.pop_front_if(|slice| slice.unanswered == 0).is_some() {}
    }

    fn measure(&mut self, sample: Duration) {
        self.measured = Some(match self.measured {
            None => (sample, sample / 2),
            Some((smoothed, deviation)) => {
                let off = smoothed.abs_diff(sample);
                ((smoothed * 7 + sample) / 8, (deviation * 3 + off) / 4)
            }
        });
    }

    /// Time that so many more PUSHes take at this pace.
    pub fn time_for(&self, count: usize) -> Duration {
        let each = self.latency().unwrap_or(LEAST_PATIENCE);
        let times = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        each.saturating_mul(times(count)) / times(self.window.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(milliseconds: u32) -> Instant {
        Instant(1_000_000) + MS * milliseconds
    }

    /// Sends what there is room for; how many that were.
    fn burst(pace: &mut Pace, now: Instant, mut wanted: usize) -> usize {
        let mut sent = 0;
        loop {
            let room = pace.room(now, wanted);
            if room == 0 {
                return sent;
            }
            pace.sent(now, room);
            (sent, wanted) = (sent + room, wanted - room);
        }
    }

    #[test]
    fn no_more_is_unanswered_than_the_receive_buffer_holds_answers() {
        let mut pace = Pace::default();
        pace.set_receive_buffer(1024 * COST);
        assert_eq!(burst(&mut pace, at(0), 3000), 1024);
        assert_eq!(burst(&mut pace, at(1), 2000), 0);
        (0..100).for_each(|_| pace.answered(at(10), at(0), true));
        assert_eq!((burst(&mut pace, at(10), 2000), pace.unanswered()), (0, 924), "some leave together");
        (0..300).for_each(|_| pace.answered(at(10), at(0), true));
        assert_eq!((burst(&mut pace, at(10), 2000), pace.unanswered()), (256, 880));
    }

    #[test]
    fn silence_is_waited_for_as_long_as_answers_took_and_no_longer() {
        let mut pace = Pace::default();
        pace.set_receive_buffer(64 * COST);
        assert_eq!(burst(&mut pace, at(0), 500), 64);
        assert_eq!((pace.due(500), burst(&mut pace, at(199), 500)), (at(200), 0), "nothing is known yet");
        assert_eq!(burst(&mut pace, at(200), 500), 64);
        assert_eq!(pace.due(500), at(600), "nobody answered: twice as long");
        (0..64).for_each(|_| pace.answered(at(500), at(200), true));
        assert_eq!(pace.latency(), Some(MS * 300));
        (0..100).for_each(|_| pace.measure(MS * 300));
        assert_eq!(burst(&mut pace, at(500), 500), 64);
        let due = pace.due(500);
        assert!(due >= at(800) && due < at(810), "{due:?}");
        assert_eq!(burst(&mut pace, due, 500), 64);
        // Copies say nothing of the time: which of them is answered is not known.
        (0..64).for_each(|_| pace.answered(at(5000), due, false));
        assert_eq!((pace.latency(), pace.unanswered()), (Some(MS * 300), 0));
    }

    #[test]
    fn the_pace_follows_the_latency_and_the_window() {
        let mut pace = Pace::default();
        pace.set_receive_buffer(100 * COST);
        pace.sent(at(0), 1);
        pace.answered(at(50), at(0), true);
        assert_eq!(pace.time_for(10_000), Duration::from_secs(5), "100 each 50 ms");
        (0..200).for_each(|_| pace.measure(MS * 5));
        assert!(pace.time_for(10_000) < Duration::from_millis(600));
    }

    #[test]
    fn an_answer_without_a_moment_frees_the_oldest_place() {
        let mut pace = Pace::default();
        pace.sent(at(0), 1);
        pace.sent(at(5), 1);
        pace.answered_somehow();
        assert_eq!((pace.unanswered(), pace.slices.len()), (1, 1));
        assert_eq!(pace.slices[0].sent, at(5));
        pace.answered_somehow();
        pace.answered_somehow();
        assert_eq!((pace.unanswered(), pace.slices.len()), (0, 0));
    }
}
