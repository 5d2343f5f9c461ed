//! The control socket: requests to the daemon's loop, replies back, and events for those who watch.

use std::time::Duration;

use ctl::control::{MAX_REQUEST, Reply, Request, from_line, to_line};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::hub::{Hub, Lines, Tap};
use crate::local::{CLIENTS, LocalSocket};

/// Mode of the control socket: whoever opens it commands the daemon.
pub const MODE: u32 = 0o600;

/// How long a client that does not read may hold up its connection.
pub(crate) const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Why there is no tap.
const NO_LAB: &str = "only a key server that was started with --lab shows decrypted messages";

/// A request with the way back. Dropping `reply` unanswered tells the client that the daemon is stopping.
#[derive(Debug)]
pub struct Asked {
    /// Neither [`Request::Watch`] nor [`Request::Tap`]: those are answered here.
    pub request: Request,
    /// Takes one answer.
    pub reply: oneshot::Sender<Reply>,
    /// Who asks; none over the observe socket, or when the system does not tell.
    pub operator: Option<Operator>,
}

/// The process at the other end of the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator {
    /// Its user.
    pub uid: u32,
    /// Its process ID.
    pub pid: Option<i32>,
}

/// Sends a request to the daemon's loop and waits.
pub(crate) async fn ask(loop_: &mpsc::Sender<Asked>, request: Request, operator: Option<Operator>) -> Reply {
    let (reply, answer) = oneshot::channel();
    let stopping = || Reply::Refused { reason: "the daemon is stopping".to_owned() };
    if loop_.send(Asked { request, reply, operator }).await.is_err() {
        return stopping();
    }
    answer.await.unwrap_or_else(|_| stopping())
}

/// Serves the socket until the task is aborted; requests go to `asked`. `tap` is there in a lab only. The socket's file goes
/// with the task.
pub fn serve(socket: LocalSocket, asked: mpsc::Sender<Asked>, hub: Hub, tap: Option<Tap>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let socket = match socket.listen() {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(target: "gdoi", "a local socket takes no visitors: {error}"),
        };
        let room = std::sync::Arc::new(Semaphore::new(CLIENTS));
        // Visitors end with this task.
        let mut visitors = tokio::task::JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = socket.accept() => stream,
                Some(_) = visitors.join_next() => continue,
            };
            let Ok(permit) = std::sync::Arc::clone(&room).try_acquire_owned() else { continue };
            let (asked, hub, tap) = (asked.clone(), hub.clone(), tap.clone());
            visitors.spawn(async move {
                // A broken connection is its client's news, not ours.
                let _ = visit(stream, &asked, &hub, tap.as_ref()).await;
                drop(permit);
            });
        }
    })
}

async fn visit(
    stream: UnixStream,
    asked: &mpsc::Sender<Asked>,
    hub: &Hub,
    tap: Option<&Tap>,
) -> std::io::Result<()> {
    let operator = stream.peer_cred().ok().map(|peer| Operator { uid: peer.uid(), pid: peer.pid() });
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        (&mut read).take(MAX_REQUEST as u64).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let reason = format!("a request is one line of at most {MAX_REQUEST} octets");
            return send(&mut write, &to_line(&Reply::Refused { reason })?).await;
        }
        let reply = match from_line(&line) {
            // Subscribed before the reply: what happens after the client knows is never missed.
            Ok(Request::Watch) => return send_lines(read, write, hub.subscribe()).await,
            Ok(Request::Tap) => match tap {
                Some(tap) => return send_lines(read, write, tap.subscribe()).await,
                None => Reply::Refused { reason: NO_LAB.to_owned() },
            },
            Ok(request) => ask(asked, request, operator).await,
            Err(error) => Reply::Refused { reason: format!("not a request this daemon knows: {error}") },
        };
        send(&mut write, &to_line(&reply)?).await?;
    }
}

async fn send_lines(
    mut read: BufReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
    mut lines: Lines,
) -> std::io::Result<()> {
    send(&mut write, &to_line(&Reply::done("watching".to_owned()))?).await?;
    let mut octet = [0];
    loop {
        tokio::select! {
            line = lines.next() => match line {
                Some(line) => send(&mut write, &line).await?,
                None => return Ok(()),
            },
            // The client closed, or talks although nothing is asked of it.
            _ = read.read(&mut octet) => return Ok(()),
        }
    }
}

pub(crate) async fn send<W: AsyncWriteExt + Unpin>(write: &mut W, octets: &[u8]) -> std::io::Result<()> {
    tokio::time::timeout(WRITE_LIMIT, write.write_all(octets)).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::client::Client;
    use ctl::event::Event;
    use std::path::{Path, PathBuf};

    /// A daemon that refuses nothing and answers with what it was asked.
    fn daemon(directory: &Path) -> (PathBuf, Hub, JoinHandle<()>) {
        let path = directory.join("control.sock");
        let (hub, (sender, mut asked)) = (Hub::new(), mpsc::channel::<Asked>(4));
        let task = serve(LocalSocket::bind(&path, MODE, "").unwrap(), sender, hub.clone(), None);
        tokio::spawn(async move {
            while let Some(Asked { request, reply, .. }) = asked.recv().await {
                if request != Request::Snapshot {
                    let _ = reply.send(Reply::done(format!("{request:?}")));
                }
            }
        });
        (path, hub, task)
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn requests_are_answered_in_order_on_one_connection() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _hub, _task) = daemon(directory.path());
        let replies = blocking(move || {
            let mut client = Client::connect(&path).unwrap();
            [Request::Version, Request::Register { vpn: None }, Request::Snapshot]
                .map(|r| client.ask(&r).unwrap())
        });
        let [first, second, third] = replies.await;
        assert_eq!(first, Reply::done("Version".to_owned()));
        assert_eq!(second, Reply::done("Register { vpn: None }".to_owned()));
        assert_eq!(third, Reply::Refused { reason: "the daemon is stopping".to_owned() });
    }

    #[tokio::test]
    async fn a_watcher_misses_nothing_after_it_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let (path, hub, task) = daemon(directory.path());
        let mut events = blocking(move || Client::connect(&path).unwrap().watch().unwrap()).await;
        hub.publish(0, &Event::ShowKeys);
        hub.publish(1, &Event::DaemonStopping);
        let reader = blocking(move || {
            let seen = [events.next(), events.next()].map(|event| event.unwrap().unwrap().event);
            (seen, events)
        });
        let (seen, mut events) = reader.await;
        assert_eq!(seen, [Event::ShowKeys, Event::DaemonStopping]);
        task.abort();
        assert!(blocking(move || events.next()).await.is_none());
    }

    #[tokio::test]
    async fn nonsense_and_endless_lines_are_refused() {
        use std::io::{BufRead, Write};
        let directory = tempfile::tempdir().unwrap();
        let (path, _hub, _task) = daemon(directory.path());
        let answers = blocking(move || {
            let mut answers = Vec::new();
            for line in [b"nonsense\n".to_vec(), vec![b'x'; MAX_REQUEST]] {
                let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
                stream.write_all(&line).unwrap();
                let mut answer = String::new();
                std::io::BufReader::new(stream).read_line(&mut answer).unwrap();
                answers.push(answer);
            }
            answers
        });
        let answers = answers.await;
        assert!(answers[0].contains("not a request this daemon knows"), "{answers:?}");
        assert!(answers[1].contains("at most 65536 octets"), "{answers:?}");
    }
}
