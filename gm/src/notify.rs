//! Other programs of this machine that follow the keys: one JSON line per change, as a datagram to a Unix socket of theirs.
//!
//! A datagram that cannot be delivered is lost: what matters is that the member never waits. Lines are those of `gdoictl
//! watch`, without keys.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use ctl::control::to_line;
use ctl::event::{Event, Stamped};

/// Where the lines go.
#[derive(Debug)]
pub struct Notifier {
    path: PathBuf,
    socket: UnixDatagram,
    /// The last line did not arrive; that was said.
    lost: bool,
}

impl Notifier {
    /// For a socket that need not exist yet.
    ///
    /// # Errors
    /// When the system has no socket for us.
    pub fn new(path: PathBuf) -> io::Result<Notifier> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Notifier { path, socket, lost: false })
    }

    /// Tells of an event if keys changed by it; what the operator should know when nobody takes it, once.
    pub fn tell(&mut self, unix_seconds: u64, event: &Event) -> Option<String> {
        if !changes_keys(event) {
            return None;
        }
        let line = to_line(&Stamped::new(unix_seconds, event.clone())).ok()?;
        match self.socket.send_to(&line, &self.path) {
            Ok(_) => {
                self.lost = false;
                None
            }
            Err(error) if !std::mem::replace(&mut self.lost, true) => {
                Some(format!("notify-socket {}: {error}; key changes are not told", self.path.display()))
            }
            Err(_) => None,
        }
    }
}

/// True when the set of keys is another one after it.
fn changes_keys(event: &Event) -> bool {
    matches!(
        event,
        Event::TekInstalled { .. }
            | Event::TekActivated { .. }
            | Event::TekRemoved { .. }
            | Event::TekSpent { .. }
            | Event::KekInstalled { .. }
            | Event::KeysExpired { .. }
            | Event::Registered { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_gets_a_line_per_change_of_keys_and_its_absence_is_said_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let mut notifier = Notifier::new(path.clone()).unwrap();
        let event = Event::TekActivated { vpn: "v".to_owned(), spi: "0x00000007".to_owned() };
        assert!(notifier.tell(0, &event).is_some_and(|said| said.contains("not told")));
        assert_eq!(notifier.tell(0, &event), None, "once");
        let listener = UnixDatagram::bind(&path).unwrap();
        assert_eq!(notifier.tell(0, &Event::LabMode), None);
        assert_eq!(notifier.tell(0, &event), None);
        let mut line = [0; 500];
        let length = listener.recv(&mut line).unwrap();
        let said = std::str::from_utf8(&line[..length]).unwrap();
        let expected = "{\"time\":\"1970-01-01T00:00:00Z\",\"event\":\"tek_activated\",\"vpn\":\"v\",\"spi\":\"0x00000007\"}\n";
        assert_eq!(said, expected);
        // A listener that does not read is no reason to wait.
        let full = (0..10_000).find_map(|_| notifier.tell(0, &event));
        assert!(full.is_some_and(|said| said.contains("not told")));
    }
}
