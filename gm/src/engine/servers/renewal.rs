//! When an ISAKMP SA has another made in its place: it is not rekeyed, phase 1 runs again before its life ends.

use ike::io::{Entropy, Instant};

/// Thousandths of its life after which an SA is not used for another PULL, and up to how many more: by chance, so that
/// members that came together part.
const RENEWED: (u32, u32) = (800, 100);

/// When an SA of this life is due for another in its place.
pub fn renewal(now: Instant, expires: Instant, entropy: &mut dyn Entropy) -> Instant {
    let (least, more) = RENEWED;
    let mut octets = [0; 2];
    entropy.fill(&mut octets);
    let chance = u32::from(u16::from_be_bytes(octets)) * more / u32::from(u16::MAX);
    now + expires.since(now) * (least + chance) / 1000
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Says(u8);

    impl Entropy for Says {
        fn fill(&mut self, out: &mut [u8]) {
            out.fill(self.0);
        }
    }

    #[test]
    fn an_sa_is_due_between_80_and_90_hundredths_of_its_life() {
        let (now, life) = (Instant(5_000_000), Duration::from_secs(3600));
        let at = |octet| renewal(now, now + life, &mut Says(octet)).since(now).as_secs();
        assert_eq!([at(0), at(255)], [2880, 3240]);
        assert!((2880..=3240).contains(&at(100)));
    }
}
