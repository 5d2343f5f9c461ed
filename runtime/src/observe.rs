//! The observe socket: a snapshot, then events, until the client closes. Nothing a client says is
//! ever looked at, and no key octets are ever written to it.

use ctl::control::{Reply, Request, to_line};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::control::{Asked, ask, send};
use crate::hub::Hub;
use crate::local::{CLIENTS, LocalSocket};

/// Mode of the observe socket: root and `socket-group`.
pub const MODE: u32 = 0o660;

/// Serves the socket until the task is aborted; snapshots are asked of the daemon's loop as [`Request::Snapshot`]. The
/// socket's file goes with the task.
pub fn serve(socket: LocalSocket, asked: mpsc::Sender<Asked>, hub: Hub) -> JoinHandle<()> {
    tokio::spawn(async move {
        let socket = match socket.listen() {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(target: "gdoi", "a local socket takes no visitors: {error}"),
        };
        let room = std::sync::Arc::new(Semaphore::new(CLIENTS));
        let mut visitors = tokio::task::JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = socket.accept() => stream,
                Some(_) = visitors.join_next() => continue,
            };
            let Ok(permit) = std::sync::Arc::clone(&room).try_acquire_owned() else { continue };
            let (asked, hub) = (asked.clone(), hub.clone());
            visitors.spawn(async move {
                let _ = visit(stream, &asked, &hub).await;
                drop(permit);
            });
        }
    })
}

async fn visit(mut stream: UnixStream, asked: &mpsc::Sender<Asked>, hub: &Hub) -> std::io::Result<()> {
    // Events first, then the snapshot: an event may repeat what the snapshot shows, but none is missed.
    let mut lines = hub.subscribe();
    let Reply::Snapshot(snapshot) = ask(asked, Request::Snapshot, None).await else { return Ok(()) };
    send(&mut stream, &to_line(&snapshot.without_keys())?).await?;
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = hung_up(&stream) => return Ok(()),
        };
        let Some(line) = line else { return Ok(()) };
        send(&mut stream, &line).await?;
    }
}

/// Waits until the client closes or talks: either way its visit is over. What it says is not looked at.
async fn hung_up(stream: &UnixStream) {
    // Readiness alone may be a false alarm; an octet that can be taken, an end or an error is none.
    while stream.ready(Interest::READABLE).await.is_ok() {
        match stream.try_read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::client;
    use ctl::event::Event;
    use ctl::observe::{GmSnapshot, KekView, Snapshot, VpnView};
    use std::io::Write;

    #[tokio::test]
    async fn a_visitor_gets_the_snapshot_without_keys_and_then_events_and_must_not_talk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("observe.sock");
        let (hub, (sender, mut asked)) = (Hub::new(), mpsc::channel::<Asked>(1));
        let _task = serve(LocalSocket::bind(&path, MODE, "").unwrap(), sender, hub.clone());
        tokio::spawn(async move {
            while let Some(Asked { reply, .. }) = asked.recv().await {
                let kek = KekView { key_hex: Some("secret".to_owned()), ..KekView::default() };
                let vpns = vec![VpnView { kek: Some(kek), ..VpnView::default() }];
                let _ = reply.send(Reply::Snapshot(Box::new(Snapshot::Gm(GmSnapshot {
                    vpns,
                    ..GmSnapshot::default()
                }))));
            }
        });
        let visitor = path.clone();
        let (snapshot, mut events) =
            tokio::task::spawn_blocking(move || client::observe(&visitor).unwrap()).await.unwrap();
        let Snapshot::Gm(member) = snapshot else { panic!("not a member") };
        assert_eq!(member.vpns[0].kek.as_ref().unwrap().key_hex, None);
        hub.publish(0, &Event::LabMode);
        let event = tokio::task::spawn_blocking(move || events.next().unwrap().unwrap().event).await.unwrap();
        assert_eq!(event, Event::LabMode);

        let talker = tokio::task::spawn_blocking(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            let mut read = stream.try_clone().unwrap();
            let _ = stream.write_all(b"{}\n");
            // Ends, with or without the snapshot, instead of waiting for events.
            let _ = std::io::copy(&mut read, &mut std::io::sink());
        });
        talker.await.unwrap();
    }
}
