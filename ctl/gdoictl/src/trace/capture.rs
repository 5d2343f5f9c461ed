//! Messages as a file for Wireshark: IP packets of UDP in a classic pcap file.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use etherparse::PacketBuilder;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};

use super::opened::Shown;

/// Port of NAT traversal, where a marker of four zero octets precedes every message (RFC 3948 section 2.2).
const NAT_TRAVERSAL: u16 = 4500;
/// Hops of the packets written: what the tap saw was at the server.
const HOPS: u8 = 64;

/// The file.
pub struct Capture {
    writer: PcapWriter<File>,
}

impl Capture {
    /// A new file that only its owner reads: it will hold keys.
    ///
    /// # Errors
    /// When it is there already, or cannot be made or written.
    pub fn create(path: &Path) -> Result<Capture, String> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        let header = PcapHeader { datalink: DataLink::RAW, ..PcapHeader::default() };
        let writer = PcapWriter::with_header(file, header);
        Ok(Capture { writer: writer.map_err(|error| format!("{}: {error}", path.display()))? })
    }

    /// Writes one message. It is in the file when this returns.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&mut self, shown: &Shown) -> Result<(), String> {
        let (from, to) = (shown.tapped.from, shown.tapped.to);
        let floats = [from.port(), to.port()].contains(&NAT_TRAVERSAL);
        let marker: &[u8] = if floats { &[0; 4] } else { &[] };
        let Some(packet) = packet(from, to, &[marker, &shown.message].concat()) else { return Ok(()) };
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let packet = PcapPacket::new(Duration::from_micros(shown.tapped.unix_micros), length, &packet);
        self.writer.write_packet(&packet).map(drop).map_err(|error| error.to_string())
    }
}

/// None for addresses of two families, which no packet has.
fn packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let builder = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), HOPS)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), HOPS)
        }
        (SocketAddr::V4(_), SocketAddr::V6(_)) | (SocketAddr::V6(_), SocketAddr::V4(_)) => return None,
    };
    let builder = builder.udp(from.port(), to.port());
    let mut octets = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut octets, payload).ok()?;
    Some(octets)
}
