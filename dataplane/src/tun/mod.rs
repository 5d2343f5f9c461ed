//! The userspace backend: ESP between TUN devices and raw sockets, one TUN device and one blocking thread per zone.
//!
//! ```text
//! interfaces of a zone -> gdoi<from> -> to which zone? -> pair of a vpn, outbound   seal -> raw socket, marked; or
//!                                                                                      in UDP: gdoi<to>
//!                                                      -> pair of a vpn, inbound    open -> gdoi<to>, routed on by the host
//!                                                      -> no pair                   gdoi<from>, routed on by the host
//! ```
//!
//! What passes in clear goes back to the host too, through the device of the zone it was decided for; the host routes it on
//! by its main table. The threads know that table ([`routes`]): it says which zone a packet is on its way to. Where the two
//! disagree for a moment, `filter.rs` drops the packet.
//!
//! Multicast comes as a copy and goes to every zone its zone forms a pair with, on every interface (`multicast.rs`).
//! The zone `host` is this machine: what it sends to a zone it forms a pair with, and what comes from there for it.

pub(crate) mod filter;
mod merge;
mod multicast;
mod port;
pub mod routes;
pub mod steer;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::SenderIds;
use rustix::net::sockopt;
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::esp::{Carrier, DfBit};
use crate::path::{Counters, Shape};
use crate::policy::{Gspd, Rules};
use crate::sa::{Moment, SEED, Sa};
use crate::{DataPlane, DataPlaneError, Fault, TekInstall, Tell, Traffic};

/// Longest packet a TUN device takes: what passes in clear must not meet a narrower place here than elsewhere. What is
/// sealed is measured by the tunnel's own MTU.
const DEVICE_MTU: u16 = 9216;
/// IPPROTO_RAW: we write the IP header.
const RAW: i32 = 255;

/// The zone of this machine's own traffic; no interface belongs to it.
pub const HOST: &str = "host";

/// A zone: a name for interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// Its interfaces; they need not exist yet.
    pub interfaces: Vec<String>,
}

/// The VPN that protects what goes from one zone to another and its answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair {
    /// Where traffic in clear comes from.
    pub from: String,
    /// Where it goes to as ESP.
    pub to: String,
    /// The VPN.
    pub vpn: String,
}

/// A VPN with traffic.
#[derive(Debug, Clone)]
pub struct VpnSettings {
    /// Its name.
    pub name: String,
    /// Largest ESP packet, outer header included, 256-9192 octets.
    pub tunnel_mtu: u16,
    /// DF of outer headers.
    pub df: DfBit,
    /// What carries ESP.
    pub carrier: Carrier,
    /// The operator's rules.
    pub rules: Rules,
}

impl Default for VpnSettings {
    fn default() -> VpnSettings {
        VpnSettings {
            name: String::new(),
            tunnel_mtu: 1500,
            df: DfBit::default(),
            carrier: Carrier::Raw,
            rules: Rules::default(),
        }
    }
}

/// What the backend is made with.
#[derive(Debug, Clone, Default)]
pub struct TunSettings {
    /// Zones; one that no pair names is not steered.
    pub zones: Vec<Zone>,
    /// At most one for two zones, whichever way.
    pub pairs: Vec<Pair>,
    /// The VPNs of the pairs.
    pub vpns: Vec<VpnSettings>,
}

impl TunSettings {
    /// The zones that are steered: those of pairs.
    pub fn steered(&self) -> Vec<&Zone> {
        let named: BTreeSet<&str> =
            self.pairs.iter().flat_map(|pair| [pair.from.as_str(), pair.to.as_str()]).collect();
        self.zones.iter().filter(|zone| named.contains(zone.name.as_str())).collect()
    }

    /// What [`steer::hold`] takes.
    ///
    /// # Errors
    /// [`DataPlaneError`] for pairs that name what is not there, or each other twice.
    pub fn layout(&self) -> Result<steer::Layout, DataPlaneError> {
        Ok(self.layout_of(&resolve(self)?))
    }

    fn layout_of(&self, pairs: &Pairs) -> steer::Layout {
        let zones = self.steered();
        let outward = pairs.iter().filter(|(_, (_, way))| *way == Way::Out);
        steer::Layout {
            interfaces: zones.iter().map(|zone| zone.interfaces.clone()).collect(),
            host: zones.iter().position(|zone| zone.name == HOST),
            pairs: outward.map(|(pair, _)| *pair).collect(),
        }
    }
}

/// Random octets of the crypto library.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// The backend. When it is dropped its devices go and traffic stops; [`TunPlane::release`] gives the host its routing
/// back.
pub struct TunPlane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    random: Random,
    activations: u64,
    memberships: multicast::Memberships,
}

/// Which side of a pair a packet is on its way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Towards the zone that sees ESP.
    Out,
    /// Towards the zone that sees clear packets.
    In,
}

/// One VPN as the threads see it.
struct Member {
    name: String,
    gspd: RwLock<Arc<Gspd>>,
    shape: Shape,
    outbound: Mutex<Counters>,
    inbound: Mutex<Counters>,
    /// Second of the last fault that every packet repeats: an unknown SPI, and a TEK that is spent.
    told: [AtomicU64; 2],
}

struct Shared {
    members: Vec<Member>,
    pairs: Pairs,
    layout: steer::Layout,
    routes: routes::Follower,
    stop: AtomicBool,
    tell: Tell,
}

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Monotonic, and running while the machine sleeps: lives of keys go on.
pub(crate) fn now() -> Moment {
    clock(ClockId::Boottime)
}

fn failed(what: &str) -> impl Fn(io::Error) -> DataPlaneError {
    move |error| DataPlaneError(format!("{what}: {error}"))
}

impl Member {
    fn new(settings: VpnSettings) -> Member {
        Member {
            name: settings.name,
            gspd: RwLock::new(Arc::new(Gspd::new(settings.rules))),
            shape: Shape {
                df: settings.df,
                mtu: usize::from(settings.tunnel_mtu),
                carrier: settings.carrier,
            },
            outbound: Mutex::default(),
            inbound: Mutex::default(),
            told: [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)],
        }
    }

    fn gspd(&self) -> Arc<Gspd> {
        Arc::clone(&self.gspd.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Gspd)) {
        let mut gspd = Gspd::clone(&self.gspd());
        change(&mut gspd);
        *self.gspd.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(gspd);
    }
}

impl Shared {
    /// Tells of ESP nobody can open, once a second at most: strangers can cause it at will.
    fn tell_stranger(&self, member: &Member, now: Moment, spi: Spi, source: IpAddr) {
        self.tell_seldom(member, 0, now, || Fault::UnknownSpi { vpn: member.name.clone(), spi, source });
    }

    /// Tells of a TEK that has nothing left, once a second at most: every packet finds it so.
    fn tell_spent(&self, member: &Member, now: Moment, spi: Spi) {
        self.tell_seldom(member, 1, now, || Fault::Spent { vpn: member.name.clone(), spi });
    }

    fn tell_seldom(&self, member: &Member, kind: usize, now: Moment, fault: impl FnOnce() -> Fault) {
        let told = member.told.get(kind).map(|told| told.swap(now.as_secs(), Ordering::Relaxed));
        if told != Some(now.as_secs()) {
            (self.tell)(fault());
        }
    }
}

fn device(name: &str) -> Result<SyncDevice, DataPlaneError> {
    let device = DeviceBuilder::new().name(name).mtu(DEVICE_MTU).offload(true).enable(true).build_sync();
    let device = device.map_err(failed(name))?;
    device.set_nonblocking(true).map_err(failed(name))?;
    Ok(device)
}

/// Packets we hand back arrive on devices without an address that their source is not behind: any check of the source
/// drops them there. The strictest of "all" and the device's own setting holds, so what "all" says becomes the setting of
/// each interface that is there and of those to come: for them nothing changes.
fn check_no_source_here(devices: &[String]) -> Result<(), DataPlaneError> {
    let conf = "/proc/sys/net/ipv4/conf";
    let path = |name: &str| format!("{conf}/{name}/rp_filter");
    let read = |name: &str| {
        let text = std::fs::read_to_string(path(name)).map_err(failed(&path(name)))?;
        Ok::<u8, DataPlaneError>(text.trim().parse().unwrap_or(0))
    };
    let write = |name: &str, value: u8| {
        std::fs::write(path(name), value.to_string()).map_err(|error| {
            let advice = "must be 0 in \"all\", and per interface what it is there";
            DataPlaneError(format!("{}: {error}: rp_filter {advice}", path(name)))
        })
    };
    let all = read("all")?;
    if all > 0 {
        for entry in std::fs::read_dir(conf).map_err(failed(conf))? {
            let name = entry.map_err(failed(conf))?.file_name();
            let Some(name) = name.to_str() else { continue };
            // An interface may have gone since.
            if name != "all" && read(name).is_ok_and(|own| own < all) {
                write(name, all)?;
            }
        }
        write("all", 0)?;
    }
    for device in devices {
        if read(device)? > 0 {
            write(device, 0)?;
        }
    }
    Ok(())
}

fn raw_socket(domain: Domain) -> Result<Socket, DataPlaneError> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW))).map_err(failed("raw socket"))?;
    socket.set_mark(steer::MARK).map_err(failed("mark of the raw socket"))?;
    // A path MTU the kernel has learned is that of packets before they were sealed: what is sealed has the same addresses.
    let own_mtu = match domain {
        Domain::IPV4 => sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::PROBE),
        _ => sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::PROBE),
    };
    own_mtu.map_err(|error| failed("MTU of the raw socket")(error.into()))?;
    Ok(socket)
}

/// VPN and way by the zone a packet comes from and the one it goes to.
type Pairs = BTreeMap<(usize, usize), (usize, Way)>;

fn resolve(settings: &TunSettings) -> Result<Pairs, DataPlaneError> {
    let steered = settings.steered();
    let zone = |name: &str| {
        let found = steered.iter().position(|zone| zone.name == name);
        found.ok_or_else(|| DataPlaneError(format!("no zone {name} with interfaces")))
    };
    let mut pairs = BTreeMap::new();
    for pair in &settings.pairs {
        let (from, to) = (zone(&pair.from)?, zone(&pair.to)?);
        let vpn = settings.vpns.iter().position(|vpn| vpn.name == pair.vpn);
        let vpn = vpn.ok_or_else(|| DataPlaneError(format!("no vpn {}", pair.vpn)))?;
        if pair.from == HOST && settings.vpns.get(vpn).is_some_and(|vpn| vpn.carrier == Carrier::Udp) {
            return Err(DataPlaneError(format!("{}: ESP in UDP is not for the zone host", pair.vpn)));
        }
        let taken = pairs.contains_key(&(from, to));
        if pair.to == HOST {
            return Err(DataPlaneError(
                "traffic to the zone host is not protected: name it from-zone".to_owned(),
            ));
        }
        if from == to || taken {
            return Err(DataPlaneError(format!("zones {} and {} have a vpn already", pair.from, pair.to)));
        }
        pairs.insert((from, to), (vpn, Way::Out));
        pairs.insert((to, from), (vpn, Way::In));
    }
    Ok(pairs)
}

impl TunPlane {
    /// Steers the zones to new TUN devices and starts the threads. Nothing passes in clear at any moment between. What a
    /// process that is dead left behind is replaced.
    ///
    /// # Errors
    /// [`DataPlaneError`]: no rights, another data plane is running, a kernel without policy routing or TUN.
    pub fn start(settings: TunSettings, random: Random, tell: Tell) -> Result<TunPlane, DataPlaneError> {
        let pairs = resolve(&settings)?;
        let layout = settings.layout_of(&pairs);
        if steer::is_running()? {
            return Err(DataPlaneError("another data plane is running on this machine".to_owned()));
        }
        steer::hold(&layout)?;
        let names: Vec<String> = (0..layout.interfaces.len()).map(steer::device_name).collect();
        let devices = names.iter().map(|name| device(name)).collect::<Result<Vec<_>, _>>()?;
        check_no_source_here(&names)?;
        let indices = devices.iter().map(|device| device.if_index()).collect::<Result<Vec<_>, _>>();
        let indices = indices.map_err(failed("index of a TUN device"))?;
        let devices = Arc::new(devices);
        let routes = routes::Follower::start(layout.interfaces.clone())?;
        let shared = Arc::new(Shared {
            members: settings.vpns.into_iter().map(Member::new).collect(),
            pairs,
            layout,
            routes,
            stop: AtomicBool::new(false),
            tell,
        });
        let memberships = multicast::Memberships::new()?;
        let mut plane = TunPlane { shared, threads: Vec::new(), random, activations: 0, memberships };
        for (zone, name) in names.into_iter().enumerate() {
            let sockets = [raw_socket(Domain::IPV4)?, raw_socket(Domain::IPV6)?];
            let port = port::Port::new(Arc::clone(&devices), zone, sockets, work::BATCH);
            let worker = work::Worker::new(Arc::clone(&plane.shared), zone, port);
            let thread = std::thread::Builder::new().name(name);
            plane.threads.push(thread.spawn(move || worker.run()).map_err(failed("thread"))?);
        }
        steer::connect(&plane.shared.layout, &indices)?;
        Ok(plane)
    }

    /// What went out and what came in so far, of one VPN.
    pub fn counters(&self, vpn: &str) -> Option<(Counters, Counters)> {
        let member = self.member(vpn).ok()?;
        let copy = |of: &Mutex<Counters>| of.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some((copy(&member.outbound), copy(&member.inbound)))
    }

    /// Ends it and gives the host its own routing back.
    ///
    /// # Errors
    /// [`DataPlaneError`] when the kernel refuses.
    pub fn release(self) -> Result<(), DataPlaneError> {
        drop(self);
        steer::release()
    }

    fn member(&self, vpn: &str) -> Result<&Member, DataPlaneError> {
        let found = self.shared.members.iter().find(|member| member.name == vpn);
        found.ok_or_else(|| DataPlaneError(format!("{vpn}: no zones belong to this vpn")))
    }

    /// The interfaces of the zones whose traffic a VPN protects.
    fn interfaces(&self, vpn: &str) -> impl Iterator<Item = &String> + Clone {
        let index = self.shared.members.iter().position(|member| member.name == vpn);
        let pairs = self.shared.pairs.iter().filter(move |(_, (vpn, _))| Some(*vpn) == index);
        pairs.filter_map(|((zone, _), _)| self.shared.layout.interfaces.get(*zone)).flatten()
    }

    /// True when traffic of `vpn` takes this way; keys of other VPNs are only shown.
    pub fn carries(&self, vpn: &str) -> bool {
        self.member(vpn).is_ok()
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

impl DataPlane for TunPlane {
    fn name(&self) -> &'static str {
        "tun"
    }

    fn install(&mut self, tek: TekInstall) -> Result<(), DataPlaneError> {
        if !self.carries(&tek.vpn) {
            return Ok(());
        }
        let mut seed = [0; SEED];
        (self.random)(&mut seed);
        let sa = Arc::new(Sa::new(&tek, now(), &seed)?);
        self.memberships.join(&sa.selector.destination, self.interfaces(&tek.vpn));
        self.member(&tek.vpn)?.change(|gspd| gspd.install(sa));
        Ok(())
    }

    fn activate(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError> {
        if !self.carries(vpn) {
            return Ok(());
        }
        self.activations += 1;
        let gspd = self.member(vpn)?.gspd();
        let sa = gspd.find(spi);
        let sa = sa.ok_or_else(|| DataPlaneError(format!("{vpn}: TEK {spi} is not installed")))?;
        sa.activate(self.activations)
    }

    fn set_sender_ids(&mut self, vpn: &str, spi: Spi, sender_ids: SenderIds) -> Result<(), DataPlaneError> {
        if !self.carries(vpn) {
            return Ok(());
        }
        let member = self.member(vpn)?;
        let gspd = member.gspd();
        let sa = gspd.find(spi);
        let sa = sa.ok_or_else(|| DataPlaneError(format!("{vpn}: TEK {spi} is not installed")))?;
        let sa = Arc::new(sa.with_sender_ids(&sender_ids)?);
        member.change(|gspd| gspd.install(sa));
        Ok(())
    }

    fn remove(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError> {
        if let Ok(member) = self.member(vpn) {
            member.change(|gspd| gspd.remove(spi, now()));
        }
        Ok(())
    }

    fn set_rules(&mut self, vpn: &str, rules: Rules) {
        if let Ok(member) = self.member(vpn) {
            member.change(|gspd| gspd.set_rules(rules));
        }
    }

    fn traffic(&self, vpn: &str) -> Option<Traffic> {
        let (outbound, inbound) = self.counters(vpn)?;
        let gspd = self.member(vpn).ok()?.gspd();
        let sas = gspd.sas().map(|sa| (sa.spi, sa.counters())).collect();
        Some(Traffic { outbound, inbound, sas })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str, &str)]) -> TunSettings {
        let zone = |name: &str| Zone { name: name.to_owned(), interfaces: vec![format!("{name}0")] };
        let vpn = |name: &str| VpnSettings { name: name.to_owned(), ..VpnSettings::default() };
        let pair = |(from, to, vpn): &(&str, &str, &str)| Pair {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
            vpn: (*vpn).to_owned(),
        };
        TunSettings {
            zones: ["idle", "lan", "dmz", "wan"].map(zone).to_vec(),
            pairs: pairs.iter().map(pair).collect(),
            vpns: ["a", "b"].map(vpn).to_vec(),
        }
    }

    #[test]
    fn a_pair_holds_both_ways_and_zones_without_one_are_left_alone() {
        let settings = settings(&[("lan", "wan", "b"), ("dmz", "wan", "a")]);
        let layout = settings.layout().unwrap();
        assert_eq!(layout.interfaces, [["lan0"], ["dmz0"], ["wan0"]]);
        assert_eq!((layout.host, layout.pairs), (None, vec![(0, 2), (1, 2)]));
        let pairs = resolve(&settings).unwrap();
        assert_eq!(pairs.get(&(0, 2)), Some(&(1, Way::Out)));
        assert_eq!(pairs.get(&(2, 0)), Some(&(1, Way::In)));
        assert_eq!(pairs.get(&(2, 1)), Some(&(0, Way::In)));
        assert_eq!(pairs.get(&(0, 1)), None);
    }

    #[test]
    fn two_vpns_for_one_pair_are_refused_whichever_way() {
        assert!(resolve(&settings(&[("lan", "wan", "a"), ("wan", "lan", "b")])).is_err());
        assert!(resolve(&settings(&[("lan", "nowhere", "a")])).is_err());
        assert!(resolve(&settings(&[("lan", "wan", "c")])).is_err());
    }

    #[test]
    fn the_machine_itself_is_a_zone_without_interfaces_on_the_clear_side_only() {
        let mut settings = settings(&[("host", "wan", "a"), ("lan", "wan", "b")]);
        settings.zones.push(Zone { name: HOST.to_owned(), interfaces: Vec::new() });
        let layout = settings.layout().unwrap();
        assert_eq!(layout.host, Some(2));
        assert!(layout.is_paired_with_host(1) && !layout.is_paired_with_host(0));
        settings.pairs[0] = Pair { from: "wan".to_owned(), to: HOST.to_owned(), vpn: "a".to_owned() };
        assert!(settings.layout().is_err());
    }
}
