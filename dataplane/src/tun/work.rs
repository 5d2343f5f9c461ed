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
use super::port::Port;
use super::routes::{Behind, Routes};
use super::{DEVICE_MTU, Member, Shared, Way, clock, now};
use crate::Fault;
use crate::d3p::Timestamp;
use crate::esp::{Carrier, HEADROOM, OpenError, TAILROOM};
use crate::fragment::Fragments;
use crate::header::{Fragment, Header, protocol};
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
    /// For fragments and answers.
    scratch: Vec<u8>,
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

/// One packet of a pair of zones, and all it is decided by.
#[derive(Clone, Copy)]
struct Case<'a> {
    shared: &'a Shared,
    view: &'a View,
    /// The number of the VPN.
    vpn: usize,
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
            scratch: vec![0; BUFFER],
            reassembler: Reassembler::new(usize::from(DEVICE_MTU)),
            answers: (0, 0),
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
                let read = self.port.device().recv_multiple(&mut whole, free, lengths, HEADROOM);
                // Nothing there, or a packet that cannot be split: the next one will do.
                let Ok(count) = read else { break };
                if used == 0 {
                    view.look(&shared);
                }
                for (index, size) in sizes.iter().enumerate().skip(used).take(count) {
                    self.take(&shared, &view, &mut buffers, index, HEADROOM..HEADROOM + size);
                }
                used += count;
            }
            if used == 0 {
                let _ = poll(&mut [PollFd::new(self.port.device(), PollFlags::IN)], Some(&PATIENCE));
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
        let pair = match view.routes.behind(header.destination) {
            Some(Behind::Zone(to)) => shared.pairs.get(&(self.zone, to)),
            Some(Behind::Elsewhere) => None,
            // The main table knows no way, and another table of the host might take it past us.
            None => return,
        };
        let Some((vpn, way)) = pair else { return self.port.host(index, packet, Trust::Verify) };
        let (Some(member), Some(gspd)) = (shared.members.get(*vpn), view.gspds.get(*vpn)) else { return };
        let case = Case { shared, view, vpn: *vpn, member, gspd, header };
        match way {
            Way::Out => self.outbound(&case, buffers, index, packet),
            Way::In if case.is_fragment_of_esp() => {
                // What came before leaves before: the whole is sent at once.
                self.flush(shared, buffers);
                let fragment = buffers.get(index).and_then(|buffer| buffer.get(packet));
                self.inbound_fragment(&case, fragment.unwrap_or_default());
            }
            Way::In => {
                if let Some(clear) = self.inbound(&case, buffer, packet) {
                    self.port.host(index, clear, Trust::Verify);
                }
            }
        }
    }

    fn outbound(&mut self, case: &Case<'_>, buffers: &mut [Vec<u8>], index: usize, packet: Range<usize>) {
        let Case { shared, view, vpn, member, gspd, header } = *case;
        let Some(buffer) = buffers.get_mut(index) else { return };
        let mut counters = lock(&member.outbound);
        let result = path::outbound(gspd, &mut counters, view.when, member.shape, buffer, packet.clone());
        match result {
            Ok(Passed { packet, how: How::Clear(_) }) => self.port.host(index, packet, Trust::Verify),
            Ok(Passed { packet, how: How::Esp(sa) }) => {
                match member.shape.carrier {
                    Carrier::Raw => self.port.raw(index, packet, header.destination, vpn),
                    Carrier::Udp => self.port.host(index, packet, Trust::Own),
                }
                watch(shared, &sa);
                if sa.is_spent() {
                    shared.tell_spent(member, view.when.now, sa.spi);
                }
            }
            Err(Dropped::TooBig { room }) => {
                drop(counters);
                self.flush(shared, buffers);
                let whole = buffers.get(index).and_then(|buffer| buffer.get(packet)).unwrap_or_default();
                self.too_big(case, whole, room);
            }
            Err(Dropped::Spent(spi)) => shared.tell_spent(member, view.when.now, spi),
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
                counters.not_sent += u64::from(!self.port.send_now(sealed, case.header.destination));
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
                    self.port.host_now(scratch.get(clear).unwrap_or_default());
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

impl Case<'_> {
    /// True for a part of ESP, which must be put together before it can be opened. Parts of UDP that may pass in clear pass as
    /// they are.
    fn is_fragment_of_esp(&self) -> bool {
        let header = &self.header;
        let may_be = match header.protocol {
            protocol::ESP => true,
            protocol::UDP => {
                self.member.shape.carrier == Carrier::Udp
                    && !matches!(self.gspd.inbound(header, self.view.when.now), Inbound::Clear(_))
            }
            _ => false,
        };
        header.is_v4() && header.fragment != Fragment::Whole && may_be
    }
}

fn watch(shared: &Shared, sa: &Sa) {
    if sa.take_soft_limit() {
        (shared.tell)(Fault::SoftLimit { vpn: sa.vpn.clone(), spi: sa.spi });
    }
}
