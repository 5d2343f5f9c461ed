//! Dead-peer detection: when to ask whether the peer is there, and when to give it up (RFC 3706).
//!
//! ```text
//! Quiet --a word is expected, none comes for an interval--> Asking(1) --interval--> .. Asking(threshold) --> Dead
//!   ^----------- anything authenticated from the peer -------------'
//! ```
//!
//! The key server expects a word only while a registration waits for its member: liveness does not matter to it
//! otherwise (RFC 3706 section 5.5). A member that is told to watch expects one all the time.

use std::time::Duration;

use crate::io::{Entropy, Instant};

/// Numbers of a peer's questions this far from the expected one are answered: it repeats one whose answer was lost.
const WINDOW: u32 = 16;

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Silence before a question, and time for its answer.
    pub interval: Duration,
    /// Questions without answer before the peer is dead.
    pub threshold: u32,
}

/// What a due moment asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// Send R-U-THERE with this number.
    Ask(u32),
    /// Every question stayed unanswered.
    Dead,
}

/// Watches one ISAKMP SA.
#[derive(Debug, Clone)]
pub struct Watch {
    settings: Settings,
    next: u32,
    asked: u32,
    due: Option<Instant>,
}

impl Watch {
    /// A watch over an SA that was just established, expecting nothing yet. The first number is random with a zero top bit (RFC 3706
    /// section 5.3).
    pub fn new(settings: Settings, entropy: &mut dyn Entropy) -> Watch {
        let mut octets = [0; 4];
        entropy.fill(&mut octets);
        let next = u32::from_be_bytes(octets) >> 1;
        Watch { settings, next, asked: 0, due: None }
    }

    /// The peer owes us a word from now on.
    pub fn expect(&mut self, now: Instant) {
        self.due.get_or_insert(now + self.settings.interval);
    }

    /// An authenticated message came: the peer is there, and owes nothing any more.
    pub fn heard(&mut self) {
        self.asked = 0;
        self.due = None;
    }

    /// True when `number` is of a question of ours that is open.
    pub fn is_answer(&self, number: u32) -> bool {
        let back = self.next.wrapping_sub(number);
        (1..=self.asked).contains(&back)
    }

    /// When [`Watch::on_timeout`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What to do now.
    pub fn on_timeout(&mut self, now: Instant) -> Verdict {
        if self.due.is_none_or(|due| now < due) {
            return Verdict::Wait;
        }
        if self.asked >= self.settings.threshold {
            return Verdict::Dead;
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.asked += 1;
        self.due = Some(now + self.settings.interval);
        Verdict::Ask(number)
    }
}

/// The questions of a peer: which number is expected next.
#[derive(Debug, Clone, Copy, Default)]
pub struct Questions {
    last: Option<u32>,
}

impl Questions {
    /// True when a question with this number deserves an answer: the first of all, or one within 16 of the last.
    pub fn take(&mut self, number: u32) -> bool {
        let near = self
            .last
            .is_none_or(|last| number.wrapping_sub(last) <= WINDOW || last.wrapping_sub(number) <= WINDOW);
        if near {
            self.last = Some(number);
        }
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ones;
    impl Entropy for Ones {
        fn fill(&mut self, out: &mut [u8]) {
            out.fill(0xff);
        }
    }

    const SETTINGS: Settings = Settings { interval: Duration::from_secs(10), threshold: 3 };

    fn second(second: u64) -> Instant {
        Instant(second * 1_000_000)
    }

    fn watch() -> Watch {
        let mut watch = Watch::new(SETTINGS, &mut Ones);
        watch.expect(second(0));
        watch
    }

    #[test]
    fn a_silent_peer_is_asked_three_times_and_then_dead() {
        let mut watch = watch();
        assert_eq!(watch.on_timeout(second(9)), Verdict::Wait);
        let first = u32::MAX >> 1;
        for (at, number) in [(10, first), (20, first + 1), (30, first + 2)] {
            assert_eq!(watch.on_timeout(second(at)), Verdict::Ask(number));
        }
        assert_eq!(watch.on_timeout(second(39)), Verdict::Wait);
        assert_eq!(watch.on_timeout(second(40)), Verdict::Dead);
    }

    #[test]
    fn an_answer_to_any_open_question_counts_and_others_do_not() {
        let mut watch = watch();
        let Verdict::Ask(one) = watch.on_timeout(second(10)) else { panic!() };
        let Verdict::Ask(two) = watch.on_timeout(second(20)) else { panic!() };
        assert!(!watch.is_answer(two + 1), "not asked yet");
        assert!(!watch.is_answer(one.wrapping_sub(1)));
        assert!(watch.is_answer(one), "a late answer");
        watch.heard();
        assert!(!watch.is_answer(two), "nothing is open any more");
    }

    #[test]
    fn a_peer_that_owes_nothing_is_not_asked() {
        let mut watch = watch();
        watch.heard();
        assert_eq!((watch.due(), watch.on_timeout(second(100))), (None, Verdict::Wait));
        watch.expect(second(100));
        watch.expect(second(105));
        assert_eq!(watch.due(), Some(second(110)), "since it first owed one");
    }

    #[test]
    fn questions_near_the_last_number_are_answered_repeats_too() {
        let mut questions = Questions::default();
        assert!(questions.take(u32::MAX - 1));
        assert!(questions.take(u32::MAX - 1), "its answer was lost");
        assert!(questions.take(3), "wrapped, 5 on");
        assert!(!questions.take(100));
        assert!(questions.take(0));
    }
}
