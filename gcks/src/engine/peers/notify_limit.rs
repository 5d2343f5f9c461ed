//! How many notifications leave in a second, in all and to one address: refusals answer whoever asks, and must not be
//! of use to somebody who asks in another's name.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ike::io::Instant;

/// A limit per second.
#[derive(Debug)]
pub struct NotifyLimit {
    all: u32,
    per_address: u32,
    second: u64,
    sent: u32,
    sent_to: BTreeMap<IpAddr, u32>,
}

impl NotifyLimit {
    /// So many per second in all, and so many of these to one address.
    pub fn new(all: u32, per_address: u32) -> NotifyLimit {
        NotifyLimit { all, per_address, second: 0, sent: 0, sent_to: BTreeMap::new() }
    }

    /// True when one more may leave for `address`; it is counted.
    pub fn take(&mut self, now: Instant, address: IpAddr) -> bool {
        let second = now.0 / 1_000_000;
        if self.second != second {
            (self.second, self.sent) = (second, 0);
            self.sent_to.clear();
        }
        if self.sent >= self.all {
            return false;
        }
        let to = self.sent_to.entry(address).or_default();
        if *to >= self.per_address {
            return false;
        }
        *to += 1;
        self.sent += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_share_and_an_address_its_part_of_it() {
        let mut limit = NotifyLimit::new(3, 2);
        let mut taken = |micros: u64, last: u8| limit.take(Instant(micros), IpAddr::from([10, 0, 0, last]));
        assert_eq!([1, 1, 1, 2, 3].map(|last| taken(5_000_000, last)), [true, true, false, true, false]);
        assert_eq!([1, 3].map(|last| taken(6_000_000, last)), [true, true]);
    }
}
