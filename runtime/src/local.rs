//! Unix sockets of a daemon: bound with their final permissions, never over a living daemon, removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

/// Connections one socket serves at a time; further ones are closed at once.
pub const CLIENTS: usize = 64;

/// Why a local socket cannot be opened.
#[derive(Debug, Error)]
pub enum LocalError {
    /// Somebody answers on it.
    #[error("{}: another daemon is running there", .0.display())]
    Alive(PathBuf),
    /// The path is something else than a socket.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// `socket-group` names no group of this machine.
    #[error("socket-group {0:?}: no such group on this machine")]
    NoSuchGroup(String),
    /// Something else.
    #[error("{}: {source}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound Unix socket. Its file is removed on drop.
#[derive(Debug)]
pub struct LocalSocket {
    listener: BlockingListener,
    place: Place,
}

/// The file of a socket.
#[derive(Debug)]
struct Place(PathBuf);

/// A socket that takes visitors. Its file is removed on drop.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: UnixListener,
    _place: Place,
}

impl LocalSocket {
    /// Opens `path` with `mode`, owned by `group` when one is named (not empty). A missing directory is made, mode 0755.
    /// The file a dead daemon left is replaced.
    ///
    /// # Errors
    /// [`LocalError`]; [`LocalError::Alive`] when another daemon answers there.
    pub fn bind(path: &Path, mode: u32, group: &str) -> Result<LocalSocket, LocalError> {
        let system = |source| LocalError::System { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(LocalError::NotASocket(path.to_owned()));
            }
            Ok(_) => match BlockingStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(system(error)),
                Ok(_) => return Err(LocalError::Alive(path.to_owned())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(directory) = path.parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(system)?;
                }
            }
            Err(error) => return Err(system(error)),
        }
        let gid = match group {
            "" => None,
            name => match nix::unistd::Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid.as_raw()),
                Ok(None) => return Err(LocalError::NoSuchGroup(name.to_owned())),
                Err(error) => return Err(system(error.into())),
            },
        };
        // Bound under another name and renamed when its permissions are right: nobody meets it half made.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let making = path.with_file_name(name);
        let made = (|| {
            let _ = fs::remove_file(&making);
            let listener = BlockingListener::bind(&making)?;
            listener.set_nonblocking(true)?;
            if gid.is_some() {
                chown(&making, None, gid)?;
            }
            fs::set_permissions(&making, fs::Permissions::from_mode(mode))?;
            fs::rename(&making, path)?;
            Ok(listener)
        })();
        let listener = made.map_err(|error| {
            let _ = fs::remove_file(&making);
            system(error)
        })?;
        Ok(LocalSocket { listener, place: Place(path.to_owned()) })
    }

    /// Takes visitors. Must run within a tokio runtime.
    pub(crate) fn listen(self) -> io::Result<Listening> {
        Ok(Listening { listener: UnixListener::from_std(self.listener)?, _place: self.place })
    }
}

impl Listening {
    /// The next visitor. Failures of the system (too many open files) are waited out.
    pub(crate) async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_its_mode_and_goes_with_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let socket = LocalSocket::bind(&path, 0o600, "").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_daemons_file_is_replaced_and_a_living_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "closing a listener leaves its file");
        let _living = LocalSocket::bind(&path, 0o600, "").unwrap();
        let error = LocalSocket::bind(&path, 0o600, "").unwrap_err();
        assert!(error.to_string().ends_with("another daemon is running there"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_socket_and_an_unknown_group_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(LocalSocket::bind(&path, 0o600, ""), Err(LocalError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let other = directory.path().join("other.sock");
        assert!(matches!(
            LocalSocket::bind(&other, 0o660, "no-such-group-here"),
            Err(LocalError::NoSuchGroup(_))
        ));
    }
}
