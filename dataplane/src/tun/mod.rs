//! The userspace backend: ESP between two TUN devices and raw sockets, one blocking thread per direction.
//!
//! ```text
//! inside interface  -> gdoi-out -> [rules, seal] -> raw socket, marked         ESP
//!                                                -> gdoi-out                   clear, routed on by the host
//! outside interface -> gdoi-in  -> [open, rules] -> gdoi-in                    clear, routed on by the host
//! ```
//!
//! The MTU of `gdoi-out` leaves room for ESP: the kernel fragments before encryption and tells hosts of the path MTU.
//! One VPN between two sets of interfaces; traffic of the host itself is not steered.

pub mod steer;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::SenderIds;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};
use tun_rs::{DeviceBuilder, IDEAL_BATCH_SIZE, SyncDevice, VIRTIO_NET_HDR_LEN};

use crate::d3p::Timestamp;
use crate::esp::{DfBit, HEADROOM, TAILROOM};
use crate::path::{self, Counters, Dropped, How, When};
use crate::policy::{Gspd, Rules};
use crate::sa::{Moment, SEED, Sa};
use crate::{DataPlane, DataPlaneError, Fault, TekInstall};

/// Most octets a packet gains: IPv6 tunnel, AES-CBC with HMAC-SHA-512, IP-D3P.
const OVERHEAD: u16 = 40 + 8 + 16 + 12 + 15 + 2 + 32;
/// How often a thread looks whether it should end.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Faults that wait for the daemon; further ones are only counted.
const FAULTS: usize = 64;
/// IPPROTO_RAW: we write the IP header.
const RAW: i32 = 255;

/// What the backend is made with.
#[derive(Debug, Clone, Default)]
pub struct TunSettings {
    /// The VPN whose TEKs it takes.
    pub vpn: String,
    /// Interfaces traffic to be protected arrives on.
    pub inside: Vec<String>,
    /// Interfaces of the network that carries ESP.
    pub outside: Vec<String>,
    /// Largest packet of that network, 256-9192 octets.
    pub tunnel_mtu: u16,
    /// DF of outer headers.
    pub df: DfBit,
    /// The operator's rules.
    pub rules: Rules,
}

/// Random octets of the crypto library.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// The backend. When it is dropped its devices go and traffic stops; [`TunPlane::release`] gives the host its routing
/// back.
pub struct TunPlane {
    vpn: String,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    faults: Receiver<Fault>,
    random: Random,
    activations: u64,
}

struct Shared {
    gspd: RwLock<Arc<Gspd>>,
    df: DfBit,
    stop: AtomicBool,
    outbound: Mutex<Counters>,
    inbound: Mutex<Counters>,
    faults: SyncSender<Fault>,
}

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Monotonic, and running while the machine sleeps: lives of keys go on.
fn now() -> Moment {
    clock(ClockId::Boottime)
}

fn failed(what: &str) -> impl Fn(io::Error) -> DataPlaneError {
    move |error| DataPlaneError(format!("{what}: {error}"))
}

impl Shared {
    fn gspd(&self) -> Arc<Gspd> {
        Arc::clone(&self.gspd.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, fault: Fault) {
        // A full queue holds enough to act on.
        let _ = self.faults.try_send(fault);
    }
}

fn device(name: &str, mtu: u16) -> Result<SyncDevice, DataPlaneError> {
    let device = DeviceBuilder::new().name(name).mtu(mtu).offload(true).enable(true).build_sync();
    let device = device.map_err(failed(name))?;
    device.set_nonblocking(true).map_err(failed(name))?;
    // Packets we hand back arrive on a device without an address that their source is not behind: any check of the
    // source drops them there. The strictest of "all" and the device's own setting holds.
    let conf = "/proc/sys/net/ipv4/conf";
    let path = format!("{conf}/{name}/rp_filter");
    std::fs::write(&path, "0").map_err(failed(&path))?;
    let all = format!("{conf}/all/rp_filter");
    if std::fs::read_to_string(&all).map_err(failed(&all))?.trim() != "0" {
        return Err(DataPlaneError(format!("{all} must be 0: set rp_filter per interface instead")));
    }
    Ok(device)
}

fn raw_socket(domain: Domain) -> Result<Socket, DataPlaneError> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW))).map_err(failed("raw socket"))?;
    socket.set_mark(steer::MARK).map_err(failed("mark of the raw socket"))?;
    Ok(socket)
}

impl TunPlane {
    /// Steers the interfaces to new TUN devices `gdoi-out` and `gdoi-in` and starts the threads. Nothing passes in clear
    /// at any moment between.
    ///
    /// # Errors
    /// [`DataPlaneError`]: no rights, an interface name in use, a kernel without policy routing or TUN.
    pub fn start(settings: TunSettings, random: Random) -> Result<TunPlane, DataPlaneError> {
        steer::hold(&settings.inside, &settings.outside)?;
        let out = device("gdoi-out", settings.tunnel_mtu.saturating_sub(OVERHEAD))?;
        let inward = device("gdoi-in", settings.tunnel_mtu)?;
        let index = |device: &SyncDevice| device.if_index().map_err(failed("index of a TUN device"));
        let (four, six) = (raw_socket(Domain::IPV4)?, raw_socket(Domain::IPV6)?);
        steer::connect(index(&out)?, index(&inward)?)?;
        let (faults, taken) = sync_channel(FAULTS);
        let shared = Arc::new(Shared {
            gspd: RwLock::new(Arc::new(Gspd::new(settings.rules))),
            df: settings.df,
            stop: AtomicBool::new(false),
            outbound: Mutex::default(),
            inbound: Mutex::default(),
            faults,
        });
        let mut plane = TunPlane {
            vpn: settings.vpn,
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            faults: taken,
            random,
            activations: 0,
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let outward = Arc::clone(&shared);
        plane.threads.push(
            thread("gdoi-out")
                .spawn(move || {
                    work(&outward, &out, |gspd, when, buffer, packet| {
                        outbound(&outward, &out, [&four, &six], gspd, when, buffer, packet);
                    });
                })
                .map_err(failed("thread"))?,
        );
        plane.threads.push(
            thread("gdoi-in")
                .spawn(move || {
                    work(&shared, &inward, |gspd, when, buffer, packet| {
                        incoming(&shared, &inward, gspd, when, buffer, packet);
                    });
                })
                .map_err(failed("thread"))?,
        );
        Ok(plane)
    }

    /// What went out and what came in so far.
    pub fn counters(&self) -> (Counters, Counters) {
        let copy = |of: &Mutex<Counters>| of.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (copy(&self.shared.outbound), copy(&self.shared.inbound))
    }

    /// Ends it and gives the host its own routing back.
    ///
    /// # Errors
    /// [`DataPlaneError`] when the kernel refuses.
    pub fn release(self) -> Result<(), DataPlaneError> {
        drop(self);
        steer::release()
    }

    fn change(&mut self, change: impl FnOnce(&mut Gspd)) {
        let mut gspd = Gspd::clone(&self.shared.gspd());
        change(&mut gspd);
        *self.shared.gspd.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(gspd);
    }

    fn check_vpn(&self, vpn: &str) -> Result<(), DataPlaneError> {
        match vpn == self.vpn {
            true => Ok(()),
            false => Err(DataPlaneError(format!("{vpn}: no zones belong to this vpn"))),
        }
    }
}

impl Drop for TunPlane {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// Reads packets of a device until told to stop.
fn work(shared: &Shared, device: &SyncDevice, mut take: impl FnMut(&Gspd, When, &mut [u8], Range<usize>)) {
    let mut whole = vec![0; VIRTIO_NET_HDR_LEN + 65535];
    let mut buffers = vec![vec![0; HEADROOM + 9216 + TAILROOM]; IDEAL_BATCH_SIZE];
    let mut sizes = vec![0; IDEAL_BATCH_SIZE];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok(count) = device.recv_multiple(&mut whole, &mut buffers, &mut sizes, HEADROOM) else {
            // Nothing there, or a packet that cannot be split: the next one will do.
            let _ = poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&PATIENCE));
            continue;
        };
        let gspd = shared.gspd();
        let when = When { now: now(), wall: Timestamp::new(clock(ClockId::Realtime)) };
        for (buffer, size) in buffers.iter_mut().zip(&sizes).take(count) {
            take(&gspd, when, buffer, HEADROOM..HEADROOM + size);
        }
    }
}

/// Hands a packet back to the host, which routes it on: an empty virtio header goes before it.
fn give_back(device: &SyncDevice, buffer: &mut [u8], packet: Range<usize>) {
    let Some(start) = packet.start.checked_sub(VIRTIO_NET_HDR_LEN) else { return };
    let Some(header) = buffer.get_mut(start..packet.start) else { return };
    header.fill(0);
    let Some(octets) = buffer.get(start..packet.end) else { return };
    // A full queue drops packets as a full queue of any interface does.
    let _ = device.send(octets);
}

fn outbound(
    shared: &Shared,
    device: &SyncDevice,
    [four, six]: [&Socket; 2],
    gspd: &Gspd,
    when: When,
    buffer: &mut [u8],
    packet: Range<usize>,
) {
    let mut counters = shared.outbound.lock().unwrap_or_else(PoisonError::into_inner);
    let result = path::outbound(gspd, &mut counters, when, shared.df, buffer, packet);
    drop(counters);
    match result {
        Ok(passed) => match passed.how {
            How::Clear(_) => give_back(device, buffer, passed.packet),
            How::Esp(sa) => {
                if sa.take_soft_limit() {
                    shared.tell(Fault::SoftLimit { vpn: sa.vpn.clone(), spi: sa.spi });
                }
                let Some(octets) = buffer.get(passed.packet) else { return };
                let Ok(header) = crate::header::Header::read(octets) else { return };
                let socket = if header.destination.is_ipv4() { four } else { six };
                // No route or a full queue: counted by the kernel.
                let _ = socket.send_to(octets, &SocketAddr::new(header.destination, 0).into());
            }
        },
        Err(Dropped::Spent(spi)) => {
            if let Some(sa) = gspd.find(spi) {
                shared.tell(Fault::Spent { vpn: sa.vpn.clone(), spi });
            }
        }
        Err(_) => {}
    }
}

fn incoming(
    shared: &Shared,
    device: &SyncDevice,
    gspd: &Gspd,
    when: When,
    buffer: &mut [u8],
    packet: Range<usize>,
) {
    let source: Option<IpAddr> = buffer
        .get(packet.clone())
        .and_then(|octets| crate::header::Header::read(octets).ok())
        .map(|it| it.source);
    let mut counters = shared.inbound.lock().unwrap_or_else(PoisonError::into_inner);
    let result = path::inbound(gspd, &mut counters, when, buffer, packet);
    drop(counters);
    match (result, source) {
        (Ok(passed), _) => give_back(device, buffer, passed.packet),
        (Err(Dropped::UnknownSpi(spi)), Some(source)) => shared.tell(Fault::UnknownSpi { spi, source }),
        (Err(_), _) => {}
    }
}

impl DataPlane for TunPlane {
    fn name(&self) -> &'static str {
        "tun"
    }

    fn install(&mut self, tek: TekInstall) -> Result<(), DataPlaneError> {
        self.check_vpn(&tek.vpn)?;
        let mut seed = [0; SEED];
        (self.random)(&mut seed);
        let sa = Arc::new(Sa::new(&tek, now(), &seed)?);
        self.change(|gspd| gspd.install(sa));
        Ok(())
    }

    fn activate(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError> {
        self.check_vpn(vpn)?;
        let gspd = self.shared.gspd();
        let sa = gspd.find(spi);
        let sa = sa.ok_or_else(|| DataPlaneError(format!("{vpn}: TEK {spi} is not installed")))?;
        self.activations += 1;
        sa.activate(self.activations)
    }

    fn set_sender_ids(&mut self, vpn: &str, spi: Spi, sender_ids: SenderIds) -> Result<(), DataPlaneError> {
        self.check_vpn(vpn)?;
        let gspd = self.shared.gspd();
        let sa =
            gspd.find(spi).ok_or_else(|| DataPlaneError(format!("{vpn}: TEK {spi} is not installed")))?;
        sa.set_sender_ids(&sender_ids).map_err(|error| DataPlaneError(format!("{vpn}: TEK {spi}: {error}")))
    }

    fn remove(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError> {
        self.check_vpn(vpn)?;
        self.change(|gspd| gspd.remove(spi, now()));
        Ok(())
    }

    fn poll_fault(&mut self) -> Option<Fault> {
        self.faults.try_recv().ok()
    }
}
