//! The sequence window of an SA with one sender (RFC 4303 section 3.4.3).
//!
//! ```text
//! too old | ................ 128 numbers ................ highest | new
//! ```
//!
//! An SA with several senders has none: each of them counts on its own (RFC 4303 section 2.2).

use thiserror::Error;

/// Numbers the window spans.
pub const SIZE: u32 = 128;

/// Why a number is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Replay {
    /// It was accepted before, or is 0.
    #[error("sequence number seen before")]
    Seen,
    /// It is older than the window.
    #[error("sequence number older than the window")]
    Old,
}

/// Which sequence numbers were accepted. Number 0 never is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    highest: u32,
    /// Bit n: `highest - n` was accepted.
    seen: u128,
}

impl Window {
    /// Whether `seq` may be accepted, asked before the ICV is verified.
    ///
    /// # Errors
    /// [`Replay`].
    pub fn check(&self, seq: u32) -> Result<(), Replay> {
        if seq == 0 {
            return Err(Replay::Seen);
        }
        match self.highest.checked_sub(seq) {
            None => Ok(()),
            Some(age) if age >= SIZE => Err(Replay::Old),
            Some(age) if self.seen >> age & 1 == 1 => Err(Replay::Seen),
            Some(_) => Ok(()),
        }
    }

    /// Accepts `seq`, whose ICV verified.
    ///
    /// # Errors
    /// [`Replay`], as [`Window::check`]: another packet may have come between.
    pub fn accept(&mut self, seq: u32) -> Result<(), Replay> {
        self.check(seq)?;
        if seq > self.highest {
            self.seen = self.seen.checked_shl(seq - self.highest).unwrap_or(0);
            self.highest = seq;
        }
        self.seen |= 1 << (self.highest - seq);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn late_numbers_pass_once_and_ancient_ones_never() {
        let mut window = Window::default();
        for seq in [1, 3, 200] {
            window.accept(seq).unwrap();
        }
        assert_eq!(window.accept(3), Err(Replay::Old));
        assert_eq!(window.accept(72), Err(Replay::Old));
        assert_eq!(window.accept(73), Ok(()));
        assert_eq!(window.accept(73), Err(Replay::Seen));
        assert_eq!(window.accept(0), Err(Replay::Seen));
        assert_eq!(window.accept(u32::MAX), Ok(()));
        assert_eq!(window.accept(200), Err(Replay::Old));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_numbers(numbers in proptest::collection::vec(0u32..600, 0..400)) {
            let (mut window, mut set, mut highest) = (Window::default(), BTreeSet::new(), 0);
            for seq in numbers {
                let fresh = seq > 0 && !set.contains(&seq) && (seq > highest || highest - seq < SIZE);
                prop_assert_eq!(window.accept(seq).is_ok(), fresh);
                if fresh {
                    set.insert(seq);
                    highest = highest.max(seq);
                }
            }
        }
    }
}
