//! The key server's engine: dispatch by exchange type, questions of peers to groups, timers. No I/O.

pub mod admission;
mod calendar;
mod change;
mod complaints;
pub mod durable;
mod explain;
pub mod group;
pub mod io;
mod layout;
pub mod lkh;
pub mod member;
pub mod membership;
pub mod pace;
pub mod peers;
mod plan;
pub mod pull;
pub mod push;
pub mod rekey;
mod revoke;
pub mod roster;
mod rounds;
mod rows;
pub mod sender_id;
pub mod settings;
mod signing;
mod snapshot;
mod spread;
mod tree;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use ctl::event::Event;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{CookiePair, GroupId, Spi};
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::{ExchangeType, NotifyType};
use ike::crypto::provider::Job;
use ike::fragment::is_fragment;
use ike::io::{Datagram, Entropy, JobId, JobRequest, JobResult, Machine, Now, Wakeup};
use ike::protect::ack::Ack;

use admission::{Admission, Urgency};
use durable::{Change, Kind, Row};
use group::{Group, GroupOutput};
use io::{Command, Input, Outcome, Output};
use pace::Pace;
use peers::{Ask, Move, PeerOutput, Peers, PolicyAnswer};
pub use rows::{RestoreError, without_keys};
use settings::Settings;

/// The key server.
pub struct KeyServer {
    peers: Peers,
    groups: BTreeMap<String, Group>,
    /// Of every TEK.
    spis: BTreeSet<Spi>,
    /// How fast unicast PUSHes of all groups leave.
    pace: Pace,
    by_id: BTreeMap<GroupId, String>,
    jobs: BTreeMap<JobId, Owner>,
    admission: Admission,
    next_job: u64,
    store_failing: bool,
    /// Wall clock minus monotonic one, in seconds.
    clocks: i64,
    entropy: Box<dyn Entropy>,
    out: VecDeque<Output>,
}

/// Whose job it is.
#[derive(Debug, Clone)]
enum Owner {
    Peer(CookiePair),
    Group(String),
}

impl KeyServer {
    /// A key server from its configuration and its stored rows. What it wants at once is polled as usual.
    ///
    /// # Errors
    /// [`RestoreError`] naming the row that cannot be used; nothing is thrown away.
    pub fn new(
        settings: Settings,
        rows: Vec<Row>,
        now: Now,
        mut entropy: Box<dyn Entropy>,
    ) -> Result<KeyServer, RestoreError> {
        let mut peers = Peers::new(&settings, entropy.as_mut());
        let mut groups: BTreeMap<String, Group> = settings
            .groups
            .into_iter()
            .map(|settings| (settings.name.clone(), Group::new(settings)))
            .collect();
        // Kinds in order: a PUSH needs its KEK, a KEK its group.
        let mut orphans = Vec::new();
        for kind in Kind::ALL {
            for row in rows.iter().filter(|row| row.kind == kind) {
                match groups.values_mut().find(|group| group.owns(row)) {
                    Some(group) => group.restore(now, row)?,
                    // Keys of a group that is no longer configured are nobody's.
                    None => orphans.push(rows::gone(row)),
                }
            }
        }
        groups.values().flat_map(Group::members).for_each(|(_, member)| peers.acquaint(member.peer.ip()));
        let by_id = by_id(&groups);
        let members = groups.values().map(|group| group.members().count() as u64).sum();
        let mut server = KeyServer {
            peers,
            spis: groups.values().flat_map(|group| group.teks().iter().map(|tek| tek.spi)).collect(),
            pace: Pace::default(),
            by_id,
            jobs: BTreeMap::new(),
            admission: Admission::default(),
            next_job: 0,
            store_failing: false,
            clocks: clocks(now),
            entropy,
            out: VecDeque::new(),
            groups,
        };
        if !rows.is_empty() {
            let groups = server.groups.len() as u64;
            server.out.push_back(Output::Event(Event::StateRestored { groups, members }));
        }
        if !orphans.is_empty() {
            server.out.push_back(Output::Persist(orphans));
        }
        server.groups.values_mut().for_each(Group::restored);
        server.groups.values_mut().for_each(|group| group.state_ends(now, &settings.gateways));
        let names: Vec<String> = server.groups.keys().cloned().collect();
        for name in names {
            server.lend(&name, |group, entropy| group.start(now, entropy));
        }
        server.settle(now);
        Ok(server)
    }

    /// The smallest receive buffer of the sockets has this many octets: no more acknowledgements are provoked at a time than
    /// it holds.
    pub fn set_receive_buffer(&mut self, octets: usize) {
        self.pace.set_receive_buffer(octets);
    }

    /// How fast unicast PUSHes leave.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The groups by name.
    pub fn groups(&self) -> &BTreeMap<String, Group> {
        &self.groups
    }

    /// Phase 1.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Lets a group do what may make or end TEKs, or send.
    fn lend<T>(&mut self, name: &str, act: impl FnOnce(&mut Group, &mut dyn Entropy) -> T) -> Option<T> {
        let group = self.groups.get_mut(name)?;
        group.spis = std::mem::take(&mut self.spis);
        group.pace = std::mem::take(&mut self.pace);
        let result = act(group, self.entropy.as_mut());
        self.spis = std::mem::take(&mut group.spis);
        self.pace = std::mem::take(&mut group.pace);
        Some(result)
    }

    fn on_datagram(&mut self, now: Now, datagram: &Datagram) {
        let octets = datagram.octets.as_ref();
        let (local, peer) = (datagram.local, datagram.peer);
        let header = match Header::decode(octets) {
            Ok(header) => header,
            Err(error) => return self.drop_message(datagram, error.to_string()),
        };
        // While the store refuses writes nobody can be registered: members repeat their messages.
        if self.store_failing && header.exchange != ExchangeType::GroupkeyPushAck {
            return self.drop_message(datagram, "the store refuses writes".to_owned());
        }
        if is_fragment(&header) {
            if let Some(octets) = self.peers.on_fragment(peer, &header, octets) {
                self.on_datagram(now, &Datagram { local, peer, octets });
            }
            return;
        }
        let entropy = self.entropy.as_mut();
        match header.exchange {
            ExchangeType::MainMode | ExchangeType::Aggressive => {
                self.peers.on_phase1(now, (local, peer), &header, octets, entropy);
            }
            ExchangeType::Informational => {
                self.peers.on_informational((local, peer), &header, octets, entropy)
            }
            ExchangeType::GroupkeyPull => self.peers.on_pull(now.at, (local, peer), &header, octets),
            ExchangeType::GroupkeyPushAck => self.on_ack(now, datagram),
            ExchangeType::Base
            | ExchangeType::AuthenticationOnly
            | ExchangeType::GroupkeyPush
            | ExchangeType::Other(_) => {
                self.drop_message(datagram, format!("exchange {} is not for a key server", header.exchange));
            }
        }
    }

    fn on_ack(&mut self, now: Now, datagram: &Datagram) {
        let ack = match Ack::decode(&datagram.octets) {
            Ok(ack) => ack,
            Err(error) => return self.drop_message(datagram, error.to_string()),
        };
        let Some(group) = self.groups.values_mut().find(|group| group.kek_spis().any(|spi| spi == ack.spi))
        else {
            self.peers.counters.acks_unknown += 1;
            return self.drop_message(datagram, "acknowledgement for an unknown rekey SA".to_owned());
        };
        let output_length = self.peers.takes_short_l(datagram.peer.ip());
        group.pace = std::mem::take(&mut self.pace);
        group.on_ack(now, datagram.peer, ack, output_length);
        self.pace = std::mem::take(&mut group.pace);
    }

    fn drop_message(&mut self, datagram: &Datagram, reason: String) {
        self.peers.counters.dropped += 1;
        self.out.push_back(Output::Event(Event::MessageDropped { peer: datagram.peer.to_string(), reason }));
    }

    fn on_job(&mut self, now: Now, result: JobResult) {
        self.admission.done(result.id);
        match self.jobs.remove(&result.id) {
            Some(Owner::Peer(cookies)) => {
                self.peers.on_done(now, cookies, result.done, self.entropy.as_mut())
            }
            Some(Owner::Group(name)) => {
                let told = self.lend(&name, |group, entropy| group.on_done(now, result.done, entropy));
                if let Some(Err(reason)) = told {
                    self.out.push_back(Output::Event(Event::GroupFailed { group: name, reason }));
                }
            }
            None => {}
        }
    }

    fn on_command(&mut self, now: Now, ticket: u64, command: Command) {
        let result = self.obey(now, command);
        // What the command wrote and sent goes first: the reply then tells the truth.
        self.settle(now);
        self.out.push_back(Output::Reply { ticket, result });
    }

    /// The group of a command does it.
    fn command<T>(
        &mut self,
        name: &str,
        act: impl FnOnce(&mut Group, &mut dyn Entropy) -> Result<T, String>,
    ) -> Result<T, String> {
        let name = find(&mut self.groups, name)?.settings.name.clone();
        self.lend(&name, act).unwrap_or_else(|| Err(format!("no group {name}")))
    }

    fn obey(&mut self, now: Now, command: Command) -> Result<Outcome, String> {
        match command {
            Command::Rekey { group, tek, kek } => {
                self.command(&group, |group, entropy| group.rekey_now(now, tek, kek, "operator", entropy))
            }
            Command::ClearMembers { group } => self.command(&group, |group, entropy| {
                group.must_be_ready()?;
                Ok(group.clear_members(now, "cleared by the operator", entropy))
            }),
            Command::Expel { group, member } => {
                self.command(&group, |group, entropy| group.expel(now, &member, entropy))
            }
            Command::Revoke { group, member } => {
                self.command(&group, |group, entropy| group.revoke(now, &member, entropy))
            }
            Command::Unrevoke { group, member } => self.command(&group, |group, _| group.unrevoke(&member)),
            Command::ClearStatistics { group: Some(group) } => {
                find(&mut self.groups, &group)?.counters = group::GroupCounters::default();
                Ok("statistics cleared".to_owned().into())
            }
            Command::ClearStatistics { group: None } => {
                for group in self.groups.values_mut() {
                    group.counters = group::GroupCounters::default();
                }
                self.peers.counters = peers::PeerCounters::default();
                self.admission.counters = admission::AdmissionCounters::default();
                Ok("statistics cleared".to_owned().into())
            }
        }
    }

    /// Carries wishes of peers and groups out and questions across until nobody wants anything.
    fn settle(&mut self, now: Now) {
        loop {
            let mut quiet = true;
            // Nobody reaches the groups meanwhile.
            let mut groups = std::mem::take(&mut self.groups);
            for (name, group) in &mut groups {
                while let Some(output) = group.poll() {
                    quiet = false;
                    self.on_group_output(name, output);
                }
            }
            self.groups = groups;
            while let Some(output) = self.peers.poll() {
                quiet = false;
                let asks = matches!(output, PeerOutput::Ask(_));
                self.on_peer_output(now, output);
                if asks {
                    // A join persists before its message 4 may leave: take the group's wishes first.
                    break;
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn on_peer_output(&mut self, now: Now, output: PeerOutput) {
        match output {
            PeerOutput::Transmit(local, peer, octets) => {
                self.out.push_back(Output::Transmit(Datagram { local, peer, octets }));
            }
            PeerOutput::Job(cookies, job) => self.admit(now, cookies, job),
            PeerOutput::Event(event) => self.out.push_back(Output::Event(event)),
            PeerOutput::Moved(identity, moved) => self.on_moved(&identity, moved),
            PeerOutput::Ask(ask) => self.on_ask(now, ask),
        }
    }

    /// A write goes before the events that wait right before it: what an event tells is on disk when it is told.
    fn write(&mut self, changes: Vec<Change>) {
        let events = self.out.iter().rev().take_while(|output| matches!(output, Output::Event(_))).count();
        self.out.insert(self.out.len() - events, Output::Persist(changes));
    }

    fn on_group_output(&mut self, name: &str, output: GroupOutput) {
        match output {
            GroupOutput::Persist(changes) => self.write(changes),
            GroupOutput::Fanout(octets, to) => self.out.push_back(Output::Fanout { octets, to }),
            GroupOutput::Multicast(octets, channel) => {
                self.out.push_back(Output::Multicast { octets, channel });
            }
            GroupOutput::Job(job) => drop(self.request(Owner::Group(name.to_owned()), job)),
            GroupOutput::Event(event) => self.out.push_back(Output::Event(event)),
            GroupOutput::DeleteIdentity(identity, reason) => {
                self.peers.delete_identity(&identity, &reason, self.entropy.as_mut());
            }
        }
    }

    fn on_ask(&mut self, now: Now, ask: Ask) {
        match ask {
            Ask::Policy(name, asker, id) => {
                let known = self.by_id.get(&id).and_then(|known| self.groups.get_mut(known));
                // A group's address names it only for those who need that.
                let by_address = asker.gateway.policy.dialect.group_id_address;
                let known = known.filter(|group| by_address || group.settings.address.as_ref() != Some(&id));
                let answer = match known {
                    Some(group) => group.on_policy_ask(now, &asker),
                    None => {
                        let refused = asker.refused(id.to_string(), "no such group".to_owned());
                        self.out.push_back(Output::Event(refused));
                        // The same answer as for "not authorised": groups cannot be probed.
                        PolicyAnswer::Refused(NotifyType::InvalidIdInformation)
                    }
                };
                self.peers.answer_policy(now.at, name, id, answer, self.entropy.as_mut());
            }
            Ask::Join(name, asker, id, terms, sender_ids) => {
                let joined = self
                    .by_id
                    .get(&id)
                    .cloned()
                    .and_then(|known| self.groups.get_mut(&known).map(|group| (known, group)))
                    .and_then(|(known, group)| {
                        let keys = group.on_join(now, &asker, &terms, sender_ids, self.entropy.as_mut());
                        keys.map(|keys| (known, keys))
                    });
                match joined {
                    Some((known, keys)) => {
                        // Everything up to and including the last write goes before message 4.
                        let mut after = Vec::new();
                        while let Some(output) = self.groups.get_mut(&known).and_then(Group::poll) {
                            match output {
                                GroupOutput::Fanout(..) | GroupOutput::Multicast(..) => after.push(output),
                                other => self.on_group_output(&known, other),
                            }
                        }
                        self.peers.answer_join(name, Some(keys));
                        while let Some(output) = self.peers.poll() {
                            self.on_peer_output(now, output);
                        }
                        for output in after {
                            self.on_group_output(&known, output);
                        }
                    }
                    None => self.peers.answer_join(name, None),
                }
            }
        }
    }

    fn on_moved(&mut self, identity: &Identification, moved: Move) {
        self.groups.values_mut().for_each(|group| group.on_moved(identity, moved));
    }

    /// A job of a negotiation. What begins one waits when many do, the most urgent first; what finishes one does not.
    fn admit(&mut self, now: Now, cookies: CookiePair, job: Job) {
        if !matches!(job, Job::DhRespond { .. }) {
            self.request(Owner::Peer(cookies), job);
        } else if self.admission.has_room() {
            let id = self.request(Owner::Peer(cookies), job);
            self.admission.begin(id);
        } else {
            let urgency =
                self.peers.half_open_peer(&cookies).map_or(Urgency::Newcomer, |at| self.urgency(at));
            self.out.extend(self.admission.wait(now.at, urgency, cookies, job).map(Output::Event));
        }
    }

    /// Those that wait and find room by now. Whoever was given up meanwhile is passed over.
    fn admit_waiting(&mut self, now: Now) {
        while let Some((cookies, job)) = self.admission.next(now.at) {
            if self.peers.half_open_peer(&cookies).is_some() {
                let id = self.request(Owner::Peer(cookies), job);
                self.admission.begin(id);
            }
        }
    }

    fn urgency(&self, peer: SocketAddr) -> Urgency {
        let ends = self.groups.values().filter_map(|group| group.keys_end(peer)).min();
        ends.map_or(Urgency::Newcomer, Urgency::Ends)
    }

    fn request(&mut self, owner: Owner, job: Job) -> JobId {
        self.next_job += 1;
        let id = JobId(self.next_job);
        self.jobs.insert(id, owner);
        self.out.push_back(Output::Job(JobRequest { id, job }));
        id
    }
}

/// Names on the wire to names of groups; who leaves has none.
fn by_id(groups: &BTreeMap<String, Group>) -> BTreeMap<GroupId, String> {
    let living = groups.values().filter(|group| !group.leaving);
    living
        .flat_map(|group| {
            let names = std::iter::once(&group.settings.id).chain(&group.settings.address);
            names.map(|id| (id.clone(), group.settings.name.clone()))
        })
        .collect()
}

fn clocks(now: Now) -> i64 {
    let seconds = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    seconds(now.unix_seconds) - seconds(now.at.0 / 1_000_000)
}

fn find<'a>(groups: &'a mut BTreeMap<String, Group>, name: &str) -> Result<&'a mut Group, String> {
    let by_number = groups
        .values()
        .find(|group| group.settings.id.to_string() == name)
        .map(|group| group.settings.name.clone());
    let group = groups.get_mut(by_number.as_deref().unwrap_or(name)).filter(|group| !group.leaving);
    group.ok_or_else(|| format!("no group {name}"))
}

impl Machine for KeyServer {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input) {
        let moved = clocks(now) - self.clocks;
        // Two roundings make a second.
        if moved.abs() > 1 {
            self.clocks += moved;
            self.groups.values_mut().for_each(|group| group.on_wall_clock(now, moved));
        }
        match input {
            Input::Datagram(datagram) => self.on_datagram(now, &datagram),
            Input::Timeout => {
                self.peers.on_timeout(now.at, self.entropy.as_mut());
                self.out.extend(self.admission.on_timeout(now.at).map(Output::Event));
                let due = |group: &Group| {
                    let next = Wakeup::earlier(group.poll_timeout(), group.round_wakeup(&self.pace));
                    next.is_some_and(|wakeup| wakeup.at <= now.at)
                };
                let names: Vec<String> = self
                    .groups
                    .iter()
                    .filter(|(_, group)| due(group))
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in names {
                    self.lend(&name, |group, entropy| group.on_timeout(now, entropy));
                }
            }
            Input::Job(result) => self.on_job(now, result),
            Input::Command { ticket, command } => self.on_command(now, ticket, command),
            Input::StoreFailing(failing) => {
                self.store_failing = failing;
                for group in self.groups.values_mut() {
                    group.on_store(now.at, failing);
                }
            }
            Input::Apply(settings) => {
                self.apply(now, *settings);
            }
            Input::Stop => {
                self.groups.values_mut().for_each(|group| group.finish_rounds(now));
                self.peers.delete_all("the key server stops", self.entropy.as_mut());
            }
        }
        self.settle(now);
        self.admit_waiting(now);
        self.groups.retain(|_, group| !group.is_over());
    }

    fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    fn poll_timeout(&self) -> Option<Wakeup> {
        let next = |group: &Group| Wakeup::earlier(group.poll_timeout(), group.round_wakeup(&self.pace));
        let groups = self.groups.values().map(next);
        let peers = Wakeup::earlier(self.peers.poll_timeout(), self.admission.poll_timeout());
        groups.fold(peers, Wakeup::earlier)
    }
}
