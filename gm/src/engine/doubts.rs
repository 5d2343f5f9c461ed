//! What PUSHes left open, and how long that may wait (RFC 6407 section 4, RFC 4046 section 5.3).
//!
//! ```text
//! PUSH of key arrays, none for us  --arrays for us in another PUSH or copy--> nothing open
//! PUSH after a number we never saw --later PUSHes say what became of each TEK--> nothing open
//!                                  --neither until its time--> registration
//! ```
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

/// What a PUSH left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
    /// No array led us to this KEK: excluded, or the array for us is in another PUSH of the same change.
    Kek(KekSpi),
    /// Rekeys were missed, and what they did to these TEKs in use is not known.
    Teks(BTreeSet<Spi>),
}

impl Doubt {
    fn reason(&self) -> &'static str {
        match self {
            Doubt::Kek(_) => "no key array of a push is for us",
            Doubt::Teks(_) => "rekeys were missed",
        }
    }

    /// From when to when a registration may begin. Copies of the PUSH that we want come until the server gives it up; a PUSH
    /// whose number is behind us is lost, and only those that follow it at once can help.
    fn window(&self, activation: Duration) -> (Duration, Duration) {
        match self {
            _ if activation < SHORT_DELAY => SPREAD,
            Doubt::Kek(_) => (activation * 2 / 3, activation * 5 / 6),
            Doubt::Teks(_) => (activation / 3, activation / 2),
        }
    }
}

/// All that is open of one VPN. The first doubt of a kind says when.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    kek: Option<(KekSpi, Instant)>,
    teks: Option<(BTreeSet<Spi>, Instant)>,
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
            Doubt::Teks(open) => {
                let first = self.teks.take().map_or(due, |(_, first)| first);
                self.teks = Some((open, first));
            }
        }
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
        let reason = doubt.reason().to_owned();
        self.doubts.raise(doubt, cx.now.at + wait);
        if self.plan_or_doubt() != before {
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
        doubts.raise(Doubt::Teks(spis(&[300, 301])), at(10));
        doubts.raise(Doubt::Kek(KekSpi([2; 16])), at(20));
        doubts.settle_teks(&spis(&[301, 302]));
        assert_eq!(doubts.due(), Some(at(10)), "301 is open yet");
        doubts.settle_teks(&spis(&[300, 302]));
        assert_eq!(doubts.due(), Some(at(20)), "what was accounted for stays so");
    }

    #[test]
    fn a_registration_is_planned_after_the_first_copies_and_well_before_the_others_send() {
        for (doubt, from, to) in [(Doubt::Kek(KekSpi([2; 16])), 20, 25), (Doubt::Teks(spis(&[300])), 10, 15)]
        {
            let window = doubt.window(Duration::from_secs(30));
            assert_eq!(window, (Duration::from_secs(from), Duration::from_secs(to)));
            assert_eq!(doubt.window(Duration::ZERO), SPREAD);
        }
    }
}
