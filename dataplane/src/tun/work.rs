//! The thread of one zone: what arrives on its interfaces is read from its TUN device, decided about and sent on.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::ClockId;
use socket2::Socket;
use tun_rs::{IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN};

use super::multicast::Senders;
use super::routes::{Behind, Routes};
use super::{DEVICE_MTU, Member, Shared, Way, clock, now};
use crate::Fault;
use crate::d3p::Timestamp;
use crate::esp::{HEADROOM, OpenError, TAILROOM};
use crate::fragment::Fragments;
use crate::header::{Fragment, Header, add_hop, hops, protocol, take_hop};
use crate::icmp;
use crate::path::{self, Counters, Dropped, How, Passed, When};
use crate::policy::{Gspd, Outbound};
use crate::reassembly::{Added, Reassembler};
use crate::sa::Sa;

/// How often a thread looks whether it should end.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// ICMP answers a zone gets in a second.
const ANSWERS: u32 = 500;
/// A buffer for one packet with room around it.
const BUFFER: usize = HEADROOM + DEVICE_MTU as usize + TAILROOM;

/// One thread.
pub struct Worker {
    shared: Arc<Shared>,
    zone: usize,
    /// IPv4 and IPv6.
    sockets: [Socket; 2],
    senders: Senders,
    /// For fragments and answers.
    scratch: Vec<u8>,
    /// For copies of multicast.
    cast: Vec<u8>,
    reassembler: Reassembler,
    /// Second of the last answer, and answers in it.
    answers: (u64, u32),
}

/// What a batch of packets is decided by.
struct View {
    when: When,
    routes: Arc<Routes>,
    gspds: Vec<Arc<Gspd>>,
}

fn lock(counters: &std::sync::Mutex<Counters>) -> MutexGuard<'_, Counters> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// The thread of a zone.
    pub(super) fn new(shared: Arc<Shared>, zone: usize, sockets: [Socket; 2]) -> Worker {
        Worker {
            shared,
            zone,
            sockets,
            senders: Senders::default(),
            scratch: vec![0; BUFFER],
            cast: vec![0; BUFFER],
            reassembler: Reassembler::new(usize::from(DEVICE_MTU)),
            answers: (0, 0),
        }
    }

    /// Works until told to stop.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(device) = shared.devices.get(self.zone) else { return };
        let mut whole = vec![0; VIRTIO_NET_HDR_LEN + 65535];
        let mut buffers = vec![vec![0; BUFFER]; IDEAL_BATCH_SIZE];
        let mut sizes = vec![0; IDEAL_BATCH_SIZE];
        let mut view = View { when: When::default(), routes: shared.routes.routes(), gspds: Vec::new() };
        while !shared.stop.load(Ordering::Relaxed) {
            let Ok(count) = device.recv_multiple(&mut whole, &mut buffers, &mut sizes, HEADROOM) else {
                // Nothing there, or a packet that cannot be split: the next one will do.
                let _ = poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&PATIENCE));
                continue;
            };
            view.when = When { now: now(), wall: Timestamp::new(clock(ClockId::Realtime)) };
            view.routes = shared.routes.routes();
            view.gspds.clear();
            view.gspds.extend(shared.members.iter().map(Member::gspd));
            for (buffer, size) in buffers.iter_mut().zip(&sizes).take(count) {
                self.take(&shared, &view, buffer, HEADROOM..HEADROOM + size);
            }
        }
    }

    fn take(&mut self, shared: &Shared, view: &View, buffer: &mut [u8], packet: Range<usize>) {
        let Ok(header) = Header::read(buffer.get(packet.clone()).unwrap_or_default()) else { return };
        if header.destination.is_multicast() && shared.layout.host != Some(self.zone) {
            return self.multicast(shared, view, &header, buffer, packet);
        }
        let to = match (shared.layout.host, view.routes.behind(header.destination)) {
            (Some(host), _) if host != self.zone && view.routes.is_own(header.destination) => {
                // The copy lost a hop that the packet itself did not take.
                add_hop(buffer.get_mut(packet.clone()).unwrap_or_default());
                host
            }
            (_, Some(Behind::Zone(to))) => to,
            // The kernel was on its way to a zone of `host`: the copy of the routes lags behind.
            (Some(host), _) if host == self.zone => return,
            (_, Some(Behind::Elsewhere)) => return self.give_back(shared, self.zone, buffer, packet),
            // The main table knows no way, and another table of the host might take it past us.
            (_, None) => return,
        };
        match shared.pairs.get(&(self.zone, to)) {
            Some((vpn, way)) => self.judge(shared, view, (*vpn, *way), to, &header, buffer, packet),
            None if shared.layout.host == Some(self.zone) => {}
            None => self.give_back(shared, self.zone, buffer, packet),
        }
    }

    /// Multicast goes to every zone this one forms a pair with.
    fn multicast(
        &mut self,
        shared: &Shared,
        view: &View,
        header: &Header,
        buffer: &[u8],
        packet: Range<usize>,
    ) {
        let whole = buffer.get(packet.clone()).unwrap_or_default();
        if hops(whole) == 0 {
            return;
        }
        let mut copy = std::mem::take(&mut self.cast);
        for ((_, to), (vpn, way)) in shared.pairs.range((self.zone, 0)..=(self.zone, usize::MAX)) {
            let room = copy.get_mut(HEADROOM..HEADROOM + whole.len());
            // This machine joins no group on the device of `host`, so it would not hear it.
            let (Some(room), true) = (room, shared.layout.host != Some(*to)) else { continue };
            room.copy_from_slice(whole);
            let at = HEADROOM..HEADROOM + whole.len();
            self.judge(shared, view, (*vpn, *way), *to, header, &mut copy, at);
        }
        self.cast = copy;
    }

    #[expect(clippy::too_many_arguments, reason = "everything of one packet, borrowed apart")]
    fn judge(
        &mut self,
        shared: &Shared,
        view: &View,
        (vpn, way): (usize, Way),
        to: usize,
        header: &Header,
        buffer: &mut [u8],
        packet: Range<usize>,
    ) {
        let (Some(member), Some(gspd)) = (shared.members.get(vpn), view.gspds.get(vpn)) else { return };
        match way {
            Way::Out => self.outbound(shared, member, view, gspd, to, header, buffer, packet),
            Way::In
                if header.is_v4()
                    && header.protocol == protocol::ESP
                    && header.fragment != Fragment::Whole =>
            {
                let fragment = buffer.get(packet).unwrap_or_default();
                self.inbound_fragment(shared, member, view, gspd, to, header, fragment);
            }
            Way::In => self.inbound(shared, member, view, gspd, to, header, buffer, packet),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "everything of one packet, borrowed apart")]
    fn outbound(
        &mut self,
        shared: &Shared,
        member: &Member,
        view: &View,
        gspd: &Gspd,
        to: usize,
        header: &Header,
        buffer: &mut [u8],
        packet: Range<usize>,
    ) {
        let mut counters = lock(&member.outbound);
        let result = path::outbound(gspd, &mut counters, view.when, member.shape, buffer, packet.clone());
        match result {
            Ok(Passed { packet, how: How::Clear(_) }) => {
                self.pass(shared, to, header.destination, buffer, packet)
            }
            Ok(Passed { packet, how: How::Esp(sa) }) => {
                if !self.send(shared, to, buffer.get(packet).unwrap_or_default(), header.destination) {
                    counters.not_sent += 1;
                }
                self.watch(shared, &sa);
                if sa.is_spent() {
                    shared.tell_spent(member, view.when.now, sa.spi);
                }
            }
            Err(Dropped::TooBig { room }) => {
                let whole = buffer.get(packet).unwrap_or_default();
                let Outbound::Seal(sa) = gspd.outbound(header, view.when.now) else { return };
                if self.send_fragments(shared, to, member, &mut counters, view.when, sa, whole, header, room)
                {
                    counters.fragmented += 1;
                    self.watch(shared, sa);
                } else {
                    counters.count_drop(Dropped::TooBig { room });
                    self.answer(shared, view, whole, header, room);
                }
            }
            Err(Dropped::Spent(spi)) => shared.tell_spent(member, view.when.now, spi),
            Err(_) => {}
        }
    }

    #[expect(clippy::too_many_arguments, reason = "everything of one packet, borrowed apart")]
    fn send_fragments(
        &mut self,
        shared: &Shared,
        to: usize,
        member: &Member,
        counters: &mut Counters,
        when: When,
        sa: &Arc<Sa>,
        whole: &[u8],
        header: &Header,
        room: usize,
    ) -> bool {
        let Some(mut fragments) = Fragments::new(whole, header, room) else { return false };
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(at) = fragments.next_into(&mut scratch, HEADROOM) {
            let sealed = path::outbound_fragment(sa, counters, when, member.shape.df, &mut scratch, at);
            if let Ok(Passed { packet, .. }) = sealed
                && !self.send(shared, to, scratch.get(packet).unwrap_or_default(), header.destination)
            {
                counters.not_sent += 1;
            }
        }
        self.scratch = scratch;
        true
    }

    /// Tells the sender of a packet that is too long which length would do.
    fn answer(&mut self, shared: &Shared, view: &View, whole: &[u8], header: &Header, room: usize) {
        let second = view.when.now.as_secs();
        if self.answers.0 != second {
            self.answers = (second, 0);
        }
        if self.answers.1 >= ANSWERS {
            return;
        }
        let Some(own) = view.routes.own_address_towards(header.source) else { return };
        let mut scratch = std::mem::take(&mut self.scratch);
        if let Some(length) = icmp::too_big(whole, header, own, room, &mut scratch) {
            self.answers.1 += 1;
            // An answer that is lost is asked for again by the next packet.
            let _ = self.send(shared, self.zone, scratch.get(..length).unwrap_or_default(), header.source);
        }
        self.scratch = scratch;
    }

    #[expect(clippy::too_many_arguments, reason = "everything of one packet, borrowed apart")]
    fn inbound(
        &mut self,
        shared: &Shared,
        member: &Member,
        view: &View,
        gspd: &Gspd,
        to: usize,
        header: &Header,
        buffer: &mut [u8],
        packet: Range<usize>,
    ) {
        let mut counters = lock(&member.inbound);
        let result = path::inbound(gspd, &mut counters, view.when, buffer, packet);
        drop(counters);
        match result {
            Ok(passed) => {
                if let How::Esp(sa) = &passed.how {
                    self.watch(shared, sa);
                    let opened = buffer.get_mut(passed.packet.clone()).unwrap_or_default();
                    // Unicast loses this hop when the host routes it on.
                    if header.destination.is_multicast() && !take_hop(opened) {
                        return;
                    }
                }
                self.pass(shared, to, header.destination, buffer, passed.packet);
            }
            Err(Dropped::UnknownSpi(spi)) => shared.tell_stranger(member, view.when.now, spi, header.source),
            Err(_) => {}
        }
    }

    /// ESP that a router on the way has fragmented.
    fn inbound_fragment(
        &mut self,
        shared: &Shared,
        member: &Member,
        view: &View,
        gspd: &Gspd,
        to: usize,
        header: &Header,
        fragment: &[u8],
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let added = self.reassembler.add(fragment, header, view.when.now, &mut scratch, HEADROOM);
        match added {
            Added::Whole(at) => {
                lock(&member.inbound).fragmented += 1;
                self.inbound(shared, member, view, gspd, to, header, &mut scratch, at);
            }
            Added::Waits(given_up) => {
                let mut counters = lock(&member.inbound);
                (0..given_up).for_each(|_| counters.count_drop(Dropped::Open(OpenError::Fragment)));
            }
            Added::Refused => lock(&member.inbound).count_drop(Dropped::Open(OpenError::Fragment)),
        }
        self.scratch = scratch;
    }

    fn watch(&self, shared: &Shared, sa: &Sa) {
        if sa.take_soft_limit() {
            (shared.tell)(Fault::SoftLimit { vpn: sa.vpn.clone(), spi: sa.spi });
        }
    }

    /// Sends a packet with its IP header past the steering; false when the system did not: no route, too long for the
    /// interface, a full queue.
    fn send(&mut self, shared: &Shared, zone: usize, octets: &[u8], to: IpAddr) -> bool {
        if to.is_multicast() && shared.layout.host != Some(self.zone) {
            let interfaces = shared.layout.interfaces.get(zone).map(Vec::as_slice).unwrap_or_default();
            return interfaces.iter().fold(true, |all, name| self.senders.send(octets, to, name) && all);
        }
        let [four, six] = &self.sockets;
        let socket = if to.is_ipv4() { four } else { six };
        socket.send_to(octets, &SocketAddr::new(to, 0).into()).is_ok()
    }

    /// Sends on what was decided for the zone `to`.
    fn pass(&mut self, shared: &Shared, to: usize, address: IpAddr, buffer: &mut [u8], packet: Range<usize>) {
        // The kernel routes no multicast, and takes no packet with an address of its own from a device.
        if address.is_multicast() || shared.layout.host == Some(self.zone) {
            let _ = self.send(shared, to, buffer.get(packet).unwrap_or_default(), address);
        } else {
            self.give_back(shared, to, buffer, packet);
        }
    }

    /// Hands a packet back to the host through the device of a zone, and the host routes it on: an empty virtio header goes
    /// before it.
    fn give_back(&self, shared: &Shared, zone: usize, buffer: &mut [u8], packet: Range<usize>) {
        let Some(start) = packet.start.checked_sub(VIRTIO_NET_HDR_LEN) else { return };
        let Some(header) = buffer.get_mut(start..packet.start) else { return };
        header.fill(0);
        let (Some(octets), Some(device)) = (buffer.get(start..packet.end), shared.devices.get(zone)) else {
            return;
        };
        // A full queue drops packets as a full queue of any interface does.
        let _ = device.send(octets);
    }
}
