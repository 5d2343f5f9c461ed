//! The key server's peers: limits of what runs under an SA, one name for one member, and goodbyes.

#[path = "common/bench.rs"]
mod bench;
mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gcks::engine::durable::Kind;
use gcks::engine::io::{Command, Input, Outcome};
use gcks::engine::settings::GroupSettings;
use gdoi_proto::header::Header;
use gdoi_proto::ids::GroupId;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, IdType, NotifyType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::Random;
use ike::identity::IdentityRule;
use ike::io::{Instant, Machine};
use ike::phase1::PeerPolicy;
use ike::protect::notify::{self, Informational};
use ike::sa::IkeSa;

use bench::{Bench, HandPull, address, hand_pull, only, phase1_as, registered, settings};
use common::peer_policy;

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench::with(settings());
        bench.drain();
        bench
    }

    fn command(&mut self, command: Command) -> Result<Outcome, String> {
        self.server.handle(self.now, Input::Command { ticket: 1, command });
        self.drain();
        self.replies.pop().expect("every command is answered")
    }

    fn members(&self) -> usize {
        self.server.groups()["g1"].members().count()
    }
}

fn phase1(bench: &mut Bench, address: SocketAddr) -> Option<IkeSa> {
    phase1_as(bench, address, peer_policy())
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
    // That of another SA says nothing of this one.
    let Payload::Notify(mut another) = first.clone() else { panic!("a notification") };
    another.spi[0] ^= 1;
    let octets = notify::seal(&mut sa, &[Payload::Notify(another)], &mut random);
    bench.tell(peer, octets);
    assert_eq!(bench.server.peers().established().count(), 2);
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
