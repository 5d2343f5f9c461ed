//! First messages of aggressive mode: each costs an exchange of keys, and with certificates a signature, before its sender
//! showed that it can receive, and its answer is longer than itself (RFC 2409 section 5). So only some a second are worked
//! on or answered again. Whatever is forged, what leaves for one address stays below [`PER_ADDRESS`] answers a second.

use std::net::IpAddr;

use ike::io::Instant;

use super::notify_limit::NotifyLimit;

/// First messages worked on in a second from addresses that are configured or proved an identity once.
pub const KNOWN: u32 = 200;
/// The same from other addresses.
pub const STRANGERS: u32 = 50;
/// The same from one address.
pub const PER_ADDRESS: u32 = 4;

/// What a second has left.
#[derive(Debug)]
pub struct FirstAnswers {
    known: NotifyLimit,
    strangers: NotifyLimit,
}

impl Default for FirstAnswers {
    fn default() -> FirstAnswers {
        let share = |all| NotifyLimit::new(all, PER_ADDRESS);
        FirstAnswers { known: share(KNOWN), strangers: share(STRANGERS) }
    }
}

impl FirstAnswers {
    /// True when one more first message from `address` may be worked on, or answered again; it is counted.
    pub fn take(&mut self, now: Instant, address: IpAddr, known: bool) -> bool {
        let share = if known { &mut self.known } else { &mut self.strangers };
        share.take(now, address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_take_nothing_from_the_known() {
        let mut answers = FirstAnswers::default();
        let mut take =
            |number: u32, known| answers.take(Instant(7_000_000), IpAddr::from(number.to_be_bytes()), known);
        let taken = (1..=1000).filter(|number| take(*number, false)).count();
        assert_eq!(taken, STRANGERS as usize);
        let taken = (1..=10).filter(|_| take(5000, true)).count();
        assert_eq!(taken, PER_ADDRESS as usize);
        let taken = (1..=1000).filter(|number| take(*number, true)).count();
        assert_eq!(taken, (KNOWN - PER_ADDRESS) as usize);
    }
}
