//! A UDP relay between a member and its key server, in one process with the test: it records what passes, and loses it
//! when told to.
//!
//! ```text
//! gmd 127.x.y.11:848 <--> 127.x.y.1:A  relay  127.x.y.11:B <--> 127.x.y.1:848 gcksd
//! ```
//!
//! Each end sees the other's true IP address (identities and acknowledgements name it) with another port.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use runtime::clock::Clock;

use crate::LabError;
use crate::capture::Passed;

/// How often a quiet relay looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// A running relay; it ends on drop.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    passed: Mutex<Vec<Passed>>,
    loses: AtomicBool,
    ends: AtomicBool,
}

impl Relay {
    /// A relay between daemons at these addresses. The member must be told [`Relay::address`] instead of the server's.
    ///
    /// # Errors
    /// [`LabError::System`] when there is no socket.
    pub fn start(member: SocketAddr, server: SocketAddr) -> Result<Relay, LabError> {
        let open = |own: SocketAddr, peer: SocketAddr| {
            let socket = UdpSocket::bind(SocketAddr::new(own.ip(), 0))?;
            socket.connect(peer)?;
            socket.set_read_timeout(Some(LOOK))?;
            Ok(socket)
        };
        let to_member = open(server, member).map_err(LabError::system("a socket of the relay"))?;
        let to_server = open(member, server).map_err(LabError::system("a socket of the relay"))?;
        let address = to_member.local_addr().map_err(LabError::system("the relay's address"))?;
        let shared = Arc::new(Shared {
            clock: Clock::start(),
            passed: Mutex::default(),
            loses: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let (to_member, to_server) = (Arc::new(to_member), Arc::new(to_server));
        let pump = |from: &Arc<UdpSocket>, to: &Arc<UdpSocket>, ends: (SocketAddr, SocketAddr)| {
            let (from, to, shared) = (Arc::clone(from), Arc::clone(to), Arc::clone(&shared));
            std::thread::spawn(move || shared.pump(&from, &to, ends))
        };
        let threads = vec![
            pump(&to_member, &to_server, (member, server)),
            pump(&to_server, &to_member, (server, member)),
        ];
        Ok(Relay { address, shared, threads })
    }

    /// Where the member finds the key server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Loses everything from now on, or no longer.
    pub fn lose(&self, all: bool) {
        self.shared.loses.store(all, Ordering::Relaxed);
    }

    /// What has passed so far, under the daemons' own addresses.
    pub fn passed(&self) -> Vec<Passed> {
        self.shared.passed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn pump(&self, from: &UdpSocket, to: &UdpSocket, (sender, receiver): (SocketAddr, SocketAddr)) {
        let mut buffer = vec![0; 65_536];
        while !self.ends.load(Ordering::Relaxed) {
            let length = match from.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                // The other daemon is not there: its port answered that it is closed.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            if self.loses.load(Ordering::Relaxed) {
                continue;
            }
            let octets = buffer.get(..length).unwrap_or_default().to_vec();
            let at = Duration::from_micros(self.clock.now().at.0);
            // Recorded before it is sent: its answer comes after it.
            let record = Passed { at, from: sender, to: receiver, octets: octets.clone() };
            self.passed.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            let _ = to.send(&octets);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_recorded_and_what_is_lost_is_not() {
        let open = |address| {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        let (member, server) = (open("127.0.0.1:0"), open("127.0.0.1:0"));
        let ends = (member.local_addr().unwrap(), server.local_addr().unwrap());
        let relay = Relay::start(ends.0, ends.1).unwrap();
        let mut buffer = [0; 16];
        member.send_to(b"ask", relay.address()).unwrap();
        let (length, seen) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], seen.ip()), (&b"ask"[..], ends.0.ip()));
        relay.lose(true);
        server.send_to(b"lost", seen).unwrap();
        std::thread::sleep(2 * LOOK);
        relay.lose(false);
        server.send_to(b"answer", seen).unwrap();
        let length = member.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"answer");
        let passed: Vec<_> = relay.passed().into_iter().map(|it| (it.from, it.octets)).collect();
        assert_eq!(passed, [(ends.0, b"ask".to_vec()), (ends.1, b"answer".to_vec())]);
    }
}
