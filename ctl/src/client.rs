//! A blocking client of a daemon's local sockets.

use std::io::{self, BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::control::{Reply, Request, Snapshot, from_line, to_line};
use crate::event::Stamped;
use crate::tap::Tapped;

/// Why a daemon gave no answer. Its refusal is an answer: [`Reply::Refused`].
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing listens there, or we may not.
    #[error("no daemon answers on {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}")]
    Broken(#[from] io::Error),
    /// The daemon closed without an answer.
    #[error("the daemon closed the connection without an answer")]
    Closed,
    /// The daemon does not send events.
    #[error("refused: {0}")]
    Refused(String),
    /// The answer is of another version.
    #[error("the answer of the daemon is not understood: {0}")]
    NotUnderstood(String),
}

/// A connection to a control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to a control socket. An answer may take up to a minute: a rekey is signed and stored first.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when nothing listens there or we may not.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = open(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`] when none comes.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.stream.get_mut().write_all(&to_line(request)?)?;
        read(&mut self.stream)?.ok_or(ClientError::Closed)
    }

    /// Asks for events. When this returns, nothing that happens later is missed. The iterator ends when the daemon does;
    /// events this build does not know come as errors and the iterator goes on.
    ///
    /// # Errors
    /// [`ClientError`] when the daemon does not begin to send.
    pub fn watch(self) -> Result<Events, ClientError> {
        self.stream_of(&Request::Watch)
    }

    /// Asks for datagrams, which a daemon in a lab shows. Otherwise like [`Client::watch`].
    ///
    /// # Errors
    /// [`ClientError`] when the daemon does not begin to send.
    pub fn tap(self) -> Result<Taps, ClientError> {
        self.stream_of(&Request::Tap)
    }

    fn stream_of<T>(mut self, request: &Request) -> Result<Lines<T>, ClientError> {
        match self.ask(request)? {
            Reply::Done { .. } => {}
            Reply::Refused { reason } => return Err(ClientError::Refused(reason)),
            Reply::Snapshot(_) | Reply::Plan(_) | Reply::Audit { .. } | Reply::Explained { .. } => {
                return Err(ClientError::NotUnderstood("an answer instead of a stream".to_owned()));
            }
        }
        self.stream.get_ref().set_read_timeout(None)?;
        Ok(Lines::of(self.stream))
    }
}

/// Connects to an observe socket, which sends a snapshot and then events.
///
/// # Errors
/// [`ClientError`] when nothing listens there, or no snapshot comes within 10 s.
pub fn observe(path: &Path) -> Result<(Snapshot, Events), ClientError> {
    let stream = open(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = BufReader::new(stream);
    let snapshot = read(&mut stream)?.ok_or(ClientError::Closed)?;
    stream.get_ref().set_read_timeout(None)?;
    Ok((snapshot, Lines::of(stream)))
}

fn open(path: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(path).map_err(|source| ClientError::Unreachable { path: path.to_owned(), source })
}

fn read<T: DeserializeOwned>(stream: &mut BufReader<UnixStream>) -> Result<Option<T>, ClientError> {
    let mut line = Vec::new();
    if stream.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    from_line(&line).map(Some).map_err(|error| ClientError::NotUnderstood(error.to_string()))
}

/// Events as they come.
pub type Events = Lines<Stamped>;
/// Datagrams as they come and leave.
pub type Taps = Lines<Tapped>;

/// What a daemon sends of its own, as it comes.
#[derive(Debug)]
pub struct Lines<T> {
    stream: BufReader<UnixStream>,
    /// The beginning of a line whose end is still to come.
    line: Vec<u8>,
    ended: bool,
    of: PhantomData<T>,
}

impl<T> Lines<T> {
    fn of(stream: BufReader<UnixStream>) -> Lines<T> {
        Lines { stream, line: Vec::new(), ended: false, of: PhantomData }
    }

    /// A limit for each wait; none waits for ever. A wait that takes longer is [`ClientError::Broken`] with
    /// [`io::ErrorKind::WouldBlock`], and may be repeated: nothing is lost.
    ///
    /// # Errors
    /// [`ClientError::Broken`] for a limit of zero.
    pub fn set_timeout(&self, limit: Option<Duration>) -> Result<(), ClientError> {
        Ok(self.stream.get_ref().set_read_timeout(limit)?)
    }
}

impl<T: DeserializeOwned> Iterator for Lines<T> {
    type Item = Result<T, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.stream.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.is_empty() => {
                self.ended = true;
                None
            }
            Ok(_) => {
                let line = std::mem::take(&mut self.line);
                Some(from_line(&line).map_err(|error| ClientError::NotUnderstood(error.to_string())))
            }
            Err(error) => {
                self.ended = error.kind() != io::ErrorKind::WouldBlock;
                Some(Err(ClientError::Broken(error)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A socket whose one visitor is served by `answer`; the path goes with the value.
    struct Served(PathBuf);

    impl Served {
        fn by(answer: impl FnOnce(BufReader<UnixStream>) + Send + 'static) -> Served {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("ctl-client-{}-{number}.sock", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).unwrap();
            std::thread::spawn(move || answer(BufReader::new(listener.accept().unwrap().0)));
            Served(path)
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_question_gets_its_answer() {
        let server = Served::by(|mut stream| {
            let request: Request = read(&mut stream).unwrap().unwrap();
            let Request::Rekey { group, .. } = request else { panic!("not a rekey") };
            stream.get_mut().write_all(&to_line(&Reply::done(group)).unwrap()).unwrap();
        });
        let mut client = Client::connect(&server.0).unwrap();
        let reply = client.ask(&Request::Rekey { group: "g1".to_owned(), tek: true, kek: true }).unwrap();
        assert_eq!(reply, Reply::done("g1"));
    }

    #[test]
    fn watching_yields_events_until_the_daemon_ends() {
        let server = Served::by(|mut stream| {
            assert_eq!(read::<Request>(&mut stream).unwrap(), Some(Request::Watch));
            let watching = Reply::done("watching".to_owned());
            stream.get_mut().write_all(&to_line(&watching).unwrap()).unwrap();
            stream.get_mut().write_all(&to_line(&Stamped::new(0, Event::LabMode)).unwrap()).unwrap();
            stream.get_mut().write_all(b"{\"time\":\"\",\"event\":\"from_the_future\"}\n").unwrap();
            stream.get_mut().write_all(&to_line(&Stamped::new(1, Event::DaemonStopping)).unwrap()).unwrap();
        });
        let seen: Vec<_> = Client::connect(&server.0).unwrap().watch().unwrap().collect();
        assert!(matches!(&seen[0], Ok(stamped) if stamped.event == Event::LabMode));
        assert!(matches!(&seen[1], Err(ClientError::NotUnderstood(_))));
        assert!(matches!(&seen[2], Ok(stamped) if stamped.event == Event::DaemonStopping));
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_missing_socket_is_unreachable_and_a_silent_close_is_said() {
        let missing = Path::new("/nonexistent/control.sock");
        assert!(matches!(Client::connect(missing), Err(ClientError::Unreachable { .. })));
        let server = Served::by(drop);
        let mut client = Client::connect(&server.0).unwrap();
        // Whether the write or the read notices depends on who is faster.
        assert!(matches!(client.ask(&Request::Version), Err(ClientError::Closed | ClientError::Broken(_))));
    }
}
