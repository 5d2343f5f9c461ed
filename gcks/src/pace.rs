//! Pushes to many, sent in slices: members answer while their neighbours are still being told, so that their
//! acknowledgements find room in the receive buffer, and the loop has time to take them.
//!
//! ```text
//! queue -- slice, while fewer than `window` datagrams are unanswered     --> sockets
//!       -- slice every 5 ms while nothing comes in that could be answers -->
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ike::io::Instant;

/// Datagrams sent before inputs are looked at again.
pub const SLICE: usize = 256;
/// Between slices when nobody answers: members that are away, or a group without acknowledgements.
const PATIENCE: Duration = Duration::from_millis(5);
/// Octets of receive buffer one acknowledgement takes, with what the system keeps beside it.
const COST: usize = 1024;

/// Where a push goes: our address and the member's.
pub type Destination = (SocketAddr, SocketAddr);

/// Pushes that wait for their turn.
#[derive(Debug)]
pub struct Pace {
    window: usize,
    queue: VecDeque<(Bytes, VecDeque<Destination>)>,
    /// Datagrams sent and not matched by one received since.
    unanswered: usize,
    /// Datagrams taken when that was counted.
    taken: u64,
    /// When a slice goes out though the window is full.
    next: Instant,
}

impl Pace {
    /// For sockets whose smallest receive buffer has `receive_buffer` octets.
    pub fn new(receive_buffer: usize) -> Pace {
        let window = (receive_buffer / COST).clamp(64, 16 * SLICE);
        Pace { window, queue: VecDeque::new(), unanswered: 0, taken: 0, next: Instant(0) }
    }

    /// Queues one push behind those before it.
    pub fn push(&mut self, octets: Bytes, to: Vec<Destination>) {
        if !to.is_empty() {
            self.queue.push_back((octets, to.into()));
        }
    }

    /// True when everything was handed out.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// When [`Pace::slice`] has something, if nothing is received before: at once, or when patience ends.
    pub fn due(&self) -> Option<Instant> {
        let room = self.unanswered < self.window;
        (!self.queue.is_empty()).then_some(if room { Instant(0) } else { self.next })
    }

    /// Everything that is left, for a daemon that stops.
    pub fn rest(&mut self) -> impl Iterator<Item = (Bytes, Vec<Destination>)> + '_ {
        self.queue.drain(..).map(|(octets, to)| (octets, to.into()))
    }

    /// What may be sent now. `taken` counts datagrams the loop took so far: one that waits for the loop is no answer yet.
    /// `idle`: none waits.
    pub fn slice(&mut self, now: Instant, taken: u64, idle: bool) -> Option<(Bytes, Vec<Destination>)> {
        let answers = usize::try_from(taken.saturating_sub(self.taken)).unwrap_or(usize::MAX);
        self.unanswered = self.unanswered.saturating_sub(answers);
        self.taken = taken;
        let mut room = self.window.saturating_sub(self.unanswered).min(SLICE);
        if room == 0 && idle && now >= self.next {
            // As many of those that wait will not be heard of soon.
            room = SLICE.min(self.window);
            self.unanswered = self.unanswered.saturating_sub(room);
        }
        let (octets, to) = self.queue.front_mut()?;
        let (octets, slice): (Bytes, Vec<Destination>) =
            (octets.clone(), to.drain(..room.min(to.len())).collect());
        if to.is_empty() {
            self.queue.pop_front();
        }
        if slice.is_empty() {
            return None;
        }
        self.unanswered += slice.len();
        self.next = now + PATIENCE;
        Some((octets, slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(count: usize) -> Vec<Destination> {
        vec![("10.0.0.1:848".parse().unwrap(), "10.0.0.2:848".parse().unwrap()); count]
    }

    /// Datagrams that leave at one moment.
    fn burst(pace: &mut Pace, now: Instant, taken: u64) -> usize {
        std::iter::from_fn(|| pace.slice(now, taken, true)).map(|(_, to)| to.len()).sum()
    }

    #[test]
    fn no_more_is_on_its_way_than_the_receive_buffer_holds_answers() {
        let mut pace = Pace::new(1000 * COST);
        pace.push(Bytes::from_static(b"push"), destinations(3000));
        assert_eq!(burst(&mut pace, Instant(0), 7), 1000);
        assert_eq!(burst(&mut pace, Instant(1), 7), 0);
        assert_eq!(burst(&mut pace, Instant(2), 307), 300, "as many as answered");
        assert_eq!(burst(&mut pace, Instant(3), 100_000), 1000);
    }

    #[test]
    fn members_that_are_silent_slow_it_down_and_never_stop_it() {
        let mut pace = Pace::new(64 << 20);
        pace.push(Bytes::from_static(b"push"), destinations(16 * SLICE + 2 * SLICE));
        assert_eq!(burst(&mut pace, Instant(0), 0), 16 * SLICE);
        let due = pace.due().unwrap();
        assert_eq!(due, Instant(0) + PATIENCE);
        assert!(pace.slice(due, 0, false).is_none(), "answers wait to be taken");
        assert_eq!(burst(&mut pace, due, 0), SLICE);
        assert_eq!(burst(&mut pace, due + PATIENCE, 0), SLICE);
        assert!(pace.is_empty() && pace.due().is_none());
    }

    #[test]
    fn pushes_leave_in_their_order() {
        let mut pace = Pace::new(64 << 20);
        for name in [b"1", b"2"] {
            pace.push(Bytes::from_static(name), destinations(SLICE + 1));
        }
        let order: Vec<Bytes> =
            std::iter::from_fn(|| pace.slice(Instant(0), 0, true)).map(|(octets, _)| octets).collect();
        assert_eq!(order, ["1", "1", "2", "2"]);
    }
}
