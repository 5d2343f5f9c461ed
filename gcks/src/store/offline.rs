//! The state as a file: verify, back up, restore. Verify and backup read beside a running daemon, which goes on writing.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gdoi_proto::secret::SecretBytes;
use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use super::embedded::{self, FILE, LOG, PENDING, described, inspect, refuse_pending, sync};
use crate::engine::durable::{Change, Kind, Row};

/// A file that was read and found whole.
#[derive(Debug)]
pub struct Verified {
    /// Its rows.
    pub rows: Vec<Row>,
    /// Its rows are sealed.
    pub sealed: bool,
    /// When it was copied, for a backup.
    pub backup: Option<String>,
}

impl std::fmt::Display for Verified {
    /// `12 records (1 group, …), sealed`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |kind: Kind| self.rows.iter().filter(|row| row.kind == kind).count();
        let kinds: Vec<String> = Kind::ALL
            .into_iter()
            .map(|kind| (kind.name(), of(kind)))
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let sealed = if self.sealed { "sealed" } else { "not sealed" };
        write!(f, "{} records ({}), {sealed}", self.rows.len(), kinds.join(", "))
    }
}

/// Reads every page and every record of the state in `directory`, and changes nothing.
///
/// # Errors
/// [`StoreError`] with what is wrong.
pub fn verify(directory: &Path, state_key: Option<&SecretBytes>) -> Result<Verified, StoreError> {
    refuse_pending(directory)?;
    verify_file(&directory.join(FILE), state_key)
}

/// As [`verify`], of a file by its name: a backup.
///
/// # Errors
/// [`StoreError`] with what is wrong.
pub fn verify_file(path: &Path, state_key: Option<&SecretBytes>) -> Result<Verified, StoreError> {
    let connection = read_only(path)?;
    let header = inspect(&connection, path, "integrity_check")?;
    if header.schema.is_none() {
        let reason = "there is nothing in it".to_owned();
        return Err(StoreError::Damaged { path: path.to_owned(), reason });
    }
    let seal = header.seal(path, state_key)?;
    let rows = embedded::read(&connection, path, seal.as_ref())?;
    Ok(Verified { rows, sealed: seal.is_some(), backup: header.backup })
}

fn read_only(path: &Path) -> Result<Connection, StoreError> {
    if !path.exists() {
        return Err(StoreError::Refused {
            path: path.to_owned(),
            reason: "there is no such file".to_owned(),
        });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |error: rusqlite::Error| described(path, &error);
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(10)).map_err(failed)?;
    Ok(connection)
}

/// Copies the state in `directory` as of now into the new file `to`, marks it as a backup of the moment `time`, and
/// reads the copy back. It is sealed as the state is. An existing file is never overwritten.
///
/// # Errors
/// [`StoreError`]; no half of a backup stays behind.
pub fn backup(
    directory: &Path,
    state_key: Option<&SecretBytes>,
    to: &Path,
    time: &str,
) -> Result<Verified, StoreError> {
    let refuse = |reason: String| StoreError::Refused { path: to.to_owned(), reason };
    if to.exists() {
        return Err(refuse("exists; a backup never overwrites a file".to_owned()));
    }
    let part = beside(to, "part");
    let copied = copy(&directory.join(FILE), &part, Mark::Backup(time))
        .and_then(|()| verify_file(&part, state_key))
        .and_then(|verified| {
            // Neither replaces what somebody else put there meanwhile.
            fs::hard_link(&part, to).map_err(|error| refuse(format!("cannot be written: {error}")))?;
            Ok(verified)
        });
    let _ = fs::remove_file(&part);
    let verified = copied?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(parent).map_err(|error| refuse(format!("its directory cannot be synced: {error}")))?;
    Ok(verified)
}

enum Mark<'a> {
    Backup(&'a str),
    State(&'a [Change], Option<&'a SecretBytes>),
}

/// A whole and marked copy, on the disk.
fn copy(from: &Path, to: &Path, mark: Mark<'_>) -> Result<(), StoreError> {
    let refuse = |error: std::io::Error| StoreError::Refused {
        path: to.to_owned(),
        reason: format!("cannot be written: {error}"),
    };
    let failed = |error: rusqlite::Error| StoreError::Failed(format!("{}: {error}", to.display()));
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(refuse)?;
    let name = to.to_str().ok_or_else(|| refuse(std::io::Error::other("its name is not UTF-8")))?;
    read_only(from)?.execute("VACUUM INTO ?1", [name]).map_err(|error| described(from, &error))?;
    let mut connection = Connection::open(to).map_err(failed)?;
    connection.pragma_update(None, "secure_delete", "ON").map_err(failed)?;
    // Within one file, and nothing of a row in another one.
    connection.pragma_update_and_check(None, "journal_mode", "MEMORY", |_| Ok(())).map_err(failed)?;
    connection.pragma_update(None, "temp_store", "MEMORY").map_err(failed)?;
    let transaction = connection.transaction().map_err(failed)?;
    match mark {
        Mark::Backup(time) => {
            transaction
                .execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('backup', ?1)", [time])
                .map_err(failed)?;
        }
        Mark::State(changes, state_key) => {
            let seal = inspect(&transaction, to, "quick_check")?.seal(to, state_key)?;
            embedded::carry_over(&transaction)?;
            embedded::write(&transaction, seal.as_ref(), changes.iter())?;
            transaction.execute("DELETE FROM meta WHERE name = 'backup'", []).map_err(failed)?;
        }
    }
    transaction.commit().map_err(failed)?;
    connection.execute_batch("VACUUM").map_err(failed)?;
    drop(connection);
    file.sync_all().map_err(refuse)
}

/// Puts the backup `from` in the place of the state in `directory`, with `changes` applied to it. What was there is kept
/// beside it; its name is returned. An interruption leaves the old state, or a mark that refuses the start.
///
/// # Errors
/// [`StoreError`].
pub fn restore(
    directory: &Path,
    state_key: Option<&SecretBytes>,
    from: &Path,
    changes: &[Change],
    moment: u64,
) -> Result<Option<PathBuf>, StoreError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| StoreError::Refused { path, reason: error.to_string() }
    };
    embedded::private(directory, 0o700)?;
    let (state, new, pending) =
        (directory.join(FILE), directory.join("state.sqlite.restored"), directory.join(PENDING));
    if new.exists() {
        fs::remove_file(&new).map_err(at(&new))?;
    }
    copy(from, &new, Mark::State(changes, state_key))?;
    let verified = verify_file(&new, state_key);
    if let Err(error) = verified {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    fs::File::create(&pending).and_then(|file| file.sync_all()).map_err(at(&pending))?;
    sync(directory).map_err(at(directory))?;
    // The log goes first with its file: it must never meet the new one.
    let mut kept = None;
    for name in [LOG, FILE] {
        let (old, aside) = (directory.join(name), directory.join(format!("before-restore-{moment}.{name}")));
        if old.exists() {
            fs::rename(&old, &aside).map_err(at(&old))?;
            kept = Some(aside);
        }
    }
    let shared = directory.join("state.sqlite-shm");
    if shared.exists() {
        fs::remove_file(&shared).map_err(at(&shared))?;
    }
    fs::rename(&new, &state).map_err(at(&state))?;
    sync(directory).map_err(at(directory))?;
    fs::remove_file(&pending).map_err(at(&pending))?;
    sync(directory).map_err(at(directory))?;
    Ok(kept)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{ending}"));
    PathBuf::from(name)
}
