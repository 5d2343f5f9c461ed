//! How long something took, as a histogram: a count per bound, cheap to keep for every registration and acknowledgement.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets in milliseconds, inclusive; one more bucket takes what is longer.
pub const BOUNDS: [u64; 12] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 15_000, 60_000];

/// Durations since the start or the last clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// How many.
    pub count: u64,
    /// All together.
    pub sum_milliseconds: u64,
    /// How many were in each bucket of [`BOUNDS`] and not in the one before; the last is for longer ones.
    pub buckets: [u64; BOUNDS.len() + 1],
}

impl Durations {
    /// Counts one.
    pub fn count(&mut self, duration: Duration) {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.count += 1;
        self.sum_milliseconds = self.sum_milliseconds.saturating_add(milliseconds);
        let bucket = BOUNDS.partition_point(|bound| *bound < milliseconds);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            *bucket += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_bucket_of_the_first_bound_that_holds_it() {
        let mut durations = Durations::default();
        for milliseconds in [0, 5, 6, 60_000, 60_001, 90_000] {
            durations.count(Duration::from_millis(milliseconds));
        }
        assert_eq!((durations.count, durations.sum_milliseconds), (6, 210_012));
        assert_eq!(durations.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(durations.buckets.iter().sum::<u64>(), durations.count);
    }
}
