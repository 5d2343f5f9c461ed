//! What PUSHes left open, and how long that may wait (RFC 6407 section 4, RFC 4046 section 5.3).
//!
//! ```text
//! PUSH of key arrays, none for us  --arrays for us in another PUSH or copy--> nothing open
//! PUSH after a number we never saw --later PUSHes say what became of each TEK--> nothing open
//!                                  --neither until its time--> registration
//! ```
//!
//! The numbers before our key arrays are mostly those of arrays for others, which go to those alone. So such a gap is no
//! event: it is told with the registration that it leads to when nothing says what became of the TEKs.
//!
//! One change of a group may take several PUSHes, and each comes in several copies, so that a lost datagram is no reason to
//! ask the server. The others send under new TEKs when ATD is over: a registration is to be over by then.

use std::collections::BTreeSet;
use std::time::Duration;

use ctl::event::Event;
use gdoi_proto::ids::{KekSpi, Spi};
use ike::io::Instant;
use ike::retransmit::below;

use super::Cx;
use super::vpn::Vpn;

/// Below this ATD no waiting brings a registration in before the others send: it is only spread.
const SHORT_DELAY: Duration = Duration::from_secs(10);
/// How a registration is spread then.
const SPREAD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

const MISSED: &str = "rekeys were missed";

/// What a PUSH left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
    /// No array led us to this KEK: excluded, or the array for us is in another PUSH of the same change.
    Kek(KekSpi),
    /// Rekeys were missed, and what they did to these TEKs in use is not known.
    Teks {
        /// Those.
        open: BTreeSet<Spi>,
        /// Or they were key arrays for others: it is told only when it leads to a registration.
        quiet: bool,
    },
}

impl Doubt {
    fn reason(&self) -> &'static str {
        match self {
            Doubt::Kek(_) => "no key array of a push is for us",
            Doubt::Teks { .. } => MISSED,
        }
    }

    /// From when to when a registration may begin. Copies of the PUSH that we want, or of the one that says what became of the
    /// TEKs after a change of the tree, come until the server gives it up; a PUSH whose number is behind us is lost, and only
    /// those that follow it at once can help.
    fn window(&self, activation: Duration) -> (Duration, Duration) {
        match self {
            _ if activation < SHORT_DELAY => SPREAD,
            Doubt::Kek(_) | Doubt::Teks { quiet: true, .. } => (activation * 2 / 3, activation * 5 / 6),
            Doubt::Teks { quiet: false, .. } => (activation / 3, activation / 2),
        }
    }
}

/// All that is open of one VPN. The first doubt of a kind says when.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    kek: Option<(KekSpi, Instant)>,
    teks: Option<(BTreeSet<Spi>, Instant)>,
    /// That one of TEKs was not told yet.
    quiet: bool,
}

impl Doubts {
    /// When a registration must begin if nothing more is learnt.
    pub(super) fn due(&self) -> Option<Instant> {
        let kek = self.kek.map(|(_, due)| due);
        kek.into_iter().chain(self.teks.as_ref().map(|(_, due)| *due)).min()
    }

    fn raise(&mut self, doubt: Doubt, due: Instant) {
        match doubt {
            Doubt::Kek(spi) => self.kek = Some((spi, self.kek.map_or(due, |(_, first)| first))),
            Doubt::Teks { open, quiet } => {
                self.quiet = quiet && (self.quiet || self.teks.is_none());
                let first = self.teks.take().map_or(due, |(_, first)| first);
                self.teks = Some((open, first));
            }
        }
    }

    /// True when what missed rekeys did to TEKs in use is not known.
    pub(super) fn misses_rekeys(&self) -> bool {
        self.teks.is_some()
    }

    /// Why a registration that is due begins, if that was not told yet.
    pub(super) fn untold(&self, now: Instant) -> Option<&'static str> {
        self.teks.as_ref().filter(|(_, due)| self.quiet && *due <= now).map(|_| MISSED)
    }

    /// We hold the KEKs of which this is true.
    pub(super) fn settle_kek(&mut self, held: impl Fn(KekSpi) -> bool) {
        self.kek = self.kek.filter(|(spi, _)| !held(*spi));
    }

    /// Of the TEKs in use these are all that was not accounted for lately.
    pub(super) fn settle_teks(&mut self, open: &BTreeSet<Spi>) {
        if let Some((doubted, _)) = &mut self.teks {
            doubted.retain(|spi| open.contains(spi));
        }
        self.teks.take_if(|(doubted, _)| doubted.is_empty());
    }
}

impl Vpn {
    /// Plans a registration that later PUSHes and copies may make needless; `activation` is the ATD of the PUSH.
    pub(super) fn doubt(&mut self, doubt: Doubt, activation: Duration, cx: &mut Cx<'_>) {
        let (earliest, latest) = doubt.window(activation);
        let wait = earliest + below(latest - earliest, cx.entropy);
        let before = self.plan_or_doubt();
        let untold = self.doubts.quiet && self.doubts.misses_rekeys();
        let reason = doubt.reason().to_owned();
        let quiet = matches!(doubt, Doubt::Teks { quiet: true, .. });
        self.doubts.raise(doubt, cx.now.at + wait);
        if !quiet && (untold || self.plan_or_doubt() != before) {
            let (vpn, seconds) = (self.name().to_owned(), wait.as_secs());
            cx.out.event(Event::ReregistrationScheduled { vpn, seconds, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(1_000_000) + Duration::from_secs(seconds)
    }

    fn spis(all: &[u32]) -> BTreeSet<Spi> {
        all.iter().copied().map(Spi).collect()
    }

    fn missed(quiet: bool) -> Doubt {
        Doubt::Teks { open: spis(&[300, 301]), quiet }
    }

    #[test]
    fn the_first_doubt_says_when_and_the_last_one_what() {
        let mut doubts = Doubts::default();
        doubts.raise(Doubt::Kek(KekSpi([2; 16])), at(20));
        doubts.raise(Doubt::Kek(KekSpi([3; 16])), at(40));
        doubts.settle_kek(|spi| spi == KekSpi([2; 16]));
        assert_eq!(doubts.due(), Some(at(20)));
        doubts.settle_kek(|spi| spi == KekSpi([3; 16]));
        assert_eq!(doubts.due(), None);
    }

    #[test]
    fn what_settles_one_kind_leaves_the_other() {
        let mut doubts = Doubts::default();
        doubts.raise(missed(false), at(10));
        doubts.raise(Doubt::Kek(KekSpi([2; 16])), at(20));
        doubts.settle_teks(&spis(&[301, 302]));
        assert_eq!(doubts.due(), Some(at(10)), "301 is open yet");
        doubts.settle_teks(&spis(&[300, 302]));
        assert_eq!(doubts.due(), Some(at(20)), "what was accounted for stays so");
    }

    #[test]
    fn what_was_raised_in_silence_is_told_when_it_is_due() {
        for (first, then, told) in [(true, true, false), (true, false, true), (false, true, true)] {
            let mut doubts = Doubts::default();
            doubts.raise(missed(first), at(10));
            doubts.raise(missed(then), at(20));
            assert_eq!((doubts.due(), doubts.untold(at(9))), (Some(at(10)), None));
            assert_eq!(doubts.untold(at(10)), (!told).then_some(MISSED));
        }
    }

    #[test]
    fn a_registration_is_planned_after_the_first_copies_and_well_before_the_others_send() {
        let kek = Doubt::Kek(KekSpi([2; 16]));
        for (doubt, from, to) in [(kek, 20, 25), (missed(true), 20, 25), (missed(false), 10, 15)] {
            let window = doubt.window(Duration::from_secs(30));
            assert_eq!(window, (Duration::from_secs(from), Duration::from_secs(to)));
            assert_eq!(doubt.window(Duration::ZERO), SPREAD);
        }
    }
}
