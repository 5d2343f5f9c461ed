//! Netlink sockets of the kernel's IPsec: requests with their answers, and what it tells by itself.

use std::io;

use netlink_packet_xfrm::XfrmMessage;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};
use rtnetlink::sys::{Socket, SocketAddr};
use zeroize::Zeroizing;

use super::message::wipe;

/// XFRMNLGRP_ACQUIRE and XFRMNLGRP_EXPIRE as bits.
const EVENTS: u32 = 1 | 1 << 1;
/// RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
const ADDRESSES: u32 = 0x10 | 0x100;
/// ESRCH, ENOENT.
const GONE: [i32; 2] = [3, 2];

/// Asks, and waits for the answers, which the kernel has when it takes the request.
#[derive(Debug)]
pub(super) struct Asking {
    socket: Socket,
    sequence: u32,
}

/// The octets of a message.
pub(super) fn octets(message: XfrmMessage, flags: u16, sequence: u32) -> Zeroizing<Vec<u8>> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut octets = Zeroizing::new(vec![0; message.buffer_len()]);
    message.serialize(&mut octets);
    if let NetlinkPayload::InnerMessage(inner) = &mut message.payload {
        wipe(inner);
    }
    octets
}

/// The messages of a datagram.
fn messages(datagram: &[u8]) -> io::Result<Vec<NetlinkMessage<XfrmMessage>>> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<XfrmMessage>::deserialize(rest).map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4).max(4);
        rest = rest.get(length..).unwrap_or_default();
        found.push(message);
    }
    Ok(found)
}

impl Asking {
    /// # Errors
    /// When the kernel has no IPsec.
    pub(super) fn new() -> io::Result<Asking> {
        let mut socket = Socket::new(NETLINK_XFRM)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Asking { socket, sequence: 0 })
    }

    /// Does it.
    ///
    /// # Errors
    /// Why the kernel does not.
    pub(super) fn act(&mut self, message: XfrmMessage) -> io::Result<()> {
        self.ask(message, NLM_F_ACK, |_| {})
    }

    /// Removes something; what is not there is no error.
    ///
    /// # Errors
    /// Why the kernel does not.
    pub(super) fn remove(&mut self, message: XfrmMessage) -> io::Result<()> {
        match self.act(message) {
            Err(error) if error.raw_os_error().is_some_and(|code| GONE.contains(&code)) => Ok(()),
            other => other,
        }
    }

    /// All of a kind.
    ///
    /// # Errors
    /// Why the kernel does not show them.
    pub(super) fn dump(&mut self, message: XfrmMessage) -> io::Result<Vec<XfrmMessage>> {
        let mut found = Vec::new();
        self.ask(message, NLM_F_DUMP, |message| found.push(message))?;
        Ok(found)
    }

    fn ask(&mut self, message: XfrmMessage, flags: u16, mut take: impl FnMut(XfrmMessage)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&octets(message, flags, self.sequence), 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for answer in messages(&datagram)? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(message) => take(message),
                    _ => {}
                }
            }
        }
    }
}

/// Hears what the kernel asks and tells.
pub(super) struct Hearing(pub(super) Socket);

impl Hearing {
    fn on(protocol: isize, groups: u32) -> io::Result<Hearing> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, groups))?;
        socket.set_non_blocking(true)?;
        Ok(Hearing(socket))
    }

    /// States that are wanted and that end.
    ///
    /// # Errors
    /// When the kernel has no IPsec.
    pub(super) fn of_states() -> io::Result<Hearing> {
        Hearing::on(NETLINK_XFRM, EVENTS)
    }

    /// Addresses that come and go.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn of_addresses() -> io::Result<Hearing> {
        Hearing::on(NETLINK_ROUTE, ADDRESSES)
    }

    /// What was told; none when there is nothing left.
    pub(super) fn datagram(&self) -> Option<Vec<u8>> {
        self.0.recv_from_full().ok().map(|(datagram, _)| datagram)
    }

    /// What was told of states; none when there is nothing left.
    pub(super) fn messages(&self) -> Option<Vec<XfrmMessage>> {
        let told = messages(&self.datagram()?).unwrap_or_default();
        Some(
            told.into_iter()
                .filter_map(|message| match message.payload {
                    NetlinkPayload::InnerMessage(inner) => Some(inner),
                    _ => None,
                })
                .collect(),
        )
    }
}
