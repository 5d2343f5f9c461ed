//! Where the rows of `engine/durable.rs` are kept. A batch is written whole or not at all, and is on disk when
//! [`Store::apply`] returns.

pub mod embedded;
pub mod gate;
pub mod memory;
pub mod offline;
pub mod seal;
pub mod writer;

use std::path::PathBuf;

use gdoi_proto::secret::SecretBytes;
use thiserror::Error;

use crate::engine::durable::{Change, Row};

/// Why the state cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The directory or file is open to others, or of another kind than expected.
    #[error("{path}: {reason}")]
    Refused {
        /// What was looked at.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The file is not what this release wrote. It is left as it is.
    #[error(
        "{path}: the state is damaged: {reason}; it is left as it is: restore a backup (gcksd --restore FILE), or move it away to begin with new keys (every member registers again)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// The rows are sealed and the key is not there. Nothing was changed.
    #[error("{path}: {reason}; nothing was changed: give the key it was sealed under (server.state-key)")]
    Sealed {
        /// The file.
        path: PathBuf,
        /// Which key is missing.
        reason: String,
    },
    /// Writing or reading failed; it may work later.
    #[error("{0}")]
    Failed(String),
}

/// A place for rows.
pub trait Store: Send {
    /// Every row.
    ///
    /// # Errors
    /// [`StoreError`].
    fn load(&mut self) -> Result<Vec<Row>, StoreError>;

    /// Applies every batch, in order, in one transaction; all of it is on disk on return, or none.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: nothing was changed.
    fn apply(&mut self, batches: &[Vec<Change>]) -> Result<(), StoreError>;

    /// Seals every row under `state_key` with a new salt, in one transaction; how many they are.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; before the transaction's end nothing was changed.
    fn reseal(&mut self, _state_key: &SecretBytes) -> Result<usize, StoreError> {
        Err(StoreError::Failed("this store is not sealed".to_owned()))
    }
}
