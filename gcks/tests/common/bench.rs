//! One key server with its stored rows and what it sent, and peers played by hand.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gcks::engine::KeyServer;
use gcks::engine::durable::{Change, Kind, Row};
use gcks::engine::io::{Input, Outcome, Output};
use gcks::engine::settings::Settings;
use gdoi_proto::header::Header;
use gdoi_proto::ids::GroupId;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::ExchangeType;
use ike::crypto::provider::{Provider, Random, default_provider, run};
use ike::io::{Datagram, Entropy, Instant, JobResult, Machine, Now};
use ike::phase1::{Ends, Initiator, NONCE_LEN, PeerPolicy, Step};
use ike::protect::phase2::Exchange;
use ike::sa::IkeSa;

use crate::common::{self, SERVER};

/// Peers that are never asked whether they are there.
pub fn settings() -> Settings {
    let mut settings = common::settings();
    settings.gateways.iter_mut().for_each(|gateway| gateway.dead_peer_detection = None);
    settings
}

/// The server with its stored rows and the datagrams it sent.
pub struct Bench {
    pub provider: Arc<dyn Provider>,
    pub now: Now,
    /// Wall clock at [`Instant`] zero.
    epoch: u64,
    pub server: KeyServer,
    pub rows: BTreeMap<(Kind, String), Row>,
    pub sent: VecDeque<Datagram>,
    pub events: Vec<Event>,
    pub replies: Vec<Result<Outcome, String>>,
    pub settings: Settings,
    /// Computations asked for.
    pub jobs: usize,
}

impl Bench {
    /// A server that was not listened to yet.
    pub fn with(settings: Settings) -> Bench {
        let provider = default_provider();
        let now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
        let server = KeyServer::new(settings.clone(), Vec::new(), now, Box::new(Random(provider.clone())))
            .expect("no rows");
        Bench {
            provider,
            now,
            epoch: now.unix_seconds - 1,
            server,
            rows: BTreeMap::new(),
            sent: VecDeque::new(),
            events: Vec::new(),
            replies: Vec::new(),
            settings,
            jobs: 0,
        }
    }

    pub fn drain(&mut self) {
        // Events since anything else came out.
        let mut told = Vec::new();
        while let Some(output) = self.server.poll() {
            match &output {
                Output::Event(event) => told.push(event.name().to_owned()),
                Output::Persist(_) => assert!(told.is_empty(), "told before it is written: {told:?}"),
                _ => told.clear(),
            }
            match output {
                Output::Transmit(datagram) => self.sent.push_back(datagram),
                Output::Multicast { .. } => {}
                Output::Fanout { octets, to } => {
                    for (local, peer) in to {
                        self.sent.push_back(Datagram { local, peer, octets: octets.clone() });
                    }
                }
                Output::Persist(changes) => self.persist(changes),
                Output::Job(request) => {
                    self.jobs += 1;
                    let done = run(self.provider.as_ref(), request.job);
                    self.server.handle(self.now, Input::Job(JobResult { id: request.id, done }));
                }
                Output::Event(event) => self.events.push(event),
                Output::Reply { result, .. } => self.replies.push(result),
            }
        }
    }

    pub fn persist(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(row) => drop(self.rows.insert((row.kind, row.key.clone()), row)),
                Change::Remove { kind, key } => drop(self.rows.remove(&(kind, key))),
            }
        }
    }

    /// The server dies and starts again from what was written.
    pub fn restart(&mut self) {
        self.sent.clear();
        let rows = self.rows.values().cloned().collect();
        let entropy = Box::new(Random(self.provider.clone()));
        self.server = KeyServer::new(self.settings.clone(), rows, self.now, entropy).expect("our own rows");
        self.drain();
    }

    pub fn tell(&mut self, from: SocketAddr, octets: Bytes) {
        self.server.handle(self.now, Input::Datagram(Datagram { local: SERVER, peer: from, octets }));
        self.drain();
    }

    /// What was sent to `address`, in order.
    pub fn received(&mut self, address: SocketAddr) -> Vec<Bytes> {
        let (mine, others): (Vec<_>, Vec<_>) =
            self.sent.drain(..).partition(|datagram| datagram.peer == address);
        self.sent = others.into();
        mine.into_iter().map(|datagram| datagram.octets).collect()
    }

    /// Lets time pass, stopping at each timer of the server.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.at + time;
        while let Some(wakeup) = self.server.poll_timeout().filter(|wakeup| wakeup.at <= end) {
            self.set(wakeup.at.max(self.now.at));
            self.server.handle(self.now, Input::Timeout);
            self.drain();
        }
        self.set(end);
    }

    pub fn set(&mut self, at: Instant) {
        self.now = Now { at, unix_seconds: self.epoch + at.0 / 1_000_000 };
    }

    pub fn count(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name() == name).count()
    }
}

/// A first message of phase 1 from `address`.
pub fn first_message(bench: &Bench, address: SocketAddr, policy: PeerPolicy) -> (Initiator, Bytes) {
    let mut random = Random(bench.provider.clone());
    let (initiator, steps) =
        Initiator::start(policy, Ends { local: address, peer: SERVER }, false, bench.now.at, &mut random);
    let Some(Step::Send(octets)) = steps.into_iter().next() else { panic!("no first message") };
    (initiator, octets)
}

pub fn phase1_as(bench: &mut Bench, address: SocketAddr, policy: PeerPolicy) -> Option<IkeSa> {
    negotiate(bench, address, policy, |_| {})
}

pub fn negotiate(
    bench: &mut Bench,
    address: SocketAddr,
    policy: PeerPolicy,
    between: impl FnOnce(&mut Bench),
) -> Option<IkeSa> {
    let mut random = Random(bench.provider.clone());
    let (mut initiator, first) = first_message(bench, address, policy);
    bench.tell(address, first);
    let second = only(bench.received(address))?;
    between(bench);
    let mut todo: VecDeque<Bytes> = [second].into();
    while let Some(octets) = todo.pop_front() {
        let header = Header::decode(&octets).expect("the server's header");
        let mut steps: VecDeque<Step> = initiator
            .on_message(bench.now, &header, &octets, &mut random)
            .expect("the server's message")
            .into();
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(octets) => bench.tell(address, octets),
                Step::Run(job) => {
                    let done = run(bench.provider.as_ref(), job);
                    steps.extend(initiator.on_done(bench.now, done, &mut random).expect("our own job"));
                }
                Step::Established(done) => return Some(done.sa),
            }
        }
        todo.extend(bench.received(address));
    }
    None
}

/// Registers with group 1; its SA.
pub fn registered(bench: &mut Bench, peer: SocketAddr, policy: PeerPolicy) -> IkeSa {
    let mut sa = phase1_as(bench, peer, policy).expect("phase 1");
    let mut pull = hand_pull(bench, &mut sa, 1);
    bench.tell(peer, pull.first.clone());
    let second = only(bench.received(peer)).expect("message 2");
    bench.tell(peer, pull.third(&sa, &second));
    assert_eq!(bench.received(peer).len(), 1, "message 4");
    sa
}

/// One PULL played by hand up to where it stands.
pub struct HandPull {
    pub exchange: Exchange,
    ni: [u8; NONCE_LEN],
    pub first: Bytes,
}

pub fn hand_pull(bench: &Bench, sa: &mut IkeSa, group: u32) -> HandPull {
    let mut random = Random(bench.provider.clone());
    let mid = sa.fresh_message_id(&mut random);
    let mut exchange = Exchange::new(sa, ExchangeType::GroupkeyPull, mid);
    let ni: [u8; NONCE_LEN] = random.array();
    let GroupId { id_type, data } = GroupId::number(group);
    let id = Identification { id_type, protocol: 0, port: 0, data };
    let first = exchange.seal(sa, &[], &[Payload::Nonce(ni.to_vec()), Payload::Id(id)]);
    HandPull { exchange, ni, first }
}

impl HandPull {
    /// Message 3 for message 2.
    pub fn third(&mut self, sa: &IkeSa, second: &Bytes) -> Bytes {
        let header = Header::decode(second).expect("a header");
        let opened = self.exchange.open(sa, &header, second, &[&self.ni]).expect("message 2").into_inner();
        let [Payload::Nonce(nr), Payload::GdoiSa(_)] = &opened[..] else { panic!("{opened:?}") };
        self.exchange.seal(sa, &[&self.ni, nr], &[])
    }
}

pub fn only(received: Vec<Bytes>) -> Option<Bytes> {
    received.into_iter().next()
}

pub fn address(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, last)), 848)
}
