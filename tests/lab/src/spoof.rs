//! A stranger on the wire: ESP between the LANs that nobody's key opens.

use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

use crate::LabError;
use crate::network::{MEMBERS, Network};

/// IPPROTO_RAW: the packet comes with its IP header.
const RAW: i32 = 255;
const ESP: u8 = 50;
/// The host behind the first member.
const TO: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 2);
/// Octets of a packet.
const LENGTH: u8 = 80;

impl Network {
    /// Sends `count` packets of ESP to the host behind the first member, from the machine of the second member, each from
    /// another address of the second LAN and under another SPI, as fast as they go; how many the system took.
    ///
    /// # Errors
    /// [`LabError`] without namespaces.
    pub fn spoof_esp(&self, count: u32) -> Result<u32, LabError> {
        self.inside(MEMBERS[1], || {
            let wanted = || LabError::system("a raw socket in the namespace of a member");
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW))).map_err(wanted())?;
            let to = SocketAddrV4::new(TO, 0).into();
            let sent = (0..count).filter(|number| socket.send_to(&packet(*number), &to).is_ok());
            Ok(u32::try_from(sent.count()).unwrap_or(u32::MAX))
        })?
    }
}

/// The packet of that number.
fn packet(number: u32) -> [u8; LENGTH as usize] {
    let mut packet = [0x5a; LENGTH as usize];
    let source = Ipv4Addr::new(172, 16, 2, (number % 250) as u8 + 3);
    // Scattered over the upper half of all SPIs.
    let spi = number.wrapping_mul(0x9e37_79b1) | 0x8000_0000;
    let head = [0x45, 0, 0, LENGTH, 0, 0, 0, 0, 64, ESP, 0, 0];
    let parts = [&head[..], &source.octets(), &TO.octets(), &spi.to_be_bytes(), &number.to_be_bytes()];
    let octets = parts.into_iter().flatten().copied();
    packet.iter_mut().zip(octets).for_each(|(to, from)| *to = from);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_is_esp_with_an_spi_of_its_own() {
        let mut spis: Vec<[u8; 4]> = (0..1000)
            .map(|number| {
                let packet = packet(number);
                assert_eq!((packet[0], packet[9], &packet[12..15]), (0x45, 50, &[172, 16, 2][..]));
                [packet[20], packet[21], packet[22], packet[23]]
            })
            .collect();
        spis.sort_unstable();
        spis.dedup();
        assert!(spis.len() > 990, "{}", spis.len());
    }
}
