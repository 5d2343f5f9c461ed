//! A store without a disk, for tests. It can be told to fail.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{Store, StoreError};
use crate::engine::durable::{Change, Kind, Row};

/// Rows in memory; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    rows: BTreeMap<(Kind, String), Row>,
    failing: bool,
    transactions: usize,
}

impl Memory {
    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// From now on writes fail, or work again.
    pub fn fail(&self, failing: bool) {
        self.with(|inner| inner.failing = failing);
    }

    /// Transactions so far.
    pub fn transactions(&self) -> usize {
        self.with(|inner| inner.transactions)
    }
}

impl Store for Memory {
    fn load(&mut self) -> Result<Vec<Row>, StoreError> {
        Ok(self.with(|inner| inner.rows.values().cloned().collect()))
    }

    fn apply(&mut self, batches: &[Vec<Change>]) -> Result<(), StoreError> {
        self.with(|inner| {
            if inner.failing {
                return Err(StoreError::Failed("told to fail".to_owned()));
            }
            for change in batches.iter().flatten() {
                match change {
                    Change::Put(row) => drop(inner.rows.insert((row.kind, row.key.clone()), row.clone())),
                    Change::Remove { kind, key } => drop(inner.rows.remove(&(*kind, key.clone()))),
                }
            }
            inner.transactions += 1;
            Ok(())
        })
    }
}
