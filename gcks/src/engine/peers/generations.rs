//! A bounded memory: the least recent is forgotten in bulk.

use std::collections::BTreeSet;

/// Remembers the last `limit` things at least, and twice as many at most.
#[derive(Debug)]
pub struct Generations<T> {
    limit: usize,
    recent: BTreeSet<T>,
    older: BTreeSet<T>,
}

impl<T: Ord> Generations<T> {
    /// Nothing yet.
    pub fn new(limit: usize) -> Generations<T> {
        Generations { limit, recent: BTreeSet::new(), older: BTreeSet::new() }
    }

    /// Remembers a thing.
    pub fn insert(&mut self, thing: T) {
        if self.recent.len() >= self.limit && !self.recent.contains(&thing) {
            self.turn();
        }
        self.recent.insert(thing);
    }

    /// True when it is remembered.
    pub fn contains(&self, thing: &T) -> bool {
        self.recent.contains(thing) || self.older.contains(thing)
    }

    /// Forgets what was there before the last turn.
    pub fn turn(&mut self) {
        self.older = std::mem::take(&mut self.recent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_and_never_more_than_twice_the_limit() {
        let mut known = Generations::new(100);
        for number in 0..300 {
            known.insert(number);
            assert!(known.recent.len() <= 100 && known.older.len() <= 100);
            assert!(known.contains(&number) && (number < 100 || known.contains(&(number - 99))));
        }
        assert!(!known.contains(&0));
        known.turn();
        assert!(known.contains(&299));
        known.turn();
        assert!(!known.contains(&299));
    }
}
