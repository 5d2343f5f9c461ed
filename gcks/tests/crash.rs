//! SIGKILL at random moments: a real `gcksd`, its database on the disk, members that register, are rekeyed and do not
//! acknowledge everything, an operator who forces rekeys. A model of its own remembers what was on the wire and what
//! members were given, and after every restart the server must agree with it:
//!
//! - the keys are those members hold, or successors that a PUSH brings them: nobody has to register again;
//! - no two PUSHes share a KEK and a SEQ, and SEQ does not fall;
//! - no SID is given twice;
//! - who got message 4 is a member;
//! - what the operator was told to be done is done.
//!
//! `GDOI_CRASHES` is the number of kills (20 when absent), `GDOI_SEED` the seed.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ctl::client::Client;
use ctl::control::{Reply, Request};
use ctl::observe::GroupView;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{KekSpi, Spi};
use gdoi_proto::registry::ExchangeType;

use support::member::{Kek, Member, patience};
use support::{Daemon, Site};

/// Members.
const MEMBERS: u8 = 4;
/// Longest life of a server under load, in milliseconds.
const LIFE: u64 = 150;
/// Longest life of a server that is killed while it starts.
const START: u64 = 40;

/// A generator whose whole state is its seed (SplitMix64).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, limit: u64) -> bool {
        self.below(limit) == 0
    }

    /// A moment up to `milliseconds` from now.
    fn moment(&mut self, milliseconds: u64) -> Duration {
        Duration::from_micros(self.below(milliseconds * 1000))
    }
}

/// What a member holds.
struct Membership {
    /// Rekey SAs, the newest last.
    keks: Vec<Kek>,
    teks: BTreeMap<Spi, Vec<u8>>,
    /// TEKs of its last message: one of them encrypts.
    newest: Vec<Spi>,
    sids: BTreeSet<u32>,
}

/// A member with its memory.
struct Player {
    member: Member,
    random: Random,
    membership: Option<Membership>,
    /// A registration was cut short: the server may count on it.
    trying: bool,
    /// Every PUSH it took, with its acknowledgement.
    taken: Vec<(Bytes, Bytes)>,
    /// Every PUSH that arrived since the model looked.
    arrived: Vec<Bytes>,
    /// SIDs of registrations since the model looked.
    given: Vec<u32>,
    registrations: usize,
    acknowledged: usize,
}

impl Player {
    fn new(address: SocketAddr, server: SocketAddr, random: Random) -> Player {
        Player {
            member: Member::at(address, server),
            random,
            membership: None,
            trying: false,
            taken: Vec::new(),
            arrived: Vec::new(),
            given: Vec::new(),
            registrations: 0,
            acknowledged: 0,
        }
    }

    /// Registers, or again. One that is cut short leaves no member: it tries again with the next server.
    fn register(&mut self, alive: &dyn Fn() -> bool) {
        (self.membership, self.trying) = (None, true);
        if let Ok(registration) = self.member.register_with(1, alive) {
            let sids: BTreeSet<u32> = registration.sids.iter().map(|sid| sid.0).collect();
            assert!(!sids.is_empty(), "a counting TEK needs a SID");
            self.given.extend(&sids);
            self.registrations += 1;
            let newest = registration.teks.keys().copied().collect();
            let (keks, teks) = (vec![registration.kek], registration.teks);
            self.membership = Some(Membership { keks, teks, newest, sids });
            self.trying = false;
        }
        while let Some(push) = self.member.pushes.pop_front() {
            self.on_push(push, true);
        }
    }

    /// As `gmd` does: the last PUSH is acknowledged again, older ones and those of unknown KEKs are passed over.
    fn on_push(&mut self, octets: Bytes, acknowledge: bool) {
        self.arrived.push(octets.clone());
        if let Some(index) = self.taken.iter().position(|(taken, _)| *taken == octets) {
            if index + 1 == self.taken.len() && acknowledge {
                self.acknowledged += 1;
                self.member.send(&self.taken[index].1);
            }
            return;
        }
        let Some(membership) = &mut self.membership else { return };
        let spi = KekSpi::from(Header::decode(&octets).unwrap().cookies);
        let Some(kek) = membership.keks.iter_mut().find(|kek| kek.policy.spi == spi) else { return };
        let Some(taken) = self.member.take(kek, &octets) else { return };
        if !taken.teks.is_empty() {
            membership.newest = taken.teks.keys().copied().collect();
        }
        membership.teks.extend(taken.teks);
        membership.keks.extend(taken.kek);
        if acknowledge {
            self.acknowledged += 1;
            self.member.send(&taken.ack);
        }
        self.taken.push((octets, taken.ack));
    }

    /// Takes what has arrived and acknowledges all of it.
    fn serve(&mut self) {
        while let Some((header, octets)) = self.member.look_now() {
            // Answers to what the kill cut short are nobody's.
            if header.exchange == ExchangeType::GroupkeyPush {
                self.on_push(octets, true);
            }
        }
    }

    /// Registers and answers at random while the server lives.
    fn play(&mut self, alive: &dyn Fn() -> bool) {
        while alive() {
            let rarely = if self.membership.is_some() { 12 } else { 2 };
            if self.random.one_in(rarely) {
                self.register(alive);
            } else if let Some((header, octets)) = self.member.look()
                && header.exchange == ExchangeType::GroupkeyPush
            {
                let acknowledge = !self.random.one_in(4);
                self.on_push(octets, acknowledge);
            }
        }
    }
}

/// What was on the wire, and what the operator was told.
#[derive(Default)]
struct Model {
    keks: BTreeMap<KekSpi, Kek>,
    teks: BTreeMap<Spi, Vec<u8>>,
    pushes: BTreeMap<(KekSpi, u32), Bytes>,
    /// PUSHes under KEKs that no member holds yet.
    unread: Vec<Bytes>,
    sids: BTreeSet<u32>,
    /// TEKs the operator was told of.
    told: BTreeSet<String>,
}

impl Model {
    /// Learns what a player saw.
    fn learn(&mut self, player: &mut Player) {
        for sid in player.given.drain(..) {
            assert!(self.sids.insert(sid), "SID {sid} was given twice");
        }
        if let Some(membership) = &player.membership {
            for kek in &membership.keks {
                let known = self.keks.entry(kek.policy.spi).or_insert_with(|| kek.clone());
                assert!(known.key.ct_eq(kek.key.expose()), "one KEK SPI, two keys");
            }
            for (spi, key) in &membership.teks {
                assert_eq!(self.teks.entry(*spi).or_insert_with(|| key.clone()), key, "one SPI, two keys");
            }
        }
        self.unread.append(&mut player.arrived);
    }

    fn read_pushes(&mut self) {
        for octets in std::mem::take(&mut self.unread) {
            let spi = KekSpi::from(Header::decode(&octets).unwrap().cookies);
            let Some(kek) = self.keks.get(&spi) else {
                self.unread.push(octets);
                continue;
            };
            let seq = kek.number(&octets).0;
            let first = self.pushes.entry((spi, seq)).or_insert_with(|| octets.clone());
            assert_eq!(*first, octets, "two messages under KEK {spi} SEQ {seq}");
        }
    }

    fn highest(&self, spi: KekSpi) -> u32 {
        self.pushes.range((spi, 0)..=(spi, u32::MAX)).next_back().map_or(0, |((_, seq), _)| *seq)
    }
}

fn group(daemon: &Daemon) -> GroupView {
    daemon.snapshot().groups.remove(0)
}

/// Everything of one run.
struct Run {
    site: Site,
    players: Vec<Player>,
    model: Model,
    random: Random,
}

impl Run {
    fn new(seed: u64) -> Run {
        let site = Site::new();
        // Addresses of this process alone: the server must be found again where it was.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = |second, port| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, second, high, low)), port);
        let server = address(77, 8480);
        site.configure("127.0.0.1:0", &server.to_string());
        site.configure(
            "sig-hash-algorithm = \"sha-256\"",
            "sig-hash-algorithm = \"sha-256\"\nnumber-of-retransmission = 5\nretransmission-period = 2\nactivation-time-delay = 0\ndeactivation-time-delay = 1",
        );
        let mut random = Random(seed);
        let players =
            (0..MEMBERS).map(|index| Player::new(address(100 + index, 8480), server, Random(random.next())));
        Run { site, players: players.collect(), model: Model::default(), random }
    }

    fn learn(&mut self) {
        for player in &mut self.players {
            player.serve();
            self.model.learn(player);
        }
        self.model.read_pushes();
    }

    /// Members answer until each holds what the server has and no PUSH waits; at most 10 s.
    fn settle(&mut self, daemon: &Daemon) -> GroupView {
        let mut last = None;
        for _ in 0..5000 {
            self.learn();
            let group = group(daemon);
            let same = |player: &Player| {
                let (Some(membership), Some(kek)) = (&player.membership, &group.kek) else { return true };
                let held = membership.keks.last().unwrap();
                held.policy.spi.to_string() == kek.spi && u64::from(held.last.0) == kek.seq
            };
            if group.kek.is_some() && group.pending_push.is_none() && self.players.iter().all(same) {
                return group;
            }
            last = Some(group);
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("members do not come to hold what the server has: {last:?}");
    }

    /// After a start: what the server has against what the model knows.
    fn verify(&mut self, daemon: &Daemon) {
        for player in self.players.iter_mut().filter(|player| player.trying) {
            player.serve();
            player.register(&patience());
            assert!(!player.trying, "{} cannot register", player.member.address());
        }
        let group = self.settle(daemon);
        for kek in self
            .model
            .keks
            .values()
            .filter(|kek| kek.policy.spi.to_string() == group.kek.as_ref().unwrap().spi)
        {
            let seq = group.kek.as_ref().unwrap().seq;
            assert!(seq >= u64::from(self.model.highest(kek.policy.spi)), "SEQ fell to {seq}");
        }
        let held = |spi: &Spi| {
            let hex = |key: &Vec<u8>| key.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
            let key = hex(&self.model.teks[spi]);
            group.teks.iter().any(|tek| tek.spi == spi.to_string() && tek.key_hex.as_ref() == Some(&key))
        };
        for player in &self.players {
            let Some(membership) = &player.membership else { continue };
            let address = player.member.address().to_string();
            let Some(member) = group.members.iter().find(|member| member.address == address) else {
                panic!("{address} is no longer a member");
            };
            let sids: BTreeSet<u32> = member.sender_ids.iter().map(|sid| *sid as u32).collect();
            assert_eq!(sids, membership.sids, "{address}");
            assert!(membership.newest.iter().any(held), "{address} encrypts with a TEK the server lost");
        }
        if self.players.iter().any(|player| player.membership.is_some()) {
            for spi in &self.model.told {
                let known = self.model.teks.keys().any(|known| known.to_string() == *spi);
                assert!(known, "the operator was told of TEK {spi}, and no member got it");
            }
        }
    }

    /// The next PUSH reaches every member that was known.
    fn rekey(&mut self, daemon: &Daemon) {
        let before: Vec<usize> = self.players.iter().map(|player| player.taken.len()).collect();
        if group(daemon).members.is_empty() {
            return;
        }
        daemon.rekey(self.random.one_in(2));
        self.settle(daemon);
        for (player, before) in self.players.iter().zip(before) {
            let took = player.taken.len() > before;
            assert!(player.membership.is_none() || took, "{} missed a push", player.member.address());
        }
    }

    /// Registrations, rekeys and acknowledgements until the kill; its log.
    fn trouble(&mut self, daemon: Daemon) -> String {
        let kill = self.random.moment(LIFE);
        let mut operator = self.random.clone();
        let (control, dead) = (daemon.control(), AtomicBool::new(false));
        let alive = || !dead.load(Ordering::Relaxed);
        let (log, told) = std::thread::scope(|scope| {
            for player in &mut self.players {
                scope.spawn(|| player.play(&alive));
            }
            let operator = scope.spawn(|| {
                let mut told = Vec::new();
                while alive() {
                    let request =
                        Request::Rekey { group: "g1".to_owned(), tek: true, kek: operator.one_in(2) };
                    let Ok(reply) = Client::connect(&control).and_then(|mut client| client.ask(&request))
                    else {
                        break;
                    };
                    if let Reply::Done { text, seq: Some(_), .. } = reply {
                        told.push(text);
                    }
                    std::thread::sleep(operator.moment(20));
                }
                told
            });
            std::thread::sleep(kill);
            let log = daemon.kill();
            dead.store(true, Ordering::Relaxed);
            (log, operator.join().unwrap())
        });
        for text in told {
            let (_, spis) = text.split_once("new TEKs [").unwrap();
            let (spis, _) = spis.split_once(']').unwrap();
            self.model.told.extend(spis.split(' ').map(str::to_owned));
        }
        log
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn a_server_killed_at_any_moment_goes_on_where_it_was() {
    let kills = variable("GDOI_CRASHES").unwrap_or(20);
    let seed = variable("GDOI_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("GDOI_CRASHES={kills} GDOI_SEED={seed}");
    let mut run = Run::new(seed);
    let mut starting = 0;
    for kill in 0..kills {
        println!("kill {kill}");
        let daemon = Daemon::spawn(run.site.command(&["--show-keys"]), run.site.root());
        let log = if run.random.one_in(5) {
            starting += 1;
            std::thread::sleep(run.random.moment(START));
            daemon.kill()
        } else {
            let daemon = daemon.ready();
            run.verify(&daemon);
            run.rekey(&daemon);
            run.trouble(daemon)
        };
        assert!(!log.contains("member_expired"), "a member that answers is expired: {log}");
        run.learn();
    }
    let daemon = run.site.start(&["--show-keys"]);
    run.verify(&daemon);
    run.rekey(&daemon);
    assert_eq!(daemon.stop().0, Some(0));
    let sum = |count: fn(&Player) -> usize| run.players.iter().map(count).sum::<usize>();
    println!(
        "{kills} kills ({starting} while starting): {} registrations, {} rekeys, {} datagrams of PUSHes taken, {} acknowledgements, {} KEKs, {} TEKs, {} SIDs",
        sum(|player| player.registrations),
        run.model.pushes.len(),
        sum(|player| player.taken.len()),
        sum(|player| player.acknowledged),
        run.model.keks.len(),
        run.model.teks.len(),
        run.model.sids.len(),
    );
    assert!(run.model.pushes.len() as u64 > kills && sum(|player| player.registrations) > 4);
}
