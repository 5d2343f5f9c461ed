//! One daemon per state directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

/// Why the state directory is not ours.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another daemon holds it.
    #[error("{} is in use by another daemon (pid {pid})", directory.display())]
    InUse {
        /// The state directory.
        directory: PathBuf,
        /// What that daemon wrote; `unknown` when it has not yet.
        pid: String,
    },
    /// Something else.
    #[error("{}: {source}", path.display())]
    System {
        /// The directory or its lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The state directory is ours while this lives; the system ends it with the process, however that ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes `directory`, which is made with mode 0700 when missing, by a lock on `directory/lock`.
    ///
    /// # Errors
    /// [`LockError::InUse`] when another daemon has it.
    pub fn take(directory: &Path) -> Result<StateLock, LockError> {
        StateLock::take_for(directory, None)
    }

    /// As [`StateLock::take`]; the lock file belongs to the user and group `owner`, who will take it next time.
    ///
    /// # Errors
    /// As [`StateLock::take`].
    pub fn take_for(directory: &Path, owner: Option<(u32, u32)>) -> Result<StateLock, LockError> {
        let path = directory.join("lock");
        let system = |path: &Path, source| LockError::System { path: path.to_owned(), source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| system(directory, error))?;
        // The directory may be another user's: its lock may not lead elsewhere, neither by a symbolic link nor by a hard one.
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let mut file = open.open(&path).map_err(|error| system(&path, error))?;
        let metadata = file.metadata().map_err(|error| system(&path, error))?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(system(&path, io::Error::other("is not a file of its own")));
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file.take(20).read_to_string(&mut pid);
                let pid = pid.trim();
                let known = !pid.is_empty() && pid.chars().all(|digit| digit.is_ascii_digit());
                let pid = if known { pid.to_owned() } else { "unknown".to_owned() };
                return Err(LockError::InUse { directory: directory.to_owned(), pid });
            }
            Err(error) => return Err(system(&path, error.into())),
        }
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(uid), Some(gid)).map_err(|error| system(&path, error))?;
        }
        // The number is only for the other's error text: failing to write it takes nothing from the lock.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(StateLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_told_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("gcks");
        let first = StateLock::take(&state).unwrap();
        let error = StateLock::take(&state).unwrap_err();
        let expected =
            format!("{} is in use by another daemon (pid {})", state.display(), std::process::id());
        assert_eq!(error.to_string(), expected);
        drop(first);
        StateLock::take(&state).unwrap();
    }

    #[test]
    fn a_lock_that_leads_elsewhere_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let (precious, lock) = (directory.path().join("precious"), directory.path().join("lock"));
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &lock).unwrap();
        assert!(matches!(StateLock::take(directory.path()), Err(LockError::System { .. })));
        fs::remove_file(&lock).unwrap();
        fs::hard_link(&precious, &lock).unwrap();
        assert!(matches!(StateLock::take(directory.path()), Err(LockError::System { .. })));
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(StateLock::take(&file.join("state")), Err(LockError::System { .. })));
    }
}
