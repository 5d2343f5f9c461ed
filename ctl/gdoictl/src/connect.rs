//! Finding the daemon's socket, and asking it.

use std::path::{Path, PathBuf};

use ctl::client::{self, Client, ClientError, Events, Taps};
use ctl::control::{GCKS_CONTROL, GM_CONTROL, Reply, Request};
use ctl::observe::{GcksSnapshot, GmSnapshot, Snapshot};

use crate::Failure;

/// Which daemon, by its socket.
#[derive(Debug)]
pub struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    /// The key server: `socket`, or its default.
    pub fn server(socket: Option<&Path>) -> Daemon {
        Daemon { socket: socket.unwrap_or(Path::new(GCKS_CONTROL)).to_owned() }
    }

    /// The member: `socket`, or its default.
    pub fn member(socket: Option<&Path>) -> Daemon {
        Daemon { socket: socket.unwrap_or(Path::new(GM_CONTROL)).to_owned() }
    }

    /// Whichever runs here.
    ///
    /// # Errors
    /// [`Failure::Usage`] when both do, [`Failure::Unreachable`] when none does.
    pub fn either(socket: Option<&Path>) -> Result<Daemon, Failure> {
        match socket {
            Some(path) => Ok(Daemon { socket: path.to_owned() }),
            None => choose(&[Path::new(GCKS_CONTROL), Path::new(GM_CONTROL)]),
        }
    }

    /// Asks over the control socket.
    ///
    /// # Errors
    /// [`Failure::Refused`] with the daemon's reason, or [`Failure::Unreachable`].
    pub fn ask(&self, request: &Request) -> Result<Reply, Failure> {
        match Client::connect(&self.socket)?.ask(request)? {
            Reply::Refused { reason } => Err(Failure::Refused(reason)),
            reply => Ok(reply),
        }
    }

    /// Events from now on, over either socket.
    ///
    /// # Errors
    /// As [`Daemon::ask`].
    pub fn watch(&self) -> Result<Events, Failure> {
        match Client::connect(&self.socket).and_then(Client::watch) {
            Ok(events) => Ok(events),
            Err(error) => Ok(self.observe(error)?.1),
        }
    }

    /// Datagrams from now on, over the control socket.
    ///
    /// # Errors
    /// As [`Daemon::ask`].
    pub fn tap(&self) -> Result<Taps, Failure> {
        match Client::connect(&self.socket)?.tap() {
            Err(ClientError::Refused(reason)) => Err(Failure::Refused(reason)),
            taps => Ok(taps?),
        }
    }

    /// What is, counted; over an observe socket with every member.
    ///
    /// # Errors
    /// As [`Daemon::ask`].
    pub fn summary(&self) -> Result<Snapshot, Failure> {
        self.look(&Request::Summary)
    }

    fn snapshot(&self) -> Result<Snapshot, Failure> {
        self.look(&Request::Snapshot)
    }

    fn look(&self, request: &Request) -> Result<Snapshot, Failure> {
        match Client::connect(&self.socket).and_then(|mut client| client.ask(request)) {
            Ok(Reply::Snapshot(snapshot)) => Ok(*snapshot),
            Ok(Reply::Refused { reason }) => Err(Failure::Refused(reason)),
            Ok(Reply::Done { .. } | Reply::Plan(_) | Reply::Audit { .. } | Reply::Explained { .. }) => {
                Err(Failure::Refused("the daemon sent no snapshot".to_owned()))
            }
            Err(error) => Ok(self.observe(error)?.0),
        }
    }

    /// After the control socket failed: `--socket` may name an observe socket, which never answers; and who may not open
    /// the control socket may open the observe socket beside it. If neither helps, the first error is the one to tell.
    fn observe(&self, error: ClientError) -> Result<(Snapshot, Events), Failure> {
        let observe = match &error {
            ClientError::Unreachable { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                self.socket.with_file_name("observe.sock")
            }
            ClientError::Closed | ClientError::Broken(_) | ClientError::NotUnderstood(_) => {
                self.socket.clone()
            }
            ClientError::Unreachable { .. } | ClientError::Refused(_) => return Err(error.into()),
        };
        client::observe(&observe).map_err(|_| error.into())
    }

    /// The key server's snapshot.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the socket is a member's.
    pub fn gcks(&self) -> Result<GcksSnapshot, Failure> {
        match self.snapshot()? {
            Snapshot::Gcks(snapshot) => Ok(snapshot),
            Snapshot::Gm(_) => Err(Failure::Usage(format!("{} is a group member's", self.socket.display()))),
        }
    }

    /// The member's snapshot.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the socket is a key server's.
    pub fn gm(&self) -> Result<GmSnapshot, Failure> {
        match self.snapshot()? {
            Snapshot::Gm(snapshot) => Ok(snapshot),
            Snapshot::Gcks(_) => Err(Failure::Usage(format!("{} is a key server's", self.socket.display()))),
        }
    }
}

fn choose(defaults: &[&Path]) -> Result<Daemon, Failure> {
    let names = || defaults.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let found: Vec<&&Path> = defaults.iter().filter(|path| path.exists()).collect();
    match found.as_slice() {
        [one] => Ok(Daemon { socket: one.to_path_buf() }),
        [] => Err(Failure::Unreachable(format!("no daemon here: neither {} exists", names().join(" nor ")))),
        _ => Err(Failure::Usage(format!(
            "several daemons here, name one: --socket {}",
            names().join(" or --socket ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_is_found_two_must_be_told_apart_and_none_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        assert!(matches!(choose(&[&a, &b]), Err(Failure::Unreachable(_))));
        std::fs::write(&b, "").unwrap();
        assert_eq!(choose(&[&a, &b]).unwrap().socket, b);
        std::fs::write(&a, "").unwrap();
        assert!(matches!(choose(&[&a, &b]), Err(Failure::Usage(_))));
    }
}
