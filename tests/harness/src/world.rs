//! One key server, n members, one clock: the engines as they are, the shell replaced by a loop. Jobs run at once with
//! the deterministic provider; what is persisted is kept as rows, so a server can crash between any two batches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gcks::engine::KeyServer;
use gcks::engine::durable::{Change, Kind, Row};
use gcks::engine::io::{Command, Input as ServerInput, Output as ServerOutput};
use gcks::engine::settings::{
    Acknowledgement, CommunicationSettings, GatewaySettings, GroupSettings, SaSettings, Settings, Way,
};
use gdoi_proto::ids::GroupId;
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{Encapsulation, SignatureAlgorithm, SignatureHash, TekCipher};
use gdoi_proto::registry::IdType;
use gdoi_proto::secret::SecretBytes;
use gm::engine::GroupMember;
use gm::engine::io::{Input as MemberInput, Output as MemberOutput};
use ike::crypto::provider::run;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Datagram, Instant, JobResult, Machine, Now};
use ike::phase1::{Credentials, Mode, Offer, PeerPolicy};

use crate::net::{Network, Weather};
use crate::provider::{Deterministic, SeededEntropy};
use crate::trace::Trace;

/// The name of the only group.
pub const GROUP: &str = "g1";
/// The key server's address.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 848);
/// Wall clock at the start.
const EPOCH: u64 = 1_800_000_000;

/// Timing of the group.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// TEK life.
    pub tek: Duration,
    /// KEK life.
    pub kek: Duration,
    /// Copies after the first.
    pub retransmissions: u32,
    /// Between copies.
    pub period: Duration,
}

impl Timing {
    /// The defaults of the configuration.
    pub const USUAL: Timing = Timing {
        tek: Duration::from_secs(3600),
        kek: Duration::from_secs(7200),
        retransmissions: 2,
        period: Duration::from_secs(10),
    };
}

/// The simulated world.
pub struct World {
    /// The seed, to be printed by a failing test.
    pub seed: u64,
    now: Instant,
    wall_skew: u64,
    /// The network.
    pub net: Network,
    /// What happened.
    pub trace: Trace,
    timing: Timing,
    dialect: Dialect,
    rekeying: bool,
    lkh: bool,
    rekey_on_join: bool,
    way: Way,
    /// Multicast groups each member hears.
    listens: BTreeMap<usize, Vec<SocketAddr>>,
    /// Every PUSH that left the server, as somebody who listens on the wire has it.
    pub pushes: Vec<Bytes>,
    server: Option<KeyServer>,
    rows: BTreeMap<(Kind, String), Row>,
    members: Vec<Option<GroupMember>>,
    provider: Deterministic,
    lives: u64,
    replies: Vec<Result<(String, Option<u32>), String>>,
    /// At which batch the server dies, and whether that is still written.
    crash: Option<(u64, bool)>,
    batches: u64,
    /// When each member wants a timeout.
    timers: BTreeSet<(Instant, usize)>,
    wakes: Vec<Option<Instant>>,
    deactivation_delay: Option<u16>,
    /// What the configuration says instead of all that.
    settings: Option<Settings>,
    heard: BTreeSet<Bytes>,
    /// What the server told and which members did something, for those who look on; kept only while the trace is quiet.
    pub told: Vec<Event>,
    /// See [`World::told`].
    pub touched: BTreeSet<usize>,
    /// Members that got the keys of a registration: see [`World::told`].
    pub keyed: Vec<usize>,
}

/// Address of member `index`.
pub fn member_address(index: usize) -> SocketAddr {
    let [high, low] = ((index + 1) as u16).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, high, low)), 848)
}

/// The member at an address.
pub fn member_index(address: SocketAddr) -> Option<usize> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    let [10, 1, high, low] = ip.octets() else { return None };
    usize::from(u16::from_be_bytes([high, low])).checked_sub(1)
}

/// Its name in traces.
pub fn member_name(index: usize) -> String {
    format!("gm{}", index + 1)
}

fn pre_shared_key() -> SecretBytes {
    SecretBytes::copy(b"a key for the simulator only")
}

/// What both sides of phase 1 hold: a pre-shared key, identities by address.
pub fn peer_policy(dialect: Dialect) -> PeerPolicy {
    let suite = Suite {
        cipher: Cipher::Aes256Cbc,
        hash: Hash::Sha256,
        group: DhGroup::Ecp256,
        method: AuthMethod::PreSharedKey,
    };
    PeerPolicy {
        mode: Mode::Main,
        offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
        credentials: Credentials::pre_shared(pre_shared_key()),
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        nat_traversal: false,
        fragmentation: false,
        dialect,
    }
}

fn group_address() -> GroupId {
    GroupId::address(IpAddr::V4(Ipv4Addr::new(239, 192, 0, 1)))
}

fn subnet() -> Endpoint {
    Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![172, 16, 0, 0, 255, 240, 0, 0] }
}

/// The key server's settings: group 1 for whoever comes from 10.1.0.0/16.
pub fn server_settings(timing: Timing, dialect: Dialect, rekeying: bool) -> Settings {
    let span = timing.period * (timing.retransmissions + 1);
    let activation_delay = (timing.period * timing.retransmissions).as_secs() as u16 + 10;
    let deactivation_delay = activation_delay + 15;
    let margin =
        |life: Duration| (life / 10).max(span + Duration::from_secs(u64::from(deactivation_delay) + 5));
    Settings {
        gateways: vec![GatewaySettings {
            name: "members".to_owned(),
            address: Some((IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)), 16)),
            policy: Arc::new(peer_policy(dialect)),
            dead_peer_detection: None,
            valid_until: None,
            line: 1,
        }],
        groups: vec![GroupSettings {
            line: 20,
            name: GROUP.to_owned(),
            id: GroupId::number(1),
            address: Some(group_address()),
            push_dialect: dialect.of_push(),
            gateways: ["members".to_owned()].into(),
            member_threshold: None,
            sender_id_bits: 16,
            rekey_on_leave: true,
            rekey_on_join: false,
            communication: rekeying.then_some(CommunicationSettings {
                cipher: Cipher::Aes256Cbc,
                signature_hash: SignatureHash::Sha256,
                signature: SignatureAlgorithm::Ecdsa256,
                signature_key_bits: 256,
                signing_key: None,
                lifetime: timing.kek,
                retransmissions: timing.retransmissions,
                retransmission_period: timing.period,
                acknowledgement: Acknowledgement::Required,
                missed_rekeys: 1,
                lkh: false,
                max_push_size: 1280,
                way: Way::Unicast,
                activation_delay,
                deactivation_delay,
                margin: margin(timing.kek),
            }),
            sas: vec![SaSettings {
                name: "SA1/all".to_owned(),
                cipher: TekCipher::AesGcm { key_octets: 32, icv_octets: 16 },
                lifetime: timing.tek,
                margin: margin(timing.tek),
                encapsulation: Encapsulation::Tunnel,
                ip_protocol: 0,
                source: subnet(),
                destination: subnet(),
                delay_window: None,
            }],
        }],
        half_open_limit: 4096,
        half_open_limit_per_address: 16,
        half_open_timeout: Duration::from_secs(30),
        approved_only: false,
    }
}

/// The settings of member `index`.
pub fn member_settings(index: usize, dialect: Dialect) -> gm::engine::settings::Settings {
    use gm::engine::settings::{GatewaySettings, Settings, VpnSettings};
    Settings {
        gateways: vec![GatewaySettings {
            name: "servers".to_owned(),
            servers: vec![SERVER],
            local: member_address(index),
            policies: vec![peer_policy(dialect)],
            ..GatewaySettings::default()
        }],
        vpns: vec![VpnSettings {
            name: GROUP.to_owned(),
            gateway: "servers".to_owned(),
            group: if dialect.group_id_address { group_address() } else { GroupId::number(1) },
            ..VpnSettings::default()
        }],
        ..Settings::default()
    }
}

impl World {
    /// A server without state and `members` members, none started yet but the server.
    pub fn new(seed: u64, members: usize, weather: Weather, timing: Timing) -> World {
        World::with(seed, members, weather, timing, Dialect::STRICT, (true, false))
    }

    /// The same where the group has no rekey SA: members fetch new keys themselves.
    pub fn without_rekeying(seed: u64, members: usize, weather: Weather, timing: Timing) -> World {
        World::with(seed, members, weather, timing, Dialect::STRICT, (false, false))
    }

    /// The same where the KEK is the root of a key tree.
    pub fn with_key_tree(seed: u64, members: usize, weather: Weather, timing: Timing) -> World {
        World::with(seed, members, weather, timing, Dialect::STRICT, (true, true))
    }

    /// The same where both sides deviate from the RFCs.
    pub fn in_dialect(
        seed: u64,
        members: usize,
        weather: Weather,
        timing: Timing,
        dialect: Dialect,
    ) -> World {
        World::with(seed, members, weather, timing, dialect, (true, false))
    }

    /// A server of any configuration with signatures that only its key makes, and no members yet. Nothing is traced.
    pub fn configured(seed: u64, weather: Weather, settings: Settings) -> World {
        let mut world = World::bare(seed, weather, Timing::USUAL, Dialect::STRICT, (true, false));
        world.provider = Deterministic::new(seed).with_real_signatures();
        world.trace.quiet = true;
        world.settings = Some(settings);
        world.start_server();
        world
    }

    fn with(
        seed: u64,
        members: usize,
        weather: Weather,
        timing: Timing,
        dialect: Dialect,
        kind: (bool, bool),
    ) -> World {
        let mut world = World::bare(seed, weather, timing, dialect, kind);
        world.start_server();
        for index in 0..members {
            world.members.push(None);
            world.start_member(index);
        }
        world
    }

    fn bare(
        seed: u64,
        weather: Weather,
        timing: Timing,
        dialect: Dialect,
        (rekeying, lkh): (bool, bool),
    ) -> World {
        World {
            seed,
            now: Instant(1_000_000),
            wall_skew: 0,
            net: Network::new(weather, seed),
            trace: Trace::default(),
            timing,
            dialect,
            rekeying,
            lkh,
            rekey_on_join: false,
            way: Way::Unicast,
            listens: BTreeMap::new(),
            pushes: Vec::new(),
            server: None,
            rows: BTreeMap::new(),
            members: Vec::new(),
            provider: Deterministic::new(seed),
            lives: 0,
            replies: Vec::new(),
            crash: None,
            batches: 0,
            timers: BTreeSet::new(),
            wakes: Vec::new(),
            deactivation_delay: None,
            settings: None,
            heard: BTreeSet::new(),
            told: Vec::new(),
            touched: BTreeSet::new(),
            keyed: Vec::new(),
        }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { at: self.now, unix_seconds: EPOCH + self.wall_skew + self.now.0 / 1_000_000 }
    }

    /// The server.
    ///
    /// # Panics
    /// When it is not running.
    pub fn server(&self) -> &KeyServer {
        self.server.as_ref().expect("the server is running")
    }

    /// Member `index`.
    ///
    /// # Panics
    /// When it is not running.
    pub fn member(&self, index: usize) -> &GroupMember {
        self.members[index].as_ref().expect("the member is running")
    }

    /// Stored rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// The server dies at once: memory is gone, rows stay.
    pub fn kill_server(&mut self) {
        self.server = None;
    }

    /// The server dies right after `batches` more batches were written, before anything that waits for the next one.
    pub fn kill_server_after(&mut self, batches: u64) {
        self.crash = Some((self.batches + batches, true));
    }

    /// The server dies with the `batches`-th batch from now: nothing of it was written.
    pub fn kill_server_before(&mut self, batches: u64) {
        self.crash = Some((self.batches + batches, false));
    }

    /// True while the server runs.
    pub fn server_runs(&self) -> bool {
        self.server.is_some()
    }

    /// Starts the server from its rows.
    ///
    /// # Panics
    /// When the rows cannot be restored.
    pub fn start_server(&mut self) {
        self.lives += 1;
        let entropy = SeededEntropy::new(self.seed.wrapping_mul(1_000_003).wrapping_add(self.lives));
        let rows = self.rows.values().cloned().collect();
        let settings = self.settings.clone().unwrap_or_else(|| self.usual_settings());
        let server = KeyServer::new(settings, rows, self.now(), Box::new(entropy));
        self.server = Some(server.expect("rows written by this release restore"));
        self.drain_server();
    }

    /// The configuration of a world that was given none.
    fn usual_settings(&self) -> Settings {
        let mut settings = server_settings(self.timing, self.dialect, self.rekeying);
        if let Some(delay) = self.deactivation_delay {
            for group in &mut settings.groups {
                let Some(communication) = &mut group.communication else { continue };
                let more =
                    Duration::from_secs(u64::from(delay.saturating_sub(communication.deactivation_delay)));
                let span = self.timing.period * (self.timing.retransmissions + 1) + Duration::from_secs(5);
                let least = span + Duration::from_secs(u64::from(communication.deactivation_delay)) + more;
                communication.deactivation_delay = delay;
                communication.margin = communication.margin.max(least);
                group.sas.iter_mut().for_each(|sa| sa.margin = sa.margin.max(least));
            }
        }
        for communication in settings.groups.iter_mut().filter_map(|group| group.communication.as_mut()) {
            communication.lkh = self.lkh;
            communication.way = self.way.clone();
        }
        settings.groups.iter_mut().for_each(|group| group.rekey_on_join = self.rekey_on_join);
        settings
    }

    /// What another configuration would do; none while the server does not run.
    pub fn plan(&self, settings: &Settings) -> Option<ctl::plan::Plan> {
        self.server.as_ref().map(|server| server.plan(self.now(), settings))
    }

    /// The server takes another configuration, now and at each start from now on.
    pub fn apply(&mut self, settings: Settings) {
        let now = self.now();
        if let Some(server) = self.server.as_mut() {
            server.handle(now, ServerInput::Apply(Box::new(settings.clone())));
        }
        self.settings = Some(settings);
        self.drain_server();
    }

    /// What `key-management` says from the next start of the server on.
    pub fn set_key_tree(&mut self, lkh: bool) {
        self.lkh = lkh;
    }

    /// How PUSHes travel from the next start of the server on.
    pub fn set_way(&mut self, way: Way) {
        self.way = way;
    }

    /// What `rekey-on-join` says from the next start of the server on.
    pub fn set_rekey_on_join(&mut self, on: bool) {
        self.rekey_on_join = on;
    }

    /// Starts (or restarts) member `index` without memory.
    pub fn start_member(&mut self, index: usize) {
        if self.members.len() <= index {
            self.members.resize_with(index + 1, || None);
        }
        self.lives += 1;
        self.listens.remove(&index);
        let entropy = SeededEntropy::new(self.seed.wrapping_mul(1_000_033).wrapping_add(self.lives));
        let member = GroupMember::new(member_settings(index, self.dialect), self.now(), Box::new(entropy));
        self.members[index] = Some(member);
        self.drain_member(index);
    }

    /// Member `index` is gone, without a word.
    pub fn kill_member(&mut self, index: usize) {
        self.members[index] = None;
        self.listens.remove(&index);
        self.drain_member(index);
    }

    /// True while member `index` runs.
    pub fn member_runs(&self, index: usize) -> bool {
        self.members.get(index).is_some_and(Option::is_some)
    }

    /// Batches the server wrote so far, in all its lives.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// What `deactivation-time-delay` says from the next start of the server on.
    pub fn set_deactivation_delay(&mut self, seconds: u16) {
        self.deactivation_delay = Some(seconds);
    }

    /// An operator's command at the server.
    pub fn command(&mut self, command: Command) -> Option<Result<(String, Option<u32>), String>> {
        let now = self.now();
        self.server.as_mut()?.handle(now, ServerInput::Command { ticket: 1, command });
        self.drain_server();
        self.replies.pop()
    }

    fn drain_server(&mut self) {
        let now = self.now();
        while let Some(output) = self.server.as_mut().and_then(Machine::poll) {
            match output {
                ServerOutput::Transmit(datagram) => self.transmit("gcks", datagram),
                ServerOutput::Fanout { octets, to } => {
                    if self.heard.insert(octets.clone()) {
                        self.pushes.push(octets.clone());
                    }
                    for (local, peer) in to {
                        self.transmit("gcks", Datagram { local, peer, octets: octets.clone() });
                    }
                }
                ServerOutput::Multicast { octets, channel } => {
                    if self.heard.insert(octets.clone()) {
                        self.pushes.push(octets.clone());
                    }
                    let line = gdoi_proto::pretty::one_line(&octets);
                    let datagram = Datagram { local: SERVER, peer: channel.group, octets };
                    for index in 0..self.members.len() {
                        if self.listens.get(&index).is_some_and(|groups| groups.contains(&channel.group)) {
                            let arrives = self.net.send_to(self.now, member_address(index), datagram.clone());
                            self.trace.datagram(self.now, "gcks", &line, arrives);
                        }
                    }
                }
                ServerOutput::Persist(changes) => {
                    self.batches += 1;
                    let dies = self.crash.filter(|(at, _)| self.batches >= *at);
                    if dies.is_some() {
                        self.crash = None;
                        self.server = None;
                    }
                    if dies.is_some_and(|(_, written)| !written) {
                        return;
                    }
                    for change in changes {
                        match change {
                            Change::Put(row) => {
                                self.rows.insert((row.kind, row.key.clone()), row);
                            }
                            Change::Remove { kind, key } => {
                                self.rows.remove(&(kind, key));
                            }
                        }
                    }
                }
                ServerOutput::Job(request) => {
                    let done = run(&self.provider, request.job);
                    let result = JobResult { id: request.id, done };
                    if let Some(server) = self.server.as_mut() {
                        server.handle(now, ServerInput::Job(result));
                    }
                }
                ServerOutput::Event(event) => {
                    self.trace.event(self.now, "gcks", &event);
                    if self.trace.quiet {
                        self.told.push(event);
                    }
                }
                ServerOutput::Reply { result, .. } => {
                    self.replies.push(result.map(|done| (done.text, done.push.map(|(_, seq)| seq.0))));
                }
            }
        }
    }

    fn drain_member(&mut self, index: usize) {
        let now = self.now();
        let name = if self.trace.quiet { String::new() } else { member_name(index) };
        while let Some(output) = self.members[index].as_mut().and_then(Machine::poll) {
            match output {
                MemberOutput::Transmit(datagram) => self.transmit(&name, datagram),
                MemberOutput::Job(request) => {
                    let done = run(&self.provider, request.job);
                    if let Some(member) = self.members[index].as_mut() {
                        member.handle(now, MemberInput::Job(JobResult { id: request.id, done }));
                    }
                }
                MemberOutput::Event(event) => {
                    if self.trace.quiet && matches!(event, Event::Registered { .. }) {
                        self.keyed.push(index);
                    }
                    self.trace.event(self.now, &name, &event);
                }
                MemberOutput::Listen { groups, .. } => {
                    self.listens.insert(index, groups);
                }
                _ => {}
            }
        }
        let wake = self.members[index].as_ref().and_then(Machine::poll_timeout).map(|wakeup| wakeup.at);
        if self.wakes.len() <= index {
            self.wakes.resize(index + 1, None);
        }
        if let Some(before) = std::mem::replace(&mut self.wakes[index], wake) {
            self.timers.remove(&(before, index));
        }
        self.timers.extend(wake.map(|at| (at, index)));
        if self.trace.quiet {
            self.touched.insert(index);
        }
    }

    fn transmit(&mut self, from: &str, datagram: Datagram) {
        if self.trace.quiet {
            self.net.send(self.now, datagram);
            return;
        }
        let line = gdoi_proto::pretty::one_line(&datagram.octets);
        let arrives = self.net.send(self.now, datagram);
        self.trace.datagram(self.now, from, &line, arrives);
    }

    /// Hands octets to member `index` as if the server had sent them.
    pub fn inject(&mut self, index: usize, octets: &Bytes) {
        let (now, local) = (self.now(), member_address(index));
        let datagram = Datagram { local, peer: SERVER, octets: octets.clone() };
        if let Some(member) = self.members[index].as_mut() {
            member.handle(now, MemberInput::Datagram(datagram));
        }
        self.drain_member(index);
    }

    /// Runs for `time`.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.next_moment().filter(|next| *next <= end) {
            self.now = next.max(self.now);
            self.step();
        }
        self.now = end;
    }

    fn next_moment(&self) -> Option<Instant> {
        let server = self.server.as_ref().and_then(Machine::poll_timeout).map(|wakeup| wakeup.at);
        let members = self.timers.first().map(|(at, _)| *at);
        self.net.next().into_iter().chain(server).chain(members).min()
    }

    /// Goes to the next moment at which anything happens, if it is not after `end`, and lets it happen.
    pub fn advance(&mut self, end: Instant) -> bool {
        let Some(next) = self.next_moment().filter(|next| *next <= end) else {
            self.now = self.now.max(end);
            return false;
        };
        self.now = next.max(self.now);
        self.step();
        true
    }

    fn step(&mut self) {
        let now = self.now();
        while let Some((to, datagram)) = self.net.arrive(self.now) {
            if to == SERVER {
                if let Some(server) = self.server.as_mut() {
                    server.handle(now, ServerInput::Datagram(datagram));
                }
                self.drain_server();
            } else if let Some(index) = member_index(to).filter(|index| *index < self.members.len()) {
                if let Some(member) = self.members[index].as_mut() {
                    member.handle(now, MemberInput::Datagram(datagram));
                }
                self.drain_member(index);
            }
        }
        if self.server.as_ref().and_then(Machine::poll_timeout).is_some_and(|wakeup| wakeup.at <= self.now) {
            if let Some(server) = self.server.as_mut() {
                server.handle(now, ServerInput::Timeout);
            }
            self.drain_server();
        }
        let due = self.timers.range(..=(self.now, usize::MAX)).map(|(_, index)| *index);
        let due: BTreeSet<usize> = due.collect();
        for index in due {
            if self.wakes[index].is_some_and(|at| at <= self.now) {
                if let Some(member) = self.members[index].as_mut() {
                    member.handle(now, MemberInput::Timeout);
                }
                self.drain_member(index);
            }
        }
    }

    /// Runs until `done` or `limit` has passed; true when `done`.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&World) -> bool) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.run(Duration::from_millis(500));
        }
        done(self)
    }

    /// Who would send what somebody else could not open now: `sender SPI receiver` for every key that encrypts at a
    /// registered member and is not installed at another one that has keys.
    pub fn torn(&self) -> Vec<String> {
        let keyed: Vec<(usize, &[gm::engine::keyring::Tek])> = self
            .members
            .iter()
            .enumerate()
            .filter_map(|(index, member)| {
                let teks = member.as_ref()?.vpns().get(GROUP)?.keyring.teks();
                (!teks.is_empty()).then_some((index, teks))
            })
            .collect();
        let mut torn = Vec::new();
        for (sender, teks) in &keyed {
            // Of several that may encrypt, the newest does.
            let sending = teks.iter().rev().find(|tek| tek.sending == gm::engine::keyring::Sending::Now);
            let Some(spi) = sending.map(|tek| tek.policy.spi) else { continue };
            for (receiver, theirs) in &keyed {
                if !theirs.iter().any(|tek| tek.policy.spi == spi) {
                    torn.push(format!("{} {spi} {}", member_name(*sender), member_name(*receiver)));
                }
            }
        }
        torn
    }

    /// Runs for `time` and looks at every half second whether the members could talk; the moments at which they could not.
    pub fn run_watching(&mut self, time: Duration) -> Vec<(Instant, Vec<String>)> {
        let end = self.now + time;
        let mut gaps = Vec::new();
        while self.now < end {
            self.run(Duration::from_millis(500));
            let torn = self.torn();
            if !torn.is_empty() {
                gaps.push((self.now, torn));
            }
        }
        gaps
    }

    /// Members the server knows.
    pub fn registered(&self) -> usize {
        self.server.as_ref().map_or(0, |server| server.groups()[GROUP].members().count())
    }
}
