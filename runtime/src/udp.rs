//! UDP sockets: one blocking thread per socket reads, the daemon's loop writes.
//!
//! An answer leaves from the address its question came to, also on a wildcard socket: the address comes and goes as
//! packet information (`IP_PKTINFO`, RFC 3542 for IPv6). Sockets for NAT traversal carry a non-ESP marker of 4 zero
//! octets before each message (RFC 3948 section 2.2); it is taken off and put on here.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ike::io::Datagram;
use ike::phase1::nat::KEEPALIVE;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg,
    sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket as RawSocket, Type};
use thiserror::Error;

use crate::incoming::{self, Incoming, Inlet, Put};

/// Receive buffer asked of the system, in octets: several thousand messages while everyone registers at once.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Datagrams that may wait for the daemon's loop before further ones are dropped and counted.
pub const QUEUE: usize = 16_384;

/// Hops of a PUSH by multicast: as far as unicast goes, since the groups of RFC 2365 end where the network says so.
const MULTICAST_HOPS: u32 = 64;

/// Before an ISAKMP message on a NAT traversal port (RFC 3948 section 2.2).
const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// A socket to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// Address and port; `0.0.0.0` and `[::]` mean all of their family. Port 0: any free one.
    pub address: SocketAddr,
    /// True on a NAT traversal port: messages carry the non-ESP marker.
    pub marker: bool,
}

/// Why a socket cannot be opened.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process has the port.
    #[error("UDP {0} is in use by another process")]
    InUse(SocketAddr),
    /// Ports below 1024 need a right this process lacks.
    #[error("UDP {0} may not be opened: run as root or with CAP_NET_BIND_SERVICE")]
    Denied(SocketAddr),
    /// The machine has no such address.
    #[error("UDP {0}: this machine has no such address")]
    NoSuchAddress(SocketAddr),
    /// Something else.
    #[error("UDP {address} cannot be opened: {source}")]
    System {
        /// The socket.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What the sockets counted since they were opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Datagrams handed to the loop.
    pub received: u64,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams dropped because the loop was [`QUEUE`] behind.
    pub overflowed: u64,
    /// Datagrams on a NAT traversal port that are no ISAKMP: ESP, keep-alives.
    pub not_isakmp: u64,
    /// Datagrams the system refused to send, or no socket could.
    pub send_errors: u64,
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
    overflowed: AtomicU64,
    not_isakmp: AtomicU64,
    send_errors: AtomicU64,
}

#[derive(Debug)]
struct Socket {
    inner: UdpSocket,
    local: SocketAddr,
    marker: bool,
}

/// The open sockets. Dropping it ends the reading threads.
#[derive(Debug)]
pub struct Sockets {
    sockets: Vec<Arc<Socket>>,
    counters: Arc<Counters>,
    // Closing this end wakes every reading thread.
    stop: Vec<UnixStream>,
    inlet: Option<Inlet>,
    joined: BTreeMap<SocketAddr, Joined>,
}

/// A multicast group that is listened to.
#[derive(Debug)]
struct Joined {
    interface: u32,
    own: IpAddr,
    socket: Arc<Socket>,
    /// Ends the thread of a socket of the group's own; none when it came to one of the others.
    _stop: Option<UnixStream>,
}

impl Sockets {
    /// Opens all, or none.
    ///
    /// # Errors
    /// [`BindError`] of the first that cannot be opened.
    pub fn bind(listen: &[Listen]) -> Result<Sockets, BindError> {
        let sockets =
            listen.iter().map(|listen| Socket::bind(*listen).map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Sockets {
            sockets,
            counters: Arc::default(),
            stop: Vec::new(),
            inlet: None,
            joined: BTreeMap::new(),
        })
    }

    /// Opens `listen`, and beside them sockets for NAT traversal: those all or none, since another IKE daemon on this
    /// machine may have their port. The error that left them out comes along.
    ///
    /// # Errors
    /// [`BindError`] of the first of `listen` that cannot be opened.
    pub fn bind_with_nat_traversal(
        listen: &[SocketAddr],
        nat_traversal: &[SocketAddr],
    ) -> Result<(Sockets, Option<BindError>), BindError> {
        let open = |addresses: &[SocketAddr], marker| {
            let listen: Vec<Listen> =
                addresses.iter().map(|address| Listen { address: *address, marker }).collect();
            Sockets::bind(&listen)
        };
        let mut sockets = open(listen, false)?;
        match open(nat_traversal, true) {
            Ok(floated) => {
                sockets.sockets.extend(floated.sockets);
                Ok((sockets, None))
            }
            Err(error) => Ok((sockets, Some(error))),
        }
    }

    /// Where those for NAT traversal listen.
    pub fn nat_traversal(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter(|socket| socket.marker).map(|socket| socket.local).collect()
    }

    /// Where the others do.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter(|socket| !socket.marker).map(|socket| socket.local).collect()
    }

    /// Where all listen, with the real ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|socket| socket.local).collect()
    }

    /// Octets of the smallest receive buffer the system granted, as it counts them.
    pub fn receive_buffer(&self) -> usize {
        let granted = |socket: &Arc<Socket>| SockRef::from(&socket.inner).recv_buffer_size();
        self.sockets.iter().filter_map(|socket| granted(socket).ok()).min().unwrap_or(0)
    }

    /// Starts one reading thread per socket. The queue holds at most [`QUEUE`] datagrams of [`incoming::QUEUE_OCTETS`]
    /// together; what does not fit is dropped and counted, as the network would.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn receive(&mut self) -> io::Result<Incoming> {
        self.receive_within(QUEUE)
    }

    /// As [`Sockets::receive`] with room for `queue` datagrams.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn receive_within(&mut self, queue: usize) -> io::Result<Incoming> {
        let (inlet, incoming) = incoming::queue(queue);
        for socket in &self.sockets {
            self.stop.push(read_in_a_thread(Arc::clone(socket), inlet.clone(), Arc::clone(&self.counters))?);
        }
        self.inlet = Some(inlet);
        Ok(incoming)
    }

    /// Listens to a multicast group, on the interface of that name; without a name on the one that has our address `own`.
    /// Does nothing when that is so already. [`Sockets::receive`] must have been called.
    ///
    /// # Errors
    /// What the system said.
    pub fn join(&mut self, group: SocketAddr, interface: Option<&str>, own: IpAddr) -> io::Result<()> {
        let index = match interface {
            Some(name) => if_nametoindex(name)?,
            None => index_of(own),
        };
        if self.joined.get(&group).is_some_and(|joined| (joined.interface, joined.own) == (index, own)) {
            return Ok(());
        }
        self.leave(group);
        let wildcard = |socket: &&Arc<Socket>| {
            !socket.marker
                && socket.local.ip().is_unspecified()
                && (socket.local.port(), socket.local.is_ipv4()) == (group.port(), group.is_ipv4())
        };
        let (socket, stop) = match self.sockets.iter().find(wildcard) {
            Some(socket) => (Arc::clone(socket), None),
            None => {
                let socket = Arc::new(Socket::bind_shared(group)?);
                let inlet = self.inlet.clone().ok_or(io::ErrorKind::NotConnected)?;
                let stop = read_in_a_thread(Arc::clone(&socket), inlet, Arc::clone(&self.counters))?;
                (socket, Some(stop))
            }
        };
        let inner = SockRef::from(&socket.inner);
        match (group.ip(), own) {
            (IpAddr::V4(group), IpAddr::V4(own)) if index == 0 => inner.join_multicast_v4(&group, &own)?,
            (IpAddr::V4(group), _) => {
                inner.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))?
            }
            (IpAddr::V6(group), _) => inner.join_multicast_v6(&group, index)?,
        }
        self.joined.insert(group, Joined { interface: index, own, socket, _stop: stop });
        Ok(())
    }

    /// Listens to a multicast group no more.
    pub fn leave(&mut self, group: SocketAddr) {
        let Some(joined) = self.joined.remove(&group) else { return };
        let inner = SockRef::from(&joined.socket.inner);
        // Without it the interface is gone, and with it the membership.
        let _ = match (group.ip(), joined.own) {
            (IpAddr::V4(group), IpAddr::V4(own)) if joined.interface == 0 => {
                inner.leave_multicast_v4(&group, &own)
            }
            (IpAddr::V4(group), _) => {
                inner.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(joined.interface))
            }
            (IpAddr::V6(group), _) => inner.leave_multicast_v6(&group, joined.interface),
        };
    }

    /// Multicast groups that are listened to.
    pub fn joined(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.joined.keys().copied()
    }

    /// Sends to a multicast group through an interface, from the socket that answers would come to.
    ///
    /// # Errors
    /// What the system said, counted too; [`io::ErrorKind::AddrNotAvailable`] without a socket of its address family.
    pub fn send_multicast(&self, octets: &[u8], group: SocketAddr, interface: &str) -> io::Result<()> {
        let family = || self.sockets.iter().filter(|it| !it.marker && it.local.is_ipv4() == group.is_ipv4());
        let any = family().find(|socket| socket.local.ip().is_unspecified());
        let send = || {
            let socket = any.or_else(|| family().next()).ok_or(io::ErrorKind::AddrNotAvailable)?;
            let index = if_nametoindex(interface)?;
            socket.send_through(octets, socket.local, group, index)
        };
        let result = send();
        let counter = if result.is_ok() { &self.counters.sent } else { &self.counters.send_errors };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Sends one datagram from `datagram.local`. An unspecified local address lets the system choose.
    ///
    /// # Errors
    /// What the system said, counted too; [`io::ErrorKind::AddrNotAvailable`] when no socket fits `local`.
    pub fn send(&self, datagram: &Datagram) -> io::Result<()> {
        let result = self
            .socket_for(datagram.local)
            .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
            .and_then(|socket| socket.send(&datagram.octets, datagram.local, datagram.peer));
        let counter = if result.is_ok() { &self.counters.sent } else { &self.counters.send_errors };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Sends the same octets to many, `(local, peer)` each; how many the system took. One failure stops nobody else.
    pub fn send_many(&self, octets: &[u8], to: &[(SocketAddr, SocketAddr)]) -> usize {
        let sent = to
            .iter()
            .filter(|(local, peer)| {
                self.socket_for(*local).is_some_and(|socket| socket.send(octets, *local, *peer).is_ok())
            })
            .count();
        self.counters.sent.fetch_add(sent as u64, Ordering::Relaxed);
        self.counters.send_errors.fetch_add((to.len() - sent) as u64, Ordering::Relaxed);
        sent
    }

    /// Counters since the sockets were opened.
    pub fn counters(&self) -> UdpCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UdpCounters {
            received: read(&self.counters.received),
            sent: read(&self.counters.sent),
            overflowed: read(&self.counters.overflowed),
            not_isakmp: read(&self.counters.not_isakmp),
            send_errors: read(&self.counters.send_errors),
        }
    }

    /// The socket bound to `local`, else the wildcard one of its family and port.
    fn socket_for(&self, local: SocketAddr) -> Option<&Arc<Socket>> {
        let same_port = |socket: &&Arc<Socket>| {
            socket.local.port() == local.port() && socket.local.is_ipv4() == local.is_ipv4()
        };
        let exact = self.sockets.iter().filter(same_port).find(|socket| socket.local.ip() == local.ip());
        // What answers a multicast leaves from its port, which may be that of the group's own socket alone.
        let shared = || self.joined.values().map(|joined| &joined.socket).find(same_port);
        exact
            .or_else(|| {
                self.sockets.iter().filter(same_port).find(|socket| socket.local.ip().is_unspecified())
            })
            .or_else(shared)
    }
}

fn read_in_a_thread(socket: Arc<Socket>, inlet: Inlet, counters: Arc<Counters>) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    std::thread::Builder::new()
        .name(format!("udp {}", socket.local.port()))
        .spawn(move || socket.read_all(&theirs, &inlet, &counters))?;
    Ok(ours)
}

/// The interface that has an address; 0, which lets the system choose, when none has.
fn index_of(own: IpAddr) -> u32 {
    let Ok(mut all) = getifaddrs() else { return 0 };
    let has = |address: &SockaddrStorage| peer_address(address).is_some_and(|it| it.ip() == own);
    let name = all.find(|it| it.address.as_ref().is_some_and(has)).map(|it| it.interface_name);
    name.and_then(|name| if_nametoindex(name.as_str()).ok()).unwrap_or(0)
}

/// The address this machine would send from to reach `peer`; no packet is sent.
///
/// # Errors
/// When there is no route.
pub fn source_for(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr =
        if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

impl Socket {
    fn bind(listen: Listen) -> Result<Socket, BindError> {
        let address = listen.address;
        let refuse = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse(address),
            io::ErrorKind::PermissionDenied => BindError::Denied(address),
            io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress(address),
            _ => BindError::System { address, source },
        };
        let open = || -> io::Result<UdpSocket> {
            let socket = RawSocket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                socket.set_multicast_hops_v6(MULTICAST_HOPS)?;
            } else {
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
                socket.set_multicast_ttl_v4(MULTICAST_HOPS)?;
                // Only what this socket joined, not what anybody on this machine did.
                socket.set_multicast_all_v4(false)?;
            }
            // Beyond net.core.rmem_max only with CAP_NET_ADMIN; without it, as much as the system allows.
            if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
                let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
            }
            socket.bind(&address.into())?;
            Ok(socket.into())
        };
        let inner = open().map_err(refuse)?;
        let local = inner.local_addr().map_err(refuse)?;
        Ok(Socket { inner, local, marker: listen.marker })
    }

    /// A socket of a multicast group's own address, which others on this machine may have too.
    fn bind_shared(group: SocketAddr) -> io::Result<Socket> {
        let socket = RawSocket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        match group {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
        }
        socket.bind(&group.into())?;
        Ok(Socket { inner: socket.into(), local: group, marker: false })
    }

    /// Reads until the other end of `stop` closes or nobody wants datagrams any more.
    fn read_all(&self, stop: &UnixStream, inlet: &Inlet, counters: &Counters) {
        let mut buffer = vec![0; 65_536];
        loop {
            match self.read(&mut buffer) {
                Ok(Some(datagram)) => {
                    // Counted first: whoever has the datagram finds it counted.
                    let count = |counter: &AtomicU64| {
                        counter.fetch_add(1, Ordering::Relaxed);
                    };
                    match inlet.put(datagram, || count(&counters.received)) {
                        Put::Taken => {}
                        Put::Full => count(&counters.overflowed),
                        Put::Closed => return,
                    }
                }
                Ok(None) => {
                    counters.not_isakmp.fetch_add(1, Ordering::Relaxed);
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    let mut wait = [
                        PollFd::new(self.inner.as_fd(), PollFlags::POLLIN),
                        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                    ];
                    let _ = poll(&mut wait, PollTimeout::NONE);
                    if wait[1].any().unwrap_or(false) {
                        return;
                    }
                    continue;
                }
                // Anything else is one message's misfortune (an ICMP error, memory); slow down so that it cannot spin.
                Err(_) => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    continue;
                }
            };
        }
    }

    /// The next datagram; none for one that is no ISAKMP; EAGAIN when none waits.
    fn read(&self, buffer: &mut [u8]) -> Result<Option<Datagram>, Errno> {
        let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.inner.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let length = message.bytes;
        let peer = message.address.as_ref().and_then(peer_address);
        let mut local = self.local;
        for item in message.cmsgs()? {
            match item {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let to = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                    let ours = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                    local.set_ip(if to.is_multicast() { to } else { ours }.into());
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    let scope = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                    local = SocketAddrV6::new(address, self.local.port(), 0, scope).into();
                }
                _ => {}
            }
        }
        let octets = &buffer[..length];
        let octets = if self.marker { octets.strip_prefix(&NON_ESP_MARKER) } else { Some(octets) };
        let (Some(peer), Some(octets)) = (peer, octets) else { return Ok(None) };
        Ok(Some(Datagram { local, peer, octets: Bytes::copy_from_slice(octets) }))
    }

    fn send(&self, octets: &[u8], local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
        let interface = if let SocketAddr::V6(local) = local { local.scope_id() } else { 0 };
        self.send_through(octets, local, peer, interface)
    }

    fn send_through(
        &self,
        octets: &[u8],
        local: SocketAddr,
        peer: SocketAddr,
        interface: u32,
    ) -> io::Result<()> {
        // A keep-alive is nothing but its octet (RFC 3948 section 2.3).
        let marker: &[u8] = if self.marker && octets != KEEPALIVE { &NON_ESP_MARKER } else { &[] };
        let parts = [IoSlice::new(marker), IoSlice::new(octets)];
        let (descriptor, flags) = (self.inner.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        let sent = match (local, peer) {
            (SocketAddr::V4(local), SocketAddr::V4(peer)) => {
                let zero = libc::in_addr { s_addr: 0 };
                let source = libc::in_addr { s_addr: u32::from_ne_bytes(local.ip().octets()) };
                let ipi_ifindex = libc::c_int::try_from(interface).unwrap_or(0);
                let info = libc::in_pktinfo { ipi_ifindex, ipi_spec_dst: source, ipi_addr: zero };
                sendmsg(
                    descriptor,
                    &parts,
                    &[ControlMessage::Ipv4PacketInfo(&info)],
                    flags,
                    Some(&SockaddrIn::from(peer)),
                )?
            }
            (SocketAddr::V6(local), SocketAddr::V6(peer)) => {
                let source = libc::in6_addr { s6_addr: local.ip().octets() };
                let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: interface };
                sendmsg(
                    descriptor,
                    &parts,
                    &[ControlMessage::Ipv6PacketInfo(&info)],
                    flags,
                    Some(&SockaddrIn6::from(peer)),
                )?
            }
            _ => return Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        debug_assert_eq!(sent, marker.len() + octets.len(), "UDP sends whole datagrams");
        Ok(())
    }
}

fn peer_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddrV4::from(*v4).into()),
        (_, Some(v6)) => Some(SocketAddrV6::from(*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn listen(text: &str) -> Listen {
        Listen { address: text.parse().unwrap(), marker: false }
    }

    fn next(receiver: &mut Incoming) -> Datagram {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let wait = async { tokio::time::timeout(Duration::from_secs(10), receiver.recv()).await };
        runtime.block_on(wait).expect("a datagram within 10 s").expect("the thread lives")
    }

    fn client(text: &str) -> UdpSocket {
        let client = UdpSocket::bind(text).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    }

    #[test]
    fn a_wildcard_socket_answers_from_the_address_it_was_asked_at() {
        let mut sockets = Sockets::bind(&[listen("0.0.0.0:0")]).unwrap();
        let mut receiver = sockets.receive().unwrap();
        let client = client("127.0.0.1:0");
        let asked: SocketAddr = (Ipv4Addr::new(127, 0, 0, 7), sockets.addresses()[0].port()).into();
        client.send_to(b"question", asked).unwrap();
        let datagram = next(&mut receiver);
        assert_eq!((datagram.local, datagram.octets.as_ref()), (asked, b"question".as_slice()));
        sockets.send(&Datagram { octets: Bytes::from_static(b"answer"), ..datagram }).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (b"answer".as_slice(), asked));
        assert_eq!(sockets.counters(), UdpCounters { received: 1, sent: 1, ..UdpCounters::default() });
    }

    #[test]
    fn ipv6_works_the_same_way_where_the_machine_has_it() {
        let Ok(mut sockets) = Sockets::bind(&[listen("[::]:0")]) else { return };
        let Ok(client) = UdpSocket::bind("[::1]:0") else { return };
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut receiver = sockets.receive().unwrap();
        let asked: SocketAddr = (Ipv6Addr::LOCALHOST, sockets.addresses()[0].port()).into();
        client.send_to(b"question", asked).unwrap();
        let datagram = next(&mut receiver);
        assert_eq!((datagram.local, datagram.peer), (asked, client.local_addr().unwrap()));
        sockets.send(&Datagram { octets: Bytes::from_static(b"answer"), ..datagram }).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (6, asked));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let first = Sockets::bind(&[listen("127.0.0.1:0")]).unwrap();
        let address = first.addresses()[0];
        let error = Sockets::bind(&[Listen { address, marker: false }]).unwrap_err();
        assert!(matches!(error, BindError::InUse(taken) if taken == address));
        assert_eq!(error.to_string(), format!("UDP {address} is in use by another process"));
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        assert!(matches!(Sockets::bind(&[listen("192.0.2.1:0")]), Err(BindError::NoSuchAddress(_))));
    }

    #[test]
    fn the_marker_is_taken_off_and_put_on_and_esp_is_not_ours() {
        let listen = Listen { marker: true, ..listen("127.0.0.1:0") };
        let mut sockets = Sockets::bind(&[listen]).unwrap();
        let mut receiver = sockets.receive().unwrap();
        let client = client("127.0.0.1:0");
        let asked = sockets.addresses()[0];
        for packet in [b"\xff".as_slice(), b"\x00\x00\x01\x00esp", b"\x00\x00\x00\x00isakmp"] {
            client.send_to(packet, asked).unwrap();
        }
        let datagram = next(&mut receiver);
        assert_eq!(datagram.octets.as_ref(), b"isakmp");
        assert_eq!(sockets.counters().not_isakmp, 2);
        sockets.send(&datagram).unwrap();
        let mut buffer = [0; 16];
        let (length, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"\x00\x00\x00\x00isakmp");
    }

    #[test]
    fn a_keepalive_goes_without_a_marker() {
        let listen = Listen { marker: true, ..listen("127.0.0.1:0") };
        let sockets = Sockets::bind(&[listen]).unwrap();
        let client = client("127.0.0.1:0");
        let (local, peer) = (sockets.addresses()[0], client.local_addr().unwrap());
        sockets.send(&Datagram { local, peer, octets: Bytes::from_static(&KEEPALIVE) }).unwrap();
        let mut buffer = [0; 16];
        assert_eq!((client.recv_from(&mut buffer).unwrap(), buffer[0]), ((1, local), 0xff));
    }

    #[test]
    fn a_port_of_nat_traversal_that_is_taken_leaves_the_others_open() {
        let taken = client("127.0.0.1:0").local_addr().unwrap();
        let holder = UdpSocket::bind(taken).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let (sockets, error) = Sockets::bind_with_nat_traversal(&[any], &[any, taken]).unwrap();
        assert!(matches!(error, Some(BindError::InUse(address)) if address == taken));
        assert_eq!((sockets.addresses().len(), sockets.nat_traversal()), (1, vec![]));
        drop(holder);
        let (sockets, error) = Sockets::bind_with_nat_traversal(&[any], &[any]).unwrap();
        assert!(error.is_none());
        assert_eq!((sockets.addresses().len(), sockets.nat_traversal().len()), (2, 1));
    }

    #[test]
    fn one_message_goes_to_many_and_one_failure_stops_nobody() {
        let sockets = Sockets::bind(&[listen("127.0.0.1:0")]).unwrap();
        let local = sockets.addresses()[0];
        let clients = [client("127.0.0.1:0"), client("127.0.0.1:0")];
        let foreign: SocketAddr = "[::1]:9".parse().unwrap();
        let to = [
            (local, clients[0].local_addr().unwrap()),
            (local, foreign),
            (local, clients[1].local_addr().unwrap()),
        ];
        assert_eq!(sockets.send_many(b"push", &to), 2);
        for client in &clients {
            let mut buffer = [0; 16];
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, local));
        }
        assert_eq!(sockets.counters().send_errors, 1);
    }

    #[test]
    fn dropping_the_sockets_ends_the_threads_and_frees_the_port() {
        let mut sockets = Sockets::bind(&[listen("127.0.0.1:0")]).unwrap();
        let mut receiver = sockets.receive().unwrap();
        let address = sockets.addresses()[0];
        drop(sockets);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(receiver.recv()).is_none());
        // The thread drops its sender just before its hold of the socket.
        let again = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            Sockets::bind(&[Listen { address, marker: false }]).ok()
        });
        assert!(again.is_some());
    }

    #[test]
    fn the_source_towards_loopback_is_loopback() {
        assert_eq!(source_for("127.0.0.1:848".parse().unwrap()).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }

    /// On the loopback interface nothing of it leaves the machine.
    fn multicast_is_heard_on(interface: &str, server: &str, group: &str, own: &str) {
        let server = Sockets::bind(&[listen(server)]).unwrap();
        let mut member =
            Sockets::bind(&[listen(&SocketAddr::new(own.parse().unwrap(), 0).to_string())]).unwrap();
        let mut receiver = member.receive().unwrap();
        let group: SocketAddr = group.parse().unwrap();
        let own: IpAddr = own.parse().unwrap();
        member.join(group, Some(interface), own).unwrap();
        member.join(group, Some(interface), own).unwrap();
        assert_eq!(member.joined().collect::<Vec<_>>(), [group]);
        server.send_multicast(b"push", group, interface).unwrap();
        let datagram = next(&mut receiver);
        assert_eq!((datagram.local, datagram.octets.as_ref()), (group, b"push".as_slice()));
        // What answers it leaves from our address and the port of the group.
        let local = SocketAddr::new(own, group.port());
        member.sockets.iter().for_each(|socket| assert_ne!(socket.local.port(), group.port()));
        member.send(&Datagram { local, peer: datagram.peer, octets: Bytes::from_static(b"ack") }).unwrap();
        member.leave(group);
        assert_eq!(member.joined().count(), 0);
        assert!(member.send(&Datagram { local, ..datagram }).is_err());
        assert!(server.send_multicast(b"push", group, "no-such-interface").is_err());
    }

    #[test]
    fn a_multicast_group_is_heard_while_it_is_joined() {
        multicast_is_heard_on("lo", "127.0.0.1:0", "239.192.77.1:8481", "127.0.0.1");
        multicast_is_heard_on("lo", "0.0.0.0:0", "239.192.77.2:8482", "127.0.0.1");
        // A namespace may name another interface: the kernel loops no IPv6 multicast back on `lo`.
        if let Some((interface, own)) =
            std::env::var("GDOI_MULTICAST_6").ok().as_deref().and_then(|it| it.split_once(' '))
        {
            multicast_is_heard_on(interface, "[::]:0", "[ff08::77:1]:8483", own);
        } else {
            println!("skipped: IPv6 multicast: GDOI_MULTICAST_6 names no interface and address");
        }
    }
}
