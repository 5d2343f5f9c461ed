//! What passes on the network between the members: every frame of the bridge, told apart by what its packet is.

use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::LabError;

/// ETH_P_ALL: every frame, both ways.
const ALL: u16 = 3;
const ETHERNET: usize = 14;
/// How often the thread looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(100);
const ESP: u8 = 50;
const UDP: u8 = 17;
/// The port of ESP in UDP, both ways.
const ESP_IN_UDP: [u8; 4] = [0x11, 0x94, 0x11, 0x94];
/// Packets of LANs in clear that are kept as text.
const KEPT: usize = 20;

/// What was seen. Frames are counted at each port of the bridge they cross.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// ESP between LANs.
    pub esp: u64,
    /// Packets of LANs in clear.
    pub clear: u64,
    /// The first of these, as `protocol source destination`.
    pub examples: Vec<String>,
    /// Everything else: key management, neighbour discovery.
    pub other: u64,
}

/// Frames that are kept.
const FRAMES: usize = 20_000;

/// A thread that sees all frames of this namespace until it is dropped.
#[derive(Debug)]
pub struct Wire {
    seen: Arc<Mutex<Seen>>,
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Begins to look. The namespaces of [`crate::network`] keep the bridge in the one this process is in.
    ///
    /// # Errors
    /// [`LabError`] when packet sockets are not allowed.
    pub fn watch() -> Result<Wire, LabError> {
        let wanted = || LabError::system("a packet socket");
        let protocol = Protocol::from(i32::from(ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).map_err(wanted())?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(wanted())?;
        socket.set_recv_buffer_size(8 << 20).map_err(wanted())?;
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (into, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        let frames = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&frames);
        let thread = std::thread::spawn(move || {
            let mut frame = vec![0; 65536];
            while !ended.load(Ordering::Relaxed) {
                match (&socket).read(&mut frame) {
                    Ok(length) => {
                        let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                        let octets = frame.get(..length).unwrap_or_default();
                        seen.count(octets);
                        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                        if kept.len() < FRAMES {
                            kept.push(octets.to_vec());
                        }
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(_) => break,
                }
            }
        });
        Ok(Wire { seen, frames, stop, thread: Some(thread) })
    }

    /// The first 20000 frames, link-layer headers included.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        std::thread::sleep(PATIENCE);
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything since the beginning. What was sent before this call and is still on its way may be missing.
    pub fn seen(&self) -> Seen {
        // A frame is here as soon as it passed; the thread needs its turn.
        std::thread::sleep(PATIENCE);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn count(&mut self, frame: &[u8]) {
        let Some(Ip { protocol, source, destination, behind }) = Ip::read(frame) else {
            self.other += 1;
            return;
        };
        if !is_of_lan(&source) && !is_of_lan(&destination) {
            self.other += 1;
        } else if protocol == ESP || (protocol == UDP && behind == ESP_IN_UDP) {
            self.esp += 1;
        } else {
            self.clear += 1;
            if self.examples.len() < KEPT {
                self.examples.push(format!("{protocol} {} {}", text(&source), text(&destination)));
            }
        }
    }
}

/// What counts of an IP packet.
struct Ip {
    protocol: u8,
    source: Vec<u8>,
    destination: Vec<u8>,
    /// The four octets behind its header, which has no options.
    behind: Vec<u8>,
}

impl Ip {
    /// The packet in an Ethernet frame.
    fn read(frame: &[u8]) -> Option<Ip> {
        let packet = frame.get(ETHERNET..)?;
        let part = |at: usize, length: usize| packet.get(at..at + length).map(<[u8]>::to_vec);
        let (protocol_at, addresses, length, header) = match frame.get(12..ETHERNET)? {
            [0x08, 0x00] => (9, 12, 4, 20),
            [0x86, 0xdd] => (6, 8, 16, 40),
            _ => return None,
        };
        Some(Ip {
            protocol: *packet.get(protocol_at)?,
            source: part(addresses, length)?,
            destination: part(addresses + length, length)?,
            behind: part(header, 4).unwrap_or_default(),
        })
    }
}

/// 172.16.0.0/12 and 2001:db8:1::/48 and :2::/48.
fn is_of_lan(address: &[u8]) -> bool {
    match address {
        [172, second, _, _] => second & 0xf0 == 16,
        [0x20, 0x01, 0x0d, 0xb8, 0, net, ..] => matches!(net, 1 | 2),
        _ => false,
    }
}

fn text(address: &[u8]) -> String {
    match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(four), _) => std::net::Ipv4Addr::from(four).to_string(),
        (_, Ok(six)) => std::net::Ipv6Addr::from(six).to_string(),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(protocol: u8, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame
    }

    #[test]
    fn esp_clear_packets_and_the_rest_are_told_apart() {
        let mut seen = Seen::default();
        seen.count(&frame(50, [172, 16, 1, 2], [172, 16, 2, 2]));
        seen.count(&frame(1, [172, 16, 1, 2], [172, 16, 2, 2]));
        seen.count(&frame(17, [192, 0, 2, 11], [192, 0, 2, 1]));
        let mut in_udp = frame(17, [172, 16, 1, 2], [172, 16, 2, 2]);
        in_udp.extend(ESP_IN_UDP);
        seen.count(&in_udp);
        seen.count(&[0; 20]);
        let examples = vec!["1 172.16.1.2 172.16.2.2".to_owned()];
        assert_eq!(seen, Seen { esp: 2, clear: 1, examples, other: 2 });
        assert!(is_of_lan(&[0x20, 1, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]));
        assert!(!is_of_lan(&[0x20, 1, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]));
    }
}
