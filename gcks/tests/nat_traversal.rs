//! The server's peer table with a NAT on the way: a member that floats, and one whose NAT changes its mind (RFC 3947).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gcks::engine::peers::{Ask, Move, PeerOutput, Peers};
use gcks::engine::settings::{GatewaySettings, Settings};
use gdoi_proto::header::Header;
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, IdType, NotifyType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{Provider, Random, default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Instant, Now};
use ike::phase1::{Credentials, Ends, Initiator, Mode, Offer, PeerPolicy, Step};
use ike::protect::notify;
use ike::protect::phase2::Exchange;
use ike::sa::IkeSa;

const NOW: Now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
/// Where the NAT lets the member's ports 848 and 4500 out at first, and where it does later.
const OUTSIDE: [&str; 3] = ["198.51.100.7:1024", "198.51.100.7:1025", "198.51.100.8:2000"];

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// As the server sees its packets.
fn ends(port: u16, outside: &str) -> Ends {
    Ends { local: SocketAddr::new([192, 0, 2, 1].into(), port), peer: at(outside) }
}

/// As the member sees them.
fn inside(port: u16) -> Ends {
    let end = |ip: [u8; 4]| SocketAddr::new(ip.into(), port);
    Ends { local: end([10, 0, 0, 5]), peer: end([192, 0, 2, 1]) }
}

fn named(name: &str) -> Identification {
    Identification { id_type: IdType::Fqdn, protocol: 0, port: 0, data: name.as_bytes().to_vec() }
}

fn policy(mode: Mode, ours: &str, theirs: &str) -> PeerPolicy {
    let suite = Suite {
        cipher: Cipher::Aes256Cbc,
        hash: Hash::Sha256,
        group: DhGroup::Curve25519,
        method: AuthMethod::PreSharedKey,
    };
    PeerPolicy {
        mode,
        offers: vec![Offer { suite, lifetime: Duration::from_secs(3600) }],
        credentials: Credentials::pre_shared(SecretBytes::copy(b"a key through every NAT")),
        local_identity: Some(named(ours)),
        remote: vec![IdentityRule::Exactly { id_type: IdType::Fqdn, data: theirs.as_bytes().to_vec() }],
        nat_traversal: true,
        fragmentation: false,
        dialect: Dialect::STRICT,
    }
}

/// What the table wanted.
#[derive(Default)]
struct Wanted {
    sent: Vec<(Ends, Bytes)>,
    asked: Vec<Ask>,
    moved: Vec<Move>,
    events: Vec<String>,
}

struct Bench {
    provider: Arc<dyn Provider>,
    peers: Peers,
    member: Option<IkeSa>,
    /// Our own address; members know us by 192.0.2.1.
    server: IpAddr,
}

impl Bench {
    /// A table with a member behind a NAT, up and floated.
    fn floated(mode: Mode) -> Bench {
        Bench::floated_at(mode, [192, 0, 2, 1])
    }

    /// The same with a server of this address.
    fn floated_at(mode: Mode, server: [u8; 4]) -> Bench {
        let provider = default_provider();
        let settings = Settings {
            gateways: vec![GatewaySettings {
                name: "branch".to_owned(),
                address: Some(([198, 51, 100, 0].into(), 24)),
                policy: Arc::new(policy(mode, "gcks.example", "gm1.example")),
                dead_peer_detection: None,
                valid_until: None,
                line: 1,
            }],
            groups: Vec::new(),
            half_open_limit: 8,
            half_open_limit_per_address: 2,
            half_open_timeout: Duration::from_secs(30),
            approved_only: false,
        };
        let peers = Peers::new(&settings, &mut Random(provider.clone()));
        let mut bench = Bench { provider, peers, member: None, server: server.into() };
        bench.negotiate(mode);
        bench
    }

    /// As the server sees packets from there.
    fn along(&self, port: u16, outside: &str) -> Ends {
        Ends { local: SocketAddr::new(self.server, port), peer: at(outside) }
    }

    fn negotiate(&mut self, mode: Mode) {
        let mut random = Random(self.provider.clone());
        let member = policy(mode, "gm1.example", "gcks.example");
        let (mut initiator, mut todo) = Initiator::start(member, inside(848), false, NOW.at, &mut random);
        let mut along = self.along(848, OUTSIDE[0]);
        while !todo.is_empty() {
            let mut answers = Vec::new();
            for step in std::mem::take(&mut todo) {
                match step {
                    Step::Send(octets) => {
                        // From an address of its own choice nobody is answered, floated or not.
                        let elsewhere = Ends { peer: at("203.0.113.66:500"), ..along };
                        if initiator.state() != "SentSa"
                            && initiator.state() != "SentFirst"
                            && along.local.port() == 848
                        {
                            assert!(self.tell(elsewhere, &octets).sent.is_empty());
                        }
                        for (to, answer) in self.tell(along, &octets).sent {
                            assert_eq!(to, along, "the answer goes where the question came from");
                            answers.push(answer);
                        }
                    }
                    Step::Run(job) => {
                        let steps = initiator.on_done(NOW, run(self.provider.as_ref(), job), &mut random);
                        todo.extend(steps.expect("a step"));
                    }
                    Step::Established(done) => self.member = Some(done.sa),
                }
            }
            for answer in answers {
                let header = Header::decode(&answer).expect("the server's header");
                todo.extend(
                    initiator.on_message(NOW, &header, &answer, &mut random).expect("an answer that fits"),
                );
                if initiator.nat().any() {
                    initiator.moved(inside(4500));
                    along = self.along(4500, OUTSIDE[1]);
                }
            }
        }
    }

    fn tell(&mut self, along: Ends, octets: &Bytes) -> Wanted {
        let mut random = Random(self.provider.clone());
        let header = Header::decode(octets).expect("our own header");
        let tuple = (along.local, along.peer);
        match header.exchange {
            ExchangeType::GroupkeyPull => self.peers.on_pull(NOW.at, tuple, &header, octets),
            ExchangeType::Informational => self.peers.on_informational(tuple, &header, octets, &mut random),
            _ => self.peers.on_phase1(NOW, tuple, &header, octets, &mut random),
        }
        let mut wanted = Wanted::default();
        while let Some(output) = self.peers.poll() {
            match output {
                PeerOutput::Transmit(local, peer, octets) => wanted.sent.push((Ends { local, peer }, octets)),
                PeerOutput::Job(cookies, job) => {
                    let done = run(self.provider.as_ref(), job);
                    self.peers.on_done(NOW, cookies, done, &mut random);
                }
                PeerOutput::Ask(ask) => wanted.asked.push(ask),
                PeerOutput::Moved(_, moved) => wanted.moved.push(moved),
                PeerOutput::Event(event) => wanted.events.push(event.to_string()),
            }
        }
        wanted
    }

    fn sa(&mut self) -> &mut IkeSa {
        self.member.as_mut().expect("phase 1 is up")
    }

    fn question(&mut self, number: u32) -> Bytes {
        let mut random = Random(self.provider.clone());
        let sa = self.sa();
        let question = notify::dpd(sa.cookies, NotifyType::RUThere, number);
        notify::seal(sa, &[question], &mut random)
    }

    fn first_of_pull(&mut self) -> Bytes {
        let mut random = Random(self.provider.clone());
        let sa = self.sa();
        let mid = sa.fresh_message_id(&mut random);
        let mut exchange = Exchange::new(sa, ExchangeType::GroupkeyPull, mid);
        let group = Identification { id_type: IdType::KeyId, protocol: 0, port: 0, data: vec![0, 0, 0, 1] };
        exchange.seal(sa, &[], &[Payload::Nonce(vec![7; 32]), Payload::Id(group)])
    }
}

#[test]
fn a_floated_member_registers_from_where_it_floated_to() {
    for mode in [Mode::Main, Mode::Aggressive] {
        let mut bench = Bench::floated(mode);
        let (sa, local, peer, _) = bench.peers.established().next().expect("phase 1 is up");
        assert!(sa.nat.theirs && !sa.nat.ours);
        assert_eq!((local, peer), (at("192.0.2.1:4500"), at(OUTSIDE[1])));
        let first = bench.first_of_pull();
        let wanted = bench.tell(ends(4500, OUTSIDE[1]), &first);
        let [Ask::Policy(_, asker, _)] = &wanted.asked[..] else { panic!("{:?}", wanted.events) };
        assert_eq!((asker.local, asker.peer, asker.behind_nat), (local, peer, true));
        assert!(wanted.moved.is_empty());
    }
}

#[test]
fn fresh_messages_from_a_new_port_move_the_member_and_repeats_do_not() {
    let mut bench = Bench::floated(Mode::Main);
    let (old, new) = (ends(4500, OUTSIDE[1]), ends(4500, OUTSIDE[2]));
    let question = bench.question(7);
    assert_eq!(bench.tell(old, &question).sent.len(), 1);
    let repeated = bench.tell(new, &question);
    assert!(repeated.sent.is_empty() && repeated.moved.is_empty(), "{:?}", repeated.events);

    let question = bench.question(8);
    let mut forged = question.to_vec();
    forged[40] ^= 1;
    assert!(bench.tell(new, &forged.into()).moved.is_empty());
    let fresh = bench.tell(new, &question);
    assert_eq!(fresh.moved, [Move { from: old.peer, to: new }]);
    assert_eq!(fresh.sent.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [new]);
    let moved = "gm1.example moved from 198.51.100.7:1025 to 198.51.100.8:2000";
    assert_eq!(fresh.events, [moved]);

    let first = bench.first_of_pull();
    let wanted = bench.tell(old, &first);
    assert_eq!(wanted.moved, [Move { from: new.peer, to: old }]);
    assert!(matches!(&wanted.asked[..], [Ask::Policy(_, asker, _)] if asker.peer == old.peer));
}

#[test]
fn a_server_behind_a_nat_follows_nobody() {
    let mut bench = Bench::floated_at(Mode::Main, [10, 0, 9, 1]);
    let (sa, _, peer, _) = bench.peers.established().next().expect("phase 1 is up");
    assert!(sa.nat.theirs && sa.nat.ours);
    let (old, new) = (bench.along(4500, OUTSIDE[1]), bench.along(4500, OUTSIDE[2]));
    assert_eq!(peer, old.peer);
    let question = bench.question(7);
    let wanted = bench.tell(new, &question);
    assert!(wanted.moved.is_empty(), "{:?}", wanted.events);
    assert!(wanted.sent.iter().all(|(to, _)| *to == old));
    let first = bench.first_of_pull();
    let wanted = bench.tell(new, &first);
    assert!(wanted.moved.is_empty() && wanted.asked.is_empty(), "{:?}", wanted.events);
    let (_, _, peer, _) = bench.peers.established().next().expect("it stays");
    assert_eq!(peer, old.peer);
    assert_eq!(bench.tell(old, &first).asked.len(), 1, "where it always came from it goes on");
}

#[test]
fn the_next_group_message_goes_where_a_registration_came_from_last() {
    let mut bench = Bench::floated(Mode::Aggressive);
    let first = bench.first_of_pull();
    let new = ends(4500, OUTSIDE[2]);
    let wanted = bench.tell(new, &first);
    assert_eq!(wanted.moved.len(), 1);
    let (_, local, peer, _) = bench.peers.established().next().expect("phase 1 is up");
    assert_eq!(Ends { local, peer }, new);
}
