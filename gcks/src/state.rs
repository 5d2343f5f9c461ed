//! `gcksd --verify-state` and `gcksd --restore FILE`: the stored state while no daemon runs.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use config::{Gcks, Server};
use ike::crypto::provider::{Random, default_provider};
use runtime::clock::Clock;
use runtime::confine::{Account, ConfineError};
use runtime::lock::{LockError, StateLock};
use thiserror::Error;

use crate::confine;
use crate::convert;
use crate::engine::durable::Row;
use crate::engine::{KeyServer, RestoreError, without_keys};
use crate::store::StoreError;
use crate::store::offline;

/// Why nothing was done.
#[derive(Debug, Error)]
pub enum StateError {
    /// A daemon runs.
    #[error("{0}; ask the running one: gdoictl server state verify")]
    Running(LockError),
    /// The file cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record cannot be used.
    #[error("{0}; nothing was changed")]
    Restore(#[from] RestoreError),
    /// There is nobody to ask.
    #[error("nothing was changed: there is no terminal to ask on; --yes says yes")]
    Unasked,
    /// The answer was no.
    #[error("nothing was changed")]
    Declined,
    /// The terminal failed.
    #[error("nothing was changed: {0}")]
    Terminal(#[from] std::io::Error),
}

impl StateError {
    /// 2 for a missing `--yes`, 4 for a damaged or unreadable state, else 3.
    pub fn exit_code(&self) -> u8 {
        match self {
            StateError::Unasked => 2,
            StateError::Store(StoreError::Damaged { .. } | StoreError::Sealed { .. })
            | StateError::Restore(_) => 4,
            StateError::Running(_)
            | StateError::Store(StoreError::Refused { .. } | StoreError::Failed(_))
            | StateError::Declined
            | StateError::Terminal(_) => 3,
        }
    }
}

/// Becomes the user of the daemon, so that no file of the state ever belongs to another.
///
/// # Errors
/// When that user does not exist, or this process may not become it.
pub fn become_owner(server: &Server) -> Result<(), ConfineError> {
    let Some(account) = Account::to_become(&server.user)? else { return Ok(()) };
    confine::private_directory(&server.state_directory, Some(&account))
        .map_err(|source| ConfineError::Make { path: server.state_directory.clone(), source })?;
    account.become_it()
}

/// Reads every record as a start would; what was found.
///
/// # Errors
/// [`StateError`] with what is wrong.
pub fn verify(config: &Gcks) -> Result<String, StateError> {
    let directory = &config.server.state_directory;
    if !directory.exists() {
        let reason = "there is no such directory, so no state".to_owned();
        return Err(StoreError::Refused { path: directory.clone(), reason }.into());
    }
    let _lock = StateLock::take(directory).map_err(StateError::Running)?;
    let verified = offline::verify(directory, config.server.state_key.as_ref().map(|key| &key.0))?;
    usable(config, &verified.rows)?;
    Ok(format!("good: {verified}"))
}

/// A key server starts from these rows.
fn usable(config: &Gcks, rows: &[Row]) -> Result<(), RestoreError> {
    let random = Box::new(Random(default_provider()));
    KeyServer::new(
        convert::settings(config, config.server.nat_traversal),
        rows.to_vec(),
        Clock::start().now(),
        random,
    )
    .map(drop)
}

/// Puts a backup in the place of the state, after asking unless `yes`.
///
/// # Errors
/// [`StateError`]; the state that was there is untouched, or kept beside the new one.
pub fn restore(config: &Gcks, backup: &Path, yes: bool) -> Result<(), StateError> {
    let server = &config.server;
    let key = server.state_key.as_ref().map(|key| &key.0);
    let _lock = StateLock::take(&server.state_directory).map_err(StateError::Running)?;
    let verified = offline::verify_file(backup, key)?;
    usable(config, &verified.rows)?;
    let changes = without_keys(&verified.rows)?;
    let made = verified.backup.as_deref().unwrap_or("a moment it does not tell: it is no backup but a state");
    println!("{} is good: {verified}, of {made}", backup.display());
    println!(
        "Numbers and sender IDs given out since then are not in it. So the next start makes every TEK and KEK anew,"
    );
    println!(
        "sender IDs begin again under them, and no member is registered: each keeps its present keys until they"
    );
    println!("end or it registers again, and does not understand the members that already have.");
    println!("The present state of {} is kept beside the restored one.", server.state_directory.display());
    if !yes && !agreed()? {
        return Err(StateError::Declined);
    }
    let moment = Clock::start().now().unix_seconds;
    let kept = offline::restore(&server.state_directory, key, backup, &changes, moment)?;
    if let Some(kept) = kept {
        println!("kept: {}", kept.display());
    }
    println!("restored; start gcksd now");
    Ok(())
}

fn agreed() -> Result<bool, StateError> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(StateError::Unasked);
    }
    print!("Restore it? Type yes: ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    input.lock().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}
