//! What must hold at every moment, looked at whenever anything happened.
//!
//! A member counts as in step from when it holds every key the server rekeys with, until it is cut off, restarted, removed
//! for silence, registers again, learns that it missed a rekey, or the server dies with a PUSH to it under way: whoever is in
//! step opens whatever others in step send. Who missed something asks for it soon.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;
use ctl::event::{Event, Level};
use ctl::plan::Plan;
use gcks::engine::settings::Settings;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{KekSpi, SeqNumber, Spi};
use gdoi_proto::message::Dialect;
use gdoi_proto::policy::TekPolicy;
use gdoi_proto::secret::SecretBytes;
use gdoi_sim::World;
use gdoi_sim::world::{GROUP, member_address, member_index};
use gm::engine::keyring::Sending;
use ike::io::Instant;
use ike::protect::push::{self, KekCipherKey};

use super::super::revocation::{held, try_keys};

/// Keys of a revoked member are tried on every PUSH for this long.
const TRIED: Duration = Duration::from_secs(86_400);

/// A new flow is everywhere after this.
const YOUTH: Duration = Duration::from_secs(90);
/// Copies, and a rollover after the last of them.
const RETOLD: Duration = Duration::from_secs(180);
/// SPIs are made by chance: one may come again, but not while anybody may hold what it meant.
const FORGOTTEN: Duration = Duration::from_secs(4 * 3600);
/// Who knows that it missed rekeys learns what they did, or asks, within this.
const ASKED: Duration = Duration::from_secs(240);
/// Events that are remembered for who asks what went wrong.
const RECENT: usize = 200;

/// What is known of a member.
#[derive(Debug, Default, Clone)]
struct Known {
    listed: bool,
    cut: bool,
    revoked: bool,
    /// The server counts it as registered; it did not get what it came for yet.
    unserved: bool,
    /// Since when it knows that it missed rekeys.
    missed: Option<Instant>,
    synced: bool,
    holds: BTreeSet<Spi>,
    sends: BTreeSet<Spi>,
}

/// A revoked member's keys.
struct Outsider {
    index: usize,
    since: Instant,
    keys: Vec<([u8; 16], SecretBytes)>,
    teks: BTreeSet<Spi>,
}

/// Everything that was seen.
pub struct Watch {
    seed: u64,
    members: Vec<Known>,
    synced: usize,
    holders: BTreeMap<Spi, usize>,
    senders: BTreeMap<Spi, usize>,
    /// What an SPI means, and when it was seen last: it may mean something else when nobody holds it any more.
    keys: BTreeMap<Spi, (Vec<u8>, Instant)>,
    /// SPIs of flows that are gone from the configuration.
    departed: BTreeSet<Spi>,
    /// SPIs of flows that are new in it, until everybody has them: a flow was blocked before, and is encrypted at once.
    newborn: Option<(Instant, BTreeSet<Spi>)>,
    /// A server that died while it told of new keys tells the rest of them until then: some use keys that others dropped.
    retold: Option<Instant>,
    outsiders: Vec<Outsider>,
    /// PUSHes on the wire that were looked at.
    heard: usize,
    /// Number and KEK to octets.
    numbers: BTreeMap<(KekSpi, SeqNumber), Bytes>,
    /// Numbers that rekeys began with.
    begun: BTreeSet<(String, u64)>,
    sender_ids: BTreeSet<u64>,
    margins: BTreeMap<String, Duration>,
    kek_margin: Duration,
    retransmissions: u64,
    /// When the next rekey is due, and since when the server runs.
    due: Option<Instant>,
    started: Instant,
    /// Rekeys that were asked for and did not begin yet.
    asked: u64,
    life: u64,
    /// Life, number, PUSHes it has, PUSHes that began.
    last_rekey: Option<[u64; 4]>,
    /// A PUSH is on its way.
    delivering: bool,
    /// Every KEK there was.
    keks: BTreeMap<KekSpi, KekCipherKey>,
    /// Copies of each PUSH in this life of the server.
    copies: BTreeMap<(String, u64), u64>,
    recent: VecDeque<(Instant, Event)>,
    lasting: Figures,
}

/// For the report.
#[derive(Debug, Default)]
struct Figures {
    looks: u64,
    scheduled: u64,
    asked: u64,
    grown: u64,
    pushes: u64,
    datagrams: u64,
    acks: u64,
    registrations: u64,
    expired: u64,
    crashes: u64,
    reloads: u64,
    revocations: u64,
    doubts: u64,
    tried: u64,
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = &self.lasting;
        write!(
            f,
            "{} in step; {} looks; rekeys {} scheduled, {} asked for, {} for the tree; {} pushes in {} datagrams, {} acks; \
             {} registrations, {} expired, {} doubts; {} crashes, {} reloads, {} revocations, {} keys tried in vain",
            self.synced,
            it.looks,
            it.scheduled,
            it.asked,
            it.grown,
            it.pushes,
            it.datagrams,
            it.acks,
            it.registrations,
            it.expired,
            it.doubts,
            it.crashes,
            it.reloads,
            it.revocations,
            it.tried
        )
    }
}

impl Watch {
    pub fn new(seed: u64, settings: &Settings) -> Watch {
        let mut watch = Watch {
            seed,
            members: Vec::new(),
            synced: 0,
            holders: BTreeMap::new(),
            senders: BTreeMap::new(),
            keys: BTreeMap::new(),
            departed: BTreeSet::new(),
            newborn: None,
            retold: None,
            outsiders: Vec::new(),
            heard: 0,
            numbers: BTreeMap::new(),
            begun: BTreeSet::new(),
            sender_ids: BTreeSet::new(),
            margins: BTreeMap::new(),
            kek_margin: Duration::ZERO,
            retransmissions: 0,
            due: None,
            started: Instant::default(),
            asked: 0,
            life: 1,
            last_rekey: None,
            delivering: false,
            keks: BTreeMap::new(),
            copies: BTreeMap::new(),
            recent: VecDeque::new(),
            lasting: Figures::default(),
        };
        watch.configured(settings);
        watch
    }

    fn configured(&mut self, settings: &Settings) {
        let group = &settings.groups[0];
        self.margins = group.sas.iter().map(|sa| (sa.name.clone(), sa.margin)).collect();
        let communication = group.communication.as_ref().expect("rekeying");
        self.kek_margin = communication.margin;
        self.retransmissions = u64::from(communication.retransmissions);
    }

    pub fn synced(&self) -> usize {
        self.synced
    }

    pub fn is_synced(&self, index: usize) -> bool {
        self.members.get(index).is_some_and(|known| known.synced)
    }

    pub fn is_listed(&self, index: usize) -> bool {
        self.members.get(index).is_some_and(|known| known.listed)
    }

    fn known(&mut self, index: usize) -> &mut Known {
        if self.members.len() <= index {
            self.members.resize_with(index + 1, Known::default);
        }
        &mut self.members[index]
    }

    /// It lost its memory, or is gone.
    pub fn lost(&mut self, index: usize, world: &World) {
        self.set(index, world, |known| known.synced = false);
    }

    pub fn reachable(&mut self, index: usize, yes: bool, world: &World) {
        self.set(index, world, |known| (known.cut, known.synced) = (!yes, false));
    }

    pub fn revoked(&mut self, index: usize, world: &World) {
        let teks = world.member(index).vpns()[GROUP].keyring.teks();
        self.outsiders.push(Outsider {
            index,
            since: world.now().at,
            keys: held(world, index),
            teks: teks.iter().map(|tek| tek.policy.spi).collect(),
        });
        self.lasting.revocations += 1;
        self.set(index, world, |known| (known.revoked, known.synced) = (true, false));
    }

    pub fn unrevoked(&mut self, index: usize) {
        self.outsiders.retain(|outsider| outsider.index != index);
        self.known(index).revoked = false;
    }

    /// The server died before it wrote that somebody is revoked no more.
    pub fn still_revoked(&mut self, index: usize, world: &World) {
        self.set(index, world, |known| (known.revoked, known.synced) = (true, false));
    }

    /// An operator asked for something that is one rekey, or none.
    pub fn commanded(&mut self, rekeys: bool) {
        self.asked += u64::from(rekeys);
    }

    pub fn reloads(&mut self, plan: Option<Plan>, settings: &Settings, world: &World) {
        let rekeys: u64 = plan.iter().flat_map(|plan| &plan.groups).map(|group| group.rekeys).sum();
        assert!(rekeys <= 1, "seed {}: {rekeys} rekeys of one change", self.seed);
        self.lasting.reloads += 1;
        self.asked += rekeys;
        self.due = None;
        self.configured(settings);
        let stays = |name: &str| settings.groups[0].sas.iter().any(|sa| sa.name == name);
        let gone = world.server().groups()[GROUP].teks().iter().filter(|tek| !stays(&tek.sa));
        let gone: Vec<(Spi, TekPolicy)> = gone.map(|tek| (tek.spi, tek.policy(world.now().at))).collect();
        self.departed.extend(gone.iter().map(|(spi, _)| *spi));
        // Whoever was away may hold older ones of the same flows.
        for index in (0..self.members.len()).filter(|index| world.member_runs(*index)) {
            let teks = world.member(index).vpns()[GROUP].keyring.teks().iter().map(|tek| &tek.policy);
            let same = |tek: &&TekPolicy| {
                gone.iter().any(|(_, it)| (&it.source, &it.destination) == (&tek.source, &tek.destination))
            };
            self.departed.extend(teks.filter(same).map(|tek| tek.spi));
        }
        if !gone.is_empty() {
            (0..self.members.len()).for_each(|index| self.set(index, world, |_| {}));
        }
    }

    /// The change was made: what it began with.
    pub fn reloaded(&mut self, added: Option<&str>, world: &World) {
        if !world.server_runs() || added.is_none() {
            return;
        }
        let teks = world.server().groups()[GROUP].teks().iter();
        let young = teks.filter(|tek| Some(tek.sa.as_str()) == added).map(|tek| tek.spi);
        self.newborn = Some((world.now().at + YOUTH, young.collect()));
    }

    /// It died; whom it was telling of new keys is out of step, and nobody knows who that is when it died of a write.
    pub fn server_died(&mut self, at_a_write: bool, world: &World) {
        self.lasting.crashes += 1;
        self.life += 1;
        self.copies.clear();
        self.due = None;
        if at_a_write || self.delivering {
            for index in 0..self.members.len() {
                self.set(index, world, |known| known.synced = false);
            }
        }
    }

    /// What a dead server did not tell anybody is in its rows.
    pub fn server_started(&mut self, world: &World) {
        self.started = world.now().at;
        self.asked = 0;
        let group = &world.server().groups()[GROUP];
        let listed: BTreeSet<usize> =
            group.members().filter_map(|(_, member)| member_index(member.peer)).collect();
        let waits = !group.deliveries().is_empty();
        self.retold = waits.then(|| world.now().at + RETOLD);
        for index in 0..self.members.len() {
            let there = listed.contains(&index);
            self.set(index, world, |known| {
                // One that it wrote down and did not answer any more.
                known.unserved |= there && !known.listed;
                known.listed = there;
                known.synced &= there && !waits;
            });
        }
        self.look_ahead(world);
    }

    /// Changes what is known of a member, and counts it anew.
    fn set(&mut self, index: usize, world: &World, change: impl FnOnce(&mut Known)) {
        let mut known = std::mem::take(self.known(index));
        self.count(&known, false);
        change(&mut known);
        let teks = match world.member_runs(index) {
            true => world.member(index).vpns()[GROUP].keyring.teks(),
            false => &[],
        };
        known.holds = teks.iter().map(|tek| tek.policy.spi).collect();
        known.sends.clear();
        for (place, tek) in teks.iter().enumerate().filter(|(_, tek)| tek.sending == Sending::Now) {
            // Of several that may encrypt a flow, the newest does.
            let newer = teks[place + 1..].iter().any(|newer| {
                newer.sending == Sending::Now
                    && newer.policy.source == tek.policy.source
                    && newer.policy.destination == tek.policy.destination
            });
            let young = self.newborn.as_ref().is_some_and(|(_, young)| young.contains(&tek.policy.spi));
            if !newer && !young && !self.departed.contains(&tek.policy.spi) {
                known.sends.insert(tek.policy.spi);
            }
            let (now, octets) = (world.now().at, tek.key.encryption.expose());
            let (meaning, seen) = self.keys.entry(tek.policy.spi).or_insert_with(|| (octets.to_vec(), now));
            let since = now.since(*seen);
            assert!(
                meaning == octets || since > FORGOTTEN,
                "seed {}: two keys of SPI {} within {since:?}",
                self.seed,
                tek.policy.spi
            );
            (*meaning, *seen) = (octets.to_vec(), now);
        }
        let able =
            known.listed && !known.cut && !known.revoked && !known.unserved && world.member_runs(index);
        let now = world.now().at;
        let misses = world.member_runs(index) && world.member(index).vpns()[GROUP].misses_rekeys();
        let new = misses && known.missed.is_none();
        known.missed = known.missed.filter(|_| misses).or(misses.then_some(now));
        self.lasting.doubts += u64::from(new);
        let asks = known.missed.is_none_or(|since| now.since(since) < ASKED);
        assert!(asks, "seed {}: {} never asked for what it missed", self.seed, member_address(index).ip());
        if !able || new {
            known.synced = false;
        }
        if able && !known.synced && self.retold.is_none() && world.server_runs() {
            let mut current =
                world.server().groups()[GROUP].teks().iter().filter(|tek| tek.retires.is_none());
            known.synced = !known.holds.is_empty() && current.all(|tek| known.holds.contains(&tek.spi));
        }
        self.count(&known, true);
        *self.known(index) = known;
    }

    fn count(&mut self, known: &Known, there: bool) {
        if !known.synced {
            return;
        }
        let change = |counts: &mut BTreeMap<Spi, usize>, spi: Spi| {
            let count = counts.entry(spi).or_insert(0);
            *count = if there { *count + 1 } else { *count - 1 };
            if *count == 0 {
                counts.remove(&spi);
            }
        };
        known.holds.iter().for_each(|spi| change(&mut self.holders, *spi));
        known.sends.iter().for_each(|spi| change(&mut self.senders, *spi));
        self.synced = if there { self.synced + 1 } else { self.synced - 1 };
    }

    /// Takes what happened in, and checks.
    pub fn look(&mut self, world: &mut World) {
        self.lasting.looks += 1;
        let mut touched = std::mem::take(&mut world.touched);
        for index in std::mem::take(&mut world.keyed) {
            let known = self.known(index);
            known.unserved = false;
            assert!(!known.revoked, "seed {}: keys for a revoked member", self.seed);
        }
        let mut rekeyed = false;
        for event in std::mem::take(&mut world.told) {
            rekeyed |= matches!(event, Event::RekeyStarted { .. });
            if event.level() >= Level::Info && !event.name().starts_with("phase1") {
                self.recent.push_back((world.now().at, event.clone()));
                if self.recent.len() > RECENT {
                    self.recent.pop_front();
                }
            }
            touched.extend(self.event(world.now().at, &event));
        }
        if self.retold.is_some_and(|until| until < world.now().at) {
            self.retold = None;
            touched.extend(0..self.members.len());
        }
        if self.newborn.as_ref().is_some_and(|(until, _)| *until < world.now().at) {
            self.newborn = None;
            touched.extend(0..self.members.len());
        }
        for index in touched {
            self.set(index, world, |_| {});
        }
        if rekeyed || self.due.is_none() {
            self.look_ahead(world);
        }
        self.on_time(world);
        if world.server_runs() {
            let group = &world.server().groups()[GROUP];
            self.delivering = !group.deliveries().is_empty();
            let kek = group.kek().filter(|kek| !self.keks.contains_key(&kek.spi));
            self.keks.extend(kek.map(|kek| (kek.spi, kek.cipher.clone())));
        }
        self.listen(world);
        for (spi, count) in &self.senders {
            let holders = self.holders.get(spi).copied().unwrap_or(0);
            assert!(
                holders == self.synced,
                "seed {} at {:?}: {count} send under {spi}, {holders} of {} can open it\n{}they send:\n{}they do not hold it:\n{}",
                self.seed,
                world.now().at,
                self.synced,
                self.story(),
                self.rings(world, |known| known.sends.contains(spi)),
                self.rings(world, |known| !known.holds.contains(spi)),
            );
        }
        let now = world.now().at;
        for outsider in &self.outsiders {
            let settled = outsider.since + Duration::from_secs(120);
            if now > settled {
                let still = outsider.teks.iter().find(|spi| self.senders.contains_key(spi));
                assert!(
                    still.is_none(),
                    "seed {}: {still:?} is in use, a revoked member holds it",
                    self.seed
                );
            }
        }
    }

    /// The TEKs of the first members in step of which something is true.
    fn rings(&self, world: &World, so: impl Fn(&Known) -> bool) -> String {
        let all = self.members.iter().enumerate().filter(|(_, known)| known.synced && so(known));
        let mut text = String::new();
        for (index, _) in all.take(3) {
            for tek in world.member(index).vpns()[GROUP].keyring.teks() {
                let (spi, address) = (tek.policy.spi, member_address(index).ip());
                let _ = writeln!(
                    text,
                    "{address} {spi} {:?}, ends {:?}, leaves {:?}",
                    tek.sending, tek.expires, tek.leaves
                );
            }
        }
        text
    }

    /// What was told last.
    fn story(&self) -> String {
        self.recent.iter().map(|(at, event)| format!("{at:?} {event}\n")).collect()
    }

    /// Whom an event is about.
    fn event(&mut self, now: Instant, event: &Event) -> Option<usize> {
        let named =
            |name: &str| name.parse().ok().and_then(|ip| member_index(std::net::SocketAddr::new(ip, 848)));
        match event {
            Event::MemberRegistered { member, .. } | Event::MemberReregistered { member, .. } => {
                let index = named(member)?;
                let known = self.known(index);
                assert!(!known.revoked, "a revoked member registered");
                (known.listed, known.unserved) = (true, true);
                return Some(index);
            }
            Event::PullCompleted { sender_ids, .. } => {
                self.lasting.registrations += 1;
                for sid in sender_ids {
                    assert!(self.sender_ids.insert(*sid), "seed {}: SID {sid} again", self.seed);
                }
            }
            Event::SenderIdsExhausted { .. } => self.sender_ids.clear(),
            Event::MemberRemoved { member, reason, .. } => {
                let index = named(member)?;
                self.lasting.expired += u64::from(reason == "no acknowledgement");
                self.known(index).listed = false;
                return Some(index);
            }
            Event::RekeyStarted { rekey, pushes, seq, kek_spi, why, .. } => {
                self.lasting.pushes += 1;
                assert!(self.begun.insert((kek_spi.clone(), *seq)), "seed {}: SEQ {seq} again", self.seed);
                match &mut self.last_rekey {
                    Some([life, number, _, begun]) if (*life, *number) == (self.life, *rekey) => *begun += 1,
                    last => {
                        let whole =
                            last.is_none_or(|[life, _, all, begun]| life != self.life || all == begun);
                        assert!(whole, "seed {}: {last:?} has other PUSHes than it said", self.seed);
                        *last = Some([self.life, *rekey, *pushes, 1]);
                        self.rekey(now, why);
                    }
                }
            }
            Event::PushSent { seq, kek_spi, attempt, members, .. } => {
                self.lasting.datagrams += members;
                // One that was delivered goes again to a member that registered with older terms.
                let copies = self.copies.entry((kek_spi.clone(), *seq)).or_insert(0);
                assert!(*copies > 0 || *attempt == 1, "seed {}: attempt {attempt} first", self.seed);
                *copies += 1;
                assert!(*attempt <= self.retransmissions + 1, "seed {}: {attempt} copies", self.seed);
            }
            Event::AckReceived { .. } => self.lasting.acks += 1,
            _ => {}
        }
        None
    }

    /// A rekey began: it was asked for, or it is due.
    fn rekey(&mut self, now: Instant, why: &str) {
        match why {
            "the key tree is full" => self.lasting.grown += 1,
            "before keys end" => {
                let due = self.due.expect("a rekey is due").max(self.started);
                let off = if now > due { now.since(due) } else { due.since(now) };
                assert!(off <= Duration::from_secs(2), "seed {}: {off:?} off its time", self.seed);
                self.lasting.scheduled += 1;
            }
            _ => {
                assert!(self.asked > 0, "seed {}: nobody asked for this rekey: {why}", self.seed);
                self.asked -= 1;
                self.lasting.asked += 1;
            }
        }
    }

    /// When the next rekey is due, from the ends of the keys.
    fn look_ahead(&mut self, world: &World) {
        if !world.server_runs() {
            return;
        }
        let group = &world.server().groups()[GROUP];
        let teks = group.teks().iter().filter(|tek| tek.retires.is_none());
        let teks = teks.filter_map(|tek| Some(tek.ends - *self.margins.get(&tek.sa)?));
        self.due = teks.chain(group.kek().map(|kek| kek.ends - self.kek_margin)).min();
    }

    /// No rekey is overdue.
    fn on_time(&self, world: &World) {
        let Some(due) = self.due.filter(|_| world.server_runs()) else { return };
        let latest = due.max(self.started) + Duration::from_secs(2);
        assert!(world.now().at <= latest, "seed {}: a rekey was due at {due:?}", self.seed);
    }

    /// Whatever the server sends to many is on the wire for everybody: no number twice, and nothing for outsiders.
    fn listen(&mut self, world: &World) {
        let new: Vec<Bytes> = world.pushes.get(self.heard..).unwrap_or_default().to_vec();
        self.heard = world.pushes.len();
        let now = world.now().at;
        self.outsiders.retain(|outsider| now.since(outsider.since) < TRIED);
        for octets in new {
            let header = Header::decode(&octets).expect("the server's header");
            let spi: KekSpi = header.cookies.into();
            if let Some(kek) = self.keks.get(&spi) {
                let opened =
                    push::open(kek, SeqNumber(0), &header, &octets, Dialect::STRICT).expect("a PUSH");
                let seq = opened.verified().into_inner().seq;
                let first = self.numbers.entry((spi, seq)).or_insert_with(|| octets.clone());
                assert!(*first == octets, "seed {}: two messages under SEQ {seq}", self.seed);
            }
            if self.outsiders.is_empty() || !world.server_runs() {
                continue;
            }
            let group = &world.server().groups()[GROUP];
            let kek = group.kek().map(|kek| kek.key.expose().to_vec());
            let mut secrets: Vec<(Option<Spi>, Vec<u8>)> = kek.map(|key| (None, key)).into_iter().collect();
            secrets
                .extend(group.teks().iter().map(|tek| (Some(tek.spi), tek.key.encryption.expose().to_vec())));
            for outsider in &self.outsiders {
                self.lasting.tried += outsider.keys.len() as u64;
                for found in try_keys(&outsider.keys, &octets) {
                    let known = secrets.iter().find(|(_, key)| *key == found);
                    let news =
                        known.is_some_and(|(spi, _)| spi.is_none_or(|spi| !outsider.teks.contains(&spi)));
                    assert!(!news, "seed {}: a revoked member opened {:?}", self.seed, known.map(|it| it.0));
                }
            }
        }
    }

    /// Nothing that was asked for is left.
    pub fn over(&self, world: &World) {
        assert_eq!(self.asked, 0, "seed {}: a rekey never came", self.seed);
        assert!(world.server_runs() && self.numbers.len() as u64 >= self.lasting.pushes / 2);
        assert!(self.lasting.scheduled > 0 && self.lasting.acks > 0);
    }
}
