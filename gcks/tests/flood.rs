//! First messages by the thousand from forged addresses, against a running `gcksd`, while honest members register.
//!
//! A sample by default; `GDOI_FLOOD=full cargo test --release -p gcks --test flood -- --nocapture` sends the whole flood
//! and prints its figures.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gdoi_proto::header::Header;
use gdoi_proto::message::Dialect;
use gdoi_proto::registry::ExchangeType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{Random, default_provider};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Datagram, Instant};
use ike::phase1::{Credentials, Ends, Initiator, Mode, Offer, PeerPolicy, Step};
use runtime::clock::Clock;
use runtime::udp::{Listen, Sockets};

use support::member::Member;
use support::{Daemon, Site};

/// How much of it.
struct Plan {
    messages: u32,
    sources: u32,
    members: u32,
}

impl Plan {
    fn wanted() -> Plan {
        match std::env::var("GDOI_FLOOD").as_deref() {
            Ok("full") => Plan { messages: 200_000, sources: 50_000, members: 100 },
            _ => Plan { messages: 10_000, sources: 2_500, members: 20 },
        }
    }
}

/// An attempt that is not answered is given up for a new one after this.
const PATIENCE: Duration = Duration::from_secs(2);
/// An honest member gets through within this.
const LIMIT: Duration = Duration::from_secs(60);
/// Memory above that of the idle daemon.
const MEMORY: u64 = 64 << 20;
/// The default of `half-open-limit`.
const HALF_OPEN: u64 = 4096;
/// An answer is at most so much larger than its question.
const GROWTH: usize = 64;
/// Every so many messages of the flood one is as long as this, in octets, and nothing a server needs.
const LONG: (u32, usize) = (20, 30_000);

/// A first message as members send it.
fn first_message() -> Vec<u8> {
    let suite = Suite {
        cipher: Cipher::Aes256Cbc,
        hash: Hash::Sha256,
        group: DhGroup::Ecp256,
        method: AuthMethod::PreSharedKey,
    };
    let policy = PeerPolicy {
        mode: Mode::Main,
        offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
        credentials: Credentials::pre_shared(SecretBytes::copy(support::KEY.as_bytes())),
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        nat_traversal: false,
        fragmentation: false,
        dialect: Dialect::STRICT,
    };
    let end = SocketAddr::from((Ipv4Addr::LOCALHOST, 848));
    let ends = Ends { local: end, peer: end };
    let mut random = Random(default_provider());
    let (_, steps) = Initiator::start(policy, ends, false, Instant(1), &mut random);
    let Some(Step::Send(octets)) = steps.into_iter().next() else { panic!("no first message") };
    octets.to_vec()
}

/// Octets of a line of `/proc/PID/status`.
fn memory(daemon: &Daemon, line: &str) -> u64 {
    let path = format!("/proc/{}/status", daemon.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    let found = text.lines().find_map(|it| it.strip_prefix(line)).expect("the line");
    let kilobytes: u64 = found.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes << 10
}

/// Registers anew until it succeeds: the time it took, and the attempts.
fn persist(number: u32, server: SocketAddr, clock: Clock) -> Option<(Duration, u32)> {
    let [high, low] = (number as u16 + 1).to_be_bytes();
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 1, high, low)), 0);
    let begin = clock.now().at;
    let mut attempts = 0;
    while clock.now().at.since(begin) < LIMIT {
        attempts += 1;
        let end = clock.now().at + PATIENCE;
        // A socket of its own: an answer to an attempt that was given up is for nobody.
        let mut member = Member::at(address, server);
        if member.register_with(1, &|| clock.now().at < end).is_ok() {
            return Some((clock.now().at.since(begin), attempts));
        }
    }
    None
}

/// What a flood was answered with.
#[derive(Debug, Default)]
struct Answers {
    count: u32,
    largest: usize,
    strange: u32,
}

/// Sends the flood as fast as it goes, counting in `sent`; the time it took, and the answers.
fn flood(plan: &Plan, server: SocketAddr, clock: Clock, sent: &AtomicU32) -> (Duration, Answers, usize) {
    let question = first_message();
    let listen = Listen { address: (Ipv4Addr::UNSPECIFIED, 0).into(), marker: false };
    let mut sockets = Sockets::bind(&[listen]).unwrap();
    let mut received = sockets.receive_within(plan.messages as usize).unwrap();
    let port = sockets.addresses()[0].port();
    let begin = clock.now().at;
    for number in 0..plan.messages {
        let source = Ipv4Addr::from_bits(u32::from_be_bytes([127, 64, 0, 1]) + number % plan.sources);
        let mut octets = question.clone();
        if number % LONG.0 == 0 {
            octets.resize(LONG.1, 0);
            octets[24..28].copy_from_slice(&(LONG.1 as u32).to_be_bytes());
        }
        octets[..4].copy_from_slice(&(number + 1).to_be_bytes());
        let local = SocketAddr::new(source.into(), port);
        // What the system does not take got lost on the way.
        let _ = sockets.send(&Datagram { local, peer: server, octets: octets.into() });
        sent.fetch_add(1, Ordering::Relaxed);
    }
    let took = clock.now().at.since(begin);
    // The answers to the last ones.
    std::thread::sleep(Duration::from_secs(1));
    let mut answers = Answers::default();
    while let Ok(datagram) = received.try_recv() {
        let header = Header::decode(&datagram.octets).unwrap();
        answers.count += 1;
        answers.largest = answers.largest.max(datagram.octets.len());
        answers.strange += u32::from(header.exchange != ExchangeType::MainMode);
    }
    (took, answers, question.len())
}

#[test]
fn honest_members_register_through_a_flood_of_first_messages_that_is_bounded_and_accounted_for() {
    let plan = Plan::wanted();
    let site = Site::new();
    let daemon = site.start(&[]);
    daemon.ignore_log();
    let clock = Clock::start();
    let idle = memory(&daemon, "VmRSS");
    let server = daemon.address();
    let sent = AtomicU32::new(0);
    let (flooded, mut times) = std::thread::scope(|scope| {
        let members: Vec<_> = (0..plan.members)
            .map(|number| {
                let (plan, sent) = (&plan, &sent);
                scope.spawn(move || {
                    // All along the flood.
                    let turn = plan.messages / plan.members * number;
                    while sent.load(Ordering::Relaxed) < turn {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    persist(number, server, clock)
                })
            })
            .collect();
        let flooded = flood(&plan, server, clock, &sent);
        (flooded, members.into_iter().map(|it| it.join().unwrap()).collect::<Vec<_>>())
    });
    let (took, answers, question) = flooded;
    let (peak, snapshot) = (memory(&daemon, "VmHWM"), daemon.snapshot());
    times.sort();
    let registered: Vec<(Duration, u32)> = times.iter().flatten().copied().collect();
    let at = |percent: usize| registered.get((registered.len() * percent / 100).min(registered.len() - 1));
    println!(
        "{} first messages from {} sources in {took:?}; {} answers, largest {} octets for questions of {question}",
        plan.messages, plan.sources, answers.count, answers.largest
    );
    println!(
        "{} of {} members registered: p50 {:?}, p90 {:?}, longest {:?} (time, attempts)",
        registered.len(),
        plan.members,
        at(50),
        at(90),
        registered.last()
    );
    println!("memory: idle {} KiB, peak {} KiB", idle >> 10, peak >> 10);
    println!("{:?}", snapshot.statistics);
    assert_eq!(registered.len(), plan.members as usize, "{times:?}");
    assert_eq!(snapshot.groups[0].members.len(), plan.members as usize);
    assert!(peak - idle < MEMORY, "{} KiB more than idle", (peak - idle) >> 10);
    assert!(answers.count > 0 && answers.count <= plan.messages && answers.strange == 0, "{answers:?}");
    assert!(answers.largest <= question + GROWTH);
    assert!(snapshot.statistics.half_open <= HALF_OPEN);
    // By the daemon's own counters every datagram had one of four fates.
    let told = &snapshot.statistics;
    let (taken, known) = (told.datagrams_received, told.datagrams_sent + told.messages_dropped);
    assert!(
        known <= taken && taken <= known + told.half_open_limited + told.datagrams_overflowed,
        "{told:?}"
    );
    assert!(told.messages_dropped > 0, "the long ones");
    assert_eq!((told.phase1_established, told.send_errors), (u64::from(plan.members), 0));
}
