//! The thread of one zone: what arrives on its interfaces is read from its TUN device, decided about and sent on.
//!
//! ```text
//! read what waits -> each packet: lookup, seal or open in place -> send all of them
//! ```
//!
//! A packet is copied once, when it is split from the super-packet it was read in. The buffers are those of the batch, made
//! once.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::ClockId;
use tun_rs::{IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN};

use super::merge::Trust;
use super::multicast::Senders;
use super::port::{Onward, Port};
use super::routes::{Behind, Routes};
use super::{DEVICE_MTU, Member, Shared, Way, clock, now};
use crate::Fault;
use crate::d3p::Timestamp;
use crate::esp::{Carrier, HEADROOM, OpenError, TAILROOM};
use crate::fragment::Fragments;
use crate::header::{Fragment, Header, add_hop, hops, protocol, take_hop};
use crate::icmp;
use crate::path::{self, Counters, Dropped, How, Passed, When};
use crate::policy::{Gspd, Inbound, Outbound};
use crate::reassembly::{Added, Reassembler};
use crate::sa::Sa;

/// How often a thread looks whether it should end.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// ICMP answers a zone gets in a second.
const ANSWERS: u32 = 500;
/// Packets after which no more are read before these are sent.
const ENOUGH: usize = 64;
/// Packets a batch has room for: one super-packet more than enough.
pub const BATCH: usize = ENOUGH + IDEAL_BATCH_SIZE;
/// A buffer for one packet with room around it.
const BUFFER: usize = HEADROOM + DEVICE_MTU as usize + TAILROOM;

/// One thread.
pub struct Worker {
    shared: Arc<Shared>,
    zone: usize,
    port: Port,
    senders: Senders,
    /// For fragments and answers.
    scratch: Vec<u8>,
    /// For copies of multicast.
    cast: Vec<u8>,
    reassembler: Reassembler,
    /// Second of the last answer, and answers in it.
    answers: (u64, u32),
    /// What was decided about the last packet of the batch: those behind it are mostly of its flow.
    known: Option<Known>,
}

/// What holds for all packets of a flow within a batch.
struct Known {
    flow: Header,
    to: usize,
    /// The SA that seals them.
    sa: Option<Arc<Sa>>,
}

/// What a batch of packets is decided by.
struct View {
    when: When,
    routes: Arc<Routes>,
    gspds: Vec<Arc<Gspd>>,
}

/// One packet of a pair of zones, and all it is decided by.
#[derive(Clone, Copy)]
struct Case<'a> {
    shared: &'a Shared,
    view: &'a View,
    /// The zone it is on its way to.
    to: usize,
    /// The number of the VPN.
    vpn: usize,
    way: Way,
    member: &'a Member,
    gspd: &'a Gspd,
    header: Header,
}

fn lock(counters: &std::sync::Mutex<Counters>) -> MutexGuard<'_, Counters> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// The thread of a zone.
    pub(super) fn new(shared: Arc<Shared>, zone: usize, port: Port) -> Worker {
        Worker {
            shared,
            zone,
            port,
            senders: Senders::default(),
            scratch: vec![0; BUFFER],
            cast: vec![0; BUFFER],
            reassembler: Reassembler::new(usize::from(DEVICE_MTU)),
            answers: (0, 0),
            known: None,
        }
    }

    /// Works until told to stop.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut whole = vec![0; VIRTIO_NET_HDR_LEN + 65535];
        let mut buffers = vec![vec![0; BUFFER]; BATCH];
        let mut sizes = vec![0; BATCH];
        let mut view = View { when: When::default(), routes: shared.routes.routes(), gspds: Vec::new() };
        while !shared.stop.load(Ordering::Relaxed) {
            let mut used = 0;
            while used < ENOUGH {
                let (free, lengths) = (buffers.get_mut(used..), sizes.get_mut(used..));
                let (Some(free), Some(lengths)) = (free, lengths) else { break };
                let Some(device) = self.port.device() else { return };
                let read = device.recv_multiple(&mut whole, free, lengths, HEADROOM);
                // Nothing there, or a packet that cannot be split: the next one will do.
                let Ok(count) = read else { break };
                if used == 0 {
                    view.look(&shared);
                    self.known = None;
                }
                for (index, size) in sizes.iter().enumerate().skip(used).take(count) {
                    self.take(&shared, &view, &mut buffers, index, HEADROOM..HEADROOM + size);
                }
                used += count;
            }
            if used == 0
                && let Some(device) = self.port.device()
            {
                let _ = poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&PATIENCE));
            }
            self.flush(&shared, &mut buffers);
        }
    }

    fn flush(&mut self, shared: &Shared, buffers: &mut [Vec<u8>]) {
        self.port.flush(buffers, |vpn| {
            shared.members.get(vpn).into_iter().for_each(|member| lock(&member.outbound).not_sent += 1);
        });
    }

    fn take(
        &mut self,
        shared: &Shared,
        view: &View,
        buffers: &mut [Vec<u8>],
        index: usize,
        packet: Range<usize>,
    ) {
        let Some(buffer) = buffers.get_mut(index) else { return };
        let Ok(header) = Header::read(buffer.get(packet.clone()).unwrap_or_default()) else { return };
        let is_host = shared.layout.host == Some(self.zone);
        if header.destination.is_multicast() && !is_host {
            return self.multicast(shared, view, header, buffer.get(packet).unwrap_or_default());
        }
        if let Some(Known { flow, to, .. }) = &self.known
            && flow.is_same_flow(&header)
        {
            let case = Case::of(shared, view, self.zone, *to, header);
            return case.into_iter().for_each(|case| self.pass(&case, buffers, index, packet.clone()));
        }
        self.known = None;
        let to = match (shared.layout.host, view.routes.behind(header.destination)) {
            (Some(host), _) if !is_host && view.routes.is_own(header.destination) => {
                // The copy lost a hop that the packet itself did not take.
                add_hop(buffer.get_mut(packet.clone()).unwrap_or_default());
                Some(host)
            }
            (_, Some(Behind::Zone(to))) => {
                let pair = shared.pairs.contains_key(&(self.zone, to));
                self.known = pair.then_some(Known { flow: header, to, sa: None });
                Some(to)
            }
            (_, Some(Behind::Elsewhere)) => None,
            // The main table knows no way, and another table of the host might take it past us.
            (_, None) => return,
        };
        let Some(case) = to.and_then(|to| Case::of(shared, view, self.zone, to, header)) else {
            // What this machine sends comes here only on its way to a zone of a pair: the copy of the routes lags behind.
            if !is_host {
                self.port.host(index, packet, Onward { trust: Trust::Verify, zone: self.zone });
            }
            return;
        };
        self.pass(&case, buffers, index, packet);
    }

    /// The way of a packet of a pair.
    fn pass(&mut self, case: &Case<'_>, buffers: &mut [Vec<u8>], index: usize, packet: Range<usize>) {
        match case.way {
            Way::Out => self.outbound(case, buffers, index, packet),
            Way::In if case.is_fragment_of_esp() => {
                // What came before leaves before: the whole is sent at once.
                self.flush(case.shared, buffers);
                let fragment = buffers.get(index).and_then(|buffer| buffer.get(packet));
                self.inbound_fragment(case, fragment.unwrap_or_default());
            }
            Way::In => {
                let Some(buffer) = buffers.get_mut(index) else { return };
                if let Some(clear) = self.inbound(case, buffer, packet) {
                    self.port.host(index, clear, Onward { trust: Trust::Verify, zone: case.to });
                }
            }
        }
    }

    /// Multicast goes to every zone this one forms a pair with.
    fn multicast(&mut self, shared: &Shared, view: &View, header: Header, whole: &[u8]) {
        // The kernel took the hop when it made the copy. What stays on its link is its own, about the TUN device: MLD.
        if hops(whole) == 0 || header.is_link_local() {
            return;
        }
        let mut cast = std::mem::take(&mut self.cast);
        let at = HEADROOM..HEADROOM + whole.len();
        for (_, to) in shared.pairs.range((self.zone, 0)..=(self.zone, usize::MAX)).map(|(pair, _)| *pair) {
            let (Some(case), Some(room)) =
                (Case::of(shared, view, self.zone, to, header), cast.get_mut(at.clone()))
            else {
                continue;
            };
            // This machine joins no group on the device of `host`; ESP in UDP is for the host's routes.
            if shared.layout.host == Some(to) || case.member.shape.carrier == Carrier::Udp {
                continue;
            }
            room.copy_from_slice(whole);
            match case.way {
                Way::Out => self.outbound_now(&case, &mut cast, at.clone()),
                Way::In if case.is_fragment_of_esp() => self.inbound_fragment(&case, whole),
                Way::In => {
                    if let Some(clear) = self.inbound(&case, &mut cast, at.clone()) {
                        self.deliver_now(&case, cast.get_mut(clear).unwrap_or_default());
                    }
                }
            }
        }
        self.cast = cast;
    }

    fn outbound_now(&mut self, case: &Case<'_>, buffer: &mut [u8], packet: Range<usize>) {
        let Case { shared, view, member, gspd, header, .. } = *case;
        let (when, shape) = (view.when, member.shape);
        let decided = gspd.outbound(&header, when.now);
        let mut counters = lock(&member.outbound);
        let result = path::outbound_by(decided, &mut counters, when, shape, &header, buffer, packet.clone());
        drop(counters);
        match result {
            Ok(Passed { packet, how }) => {
                let sent = self.send_now(case, buffer.get(packet).unwrap_or_default());
                if let How::Esp(sa) = how {
                    lock(&member.outbound).not_sent += u64::from(!sent);
                    watch(shared, &sa);
                    if sa.is_spent() {
                        shared.tell_spent(member, view.when.now, sa.spi);
                    }
                }
            }
            Err(Dropped::TooBig { room }) => {
                self.too_big(case, buffer.get(packet).unwrap_or_default(), room);
            }
            Err(Dropped::Spent(spi)) => shared.tell_spent(member, view.when.now, spi),
            Err(_) => {}
        }
    }

    /// Sends a packet past the steering; multicast by every interface of the zone it is for. False when the system did not.
    fn send_now(&mut self, case: &Case<'_>, octets: &[u8]) -> bool {
        let to = case.header.destination;
        if !to.is_multicast() || case.shared.layout.host == Some(self.zone) {
            return self.port.send_now(octets, to);
        }
        let interfaces = case.shared.layout.interfaces.get(case.to).map(Vec::as_slice).unwrap_or_default();
        // One that is down is no reason to leave the others out.
        interfaces.iter().filter(|name| !self.senders.send(octets, to, name)).count() == 0
    }

    /// Delivers an opened packet, or one that came in clear.
    fn deliver_now(&mut self, case: &Case<'_>, octets: &mut [u8]) {
        if !case.header.destination.is_multicast() {
            self.port.host_now(octets, case.to);
        } else if take_hop(octets) {
            // Unicast loses this hop when the host routes it on.
            let _ = self.send_now(case, octets);
        }
    }

    fn outbound(&mut self, case: &Case<'_>, buffers: &mut [Vec<u8>], index: usize, packet: Range<usize>) {
        let Case { shared, view, to, vpn, member, gspd, header, .. } = *case;
        let Some(buffer) = buffers.get_mut(index) else { return };
        let sa = self.known.as_ref().and_then(|known| known.sa.as_ref());
        let (when, shape) = (view.when, member.shape);
        let decided = sa.map_or_else(|| gspd.outbound(&header, when.now), Outbound::Seal);
        let mut counters = lock(&member.outbound);
        let result = path::outbound_by(decided, &mut counters, when, shape, &header, buffer, packet.clone());
        match result {
            // The kernel takes no packet with an address of its own from a device.
            Ok(Passed { packet, how: How::Clear(_) }) if shared.layout.host == Some(self.zone) => {
                self.port.raw(index, packet, header.destination, vpn);
            }
            Ok(Passed { packet, how: How::Clear(_) }) => {
                self.port.host(index, packet, Onward { trust: Trust::Verify, zone: to });
            }
            Ok(Passed { packet, how: How::Esp(sa) }) => {
                match member.shape.carrier {
                    Carrier::Raw => self.port.raw(index, packet, header.destination, vpn),
                    Carrier::Udp => self.port.host(index, packet, Onward { trust: Trust::Own, zone: to }),
                }
                watch(shared, &sa);
                let spent = sa.is_spent();
                if spent {
                    shared.tell_spent(member, view.when.now, sa.spi);
                }
                if let Some(known) = &mut self.known {
                    known.sa = Some(sa).filter(|_| !spent);
                }
            }
            Err(Dropped::TooBig { room }) => {
                drop(counters);
                self.flush(shared, buffers);
                let whole = buffers.get(index).and_then(|buffer| buffer.get(packet)).unwrap_or_default();
                self.too_big(case, whole, room);
            }
            Err(Dropped::Spent(spi)) => {
                self.known = None;
                shared.tell_spent(member, view.when.now, spi);
            }
            Err(_) => {}
        }
    }

    /// Sends a packet that is too long in fragments, or tells its sender.
    fn too_big(&mut self, case: &Case<'_>, whole: &[u8], room: usize) {
        let Outbound::Seal(sa) = case.gspd.outbound(&case.header, case.view.when.now) else { return };
        let mut counters = lock(&case.member.outbound);
        if self.send_fragments(case, &mut counters, sa, whole, room) {
            counters.fragmented += 1;
            watch(case.shared, sa);
        } else {
            counters.count_drop(Dropped::TooBig { room });
            self.answer(case.view, whole, &case.header, room);
        }
    }

    fn send_fragments(
        &mut self,
        case: &Case<'_>,
        counters: &mut Counters,
        sa: &Arc<Sa>,
        whole: &[u8],
        room: usize,
    ) -> bool {
        let Some(mut fragments) = Fragments::new(whole, &case.header, room) else { return false };
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(at) = fragments.next_into(&mut scratch, HEADROOM) {
            let (when, shape) = (case.view.when, case.member.shape);
            let sealed = path::outbound_fragment(sa, counters, when, shape, &mut scratch, at);
            if let Ok(Passed { packet, .. }) = sealed {
                let sealed = scratch.get(packet).unwrap_or_default();
                counters.not_sent += u64::from(!self.send_now(case, sealed));
            }
        }
        self.scratch = scratch;
        true
    }

    /// Tells the sender of a packet that is too long which length would do.
    fn answer(&mut self, view: &View, whole: &[u8], header: &Header, room: usize) {
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
            let _ = self.port.send_now(scratch.get(..length).unwrap_or_default(), header.source);
        }
        self.scratch = scratch;
    }

    /// Opens a packet that came in, or lets it pass: where it is then.
    fn inbound(&self, case: &Case<'_>, buffer: &mut [u8], packet: Range<usize>) -> Option<Range<usize>> {
        let Case { shared, view, member, gspd, header, .. } = *case;
        let mut counters = lock(&member.inbound);
        let result = path::inbound(gspd, &mut counters, view.when, member.shape.carrier, buffer, packet);
        drop(counters);
        match result {
            Ok(passed) => {
                if let How::Esp(sa) = &passed.how {
                    watch(shared, sa);
                }
                return Some(passed.packet);
            }
            Err(Dropped::UnknownSpi(spi)) => shared.tell_stranger(member, view.when.now, spi, header.source),
            Err(_) => {}
        }
        None
    }

    /// ESP that a router on the way has fragmented.
    fn inbound_fragment(&mut self, case: &Case<'_>, fragment: &[u8]) {
        let member = case.member;
        let mut scratch = std::mem::take(&mut self.scratch);
        let now = case.view.when.now;
        match self.reassembler.add(fragment, &case.header, now, &mut scratch, HEADROOM) {
            Added::Whole(at) => {
                lock(&member.inbound).fragmented += 1;
                if let Some(clear) = self.inbound(case, &mut scratch, at) {
                    self.deliver_now(case, scratch.get_mut(clear).unwrap_or_default());
                }
            }
            Added::Waits(given_up) => {
                let mut counters = lock(&member.inbound);
                (0..given_up).for_each(|_| counters.count_drop(Dropped::Open(OpenError::Fragment)));
            }
            Added::Refused => lock(&member.inbound).count_drop(Dropped::Open(OpenError::Fragment)),
        }
        self.scratch = scratch;
    }
}

impl View {
    fn look(&mut self, shared: &Shared) {
        self.when = When { now: now(), wall: Timestamp::new(clock(ClockId::Realtime)) };
        self.routes = shared.routes.routes();
        self.gspds.clear();
        self.gspds.extend(shared.members.iter().map(Member::gspd));
    }
}

impl<'a> Case<'a> {
    /// None when the zones form no pair.
    fn of(shared: &'a Shared, view: &'a View, from: usize, to: usize, header: Header) -> Option<Case<'a>> {
        let (vpn, way) = *shared.pairs.get(&(from, to))?;
        let (member, gspd) = (shared.members.get(vpn)?, view.gspds.get(vpn)?);
        Some(Case { shared, view, to, vpn, way, member, gspd, header })
    }

    /// True for a part of ESP, which must be put together before it can be opened. Parts of UDP that may pass in clear pass as
    /// they are.
    fn is_fragment_of_esp(&self) -> bool {
        let header = &self.header;
        if !header.is_v4() || header.fragment == Fragment::Whole {
            return false;
        }
        match header.protocol {
            protocol::ESP => true,
            protocol::UDP => {
                self.member.shape.carrier == Carrier::Udp
                    && !matches!(self.gspd.inbound(header, self.view.when.now), Inbound::Clear(_))
            }
            _ => false,
        }
    }
}

fn watch(shared: &Shared, sa: &Sa) {
    if sa.take_soft_limit() {
        (shared.tell)(Fault::SoftLimit { vpn: sa.vpn.clone(), spi: sa.spi });
    }
}
