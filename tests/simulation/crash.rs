//! A server that dies at every commit of an eventful day of a group with a key tree: just before a batch is written, and
//! just after. Members register, are rekeyed, expelled and revoked, and the configuration changes, its signing key
//! included; whatever the operator got no answer to is asked for again. However it dies:
//!
//! - no two PUSHes share a KEK and a SEQ, no SID is given twice, an SPI means one key;
//! - whoever was not shut out can open what the others send, at every moment, and nobody registers again;
//! - what a member was told is known: it is in the list, with its KEK and the TEK that it sends under;
//! - who was revoked stays out, and finds no later key.
//!
//! `GDOI_SEED` runs another seed than the one here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gcks::engine::io::Command;
use gcks::engine::settings::Settings;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{KekSpi, SeqNumber, Spi};
use gdoi_proto::message::Dialect;
use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash, TekCipher};
use gdoi_proto::secret::SecretBytes;
use gdoi_sim::world::{GROUP, member_address, server_settings};
use gdoi_sim::{Timing, Weather, World};
use gm::engine::keyring::Sending;
use ike::io::Instant;
use ike::protect::push::{self, KekCipherKey};

use super::revocation::{held, revoke, try_keys};

/// Members at the beginning; one more comes later.
const MEMBERS: usize = 4;
/// Who is revoked.
const REVOKED: usize = 1;
/// Who is expelled.
const EXPELLED: usize = 2;
/// Who comes later.
const LATE: usize = MEMBERS;
/// A dead server starts again after this: well before new keys are used (ATD).
const DOWN: Duration = Duration::from_secs(5);
/// How long each step has to settle.
const STEP: Duration = Duration::from_secs(60);

/// Where the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Never,
    Before(u64),
    After(u64),
}

struct Run {
    world: World,
    settings: Settings,
    what: String,
    starts: Option<Instant>,
    /// Who is shut out.
    out: BTreeSet<usize>,
    /// KEKs there were, PUSHes heard, keys of SPIs, SIDs given.
    keks: BTreeMap<KekSpi, KekCipherKey>,
    heard: usize,
    numbers: BTreeMap<(KekSpi, SeqNumber), Bytes>,
    keys: BTreeMap<Spi, Vec<u8>>,
    sender_ids: BTreeSet<u64>,
    again: usize,
    died: bool,
    /// Commits of the first start.
    first: u64,
}

impl Run {
    fn new(seed: u64, death: Death) -> Run {
        let mut settings = server_settings(Timing::USUAL, Dialect::STRICT, true);
        if let Some(communication) = &mut settings.groups[0].communication {
            communication.lkh = true;
        }
        let mut world = World::configured(seed, Weather::FAIR, settings.clone());
        let first = world.batches();
        match death {
            Death::Never => {}
            Death::Before(batch) => world.kill_server_before(batch),
            Death::After(batch) => world.kill_server_after(batch),
        }
        Run {
            world,
            settings,
            what: format!("seed {seed}, {death:?}"),
            starts: None,
            out: BTreeSet::new(),
            keks: BTreeMap::new(),
            heard: 0,
            numbers: BTreeMap::new(),
            keys: BTreeMap::new(),
            sender_ids: BTreeSet::new(),
            again: 0,
            died: false,
            first,
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.world.now().at + time;
        while self.world.now().at < end {
            self.look();
            let next = self.starts.map_or(end, |at| at.min(end));
            if !self.world.advance(next) && self.starts.is_some_and(|at| at <= self.world.now().at) {
                self.starts = None;
                self.world.start_server();
            }
        }
        self.look();
    }

    /// Members that are not shut out.
    fn inside(&self) -> impl Iterator<Item = usize> + '_ {
        (0..=LATE).filter(|index| !self.out.contains(index) && self.world.member_runs(*index))
    }

    fn look(&mut self) {
        let what = &self.what;
        if !self.world.server_runs() && self.starts.is_none() {
            (self.died, self.starts) = (true, Some(self.world.now().at + DOWN));
        }
        for event in std::mem::take(&mut self.world.told) {
            match event {
                Event::PullCompleted { sender_ids, .. } => {
                    for sid in sender_ids {
                        assert!(self.sender_ids.insert(sid), "{what}: SID {sid} again");
                    }
                }
                Event::MemberReregistered { .. } => self.again += 1,
                Event::MemberExpired { member, .. } => panic!("{what}: {member} expired"),
                _ => {}
            }
        }
        if self.world.server_runs() {
            let group = &self.world.server().groups()[GROUP];
            self.keks.extend(group.kek().map(|kek| (kek.spi, kek.cipher.clone())));
        }
        for octets in self.world.pushes.get(self.heard..).unwrap_or_default() {
            let header = Header::decode(octets).expect("the server's header");
            let spi: KekSpi = header.cookies.into();
            let kek = self.keks.get(&spi).unwrap_or_else(|| panic!("{what}: a PUSH under no KEK"));
            let opened = push::open(kek, SeqNumber(0), &header, octets, Dialect::STRICT).expect("a PUSH");
            let seq = opened.verified().into_inner().seq;
            let first = self.numbers.entry((spi, seq)).or_insert_with(|| octets.clone());
            assert!(first == octets, "{what}: two messages under SEQ {seq}");
        }
        self.heard = self.world.pushes.len();
        // What is sent under, and who holds what.
        let (mut sent, mut holds) = (BTreeSet::new(), Vec::new());
        for index in self.inside().collect::<Vec<_>>() {
            let teks = self.world.member(index).vpns()[GROUP].keyring.teks();
            for tek in teks {
                let octets = tek.key.encryption.expose();
                let known = self.keys.entry(tek.policy.spi).or_insert_with(|| octets.to_vec());
                assert!(known == octets, "{what}: two keys of one SPI");
            }
            // Of several of a flow the newest encrypts; what is on its way out serves a flow that is no more.
            let sends = |place: usize| {
                let tek = &teks[place];
                let newer = teks[place + 1..]
                    .iter()
                    .any(|newer| newer.sending == Sending::Now && newer.policy.source == tek.policy.source);
                tek.sending == Sending::Now && tek.leaves.is_none() && !newer
            };
            sent.extend((0..teks.len()).filter(|place| sends(*place)).map(|place| teks[place].policy.spi));
            if !teks.is_empty() {
                holds.push((index, teks.iter().map(|tek| tek.policy.spi).collect::<BTreeSet<Spi>>()));
            }
        }
        for (index, holds) in holds {
            // All copies of a PUSH arrive in the same moment.
            let deaf: Vec<&Spi> = sent.difference(&holds).collect();
            assert!(deaf.is_empty(), "{what} at {:?}: member {index} lacks {deaf:?}", self.world.now().at);
        }
    }

    /// Until the operator is told: what got no answer is asked for again.
    fn command(&mut self, command: Command, already: &str) {
        for _ in 0..4 {
            if self.world.server_runs() {
                match self.world.command(command.clone()) {
                    Some(Ok(_)) => return self.pass(STEP),
                    Some(Err(said)) if said.contains(already) => return self.pass(STEP),
                    Some(Err(said)) if said.contains("not ready") => {}
                    Some(Err(said)) => panic!("{}: {command:?}: {said}", self.what),
                    None => {}
                }
            }
            self.pass(DOWN * 2);
        }
        panic!("{}: {command:?} is never done", self.what);
    }

    fn rekey(&mut self, kek: bool) {
        self.command(Command::Rekey { group: GROUP.to_owned(), tek: true, kek }, "nothing");
        self.known();
    }

    fn reload(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        // A dead server reads it when it starts.
        self.world.apply(self.settings.clone());
        self.pass(STEP);
        self.known();
    }

    /// Who was cut short in its registration tries again after its repeats.
    fn registered(&mut self) {
        for _ in 0..20 {
            self.pass(STEP);
            let there = |index: usize| self.world.member(index).state(GROUP) == "registered";
            if self.world.server_runs() && self.inside().all(there) {
                return;
            }
        }
        panic!("{}: they never register", self.what);
    }

    /// What members were told is not forgotten, and they agree with the server.
    fn known(&mut self) {
        if !self.world.server_runs() {
            self.pass(STEP);
        }
        let what = &self.what;
        let group = &self.world.server().groups()[GROUP];
        let listed: BTreeSet<String> = group.members().map(|(_, member)| member.peer.to_string()).collect();
        let kek = group.kek().expect("a KEK");
        for index in self.inside() {
            assert!(listed.contains(&member_address(index).to_string()), "{what}: {index} is forgotten");
            let keyring = &self.world.member(index).vpns()[GROUP].keyring;
            let held = keyring.kek().expect("a KEK");
            assert!(held.policy.spi == kek.spi && held.last <= kek.seq, "{what}: {index} has another KEK");
            for tek in group.teks().iter().filter(|tek| tek.retires.is_none()) {
                let theirs = keyring.teks().iter().find(|held| held.policy.spi == tek.spi);
                let same = theirs.is_some_and(|held| held.key.encryption.ct_eq(tek.key.encryption.expose()));
                assert!(same, "{what}: {index} has not TEK {}", tek.spi);
            }
        }
    }

    /// The whole day; commits since the first start, and whether the server died.
    fn run(mut self) -> (u64, bool) {
        for index in 0..MEMBERS {
            self.world.start_member(index);
            self.pass(Duration::from_secs(2));
        }
        self.registered();
        self.rekey(true);
        self.world.start_member(LATE);
        self.registered();
        self.known();
        let (secrets, sent) = (held(&self.world, REVOKED), self.world.pushes.len());
        self.shut_out(REVOKED);
        self.command(revoke(REVOKED), "revoked already");
        self.known();
        self.reload(|it| {
            let mut sa = it.groups[0].sas[0].clone();
            (sa.name, sa.source.data[1]) = ("SA2/more".to_owned(), 64);
            it.groups[0].sas.push(sa);
            it.groups[0].sas[0].cipher = TekCipher::AesGcm { key_octets: 16, icv_octets: 16 };
        });
        self.shut_out(EXPELLED);
        let member = member_address(EXPELLED).ip().to_string();
        self.command(Command::Expel { group: GROUP.to_owned(), member }, "no member");
        self.known();
        self.reload(|it| {
            let communication = it.groups[0].communication.as_mut().expect("rekeying");
            (communication.signature, communication.signature_key_bits) = (SignatureAlgorithm::Ecdsa384, 384);
            communication.signature_hash = SignatureHash::Sha384;
        });
        self.reload(|it| {
            it.groups[0].sas.pop();
            it.groups[0].sas[0].lifetime = Duration::from_secs(1800);
        });
        self.rekey(false);
        // One on schedule.
        self.pass(Duration::from_secs(1800));
        self.known();
        self.revoked_opens_nothing(&secrets, sent);
        assert!(self.again <= 1, "{}: {} registered again", self.what, self.again);
        (self.world.batches() - self.first, self.died)
    }

    fn shut_out(&mut self, index: usize) {
        self.out.insert(index);
        self.world.kill_member(index);
    }

    fn revoked_opens_nothing(&self, secrets: &[([u8; 16], SecretBytes)], sent: usize) {
        let group = &self.world.server().groups()[GROUP];
        assert_eq!(group.revoked().count(), 1, "{}", self.what);
        let found: Vec<Vec<u8>> =
            self.world.pushes[sent..].iter().flat_map(|push| try_keys(secrets, push)).collect();
        let kek = group.kek().expect("a KEK").key.expose().to_vec();
        let teks = group.teks().iter().map(|tek| tek.key.encryption.expose().to_vec());
        for key in teks.chain([kek]) {
            assert!(!found.contains(&key), "{}: the revoked member opened a key", self.what);
        }
    }
}

#[test]
fn a_server_that_dies_before_or_after_any_commit_goes_on_where_it_was() {
    let seed = std::env::var("GDOI_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let (commits, _) = Run::new(seed, Death::Never).run();
    assert!(commits > 40, "{commits} commits");
    for commit in 1..=commits {
        for death in [Death::Before(commit), Death::After(commit)] {
            let (_, died) = Run::new(seed, death).run();
            assert!(died, "seed {seed}: {death:?} never came");
        }
    }
    println!("seed {seed}: {commits} commits, {} deaths", commits * 2);
}
