//! The kernel backend: states and policies of Linux (XFRM) for the traffic of this machine itself, the zone `host`.
//!
//! ```text
//! a packet of ours towards a zone  -> filter: mark of the VPN -> policies with that mark -> state of (SPI, destination)
//!   no state for the pair yet      -> the kernel asks (acquire) -> states for the pair, then its policy
//! ESP for an address of ours       -> state of (SPI, address) -> policies with the mark of the interface's zone
//! ```
//!
//! What the kernel should hold is a value (`plan.rs`); every change computes it anew and carries out the difference: states
//! before policies that use them, policies before states nobody uses goes away. Policies outlive the process, states
//! outlive it when it is killed: no packet passes in clear without it. `docs/decisions/0014-kernel-backend.md` says what the
//! kernel can do for groups.

mod flow;
mod message;
mod plan;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::TryStreamExt;
use gdoi_proto::ids::Spi;
use gdoi_proto::policy::SenderIds;
use netlink_packet_xfrm::XfrmMessage;
use netlink_packet_xfrm::policy::DelGetMessage as PolicyQuestion;
use netlink_packet_xfrm::state::GetDumpMessage as StateQuestion;
use rtnetlink::packet_route::address::AddressAttribute;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::esp::{Carrier, DfBit};
use crate::sa::SaCounters;
use crate::tun::{HOST, TunSettings, VpnSettings, filter, now, steer};
use crate::{DataPlane, DataPlaneError, Fault, TekInstall, Tell, Traffic};
use message::Shown;
use plan::{MAX_VPNS, Plan, Policy, PolicyKey, State, StateKey, Vpn};
use socket::{Asking, Hearing};

/// Held by the process whose data plane runs, in its network namespace.
const LOCK: &str = "gdoi-xfrm";
/// How long the thread that listens sleeps at most before it looks whether it should end.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

fn failed(what: &str) -> impl Fn(io::Error) -> DataPlaneError {
    move |error| DataPlaneError(format!("{what}: {error}"))
}

/// What of the settings the kernel cannot do; empty when all is well.
pub fn misfits(settings: &TunSettings) -> Vec<String> {
    let mut found = Vec::new();
    for pair in settings.pairs.iter().filter(|pair| pair.from != HOST) {
        found.push(format!(
            "{}: the kernel backend protects traffic of this machine (from-zone \"host\"), not what it forwards for {}",
            pair.vpn, pair.from
        ));
    }
    for vpn in &settings.vpns {
        if vpn.carrier == Carrier::Udp {
            found.push(format!("{}: esp-encapsulation \"udp\" is not for the kernel backend", vpn.name));
        }
        if vpn.df == DfBit::Set {
            found.push(format!("{}: df-bit \"set\" is not for the kernel backend: clear or copy", vpn.name));
        }
        if vpn.tunnel_mtu != VpnSettings::default().tunnel_mtu {
            found.push(format!(
                "{}: tunnel-mtu is not for the kernel backend, which follows the path",
                vpn.name
            ));
        }
    }
    if settings.vpns.len() > MAX_VPNS {
        found.push(format!("{} vpns, at most {MAX_VPNS}", settings.vpns.len()));
    }
    found
}

/// Interfaces, and the marks of what goes by them.
type Marks = Vec<(String, u32)>;

/// The VPNs, and the interfaces whose packets are marked for them.
fn resolve(settings: &TunSettings) -> Result<(Vec<Vpn>, Marks), DataPlaneError> {
    if let Some(misfit) = misfits(settings).into_iter().next() {
        return Err(DataPlaneError(misfit));
    }
    // Its pairs are checked as those of the other backend are.
    settings.layout()?;
    let numbered = settings.vpns.iter().zip(0u8..);
    let vpns: Vec<Vpn> =
        numbered.map(|(vpn, number)| Vpn::new(vpn.name.clone(), number, vpn.rules.clone())).collect();
    let mut marks = Marks::new();
    for pair in &settings.pairs {
        let zone = settings.zones.iter().find(|zone| zone.name == pair.to);
        let vpn = vpns.iter().find(|vpn| vpn.name == pair.vpn);
        if let (Some(zone), Some(vpn)) = (zone, vpn) {
            marks.extend(zone.interfaces.iter().map(|interface| (interface.clone(), vpn.mark())));
        }
    }
    Ok((vpns, marks))
}

/// Packets and octets of a state when it was last looked at.
type Counted = BTreeMap<StateKey, (u64, u64)>;

struct Inner {
    kernel: Asking,
    vpns: Vec<Vpn>,
    copy_df: BTreeSet<String>,
    own: BTreeSet<IpAddr>,
    policies: BTreeMap<PolicyKey, Policy>,
    states: BTreeMap<StateKey, State>,
    counted: Counted,
    /// Packets sent and received by states that are gone, by VPN.
    before: BTreeMap<String, (u64, u64)>,
    tell: Tell,
}

struct Shared {
    inner: Mutex<Inner>,
    stop: AtomicBool,
}

/// The backend. When it is dropped its states go, and what stays lets nothing pass; [`release`] gives the host its own
/// traffic back.
pub struct XfrmPlane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _lock: UnixListener,
}

fn lock() -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(LOCK)?)
}

/// True while a kernel data plane of some process is running in this network namespace.
pub fn is_running() -> bool {
    lock().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn ours(kernel: &mut Asking) -> io::Result<(Vec<PolicyKey>, Vec<StateKey>)> {
    let policies = kernel.dump(XfrmMessage::GetPolicy(PolicyQuestion::default()))?;
    let policies = policies.iter().filter_map(|message| match message {
        XfrmMessage::AddPolicy(message) => message::our_policy(message),
        _ => None,
    });
    Ok((policies.collect(), shown(kernel)?.into_iter().map(|shown| shown.key).collect()))
}

/// Our states, as the kernel shows them.
fn shown(kernel: &mut Asking) -> io::Result<Vec<Shown>> {
    let states = kernel.dump(XfrmMessage::GetDumpSa(StateQuestion::default()))?;
    let states = states.iter().filter_map(|message| match message {
        XfrmMessage::AddSa(message) => Some(Shown::from(&message.user_sa_info)),
        _ => None,
    });
    Ok(states.filter(|shown| plan::is_ours(shown.reqid)).collect())
}

/// Puts fail-close policies and marks in place: of what is marked only exclude and fail-open rules let anything pass. What a
/// process that is dead left behind goes. The policies that are in place then.
fn hold_with(
    kernel: &mut Asking,
    vpns: &[Vpn],
    marks: &[(String, u32)],
) -> Result<BTreeMap<PolicyKey, Policy>, DataPlaneError> {
    let mut plan = Plan::default();
    for vpn in vpns {
        vpn.plan(now(), &BTreeSet::new(), &mut plan);
    }
    let failed = failed("policies of the kernel (XFRM)");
    for (key, policy) in &plan.policies {
        kernel.act(message::set_policy(key, policy)).map_err(&failed)?;
    }
    // Marked only now: without a policy a marked packet would pass.
    filter::set_marks(marks)?;
    let (policies, states) = ours(kernel).map_err(&failed)?;
    for key in policies.iter().filter(|key| !plan.policies.contains_key(key)) {
        kernel.remove(message::delete_policy(key)).map_err(&failed)?;
    }
    for key in &states {
        kernel.remove(message::delete_state(key)).map_err(&failed)?;
    }
    Ok(plan.policies)
}

/// Puts the fail-close policies in place without a data plane.
///
/// # Errors
/// [`DataPlaneError`] for what the kernel cannot do or refuses.
pub fn hold(settings: &TunSettings) -> Result<(), DataPlaneError> {
    let (vpns, marks) = resolve(settings)?;
    let mut kernel = Asking::new().map_err(failed("IPsec of the kernel (XFRM)"))?;
    hold_with(&mut kernel, &vpns, &marks).map(drop)
}

/// Removes every mark, policy and state of ours, whoever made them. A kernel without IPsec has none.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub fn release() -> Result<(), DataPlaneError> {
    filter::clear()?;
    clear_policies()
}

/// Removes every policy and state of ours, not the marks.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub fn clear_policies() -> Result<(), DataPlaneError> {
    let Ok(mut kernel) = Asking::new() else { return Ok(()) };
    let failed = failed("releasing what the kernel holds (XFRM)");
    // A kernel with the socket and nothing behind it has nothing of ours.
    let Ok((policies, states)) = ours(&mut kernel) else { return Ok(()) };
    for key in &policies {
        kernel.remove(message::delete_policy(key)).map_err(&failed)?;
    }
    for key in &states {
        kernel.remove(message::delete_state(key)).map_err(&failed)?;
    }
    Ok(())
}

fn own_addresses() -> Result<BTreeSet<IpAddr>, DataPlaneError> {
    let mut own = BTreeSet::new();
    steer::run("reading addresses", async |handle| {
        let mut addresses = handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            let [mut address, mut local] = [None, None];
            for attribute in message.attributes {
                match attribute {
                    AddressAttribute::Address(it) => address = Some(it),
                    // What is ours on a link with a peer.
                    AddressAttribute::Local(it) => local = Some(it),
                    _ => {}
                }
            }
            own.extend(local.or(address).filter(|it| !it.is_loopback()));
        }
        Ok(())
    })?;
    Ok(own)
}

impl Inner {
    /// Carries out what the kernel does not hold yet.
    fn sync(&mut self) -> Result<(), DataPlaneError> {
        let (at, failed) = (now(), failed("kernel (XFRM)"));
        let mut wanted = Plan::default();
        for vpn in &self.vpns {
            vpn.plan(at, &self.own, &mut wanted);
        }
        for (key, state) in wanted.states {
            match self.states.get(&key) {
                Some(there) if there.is(&state) => continue,
                Some(_) => self.delete_state(&key)?,
                None => {}
            }
            let copy_df = self.copy_df.contains(&state.tek.install.vpn);
            let left = state.tek.expires.saturating_sub(at);
            self.kernel.act(message::add_state(&key, &state, left, copy_df)).map_err(|error| {
                let tek = &state.tek.install;
                let to = key.destination;
                DataPlaneError(format!("{}: TEK {} towards {to}: kernel (XFRM): {error}", tek.vpn, key.spi))
            })?;
            self.states.insert(key, state);
        }
        for (key, policy) in &wanted.policies {
            if self.policies.get(key) != Some(policy) {
                self.kernel.act(message::set_policy(key, policy)).map_err(&failed)?;
                self.policies.insert(*key, *policy);
            }
        }
        let gone: Vec<PolicyKey> =
            self.policies.keys().filter(|key| !wanted.policies.contains_key(key)).copied().collect();
        for key in gone {
            self.kernel.remove(message::delete_policy(&key)).map_err(&failed)?;
            self.policies.remove(&key);
        }
        Ok(())
    }

    /// The same, and removes the states no TEK wants any more.
    fn settle(&mut self) -> Result<(), DataPlaneError> {
        self.sync()?;
        let mut wanted = Plan::default();
        for vpn in &self.vpns {
            vpn.plan(now(), &self.own, &mut wanted);
        }
        let gone: Vec<StateKey> =
            self.states.keys().filter(|key| !wanted.states.contains_key(key)).copied().collect();
        gone.iter().try_for_each(|key| self.delete_state(key))
    }

    fn delete_state(&mut self, key: &StateKey) -> Result<(), DataPlaneError> {
        // Its last packets are counted before they are forgotten.
        self.count().map_err(failed("kernel (XFRM)"))?;
        self.kernel.remove(message::delete_state(key)).map_err(failed("kernel (XFRM)"))?;
        let counted = self.counted.remove(key).unwrap_or_default();
        if let Some(state) = self.states.remove(key) {
            let (sent, received) = self.before.entry(state.tek.install.vpn.clone()).or_default();
            *(if state.sends { sent } else { received }) += counted.0;
        }
        Ok(())
    }

    fn count(&mut self) -> io::Result<()> {
        for state in shown(&mut self.kernel)? {
            if self.states.contains_key(&state.key) {
                self.counted.insert(state.key, (state.packets, state.octets));
            }
        }
        Ok(())
    }

    /// Changes one VPN; what the kernel refuses changes nothing.
    fn change(
        &mut self,
        vpn: &str,
        change: impl FnOnce(&mut Vpn) -> Result<(), DataPlaneError>,
    ) -> Result<(), DataPlaneError> {
        // Keys of VPNs without zones are only shown.
        let Some(at) = self.vpns.iter().position(|it| it.name == vpn) else { return Ok(()) };
        let Some(vpn) = self.vpns.get_mut(at) else { return Ok(()) };
        let before = vpn.clone();
        let done = change(vpn).and_then(|()| self.settle());
        if done.is_err() {
            if let Some(vpn) = self.vpns.get_mut(at) {
                *vpn = before;
            }
            // The error of the change says more than one of the way back.
            let _ = self.settle();
        }
        done
    }

    /// The VPN a state belongs to.
    fn vpn_of(&mut self, key: &StateKey) -> Option<&mut Vpn> {
        let name = &self.states.get(key)?.tek.install.vpn;
        self.vpns.iter_mut().find(|vpn| vpn.name == *name)
    }

    fn on_message(&mut self, message: &XfrmMessage) -> Result<(), DataPlaneError> {
        match message {
            XfrmMessage::Acquire(asked) => {
                let Some((reqid, source, destination)) = message::asked_for(asked) else { return Ok(()) };
                let Some((number, entry)) = plan::asked(reqid) else { return Ok(()) };
                let vpn = self.vpns.iter_mut().find(|vpn| vpn.number == number);
                match vpn.is_some_and(|vpn| vpn.talks(entry, source, destination)) {
                    true => self.settle(),
                    false => Ok(()),
                }
            }
            XfrmMessage::Expire(expired) => {
                let state = Shown::from(&expired.expire.state);
                let spi = state.key.spi;
                let Some(vpn) = self.vpn_of(&state.key).filter(|_| plan::is_ours(state.reqid)) else {
                    return Ok(());
                };
                let name = vpn.name.clone();
                if expired.expire.hard == 0 {
                    if vpn.take_soft_limit(spi) {
                        (self.tell)(Fault::SoftLimit { vpn: name, spi });
                    }
                    return Ok(());
                }
                // The kernel has removed it. When its life is over the engine says so itself.
                let over = self
                    .states
                    .get(&state.key)
                    .is_none_or(|it| it.tek.expires <= now() + Duration::from_secs(1));
                if !over {
                    return self.spend(&name, spi);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn spend(&mut self, name: &str, spi: Spi) -> Result<(), DataPlaneError> {
        if let Some(vpn) = self.vpns.iter_mut().find(|vpn| vpn.name == name) {
            vpn.spend(spi);
        }
        (self.tell)(Fault::Spent { vpn: name.to_owned(), spi });
        self.settle()
    }

    /// Limits of octets are of a TEK, and its states each know only their own part.
    fn look_at_limits(&mut self) -> Result<(), DataPlaneError> {
        let mut used: BTreeMap<Spi, u64> = BTreeMap::new();
        for (key, (_, octets)) in &self.counted {
            *used.entry(key.spi).or_default() += octets;
        }
        let limited: Vec<(String, Spi, u64)> = self
            .vpns
            .iter()
            .flat_map(|vpn| vpn.limited().map(|(spi, limit)| (vpn.name.clone(), spi, limit)))
            .collect();
        for (name, spi, limit) in limited {
            let octets = used.get(&spi).copied().unwrap_or_default();
            let vpn = self.vpns.iter_mut().find(|vpn| vpn.name == name);
            if octets >= limit - limit / 8 && vpn.is_some_and(|vpn| vpn.take_soft_limit(spi)) {
                (self.tell)(Fault::SoftLimit { vpn: name.clone(), spi });
            }
            if octets >= limit {
                self.spend(&name, spi)?;
            }
        }
        Ok(())
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, states: &Hearing, addresses: &Hearing) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(&states.0, PollFlags::IN), PollFd::new(&addresses.0, PollFlags::IN)];
            // Interrupted or not: both are looked at.
            let _ = poll(&mut fds, Some(&NAP));
            while let Some(told) = states.messages() {
                let mut inner = self.inner();
                for message in &told {
                    // What the kernel refuses now it is asked again by the next packet.
                    let _ = inner.on_message(message);
                }
            }
            let mut moved = false;
            while addresses.datagram().is_some() {
                moved = true;
            }
            if moved && let Ok(own) = own_addresses() {
                let mut inner = self.inner();
                inner.own = own;
                let _ = inner.settle();
            }
        }
    }
}

impl XfrmPlane {
    /// Puts the policies in place and listens to the kernel. Nothing passes in clear at any moment between. What a process
    /// that is dead left behind is replaced.
    ///
    /// # Errors
    /// [`DataPlaneError`]: what the kernel cannot do, no rights, another data plane is running, a kernel without IPsec.
    pub fn start(settings: &TunSettings, tell: Tell) -> Result<XfrmPlane, DataPlaneError> {
        let (vpns, marks) = resolve(settings)?;
        let lock = lock().map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                DataPlaneError("another data plane is running on this machine".to_owned())
            }
            _ => failed("lock of the data plane")(error),
        })?;
        let failed = failed("IPsec of the kernel (XFRM)");
        let mut kernel = Asking::new().map_err(&failed)?;
        // Heard before the first policy asks.
        let states = Hearing::of_states().map_err(&failed)?;
        let addresses = Hearing::of_addresses().map_err(&failed)?;
        let policies = hold_with(&mut kernel, &vpns, &marks)?;
        let copying = settings.vpns.iter().filter(|vpn| vpn.df == DfBit::Copy);
        let inner = Inner {
            kernel,
            vpns,
            copy_df: copying.map(|vpn| vpn.name.clone()).collect(),
            own: own_addresses()?,
            policies,
            states: BTreeMap::new(),
            counted: BTreeMap::new(),
            before: BTreeMap::new(),
            tell,
        };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), stop: AtomicBool::new(false) });
        let listening = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("gdoi-xfrm".to_owned())
            .spawn(move || listening.listen(&states, &addresses))
            .map_err(self::failed("thread"))?;
        Ok(XfrmPlane { shared, thread: Some(thread), _lock: lock })
    }
}

impl Drop for XfrmPlane {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
        let mut inner = self.shared.inner();
        let keys: Vec<StateKey> = inner.states.keys().copied().collect();
        for key in &keys {
            // The kernel ends them with their lives.
            let _ = inner.kernel.remove(message::delete_state(key));
        }
    }
}

impl DataPlane for XfrmPlane {
    fn name(&self) -> &'static str {
        "xfrm"
    }

    fn install(&mut self, tek: TekInstall) -> Result<(), DataPlaneError> {
        let vpn = tek.vpn.clone();
        self.shared.inner().change(&vpn, |vpn| vpn.install(tek, now()))
    }

    fn activate(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError> {
        self.shared.inner().change(vpn, |vpn| vpn.activate(spi))
    }

    fn set_sender_ids(&mut self, vpn: &str, spi: Spi, _sender_ids: SenderIds) -> Result<(), DataPlaneError> {
        self.shared.inner().change(vpn, |vpn| match vpn.has(spi) {
            true => Err(DataPlaneError(format!("{}: TEK {spi}: the kernel makes its IVs itself", vpn.name))),
            false => Err(DataPlaneError(format!("{}: TEK {spi} is not installed", vpn.name))),
        })
    }

    fn remove(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError> {
        self.shared.inner().change(vpn, |vpn| {
            vpn.remove(spi, now());
            Ok(())
        })
    }

    fn traffic(&self, vpn: &str) -> Option<Traffic> {
        let mut inner = self.shared.inner();
        inner.vpns.iter().find(|it| it.name == vpn)?;
        // Without an answer the last numbers hold.
        let _ = inner.count();
        let _ = inner.look_at_limits();
        let mut traffic = Traffic::default();
        let (sent, received) = inner.before.get(vpn).copied().unwrap_or_default();
        (traffic.outbound.protected, traffic.inbound.protected) = (sent, received);
        for (key, state) in inner.states.iter().filter(|(_, state)| state.tek.install.vpn == vpn) {
            let (packets, octets) = inner.counted.get(key).copied().unwrap_or_default();
            let sa: &mut SaCounters = traffic.sas.entry(key.spi).or_default();
            if state.sends {
                traffic.outbound.protected += packets;
                (sa.packets_out, sa.octets_out) = (sa.packets_out + packets, sa.octets_out + octets);
            } else {
                traffic.inbound.protected += packets;
                (sa.packets_in, sa.octets_in) = (sa.packets_in + packets, sa.octets_in + octets);
            }
        }
        Some(traffic)
    }
}

#[cfg(test)]
mod tests;
