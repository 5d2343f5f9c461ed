//! Datagrams as a capture file: raw IPv4 with UDP, so that Wireshark reads them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};

use crate::LabError;

/// One datagram as it passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Since the capture began.
    pub at: Duration,
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// UDP payload.
    pub octets: Vec<u8>,
}

/// Writes datagrams to a file.
///
/// # Errors
/// [`LabError`] when the file cannot be written, or an address is not IPv4.
pub fn write(path: &Path, datagrams: &[Passed]) -> Result<(), LabError> {
    let wrong = |error: pcap_file::PcapError| LabError::Wrong(format!("{}: {error}", path.display()));
    let file = std::fs::File::create(path).map_err(LabError::system(path.display().to_string()))?;
    let header = PcapHeader { datalink: DataLink::RAW, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(file, header).map_err(wrong)?;
    for datagram in datagrams {
        let packet = packet(datagram).ok_or_else(|| LabError::Wrong("not a datagram of IPv4".to_owned()))?;
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        writer.write_packet(&PcapPacket::new(datagram.at, length, &packet)).map_err(wrong)?;
    }
    Ok(())
}

/// Writes Ethernet frames to a file.
///
/// # Errors
/// [`LabError`] when the file cannot be written.
pub fn write_frames(path: &Path, frames: &[Vec<u8>]) -> Result<(), LabError> {
    let wrong = |error: pcap_file::PcapError| LabError::Wrong(format!("{}: {error}", path.display()));
    let file = std::fs::File::create(path).map_err(LabError::system(path.display().to_string()))?;
    let header = PcapHeader { datalink: DataLink::ETHERNET, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(file, header).map_err(wrong)?;
    for frame in frames {
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        writer.write_packet(&PcapPacket::new(Duration::ZERO, length, frame)).map_err(wrong)?;
    }
    Ok(())
}

/// IPv4 header, UDP header without checksum (RFC 768 allows that), payload.
fn packet(datagram: &Passed) -> Option<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (datagram.from.ip(), datagram.to.ip()) else { return None };
    let udp = u16::try_from(datagram.octets.len() + 8).ok()?;
    let total = udp.checked_add(20)?;
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    // Identification, no fragment, 64 hops, UDP, checksum to come.
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum: u32 =
        ip.chunks(2).map(|pair| pair.iter().fold(0, |sum, octet| sum << 8 | u32::from(*octet))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).ok()?;
    ip.splice(10..12, checksum.to_be_bytes());
    ip.extend(datagram.from.port().to_be_bytes());
    ip.extend(datagram.to.port().to_be_bytes());
    ip.extend(udp.to_be_bytes());
    ip.extend([0, 0]);
    ip.extend(&datagram.octets);
    Some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_written_with_its_headers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("one.pcap");
        let passed = Passed {
            at: Duration::from_millis(1500),
            from: "192.0.2.11:848".parse().unwrap(),
            to: "192.0.2.1:848".parse().unwrap(),
            octets: vec![0xab; 5],
        };
        write(&path, std::slice::from_ref(&passed)).unwrap();
        let mut reader = pcap_file::pcap::PcapReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        let read = reader.next_packet().unwrap().unwrap();
        assert_eq!(read.timestamp, passed.at);
        let octets = read.data.to_vec();
        assert_eq!(octets.len(), 33);
        assert_eq!(octets[..12], [0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0xf6, 0xbf]);
        assert_eq!(octets[12..28], [192, 0, 2, 11, 192, 0, 2, 1, 3, 80, 3, 80, 0, 13, 0, 0]);
        assert!(reader.next_packet().is_none());
    }
}
