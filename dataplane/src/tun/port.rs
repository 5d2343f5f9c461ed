//! The ways out of one zone: ESP by raw sockets, many packets a call; everything else, and ESP in UDP, by the TUN device,
//! where packets of one flow go as one.
//!
//! Packets wait here as places in the buffers of the batch they were read with, and leave in the order they came.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use arrayvec::ArrayVec;
use rustix::io::writev;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use socket2::Socket;
use tun_rs::{SyncDevice, VIRTIO_NET_HDR_LEN, VirtioNetHdr};

use super::merge::{LONGEST, Run, Trust};

/// Packets in one call of a raw socket.
const TOGETHER: usize = 64;

/// A packet that waits: where it lies, and what it is.
#[derive(Debug, Clone)]
struct Waiting<T> {
    buffer: usize,
    at: Range<usize>,
    what: T,
}

impl<T> Waiting<T> {
    fn octets<'a>(&self, buffers: &'a [Vec<u8>]) -> &'a [u8] {
        buffers.get(self.buffer).and_then(|buffer| buffer.get(self.at.clone())).unwrap_or_default()
    }
}

/// Raw ESP: where it goes, and the number of its VPN.
#[derive(Debug, Clone, Copy)]
struct Raw {
    to: IpAddr,
    vpn: usize,
}

/// One zone's ways out.
pub struct Port {
    device: SyncDevice,
    /// IPv4 and IPv6.
    sockets: [Socket; 2],
    raw: Vec<Waiting<Raw>>,
    host: Vec<Waiting<Trust>>,
}

impl Port {
    /// Room for `packets` that wait.
    pub fn new(device: SyncDevice, sockets: [Socket; 2], packets: usize) -> Port {
        Port { device, sockets, raw: Vec::with_capacity(packets), host: Vec::with_capacity(packets) }
    }

    /// The TUN device.
    pub fn device(&self) -> &SyncDevice {
        &self.device
    }

    /// ESP that goes past the steering to `to`.
    pub fn raw(&mut self, buffer: usize, at: Range<usize>, to: IpAddr, vpn: usize) {
        self.raw.push(Waiting { buffer, at, what: Raw { to, vpn } });
    }

    /// A packet the host routes on.
    pub fn host(&mut self, buffer: usize, at: Range<usize>, trust: Trust) {
        self.host.push(Waiting { buffer, at, what: trust });
    }

    /// Sends everything that waits. `lost` gets the number of the VPN of each packet of ESP that the system did not send: no
    /// route, too long for the interface, a full queue.
    pub fn flush(&mut self, buffers: &mut [Vec<u8>], mut lost: impl FnMut(usize)) {
        let mut rest = self.raw.as_slice();
        while let Some(first) = rest.first() {
            let family = |waiting: &&Waiting<Raw>| waiting.what.to.is_ipv4() == first.what.to.is_ipv4();
            let (now, later) = rest.split_at(rest.iter().take(TOGETHER).take_while(family).count());
            self.send_raw(now, buffers, &mut lost);
            rest = later;
        }
        self.raw.clear();
        let mut at = 0;
        while let Some(first) = self.host.get(at) {
            at += self.write_run(first, self.host.get(at + 1..).unwrap_or_default(), buffers);
        }
        self.host.clear();
    }

    fn send_raw(&self, packets: &[Waiting<Raw>], buffers: &[Vec<u8>], lost: &mut impl FnMut(usize)) {
        let Some(first) = packets.first() else { return };
        let address = |waiting: &Waiting<Raw>| SocketAddrAny::from(SocketAddr::new(waiting.what.to, 0));
        let addresses: ArrayVec<_, TOGETHER> = packets.iter().map(address).collect();
        let parts: ArrayVec<_, TOGETHER> =
            packets.iter().map(|waiting| [IoSlice::new(waiting.octets(buffers))]).collect();
        let mut controls: ArrayVec<_, TOGETHER> =
            packets.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: ArrayVec<_, TOGETHER> = addresses
            .iter()
            .zip(&parts)
            .zip(&mut controls)
            .map(|((address, part), control)| MMsgHdr::new_with_addr(address, part, control))
            .collect();
        let mut done = 0;
        while let Some(left) = messages.get_mut(done..).filter(|left| !left.is_empty()) {
            done += match sendmmsg(self.socket(first.what.to), left, SendFlags::empty()) {
                Ok(sent) if sent > 0 => sent,
                Err(rustix::io::Errno::INTR) => 0,
                // The first of them was refused; the others may do.
                _ => {
                    packets.get(done).into_iter().for_each(|waiting| lost(waiting.what.vpn));
                    1
                }
            };
        }
    }

    /// Writes `first` and those of `rest` that continue it; how many these are in all.
    fn write_run(&self, first: &Waiting<Trust>, rest: &[Waiting<Trust>], buffers: &mut [Vec<u8>]) -> usize {
        let Some(mut run) = Run::begin(first.octets(buffers), first.what) else {
            self.write(VirtioNetHdr::default(), &[first.octets(buffers)]);
            return 1;
        };
        let head = first.octets(buffers);
        let continues =
            |next: &&Waiting<Trust>| next.what == first.what && run.add(head, next.octets(buffers));
        let more = rest.iter().take_while(continues).count();
        let header = match buffers.get_mut(first.buffer).and_then(|buffer| buffer.get_mut(first.at.clone())) {
            Some(head) if !run.is_single() => run.finish(head),
            _ => VirtioNetHdr::default(),
        };
        let payload =
            |waiting: &Waiting<Trust>| waiting.octets(buffers).get(run.headers()..).unwrap_or_default();
        let mut parts: ArrayVec<&[u8], LONGEST> = ArrayVec::new();
        parts.push(first.octets(buffers));
        parts.extend(rest.iter().take(more).map(payload));
        self.write(header, &parts);
        1 + more
    }

    fn write(&self, header: VirtioNetHdr, parts: &[&[u8]]) {
        let mut before = [0; VIRTIO_NET_HDR_LEN];
        if header.encode(&mut before).is_err() {
            return;
        }
        let mut all: ArrayVec<IoSlice<'_>, { LONGEST + 1 }> = ArrayVec::new();
        all.push(IoSlice::new(&before));
        all.extend(parts.iter().map(|part| IoSlice::new(part)));
        // A full queue drops packets as a full queue of any interface does.
        let _ = writev(&self.device, &all);
    }

    /// Sends a packet at once that lies in no buffer of the batch; false when the system did not.
    pub fn send_now(&self, octets: &[u8], to: IpAddr) -> bool {
        self.socket(to).send_to(octets, &SocketAddr::new(to, 0).into()).is_ok()
    }

    /// Hands a packet to the host at once that lies in no buffer of the batch.
    pub fn host_now(&self, octets: &[u8]) {
        self.write(VirtioNetHdr::default(), &[octets]);
    }

    fn socket(&self, to: IpAddr) -> &Socket {
        let [four, six] = &self.sockets;
        if to.is_ipv4() { four } else { six }
    }
}
