//! The queue between the threads that read sockets and the daemon's loop: bounded in datagrams and in octets, so that long
//! datagrams fill no memory that short ones would not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ike::io::Datagram;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};

/// Octets of datagrams that may wait before further ones are dropped and counted. Each thread may be past it by one.
pub const QUEUE_OCTETS: usize = 8 << 20;

/// The loop's end.
#[derive(Debug)]
pub struct Incoming {
    receiver: mpsc::Receiver<Datagram>,
    waiting: Arc<AtomicUsize>,
}

/// A thread's end.
#[derive(Debug, Clone)]
pub(crate) struct Inlet {
    sender: mpsc::Sender<Datagram>,
    waiting: Arc<AtomicUsize>,
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Taken,
    Full,
    Closed,
}

/// A queue for so many datagrams.
pub(crate) fn queue(datagrams: usize) -> (Inlet, Incoming) {
    let (sender, receiver) = mpsc::channel(datagrams);
    let waiting = Arc::default();
    (Inlet { sender, waiting: Arc::clone(&waiting) }, Incoming { receiver, waiting })
}

impl Inlet {
    /// Adds one where there is room; `taken` is called before anybody can have it.
    pub(crate) fn put(&self, datagram: Datagram, taken: impl FnOnce()) -> Put {
        let length = datagram.octets.len();
        if self.waiting.load(Ordering::Relaxed) + length > QUEUE_OCTETS {
            return if self.sender.is_closed() { Put::Closed } else { Put::Full };
        }
        match self.sender.try_reserve() {
            Ok(place) => {
                self.waiting.fetch_add(length, Ordering::Relaxed);
                taken();
                place.send(datagram);
                Put::Taken
            }
            Err(TrySendError::Full(())) => Put::Full,
            Err(TrySendError::Closed(())) => Put::Closed,
        }
    }
}

impl Incoming {
    /// The next one; none when no thread reads any more. Loses nothing when it is given up.
    pub async fn recv(&mut self) -> Option<Datagram> {
        let datagram = self.receiver.recv().await?;
        Some(self.left(datagram))
    }

    /// The next one that waits already.
    ///
    /// # Errors
    /// When none waits, or no thread reads any more.
    pub fn try_recv(&mut self) -> Result<Datagram, TryRecvError> {
        let datagram = self.receiver.try_recv()?;
        Ok(self.left(datagram))
    }

    fn left(&self, datagram: Datagram) -> Datagram {
        self.waiting.fetch_sub(datagram.octets.len(), Ordering::Relaxed);
        datagram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(length: usize) -> Datagram {
        let address = "127.0.0.1:848".parse().unwrap();
        Datagram { local: address, peer: address, octets: vec![0; length].into() }
    }

    #[test]
    fn octets_are_bounded_as_datagrams_are_and_what_left_makes_room() {
        let (inlet, mut incoming) = queue(16_384);
        let long = 65_000;
        let mut counted = 0;
        while inlet.put(datagram(long), || counted += 1) == Put::Taken {}
        assert_eq!(counted, QUEUE_OCTETS / long);
        assert_eq!(incoming.try_recv().unwrap().octets.len(), long);
        assert_eq!(inlet.put(datagram(long), || ()), Put::Taken);
        assert_eq!(inlet.put(datagram(long), || panic!("it is full")), Put::Full);
        while incoming.try_recv().is_ok() {}
        let taken = (0..20_000).filter(|_| inlet.put(datagram(100), || ()) == Put::Taken).count();
        assert_eq!(taken, 16_384);
        drop(incoming);
        assert_eq!(inlet.put(datagram(1), || ()), Put::Closed);
    }
}
