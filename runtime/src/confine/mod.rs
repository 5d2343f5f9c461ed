//! What a daemon gives up once it has what it needs: its user, capabilities, new privileges, system calls it never makes,
//! and files that are not its own.
//!
//! ```text
//! ports and local sockets are open ──> capabilities a program could get back ──> own user ──> all other capabilities
//!   ──> no new privileges ──> files (landlock) ──> system calls (seccomp) ──> the first thread
//! ```
//!
//! All of it belongs to a thread and is inherited by those it starts, so it happens before the first one is started.

mod calls;
mod capabilities;
mod files;
mod user;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use thiserror::Error;

pub use caps::Capability;
pub use files::{Files, Restricted};
pub use user::{Account, is_root};

/// Why the daemon could not give up what it should not have.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// No account of this machine has that name.
    #[error("user {0:?}: no such user on this machine")]
    NoSuchUser(String),
    /// Only root becomes somebody else.
    #[error("only root becomes the user {wanted:?}; this process was started as uid {uid}")]
    NotRoot {
        /// The name that was configured.
        wanted: String,
        /// Who started it.
        uid: u32,
    },
    /// A directory cannot be made.
    #[error("{}: {source}", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refuses to take something away.
    #[error("{what} cannot be given up: {source}")]
    System {
        /// What was to be given up.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ConfineError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> ConfineError {
        move |source| ConfineError::System { what, source }
    }
}

/// What a daemon keeps.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Becomes this account; none: stays who it is. With one, no capability is kept.
    pub account: Option<Account>,
    /// Capabilities, as far as the process has them.
    pub capabilities: Vec<Capability>,
    /// Directories that are made, mode 0700, when they are missing: by the account, so that they are its own.
    pub make: Vec<PathBuf>,
    /// Files and directories.
    pub files: Files,
}

/// What was given up, for the log and for errors that come of it.
#[derive(Debug, Clone)]
pub struct Confined {
    /// Who the process is now, as `user gcks (uid 990)`.
    pub who: String,
    /// Its capabilities by name.
    pub capabilities: Vec<String>,
    /// System calls that are refused; 0 without seccomp.
    pub calls: usize,
    /// What landlock restricts; none where the kernel has none.
    pub files: Option<Restricted>,
}

/// Gives up everything but `kept`. Nothing is left half done that matters: on an error the daemon must end.
///
/// # Errors
/// [`ConfineError`]. A kernel without landlock or seccomp is no error: [`Confined`] says what holds.
pub fn confine(kept: &Kept) -> Result<Confined, ConfineError> {
    let keep = match &kept.account {
        Some(_) => &[],
        None => kept.capabilities.as_slice(),
    };
    capabilities::bound(keep).map_err(ConfineError::system("capabilities"))?;
    if let Some(account) = &kept.account {
        account.become_it()?;
    }
    for path in &kept.make {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| ConfineError::Make { path: path.clone(), source })?;
    }
    let capabilities = capabilities::keep_only(keep).map_err(ConfineError::system("capabilities"))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| ConfineError::System { what: "new privileges", source: error.into() })?;
    let files = files::restrict(&kept.files).map_err(ConfineError::system("other files"))?;
    let calls = calls::refuse().map_err(ConfineError::system("system calls"))?;
    Ok(Confined { who: user::whoami(), capabilities, calls, files })
}

impl Confined {
    /// One line for the log at the start.
    pub fn said(&self) -> String {
        let capabilities = match self.capabilities.as_slice() {
            [] => "no capability".to_owned(),
            names => names.join(" "),
        };
        let calls = match self.calls {
            0 => "system calls: all (no seccomp here)".to_owned(),
            number => format!("{number} system calls refused"),
        };
        let files = match &self.files {
            None => "files: all that the user may (no landlock here)".to_owned(),
            Some(files) => format!("files: {files}"),
        };
        format!("{}, {capabilities}, no new privileges, {calls}, {files}", self.who)
    }

    /// `reason` with what the daemon may read, when it says that something cannot be read that could be at the start.
    pub fn explained(&self, reason: String) -> String {
        if !reason.contains("Permission denied") {
            return reason;
        }
        let below = self.files.as_ref().map_or(String::new(), |files| {
            format!(", below {} only; another place takes a restart", files.reading())
        });
        format!("{reason}\nthe daemon reads as {}, without capabilities of root{below}", self.who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Confines a thread of its own.
    fn within(kept: Kept, act: impl FnOnce(Confined) + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| act(confine(&kept).unwrap())).join().unwrap();
        });
    }

    #[test]
    fn a_confined_thread_has_no_capability_and_runs_no_program() {
        within(Kept::default(), |confined| {
            assert!(confined.capabilities.is_empty());
            let said = confined.said();
            assert!(said.contains("no capability, no new privileges"), "{said}");
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
            // Without landlock the file can be read.
            if confined.files.is_none() {
                assert!(status.contains("NoNewPrivs:\t1"), "{status}");
            }
            if confined.calls > 0 {
                let refused = std::process::Command::new("/bin/true").status().unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            }
        });
    }

    #[test]
    fn a_confined_thread_reads_and_writes_its_own_places_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["state", "etc", "other"] {
            std::fs::create_dir(path(name)).unwrap();
            std::fs::write(path(name).join("file"), "here").unwrap();
        }
        let files = Files { read: vec![path("etc")], write: vec![path("state")], ..Files::default() };
        within(Kept { files, ..Kept::default() }, |confined| {
            std::fs::write(path("state/new"), "x").unwrap();
            std::fs::rename(path("state/new"), path("state/renamed")).unwrap();
            assert_eq!(std::fs::read_to_string(path("etc/file")).unwrap(), "here");
            if confined.files.is_some() {
                let denied = io::ErrorKind::PermissionDenied;
                assert_eq!(std::fs::write(path("etc/file"), "x").unwrap_err().kind(), denied);
                assert_eq!(std::fs::read(path("other/file")).unwrap_err().kind(), denied);
                let told = confined.explained("file: Permission denied (os error 13)".to_owned());
                assert!(told.contains(path("etc").to_str().unwrap()), "{told}");
                assert_eq!(confined.explained("empty".to_owned()), "empty");
            }
        });
    }
}
