//! What the kernel should hold for one VPN: its policies and states, as values, from rules, TEKs and the pairs of
//! addresses that talk. Nothing here touches the system.
//!
//! ```text
//! priority   out                                         in
//! exclude    allow                                       allow
//! policy i   a pair that talks: ESP under the SPI        ESP of the policy's reqid
//!            others of it: ask us (acquire)
//!            no TEK sends: block
//! fail-open  allow, where no policy has a valid TEK      allow, likewise
//! the rest   block                                       block
//! ```
//!
//! Of two policies with the same selector the kernel keeps one, so the first of the table is kept here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::{AddressPreservation, Direction, Encapsulation, TekCipher};

use super::flow::{Flow, Prefix};
use crate::policy::Rules;
use crate::sa::Moment;
use crate::selector::{Addresses, Selector};
use crate::{DataPlaneError, TekInstall};

/// Marks of packets, one per VPN: the last octet is its number. Policies of ours have it.
pub const MARK: u32 = 0x006d_0900;
/// Most VPNs.
pub const MAX_VPNS: usize = 64;
/// The first octet of the reqid of our states and of the templates that want them.
const REQID: u32 = 0x6d;
/// The same of templates no state ever has: the kernel asks us.
const TRAP: u32 = 0x6e;
/// Pairs of addresses that are remembered per policy; the oldest goes.
const PAIRS: usize = 1024;
/// Policies without a key that are remembered.
const KEYLESS: usize = 64;

const EXCLUDE: u32 = 1_000;
const POLICY: u32 = 10_000;
const FAIL_OPEN: u32 = 1_000_000;
const THE_REST: u32 = 4_000_000;

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From this machine.
    Out,
    /// To this machine.
    In,
}

/// What the kernel does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// As they are.
    Allow,
    /// Drops them.
    Block,
    /// ESP through the state with this SPI, between these addresses.
    Protect {
        /// The SPI.
        spi: Spi,
        /// Source and destination.
        ends: (IpAddr, IpAddr),
        /// True for a tunnel.
        tunnel: bool,
        /// The reqid of the state.
        reqid: u32,
    },
    /// No state is there: the kernel asks (acquire) and drops.
    Ask {
        /// Says for which policy it asks.
        reqid: u32,
    },
    /// They must have come through a state with this reqid.
    Require {
        /// True for a tunnel.
        tunnel: bool,
        /// The reqid of the state.
        reqid: u32,
    },
}

/// Names a policy in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyKey {
    /// The VPN's mark.
    pub mark: u32,
    /// Which way.
    pub way: Way,
    /// Which packets.
    pub flow: Flow,
}

/// A policy of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The lower, the earlier.
    pub priority: u32,
    /// What it does.
    pub action: Action,
}

/// Names a state in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateKey {
    /// Its SPI.
    pub spi: Spi,
    /// Where its packets go.
    pub destination: IpAddr,
}

/// A state of the kernel.
#[derive(Debug, Clone)]
pub struct State {
    /// Outer source of a tunnel; none: any.
    pub source: Option<IpAddr>,
    /// True for a tunnel.
    pub tunnel: bool,
    /// Its reqid.
    pub reqid: u32,
    /// True when it is for sending.
    pub sends: bool,
    /// The TEK it is made from.
    pub tek: Arc<Tek>,
}

impl State {
    /// True when the kernel needs no change for the other.
    pub fn is(&self, other: &State) -> bool {
        self.source == other.source
            && self.tunnel == other.tunnel
            && self.reqid == other.reqid
            && Arc::ptr_eq(&self.tek, &other.tek)
    }
}

/// A TEK that fits the kernel.
#[derive(Debug)]
pub struct Tek {
    /// As it was installed.
    pub install: TekInstall,
    /// Its end.
    pub expires: Moment,
    /// The only sender of its flow.
    pub single: bool,
}

impl Tek {
    /// Octets it may carry.
    pub fn octet_limit(&self) -> Option<u64> {
        self.install.policy.lifetime_kilobytes.map(|kilobytes| u64::from(kilobytes) * 1024)
    }

    /// Checks whether the kernel can do what the TEK wants.
    ///
    /// # Errors
    /// [`DataPlaneError`] with the reason.
    fn new(install: TekInstall, selector: &Selector, now: Moment) -> Result<Tek, DataPlaneError> {
        let policy = &install.policy;
        let refused = |why: &str| Err(DataPlaneError(format!("{}: TEK {}: {why}", install.vpn, policy.spi)));
        if install.delay_detection.is_some() {
            return refused(
                "the kernel has no IP-D3P timestamps: backend \"tun\", or no anti-replay-time-window in the group",
            );
        }
        if policy.encapsulation == Encapsulation::Tunnel
            && policy.address_preservation != AddressPreservation::Both
        {
            return refused("tunnels without both addresses preserved are not supported yet");
        }
        let one_sender = selector.source.is_single() && policy.direction != Direction::Symmetric;
        match policy.cipher {
            TekCipher::AesCbc { .. } => {}
            // One state per destination, each with a counter of its own.
            TekCipher::AesGcm { .. }
                if install.may_send() && !(one_sender && selector.destination.is_single()) =>
            {
                return refused(
                    "AES-GCM with several senders: the kernel makes IVs without Sender-IDs, which would repeat \
                     (RFC 6054); backend \"tun\", or AES-CBC",
                );
            }
            TekCipher::AesGcm { .. } => {}
            TekCipher::AesGmac { .. } | TekCipher::Null { .. } => {
                return refused("the kernel backend takes AES-CBC and AES-GCM only");
            }
        }
        let Some(flows) = Flow::of(selector) else {
            return refused("ranges of addresses are not for the kernel backend: prefixes only");
        };
        let many = |flow: &Flow| flow.destination.address.is_multicast() && !selector.destination.is_single();
        if flows.iter().any(many) {
            return refused("the kernel receives one multicast group per policy, not a prefix of them");
        }
        let expires = now.saturating_add(Duration::from_secs(u64::from(policy.lifetime_seconds)));
        Ok(Tek { expires, single: one_sender, install })
    }

    fn is_valid(&self, now: Moment) -> bool {
        now < self.expires
    }
}

/// A TEK in use. What changes is here, what states are made from is not.
#[derive(Debug, Clone)]
struct InUse {
    tek: Arc<Tek>,
    /// 0 not active; the largest of a policy sends.
    activated: u64,
    spent: bool,
    soft_told: bool,
}

/// A policy of the group and the TEKs that serve it.
#[derive(Debug, Clone)]
struct Entry {
    number: u16,
    selector: Selector,
    flows: Vec<Flow>,
    direction: Direction,
    tunnel: bool,
    teks: Vec<InUse>,
    /// Source and destination of what this machine sends, the oldest first.
    pairs: VecDeque<(IpAddr, IpAddr)>,
}

impl Entry {
    fn sends(&self) -> bool {
        self.direction != Direction::ReceiverOnly
    }

    fn receives(&self) -> bool {
        self.direction != Direction::SenderOnly
    }

    fn has_key(&self, now: Moment) -> bool {
        self.teks.iter().any(|used| used.tek.is_valid(now))
    }

    fn sending(&self, now: Moment) -> Option<&InUse> {
        let ready = |used: &&InUse| used.activated > 0 && !used.spent && used.tek.is_valid(now);
        self.teks.iter().filter(ready).max_by_key(|used| used.activated)
    }

    /// The flows of what comes in: a unicast packet may be an answer.
    fn inbound(&self) -> impl Iterator<Item = Flow> {
        self.flows.iter().copied().chain(self.flows.iter().filter_map(Flow::answer))
    }

    /// True when packets of the policy may come to this address of ours.
    fn arrives_at(&self, own: IpAddr) -> bool {
        self.inbound()
            .any(|flow| Addresses::prefix(flow.destination.address, flow.destination.length).contain(own))
    }
}

/// One VPN: rules, policies, TEKs.
#[derive(Debug, Clone)]
pub struct Vpn {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: u8,
    /// The operator's rules.
    pub rules: Rules,
    entries: Vec<Entry>,
    last_entry: u16,
    activations: u64,
}

/// What the kernel should hold.
#[derive(Debug, Default)]
pub struct Plan {
    /// Policies.
    pub policies: BTreeMap<PolicyKey, Policy>,
    /// States.
    pub states: BTreeMap<StateKey, State>,
}

/// True for a reqid of ours.
pub fn is_ours(reqid: u32) -> bool {
    [REQID, TRAP].contains(&(reqid >> 24))
}

/// Number of the VPN and of the policy the kernel asks for; none when that is somebody else's.
pub fn asked(reqid: u32) -> Option<(u8, u16)> {
    let [kind, vpn, high, low] = reqid.to_be_bytes();
    (u32::from(kind) == TRAP).then_some((vpn, u16::from_be_bytes([high, low])))
}

impl Vpn {
    /// Rules and no policy yet.
    pub fn new(name: String, number: u8, rules: Rules) -> Vpn {
        Vpn { name, number, rules, entries: Vec::new(), last_entry: 0, activations: 0 }
    }

    /// The mark of its packets.
    pub fn mark(&self) -> u32 {
        MARK | u32::from(self.number)
    }

    fn reqid(&self, kind: u32, entry: u16) -> u32 {
        kind << 24 | u32::from(self.number) << 16 | u32::from(entry)
    }

    /// Adds a TEK; one with the same SPI is replaced.
    ///
    /// # Errors
    /// [`DataPlaneError`] when the kernel cannot do what it wants; nothing has changed then.
    pub fn install(&mut self, install: TekInstall, now: Moment) -> Result<(), DataPlaneError> {
        let selector = Selector::of(&install.policy)
            .map_err(|error| DataPlaneError(format!("{}: TEK {}: {error}", self.name, install.spi())))?;
        let direction = install.policy.direction;
        let tunnel = install.policy.encapsulation == Encapsulation::Tunnel;
        let spi = install.spi();
        let tek = Arc::new(Tek::new(install, &selector, now)?);
        let used = InUse { tek, activated: 0, spent: false, soft_told: false };
        for entry in &mut self.entries {
            entry.teks.retain(|other| other.tek.install.spi() != spi);
        }
        let same = |entry: &&mut Entry| {
            entry.selector == selector && entry.direction == direction && entry.tunnel == tunnel
        };
        match self.entries.iter_mut().find(same) {
            Some(entry) => entry.teks.push(used),
            None => {
                // What was known before belongs to keys that are gone: the new policy replaces it whole.
                if self.entries.iter().all(|entry| entry.teks.is_empty()) {
                    self.entries.clear();
                }
                self.last_entry = self.last_entry.wrapping_add(1);
                while self.entries.iter().any(|entry| entry.number == self.last_entry) {
                    self.last_entry = self.last_entry.wrapping_add(1);
                }
                let flows = Flow::of(&selector).unwrap_or_default();
                self.entries.push(Entry {
                    number: self.last_entry,
                    selector,
                    flows,
                    direction,
                    tunnel,
                    teks: vec![used],
                    pairs: VecDeque::new(),
                });
            }
        }
        let keyless = self.entries.iter().filter(|entry| entry.teks.is_empty()).count();
        let mut excess = keyless.saturating_sub(KEYLESS);
        self.entries.retain(|entry| {
            let drop = excess > 0 && entry.teks.is_empty();
            excess -= usize::from(drop);
            !drop
        });
        Ok(())
    }

    fn in_use(&mut self, spi: Spi) -> Option<&mut InUse> {
        self.entries.iter_mut().flat_map(|entry| &mut entry.teks).find(|used| used.tek.install.spi() == spi)
    }

    /// Lets a TEK encrypt.
    ///
    /// # Errors
    /// [`DataPlaneError`] when it is not installed or may not send.
    pub fn activate(&mut self, spi: Spi) -> Result<(), DataPlaneError> {
        let (name, order) = (self.name.clone(), self.activations + 1);
        let used =
            self.in_use(spi).ok_or_else(|| DataPlaneError(format!("{name}: TEK {spi} is not installed")))?;
        if !used.tek.install.may_send() {
            return Err(DataPlaneError(format!("{name}: TEK {spi} is not for sending")));
        }
        used.activated = order;
        self.activations = order;
        Ok(())
    }

    /// Removes a TEK. Its policy stays known when its life ended, and goes with it when it was replaced or deleted.
    pub fn remove(&mut self, spi: Spi, now: Moment) {
        self.entries.retain_mut(|entry| {
            let Some(at) = entry.teks.iter().position(|used| used.tek.install.spi() == spi) else {
                return true;
            };
            let expired = !entry.teks.remove(at).tek.is_valid(now);
            expired || !entry.teks.is_empty()
        });
    }

    /// True when a TEK with that SPI is installed.
    pub fn has(&self, spi: Spi) -> bool {
        self.entries.iter().flat_map(|entry| &entry.teks).any(|used| used.tek.install.spi() == spi)
    }

    /// The kernel asks for a pair of addresses under policy `entry`; true when that is news.
    pub fn talks(&mut self, entry: u16, source: IpAddr, destination: IpAddr) -> bool {
        let Some(entry) = self.entries.iter_mut().find(|it| it.number == entry) else { return false };
        let covered =
            entry.selector.source.contain(source) && entry.selector.destination.contain(destination);
        if !covered || entry.pairs.contains(&(source, destination)) {
            return false;
        }
        if entry.pairs.len() >= PAIRS {
            entry.pairs.pop_front();
        }
        entry.pairs.push_back((source, destination));
        true
    }

    /// It encrypts nothing more.
    pub fn spend(&mut self, spi: Spi) {
        if let Some(used) = self.in_use(spi) {
            used.spent = true;
        }
    }

    /// True once for a TEK: time to ask for a new one.
    pub fn take_soft_limit(&mut self, spi: Spi) -> bool {
        self.in_use(spi).is_some_and(|used| !std::mem::replace(&mut used.soft_told, true))
    }

    /// TEKs with a limit of octets.
    pub fn limited(&self) -> impl Iterator<Item = (Spi, u64)> {
        let teks = self.entries.iter().flat_map(|entry| &entry.teks);
        teks.filter_map(|used| Some((used.tek.install.spi(), used.tek.octet_limit()?)))
    }

    /// Its part of what the kernel should hold.
    pub fn plan(&self, now: Moment, own: &BTreeSet<IpAddr>, plan: &mut Plan) {
        let mark = self.mark();
        let mut add = |way: Way, flow: Flow, priority: u32, action: Action| {
            plan.policies.entry(PolicyKey { mark, way, flow }).or_insert(Policy { priority, action });
        };
        for flow in self.rules.exclude.iter().flat_map(Flow::of_rule) {
            add(Way::Out, flow, EXCLUDE, Action::Allow);
            add(Way::In, flow, EXCLUDE, Action::Allow);
        }
        for (entry, place) in self.entries.iter().zip((POLICY..FAIL_OPEN).step_by(2)) {
            if !entry.has_key(now) {
                continue;
            }
            let (tunnel, reqid) = (entry.tunnel, self.reqid(REQID, entry.number));
            if entry.sends() {
                let sending = entry.sending(now).map(|used| used.tek.install.spi());
                for flow in &entry.flows {
                    let Some(spi) = sending else {
                        add(Way::Out, *flow, place + 1, Action::Block);
                        continue;
                    };
                    for ends in
                        entry.pairs.iter().filter(|ends| ends.0.is_ipv4() == flow.source.address.is_ipv4())
                    {
                        let (source, destination) = (Prefix::host(ends.0), Prefix::host(ends.1));
                        let action = Action::Protect { spi, ends: *ends, tunnel, reqid };
                        add(Way::Out, Flow { source, destination, ..*flow }, place, action);
                    }
                    let reqid = self.reqid(TRAP, entry.number);
                    add(Way::Out, *flow, place + 1, Action::Ask { reqid });
                }
            }
            if entry.receives() {
                for flow in entry.inbound() {
                    add(Way::In, flow, place + 1, Action::Require { tunnel, reqid });
                }
            }
        }
        for flow in self.rules.fail_open.iter().flat_map(Flow::of_rule) {
            if self.entries.is_empty() {
                add(Way::Out, flow, FAIL_OPEN, Action::Allow);
                add(Way::In, flow, FAIL_OPEN, Action::Allow);
            }
            for entry in self.entries.iter().filter(|entry| !entry.has_key(now)) {
                for common in entry.flows.iter().filter_map(|of| of.common(&flow)).filter(|_| entry.sends()) {
                    add(Way::Out, common, FAIL_OPEN, Action::Allow);
                }
                for common in entry.inbound().filter_map(|of| of.common(&flow)).filter(|_| entry.receives()) {
                    add(Way::In, common, FAIL_OPEN, Action::Allow);
                }
            }
        }
        for flow in Flow::all() {
            add(Way::Out, flow, THE_REST, Action::Block);
            add(Way::In, flow, THE_REST, Action::Block);
        }
        for entry in &self.entries {
            self.plan_states(entry, now, own, plan);
        }
    }

    fn plan_states(&self, entry: &Entry, now: Moment, own: &BTreeSet<IpAddr>, plan: &mut Plan) {
        for used in entry.teks.iter().filter(|used| used.tek.is_valid(now)) {
            let spi = used.tek.install.spi();
            let mut add = |destination: IpAddr, source: Option<IpAddr>, sends: bool| {
                let tek = Arc::clone(&used.tek);
                let state = State {
                    source,
                    tunnel: entry.tunnel,
                    reqid: self.reqid(REQID, entry.number),
                    sends,
                    tek,
                };
                plan.states.entry(StateKey { spi, destination }).or_insert(state);
            };
            if entry.sends() && used.tek.install.may_send() && !used.spent {
                // A state has one outer source: of two addresses of ours that talk to one destination by tunnel, the
                // later one is not heard.
                for (source, destination) in &entry.pairs {
                    add(*destination, entry.tunnel.then_some(*source), true);
                }
            }
            if entry.receives() {
                let groups =
                    entry.flows.iter().map(|flow| flow.destination.address).filter(IpAddr::is_multicast);
                for address in own.iter().copied().filter(|own| entry.arrives_at(*own)).chain(groups) {
                    add(address, None, false);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
