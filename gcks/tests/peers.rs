//! The key server's peers: floods of first messages, limits of what runs under an SA, one name for one member, and
//! goodbyes.

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gcks::engine::KeyServer;
use gcks::engine::durable::{Change, Kind, Row};
use gcks::engine::io::{Command, Input, Outcome, Output};
use gcks::engine::settings::{GroupSettings, Settings};
use gdoi_proto::header::Header;
use gdoi_proto::ids::GroupId;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, IdType, NotifyType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{Provider, Random, default_provider, run};
use ike::identity::IdentityRule;
use ike::io::{Datagram, Entropy, Instant, JobResult, Machine, Now};
use ike::phase1::{Ends, Initiator, NONCE_LEN, PeerPolicy, Step};
use ike::protect::notify::{self, Informational};
use ike::protect::phase2::Exchange;
use ike::sa::IkeSa;

use common::{SERVER, peer_policy};

/// Peers that are never asked whether they are there.
fn settings() -> Settings {
    let mut settings = common::settings();
    settings.gateways.iter_mut().for_each(|gateway| gateway.dead_peer_detection = None);
    settings
}

/// The server with its stored rows and the datagrams it sent.
struct Bench {
    provider: Arc<dyn Provider>,
    now: Now,
    /// Wall clock at [`Instant`] zero.
    epoch: u64,
    server: KeyServer,
    rows: BTreeMap<(Kind, String), Row>,
    sent: VecDeque<Datagram>,
    events: Vec<Event>,
    replies: Vec<Result<Outcome, String>>,
    settings: Settings,
}

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench::with(settings());
        bench.drain();
        bench
    }

    /// A server that was not listened to yet.
    fn with(settings: Settings) -> Bench {
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
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll() {
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
                    let done = run(self.provider.as_ref(), request.job);
                    self.server.handle(self.now, Input::Job(JobResult { id: request.id, done }));
                }
                Output::Event(event) => self.events.push(event),
                Output::Reply { result, .. } => self.replies.push(result),
            }
        }
    }

    fn persist(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(row) => drop(self.rows.insert((row.kind, row.key.clone()), row)),
                Change::Remove { kind, key } => drop(self.rows.remove(&(kind, key))),
            }
        }
    }

    /// The server dies and starts again from what was written.
    fn restart(&mut self) {
        self.sent.clear();
        let rows = self.rows.values().cloned().collect();
        let entropy = Box::new(Random(self.provider.clone()));
        self.server = KeyServer::new(self.settings.clone(), rows, self.now, entropy).expect("our own rows");
        self.drain();
    }

    fn tell(&mut self, from: SocketAddr, octets: Bytes) {
        self.server.handle(self.now, Input::Datagram(Datagram { local: SERVER, peer: from, octets }));
        self.drain();
    }

    /// What was sent to `address`, in order.
    fn received(&mut self, address: SocketAddr) -> Vec<Bytes> {
        let (mine, others): (Vec<_>, Vec<_>) =
            self.sent.drain(..).partition(|datagram| datagram.peer == address);
        self.sent = others.into();
        mine.into_iter().map(|datagram| datagram.octets).collect()
    }

    /// Lets time pass, stopping at each timer of the server.
    fn pass(&mut self, time: Duration) {
        let end = self.now.at + time;
        while let Some(wakeup) = self.server.poll_timeout().filter(|wakeup| wakeup.at <= end) {
            self.set(wakeup.at.max(self.now.at));
            self.server.handle(self.now, Input::Timeout);
            self.drain();
        }
        self.set(end);
    }

    fn set(&mut self, at: Instant) {
        self.now = Now { at, unix_seconds: self.epoch + at.0 / 1_000_000 };
    }

    fn command(&mut self, command: Command) -> Result<Outcome, String> {
        self.server.handle(self.now, Input::Command { ticket: 1, command });
        self.drain();
        self.replies.pop().expect("every command is answered")
    }

    fn count(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name() == name).count()
    }

    fn members(&self) -> usize {
        self.server.groups()["g1"].members().count()
    }
}

#[test]
fn an_identity_has_a_few_sas_at_a_time_and_the_oldest_goes() {
    let mut bench = Bench::new();
    let oldest = phase1(&mut bench, address(1)).expect("phase 1").cookies;
    for _ in 0..8 {
        bench.pass(Duration::from_secs(1));
        phase1(&mut bench, address(1)).expect("phase 1");
    }
    let left: Vec<_> = bench.server.peers().established().map(|(sa, ..)| sa.cookies).collect();
    assert_eq!((left.len(), left.contains(&oldest)), (8, false));
    assert_eq!(bench.count("phase1_deleted"), 1);
}

/// A first message of phase 1 from `address`.
fn first_message(bench: &Bench, address: SocketAddr, policy: PeerPolicy) -> (Initiator, Bytes) {
    let mut random = Random(bench.provider.clone());
    let (initiator, steps) =
        Initiator::start(policy, Ends { local: address, peer: SERVER }, false, bench.now.at, &mut random);
    let Some(Step::Send(octets)) = steps.into_iter().next() else { panic!("no first message") };
    (initiator, octets)
}

/// The `number`-th forged source within the configured prefix.
fn forged(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, high, low)), 848)
}

/// A server whose members come from anywhere in 10.0.0.0/8.
fn wide() -> Bench {
    let mut settings = settings();
    settings.gateways[0].address = Some((IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8));
    settings.groups[0].member_threshold = None;
    let mut bench = Bench::with(settings);
    bench.drain();
    bench
}

/// A flood of `messages`, each from another source; the answers are lost.
fn flood(bench: &mut Bench, messages: u16) {
    let (_, octets) = first_message(bench, forged(0), peer_policy());
    for number in 0..messages {
        let mut forgery = octets.to_vec();
        forgery[..2].copy_from_slice(&number.to_be_bytes());
        bench.tell(forged(number), forgery.into());
        assert!(bench.server.peers().half_open() <= 64);
    }
    bench.sent.clear();
}

fn phase1(bench: &mut Bench, address: SocketAddr) -> Option<IkeSa> {
    phase1_as(bench, address, peer_policy())
}

fn phase1_as(bench: &mut Bench, address: SocketAddr, policy: PeerPolicy) -> Option<IkeSa> {
    negotiate(bench, address, policy, |_| {})
}

/// Phase 1 of a member whose message 3 comes after `between`.
fn phase1_around(bench: &mut Bench, address: SocketAddr, between: impl FnOnce(&mut Bench)) -> Option<IkeSa> {
    negotiate(bench, address, peer_policy(), between)
}

fn negotiate(
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
        let mut steps: VecDeque<Step> =
            initiator.on_message(bench.now, &header, &octets).expect("the server's message").into();
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

#[test]
fn a_member_comes_back_while_ten_times_the_limit_is_forged_around_each_of_its_messages() {
    let mut bench = wide();
    registered(&mut bench, address(1), peer_policy());
    bench.pass(Duration::from_secs(120));
    assert_eq!(bench.server.peers().established().count(), 0, "known by its address, not by an SA");
    for restarts in 0..2 {
        flood(&mut bench, 640);
        let sa = phase1_around(&mut bench, address(1), |bench| {
            bench.pass(Duration::from_secs(5));
            flood(bench, 640);
        });
        assert!(sa.is_some(), "after {restarts} restarts");
        assert!(bench.count("half_open_limit") > 1000);
        bench.restart();
    }
}

#[test]
fn a_stranger_is_admitted_by_a_retry_within_a_minute_and_then_has_time_for_a_round_trip() {
    let mut bench = wide();
    flood(&mut bench, 640);
    let newcomer = address(9);
    // Nobody who was admitted is thrown out before half a second, not even for this one.
    let (_, first) = first_message(&bench, newcomer, peer_policy());
    bench.tell(newcomer, first);
    assert!(bench.received(newcomer).is_empty());
    // Forgers that go on at 20 times the limit per minute.
    let mut established = None;
    for number in 0..12 {
        bench.pass(Duration::from_secs(5));
        flood(&mut bench, 16);
        established = phase1_around(&mut bench, newcomer, |bench| {
            bench.pass(Duration::from_millis(200));
            flood(bench, 128);
        });
        if established.is_some() {
            assert!(number < 12);
            break;
        }
    }
    assert!(established.is_some());
}

#[test]
fn an_address_that_is_forged_does_not_push_out_who_answered_from_it() {
    let mut bench = wide();
    let peer = address(5);
    let sa = phase1_around(&mut bench, peer, |bench| {
        let (_, octets) = first_message(bench, peer, peer_policy());
        for number in 0..40_u16 {
            let mut forgery = octets.to_vec();
            forgery[..2].copy_from_slice(&number.to_be_bytes());
            bench.tell(peer, forgery.into());
        }
        bench.sent.clear();
        assert!(bench.server.peers().half_open() <= 4);
    });
    assert!(sa.is_some());
}

/// Registers with group 1; its SA.
fn registered(bench: &mut Bench, peer: SocketAddr, policy: PeerPolicy) -> IkeSa {
    let mut sa = phase1_as(bench, peer, policy).expect("phase 1");
    let mut pull = hand_pull(bench, &mut sa, 1);
    bench.tell(peer, pull.first.clone());
    let second = only(bench.received(peer)).expect("message 2");
    bench.tell(peer, pull.third(&sa, &second));
    assert_eq!(bench.received(peer).len(), 1, "message 4");
    sa
}

fn only(received: Vec<Bytes>) -> Option<Bytes> {
    received.into_iter().next()
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, last)), 848)
}

/// One PULL played by hand up to where it stands.
struct HandPull {
    exchange: Exchange,
    ni: [u8; NONCE_LEN],
    first: Bytes,
}

fn hand_pull(bench: &Bench, sa: &mut IkeSa, group: u32) -> HandPull {
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
    fn third(&mut self, sa: &IkeSa, second: &Bytes) -> Bytes {
        let header = Header::decode(second).expect("a header");
        let opened = self.exchange.open(sa, &header, second, &[&self.ni]).expect("message 2").into_inner();
        let [Payload::Nonce(nr), Payload::GdoiSa(_)] = &opened[..] else { panic!("{opened:?}") };
        self.exchange.seal(sa, &[&self.ni, nr], &[])
    }
}

#[test]
fn a_member_of_twelve_groups_is_registered_in_all_of_them_within_seconds() {
    let mut settings = settings();
    let group = settings.groups.remove(0);
    settings.groups = (1..=12)
        .map(|number| GroupSettings {
            line: 20,
            name: format!("g{number}"),
            id: GroupId::number(number),
            ..group.clone()
        })
        .collect();
    let mut bench = Bench::with(settings);
    bench.drain();
    let peer = address(1);
    let mut sa = phase1(&mut bench, peer).expect("phase 1");
    let mut pulls: Vec<HandPull> = (1..=12).map(|number| hand_pull(&bench, &mut sa, number)).collect();
    // All at once, as a member does; who is not heard repeats after 2 s.
    while !pulls.is_empty() {
        for pull in &pulls {
            bench.tell(peer, pull.first.clone());
        }
        let answers = bench.received(peer);
        assert!(!answers.is_empty(), "{} are not answered", pulls.len());
        for second in answers {
            let id = Header::decode(&second).expect("a header").message_id;
            let place = pulls.iter().position(|pull| pull.exchange.message_id() == id).expect("ours");
            let third = pulls.remove(place).third(&sa, &second);
            bench.tell(peer, third);
            assert!(!bench.received(peer).is_empty(), "message 4");
        }
        bench.pass(Duration::from_secs(2));
    }
    assert!(bench.server.groups().values().all(|group| group.members().count() == 1));
    assert!(bench.now.at.since(Instant(1_000_000)) < Duration::from_secs(10));
}

#[test]
fn an_answer_of_a_pull_is_repeated_ten_times_and_an_unfinished_pull_is_forgotten_after_a_minute() {
    let mut bench = Bench::new();
    let peer = address(1);
    let mut sa = phase1(&mut bench, peer).expect("phase 1");
    let mut pull = hand_pull(&bench, &mut sa, 1);
    let answers = |bench: &mut Bench, octets: &Bytes| {
        (0..30).for_each(|_| bench.tell(peer, octets.clone()));
        bench.received(peer)
    };
    let seconds = answers(&mut bench, &pull.first);
    assert_eq!(seconds.len(), 11);
    let third = pull.third(&sa, &seconds[0]);
    assert_eq!(answers(&mut bench, &third).len(), 11);
    // Another one keeps the SA up while the first half-open one is past its time.
    let mut stale = hand_pull(&bench, &mut sa, 1);
    bench.tell(peer, stale.first.clone());
    let second = only(bench.received(peer)).expect("message 2");
    bench.pass(Duration::from_secs(40));
    let other = hand_pull(&bench, &mut sa, 1);
    bench.tell(peer, other.first.clone());
    assert_eq!(bench.received(peer).len(), 1);
    bench.pass(Duration::from_secs(21));
    bench.tell(peer, stale.third(&sa, &second));
    assert!(bench.received(peer).is_empty(), "forgotten with its keys");
}

#[test]
fn protected_refusals_are_limited_and_a_repeat_is_answered_later() {
    let mut bench = Bench::new();
    let peer = address(1);
    let mut sa = phase1(&mut bench, peer).expect("phase 1");
    let pulls: Vec<HandPull> = (0..8).map(|_| hand_pull(&bench, &mut sa, 999)).collect();
    for pull in &pulls {
        bench.tell(peer, pull.first.clone());
    }
    assert_eq!(bench.received(peer).len(), 4);
    bench.pass(Duration::from_secs(2));
    bench.tell(peer, pulls[7].first.clone());
    let answer = only(bench.received(peer)).expect("now");
    assert_eq!(Header::decode(&answer).expect("a header").exchange, ExchangeType::Informational);
    bench.tell(peer, pulls[0].first.clone());
    assert!(bench.received(peer).is_empty(), "it had its answer");
}

#[test]
fn a_member_is_one_member_however_it_writes_its_name() {
    let named = |text: &str, port: u16| Identification {
        protocol: if port == 0 { 0 } else { 17 },
        port,
        ..Identification::new(IdType::Fqdn, text)
    };
    let mut settings = settings();
    let mut policy = peer_policy();
    policy.remote = vec![IdentityRule::AnyOf { id_type: IdType::Fqdn }];
    settings.gateways[0].policy = Arc::new(policy);
    let mut bench = Bench::with(settings);
    bench.drain();
    let forms = [named("gm1.example", 0), named("GM1.Example", 500)];
    for (last, form) in (1..).zip(&forms) {
        let policy = PeerPolicy { local_identity: Some(form.clone()), ..peer_policy() };
        let policy = PeerPolicy { remote: vec![IdentityRule::AnyOf { id_type: IdType::Ipv4Addr }], ..policy };
        registered(&mut bench, address(last), policy);
    }
    let one = |bench: &Bench| {
        let members: Vec<String> =
            bench.server.groups()["g1"].members().map(|(key, _)| key.to_string()).collect();
        assert_eq!(members, ["gm1.example"]);
        assert_eq!(bench.rows.keys().filter(|(kind, _)| *kind == Kind::Member).count(), 1);
    };
    one(&bench);
    // A row as older versions wrote it.
    let key = bench.rows.keys().find(|(kind, _)| *kind == Kind::Member).cloned().expect("a row");
    let mut row = bench.rows.remove(&key).expect("it is there");
    let body = String::from_utf8(row.body.expose().to_vec()).expect("JSON");
    let upper = |text: &str| text.replace("676d312e6578616d706c65", "474d312e4578616d706c65");
    (row.key, row.body) = (upper(&row.key), SecretBytes::copy(upper(&body).as_bytes()));
    bench.rows.insert((row.kind, row.key.clone()), row);
    bench.restart();
    one(&bench);
    bench.restart();
    one(&bench);
}

#[test]
fn an_address_that_means_two_members_expels_neither() {
    let mut bench = Bench::new();
    let mut policy = peer_policy();
    policy.remote = vec![IdentityRule::AnyOf { id_type: IdType::Fqdn }];
    let mut settings = settings();
    settings.gateways[0].policy = Arc::new(policy);
    bench.settings = settings;
    bench.restart();
    for (name, port) in [("one.example", 848), ("two.example", 1848)] {
        let peer = SocketAddr::new(address(1).ip(), port);
        let policy =
            PeerPolicy { local_identity: Some(Identification::new(IdType::Fqdn, name)), ..peer_policy() };
        registered(&mut bench, peer, policy);
    }
    let expel = |member: &str| Command::Expel { group: "g1".to_owned(), member: member.to_owned() };
    let refused = bench.command(expel("10.1.0.1")).expect_err("which one?");
    assert_eq!(
        refused,
        "10.1.0.1 means several members, say which: 10.1.0.1:848 (one.example), 10.1.0.1:1848 (two.example)"
    );
    assert_eq!(bench.members(), 2);
    bench.command(expel("10.1.0.1:1848")).expect("the second");
    assert_eq!(bench.members(), 1);
    assert_eq!(bench.command(expel("10.1.0.7")), Err("no member 10.1.0.7".to_owned()));
}

#[test]
fn a_stopping_server_tells_its_peers_and_keeps_its_members() {
    let mut bench = Bench::new();
    let mut sas = [1, 2].map(|last| registered(&mut bench, address(last), peer_policy()));
    bench.server.handle(bench.now, Input::Stop);
    bench.drain();
    for (last, sa) in (1..).zip(&mut sas) {
        let octets = only(bench.received(address(last))).expect("a goodbye");
        let header = Header::decode(&octets).expect("a header");
        let said = notify::open(sa, &header, &octets).expect("protected").into_inner();
        assert_eq!(said, [Informational::DeleteIsakmp]);
    }
    bench.restart();
    assert_eq!(bench.members(), 2);
}

#[test]
fn initial_contact_ends_the_older_sas_of_the_same_identity_and_a_shorter_life_is_kept() {
    let mut bench = Bench::new();
    let peer = address(1);
    let mut random = Random(bench.provider.clone());
    let _old = phase1(&mut bench, peer).expect("phase 1");
    let mut sa = phase1(&mut bench, peer).expect("phase 1");
    assert_eq!(bench.server.peers().established().count(), 2);
    let first = notify::initial_contact(sa.cookies);
    let octets = notify::seal(&mut sa, &[first], &mut random);
    bench.tell(peer, octets);
    let left: Vec<_> = bench.server.peers().established().map(|(sa, ..)| sa.cookies).collect();
    assert_eq!(left, [sa.cookies]);
    let life = |seconds: u8| {
        let Payload::Notify(mut notify) = notify::notification(sa.cookies, NotifyType::ResponderLifetime)
        else {
            panic!("a notification")
        };
        notify.data = vec![0x80, 11, 0, 1, 0x80, 12, 0, seconds];
        Payload::Notify(notify)
    };
    let (shorter, longer) = (life(20), life(200));
    for payload in [shorter, longer] {
        let octets = notify::seal(&mut sa, &[payload], &mut random);
        bench.tell(peer, octets);
    }
    bench.pass(Duration::from_secs(19));
    assert_eq!(bench.server.peers().established().count(), 1);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.server.peers().established().count(), 0);
}
